"""Noise on images: that of a camera, and of the file in which it stores them."""

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images
from kerasim.errors import ArgumentError
from kerasim.images import as_float

_LEAST_GAIN = 1e-12  # below, NumPy cannot draw so many photons


def add_noise(
    images: ArrayLike | ImageFolder,
    sigma: float,
    seed: int = 0,
    clip: bool = True,
    *,
    gain: float = 0.0,
    bits: int | None = None,
) -> np.ndarray:
    """Adds the noise of a camera to images.

    The noisy image is `gain * Poisson(image / gain) + sigma * normal`: the noise has the variance
    `gain * image + sigma**2`. With `gain=0` it is Gaussian noise, equal in dark and bright parts.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        sigma: Standard deviation of the Gaussian part, in units of [0, 1]; 0 or more.
        seed: The same seed draws the same noise.
        clip: Clip the result to [0, 1], as in an image file.
        gain: Brightness that one photon adds, in units of [0, 1]; 0 for no Poisson noise. A white
            pixel, of 1 / gain photons, has noise of the standard deviation `sqrt(gain)`.
        bits: Round the result to the levels of a file of so many bits, 1 to 16; None to keep it as
            it is. Needs `clip=True`.

    Returns:
        float32 images of the same shape.

    Raises:
        ArgumentError: If the images hold NaN or lie outside [0, 1], sigma or gain is negative, or
            `bits` is out of range or given without `clip`.

    Example:
        >>> noisy = add_noise(np.full((1, 64, 64, 1), 0.5), sigma=0.1)
        >>> round(float(noisy.std()), 2)
        0.1
        >>> photons = add_noise(np.full((1, 64, 64, 1), 0.5), sigma=0, gain=0.02, bits=8)
        >>> round(float(photons.std()), 2)  # sqrt(0.02 * 0.5)
        0.1

    Reference:
        Foi et al., 2008. https://doi.org/10.1109/TIP.2008.2001399
    """
    _checks.number("sigma", sigma, 0)
    check_noise(gain, clip, bits)
    images = check_images("images", images)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    return noisy_images(as_float(images[:]), sigma, rng, gain, clip, bits)


def check_noise(gain, clip, bits) -> tuple[float, bool, int | None]:
    """Returns these settings of noise, if they are in range and `bits` come with `clip`."""
    gain = _checks.number("gain", gain, 0)
    if 0 < gain < _LEAST_GAIN:
        raise ArgumentError(
            f"gain={gain:g} is below {_LEAST_GAIN:g}, noise that cannot be seen: pass 0 for no "
            "Poisson noise, or a larger gain."
        )
    clip = _checks.boolean("clip", clip)
    if bits is not None:
        bits = _checks.integer("bits", bits, 1, 16)
        if not clip:
            raise ArgumentError(
                f"bits={bits} needs clip=True: a file of {bits} bits holds no values outside "
                "[0, 1]. Pass clip=True, or bits=None."
            )
    return gain, clip, bits


def noisy_images(images, sigma, rng, gain=0.0, clip=False, bits=None):
    """Returns images with noise drawn from a generator.

    Args:
        images: Float images in [0, 1], `(n, height, width, channels)`.
        sigma: Standard deviation of the Gaussian part; a number or `(n, 1, 1, 1)`.
        rng: NumPy generator.
        gain: Brightness that one photon adds; a number or `(n, 1, 1, 1)`.
        clip: Whether to clip to [0, 1].
        bits: Bits of the levels to round to, or None.

    Returns:
        float32 images of the same shape.
    """
    noisy = images
    if np.any(gain):
        photons = np.where(gain, gain, 1.0)  # no division by a gain of 0
        counted = rng.poisson(np.maximum(images, 0) / photons) * photons
        noisy = np.where(gain, counted, images).astype("float32")
    noisy = noisy + np.float32(sigma) * rng.standard_normal(images.shape, dtype="float32")
    if clip:
        np.clip(noisy, 0, 1, out=noisy)
    if bits is not None:
        white = np.float32(2**bits - 1)
        noisy = np.rint(white * noisy) / white
    return noisy
