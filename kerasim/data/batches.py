"""Batches for training, and embeddings batch by batch."""

import contextlib
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from tqdm import tqdm

from kerasim import artifacts, checks
from kerasim.data.arrays import check_embedder, check_images, check_shape, digest, gaussian_noise
from kerasim.data.folders import in_threads
from kerasim.errors import ArgumentError, ArgumentTypeError, ImageError
from kerasim.images import as_float, read_image


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
        self.batch_size = checks.integer("batch_size", batch_size)
        self.seed = checks.integer("seed", seed, 0)
        self.sigma = checks.number("sigma", sigma, 0)
        self.flip, self.shift = checks.flag("flip", flip), checks.integer("shift", shift, 0)
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
        """Returns images as floats; keeps the error of a file for `clear_errors`."""
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
        arrays = {name: digest(x) for name, x in values.items() if hasattr(x, "dtype")}
        return {"class": type(self).__name__, **values, **arrays}


@contextlib.contextmanager
def clear_errors(*batches, kept: Callable[[], str] = str):
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
        mend = (
            f"pass a smaller batch_size, such as {max(1, (size or 2) // 2)} (in training with "
            "another run_dir), or a smaller model"
        )
        what = f"batch_size={size} needs more memory than is available{kept()}"
        raise ArgumentError(f"{what}: {mend}.") from None


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
            targets = checks.each("targets", targets, len(self.images), "images")
            if targets.dtype.kind not in "fiub":
                mend = "Number the classes, as np.unique(labels, return_inverse=True)[1] does"
                raise ArgumentTypeError(f"targets must be numbers, not {targets.dtype}. {mend}.")
            checks.finite("targets", targets)
        self.targets = targets
        self.shuffle = checks.flag("shuffle", shuffle)

    def _draw(self, rng):
        return (rng.permutation(self.rows) if self.shuffle else np.arange(self.rows),)

    def __getitem__(self, index: int):
        (rows,), rng = self._batch(index)
        images = self._move(self._read(rows), rng)
        targets = images if self.targets is None else self.targets[rows]
        return self._noise(images, rng), targets


# From so many whole batches on, TensorFlow's graph of a network saves more than tracing it costs.
# Each trace also counts towards TensorFlow's warning of too many of them.
_GRAPH_BATCHES = 8

# Work shorter than this, in seconds, shows no progress bar.
_BAR_DELAY = 2.0


def embed(
    embedder, images, batch_size: int = 256, cache=None, progress: bool | None = None
) -> np.ndarray:
    """Embeds images with a model, batch by batch.

    Args:
        embedder: `keras.Model` from images to vectors.
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        batch_size: Images per call.
        cache: Folder that keeps the embeddings, and gives them back as long as the network, its
            weights and the images (of a folder: names and contents of its files) are the same.
        progress: True for a progress bar on stderr if the work takes more than two seconds, False
            for none; None for one in a terminal.

    Returns:
        `(n, dim)` float32, in the order of `images`.

    Raises:
        ArgumentError: If the images do not fit the model, hold NaN or lie outside [0, 1], or
            if the model gives no vectors or vectors that are not finite.
        ArgumentTypeError: If `embedder` is no model of one input.
        ArtifactError: If the cache is damaged or cannot be written.
    """
    if isinstance(images, keras.Model) and not isinstance(embedder, keras.Model):
        what = "embedder and images are in the wrong order"
        raise ArgumentTypeError(f"{what}: call embed(embedder, images), with the model first.")
    shape, dim = check_embedder("embedder", embedder)
    images = check_shape("images", images, shape)
    checks.integer("batch_size", batch_size)
    if progress is not None:
        progress = checks.flag("progress", progress)
    if len(images) == 0:
        return np.empty((0, dim), dtype="float32")
    if cache is not None:
        key = hashlib.sha256(f"{artifacts.fingerprint(embedder)}{digest(images)}".encode())
        kept = artifacts.check_path("cache", cache) / key.hexdigest()[:32]
        if not artifacts.exists(kept):
            embeddings = embed(embedder, images, batch_size, progress=progress)
            artifacts.write(kept, "embeddings", lambda f: np.savez(f / "x.npz", x=embeddings))
        return artifacts.read(kept, "embeddings", _load)
    batches = ImageBatches(images, np.zeros(len(images), "int8"), batch_size, shuffle=False)
    # Several devices share whole batches only; they can all embed each image instead.
    shared = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        with clear_errors(batches):
            embeddings = _embed_batches(embedder, batches, progress)
    finally:
        keras.distribution.set_distribution(shared)
    checks.finite("the embedder's output", embeddings)
    return embeddings


def _embed_batches(embedder, batches, progress) -> np.ndarray:
    """Returns the embeddings of all images of `batches`, float32."""
    hidden = None if progress is None else not progress  # tqdm takes None for "in a terminal only"
    traced = _traces(embedder, batches.rows // batches.batch_size)
    found = []
    with tqdm(total=batches.rows, unit="image", disable=hidden, delay=_BAR_DELAY) as bar:
        for images in _ahead(batches):
            whole = len(images) == batches.batch_size
            if traced == "always" or traced == "whole batches" and whole:
                vectors = np.asarray(embedder.predict_on_batch(images))[: len(images)]
            else:
                vectors = _call(embedder, images)
            found.append(vectors.astype("float32", copy=False))
            bar.update(len(images))
    return np.concatenate(found)


def _traces(embedder, whole_batches: int) -> str:
    """Returns which batches run through a compiled function: "always", "whole batches" or "never".

    A last, smaller batch would be traced anew. JAX is slow without a compiled function, several
    devices share batches by it, and a network with its own `predict_step` needs it.
    """
    strategy = getattr(embedder, "distribute_strategy", None)
    shared = strategy is not None and strategy.num_replicas_in_sync > 1
    own_step = type(embedder).predict_step is not keras.Model.predict_step
    if keras.backend.backend() != "tensorflow" or shared or own_step:
        return "always"
    return "whole batches" if whole_batches >= _GRAPH_BATCHES else "never"


def _call(embedder, images) -> np.ndarray:
    """Returns the embeddings of one batch, without tracing a function."""
    return np.asarray(keras.ops.convert_to_numpy(embedder(images, training=False)))


def predict(model, batches) -> np.ndarray:
    """Returns what `model` gives for each of `batches`, its inputs, as `model.predict` would.

    On TensorFlow that reads them through tf.data, whose tuner sleeps for 10 ms, then for twice as
    long each time, and can miss being told to stop: then three seconds of work take five.
    """
    found = []
    for batch in batches:
        rows = len(keras.tree.flatten(batch)[0])
        found.append(np.asarray(model.predict_on_batch(batch))[:rows])  # of the first device
    return np.concatenate(found)


def _ahead(batches):
    """Yields the inputs of each batch, while a thread draws the next one."""
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(batches.__getitem__, 0)
        for n in range(1, len(batches) + 1):
            images, _ = drawn.result()
            if n < len(batches):
                drawn = pool.submit(batches.__getitem__, n)
            yield images


def embed_folder(embedder, images, batch_size: int = 256) -> tuple[np.ndarray, list[str]]:
    """Embeds files of which some may be damaged.

    Args:
        embedder: `keras.Model` from images to vectors.
        images: `ImageFolder`; all its images are held at once, as uint8.
        batch_size: Images per call.

    Returns:
        `(vectors, reasons)`, in the order of `images`: `(n, dim)` float32, NaN for a file that
        cannot be decoded, and what is wrong with each file, or "".

    Raises:
        ArgumentError: As `embed`.
        ArgumentTypeError: As `embed`.
    """
    shape, dim = check_embedder("embedder", embedder)
    height, width, channels = check_shape("images", images, shape).shape[1:]

    def decode(file):
        try:
            return read_image(file, (height, width), channels, "uint8")
        except ImageError as error:
            return str(error)

    decoded = in_threads(decode, images.files)
    reasons = [found if isinstance(found, str) else "" for found in decoded]
    good = [n for n, reason in enumerate(reasons) if not reason]
    vectors = np.full((len(decoded), dim), np.nan, "float32")
    if good:
        vectors[good] = embed(
            embedder, np.stack([decoded[n] for n in good]), batch_size, None, False
        )
    return vectors, reasons


def _load(folder, manifest):
    return artifacts.read_arrays(folder / "x.npz", ("x",))["x"]
