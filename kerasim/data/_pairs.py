"""Pairs, triplets and balanced batches, drawn from the labels of images or from given pairs."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images
from kerasim.data._augmentation import Augment
from kerasim.data._batches import Batches, pair_groups
from kerasim.duplicates import find_duplicates
from kerasim.errors import ArgumentError, ArgumentTypeError


class _Classes:
    """Positions of images sorted by label: positives and negatives are drawn without a search."""

    def __init__(self, labels, images=None, fewest=2):
        if labels is None:
            raise ArgumentTypeError(
                "labels is None: pass a label for each image. An image folder has labels if it has "
                "one subfolder for each class."
            )
        self.labels = labels = _check_names("labels", labels)
        count = labels.size if images is None else len(images)
        _checks.same_length("labels", labels, count, "images", 1)
        found = np.unique(labels, return_inverse=True, return_counts=True)
        self.names, self.label, self.counts = found
        if len(self.names) < 2:
            count = _checks.counted(len(self.names), "class", "classes")
            raise ArgumentError(
                f"labels hold {count}, {', '.join(map(str, self.names))}: 2 or more are "
                "needed. Add another class."
            )
        if small := self.describe_small(fewest, images):
            raise ArgumentError(f"{small}. Add images, or leave out those classes.")
        narrow = np.min_scalar_type(len(self.names))  # small integers are sorted by radix
        self.order = np.argsort(self.label.astype(narrow), kind="stable")
        self.starts = np.cumsum(self.counts) - self.counts
        self.rank_in_class = np.empty_like(self.order)
        self.rank_in_class[self.order] = (
            np.arange(len(labels)) - self.starts[self.label[self.order]]
        )

    def describe_small(self, fewest: int, images=None) -> str:
        """Returns a sentence on the classes of fewer than `fewest` images, "" if there are none."""
        small = self.names[self.counts < fewest]
        if not len(small):
            return ""
        shown = [repr(name) for name in small[:10].tolist()]
        numbers = images.labels if isinstance(images, ImageFolder) else None
        if numbers is not None and np.array_equal(numbers, self.labels):
            shown = [f"{n} ({_checks.shown(images.class_names[n])})" for n in small[:10]]
        classes = _checks.counted(len(small), "class", "classes")
        return f"labels hold {classes} of fewer than {fewest} images: {', '.join(shown)}"

    def sample_positive(self, rows, rng):
        """Draws another image of the same class for each of `rows`."""
        label = self.label[rows]
        count = self.counts[label]
        # 1 to count - 1 steps around the class never lead back to the image itself.
        steps = self.rank_in_class[rows] + rng.integers(1, count)
        return self.order[self.starts[label] + steps % count]

    def sample_negative(self, rows, rng):
        """Draws an image of another class for each of `rows`."""
        label = self.label[rows]
        drawn = rng.integers(0, len(self.order) - self.counts[label])
        return self.order[drawn + self.counts[label] * (drawn >= self.starts[label])]


def _check_names(name, values):
    """Returns `values`, integers or strings of which none is missing, as an array."""
    return _checks.labels(name, values, None, "images")


def _anchors(size, n, rng):
    """Returns `n` positions in random order; all images are drawn before one is repeated."""
    return np.concatenate([rng.permutation(size) for _ in range(-(-n // size))])[:n]


def draw_pairs(
    labels: ArrayLike, n: int | None = None, positive: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws positive and negative pairs of images, and returns their positions.

    Args:
        labels: Integers or strings `(n_images,)`: two classes or more, each of two images or more.
        n: Number of pairs; None for as many as there are images.
        positive: Share of positive pairs, 0 to 1; exact, except for rounding to whole pairs.
        seed: The same seed draws the same pairs.

    Returns:
        `(left, right, same)`, each `(n,)`: two columns of positions, which differ in each row,
        and float32 1 for a positive pair, 0 for a negative one.

    Raises:
        ArgumentError: If there is one class, or a class of one image; the message names it.

    Example:
        >>> labels = np.array(["cat", "cat", "dog", "dog"])
        >>> left, right, same = draw_pairs(labels, n=100, positive=0.25)
        >>> float(same.mean())
        0.25
        >>> np.array_equal(labels[left] == labels[right], same)
        True
    """
    classes = _Classes(labels)
    n = len(classes.label) if n is None else _checks.integer("n", n)
    _checks.number("positive", positive, 0, 1)
    return _draw_pairs(
        classes, n, positive, np.random.default_rng(_checks.integer("seed", seed, 0))
    )


def _draw_pairs(classes, n, positive, rng):
    left = _anchors(len(classes.label), n, rng)
    same = rng.permutation(n) < round(positive * n)
    right = np.where(same, classes.sample_positive(left, rng), classes.sample_negative(left, rng))
    return left, right, same.astype("float32")


def draw_triplets(
    labels: ArrayLike, n: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws triplets of images, and returns their positions.

    Args:
        labels: Integers or strings `(n_images,)`: two classes or more, each of two images or more.
        n: Number of triplets; None for as many as there are images.
        seed: The same seed draws the same triplets.

    Returns:
        `(anchor, positive, negative)`, each `(n,)` positions.

    Raises:
        ArgumentError: If there is one class, or a class of one image; the message names it.

    Example:
        >>> labels = np.array(["cat", "cat", "dog", "dog"])
        >>> anchor, positive, negative = draw_triplets(labels, n=100)
        >>> bool(np.all(labels[anchor] == labels[positive]))
        True
        >>> bool(np.any(labels[anchor] == labels[negative]))
        False
    """
    classes = _Classes(labels)
    n = len(classes.label) if n is None else _checks.integer("n", n)
    return _draw_triplets(classes, n, np.random.default_rng(_checks.integer("seed", seed, 0)))


def _draw_triplets(classes, n, rng):
    anchor = _anchors(len(classes.label), n, rng)
    return anchor, classes.sample_positive(anchor, rng), classes.sample_negative(anchor, rng)


class _LabeledBatches(Batches):
    """Base of batches that are drawn by class.

    Args:
        n: Pairs or triplets per epoch; None for as many as there are images.
        fewest: Number of images that each class must have.
    """

    _config_keys = ("labels", "rows")

    def __init__(
        self, images, labels, batch_size, seed, sigma, flip, shift, augment, n=None, fewest=2
    ):
        super().__init__(images, batch_size, seed, sigma, flip, shift, augment)
        self._refuse_mixing("pairs and classes are formed of single images")
        self.classes = _Classes(labels, self.images, fewest)
        self.labels = self.classes.labels
        self.rows = len(self.images) if n is None else _checks.integer("n", n)
        if not isinstance(self.images, ImageFolder):
            copies = find_duplicates(self.images)
            torn = copies[self.labels[copies[:, 0]] != self.labels[copies[:, 1]]]
            if len(torn):
                copies_found = _checks.counted(len(torn), "image is a copy", "images are copies")
                _checks.warn(
                    f"{copies_found} of an image with another label, the first is image "
                    f"{torn[0, 0]}, a copy of {torn[0, 1]}. Both can form a positive and a "
                    "negative pair at the same time. Correct the labels, or remove the copies."
                )

    def __getitem__(self, index: int):
        columns, rng = self._batch_indices(index)
        rows = np.concatenate(columns)
        return self._augmented(rows, rng), self.classes.label[rows]


class PairBatches(_LabeledBatches):
    """Batches of random positive and negative pairs, new ones in each epoch.

    A batch is `((left, right), same)`, for a model such as `models.siamese`: images
    `(batch, height, width, channels)` twice, and `same` `(batch,)`, 1 for a positive pair.

    Args:
        images: `(n_images, height, width, channels)`, float in [0, 1] or uint8, or an
            `ImageFolder`.
        labels: `(n_images,)` integers or strings: two classes or more, each of two images or more.
        positive: Share of positive pairs in each epoch, 0 to 1; exact, except for rounding.
        n: Pairs per epoch; None for as many as there are images.
        batch_size: Pairs per batch; the last batch may be smaller.
        seed: The same seed gives the same epochs.
        sigma: Standard deviation of Gaussian noise, in units of [0, 1], added to the images; the
            sum is clipped to [0, 1].
        flip: Mirror half of the images, left to right.
        shift: Shift each image by up to this many pixels up, down, left and right, repeating its
            edge.
        augment: Layer of Keras such as `keras.layers.RandAugment()`, function `augment(images,
            rng)`, or list of these, applied after `flip` and `shift`; see `ImageBatches`.

    Raises:
        ArgumentError: If there is one class, a class of one image, or not a label for each image.

    Example:
        >>> images = np.random.default_rng(0).random((40, 16, 16, 1))
        >>> (left, right), same = PairBatches(images, np.arange(40) % 4, batch_size=8)[0]
        >>> left.shape, same.shape
        ((8, 16, 16, 1), (8,))
    """

    _config_keys = ("labels", "rows", "positive")

    def __init__(
        self,
        images: ArrayLike | ImageFolder,
        labels: ArrayLike,
        positive: float = 0.5,
        n: int | None = None,
        batch_size: int = 128,
        seed: int = 0,
        *,
        sigma: float = 0.0,
        flip: bool = False,
        shift: int = 0,
        augment: Augment | None = None,
    ):
        super().__init__(images, labels, batch_size, seed, sigma, flip, shift, augment, n)
        self.positive = _checks.number("positive", positive, 0, 1)

    def _epoch_indices(self, rng):
        return _draw_pairs(self.classes, self.rows, self.positive, rng)

    def __getitem__(self, index: int):
        (left, right, same), rng = self._batch_indices(index)
        return (self._augmented(left, rng), self._augmented(right, rng)), same


class TripletBatches(_LabeledBatches):
    """Batches of random triplets, new ones in each epoch, for a loss on labeled batches.

    A batch is `(images, labels)`: the anchors, then their positives, then their negatives, so
    that a plain embedder and `losses.TripletLoss` train on it; images `(3 batch, height, width,
    channels)`, labels `(3 batch,)` int64: positions in the sorted classes. The loss forms all
    triplets of the batch.

    Args:
        images: `(n_images, height, width, channels)`, float in [0, 1] or uint8, or an
            `ImageFolder`.
        labels: `(n_images,)` integers or strings: two classes or more, each of two images or more.
        batch_size: Triplets per batch; the last batch may be smaller.
        n: Triplets per epoch; None for as many as there are images.
        seed: The same seed gives the same epochs.
        sigma: Standard deviation of Gaussian noise, in units of [0, 1], added to the images; the
            sum is clipped to [0, 1].
        flip: Mirror half of the images, left to right.
        shift: Shift each image by up to this many pixels up, down, left and right, repeating its
            edge.
        augment: Layer of Keras such as `keras.layers.RandAugment()`, function `augment(images,
            rng)`, or list of these, applied after `flip` and `shift`; see `ImageBatches`.

    Raises:
        ArgumentError: If there is one class, a class of one image, or not a label for each image.

    Example:
        >>> images = np.random.default_rng(0).random((40, 16, 16, 1))
        >>> anchors_positives_negatives, labels = TripletBatches(images, np.arange(40) % 4, 8)[0]
        >>> labels.shape
        (24,)
    """

    def __init__(
        self,
        images: ArrayLike | ImageFolder,
        labels: ArrayLike,
        batch_size: int = 64,
        n: int | None = None,
        seed: int = 0,
        *,
        sigma: float = 0.0,
        flip: bool = False,
        shift: int = 0,
        augment: Augment | None = None,
    ):
        super().__init__(images, labels, batch_size, seed, sigma, flip, shift, augment, n)

    def _epoch_indices(self, rng):
        return _draw_triplets(self.classes, self.rows, rng)


class BalancedBatches(_LabeledBatches):
    """Batches with the same number of images of each of several classes, for losses on classes.

    A batch is `(images, labels)`: images `(batch, height, width, channels)` and labels `(batch,)`,
    int64 class numbers in the order of the sorted labels. No batch contains an image twice, unless
    `small="repeat"`. Within an epoch, an image is repeated only after the other images of its class
    have been used, except for a remainder of fewer than `images_per_class` images.

    Args:
        images: `(n_images, height, width, channels)`, float in [0, 1] or uint8, or an
            `ImageFolder`.
        labels: `(n_images,)` integers or strings, one for each image.
        classes_per_batch: Number of classes in a batch, 2 or more.
        images_per_class: Number of images of each class in a batch, 2 or more.
        steps_per_epoch: Number of batches; None for about one pass over the images.
        seed: The same seed gives the same epochs.
        small: What to do with classes of fewer than `images_per_class` images. None raises an
            error. "drop" leaves them out. "repeat" takes an image of them several times in one
            batch; `augment`, `flip` and `shift` change it differently each time. Both warn, and
            name the classes.
        sigma: Standard deviation of Gaussian noise, in units of [0, 1], added to the images; the
            sum is clipped to [0, 1].
        flip: Mirror half of the images, left to right.
        shift: Shift each image by up to this many pixels up, down, left and right, repeating its
            edge.
        augment: Layer of Keras such as `keras.layers.RandAugment()`, function `augment(images,
            rng)`, or list of these, applied after `flip` and `shift`; see `ImageBatches`.

    Raises:
        ArgumentError: If there are fewer classes than `classes_per_batch`, or a class has fewer
            images than `images_per_class` and `small` is None.

    Example:
        >>> images = np.random.default_rng(0).random((40, 16, 16, 1))
        >>> batches = BalancedBatches(
        ...     images, np.arange(40) % 4, classes_per_batch=4, images_per_class=5
        ... )
        >>> np.bincount(batches[0][1]).tolist()
        [5, 5, 5, 5]
    """

    _config_keys = ("labels", "rows", "classes_per_batch", "images_per_class", "small")

    def __init__(
        self,
        images: ArrayLike | ImageFolder,
        labels: ArrayLike,
        classes_per_batch: int,
        images_per_class: int,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        *,
        small: Literal["drop", "repeat"] | None = None,
        sigma: float = 0.0,
        flip: bool = False,
        shift: int = 0,
        augment: Augment | None = None,
    ):
        self.classes_per_batch = _checks.integer("classes_per_batch", classes_per_batch, 2)
        self.images_per_class = _checks.integer("images_per_class", images_per_class, 2)
        if small is not None:
            _checks.one_of("small", small, ("drop", "repeat"))
        self.small = small
        size = self.classes_per_batch * self.images_per_class
        super().__init__(images, labels, size, seed, sigma, flip, shift, augment, fewest=1)
        self._drawn_classes = self._choose_classes()
        if steps_per_epoch is None:
            drawn_images = self.classes.counts[self._drawn_classes].sum()
            steps_per_epoch = max(1, int(drawn_images) // size)
        self.rows = _checks.integer("steps_per_epoch", steps_per_epoch) * size

    def _choose_classes(self) -> np.ndarray:
        """Returns the numbers of the classes that are drawn; refuses or warns of small ones."""
        counts = self.classes.counts
        chosen = np.arange(len(counts))
        if small := self.classes.describe_small(self.images_per_class, self.images):
            if self.small is None:
                raise ArgumentError(
                    f'{small}. Add images, lower images_per_class, or pass small="repeat" or '
                    'small="drop".'
                )
            if self.small == "drop":
                chosen = np.flatnonzero(counts >= self.images_per_class)
            done = "are never drawn" if self.small == "drop" else "are repeated within a batch"
            _checks.warn(f"{small}. Their images {done}.")
        if self.classes_per_batch > len(chosen):
            dropped, advice = "", "Pass as many or fewer"
            if len(chosen) < len(counts):
                dropped, advice = " of enough images", "Lower it, or images_per_class"
            raise ArgumentError(
                f"classes_per_batch={self.classes_per_batch}, but labels have only "
                f"{len(chosen)} classes{dropped}. {advice}."
            )
        return chosen

    def _epoch_indices(self, rng):
        count, size = len(self._drawn_classes), self.classes_per_batch
        chosen = [rng.choice(count, size, replace=False) for _ in range(len(self))]
        chosen = self._drawn_classes[np.concatenate(chosen)]
        rows = np.empty((len(chosen), self.images_per_class), dtype="int64")
        slots = np.split(np.argsort(chosen, kind="stable"), np.cumsum(np.bincount(chosen)))
        for label, slot in enumerate(slots[:-1]):  # `slot`: the rows that a class fills
            rows[slot] = self._draw_groups(label, len(slot), rng)
        return (rows.reshape(-1),)

    def _draw_groups(self, label: int, groups: int, rng) -> np.ndarray:
        """Draws `(groups, images_per_class)` images of a class, each as rarely as possible."""
        per_class, count = self.images_per_class, self.classes.counts[label]
        whole = max(count // per_class * per_class, per_class)
        rounds = -(-groups * per_class // whole)
        # `np.resize` leaves out a remainder, or repeats the images of a small class.
        places = [np.resize(rng.permutation(count), whole) for _ in range(rounds)]
        places = np.reshape(places, (-1, per_class))[:groups].astype("int64")
        return self.classes.order[self.classes.starts[label] + places]


class PositivePairBatches(Batches):
    """Batches of positive pairs without classes; the other pairs of a batch are the negatives.

    A batch is `((left, right), groups)`, for `models.siamese(embedder, metric=None)` with
    `losses.InfoNCELoss` or `losses.InBatchTripletLoss`; `groups` is `(batch, 2)` float32.
    `EmbeddingPairBatches` does the same for stored embeddings.

    Args:
        left: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        right: The positive of each image of `left`, in the same format.
        groups: `(n,)` integers or strings, one for each pair, or `(n, 2)`, one for each side. Pairs
            that share a group are never each other's negatives. None: each pair has its own group.
        batch_size: Pairs per batch; the last batch may be smaller.
        seed: The same seed gives the same epochs.
        sigma: Standard deviation of Gaussian noise, in units of [0, 1], added to the images of both
            sides; the sum is clipped to [0, 1].
        flip: Mirror half of the images of each side, left to right.
        shift: Shift each image of each side by up to this many pixels up, down, left and right,
            repeating its edge.
        augment: Layer of Keras such as `keras.layers.RandAugment()`, function `augment(images,
            rng)`, or list of these, applied after `flip` and `shift`; see `ImageBatches`.

    Raises:
        ArgumentError: If the sides differ in length or shape, or `groups` has another length.

    Example:
        >>> left = np.random.default_rng(0).random((40, 16, 16, 1))
        >>> (anchors, positives), groups = PositivePairBatches(left, left[:, :, ::-1])[0]
        >>> anchors.shape, groups.shape
        ((40, 16, 16, 1), (40, 2))
    """

    _arg_name = "left"
    _config_keys = ("right", "groups")

    def __init__(
        self,
        left: ArrayLike | ImageFolder,
        right: ArrayLike | ImageFolder,
        groups: ArrayLike | None = None,
        batch_size: int = 128,
        seed: int = 0,
        *,
        sigma: float = 0.0,
        flip: bool = False,
        shift: int = 0,
        augment: Augment | None = None,
    ):
        super().__init__(left, batch_size, seed, sigma, flip, shift, augment)
        self._refuse_mixing("pairs are formed of single images")
        self.right = check_images("right", right)
        _checks.shape(
            "right",
            self.right,
            self.images.shape,
            "pass one for each image of left, of the same size",
        )
        self.groups = pair_groups(groups, self.rows, "images")

    def __getitem__(self, index: int):
        (rows,), rng = self._batch_indices(index)
        left, right = self._augmented(rows, rng), self._augmented(rows, rng, self.right)
        return (left, right), self.groups[rows]
