"""Exact search among 60,000 vectors, k = 10, two threads: kerasim beside faiss flat.

Medians of five alternating runs. Each run searches with 1,000 queries at once, then with 50 queries
one at a time. faiss answers in float32; kerasim's answers are proven in float64. Beside ordinary
data there are some on which a bound from float32 products is hard to get: clusters a thousandth of
their distance wide, data far from the origin, one vector far from all others, and many copies.
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"

import time

import faiss
import numpy as np
import pandas as pd

from kerasim.neighbors import METRICS, NeighborIndex

GALLERY, QUERIES, SINGLE, K = 60_000, 1_000, 50, 10
FAISS_METRIC = {
    "euclidean": faiss.METRIC_L2,
    "manhattan": faiss.METRIC_L1,
    "cosine": faiss.METRIC_INNER_PRODUCT,
}


def draw(kind, dim, rng):
    """Returns float32 vectors and queries, in clusters around 100 centers."""
    centers = 3 * rng.standard_normal((100, dim))
    width = 1e-3 if kind == "tight clusters" else 1.0

    def clustered(n):
        return centers[rng.integers(0, 100, n)] + width * rng.standard_normal((n, dim))

    gallery, queries = clustered(GALLERY), clustered(QUERIES)
    if kind == "far from the origin":
        gallery, queries = gallery + 1e4, queries + 1e4
    elif kind == "one far vector":
        gallery[0] *= 1e4
    elif kind == "ten copies of each":
        gallery = np.repeat(gallery[: GALLERY // 10], 10, axis=0)
    return gallery.astype("float32"), queries.astype("float32")


def prepared(x, metric):
    return x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x


def seconds(search, queries):
    """Returns the time of one search for all queries, and of single ones, in seconds."""
    start = time.perf_counter()
    search(queries)
    middle = time.perf_counter()
    for n in range(SINGLE):
        search(queries[n : n + 1])
    return middle - start, (time.perf_counter() - middle) / SINGLE


def compared(kind, dim, metric):
    gallery, queries = draw(kind, dim, np.random.default_rng(0))
    index = NeighborIndex(metric).fit(gallery)
    flat = faiss.IndexFlat(dim, FAISS_METRIC[metric])
    flat.add(prepared(gallery, metric))
    searches = (
        lambda x: index.query(x, K),
        lambda x: flat.search(prepared(x, metric), K),
    )
    runs = [[seconds(search, queries) for search in searches] for _ in range(5)]
    (ours, ours_single), (theirs, theirs_single) = np.median(runs, axis=0)
    return {
        "data": kind,
        "dim": dim,
        "metric": metric,
        "kerasim, s": ours,
        "faiss, s": theirs,
        "ratio": ours / theirs,
        "single, ms": 1e3 * ours_single,
        "faiss, ms": 1e3 * theirs_single,
        "ratio, single": ours_single / theirs_single,
    }


def main():
    cases = [("ordinary", 64, metric) for metric in METRICS]
    cases += [("ordinary", 784, metric) for metric in ("euclidean", "cosine")]
    for kind in ("tight clusters", "far from the origin", "one far vector", "ten copies of each"):
        cases += [(kind, 64, metric) for metric in ("euclidean", "cosine")]
    table = pd.DataFrame([compared(*case) for case in cases])
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
