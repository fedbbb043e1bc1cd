"""Loads embedders and applies them to images.

An embedder is a `keras.Model` that maps images to vectors; a head on a frozen backbone maps vectors
to vectors. `load_embedder` reads an embedder from a file without running code that the file may
hold; `embed` applies one to images, or a head to vectors, batch by batch. `pixels` returns
the images themselves as vectors, the baseline that an embedder must beat. `explain_pairs` shows
which regions of two images make their embeddings similar.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import keras
import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from kerasim import _artifacts, _checks, _cutting, _keras_files, _model_identity
from kerasim._content import content_hash
from kerasim._distances import paired, unit
from kerasim._folders import ImageFolder, thread_map
from kerasim._image_checks import check_embedder, check_images, check_shape
from kerasim.data._batches import ImageBatches, translate_errors
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError
from kerasim.images import as_float, read_image

__all__ = ["embed", "embed_folder", "explain_pairs", "load_embedder", "pixels"]

# From this number of whole batches on, TensorFlow's graph of a network saves more time than tracing
# it costs. Each trace also counts towards TensorFlow's warning of too many traces.
_GRAPH_BATCHES = 8

# Work shorter than this, in seconds, shows no progress bar.
_BAR_DELAY = 2.0

_Similarity = Literal["cosine", "dot_product", "euclidean", "manhattan"]

# Images of which the embeddings of a cut network are compared with those of the whole one.
_CHECKED_IMAGES = 4


def embed(
    embedder: keras.Model,
    images: ArrayLike | ImageFolder,
    batch_size: int = 256,
    cache: Path | str | None = None,
    progress: bool | None = None,
    flip: bool = False,
) -> np.ndarray:
    """Embeds images with a model, batch by batch.

    Args:
        embedder: `keras.Model` from images to vectors, or from vectors, such as a head.
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`. For
            an embedder of vectors, these: `(n, size)` numbers.
        batch_size: Images per call of the embedder.
        cache: Folder in which the embeddings are stored. A later call with the same embedder,
            weights and images (for an `ImageFolder`, the same names and contents of files) reads
            them instead of computing them. None stores nothing.
        progress: True shows a progress bar on stderr if the work takes more than two seconds, False
            shows none, None shows one in a terminal only.
        flip: True for the mean of the embeddings of each image and of its mirror image (test-time
            augmentation), which takes twice the time. It helps with photographs, not with digits
            or text. Vectors have no mirror image.

    Returns:
        `(n, dim)` float32, in the order of `images`.

    Raises:
        ArgumentError: If the images do not fit the model, hold NaN or lie outside [0, 1], or
            if the model does not return vectors, or returns NaN or infinity.
        ArgumentTypeError: If `embedder` is not a model with one input.
        ArtifactError: If the cache is damaged or cannot be written.

    Example:
        >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> embed(embedder, np.zeros((3, 8, 8, 1))).shape
        (3, 64)
    """
    if isinstance(images, keras.Model) and not isinstance(embedder, keras.Model):
        raise ArgumentTypeError(
            "embedder and images are in the wrong order: call embed(embedder, images), "
            "with the model first."
        )
    shape, dim = check_embedder("embedder", embedder, vectors=True)
    of_vectors = len(shape) == 1
    images = (
        _check_vectors(images, shape[0]) if of_vectors else check_shape("images", images, shape)
    )
    _checks.integer("batch_size", batch_size)
    if progress is not None:
        progress = _checks.boolean("progress", progress)
    flip = _checks.boolean("flip", flip)
    if flip and of_vectors:
        raise ArgumentError(
            "flip=True, but the embedder takes vectors, which have no mirror image. Pass "
            "flip=False here, and flip=True where the images are embedded."
        )
    if len(images) == 0:
        return np.empty((0, dim), dtype="float32")
    if cache is not None:
        key = hashlib.sha256(
            f"{_model_identity.fingerprint(embedder)}{content_hash(images)}".encode()
            + b"flip" * flip
        )
        kept = _artifacts.check_path("cache", cache) / key.hexdigest()[:32]
        if not _artifacts.exists(kept):
            embeddings = embed(embedder, images, batch_size, None, progress, flip)
            _artifacts.write(kept, "embeddings", lambda f: np.savez(f / "x.npz", x=embeddings))
        return _artifacts.read(kept, "embeddings", _load)
    batches = _in_order(images, batch_size, of_vectors)
    with _one_device(), translate_errors(batches):
        embeddings = _embed_batches(embedder, batches, progress, flip)
    _checks.finite("the embedder's output", embeddings)
    return embeddings


def _check_vectors(vectors, size: int | None) -> np.ndarray:
    """Returns the argument `images` of `embed` as an array of vectors of that `size`."""
    vectors = vectors if isinstance(vectors, ImageFolder) else _checks.array("images", vectors)
    if len(vectors.shape) == 4:
        raise ArgumentError(
            f"images has shape {vectors.shape}, but the embedder takes vectors of {size}. "
            "Embed the images first with the model that returns such vectors: "
            "embed(embedder, embed(backbone, images))."
        )
    return _checks.vectors("images", vectors, size)


def _in_order(images, batch_size: int, of_vectors: bool = False):
    """Returns batches of images, or of vectors, in their order."""
    if of_vectors:
        return _VectorBatches(images, batch_size)
    return ImageBatches(images, np.zeros(len(images), "int8"), batch_size, shuffle=False)


class _VectorBatches:
    """Batches of vectors in their order, float32, as `ImageBatches` are of images."""

    def __init__(self, vectors: np.ndarray, batch_size: int):
        self._vectors, self.batch_size, self.rows = vectors, batch_size, len(vectors)

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, None]:
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self._vectors[rows].astype("float32"), None


@contextlib.contextmanager
def _one_device() -> Iterator[None]:
    """Sets no distribution: devices share whole batches only, but can all embed each image."""
    shared = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(shared)


def _embed_batches(embedder, batches, progress, flip) -> np.ndarray:
    """Returns the embeddings of all images of `batches`, float32; with `flip` as `embed`."""
    hidden = None if progress is None else not progress  # tqdm takes None for "in a terminal only"
    traced = _traces(embedder, batches.rows // batches.batch_size)

    def compute(images):
        whole = len(images) == batches.batch_size
        if traced == "always" or traced == "whole batches" and whole:
            return np.asarray(embedder.predict_on_batch(images))[: len(images)]
        return _call(embedder, images)

    found = []
    with tqdm(total=batches.rows, unit="image", disable=hidden, delay=_BAR_DELAY) as bar:
        for images in _ahead(batches):
            vectors = compute(images)
            if flip:
                vectors = (vectors + compute(images[:, :, ::-1])) / 2
            found.append(vectors.astype("float32", copy=False))
            bar.update(len(images))
    return np.concatenate(found)


def _traces(embedder, whole_batches: int) -> str:
    """Returns which batches run through a compiled function: "always", "whole batches" or "never".

    A last, smaller batch would be traced anew. JAX is slow without a compiled function, several
    devices share batches by it, and a network with its own `predict_step` needs it.
    """
    strategy = getattr(embedder, "distribute_strategy", None)
    shared = strategy is not None and strategy.num_replicas_in_sync > 1
    own_step = type(embedder).predict_step is not keras.Model.predict_step
    if keras.backend.backend() != "tensorflow" or shared or own_step:
        return "always"
    return "whole batches" if whole_batches >= _GRAPH_BATCHES else "never"


def _call(embedder, images) -> np.ndarray:
    """Returns the embeddings of one batch, without tracing a function."""
    return np.asarray(keras.ops.convert_to_numpy(embedder(images, training=False)))


def _ahead(batches):
    """Yields the images of each batch, while a thread draws the next one."""
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(batches.__getitem__, 0)
        for n in range(1, len(batches) + 1):
            images, _ = drawn.result()
            if n < len(batches):
                drawn = pool.submit(batches.__getitem__, n)
            yield images


def pixels(images: ArrayLike | ImageFolder) -> np.ndarray:
    """Returns images as vectors of their pixels: the baseline that an embedder must beat.

    Args:
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.

    Returns:
        `(n, height * width * channels)` float32 in [0, 1].

    Raises:
        ArgumentError: If the images have another number of axes, hold NaN or lie outside [0, 1].
        ArgumentTypeError: If they are neither float nor uint8.

    Example:
        >>> pixels(np.full((3, 8, 8, 1), 255, "uint8")).shape
        (3, 64)
    """
    images = check_images("images", images)
    return as_float(images[:]).reshape(len(images), int(np.prod(images.shape[1:])))


def embed_folder(
    embedder: keras.Model, images: ImageFolder, batch_size: int = 256
) -> tuple[np.ndarray, list[str]]:
    """Embeds the images of a folder, and reports files that cannot be decoded.

    Args:
        embedder: `keras.Model` from images to vectors.
        images: `ImageFolder`. All its images are held in memory at once, as uint8.
        batch_size: Images per call of the embedder.

    Returns:
        `(vectors, reasons)`, in the order of `images`. `vectors` is `(n, dim)` float32, with NaN
        for a file that cannot be decoded. `reasons` holds the error message of each such file, and
        "" for the others.

    Raises:
        ArgumentError: If the image size does not fit the model, or the model does not return
            vectors, or returns NaN or infinity.
        ArgumentTypeError: If `embedder` is not a model with one input.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from kerasim.data import image_folder
        >>> Path("photos").mkdir()
        >>> Image.new("L", (8, 8)).save("photos/black.png")
        >>> Path("photos/damaged.png").write_bytes(b"no image")
        8
        >>> folder = image_folder("photos", image_size=8, channels=1, check=False)
        >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> vectors, reasons = embed_folder(embedder, folder)
        >>> vectors[:, 0].tolist()
        [0.0, nan]
    """
    shape, dim = check_embedder("embedder", embedder)
    height, width, channels = check_shape("images", images, shape).shape[1:]
    settings = {"image_size": (height, width), "channels": channels, "resize": images.resize}

    def decode(file):
        try:
            return read_image(file, **settings, dtype="uint8")
        except ImageError as error:
            return str(error)

    decoded = thread_map(decode, images.files)
    reasons = [found if isinstance(found, str) else "" for found in decoded]
    good = [n for n, reason in enumerate(reasons) if not reason]
    vectors = np.full((len(decoded), dim), np.nan, "float32")
    if good:
        vectors[good] = embed(
            embedder, np.stack([decoded[n] for n in good]), batch_size, None, False
        )
    return vectors, reasons


def explain_pairs(
    embedder: keras.Model,
    left: ArrayLike | ImageFolder,
    right: ArrayLike | ImageFolder,
    layer: str | None = None,
    metric: _Similarity = "cosine",
    prefix_tokens: int | None = None,
    batch_size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes which regions of the two images of a pair make them similar.

    The embedder is cut at a layer that returns feature maps. One position at a time is replaced by
    the mean over the positions of that map (ablation), and the layers after the cut are applied.
    The contribution of the position is the decrease of the similarity to the other image, which
    stays as it is. A positive contribution means that the region makes the pair more similar than
    an average region of that image does, a negative one that it makes it less similar.

    The method needs no gradients, and the layers after the cut may be of any kind: pooling,
    attention, dense layers. It takes one pass of the layers before the cut for each image, and one
    pass of those after it for each position. The maps are as coarse as the feature maps, and a
    position depends on more pixels than those of its cell. The maps explain what the network does,
    not whether it is right.

    For average pooling without a dense layer and `metric="dot_product"`, the contribution is that
    of Stylianou et al., minus its mean over the positions. Chen et al. weight feature maps by
    gradients, as Grad-CAM does. A gradient is a local slope, which can be 0 for a saturated unit or
    behind max-pooling although the unit matters; ablation measures the whole difference.

    Args:
        embedder: Functional or Sequential `keras.Model` from images to vectors, channels-last.
            Models within it are searched for the layer as well.
        left: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        right: The other image of each pair, likewise.
        layer: Name of the layer to cut at; None for the last one that returns feature maps
            `(batch, height, width, channels)` of more than one position, or tokens with
            `prefix_tokens`. No path from the images to the embedding, such as a skip connection,
            may lead around the layer. An earlier layer gives finer maps and takes longer.
        metric: The similarity. "cosine": cosine similarity, for which a region matters only if it
            changes the direction of the embedding. "dot_product": the inner product, divided by the
            lengths of the embeddings of the two unchanged images. A region then also matters if it
            adds to the length, which objects do more than background. "euclidean" or "manhattan":
            minus the distance.
        prefix_tokens: For a transformer whose layers return tokens `(batch, tokens, dim)`: how many
            tokens, such as a class token, precede those of the patches. They are not ablated. If
            the embedding is made from the class token alone, pass as `layer` one before the last
            attention, after which it does not depend on the patches. None for feature maps.
        batch_size: Images per call of the layers before the cut, and feature maps per call of those
            after it. Memory grows with it, not with the number of pairs.

    Returns:
        `(left_maps, right_maps)`: the contributions of the positions of each image, float32
        `(n, grid_height, grid_width)`, in the unit of the similarity. The grid covers the image.
        Convolutions without padding return no features near its edges: the cells there are 0.
        (Behind a layer of your own that changes the size, features are taken to cover the image.)
        `plots.pair_explanation` draws the maps.

    Raises:
        ArgumentError: If the images do not fit the model, their numbers differ or are 0, the
            network cannot be cut at that layer, the tokens do not form a grid, or embeddings are
            NaN, infinity or, under "cosine" and "dot_product", zero.
        ArgumentTypeError: If `embedder` is not a functional or Sequential model of images.

    Example:
        >>> embedder = keras.Sequential(
        ...     [
        ...         keras.Input((8, 8, 1)),
        ...         keras.layers.AveragePooling2D(4),
        ...         keras.layers.Flatten(),
        ...     ]
        ... )
        >>> left = np.zeros((1, 8, 8, 1))
        >>> left[0, :4, :4] = 1.0  # both images are bright at the top left
        >>> right = left.copy()
        >>> right[0, 4:, 4:] = 1.0  # the right one is also bright at the bottom right
        >>> left_maps, right_maps = explain_pairs(embedder, left, right)
        >>> [[f"{x:.2f}" for x in row] for row in right_maps[0]]
        [['0.26', '0.04'], ['0.04', '-0.19']]

    Reference:
        Stylianou et al., 2019, Visualizing Deep _Similarity Networks.
        https://arxiv.org/abs/1901.00536; Chen et al., 2020, Adapting Grad-CAM for Embedding
        Networks. https://arxiv.org/abs/2001.06538
    """
    shape, _ = check_embedder("embedder", embedder)
    left = check_images("left", check_shape("left", left, shape))
    right = check_images("right", check_shape("right", right, shape))
    if len(left) != len(right) or not len(left):
        raise ArgumentError(
            f"left holds {len(left)} images and right {len(right)}: pass the two images of each "
            "pair, one pair or more."
        )
    _checks.one_of("metric", metric, get_args(_Similarity))
    _checks.integer("batch_size", batch_size)
    if prefix_tokens is not None:
        _checks.integer("prefix_tokens", prefix_tokens, 0)
    rank = _cutting.MAP_RANK if prefix_tokens is None else _cutting.TOKEN_RANK
    network = _cutting.cut(embedder, layer, rank)
    sides = [_in_order(images, batch_size) for images in (left, right)]
    found: tuple[list, list] = [], []
    with _one_device(), translate_errors(*sides):
        for batches in zip(*map(_ahead, sides), strict=True):
            pair = [_Features(network, images, prefix_tokens, batch_size) for images in batches]
            if not found[0]:
                expected = _apply(embedder, batches[0][:_CHECKED_IMAGES])
                _checks.finite("the embedder's output", expected)
                network.check(pair[0].values[:_CHECKED_IMAGES], expected)
            for maps, own, other in zip(found, pair, reversed(pair), strict=True):
                maps.append(own.contributions(other.embeddings, metric))
    left_maps, right_maps = map(np.concatenate, found)
    if not (left_maps.any() or right_maps.any()):
        _checks.warn(
            f"The embeddings depend on no single position of the output of {network.layer!r}: all "
            "contributions are 0. Pass the name of another layer."
        )
    return left_maps, right_maps


class _Features:
    """The features of a batch of images, and what each of their positions contributes.

    Attributes:
        values: Features as the head of the network takes them.
        embeddings: `(batch, dim)`: those that the head returns for them.
    """

    def __init__(self, network: _cutting.Cut, images, prefix_tokens: int | None, batch_size: int):
        self._network, self._batch_size = network, batch_size
        self._first = prefix_tokens or 0
        self.values = network.features(images, _apply)
        self.embeddings = np.concatenate(
            [
                self._head(self.values[start : start + batch_size])
                for start in range(0, len(images), batch_size)
            ]
        )
        image_size = images.shape[1:3]
        if prefix_tokens is None:
            self._grid, self._margins = self.values.shape[1:3], network.margins(image_size)
        else:
            self._grid = _grid_of(network.layer, self.values.shape[1], prefix_tokens, image_size)
            self._margins = [(0, 0), (0, 0)]
        if np.prod(self._grid) < 2:
            raise ArgumentError(
                f"layer={network.layer!r} returns features of one position for images of shape "
                f"{images.shape[1:]}. Pass the name of an earlier layer, or larger images."
            )

    def contributions(self, others, metric: _Similarity) -> np.ndarray:
        """Returns `(batch, grid_height, grid_width)`: the decrease of the similarity to `others`.

        A row is one position of one image: rows of several images share a call of the head. Cells
        between the features and the edge of the image are 0.
        """
        directed = "cosine" if metric == "dot_product" else metric
        for vectors in (self.embeddings, others):
            _checks.vectors("the embedder's output", vectors, metric=directed)
        count = int(np.prod(self._grid))
        tokens = self.values.reshape(len(self.values), -1, self.values.shape[-1])
        means = tokens[:, self._first :].mean(axis=1)
        decrease = np.empty(len(tokens) * count)
        for start in range(0, len(decrease), self._batch_size):
            rows = np.arange(start, min(start + self._batch_size, len(decrease)))
            image, position = np.divmod(rows, count)
            ablated = tokens[image]
            ablated[np.arange(len(rows)), self._first + position] = means[image]
            vectors = self._head(ablated.reshape(len(rows), *self.values.shape[1:]))
            name = f"the embedder's output without one position of {self._network.layer!r}"
            _checks.vectors(name, vectors, metric=metric)
            decrease[rows] = _decrease(self.embeddings[image], vectors, others[image], metric)
        maps = decrease.reshape(-1, *self._grid).astype("float32")
        return np.pad(maps, [(0, 0), *self._margins])

    def _head(self, features):
        return self._network.embeddings(features)


def _decrease(whole, ablated, others, metric: _Similarity) -> np.ndarray:
    """Returns by how much `ablated` embeddings are less similar to `others` than `whole` ones.

    All are `(n, dim)`; the result is `(n,)`.
    """
    if metric == "dot_product":
        lengths = np.linalg.norm(whole.astype("float64"), axis=1)
        change = (whole.astype("float64") - ablated) / lengths[:, None]
        return (change * unit(others)).sum(axis=1)
    return paired(ablated, others, metric) - paired(whole, others, metric)


def _apply(model, images) -> np.ndarray:
    """Returns the output of `model` for one batch."""
    if _traces(model, 1) == "always":
        return np.asarray(model.predict_on_batch(images))
    return _call(model, images)


def _grid_of(layer: str, tokens: int, prefix_tokens: int, image_size) -> tuple[int, int]:
    """Returns rows and columns of the grid of square patches into which an image is divided."""
    height, width = image_size
    patches = tokens - prefix_tokens
    rows = round(max(0, patches * height / width) ** 0.5)
    if not rows or rows**2 * width != patches * height:
        raise ArgumentError(
            f"prefix_tokens={prefix_tokens} leaves {patches} of the {tokens} tokens that "
            f"layer={layer!r} returns. They do not form a grid of square patches of an image of "
            f"{height} x {width}: pass the number of tokens before those of patches, or another "
            "layer."
        )
    return rows, patches // rows


def _load(folder, manifest):
    return _artifacts.read_arrays(folder / "x.npz", ("x",))["x"]


def load_embedder(path: Path | str) -> keras.Model:
    """Loads an embedder from a `.keras` file, without running code that the file may hold.

    Layers of kerasim are found in any process. Your own layers are found if the module that
    registers them has been imported.

    Args:
        path: A file that `keras.Model.save` wrote.

    Returns:
        The model with its weights, not compiled.

    Raises:
        ArtifactError: If the file is missing, refers to code that is not run for safety, or would
            need far more memory than its size suggests.
        ArgumentError: If the file is damaged, or the model has layers that Keras does not know.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> model.save("embedder.keras")
        >>> load_embedder("embedder.keras").output_shape
        (None, 64)
    """
    path = _artifacts.check_file(path)
    if path.suffix != ".keras":
        raise ArtifactError(
            f"{_checks.shown(path)} is not a .keras file. Other formats, such as .h5, are not read "
            "for safety. If you trust it, convert it: "
            "keras.saving.load_model(path).save('model.keras')."
        )
    try:
        return _keras_files.load_model(path)
    except ArtifactError:
        raise
    except Exception as error:  # zipfile, json, h5py and Keras raise errors of many kinds
        reason = _keras_files.describe(error)
        raise ArgumentError(
            f"{_checks.shown(path)} cannot be loaded as an embedder: {reason}. The file is "
            "damaged, or was saved by another version. Save the model again with model.save."
        ) from error
