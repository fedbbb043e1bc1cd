"""Layers, blocks and checks that several model families share."""

import math
from typing import Any

import keras
import numpy as np
import scipy.special
from keras import layers

from kerasim import _checks
from kerasim.errors import ArgumentError, ArgumentTypeError

# With the default of Keras, 0.99, the moving statistics still hold 55 % of their initial values
# after 60 steps, and the network in inference mode is not the one that was trained. With 0.9 they
# hold 0.2 %.
BATCH_NORM_MOMENTUM = 0.9

# An output layer with a sigmoid starts with a hundredth of the usual variance, so that the first
# outputs lie near 0.5, where the gradient of the sigmoid is largest.
OUTPUT_GAIN = 0.01

DOUBLING_STRIDE = 2

# Passed to every layer that takes a data format: images are channels-last in all of kerasim,
# whatever `keras.config.image_data_format()` says.
CHANNELS_LAST = "channels_last"


def check_image_shape(image_shape, factor: int = 1, open_size: bool = False) -> tuple:
    """Returns `image_shape` if its height and width are multiples of `factor`.

    With `open_size` height and width may be None.

    Raises:
        ArgumentError: If they are not; the message names the nearest sizes.
    """
    shape = _checks.as_tuple(image_shape) or ()
    if len(shape) != 3:
        raise ArgumentTypeError(
            f"image_shape={image_shape!r} is not an image shape. Pass (height, width, channels), "
            "such as (32, 32, 3)."
        )
    for name, n in zip(("height", "width", "channels"), shape, strict=True):
        if not (open_size and n is None and name != "channels"):
            _checks.integer(f"{name} of image_shape={shape}", n)
    shape = tuple(n if n is None else int(n) for n in shape)
    sizes = [n for n in shape[:2] if n is not None]
    if factor > 1 and any(n % factor for n in sizes):
        nearest = [n and _nearest_multiples(n, factor) for n in shape[:2]]
        raise ArgumentError(
            f"image_shape={shape} must have a height and a width that are multiples of {factor}. "
            f"The nearest heights are {nearest[0]}, the nearest widths {nearest[1]}. Resize the "
            "images, or pass fewer widths."
        )
    return shape


def _nearest_multiples(n, factor: int) -> list[int]:
    """Returns the positive multiples of `factor` next to `n`: one or two."""
    return sorted({n - n % factor or factor, n + -n % factor})


def check_least(image_shape, least: int, widths) -> None:
    """Raises unless an image is large enough for as many stages as there are `widths`."""
    if min(image_shape[:2]) < least:
        raise ArgumentError(
            f"image_shape={image_shape} is too small for the {len(widths)} stages of "
            f"widths={widths}: height and width must be {least} or more. Resize the images or "
            "pass fewer widths."
        )


def check_widths(name: str, widths) -> tuple[int, ...]:
    """Returns `widths` as a tuple of positive integers, one for each stage."""
    widths = tuple(_checks.integer(f"each of {name}", n) for n in _checks.as_list(name, widths))
    if not widths:
        raise ArgumentError(f"{name}=() is empty: pass one number or more, such as (32, 64).")
    return widths


def check_sizes(
    image_shape, widths, step: int = 0, open_size: bool = False
) -> tuple[tuple, tuple[int, ...]]:
    """Returns `image_shape` and `widths` as tuples of integers.

    With a `step`, height and width must be multiples of `step * 2 ** (len(widths) - 1)`. With
    `open_size` they may be None.

    Raises:
        ArgumentError: If they are not, or a number is not positive.
    """
    widths = check_widths("widths", widths)
    return check_image_shape(image_shape, step * 2 ** (len(widths) - 1), open_size), widths


def float_input(shape: tuple, name: str):
    """Returns an input of float32, whatever `keras.config.floatx()` says."""
    return keras.Input(shape, dtype="float32", name=name)


def image_input(image_shape, name: str = "images"):
    """Returns the input of a model of images."""
    return float_input(image_shape, name)


def vector_input(dim: int, name: str):
    """Returns the input of a model of vectors."""
    return float_input((dim,), name)


def batch_norm(name: str) -> layers.BatchNormalization:
    """Returns BatchNormalization whose moving statistics are right after 60 steps."""
    return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=name)


def activation_gain(activation: str | None) -> float:
    """Returns the variance of a kernel, times its fan-in, that compensates for `activation`.

    `gain = 1 / E[activation(z)**2]` for standard normal `z`: 2 for ReLU (He et al., 2015.
    https://arxiv.org/abs/1502.01852), 2.8 for SiLU, 1 without an activation. With kernels of
    variance `gain / fan_in`, outputs have about the mean square of the inputs.
    """
    quantiles = (np.arange(4096) + 0.5) / 4096
    normal = scipy.special.ndtri(quantiles)
    column = keras.ops.convert_to_tensor(normal[:, None], "float32")
    values = keras.ops.convert_to_numpy(keras.activations.get(activation)(column))
    return round(float(1 / np.mean(values**2)), 1)


def kernel_initializer(activation: str | None) -> Any:
    """Returns an initializer that preserves the size of signals through layers with `activation`.

    The default of Keras (Glorot) halves the variance at each ReLU layer. In a decoder of ten layers
    the part of the signal that depends on the image then nearly vanishes: all images get the same
    gradient, Adam amplifies it until the sigmoid saturates, and the network stops learning.
    """
    return keras.initializers.VarianceScaling(activation_gain(activation))


def output_initializer() -> Any:
    """Returns an initializer for an output layer with a sigmoid; see `OUTPUT_GAIN`."""
    return keras.initializers.VarianceScaling(OUTPUT_GAIN)


def doubling_initializer(gain: float) -> Any:
    """Returns an initializer for the transposed convolutions of `double`.

    Each output pixel is a sum over the input channels at `(kernel size / stride)**2` positions.
    Keras counts the last axis of a kernel as its outputs. In a transposed convolution this axis
    holds the inputs, hence "fan_out"; the factor `stride**2` accounts for the positions.
    """
    return keras.initializers.VarianceScaling(gain * DOUBLING_STRIDE**2, "fan_out")


def conv(
    x,
    filters: int,
    name: str,
    strides: int = 1,
    activation: str | None = "relu",
    size: int | None = None,
    **kwargs,
):
    """Applies a convolution: 3 x 3 unless `size` says otherwise, or 4 x 4 with a stride of 2."""
    if size is None:
        size = 3 if strides == 1 else 2 * strides
    kwargs.setdefault("kernel_initializer", kernel_initializer(activation))
    kwargs.setdefault("padding", "same")
    kwargs.update(activation=activation, data_format=CHANNELS_LAST, name=name)
    return layers.Conv2D(filters, size, strides, **kwargs)(x)


def zero_conv(x, filters: int, name: str, dtype: str | None = None):
    """Applies a 3 x 3 convolution whose output is zero before training."""
    return conv(x, filters, name, activation=None, kernel_initializer="zeros", dtype=dtype)


def double(x, filters: int, name: str, activation: str | None = None, **kwargs):
    """Applies a 4 x 4 transposed convolution that doubles height and width."""
    kwargs.setdefault("kernel_initializer", doubling_initializer(activation_gain(activation)))
    kwargs.update(activation=activation, data_format=CHANNELS_LAST, name=name)
    return layers.Conv2DTranspose(filters, 4, DOUBLING_STRIDE, "same", **kwargs)(x)


def downsample(x, filters: int, name: str):
    """Applies a 2 x 2 convolution with a stride of 2, which halves height and width."""
    initializer = kernel_initializer(None)
    layer = layers.Conv2D(
        filters, 2, 2, kernel_initializer=initializer, data_format=CHANNELS_LAST, name=name
    )
    return layer(x)


def upsample(x, filters: int, name: str):
    """Applies a 2 x 2 transposed convolution with a stride of 2, which doubles height and width."""
    initializer = doubling_initializer(1.0)
    layer = layers.Conv2DTranspose(
        filters, 2, 2, kernel_initializer=initializer, data_format=CHANNELS_LAST, name=name
    )
    return layer(x)


def max_pool(x, name: str):
    """Applies 2 x 2 max-pooling."""
    return layers.MaxPooling2D(data_format=CHANNELS_LAST, name=name)(x)


def flatten(x, name: str = "flatten"):
    """Flattens feature maps to vectors."""
    return layers.Flatten(data_format=CHANNELS_LAST, name=name)(x)


def dense(x, units: int, name: str, activation: str | None = None, **kwargs):
    """Applies a dense layer whose initialization fits its activation."""
    kwargs.setdefault("kernel_initializer", kernel_initializer(activation))
    return layers.Dense(units, activation, name=name, **kwargs)(x)


def conv_norm(x, filters: int, name: str, padding: str = "same", activation: str | None = "relu"):
    """Applies a 3 x 3 convolution, BatchNormalization and the activation."""
    x = conv(x, filters, name, activation=None, padding=padding, use_bias=False)
    x = batch_norm(f"{name}_norm")(x)
    return x if activation is None else layers.Activation(activation, name=f"{name}_act")(x)


def residual_block(x, filters: int, name: str, activation: str = "relu"):
    """Adds the output of two convolutions to `x` (He et al., 2016. https://arxiv.org/abs/1512.03385).

    The second convolution starts at zero, so that each block is the identity before training and
    signals keep their size through any number of blocks (Zhang et al., 2019.
    https://arxiv.org/abs/1901.09321). No activation follows the sum: the shortcut stays linear
    (Lim et al., 2017. https://arxiv.org/abs/1707.02921).
    """
    y = conv(x, filters, f"{name}_conv1", activation=activation)
    y = zero_conv(y, filters, f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([x, y])


def joined(encoder, decoder, name: str) -> keras.Model:
    """Returns the autoencoder of an encoder and a decoder, its layers "encoder" and "decoder"."""
    images = image_input(encoder.input_shape[1:])
    return keras.Model(images, decoder(encoder(images)), name=name)


def encoded(x, widths, dense_width: int, activation: str, blocks: int = 0):
    """Halves images once for each of `widths`, then applies a dense layer.

    Returns its output, and the shape of the feature map before it.
    """
    for n, filters in enumerate(widths, start=1):
        x = conv(x, filters, f"down{n}", 2, activation)
    for block in range(1, blocks + 1):
        x = residual_block(x, widths[-1], f"block{block}", activation)
    return dense(flatten(x), dense_width, "dense", activation), x.shape[1:]


def decoded(codes, shape, widths, dense_width: int, activation: str, blocks: int = 0):
    """Turns codes into a feature map of `shape`, then doubles it `len(widths) - 1` times."""
    x = dense(codes, dense_width, "dense1", activation)
    x = dense(x, math.prod(shape), "dense2", activation)
    x = layers.Reshape(shape, name="reshape")(x)
    for block in range(1, blocks + 1):
        x = residual_block(x, widths[-1], f"block{block}", activation)
    for n in range(len(widths), 1, -1):
        x = double(x, widths[n - 2], f"up{n}", activation)
    return x
