import keras
import numpy as np
import pytest

from kerasim import data, embedding, export, losses, models
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


@pytest.mark.fault("identical-pair")
@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
def test_training_on_pairs_of_equal_images_stays_finite(distance):
    net = models.siamese(embedder(), distance)
    net.compile("sgd", losses.ContrastiveLoss())
    net.fit([LEFT, LEFT], np.ones(6), verbose=0)
    assert all(np.isfinite(weight).all() for weight in net.get_weights())


def test_a_saved_siamese_network_returns_the_same_distances(tmp_path):
    net = models.siamese(embedder(), "cosine")
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(values(loaded([LEFT, RIGHT])), values(net([LEFT, RIGHT])))


def test_an_ensemble_concatenates_normalized_embeddings():
    members = [embedder(3, "same_name"), embedder(5, "same_name")]
    joint = models.ensemble(members)
    parts = [embedding.embed(member, LEFT) for member in members]
    expected = np.concatenate(
        [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], axis=1
    )
    np.testing.assert_allclose(embedding.embed(joint, LEFT), expected, atol=1e-6)


def test_a_saved_ensemble_returns_the_same_embeddings(tmp_path):
    joint = models.ensemble([embedder(), embedder()])
    joint.save(tmp_path / "joint.keras")
    loaded = keras.saving.load_model(tmp_path / "joint.keras")
    np.testing.assert_array_equal(embedding.embed(loaded, LEFT), embedding.embed(joint, LEFT))


def test_the_cosine_of_a_weighted_ensemble_is_the_weighted_mean_of_those_of_its_members():
    members = [embedder(3), embedder(5)]
    joint = embedding.embed(models.ensemble(members, weights=(3, 1)), LEFT)
    cosines = [unit @ unit.T for unit in map(unit_vectors, members)]
    np.testing.assert_allclose(joint @ joint.T / 4, np.average(cosines, 0, [3, 1]), atol=1e-6)


def unit_vectors(model, images=LEFT):
    vectors = embedding.embed(model, images)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def larger(size, channels=1):
    images = keras.Input((size, size, channels))
    x = keras.layers.Rescaling(2.0, -1.0)(images)  # a preprocessing of its own
    return keras.Model(images, keras.layers.Dense(4)(keras.layers.Flatten()(x)))


SIZES = [6, 3]  # larger and smaller than the images of the ensemble
JOINT_IMAGES = np.random.default_rng(1).random((3, 4, 4, 1), dtype="float32")


@pytest.fixture(scope="module")
def members():
    return [embedder(3), *map(larger, SIZES)]


@pytest.fixture(scope="module")
def joint(members):
    return models.ensemble(members, weights=(2, 1, 0.5), image_shape=(4, 4, 1))


def test_members_of_another_size_get_resized_images(members, joint):
    expected = [unit_vectors(members[0], JOINT_IMAGES) * np.sqrt(2)]
    for size, model, weight in zip(SIZES, members[1:], (1, 0.5), strict=True):
        resized = keras.ops.image.resize(JOINT_IMAGES, (size, size), antialias=True)
        expected.append(unit_vectors(model, np.clip(values(resized), 0, 1)) * np.sqrt(weight))
    found = embedding.embed(joint, JOINT_IMAGES)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-5)


def test_an_ensemble_of_several_sizes_is_saved_and_loaded(joint, tmp_path):
    joint.save(tmp_path / "joint.keras")
    loaded = embedding.load_embedder(tmp_path / "joint.keras")
    np.testing.assert_array_equal(values(loaded(JOINT_IMAGES)), values(joint(JOINT_IMAGES)))


@pytest.mark.tensorflow("export")
def test_an_ensemble_of_several_sizes_is_exported_with_equal_outputs(joint, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export.export_saved_model(joint, tmp_path / "saved")
    export.export_onnx(joint, tmp_path / "joint.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "joint.onnx")
    expected = values(joint(JOINT_IMAGES))
    saved = export.load_saved_model(tmp_path / "saved")(JOINT_IMAGES)
    np.testing.assert_allclose(saved, expected, atol=1e-5)
    (found,) = session.run(None, {"images": JOINT_IMAGES})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_member_of_images_of_any_size_takes_those_of_the_ensemble():
    images = keras.Input((None, None, 1))
    any_size = keras.Model(images, keras.layers.GlobalMaxPooling2D()(images))
    joint = models.ensemble([any_size, larger(6)], image_shape=(4, 4, 1))
    names = [layer.name for layer in joint.layers]
    assert "resize2" in names and "resize1" not in names


def test_members_that_share_layers_are_refused_because_they_could_not_be_loaded(members):
    shared = keras.Model(members[1].inputs, members[1].layers[-2].output)
    longer = keras.Sequential([members[1], keras.layers.Dense(2)])
    with pytest.raises(ArgumentError, match=r"\[0\] and embedders\[2\] share layers, such as"):
        models.ensemble([members[1], shared, longer])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "several shapes, .* Pass image_shape"),
        ({"image_shape": (4, 4, 3)}, r"embedders\[0\] takes images of 1 channels"),
        ({"image_shape": (4, None, 1)}, "width of image_shape"),
        ({"weights": (1, 2, 3), "image_shape": (4, 4, 1)}, "weights=.*each of the 2 embedders"),
        ({"weights": (1, 0), "image_shape": (4, 4, 1)}, "weights=.*pass a positive number"),
        ({"weights": 2, "image_shape": (4, 4, 1)}, "weights must be a list"),
    ],
)
def test_settings_that_do_not_fit_the_members_are_refused(members, settings, said):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=said):
        models.ensemble(members[:2], **settings)


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
def test_a_model_that_is_not_an_embedder_is_refused_by_name(given, kind, said):
    with pytest.raises(kind, match=f"embedder .*{said}"):
        models.siamese(given)
    with pytest.raises(kind, match=rf"embedders\[1\] .*{said}"):
        models.ensemble([embedder(), given])


def test_an_ensemble_needs_two_members_with_equal_input_shapes():
    with pytest.raises(ArgumentError, match="embedders holds 1 models"):
        models.ensemble([embedder()])
    with pytest.raises(ArgumentError, match="several shapes"):
        models.ensemble([embedder(), embedder(channels=3)])


def test_an_unknown_distance_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match="metric='manhattan'.*'cosine'"):
        models.siamese(embedder(), "manhattan")
