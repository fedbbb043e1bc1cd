"""The private parts of Keras that kerasim uses.

Nothing else in the package imports from `keras.src`. Each part has a test in
tests/test_keras_files.py.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras.src.backend.common import global_state
from keras.src.models.functional import operation_fn
from keras.src.saving.serialization_lib import ObjectSharingScope

__all__ = [
    "GraphCall",
    "ObjectSharingScope",
    "apply_graph",
    "flatten_layers",
    "graph_calls",
    "names_outputs",
    "rand_augment",
    "registered_objects",
    "seed_variables",
    "variables_in_outline",
]


@contextlib.contextmanager
def variables_in_outline() -> Iterator[list]:
    """Collects the variables that are created in the block, of which none gets memory.

    Keras keeps this list for each thread. Use a thread of its own for the block, because names that
    Keras counts up would otherwise be counted twice.
    """
    created: list = []
    waiting = global_state.get_global_attribute("uninitialized_variables", [])
    global_state.set_global_attribute("uninitialized_variables", created)
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield created
    finally:
        # Keras would give memory to those in its list at the next occasion.
        global_state.set_global_attribute("uninitialized_variables", waiting)


def flatten_layers(layer) -> list:
    """Returns a layer and the layers within it, at any depth."""
    return layer._flatten_layers()


class GraphCall(NamedTuple):
    """A call of an operation in the graph of a model.

    Attributes:
        operation: A layer, a model within the model, or a function of `keras.ops`.
        inputs: The symbolic tensors that it takes; none for an input of the model.
        outputs: Those that it returns.
    """

    operation: Any
    inputs: list
    outputs: list


def graph_calls(model) -> list[GraphCall]:
    """Returns the calls of operations in a functional or Sequential model, in their order.

    A layer that is called twice has two calls, and a model within the model has one.
    """
    graph = keras.Function(model.inputs, model.outputs, name="graph")
    levels = sorted(graph._nodes_by_depth.items(), reverse=True)
    nodes = [node for _, level in levels for node in level]
    return [GraphCall(node.operation, node.input_tensors, node.output_tensors) for node in nodes]


def apply_graph(graph: keras.Function, x):
    """Returns the output of a `graph` of one input in inference: a call would not say so to layers.

    A `keras.Model` from a tensor within another model would say it, but adds a call to each layer
    of that model for good.
    """
    return graph._run_through_graph(
        [x], operation_fn=lambda operation: operation_fn(operation, training=False)
    )


def seed_variables(layer) -> list:
    """Returns the variable of each `keras.random.SeedGenerator` of a layer, at any depth."""
    return [variable for variable in layer.variables if variable.name == "seed_generator_state"]


def rand_augment(layer: keras.layers.RandAugment, images):
    """Returns what `layer(images)` returns in training, in a tenth of the time.

    `RandAugment` draws `num_ops` of its operations for a batch, then applies all of them and
    discards the results of the others. This applies only those that were drawn.
    """
    drawn = layer.get_random_transformation(images, training=True)
    images = keras.ops.cast(images, layer.compute_dtype)
    operations = list(drawn["transforms"].items())
    chosen: Any = keras.ops.convert_to_numpy(drawn["layer_idxes"])
    for n in chosen:
        name, transformation = operations[n]
        images = getattr(layer, name).transform_images(images, transformation)
    return keras.ops.cast(images, layer.compute_dtype)


def registered_objects() -> dict:
    """Returns the classes and functions registered by name, including those of open scopes.

    `keras.saving.CustomObjectScope` is known to the thread that opened it alone.
    """
    scope: Any = global_state.get_global_attribute("custom_objects_scope_dict", {})
    return {**keras.saving.get_custom_objects(), **scope}


def names_outputs(model) -> bool:
    """Returns whether a functional `model` returns a dictionary, even of one tensor.

    `output_shape` is that of the tensor then.
    """
    return isinstance(getattr(model, "_outputs_struct", None), dict)
