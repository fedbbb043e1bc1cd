"""Solutions to the exercises of notebook 14, on the bundled digits.

Run with: python notebooks/solutions/14-gallery.py
"""

import functools
import tempfile
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from kerasim import data, embedding, losses, metrics, models, neighbors, training
from kerasim.gallery import Gallery

SEED = 0
FEW = {"ef_construction": 10, "ef_search": 10}  # candidates
SIDE = 24  # pixels of a digit without its black margin


@functools.cache
def load():
    """Returns the digits, and an embedder of a short training."""
    digits = data.load_dataset("digits", image_size=SIDE)
    keras.utils.set_random_seed(SEED)
    embedder = models.conv_embedder((SIDE, SIDE, 1), 64, (16, 32, 64), convs=1)
    embedder.compile("adam", losses.SupConLoss())
    batches = data.BalancedBatches(digits.x_train, digits.y_train, 10, 8, seed=SEED)
    training.fit(embedder, batches, epochs=4, verbose=0)
    return digits, embedder


def exercise_1():
    """An approximate search misses a few neighbors, more of them with fewer links."""
    digits, embedder = load()
    queries = embedding.embed(embedder, digits.x_test)
    exact = None
    for name, settings in (
        ("exact", {}),
        ("hnsw, as by default", {"kind": "hnsw"}),
        ("hnsw, ef_search=10", {"kind": "hnsw", "ef_search": 10}),
        ("hnsw, m=4, ef_construction=10, ef_search=10", {"kind": "hnsw", "m": 4} | FEW),
    ):
        gallery = Gallery(embedder, thumbnail_size=None, **settings)
        gallery.add(digits.x_train, digits.y_train, progress=False)
        found = gallery.query(vectors=queries)["id"].to_numpy()
        exact = found if exact is None else exact
        shared = metrics.neighbor_overlap(found.reshape(-1, 10), exact.reshape(-1, 10)).mean()
        print(
            f"{name}: {np.sum(found != exact)} of {len(found)} rows of the table differ, ", end=""
        )
        print(f"{100 * shared:.1f} % of the ten neighbors are found")
    print("Where a neighbor is missed, all later rows of its query move up by one rank, so that")
    print("more rows differ than neighbors are missed. With the default settings the search in")
    print("so small a gallery is nearly exact; it is faster than the exact one only in large ones.")


def exercise_2():
    """The fitted pairs predict the errors on others, less well the fewer pairs decide."""
    digits, embedder = load()
    order = np.random.default_rng(SEED).permutation(len(digits.x_test))
    fitting, testing = [
        (digits.x_test[rows][left], digits.x_test[rows][right], same)
        for rows in (order[::2], order[1::2])
        for left, right, same in [data.draw_pairs(digits.y_test[rows], 2_000, seed=SEED)]
    ]
    gallery = Gallery(embedder)
    for max_far in (0.05, 0.01):
        gallery.calibrate(*fitting, max_far=max_far)
        predicted = gallery.calibration
        same = gallery.verify(*testing[:2])["same"].to_numpy(bool)
        positive = testing[2].astype(bool)
        low, high = (100 * end for end in predicted["frr_interval"])
        print(f"max_far={max_far:g}: rejected positive pairs, predicted", end=" ")
        print(f"{100 * predicted['frr']:.1f} % ({low:.1f} to {high:.1f} %),", end=" ")
        print(f"on the test pairs {100 * np.mean(~same[positive]):.1f} %", end="; ")
        print(f"FAR on the test pairs {100 * np.mean(same[~positive]):.1f} %")
    print("A smaller FAR is bought with a larger FRR. The threshold for 1 % is determined by ten")
    print("of 1,000 negative pairs. They share images, so the intervals, which take pairs for")
    print("independent, are too narrow: the errors on other images vary more.")


def exercise_3():
    """The nearest two of twenty files: each file searches for its nearest other one."""
    digits, embedder = load()
    chosen = np.random.default_rng(SEED).choice(len(digits.x_test), 20, replace=False)
    with tempfile.TemporaryDirectory() as folder:
        for row in chosen:
            pixels = np.round(255 * digits.x_test[row, ..., 0]).astype("uint8")
            Image.fromarray(pixels).save(Path(folder) / f"{row} (a {digits.y_test[row]}).png")
        gallery = Gallery(embedder)
        ids = gallery.add(folder, progress=False)
        # Each image is in a group of its own, so that it does not find itself.
        found = gallery.query(ids=ids, k=1, query_groups=ids, item_groups=ids)
        names = [Path(file).stem for file in gallery.items["file"]]
    best = found.loc[found["distance"].idxmin()]
    pair = {names[best["query"]], names[best["id"]]}
    print(f"by embeddings: images {' and '.join(sorted(pair))}, distance {best['distance']:.4f}")
    rows = [int(name.split()[0]) for name in names]
    index = neighbors.NeighborIndex("euclidean").fit(embedding.pixels(digits.x_test[rows]))
    distances, nearest = index.query(k=1)
    query = distances[:, 0].argmin()
    by_pixels = {names[query], names[nearest[query, 0]]}
    print(f"by pixels: images {' and '.join(sorted(by_pixels))}, distance {distances.min():.2f}")
    print(f"{'The same two.' if pair == by_pixels else 'Not the same two.'}", end=" ")
    print("The distances are in different units. Pixels compare strokes at the same places; the")
    print("embedder was trained to ignore what varies within a class.")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()
