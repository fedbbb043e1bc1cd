"""Solutions to the exercises of notebook 06, on the bundled digits.

Run with: python notebooks/solutions/06-triplets-and-mining.py
"""

import keras
import numpy as np

from kerasim import data, embedding, losses, metrics, models, training

SEED = 0
BATCH_SIZE = 60
VALIDATION = 240  # training images in the validation split


def load():
    """Returns the images and labels of the training split and of the validation split."""
    digits = data.load_dataset("digits", image_size=24, dtype="uint8")
    x, y = digits.x_train, digits.y_train
    return x[:-VALIDATION], y[:-VALIDATION], x[-VALIDATION:], y[-VALIDATION:]


def build():
    """Returns the plain embedder of the notebook, with fixed initial weights."""
    keras.utils.set_random_seed(SEED)
    return models.conv_embedder((24, 24, 1), 64, (16, 32, 64), convs=1)


def train(embedder, loss, x, y, steps=40, classes=10):
    """Trains an embedder on batches of `BATCH_SIZE` images of some classes."""
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    embedder.compile(keras.optimizers.Adam(rate), loss)
    per_class = BATCH_SIZE // classes
    batches = data.BalancedBatches(x, y, classes, per_class, steps_per_epoch=steps, seed=SEED)
    training.fit(embedder, batches, epochs=1, verbose=0)


def mean_average_precision(embedder, x, y, x_val, y_val):
    """Returns the MAP@R of each validation image, with the training images as the gallery."""
    queries, gallery = embedding.embed(embedder, x_val), embedding.embed(embedder, x)
    return metrics.retrieval(queries, y_val, gallery, y, ks=(1,), per_query=True)["map@r"]


def mean_cosine(embedder, x):
    """Returns the mean cosine of two different images, 1 if all are equal."""
    vectors = embedding.embed(embedder, x)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return cosines[np.triu_indices(len(unit), 1)].mean()


def exercise_1():
    """A large temperature weights all images alike, a small one only the nearest."""
    x, y, x_val, y_val = load()
    found = {}
    for temperature in (0.02, 0.1, 1.0):
        embedder = build()
        train(embedder, losses.SupConLoss(temperature), x, y)
        found[temperature] = mean_average_precision(embedder, x, y, x_val, y_val)
        print(f"temperature {temperature:g}: MAP@R {100 * found[temperature].mean():.1f} %")
    for temperature in (0.02, 1.0):
        low, high = metrics.bootstrap_interval(found[temperature] - found[0.1])
        print(f"{temperature:g} minus 0.1: {100 * low:+.1f} to {100 * high:+.1f} points")


def exercise_2():
    """Fewer classes in a batch leave fewer kinds of negatives, more classes fewer positives."""
    x, y, x_val, y_val = load()
    for classes in (3, 5, 10):
        embedder = build()
        train(embedder, losses.SupConLoss(0.1), x, y, classes=classes)
        score = mean_average_precision(embedder, x, y, x_val, y_val).mean()
        print(f"{classes} classes of {BATCH_SIZE // classes} images: MAP@R {100 * score:.1f} %")
    print("This is one seed of a short training; repeat it with others before you conclude.")


def exercise_3():
    """Hard triplets alone push little apart: their loss at distance 0 is only the margin."""
    x, y, x_val, y_val = load()
    hard = losses.TripletLoss(0.2, mining="hard")
    plans = {
        "hard from the first step": [(hard, 80)],
        "semi-hard, then hard": [(losses.TripletLoss(0.2, mining="semi_hard"), 40), (hard, 40)],
    }
    print(f"untrained: mean cosine {mean_cosine(build(), x_val):.3f}")
    for name, stages in plans.items():
        embedder = build()
        for loss, steps in stages:
            train(embedder, loss, x, y, steps)
        score = mean_average_precision(embedder, x, y, x_val, y_val).mean()
        cosine = mean_cosine(embedder, x_val)
        print(f"{name}: mean cosine {cosine:.3f}, MAP@R {100 * score:.1f} %")
    print("A mean cosine near 1 need not harm search: only the order of distances counts.")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
