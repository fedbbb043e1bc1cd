"""What several model families share."""

import keras
import numpy as np
from keras import layers

from kerasim import checks
from kerasim.errors import ArgumentError, ArgumentTypeError


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
        nearest = [
            sorted({max(factor, n // factor * factor), -(-n // factor) * factor}) for n in shape[:2]
        ]
        raise ArgumentError(
            f"image_shape={shape} cannot be halved to the last stage: height and width must be "
            f"multiples of {factor}. The nearest heights are {nearest[0]}, the nearest widths "
            f"{nearest[1]}: resize the images, or build fewer stages."
        )
    return shape


def check_least(image_shape, least: int, widths) -> None:
    """Raises unless an image is high and wide enough for as many stages as there are `widths`."""
    if min(image_shape[:2]) < least:
        raise ArgumentError(
            f"image_shape={image_shape} shrinks to nothing in {len(widths)} stages, one for each "
            f"of widths={widths}: height and width must be {least} or more. Resize the images or "
            "pass fewer widths."
        )


def check_widths(name: str, widths) -> tuple[int, ...]:
    """Returns `widths` as a tuple of positive integers, one for each stage."""
    if isinstance(widths, (str, bytes)) or not np.iterable(widths):
        raise ArgumentTypeError(f"{name}={widths!r} is no tuple: pass such as (32, 64).")
    widths = tuple(checks.integer(f"each of {name}", width) for width in widths)
    if not widths:
        raise ArgumentError(f"{name}=() is empty: pass one number or more, such as (32, 64).")
    return widths


def conv(x, filters: int, name: str, strides: int = 1, activation: str | None = "relu", **kwargs):
    """A 3 x 3 convolution, 4 x 4 where it halves the image."""
    size = 3 if strides == 1 else 2 * strides
    kwargs.update(activation=activation, name=name)
    return layers.Conv2D(filters, size, strides, "same", **kwargs)(x)


def zero_conv(x, filters: int, name: str, dtype: str | None = None):
    """A 3 x 3 convolution that gives zeros before training."""
    return conv(x, filters, name, activation=None, kernel_initializer="zeros", dtype=dtype)


def double(x, filters: int, name: str, **kwargs):
    """A 4 x 4 transposed convolution that doubles the image."""
    return layers.Conv2DTranspose(filters, 4, 2, "same", name=name, **kwargs)(x)


def conv_norm(x, filters: int, name: str, padding: str = "same", activation: str | None = "relu"):
    """A 3 x 3 convolution, batch norm, then the activation."""
    x = layers.Conv2D(filters, 3, padding=padding, use_bias=False, name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return x if activation is None else layers.Activation(activation, name=f"{name}_act")(x)


def residual_block(x, filters: int, name: str, activation: str = "relu", after: bool = True):
    """Two convolutions round a shortcut (He et al., 2016. https://arxiv.org/abs/1512.03385).

    Unless `after`, no activation follows the sum: the shortcut passes what it carries unchanged
    (Lim et al., 2017. https://arxiv.org/abs/1707.02921).
    """
    y = conv(x, filters, f"{name}_conv1", activation=activation)
    y = conv(y, filters, f"{name}_conv2", activation=None)
    y = layers.Add(name=f"{name}_add")([x, y])
    return layers.Activation(activation, name=f"{name}_act")(y) if after else y


def joined(encoder, decoder, name: str) -> keras.Model:
    """Images to codes and back, in one model of two layers, "encoder" and "decoder"."""
    images = keras.Input(encoder.input_shape[1:], name="images")
    return keras.Model(images, decoder(encoder(images)), name=name)
