"""What several test files share: functions."""

import contextlib
import os
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (7, 4, 4, 1), dtype="uint8")
FLOATS = LEVELS.astype("float32") / 255
keras.utils.set_random_seed(0)
EMBEDDER = keras.Sequential(
    [
        keras.Input((4, 4, 1)),
        keras.layers.Conv2D(3, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
)
EMBEDDER.compile(run_eagerly=True)  # a graph for each batch size would take most of the time


@contextlib.contextmanager
def no_hang(pipe):
    """Lets a reader that opens `pipe` go on after ten seconds, so that the test can fail."""

    def unblock():
        with contextlib.suppress(OSError):
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    os.mkfifo(pipe)
    watchdog = threading.Timer(10, unblock)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


@contextlib.contextmanager
def unprivileged():
    """Runs the block as a user whom permissions bind."""
    root = os.geteuid() == 0
    if root:
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("permissions do not bind root, and this root cannot become another")
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def picture(path, colour=128, size=(8, 6), kind=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour, colour)).save(path, kind)
    return path


def animation(path) -> Path:
    frames = [Image.new("L", (8, 6), level) for level in (0, 128, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


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
