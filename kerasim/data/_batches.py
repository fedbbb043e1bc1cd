"""The base classes of batches, and batches of images with targets."""

import contextlib
from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._content import content_hash
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images
from kerasim.data._augmentation import Augment, Augmentation
from kerasim.data._noise import noisy_images
from kerasim.errors import ArgumentError, ArgumentTypeError, ImageError
from kerasim.images import as_float


def _shift(images, steps):
    """Shifts each image down and right by its `steps`, `(2, n)`, repeating its edge."""
    height, width = images.shape[1:3]
    down = np.clip(np.arange(height) - steps[0][:, None], 0, height - 1)
    right = np.clip(np.arange(width) - steps[1][:, None], 0, width - 1)
    return images[np.arange(len(images))[:, None, None], down[:, :, None], right[:, None, :]]


# With one worker, `fit` reads through tf.data, whose tuner can delay the end of an epoch by most of
# the time that the epoch took. Two workers avoid the tuner and cost 0.1 s an epoch instead, which
# is less from about this number of batches on.
_MANY_BATCHES = 50


def _worker_count(batches: int) -> int:
    """Returns the number of threads in which Keras draws batches; the order is the same.

    JAX has no such tuner, and with two threads Keras 3.15 would begin the first epoch there with
    the second batch. For the same reason `training.fit` uses one thread for several devices.
    """
    return 2 if keras.backend.backend() == "tensorflow" and batches > _MANY_BATCHES else 1


class SeededBatches(keras.utils.PyDataset):
    """Base of all batches: draws rows once an epoch, then gathers them batch by batch.

    Everything is a function of `seed`, `epoch` and the index of the batch alone. A subclass defines
    `__getitem__`, which returns a batch, and `_epoch_indices` unless an epoch is a permutation of
    all rows.

    Args:
        rows: Rows of an epoch, such as images or pairs.
        batch_size: Rows per batch.
        seed: The same seed gives the same epochs.
    """

    # The attributes of a subclass that determine its batches, besides those of its base.
    _config_keys: tuple[str, ...] = ()

    def __init__(self, rows: int, batch_size, seed):
        super().__init__()
        self.batch_size = _checks.integer("batch_size", batch_size)
        self.seed = _checks.integer("seed", seed, 0)
        self.epoch = 0
        self.rows = rows
        self.workers = _worker_count(len(self))
        self.max_queue_size = 4
        self._drawn = (-1, ())

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def _epoch_indices(self, rng) -> tuple[np.ndarray, ...]:
        """Returns the columns of an epoch, such as positions of images, each of `self.rows`."""
        return (rng.permutation(self.rows),)

    def _batch_indices(self, index: int):
        """Returns the part of the columns that a batch holds, and the generator of its noise."""
        # Threads of an interrupted epoch may still draw: each keeps to the epoch it began with.
        epoch, drawn = self.epoch, self._drawn
        if drawn[0] != epoch:  # once an epoch, not once a batch
            drawn = (epoch, self._epoch_indices(np.random.default_rng([self.seed, epoch])))
            self._drawn = drawn
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rng = np.random.default_rng([self.seed, epoch, index])
        return [column[part] for column in drawn[1]], rng

    def _settings_of(self, *names: str) -> dict:
        """Returns the class and these attributes by name, with a digest in place of arrays."""
        values = {name: getattr(self, name) for name in names}
        arrays = {name: content_hash(x) for name, x in values.items() if hasattr(x, "dtype")}
        return {"class": type(self).__name__, **values, **arrays}

    def settings(self) -> dict:
        """Returns what determines the batches, for `training.fit` to compare on resume."""
        return self._settings_of("batch_size", "seed", *self._config_keys)


class Batches(SeededBatches):
    """Base of batches of images, which are augmented as they are gathered."""

    # The error of a file or of `augment` in a thread of Keras, for `translate_errors`.
    failure: Exception | None = None
    # The name of the argument `images` in messages.
    _arg_name = "images"

    def __init__(self, images, batch_size, seed, sigma, flip, shift, augment):
        images = check_images(self._arg_name, images)
        if len(images) == 0:
            raise ArgumentError(f"{self._arg_name} is empty: pass one image or more.")
        super().__init__(len(images), batch_size, seed)
        self.images = images
        self.sigma = _checks.number("sigma", sigma, 0)
        self.flip = _checks.boolean("flip", flip)
        self.shift = _checks.integer("shift", shift, 0)
        self.augment = Augmentation(augment)

    def _refuse_mixing(self, why: str) -> None:
        """Raises if `augment` mixes the images of a batch, whose targets cannot be mixed."""
        if self.augment.mixes:
            raise ArgumentError(
                f"augment={self.augment} mixes images, but {why}. Leave MixUp and CutMix out."
            )

    def _flip_and_shift(self, images, rng):
        if self.flip:
            mirrored = rng.random(len(images)) < 0.5
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        if self.shift:
            images = _shift(images, rng.integers(-self.shift, self.shift + 1, (2, len(images))))
        return images

    def _augment(self, images, rng):
        """Applies `flip`, `shift` and `augment` to float images."""
        return self._apply_steps(self._flip_and_shift(images, rng), rng)[0]

    def _apply_steps(self, images, rng, targets=None):
        """Applies `augment` to images and their targets; keeps an error for `translate_errors`."""
        try:
            return self.augment(images, rng, targets)
        except Exception as error:
            self.failure = error
            raise

    def _add_noise(self, images, rng):
        return noisy_images(images, self.sigma, rng, clip=True) if self.sigma else images

    def _as_float(self, rows, images=None):
        """Returns the images at `rows` as floats; keeps an error for `translate_errors`."""
        try:
            return as_float((self.images if images is None else images)[rows])
        except ImageError as error:
            self.failure = error
            raise

    def _augmented(self, rows, rng, images=None):
        return self._add_noise(self._augment(self._as_float(rows, images), rng), rng)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        dtype = getattr(self.images, "dtype", "")
        parts = [f"{len(self.images)} images of {shape} {dtype}".rstrip()]
        parts.append(f"{len(self)} batches of {self.batch_size} per epoch, seed={self.seed}")
        changed = {"sigma": self.sigma, "flip": self.flip, "shift": self.shift}
        changed["augment"] = self.augment if self.augment.steps else None
        parts += [f"{name}={value}" for name, value in changed.items() if value]
        parts += [f"{name}={value!r}" for name, value in self._shown().items()]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _shown(self) -> dict:
        """Returns the settings of a subclass that are short enough for its `repr`."""
        short = (bool, int, float, str, tuple)
        values = {name: getattr(self, name) for name in self._config_keys if name != "rows"}
        return {
            name: value
            for name, value in values.items()
            if isinstance(value, short) or hasattr(value, "alphas_cumprod")
        }

    def settings(self) -> dict:
        """Returns what determines the batches, for `training.fit` to compare on resume."""
        shared = ("images", "batch_size", "seed", "sigma", "flip", "shift")
        settings = self._settings_of(*shared, *self._config_keys)
        return {**settings, "augment": self.augment.settings()}


def pair_groups(groups, n: int, unit: str) -> np.ndarray:
    """Returns the groups of both sides of `n` pairs, numbered from 0, float32 `(n, 2)`.

    Args:
        groups: `(n,)` or `(n, 2)` integers or strings; None for a group of its own for each pair.
        n: Number of pairs.
        unit: What a side of the pairs holds, such as "images".
    """
    groups = np.arange(n) if groups is None else _checks.labels("groups", groups, None, "pairs")
    if groups.shape not in ((n,), (n, 2)):
        raise ArgumentError(
            f"groups has shape {groups.shape}, left has {n} {unit}: pass (n,), one per pair, or "
            "(n, 2), one per side."
        )
    numbers = np.unique(groups, return_inverse=True)[1].reshape(n, -1)
    # Losses get float32, in which integers are exact up to 2**24.
    return np.broadcast_to(numbers, (n, 2)).astype("float32")


@contextlib.contextmanager
def translate_errors(*batches, kept: Callable[[], str] = str):
    """Translates errors that Keras and its backend raise while they process `batches`.

    Raises:
        ImageError: If a file could not be read; the backend reports only an error of its own.
        Exception: Likewise, what `augment` raised.
        ArgumentError: If memory ran out; `kept` returns what is left of the work, for the message.
    """
    watched = [each for each in batches if isinstance(each, Batches)]
    for each in watched:
        each.failure = None
    try:
        yield
    except Exception as error:
        out_of_memory = _checks.is_out_of_memory(error)
        for each in watched:
            if each.failure is not None and not out_of_memory:
                raise each.failure from None
        if not out_of_memory:
            raise
        size = getattr(batches[0], "batch_size", None)
        raise ArgumentError(
            f"batch_size={size} needs more memory than is available{kept()}: pass a "
            f"smaller batch_size, such as {max(1, (size or 2) // 2)} (in training with "
            "another run_dir), or a smaller model."
        ) from None


def _are_shares(targets) -> bool:
    """Returns whether each row of `targets` has a share, 0 to 1, for each of several classes."""
    shape = targets.shape
    return len(shape) == 2 and shape[1] > 1 and targets.min() >= 0 and targets.max() <= 1


class ImageBatches(Batches):
    """Batches of images with targets, for `training.fit`.

    A batch is `(images, targets)`: float32 `(batch, height, width, channels)` in [0, 1], and the
    targets of these images.

    Order, noise and augmentation are a function of `seed`, `epoch` and the index of the batch;
    `training.fit` sets `epoch`. Validation batches keep epoch 0, so that they are the same in each
    epoch.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        targets: Numbers to predict, `(n, ...)`; None for the images themselves.
        batch_size: Images per batch; the last batch may be smaller.
        seed: The same seed gives the same epochs.
        shuffle: False keeps the order of `images`.
        sigma: Standard deviation of Gaussian noise, in units of [0, 1], added to the inputs, never
            to the targets; the sum is clipped to [0, 1].
        flip: Mirror half of the images, left to right. Applies to the targets, too, if they are
            the images.
        shift: Shift each image by up to this many pixels up, down, left and right, repeating its
            edge. Applies to the targets, too, if they are the images.
        augment: Layer of Keras such as `keras.layers.RandAugment()`, function `augment(images,
            rng)`, or list of these, applied after `flip` and `shift` and before the noise. Applies
            to the targets, too, if they are the images.

            A layer gets images in its `value_range`, or in [0, 1] if it has none, and computes in
            float32 even if it was built under a policy such as "mixed_bfloat16". It may return
            another height and width. Its own seed is not used, so that each batch depends on
            `seed`, `epoch` and its index alone. Some layers draw once for a whole batch:
            `RandomCrop` its position, `RandAugment` its operations. `MixUp` and `CutMix` need
            one-hot targets `(n, classes)`, and mix them like the images.

            A function gets float32 images in [0, 1] and a `numpy.random.Generator`, from which it
            must draw all random numbers, and returns as many images in [0, 1].

    Raises:
        ArgumentError: If there are no images, images hold NaN or lie outside [0, 1], targets have
            another length, or a number is out of range; or if `augment` mixes images whose targets
            are not one-hot, fails on images of this shape, or returns images of another range.
        ArgumentTypeError: If targets are strings or objects, or `augment` contains what is neither
            a layer nor a function.

    Example:
        >>> images = np.random.default_rng(0).random((100, 16, 16, 1))
        >>> batches = ImageBatches(images, batch_size=32, flip=True)
        >>> len(batches)
        4
        >>> inputs, targets = batches[0]
        >>> inputs.shape
        (32, 16, 16, 1)
        >>> augmented = ImageBatches(images, augment=keras.layers.RandomRotation(0.1))
        >>> augmented[0][0].shape
        (100, 16, 16, 1)
    """

    _config_keys = ("targets", "shuffle")

    def __init__(
        self,
        images: ArrayLike | ImageFolder,
        targets: ArrayLike | None = None,
        batch_size: int = 128,
        seed: int = 0,
        shuffle: bool = True,
        *,
        sigma: float = 0.0,
        flip: bool = False,
        shift: int = 0,
        augment: Augment | None = None,
    ):
        super().__init__(images, batch_size, seed, sigma, flip, shift, augment)
        if targets is not None:
            targets = _checks.same_length("targets", targets, len(self.images), "images")
            if targets.dtype.kind not in "fiub":
                raise ArgumentTypeError(
                    f"targets must be numbers, not {targets.dtype}. Number the classes with "
                    "np.unique(labels, return_inverse=True)[1]."
                )
            _checks.finite("targets", targets)
            if not _are_shares(targets):
                self._refuse_mixing(
                    f"targets {targets.shape} are not one-hot rows, such as "
                    "keras.utils.to_categorical(labels)"
                )
        self.targets = targets
        self.shuffle = _checks.boolean("shuffle", shuffle)

    def _epoch_indices(self, rng):
        return (rng.permutation(self.rows) if self.shuffle else np.arange(self.rows),)

    def __getitem__(self, index: int):
        (rows,), rng = self._batch_indices(index)
        images = self._flip_and_shift(self._as_float(rows), rng)
        targets = None if self.targets is None else self.targets[rows]
        images, targets = self._apply_steps(images, rng, targets)
        return self._add_noise(images, rng), images if targets is None else targets
