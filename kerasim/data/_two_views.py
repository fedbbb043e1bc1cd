"""Batches of two views of each image, for training without labels."""

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim.data._augmentation import Augment
from kerasim.data._batches import Batches
from kerasim.errors import ArgumentError


class TwoViewBatches(Batches):
    """Batches of two augmented views of each image, for training without labels (SimCLR).

    A batch is `(views, labels)`, for an embedder and `losses.NTXentLoss`: `views` float32
    `(2 n, height, width, channels)` holds a view of each of `n` images, then a second view of each,
    augmented independently; `labels`, int64 `(2 n,)`, numbers the images of the batch from 0. Two
    views with the same label are a positive pair, all others are negative pairs.

    The network learns what the two views of an image have in common, and to ignore the rest. For
    photographs, use crops and changes of color, such as

        augment = [
            keras.layers.RandomTranslation(0.25, 0.25),
            keras.layers.RandomZoom((-0.5, 0)),
            keras.layers.RandomColorJitter(
                value_range=(0, 1), brightness_factor=0.4, contrast_factor=0.4,
                saturation_factor=(0.3, 0.7), hue_factor=0.1,
            ),
            keras.layers.RandomGrayscale(0.2),
        ]

    Args:
        images: `(n_images, height, width, channels)`, float in [0, 1] or uint8, or an
            `ImageFolder`.
        augment: Layer of Keras, function `augment(images, rng)`, or list of these, applied after
            `flip` and `shift`; see `ImageBatches`. None if these are enough.
        batch_size: Images per batch, 2 or more, each of which gives two views; the last batch may
            be smaller. More images give each view more negatives.
        seed: The same seed gives the same epochs.
        sigma: Standard deviation of Gaussian noise, in units of [0, 1], added to the views; the sum
            is clipped to [0, 1].
        flip: Mirror half of the views, left to right.
        shift: Shift each view by up to this many pixels up, down, left and right, repeating its
            edge.

    Raises:
        ArgumentError: If nothing makes the two views differ, there are no negatives, or `augment`
            mixes images or returns views of several sizes.
        ArgumentTypeError: If `augment` contains what is neither a layer nor a function.

    Example:
        >>> images = np.random.default_rng(0).random((40, 16, 16, 3))
        >>> batches = TwoViewBatches(images, keras.layers.RandomRotation(0.1), batch_size=8)
        >>> views, labels = batches[0]
        >>> views.shape, labels.tolist()
        ((16, 16, 16, 3), [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7])

    Reference:
        Chen et al., 2020. https://arxiv.org/abs/2002.05709
    """

    def __init__(
        self,
        images: ArrayLike | ImageFolder,
        augment: Augment | None = None,
        batch_size: int = 128,
        seed: int = 0,
        *,
        sigma: float = 0.0,
        flip: bool = False,
        shift: int = 0,
    ):
        _checks.integer("batch_size", batch_size, 2)
        super().__init__(images, batch_size, seed, sigma, flip, shift, augment)
        if self.rows < 2:
            raise ArgumentError(
                "images holds one image, whose views have no negatives. Pass two images or more."
            )
        if not (self.augment.steps or self.sigma or self.flip or self.shift):
            raise ArgumentError(
                "augment=None, and sigma, flip and shift are 0: the two views of an image would be "
                "equal. Pass an augmentation such as keras.layers.RandAugment()."
            )
        self._refuse_mixing("the two views of an image would show different images")

    def __getitem__(self, index: int):
        (rows,), rng = self._batch_indices(index)
        views = [self._augmented(rows, rng) for _ in range(2)]
        sizes = [view.shape[1:] for view in views]
        if sizes[0] != sizes[1]:
            raise ArgumentError(
                f"augment={self.augment} returned views of two sizes, {sizes[0]} and {sizes[1]}: "
                "it must return all views in one size. End it with a keras.layers.Resizing."
            )
        return np.concatenate(views), np.tile(np.arange(len(rows)), 2)
