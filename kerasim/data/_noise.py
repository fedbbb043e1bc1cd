"""Gaussian noise on images."""

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images
from kerasim.images import as_float


def add_noise(
    images: ArrayLike | ImageFolder, sigma: float, seed: int = 0, clip: bool = True
) -> np.ndarray:
    """Adds Gaussian noise to images.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        sigma: Standard deviation, in units of [0, 1]; 0 or more.
        seed: The same seed draws the same noise.
        clip: Clip the result to [0, 1], as in an image file.

    Returns:
        float32 images of the same shape.

    Raises:
        ArgumentError: If the images hold NaN or lie outside [0, 1], or sigma is negative.

    Example:
        >>> noisy = add_noise(np.full((1, 64, 64, 1), 0.5), sigma=0.1)
        >>> round(float(noisy.std()), 2)
        0.1
    """
    _checks.number("sigma", sigma, 0)
    _checks.boolean("clip", clip)
    images = check_images("images", images)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    noisy = gaussian_noise(as_float(images[:]), sigma, rng)
    return np.clip(noisy, 0, 1, out=noisy) if clip else noisy


def gaussian_noise(images, sigma, rng):
    """Returns float images with noise drawn from the generator `rng`, never clipped."""
    return images + np.float32(sigma) * rng.standard_normal(images.shape, dtype="float32")
