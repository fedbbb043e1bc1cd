"""Applies an exported model to images, with TensorFlow and without kerasim.

    python read_saved_model.py MODEL IMAGES.npy EMBEDDINGS.npy

MODEL is a folder that `kerasim.export.export_saved_model` wrote, IMAGES.npy an array of float32
images `(n, height, width, channels)` in [0, 1]; EMBEDDINGS.npy is written.
"""

import sys

import numpy as np
import tensorflow as tf

model_path, images_path, embeddings_path = sys.argv[1:]
model = tf.saved_model.load(model_path)
images = tf.constant(np.load(images_path))
(embeddings,) = model.signatures["serving_default"](images=images).values()
np.save(embeddings_path, embeddings.numpy())
assert "kerasim" not in sys.modules
