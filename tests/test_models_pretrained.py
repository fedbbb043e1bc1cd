import hashlib
import urllib.request

import h5py
import keras
import numpy as np
import pytest

from kerasim import embedding, export, models
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError
from kerasim.layers import BackbonePreprocessing, GridPooling, TokenPooling
from kerasim.models import _pretrained

IMAGES = np.random.default_rng(0).random((3, 64, 64, 3), dtype="float32")


def tiny():
    """Returns a backbone whose BatchNormalization has statistics, as a pretrained one has."""
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, name="conv1")(images)
    x = keras.layers.BatchNormalization(name="norm1")(x)
    model = keras.Model(images, keras.layers.Conv2D(5, 3, name="conv2")(x))
    model.get_layer("norm1").moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    return model


def test_squeezenet_has_as_many_weights_as_the_published_file():
    net = models.pretrained_embedder("squeezenet", None, pooling="average", embedding_dim=None)
    assert net.count_params() == 722_496
    assert net.output_shape == (None, 512)


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "resnet50v2", "efficientnetb0"])
def test_preprocessing_is_that_of_the_backbone(name):
    module = {
        "vgg16": keras.applications.vgg16,
        "resnet50": keras.applications.resnet50,
        "resnet50v2": keras.applications.resnet_v2,
        "efficientnetb0": keras.applications.efficientnet,
    }[name]
    ours = keras.ops.convert_to_numpy(BackbonePreprocessing(name)(IMAGES))
    np.testing.assert_allclose(ours, module.preprocess_input(255 * IMAGES), atol=1e-4)


def test_the_embedder_passes_its_backbone_what_it_was_trained_on():
    backbone = tiny()
    net = models.pretrained_embedder(
        backbone, preprocess="vgg16", pooling="average", embedding_dim=None
    )
    prepared = keras.applications.vgg16.preprocess_input(255 * IMAGES)
    features = backbone.predict(prepared, verbose=0).mean(axis=(1, 2))
    np.testing.assert_allclose(embedding.embed(net, IMAGES), features, rtol=1e-4, atol=1e-4)


def test_a_layer_can_do_the_preprocessing():
    halve = keras.layers.Rescaling(0.5)
    net = models.pretrained_embedder(tiny(), preprocess=halve, pooling="max", embedding_dim=None)
    same = models.pretrained_embedder(net.get_layer("backbone"), pooling="max", embedding_dim=None)
    np.testing.assert_allclose(
        embedding.embed(net, IMAGES), embedding.embed(same, IMAGES / 2), atol=1e-6
    )


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OF_VECTORS = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten()])
PIXELS = IMAGES[:, :2, :2]


def standardizing(preprocess, **settings):
    return models.pretrained_embedder(
        OF_VECTORS, preprocess=preprocess, pooling=None, embedding_dim=None, **settings
    )


@pytest.mark.parametrize("preprocess", [IMAGENET, (0.5, 0.25), ([0.5, 0.4, 0.3], np.ones(3))])
def test_a_mean_and_a_deviation_standardize_the_images(preprocess):
    mean, std = (np.float64(values) for values in preprocess)
    expected = ((PIXELS - mean) / std).reshape(3, -1)
    np.testing.assert_allclose(vectors_of(standardizing(preprocess), PIXELS), expected, atol=1e-6)


def test_a_mean_and_a_deviation_are_saved_with_the_embedder(tmp_path):
    net = standardizing(IMAGENET)
    net.save(tmp_path / "net.keras")
    loaded = embedding.load_embedder(tmp_path / "net.keras")
    np.testing.assert_array_equal(vectors_of(loaded, PIXELS), vectors_of(net, PIXELS))


@pytest.mark.tensorflow("export")
def test_a_mean_and_a_deviation_are_exported_with_the_embedder(tmp_path):
    net = standardizing(IMAGENET)
    export.export_saved_model(net, tmp_path / "net")
    found = export.load_saved_model(tmp_path / "net")(PIXELS)
    np.testing.assert_allclose(found, vectors_of(net, PIXELS), atol=1e-6)


@pytest.mark.parametrize("setting", ["mixed_bfloat16", "channels_first"])
def test_images_are_standardized_in_float32_and_channels_last_under_any_setting(setting):
    expected = vectors_of(standardizing(IMAGENET), PIXELS)
    policy, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    try:
        if setting == "channels_first":
            keras.config.set_image_data_format(setting)
        else:
            keras.config.set_dtype_policy(setting)
        found = vectors_of(standardizing(IMAGENET), PIXELS)
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("preprocess", "said"),
    [
        ((0.5,), r"preprocess=\(0.5,\) has 1 entries: pass \(mean, std\)"),
        ((0.5, 0.0), "holds 0"),
        ((0.5, 1e-42), "holds 1e-42"),
        ((0.5, -0.5), r"std of preprocess=\[-0.5.*\] is outside \[0, 1\]"),
        (((123.7, 116.3, 103.5), 0.5), "mean of preprocess=.* Divide numbers .* by 255"),
        (((0.5, 0.5), 0.5), "mean of preprocess=.* has 2 numbers: pass one or three"),
        (("a", 0.5), "mean of preprocess must be a number"),
        ((0.5, float("nan")), "std of preprocess=nan is out of range"),
    ],
)
def test_a_mean_and_a_deviation_that_cannot_be_those_of_images_are_refused(preprocess, said):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=said):
        standardizing(preprocess)


@pytest.mark.parametrize("pooling", ["attention", "gem", "max", "average", "flatten", "grid"])
def test_each_pooling_gives_embeddings_and_loads_again(pooling, tmp_path):
    net = models.pretrained_embedder(tiny(), None, None, pooling, 7, (16, 16, 3))
    net.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    vectors = embedding.embed(net, IMAGES[:, :16, :16])
    assert vectors.shape == (3, 7)
    np.testing.assert_array_equal(embedding.embed(loaded, IMAGES[:, :16, :16]), vectors)


def test_before_training_attention_pooling_is_the_average():
    settings = {"embedding_dim": None}
    backbone = tiny()
    nets = [
        models.pretrained_embedder(backbone, pooling=pooling, **settings)
        for pooling in ("attention", "average")
    ]
    one, other = (embedding.embed(net, IMAGES) for net in nets)
    np.testing.assert_allclose(one, other, rtol=1e-5)  # sums of 3,600 float32 in two orders
    looked = nets[0].get_layer("pooling").attend(nets[0].get_layer("backbone")(IMAGES))
    looked = keras.ops.convert_to_numpy(looked)
    np.testing.assert_allclose(looked, np.full((3, 60, 60), 1 / 3600), rtol=1e-5)


def test_the_head_of_the_report_has_self_attention_max_pooling_flatten_and_dense():
    net = models.pretrained_embedder(
        "vgg16", None, pooling="flatten", self_attention=True, image_shape=(64, 64, 3)
    )
    kinds = [type(layer).__name__ for layer in net.layers[3:]]
    assert kinds == ["Reshape", "Attention", "Reshape", "MaxPooling2D", "Flatten", "Dense"]
    assert net.output_shape == (None, 256)
    assert net.get_layer("pooling").output.shape == (None, 512)


def test_stages_are_pooled_and_set_side_by_side():
    net = models.pretrained_embedder(
        tiny(), pooling="average", embedding_dim=None, stages=("conv1", "conv2")
    )
    assert net.output_shape == (None, 9)
    with pytest.raises(ArgumentError, match="each of stages='conv3' is not known"):
        models.pretrained_embedder(tiny(), stages=("conv1", "conv3"))


def test_an_embedder_of_open_size_takes_images_of_any_size():
    net = models.pretrained_embedder(tiny())
    assert (
        embedding.embed(net, IMAGES[:, :40]).shape == embedding.embed(net, IMAGES).shape == (3, 256)
    )


def test_in_mixed_precision_embeddings_are_float32_and_those_of_float32_but_for_rounding():
    settings = {"weights": None, "image_shape": (64, 64, 3), "embedding_dim": 8}
    full = models.pretrained_embedder("squeezenet", **settings)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = models.pretrained_embedder("squeezenet", **settings)
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(full.get_weights())
    assert mixed.get_layer("backbone").get_layer("fire9").compute_dtype == "bfloat16"
    images = np.random.default_rng(0).random((4, 64, 64, 3), dtype="float32")
    found, expected = (keras.ops.convert_to_numpy(net(images)) for net in (mixed, full))
    assert found.dtype == "float32"
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(cosines / np.linalg.norm(expected, axis=1), 1, atol=1e-3)


def test_a_gray_image_goes_in_three_times():
    backbone = tiny()
    gray = models.pretrained_embedder(
        backbone, preprocess="vgg16", pooling="max", embedding_dim=None, image_shape=(64, 64, 1)
    )
    rgb = models.pretrained_embedder(
        backbone, preprocess="vgg16", pooling="max", embedding_dim=None
    )
    one = IMAGES[..., :1]
    np.testing.assert_allclose(
        embedding.embed(gray, one), embedding.embed(rgb, np.repeat(one, 3, axis=-1)), rtol=1e-5
    )


def learning(net):
    return [layer.name for layer in net.get_layer("backbone").layers if layer.trainable_weights]


def test_a_frozen_backbone_learns_nothing_and_its_head_does():
    net = models.pretrained_embedder(tiny())
    assert learning(net) == []
    assert {w.path.split("/")[0] for w in net.trainable_weights} == {"pooling", "embeddings"}


def test_stages_are_unfrozen_by_name_and_batch_norm_never():
    net = models.pretrained_embedder(tiny(), trainable=True)
    assert learning(net) == ["conv1", "conv2"]
    models.set_trainable(net, "norm1")
    assert learning(net) == ["conv2"]
    with pytest.raises(ArgumentError, match="trainable='conv9' is not known"):
        models.set_trainable(net, "conv9")


def test_layers_of_a_frozen_embedder_are_not_said_to_train():
    net = models.pretrained_embedder(tiny())
    net.trainable = False
    with pytest.raises(ArgumentError, match="set embedder.trainable = True first"):
        models.set_trainable(net, True)


def test_batch_norm_without_statistics_trains_with_its_backbone():
    backbone = tiny()
    backbone.get_layer("norm1").moving_mean.assign([0.0] * 4)
    net = models.pretrained_embedder(backbone, trainable=True)
    assert learning(net) == ["conv1", "norm1", "conv2"]
    models.set_trainable(net, False)
    assert learning(net) == []


def test_batch_norm_holds_still_in_training():
    net = models.pretrained_embedder(tiny(), embedding_dim=2, trainable=True)
    before = net.get_layer("backbone").get_layer("norm1").get_weights()
    net.compile("sgd", "mse")
    net.fit(IMAGES, np.ones((3, 2)), verbose=0)
    for old, new in zip(
        before, net.get_layer("backbone").get_layer("norm1").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_batch_norm_within_a_model_within_the_backbone_holds_still():
    images = keras.Input((None, None, 3))
    inner = tiny()
    nested = keras.Model(images, keras.layers.Conv2D(3, 1)(inner(images)))
    net = models.pretrained_embedder(nested, pooling="average", trainable=True)
    assert not inner.get_layer("norm1").trainable and inner.get_layer("conv1").trainable
    assert len(net.trainable_weights) == 8


def test_weights_are_read_from_a_path(tmp_path):
    net = models.pretrained_embedder("squeezenet", None, pooling="average", embedding_dim=None)
    net.get_layer("backbone").save_weights(tmp_path / "its.weights.h5")
    again = models.pretrained_embedder(
        "squeezenet", tmp_path / "its.weights.h5", pooling="average", embedding_dim=None
    )
    np.testing.assert_array_equal(embedding.embed(again, IMAGES), embedding.embed(net, IMAGES))


@pytest.mark.fault("weights-of-another-model")
def test_weights_of_another_backbone_or_of_none_are_refused(tmp_path):
    tiny().save_weights(tmp_path / "tiny.weights.h5")
    with pytest.raises(ArtifactError, match="does not fit the backbone 'squeezenet'"):
        models.pretrained_embedder("squeezenet", tmp_path / "tiny.weights.h5")
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(ArtifactError, match="text.h5' holds damaged weights"):
        models.pretrained_embedder("squeezenet", tmp_path / "text.h5")
    with pytest.raises(ArtifactError, match="There is no file"):
        models.pretrained_embedder("squeezenet", tmp_path / "none.h5")


@pytest.mark.fault("oversized-claim")
def test_weights_that_are_not_stored_in_full_are_refused(tmp_path):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("kernel", (2**27,), "f4", chunks=(2**20,), compression="gzip")
    with pytest.raises(ArtifactError, match="bomb.h5' cannot be loaded: .* is compressed"):
        models.pretrained_embedder("squeezenet", tmp_path / "bomb.h5")


def test_a_file_of_weights_of_another_format_is_refused(tmp_path):
    (tmp_path / "weights.json").write_text("{}")
    with pytest.raises(ArtifactError, match="weights.json' is not an HDF5 file"):
        models.pretrained_embedder("squeezenet", tmp_path / "weights.json")


@pytest.mark.fault("missing-backbone-weights")
def test_squeezenet_says_which_file_goes_where_and_checks_its_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASIM_DATA_DIR", str(tmp_path))
    with pytest.raises(ArtifactError, match="squeezenet_notop.h5.*Run `kerasim fetch squeezenet`"):
        models.pretrained_embedder("squeezenet")
    (tmp_path / "squeezenet_notop.h5").write_bytes(b"truncated")
    with pytest.raises(ArtifactError, match="is damaged: its SHA-256 is not"):
        models.pretrained_embedder("squeezenet")


def test_squeezenet_takes_the_published_file_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASIM_DATA_DIR", str(tmp_path))
    built = models.pretrained_embedder("squeezenet", None).get_layer("backbone")
    file = tmp_path / "ours.weights.h5"
    built.save_weights(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(_pretrained, "SQUEEZENET_FILE", file.name)
    monkeypatch.setattr(_pretrained, "SQUEEZENET_SHA256", digest)
    loaded = models.pretrained_embedder("squeezenet").get_layer("backbone")
    for ours, wanted in zip(loaded.get_weights(), built.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.fault("missing-backbone-weights")
def test_offline_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # It reads the proxies once, and would keep these for later tests.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with pytest.raises(ArtifactError, match="put the file vgg16_.*notop.h5 into .*/models, or"):
        models.pretrained_embedder("vgg16")


@pytest.mark.fault("missing-backbone-weights")
def test_a_download_that_keras_finds_damaged_is_said_with_its_folder(monkeypatch):
    def build(**settings):
        if settings["weights"]:
            raise ValueError("Incomplete or corrupted file detected.")

    monkeypatch.setenv("KERAS_HOME", "/somewhere")
    build.__module__ = keras.applications.VGG16.__module__
    monkeypatch.setattr(keras.applications, "VGG16", build)
    with pytest.raises(ArtifactError, match="remove its file from /somewhere/models, or pass"):
        models.pretrained_embedder("vgg16")


def test_an_error_of_another_kind_while_weights_are_fetched_is_passed_on(monkeypatch):
    def build(**settings):
        if settings["weights"]:
            raise MemoryError("no room")

    build.__module__ = keras.applications.VGG16.__module__
    monkeypatch.setattr(keras.applications, "VGG16", build)
    with pytest.raises(MemoryError, match="no room"):
        models.pretrained_embedder("vgg16")


@pytest.mark.fault("missing-backbone-weights")
def test_weights_that_keras_cannot_check_are_refused():
    with pytest.raises(ArgumentError, match="no hash to verify the weights of 'mobilenetv2'"):
        models.pretrained_embedder("mobilenetv2")


def test_bad_settings_are_refused():
    with pytest.raises(ArgumentError, match="backbone='vgg61' is not known.*'squeezenet'"):
        models.pretrained_embedder("vgg61")
    with pytest.raises(ArgumentError, match="pooling='mean' is not known"):
        models.pretrained_embedder(tiny(), pooling="mean")
    with pytest.raises(ArgumentError, match=r"image_shape=\(8, 8, 4\): pass 3 channels, or 1"):
        models.pretrained_embedder(tiny(), image_shape=(8, 8, 4))
    with pytest.raises(ArgumentError, match="has no fixed size"):
        models.pretrained_embedder(tiny(), pooling="flatten")
    with pytest.raises(ArgumentTypeError, match="backbone must be a keras.Model of images"):
        models.pretrained_embedder(3)
    with pytest.raises(ArgumentTypeError, match="backbone must be a keras.Model of images"):
        models.pretrained_embedder(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def sized(shape):
    images = keras.Input(shape)
    return keras.Model(images, keras.layers.Conv2D(5, 3)(images))


def test_an_unspecified_image_size_is_that_of_a_backbone_of_fixed_size():
    net = models.pretrained_embedder(sized((32, 24, 3)), image_shape=(None, None, 1))
    assert net.input_shape == (None, 32, 24, 1)
    flat = models.pretrained_embedder(sized((32, 24, 3)), pooling="flatten", embedding_dim=None)
    assert flat.output_shape == (None, 30 * 22 * 5)


@pytest.mark.parametrize(
    ("backbone", "settings", "said"),
    [
        (
            "squeezenet",
            {"preprocess": "vgg16"},
            "preprocess='vgg16': 'squeezenet' has its own preprocessing",
        ),
        ("squeezenet", {"weights": 3}, "weights is 3, of type int: pass a path"),
        (sized((32, 32, 3)), {"weights": "its.h5"}, "weights='its.h5': a backbone that is"),
        (
            sized((32, 32, 3)),
            {"image_shape": (64, 64, 3)},
            r"takes images of shape \(32, 32, 3\), but",
        ),
        (sized((None, None, 1)), {}, r"takes images of shape \(None, None, 1\)"),
        (
            keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]),
            {},
            "pooling='attention'.*: the backbone returns vectors",
        ),
        (sized((32, 32, 3)), {"image_shape": (32, 32)}, "image_shape=.* is not an image shape"),
        (sized((32, 32, 3)), {"image_shape": 32}, "image_shape=.* is not an image shape"),
        (sized((32, 32, 3)), {"image_shape": (32, "a", 3)}, "width of image_shape"),
        ("vgg16", {"image_shape": (16, 16, 3)}, "backbone='vgg16' cannot be built for images"),
        (sized((32, 32, 3)), {"stages": "conv1"}, "stages must be a list.* Received str"),
        (sized((32, 32, 3)), {"stages": ()}, r"stages=\(\) is empty"),
        (sized((32, 32, 3)), {"stages": []}, r"stages=\(\) is empty"),
        (
            sized((None, None, 3)),
            {"preprocess": 3},
            r"preprocess is 3, of type int: pass a name, \(mean, std\), or a layer",
        ),
        (sized((None, None, 3)), {"preprocess": "vgg61"}, "preprocess='vgg61' is not known"),
        (
            sized((32, 32, 3)),
            {"preprocess": keras.layers.Resizing(8, 8, data_format="channels_last", name="small")},
            r"preprocess='small' changes images of shape \(32, 32, 3\) to \(8, 8, 3\)",
        ),
    ],
)
def test_what_would_be_ignored_or_fail_later_is_refused_by_name(backbone, settings, said):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=said):
        models.pretrained_embedder(backbone, **settings)


SIZE = (16, 24, 3)


def transformer(prefix=1, size=SIZE):
    """Returns a backbone of tokens: of `prefix` constants, and of patches of 8 x 8 pixels."""
    images = keras.Input(size, name="images")
    x = keras.layers.Conv2D(6, 8, 8, name="patches")(images)
    x = keras.layers.Reshape((-1, 6), name="rows")(x)
    x = keras.layers.ZeroPadding1D((prefix, 0), name="tokens")(x)
    return keras.Model(images, keras.layers.Dense(5, name="last")(x))


def vectors_of(model, images=IMAGES[:, :16, :24]):
    return keras.ops.convert_to_numpy(model(images))


@pytest.fixture(scope="module")
def of_tokens():
    return transformer()


@pytest.mark.parametrize("pooling", ["class", "average", "gem", "max", "attention"])
def test_tokens_are_pooled_by_token_pooling(of_tokens, pooling):
    net = models.pretrained_embedder(
        of_tokens, pooling=pooling, embedding_dim=None, num_prefix_tokens=1
    )
    layer = TokenPooling(pooling, 1)
    features = of_tokens(IMAGES[:, :16, :24])
    layer.build(features.shape)
    layer.set_weights(net.get_layer("pooling").get_weights())
    expected = keras.ops.convert_to_numpy(layer(features))
    np.testing.assert_allclose(vectors_of(net), expected, rtol=1e-5, atol=1e-6)


def test_flattened_tokens_are_the_patches_in_row_major_order(of_tokens):
    net = models.pretrained_embedder(
        of_tokens, pooling="flatten", embedding_dim=None, num_prefix_tokens=1
    )
    assert net.get_layer("patch_map").output.shape == (None, 2, 3, 5)
    patches = keras.ops.convert_to_numpy(of_tokens(IMAGES[:, :16, :24]))[:, 1:]
    np.testing.assert_allclose(vectors_of(net), patches.reshape(3, -1), atol=1e-6)


def test_a_grid_of_tokens_is_that_of_the_map_of_the_patches(of_tokens):
    net = models.pretrained_embedder(
        of_tokens, pooling="grid", embedding_dim=None, num_prefix_tokens=1
    )
    patches = keras.ops.convert_to_numpy(of_tokens(IMAGES[:, :16, :24]))[:, 1:]
    expected = GridPooling()(patches.reshape(3, 2, 3, 5))
    np.testing.assert_allclose(
        vectors_of(net), keras.ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-6
    )


def test_a_grid_of_tokens_needs_images_of_a_fixed_size():
    with pytest.raises(ArgumentError, match="has no fixed size"):
        models.pretrained_embedder(
            transformer(size=(None, None, 3)), pooling="grid", num_prefix_tokens=1
        )


def test_self_attention_acts_on_the_map_of_the_patches(of_tokens):
    net = models.pretrained_embedder(
        of_tokens, pooling="flatten", embedding_dim=None, self_attention=True, num_prefix_tokens=1
    )
    assert net.get_layer("map").output.shape == (None, 2, 3, 5)
    assert net.output_shape == (None, 5)


def test_stages_of_tokens_are_pooled_and_set_side_by_side(of_tokens):
    net = models.pretrained_embedder(
        of_tokens,
        pooling="average",
        embedding_dim=None,
        stages=("tokens", "last"),
        num_prefix_tokens=1,
    )
    assert net.output_shape == (None, 6 + 5)


def test_an_embedder_of_tokens_is_saved_and_loaded(of_tokens, tmp_path):
    net = models.pretrained_embedder(
        of_tokens, pooling="flatten", embedding_dim=4, num_prefix_tokens=1
    )
    net.save(tmp_path / "net.keras")
    loaded = embedding.load_embedder(tmp_path / "net.keras")
    np.testing.assert_array_equal(vectors_of(loaded), vectors_of(net))


def test_tokens_of_images_of_any_size_are_pooled():
    net = models.pretrained_embedder(
        transformer(size=(None, None, 3)), pooling="average", num_prefix_tokens=1
    )
    assert vectors_of(net).shape == vectors_of(net, IMAGES).shape == (3, 256)


def test_a_backbone_of_vectors_needs_no_pooling():
    backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    net = models.pretrained_embedder(backbone, pooling=None, embedding_dim=None)
    images = IMAGES[:, :8, :8]
    np.testing.assert_allclose(vectors_of(net, images), images.reshape(3, -1))


def test_a_stage_may_be_one_of_the_outputs_of_a_pyramid():
    backbone = tiny()
    backbone.pyramid_outputs = {"P1": backbone.get_layer("conv1").output}
    settings = {"pooling": "max", "embedding_dim": None}
    one, other = (
        models.pretrained_embedder(backbone, stages=stages, **settings)
        for stages in (("P1",), ("conv1",))
    )
    np.testing.assert_array_equal(vectors_of(one), vectors_of(other))


def test_with_stages_the_outputs_of_the_backbone_do_not_matter():
    backbone = tiny()
    outputs = [keras.layers.Flatten()(backbone.output), *backbone.outputs]
    two = keras.Model(backbone.inputs, outputs)
    net = models.pretrained_embedder(two, stages=("conv1",), pooling="max", embedding_dim=None)
    assert net.output_shape == (None, 4)
    with pytest.raises(ArgumentError, match="backbone returns 2 outputs: pass stages"):
        models.pretrained_embedder(two)


def test_images_may_be_named_in_a_dictionary(of_tokens):
    named = keras.Model({"images": of_tokens.inputs[0]}, of_tokens.output)
    settings = {"pooling": "class", "embedding_dim": None, "num_prefix_tokens": 1}
    one, other = (models.pretrained_embedder(net, **settings) for net in (named, of_tokens))
    np.testing.assert_array_equal(vectors_of(one), vectors_of(other))


class WrongShape(keras.layers.Layer):
    """Drops the first token, but states that it keeps it."""

    def call(self, x):
        return x[:, 1:]

    def compute_output_shape(self, input_shape):
        return input_shape


def test_tokens_are_counted_and_not_taken_from_the_shape_that_a_layer_states():
    backbone = transformer()
    patches = keras.Model(backbone.inputs, WrongShape()(backbone.output))
    net = models.pretrained_embedder(
        patches, pooling="flatten", embedding_dim=None, num_prefix_tokens=0
    )
    assert vectors_of(net).shape == (3, 6 * 5)
    with pytest.raises(ArgumentError, match="returns 6 tokens .* the other 5 are not a grid"):
        models.pretrained_embedder(patches, num_prefix_tokens=1)


class WithTower(keras.Model):
    """Of two inputs, as CLIP and SigLIP of keras_hub are."""

    def __init__(self, vision_encoder, **kwargs):
        super().__init__(**kwargs)
        self.vision_encoder = vision_encoder


def test_a_model_of_images_and_text_is_refused_with_the_name_of_its_vision_tower(of_tokens):
    images, tokens = keras.Input(SIZE, name="images"), keras.Input((5,), name="token_ids")
    both = WithTower(of_tokens, inputs=[images, tokens], outputs=[of_tokens(images), tokens])
    with pytest.raises(
        ArgumentTypeError, match="images, token_ids: pass .*backbone.vision_encoder"
    ):
        models.pretrained_embedder(both)


def test_a_model_that_is_not_functional_is_refused_with_what_to_pass():
    class Subclassed(keras.Model):
        input_shape, output_shape = (None, 8, 8, 3), (None, 8, 8, 3)

        def call(self, x):
            return x

    with pytest.raises(ArgumentTypeError, match=r"pass keras.Model\(images, backbone\(images\)\)"):
        models.pretrained_embedder(Subclassed())


MAPS_AND_TOKENS = {"stages": ("patches", "last"), "num_prefix_tokens": 1}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "num_prefix_tokens=None, but the backbone returns tokens"),
        ({"num_prefix_tokens": -1}, "num_prefix_tokens=-1 is out of range"),
        ({"num_prefix_tokens": 0}, "returns 7 tokens .* 16 x 24, and the other 7 are not a grid"),
        ({"num_prefix_tokens": 1, "pooling": None}, "pooling=None: the backbone returns tokens"),
        (
            {"num_prefix_tokens": 1, "pooling": "class", "self_attention": True},
            'which pooling="class" leaves out',
        ),
        (MAPS_AND_TOKENS, "stages returns feature maps and tokens: pass stages of one kind"),
    ],
)
def test_arguments_that_do_not_fit_tokens_are_refused(of_tokens, settings, said):
    with pytest.raises(ArgumentError, match=said):
        models.pretrained_embedder(of_tokens, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pooling": "class"}, "pooling='class': the backbone returns feature maps"),
        ({"pooling": None}, "pooling=None: the backbone returns feature maps"),
        ({"num_prefix_tokens": 1}, "num_prefix_tokens=1: the backbone returns feature maps"),
    ],
)
def test_arguments_that_do_not_fit_feature_maps_are_refused(settings, said):
    with pytest.raises(ArgumentError, match=said):
        models.pretrained_embedder(tiny(), **settings)


def test_a_layer_of_several_outputs_is_no_stage():
    images = keras.Input((8, 8, 3))
    parts = keras.layers.Lambda(lambda x: [x, x], name="parts")(images)
    with pytest.raises(ArgumentError, match="'parts', a layer with several outputs"):
        models.pretrained_embedder(keras.Model(images, parts[0]), stages=("parts",))


def test_an_output_of_another_rank_is_refused():
    backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Reshape((4, 2, 8, 3))])
    with pytest.raises(ArgumentTypeError, match="expected feature maps .*, tokens .* or vectors"):
        models.pretrained_embedder(backbone)
