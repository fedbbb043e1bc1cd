import keras
import numpy as np
import pytest
from sklearn.decomposition import PCA

from kerasim import data, losses, models
from kerasim.errors import ArgumentError

PARTS = [(4, 3), (1, 5)]


def features(count=60, seed=0):
    """Returns features of four cells of three channels, then one cell of five channels."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 17)) * rng.uniform(0.1, 10, 17) + 3).astype("float32")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_an_untrained_head_whitens_each_part_and_scales_it_to_length_1():
    fitted, x = features(), features(5, seed=1)
    head = models.whitened_head(fitted, PARTS, power=1.0)
    expected = []
    for columns, channels in ((slice(0, 12), 3), (slice(12, 17), 5)):
        pca = PCA(whiten=True).fit(fitted[:, columns].reshape(-1, channels))
        expected.append(unit(pca.transform(x[:, columns].reshape(-1, channels)).reshape(5, -1)))
    # The sign of a principal component is arbitrary, so cosines are compared.
    cosines = np.mean([part @ part.T for part in expected], axis=0)
    embeddings = unit(head.predict(x, verbose=0))
    np.testing.assert_allclose(embeddings @ embeddings.T, cosines, atol=1e-4)


def test_components_limits_each_part_to_its_number_of_channels():
    assert models.whitened_head(features(), PARTS, components=4).output_shape == (None, 4 * 3 + 4)


def test_without_parts_all_columns_are_one_part():
    assert models.whitened_head(features()).output_shape == (None, 17)


def test_only_the_linear_layers_train():
    head = models.whitened_head(features(), PARTS)
    assert [weight.path for weight in head.trainable_weights] == [
        "linear1/kernel",
        "linear2/kernel",
    ]


def test_training_the_linear_layers_finds_more_pairs_that_were_not_trained():
    rng = np.random.default_rng(0)
    digits = data.load_dataset("digits", image_size=24).x_train[:600, ..., 0]
    # The right image of a pair is the transposed left one, with noise: a linear map of pixels.
    left = digits.reshape(600, -1)
    right = digits.transpose(0, 2, 1).reshape(600, -1) + 0.1 * rng.normal(size=left.shape)
    head = models.whitened_head(np.concatenate([left[:400], right[:400]]), components=40, power=0.5)

    def accuracy():
        sides = [head.predict(side[400:], verbose=0) for side in (left, right)]
        cosines = unit(sides[0]) @ unit(sides[1]).T
        return np.mean(cosines.argmax(axis=1) == np.arange(200))

    before = accuracy()
    inputs = [keras.Input((576,)) for _ in range(2)]
    both = keras.layers.Concatenate()([head(side) for side in inputs])
    net = keras.Model(inputs, keras.layers.Reshape((2, 40))(both))
    net.compile(keras.optimizers.Adam(3e-3), losses.InfoNCELoss(0.1))
    groups = np.tile(np.arange(400.0)[:, None], 2)
    net.fit([left[:400], right[:400]], groups, batch_size=100, epochs=25, verbose=0)
    assert accuracy() > 0.3 + before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": [(4, 3)]}, "parts=.* adds up to 12, but features has 17 columns"),
        ({"parts": [(4, 3, 1)]}, r"parts holds \(4, 3, 1\).*Pass \(cells, channels\)"),
        ({"parts": []}, "adds up to 0"),
        ({"parts": [(4, 3), (0, 5)]}, r"cells of \(0, 5\) in parts"),
        ({"components": 0}, "components=0"),
        ({"power": 2.0}, "power=2.0"),
    ],
)
def test_an_unsuitable_argument_is_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        models.whitened_head(features(), **arguments)


def test_too_few_features_are_refused():
    with pytest.raises(ArgumentError, match="too few for 17 components"):
        models.whitened_head(features(10))
