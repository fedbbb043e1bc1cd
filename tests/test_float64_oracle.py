"""Every function that computes distances, against exact arithmetic, over extreme inputs."""

import functools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from kerasim import metrics
from kerasim.errors import ArgumentError
from kerasim.neighbors import METRICS, NeighborIndex
from tests.helpers.exact_distances import exact_distances, rounded, whole

TOLERANCE = 1e-5
DIM = 6


def clusters(rng, n, offset, width):
    centers = offset * rng.choice([-1, 1], (3, DIM)) * rng.uniform(1, 2, (3, DIM))
    return centers[rng.integers(0, 3, n)] + width * rng.normal(size=(n, DIM))


def with_row(x, factor):
    x[len(x) // 2] *= factor
    return x


def with_zeros(x, rng):
    x[rng.random(x.shape) < 0.5] = 0
    x[:2] = 0
    return x


# Vectors of each kind, as float64.
KINDS = {
    "plain": lambda rng, n: rng.normal(size=(n, DIM)),
    "tiny": lambda rng, n: 1e-30 * rng.normal(size=(n, DIM)),
    "huge": lambda rng, n: 1e30 * rng.normal(size=(n, DIM)),
    "rows of every size": lambda rng, n: (
        rng.normal(size=(n, DIM)) * 10 ** rng.uniform(-30, 30, (n, 1))
    ),
    "coordinates of every size": lambda rng, n: (
        rng.normal(size=(n, DIM)) * 10 ** rng.uniform(-30, 30, (n, DIM))
    ),
    "one far row": lambda rng, n: with_row(rng.normal(size=(n, DIM)), 1e30),
    "one near row": lambda rng, n: with_row(rng.normal(size=(n, DIM)), 1e-30),
    "far from the origin": lambda rng, n: 1e4 + rng.normal(size=(n, DIM)),
    "one narrow cluster": lambda rng, n: 1 + 1e-3 * rng.normal(size=(n, DIM)),
    "clusters far from each other": lambda rng, n: clusters(rng, n, 1e3, 1e-3),
    "copies": lambda rng, n: rng.normal(size=(n, DIM))[rng.integers(0, max(1, n // 5), n)],
    "directions of several lengths": lambda rng, n: (
        rng.normal(size=(n, DIM))[rng.integers(0, max(1, n // 5), n)]
        * rng.choice([1, 2, 3], (n, 1))
    ),
    "whole numbers": lambda rng, n: rng.integers(0, 3, (n, DIM)) + np.eye(DIM)[0],
    "zeros": lambda rng, n: with_zeros(rng.normal(size=(n, DIM)), rng),
}
# Those that only float64 holds.
WIDE_KINDS = {
    "subnormal": lambda rng, n: 5e-324 * rng.integers(1, 9, (n, DIM)),
    "below squares": lambda rng, n: 1e-200 * rng.normal(size=(n, DIM)),
    "above squares": lambda rng, n: 1e200 * rng.normal(size=(n, DIM)),
    "rows up to both ends": lambda rng, n: (
        rng.normal(size=(n, DIM)) * 10 ** rng.uniform(-300, 300, (n, 1))
    ),
    "near the largest": lambda rng, n: 1e307 * rng.uniform(0.1, 1, (n, DIM)),
    "a narrow cluster far away": lambda rng, n: 1e8 + 1e-3 * rng.normal(size=(n, DIM)),
    "clusters far away": lambda rng, n: clusters(rng, n, 1e8, 1e-3),
}
CASES = [(kind, dtype) for kind in KINDS for dtype in ("float32", "float64")]
CASES += [(kind, "float64") for kind in WIDE_KINDS]
ROWS, QUERIES = 80, 8


@functools.cache
def draw(case):
    """Returns vectors and queries, a few of which are among the vectors."""
    kind, dtype = case
    make = {**KINDS, **WIDE_KINDS}[kind]
    x = make(np.random.default_rng(0), ROWS).astype(dtype)
    others = make(np.random.default_rng(1), QUERIES).astype(dtype)
    return x, np.concatenate([x[:3], others])[:QUERIES]


@functools.cache
def exact(case, metric, queries=False):
    """Returns the distances of all vectors, or of the queries, to all vectors."""
    x, others = draw(case)
    return exact_distances(others if queries else x, x, metric)


def name_of(value):
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def has_directions(case):
    return case[0] != "zeros"


EVERY = [
    pytest.param(case, metric, id=name_of((*case, metric)))
    for metric in METRICS
    for case in CASES
    if metric != "cosine" or has_directions(case)
]
every = pytest.mark.parametrize(("case", "metric"), EVERY)


def assert_close(found, exact, case):
    """Holds values to a relative error of 1e-5, but where float64 has fewer digits."""
    # Multiples of a vector are rounded: they have its direction but for an angle of 1e-16.
    least = 1e-30 if case[0] == "directions of several lengths" else 1e-318
    np.testing.assert_allclose(found, exact, rtol=TOLERANCE, atol=least)


@every
def test_the_distance_of_a_pair_is_exact(case, metric):
    x, _ = draw(case)
    for shift in (0, 1, 7):
        found = metrics.pair_distances(x, np.roll(x, -shift, axis=0), metric)
        assert_close(
            found, exact(case, metric)[np.arange(ROWS), (np.arange(ROWS) + shift) % ROWS], case
        )


@every
def test_exact_search_finds_the_nearest_in_exact_arithmetic(case, metric):
    x, queries = draw(case)
    true = exact(case, metric, queries=True)
    distances, indices = NeighborIndex(metric).fit(x).query(queries, 7)
    assert_close(distances, np.sort(true, axis=1)[:, :7], case)
    assert_close(distances, np.take_along_axis(true, indices, axis=1), case)


@every
def test_a_graph_gives_exact_distances_and_finds_as_much_as_it_says(case, metric):
    x, queries = draw(case)
    true = exact(case, metric, queries=True)
    index = NeighborIndex(metric, "hnsw").fit(x)
    distances, indices = index.query(queries, 7)
    assert_close(distances, np.take_along_axis(true, indices, axis=1), case)
    found = distances <= np.sort(true, axis=1)[:, 6:7] * (1 + 1e-9)
    assert found.mean() > index.recall_ - 0.1


@every
def test_search_proposes_by_float32_and_proves_by_float64(case, metric, monkeypatch):
    """The proof must not rest on the last resort, which computes all distances."""
    x, queries = draw(case)
    expected = NeighborIndex(metric).fit(x).query(queries, 3)
    monkeypatch.setattr("kerasim.neighbors._MORE", 1)
    for found, wanted in zip(NeighborIndex(metric).fit(x).query(queries, 3), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def searched(case, metric):
    """Returns all distances of all vectors as search gives them, ties in order of position."""
    x, _ = draw(case)
    distances, indices = NeighborIndex(metric).fit(x).query(x, ROWS)
    ordered = np.empty((ROWS, ROWS))
    np.put_along_axis(ordered, indices, distances, axis=1)
    return ordered, indices


@every
def test_retrieval_ranks_as_search_does(case, metric):
    if case[0] == "subnormal":
        pytest.skip("search has ties there, as float64 has too few digits; retrieval scales first")
    x, _ = draw(case)
    labels = np.random.default_rng(2).integers(0, 25, ROWS)
    indices = searched(case, metric)[1]
    others = indices[indices != np.arange(ROWS)[:, None]].reshape(ROWS, -1)
    hits = labels[others] == labels[:, None]
    relevant = hits.sum(axis=1)
    scores = metrics.retrieval(x, labels, metric=metric, ks=(1, 5), per_query=True)
    kept = relevant > 0
    np.testing.assert_allclose(scores["recall@1"][kept], hits[kept, 0])
    np.testing.assert_allclose(scores["precision@5"][kept], hits[kept, :5].mean(axis=1))
    np.testing.assert_allclose(scores["mrr"][kept], 1 / (1 + hits[kept].argmax(axis=1)))
    at_r = [row[:n].mean() for row, n in zip(hits[kept], relevant[kept], strict=True)]
    np.testing.assert_allclose(scores["r_precision"][kept], at_r)


def curve(distances, same):
    """Returns area and equal error rate, by counting at every distance."""
    like, unlike = distances[same], distances[~same]
    area = ((like[:, None] < unlike) + (like[:, None] == unlike) / 2).mean()
    tried = np.unique(distances)
    fpr = np.append(0, (unlike[:, None] <= tried).mean(axis=0))
    tpr = np.append(0, (like[:, None] <= tried).mean(axis=0))
    return area, np.interp(1, fpr + tpr, fpr)


@every
def test_verification_over_all_pairs_counts_the_distances_of_search(case, metric):
    x, _ = draw(case)
    labels = np.arange(ROWS) % 4
    own, other = np.triu_indices(ROWS, 1)
    same = labels[own] == labels[other]
    true = searched(case, metric)[0][own, other]
    area, error = curve(true, same)
    found = metrics.pairwise_verification(x, labels, metric, resamples=1)
    np.testing.assert_allclose([found["auc"], found["eer"]], [area, error], rtol=TOLERANCE)
    if np.isfinite(true).all():
        fitted = metrics.verification(metrics.pair_distances(x[own], x[other], metric), same)
        np.testing.assert_allclose([fitted.auc, fitted.eer], [area, error], rtol=TOLERANCE)
        assert fitted.error_rates(fitted.threshold(0.1))["far"] <= 0.1


@every
def test_candidates_are_ranked_as_search_does(case, metric):
    x, _ = draw(case)
    rng = np.random.default_rng(3)
    right = np.roll(np.arange(ROWS), -1)  # the own candidate of row n is row n + 1
    pools = np.stack(
        [
            rng.permutation([n, *rng.choice(np.delete(np.arange(ROWS), n), 9, False)])
            for n in range(ROWS)
        ]
    )
    true = searched(case, metric)[0][np.arange(ROWS)[:, None], right[pools]]
    own = true[pools == np.arange(ROWS)[:, None]]
    found = metrics.candidate_accuracy(x, x[right], pools, k=3, metric=metric)
    np.testing.assert_array_equal(found.ranks, (true <= own[:, None]).sum(axis=1))


TOO_FAR = 1.2e308 * np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0]])


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_a_distance_that_float64_cannot_hold_is_refused_with_its_row(metric):
    with pytest.raises(ArgumentError, match="left holds a distance above 1.8e308.* rows: 1"):
        metrics.pair_distances(TOO_FAR, TOO_FAR[:1].repeat(3, axis=0), metric)
    for kind in ("exact", "hnsw"):
        index = NeighborIndex(metric, kind).fit(TOO_FAR)
        assert index.query(TOO_FAR, 1)[1][:, 0].tolist() == [0, 1, 0]
        with pytest.raises(
            ArgumentError, match="x holds a vector whose neighbors are farther .*1.8e308.*: 1"
        ):
            index.query(TOO_FAR, 2)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_scores_of_vectors_too_far_apart_for_a_distance_are_those_of_smaller_ones(metric):
    labels = [0, 1, 0]
    for factor in (1, 1e-308):
        x = TOO_FAR * factor
        assert metrics.retrieval(x, labels, metric=metric, ks=(1,))["recall@1"] == 1
        assert metrics.pairwise_verification(x, labels, metric, resamples=1)["auc"] == 1


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1e-3, 1e30, 1e300])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", "int16"])
def test_distances_that_are_verified_may_have_any_unit_and_type(factor, dtype):
    distances = np.random.default_rng(4).integers(0, 500, 200)
    same = np.arange(200) % 2
    expected = metrics.verification(distances, same)
    with np.errstate(over="ignore"):
        given = distances.astype(dtype) if "int" in dtype else (distances * factor).astype(dtype)
    if not np.isfinite(given).all() or len(np.unique(given)) < len(np.unique(distances)):
        pytest.skip(f"{dtype} does not hold these")
    found = metrics.verification(given, same)
    assert (found.auc, found.eer) == (expected.auc, expected.eer)
    for far in (0.0, 0.1, 0.5):
        assert found.error_rates(found.threshold(far)) == expected.error_rates(
            expected.threshold(far)
        )
    np.testing.assert_allclose(
        found.score(given.astype("float64")), expected.score(distances), rtol=1e-3
    )


def test_one_huge_distance_does_not_change_the_scores_of_the_others():
    rng = np.random.default_rng(5)
    distances = np.concatenate([rng.normal(1, 0.3, 100), rng.normal(2, 0.3, 100)])
    same = np.repeat([1, 0], 100)
    expected = metrics.verification(distances, same).score(distances)
    far = metrics.verification([*distances, 1e30], [*same, 0]).score(distances)
    np.testing.assert_allclose(far, expected, atol=0.05)
    assert expected[:100].mean() > 0.8


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1e30, 1e306])
def test_the_interval_of_a_mean_scales_with_the_values(factor):
    values = np.random.default_rng(6).uniform(0, 100, 300)
    np.testing.assert_allclose(
        metrics.bootstrap_interval(values * factor),
        np.multiply(metrics.bootstrap_interval(values), factor),
    )


IMAGES = {
    "plain": (1.0, 0.0, 1.0),
    "tiny": (1e-30, 0.0, 1e-30),
    "huge": (1e30, 0.0, 1e30),
    "small in a large range": (1e-3, 0.0, 1e3),
    "on an offset": (1e-3, 90.0, 1.0),
    "of a small range": (1.0, 0.0, 0.02),
}
WIDE_IMAGES = {"nearly nothing": (1e-300, 0.0, 1e-290), "nearly too large": (1e307, 0.0, 1e307)}
IMAGE_CASES = [(kind, dtype) for kind in IMAGES for dtype in ("float32", "float64")]
IMAGE_CASES += [(kind, "float64") for kind in WIDE_IMAGES]


def draw_images(case):
    size, offset, data_range = {**IMAGES, **WIDE_IMAGES}[case[0]]
    images, reference = np.random.default_rng(7).uniform(0, 1, (2, 2, 13, 12, 1))
    return (
        (size * images + offset).astype(case[1]),
        (size * reference + offset).astype(case[1]),
        (data_range),
    )


@pytest.mark.parametrize("case", IMAGE_CASES, ids=name_of)
def test_psnr_is_that_of_exact_arithmetic(case):
    images, reference, data_range = draw_images(case)
    for one, other, found in zip(
        images, reference, metrics.psnr(images, reference, data_range), strict=True
    ):
        both, exponent = whole(np.stack([one.ravel(), other.ravel()]))
        error = Decimal(int(np.square(both[0] - both[1]).sum())) / one.size
        decades = (Decimal(data_range) ** 2 / error).log10() - 2 * exponent * Decimal(2).log10()
        assert found == pytest.approx(float(10 * decades), rel=TOLERANCE, abs=1e-9)


def ssim_by_windows(a, b, data_range):
    """The formula of the paper, one window of 11 x 11 at a time, moments around the mean."""
    a, b = a[..., 0].astype("longdouble") / data_range, b[..., 0].astype("longdouble") / data_range
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / np.outer(weights, weights).sum()
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x, y = a[top : top + 11, left : left + 11], b[top : top + 11, left : left + 11]
            x_mean, y_mean = (weights * x).sum(), (weights * y).sum()
            x_var = (weights * (x - x_mean) ** 2).sum()
            y_var = (weights * (y - y_mean) ** 2).sum()
            both = (weights * (x - x_mean) * (y - y_mean)).sum()
            luminance = (2 * x_mean * y_mean + 1e-4) / (x_mean**2 + y_mean**2 + 1e-4)
            values.append(luminance * (2 * both + 9e-4) / (x_var + y_var + 9e-4))
    return float(np.mean(values))


@pytest.mark.parametrize("case", IMAGE_CASES, ids=name_of)
def test_ssim_is_that_of_the_formula_window_by_window(case):
    images, reference, data_range = draw_images(case)
    expected = [ssim_by_windows(a, b, data_range) for a, b in zip(images, reference, strict=True)]
    found = metrics.ssim(images, reference, data_range)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_ssim_refuses_images_that_do_not_fit_the_range():
    images = np.full((1, 12, 12, 1), 255.0)
    with pytest.raises(ArgumentError, match="data_range=1.0 does not fit .* up to 255"):
        metrics.ssim(images, images)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(value):
    images = np.zeros((2, 12, 12, 1))
    images[1, 3, 4] = value
    for measure in (metrics.psnr, metrics.ssim):
        with pytest.raises(
            ArgumentError, match="reference holds NaN or infinity in 1 of 2 rows: 1"
        ):
            measure(np.zeros((2, 12, 12, 1)), images)


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("factor", [2.0, 1.0, 1 + 2.0**-20])
def test_the_frechet_distance_of_scaled_vectors_is_that_of_the_formula(case, factor):
    x, _ = draw(case)
    with np.errstate(over="ignore"):
        scaled = x.astype("float64") * factor
    if not np.isfinite(scaled).all():
        pytest.skip("float64 does not hold the scaled vectors")
    # With b = c a: |m_a - m_b|**2 + (1 - c)**2 trace(C_a). The product was rounded: c is taken of
    # numbers for which it was not.
    numbers, exponent = whole(x)
    ratio = Fraction(factor) - 1
    sums = numbers.sum(axis=0)
    trace = (numbers * numbers).sum() - Fraction(int((sums * sums).sum()), ROWS)
    squares = Fraction(int((sums * sums).sum()), ROWS**2) + trace / (ROWS - 1)
    expected = ratio * ratio * squares
    expected = rounded(expected.numerator, expected.denominator, 2 * exponent)
    if np.isinf(expected):
        with pytest.raises(ArgumentError, match="above 1.8e308"):
            metrics.frechet_distance(x, scaled)
    elif case[1] == "float32" or factor == 2:
        least = 1e-28 * rounded(squares.numerator, squares.denominator, 2 * exponent)
        found = metrics.frechet_distance(x, scaled)
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=max(least, 1e-318))
