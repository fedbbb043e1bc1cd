import io
import os
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasim
from kerasim import data
from kerasim.data import _sets
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError
from tests.helpers.file_access import no_hang, unprivileged

RNG = np.random.default_rng(0)
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


def test_a_tilde_in_the_variable_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERASIM_DATA_DIR", "~/sets")
    assert _sets.data_dir() == tmp_path / "sets"


def test_digits_are_their_levels_over_sixteen_three_times_as_large_in_a_margin():
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    digits = data.load_dataset("digits")
    assert digits.x_train.shape == (1437, 32, 32, 1) and digits.x_test.shape == (360, 32, 32, 1)
    x = np.concatenate([digits.x_train, digits.x_test])[..., 0]
    assert x.dtype == np.float32
    for row in range(3):
        for column in range(3):
            inner = x[:, 4 + row : 28 : 3, 4 + column : 28 : 3]
            np.testing.assert_array_equal(inner.reshape(-1, 64), (levels / 16).astype("float32"))
    assert x[:, :4].max() == x[:, 28:].max() == x[:, :, :4].max() == x[:, :, 28:].max() == 0
    np.testing.assert_array_equal(np.concatenate([digits.y_train, digits.y_test]), labels)


def test_digits_have_no_margin_at_the_size_of_24(folder):
    small, padded = data.load_dataset("digits", image_size=24), data.load_dataset("digits")
    np.testing.assert_array_equal(small.x_train, padded.x_train[:, 4:28, 4:28])
    with pytest.raises(ArgumentError, match="image_size.* 24 or more"):
        data.load_dataset("digits", image_size=23)


def test_digits_as_bytes_are_the_nearest_levels():
    digits, levels = data.load_dataset("digits"), data.load_dataset("digits", dtype="uint8")
    assert levels.x_test.dtype == np.uint8
    np.testing.assert_array_equal(levels.x_test, np.rint(digits.x_test * 255))


@pytest.mark.parametrize("name, arrays", [("mnist", MNIST), ("cifar10", CIFAR10)])
def test_a_data_set_is_read_from_its_file(name, arrays, folder):
    np.savez(folder / f"{name}.npz", **arrays)
    found = data.load_dataset(name, dtype="uint8")
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
    found = data.load_dataset("mnist").x_train
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[..., 0], MNIST["x_train"].astype("float32") / 255)


def test_class_names_belong_to_the_labels(folder):
    np.savez(folder / "cifar10.npz", **CIFAR10)
    names = data.load_dataset("cifar10").class_names
    assert data.load_dataset("digits").class_names[7] == "7"
    assert names[3] == "cat" and names[8] == "ship"


def test_padding_puts_the_image_in_the_middle_of_black(folder):
    np.savez(folder / "mnist.npz", **MNIST)
    found = data.load_dataset("mnist", image_size=33, dtype="uint8").x_train
    assert found.shape == (6, 33, 33, 1)
    np.testing.assert_array_equal(found[:, 2:30, 2:30, 0], MNIST["x_train"])
    assert found.sum() == MNIST["x_train"].sum()


@pytest.mark.parametrize("size", [27, 0, -1, 32.0, "32", (32, 32), True])
def test_a_data_set_is_never_cropped(size, folder):
    np.savez(folder / "mnist.npz", **MNIST)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="image_size.* 28 or more"):
        data.load_dataset("mnist", image_size=size)


@pytest.mark.parametrize("name", ["minst", "", None, 3, "../mnist"])
def test_an_unknown_data_set_is_refused_with_the_known_ones(name):
    with pytest.raises(ArgumentError, match="name=.*'digits', 'mnist', 'cifar10'"):
        data.load_dataset(name)


@pytest.mark.parametrize("dtype", ["float64", None, np.uint8])
def test_a_data_set_of_another_dtype_is_refused_with_the_known_ones(dtype):
    with pytest.raises(ArgumentError, match="dtype=.*'float32', 'uint8'"):
        data.load_dataset("digits", dtype=dtype)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_offline_the_error_says_which_file_to_put_where(name, folder):
    with pytest.raises(ArtifactError) as caught:
        data.load_dataset(name)
    for part in (f"{name}.npz", str(folder), "x_train", "y_test", "KERASIM_DATA_DIR", "URL fetch"):
        assert part in str(caught.value)


def test_a_data_folder_with_an_impossible_name_is_one_without_the_file(folder, monkeypatch):
    monkeypatch.setenv("KERASIM_DATA_DIR", "x" * 300)
    with pytest.raises(ArtifactError, match="There is no .*xxx/mnist.npz"):
        data.load_dataset("mnist")


def test_without_a_file_keras_downloads_the_weights(folder, monkeypatch):
    fetched = [(MNIST["x_train"], MNIST["y_train"]), (MNIST["x_test"], MNIST["y_test"])]
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: fetched)
    np.testing.assert_array_equal(data.load_dataset("mnist", dtype="uint8").y_test, MNIST["y_test"])


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
        data.load_dataset("mnist")
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
        data.load_dataset("mnist")


def test_a_file_without_an_array_is_refused_with_its_key(folder):
    np.savez(folder / "mnist.npz", x_train=MNIST["x_train"])
    with pytest.raises(ArtifactError, match="mnist.npz .*'y_train'"):
        data.load_dataset("mnist")


@pytest.mark.fault("object-array")
@pytest.mark.parametrize("key", MNIST)
def test_an_array_of_objects_is_never_unpickled(key, folder):
    canary = folder / "canary"

    class Attack:
        def __reduce__(self):
            return Path.touch, (canary,)

    np.savez(folder / "mnist.npz", **{**MNIST, key: np.array([Attack()], dtype=object)})
    with pytest.raises(ArtifactError, match=f"mnist.npz.*{key}"):
        data.load_dataset("mnist")
    assert not canary.exists()


@pytest.mark.fault("truncated-file")
@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused_by_name(part, folder):
    buffer = io.BytesIO()
    np.savez(buffer, **MNIST)
    whole = buffer.getvalue()
    (folder / "mnist.npz").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ArtifactError, match="mnist.npz.* damaged"):
        data.load_dataset("mnist")


@pytest.mark.fault("archive-bomb")
def test_a_decompression_bomb_is_refused_by_its_directory(folder):
    with zipfile.ZipFile(folder / "mnist.npz", "w") as archive:
        archive.writestr("x_train.npy", b"0" * 100)
        archive.filelist[0].file_size = 300_000_000  # what the directory, written last, claims
    with pytest.raises(ArtifactError, match="mnist.npz.* 300000000 bytes.*bomb"):
        data.load_dataset("mnist")


def test_a_folder_in_place_of_the_file_is_refused_as_such(folder):
    (folder / "mnist.npz").mkdir()
    with pytest.raises(ArtifactError, match="mnist.npz' is a folder"):
        data.load_dataset("mnist")


def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(folder):
    with no_hang(folder / "mnist.npz"), pytest.raises(ArtifactError, match="not a regular file"):
        data.load_dataset("mnist")


def test_a_file_without_permission_is_refused_by_name(folder, visible, monkeypatch):
    monkeypatch.setenv("KERASIM_DATA_DIR", str(visible))
    np.savez(visible / "mnist.npz", **MNIST)
    (visible / "mnist.npz").chmod(0)
    with unprivileged(), pytest.raises(ArtifactError, match="mnist.npz'?: Permission denied"):
        data.load_dataset("mnist")


def test_a_name_that_is_given_is_chosen(folder):
    np.savez(folder / "mnist.npz", **MNIST)
    assert data.resolve_dataset("cifar10", "mnist") == "cifar10"


def test_the_default_data_set_is_chosen_and_its_folder_printed_where_its_file_is(folder, capsys):
    np.savez(folder / "mnist.npz", **MNIST)
    assert data.resolve_dataset(None, "mnist") == "mnist"
    assert capsys.readouterr().out == f"Data set: mnist, from {folder}.\n"


def test_the_digits_replace_a_missing_file_with_a_warning_that_says_how_to_get_it(folder):
    with pytest.warns(UserWarning) as caught:
        assert data.resolve_dataset(None, "mnist") == "digits"
    (warning,) = caught
    assert warning.filename == __file__
    for part in ("mnist.npz", str(folder), "kerasim fetch mnist", "KERASIM_DATA_DIR"):
        assert part in str(warning.message)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with data sets in `data`, and no KERASIM_DATA_DIR."""
    monkeypatch.delenv("KERASIM_DATA_DIR")
    (tmp_path / "project" / "data").mkdir(parents=True)
    np.savez(tmp_path / "project" / "data" / "mnist.npz", **MNIST)
    return tmp_path / "project"


@pytest.fixture(autouse=True)
def variable(monkeypatch):
    monkeypatch.setenv("KERASIM_DATA_DIR", os.environ.get("KERASIM_DATA_DIR", ""))


@pytest.mark.parametrize("working", [".", "notebooks", "a/b/c", "data"])
def test_data_are_found_from_every_folder_of_a_project(working, project, monkeypatch):
    (project / working).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(project / working)
    assert data.data_dir() == project / "data"


def test_the_nearest_data_folder_with_a_known_file_is_taken(project, monkeypatch):
    (project / "inner" / "data").mkdir(parents=True)
    monkeypatch.chdir(project / "inner")
    assert data.data_dir() == project / "data"
    (project / "inner" / "data" / "tll").mkdir()
    assert data.data_dir() == project / "inner" / "data"


def test_outside_of_a_project_data_are_looked_for_in_the_source_checkout(
    tmp_path, project, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert data.data_dir() == Path(kerasim.__file__).parents[1] / "data"


def test_an_installed_package_looks_for_data_in_the_working_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_sets, "__file__", str(tmp_path / "site-packages/kerasim/data/_sets.py"))
    assert data.data_dir() == tmp_path / "data"


def test_a_data_set_is_shown_as_one_line():
    assert repr(data.load_dataset("digits")) == (
        "Dataset(1437 training and 360 test images of 32 x 32 x 1, float32, 10 classes)"
    )
