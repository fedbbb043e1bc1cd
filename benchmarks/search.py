"""Exact search, 60,000 x 64, 1,000 queries, k = 10, two threads: kerasim beside its engines.

Best of five runs each. Yardstick: for Manhattan and cosine faiss flat, for Euclidean the faster of
faiss flat and scikit-learn brute. Their answers are float32; kerasim's are checked in float64.
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"

import time

import faiss
import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from kerasim.neighbors import METRICS, NeighborIndex


def best_of_five(call):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def main():
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((100, 64))
    gallery, queries = (
        (centres[rng.integers(0, 100, n)] + rng.standard_normal((n, 64))).astype("float32")
        for n in (60_000, 1_000)
    )
    kinds = {
        "euclidean": faiss.METRIC_L2,
        "manhattan": faiss.METRIC_L1,
        "cosine": faiss.METRIC_INNER_PRODUCT,
    }
    rows = []
    for metric in METRICS:
        index = NeighborIndex(metric).fit(gallery)
        ours = best_of_five(lambda index=index: index.query(queries, 10))
        flat = faiss.IndexFlat(64, kinds[metric])
        flat.add(unit(gallery) if metric == "cosine" else gallery)
        theirs = best_of_five(
            lambda flat=flat, cosine=metric == "cosine": flat.search(
                unit(queries) if cosine else queries, 10
            )
        )
        brute = NearestNeighbors(algorithm="brute", metric=metric, n_jobs=2).fit(gallery)
        learn = best_of_five(lambda brute=brute: brute.kneighbors(queries, 10))
        yardstick = min(theirs, learn) if metric == "euclidean" else theirs
        rows.append((metric, ours, theirs, learn, ours / yardstick))
    columns = [
        "metric",
        "kerasim, s",
        "faiss flat, s",
        "scikit-learn brute, s",
        "ratio (reach 1.1)",
    ]
    print(pd.DataFrame(rows, columns=columns).set_index("metric").round(3).to_string())


if __name__ == "__main__":
    main()
