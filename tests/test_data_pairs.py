import numpy as np
import pandas as pd
import pytest

from kerasim import data, duplicates
from kerasim.errors import ArgumentError, ArgumentTypeError
from tests.helpers.image_files import write_image
from tests.helpers.small_embedder import LEVELS

RNG = np.random.default_rng(1)
LABELS = np.array([5, 2, 2, 9, 5, 5, 2, 9, 2, 5])
IMAGES = RNG.integers(0, 256, (10, 3, 3, 1), dtype="uint8")
# Each image is a color of its own, so that what a batch holds can be read from it.
MARKED = np.arange(40, dtype="uint8")[:, None, None, None] * np.ones((1, 2, 2, 1), "uint8")
OF_MARKED = np.repeat(np.arange(5), 8)
DRAWN = {
    "PairBatches": lambda images, labels, **given: data.PairBatches(images, labels, **given),
    "TripletBatches": lambda images, labels, **given: data.TripletBatches(images, labels, **given),
    "BalancedBatches": lambda images, labels, **given: data.BalancedBatches(
        images, labels, 2, 2, **given
    ),
}


@pytest.fixture(params=DRAWN)
def drawn(request):
    """Each kind of batches that is drawn by class."""
    return DRAWN[request.param]


def marks(images):
    """Returns which image of MARKED each one is."""
    return np.rint(images[:, 0, 0, 0] * 255).astype(int)


def epoch_of(batches, epoch=0):
    batches.epoch = epoch
    return [batches[n] for n in range(len(batches))]


# draw_pairs, draw_triplets


@pytest.mark.fault("single-image-class")
@pytest.mark.parametrize("positive", [0, 0.25, 0.5, 1])
def test_pairs_are_as_like_as_they_say_and_of_the_share_asked_for(positive):
    left, right, same = data.draw_pairs(LABELS, 1000, positive)
    assert (left != right).all() and same.dtype == np.float32
    np.testing.assert_array_equal(LABELS[left] == LABELS[right], same == 1)
    assert same.sum() == 1000 * positive


def test_each_image_is_on_the_left_once_before_any_is_twice():
    left, _, _ = data.draw_pairs(LABELS)
    assert sorted(left) == list(range(10))
    left, _, _ = data.draw_pairs(LABELS, 25)
    assert set(np.bincount(left)) == {2, 3}


def test_partners_are_drawn_evenly():
    left, right, same = data.draw_pairs(LABELS, 90_000, 0.5)
    for alike in (True, False):
        for image in range(10):
            counts = np.bincount(right[(left == image) & (same == alike)], minlength=10)
            possible = (LABELS == LABELS[image]) == alike
            possible[image] = False
            assert (counts[~possible] == 0).all()
            share = counts[possible] / counts.sum() * possible.sum()
            assert (np.abs(share - 1) < 0.15).all()


def test_triplets_hold_two_of_a_class_and_one_of_another():
    anchor, positive, negative = data.draw_triplets(LABELS, 1000)
    assert (anchor != positive).all()
    np.testing.assert_array_equal(LABELS[anchor], LABELS[positive])
    assert (LABELS[anchor] != LABELS[negative]).all()
    assert len(set(positive)) == len(set(negative)) == 10


def test_labels_may_be_strings():
    names = np.array(["a", "b"])[(LABELS > 4).astype(int)]
    for kind in (names, names.astype(object), pd.Series(names)):
        left, right, same = data.draw_pairs(kind, 100)
        np.testing.assert_array_equal(names[left] == names[right], same == 1)


@pytest.mark.parametrize("draw", [data.draw_pairs, data.draw_triplets])
def test_a_seed_decides_what_is_drawn(draw):
    one, again, other = draw(LABELS, seed=1), draw(LABELS, seed=1), draw(LABELS, seed=2)
    assert all(map(np.array_equal, one, again)) and not all(map(np.array_equal, one, other))


def test_the_pairs_of_a_seed_are_the_recorded_ones():
    # A run that is resumed with a later kerasim must go on with the pairs it began with.
    left, right, same = data.draw_pairs(LABELS, 6, seed=3)
    assert left.tolist() == [9, 6, 0, 2, 1, 4]
    assert right.tolist() == [7, 2, 4, 5, 6, 8]
    assert same.tolist() == [0, 1, 1, 0, 1, 0]


REFUSED = [
    (np.zeros(4, int), ArgumentError, "1 class, 0: 2 or more"),
    (np.array([0, 0, 1, 2]), ArgumentError, r"2 classes of fewer than 2 images: 1, 2\. Add"),
    (
        np.zeros((4, 1), int),
        ArgumentError,
        r"labels has shape \(4, 1\), expected \(4,\): pass one for each",
    ),
    (np.full(4, 0.5), ArgumentTypeError, "labels must be integers or strings.* float64"),
    ([], ArgumentError, "labels"),
    (5, ArgumentError, r"labels has shape \(\)"),
]


@pytest.mark.fault("missing-labels")
@pytest.mark.parametrize(("labels", "kind", "said"), REFUSED)
def test_labels_without_a_pair_are_refused_by_name(labels, kind, said):
    for draw in (data.draw_pairs, data.draw_triplets):
        with pytest.raises(kind, match=said):
            draw(labels)


@pytest.mark.fault("missing-labels")
@pytest.mark.parametrize(("labels", "kind", "said"), REFUSED[:4])
def test_batches_of_such_labels_are_refused_alike(labels, kind, said, drawn):
    with pytest.raises(kind, match=said):
        drawn(IMAGES[:4], labels)


@pytest.mark.fault("single-image-class")
def test_a_class_folder_of_one_image_is_refused_by_its_label_and_name(tmp_path):
    for name, count in (("ant", 1), ("bee", 5), ("cat", 5)):
        for n in range(count):
            write_image(tmp_path / name / f"{n}.png", 20 * n)
    folder = data.image_folder(tmp_path, 4)
    with pytest.raises(ArgumentError, match=r"1 class of fewer than 2 images: 0 \('ant'\)\. Add"):
        data.PairBatches(folder, folder.labels)
    others = np.array([7, *folder.labels[1:]])  # numbers of the user's own have no such names
    with pytest.raises(ArgumentError, match=r"1 class of fewer than 2 images: 7\. Add"):
        data.PairBatches(folder, others)


def test_a_folder_gives_the_pairs_of_its_images(tmp_path):
    for n in range(8):
        write_image(tmp_path / "ab"[n % 2] / f"{n}.png", 30 * n)
    folder = data.image_folder(tmp_path, 4)
    (left, right), same = data.PairBatches(folder, folder.labels)[0]
    (left_too, _), same_too = data.PairBatches(folder[:], folder.labels)[0]
    np.testing.assert_array_equal(left, left_too)
    np.testing.assert_array_equal(same, same_too)
    assert left.shape == right.shape == (8, 4, 4, 3)


@pytest.mark.fault("missing-labels")
def test_labels_of_another_length_are_refused_with_both(drawn):
    with pytest.raises(
        ArgumentError, match=r"labels has shape \(9,\), expected \(10,\).* of the 10 images"
    ):
        drawn(IMAGES, LABELS[:9])


@pytest.mark.parametrize("n", [0, -1, 2.5, "8", True])
def test_a_number_of_pairs_that_is_none_is_refused(n):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="n(=| must)"):
        data.draw_pairs(LABELS, n)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="n(=| must)"):
        data.PairBatches(IMAGES, LABELS, n=n)


@pytest.mark.parametrize("positive", [-0.1, 1.1, "half", None, np.nan])
def test_a_share_that_is_none_is_refused(positive):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="positive"):
        data.draw_pairs(LABELS, positive=positive)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="positive"):
        data.PairBatches(IMAGES, LABELS, positive=positive)


# PairBatches, TripletBatches


def test_a_batch_of_pairs_holds_the_images_it_says():
    for (left, right), same in epoch_of(data.PairBatches(MARKED, OF_MARKED, batch_size=16)):
        assert left.dtype == right.dtype == same.dtype == np.float32
        alike = OF_MARKED[marks(left)] == OF_MARKED[marks(right)]
        np.testing.assert_array_equal(alike, same == 1)
        assert (marks(left) != marks(right)).all()


def test_batches_of_pairs_have_the_share_and_number_asked_for():
    batches = data.PairBatches(MARKED, OF_MARKED, positive=0.2, batch_size=32, n=100)
    sames = [same for _, same in epoch_of(batches)]
    assert [len(same) for same in sames] == [32, 32, 32, 4]
    assert np.concatenate(sames).sum() == 20


def test_a_batch_of_triplets_is_anchors_positives_negatives_with_labels():
    for images, labels in epoch_of(data.TripletBatches(MARKED, OF_MARKED, batch_size=8)):
        np.testing.assert_array_equal(labels, OF_MARKED[marks(images)])
        anchor, positive, negative = marks(images).reshape(3, 8)
        assert (anchor != positive).all()
        assert (OF_MARKED[anchor] == OF_MARKED[positive]).all()
        assert (OF_MARKED[anchor] != OF_MARKED[negative]).all()


# BalancedBatches


@pytest.mark.parametrize(("m", "k"), [(5, 4), (2, 3), (3, 8)])
def test_a_balanced_batch_holds_k_images_of_m_classes_each_once(m, k):
    batches = data.BalancedBatches(MARKED, OF_MARKED, m, k, steps_per_epoch=7)
    assert len(batches) == 7
    for images, labels in epoch_of(batches):
        np.testing.assert_array_equal(labels, OF_MARKED[marks(images)])
        assert sorted(np.bincount(labels, minlength=5), reverse=True) == [k] * m + [0] * (5 - m)
        assert len(set(marks(images))) == m * k


def test_a_class_shows_all_its_images_before_any_comes_again():
    seen = np.concatenate(
        [marks(images) for images, _ in epoch_of(data.BalancedBatches(MARKED, OF_MARKED, 5, 4))]
    )
    assert sorted(seen) == list(range(40))


def test_batches_need_as_many_classes_and_images_as_they_hold():
    with pytest.raises(ArgumentError, match="classes_per_batch=6, but labels have only 5 classes"):
        data.BalancedBatches(MARKED, OF_MARKED, 6, 2)
    with pytest.raises(ArgumentError, match="5 classes of fewer than 9 images: 0, 1, 2"):
        data.BalancedBatches(MARKED, OF_MARKED, 5, 9)
    with pytest.raises(
        ArgumentError, match=r"images has shape \(\), expected \(any, any, any, any\)"
    ):
        data.BalancedBatches(None, OF_MARKED, 2, 2)


@pytest.mark.parametrize("name", ["n", "batch_size", "fewest", "name"])
def test_what_balanced_batches_do_not_take_is_refused(name):
    with pytest.raises(TypeError, match=name):
        data.BalancedBatches(MARKED, OF_MARKED, 2, 2, **{name: 2})
    if name in ("fewest", "name"):
        with pytest.raises(TypeError, match=name):
            data.PairBatches(MARKED, OF_MARKED, **{name: 2})
        with pytest.raises(TypeError, match=name):
            data.TripletBatches(MARKED, OF_MARKED, **{name: 2})


@pytest.mark.parametrize("value", [0, 1, 2.5, "8", None, True])
@pytest.mark.parametrize("name", ["classes_per_batch", "images_per_class"])
def test_classes_and_images_of_each_are_2_or_more(name, value):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"{name}(=| must).* 2 or more"):
        data.BalancedBatches(
            IMAGES, LABELS, **{"classes_per_batch": 2, "images_per_class": 2, name: value}
        )


# Classes 0 to 3 have 8 images each, class 4 has 7, and class 5 has one.
WITH_SMALL = np.where(np.arange(40) == 39, 5, OF_MARKED)


@pytest.mark.fault("single-image-class")
def test_small_classes_are_dropped_if_asked_for_with_a_warning():
    with pytest.warns(UserWarning, match="1 class of fewer than 4 images: 5.* never drawn"):
        batches = data.BalancedBatches(MARKED, WITH_SMALL, 5, 4, small="drop")
    for images, labels in epoch_of(batches):
        assert np.bincount(labels).tolist() == [4] * 5
        np.testing.assert_array_equal(labels, WITH_SMALL[marks(images)])
    assert len(batches) == 39 // 20


@pytest.mark.fault("single-image-class")
def test_images_of_small_classes_are_repeated_if_asked_for_with_a_warning():
    with pytest.warns(UserWarning, match="1 class of fewer than 4 images: 5.* repeated within"):
        batches = data.BalancedBatches(MARKED, WITH_SMALL, 6, 4, small="repeat")
    for images, labels in epoch_of(batches):
        np.testing.assert_array_equal(labels, WITH_SMALL[marks(images)])
        assert sorted(np.unique(marks(images), return_counts=True)[1])[-2:] == [1, 4]
    with pytest.warns(UserWarning, match="2 classes"):
        batches = data.BalancedBatches(MARKED, WITH_SMALL, 6, 8, steps_per_epoch=2, small="repeat")
    for images, _ in epoch_of(batches):  # seven images of class 4, one of them twice
        assert sorted(np.bincount(marks(images))[32:39]) == [1] * 6 + [2]


def test_too_few_classes_of_enough_images_are_refused():
    with (
        pytest.warns(UserWarning, match="never drawn"),
        pytest.raises(ArgumentError, match="labels have only 5 classes of enough images"),
    ):
        data.BalancedBatches(MARKED, WITH_SMALL, 6, 4, small="drop")


def test_small_classes_are_refused_with_what_to_pass():
    with pytest.raises(ArgumentError, match='of fewer than 4 images: .* or pass small="repeat"'):
        data.BalancedBatches(MARKED, WITH_SMALL, 5, 4)


def test_without_small_classes_nothing_changes_and_nothing_warns():
    plain = data.BalancedBatches(MARKED, OF_MARKED, 5, 4)
    for small in ("drop", "repeat"):
        other = data.BalancedBatches(MARKED, OF_MARKED, 5, 4, small=small)
        np.testing.assert_array_equal(plain[0][0], other[0][0])
    with pytest.raises(ArgumentError, match="small='keep'"):
        data.BalancedBatches(MARKED, OF_MARKED, 5, 4, small="keep")


# What all of them do


def flat(batches, epoch=0):
    parts = [
        np.concatenate([np.ravel(x) for x in _leaves(batch)]) for batch in epoch_of(batches, epoch)
    ]
    return np.concatenate(parts)


def _leaves(batch):
    for part in batch:
        yield from _leaves(part) if isinstance(part, tuple) else [part]


def test_epochs_differ_and_runs_of_one_seed_are_equal(drawn):
    given = {"seed": 3, "sigma": 0.1, "flip": True, "shift": 1}
    one, other = drawn(MARKED, OF_MARKED, **given), drawn(MARKED, OF_MARKED, **given)
    flat(other, 5)  # what was asked before does not matter
    np.testing.assert_array_equal(flat(one, 2), flat(other, 2))
    assert not np.array_equal(flat(one, 2), flat(one, 3))
    assert not np.array_equal(
        flat(one, 2), flat(drawn(MARKED, OF_MARKED, **{**given, "seed": 4}), 2)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"images": 255 - MARKED},
        {"labels": OF_MARKED[::-1].copy()},
        {"seed": 1},
        {"sigma": 0.1},
        {"flip": True},
        {"shift": 1},
    ],
)
def test_settings_change_with_whatever_decides_the_batches(drawn, change):
    given = {"images": MARKED, "labels": OF_MARKED}
    assert drawn(**given).settings() != drawn(**{**given, **change}).settings()


def test_labels_of_batches_may_be_strings(drawn):
    names = np.array(list("abcde"))[OF_MARKED]
    assert drawn(MARKED, names).settings() != drawn(MARKED, names[::-1].copy()).settings()
    np.testing.assert_array_equal(flat(drawn(MARKED, names)), flat(drawn(MARKED, OF_MARKED)))


def test_settings_change_with_the_share_the_classes_and_the_number():
    one = data.PairBatches(MARKED, OF_MARKED).settings()
    assert data.PairBatches(MARKED, OF_MARKED, positive=0.4).settings() != one
    assert data.PairBatches(MARKED, OF_MARKED, n=41).settings() != one
    one = data.BalancedBatches(MARKED, OF_MARKED, 2, 4).settings()
    assert data.BalancedBatches(MARKED, OF_MARKED, 4, 2).settings() != one


@pytest.mark.fault("duplicates")
def test_a_copy_with_another_label_is_reported(drawn):
    images = MARKED.copy()
    images[39] = images[0]
    with pytest.warns(
        UserWarning, match="1 image is a copy .* label, the first is image 39, a copy of 0"
    ):
        drawn(images, OF_MARKED)


# PositivePairBatches


def test_pairs_without_classes_stay_together():
    batches = data.PositivePairBatches(MARKED, MARKED[::-1], batch_size=16)
    seen = []
    for (left, right), groups in epoch_of(batches):
        np.testing.assert_array_equal(marks(right), 39 - marks(left))
        np.testing.assert_array_equal(groups, np.stack([marks(left)] * 2, axis=1))
        seen += marks(left).tolist()
    assert sorted(seen) == list(range(40)) and seen != sorted(seen)


def test_groups_of_any_names_become_small_integers():
    names = np.array(["a", "b"] * 20)
    batches = data.PositivePairBatches(MARKED, MARKED, groups=names)
    (left, _), groups = batches[0]
    np.testing.assert_array_equal(groups[:, 0], marks(left) % 2)
    sides = np.stack([np.arange(40) * 1000, np.arange(40) * 1000 + 1], axis=1)
    groups = data.PositivePairBatches(MARKED, MARKED, groups=sides)[0][1]
    assert sorted(groups.ravel()) == list(range(80)) and groups.dtype == np.float32


def test_pairs_without_classes_must_fit():
    with pytest.raises(ArgumentError, match=r"right has shape \(39, 2, 2, 1\), expected \(40,"):
        data.PositivePairBatches(MARKED, MARKED[:39])
    with pytest.raises(ArgumentError, match=r"groups has shape \(3,\), left has 40 images"):
        data.PositivePairBatches(MARKED, MARKED, groups=[1, 2, 3])
    with pytest.raises(ArgumentError, match=r"left holds floats outside \[0, 1\]"):
        data.PositivePairBatches(MARKED * 1.0, MARKED)
    with pytest.raises(ArgumentError, match="groups holds no label .* in 40 of 40 rows"):
        data.PositivePairBatches(MARKED, MARKED, groups=np.full(40, np.nan))
    with pytest.raises(ArgumentError, match="right holds NaN"):
        data.PositivePairBatches(MARKED / 255, np.full((40, 2, 2, 1), np.nan))


@pytest.mark.parametrize("change", [{"right": MARKED}, {"groups": np.arange(40) // 2}, {"seed": 1}])
def test_settings_of_pairs_change_with_what_decides_them(change):
    given = {"left": MARKED, "right": MARKED[::-1]}
    one = data.PositivePairBatches(**given).settings()
    assert data.PositivePairBatches(**{**given, **change}).settings() != one


# find_duplicates


@pytest.mark.fault("duplicates")
def test_seven_planted_copies_are_found():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (2, 50, 4, 4, 1), dtype="uint8")
    test[[3, 9, 20, 31, 40, 41, 49]] = train[[7, 7, 1, 0, 30, 31, 32]]
    expected = [[3, 7], [9, 7], [20, 1], [31, 0], [40, 30], [41, 31], [49, 32]]
    assert duplicates.find_duplicates(test, train).tolist() == expected
    assert duplicates.find_duplicates(test).tolist() == [[9, 3]]
    assert duplicates.find_duplicates(LEVELS).shape == (0, 2)


@pytest.mark.fault("duplicates")
def test_copies_in_a_folder_are_found_by_their_files(tmp_path):
    for n, level in enumerate((10, 20, 10)):
        write_image(tmp_path / f"{n}.png", level)
    assert duplicates.find_duplicates(data.image_folder(tmp_path, 4)).tolist() == [[2, 0]]
