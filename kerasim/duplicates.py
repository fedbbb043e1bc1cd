"""Finds exact duplicates and near-duplicates in arrays and folders of images."""

import hashlib

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images, refuse_other_sources
from kerasim.errors import ArgumentError

__all__ = ["find_duplicates", "find_near_duplicates"]

_THUMBNAIL = 16  # rows and columns of the thumbnails that near-duplicates are found by
_UNIFORM_DEVIATION = 1.0  # standard deviation, of 255 levels, below which a thumbnail is uniform
_UNIFORM_DIFFERENCE = 8.0  # largest difference of two uniform images that are near-duplicates
_COLOR_CORRELATION = 0.9  # required of color thumbnails, unless min_correlation is smaller
_ROUNDING = 1e-6  # of the float32 product of two unit vectors


def find_duplicates(
    images: ArrayLike | ImageFolder, others: ArrayLike | ImageFolder | None = None
) -> np.ndarray:
    """Finds images that are equal bit by bit, by a digest of their content.

    Args:
        images: `(n, ...)` array, or an `ImageFolder`, whose files are compared byte by byte.
        others: Images to compare with, such as training images. None compares `images` with each
            other.

    Returns:
        `(m, 2)` int64: the position in `images` of each copy, and the position of the first image
        that it equals, in `others` or, without `others`, earlier in `images`.

    Raises:
        ArgumentError: If `images` or `others` is a single number.
        ArgumentTypeError: If they are not real numbers.

    Example:
        >>> images = np.zeros((3, 8, 8, 1))
        >>> images[1] = 1.0
        >>> find_duplicates(images).tolist()  # image 2 is a copy of image 0
        [[2, 0]]
    """
    own = _contents("images", images)
    among = own if others is None else _contents("others", others)
    first = {among[n]: n for n in reversed(range(len(among)))}
    found = [(n, first[content]) for n, content in enumerate(own) if content in first]
    copies = [(n, original) for n, original in found if others is not None or original < n]
    return np.array(copies, dtype="int64").reshape(-1, 2)


def _contents(name, images) -> list[bytes]:
    if isinstance(images, ImageFolder):
        kind, contents = b"file", (file.read_bytes() for file in images.files)
    else:
        refuse_other_sources(name, images)
        images = _checks.as_real_array(name, images)
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


def find_near_duplicates(
    images: ArrayLike | ImageFolder, min_correlation: float = 0.975
) -> np.ndarray:
    """Finds near-duplicates: images that were re-encoded, resized, or made brighter or noisier.

    Each image is reduced to a gray thumbnail of 16 x 16 pixels. Two images are near-duplicates if
    the Pearson correlation of their thumbnails is at least `min_correlation`. A change of
    brightness or contrast does not change the correlation; noise and compression hardly do. The
    color thumbnails must also have a correlation of at least 0.9 (or `min_correlation`, if that is
    smaller), so that the same shape in red and in blue is not a near-duplicate. The correlation of
    a uniform image (white, black, one color) is undefined; two uniform images are near-duplicates
    if each channel differs by at most 8 of 255 levels. Crops, rotations and mirror images are not
    found. `benchmarks/near_duplicates.py` measures what is found.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, of 16 x 16 pixels or more;
            or an `ImageFolder`, whose files are decoded at 128 x 128 pixels, whatever its size.
        min_correlation: From 0 to 1. Lower values find stronger changes, and more pairs of
            unrelated images.

    Returns:
        `(m, 2)` int64 positions: each pair of near-duplicates once, the later one first.

    Raises:
        ArgumentError: If the images are smaller than 16 x 16 pixels, hold NaN or lie outside
            [0, 1], or `min_correlation` is out of range.

    Example:
        >>> images = np.random.default_rng(0).random((3, 32, 32, 1))
        >>> images[2] = 0.8 * images[0] + 0.1
        >>> find_near_duplicates(images).tolist()
        [[2, 0]]
    """
    min_correlation = _checks.number("min_correlation", min_correlation, 0, 1)
    colors = _thumbnails(check_images("images", images))
    thumbnails = colors.mean(axis=2, dtype="float64")
    levels = thumbnails.mean(axis=1)
    patterns = thumbnails - levels[:, None]
    norms = np.linalg.norm(patterns, axis=1)
    # The norm is the standard deviation times the root of the number of pixels.
    uniform = norms < _UNIFORM_DEVIATION * _THUMBNAIL
    patterns[uniform] = 0
    patterns /= np.where(uniform, 1, norms)[:, None]
    patterns = patterns.astype("float32")
    found = [np.empty((0, 2), dtype="int64")]
    for start in range(0, len(patterns), 1024):
        rows = slice(start, start + 1024)
        similar = patterns[rows] @ patterns[: start + 1024].T >= min_correlation - _ROUNDING
        similar &= ~(uniform[rows, None] | uniform[: start + 1024])
        similar |= (uniform[rows, None] & uniform[: start + 1024]) & (
            np.abs(levels[rows, None] - levels[: start + 1024]) <= _UNIFORM_DIFFERENCE
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
    """Returns for each pair of thumbnails `(n, 256, channels)` whether their colors are similar."""
    sides = [colors[rows].astype("float64") for rows in pairs.T]
    means = [side.mean(axis=1) for side in sides]
    uniform = [(side.std(axis=1) < _UNIFORM_DEVIATION).all(axis=1) for side in sides]
    # Centered over all channels together, so that differences between channels, the color, remain.
    left, right = (side - side.mean(axis=(1, 2), keepdims=True) for side in sides)
    product = (left * right).sum(axis=(1, 2))
    norms = np.sqrt((left**2).sum(axis=(1, 2)) * (right**2).sum(axis=(1, 2)))
    is_correlated = product >= (min_correlation - _ROUNDING) * norms
    is_equal = (np.abs(means[0] - means[1]) <= _UNIFORM_DIFFERENCE).all(axis=1)
    return np.where(uniform[0] & uniform[1], is_equal, is_correlated & ~uniform[0] & ~uniform[1])


def _thumbnails(images) -> np.ndarray:
    """Returns thumbnails `(n, 256, channels)` of `images`, in float32 levels from 0 to 255."""
    if isinstance(images, ImageFolder):  # the result must not depend on the size of the folder
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
