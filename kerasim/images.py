"""The image decoder. It returns upright 8-bit RGB or gray images from all supported formats.

Pillow decodes the files. This module adds what is needed for untrusted files and reproducible
results: a short list of formats, recognized by content and not by name; a limit on the number of
pixels, so that a small file cannot fill the memory; and an error that names the file. Training,
search and the command line all use this decoder, so an image always has the same pixels.
"""

import contextlib
import functools
import io
import os
import struct
import threading
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from kerasim import _checks
from kerasim.errors import ArgumentError, ImageError

__all__ = [
    "read_image",
]

Resize: TypeAlias = Literal["squash", "crop", "pad"]

# Formats by Pillow's name; nothing else is opened, whatever a file calls itself.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif")
NO_HEIC = "a HEIC image: install pillow-heif, or convert it to JPEG"
_START = 64  # bytes of a file that tell its format
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
MAX_PIXELS = 64_000_000
# Decoders keep some bytes for each row, however short it is.
MAX_SIDE = 1_000_000
# Tiles of a TIFF are decoded whole, however small the image is.
_MAX_TILE_PIXELS = 4_000_000
# Images of more pixels than this are decoded two at a time, whatever the number of threads.
_LARGE_PIXELS = 8_000_000
_large_images = threading.BoundedSemaphore(2)
# Rows that are put on white at once have about this many pixels.
_BAND_PIXELS = 1_000_000

# What makes an image of EXIF orientation 2, 3 ... 8 upright.
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_EXIF_SHORT = 3
_UPRIGHT = {n: Image.Transpose[turn] for n, turn in enumerate(_TURNS.split(), start=2)}


def read_image(
    source: Path | str | bytes,
    image_size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] = 3,
    dtype: Literal["float32", "uint8"] = "float32",
    resize: Resize = "squash",
) -> np.ndarray:
    """Decodes one image.

    The EXIF orientation is applied and transparent parts become white. Samples of 12 or 16 bits
    are reduced to their upper 8 bits. If the file declares that 0 is white, the image is inverted.
    CMYK and palette images are converted to RGB. Color profiles are ignored. The first frame of an
    animation is returned, with a warning. HEIC, the format of many phones, is read if pillow-heif
    is installed.

    Samples whose white level the file does not define are refused: signed or 32-bit integers, and
    floats outside [0, 1].

    Args:
        source: Path of a file, or its bytes.
        image_size: `(height, width)`, or one number for both, to which the image is resized with
            bilinear interpolation. None keeps the size of the file.
        channels: 3 for RGB, 1 for gray.
        dtype: "float32" in [0, 1] or "uint8" in 0..255.
        resize: How an image of another aspect ratio gets to `image_size`: "squash" stretches it,
            "crop" cuts the longer sides off its center, "pad" adds black borders.

    Returns:
        Array `(height, width, channels)`.

    Raises:
        ImageError: If the file is missing, is damaged, is not JPEG, PNG, BMP, GIF, TIFF, WebP or
            AVIF, nor HEIC with pillow-heif installed, has more than 64 million pixels or 1 million
            rows or columns, or has samples without a defined white level. The message names the
            file.
        ArgumentError: If `image_size`, `channels`, `dtype` or `resize` is invalid.
        ArgumentTypeError: If `source` is neither a path nor bytes.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (20, 10), "red").save("red.png")
        >>> image = read_image("red.png")
        >>> image.shape
        (10, 20, 3)
        >>> image[0, 0].tolist()
        [1.0, 0.0, 0.0]
    """
    _checks.one_of("dtype", dtype, ("float32", "uint8"))
    check_resize(resize)
    pixels, animated = decode(
        source, check_size(image_size), check_channels(channels), resize=resize
    )
    if animated:
        _checks.warn(f"{_name(source)} has several frames: the first is used.")
    return pixels if dtype == "uint8" else as_float(pixels)


def decode(
    source,
    size=None,
    channels: int = 3,
    thumbnail_side: int | None = None,
    resize: Resize = "squash",
) -> tuple[np.ndarray, bool]:
    """Decodes one image as `read_image` does, and says whether there are more frames.

    Args:
        source: Path of a file, or its bytes.
        size: `(height, width)`, or None to keep it.
        channels: 3 for RGB, 1 for gray.
        thumbnail_side: Both sides may be returned this small, in pixels. A JPEG file is then
            decoded at a half, a quarter or an eighth of its size, which takes less time.
        resize: As for `read_image`.

    Returns:
        `(pixels, animated)`: uint8 `(height, width, channels)`, and whether the file has several
        frames.

    Raises:
        ImageError: As `read_image`.
        ArgumentTypeError: If `source` is neither a path nor bytes.
    """
    _checks.instance("source", source, (bytes, str, os.PathLike), "pass a path or a file's bytes")
    name, file = _name(source), io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if file is source:
            _checks.regular_file(source, ImageError)
        formats = _formats_for(source, name)
        with _checks.no_warnings("PIL."), Image.open(file, formats=formats) as image:
            _check_extent(image, name)
            if thumbnail_side is not None:
                image.draft(None, (thumbnail_side, thumbnail_side))
            large = image.width * image.height > _LARGE_PIXELS
            with _large_images if large else contextlib.nullcontext():
                animated = getattr(image, "is_animated", False)
                return _decode(image, name, size, channels, resize), animated
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = (
            "unknown format or kind of pixels" if unknown else f"{type(error).__name__}: {error}"
        )
        raise ImageError(
            f"Cannot decode {name} ({reason}): expected a complete image in one of "
            f"{', '.join(FORMATS)}. Replace or remove it."
        ) from error


def is_avif(start: bytes) -> bool:
    """Returns whether a file is an AVIF image by its first 64 bytes."""
    return bool(_brands(start) & _AVIF_BRANDS)


def is_heic(start: bytes) -> bool:
    """Returns whether a file is a HEIC image by its first 64 bytes."""
    return bool(_brands(start) & _HEIC_BRANDS) and not is_avif(start)


def _brands(start: bytes) -> set[bytes]:
    """Returns the brands that a HEIF file, such as AVIF and HEIC, says to be compatible with."""
    if start[4:8] != b"ftyp":
        return set()
    length = min(int.from_bytes(start[:4], "big"), len(start))
    return {start[8:12], *(start[n : n + 4] for n in range(16, length, 4))}


@functools.cache
def reads_heic() -> bool:
    """Returns whether pillow-heif is installed, and registers it as a decoder of Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def as_float(images: np.ndarray) -> np.ndarray:
    """Returns uint8 `images` as float32 in [0, 1], and floats as float32.

    Example:
        >>> as_float(np.array([0, 51, 255], dtype="uint8")).tolist()
        [0.0, 0.20000000298023224, 1.0]
    """
    if images.dtype == np.uint8:
        return np.divide(images, np.float32(255), dtype="float32")  # no copy on the way
    return images.astype("float32", copy=False)


def check_channels(channels) -> int:
    """Returns `channels` if it is 1 or 3, else raises an `ArgumentError`."""
    if _checks.integer("channels", channels) not in (1, 3):
        raise ArgumentError(f"channels={channels!r} is not known: pass 3 for RGB or 1 for gray.")
    return int(channels)


def check_resize(resize) -> None:
    """Raises an `ArgumentError` unless `resize` is a known way to resize."""
    _checks.one_of("resize", resize, get_args(Resize))


def check_size(image_size) -> tuple[int, int] | None:
    """Returns `image_size`, or None, as `(height, width)`, else raises an `ArgumentError`."""
    if image_size is None:
        return None
    size = _checks.as_tuple(image_size)
    if size is None:
        size = (image_size, image_size)
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in size]
    if len(size) != 2 or not all(whole) or min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ArgumentError(
            f"image_size={image_size!r} is not valid: pass a positive whole number or "
            f"(height, width), {MAX_PIXELS} pixels at most."
        )
    return int(size[0]), int(size[1])


def _name(source) -> str:
    return "the encoded image" if isinstance(source, bytes) else _checks.shown(source)


def _formats_for(source, name: str) -> tuple[str, ...]:
    """Returns the formats that `source` may have, by Pillow's names."""
    if isinstance(source, bytes):
        start = source[:_START]
    else:
        with open(source, "rb") as file:
            start = file.read(_START)
    if not is_heic(start):
        return FORMATS
    if not reads_heic():
        raise ImageError(f"{name} is {NO_HEIC}.")
    return ("HEIF",)


def _check_extent(image, name: str) -> None:
    """Refuses an image that takes much memory, by what its header says."""
    size = f"{image.width} x {image.height} pixels"
    # guard: pixels
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name} has {size}, more than {MAX_PIXELS}: shrink or remove it.")
    if max(image.size) > MAX_SIDE:
        raise ImageError(
            f"{name} has {size}; the longer side may have {MAX_SIDE} at most. Crop or remove it."
        )
    if image.format == "TIFF":
        tile_width = image.tag_v2.get(ExifTags.Base.TileWidth, 1)
        tile_height = image.tag_v2.get(ExifTags.Base.TileLength, 1)
        if tile_width * tile_height > max(_MAX_TILE_PIXELS, 2 * image.width * image.height):
            raise ImageError(
                f"{name} has {size} in tiles of {tile_width} x {tile_height}. Save it again with "
                "tiles no larger than the image, or remove it."
            )


def _decode(image, name: str, size, channels: int, resize: Resize) -> np.ndarray:
    key = _transparency_key(image, name)  # while the raw mode of the file is known
    inverted = _check_samples(image, name)
    has_transparency = "transparency" in image.info
    image.load()
    if not has_transparency:  # in a PNG it counts only in front of the pixels
        image.info.pop("transparency", None)
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I;16"):
        image = _from_16_bits(image, inverted, key)
    elif image.mode == "F":
        image = _from_floats(image, inverted, name)
    elif key is not None:
        image = _clear_to_white(image, key)
    elif image.mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = _on_white(image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:  # convert would copy an image that has the mode
        image = image.convert(mode)
    if size is not None and tuple(size) != (image.height, image.width):
        image = _resized(image, size[0], size[1], resize)
    return np.array(image).reshape(image.height, image.width, channels)


def _resized(image, height: int, width: int, resize: Resize):
    inner_height, inner_width = height, width
    if resize == "crop":
        cut_height, cut_width = fitting(height, width, image.height, image.width)
        left, top = (image.width - cut_width) // 2, (image.height - cut_height) // 2
        image = image.crop((left, top, left + cut_width, top + cut_height))
    elif resize == "pad":
        inner_height, inner_width = fitting(image.height, image.width, height, width)
    image = image.resize((inner_width, inner_height), Image.Resampling.BILINEAR)
    if image.size == (width, height):
        return image
    padded = Image.new(image.mode, (width, height))
    padded.paste(image, ((width - inner_width) // 2, (height - inner_height) // 2))
    return padded


def fitting(height, width, most_height, most_width):
    """Returns the largest size within `most_height` and `most_width` of a given aspect ratio.

    Args:
        height, width: A size of this aspect ratio.
        most_height, most_width: Largest size.

    Returns:
        `(height, width)`, whole numbers of 1 or more.
    """
    if width * most_height > height * most_width:
        rounded = (2 * most_width * height + width) // (2 * width)
        return max(1, min(rounded, most_height)), most_width
    rounded = (2 * most_height * width + height) // (2 * height)
    return most_height, max(1, min(rounded, most_width))


def _orientation(image):
    """Returns the EXIF orientation, or 0. Web browsers ignore that of XMP metadata, too."""
    if image.format == "TIFF":
        return image.tag_v2.get(ExifTags.Base.Orientation, 0)
    with contextlib.suppress(struct.error):  # damaged EXIF says nothing about the pixels
        exif = image.info.get("exif") or b""  # pillow-heif has None for none
        return _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    return 0


def _exif_orientation(exif: bytes) -> int:
    """Returns the orientation in EXIF data that starts with its TIFF header, or 0.

    Only a value of type SHORT counts, as in web browsers and in `_serving`; Pillow takes any type.

    Raises:
        struct.error: If the data end too early.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 0
    (directory,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, directory)
    for start in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", exif, start)
        if (tag, kind) == (ExifTags.Base.Orientation, _EXIF_SHORT) and length:
            # Of several values the first counts; more than two lie outside of the entry.
            place = start + 8
            if length > 2:
                (place,) = struct.unpack_from(f"{order}I", exif, place)
            return struct.unpack_from(f"{order}H", exif, place)[0]
    return 0


def _check_samples(image, name: str) -> bool:
    """Refuses samples without a defined white level.

    Returns:
        Whether 0 is white in samples that Pillow leaves as they are, those of more than 8 bits.
    """
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if tags.get(ExifTags.Base.PlanarConfiguration) == 2:
        _check_planes(image, name)
    sample_formats = {*np.ravel(tags.get(ExifTags.Base.SampleFormat, 1)).tolist()}
    if image.mode == "I" or not sample_formats <= {1, 3}:
        raise ImageError(
            f"{name} has signed or 32-bit integer samples, whose white level is not defined. "
            "Convert it to 8 or 16 unsigned bits per channel."
        )
    return tags.get(ExifTags.Base.PhotometricInterpretation) == 0


def _check_planes(image, name: str) -> None:
    """Refuses a TIFF that holds one plane for each channel, if Pillow would confuse them."""
    bits = {*np.ravel(image.tag_v2.get(ExifTags.Base.BitsPerSample, 1)).tolist()}
    is_compressed = image.tile[0][0] == "libtiff"
    is_read = bits == {8} or (bits == {16} and is_compressed)
    if len(image.getbands()) > 1 and not (is_read and image.mode in ("RGB", "RGBA")):
        raise ImageError(
            f"{name} stores one plane for each channel ({image.mode}, {max(bits)} bits), which is "
            "only read for RGB of 8 bits and for compressed RGB of 16 bits. Save it again with "
            "PlanarConfiguration 1, or with 8 bits per channel."
        )


def _from_16_bits(image, inverted: bool, key: int | None):
    """Returns the upper 8 bits of 16-bit samples, or of 12-bit ones, which Pillow stores alike."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    bits = int(np.ravel(tags.get(ExifTags.Base.BitsPerSample, 16))[0])
    samples = np.asarray(image)
    levels = (samples >> (bits - 8)).astype("uint8")
    if inverted:
        levels = 255 - levels
    if key is not None:
        levels[samples == key] = 255
    return Image.fromarray(levels)


def _from_floats(image, inverted: bool, name: str):
    levels = np.rint(np.asarray(image, dtype="float64") * 255)
    if not (levels.min() >= 0 and levels.max() <= 255):  # False for NaN, too
        raise ImageError(
            f"{name} has floating point samples outside [0, 1], whose white level is not defined. "
            "Scale them to [0, 1], or convert it to 8 bits per channel."
        )
    levels = levels.astype("uint8")
    return Image.fromarray(255 - levels if inverted else levels)


def _transparency_key(image, name: str) -> Any:
    """Returns the color or gray level of a PNG that is transparent, at 8 bits (16 for 16-bit gray).

    None if there is none, or for a palette, whose transparency Pillow converts itself.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or image.mode == "P":
        return None
    raw_mode = image.tile[0][3] if image.tile else image.mode  # such as "L;4" and "RGB;16B"
    if image.mode == "RGB" and "16" in raw_mode:
        raise ImageError(
            f"{name} has 16 bits per channel and one transparent color, which 8 bits cannot "
            "represent. Save it again with an alpha channel, or with 8 bits per channel."
        )
    # Only as many bits of a key count as a sample has.
    if image.mode == "1":
        return 255 * (key & 1)
    if image.mode == "L" and ";" in raw_mode:  # samples of 2 or 4 bits, which Pillow scales
        largest = 2 ** int(raw_mode.split(";")[1]) - 1
        return (key & largest) * 255 // largest
    if image.mode == "RGB":
        red, green, blue = key
        return red & 255, green & 255, blue & 255
    return key & 255 if image.mode == "L" else key


def _clear_to_white(image, key):
    """Makes the pixels of the color `key` white."""
    pixels = np.array(image.convert("RGB" if image.mode == "RGB" else "L"))
    is_clear = pixels == np.asarray(key)
    pixels[is_clear.all(axis=-1) if pixels.ndim == 3 else is_clear] = 255
    return Image.fromarray(pixels)


def _on_white(image):
    """Lays an image with alpha over white, a band of rows at a time, to save memory."""
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    laid = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        white = Image.new("RGBA", band.size, "white")
        laid.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return laid
