"""Splits of images into training and validation, without a group on both sides."""

import fractions

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim.errors import ArgumentError

# Time grows with the number of folds. With up to ten, a share of at least 0.1 is met within 0.05.
_MOST_FOLDS = 10
_LARGEST_SEED = 2**32 - 1  # of scikit-learn


def grouped_split(
    labels: ArrayLike, groups: ArrayLike, validation: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Splits images into training and validation, so that no group is on both sides.

    A group holds images that resemble each other for other reasons than their class: those of one
    session, patient, camera or burst, near-duplicates, or the augmented copies of one image. If it
    is on both sides of a split, the scores on the validation split are too high.

    The share of each class in the validation split is as near to `validation` as the groups allow
    (`StratifiedGroupKFold` of scikit-learn). All images of a class that has a single group are on
    one side. If every class has a single group, as with `groups=labels`, whole classes are on one
    side, to measure an embedder on classes that it was not trained on; `validation` is then the
    share of groups (`GroupShuffleSplit`).

    Args:
        labels: `(n,)` integers or strings, the class of each image.
        groups: `(n,)` integers or strings, two values or more. An image without others of its group
            needs a value of its own.
        validation: Share of the images in the validation split, 0.01 to 0.99. With few or large
            groups the share may be another.
        seed: The same seed returns the same split.

    Returns:
        `(train, validation)`: the positions of the images of each split, int64, in order.

    Raises:
        ArgumentError: If labels and groups are not of one length, one of them is missing, all
            images are of one group, or `validation` or `seed` is out of range.
        ArgumentTypeError: If labels or groups are neither integers nor strings.

    Example:
        >>> labels = np.repeat(["cat", "dog"], 10)
        >>> sessions = np.arange(20) // 2  # two images each
        >>> train, validation = grouped_split(labels, sessions, validation=0.2)
        >>> set(sessions[train]) & set(sessions[validation])
        set()
        >>> labels[validation].tolist()
        ['cat', 'cat', 'dog', 'dog']

        Classes in the validation split that are not in the training split:

        >>> labels = np.arange(20) % 5
        >>> train, validation = grouped_split(labels, groups=labels)
        >>> len(set(labels[train])), len(set(labels[validation]))
        (4, 1)
        >>> set(labels[train]) & set(labels[validation])
        set()
    """
    labels = _checks.labels("labels", labels, None, "images")
    labels = _checks.same_length("labels", labels, labels.size, "images", 1)
    groups = _checks.labels("groups", groups, len(labels), "labels")
    share = _checks.number("validation", validation, 0.01, 0.99)
    seed = _checks.integer("seed", seed, 0, _LARGEST_SEED)
    classes = np.unique(labels, return_inverse=True)[1]
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ArgumentError(
            f"groups holds {len(names)} group{'s' * (len(names) != 1)} of {len(labels)} images, "
            "which cannot be split: pass two groups or more."
        )
    pairs = np.unique(np.stack([classes, codes]), axis=1)
    smaller = min(share, 1 - share)
    if np.bincount(pairs[0]).max() == 1:
        part = _whole_classes(codes, smaller, seed)
    else:
        part = _balanced(classes, codes, smaller, seed)
    is_validation = np.isin(np.arange(len(labels)), part) == (smaller == share)
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


def _whole_classes(groups, share, seed) -> np.ndarray:
    """Returns the positions of the images of a share of the groups."""
    from sklearn.model_selection import GroupShuffleSplit

    count = len(np.unique(groups))
    size = min(max(1, round(share * count)), count - 1)
    splitter = GroupShuffleSplit(1, test_size=size, random_state=seed)
    return next(splitter.split(groups, groups=groups))[1]


def _balanced(classes, groups, share, seed) -> np.ndarray:
    """Returns the positions of whole groups with about a share, at most 0.5, of each class.

    The share is a fraction of two small integers: that many of that many folds. Of the choices of
    consecutive folds, the one in which the shares of the classes are nearest is returned.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fraction = fractions.Fraction(share).limit_denominator(max(_MOST_FOLDS, round(1 / share)))
    sizes = np.bincount(classes)
    count = min(fraction.denominator, len(np.unique(groups)), sizes.max())
    taken = max(1, round(share * count))
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with _checks.no_warnings("sklearn"):  # of classes with fewer images than folds
        folds = [fold for _, fold in splitter.split(classes, classes, groups)]
    best, least = folds[0], np.inf
    for first in range(count):
        part = np.concatenate([folds[(first + n) % count] for n in range(taken)])
        shares = np.bincount(classes[part], minlength=len(sizes)) / sizes
        error = np.square(shares - share).mean()
        if error < least and 0 < len(part) < len(classes):
            best, least = part, error
    return best
