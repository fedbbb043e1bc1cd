"""The variational autoencoder."""

import math

import keras
from keras import layers

from kerasim import checks
from kerasim.layers import Sampling
from kerasim.models.blocks import OUTPUT_GAIN, check_sizes, conv, decoded, double, encoded, joined


def vae(
    image_shape: tuple[int, int, int] = (28, 28, 1),
    latent_dim: int = 20,
    widths: tuple[int, ...] = (32, 64),
    dense_width: int = 512,
    beta: float = 1.0,
    activation: str = "relu",
    name: str = "vae",
) -> keras.Model:
    """Builds a variational autoencoder: each image is a Gaussian of codes, not one code.

    Compile it with "binary_crossentropy": that is a mean over pixels, and the divergence, which
    `layers.Sampling` adds by itself, is divided by the number of values of an image to fit. So
    the training loss times `height * width * channels` is the negative evidence lower bound, in
    nats, if `beta` is 1.

    In training the decoder gets a code drawn from that Gaussian; otherwise its mean, so that
    `predict`, `data.embed` and what is exported draw nothing. `evaluate` and `val_loss` are of the
    mean, too, and a little lower than the bound: for that call the model with `training=True`.

    Args:
        image_shape: `(height, width, channels)`; height and width are multiples of
            `2 ** len(widths)`.
        latent_dim: Length of the code.
        widths: Filters of each stage, from the image inwards; each stage halves the image.
        dense_width: Units of the dense layer on either side of the code.
        beta: Weight of the divergence, 0 or more; above 1 the codes say less and lie closer to a
            standard Gaussian.
        activation: Of every layer but the code (linear) and the image (sigmoid).
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to images of the same shape and range;
        `get_layer("encoder")` maps images to mean codes `(batch, latent_dim)`,
        `get_layer("decoder")` codes to images.

    Raises:
        ArgumentError: If the image cannot be halved that often; the message names the nearest
            sizes.

    Reference:
        Kingma & Welling, 2014. https://arxiv.org/abs/1312.6114; beta: Higgins et al., 2017.
        https://openreview.net/forum?id=Sy2fzU9gl
    """
    image_shape, widths = check_sizes(image_shape, widths, 2)
    latent_dim = checks.integer("latent_dim", latent_dim)
    dense_width = checks.integer("dense_width", dense_width)
    weight = checks.number("beta", beta, 0) / math.prod(image_shape)

    images = keras.Input(image_shape, name="images")
    x, shape = encoded(images, widths, dense_width, activation)
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(x)
    log_variance = layers.Dense(latent_dim, dtype="float32", name="log_variance")(x)
    codes = Sampling(weight, name="codes")([mean, log_variance])
    encoder = keras.Model(images, codes, name="encoder")

    codes = keras.Input((latent_dim,), name="codes")
    x = decoded(codes, shape, widths, dense_width, activation)
    x = double(x, widths[0], "up1", activation=activation)
    initializer = keras.initializers.VarianceScaling(OUTPUT_GAIN)
    image = conv(
        x,
        image_shape[-1],
        "image",
        activation="sigmoid",
        kernel_initializer=initializer,
        dtype="float32",
    )
    return joined(encoder, keras.Model(codes, image, name="decoder"), name)
