"""Seconds of each epoch: Keras's `fit` on arrays, and on kerasim's batches by one thread and two.

On TensorFlow the first two read through tf.data's tuner (see README.md): some epochs last until it
wakes up. The CIFAR-10 autoencoder on 8,000 random images, after an epoch that is not counted.
"""

import time

import keras
import numpy as np

from kerasim import data, models

EPOCHS, TURNS = 6, 2


class Clock(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(round(time.perf_counter() - self.start, 2))


def main():
    images = np.random.default_rng(0).random((8000, 32, 32, 3), dtype="float32")
    one, two = (data.ImageBatches(images, batch_size=128) for _ in range(2))
    one.workers = 1
    model = models.conv_autoencoder()
    model.compile("adam", "mse")
    ways = {
        "keras on arrays": {"x": images, "y": images, "batch_size": 128},
        "batches, one thread": {"x": one, "shuffle": False},
        "batches, as they are": {"x": two, "shuffle": False},
    }
    clocks = {name: Clock() for name in ways}
    model.fit(images, images, batch_size=128, verbose=0)
    for _ in range(TURNS):
        for name, given in ways.items():
            model.fit(**given, epochs=EPOCHS, verbose=0, callbacks=[clocks[name]])
    for name, clock in clocks.items():
        print(f"{name}: {sum(clock.seconds):.1f} s, epochs {sorted(clock.seconds)}")


if __name__ == "__main__":
    main()
