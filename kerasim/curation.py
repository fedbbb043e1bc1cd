"""Order in a collection of images: outliers, suspect labels, clusters, groups of duplicates.

All but the groups are computed from embeddings, so that they are as good as these: images that an
embedder places near each other are taken for similar. They propose what a person should look at,
and change nothing.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks, _distances
from kerasim._distances import METRICS, Metric
from kerasim.errors import ArgumentError
from kerasim.neighbors import Kind, NeighborIndex

__all__ = [
    "SuspectLabels",
    "clusters",
    "duplicate_groups",
    "outlier_scores",
    "suspect_labels",
]


class SuspectLabels(NamedTuple):
    """How far labels are contradicted by the neighbors of their images.

    Attributes:
        suspicion: `(n,)` float64 in [0, 1]: 0 if all neighbors have the label of the image, up to 1
            if labels with so few neighbors are never right; NaN for an image without a label.
        suggested: `(n,)`, the label that most neighbors of each image have, of the type of
            `labels`; it may be the label of the image.

    Example:
        >>> found = SuspectLabels(np.array([0.02, 0.97]), np.array(["cat", "dog"]))
        >>> found.suspicion.argmax()
        np.int64(1)
    """

    suspicion: np.ndarray
    suggested: np.ndarray


def outlier_scores(
    embeddings: ArrayLike, k: int = 10, metric: Metric = "cosine", kind: Kind = "exact"
) -> np.ndarray:
    """Returns the distance of each vector to its `k`-th nearest other one, large for outliers.

    A group of `k` or fewer similar images is far from the `k`-th neighbor of each, so that all of
    them have large values.

    Args:
        embeddings: `(n, dim)`, n of 2 or more.
        k: Rank of the neighbor, 1 or more; with fewer other vectors the last one, with a warning.
        metric: "cosine", "euclidean" or "manhattan".
        kind: "exact", or an approximate kind, which is faster for many vectors and misses a few
            neighbors (see `NeighborIndex`).

    Returns:
        `(n,)` float64 distances.

    Raises:
        ArgumentError: If `NeighborIndex.fit` refuses the vectors, or an argument is out of range.

    Example:
        >>> outlier_scores([[0.0], [1.0], [2.0], [9.0]], k=1, metric="euclidean").tolist()
        [1.0, 1.0, 1.0, 7.0]

    Reference:
        Ramaswamy, Rastogi & Shim, 2000. https://doi.org/10.1145/335191.335437
    """
    _checks.one_of("metric", metric, METRICS)
    x = _checks.vectors("embeddings", embeddings, None, 2, metric)
    _checks.integer("k", k)
    k = _checks.clipped("k", k, len(x) - 1, "other vector", "other vectors")
    return NeighborIndex(metric, kind).fit(x).query(k=k)[0][:, -1]


def suspect_labels(
    embeddings: ArrayLike,
    labels: ArrayLike,
    k: int = 20,
    metric: Metric = "cosine",
    kind: Kind = "exact",
) -> SuspectLabels:
    """Finds labels that the nearest neighbors of their images contradict.

    The `k` nearest other vectors that have a label vote for theirs, with a weight that falls from 1
    at distance 0 to 0 at the distance of neighbor `k` + 1. An isotonic regression over all images
    and classes then estimates p(share), how often the class that has a share of the votes is the
    label of the image. The suspicion is 1 - p(share of the own label) / p(1).

    The suspicion ranks the labels. It is not the probability that a label is wrong: what
    contradicts the neighbors can be a wrong label or an image that its embedding places among other
    classes. If the embeddings separate the classes well, nearly all high values are wrong labels;
    if they do not, most are right ones. Embeddings that were trained on the same labels fit the
    wrong ones, too.

    Args:
        embeddings: `(n, dim)`, n of 3 or more, at least two of them with a label.
        labels: `(n,)` integers, booleans or strings; None, NaN, `pandas.NA` or "" for no label.
        k: Number of neighbors, 1 or more.
        metric: "cosine", "euclidean" or "manhattan".
        kind: "exact", or an approximate kind, which is faster for many vectors and misses a few
            neighbors (see `NeighborIndex`).

    Returns:
        `SuspectLabels`. Show a person the images of the highest `suspicion` first.

    Raises:
        ArgumentError: If there is not one label for each vector, fewer than two have one, or
            `NeighborIndex.fit` refuses the vectors.
        ArgumentTypeError: If the labels are neither integers nor strings.

    Example:
        >>> embeddings = np.repeat([[0.0, 1.0], [1.0, 0.0]], 20, axis=0)
        >>> labels = np.repeat(["cat", "dog"], 20)
        >>> labels[3] = "dog"
        >>> found = suspect_labels(embeddings, labels, k=5)
        >>> found.suspicion.argmax(), found.suggested[3]
        (np.int64(3), np.str_('cat'))

    Reference:
        Northcutt, Jiang & Chuang, 2021, on what label errors do and how to find them.
        https://arxiv.org/abs/1911.00068
    """
    from sklearn.isotonic import IsotonicRegression

    _checks.one_of("metric", metric, METRICS)
    x = _checks.vectors("embeddings", embeddings, None, 3, metric)
    _checks.integer("k", k)
    labels, absent = _checks.optional_labels("labels", labels, len(x), "embeddings")
    known = np.flatnonzero(~absent)
    if len(known) < 2:
        have = _checks.counted(len(known), "label is", "labels are")
        raise ArgumentError(f"{have} given: pass at least two labels that are not missing.")
    classes, own = np.unique(labels[known], return_inverse=True)
    k = _checks.clipped("k", k, len(known) - 1, "other labeled image", "other labeled images")
    index = NeighborIndex(metric, kind).fit(x[known])
    found = index.query(k=min(k + 1, len(known) - 1))
    shares = _votes(*found, k, own, len(classes))
    of_own = np.asarray(shares[np.arange(len(known)), own]).ravel()
    # The many classes without a vote are two points, of as much weight as they are.
    unvoted = int((of_own == 0).sum())
    others = len(known) * len(classes) - shares.nnz - unvoted
    is_own = shares.indices == np.repeat(own, np.diff(shares.indptr))
    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    curve.fit(
        np.append(shares.data, [0.0, 0.0]),
        np.append(is_own, [1.0, 0.0]),
        np.append(np.ones(shares.nnz), [unvoted, others]),
    )
    suspicion = np.full(len(x), np.nan)
    # Even a label with all votes is as often another one as labels are wrong.
    suspicion[known] = 1.0 - curve.predict(of_own) / curve.predict([1.0])
    suggested = np.empty(len(x), classes.dtype)
    suggested[known] = classes[_most_voted(shares)]
    if absent.any():
        found = index.query(x[absent], min(k + 1, len(known)))
        suggested[absent] = classes[_most_voted(_votes(*found, k, own, len(classes)))]
    return SuspectLabels(suspicion, suggested)


def _votes(distances, indices, k, classes, count):
    """Returns the share of each class in the votes of `k` neighbors, sparse `(n, count)`."""
    from scipy.sparse import coo_matrix

    # The distance at which a weight is 0 is that of the next neighbor, if there is one.
    ends = distances[:, -1:] if distances.shape[1] > k else 1.01 * distances[:, -1:]
    weights = 1.0 - distances[:, :k] / np.where(ends > 0, ends, 1.0)
    weights[~weights.any(axis=1)] = 1.0  # all are equally far
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(len(distances)), weights.shape[1])
    places = rows, classes[indices[:, :k]].ravel()
    shares = coo_matrix((weights.ravel(), places), (len(distances), count)).tocsr()
    shares.eliminate_zeros()
    return shares


def _most_voted(shares) -> np.ndarray:
    return np.asarray(shares.argmax(axis=1)).ravel()


def clusters(embeddings: ArrayLike, min_size: int = 10, metric: Metric = "cosine") -> np.ndarray:
    """Groups vectors into clusters of any number and density, by HDBSCAN of scikit-learn.

    Vectors that form a single dense group are in no cluster, since a cluster is what is denser than
    its surroundings. Time grows with the square of the number of vectors if they have many
    dimensions.

    Args:
        embeddings: `(n, dim)`.
        min_size: Least number of vectors in a cluster, 2 or more.
        metric: "cosine", "euclidean" or "manhattan".

    Returns:
        `(n,)` int64: the number of the cluster of each vector, from 0 for the largest one; -1 for
        those in none.

    Raises:
        ArgumentError: If a vector holds NaN or infinity or, under "cosine", only zeros, or there
            are fewer vectors than `min_size`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> embeddings = np.concatenate([rng.normal(0, 1, (30, 2)), rng.normal(20, 1, (20, 2))])
        >>> np.unique(clusters(embeddings, metric="euclidean"), return_counts=True)[0].tolist()
        [0, 1]

    Reference:
        Campello, Moulavi & Sander, 2013. https://doi.org/10.1007/978-3-642-37456-2_14
    """
    from sklearn.cluster import HDBSCAN

    _checks.one_of("metric", metric, METRICS)
    x = _checks.vectors("embeddings", embeddings, None, 1, metric)
    min_size = _checks.integer("min_size", min_size, 2)
    if len(x) < min_size:
        have = _checks.counted(len(x), "vector", "vectors")
        raise ArgumentError(f"embeddings hold {have}, fewer than min_size={min_size}.")
    # The clusters do not depend on the scale; distances above the largest float64 would.
    rows = _distances.to_unit_range(_distances.prepare(x, metric))[0]
    name = "manhattan" if metric == "manhattan" else "euclidean"
    settings: dict[str, Any] = {"min_cluster_size": min_size, "metric": name, "copy": False}
    found = HDBSCAN(**settings).fit_predict(rows)
    sizes = np.bincount(found[found >= 0])
    rank = np.empty(len(sizes), "int64")
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return np.where(found >= 0, rank[found] if len(sizes) else -1, -1)


def duplicate_groups(pairs: ArrayLike, n: int) -> np.ndarray:
    """Joins pairs of duplicates into groups: if A equals B and B equals C, all three are one group.

    Args:
        pairs: `(m, 2)` positions of images, such as those of `duplicates.find_duplicates` or
            `duplicates.find_near_duplicates`.
        n: Number of images, 1 or more.

    Returns:
        `(n,)` int64: the number of the group of each image, from 0 in the order of their first
        images; -1 for an image without a duplicate.

    Raises:
        ArgumentError: If `pairs` has another shape, or a position is out of range.

    Example:
        >>> duplicate_groups([[2, 0], [4, 2]], n=5).tolist()
        [0, -1, 0, -1, 0]
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = _checks.integer("n", n)
    pairs = _checks.array("pairs", pairs)
    if not pairs.size:
        return np.full(n, -1, "int64")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ArgumentError(
            f"pairs must be whole numbers (m, 2). Received {pairs.dtype} {pairs.shape}: pass the "
            "result of duplicates.find_near_duplicates."
        )
    if pairs.min() < 0 or pairs.max() >= n:
        raise ArgumentError(
            f"pairs hold positions from {pairs.min()} to {pairs.max()}: expected 0 to {n - 1}, as "
            f"n={n}. Pass the number of images."
        )
    graph = coo_matrix((np.ones(len(pairs), bool), tuple(pairs.T)), (n, n))
    component = connected_components(graph, directed=False)[1]
    in_group = (np.bincount(component) > 1)[component]
    first = np.unique(component[in_group], return_index=True)[1]
    numbers = np.full(component.max() + 1, -1)
    numbers[component[in_group][np.sort(first)]] = np.arange(len(first))
    return numbers[component]
