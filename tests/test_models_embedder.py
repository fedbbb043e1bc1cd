import keras
import numpy as np
import pytest

from kerasim import embedding, models
from kerasim.errors import ArgumentError, ArgumentTypeError

SMALL = {
    "conv_embedder": {"widths": (2, 3), "convs": 1},
    "resnet_embedder": {"widths": (2, 3, 4)},
}


def build(builder, image_shape=(8, 8, 3), **settings):
    keras.utils.set_random_seed(0)
    return getattr(models, builder)(image_shape, **{**SMALL[builder], **settings})


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (8, 11, 4)])
@pytest.mark.parametrize("name", SMALL)
def test_an_embedder_maps_images_to_vectors(name, shape):
    model = build(name, shape, embedding_dim=7)
    images = np.random.default_rng(0).random((3, *shape), dtype="float32")
    assert embedding.embed(model, images).shape == (3, 7)


@pytest.mark.parametrize("name", SMALL)
def test_an_embedder_survives_saving(name, tmp_path):
    model = build(name)
    images = np.random.default_rng(0).random((3, 8, 8, 3), dtype="float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(embedding.embed(loaded, images), embedding.embed(model, images))


@pytest.mark.parametrize("name", SMALL)
def test_an_embedder_has_the_name_of_its_builder_or_its_own(name):
    assert build(name).name == name
    assert build(name, name="mine").name == "mine"


def test_the_net_of_the_report_is_a_setting():
    net = models.conv_embedder((28, 28, 1), 2, convs=1, activation=None, dense_width=64)
    kinds = [type(layer).__name__ for layer in net.layers[1:]]
    stage = ["Conv2D", "BatchNormalization"]
    pooled = [*stage, "MaxPooling2D"]
    dense = ["Dense", "BatchNormalization", "Dense"]
    assert kinds == [*pooled, *pooled, *stage, "GlobalAveragePooling2D", *dense]
    assert net.get_layer("average").input.shape == (None, 5, 5, 128)
    assert [net.get_layer(name).units for name in ("dense", "embeddings")] == [64, 2]


@pytest.mark.parametrize("activation", ["relu", "tanh", None])
def test_the_activation_follows_each_batch_norm(activation):
    net = build("conv_embedder", activation=activation, dense_width=5)
    after = [
        net.layers[n + 1]
        for n, layer in enumerate(net.layers)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    names = [getattr(getattr(layer, "activation", None), "__name__", None) for layer in after]
    assert len(names) == 3
    if activation:
        assert set(names) == {activation}
    else:
        assert not any(isinstance(layer, keras.layers.Activation) for layer in net.layers)


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("conv_embedder", {"widths": (2, 3), "convs": 1}, 6),
        ("conv_embedder", {"widths": (2, 3, 4), "convs": 2}, 20),
        ("resnet_embedder", {"widths": (2, 3, 4)}, 4),
    ],
)
def test_the_smallest_image_is_the_one_the_message_names(name, settings, least):
    build(name, (least, least, 1), **settings)
    with pytest.raises(ArgumentError, match=rf"image_shape=.* must be {least} or more"):
        build(name, (least - 1, least, 1), **settings)


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("conv_embedder", "embedding_dim"),
        ("conv_embedder", "convs"),
        ("conv_embedder", "dense_width"),
        ("resnet_embedder", "embedding_dim"),
    ],
)
def test_a_size_that_is_none_is_refused_by_name(name, argument, value):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=argument):
        build(name, **{argument: value})


@pytest.mark.parametrize("widths", [(), (0,), (2, -1), "ab", 3, (2.5,)])
@pytest.mark.parametrize("name", SMALL)
def test_widths_that_are_none_are_refused_by_name(name, widths):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="widths"):
        build(name, widths=widths)
