"""Trains on several devices or in several processes; the tests run this script as a subprocess.

Arguments: a folder for runs and results; "devices" to train on one device and on two, "hosts" to
train as one process of several.
"""

import contextlib
import os
import sys
from pathlib import Path

import keras
import numpy as np

from kerasim import data, distribute, embedding, losses, models, training
from kerasim.errors import ArgumentError

IMAGES = np.random.default_rng(0).random((24, 4, 4, 1), dtype="float32")
LABELS = np.arange(24) % 3
TENSORFLOW = keras.backend.backend() == "tensorflow"


def train(name, *epochs, loss=None, images=IMAGES):
    """Trains in one call of `fit` for each of `epochs`, on one device if the name says so."""
    # In float32, batch norm amplifies the rounding of sums that two devices add in another order.
    keras.config.set_dtype_policy("float32" if loss is None else "float64")
    for until in epochs:
        keras.utils.set_random_seed(1)
        with contextlib.nullcontext() if "one" in name else distribute.strategy().scope():
            layers = [keras.layers.Flatten(), keras.layers.Dense(5)]
            if not TENSORFLOW:  # whose batch norm sees one device only
                layers.append(keras.layers.BatchNormalization())
            embedder = keras.Sequential([keras.Input((4, 4, 1)), *layers])
            net = models.siamese(embedder, metric="euclidean") if loss is None else embedder
            # Adam would blow up rounding where a gradient is 0, as of a bias before batch norm.
            net.compile(keras.optimizers.SGD(0.05, 0.9), loss or losses.ContrastiveLoss())
        batches, held_out = (
            data.PairBatches(images, LABELS[: len(images)], batch_size=8, seed=seed)
            if loss is None
            else data.BalancedBatches(images, LABELS, 2, 4, seed=seed)
            for seed in (2, 3)
        )
        score = training.RetrievalCallback(embedder, IMAGES[:7], LABELS[:7], k=1)
        run = FOLDER / f"run-{name}"
        history = training.fit(net, batches, until, run, held_out, callbacks=[score], verbose=0)
    weights = np.concatenate([keras.ops.convert_to_numpy(w).ravel() for w in net.weights])
    vectors = embedding.embed(embedder, IMAGES[:7], batch_size=4)
    names = {"loss", "val_loss", "val_recall@1"} & set(history)
    found = {key: history[key] for key in sorted(names)}
    np.savez(FOLDER / f"{name}{PROCESS}.npz", weights=weights, vectors=vectors, **found)


if __name__ == "__main__":
    FOLDER, PROCESS = Path(sys.argv[1]), os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "")
    if sys.argv[2] == "hosts":
        distribute.strategy()  # before anything is computed
        train("host", 3)
        train("host-resumed", 1, 3)
        sys.exit()
    if TENSORFLOW:
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    train("one", 3)
    train("two", 3)
    train("two-resumed", 1, 3)
    if not TENSORFLOW:
        train("whole-one", 2, loss=losses.SupConLoss())
    for case in ({"loss": losses.SupConLoss()}, {"images": IMAGES[:23]}):
        try:
            train("whole-two", 2, **case)
        except ArgumentError as error:
            print(error)
