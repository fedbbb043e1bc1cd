"""Convolutional embedders: images to vectors."""

import keras
from keras import layers

from kerasim import checks
from kerasim.models.blocks import batch_norm, check_least, check_sizes, conv_norm


def conv_embedder(
    image_shape: tuple[int, int, int] = (32, 32, 1),
    embedding_dim: int = 64,
    widths: tuple[int, ...] = (32, 64, 128),
    convs: int = 2,
    activation: str | None = "relu",
    dense_width: int | None = None,
    name: str = "conv_embedder",
) -> keras.Model:
    """Builds a plain convolutional embedder with batch norm.

    Each stage is `convs` 3 x 3 convolutions, each with batch norm and `activation`. Between
    stages 2 x 2 max-pooling halves the image; the last stage has no padding, and what it leaves
    is averaged over its area.

    The net of the student report that kerasim began with, which has no activation at all:
    `conv_embedder((28, 28, 1), 2, convs=1, activation=None, dense_width=64)`.

    Args:
        image_shape: `(height, width, channels)`.
        embedding_dim: Length of the embedding, which is linear: no activation, any length.
        widths: Filters of each stage, from the image inwards.
        convs: Convolutions of each stage.
        activation: After each batch norm; None for none.
        dense_width: Units of a dense layer with batch norm before the embedding; None for none.
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to `(batch, embedding_dim)`.

    Raises:
        ArgumentError: If the image is too small for that many stages.
    """
    image_shape, widths = check_sizes(image_shape, widths)
    embedding_dim = checks.integer("embedding_dim", embedding_dim)
    convs = checks.integer("convs", convs)
    check_least(image_shape, (2 * convs + 1) * 2 ** (len(widths) - 1), widths)

    images = keras.Input(image_shape, name="images")
    x = images
    for n, filters in enumerate(widths, start=1):
        if n > 1:
            x = layers.MaxPooling2D(name=f"pool{n - 1}")(x)
        padding = "same" if n < len(widths) else "valid"
        for m in range(1, convs + 1):
            x = conv_norm(x, filters, f"conv{n}_{m}", padding, activation)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    if dense_width is not None:
        x = layers.Dense(checks.integer("dense_width", dense_width), name="dense")(x)
        x = batch_norm("dense_norm")(x)
        if activation is not None:
            x = layers.Activation(activation, name="dense_activation")(x)
    embeddings = layers.Dense(embedding_dim, dtype="float32", name="embeddings")(x)
    return keras.Model(images, embeddings, name=name)


def resnet_embedder(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    embedding_dim: int = 128,
    widths: tuple[int, ...] = (32, 64, 128, 256),
    name: str = "resnet_embedder",
) -> keras.Model:
    """Builds a small residual embedder for small colour images.

    A 3 x 3 convolution to `widths[0]`; then for each further width a convolution, 2 x 2
    max-pooling and a residual block of two convolutions, all with batch norm and ReLU; the
    largest value of each channel; a linear layer.

    Args:
        image_shape: `(height, width, channels)`; height and width survive `len(widths) - 1`
            halvings.
        embedding_dim: Length of the embedding.
        widths: Filters of the first convolution and of each stage.
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to `(batch, embedding_dim)`.

    Raises:
        ArgumentError: If the image is too small for that many stages.

    Reference:
        He et al., 2016. https://arxiv.org/abs/1512.03385
    """
    image_shape, widths = check_sizes(image_shape, widths)
    embedding_dim = checks.integer("embedding_dim", embedding_dim)
    check_least(image_shape, 2 ** (len(widths) - 1), widths)

    images = keras.Input(image_shape, name="images")
    x = conv_norm(images, widths[0], "conv0")
    for n, filters in enumerate(widths[1:], start=1):
        x = conv_norm(x, filters, f"conv{n}")
        x = layers.MaxPooling2D(name=f"pool{n}")(x)
        y = conv_norm(x, filters, f"block{n}_conv1")
        y = conv_norm(y, filters, f"block{n}_conv2")
        x = layers.Add(name=f"block{n}_add")([x, y])
    x = layers.GlobalMaxPooling2D(name="largest")(x)
    embeddings = layers.Dense(embedding_dim, dtype="float32", name="embeddings")(x)
    return keras.Model(images, embeddings, name=name)
