"""Checks of images, labels and models that several modules share."""

import os
from typing import Any

import keras
import numpy as np

from kerasim import _checks, _keras_compat
from kerasim._folders import ImageFolder
from kerasim.errors import ArgumentError, ArgumentTypeError


def check_shape(name: str, images, shape=(None, None, None)):
    """Returns `images` as an array, or an `ImageFolder` as it is, if its shape is right.

    Args:
        name: Argument that a message names.
        images: Images `(n, height, width, channels)`.
        shape: `(height, width, channels)` that a network takes; None for any.

    Raises:
        ArgumentError: If they are of another shape, or of several.
    """
    hint = "pass (n, height, width, channels)"
    if not isinstance(images, ImageFolder):
        refuse_other_sources(name, images)
        images = _checks.array(name, images, "resize the images to one size")
        if (
            images.ndim == 3
            and len(shape) == 3
            and all(want in (None, got) for want, got in zip(shape, images.shape, strict=True))
        ):
            if images.shape[2] > 4 and shape[2] is None:  # far more rows than channels
                raise ArgumentError(
                    f"{name} has shape {images.shape}, without channels; expected "
                    f"(n, height, width, channels). Pass {name}[..., None] for n gray images."
                )
            raise ArgumentError(
                f"{name} has shape {images.shape}, that of one image; expected "
                f"(n, height, width, channels). Pass {name}[None]."
            )
    _checks.shape(name, images, (None, *shape), f"{hint} of that size")
    if not all(images.shape[1:]):
        raise ArgumentError(f"{name} has shape {images.shape}: {hint} of one pixel or more.")
    return images


def refuse_other_sources(name: str, images) -> None:
    """Refuses paths, batches and iterators of images, with what to pass instead."""
    hint = None
    if isinstance(images, (str, bytes, os.PathLike)):
        hint = "pass kerasim.data.image_folder(path, image_size=(height, width))"
    elif isinstance(images, keras.utils.PyDataset):
        hint = "pass the array or the ImageFolder of which it makes batches"
    elif not hasattr(images, "shape") and not hasattr(images, "__len__") and np.iterable(images):
        hint = "pass an array, such as np.concatenate(list(batches)) of batches of images"
    elif hasattr(images, "element_spec"):  # a tf.data.Dataset
        hint = "pass an array, such as np.concatenate([images for images, labels in dataset])"
    if hint is not None:
        raise ArgumentTypeError(f"{name} is a {type(images).__name__}, not an array: {hint}.")


def check_images(name: str, images):
    """Returns `images` as an array, or an `ImageFolder` as it is, if their values are valid.

    Args:
        name: Argument that a message names.
        images: `(n, height, width, channels)`: float in [0, 1], or uint8 in 0..255.

    Raises:
        ArgumentError: On another shape, on NaN, or on floats outside [0, 1] (such as 0..255),
            with the rows.
        ArgumentTypeError: On another dtype.
    """
    images = check_shape(name, images)
    if isinstance(images, ImageFolder) or images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise ArgumentTypeError(
            f"{name} has dtype {images.dtype}: convert it to float in [0, 1] or to uint8."
        )
    low, high = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))
    # guard: nan-in-images
    _checks.bad_rows(name, ~(np.isfinite(low) & np.isfinite(high)), "NaN or infinity")
    _checks.bad_rows(
        name,
        (low < 0) | (high > 1),
        f"floats outside [0, 1], from {low.min(initial=0)} to {high.max(initial=1)} "
        "(divide by 255, or pass uint8),",
    )
    return images


def check_classes(labels, n: int, classes: int | None = None) -> np.ndarray:
    """Returns `labels` as an array of `n` integers, from 0 and below `classes` if that is given.

    Raises:
        ArgumentError: If their number is not `n`, or one is out of that range.
        ArgumentTypeError: If they are not integers.
    """
    labels = _checks.labels("labels", labels, n, "images")
    if labels.dtype.kind not in "iu":
        raise ArgumentTypeError(
            f"labels must be integers from 0, not {labels.dtype}: number the classes with "
            "np.unique(labels, return_inverse=True)[1]."
        )
    _checks.bad_rows("labels", labels < 0, "a negative class")
    if classes is not None:
        _checks.bad_rows("labels", labels >= classes, f"a class above {classes - 1}")
    return labels


def check_embedder(name: str, embedder, vectors: bool = False) -> tuple[tuple, int]:
    """Returns the image shape that a model takes, and the size of the vectors that it returns.

    Args:
        name: Argument that a message names.
        embedder: `keras.Model` from images to vectors.
        vectors: Whether a model from vectors to vectors, such as a head, is accepted as well.

    Returns:
        `(shape, dim)`: `(height, width, channels)`, with None for any size, or `(size,)` of a model
        from vectors; and an integer.

    Raises:
        ArgumentTypeError: If it is not a model with one input, images.
        ArgumentError: If it does not return vectors.
    """
    taken, given = shapes_of(name, embedder, vectors)
    if len(given) != 1:
        raise ArgumentError(
            f"{name} must map images to vectors, not {(None, *given)}: pass the "
            'encoder, such as model.get_layer("encoder").'
        )
    return taken, given[0]


def shapes_of(name: str, model, vectors: bool = False) -> tuple[tuple, tuple]:
    """Returns the shape of the images that a `model` takes, and of its output for one of them.

    Args:
        name: Argument that a message names.
        model: `keras.Model` of images.
        vectors: Whether a model of vectors is accepted as well.

    Raises:
        ArgumentTypeError: If it is not a model with one input, images.
        ArgumentError: If it has several outputs.
    """
    taken: Any = getattr(model, "input_shape", None)
    given: Any = getattr(model, "output_shape", None)
    if isinstance(model, str):
        raise ArgumentTypeError(
            f"{name} is {model!r}, of type str, not a keras.Model: pass a model, such "
            "as kerasim.models.pretrained_embedder(backbone) or load_embedder."
        )
    of_vectors = _is_shape(taken) and len(taken) == 2
    if of_vectors and not vectors:
        raise ArgumentTypeError(
            f"{name} must be a keras.Model of images. It takes vectors {taken}: append it to the "
            f"model that returns them, keras.Sequential([backbone, {name}])."
        )
    if not of_vectors and (not _is_shape(taken) or len(taken) != 4):
        raise ArgumentTypeError(
            f"{name} must be a keras.Model of images. Received {type(model).__name__}, "
            f"which takes {taken}: pass a model with one input (n, height, width, "
            "channels), such as one tower."
        )
    if _keras_compat.names_outputs(model):
        raise ArgumentError(
            f"{name} must return a tensor, not a dictionary: build it with one tensor "
            "as its output."
        )
    if not _is_shape(given):
        raise ArgumentError(
            f"{name} must have one output, not {given}: pass a part of it, such as "
            'model.get_layer("encoder").'
        )
    return taken[1:], given[1:]


def _is_shape(shape) -> bool:
    """Returns whether `shape` is that of one tensor, not a list or dict of several shapes."""
    return isinstance(shape, tuple) and all(n is None or isinstance(n, int) for n in shape)
