"""Gradients, on the backend in use."""

import keras
import numpy as np


def gradient_of(function, x):
    """Returns the value of `function` at `x`, and its gradient, on the backend in use."""
    if keras.backend.backend() == "jax":
        import jax

        value, gradient = jax.value_and_grad(function)(x)
    elif keras.backend.backend() == "torch":
        import torch

        x = torch.tensor(x, requires_grad=True)
        value = function(x)
        (gradient,) = torch.autograd.grad(value, x)
        value = value.detach()
    else:
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        gradient = tape.gradient(value, x)
    return float(value), np.asarray(gradient)
