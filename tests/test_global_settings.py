"""Builders, layers and losses do not depend on the global settings of Keras."""

import inspect

import keras
import numpy as np
import pytest

from kerasim import layers, losses, models
from kerasim.errors import ArgumentError
from tests.helpers.builders import BUILDERS, IMAGE_SHAPE, inputs_of

HALF = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
POLICIES = (*HALF, "float64")
SETTINGS = {
    "channels_first": {"image_data_format": "channels_first"},
    "floatx float16": {"floatx": "float16"},
    "floatx float64": {"floatx": "float64"},
    "policy mixed_bfloat16": {"dtype_policy": "mixed_bfloat16"},
    "policy float16": {"dtype_policy": "float16"},
    "policy float64": {"dtype_policy": "float64"},
    "all": {
        "image_data_format": "channels_first",
        "floatx": "float16",
        "dtype_policy": "mixed_float16",
    },
}
EVERY_SETTING = pytest.mark.parametrize("setting", SETTINGS)
RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.standard_normal((12, 6))
# Float16 cannot tell these apart, float32 can.
LABELS = 5000 + np.arange(12) // 3
PAIRS = RNG.standard_normal((6, 2, 5))
GROUPS = 5000 + np.array([[0, 1], [2, 3], [4, 5], [0, 6], [7, 8], [9, 10]])


@pytest.fixture
def keras_settings():
    """Returns a function that sets the settings of that name; they are undone after the test."""
    names = ("image_data_format", "floatx", "dtype_policy")
    before = {name: getattr(keras.config, name)() for name in names}

    def change(setting):
        for name, value in SETTINGS[setting].items():
            getattr(keras.config, f"set_{name}")(value)

    yield change
    for name, value in before.items():
        getattr(keras.config, f"set_{name}")(value)


def skip_without_float64(*names):
    if keras.backend.backend() == "jax" and any("float64" in name for name in names):
        pytest.skip("JAX has float64 only in a mode that this process does not use.")


def is_half(setting):
    return SETTINGS[setting].get("dtype_policy") in HALF


@EVERY_SETTING
@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_builds_the_same_network_under_any_setting(name, setting, keras_settings):
    skip_without_float64(setting)
    keras.utils.set_random_seed(0)
    usual = BUILDERS[name]()
    rng = np.random.default_rng(0)
    for weight in usual.trainable_weights:  # a denoiser would return its input
        weight.assign(weight + 0.05 * rng.standard_normal(weight.shape))
    expected = keras.ops.convert_to_numpy(usual(inputs_of(name)))
    keras_settings(setting)
    model = BUILDERS[name]()
    assert [w.shape for w in model.weights] == [w.shape for w in usual.weights]
    model.set_weights(usual.get_weights())
    found = keras.ops.convert_to_numpy(model(inputs_of(name)))
    assert found.dtype == "float32"
    tolerance = 0.05 * np.abs(expected).max() if is_half(setting) else 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=tolerance)


@EVERY_SETTING
def test_an_embedder_trains_under_any_setting(setting, keras_settings):
    rng = np.random.default_rng(1)
    skip_without_float64(setting)
    keras_settings(setting)
    keras.utils.set_random_seed(0)
    embedder = models.conv_embedder(IMAGE_SHAPE, 5, (4, 8), convs=1)
    # Float16 rounds the epsilon of Adam to zero.
    embedder.compile(keras.optimizers.SGD(0.1), losses.SupConLoss(), run_eagerly=True)
    images = rng.random((12, *IMAGE_SHAPE), dtype="float32")
    values = [embedder.train_on_batch(images, LABELS) for _ in range(5)]
    assert np.isfinite(values).all() and values[-1] < values[0]


@pytest.mark.parametrize("name", ["squeezenet", "mobilenet"])
def test_a_backbone_by_name_is_channels_last_or_refused(name, keras_settings):
    keras_settings("channels_first")
    if name == "squeezenet":
        embedder = models.pretrained_embedder(name, None, image_shape=(64, 64, 3))
        assert embedder.get_layer("backbone").get_layer("conv1").kernel.shape[2] == 3
        assert embedder.get_layer("backbone").output_shape[-1] == 512
    else:
        with pytest.raises(ArgumentError, match="set_image_data_format"):
            models.pretrained_embedder(name, None, image_shape=(64, 64, 3))


@pytest.mark.parametrize("backbone", ["vgg16", "mobilenet", "densenet121"])
@EVERY_SETTING
def test_preprocessing_is_the_same_under_any_setting(backbone, setting, keras_settings):
    rng = np.random.default_rng(1)
    skip_without_float64(setting)
    images = rng.random((2, 8, 8, 3), dtype="float32")
    expected = keras.ops.convert_to_numpy(layers.BackbonePreprocessing(backbone)(images))
    keras_settings(setting)
    found = keras.ops.convert_to_numpy(layers.BackbonePreprocessing(backbone)(images))
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def arguments_of(loss):
    """Returns `y_true` and `y_pred` for a loss."""
    if isinstance(loss, losses.ContrastiveLoss):
        return np.arange(12) % 2, np.abs(EMBEDDINGS[:, :1])
    if isinstance(loss, losses.ArcFaceLoss):
        return np.arange(12) % 6, np.tanh(EMBEDDINGS)
    if isinstance(loss, (losses.InBatchTripletLoss, losses.InfoNCELoss)):
        return GROUPS, PAIRS
    return LABELS, EMBEDDINGS


LOSSES = [
    value
    for _, value in inspect.getmembers(losses, inspect.isclass)
    if issubclass(value, keras.Loss) and not value.__name__.startswith("_")
]


@pytest.mark.parametrize("dtype", [None, "float32", *POLICIES])
@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_has_the_same_value_with_any_dtype(kind, dtype):
    skip_without_float64(str(dtype))
    y_true, y_pred = arguments_of(kind())
    expected = float(kind()(y_true, y_pred.astype("float32")))
    loss = kind(dtype=dtype)
    assert float(loss(y_true, y_pred)) == pytest.approx(expected, rel=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(again(y_true, y_pred)) == pytest.approx(expected, rel=1e-5)


@EVERY_SETTING
@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_has_the_same_value_under_any_setting(kind, setting, keras_settings):
    y_true, y_pred = arguments_of(kind())
    expected = float(kind()(y_true, y_pred))
    keras_settings(setting)
    assert float(kind()(y_true, y_pred)) == pytest.approx(expected, rel=1e-6)


@EVERY_SETTING
def test_empty_batches_are_counted_exactly_under_any_setting(setting, keras_settings):
    keras_settings(setting)
    counter = losses.EmptyBatchCounter(losses.SupConLoss())
    counter.total.assign(2048)  # after which float16 counts no further
    counter.update_state(np.arange(4), EMBEDDINGS[:4].astype("float32"))
    assert float(counter.result()) == 2049


MAPS = np.abs(RNG.standard_normal((3, 4, 5, 6)))
LAYERS = {
    layers.Distance: ({"metric": "cosine"}, [EMBEDDINGS, EMBEDDINGS[::-1].copy()]),
    layers.CosineClassifier: ({"num_classes": 4}, EMBEDDINGS),
    layers.Sampling: ({"seed": 1}, [EMBEDDINGS, EMBEDDINGS / 10]),
    layers.TimeEmbedding: ({"dim": 8}, np.arange(0, 5000, 500)),
    layers.LogEnergy: ({}, MAPS),
    layers.AttentionPooling: ({"dim": 3}, MAPS),
    layers.GeMPooling: ({}, MAPS),
    layers.TokenPooling: ({"mode": "gem", "num_prefix_tokens": 2}, MAPS[:, 0]),
    layers.AntialiasedResizing: ({"height": 2, "width": 7}, MAPS),
    layers.GridPooling: ({"grid": (2, 2)}, MAPS),
    layers.Whitening: ({"components": 3}, EMBEDDINGS),
    layers.PatchMap: ({"grid": (2, 2)}, MAPS[:, 0]),
    layers.BackbonePreprocessing: ({"backbone": "vgg16"}, MAPS[..., :3] / MAPS.max()),
}


def test_every_layer_is_tested():
    public = inspect.getmembers(layers, inspect.isclass)
    found = {x for _, x in public if issubclass(x, keras.Layer) and x.__module__ == layers.__name__}
    assert {x for x in found if not x.__name__.startswith("_")} == set(LAYERS)


def outputs_of(layer, inputs, like=None):
    """Returns the outputs of a layer in inference and in training, with the weights of `like`."""
    layer(inputs)
    if isinstance(layer, layers.Whitening):
        layer.adapt(inputs)
    if like is not None:
        layer.set_weights(like.get_weights())
    outputs = (
        [layer(inputs, training=mode) for mode in (False, True)]
        if isinstance(layer, layers.Sampling)
        else [layer(inputs)]
    )
    return [keras.ops.convert_to_numpy(x) for x in outputs]


def as_float32(inputs):
    return keras.tree.map_structure(
        lambda x: x.astype("float32") if x.dtype.kind == "f" else x, inputs
    )


@pytest.mark.parametrize("dtype", [None, "float32", *POLICIES])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_has_the_same_output_with_any_dtype(kind, dtype):
    skip_without_float64(str(dtype))
    settings, inputs = LAYERS[kind]
    usual = kind(**settings)
    expected = outputs_of(usual, as_float32(inputs))
    layer = kind(**settings, dtype=dtype)
    found = outputs_of(layer, inputs if dtype == "float64" else as_float32(inputs), usual)
    assert found[0].dtype == ("float64" if dtype == "float64" else "float32")
    # A random number of float64 is another one than that of float32: the mean alone is compared.
    for one, other in zip(found[:1], expected, strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(one).all() for one in found)
    again = kind.from_config(layer.get_config())
    np.testing.assert_allclose(
        outputs_of(again, as_float32(inputs), usual)[0], expected[0], rtol=1e-4, atol=1e-5
    )


@EVERY_SETTING
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_has_the_same_output_under_any_setting(kind, setting, keras_settings):
    settings, inputs = LAYERS[kind]
    usual = kind(**settings)
    expected = outputs_of(usual, as_float32(inputs))
    keras_settings(setting)
    found = outputs_of(kind(**settings), as_float32(inputs), usual)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == "float32"
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
