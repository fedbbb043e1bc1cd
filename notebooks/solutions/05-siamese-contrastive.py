"""Solutions to the exercises of notebook 05, on the bundled digits.

Run with: python notebooks/solutions/05-siamese-contrastive.py
"""

import keras
import numpy as np

from kerasim import data, embedding, losses, metrics, models, training

SEED = 0
MARGIN = 5.0
BATCH_SIZE = 16
VALIDATION = 119  # training images in the validation split


def load():
    """Returns the images and labels of the training split and of the validation split."""
    digits = data.load_dataset("digits", image_size=24, dtype="uint8")
    x, y = digits.x_train, digits.y_train
    return x[:-VALIDATION], y[:-VALIDATION], x[-VALIDATION:], y[-VALIDATION:]


def train(x, y, steps, dim=2, positive=0.5):
    """Trains an embedder with the contrastive loss on random pairs and returns it."""
    keras.utils.set_random_seed(SEED)
    embedder = models.conv_embedder(x.shape[1:], dim, convs=1, dense_width=64)
    network = models.siamese(embedder, metric="euclidean")
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    network.compile(keras.optimizers.Adam(rate), losses.ContrastiveLoss(MARGIN))
    pairs = data.PairBatches(
        x, y, positive=positive, n=steps * BATCH_SIZE, batch_size=BATCH_SIZE, seed=SEED
    )
    training.fit(network, pairs, epochs=1, verbose=0)
    return embedder


def distances_of_all_pairs(embeddings, labels):
    """Returns the distance of each pair of different images, and whether it is positive."""
    first, second = np.triu_indices(len(embeddings), 1)
    distances = metrics.pair_distances(embeddings[first], embeddings[second], "euclidean")
    return distances, labels[first] == labels[second]


def mean_loss(distances, same, margin):
    """Returns the mean contrastive loss, with half of the weight on positive pairs."""
    push = np.maximum(margin - distances[~same], 0) ** 2
    return (np.mean(distances[same] ** 2) + np.mean(push)) / 2


def exercise_1():
    """Without negative pairs the embeddings collapse: all distances go to zero."""
    x, y, x_val, y_val = load()
    for positive in (0.5, 1.0):
        embedder = train(x, y, steps=150, positive=positive)
        distances, same = distances_of_all_pairs(embedding.embed(embedder, x_val), y_val)
        print(
            f"share {positive} of positive pairs: mean distance {distances[same].mean():.3f} of "
            f"positive pairs, {distances[~same].mean():.3f} of negative pairs"
        )
    print("Positive pairs alone pull everything together; only negative pairs prevent it.")


def exercise_2():
    """Twice the last layer: the same EER, and four times the loss with twice the margin."""
    x, y, x_val, y_val = load()
    embedder = train(x, y, steps=150)
    last = embedder.get_layer("embeddings")
    for factor in (1, 2):
        distances, same = distances_of_all_pairs(embedding.embed(embedder, x_val), y_val)
        verified = metrics.verification(distances, same)
        print(
            f"last layer times {factor}: EER {verified.eer:.4f} at threshold "
            f"{verified.eer_threshold:.3f}, loss with margin {factor * MARGIN:g}: "
            f"{mean_loss(distances, same, factor * MARGIN):.4f}"
        )
        last.set_weights([2 * weights for weights in last.get_weights()])
    print("The EER is equal, the threshold is doubled, and the loss is multiplied by 2 ** 2.")


def exercise_3():
    """More dimensions leave more room: ten classes need not be neighbors in a plane."""
    x, y, x_val, y_val = load()
    eers = {}
    for dim in (2, 8):
        embedder = train(x, y, steps=200, dim=dim)
        eers[dim] = metrics.verification(
            *distances_of_all_pairs(embedding.embed(embedder, x_val), y_val)
        ).eer
        print(f"{dim} dimensions: EER {100 * eers[dim]:.1f} % on the validation split")
    verdict = "lower" if eers[8] < eers[2] else "not lower"
    print(f"With eight dimensions the EER is {verdict}. This is one seed; repeat it with others.")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
