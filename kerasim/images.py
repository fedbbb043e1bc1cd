"""The only image decoder: whatever the file, upright 8-bit RGB or grey comes out.

Pillow does the decoding. Around it stands what makes a foreign file safe and the same everywhere: a
short list of formats, found by content and not by name; a limit on pixels, so that a small file
cannot fill the memory; and one error that names the file, whatever broke inside. Training, search
and the command line all come through here, so that a picture has the same pixels on every path.
"""

import contextlib
import io
import os
import threading
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from kerasim import checks
from kerasim.errors import ArgumentError, ImageError

# Formats by Pillow's name; nothing else is opened, whatever a file calls itself.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAX_PIXELS = 64_000_000

# What makes an image of EXIF orientation 2, 3 ... 8 upright.
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {n: Image.Transpose[turn] for n, turn in enumerate(_TURNS.split(), start=2)}

_quiet_lock = threading.Lock()
_quiet = {"depth": 0, "filters": None}


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
        ArgumentError: If size, channels or dtype are others.
        ArgumentTypeError: If `source` is neither a path nor bytes.
    """
    checks.choice("dtype", dtype, ("float32", "uint8"))
    pixels, animated = decode(source, check_size(image_size), check_channels(channels))
    if animated:
        checks.warn(f"{_name(source)} has several frames: the first is used.")
    return pixels if dtype == "uint8" else as_float(pixels)


def decode(source, size=None, channels: int = 3) -> tuple[np.ndarray, bool]:
    """Decodes one image as `read_image` does, and says whether there are more frames.

    Args:
        source: Path of a file, or its bytes.
        size: `(height, width)`, or None to keep it.
        channels: 3 for RGB, 1 for grey.

    Returns:
        `(pixels, animated)`: uint8 `(height, width, channels)`, and whether the file has several
        frames.

    Raises:
        ImageError: As `read_image`.
        ArgumentTypeError: If `source` is neither a path nor bytes.
    """
    checks.kind("source", source, (bytes, str, os.PathLike), "pass a path or a file's bytes")
    name, file = _name(source), io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if file is source:
            checks.regular_file(source, ImageError)
        with _no_pillow_warnings(), Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                held = f"{image.width} x {image.height} pixels"
                raise ImageError(f"{name} has {held}, more than {MAX_PIXELS}: shrink or remove it.")
            animated = getattr(image, "is_animated", False)
            return _decode(image, name, size, channels), animated
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if unknown else f"{type(error).__name__}: {error}"
        mend = f"expected a whole image in one of {', '.join(FORMATS)}. Replace or remove it"
        raise ImageError(f"Cannot decode {name} ({reason}): {mend}.") from error


def as_float(images: np.ndarray) -> np.ndarray:
    """Returns uint8 `images` as float32 in [0, 1], and floats as float32."""
    if images.dtype == np.uint8:
        return np.divide(images, np.float32(255), dtype="float32")  # no copy on the way
    return images.astype("float32", copy=False)


def check_channels(channels) -> int:
    """Returns `channels` if it is 1 or 3, else raises an `ArgumentError`."""
    if checks.integer("channels", channels) not in (1, 3):
        raise ArgumentError(f"channels={channels!r} is not known: pass 3 for RGB or 1 for grey.")
    return int(channels)


def check_size(image_size) -> tuple[int, int] | None:
    """Returns `image_size`, or None, as `(height, width)`, else raises an `ArgumentError`."""
    if image_size is None:
        return None
    size = tuple(image_size) if np.iterable(image_size) else (image_size, image_size)
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in size]
    if len(size) != 2 or not all(whole) or min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        mend = f"pass a positive whole number or (height, width), {MAX_PIXELS} pixels at most"
        raise ArgumentError(f"image_size={image_size!r} is no size: {mend}.")
    return int(size[0]), int(size[1])


@contextlib.contextmanager
def _no_pillow_warnings():
    # Pillow warns of metadata that we do not use. The first thread in saves the filters and the
    # last one out restores them: threads that each did so would leave one another's behind.
    with _quiet_lock:
        if _quiet["depth"] == 0:
            _quiet["filters"] = warnings.catch_warnings()
            _quiet["filters"].__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet["depth"] += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet["depth"] -= 1
            if _quiet["depth"] == 0:
                _quiet["filters"].__exit__(None, None, None)


def _name(source) -> str:
    return "the encoded image" if isinstance(source, bytes) else checks.shown(source)


def _decode(image, name, size, channels) -> np.ndarray:
    image.load()
    turn = None
    with contextlib.suppress(Exception):  # damaged EXIF says nothing of the pixels
        # ImageOps.exif_transpose would write the EXIF anew, and give up over any other bad tag.
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        levels = np.asarray(image, dtype="int64")
        clear = levels == image.info.get("transparency")
        image = _from_levels(np.where(clear, 255, levels >> 8), name, "16-bit")
    elif image.mode == "F":
        levels = np.rint(np.asarray(image, dtype="float64") * 255)
        image = _from_levels(levels, name, "[0, 1] floating point")
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
