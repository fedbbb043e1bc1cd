"""Autoencoders: images to a short code and back, and images to cleaner images."""

import math

import keras
from keras import layers

from kerasim import checks
from kerasim.models import blocks as parts


def conv_autoencoder(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    latent_dim: int = 10,
    widths: tuple[int, ...] = (32, 64, 128),
    dense_widths: tuple[int, ...] = (512, 1024, 2048),
    activation: str = "relu",
    name: str = "conv_autoencoder",
) -> keras.Model:
    """Builds a convolutional encoder and a dense decoder round a code of `latent_dim` numbers.

    The encoder is a 3 x 3 convolution without padding for each entry of `widths`, with 2 x 2
    max-pooling between them, then a linear layer; the decoder is dense, with a sigmoid.

    Args:
        image_shape: `(height, width, channels)`; any size that survives the encoder.
        latent_dim: Length of the code.
        widths: Filters of each convolution, from the image inwards.
        dense_widths: Units of each layer of the decoder, from the code outwards.
        activation: Of every layer but the code (linear) and the image (sigmoid).
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to images of the same shape and
        range; `get_layer("encoder")` maps images to codes `(batch, latent_dim)`,
        `get_layer("decoder")` codes to images.

    Raises:
        ArgumentError: If the image is too small for that many stages.

    Reference:
        Hinton & Salakhutdinov, 2006. https://doi.org/10.1126/science.1127647
    """
    image_shape, widths = parts.check_sizes(image_shape, widths)
    latent_dim = checks.integer("latent_dim", latent_dim)
    dense_widths = parts.check_widths("dense_widths", dense_widths)
    # The last convolution takes 3 pixels; n after pooling and a convolution were 2 n + 2 before.
    parts.check_least(image_shape, 5 * 2 ** (len(widths) - 1) - 2, widths)

    images = keras.Input(image_shape, name="images")
    x = images
    for n, filters in enumerate(widths, start=1):
        if n > 1:
            x = layers.MaxPooling2D(name=f"pool{n - 1}")(x)
        initializer = parts.kernel_initializer(activation)
        convolution = layers.Conv2D(
            filters, 3, activation=activation, kernel_initializer=initializer, name=f"conv{n}"
        )
        x = convolution(x)
    x = layers.Flatten(name="flatten")(x)
    codes = parts.dense(x, latent_dim, "codes", dtype="float32")
    encoder = keras.Model(images, codes, name="encoder")

    codes = keras.Input((latent_dim,), name="codes")
    x = codes
    for n, units in enumerate(dense_widths, start=1):
        x = parts.dense(x, units, f"dense{n}", activation)
    size = math.prod(image_shape)
    initializer = keras.initializers.VarianceScaling(parts.OUTPUT_GAIN)
    pixels = layers.Dense(
        size, "sigmoid", kernel_initializer=initializer, dtype="float32", name="pixels"
    )
    x = pixels(x)
    x = layers.Reshape(image_shape, dtype="float32", name="image")(x)
    return parts.joined(encoder, keras.Model(codes, x, name="decoder"), name)


def residual_autoencoder(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    latent_dim: int = 10,
    widths: tuple[int, ...] = (48, 96, 192),
    blocks: int = 1,
    dense_width: int = 512,
    activation: str = "silu",
    name: str = "residual_autoencoder",
) -> keras.Model:
    """Builds a stronger autoencoder: strided convolutions in and out, residual blocks inside.

    There is no batch norm: the noise of its batch means would be noise on the code.

    Args:
        image_shape: `(height, width, channels)`; height and width are multiples of
            `2 ** len(widths)`.
        latent_dim: Length of the code.
        widths: Filters of each stage, from the image inwards; each stage halves the image.
        blocks: Residual blocks at the innermost stage, on the way in and on the way out.
        dense_width: Units of the dense layer on either side of the code.
        activation: Of every layer but the code (linear) and the image (sigmoid).
        name: Name of the model.

    Returns:
        Model as `conv_autoencoder` returns it, with "encoder" and "decoder".

    Raises:
        ArgumentError: If the image cannot be halved that often; the message names the nearest
            sizes.

    Reference:
        He et al., 2016. https://arxiv.org/abs/1512.03385
    """
    image_shape, widths = parts.check_sizes(image_shape, widths, 2)
    latent_dim = checks.integer("latent_dim", latent_dim)
    checks.integer("blocks", blocks, 0)
    dense_width = checks.integer("dense_width", dense_width)

    images = keras.Input(image_shape, name="images")
    x, shape = parts.encoded(images, widths, dense_width, activation, blocks)
    codes = parts.dense(x, latent_dim, "codes", dtype="float32")
    encoder = keras.Model(images, codes, name="encoder")

    codes = keras.Input((latent_dim,), name="codes")
    x = parts.decoded(codes, shape, widths, dense_width, activation, blocks)
    initializer = parts.doubling_initializer(parts.OUTPUT_GAIN)
    image = parts.double(
        x, image_shape[2], "up1", "sigmoid", kernel_initializer=initializer, dtype="float32"
    )
    return parts.joined(encoder, keras.Model(codes, image, name="decoder"), name)


def denoising_autoencoder(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    widths: tuple[int, ...] = (32, 64, 128),
    blocks: int = 1,
    name: str = "denoising_autoencoder",
) -> keras.Model:
    """Builds a network that cleans images: skip connections at each stage, and no bottleneck.

    It predicts what to add to its input, and cuts the sum to [0, 1]. Under mixed precision that
    sum is still made in float32.

    Args:
        image_shape: `(height, width, channels)`; height and width are multiples of
            `2 ** (len(widths) - 1)`.
        widths: Filters of each stage, from the full image inwards; each stage but the first
            halves the image.
        blocks: Residual blocks of each stage, on the way in and on the way out.
        name: Name of the model.

    Returns:
        Model from noisy images `(batch, *image_shape)` in [0, 1] to clean ones.

    Raises:
        ArgumentError: If the image cannot be halved that often; the message names the nearest
            sizes.

    Reference:
        Ronneberger et al., 2015. https://arxiv.org/abs/1505.04597; the residual: Zhang et al.,
        2017. https://arxiv.org/abs/1608.03981
    """
    image_shape, widths = parts.check_sizes(image_shape, widths, 1)
    checks.integer("blocks", blocks, 0)

    def stage(x, filters, name):
        for block in range(1, blocks + 1):
            x = parts.residual_block(x, filters, f"{name}_block{block}", after=False)
        return x

    images = keras.Input(image_shape, name="images")
    x = parts.conv(images, widths[0], "down1", activation=None)
    skips = [stage(x, widths[0], "in1")]
    for n, filters in enumerate(widths[1:], start=2):
        x = layers.Conv2D(filters, 2, 2, name=f"down{n}")(skips[-1])
        skips.append(stage(x, filters, f"in{n}"))
    x = skips.pop()
    for n in range(len(skips), 0, -1):
        x = layers.Conv2DTranspose(widths[n - 1], 2, 2, name=f"up{n}")(x)
        x = layers.Add(name=f"skip{n}")([x, skips.pop()])
        x = stage(x, widths[n - 1], f"out{n}")
    # Before training the network returns its input.
    change = parts.zero_conv(x, image_shape[-1], "change", "float32")
    total = layers.Add(dtype="float32", name="sum")([images, change])
    clean = layers.ReLU(max_value=1.0, dtype="float32", name="clean")(total)
    return keras.Model(images, clean, name=name)
