"""Reading `.keras` and HDF5 files that somebody else made."""

import inspect
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras.src import api_export
from keras.src.saving.keras_saveable import KerasSaveable

from kerasim import _keras_compat, _keras_files, embedding, models
from kerasim.errors import ArgumentError, ArtifactError, KerasimError
from tests.helpers.keras_files import dense_model, save_changed_model

IMAGES = np.random.default_rng(0).random((3, 4, 4, 1), dtype="float32")


def with_layer(path, layer, nodes=None, **settings):
    """Saves an embedder with a layer of that class, of Keras if it does not say otherwise."""
    module, _, name = layer.rpartition(".")

    def change(files):
        config = json.loads(files["config.json"])
        described = {"module": module or "keras.layers", "class_name": name, "config": settings}
        if nodes is not None:
            described |= {"name": "added", "inbound_nodes": nodes}
        config["config"]["layers"].insert(2, {**described, "registered_name": None})
        files["config.json"] = json.dumps(config).encode()

    return save_changed_model(path, change)


def with_weights(path, change):
    """Saves an embedder whose weights, an HDF5 file and its group of a kernel, `change` changes."""

    def change_files(files):
        content = io.BytesIO(files["model.weights.h5"])
        with h5py.File(content, "r+") as file:
            change(file, file["layers/dense/vars"])
        files["model.weights.h5"] = content.getvalue()

    return save_changed_model(path, change_files)


@pytest.fixture
def keras_is_not_asked(monkeypatch):
    """Fails a test in which Keras sees a configuration."""

    def deserialize(*args, **kwargs):
        raise AssertionError("Keras was asked to build what the file names")

    monkeypatch.setattr(keras.saving, "deserialize_keras_object", deserialize)


# What a configuration may name


def subclasses(kind):
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def everything_that_keras_can_build():
    """Yields (module, name, object) of each public function and class, and of each saveable one."""
    for path, value in api_export.REGISTERED_NAMES_TO_OBJS.items():
        module, _, name = path.rpartition(".")
        yield module, name, value
        yield value.__module__, value.__name__, value
    for value in subclasses(KerasSaveable):
        if not value.__module__.startswith(("kerasim", "test")):
            yield value.__module__, value.__name__, value


KERAS = sorted({(module, name) for module, name, _ in everything_that_keras_can_build()})
OBJECTS = {(module, name): value for module, name, value in everything_that_keras_can_build()}
TENSOR = {
    "class_name": "__keras_tensor__",
    "config": {"shape": [None, 4], "dtype": "float32", "keras_history": ["images", 0, 0]},
}


def described(module, name, config=None):
    return {"module": module, "class_name": name, "config": config or {}, "registered_name": None}


def function_of(module, name):
    return {**described(module, "function"), "config": name, "registered_name": name}


def layer_called_with(*args):
    return {
        **described("keras.layers", "Dense", {"units": 3}),
        "inbound_nodes": [{"args": [TENSOR, *args], "kwargs": {}}],
    }


PLACES = {  # where a configuration may name a class or a function
    "layer": lambda named: {"layers": [named]},
    "activation": lambda named: described("keras.layers", "Dense", {"activation": named}),
    "setting of a setting": lambda named: described(
        "keras.layers",
        "Dense",
        {"kernel_regularizer": described("keras.regularizers", "L2", {"l2": named})},
    ),
    "data type": lambda named: described("keras.layers", "Dense", {"dtype": named}),
    "argument of a call": layer_called_with,
    "list in a list": lambda named: layer_called_with([[named]]),
    "value of a dictionary": lambda named: layer_called_with({"a": {"b": named}}),
    "slice": lambda named: layer_called_with(
        {"class_name": "__slice__", "config": {"start": named}}
    ),
    "shape": lambda named: {**described("keras.layers", "Dense"), "build_config": {"a": named}},
}


def is_refused(config):
    try:
        _keras_files.check_config("model.keras", config)
    except ArtifactError as error:
        return "not run for safety" in str(error)
    return False


@pytest.mark.fault("malicious-model")
@pytest.mark.parametrize("place", PLACES)
def test_every_function_of_keras_but_activations_is_refused_wherever_a_file_names_it(place):
    allowed = set()
    for module, name in KERAS:
        if not is_refused(PLACES[place](function_of(module, name))):
            allowed.add(f"{module}.{name}")
    may = place not in ("argument of a call", "list in a list", "value of a dictionary", "slice")
    activations = {f"keras.activations.{name}" for name in _keras_files._ACTIVATIONS.split()}
    assert allowed == (activations if may else set())


@pytest.mark.fault("malicious-model")
@pytest.mark.parametrize("place", PLACES)
def test_every_class_of_keras_that_is_not_listed_is_refused_wherever_a_file_names_it(place):
    allowed = {key for key in KERAS if not is_refused(PLACES[place](described(*key)))}
    assert allowed <= _keras_files._ALLOWED_CLASSES


PLAIN = (
    keras.Layer,
    keras.Operation,
    keras.Initializer,
    keras.Regularizer,
    keras.constraints.Constraint,
    keras.DTypePolicy,
    keras.Quantizer,
    keras.quantizers.QuantizationConfig,
    keras.random.SeedGenerator,
)
CALLS = {
    "f",
    "fn",
    "func",
    "function",
    "branches",
    "true_fn",
    "false_fn",
    "cond",
    "body",
    "callable",
}


@pytest.mark.fault("malicious-model")
@pytest.mark.parametrize("key", sorted(_keras_files._ALLOWED_CLASSES), ids=".".join)
def test_a_class_on_the_list_is_a_part_of_a_model_and_takes_no_function_to_call(key):
    listed = OBJECTS[key]
    assert issubclass(listed, PLAIN)
    assert not issubclass(listed, keras.Model) or listed.__name__ in ("Sequential", "Functional")
    for method in (listed.__init__, listed.__call__ if callable(listed) else listed.__init__):
        assert not CALLS & {*inspect.signature(method).parameters}
    if issubclass(listed, keras.Operation):
        assert not CALLS & {*inspect.signature(listed.call).parameters}


def test_a_layer_of_keras_hub_is_refused_until_keras_hub_is_imported(monkeypatch):
    module = "keras_hub.src.models.dinov2.dinov2_layers"
    monkeypatch.delitem(sys.modules, module, raising=False)
    config = {"layers": [described(module, "DINOV2Encoder")]}
    with pytest.raises(ArtifactError, match="a layer of keras_hub, .* Import keras_hub before"):
        _keras_files.check_config("model.keras", config)
    monkeypatch.setitem(sys.modules, module, None)
    _keras_files.check_config("model.keras", config)
    assert is_refused({"layers": [described(module, "DINOV2Layer")]})


REFUSED_LAYERS = set(
    # Code, or a foreign program.
    "Lambda TFSMLayer JaxLayer FlaxLayer TorchModuleWrapper "
    # Text, sound and tables; those with a vocabulary read it from a file.
    "StringLookup IntegerLookup TextVectorization Hashing HashedCrossing MelSpectrogram "
    "STFTSpectrogram MaxNumBoundingBoxes "
    # Base classes.
    "Layer Wrapper".split()
)


def test_each_layer_of_keras_is_either_on_the_list_or_refused_with_a_reason():
    public = {
        name
        for name, value in vars(keras.layers).items()
        if isinstance(value, type) and issubclass(value, keras.Layer)
    }
    known = {value for key, value in OBJECTS.items() if key in _keras_files._ALLOWED_CLASSES}
    listed = {name for name in public if getattr(keras.layers, name) in known}
    assert public - listed == REFUSED_LAYERS & public


ACTIVATION = function_of("builtins", "relu")
SWITCH = "keras.src.ops.core.Switch"
CONFIGS = {  # that are refused
    "foreign class": {"layers": [described("subprocess", "Popen", {"args": ["ls"]})]},
    "foreign function": PLACES["activation"](function_of("os", "system")),
    "module that is not loaded": {"layers": [described("keras_hub.models", "Backbone")]},
    "class without a module": {"layers": [{"class_name": "Dense", "config": {"units": 3}}]},
    "class without a configuration": {"layers": [{"class_name": "Lambda"}]},
    "class whose name is a list": {"layers": [described("keras.layers", ["Dense"])]},
    "module that is a list": {"layers": [described(["keras.layers"], "Dense")]},
    "code": PLACES["activation"]({"class_name": "__lambda__", "config": {"value": "x"}}),
    "type specification": PLACES["activation"](
        {**described("tensorflow", "__typespec__"), "spec_name": "TensorSpec"}
    ),
    "bytes": PLACES["activation"]({"class_name": "__bytes__", "config": {"value": "x"}}),
    "constant of objects": layer_called_with(
        {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "O"}}
    ),
    "constant of long strings": layer_called_with(
        {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "U1000000000"}}
    ),
    "constant of structures": layer_called_with(
        {"class_name": "__numpy__", "config": {"value": [1], "dtype": [["a", "f8", [10**9]]]}}
    ),
    "call on values alone": {
        **described("keras.src.ops.numpy", "Tile"),
        "inbound_nodes": [{"args": [[1.0], [10**9]], "kwargs": {}}],
    },
    "call on nothing": {**described("keras.layers", "Dense"), "inbound_nodes": [{}]},
    "call of the old format": {
        **described("keras.layers", "Dense"),
        "inbound_nodes": [[["images", 0, 0, {}]]],
    },
    "call on what only looks like a tensor": {
        **described("keras.src.ops.numpy", "Tile"),
        "inbound_nodes": [{"args": [{"class_name": "__keras_tensor__"}, [9]], "kwargs": {}}],
    },
    "activation as an argument of a call": layer_called_with(ACTIVATION),
    "activation as a setting of an operation": {
        **described("keras.src.ops.numpy", "Tile", {"f": ACTIVATION}),
    },
    "registered name as an argument of a call": layer_called_with("kerasim>Distance"),
}


@pytest.mark.fault("malicious-model")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_would_run_or_build_something_else_is_refused(name):
    with pytest.raises(ArtifactError, match="model.keras' cannot be loaded: it names .*for safety"):
        _keras_files.check_config("model.keras", CONFIGS[name])


def test_the_error_says_what_the_file_names_where_and_what_to_do():
    config = {"layers": [described("keras.layers", "Dense"), described("my.code", "Thing")]}
    wanted = r"the class my\.code\.Thing at config\.layers\[1\], .*register_keras_serializable"
    with pytest.raises(ArtifactError, match=wanted):
        _keras_files.check_config("model.keras", config)


GADGETS = {  # a function of Keras, and arguments with which it would do harm
    "writes a file": (("keras.utils", "save_img"), ["victim", [[[0.0]]]]),
    "plots into a file": (("keras.visualization", "plot_image_gallery"), [[[[[0.0]]]]]),
    "asks the network": (("keras.datasets.mnist", "load_data"), ["mnist.npz"]),
    "downloads": (("keras.utils", "get_file"), ["victim", "http://localhost"]),
    "loads a model": (("keras.saving", "load_model"), ["victim"]),
    "switches safety off": (("keras.config", "enable_unsafe_deserialization"), []),
    "changes the process": (("keras.config", "set_floatx"), ["float16"]),
}


@pytest.mark.fault("malicious-model")
@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("operation", [SWITCH, "keras.src.ops.core.VectorizedMap", "Lambda"])
def test_no_function_of_keras_is_called_because_a_file_says_so(
    gadget, operation, tmp_path, keras_is_not_asked
):
    function, arguments = GADGETS[gadget]
    called = [0, [function_of(*function), function_of(*function)], *arguments]
    nodes = [{"args": called, "kwargs": {}}]
    path = with_layer(tmp_path / "model.keras", operation, nodes, function=function_of(*function))
    with pytest.raises(ArtifactError, match="which is not run for safety"):
        embedding.load_embedder(path)


def in_layers(wrap):
    """Returns what saves an embedder with a Lambda, which leaves a canary when it is called."""

    def save(path, canary):
        # A name of this module would be looked up here; what is defined within travels as code.
        code = keras.layers.Lambda(lambda x, at=str(canary): (__import__("os").mkdir(at), x)[1])
        dense_model().save(path)
        model = keras.Sequential([keras.Input((4, 4, 1)), wrap(code), keras.layers.Flatten()])
        canary.rmdir()
        model.save(path)
        return path

    return save


HOSTILE = {  # what saves each, and what the error names
    "lambda": (in_layers(lambda code: code), "keras.layers.Lambda"),
    "lambda in a model": (in_layers(lambda code: keras.Sequential([code])), "keras.layers.Lambda"),
    "lambda in a wrapper": (in_layers(keras.layers.TimeDistributed), "keras.layers.Lambda"),
    "foreign graph": (
        lambda path, canary: with_layer(path, "TFSMLayer", filepath=str(canary)),
        "keras.layers.TFSMLayer",
    ),
    "torch": (
        lambda path, canary: with_layer(path, "TorchModuleWrapper", module=str(canary)),
        "keras.layers.TorchModuleWrapper",
    ),
    "file as words": (
        lambda path, canary: with_layer(
            path, "StringLookup", vocabulary=str(canary.parent / "secret")
        ),
        "keras.layers.StringLookup",
    ),
}


@pytest.mark.fault("python-code-in-keras-file", "malicious-model")
@pytest.mark.parametrize(("save", "named"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_with_its_path_and_nothing_runs(
    save, named, tmp_path, keras_is_not_asked
):
    canary = tmp_path / "canary"
    (tmp_path / "secret").write_bytes(b"0" * 192)
    path = save(tmp_path / "model.keras", canary)
    with pytest.raises(ArtifactError) as caught:
        embedding.load_embedder(path)
    said = str(caught.value)
    assert said.startswith(f"'{path}' cannot be loaded: it names the class {named} at config.")
    assert "safe_mode" not in said and not canary.exists()


@pytest.mark.fault("malicious-model")
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    path = with_layer(tmp_path / "model.keras", "ReLU", name="../../canary")
    with pytest.raises(ArgumentError, match=re.escape(str(path))):
        embedding.load_embedder(path)


# What may be loaded, and is


class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def shared_encoder():
    encoder, images = dense_model(), keras.Input((4, 4, 1))
    return keras.Model(images, keras.layers.Concatenate()([encoder(images), encoder(1 - images)]))


def operations():
    images = keras.Input((4, 4, 1))
    x = keras.ops.tanh(images) + np.full((4, 1, 1), 0.5, "float32")
    x = keras.ops.concatenate([x[:, 1:], 1 / (1 + x[:, :2])], axis=1)
    return keras.Model(images, keras.ops.reshape(keras.activations.gelu(x), (-1, 20)))


def compiled_inside():
    encoder = dense_model()
    encoder.compile("adam", "mse", ["mae"])
    return keras.Sequential([keras.Input((4, 4, 1)), encoder, keras.layers.UnitNormalization()])


def attention():
    images = keras.Input((4, 4, 1))
    rows = keras.layers.Reshape((4, 4))(images)
    x = keras.layers.MultiHeadAttention(2, 2, kernel_regularizer="l2")(rows, rows)
    x = keras.layers.Bidirectional(keras.layers.GRU(2, kernel_constraint="unit_norm"))(x)
    return keras.Model(images, x)


def convnext_layers():
    from keras.src.applications.convnext import LayerScale

    images = keras.Input((4, 4, 1))
    x = LayerScale(0.5, 1)(keras.layers.Rescaling([2.0], [1.0])(images))
    return keras.Model(images, keras.layers.Flatten()(keras.layers.PReLU()(x)))


def kerasim_layers():
    backbone = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 3)])
    return models.pretrained_embedder(backbone, embedding_dim=3, image_shape=(4, 4, 1))


MODELS = {
    "sequential": dense_model,
    "16-bit floats": lambda: dense_model(dtype="float16"),
    "brain floats": lambda: dense_model(dtype="bfloat16"),
    "mixed floats": lambda: dense_model(dtype="mixed_float16"),
    "shared encoder": shared_encoder,
    "operations": operations,
    "compiled encoder": compiled_inside,
    "attention and recurrence": attention,
    "layers of ConvNeXt": convnext_layers,
    "layers of kerasim": kerasim_layers,
    "ensemble": lambda: models.ensemble([dense_model(), dense_model()]),
    "batch norm": lambda: keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.BatchNormalization(), keras.layers.Flatten()]
    ),
}


@pytest.mark.fault("model-in-new-process")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_saved_gives_the_same_vectors_once_it_is_loaded(name, tmp_path):
    model = MODELS[name]()
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(weight + 0.01)
    model.save(tmp_path / "model.keras")
    loaded = embedding.load_embedder(tmp_path / "model.keras")
    expected = np.asarray(model.predict_on_batch(IMAGES))
    np.testing.assert_array_equal(np.asarray(loaded.predict_on_batch(IMAGES)), expected)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_made_as_the_hostile_ones_are_is_read_without_their_fault(compression, tmp_path):
    path = save_changed_model(tmp_path / "model.keras", lambda files: None, compression)
    assert embedding.load_embedder(path).output_shape == (None, 3)
    path = with_layer(tmp_path / "model.keras", "Activation", activation="relu")
    assert embedding.load_embedder(path).output_shape == (None, 3)


def test_a_custom_layer_is_loaded_once_it_is_registered(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), Doubled(), keras.layers.Flatten()])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ArtifactError, match=r"class .*\.Doubled at .*register_keras_serializable"):
        embedding.load_embedder(tmp_path / "model.keras")
    with keras.saving.CustomObjectScope({"Doubled": Doubled}):
        loaded = embedding.load_embedder(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(IMAGES), 2 * IMAGES.reshape(3, 16))


def test_what_is_loaded_is_not_compiled(tmp_path):
    model = dense_model()
    model.compile("adam", "mse")
    model.save(tmp_path / "model.keras")
    assert not embedding.load_embedder(tmp_path / "model.keras").compiled


@pytest.mark.fault("model-in-new-process")
def test_a_model_of_kerasim_layers_is_loaded_by_a_fresh_process_in_any_folder(tmp_path):
    kerasim_layers().save(tmp_path / "model.keras")
    code = (
        "import sys; from kerasim import embedding;"
        "print(embedding.load_embedder(sys.argv[1]).output_shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.keras"],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.stdout.strip() == "(None, 3)", done.stderr


# Damaged files


@pytest.mark.fault("h5-model", "unusable-path")
def test_a_model_in_the_old_format_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"is not a .keras file.*save\('model.keras'\)"):
        embedding.load_embedder(tmp_path / "model.h5")


@pytest.mark.fault("truncated-file")
@pytest.mark.parametrize("length", [0, 1, 100, 5000, -1])
def test_a_model_cut_short_is_called_damaged_and_not_missing(length, tmp_path):
    path = save_changed_model(tmp_path / "model.keras", lambda files: None)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArgumentError, match="[Tt]he file is damaged") as caught:
        embedding.load_embedder(path)
    assert str(path) in str(caught.value) and "not found" not in str(caught.value)


def other_config(content):
    return lambda files: files.update({"config.json": content})


@pytest.mark.fault("deep-or-huge-manifest", "truncated-file")
@pytest.mark.parametrize(
    "content", [b"x", b"[" * 200_000, b"[]", b"{}", b"null", b"7", b'"text"'], ids=repr
)
def test_a_model_whose_config_is_none_is_called_damaged(content, tmp_path):
    with pytest.raises(ArgumentError, match="loaded as an embedder: .*The file is damaged"):
        embedding.load_embedder(save_changed_model(tmp_path / "model.keras", other_config(content)))


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_model_without_config_or_weights_is_refused(name, tmp_path):
    with pytest.raises(ArtifactError, match="holds the files .* expected"):
        embedding.load_embedder(
            save_changed_model(tmp_path / "model.keras", lambda files: files.pop(name))
        )


def test_a_model_with_files_of_its_own_is_refused(tmp_path):
    def add(files):
        files["assets/vocabulary.txt"] = b"words"

    with pytest.raises(ArtifactError, match="holds the files .*assets/vocabulary.txt"):
        embedding.load_embedder(save_changed_model(tmp_path / "model.keras", add))


@pytest.mark.fault("random-damage")
def test_200_mutants_of_a_model_load_or_raise_a_kerasim_error(tmp_path):
    rng = np.random.default_rng(0)
    path = save_changed_model(tmp_path / "model.keras", lambda files: None)
    whole, refused = path.read_bytes(), 0
    for _ in range(200):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            embedding.load_embedder(path)
        except KerasimError:
            refused += 1
    assert refused > 100


# Archives


@pytest.mark.fault("archive-bomb")
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_whose_blocks_have_no_bound_is_refused(method, tmp_path):
    path = save_changed_model(tmp_path / "model.keras", lambda files: None, method)
    with pytest.raises(ArtifactError, match="in compression method"):
        embedding.load_embedder(path)


@pytest.mark.fault("archive-bomb")
def test_an_archive_with_two_files_of_one_name_is_refused(tmp_path):
    path = save_changed_model(tmp_path / "model.keras", lambda files: None)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", b"{}")
    with pytest.raises(ArtifactError, match="two files with the same name"):
        embedding.load_embedder(path)


# Weights


def replaced(**settings):
    """Returns what puts an array made with `settings` in the place of a kernel."""

    def change(file, kernel):
        del kernel["0"]
        kernel.create_dataset("0", **{"shape": (16, 3), "dtype": "f4", **settings})

    return change


def link(made):
    def change(file, kernel):
        del kernel["0"]
        kernel["0"] = made

    return change


def virtual(file, kernel):
    del kernel["0"]
    layout = h5py.VirtualLayout((16, 3), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "secret", (16, 3))
    kernel.create_virtual_dataset("0", layout)


def partly_written(file, kernel):
    del kernel["0"]
    kernel.create_dataset("0", (16, 3), "f4", chunks=(4, 3))[:4] = 1


def named_type(file, kernel):
    file["type"] = np.dtype("f4")


def long_attribute(file, kernel):
    kernel.attrs.create("names", ["a", "b"], dtype=h5py.string_dtype())


def empty_space(file, kernel):
    del kernel["0"]
    kernel["0"] = h5py.Empty("f4")


ONES = np.ones((16, 3), "f4")
SPOILED = {  # what is wrong with an array, what makes it so, and what the error says
    "compressed by gzip": (replaced(data=ONES, compression="gzip"), "is compressed"),
    "compressed by lzf": (replaced(data=ONES, compression="lzf"), "is compressed"),
    "shuffled": (replaced(data=ONES, chunks=True, shuffle=True), "is compressed"),
    "rounded": (replaced(data=ONES, chunks=True, scaleoffset=2), "is compressed"),
    "compressed and never written": (
        replaced(shape=(2**27,), chunks=(2**20,), compression="gzip"),
        "is compressed",
    ),
    "never written": (replaced(shape=(2**27,)), "of which 0 are stored"),
    "never written, in chunks": (
        replaced(shape=(2**27,), chunks=(2**20,)),
        "of which 0 are stored",
    ),
    "partly written": (partly_written, "has 192 bytes, of which 48 are stored"),
    "of strings": (
        replaced(data=[["a"] * 3] * 16, dtype=h5py.string_dtype()),
        "expected real numbers",
    ),
    "of lists": (replaced(dtype=h5py.vlen_dtype("f4")), "expected real numbers"),
    "of structures": (replaced(dtype=[("a", "f4"), ("b", "f4")]), "expected real numbers"),
    "of references": (replaced(dtype=h5py.ref_dtype), "expected real numbers"),
    "of long opaque values": (replaced(dtype="V1000000"), "expected real numbers"),
    "without a shape": (empty_space, "expected real numbers"),
    "external link": (link(h5py.ExternalLink("secret.h5", "secret")), "is a ExternalLink"),
    "soft link": (link(h5py.SoftLink("/layers/dense/vars/1")), "is a SoftLink"),
    "external data": (replaced(external=[("secret", 0, 192)]), "from another file"),
    "virtual data": (virtual, "from another file"),
    "a named type": (named_type, "neither a group nor an array"),
    "an attribute of strings": (long_attribute, "has a list of strings, 'names'"),
}


@pytest.mark.fault("malicious-model", "oversized-claim")
@pytest.mark.parametrize(("change", "said"), SPOILED.values(), ids=SPOILED)
def test_an_array_that_is_not_stored_in_the_file_in_full_is_refused(
    change, said, tmp_path, keras_is_not_asked
):
    path = with_weights(tmp_path / "model.keras", change)
    with pytest.raises(
        ArtifactError, match=f"model.keras' cannot be loaded: in its weights.*{said}"
    ):
        embedding.load_embedder(path)


def test_arrays_that_claim_more_than_the_whole_file_are_refused(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["kernel"] = np.arange(1000, dtype="f4")
        place = file["kernel"].id.get_offset()
    content = bytearray(path.read_bytes())
    # The address and size of the array, as its header holds them.
    header = content.index(struct.pack("<QQ", place, 4000))
    content[header + 8 : header + 16] = struct.pack("<Q", 4 * 10**12)
    shape = content.index(struct.pack("<QQ", 1000, 1000))
    content[shape : shape + 16] = struct.pack("<QQ", 10**12, 10**12)
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged weights|arrays of"):
        _keras_files.check_hdf5(path)


def test_a_group_that_holds_itself_is_walked_once(tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["kernel"] = np.ones(3)
        file["again"] = file["/"]
    path = tmp_path / "weights.h5"
    assert list(_keras_files._walk_hdf5(path, path, path.stat().st_size)) == [3 * 8]


MEASURE = """
import sys, time
from kerasim import embedding, errors

def peak():  # of this process alone: getrusage would start from its parent's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

embedding.load_embedder(sys.argv[1])
before, start = peak(), time.perf_counter()
for path in sys.argv[2:]:
    try:
        print("loaded", embedding.load_embedder(path))
    except errors.KerasimError as error:
        print(error)
print(peak() - before, time.perf_counter() - start)
"""


def wide(files):
    config = files["config.json"]
    files["config.json"] = config.replace(b'"units": 3', b'"units": 1000000000')


def padded(files):
    files["config.json"] += b" " * 300_000_000


def long_config(files):
    files["config.json"] += b" " * 20_000_000


def wide_and_unused(files):
    """Adds a layer that the output does not need: it is no part of the model's weights."""
    model = keras.Model(images := keras.Input((4, 4, 1)), keras.layers.Flatten(name="out")(images))
    config = json.loads(model.to_json())
    layer = {
        **described("keras.layers", "Dense", {"units": 10**9}),
        "build_config": {"input_shape": [None, 4]},
        "name": "unused",
        "inbound_nodes": [],
    }
    config["config"]["layers"].append(layer)
    files["config.json"] = json.dumps(config).encode()


def many_sines(files):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    config = json.loads(model.to_json())
    layer = {
        **described("kerasim.layers", "TimeEmbedding", {"dim": 2 * 10**9}),
        "registered_name": "kerasim>TimeEmbedding",
    }
    config["config"]["layers"].append(layer)
    files["config.json"] = json.dumps(config).encode()


LARGE = {
    "wide": (wide, "declares 17000000000 weights, but holds only"),
    "padded": (padded, "refused as a decompression bomb"),
    "long": (long_config, "holds a config.json of more than"),
    "unused": (wide_and_unused, "declares 5000000000 weights, but holds only"),
    "sines": (many_sines, "loaded"),
}


@pytest.mark.fault("archive-bomb", "oversized-claim")
def test_models_that_would_fill_the_memory_are_refused_before_they_do(tmp_path):
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc to measure peak memory")
    good = save_changed_model(tmp_path / "good.keras", lambda files: None)
    for name, (change, _) in LARGE.items():
        save_changed_model(tmp_path / f"{name}.keras", change, zipfile.ZIP_DEFLATED)
    paths = [tmp_path / f"{name}.keras" for name in LARGE]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, good, *paths], capture_output=True, text=True, check=True
    )
    *said, measured = done.stdout.splitlines()
    for line, (_, wanted) in zip(said, LARGE.values(), strict=True):
        assert wanted in line
    megabytes, _ = map(float, measured.split())
    assert megabytes < 200


# What Keras keeps private


def test_variables_made_in_outline_are_listed_and_have_no_values():
    with _keras_compat.variables_in_outline() as variables:
        keras.layers.Dense(10**6).build((None, 10**6))
    assert [variable.shape for variable in variables] == [(10**6, 10**6), (10**6,)]
    with keras.StatelessScope():
        pass  # Keras gives memory to all variables in its list at the end of such a block
    assert all(variable._value is None for variable in variables)


def test_an_object_that_is_shared_in_a_file_is_built_once():
    encoder = dense_model()
    pair = [keras.saving.serialize_keras_object(encoder) for _ in range(2)]
    for config in pair:
        config["shared_object_id"] = 7
    with _keras_compat.ObjectSharingScope():
        one, other = map(keras.saving.deserialize_keras_object, pair)
    assert one is other


def test_objects_of_an_open_scope_are_listed_as_registered():
    assert "kerasim>Distance" in _keras_compat.registered_objects()
    with keras.saving.CustomObjectScope({"mine": Doubled}):
        assert _keras_compat.registered_objects()["mine"] is Doubled
    assert "mine" not in _keras_compat.registered_objects()


def test_the_calls_of_a_model_are_listed_in_order_and_a_shared_layer_twice():
    images = keras.Input((4, 4, 1), name="images")
    dense = keras.layers.Dense(1, name="dense")
    flat = keras.layers.Flatten(name="flat")(dense(dense(images)))
    calls = _keras_compat.graph_calls(keras.Model(images, flat))
    assert [call[0].name for call in calls] == ["images", "dense", "dense", "flat"]
    assert calls[0][1] == [] and calls[3][1][0] is calls[2][2][0]


def test_a_graph_is_applied_in_inference_and_adds_no_call_to_its_layers():
    images = keras.Input((4, 4, 1))
    dropout = keras.layers.Dropout(0.9)
    x = keras.layers.Rescaling(2.0)(images)
    graph = keras.Function(x, dropout(x))
    found = _keras_compat.apply_graph(graph, keras.ops.convert_to_tensor(IMAGES))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), IMAGES)
    assert len(dropout._inbound_nodes) == 1
