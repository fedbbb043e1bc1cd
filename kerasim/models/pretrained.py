"""Embedders on backbones that others have trained."""

import hashlib
import inspect
import os
import re
import sys

import keras
from keras import layers

from kerasim import _keras_files, artifacts, checks
from kerasim.data import SQUEEZENET_FILE, SQUEEZENET_SHA256, data_dir, shapes_of
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError
from kerasim.layers import AttentionPooling, BackbonePreprocessing, GeneralizedMean
from kerasim.models.blocks import check_image_shape

_POOLINGS = {
    "attention": AttentionPooling,
    "gem": GeneralizedMean,
    "max": layers.GlobalMaxPooling2D,
    "average": layers.GlobalAveragePooling2D,
    "flatten": layers.Flatten,
}


def pretrained_embedder(
    backbone: str | keras.Model = "vgg16",
    weights="imagenet",
    preprocess=None,
    pooling: str = "attention",
    embedding_dim: int | None = 256,
    image_shape: tuple[int | None, int | None, int] = (None, None, 3),
    stages: tuple[str, ...] | None = None,
    self_attention: bool = False,
    trainable: bool | str = False,
    name: str = "pretrained_embedder",
) -> keras.Model:
    """Builds an embedder on a pretrained backbone: preprocessing, features, pooling, dense.

    The head of the student report that kerasim began with, on VGG16 or ResNet50: self-attention
    among the positions of the features, max-pooling, flatten, dense:
    `pretrained_embedder("vgg16", pooling="flatten", self_attention=True, image_shape=(224, 224,
    3))`. Frozen features, for a baseline or for heads that train in seconds:
    `pretrained_embedder("vgg16", pooling="average", embedding_dim=None)`.

    Args:
        backbone: A model of `keras.applications` by its name in lower case, "squeezenet" (v1.1,
            the smallest), or a `keras.Model` from images to feature maps with weights of its own,
            whose layers the embedder shares: what `trainable` freezes is frozen there, too.
        weights: Of a backbone by name: "imagenet" (Keras downloads the file and checks its hash;
            that of "squeezenet" lies in `data.data_dir()`), the path of a weights file, or None
            for random numbers: figures of such an embedder say nothing of the backbone.
        preprocess: What a `keras.Model` wants done with images in [0, 1]: a layer, or the name of
            a backbone with the same preprocessing; None for nothing.
        pooling: From feature maps to a vector: "attention", "gem", "max", "average", "flatten".
        embedding_dim: Length of the embedding; None for the pooled features themselves.
        image_shape: `(height, width, channels)`; None for any height or width that the backbone
            takes, unless features are flattened. With one channel the backbone gets it three times.
        stages: Names of layers of the backbone whose outputs are pooled and set side by side;
            None for its output alone.
        self_attention: Whether dot-product attention among the positions and 2 x 2 max-pooling
            come before `pooling`.
        trainable: What learns of the backbone, as for `set_trainable`.
        name: Name of the model.

    Returns:
        Model from images `(batch, *image_shape)` in [0, 1] to `(batch, embedding_dim)`.
        `get_layer("backbone")` is the backbone; `get_layer("pooling").attend(features)` says
        where attention pooling looked.

    Raises:
        ArgumentError: If the backbone is not known, or does not take such images.
        ArgumentTypeError: If the backbone gives no feature maps, or `preprocess` is no layer.
        ArtifactError: If there are no such weights, or they are damaged; the message says which
            file goes where.

    Reference:
        VGG: Simonyan & Zisserman, 2015. https://arxiv.org/abs/1409.1556; ResNet: He et al., 2016.
        https://arxiv.org/abs/1512.03385; SqueezeNet: Iandola et al., 2016.
        https://arxiv.org/abs/1602.07360
    """
    checks.choice("pooling", pooling, tuple(_POOLINGS))
    checks.flag("self_attention", self_attention)
    artifacts.check_path("weights", "none" if weights is None else weights)
    image_shape = check_image_shape(image_shape, open_size=True)
    if image_shape[2] not in (1, 3):
        raise ArgumentError(f"image_shape={image_shape}: pass 3 channels, or 1 for grey images.")
    if stages is not None:
        stages = tuple(checks.listed("stages", stages))
        if not stages:
            raise ArgumentError(f"stages={stages} names no layers: pass such as ('block4_pool',).")
    rgb = (*image_shape[:2], 3)
    if isinstance(backbone, str):
        if preprocess is not None:
            mend = "Leave it None, or pass the backbone as a keras.Model."
            raise ArgumentError(f"preprocess={preprocess!r}: {backbone!r} brings its own. {mend}")
        preprocess, backbone = backbone, _named(backbone, weights, rgb)
    elif weights not in ("imagenet", None):
        mend = "Leave it out, and call backbone.load_weights before."
        raise ArgumentError(f"weights={weights!r}: a backbone that is a model has its own. {mend}")
    height, width = _check_backbone(backbone, rgb)
    image_shape = height, width, image_shape[2]
    if (self_attention or pooling == "flatten") and None in image_shape:
        what = f"image_shape={image_shape} leaves the size open, and these features are flattened"
        raise ArgumentError(f"{what}: pass a height and a width, or another pooling.")
    if isinstance(preprocess, str):
        BackbonePreprocessing.find(preprocess, "preprocess")
        preprocess = BackbonePreprocessing(preprocess, name="preprocessing")
    elif preprocess is not None:
        mend = "pass a name, or a layer such as keras.layers.Rescaling(255)"
        checks.kind("preprocess", preprocess, layers.Layer, mend)

    images = keras.Input(image_shape, name="images")
    grey = image_shape[2] == 1
    x = layers.Concatenate(dtype="float32", name="rgb")([images] * 3) if grey else images
    x = x if preprocess is None else preprocess(x)
    maps = backbone.outputs if stages is None else [_output(backbone, name) for name in stages]
    several = len(maps) > 1
    features = keras.Model(backbone.inputs[0], maps if several else maps[0], name="backbone")(x)
    pooled = []
    for n, x in enumerate(features if several else [features], start=1):
        mark = n if several else ""
        if self_attention:
            rows = layers.Reshape((-1, x.shape[-1]), name=f"rows{mark}")(x)
            y = layers.Attention(name=f"self_attention{mark}")([rows, rows])
            x = layers.Reshape(x.shape[1:], name=f"map{mark}")(y)
            x = layers.MaxPooling2D(name=f"max{mark}")(x)
        pooled.append(_POOLINGS[pooling](dtype="float32", name=f"pooling{mark}")(x))
    x = pooled[0] if not several else layers.Concatenate(dtype="float32", name="all")(pooled)
    if embedding_dim is not None:
        embedding_dim = checks.integer("embedding_dim", embedding_dim)
        x = layers.Dense(embedding_dim, dtype="float32", name="embeddings")(x)
    embedder = keras.Model(images, x, name=name)
    set_trainable(embedder, trainable)
    return embedder


def set_trainable(embedder: keras.Model, trainable: bool | str) -> None:
    """Says what learns of the backbone of a `pretrained_embedder`; compile the net again after.

    Batch norm is held still in any case: at small batches its averages would drift from those
    that the backbone was trained with.

    Args:
        embedder: As `pretrained_embedder` builds it.
        trainable: False for nothing, True for everything, or the name of the layer of the
            backbone from which on layers learn, in the order of its summary.

    Raises:
        ArgumentError: If there is no such layer.
        ArgumentTypeError: If `embedder` has no backbone.
    """
    if "backbone" not in [layer.name for layer in getattr(embedder, "layers", ())]:
        came = f"Received {type(embedder).__name__}: pass what pretrained_embedder builds."
        raise ArgumentTypeError(f"embedder must have a layer named backbone. {came}")
    parts = embedder.get_layer("backbone").layers
    names = [layer.name for layer in parts]
    if isinstance(trainable, str):
        checks.choice("trainable", trainable, names)
        first = names.index(trainable)
    else:
        first = 0 if checks.flag("trainable", trainable) else len(parts)
    for n, layer in enumerate(parts):
        layer.trainable = n >= first
        for inner in layer._flatten_layers():  # a backbone may hold models
            if isinstance(inner, layers.BatchNormalization):
                inner.trainable = False


def _check_backbone(backbone, image_shape):
    """Returns height and width of images that a backbone takes, of that shape where it is given.

    Raises unless it maps such images to feature maps.
    """
    taken, given = shapes_of("backbone", backbone)
    if len(given) != 3:
        mend = "pass such as keras.Model(net.inputs, net.get_layer(...).output)"
        raise ArgumentTypeError(f"backbone gives {given}, no feature maps: {mend}.")
    if any(a != b for a, b in zip(taken, image_shape, strict=True) if None not in (a, b)):
        what = f"backbone takes images {taken}, and would get {image_shape}"
        raise ArgumentError(f"{what}: pass that image_shape, or a backbone of three channels.")
    return [a if b is None else b for a, b in zip(taken, image_shape, strict=True)][:2]


def _output(backbone, stage):
    checks.choice("each of stages", stage, [layer.name for layer in backbone.layers])
    return backbone.get_layer(stage).output


def _named(name, weights, image_shape):
    """Returns the backbone of that name with its weights."""
    build = _squeezenet if name == "squeezenet" else BackbonePreprocessing.find(name)
    try:
        backbone = build(include_top=False, weights=None, input_shape=image_shape)
    except ValueError as error:
        what = f"backbone={name!r} cannot be built for images {image_shape}"
        raise ArgumentError(f"{what}: {error} Pass another image_shape.") from error
    if weights == "imagenet" and build is not _squeezenet:
        return _download(build, name, image_shape)  # now its size is known to fit
    if weights is None:
        return backbone
    if weights == "imagenet":
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
    else:
        file = artifacts.check_file(weights)
        if file.suffix not in (".h5", ".hdf5"):
            raise ArtifactError(
                f"{checks.shown(file)} is not an HDF5 file. Pass the weights of the backbone "
                "without its top, as .h5 or .weights.h5."
            )
    try:
        _keras_files.check_hdf5(file)
        backbone.load_weights(file)
    except ArtifactError:
        raise
    except Exception as error:  # Keras and h5py raise whatever comes
        what = f"{checks.shown(file)} does not fit the backbone {name!r}, or is damaged"
        mend = "pass the weights of that backbone without its top, as .h5 or .weights.h5"
        raise ArtifactError(f"{what} ({error}): {mend}.") from error
    return backbone


def _download(build, name, image_shape):
    # Keras checks a download only if it knows its hash.
    if "file_hash" not in inspect.getsource(sys.modules[build.__module__]):
        what = f'weights="imagenet": Keras knows no hash of the file of {name!r} to check it by'
        mend = "Fetch it yourself and pass its path, or take another backbone"
        raise ArgumentError(f"{what}. {mend}.")
    try:
        return build(include_top=False, weights="imagenet", input_shape=image_shape)
    except Exception as error:  # a bare Exception when it is offline, ValueError if damaged
        if "fetch failure" not in str(error) and "corrupted" not in str(error):
            raise
        file = re.search(r"[^/\s]+\.h5", str(error))
        folder = os.path.join(os.environ.get("KERAS_HOME", "~/.keras"), "models")
        mend = f"put the file {file[0]} into {folder}" if file else f"remove its file from {folder}"
        what = f"Keras could not fetch the weights of {name!r} ({error}). Retry with a network"
        raise ArtifactError(f"{what}, {mend}, or pass its path as weights.") from error


def _squeezenet(include_top, weights, input_shape):
    """SqueezeNet v1.1, with the names of keras-squeezenet."""
    images = keras.Input(input_shape)
    x = layers.Conv2D(64, 3, 2, activation="relu", name="conv1")(images)
    wide: dict = {"padding": "same", "activation": "relu"}
    for n in range(2, 10):
        if n in (2, 4, 6):
            x = layers.MaxPooling2D(3, 2, name=f"pool{n - 1}")(x)
        narrow = 16 * (n // 2)
        x = layers.Conv2D(narrow, 1, activation="relu", name=f"fire{n}_squeeze")(x)
        sides = [layers.Conv2D(4 * narrow, k, name=f"fire{n}_{k}x{k}", **wide)(x) for k in (1, 3)]
        x = layers.Concatenate(name=f"fire{n}")(sides)
    return keras.Model(images, x, name="squeezenet")
