"""Finds exact duplicates and near-duplicates in arrays and folders of images."""

import functools
import hashlib
import itertools

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images, refuse_other_sources
from kerasim.errors import ArgumentError

__all__ = ["find_duplicates", "find_near_duplicates"]

_SIDE = 32  # rows and columns of the small copies of images, in which crops are tried
_THUMBNAIL = 16  # rows and columns of the thumbnails that near-duplicates are found by
_UNIFORM_DEVIATION = 1.0  # standard deviation, of 255 levels, below which a thumbnail is uniform
_UNIFORM_DIFFERENCE = 8.0  # largest difference of two uniform images that are near-duplicates
_COLOR_CORRELATION = 0.9  # required of color thumbnails, unless min_correlation is smaller
_ROUNDING = 1e-6  # of the float32 product of two unit vectors
_CUTS = (0.0, 0.03, 0.06, 0.1)  # shares of the side that may have been cut off
_COARSE_CUTS = (0.0, 0.06)  # those tried first
_COARSE_LOSS = 0.07  # how much a coarse cut can lower the correlation
# Views by which crops are looked up: the whole image, its middle and its corners.
_ASKED = [((0, 0), (0, 0)), ((0.06, 0.06), (0.06, 0.06))]
_ASKED += itertools.product([(0, 0.06), (0.06, 0)], repeat=2)
_LARGEST_SKEW = 0.08  # of the shares cut off in both directions
_NEAREST = 4  # images with the most similar thumbnails, of which an image may be a crop
_LEAST_SIMILAR = 0.6  # correlation of the thumbnails of an image and its crop
_UNRELATED = 20  # rank of an image that is taken for an unrelated one
_DISTINCT = 40.0  # see `_allowed`
_PAIRS = 1024  # compared at once


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
    """Finds near-duplicates: images that were re-encoded, resized, cropped, or made brighter.

    Each image is reduced to a gray thumbnail of 16 x 16 pixels. Two images are near-duplicates if
    the Pearson correlation of their thumbnails is at least `min_correlation`. A change of
    brightness or contrast does not change the correlation; noise and compression hardly do. Crops
    are tried for those images whose thumbnails are most similar to that of an image: most of those
    without 5 % of each side, and many without 8 % of two sides, are found.

    Two conditions keep unrelated images apart. The color thumbnails must also have a correlation of
    at least 0.9 (or `min_correlation`, if that is smaller), so that the same shape in red and in
    blue is not a near-duplicate. And where even unrelated images correlate, as digits do, more is
    required. Let b be the correlation of an image with the 20th most similar one that is not among
    its possible near-duplicates. The correlation must then be at least
    1 - (1 - `min_correlation`) min(1, 40 (1 - b)^2).

    The correlation of a uniform image (white, black, one color) is undefined; two uniform images
    are near-duplicates if each channel differs by at most 8 of 255 levels. Rotations and mirror
    images are not found. `benchmarks/near_duplicates.py` measures what is found.

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
    copies = _small_copies(check_images("images", images))
    gray = copies.mean(axis=3, dtype="float32")
    whole = _cell_means(0, 0)
    thumbnails = _thumbnails(gray, whole, whole).astype("float64")
    levels = thumbnails.mean(axis=1)
    patterns = thumbnails - levels[:, None]
    norms = np.linalg.norm(patterns, axis=1)
    # The norm is the standard deviation times the root of the number of pixels.
    uniform = norms < _UNIFORM_DEVIATION * _THUMBNAIL
    patterns[uniform] = 0
    patterns = (patterns / np.where(uniform, 1, norms)[:, None]).astype("float32")
    pairs, correlations = _correlated(patterns, uniform, levels, min_correlation)
    views = np.zeros((len(pairs), 2), "int64")
    cropped, scores, cuts = _cropped(gray, patterns, uniform, min_correlation)
    pairs, first = np.unique(np.concatenate([cropped, pairs]), axis=0, return_index=True)
    correlations = np.concatenate([scores, correlations])[first]
    views = np.concatenate([cuts, views])[first]
    far = 1 - correlations > _allowed(gray, patterns, uniform, pairs, min_correlation) + _ROUNDING
    pairs, views = pairs[~far], views[~far]
    if copies.shape[3] > 1:
        least = min(min_correlation, _COLOR_CORRELATION)
        similar = [
            _are_colors_similar(copies, pairs[rows], views[rows], least)
            for rows in (slice(n, n + _PAIRS) for n in range(0, len(pairs), _PAIRS))
        ]
        pairs = pairs[np.concatenate([np.empty(0, bool), *similar])]
    return pairs


def _small_copies(images) -> np.ndarray:
    """Returns `images` as uint8 `(n, 32, 32, channels)`."""
    if isinstance(images, ImageFolder):  # the result must not depend on the size of the folder
        images = ImageFolder(images.files, None, [], [], (128, 128), 3)
    if min(images.shape[1:3]) < _THUMBNAIL:
        raise ArgumentError(
            f"images have shape {images.shape}, smaller than {_THUMBNAIL} x {_THUMBNAIL} pixels. "
            "Enlarge them first."
        )
    channels = images.shape[3]
    copies = np.empty((len(images), _SIDE, _SIDE, channels), dtype="uint8")
    for row in range(len(images)):
        image = images[row]
        scale = 255 if image.dtype.kind == "f" else 1
        for channel in range(channels):
            plane = Image.fromarray((scale * image[..., channel]).astype("float32"))
            small = plane.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
            copies[row, ..., channel] = np.rint(np.asarray(small)).clip(0, 255)
    return copies


@functools.cache
def _views(cuts: tuple[float, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the ways to make a thumbnail of a small copy, a matrix for rows and one for columns.

    The first takes the whole image, the second the image at half its size and back, the others
    crops of nearly the same aspect ratio.
    """
    whole = _cell_means(0, 0)
    half = Image.fromarray(np.eye(_SIDE, dtype="float32")).resize(
        (_SIDE // 2, _SIDE), Image.Resampling.BILINEAR
    )
    blurred = np.asarray(half.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)) @ whole
    ends = list(itertools.product(cuts, cuts))
    crops = [
        (_cell_means(*rows), _cell_means(*columns))
        for rows, columns in itertools.product(ends, ends)
        if any(rows + columns) and abs(sum(rows) - sum(columns)) < _LARGEST_SKEW
    ]
    return [(whole, whole), (blurred, blurred), *crops]


def _cell_means(before: float, after: float) -> np.ndarray:
    """Returns the matrix `(32, 16)` from a row to the means of equal cells, without its ends."""
    edges = np.linspace(before * _SIDE, (1 - after) * _SIDE, _THUMBNAIL + 1)
    pixels = np.arange(_SIDE)[:, None]
    overlap = np.minimum(pixels + 1, edges[1:]) - np.maximum(pixels, edges[:-1])
    overlap = overlap.clip(0)
    return (overlap / overlap.sum(axis=0)).astype("float32")


def _thumbnails(gray, rows, columns) -> np.ndarray:
    """Returns thumbnails `(n, 256)` of gray copies."""
    return (rows.T @ gray @ columns).reshape(len(gray), _THUMBNAIL**2)


def _patterns(thumbnails) -> np.ndarray:
    """Returns thumbnails less their means, of length 1."""
    patterns = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(patterns, axis=1, keepdims=True)
    return patterns / np.maximum(norms, _UNIFORM_DEVIATION * _THUMBNAIL)


def _correlated(patterns, uniform, levels, min_correlation):
    """Returns all pairs of correlated or equally uniform thumbnails, and their correlations."""
    found = [np.empty((0, 2), dtype="int64")]
    values = [np.empty(0, "float32")]
    for start in range(0, len(patterns), 1024):
        rows = slice(start, start + 1024)
        products = patterns[rows] @ patterns[: start + 1024].T
        both = uniform[rows, None] & uniform[: start + 1024]
        equal = np.abs(levels[rows, None] - levels[: start + 1024]) <= _UNIFORM_DIFFERENCE
        products[both] = np.where(equal[both], 1, -1)
        products[uniform[rows, None] ^ uniform[: start + 1024]] = -1
        pairs = np.argwhere(np.tril(products >= min_correlation - _ROUNDING, start - 1))
        values.append(products[tuple(pairs.T)])
        found.append(pairs + [start, 0])
    return np.concatenate(found), np.concatenate(values)


def _cropped(gray, patterns, uniform, min_correlation):
    """Returns pairs of which one image is a crop of the other, or of half its size.

    Returns:
        `(pairs, correlations, views)`: for each pair the view of either image, a position in
        `_views(_CUTS)`, at which their correlation is the largest.
    """
    import faiss

    rows = np.flatnonzero(~uniform)
    nothing = np.empty((0, 2), "int64"), np.empty(0, "float32"), np.empty((0, 2), "int64")
    if len(rows) < 2:
        return nothing
    whole, near = patterns[rows], []
    count = min(_NEAREST + 1, len(rows))
    for ends in _ASKED:
        asked = _patterns(_thumbnails(gray[rows], *(_cell_means(*end) for end in ends)))
        products, found = faiss.knn(asked, whole, count, metric=faiss.METRIC_INNER_PRODUCT)
        likely = (products >= _LEAST_SIMILAR) & (found != np.arange(len(rows))[:, None])
        left = np.repeat(np.arange(len(rows)), likely.sum(axis=1))
        near.append(np.stack([left, found[likely]], axis=1))
    pairs = np.unique(np.sort(rows[np.concatenate(near)], axis=1)[:, ::-1], axis=0)
    scores, _ = _best_views(gray, pairs, _COARSE_CUTS)
    pairs = pairs[scores >= min_correlation - _COARSE_LOSS]
    scores, views = _best_views(gray, pairs, _CUTS)
    good = scores >= min_correlation - _ROUNDING
    return pairs[good], scores[good], views[good]


def _best_views(gray, pairs, cuts) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest correlation of each pair, one image whole, the other in any view.

    Returns:
        `(correlations, views)`, `(m,)` and `(m, 2)`: for each pair the view of either image, a
        position in `_views(cuts)`, 0 for the whole image.
    """
    best, views = np.full(len(pairs), -1, "float32"), np.zeros((len(pairs), 2), "int64")
    for start in range(0, len(pairs), _PAIRS):
        rows = slice(start, start + _PAIRS)
        sides = [gray[side] for side in pairs[rows].T]
        for number, view in enumerate(_views(cuts)):
            seen = [_patterns(_thumbnails(side, *view)) for side in sides]
            if number == 0:
                wholes = seen
            for side in (0, 1):
                products = np.einsum("ij,ij->i", seen[side], wholes[1 - side])
                better = products > best[rows]
                best[rows][better] = products[better]
                views[rows][better] = 0
                views[rows, side][better] = number
    return best, views


def _allowed(gray, patterns, uniform, pairs, min_correlation) -> np.ndarray:
    """Returns by how much the correlation of each pair may differ from 1.

    It is less than 1 - `min_correlation` for images that unrelated images correlate with as well.
    """
    import faiss

    allowed = np.full(len(patterns), 1 - min_correlation)
    rows = np.flatnonzero(~uniform)
    # The image itself and those it is paired with come first.
    rank = _UNRELATED + np.bincount(pairs.ravel(), minlength=len(patterns))
    asked = np.setdiff1d(pairs, np.flatnonzero(uniform))
    asked = asked[rank[asked] < len(rows)]
    for start in range(0, len(asked), _PAIRS):
        some = asked[start : start + _PAIRS]
        near = faiss.knn(
            patterns[some],
            patterns[rows],
            int(rank[some].max()) + 1,
            metric=faiss.METRIC_INNER_PRODUCT,
        )[1]
        unrelated = rows[near[np.arange(len(some)), rank[some]]]
        similar, _ = _best_views(gray, np.stack([some, unrelated], axis=1), _COARSE_CUTS)
        allowed[some] *= np.minimum(1, _DISTINCT * (1 - similar) ** 2)
    return allowed[pairs].min(axis=1)


def _are_colors_similar(copies, pairs, views, min_correlation: float) -> np.ndarray:
    """Returns for each pair of small copies whether their colors are similar."""
    sides = []
    for rows, seen in zip(pairs.T, views.T, strict=True):
        planes = copies[rows].transpose(0, 3, 1, 2).astype("float64")
        matrices = [_views(_CUTS)[view] for view in seen]
        before, after = (np.stack(parts) for parts in zip(*matrices, strict=True))
        small = before.transpose(0, 2, 1)[:, None] @ planes @ after[:, None]
        sides.append(small.reshape(*small.shape[:2], -1).transpose(0, 2, 1))
    means = [side.mean(axis=1) for side in sides]
    uniform = [(side.std(axis=1) < _UNIFORM_DEVIATION).all(axis=1) for side in sides]
    # Centered over all channels together, so that differences between channels, the color, remain.
    left, right = (side - side.mean(axis=(1, 2), keepdims=True) for side in sides)
    product = (left * right).sum(axis=(1, 2))
    norms = np.sqrt((left**2).sum(axis=(1, 2)) * (right**2).sum(axis=(1, 2)))
    is_correlated = product >= (min_correlation - _ROUNDING) * norms
    is_equal = (np.abs(means[0] - means[1]) <= _UNIFORM_DIFFERENCE).all(axis=1)
    return np.where(uniform[0] & uniform[1], is_equal, is_correlated & ~uniform[0] & ~uniform[1])
