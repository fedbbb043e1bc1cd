"""Solutions of the exercises of notebook 07, on the bundled digits."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before Keras is imported

import keras
import numpy as np

from kerasim import data, embedding, layers, losses, metrics, models, training

SEEN, UNSEEN = np.arange(6), np.arange(6, 10)
VALIDATION = 500  # the last training images fit thresholds


def digits_of(x, y, digits):
    """Returns the images of some digits, and their labels."""
    chosen = np.isin(y, digits)
    return x[chosen], y[chosen]


def training_images(images):
    """Returns the training split of the digits 0 to 5."""
    return digits_of(images.x_train[:-VALIDATION], images.y_train[:-VALIDATION], SEEN)


def build(x):
    """Returns an untrained embedder; the same weights each time."""
    keras.utils.set_random_seed(0)
    return models.conv_embedder(x.shape[1:], 64, (16, 32, 64), convs=1)


def train(model, loss, x, y, epochs=8):
    """Trains a model on the digits 0 to 5."""
    batches = data.BalancedBatches(x, y, 6, 16, steps_per_epoch=20, seed=0, shift=1)
    rate = training.warmup_cosine(epochs * len(batches), 3e-3)
    model.compile(keras.optimizers.Adam(rate), loss)
    training.fit(model, batches, epochs, verbose=0)


def trained_embedder(images):
    """Returns an embedder trained on the digits 0 to 5 with the supervised contrastive loss."""
    embedder = build(images.x_train)
    train(embedder, losses.SupConLoss(), *training_images(images))
    return embedder


def verification_of(embedder, x, y):
    """Returns the verification of random pairs of images."""
    vectors = embedding.embed(embedder, x)
    left, right, same = data.draw_pairs(y, 20_000)
    return metrics.verification(metrics.pair_distances(vectors[left], vectors[right]), same)


def exercise_1(images, embedder):
    """Enrolls five images of each class, with and without averaging them."""
    x_pool, y_pool = digits_of(images.x_train, images.y_train, UNSEEN[:3])
    pool = embedding.embed(embedder, x_pool)
    x_query, y_query = digits_of(images.x_test, images.y_test, UNSEEN)
    queries = embedding.embed(embedder, x_query)
    rng = np.random.default_rng(0)
    nearest, averaged = [], []
    for _ in range(30):
        rows = [rng.choice(np.flatnonzero(y_pool == digit), 5, False) for digit in UNSEEN[:3]]
        five = np.concatenate(rows)
        templates = np.stack([pool[some].mean(axis=0) for some in rows])
        for dirs, gallery, labels in (
            (nearest, pool[five], y_pool[five]),
            (averaged, templates, UNSEEN[:3]),
        ):
            found = metrics.open_set_identification(queries, y_query, gallery, labels)
            dirs.append(found.dir_at(0.1))
    low, high = metrics.bootstrap_interval(np.subtract(averaged, nearest))
    print("DIR at a FAR of 10 %, mean of 30 enrollments of five images of each class:")
    print(f"   nearest of all {np.mean(nearest):.3f}, averaged {np.mean(averaged):.3f}.")
    print(f"   The difference is {low:+.3f} to {high:+.3f} (95 % interval over enrollments).")


def exercise_2(images, embedder):
    """Fits the threshold on the unseen classes 6 and 7, and tests on 8 and 9."""
    tested = verification_of(embedder, *digits_of(images.x_test, images.y_test, [8, 9]))
    print("Rates on the digits 8 and 9 of a threshold fitted for a FAR of 5 %:")
    x_validation, y_validation = images.x_train[-VALIDATION:], images.y_train[-VALIDATION:]
    for name, digits in (("on seen classes", SEEN), ("on the unseen 6 and 7", [6, 7])):
        fitted = verification_of(embedder, *digits_of(x_validation, y_validation, digits))
        rates = tested.error_rates(fitted.threshold(0.05))
        print(f"   fitted {name}: FAR {100 * rates['far']:.1f} %, FRR {100 * rates['frr']:.1f} %")


def exercise_3(images, embedder):
    """Trains with ArcFace instead of the supervised contrastive loss."""
    x, y = training_images(images)
    arcface = build(x)
    head = keras.Sequential([arcface, layers.CosineClassifier(num_classes=len(SEEN))])
    train(head, losses.ArcFaceLoss(margin=0.3, scale=16.0), x, y)
    new = digits_of(images.x_test, images.y_test, UNSEEN)
    print("EER of unseen classes:")
    for name, net in (("SupCon", embedder), ("ArcFace", arcface), ("untrained", build(x))):
        print(f"   {name}: {100 * verification_of(net, *new).eer:.1f} %")


def main():
    images = data.load_dataset("digits", image_size=24, dtype="uint8")
    embedder = trained_embedder(images)
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise(images, embedder)


if __name__ == "__main__":
    main()
