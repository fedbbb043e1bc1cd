"""Heads: small models from stored features to embeddings."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers
from numpy.typing import ArrayLike

from kerasim import _checks
from kerasim.errors import ArgumentError
from kerasim.layers import Whitening
from kerasim.models import _blocks as blocks


def whitened_head(
    features: ArrayLike,
    parts: Sequence[tuple[int, int]] | None = None,
    components: int | None = None,
    power: float = 0.8,
    name: str = "whitened_head",
) -> keras.Model:
    """Builds a head that whitens features of a frozen backbone and maps them linearly.

    Features often consist of parts that differ in scale and in number of channels: several stages
    of a backbone, or the cells of a grid. The head treats each part by itself: its channels are
    whitened (`layers.Whitening`, fitted on `features`), then mapped by a linear layer that starts
    as the identity, and the part is scaled to length 1. The embedding is the concatenation, so that
    the cosine similarity of two embeddings is the mean of those of the parts.

    Without training, the head only whitens. Training changes the linear layers alone: on stored
    features (`data.EmbeddingPairBatches`) it takes seconds.

    Args:
        features: `(n, dim)`, features of training images, such as `embedding.embed` returns.
        parts: `(cells, channels)` of each part, in the order in which they are concatenated in
            `dim`: `(9, 512)` for a 3 x 3 grid of 512 channels, `(1, 512)` for an average. The cells
            of a part share their whitening and their linear layer. None for one part of one cell.
        components: Principal components that are kept of the channels of each part, at most; None
            for all.
        power: How far the variances are equalized, from 0 (not at all) to 1 (completely).
        name: Name of the model.

    Returns:
        Model from features `(batch, dim)` to embeddings `(batch, sum of cells * kept channels)`.

    Raises:
        ArgumentError: If `parts` does not add up to `dim`, or `features` has too few rows.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(50, 2 * 3 + 4))
        >>> head = whitened_head(features, parts=[(2, 3), (1, 4)], components=3)
        >>> head.output_shape  # 2 cells of 3 components, 1 cell of 3
        (None, 9)

        The parts of an embedder with several stages on a 3 x 3 grid:

        >>> from kerasim import models
        >>> frozen = models.pretrained_embedder(
        ...     "squeezenet", None, pooling="grid", embedding_dim=None, stages=("fire2", "fire4")
        ... )
        >>> [(9, frozen.get_layer(f"pooling{n}").input.shape[-1]) for n in (1, 2)]
        [(9, 128), (9, 256)]

    Reference:
        Whitening: Jégou & Chum, 2012. https://hal.science/hal-00722622
    """
    features = _checks.vectors("features", features, rows=2)
    dim = features.shape[1]
    parts = _check_parts(parts, dim)
    if components is not None:
        components = _checks.integer("components", components)

    inputs: Any = blocks.vector_input(dim, "features")  # Keras does not annotate slices of tensors
    embedded = []
    first = 0
    for n, (cells, channels) in enumerate(parts, start=1):
        columns = slice(first, first + cells * channels)
        kept = channels if components is None else min(components, channels)
        whitening = Whitening(kept, power, dtype="float32", name=f"whitening{n}")
        whitening.adapt(features[:, columns].reshape(-1, channels))
        x = layers.Reshape((cells, channels), dtype="float32", name=f"part{n}")(inputs[:, columns])
        x = whitening(x)
        x = layers.Dense(
            kept,
            use_bias=False,
            kernel_initializer="identity",
            dtype="float32",
            name=f"linear{n}",
        )(x)
        x = layers.Flatten(blocks.CHANNELS_LAST, dtype="float32", name=f"vector{n}")(x)
        embedded.append(layers.UnitNormalization(dtype="float32", name=f"unit{n}")(x))
        first = columns.stop
    embeddings = embedded[0]
    if len(embedded) > 1:
        embeddings = layers.Concatenate(dtype="float32", name="embeddings")(embedded)
    return keras.Model(inputs, embeddings, name=name)


def _check_parts(parts, dim: int) -> list[tuple[int, int]]:
    """Returns `parts` as pairs of integers that add up to `dim`."""
    if parts is None:
        return [(1, dim)]
    checked = []
    for part in _checks.as_list("parts", parts):
        pair = _checks.as_tuple(part) or ()
        if len(pair) != 2:
            raise ArgumentError(
                f"parts holds {part!r}. Pass (cells, channels) for each part, such as (9, 512) for "
                "a 3 x 3 grid of 512 channels."
            )
        checked.append(
            (
                _checks.integer(f"cells of {pair} in parts", pair[0]),
                _checks.integer(f"channels of {pair} in parts", pair[1]),
            )
        )
    total = sum(cells * channels for cells, channels in checked)
    if total != dim:
        raise ArgumentError(
            f"parts={checked} adds up to {total}, but features has {dim} columns. Pass "
            "(cells, channels) of each part, in the order in which they are concatenated."
        )
    return checked
