"""Batches of stored embeddings of pairs, for training a head on a frozen backbone."""

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim.data._batches import SeededBatches, pair_groups
from kerasim.errors import ArgumentError, ArgumentTypeError

_EMBED_FIRST = "Embed the images first: embedding.embed(embedder, images)"


class EmbeddingPairBatches(SeededBatches):
    """Batches of stored embeddings of positive pairs, to train a head on a frozen backbone.

    The counterpart of `PositivePairBatches` for vectors: the backbone embeds each image once, and
    the head is trained on the result. A batch is `((left, right), groups)`, for
    `models.siamese(head, metric=None)` with `losses.InfoNCELoss` or `losses.InBatchTripletLoss`:
    embeddings, float32 `(batch, dim)`, of both sides, and `groups` `(batch, 2)` float32. The other
    pairs of a batch are the negatives.

    An image may have embeddings of several versions, such as the image and its mirror image. Each
    batch then takes one version of each image at random, independently for both sides.

    Args:
        left: `(n, dim)` or `(n, versions, dim)` floats, in memory or a file
            (`np.load("left.npy", mmap_mode="r")`), of which each batch reads its rows.
        right: Embeddings of the positive of each row of `left`, of the same `dim`. It may have
            another number of versions.
        groups: `(n,)` integers or strings, one for each pair, or `(n, 2)`, one for each side. Pairs
            that share a group are never each other's negatives. None: each pair has its own group.
        batch_size: Pairs per batch, 2 or more; the last batch may be smaller.
        seed: The same seed gives the same epochs.

    Raises:
        ArgumentError: If the sides differ in length or `dim`, hold NaN or infinity, or no pair has
            a negative, or `groups` has another length.
        ArgumentTypeError: If a side holds images or integers instead of embeddings.

    Example:
        >>> from kerasim import losses, models
        >>> rng = np.random.default_rng(0)
        >>> left, right = rng.normal(size=(2, 100, 2, 16))  # of two versions of each image
        >>> batches = EmbeddingPairBatches(left, right, batch_size=20)
        >>> (anchors, positives), groups = batches[0]
        >>> anchors.shape, groups.shape
        ((20, 16), (20, 2))
        >>> head = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8)])
        >>> net = models.siamese(head, metric=None)
        >>> net.compile("adam", losses.InfoNCELoss())
        >>> net.fit(batches, epochs=1, verbose=0).epoch
        [0]
    """

    _config_keys = ("left", "right", "groups")

    def __init__(
        self,
        left: ArrayLike,
        right: ArrayLike,
        groups: ArrayLike | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ):
        self.left, self.right = _check_side("left", left), _check_side("right", right)
        for axis, what in ((0, "one row for each row of left"), (-1, "embeddings of one embedder")):
            if self.left.shape[axis] != self.right.shape[axis]:
                raise ArgumentError(
                    f"left has shape {self.left.shape} and right {self.right.shape}: pass {what}."
                )
        _checks.integer("batch_size", batch_size, 2)  # one pair alone has no negatives
        super().__init__(len(self.left), batch_size, seed)
        self.groups = pair_groups(groups, self.rows, "rows")
        _refuse_without_negatives(self.groups)

    @property
    def versions(self) -> tuple[int, int]:
        """Number of versions of each image, of the left and of the right side."""
        left, right = (1 if side.ndim == 2 else side.shape[1] for side in (self.left, self.right))
        return left, right

    def __getitem__(self, index: int):
        (rows,), rng = self._batch_indices(index)
        left, right = _draw(self.left, rows, rng), _draw(self.right, rows, rng)
        return (left, right), self.groups[rows]

    def __repr__(self) -> str:
        parts = [
            f"{self.rows} pairs of embeddings of {self.left.shape[-1]}",
            f"{len(self)} batches of {self.batch_size} per epoch",
            f"seed={self.seed}",
        ]
        if self.versions != (1, 1):
            parts.append(f"versions={self.versions}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _draw(side, rows, rng):
    """Returns the embedding of a random version of each of `rows`, float32."""
    if side.ndim == 3:
        return side[rows, rng.integers(0, side.shape[1], len(rows))].astype("float32")
    return side[rows].astype("float32")


def _check_side(name: str, side) -> np.ndarray:
    """Returns the embeddings of one side as an array, which stays in its file if it is one."""
    if isinstance(side, ImageFolder):
        raise ArgumentTypeError(f"{name} is an ImageFolder, not embeddings. {_EMBED_FIRST}.")
    side = _checks.array(name, side, "pass embeddings of one size")
    if side.ndim == 4:
        raise ArgumentTypeError(
            f"{name} has shape {side.shape}, that of images; expected embeddings (n, dim) or "
            f"(n, versions, dim). {_EMBED_FIRST}."
        )
    if side.dtype.kind != "f":
        raise ArgumentTypeError(
            f"{name} has dtype {side.dtype}, expected floats. {_EMBED_FIRST}, or load stored "
            'embeddings: np.load("embeddings.npy", mmap_mode="r").'
        )
    if side.ndim not in (2, 3) or 0 in side.shape:
        raise ArgumentError(
            f"{name} has shape {side.shape}, expected embeddings (n, dim), or (n, versions, dim) "
            "of several versions of each image. Pass a row for each pair."
        )
    _checks.finite(name, side)
    return side


def _refuse_without_negatives(groups) -> None:
    """Raises if all pairs share a group, so that none is a negative of another."""
    for shared in np.unique(groups[0]):
        if (groups == shared).any(axis=1).all():
            pairs = _checks.counted(len(groups), "pair has", "pairs have")
            raise ArgumentError(
                f"groups: {pairs} one group in common, so that no pair has a negative. Pass two "
                "groups or more."
            )
