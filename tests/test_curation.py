import tracemalloc

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from kerasim import duplicates
from kerasim.curation import clusters, duplicate_groups, outlier_scores, suspect_labels
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.neighbors import METRICS


@pytest.fixture(scope="module")
def digits():
    """Pixels of the bundled digits, which are embeddings good enough for these tests."""
    found = load_digits()
    return found.data + 1e-3, found.target


@pytest.fixture
def groups():
    """Three groups of 40, 30 and 20 vectors, far from each other."""
    rng = np.random.default_rng(0)
    centers = 10 * np.eye(3)
    labels = np.repeat([0, 1, 2], [40, 30, 20])
    return centers[labels] + 0.1 * rng.standard_normal((90, 3)), labels


@pytest.mark.parametrize("metric", METRICS)
def test_a_vector_far_from_all_others_has_the_highest_score(metric, groups):
    x = np.concatenate([groups[0], [[-10.0, -10.0, 0.0]]])
    scores = outlier_scores(x, 5, metric)
    assert scores.argmax() == 90 and scores.shape == (91,) and scores.dtype == "float64"


def test_copies_of_an_outlier_are_outliers_if_there_are_no_more_than_k(groups):
    x = np.concatenate([groups[0], np.full((3, 3), -10.0)])
    assert set(np.argsort(outlier_scores(x, 3, "euclidean"))[-3:]) == {90, 91, 92}
    assert outlier_scores(x, 2, "euclidean")[90:].tolist() == [0, 0, 0]


def test_a_k_above_the_number_of_other_vectors_is_clipped_with_a_warning():
    with pytest.warns(UserWarning, match="k=10 is more than the 2 other vectors"):
        assert outlier_scores([[0.0], [1.0], [3.0]], 10, "euclidean").tolist() == [3, 2, 3]


def test_one_vector_has_no_outlier_score():
    with pytest.raises(ArgumentError, match="of 2 rows or more"):
        outlier_scores([[1.0]])


def test_flipped_labels_of_digits_are_found(digits):
    x, y = digits
    rng = np.random.default_rng(0)
    flipped = np.zeros(len(y), bool)
    flipped[rng.permutation(len(y))[:90]] = True
    given = np.where(flipped, (y + rng.integers(1, 10, len(y))) % 10, y)
    found = suspect_labels(x, given)
    assert average_precision_score(flipped, found.suspicion) > 0.9
    assert (found.suggested[flipped] == y[flipped]).mean() > 0.95
    # It is a probability: its mean is about the share of the labels that were flipped.
    assert found.suspicion.mean() == pytest.approx(0.05, abs=0.03)
    assert found.suspicion.min() >= 0 and found.suspicion.max() <= 1


def test_a_constant_share_of_the_votes_ranks_nothing():
    found = suspect_labels([[0.0], [1.0], [2.0], [3.0]], [1, 1, 1, 1], 2, "euclidean")
    assert found.suspicion.tolist() == [0, 0, 0, 0] and found.suggested.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("absent", [None, np.nan, pd.NA, ""])
def test_images_without_a_label_get_a_suggestion_and_do_not_vote(absent, groups):
    x, y = groups
    names = np.array(["cat", "dog", "owl"])[y].tolist()
    names[3], names[50] = absent, absent
    found = suspect_labels(x, names, 5, "euclidean")
    assert np.flatnonzero(np.isnan(found.suspicion)).tolist() == [3, 50]
    assert found.suggested[[3, 50]].tolist() == ["cat", "dog"]
    assert (found.suggested != "").all()


def test_labels_keep_their_type(groups):
    x, y = groups
    assert suspect_labels(x, y.astype("uint8")).suggested.dtype == "uint8"
    assert suspect_labels(x, np.array(["a", "b", "c"])[y]).suggested.dtype.kind == "U"


def test_copies_with_two_labels_are_suspect(groups):
    x, y = groups
    x[1], y[1] = x[0], 2
    found = suspect_labels(x, y, 5, "euclidean")
    assert found.suspicion.argmax() == 1 and found.suggested[1] == 0


def test_equal_vectors_vote_alike():
    found = suspect_labels(np.ones((10, 2)), [0] * 9 + [1], 5)
    assert found.suspicion.argmax() == 9 and set(found.suggested) == {0}


def test_too_few_labels_are_refused():
    with pytest.raises(ArgumentError, match="1 label is given: pass at least two"):
        suspect_labels(np.eye(3), ["cat", None, None])


def test_labels_of_another_number_or_kind_are_refused():
    with pytest.raises(ArgumentError, match="labels"):
        suspect_labels(np.eye(3), [0, 1])
    with pytest.raises(ArgumentTypeError, match="labels must be integers or strings"):
        suspect_labels(np.eye(3), [0.5, 1.5, 2.5])


@pytest.mark.parametrize("metric", METRICS)
def test_clusters_are_numbered_by_size(metric, groups):
    x, y = groups
    shuffled = np.random.default_rng(1).permutation(len(x))
    assert clusters(x[shuffled], 10, metric).tolist() == y[shuffled].tolist()


def test_vectors_in_no_cluster_have_the_number_minus_one():
    x = np.random.default_rng(0).uniform(size=(30, 2))
    assert set(clusters(x, 25, "euclidean")) == {-1}


def test_clusters_do_not_overflow(groups):
    assert clusters(groups[0] * 1e200, 10, "euclidean").tolist() == groups[1].tolist()


def test_fewer_vectors_than_a_cluster_are_refused():
    with pytest.raises(ArgumentError, match="hold 3 vectors, fewer than min_size=5"):
        clusters(np.eye(3), 5)


def test_the_vectors_passed_are_not_changed(groups):
    x = groups[0].copy()
    for metric in METRICS:
        clusters(x, 10, metric)
        suspect_labels(x, groups[1], 5, metric)
        outlier_scores(x, 5, metric)
    assert np.array_equal(x, groups[0])


def test_groups_join_chains_of_pairs_and_are_numbered_by_their_first_image():
    found = duplicate_groups([[5, 1], [3, 2], [6, 5], [3, 3]], 8)
    assert found.tolist() == [-1, 0, 1, 1, -1, 0, 0, -1]


def test_groups_of_copies_in_arrays():
    images = np.random.default_rng(0).random((4, 16, 16, 1))
    pairs = duplicates.find_duplicates(images[[0, 1, 0, 2, 1, 0]])
    assert duplicate_groups(pairs, 6).tolist() == [0, 1, 0, -1, 1, 0]


def test_no_pairs_are_no_groups():
    assert duplicate_groups(np.empty((0, 2), int), 3).tolist() == [-1, -1, -1]
    assert duplicate_groups([], 2).tolist() == [-1, -1]


@pytest.mark.parametrize(
    "pairs, said",
    [
        ([[0, 5]], "pairs hold positions from 0 to 5: expected 0 to 4"),
        ([[-1, 2]], "pairs hold positions from -1 to 2"),
        ([[0, 1, 2]], "pairs must be whole numbers"),
        ([[0.0, 1.0]], "pairs must be whole numbers"),
    ],
)
def test_pairs_of_other_numbers_are_refused(pairs, said):
    with pytest.raises(ArgumentError, match=said):
        duplicate_groups(pairs, 5)


def test_many_classes_need_no_table_of_all_of_them():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5_000), 2)
    x = rng.standard_normal((5_000, 8)).repeat(2, axis=0) + 1e-3 * rng.standard_normal((10_000, 8))
    labels[7] = 4_000
    tracemalloc.start()
    found = suspect_labels(x, labels, 1, "euclidean")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # a table of 10,000 x 5,000 has 400 MB
    assert found.suggested[7] == 3 and found.suspicion[7] > 0.5


def test_a_graph_judges_as_exact_search_does(digits):
    x, y = digits
    exact, graph = (outlier_scores(x, 5, "euclidean", kind) for kind in ("exact", "hnsw"))
    assert np.isclose(exact, graph).mean() > 0.99
    found = [suspect_labels(x, y, 10, "euclidean", kind) for kind in ("exact", "hnsw")]
    assert (found[0].suggested == found[1].suggested).mean() > 0.99
