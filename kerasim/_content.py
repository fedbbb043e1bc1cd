"""A digest of images, by which a change of their content is detected."""

import hashlib
import os

import numpy as np

from kerasim import _checks
from kerasim._folders import ImageFolder, thread_map
from kerasim.errors import ImageError


def content_hash(images) -> str:
    """Returns a digest of an array, or of a folder of images, as hexadecimal digits.

    Of an array it covers shape, data type and every value, and the mask of a masked one. Of a
    folder it covers the shape and type of the decoded images, how they are resized, and path and
    content of each file:
    time stamps may stay as they are when a file is replaced.

    Args:
        images: An array, or an `ImageFolder`, whose files are read.

    Raises:
        ImageError: If a file cannot be read.
    """
    if not isinstance(images, ImageFolder) and not isinstance(images, np.ndarray):
        images = _checks.array("images", images)
    digest = hashlib.sha256(repr((images.shape, str(images.dtype))).encode())
    if isinstance(images, ImageFolder):
        if images.resize != "squash":  # of which older digests are
            digest.update(images.resize.encode())
        contents = thread_map(_content, images.files)
        for file, content in zip(images.files, contents, strict=True):
            digest.update(repr((os.fsencode(file), content)).encode())
        return digest.hexdigest()
    if np.ma.isMaskedArray(images):
        digest.update(np.ma.getmaskarray(images).tobytes())
        images = images.filled()
    if images.dtype.kind in "OT":  # memory holds the addresses of objects, others each time
        digest.update(_describe_values(images.tolist()).encode())
    elif images.flags.c_contiguous:
        digest.update(images.reshape(-1).view("uint8").data)
    else:  # in blocks, since each is copied, and the array may be a file larger than memory
        for rows in _checks.row_blocks(images):
            digest.update(np.ascontiguousarray(images[rows]).reshape(-1).view("uint8").data)
    return digest.hexdigest()


def _content(file) -> str:
    """Returns a digest of the content of a file."""
    _checks.regular_file(file, ImageError)
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _describe_values(values) -> str:
    """Returns all values of a list, and of lists and arrays in it, with their types."""
    if isinstance(values, (list, tuple)):
        return f"{type(values).__name__}({','.join(map(_describe_values, values))})"
    if isinstance(values, np.ndarray):
        return content_hash(values)
    return f"{type(values).__name__}:{values!r}"
