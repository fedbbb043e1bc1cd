"""Siamese networks, and ensembles of embedders."""

import math
from collections.abc import Iterable, Sequence

import keras
from keras import layers

from kerasim import _checks, _keras_compat
from kerasim._image_checks import check_embedder
from kerasim._tensors import PAIR_METRICS, PairMetric
from kerasim.errors import ArgumentError
from kerasim.layers import AntialiasedResizing, Distance
from kerasim.models import _blocks as parts


def siamese(
    embedder: keras.Model,
    metric: PairMetric | None = "cosine",
    name: str = "siamese",
    *,
    right_embedder: keras.Model | None = None,
) -> keras.Model:
    """Builds a Siamese network: two images pass through one embedder with shared weights.

    Args:
        embedder: `keras.Model` from images to embeddings, or from vectors, such as a head that is
            trained on stored embeddings (`data.EmbeddingPairBatches`). Training the Siamese network
            also trains the embedder, because they share weights.
        metric: "euclidean", "squared_euclidean" or "cosine"; None to return both embeddings, as
            `losses.InfoNCELoss` and `losses.InBatchTripletLoss` expect.
        name: Name of the model.
        right_embedder: Another model for the right side, with weights of its own and embeddings of
            the same size, for sides of different kinds, such as sketches and photographs. None for
            `embedder` on both sides.

    Returns:
        Model from `[left, right]`, each `(batch, *image_shape)`, to the distances of their
        embeddings `(batch, 1)`; with `metric=None` to both embeddings, `(batch, 2, dim)`.

    Raises:
        ArgumentError: If an embedder does not map one image, or one vector, to one vector, `metric`
            is unknown, or two embedders share layers or differ in embedding size.

    Example:
        >>> embedder = conv_embedder((16, 16, 1), embedding_dim=8, widths=(8, 16))
        >>> siamese(embedder).output_shape, siamese(embedder, metric=None).output_shape
        ((None, 1), (None, 2, 8))

    Reference:
        Bromley et al., 1993, Signature verification using a "Siamese" time delay neural network;
        Hadsell et al., 2006. https://doi.org/10.1109/CVPR.2006.100
    """
    shape, dim = check_embedder("embedder", embedder, vectors=True)
    if metric is not None:
        _checks.one_of("metric", metric, PAIR_METRICS)
    right_shape, right_tower = shape, embedder
    if right_embedder is not None and right_embedder is not embedder:
        right_shape = _check_right(right_embedder, embedder, dim)
        # Two embedders may have the same name, hence a model with a new one.
        right_tower = keras.Model(
            right_embedder.inputs[0], right_embedder.outputs[0], name="right_embedder"
        )
    left, right = parts.float_input(shape, "left"), parts.float_input(right_shape, "right")
    vectors = [embedder(left), right_tower(right)]
    if metric is not None:
        output = Distance(metric, name="distance")(vectors)
    else:
        both = layers.Concatenate(dtype="float32")(vectors)
        output = layers.Reshape((2, dim), dtype="float32", name="both")(both)
    return keras.Model([left, right], output, name=name)


def _check_right(right_embedder, embedder, dim: int) -> tuple:
    """Returns the shape that the embedder of the right side takes, if it fits the left one."""
    shape, right_dim = check_embedder("right_embedder", right_embedder, vectors=True)
    if right_dim != dim:
        raise ArgumentError(
            f"right_embedder returns vectors of {right_dim}, but embedder of {dim}: pass two with "
            "the same embedding size."
        )
    _refuse_shared_layers({"embedder": embedder, "right_embedder": right_embedder}, "network")
    return shape


def ensemble(
    embedders: Iterable[keras.Model],
    weights: Sequence[float] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    name: str = "ensemble",
) -> keras.Model:
    """Builds an embedder that concatenates the embeddings of several, each scaled to unit length.

    The cosine similarity of two such embeddings is the mean of the members' cosine similarities.
    Each member has its own preprocessing inside, so that members may be built on different
    backbones. Train the members, not the ensemble: the gradient of a unit vector at zero is not
    finite.

    Args:
        embedders: Two models or more from images to vectors.
        weights: A positive number for each member, such as (2, 1): the cosine similarity is then
            the weighted mean. Embeddings of member `i` are scaled to length `sqrt(weights[i])`.
            None for equal weights.
        image_shape: `(height, width, channels)` of the images of the ensemble; None for that of the
            members. Members of another size resize the images (`layers.AntialiasedResizing`). Pass
            the largest size of a member: enlarging a smaller image does not restore its details.
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` to `(batch, sum of dims)`. It shares the weights
        of its members.

    Raises:
        ArgumentError: If there are fewer than two models, or not as many weights, or they take
            images of several sizes and `image_shape` is None, or of several numbers of channels,
            or if two share layers, as two embedders on one backbone do.

    Example:
        >>> members = [conv_embedder((16, 16, 1), dim, widths=(8, 16)) for dim in (8, 12)]
        >>> ensemble(members).output_shape
        (None, 20)
        >>> larger = conv_embedder((32, 32, 1), 8, widths=(8, 16))
        >>> ensemble([members[0], larger], image_shape=(32, 32, 1)).output_shape
        (None, 16)
    """
    embedders = _checks.as_list("embedders", embedders)
    if len(embedders) < 2:
        raise ArgumentError(f"embedders holds {len(embedders)} models: pass two or more.")
    shapes = [check_embedder(f"embedders[{n}]", model)[0] for n, model in enumerate(embedders)]
    named = {f"embedders[{n}]": embedder for n, embedder in enumerate(embedders)}
    _refuse_shared_layers(named, "ensemble")
    image_shape = _common_shape(shapes, image_shape)
    lengths = _lengths(weights, len(embedders))
    images = parts.image_input(image_shape)
    scaled = []
    for n, (embedder, shape, length) in enumerate(
        zip(embedders, shapes, lengths, strict=True), start=1
    ):
        # Two members may have the same name, hence a model with a new one.
        member = keras.Model(embedder.inputs[0], embedder.outputs[0], name=f"member{n}")
        x = layers.UnitNormalization(dtype="float32", name=f"unit{n}")(
            member(_resized(images, shape, f"resize{n}"))
        )
        scaled.append(
            x if length == 1 else layers.Rescaling(length, dtype="float32", name=f"weight{n}")(x)
        )
    embeddings = layers.Concatenate(dtype="float32", name="embeddings")(scaled)
    return keras.Model(images, embeddings, name=name)


def _refuse_shared_layers(embedders: dict[str, keras.Model], built: str) -> None:
    """Raises if two embedders, by their arguments, share a layer with weights.

    Keras would save the weights of such a layer once, but load them for each embedder. `built` is
    what is built of them.
    """
    owners: dict[int, str] = {}
    for argument, embedder in embedders.items():
        for layer in _keras_compat.flatten_layers(embedder):
            owner = owners.setdefault(id(layer), argument)
            # guard: shared-layers
            if owner != argument and layer.weights:
                raise ArgumentError(
                    f"{owner} and {argument} share layers, such as {layer.name!r}: "
                    f"the {built} could not be loaded after saving. Build each on a backbone of "
                    "its own, for example by loading the backbone once for each."
                )


def _common_shape(shapes, image_shape) -> tuple:
    """Returns the shape of the images of an ensemble of members that take `shapes`."""
    if image_shape is None:
        if len(set(shapes)) > 1:
            raise ArgumentError(
                f"embedders take images of several shapes, {shapes}. Pass image_shape: members of "
                "another size resize the images."
            )
        return shapes[0]
    image_shape = parts.check_image_shape(image_shape)
    for n, shape in enumerate(shapes):
        if shape[2] != image_shape[2]:
            raise ArgumentError(
                f"embedders[{n}] takes images of {shape[2]} channels, but image_shape is "
                f"{image_shape}. Pass members of one number of channels: pretrained_embedder "
                "takes gray images with image_shape=(height, width, 1)."
            )
    return image_shape


def _lengths(weights, count: int) -> list[float]:
    """Returns the length of each member's embeddings: the square root of its weight."""
    if weights is None:
        return [1.0] * count
    weights = [_checks.number("each of weights", w) for w in _checks.as_list("weights", weights)]
    if len(weights) != count or min(weights) <= 0:
        raise ArgumentError(
            f"weights={weights}: pass a positive number for each of the {count} embedders."
        )
    return [math.sqrt(weight) for weight in weights]


def _resized(images, shape, name: str):
    """Returns `images` in the size of a member, None in which is any."""
    given = images.shape[1:3]
    height, width = (
        have if want is None else want for have, want in zip(given, shape[:2], strict=True)
    )
    if (height, width) == tuple(given):
        return images
    return AntialiasedResizing(height, width, dtype="float32", name=name)(images)
