"""Metrics of images, embeddings and distances.

`retrieval` measures whether the nearest vectors share a label, `verification` whether distances
separate positive from negative pairs, `open_set_identification` whether known classes are
identified and unknown ones rejected, `candidate_accuracy` whether the correct one of a few
candidates is found, and `neighbor_overlap` how far two searches agree. `psnr`, `ssim` and
`frechet_distance` compare images, or features of them. A score on few images is uncertain:
`bootstrap_interval`, `pairwise_verification`, `OpenSetIdentification.dir_interval` and
`candidate_accuracy` return confidence intervals. Large sets are processed in blocks, so that memory
does not grow with the number of pairs.

All distances are those of `neighbors` (`kerasim._distances`): computed in float64, with equal
distances ordered by position.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from kerasim import _checks, _distances
from kerasim._distances import METRICS, Metric
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.neighbors import NeighborIndex

__all__ = [
    "Candidates",
    "OpenSetIdentification",
    "Verification",
    "active_dimensions",
    "bootstrap_interval",
    "candidate_accuracy",
    "frechet_distance",
    "neighbor_overlap",
    "open_set_identification",
    "pair_distances",
    "pairwise_verification",
    "psnr",
    "retrieval",
    "ssim",
    "verification",
]

_BLOCK = 128  # MiB of distances worked on at a time
_THREADS = min(16, os.cpu_count() or 1)  # of more the blocks would be too small
# Bounds in float32 are given up where they leave more candidates than this for each neighbor.
_FLOAT32_CANDIDATES = 2
_EXACT_PAIRS = 2**21  # up to this number `pairwise_verification` keeps all distances
_BINS = 2**14  # of distances, for the intervals, and for more pairs than that
_REACH = 10.0  # interquartile ranges beyond the quartiles at which a calibration clips distances
# Values this much larger than the data range leave SSIM, by cancellation, fewer than five digits.
_MOST_RANGES = 100


def psnr(images: ArrayLike, reference: ArrayLike, data_range: float = 1.0) -> np.ndarray:
    """Measures the peak signal-to-noise ratio of each image, in decibels.

    `psnr = 10 log10(data_range**2 / mse)`; infinite for equal images. Papers report the mean of
    this over images, which is not the PSNR of the mean error.

    Args:
        images: `(n, height, width, channels)`, float.
        reference: The clean images; the same shape.
        data_range: The largest possible value minus the smallest; above 0.

    Returns:
        `(n,)` float64.

    Raises:
        ArgumentError: If shapes differ, or the images are not float or not finite.

    Example:
        >>> clean = np.zeros((1, 8, 8, 1))
        >>> psnr(clean + 0.1, clean).round(6).tolist()  # 10 log10(1 / 0.1**2)
        [20.0]
    """
    images, reference = _check_both(images, reference, data_range)
    factor = _distances.lift(images, reference)
    numbers = math.prod(images.shape[1:])
    rows = [x.reshape(-1, numbers).astype("float64") * factor for x in (images, reference)]
    lengths = _distances.paired(rows[0], rows[1], "euclidean")
    with np.errstate(divide="ignore"):
        decades = np.log10(lengths) - np.log10(factor) - np.log10(numbers) / 2
    return 20 * (np.log10(float(data_range)) - decades)


def ssim(images: ArrayLike, reference: ArrayLike, data_range: float = 1.0) -> np.ndarray:
    """Measures the structural similarity of each image: 1 for equal images, about 0 for unrelated.

    Uses `structural_similarity` of scikit-image with the settings of the paper: a Gaussian window
    of 11 x 11 pixels with a standard deviation of 1.5, population covariances, and the mean over
    channels.

    Args:
        images: `(n, height, width, channels)`, float, 11 x 11 pixels or more.
        reference: The clean images; the same shape.
        data_range: The largest possible value minus the smallest; above 0.

    Returns:
        `(n,)` float64, from -1 to 1.

    Raises:
        ArgumentError: If shapes differ, the images are not float, not finite or smaller than the
            window, or their values exceed 100 times `data_range`.

    Example:
        >>> images = np.random.default_rng(0).random((1, 32, 32, 1))
        >>> ssim(images, images).tolist()
        [1.0]
        >>> bool(ssim(images, 1 - images)[0] < 0)  # inverted
        True

    Reference:
        Wang et al., 2004. https://doi.org/10.1109/TIP.2003.819861
    """
    from skimage.metrics import structural_similarity

    images, reference = _check_both(images, reference, data_range)
    if min(images.shape[1:3]) < 11:
        raise ArgumentError(
            f"images {images.shape} are smaller than the 11 x 11 window: enlarge them."
        )
    largest = max(np.abs(x).max(initial=0) for x in (images, reference))
    if largest / _MOST_RANGES > data_range:
        raise ArgumentError(
            f"data_range={data_range} does not fit images with values up to "
            f"{largest:.4g}: pass the largest possible value minus the smallest."
        )
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(images, reference, strict=True)
    # In units of the range, in which no square overflows.
    scaled = ([x.astype("float64") / data_range for x in pair] for pair in pairs)
    values = [
        structural_similarity(a, b, data_range=1.0, channel_axis=-1, **window) for a, b in scaled
    ]
    return np.array(values, dtype="float64")


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Computes the Fréchet distance of two sets of vectors, from their means and covariances.

    `|m_a - m_b|**2 + trace(C_a + C_b - 2 (C_a C_b)**(1/2))`, the squared 2-Wasserstein distance of
    Gaussians with means `m` and covariances `C`. On features of Inception-v3 it is known as FID. It
    decreases with the number of vectors, so compare only distances of equal numbers.

    Args:
        features_a: `(n, dim)`, two rows or more.
        features_b: `(m, dim)`, two rows or more.

    Returns:
        0 or more.

    Raises:
        ArgumentError: If dimensions differ, a set holds fewer than two vectors, or the distance is
            above 1.8e308, the largest float64.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 4))
        >>> round(frechet_distance(features, features + 1.0), 6)  # 4 dimensions, each shifted by 1
        4.0

    Reference:
        Dowson & Landau, 1982; Heusel et al., 2017. https://arxiv.org/abs/1706.08500
    """
    a = _checks.vectors("features_a", features_a, rows=2).astype("float64")
    b = _checks.vectors("features_b", features_b, a.shape[1], rows=2).astype("float64")
    factor = _distances.lift(a, b)
    origin = _distances.middle(_distances.spread(a)) * factor
    both, exponent = _distances.to_unit_range(np.concatenate([a, b]) * factor - origin)
    a, b = both[: len(a)], both[len(a) :]
    gap = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    distance = gap + _bures_distance(_covariance_root(a), _covariance_root(b))
    with np.errstate(over="ignore"):
        distance = np.ldexp(distance, 2 * exponent) / factor / factor
    if np.isinf(distance):
        raise ArgumentError(
            "The distance of features_a and features_b is above 1.8e308, the largest "
            "float64: divide both by the same number."
        )
    return float(distance)


def _covariance_root(x):
    """Returns `R`, at most `(dim, dim)`, with `R.T @ R` the covariance of the rows of `x`."""
    return np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r")


def _bures_distance(a, b) -> float:
    """Returns `trace(C_a + C_b - 2 (C_a C_b)**(1/2))` of two covariances, given by their roots.

    The trace of the root is the sum of the singular values of `a @ b.T`, and the distance is
    `|a - Q b|**2` for the best orthogonal `Q` (Procrustes). The second form keeps its digits where
    the covariances are almost equal, and needs singular vectors.
    """
    rows = max(len(a), len(b))
    a, b = (np.pad(x, ((0, rows - len(x)), (0, 0))) for x in (a, b))
    both = np.square(a).sum() + np.square(b).sum()
    distance = both - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    if distance < 1e-6 * both:
        left, _, right = np.linalg.svd(a @ b.T)
        distance = np.square(a - left @ right @ b).sum()
    return float(distance)


def _check_both(images, reference, data_range):
    """Returns images and reference as arrays, after checking shape, dtype and finiteness."""
    _checks.number("data_range", data_range, 1e-300)
    images, reference = _checks.array("images", images), _checks.array("reference", reference)
    _checks.shape("images", images, [None] * 4, "pass (n, height, width, channels)")
    if not all(images.shape[1:]):
        raise ArgumentError(f"images has shape {images.shape}: pass images of one pixel or more.")
    _checks.shape("reference", reference, images.shape, "pass the shape of images")
    if images.dtype.kind != "f" or reference.dtype.kind != "f":
        raise ArgumentError(
            f"images ({images.dtype}) and reference ({reference.dtype}) must be float: divide "
            "uint8 by 255, or pass both as float with data_range=255."
        )
    images = _checks.as_float64_or_narrower("images", images)
    reference = _checks.as_float64_or_narrower("reference", reference)
    _checks.finite("images", images)
    _checks.finite("reference", reference)
    return images, reference


def retrieval(
    queries: ArrayLike,
    query_labels: ArrayLike,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    metric: Metric = "cosine",
    ks: Sequence[int] = (1, 10),
    per_query: bool = False,
    query_groups: ArrayLike | None = None,
    gallery_groups: ArrayLike | None = None,
) -> dict[str, Any]:
    """Measures how many of the nearest gallery vectors have the label of the query.

    A hit is a gallery vector with the label of the query, and R is the number of such vectors that
    the query can find. The scores are

    - "recall@k": 1 if there is a hit among the first k, else 0;
    - "precision@k": the share of hits among the first k;
    - "r_precision": the precision at R;
    - "map@r": the mean over the ranks 1 to R of the precision at that rank if it is a hit, else 0;
    - "mrr": the reciprocal rank of the first hit.

    Equal distances are ordered by position. Queries are processed in blocks, so that memory does
    not grow with the product of queries and gallery.

    Images of one burst, session or camera, and near-duplicates, resemble each other for other
    reasons than their class. With `query_groups`, a query does not find the vectors of its own
    group: they count neither as neighbors nor for R. The protocol of person re-identification
    leaves out images of the same camera only if they show the same person (Zheng et al., 2015):
    for this, pass a group for each pair of camera and label.

    Args:
        queries: `(n, dim)` vectors.
        query_labels: `(n,)` integers or strings.
        gallery: `(m, dim)` vectors to search. None searches the queries themselves; a query does
            not find itself.
        gallery_labels: `(m,)` integers or strings; None if `gallery` is None.
        metric: "euclidean", "manhattan" or "cosine".
        ks: Values of k, each from 1 to the number of vectors that a query can find.
        per_query: True returns the scores of each query, for `bootstrap_interval`.
        query_groups: `(n,)` integers or strings, such as the session of each query; None without
            groups. An image without others of its group needs a value of its own.
        gallery_groups: `(m,)`, likewise; None if `gallery` or `query_groups` is None.

    Returns:
        The mean of each score over the queries or, with `per_query`, an array `(n,)` of each score.
        Queries that cannot find a vector with their label, as the gallery has none outside of their
        group, are left out of the mean, and NaN in the arrays; "left_out" is their number.

    Raises:
        ArgumentError: If the shapes of vectors, labels and groups do not match, one of
            `query_groups` and `gallery_groups` is missing, a query can find fewer vectors than one
            of `ks`, or every query is left out.
        ArgumentTypeError: If labels or groups are neither integers nor strings, or the groups of
            queries and gallery are not of one kind.

    Example:
        >>> embeddings = [[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1], [0.7, 0.7]]
        >>> scores = retrieval(embeddings, ["cat", "cat", "dog", "dog", "bird"], ks=[1])
        >>> scores["recall@1"], scores["left_out"]  # there is no other bird
        (1.0, 1)

        The first two cats are of one burst, and found no other cat:

        >>> embeddings = [[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [0.9, 0.1]]
        >>> labels, bursts = ["cat", "cat", "cat", "dog"], [1, 1, 2, 3]
        >>> round(retrieval(embeddings, labels, ks=[1])["recall@1"], 3)
        0.667
        >>> retrieval(embeddings, labels, ks=[1], query_groups=bursts)["recall@1"]
        0.0

    Reference:
        Musgrave et al., 2020 (MAP@R). https://arxiv.org/abs/2003.08505; Zheng et al., 2015.
        https://doi.org/10.1109/ICCV.2015.133
    """
    _checks.one_of("metric", metric, METRICS)
    _checks.boolean("per_query", per_query)
    queries = _checks.vectors("queries", queries, rows=1, metric=metric)
    query_labels = _checks.labels("query_labels", query_labels, len(queries), "queries")
    alone = gallery is None
    if alone:
        if gallery_labels is not None:
            raise ArgumentError("gallery_labels needs gallery: pass both or neither.")
        gallery, gallery_labels = queries, query_labels
    else:
        gallery = _checks.vectors("gallery", gallery, queries.shape[1], 1, metric)
        gallery_labels = _checks.labels("gallery_labels", gallery_labels, len(gallery), "vectors")
    groups = _checks.group_codes(
        ("query_groups", "gallery_groups"),
        (query_groups, gallery_groups),
        (len(queries), None if alone else len(gallery)),
    )
    most = len(gallery) - alone
    ks = [
        _checks.integer("each of ks", k, 1, most) for k in _checks.array("ks", ks).ravel().tolist()
    ]
    relevant = _count_relevant(query_labels, gallery_labels)
    available = np.full(len(queries), most)
    if groups is None:
        relevant = relevant - alone
    else:
        relevant = relevant - _count_in_group(query_labels, gallery_labels, *groups)
        available = len(gallery) - _count_relevant(*groups)
    if not (relevant > 0).any():
        outside, checked = "", "labels"
        if groups is not None:
            outside, checked = " outside of its group", "labels and groups"
        raise ArgumentError(
            f"No query has another image of its class in the gallery{outside}: check the {checked}."
        )
    _check_ks(ks, relevant, available)

    queries, gallery = _distances.without_overflow(queries, gallery)
    search = _Search(queries, gallery, metric, alone, groups)
    step = max(1, int(_BLOCK * 2**20 / (len(gallery) * 8 * 4 * _THREADS)))

    def scores_from(start):
        rows = np.arange(start, min(start + step, len(queries)))
        counts = relevant[rows], available[rows]
        return _scores(search, rows, query_labels[rows], gallery_labels, *counts, ks)

    # NumPy computes outside the global lock. Threads of a matrix product would only wait for these.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(_THREADS) as pool:
        columns = np.concatenate([*pool.map(scores_from, range(0, len(queries), step))]).T
    keys = [f"recall@{k}" for k in ks] + [f"precision@{k}" for k in ks]
    keys += ["r_precision", "map@r", "mrr"]
    scores: dict = dict(zip(keys, columns, strict=True))
    if not per_query:
        scores = {key: float(np.nanmean(column)) for key, column in scores.items()}
    return {**scores, "left_out": int((relevant <= 0).sum())}


def _count_relevant(query_labels, gallery_labels):
    """Returns how many vectors of the gallery have the label of each query."""
    names, counts = np.unique(gallery_labels, return_counts=True)
    places = np.searchsorted(names, query_labels).clip(max=len(names) - 1)
    return np.where(names[places] == query_labels, counts[places], 0)


def _count_in_group(query_labels, gallery_labels, query_groups, gallery_groups):
    """Returns how many vectors of the gallery have both the label and the group of each query."""
    names, classes = np.unique(gallery_labels, return_inverse=True)
    places = np.searchsorted(names, query_labels).clip(max=len(names) - 1)
    own = query_groups * len(names) + places  # one number for each pair of group and label
    counts = _count_relevant(own, gallery_groups * len(names) + classes)
    return np.where((names[places] == query_labels) & (query_groups >= 0), counts, 0)


def _check_ks(ks, relevant, available):
    """Raises an `ArgumentError` if a query that counts can find fewer vectors than one of `ks`."""
    counted = np.flatnonzero(relevant > 0)
    fewest = counted[available[counted].argmin()]
    for k in ks:
        if k > available[fewest]:
            raise ArgumentError(
                f"each of ks={k} is out of range: query {fewest} can find only "
                f"{available[fewest]} vectors outside of its group. Pass a whole number from 1 to "
                f"{available[fewest]}."
            )


def _scores(search, rows, labels, gallery_labels, relevant, available, ks):
    """Returns the scores of `retrieval` of some queries, a row for each; NaN for those left out.

    Args:
        search: `_Search`.
        rows: Positions of the queries.
        labels: Labels of these queries.
        gallery_labels: Labels of all vectors of the gallery.
        relevant: Number of vectors with the label of each query that it can find.
        available: Number of vectors that each query can find.
        ks: As for `retrieval`.
    """
    wanted = relevant.clip(min=0)
    depth = min(len(gallery_labels), max(wanted.max(), *ks, 1))
    bounds, nearest = search.nearest(rows, depth)
    ranks = np.arange(1, depth + 1)
    hits = (gallery_labels[nearest] == labels[:, None]) & (ranks <= available[:, None])
    found = np.cumsum(hits, axis=1)
    within = hits & (ranks <= wanted[:, None])
    rank = 1.0 + hits.argmax(axis=1)
    for n in np.flatnonzero((found[:, -1] == 0) & (wanted > 0)):  # the first hit is farther away
        same = np.flatnonzero(gallery_labels == labels[n])
        rank[n] = search.first_rank(rows[n], bounds[n], same)
    with np.errstate(invalid="ignore"):
        r_precision = within.sum(axis=1) / wanted
        # The rounding of a running sum does not depend on the number of zeros that follow.
        map_at_r = np.cumsum(found / ranks * within, axis=1)[:, -1] / wanted
    columns = [found[:, k - 1] > 0 for k in ks] + [found[:, k - 1] / k for k in ks]
    columns += [r_precision, map_at_r, 1 / rank]
    return np.where(wanted[:, None] > 0, np.stack(columns, axis=1), np.nan)


class _Search:
    """Ranks a gallery for queries: by bounds of the distances, and exactly where these overlap.

    Args:
        queries: `(n, dim)` vectors.
        gallery: `(m, dim)` vectors.
        metric: One of `METRICS`.
        alone: Whether the queries are the gallery; then no query finds itself.
        groups: Groups of queries and gallery, two arrays of integers, or None; a query does not
            find its own group.
    """

    def __init__(self, queries, gallery, metric, alone, groups=None):
        self._queries, self._gallery, self._metric, self._alone = queries, gallery, metric, alone
        self._groups = groups
        self._use_float32 = metric != "manhattan"

    @functools.cached_property
    def _wide(self):
        return _distances.Bounds(self._gallery, self._queries, self._metric, "float32")

    @functools.cached_property
    def _narrow(self):
        return _distances.Bounds(self._gallery, self._queries, self._metric)

    def _bounds(self, rows, bounds) -> "_QueryBounds":
        """Returns the bounds of queries, infinite for what they cannot find."""
        lower, widths = bounds.lower(self._queries[rows])
        if self._groups is not None:
            lower[self._groups[0][rows, None] == self._groups[1]] = np.inf
        elif self._alone:
            lower[np.arange(len(rows)), rows] = np.inf
        return _QueryBounds(bounds, lower, widths)

    def _exact(self, rows, which, places):
        queries = self._queries[rows]
        return _distances.paired_rows(queries, self._gallery, which, places, self._metric)

    def nearest(self, rows, depth) -> tuple["_QueryBounds", np.ndarray]:
        """Returns bounds of queries, and `(len(rows), depth)` positions in the gallery, in order.

        A query that can find fewer has position 0 in the places that are left over.
        """
        if self._use_float32:
            bounds = self._bounds(rows, self._wide)
            row, place = bounds.candidates(depth)
            if len(row) <= _FLOAT32_CANDIDATES * len(rows) * depth:
                return bounds, self._ordered(rows, bounds, row, place, depth)
            self._use_float32 = False  # so many are too close to each other, or far from the center
        bounds = self._bounds(rows, self._narrow)
        return bounds, self._ordered(rows, bounds, *bounds.candidates(depth), depth)

    def _ordered(self, rows, bounds, row, place, depth):
        """Returns the nearest of candidates, which are in the order of `row`."""
        counts = np.bincount(row, minlength=len(rows))
        filled = np.arange(max(depth, counts.max())) < counts[:, None]
        low, high = np.full(filled.shape, np.inf), np.full(filled.shape, np.inf)
        places = np.zeros(filled.shape, "int64")
        low[filled], high[filled] = bounds.lower[row, place], bounds.upper(row, place)
        places[filled] = place
        order = low.argsort(axis=1, kind="stable")
        low, high, places = (np.take_along_axis(x, order, axis=1) for x in (low, high, places))
        filled = np.isfinite(low)

        # Where the bounds of neighbors do not overlap the order is certain. The others form runs.
        certain = low[:, 1:] > np.maximum.accumulate(high, axis=1)[:, :-1]
        if certain[filled[:, 1:]].all():
            return places[:, :depth]
        run = np.pad(np.cumsum(certain, axis=1), ((0, 0), (1, 0)))
        open_ = np.zeros(filled.shape, bool)
        open_[:, 1:] |= ~certain
        open_[:, :-1] |= ~certain
        row, column = np.nonzero(open_ & filled)
        exact = np.where(filled, 0.0, np.inf)
        exact[row, column] = self._exact(rows, row, places[row, column])
        order = np.lexsort((places, exact, run), axis=1)[:, :depth]
        return np.take_along_axis(places, order, axis=1)

    def first_rank(self, row, bounds, same):
        """Returns the rank of the nearest of the positions `same`, from 1 on, for one query."""
        lower, upper = bounds
        same = same[np.isfinite(lower[same])]
        distances = self._exact([row], np.zeros(len(same), "int64"), same)
        own = distances.min()
        place = same[distances.argmin()]
        closer = upper < lower[place]
        unclear = np.flatnonzero(~closer & (lower <= upper[place]))
        distances = self._exact([row], np.zeros(len(unclear), "int64"), unclear)
        ahead = (distances < own) | ((distances == own) & (unclear < place))
        return 1 + closer.sum() + ahead.sum()


class _QueryBounds:
    """Bounds of the distances of some queries to a gallery.

    Args:
        bounds: `_distances.Bounds`.
        lower: `(queries, gallery)` lower bounds; infinite for what a query cannot find.
        widths: `(queries,)`, what `Bounds.upper` needs.
    """

    def __init__(self, bounds, lower, widths):
        self._bounds, self.lower, self._widths = bounds, lower, widths

    def __getitem__(self, row):
        """Returns the lower and the upper bounds of one query to all."""
        lower, everywhere = self.lower[row].astype("float64"), np.arange(self.lower.shape[1])
        return lower, self._bounds.upper(lower, self._widths[row], everywhere)

    def upper(self, row, place):
        return self._bounds.upper(self.lower[row, place], self._widths[row], place)

    def candidates(self, depth):
        """Returns rows and places of all that can be among the `depth` nearest of a query.

        They are in the order of rows, `depth` or more for a query, or all that it can find.
        """
        lower = self.lower
        rows, size = lower.shape
        # At least `depth` of the gallery are below the depth-th smallest lower bound of groups, of
        # which it takes a fraction of the time to find it.
        width = max(1, size // (4 * depth))
        groups = lower[:, : size // width * width].reshape(rows, width, -1).min(axis=1)
        limit = np.partition(groups, depth - 1, axis=1)[:, depth - 1]
        largest = np.finfo(lower.dtype).max
        row, place = _places(lower <= np.minimum(limit, largest)[:, None])
        # None of these is farther away than the largest of their upper bounds.
        limit = np.full(rows, -np.inf)
        np.maximum.at(limit, row, self.upper(row, place))
        with np.errstate(over="ignore"):
            limit = np.nextafter(limit.astype(lower.dtype), np.inf, dtype=lower.dtype)
        return _places(lower <= np.minimum(limit, largest)[:, None])


def _places(mask):
    """Returns what `np.nonzero` does of a mask in which few are true, in half of its time."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])


def neighbor_overlap(indices_a: ArrayLike, indices_b: ArrayLike) -> np.ndarray:
    """Computes the share of the neighbors of each query that two searches have in common.

    If one of the searches is exact, this is the recall of the other.

    Args:
        indices_a: `(n, k)` integers: the neighbors of each query, none of them twice, as
            `NeighborIndex.query` returns them.
        indices_b: `(n, k)` integers, of the same queries.

    Returns:
        `(n,)` float64 from 0 to 1; the order of the neighbors does not count.

    Raises:
        ArgumentError: If the shapes differ, or there are no neighbors.
        ArgumentTypeError: If they are not integers.

    Example:
        >>> neighbor_overlap([[4, 7, 1], [0, 2, 5]], [[7, 4, 9], [0, 2, 5]]).round(3).tolist()
        [0.667, 1.0]
    """
    a, b = _checks.array("indices_a", indices_a), _checks.array("indices_b", indices_b)
    _checks.shape("indices_a", a, (None, None), "pass the neighbors of each query as a row")
    _checks.shape("indices_b", b, a.shape, "pass as many neighbors of the same queries")
    for name, x in (("indices_a", a), ("indices_b", b)):
        if x.dtype.kind not in "iu":
            raise ArgumentTypeError(
                f"{name} has dtype {x.dtype}: pass integers, the positions of the neighbors."
            )
    if a.shape[1] == 0:
        raise ArgumentError(f"indices_a has shape {a.shape}: pass one neighbor or more.")
    overlap = np.empty(len(a))
    rows = max(1, 2**24 // a.shape[1] ** 2)  # all at once need memory for n k^2 comparisons
    for start in range(0, len(a), rows):
        part = slice(start, start + rows)
        overlap[part] = (a[part, :, None] == b[part, None, :]).any(axis=2).mean(axis=1)
    return overlap


def active_dimensions(means: ArrayLike, min_variance: float = 0.01) -> np.ndarray:
    """Finds the latent dimensions that a variational autoencoder uses.

    The mean of a collapsed dimension is the same for every image, so that its variance over images
    is 0.

    Args:
        means: `(n, dim)` means of the latent vectors of images, such as `embedding.embed` returns
            for the encoder of `models.vae`.
        min_variance: Variance over the images above which a dimension is active; 0 or more.

    Returns:
        `(dim,)` bool.

    Raises:
        ArgumentError: If `means` has fewer than two rows, or holds NaN.

    Example:
        >>> means = np.random.default_rng(0).normal(size=(100, 3)) * [1.0, 0.5, 0.001]
        >>> active_dimensions(means).tolist()
        [True, True, False]

    Reference:
        Burda et al., 2016. https://arxiv.org/abs/1509.00519
    """
    means = _checks.vectors("means", means, rows=2)
    _checks.number("min_variance", min_variance, 0)
    return means.astype("float64").var(axis=0) > min_variance


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Computes the interval of the mean of `values` with the percentile bootstrap.

    To compare two models on the same queries, pass the differences of their scores: the models
    differ significantly if the interval does not contain 0. For `n` such comparisons at a time,
    `level=1 - 0.05 / n` is Bonferroni's correction.

    Args:
        values: `(n,)` numbers. NaN is ignored.
        seed: The same seed draws the same resamples.
        resamples: Number of resamples, 1 or more. The ends of the interval are reliable if some
            ten resamples lie beyond each: 1,000 are enough for a level of 0.98.
        level: Confidence level, from 0.5 to 1: 0.95 for an interval of 95 %.

    Returns:
        `(low, high)`, in the units of the values.

    Raises:
        ArgumentError: If there are fewer than two values, a value is infinite, the shape is not
            `(n,)`, or `level` is out of range.

    Example:
        >>> new, old = np.array([0.9, 0.8, 0.7, 0.9, 0.6]), np.array([0.7, 0.5, 0.6, 0.6, 0.5])
        >>> low, high = bootstrap_interval(new - old)
        >>> low > 0  # the new scores are significantly higher
        True

    Reference:
        Efron & Tibshirani, 1993, An Introduction to the Bootstrap, chapter 13.
    """
    from scipy.stats import bootstrap

    values = _checks.as_float64_or_narrower("values", _checks.as_real_array("values", values))
    values = values.astype("float64")
    valid = values[~np.isnan(values)]
    if values.ndim != 1 or len(valid) < 2:
        raise ArgumentError(
            f"values holds {len(valid)} numbers, in shape {values.shape}: pass an array "
            "(n,) of two or more."
        )
    _checks.bad_rows("values", np.isinf(values), "infinity")
    valid, exponent = _distances.to_unit_range(valid)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    times, batch = _checks.integer("resamples", resamples), max(1, 2**22 // len(valid))
    settings = {"n_resamples": times, "batch": batch, "method": "percentile", "rng": rng}
    settings["confidence_level"] = _checks.number("level", level, 0.5, 1.0)
    low, high = bootstrap((valid,), np.mean, **settings).confidence_interval
    return float(np.ldexp(low, exponent)), float(np.ldexp(high, exponent))


def pair_distances(left: ArrayLike, right: ArrayLike, metric: Metric = "cosine") -> np.ndarray:
    """Computes the distance of each pair of embeddings, for `verification`.

    Args:
        left: `(n, dim)`, the first embedding of each pair.
        right: `(n, dim)`, the second embedding of each pair.
        metric: "euclidean", "manhattan" or "cosine" (1 - cosine similarity).

    Returns:
        `(n,)` float64, equal to the distances that `NeighborIndex.query` returns.

    Raises:
        ArgumentError: If shapes differ, a vector is not finite or, under "cosine", zero, or a
            distance is above 1.8e308, the largest float64.

    Example:
        >>> pair_distances([[3.0, 4.0]], [[0.0, 0.0]], metric="euclidean")
        array([5.])
    """
    _checks.one_of("metric", metric, METRICS)
    left = _checks.vectors("left", left, metric=metric)
    right = _checks.vectors("right", right, metric=metric)
    _checks.shape(
        "right", right, left.shape, "pass one for each row of left, embedded by the same model"
    )
    distances = _distances.paired(left, right, metric)
    too_far = "a distance above 1.8e308, the largest float64,"
    _checks.bad_rows("left", np.isinf(distances), too_far)
    return distances


@dataclasses.dataclass(frozen=True, repr=False)
class Verification:
    """How well a threshold on distances separates positive from negative pairs.

    Made by `verification`.

    Attributes:
        fpr: Share of negative pairs accepted at each threshold, increasing.
        tpr: Share of positive pairs accepted at each threshold.
        thresholds: Largest accepted distance at each point of the curve. Points between which the
            slope of the curve is constant are left out.
        auc: Area under the ROC curve, `tpr` over `fpr`.
        eer: Equal error rate, at which the share of negative pairs accepted equals the share of
            positive pairs rejected.
        eer_threshold: The smallest distance at which the share of negative pairs accepted reaches
            the share of positive pairs rejected.
        positive: Distances of positive pairs, sorted.
        negative: Distances of negative pairs, sorted.

    Example:
        >>> verification(distances=[0.1, 0.2, 0.4, 0.6], same=[1, 1, 0, 0])
        <Verification of 2 positive and 2 negative pairs: auc=1, eer=0 at threshold 0.2>
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray
    auc: float
    eer: float
    eer_threshold: float
    positive: np.ndarray
    negative: np.ndarray

    def __repr__(self) -> str:
        error = f"eer={self.eer:.4g} at threshold {self.eer_threshold:.4g}"
        return (
            f"<Verification of {len(self.positive)} positive and {len(self.negative)} "
            f"negative pairs: auc={self.auc:.4g}, {error}>"
        )

    def threshold(self, max_far: float) -> float:
        """Finds the largest threshold at which at most `max_far` of negative pairs are accepted.

        Call it on pairs of a validation split that the embedder was not trained on, and report the
        error rates on the test split.

        Args:
            max_far: Share of negative pairs that may be accepted, 0 to 1.

        Returns:
            The threshold, a distance.

        Raises:
            ArgumentError: If `max_far` is out of range.
        """
        return _largest_threshold(self.negative, max_far, max(self.positive[-1], self.negative[-1]))

    def error_rates(self, threshold: float) -> dict[str, float]:
        """Computes the error rates and the accuracy at a threshold.

        Args:
            threshold: Largest distance that is accepted, such as a threshold fitted on other
                pairs.

        Returns:
            "far", the share of negative pairs accepted; "frr", the share of positive pairs
            rejected; and "accuracy", the balanced accuracy `1 - (far + frr) / 2`.

        Raises:
            ArgumentError: If the threshold is not finite.
        """
        _checks.number("threshold", threshold)
        accepted, wrong = (_count_accepted(x, threshold) for x in (self.positive, self.negative))
        far = float(wrong / len(self.negative))
        frr = float((len(self.positive) - accepted) / len(self.positive))
        return {"far": far, "frr": frr, "accuracy": 1 - (far + frr) / 2}

    def score(self, distances: ArrayLike) -> np.ndarray:
        """Converts distances to similarity scores in [0, 1], calibrated on these pairs.

        A score is the estimated probability that a pair at that distance is positive, assuming that
        half of all pairs are positive: a logistic curve (Platt scaling). Fit it on pairs of a
        validation split, not on the pairs whose scores are reported. (The student report that
        kerasim is based on uses the opposite: its score is `1 - score`, its label `1 - same`.)

        Args:
            distances: Array of any shape.

        Returns:
            Scores of that shape, float64.

        Raises:
            ArgumentError: If a distance is not finite.
            ArgumentTypeError: If `distances` are not real numbers.

        Reference:
            Platt, 1999, Probabilistic outputs for support vector machines.
        """
        distances = _checks.as_real_array("distances", distances, "bfiu").astype("float64")
        _checks.bad_rows("distances", ~np.isfinite(distances).reshape(-1), "NaN or infinity")
        if not distances.size:
            return distances
        curve, standardized = self._curve
        column = standardized(distances.reshape(-1, 1))
        return curve.predict_proba(column)[:, 1].reshape(distances.shape)

    @functools.cached_property
    def _curve(self):
        """The fitted curve, and the function that standardizes distances for it."""
        from sklearn.linear_model import LogisticRegression

        # A few outliers would flatten the curve.
        usual = np.concatenate([_without_outliers(self.positive), _without_outliers(self.negative)])
        same = np.repeat([1, 0], [len(self.positive), len(self.negative)])
        usual, exponent = _distances.to_unit_range(usual[:, None])
        mean, spread = usual.mean(), usual.std() or 1.0

        def standardized(distances):
            return (np.ldexp(distances, -exponent) - mean) / spread

        curve = LogisticRegression(class_weight="balanced")
        return curve.fit((usual - mean) / spread, same), standardized


def _without_outliers(distances):
    """Returns distances, clipped where they lie far outside of the quartiles."""
    first, third = np.quantile(distances, (0.25, 0.75))
    with np.errstate(over="ignore"):
        reach = _REACH * (third - first) or np.inf
        return distances.clip(first - reach, third + reach)


def verification(distances: ArrayLike, same: ArrayLike) -> Verification:
    """Measures how well distances separate positive from negative pairs.

    Fit a threshold on the pairs of one split, `verification(...).threshold(max_far=0.01)`, and
    report its error rates on another, `verification(...).error_rates(threshold)`. No result
    depends on the share of positive pairs.

    Args:
        distances: `(n,)` or `(n, 1)`, larger for less similar pairs, such as the result of
            `pair_distances`.
        same: `(n,)` or `(n, 1)`: 1 or True for a positive pair, 0 or False for a negative one.

    Returns:
        `Verification`: rates at each threshold, `auc`, `eer`, and methods that fit a threshold.

    Raises:
        ArgumentError: If there are no positive or no negative pairs, or a distance is not finite or
            exceeds the range of float64.

    Example:
        >>> validation = verification([0.1, 0.2, 0.3, 0.4, 0.6, 0.8], [1, 1, 0, 1, 0, 0])
        >>> round(validation.auc, 3)
        0.889
        >>> threshold = validation.threshold(max_far=0.0)  # accepts no negative pair
        >>> verification([0.1, 0.5, 0.2, 0.7], [1, 1, 0, 0]).error_rates(threshold)
        {'far': 0.5, 'frr': 0.5, 'accuracy': 0.5}
    """
    from sklearn.metrics import auc, roc_curve

    distances = _checks.as_real_array("distances", distances, "bfiu").reshape(-1)
    distances = _checks.as_float64_or_narrower("distances", distances).astype("float64")
    same = _checks.array("same", same).reshape(-1)
    _checks.same_length("same", same, len(distances), "distances")
    is_known = np.isin(same, (0, 1)).all()
    if not is_known or len(np.unique(same.astype(bool))) < 2:
        held = ", ".join(list(dict.fromkeys(map(repr, same.tolist())))[:5])
        raise ArgumentError(
            f"same holds the values {held}, expected both 1 (positive pairs) and 0 (negative "
            "pairs). Pass pairs of both kinds, without missing values."
        )
    _checks.bad_rows("distances", ~np.isfinite(distances), "NaN or infinity")
    same = same.astype(bool)
    positive, negative = np.sort(distances[same]), np.sort(distances[~same])
    # Ranks instead of distances, whose differences may underflow or overflow.
    values, places = np.unique(distances, return_inverse=True)
    fpr, tpr, scores = roc_curve(same, -places)
    # The first threshold accepts nothing.
    thresholds = np.append(-np.inf, values[-scores[1:].astype("int64")])

    # The curve holds only its corners; the EER threshold is searched for among all distances.
    # Counts are compared, because in float64 3 / 10 is less than 1 - 7 / 10.
    tried = np.concatenate([positive, negative])
    accepted = _count_accepted(negative, tried)
    rejected = len(positive) - _count_accepted(positive, tried)
    enough = accepted * len(positive) >= rejected * len(negative)
    equal = float(tried[enough].min())
    area, error = float(auc(fpr, tpr)), _equal_error(fpr, tpr)
    return Verification(fpr, tpr, thresholds, area, error, equal, positive, negative)


def _allowed(max_far, count) -> int:
    """Returns how many of `count` a false acceptance rate of at most `max_far` allows."""
    # 0.29 * 100 is a little less than 29.
    return int(_checks.number("max_far", max_far, 0, 1) * count + 1e-6)


def _largest_threshold(wrong, max_far, largest) -> float:
    """Returns the largest threshold that accepts at most a share `max_far` of sorted distances.

    Args:
        wrong: Sorted distances that should be rejected.
        max_far: Share of them that may be accepted, 0 to 1.
        largest: Threshold that accepts everything.
    """
    allowed = _allowed(max_far, len(wrong))
    return float(largest if allowed == len(wrong) else np.nextafter(wrong[allowed], -np.inf))


def _count_accepted(distances, threshold):
    """Returns how many of the sorted `distances` each threshold accepts."""
    return np.searchsorted(distances, threshold, "right")


def _equal_error(fpr, tpr) -> float:
    """Returns `fpr` where the curve, drawn through its points, crosses `fpr = 1 - tpr`."""
    return float(np.interp(1, fpr + tpr, fpr))


def _cumulative_shares(x, labels, metric, weights, edges) -> np.ndarray:
    """Returns the shares of negative and of positive pairs up to each edge, for each resample.

    Args:
        x: `(n, dim)` vectors.
        labels: `(n,)`.
        metric: One of `METRICS`.
        weights: `(m, n)` how often each image is drawn in each of `m` resamples.
        edges: `(bins,)` distances, in order.

    Returns:
        `(m, 2, bins + 1)`, from 0 to 1; a resample without positive or negative pairs is left out.
    """
    bins = len(edges)
    found = np.zeros((len(weights), 2 * bins))
    for distances, own, other in _pair_blocks(x, metric):
        # If not all distances were kept, some of the largest lie beyond the last edge.
        places = np.searchsorted(edges, distances).clip(max=bins - 1)
        places += bins * (labels[own] == labels[other])
        for one, histogram in zip(weights, found, strict=True):
            histogram += np.bincount(places, one[own] * one[other], 2 * bins)
    curves = np.pad(found.reshape(-1, 2, bins).cumsum(axis=2), ((0, 0), (0, 0), (1, 0)))
    curves = curves[curves[:, :, -1].all(axis=1)]
    return curves / curves[:, :, -1:]


def pairwise_verification(
    embeddings: ArrayLike,
    labels: ArrayLike,
    metric: Metric = "cosine",
    seed: int = 0,
    resamples: int = 200,
) -> dict[str, Any]:
    """Computes AUC and EER over all pairs of images, with 95 % intervals.

    Pairs that share an image are not independent, so the bootstrap resamples images instead of
    pairs. For at most two million pairs (2,000 images) "auc" and "eer" are those of `verification`.
    For more pairs, and for the intervals, distances are counted in 16,384 bins, which hold about
    equal shares of the positive and of the negative pairs: the error is at most 0.0001. Pairs are
    processed in blocks.

    Args:
        embeddings: `(n, dim)` vectors, two or more.
        labels: `(n,)` integers or strings.
        metric: "euclidean", "manhattan" or "cosine".
        seed: The same seed draws the same resamples.
        resamples: Number of resamples, 1 or more.

    Returns:
        "auc" and "eer", the area under the ROC curve and the equal error rate; "auc_interval" and
        "eer_interval", `(low, high)`, from the percentile bootstrap over images; "positive_pairs"
        and "negative_pairs", the numbers of pairs.

    Raises:
        ArgumentError: If the shapes of embeddings and labels do not match, or there are no positive
            or no negative pairs.

    Example:
        >>> embeddings = np.random.default_rng(0).normal(size=(30, 8))
        >>> labels = np.arange(30) % 3
        >>> embeddings[np.arange(30), labels] += 6.0  # three clusters
        >>> scores = pairwise_verification(embeddings, labels, resamples=50)
        >>> scores["positive_pairs"], scores["negative_pairs"]
        (135, 300)
        >>> low, high = scores["auc_interval"]
        >>> 0.5 < low <= scores["auc"] <= high
        True

    Reference:
        Snijders & Borgatti, 1999, Non-parametric standard errors and tests for network statistics.
    """
    from sklearn.metrics import auc

    _checks.one_of("metric", metric, METRICS)
    x = _checks.vectors("embeddings", embeddings, rows=2, metric=metric)
    labels = _checks.labels("labels", labels, len(x), "embeddings")
    n = len(x)
    counts = np.unique(labels, return_counts=True)[1]
    positive = int((counts * (counts - 1) // 2).sum())
    negative = n * (n - 1) // 2 - positive
    if not positive or not negative:
        raise ArgumentError(
            f"labels make {positive} positive and {negative} negative pairs: pass two "
            "classes or more, one of them with two images or more."
        )
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    drawn = rng.multinomial(n, np.full(n, 1 / n), _checks.integer("resamples", resamples))
    weights = np.concatenate([np.ones((1, n)), drawn])
    (x,) = _distances.without_overflow(x)

    exact, edges = _summary(x, labels, metric, positive, negative)
    curves = _cumulative_shares(x, labels, metric, weights, edges)
    areas = [float(auc(fpr, tpr)) for fpr, tpr in curves]
    errors = [_equal_error(fpr, tpr) for fpr, tpr in curves]
    scores: dict = {"auc": areas[0], "eer": errors[0]}
    if exact:
        scores = {"auc": exact.auc, "eer": exact.eer}
    for key, values in (("auc", areas), ("eer", errors)):
        ends = np.quantile(values[1:] or [np.nan], (0.025, 0.975))
        scores[f"{key}_interval"] = tuple(ends.tolist())
    return {**scores, "positive_pairs": positive, "negative_pairs": negative}


def _pair_blocks(x, metric):
    """Yields distances, and the positions of both images, of each pair once."""
    step = max(1, int(_BLOCK * 2**14 / len(x)))  # a block needs indices, too
    for start in range(0, len(x) - 1, step):
        distances = _distances.pairwise(x[start : start + step], x[start:], metric)
        own, other = np.triu_indices(len(distances), 1, distances.shape[1])
        yield distances[own, other], own + start, other + start


def _summary(x, labels, metric, positive, negative):
    """Returns the `Verification` of all pairs, or None if they are too many, and edges of bins.

    The edges are quantiles of the distances of positive and of negative pairs. If there are many
    pairs, the quantiles are those of an evenly spaced part of them.
    """
    exact = positive + negative <= _EXACT_PAIRS
    strides = [1 if exact else -(-count // (_EXACT_PAIRS // 2)) for count in (negative, positive)]
    kept: list[list] = [[], []]
    passed = [0, 0]
    for distances, own, other in _pair_blocks(x, metric):
        same = labels[own] == labels[other]
        for kind, some in enumerate((distances[~same], distances[same])):
            kept[kind].append(some[-passed[kind] % strides[kind] :: strides[kind]])
            passed[kind] += len(some)
    parts = [np.sort(np.concatenate(part)) for part in kept]
    edges = [_distances.spread(part, _BINS // 2) for part in parts]
    pairs = np.concatenate(parts), np.repeat([0, 1], [len(part) for part in parts])
    return verification(*pairs) if exact else None, np.unique(np.concatenate(edges))


@dataclasses.dataclass(frozen=True, repr=False)
class OpenSetIdentification:
    """How well queries of known classes are identified, and those of unknown classes rejected.

    Made by `open_set_identification`. A query is accepted if the distance of its nearest gallery
    vector is at most a threshold; then it gets the label of that vector.

    Attributes:
        far: False-alarm rate at each threshold, the share of unknown queries accepted; increasing.
        dir: Detection and identification rate at each threshold, the share of known queries that
            are accepted and get the correct label.
        thresholds: Largest accepted distance: minus infinity, then each distance that occurs.
        rejected: Share of all queries rejected at each threshold.
        error: Share of wrong labels among the accepted queries at each threshold; NaN if none is
            accepted. An unknown query that is accepted has a wrong label, so that `rejected` and
            `error` depend on the share of unknown queries; `far` and `dir` do not.
        known: Distances of known queries to their nearest gallery vector, sorted.
        identified: Whether that vector has the label of the query, for each of `known`.
        unknown: Distances of unknown queries to their nearest gallery vector, sorted.

    Example:
        >>> gallery, names = [[0.0], [5.0]], ["ann", "bob"]
        >>> queries, labels = [[0.1], [5.2], [2.0], [8.0]], ["ann", "bob", "eve", "bob"]
        >>> result = open_set_identification(queries, labels, gallery, names, metric="euclidean")
        >>> result
        <OpenSetIdentification of 3 known and 1 unknown queries: dir=0.6667 at far=0.01, 1 at 1>
        >>> result.rates(threshold=2.5)  # "eve" is accepted as "ann"
        {'far': 1.0, 'dir': 0.6666666666666666, 'rejected': 0.25, 'error': 0.3333333333333333}
    """

    far: np.ndarray
    dir: np.ndarray
    thresholds: np.ndarray
    rejected: np.ndarray
    error: np.ndarray
    known: np.ndarray
    identified: np.ndarray
    unknown: np.ndarray

    def __repr__(self) -> str:
        rates = f"dir={self.dir_at(0.01):.4g} at far=0.01, {self.dir_at(1.0):.4g} at 1"
        return (
            f"<OpenSetIdentification of {len(self.known)} known and {len(self.unknown)} unknown "
            f"queries: {rates}>"
        )

    def threshold(self, max_far: float) -> float:
        """Finds the largest threshold at which at most `max_far` of unknown queries are accepted.

        Call it on a validation split whose classes are not those of the test split, and report the
        rates on the test split.

        Args:
            max_far: Share of unknown queries that may be accepted, 0 to 1.

        Returns:
            The threshold, a distance, for `NeighborIndex.identify`.

        Raises:
            ArgumentError: If `max_far` is out of range.
        """
        return _largest_threshold(self.unknown, max_far, self.thresholds[-1])

    def rates(self, threshold: float) -> dict[str, float]:
        """Computes the rates at a threshold.

        Args:
            threshold: Largest distance that is accepted, such as one fitted on other queries.

        Returns:
            "far", "dir", "rejected" and "error", as the attributes of these names.

        Raises:
            ArgumentError: If the threshold is not finite.
        """
        _checks.number("threshold", threshold)
        place = np.searchsorted(self.thresholds, threshold, "right") - 1
        return {
            key: float(getattr(self, key)[place]) for key in ("far", "dir", "rejected", "error")
        }

    def dir_at(self, max_far: float) -> float:
        """Computes the detection and identification rate at a false-alarm rate.

        Args:
            max_far: Share of unknown queries that may be accepted, 0 to 1. Below 1 / n, with n
                unknown queries, none of them may be accepted.

        Returns:
            The largest share of known queries that are accepted with the correct label.

        Raises:
            ArgumentError: If `max_far` is out of range.
        """
        return self.rates(self.threshold(max_far))["dir"]

    def dir_interval(
        self, max_far: float, seed: int = 0, resamples: int = 1000
    ) -> tuple[float, float]:
        """Computes the 95 % interval of `dir_at(max_far)` with the percentile bootstrap.

        Known and unknown queries are resampled, and the threshold is fitted to each resample.
        They are treated as independent: the interval is too narrow if many are of one class or
        session.

        Args:
            max_far: Share of unknown queries that may be accepted, 0 to 1.
            seed: The same seed draws the same resamples.
            resamples: Number of resamples, 1 or more.

        Returns:
            `(low, high)`.

        Raises:
            ArgumentError: If an argument is out of range.
        """
        count = len(self.unknown)
        allowed = _allowed(max_far, count)
        rng = np.random.default_rng(_checks.integer("seed", seed, 0))
        resamples = _checks.integer("resamples", resamples)
        limits = np.full(resamples, np.inf)
        if allowed < count:
            # A resample is the sorted distances at the positions `floor(count * u)` of uniform
            # numbers u. The threshold depends on one of them, whose rank is known: the rank-th
            # smallest u has a beta distribution, so that the others need not be drawn.
            places = count * rng.beta(allowed + 1, count - allowed, resamples)
            limits = self.unknown[places.astype("int64").clip(max=count - 1)]
        hits = np.searchsorted(self.known[self.identified], limits, "left")
        # How many of the resampled queries are among these hits.
        shares = rng.binomial(len(self.known), hits / len(self.known)) / len(self.known)
        low, high = np.quantile(shares, (0.025, 0.975))
        return float(low), float(high)


def open_set_identification(
    queries: ArrayLike,
    query_labels: ArrayLike,
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    metric: Metric = "cosine",
) -> OpenSetIdentification:
    """Measures identification where some queries are of classes that the gallery does not have.

    The nearest gallery vector of a query decides, as in `NeighborIndex.identify`. A query is known
    if its label is in `gallery_labels`, and unknown otherwise. At a threshold on the distance,

    - the detection and identification rate (DIR) is the share of known queries whose nearest vector
      is within the threshold and has their label;
    - the false-alarm rate (FAR) is the share of unknown queries whose nearest vector is within the
      threshold. It increases with the number of gallery vectors: compare galleries of one size.

    Args:
        queries: `(n, dim)` vectors.
        query_labels: `(n,)` integers or strings. Unknown queries may have any labels that the
            gallery does not have.
        gallery: `(m, dim)` vectors, one or more of each known class, and no query among them.
        gallery_labels: `(m,)` integers or strings.
        metric: "euclidean", "manhattan" or "cosine".

    Returns:
        `OpenSetIdentification`: rates at each threshold, and methods that fit a threshold and
        return the DIR at a FAR with its interval.

    Raises:
        ArgumentError: If the shapes of vectors and labels do not match, no query is known, no query
            is unknown, or a distance is above 1.8e308, the largest float64.
        ArgumentTypeError: If labels are neither integers nor strings.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(200) % 10
        >>> vectors = 4 * np.eye(10)[labels] + rng.normal(size=(200, 10))
        >>> enrolled = np.flatnonzero(labels[:50] < 5)  # five images of each of five classes
        >>> result = open_set_identification(
        ...     vectors[50:], labels[50:], vectors[enrolled], labels[enrolled], "euclidean"
        ... )
        >>> len(result.known), len(result.unknown)
        (75, 75)
        >>> low, high = result.dir_interval(max_far=0.1)
        >>> low <= result.dir_at(max_far=0.1) <= high
        True

    Reference:
        Phillips, Grother & Micheals, 2011, Evaluation methods in face recognition, in: Handbook of
        Face Recognition. https://doi.org/10.1007/978-0-85729-932-1_21
    """
    _checks.one_of("metric", metric, METRICS)
    queries = _checks.vectors("queries", queries, rows=1, metric=metric)
    query_labels = _checks.labels("query_labels", query_labels, len(queries), "queries")
    gallery = _checks.vectors("gallery", gallery, queries.shape[1], 1, metric)
    gallery_labels = _checks.labels("gallery_labels", gallery_labels, len(gallery), "vectors")
    is_known = _count_relevant(query_labels, gallery_labels) > 0
    if is_known.all() or not is_known.any():
        which = "Every query" if is_known.all() else "No query"
        raise ArgumentError(
            f"{which} has a label that is in gallery_labels. Pass queries with and without a class "
            "in the gallery."
        )
    found, places = NeighborIndex(metric).fit(gallery).query(queries, k=1)
    distances = found[:, 0]
    correct = gallery_labels[places[:, 0]] == query_labels
    order = np.argsort(distances, kind="stable")
    known = order[is_known[order]]
    return _open_set(distances[known], correct[known], np.sort(distances[~is_known]))


def _open_set(known, identified, unknown) -> OpenSetIdentification:
    """Returns the result for sorted distances, and which known queries are identified."""
    both = np.sort(np.concatenate([known, unknown]))
    thresholds = np.append(-np.inf, np.unique(both))
    hits = _count_accepted(known[identified], thresholds)
    alarms = _count_accepted(unknown, thresholds)
    accepted = _count_accepted(both, thresholds)
    with np.errstate(invalid="ignore"):
        error = (accepted - hits) / accepted
    return OpenSetIdentification(
        far=alarms / len(unknown),
        dir=hits / len(known),
        thresholds=thresholds,
        rejected=(len(both) - accepted) / len(both),
        error=error,
        known=known,
        identified=identified,
        unknown=unknown,
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Candidates:
    """How often the correct candidate is among the nearest.

    Made by `candidate_accuracy`.

    Attributes:
        accuracy: Share of queries whose correct candidate is among the `k` nearest.
        ci_low: Lower end of the 95 % interval of `accuracy` (Wilson score interval).
        ci_high: Upper end of that interval.
        ranks: `(n,)` int64, the rank of the correct candidate, from 1. Candidates at the same
            distance are ranked before it.

    Example:
        >>> left = np.eye(4)
        >>> right = np.eye(4)[[0, 1, 2, 0]]  # the last pair does not match
        >>> pools = [[0, 1], [1, 2], [2, 3], [3, 1]]
        >>> candidate_accuracy(left, right, pools, k=1)
        <Candidates of 4 queries: accuracy=0.75, 95 % interval 0.3006 to 0.9544>
    """

    accuracy: float
    ci_low: float
    ci_high: float
    ranks: np.ndarray

    def __repr__(self) -> str:
        interval = f"95 % interval {self.ci_low:.4g} to {self.ci_high:.4g}"
        return (
            f"<Candidates of {len(self.ranks)} queries: accuracy={self.accuracy:.4g}, {interval}>"
        )


def candidate_accuracy(
    left: ArrayLike, right: ArrayLike, pools: ArrayLike, k: int = 2, metric: Metric = "cosine"
) -> Candidates:
    """Measures how often the correct candidate of a query is found in a pool of candidates.

    Args:
        left: `(n, dim)` embeddings of the queries.
        right: `(n, dim)` embeddings of the candidates; `right[i]` is the correct one for `left[i]`.
        pools: `(n, c)` positions in `right`, such as the result of `data.candidate_pools`: the
            candidates of each query. Row `i` holds `i` once.
        k: A query counts as correct if its candidate is among the `k` nearest; 1 to `c`.
        metric: "euclidean", "manhattan" or "cosine".

    Returns:
        `Candidates`: `accuracy`, its interval `ci_low` to `ci_high`, and `ranks`.

    Raises:
        ArgumentError: If the shapes do not match, or a pool does not hold the correct candidate
            exactly once.

    Example:
        >>> from kerasim.data import candidate_pools
        >>> left = np.random.default_rng(0).normal(size=(50, 8))
        >>> right = left + 0.1  # almost the same embeddings
        >>> candidate_accuracy(left, right, candidate_pools(50)).accuracy
        1.0

    Reference:
        Wilson, 1927. https://doi.org/10.1080/01621459.1927.10502953
    """
    from scipy.stats import binomtest

    _checks.one_of("metric", metric, METRICS)
    left = _checks.vectors("left", left, rows=1, metric=metric)
    right = _checks.vectors("right", right, metric=metric)
    _checks.shape(
        "right", right, left.shape, "pass one for each row of left, embedded by the same model"
    )
    pools, n = _checks.array("pools", pools), len(left)
    _checks.indices("pools", pools, n, f"pass data.candidate_pools({n})")
    own = pools == np.arange(n)[:, None]
    _checks.bad_rows("pools", own.sum(axis=1) != 1, "its own position zero times or more than once")
    _checks.integer("k", k, 1, pools.shape[1])
    left, right = _distances.without_overflow(left, right)
    queries = np.repeat(np.arange(n), pools.shape[1])
    distances = _distances.paired_rows(left, right, queries, pools.ravel(), metric)
    distances = distances.reshape(pools.shape)
    ranks = (distances <= distances[own][:, None]).sum(axis=1)
    hits = int((ranks <= k).sum())
    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return Candidates(hits / n, float(low), float(high), ranks)
