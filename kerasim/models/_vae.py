"""The variational autoencoder."""

import math

import keras
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from kerasim import _checks, _image_checks
from kerasim._folders import ImageFolder
from kerasim.errors import ArgumentTypeError
from kerasim.images import as_float
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
    *,
    beta_warmup_steps: int = 0,
    free_bits: float = 0.0,
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
        beta_warmup_steps: Training steps in which the weight of the divergence grows linearly from
            0 to `beta`, so that fewer latent dimensions collapse; 0 for none.
        free_bits: Divergence of each latent dimension, in nats, that costs nothing. Above 0 the
            training loss is no bound; `metrics.active_dimensions` counts what it gains.

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
        https://openreview.net/forum?id=Sy2fzU9gl; warm-up: Sønderby et al., 2016.
        https://arxiv.org/abs/1602.02282; free bits: Kingma et al., 2016.
        https://arxiv.org/abs/1606.04934; initialization: He et al., 2015.
        https://arxiv.org/abs/1502.01852
    """
    image_shape, widths = parts.check_sizes(image_shape, widths, 2)
    latent_dim = _checks.integer("latent_dim", latent_dim)
    dense_width = _checks.integer("dense_width", dense_width)
    weight = _checks.number("beta", beta, 0) / math.prod(image_shape)
    beta_warmup_steps = _checks.integer("beta_warmup_steps", beta_warmup_steps, 0)

    images = parts.image_input(image_shape)
    x, shape = parts.encoded(images, widths, dense_width, activation)
    mean = parts.dense(x, latent_dim, "mean", dtype="float32")
    log_variance = parts.dense(x, latent_dim, "log_variance", dtype="float32")
    sampling = Sampling(weight, warmup_steps=beta_warmup_steps, free_bits=free_bits, name="codes")
    codes = sampling([mean, log_variance])
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


_ROWS = 2_000  # latent vectors in a call of the decoder


def log_likelihood_bound(
    model: keras.Model, images: ArrayLike | ImageFolder, samples: int = 200, seed: int = 0
) -> np.ndarray:
    """Computes a lower bound of the log-likelihood of images under a variational autoencoder.

    This is the importance-weighted bound, `log mean_k p(x | z_k) p(z_k) / q(z_k | x)` over samples
    `z_k` of `q(z | x)`. With one sample it is the evidence lower bound (ELBO), with more it is
    closer to the log-likelihood. The pixels are taken as Bernoulli variables: values for grayscale
    images are comparable only among models of the same images, and published ones are for images
    whose pixels are 0 or 1.

    Args:
        model: A model that `models.vae` built.
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        samples: Latent vectors that are sampled for each image, 1 or more. Time grows with it.
        seed: The same seed draws the same latent vectors.

    Returns:
        `(n,)` float64, in nats; higher is better.

    Raises:
        ArgumentError: If the images do not fit the model, or hold values outside [0, 1].
        ArgumentTypeError: If the model was not built by `models.vae`.

    Example:
        >>> network = vae((8, 8, 1), latent_dim=2, widths=(4,), dense_width=8)
        >>> binary = np.random.default_rng(0).integers(0, 2, (3, 8, 8, 1)).astype("float32")
        >>> bound = log_likelihood_bound(network, binary, samples=10)
        >>> bool(np.all(abs(bound + 44) < 6))  # near 64 log(1 / 2) = -44 before training
        True

    Reference:
        Burda et al., 2016. https://arxiv.org/abs/1509.00519
    """
    gaussian, decoder = _parts(model)
    samples = _checks.integer("samples", samples)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    _image_checks.check_shape("images", images, model.input_shape[1:])
    images = _image_checks.check_images("images", images)
    bound = np.empty(len(images))
    step = max(1, _ROWS // samples)
    for start in range(0, len(images), step):
        x = as_float(images[start : start + step])
        mean, log_variance = (np.asarray(part) for part in gaussian.predict_on_batch(x))
        log_variance = np.clip(log_variance, -10, 10)
        log_weights = []
        for first in range(0, samples, _ROWS):
            shape = (min(_ROWS, samples - first), *mean.shape)
            noise = rng.standard_normal(shape, dtype="float32")
            z = mean + np.exp(log_variance / 2) * noise
            decoded = np.asarray(decoder.predict_on_batch(z.reshape(-1, shape[-1])))
            log_p_x = _log_bernoulli(x, decoded.reshape(shape[0], *x.shape))
            # log p(z) - log q(z | x), in which the constants cancel out.
            log_ratio = (noise**2 - z**2 + log_variance).astype("float64").sum(axis=-1) / 2
            log_weights.append(log_p_x + log_ratio)
        weights = np.concatenate(log_weights)
        bound[start : start + step] = logsumexp(weights, axis=0) - math.log(samples)
    return bound


def _parts(model) -> tuple[keras.Model, keras.Model]:
    """Returns the model from images to means and log-variances, and the decoder."""
    try:
        encoder, decoder = (model.get_layer(name) for name in ("encoder", "decoder"))
        outputs = [encoder.get_layer(name).output for name in ("mean", "log_variance")]
    except (AttributeError, ValueError) as error:
        raise ArgumentTypeError(
            f"model must be one that models.vae built. Received {type(model).__name__} without an "
            "encoder whose layers are named mean and log_variance, and a decoder."
        ) from error
    return keras.Model(encoder.input, outputs), decoder


def _log_bernoulli(x, probabilities) -> np.ndarray:
    """Returns the log-probability of images `(n, ...)` under `(samples, n, ...)`, float64."""
    probabilities = np.clip(probabilities.astype("float64"), 1e-7, 1 - 1e-7)
    terms = x * np.log(probabilities) + (1 - x) * np.log1p(-probabilities)
    return terms.sum(axis=(2, 3, 4))
