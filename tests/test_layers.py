import keras
import numpy as np
import pytest
from helpers import gradient_of
from keras import ops

from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.layers import DISTANCES, CosineClassifier, Distance

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


@pytest.mark.parametrize("metric", DISTANCES)
def test_distances_are_those_worked_out_in_numpy(metric):
    found = np.asarray(Distance(metric)([LEFT, RIGHT]))
    assert found.shape == (5, 1)
    np.testing.assert_allclose(found[:, 0], by_hand(metric, LEFT, RIGHT), rtol=1e-5)


@pytest.mark.parametrize("metric", DISTANCES)
def test_equal_vectors_have_distance_0_and_no_gradient(metric):
    value, gradient = gradient_of(lambda x: ops.sum(Distance(metric)([x, LEFT])), LEFT)
    assert value == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("metric", DISTANCES)
def test_zero_vectors_have_a_finite_distance_and_gradient(metric):
    zeros = np.zeros((5, 3), "float32")
    for other in (zeros, RIGHT):
        value, gradient = gradient_of(lambda x, y=other: ops.sum(Distance(metric)([x, y])), zeros)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_distance_far_from_the_origin_keeps_its_digits():
    found = np.asarray(Distance()([LEFT + 1000, RIGHT + 1000]))[:, 0]
    np.testing.assert_allclose(found, by_hand("euclidean", LEFT, RIGHT), rtol=1e-3)


@pytest.mark.parametrize("metric", DISTANCES)
def test_half_precision_is_not_let_in(metric):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        tiny = Distance(metric)([1e-5 * LEFT.astype("float16"), np.zeros((5, 3), "float16")])
        large = CosineClassifier(2)(300 * LEFT.astype("float16"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(np.asarray(tiny)).all() and np.isfinite(np.asarray(large)).all()


def test_vectors_of_two_widths_are_refused():
    with pytest.raises(ArgumentError, match="3 and 1 numbers"):
        Distance()([LEFT, RIGHT[:, :1]])


def test_an_unknown_distance_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match="metric='l2'.*'euclidean', 'squared_euclidean'"):
        Distance("l2")


def test_the_classifier_gives_the_cosine_with_each_column_of_its_kernel():
    layer = CosineClassifier(4)
    found = np.asarray(layer(LEFT))
    kernel = np.asarray(layer.kernel)
    expected = [[1 - by_hand("cosine", x[None], w[None])[0] for w in kernel.T] for x in LEFT]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5, "8", None, True])
def test_a_number_of_classes_that_is_none_is_refused(num_classes):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="num_classes"):
        CosineClassifier(num_classes)


@pytest.mark.parametrize("layer", [Distance("cosine"), CosineClassifier(4)], ids=["D", "C"])
def test_a_layer_is_rebuilt_from_its_config(layer):
    config = keras.layers.serialize(layer)
    assert keras.layers.deserialize(config).get_config() == layer.get_config()


def test_the_shapes_that_layers_state_are_those_they_give():
    a, b = keras.Input((3,)), keras.Input((3,))
    assert Distance()([a, b]).shape == (None, 1)
    assert CosineClassifier(4)(a).shape == (None, 4)
