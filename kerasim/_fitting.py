"""Batches and the network that `training.fit` trains on them, compared before the first step.

Keras broadcasts targets of other shapes, passes over inputs that a network does not take, and hands
class numbers to losses as float32. So batches that do not fit a network may train it on nonsense
with no error. `check` refuses what can be seen from the network, its loss and the first batch, and
from all targets where the batches are those of kerasim.
"""

import keras
import ml_dtypes
import numpy as np

from kerasim import _checks, diffusion, losses
from kerasim.data._batches import Batches
from kerasim.errors import ArgumentError, ArgumentTypeError

# Losses that compare a target and an output value by value; Keras broadcasts their shapes.
_ELEMENTWISE = {
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_hinge",
    "cosine_similarity",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
    "squared_hinge",
}

# Their targets are probabilities.
_PROBABILITIES = {"binary_crossentropy", "categorical_crossentropy"}

# A scale below this one in a first layer `Rescaling` expects images in 0..255.
_BYTE_SCALE = 1 / 50

# Whole numbers beyond this one are levels in 0..255, which are too large for layers whose weights
# are initialized for a range of about 1.
_LEVELS_BEYOND = 50
_TAKES_RAW_LEVELS = {
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.Flatten,
    keras.layers.Dense,
    keras.layers.Reshape,
}


def check(name: str, model, batches, batch) -> None:
    """Refuses batches that do not fit a compiled network.

    Args:
        name: Argument that messages name.
        model: Compiled `keras.Model`.
        batches: `keras.utils.PyDataset`.
        batch: The first of `batches`.

    Raises:
        ArgumentError: If inputs, schedule, classes, targets or weights do not fit.
        ArgumentTypeError: If inputs or targets are strings.
    """
    if isinstance(batch, dict):
        return  # of a network with its own `train_step`
    if isinstance(batch, (tuple, list)) and not 1 <= len(batch) <= 3:
        raise ArgumentError(
            f"{name} yield {len(batch)} parts, expected (x,), (x, y) or "
            "(x, y, sample_weight). Pass these."
        )
    x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
    _refuse_other_types(name, x, y)
    _refuse_empty(name, (x, y, weights))
    if getattr(model, "inputs", None):
        _check_inputs(name, model, x)
        _check_rescaling(name, model, batches)
        _check_levels(name, model, x)
    if {"schedule", "labels"} & set(vars(batches)):
        _check_diffusion(name, model, batches)
    own_step = type(model).train_step is not keras.Model.train_step
    own_loss = type(model).compute_loss is not keras.Model.compute_loss
    outputs = getattr(model, "outputs", None) or ()
    if own_step or own_loss or y is None or len(outputs) != 1 or isinstance(y, (dict, list, tuple)):
        return
    loss = model.loss
    if isinstance(loss, (dict, list, tuple)):
        if len(loss) != 1:
            return
        loss = next(iter(loss.values() if isinstance(loss, dict) else loss))
    y = np.asarray(keras.ops.convert_to_numpy(y))
    _check_targets(name, loss, model, batches, x, y, weights)


# Kinds of NumPy dtype that no network takes: Keras would drop the imaginary part of numbers.
_OTHER_KINDS = {
    **dict.fromkeys("USO", "strings or objects"),
    **dict.fromkeys("mM", "dates or times"),
    "c": "complex numbers",
}


def _refuse_other_types(name, x, y) -> None:
    for part, what in ((x, "inputs"), (y, "targets")):
        for leaf in keras.tree.flatten(part):
            kind = getattr(getattr(leaf, "dtype", None), "kind", "")
            if kind in _OTHER_KINDS:
                advice = "Pass real numbers"
                if kind in "USO":
                    advice = "Convert them to class numbers with np.unique(labels, "
                    advice += "return_inverse=True)[1]"
                raise ArgumentTypeError(f"{name} yield {_OTHER_KINDS[kind]} as {what}. {advice}.")


def _refuse_empty(name, parts) -> None:
    shapes = [np.shape(leaf) for leaf in keras.tree.flatten(parts) if leaf is not None]
    if any(shape[:1] == (0,) for shape in shapes):
        raise ArgumentError(f"{name} yield arrays without rows. Pass batches of one row or more.")


def _check_rows(name, x, y, weights) -> None:
    """Refuses targets or weights that are more or fewer than the inputs."""
    shapes = [np.shape(leaf) for leaf in keras.tree.flatten((x, y, weights)) if leaf is not None]
    lengths = sorted({shape[0] for shape in shapes if shape})
    if len(lengths) > 1:
        counts = " and ".join(map(str, lengths))
        raise ArgumentError(
            f"{name} yield arrays of {counts} rows in one batch. Pass as many targets and weights "
            "as inputs."
        )


def _check_inputs(name, model, x) -> None:
    """Refuses inputs of other names, number or shape than those of a functional network."""
    wanted = {tensor.name: tuple(tensor.shape) for tensor in model.inputs}
    single = len(wanted) == 1
    if isinstance(x, dict):
        _check_names(name, set(x), set(wanted))
        given = {key: np.shape(x[key]) for key in wanted}
    else:
        leaves = keras.tree.flatten(x)
        if len(leaves) != len(wanted):
            raise ArgumentError(
                f"{name} yield {len(leaves)} inputs, but the network takes {len(wanted)} "
                f"({', '.join(wanted)}). Pass batches that match its inputs."
            )
        given = dict(zip(wanted, map(np.shape, leaves), strict=True))
    for key, shape in wanted.items():
        if not _fits(given[key][1:], shape[1:]):
            advice = "Pass vectors of that size" if len(shape) == 2 else "Resize the images"
            raise ArgumentError(
                f"{name} yield {'inputs' if single else key} of shape {given[key][1:]}, but the "
                f"network takes {_shown(shape[1:])}. {advice}, or build the network for their "
                "shape."
            )


def _check_names(name, given, wanted) -> None:
    if wanted - given:
        raise ArgumentError(
            f"{name} lack the inputs {sorted(wanted - given)} of the network. Pass them, such as "
            "labels for a network with classes, or build the network without them."
        )
    if given - wanted:
        raise ArgumentError(
            f"{name} yield the inputs {sorted(given - wanted)}, which the network does not take. "
            "Leave them out, or build the network with them (num_classes for labels)."
        )


def _fits(given, wanted) -> bool:
    """Returns whether a shape is that of an input; Keras adds or drops a last axis of 1."""
    if len(given) == len(wanted) + 1 and given[-1] == 1:
        given = given[:-1]
    if len(given) == len(wanted) - 1 and wanted[-1] == 1:
        wanted = wanted[:-1]
    pairs = zip(given, wanted, strict=False)
    return len(given) == len(wanted) and all(want in (None, got) for got, want in pairs)


def _shown(shape) -> str:
    return str(tuple(shape)).replace("None", "any")


def _check_rescaling(name, model, batches) -> None:
    """Warns of a network that divides images by 255, which kerasim's batches have done."""
    first = _first_layer(model)
    if isinstance(first, keras.layers.Rescaling) and isinstance(batches, Batches):
        scale = np.max(np.abs(first.scale))
        if scale <= _BYTE_SCALE:
            _checks.warn(
                f"{name} yield images in [0, 1], but the first layer of the network multiplies "
                f"them by {scale:.4g}, as if they were in 0..255. Remove that Rescaling layer."
            )


def _check_levels(name, model, x) -> None:
    """Warns of images in 0..255 for a network that does not bring them to a smaller range."""
    if len(getattr(x, "shape", ())) != 4:  # no images, or several inputs
        return
    images = np.asarray(keras.ops.convert_to_numpy(x))
    if images.max(initial=0) <= _LEVELS_BEYOND or images.min(initial=0) < 0:
        return
    first = _first_layer(model)
    if type(first) in _TAKES_RAW_LEVELS and (images == np.rint(images)).all():
        _checks.warn(
            f"{name} yield images in 0..255, and the network begins with "
            f"{type(first).__name__}, without a layer that scales them. Divide them by 255, or "
            "begin the network with keras.layers.Rescaling(1 / 255)."
        )


def _first_layer(model):
    """Returns the first layer of a network, within inner ones, that is no input."""
    while isinstance(model, keras.Model):
        layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
        model = layers[0] if layers else None
    return model


def _check_diffusion(name, model, batches) -> None:
    """Refuses a schedule or classes that are not those that the network was built with."""
    schedule = getattr(batches, "schedule", None)
    if schedule is not None and hasattr(schedule, "alphas_cumprod"):
        diffusion.check_schedule(f"{name}.schedule", model, schedule)
    layers = {layer.name: layer for layer in model.layers}
    labels = getattr(batches, "labels", None)
    if labels is not None and isinstance(layers.get("class_embedding"), keras.layers.Embedding):
        classes = layers["class_embedding"].input_dim - 1  # the last is for "no label"
        _check_classes(f"labels of {name}", labels, classes, "Build the network with num_classes")


def _check_classes(name, labels, classes: int, hint: str) -> None:
    """Refuses class numbers that a network with `classes` outputs does not have."""
    labels = np.asarray(labels)
    if labels.dtype.kind == "f" and (labels != np.round(labels)).any():
        raise ArgumentError(f"{name} must be whole numbers: number the classes from 0.")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes:
        advice = f" {hint}={int(high) + 1} or more." if low >= 0 else ""
        raise ArgumentError(
            f"{name} range from {low:g} to {high:g}, but the network has classes 0 to "
            f"{classes - 1}. Number the classes from 0.{advice}"
        )


def _loss_name(loss) -> str:
    """Returns the name of a loss of Keras in snake_case, however it was passed."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    name = getattr(loss, "__name__", None) or type(loss).__name__
    flat = name.replace("_", "").lower()
    known = {
        key.replace("_", ""): key for key in (*_ELEMENTWISE, "sparse_categorical_crossentropy")
    }
    return known.get(flat, name)


def _check_targets(name, loss, model, batches, x, y, weights) -> None:
    shape = tuple(model.outputs[0].shape)[1:]
    if hasattr(loss, "count_valid"):
        _check_batch_loss(name, loss, batches, y, weights)
        return
    known = _loss_name(loss)
    if known in _ELEMENTWISE or known == "sparse_categorical_crossentropy":
        _check_rows(name, x, y, weights)
    if known == "sparse_categorical_crossentropy" or isinstance(loss, losses.ArcFaceLoss):
        _check_labels(name, y, shape, batches)
    elif isinstance(loss, losses.ContrastiveLoss):
        _check_pairs(name, y, shape)
    elif known in _ELEMENTWISE:
        if not _fits(y.shape[1:], shape):
            hint = "Pass targets of the shape of the output"
            if known == "categorical_crossentropy" and y.dtype.kind in "iu":
                hint = "Pass one-hot rows, or compile with sparse_categorical_crossentropy"
            raise ArgumentError(
                f"{name} yield targets of shape {y.shape[1:]}, but the network returns "
                f"{_shown(shape)}, and the loss {known} compares them element by element. {hint}."
            )
        _check_range(name, known, model, y)


def _check_batch_loss(name, loss, batches, y, weights) -> None:
    """Refuses labels or weights that a loss on whole batches would misread."""
    shown = type(loss).__name__
    if weights is not None:
        raise ArgumentError(
            f"{name} yield sample weights, which {shown} cannot use: it returns one value for a "
            "batch. Leave them out, or draw important images more often."
        )
    pairs = isinstance(loss, (losses.InBatchTripletLoss, losses.InfoNCELoss))
    wanted = [(2,)] if pairs else [(), (1,)]
    if y.shape[1:] not in wanted:
        takes = "groups (batch, 2)" if pairs else "labels (batch,)"
        hint = (
            "Pass PositivePairBatches, or EmbeddingPairBatches"
            if pairs
            else "Pass one class number for each image"
        )
        if y.ndim == 2 and not pairs:
            hint += ": convert one-hot rows with np.argmax(targets, axis=1)"
        raise ArgumentError(
            f"{name} yield targets of shape {y.shape}, but {shown} takes {takes}. {hint}."
        )
    dtype = getattr(loss, "dtype", "float32")
    limit = 2 ** (ml_dtypes.finfo(dtype).nmant + 1)
    targets = getattr(batches, "targets", None)
    largest = np.abs(y if targets is None else targets).max(initial=0)
    if largest >= limit:
        raise ArgumentError(
            f"{name} yield labels up to {largest}, but {shown} compares labels as {dtype}, which "
            f"rounds integers above {limit}. Number the classes from 0, as "
            "np.unique(labels, return_inverse=True)[1] does."
        )


def _check_labels(name, y, shape, batches) -> None:
    if y.shape[1:] not in ((), (1,)) and y.shape[1:] != shape[:-1]:
        raise ArgumentError(
            f"{name} yield targets of shape {y.shape}, but the loss takes class numbers (batch,). "
            "Convert one-hot rows with np.argmax(targets, axis=1)."
        )
    if shape[-1] is not None:
        targets = getattr(batches, "targets", None)
        known = y if targets is None else targets
        _check_classes(f"targets of {name}", known, shape[-1], "Build the network with num_classes")


def _check_pairs(name, y, shape) -> None:
    if shape[-1:] != (1,) or y.shape[1:] not in ((), (1,)):
        raise ArgumentError(
            f"{name} yield targets of shape {y.shape}, and the network returns {_shown(shape)}. "
            "ContrastiveLoss takes a target and a distance for each pair, (batch, 1). Train "
            "models.siamese(embedder, metric=...) with PairBatches."
        )
    if not np.isin(y, (0, 1)).all():
        raise ArgumentError(
            f"{name} yield targets other than 0 and 1 for ContrastiveLoss. Pass 1 for a positive "
            "pair and 0 for a negative one, as PairBatches does."
        )


def _check_range(name, loss, model, y) -> None:
    """Refuses targets outside of what the loss, or the activation of the output, can reach."""
    low, high = float(y.min(initial=0)), float(y.max(initial=0))
    if not (low < -1e-3 or high > 1 + 1e-3):  # NaN is not for this check to refuse
        return
    bounded = loss in _PROBABILITIES
    why = f"the loss {loss} takes targets in [0, 1]"
    if not bounded and _last_activation(model) in ("sigmoid", "softmax"):
        bounded = True
        why = f"the output activation {_last_activation(model)} stays in [0, 1]"
    if bounded:
        raise ArgumentError(
            f"{name} yield targets from {low:g} to {high:g}, but {why}. Scale the targets to "
            "[0, 1]: divide images in 0..255 by 255."
        )


def _last_activation(model) -> str:
    """Returns the name of the activation that the output of a network comes from, or ""."""
    tensor = model.outputs[0]
    while True:
        layer = tensor._keras_history.operation
        if isinstance(layer, keras.Model):
            tensor = layer.outputs[0]
        elif isinstance(layer, (keras.layers.Reshape, keras.layers.Flatten)):
            tensor = layer.input
        else:
            return getattr(getattr(layer, "activation", None), "__name__", "")
