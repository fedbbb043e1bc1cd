"""Square parts of photographs, to train networks on that denoise images of any size."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._folders import ImageFolder, thread_map
from kerasim._image_checks import check_images, check_shape
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.images import decode


def random_patches(
    images: ImageFolder | Sequence[ArrayLike] | np.ndarray, n: int, size: int = 64, seed: int = 0
) -> np.ndarray:
    """Cuts random square parts out of images of any size, without resizing them.

    Resizing removes noise and fine details, so that a network that is to denoise photographs of
    full size has to see their parts as they are. Each image gives the same number of parts, or one
    more or less.

    Args:
        images: `ImageFolder`, whose files are read at their full size; or a list of arrays
            `(height, width, channels)` of any sizes, uint8 or float in [0, 1]; or an array `(n,
            height, width, channels)`.
        n: Number of patches, 1 or more.
        size: Height and width of a patch in pixels, 1 or more.
        seed: The same seed cuts the same patches.

    Returns:
        uint8 `(n, size, size, channels)`, in random order.

    Raises:
        ArgumentError: If there is no image, one is smaller than a patch, or they have different
            numbers of channels.
        ArgumentTypeError: If an image is neither uint8 nor float.
        ImageError: If a file cannot be decoded.

    Example:
        >>> photos = [np.zeros((100, 150, 3), "uint8"), np.ones((80, 70, 3), "uint8")]
        >>> random_patches(photos, n=10, size=32).shape
        (10, 32, 32, 3)
    """
    n, size = _checks.integer("n", n), _checks.integer("size", size)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    if isinstance(images, str) or not isinstance(images, (ImageFolder, Sequence, np.ndarray)):
        raise ArgumentTypeError(
            "images must be an ImageFolder or a list of arrays, not "
            f"{type(images).__name__}: pass data.image_folder(path, image_size)."
        )
    if isinstance(images, np.ndarray):
        images = check_shape("images", images)
    if not len(images):
        raise ArgumentError("images is empty: pass one image or more.")
    # Only images that give a patch are read, in an order that does not favor the first ones.
    order = rng.permutation(len(images))
    counts = np.bincount(order[np.arange(n) % len(order)], minlength=len(order))
    rows = np.flatnonzero(counts)
    places = [rng.random((counts[row], 2)) for row in rows]

    def patches(position):
        row = int(rows[position])
        image, name = _read(images, row)
        room = np.array(image.shape[:2]) - size
        if room.min() < 0:
            raise ArgumentError(
                f"{name} has {image.shape[0]} x {image.shape[1]} pixels, fewer than size={size}: "
                "leave it out, or pass a smaller size."
            )
        starts = (places[position] * (room + 1)).astype(int)
        # Views would keep every photograph in memory.
        return [image[r : r + size, c : c + size].copy() for r, c in starts]

    found = [patch for some in thread_map(patches, range(len(rows))) for patch in some]
    channels = sorted({patch.shape[2] for patch in found})
    if len(channels) > 1:
        raise ArgumentError(
            f"images have {' and '.join(map(str, channels))} channels: convert them to the same "
            "number."
        )
    return np.stack(found)[rng.permutation(n)]


def _read(images, row: int) -> tuple[np.ndarray, str]:
    """Returns the image at a position as uint8, and its name in a message."""
    if isinstance(images, ImageFolder):
        file = images.files[row]
        return decode(file, None, images.shape[3])[0], _checks.shown(file)
    name = f"images[{row}]"
    image = _checks.as_real_array(name, images[row])
    if image.ndim != 3:
        raise ArgumentError(
            f"{name} has shape {image.shape}: expected (height, width, channels). Pass a list of "
            "images; for a gray one, image[..., None]."
        )
    if image.dtype.kind != "f" and image.dtype != np.uint8:
        raise ArgumentTypeError(f"{name} must be uint8 or float, not {image.dtype}.")
    image = check_images(name, image[None])[0]
    if image.dtype == np.uint8:
        return image, name
    return np.rint(255 * image).astype("uint8"), name
