"""Thumbnails: small encoded copies of the images of a gallery, so that it can show them itself."""

import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from kerasim import _artifacts
from kerasim.images import decode

LARGEST = 128  # pixels of the longer side
# With more items than this, new thumbnails have at most that many pixels on the longer side.
_SIDES = ((100_000, 32), (10_000, 64))
_CONTENT, _LENGTHS = "thumbnails.bin", "thumbnails.npy"


def side_for(count: int, largest: int | None) -> int:
    """Returns the longer side of new thumbnails in a gallery of `count` items; 0 for none."""
    if largest is None:
        return 0
    return min([largest, *(side for more_than, side in _SIDES if count > more_than)])


def of_file(file, side: int) -> bytes:
    """Returns the thumbnail of an image file.

    Raises:
        ImageError: If it cannot be decoded.
    """
    return of_pixels(decode(file, None, 3, thumbnail_side=2 * side)[0], side)


def of_pixels(pixels: np.ndarray, side: int) -> bytes:
    """Returns the thumbnail of an image, uint8 or float in [0, 1]."""
    if pixels.dtype.kind == "f":
        pixels = np.rint(255 * np.clip(pixels, 0, 1)).astype("uint8")
    image = Image.fromarray(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1))
    image.thumbnail((side, side), reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80, method=1)
    return file.getvalue()


def write(thumbnails: list[bytes], folder: Path) -> None:
    """Writes thumbnails to two files in `folder`; nothing if there are none."""
    if any(thumbnails):
        np.save(folder / _LENGTHS, np.array([len(one) for one in thumbnails], "int64"))
        with open(folder / _CONTENT, "wb") as file:
            file.writelines(thumbnails)


def read(folder: Path, count: int) -> list[bytes]:
    """Reads what `write` wrote; `count` empty ones if there are no files.

    Raises:
        ValueError: If the files do not fit each other, or are not `count` thumbnails.
    """
    if not (folder / _LENGTHS).exists():
        return [b""] * count
    lengths = _artifacts.read_array(folder / _LENGTHS)
    content = (folder / _CONTENT).read_bytes()
    if lengths.shape != (count,) or lengths.dtype != np.int64 or (lengths < 0).any():
        raise ValueError(f"{_LENGTHS} does not hold the lengths of {count} thumbnails")
    sizes = lengths.tolist()
    if sum(sizes) != len(content):
        raise ValueError(f"{_CONTENT} has {len(content)} bytes, not {sum(sizes)}")
    ends = itertools.accumulate(sizes)
    return [content[end - size : end] for end, size in zip(ends, sizes, strict=True)]
