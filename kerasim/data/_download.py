"""Downloads data sets and weights into the data folder and checks them by their hash."""

import os
import tempfile
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from kerasim import _artifacts, _checks
from kerasim.data._sets import data_dir
from kerasim.errors import ArtifactError

SQUEEZENET_FILE = "squeezenet_notop.h5"
SQUEEZENET_SHA256 = "17154246284f555591549ac2c83e127abfbf4307dc4b0060fdaa2931d0fa38da"
_SQUEEZENET_REPOSITORY = "https://raw.githubusercontent.com/DeepCognition/keras-squeezenet"
# The repository holds two files without the top; the hash decides which of them is taken.
_SQUEEZENET_ORIGINS = (
    f"{_SQUEEZENET_REPOSITORY}/a73d4339aa4d37c51a0b3ba044bed55477abec73/"
    "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
    f"{_SQUEEZENET_REPOSITORY}/327af831a48ed287cc9513f73a3c927be2306160/"
    "squeezenet_weights_notop.h5",
)
_FILES = {"mnist": "mnist.npz", "cifar10": "cifar10.npz", "squeezenet": SQUEEZENET_FILE}


def fetch(
    name: Literal["mnist", "cifar10", "squeezenet"], folder: Path | str | None = None
) -> Path:
    """Downloads a data set or weights into the data folder, and checks the hash.

    MNIST and CIFAR-10 come through `keras.datasets`, which checks their hashes and keeps a copy
    of its own in `~/.keras`. The ImageNet weights of SqueezeNet come from the repository
    DeepCognition/keras-squeezenet on GitHub. A file that is already there is left as it is.

    Args:
        name: "mnist" (12 MB), "cifar10" (170 MB) or "squeezenet" (3 MB).
        folder: Folder to write to; None for `data_dir()`. It is created if it does not exist.

    Returns:
        Path of the file, such as `data/mnist.npz`.

    Raises:
        ArgumentError: If `name` is unknown.
        ArtifactError: If the download fails, the hash differs, or the file cannot be written. The
            message says which file to put where.

    Example:
        >>> fetch("mnist")  # doctest: +SKIP
        PosixPath('data/mnist.npz')
    """
    _checks.one_of("name", name, tuple(_FILES))
    folder = data_dir() if folder is None else _artifacts.check_path("folder", folder)
    target = folder / _FILES[name]
    if _artifacts.exists(target):
        print(f"{target} is already there.")
        return target
    print(f"Downloading {name} to {target} ...", flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the finished file can be renamed into place.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            finished = Path(temporary, target.name)
            if name == "squeezenet":
                _download_squeezenet(finished)
            else:
                _download_data_set(name, finished)
            os.replace(finished, target)
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {target} ({error.strerror}). Check the permissions and the free space "
            "of its folder, or set KERASIM_DATA_DIR to another folder."
        ) from error
    print(f"Wrote {target} ({target.stat().st_size / 1e6:.0f} MB).")
    return target


def _download_data_set(name: str, path: Path) -> None:
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception when it is offline
        raise ArtifactError(
            f"Keras could not download {name!r} ({error}). Try again with a network. Without one, "
            f"put a file {name}.npz with the arrays x_train, y_train, x_test and y_test, as "
            f"keras.datasets.{name}.load_data() returns them, into {path.parents[1]}."
        ) from error
    np.savez(path, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])


def _download_squeezenet(path: Path) -> None:
    failures = []
    for origin in _SQUEEZENET_ORIGINS:
        try:
            keras.utils.get_file(
                path.name,
                origin,
                file_hash=SQUEEZENET_SHA256,
                cache_dir=str(path.parent),
                cache_subdir="",
                force_download=True,
            )
            return
        except Exception as error:  # a bare Exception when offline, ValueError for another hash
            failures.append(f"{origin}: {error}")
    reasons = "; ".join(failures)
    raise ArtifactError(
        f"The weights of SqueezeNet could not be downloaded ({reasons}). Try again with a network. "
        f"Without one, put the file squeezenet_weights_*_notop.h5 of SHA-256 {SQUEEZENET_SHA256} "
        f"from github.com/DeepCognition/keras-squeezenet into {path.parents[1]} under the name "
        f"{path.name}."
    )
