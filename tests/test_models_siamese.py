import keras
import numpy as np
import pytest

from kerasim import data, embedding, losses, models
from kerasim.errors import ArgumentError, ArgumentTypeError

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.random((2, 6, 4, 4, 1), dtype="float32")


def embedder(dim=3, name=None, channels=1):
    x = keras.Input((4, 4, channels))
    return keras.Model(x, keras.layers.Dense(dim)(keras.layers.Flatten()(x)), name=name)


def values(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


keras.utils.set_random_seed(0)
EMBEDDER = embedder(5)


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
def test_a_siamese_net_gives_the_distance_of_the_embeddings(distance):
    one, other = embedding.embed(EMBEDDER, LEFT), embedding.embed(EMBEDDER, RIGHT)
    expected = {
        "euclidean": np.linalg.norm(one - other, axis=1),
        "squared_euclidean": np.square(one - other).sum(axis=1),
        "cosine": 1
        - (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1),
    }[distance]
    net = models.siamese(EMBEDDER, distance)
    np.testing.assert_allclose(values(net([LEFT, RIGHT])), expected[:, None], atol=1e-5)


def test_without_a_distance_it_gives_both_embeddings():
    both = values(models.siamese(EMBEDDER, None)([LEFT, RIGHT]))
    assert both.shape == (6, 2, 5)
    np.testing.assert_allclose(both[:, 0], embedding.embed(EMBEDDER, LEFT), atol=1e-6)
    np.testing.assert_allclose(both[:, 1], embedding.embed(EMBEDDER, RIGHT), atol=1e-6)


def test_both_sides_share_the_weights_of_the_embedder():
    tower = embedder()
    net = models.siamese(tower, metric="euclidean")
    assert net.count_params() == tower.count_params()
    before = embedding.embed(tower, LEFT)
    net.compile("sgd", losses.ContrastiveLoss())
    net.fit(data.PairBatches(LEFT, np.arange(6) % 2, batch_size=6), verbose=0)
    assert not np.allclose(embedding.embed(tower, LEFT), before)


@pytest.mark.fault(35)
@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
def test_training_on_an_image_beside_itself_stays_finite(distance):
    net = models.siamese(embedder(), distance)
    net.compile("sgd", losses.ContrastiveLoss())
    net.fit([LEFT, LEFT], np.ones(6), verbose=0)
    assert all(np.isfinite(weight).all() for weight in net.get_weights())


def test_a_saved_siamese_net_loads_and_agrees(tmp_path):
    net = models.siamese(embedder(), "cosine")
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(values(loaded([LEFT, RIGHT])), values(net([LEFT, RIGHT])))


def test_an_ensemble_is_unit_embeddings_side_by_side():
    members = [embedder(3, "same_name"), embedder(5, "same_name")]
    joint = models.ensemble(members)
    parts = [embedding.embed(member, LEFT) for member in members]
    expected = np.concatenate(
        [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], axis=1
    )
    np.testing.assert_allclose(embedding.embed(joint, LEFT), expected, atol=1e-6)


def test_a_saved_ensemble_loads_and_agrees(tmp_path):
    joint = models.ensemble([embedder(), embedder()])
    joint.save(tmp_path / "joint.keras")
    loaded = keras.saving.load_model(tmp_path / "joint.keras")
    np.testing.assert_array_equal(embedding.embed(loaded, LEFT), embedding.embed(joint, LEFT))


TWO_INPUTS = models.siamese(embedder(), metric="euclidean")
NO_VECTORS = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3)])


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (None, ArgumentTypeError, "must be a keras.Model of images. Received NoneType"),
        (keras.Sequential(), ArgumentTypeError, "must be a keras.Model .* Received Sequential"),
        (TWO_INPUTS, ArgumentTypeError, "must be a keras.Model of images.*a model with one input"),
        (NO_VECTORS, ArgumentError, r"must map images to vectors.*\(None, 2, 2, 2\)"),
    ],
)
def test_what_is_no_embedder_is_refused_by_name(given, kind, said):
    with pytest.raises(kind, match=f"embedder .*{said}"):
        models.siamese(given)
    with pytest.raises(kind, match=rf"embedders\[1\] .*{said}"):
        models.ensemble([embedder(), given])


def test_an_ensemble_needs_two_members_of_one_shape():
    with pytest.raises(ArgumentError, match="embedders holds 1 models"):
        models.ensemble([embedder()])
    with pytest.raises(ArgumentError, match="several shapes"):
        models.ensemble([embedder(), embedder(channels=3)])


def test_an_unknown_distance_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match="metric='manhattan'.*'cosine'"):
        models.siamese(embedder(), "manhattan")
