"""Loads embedders and applies them to images.

An embedder is a `keras.Model` that maps images to vectors. `load_embedder` reads one from a file
without running code that the file may hold; `embed` applies one to images, batch by batch. `pixels`
returns the images themselves as vectors, the baseline that an embedder must beat.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from kerasim import _artifacts, _checks, _keras_files, _model_identity
from kerasim._content import content_hash
from kerasim._folders import ImageFolder, thread_map
from kerasim._image_checks import check_embedder, check_images, check_shape
from kerasim.data._batches import ImageBatches, translate_errors
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError
from kerasim.images import as_float, read_image

__all__ = ["embed", "embed_folder", "load_embedder", "pixels"]

# From this number of whole batches on, TensorFlow's graph of a network saves more time than tracing
# it costs. Each trace also counts towards TensorFlow's warning of too many traces.
_GRAPH_BATCHES = 8

# Work shorter than this, in seconds, shows no progress bar.
_BAR_DELAY = 2.0


def embed(
    embedder: keras.Model,
    images: ArrayLike | ImageFolder,
    batch_size: int = 256,
    cache: Path | str | None = None,
    progress: bool | None = None,
    flip: bool = False,
) -> np.ndarray:
    """Embeds images with a model, batch by batch.

    Args:
        embedder: `keras.Model` from images to vectors.
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        batch_size: Images per call of the embedder.
        cache: Folder in which the embeddings are stored. A later call with the same embedder,
            weights and images (for an `ImageFolder`, the same names and contents of files) reads
            them instead of computing them. None stores nothing.
        progress: True shows a progress bar on stderr if the work takes more than two seconds, False
            shows none, None shows one in a terminal only.
        flip: True for the mean of the embeddings of each image and of its mirror image (test-time
            augmentation), which takes twice the time. It helps with photographs, not with digits
            or text.

    Returns:
        `(n, dim)` float32, in the order of `images`.

    Raises:
        ArgumentError: If the images do not fit the model, hold NaN or lie outside [0, 1], or
            if the model does not return vectors, or returns NaN or infinity.
        ArgumentTypeError: If `embedder` is not a model with one input.
        ArtifactError: If the cache is damaged or cannot be written.

    Example:
        >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> embed(embedder, np.zeros((3, 8, 8, 1))).shape
        (3, 64)
    """
    if isinstance(images, keras.Model) and not isinstance(embedder, keras.Model):
        raise ArgumentTypeError(
            "embedder and images are in the wrong order: call embed(embedder, images), "
            "with the model first."
        )
    shape, dim = check_embedder("embedder", embedder)
    images = check_shape("images", images, shape)
    _checks.integer("batch_size", batch_size)
    if progress is not None:
        progress = _checks.boolean("progress", progress)
    flip = _checks.boolean("flip", flip)
    if len(images) == 0:
        return np.empty((0, dim), dtype="float32")
    if cache is not None:
        key = hashlib.sha256(
            f"{_model_identity.fingerprint(embedder)}{content_hash(images)}".encode()
            + b"flip" * flip
        )
        kept = _artifacts.check_path("cache", cache) / key.hexdigest()[:32]
        if not _artifacts.exists(kept):
            embeddings = embed(embedder, images, batch_size, None, progress, flip)
            _artifacts.write(kept, "embeddings", lambda f: np.savez(f / "x.npz", x=embeddings))
        return _artifacts.read(kept, "embeddings", _load)
    batches = ImageBatches(images, np.zeros(len(images), "int8"), batch_size, shuffle=False)
    # Several devices share whole batches only; they can all embed each image instead.
    shared = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        with translate_errors(batches):
            embeddings = _embed_batches(embedder, batches, progress, flip)
    finally:
        keras.distribution.set_distribution(shared)
    _checks.finite("the embedder's output", embeddings)
    return embeddings


def _embed_batches(embedder, batches, progress, flip) -> np.ndarray:
    """Returns the embeddings of all images of `batches`, float32; with `flip` as `embed`."""
    hidden = None if progress is None else not progress  # tqdm takes None for "in a terminal only"
    traced = _traces(embedder, batches.rows // batches.batch_size)

    def compute(images):
        whole = len(images) == batches.batch_size
        if traced == "always" or traced == "whole batches" and whole:
            return np.asarray(embedder.predict_on_batch(images))[: len(images)]
        return _call(embedder, images)

    found = []
    with tqdm(total=batches.rows, unit="image", disable=hidden, delay=_BAR_DELAY) as bar:
        for images in _ahead(batches):
            vectors = compute(images)
            if flip:
                vectors = (vectors + compute(images[:, :, ::-1])) / 2
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


def _ahead(batches):
    """Yields the images of each batch, while a thread draws the next one."""
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(batches.__getitem__, 0)
        for n in range(1, len(batches) + 1):
            images, _ = drawn.result()
            if n < len(batches):
                drawn = pool.submit(batches.__getitem__, n)
            yield images


def pixels(images: ArrayLike | ImageFolder) -> np.ndarray:
    """Returns images as vectors of their pixels: the baseline that an embedder must beat.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.

    Returns:
        `(n, height * width * channels)` float32 in [0, 1].

    Raises:
        ArgumentError: If the images have another number of axes, hold NaN or lie outside [0, 1].
        ArgumentTypeError: If they are neither float nor uint8.

    Example:
        >>> pixels(np.full((3, 8, 8, 1), 255, "uint8")).shape
        (3, 64)
    """
    images = check_images("images", images)
    return as_float(images[:]).reshape(len(images), int(np.prod(images.shape[1:])))


def embed_folder(
    embedder: keras.Model, images: ImageFolder, batch_size: int = 256
) -> tuple[np.ndarray, list[str]]:
    """Embeds the images of a folder, and reports files that cannot be decoded.

    Args:
        embedder: `keras.Model` from images to vectors.
        images: `ImageFolder`. All its images are held in memory at once, as uint8.
        batch_size: Images per call of the embedder.

    Returns:
        `(vectors, reasons)`, in the order of `images`. `vectors` is `(n, dim)` float32, with NaN
        for a file that cannot be decoded. `reasons` holds the error message of each such file, and
        "" for the others.

    Raises:
        ArgumentError: If the image size does not fit the model, or the model does not return
            vectors, or returns NaN or infinity.
        ArgumentTypeError: If `embedder` is not a model with one input.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from kerasim.data import image_folder
        >>> Path("photos").mkdir()
        >>> Image.new("L", (8, 8)).save("photos/black.png")
        >>> Path("photos/damaged.png").write_bytes(b"no image")
        8
        >>> folder = image_folder("photos", image_size=8, channels=1, check=False)
        >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> vectors, reasons = embed_folder(embedder, folder)
        >>> vectors[:, 0].tolist()
        [0.0, nan]
    """
    shape, dim = check_embedder("embedder", embedder)
    height, width, channels = check_shape("images", images, shape).shape[1:]
    size = {"image_size": (height, width), "channels": channels}

    def decode(file):
        try:
            return read_image(file, **size, dtype="uint8")
        except ImageError as error:
            return str(error)

    decoded = thread_map(decode, images.files)
    reasons = [found if isinstance(found, str) else "" for found in decoded]
    good = [n for n, reason in enumerate(reasons) if not reason]
    vectors = np.full((len(decoded), dim), np.nan, "float32")
    if good:
        vectors[good] = embed(
            embedder, np.stack([decoded[n] for n in good]), batch_size, None, False
        )
    return vectors, reasons


def _load(folder, manifest):
    return _artifacts.read_arrays(folder / "x.npz", ("x",))["x"]


def load_embedder(path: Path | str) -> keras.Model:
    """Loads an embedder from a `.keras` file, without running code that the file may hold.

    Layers of kerasim are found in any process. Your own layers are found if the module that
    registers them has been imported.

    Args:
        path: A file that `keras.Model.save` wrote.

    Returns:
        The model with its weights, not compiled.

    Raises:
        ArtifactError: If the file is missing, refers to code that is not run for safety, or would
            need far more memory than its size suggests.
        ArgumentError: If the file is damaged, or the model has layers that Keras does not know.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> model.save("embedder.keras")
        >>> load_embedder("embedder.keras").output_shape
        (None, 64)
    """
    path = _artifacts.check_file(path)
    if path.suffix != ".keras":
        raise ArtifactError(
            f"{_checks.shown(path)} is not a .keras file. Other formats, such as .h5, are not read "
            "for safety. If you trust it, convert it: "
            "keras.saving.load_model(path).save('model.keras')."
        )
    try:
        return _keras_files.load_model(path)
    except ArtifactError:
        raise
    except Exception as error:  # zipfile, json, h5py and Keras raise errors of many kinds
        reason = _keras_files.describe(error)
        raise ArgumentError(
            f"{_checks.shown(path)} cannot be loaded as an embedder: {reason}. The file is "
            "damaged, or was saved by another version. Save the model again with model.save."
        ) from error
