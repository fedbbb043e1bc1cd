"""Embedders built on pretrained backbones."""

import functools
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from kerasim import _artifacts, _checks, _keras_compat, _keras_files
from kerasim._image_checks import shapes_of
from kerasim.data._download import SQUEEZENET_FILE, SQUEEZENET_SHA256
from kerasim.data._sets import data_dir
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError
from kerasim.layers import (
    AttentionPooling,
    BackbonePreprocessing,
    GeMPooling,
    GridPooling,
    PatchMap,
    TokenPooling,
)
from kerasim.models import _blocks as parts

_POOLINGS = {
    "attention": AttentionPooling,
    "gem": GeMPooling,
    "max": functools.partial(layers.GlobalMaxPooling2D, data_format=parts.CHANNELS_LAST),
    "average": functools.partial(layers.GlobalAveragePooling2D, data_format=parts.CHANNELS_LAST),
    "flatten": functools.partial(layers.Flatten, data_format=parts.CHANNELS_LAST),
    "grid": GridPooling,
}
# A number for all channels, or one for each.
ChannelValues = float | Sequence[float]

_TOKEN_POOLINGS = ("class", "attention", "gem", "max", "average")

# What a backbone returns for an image, by the number of axes of its output with that of the batch.
_KINDS = {4: "feature maps", 3: "tokens", 2: "vectors"}


def pretrained_embedder(
    backbone: str | keras.Model = "vgg16",
    weights: Literal["imagenet"] | Path | str | None = "imagenet",
    preprocess: str | keras.Layer | tuple[ChannelValues, ChannelValues] | None = None,
    pooling: Literal["attention", "gem", "max", "average", "flatten", "grid", "class"]
    | None = "attention",
    embedding_dim: int | None = 256,
    image_shape: tuple[int | None, int | None, int] = (None, None, 3),
    stages: tuple[str, ...] | None = None,
    self_attention: bool = False,
    trainable: bool | str = False,
    num_prefix_tokens: int | None = None,
    name: str = "pretrained_embedder",
) -> keras.Model:
    """Builds an embedder on a pretrained backbone: preprocessing, features, pooling, dense layer.

    The head of the student report on which kerasim is based, on VGG16 or ResNet50: self-attention
    among the positions of the features, max-pooling, flattening, a dense layer:
    `pretrained_embedder("vgg16", pooling="flatten", self_attention=True, image_shape=(224, 224,
    3))`. Frozen features, as a baseline or to train a head in seconds:
    `pretrained_embedder("vgg16", pooling="average", embedding_dim=None)`.

    Args:
        backbone: Name of a model of `keras.applications` in lower case, "squeezenet" (version 1.1,
            the smallest), or a `keras.Model` with one input, images, that returns feature maps
            `(batch, height, width, channels)`, tokens `(batch, tokens, dim)` as vision transformers
            do, or vectors `(batch, dim)`. The embedder shares the layers and weights of such a
            model: `trainable` applies to it as well, and to other embedders on it.
        weights: For a backbone given by name: "imagenet" (Keras downloads the file and checks its
            hash; that of "squeezenet" is read from `data.data_dir()`), the path of a weights file,
            or None for random weights. With None pass `trainable=True`; BatchNormalization of the
            backbone then trains with a momentum of 0.9, so that inference is right after 60 steps.
        preprocess: Preprocessing of images in [0, 1] for a backbone that is a `keras.Model`:
            `(mean, std)` for `(images - mean) / std`, each a number or one for each channel; a
            layer; the name of a backbone with the same preprocessing; or None for none.
        pooling: How feature maps or tokens become a vector: "attention", "gem", "max", "average";
            "grid" (the averages of 3 x 3 cells, see `layers.GridPooling`) or "flatten". For tokens
            also "class", the class token; the other values pool the patch tokens only, see
            `layers.TokenPooling`. "grid", "flatten" and `self_attention` first arrange them as a
            feature map. None for a backbone that returns vectors.
        embedding_dim: Embedding size; None to return the pooled features themselves.
        image_shape: `(height, width, channels)`. None as height or width accepts any size that the
            backbone accepts, unless features are flattened. With one channel, the channel is
            repeated three times.
        stages: Names of layers of the backbone whose outputs are pooled and concatenated, or keys
            of its `pyramid_outputs` if it has them, as keras_hub's have; None for the output of
            the backbone alone.
        self_attention: Whether dot-product attention among the positions and 2 x 2 max-pooling
            precede `pooling`.
        trainable: Which layers of the backbone train (`set_trainable` changes it later): False for
            none, True for all, or the name of the first one, in the order of the summary.
        num_prefix_tokens: For a backbone that returns tokens: how many there are before the first
            patch. 1 for ViT, CLIP and DINOv2, 5 for DINOv2 with registers and DINOv3, 0 for SigLIP.
            If its images have a fixed size, the backbone is run once to count its tokens, and a
            number that leaves no grid of square patches is refused.
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to `(batch, embedding_dim)`.
        `get_layer("backbone")` is the backbone; `get_layer("pooling").attend(features)` returns the
        weights of attention pooling.

    Raises:
        ArgumentError: If the backbone is not known, or does not take such images, or Keras would
            build it channels-first; if `pooling` does not fit what it returns, or its tokens
            without the prefix are not a grid of square patches.
        ArgumentTypeError: If the backbone does not have one input, images, or returns something
            else, or `preprocess` is neither a layer nor a pair of numbers.
        ArtifactError: If the weights are missing or damaged; the message says which file belongs
            where.

    Example:
        >>> embedder = pretrained_embedder(
        ...     "squeezenet", weights=None, embedding_dim=64, trainable=True
        ... )
        >>> embedder.input_shape, embedder.output_shape
        ((None, None, None, 3), (None, 64))

    Reference:
        VGG: Simonyan & Zisserman, 2015. https://arxiv.org/abs/1409.1556; ResNet: He et al., 2016.
        https://arxiv.org/abs/1512.03385; SqueezeNet: Iandola et al., 2016.
        https://arxiv.org/abs/1602.07360
    """
    if pooling is not None:
        _checks.one_of("pooling", pooling, tuple({**_POOLINGS, "class": None}))
    _checks.boolean("self_attention", self_attention)
    _artifacts.check_path("weights", "none" if weights is None else weights)
    image_shape = parts.check_image_shape(image_shape, open_size=True)
    if image_shape[2] not in (1, 3):
        raise ArgumentError(f"image_shape={image_shape}: pass 3 channels, or 1 for gray images.")
    if stages is not None:
        stages = tuple(_checks.as_list("stages", stages))
        if not stages:
            raise ArgumentError(
                f"stages={stages} is empty. Pass names of layers of the backbone, such as "
                "('block4_pool',), or None."
            )
    rgb = (*image_shape[:2], 3)
    if isinstance(backbone, str):
        if preprocess is not None:
            raise ArgumentError(
                f"preprocess={preprocess!r}: {backbone!r} has its own preprocessing. Leave it "
                "None, or pass the backbone as a keras.Model."
            )
        preprocess, backbone = backbone, _named(backbone, weights, rgb)
    elif weights not in ("imagenet", None):
        raise ArgumentError(
            f"weights={weights!r}: a backbone that is a keras.Model keeps its weights. Leave the "
            "argument out, and call backbone.load_weights before."
        )
    height, width = _check_images(backbone, rgb)
    image_shape = height, width, image_shape[2]
    outputs = _features(backbone, stages)
    kind = _kind(outputs)
    _check_pooling(kind, pooling, self_attention, num_prefix_tokens, image_shape)
    preprocessing = _preprocessing(preprocess)

    images = parts.image_input(image_shape)
    x = images
    if image_shape[2] == 1:
        x = layers.Concatenate(dtype="float32", name="rgb")([images] * 3)
    x = x if preprocessing is None else _preprocessed(x, preprocessing)
    several = len(outputs) > 1
    network = keras.Model(backbone.inputs[0], outputs if several else outputs[0], name="backbone")
    features = network(x)
    grids = _patch_grids(network, num_prefix_tokens) if kind == "tokens" else [None] * len(outputs)
    pooled = [
        _pooled(x, pooling, self_attention, num_prefix_tokens, grid, mark=n if several else "")
        for n, (x, grid) in enumerate(
            zip(features if several else [features], grids, strict=True), start=1
        )
    ]
    x = pooled[0] if not several else layers.Concatenate(dtype="float32", name="all")(pooled)
    if embedding_dim is not None:
        embedding_dim = _checks.integer("embedding_dim", embedding_dim)
        x = parts.dense(x, embedding_dim, "embeddings", dtype="float32")
    embedder = keras.Model(images, x, name=name)
    set_trainable(embedder, trainable)
    return embedder


def _preprocessing(preprocess) -> layers.Layer | None:
    """Returns the layer that `preprocess` stands for."""
    if preprocess is None:
        return None
    if isinstance(preprocess, str):
        BackbonePreprocessing.find(preprocess, "preprocess")
        return BackbonePreprocessing(preprocess, name="preprocessing")
    if isinstance(preprocess, (tuple, list)):
        return _standardization(preprocess)
    _checks.instance(
        "preprocess",
        preprocess,
        layers.Layer,
        "pass a name, (mean, std), or a layer such as keras.layers.Rescaling(255)",
    )
    return preprocess


def _preprocessed(images, preprocessing):
    """Returns preprocessed `images`, if they have kept their shape."""
    x = preprocessing(images)
    if x.shape != images.shape:
        raise ArgumentError(
            f"preprocess={preprocessing.name!r} changes images of shape {images.shape[1:]} to "
            f"{x.shape[1:]}: pass a layer that keeps the shape."
        )
    return x


def _standardization(preprocess) -> layers.Layer:
    """Returns the layer that subtracts the mean from images and divides by the deviation."""
    if len(preprocess) != 2:
        raise ArgumentError(
            f"preprocess={preprocess!r} has {len(preprocess)} entries: pass (mean, std), such as "
            "((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))."
        )
    mean, std = (
        _channel_values(f"{name} of preprocess", values)
        for name, values in zip(("mean", "std"), preprocess, strict=True)
    )
    if min(std) < np.finfo("float32").tiny:
        raise ArgumentError(
            f"std of preprocess={preprocess!r} holds {min(std)}: pass positive numbers."
        )
    # In four dimensions, because Keras moves the axis of a list of scales to the front if its image
    # data format is channels-first.
    scale: Any = [[[[1 / s for s in std]]]]
    offset: Any = [[[[-m / s for m, s in zip(mean, std, strict=True)]]]]
    return layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")


def _channel_values(name: str, values) -> list[float]:
    """Returns the mean or the deviation of each channel of images in [0, 1]."""
    if not isinstance(values, (tuple, list, np.ndarray)):
        values = [values] * 3
    values = [_checks.number(name, value) for value in values]
    if len(values) != 3:
        raise ArgumentError(f"{name}={values} has {len(values)} numbers: pass one or three.")
    if min(values) < 0 or max(values) > 1:
        raise ArgumentError(
            f"{name}={values} is outside [0, 1], the range of the images. Divide numbers for "
            "images in 0..255 by 255."
        )
    return values


def _check_pooling(kind, pooling, self_attention, num_prefix_tokens, image_shape) -> None:
    """Raises unless the arguments fit features of that `kind`, of images of that shape."""
    if kind == "tokens":
        if num_prefix_tokens is None:
            raise ArgumentError(
                "num_prefix_tokens=None, but the backbone returns tokens. Pass the number of "
                "tokens before the first patch: 1 for ViT, CLIP and DINOv2, 5 for DINOv2 with "
                "registers, 0 for SigLIP."
            )
        _checks.integer("num_prefix_tokens", num_prefix_tokens, 0)
    elif num_prefix_tokens is not None:
        raise ArgumentError(
            f"num_prefix_tokens={num_prefix_tokens}: the backbone returns {kind}, not tokens. "
            "Leave the argument out."
        )
    if kind == "vectors":
        if pooling is not None or self_attention:
            raise ArgumentError(
                f"pooling={pooling!r}, self_attention={self_attention}: the backbone returns "
                "vectors, not feature maps or tokens, and there is nothing to pool. Pass "
                "pooling=None, or the model up to an earlier layer, such as "
                "keras.Model(net.inputs, net.get_layer(...).output)."
            )
        return
    choices = tuple(_POOLINGS) if kind == "feature maps" else ("class", *_POOLINGS)
    if pooling not in choices:
        raise ArgumentError(
            f"pooling={pooling!r}: the backbone returns {kind}. Pass one of "
            f"{', '.join(map(repr, choices))}."
        )
    if self_attention and pooling == "class":
        raise ArgumentError(
            'self_attention=True is among the patches, which pooling="class" leaves out: pass '
            "another pooling."
        )
    as_patch_map = kind == "tokens" and pooling not in _TOKEN_POOLINGS
    if (self_attention or pooling == "flatten" or as_patch_map) and None in image_shape:
        raise ArgumentError(
            f"image_shape={image_shape} has no fixed size, which flattening needs. "
            "Pass a height and a width, or another pooling."
        )


def _pooled(x, pooling, self_attention, num_prefix_tokens, grid, mark):
    """Returns the vector of the features `x`; the names of the layers end with `mark`."""
    if len(x.shape) == 2:
        return x
    if len(x.shape) == 3:
        if pooling in _TOKEN_POOLINGS and not self_attention:
            name = f"pooling{mark}"
            return TokenPooling(pooling, num_prefix_tokens, dtype="float32", name=name)(x)
        x = PatchMap(grid, num_prefix_tokens, dtype="float32", name=f"patch_map{mark}")(x)
    if self_attention:
        rows = layers.Reshape((-1, x.shape[-1]), name=f"rows{mark}")(x)
        y = layers.Attention(name=f"self_attention{mark}")([rows, rows])
        x = layers.Reshape(x.shape[1:], name=f"map{mark}")(y)
        x = parts.max_pool(x, f"max{mark}")
    return _POOLINGS[pooling](dtype="float32", name=f"pooling{mark}")(x)


def _patch_grids(network, num_prefix_tokens) -> list:
    """Returns for each output how many patches there are in height and width.

    Each is None if the backbone takes images of any size. A network with square patches of size `p`
    has `(height // p) * (width // p)` of them; one `p` at most gives the right number.

    Raises:
        ArgumentError: If there is no such `p`: then `num_prefix_tokens` is wrong.
    """
    height, width, channels = network.input_shape[1:]
    if None in (height, width):
        return [None] * len(network.outputs)
    # The shapes that layers state may be wrong: SigLIP in keras_hub 0.32 states one token too many.
    outputs = network(np.zeros((1, height, width, channels), "float32"))
    grids = {
        (height // size) * (width // size): (height // size, width // size)
        for size in range(1, min(height, width) + 1)
    }
    found = []
    for tokens in [x.shape[1] for x in keras.tree.flatten(outputs)]:
        patches = tokens - num_prefix_tokens
        if patches not in grids:
            raise ArgumentError(
                f"num_prefix_tokens={num_prefix_tokens}: the backbone returns {tokens} tokens for "
                f"an image of {height} x {width}, and the other {patches} are not a grid of square "
                "patches. Pass the number of tokens before the first patch, or a model that "
                "returns feature maps."
            )
        found.append(grids[patches])
    return found


def set_trainable(embedder: keras.Model, trainable: bool | str) -> None:
    """Sets which layers of the backbone of a `pretrained_embedder` train.

    BatchNormalization layers that have statistics stay frozen in any case: at small batches their
    averages would drift from those that the backbone was trained with. A layer whose statistics
    are still the initial ones (mean 0, variance 1) has none to keep, and trains like any other.
    The patch and position embeddings of DINOv2 stay frozen, too: keras_hub 0.32 does not save what
    they learn.

    Compile the model again after this call.

    Args:
        embedder: Model as `pretrained_embedder` builds it.
        trainable: False for no layer, True for all, or the name of the first layer of the backbone
            that trains, in the order of its summary.

    Raises:
        ArgumentError: If there is no such layer, or `embedder.trainable` is False.
        ArgumentTypeError: If `embedder` has no layer named "backbone".

    Example:
        >>> embedder = pretrained_embedder("squeezenet", weights=None, trainable=True)
        >>> set_trainable(embedder, "fire9_squeeze")
        >>> [layer.name for layer in embedder.get_layer("backbone").layers if layer.trainable]
        ['fire9_squeeze', 'fire9_1x1', 'fire9_3x3', 'fire9']
    """
    if trainable is not False and not getattr(embedder, "trainable", True):
        raise ArgumentError(
            "embedder.trainable is False, which freezes all of its layers: set "
            "embedder.trainable = True first."
        )
    if "backbone" not in [layer.name for layer in getattr(embedder, "layers", ())]:
        raise ArgumentTypeError(
            f"embedder must have a layer named backbone. Received {type(embedder).__name__}: pass "
            "a model that pretrained_embedder built."
        )
    backbone_layers = embedder.get_layer("backbone").layers
    names = [layer.name for layer in backbone_layers]
    if isinstance(trainable, str):
        _checks.one_of("trainable", trainable, names)
        first = names.index(trainable)
    else:
        first = 0 if _checks.boolean("trainable", trainable) else len(backbone_layers)
    for n, layer in enumerate(backbone_layers):
        layer.trainable = n >= first
        for inner in _keras_compat.flatten_layers(layer):
            if _has_statistics(inner) or hasattr(inner, "interpolated_position_embeddings"):
                inner.trainable = False


def _batch_norms(layer):
    """Returns the BatchNormalization layers in `layer`, which may be a model, itself included."""
    inner = _keras_compat.flatten_layers(layer)
    return [one for one in inner if isinstance(one, layers.BatchNormalization)]


def _has_statistics(layer) -> bool:
    """Returns whether it is a BatchNormalization whose statistics are not the initial ones."""
    if not isinstance(layer, layers.BatchNormalization):
        return False
    norm: Any = layer
    mean, variance = (
        keras.ops.convert_to_numpy(x) for x in (norm.moving_mean, norm.moving_variance)
    )
    return bool(mean.any() or (variance != 1).any())


def _check_images(backbone, image_shape):
    """Returns height and width of the images of a backbone; None where both leave them open.

    Raises unless it has one input, images of `image_shape`.
    """
    inputs = getattr(backbone, "inputs", None) or ()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        tower = getattr(backbone, "vision_encoder", None)
        if isinstance(tower, keras.Model):
            raise ArgumentTypeError(
                f"backbone must have one input, images. Received {type(backbone).__name__}, which "
                f"takes {_names(inputs)}: pass its vision tower, backbone.vision_encoder."
            )
        shapes_of("backbone", backbone)  # raises: its input is not one batch of images
        raise ArgumentTypeError(
            f"backbone must be a functional keras.Model of images. Received "
            f"{type(backbone).__name__}: pass keras.Model(images, backbone(images)) with images = "
            "keras.Input(image_shape)."
        )
    taken = inputs[0].shape[1:]
    if any(a != b for a, b in zip(taken, image_shape, strict=True) if None not in (a, b)):
        raise ArgumentError(
            f"backbone takes images of shape {taken}, but image_shape is {image_shape}. Pass "
            "its shape as image_shape, or a backbone with three channels."
        )
    return [a if b is None else b for a, b in zip(taken, image_shape, strict=True)][:2]


def _names(inputs) -> str:
    return ", ".join(tensor.name for tensor in inputs)


def _features(backbone, stages) -> list:
    """Returns the outputs of the backbone that are pooled: its own, or those of `stages`."""
    if stages is not None:
        return [_output(backbone, stage) for stage in stages]
    if len(backbone.outputs) != 1:
        raise ArgumentError(
            f"backbone returns {len(backbone.outputs)} outputs: pass stages, the names of the "
            "layers whose outputs are pooled, or a model with one output."
        )
    return backbone.outputs


def _output(backbone, stage):
    """Returns the output of the layer of that name, or the one of `pyramid_outputs`."""
    pyramid = getattr(backbone, "pyramid_outputs", {})
    names = [layer.name for layer in backbone.layers]
    _checks.one_of("each of stages", stage, [*names, *(key for key in pyramid if key not in names)])
    output = backbone.get_layer(stage).output if stage in names else pyramid[stage]
    if not isinstance(output, keras.KerasTensor):
        raise ArgumentError(
            f"stages holds {stage!r}, a layer with several outputs. Pass a layer with one, or one "
            f"of pyramid_outputs: {', '.join(map(repr, pyramid)) or 'this backbone has none'}."
        )
    return output


def _kind(outputs) -> str:
    """Returns what a backbone returns, one of `_KINDS`."""
    kinds = {_KINDS.get(len(x.shape), "") for x in outputs}
    if "" in kinds:
        raise ArgumentTypeError(
            f"backbone returns outputs of shape {[x.shape for x in outputs]}, expected feature "
            "maps (batch, height, width, channels), tokens (batch, tokens, dim) or vectors (batch, "
            "dim). Pass a model such as keras.Model(net.inputs, net.get_layer(...).output)."
        )
    if len(kinds) > 1:
        raise ArgumentError(
            f"stages returns {' and '.join(sorted(kinds))}: pass stages of one kind."
        )
    return kinds.pop()


def _squeezenet_file() -> Path:
    """Returns the file of SqueezeNet's weights in the data folder, if its content is right."""
    file = data_dir() / SQUEEZENET_FILE
    if not file.exists():
        raise ArtifactError(
            f"There is no file {file}. Run `kerasim fetch squeezenet` to download it, or set "
            "KERASIM_DATA_DIR to the folder that holds it."
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != SQUEEZENET_SHA256:
        raise ArtifactError(
            f"{file} is damaged: its SHA-256 is not {SQUEEZENET_SHA256}. Delete it and run "
            "`kerasim fetch squeezenet`."
        )
    return file


def _hdf5_file(path) -> Path:
    """Returns `path` absolute, if it is a file with the suffix of HDF5."""
    file = _artifacts.check_file(path)
    if file.suffix not in (".h5", ".hdf5"):
        raise ArtifactError(
            f"{_checks.shown(file)} is not an HDF5 file. Pass the weights of the backbone "
            "without its top, as .h5 or .weights.h5."
        )
    return file


def _named(name, weights, image_shape):
    """Returns the backbone of that name with its weights."""
    build = _squeezenet if name == "squeezenet" else BackbonePreprocessing.find(name)
    if build is not _squeezenet and keras.config.image_data_format() != parts.CHANNELS_LAST:
        # keras.applications has no argument for it.
        raise ArgumentError(
            f"backbone={name!r}: keras.applications would build it channels-first, as Keras is "
            'set. Call keras.config.set_image_data_format("channels_last") first.'
        )
    try:
        backbone = build(include_top=False, weights=None, input_shape=image_shape)
    except ValueError as error:
        raise ArgumentError(
            f"backbone={name!r} cannot be built for images of shape {image_shape}: {error} Pass "
            "another image_shape."
        ) from error
    if weights == "imagenet" and build is not _squeezenet:
        return _download(build, name, image_shape)  # now its size is known to fit
    if weights is None:
        for norm in _batch_norms(backbone):
            norm.momentum = parts.BATCH_NORM_MOMENTUM
        return backbone
    file = _squeezenet_file() if weights == "imagenet" else _hdf5_file(weights)
    try:
        _keras_files.check_hdf5(file)
        backbone.load_weights(file)
    except ArtifactError:
        raise
    except Exception as error:  # Keras and h5py raise whatever comes
        raise ArtifactError(
            f"{_checks.shown(file)} does not fit the backbone {name!r}, or is damaged "
            f"({error}): pass the weights of that backbone without its top, as .h5 or "
            ".weights.h5."
        ) from error
    return backbone


def _download(build, name, image_shape):
    # Keras checks a download only if it knows its hash.
    if "file_hash" not in inspect.getsource(sys.modules[build.__module__]):
        raise ArgumentError(
            f'weights="imagenet": Keras has no hash to verify the weights of {name!r} '
            "with. Download the file yourself and pass its path, or choose another "
            "backbone."
        )
    try:
        return build(include_top=False, weights="imagenet", input_shape=image_shape)
    except Exception as error:  # a bare Exception when it is offline, ValueError if damaged
        if "fetch failure" not in str(error) and "corrupted" not in str(error):
            raise
        file = re.search(r"[^/\s]+\.h5", str(error))
        folder = os.path.join(os.environ.get("KERAS_HOME", "~/.keras"), "models")
        hint = f"put the file {file[0]} into {folder}" if file else f"remove its file from {folder}"
        raise ArtifactError(
            f"Keras could not fetch the weights of {name!r} ({error}). Try again with a "
            f"network, {hint}, or pass its path as weights."
        ) from error


def _squeezenet(include_top, weights, input_shape):
    """SqueezeNet v1.1, with the layer names of keras-squeezenet."""

    def conv(x, filters, size, name):
        return parts.conv(x, filters, name, size=size)

    images = parts.image_input(input_shape)
    x = parts.conv(images, 64, "conv1", strides=2, size=3, padding="valid")
    for n in range(2, 10):
        if n in (2, 4, 6):
            pool = layers.MaxPooling2D(3, 2, data_format=parts.CHANNELS_LAST, name=f"pool{n - 1}")
            x = pool(x)
        narrow = 16 * (n // 2)
        x = conv(x, narrow, 1, f"fire{n}_squeeze")
        sides = [conv(x, 4 * narrow, size, f"fire{n}_{size}x{size}") for size in (1, 3)]
        x = layers.Concatenate(name=f"fire{n}")(sides)
    return keras.Model(images, x, name="squeezenet")
