"""The example that converts the published weights of EfficientNet-Lite0."""

import io
import pickle
import struct

import keras
import numpy as np
import pytest

from examples import efficientnet_lite0
from kerasim import models

NUMBERS = np.arange(6, dtype="<f4")
TENSOR = (  # the pickle of {"w": a view of the storage "7"}, as torch.save writes it
    b"ccollections\nOrderedDict\n)R(Vw\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\n"
    b"FloatStorage\nV7\nVcpu\nK\x06NtQK\x00K\x02K\x03\x86K\x01K\x02\x86\x89)tRu."
)


def saved(described=TENSOR):
    """Returns a file in the format of `torch.save` before PyTorch 1.6, with six numbers."""
    header = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    storage = struct.pack("<q", 6) + NUMBERS.tobytes()
    return io.BytesIO(header + described + pickle.dumps(["7"], 2) + storage)


def test_a_tensor_is_read_in_the_order_of_its_strides():
    (name, found), *others = efficientnet_lite0.read_tensors(saved()).items()
    assert name == "w" and others == []
    np.testing.assert_array_equal(found, NUMBERS.reshape(3, 2).T)


@pytest.mark.fault("malicious-model")
@pytest.mark.parametrize("named", [b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n"])
def test_a_file_of_weights_that_names_code_is_refused(named):
    with pytest.raises(pickle.UnpicklingError, match="which is not run for safety"):
        efficientnet_lite0.read_tensors(saved(named + b"(Vtrue\ntR."))


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
