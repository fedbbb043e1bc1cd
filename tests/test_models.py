import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from kerasim import models
from kerasim.errors import ArgumentError
from kerasim.models import _blocks
from tests.helpers.builders import BUILDERS, IMAGE_SHAPE, inputs_of


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def test_every_builder_is_tested():
    others = {"dtype_policy", "log_likelihood_bound", "set_trainable"}
    assert {*BUILDERS, *others} == set(models.__all__)


# A head is small and computes in float32 under every policy.
@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {"whitened_head"}))
def test_under_mixed_precision_the_output_is_not_rounded_to_that_precision(name, mixed_precision):
    keras.utils.set_random_seed(0)
    model = BUILDERS[name]()
    layers = model._flatten_layers(include_self=False)
    assert "bfloat16" in {layer.compute_dtype for layer in layers if layer.weights}
    for weight in model.trainable_weights:  # a denoiser would return its input
        weight.assign(weight * 1.5 + 0.01)
    output = keras.ops.convert_to_numpy(model(inputs_of(name)))
    assert output.dtype == "float32"
    # A bfloat16 has 8 bits: the lower 16 of its float32 are zero.
    assert (output.view("uint32") & 0xFFFF).any()


CHILD = """
import sys
import keras
import numpy as np
from kerasim import layers  # of which each class is registered

for path in sys.argv[1:]:
    inputs = dict(np.load(path + ".npz"))
    inputs = inputs.get("only", inputs)
    model = keras.saving.load_model(path, safe_mode=True)
    inputs = list(inputs.values()) if "siamese" in path else inputs
    np.save(path + ".npy", model.predict(inputs, verbose=0))
"""


@pytest.mark.fault("model-in-new-process")
def test_a_fresh_process_loads_every_model_in_safe_mode(tmp_path):
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).random((4, *IMAGE_SHAPE), dtype="float32")
    expected, foreign = {}, []
    for name, build in BUILDERS.items():
        path, model, inputs = tmp_path / f"{name}.keras", build(), {"only": images}
        if name == "siamese":
            inputs = {"left": images, "right": images[::-1].copy()}
        elif name == "unet":
            inputs = {"images": images, "t": np.arange(4), "labels": np.arange(4)}
        elif name == "whitened_head":
            inputs = {"only": inputs_of(name)}
        np.savez(f"{path}.npz", **inputs)
        for weight in model.trainable_weights:  # a denoiser would return its input
            weight.assign(weight * 1.5 + 0.01)
        model.save(path)
        given = inputs.get("only", list(inputs.values()) if name == "siamese" else inputs)
        expected[path] = model.predict(given, verbose=0)
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json").decode()
        modules = set(re.findall(r'"module": "([^"]*)"', config))
        foreign += [m for m in modules if m.split(".")[0] not in ("keras", "kerasim", "builtins")]
        assert "Lambda" not in config
    assert foreign == []
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, expected)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for path, output in expected.items():
        np.testing.assert_allclose(np.load(f"{path}.npy"), output, atol=1e-5)


def test_a_size_of_numpy_becomes_one_of_python():
    shape = _blocks.check_image_shape(np.array([8, 8, 1]))
    assert shape == (8, 8, 1) and {type(n) for n in shape} == {int}


@pytest.mark.parametrize("policy", ["bogus", "", None, 5, ["float16"], "int8"])
def test_an_unknown_dtype_policy_is_refused_and_changes_nothing(policy):
    before = keras.config.dtype_policy()
    with pytest.raises(ArgumentError, match="^policy=.*is not a dtype policy"):
        models.dtype_policy(policy).__enter__()
    assert keras.config.dtype_policy() == before


@pytest.mark.parametrize(
    ("device", "capability", "amx", "policy"),
    [
        ("cpu", (), False, "float32"),
        ("cpu", (), True, "mixed_bfloat16"),
        ("tpu", (), False, "mixed_bfloat16"),
        ("gpu", (9, 0), False, "mixed_bfloat16"),
        ("gpu", (7, 5), False, "mixed_float16"),
        ("gpu", (6, 1), False, "float32"),
        ("gpu", (), True, "float32"),  # not of NVIDIA
    ],
)
def test_the_automatic_policy_is_that_of_the_first_device(
    device, capability, amx, policy, monkeypatch
):
    monkeypatch.setattr("kerasim.models._policy.first_device", lambda: (device, capability))
    monkeypatch.setattr("kerasim.models._policy._has_amx", lambda: amx)
    with models.dtype_policy("auto") as name:
        assert name == keras.config.dtype_policy().name == policy


def test_the_automatic_policy_can_be_found_on_this_machine():
    with models.dtype_policy("auto") as name:
        assert name in ("float32", "mixed_bfloat16", "mixed_float16")


def test_the_dtype_policy_of_a_block_ends_with_it_even_after_an_error():
    before = keras.config.dtype_policy()
    with pytest.raises(ZeroDivisionError), models.dtype_policy("mixed_bfloat16"):
        assert keras.layers.Dense(2).compute_dtype == "bfloat16"
        _ = 1 / 0
    assert keras.config.dtype_policy() == before
