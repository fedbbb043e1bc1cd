"""Reads `.keras` and HDF5 files that come from elsewhere, without trusting what they say.

A `.keras` file is a zip archive of a configuration (`config.json`) and weights (HDF5). Keras builds
whatever the configuration names: with `safe_mode` on, that still includes every function of its
public API, called with arguments from the file. So before Keras reads the configuration, it is
compared with an allow-list of what image models need:

1. Every class or function that it names, at any depth, is on the list below, or was registered in
   this process with `keras.saving.register_keras_serializable`. No module is imported for it: the
   listed layers of keras_hub are accepted once keras_hub has been imported.
2. A function is named only as a setting of a layer, such as an activation: never as an argument of
   a call. Each call takes at least one symbolic tensor, so that nothing is computed while loading.
3. Each constant has a numeric data type: another type could make it far larger than its text in
   the file.

Then the weights: each array of the HDF5 file is stored in the file itself, uncompressed and in
full. Finally the model is built without allocating its weights, to compare their number with the
weights in the file. The settings of `compile`, including those of inner models, are ignored.
"""

import json
import math
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import keras

from kerasim import _checks, _keras_compat
from kerasim import layers as _layers  # noqa: F401 (registers the layers of kerasim with Keras)
from kerasim.errors import ArgumentError, ArtifactError, KerasimError

__all__ = ["check_config", "check_hdf5", "describe", "load_model", "save_model"]

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_MEMBERS = {_CONFIG, "metadata.json", _WEIGHTS}

# Configurations of keras.applications have up to 2 MB.
_CONFIG_BYTES = 16 * 2**20

# Left out on purpose: layers that hold code or a foreign program (Lambda, TFSMLayer, JaxLayer,
# FlaxLayer, TorchModuleWrapper), and layers of text and sound, of which some read files.
_LAYERS = """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
    AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop
    Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D
    Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D
    Cropping3D CutMix Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU
    EinsumDense Embedding Equalization Flatten GRU GRUCell GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D
    GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer
    LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute Pipeline
    RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter
    RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur
    RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom ReLU RepeatVector
    Rescaling Reshape Resizing ReversibleEmbedding SeparableConv1D SeparableConv2D SimpleRNN
    SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpectralNormalization StackedRNNCells Subtract TimeDistributed UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
_CLASSES = {
    "keras": "DTypePolicy FloatDTypePolicy Sequential",
    "keras.constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm",
    "keras.dtype_policies": "DTypePolicyMap Int4DTypePolicy QuantizedDTypePolicy "
    "QuantizedFloat8DTypePolicy",
    "keras.initializers": "Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity "
    "LecunNormal LecunUniform Ones Orthogonal RandomNormal RandomUniform TruncatedNormal "
    "VarianceScaling Zeros",
    "keras.layers": _LAYERS,
    "keras.quantizers": "AbsMaxQuantizer Float8QuantizationConfig Int4QuantizationConfig "
    "Int8QuantizationConfig QuantizationConfig",
    "keras.random": "SeedGenerator",
    "keras.regularizers": "L1 L1L2 L2 OrthogonalRegularizer",
    "keras.src.applications.convnext": "LayerScale StochasticDepth",
    "keras.src.applications.inception_resnet_v2": "CustomScaleLayer",
    "keras.src.models.functional": "Functional",
    # Operations that are layers of a model, such as the sum in `x + 1`. Those that call a function
    # of their arguments (Cond, Map, Scan, Switch, VectorizedMap, WhileLoop, JVP) are left out.
    "keras.src.ops.core": "Cast ConvertToTensor SaturateCast Scatter ScatterUpdate Slice "
    "SliceUpdate StopGradient Unstack",
    "keras.src.ops.einops": "Rearrange",
    "keras.src.ops.image": "AffineTransform CropImages ElasticTransform ExtractPatches "
    "GaussianBlur HSVToRGB MapCoordinates PadImages PerspectiveTransform RGBToGrayscale RGBToHSV "
    "Resize SSIM ScaleAndTranslate SobelEdges",
    "keras.src.ops.linalg": "Cholesky CholeskyInverse Det Eig Eigh Inv Lstsq LuFactor MatrixRank "
    "Norm Pinv Qr SVD Solve SolveTriangular",
    "keras.src.ops.math": "CDist Erf Erfc Erfinv ExtractSequences FFT FFT2 IFFT2 IRFFT ISTFT "
    "InTopK Logdet Logsumexp RFFT Rsqrt STFT SegmentMax SegmentMin SegmentProd SegmentSum TopK "
    "ViewAsComplex ViewAsReal",
    "keras.src.ops.nn": "AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm "
    "BinaryCrossentropy CategoricalCrossentropy Celu Conv ConvTranspose DepthToSpace DepthwiseConv "
    "DotProductAttention Elu Fold Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LayerNorm "
    "LeakyRelu LogSigmoid LogSoftmax MaxPool Moments MultiHot Normalize OneHot PSNR Polar RMSNorm "
    "Relu Relu6 Selu SeparableConv Sigmoid Silu SoftShrink Softmax Softplus Softsign SpaceToDepth "
    "SparseCategoricalCrossentropy SparsePlus SparseSigmoid Sparsemax Squareplus TanhShrink "
    "Threshold Unfold",
    "keras.src.ops.numpy": """
    Abs Absolute Add All AllClose Amax Amin Angle Any Append Arange Arccos Arccosh Arcsin Arcsinh
    Arctan Arctan2 Arctanh Argmax Argmin Argpartition Argsort Array ArraySplit Average Bincount
    BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor
    BroadcastTo Cbrt Ceil Clip Concatenate Conj Conjugate Copy Corrcoef Correlate Cos Cosh
    CountNonzero Cross Cumprod Cumsum Deg2rad Diag Diagflat Diagonal Diff Digitize Divide
    DivideNoNan Dot Dsplit Dstack Einsum EmptyLike Equal Exp Exp2 ExpandDims Expm1 Fabs Flip Fliplr
    Flipud Floor FloorDivide Fmax Fmin Fmod Full FullLike Gcd Geomspace GetItem Greater GreaterEqual
    Heaviside Histogram Hsplit Hstack Hypot I0 Imag Inner IsIn Isclose Isfinite Isinf Isnan Isneginf
    Isposinf Isreal Kron Lcm Ldexp LeftShift Less LessEqual Linspace Log Log10 Log1p Log2 Logaddexp
    Logaddexp2 LogicalAnd LogicalNot LogicalOr LogicalXor Logspace Matmul Max Maximum Mean Median
    Meshgrid Min Minimum Mod Moveaxis Multiply NanToNum Nanargmax Nanargmin Nancumprod Nancumsum
    Nanmax Nanmean Nanmedian Nanmin Nanpercentile Nanprod Nanquantile Nanstd Nansum Nanvar Ndim
    Negative Nextafter Nonzero NotEqual OnesLike Outer Pad Percentile Power Prod Ptp Quantile
    Rad2deg Ravel Real Reciprocal Repeat Reshape RightShift Roll Rot90 Round SearchSorted Select
    Sign Signbit Sin Sinc Sinh Size Slogdet Sort Split Sqrt Square Squeeze Stack Std Subtract Sum
    Swapaxes Take TakeAlongAxis Tan Tanh Tensordot Tile Trace Transpose Trapezoid Tril Triu
    TrueDivide Trunc Unique UnravelIndex Vander Var Vdot View Vsplit Vstack Where ZerosLike
    """,
}
# Layers of vision towers, which keras_hub does not register. Those of ViT and DeiT cannot be built
# from their configurations in keras_hub 0.32.
_KERAS_HUB_LAYERS = {
    "clip": "CLIPEncoderLayer CLIPVisionEmbedding CLIPVisionPooler",
    "dinov2": "DINOV2Embedding DINOV2Encoder",
    "dinov3": "DINOV3Embedding DINOV3Encoder DINOV3RopePositionEmbedding",
    "siglip": "SigLIPEncoderLayer SigLIPMultiHeadAttentionPooling SigLIPVisionEmbedding",
}
_KERAS_HUB_CLASSES = {
    (f"keras_hub.src.models.{family}.{family}_layers", name)
    for family, names in _KERAS_HUB_LAYERS.items()
    for name in names.split()
}
_ALLOWED_CLASSES = {(module, name) for module, names in _CLASSES.items() for name in names.split()}

_ACTIVATIONS = """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear
    log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign
    sparse_plus sparse_sigmoid sparsemax squareplus tanh tanh_shrink threshold
"""
_ALLOWED_FUNCTIONS = {
    (module, name) for module in ("builtins", "keras.activations") for name in _ACTIVATIONS.split()
}

# Constants in a configuration, by the name that Keras gives to their kind.
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__"}
_NUMERIC = re.compile(r"bool|u?int\d{1,3}|b?float\d{1,3}(_\w{1,12})?|complex\d{1,3}")

# bfloat16 and smaller floats, which NumPy and HDF5 lack, are stored as opaque values.
_OPAQUE_BYTES = 2


def load_model(path: Path) -> keras.Model:
    """Reads the model in the `.keras` file at `path`, without the settings of `compile`.

    Args:
        path: The file, as `keras.Model.save` writes it.

    Returns:
        The model with its weights, not compiled.

    Raises:
        ArtifactError: If the file holds more or less than a model: other members, something that
            is not on the list of this module, or arrays that are not stored in full.
        Exception: Of any kind, if the file is damaged.
    """
    _checks.no_zip_bomb(path)
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        _check_members(path, archive)
        config = json.loads(_read_config(path, archive))
        _leave_out_compile_settings(config)
        check_config(path, config)
        weights = Path(folder, _WEIGHTS)
        with archive.open(_WEIGHTS) as member, open(weights, "wb") as file:
            shutil.copyfileobj(member, file, 2**20)
        check_hdf5(weights, shown=path)
        custom_objects = _keras_compat.registered_objects()
        with ThreadPoolExecutor(1) as thread:
            declared = thread.submit(_count_weights, config, custom_objects).result()
        held = weights.stat().st_size
        # guard: declared-weights
        if declared > held:
            raise ArtifactError(
                f"{_checks.shown(path)} declares {declared} weights, but holds only {held} bytes "
                "of weights. Building the model would fill the memory. Save it again with "
                "model.save."
            )
        with _keras_compat.ObjectSharingScope():
            # guard: safe-mode
            model: Any = keras.saving.deserialize_keras_object(config, safe_mode=True)
        model.load_weights(weights)
    return model


def save_model(model, path, name: str = "embedder") -> None:
    """Saves a model at `path` and loads it again, to see that it can be; messages name it `name`.

    Raises:
        ArgumentError: If it cannot be loaded again. The file is left there.
    """
    model.save(path)
    try:
        load_model(path)
    except Exception as error:  # of many kinds, see `load_model`
        raise ArgumentError(
            f"{name} cannot be loaded again once it is saved ({describe(error)}). Build it from "
            "layers of Keras or kerasim, or from layers that are registered with "
            "keras.saving.register_keras_serializable and can be built from their get_config."
        ) from error


def describe(error: Exception) -> str:
    """Returns the kind and first line of an error, but no advice to switch safety off."""
    line = str(error).strip().partition("\n")[0].rstrip(". ")
    if isinstance(error, KerasimError):
        return line
    kind = type(error).__name__
    return f"{kind}: {line[:200]}" if line and "safe" not in line else kind


def check_config(path, config) -> None:
    """Compares everything that a configuration names with the list of this module.

    Args:
        path: The file that it comes from, for messages.
        config: The parsed `config.json` of a model.

    Raises:
        ArtifactError: If it names something else, or calls a layer on values from the file alone.
    """
    _check_node(path, config, "config", functions=True)


def check_hdf5(path, shown=None) -> None:
    """Checks that every array of an HDF5 file is stored in the file itself, in full.

    Args:
        path: The file. It is opened, but no array is read.
        shown: The path that messages name, if it is another one.

    Raises:
        ArtifactError: If the file is damaged, or an array is compressed, not stored, larger than
            the file, of another kind than numbers, or taken from elsewhere by a link or as a
            virtual or external array.
    """
    shown, size = shown or path, path.stat().st_size
    try:
        total = sum(_walk_hdf5(path, shown, size))
    except ArtifactError:
        raise
    except Exception as error:  # h5py raises errors of many kinds
        raise ArtifactError(
            f"{_checks.shown(shown)} holds damaged weights ({type(error).__name__}: {error}). "
            "Save the model or its weights again with Keras."
        ) from error
    if total > size:
        _refuse_weights(shown, "/", f"has arrays of {total} bytes in a file of {size} bytes")


def _walk_hdf5(path, shown, size: int) -> Iterator[int]:
    """Checks everything in an HDF5 file, and yields the bytes of each array."""
    import h5py

    seen = set()
    with h5py.File(path, "r") as file:
        waiting: list = [("", file)]
        while waiting:
            place, item = waiting.pop()
            info = h5py.h5o.get_info(item.id)
            if (info.fileno, info.addr) in seen:  # a file may hold one group under many names
                continue
            seen.add((info.fileno, info.addr))
            _check_attributes(shown, place, item, size)
            if isinstance(item, h5py.Dataset):
                yield _check_dataset(shown, place, item)
            elif isinstance(item, h5py.Group):
                for name in item:
                    link = item.get(name, getlink=True)
                    if not isinstance(link, h5py.HardLink):
                        _refuse_weights(shown, f"{place}/{name}", f"is a {type(link).__name__}")
                    waiting.append((f"{place}/{name}", item[name]))
            else:
                _refuse_weights(shown, place, "is neither a group nor an array")


def _check_members(path, archive) -> None:
    names = set(archive.namelist())
    if not {_CONFIG, _WEIGHTS} <= names or not names <= _MEMBERS:
        raise ArtifactError(
            f"{_checks.shown(path)} holds the files {sorted(names)[:6]}, expected "
            f"{sorted(_MEMBERS)}. Save the model again with model.save, without layers that keep "
            "files of their own."
        )


def _read_config(path, archive) -> bytes:
    with archive.open(_CONFIG) as member:
        content = member.read(_CONFIG_BYTES + 1)
    if len(content) > _CONFIG_BYTES:
        raise ArtifactError(
            f"{_checks.shown(path)} holds a {_CONFIG} of more than {_CONFIG_BYTES} bytes. "
            "Check that it is the right file."
        )
    return content


def _leave_out_compile_settings(node) -> None:
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list)):
            _leave_out_compile_settings(value)
    if isinstance(node, dict) and "class_name" in node:
        node.pop("compile_config", None)


def _check_node(path, node, place: str, functions: bool) -> None:
    """Checks a part of a configuration; `functions` tells whether it may name functions."""
    if isinstance(node, list):
        for number, value in enumerate(node):
            _check_node(path, value, f"{place}[{number}]", functions)
    elif isinstance(node, dict):
        if "class_name" in node:
            functions = _check_named(path, node, place, functions)
        for key, value in node.items():
            if key == "inbound_nodes":
                _check_calls(path, value, f"{place}.{key}")
            else:
                _check_node(path, value, f"{place}.{key}", functions)
    elif isinstance(node, str) and not functions and node in _keras_compat.registered_objects():
        # Keras would put the registered class or function in the place of its name.
        _refuse(path, f"the registered name {node!r}", place)


def _check_named(path, node: dict, place: str, functions: bool) -> bool:
    """Checks what a configuration names; returns whether its settings may name functions."""
    name, module = node["class_name"], node.get("module")
    if isinstance(name, str) and name in _VALUES:
        settings = node.get("config")
        dtype = settings.get("dtype", "bool") if isinstance(settings, dict) else "bool"
        if not isinstance(dtype, str) or not _NUMERIC.fullmatch(dtype):
            _refuse(path, f"a constant of type {dtype!r}", place)
        return False
    if name == "function":
        function = node.get("config")
        registered = _is_registered(function)
        if not functions or not (registered or _is_listed(_ALLOWED_FUNCTIONS, module, function)):
            _refuse(path, f"the function {module}.{function}", place)
        return False
    # What Keras looks up first; None for classes of its own.
    if not _is_registered(node.get("registered_name", name)):
        hub = _is_listed(_KERAS_HUB_CLASSES, module, name)
        if hub and module not in sys.modules:
            raise ArtifactError(
                f"{_checks.shown(path)} holds a layer of keras_hub, {name}, at {place[:200]}. "
                "Import keras_hub before it is loaded."
            )
        if not hub and not _is_listed(_ALLOWED_CLASSES, module, name):
            _refuse(path, f"the class {module}.{name}", place)
    is_operation = isinstance(module, str) and module.startswith("keras.src.ops")
    return functions and not is_operation


def _check_calls(path, calls, place: str) -> None:
    """Checks the calls of a layer: Keras makes them while it builds the model."""
    for number, call in enumerate(calls if isinstance(calls, list) else [calls]):
        given = [call.get("args"), call.get("kwargs")] if isinstance(call, dict) else []
        if not _holds_symbolic_tensor(given):
            _refuse(path, "a call without an input of the model", f"{place}[{number}]")
        _check_node(path, call, f"{place}[{number}]", functions=False)


def _holds_symbolic_tensor(node) -> bool:
    if isinstance(node, list):
        return any(map(_holds_symbolic_tensor, node))
    if not isinstance(node, dict):
        return False
    if "class_name" in node:  # without "config" it would be a plain dictionary to Keras
        return node["class_name"] == "__keras_tensor__" and "config" in node
    return any(map(_holds_symbolic_tensor, node.values()))


def _is_registered(name) -> bool:
    return isinstance(name, str) and name in _keras_compat.registered_objects()


def _is_listed(allowed: set, module, name) -> bool:
    return isinstance(module, str) and isinstance(name, str) and (module, name) in allowed


def _refuse(path, what: str, place: str) -> NoReturn:
    raise ArtifactError(
        f"{_checks.shown(path)} cannot be loaded: it names {what} at {place[:200]}, which is not "
        "run for safety. Build the model from layers of Keras without Lambda, from layers of "
        "kerasim, or from your own layers, registered with "
        "keras.saving.register_keras_serializable in a module that is imported before, and save it "
        "again."
    )


def _check_attributes(shown, place: str, item: Any, size: int) -> None:
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        shape = attribute.shape or ()  # None for an empty one
        # Values of variable length may all stand for the same bytes.
        is_repeated = attribute.dtype.kind == "O" and shape != ()
        if is_repeated or math.prod(shape) * attribute.dtype.itemsize > size:
            _refuse_weights(shown, place, f"has a list of strings, {name[:40]!r}")


def _check_dataset(shown, place: str, dataset: Any) -> int:
    """Returns the bytes of an array that is stored in full."""
    dtype = dataset.dtype
    is_number = dtype.kind in "fiub" or (dtype.kind == "V" and dtype.itemsize <= _OPAQUE_BYTES)
    if not is_number or dataset.shape is None:
        _refuse_weights(shown, place, f"holds {dtype}, expected real numbers")
    if dataset.external or dataset.is_virtual:
        _refuse_weights(shown, place, "takes its values from another file")
    if dataset.id.get_create_plist().get_nfilters():
        _refuse_weights(shown, place, "is compressed")
    declared, stored = math.prod(dataset.shape) * dtype.itemsize, dataset.id.get_storage_size()
    if declared > stored:
        _refuse_weights(shown, place, f"has {declared} bytes, of which {stored} are stored")
    return declared


def _refuse_weights(shown, place: str, what: str) -> NoReturn:
    raise ArtifactError(
        f"{_checks.shown(shown)} cannot be loaded: in its weights, {place[:200]!r} {what}. Every "
        "array must be stored in the file itself, uncompressed. Save the model or its weights "
        "again with Keras."
    )


def _count_weights(config, custom_objects: dict) -> int:
    """Returns the number of weights that building a model would create, used or not."""
    with _keras_compat.variables_in_outline() as variables:
        with keras.saving.CustomObjectScope(custom_objects):
            # Keras changes a configuration as it reads it.
            copied = json.loads(json.dumps(config))
            keras.saving.deserialize_keras_object(copied, safe_mode=True)
        return sum(math.prod(variable.shape) for variable in variables)
