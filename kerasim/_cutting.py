"""Cuts a network at a layer into a trunk, images to features, and a head, features to embeddings.

The parts share the layers and weights of the network; nothing is copied, and no layer is changed.
A network may contain others: it is cut at each level, from the outermost network to the one that
holds the layer, and the parts are applied one after the other:

    images -> outer trunk -> inner trunk -> features -> inner head -> outer head -> embeddings

The head sees the features alone. So every path from the images to the embeddings has to pass
through them: a connection around the layer would carry what the head does not see.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasim import _checks, _grids, _keras_compat
from kerasim._keras_compat import GraphCall
from kerasim.errors import ArgumentError, ArgumentTypeError

# Number of axes of feature maps (batch, height, width, channels), and of tokens.
MAP_RANK, TOKEN_RANK = 4, 3

# What a cut network may differ by from the whole one, as a share of the length of an embedding:
# compiled functions round otherwise. Half precision has three digits.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2

# The way to a call: each model and the call in it, from the outermost model inwards.
_Path = list[tuple[Any, GraphCall]]


@dataclass(frozen=True)
class Cut:
    """A network in two parts.

    Attributes:
        path: The way to the layer whose output are the features.
        trunk: Models to apply one after the other, from images to features.
        head: Graphs to apply one after the other, from features to embeddings.
    """

    path: _Path
    trunk: list[keras.Model]
    head: list[keras.Function]

    @property
    def layer(self) -> str:
        """Name of the layer whose output are the features."""
        return _name(self.path)

    def margins(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns by how many positions the features fall short of each edge of the image."""
        return _grids.margins(self.path, image_size)

    def features(self, images, apply: Callable[[keras.Model, Any], np.ndarray]) -> np.ndarray:
        """Returns the features of a batch, float32, by `apply(model, batch)`."""
        for model in self.trunk:
            images = apply(model, images)
        return np.asarray(images).astype("float32")

    def embeddings(self, features: np.ndarray) -> np.ndarray:
        """Returns the embeddings of a batch of features, float32."""
        x: Any = features
        for graph in self.head:
            x = _keras_compat.apply_graph(graph, keras.ops.cast(x, graph.inputs[0].dtype))
        return np.asarray(keras.ops.convert_to_numpy(x)).astype("float32")

    def check(self, features: np.ndarray, expected: np.ndarray) -> None:
        """Raises unless the head returns the `expected` embeddings for these `features`.

        Raises:
            ArgumentError: If it does not, as for a model with a `call` of its own.
        """
        half = self.head[0].inputs[0].dtype in ("float16", "bfloat16")
        allowed = _HALF_TOLERANCE if half else _TOLERANCE
        difference = np.linalg.norm(self.embeddings(features) - expected, axis=1)
        # guard: cut-check
        if not (difference <= allowed * np.linalg.norm(expected, axis=1)).all():
            raise ArgumentError(
                f"embedder, cut at its layer {self.layer!r}, does not return its own embeddings: "
                "it computes more than its graph of layers shows, as a model with a call method "
                "of its own does. Pass a functional or Sequential model."
            )


def cut(embedder: keras.Model, layer: str | None, rank: int) -> Cut:
    """Cuts `embedder` at a layer.

    Args:
        embedder: Model from images to vectors.
        layer: Name of a layer, also of one in a model within the model; None for the last layer
            whose output has `rank` axes and more than one position.
        rank: `MAP_RANK` or `TOKEN_RANK`.

    Raises:
        ArgumentError: If there is no such layer, its output is of another rank, or does not alone
            determine the embedding, or a layer works channels-first.
        ArgumentTypeError: If `embedder` is not a functional or Sequential model.
    """
    if not _is_graph(embedder):
        raise ArgumentTypeError(
            f"embedder is a {type(embedder).__name__}, whose layers have no graph to cut: pass a "
            "functional or Sequential model."
        )
    _refuse_channels_first(embedder)
    paths = list(_paths(embedder))
    found = _last(paths, rank) if layer is None else _named(paths, layer, rank)
    # guard: cut-bypass
    if any(_is_bypassed(model, call) for model, call in found):
        usable = [_name(path) for path in paths if _separates(path, rank)]
        hint = f"pass layer=, such as {_checks.shown_names(usable[-3:])}"
        if not usable:
            hint = (
                "pass a part of the network, such as embedder.get_layer('member1') of an ensemble"
            )
        raise ArgumentError(
            f"layer={layer!r}: the output of {_name(found)!r} does not alone determine the "
            f"embedding, which other paths reach around it: {hint}."
        )
    return _parts(found)


def _name(path: _Path) -> str:
    """Returns the name of the layer that is called at the end of `path`."""
    return _end(path).operation.name


def _end(path: _Path) -> GraphCall:
    """Returns the call at the end of `path`."""
    _, call = path[-1]
    return call


def _parts(path: _Path) -> Cut:
    """Returns the network at the start of `path`, cut after the call at its end."""
    trunk, head = [], []
    for depth, (model, call) in enumerate(path, start=1):
        end = call.outputs[0] if depth == len(path) else call.inputs[0]
        if end is not model.inputs[0]:
            trunk.append(keras.Model(model.inputs[0], end, name="trunk"))
        if call.outputs[0] is not model.outputs[0]:
            head.insert(0, keras.Function(call.outputs[0], model.outputs[0], name="head"))
    return Cut(path, trunk, head)


def _paths(model) -> Iterator[_Path]:
    """Yields the path to each call in `model` and in the models within it, in their order.

    A model within it comes after its own layers. Inputs have no call.
    """
    for call in _keras_compat.graph_calls(model):
        if not call.inputs:
            continue
        if _is_graph(call.operation) and len(call.inputs) == len(call.outputs) == 1:
            yield from ([(model, call), *path] for path in _paths(call.operation))
        yield [(model, call)]


def _is_graph(model) -> bool:
    """Returns whether `model` is a model of one input and one output with a graph of layers."""
    parts = (getattr(model, "inputs", None), getattr(model, "outputs", None))
    return isinstance(model, keras.Model) and all(
        isinstance(part, list) and len(part) == 1 for part in parts
    )


def _refuse_channels_first(model) -> None:
    for layer in _keras_compat.flatten_layers(model):
        if getattr(layer, "data_format", None) == "channels_first":
            raise ArgumentError(
                f"embedder has a layer {layer.name!r} with data_format='channels_first', whose "
                "features have no position where they are expected. Build the network with "
                "data_format='channels_last'."
            )


def _has_positions(call: GraphCall, rank: int) -> bool:
    """Returns whether the output of a call has `rank` axes and more than one position."""
    shape = call.outputs[0].shape
    return len(call.outputs) == 1 and len(shape) == rank and any(size != 1 for size in shape[1:-1])


def _last(paths: list[_Path], rank: int) -> _Path:
    """Returns the path to the last output with positions."""
    for path in reversed(paths):
        call = _end(path)
        # Maps before it are not the last ones: they may be the images themselves.
        if len(call.outputs) > 1:
            raise ArgumentError(
                f"layer=None: {_name(path)!r}, a part of embedder with several outputs, such as a "
                "backbone with several stages, is not searched for the last feature maps. Explain "
                "an embedder of one stage."
            )
        if _has_positions(call, rank):
            return path
    what = "feature maps (batch, height, width, channels)"
    hint = "pass prefix_tokens= for a network whose layers return tokens (batch, tokens, dim)"
    if rank == TOKEN_RANK:
        what, hint = "tokens (batch, tokens, dim)", "leave prefix_tokens= out for feature maps"
    raise ArgumentError(
        f"layer=None: no layer of embedder returns {what} of more than one position: {hint}."
    )


def _named(paths: list[_Path], name: str, rank: int) -> _Path:
    """Returns the path to the call of the layer of that name."""
    found = [path for path in paths if isinstance(name, str) and _name(path) == name]
    if not found:
        usable = [_name(path) for path in paths if _has_positions(_end(path), rank)]
        _checks.one_of("layer", name, usable)
    if len(found) > 1:
        raise ArgumentError(
            f"layer={name!r} is called {len(found)} times in embedder. Pass the name of a layer "
            "that is called once, or the inner model that holds one of them as embedder."
        )
    call = _end(found[0])
    if not _has_positions(call, rank):
        shape = tuple(call.outputs[0].shape)
        wanted = "(batch, height, width, channels) with more than one position"
        if rank == TOKEN_RANK:
            wanted = "(batch, tokens, dim), as prefix_tokens= says"
        elif len(shape) == TOKEN_RANK:
            wanted += "; for tokens (batch, tokens, dim) pass prefix_tokens="
        raise ArgumentError(
            f"layer={name!r} returns {shape}, expected {wanted}: pass the name of another layer."
        )
    return found[0]


def _separates(path: _Path, rank: int) -> bool:
    """Returns whether the output of a call has positions and alone determines the embedding."""
    usable = _has_positions(_end(path), rank)
    return usable and not any(_is_bypassed(model, call) for model, call in path)


def _is_bypassed(model, call: GraphCall) -> bool:
    """Returns whether the output of `model` depends on its input other than by that of `call`."""
    cut_at = id(call.outputs[0])
    reached = {id(x) for x in model.inputs}
    for _, inputs, outputs in _keras_compat.graph_calls(model):
        if reached.intersection(map(id, inputs)):
            reached.update(id(x) for x in outputs if id(x) != cut_at)
    return any(id(x) in reached for x in model.outputs)
