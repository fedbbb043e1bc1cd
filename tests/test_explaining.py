"""`embedding.explain_pairs`, and the parts of it that cut a network and locate its features."""

import keras
import numpy as np
import pytest
from keras import layers

from kerasim import _cutting, _grids, data, embedding, models
from kerasim.embedding import explain_pairs
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.layers import AttentionPooling, GeMPooling
from tests.helpers.image_files import write_image


def noise(n=2, size=8, channels=1, seed=0):
    return np.random.default_rng(seed).random((n, size, size, channels), dtype="float32")


LEFT, RIGHT = noise(seed=1), noise(seed=2)

HEADS = {
    "average": [layers.GlobalAveragePooling2D],
    "maximum": [layers.GlobalMaxPooling2D],
    "GeM": [GeMPooling],
    "attention": [AttentionPooling],
    "flatten": [layers.Flatten],
    "dense": [layers.GlobalAveragePooling2D, lambda: layers.Dense(3, "tanh"), layers.Dropout],
}


def feature_layers():
    """Returns layers that lead from images of 8 x 8 to feature maps of 4 x 4."""
    return [layers.Conv2D(3, 3, 2, "same", activation="relu", name="conv"), layers.ReLU(name="map")]


def network(*head, name=None):
    """Returns an embedder with such a head."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8, 8, 1)), *feature_layers(), *head], name=name)


@pytest.fixture(scope="module")
def pooled():
    """An embedder that averages feature maps of 4 x 4."""
    return network(layers.GlobalAveragePooling2D())


@pytest.fixture(scope="module")
def maps_of(pooled):
    """Returns the feature maps of images, as float64."""
    model = keras.Model(pooled.inputs[0], pooled.get_layer("map").output)
    return lambda images: keras.ops.convert_to_numpy(model(images)).astype("float64")


def similarity(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def terms(maps, others):
    """Returns what each position adds to the inner product of averaged maps and vectors."""
    return np.einsum("nhwc,nc->nhw", maps, others) / np.prod(maps.shape[1:3])


# Contributions


def test_by_dot_product_the_contributions_are_those_of_the_closed_form(pooled, maps_of):
    own, other = maps_of(LEFT), maps_of(RIGHT).mean((1, 2))
    lengths = np.linalg.norm(own.mean((1, 2)), axis=1) * np.linalg.norm(other, axis=1)
    expected = terms(own, other) / lengths[:, None, None]
    expected -= expected.mean((1, 2), keepdims=True)
    found, _ = explain_pairs(pooled, LEFT, RIGHT, metric="dot_product")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_by_cosine_the_length_of_the_ablated_embedding_enters_the_closed_form(pooled, maps_of):
    own, other = maps_of(LEFT), maps_of(RIGHT).mean((1, 2))
    mean = own.mean((1, 2))
    added = terms(own, other)
    products = added.sum((1, 2), keepdims=True) - added + added.mean((1, 2), keepdims=True)
    ablated = mean[:, None, None] - (own - mean[:, None, None]) / 16
    lengths = np.linalg.norm(ablated, axis=-1) * np.linalg.norm(other, axis=1)[:, None, None]
    expected = similarity(mean, other)[:, None, None] - products / lengths
    found, _ = explain_pairs(pooled, LEFT, RIGHT)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_a_contribution_is_the_decrease_of_similarity_without_a_position_with_head(name):
    head = [make() if make is not layers.Dropout else make(0.5) for make in HEADS[name]]
    embedder = network(*head)
    vectors = embedding.embed(embedder, np.concatenate([LEFT, RIGHT]))
    x = keras.ops.convert_to_numpy(embedder.get_layer("map")(embedder.get_layer("conv")(RIGHT)))
    ablated = x.copy()
    ablated[:, 2, 1] = x.mean((1, 2))
    for layer in head:
        ablated = layer(ablated)
    after = keras.ops.convert_to_numpy(ablated)
    expected = similarity(vectors[2:], vectors[:2]) - similarity(after, vectors[:2])
    _, found = explain_pairs(embedder, LEFT, RIGHT)
    np.testing.assert_allclose(found[:, 2, 1], expected, atol=1e-5)


def test_by_a_distance_a_contribution_is_the_increase_of_the_distance(pooled, maps_of):
    own, other = maps_of(LEFT), maps_of(RIGHT).mean((1, 2))
    ablated = own.copy()
    ablated[:, 0, 3] = own.mean((1, 2))
    before, after = (np.abs(x.mean((1, 2)) - other).sum(-1) for x in (own, ablated))
    found, _ = explain_pairs(pooled, LEFT, RIGHT, metric="manhattan")
    np.testing.assert_allclose(found[:, 0, 3], after - before, atol=1e-6)


def test_maps_are_float32_and_one_for_each_image(pooled):
    for maps in explain_pairs(pooled, LEFT, RIGHT):
        assert (maps.dtype, maps.shape) == ("float32", (2, 4, 4))


def test_exchanging_the_images_exchanges_the_maps(pooled):
    one, other = explain_pairs(pooled, LEFT, RIGHT), explain_pairs(pooled, RIGHT, LEFT)
    for maps, again in zip(one, reversed(other), strict=True):
        np.testing.assert_allclose(maps, again, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_maps_do_not_depend_on_the_batch_size(pooled, batch_size):
    left, right = noise(5, seed=3), noise(5, seed=4)
    expected = explain_pairs(pooled, left, right)
    found = explain_pairs(pooled, left, right, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_images_of_a_folder_are_explained(pooled, tmp_path):
    for n in range(2):
        write_image(tmp_path / f"{n}.png", 90 * n + 60, (8, 8))
    folder = data.image_folder(tmp_path, image_size=8, channels=1)
    assert explain_pairs(pooled, folder, RIGHT)[0].shape == (2, 4, 4)


# Planted evidence

PATCH = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]], "float32")


@pytest.fixture(scope="module")
def detector():
    """An embedder with one channel for the patch, without padding, and others for noise."""
    embedder = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Conv2D(4, 4, activation="relu", name="conv"),
            layers.GlobalMaxPooling2D(),
        ]
    )
    kernel = np.random.default_rng(0).normal(size=(4, 4, 1, 4))
    kernel[..., 0, 0] = 4 * (2 * PATCH - 1)
    embedder.set_weights([kernel, np.array([-24.0, 0, 0, 0])])
    return embedder


PLACES = {"middle and corner": ((6, 5), (0, 12)), "edges": ((12, 3), (5, 0))}


@pytest.mark.parametrize("metric", ["cosine", "dot_product"])
@pytest.mark.parametrize("places", PLACES)
def test_the_largest_contribution_lies_on_the_patch_that_both_images_share_at(
    places, metric, detector
):
    pair = []
    for seed, (row, column) in enumerate(PLACES[places]):
        image = 0.3 * noise(1, 16, seed=seed)
        image[0, row : row + 4, column : column + 4, 0] = PATCH
        pair.append(image)
    for maps, place in zip(
        explain_pairs(detector, *pair, metric=metric), PLACES[places], strict=True
    ):
        found = np.unravel_index(maps[0].argmax(), maps[0].shape)
        assert maps[0].shape == (16, 16)
        assert np.abs(np.array(found) - place - 1.5).max() <= 0.5


# Networks


def models_around(inner):
    """Returns embedders with the embeddings of `inner`."""
    images = keras.Input((8, 8, 1))
    single = [keras.Input((8, 8, 1)), inner]
    return {
        "functional": keras.Model(
            images, layers.Rescaling(1.0)(inner(layers.Rescaling(1.0)(images)))
        ),
        "Sequential": keras.Sequential(single),
        "Sequential twice": keras.Sequential(
            [single[0], keras.Sequential(single), layers.Rescaling(1.0)]
        ),
    }


@pytest.mark.parametrize("kind", ["functional", "Sequential", "Sequential twice"])
def test_a_network_within_another_is_cut(pooled, kind):
    expected = explain_pairs(pooled, LEFT, RIGHT)
    found = explain_pairs(models_around(pooled)[kind], LEFT, RIGHT)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_loaded_embedder_is_explained_as_before(pooled, tmp_path):
    pooled.save(tmp_path / "net.keras")
    found = explain_pairs(embedding.load_embedder(tmp_path / "net.keras"), LEFT, RIGHT)
    np.testing.assert_allclose(found, explain_pairs(pooled, LEFT, RIGHT), atol=1e-6)


def test_a_network_of_half_precision_is_explained():
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
    embedder = network(*head)
    maps, _ = explain_pairs(embedder, LEFT, RIGHT, metric="dot_product")
    half = keras.Sequential(
        [keras.Input((8, 8, 1))]
        + [
            type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
            for layer in embedder.layers
        ]
    )
    half.set_weights(embedder.get_weights())
    found, _ = explain_pairs(half, LEFT, RIGHT, metric="dot_product")
    assert np.abs(found - maps).max() < 0.2 * np.abs(maps).max() + 0.01


@pytest.fixture(scope="module")
def residual():
    return models.resnet_embedder((8, 8, 1), 3, (2, 2))


def test_an_embedder_of_kerasim_with_skip_connections_is_explained_at_its_last_map(residual):
    assert _cutting.cut(residual, None, _cutting.MAP_RANK).layer == "block1_add"
    assert explain_pairs(residual, LEFT, RIGHT)[0].shape == (2, 4, 4)


def test_a_layer_with_a_skip_connection_around_it_is_refused(residual):
    with pytest.raises(ArgumentError, match=r"'block1_conv1'.*other paths.*'pool1', 'block1_add'"):
        explain_pairs(residual, LEFT, RIGHT, layer="block1_conv1")


def test_an_ensemble_is_refused_but_its_members_are_explained(pooled, residual):
    ensemble = models.ensemble([pooled, residual])
    with pytest.raises(ArgumentError, match=r"other paths.*get_layer\('member1'\)"):
        explain_pairs(ensemble, LEFT, RIGHT)
    found = explain_pairs(ensemble.get_layer("member1"), LEFT, RIGHT)
    np.testing.assert_allclose(found, explain_pairs(pooled, LEFT, RIGHT), atol=1e-6)


@pytest.fixture(scope="module")
def backbone():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 3, padding="same", name="stage1")(images)
    return keras.Model(images, layers.Conv2D(2, 3, 2, padding="same", name="stage2")(x))


COLOR = noise(channels=3, seed=5), noise(channels=3, seed=6)


def test_a_layer_within_the_backbone_gives_a_finer_map(backbone):
    embedder = models.pretrained_embedder(backbone, pooling="average", embedding_dim=3)
    assert explain_pairs(embedder, *COLOR)[0].shape == (2, 4, 4)
    assert explain_pairs(embedder, *COLOR, layer="stage1")[0].shape == (2, 8, 8)


def test_self_attention_after_the_cut_is_explained(backbone):
    embedder = models.pretrained_embedder(
        backbone, pooling="flatten", embedding_dim=3, self_attention=True, image_shape=(8, 8, 3)
    )
    assert explain_pairs(embedder, *COLOR, layer="backbone")[0].shape == (2, 4, 4)


def test_a_backbone_of_several_stages_is_refused(backbone):
    stages = ("stage1", "stage2")
    embedder = models.pretrained_embedder(backbone, stages=stages, embedding_dim=3)
    with pytest.raises(ArgumentError, match="several stages"):
        explain_pairs(embedder, *COLOR)


def test_preprocessed_images_are_not_taken_for_the_last_map_before_several_stages(backbone):
    stages = ("stage1", "stage2")
    embedder = models.pretrained_embedder(
        backbone, preprocess=(0.5, 0.5), stages=stages, embedding_dim=3
    )
    with pytest.raises(ArgumentError, match="'backbone', a part of embedder with several outputs"):
        explain_pairs(embedder, *COLOR)


class Doubled(keras.Model):
    """A functional model whose call does more than its layers."""

    def call(self, x, training=None):
        return 2 * super().call(x, training=training)


def test_a_model_whose_call_does_more_than_its_layers_is_refused(pooled):
    with pytest.raises(ArgumentError, match="own embeddings"):
        explain_pairs(Doubled(pooled.inputs[0], pooled.outputs[0]), LEFT, RIGHT)


def test_a_model_without_a_graph_of_layers_is_refused():
    with pytest.raises(ArgumentTypeError, match="Model.*functional or Sequential"):
        _cutting.cut(keras.Model(), None, _cutting.MAP_RANK)


def test_a_channels_first_layer_is_refused():
    swapped = [layers.Permute((3, 1, 2)), layers.ReLU()]
    pool = layers.GlobalAveragePooling2D(data_format="channels_first", name="pool")
    embedder = keras.Sequential([keras.Input((8, 8, 1)), *swapped, pool])
    with pytest.raises(ArgumentError, match="'pool'.*channels_first"):
        explain_pairs(embedder, LEFT, RIGHT)


def test_a_layer_that_is_called_twice_is_refused():
    images = keras.Input((8, 8, 1))
    conv = layers.Conv2D(1, 3, padding="same", name="twice")
    flat = layers.Flatten()(conv(conv(images)))
    with pytest.raises(ArgumentError, match="'twice' is called 2 times"):
        explain_pairs(keras.Model(images, flat), LEFT, RIGHT, layer="twice")


@pytest.mark.parametrize("layer", ["nothing", 3])
def test_an_unknown_layer_is_refused_with_those_that_return_maps(pooled, layer):
    with pytest.raises(ArgumentError, match=f"layer={layer!r}.*'conv', 'map'"):
        explain_pairs(pooled, LEFT, RIGHT, layer=layer)


def test_a_layer_that_returns_vectors_is_refused(pooled):
    name = pooled.layers[-1].name
    with pytest.raises(ArgumentError, match=rf"layer='{name}' returns \(None, 3\)"):
        explain_pairs(pooled, LEFT, RIGHT, layer=name)


def test_a_map_of_one_position_is_refused():
    images = keras.Input((None, None, 1))
    x = layers.Conv2D(2, 3, 8, padding="same", name="conv")(images)
    embedder = keras.Model(images, layers.GlobalAveragePooling2D()(x))
    with pytest.raises(ArgumentError, match="layer='conv' returns features of one position"):
        explain_pairs(embedder, LEFT, RIGHT)


def test_a_network_without_maps_is_refused():
    flat = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()])
    with pytest.raises(ArgumentError, match="no layer of embedder returns feature maps"):
        explain_pairs(flat, LEFT, RIGHT)


def test_explaining_leaves_the_embedder_as_it_is(pooled):
    before = pooled.to_json(), embedding.embed(pooled, LEFT)
    explain_pairs(pooled, LEFT, RIGHT)
    assert pooled.to_json() == before[0]
    np.testing.assert_array_equal(embedding.embed(pooled, LEFT), before[1])


def test_a_layer_on_which_the_embedding_does_not_depend_is_warned_of():
    images = keras.Input((8, 8, 1))
    x = layers.Conv2D(1, 1, name="conv")(images)
    x = layers.Rescaling(0.0, 1.0)(layers.GlobalAveragePooling2D()(x))
    with pytest.warns(UserWarning, match="no single position.*'conv'"):
        explain_pairs(keras.Model(images, x), LEFT, RIGHT)


# Images


@pytest.mark.parametrize("right", [RIGHT[:1], RIGHT[:0]])
def test_another_number_of_right_images_is_refused(pooled, right):
    with pytest.raises(ArgumentError, match=f"left holds 2 images and right {len(right)}"):
        explain_pairs(pooled, LEFT, right)


def test_no_pairs_are_refused(pooled):
    with pytest.raises(ArgumentError, match="one pair or more"):
        explain_pairs(pooled, LEFT[:0], RIGHT[:0])


@pytest.mark.parametrize("metric", ["cosine", "dot_product"])
def test_an_embedding_of_zero_is_refused_under(metric):
    embedder = network(layers.GlobalAveragePooling2D(), layers.Rescaling(0.0))
    with pytest.raises(ArgumentError, match="zero vectors"):
        explain_pairs(embedder, LEFT, RIGHT, metric=metric)


def test_an_embedding_of_nan_is_refused():
    embedder = network(layers.GlobalAveragePooling2D(), layers.Rescaling(float("nan")))
    with pytest.raises(ArgumentError, match="the embedder's output holds NaN"):
        explain_pairs(embedder, LEFT, RIGHT)


def test_an_unknown_metric_is_refused_with_the_known_ones(pooled):
    with pytest.raises(ArgumentError, match="metric='l2'.*'dot_product'"):
        explain_pairs(pooled, LEFT, RIGHT, metric="l2")


# Tokens


@pytest.fixture(scope="module")
def transformer():
    """An embedder that returns a class token, after one layer of attention among patches."""
    images = keras.Input((8, 4, 1))
    patches = layers.Reshape((8, 3))(layers.Conv2D(3, 2, 2, name="patches")(images))
    tokens = layers.ZeroPadding1D((1, 0), name="tokens")(patches)
    mixed = layers.MultiHeadAttention(1, 3, name="attention")(tokens, tokens)
    mixed = layers.Add(name="mixed")([tokens, mixed])
    return keras.Model(images, mixed[:, 0])


WIDE = noise(seed=7)[:, :, :4], noise(seed=8)[:, :, :4]


def test_the_tokens_of_patches_form_a_grid_of_the_shape_of_the_image(transformer):
    found, _ = explain_pairs(transformer, *WIDE, layer="tokens", prefix_tokens=1)
    assert found.shape == (2, 4, 2)


def test_the_contribution_of_a_token_is_that_of_its_patch(transformer):
    by_token, _ = explain_pairs(transformer, *WIDE, layer="tokens", prefix_tokens=1)
    by_patch, _ = explain_pairs(transformer, *WIDE, layer="patches")
    np.testing.assert_allclose(by_token, by_patch, atol=1e-6)


def test_tokens_that_the_class_token_no_longer_depends_on_are_warned_of(transformer):
    with pytest.warns(UserWarning, match="no single position.*'mixed'"):
        explain_pairs(transformer, *WIDE, prefix_tokens=1)


def test_a_layer_of_tokens_without_prefix_tokens_is_refused(transformer):
    with pytest.raises(ArgumentError, match="layer='tokens'.*pass prefix_tokens="):
        explain_pairs(transformer, *WIDE, layer="tokens")


@pytest.mark.parametrize("count", [0, 2, 9, 100])
def test_a_number_of_prefix_tokens_that_leaves_no_grid_is_refused(transformer, count):
    with pytest.raises(ArgumentError, match=f"leaves {9 - count} of the 9 tokens"):
        explain_pairs(transformer, *WIDE, layer="tokens", prefix_tokens=count)


# Where features lie

STACKS = {
    "convolutions without padding": [layers.Conv2D(1, 3), layers.Conv2D(1, 5)],
    "convolutions with stride": [layers.Conv2D(1, 3, 2, "same"), layers.Conv2D(1, 3, 2)],
    "pooling": [layers.MaxPooling2D(2), layers.Conv2D(1, 3), layers.AveragePooling2D(3, 1)],
    "padding and cropping": [layers.ZeroPadding2D(2), layers.Conv2D(1, 3), layers.Cropping2D(3)],
    "dilation": [layers.Conv2D(1, 3, dilation_rate=2), layers.DepthwiseConv2D(3)],
    "upsampling": [layers.Conv2D(1, 3), layers.UpSampling2D(2)],
}


def centers(model, size):
    """Returns the middle of the rows of an image on which each row of a feature map depends."""
    impulses = np.zeros((size, size, size, 1), "float32")
    impulses[np.arange(size), np.arange(size)] = 1.0
    found = keras.ops.convert_to_numpy(model(impulses))[:, :, 0, 0]
    rows = [np.flatnonzero(column) for column in found.T]
    return np.array([(row.min() + row.max() + 1) / 2 for row in rows])


@pytest.mark.parametrize("name", STACKS)
def test_the_positions_of_features_are_those_of_the_pixels_that_they_depend_on_after(name):
    model = keras.Sequential([keras.Input((24, 24, 1)), *STACKS[name]])
    model.set_weights([np.ones_like(weight) * (weight.ndim > 1) for weight in model.get_weights()])
    axis, _ = _grids._grids(model, (_grids.Axis(24), _grids.Axis(24)))[id(model.outputs[0])]
    expected = centers(model, 24)
    found = axis.start + axis.step * np.arange(axis.size)
    assert axis.size == len(expected)
    inner = slice(2, -2)  # at the edges windows are cut off
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.5)


def test_a_conv_embedder_without_padding_has_margins_to_the_edges_of_the_image():
    embedder = models.conv_embedder((16, 16, 1), 2, (2, 2))
    cut = _cutting.cut(embedder, None, _cutting.MAP_RANK)
    assert cut.margins((16, 16)) == [(2, 2), (2, 2)]  # 4 x 4 features in a grid of 8 x 8


def test_after_a_layer_of_unknown_geometry_features_cover_the_image():
    head = [layers.Reshape((2, 8, 1), name="reshaped"), layers.GlobalAveragePooling2D()]
    cut = _cutting.cut(
        keras.Sequential([keras.Input((4, 4, 1)), *head]), "reshaped", _cutting.MAP_RANK
    )
    assert cut.margins((4, 4)) == [(0, 0), (0, 0)]
