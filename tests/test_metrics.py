import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances, roc_auc_score

from kerasim import metrics
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.neighbors import METRICS, NeighborIndex
from tests.helpers import retrieval_oracle
from tests.helpers.search_oracle import float64_distances

RNG = np.random.default_rng(0)
QUERIES, GALLERY = RNG.standard_normal((20, 4)), RNG.standard_normal((30, 4))
QUERY_LABELS, GALLERY_LABELS = RNG.integers(0, 5, 20), RNG.integers(0, 4, 30)

# Printed by tests/peers/metrics.py: (metric, leave one out).
REFERENCE = {
    ("euclidean", False): (0.2500000, 0.3151042, 0.1642175, 0.5145833),
    ("euclidean", True): (0.1500000, 0.1625000, 0.0989583, 0.3408748),
    ("manhattan", False): (0.2500000, 0.3322917, 0.1880518, 0.5402244),
    ("manhattan", True): (0.1500000, 0.1416667, 0.0958333, 0.3460913),
    ("cosine", False): (0.3125000, 0.3166667, 0.1695263, 0.5437500),
    ("cosine", True): (0.2000000, 0.1625000, 0.1086806, 0.3612569),
}


# psnr


def test_psnr_is_that_worked_out_by_hand():
    clean = np.zeros((2, 2, 2, 1), "float32")
    noisy = clean + np.array([0.1, 0.01], "float32")[:, None, None, None]
    np.testing.assert_allclose(metrics.psnr(noisy, clean), [20, 40], rtol=1e-6)
    np.testing.assert_allclose(
        metrics.psnr(noisy * 255, clean, data_range=255), [20, 40], rtol=1e-6
    )


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim])
def test_no_images_have_no_figures_and_images_without_pixels_are_refused(measure):
    assert measure(np.zeros((0, 11, 11, 1)), np.zeros((0, 11, 11, 1))).shape == (0,)
    with pytest.raises(ArgumentError, match="images has shape .2, 0, 11, 1.: pass images of one"):
        measure(np.zeros((2, 0, 11, 1)), np.zeros((2, 0, 11, 1)))


def test_psnr_of_equal_images_is_infinite():
    rng = np.random.default_rng(1)
    images = rng.random((3, 4, 4, 1))
    assert (metrics.psnr(images, images) == np.inf).all()


@pytest.mark.parametrize(
    ("images", "reference", "said"),
    [
        (
            np.zeros((2, 4, 4, 1)),
            np.zeros((2, 4, 4, 3)),
            r"reference has shape .*, expected \(2, 4, 4, 1\)",
        ),
        (np.zeros((4, 4, 1)), np.zeros((4, 4, 1)), "n, height, width, channels"),
        (np.zeros((2, 4, 4, 1), "uint8"), np.zeros((2, 4, 4, 1)), "uint8.*must be float"),
    ],
)
def test_psnr_refuses_images_of_different_shapes_or_ranges(images, reference, said):
    with pytest.raises(ArgumentError, match=said):
        metrics.psnr(images, reference)


@pytest.mark.parametrize("data_range", [0, -1, np.nan, "1", None])
def test_psnr_refuses_a_range_that_is_none(data_range):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="data_range"):
        metrics.psnr(np.zeros((1, 2, 2, 1)), np.ones((1, 2, 2, 1)), data_range)


# ssim


def test_ssim_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(1)
    clean = rng.random((3, 16, 12, 3))
    noisy = np.clip(clean + 0.2 * rng.standard_normal(clean.shape), 0, 1)
    expected = [
        np.mean(
            [
                structural_similarity(
                    a[..., c],
                    b[..., c],
                    data_range=1.0,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
                for c in range(3)
            ]
        )
        for a, b in zip(noisy, clean, strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(noisy, clean), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.ssim(255 * noisy, 255 * clean, 255), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.ssim(clean, clean), 1)


def test_ssim_refuses_images_below_its_window_and_of_two_shapes():
    images = np.zeros((2, 10, 20, 1))
    with pytest.raises(ArgumentError, match="smaller than the 11 x 11 window"):
        metrics.ssim(images, images)
    with pytest.raises(ArgumentError, match="reference has shape"):
        metrics.ssim(images, images[:1])


# frechet_distance


@pytest.mark.parametrize(("n", "dim"), [(500, 6), (40, 64), (30, 1)])
def test_the_frechet_distance_is_that_by_the_matrix_root_of_scipy(n, dim):
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a = rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim))
    b = rng.standard_normal((n + 5, dim)) + 0.3
    of_a, of_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    # Fewer vectors than numbers leave no root that is sure: a little is added, as is usual.
    small = 1e-9 * np.eye(dim) if n < dim else 0
    root = sqrtm((of_a + small) @ (of_b + small)).real
    gap = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    expected = gap + np.trace(of_a + of_b - 2 * root)
    found = metrics.frechet_distance(a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-6 if n > dim else 1e-3)


def test_the_frechet_distance_of_a_set_to_itself_is_0_and_to_a_moved_one_the_square():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 8)).astype("float32")
    assert metrics.frechet_distance(x, x) < 1e-9
    np.testing.assert_allclose(metrics.frechet_distance(x, x + 2), 8 * 4, rtol=1e-5)


def test_the_frechet_distance_refuses_other_widths_and_single_vectors():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 3))
    with pytest.raises(ArgumentError, match=r"features_b must be an array \(n, 3\)"):
        metrics.frechet_distance(x, x[:, :2])
    with pytest.raises(ArgumentError, match="features_a .* of 2 rows or more"):
        metrics.frechet_distance(x[:1], x)


# retrieval


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: f"{case[0]}-{case[1]}")
def test_retrieval_agrees_with_pytorch_metric_learning(case):
    metric, alone = case
    gallery = () if alone else (GALLERY, GALLERY_LABELS)
    scores = metrics.retrieval(QUERIES, QUERY_LABELS, *gallery, metric=metric)
    found = [scores[key] for key in ("recall@1", "r_precision", "map@r", "mrr")]
    np.testing.assert_allclose(found, REFERENCE[case], rtol=1e-5)


def test_scores_are_those_worked_out_by_hand():
    gallery, labels = np.array([[1.0], [2], [3], [4], [5]]), np.array([1, 0, 0, 1, 0])
    scores = metrics.retrieval([[0.0]], [0], gallery, labels, "euclidean", ks=(1, 2, 4))
    expected = {
        **{"recall@1": 0, "recall@2": 1, "recall@4": 1},
        **{"precision@1": 0, "precision@2": 1 / 2, "precision@4": 2 / 4},
        **{"r_precision": 2 / 3, "map@r": (1 / 2 + 2 / 3) / 3, "mrr": 1 / 2, "left_out": 0},
    }
    assert scores == pytest.approx(expected)


def test_the_first_hit_may_lie_deeper_than_any_other_score_looks():
    gallery = np.arange(1.0, 101)[:, None]
    labels = np.array([1] * 70 + [0] + [1] * 29)
    scores = metrics.retrieval([[0.0]], [0], gallery, labels, "euclidean", ks=(1,))
    assert scores["mrr"] == 1 / 71 and scores["r_precision"] == 0


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_ties_are_broken_by_position_wherever_they_lie(metric):
    rng = np.random.default_rng(1)
    x, labels = rng.integers(0, 3, (300, 2)) * 1.0, rng.integers(0, 40, 300)
    near = np.abs(x[:, None] - x[None])
    near = near.sum(-1) if metric == "manhattan" else np.sqrt((near**2).sum(-1))
    np.fill_diagonal(near, np.inf)
    order = near.argsort(axis=1, kind="stable")[:, :-1]
    hits = labels[order] == labels[:, None]
    counts = hits.sum(axis=1)
    found = metrics.retrieval(x, labels, metric=metric, ks=(1, 7), per_query=True)
    some = counts > 0
    np.testing.assert_array_equal(found["precision@7"][some], hits[some, :7].mean(axis=1))
    np.testing.assert_allclose(found["mrr"][some], 1 / (1 + hits[some].argmax(axis=1)))
    at_r = [row[:n].mean() for row, n in zip(hits[some], counts[some], strict=True)]
    np.testing.assert_allclose(found["r_precision"][some], at_r)


def test_collapsed_embeddings_get_no_credit_for_ties():
    labels = np.array([1] * 99 + [0])
    scores = metrics.retrieval(np.ones((1, 2)), [0], np.ones((100, 2)), labels, ks=(1,))
    assert scores["recall@1"] == 0 and scores["mrr"] == 1 / 100


def test_equal_distances_are_ordered_by_position():
    gallery = np.ones((1000, 2))
    for first in (0, 1):
        labels = np.array([first, 1 - first] * 500)
        scores = metrics.retrieval(np.ones((1, 2)), [0], gallery, labels, ks=(1, 3))
        assert scores["recall@1"] == 1 - first and scores["precision@3"] == pytest.approx(
            (2 - first) / 3
        )


def test_a_class_of_one_image_is_left_out_and_counted():
    rng = np.random.default_rng(1)
    labels = np.array([0, 0, 1, 2, 2, 3])
    scores = metrics.retrieval(rng.standard_normal((6, 3)), labels, ks=(1,), per_query=True)
    assert scores["left_out"] == 2
    for key in ("recall@1", "precision@1", "r_precision", "map@r", "mrr"):
        np.testing.assert_array_equal(np.isnan(scores[key]), [0, 0, 1, 0, 0, 1])


def test_means_are_over_the_scores_of_each_query():
    given = QUERIES, QUERY_LABELS, GALLERY, GALLERY_LABELS
    means, each = metrics.retrieval(*given), metrics.retrieval(*given, per_query=True)
    for key in set(means) - {"left_out"}:
        assert each[key].shape == (20,) and means[key] == np.nanmean(each[key])


def test_the_size_of_a_block_does_not_matter(monkeypatch):
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((3000, 3)), rng.integers(0, 7, 3000)
    whole = metrics.retrieval(x, labels, per_query=True)
    one = metrics.retrieval(x[:1], labels[:1], x[1:], labels[1:], per_query=True)
    for key in ("precision@10", "map@r", "mrr"):
        np.testing.assert_allclose(whole[key][0], one[key][0], rtol=1e-12)
    monkeypatch.setattr(metrics, "_BLOCK", 1)
    for key, values in metrics.retrieval(x, labels, per_query=True).items():
        np.testing.assert_array_equal(values, whole[key])


def hard_vectors(kind):
    """Draws vectors whose distances float32 tells apart badly, or not at all."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((240, 16))
    centers = np.repeat(x[:8], 30, axis=0)
    return {
        "clusters": centers + 1e-3 * x,
        "tight clusters": centers + 1e-8 * x,
        "far from zero": x + 1e6,
        "one far vector": x * np.where(np.arange(240) == 7, 1e4, 1)[:, None],
        "of all sizes": x * 10.0 ** rng.integers(-20, 20, (240, 1)),
        "tiny": x * 1e-200,
        "huge": x * 1e200,
        "one dimension": x[:, :1],
    }[kind]


HARD = "clusters, tight clusters, far from zero, one far vector, of all sizes, tiny, huge".split(
    ", "
)


@pytest.mark.parametrize("kind", [*HARD, "one dimension"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "manhattan"])
@pytest.mark.parametrize("classes", [2, 200])
def test_scores_of_hard_vectors_equal_those_by_sorting_all_distances(kind, metric, classes):
    x = hard_vectors(kind)
    labels = np.random.default_rng(1).integers(0, classes, len(x))
    distances = np.stack([metrics.pair_distances(x[[n] * len(x)], x, metric) for n in range(240)])
    np.fill_diagonal(distances, np.inf)
    hits = labels[distances.argsort(axis=1, kind="stable")[:, :-1]] == labels[:, None]
    counts = hits.sum(axis=1)
    found = metrics.retrieval(x, labels, metric=metric, ks=(1, 9), per_query=True)
    some = counts > 0
    np.testing.assert_array_equal(found["precision@9"][some], hits[some, :9].mean(axis=1))
    np.testing.assert_array_equal(found["mrr"][some], 1 / (1 + hits[some].argmax(axis=1)))
    at_r = [row[:n].mean() for row, n in zip(hits[some], counts[some], strict=True)]
    np.testing.assert_allclose(found["r_precision"][some], at_r, rtol=1e-12)


@pytest.mark.parametrize("given_up", [False, True])
def test_float32_is_given_up_where_it_decides_too_little(given_up, monkeypatch):
    used, bounds = [], metrics._distances.Bounds

    def noted(*args):
        used.append(args[3:])
        return bounds(*args)

    monkeypatch.setattr(metrics._distances, "Bounds", noted)
    x = hard_vectors("tight clusters" if given_up else "one far vector")
    metrics.retrieval(x, np.arange(len(x)) // 2, metric="euclidean", ks=(1,))
    assert used == [("float32",), ()][: 1 + given_up]


def test_labels_may_be_strings():
    names = np.array(list("abcde"))
    assert metrics.retrieval(QUERIES, names[QUERY_LABELS]) == metrics.retrieval(
        QUERIES, QUERY_LABELS
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query_labels": np.zeros(19)}, r"query_labels has shape \(19,\), expected \(20,\)"),
        ({"gallery_labels": None}, r"gallery_labels has shape \(\), expected \(30,\)"),
        ({"gallery": None}, "gallery_labels needs gallery"),
        ({"gallery": GALLERY[:, :3]}, r"gallery must be an array \(n, 4\)"),
        ({"queries": np.full((20, 4), np.nan)}, "queries holds NaN"),
        ({"gallery": GALLERY * 0}, "gallery holds zero vectors.* 30 of 30 rows"),
        ({"metric": "l2"}, "metric='l2'.*'euclidean', 'manhattan', 'cosine'"),
        ({"ks": (0,)}, "each of ks=0"),
        ({"ks": (31,)}, "each of ks=31.* 1 to 30"),
        ({"ks": 31}, "each of ks=31.* 1 to 30"),
        ({"query_labels": np.full(20, 9)}, "No query has another image of its class"),
    ],
)
def test_retrieval_refuses_by_name(change, said):
    given = {
        "queries": QUERIES,
        "query_labels": QUERY_LABELS,
        "gallery": GALLERY,
        "gallery_labels": GALLERY_LABELS,
    }
    with pytest.raises(ArgumentError, match=said):
        metrics.retrieval(**{**given, **change})


# retrieval with groups


def grouped_case(seed):
    """Draws vectors with many ties, and labels and groups of a few values; half without gallery."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(20, 60, 2)
    queries, gallery = (rng.integers(1, 5, (count, 3)).astype("float64") for count in (n, m))
    labels = [rng.integers(0, 6, count) for count in (n, m)]
    groups = [rng.integers(0, rng.integers(4, 15), count) for count in (n, m)]
    if seed % 2:
        return queries, labels[0], None, None, (groups[0], None)
    if seed % 4:
        groups = [np.char.add("session ", group.astype(str)) for group in groups]
    return queries, labels[0], gallery, labels[1], tuple(groups)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])  # of cosine ties are not exact
@pytest.mark.parametrize("seed", range(12))
def test_scores_with_groups_equal_those_by_sorting_all_distances(seed, metric):
    *given, groups = grouped_case(seed)
    found = metrics.retrieval(
        *given,
        metric,
        ks=(1, 4),
        per_query=True,
        query_groups=groups[0],
        gallery_groups=groups[1],
    )
    expected = retrieval_oracle.retrieval(*given, metric, (1, 4), groups)
    left_out = found.pop("left_out")
    assert left_out == np.isnan(expected["mrr"]).sum() and found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-12)


def test_cosine_scores_with_groups_equal_those_by_sorting_all_distances():
    rng = np.random.default_rng(0)
    x, labels, sessions = rng.standard_normal((90, 5)), rng.integers(0, 5, 90), np.arange(90) // 6
    found = metrics.retrieval(x, labels, per_query=True, query_groups=sessions)
    expected = retrieval_oracle.retrieval(
        x, labels, None, None, "cosine", (1, 10), (sessions, None)
    )
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-12)


def test_groups_of_one_image_each_change_no_score():
    own = np.arange(20)
    assert metrics.retrieval(QUERIES, QUERY_LABELS, query_groups=own) == metrics.retrieval(
        QUERIES, QUERY_LABELS
    )


def test_groups_that_the_gallery_does_not_have_change_no_score():
    given = QUERIES, QUERY_LABELS, GALLERY, GALLERY_LABELS
    groups = {"query_groups": np.arange(20), "gallery_groups": np.arange(100, 130)}
    assert metrics.retrieval(*given, **groups) == metrics.retrieval(*given)


def test_only_relevant_vectors_outside_of_the_group_count_for_r():
    gallery, labels = np.array([[1.0], [2], [3], [4]]), [0, 1, 0, 0]
    groups = {"query_groups": ["a"], "gallery_groups": ["a", "b", "b", "b"]}
    scores = metrics.retrieval([[0.0]], [0], gallery, labels, "euclidean", ks=(1,), **groups)
    # Ranks: 2 (no hit), 3, 4 (hits), and R is 2.
    assert (scores["r_precision"], scores["map@r"], scores["mrr"]) == (1 / 2, 1 / 4, 1 / 2)


def test_a_query_whose_relevant_vectors_are_all_in_its_group_is_left_out():
    x, labels, sessions = np.arange(6.0)[:, None], [0, 0, 1, 1, 1, 1], [7, 7, 1, 1, 2, 2]
    scores = metrics.retrieval(
        x, labels, metric="euclidean", ks=(1,), per_query=True, query_groups=sessions
    )
    assert scores["left_out"] == 2
    assert np.isnan(scores["recall@1"]).tolist() == [True, True, False, False, False, False]


def test_the_size_of_a_block_does_not_matter_with_groups(monkeypatch):
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((400, 3)), rng.integers(0, 7, 400)
    groups = {"query_groups": np.arange(400) // 9, "per_query": True}
    whole = metrics.retrieval(x, labels, **groups)
    monkeypatch.setattr(metrics, "_BLOCK", 0.01)
    for key, values in metrics.retrieval(x, labels, **groups).items():
        np.testing.assert_array_equal(values, whole[key])


def test_a_deep_first_hit_is_ranked_without_the_group_of_the_query():
    gallery = np.arange(1.0, 101)[:, None]
    labels = np.array([0] * 10 + [1] * 60 + [0] + [1] * 29)
    groups = {"query_groups": [1], "gallery_groups": np.arange(100) < 30}
    scores = metrics.retrieval([[0.0]], [0], gallery, labels, "euclidean", ks=(1,), **groups)
    assert scores["mrr"] == 1 / 41


def test_more_neighbors_than_remain_outside_of_a_group_are_refused():
    x, labels, sessions = np.arange(8.0)[:, None], [0, 1] * 4, [5] * 5 + [6] * 3
    with pytest.raises(ArgumentError, match="each of ks=4.*query 0 can find only 3 .* 1 to 3"):
        metrics.retrieval(x, labels, metric="euclidean", ks=(1, 4), query_groups=sessions)


def test_a_query_that_is_left_out_does_not_limit_ks():
    x, labels = np.arange(8.0)[:, None], [9, 0, 0, 0, 0, 0, 0, 9]
    sessions = [7, 1, 2, 3, 4, 5, 6, 7]  # the first and the last query find 6 vectors, not 7
    scores = metrics.retrieval(x, labels, metric="euclidean", ks=(7,), query_groups=sessions)
    assert scores["left_out"] == 2


def test_unsigned_groups_of_64_bits_are_compared_exactly_with_signed_ones():
    x, labels = np.array([[0.0], [1.0], [2.0]]), [0, 0, 0]
    groups = np.array([2**60, 2**60 + 1, 5], "uint64")
    scores = metrics.retrieval(
        [[0.0]], [0], x, labels, "euclidean", (2,), query_groups=[2**60], gallery_groups=groups
    )
    assert scores["precision@2"] == 1.0  # float64 would leave out two vectors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query_groups": None}, "gallery_groups is given without query_groups: pass both"),
        ({"gallery_groups": None}, "query_groups is given without gallery_groups: pass both"),
        ({"gallery": None, "gallery_labels": None}, "gallery_groups needs a gallery: pass only"),
        ({"query_groups": np.zeros(19, int)}, r"query_groups has shape \(19,\), expected \(20,\)"),
        ({"gallery_groups": np.zeros(3, int)}, r"gallery_groups has shape \(3,\), expected"),
        ({"query_groups": [None] * 20}, "query_groups holds no label .* 20 of 20 rows"),
        ({"query_groups": ["0"] * 20}, r"query_groups \(<U1\) and gallery_groups \(int64\) cannot"),
        (
            {"query_groups": np.full(20, 1)},
            "No query .* in the gallery outside of its group: check the labels and groups",
        ),
    ],
)
def test_retrieval_refuses_groups_by_name(change, said):
    given = {
        "queries": QUERIES,
        "query_labels": QUERY_LABELS,
        "gallery": GALLERY,
        "gallery_labels": GALLERY_LABELS,
        "query_groups": np.zeros(20, int),
        "gallery_groups": np.ones(30, int),
    }
    with pytest.raises((ArgumentError, ArgumentTypeError), match=said):
        metrics.retrieval(**{**given, **change})


# interval


def test_the_interval_of_a_mean_is_that_of_the_normal_law_for_many_values():
    rng = np.random.default_rng(1)
    values = rng.standard_normal(2000)
    low, high = metrics.bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.01)
    assert (
        metrics.bootstrap_interval(values)
        == (low, high)
        != metrics.bootstrap_interval(values, seed=1)
    )


def test_an_interval_of_a_higher_level_is_that_of_the_normal_law_at_this_level():
    values = np.random.default_rng(1).standard_normal(2000)
    low, high = metrics.bootstrap_interval(values, resamples=10_000, level=0.99)
    half = 2.576 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.01)


@pytest.mark.parametrize("level", [0.05, 95, -1.0])
def test_a_level_that_is_that_of_a_test_or_a_percentage_is_refused(level):
    with pytest.raises(ArgumentError, match=f"level={level} is out of range"):
        metrics.bootstrap_interval([0.0, 1.0], level=level)


def test_the_interval_leaves_out_what_is_not_a_number():
    rng = np.random.default_rng(1)
    values = rng.random(50)
    assert metrics.bootstrap_interval([*values, np.nan]) == metrics.bootstrap_interval(values)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], np.zeros((3, 2))])
def test_an_interval_needs_two_values(values):
    with pytest.raises(ArgumentError, match="values holds .* two or more"):
        metrics.bootstrap_interval(values)


# pair_distances


@pytest.mark.parametrize("metric", METRICS)
def test_the_distance_of_each_pair_is_that_of_all_pairs(metric):
    all_of_them = pairwise_distances(QUERIES, GALLERY[:20], metric=metric)
    found = metrics.pair_distances(QUERIES, GALLERY[:20], metric)
    np.testing.assert_allclose(found, np.diag(all_of_them), rtol=1e-12)
    assert metrics.pair_distances(QUERIES[:0], GALLERY[:0], metric).shape == (0,)


def test_pairs_of_unequal_shape_or_without_direction_are_refused():
    with pytest.raises(ArgumentError, match=r"right has shape \(30, 4\), expected \(20, 4\)"):
        metrics.pair_distances(QUERIES, GALLERY)
    with pytest.raises(ArgumentError, match="right"):
        metrics.pair_distances(QUERIES, 0 * QUERIES)
    assert metrics.pair_distances(QUERIES, 0 * QUERIES, "euclidean").min() > 0


def test_distances_of_pairs_are_those_of_search_to_the_bit():
    for metric in METRICS:
        distances, indices = NeighborIndex(metric).fit(GALLERY).query(QUERIES, 30)
        for place in (0, 7, 29):
            found = metrics.pair_distances(QUERIES, GALLERY[indices[:, place]], metric)
            np.testing.assert_array_equal(found, distances[:, place])


# verification


def test_results_are_shown_in_one_line():
    found = metrics.verification([0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 0, 1, 0])
    pairs = "3 positive and 2 negative pairs"
    assert repr(found) == (
        f"<Verification of {pairs}: auc=0.8333, eer=0.3333 at threshold {found.eer_threshold:.4g}>"
    )
    x = np.eye(3)
    shown = repr(metrics.candidate_accuracy(x, x, [[0, 1], [1, 2], [2, 0]], k=1))
    assert shown == "<Candidates of 3 queries: accuracy=1, 95 % interval 0.4385 to 1>"


def pairs_of(n=500, apart=1.0):
    rng = np.random.default_rng(1)
    same = rng.integers(0, 2, n)
    return rng.standard_normal(n) + apart * (1 - same), same


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    distances, same = pairs_of()
    found = metrics.verification(distances, same)
    assert found.auc == pytest.approx(roc_auc_score(same, -distances))
    assert found.fpr[0] == found.tpr[0] == 0 and found.fpr[-1] == found.tpr[-1] == 1


def test_rates_are_those_worked_out_by_hand():
    found = metrics.verification([0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 0, 1, 0])
    assert found.error_rates(0.25) == pytest.approx({"far": 0, "frr": 1 / 3, "accuracy": 5 / 6})
    assert found.error_rates(0.3) == pytest.approx({"far": 1 / 2, "frr": 1 / 3, "accuracy": 7 / 12})
    assert found.error_rates(0.4)["frr"] == found.error_rates(99)["frr"] == 0
    assert found.error_rates(-5) == {"far": 0, "frr": 1, "accuracy": 1 / 2}
    assert found.eer == pytest.approx(1 / 3) and found.auc == pytest.approx(5 / 6)


def test_rates_at_any_threshold_are_counts():
    rng = np.random.default_rng(1)
    distances, same = pairs_of()
    found = metrics.verification(distances, same)
    for threshold in rng.uniform(-2, 3, 50):
        rates = found.error_rates(threshold)
        accepted = distances <= threshold
        assert rates["far"] == pytest.approx(accepted[same == 0].mean())
        assert rates["frr"] == pytest.approx(1 - accepted[same == 1].mean())


@pytest.mark.parametrize("far", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_a_threshold_accepts_no_more_negative_pairs_than_allowed_and_is_the_largest_such(far):
    distances, same = pairs_of()
    found = metrics.verification(distances, same)
    threshold = found.threshold(far)
    assert found.error_rates(threshold)["far"] <= far
    if far < 1:
        assert found.error_rates(np.nextafter(threshold, np.inf))["far"] > far


def test_at_the_equal_error_rate_both_errors_are_equal():
    distances, same = pairs_of(20_000)
    found = metrics.verification(distances, same)
    rates = found.error_rates(found.eer_threshold)
    assert rates["far"] == pytest.approx(found.eer, abs=1e-3)
    assert rates["frr"] == pytest.approx(found.eer, abs=1e-3)


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ([0.1, 0.101, 0.102, 0.103, 0.104, *[0.9] * 5], np.linspace(0.2, 0.8, 100)),
        (np.linspace(0.2, 0.8, 100), [0.1] * 5 + [0.9] * 5),
    ],
)
def test_the_threshold_of_the_equal_error_rate_lies_where_the_errors_are_equal(positive, negative):
    same = np.repeat([1, 0], [len(positive), len(negative)])
    found = metrics.verification(np.concatenate([positive, negative]), same)
    rates = found.error_rates(found.eer_threshold)
    assert found.eer == pytest.approx(0.5)
    assert abs(rates["far"] - rates["frr"]) < 0.02


def test_at_the_threshold_of_equal_errors_rates_are_compared_as_fractions():
    for rejected in range(1, 10):
        positive = [*np.arange(10 - rejected) / 20, *np.arange(rejected) + 20.0]
        negative = [*np.arange(rejected) + 1.0, *np.arange(10 - rejected) + 40.0]
        found = metrics.verification(positive + negative, [1] * 10 + [0] * 10)
        assert found.eer_threshold == rejected
        rates = found.error_rates(found.eer_threshold)
        assert rates["far"] == rates["frr"] == rejected / 10


def test_a_share_that_is_a_whole_number_of_pairs_is_used_up():
    negative = np.arange(1.0, 101)
    found = metrics.verification([0.0, *negative], [1] + [0] * 100)
    for count in range(101):
        assert found.error_rates(found.threshold(count / 100))["far"] == count / 100


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64"])
def test_whole_distances_are_those_of_floats(dtype):
    distances = np.array([0, 1, 1, 0, 1], dtype=dtype)
    same = [1, 1, 0, 1, 0]
    assert metrics.verification(distances, same).auc == pytest.approx(5 / 6)


def test_perfect_and_worthless_distances_have_the_rates_they_deserve():
    same = np.array([1, 1, 0, 0])
    perfect = metrics.verification([0, 0.1, 1, 2], same)
    assert (perfect.auc, perfect.eer) == (1, 0)
    assert perfect.error_rates(perfect.eer_threshold)["accuracy"] == 1
    constant = metrics.verification([1, 1, 1, 1], same)
    assert (constant.auc, constant.eer) == (0.5, 0.5)


def test_the_share_of_positive_pairs_changes_no_rate():
    distances, same = pairs_of()
    often = np.repeat(np.arange(500), np.where(same == 1, 3, 1))
    one, other = (
        metrics.verification(distances, same),
        metrics.verification(distances[often], same[often]),
    )
    assert one.eer == pytest.approx(other.eer) and one.auc == pytest.approx(other.auc)


@pytest.mark.parametrize(
    ("distances", "same", "said"),
    [
        ([0.1, 0.2], [1], "same has shape .1,., expected .2,."),
        ([0.1, 0.2], [1, 1], "same holds the values .*1"),
        ([0.1, 0.2], [0.5, 1], "same holds the values"),
        ([0.1, 0.2], [None, 1], "same holds the values None, 1, .* missing"),
        ([0.1, 0.2], ["yes", "no"], "same holds the values 'yes', 'no'"),
        ([0.1, np.nan], [0, 1], "distances holds NaN or infinity in 1 of 2 rows: 1"),
        ([], [], "same holds the values"),
    ],
)
def test_verification_refuses_by_name(distances, same, said):
    with pytest.raises(ArgumentError, match=said):
        metrics.verification(distances, same)


@pytest.mark.parametrize("far", [-0.1, 1.1, np.nan, "low", None])
def test_an_error_rate_that_is_none_is_refused(far):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="far"):
        metrics.verification([0.1, 0.2], [1, 0]).threshold(far)


def test_scores_of_two_bell_curves_are_their_posterior():
    rng = np.random.default_rng(1)
    # Positive pairs around 1, negative ones around 3, both with standard deviation 0.8; 3 to 1.
    distances = np.concatenate([rng.normal(1, 0.8, 60_000), rng.normal(3, 0.8, 20_000)])
    found = metrics.verification(distances, np.repeat([1, 0], [60_000, 20_000]))
    asked = np.array([[-1.0, 1.0], [2.0, 3.5]])
    posterior = 1 / (1 + np.exp((asked - 2) * (3 - 1) / 0.8**2))
    np.testing.assert_allclose(found.score(asked), posterior, atol=0.01)


@pytest.mark.parametrize("distances", [["near"], [[1], [2, 3]], [1j], [None]])
def test_only_real_distances_have_scores(distances):
    found = metrics.verification([1, 2, 3, 4], [1, 1, 0, 0])
    with pytest.raises((ArgumentError, ArgumentTypeError), match="distances"):
        found.score(distances)


def test_scores_are_finite_where_a_threshold_separates_all_pairs():
    found = metrics.verification([0, 0.1, 1, 2], [1, 1, 0, 0])
    scores = found.score([0, 0.5, 2, 1e9])
    assert (np.diff(scores) <= 0).all() and scores[0] > 0.5 > scores[2] and scores[3] == 0
    with pytest.raises(ArgumentError, match="distances holds NaN or infinity in 1 of 2 rows: 1"):
        found.score([0.1, np.nan])


# all pairs


@pytest.mark.parametrize("metric", METRICS)
def test_all_pairs_agrees_with_verification_over_all_pairs(metric, monkeypatch):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 300)
    x = rng.standard_normal((300, 5)) + 1.2 * np.eye(5)[labels]
    own, other = np.triu_indices(300, 1)
    distances = pairwise_distances(x, metric=metric)[own, other]
    exact = metrics.verification(distances, labels[own] == labels[other])
    found = metrics.pairwise_verification(x, labels, metric, resamples=50)
    assert found["auc"] == pytest.approx(exact.auc, abs=1e-4)
    assert found["eer"] == pytest.approx(exact.eer, abs=1e-3)
    assert (found["positive_pairs"], found["negative_pairs"]) == (
        len(exact.positive),
        len(exact.negative),
    )
    monkeypatch.setattr(metrics, "_BLOCK", 1e-9)  # one image at a time
    assert metrics.pairwise_verification(x, labels, metric, resamples=50) == found


@pytest.mark.parametrize("far", [10, 1e3, 1e5, 1e30, 1e300])
@pytest.mark.parametrize("bins", [16, 2**14])
def test_one_far_image_does_not_change_the_figures_of_all_pairs(far, bins, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)) * 0.8 + np.repeat(rng.normal(size=(5, 4)), 10, axis=0)
    x, labels = np.append(x, [[far] * 4], axis=0), np.append(np.repeat(range(5), 10), 99)
    own, other = np.triu_indices(51, 1)
    distances = metrics.pair_distances(x[own], x[other], "euclidean")
    exact = metrics.verification(distances, labels[own] == labels[other])
    found = metrics.pairwise_verification(x, labels, "euclidean", resamples=20)
    assert (found["auc"], found["eer"]) == (exact.auc, exact.eer)
    assert found["auc_interval"][0] < found["auc"] < found["auc_interval"][1] + 1e-9
    monkeypatch.setattr(metrics, "_EXACT_PAIRS", 600)  # of 1,275: the others by bins
    monkeypatch.setattr(metrics, "_BINS", bins)
    by_bins = metrics.pairwise_verification(x, labels, "euclidean", resamples=1)
    assert by_bins["auc"] == pytest.approx(exact.auc, abs=2 / bins + 0.005)
    assert by_bins["eer"] == pytest.approx(exact.eer, abs=2 / bins + 0.02)


def test_intervals_over_images_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)

    def draw(n):
        labels = rng.integers(0, 2, n)
        return rng.standard_normal((n, 2)) + 2 * labels[:, None], labels

    truth = metrics.pairwise_verification(*draw(4000), resamples=1, metric="euclidean")
    held = {"auc": 0, "eer": 0}
    for _ in range(60):
        found = metrics.pairwise_verification(*draw(80), resamples=100, metric="euclidean")
        for key in held:
            low, high = found[f"{key}_interval"]
            held[key] += low <= truth[key] <= high
    assert all(50 <= count for count in held.values()), held  # 57 of 60 expected


def test_a_pair_of_all_pairs_is_counted_once_and_none_with_itself():
    given = [[0.0], [1.0], [5.0]], ["a", "a", "b"], "euclidean"
    found = metrics.pairwise_verification(*given, resamples=20)
    assert (found["positive_pairs"], found["negative_pairs"]) == (1, 2)
    assert (found["auc"], found["eer"]) == (1, 0)
    lost = metrics.pairwise_verification(*given, resamples=1, seed=1)
    # The one resample has no positive or no negative pair.
    assert np.isnan(lost["eer_interval"]).all()
    tiny = metrics.pairwise_verification(
        [[0], [1e-310], [5e-310]], ["a", "a", "b"], "manhattan", resamples=20
    )
    assert (tiny["auc"], tiny["eer"]) == (1, 0)
    at_one_place = metrics.pairwise_verification(np.ones((4, 2)), [0, 0, 1, 1], resamples=20)
    assert (at_one_place["auc"], at_one_place["eer"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [0, 0, 0]}, "labels make 3 positive and 0 negative pairs"),
        ({"labels": [0, 1, 2]}, "labels make 0 positive and 3 negative pairs"),
        ({"labels": [0, 1]}, "labels has shape"),
        ({"metric": "dot"}, "metric='dot'"),
        ({"metric": "cosine"}, "embeddings holds zero vectors.*: 0"),
        ({"embeddings": [[1.0]]}, "embeddings must be an array"),
        ({"resamples": 0}, "resamples=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_all_pairs_refuses_by_name(change, said):
    given = {"embeddings": [[0.0], [1.0], [2.0]], "labels": [0, 0, 1]}
    given |= {"metric": "euclidean", **change}
    with pytest.raises(ArgumentError, match=said):
        metrics.pairwise_verification(**given)


def test_candidates_are_ranked_and_ties_are_lost():
    left = np.array([[0.0], [10.0], [20.0]])
    right = np.array([[1.0], [11.0], [1.0]])
    # Pool 0: its own at 1, and another just as near; 1: its own is nearest; 2: own last.
    pools = np.array([[0, 2], [0, 1], [1, 2]])
    found = metrics.candidate_accuracy(left, right, pools, k=1, metric="euclidean")
    assert found.ranks.tolist() == [2, 1, 2]
    assert found.accuracy == 1 / 3
    # Wilson's interval of 1 of 3, by hand: center (p + z2 / 2n) / (1 + z2 / n).
    z2 = 1.959964**2
    center, half = (1 / 3 + z2 / 6) / (1 + z2 / 3), np.sqrt(z2 * (2 / 27 + z2 / 36)) / (1 + z2 / 3)
    np.testing.assert_allclose(
        [found.ci_low, found.ci_high], [center - half, center + half], rtol=1e-5
    )


@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "cosine"])
def test_the_accuracy_of_candidates_agrees_with_a_loop(metric):
    rng = np.random.default_rng(0)
    left = rng.normal(size=(50, 6))
    right = left + 1.5 * rng.normal(size=(50, 6))
    pools = np.stack([np.append(i, rng.choice(np.delete(np.arange(50), i), 4)) for i in range(50)])
    ranks = []
    for i, pool in enumerate(pools):
        gaps = pairwise_distances(left[[i]], right[pool], metric=metric)[0]
        ranks.append(1 + (gaps[1:] <= gaps[0]).sum())
    found = metrics.candidate_accuracy(left, right, pools, metric=metric)
    assert found.ranks.tolist() == ranks
    assert found.accuracy == np.mean(np.array(ranks) <= 2)


def test_pools_of_several_lengths_are_refused():
    with pytest.raises(ArgumentError, match="pools cannot be converted to one array"):
        metrics.candidate_accuracy(np.eye(2), np.eye(2), [[0, 1], [1]])


# open_set_identification


def open_set_case(seed=0, kind=int):
    """Draws queries with many ties, of classes 0 to 9, and a gallery of classes 0 to 4."""
    rng = np.random.default_rng(seed)
    centers = rng.integers(3, 14, (10, 3))
    labels = rng.integers(0, 10, 80), rng.permutation(np.arange(25) % 5)
    queries, gallery = (centers[each] + rng.integers(-2, 3, (len(each), 3)) for each in labels)
    return queries, labels[0].astype(kind), gallery, labels[1].astype(kind)


def rates_by_counting(case, metric, threshold):
    """Returns the rates of `open_set_identification` at a threshold, query by query."""
    queries, labels, gallery, gallery_labels = case
    counts = dict.fromkeys(("known", "unknown", "hits", "alarms", "accepted"), 0)
    distances = float64_distances(gallery, queries, metric)
    for row, label in zip(distances, labels, strict=True):
        is_known = label in gallery_labels
        is_accepted = row.min() <= threshold
        counts["known" if is_known else "unknown"] += 1
        counts["accepted"] += is_accepted
        counts["alarms"] += is_accepted and not is_known
        counts["hits"] += is_accepted and gallery_labels[row.argmin()] == label
    wrong = counts["accepted"] - counts["hits"]
    return {
        "far": counts["alarms"] / counts["unknown"],
        "dir": counts["hits"] / counts["known"],
        "rejected": 1 - counts["accepted"] / len(labels),
        "error": wrong / counts["accepted"] if counts["accepted"] else np.nan,
    }


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
@pytest.mark.parametrize("kind", [int, str])
def test_open_set_rates_at_any_threshold_are_counts(metric, kind):
    case = open_set_case(kind=kind)
    found = metrics.open_set_identification(*case, metric=metric)
    for threshold in (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 99.0):
        expected = rates_by_counting(case, metric, threshold)
        assert found.rates(threshold) == pytest.approx(expected, nan_ok=True)


def test_the_open_set_curve_is_that_of_its_thresholds():
    case = open_set_case()
    found = metrics.open_set_identification(*case, metric="euclidean")
    assert found.thresholds[0] == -np.inf and found.far[0] == found.dir[0] == 0
    for place, threshold in enumerate(found.thresholds[1:], 1):
        expected = rates_by_counting(case, "euclidean", threshold)
        curve = {key: getattr(found, key)[place] for key in expected}
        assert curve == pytest.approx(expected)


def test_open_set_distances_are_those_of_the_search_to_the_bit():
    queries, labels, gallery, gallery_labels = open_set_case(1)
    found = metrics.open_set_identification(queries, labels, gallery, gallery_labels)
    distances = NeighborIndex("cosine").fit(gallery).query(queries, 1)[0][:, 0]
    np.testing.assert_array_equal(found.unknown, np.sort(distances[labels > 4]))
    np.testing.assert_array_equal(found.known, np.sort(distances[labels < 5]))


@pytest.mark.parametrize("far", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_the_open_set_threshold_is_the_largest_that_accepts_no_more_than_allowed(far):
    found = metrics.open_set_identification(*open_set_case(), metric="euclidean")
    threshold = found.threshold(far)
    assert found.rates(threshold)["far"] <= far
    if far < 1:
        assert found.rates(np.nextafter(threshold, np.inf))["far"] > far


@pytest.mark.parametrize("far", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_the_dir_at_a_far_is_the_largest_of_all_thresholds_that_keep_to_it(far):
    case = open_set_case()
    found = metrics.open_set_identification(*case, metric="euclidean")
    rates = [rates_by_counting(case, "euclidean", t) for t in found.thresholds]
    assert found.dir_at(far) == max(each["dir"] for each in rates if each["far"] <= far)


@pytest.mark.parametrize("far", [0.0, 0.1, 1.0])
def test_the_interval_of_the_dir_is_that_of_resampled_queries(far):
    queries, labels, gallery, names = open_set_case(2)
    queries = queries + 0.01 * np.random.default_rng(0).random(queries.shape)
    found = metrics.open_set_identification(queries, labels, gallery, names, "euclidean")
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(2000):
        known = rng.integers(0, len(found.known), len(found.known))
        unknown = np.sort(rng.choice(found.unknown, len(found.unknown)))
        limit = np.append(unknown, np.inf)[int(far * len(unknown))]
        shares.append((found.identified[known] & (found.known[known] < limit)).mean())
    expected = np.quantile(shares, (0.025, 0.975))
    np.testing.assert_allclose(found.dir_interval(far, resamples=20_000), expected, atol=0.04)


def test_the_seed_alone_decides_the_interval_of_the_dir():
    found = metrics.open_set_identification(*open_set_case(), metric="euclidean")
    intervals = [found.dir_interval(0.2, seed, resamples=20) for seed in (3, 3, 4)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_the_label_of_an_unknown_query_does_not_matter():
    queries, labels, gallery, gallery_labels = open_set_case()
    one, other = (
        metrics.open_set_identification(queries, changed, gallery, gallery_labels)
        for changed in (labels, np.where(labels > 4, -1, labels))
    )
    np.testing.assert_array_equal(one.dir, other.dir)


def test_the_result_of_an_open_set_is_shown_in_one_line():
    found = metrics.open_set_identification(*open_set_case(), metric="euclidean")
    rates = f"dir={found.dir_at(0.01):.4g} at far=0.01, {found.dir[-1]:.4g} at 1"
    queries = f"{len(found.known)} known and {len(found.unknown)} unknown queries"
    assert repr(found) == f"<OpenSetIdentification of {queries}: {rates}>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query_labels": [0, 0]}, "Every query has a label that is in gallery_labels"),
        ({"query_labels": [5, 6]}, "No query has a label that is in gallery_labels"),
        ({"query_labels": [5]}, r"query_labels has shape \(1,\), expected \(2,\)"),
        ({"gallery_labels": [0]}, r"gallery_labels has shape \(1,\), expected \(2,\)"),
        ({"gallery": [[1.0, 2.0]]}, r"gallery must be an array \(n, 1\)"),
        ({"metric": "cosine"}, "queries holds zero vectors"),
        ({"metric": "l2"}, "metric='l2'"),
        ({"queries": [[np.nan], [0.0]]}, "queries holds NaN"),
    ],
)
def test_open_set_identification_refuses_by_name(change, said):
    given = {"queries": [[0.0], [1.0]], "query_labels": [0, 7], "gallery": [[0.0], [2.0]]}
    given |= {"gallery_labels": [0, 1], "metric": "euclidean", **change}
    with pytest.raises(ArgumentError, match=said):
        metrics.open_set_identification(**given)


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("threshold", [1.1], "max_far=1.1"),
        ("dir_at", [-0.1], "max_far=-0.1"),
        ("dir_interval", ["low"], "max_far"),
        ("dir_interval", [0.1, -1], "seed=-1"),
        ("dir_interval", [0.1, 0, 0], "resamples=0"),
        ("rates", [np.nan], "threshold=nan"),
    ],
)
def test_methods_of_an_open_set_result_refuse_by_name(method, arguments, said):
    found = metrics.open_set_identification(*open_set_case())
    with pytest.raises((ArgumentError, ArgumentTypeError), match=said):
        getattr(found, method)(*arguments)


MASKED = np.ma.masked_array(np.eye(4), mask=np.eye(4) == 1)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("left", lambda: metrics.pair_distances(MASKED, np.eye(4))),
        ("queries", lambda: metrics.retrieval(MASKED, [0, 0, 1, 1])),
        ("distances", lambda: metrics.verification(MASKED[0], [0, 0, 1, 1])),
        ("same", lambda: metrics.verification(np.arange(4.0), MASKED[0])),
        ("values", lambda: metrics.bootstrap_interval(MASKED[0])),
        ("images", lambda: metrics.psnr(MASKED[None, ..., None], np.ones((1, 4, 4, 1)))),
    ],
)
def test_masked_entries_are_refused(name, use):
    with pytest.raises(ArgumentError, match=f"{name} has [14] masked entries. Leave these rows"):
        use()


def test_a_mask_that_hides_nothing_is_no_reason_to_refuse():
    x = np.ma.masked_array(np.eye(4), mask=False)
    assert metrics.pair_distances(x, np.eye(4)).tolist() == [0] * 4


def test_pools_without_their_own_candidate_are_refused():
    x = np.eye(3)
    with pytest.raises(ArgumentError, match="its own position zero times or more than once"):
        metrics.candidate_accuracy(x, x, [[0, 1], [0, 2], [2, 1]])
    with pytest.raises(ArgumentError, match="a position outside 0 to 2"):
        metrics.candidate_accuracy(x, x, [[0, 1], [1, 3], [2, 1]])
    with pytest.raises(
        ArgumentError, match="pools holds float64, expected integers: pass data.candidate_pools"
    ):
        metrics.candidate_accuracy(x, x, [[0.0, 1.0]] * 3)
    with pytest.raises(ArgumentError, match=r"right has shape \(2, 3\), expected \(3, 3\)"):
        metrics.candidate_accuracy(x, x[:2], [[0, 1]] * 3)


def test_the_overlap_of_neighbors_is_that_of_the_sets():
    rng = np.random.default_rng(0)
    a, b = (np.array([rng.permutation(12)[:5] for _ in range(40)]) for _ in range(2))
    expected = [len(set(one) & set(other)) / 5 for one, other in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.neighbor_overlap(a, b), expected)


def test_the_overlap_of_many_neighbors_needs_little_memory():
    rng = np.random.default_rng(0)
    a = np.array([rng.permutation(4000)[:2000] for _ in range(10)])
    b = np.array([rng.permutation(4000)[:2000] for _ in range(10)])
    tracemalloc.start()
    found = metrics.neighbor_overlap(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = [len(np.intersect1d(one, other)) / 2000 for one, other in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, expected)
    assert peak < 25e6  # 40e6 comparisons in all


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[1, 2]], [[1, 2, 3]], "indices_b has shape"),
        ([1, 2], [1, 2], "indices_a has shape"),
        ([[0.5]], [[1]], "indices_a has dtype float64"),
        (np.empty((2, 0), int), np.empty((2, 0), int), "one neighbor or more"),
    ],
)
def test_neighbors_that_have_no_overlap_are_refused(a, b, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        metrics.neighbor_overlap(a, b)


def test_active_dimensions_are_those_whose_means_vary():
    means = np.random.default_rng(0).normal(size=(500, 4)) * [1, 0.2, 0.05, 0] + [0, 5, 0, 5]
    assert metrics.active_dimensions(means).tolist() == [True, True, False, False]
    assert metrics.active_dimensions(means, 0.001).tolist() == [True, True, True, False]
    with pytest.raises(ArgumentError, match="means"):
        metrics.active_dimensions(means[:1])
    with pytest.raises(ArgumentError, match="min_variance=-1"):
        metrics.active_dimensions(means, -1)
