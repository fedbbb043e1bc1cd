"""A gallery and the files of its images: changed, moved, gone; galleries of the first layout."""

import json
import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kerasim import _artifacts, _model_identity
from kerasim._items import Stamp, state_of
from kerasim.errors import ArgumentError, ArtifactError, ImageError
from kerasim.gallery import Gallery
from tests.helpers.small_embedder import EMBEDDER

KINDS = ["exact", "hnsw"]


def write_random_image(path, seed) -> Path:
    """Writes an image that no other seed gives, always of the same size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype="uint8")
    Image.fromarray(pixels).save(path, "BMP")
    return path


@pytest.fixture
def root(tmp_path):
    for seed, name in enumerate(["cat/a.bmp", "cat/b.bmp", "dog/c.bmp"]):
        write_random_image(tmp_path / "images" / name, seed)
    return tmp_path / "images"


def filled(root, kind="exact"):
    gallery = Gallery(EMBEDDER, "euclidean", kind)
    gallery.add(root)
    return gallery


def names(gallery, root):
    return [os.path.relpath(file, root) for file in gallery.items["file"]]


def check_vectors(gallery):
    """Checks that each item is found at distance 0 by its own file."""
    items = gallery.items
    found = gallery.query(items["file"], k=1)
    assert found["id"].tolist() == items["id"].tolist()
    np.testing.assert_allclose(found["distance"], 0, atol=1e-4)


def rewrite_at_once(path):
    write_random_image(path, 9)


def rewrite_with_the_old_time(path):
    status = path.stat()
    write_random_image(path, 9)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rewrite_by_a_copy_that_keeps_times(path):
    other = write_random_image(path.parent.parent.parent / "other.bmp", 9)
    os.utime(other, ns=(10**18, 10**18))
    shutil.copy2(other, path)


def rewrite_by_a_rename(path):
    os.replace(write_random_image(path.parent.parent.parent / "other.bmp", 9), path)


def rewrite_by_a_link(path):
    other = write_random_image(path.parent.parent.parent / "other.bmp", 9)
    path.unlink()
    path.symlink_to(other)


REWRITES = [
    rewrite_at_once,
    rewrite_with_the_old_time,
    rewrite_by_a_copy_that_keeps_times,
    rewrite_by_a_rename,
    rewrite_by_a_link,
]


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_holds_another_image_is_embedded_again_under_its_id(kind, rewrite, root):
    gallery = filled(root, kind)
    rewrite(root / "cat" / "b.bmp")
    assert gallery.info()["changed"] == 1
    assert gallery.add(root).tolist() == [1]
    assert gallery.changed == [str(root / "cat" / "b.bmp")]
    assert gallery.items["id"].tolist() == [0, 1, 2]
    assert gallery.items["label"].tolist() == ["cat", "cat", "dog"]
    check_vectors(gallery)
    assert gallery.add(root).tolist() == [] and gallery.changed == []


@pytest.mark.parametrize("touch", [os.utime, lambda path: path.chmod(0o600)])
def test_a_file_with_another_time_and_the_same_content_is_not_embedded_again(touch, root):
    gallery = filled(root)
    touch(root / "cat" / "a.bmp")

    def refuse(*_):
        raise AssertionError("embedded")

    assert gallery.add(root, embed=refuse).tolist() == []
    assert gallery.info()["changed"] == 0


def test_an_unchanged_file_is_not_read_again(root):
    gallery = filled(root)
    old = 10**9
    for file in gallery.items["file"]:
        os.utime(file, ns=(old, old))
    stamp = Stamp(*os.stat(file)[6:7], old, os.stat(file).st_ctime_ns, "not the digest")
    assert state_of(file, stamp) == ("same", stamp)


def test_a_changed_file_that_cannot_be_decoded_is_refused_or_its_item_removed(root):
    gallery = filled(root)
    (root / "cat" / "a.bmp").write_bytes(b"no image")
    with pytest.raises(ImageError, match="a.bmp"):
        gallery.add(root)
    assert len(gallery) == 3
    with pytest.warns(UserWarning, match="1 file is left out, see `skipped`: 'a.bmp'"):
        gallery.add(root, on_error="skip")
    assert gallery.items["id"].tolist() == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_gone_is_reported_once_and_dropped_by_prune(kind, root):
    gallery = filled(root, kind)
    gone = root / "cat" / "b.bmp"
    gone.unlink()
    with pytest.warns(
        UserWarning, match=r"1 file of an item is missing: 'b.bmp'.*prune\(\)"
    ) as caught:
        gallery.add(root)
    assert caught[0].filename == __file__
    assert gallery.gone == [str(gone)] and len(gallery) == 3
    gallery.add(root)  # a second warning would be an error
    assert gallery.info()["gone"] == 1
    assert gallery.prune().tolist() == [1] and gallery.gone == [str(gone)]
    assert gallery.items["id"].tolist() == [0, 2] and gallery.prune().tolist() == []
    check_vectors(gallery)


def test_a_file_that_comes_back_is_no_longer_gone(root):
    gallery = filled(root)
    os.rename(root / "cat" / "b.bmp", root.parent / "b.bmp")
    with pytest.warns(UserWarning, match="missing"):
        gallery.add(root)
    os.rename(root.parent / "b.bmp", root / "cat" / "b.bmp")
    gallery.add(root)
    assert gallery.gone == [] and len(gallery) == 3


MOVES = {
    "to another class": {"cat/a.bmp": "dog/a.bmp"},
    "renamed": {"cat/a.bmp": "cat/z.bmp"},
    "to another class and renamed": {"cat/a.bmp": "dog/z.bmp"},
    "a whole class renamed": {"cat/a.bmp": "lion/a.bmp", "cat/b.bmp": "lion/b.bmp"},
    "all": {"cat/a.bmp": "x/a.bmp", "cat/b.bmp": "x/b.bmp", "dog/c.bmp": "y/c.bmp"},
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_file_keeps_its_item_and_takes_the_label_of_its_new_folder(kind, move, root):
    gallery = filled(root, kind)
    expected = ["cat/a.bmp", "cat/b.bmp", "dog/c.bmp"]
    for old, new in MOVES[move].items():
        (root / new).parent.mkdir(exist_ok=True)
        os.rename(root / old, root / new)
        expected[expected.index(old)] = new

    def refuse(*_):
        raise AssertionError("embedded")

    assert gallery.add(root, embed=refuse).tolist() == []
    assert names(gallery, root) == expected and gallery.gone == []
    assert gallery.items["label"].tolist() == [name.split("/")[0] for name in expected]
    assert sorted(gallery.moved) == sorted(
        (str(root / old), str(root / new)) for old, new in MOVES[move].items()
    )
    check_vectors(gallery)


def test_a_copy_is_an_item_of_its_own(root):
    gallery = filled(root)
    shutil.copy2(root / "cat" / "a.bmp", root / "dog" / "a.bmp")
    assert gallery.add(root).tolist() == [3] and gallery.moved == []


def test_of_equal_files_that_were_moved_each_keeps_its_name(tmp_path):
    for name in ("1/a.bmp", "2/b.bmp"):
        write_random_image(tmp_path / "old" / name, 0)
    gallery = filled(tmp_path / "old")
    os.rename(tmp_path / "old", tmp_path / "new")
    os.rename(tmp_path / "new" / "1", tmp_path / "new" / "3")  # so that b.bmp comes first
    gallery.add(tmp_path / "new")
    assert names(gallery, tmp_path / "new") == ["3/a.bmp", "2/b.bmp"]


def test_two_files_that_changed_places_are_told_apart(root):
    gallery = filled(root)
    a, b = root / "cat" / "a.bmp", root / "cat" / "b.bmp"
    os.rename(a, root / "other")
    os.rename(b, a)
    os.rename(root / "other", b)
    assert gallery.add(root).tolist() == [0, 1]
    check_vectors(gallery)


def test_a_file_in_the_place_of_a_deleted_one_has_its_own_vector(root):
    gallery = filled(root)
    os.replace(root / "cat" / "b.bmp", root / "cat" / "a.bmp")
    with pytest.warns(UserWarning, match="missing: 'b.bmp'"):
        assert gallery.add(root).tolist() == [0]
    gallery.prune()
    check_vectors(gallery)


def test_images_beside_the_class_folders_are_taken_without_a_label(root):
    write_random_image(root / "cover.bmp", 7)
    gallery = filled(root)
    assert dict(zip(names(gallery, root), gallery.items["label"], strict=True)) == {
        "cat/a.bmp": "cat",
        "cat/b.bmp": "cat",
        "cover.bmp": "",
        "dog/c.bmp": "dog",
    }


def test_labels_that_are_passed_replace_those_of_items_and_missing_ones_do_not(root):
    gallery = filled(root)
    files = gallery.items["file"]
    assert gallery.add(files, labels=["lion", None, np.nan]).tolist() == []
    assert gallery.items["label"].tolist() == ["lion", "cat", "dog"]


def test_a_folder_gives_a_label_to_items_without_one(root):
    gallery = Gallery(EMBEDDER)
    gallery.add(sorted(root.rglob("*.bmp")))
    assert gallery.items["label"].tolist() == ["", "", ""]
    gallery.add(root)
    assert gallery.items["label"].tolist() == ["cat", "cat", "dog"]
    gallery.add(root.parent)  # whose only class would be "images"
    assert gallery.items["label"].tolist() == ["cat", "cat", "dog"]


# remove


CHOSEN = {
    "id": lambda file: 1,
    "list of ids": lambda file: [1],
    "array of ids": lambda file: np.array([1]),
    "Series of ids": lambda file: pd.Series([1]),
    "path": lambda file: file,
    "list of names": lambda file: [str(file)],
    "Series of names": lambda file: pd.Series([str(file)]),
    "relative name": lambda file: os.path.relpath(file),
}


@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("kind", KINDS)
def test_an_item_is_removed_by_id_or_by_file(kind, chosen, root):
    gallery = filled(root, kind)
    assert gallery.remove(CHOSEN[chosen](root / "cat" / "b.bmp")).tolist() == [1]
    assert gallery.items["id"].tolist() == [0, 2]


def test_a_file_that_is_not_in_the_gallery_cannot_be_removed(root):
    gallery = filled(root)
    with pytest.raises(ArgumentError, match="1 file is not in the gallery: .*other.bmp"):
        gallery.remove([root / "cat" / "a.bmp", root / "other.bmp"])
    assert len(gallery) == 3


def test_the_file_of_a_removed_item_is_taken_in_again_under_a_new_id(root):
    gallery = filled(root)
    gallery.remove(1)
    assert gallery.add(root).tolist() == [3]


# links, and folders in the place of files


def link_to(link, target):
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("turned", [False, True])
def test_a_changed_file_is_embedded_again_beside_an_item_that_became_a_link_to_it(turned, root):
    gallery = filled(root)
    files = [root / "cat" / "a.bmp", root / "cat" / "b.bmp"]
    link_to(files[0], files[1].name)
    write_random_image(files[1], 9)
    given, labels = (files[::-1], ["B", "A"]) if turned else (files, ["A", "B"])
    assert sorted(gallery.add(given, labels=labels).tolist()) == [0, 1]
    assert sorted(gallery.changed) == [str(file) for file in files]
    assert gallery.items["label"].tolist()[:2] == ["A", "B"]
    assert gallery.add(root).tolist() == []
    found = gallery.query(files[1:], k=2)
    assert sorted(found["id"]) == [0, 1]
    np.testing.assert_allclose(found["distance"], 0, atol=1e-4)


def test_a_link_that_leads_elsewhere_no_longer_stands_for_its_first_file(root):
    link = link_to(root.parent / "links" / "one.bmp", root / "cat" / "a.bmp")
    gallery = filled(link.parent)
    gallery.add(link.parent)
    link_to(link, root / "cat" / "b.bmp")
    gallery.add(link.parent)
    assert gallery.add(root / "cat" / "a.bmp").tolist() == [1]
    assert gallery.items["file"].tolist() == [str(link), str(root / "cat" / "a.bmp")]
    check_vectors(gallery)


def test_a_file_behind_an_earlier_link_is_not_removed_in_the_place_of_another(root):
    link = link_to(root.parent / "link", root / "cat")
    gallery = filled(link)
    gallery.add(link)
    link_to(link, root / "dog")
    with pytest.raises(ArgumentError, match="1 file is not in the gallery"):
        gallery.remove(root / "cat" / "a.bmp")
    assert len(gallery) == 2


def test_a_link_to_a_folder_that_is_gone_is_followed_to_the_folder(root):
    link = link_to(root.parent / "link", root)
    gallery = filled(link)
    gallery.add(link)
    link.unlink()
    assert gallery.add(root).tolist() == []
    assert names(gallery, root) == ["cat/a.bmp", "cat/b.bmp", "dog/c.bmp"]
    assert gallery.prune().tolist() == []


@pytest.mark.parametrize("way", ["folder", "files"])
def test_a_file_that_became_a_link_to_another_one_is_embedded_again(way, root):
    gallery = filled(root)
    link_to(root / "cat" / "b.bmp", root / "cat" / "a.bmp")
    files = [root / "cat" / "a.bmp", root / "cat" / "b.bmp"]
    assert gallery.add(root if way == "folder" else files).tolist() == [1]
    assert gallery.items["label"].tolist() == ["cat", "cat", "dog"]
    found = gallery.query(ids=[0, 1], k=2)
    assert found["id"].tolist() == [0, 1, 0, 1] and not found["distance"].any()


def test_an_item_whose_file_became_a_folder_is_gone(root):
    gallery = filled(root)
    (root / "cat" / "b.bmp").unlink()
    (root / "cat" / "b.bmp").mkdir()
    assert gallery.info()["gone"] == 1
    with pytest.warns(UserWarning, match="1 file of an item is missing: 'b.bmp'"):
        gallery.add(root)
    assert gallery.prune().tolist() == [1]


def test_a_folder_replaces_no_label_of_a_changed_file(root):
    gallery = filled(root)
    gallery.add([root / "cat" / "a.bmp"], labels=["tabby"])
    write_random_image(root / "cat" / "a.bmp", 9)
    assert gallery.add(root).tolist() == [0]
    assert gallery.items["label"].tolist() == ["tabby", "cat", "dog"]


def test_a_file_that_is_given_twice_with_different_labels_is_refused(root):
    gallery, file = filled(root), root / "cat" / "a.bmp"
    before = gallery.items.copy()
    with pytest.raises(
        ArgumentError, match="labels has 'tabby' and 'lion' for .*positions 0 and 1"
    ):
        gallery.add([file, file], labels=["tabby", "lion"])
    assert gallery.items.equals(before)
    gallery.add([file, file], labels=["tabby", "tabby"])
    assert gallery.items["label"].tolist().count("tabby") == 1


# relocate


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_folder_keeps_its_vectors(kind, root):
    gallery = filled(root, kind)
    os.rename(root, root.parent / "moved")
    assert gallery.relocate(root, root.parent / "moved").tolist() == [0, 1, 2]
    assert names(gallery, root.parent / "moved") == ["cat/a.bmp", "cat/b.bmp", "dog/c.bmp"]
    assert gallery.gone == []
    check_vectors(gallery)
    assert gallery.add(root.parent / "moved").tolist() == []


def test_a_part_of_a_folder_can_be_relocated(root):
    gallery = filled(root)
    os.rename(root / "cat", root / "lion")
    assert gallery.relocate(root / "cat", root / "lion").tolist() == [0, 1]
    assert names(gallery, root) == ["lion/a.bmp", "lion/b.bmp", "dog/c.bmp"]


def test_a_file_that_is_missing_or_another_image_keeps_its_old_name(root):
    gallery = filled(root)
    moved = root.parent / "moved"
    os.rename(root, moved)
    write_random_image(moved / "cat" / "a.bmp", 9)
    (moved / "cat" / "b.bmp").unlink()
    with pytest.warns(UserWarning, match="2 of 3 items keep their old names"):
        assert gallery.relocate(root, moved).tolist() == [2]
    assert gallery.gone == [str(root / "cat" / "a.bmp"), str(root / "cat" / "b.bmp")]


def test_two_items_never_get_the_same_file(root):
    gallery = filled(root)
    moved = root.parent / "moved"
    shutil.copytree(root, moved)
    gallery.add(moved)
    with pytest.warns(UserWarning, match="3 of 3 items keep their old names"):
        assert gallery.relocate(root, moved).tolist() == []
    assert gallery.items["file"].nunique() == 6


def test_a_folder_that_was_moved_into_itself_is_relocated(tmp_path):
    root = tmp_path / "images"
    write_random_image(root / "a.bmp", 0)
    write_random_image(root / "deeper" / "a.bmp", 1)
    gallery = filled(root)
    os.rename(root, tmp_path / "aside")
    root.mkdir()
    os.rename(tmp_path / "aside", root / "deeper")
    assert gallery.relocate(root, root / "deeper").tolist() == [0, 1]
    assert names(gallery, root) == ["deeper/a.bmp", "deeper/deeper/a.bmp"]
    check_vectors(gallery)


def test_a_root_without_items_and_a_new_root_that_is_no_folder_are_refused(root):
    gallery = filled(root)
    with pytest.raises(ArgumentError, match=f"No item has a file below .*pass '{root}' or"):
        gallery.relocate(root.parent / "imag", root)
    with pytest.raises(ArtifactError, match="new_root .* is not a folder"):
        gallery.relocate(root, root.parent / "nowhere")
    arrays = Gallery(EMBEDDER)
    arrays.add(np.ones((2, 4, 4, 1), "float32"))
    with pytest.raises(ArgumentError, match="all items were added as arrays"):
        arrays.relocate(root, root)


# Saved and loaded


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_gallery_knows_which_files_changed(kind, root, tmp_path):
    filled(root, kind).save(tmp_path / "gallery")
    gallery = Gallery.load(tmp_path / "gallery")
    assert gallery.add(root).tolist() == []
    write_random_image(root / "cat" / "a.bmp", 9)
    os.rename(root / "dog" / "c.bmp", root / "cat" / "c.bmp")
    assert gallery.add(root, path=tmp_path / "gallery").tolist() == [0]
    again = Gallery.load(tmp_path / "gallery")
    pd.testing.assert_frame_equal(again.items, gallery.items)
    check_vectors(again)


def save_in_the_first_layout(gallery, path):
    """Writes a gallery as commit 136970d did: a CSV file of ids, files and labels."""

    def fill(folder):
        gallery.embedder.save(folder / "embedder.keras")
        text = {"quoting": 2, "encoding": "utf-8", "errors": "surrogateescape"}
        gallery.items.to_csv(folder / "items.csv", index=False, **text)
        np.save(folder / "embeddings.npy", gallery.index.embeddings)
        if gallery.settings["kind"] == "hnsw":
            graph = faiss.IndexHNSWFlat(gallery.index.embeddings.shape[1], gallery.settings["m"])
            graph.add(gallery.index.embeddings)
            faiss.write_index(graph, str(folder / "index.faiss"))

    info = {
        "settings": gallery.settings,
        "index": {"settings": gallery.settings, "recall": 1.0, "first": len(gallery)},
        "next": len(gallery),
        "threshold": None,
        "pairs": None,
    }
    _artifacts.write(path, "gallery", fill, info, _model_identity.fingerprint(gallery.embedder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gallery_of_the_first_layout_is_read_and_completed_by_the_next_add(kind, root, tmp_path):
    save_in_the_first_layout(filled(root, kind), tmp_path / "gallery")
    gallery = Gallery.load(tmp_path / "gallery")
    check_vectors(gallery)

    def refuse(*_):
        raise AssertionError("embedded")

    assert gallery.add(root, path=tmp_path / "gallery", embed=refuse).tolist() == []
    table = json.loads((tmp_path / "gallery" / "items.json").read_text())
    assert all(table["sha256"]) and min(table["size"]) > 0
    os.rename(root / "dog" / "c.bmp", root / "cat" / "c.bmp")
    Gallery.load(tmp_path / "gallery").add(root, embed=refuse)  # known by its content now


@pytest.mark.parametrize("saved_again", [False, True])
def test_files_changed_since_the_first_layout_was_saved_are_embedded_again(
    saved_again, root, tmp_path
):
    save_in_the_first_layout(filled(root), tmp_path / "gallery")
    gallery = Gallery.load(tmp_path / "gallery")
    write_random_image(root / "cat" / "a.bmp", 9)
    if saved_again:
        gallery.save(tmp_path / "gallery")
        gallery = Gallery.load(tmp_path / "gallery")
    assert gallery.add(root).tolist() == [0]
    check_vectors(gallery)


def test_files_of_the_first_layout_are_relocated_as_they_are(root, tmp_path):
    save_in_the_first_layout(filled(root), tmp_path / "gallery")
    gallery = Gallery.load(tmp_path / "gallery")
    os.rename(root, tmp_path / "moved")
    assert gallery.relocate(root, tmp_path / "moved").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "name", ["=cmd()|x.bmp", "+1.bmp", "-1.bmp", "@a.bmp", "\t.bmp", "a;=1+1.bmp"]
)
def test_names_that_a_spreadsheet_would_run_are_kept_exactly_and_in_no_table_that_it_opens(
    name, tmp_path
):
    write_random_image(tmp_path / "images" / "=1+1" / name, 0)
    gallery = filled(tmp_path / "images")
    gallery.save(tmp_path / "gallery")
    again = Gallery.load(tmp_path / "gallery")
    assert Path(again.items["file"][0]).name == name and again.items["label"][0] == "=1+1"
    assert not list((tmp_path / "gallery").glob("*.csv"))
