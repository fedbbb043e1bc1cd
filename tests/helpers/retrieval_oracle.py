"""The scores of `metrics.retrieval` with groups, by sorting all distances of each query."""

import numpy as np

from tests.helpers.search_oracle import float64_distances


def scores_of_one(distances, relevant, excluded, ks):
    """Returns the scores of one query; None if it cannot find a relevant vector."""
    allowed = np.flatnonzero(~excluded)
    order = allowed[np.argsort(distances[allowed], kind="stable")]
    hits = relevant[order]
    count = int(hits.sum())
    if count == 0:
        return None
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    scores = {f"recall@{k}": float(hits[:k].any()) for k in ks}
    scores |= {f"precision@{k}": hits[:k].mean() for k in ks}
    scores["r_precision"] = hits[:count].mean()
    scores["map@r"] = (precisions * hits)[:count].sum() / count
    scores["mrr"] = 1 / (1 + np.flatnonzero(hits)[0])
    return scores


def retrieval(queries, query_labels, gallery, gallery_labels, metric, ks, groups):
    """Returns an array `(n,)` of each score, NaN for queries that are left out.

    Args:
        queries: `(n, dim)` vectors.
        query_labels: `(n,)`.
        gallery: `(m, dim)` vectors; None for the queries themselves.
        gallery_labels: `(m,)`; None if `gallery` is None.
        metric: One of `METRICS`.
        ks: Values of k.
        groups: `(query_groups, gallery_groups)`; the latter is None if `gallery` is None.
    """
    alone = gallery is None
    if alone:
        gallery, gallery_labels, groups = queries, query_labels, (groups[0], groups[0])
    distances = float64_distances(gallery, queries, metric)
    excluded = np.array([[own == other for other in groups[1]] for own in groups[0]])
    if alone:
        excluded |= np.eye(len(queries), dtype=bool)
    relevant = np.array([[own == other for other in gallery_labels] for own in query_labels])
    rows = [scores_of_one(*each, ks) for each in zip(distances, relevant, excluded, strict=True)]
    names = next(row for row in rows if row is not None)
    return {
        name: np.array([np.nan if row is None else row[name] for row in rows]) for name in names
    }
