"""Solutions to the exercises of notebook 13, on pairs of the bundled digits.

The left image of a pair is a digit, the right one the same digit, turned and with noise.
"""

import keras
import numpy as np
from PIL import Image

from kerasim import data, embedding, losses, metrics, models, training

COUNT, TRAIN = 600, 400
MARGIN = 0.2


def digit_pairs(first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sides of 600 pairs from digit `first` on, `(600, 24, 24, 1)` in [0, 1]."""
    rng = np.random.default_rng(0)
    digits = data.load_dataset("digits", image_size=24, dtype="uint8").x_train
    left = digits[first : first + COUNT, ..., 0]
    turned = [
        np.asarray(Image.fromarray(x).rotate(angle))
        for x, angle in zip(left, rng.uniform(-25, 25, COUNT), strict=True)
    ]
    right = np.stack(turned) / 255 + rng.normal(0, 0.2, left.shape)
    return (left / 255)[..., None].astype("float32"), np.clip(right, 0, 1)[..., None].astype(
        "float32"
    )


def pixel_pairs() -> list[np.ndarray]:
    """Returns the pixels of both sides as vectors, which stand for stored features."""
    return [side.reshape(COUNT, -1) for side in digit_pairs()]


def accuracy(embedder: keras.Model, left: np.ndarray, right: np.ndarray) -> float:
    """Returns the top-2 accuracy on the pairs that are not trained on, over ten draws of pools."""
    sides = [embedding.embed(embedder, side[TRAIN:]) for side in (left, right)]
    draws = [data.candidate_pools(COUNT - TRAIN, 50, seed) for seed in range(10)]
    ranks = [metrics.candidate_accuracy(*sides, pools, 2).ranks for pools in draws]
    return float(np.mean(np.stack(ranks) <= 2))


def active_share(embedder: keras.Model, left: np.ndarray, right: np.ndarray) -> float:
    """Returns the share of the triplets of all these pairs that have a loss above 0."""
    sides = [embedding.embed(embedder, side) for side in (left, right)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    cosines = unit[0] @ unit[1].T
    costs = cosines - np.diag(cosines)[:, None] + MARGIN > 0
    return float(costs[~np.eye(len(left), dtype=bool)].mean())


def train_dense(sides: list[np.ndarray], loss: keras.Loss, batch_size: int, epochs: int):
    """Returns a dense layer that is trained on the stored vectors of the training pairs."""
    keras.utils.set_random_seed(0)
    head = keras.Sequential([keras.Input(sides[0].shape[1:]), keras.layers.Dense(64)])
    batches = data.EmbeddingPairBatches(*(side[:TRAIN] for side in sides), batch_size=batch_size)
    net = models.siamese(head, metric=None)
    net.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    training.fit(net, batches, epochs, verbose=0)
    return head


def exercise_1() -> None:
    """Semi-hard mining in place of all triplets."""
    sides = pixel_pairs()
    for mining in ("all", "semi_hard"):
        head = train_dense(sides, losses.InBatchTripletLoss(MARGIN, mining), 20, 10)
        shares = [
            active_share(head, *(side[rows] for side in sides))
            for rows in (slice(TRAIN), slice(TRAIN, None))
        ]
        print(
            f"{mining}: {shares[0]:.1%} of the training triplets and {shares[1]:.1%} of the test "
            f"triplets are active, top-2 accuracy {accuracy(head, *sides):.3f}"
        )
    print(
        "With all triplets, those without a loss divide the gradient of the active ones, and it "
        "fades as their number grows. Semi-hard mining takes the mean over triplets that violate "
        "the margin but not the order, so the gradient keeps its size until none is left. Those "
        "with the negative nearer than the positive are left out, and may stay active. On pairs as "
        "easy as these the two differ little."
    )


def exercise_2() -> None:
    """Batches of 5, 20 and 80 pairs, with the same number of steps."""
    sides, steps = pixel_pairs(), 240
    for batch_size in (5, 20, 80):
        epochs = steps * batch_size // TRAIN
        head = train_dense(sides, losses.InBatchTripletLoss(MARGIN), batch_size, epochs)
        print(
            f"batches of {batch_size}: {batch_size - 1} distractors for a pair, {epochs} epochs, "
            f"top-2 accuracy {accuracy(head, *sides):.3f}"
        )
    print(
        "A larger batch shows each pair more distractors, and more pairs in the same number of "
        "steps: both effects are in this comparison. With the same number of epochs instead, the "
        "smaller batch would take more steps."
    )


def pretrained_backbone() -> keras.Model:
    """Returns a small network that is trained on other digits, with noise instead of rotations."""
    keras.utils.set_random_seed(0)
    backbone = models.conv_embedder((24, 24, 1), embedding_dim=64, widths=(16, 32))
    left, _ = digit_pairs(COUNT)
    net = models.siamese(backbone, metric=None)
    net.compile(keras.optimizers.Adam(1e-3), losses.InfoNCELoss(0.1))
    training.fit(net, data.PositivePairBatches(left, left, batch_size=64, sigma=0.2), 8, verbose=0)
    return backbone


def exercise_3() -> None:
    """Fine-tuning from a random head and from a trained one."""
    left, right = digit_pairs()
    backbone = pretrained_backbone()
    start = backbone.get_weights()
    stored = [embedding.embed(backbone, side) for side in (left, right)]
    trained = models.whitened_head(np.concatenate([side[:TRAIN] for side in stored]), components=32)
    net = models.siamese(trained, metric=None)
    net.compile(keras.optimizers.Adam(2e-3), losses.InfoNCELoss(0.1), jit_compile=False)
    vectors = data.EmbeddingPairBatches(*(side[:TRAIN] for side in stored), batch_size=100)
    training.fit(net, vectors, 10, verbose=0)
    random = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
    for name, head in (("random", random), ("trained", trained)):
        backbone.set_weights(start)
        embedder = keras.Model(backbone.input, head(backbone.output))
        before = accuracy(embedder, left, right)
        net = models.siamese(embedder, metric=None)
        net.compile(keras.optimizers.Adam(3e-4), losses.InfoNCELoss(0.1))
        images = data.PositivePairBatches(left[:TRAIN], right[:TRAIN], batch_size=50)
        training.fit(net, images, 4, verbose=0)
        print(f"{name} head: {before:.3f} before, {accuracy(embedder, left, right):.3f} after")
    print(
        "The gradients that reach the backbone come through the head. A random head sends it in "
        "directions that serve the head, and in a few epochs it does not catch up with the head "
        "that was trained first, on stored features, in a fraction of the time."
    )


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__.splitlines()[0]}")
        exercise()
