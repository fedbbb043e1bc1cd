"""Losses on pairs, triplets and labeled batches.

There are three kinds, for different kinds of labels. Positive and negative pairs:
`ContrastiveLoss`, on the distances that `models.siamese` returns. Classes: most others, on the
embeddings and labels of a batch. Positive pairs without classes: `InBatchTripletLoss` and
`InfoNCELoss`, for which the other pairs of the batch are the negatives.

Losses on labeled batches compare all images of a batch with each other: `y_true` holds the labels,
integers below 2**24 (Keras passes them as float32), `(batch,)` or `(batch, 1)`; `y_pred` the
embeddings, `(batch, dim)`. The loss is one value for the batch, so weights of single images have no
effect. A batch without a valid pair or triplet has loss 0 and gradient 0; `EmptyBatchCounter`
counts such batches.
"""

import inspect
import math
import re
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kerasim import _checks
from kerasim._tensors import (
    PAIR_METRICS,
    ConfigMixin,
    PairMetric,
    full_precision,
    l2_normalize,
    safe_norm,
    safe_sqrt,
)
from kerasim.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "AngularLoss",
    "ArcFaceLoss",
    "BatchContrastiveLoss",
    "ContrastiveLoss",
    "EmptyBatchCounter",
    "InBatchTripletLoss",
    "InfoNCELoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "SupConLoss",
    "TripletLoss",
]

# A tensor of any backend, or an array; Keras declares no type of it.
Tensor = Any

_FAR = -1e9  # the logit of an entry that is left out of a sum of exponentials


class _Loss(ConfigMixin, keras.Loss):
    """Base of the losses: computes in float32 under any dtype policy, or in float64 if asked to.

    The default name is the class name in snake_case, "sup_con_loss" for `SupConLoss`.
    """

    def __init__(self, name: str | None = None, dtype: Any = None, **kwargs: Any):
        # A name that Keras numbers would change from one process to the next.
        name = name or re.sub("(?!^)(?=[A-Z][a-z])", "_", type(self).__name__).lower()
        # In float16 labels from 2049 on would merge, and a distance has few digits.
        super().__init__(name=name, dtype=full_precision(dtype), **kwargs)

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = _array_of_list(y_true), _array_of_list(y_pred)
        if _holds_text(y_true):
            raise ArgumentTypeError(
                "y_true holds text, expected numbers. Pass class numbers, such as "
                "np.unique(labels, return_inverse=True)[1]."
            )
        true, predicted = _shape(y_true), _shape(y_pred)
        self._check_shapes(true, predicted)
        counts = {shape[0] for shape in (true, predicted) if shape and shape[0] is not None}
        if len(counts) > 1:
            raise ArgumentError(
                f"y_true has {true[0]} rows and y_pred {predicted[0]}. Pass one label for "
                "each row of y_pred."
            )
        return super().__call__(y_true, y_pred, sample_weight)

    def _check_shapes(self, true, predicted):
        """Raises an `ArgumentError` unless there is one label for each row of `y_pred`."""
        if len(true) > 1 and true[1:] != (1,):
            raise ArgumentError(
                f"y_true has shape {true}, expected one label for each image, (batch,) or "
                "(batch, 1). Pass class numbers: for one-hot rows, labels.argmax(axis=1)."
            )
        if len(predicted) != 2:
            raise ArgumentError(
                f"y_pred has shape {predicted}, expected the embeddings of a batch (for "
                "ArcFaceLoss the cosines). Compile the loss on a model with one output of shape "
                "(batch, dim)."
            )

    def __repr__(self):
        names = [name for name in inspect.signature(self.__init__).parameters if name != "kwargs"]
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({settings})"


class _BatchLoss(_Loss):
    """Mean of the costs that a mask keeps: `_costs` returns both, in the same shape."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None and _shape(sample_weight) not in ((), (1,)):
            raise ArgumentError(
                f"sample_weight has shape {_shape(sample_weight)}, and "
                f"{type(self).__name__} is one number for a batch. Leave it out, or draw "
                "what counts more often."
            )
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if y_pred.shape[0] == 0:
            return ops.sum(y_pred)
        return _mean_of(*self._costs(y_true, y_pred))

    def count_valid(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the number of anchors, pairs or triplets of `y_true` and `y_pred` in the mean."""
        labels, given = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        return _count(self._costs(labels, given)[1])


@keras.saving.register_keras_serializable("kerasim")
class ContrastiveLoss(_Loss):
    """Contrastive loss: pulls positive pairs together and pushes negative pairs beyond a margin.

    `loss = same d**2 + (1 - same) max(margin - d, 0)**2`. `y_true` is `same`, `(batch,)` or
    `(batch, 1)`: 1 for a positive pair, 0 for a negative one (the paper uses the opposite, and
    halves both terms). `y_pred` is the distance `d`, `(batch, 1)`, the output of `models.siamese`.

    Args:
        margin: Distance beyond which a negative pair has loss 0; 0 or more, in the units of the
            distance: the Euclidean distance of two unit vectors is at most 2.
        squared_margin: True for `same d**2 + (1 - same) max(margin**2 - d**2, 0)`, which has a
            larger gradient for distant negative pairs and a smaller one for close pairs.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `margin` is negative.

    Example:
        >>> loss = ContrastiveLoss(margin=1.0)
        >>> distances = np.array([[0.2], [0.2]])
        >>> round(float(loss(np.array([1, 1]), distances)), 3)  # two positive pairs: 0.2**2
        0.04
        >>> round(float(loss(np.array([0, 0]), distances)), 3)  # two negative pairs: (1 - 0.2)**2
        0.64

    Reference:
        Hadsell et al., 2006. https://doi.org/10.1109/CVPR.2006.100
    """

    def __init__(self, margin: float = 1.0, squared_margin: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.margin = _checks.number("margin", margin, 0)
        self.squared_margin = _checks.boolean("squared_margin", squared_margin)

    def _check_shapes(self, true, predicted):
        if len(true) > 1 and true[1:] != (1,) or len(predicted) > 1 and predicted[1:] != (1,):
            raise ArgumentError(
                f"y_true has shape {true} and y_pred {predicted}, expected 0 or 1 and a "
                "distance for each pair, (batch,) or (batch, 1). Use "
                "models.siamese(embedder) and data.PairBatches."
            )

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        # Keras leaves ranks alone here: (batch,) against (batch, 1) would broadcast to
        # (batch, batch), and train on wrong pairs without an error.
        same = ops.reshape(y_true, ops.shape(y_pred))
        # A square may be infinite in float32, and 0 times infinity is NaN: distances that do not
        # count are replaced before they are squared.
        positive_cost = ops.square(ops.where(same == 0, 0.0, y_pred))
        negative_cost = _negative_cost(y_pred, self.margin, self.squared_margin)
        return ops.mean(same * positive_cost + (1 - same) * negative_cost, axis=-1)


@keras.saving.register_keras_serializable("kerasim")
class BatchContrastiveLoss(_BatchLoss):
    """Contrastive loss over all pairs of a labeled batch.

    Half of the mean of `d**2` over the positive pairs (images of the same label) plus half of the
    mean of `max(margin - d, 0)**2` over the negative pairs, where `d` is the distance of two
    embeddings. This is `ContrastiveLoss` with a share of 0.5 of positive pairs, but over all pairs
    of the batch: 7,140 for 120 images, where `data.PairBatches` forms 60. `y_true` holds labels
    `(batch,)`, `y_pred` embeddings `(batch, dim)`. Memory grows with `batch**2 * dim`.

    Args:
        margin: Distance beyond which a negative pair has loss 0; 0 or more, in the units of the
            distance: the Euclidean distance of two unit vectors is at most 2.
        metric: "euclidean", "squared_euclidean" or "cosine" (1 - cosine similarity). Only "cosine"
            scales the embeddings to unit length.
        squared_margin: True for `max(margin**2 - d**2, 0)` of negative pairs, which has a larger
            gradient for distant negative pairs and a smaller one for close pairs.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `margin` is negative, or `metric` is unknown.

    Example:
        >>> embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> loss = BatchContrastiveLoss(margin=1.0)
        >>> round(float(loss(np.array([0, 0, 1, 1]), embeddings)), 3)  # classes are separated
        0.0
        >>> round(float(loss(np.array([0, 1, 0, 1]), embeddings)), 3)  # classes are mixed
        1.25

    Reference:
        Hadsell et al., 2006. https://doi.org/10.1109/CVPR.2006.100
    """

    def __init__(
        self,
        margin: float = 1.0,
        metric: PairMetric = "euclidean",
        squared_margin: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.margin = _checks.number("margin", margin, 0)
        _checks.one_of("metric", metric, PAIR_METRICS)
        self.metric = metric
        self.squared_margin = _checks.boolean("squared_margin", squared_margin)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if y_pred.shape[0] == 0:
            return ops.sum(y_pred)
        positive, negative = _masks(y_true)
        distances = _pairwise(y_pred, self.metric)
        # As in `ContrastiveLoss`, distances that do not count are replaced before they are squared.
        positive_cost = ops.square(ops.where(positive, distances, 0.0))
        negative_cost = _negative_cost(distances, self.margin, self.squared_margin)
        return (_mean_of(positive_cost, positive) + _mean_of(negative_cost, negative)) / 2

    def count_valid(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the number of ordered pairs of `y_true` and `y_pred`, of both kinds."""
        positive, negative = _masks(ops.convert_to_tensor(y_true))
        return _count(positive | negative)


class _TripletLoss(_BatchLoss):
    """Mean of `max(d_ap - d_an + margin, 0)` over the triplets that mining keeps."""

    def __init__(
        self,
        margin: float = 0.2,
        mining: Literal["all", "semi_hard", "hard"] = "all",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        _checks.one_of("mining", mining, ("all", "semi_hard", "hard"))
        self.margin, self.mining = _checks.number("margin", margin, 0), mining
        if mining == "semi_hard" and not self.margin:
            raise ArgumentError(
                'mining="semi_hard" needs a margin above 0: margin=0 leaves no triplet.'
            )

    def _mine(self, d_ap, d_an, valid):
        gaps = d_ap - d_an
        if self.mining == "semi_hard":
            valid = valid & (gaps < 0) & (gaps > -self.margin)
        elif self.mining == "hard":
            valid = valid & (gaps >= 0)
        return ops.maximum(gaps + self.margin, 0.0), valid


@keras.saving.register_keras_serializable("kerasim")
class TripletLoss(_TripletLoss):
    """Triplet loss: the anchor must be closer to the positive than to the negative, by a margin.

    The mean of `max(d_ap - d_an + margin, 0)` over the triplets of a batch, where `d_ap` is the
    distance of an anchor to a positive (an image of the same label) and `d_an` its distance to a
    negative (an image of another label). `y_true` holds labels `(batch,)`, `y_pred` embeddings
    `(batch, dim)`. Memory grows with the cube of the batch size, 67 MB per array for 256 images,
    and with `batch**2 * dim`.

    Args:
        margin: Margin in the units of the distance; 0 or more, greater than 0 for "semi_hard".
        metric: "euclidean", "squared_euclidean" or "cosine" (1 - cosine similarity). Only "cosine"
            scales the embeddings to unit length.
        mining: "all" keeps all triplets, including those with loss 0; "semi_hard" keeps those with
            `d_ap < d_an < d_ap + margin`; "hard" those with `d_an <= d_ap`. The loss is the mean
            over the triplets that are kept.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `margin` is out of range, or `metric` or `mining` is unknown.

    Example:
        >>> embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> loss = TripletLoss(margin=0.2)
        >>> round(float(loss(np.array([0, 0, 1, 1]), embeddings)), 3)  # classes are separated
        0.0
        >>> round(float(loss(np.array([0, 1, 0, 1]), embeddings)), 3)  # classes are mixed
        0.7

    Reference:
        Schroff et al., 2015. https://arxiv.org/abs/1503.03832
    """

    def __init__(
        self,
        margin: float = 0.2,
        metric: PairMetric = "cosine",
        mining: Literal["all", "semi_hard", "hard"] = "all",
        **kwargs: Any,
    ):
        super().__init__(margin, mining, **kwargs)
        _checks.one_of("metric", metric, PAIR_METRICS)
        self.metric = metric

    def _costs(self, y_true, y_pred):
        positive, negative = _masks(y_true)
        distances = _pairwise(y_pred, self.metric)
        valid = positive[:, :, None] & negative[:, None, :]
        return self._mine(distances[:, :, None], distances[:, None, :], valid)


class _TwoSides:
    """Base of losses on groups `(batch, 2)` and the embeddings of pairs, `(batch, 2, dim)`."""

    def _check_shapes(self, true, predicted):
        """Raises an `ArgumentError` unless there are two groups and two embeddings of each pair."""
        if true[1:] != (2,) or len(predicted) != 3 or predicted[1] != 2:
            raise ArgumentError(
                f"y_true has shape {true} and y_pred {predicted}, expected groups (batch, 2) and "
                "embeddings (batch, 2, dim). Use models.siamese(embedder, metric=None) and "
                "data.PositivePairBatches."
            )


@keras.saving.register_keras_serializable("kerasim")
class InBatchTripletLoss(_TwoSides, _TripletLoss):
    """Triplet loss over positive pairs with in-batch negatives.

    The mean of `max(d(left_i, right_i) - d(left_i, right_j) + margin, 0)` with the distance `d`.
    The left image of pair `i` is the anchor, its right image the positive, and the right images of
    all pairs `j` that share no group with pair `i` are the negatives.

    `y_true` holds groups `(batch, 2)`, integers below 2**24: images of the same object have the
    same group. `y_pred` is `(batch, 2, dim)`, the output of
    `models.siamese(embedder, metric=None)`.

    Args:
        margin: Margin in the units of `d`; 0 or more, greater than 0 for "semi_hard".
        mining: With `d_ap = d(left_i, right_i)` and `d_an = d(left_i, right_j)`: "all" keeps all
            triplets, including those with loss 0; "semi_hard" keeps those with
            `d_ap < d_an < d_ap + margin`; "hard" those with `d_an <= d_ap`.
        metric: "cosine" (1 - cosine similarity, at most 2), "euclidean" or "squared_euclidean".
            Only "cosine" scales the embeddings to unit length.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `margin` is out of range, or `metric` or `mining` is unknown.

    Example:
        >>> groups = np.array([[0, 0], [1, 1]])
        >>> embeddings = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> loss = InBatchTripletLoss(margin=0.2)
        >>> round(float(loss(groups, embeddings)), 3)  # each left image matches its right one
        0.0
        >>> swapped = np.stack([embeddings[:, 0], embeddings[::-1, 1]], axis=1)
        >>> round(float(loss(groups, swapped)), 3)  # it matches the other right one
        1.2

    Reference:
        Schroff et al., 2015. https://arxiv.org/abs/1503.03832
    """

    def __init__(
        self,
        margin: float = 0.2,
        mining: Literal["all", "semi_hard", "hard"] = "all",
        metric: PairMetric = "cosine",
        **kwargs: Any,
    ):
        super().__init__(margin, mining, **kwargs)
        _checks.one_of("metric", metric, PAIR_METRICS)
        self.metric = metric

    def _costs(self, y_true, y_pred):
        distances = _pairwise(y_pred[:, 0], self.metric, y_pred[:, 1])
        others = _other_groups(y_true, y_pred)
        return self._mine(ops.diagonal(distances)[:, None], distances, others)


class _SoftmaxLoss(_BatchLoss):
    """Base of losses on cosine similarities divided by a temperature."""

    def __init__(self, temperature: float = 0.1, **kwargs: Any):
        super().__init__(**kwargs)
        self.temperature = _checks.number("temperature", temperature, 1e-6)


@keras.saving.register_keras_serializable("kerasim")
class InfoNCELoss(_TwoSides, _SoftmaxLoss):
    """Contrastive loss over positive pairs with in-batch negatives (InfoNCE, N-pair).

    The mean over pairs `i` of `-log(e(i, i) / (e(i, i) + sum_j e(i, j)))`, where `e(i, j) =
    exp(cos(left_i, right_j) / temperature)`. The sum is over all pairs `j` that have no group in
    common with pair `i`.

    `y_true` holds groups `(batch, 2)`, integers below 2**24: images of the same object have the
    same group. `y_pred` is `(batch, 2, dim)`, the output of
    `models.siamese(embedder, metric=None)`.

    Args:
        temperature: Softmax temperature, greater than 0. Smaller values emphasize hard negatives.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `temperature` is not positive.

    Example:
        >>> groups = np.array([[0, 0], [1, 1]])
        >>> embeddings = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> loss = InfoNCELoss(temperature=0.1)
        >>> round(float(loss(groups, embeddings)), 3)  # each left image matches its right one
        0.0
        >>> swapped = np.stack([embeddings[:, 0], embeddings[::-1, 1]], axis=1)
        >>> round(float(loss(groups, swapped)), 3)  # it matches the other right one
        10.0

    Reference:
        Sohn, 2016, Improved deep metric learning with multi-class N-pair loss objective; with
        temperature and cosine: Chen et al., 2020. https://arxiv.org/abs/2002.05709
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        logits = _cosines(y_pred[:, 0], y_pred[:, 1]) / self.temperature
        own = ops.eye(ops.shape(logits)[0], dtype="bool")
        others = _other_groups(y_true, y_pred)
        total = ops.logsumexp(ops.where(own | others, logits, _FAR), axis=1)
        return ops.mean(total - ops.diagonal(logits))

    def count_valid(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the total number of negatives of all pairs of `y_true` and `y_pred`."""
        return _count(_other_groups(y_true, y_pred))


@keras.saving.register_keras_serializable("kerasim")
class AngularLoss(_BatchLoss):
    """Angular loss: bounds the angle at the negative of the triangle anchor, positive, negative.

    With embeddings scaled to unit length, the mean over ordered pairs of an anchor `a` and a
    positive `p` of `log(1 + sum_n exp(4 tan(angle)**2 (a + p) n - 2 (1 + tan(angle)**2) a p))`,
    where `n` runs over the negatives (images of other labels). `y_true` holds labels `(batch,)`,
    `y_pred` embeddings `(batch, dim)`. Memory grows with the cube of the batch size, 67 MB per
    array for 256 images.

    Args:
        angle: Upper bound of the angle, in degrees, from 0.001 to 89.9.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `angle` is out of range.

    Example:
        >>> embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> loss = AngularLoss(angle=40.0)
        >>> round(float(loss(np.array([0, 0, 1, 1]), embeddings)), 3)  # classes are separated
        0.064
        >>> round(float(loss(np.array([0, 1, 0, 1]), embeddings)), 3)  # classes are mixed
        3.539

    Reference:
        Wang et al., 2017. https://arxiv.org/abs/1708.01682
    """

    def __init__(self, angle: float = 40.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.angle = _checks.number("angle", angle, 1e-3, 89.9)

    def _costs(self, y_true, y_pred):
        positive, negative = _masks(y_true)
        cosines = _cosines(y_pred)
        tangent = math.tan(math.radians(self.angle)) ** 2
        sums = cosines[:, None, :] + cosines[None, :, :]
        exponents = 4 * tangent * sums - 2 * (1 + tangent) * cosines[:, :, None]
        exponents = ops.where(negative[:, None, :], exponents, _FAR)
        return _log_one_plus_sum(exponents), _with_negative(positive, negative)


@keras.saving.register_keras_serializable("kerasim")
class MultiSimilarityLoss(_BatchLoss):
    """Multi-similarity loss: weights each pair relative to the other pairs of its anchor.

    The mean over all anchors of `log(1 + P) / alpha + log(1 + N) / beta`, with
    `P = sum_p exp(-alpha (s_p - base))` and `N = sum_n exp(beta (s_n - base))`, where `s_p` and
    `s_n` are the cosine similarities of the anchor to its positives and negatives. All pairs of the
    batch are used: the mining of the paper is left out. `y_true` holds labels `(batch,)`, `y_pred`
    embeddings `(batch, dim)`.

    Args:
        alpha: Scale of the positive pairs, greater than 0.
        beta: Scale of the negative pairs, greater than 0.
        base: Cosine similarity that positive pairs should exceed and negative pairs should not, -1
            to 1.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `alpha`, `beta` or `base` is out of range.

    Example:
        >>> embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> loss = MultiSimilarityLoss()
        >>> round(float(loss(np.array([0, 0, 1, 1]), embeddings)), 3)  # classes are separated
        0.157
        >>> round(float(loss(np.array([0, 1, 0, 1]), embeddings)), 3)  # classes are mixed
        1.157

    Reference:
        Wang et al., 2019. https://arxiv.org/abs/1904.06627
    """

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        self.alpha = _checks.number("alpha", alpha, 1e-6)
        self.beta = _checks.number("beta", beta, 1e-6)
        self.base = _checks.number("base", base, -1, 1)

    def _costs(self, y_true, y_pred):
        positive, negative = _masks(y_true)
        above = _cosines(y_pred) - self.base
        near = _log_one_plus_sum(ops.where(positive, -self.alpha * above, _FAR)) / self.alpha
        far = _log_one_plus_sum(ops.where(negative, self.beta * above, _FAR)) / self.beta
        return near + far, ops.any(positive | negative, axis=1)


@keras.saving.register_keras_serializable("kerasim")
class SupConLoss(_SoftmaxLoss):
    """Supervised contrastive loss: all positives of an anchor against all other images.

    With `e(i, j) = exp(cos(i, j) / temperature)`, the loss of an anchor `i` is the mean over its
    positives `p` of `-log(e(i, p) / sum_j e(i, j))`, where `j` runs over all other images of the
    batch. The loss is the mean over the anchors that have a positive. `y_true` holds labels
    `(batch,)`, `y_pred` embeddings `(batch, dim)`.

    Args:
        temperature: Softmax temperature, greater than 0. Smaller values emphasize hard negatives.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `temperature` is not positive.

    Example:
        >>> embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> loss = SupConLoss(temperature=0.1)
        >>> round(float(loss(np.array([0, 0, 1, 1]), embeddings)), 3)  # classes are separated
        0.0
        >>> round(float(loss(np.array([0, 1, 0, 1]), embeddings)), 3)  # classes are mixed
        10.0

    Reference:
        Khosla et al., 2020, `L_out`. https://arxiv.org/abs/2004.11362
    """

    def _costs(self, y_true, y_pred):
        positive, negative = _masks(y_true)
        logits = _cosines(y_pred) / self.temperature
        total = ops.logsumexp(ops.where(positive | negative, logits, _FAR), axis=1, keepdims=True)
        count = ops.sum(ops.cast(positive, logits.dtype), axis=1)
        costs = ops.sum(ops.where(positive, total - logits, 0.0), axis=1)
        return costs / ops.maximum(count, 1.0), count > 0


@keras.saving.register_keras_serializable("kerasim")
class NTXentLoss(_SoftmaxLoss):
    """Normalized temperature-scaled cross-entropy: one positive against all negatives.

    With `e(i, j) = exp(cos(i, j) / temperature)`, the mean over ordered pairs of an anchor `i` and
    a positive `p` of `-log(e(i, p) / (e(i, p) + sum_n e(i, n)))`, where `n` runs over the negatives
    (images of other labels). Unlike in `SupConLoss`, the other positives of the anchor are not in
    the denominator. `y_true` holds labels `(batch,)`, `y_pred` embeddings `(batch, dim)`.

    Args:
        temperature: Softmax temperature, greater than 0. Smaller values emphasize hard negatives.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `temperature` is not positive.

    Example:
        >>> embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> loss = NTXentLoss(temperature=0.1)
        >>> round(float(loss(np.array([0, 0, 1, 1]), embeddings)), 3)  # classes are separated
        0.0
        >>> round(float(loss(np.array([0, 1, 0, 1]), embeddings)), 3)  # classes are mixed
        10.0

    Reference:
        Chen et al., 2020. https://arxiv.org/abs/2002.05709
    """

    def _costs(self, y_true, y_pred):
        positive, negative = _masks(y_true)
        logits = _cosines(y_pred) / self.temperature
        total = ops.logsumexp(ops.where(negative, logits, _FAR), axis=1, keepdims=True)
        return ops.softplus(total - logits), _with_negative(positive, negative)


@keras.saving.register_keras_serializable("kerasim")
class ArcFaceLoss(_Loss):
    """ArcFace: softmax cross-entropy with a margin added to the angle of the true class.

    `-log(exp(scale cos(t + margin)) / (exp(scale cos(t + margin)) + sum_j exp(scale cos(t_j))))`,
    where `t` is the angle between the embedding and the direction of its class, and `t_j` are the
    angles to the directions of the other classes. Beyond `t = pi - margin`, where `cos(t + margin)`
    would increase again, it is replaced by `cos(t) - margin sin(margin)`.

    `y_true` holds labels, `(batch,)` or `(batch, 1)`, integers from 0. `y_pred` holds the cosines,
    `(batch, classes)`, the output of `layers.CosineClassifier`. The loss of a label outside of
    `0 ... classes - 1` is NaN, at which `training.fit` stops.

    Args:
        margin: Margin in radians, 0 to pi / 2.
        scale: Factor of the cosines, greater than 0.
        **kwargs: Passed to `keras.Loss`, such as `name`.

    Raises:
        ArgumentError: If `margin` or `scale` is out of range.

    Example:
        >>> cosines = np.array([[0.9, 0.1], [0.2, 0.8]])
        >>> loss = ArcFaceLoss(margin=0.5, scale=16.0)
        >>> round(float(loss(np.array([0, 1]), cosines)), 3)  # the true class has the larger cosine
        0.016
        >>> round(float(loss(np.array([1, 0]), cosines)), 3)
        19.068

    Reference:
        Deng et al., 2019. https://arxiv.org/abs/1801.07698
    """

    def __init__(self, margin: float = 0.5, scale: float = 64.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.margin = _checks.number("margin", margin, 0, math.pi / 2)
        self.scale = _checks.number("scale", scale, 1e-6)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        # `ops.one_hot` raises an error for a label that is no class on torch, and not elsewhere.
        own = ops.equal(labels[:, None], ops.arange(ops.shape(y_pred)[-1], dtype="int32"))
        own = ops.cast(own, y_pred.dtype)
        cosine = ops.clip(y_pred, -1.0, 1.0)
        # 1 - cosine**2 without its cancellation; `safe_sqrt` has a finite slope at 0.
        sine = safe_sqrt((1 - cosine) * (1 + cosine))
        wider = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        past = cosine - self.margin * math.sin(self.margin)
        wider = ops.where(cosine >= -math.cos(self.margin), wider, past)
        logits = self.scale * (own * wider + (1 - own) * cosine)
        costs = ops.logsumexp(logits, axis=-1) - ops.sum(own * logits, axis=-1)
        return ops.where(ops.sum(own, axis=-1) > 0, costs, np.nan)


@keras.saving.register_keras_serializable("kerasim")
class EmptyBatchCounter(keras.metrics.Sum):
    """Counts the batches of an epoch in which a loss found no valid pair or triplet.

    Pass it to `compile` as a metric, and `fit` logs it as "empty_batches". It repeats the
    computation of the loss to find the valid pairs.

    Args:
        loss: A loss of this module that compares the images of a batch (any but `ContrastiveLoss`
            and `ArcFaceLoss`), or the config of one.
        name: Name of the metric in logs.
        **kwargs: Passed to `keras.Metric`.

    Raises:
        ArgumentTypeError: If `loss` is computed for each image or pair alone.

    Example:
        >>> counter = EmptyBatchCounter(TripletLoss())
        >>> counter.update_state(np.array([0, 1, 2]), np.eye(3))  # no two images of one class
        >>> counter.update_state(np.array([0, 0, 1]), np.eye(3))
        >>> float(counter.result())
        1.0
    """

    def __init__(
        self, loss: keras.Loss | dict[str, Any], name: str = "empty_batches", **kwargs: Any
    ):
        super().__init__(name=name, **{**kwargs, "dtype": full_precision(kwargs.get("dtype"))})
        # A saved metric holds the config of its loss.
        self.loss = keras.losses.get(loss) if isinstance(loss, dict) else loss
        if not hasattr(self.loss, "count_valid"):
            raise ArgumentTypeError(
                f"loss must compare the images of a batch. Received {loss!r}: pass a loss "
                "such as losses.TripletLoss()."
            )

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Any = None) -> None:
        labels, given = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred, "float32")
        super().update_state(self.loss.count_valid(labels, given) == 0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "loss": keras.losses.serialize(self.loss)}


def _array_of_list(x):
    """Converts a list of numbers to an array; Keras would treat it as a structure of tensors."""
    if not isinstance(x, (list, tuple)) or any(map(ops.is_tensor, keras.tree.flatten(x))):
        return x
    return _checks.array("y_true and y_pred", x)


def _holds_text(labels) -> bool:
    """Returns whether `labels`, an array, tensor or list, holds strings."""
    dtype: Any = getattr(labels, "dtype", None) or np.asarray(labels).dtype
    return getattr(dtype, "kind", "") in tuple("USO") or getattr(dtype, "name", "") == "string"


def _shape(x) -> tuple:
    """Returns the shape of an array, a tensor or a list, None where it is not known."""
    return tuple(x.shape if hasattr(x, "shape") else np.shape(x))


def _masks(y_true):
    """Returns masks `(batch, batch)`: pairs of the same label, but for the diagonal, and others."""
    labels = ops.reshape(y_true, (-1,))
    same = labels[:, None] == labels[None, :]
    return same & ~ops.eye(ops.shape(labels)[0], dtype="bool"), ~same


def _other_groups(y_true, y_pred):
    """Returns a mask `(batch, batch)` of the pairs that share no group, on either side."""
    groups = ops.reshape(y_true, (ops.shape(y_pred)[0], 2))
    shared = groups[:, None, :, None] == groups[None, :, None, :]
    return ~ops.any(shared, axis=(2, 3))


def _count(mask):
    return ops.sum(ops.cast(mask, "float32"))


def _mean_of(costs, kept):
    """Returns the mean of the costs that the mask `kept` keeps, 0 if there are none."""
    count = ops.cast(ops.maximum(_count(kept), 1.0), costs.dtype)
    # Divided before they are summed, because the sum may be too large for float32.
    return ops.sum(ops.where(kept, costs / count, 0.0))


def _with_negative(positive, negative):
    """Returns the positive pairs whose anchor has a negative."""
    return positive & ops.any(negative, axis=1, keepdims=True)


def _cosines(left, right=None):
    """Returns the cosine of each vector with each of `right`; None for `left` itself."""
    left = l2_normalize(left)
    return ops.matmul(left, ops.transpose(left if right is None else l2_normalize(right)))


def _negative_cost(distances, margin, squared_margin):
    """Returns the contrastive loss of negative pairs, 0 for distances beyond the margin."""
    near = ops.minimum(distances, margin)
    if squared_margin:
        return ops.maximum(margin**2 - ops.square(near), 0.0)
    return ops.square(margin - near)


def _pairwise(embeddings, metric, others=None):
    """Returns the distance of each embedding to each of `others`; None for `embeddings` itself.

    They are computed from differences: `|x|**2 - 2 x y + |y|**2` loses the distance of two
    embeddings if it is small compared with their norms.
    """
    if metric == "cosine":
        return 1 - _cosines(embeddings, others)
    others = embeddings if others is None else others
    distances = safe_norm(embeddings[:, None, :] - others[None, :, :])[..., 0]
    return ops.square(distances) if metric == "squared_euclidean" else distances


def _log_one_plus_sum(exponents):
    """Returns log(1 + sum of exp) along the last axis."""
    return ops.softplus(ops.logsumexp(exponents, axis=-1))
