"""Batches for training, and embeddings batch by batch."""

import contextlib
from collections.abc import Callable

import keras
import numpy as np

from kerasim import _checks
from kerasim._content import content_hash
from kerasim._image_checks import check_images
from kerasim.data._noise import gaussian_noise
from kerasim.errors import ArgumentError, ArgumentTypeError, ImageError
from kerasim.images import as_float


def _shift(images, steps):
    """Moves each image down and right by its `steps`, (2, n), repeating its edge."""
    height, width = images.shape[1:3]
    down = np.clip(np.arange(height) - steps[0][:, None], 0, height - 1)
    right = np.clip(np.arange(width) - steps[1][:, None], 0, width - 1)
    return images[np.arange(len(images))[:, None, None], down[:, :, None], right[:, None, :]]


class Batches(keras.utils.PyDataset):
    """What all batches share: rows drawn once an epoch, images gathered and altered by batch.

    A kind of batches says in `_draw` which rows an epoch holds, if not each once in a new order,
    in `__getitem__` what a batch is made of. All is a function of `seed`, `epoch` and the position
    of the batch alone.
    """

    failure: ImageError | None = None  # why a file could not be read
    _what = "images"  # their name in messages
    _own: tuple[str, ...] = ()  # what decides the batches of one kind, beside what all kinds have

    def __init__(self, images, batch_size=128, seed=0, sigma=0.0, flip=False, shift=0):
        super().__init__()
        self.images = check_images(self._what, images)
        if len(self.images) == 0:
            raise ArgumentError(f"{self._what} is empty: pass one image or more.")
        self.batch_size = _checks.integer("batch_size", batch_size)
        self.seed = _checks.integer("seed", seed, 0)
        self.sigma = _checks.number("sigma", sigma, 0)
        self.flip, self.shift = _checks.flag("flip", flip), _checks.integer("shift", shift, 0)
        self.epoch, self.rows = 0, len(self.images)
        # Two threads of Keras's own draw batches in order, without the tuner that `predict` below
        # tells of; at the end of an epoch they cost 0.1 s. On JAX, which has no tuner, Keras 3.15
        # would begin the first epoch with its second batch; so it would on several devices, which
        # `training.fit` hands batches by one thread.
        many = keras.backend.backend() == "tensorflow" and len(self) > 50
        self.workers, self.max_queue_size = 1 + many, 4
        self._drawn = (-1, ())

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def _draw(self, rng) -> tuple[np.ndarray, ...]:
        """Returns the columns of an epoch, each of length `self.rows`."""
        return (rng.permutation(self.rows),)

    def _batch(self, index: int):
        """Returns the columns of a batch, and its generator."""
        # Threads of an interrupted epoch may still draw: each keeps to the epoch it began with.
        epoch, drawn = self.epoch, self._drawn
        if drawn[0] != epoch:  # once an epoch, not once a batch
            drawn = (epoch, self._draw(np.random.default_rng([self.seed, epoch])))
            self._drawn = drawn
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rng = np.random.default_rng([self.seed, epoch, index])
        return [column[part] for column in drawn[1]], rng

    def _move(self, images, rng):
        """Flips and shifts float images as the settings say."""
        if self.flip:
            mirrored = rng.random(len(images)) < 0.5
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        if self.shift:
            images = _shift(images, rng.integers(-self.shift, self.shift + 1, (2, len(images))))
        return images

    def _noise(self, images, rng):
        return np.clip(gaussian_noise(images, self.sigma, rng), 0, 1) if self.sigma else images

    def _read(self, rows, images=None):
        """Returns images as floats; keeps the error of a file for `translate_errors`."""
        try:
            return as_float((self.images if images is None else images)[rows])
        except ImageError as error:
            self.failure = error
            raise

    def _take(self, rows, rng, images=None):
        return self._noise(self._move(self._read(rows, images), rng), rng)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        dtype = getattr(self.images, "dtype", "")
        parts = [f"{len(self.images)} images of {shape} {dtype}".rstrip()]
        parts.append(f"{len(self)} batches of {self.batch_size} per epoch, seed={self.seed}")
        changed = {"sigma": self.sigma, "flip": self.flip, "shift": self.shift}
        parts += [f"{name}={value}" for name, value in changed.items() if value]
        parts += [f"{name}={value!r}" for name, value in self._shown().items()]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _shown(self) -> dict:
        """Returns the own settings of a kind of batches that are short enough for its `repr`."""
        short = (bool, int, float, str, tuple)
        values = {name: getattr(self, name) for name in self._own if name != "rows"}
        return {
            name: value
            for name, value in values.items()
            if isinstance(value, short) or hasattr(value, "alphas_cumprod")
        }

    def settings(self) -> dict:
        """Returns what decides the batches, for `training.fit` to compare on resume."""
        shared = ("images", "batch_size", "seed", "sigma", "flip", "shift")
        values = {name: getattr(self, name) for name in (*shared, *self._own)}
        arrays = {name: content_hash(x) for name, x in values.items() if hasattr(x, "dtype")}
        return {"class": type(self).__name__, **values, **arrays}


@contextlib.contextmanager
def translate_errors(*batches, kept: Callable[[], str] = str):
    """Says in our words what Keras and its backend say in theirs while they run over `batches`.

    Raises:
        ImageError: If a file could not be read; a backend makes an error of its own of it.
        ArgumentError: If memory ran out; `kept` says what is left of the work.
    """
    ours = [of for of in batches if isinstance(of, Batches)]
    for of in ours:
        of.failure = None
    try:
        yield
    except Exception as error:
        for of in ours:
            if of.failure is not None:
                raise of.failure from None
        said = f"{type(error).__name__} {error}".lower().replace("_", "")
        if not any(sign in said for sign in ("memoryerror", "resourceexhausted", "out of memory")):
            raise
        size = getattr(batches[0], "batch_size", None)
        raise ArgumentError(
            f"batch_size={size} needs more memory than is available{kept()}: pass a "
            f"smaller batch_size, such as {max(1, (size or 2) // 2)} (in training with "
            "another run_dir), or a smaller model."
        ) from None


class ImageBatches(Batches):
    """Batches of images with targets, for `training.fit`.

    A batch is `(images, targets)`: float32 `(batch, height, width, channels)` in [0, 1], and what
    to make of each.

    Order, noise, flips and shifts are a function of `seed`, `epoch` and the position of the batch
    alone; `training.fit` sets `epoch`. Validation batches keep epoch 0 and never redraw.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        targets: What to predict, `(n, ...)`; None for the images themselves.
        batch_size: Images per batch; the last batch may be smaller.
        seed: The same seed gives the same epochs.
        shuffle: False keeps the order of `images`.
        sigma: By keyword, 0.0: standard deviation of Gaussian noise, in units of [0, 1], added to
            the inputs, never to the targets; the sum is cut to [0, 1].
        flip: By keyword, False: mirror half of the images, left to right; targets too where these
            are the images.
        shift: By keyword, 0: move each image by up to this many pixels up, down, left and right,
            repeating its edge; targets likewise.

    Raises:
        ArgumentError: If there are no images, images hold NaN or lie outside [0, 1],
            targets have another length, or a number is out of range.
        ArgumentTypeError: If targets are strings or objects.
    """

    _own = ("targets", "shuffle")

    def __init__(
        self, images, targets=None, batch_size: int = 128, seed: int = 0, shuffle: bool = True, **of
    ):
        super().__init__(images, batch_size, seed, **of)
        if targets is not None:
            targets = _checks.each("targets", targets, len(self.images), "images")
            if targets.dtype.kind not in "fiub":
                raise ArgumentTypeError(
                    f"targets must be numbers, not {targets.dtype}. Number the classes, as "
                    "np.unique(labels, return_inverse=True)[1] does."
                )
            _checks.finite("targets", targets)
        self.targets = targets
        self.shuffle = _checks.flag("shuffle", shuffle)

    def _draw(self, rng):
        return (rng.permutation(self.rows) if self.shuffle else np.arange(self.rows),)

    def __getitem__(self, index: int):
        (rows,), rng = self._batch(index)
        images = self._move(self._read(rows), rng)
        targets = images if self.targets is None else self.targets[rows]
        return self._noise(images, rng), targets
