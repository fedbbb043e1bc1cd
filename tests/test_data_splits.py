import warnings

import numpy as np
import pytest

from kerasim import data
from kerasim.errors import ArgumentError, ArgumentTypeError


def shares_of(labels, positions):
    """Returns the share of each class at these positions."""
    return np.array([np.mean(np.isin(np.flatnonzero(labels == c), positions)) for c in set(labels)])


def nested_case():
    """Returns labels and groups: 30 classes of five groups of four images, in mixed order."""
    order = np.random.default_rng(0).permutation(600)
    return order // 20, order // 4


@pytest.mark.parametrize("validation", [0.01, 0.1, 0.2, 0.5, 0.75, 0.99])
def test_no_group_is_on_both_sides_and_no_image_is_left_out(validation):
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 4, 400), rng.integers(0, 80, 400)
    train, other = data.grouped_split(labels, groups, validation)
    assert not set(groups[train]) & set(groups[other])
    np.testing.assert_array_equal(np.sort(np.concatenate([train, other])), np.arange(400))


@pytest.mark.parametrize("validation", [0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9])
def test_each_class_has_about_the_share_that_was_asked_for(validation):
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 5, 1000), rng.integers(0, 200, 1000)
    shares = shares_of(labels, data.grouped_split(labels, groups, validation)[1])
    np.testing.assert_allclose(shares, validation, atol=0.03)


def test_classes_whose_groups_are_their_own_have_the_exact_share():
    labels, groups = nested_case()
    validation = data.grouped_split(labels, groups, 0.2)[1]
    np.testing.assert_allclose(shares_of(labels, validation), 0.2)


def test_labels_as_groups_leave_whole_classes_to_the_validation_split():
    labels = nested_case()[0]
    train, validation = data.grouped_split(labels, labels, 0.3)
    assert len(set(labels[validation])) == 9 and not set(labels[train]) & set(labels[validation])


@pytest.mark.parametrize("groups", [nested_case()[1], nested_case()[0]])
def test_the_seed_alone_decides_a_split(groups):
    labels = nested_case()[0]
    splits = [data.grouped_split(labels, groups, seed=seed)[1].tolist() for seed in (3, 3, 4)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("validation", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 2, 3]])
def test_two_groups_are_one_on_each_side(labels, validation):
    train, other = data.grouped_split(labels, ["a", "a", "b", "b"], validation)
    assert {tuple(train), tuple(other)} == {(0, 1), (2, 3)}


def test_a_group_that_is_larger_than_the_validation_split_is_for_training():
    groups = np.array([0] * 80 + [1] * 10 + [2] * 10)
    train, _ = data.grouped_split(np.arange(100) % 2, groups, 0.1)
    assert set(groups[train]) >= {0}


def test_a_class_of_few_images_is_split_without_a_warning():
    labels = np.array([0] * 20 + [1] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, validation = data.grouped_split(labels, np.arange(22), 0.1)
    assert len(train) > len(validation) > 0


def test_names_of_groups_and_classes_split_as_their_numbers_do():
    labels, groups = nested_case()
    names = np.char.zfill(labels.astype(str), 3), np.char.zfill(groups.astype(str), 3)
    expected = data.grouped_split(labels, groups)[1]
    np.testing.assert_array_equal(data.grouped_split(*names)[1], expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": [7, 7, 7, 7]}, "groups holds 1 group of 4 images, .* two groups or more"),
        ({"labels": [], "groups": []}, "groups holds 0 groups of 0 images"),
        ({"groups": [0, 1]}, r"groups has shape \(2,\), expected \(4,\)"),
        ({"labels": [[0, 0], [1, 1]]}, r"labels has shape \(2, 2\), expected \(4,\)"),
        ({"labels": [0, None, 1, 1]}, "labels holds no label .* in 1 of 4 rows: 1"),
        ({"groups": [0.5, 1, 2, 3]}, "groups must be integers or strings"),
        ({"validation": 0}, "validation=0 is out of range: pass a number from 0.01 to 0.99"),
        ({"validation": 1.0}, "validation=1.0 is out of range"),
        ({"seed": -1}, "seed=-1 is out of range"),
    ],
)
def test_a_split_is_refused_by_name(change, said):
    given = {"labels": [0, 0, 1, 1], "groups": [0, 1, 2, 3], **change}
    with pytest.raises((ArgumentError, ArgumentTypeError), match=said):
        data.grouped_split(**given)
