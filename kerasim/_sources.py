"""Conversion of the images that users pass: paths, encoded images, `PIL.Image` objects, ids."""

import io
import os
import reprlib

import numpy as np
import pandas as pd
from PIL import Image

from kerasim import _checks
from kerasim.errors import ArgumentError, ArgumentTypeError


def sources(images) -> list | None:
    """Returns paths, encoded images and `PIL.Image` objects as a list; None for anything else.

    Raises:
        ArgumentTypeError: If some are of these kinds, and others are not.
        ArgumentError: If a path is empty.
    """
    kinds = (str, os.PathLike, bytes, Image.Image)
    if isinstance(images, kinds):
        images = [images]
    if isinstance(images, (pd.Series, pd.Index)):
        images = images.to_numpy(dtype=object)
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":
        images = images.ravel().tolist()
    if not isinstance(images, (list, tuple)):
        return None
    fitting = [isinstance(image, kinds) for image in images]
    if images and not any(fitting):
        return None
    for n, image in enumerate(images):
        if not fitting[n]:
            fix = "pass paths, encoded images (bytes) or PIL images"
            raise ArgumentTypeError(
                f"images[{n}] is {reprlib.repr(image)}, of type {type(image).__name__}, but "
                f"others are files or images: {fix}."
            )
        if isinstance(image, str) and not image:
            fix = 'Items that were added as arrays have no file: pass ids=found["id"]'
            raise ArgumentError(f"images[{n}] is an empty path. {fix}.")
    return list(images)


def encoded(image: Image.Image) -> bytes:
    """Encodes a `PIL.Image`, so that it is decoded like any image file."""
    if image.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA", "CMYK", "F"):
        image = image.convert("RGBA" if image.mode in ("La", "RGBa", "PA") else "RGB")
    if image.mode == "I" and 0 <= image.getextrema()[0] and image.getextrema()[1] < 2**16:
        image = image.convert("I;16")  # as 16-bit files are opened
    content = io.BytesIO()
    if image.mode in ("CMYK", "F", "I"):
        image.save(content, "TIFF")
    else:
        image.save(content, "PNG", compress_level=1, exif=image.getexif())
    return content.getvalue()


def are_integers(images) -> bool:
    """Returns whether `images` are ids of items: integers in no more than one dimension."""
    if isinstance(images, (int, np.integer)) and not isinstance(images, bool):
        return True
    if isinstance(images, (list, tuple)):
        whole = (int, np.integer)
        return bool(images) and all(
            isinstance(n, whole) and not isinstance(n, bool) for n in images
        )
    dtype = getattr(images, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind in "iu" and getattr(images, "ndim", 2) <= 1


def label_texts(labels, count: int, name: str = "labels") -> list[str]:
    """Returns labels as strings, "" for a missing one; 1.0 is "1", if all floats are whole."""
    plain = np.ma.getdata(labels) if isinstance(labels, np.ma.MaskedArray) else labels
    values = _checks.same_length(name, plain, count, "images", 1)
    absent = _checks.missing(labels)
    present = values[~absent].tolist()
    whole = all(isinstance(value, float) and value.is_integer() for value in present)
    texts = []
    for value, none in zip(values, absent, strict=True):
        if isinstance(value, bytes):  # as HDF5 files hold text
            value = os.fsdecode(value)
        text = str(int(value)) if whole and not none else str(value)
        texts.append("" if none else text)
    return texts
