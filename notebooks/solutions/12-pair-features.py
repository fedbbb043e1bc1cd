"""Solutions to the exercises of notebook 12, on pairs of the bundled digits.

The left image of a pair is a digit, the right one the same digit, turned and with noise.
"""

import keras
import numpy as np
from PIL import Image

from kerasim import data, embedding, layers, losses, metrics, models, training

COUNT, TRAIN = 700, 500


def digit_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of both sides, `(700, 576)`: 500 pairs to train on, then 200 others."""
    rng = np.random.default_rng(0)
    left = data.load_dataset("digits", image_size=24, dtype="uint8").x_train[:COUNT, ..., 0]
    right = [
        Image.fromarray(x).rotate(angle)
        for x, angle in zip(left, rng.uniform(-25, 25, COUNT), strict=True)
    ]
    pixels = left.reshape(COUNT, -1) / 255, np.stack([np.asarray(x) for x in right]) / 255
    noise = rng.normal(0, 0.2, (COUNT, 576))
    return pixels[0].astype("float32"), (pixels[1].reshape(COUNT, -1) + noise).astype("float32")


def hits(head: keras.Model, left: np.ndarray, right: np.ndarray, pool: int, k: int) -> float:
    """Returns the top-k accuracy on the pairs that are not trained on, over ten draws of pools."""
    sides = [embedding.embed(head, side[TRAIN:]) for side in (left, right)]
    draws = [data.candidate_pools(COUNT - TRAIN, pool, seed) for seed in range(10)]
    ranks = [metrics.candidate_accuracy(*sides, pools, k).ranks for pools in draws]
    return float(np.mean(np.stack(ranks) <= k))


def exercise_1() -> None:
    """Pools of 5 and of 100 candidates.

    If every distractor beat the right image with the same probability `q`, the rank in a pool of
    `n` would be 1 plus a binomial number. Take `q` from pools of 20 and predict the others.
    """
    left, right = digit_pairs()
    head = models.whitened_head(np.concatenate([left[:TRAIN], right[:TRAIN]]), components=40)
    top_1 = hits(head, left, right, 20, 1)
    q = 1 - top_1 ** (1 / 19)  # of rank 1: none of 19 distractors is nearer
    for pool in (5, 20, 100):
        others = pool - 1
        predicted = (1 - q) ** others + others * q * (1 - q) ** (others - 1)
        measured = hits(head, left, right, pool, 2)
        print(f"pools of {pool}: top-2 accuracy {measured:.3f}, predicted {predicted:.3f}")
    print(
        "The prediction is too high for small pools and too low for large ones, because q differs "
        "between pairs: some have hardly any similar distractor, others have many."
    )


def exercise_2() -> None:
    """Near-duplicates as negatives: each pair occurs twice in the training data."""
    left, right = digit_pairs()
    rng = np.random.default_rng(0)
    doubled = [
        np.concatenate([side[:TRAIN], side[:TRAIN] + rng.normal(0, 0.02, (TRAIN, 576))])
        for side in (left, right)
    ]
    for name, groups in (("with", np.tile(np.arange(TRAIN), 2)), ("without", None)):
        keras.utils.set_random_seed(0)
        head = models.whitened_head(np.concatenate(doubled), components=40, power=0.5)
        batches = data.EmbeddingPairBatches(*doubled, groups, batch_size=250)
        net = models.siamese(head, metric=None)
        net.compile(keras.optimizers.Adam(3e-3), losses.InfoNCELoss(0.1))
        loss = training.fit(net, batches, 10, verbose=0)["loss"].iloc[-1]
        accuracy = hits(head, left, right, 100, 1)
        print(f"{name} groups: top-1 of 100 candidates {accuracy:.3f}, loss {loss:.3f}")
    print(
        "Without groups, a pair meets its own copy as a negative in one batch of four. The loss is "
        "higher, because no head can tell the two apart. The accuracy hardly differs: the copy is "
        "one of 249 negatives."
    )


def exercise_3() -> None:
    """The share of the variance in the first ten components, by the power of the whitening."""
    left, right = digit_pairs()
    pixels = np.concatenate([left, right])
    for power in (0.0, 0.5, 1.0):
        whitening = layers.Whitening(100, power)
        whitening.adapt(pixels)
        variance = keras.ops.convert_to_numpy(whitening(pixels)).var(axis=0)
        share = variance[:10].sum() / variance.sum()
        print(f"power {power}: {share:.0%} of the variance in the first 10 of 100 components")
    print("At power 1 each component has the same share, and noise counts as much as shape.")


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__.splitlines()[0]}")
        exercise()
