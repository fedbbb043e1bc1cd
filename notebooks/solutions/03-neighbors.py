"""Solutions to the exercises of notebook 03, on the bundled digits.

Run with: python notebooks/solutions/03-neighbors.py
"""

import functools

import keras
import numpy as np
from scipy.linalg import orthogonal_procrustes

from kerasim import data, embedding, metrics, models, neighbors, projection, training

SEED = 0
DRAWS = 2_000  # of the sign-flip test
PAIRS = (("euclidean", "manhattan"), ("manhattan", "cosine"), ("euclidean", "cosine"))


@functools.cache
def load():
    """Returns the codes of a short training, and the labels: of the gallery, and of the queries."""
    digits = data.load_dataset("digits", image_size=24)
    keras.utils.set_random_seed(SEED)
    network = models.conv_autoencoder((24, 24, 1), dense_widths=(128, 256, 512))
    network.compile("adam", "mse")
    batches = data.ImageBatches(digits.x_train, batch_size=32, seed=SEED)
    training.fit(network, batches, epochs=8, verbose=0)
    encoder = network.get_layer("encoder")
    codes = [embedding.embed(encoder, x) for x in (digits.x_train, digits.x_test)]
    return codes[0], digits.y_train, codes[1], digits.y_test


def precision(gallery, queries, k=10, metric="euclidean"):
    """Returns the precision at k of each query."""
    _, labels, _, query_labels = load()
    found = neighbors.NeighborIndex(metric).fit(gallery).query(queries, k=k)[1]
    return (labels[found] == query_labels[:, None]).mean(axis=1)


def difference(new, old):
    """Returns the mean difference over the same queries, and its 95 % interval."""
    low, high = metrics.bootstrap_interval(new - old)
    return f"{(new - old).mean():+.4f} ({low:+.4f} to {high:+.4f})"


def exercise_1():
    """A longer list reaches farther, and the metrics differ more in it."""
    gallery, _, queries, _ = load()
    for k in (1, 10, 100):
        values = {metric: precision(gallery, queries, k, metric) for metric in neighbors.METRICS}
        means = ", ".join(f"{metric} {found.mean():.3f}" for metric, found in values.items())
        print(f"precision at {k}: {means}")
        for new, old in PAIRS:
            print(f"    {new} minus {old}: {difference(values[new], values[old])}")
    print("The intervals are not corrected for the nine comparisons.")


def sign_flip_p(gaps):
    """Returns the two-sided p value of a mean: the signs are random if nothing differs."""
    rng = np.random.default_rng(SEED)
    signs = rng.choice([-1, 1], (DRAWS, len(gaps)))
    flipped = np.abs((signs * gaps).mean(axis=1))
    return (1 + np.sum(flipped >= abs(gaps.mean()) - 1e-12)) / (1 + DRAWS)


def holm(p_values):
    """Returns the p values corrected by Holm: the smallest times m, the next times m - 1, ..."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    # No corrected value is smaller than that of a smaller p value.
    corrected[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return corrected


def exercise_2():
    """Holm's correction is never stricter than Bonferroni's, and keeps the same guarantee."""
    gallery, _, queries, _ = load()
    values = {
        (metric, k): precision(gallery, queries, k, metric)
        for metric in neighbors.METRICS
        for k in (10, 100)
    }
    pairs = [(new, old, k) for k in (10, 100) for new, old in PAIRS]
    p_values = np.array([sign_flip_p(values[new, k] - values[old, k]) for new, old, k in pairs])
    by_bonferroni, by_holm = np.minimum(1, len(p_values) * p_values), holm(p_values)
    for n, (new, old, k) in enumerate(pairs):
        print(f"{new} against {old} at {k}: p {p_values[n]:.4f}, ", end="")
        print(f"Bonferroni {by_bonferroni[n]:.4f}, Holm {by_holm[n]:.4f}")
    counts = [int((p < 0.05).sum()) for p in (p_values, by_bonferroni, by_holm)]
    print("differences shown: {} uncorrected, {} by Bonferroni, {} by Holm".format(*counts))


def exercise_3():
    """A rotation aligns the maps as a whole, but not the order of their clusters."""
    gallery, _, queries, query_labels = load()
    layout = projection.Projection(seed=SEED)
    places = layout.fit_transform(gallery)
    wanted = layout.transform(queries)
    own = projection.Projection(seed=SEED).fit_transform(queries)
    centered, target = own - own.mean(axis=0), wanted - wanted.mean(axis=0)
    rotation, scale = orthogonal_procrustes(centered, target)
    aligned = centered @ rotation * scale / np.sum(centered**2) + wanted.mean(axis=0)
    values = {
        "one map": precision(places, wanted),
        "two maps": precision(places, own),
        "two maps, aligned": precision(places, aligned),
    }
    for name, found in values.items():
        print(f"{name}: precision at 10 {found.mean():.3f}")
    print("aligned minus one map:", difference(values["two maps, aligned"], values["one map"]))
    print("The alignment needs the places of the queries on the first map. With these at hand,")
    print("the second map is not needed.")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
