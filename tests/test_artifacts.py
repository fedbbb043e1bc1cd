import ctypes
import errno
import functools
import gc
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kerasim import _artifacts, _model_identity
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, KerasimError
from tests.helpers.damaged_artifacts import mutate, reseal
from tests.helpers.file_access import unprivileged
from tests.helpers.interrupted import at_line

KIND = "numbers"
FILES = ("arrays.npz", "table.csv", "sub/codes.npy")


def fill_with(value, size=50):
    """Returns what `write` is handed: three files, each of which holds `value`."""

    def fill(folder):
        np.savez(folder / "arrays.npz", x=np.full(size, value))
        (folder / "table.csv").write_text(f"value\n{value}\n")
        (folder / "sub").mkdir()
        np.save(folder / "sub" / "codes.npy", np.full(size, value, dtype="float32"))

    return fill


def save(path, value=1.0, kind=KIND, **kwargs):
    return _artifacts.write(path, kind, fill_with(value), info={"value": value}, **kwargs)


def load_value(folder, manifest):
    """Loads all files of an artifact; they are torn if they do not hold one value."""
    values = {
        manifest.info["value"],
        *_artifacts.read_arrays(folder / "arrays.npz")["x"].tolist(),
        float((folder / "table.csv").read_text().split()[1]),
        *np.load(folder / "sub" / "codes.npy").tolist(),
    }
    assert len(values) == 1, f"torn: {values}"
    return values.pop()


def read(path, **kwargs):
    return _artifacts.read(path, KIND, load_value, **kwargs)


def contents(folder):
    """Returns every file and link below `folder`, with its bytes."""
    return {
        str(file.relative_to(folder)): file.read_bytes() if file.is_file() else b""
        for file in Path(folder).rglob("*")
        if not file.is_dir()
    }


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / "saved")


@pytest.fixture(params=[True, False], ids=["exchange", "fallback"])
def swap(request, monkeypatch):
    """Runs a test with the swap in one step, and as on systems that lack it."""
    if not request.param:
        monkeypatch.setattr(_artifacts, "_exchange", lambda one, other: False)


# What is written is read


def test_an_artifact_is_read_as_it_was_written(saved):
    assert read(saved) == 1.0


def test_a_second_save_replaces_the_first_and_leaves_nothing_beside_it(tmp_path, swap):
    save(tmp_path / "saved", 1.0)
    save(tmp_path / "saved", 2.0)
    assert read(tmp_path / "saved") == 2.0
    assert os.listdir(tmp_path) == ["saved"]


def test_the_manifest_names_files_kind_and_versions(saved):
    manifest = _artifacts.read(saved, KIND, lambda folder, manifest: manifest)
    assert (manifest.kind, sorted(manifest.files)) == (KIND, sorted(FILES))
    assert set(manifest.versions) == {"kerasim", "keras", "numpy", "python"}


def test_keys_of_info_that_are_numbers_do_not_damage_the_manifest(tmp_path):
    info = {"value": 1.0, "recall": {10: 0.5, 9: 0.4}}
    _artifacts.write(tmp_path / "saved", KIND, fill_with(1.0), info)
    assert read(tmp_path / "saved") == 1.0


def test_info_that_is_no_json_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ArgumentTypeError, match="info must hold JSON values"):
        _artifacts.write(tmp_path / "saved", KIND, fill_with(1.0), {"x": np.zeros(2)})
    assert os.listdir(tmp_path) == []


def test_info_too_large_for_a_manifest_is_refused_when_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(_artifacts, "_MANIFEST_BYTES", 2000)
    with pytest.raises(ArgumentError, match="over 2000"):
        _artifacts.write(tmp_path / "saved", KIND, fill_with(1.0), {"x": "y" * 2000})


def test_a_link_is_written_through(tmp_path):
    save(tmp_path / "real", 1.0)
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", 2.0)
    assert (tmp_path / "link").is_symlink() and read(tmp_path / "real") == 2.0
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_an_error_of_what_is_saved_comes_out_unchanged_and_the_old_stays(saved):
    def fill(folder):
        (folder / "half").write_bytes(b"x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _artifacts.write(saved, KIND, fill)
    assert read(saved) == 1.0 and os.listdir(saved.parent) == ["saved"]


# What stands there and is not ours


@pytest.mark.parametrize("way", ["no manifest", "another kind", "own file", "a file"])
def test_what_the_user_put_there_is_never_replaced(tmp_path, way, swap):
    path = tmp_path / "mine"
    if way == "no manifest":
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")
    elif way == "a file":
        path.write_text("years of work")
    else:
        save(path, kind="diary" if way == "another kind" else KIND)
    if way == "own file":
        (path / "notes.txt").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        save(path, 2.0)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "saved").mkdir()
    save(tmp_path / "saved")
    assert read(tmp_path / "saved") == 1.0


def test_a_folder_named_like_one_set_aside_is_left_alone_if_it_is_not_ours(tmp_path):
    (tmp_path / ".saved.old").mkdir()
    (tmp_path / ".saved.old" / "thesis.txt").write_text("years of work")
    save(tmp_path / "saved", 1.0)
    save(tmp_path / "saved", 2.0)
    assert (tmp_path / ".saved.old" / "thesis.txt").read_text() == "years of work"


# Damage


@pytest.mark.fault("truncated-file")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", range(20))
def test_a_truncated_file_is_called_damaged_with_its_sizes(saved, name, cut):
    file = saved / name
    whole = file.read_bytes()
    length = len(whole) * cut // 20  # 0, an empty file, is the first
    file.write_bytes(whole[:length])
    wanted = f"{re.escape(str(file))} is damaged: expected {len(whole)} bytes, found {length}"
    with pytest.raises(ArtifactError, match=wanted):
        read(saved)


@pytest.mark.fault("truncated-file")
def test_a_manifest_truncated_anywhere_is_called_damaged(saved):
    file = saved / _artifacts.MANIFEST
    whole = file.read_bytes()
    for cut in range(20):
        file.write_bytes(whole[: len(whole) * cut // 20])
        with pytest.raises(ArtifactError, match=f"{_artifacts.MANIFEST} is damaged"):
            read(saved)


@pytest.mark.fault("truncated-file")
@pytest.mark.parametrize("name", FILES)
def test_garbage_of_the_right_length_is_found(saved, name):
    size = (saved / name).stat().st_size
    (saved / name).write_bytes(random.Random(0).randbytes(size))
    with pytest.raises(ArtifactError, match="is damaged: its SHA-256 is not that of the manifest"):
        read(saved)


@pytest.mark.fault("flipped-bit")
@pytest.mark.parametrize("name", [*FILES, _artifacts.MANIFEST])
def test_a_flipped_bit_is_found_at_200_of_200_places(saved, name):
    rng, file = random.Random(0), saved / name
    whole, found = file.read_bytes(), 0
    for _ in range(200):
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            read(saved)
        except ArtifactError:
            found += 1
    assert found == 200


@pytest.mark.fault("extra-or-missing-file")
def test_trailing_junk_is_named(saved):
    with open(saved / "table.csv", "ab") as file:
        file.write(b"junk")
    with pytest.raises(ArtifactError, match="table.csv is damaged: expected 10 bytes, found 14"):
        read(saved)


@pytest.mark.fault("extra-or-missing-file")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read(saved)


@pytest.mark.fault("extra-or-missing-file")
@pytest.mark.parametrize("extra", ["stale.npz", "sub/stale.npz", ".hidden", "link"])
def test_a_file_that_the_manifest_does_not_name_is_named(saved, extra):
    if extra == "link":
        (saved / extra).symlink_to("/etc")
    else:
        (saved / extra).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=re.escape(extra)):
        read(saved)


def test_a_link_in_the_place_of_a_file_is_refused(saved, tmp_path):
    os.rename(saved / "table.csv", tmp_path / "table.csv")
    (saved / "table.csv").symlink_to(tmp_path / "table.csv")
    with pytest.raises(ArtifactError, match="table.csv is not a regular file"):
        read(saved)


def test_a_manifest_that_is_a_link_is_refused(saved, tmp_path):
    os.rename(saved / _artifacts.MANIFEST, tmp_path / "manifest")
    (saved / _artifacts.MANIFEST).symlink_to(tmp_path / "manifest")
    with pytest.raises(ArtifactError, match="kerasim.json is a link"):
        read(saved)


def test_a_folder_in_an_artifact_that_is_a_link_is_refused(saved, tmp_path):
    os.rename(saved / "sub", tmp_path / "sub")
    (saved / "sub").symlink_to(tmp_path / "sub")
    with pytest.raises(ArtifactError, match="does not name: .*sub"):
        read(saved)


def test_a_save_leaves_the_file_that_another_name_leads_to_as_it_is(saved, tmp_path):
    os.link(saved / "table.csv", tmp_path / "other")
    save(saved, 2.0)
    assert (tmp_path / "other").read_text() == "value\n1.0\n" and read(saved) == 2.0


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize(
    "ask", [_artifacts.exists, lambda p: _artifacts.check_replaceable(p, KIND)]
)
def test_a_folder_without_permission_is_named(visible, ask):
    (visible / "closed").mkdir(mode=0o700)
    with unprivileged(), pytest.raises(ArtifactError, match="Cannot read .*closed/it: Permission"):
        ask(visible / "closed" / "it")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/../../secret"])
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(saved, name):
    reseal(saved, files={name: {"size": 1, "sha256": "0"}})
    with pytest.raises(ArtifactError, match="outside its folder"):
        read(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": ["table.csv"]},
        {"files": {"table.csv": 7}},
        {"files": {"table.csv": {"size": "ten"}}},
        {"files": {"a\0b": {"size": 1, "sha256": "0"}}},
        {"files": {"table.csv/x": {"size": 1, "sha256": "0"}}},
        {"info": 3},
        {"versions": 3},
        {"fingerprint": 3},
        {"schema": "1"},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_manifest_of_another_form_is_refused_even_under_a_good_digest(saved, changes):
    reseal(saved, **changes)
    with pytest.raises(ArtifactError):
        read(saved, fingerprint=None)


@pytest.mark.fault("deep-or-huge-manifest")
def test_a_manifest_nested_200000_deep_is_refused(saved):
    (saved / _artifacts.MANIFEST).write_text("[" * 200_000)
    with pytest.raises(ArtifactError, match="is damaged"):
        read(saved)


@pytest.mark.fault("deep-or-huge-manifest")
def test_a_huge_manifest_is_refused_unparsed(saved):
    with open(saved / _artifacts.MANIFEST, "ab") as file:
        file.truncate(2**30)
    with pytest.raises(ArtifactError, match="is larger than"):
        read(saved)


def test_an_artifact_whose_manifest_is_damaged_is_not_replaced(saved):
    (saved / _artifacts.MANIFEST).write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="remove it and save again"):
        save(saved, 2.0)


@pytest.mark.fault("random-damage")
@pytest.mark.parametrize("name", [*FILES, _artifacts.MANIFEST])
def test_100_mutants_of_a_file_read_the_same_or_raise_a_kerasim_error(saved, name):
    rng, file = random.Random(1), saved / name
    whole = file.read_bytes()
    for _ in range(100):
        file.write_bytes(mutate(rng, whole))
        try:
            assert read(saved) == 1.0
        except KerasimError:
            pass


@pytest.mark.fault("random-damage")
def test_300_mutants_of_an_npz_give_the_same_arrays_or_raise_a_kerasim_error(tmp_path):
    rng, file = random.Random(2), tmp_path / "arrays.npz"
    np.savez_compressed(file, x=np.arange(50), y=np.eye(4, dtype="float32"))
    whole = file.read_bytes()
    for _ in range(300):
        file.write_bytes(mutate(rng, whole))
        try:
            arrays = _artifacts.read_arrays(file, ("x", "y"))
        except KerasimError:
            continue
        np.testing.assert_array_equal(arrays["x"], np.arange(50))
        np.testing.assert_array_equal(arrays["y"], np.eye(4))


@pytest.mark.fault("random-damage")
def test_300_mutants_of_a_manifest_under_a_good_digest_raise_a_kerasim_error_or_nothing(saved):
    rng, file = random.Random(3), saved / _artifacts.MANIFEST
    whole = file.read_bytes()
    odd = [None, True, -1, 10**30, 1.5, float("nan"), "", "x", [], [[]], {}, {"size": 1}]
    for _ in range(300):
        body = json.loads(whole)
        del body["manifest_sha256"]
        place = rng.choice([body, body["files"], rng.choice(list(body["files"].values()))])
        key = rng.choice([*place, "new"])
        if rng.random() < 0.2:
            place.pop(key, None)
        else:
            place[key] = rng.choice(odd)
        file.write_text(json.dumps({**body, "manifest_sha256": _artifacts._digest(body)}))
        try:
            assert _artifacts.read(saved, KIND, lambda folder, manifest: "loaded") == "loaded"
        except KerasimError:
            pass


# Versions and fingerprints


@pytest.mark.fault("newer-version")
def test_a_newer_schema_names_both_versions_and_says_upgrade(saved):
    reseal(saved, schema=2, versions={"kerasim": "9.8.7"}, more="fields")
    wanted = rf"schema 2, written by kerasim 9\.8\.7; kerasim {_artifacts.__version__} .*Upgrade"
    with pytest.raises(ArtifactError, match=wanted):
        read(saved)


@pytest.mark.fault("newer-version")
def test_an_artifact_that_fails_to_load_names_the_versions_that_wrote_it(saved):
    def load(folder, manifest):
        raise ZeroDivisionError("no such layer")

    with pytest.raises(ArtifactError, match=r"no such layer.*kerasim .*keras .*numpy"):
        _artifacts.read(saved, KIND, load)


def test_another_kind_is_refused(saved):
    with pytest.raises(ArtifactError, match="holds a numbers, not a diary"):
        _artifacts.read(saved, "diary", load_value)


@pytest.mark.fault("index-of-another-embedder")
@pytest.mark.parametrize("fingerprint", [None, "a" * 64])
def test_the_artifact_of_another_embedder_is_refused(tmp_path, fingerprint):
    path = save(tmp_path / "saved", fingerprint=fingerprint)
    with pytest.raises(ArtifactError, match="another embedder.*expected bbbbbbbbbbbb"):
        read(path, fingerprint="b" * 64)


def test_the_artifact_of_this_embedder_is_read(tmp_path):
    path = save(tmp_path / "saved", fingerprint="b" * 64)
    assert read(path, fingerprint="b" * 64) == 1.0


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


def embedder(keras, scale=2.0, activation="relu", name=None):
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Rescaling(scale),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation=activation, kernel_initializer="ones", name=name),
            keras.layers.BatchNormalization(),
        ]
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # TensorFlow's
def test_a_fingerprint_survives_saving_and_loading(keras, tmp_path):
    model = embedder(keras)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert _model_identity.fingerprint(loaded) == _model_identity.fingerprint(model)


def test_a_fingerprint_does_not_depend_on_the_dtype_policy_of_the_process(keras, tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy(before)
    assert _model_identity.fingerprint(loaded) == _model_identity.fingerprint(model)


def test_a_fingerprint_does_not_depend_on_a_loss_that_keras_cannot_save(keras):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    before = _model_identity.fingerprint(model)
    model.compile("sgd", functools.partial(keras.losses.mean_squared_error))
    assert _model_identity.fingerprint(model) == before
    assert model.get_config() and "get_compile_config" not in vars(model)


def test_a_fingerprint_does_not_depend_on_which_layers_are_frozen(keras):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(2), layers.BatchNormalization()])
    model = keras.Sequential([inner, layers.Dense(2)])
    before = _model_identity.fingerprint(model), _model_identity.architecture(model)
    inner.trainable = False
    assert _model_identity.fingerprint(model) == before[0]
    assert _model_identity.architecture(model) != before[1]


def test_a_model_that_keras_cannot_describe_is_refused(keras):
    class Own(keras.Model):
        def __init__(self, function):
            super().__init__()
            self.function = function

    with pytest.raises(
        ArgumentError, match="configuration of Own is not complete: .* Define get_config"
    ):
        _model_identity.fingerprint(Own(lambda x: x))


def test_a_fingerprint_does_not_depend_on_how_keras_counts_names(keras):
    assert _model_identity.fingerprint(embedder(keras)) == _model_identity.fingerprint(
        embedder(keras)
    )


@pytest.mark.fault("index-of-another-embedder")
def test_a_fingerprint_changes_with_a_weight(keras):
    model = embedder(keras)
    before = _model_identity.fingerprint(model)
    kernel = model.weights[0]
    kernel.assign(kernel.numpy() + np.eye(16, 3, dtype="float32") * 1e-6)
    assert _model_identity.fingerprint(model) != before


@pytest.mark.fault("index-of-another-embedder")
def test_a_fingerprint_changes_with_a_moving_average(keras):
    model = embedder(keras)
    before = _model_identity.fingerprint(model)
    model.layers[-1].moving_mean.assign([0.0, 0.0, 1e-6])
    assert _model_identity.fingerprint(model) != before


@pytest.mark.fault("index-of-another-embedder")
@pytest.mark.parametrize("other", [{"scale": 2.5}, {"activation": "tanh"}], ids=str)
def test_a_fingerprint_changes_with_a_setting_that_no_weight_shows(keras, other):
    assert _model_identity.fingerprint(embedder(keras, **other)) != _model_identity.fingerprint(
        embedder(keras)
    )


@pytest.mark.fault("index-of-another-embedder")
def test_a_fingerprint_changes_with_the_size_of_the_images_where_no_weight_does(keras):
    models = []
    for size in (8, 9):
        images = keras.Input((size, size, 1))
        x = keras.layers.Conv2D(2, 3, kernel_initializer="ones")(images)
        models.append(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x)))
    assert _model_identity.fingerprint(models[0]) != _model_identity.fingerprint(models[1])


# The parts of generated networks: a layer, its settings, and others that give other vectors.
MENU = {
    "Activation": [("relu",), ("sigmoid",), ("tanh",)],
    "Conv2D": [(2, 3), (3, 3), (2, 1)],
    "MaxPooling2D": [(2, 1, "same"), (2, 1, "valid"), (3, 1, "same")],
    "AveragePooling2D": [(2, 1, "same"), (2, 1, "valid")],
    "Rescaling": [(2.0,), (0.5,), (2.0, 1.0)],
    "Resizing": [(6, 6, "bilinear"), (6, 6, "nearest"), (5, 6, "bilinear")],
    "LeakyReLU": [(0.1,), (0.2,)],
    "Dropout": [(0.1,), (0.2,)],
}
PARTS = [(kind, n) for kind, settings in MENU.items() for n in range(len(settings))]
# Names that read like settings of the layers, and others.
NAMES = ["relu", "sigmoid", "same", "valid", "bilinear", "nearest", "float32", "channels_last", "x"]


def network(keras, parts, names, functional=True, skip=False, dtype=None):
    """Builds a network of parts of `MENU`, whose layers are named in the order of `names`."""
    keras.utils.set_random_seed(0)
    names = [f"{names[n % len(names)]}{'_' * (n // len(names))}" for n in range(len(parts) + 1)]
    built = []
    for (kind, n), name in zip(parts, names, strict=False):
        settings = {"kernel_initializer": "ones"} if kind == "Conv2D" else {}
        layer = getattr(keras.layers, kind)
        built.append(layer(*MENU[kind][n], name=name, dtype=dtype, **settings))
    images = keras.Input((8, 8, 3), name=names[-1])
    if not functional:
        return keras.Sequential([images, *built, keras.layers.Flatten()])
    x = images
    for layer in built:
        y = layer(x)
        x = keras.layers.Concatenate()([y, y if skip else 2 * y])
    return keras.Model(images, keras.layers.Flatten()(x))


def generated(seed):
    """Returns a random generator, parts of a network, and whether it is a functional model."""
    rng = random.Random(seed)
    return rng, rng.choices(PARTS, k=rng.randrange(1, 4)), rng.random() < 0.5


def shuffled(rng):
    return rng.sample(NAMES, len(NAMES))


@pytest.mark.fault("index-of-another-embedder")
@pytest.mark.parametrize("seed", range(20))
def test_an_architecture_that_is_built_twice_has_one_fingerprint_whatever_its_names(keras, seed):
    rng, parts, functional = generated(seed)
    one, other = (network(keras, parts, shuffled(rng), functional) for _ in range(2))
    assert _model_identity.fingerprint(one) == _model_identity.fingerprint(other)


@pytest.mark.fault("index-of-another-embedder")
@pytest.mark.parametrize("seed", range(20))
def test_a_generated_network_with_another_setting_has_another_fingerprint(keras, seed):
    rng, parts, functional = generated(seed)
    changed, which, names = [*parts], rng.randrange(len(parts)), shuffled(rng)
    kind, n = parts[which]
    changed[which] = kind, (n + rng.randrange(1, len(MENU[kind]))) % len(MENU[kind])
    one, other = (network(keras, each, names, functional) for each in (parts, changed))
    assert _model_identity.fingerprint(one) != _model_identity.fingerprint(other)


@pytest.mark.fault("index-of-another-embedder")
@pytest.mark.parametrize("seed", range(10))
def test_generated_networks_of_other_topologies_have_other_fingerprints(keras, seed):
    rng, parts, functional = generated(seed)
    names = shuffled(rng)
    variants = [
        network(keras, parts, names, functional),
        network(keras, [*parts, rng.choice(PARTS)], names, functional),
        network(keras, parts, names, not functional),
        network(keras, parts, names, skip=True),
        network(keras, parts, names, functional, dtype="float16"),
    ]
    assert len(set(map(_model_identity.fingerprint, variants))) == len(variants)


@pytest.mark.parametrize("seed", range(10))
def test_a_fingerprint_survives_a_fresh_build_from_the_saved_configuration(keras, seed):
    rng, parts, functional = generated(seed)
    model = network(keras, parts, shuffled(rng), functional)
    model.compile("adam", "mse")
    again = keras.models.model_from_json(model.to_json())
    again.set_weights(model.get_weights())
    assert _model_identity.fingerprint(again) == _model_identity.fingerprint(model)


@pytest.mark.fault("index-of-another-embedder")
@pytest.mark.parametrize("seed", range(10))
def test_a_generated_network_with_another_weight_has_another_fingerprint(keras, seed):
    rng, parts, functional = generated(seed)
    model = network(keras, [*parts, ("Conv2D", 0)], shuffled(rng), functional)
    before = _model_identity.fingerprint(model)
    weights = model.get_weights()
    which = rng.randrange(len(weights))
    place = rng.randrange(weights[which].size)
    weights[which].flat[place] = np.nextafter(weights[which].flat[place], np.float32(9))
    model.set_weights(weights)
    assert _model_identity.fingerprint(model) != before


@pytest.mark.fault("index-of-another-embedder")
def test_layers_that_are_wired_otherwise_have_another_fingerprint(keras):
    def wired(first):
        images = keras.Input((4, 4, 1))
        one, other = keras.layers.ReLU(), keras.layers.Activation("tanh")
        left, right = one(images), other(images)
        return keras.Model(images, left - right if first else right - left)

    assert _model_identity.fingerprint(wired(True)) != _model_identity.fingerprint(wired(False))


@pytest.mark.fault("index-of-another-embedder")
def test_an_inner_model_is_known_by_what_it_does_and_not_by_its_name_or_its_training(keras):
    def outer(kind, name, optimizer):
        inner = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Activation(kind, name=kind)])
        inner.compile(optimizer, "mse")
        inner.name = name
        return keras.Sequential([keras.Input((4, 4, 1)), inner, keras.layers.Flatten()])

    one = _model_identity.fingerprint(outer("relu", "a", "adam"))
    assert _model_identity.fingerprint(outer("relu", "b", "sgd")) == one
    assert _model_identity.fingerprint(outer("tanh", "a", "adam")) != one


# Paths


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize("way", ["missing", "a file", "no manifest", "FIFO", "too long"])
def test_a_path_with_no_artifact_is_named(tmp_path, way):
    path = tmp_path / ("n" * 300 if way == "too long" else "it")
    if way == "a file":
        path.write_bytes(b"x")
    elif way == "no manifest":
        path.mkdir()
    elif way == "FIFO":
        os.mkfifo(path)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        read(path)


@pytest.mark.fault("unusable-path")
def test_a_fifo_in_the_place_of_the_manifest_is_refused_unopened(saved):
    (saved / _artifacts.MANIFEST).unlink()
    os.mkfifo(saved / _artifacts.MANIFEST)
    with pytest.raises(ArtifactError, match="not a regular file"):
        read(saved)


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize("way", [read, save])
def test_a_value_that_is_not_a_path_is_named(way):
    with pytest.raises(ArgumentTypeError, match="path is None, of type NoneType: pass a path"):
        way(None)
    with pytest.raises(ArgumentError, match="path='' is not a path"):
        way("")
    with pytest.raises(ArgumentError, match="is not a path"):
        way("a\0b")


@pytest.mark.fault("unusable-path")
def test_an_artifact_that_may_not_be_read_is_named(saved):
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    saved.chmod(0)
    try:
        with pytest.raises(ArtifactError, match=f"{saved}.*permissions"):
            read(saved)
    finally:
        saved.chmod(0o700)


@pytest.mark.fault("unusable-path")
def test_a_file_that_the_system_will_not_open_is_named(saved, monkeypatch):
    def refuse(path, size=None):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(_artifacts, "_describe", refuse)
    with pytest.raises(ArtifactError, match=f"{saved}.*Permission denied.*permissions"):
        read(saved)


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize("place", ["file/it", "/proc/nowhere/it"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_bytes(b"x")
    path = tmp_path / place
    for write in (save, lambda path: _artifacts.write_file(path, b"x")):
        with pytest.raises(ArtifactError, match=re.escape(str(path))):
            write(path)


def test_the_root_folder_is_not_replaced():
    with pytest.raises(ArtifactError):
        save("/")


# Single files


def test_a_single_file_is_replaced_whole(tmp_path):
    _artifacts.write_file(tmp_path / "new" / "table.csv", b"old")
    _artifacts.write_file(tmp_path / "new" / "table.csv", b"new")
    assert contents(tmp_path) == {"new/table.csv": b"new"}


def test_a_folder_is_not_replaced_by_a_single_file(saved):
    with pytest.raises(ArtifactError, match=re.escape(str(saved))):
        _artifacts.write_file(saved, b"x")
    assert read(saved) == 1.0 and os.listdir(saved.parent) == ["saved"]


# Permissions


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_is_new_has_the_permissions_that_the_user_wants_for_new_files(tmp_path, umask):
    save(tmp_path / "saved")
    _artifacts.write_file(tmp_path / "page.html", b"x")
    for path in tmp_path.rglob("*"):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask


@pytest.mark.parametrize("wanted", [0o700, 0o750, 0o755, 0o500, 0o777], ids=oct)
def test_a_folder_that_is_replaced_keeps_its_permissions(saved, swap, wanted):
    saved.chmod(wanted)
    for _ in range(2):
        save(saved, 2.0)
    assert mode(saved) == wanted
    assert os.listdir(saved.parent) == ["saved"]
    saved.chmod(0o700)


@pytest.mark.parametrize("wanted", [0o600, 0o640, 0o400, 0o666], ids=oct)
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, wanted):
    path = _artifacts.write_file(tmp_path / "page.html", b"x")
    path.chmod(wanted)
    _artifacts.write_file(path, b"y")
    assert mode(path) == wanted and path.read_bytes() == b"y"


def test_files_of_a_folder_keep_their_permissions_and_new_ones_take_those_of_the_manifest(saved):
    (saved / "table.csv").chmod(0o640)
    (saved / _artifacts.MANIFEST).chmod(0o600)
    (saved / "sub").chmod(0o700)

    def fill(folder):
        fill_with(2.0)(folder)
        (folder / "new").write_bytes(b"x")
        (folder / "more").mkdir()

    _artifacts.write(saved, KIND, fill, info={"value": 2.0})
    modes = {"table.csv": 0o640, "new": 0o600, _artifacts.MANIFEST: 0o600, "sub": 0o700}
    assert {name: mode(saved / name) for name in modes} == modes
    assert mode(saved / "more") == mode(saved)


@pytest.mark.parametrize("write", [save, lambda path: _artifacts.write_file(path, b"x")])
def test_what_replaces_something_is_private_until_it_is_in_its_place(tmp_path, monkeypatch, write):
    path = write(tmp_path / "it")
    path.chmod(0o700 if path.is_dir() else 0o600)
    seen, real = [], _artifacts._keep_permissions
    monkeypatch.setattr(
        _artifacts, "_keep_permissions", lambda new, old: (seen.append(mode(new)), real(new, old))
    )
    write(path)
    assert seen == [0o700 if path.is_dir() else 0o600]


def test_group_and_owner_are_kept_where_the_system_allows_it(saved):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (saved, saved / "table.csv"):
        os.chown(path, 12345, 23456)
    save(saved, 2.0)
    for path in (saved, saved / "table.csv"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_another_group_gets_no_more_than_others_have(saved, monkeypatch):
    saved.chmod(0o770)
    (saved / "table.csv").chmod(0o664)
    status = os.lstat(saved)
    other = os.stat_result([*status[:5], status.st_gid + 1, *status[6:10]])

    def chown(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    _artifacts._copy_permissions(saved, other)
    assert mode(saved) == 0o700


@pytest.mark.fault("power-failure")
def test_folders_that_a_save_makes_are_synced_with_their_parents(tmp_path, monkeypatch):
    synced, real = set(), _artifacts._sync
    monkeypatch.setattr(_artifacts, "_sync", lambda path: (synced.add(Path(path)), real(path)))
    save(tmp_path / "new" / "deeper" / "saved")
    assert {tmp_path, tmp_path / "new", tmp_path / "new" / "deeper"} <= synced


def test_a_save_that_fails_leaves_no_folders_that_it_made(tmp_path):
    def fill(folder):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _artifacts.write(tmp_path / "new" / "deeper" / "saved", KIND, fill)
    assert os.listdir(tmp_path) == []


# Calls that fail


def fail_at(monkeypatch, name, turn):
    """Makes the `turn`-th call of `os.<name>` fail for want of space, and counts the calls."""
    real, calls = getattr(os, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == turn:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return calls


# A save syncs three files, a manifest and two folders, then the folder that they lie in.
STEPS = [("fsync", n) for n in range(1, 7)] + [("mkdir", 1), ("mkdir", 2)]


@pytest.mark.fault("failing-write")
@pytest.mark.parametrize(("name", "turn"), STEPS)
def test_the_old_stays_and_nothing_is_left_when_a_call_fails(saved, monkeypatch, name, turn, swap):
    before = contents(saved.parent)
    with monkeypatch.context() as patch:
        calls = fail_at(patch, name, turn)
        with pytest.raises(ArtifactError, match=f"{saved}.*No space left.*unchanged"):
            save(saved, 2.0)
        assert len(calls) >= turn
    assert contents(saved.parent) == before


@pytest.mark.fault("failing-write")
@pytest.mark.parametrize("turn", [1, 2])
def test_the_old_stays_when_a_rename_of_the_swap_fails(saved, monkeypatch, turn):
    monkeypatch.setattr(_artifacts, "_exchange", lambda one, other: False)
    before = contents(saved.parent)
    with monkeypatch.context() as patch:
        fail_at(patch, "rename", turn)
        with pytest.raises(ArtifactError, match=f"{saved}.*No space left.*unchanged"):
            save(saved, 2.0)
    assert contents(saved.parent) == before


@pytest.mark.parametrize("code", [None, errno.EINVAL])
def test_a_system_that_cannot_exchange_two_names_renames_twice(saved, monkeypatch, code):
    def renameat2(*_):
        ctypes.set_errno(code)
        return -1

    library = SimpleNamespace(**{} if code is None else {"renameat2": renameat2})
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    save(saved, 2.0)
    assert read(saved) == 2.0 and os.listdir(saved.parent) == ["saved"]


def test_what_the_system_says_of_a_failed_exchange_is_passed_on(saved, monkeypatch):
    def renameat2(*_):
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(renameat2=renameat2))
    with pytest.raises(ArtifactError, match=f"{saved}.*Input/output error.*unchanged"):
        save(saved, 2.0)
    assert read(saved) == 1.0


@pytest.mark.fault("failing-write")
def test_the_old_stays_when_the_exchange_fails(saved, monkeypatch):
    def refuse(one, other):
        raise OSError(5, "Input/output error", str(other))

    before = contents(saved.parent)
    monkeypatch.setattr(_artifacts, "_exchange", refuse)
    with pytest.raises(ArtifactError, match=f"{saved}.*Input/output error.*unchanged"):
        save(saved, 2.0)
    assert contents(saved.parent) == before


@pytest.mark.fault("failing-write")
def test_the_new_is_whole_and_not_called_unchanged_when_only_the_last_sync_fails(
    saved, monkeypatch, swap
):
    with monkeypatch.context() as patch:
        fail_at(patch, "fsync", 7)
        with pytest.raises(ArtifactError, match=f"{saved} was written, but"):
            save(saved, 2.0)
    assert read(saved) == 2.0 and os.listdir(saved.parent) == ["saved"]


@pytest.mark.fault("failing-write")
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_an_old_single_file_stays_when_a_call_fails(tmp_path, monkeypatch, name):
    path = _artifacts.write_file(tmp_path / "table.csv", b"old")
    fail_at(monkeypatch, name, 1)
    with pytest.raises(ArtifactError, match=f"{path}.*No space left.*unchanged"):
        _artifacts.write_file(path, b"new")
    assert contents(tmp_path) == {"table.csv": b"old"}


@pytest.mark.fault("full-disk")
def test_a_full_disk_keeps_the_old_and_says_how_much_was_written(saved):
    """A limit on the size of files stands in for the disk."""
    before = contents(saved.parent)
    code = f"""
import resource, signal
from kerasim import _artifacts
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    _artifacts.write({str(saved)!r}, "numbers", lambda f: (f / "x").write_bytes(bytes(10**6)))
except _artifacts.ArtifactError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert re.search(f"{saved}.*File too large.*5000 bytes written", said), said
    assert contents(saved.parent) == before


@pytest.mark.fault("power-failure")
def test_files_are_synced_then_swapped_in_then_their_folder_is_synced(saved, monkeypatch, swap):
    calls = []
    real_sync, real_exchange, real_rename = _artifacts._sync, _artifacts._exchange, os.rename

    def log(kind, real):
        def call(*args):
            calls.append((kind, *map(str, args)))
            return real(*args)

        return call

    monkeypatch.setattr(_artifacts, "_sync", log("sync", real_sync))
    monkeypatch.setattr(_artifacts, "_exchange", log("swap", real_exchange))
    monkeypatch.setattr(os, "rename", log("rename", real_rename))
    save(saved, 2.0)
    temporary = next(args[1] for args in calls if args[0] == "swap")
    synced = {os.path.normpath(args[1]) for args in calls[: len(FILES) + 3]}
    wanted = {f"{temporary}/{name}" for name in (*FILES, _artifacts.MANIFEST, "sub")}
    assert synced == {temporary, *wanted}
    assert [args[0] for args in calls[len(FILES) + 3 :]][0] == "swap"
    assert calls[-1] == ("sync", str(saved.parent))


# A writer that died


DYING = """
import os, sys
from kerasim import _artifacts

def fill(folder):
    (folder / "half").write_bytes(b"x")
    os._exit(9)  # as a kill ends it, which the first process of a namespace ignores

_artifacts.write(sys.argv[1], "numbers", fill)
"""


def strays(folder):
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


@pytest.mark.fault("stale-temporary-files")
def test_what_a_killed_save_leaves_is_removed_by_the_next_save(saved):
    for _ in range(2):
        subprocess.run([sys.executable, "-c", DYING, saved])
        assert len(strays(saved.parent)) == 1
    save(saved, 2.0)
    assert read(saved) == 2.0 and os.listdir(saved.parent) == ["saved"]


@pytest.mark.fault("stale-temporary-files")
def test_what_a_killed_save_leaves_is_removed_where_each_program_has_the_same_number(saved):
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", sys.executable, "-c"]
    if subprocess.run([*alone, ""], capture_output=True).returncode:
        pytest.skip("this system does not let us make a process namespace")
    subprocess.run([*alone, DYING, saved])
    assert len(strays(saved.parent)) == 1
    code = (
        "import sys; from kerasim import _artifacts; "
        "_artifacts.write(sys.argv[1], 'numbers', print)"
    )
    subprocess.run([*alone, code, saved], check=True, capture_output=True)
    assert os.listdir(saved.parent) == ["saved"]


@pytest.mark.fault("stale-temporary-files", "concurrent-writers")
def test_what_another_save_is_writing_is_left_alone(saved):
    def fill(folder):
        (folder / "mine").write_bytes(b"x")
        save(saved, 2.0)  # sweeps
        assert (folder / "mine").exists()

    _artifacts.write(saved, KIND, fill)
    assert sorted(os.listdir(saved)) == ["kerasim.json", "mine"]


@pytest.mark.fault("stale-temporary-files")
def test_only_temporaries_of_the_name_that_is_saved_are_removed(saved):
    kept = [".saved.0123abcd.tmp", ".other.0123456789abcdef.tmp", ".saved.0123456789abcdef.tmp2"]
    for name in kept:
        (saved.parent / name).mkdir()
    (saved.parent / ".saved.0123456789abcdef.tmp").mkdir()
    (saved.parent / ".saved.aaaaaaaaaaaaaaaa.tmp").write_bytes(b"x")
    (saved.parent / ".saved.bbbbbbbbbbbbbbbb.tmp").symlink_to(saved)
    save(saved, 2.0)
    assert sorted(os.listdir(saved.parent)) == sorted(
        [*kept, ".saved.bbbbbbbbbbbbbbbb.tmp", "saved"]
    )
    assert read(saved) == 2.0


def test_a_temporary_that_is_swept_before_it_is_locked_is_made_again(saved, monkeypatch):
    real, swept = _artifacts._hold, []

    def hold(descriptor, path):
        if not swept:
            swept.append(path)
            path.rmdir()
        return real(descriptor, path)

    monkeypatch.setattr(_artifacts, "_hold", hold)
    save(saved, 2.0)
    assert swept and read(saved) == 2.0


def test_a_file_system_without_locks_is_written_and_not_swept(saved, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    (saved.parent / ".saved.0123456789abcdef.tmp").mkdir()
    monkeypatch.setattr(_artifacts.fcntl, "flock", flock)
    save(saved, 2.0)
    assert read(saved) == 2.0 and strays(saved.parent) == [".saved.0123456789abcdef.tmp"]
    with pytest.raises(ArtifactError, match="No locks available"):
        with _artifacts.lock(saved.parent / ".lock"):
            pass


def die_in_swap(monkeypatch, saved, turn):
    """Saves 2.0 over `saved` and stops, as a kill would, before the `turn`-th rename."""

    class Killed(BaseException):
        pass

    real, calls = os.rename, []

    def rename(*args):
        calls.append(args)
        if len(calls) == turn:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_artifacts, "_exchange", lambda one, other: False)
        patch.setattr(os, "rename", rename)
        patch.setattr(_artifacts.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            save(saved, 2.0)


@pytest.mark.fault("killed-save", "killed-export")
@pytest.mark.parametrize(("turn", "left"), [(1, 1.0), (2, 1.0), (3, 2.0)])
def test_a_writer_killed_between_two_renames_leaves_old_or_new(saved, monkeypatch, turn, left):
    die_in_swap(monkeypatch, saved, turn)
    assert _artifacts.exists(saved) and read(saved) == left


@pytest.mark.fault("killed-export")
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_the_save_after_a_kill_between_two_renames_cleans_up(saved, monkeypatch, turn, swap):
    die_in_swap(monkeypatch, saved, turn)
    save(saved, 3.0)
    assert read(saved) == 3.0
    assert not (saved.parent / ".saved.old").exists()


SAVER = """
import sys
import numpy as np
from kerasim import _artifacts

path, value = sys.argv[1], int(sys.argv[2])
if sys.argv[3] == "fallback":
    _artifacts._exchange = lambda one, other: False

def fill(folder):
    np.savez(folder / "arrays.npz", x=np.full(50, value))
    (folder / "table.csv").write_text(f"value\\n{value}\\n")
    (folder / "sub").mkdir()
    np.save(folder / "sub" / "codes.npy", np.full(50, value, dtype="float32"))

while True:
    value += 1
    _artifacts.write(path, "numbers", fill, info={"value": value})
    print(value, flush=True)
"""


def start_saver(path, value, way):
    """Starts a process that saves `value + 1`, `value + 2`, ... back to back."""
    command = [sys.executable, "-c", SAVER, str(path), str(int(value)), way]
    saver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    saver.stdout.readline()  # it has saved once
    return saver


@pytest.mark.fault("killed-save", "killed-export")
@pytest.mark.parametrize("way", ["exchange", "fallback"])
def test_10_of_10_kills_while_saving_leave_the_old_or_the_new_whole(tmp_path, way):
    path, rng, value = tmp_path / "saved", random.Random(4), 0
    for _ in range(10):
        saver = start_saver(path, value, way)
        time.sleep(rng.uniform(0, 0.05))
        saver.send_signal(signal.SIGKILL)
        finished = saver.stdout.read().split()  # those that it told of
        saver.wait()
        saver.stdout.close()
        last = int(finished[-1]) if finished else value + 1
        value = read(path)
        assert value in (last, last + 1, last + 2)
    save(path, 0.0)
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.fault("concurrent-writers")
@pytest.mark.parametrize("way", ["exchange", "fallback"])
def test_300_of_300_reads_succeed_untorn_while_a_writer_rewrites(tmp_path, way):
    saver = start_saver(tmp_path / "saved", 0, way)
    drain = threading.Thread(target=saver.stdout.read)
    drain.start()
    try:
        values = [read(tmp_path / "saved") for _ in range(300)]
    finally:
        saver.kill()
        saver.wait()
        drain.join()
        saver.stdout.close()
    assert values == sorted(values) and len(set(values)) > 1


def test_an_artifact_replaced_without_end_is_given_up_with_a_reason(saved):
    def load(folder, manifest):
        save(saved, 2.0)

    with pytest.raises(ArtifactError, match="was replaced 20 times"):
        _artifacts.read(saved, KIND, load)


def test_an_artifact_replaced_by_an_equal_one_while_it_is_read_is_read_again(saved):
    turns = []

    def load(folder, manifest):
        turns.append(1)
        if len(turns) == 1:
            save(saved, 1.0)
            raise FileNotFoundError("as if a file had gone with the old folder")
        return load_value(folder, manifest)

    assert _artifacts.read(saved, KIND, load) == 1.0 and len(turns) == 2


# The lock


@pytest.mark.fault("concurrent-writers")
def test_a_second_holder_is_refused_with_the_process_that_holds_it_and_freed_by_its_death(
    tmp_path,
):
    code = f"""
import time
from kerasim import _artifacts
with _artifacts.lock({str(tmp_path / ".lock")!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match=f"{tmp_path} is in use by process {holder.pid}\\."):
            with _artifacts.lock(tmp_path / ".lock"):
                pass
        holder.kill()
    with _artifacts.lock(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_nothing_is_left_of_a_lock_nor_of_the_folders_that_were_made_for_it(tmp_path):
    with _artifacts.lock(tmp_path / "new" / "folder" / ".lock"):
        assert (tmp_path / "new" / "folder" / ".lock").exists()
    assert os.listdir(tmp_path) == []


def test_a_lock_file_that_its_holder_removed_after_it_was_opened_is_created_again(
    tmp_path, monkeypatch
):
    path, real, turns = tmp_path / ".lock", _artifacts.fcntl.flock, []

    def flock(descriptor, how):
        if not turns:
            turns.append(descriptor)
            path.unlink()  # as a holder does that releases the lock at this moment
        return real(descriptor, how)

    monkeypatch.setattr(_artifacts.fcntl, "flock", flock)
    with _artifacts.lock(path):
        assert path.read_text() == str(os.getpid())
        with pytest.raises(ArtifactError, match="is in use by process"):
            with _artifacts.lock(path):
                pass
    assert turns and not path.exists()


def test_a_lock_that_another_process_has_replaced_is_not_removed(tmp_path):
    with _artifacts.lock(tmp_path / ".lock"):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").write_text("another")
    assert (tmp_path / ".lock").read_text() == "another"


def test_one_of_many_holders_at_a_time_has_a_lock(tmp_path):
    count, most = [0], []

    def work():
        for _ in range(50):
            try:
                with _artifacts.lock(tmp_path / ".lock"):
                    count[0] += 1
                    most.append(count[0])
                    time.sleep(0)
                    count[0] -= 1
            except ArtifactError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and os.listdir(tmp_path) == []


def test_a_lock_is_free_after_its_block_even_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), _artifacts.lock(tmp_path / ".lock"):
            raise ZeroDivisionError


@pytest.mark.fault("interrupt")
def test_a_lock_is_free_after_an_interrupt_at_any_line(tmp_path):
    kept = []  # with the frames of the call, as IPython keeps the last error
    for line in range(1, 200):
        try:
            with at_line(line), _artifacts.lock(tmp_path / ".lock"):
                pass
        except KeyboardInterrupt as error:
            kept.append(error)
        else:
            break
        with _artifacts.lock(tmp_path / ".lock"):
            pass
    assert 10 < len(kept) < 199 and os.listdir(tmp_path) == []
    with warnings.catch_warnings():  # a file that was opened but not yet locked is closed here
        warnings.simplefilter("ignore", ResourceWarning)
        kept.clear()
        gc.collect()


def test_a_lock_is_held_on_a_full_disk_too(tmp_path, monkeypatch):
    calls = fail_at(monkeypatch, "pwrite", 1)
    with _artifacts.lock(tmp_path / ".lock"):
        with pytest.raises(ArtifactError, match="in use by process unknown"):
            with _artifacts.lock(tmp_path / ".lock"):
                pass
    assert calls


def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=re.escape(str(tmp_path / "file" / ".lock"))):
        with _artifacts.lock(tmp_path / "file" / ".lock"):
            pass


# Arrays


def test_arrays_are_read_by_name_or_all(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.eye(2))
    assert list(_artifacts.read_arrays(tmp_path / "a.npz", ["y"])) == ["y"]
    assert sorted(_artifacts.read_arrays(tmp_path / "a.npz")) == ["x", "y"]


@pytest.mark.fault("object-array")
def test_an_object_array_is_refused_with_file_and_key_and_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "canary",))

    file = tmp_path / "a.npz"
    np.savez(file, x=np.arange(3), evil=np.array([Bomb()], dtype=object))
    with pytest.raises(ArtifactError, match=f"{file}, array 'evil', .*objects"):
        _artifacts.read_arrays(file)
    assert not (tmp_path / "canary").exists()


def test_a_missing_array_is_named_with_those_expected(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    with pytest.raises(ArtifactError, match=r"a\.npz has no array 'y', expected \['x', 'y'\]"):
        _artifacts.read_arrays(tmp_path / "a.npz", ["x", "y"])


@pytest.mark.fault("truncated-file")
@pytest.mark.parametrize("cut", [0, 1, 50, 200, -1])
def test_a_truncated_npz_is_named(tmp_path, cut):
    np.savez(tmp_path / "a.npz", x=np.arange(100))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:cut])
    with pytest.raises(ArtifactError, match=r"a\.npz is damaged"):
        _artifacts.read_arrays(tmp_path / "a.npz")


def test_a_member_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"hello")
    with pytest.raises(ArtifactError, match=r"a\.npz, array 'x', is damaged"):
        _artifacts.read_arrays(tmp_path / "a.npz")


@pytest.mark.fault("archive-bomb")
def test_a_decompression_bomb_is_refused_before_it_is_inflated(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as member:
            for _ in range(260):
                member.write(bytes(10**6))
    with pytest.raises(ArtifactError, match="claims to hold 260000000 bytes: refused"):
        _artifacts.read_arrays(tmp_path / "a.npz")


def write_header(stream, shape, dtype="<f8"):
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )


@pytest.mark.fault("archive-bomb")
@pytest.mark.parametrize("shape", [(), (1,), (3,), (10**14,), (10**10, 10**10)], ids=str)
def test_an_array_whose_header_does_not_fit_its_file_is_refused(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        with archive.open("x.npy", "w") as member:
            write_header(member, shape)
            member.write(bytes(16))
    with pytest.raises(ArtifactError, match="array 'x', is damaged .*claims"):
        _artifacts.read_arrays(tmp_path / "a.npz")
    with open(tmp_path / "a.npy", "wb") as file:
        write_header(file, shape)
        file.write(bytes(16))
    with pytest.raises(ArtifactError, match="a.npy is damaged .*claims"):
        _artifacts.read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", ["f4", "<f8", ">i4", "u1", "?", "c8", "U3"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_an_array_is_read_as_it_was_saved(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=np.asfortranarray(array))
    for found in (
        _artifacts.read_array(tmp_path / "a.npy"),
        _artifacts.read_arrays(tmp_path / "a.npz")["x"],
    ):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


@pytest.mark.fault("object-array")
def test_a_single_array_of_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([object], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="a.npy is damaged or holds objects"):
        _artifacts.read_array(tmp_path / "a.npy")


@pytest.mark.fault("archive-bomb")
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_in_a_compression_without_bounds_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("x.npy", b"x")
    with pytest.raises(ArtifactError, match="'x.npy' in compression method"):
        _artifacts.read_arrays(tmp_path / "a.npz")


@pytest.mark.fault("archive-bomb")
def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        with archive.open("x.npy", "w") as member:
            header = {"descr": "<f8", "fortran_order": False, "shape": (10**14,)}
            np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(ArtifactError, match="array 'x', is damaged"):
        _artifacts.read_arrays(tmp_path / "a.npz")


@pytest.mark.fault("unusable-path")
@pytest.mark.parametrize("way", ["missing", "a folder", "FIFO", "loop"])
def test_a_path_that_is_not_a_file_is_named(tmp_path, way):
    path = tmp_path / "a.npz"
    if way == "a folder":
        path.mkdir()
    elif way == "FIFO":
        os.mkfifo(path)
    elif way == "loop":
        path.symlink_to(path)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        _artifacts.read_arrays(path)


def test_a_file_in_a_folder_that_vanishes_is_an_error(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    real = _artifacts._remove_stale

    def vanishes(path):
        real(path)
        folder.rmdir()

    monkeypatch.setattr(_artifacts, "_remove_stale", vanishes)
    with pytest.raises(ArtifactError, match="folder"):
        _artifacts.write_file(folder / "page.html", b"x")
