"""Exports models as a SavedModel or ONNX file, and loads SavedModels.

An exported model is used without kerasim; TensorFlow Serving can load the folder. One of its two
endpoints takes encoded image files, which are decoded and resized in the graph, because a client
that decoded them in another way would silently get other embeddings. The preprocessing is part of
the network, so that clients need no instructions. The outputs of every export are compared with
those of the model on random images before it is saved, because converters translate some operations
incorrectly without an error.
"""

import contextlib
import io
import logging
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from kerasim import _artifacts, _checks, _model_identity
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images, check_shape, shapes_of
from kerasim._serving import make_decoder
from kerasim.errors import (
    ArgumentError,
    ArgumentTypeError,
    ArtifactError,
    DependencyError,
    ImageError,
    KerasimError,
)
from kerasim.images import Resize, as_float, check_resize

__all__ = [
    "SavedModel",
    "export_onnx",
    "export_saved_model",
    "load_saved_model",
]

_KIND = "saved_model"

# Largest difference of an export from its model, relative to the largest output, that rounding can
# cause, in float32 and in half precision. Operations that are converted wrongly differ by more.
_TOLERANCE = 5e-4
_HALF_TOLERANCE = 3e-2


def export_saved_model(
    model: keras.Model, path: Path | str, replace: bool = False, resize: Resize = "squash"
) -> None:
    """Writes a model as a SavedModel with two endpoints, both for any batch size.

    "serving_default" takes `images`, float32 `(batch, height, width, channels)` in [0, 1];
    "serve_bytes" takes `image_bytes`, `(batch,)` encoded JPEG, PNG, BMP or GIF files, decodes them
    as `images.read_image` does, EXIF orientation included, and resizes images that do not have the
    input size. BMP files other than plain 24-bit ones and GIF files that are animated, transparent
    or have a frame smaller than the screen are refused: TensorFlow would read other pixels.

    Before the export is moved to `path`, both endpoints are run on random images and their results
    compared with those of the model.

    Args:
        model: `keras.Model` from one image input to one output, such as
            `autoencoder.get_layer("encoder")`.
        path: Folder to write.
        replace: True to overwrite an earlier export there.
        resize: How "serve_bytes" resizes images of another aspect ratio: "squash" stretches them,
            "crop" cuts the longer sides off their center, "pad" adds black borders.

    Raises:
        DependencyError: If TensorFlow is not installed, or Keras runs on another backend.
        ArgumentTypeError: If the model does not take one batch of images.
        ArgumentError: If the images are not of a fixed size, the model has several outputs or
            cannot be exported, or the export returns other values than the model. Nothing is
            written then.
        ArtifactError: If there is an earlier export, the folder holds something else, or it
            cannot be written.

    Example:
        >>> layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
        >>> embedder = keras.Sequential(layers)
        >>> export_saved_model(embedder, "embedder")
        >>> images = np.random.default_rng(0).random((2, 8, 8, 1))
        >>> exported = load_saved_model("embedder")
        >>> np.allclose(exported(images), embedder.predict(images, verbose=0), atol=1e-5)
        True
    """
    check_resize(resize)
    shape = _check_model(model)
    tf = _tensorflow()
    place = _artifacts.resolve(path)
    if not _checks.boolean("replace", replace) and _artifacts.version_of(place):
        _artifacts.check_replaceable(_artifacts.locate(place), _KIND)
        raise ArtifactError(_exists("an export", path))

    def fill(folder):
        try:
            # TensorFlow would name the temporary folder in its log.
            with _refusing("SavedModel"), _log_level(tf.get_logger(), "WARNING"):
                _archive(tf, model, shape, resize).write_out(str(folder), verbose=False)
        except tf.errors.OpError as error:  # pragma: no cover - a full disk: make torture
            said = error.message.partition(" [Op:")[0].rpartition("; ")[2]
            raise OSError(f"TensorFlow says {said!r}") from error
        exported = SavedModel(tf.saved_model.load(str(folder)))
        _check_equal(model, shape, "SavedModel", exported)
        _check_equal(
            model,
            shape,
            "SavedModel's serve_bytes",
            lambda images: exported.serve_bytes([_encode_png(image) for image in images]),
        )

    info = {"image_shape": [*shape]}
    _artifacts.write(path, _KIND, fill, info, _model_identity.fingerprint(model))


def _archive(tf, model, shape, resize: Resize):
    """Returns a `keras.export.ExportArchive` of a model with both endpoints."""
    height, width, channels = shape
    decode = make_decoder(tf, height, width, channels, resize)

    def serve(images):
        return model(images, training=False)

    def serve_bytes(image_bytes):
        images = tf.map_fn(decode, image_bytes, fn_output_signature=tf.float32)
        return serve(tf.ensure_shape(images, (None, *shape)))

    archive = keras.export.ExportArchive()
    archive.track(model)
    image_spec = tf.TensorSpec((None, *shape), tf.float32, name="images")
    bytes_spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serving_default", serve, input_signature=[image_spec])
    archive.add_endpoint("serve_bytes", serve_bytes, input_signature=[bytes_spec])
    return archive


def export_onnx(model: keras.Model, path: Path | str, replace: bool = False) -> None:
    """Writes a model as an ONNX file for any batch size, for runtimes without Keras.

    Its input is "images", float32 `(batch, height, width, channels)` in [0, 1]. The file is run by
    onnxruntime on random images, and compared with the model, before it is put in its place.

    Args:
        model: `keras.Model` from one image input to one output, such as
            `autoencoder.get_layer("encoder")`.
        path: File to write.
        replace: True to overwrite an existing file.

    Raises:
        DependencyError: If TensorFlow, tf2onnx, onnx or onnxruntime is not installed, or Keras
            runs on another backend.
        ArgumentTypeError: If the model does not take one batch of images.
        ArgumentError: If the images are not of a fixed size, or the model has several outputs, an
            operation that ONNX lacks, or one that is converted wrongly. Nothing is written then.
        ArtifactError: If the file exists, or it cannot be written.

    Example:
        >>> import onnxruntime
        >>> layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
        >>> export_onnx(keras.Sequential(layers), "embedder.onnx")
        >>> session = onnxruntime.InferenceSession("embedder.onnx")
        >>> session.run(None, {"images": np.zeros((2, 8, 8, 1), "float32")})[0].shape
        (2, 4)
    """
    shape = _check_model(model)
    if not _checks.boolean("replace", replace) and _artifacts.exists(path):
        raise ArtifactError(_exists("a file", path))
    try:
        import onnx
        import onnxruntime
        import tf2onnx  # noqa: F401 (Keras uses it)
    except ImportError as error:
        raise DependencyError(
            f"ONNX files need {error.name}, which is not installed: pip install -e '.[onnx]'."
        ) from error
    images = keras.Input(shape, name="images")
    signature = [keras.InputSpec("float32", (None, *shape), name="images")]
    with tempfile.TemporaryDirectory() as folder, _quiet_tf2onnx():
        file = Path(folder, "model.onnx")
        with _refusing("ONNX file"):
            network = keras.Model(images, model(images))
            network.export(file, format="onnx", verbose=False, input_signature=signature)
            onnx.checker.check_model(str(file))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # errors are raised as exceptions
            session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        _check_equal(model, shape, "ONNX file", lambda x: session.run(None, {"images": x})[0])
        _artifacts.write_file(path, file.read_bytes())


@contextlib.contextmanager
def _refusing(kind: str):
    """Turns exceptions of a converter into an `ArgumentError`."""
    try:
        yield
    except (KerasimError, OSError, MemoryError):
        raise
    except Exception as error:  # converters raise errors of many kinds
        if type(error).__module__.startswith("tensorflow"):  # a fault of the disk, not of the model
            raise
        raise ArgumentError(
            f"model uses an operation that cannot be exported as {kind} "
            f"({type(error).__name__}: {_one_line(error)}). Replace the layer, or "
            "export to another format."
        ) from error


@contextlib.contextmanager
def _quiet_tf2onnx():
    """Silences tf2onnx, whose errors are raised or found by running the file."""
    # tf2onnx uses names of NumPy that are deprecated.
    with _checks.no_warnings(category=FutureWarning):
        with _log_level(logging.getLogger("tf2onnx"), logging.CRITICAL):
            yield


@contextlib.contextmanager
def _log_level(logger, level) -> Iterator[None]:
    """Sets the level of a logger, in one thread at a time, and restores it."""
    with _log_lock:
        before = logger.level
        logger.setLevel(level)
        try:
            yield
        finally:
            logger.setLevel(before)


_log_lock = threading.RLock()


def _exists(what: str, path) -> str:
    advice = "choose another path, or pass replace=True to overwrite it"
    return f"There is {what} at {_checks.shown(path)} already: {advice}."


def _one_line(error: Exception) -> str:
    """Returns the start of a long error text in one line, without codes for bold type."""
    text = re.sub(r"\x1b\[\d*m", "", str(error)).partition("Arguments received")[0]
    return " ".join(text.split())[:300]


def _check_equal(model, shape, what: str, run) -> None:
    """Raises an `ArgumentError` unless `run` computes what the model does for random images."""
    images = _random_images(shape)
    expected = _outputs(model, images)
    # guard: nan-in-export
    if not np.isfinite(expected).all():
        raise ArgumentError(
            "model returns NaN or infinity for random images. Nothing was written. Train it, or "
            "call adapt of a layer that needs it, such as layers.Whitening, before the export."
        )
    largest = np.abs(expected).max(initial=0)
    tolerance = largest * (_HALF_TOLERANCE if _uses_halves(model) else _TOLERANCE)
    if not np.allclose(_outputs(model, images), expected, rtol=0, atol=tolerance):
        raise ArgumentError(
            "model returns different outputs for the same images, so its export cannot be checked. "
            "Remove the layers that are random at inference."
        )
    for count in (len(images), 1):  # any batch size
        try:
            found = np.asarray(run(images[:count]))
        except Exception as error:  # of the runtime
            raise ArgumentError(
                f"model was exported, but its {what} cannot be run ({type(error).__name__}: "
                f"{_one_line(error)}). Nothing was written. Replace the layer that is converted "
                "wrongly, or export to another format."
            ) from error
        wanted = expected[:count]
        is_shape_equal = found.shape == wanted.shape
        if not is_shape_equal or not np.allclose(found, wanted, 0, tolerance):
            difference = f"shape {found.shape}, expected {wanted.shape}"
            if is_shape_equal:
                gap = np.nanmax(np.abs(found - wanted))
                difference = f"by up to {gap:.3g}, for outputs up to {largest:.3g}"
            raise ArgumentError(
                f"model was exported, but the outputs of its {what} differ from those of the model "
                f"({difference}). Nothing was written. Replace the layer that is converted "
                "wrongly, or export to another format."
            )


def _random_images(shape) -> np.ndarray:
    """Returns images of random pixels, coarse patches and little contrast, in 256 levels."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    noise = rng.random((2, *shape))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    patches = rng.random((4, 4, channels))[rows][:, columns]
    images = np.stack([*noise, patches, 0.5 + 0.1 * rng.random(shape)])
    return np.rint(255 * images).astype("float32") / 255


def _encode_png(image: np.ndarray) -> bytes:
    levels = np.rint(255 * image).astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def _outputs(model, images) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(images, training=False)), "float64")


def _uses_halves(model) -> bool:
    for layer in getattr(model, "layers", ()):
        if layer.compute_dtype in ("float16", "bfloat16") or _uses_halves(layer):
            return True
    return False


def load_saved_model(path: Path | str, trust: bool = False) -> "SavedModel":
    """Loads a SavedModel as a function of images.

    A SavedModel is a program: it can do whatever TensorFlow can. It is loaded only if its manifest
    says that kerasim wrote its files, or if you trust its source and pass `trust=True`.

    Args:
        path: Folder that `export_saved_model` wrote.
        trust: True to load a folder without kerasim's manifest, too.

    Returns:
        `SavedModel`: call it with images, or its `serve_bytes` with encoded files.

    Raises:
        ArtifactError: If the folder is missing or damaged, or kerasim did not write it and `trust`
            is False.
        DependencyError: If TensorFlow is not installed.

    Example:
        >>> layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
        >>> export_saved_model(keras.Sequential(layers), "network")
        >>> load_saved_model("network")(np.zeros((2, 8, 8, 1))).shape
        (2, 4)
    """
    _checks.boolean("trust", trust)
    tf = _tensorflow()

    def load(folder, manifest=None):
        return SavedModel(tf.saved_model.load(str(folder)))

    folder = _artifacts.check_path("path", path)
    # guard: trust
    if trust and not (folder / _artifacts.MANIFEST).exists():
        try:
            return load(folder)
        except Exception as error:
            raise ArtifactError(
                f"{folder} is not a SavedModel: {error}. Check the path."
            ) from error
    return _artifacts.read(folder, _KIND, load)


class SavedModel:
    """A loaded SavedModel. Made by `load_saved_model`.

    Example:
        >>> layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
        >>> export_saved_model(keras.Sequential(layers), "served")
        >>> model = load_saved_model("served")
        >>> keras.utils.save_img("image.png", np.zeros((20, 30, 3)))
        >>> with open("image.png", "rb") as file:  # resized to 8 x 8 and converted to gray
        ...     model.serve_bytes([file.read()]).shape
        (1, 4)
    """

    def __init__(self, loaded: Any):
        self._loaded = loaded

    def __call__(self, images: ArrayLike | ImageFolder) -> np.ndarray:
        """Computes the outputs for images.

        Args:
            images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.

        Returns:
            `(n, ...)`, a row for each image.

        Raises:
            ArgumentError: If the images do not fit, hold NaN or lie outside [0, 1].
        """
        taken = self._inputs("serving_default")[1].shape
        images = check_shape("images", images, taken[1:] if taken.rank == 4 else (None,) * 3)
        return self._call("serving_default", as_float(check_images("images", images)[:]))

    def serve_bytes(self, encoded: Iterable[bytes]) -> np.ndarray:
        """Computes the outputs for encoded image files.

        Args:
            encoded: Contents of JPEG, PNG, BMP or GIF files, with images of any size.

        Returns:
            `(n, ...)`, a row for each file.

        Raises:
            ImageError: If one of them cannot be decoded.
            ArgumentTypeError: If `encoded` is not a list of bytes.
        """
        given = type(encoded).__name__
        listed = hasattr(encoded, "__iter__") and not isinstance(encoded, (bytes, str))
        files = list(encoded) if listed else [None]
        if not all(isinstance(content, bytes) for content in files):
            raise ArgumentTypeError(
                f"encoded must be a list of files, each of type bytes. Received {given}: "
                "pass, for example, [path.read_bytes()]."
            )
        try:
            return self._call("serve_bytes", np.array(files, dtype=object))
        # TensorFlow's own message may quote the bytes, which are no text.
        except (_tensorflow().errors.InvalidArgumentError, UnicodeDecodeError) as error:
            raise ImageError(
                f"One of the {len(files)} encoded images is not a complete JPEG, PNG, BMP or GIF "
                "file, or a BMP or GIF file that TensorFlow does not decode as images.read_image "
                "does. Leave it out, or convert it to PNG."
            ) from error

    def _inputs(self, endpoint):
        """Returns the signature of an endpoint's one input as (name, spec)."""
        if endpoint not in self._loaded.signatures:
            names = sorted(self._loaded.signatures)
            raise ArgumentError(
                f"This SavedModel has no endpoint {endpoint!r}, only {names}: export it "
                "with export_saved_model."
            )
        (named,) = self._loaded.signatures[endpoint].structured_input_signature[1].items()
        return named

    def _call(self, endpoint, value):
        name, _ = self._inputs(endpoint)
        tf = _tensorflow()
        signature = self._loaded.signatures[endpoint]
        if not len(value):  # on which some of TensorFlow's fused operations fail
            (spec,) = signature.structured_outputs.values()
            return np.empty((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
        (output,) = signature(**{name: tf.convert_to_tensor(value)}).values()
        return output.numpy()


def _check_model(model):
    """Returns the image shape of a model that can be exported."""
    if keras.backend.backend() != "tensorflow":
        raise DependencyError(
            "Export needs Keras on TensorFlow, but it runs on "
            f"{keras.backend.backend()!r}: save the model as .keras and export it in a "
            "process with KERAS_BACKEND=tensorflow."
        )
    _tensorflow()
    shape, _ = shapes_of("model", model)
    if None in shape or shape[2] not in (1, 3):
        raise ArgumentError(
            f"model takes images of shape {shape}, but an export needs a fixed size and 1 or 3 "
            "channels: build it with an image_shape (height, width, 1 or 3)."
        )
    return shape


def _tensorflow():
    try:
        import tensorflow
    except ImportError as error:
        raise DependencyError(
            "SavedModels need TensorFlow, which is not installed: pip install -e "
            "'.[tf]' (or '.[tf-cpu]', or '.[gpu]')."
        ) from error
    return tensorflow
