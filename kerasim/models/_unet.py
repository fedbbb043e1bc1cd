"""Networks that predict the noise in an image, or its standard deviation."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kerasim import _checks
from kerasim.errors import ArgumentError
from kerasim.layers import LogEnergy, TimeEmbedding
from kerasim.models import _blocks as parts
from kerasim.schedules import NoiseSchedule


def unet(
    image_shape: tuple[int | None, int | None, int] = (32, 32, 1),
    widths: tuple[int, ...] = (32, 64, 128),
    num_attention_stages: int = 1,
    num_classes: int | None = None,
    num_blocks: int = 1,
    num_groups: int = 8,
    patch_size: int = 1,
    schedule: NoiseSchedule | None = None,
    name: str = "unet",
) -> keras.Model:
    """Builds a network that predicts the noise in an image at a step of a `NoiseSchedule`.

    It consists of residual blocks with GroupNormalization, conditioned on an embedding of the step
    (and of the class). Each stage but the first halves the image; skip connections join the encoder
    and the decoder. Train it on `data.DiffusionBatches` with "mse", and compile it with an
    optimizer with `use_ema=True`.

    As in the paper's implementation, the second convolution of each residual block and the output
    layer are initialized to zero, so that before training a block returns only its shortcut, and
    the output layer zeros. Other convolutions are initialized with the variance that preserves the
    size of signals.

    Args:
        image_shape: `(height, width, channels)`; height and width are multiples of
            `patch_size * 2 ** (len(widths) - 1)`, or None for any such size.
        widths: Filters of each stage, from the full image inwards; multiples of `num_groups`.
        num_attention_stages: Number of stages, counted from the innermost one, with self-attention
            after each block.
        num_classes: Number of classes, 1 or more; None for a network without labels.
        num_blocks: Residual blocks of each stage of the encoder, and of the decoder.
        num_groups: Groups of GroupNormalization.
        patch_size: Stride of the first and of the last layer. A stride of 2 halves the image in the
            first layer, which saves more than half of the computation.
        schedule: None for a network that predicts the noise directly. Small networks predict it
            badly at steps where images are almost pure noise, and then generate bad images. With a
            schedule the network predicts the velocity `v` and returns the noise
            `sqrt(1 - abar) images + sqrt(abar) v`; train it with `weighting="velocity"`.
        name: Name of the model.

    Returns:
        Model from a dict of "images" `(batch, *image_shape)` in model space, "t" `(batch,)` int32
        and, with `num_classes`, "labels" `(batch,)` int32, in which -1 (or the number of classes)
        means no label, to the noise, float32 `(batch, *image_shape)`.
        `get_layer("bottleneck").output` is the output of the innermost stage.

    Raises:
        ArgumentError: If the image cannot be halved `len(widths) - 1` times (the message names the
            nearest sizes) or widths are not multiples of `num_groups`.

    Example:
        >>> network = unet((16, 16, 1), widths=(8, 16))
        >>> noise = network({"images": np.zeros((2, 16, 16, 1)), "t": np.array([0, 999])})
        >>> tuple(noise.shape)
        (2, 16, 16, 1)

    Reference:
        Ho et al., 2020. https://arxiv.org/abs/2006.11239; classes: Ho & Salimans, 2022.
        https://arxiv.org/abs/2207.12598; patches: Hoogeboom et al., 2023.
        https://arxiv.org/abs/2301.11093; velocity: Salimans & Ho, 2022.
        https://arxiv.org/abs/2202.00512
    """
    patch_size = _checks.integer("patch_size", patch_size)
    image_shape, widths = parts.check_sizes(image_shape, widths, patch_size, open_size=True)
    _checks.integer("num_attention_stages", num_attention_stages, 0, len(widths))
    _checks.integer("num_blocks", num_blocks)
    _checks.integer("num_groups", num_groups)
    if schedule is not None:
        _checks.instance("schedule", schedule, NoiseSchedule, "pass a diffusion.NoiseSchedule")
    if any(width % num_groups for width in widths):
        raise ArgumentError(
            f"widths={widths} must be multiples of num_groups={num_groups}. Change either of them."
        )

    images = parts.image_input(image_shape)
    inputs = {"images": images, "t": keras.Input((), dtype="int32", name="t")}
    if num_classes is not None:
        num_classes = _checks.integer("num_classes", num_classes)
        inputs["labels"] = keras.Input((), dtype="int32", name="labels")
    conditioning = _conditioning(inputs, widths[0], num_classes)

    def stage(x, n, part):
        for m in range(1, num_blocks + 1):
            x = _residual_block(x, conditioning, widths[n], num_groups, f"{part}{n + 1}_block{m}")
            if n >= len(widths) - num_attention_stages:
                x = _attention_block(x, num_groups, f"{part}{n + 1}_attention{m}")
        return x

    x = parts.conv(images, widths[0], "stem", patch_size, activation=None)
    skips = []
    for n in range(len(widths)):
        if n:
            x = parts.downsample(x, widths[n], f"down{n + 1}")
        x = stage(x, n, "encoder")
        skips.append(x)
    x = layers.Activation("linear", name="bottleneck")(skips.pop())
    x = stage(x, len(widths) - 1, "decoder")
    for n in reversed(range(len(widths) - 1)):
        x = parts.upsample(x, widths[n], f"up{n + 1}")
        x = layers.Concatenate(name=f"skip{n + 1}")([x, skips.pop()])
        x = stage(x, n, "decoder")
    x = _norm_act(x, num_groups, "output")
    output_layer = layers.Conv2DTranspose(
        image_shape[-1],
        3 if patch_size == 1 else 2 * patch_size,
        patch_size,
        "same",
        data_format=parts.CHANNELS_LAST,
        kernel_initializer="zeros",
        dtype="float32",
        name="noise" if schedule is None else "velocity",
    )
    output = output_layer(x)
    if schedule is not None:
        output = _noise_of_velocity(output, images, inputs["t"], schedule)
    return keras.Model(inputs, output, name=name)


def _conditioning(inputs, width, num_classes):
    """Embeds the step, and the class if there are some, as `(batch, 4 * width)`."""
    x = TimeEmbedding(2 * width, name="time_embedding")(inputs["t"])
    x = layers.Dense(4 * width, "silu", name="time_dense_1")(x)
    x = layers.Dense(4 * width, name="time_dense_2")(x)
    if num_classes is not None:
        # One more row than there are classes: the last one stands for "no label", as -1 does.
        label = ops.where(inputs["labels"] < 0, num_classes, inputs["labels"])
        label = layers.Embedding(num_classes + 1, 4 * width, name="class_embedding")(label)
        x = layers.Add(name="conditioning_add")([x, label])
    return layers.Activation("silu", name="conditioning")(x)


def _norm_act(x, num_groups, name):
    x = layers.GroupNormalization(num_groups, name=f"{name}_norm")(x)
    return layers.Activation("silu", name=f"{name}_act")(x)


def _residual_block(x, conditioning, filters, num_groups, name):
    """Two convolutions with the conditioning added in between, and a shortcut."""
    y = _norm_act(x, num_groups, f"{name}_1")
    y = parts.conv(y, filters, f"{name}_conv1", activation=None)
    shift = layers.Dense(filters, name=f"{name}_conditioning")(conditioning)
    shift = layers.Reshape((1, 1, filters), name=f"{name}_conditioning_map")(shift)
    y = layers.Add(name=f"{name}_conditioning_add")([y, shift])
    y = _norm_act(y, num_groups, f"{name}_2")
    # Before training a block is the identity.
    y = parts.zero_conv(y, filters, f"{name}_conv2")
    if x.shape[-1] != filters:
        x = parts.conv(x, filters, f"{name}_shortcut", size=1, activation=None)
    return layers.Add(name=f"{name}_add")([x, y])


def _attention_block(x, num_groups, name):
    """Self-attention over the positions of a feature map, and a shortcut."""
    height, width, filters = x.shape[1:]
    y = layers.GroupNormalization(num_groups, name=f"{name}_norm")(x)
    if None in (height, width):  # slower than attention over one axis
        attention = layers.MultiHeadAttention(
            num_groups, filters // num_groups, attention_axes=(1, 2), name=name
        )
        return layers.Add(name=f"{name}_add")([x, attention(y, y)])
    y = layers.Reshape((height * width, filters), name=f"{name}_flatten")(y)
    attention = layers.MultiHeadAttention(num_groups, filters // num_groups, name=name)
    y = layers.Reshape((height, width, filters), name=f"{name}_map")(attention(y, y))
    return layers.Add(name=f"{name}_add")([x, y])


def _noise_of_velocity(velocity, images, t, schedule):
    """Returns the noise, `sqrt(1 - abar) images + sqrt(abar) velocity`."""
    abar = schedule.alphas_cumprod
    table = layers.Embedding(len(abar), 2, trainable=False, dtype="float32", name="schedule")
    rates: Any = ops.split(table(t)[:, None, None], 2, axis=-1)
    table.set_weights([np.sqrt([1 - abar, abar]).T])
    return rates[0] * images + rates[1] * velocity


def noise_estimator(
    image_shape: tuple[int | None, int | None, int] = (32, 32, 1),
    widths: tuple[int, ...] = (32, 32, 32),
    dense_width: int = 64,
    name: str = "noise_estimator",
) -> keras.Model:
    """Builds a network that estimates the standard deviation of the noise in an image.

    Before training it returns the root mean square of the second difference of neighboring pixels,
    scaled so that it is the standard deviation for pure noise; edges in the image increase it. The
    network learns a factor for that estimate from 3 x 3 convolutions without bias: the logarithms
    of their mean squares (`layers.LogEnergy`) distinguish noise from image. The last layer starts
    at zero, which is a factor of 1. Train it on `data.NoiseBatches` with
    "mean_absolute_percentage_error".

    Args:
        image_shape: `(height, width, channels)`; height and width are 2 or more, or None for any
            such size.
        widths: Filters of each convolution.
        dense_width: Units of the dense layer after the convolutions.
        name: Name of the model.

    Returns:
        Model from noisy images `(batch, *image_shape)` to the standard deviation of their noise in
        units of [0, 1], `(batch, 1)`. It knows the noise of the batches it was trained on: for the
        images of files, train it with `clip=True, bits=8`.

    Raises:
        ArgumentError: If the image is smaller than 2 x 2, or a width is not positive.

    Example:
        >>> noise = np.random.default_rng(0).normal(0.5, 0.1, (1, 64, 64, 1))
        >>> estimator = noise_estimator((64, 64, 1))
        >>> round(float(estimator(noise)[0, 0]), 2)  # right for pure noise before training
        0.1

    Reference:
        The estimate before training, with a smaller mask: Immerkaer, 1996.
        https://doi.org/10.1006/cviu.1996.0060
    """
    image_shape, widths = parts.check_sizes(image_shape, widths, open_size=True)
    for side in image_shape[:2]:
        if side is not None:
            _checks.integer(f"each side of image_shape={image_shape}", side, 2)
    images = parts.image_input(image_shape)
    x, energies = images, []
    for n, filters in enumerate(widths, start=1):
        x = parts.conv(
            x,
            filters,
            f"conv{n}",
            activation=None,
            kernel_initializer=parts.kernel_initializer("relu"),
            use_bias=False,
        )
        energies.append(LogEnergy(name=f"energy{n}")(x))
        x = layers.ReLU(name=f"act{n}")(x)
    x = layers.Concatenate(name="energies")(energies)
    x = parts.dense(x, _checks.integer("dense_width", dense_width), "dense", "relu")
    factor = layers.Dense(1, kernel_initializer="zeros", dtype="float32", name="factor")(x)
    # The sum of four independent pixels has twice their standard deviation.
    rough = ops.diff(ops.diff(images, axis=1), axis=2)
    rough = ops.mean(LogEnergy(name="rough")(rough / 2), axis=1, keepdims=True) / 2
    sigma = layers.Activation("exponential", dtype="float32", name="sigma")(rough + factor)
    return keras.Model(images, sigma, name=name)
