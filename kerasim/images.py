"""The only image decoder: whatever the file, upright 8-bit RGB or grey comes out."""

import io
import os
import stat
import warnings

import numpy as np
from PIL import Image, ImageOps

from kerasim.errors import ArgumentError, ImageError, check_choice

# Formats by Pillow's name; nothing else is opened, whatever a file calls itself.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAX_PIXELS = 64_000_000


def read_image(source, image_size=None, channels: int = 3, dtype: str = "float32") -> np.ndarray:
    """Decodes one image.

    EXIF rotation is applied, transparent parts become white, 16-bit channels keep their high
    byte, CMYK and palettes become RGB, and of an animation the first frame is taken, with a
    warning.

    Args:
        source: Path of a file, or its bytes.
        image_size: `(height, width)` or one number for both; bilinear. None keeps the size.
        channels: 3 for RGB, 1 for grey.
        dtype: "float32" in [0, 1] or "uint8" in 0..255.

    Returns:
        Array `(height, width, channels)`.

    Raises:
        ImageError: If the file is missing, no image of `FORMATS`, damaged, or of more than
            `MAX_PIXELS` pixels. The message names it.
    """
    check_choice("dtype", dtype, ("float32", "uint8"))
    if channels not in (1, 3):
        raise ArgumentError(f"channels={channels!r} is not known: pass 3 for RGB or 1 for grey.")
    size = check_size(image_size)
    name = "the encoded image" if isinstance(source, bytes) else ascii(os.fspath(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of metadata that we do not use
            with _open(source) as image:
                animated = getattr(image, "n_frames", 1) > 1
                pixels = _decode(image, name, size, channels)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        raise ImageError(
            f"Cannot decode {name} ({type(error).__name__}: {error}): expected a whole image in "
            f"one of {', '.join(FORMATS)}. Replace or remove it."
        ) from error
    if animated:
        warnings.warn(f"{name} has several frames: the first is used.", stacklevel=2)
    return pixels if dtype == "uint8" else pixels.astype("float32") / 255


def check_size(image_size) -> tuple[int, int] | None:
    """Returns `image_size` as `(height, width)`, or None."""
    if image_size is None:
        return None
    size = (image_size, image_size) if np.ndim(image_size) == 0 else tuple(image_size)
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in size]
    if len(size) != 2 or not all(whole) or min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ArgumentError(
            f"image_size={image_size!r} is no size: pass one positive whole number or "
            f"(height, width), of at most {MAX_PIXELS} pixels in all."
        )
    return int(size[0]), int(size[1])


def _open(source):
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=FORMATS)
    if not stat.S_ISREG(os.stat(source).st_mode):  # opening a FIFO would wait for ever
        raise OSError("not a regular file")
    return Image.open(source, formats=FORMATS)


def _decode(image, name, size, channels) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}: shrink or remove it."
        )
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing of the pixels
        image = image.copy()
    if image.mode.startswith("I"):
        image = _from_levels(np.asarray(image, dtype="int64") >> 8, name, "16-bit")
    elif image.mode == "F":
        image = _from_levels(np.rint(np.asarray(image) * 255.0), name, "[0, 1] floating point")
    elif image.mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB" if channels == 3 else "L")
    if size is not None and size != (image.height, image.width):
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.array(image).reshape(image.height, image.width, channels)


def _from_levels(levels: np.ndarray, name: str, expected: str):
    if not (levels.min() >= 0 and levels.max() <= 255):  # False for NaN, too
        raise ImageError(f"{name} has values outside {expected}: convert it to 8 bits per channel.")
    return Image.fromarray(levels.astype("uint8"))
