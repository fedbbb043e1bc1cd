import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerasim import _folders, data, images
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError
from tests.helpers.file_access import no_hang, unprivileged
from tests.helpers.image_files import write_animation, write_image


def test_each_subfolder_is_a_class(tmp_path):
    for name in ("dog/2.png", "cat/1.png", "cat/deep/0.png", "ant/9.png"):
        write_image(tmp_path / name)
    found = data.image_folder(tmp_path, 4)
    names = [str(file.relative_to(tmp_path)) for file in found.files]
    assert names == ["ant/9.png", "cat/1.png", "cat/deep/0.png", "dog/2.png"]
    assert found.class_names == ["ant", "cat", "dog"]
    assert found.labels.dtype == np.int64 and found.labels.tolist() == [0, 1, 1, 2]


def test_labels_follow_the_classes_where_paths_sort_otherwise(tmp_path):
    write_image(tmp_path / "a" / "1.png")
    write_image(tmp_path / "a-b" / "1.png")  # "-" sorts before "/"
    found = data.image_folder(tmp_path, 4)
    assert [found.class_names[label] for label in found.labels] == [
        file.parent.name for file in found.files
    ]


def test_a_folder_without_subfolders_has_no_labels(tmp_path):
    write_image(tmp_path / "a.png")
    found = data.image_folder(tmp_path, 4)
    assert found.labels is None and found.class_names == []


def test_images_of_a_folder_are_floats_of_the_size_asked_for(tmp_path):
    for level in (0, 51, 255):
        write_image(tmp_path / f"{level:03}.png", level)
    found = data.image_folder(tmp_path, (4, 5), channels=1)
    assert found.shape == (3, 4, 5, 1) and len(found) == 3
    assert found[:].dtype == np.float32 and found[:].shape == found.shape
    np.testing.assert_allclose(found[:][:, 0, 0, 0], [0, 0.2, 1], atol=1e-6)


@pytest.mark.parametrize(
    "rows", [slice(1, 3), [2, 0, 2], np.array([True, False, True]), slice(None, None, -1), []]
)
def test_a_folder_is_indexed_as_an_array(rows, tmp_path):
    for level in (0, 51, 255):
        write_image(tmp_path / f"{level:03}.png", level)
    found = data.image_folder(tmp_path, 4)
    expected = np.stack([found[n] for n in range(3)])
    np.testing.assert_array_equal(found[rows], expected[rows])


@pytest.mark.parametrize("rows", [slice(1, 3), [2, 0], np.array([True, False, True]), []])
def test_a_slice_of_a_folder_is_a_folder_that_decodes_lazily(rows, tmp_path):
    for level, name in ((0, "a"), (51, "b"), (255, "b")):
        write_image(tmp_path / name / f"{level:03}.png", level)
    whole = data.image_folder(tmp_path, 4)
    images, labels = whole[rows], whole.labels[rows]
    part = whole.take(rows)
    assert isinstance(part, data.ImageFolder) and part.shape == images.shape
    np.testing.assert_array_equal(part[:], images)
    assert part.labels.tolist() == labels.tolist() and part.class_names == ["a", "b"]


@pytest.mark.fault("stray-files")
@pytest.mark.parametrize("suffix", ["webp", "tif", "TIFF", "JPG", "jpeg", "bmp", "gif", "png"])
def test_every_suffix_of_a_known_format_is_taken(suffix, tmp_path):
    kind = {"tif": "TIFF", "jpg": "JPEG"}.get(suffix.lower(), suffix.upper())
    write_image(tmp_path / f"a.{suffix}", kind=kind)
    assert len(data.image_folder(tmp_path, 4)) == 1


@pytest.mark.fault("stray-files")
def test_hidden_files_of_file_managers_are_ignored_without_a_warning(tmp_path):
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "._x.png").write_bytes(b"\0\5\26\7")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (tmp_path / "desktop.ini").write_text("[x]")
    for junk in (".ipynb_checkpoints", "__MACOSX", ".git"):
        write_image(tmp_path / junk / "x.png")
    found = data.image_folder(tmp_path, 4)
    assert [file.name for file in found.files] == ["x.png"]
    assert found.skipped == [] and found.class_names == ["a"]


@pytest.mark.fault("stray-files")
def test_other_files_are_listed_with_one_warning(tmp_path):
    write_image(tmp_path / "x.png")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "x.heic").write_bytes(b"ftypheic")
    with pytest.warns(UserWarning, match="2 files in .* left out: 'notes.txt', 'x.heic'") as caught:
        found = data.image_folder(tmp_path, 4)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert [file.name for file, _ in found.skipped] == ["notes.txt", "x.heic"]


@pytest.mark.fault("missing-labels", "stray-files")
def test_a_class_folder_without_an_image_is_listed_and_no_class(tmp_path):
    write_image(tmp_path / "ant" / "1.png")
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / ".DS_Store").write_bytes(b"Bud1")
    with pytest.warns(UserWarning, match="1 file in .* is left out: 'bee'"):
        found = data.image_folder(tmp_path, 4)
    assert found.class_names == ["ant"]
    assert found.skipped == [(tmp_path / "bee", "an empty folder, not a class")]


@pytest.mark.parametrize("stray", ["cover.png", "日本", "z.jpg"])
def test_an_image_beside_the_class_folders_is_left_out_and_the_labels_are_kept(stray, tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        write_image(tmp_path / name)
    write_image(tmp_path / stray, kind="PNG")
    with pytest.warns(UserWarning, match=f"1 of 4 images in .* no class: '{stray}'") as caught:
        found = data.image_folder(tmp_path, 4)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert found.class_names == ["cat", "dog"] and found.labels.tolist() == [0, 0, 1]
    assert [file.name for file in found.files] == ["1.png", "2.png", "1.png"]
    assert [file.name for file, _ in found.skipped] == [stray]


def test_more_images_beside_the_subfolders_than_in_them_are_refused(tmp_path):
    for name in ("1.png", "2.png", "dog/1.png"):
        write_image(tmp_path / name)
    with pytest.raises(ArgumentError, match="2 of 3 images .* unclear .*'1.png', '2.png'"):
        data.image_folder(tmp_path, 4)


def test_images_of_several_levels_are_all_taken_without_labels(tmp_path):
    for name in ("1.png", "2.png", "dog/1.png", "dog/deep/1.png"):
        write_image(tmp_path / name)
    found = data.image_folder(tmp_path, 4, labels=None)
    assert len(found) == 4 and found.labels is None and found.skipped == []


def test_labels_come_from_folders_or_are_none(tmp_path):
    write_image(tmp_path / "dog" / "1.png")
    with pytest.raises(ArgumentError, match="labels='inferred' is not known"):
        data.image_folder(tmp_path, 4, labels="inferred")


KINDS = ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"]


@pytest.mark.fault("stray-files")
@pytest.mark.parametrize("name", ["a", "a.jfif", "a.jpe", "a.txt", "a.JPG", "a.png", "a.webp"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_an_image_by_its_content_whatever_its_suffix(kind, name, tmp_path):
    write_image(tmp_path / name, kind=kind)
    found = data.image_folder(tmp_path, 4)
    assert [file.name for file in found.files] == [name] and found.skipped == []


@pytest.mark.fault("stray-files")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("BMW.txt", b"BMW, Audi, Volkswagen and others", "not an image"),
        ("empty", b"", "not an image"),
        ("riff.avi", b"RIFF\0\0\0\0AVI LIST", "not an image"),
        ("DSC.NEF", b"MM\0*\0\0\0\x08" + bytes(24), "a raw file of a camera"),
    ],
)
def test_a_file_that_is_not_an_image_is_listed_with_the_reason(name, content, reason, tmp_path):
    write_image(tmp_path / "x.png")
    (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match=f"1 file in .* left out: '{name}'"):
        found = data.image_folder(tmp_path, 4)
    assert [file.name for file in found.files] == ["x.png"]
    assert re.search(reason, found.skipped[0][1])


@pytest.mark.fault("stray-files")
def test_a_photo_of_a_phone_is_read_with_pillow_heif_and_else_listed_with_advice(
    tmp_path, monkeypatch
):
    write_image(tmp_path / "x.png")
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn, which the format applies itself
    photo = Image.new("RGB", (40, 20), "red")
    photo.save(tmp_path / "IMG_1.HEIC", "HEIF", exif=exif.tobytes())
    photo.save(tmp_path / "IMG_2.heic", "HEIF")
    red = np.broadcast_to([1.0, 0.0, 0.0], (2, 8, 4, 3))
    np.testing.assert_allclose(data.image_folder(tmp_path, (8, 4))[:2], red, atol=0.02)
    assert images.read_image(tmp_path / "IMG_1.HEIC").shape == (40, 20, 3)
    assert images.read_image(tmp_path / "IMG_2.heic").shape == (20, 40, 3)
    monkeypatch.setattr(images, "reads_heic", lambda: False)
    monkeypatch.setattr(_folders, "reads_heic", lambda: False)
    advice = "a HEIC image: install pillow-heif, or convert it to JPEG"
    with pytest.warns(UserWarning, match="2 files in .* left out: 'IMG_1.HEIC', 'IMG_2.heic'"):
        found = data.image_folder(tmp_path, 4)
    assert [file.name for file in found.files] == ["x.png"]
    assert re.search(advice, found.skipped[0][1])
    with pytest.raises(ImageError, match=f"IMG_1.HEIC.* is {advice}"):
        images.read_image(tmp_path / "IMG_1.HEIC")


def test_a_pipe_without_suffix_is_listed_and_not_waited_for(tmp_path):
    write_image(tmp_path / "x.png")
    with no_hang(tmp_path / "pipe"), pytest.warns(UserWarning, match="left out: 'pipe'"):
        found = data.image_folder(tmp_path, 4)
    assert found.skipped == [(tmp_path / "pipe", "not a regular file")]


def test_a_folder_and_a_folder_of_pairs_show_what_they_hold(tmp_path):
    for name in ("left/a.png", "left/b.png", "right/a.png"):
        write_image(tmp_path / name, size=(20, 20))
    found = data.image_folder(tmp_path, 4)
    assert repr(found) == "<ImageFolder: 3 images of (4, 4, 3); 2 classes: 'left', 'right'>"
    plain = data.image_folder(tmp_path / "left", 4)
    assert repr(plain) == "<ImageFolder: 2 images of (4, 4, 3)>"
    pairs = data.PairFolder(plain, plain, np.array([0, 1]))
    assert repr(pairs) == "<PairFolder: 2 pairs of images of (4, 4, 3); 2 groups>"


DAMAGED = {"empty.png": b"", "page.jpg": b"<html>", "cut.png": None, "text.gif": b"GIF"}


@pytest.fixture
def damaged(tmp_path):
    whole = write_image(tmp_path / "whole.png").read_bytes()
    for name, content in DAMAGED.items():
        (tmp_path / name).write_bytes(whole[:-30] if content is None else content)
    return tmp_path


@pytest.mark.fault("unreadable-images")
def test_damaged_images_are_all_listed_in_one_error_before_training(damaged):
    with pytest.raises(ImageError, match='4 of 5 images .*on_error="skip"') as caught:
        data.image_folder(damaged, 4)
    for name in DAMAGED:
        assert str(damaged / name) in str(caught.value)


@pytest.mark.fault("unreadable-images")
def test_a_truncated_jpeg_is_listed_by_name(tmp_path):
    whole = write_image(tmp_path / "a.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) - 60])
    with pytest.raises(ImageError, match="1 of 2 images .*\n.*b.jpg.* truncated"):
        data.image_folder(tmp_path, 4)


@pytest.mark.fault("unreadable-images")
def test_damaged_images_are_skipped_with_a_count_if_asked(damaged):
    with pytest.warns(UserWarning, match="4 files in .* left out") as caught:
        found = data.image_folder(damaged, 4, on_error="skip")
    assert len(caught) == 1
    assert [file.name for file in found.files] == ["whole.png"]
    assert sorted(file.name for file, _ in found.skipped) == sorted(DAMAGED)
    assert all("Cannot decode" in reason for _, reason in found.skipped)


def test_without_a_check_a_damaged_image_is_named_when_it_is_asked_for(damaged):
    found = data.image_folder(damaged, 4, check=False)
    assert len(found) == 5
    with pytest.raises(ImageError, match="cut.png"):
        found[:]


@pytest.mark.fault("file-lost-in-training")
def test_an_image_that_vanishes_is_named(tmp_path):
    write_image(tmp_path / "a.png")
    gone = write_image(tmp_path / "b.png")
    found = data.image_folder(tmp_path, 4)
    gone.unlink()
    with pytest.raises(ImageError, match="There is no file .*b.png'"):
        found[:]


def test_a_folder_of_damaged_images_alone_says_why_none_is_usable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(ArtifactError) as caught:
        data.image_folder(tmp_path, 4, on_error="skip")
    for part in (str(tmp_path), "JPEG, PNG", "a.png", "Cannot decode", "b.txt", "not an image"):
        assert part in str(caught.value)


def test_an_empty_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        data.image_folder(tmp_path, 4)
    assert str(tmp_path) in str(caught.value) and "WEBP" in str(caught.value)


@pytest.mark.fault("animation")
def test_animations_of_a_folder_are_read_with_one_warning_and_then_in_silence(tmp_path):
    write_animation(tmp_path / "a.gif")
    write_animation(tmp_path / "b.tif")
    write_image(tmp_path / "c.png")
    with pytest.warns(UserWarning, match="2 files in .* frames.*: 'a.gif', 'b.tif'") as caught:
        found = data.image_folder(tmp_path, 4)
    assert len(caught) == 1
    assert found[:2].max() == 0  # the first frame; a warning here would be an error


def test_threads_of_a_folder_leave_the_warning_filters_as_they_were(tmp_path):
    for n in range(24):
        write_image(tmp_path / f"{n}.png", size=(8 + 20 * n, 64))
    before = list(warnings.filters)
    for _ in range(3):
        data.image_folder(tmp_path, 4)[:]
    after = list(warnings.filters)
    warnings.filters[:] = before  # what leaks here must not silence the tests that follow
    assert after == before


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize("kind", ["missing", "file"])
def test_what_is_no_folder_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "photos"
    if kind == "file":
        path.touch()
    with pytest.raises(ArtifactError) as caught:
        data.image_folder(path, 4)
    assert str(path) in str(caught.value) and "not a folder" in str(caught.value)


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize("path", ["", None, 3, b"photos", "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="path"):
        data.image_folder(path, 4)


@pytest.mark.fault("unusable-path")
def test_a_pipe_in_place_of_a_folder_is_refused_and_not_waited_for(tmp_path):
    with no_hang(tmp_path / "pipe"), pytest.raises(ArtifactError, match="pipe' is not a folder"):
        data.image_folder(tmp_path / "pipe", 4)


def test_a_pipe_among_the_images_is_listed_and_not_waited_for(tmp_path):
    with (
        no_hang(tmp_path / "p.png"),
        pytest.raises(ImageError, match="p.png' is not a regular file"),
    ):
        data.image_folder(tmp_path, 4)


def test_an_image_without_permission_is_listed(visible):
    write_image(visible / "a.png").chmod(0)
    with unprivileged(), pytest.raises(ImageError, match="a.png: Permission denied|a.png': Perm"):
        data.image_folder(visible, 4)


def test_a_subfolder_without_permission_is_listed_and_not_just_dropped(visible):
    write_image(visible / "open" / "a.png")
    write_image(visible / "shut" / "b.png")
    (visible / "shut").chmod(0)
    with unprivileged(), pytest.warns(UserWarning, match="1 file in .* left out: 'shut'"):
        found = data.image_folder(visible, 4)
    ((path, reason),) = found.skipped
    assert path.name == "shut" and "Permission denied" in reason


@pytest.mark.parametrize("on_error", ["ignore", None, True])
def test_an_unknown_on_error_is_refused_with_the_known_ones(on_error, tmp_path):
    with pytest.raises(ArgumentError, match="on_error=.*'raise', 'skip'"):
        data.image_folder(tmp_path, 4, on_error=on_error)


@pytest.mark.parametrize("size", [None, 0, (4, 0), "4", 2.5])
def test_a_folder_needs_a_size(size, tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match=r"image_size=.* \(height, width\)"):
        data.image_folder(tmp_path, size)


@pytest.mark.parametrize("channels", [0, 2, 7, True, 3.0, None])
def test_a_folder_takes_one_or_three_channels(channels, tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises((ArgumentError, ArgumentTypeError), match="channels"):
        data.image_folder(tmp_path, 4, channels=channels)


# Names and links


@pytest.mark.fault("links-and-names")
@pytest.mark.parametrize("target", [".", "..", "../a"])
def test_a_loop_of_links_is_walked_once(target, tmp_path, monkeypatch):
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "loop").symlink_to(target, target_is_directory=True)
    walk, walked = os.walk, []

    def watched(*arguments, **settings):
        for step in walk(*arguments, **settings):
            walked.append(step[0])
            yield step

    monkeypatch.setattr(os, "walk", watched)
    assert data.image_folder(tmp_path, 4).files == [tmp_path / "a" / "x.png"]
    assert len(walked) == 3  # the folder, a, and the link, which is not entered


@pytest.mark.fault("links-and-names")
def test_a_file_reached_by_two_links_is_taken_once(tmp_path):
    outside = write_image(tmp_path / "outside" / "x.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "1.png").symlink_to(outside)
    (root / "2.png").symlink_to(outside)
    (root / "more").symlink_to(outside.parent, target_is_directory=True)
    assert data.image_folder(root, 4).files == [root / "1.png"]


def test_a_link_that_leads_nowhere_is_listed(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "c.png")
    with pytest.raises(ImageError, match="2 of 3 images") as caught:
        data.image_folder(tmp_path, 4)
    assert "b.png" in str(caught.value) and "c.png" in str(caught.value)


ODD = [
    b"new\nline.png",
    "été/日本.png".encode(),
    "e\u0301te\u0301/x.png".encode(),  # the same word, its accents apart
    "Ａ/x.png".encode(),  # before the next as bytes, after it as text
    b"\xff\xfe/\xe9.png",
    b"l" * 251 + b".png",
    b"Cat/1.png",
    b"cat/1.png",
    b"cat/a.png",
    b"cat/A.PNG",
]


@pytest.fixture
def odd(tmp_path):
    for name in ODD:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/all/" + name))
        try:
            write_image(path, kind="PNG")
        except OSError as error:
            pytest.skip(f"this file system refuses {name!r}: {error}")
    root = tmp_path / "all"
    if len([file for file in root.rglob("*") if file.is_file()]) < len(ODD):
        pytest.skip("this file system takes two of the names for one")
    return root


@pytest.mark.fault("links-and-names")
def test_files_with_unusual_names_are_all_read(odd):
    found = data.image_folder(odd, 4, labels=None)
    names = [os.fsencode(file)[len(os.fsencode(odd)) + 1 :] for file in found.files]
    assert names == sorted(ODD)
    assert found[:].shape == (len(ODD), 4, 4, 3)


@pytest.mark.fault("links-and-names")
def test_folder_names_that_differ_in_case_are_two_classes(tmp_path):
    write_image(tmp_path / "Cat" / "1.png")
    write_image(tmp_path / "cat" / "1.png")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes the two names for one")
    found = data.image_folder(tmp_path, 4)
    assert found.class_names == ["Cat", "cat"] and found.labels.tolist() == [0, 1]


@pytest.mark.fault("links-and-names")
def test_unusual_file_names_are_shown_on_one_line_each_in_their_script(odd):
    for file in odd.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        data.image_folder(odd, 4)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 + len(ODD) and "été/日本.png" in said
    said.encode()  # which fails for surrogates


LIST = """
import os, sys

from kerasim import data

found = data.image_folder(sys.argv[1], 4)
print(sys.getfilesystemencoding())
print([os.fsencode(file) for file in found.files])
print([os.fsencode(name) for name in found.class_names], found.labels)
"""


@pytest.mark.fault("links-and-names")
def test_order_and_labels_do_not_depend_on_the_locale(odd):
    (odd / "new\nline.png").unlink()  # with images beside the subfolders there are no labels
    (odd / ("l" * 251 + ".png")).unlink()
    encodings, listings = [], []
    for locale in ({"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}):
        child = subprocess.run(
            [sys.executable, "-c", LIST, odd],
            env={**os.environ, **locale, "PYTHONCOERCECLOCALE": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
        encoding, listing = child.stdout.split("\n", 1)
        encodings.append(encoding)
        listings.append(listing)
    assert encodings[0] != encodings[1]  # else the two runs say nothing
    assert listings[0] == listings[1] and "[0 1 1 1 2 3 4 5]" in listings[0]
