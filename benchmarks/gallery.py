"""A gallery beside what it is made of, and search by a graph beside raw faiss.

`gallery.py folder`, `exact`, `mixture`, `normal` or `smaller` measures one of these.

Embedding a folder of 10,000 JPEG files of 200 x 245 with SqueezeNet, against `predict` on arrays
decoded beforehand, in turns of 2,000 (reach: at least 0.9 of its speed; weights are random, which
takes no other time). An exact query through `Gallery` against `embedding.embed` and
`NeighborIndex`, 60,000 images, 64 dimensions (reach: at most 1.1 times as long). Then graphs of a
million vectors of 64 dimensions, each in a process of its own (reach: 0.95 recall, under 1 ms a
query, under 2 GB, at most 1.1 times the time of faiss on the same graph). Last, the same mixture
in 8 bits and in binary codes, saved and loaded with the vectors on the disk, beside the graph of
float32 (reach of 8 bits: 0.65 of its memory, recall within 0.005, no slower).
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def seconds(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def folder():
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from kerasim import models
    from kerasim.gallery import Gallery

    embedder = models.pretrained_embedder(
        "squeezenet", None, pooling="average", embedding_dim=None, image_shape=(245, 200, 3)
    )
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    ours = theirs = 0.0
    with tempfile.TemporaryDirectory() as root:
        for turn in range(-1, 5):  # the first one warms both up
            part, decoded = Path(root, str(turn)), []
            part.mkdir()
            for n in range(2000 if turn >= 0 else 300):
                photograph = photographs[n % 2]
                top, left = rng.integers(0, np.array(photograph.shape[:2]) - (245, 200))
                crop = photograph[top : top + 245, left : left + 200]
                Image.fromarray(crop).save(part / f"{n}.jpg", quality=90)
                decoded.append(crop)
            decoded = np.stack(decoded).astype("float32") / 255
            calls = [
                lambda part=part: Gallery(embedder).add(part),
                lambda decoded=decoded: embedder.predict(decoded, batch_size=256, verbose=0),
            ]
            order = (0, 1) if turn % 2 else (1, 0)
            taken = dict(zip(order, [seconds(calls[n])[0] for n in order], strict=True))
            if turn >= 0:
                ours, theirs = ours + taken[0], theirs + taken[1]
    print(
        f"folder: {10_000 / ours:.1f} images/s, predict on arrays {10_000 / theirs:.1f}: "
        f"{theirs / ours:.3f} of its speed (reach 0.9)"
    )


def exact():
    import keras

    from kerasim import embedding
    from kerasim.gallery import Gallery
    from kerasim.neighbors import NeighborIndex

    rng = np.random.default_rng(0)
    images = rng.random((60_000, 8, 8, 1), dtype="float32")
    embedder = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(64)]
    )
    gallery = Gallery(embedder)
    gallery.add(images, chunk=60_000)
    index = NeighborIndex("cosine").fit(embedding.embed(embedder, images))
    calls = (
        lambda: gallery.query(images[:1000]),
        lambda: index.query(embedding.embed(embedder, images[:1000])),
    )
    ours, theirs = np.min([[seconds(call)[0] for call in calls] for _ in range(7)], axis=0)
    print(
        f"exact query: {1000 * ours:.0f} ms for 1,000, NeighborIndex {1000 * theirs:.0f} ms: "
        f"{ours / theirs:.3f} times (reach 1.1)"
    )


def million(kind):
    """Keeps no second copy: the peak is that of building the index, not of drawing vectors."""
    import faiss

    from kerasim.neighbors import NeighborIndex

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, 64), dtype="float32") * (kind == "mixture")

    def draw(n):
        x = rng.standard_normal((n, 64), dtype="float32")
        x += 3 * centres[rng.integers(0, 1000, n)]
        return x

    vectors, queries = draw(1_000_000), draw(1000)
    built, index = seconds(
        lambda: NeighborIndex("euclidean", kind="hnsw", **SETTINGS[kind]).fit(vectors)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    graph = faiss.IndexHNSWFlat(64, index.m)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = index.ef_construction, index.ef_search
    raw_built, _ = seconds(lambda: graph.add(vectors))
    flat = faiss.IndexFlatL2(64)
    flat.add(vectors)
    true = flat.search(queries, 10)[1]
    times = {"ours": [], "raw": []}
    for _ in range(5):
        taken, (_, found) = seconds(lambda: index.query(queries, 10))
        times["ours"].append(taken)
        taken, (_, raw) = seconds(lambda: graph.search(queries, 10))
        times["raw"].append(taken)

    def recall(rows):
        return (rows[:, :, None] == true[:, None]).any(axis=2).mean()

    ours, theirs = min(times["ours"]), min(times["raw"])
    print(
        f"{kind}, {SETTINGS[kind]}: built in {built:.0f} s (faiss {raw_built:.0f}), "
        f"peak {peak:.2f} GiB (reach 2), {ours:.3f} ms a query (reach 1), "
        f"{1000 / ours:.0f} queries/s, faiss {theirs:.3f} ms: "
        f"{ours / theirs:.2f} times (reach 1.1), recall@10 {recall(found):.4f}, faiss "
        f"{recall(raw):.4f} (reach 0.95); recall_ {index.recall_:.4f}"
    )


def smaller(n=1_000_000):
    from kerasim.neighbors import NeighborIndex

    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((1000, 64), dtype="float32")
    vectors, queries = (
        rng.standard_normal((rows, 64), dtype="float32") + centres[rng.integers(0, 1000, rows)]
        for rows in (n, 1000)
    )
    true = NeighborIndex("euclidean").fit(vectors).query(queries, 10)[0][:, -1:]
    for kind in ("hnsw", "hnsw_sq8", "binary"):
        built, index = seconds(lambda kind=kind: NeighborIndex("euclidean", kind).fit(vectors))
        with tempfile.TemporaryDirectory() as folder:
            index.save(f"{folder}/index")
            index = NeighborIndex.load(f"{folder}/index", mmap_mode="r")
            taken = []
            for _ in range(6):  # the first one reads vectors from the disk
                one, (distances, _) = seconds(lambda index=index: index.query(queries, 10))
                taken.append(one)
        print(
            f"{kind}: built in {built:.0f} s, {index.nbytes / 2**20:.0f} MiB, "
            f"{np.median(taken[1:]):.3f} ms a query, recall@10 {(distances <= true).mean():.4f}; "
            f"recall_ {index.recall_:.4f}"
        )


# Vectors without any structure are the hardest: their nearest are hardly nearer than the rest.
SETTINGS = {"mixture": {}, "normal": {"ef_search": 512}}

if __name__ == "__main__":
    part = sys.argv[1]
    parts = {"folder": folder, "exact": exact, "smaller": smaller}
    million(part) if part in SETTINGS else parts[part]()
