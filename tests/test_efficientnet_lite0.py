"""The example that converts the published weights of EfficientNet-Lite0."""

import io
import pickle

import keras
import numpy as np
import pytest

from examples import efficientnet_lite0
from kerasim import models


class Code:
    """Runs a function when it is unpickled."""

    def __reduce__(self):
        return print, ("code of the file runs",)


@pytest.mark.fault("malicious-model")
def test_a_file_of_weights_that_holds_code_is_refused(capsys):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save({"w": Code()}, file)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        efficientnet_lite0.read_tensors(file.getvalue())
    assert capsys.readouterr().out == ""


def test_the_tensors_of_a_file_are_read():
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(3, 2).T}, file)
    found = efficientnet_lite0.read_tensors(file.getvalue())["w"]
    np.testing.assert_array_equal(found, np.arange(6.0).reshape(3, 2).T)


@pytest.fixture(scope="module")
def network():
    return efficientnet_lite0.build()


def tensors_of(model):
    """Returns random weights under the names of the PyTorch network."""
    rng, tensors = np.random.default_rng(0), {}
    for layer in filter(lambda layer: layer.weights, model.layers):
        name = efficientnet_lite0.pytorch_name(layer.name)
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            for part in ("weight", "bias", "running_mean", "running_var"):
                tensors[f"{name}.{part}"] = rng.random(size, dtype="float32")
        else:
            height, width, *channels = layer.kernel.shape
            if not isinstance(layer, keras.layers.DepthwiseConv2D):
                channels.reverse()
            shape = (*channels, height, width)
            tensors[f"{name}.weight"] = rng.random(shape, dtype="float32")
    return tensors


def test_the_network_has_as_many_weights_as_the_published_one(network):
    assert network.count_params() == 3_413_024


def test_each_layer_has_a_name_of_its_own_in_the_published_file(network):
    names = [
        efficientnet_lite0.pytorch_name(layer.name) for layer in network.layers if layer.weights
    ]
    assert len(set(names)) == len(names) == 98
    assert {"_conv_stem", "_blocks.0._bn2", "_blocks.15._depthwise_conv", "_bn1"} <= set(names)


def test_other_weights_than_the_published_ones_are_refused(network):
    efficientnet_lite0.set_weights(network, tensors_of(network))
    with pytest.raises(RuntimeError, match="The features of the converted model are"):
        efficientnet_lite0.check(network)


def test_the_network_is_a_backbone_of_an_embedder(network):
    rescaling = keras.layers.Rescaling(255 / 128, -127 / 128)
    net = models.pretrained_embedder(network, preprocess=rescaling, embedding_dim=8)
    assert net.output_shape == (None, 8)
