"""Settings and state of the objects used in a training run.

`training.fit` guarantees that a run that was stopped and resumed gives the same results as one that
was not stopped (bit-identical on a CPU). This requires two things of each callback, loss and data
set. Its *settings*, the arguments of its constructor, must be equal in every call; `describe` and
`arguments` turn them into JSON values that can be compared. Its *state*, the values that change
during training, must be saved after each epoch and restored; `State` does so, and refuses values
that it cannot save.
"""

import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import inspect
import io
import json
import logging
import os
import random
import re
import sys
import types
import warnings
from typing import Any

import keras
import numpy as np
import pandas as pd

from kerasim import _checks, _content, data
from kerasim.errors import ArgumentError

# Attributes that Keras sets on every callback.
_OF_KERAS = {"params", "_model", "model", "async_safe"}

# Arguments that affect only the printed output.
_PRINTING = {"verbose"}

# Functions of these libraries are compared by name instead of by code.
_LIBRARIES = {"jax", "keras", "kerasim", "numpy", "tensorflow", "torch"}

# Objects of these kinds are not saved, since the caller passes them in every call.
_GIVEN = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
    type,
    enum.Enum,
    logging.Logger,
    np.dtype,
    keras.Loss,
    keras.utils.PyDataset,
    data.ImageFolder,
)

_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_MAPPINGS = {"dict": dict, "OrderedDict": collections.OrderedDict, "Counter": collections.Counter}
_DEFAULT_FACTORIES = {"int": int, "float": float, "list": list, "dict": dict, "set": set}
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")

# Values of these types are equal if their descriptions are.
_PLAIN = (type(None), bool, int, float, str, tuple, np.ndarray)

# Values of more bytes are saved only if training changed them: a data set may hold its images.
_LARGE = 2**20


class CannotSaveError(Exception):
    """A value is of a kind that `State` cannot save."""


def describe(value, above: tuple = ()) -> Any:
    """Returns JSON values that are equal for two `value`s that have the same effect.

    Functions are compared by their code and by the values that it refers to, arrays and tables by
    a digest, and Keras objects by their config. Of other objects class and arguments are compared.
    Paths are left out, because a run may be moved.

    Args:
        value: Anything.
        above: Ids of the objects that `value` belongs to.
    """
    if isinstance(value, _SCALARS):
        return _describe_scalar(value)
    if isinstance(value, (np.ndarray, pd.DataFrame, pd.Series, pd.Index, data.ImageFolder)) or (
        keras.ops.is_tensor(value)
    ):
        return _describe_array(value)
    if id(value) in above:
        return _class_name(type(value))
    above = *above, id(value)
    if isinstance(value, dict):
        return {str(key): describe(item, above) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item, above) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(describe(item, above)) for item in value)
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        return _describe_function(value, above)
    if isinstance(value, type):
        return _class_name(value)
    if isinstance(value, (keras.Loss, keras.Metric, keras.optimizers.Optimizer)) or (
        hasattr(value, "get_config") and not isinstance(value, keras.layers.Layer)
    ):
        return _describe_keras_object(value, above)
    known = {} if _is_of_library(type(value)) else arguments(value, above)
    return {"class": _class_name(type(value)), **known}


def _describe_scalar(value):
    if isinstance(value, enum.Enum):
        return f"{_class_name(type(value))}.{value.name}"
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):  # NaN differs from itself
        return value if np.isfinite(value) else repr(float(value))
    if isinstance(value, str):
        return None if os.sep in value else str(value)
    if isinstance(value, os.PathLike):
        return None
    if isinstance(value, _SHOWN_IN_FULL):
        return repr(value)
    return describe(value.item()) if value.dtype.kind != "V" else str(value)  # of NumPy


def _describe_keras_object(value, above):
    given = {"kwargs": describe(vars(value).get("_fn_kwargs"), above)}  # of what it wraps
    known = arguments(value, above)
    if isinstance(value, keras.Loss) and not _is_of_library(type(value)):
        kept = {key: x for key, x in vars(value).items() if key not in vars(keras.Loss())}
        known |= {key: describe(x, above) for key, x in kept.items()}
    return {"class": _class_name(type(value)), **_config(value), **known, **given}


# Values whose `repr` tells all.
_SHOWN_IN_FULL = (
    bytes,
    bytearray,
    complex,
    range,
    slice,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    fractions.Fraction,
)
_SCALARS = (type(None), bool, int, float, str, enum.Enum, os.PathLike, np.generic, *_SHOWN_IN_FULL)


def _describe_array(value) -> str:
    """Returns shape, type and a digest of an array, a tensor, a table or a folder of images."""
    names = ""
    if isinstance(value, pd.DataFrame):
        names = f"{list(value.columns)} "
    if isinstance(value, (pd.DataFrame, pd.Series, pd.Index)):
        value = value.to_numpy()
    if not isinstance(value, data.ImageFolder):
        value = np.asarray(keras.ops.convert_to_numpy(value))
    return f"array {names}{tuple(value.shape)} {value.dtype} {_content.content_hash(value)[:16]}"


def arguments(value, above: tuple = ()) -> dict:
    """Returns the arguments that a `value` was built with, as JSON values by name.

    They are known where an attribute has the name of an argument, with or without an underscore.
    """
    found = {}
    attributes = getattr(value, "__dict__", {})
    for name in _argument_names(type(value)):
        for attribute in (name, f"_{name}"):
            if attribute in attributes and name not in found:
                found[name] = describe(attributes[attribute], above)
    return found


def own_arguments(value) -> dict:
    """Returns those of `arguments` that belong to a class of the user, not of a library."""
    own = set(_own_argument_names(type(value)))
    return {name: known for name, known in arguments(value).items() if name in own}


@functools.cache
def _own_argument_names(kind: type) -> tuple[str, ...]:
    """Returns the names of the arguments of those base classes that are not from a library."""
    names: list[str] = []
    for base in kind.__mro__:
        if "__init__" in vars(base) and not _is_of_library(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names += [x.name for x in parameters if x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)]
    return tuple(name for name in dict.fromkeys(names) if name not in _PRINTING | {"self", "name"})


def hidden(value, skip=()) -> dict:
    """Returns the attributes of an object that may be arguments stored under other names.

    Args:
        value: Callback or data set.
        skip: Names of attributes that Keras sets.

    Returns:
        Its attributes as JSON values by name, if one of its own classes takes an argument that no
        attribute is named after; else {}.
    """
    if callable(getattr(value, "settings", None)):
        return {}
    if not set(_own_argument_names(type(value))) - set(arguments(value)):
        return {}
    kept = {key: x for key, x in vars(value).items() if key not in skip and not _is_output(x)}
    return json_values({key: describe(x) for key, x in kept.items()})


def warn_of_hidden(name: str, value, saved: dict, now: dict, state=()) -> None:
    """Warns if attributes that may be arguments differ from those of the saved run.

    Args:
        name: Name of the object in the message.
        value: The object.
        saved: What `hidden` returned when the run began.
        now: What it returns now.
        state: Attributes that the run has saved and restores.
    """
    keys = sorted(key for key in {*saved, *now} if saved.get(key) != now.get(key))
    keys = [key for key in keys if key not in state or describe(state[key]) != now.get(key)]
    if keys:
        unknown = sorted(set(_own_argument_names(type(value))) - set(arguments(value)))
        _checks.warn(
            f"{name} ({type(value).__name__}) does not keep its arguments {unknown} "
            f"under these names, and its attributes {keys} differ from those of the run "
            "so far. If they affect the training, choose another run_dir."
        )


def _is_of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def settings(callback) -> dict:
    """Returns the settings that determine the effect of a `callback`, as JSON values by name."""
    if callable(getattr(callback, "settings", None)):
        return callback.settings()
    found = arguments(callback)
    if not isinstance(callback, keras.callbacks.LearningRateScheduler):
        found = _without_tables(found)
    if hasattr(callback, "monitor_op"):
        # Keras changes the sign of `min_delta` if the monitored value should decrease.
        found["min_delta"] = abs(vars(callback).get("min_delta", 0))
    if isinstance(callback, keras.callbacks.ModelCheckpoint):
        del found["filepath"]
        found["initial_value_threshold"] = describe(callback.best)
    return found


def class_name(value) -> str:
    """Returns the name of the class of `value`, with its module."""
    return _class_name(type(value))


def only_functions_differ(saved, now) -> bool:
    """Returns whether two descriptions, `saved` and `now`, differ in functions only."""
    return _without_functions(saved) == _without_functions(now)


def _class_name(kind: type) -> str:
    # The script of a user is `__main__` in one process and a module in another.
    module = kind.__module__.removeprefix("__main__").removeprefix("keras.src.")
    return f"{module}.{kind.__qualname__}".lstrip(".")


@functools.cache
def _argument_names(kind: type) -> tuple[str, ...]:
    names: dict = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            with contextlib.suppress(ValueError, TypeError):
                names.update(inspect.signature(vars(base)["__init__"]).parameters)
    return tuple(name for name in names if name not in _PRINTING | {"self", "name"})


def _config(value) -> dict:
    """Returns the config of a Keras object, {} if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lambdas, which `_describe_function` compares
            return {"config": describe(value.get_config())}
    except Exception:  # of a faulty `get_config`; the arguments are compared anyway
        return {}


def _describe_function(function, above: tuple = ()) -> dict:
    if isinstance(function, functools.partial):
        given = describe([*function.args, *sorted(function.keywords.items())], above)
        return {**_describe_function(function.func, above), "given": given}
    code = getattr(function, "__code__", None)
    if code is None:  # a callable object, or a function written in C
        return {"function": getattr(function, "__qualname__", class_name(function))}
    plain = getattr(function, "__func__", function)
    if (plain.__module__ or "").partition(".")[0] in _LIBRARIES:  # None for code of `exec`
        return {"function": plain.__qualname__}
    cells = [cell.cell_contents for cell in plain.__closure__ or () if _is_filled(cell)]
    used = {name: plain.__globals__.get(name) for name in code.co_names}
    known = [*cells, plain.__defaults__, plain.__kwdefaults__, *used.values()]
    inner = [x for x in known if isinstance(x, types.FunctionType) and id(x) not in above]
    called = [_describe_function(x, (*above, id(x))) for x in inner]
    fixed = [_plain(value) for value in known if not _is_mutable(value)]
    fixed += [x.get("code") for x in called]
    tables: list = [_plain(value) for value in known if _is_mutable(value)]
    tables += [x.get("tables") for x in called]
    owner = [] if plain is function else [function.__self__]
    objects = [x for x in (*cells, *owner) if _is_object(x)]
    tables += [describe(value, above) for value in objects]
    # Bytecode depends on the version of Python.
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    code = f"{version}:{_short_digest([_code(code), fixed])}"
    return {"function": plain.__qualname__, "code": code, "tables": _short_digest(tables)}


def _is_object(value) -> bool:
    """Returns whether `_plain` has no description of `value`."""
    return not isinstance(value, (types.FunctionType, types.ModuleType)) and _plain(value) is None


def _is_mutable(value) -> bool:
    return isinstance(value, (list, dict, set, np.ndarray))


def _short_digest(value) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:16]


def _is_filled(cell) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # of a function that refers to itself and is not yet defined
        return False


def _code(code) -> str:
    """Returns bytecode, names and constants of a code object, without line numbers."""
    constants = [_constant(value) for value in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{code.co_varnames}{constants}"


def _constant(value) -> str:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, frozenset):  # its order changes from one process to the next
        return str(sorted(map(repr, value)))
    return repr(value)


def _plain(value):
    """Returns the numbers and strings of `value`; None for what may differ between processes."""
    if isinstance(value, (bool, int, float, str, np.generic)) or value is None:
        return repr(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if _plain(item) is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return describe(value)
    if isinstance(value, types.FunctionType):
        return _code(value.__code__)
    return None


def _without_tables(description) -> Any:
    """Returns a description without the lists and dicts of functions, which calls may change."""
    if isinstance(description, dict):
        kept = description.items()
        return {
            key: _without_tables(x)
            for key, x in kept
            if key != "tables" or "code" not in description
        }
    if isinstance(description, list):
        return [_without_tables(item) for item in description]
    return description


def _without_functions(description):
    if isinstance(description, dict):
        if "function" in description:
            return "function"
        return {key: _without_functions(item) for key, item in description.items()}
    if isinstance(description, list):
        return [_without_functions(item) for item in description]
    return description


class State:
    """Saves the attributes of an object, and restores them in an equal one.

    Numbers, strings, arrays, tensors, random generators, variables of Keras objects, and lists,
    tuples, sets, deques and dicts of them can be saved. Objects that the caller passes in every
    call, such as functions, files and data sets, are not saved; they must not be replaced during
    training. If an object has `get_state()` and `set_state(state)`, these are called instead.

    Args:
        name: Name of the object in messages.
        value: The object.
        prefix: Beginning of the names of its arrays.
        skip: Names of attributes that are not state.
        known: Variables that are saved elsewhere.
        strict: True to refuse values that cannot be saved, False to leave them out.
    """

    def __init__(self, name: str, value, prefix: str, skip=(), known=(), strict: bool = True):
        self.name, self.value, self.prefix, self.strict = name, value, prefix, strict
        self.skip = _OF_KERAS | set(skip)
        self.known = {id(variable) for variable in known}
        self.initial = arguments(value)  # unchanged ones are passed by the next call, too
        self.given: dict = {}  # values that cannot be saved, at the start of training
        self.large: dict = {}  # digests of large values, at the start of training

    @property
    def _has_own_state(self) -> bool:
        methods = ("get_state", "set_state")
        return all(callable(getattr(self.value, method, None)) for method in methods)

    def _attributes(self) -> dict:
        """Returns the attributes that may be state, by name."""
        items = vars(self.value).items()
        return {key: x for key, x in items if key not in self.skip and not _is_output(x)}

    def start(self) -> None:
        """Records the attributes at the start of training.

        Raises:
            ArgumentError: If an attribute may change and cannot be saved.
        """
        if self._has_own_state:
            return
        for key, item in self._attributes().items():
            arrays: dict = {}
            try:
                encoded = self._encode(item, arrays, f"{self.prefix}{key}/")
            except CannotSaveError:
                if self.strict and not isinstance(item, _GIVEN) and not self._is_known(item):
                    raise self._refusal(key, item) from None
                self.given[key] = item
            else:
                if _size(arrays) > _LARGE:
                    self.large[key] = _digest(encoded, arrays)

    def save(self, arrays: dict):
        """Returns the state as JSON values, and adds its arrays to `arrays`.

        Raises:
            ArgumentError: If it cannot be saved.
        """
        if self._has_own_state:
            try:
                return self._encode(self.value.get_state(), arrays, self.prefix)
            except CannotSaveError as error:
                raise ArgumentError(
                    f"{self.name}.get_state() returns {error}, which cannot be saved. Return "
                    "numbers, strings, arrays, lists and dicts."
                ) from None
        saved = {}
        for key, item in self._attributes().items():
            found: dict = {}
            try:
                encoded = self._encode(item, found, f"{self.prefix}{key}/")
            except CannotSaveError:
                if self.strict and self.given.get(key) is not item:
                    raise self._refusal(key, item) from None
            else:
                if not self._is_unchanged(key, item, encoded, found):
                    saved[key] = encoded
                    arrays.update(found)
        return saved

    def _is_unchanged(self, key, item, encoded, found) -> bool:
        """Returns whether the attribute `key` is an argument, or large, and as it was passed."""
        name = key.removeprefix("_")
        if name in self.initial and type(item) in _PLAIN:
            return describe(item) == self.initial[name]
        return key in self.large and self.large[key] == _digest(encoded, found)

    def restore(self, saved, arrays: dict) -> None:
        """Puts back what `save` returned, with its `arrays`."""
        if self._has_own_state:
            self.value.set_state(self._decode(saved, arrays, None))
            return
        for key, item in saved.items():
            vars(self.value)[key] = self._decode(item, arrays, vars(self.value).get(key))

    def _refusal(self, key, item) -> ArgumentError:
        return ArgumentError(
            f"{self.name} holds {key!r} of type {class_name(item)}, which cannot be saved, so a "
            "run that is interrupted and resumed would give different results. Keep numbers, "
            "strings, arrays, lists and dicts in it, or give it get_state() and "
            "set_state(state), or pass run_dir=None."
        )

    def _is_known(self, item) -> bool:
        """Returns whether all variables of a Keras object are saved elsewhere."""
        variables = _variables(item)
        return variables is not None and not self._unknown(item)

    def _unknown(self, item) -> list:
        return [x for x in _variables(item) or () if id(x) not in self.known]

    def _encode(self, item, arrays, prefix):
        if item is None or type(item) in (bool, int, float, str):
            return item
        if isinstance(item, np.generic):
            return {"scalar": _put(arrays, prefix, np.asarray(item))}
        if isinstance(item, np.ndarray) and item.dtype.kind != "O":
            return {"array": _put(arrays, prefix, item)}
        if self._unknown(item):
            values = map(keras.ops.convert_to_numpy, self._unknown(item))
            return {"variables": [_put(arrays, prefix, value) for value in values]}
        if keras.ops.is_tensor(item):
            return {"tensor": _put(arrays, prefix, keras.ops.convert_to_numpy(item))}
        if type(item) in _SEQUENCES.values():
            return {type(item).__name__: self._encode_all(item, arrays, prefix)}
        if type(item) is collections.deque:
            return {"deque": self._encode_all(item, arrays, prefix), "maxlen": item.maxlen}
        if isinstance(item, dict):
            return self._encode_dict(item, arrays, prefix)
        if isinstance(item, bytes):
            return {"bytes": item.hex()}
        if isinstance(item, datetime.datetime):
            return {"datetime": item.isoformat()}
        if isinstance(item, datetime.timedelta):
            return {"seconds": item.total_seconds()}
        if isinstance(item, np.random.Generator):
            return {"generator": self._encode(item.bit_generator.state, arrays, prefix)}
        if isinstance(item, np.random.RandomState):
            return {"random_state": self._encode(item.get_state(legacy=False), arrays, prefix)}
        if isinstance(item, random.Random):
            return {"random": self._encode(item.getstate(), arrays, prefix)}
        raise CannotSaveError(class_name(item))

    def _encode_all(self, items, arrays, prefix) -> list:
        return [self._encode(item, arrays, f"{prefix}{n}/") for n, item in enumerate(items)]

    def _encode_dict(self, item, arrays, prefix):
        factory = getattr(getattr(item, "default_factory", None), "__name__", None)
        if type(item) not in _MAPPINGS.values() and factory not in _DEFAULT_FACTORIES:
            raise CannotSaveError(class_name(item))
        kind = type(item).__name__ if type(item) in _MAPPINGS.values() else "defaultdict"
        keys = self._encode_all(item, arrays, f"{prefix}keys/")
        values = self._encode_all(item.values(), arrays, prefix)
        return {kind: keys, "values": values, "factory": factory}

    def _decode(self, saved, arrays, now):
        """Returns what was saved; `now`, what stands in its place, is changed where it can be."""
        if not isinstance(saved, dict):
            return saved
        kind = next(iter(saved))
        content = saved[kind]
        if kind == "scalar":
            return arrays[content][()]
        if kind == "array":
            return arrays[content]
        if kind == "tensor":
            return keras.ops.convert_to_tensor(arrays[content])
        if kind == "variables":
            return self._assign([arrays[key] for key in content], now)
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "datetime":
            return datetime.datetime.fromisoformat(content)
        if kind == "seconds":
            return datetime.timedelta(seconds=content)
        if kind in ("generator", "random_state", "random"):
            return _decode_random(kind, self._decode(content, arrays, None), now)
        items = self._decode_all(content, arrays)
        if kind == "deque":
            return collections.deque(items, saved["maxlen"])
        if "values" in saved:
            values = self._decode_all(saved["values"], arrays)
            return _refill(now, _empty(kind, saved["factory"]), zip(items, values, strict=True))
        return _refill(now, _SEQUENCES[kind](), items)

    def _decode_all(self, items, arrays) -> list:
        return [self._decode(item, arrays, None) for item in items]

    def _assign(self, values, now):
        targets = self._unknown(now)
        shapes = [[tuple(x.shape) for x in group] for group in (targets, values)]
        if shapes[0] != shapes[1]:
            raise ArgumentError(
                f"{self.name} holds a {class_name(now)} with variables of shapes {shapes[0]}, but "
                f"those of the saved run are {shapes[1]}. Build it as it was, or choose another "
                "run_dir."
            )
        for variable, value in zip(targets, values, strict=True):
            variable.assign(value)
        return now


def _put(arrays, prefix, array) -> str:
    key = f"{prefix}{len(arrays)}"
    arrays[key] = np.array(array)  # a copy: the object may change its own
    return key


def _size(arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _digest(encoded, arrays) -> str:
    contents = [_content.content_hash(array) for array in arrays.values()]
    return hashlib.sha256(f"{encoded}{contents}".encode()).hexdigest()


def _is_output(item) -> bool:
    """Returns whether `item` is a file or a path, which another call may open elsewhere."""
    return isinstance(item, (io.IOBase, os.PathLike)) or isinstance(item, str) and os.sep in item


def _variables(item) -> list | None:
    """Returns the variables of a Keras object, None for another one."""
    if isinstance(item, keras.Variable):
        return [item]
    if isinstance(item, keras.random.SeedGenerator):
        return [item.state]
    if isinstance(item, (keras.layers.Layer, keras.Metric, keras.optimizers.Optimizer)):
        return item.variables
    return None


def _empty(kind, factory):
    if kind == "defaultdict":
        return collections.defaultdict(_DEFAULT_FACTORIES[factory])
    return _MAPPINGS[kind]()


def _refill(now, empty, items):
    """Returns a container with `items`: `now` if it is of the kind of `empty`, else a new one.

    Other objects may hold the container `now`, too.
    """
    if not isinstance(empty, (dict, list, set)):
        return type(empty)(items)
    filled = now if type(now) is type(empty) else empty
    filled.clear()
    if isinstance(filled, list):
        filled.extend(items)
    else:
        filled.update(dict(items) if isinstance(filled, dict) else items)
    return filled


def _decode_random(kind, state, now):
    if kind == "random":
        generator = now if isinstance(now, random.Random) else random.Random()
        generator.setstate(state)
        return generator
    if kind == "random_state":
        generator = now if isinstance(now, np.random.RandomState) else np.random.RandomState()
        generator.set_state(state)
        return generator
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise ArgumentError(f"bit generator {name!r} is not known: pass one of {_BIT_GENERATORS}.")
    if type(getattr(now, "bit_generator", None)).__name__ != name:
        now = np.random.Generator(getattr(np.random, name)())
    now.bit_generator.state = state
    return now


# What these callbacks hold is no part of a run: they write, print or stop.
_OBSERVERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.History,
    keras.callbacks.OrbaxCheckpoint,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
    keras.callbacks.TerminateOnNaN,
)
_OBSERVING_PACKAGES = ("tqdm", "wandb", "mlflow")

# Arguments that Keras keeps under another name.
_STORED_AS = {"initial_value_threshold": "best"}

# Without these, or with new ones, a run goes through other numbers.
_DECIDING = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


class Callbacks:
    """The callbacks of a run: compared with those of a saved run, saved and restored.

    A saved callback and a present one are the same if class and settings are equal, wherever they
    stand in the list. One whose settings changed is refused. Others may be added or left out,
    except those that decide the numbers: schedules of the learning rate, and callbacks that have
    `settings()`.

    Args:
        callbacks: List of `keras.callbacks.Callback`.
        variables: Variables of model and optimizer, which are saved elsewhere.
    """

    def __init__(self, callbacks, variables=()):
        self.callbacks = callbacks
        self.settings, self.states, self.hidden = [], [], []
        for n, callback in enumerate(callbacks):
            observes = _observes(callback)
            self.settings.append({} if observes else json_values(settings(callback)))
            self.hidden.append({} if observes else hidden(callback, _OF_KERAS))
            state = State(self._name(n), callback, f"callbacks/{n}/", _skip(callback), variables)
            self.states.append(None if observes else state)
        self.matched: dict = {}  # position of a saved callback: position of the present one

    def _name(self, n) -> str:
        return f"callbacks[{n}] ({type(self.callbacks[n]).__name__})"

    def start(self) -> None:
        """Notes what the callbacks hold once they have begun.

        Raises:
            ArgumentError: If one holds something that cannot be saved.
        """
        for state in filter(None, self.states):
            state.start()

    def save(self, arrays) -> list:
        """Returns class, settings and state of each as JSON values; adds arrays to `arrays`.

        Raises:
            ArgumentError: If one holds something that cannot be saved.
        """
        return [
            {
                "class": class_name(callback),
                "settings": self.settings[n],
                "hidden": self.hidden[n],
                "state": None if self.states[n] is None else self.states[n].save(arrays),
                "decides": _decides(callback),
            }
            for n, callback in enumerate(self.callbacks)
        ]

    def restore(self, saved, arrays) -> None:
        """Puts back the states that `save` returned, of callbacks that `match` found."""
        for n, position in self.matched.items():
            if saved[n]["state"] is not None and self.states[position] is not None:
                self.states[position].restore(saved[n]["state"], arrays)

    def match(self, saved) -> list[str]:
        """Finds each `saved` callback among the present ones; returns what differs, as lines."""
        missing, new = list(range(len(saved))), list(range(len(self.callbacks)))
        self.matched = _pair(saved, missing, new, self._equals)
        for n, position in self.matched.items():
            self._keep_settings(saved[n], position)
            before, now = saved[n].get("hidden", {}), self.hidden[position]
            state = saved[n]["state"] or {}
            callback = self.callbacks[position]
            warn_of_hidden(f"callbacks[{position}]", callback, before, now, state)
            self.hidden[position] = before
        changed = _pair(saved, missing, new, lambda entry, p: self._class(p) == entry["class"])
        lines = [line for n, p in changed.items() for line in self._changes(saved[n], p)]
        for n in missing:
            if saved[n]["decides"]:
                lines.append(f"callbacks: {saved[n]['class'].rpartition('.')[2]} is missing")
        for position in new:
            if _decides(self.callbacks[position]):
                lines.append(f"callbacks: {self._name(position)} is new")
        return lines

    def _keep_settings(self, saved, position) -> None:
        """Notes the settings that a callback had when the run began."""
        self.settings[position] = saved["settings"]
        if self.states[position] is not None:
            self.states[position].initial |= saved["settings"]

    def _class(self, position) -> str:
        return class_name(self.callbacks[position])

    def _equals(self, saved, position) -> bool:
        return self._class(position) == saved["class"] and not self._differences(saved, position)

    def _differences(self, saved, position) -> list[str]:
        """Returns what differs in the settings of a saved callback and a present one.

        A callback may change its own arguments. Where it is used again in the same process it has
        what it had at the end of the last epoch.
        """
        now, state = dict(self.settings[position]), saved["state"] or {}
        for key, value in now.items():
            names = (key, f"_{key}", _STORED_AS.get(key))
            later = [state[name] for name in names if name in state]
            if later and describe(later[0]) == value:
                now[key] = saved["settings"].get(key)
        return list(differences(saved["settings"], now, self._name(position)))

    def _changes(self, saved, position) -> list[str]:
        """Returns what differs in a callback; warns where that is the code of functions alone."""
        lines = self._differences(saved, position)
        scheduler = isinstance(self.callbacks[position], keras.callbacks.LearningRateScheduler)
        if scheduler or not only_functions_differ(saved["settings"], self.settings[position]):
            return lines
        _checks.warn(
            f"{self._name(position)} has different functions than in the run so far. "
            "Its state starts anew. If it affects the training, choose another run_dir."
        )
        return []

    def stoppers(self, epoch) -> list[int]:
        """Returns the positions of callbacks that may have stopped the run after `epoch`."""
        early = [n for n, c in enumerate(self.callbacks) if getattr(c, "stopped_epoch", 0) == epoch]
        own = [n for n, callback in enumerate(self.callbacks) if not _observes(callback)]
        return early if epoch and early else own

    def stopper_names(self, stoppers) -> str:
        """Returns the names of the classes of the saved `stoppers` that are still there."""
        positions = [self.matched[n] for n in stoppers if n in self.matched]
        return " and ".join(dict.fromkeys(type(self.callbacks[p]).__name__ for p in positions))

    def has_stopper(self, stoppers) -> bool:
        """Returns whether one of the saved `stoppers` is still there, or none is known."""
        return not stoppers or any(n in self.matched for n in stoppers)


def _generators_of_torch() -> dict:
    """Returns the modules that get and set PyTorch's own generators, by device; else {}.

    On torch a Dropout layer without a seed draws from these. On the other backends all layers draw
    from variables of their own, which are saved with the model.
    """
    if keras.backend.backend() != "torch":
        return {}
    import torch  # pyright: ignore[reportMissingImports]

    found = {"cpu": torch}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps
    return found


def backend_generators() -> dict[str, np.ndarray]:
    """Returns the states of random generators that belong to the backend, not to a layer."""
    found = _generators_of_torch().items()
    return {f"generators/{device}": module.get_rng_state().numpy() for device, module in found}


def restore_backend_generators(arrays) -> None:
    """Restores what `backend_generators` returned, as far as `arrays` hold it."""
    for device, module in _generators_of_torch().items():
        if f"generators/{device}" in arrays:
            module.set_rng_state(keras.ops.convert_to_tensor(arrays[f"generators/{device}"]).cpu())


def json_values(value):
    """Returns `value` as JSON would give it back: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value, default=str))


def differences(saved, now, path=""):
    """Yields a line for each value that differs between two structures of JSON values."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted({*saved, *now}):
            deeper = f"{path}.{key}" if path else key
            yield from differences(saved.get(key), now.get(key), deeper)
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for n, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from differences(one, other, f"{path}[{n}]")
    elif saved != now and not _means_the_same(path, saved, now):
        yield f"{path}: saved {str(saved)[:80]}, now {str(now)[:80]}"


def _means_the_same(path, saved, now) -> bool:
    """Returns whether two values differ only by what libraries make of equal ones."""
    if path.endswith(".name"):
        # Keras counts unnamed losses and optimizers up through a process: `adam_1` is `adam`.
        return re.sub(r"_\d+$", "", str(saved)) == re.sub(r"_\d+$", "", str(now))
    if path.endswith(".code"):
        return str(saved).partition(":")[0] != str(now).partition(":")[0]
    return False


def _pair(saved, missing, new, same) -> dict[int, int]:
    """Pairs saved callbacks with present ones, and takes them off the lists `missing` and `new`."""
    pairs = {}
    for n in list(missing):
        position = next((p for p in new if same(saved[n], p)), None)
        if position is not None:
            pairs[n] = position
            missing.remove(n)
            new.remove(position)
    return pairs


def _observes(callback) -> bool:
    package = type(callback).__module__.partition(".")[0]
    return isinstance(callback, _OBSERVERS) or package in _OBSERVING_PACKAGES


def _decides(callback) -> bool:
    return isinstance(callback, _DECIDING) or callable(getattr(callback, "settings", None))


def _skip(callback) -> tuple[str, ...]:
    # Both are made anew from the arguments, with another sign if the figure should fall.
    return ("monitor_op", "min_delta") if hasattr(callback, "monitor_op") else ()


def pack(arrays) -> dict[str, np.ndarray]:
    """Returns `arrays` with those of types that NumPy lacks, such as bfloat16, as bytes."""
    packed = {}
    for key, array in arrays.items():
        if array.dtype.isbuiltin == 1 or array.dtype.kind in "SU":
            packed[key] = array
        else:
            rows = np.ascontiguousarray(array).reshape(-1).view("uint8")
            packed[f"{key}|{array.dtype.name}|{array.shape}"] = rows
    return packed


def unpack(packed) -> dict[str, np.ndarray]:
    """Returns the arrays that `pack` was given."""
    arrays = {}
    for name, array in packed.items():
        key, *kind = name.split("|")
        if kind:
            shape = tuple(map(int, re.findall(r"\d+", kind[1])))
            array = array.view(np.dtype(kind[0])).reshape(shape)
        arrays[key] = array
    return arrays
