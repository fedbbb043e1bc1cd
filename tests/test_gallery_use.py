"""What a gallery takes as a query, shows on a map, tells of itself, and how it is calibrated."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kerasim import data
from kerasim._sources import label_texts
from kerasim.errors import ArgumentError, ArgumentTypeError, ImageError
from kerasim.gallery import Gallery
from kerasim.neighbors import NeighborIndex
from tests.helpers.small_embedder import EMBEDDER

FLOATS = np.random.default_rng(0).random((40, 4, 4, 1), dtype="float32")


def write_random_image(path, seed, mode="L", kind="PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype="uint8")
    Image.fromarray(pixels).convert(mode).save(path, kind)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("files") / "images"
    for seed in range(6):
        write_random_image(root / "ab"[seed % 2] / f"{seed}.png", seed)
    return root


@pytest.fixture(scope="module")
def gallery(root):
    gallery = Gallery(EMBEDDER, "euclidean")
    gallery.add(root)
    return gallery


def two(gallery):
    return gallery.items["file"].iloc[[4, 1]]


WAYS = {  # to ask for the items 4 and 1
    "list of names": lambda g: two(g).tolist(),
    "tuple of names": lambda g: tuple(two(g)),
    "list of paths": lambda g: [Path(file) for file in two(g)],
    "array of names": lambda g: np.array(two(g).tolist()),
    "array of objects": lambda g: two(g).to_numpy(),
    "Series": two,
    "Series of pandas strings": lambda g: two(g).astype("str"),
    "Index": lambda g: pd.Index(two(g)),
    "iterator": lambda g: iter(two(g).tolist()),
    "what a query found": lambda g: g.query(ids=[4, 1], k=1)["file"],
    "bytes": lambda g: [Path(file).read_bytes() for file in two(g)],
    "PIL images": lambda g: [Image.open(file) for file in two(g)],
    "names, bytes and PIL images": lambda g: [two(g).iloc[0], Image.open(two(g).iloc[1])],
    "ImageFolder": lambda g: data.ImageFolder(
        [Path(file) for file in two(g)], None, [], [], (4, 4), 1
    ),
    "array of images": lambda g: np.stack(
        [np.asarray(Image.open(file))[..., None] for file in two(g)]
    ),
    "list of ids": lambda g: [4, 1],
    "array of ids": lambda g: np.array([4, 1]),
    "Series of ids": lambda g: g.items["id"].iloc[[4, 1]],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_query_can_be_given_in_many_ways(way, gallery):
    found = gallery.query(WAYS[way](gallery), k=2)
    assert found["id"][found["rank"] == 1].tolist() == [4, 1]
    assert found["query"].tolist() == [0, 0, 1, 1] and list(found.columns) == [
        *("query", "rank", "id", "file", "label", "distance")
    ]
    np.testing.assert_allclose(found["distance"][found["rank"] == 1], 0, atol=1e-4)


@pytest.mark.parametrize("one", ["name", "path", "bytes", "PIL image", "id"])
def test_a_query_can_be_one_image(one, gallery):
    file = gallery.items["file"][3]
    given = {"name": str, "path": Path, "bytes": lambda f: Path(f).read_bytes(), "id": lambda _: 3}
    given["PIL image"] = Image.open
    assert gallery.query(given[one](file), k=1)["id"].tolist() == [3]


def test_a_query_can_be_a_folder(gallery, root):
    assert gallery.query(root / "b", k=1)["id"].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I"]
)
def test_an_image_of_pil_is_read_as_its_file_is(mode, gallery, tmp_path):
    image = Image.open(write_random_image(tmp_path / "x.png", 1)).convert(mode)
    if mode == "F":
        image = image.point(lambda level: level / 255)
    content = io.BytesIO()
    kind = "TIFF" if mode in ("CMYK", "F") else "PNG"
    written = {"YCbCr": "RGB", "HSV": "RGB", "I": "I;16"}.get(mode, mode)
    image.convert(written).save(content, kind)
    ways = [gallery._images([given]) for given in (image, content.getvalue())]
    np.testing.assert_array_equal(*ways)


def test_an_image_of_pil_is_turned_by_its_exif(gallery, tmp_path):
    image = Image.open(write_random_image(tmp_path / "x.png", 1))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    by_file = gallery._images([tmp_path / "turned.png"])[:]
    np.testing.assert_array_equal(gallery._images([turned]), np.rint(255 * by_file))


def test_an_image_that_cannot_be_used_is_named_by_its_position(gallery):
    file = gallery.items["file"][0]
    with pytest.raises(ImageError, match="Image 1 cannot be used"):
        gallery.query([Path(file).read_bytes(), b"no image"])
    with pytest.raises(ArgumentTypeError, match=r"images\[1\] is 2.5, of type float"):
        gallery.query([file, 2.5])
    with pytest.raises(ArgumentError, match=r"images\[1\] is an empty path.*ids=found"):
        gallery.query([file, ""])


@pytest.mark.parametrize("given", [{}, {"images": FLOATS, "ids": [1]}])
def test_a_query_takes_images_or_ids(given, gallery):
    with pytest.raises(ArgumentError, match="either images, ids or vectors"):
        gallery.query(**given)


def test_ids_that_are_not_in_the_gallery_are_named(gallery):
    with pytest.raises(ArgumentError, match=r"ids \[6, 99\] are not in the gallery"):
        gallery.query(ids=[0, 99, 6])


def test_items_without_a_file_are_found_by_their_ids():
    gallery = Gallery(EMBEDDER, kind="hnsw")
    gallery.add(FLOATS[:9])
    gallery.remove([0, 3])
    assert gallery.query(ids=gallery.items["id"], k=1)["id"].tolist() == [1, 2, 4, 5, 6, 7, 8]


def test_encoded_images_are_added_without_a_file(root):
    gallery = Gallery(EMBEDDER, "euclidean")
    files = sorted(root.rglob("*.png"))
    gallery.add([file.read_bytes() for file in files], labels=list("aaabbb"))
    assert set(gallery.items["file"]) == {""}
    assert gallery.query(files, k=1)["id"].tolist() == list(range(6))


def test_a_generator_of_paths_is_added(root):
    gallery = Gallery(EMBEDDER)
    assert len(gallery.add(root.rglob("*.png"))) == 6


def test_more_than_there_are_gives_all_with_a_warning(gallery):
    with pytest.warns(UserWarning, match="k=7 is more than the 6 items") as caught:
        found = gallery.query(ids=[0], k=7)
    assert len(found) == 6 and caught[0].filename == __file__


# Labels of items


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (["a", None, np.nan, pd.NA, "", "None"], ["a", "", "", "", "", "None"]),
        (np.array([0, np.nan, 1, 2, 3, 4]), ["0", "", "1", "2", "3", "4"]),
        (np.array([0.5, 1, 2, 3, 4, 5]), ["0.5", "1.0", "2.0", "3.0", "4.0", "5.0"]),
        (pd.Series([1, None, 2, 3, 4, 5], dtype="Int64"), ["1", "", "2", "3", "4", "5"]),
        ([True, False] * 3, ["True", "False"] * 3),
    ],
)
def test_a_missing_label_is_no_label(labels, texts):
    gallery = Gallery(EMBEDDER)
    gallery.add(FLOATS[:6], labels)
    assert gallery.items["label"].tolist() == texts
    assert gallery.info()["without_label"] == texts.count("")


# Calibration


def calibrated(n=20, max_far=0.1, **given):
    gallery = Gallery(EMBEDDER, "euclidean")
    near = np.clip(FLOATS[:n] + 0.001, 0, 1)
    left, right = np.concatenate([FLOATS[:n], FLOATS[:n]]), np.concatenate([near, near[::-1]])
    gallery.calibrate(left, right, np.repeat([1, 0], n), max_far)
    return gallery


@pytest.mark.parametrize("labels", [[b"Katze"], np.array([b"Katze"])])
def test_a_label_of_bytes_is_its_text(labels):
    assert label_texts(labels, 1) == ["Katze"]


def test_a_calibration_tells_both_error_rates_with_intervals(tmp_path):
    with pytest.warns(UserWarning, match="few pairs: max_far=0.1 of 20 negative pairs is 2 pairs"):
        gallery = calibrated()
    rates = gallery.calibration
    assert rates["threshold"] == gallery.threshold
    assert rates["negative_pairs"] == rates["positive_pairs"] == 20
    assert rates["far"] <= 0.1 and rates["frr"] == 0
    for name in ("far", "frr"):
        low, high = rates[f"{name}_interval"]
        assert 0 <= low <= rates[name] < high < 0.35
    gallery.save(tmp_path / "gallery")
    assert Gallery.load(tmp_path / "gallery", EMBEDDER).calibration == rates
    json.dumps(rates)


def test_a_calibration_on_enough_pairs_does_not_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calibrated(n=20, max_far=0.5)
    assert caught == []


def test_few_positive_pairs_are_warned_of():
    gallery = Gallery(EMBEDDER, "euclidean")
    same = np.arange(40) < 2
    with pytest.warns(
        UserWarning, match="rejected positive pairs is measured on 2 pairs"
    ) as caught:
        gallery.calibrate(FLOATS, FLOATS[::-1], same, 0.5)
    assert caught[0].filename == __file__


def test_a_threshold_can_be_set_once_there_is_a_calibration():
    gallery = Gallery(EMBEDDER)
    assert gallery.threshold is None and gallery.calibration is None
    with pytest.raises(ArgumentError, match="not calibrated"):
        gallery.threshold = 0.1
    gallery = calibrated(max_far=0.5)
    gallery.threshold = 1e-9
    assert gallery.calibration["frr"] == 1
    assert not gallery.verify(FLOATS[:1], FLOATS[1:2])["same"][0]


# What a gallery tells of itself


def test_a_gallery_is_shown_on_one_line(gallery):
    assert repr(gallery) == (
        "<Gallery: 6 items of 2 classes, metric='euclidean', kind='exact', "
        f"embedder {EMBEDDER.name!r} (4, 4, 1) -> 5>"
    )
    assert "threshold=" in repr(calibrated(max_far=0.5)) and "0 items" in repr(Gallery(EMBEDDER))


def test_info_counts_items_labels_and_files(root, tmp_path):
    for name in ("a/0.png", "a/2.png", "b/1.png"):
        write_random_image(tmp_path / name, int(name[2]))
    gallery = Gallery(EMBEDDER, "euclidean")
    gallery.add(tmp_path)
    gallery.add(FLOATS[:2])
    (tmp_path / "a" / "0.png").unlink()
    write_random_image(tmp_path / "a" / "2.png", 7)
    info = gallery.info()
    expected = {"items": 5, "labels": {"a": 2, "b": 1}, "without_label": 2, "without_file": 2}
    expected |= {"gone": 1, "changed": 1, "metric": "euclidean", "kind": "exact"}
    expected |= {"image_shape": [4, 4, 1], "embedding_dim": 5, "threshold": None}
    assert {key: info[key] for key in expected} == expected
    json.dumps(info)


# Maps


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A gallery of eight files, and what it hands to `write_explorer`."""
    given = {}

    def write(path, images, places, labels, nearest, title, **more):
        given.update(images=images, places=places, labels=labels, nearest=nearest, **more)

    class Projection:  # UMAP takes seconds
        def __init__(self, n_neighbors, seed):
            pass

        def fit_transform(self, vectors):
            return vectors[:, :2]

    monkeypatch.setattr("kerasim.gallery.write_explorer", write)
    monkeypatch.setattr("kerasim.gallery.Projection", Projection)
    for seed in range(8):
        write_random_image(tmp_path / "images" / "ab"[seed % 2] / f"{seed}.png", seed)
    gallery = Gallery(EMBEDDER, "euclidean", thumbnail_size=None)
    gallery.add(tmp_path / "images")
    return gallery, given


def test_a_map_leaves_out_files_that_are_gone_or_cannot_be_decoded(mapped):
    gallery, given = mapped
    files = [Path(file) for file in gallery.items["file"]]
    files[1].unlink()
    files[5].write_bytes(b"no image")
    with pytest.warns(UserWarning) as caught:
        gallery.write_map("map.html", k=5)
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert "2 items are not on the map, because the file is missing or cannot be decoded" in str(
        caught[0].message
    )
    assert "changed since the last add" in str(caught[1].message)
    kept = [0, 2, 3, 4, 6, 7]
    assert given["files"] == given["images"].sources == [str(files[n]) for n in kept]
    assert given["labels"].tolist() == gallery.items["label"].iloc[kept].tolist()
    with pytest.raises(ImageError, match="2 of 8 images"):
        gallery.write_map("map.html", k=5, on_error="raise")


def test_a_map_shows_the_thumbnails_of_files_that_are_gone(mapped, tmp_path):
    _, given = mapped
    gallery = Gallery(EMBEDDER, "euclidean")
    gallery.add(tmp_path / "images")
    for file in gallery.items["file"][:3]:
        Path(file).unlink()
    gallery.write_map("map.html", k=5)
    assert len(given["images"]) == 8 and given["files"] == gallery.items["file"].tolist()
    assert all(isinstance(source, bytes) for source in given["images"].sources)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_map_of_fewer_than_five_images_is_written(count, mapped, tmp_path, monkeypatch):
    gallery, given = mapped
    gallery.remove(list(range(count, 8)))
    gallery.write_map("map.html", k=max(1, count - 1))
    assert given["places"].shape == (count, 2) and len(np.unique(given["places"], axis=0)) == count
    assert all(rows.shape == (count, count - 1) for rows in given["nearest"].values())
    assert given["groups"] == {}
    monkeypatch.undo()
    page = gallery.write_map(tmp_path / "map.html", k=max(1, count - 1))
    assert page.stat().st_size > 10_000


def test_a_map_of_no_image_is_refused():
    with pytest.raises(ArgumentError, match="The map has no image to show: add images"):
        Gallery(EMBEDDER).write_map("map.html")


def test_a_map_has_the_metric_of_the_gallery_with_distances_and_groups_of_its_items(mapped):
    gallery, given = mapped
    Path(gallery.items["file"][2]).unlink()
    with pytest.warns(UserWarning, match="1 item is not on the map"):
        gallery.write_map("map.html", k=5, groups={"camera": ["a", None, "c", *"defgh"]})
    assert given["metric"] == "euclidean"
    for metric, rows in given["nearest"].items():
        found = NeighborIndex(metric).fit(np.delete(gallery.vectors, 2, axis=0)).query(k=5)
        np.testing.assert_array_equal(given["distances"][metric], found[0])
        np.testing.assert_array_equal(rows, found[1])
    assert given["groups"]["camera"] == ["a", None, *"defgh"]
    farthest = given["distances"]["euclidean"][:, -1].argmax()
    assert given["groups"]["outlier"][farthest] == "among the 1 % farthest from others"


def test_groups_of_a_map_that_do_not_fit_the_items_are_refused(mapped):
    gallery, _ = mapped
    with pytest.raises(ArgumentError, match=r"groups\['camera'\] has shape .2,., expected .8,."):
        gallery.write_map("map.html", k=5, groups={"camera": [1, 2]})


def test_a_map_shows_as_many_neighbors_as_there_are_with_a_warning(mapped):
    gallery, given = mapped
    with pytest.warns(UserWarning, match="k=10 is more than the 7 other items of the map"):
        gallery.write_map("map.html")
    assert {metric: rows.shape for metric, rows in given["nearest"].items()} == {
        metric: (8, 7) for metric in ("euclidean", "manhattan", "cosine")
    }


def test_near_copies_leave_out_files_that_are_gone(mapped):
    gallery, _ = mapped
    Path(gallery.items["file"][0]).unlink()
    with pytest.warns(UserWarning, match="1 file of an item is missing"):
        gallery.near_duplicates()
