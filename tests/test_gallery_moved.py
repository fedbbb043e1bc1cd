"""Galleries whose image files are elsewhere, or nowhere: thumbnails and `root`."""

import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from kerasim import _thumbnails, data, embedding
from kerasim.errors import ArgumentError, ArtifactError
from kerasim.gallery import Gallery
from kerasim.images import decode, read_image


def small_embedder():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])


def write_photos(folder, count=12):
    rng = np.random.default_rng(0)
    for n in range(count):
        file = folder / f"class-{n % 2}" / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 60, 3), dtype="uint8")).save(file)


@pytest.fixture
def moved(tmp_path):
    """A folder with photos and their gallery, made elsewhere, and moved."""
    write_photos(tmp_path / "here" / "photos")
    gallery = Gallery(small_embedder())
    gallery.add(tmp_path / "here" / "photos")
    gallery.save(tmp_path / "here" / "gallery")
    shutil.move(tmp_path / "here", tmp_path / "there")
    return tmp_path / "there"


def sizes_of(gallery):
    return [decode(kept)[0].shape[:2] for kept in gallery._items.table["thumbnail"]]


def test_a_thumbnail_keeps_the_aspect_ratio_and_is_no_larger_than_asked(tmp_path):
    write_photos(tmp_path / "photos", 1)
    Image.new("L", (400, 100), 128).save(tmp_path / "photos" / "wide.jpg")
    gallery = Gallery(small_embedder())
    gallery.add(tmp_path / "photos")
    gallery.add(np.zeros((1, 8, 8, 3)) + 0.5)
    assert sizes_of(gallery) == [(30, 60), (32, 128), (8, 8)]
    small = Gallery(small_embedder(), thumbnail_size=16)
    small.add(tmp_path / "photos")
    assert sizes_of(small) == [(8, 16), (4, 16)]


def test_thumbnails_get_smaller_as_the_gallery_grows():
    assert [_thumbnails.side_for(n, 128) for n in (0, 10_000, 10_001, 100_001)] == [
        128,
        128,
        64,
        32,
    ]
    assert _thumbnails.side_for(50_000, 48) == 48
    assert _thumbnails.side_for(5, None) == 0


def test_a_gallery_may_keep_no_thumbnails(tmp_path):
    gallery = Gallery(small_embedder(), thumbnail_size=None)
    gallery.add(np.random.default_rng(0).random((5, 8, 8, 3)))
    gallery.save(tmp_path / "gallery")
    assert not list((tmp_path / "gallery").glob("thumbnails*"))
    loaded = Gallery.load(tmp_path / "gallery")
    assert loaded.thumbnail_size is None
    with pytest.raises(ArgumentError, match="5 of 5 items were added as arrays"):
        loaded.show(loaded.query(ids=range(5), k=2), [0, 1, 2, 3, 4])
    with pytest.raises(ArgumentError, match="thumbnail_size"):
        Gallery(small_embedder(), thumbnail_size=0)


def test_a_gallery_shows_its_images_without_the_files(moved):
    shutil.rmtree(moved / "photos")
    gallery = Gallery.load(moved / "gallery")
    assert len(gallery) == 12
    figure = gallery.show(gallery.query(ids=[0, 5], k=3), [0, 5])
    drawn = [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]
    assert len(drawn) == 8 and all(image.std() > 0.05 for image in drawn)
    page = gallery.write_report(moved / "report.html", k=3, min_cluster_size=None)
    assert page.read_text().count("data:image/webp") >= 12


def test_removed_and_replaced_items_leave_no_thumbnail_behind(tmp_path):
    write_photos(tmp_path / "photos", 4)
    gallery = Gallery(small_embedder(), kind="hnsw")
    gallery.add(tmp_path / "photos")
    gallery.remove([1])
    file = tmp_path / "photos" / "class-0" / "0.png"
    Image.new("RGB", (10, 40), "red").save(file)
    gallery.add(tmp_path / "photos")
    gallery.save(tmp_path / "gallery")
    loaded = Gallery.load(tmp_path / "gallery")
    kept = dict(zip(loaded._items.table["id"], loaded._items.table["thumbnail"], strict=True))
    assert decode(kept[0])[0].shape == (40, 10, 3)
    assert all(not thumbnail for item, thumbnail in kept.items() if item < 0)


@pytest.mark.parametrize("damage", ["short", "lengths", "negative"])
def test_thumbnails_that_do_not_fit_are_refused(damage, tmp_path):
    _thumbnails.write([b"abc", b"", b"de"], tmp_path)
    assert _thumbnails.read(tmp_path, 3) == [b"abc", b"", b"de"]
    if damage == "short":
        (tmp_path / "thumbnails.bin").write_bytes(b"abcd")
    else:
        lengths = [3, 2] if damage == "lengths" else [6, -1, 0]
        np.save(tmp_path / "thumbnails.npy", np.array(lengths, "int64"))
    with pytest.raises(ValueError, match="thumbnails"):
        _thumbnails.read(tmp_path, 3)


def test_images_that_are_moved_with_the_gallery_are_found(moved):
    gallery = Gallery.load(moved / "gallery")
    assert gallery.root == moved / "photos"
    assert gallery.info()["gone"] == 0
    assert gallery.add(moved / "photos").size == 0  # all are known
    assert not gallery.moved and not gallery.changed


def test_root_tells_where_the_images_are_now(moved, tmp_path):
    shutil.move(moved / "photos", tmp_path / "elsewhere")
    gallery = Gallery.load(moved / "gallery")
    assert gallery.info()["gone"] == 12
    gallery = Gallery.load(moved / "gallery", root=tmp_path / "elsewhere")
    assert gallery.root == tmp_path / "elsewhere" and gallery.info()["gone"] == 0
    file = tmp_path / "elsewhere" / "class-1" / "3.png"
    assert gallery.query(file, k=1)["file"].tolist() == [str(file)]
    gallery.save(moved / "gallery")
    assert Gallery.load(moved / "gallery").root == tmp_path / "elsewhere"


def test_files_of_another_size_keep_their_names_with_a_warning(moved):
    (moved / "photos" / "class-0" / "0.png").write_bytes(b"another")
    (moved / "photos" / "class-1" / "1.png").unlink()
    with pytest.warns(UserWarning, match="2 items keep their old file name.*0.png.*1.png"):
        gallery = Gallery.load(moved / "gallery")
    assert gallery.info()["gone"] == 2


def test_the_old_place_counts_as_long_as_it_is_there(moved, tmp_path):
    shutil.copytree(moved, tmp_path / "here")
    assert Gallery.load(moved / "gallery").root == tmp_path / "here" / "photos"


def test_a_root_that_cannot_be_is_refused(moved, tmp_path):
    with pytest.raises(ArtifactError, match="root .* is not a folder"):
        Gallery.load(moved / "gallery", root=tmp_path / "nowhere")
    gallery = Gallery(small_embedder())
    gallery.add(np.random.default_rng(0).random((2, 8, 8, 3)))
    assert gallery.root is None
    gallery.save(tmp_path / "arrays")
    with pytest.raises(ArgumentError, match="No item of the gallery has a file"):
        Gallery.load(tmp_path / "arrays", root=tmp_path)
    assert len(Gallery.load(tmp_path / "arrays")) == 2


def test_a_gallery_resizes_files_as_it_is_told_and_remembers_it(tmp_path):
    write_photos(tmp_path / "photos", 3)
    shape = (8, 8, 3)
    gallery = Gallery(small_embedder(), resize="crop")
    gallery.add(tmp_path / "photos")
    gallery.save(tmp_path / "gallery")
    loaded = Gallery.load(tmp_path / "gallery")
    assert loaded.resize == "crop" == loaded.info()["resize"]
    files = loaded.items["file"].tolist()
    cropped = [read_image(file, shape[:2], resize="crop").ravel() for file in files]
    np.testing.assert_allclose(loaded.vectors, cropped, atol=1e-6)
    for query in (files, [Image.open(file) for file in files]):
        found = loaded.query(query, k=1)
        assert found["id"].tolist() == loaded.items["id"].tolist()
        assert found["distance"].max() < 1e-5
    with pytest.raises(ArgumentError, match="a folder with resize='squash', but the gallery has"):
        loaded.add(data.image_folder(tmp_path / "photos", shape[:2]))
    assert loaded.add(data.image_folder(tmp_path / "photos", shape[:2], resize="crop")).size == 0


def test_a_cached_embedding_is_that_of_the_way_to_resize(tmp_path):
    write_photos(tmp_path / "photos", 3)
    found = {
        resize: embedding.embed(
            small_embedder(),
            data.image_folder(tmp_path / "photos", (8, 8), resize=resize),
            cache=tmp_path / "cache",
        )
        for resize in ("squash", "crop", "pad")
    }
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert not np.allclose(found["squash"], found["crop"])
    assert not np.allclose(found["squash"], found["pad"])
