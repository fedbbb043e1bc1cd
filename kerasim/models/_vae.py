"""The variational autoencoder."""

import math

import keras

from kerasim import _checks
from kerasim.layers import Sampling
from kerasim.models import _blocks as parts


def vae(
    image_shape: tuple[int, int, int] = (28, 28, 1),
    latent_dim: int = 20,
    widths: tuple[int, ...] = (32, 64),
    dense_width: int = 512,
    beta: float = 1.0,
    activation: str = "relu",
    name: str = "vae",
) -> keras.Model:
    """Builds a variational autoencoder, whose encoder predicts a Gaussian for each image.

    Compile it with "binary_crossentropy". That loss is a mean over pixels; `layers.Sampling` adds
    the Kullback-Leibler divergence to it, divided by the number of values of an image. With
    `beta=1` the training loss times `height * width * channels` is therefore the negative evidence
    lower bound in nats.

    In training the decoder gets a latent vector sampled from the Gaussian. In inference it gets
    the mean, so that `predict`, `embedding.embed` and exported models are deterministic. `evaluate`
    and `val_loss` use the mean as well and are a little lower than the bound; to compute the bound,
    call the model with `training=True`.

    Kernels start with the variance that preserves the size of signals through `activation` (for
    ReLU that of He et al.). The output layer starts small, so that the first outputs are near 0.5.

    Args:
        image_shape: `(height, width, channels)`; height and width are multiples of
            `2 ** len(widths)`.
        latent_dim: Number of latent dimensions.
        widths: Filters of each stage, from the image inwards; each stage halves the image.
        dense_width: Units of the dense layer before the latent vector, and of that after it.
        beta: Weight of the divergence, 0 or more. Above 1, latent vectors carry less information
            and lie closer to a standard Gaussian.
        activation: Activation of every layer except the mean and log-variance (linear) and the
            image (sigmoid).
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to images of the same shape and range.
        `get_layer("encoder")` maps images to mean latent vectors `(batch, latent_dim)`,
        `get_layer("decoder")` latent vectors to images.

    Raises:
        ArgumentError: If the image cannot be halved `len(widths)` times; the message names the
            nearest sizes.

    Example:
        >>> network = vae((16, 16, 1), latent_dim=4, widths=(8, 16), dense_width=32)
        >>> network.output_shape, network.get_layer("encoder").output_shape
        ((None, 16, 16, 1), (None, 4))

    Reference:
        Kingma & Welling, 2014. https://arxiv.org/abs/1312.6114; beta: Higgins et al., 2017.
        https://openreview.net/forum?id=Sy2fzU9gl; initialization: He et al., 2015.
        https://arxiv.org/abs/1502.01852
    """
    image_shape, widths = parts.check_sizes(image_shape, widths, 2)
    latent_dim = _checks.integer("latent_dim", latent_dim)
    dense_width = _checks.integer("dense_width", dense_width)
    weight = _checks.number("beta", beta, 0) / math.prod(image_shape)

    images = parts.image_input(image_shape)
    x, shape = parts.encoded(images, widths, dense_width, activation)
    mean = parts.dense(x, latent_dim, "mean", dtype="float32")
    log_variance = parts.dense(x, latent_dim, "log_variance", dtype="float32")
    codes = Sampling(weight, name="codes")([mean, log_variance])
    encoder = keras.Model(images, codes, name="encoder")

    codes = parts.vector_input(latent_dim, "codes")
    x = parts.decoded(codes, shape, widths, dense_width, activation)
    x = parts.double(x, widths[0], "up1", activation)
    image = parts.conv(
        x,
        image_shape[-1],
        "image",
        activation="sigmoid",
        kernel_initializer=parts.output_initializer(),
        dtype="float32",
    )
    return parts.joined(encoder, keras.Model(codes, image, name="decoder"), name)
