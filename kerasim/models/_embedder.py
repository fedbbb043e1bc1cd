"""Convolutional embedders: models from images to embeddings."""

import keras
from keras import layers

from kerasim import _checks
from kerasim.models import _blocks as parts


def conv_embedder(
    image_shape: tuple[int, int, int] = (32, 32, 1),
    embedding_dim: int = 64,
    widths: tuple[int, ...] = (32, 64, 128),
    convs: int = 2,
    activation: str | None = "relu",
    dense_width: int | None = None,
    name: str = "conv_embedder",
) -> keras.Model:
    """Builds a convolutional embedder with BatchNormalization.

    Each stage applies `convs` 3 x 3 convolutions, each followed by BatchNormalization and
    `activation`. 2 x 2 max-pooling between the stages halves the image. The last stage has no
    padding; its output is averaged over all positions.

    BatchNormalization has a momentum of 0.9, so that its moving statistics, which inference uses,
    are right after 60 training steps.

    The network of the student report on which kerasim is based has no activation:
    `conv_embedder((28, 28, 1), 2, convs=1, activation=None, dense_width=64)`.

    Args:
        image_shape: `(height, width, channels)`.
        embedding_dim: Embedding size. The embedding is linear: its vectors have any length.
        widths: Filters of each stage, from the image inwards.
        convs: Convolutions of each stage.
        activation: Activation after each BatchNormalization; None for none.
        dense_width: Units of a dense layer with BatchNormalization before the embedding; None for
            no such layer.
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to `(batch, embedding_dim)`.

    Raises:
        ArgumentError: If the image is too small for the number of stages.

    Example:
        >>> embedder = conv_embedder((28, 28, 1), embedding_dim=16, widths=(8, 16))
        >>> images = np.random.default_rng(0).random((2, 28, 28, 1))
        >>> tuple(embedder(images).shape)
        (2, 16)

    Reference:
        Ioffe & Szegedy, 2015. https://arxiv.org/abs/1502.03167
    """
    image_shape, widths = parts.check_sizes(image_shape, widths)
    embedding_dim = _checks.integer("embedding_dim", embedding_dim)
    convs = _checks.integer("convs", convs)
    parts.check_least(image_shape, (2 * convs + 1) * 2 ** (len(widths) - 1), widths)

    images = parts.image_input(image_shape)
    x = images
    for n, filters in enumerate(widths, start=1):
        if n > 1:
            x = parts.max_pool(x, f"pool{n - 1}")
        padding = "same" if n < len(widths) else "valid"
        for m in range(1, convs + 1):
            x = parts.conv_norm(x, filters, f"conv{n}_{m}", padding, activation)
    x = layers.GlobalAveragePooling2D(data_format=parts.CHANNELS_LAST, name="average")(x)
    if dense_width is not None:
        x = parts.dense(x, _checks.integer("dense_width", dense_width), "dense")
        x = parts.batch_norm("dense_norm")(x)
        if activation is not None:
            x = layers.Activation(activation, name="dense_activation")(x)
    embeddings = parts.dense(x, embedding_dim, "embeddings", dtype="float32")
    return keras.Model(images, embeddings, name=name)


def resnet_embedder(
    image_shape: tuple[int, int, int] = (32, 32, 3),
    embedding_dim: int = 128,
    widths: tuple[int, ...] = (32, 64, 128, 256),
    name: str = "resnet_embedder",
) -> keras.Model:
    """Builds a residual embedder for small color images.

    A 3 x 3 convolution with `widths[0]` filters; then for each further width a convolution, 2 x 2
    max-pooling and a residual block of two convolutions, all with BatchNormalization and ReLU;
    global max-pooling; a linear dense layer.

    BatchNormalization has a momentum of 0.9, so that its moving statistics, which inference uses,
    are right after 60 training steps.

    Args:
        image_shape: `(height, width, channels)`; height and width are `2 ** (len(widths) - 1)` or
            more.
        embedding_dim: Embedding size.
        widths: Filters of the first convolution and of each stage.
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to `(batch, embedding_dim)`.

    Raises:
        ArgumentError: If the image is too small for the number of stages.

    Example:
        >>> embedder = resnet_embedder((32, 32, 3), embedding_dim=16, widths=(8, 16))
        >>> embedder.input_shape, embedder.output_shape
        ((None, 32, 32, 3), (None, 16))

    Reference:
        He et al., 2016. https://arxiv.org/abs/1512.03385; BatchNormalization: Ioffe & Szegedy,
        2015. https://arxiv.org/abs/1502.03167
    """
    image_shape, widths = parts.check_sizes(image_shape, widths)
    embedding_dim = _checks.integer("embedding_dim", embedding_dim)
    parts.check_least(image_shape, 2 ** (len(widths) - 1), widths)

    images = parts.image_input(image_shape)
    x = parts.conv_norm(images, widths[0], "conv0")
    for n, filters in enumerate(widths[1:], start=1):
        x = parts.conv_norm(x, filters, f"conv{n}")
        x = parts.max_pool(x, f"pool{n}")
        y = parts.conv_norm(x, filters, f"block{n}_conv1")
        y = parts.conv_norm(y, filters, f"block{n}_conv2")
        x = layers.Add(name=f"block{n}_add")([x, y])
    x = layers.GlobalMaxPooling2D(data_format=parts.CHANNELS_LAST, name="largest")(x)
    embeddings = parts.dense(x, embedding_dim, "embeddings", dtype="float32")
    return keras.Model(images, embeddings, name=name)
