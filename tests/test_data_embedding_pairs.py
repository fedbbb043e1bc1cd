"""Batches of stored embeddings of pairs, and heads that are trained on them."""

import tracemalloc

import keras
import numpy as np
import pytest
from sklearn.decomposition import PCA

from kerasim import data, embedding, layers, losses, metrics, models, training
from kerasim.errors import ArgumentError, ArgumentTypeError

PAIRS, DIM = 40, 3
# The first number of an embedding is the number of its pair, the second that of its version.
PAIR_NUMBERS, VERSION_NUMBERS = np.meshgrid(np.arange(PAIRS), np.arange(4), indexing="ij")
TWO_SIDES = np.stack([PAIR_NUMBERS, VERSION_NUMBERS, np.ones((PAIRS, 4))], axis=-1)
LEFT, RIGHT = TWO_SIDES[:, :2].astype("float32"), TWO_SIDES[:, 2:].astype("float32")


def epoch_of(batches, epoch=0):
    batches.epoch = epoch
    return [batches[index] for index in range(len(batches))]


def joined(batches, epoch=0):
    """Returns left embeddings, right embeddings and groups of an epoch."""
    found = epoch_of(batches, epoch)
    left, right = (np.concatenate([inputs[side] for inputs, _ in found]) for side in (0, 1))
    return left, right, np.concatenate([groups for _, groups in found])


def head(dim=DIM, units=2, name=None):
    return keras.Sequential([keras.Input((dim,)), keras.layers.Dense(units)], name=name)


# What a batch holds


def test_an_epoch_holds_each_pair_once_in_another_order_with_both_sides_together():
    batches = data.EmbeddingPairBatches(LEFT[:, 0], RIGHT[:, 0], batch_size=16)
    assert [len(groups) for _, groups in epoch_of(batches)] == [16, 16, 8]
    orders = []
    for epoch in (0, 1):
        left, right, groups = joined(batches, epoch)
        np.testing.assert_array_equal(left[:, 0], right[:, 0])
        np.testing.assert_array_equal(groups, np.stack([left[:, 0]] * 2, axis=1))
        orders.append(left[:, 0].tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(PAIRS))
    assert orders[0] != orders[1]


def test_each_side_draws_one_of_its_versions_at_random_independently_of_the_other():
    batches = data.EmbeddingPairBatches(LEFT, RIGHT, batch_size=PAIRS)
    drawn = np.concatenate(
        [
            np.stack([side[:, 1] for side in joined(batches, epoch)[:2]], axis=1)
            for epoch in range(9)
        ]
    )
    combinations, counts = np.unique(drawn, axis=0, return_counts=True)
    assert combinations.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    # 360 draws: 90 of each are expected, with a standard deviation of 8.
    assert counts.min() > 60 and counts.max() < 120


def test_one_side_may_have_more_versions_than_the_other():
    batches = data.EmbeddingPairBatches(LEFT, RIGHT[:, 0], batch_size=PAIRS)
    assert batches.versions == (2, 1)
    left, right, _ = joined(batches)
    assert set(left[:, 1]) == {0, 1} and set(right[:, 1]) == {2}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_batch_is_float32(dtype):
    batches = data.EmbeddingPairBatches(LEFT.astype(dtype), RIGHT.astype(dtype))
    (left, right), groups = batches[0]
    assert left.dtype == right.dtype == groups.dtype == "float32"


def test_a_batch_depends_on_seed_epoch_and_index_alone():
    def make(seed=5):
        return data.EmbeddingPairBatches(LEFT, RIGHT, batch_size=8, seed=seed)

    one, other = make(), make()
    epoch_of(one), epoch_of(one, 1)
    one.epoch = other.epoch = 2
    for index in (4, 0):  # in another order than that of an epoch
        for x, y in zip(*map(keras.tree.flatten, (one[index], other[index])), strict=True):
            np.testing.assert_array_equal(x, y)
    assert not np.array_equal(joined(make(5))[0], joined(make(6))[0])


def test_groups_of_any_names_become_small_integers():
    names = np.array(["a", "b"] * (PAIRS // 2))
    left, _, groups = joined(data.EmbeddingPairBatches(LEFT, RIGHT, names))
    np.testing.assert_array_equal(groups[:, 0], left[:, 0] % 2)
    sides = np.stack([np.arange(PAIRS) * 1000, np.arange(PAIRS) * 1000 + 1], axis=1)
    groups = data.EmbeddingPairBatches(LEFT, RIGHT, sides)[0][1]
    assert sorted(groups.ravel()) == list(range(2 * PAIRS))


def test_embeddings_in_a_file_give_the_same_batches_and_settings(tmp_path):
    for name, side in (("left", LEFT), ("right", RIGHT)):
        np.save(tmp_path / f"{name}.npy", side)
    files = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("left", "right")]
    stored = data.EmbeddingPairBatches(*files, batch_size=8)
    in_memory = data.EmbeddingPairBatches(LEFT, RIGHT, batch_size=8)
    for x, y in zip(joined(stored), joined(in_memory), strict=True):
        np.testing.assert_array_equal(x, y)
    assert stored.settings() == in_memory.settings()


def test_embeddings_in_a_file_are_never_read_into_memory_as_a_whole(tmp_path):
    shape = 16_384, 2, 1024  # 128 MiB
    np.memmap(tmp_path / "side.bin", "float32", "w+", shape=shape).flush()
    side = np.memmap(tmp_path / "side.bin", "float32", "r", shape=shape)
    tracemalloc.start()
    try:
        batches = data.EmbeddingPairBatches(side, side[:, ::-1], batch_size=64)
        batches.settings()
        for index in range(8):
            batches[index]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**25


def test_the_repr_names_pairs_batches_and_versions():
    shown = repr(data.EmbeddingPairBatches(LEFT, RIGHT, batch_size=16, seed=4))
    assert shown == (
        "EmbeddingPairBatches(40 pairs of embeddings of 3, 3 batches of 16 per epoch, seed=4, "
        "versions=(2, 2))"
    )
    assert "versions" not in repr(data.EmbeddingPairBatches(LEFT[:, 0], RIGHT[:, 0]))


@pytest.mark.parametrize(
    "change",
    [
        {"left": RIGHT},
        {"right": LEFT},
        {"groups": np.arange(PAIRS) // 2},
        {"batch_size": 8},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_change_with_what_determines_the_batches(change):
    given = {"left": LEFT, "right": RIGHT, "batch_size": 16}
    one = data.EmbeddingPairBatches(**given).settings()
    assert data.EmbeddingPairBatches(**{**given, **change}).settings() != one


# What is refused

WITH_NAN = np.where(TWO_SIDES[:, :2] == 7, np.nan, TWO_SIDES[:, :2])


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"left": WITH_NAN}, ArgumentError, "left holds NaN or infinity in 1 of 40 rows: 7"),
        ({"right": np.full_like(RIGHT, np.inf)}, ArgumentError, "right holds NaN or infinity"),
        ({"right": RIGHT[:39]}, ArgumentError, r"right \(39, 2, 3\): pass one row for each"),
        ({"right": RIGHT[..., :2]}, ArgumentError, r"right \(40, 2, 2\).*of one embedder"),
        ({"left": LEFT[:, 0, 0]}, ArgumentError, r"left has shape \(40,\), expected embeddings"),
        ({"left": LEFT[:0]}, ArgumentError, r"left has shape \(0, 2, 3\), expected"),
        ({"left": LEFT[:, :0]}, ArgumentError, r"left has shape \(40, 0, 3\), expected"),
        (
            {"left": np.zeros((40, 8, 8, 1), "uint8")},
            ArgumentTypeError,
            "left has shape .* that of images.*Embed the images first",
        ),
        ({"right": np.zeros((40, 8, 8, 1))}, ArgumentTypeError, "right .*Embed the images first"),
        (
            {"left": LEFT.astype("uint8")},
            ArgumentTypeError,
            "left has dtype uint8, expected floats. Embed the images first",
        ),
        ({"left": "left.npy"}, ArgumentTypeError, "left has dtype .*np.load"),
        ({"groups": [1, 2]}, ArgumentError, r"groups has shape \(2,\), left has 40 rows"),
        ({"groups": np.full(PAIRS, np.nan)}, ArgumentError, "groups holds no label"),
        ({"groups": np.zeros(PAIRS, int)}, ArgumentError, "groups: 40 pairs have one group in"),
        ({"batch_size": 1}, ArgumentError, "batch_size=1 is out of range"),
    ],
)
def test_what_is_not_pairs_of_embeddings_is_refused(change, kind, said):
    with pytest.raises(kind, match=said):
        data.EmbeddingPairBatches(**{"left": LEFT, "right": RIGHT, **change})


def test_pairs_that_all_share_a_group_on_one_side_or_the_other_are_refused():
    shared = np.stack([np.zeros(PAIRS, int), np.arange(PAIRS)], axis=1)
    shared[::2] = shared[::2, ::-1]
    with pytest.raises(ArgumentError, match="no pair has a negative"):
        data.EmbeddingPairBatches(LEFT, RIGHT, shared)
    with pytest.raises(ArgumentError, match="1 pair has one group in common"):
        data.EmbeddingPairBatches(LEFT[:1], RIGHT[:1])


def test_an_image_folder_is_refused_with_what_to_do(tmp_path):
    keras.utils.save_img(tmp_path / "one.png", np.zeros((8, 8, 1)), scale=False)
    with pytest.raises(ArgumentTypeError, match="left is an ImageFolder.*Embed the images first"):
        data.EmbeddingPairBatches(data.image_folder(tmp_path, 8), RIGHT)


def test_embeddings_of_another_size_than_the_head_takes_are_refused_before_the_first_step():
    net = models.siamese(head(dim=5), metric=None)
    net.compile("sgd", losses.InfoNCELoss())
    with pytest.raises(ArgumentError, match=r"left of shape \(3,\).*Pass vectors of that size"):
        training.fit(net, data.EmbeddingPairBatches(LEFT, RIGHT), epochs=1, verbose=0)


# Exact resume


def compiled(loss=None):
    """Returns a network with Dropout and Adam, always with the same weights."""
    keras.utils.set_random_seed(7)
    dropout_head = keras.Sequential(
        [keras.Input((DIM,)), keras.layers.Dropout(0.3), keras.layers.Dense(4)]
    )
    net = models.siamese(dropout_head, metric=None)
    net.compile(keras.optimizers.Adam(0.01), loss or losses.InfoNCELoss())
    return net


def train(run_dir, epochs, **change):
    given = {"left": LEFT / PAIRS, "right": RIGHT / PAIRS, "batch_size": 16, "seed": 3, **change}
    net = compiled()
    history = training.fit(net, data.EmbeddingPairBatches(**given), epochs, run_dir, verbose=0)
    return net, history


@pytest.mark.fault("killed-training")
def test_a_run_in_two_calls_ends_bit_equal_to_one_call(tmp_path):
    one, history = train(tmp_path / "one", 4)
    train(tmp_path / "two", 1)
    two, resumed = train(tmp_path / "two", 4)
    for x, y in zip(one.get_weights(), two.get_weights(), strict=True):
        assert x.tobytes() == y.tobytes()
    assert history["loss"].tolist() == resumed["loss"].tolist()


@pytest.mark.fault("killed-training")
def test_a_run_killed_in_an_epoch_and_resumed_on_a_file_ends_bit_equal_to_one_call(tmp_path):
    class Killed(Exception):
        pass

    def kill(batch, logs):
        if state["epoch"] == 2 and batch == 1:
            raise Killed

    state = {}
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: state.update(epoch=epoch), on_train_batch_end=kill
    )
    one, _ = train(tmp_path / "one", 4)
    sides = {"left": LEFT / PAIRS, "right": RIGHT / PAIRS}
    batches = data.EmbeddingPairBatches(**sides, batch_size=16, seed=3)
    with pytest.raises(Killed):
        training.fit(compiled(), batches, 4, tmp_path / "two", callbacks=[watch], verbose=0)
    for name, side in sides.items():
        np.save(tmp_path / f"{name}.npy", side)
    files = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in sides}
    two, history = train(tmp_path / "two", 4, **files)
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    for x, y in zip(one.get_weights(), two.get_weights(), strict=True):
        assert x.tobytes() == y.tobytes()


@pytest.mark.fault("restart-with-changes")
def test_a_run_on_other_embeddings_is_refused(tmp_path):
    train(tmp_path, 1)
    with pytest.raises(ArgumentError, match="batches.*right"):
        train(tmp_path, 2, right=LEFT / PAIRS)


# Heads

VECTORS = np.random.default_rng(0).normal(size=(10, DIM)).astype("float32")


@pytest.mark.parametrize("metric", ["euclidean", "squared_euclidean", "cosine"])
def test_a_siamese_network_of_a_head_returns_the_distance_of_its_embeddings(metric):
    layer = layers.Distance(metric)
    tower = head()
    embedded = embedding.embed(tower, VECTORS)
    expected = layer([embedded, embedded[::-1].copy()])
    found = models.siamese(tower, metric)([VECTORS, VECTORS[::-1].copy()])
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found, expected)), atol=1e-5)


def test_embed_applies_a_head_to_vectors_in_batches_and_stores_them(tmp_path):
    tower = head()
    expected = tower.predict(VECTORS, verbose=0)
    for cache in (None, tmp_path, tmp_path):
        found = embedding.embed(tower, VECTORS.astype("float64"), batch_size=4, cache=cache)
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert embedding.embed(tower, VECTORS[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("images", "settings", "said"),
    [
        (np.zeros((4, 8, 8, 1)), {}, r"images has shape .* the embedder takes vectors of 3"),
        (VECTORS[:, :2], {}, r"images must be an array \(n, 3\)"),
        (np.full((4, 3), np.nan), {}, "images holds NaN"),
        (VECTORS, {"flip": True}, "flip=True, but the embedder takes vectors"),
    ],
)
def test_embed_refuses_what_a_head_does_not_take(images, settings, said):
    with pytest.raises(ArgumentError, match=said):
        embedding.embed(head(), images, **settings)


def test_a_function_of_images_refuses_a_head_and_says_to_append_it_to_its_backbone():
    said = r"keras.Sequential\(\[backbone, embedders\[0\]\]\)"
    with pytest.raises(ArgumentTypeError, match=said):
        models.ensemble([head(), head()])


def test_retrieval_of_pairs_stands_in_the_history_beside_untrained_head_and_stored_embeddings():
    rng = np.random.default_rng(0)
    left = rng.normal(size=(30, DIM))
    right = left + rng.normal(size=left.shape) * 0.2
    tower = head()
    net = models.siamese(tower, metric=None)
    net.compile("sgd", losses.InfoNCELoss())
    numbers = np.arange(10)
    callback = training.RetrievalCallback(tower, left[:10], numbers, right[:10], numbers, k=1)
    batches = data.EmbeddingPairBatches(left[10:], right[10:])
    history = training.fit(net, batches, 1, callbacks=[callback], verbose=0)
    names = ["val_recall@1", "val_recall@1_untrained", "val_recall@1_inputs"]
    assert [name for name in history if "recall" in name] == names
    expected = metrics.retrieval(left[:10], numbers, right[:10], numbers, ks=[1])["recall@1"]
    assert history["val_recall@1_inputs"].item() == pytest.approx(expected)
    with pytest.raises(ArgumentError, match=r"gallery must be an array \(n, 3\)"):
        training.RetrievalCallback(tower, left, range(30), right[:, :2], range(30))


# A head for each side


def test_a_right_embedder_embeds_the_right_side_with_weights_of_its_own():
    left_head, right_head = head(), head()
    net = models.siamese(left_head, metric=None, right_embedder=right_head)
    assert net.count_params() == 2 * left_head.count_params()
    both = keras.ops.convert_to_numpy(net([VECTORS, VECTORS]))
    np.testing.assert_allclose(both[:, 0], embedding.embed(left_head, VECTORS), atol=1e-6)
    np.testing.assert_allclose(both[:, 1], embedding.embed(right_head, VECTORS), atol=1e-6)


def test_both_heads_of_the_same_name_are_trained_and_saved(tmp_path):
    heads = [head(name="head") for _ in range(2)]
    before = [tower.get_weights()[0] for tower in heads]
    net = models.siamese(heads[0], metric=None, right_embedder=heads[1])
    net.compile("sgd", losses.InfoNCELoss())
    training.fit(net, data.EmbeddingPairBatches(LEFT / PAIRS, RIGHT / PAIRS), 1, verbose=0)
    for tower, weights in zip(heads, before, strict=True):
        assert not np.array_equal(tower.get_weights()[0], weights)
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    found, expected = (keras.ops.convert_to_numpy(each([VECTORS] * 2)) for each in (loaded, net))
    np.testing.assert_array_equal(found, expected)


def test_the_same_model_as_right_embedder_shares_its_weights():
    tower = head()
    assert models.siamese(tower, right_embedder=tower).count_params() == tower.count_params()


def test_sides_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ArgumentError, match="right_embedder returns vectors of 4, but embedder of"):
        models.siamese(head(units=2), right_embedder=head(units=4))
    backbone = head()
    towers = [keras.Sequential([backbone, keras.layers.Dense(2)]) for _ in range(2)]
    with pytest.raises(ArgumentError, match="embedder and right_embedder share layers, such as"):
        models.siamese(towers[0], right_embedder=towers[1])


# Learning on the digits


def embeddings_of_noisy_digits(count=1200, dim=48):
    """Returns the principal components of two noisy copies of each digit, `(count, dim)` twice.

    Both copies have strong gray rows at random heights, which hide the digits from the cosine of
    principal components.
    """
    rng = np.random.default_rng(0)
    digits = data.load_dataset("digits").x_train[:count, 4:-4, 4:-4, 0]
    sides = [digits + 1.5 * rng.random((count, digits.shape[1], 1)) for _ in range(2)]
    rows = np.concatenate(sides).reshape(2 * count, -1)
    return np.split(PCA(dim, random_state=0).fit_transform(rows).astype("float32"), 2)


def whitened_head(dim, fitted):
    """Returns a head: whitening, which is fitted, then a linear layer that begins as identity."""
    whitening = layers.Whitening()
    linear = keras.layers.Dense(dim, use_bias=False, kernel_initializer="identity")
    tower = keras.Sequential([keras.Input((dim,)), whitening, linear])
    whitening.adapt(fitted)
    return tower


def recall(left, right):
    numbers = np.arange(len(left))
    return metrics.retrieval(left, numbers, right, numbers, ks=[1])["recall@1"]


def test_a_head_finds_more_pairs_that_it_was_not_trained_on_than_whitening_and_stored_embeddings():
    left, right = embeddings_of_noisy_digits()
    train, test = slice(0, 800), slice(800, None)
    keras.utils.set_random_seed(0)
    tower = whitened_head(left.shape[1], np.concatenate([left[train], right[train]]))
    figures = {"stored": recall(left[test], right[test])}
    figures["whitened"] = recall(*(embedding.embed(tower, x[test]) for x in (left, right)))
    net = models.siamese(tower, metric=None)
    net.compile(keras.optimizers.Adam(5e-3), losses.InfoNCELoss())
    batches = data.EmbeddingPairBatches(left[train], right[train], batch_size=200)
    training.fit(net, batches, epochs=10, verbose=0)
    figures["trained"] = recall(*(embedding.embed(tower, x[test]) for x in (left, right)))
    assert figures["trained"] > figures["whitened"] + 0.3, figures
    assert figures["trained"] > figures["stored"] + 0.6, figures


def test_a_head_behind_its_backbone_is_one_embedder_of_images(tmp_path):
    images = np.random.default_rng(0).random((20, 8, 8, 1), dtype="float32")
    convolution, pooling = keras.layers.Conv2D(4, 3), layers.GridPooling((2, 2))
    backbone = keras.Sequential([keras.Input((8, 8, 1)), convolution, pooling])
    stored = embedding.embed(backbone, images)
    tower = whitened_head(16, stored)
    embedder = keras.Sequential([backbone, tower])
    expected = embedding.embed(tower, stored)
    np.testing.assert_allclose(embedding.embed(embedder, images), expected, atol=1e-4)
    embedder.save(tmp_path / "embedder.keras")
    loaded = embedding.load_embedder(tmp_path / "embedder.keras")
    np.testing.assert_allclose(embedding.embed(loaded, images), expected, atol=1e-4)
