"""Seven small images and an embedder of five dimensions that was not trained."""

import keras
import numpy as np

LEVELS = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 1), dtype="uint8")
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
