"""Batches for training, and embeddings batch by batch."""

from typing import Any

import keras
import numpy as np

from kerasim.data.arrays import check_images, check_shape, digest, gaussian_noise
from kerasim.data.folders import as_float
from kerasim.errors import (
    ArgumentError,
    ArgumentTypeError,
    check_integer,
    check_number,
    check_rows,
)


def _shift(images, steps):
    """Moves each image down and right by its `steps`, (2, n), repeating its edge."""
    down, right = (
        np.clip(np.arange(size) - step[:, None], 0, size - 1)
        for size, step in zip(images.shape[1:3], steps, strict=True)
    )
    return images[np.arange(len(images))[:, None, None], down[:, :, None], right[:, None, :]]


class Batches(keras.utils.PyDataset):
    """What all batches share: rows drawn once an epoch, images gathered and altered by batch.

    A kind of batches says in `_draw` which rows an epoch holds, in `__getitem__` what a batch
    is made of. All is a function of `seed`, `epoch` and the position of the batch alone.
    """

    def __init__(self, images, batch_size, seed, sigma=0.0, flip=False, shift=0):
        super().__init__()
        self.images = check_images("images", images)
        if len(self.images) == 0:
            raise ArgumentError("images is empty: pass one image or more.")
        self.batch_size = check_integer("batch_size", batch_size)
        self.seed = check_integer("seed", seed, 0)
        self.sigma = check_number("sigma", sigma, 0)
        self.flip, self.shift = flip, check_integer("shift", shift, 0)
        self.epoch, self.rows = 0, len(self.images)
        self._drawn = (-1, ())

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def _draw(self, rng) -> tuple[np.ndarray, ...]:
        """Returns the columns of an epoch, each of length `self.rows`."""
        raise NotImplementedError

    def _batch(self, index: int):
        """Returns the columns of a batch, and its generator."""
        if self._drawn[0] != self.epoch:  # once an epoch, not once a batch
            self._drawn = (self.epoch, self._draw(np.random.default_rng([self.seed, self.epoch])))
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rng = np.random.default_rng([self.seed, self.epoch, index])
        return [column[part] for column in self._drawn[1]], rng

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

    def _take(self, rows, rng):
        return self._noise(self._move(as_float(self.images[rows]), rng), rng)

    def settings(self) -> dict:
        """Returns what decides the batches, for `training.fit` to compare on resume."""
        settings = ("batch_size", "seed", "sigma", "flip", "shift")
        return {
            "class": type(self).__name__,
            "images": digest(self.images),
            **{name: getattr(self, name) for name in settings},
        }


class ImageBatches(Batches):
    """Batches of images with targets, for `training.fit`.

    Order, noise, flips and shifts are a function of `seed`, `epoch` and the position of the batch
    alone; `training.fit` sets `epoch`. Validation batches keep epoch 0 and never redraw.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        targets: What to predict, `(n, ...)`; None for the images themselves.
        batch_size: Images per batch; the last batch may be smaller.
        seed: The same seed gives the same epochs.
        sigma: Noise added to the inputs, never to the targets, clipped to [0, 1].
        flip: Mirror half of the images, left to right; targets too where these are the images.
        shift: Move each image by up to this many pixels up, down, left and right, repeating its
            edge; targets likewise.
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
        shift: int = 0,
        shuffle: bool = True,
    ):
        super().__init__(images, batch_size, seed, sigma, flip, shift)
        self.targets = None if targets is None else np.asarray(targets)
        if self.targets is not None and len(self.targets) != len(self.images):
            raise ArgumentError(
                f"targets has {len(self.targets)} rows, images has {len(self.images)}: pass one "
                "target per image."
            )
        if self.targets is not None and self.targets.dtype.kind == "f":
            rows = self.targets.reshape(len(self.targets), -1)
            check_rows("targets", ~np.isfinite(rows).all(axis=1), "NaN or infinity")
        self.shuffle = shuffle

    def _draw(self, rng):
        return (rng.permutation(self.rows) if self.shuffle else np.arange(self.rows),)

    def __getitem__(self, index: int):
        (rows,), rng = self._batch(index)
        images = self._move(as_float(self.images[rows]), rng)
        targets = images if self.targets is None else self.targets[rows]
        return self._noise(images, rng), targets

    def settings(self) -> dict:
        targets = None if self.targets is None else digest(self.targets)
        return {**super().settings(), "targets": targets, "shuffle": self.shuffle}


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
