"""The few layers that Keras lacks."""

import keras
import numpy as np
from keras import layers, ops

from kerasim.errors import ArgumentError, check_choice, check_integer, check_number

DISTANCES = ("euclidean", "squared_euclidean", "cosine")


def unit(x, axis: int = -1):
    """Scales vectors to length 1; those shorter than 1e-6 stay short, with a finite gradient."""
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, 1e-12))


def root(squares):
    """The square root of numbers from 0 up, with the gradient 0, not infinity, at 0."""
    some = squares > 0
    return ops.where(some, ops.sqrt(ops.where(some, squares, 1.0)), 0.0)


@keras.saving.register_keras_serializable("kerasim")
class Distance(layers.Layer):
    """The distance of two batches of vectors, row by row.

    Takes a list of two tensors `(batch, dim)` and gives `(batch, 1)`. The gradient is finite
    where the two are equal, and where one is zero. Computes in float32, under any dtype policy.

    Args:
        metric: "euclidean", "squared_euclidean" or "cosine" (1 - cosine similarity, 0 to 2).
        **kwargs: As for `keras.layers.Layer`.
    """

    def __init__(self, metric: str = "euclidean", **kwargs):
        check_choice("metric", metric, DISTANCES)
        super().__init__(**{"dtype": "float32", **kwargs})
        self.metric = metric

    def build(self, input_shape):
        left, right = input_shape
        if left[-1] != right[-1]:
            raise ArgumentError(
                f"The two vectors have {left[-1]} and {right[-1]} numbers: pass embeddings of one "
                "model."
            )

    def call(self, inputs):
        left, right = inputs
        if self.metric == "cosine":
            left, right = unit(left), unit(right)
        squares = ops.sum(ops.square(left - right), axis=-1, keepdims=True)
        if self.metric == "squared_euclidean":
            return squares
        # Of unit vectors half the squared distance is 1 - cosine, and exact near 0.
        return root(squares) if self.metric == "euclidean" else squares / 2

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], 1)

    def get_config(self):
        return {**super().get_config(), "metric": self.metric}


@keras.saving.register_keras_serializable("kerasim")
class CosineClassifier(layers.Layer):
    """The cosine of each vector with a learnt direction for each class, for `ArcFaceLoss`.

    Takes `(batch, dim)` and gives `(batch, num_classes)` in [-1, 1]. Train
    `keras.Sequential([embedder, CosineClassifier(10)])`, then keep the embedder. Computes in
    float32, under any dtype policy.

    Args:
        num_classes: Number of classes.
        **kwargs: As for `keras.layers.Layer`.

    Reference:
        Deng et al., 2019. https://arxiv.org/abs/1801.07698
    """

    def __init__(self, num_classes: int, **kwargs):
        num_classes = check_integer("num_classes", num_classes)
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_classes = num_classes

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.num_classes), initializer="glorot_uniform", name="kernel"
        )

    def call(self, inputs):
        return ops.matmul(unit(inputs), unit(self.kernel, axis=0))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.num_classes)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable("kerasim")
class Sampling(layers.Layer):
    """Draws a code from a Gaussian in training, and gives its mean otherwise, as Dropout does.

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

    Reference:
        Kingma & Welling, 2014. https://arxiv.org/abs/1312.6114
    """

    def __init__(self, weight: float = 1.0, seed: int | None = None, **kwargs):
        weight = check_number("weight", weight, 0)
        super().__init__(**{"dtype": "float32", **kwargs})
        self.weight = weight
        self.seeds = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=False):
        mean, log_variance = inputs
        log_variance = ops.clip(log_variance, -10.0, 10.0)
        parts = ops.square(mean) + ops.exp(log_variance) - 1 - log_variance
        self.add_loss(self.weight * ops.mean(ops.sum(parts, axis=-1)) / 2)
        if not training:
            return mean
        noise = keras.random.normal(ops.shape(mean), dtype="float32", seed=self.seeds)
        return mean + ops.exp(log_variance / 2) * noise

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        seed = self.seeds.get_config()["seed"]
        return {**super().get_config(), "weight": self.weight, "seed": seed}


@keras.saving.register_keras_serializable("kerasim")
class TimeEmbedding(layers.Layer):
    """Sines and cosines of a step, of wavelengths from 2 pi to at most 20,000 pi steps.

    Takes `(batch,)` and gives `(batch, dim)` float32 in [-1, 1].

    Args:
        dim: Length of the embedding, an even number.
        **kwargs: As for `keras.layers.Layer`.

    Reference:
        Vaswani et al., 2017. https://arxiv.org/abs/1706.03762
    """

    def __init__(self, dim: int, **kwargs):
        if check_integer("dim", dim, 2) % 2:
            raise ArgumentError(f"dim={dim} is odd, half of it are sines: pass an even number.")
        super().__init__(**{"dtype": "float32", **kwargs})
        self.dim = dim

    def call(self, inputs):
        rates = np.exp(-np.log(10_000) * np.arange(self.dim // 2) / (self.dim // 2))
        angles = ops.cast(inputs, "float32")[:, None] * ops.cast(rates, "float32")
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.dim)

    def get_config(self):
        return {**super().get_config(), "dim": self.dim}


@keras.saving.register_keras_serializable("kerasim")
class LogEnergy(layers.Layer):
    """The logarithm of each channel's mean square: twice as much of a picture adds log 4.

    Takes `(batch, height, width, channels)` and gives `(batch, channels)`. Computes in float32,
    under any dtype policy.

    Args:
        **kwargs: As for `keras.layers.Layer`.
    """

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs):
        return ops.log(ops.mean(ops.square(inputs), axis=(1, 2)) + 1e-8)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])
