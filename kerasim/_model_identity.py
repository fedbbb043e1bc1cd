"""The identity of a model: its architecture without names, and a digest with the weights."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from kerasim import _checks
from kerasim.errors import ArgumentError


def fingerprint(model) -> str:
    """Returns a digest of the layers, settings and weights of a `model`: 64 hexadecimal digits.

    Two models with the same fingerprint give the same embeddings; preprocessing counts, because it
    is part of the model. Names of layers, settings of `compile` and which layers are frozen do not
    count. The fingerprint survives saving and loading.

    Args:
        model: A `keras.Model`.

    Raises:
        ArgumentError: If its layers do not define their configuration.
        ArgumentTypeError: If it is not a `keras.Model`.
    """
    _checks.has_attribute("embedder", model, "get_layer", "a keras.Model")
    described = _trainable(architecture(model))
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for weight in model.weights:
        digest.update(f"{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()


def _trainable(node) -> Any:
    """Returns a part of a configuration with every layer trainable: freezing changes no output."""
    if isinstance(node, list):
        return [_trainable(value) for value in node]
    if not isinstance(node, dict):
        return node
    node = {key: _trainable(value) for key, value in node.items()}
    config = node.get("config")
    if "class_name" in node and isinstance(config, dict) and "trainable" in config:
        node["config"] = {**config, "trainable": True}
    return node


def architecture(model) -> dict:
    """Returns the configuration of a `model` without the names of its layers.

    Keras numbers unnamed layers within a process: `dense_4` may be `dense` in the next process.
    Names of layers are left out, and references to layers become their position. A setting is kept,
    even if it equals the name of a layer. `build_config`, which follows from the rest, and
    `compile_config`, which affects training only, are left out as well.

    Args:
        model: A `keras.Model`.

    Raises:
        ArgumentError: If its layers do not define their configuration.
    """
    try:
        with _without_compile_config(model):
            config = json.loads(model.to_json())
    except (NotImplementedError, TypeError, ValueError) as error:  # of layers of the user's own
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(
            f"The configuration of {type(model).__name__} is not complete: {reason}. Define "
            "get_config() with all arguments in its class and in those of its layers."
        ) from error
    return _nameless(config, {}, is_layer=True)


@contextlib.contextmanager
def _without_compile_config(model) -> Iterator[None]:
    """Leaves `compile_config` out of a configuration: Keras cannot serialize some losses."""
    layers = model._flatten_layers() if hasattr(model, "_flatten_layers") else [model]
    models = [layer for layer in layers if hasattr(layer, "get_compile_config")]
    for each in models:
        vars(each)["get_compile_config"] = dict
    try:
        yield
    finally:
        for each in models:
            vars(each).pop("get_compile_config", None)


def _nameless(node, positions: dict, is_layer: bool = False) -> Any:
    """Returns a part of a configuration without names of layers.

    Args:
        node: The part.
        positions: Replacement of the name of each layer of the innermost functional model.
        is_layer: Whether this part describes a layer.
    """
    if isinstance(node, list):
        return [_nameless(value, positions) for value in node]
    if not isinstance(node, dict):
        return node
    if node.get("class_name") == "__keras_tensor__":
        name, *which = node["config"].get("keras_history") or [None]
        history = [positions.get(name, name), *which]
        return {**node, "config": {**node["config"], "keras_history": history}}
    config = node.get("config")
    if "class_name" not in node or not isinstance(config, dict):
        return {key: _nameless(value, positions) for key, value in node.items()}
    kept = {key: value for key, value in node.items() if key not in _LEFT_OUT}
    if node["class_name"] == "Sequential" and "dtype" in config:
        # Keras gives a Sequential that is loaded the global policy; its layers have their own.
        config = {**config, "dtype": _FLOAT32}
    kept["config"] = _nameless_config(config, positions, is_layer or _describes_layer(node))
    for key in kept.keys() - {"config"}:
        kept[key] = _nameless(kept[key], positions)
    return kept


_FLOAT32 = {
    "module": "keras",
    "class_name": "DTypePolicy",
    "config": {"name": "float32"},
    "registered_name": None,
}


# Beside the configuration of an object: its name, and what follows from the rest.
_LEFT_OUT = {"name", "build_config", "compile_config", "shared_object_id"}


_ENDS = {"input_layers", "output_layers"}


def _nameless_config(config: dict, positions: dict, is_layer: bool) -> dict:
    config = {key: value for key, value in config.items() if key != "name" or not is_layer}
    layers = config.get("layers") if is_layer else None
    if not isinstance(layers, list):
        return {key: _nameless(value, positions) for key, value in config.items()}
    if _ENDS <= config.keys():  # a functional model, whose layers refer to one another by name
        positions = {layer["name"]: f"#{number}" for number, layer in enumerate(layers)}
    result = {key: _nameless(value, positions) for key, value in config.items() if key != "layers"}
    result["layers"] = [_nameless(layer, positions, is_layer=True) for layer in layers]
    for key in _ENDS & config.keys():
        result[key] = _nameless_ends(config[key], positions)
    return result


def _nameless_ends(node, positions: dict):
    """Returns the inputs or outputs of a functional model, each a list [name, node, tensor]."""
    if isinstance(node, dict):
        return {key: _nameless_ends(value, positions) for key, value in node.items()}
    if isinstance(node, list) and len(node) == 3 and isinstance(node[0], str):
        return [positions.get(node[0], node[0]), *node[1:]]
    return [_nameless_ends(value, positions) for value in node] if isinstance(node, list) else node


def _describes_layer(node: dict) -> bool:
    """Returns whether the `name` in the configuration of an object is that of a layer.

    The configuration of every layer tells whether it is trainable. Other objects, such as the data
    type "float16", may have a name that is a setting.
    """
    module = node.get("module")
    is_operation = isinstance(module, str) and module.startswith("keras.src.ops.")
    return is_operation or "trainable" in node["config"]
