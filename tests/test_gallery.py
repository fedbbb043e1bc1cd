import json
import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kerasim import _artifacts, embedding, layers
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError
from kerasim.gallery import Gallery
from kerasim.neighbors import METRICS, NeighborIndex
from tests.helpers.image_files import write_image

RNG = np.random.default_rng(0)
IMAGES = RNG.random((30, 8, 6, 3), dtype="float32")


def make_embedder(dim=5, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((8, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(dim)]
    )


EMBEDDER = make_embedder()


def items_json(**columns):
    values = {"id": [0], "file": [""], "label": [""], "size": [-1], "modified": [-1]}
    return json.dumps({**values, "changed": [-1], "sha256": [""], **columns})


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images each."""
    for n in range(8):
        pixels = np.random.default_rng(n).integers(0, 256, (8, 6, 3), dtype="uint8")
        path = tmp_path / "pictures" / f"class-{n % 2}" / f"{n}.png"
        write_image(path)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


def test_add_shows_a_progress_bar_unless_told_otherwise(capfd):
    many = np.concatenate([IMAGES, 1 - IMAGES])
    Gallery(EMBEDDER).add(many)
    assert "60/60" in capfd.readouterr().err
    Gallery(EMBEDDER).add(many, progress=False)
    Gallery(EMBEDDER).add(IMAGES)  # too few
    assert "image/s" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_a_query_finds_what_an_index_of_the_embeddings_finds(kind):
    gallery = Gallery(EMBEDDER, kind=kind)
    ids = gallery.add(IMAGES, np.arange(30) % 3)
    assert ids.tolist() == list(range(30)) and len(gallery) == 30
    found = gallery.query(IMAGES[:4], k=5)
    index = NeighborIndex("cosine").fit(embedding.embed(EMBEDDER, IMAGES))
    distances, indices = index.query(embedding.embed(EMBEDDER, IMAGES[:4]), 5)
    assert list(found.columns) == ["query", "rank", "id", "file", "label", "distance"]
    assert found["id"].tolist() == indices.reshape(-1).tolist()
    assert found["rank"].tolist() == [1, 2, 3, 4, 5] * 4
    assert found["label"].tolist() == [str(n % 3) for n in indices.reshape(-1)]
    np.testing.assert_allclose(found["distance"], distances.reshape(-1), atol=1e-12)


def test_a_folder_gives_files_and_labels_and_is_taken_in_once(folder):
    gallery = Gallery(EMBEDDER)
    assert len(gallery.add(folder)) == 8
    assert set(gallery.items["label"]) == {"class-0", "class-1"}
    write_image(folder / "class-1" / "new.png")
    assert gallery.add(folder).tolist() == [8]
    found = gallery.query([folder / "class-1" / "3.png"], k=1)
    assert found["file"][0].endswith("3.png") and found["distance"][0] < 1e-12


def test_a_damaged_file_is_refused_or_left_out_by_choice(folder):
    (folder / "class-0" / "torn.png").write_bytes(b"no picture")
    gallery = Gallery(EMBEDDER)
    with pytest.raises(ImageError, match="torn.png"):
        gallery.add(folder)
    assert len(gallery) == 0
    with pytest.warns(UserWarning, match="torn.png"):
        gallery.add(folder, on_error="skip")
    assert len(gallery) == 8


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_removed_images_are_never_found_and_ids_never_used_again(kind, tmp_path):
    gallery = Gallery(EMBEDDER, kind=kind)
    gallery.add(IMAGES)
    gallery.remove([0, 7, 29])
    for again in (gallery, None):
        if again is None:
            gallery.save(tmp_path / "gallery")
            again = Gallery.load(tmp_path / "gallery")
        found = again.query(IMAGES[[0, 7]], k=27)
        assert len(again) == 27 and not {0, 7, 29} & set(found["id"])
        assert found.groupby("query").size().tolist() == [27, 27]
    gallery.compact()
    assert gallery.query(IMAGES[:1], 27)["id"].nunique() == 27
    assert gallery.add(IMAGES[:1]).tolist() == [30]
    with pytest.raises(ArgumentError, match=r"ids \[7\] are not in the gallery"):
        gallery.remove(7)


def test_what_is_added_to_a_graph_is_found():
    gallery = Gallery(EMBEDDER, "euclidean", "hnsw")
    gallery.add(IMAGES[:10])
    gallery.add(IMAGES[10:])
    assert gallery.query(IMAGES, 1)["id"].tolist() == list(range(30))


def test_all_can_be_removed_and_others_added():
    gallery = Gallery(EMBEDDER)
    gallery.add(IMAGES[:3])
    gallery.remove([0, 1, 2])
    with pytest.raises(ArgumentError, match="The gallery is empty"):
        gallery.query(IMAGES[:1])
    gallery.add(IMAGES[3:5])
    assert gallery.query(IMAGES[3:5], 1)["id"].tolist() == [3, 4]


def test_a_threshold_of_known_pairs_tells_same_from_different(tmp_path):
    gallery = Gallery(EMBEDDER, "euclidean")
    with pytest.raises(ArgumentError, match="has no threshold"):
        gallery.verify(IMAGES[:1], IMAGES[:1])
    near = np.clip(IMAGES + 0.01, 0, 1)
    left, right = np.concatenate([IMAGES, IMAGES]), np.concatenate([near, IMAGES[::-1]])
    same = np.repeat([1, 0], 30)
    with pytest.warns(UserWarning, match="determined by few pairs: max_far=0 of 30"):
        threshold = gallery.calibrate(left, right, same, max_far=0.0)
    found = gallery.verify(IMAGES[:2], np.stack([near[0], IMAGES[9]]))
    assert found["same"].tolist() == [True, False]
    assert found["score"][0] > 0.9 > 0.1 > found["score"][1]
    gallery.add(IMAGES[:3])
    gallery.save(tmp_path / "gallery")
    loaded = Gallery.load(tmp_path / "gallery")
    assert loaded.threshold == threshold
    pd.testing.assert_frame_equal(
        loaded.verify(IMAGES[:2], near[:2]), gallery.verify(IMAGES[:2], near[:2])
    )


def test_near_copies_are_listed_by_file(folder):
    strange = os.fsdecode(b"copy\xff.png")  # which pandas' strings on pyarrow cannot hold
    with Image.open(folder / "class-0" / "4.png") as image:
        image.convert("RGB").save(folder / "class-1" / strange)
    gallery = Gallery(EMBEDDER)
    gallery.add(folder)
    found = gallery.near_duplicates(min_correlation=1)
    assert {tuple(sorted(map(lambda f: f.rsplit("/")[-1], row))) for row in found.to_numpy()} >= {
        ("4.png", strange)
    }


def test_a_gallery_opens_in_a_fresh_process(folder, tmp_path):
    images = keras.Input((8, 6, 3))
    gallery = Gallery(keras.Model(images, layers.GeMPooling()(images)))
    gallery.add(folder)
    gallery.save(tmp_path / "gallery")
    assert {p.name for p in (tmp_path / "gallery").iterdir()} == {
        *("kerasim.json", "embedder.keras", "embeddings.npy", "items.json"),
        *("thumbnails.npy", "thumbnails.bin"),
    }
    code = (
        "import sys; from kerasim.gallery import Gallery; "
        "print(Gallery.load(sys.argv[1]).query(sys.argv[2], 3)['id'].tolist())"
    )
    file = str(folder / "class-0" / "2.png")
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "gallery"), file],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert eval(out.splitlines()[-1]) == gallery.query(file, 3)["id"].tolist()


@pytest.mark.fault("index-of-another-embedder")
def test_another_embedder_is_refused(tmp_path):
    gallery = Gallery(EMBEDDER)
    gallery.add(IMAGES)
    gallery.save(tmp_path / "gallery")
    Gallery.load(tmp_path / "gallery", EMBEDDER)
    with pytest.raises(ArtifactError, match="made with another embedder"):
        Gallery.load(tmp_path / "gallery", make_embedder(seed=1))


@pytest.mark.fault("concurrent-writers")
def test_of_two_writers_the_second_is_told_and_nothing_is_lost(tmp_path):
    first = Gallery(EMBEDDER)
    first.add(IMAGES[:5])
    first.save(tmp_path / "gallery")
    second = Gallery.load(tmp_path / "gallery")
    first.add(IMAGES[5:8])
    first.save(tmp_path / "gallery")
    second.add(IMAGES[8:9])
    with pytest.raises(ArtifactError, match="another process saved since"):
        second.save(tmp_path / "gallery")
    assert len(Gallery.load(tmp_path / "gallery")) == 8
    second.save(tmp_path / "gallery", replace=True)
    assert len(Gallery.load(tmp_path / "gallery")) == 6


def test_adding_goes_on_where_it_was_killed(folder, tmp_path):
    gallery = Gallery(EMBEDDER)
    calls = []

    def dies(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embedding.embed_folder(*args, **more)

    with pytest.raises(KeyboardInterrupt):
        gallery.add(folder, path=tmp_path / "gallery", chunk=3, embed=dies)
    again = Gallery.load(tmp_path / "gallery")
    assert len(again) == 6
    assert len(again.add(folder, path=tmp_path / "gallery")) == 2
    whole = Gallery(EMBEDDER)
    whole.add(folder)
    pd.testing.assert_frame_equal(Gallery.load(tmp_path / "gallery").items, whole.items)


@pytest.mark.parametrize("labels", [5, "abc", np.zeros((30, 1))])
def test_labels_that_are_no_row_are_refused(labels):
    with pytest.raises(ArgumentError, match="expected .30,.: pass one for each"):
        Gallery(EMBEDDER).add(IMAGES, labels)


def test_labels_that_do_not_fit_and_open_sizes_are_refused():
    with pytest.raises(ArgumentError, match="labels has shape .2,., expected .30,."):
        Gallery(EMBEDDER).add(IMAGES, [0, 1])
    x = keras.Input((None, None, 3))
    with pytest.raises(ArgumentError, match="takes images of any size"):
        Gallery(keras.Model(x, keras.layers.GlobalAveragePooling2D()(x)))


def test_the_map_shows_the_nearest_of_each_item_by_each_metric(tmp_path, monkeypatch):
    from kerasim import gallery as module

    given = {}
    monkeypatch.setattr(
        module, "write_explorer", lambda *all, **more: given.update(all=all, **more)
    )
    gallery = Gallery(EMBEDDER)
    gallery.add(np.concatenate([IMAGES, IMAGES[:2]]), np.arange(32) % 3)
    gallery.remove([4])
    images = np.delete(np.concatenate([IMAGES, IMAGES[:2]]), 4, axis=0)
    gallery.write_map(tmp_path / "map.html", images, k=3)
    _, shown, places, labels, nearest, _ = given["all"]
    assert shown is images and places.shape == (31, 2) and labels[-1] == "1"
    vectors = embedding.embed(EMBEDDER, images).astype("float64")
    for metric, rows in nearest.items():
        assert rows.shape == (31, 3) and rows[0, 0] == 29 and rows[29, 0] == 0
        index = NeighborIndex(metric).fit(np.delete(vectors, 7, axis=0))
        others = np.delete(np.arange(31), 7)
        assert rows[7].tolist() == others[index.query(vectors[7:8], 3)[1][0]].tolist()


def test_a_gallery_of_files_is_written_as_a_page(folder, tmp_path):
    gallery = Gallery(EMBEDDER)
    gallery.add(folder)
    page = gallery.write_map(tmp_path / "map.html", title="Pictures", k=7)
    assert "class-1" in page.read_text() and "7.png" in page.read_text()
    gallery.add(IMAGES[:1])
    gallery.write_map(tmp_path / "map.html", k=7)
    without = Gallery(EMBEDDER, thumbnail_size=None)
    without.add(folder)
    without.add(IMAGES[:1])
    with pytest.raises(ArgumentError, match="1 of 9 items were added as arrays"):
        without.write_map(tmp_path / "map.html")


@pytest.mark.parametrize("metric", METRICS)
def test_a_graph_that_grew_answers_alike_once_it_is_loaded(metric, tmp_path):
    rng = np.random.default_rng(1)
    images = np.concatenate([0.1 * rng.random((40, 8, 6, 3)), 0.8 + 0.1 * IMAGES])
    gallery = Gallery(EMBEDDER, metric, "hnsw")
    for part in np.split(images.astype("float32"), [40]):
        gallery.add(part)
        assert gallery.index.recall_ > 0.9
    gallery.save(tmp_path / "gallery")
    loaded = Gallery.load(tmp_path / "gallery")
    for again in (gallery, loaded):
        assert again.query(images.astype("float32"), 1)["id"].tolist() == list(range(70))
    assert loaded.index.recall_ == gallery.index.recall_


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_an_index_that_is_interrupted_as_it_grows_loses_no_image(kind, monkeypatch):
    gallery = Gallery(EMBEDDER, kind=kind)
    gallery.add(IMAGES[:10])
    gallery.query(IMAGES[:1])
    gallery.add(IMAGES[10:20])

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NeighborIndex, "_recall" if kind == "hnsw" else "_fit", dies)
        with pytest.raises(KeyboardInterrupt):
            gallery.query(IMAGES[:1])
    gallery.add(IMAGES[20:])
    assert gallery.query(IMAGES, 1)["id"].tolist() == list(range(30))


def test_a_graph_with_many_removed_still_finds_as_many_as_asked_for():
    gallery = Gallery(EMBEDDER, kind="hnsw")
    gallery.add(IMAGES)
    gallery.remove(np.arange(0, 26))
    found = gallery.query(IMAGES[:5], k=3)
    assert found["id"].min() == 26 and found["query"].tolist() == np.repeat(range(5), 3).tolist()
    with pytest.warns(UserWarning, match="k=99 is more than the 4 items that .*: 4 is used"):
        assert gallery.query(IMAGES[:1], k=99)["rank"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("ids", [np.arange(30) > 8, [1.0], None])
def test_ids_that_are_no_whole_numbers_are_refused(ids):
    gallery = Gallery(EMBEDDER)
    gallery.add(IMAGES)
    with pytest.raises(ArgumentTypeError, match="ids must be whole numbers"):
        gallery.remove(ids)
    assert len(gallery) == 30


@pytest.mark.parametrize("label", ["a\rb", "a\nb", 'a",b', " a ", "NA", "007", "", "é", "-1"])
def test_any_label_comes_back_as_it_was(label, tmp_path):
    gallery = Gallery(EMBEDDER)
    gallery.add(IMAGES[:2], [label, "b"])
    gallery.save(tmp_path / "gallery")
    assert Gallery.load(tmp_path / "gallery").items["label"].tolist() == [label, "b"]


def test_a_file_name_of_any_bytes_comes_back_as_it_was(tmp_path):
    file = tmp_path / "pictures" / os.fsdecode(b"\xff\r,.png")
    write_image(file)
    gallery = Gallery(EMBEDDER)
    gallery.add(tmp_path / "pictures", path=tmp_path / "gallery")
    again = Gallery.load(tmp_path / "gallery")
    assert again.items["file"].tolist() == [str(file)]
    assert len(again.add(tmp_path / "pictures")) == 0


def test_an_embedder_that_has_changed_is_refused(tmp_path):
    embedder = make_embedder()
    gallery = Gallery(embedder)
    gallery.add(IMAGES)
    embedder.layers[-1].bias.assign_add(np.ones(5))
    for call in (lambda: gallery.add(IMAGES), lambda: gallery.save(tmp_path / "gallery")):
        with pytest.raises(ArgumentError, match="embedder has changed"):
            call()


def test_a_calibration_that_fails_leaves_the_one_before(tmp_path):
    gallery = Gallery(EMBEDDER)
    with pytest.warns(UserWarning, match="few pairs|measured on 2 pairs"):
        gallery.calibrate(IMAGES[:4], IMAGES[[0, 1, 5, 6]], [1, 1, 0, 0])
    before = gallery.verify(IMAGES[:4], IMAGES[4:8])
    with pytest.raises(ArgumentError):
        gallery.calibrate(IMAGES[:4], IMAGES[4:8], [1, 0, 1])
    pd.testing.assert_frame_equal(gallery.verify(IMAGES[:4], IMAGES[4:8]), before)
    assert len(gallery.verify([], [])) == 0


def test_an_empty_gallery_is_saved(tmp_path):
    Gallery(EMBEDDER).save(tmp_path / "gallery")
    gallery = Gallery.load(tmp_path / "gallery")
    gallery.add(IMAGES[:3], path=tmp_path / "gallery")
    gallery.remove([0, 1, 2])
    gallery.save(tmp_path / "gallery")
    assert Gallery.load(tmp_path / "gallery").add(IMAGES[:1]).tolist() == [3]


def test_an_empty_gallery_has_no_index():
    with pytest.raises(ArgumentError, match="gallery is empty: call add"):
        _ = Gallery(EMBEDDER).index


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("items.csv", '"id","file","label"\n0,"",""\n', "0 vectors, 1 items"),
        ("items.csv", '"id","file"\n', r"items.csv has the columns \['id', 'file'\]"),
        ("items.json", '{"id": []}', r"items.json has the columns \['id'\]"),
        ("items.json", "[1]", r"items.json has the columns \[1\]"),
        ("items.json", items_json(size=["a"]), ".* a column size that is not a list of int"),
        ("items.json", items_json(file=[1]), ".* a column file that is not a list of str"),
        ("items.json", items_json(id=3), ".* a column id that is not a list of int"),
        ("items.json", items_json(), "0 vectors, 1 items"),
    ],
)
def test_a_gallery_whose_items_do_not_fit_is_refused(name, table, said, tmp_path):
    def fill(folder):
        EMBEDDER.save(folder / "embedder.keras")
        (folder / name).write_text(table)

    info = {"settings": {}, "index": None, "next": 1, "threshold": None, "pairs": None}
    _artifacts.write(tmp_path / "gallery", "gallery", fill, info)
    with pytest.raises(ArtifactError, match=f"cannot be loaded as gallery: {said}"):
        Gallery.load(tmp_path / "gallery")


def test_a_gallery_goes_into_an_empty_folder_and_over_no_other(tmp_path):
    gallery = Gallery(EMBEDDER)
    gallery.add(IMAGES[:3])
    (tmp_path / "empty").mkdir()
    gallery.save(tmp_path / "empty")
    (tmp_path / "file").write_text("text")
    for name in ("file", "."):
        with pytest.raises(ArtifactError):
            gallery.save(tmp_path / name, replace=True)
    assert (tmp_path / "file").read_text() == "text"


def test_a_gallery_saved_in_two_places_goes_on_in_both(tmp_path):
    gallery = Gallery(EMBEDDER)
    for n, name in enumerate(["one", "other", "one", "other"]):
        gallery.add(IMAGES[n : n + 1])
        gallery.save(tmp_path / name)
    (tmp_path / "link").symlink_to("one")
    gallery.add(IMAGES[4:5], path=tmp_path / "link")
    assert len(Gallery.load(tmp_path / "one")) == 5


def test_adding_to_a_gallery_that_was_not_loaded_is_refused_before_work(folder, tmp_path):
    Gallery(EMBEDDER).save(tmp_path / "gallery")
    gallery = Gallery(EMBEDDER)
    with pytest.raises(ArtifactError, match="load it and add to that"):
        gallery.add(folder, path=tmp_path / "gallery")
    assert len(gallery) == 0


def test_an_embedder_that_could_not_be_loaded_again_is_refused_when_saved(tmp_path):
    @keras.saving.register_keras_serializable("here")
    class Fussy(keras.layers.Layer):
        def __init__(self, of):
            super().__init__()

        def call(self, x):
            return x

        def get_config(self):
            return {"name": self.name}

    images = keras.Input((8, 6, 3))
    gallery = Gallery(keras.Model(images, keras.layers.Flatten()(Fussy(of=3)(images))))
    with pytest.raises(ArgumentError, match="cannot be loaded again once it is saved"):
        gallery.save(tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()


def test_a_file_is_taken_in_once_whichever_way_it_is_named(folder, tmp_path):
    gallery = Gallery(EMBEDDER)
    file = folder / "class-0" / "0.png"
    assert len(gallery.add([file, file, str(file)])) == 1
    (tmp_path / "link").symlink_to(folder)
    assert len(gallery.add(tmp_path / "link")) == 7
    assert len(gallery.add(folder)) == 0


def test_damaged_files_of_a_list_are_left_out_and_all_are_listed(folder):
    files = sorted(folder.rglob("*.png"))
    for file in files[:7]:
        file.write_bytes(b"no picture")
    gallery = Gallery(EMBEDDER)
    with pytest.raises(ImageError, match="7 of 8 images cannot be used"):
        gallery.add(files)
    with pytest.warns(UserWarning, match="7 files are left out, see `skipped`"):
        assert len(gallery.add(files, on_error="skip")) == 1
    assert [file for file, _ in gallery.skipped] == list(map(str, files[:7]))
    with pytest.raises(ArgumentError, match="on_error='bogus'"):
        gallery.add(files, on_error="bogus")


def test_an_image_embedded_as_zeros_is_named_and_left_out_under_cosine(folder):
    Image.fromarray(np.zeros((8, 6, 3), "uint8")).save(folder / "class-0" / "black.png")
    gallery = Gallery(EMBEDDER)  # its bias is zero
    with pytest.raises(ImageError, match="black.png.* has an embedding of zeros"):
        gallery.add(folder)
    with pytest.warns(UserWarning, match="black.png"):
        assert len(gallery.add(folder, on_error="skip")) == 8
    flat = Gallery(EMBEDDER, "euclidean")
    assert len(flat.add(folder)) == 9
    page = flat.write_map(folder / "map.html", k=5).read_text()
    assert "manhattan" in page


def test_more_pairs_than_a_gallery_keeps_are_refused(monkeypatch):
    with pytest.raises(ArgumentError, match="the number of pairs=200001 is out of range"):
        Gallery(EMBEDDER).calibrate(IMAGES, IMAGES, np.ones(200_001))


@pytest.mark.parametrize(
    "threshold, pairs",
    [
        ("near", [[0.1, 0.2], [1, 0]]),
        (float("nan"), [[0.1, 0.2], [1, 0]]),
        (0.1, "ab"),
        (0.1, [[0.1, 0.2], [1]]),
        (0.1, [[0.1, float("nan")], [1, 0]]),
        (0.1, [[0.1, 0.2], [1, 1]]),
        (0.1, [[], []]),
    ],
)
def test_a_calibration_that_is_none_is_not_loaded(threshold, pairs, tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    forged = Gallery(model)
    forged.add(np.random.default_rng(0).random((3, 4, 4, 1)))
    forged.save(tmp_path / "forged")

    def copy(folder, manifest):
        files = {name: (folder / name).read_bytes() for name in manifest.files}
        return files, {**manifest.info, "threshold": threshold, "pairs": pairs}

    files, info = _artifacts.read(tmp_path / "forged", "gallery", copy)
    fill = lambda folder: [(folder / name).write_bytes(files[name]) for name in files]  # noqa: E731
    _artifacts.write(tmp_path / "forged", "gallery", fill, info)
    with pytest.raises(ArtifactError, match="cannot be loaded as gallery"):
        Gallery.load(tmp_path / "forged")
