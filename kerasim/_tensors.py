"""Shared by layers and losses: norms with finite gradients, computation dtype, saved arguments."""

import inspect
from typing import Literal

import keras
import numpy as np
from keras import ops

# The metrics of layers and losses, which are computed on the backend, with gradients.
PairMetric = Literal["euclidean", "squared_euclidean", "cosine"]
PAIR_METRICS: tuple[PairMetric, ...] = ("euclidean", "squared_euclidean", "cosine")

# TensorFlow flushes smaller float32 numbers to 0.
_LEAST = float(np.finfo("float32").tiny)

# Shorter vectors get the gradient of vectors of this length, which would otherwise be unbounded.
_SHORT = 1e-6


def l2_normalize(x, axis: int = -1):
    """Scales vectors `x`, along `axis`, to length 1. A zero vector is unchanged.

    Vectors are divided by their largest number first, so that no square overflows or underflows.
    The gradient is finite: for a vector shorter than 1e-6 it has the right direction, and the size
    that it has at length 1e-6.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(x), axis=axis, keepdims=True))
    bounded = x / ops.maximum(largest, _SHORT)
    exact = x / ops.where(largest >= _LEAST, largest, 1.0)
    scaled = bounded + ops.stop_gradient(exact - bounded)
    # The sum is 1 or more, or 0 for a vector of zeros.
    squares = ops.sum(ops.square(scaled), axis=axis, keepdims=True)
    return scaled * ops.rsqrt(ops.maximum(squares, 0.5))


def safe_sqrt(squares):
    """Returns the square root of `squares`, 0 or more, with gradient 0, not infinity, at 0.

    NaN stays NaN, so that a network that has diverged is noticed.
    """
    some = squares > 0
    rest = ops.stop_gradient(ops.where(squares <= 0, 0.0, squares))
    return ops.where(some, ops.sqrt(ops.where(some, squares, 1.0)), rest)


def safe_norm(x):
    """Returns the Euclidean norm of vectors `x` along the last axis, which is kept.

    The gradient at 0 is that of `safe_sqrt`. Vectors are divided by their largest number first, so
    that no square overflows or underflows.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(x), axis=-1, keepdims=True))
    usual = (largest >= _LEAST) & (largest < float("inf"))
    divisor = ops.where(usual, largest, 1.0)
    return divisor * safe_sqrt(ops.sum(ops.square(x / divisor), axis=-1, keepdims=True))


class ConfigMixin:
    """Saves the arguments of `__init__`, each of which must be an attribute of the same name."""

    def get_config(self):
        names = inspect.signature(self.__init__).parameters
        config = super().get_config()  # type: ignore[misc]
        return {**config, **{name: getattr(self, name) for name in names if name != "kwargs"}}


def full_precision(dtype) -> str:
    """Returns the dtype in which a layer or loss with this `dtype` argument computes.

    That is "float64" if `dtype` computes in float64, else "float32": half precision has too few
    digits to distinguish vectors that are close, and constants such as 1e-12 round to 0.

    Args:
        dtype: Dtype, dtype policy or config of one, as for a Keras layer; None for float32.

    Returns:
        "float32" or "float64".
    """
    policy = keras.dtype_policies.get("float32" if dtype is None else dtype)
    return "float64" if policy.compute_dtype == "float64" else "float32"
