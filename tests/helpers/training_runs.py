"""A small network, its batches and runs, and what makes training fail."""

from pathlib import Path

import keras
import numpy as np

from kerasim import _artifacts, training
from kerasim.data import ImageBatches

IMAGES = np.random.default_rng(0).random((12, 4, 4, 1), dtype="float32")


def draw_batches(images=IMAGES, **kwargs):
    settings = {"batch_size": 4, "seed": 3, "sigma": 0.1, "flip": True, **kwargs}
    return ImageBatches(images, **settings)


def build(units=5, optimizer="adam", loss="mse", rate=0.01, eager=True):
    """Returns a compiled network with batch norm and Dropout, always with the same weights."""
    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Flatten(),
            layers.Dense(units),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(16, activation="sigmoid"),
            layers.Reshape((4, 4, 1)),
        ]
    )
    optimizer = keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": rate}})
    model.compile(optimizer, loss, run_eagerly=eager)
    return model


def fit(run_dir, epochs=2, model=None, batches=None, **kwargs):
    model = build() if model is None else model
    batches = draw_batches() if batches is None else batches
    return training.fit(model, batches, epochs, run_dir, **{"verbose": 0, **kwargs})


def read_state(run_dir, name="state"):
    """Returns the arrays and the info of the saved state, or of the best weights, of a run."""
    kind = {"state": "training_state", "best": "weights"}[name]
    return _artifacts.read(
        Path(run_dir) / name,
        kind,
        lambda folder, manifest: (_artifacts.read_arrays(folder / "arrays.npz"), manifest.info),
    )


class AtEachEpoch(keras.callbacks.Callback):
    """Calls `do(epoch, model)` at the beginning, or at the end, of each epoch."""

    def __init__(self, do, end=False):
        super().__init__()
        self.do, self.end = do, end

    def on_epoch_begin(self, epoch, logs=None):
        if not self.end:
            self.do(epoch, self.model)

    def on_epoch_end(self, epoch, logs=None):
        if self.end:
            self.do(epoch, self.model)


class BatchesWithNaN(ImageBatches):
    """Batches with one NaN in the targets of each, which no check of the arrays finds."""

    hole = np.nan

    def __getitem__(self, index):
        images, targets = super().__getitem__(index)
        targets = targets.copy()
        targets[0, 1, 2, 0] = self.hole
        return images, targets


@keras.saving.register_keras_serializable("tests")
class LossThatTurnsNaN(keras.losses.MeanSquaredError):
    """A loss that is NaN from its tenth call on: in epoch 3, with four batches in each epoch."""

    # On JAX and torch Keras calls a loss once before the first batch, to find its shape.
    batches = 0 if keras.backend.backend() == "tensorflow" else -1

    def call(self, y_true, y_pred):
        self.batches += 1
        return super().call(y_true, y_pred) * (1.0 if self.batches < 10 else np.nan)


def set_kernel_to_nan(layer):
    """Returns a function for `AtEachEpoch` that sets the kernel of a layer to NaN in epoch 3."""

    def do(epoch, model):
        if epoch == 2:
            kernel = model.layers[layer].kernel
            kernel.assign(np.full(kernel.shape, np.nan))

    return do
