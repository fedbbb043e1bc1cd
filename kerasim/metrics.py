"""NumPy in, numbers out."""

import numpy as np

from kerasim.errors import ArgumentError, check_number


def psnr(images, reference, data_range: float = 1.0) -> np.ndarray:
    """Measures the peak signal-to-noise ratio of each image, in decibels.

    `psnr = 10 log10(data_range**2 / mse)`; infinite for equal images. The mean over images of
    this, as papers report it, is not the PSNR of the mean error.

    Args:
        images: `(n, height, width, channels)`, float.
        reference: What they should be; the same shape.
        data_range: The largest value less the smallest possible.

    Returns:
        `(n,)` float64.
    """
    check_number("data_range", data_range, 1e-300)
    images, reference = np.asarray(images), np.asarray(reference)
    if images.shape != reference.shape or images.ndim != 4:
        raise ArgumentError(
            f"images {images.shape} and reference {reference.shape} must have one shape "
            "(n, height, width, channels)."
        )
    if "f" != images.dtype.kind or "f" != reference.dtype.kind:
        raise ArgumentError(
            f"images ({images.dtype}) and reference ({reference.dtype}) must be float: divide "
            "uint8 by 255, or pass both as float with data_range=255."
        )
    errors = [
        np.mean(np.square(a.astype("float64") - b)) for a, b in zip(images, reference, strict=True)
    ]
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / np.array(errors))
