"""Augmentation of batches by layers of Keras and by functions."""

import contextlib
import functools
import importlib
import inspect
import random
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kerasim import _checks, _keras_compat
from kerasim._model_identity import architecture
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.images import as_float

# A layer, a function `augment(images, rng)`, or a sequence of these.
Augment = keras.Layer | Callable[[np.ndarray, np.random.Generator], Any] | Sequence[Any]

_GROUPS = (keras.Sequential, keras.layers.Pipeline)
_MIXING = (keras.layers.MixUp, keras.layers.CutMix)

# What `training.fit` compares as a whole; of another object that can be called, the attributes.
_FUNCTIONS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
    np.ufunc,
)

# Interpolation may exceed [0, 1] a little, and is clipped. What lies further out has another range.
_MOST_OVERSHOOT = 0.5

# Layers of these policies round images: bfloat16 has 8 bits for a level of 256.
_LOW_PRECISION = ("bfloat16", "float16")

# Keys of the config of a layer that do not affect what it computes here.
_WITHOUT_EFFECT = {"seed", "name", "build_config"}

# The seeds of a layer are variables, and two threads may draw batches at the same time.
_seeding = threading.Lock()


class Augmentation:
    """The steps of an argument `augment`, applied one after another to a batch of images.

    All that is random in a step depends on the generator of the batch alone: the seeds of a layer
    are set from it before each call. A layer that takes images in another range than [0, 1], as
    its `value_range` says, gets them in that range. Layers that were built under a global policy of
    low precision, such as "mixed_bfloat16" for the network, compute in float32 here.

    Args:
        augment: As for `ImageBatches`; None for no steps.

    Raises:
        ArgumentError: If a layer is channels-first, contains Rescaling, layers of several ranges,
            or MixUp or CutMix within a model, or its `value_range` is empty.
        ArgumentTypeError: If a step is neither a layer nor a function of two arguments.
    """

    def __init__(self, augment: Augment | None):
        self.steps = list(_flatten(augment))
        self._ranges = [_check_step(step) for step in self.steps]

    @property
    def mixes(self) -> bool:
        """Whether a step mixes the images of a batch, and with them their targets."""
        return any(isinstance(step, _MIXING) for step in self.steps)

    def __call__(self, images, rng, targets=None):
        """Returns augmented images, float32 in [0, 1], and their targets, which may be mixed."""
        for step, value_range in zip(self.steps, self._ranges, strict=True):
            if isinstance(step, keras.Layer):
                images, targets = _apply_layer(step, images, rng, targets, value_range)
            else:
                images = _check_result(step, images, step(images, rng))
        return images, targets

    def settings(self) -> list | None:
        """Returns the steps, with the config of each layer, for `training.fit` to compare."""
        return [_described(step) for step in self.steps] or None

    def __repr__(self) -> str:
        return f"[{', '.join(map(_shown, self.steps))}]"


def _flatten(augment):
    """Yields the steps of `augment` in order; those of `Pipeline` and `Sequential` one by one."""
    if augment is None:
        return
    if type(augment) in _GROUPS:  # a subclass may do more than to call its layers
        augment = augment.layers
    if isinstance(augment, (list, tuple)):
        for step in augment:
            yield from _flatten(step)
    else:
        yield augment


def _shown(step) -> str:
    if isinstance(step, keras.Layer):
        return type(step).__name__
    return getattr(step, "__name__", type(step).__name__)


def _described(step):
    if isinstance(step, keras.Model):  # without the names that Keras counts up in a process
        return {"class": type(step).__name__, "config": _config(architecture(step))}
    if isinstance(step, keras.Layer):
        return {"class": type(step).__name__, "config": _config(step.get_config())}
    if isinstance(step, _FUNCTIONS):
        return step
    attributes = getattr(step, "__dict__", {})
    return {"class": type(step).__name__, "call": type(step).__call__, **attributes}


def _config(value):
    """Returns the config of a layer without the keys that have no effect."""
    if isinstance(value, dict):
        return {key: _config(x) for key, x in value.items() if key not in _WITHOUT_EFFECT}
    return [_config(x) for x in value] if isinstance(value, (list, tuple)) else value


def _check_step(step) -> tuple[float, float]:
    """Returns the range in which a step takes images, (0, 1) unless it is a layer with another."""
    if not isinstance(step, keras.Layer):
        _check_function(step)
        return 0.0, 1.0
    layers = _keras_compat.flatten_layers(step)
    _refuse_layers(type(step).__name__, layers, step)
    ranges = [layer.value_range for layer in layers if hasattr(layer, "value_range")]
    return _common_range(type(step).__name__, ranges)


def _refuse_layers(shown, layers, step) -> None:
    """Raises an `ArgumentError` if one of the `layers` within a step does not fit images."""
    if any(isinstance(layer, keras.layers.Rescaling) for layer in layers):
        raise ArgumentError(
            "augment contains Rescaling, but images must stay in [0, 1]. Leave it out: a layer "
            "with a value_range, such as (0, 255), gets images in that range."
        )
    if any(getattr(layer, "data_format", None) == "channels_first" for layer in layers):
        raise ArgumentError(
            f"augment contains {shown} with channels first, but images are (height, width, "
            'channels). Build it with data_format="channels_last" or, if its inner layers do not '
            'take that over, after keras.config.set_image_data_format("channels_last").'
        )
    if any(isinstance(layer, _MIXING) for layer in layers if layer is not step):
        raise ArgumentError(
            f"augment contains {shown}, within which MixUp or CutMix would mix images without "
            "their targets. Pass its layers one by one, as a list."
        )


def _common_range(shown, ranges) -> tuple[float, float]:
    """Returns the range in which all layers of a step take images, (0, 1) if they have none."""
    found = {(float(low), float(high)) for low, high in ranges}
    if len(found) > 1:
        raise ArgumentError(
            f"augment contains {shown}, whose layers take images in several ranges, "
            f"{sorted(found)}. Pass these layers one by one, as a list."
        )
    low, high = found.pop() if found else (0.0, 1.0)
    if not low < high:
        raise ArgumentError(
            f"augment contains {shown} with value_range=({low:g}, {high:g}), which is empty. Pass "
            "the smallest value first, such as (0, 255)."
        )
    return low, high


def _check_function(step) -> None:
    advice = (
        "Pass a layer of Keras such as keras.layers.RandAugment(), a function "
        "augment(images, rng) that returns images, or a list of these."
    )
    if not callable(step) or isinstance(step, type):
        shown = step.__name__ if isinstance(step, type) else type(step).__name__
        raise ArgumentTypeError(f"augment contains {shown}, which cannot augment images. {advice}")
    try:
        inspect.signature(step).bind(None, None)
    except TypeError as error:
        raise ArgumentTypeError(
            f"augment contains {_shown(step)}, which cannot be called with images and a "
            f"numpy.random.Generator ({error}). {advice}"
        ) from None
    except ValueError:  # a function written in C, whose arguments are not known
        pass


def _apply_layer(layer, images, rng, targets, value_range):
    low, high = value_range
    inputs: Any = images if value_range == (0, 1) else low + (high - low) * images
    mixed = isinstance(layer, _MIXING) and targets is not None
    if mixed:
        inputs = {"images": inputs, "labels": targets.astype("float32")}
    with _seeding, _in_float32(layer), _seeded(layer, images.shape, rng):
        outputs = _call(layer, inputs, images.shape)
    if mixed:
        targets = _as_float32(outputs["labels"])
        outputs = outputs["images"]
    outputs = (_as_float32(outputs) - np.float32(low)) / np.float32(high - low)
    return _check_result(layer, images, outputs), targets


def _as_float32(tensor) -> Any:
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def _call(layer, inputs, shape) -> Any:
    """Returns what a layer makes of `inputs`, images of this `shape` and perhaps their targets.

    Raises:
        ArgumentError: If it does not take them, such as gray ones where it changes colors.
    """
    try:
        if type(layer) is keras.layers.RandAugment:
            return _keras_compat.rand_augment(layer, inputs)
        takes_training = "training" in inspect.signature(layer.call).parameters
        return layer(inputs, **({"training": True} if takes_training else {}))
    except Exception as error:
        if _checks.is_out_of_memory(error):
            raise
        shown = type(layer).__name__
        raise ArgumentError(
            f"augment: {shown} failed on images {shape}: {_checks.reason_of(error)}. Check that "
            "it takes images of this height, width and number of channels, or leave it out."
        ) from error


@contextlib.contextmanager
def _in_float32(layer):
    """Lets a layer, and those within it, compute in float32 if they would round images."""
    with contextlib.ExitStack() as restored:
        for inner in _keras_compat.flatten_layers(layer):
            if inner.compute_dtype in _LOW_PRECISION:
                restored.callback(setattr, inner, "dtype_policy", inner.dtype_policy)
                inner.dtype_policy = "float32"
        yield


@contextlib.contextmanager
def _seeded(layer, shape, rng):
    """Sets what a layer draws random numbers from, for one call."""
    with contextlib.ExitStack() as restored:
        if not layer.built:
            layer.build(shape)  # its inner layers may get their seeds here
        # PyTorch has no unsigned 32-bit integers, hence 31 bits.
        for variable in _keras_compat.seed_variables(layer):
            variable.assign(np.array([rng.integers(2**31), 0], "int64"))
        restored.callback(random.setstate, random.getstate())
        random.seed(int(rng.integers(2**31)))  # for AugMix
        if keras.backend.backend() == "torch":  # where Dropout ignores the seeds of Keras
            torch = importlib.import_module("torch")

            restored.enter_context(torch.random.fork_rng())
            torch.manual_seed(int(rng.integers(2**31)))
        yield


def _check_result(step, images, result) -> np.ndarray:
    """Returns what a step made of `images` as float32 in [0, 1].

    Raises:
        ArgumentError: If it is not a batch of as many images, or its range is not [0, 1].
    """
    shown = f"augment: {_shown(step)} returned"
    result = np.asarray(_checks.array("the result of augment", result))
    if result.ndim != 4 or len(result) != len(images) or not result.size:
        raise ArgumentError(
            f"{shown} {result.shape} for images {images.shape}: it must return as many images, "
            "(batch, height, width, channels), of one pixel or more."
        )
    if result.dtype.kind != "f" and result.dtype != np.uint8:
        raise ArgumentTypeError(
            f"{shown} {result.dtype}: it must return floats in [0, 1] or uint8. Convert them."
        )
    result = as_float(result)
    low, high = float(result.min(initial=0)), float(result.max(initial=0))
    if not (low >= -_MOST_OVERSHOOT and high <= 1 + _MOST_OVERSHOOT):  # also if one is NaN
        raise ArgumentError(
            f"{shown} values from {low:g} to {high:g}: images must stay in [0, 1]. Divide images "
            "in 0..255 by 255, and leave normalization to the network."
        )
    return result.clip(0, 1)
