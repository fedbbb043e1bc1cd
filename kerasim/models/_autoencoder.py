"""Autoencoders, which reconstruct images from latent vectors, and a denoising autoencoder."""

import math
from typing import Any

import keras
from keras import layers, ops

from kerasim import _checks
from kerasim.models import _blocks as parts


def conv_autoencoder(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    latent_dim: int = 10,
    widths: tuple[int, ...] = (32, 64, 128),
    dense_widths: tuple[int, ...] = (512, 1024, 2048),
    activation: str = "relu",
    name: str = "conv_autoencoder",
) -> keras.Model:
    """Builds an autoencoder with a convolutional encoder and a dense decoder.

    The encoder applies a 3 x 3 convolution without padding for each entry of `widths`, with 2 x 2
    max-pooling between them, then a linear dense layer. The decoder consists of dense layers; the
    last one has a sigmoid.

    Kernels start with the variance that preserves the size of signals through `activation` (for
    ReLU that of He et al.). The output layer starts small, so that the first outputs are near 0.5.

    Args:
        image_shape: `(height, width, channels)`, large enough for the encoder.
        latent_dim: Number of latent dimensions.
        widths: Filters of each convolution, from the image inwards.
        dense_widths: Units of each dense layer of the decoder, from the latent vector outwards.
        activation: Activation of every layer except the latent vector (linear) and the image
            (sigmoid).
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to images of the same shape and
        range. `get_layer("encoder")` maps images to latent vectors `(batch, latent_dim)`,
        `get_layer("decoder")` latent vectors to images.

    Raises:
        ArgumentError: If the image is too small for the number of convolutions.

    Example:
        >>> autoencoder = conv_autoencoder((24, 24, 1), latent_dim=5, dense_widths=(32, 64))
        >>> autoencoder.output_shape, autoencoder.get_layer("encoder").output_shape
        ((None, 24, 24, 1), (None, 5))

    Reference:
        Hinton & Salakhutdinov, 2006. https://doi.org/10.1126/science.1127647; initialization: He
        et al., 2015. https://arxiv.org/abs/1502.01852
    """
    image_shape, widths = parts.check_sizes(image_shape, widths)
    latent_dim = _checks.integer("latent_dim", latent_dim)
    dense_widths = parts.check_widths("dense_widths", dense_widths)
    # The last convolution needs 3 pixels; n pixels after pooling and a convolution need 2 n + 2.
    parts.check_least(image_shape, 5 * 2 ** (len(widths) - 1) - 2, widths)

    images = parts.image_input(image_shape)
    x = images
    for n, filters in enumerate(widths, start=1):
        if n > 1:
            x = parts.max_pool(x, f"pool{n - 1}")
        x = parts.conv(x, filters, f"conv{n}", activation=activation, padding="valid")
    codes = parts.dense(parts.flatten(x), latent_dim, "codes", dtype="float32")
    encoder = keras.Model(images, codes, name="encoder")

    codes = parts.vector_input(latent_dim, "codes")
    x = codes
    for n, units in enumerate(dense_widths, start=1):
        x = parts.dense(x, units, f"dense{n}", activation)
    pixels = parts.dense(
        x,
        math.prod(image_shape),
        "pixels",
        "sigmoid",
        kernel_initializer=parts.output_initializer(),
        dtype="float32",
    )
    image = layers.Reshape(image_shape, dtype="float32", name="image")(pixels)
    return parts.joined(encoder, keras.Model(codes, image, name="decoder"), name)


def residual_autoencoder(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    latent_dim: int = 10,
    widths: tuple[int, ...] = (48, 96, 192),
    num_blocks: int = 1,
    dense_width: int = 512,
    activation: str = "silu",
    name: str = "residual_autoencoder",
) -> keras.Model:
    """Builds an autoencoder with a convolutional encoder and a convolutional decoder.

    The encoder applies a strided convolution for each entry of `widths`, residual blocks and dense
    layers; the decoder mirrors it. There is no BatchNormalization: the noise of the batch
    statistics would add noise to the latent vectors.

    Without normalization, the initialization has to keep signals at their size. Kernels start with
    the variance that preserves it through `activation` (for ReLU that of He et al.), and residual
    blocks start as the identity (Zhang et al.). The output layer starts small, so that the first
    outputs are near 0.5. With Glorot initialization the decoder's signal vanishes, and training
    ends with the same constant image for every input.

    Args:
        image_shape: `(height, width, channels)`; height and width are multiples of
            `2 ** len(widths)`.
        latent_dim: Number of latent dimensions.
        widths: Filters of each stage, from the image inwards; each stage halves the image.
        num_blocks: Residual blocks at the innermost stage of the encoder, and of the decoder.
        dense_width: Units of the dense layer before the latent vector, and of that after it.
        activation: Activation of every layer except the latent vector (linear) and the image
            (sigmoid).
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to images of the same shape and
        range. `get_layer("encoder")` maps images to latent vectors `(batch, latent_dim)`,
        `get_layer("decoder")` latent vectors to images.

    Raises:
        ArgumentError: If the image cannot be halved `len(widths)` times; the message names the
            nearest sizes.

    Example:
        >>> autoencoder = residual_autoencoder((16, 16, 1), widths=(8, 16), dense_width=32)
        >>> images = np.random.default_rng(0).random((2, 16, 16, 1))
        >>> outputs = keras.ops.convert_to_numpy(autoencoder(images))
        >>> bool(np.all(np.abs(outputs - 0.5) < 0.2))  # near 0.5 before training
        True

    Reference:
        He et al., 2016. https://arxiv.org/abs/1512.03385; initialization: He et al., 2015.
        https://arxiv.org/abs/1502.01852, and Zhang et al., 2019. https://arxiv.org/abs/1901.09321
    """
    image_shape, widths = parts.check_sizes(image_shape, widths, 2)
    latent_dim = _checks.integer("latent_dim", latent_dim)
    _checks.integer("num_blocks", num_blocks, 0)
    dense_width = _checks.integer("dense_width", dense_width)

    images = parts.image_input(image_shape)
    x, shape = parts.encoded(images, widths, dense_width, activation, num_blocks)
    codes = parts.dense(x, latent_dim, "codes", dtype="float32")
    encoder = keras.Model(images, codes, name="encoder")

    codes = parts.vector_input(latent_dim, "codes")
    x = parts.decoded(codes, shape, widths, dense_width, activation, num_blocks)
    image = parts.double(
        x,
        image_shape[2],
        "up1",
        "sigmoid",
        kernel_initializer=parts.doubling_initializer(parts.OUTPUT_GAIN),
        dtype="float32",
    )
    return parts.joined(encoder, keras.Model(codes, image, name="decoder"), name)


def denoising_autoencoder(
    image_shape: tuple[int | None, int | None, int] = (32, 32, 3),
    widths: tuple[int, ...] = (32, 64, 128),
    num_blocks: int = 1,
    sigma_input: bool = False,
    name: str = "denoising_autoencoder",
) -> keras.Model:
    """Builds a network that denoises images, with skip connections at each stage.

    It predicts the difference between the clean image and its input, and clips the sum to [0, 1].
    The sum is computed in float32 under mixed precision as well.

    The last convolution and the second one of each residual block start at zero: before training
    the network returns its input, and signals keep their size through any number of blocks.

    Args:
        image_shape: `(height, width, channels)`; height and width are multiples of
            `2 ** (len(widths) - 1)`, or None for any such size.
        widths: Filters of each stage, from the full image inwards; each stage but the first
            halves the image.
        num_blocks: Residual blocks of each stage of the encoder, and of the decoder.
        sigma_input: Whether the standard deviation of the noise is an input, too. The network gets
            it as one more channel. One network then serves many noise levels. Train it on
            `data.NoiseBatches(target="images", sigma_input=True)`.
        name: Name of the model.

    Returns:
        Model from noisy images `(batch, *image_shape)`, whose values may lie outside [0, 1], to
        clean images in [0, 1]. With `sigma_input`, its input is a dict of "images" and "sigma",
        `(batch, 1)` in units of [0, 1].

    Raises:
        ArgumentError: If the image cannot be halved `len(widths) - 1` times; the message names the
            nearest sizes.

    Example:
        >>> denoiser = denoising_autoencoder((16, 16, 1), widths=(8, 16))
        >>> images = np.random.default_rng(0).random((2, 16, 16, 1)).astype("float32")
        >>> outputs = keras.ops.convert_to_numpy(denoiser(images))
        >>> np.allclose(outputs, images)  # returns its input before training
        True

    Reference:
        Ronneberger et al., 2015. https://arxiv.org/abs/1505.04597; prediction of the difference:
        Zhang et al., 2017. https://arxiv.org/abs/1608.03981; noise level as an input: Zhang et al.,
        2018. https://arxiv.org/abs/1710.04026; initialization: Zhang et al., 2019.
        https://arxiv.org/abs/1901.09321
    """
    image_shape, widths = parts.check_sizes(image_shape, widths, 1, open_size=True)
    _checks.boolean("sigma_input", sigma_input)
    _checks.integer("num_blocks", num_blocks, 0)

    def stage(x, filters, name):
        for block in range(1, num_blocks + 1):
            x = parts.residual_block(x, filters, f"{name}_block{block}")
        return x

    images: Any = parts.image_input(image_shape)  # Keras does not annotate slices of tensors
    inputs: Any = images
    x = images
    if sigma_input:
        inputs = {"images": images, "sigma": parts.vector_input(1, "sigma")}
        level = ops.ones_like(images[..., :1]) * inputs["sigma"][:, None, None]
        x = layers.Concatenate(dtype="float32", name="images_and_sigma")([images, level])
    x = parts.conv(x, widths[0], "down1", activation=None)
    skips = [stage(x, widths[0], "in1")]
    for n, filters in enumerate(widths[1:], start=2):
        x = parts.downsample(skips[-1], filters, f"down{n}")
        skips.append(stage(x, filters, f"in{n}"))
    x = skips.pop()
    for n in range(len(skips), 0, -1):
        x = parts.upsample(x, widths[n - 1], f"up{n}")
        x = layers.Add(name=f"skip{n}")([x, skips.pop()])
        x = stage(x, widths[n - 1], f"out{n}")
    change = parts.zero_conv(x, image_shape[-1], "change", "float32")
    total = layers.Add(dtype="float32", name="sum")([images, change])
    clean = layers.ReLU(max_value=1.0, dtype="float32", name="clean")(total)
    return keras.Model(inputs, clean, name=name)
