import keras
import numpy as np
import pytest
from keras import ops

import kerasim.layers
from kerasim._tensors import PAIR_METRICS
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.layers import (
    AttentionPooling,
    BackbonePreprocessing,
    CosineClassifier,
    Distance,
    GeMPooling,
    LogEnergy,
    PatchMap,
    Sampling,
    TimeEmbedding,
    TokenPooling,
)
from tests.helpers.gradients import gradient_of

RNG = np.random.default_rng(0)
LEFT = RNG.standard_normal((5, 3)).astype("float32")
RIGHT = RNG.standard_normal((5, 3)).astype("float32")


def by_hand(metric, a, b):
    a, b = a.astype("float64"), b.astype("float64")
    if metric == "cosine":
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return 1 - (a * b).sum(axis=1) / norms
    squares = np.square(a - b).sum(axis=1)
    return squares if metric == "squared_euclidean" else np.sqrt(squares)


@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_distances_are_those_worked_out_in_numpy(metric):
    found = ops.convert_to_numpy(Distance(metric)([LEFT, RIGHT]))
    assert found.shape == (5, 1)
    np.testing.assert_allclose(found[:, 0], by_hand(metric, LEFT, RIGHT), rtol=1e-5)


@pytest.mark.fault("identical-pair")
@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_equal_vectors_have_distance_0_and_no_gradient(metric):
    value, gradient = gradient_of(lambda x: ops.sum(Distance(metric)([x, LEFT])), LEFT)
    assert value == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.fault("identical-pair")
@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_zero_vectors_have_a_finite_distance_and_gradient(metric):
    zeros = np.zeros((5, 3), "float32")
    for other in (zeros, RIGHT):
        value, gradient = gradient_of(lambda x, y=other: ops.sum(Distance(metric)([x, y])), zeros)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_distance_far_from_the_origin_keeps_its_digits():
    found = ops.convert_to_numpy(Distance("euclidean")([LEFT + 1000, RIGHT + 1000]))[:, 0]
    np.testing.assert_allclose(found, by_hand("euclidean", LEFT, RIGHT), rtol=1e-3)


@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_half_precision_is_not_let_in(metric):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        tiny = Distance(metric)([1e-5 * LEFT.astype("float16"), np.zeros((5, 3), "float16")])
        large = CosineClassifier(2)(300 * LEFT.astype("float16"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert (
        np.isfinite(ops.convert_to_numpy(tiny)).all()
        and np.isfinite(ops.convert_to_numpy(large)).all()
    )


def test_vectors_of_two_widths_are_refused():
    with pytest.raises(ArgumentError, match="3 and 1 numbers"):
        Distance()([LEFT, RIGHT[:, :1]])


def test_an_unknown_distance_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match="metric='l2'.*'euclidean', 'squared_euclidean'"):
        Distance("l2")


def test_the_classifier_gives_the_cosine_with_each_column_of_its_kernel():
    layer = CosineClassifier(4)
    found = ops.convert_to_numpy(layer(LEFT))
    kernel = ops.convert_to_numpy(layer.kernel)
    expected = [[1 - by_hand("cosine", x[None], w[None])[0] for w in kernel.T] for x in LEFT]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5, "8", None, True])
def test_a_number_of_classes_that_is_none_is_refused(num_classes):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="num_classes"):
        CosineClassifier(num_classes)


def test_sampling_draws_in_training_and_gives_the_mean_otherwise():
    layer = Sampling(seed=1)
    mean, log_variance = np.full((2000, 2), 3, "float32"), np.log(np.full((2000, 2), 0.25))
    np.testing.assert_array_equal(layer([mean, log_variance]), mean)
    drawn = ops.convert_to_numpy(layer([mean, log_variance], training=True))
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [3, 0.5], atol=0.03)
    assert (drawn != ops.convert_to_numpy(layer([mean, log_variance], training=True))).all()


@pytest.mark.parametrize("training", [True, False])
def test_sampling_adds_the_divergence_summed_over_numbers_and_averaged_over_the_batch(training):
    layer = Sampling(weight=0.5)
    layer([np.float32([[1, 2], [0, 0]]), np.log(np.float32([[1, 1], [4, 1]]))], training=training)
    # 1/2 + 4/2 for the first image, (4 - 1 - log 4) / 2 for the second.
    expected = 0.5 * (0.5 + 2 + (3 - np.log(4)) / 2) / 2
    np.testing.assert_allclose(layer.losses, [expected], rtol=1e-6)


@pytest.mark.fault("vae-variance")
def test_sampling_stays_finite_at_any_variance():
    layer = Sampling()
    huge = np.float32([[-1e30, 1e30]])
    drawn = layer([np.zeros((1, 2), "float32"), huge], training=True)
    assert all(np.isfinite(ops.convert_to_numpy(x)).all() for x in (drawn, *layer.losses))


@pytest.mark.fault("vae-variance")
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("value", [-1e4, -89.0, 0.0, 12.0, 89.0, 1e4])
def test_any_log_variance_has_a_finite_divergence_and_gradient_in_any_precision(value, policy):
    keras.config.set_dtype_policy(policy)
    try:
        layer = Sampling(seed=1)

        def cost(log_variance):
            drawn = layer([ops.zeros_like(log_variance), log_variance], training=True)
            return layer.losses[0] + ops.mean(ops.square(drawn))

        cost_, gradient = gradient_of(cost, np.full((3, 2), value, "float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(cost_) and np.isfinite(gradient).all()


def test_a_time_embedding_tells_all_steps_apart():
    codes = ops.convert_to_numpy(TimeEmbedding(8)(np.arange(1000)))
    assert codes.shape == (1000, 8)
    np.testing.assert_allclose(codes[0], [0, 0, 0, 0, 1, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(codes[3, [0, 4]], [np.sin(3), np.cos(3)], rtol=1e-6)
    gaps = np.linalg.norm(codes[:, None] - codes[None], axis=-1) + np.eye(1000)
    assert gaps.min() > 0.01


@pytest.mark.parametrize("dim", [0, 3, 2.0])
def test_a_time_embedding_of_odd_length_is_refused(dim):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="dim"):
        TimeEmbedding(dim)


def test_twice_the_values_add_log_4_to_each_energy():
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 4, 4, 3)).astype("float32")
    energy = ops.convert_to_numpy(LogEnergy()(images))
    np.testing.assert_allclose(energy, np.log(np.square(images).mean(axis=(1, 2))), rtol=1e-4)
    np.testing.assert_allclose(
        ops.convert_to_numpy(LogEnergy()(2 * images)), energy + np.log(4), rtol=1e-4
    )
    assert np.isfinite(ops.convert_to_numpy(LogEnergy()(0 * images))).all()


def test_attention_pooling_weighs_positions_by_their_scores():
    rng = np.random.default_rng(1)
    layer = AttentionPooling(5)
    maps = rng.standard_normal((2, 2, 3, 4)).astype("float32")
    layer.build(maps.shape)
    hidden, score = rng.standard_normal((4, 5)), rng.standard_normal((5, 1))
    layer.set_weights([hidden, score])
    scores = np.exp(np.tanh(maps @ hidden) @ score)[..., 0]
    weights = scores / scores.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.attend(maps)), weights, rtol=1e-4)
    expected = np.einsum("nhw,nhwc->nc", weights, maps)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(maps)), expected, rtol=1e-4, atol=1e-6)


def test_the_generalized_mean_goes_from_the_average_towards_the_maximum():
    rng = np.random.default_rng(1)
    maps = rng.random((2, 4, 4, 3)).astype("float32")
    for p in (1, 3):
        expected = (maps.astype("float64") ** p).mean(axis=(1, 2)) ** (1 / p)
        np.testing.assert_allclose(ops.convert_to_numpy(GeMPooling(p)(maps)), expected, rtol=1e-5)
    nearly = ops.convert_to_numpy(GeMPooling(200.0)(maps))
    np.testing.assert_allclose(nearly, maps.max(axis=(1, 2)), rtol=0.02)


# One class token, one register, six patches.
TOKENS = np.random.default_rng(2).standard_normal((3, 8, 4)).astype("float32")


def pooled(*args, tokens=TOKENS):
    return ops.convert_to_numpy(TokenPooling(*args)(tokens))


def test_the_class_token_is_the_first_one():
    np.testing.assert_array_equal(pooled("class", 2), TOKENS[:, 0])


@pytest.mark.parametrize(("mode", "reduce"), [("average", np.mean), ("max", np.max)])
def test_patch_tokens_are_pooled_without_the_prefix(mode, reduce):
    np.testing.assert_allclose(pooled(mode, 2), reduce(TOKENS[:, 2:], axis=1), atol=1e-6)


def test_without_a_prefix_all_tokens_are_patches():
    np.testing.assert_allclose(pooled("average", 0), TOKENS.mean(axis=1), atol=1e-6)


def test_gem_of_tokens_is_that_of_a_map_of_the_patches_and_counts_negative_ones_as_zero():
    clipped = np.maximum(TOKENS[:, 2:].astype("float64"), 1e-6)
    np.testing.assert_allclose(
        pooled("gem", 2), (clipped**3).mean(axis=1) ** (1 / 3), rtol=1e-5, atol=1e-6
    )


def test_attention_over_tokens_is_that_over_a_map_of_the_patches():
    tokens, maps = TokenPooling("attention", 2), AttentionPooling()
    tokens(TOKENS)
    maps.build((3, 6, 1, 4))
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(weight.shape) for weight in maps.get_weights()]
    for layer in (tokens, maps):
        layer.set_weights(weights)
    patches = TOKENS[:, 2:, None]
    np.testing.assert_allclose(
        ops.convert_to_numpy(tokens(TOKENS)), ops.convert_to_numpy(maps(patches)), atol=1e-6
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(tokens.attend(TOKENS)),
        ops.convert_to_numpy(maps.attend(patches))[..., 0],
        atol=1e-6,
    )


def test_only_attention_has_weights_to_show():
    with pytest.raises(ArgumentError, match="mode='gem' has no weights"):
        TokenPooling("gem").attend(TOKENS)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "mean"}, "mode='mean' is not known: pass one of 'class', 'average'"),
        ({"num_prefix_tokens": -1}, "num_prefix_tokens=-1 is out of range"),
        ({"num_prefix_tokens": 0}, 'mode="class" needs a class token'),
    ],
)
def test_token_pooling_refuses_settings_that_name_no_tokens(settings, said):
    with pytest.raises(ArgumentError, match=said):
        TokenPooling(**settings)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 4, 4, 3), "Received shape .*: use GeMPooling"), ((1, 2, 3), "leaves no patch of 2")],
)
def test_token_pooling_refuses_what_holds_no_patches(shape, said):
    with pytest.raises(ArgumentError, match=said):
        TokenPooling("average", 2)(np.zeros(shape, "float32"))


def test_a_patch_map_holds_the_patches_in_row_major_order():
    found = ops.convert_to_numpy(PatchMap((2, 3), 2)(TOKENS))
    np.testing.assert_array_equal(found, TOKENS[:, 2:].reshape(3, 2, 3, 4))


def test_a_patch_map_of_another_number_of_patches_is_refused():
    with pytest.raises(ArgumentError, match=r"make 8 tokens\. Received 7"):
        PatchMap((2, 3), 2)(TOKENS[:, :7])


@pytest.mark.parametrize("grid", [3, (2, 3, 4), (2, 0), (2, 1.5), "23"])
def test_a_grid_that_is_not_two_positive_numbers_is_refused(grid):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="grid"):
        PatchMap(grid)


LAYERS = [
    Distance("cosine"),
    CosineClassifier(4),
    Sampling(0.3, 7),
    TimeEmbedding(6),
    LogEnergy(),
    AttentionPooling(5),
    GeMPooling(2.0),
    TokenPooling("gem", 5),
    PatchMap((2, 3), 0),
    BackbonePreprocessing("resnet50"),
]


def test_every_layer_is_rebuilt_below():
    public = {k: v for k, v in vars(kerasim.layers).items() if k[0].isupper()}
    ours = {v for v in public.values() if isinstance(v, type) and issubclass(v, keras.Layer)}
    assert {type(layer) for layer in LAYERS} == ours


SETTINGS = {
    "Distance": "metric",
    "CosineClassifier": "num_classes",
    "Sampling": "weight seed",
    "TimeEmbedding": "dim",
    "LogEnergy": "",
    "AttentionPooling": "dim",
    "GeMPooling": "p",
    "TokenPooling": "mode num_prefix_tokens",
    "PatchMap": "grid num_prefix_tokens",
    "BackbonePreprocessing": "backbone",
}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_layer_is_rebuilt_from_its_config(layer):
    config = keras.layers.serialize(layer)
    assert keras.layers.deserialize(config).get_config() == layer.get_config()
    defaults = {"name", "trainable", "dtype", *keras.Layer().get_config()}
    assert set(layer.get_config()) - defaults == set(SETTINGS[type(layer).__name__].split())


def test_the_shapes_that_layers_state_are_those_they_give():
    a, b = keras.Input((3,)), keras.Input((3,))
    assert Distance()([a, b]).shape == (None, 1)
    assert CosineClassifier(4)(a).shape == (None, 4)
    assert Sampling()([a, b]).shape == (None, 3)
    assert TimeEmbedding(4)(keras.Input((), dtype="int32")).shape == (None, 4)
    maps = keras.Input((8, 8, 3))
    for layer in (LogEnergy(), AttentionPooling(), GeMPooling()):
        assert layer(maps).shape == (None, 3)
    tokens = keras.Input((9, 3))
    assert TokenPooling("gem")(tokens).shape == (None, 3)
    assert PatchMap((2, 4))(tokens).shape == (None, 2, 4, 3)
    assert BackbonePreprocessing("vgg16")(maps).shape == (None, 8, 8, 3)
