import keras
import numpy as np
import pytest
from keras import ops
from sklearn.decomposition import PCA

import kerasim.layers
from kerasim._tensors import PAIR_METRICS
from kerasim.data import ImageBatches
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.layers import (
    AntialiasedResizing,
    AttentionPooling,
    BackbonePreprocessing,
    CosineClassifier,
    Distance,
    GeMPooling,
    GridPooling,
    LogEnergy,
    PatchMap,
    Sampling,
    TimeEmbedding,
    TokenPooling,
    Whitening,
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


def test_the_weight_of_the_divergence_grows_in_training_alone():
    layer = Sampling(weight=2.0, warmup_steps=4)
    mean, log_variance = np.ones((3, 2), "float32"), np.zeros((3, 2), "float32")
    costs = []
    for _ in range(6):
        layer([mean, log_variance], training=True)
        costs.append(float(layer.losses[0]))
    np.testing.assert_allclose(costs, [0, 0.5, 1, 1.5, 2, 2])  # the divergence is 1
    fresh = Sampling(weight=2.0, warmup_steps=4)
    fresh([mean, log_variance])
    assert float(fresh.losses[0]) == 2
    fresh([mean, log_variance], training=True)
    assert float(fresh.losses[0]) == 0  # evaluation was no training step


def test_free_bits_cost_nothing_and_have_no_gradient():
    layer = Sampling(free_bits=0.5)
    mean = np.float32([[0.1, 2.0], [-0.1, 2.0]])  # divergences of 0.005 and 2
    layer([mean, np.zeros((2, 2), "float32")], training=True)
    np.testing.assert_allclose(layer.losses, [0.5 + 2], rtol=1e-6)

    def cost(mean):
        layer([mean, ops.zeros_like(mean)])
        return layer.losses[0]

    _, gradient = gradient_of(cost, mean)
    np.testing.assert_allclose(gradient, [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": -1}, {"warmup_steps": 1.5}, {"free_bits": -0.1}, {"weight": -1}]
)
def test_sampling_refuses_a_setting_out_of_range(settings):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=next(iter(settings))):
        Sampling(**settings)


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


@pytest.mark.parametrize("layer", [GridPooling(), GeMPooling(), AttentionPooling()])
def test_a_pooling_of_feature_maps_refuses_tokens(layer):
    with pytest.raises(ArgumentError, match=r"takes feature maps .*\(3, 8, 4\): use TokenPooling"):
        layer(TOKENS)


def test_a_patch_map_refuses_feature_maps():
    with pytest.raises(ArgumentError, match=r"takes tokens .*\(1, 2, 3, 4\): leave it out"):
        PatchMap((2, 3), 2)(np.zeros((1, 2, 3, 4), "float32"))


def test_a_patch_map_refuses_feature_maps_after_it_took_tokens():
    layer = PatchMap((2, 3), 2)
    layer(TOKENS)
    with pytest.raises(ValueError, match="expected ndim=3"):
        layer(TOKENS[:, :, None])


def test_token_pooling_refuses_the_prefix_alone_after_it_took_more():
    layer = TokenPooling("average", 2)
    layer(TOKENS)
    with pytest.raises(ArgumentError, match="leaves no patch of 2"):
        layer(TOKENS[:, :2])


@pytest.mark.parametrize("grid", [3, (2, 3, 4), (2, 0), (2, 1.5), "23"])
def test_a_grid_that_is_not_two_positive_numbers_is_refused(grid):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="grid"):
        PatchMap(grid)


def cells_of(maps, rows, columns):
    """Returns the means over the cells of a grid, worked out cell by cell."""
    height, width = maps.shape[1:3]
    found = []
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            found.append(maps[:, top:bottom, left:right].mean(axis=(1, 2)))
    return np.concatenate(found, axis=1)


# A size that the grid divides, one that it does not, one that is smaller than the grid.
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (2, 1)])
def test_grid_pooling_averages_each_cell(size):
    maps = np.random.default_rng(1).standard_normal((2, *size, 4)).astype("float32")
    found = ops.convert_to_numpy(GridPooling((3, 2))(maps))
    np.testing.assert_allclose(found, cells_of(maps, 3, 2), atol=1e-6)


def test_grid_pooling_takes_maps_of_any_size():
    images = keras.Input((None, None, 4))
    net = keras.Model(images, GridPooling((2, 2))(images))
    assert net.output_shape == (None, 16)
    rng = np.random.default_rng(1)
    for size in ((4, 4), (5, 7)):
        maps = rng.standard_normal((2, *size, 4)).astype("float32")
        np.testing.assert_allclose(net.predict(maps, verbose=0), cells_of(maps, 2, 2), atol=1e-6)


@pytest.mark.parametrize("size", [(3, 4), (7, 5), (11, 20), (1, 1)])
def test_antialiased_resizing_is_that_of_keras(size):
    images = np.random.default_rng(1).random((2, 7, 10, 3)).astype("float32")
    expected = ops.convert_to_numpy(ops.image.resize(images, size, antialias=True))
    found = ops.convert_to_numpy(AntialiasedResizing(*size)(images))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_antialiased_resizing_of_images_of_any_size_is_refused_with_what_to_use():
    with pytest.raises(ArgumentError, match="fixed size.*keras.layers.Resizing"):
        AntialiasedResizing(4, 4)(keras.Input((None, 8, 3)))


def test_antialiased_resizing_refuses_one_image_without_a_batch_axis():
    with pytest.raises(ArgumentError, match=r"takes images .*\(8, 8, 3\): pass a batch"):
        AntialiasedResizing(4, 4)(np.zeros((8, 8, 3), "float32"))


def test_antialiased_resizing_refuses_another_size_than_it_was_built_for():
    layer = AntialiasedResizing(4, 4)
    layer(np.zeros((1, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match="expected axis 2 of input shape to have value 8"):
        layer(np.zeros((1, 8, 1, 3), "float32"))


@pytest.mark.parametrize("layer", [GridPooling((2, 2)), AntialiasedResizing(2, 2)])
def test_integers_are_averaged_as_floats_by(layer):
    images = np.array([[1, 2], [3, 4]], "uint8").reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(images)).ravel(), [1, 2, 3, 4])


@pytest.mark.parametrize("size", [(0, 4), (4, 1.5)])
def test_antialiased_resizing_to_a_size_that_is_none_is_refused(size):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="height|width"):
        AntialiasedResizing(*size)


# Vectors of 5 correlated numbers.
MIXED = np.random.default_rng(3).standard_normal((60, 5)) @ np.diag([1, 2, 5, 10, 100]) + 7
MIXED = MIXED @ np.linalg.qr(np.random.default_rng(4).standard_normal((5, 5)))[0]


def whitened(vectors=MIXED, **settings):
    layer = Whitening(**settings)
    layer.adapt(MIXED)
    return ops.convert_to_numpy(layer(vectors))


def test_whitened_vectors_have_mean_0_and_are_uncorrelated_with_variance_1():
    found = whitened()
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(found.T), np.eye(5), atol=1e-3)


@pytest.mark.parametrize(("components", "power"), [(None, 1.0), (3, 0.0), (2, 0.5)])
def test_whitening_divides_the_first_components_by_a_power_of_their_deviation(components, power):
    kept = components or 5
    variances = np.linalg.eigvalsh(np.cov(MIXED.T))[::-1][:kept]
    found = np.cov(whitened(components=components, power=power).T)
    np.testing.assert_allclose(found, np.diag(variances ** (1 - power)), rtol=1e-3, atol=1e-2)


def test_whitening_with_power_0_keeps_the_distances():
    one, other = MIXED[:5], MIXED[5:10]
    found = np.linalg.norm(whitened(one, power=0) - whitened(other, power=0), axis=1)
    np.testing.assert_allclose(found, np.linalg.norm(one - other, axis=1), rtol=1e-4)


def test_epsilon_is_the_smallest_variance_relative_to_the_largest():
    largest = np.linalg.eigvalsh(np.cov(MIXED.T))[-1]
    variances = np.linalg.eigvalsh(np.cov(MIXED.T))[::-1]
    found = whitened(epsilon=0.1).var(axis=0, ddof=1)
    np.testing.assert_allclose(found, variances / np.maximum(variances, largest / 10), rtol=1e-3)


def test_whitening_may_scale_vectors_to_length_1():
    np.testing.assert_allclose(np.linalg.norm(whitened(normalize=True), axis=1), 1, rtol=1e-5)


def test_vectors_far_from_0_are_whitened_like_those_around_it():
    layer = Whitening()
    far = np.float32(MIXED) + np.float32(2**12)
    layer.adapt(far)
    np.testing.assert_allclose(np.cov(ops.convert_to_numpy(layer(far)).T), np.eye(5), atol=1e-3)


def test_whitening_applies_to_the_last_axis():
    np.testing.assert_allclose(
        whitened(MIXED.reshape(6, 10, 5)), whitened().reshape(6, 10, 5), atol=1e-4
    )


def test_whitening_that_was_not_adapted_returns_nan_and_not_vectors():
    assert np.isnan(ops.convert_to_numpy(Whitening(2)(MIXED))).all()


def test_whitening_is_saved_with_the_embedder_before_it(tmp_path):
    whitening = Whitening(3, power=0.7, normalize=True)
    whitening.adapt(MIXED)
    net = keras.Sequential([keras.Input((1, 5, 1)), keras.layers.Flatten(), whitening])
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    images = MIXED.reshape(60, 1, 5, 1)
    found, expected = (ops.convert_to_numpy(model(images)) for model in (loaded, net))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(
        expected, whitened(components=3, power=0.7, normalize=True), atol=1e-5
    )


def test_whitening_adapts_again_within_its_model():
    whitening = Whitening(2)
    net = keras.Sequential([keras.Input((5,)), whitening])
    whitening.adapt(MIXED)
    first = net.predict(MIXED, verbose=0)
    whitening.adapt(2 * MIXED)
    np.testing.assert_allclose(net.predict(2 * MIXED, verbose=0), first, atol=1e-3)


def test_whitening_does_not_train():
    layer = Whitening(2)
    layer.adapt(MIXED)
    assert layer.trainable_weights == []


def test_whitening_with_power_1_is_pca_whitening_of_scikit_learn():
    expected = PCA(3, whiten=True).fit_transform(MIXED)
    np.testing.assert_allclose(whitened(components=3), expected, atol=1e-5)


def test_whitening_refuses_vectors_of_one_number_instead_of_repeating_it():
    layer = Whitening(2)
    layer.adapt(MIXED)
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 5"):
        layer(np.ones((4, 1), "float32"))


def test_adapted_whitening_refuses_embeddings_of_another_size():
    layer = Whitening(2)
    layer.adapt(MIXED)
    with pytest.raises(ArgumentError, match=r"must be an array \(n, 5\).*Received shape \(60, 4\)"):
        layer.adapt(MIXED[:, :4])


def test_whitening_of_vectors_without_a_fixed_size_is_refused():
    with pytest.raises(ArgumentError, match="vectors of a fixed size"):
        Whitening(2)(keras.Input((None,)))


@pytest.mark.parametrize(
    "images", [np.zeros((9, 4, 4, 1)), ImageBatches(np.zeros((9, 4, 4, 1)), batch_size=3)]
)
def test_whitening_adapts_to_embeddings_and_not_to_images(images):
    with pytest.raises(ArgumentTypeError, match="of images, .*pass embedding.embed"):
        Whitening().adapt(images)


@pytest.mark.parametrize(
    ("factor", "said"),
    [(1e40, "numbers up to .*too large"), (1e-42, "standard deviations down to .*too small")],
)
def test_whitening_refuses_what_float32_cannot_hold(factor, said):
    with pytest.raises(ArgumentError, match=f"{said} for float32"):
        Whitening().adapt(factor * MIXED)


@pytest.mark.parametrize(
    ("settings", "embeddings", "said"),
    [
        ({}, MIXED[:5], "embeddings holds 5 rows, too few for 5 components: pass more than 5"),
        ({}, MIXED[:, [0, 1, 1]], "varies in 2 directions only, .*: pass components=2 or fewer"),
        ({}, MIXED[:, [0, 1]] * [1, 0], "varies in 1 direction only"),
        ({}, np.ones((9, 3)), "embeddings holds equal rows"),
        ({"components": 6}, MIXED, "components=6 is more than the 5 dimensions"),
        ({}, np.full((9, 2), np.nan), "embeddings holds NaN or infinity in 9 of 9 rows"),
        ({}, MIXED[0], r"embeddings must be an array \(n, dim\)"),
    ],
)
def test_vectors_that_cannot_be_whitened_are_refused(settings, embeddings, said):
    with pytest.raises(ArgumentError, match=said):
        Whitening(**settings).adapt(embeddings)


@pytest.mark.parametrize(
    "settings",
    [{"components": 0}, {"power": 1.5}, {"power": -1}, {"epsilon": -1}, {"normalize": "yes"}],
)
def test_whitening_refuses_a_setting_out_of_range(settings):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=next(iter(settings))):
        Whitening(**settings)


LAYERS = [
    Distance("cosine"),
    CosineClassifier(4),
    Sampling(0.3, 7, 10, 0.1),
    TimeEmbedding(6),
    LogEnergy(),
    AttentionPooling(5),
    GeMPooling(2.0),
    TokenPooling("gem", 5),
    PatchMap((2, 3), 0),
    GridPooling((2, 3)),
    AntialiasedResizing(4, 5),
    Whitening(3, 0.5, 1e-4, True),
    BackbonePreprocessing("resnet50"),
]


def test_every_layer_is_rebuilt_below():
    public = {k: v for k, v in vars(kerasim.layers).items() if k[0].isupper()}
    ours = {v for v in public.values() if isinstance(v, type) and issubclass(v, keras.Layer)}
    assert {type(layer) for layer in LAYERS} == ours


SETTINGS = {
    "Distance": "metric",
    "CosineClassifier": "num_classes",
    "Sampling": "weight seed warmup_steps free_bits",
    "TimeEmbedding": "dim",
    "LogEnergy": "",
    "AttentionPooling": "dim",
    "GeMPooling": "p",
    "TokenPooling": "mode num_prefix_tokens",
    "GridPooling": "grid",
    "AntialiasedResizing": "height width",
    "Whitening": "components power epsilon normalize",
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
    assert AntialiasedResizing(4, 5)(maps).shape == (None, 4, 5, 3)
    assert GridPooling((2, 3))(maps).shape == (None, 18)
    assert Whitening()(a).shape == (None, 3) and Whitening(2)(a).shape == (None, 2)
    tokens = keras.Input((9, 3))
    assert TokenPooling("gem")(tokens).shape == (None, 3)
    assert PatchMap((2, 4))(tokens).shape == (None, 2, 4, 3)
    assert BackbonePreprocessing("vgg16")(maps).shape == (None, 8, 8, 3)
