"""NumPy in, numbers out: how good images, embeddings and distances are.

`retrieval` asks whether the nearest vectors share a label, `verification` whether distances tell
like pairs from unlike ones, `candidate_accuracy` whether the right one of a few is found; `psnr`,
`ssim` and `frechet_distance` compare images, or what a network makes of them. A score on few
images is uncertain: `interval`, `all_pairs` and `candidate_accuracy` say how much. Large sets are
worked on a block at a time, so that memory does not grow with the number of pairs.
"""

import dataclasses
import functools

import numpy as np

from kerasim import checks
from kerasim.errors import ArgumentError
from kerasim.neighbors import METRICS

_BLOCK = 64  # MiB of distances worked on at a time


def psnr(images, reference, data_range: float = 1.0) -> np.ndarray:
    """Measures the peak signal-to-noise ratio of each image, in decibels.

    `psnr = 10 log10(data_range**2 / mse)`; infinite for equal images. The mean over images of
    this, as papers report it, is not the PSNR of the mean error.

    Args:
        images: `(n, height, width, channels)`, float.
        reference: What they should be; the same shape.
        data_range: The largest value less the smallest possible; above 0.

    Returns:
        `(n,)` float64.

    Raises:
        ArgumentError: If shapes differ, or the images are not float.
    """
    images, reference = _check_both(images, reference, data_range)
    pairs = zip(images, reference, strict=True)
    errors = [np.mean(np.square(a.astype("float64") - b)) for a, b in pairs]
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / np.array(errors))


def ssim(images, reference, data_range: float = 1.0) -> np.ndarray:
    """Measures the structural similarity of each image: 1 for equal ones, about 0 for unlike ones.

    scikit-image's `structural_similarity` with the settings of the paper: a Gaussian window of
    1.5 pixels and 11 x 11, covariances of the population, the mean over channels.

    Args:
        images: `(n, height, width, channels)`, float, 11 x 11 pixels or more.
        reference: What they should be; the same shape.
        data_range: The largest value less the smallest possible; above 0.

    Returns:
        `(n,)` float64, from -1 to 1.

    Raises:
        ArgumentError: If shapes differ, the images are not float, or smaller than the window.

    Reference:
        Wang et al., 2004. https://doi.org/10.1109/TIP.2003.819861
    """
    from skimage.metrics import structural_similarity

    images, reference = _check_both(images, reference, data_range)
    if min(images.shape[1:3]) < 11:
        raise ArgumentError(f"images {images.shape} are smaller than the 11 x 11 window: enlarge.")
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    values = [
        structural_similarity(a, b, data_range=data_range, channel_axis=-1, **window)
        for a, b in zip(images, reference, strict=True)
    ]
    return np.array(values)


def frechet_distance(features_a, features_b) -> float:
    """Measures how far two sets of vectors lie apart, by means and covariances alone.

    `|m_a - m_b|**2 + trace(C_a + C_b - 2 (C_a C_b)**(1/2))`: of Gaussians with those moments, the
    squared 2-Wasserstein distance. On features of Inception-v3 it is known as FID. It falls with
    the number of vectors: compare at equal counts only.

    Args:
        features_a: `(n, dim)`, two rows or more.
        features_b: `(m, dim)`, two rows or more.

    Returns:
        0 or more.

    Raises:
        ArgumentError: If widths differ, or a set holds fewer than two vectors.

    Reference:
        Dowson & Landau, 1982; Heusel et al., 2017. https://arxiv.org/abs/1706.08500
    """
    a = checks.vectors("features_a", features_a, rows=2).astype("float64")
    b = checks.vectors("features_b", features_b, a.shape[1], rows=2).astype("float64")
    of_a, of_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(of_a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    # The eigenvalues of C_a C_b are those of this symmetric matrix, which has no complex ones.
    both = np.linalg.eigvalsh(root @ of_b @ root).clip(min=0)
    gap = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return max(0.0, float(gap + np.trace(of_a) + np.trace(of_b) - 2 * np.sqrt(both).sum()))


def _check_both(images, reference, data_range):
    """Returns images and what they should be, as float arrays of one shape."""
    checks.number("data_range", data_range, 1e-300)
    images, reference = checks.array("images", images), checks.array("reference", reference)
    checks.shape("images", images, [None] * 4, "pass (n, height, width, channels)")
    checks.shape("reference", reference, images.shape, "pass the shape of images")
    if "f" != images.dtype.kind or "f" != reference.dtype.kind:
        kinds = f"images ({images.dtype}) and reference ({reference.dtype})"
        mend = "divide uint8 by 255, or pass both as float with data_range=255"
        raise ArgumentError(f"{kinds} must be float: {mend}.")
    return images, reference


def retrieval(
    queries,
    query_labels,
    gallery=None,
    gallery_labels=None,
    metric: str = "cosine",
    ks=(1, 10),
    per_query: bool = False,
) -> dict:
    """Scores how well the nearest vectors of the gallery share the label of each query.

    With R the number of images of a query's class in the gallery: "recall@k", one or more of the
    first k share the label; "precision@k", the share of the first k that do; "r_precision",
    precision at R; "map@r", the mean over ranks up to R of the precision where there is a hit,
    else 0; "mrr", one over the rank of the first hit in the whole gallery. Equal distances are
    ordered by position. A block of queries is worked on at a time, so that memory does not grow
    with the product of queries and gallery.

    Args:
        queries: `(n, dim)` vectors.
        query_labels: `(n,)` integers or strings.
        gallery: `(m, dim)` vectors to search; None for the queries themselves, each left out of
            its own answer.
        gallery_labels: `(m,)`.
        metric: "euclidean", "manhattan" or "cosine".
        ks: Values of k, each from 1 to the number of vectors that a query can find.
        per_query: True for arrays `(n,)`, NaN for queries left out, for `interval`.

    Returns:
        The mean of each score over the queries, and "left_out": the number of queries whose class
        is not in the gallery.

    Raises:
        ArgumentError: If vectors and labels do not fit, or every query is left out.

    Reference:
        Musgrave et al., 2020 (MAP@R). https://arxiv.org/abs/2003.08505
    """
    from sklearn.metrics import pairwise_distances_chunked

    checks.choice("metric", metric, METRICS)
    checks.flag("per_query", per_query)
    queries = checks.vectors("queries", queries, rows=1, metric=metric)
    query_labels = checks.labels("query_labels", query_labels, len(queries), "queries")
    alone = gallery is None
    if alone:
        if gallery_labels is not None:
            raise ArgumentError("gallery_labels came without gallery: pass both or neither.")
        gallery, gallery_labels = queries, query_labels
    else:
        gallery = checks.vectors("gallery", gallery, queries.shape[1], 1, metric)
        gallery_labels = checks.labels("gallery_labels", gallery_labels, len(gallery), "vectors")
    most = len(gallery) - alone
    ks = [checks.integer("each of ks", k, 1, most) for k in checks.array("ks", ks).ravel().tolist()]
    names, counts = np.unique(gallery_labels, return_counts=True)
    at = np.searchsorted(names, query_labels).clip(max=len(names) - 1)
    relevant = np.where(names[at] == query_labels, counts[at] - alone, 0)
    if not relevant.any():
        raise ArgumentError("No query has an image of its class to find: check the labels.")

    def score(distances, start):
        rows = slice(start, start + len(distances))
        asked, wanted = query_labels[rows, None], relevant[rows]
        if alone:
            distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        depth = min(most, max(wanted.max(), *ks, 1))
        # The distances fall into groups, four for each place: the depth-th least of their minima is
        # an upper bound of the depth-th distance, found in a fraction of the time.
        size = max(1, len(gallery) // (4 * depth))
        groups = distances[:, : len(gallery) // size * size].reshape(len(asked), size, -1)
        bound = np.partition(groups.min(axis=1), depth - 1, axis=1)[:, depth - 1 : depth]
        at = np.flatnonzero(distances <= bound)
        row, near = np.divmod(at, len(gallery))
        counts = np.bincount(row)
        filled = np.arange(counts.max()) < counts[:, None]
        values, places = np.full(filled.shape, np.inf), np.zeros(filled.shape, "int64")
        values[filled], places[filled] = distances.ravel()[at], near
        order = values.argsort(axis=1, kind="stable")[:, :depth]
        hits = gallery_labels[np.take_along_axis(places, order, 1)] == asked
        found = np.cumsum(hits, axis=1)
        ranks = np.arange(1, depth + 1)
        within = hits & (ranks <= wanted[:, None])
        rank = 1.0 + hits.argmax(axis=1)
        for row in np.flatnonzero((found[:, -1] == 0) & (wanted > 0)):  # its first is farther away
            same = np.where(gallery_labels == asked[row], distances[row], np.inf)
            closer = distances[row] < same.min()
            rank[row] = 1 + closer.sum() + (distances[row, : same.argmin()] == same.min()).sum()
        with np.errstate(invalid="ignore"):
            r_precision = within.sum(axis=1) / wanted
            map_at_r = (found / ranks * within).sum(axis=1) / wanted
        columns = [found[:, k - 1] > 0 for k in ks] + [found[:, k - 1] / k for k in ks]
        columns += [r_precision, map_at_r, 1 / rank]
        return np.where(wanted[:, None] > 0, np.stack(columns, axis=1), np.nan)

    settings = {"reduce_func": score, "metric": metric, "working_memory": _BLOCK}
    columns = np.concatenate(list(pairwise_distances_chunked(queries, gallery, **settings))).T
    keys = [f"recall@{k}" for k in ks] + [f"precision@{k}" for k in ks]
    keys += ["r_precision", "map@r", "mrr"]
    scores: dict = dict(zip(keys, columns, strict=True))
    if not per_query:
        scores = {key: float(np.nanmean(column)) for key, column in scores.items()}
    return {**scores, "left_out": int((relevant == 0).sum())}


def interval(values, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """Finds the 95 % interval of the mean of `values` by the percentile bootstrap.

    For two systems on the same queries, pass the differences of their scores: if the interval
    holds no 0, they differ.

    Args:
        values: `(n,)`; NaN are left out.
        seed: The same seed draws the same resamples.
        resamples: Number of them, 1 or more.

    Returns:
        `(low, high)`, in the units of the values.

    Raises:
        ArgumentError: If there are fewer than two values, or they are no row.

    Reference:
        Efron & Tibshirani, 1993, An Introduction to the Bootstrap, chapter 13.
    """
    from scipy.stats import bootstrap

    values = checks.real("values", values).astype("float64")
    valid = values[~np.isnan(values)]
    if values.ndim != 1 or len(valid) < 2:
        found = f"{len(valid)} numbers, in shape {values.shape}"
        raise ArgumentError(f"values holds {found}: pass two or more, (n,).")
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    times, batch = checks.integer("resamples", resamples), max(1, 2**22 // len(valid))
    way = {"n_resamples": times, "batch": batch, "method": "percentile", "rng": rng}
    found = bootstrap((valid,), np.mean, **way)
    low, high = found.confidence_interval
    return float(low), float(high)


def pair_distances(left, right, metric: str = "cosine") -> np.ndarray:
    """Measures the distance of each pair of embeddings, for `verification`.

    Args:
        left: `(n, dim)`.
        right: `(n, dim)`; row `i` is the other one of the pair `left[i]`.
        metric: "euclidean", "manhattan" or "cosine" (1 - cosine similarity).

    Returns:
        `(n,)` float64.

    Raises:
        ArgumentError: If shapes differ, or a vector is not finite or, under "cosine", zero.
    """
    from sklearn.metrics.pairwise import paired_distances

    checks.choice("metric", metric, METRICS)
    left = checks.vectors("left", left, metric=metric).astype("float64")
    right = checks.vectors("right", right, metric=metric).astype("float64")
    checks.shape("right", right, left.shape, "pass one for each of left, of the same model")
    if not len(left):
        return np.empty(0)
    return np.asarray(paired_distances(left, right, metric=metric))


@dataclasses.dataclass(frozen=True)
class Verification:
    """How well a threshold on distances tells like from unlike pairs. See `verification`.

    Attributes:
        fpr: Share of unlike pairs accepted at each threshold, rising.
        tpr: Share of like pairs accepted.
        thresholds: A pair is accepted if its distance is this or less. Corners alone.
        auc: Area under `tpr` over `fpr`.
        eer: Rate at which as many unlike pairs are accepted as like ones are rejected.
        eer_threshold: The least distance at which as many are.
        like: Distances of like pairs, sorted.
        unlike: Distances of unlike pairs, sorted.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray
    auc: float
    eer: float
    eer_threshold: float
    like: np.ndarray
    unlike: np.ndarray

    def threshold(self, far: float) -> float:
        """Finds the largest threshold that accepts a share of `far` of unlike pairs or less.

        Args:
            far: Share of unlike pairs that may be accepted, 0 to 1.

        Returns:
            The threshold, a distance.

        Raises:
            ArgumentError: If `far` is out of range.
        """
        # 0.29 * 100 is a little less than 29.
        allowed = int(checks.number("far", far, 0, 1) * len(self.unlike) + 1e-6)
        if allowed == len(self.unlike):
            return float(max(self.like[-1], self.unlike[-1]))
        return float(np.nextafter(self.unlike[allowed], -np.inf))

    def at(self, threshold: float) -> dict:
        """Counts what a threshold accepts and rejects.

        Args:
            threshold: Largest distance that is accepted, such as one fitted on other pairs.

        Returns:
            "far", share of unlike pairs accepted; "frr", share of like pairs rejected;
            "accuracy", with half of the weight on like pairs whatever their number.

        Raises:
            ArgumentError: If the threshold is not finite.
        """
        checks.number("threshold", threshold)
        far = float(_accepted(self.unlike, threshold))
        accepted = float(_accepted(self.like, threshold))
        return {"far": far, "frr": 1 - accepted, "accuracy": (1 - far + accepted) / 2}

    def score(self, distances) -> np.ndarray:
        """Turns distances into similarities in [0, 1], calibrated on these pairs.

        A score is the estimated chance that a pair at that distance is like, if half of all pairs
        were: a logistic curve. Fit it on held-out pairs, not on those it is reported for. (In the
        student report that kerasim began with alike pairs score 0 and unlike ones are labelled 1:
        its score is `1 - score`, its label `1 - same`.)

        Args:
            distances: Array of any shape.

        Returns:
            As many scores, float64.

        Raises:
            ArgumentError: If a distance is not finite.

        Reference:
            Platt, 1999, Probabilistic outputs for support vector machines.
        """
        distances = np.asarray(distances, dtype="float64")
        column = distances.reshape(-1, 1)
        checks.bad_rows("distances", ~np.isfinite(column[:, 0]), "NaN or infinity")
        if not distances.size:
            return distances
        return self._curve.predict_proba(column)[:, 1].reshape(distances.shape)

    @functools.cached_property
    def _curve(self):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        distances = np.concatenate([self.like, self.unlike])[:, None].astype("float64")
        same = np.repeat([1, 0], [len(self.like), len(self.unlike)])
        curve = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        return curve.fit(distances, same)


def verification(distances, same) -> Verification:
    """Measures how well distances tell like pairs from unlike ones.

    Fit a threshold on pairs of one split, `verification(...).threshold(far=0.01)`, and report it
    on another, `verification(...).at(threshold)`. No figure depends on the share of like pairs.

    Args:
        distances: `(n,)` or `(n, 1)`, greater for less like pairs, as from `pair_distances`.
        same: As many: 1 or True for a like pair, else 0.

    Returns:
        `Verification`: rates at each threshold, `auc`, `eer`, and methods that fit a threshold.

    Raises:
        ArgumentError: If there are no like or no unlike pairs, or distances are not finite.
    """
    from sklearn.metrics import auc, roc_curve

    distances = checks.real("distances", distances, "bfiu").reshape(-1)
    same = checks.array("same", same).reshape(-1)
    checks.each("same", same, len(distances), "distances")
    if not np.isin(same, (0, 1)).all() or len(np.unique(same)) < 2:
        held = np.unique(same)[:5]
        raise ArgumentError(f"same holds the values {held}: pass 1 for like pairs, 0 for unlike.")
    checks.bad_rows("distances", ~np.isfinite(distances), "NaN or infinity")
    same = same.astype(bool)
    if distances.dtype.kind != "f":  # the negative of an unsigned number is none
        distances = distances.astype("float64")
    like, unlike = np.sort(distances[same]), np.sort(distances[~same])
    fpr, tpr, scores = roc_curve(same, -distances)

    # The curve has corners alone; the threshold of equal errors is looked for among all distances.
    tried = np.concatenate([like, unlike])
    enough = _accepted(unlike, tried) >= 1 - _accepted(like, tried)
    rates = {"auc": float(auc(fpr, tpr)), "eer": _equal_error(fpr, tpr)}
    equal = float(tried[enough].min())
    # The first threshold is -infinity, which accepts nothing.
    return Verification(fpr, tpr, -scores, **rates, eer_threshold=equal, like=like, unlike=unlike)


def _accepted(distances, threshold):
    """Returns which share of sorted distances each threshold accepts."""
    return np.searchsorted(distances, threshold, "right") / len(distances)


def _equal_error(fpr, tpr) -> float:
    """Returns `fpr` where the curve, drawn through its points, crosses `fpr = 1 - tpr`."""
    return float(np.interp(1, fpr + tpr, fpr))


def all_pairs(
    embeddings, labels, metric: str = "euclidean", seed: int = 0, resamples: int = 200
) -> dict:
    """Measures verification over every pair of images, with 95 % intervals.

    Pairs that share an image are not independent, so that images are drawn again for the
    intervals, not pairs. Distances are counted in 16,384 bins from 0 to the largest; a block of
    pairs is worked on at a time.

    Args:
        embeddings: `(n, dim)` vectors, two or more.
        labels: `(n,)` integers or strings.
        metric: "euclidean", "manhattan" or "cosine".
        seed: The same seed draws the same resamples.
        resamples: Number of them, 1 or more.

    Returns:
        "auc" and "eer", see `verification`; "auc_interval" and "eer_interval", `(low, high)`, by
        the percentile bootstrap over images; "like" and "unlike", numbers of pairs.

    Raises:
        ArgumentError: If vectors and labels do not fit, or there are no like or no unlike pairs.

    Reference:
        Snijders & Borgatti, 1999, Non-parametric standard errors and tests for network statistics.
    """
    from sklearn.metrics import auc, pairwise_distances

    checks.choice("metric", metric, METRICS)
    x = checks.vectors("embeddings", embeddings, rows=2, metric=metric).astype("float64")
    labels = checks.labels("labels", labels, len(x), "embeddings")
    n, bins = len(x), 2**14
    counts = np.unique(labels, return_counts=True)[1]
    like = int((counts * (counts - 1) // 2).sum())
    unlike = n * (n - 1) // 2 - like
    if not like or not unlike:
        mend = "pass two classes or more, one of them with two images or more"
        raise ArgumentError(f"labels make {like} like pairs and {unlike} unlike ones: {mend}.")
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    drawn = rng.multinomial(n, np.full(n, 1 / n), checks.integer("resamples", resamples))
    weights = np.concatenate([np.ones((1, n)), drawn])
    step = max(1, int(_BLOCK * 2**15 / n))  # a block needs indices, too

    def blocks():
        """Yields distances, and the positions of both images, of each pair once."""
        for start in range(0, n - 1, step):
            distances = pairwise_distances(x[start : start + step], x[start:], metric=metric)
            own, other = np.triu_indices(len(distances), 1, distances.shape[1])
            yield distances[own, other], own + start, other + start

    largest = max(distances.max(initial=0) for distances, _, _ in blocks()) or 1.0
    found = np.zeros((len(weights), 2 * bins))
    for distances, own, other in blocks():
        at = (distances / largest * bins).astype("int64").clip(max=bins - 1)
        at += bins * (labels[own] == labels[other])
        for one, histogram in zip(weights, found, strict=True):
            histogram += np.bincount(at, one[own] * one[other], 2 * bins)
    curves = np.pad(found.reshape(-1, 2, bins).cumsum(axis=2), ((0, 0), (0, 0), (1, 0)))
    # A resample may have lost every like or every unlike pair.
    curves = curves[curves[:, :, -1].all(axis=1)]
    curves /= curves[:, :, -1:]
    areas = [float(auc(fpr, tpr)) for fpr, tpr in curves]
    errors = [_equal_error(fpr, tpr) for fpr, tpr in curves]
    scores: dict = {"auc": areas[0], "eer": errors[0]}
    for key, values in (("auc", areas), ("eer", errors)):
        ends = np.quantile(values[1:] or [np.nan], (0.025, 0.975))
        scores[f"{key}_interval"] = tuple(ends.tolist())
    return {**scores, "like": like, "unlike": unlike}


@dataclasses.dataclass(frozen=True)
class Candidates:
    """How often the right candidate is among the nearest. See `candidate_accuracy`.

    Attributes:
        accuracy: Share of queries whose own candidate is among the `k` nearest.
        low: Lower end of its 95 % interval, by Wilson's score.
        high: Upper end.
        ranks: `(n,)` int64: place of the own candidate, from 1 on; a tie counts as lost.
    """

    accuracy: float
    low: float
    high: float
    ranks: np.ndarray


def candidate_accuracy(left, right, pools, k: int = 2, metric: str = "cosine") -> Candidates:
    """Measures how often a left image finds its own right one in a pool of candidates.

    Args:
        left: `(n, dim)` embeddings of the queries.
        right: `(n, dim)` embeddings; `right[i]` belongs to `left[i]`.
        pools: `(n, c)` positions in `right`, as `data.candidate_pools` draws them; row `i` holds
            `i` once.
        k: How many of the nearest count, 1 to `c`.
        metric: "euclidean", "manhattan" or "cosine".

    Returns:
        `Candidates`: `accuracy`, its interval `low` to `high`, and `ranks`.

    Raises:
        ArgumentError: If the shapes do not fit, or a pool does not hold its own candidate.

    Reference:
        Wilson, 1927. https://doi.org/10.1080/01621459.1927.10502953
    """
    from scipy.stats import binomtest

    left, right = checks.vectors("left", left, rows=1), checks.vectors("right", right)
    own_distance = pair_distances(left, right, metric)
    pools, n = np.asarray(pools), len(left)
    checks.positions("pools", pools, n, f"pass data.candidate_pools({n})")
    own = pools == np.arange(n)[:, None]
    checks.bad_rows("pools", own.sum(axis=1) != 1, "its own position not at all or more than once")
    checks.integer("k", k, 1, pools.shape[1])
    nearer = [pair_distances(left, right[column], metric) <= own_distance for column in pools.T]
    ranks = np.sum(nearer, axis=0)
    hits = int((ranks <= k).sum())
    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return Candidates(hits / n, float(low), float(high), ranks)
