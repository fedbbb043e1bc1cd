"""What several model families share."""

import math

import keras
import numpy as np
import scipy.special
from keras import layers

from kerasim import checks
from kerasim.errors import ArgumentError, ArgumentTypeError

# Keras' default of 0.99 needs hundreds of steps: after 60 of them the moving statistics still hold
# 55 % of their initial values, and the network in inference mode is not the one that was trained.
# At 0.9 it is 0.2 %.
BATCH_NORM_MOMENTUM = 0.9

# Weights of the output layer start with a hundredth of the usual variance, so that the first
# outputs lie near the middle of the sigmoid, where its gradient is largest.
OUTPUT_GAIN = 0.01

DOUBLING_STRIDE = 2


def check_image_shape(image_shape, factor: int = 1, open_size: bool = False) -> tuple:
    """Returns `image_shape` if its height and width are multiples of `factor`.

    With `open_size` they may be None.

    Raises:
        ArgumentError: If not; the message names the nearest sizes.
    """
    shape = tuple(image_shape) if np.iterable(image_shape) else ()
    if len(shape) != 3:
        mend = "pass (height, width, channels), such as (32, 32, 3)"
        raise ArgumentTypeError(f"image_shape={image_shape!r} is no shape: {mend}.")
    for name, n in zip(("height", "width", "channels"), shape, strict=True):
        if not (open_size and n is None and name != "channels"):
            checks.integer(f"{name} of image_shape={shape}", n)
    shape = tuple(n if n is None else int(n) for n in shape)
    if factor > 1 and any(n % factor for n in shape[:2]):
        high, wide = (sorted({n - n % factor or factor, n + -n % factor}) for n in shape[:2])
        what = f"image_shape={shape} must have a height and a width that are multiples of {factor}"
        nearest = f"The nearest heights are {high}, the nearest widths {wide}"
        raise ArgumentError(f"{what}. {nearest}: resize the images, or build fewer stages.")
    return shape


def check_least(image_shape, least: int, widths) -> None:
    """Raises unless an image is high and wide enough for as many stages as there are `widths`."""
    if min(image_shape[:2]) < least:
        what = f"image_shape={image_shape} shrinks to nothing in the stages of widths={widths}"
        mend = "Resize the images or pass fewer widths"
        raise ArgumentError(f"{what}: height and width must be {least} or more. {mend}.")


def check_widths(name: str, widths) -> tuple[int, ...]:
    """Returns `widths` as a tuple of positive integers, one for each stage."""
    widths = tuple(checks.integer(f"each of {name}", n) for n in checks.listed(name, widths))
    if not widths:
        raise ArgumentError(f"{name}=() is empty: pass one number or more, such as (32, 64).")
    return widths


def check_sizes(image_shape, widths, step: int = 0) -> tuple[tuple, tuple[int, ...]]:
    """Returns `image_shape` and `widths` if they are such.

    With a `step`, height and width must be multiples of it, and of twice as much for each of
    `widths` but the first.
    """
    widths = check_widths("widths", widths)
    return check_image_shape(image_shape, step * 2 ** (len(widths) - 1)), widths


def batch_norm(name: str) -> layers.BatchNormalization:
    """Returns batch normalization whose moving statistics are right after 60 steps."""
    return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=name)


def gain_of(activation: str | None) -> float:
    """Returns the variance gain that makes up for what `activation` takes away.

    `gain = 1 / E[activation(z)**2]` for standard normal `z`: 2 for ReLU (He et al., 2015.
    https://arxiv.org/abs/1502.01852), 1 without an activation, 2.8 for SiLU. With kernels of
    variance `gain / fan_in` the values before each activation keep a variance of 1.
    """
    quantiles = (np.arange(4096) + 0.5) / 4096
    normal = np.sqrt(2) * scipy.special.erfinv(2 * quantiles - 1)
    column = keras.ops.convert_to_tensor(normal[:, None], "float32")
    values = keras.activations.get(activation)(column)
    return round(float(1 / np.mean(keras.ops.convert_to_numpy(values) ** 2)), 1)


def kernel_initializer(activation: str | None):
    """Returns an initializer that keeps the size of signals through layers with `activation`.

    Keras' default (Glorot) halves the variance at each ReLU layer. In a decoder of ten layers
    the image-dependent part of the signal then all but vanishes: all images get the same gradient,
    which Adam amplifies until the output saturates, and the network is dead.
    """
    return keras.initializers.VarianceScaling(gain_of(activation))


def doubling_initializer(gain: float):
    """Returns an initializer for the transposed convolutions of `double`.

    Each output pixel is a sum over the input channels at `(kernel size / stride)**2` positions.
    Keras takes the last axis of a kernel for its outputs; here it holds the inputs, hence
    "fan_out", and the stride has to be made up for.
    """
    return keras.initializers.VarianceScaling(gain * DOUBLING_STRIDE**2, "fan_out")


def conv(x, filters: int, name: str, strides: int = 1, activation: str | None = "relu", **kwargs):
    """A 3 x 3 convolution, 4 x 4 where it halves the image."""
    size = 3 if strides == 1 else 2 * strides
    kwargs.setdefault("kernel_initializer", kernel_initializer(activation))
    kwargs.update(activation=activation, name=name)
    return layers.Conv2D(filters, size, strides, "same", **kwargs)(x)


def dense(x, units: int, name: str, activation: str | None = None, **kwargs):
    """A dense layer whose initialization fits its activation."""
    initializer = kernel_initializer(activation)
    return layers.Dense(units, activation, kernel_initializer=initializer, name=name, **kwargs)(x)


def zero_conv(x, filters: int, name: str, dtype: str | None = None):
    """A 3 x 3 convolution that gives zeros before training."""
    return conv(x, filters, name, activation=None, kernel_initializer="zeros", dtype=dtype)


def double(x, filters: int, name: str, activation: str | None = None, **kwargs):
    """A 4 x 4 transposed convolution that doubles the image."""
    kwargs.setdefault("kernel_initializer", doubling_initializer(gain_of(activation)))
    kwargs.update(activation=activation, name=name)
    return layers.Conv2DTranspose(filters, 4, DOUBLING_STRIDE, "same", **kwargs)(x)


def conv_norm(x, filters: int, name: str, padding: str = "same", activation: str | None = "relu"):
    """A 3 x 3 convolution, batch norm, then the activation."""
    x = layers.Conv2D(filters, 3, padding=padding, use_bias=False, name=name)(x)
    x = batch_norm(f"{name}_norm")(x)
    return x if activation is None else layers.Activation(activation, name=f"{name}_act")(x)


def residual_block(x, filters: int, name: str, activation: str = "relu", after: bool = True):
    """Two convolutions round a shortcut (He et al., 2016. https://arxiv.org/abs/1512.03385).

    Unless `after`, no activation follows the sum: the shortcut passes what it carries unchanged
    (Lim et al., 2017. https://arxiv.org/abs/1707.02921).
    """
    y = conv(x, filters, f"{name}_conv1", activation=activation)
    y = zero_conv(y, filters, f"{name}_conv2")
    y = layers.Add(name=f"{name}_add")([x, y])
    return layers.Activation(activation, name=f"{name}_act")(y) if after else y


def joined(encoder, decoder, name: str) -> keras.Model:
    """Images to codes and back, in one model of two layers, "encoder" and "decoder"."""
    images = keras.Input(encoder.input_shape[1:], name="images")
    return keras.Model(images, decoder(encoder(images)), name=name)


def encoded(x, widths, dense_width: int, activation: str, blocks: int = 0):
    """Halves images once for each of `widths`, then makes a row of numbers of them.

    Returns those, and the shape of the map that they were made of.
    """
    for n, filters in enumerate(widths, start=1):
        x = conv(x, filters, f"down{n}", 2, activation)
    for block in range(1, blocks + 1):
        x = residual_block(x, widths[-1], f"block{block}", activation)
    row = layers.Flatten(name="flatten")(x)
    return dense(row, dense_width, "dense", activation), x.shape[1:]


def decoded(codes, shape, widths, dense_width: int, activation: str, blocks: int = 0):
    """Makes a map of `shape` of codes, and doubles it once for each of `widths` but the first."""
    x = dense(codes, dense_width, "dense1", activation)
    x = dense(x, math.prod(shape), "dense2", activation)
    x = layers.Reshape(shape, name="reshape")(x)
    for block in range(1, blocks + 1):
        x = residual_block(x, widths[-1], f"block{block}", activation)
    for n in range(len(widths), 1, -1):
        x = double(x, widths[n - 2], f"up{n}", activation=activation)
    return x
