"""Layers that Keras does not have.

Each is registered in the package `kerasim`, so that models with these layers are saved and loaded
like any other. Distances, cosines and poolings compute in float32 under any dtype policy, because
float16 is not precise enough to distinguish vectors that are close together. Where the derivative
of a formula is infinite (the square root at 0, the norm of a zero vector), the gradient is finite,
so that such a pair does not stop the training.
"""

import sys

import keras
import numpy as np
from keras import layers, ops

from kerasim import _checks
from kerasim._tensors import (
    PAIR_METRICS,
    ConfigMixin,
    full_precision,
    l2_normalize,
    safe_norm,
)
from kerasim.errors import ArgumentError

__all__ = [
    "AttentionPooling",
    "BackbonePreprocessing",
    "CosineClassifier",
    "Distance",
    "GeMPooling",
    "LogEnergy",
    "Sampling",
    "TimeEmbedding",
]


class _Layer(ConfigMixin, layers.Layer):
    """Computes in float32 under any dtype policy, or in float64 if its `dtype` says so."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": full_precision(kwargs.get("dtype"))})


@keras.saving.register_keras_serializable("kerasim")
class Distance(_Layer):
    """The distance of two batches of vectors, row by row.

    Takes a list of two tensors `(batch, dim)` and gives `(batch, 1)`. The gradient is finite
    where the two are equal, and where one is zero. Computes in float32, under any dtype policy:
    "euclidean" and "squared_euclidean" are exact to about 1e-6 of their value, and infinite where
    float32 cannot hold them; "cosine", of float32 unit vectors, to about 1e-7 times the angle.

    Args:
        metric: "euclidean", "squared_euclidean" or "cosine" (1 - cosine similarity, 0 to 2; 0.5
            for a vector of zeros, which has no direction).
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        ArgumentError: If there is no such metric; once it is called, if the widths differ.
    """

    def __init__(self, metric: str = "cosine", **kwargs):
        _checks.one_of("metric", metric, PAIR_METRICS)
        super().__init__(**kwargs)
        self.metric = metric

    def build(self, input_shape):
        left, right = input_shape
        if left[-1] != right[-1]:
            raise ArgumentError(
                f"The two vectors have {left[-1]} and {right[-1]} numbers: pass embeddings "
                "of one model."
            )

    def call(self, inputs):
        left, right = inputs
        if self.metric == "cosine":
            # Of unit vectors half the squared distance is 1 - cosine, and exact near 0.
            squares = ops.square(l2_normalize(left) - l2_normalize(right))
            return ops.sum(squares, axis=-1, keepdims=True) / 2
        distances = safe_norm(left - right)
        return ops.square(distances) if self.metric == "squared_euclidean" else distances


@keras.saving.register_keras_serializable("kerasim")
class CosineClassifier(_Layer):
    """The cosine of each vector with a learned direction for each class, for `ArcFaceLoss`.

    Takes `(batch, dim)` and gives `(batch, num_classes)` in [-1, 1]. Train
    `keras.Sequential([embedder, CosineClassifier(10)])`, then keep the embedder. Computes in
    float32, under any dtype policy.

    Args:
        num_classes: Number of classes, 1 or more.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        ArgumentError: If there are none.

    Reference:
        Deng et al., 2019. https://arxiv.org/abs/1801.07698
    """

    def __init__(self, num_classes: int, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = _checks.integer("num_classes", num_classes)

    def build(self, input_shape):
        shape = input_shape[-1], self.num_classes
        self.kernel = self.add_weight(shape, initializer="glorot_uniform", name="kernel")

    def call(self, inputs):
        return ops.matmul(l2_normalize(inputs), l2_normalize(self.kernel, axis=0))


@keras.saving.register_keras_serializable("kerasim")
class Sampling(_Layer):
    """Samples a code from a Gaussian in training, and returns its mean at inference.

    Takes a list of two tensors `(batch, dim)`, the mean and the logarithm of the variance (cut to
    [-10, 10]), and gives `(batch, dim)`. It adds to the losses of its model, in training and in
    evaluation, `weight` times the Kullback-Leibler divergence from a standard Gaussian, summed
    over the numbers of a code and averaged over the batch:
    `kl = sum(mean**2 + variance - 1 - log(variance)) / 2`. Computes in float32, under any dtype
    policy.

    Args:
        weight: Of the divergence; 0 or more.
        seed: The same seed draws the same codes; None for one of Keras' own.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        ArgumentError: If the weight is negative.

    Reference:
        Kingma & Welling, 2014. https://arxiv.org/abs/1312.6114
    """

    def __init__(self, weight: float = 1.0, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.weight, self.seed = _checks.number("weight", weight, 0), seed
        self.seeds = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=False):
        mean, log_variance = inputs
        log_variance = ops.clip(log_variance, -10.0, 10.0)
        parts = ops.square(mean) + ops.exp(log_variance) - 1 - log_variance
        self.add_loss(self.weight * ops.mean(ops.sum(parts, axis=-1)) / 2)
        if not training:
            return mean
        noise = keras.random.normal(ops.shape(mean), dtype=self.compute_dtype, seed=self.seeds)
        return mean + ops.exp(log_variance / 2) * noise


@keras.saving.register_keras_serializable("kerasim")
class TimeEmbedding(_Layer):
    """Sines and cosines of a step, of wavelengths from 2 pi to at most 20,000 pi steps.

    Takes `(batch,)` and gives `(batch, dim)` float32 in [-1, 1].

    Args:
        dim: Length of the embedding, an even number.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        ArgumentError: If it is odd, or below 2.

    Reference:
        Vaswani et al., 2017. https://arxiv.org/abs/1706.03762
    """

    def __init__(self, dim: int, **kwargs):
        if _checks.integer("dim", dim, 2) % 2:
            raise ArgumentError(
                f"dim={dim} is odd: pass an even number, for as many sines as cosines."
            )
        super().__init__(**kwargs)
        self.dim = dim

    def compute_output_shape(self, input_shape):
        # Without this, Keras calls the layer to find its shape: a large `dim` would fill the memory
        # while a model is loaded.
        return (*input_shape, self.dim)

    def call(self, inputs):
        rates = np.exp(-np.log(10_000) * np.arange(self.dim // 2) / (self.dim // 2))
        angles = ops.cast(inputs, self.compute_dtype)[:, None] * ops.cast(rates, self.compute_dtype)
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


@keras.saving.register_keras_serializable("kerasim")
class LogEnergy(_Layer):
    """The logarithm of the mean square of each channel: twice the amplitude adds log 4.

    Takes `(batch, height, width, channels)` and gives `(batch, channels)`. Computes in float32,
    under any dtype policy.

    Args:
        **kwargs: As for `keras.layers.Layer`.
    """

    def call(self, inputs):
        return ops.log(ops.mean(ops.square(inputs), axis=(1, 2)) + 1e-8)


@keras.saving.register_keras_serializable("kerasim")
class AttentionPooling(_Layer):
    """The weighted mean over the positions of a feature map, with weights from a small network.

    Takes `(batch, height, width, channels)` and gives `(batch, channels)`: `sum of a_i x_i`, where
    `a = softmax over positions of w tanh(V x_i)`.

    Args:
        dim: Rows of `V`, 1 or more.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        ArgumentError: If there are none.

    Reference:
        Ilse et al., 2018. https://arxiv.org/abs/1802.04712
    """

    def __init__(self, dim: int = 128, **kwargs):
        super().__init__(**kwargs)
        self.dim = _checks.integer("dim", dim)

    def build(self, input_shape):
        self.hidden = self.add_weight(shape=(input_shape[-1], self.dim), name="hidden")
        # Before training all positions weigh the same.
        self.score = self.add_weight(shape=(self.dim, 1), initializer="zeros", name="score")

    def attend(self, features):
        """Says how much each position weighs in the mean.

        Args:
            features: `(batch, height, width, channels)`, what the layer takes.

        Returns:
            `(batch, height, width)`, from 0 to 1, of sum 1 an image.
        """
        scores = ops.matmul(ops.tanh(ops.matmul(features, self.hidden)), self.score)[..., 0]
        shape = ops.shape(scores)
        return ops.reshape(ops.softmax(ops.reshape(scores, (shape[0], -1))), shape)

    def call(self, inputs):
        return ops.sum(self.attend(inputs)[..., None] * inputs, axis=(1, 2))


@keras.saving.register_keras_serializable("kerasim")
class GeMPooling(_Layer):
    """The generalized mean of each channel of a feature map (GeM).

    Takes `(batch, height, width, channels)` and gives `(batch, channels)`:
    `mean(max(x, 1e-6) ** p) ** (1 / p)`. 1 is the average, infinity the maximum; `p` is learnt.

    Args:
        p: Exponent before training, 1 or more.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        ArgumentError: If it is below 1.

    Reference:
        Radenovic et al., 2018. https://arxiv.org/abs/1711.02512
    """

    def __init__(self, p: float = 3.0, **kwargs):
        super().__init__(**kwargs)
        self.p = _checks.number("p", p, 1)

    def build(self, input_shape):
        constant = keras.initializers.Constant(self.p)
        self.exponent = self.add_weight(shape=(), initializer=constant, name="exponent")

    def call(self, inputs):
        powers = ops.power(ops.maximum(inputs, 1e-6), self.exponent)
        return ops.power(ops.mean(powers, axis=(1, 2)), 1 / self.exponent)


@keras.saving.register_keras_serializable("kerasim")
class BackbonePreprocessing(_Layer):
    """Preprocesses RGB images in [0, 1] for a backbone of `keras.applications`.

    Takes `(batch, height, width, 3)` and gives the same shape, in the units of that backbone's own
    `preprocess_input`, which gets images in [0, 255]; "squeezenet" has that of VGG16. Computes in
    float32, under any dtype policy.

    Args:
        backbone: Its name in lower case, such as "resnet50".
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        ArgumentError: If there is no such backbone.
    """

    def __init__(self, backbone: str, **kwargs):
        self.find(backbone)
        super().__init__(**kwargs)
        self.backbone = backbone

    @staticmethod
    def find(name: str, argument: str = "backbone"):
        """Returns the function of `keras.applications` that builds the backbone called `name`.

        That of VGG16 for "squeezenet", which Keras has not.

        Raises:
            ArgumentError: In the name of `argument`, if there is no such backbone.
        """
        builders = {key.lower(): key for key in dir(keras.applications) if key[0].isupper()}
        builders["squeezenet"] = "VGG16"
        _checks.one_of(argument, name, tuple(builders))
        return getattr(keras.applications, builders[name])

    def call(self, inputs):
        build = self.find(self.backbone)
        return sys.modules[build.__module__].preprocess_input(
            255 * inputs, data_format="channels_last"
        )
