"""The data sets that kerasim knows by name, and the folder in which they are looked for."""

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from kerasim import _artifacts, _checks
from kerasim.errors import ArtifactError
from kerasim.images import as_float

# The files by which a data folder is recognized.
_KNOWN_FILES = ("mnist.npz", "cifar10.npz", "squeezenet_notop.h5", "tll")
_CLASS_NAMES = {
    "digits": "0 1 2 3 4 5 6 7 8 9".split(),
    "mnist": "0 1 2 3 4 5 6 7 8 9".split(),
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
}


@dataclasses.dataclass(frozen=True, repr=False)
class Dataset:
    """A data set, split into training and test images. Made by `load_dataset`.

    Attributes:
        x_train: Training images, `(n, height, width, channels)`.
        y_train: Their labels, `(n,)` int64, from 0.
        x_test: Test images.
        y_test: Their labels.
        class_names: A name for each label.

    Example:
        >>> load_dataset("digits")
        Dataset(1437 training and 360 test images of 32 x 32 x 1, float32, 10 classes)
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.x_train.shape[1:]))
        return (
            f"Dataset({len(self.x_train)} training and {len(self.x_test)} test images of {size}, "
            f"{self.x_train.dtype}, {len(self.class_names)} classes)"
        )


def data_dir() -> Path:
    """Returns the folder that holds the data sets.

    It is the first of these that applies:

    1. the folder that the environment variable `KERASIM_DATA_DIR` names ("~" is the home folder);
    2. the nearest `data` folder, in the working folder or one of its parents, that holds a file
       that kerasim knows (`mnist.npz`, `cifar10.npz`, `squeezenet_notop.h5` or the folder `tll`);
    3. the `data` folder of the source checkout that kerasim was installed from (`pip install -e`);
    4. `data` in the working folder, whether it exists or not.

    Returns:
        Absolute path.

    Example:
        >>> data_dir().is_absolute()
        True
    """
    named = os.environ.get("KERASIM_DATA_DIR")
    if named:
        return Path(os.path.expanduser(named)).absolute()
    working = Path.cwd()
    for folder in (working, *working.parents):
        if any(os.path.exists(folder / "data" / name) for name in _KNOWN_FILES):
            return folder / "data"
    checkout = Path(__file__).parents[2]
    if os.path.exists(checkout / "pyproject.toml") and os.path.isdir(checkout / "data"):
        return checkout / "data"
    return working / "data"


def resolve_dataset(
    name: Literal["digits", "mnist", "cifar10"] | None,
    wanted: Literal["digits", "mnist", "cifar10"],
) -> Literal["digits", "mnist", "cifar10"]:
    """Returns the data set to use, prints the choice, and warns if it is a replacement.

    Args:
        name: Data set that the user asked for, or None for `wanted` if its file is there.
        wanted: Data set that is used by default, such as "mnist". Without its file in
            `data_dir()`, the bundled "digits" replace it, with a warning that says how to get
            the file.

    Returns:
        `name`, `wanted` or "digits".

    Example:
        >>> resolve_dataset("digits", wanted="mnist")
        Data set: digits, bundled with scikit-learn.
        'digits'
    """
    folder = data_dir()
    chosen = name or wanted
    if name is None and wanted != "digits" and not os.path.exists(folder / f"{wanted}.npz"):
        warnings.warn(
            f"{wanted}.npz was not found in {folder}, so the bundled digits are used instead. "
            f"Run `kerasim fetch {wanted}` to download it, or set KERASIM_DATA_DIR to the folder "
            "that holds it.",
            stacklevel=2,
        )
        chosen = "digits"
    source = "bundled with scikit-learn" if chosen == "digits" else f"from {folder}"
    print(f"Data set: {chosen}, {source}.")
    return chosen


def load_dataset(
    name: Literal["digits", "mnist", "cifar10"],
    image_size: int | None = None,
    dtype: Literal["float32", "uint8"] = "float32",
) -> Dataset:
    """Loads a data set: from `<name>.npz` in `data_dir()`, else through `keras.datasets`.

    Args:
        name: "digits", "mnist" (28 x 28 x 1) or "cifar10" (32 x 32 x 3). The digits are bundled
            with scikit-learn: 8 x 8 pixels in 17 levels, enlarged to 24 x 24; the first 1,437 are
            for training, the last 360 for testing.
        image_size: Height and width to which images are padded with black, such as 32 for MNIST;
            not smaller than the images. None for no padding; digits are then padded to 32 x 32.
        dtype: "float32" in [0, 1], or "uint8" at a quarter of the memory; `ImageBatches` and
            `embed` take both.

    Returns:
        `Dataset`: `x_train`, `y_train`, `x_test`, `y_test` and `class_names`.

    Raises:
        ArtifactError: If the file is damaged, or there is none and it cannot be downloaded.
        ArgumentError: If `name`, `image_size` or `dtype` is invalid.

    Example:
        >>> digits = load_dataset("digits", image_size=40, dtype="uint8")
        >>> digits.x_train.shape, digits.y_train[:5].tolist()
        ((1437, 40, 40, 1), [0, 1, 2, 3, 4])
    """
    _checks.one_of("name", name, tuple(_CLASS_NAMES))
    _checks.one_of("dtype", dtype, ("float32", "uint8"))
    if name == "digits":
        x_train, y_train, x_test, y_test = _digits()
        image_size = 32 if image_size is None else image_size
    else:
        x_train, y_train, x_test, y_test = _load_npz(name)
    x_train, x_test = (_prepare(x, image_size, dtype) for x in (x_train, x_test))
    y_train, y_test = (y.reshape(-1).astype("int64") for y in (y_train, y_test))
    return Dataset(x_train, y_train, x_test, y_test, list(_CLASS_NAMES[name]))


def _digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    enlarged = np.kron(images.reshape(-1, 8, 8) / 16, np.ones((1, 3, 3)))
    return enlarged[:1437], labels[:1437], enlarged[1437:], labels[1437:]


def _load_npz(name):
    path = data_dir() / f"{name}.npz"
    keys = ("x_train", "y_train", "x_test", "y_test")
    if os.path.exists(path):
        parts = tuple(_artifacts.read_arrays(path, keys).values())
    else:
        try:
            train, test = getattr(keras.datasets, name).load_data()
        except Exception as error:  # Keras raises a bare Exception when it is offline
            raise ArtifactError(
                f"There is no file {path}, and Keras could not download {name!r} ({error}). "
                f"Run `kerasim fetch {name}` with a network, put an .npz file with the "
                f"arrays {', '.join(keys)} there, or set KERASIM_DATA_DIR to the folder of one."
            ) from error
        parts = *train, *test
    shape = (28, 28) if name == "mnist" else (32, 32, 3)
    for part, images, labels in (("train", *parts[:2]), ("test", *parts[2:])):
        fits = images.dtype == np.uint8 and images.shape[1:] == shape and len(images) == labels.size
        named = labels.size and labels.dtype.kind in "iu" and 0 <= labels.min() <= labels.max() <= 9
        if not (fits and named):
            raise ArtifactError(
                f"{path} has {labels.dtype} {labels.shape} labels for {images.dtype} "
                f"{images.shape} images in y_{part} and x_{part}; expected uint8 images of "
                f"{shape}, a label from 0 to 9 for each. Fetch it again."
            )
    return parts


def _prepare(x, image_size, dtype):
    x = x.reshape(*x.shape[:3], -1)
    if image_size is not None:
        margin = _checks.integer("image_size", image_size, x.shape[1]) - x.shape[1]
        sides = margin // 2, margin - margin // 2
        x = np.pad(x, ((0, 0), sides, sides, (0, 0)))
    if dtype == "float32":
        return as_float(x)
    return x if x.dtype == np.uint8 else np.rint(x * 255).astype("uint8")
