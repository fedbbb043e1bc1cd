"""Suspect labels: how well `curation.suspect_labels` finds flipped labels of CIFAR-10.

`suspects.py EMBEDDER`: a `.keras` file of an embedder of 32 x 32 images, such as one that notebook
06 saves. 5 % of the labels of the 10,000 test images (of a JPEG copy) are replaced by another class
at random; the embedder was trained on the training images alone. The score is the average precision
of the suspicion, beside that of pixels and of chance (0.05), for three draws of the flipped labels.
"""

import sys

import keras
import numpy as np
from sklearn.metrics import average_precision_score

from kerasim import curation, data, embedding

SHARE = 0.05


def main(path):
    images = data.load_dataset("cifar10", dtype="uint8")
    embedder = keras.saving.load_model(path, compile=False)
    vectors = {
        "embedder": embedding.embed(embedder, images.x_test),
        "pixels": embedding.pixels(images.x_test),
    }
    for name, x in vectors.items():
        scores, corrected = [], []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            flipped = rng.random(len(x)) < SHARE
            labels = (images.y_test + flipped * rng.integers(1, 10, len(x))) % 10
            found = curation.suspect_labels(x, labels)
            scores.append(average_precision_score(flipped, found.suspicion))
            corrected.append((found.suggested == images.y_test)[flipped].mean())
        print(
            f"{name}: average precision {np.mean(scores):.3f} ({min(scores):.3f} to "
            f"{max(scores):.3f}), true class suggested for {np.mean(corrected):.3f} of the flipped"
        )


if __name__ == "__main__":
    main(sys.argv[1])
