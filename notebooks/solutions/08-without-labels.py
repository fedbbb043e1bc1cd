"""Solutions of the exercises of notebook 08, on the bundled digits."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before Keras is imported

import keras
import numpy as np

from kerasim import data, embedding, losses, metrics, models, training

VALIDATION = 144  # the last training images are the queries
EPOCHS = 5


def train(images, temperature=0.2, head=True, flip=False):
    """Returns an embedder trained without labels; each time from the same weights."""
    keras.utils.set_random_seed(0)
    embedder = models.conv_embedder((24, 24, 1), 64, (16, 32, 64), convs=1)
    layers = [keras.layers.ReLU(), keras.layers.Dense(32)] if head else []
    model = keras.Sequential([embedder, *layers])
    augment = [
        keras.layers.RandomTranslation(0.16, 0.16, fill_mode="constant"),
        keras.layers.RandomZoom((-0.1, 0.1), (-0.1, 0.1), fill_mode="constant"),
        keras.layers.RandomRotation(0.05, fill_mode="constant"),
    ]
    batches = data.TwoViewBatches(images.x_train[:-VALIDATION], augment, 64, seed=0, flip=flip)
    rate = training.warmup_cosine(EPOCHS * len(batches), 5e-3)
    model.compile(keras.optimizers.Adam(rate), losses.NTXentLoss(temperature))
    training.fit(model, batches, EPOCHS, verbose=0)
    return embedder


def scores(embedder, images):
    """Returns the MAP@R of each validation image, with the training images as gallery."""
    queries, gallery = (
        embedding.embed(embedder, x, progress=False)
        for x in (images.x_train[-VALIDATION:], images.x_train[:-VALIDATION])
    )
    labels, gallery_labels = images.y_train[-VALIDATION:], images.y_train[:-VALIDATION]
    found = metrics.retrieval(queries, labels, gallery, gallery_labels, per_query=True)
    return found["map@r"]


def print_gain(name, values, baseline):
    low, high = metrics.bootstrap_interval(values - baseline)
    print(f"   {name}: MAP@R {values.mean():.3f}, difference {low:+.3f} to {high:+.3f}")


def exercise_1(images, baseline):
    """Trains with a low and a high temperature."""
    print(f"Temperature 0.2: MAP@R {baseline.mean():.3f}. Others, with paired 95 % intervals:")
    for temperature in (0.05, 1.0):
        values = scores(train(images, temperature), images)
        print_gain(f"temperature {temperature}", values, baseline)


def exercise_2(images, baseline):
    """Trains without the projection head, with the loss on the embedding."""
    print(f"With a head: MAP@R {baseline.mean():.3f}. Without:")
    print_gain("no head", scores(train(images, head=False), images), baseline)


def exercise_3(images, baseline):
    """Mirrors half of the views, and compares each digit."""
    values = scores(train(images, flip=True), images)
    print("With mirrored views:")
    print_gain("all digits", values, baseline)
    labels = images.y_train[-VALIDATION:]
    changes = np.array([(values - baseline)[labels == digit].mean() for digit in range(10)])
    for digit in np.argsort(changes):
        print(f"   digit {digit}: {changes[digit]:+.3f}")


def main():
    images = data.load_dataset("digits", image_size=24, dtype="uint8")
    baseline = scores(train(images), images)
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise(images, baseline)


if __name__ == "__main__":
    main()
