"""Arrays and folders of images: checks, noise, copies and embeddings."""

import hashlib
import os
from typing import Any

import keras
import numpy as np
from PIL import Image

from kerasim import _keras_compat, _keras_files, artifacts, checks
from kerasim.data.folders import ImageFolder, in_threads
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError
from kerasim.images import as_float

_THUMBNAIL = 16  # rows and columns of the thumbnails that near-duplicates are found by
_EVEN_DEVIATION = 1.0  # standard deviation, of 255 levels, below which a thumbnail is even
_EVEN_DIFFERENCE = 8.0  # largest difference of two even images that are near-duplicates
_COLOR_CORRELATION = 0.9  # least one of near-duplicates in color, if min_correlation is larger
_ROUNDING = 1e-6  # of the float32 product of two unit vectors


def check_shape(name: str, images, shape=(None, None, None)):
    """Returns `images` as an array, or an `ImageFolder` as it is, if its shape is right.

    Args:
        name: Argument that a message names.
        images: Images `(n, height, width, channels)`.
        shape: `(height, width, channels)` that a network takes; None for any.

    Raises:
        ArgumentError: If they are of another shape, or of several.
    """
    mend = "pass (n, height, width, channels)"
    if not isinstance(images, ImageFolder):
        _refuse_other_sources(name, images)
        images = checks.array(name, images, "resize the images to one size")
        if (
            images.ndim == 3
            and len(shape) == 3
            and all(want in (None, got) for want, got in zip(shape, images.shape, strict=True))
        ):
            raise ArgumentError(
                f"{name} has shape {images.shape}, that of one image; expected "
                f"(n, height, width, channels). Pass {name}[None]."
            )
    checks.shape(name, images, (None, *shape), f"{mend} of that size")
    if not all(images.shape[1:]):
        raise ArgumentError(f"{name} has shape {images.shape}: {mend} of one pixel or more.")
    return images


def _refuse_other_sources(name: str, images) -> None:
    """Refuses what holds or names images but is no array of them, with what to pass instead."""
    mend = None
    if isinstance(images, (str, bytes, os.PathLike)):
        mend = "pass kerasim.data.image_folder(path, image_size=(height, width))"
    elif isinstance(images, keras.utils.PyDataset):
        mend = "pass the array or the ImageFolder of which it makes batches"
    elif not hasattr(images, "shape") and not hasattr(images, "__len__") and np.iterable(images):
        mend = "pass an array, such as np.concatenate(list(batches)) of batches of images"
    elif hasattr(images, "element_spec"):  # a tf.data.Dataset
        mend = "pass an array, such as np.concatenate([images for images, labels in dataset])"
    if mend is not None:
        raise ArgumentTypeError(f"{name} is a {type(images).__name__}, not an array: {mend}.")


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
            f"{name} has dtype {images.dtype}: convert it to float in [0, 1] or to uint8."
        )
    low, high = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))
    checks.bad_rows(name, ~(np.isfinite(low) & np.isfinite(high)), "NaN or infinity")
    reach = f"from {low.min(initial=0)} to {high.max(initial=1)}"
    what = f"floats outside [0, 1], {reach} (divide by 255, or pass uint8),"
    checks.bad_rows(name, (low < 0) | (high > 1), what)
    return images


def check_classes(labels, n: int, classes: int | None = None) -> np.ndarray:
    """Returns `labels` as an array of `n` integers, from 0 and below `classes` if that is given.

    Raises:
        ArgumentError: If they are more, fewer or out of that range.
        ArgumentTypeError: If they are no integers.
    """
    labels = checks.labels("labels", labels, n, "images")
    if labels.dtype.kind not in "iu":
        raise ArgumentTypeError(
            f"labels must be integers from 0, not {labels.dtype}: number the classes with "
            "np.unique(labels, return_inverse=True)[1]."
        )
    checks.bad_rows("labels", labels < 0, "a negative class")
    if classes is not None:
        checks.bad_rows("labels", labels >= classes, f"a class above {classes - 1}")
    return labels


def check_embedder(name: str, embedder) -> tuple[tuple, int]:
    """Returns the image shape that a model takes, and the width of the vectors that it gives.

    Args:
        name: Argument that a message names.
        embedder: `keras.Model` from images to vectors.

    Returns:
        `(shape, dim)`: `(height, width, channels)`, None where any will do, and an integer.

    Raises:
        ArgumentTypeError: If it is no model of one input, images.
        ArgumentError: If it gives something other than vectors.
    """
    taken, given = shapes_of(name, embedder)
    if len(given) != 1:
        mend = 'pass the encoder, such as model.get_layer("encoder")'
        raise ArgumentError(f"{name} must map images to vectors, not {(None, *given)}: {mend}.")
    return taken, given[0]


def shapes_of(name: str, model) -> tuple[tuple, tuple]:
    """Returns the shape of an image that a `model` takes, and of what it makes of it.

    An error speaks of `name`.

    Raises:
        ArgumentTypeError: If it is no model of one input, images.
        ArgumentError: If it has several outputs.
    """
    taken: Any = getattr(model, "input_shape", None)
    given: Any = getattr(model, "output_shape", None)
    if isinstance(model, str):
        mend = "pass a model, such as kerasim.models.pretrained_embedder(backbone) or load_embedder"
        raise ArgumentTypeError(f"{name} is {model!r}, of type str, not a keras.Model: {mend}.")
    if not _is_shape(taken) or len(taken) != 4:
        came = f"Received {type(model).__name__}, which takes {taken}"
        mend = "pass a model with one input (n, height, width, channels), such as one tower"
        raise ArgumentTypeError(f"{name} must be a keras.Model of images. {came}: {mend}.")
    if _keras_compat.names_outputs(model):
        mend = "build it with one tensor as its output"
        raise ArgumentError(f"{name} must return a tensor, not a dictionary: {mend}.")
    if not _is_shape(given):
        mend = 'pass a part of it, such as model.get_layer("encoder")'
        raise ArgumentError(f"{name} must have one output, not {given}: {mend}.")
    return taken[1:], given[1:]


def _is_shape(shape) -> bool:
    """Says whether `shape` is that of one tensor: several of them have lists or dicts of shapes."""
    return isinstance(shape, tuple) and all(n is None or isinstance(n, int) for n in shape)


def load_embedder(path) -> keras.Model:
    """Reads the embedder in a `.keras` file, without running code that the file may hold.

    Layers of kerasim are known in any process that calls this. Layers of your own are found if
    the module that registers them has been imported.

    Args:
        path: A file that `keras.Model.save` wrote.

    Returns:
        The model with its weights, not compiled.

    Raises:
        ArtifactError: If there is no such file, it holds something that is not run for safety, or
            it would take far more memory than it is large.
        ArgumentError: If it is damaged, or has layers that Keras does not know.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> model.save("embedder.keras")
        >>> load_embedder("embedder.keras").output_shape
        (None, 64)
    """
    path = artifacts.check_file(path)
    if path.suffix != ".keras":
        raise ArtifactError(
            f"{checks.shown(path)} is not a .keras file. Other formats, such as .h5, are not read, "
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
            f"{checks.shown(path)} cannot be loaded as an embedder: {reason}. The file is damaged, "
            "or was saved by another version. Save the model again with model.save."
        ) from error


def add_noise(images, sigma: float, seed: int = 0, clip: bool = True) -> np.ndarray:
    """Adds Gaussian noise.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8.
        sigma: Standard deviation, in units of [0, 1]; 0 or more.
        seed: The same seed draws the same noise.
        clip: Clip the result to [0, 1], as in an image file.

    Returns:
        float32 images of the same shape.

    Raises:
        ArgumentError: If the images hold NaN or lie outside [0, 1], or sigma is negative.
    """
    checks.number("sigma", sigma, 0)
    checks.flag("clip", clip)
    images = check_images("images", images)
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    noisy = gaussian_noise(as_float(images[:]), sigma, rng)
    return np.clip(noisy, 0, 1, out=noisy) if clip else noisy


def gaussian_noise(images, sigma, rng):
    """Returns float images with noise drawn from the generator `rng`, never clipped."""
    return images + np.float32(sigma) * rng.standard_normal(images.shape, dtype="float32")


def digest(images) -> str:
    """Returns a digest of an array, or of a folder of images, as hexadecimal digits.

    Of an array it covers shape, data type and every value, and the mask of a masked one. Of a
    folder it covers the shape and type of the decoded images, and path and content of each file:
    time stamps may stay as they are when a file is replaced.

    Args:
        images: An array, or an `ImageFolder`, whose files are read.

    Raises:
        ImageError: If a file cannot be read.
    """
    if not isinstance(images, ImageFolder) and not isinstance(images, np.ndarray):
        images = checks.array("images", images)
    digest = hashlib.sha256(repr((images.shape, str(images.dtype))).encode())
    if isinstance(images, ImageFolder):
        contents = in_threads(_content, images.files)
        for file, content in zip(images.files, contents, strict=True):
            digest.update(repr((os.fsencode(file), content)).encode())
        return digest.hexdigest()
    if np.ma.isMaskedArray(images):
        digest.update(np.ma.getmaskarray(images).tobytes())
        images = images.filled()
    if images.dtype.kind in "OT":  # memory holds the addresses of objects, others each time
        digest.update(_describe_values(images.tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(images).reshape(-1).view("uint8").data)
    return digest.hexdigest()


def _content(file) -> str:
    """Returns a digest of the content of a file."""
    checks.regular_file(file, ImageError)
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _describe_values(values) -> str:
    """Returns all values of a list, and of lists and arrays in it, with their types."""
    if isinstance(values, (list, tuple)):
        return f"{type(values).__name__}({','.join(map(_describe_values, values))})"
    if isinstance(values, np.ndarray):
        return digest(values)
    return f"{type(values).__name__}:{values!r}"


def find_copies(images, others=None) -> np.ndarray:
    """Finds images that are equal to the last bit, by a digest of their content.

    Args:
        images: `(n, ...)` array, or an `ImageFolder`, whose files are compared as they lie there.
        others: Where to look for them, such as training images; None for among `images`.

    Returns:
        `(m, 2)` int64: the position of each image that is a copy, and that of the first one it
        equals, among `others`, or before it among `images`.
    """
    own = _contents("images", images)
    among = own if others is None else _contents("others", others)
    first = {among[n]: n for n in reversed(range(len(among)))}
    found = [(n, first[content]) for n, content in enumerate(own) if content in first]
    copies = [(n, at) for n, at in found if others is not None or at < n]
    return np.array(copies, dtype="int64").reshape(-1, 2)


def _contents(name, images) -> list[bytes]:
    if isinstance(images, ImageFolder):
        kind, contents = b"file", (file.read_bytes() for file in images.files)
    else:
        images = checks.real(name, images)
        if not images.ndim:
            raise ArgumentError(f"{name} is a single number: pass an array (n, ...) of images.")
        # Images of another shape or data type may have the same bytes.
        kind = repr((images.shape[1:], images.dtype.str)).encode()
        contents = (np.ascontiguousarray(image).data for image in images)
    prefix = hashlib.blake2b(kind, digest_size=16)
    digests = []
    for content in contents:
        each = prefix.copy()
        each.update(content)
        digests.append(each.digest())
    return digests


def find_near_copies(images, min_correlation: float = 0.975) -> np.ndarray:
    """Finds near-duplicates: images that were re-encoded, resized, or made brighter or noisier.

    Each image becomes a gray thumbnail of 16 x 16 pixels. Two images are near-duplicates if the
    Pearson correlation of their thumbnails is `min_correlation` or more: a change of brightness
    or contrast leaves the correlation as it is, noise and compression hardly change it. The
    correlation of the thumbnails in color must be 0.9 or more, too (or `min_correlation`, if that
    is smaller), so that the same shape in red and in blue is no near-duplicate. An even image
    (white, black, one color) has no correlation with anything; two of them are near-duplicates if
    each channel differs by 8 of 255 levels or less. Crops, rotations and mirror
    images are not found. `benchmarks/near_duplicates.py` measures what is found.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, of 16 x 16 pixels or more;
            or an `ImageFolder`, whose files are read at 128 x 128, whatever its own size.
        min_correlation: From 0 to 1. Lower values find stronger changes, and more pairs of
            unrelated images.

    Returns:
        `(m, 2)` int64 positions: each pair of near-duplicates once, the later one first.

    Raises:
        ArgumentError: If the images are smaller, or `min_correlation` is out of range.

    Example:
        >>> images = np.random.default_rng(0).random((3, 32, 32, 1))
        >>> images[2] = 0.8 * images[0] + 0.1
        >>> find_near_copies(images).tolist()
        [[2, 0]]
    """
    min_correlation = checks.number("min_correlation", min_correlation, 0, 1)
    colors = _thumbnails(check_images("images", images))
    thumbnails = colors.mean(axis=2, dtype="float64")
    levels = thumbnails.mean(axis=1)
    patterns = thumbnails - levels[:, None]
    norms = np.linalg.norm(patterns, axis=1)
    even = norms < _EVEN_DEVIATION * _THUMBNAIL  # a standard deviation of less than that
    patterns[even] = 0
    patterns /= np.where(even, 1, norms)[:, None]
    patterns = patterns.astype("float32")
    found = [np.empty((0, 2), dtype="int64")]
    for start in range(0, len(patterns), 1024):
        rows = slice(start, start + 1024)
        similar = patterns[rows] @ patterns[: start + 1024].T >= min_correlation - _ROUNDING
        similar &= ~(even[rows, None] | even[: start + 1024])
        similar |= (even[rows, None] & even[: start + 1024]) & (
            np.abs(levels[rows, None] - levels[: start + 1024]) <= _EVEN_DIFFERENCE
        )
        pairs = np.argwhere(np.tril(similar, start - 1)) + [start, 0]
        if colors.shape[2] > 1:
            least = min(min_correlation, _COLOR_CORRELATION)
            chunks = [pairs[first : first + 1024] for first in range(0, len(pairs), 1024)]
            found += [chunk[_are_colors_similar(colors, chunk, least)] for chunk in chunks]
        else:
            found.append(pairs)
    return np.concatenate(found)


def _are_colors_similar(colors, pairs, min_correlation: float) -> np.ndarray:
    """Says for each pair of thumbnails `(n, 256, channels)` whether their colors are similar."""
    sides = [colors[rows].astype("float64") for rows in pairs.T]
    means = [side.mean(axis=1) for side in sides]
    even = [(side.std(axis=1) < _EVEN_DEVIATION).all(axis=1) for side in sides]
    # Over all channels together: what differs between them is the color.
    left, right = (side - side.mean(axis=(1, 2), keepdims=True) for side in sides)
    product = (left * right).sum(axis=(1, 2))
    norms = np.sqrt((left**2).sum(axis=(1, 2)) * (right**2).sum(axis=(1, 2)))
    is_correlated = product >= (min_correlation - _ROUNDING) * norms
    is_equal = (np.abs(means[0] - means[1]) <= _EVEN_DIFFERENCE).all(axis=1)
    return np.where(even[0] & even[1], is_equal, is_correlated & ~even[0] & ~even[1])


def _thumbnails(images) -> np.ndarray:
    """Returns thumbnails `(n, 256, channels)` of `images`, in float32 levels from 0 to 255."""
    if isinstance(images, ImageFolder):  # near-duplicates at one size are so at any other
        images = ImageFolder(images.files, None, [], [], (128, 128), 3)
    if min(images.shape[1:3]) < _THUMBNAIL:
        raise ArgumentError(
            f"images have shape {images.shape}, smaller than {_THUMBNAIL} x {_THUMBNAIL} pixels. "
            "Enlarge them first."
        )
    side, channels = _THUMBNAIL, images.shape[3]
    thumbnails = np.empty((len(images), side, side, channels), dtype="float32")
    for row in range(len(images)):
        image = images[row]
        scale = 255 if image.dtype.kind == "f" else 1
        for channel in range(channels):
            plane = Image.fromarray((scale * image[..., channel]).astype("float32"))
            small = plane.resize((side, side), Image.Resampling.BOX)
            thumbnails[row, ..., channel] = small
    return thumbnails.reshape(len(images), side**2, channels)
