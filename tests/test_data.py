import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from kerasim import data, training
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (7, 4, 4, 1), dtype="uint8")
FLOATS = LEVELS.astype("float32") / 255
MNIST = {
    "x_train": RNG.integers(0, 256, (6, 28, 28), dtype="uint8"),
    "y_train": np.arange(6, dtype="uint8"),
    "x_test": RNG.integers(0, 256, (4, 28, 28), dtype="uint8"),
    "y_test": np.arange(6, 10, dtype="uint8"),
}
CIFAR10 = {
    "x_train": RNG.integers(0, 256, (3, 32, 32, 3), dtype="uint8"),
    "y_train": np.array([[3], [1], [9]], dtype="uint8"),
    "x_test": RNG.integers(0, 256, (2, 32, 32, 3), dtype="uint8"),
    "y_test": np.array([[0], [8]], dtype="uint8"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty KERASIM_DATA_DIR, with no way out to the network."""

    def offline():
        raise Exception("URL fetch failure on https://example.org: no network")

    monkeypatch.setenv("KERASIM_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", offline)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", offline)
    return tmp_path


@contextlib.contextmanager
def no_hang(pipe):
    """Lets a reader that opens `pipe` go on after ten seconds, so that the test can fail."""

    def unblock():
        with contextlib.suppress(OSError):
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    os.mkfifo(pipe)
    watchdog = threading.Timer(10, unblock)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


@contextlib.contextmanager
def unprivileged():
    """Runs the block as a user whom permissions bind."""
    root = os.geteuid() == 0
    if root:
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("permissions do not bind root, and this root cannot become another")
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def visible():
    """A folder that every user can enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)
        for closed in Path(path).iterdir():
            closed.chmod(0o700)


def picture(path, colour=128, size=(8, 6), kind=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour, colour)).save(path, kind)
    return path


def animation(path) -> Path:
    frames = [Image.new("L", (8, 6), level) for level in (0, 128, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


# load


def test_digits_are_their_levels_over_sixteen_three_times_as_large_in_a_margin():
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 32, 32, 1) and digits.x_test.shape == (360, 32, 32, 1)
    x = np.concatenate([digits.x_train, digits.x_test])[..., 0]
    assert x.dtype == np.float32
    for row in range(3):
        for column in range(3):
            inner = x[:, 4 + row : 28 : 3, 4 + column : 28 : 3]
            np.testing.assert_array_equal(inner.reshape(-1, 64), (levels / 16).astype("float32"))
    assert x[:, :4].max() == x[:, 28:].max() == x[:, :, :4].max() == x[:, :, 28:].max() == 0
    np.testing.assert_array_equal(np.concatenate([digits.y_train, digits.y_test]), labels)


def test_digits_as_bytes_are_the_nearest_levels():
    digits, levels = data.load("digits"), data.load("digits", dtype="uint8")
    assert levels.x_test.dtype == np.uint8
    np.testing.assert_array_equal(levels.x_test, np.rint(digits.x_test * 255))


@pytest.mark.parametrize("name, arrays", [("mnist", MNIST), ("cifar10", CIFAR10)])
def test_a_data_set_is_read_from_its_file(name, arrays, folder):
    np.savez(folder / f"{name}.npz", **arrays)
    found = data.load(name, dtype="uint8")
    for key in ("x_train", "x_test"):
        part = getattr(found, key)
        assert part.dtype == np.uint8 and part.ndim == 4
        np.testing.assert_array_equal(part.reshape(arrays[key].shape), arrays[key])
    for key in ("y_train", "y_test"):
        assert getattr(found, key).dtype == np.int64
        np.testing.assert_array_equal(getattr(found, key), arrays[key].reshape(-1))
    assert len(found.class_names) == 10


def test_floats_of_a_data_set_are_its_bytes_over_255(folder):
    np.savez(folder / "mnist.npz", **MNIST)
    found = data.load("mnist").x_train
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[..., 0], MNIST["x_train"].astype("float32") / 255)


def test_class_names_belong_to_the_labels():
    assert data.load("digits").class_names[7] == "7"
    assert data._CLASS_NAMES["cifar10"][3] == "cat" and data._CLASS_NAMES["cifar10"][8] == "ship"


def test_padding_puts_the_image_in_the_middle_of_black(folder):
    np.savez(folder / "mnist.npz", **MNIST)
    found = data.load("mnist", image_size=33, dtype="uint8").x_train
    assert found.shape == (6, 33, 33, 1)
    np.testing.assert_array_equal(found[:, 2:30, 2:30, 0], MNIST["x_train"])
    assert found.sum() == MNIST["x_train"].sum()


@pytest.mark.parametrize("size", [27, 0, -1, 32.0, "32", (32, 32), True])
def test_a_data_set_is_never_cropped(size, folder):
    np.savez(folder / "mnist.npz", **MNIST)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="image_size.* 28 or more"):
        data.load("mnist", image_size=size)


@pytest.mark.parametrize("name", ["minst", "", None, 3, "../mnist"])
def test_an_unknown_data_set_is_refused_with_the_known_ones(name):
    with pytest.raises(ArgumentError, match="name=.*'digits', 'mnist', 'cifar10'"):
        data.load(name)


@pytest.mark.parametrize("dtype", ["float64", None, np.uint8])
def test_a_data_set_of_another_dtype_is_refused_with_the_known_ones(dtype):
    with pytest.raises(ArgumentError, match="dtype=.*'float32', 'uint8'"):
        data.load("digits", dtype=dtype)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_offline_the_error_says_which_file_to_put_where(name, folder):
    with pytest.raises(ArtifactError) as caught:
        data.load(name)
    for part in (f"{name}.npz", str(folder), "x_train", "y_test", "KERASIM_DATA_DIR", "URL fetch"):
        assert part in str(caught.value)


def test_a_data_folder_with_an_impossible_name_is_one_without_the_file(folder, monkeypatch):
    monkeypatch.setenv("KERASIM_DATA_DIR", "x" * 300)
    with pytest.raises(ArtifactError, match="There is no .*xxx/mnist.npz"):
        data.load("mnist")


def test_without_a_file_keras_is_asked(folder, monkeypatch):
    fetched = [(MNIST["x_train"], MNIST["y_train"]), (MNIST["x_test"], MNIST["y_test"])]
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: fetched)
    np.testing.assert_array_equal(data.load("mnist", dtype="uint8").y_test, MNIST["y_test"])


@pytest.mark.parametrize(
    "key, value",
    [
        ("x_train", MNIST["x_train"].astype("float32")),
        ("x_train", MNIST["x_train"].astype("int64")),
        ("x_test", MNIST["x_test"][..., :27]),
        ("x_test", MNIST["x_test"].reshape(4, -1)),
        ("y_train", MNIST["y_train"].astype("float64")),
    ],
)
def test_a_file_of_another_shape_or_dtype_is_refused_with_its_key(key, value, folder):
    np.savez(folder / "mnist.npz", **{**MNIST, key: value})
    with pytest.raises(ArtifactError) as caught:
        data.load("mnist")
    for part in (str(folder / "mnist.npz"), key, str(value.shape), str(value.dtype), "28, 28"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"y_train": MNIST["y_train"][:5]},
        {"y_test": MNIST["y_test"] + 1},
        {"y_test": MNIST["y_test"].astype("int64") - 20},
        {"y_train": np.eye(10, dtype="uint8")[:6]},
        {"x_test": MNIST["x_test"][:0], "y_test": MNIST["y_test"][:0]},
    ],
    ids=["too few", "above 9", "negative", "one-hot", "empty"],
)
def test_a_file_whose_labels_do_not_fit_its_images_is_refused(changed, folder):
    np.savez(folder / "mnist.npz", **{**MNIST, **changed})
    with pytest.raises(ArtifactError, match="mnist.npz has .* labels for .* images"):
        data.load("mnist")


def test_a_file_without_an_array_is_refused_with_its_key(folder):
    np.savez(folder / "mnist.npz", x_train=MNIST["x_train"])
    with pytest.raises(ArtifactError, match="mnist.npz .*'y_train'"):
        data.load("mnist")


@pytest.mark.parametrize("key", MNIST)
def test_an_array_of_objects_is_never_unpickled(key, folder):
    canary = folder / "canary"

    class Attack:
        def __reduce__(self):
            return Path.touch, (canary,)

    np.savez(folder / "mnist.npz", **{**MNIST, key: np.array([Attack()], dtype=object)})
    with pytest.raises(ArtifactError, match=f"mnist.npz.*{key}"):
        data.load("mnist")
    assert not canary.exists()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused_by_name(part, folder):
    buffer = io.BytesIO()
    np.savez(buffer, **MNIST)
    whole = buffer.getvalue()
    (folder / "mnist.npz").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ArtifactError, match="mnist.npz.* damaged"):
        data.load("mnist")


def test_a_decompression_bomb_is_refused_by_its_directory(folder):
    with zipfile.ZipFile(folder / "mnist.npz", "w") as archive:
        archive.writestr("x_train.npy", b"0" * 100)
        archive.filelist[0].file_size = 300_000_000  # what the directory, written last, claims
    with pytest.raises(ArtifactError, match="mnist.npz.* 300000000 bytes.*bomb"):
        data.load("mnist")


def test_a_folder_in_place_of_the_file_is_refused_as_such(folder):
    (folder / "mnist.npz").mkdir()
    with pytest.raises(ArtifactError, match="mnist.npz' is a folder"):
        data.load("mnist")


def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(folder):
    with no_hang(folder / "mnist.npz"), pytest.raises(ArtifactError, match="no regular file"):
        data.load("mnist")


def test_a_file_without_permission_is_refused_by_name(folder, visible, monkeypatch):
    monkeypatch.setenv("KERASIM_DATA_DIR", str(visible))
    np.savez(visible / "mnist.npz", **MNIST)
    (visible / "mnist.npz").chmod(0)
    with unprivileged(), pytest.raises(ArtifactError, match="mnist.npz'?: Permission denied"):
        data.load("mnist")


# choose


def test_a_name_that_is_given_is_chosen(folder):
    np.savez(folder / "mnist.npz", **MNIST)
    assert data.choose("cifar10", "mnist") == "cifar10"


def test_without_a_name_the_wanted_set_is_chosen_where_there_is_one(folder):
    assert data.choose(None, "mnist") == "digits"
    np.savez(folder / "mnist.npz", **MNIST)
    assert data.choose(None, "mnist") == "mnist"


# image_folder


def test_each_subfolder_is_a_class(tmp_path):
    for name in ("dog/2.png", "cat/1.png", "cat/deep/0.png", "ant/9.png"):
        picture(tmp_path / name)
    found = data.image_folder(tmp_path, 4)
    names = [str(file.relative_to(tmp_path)) for file in found.files]
    assert names == ["ant/9.png", "cat/1.png", "cat/deep/0.png", "dog/2.png"]
    assert found.class_names == ["ant", "cat", "dog"]
    assert found.labels.dtype == np.int64 and found.labels.tolist() == [0, 1, 1, 2]


def test_labels_follow_the_classes_where_paths_sort_otherwise(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "a-b" / "1.png")  # "-" sorts before "/"
    found = data.image_folder(tmp_path, 4)
    assert [found.class_names[label] for label in found.labels] == [
        file.parent.name for file in found.files
    ]


def test_a_folder_without_subfolders_has_no_labels(tmp_path):
    picture(tmp_path / "a.png")
    found = data.image_folder(tmp_path, 4)
    assert found.labels is None and found.class_names == []


def test_images_of_a_folder_are_floats_of_the_size_asked_for(tmp_path):
    for level in (0, 51, 255):
        picture(tmp_path / f"{level:03}.png", level)
    found = data.image_folder(tmp_path, (4, 5), channels=1)
    assert found.shape == (3, 4, 5, 1) and len(found) == 3
    assert found[:].dtype == np.float32 and found[:].shape == found.shape
    np.testing.assert_allclose(found[:][:, 0, 0, 0], [0, 0.2, 1], atol=1e-6)


@pytest.mark.parametrize(
    "rows", [slice(1, 3), [2, 0, 2], np.array([True, False, True]), slice(None, None, -1), []]
)
def test_a_folder_is_indexed_as_an_array(rows, tmp_path):
    for level in (0, 51, 255):
        picture(tmp_path / f"{level:03}.png", level)
    found = data.image_folder(tmp_path, 4)
    expected = np.stack([found[n] for n in range(3)])
    np.testing.assert_array_equal(found[rows], expected[rows])


@pytest.mark.parametrize("suffix", ["webp", "tif", "TIFF", "JPG", "jpeg", "bmp", "gif", "png"])
def test_every_suffix_of_a_known_format_is_taken(suffix, tmp_path):
    kind = {"tif": "TIFF", "jpg": "JPEG"}.get(suffix.lower(), suffix.upper())
    picture(tmp_path / f"a.{suffix}", kind=kind)
    assert len(data.image_folder(tmp_path, 4)) == 1


def test_droppings_of_file_managers_are_left_out_in_silence(tmp_path):
    picture(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "._x.png").write_bytes(b"\0\5\26\7")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (tmp_path / "desktop.ini").write_text("[x]")
    for junk in (".ipynb_checkpoints", "__MACOSX", ".git"):
        picture(tmp_path / junk / "x.png")
    found = data.image_folder(tmp_path, 4)
    assert [file.name for file in found.files] == ["x.png"]
    assert found.skipped == [] and found.class_names == ["a"]


def test_other_files_are_listed_with_one_warning(tmp_path):
    picture(tmp_path / "x.png")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "x.heic").write_bytes(b"ftypheic")
    with pytest.warns(UserWarning, match="2 files in .* left out: 'notes.txt', 'x.heic'") as caught:
        found = data.image_folder(tmp_path, 4)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert [file.name for file, _ in found.skipped] == ["notes.txt", "x.heic"]


DAMAGED = {"empty.png": b"", "page.jpg": b"<html>", "cut.png": None, "text.gif": b"GIF"}


@pytest.fixture
def damaged(tmp_path):
    whole = picture(tmp_path / "whole.png").read_bytes()
    for name, content in DAMAGED.items():
        (tmp_path / name).write_bytes(whole[:-30] if content is None else content)
    return tmp_path


def test_damaged_images_are_all_listed_in_one_error_before_training(damaged):
    with pytest.raises(ImageError, match='4 of 5 images .*on_error="skip"') as caught:
        data.image_folder(damaged, 4)
    for name in DAMAGED:
        assert str(damaged / name) in str(caught.value)


def test_a_truncated_jpeg_is_listed_by_name(tmp_path):
    whole = picture(tmp_path / "a.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) - 60])
    with pytest.raises(ImageError, match="1 of 2 images .*\n.*b.jpg.* truncated"):
        data.image_folder(tmp_path, 4)


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


def test_an_image_that_vanishes_is_named(tmp_path):
    picture(tmp_path / "a.png")
    gone = picture(tmp_path / "b.png")
    found = data.image_folder(tmp_path, 4)
    gone.unlink()
    with pytest.raises(ImageError, match="b.png': No such file"):
        found[:]


def test_a_folder_of_damaged_images_alone_says_why_none_is_usable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(ArtifactError) as caught:
        data.image_folder(tmp_path, 4, on_error="skip")
    for part in (str(tmp_path), ".jpg", "a.png", "Cannot decode", "b.txt", "no image suffix"):
        assert part in str(caught.value)


def test_an_empty_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        data.image_folder(tmp_path, 4)
    assert str(tmp_path) in str(caught.value) and ".webp" in str(caught.value)


def test_animations_of_a_folder_are_read_with_one_warning_and_then_in_silence(tmp_path):
    animation(tmp_path / "a.gif")
    animation(tmp_path / "b.tif")
    picture(tmp_path / "c.png")
    with pytest.warns(UserWarning, match="2 files in .* frames.*: 'a.gif', 'b.tif'") as caught:
        found = data.image_folder(tmp_path, 4)
    assert len(caught) == 1
    assert found[:2].max() == 0  # the first frame; a warning here would be an error


def test_threads_of_a_folder_leave_the_warning_filters_as_they_were(tmp_path):
    for n in range(24):
        picture(tmp_path / f"{n}.png", size=(8 + 20 * n, 64))
    before = list(warnings.filters)
    for _ in range(3):
        data.image_folder(tmp_path, 4)[:]
    after = list(warnings.filters)
    warnings.filters[:] = before  # what leaks here must not silence the tests that follow
    assert after == before


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_what_is_no_folder_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "photos"
    if kind == "file":
        path.touch()
    with pytest.raises(ArtifactError) as caught:
        data.image_folder(path, 4)
    assert str(path) in str(caught.value) and "not a folder" in str(caught.value)


@pytest.mark.parametrize("path", ["", None, 3, b"photos", "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="path"):
        data.image_folder(path, 4)


def test_a_pipe_in_place_of_a_folder_is_refused_and_not_waited_for(tmp_path):
    with no_hang(tmp_path / "pipe"), pytest.raises(ArtifactError, match="pipe' is not a folder"):
        data.image_folder(tmp_path / "pipe", 4)


def test_a_pipe_among_the_images_is_listed_and_not_waited_for(tmp_path):
    with no_hang(tmp_path / "p.png"), pytest.raises(ImageError, match="p.png' is no regular file"):
        data.image_folder(tmp_path, 4)


def test_an_image_without_permission_is_listed(visible):
    picture(visible / "a.png").chmod(0)
    with unprivileged(), pytest.raises(ImageError, match="a.png: Permission denied|a.png': Perm"):
        data.image_folder(visible, 4)


def test_a_subfolder_without_permission_is_listed_and_not_just_dropped(visible):
    picture(visible / "open" / "a.png")
    picture(visible / "shut" / "b.png")
    (visible / "shut").chmod(0)
    with unprivileged(), pytest.warns(UserWarning, match="1 files in .* left out: 'shut'"):
        found = data.image_folder(visible, 4)
    ((path, reason),) = found.skipped
    assert path.name == "shut" and "Permission denied" in reason


@pytest.mark.parametrize("on_error", ["ignore", None, True])
def test_an_unknown_on_error_is_refused_with_the_known_ones(on_error, tmp_path):
    with pytest.raises(ArgumentError, match="on_error=.*'raise', 'skip'"):
        data.image_folder(tmp_path, 4, on_error=on_error)


@pytest.mark.parametrize("size", [None, 0, (4, 0), "4", 2.5])
def test_a_folder_needs_a_size(size, tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match=r"image_size=.* \(height, width\)"):
        data.image_folder(tmp_path, size)


@pytest.mark.parametrize("channels", [0, 2, 7, True, 3.0, None])
def test_a_folder_takes_one_or_three_channels(channels, tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises((ArgumentError, ArgumentTypeError), match="channels"):
        data.image_folder(tmp_path, 4, channels=channels)


# Names and links


@pytest.mark.parametrize("target", [".", "..", "../a"])
def test_a_loop_of_links_is_walked_once(target, tmp_path, monkeypatch):
    picture(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "loop").symlink_to(target, target_is_directory=True)
    walk, walked = os.walk, []

    def watched(*arguments, **settings):
        for step in walk(*arguments, **settings):
            walked.append(step[0])
            yield step

    monkeypatch.setattr(os, "walk", watched)
    assert data.image_folder(tmp_path, 4).files == [tmp_path / "a" / "x.png"]
    assert len(walked) == 3  # the folder, a, and the link, which is not entered


def test_a_file_reached_by_two_links_is_taken_once(tmp_path):
    outside = picture(tmp_path / "outside" / "x.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "1.png").symlink_to(outside)
    (root / "2.png").symlink_to(outside)
    (root / "more").symlink_to(outside.parent, target_is_directory=True)
    assert data.image_folder(root, 4).files == [root / "1.png"]


def test_a_link_that_leads_nowhere_is_listed(tmp_path):
    picture(tmp_path / "a.png")
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
            picture(path, kind="PNG")
        except OSError as error:
            pytest.skip(f"this file system refuses {name!r}: {error}")
    root = tmp_path / "all"
    if len([file for file in root.rglob("*") if file.is_file()]) < len(ODD):
        pytest.skip("this file system takes two of the names for one")
    return root


def test_odd_names_are_all_read(odd):
    found = data.image_folder(odd, 4)
    names = [os.fsencode(file)[len(os.fsencode(odd)) + 1 :] for file in found.files]
    assert names == sorted(ODD)
    assert found[:].shape == (len(ODD), 4, 4, 3)


def test_case_twins_are_two_classes(tmp_path):
    picture(tmp_path / "Cat" / "1.png")
    picture(tmp_path / "cat" / "1.png")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes the two names for one")
    found = data.image_folder(tmp_path, 4)
    assert found.class_names == ["Cat", "cat"] and found.labels.tolist() == [0, 1]


def test_odd_names_are_shown_in_ascii(odd):
    for file in odd.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        data.image_folder(odd, 4)
    assert str(caught.value).isascii() and len(str(caught.value).splitlines()) == 1 + len(ODD)


LIST = """
import os, sys, types

# Keras takes seconds to import, and plays no part in this.
sys.modules["keras"] = types.SimpleNamespace(utils=types.SimpleNamespace(PyDataset=object))
from kerasim import data

found = data.image_folder(sys.argv[1], 4)
print(sys.getfilesystemencoding())
print([os.fsencode(file) for file in found.files])
print([os.fsencode(name) for name in found.class_names], found.labels)
"""


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


# check_images, as_float, add_noise


def test_as_float_scales_bytes_and_leaves_floats():
    np.testing.assert_array_equal(data.as_float(LEVELS), FLOATS)
    assert data.as_float(LEVELS).dtype == np.float32
    assert data.as_float(FLOATS) is FLOATS
    assert data.as_float(FLOATS.astype("float64")).dtype == np.float32


def poisoned(value, dtype="float32"):
    images = FLOATS.astype(dtype)
    images[2, 1, 1, 0] = images[5, 0, 0, 0] = value
    return images


EMBEDDER = keras.Sequential(
    [
        keras.Input((4, 4, 1)),
        keras.layers.Conv2D(3, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
)
EMBEDDER.compile(run_eagerly=True)  # a graph for each batch size would take most of the time
DOORS = {
    "ImageBatches": data.ImageBatches,
    "add_noise": lambda images: data.add_noise(images, 0.1),
    "embed": lambda images: data.embed(EMBEDDER, images),
}


@pytest.fixture(params=DOORS)
def door(request):
    """Each public function that takes images."""
    return DOORS[request.param]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused_with_their_rows(door, value):
    with pytest.raises(ArgumentError, match="images holds NaN or infinity in 2 of 7 rows: 2, 5"):
        door(poisoned(value))


def test_infinities_of_both_signs_are_refused_too(door):
    images = poisoned(np.inf)
    images[5, 3, 3, 0] = -np.inf
    with pytest.raises(ArgumentError, match="2 of 7 rows: 2, 5"):
        door(images)


def test_bad_rows_are_counted_past_the_first_block():
    images = np.zeros((1500, 2, 2, 1), "float32")
    images[[3, 1400]] = np.nan
    with pytest.raises(ArgumentError, match="2 of 1500 rows: 3, 1400"):
        data.ImageBatches(images)


@pytest.mark.parametrize("value", [255.0, 1.001, -0.001])
def test_floats_outside_zero_to_one_are_refused_with_range_row_and_remedy(door, value):
    with pytest.raises(ArgumentError) as caught:
        door(poisoned(value))
    said = str(caught.value)
    for part in ("images", "[0, 1]", "2 rows", "first 2", "divide by 255", "uint8"):
        assert part in said
    assert str(np.float32(value)) in said


@pytest.mark.parametrize("dtype", ["int64", "bool", "object", "complex64"])
def test_images_of_another_dtype_are_refused_by_it(door, dtype):
    with pytest.raises(ArgumentTypeError, match=rf"images .*\[0, 1\].*uint8.*{dtype}"):
        door((FLOATS > 0.5).astype(dtype))


@pytest.mark.parametrize("shape", [(7, 4, 4), (7, 16), (4,), (), (7, 4, 4, 1, 1), (7, 0, 4, 1)])
def test_images_of_another_shape_are_refused_with_both_shapes(door, shape):
    with pytest.raises(ArgumentError) as caught:
        door(np.zeros(shape, "float32"))
    said = str(caught.value)
    assert "images" in said and "(n, height, width, channels)" in said and str(shape) in said


def test_a_list_of_images_of_several_sizes_is_refused(door):
    with pytest.raises(ArgumentError, match="images cannot be made one array.*resize"):
        door([np.zeros((4, 4, 1)), np.zeros((5, 4, 1))])


def test_noise_has_the_deviation_asked_for():
    images = np.full((20, 32, 32, 1), 0.5, "float32")
    noise = data.add_noise(images, 0.1) - 0.5
    assert noise.dtype == np.float32
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.1], atol=0.003)


def test_the_same_seed_draws_the_same_noise_and_another_seed_another():
    first, again, other = (data.add_noise(FLOATS, 0.2, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_is_clipped_unless_it_must_not_be():
    clipped, free = data.add_noise(FLOATS, 0.5), data.add_noise(FLOATS, 0.5, clip=False)
    assert free.min() < 0 and free.max() > 1
    np.testing.assert_array_equal(clipped, np.clip(free, 0, 1))


def test_noise_on_bytes_is_that_on_floats():
    np.testing.assert_array_equal(data.add_noise(LEVELS, 0.2), data.add_noise(FLOATS, 0.2))


def test_noise_leaves_its_argument_alone():
    images = FLOATS.copy()
    data.add_noise(images, 0.5)
    np.testing.assert_array_equal(images, FLOATS)


def test_no_noise_is_the_images():
    np.testing.assert_array_equal(data.add_noise(FLOATS, 0), FLOATS)


@pytest.mark.parametrize("sigma", [-0.1, np.nan, np.inf, "0.1", None, True])
def test_noise_refuses_a_sigma_that_is_none(sigma):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="sigma.* 0 or more"):
        data.add_noise(FLOATS, sigma)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="sigma.* 0 or more"):
        data.ImageBatches(FLOATS, sigma=sigma)


@pytest.mark.parametrize("seed", [-1, None, 1.5, "3", True])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="seed.* 0 or more"):
        data.add_noise(FLOATS, 0.1, seed=seed)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="seed.* 0 or more"):
        data.ImageBatches(FLOATS, seed=seed)


# ImageBatches


def epoch_of(batches, epoch=0):
    """Returns all inputs and all targets of an epoch."""
    batches.epoch = epoch
    inputs, targets = zip(*(batches[n] for n in range(len(batches))), strict=True)
    return np.concatenate(inputs), np.concatenate(targets)


def order_of(epoch=0, n=50, **settings):
    batches = data.ImageBatches(np.zeros((n, 1, 1, 1), "uint8"), np.arange(n), 8, **settings)
    return epoch_of(batches, epoch)[1].tolist()


def test_each_epoch_shows_every_image_once():
    for epoch in range(3):
        assert sorted(order_of(epoch)) == list(range(50))


def test_epochs_differ_in_order():
    assert len({tuple(order_of(epoch)) for epoch in range(5)}) == 5


def test_runs_of_one_seed_are_equal_and_of_another_differ():
    assert order_of(2, seed=3) == order_of(2, seed=3) != order_of(2, seed=4)


def test_the_order_of_a_seed_and_an_epoch_is_for_ever():
    # A run that is resumed with a later kerasim must go on in the order it began with.
    assert order_of(2, n=10, seed=3) == [7, 4, 1, 8, 6, 0, 2, 9, 3, 5]


def test_the_noise_of_a_seed_and_an_epoch_is_for_ever():
    batches = data.ImageBatches(np.full((2, 1, 2, 1), 0.5), batch_size=2, seed=3, sigma=0.1)
    expected = [0.58538944, 0.50447965, 0.40724432, 0.45918116]
    np.testing.assert_allclose(epoch_of(batches, 2)[0].reshape(-1), expected, atol=1e-6)


def test_an_epoch_does_not_depend_on_what_was_asked_before():
    settings = {"batch_size": 2, "seed": 3, "sigma": 0.3, "flip": True}
    fresh = data.ImageBatches(FLOATS, **settings)
    used = data.ImageBatches(FLOATS, **settings)
    for epoch in (0, 4, 1):
        epoch_of(used, epoch)
        used.on_epoch_end()
    fresh.epoch = used.epoch = 3
    backwards = [used[n][0] for n in reversed(range(len(used)))][::-1]
    for n, batch in enumerate(backwards):
        np.testing.assert_array_equal(batch, fresh[n][0])


def test_noise_and_flips_differ_between_epochs():
    for setting in ({"sigma": 0.1}, {"flip": True}):
        batches = data.ImageBatches(FLOATS, shuffle=False, **setting)
        assert not np.array_equal(epoch_of(batches, 0)[0], epoch_of(batches, 1)[0])


def test_the_numbers_of_the_caller_are_left_alone():
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    epoch_of(data.ImageBatches(FLOATS, sigma=0.1, flip=True))
    assert np.random.random() == expected


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_validation_batches_never_redraw(tmp_path):
    seen = []

    class Watched(data.ImageBatches):
        def __getitem__(self, index):
            inputs, targets = super().__getitem__(index)
            seen.append((index, self.epoch, inputs))
            return inputs, targets

    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    batches = data.ImageBatches(FLOATS, batch_size=4)
    validation = Watched(FLOATS, batch_size=4, sigma=0.2)
    training.fit(model, batches, 2, tmp_path, validation=validation, verbose=0)
    assert batches.epoch == 1
    assert {epoch for _, epoch, _ in seen} == {0}
    for index in range(2):
        first, *later = [inputs for n, _, inputs in seen if n == index]
        assert later
        for inputs in later:
            np.testing.assert_array_equal(inputs, first)


def test_without_a_shuffle_the_order_is_that_of_the_images():
    inputs, targets = epoch_of(data.ImageBatches(LEVELS, batch_size=3, shuffle=False), 4)
    np.testing.assert_array_equal(inputs, FLOATS)
    np.testing.assert_array_equal(targets, FLOATS)


def test_the_last_batch_is_smaller():
    batches = data.ImageBatches(FLOATS, batch_size=3)
    assert [len(batches[n][0]) for n in range(len(batches))] == [3, 3, 1]


def test_fewer_images_than_a_batch_are_one_batch():
    batches = data.ImageBatches(FLOATS, batch_size=100)
    assert len(batches) == 1 and len(batches[0][0]) == 7


def test_batches_of_bytes_are_those_of_floats():
    settings = {"batch_size": 3, "sigma": 0.1, "flip": True}
    for of_bytes, of_floats in zip(
        epoch_of(data.ImageBatches(LEVELS, **settings)),
        epoch_of(data.ImageBatches(FLOATS, **settings)),
        strict=True,
    ):
        assert of_bytes.dtype == np.float32
        np.testing.assert_array_equal(of_bytes, of_floats)


def test_without_targets_the_images_are_the_targets():
    inputs, targets = epoch_of(data.ImageBatches(FLOATS, batch_size=3))
    np.testing.assert_array_equal(inputs, targets)


def test_targets_stay_beside_their_images():
    inputs, targets = epoch_of(data.ImageBatches(FLOATS, np.arange(7) * 10, batch_size=3))
    np.testing.assert_array_equal(inputs, FLOATS[targets // 10])


def test_noise_is_on_the_inputs_alone_and_clipped():
    inputs, targets = epoch_of(data.ImageBatches(FLOATS, shuffle=False, sigma=0.5))
    np.testing.assert_array_equal(targets, FLOATS)
    assert not np.array_equal(inputs, FLOATS)
    assert inputs.min() == 0 and inputs.max() == 1


def test_a_flip_mirrors_some_images_and_their_targets_with_them():
    images = np.arange(40 * 6, dtype="uint8").reshape(40, 2, 3, 1)
    inputs, targets = epoch_of(data.ImageBatches(images, shuffle=False, flip=True))
    np.testing.assert_array_equal(inputs, targets)
    straight, mirrored = data.as_float(images), data.as_float(images)[:, :, ::-1]
    turned = (inputs == mirrored).all(axis=(1, 2, 3))
    kept = (inputs == straight).all(axis=(1, 2, 3))
    assert (turned ^ kept).all() and 8 < turned.sum() < 32


def test_batches_leave_the_images_alone():
    images = FLOATS.copy()
    batches = data.ImageBatches(images, sigma=0.5, flip=True)
    epoch_of(batches)
    np.testing.assert_array_equal(images, FLOATS)


def test_batches_read_a_folder(tmp_path):
    for level in (0, 51, 255):
        picture(tmp_path / f"{level:03}.png", level)
    found = data.image_folder(tmp_path, 4)
    inputs, _ = epoch_of(data.ImageBatches(found, batch_size=2, shuffle=False))
    np.testing.assert_array_equal(inputs, found[:])


def test_no_images_are_refused():
    with pytest.raises(ArgumentError, match="images is empty"):
        data.ImageBatches(FLOATS[:0])


def test_targets_of_another_length_are_refused_with_both_lengths():
    with pytest.raises(ArgumentError, match="targets has 6 rows, images has 7"):
        data.ImageBatches(FLOATS, np.zeros(6))


def test_targets_that_are_not_finite_are_refused_with_their_rows():
    targets = np.zeros((7, 2))
    targets[4, 1] = np.nan
    with pytest.raises(ArgumentError, match="targets holds NaN .* 1 of 7 rows: 4"):
        data.ImageBatches(FLOATS, targets)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", None, True])
def test_a_batch_size_that_is_none_is_refused(batch_size):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="batch_size.* 1 or more"):
        data.ImageBatches(FLOATS, batch_size=batch_size)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="batch_size.* 1 or more"):
        data.embed(EMBEDDER, FLOATS, batch_size=batch_size)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 1 - FLOATS},
        {"images": LEVELS},
        {"images": FLOATS[:6], "targets": np.arange(6)},
        {"images": FLOATS.reshape(7, 2, 8, 1)},
        {"targets": np.arange(1, 8)},
        {"targets": None},
        {"batch_size": 3},
        {"seed": 1},
        {"sigma": 0.1},
        {"flip": True},
        {"shuffle": False},
    ],
)
def test_settings_change_with_whatever_decides_the_batches(change):
    given = {"images": FLOATS, "targets": np.arange(7)}
    before = data.ImageBatches(**given).settings()
    assert data.ImageBatches(**{**given, **change}).settings() != before


def test_settings_are_the_same_for_the_same_data_at_any_epoch():
    batches, copy = data.ImageBatches(FLOATS), data.ImageBatches(FLOATS.copy(order="F"))
    copy.epoch = 5
    assert batches.settings() == copy.settings()


def test_the_digest_of_a_folder_changes_with_its_files(tmp_path):
    path = picture(tmp_path / "a.png", 10)
    folder = data.image_folder(tmp_path, 4)
    before = data.digest(folder)
    assert data.digest(data.image_folder(tmp_path, 4)) == before
    assert data.digest(data.image_folder(tmp_path, 5)) != before
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert data.digest(folder) != before


# embed


def test_embeddings_are_those_of_the_model_in_order():
    found = data.embed(EMBEDDER, FLOATS, batch_size=3)
    assert found.shape == (7, 5) and found.dtype == np.float32
    expected = [keras.ops.convert_to_numpy(EMBEDDER(FLOATS[n : n + 1]))[0] for n in range(7)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_batch_size_does_not_change_the_embeddings(batch_size):
    np.testing.assert_allclose(
        data.embed(EMBEDDER, FLOATS, batch_size), data.embed(EMBEDDER, FLOATS), atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_floats_of_other_widths_embed_alike(dtype):
    images = np.round(FLOATS * 16) / 16  # exact in each of them
    np.testing.assert_array_equal(
        data.embed(EMBEDDER, images.astype(dtype)), data.embed(EMBEDDER, images)
    )


def test_bytes_embed_as_their_floats():
    np.testing.assert_array_equal(data.embed(EMBEDDER, LEVELS), data.embed(EMBEDDER, FLOATS))


def test_a_view_embeds_as_its_copy():
    view = FLOATS[::-2, ::-1]
    np.testing.assert_array_equal(data.embed(EMBEDDER, view), data.embed(EMBEDDER, view.copy()))


def test_a_folder_embeds_as_its_images(tmp_path):
    for n, level in enumerate((255, 0, 51)):
        picture(tmp_path / f"{n}.png", level)
    found = data.image_folder(tmp_path, 4, channels=1)
    np.testing.assert_array_equal(
        data.embed(EMBEDDER, found, batch_size=2), data.embed(EMBEDDER, found[:], batch_size=2)
    )


def test_no_images_give_no_embeddings():
    found = data.embed(EMBEDDER, FLOATS[:0])
    assert found.shape == (0, 5) and found.dtype == np.float32


def test_images_of_another_size_are_refused_with_the_size_the_model_takes():
    with pytest.raises(ArgumentError, match=r"images .*\(n, 4, 4, 1\).*\(7, 4, 4, 3\)"):
        data.embed(EMBEDDER, np.zeros((7, 4, 4, 3), "float32"))


def test_embeddings_that_are_not_finite_are_refused_with_their_rows():
    inputs = keras.Input((4, 4, 1))
    means = keras.layers.GlobalMaxPooling2D()(inputs)
    model = keras.Model(inputs, keras.ops.log(means))
    images = FLOATS.copy()
    images[[1, 4]] = 0
    with pytest.raises(ArgumentError, match="embedder's output .* 2 of 7 rows: 1, 4"):
        data.embed(model, images)


def test_a_model_that_gives_no_vectors_is_refused_with_its_output():
    inputs = keras.Input((4, 4, 1))
    with pytest.raises(ArgumentError, match=r"embedder .*\(None, 4, 4, 1\).*encoder"):
        data.embed(keras.Model(inputs, keras.layers.ReLU()(inputs)), FLOATS)


def test_a_model_that_gives_two_outputs_is_refused():
    inputs = keras.Input((4, 4, 1))
    codes = keras.layers.Flatten()(inputs)
    with pytest.raises(ArgumentError, match="embedder must map images to vectors"):
        data.embed(keras.Model(inputs, [codes, keras.layers.ReLU()(codes)]), FLOATS)


def test_a_model_of_pairs_is_refused():
    left, right = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
    model = keras.Model([left, right], keras.layers.Flatten()(left + right))
    with pytest.raises(ArgumentTypeError, match="embedder .* one input.*one tower"):
        data.embed(model, FLOATS)


@pytest.mark.parametrize(
    "embedder", [None, "model.keras", len, keras.Sequential([keras.layers.Flatten()])]
)
def test_what_is_no_built_model_is_refused_with_its_type(embedder):
    with pytest.raises(ArgumentTypeError, match=f"embedder .*{type(embedder).__name__}"):
        data.embed(embedder, FLOATS)
