"""Networks for diffusion: which noise an image holds, and how much."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kerasim import checks
from kerasim.diffusion import NoiseSchedule
from kerasim.errors import ArgumentError
from kerasim.layers import LogEnergy, TimeEmbedding
from kerasim.models.blocks import check_sizes, conv, zero_conv


def unet(
    image_shape: tuple[int, int, int] = (32, 32, 1),
    widths: tuple[int, ...] = (32, 64, 128),
    attention: int = 1,
    num_classes: int | None = None,
    blocks: int = 1,
    groups: int = 8,
    patch: int = 1,
    schedule: NoiseSchedule | None = None,
    name: str = "unet",
) -> keras.Model:
    """Builds a network that predicts the noise in an image at a step of a `NoiseSchedule`.

    Residual blocks with group norm, told the step (and the class) by an embedding; each stage but
    the first halves the image, and its way out gets what its way in kept. Train it on
    `data.DiffusionBatches` with "mse"; compile it with an optimizer of `use_ema=True`.

    Args:
        image_shape: `(height, width, channels)`; height and width are multiples of
            `patch * 2 ** (len(widths) - 1)`.
        widths: Filters of each stage, from the full image inwards; multiples of `groups`.
        attention: How many stages, the innermost ones, look at the whole image by self-attention
            after each block.
        num_classes: Number of classes, 1 or more; None for a network without labels.
        blocks: Residual blocks of each stage, on the way in and on the way out.
        groups: Of group norm.
        patch: Side of the squares of pixels that the first layer takes together and the last one
            draws; 2 spares the work on the full image, which is half of it or more.
        schedule: None for layers that say the noise itself; small networks get it wrong where
            there is little else, and draw badly. Given, they say the velocity v, of which the
            noise is `sqrt(1 - abar) images + sqrt(abar) v`: train with `weighting="velocity"`.
        name: Name of the model.

    Returns:
        Model from a dict of "images" `(batch, *image_shape)` in model space, "t" `(batch,)` int32
        and, with `num_classes`, "labels" `(batch,)` int32 (`num_classes` or -1: no label) to
        the noise, float32 `(batch, *image_shape)`. `get_layer("bottleneck").output` is the
        innermost stage.

    Raises:
        ArgumentError: If the image cannot be halved that often (the message names the nearest
            sizes) or widths are no multiples of `groups`.

    Reference:
        Ho et al., 2020. https://arxiv.org/abs/2006.11239; classes: Ho & Salimans, 2022.
        https://arxiv.org/abs/2207.12598; patches: Hoogeboom et al., 2023.
        https://arxiv.org/abs/2301.11093; velocity: Salimans & Ho, 2022.
        https://arxiv.org/abs/2202.00512
    """
    patch = checks.integer("patch", patch)
    image_shape, widths = check_sizes(image_shape, widths, patch)
    checks.integer("attention", attention, 0, len(widths))
    checks.integer("blocks", blocks)
    checks.integer("groups", groups)
    if schedule is not None:
        checks.like("schedule", schedule, "alphas_cumprod", "a diffusion.NoiseSchedule")
    if any(width % groups for width in widths):
        raise ArgumentError(f"widths={widths} must be multiples of groups={groups}: change either.")

    images = keras.Input(image_shape, name="images")
    inputs = {"images": images, "t": keras.Input((), dtype="int32", name="t")}
    told = TimeEmbedding(2 * widths[0], name="time")(inputs["t"])
    told = layers.Dense(4 * widths[0], "silu", name="time1")(told)
    told = layers.Dense(4 * widths[0], name="time2")(told)
    if num_classes is not None:
        num_classes = checks.integer("num_classes", num_classes)
        inputs["labels"] = keras.Input((), dtype="int32", name="labels")
        # One more than there are classes: the last says that there is no label, as -1 does.
        label = ops.where(inputs["labels"] < 0, num_classes, inputs["labels"])
        label = layers.Embedding(num_classes + 1, 4 * widths[0], name="classes")(label)
        told = layers.Add(name="told")([told, label])
    told = layers.Activation("silu", name="told_act")(told)

    def norm_act(x, name):
        x = layers.GroupNormalization(groups, name=f"{name}_norm")(x)
        return layers.Activation("silu", name=f"{name}_act")(x)

    def block(x, filters, name):
        y = conv(norm_act(x, f"{name}_1"), filters, f"{name}_conv1", activation=None)
        by_step = layers.Dense(filters, name=f"{name}_told")(told)
        by_step = layers.Reshape((1, 1, filters), name=f"{name}_told_map")(by_step)
        y = layers.Add(name=f"{name}_add_told")([y, by_step])
        y = norm_act(y, f"{name}_2")
        # Before training a block passes on what it gets.
        y = zero_conv(y, filters, f"{name}_conv2")
        if x.shape[-1] != filters:
            x = layers.Conv2D(filters, 1, name=f"{name}_shortcut")(x)
        return layers.Add(name=f"{name}_add")([x, y])

    def look(x, name):
        height, width, filters = x.shape[1:]
        y = layers.GroupNormalization(groups, name=f"{name}_norm")(x)
        y = layers.Reshape((height * width, filters), name=f"{name}_row")(y)
        heads = layers.MultiHeadAttention(groups, filters // groups, name=name)
        y = layers.Reshape((height, width, filters), name=f"{name}_map")(heads(y, y))
        return layers.Add(name=f"{name}_add")([x, y])

    def stage(x, n, way):
        for m in range(1, blocks + 1):
            x = block(x, widths[n], f"{way}{n + 1}_block{m}")
            if n >= len(widths) - attention:
                x = look(x, f"{way}{n + 1}_attention{m}")
        return x

    x = conv(images, widths[0], "first", patch, activation=None)
    kept = []
    for n in range(len(widths)):
        if n:
            x = layers.Conv2D(widths[n], 2, 2, name=f"down{n + 1}")(x)
        x = stage(x, n, "in")
        kept.append(x)
    x = layers.Activation("linear", name="bottleneck")(kept.pop())
    x = stage(x, len(widths) - 1, "out")
    for n in reversed(range(len(widths) - 1)):
        x = layers.Conv2DTranspose(widths[n], 2, 2, name=f"up{n + 1}")(x)
        x = layers.Concatenate(name=f"skip{n + 1}")([x, kept.pop()])
        x = stage(x, n, "out")
    size, what = 3 if patch == 1 else 2 * patch, "noise" if schedule is None else "velocity"
    first: Any = {"kernel_initializer": "zeros", "dtype": "float32"}
    draw = layers.Conv2DTranspose(image_shape[-1], size, patch, "same", name=what, **first)
    noise = draw(norm_act(x, "last"))
    if schedule is not None:
        abar = schedule.alphas_cumprod
        shares = layers.Embedding(len(abar), 2, trainable=False, dtype="float32", name="schedule")
        share: Any = ops.split(shares(inputs["t"])[:, None, None], 2, axis=-1)
        shares.set_weights([np.sqrt([1 - abar, abar]).T])
        noise = share[0] * images + share[1] * noise
    return keras.Model(inputs, noise, name=name)


def noise_estimator(
    image_shape: tuple[int, int, int] = (32, 32, 1),
    widths: tuple[int, ...] = (32, 32, 32),
    dense_width: int = 64,
    name: str = "noise_estimator",
) -> keras.Model:
    """Builds a network that says how much noise an image holds.

    Before training it says how much neighbouring pixels differ, across and down at once: noise, and
    whatever edges the image has. What it learns is a factor on that: 3 x 3 convolutions without a
    bias find what does not look like an image; the logarithms of their mean squares,
    `layers.LogEnergy`, say how much of it there is. Train it on `data.NoiseBatches` with
    "mean_absolute_percentage_error".

    Args:
        image_shape: `(height, width, channels)`; height and width are 2 or more.
        widths: Filters of each convolution.
        dense_width: Units of the dense layer after them.
        name: Name of the model.

    Returns:
        Model from noisy images `(batch, *image_shape)`, not cut to [0, 1], to the standard
        deviation of their noise in units of [0, 1], `(batch, 1)`.

    Raises:
        ArgumentError: If the image is smaller than 2 x 2, or a width is none.

    Reference:
        The start, with a smaller mask: Immerkaer, 1996. https://doi.org/10.1006/cviu.1996.0060
    """
    image_shape, widths = check_sizes(image_shape, widths)
    for side in image_shape[:2]:
        checks.integer(f"each side of image_shape={image_shape}", side, 2)
    images = keras.Input(image_shape, name="images")
    x, energies = images, []
    for n, filters in enumerate(widths, start=1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{n}")(x)
        energies.append(LogEnergy(name=f"energy{n}")(x))
        x = layers.ReLU(name=f"act{n}")(x)
    x = layers.Concatenate(name="energies")(energies)
    x = layers.Dense(checks.integer("dense_width", dense_width), "relu", name="dense")(x)
    factor = layers.Dense(1, kernel_initializer="zeros", dtype="float32", name="factor")(x)
    # Of noise alone this has the standard deviation of a pixel: four pixels, halved.
    rough = ops.diff(ops.diff(images, axis=1), axis=2)
    rough = ops.mean(LogEnergy(name="rough")(rough / 2), axis=1, keepdims=True) / 2
    sigma = layers.Activation("exponential", dtype="float32", name="sigma")(rough + factor)
    return keras.Model(images, sigma, name=name)
