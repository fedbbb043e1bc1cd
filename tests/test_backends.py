"""Export and distribution name the backend that cannot do them. Every backend runs these tests."""

import keras
import pytest

from kerasim import distribute, export
from kerasim.errors import DependencyError

BACKEND = keras.backend.backend()


def network():
    stack = [keras.layers.Flatten(), keras.layers.Dropout(0.5), keras.layers.Dense(16)]
    return keras.Sequential([keras.Input((4, 4, 1)), *stack, keras.layers.Reshape((4, 4, 1))])


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow exports")
@pytest.mark.parametrize("write", [export.export_saved_model, export.export_onnx])
def test_an_export_names_the_backend_and_what_to_do(write, tmp_path):
    with pytest.raises(DependencyError, match=f"runs on '{BACKEND}': .*KERAS_BACKEND=tensorflow"):
        write(network(), tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(BACKEND != "torch", reason="TensorFlow and JAX use several devices")
def test_a_strategy_names_the_backend_and_what_to_do():
    with pytest.raises(DependencyError, match="runs on 'torch': .*KERAS_BACKEND=jax"):
        distribute.strategy()


def test_the_devices_are_named_on_every_backend():
    names = distribute.device_names()
    assert names and all(name.split(":")[0] in ("cpu", "gpu", "tpu") for name in names)
    if BACKEND != "torch":
        assert names == keras.distribution.list_devices()
