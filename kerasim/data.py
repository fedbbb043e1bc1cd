"""Data sets, folders, noise and batches."""

import dataclasses
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasim import artifacts
from kerasim.errors import (
    ArgumentError,
    ArgumentTypeError,
    ArtifactError,
    ImageError,
    check_choice,
    check_integer,
    check_number,
    check_rows,
)
from kerasim.images import SUFFIXES, check_channels, check_size, decode

_CLASS_NAMES = {
    "digits": "0 1 2 3 4 5 6 7 8 9".split(),
    "mnist": "0 1 2 3 4 5 6 7 8 9".split(),
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
}
_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images `(n, height, width, channels)`, labels `(n,)` int64, and a name for each label."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]


def data_dir() -> Path:
    """Returns the folder in which data sets are looked for: `KERASIM_DATA_DIR`, else `data`."""
    return Path(os.environ.get("KERASIM_DATA_DIR") or "data").absolute()


def choose(name: str | None, wanted: str) -> str:
    """Returns `name`; without one, `wanted` if `data_dir()` has it, else the embedded "digits"."""
    return name or (wanted if os.path.exists(data_dir() / f"{wanted}.npz") else "digits")


def load(name: str, image_size: int | None = None, dtype: str = "float32") -> Dataset:
    """Loads a data set: from `<name>.npz` in `data_dir()`, else through `keras.datasets`.

    Args:
        name: "digits" (scikit-learn's, always there: 8 x 8 in 17 levels, shown three times as
            large on 32 x 32, the first 1,437 for training, the last 360 for testing), "mnist"
            (28 x 28 x 1) or "cifar10" (32 x 32 x 3).
        image_size: Height and width to pad with black to, such as 32 for MNIST.
        dtype: "float32" in [0, 1], or "uint8" at a quarter of the memory; `ImageBatches` and
            `embed` take both.

    Raises:
        ArtifactError: If the file is damaged, or there is none and it cannot be fetched.
    """
    check_choice("name", name, tuple(_CLASS_NAMES))
    check_choice("dtype", dtype, ("float32", "uint8"))
    parts = _digits() if name == "digits" else _load_npz(name)
    x_train, y_train, x_test, y_test = parts
    images = [_prepare(x, name, image_size, dtype) for x in (x_train, x_test)]
    labels = [y.reshape(-1).astype("int64") for y in (y_train, y_test)]
    return Dataset(images[0], labels[0], images[1], labels[1], list(_CLASS_NAMES[name]))


def _digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    levels = images.reshape(-1, 8, 8) / 16
    # Three times as large and four pixels of margin on each side: 32 x 32.
    large = np.pad(np.kron(levels, np.ones((1, 3, 3))), ((0, 0), (4, 4), (4, 4)))
    return large[:1437], labels[:1437], large[1437:], labels[1437:]


def _load_npz(name):
    path = data_dir() / f"{name}.npz"
    keys = ("x_train", "y_train", "x_test", "y_test")
    if os.path.exists(path):
        arrays = artifacts.read_arrays(path, keys)
        parts = tuple(arrays[key] for key in keys)
    else:
        try:
            (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
        except Exception as error:  # Keras raises a bare Exception when it is offline
            raise ArtifactError(
                f"There is no {path}, and Keras could not fetch {name!r} ({error}). Put a file "
                f"{name}.npz with the arrays {', '.join(keys)} into {path.parent}, or name its "
                "folder in KERASIM_DATA_DIR."
            ) from error
        parts = x_train, y_train, x_test, y_test
    shape = (28, 28) if name == "mnist" else (32, 32, 3)
    for key, part in zip(keys, parts, strict=True):
        fits = (
            part.shape[1:] == shape and part.dtype == np.uint8
            if key[0] == "x"
            else part.dtype.kind in "iu"
        )
        if not fits:
            raise ArtifactError(
                f"{path}: {key} has shape {part.shape} and dtype {part.dtype}; expected uint8 "
                f"images (n, {', '.join(map(str, shape))}) and integer labels. Fetch the file "
                "again."
            )
    for images, labels in (parts[:2], parts[2:]):
        if not (len(images) == labels.size > 0 and labels.min() >= 0 and labels.max() <= 9):
            raise ArtifactError(
                f"{path} has {labels.size} labels for {len(images)} images, or labels outside 0 to "
                "9; expected one for each image. Fetch the file again."
            )
    return parts


def _prepare(x, name, image_size, dtype):
    if x.ndim == 3:
        x = x[..., None]
    if image_size is not None:
        size = check_integer("image_size", image_size, x.shape[1])
        before = (size - x.shape[1]) // 2
        after = size - x.shape[1] - before
        x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    if x.dtype == np.uint8:
        return x if dtype == "uint8" else x.astype("float32") / 255
    return x.astype("float32") if dtype == "float32" else np.rint(x * 255).astype("uint8")


class ImageFolder:
    """The images of a folder, decoded when they are asked for. See `image_folder`.

    Attributes:
        files: Paths, in the order of the images.
        labels: `(n,)` int64, or None if the images lie in no subfolders.
        class_names: A name for each label.
        skipped: `(path, reason)` of each file that is no usable image.
        shape: `(n, height, width, channels)`.
    """

    dtype = np.dtype("float32")
    ndim = 4

    def __init__(self, files, labels, class_names, skipped, size, channels):
        self.files, self.labels, self.class_names = files, labels, class_names
        self.skipped = skipped
        self.shape = (len(files), *size, channels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows) -> np.ndarray:
        """Decodes one image (an integer) or several (a slice or an array of positions)."""
        height, width, channels = self.shape[1:]
        if isinstance(rows, (int, np.integer)):
            return as_float(decode(self.files[rows], (height, width), channels)[0])
        rows = np.arange(len(self))[rows]
        if not len(rows):
            return np.empty((0, *self.shape[1:]), dtype="float32")
        # Pillow decodes outside Python's global lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(self.__getitem__, rows)))


def image_folder(path, image_size, channels: int = 3, on_error: str = "raise", check: bool = True):
    """Lists the images of a folder, or of its subfolders, one for each class.

    Hidden files and the droppings of file managers are left out in silence; other files that
    are no images are listed in `.skipped` with one warning. Links are followed, each real
    file is taken once, and the order does not depend on the locale. Of an animation the first
    frame is taken.

    Args:
        path: Folder of images, or of one subfolder for each class, searched to the bottom.
        image_size: `(height, width)` or one number, to which each image is resized.
        channels: 3 for RGB, 1 for grey.
        on_error: What to do with images that cannot be decoded: "raise" one error that lists
            them, or "skip" them, with a warning, into `.skipped`.
        check: Decode every image once now, so that a damaged one is found before training, and
            warn once of animations. False finds a damaged one only when it is asked for.

    Returns:
        `ImageFolder`: float32 images in [0, 1] by position, slice or array of positions.

    Raises:
        ImageError: If `on_error="raise"` and an image cannot be decoded.
        ArtifactError: If the folder is missing or holds no image.
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    channels = check_channels(channels)
    size = check_size(image_size)
    if size is None:
        raise ArgumentError(
            "image_size=None: images of one batch share a size, pass (height, width)."
        )
    root = artifacts.check_path("path", path)
    if not root.is_dir():
        raise ArtifactError(f"{ascii(str(root))} is not a folder: pass a folder of images.")
    files, skipped = _find_images(root)
    if check:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reasons, animated = zip(*pool.map(_examine, files), strict=True) if files else ((), ())
        bad = [(file, reason) for file, reason in zip(files, reasons, strict=True) if reason]
        if bad and on_error == "raise":
            listed = "\n".join(reason for _, reason in bad[:20])
            raise ImageError(
                f"{len(bad)} of {len(files)} images in {ascii(str(root))} cannot be used; mend or "
                f'remove them, or pass on_error="skip":\n{listed}'
            )
        if any(animated):
            names = _first_names(file for file, more in zip(files, animated, strict=True) if more)
            warnings.warn(
                f"{sum(animated)} files in {ascii(str(root))} have several frames, the first is "
                f"used: {names}.",
                stacklevel=2,
            )
        files = [file for file, reason in zip(files, reasons, strict=True) if not reason]
        skipped += bad
    if not files:
        listed = "".join(f"\n{ascii(str(file))}: {reason}" for file, reason in skipped[:20])
        raise ArtifactError(
            f"No usable image in {ascii(str(root))}: expected files in {', '.join(SUFFIXES)}. "
            f"{len(skipped)} files are left out{':' if skipped else '.'}{listed}"
        )
    if skipped:
        names = _first_names(file for file, _ in skipped)
        warnings.warn(
            f"{len(skipped)} files in {ascii(str(root))} are left out: {names}.", stacklevel=2
        )
    parents = [file.relative_to(root).parts[:-1] for file in files]
    if not all(parents):
        return ImageFolder(files, None, [], skipped, size, channels)
    class_names = sorted({parts[0] for parts in parents}, key=os.fsencode)
    position = {name: label for label, name in enumerate(class_names)}
    labels = np.array([position[parts[0]] for parts in parents], dtype="int64")
    return ImageFolder(files, labels, class_names, skipped, size, channels)


def _find_images(root: Path):
    files, skipped, seen = [], [], set()

    def list_unreadable(error):
        skipped.append((Path(error.filename), f"cannot be listed: {error.strerror}"))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=list_unreadable):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted((name for name in folders if not _is_junk(name)), key=os.fsencode)
        for name in sorted((name for name in names if not _is_junk(name)), key=os.fsencode):
            file = Path(folder, name)
            real = os.path.realpath(file)
            if file.suffix.lower() not in SUFFIXES:
                skipped.append((file, "no image suffix"))
            elif real not in seen:
                seen.add(real)
                files.append(file)
    return sorted(files, key=os.fsencode), skipped


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _first_names(files) -> str:
    return ", ".join(ascii(file.name) for file in list(files)[:5])


def _examine(file) -> tuple[str | None, bool]:
    try:
        return None, decode(file)[1]
    except ImageError as error:
        return str(error), False


def check_shape(name: str, images, shape=(None, None, None)):
    """Returns `images` as an array, or an `ImageFolder` as it is, if its shape is right.

    Args:
        name: Argument that a message names.
        images: Images `(n, height, width, channels)`.
        shape: `(height, width, channels)` that a network takes; None for any.
    """
    if not isinstance(images, ImageFolder):
        try:
            images = np.asarray(images)
        except ValueError as error:  # a list of several sizes
            raise ArgumentError(
                f"{name} cannot be made one array ({error}): resize the images to one size."
            ) from error
    fits = len(images.shape) == 4 and all(
        want in (None, got) and got for want, got in zip(shape, images.shape[1:], strict=True)
    )
    if not fits:
        shown = ", ".join("any" if n is None else str(n) for n in shape)
        raise ArgumentError(
            f"{name} must have shape (n, {shown}): (n, height, width, channels). Received "
            f"{images.shape}: add the axis that is missing or resize the images."
        )
    return images


def check_images(name: str, images):
    """Returns `images` as an array, or an `ImageFolder` as it is, fit for a network.

    Args:
        name: Argument that a message names.
        images: `(n, height, width, channels)`: float in [0, 1], or uint8 in 0..255.

    Raises:
        ArgumentError: On another shape, on NaN, or on floats outside [0, 1] (such as 0..255),
            with the rows.
        ArgumentTypeError: On another dtype.
    """
    images = check_shape(name, images)
    if isinstance(images, ImageFolder) or images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise ArgumentTypeError(
            f"{name} must be float in [0, 1] or uint8. Received dtype {images.dtype}: convert it."
        )
    bad, outside = np.zeros((2, len(images)), dtype=bool)
    for start in range(0, len(images), 1024):
        rows = slice(start, start + 1024)
        low, high = images[rows].min(axis=(1, 2, 3)), images[rows].max(axis=(1, 2, 3))
        bad[rows] = ~(np.isfinite(low) & np.isfinite(high))
        outside[rows] = (low < 0) | (high > 1)
    check_rows(name, bad, "NaN or infinity")
    if outside.any():
        raise ArgumentError(
            f"{name} must lie in [0, 1] if it is float. Received values from {images.min()} to "
            f"{images.max()}, {outside.sum()} rows outside, the first {np.argmax(outside)}: divide "
            "by 255, or pass uint8."
        )
    return images


def add_noise(images, sigma: float, seed: int = 0, clip: bool = True) -> np.ndarray:
    """Adds Gaussian noise.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8.
        sigma: Standard deviation, in units of [0, 1]; 0 or more.
        seed: The same seed draws the same noise.
        clip: Cut the result to [0, 1], as a picture file would be.

    Returns:
        float32 images of the same shape.
    """
    check_number("sigma", sigma, 0)
    images = check_images("images", images)
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    noisy = _add_noise(as_float(images[:]), sigma, rng)
    return np.clip(noisy, 0, 1, out=noisy) if clip else noisy


def _add_noise(images, sigma, rng):
    return images + np.float32(sigma) * rng.standard_normal(images.shape, dtype="float32")


def as_float(images: np.ndarray) -> np.ndarray:
    """Returns uint8 images as float32 in [0, 1], and floats as float32."""
    return (
        images.astype("float32") / 255
        if images.dtype == np.uint8
        else images.astype("float32", copy=False)
    )


class ImageBatches(keras.utils.PyDataset):
    """Batches of images with targets, for `training.fit`.

    Order, noise and flips are a function of `seed`, `epoch` and the position of the batch
    alone; `training.fit` sets `epoch`. Validation batches keep epoch 0 and never redraw.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        targets: What to predict, `(n, ...)`; None for the images themselves.
        batch_size: Images per batch; the last batch may be smaller.
        seed: The same seed gives the same epochs.
        sigma: Noise added to the inputs, never to the targets, clipped to [0, 1].
        flip: Mirror half of the images, left to right; targets too where these are the images.
        shuffle: False keeps the order of `images`.

    Raises:
        ArgumentError: If there are no images, images hold NaN or lie outside [0, 1], or
            targets have another length.
    """

    def __init__(
        self,
        images,
        targets=None,
        batch_size: int = 128,
        seed: int = 0,
        sigma: float = 0.0,
        flip: bool = False,
        shuffle: bool = True,
    ):
        super().__init__()
        self.images = check_images("images", images)
        self.targets = None if targets is None else np.asarray(targets)
        if len(self.images) == 0:
            raise ArgumentError("images is empty: pass one image or more.")
        if self.targets is not None and len(self.targets) != len(self.images):
            raise ArgumentError(
                f"targets has {len(self.targets)} rows, images has {len(self.images)}: pass one "
                "target per image."
            )
        if self.targets is not None and self.targets.dtype.kind == "f":
            rows = self.targets.reshape(len(self.targets), -1)
            check_rows("targets", ~np.isfinite(rows).all(axis=1), "NaN or infinity")
        self.batch_size = check_integer("batch_size", batch_size)
        self.seed = check_integer("seed", seed, 0)
        self.sigma = check_number("sigma", sigma, 0)
        self.flip, self.shuffle = flip, shuffle
        self.epoch = 0
        self._order = (-1, np.arange(len(self.images)))

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index: int):
        rows = self._rows()[index * self.batch_size : (index + 1) * self.batch_size]
        images = as_float(self.images[rows])
        targets = images if self.targets is None else self.targets[rows]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        if self.flip:
            mirrored = rng.random(len(rows)) < 0.5
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
            targets = images if self.targets is None else targets
        if self.sigma:
            images = np.clip(_add_noise(images, self.sigma, rng), 0, 1)
        return images, targets

    def _rows(self):
        if not self.shuffle:
            return self._order[1]
        if self._order[0] != self.epoch:  # one permutation an epoch, not one a batch
            rng = np.random.default_rng([self.seed, self.epoch])
            self._order = (self.epoch, rng.permutation(len(self.images)))
        return self._order[1]

    def settings(self) -> dict:
        """Returns what decides the batches, for `training.fit` to compare on resume."""
        settings = ("batch_size", "seed", "sigma", "flip", "shuffle")
        return {
            "class": type(self).__name__,
            "images": digest(self.images),
            "targets": None if self.targets is None else digest(self.targets),
            **{name: getattr(self, name) for name in settings},
        }


def digest(images) -> str:
    """Returns a digest of an array, or of names, sizes and times of a folder's files."""
    if isinstance(images, ImageFolder):
        rows = [
            (os.fsencode(file), file.stat().st_size, file.stat().st_mtime_ns)
            for file in images.files
        ]
        content = repr((images.shape, rows)).encode()
    else:
        content = np.ascontiguousarray(images).data
    digest = hashlib.sha256(f"{images.shape}{images.dtype}".encode())
    digest.update(content)
    return digest.hexdigest()


def embed(embedder, images, batch_size: int = 256) -> np.ndarray:
    """Embeds images with a model, batch by batch.

    Args:
        embedder: `keras.Model` from images to vectors.
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        batch_size: Images per call.

    Returns:
        `(n, dim)` float32, in the order of `images`.

    Raises:
        ArgumentError: If the images do not fit the model, hold NaN or lie outside [0, 1], or
            if the model gives no vectors or vectors that are not finite.
        ArgumentTypeError: If `embedder` is no model of one input.
    """
    taken: Any = getattr(embedder, "input_shape", None)
    given: Any = getattr(embedder, "output_shape", None)
    if not _is_shape(taken, 4):
        raise ArgumentTypeError(
            "embedder must be a keras.Model of one input, images. Received "
            f"{type(embedder).__name__}, which takes {taken}: pass a model built on one "
            "keras.Input (n, height, width, channels), such as one tower of a pair of them."
        )
    images = check_shape("images", images, taken[1:])
    if not _is_shape(given, 2):
        raise ArgumentError(
            f"embedder must map images to vectors (n, dim). Its output is {given}: "
            'pass the encoder, such as model.get_layer("encoder").'
        )
    if len(images) == 0:
        return np.empty((0, given[-1]), dtype="float32")
    batches = ImageBatches(images, np.zeros(len(images), "int8"), batch_size, shuffle=False)
    embeddings = np.asarray(embedder.predict(batches, verbose=0), dtype="float32")
    check_rows("the embedder's output", ~np.isfinite(embeddings).all(axis=1), "NaN or infinity")
    return embeddings


def _is_shape(shape, rank: int) -> bool:
    """Says whether `shape` is that of one tensor: several inputs have lists or dicts of them."""
    whole = isinstance(shape, tuple) and all(n is None or isinstance(n, int) for n in shape)
    return whole and len(shape) == rank
