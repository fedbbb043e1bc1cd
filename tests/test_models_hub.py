"""Vision towers of keras_hub as backbones, tiny and with random weights."""

import keras
import numpy as np
import pytest

from kerasim import _keras_files, embedding, models
from kerasim.errors import ArgumentTypeError

keras_hub = pytest.importorskip("keras_hub")

IMAGE_SHAPE = (28, 28, 3)
IMAGES = np.random.default_rng(0).random((2, *IMAGE_SHAPE), dtype="float32")
SIZES = {"num_layers": 1, "num_heads": 1, "hidden_dim": 4}
TOWER = {**SIZES, "patch_size": 14, "intermediate_dim": 4, "image_shape": IMAGE_SHAPE}


def dinov2(num_register_tokens=0):
    return keras_hub.models.DINOV2Backbone(
        **TOWER, num_register_tokens=num_register_tokens, position_embedding_shape=(56, 56)
    )


def vit():
    """Returns ViT as a model of one layer: its own layers cannot be loaded in keras_hub 0.32."""
    network = keras_hub.models.ViTBackbone(
        **SIZES, patch_size=14, mlp_dim=4, image_shape=IMAGE_SHAPE
    )
    images = keras.Input(IMAGE_SHAPE)
    return keras.Model(images, network(images))


TOWERS = {  # with their number of tokens before the first patch
    "DINOv2": (dinov2, 1),
    "DINOv2 with registers": (lambda: dinov2(4), 5),
    "DINOv3": (lambda: keras_hub.models.DINOV3Backbone(**TOWER), 5),
    "CLIP": (lambda: keras_hub.models.CLIPVisionEncoder(**TOWER), 1),
    "ViT": (vit, 1),
}


@pytest.fixture(scope="module")
def towers():
    return {name: build() for name, (build, _) in TOWERS.items()}


@pytest.fixture(scope="module")
def siglip():
    return keras_hub.models.SigLIPVisionEncoder(**TOWER)


def embedded(model):
    return keras.ops.convert_to_numpy(model(IMAGES))


@pytest.mark.parametrize("name", TOWERS)
def test_the_patches_of_a_tower_are_those_after_its_prefix(name, towers):
    net = models.pretrained_embedder(
        towers[name], pooling="average", embedding_dim=None, num_prefix_tokens=TOWERS[name][1]
    )
    tokens = keras.ops.convert_to_numpy(net.get_layer("backbone")(IMAGES))
    assert tokens.shape == (2, TOWERS[name][1] + 4, 4)
    np.testing.assert_allclose(embedded(net), tokens[:, -4:].mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("name", ["DINOv3", "CLIP", "ViT"])  # DINOv2 and SigLIP: below
def test_an_embedder_on_a_tower_is_saved_and_loaded(name, towers, tmp_path):
    net = models.pretrained_embedder(
        towers[name], pooling="class", embedding_dim=4, num_prefix_tokens=TOWERS[name][1]
    )
    net.save(tmp_path / "net.keras")
    loaded = embedding.load_embedder(tmp_path / "net.keras")
    np.testing.assert_array_equal(embedded(loaded), embedded(net))


def test_a_fine_tuned_dinov2_is_saved_with_all_that_it_has_learned(tmp_path):
    net = models.pretrained_embedder(
        dinov2(), pooling="class", embedding_dim=None, num_prefix_tokens=1, trainable=True
    )
    before = embedded(net)
    for weight in net.trainable_weights:
        weight.assign(weight + 0.1)
    net.save(tmp_path / "net.keras")
    loaded = embedding.load_embedder(tmp_path / "net.keras")
    assert np.abs(embedded(net) - before).max() > 0.01
    np.testing.assert_array_equal(embedded(loaded), embedded(net))


def test_clip_is_refused_with_the_name_of_its_vision_tower(towers):
    text = keras_hub.models.CLIPTextEncoder(10, 8, 8, 1, 2, 8, max_sequence_length=4)
    clip = keras_hub.models.CLIPBackbone(towers["CLIP"], text, projection_dim=4)
    with pytest.raises(ArgumentTypeError, match="pass its vision tower, backbone.vision_encoder"):
        models.pretrained_embedder(clip)


def test_siglip_returns_vectors_which_need_no_pooling(siglip, tmp_path):
    net = models.pretrained_embedder(siglip, pooling=None, embedding_dim=None)
    expected = keras.ops.convert_to_numpy(siglip({"images": IMAGES}))
    np.testing.assert_allclose(embedded(net), expected, atol=1e-6)
    net.save(tmp_path / "net.keras")
    loaded = embedding.load_embedder(tmp_path / "net.keras")
    np.testing.assert_array_equal(embedded(loaded), embedded(net))


def test_the_last_stage_of_siglip_before_its_head_has_patches_only(siglip):
    net = models.pretrained_embedder(
        siglip,
        stages=("post_layer_norm",),
        pooling="flatten",
        embedding_dim=None,
        num_prefix_tokens=0,
    )
    assert embedded(net).shape == (2, 2 * 2 * 4)


def test_stages_of_dinov2_are_those_of_its_pyramid(towers):
    net = models.pretrained_embedder(
        towers["DINOv2"],
        stages=("stem", "stage1"),
        pooling="class",
        embedding_dim=None,
        num_prefix_tokens=1,
    )
    assert net.output_shape == (None, 8)


def test_every_listed_layer_of_keras_hub_is_one_and_takes_no_function_to_call():
    for module, name in _keras_files._KERAS_HUB_CLASSES:
        listed = vars(__import__(module, fromlist=[name]))[name]
        assert issubclass(listed, keras.Layer) and not issubclass(listed, keras.Model)
