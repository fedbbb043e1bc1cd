"""Siamese networks, and ensembles of embedders."""

from collections.abc import Iterable

import keras
from keras import layers

from kerasim import _checks
from kerasim._image_checks import check_embedder
from kerasim._tensors import PAIR_METRICS, PairMetric
from kerasim.errors import ArgumentError
from kerasim.layers import Distance
from kerasim.models import _blocks as parts


def siamese(
    embedder: keras.Model,
    metric: PairMetric | None = "cosine",
    name: str = "siamese",
) -> keras.Model:
    """Builds a Siamese network: two images pass through one embedder with shared weights.

    Args:
        embedder: `keras.Model` from images to embeddings. Training the Siamese network also trains
            the embedder, because they share weights.
        metric: "euclidean", "squared_euclidean" or "cosine"; None to return both embeddings, as
            `losses.InfoNCELoss` and `losses.InBatchTripletLoss` expect.
        name: Name of the model.

    Returns:
        Model from `[left, right]`, each `(batch, *image_shape)`, to the distances of their
        embeddings `(batch, 1)`; with `metric=None` to both embeddings, `(batch, 2, dim)`.

    Raises:
        ArgumentError: If the embedder does not map one image to one vector, or `metric` is unknown.

    Example:
        >>> embedder = conv_embedder((16, 16, 1), embedding_dim=8, widths=(8, 16))
        >>> siamese(embedder).output_shape, siamese(embedder, metric=None).output_shape
        ((None, 1), (None, 2, 8))

    Reference:
        Bromley et al., 1993, Signature verification using a "Siamese" time delay neural network;
        Hadsell et al., 2006. https://doi.org/10.1109/CVPR.2006.100
    """
    shape, dim = check_embedder("embedder", embedder)
    if metric is not None:
        _checks.one_of("metric", metric, PAIR_METRICS)
    left, right = parts.image_input(shape, "left"), parts.image_input(shape, "right")
    vectors = [embedder(left), embedder(right)]
    if metric is not None:
        output = Distance(metric, name="distance")(vectors)
    else:
        both = layers.Concatenate(dtype="float32")(vectors)
        output = layers.Reshape((2, dim), dtype="float32", name="both")(both)
    return keras.Model([left, right], output, name=name)


def ensemble(embedders: Iterable[keras.Model], name: str = "ensemble") -> keras.Model:
    """Builds an embedder that concatenates the embeddings of several, each scaled to unit length.

    The cosine similarity of two such embeddings is the mean of the members' cosine similarities.
    Train the members, not the ensemble: the gradient of a unit vector at zero is not finite.

    Args:
        embedders: Two models or more from images of one shape to vectors.
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` to `(batch, sum of dims)`. It shares the weights
        of its members.

    Raises:
        ArgumentError: If there are fewer than two models, or they take images of several shapes.

    Example:
        >>> members = [conv_embedder((16, 16, 1), dim, widths=(8, 16)) for dim in (8, 12)]
        >>> ensemble(members).output_shape
        (None, 20)
    """
    embedders = _checks.as_list("embedders", embedders)
    if len(embedders) < 2:
        raise ArgumentError(f"embedders holds {len(embedders)} models: pass two or more.")
    shapes = [check_embedder(f"embedders[{n}]", model)[0] for n, model in enumerate(embedders)]
    if len(set(shapes)) > 1:
        raise ArgumentError(
            f"embedders take images of several shapes, {shapes}. Pass models of one image shape."
        )
    images = parts.image_input(shapes[0])
    unit_embeddings = []
    for n, embedder in enumerate(embedders, start=1):
        # Two members may have the same name, hence a model with a new one.
        member = keras.Model(embedder.inputs[0], embedder.outputs[0], name=f"member{n}")
        unit_embeddings.append(
            layers.UnitNormalization(dtype="float32", name=f"unit{n}")(member(images))
        )
    embeddings = layers.Concatenate(dtype="float32", name="embeddings")(unit_embeddings)
    return keras.Model(images, embeddings, name=name)
