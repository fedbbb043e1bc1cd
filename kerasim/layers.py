"""The few layers that Keras lacks."""

import keras
from keras import layers, ops

from kerasim.errors import ArgumentError, check_choice, check_integer

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
