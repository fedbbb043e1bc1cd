"""Forged models: configurations that name what must not run, and weights that do not fit."""

import base64
import copy
import io
import json
import random
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from kerasim import _keras_files, embedding
from kerasim.errors import KerasimError
from tests.helpers.keras_files import members
from tests.torture.artifact_kinds import IMAGES, seal
from tests.torture.children import Watch, run_child

_CANARY = "kerasim_canary"  # a module that must not be imported, with a function `run`
_FOREIGN = (  # what no configuration may name anywhere
    *(("os", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec")),
    *(("shutil", "rmtree"), ("importlib", "import_module"), (_CANARY, "run")),
    *(("kerasim.training", "fit"), ("kerasim._artifacts", "write_file")),
)
_SETTINGS = ("activation", "args", "config", "dtype", "filepath", "fn", "function", "kwargs")
_SETTINGS += ("build_config", "inbound_nodes", "initializer", "layers", "name", "value")


def _network():
    """Returns an embedder with layers, functions and operations; its weights are whole numbers."""
    import keras

    keras.utils.set_random_seed(0)
    images = keras.Input((12, 12, 1))
    x = keras.layers.Conv2D(2, (3, 2), activation="relu", kernel_regularizer="l2")(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.ops.concatenate([keras.ops.tanh(x), x[:, ::-1] + 1.0], axis=-1)
    model = keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    model.compile(run_eagerly=True)
    return _with_whole_weights(model)


def _with_whole_weights(model):
    """Sets weights that every type of number holds exactly."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.integers(1, 100, weight.shape))
    return model


def _save_network(path):
    _network().save(path)


def _save_gallery(path):
    from kerasim.gallery import Gallery

    gallery = Gallery(_network(), "euclidean")
    gallery.add(IMAGES[:5])
    gallery.save(path)


def _load_gallery(path):
    from kerasim.gallery import Gallery

    return Gallery.load(path).embedder


def _save_denoiser(path):
    import keras

    from kerasim.denoising import Denoiser

    images = keras.Input((12, 12, 1))
    x = keras.layers.Conv2D(2, (3, 2), padding="same", activation="relu")(images)
    model = keras.Model(images, keras.ops.sigmoid(keras.layers.Conv2D(1, 1)(x)))
    Denoiser(_with_whole_weights(model)).save(path)


def _load_denoiser(path):
    from kerasim.denoising import Denoiser

    return Denoiser.load(path).network


HOLDERS = {  # of a model: how each is saved, the file of the model in it, and how it is loaded
    "file": (_save_network, "", embedding.load_embedder),
    "gallery": (_save_gallery, "embedder.keras", _load_gallery),
    "denoiser": (_save_denoiser, "network.keras", _load_denoiser),
}


def _hold(name, folder):
    """Saves a model; returns what replaces members of its file, the members, and what loads it."""
    save, inside, load = HOLDERS[name]
    path = Path(folder, f"{name}.keras")
    save(path)
    file = path / inside
    whole = members(file)

    def replace(**changed):
        with zipfile.ZipFile(file, "w") as archive:
            for member, content in whole.items():
                archive.writestr(member, changed.get(member.split(".")[0], content))
        if inside:
            seal(path)

    return replace, whole, lambda: load(path)


# Configurations


def _named(rng, module, name):
    """Returns a part of a configuration that names a class or function, in one of many forms."""
    function = {"module": module, "class_name": "function", "config": name}
    named = {"module": module, "class_name": name, "config": {"args": ["ls"]}}
    code = base64.b64encode(b"\xe3" + rng.randbytes(40)).decode()
    return rng.choice(
        [
            {**function, "registered_name": name},
            {**function, "registered_name": rng.choice([None, "relu", f"{module}>{name}"])},
            {**named, "registered_name": rng.choice([None, name, "Dense"])},
            {**named, "config": {}, "build_config": {"input_shape": [None, 4]}},
            {"class_name": "Lambda", "module": "keras.layers", "config": {"function": function}},
            {"class_name": "__lambda__", "config": {"value": [code, None, None]}},
            {**function, "config": {"module": module, "class_name": name, "config": {}}},
        ]
    )


def _places(node, found):
    """Lists (container, key) of every part of a configuration."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        found.append((node, key))
        if isinstance(value, (dict, list)):
            _places(value, found)
    return found


def _forge(rng, config, keras_names):
    """Puts a name into a configuration; returns whether it must be refused."""
    is_foreign = rng.random() < 0.4
    module, name = rng.choice(_FOREIGN if is_foreign else keras_names)
    node, places = _named(rng, module, name), _places(config, [])
    objects = [value for value in (box[key] for box, key in places) if isinstance(value, dict)]
    way = rng.randrange(4)
    if way == 0:  # in the place of a part
        box, key = rng.choice(places)
        box[key] = node
    elif way == 1:  # as a setting of a part
        rng.choice(objects)[rng.choice(_SETTINGS)] = node
    elif way == 2:  # an object becomes another one
        held = rng.choice([item for item in objects if "class_name" in item])
        held.update(module=module, class_name=name, registered_name=rng.choice([None, name]))
    else:  # as an argument of a call
        calls = rng.choice([box[key] for box, key in places if key == "inbound_nodes" and box[key]])
        rng.choice(calls)["args"].insert(rng.randrange(2), rng.choice([node, [node], {"a": node}]))
    holds_code = way != 2 and node["class_name"] in ("Lambda", "__lambda__")
    return is_foreign or holds_code


def _read_forged_configs(count, names, folder, send):
    import keras
    from keras.src.api_export import REGISTERED_NAMES_TO_OBJS
    from keras.src.saving.serialization_lib import in_safe_mode

    keras_names = [path.rsplit(".", 1) for path in sorted(REGISTERED_NAMES_TO_OBJS)]
    keras_names += 3 * sorted(_keras_files._ALLOWED_CLASSES)
    scratch = Path(folder, "scratch")
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    watch, wrong, refused = Watch(scratch, _CANARY), [], 0
    before = keras.config.floatx(), in_safe_mode()
    for name in names:
        replace, whole, load = _hold(name, folder)
        load()
        config = json.loads(whole["config.json"])
        config.pop("compile_config", None)  # which is not read
        for n in range(count):
            rng, forged = random.Random(f"{name}/{n}"), copy.deepcopy(config)
            must_be_refused = _forge(rng, forged, keras_names)
            replace(config=json.dumps(forged))
            watch.on = True
            try:
                load()
                if must_be_refused:
                    wrong.append(f"{name}, configuration {n}: was loaded")
            except KerasimError:
                refused += 1
            except BaseException as error:
                wrong.append(f"{name}, configuration {n}: {type(error).__name__}: {error}"[:300])
            watch.on = False
            wrong += [f"{name}, configuration {n}: {danger}" for danger in watch.found]
            watch.found.clear()
    now = keras.config.floatx(), in_safe_mode()
    return refused, wrong + (["settings of Keras have changed"] if now != before else [])


def forged_configs(count=2_000, names=tuple(HOLDERS)):
    """Loads models whose configuration names a class or function of Keras, or of anything else.

    One of anything else is refused. One of Keras is refused, or is part of the model. Nothing runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        refused, wrong = run_child(_read_forged_configs, count, names, folder)
    return f"{count * len(names)} configurations, {refused} refused, {len(wrong)} wrong", wrong


# Weights


def _reshape(rng, parent, name, values):
    sizes = [n for n in range(1, values.size + 1) if values.size % n == 0]
    first = rng.choice(sizes)
    shapes = [(first, values.size // first), (values.size,), (*values.shape, 1), (1, *values.shape)]
    _put(parent, name, values.reshape(rng.choice([s for s in shapes if s != values.shape])))


def _resize(rng, parent, name, values):
    axis, size = rng.randrange(values.ndim), rng.choice([0, 1, 2])
    size = rng.choice([size, values.shape[axis] + 1, values.shape[axis] - 1])
    some = np.arange(size) % values.shape[axis]
    _put(parent, name, values.take(some, axis) if size != values.shape[axis] else values[..., None])


def _scalar(rng, parent, name, values):
    _put(parent, name, values.flat[0])


def _retype(rng, parent, name, values):
    """Another type that can hold the same values."""
    _put(parent, name, values.astype(rng.choice(["f8", "f2", ">f4", "i1", "i4", "u8", ">i2"])))


def _attribute(rng, parent, name, values):
    value = rng.choice(["bfloat16", "float8_e4m3fn", "int4", "object", "", 5, [1, 2], "é"])
    rng.choice([parent, parent[name]]).attrs[rng.choice(["dtype", "name", "shape"])] = value


def _remove(rng, parent, name, values):
    place = rng.choice([f"{parent.name}/{name}", parent.name, parent.parent.name])
    del parent.file[place]


def _rename(rng, parent, name, values):
    place = rng.choice([f"{parent.name}/{name}", parent.name, parent.parent.name])
    parent.file.move(place, place + rng.choice(["_1", "0", " ", "é"]))


def _exchange(rng, parent, name, values):
    """Exchanges two arrays of other shapes."""
    import h5py

    found = []
    parent.file["layers"].visititems(lambda _, item: found.append(item))
    others = [x for x in found if isinstance(x, h5py.Dataset) and x.shape != values.shape]
    other = rng.choice(others)
    held, where = other[()], other.name
    _put(parent, name, held)
    _put(parent.file, where, values)


def _add(rng, parent, name, values):
    rng.choice([parent, parent.parent, parent.file])[rng.choice(["9", "vars2", "x/y"])] = values


def _alias(rng, parent, name, values):
    """An array that is another one of the file, by a hard link."""
    others = [other for other in parent if other != name and parent[other].shape != values.shape]
    if others:
        del parent[name]
        parent[name] = parent[rng.choice(others)]


def _put(parent, name, values):
    del parent[name]
    parent[name] = values


CHANGES = (_reshape, _resize, _scalar, _retype, _attribute, _remove, _rename, _exchange, _add)
CHANGES += (_alias,)


def _change_weights(rng, content):
    """Returns the bytes of a file of weights with one array, group or attribute changed."""
    import h5py

    file = io.BytesIO(content)
    with h5py.File(file, "r+") as opened:
        found = []
        opened["layers"].visititems(lambda _, item: found.append(item))
        array = rng.choice([item for item in found if isinstance(item, h5py.Dataset)])
        change = rng.choice(CHANGES)
        change(rng, array.parent, array.name.rsplit("/", 1)[1], array[()])
    return file.getvalue(), change.__name__


def _read_changed_weights(count, names, folder, send):
    wrong, refused = [], 0
    for name in names:
        replace, whole, load = _hold(name, folder)
        expected = load().get_weights()
        for n in range(count):
            rng = random.Random(f"{name}/{n}")
            weights, change = _change_weights(rng, whole["model.weights.h5"])
            replace(model=weights)
            try:
                pairs = zip(load().get_weights(), expected, strict=True)
                if not all(np.array_equal(one, other) for one, other in pairs):
                    wrong.append(f"{name}, weights {n}, {change}: other weights, without an error")
            except KerasimError:
                refused += 1
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"[:200]
                wrong.append(f"{name}, weights {n}, {change}: {said}")
    return refused, wrong


def changed_weights(count=1_000, names=tuple(HOLDERS)):
    """Loads models whose weights have another shape, type, name or attribute.

    Each is refused, or has the weights that were saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        refused, wrong = run_child(_read_changed_weights, count, names, folder)
    return f"{count * len(names)} files of weights, {refused} refused, {len(wrong)} wrong", wrong
