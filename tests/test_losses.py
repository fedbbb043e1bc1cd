import inspect

import keras
import numpy as np
import pytest

from kerasim import layers, losses, models
from kerasim.data import ImageBatches, PositivePairBatches
from kerasim.errors import ArgumentError, ArgumentTypeError
from tests.helpers.gradients import gradient_of

RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.standard_normal((24, 6)).astype("float32")
LABELS = RNG.integers(0, 5, 24)
KERNEL = RNG.standard_normal((6, 5)).astype("float32")

# Printed by tests/peers/losses.py, which says how to run it.
REFERENCE = {
    ("TripletLoss", 1.5, "euclidean", "all"): 1.6094258,
    ("TripletLoss", 1.5, "euclidean", "semi_hard"): 0.8493680,
    ("TripletLoss", 1.5, "euclidean", "hard"): 2.4060082,
    ("TripletLoss", 1.5, "squared_euclidean", "all"): 3.9159889,
    ("TripletLoss", 1.5, "squared_euclidean", "semi_hard"): 0.7429048,
    ("TripletLoss", 1.5, "squared_euclidean", "hard"): 7.1123390,
    ("TripletLoss", 0.3, "cosine", "all"): 0.4368246,
    ("TripletLoss", 0.3, "cosine", "semi_hard"): 0.1538999,
    ("TripletLoss", 0.3, "cosine", "hard"): 0.7919855,
    ("AngularLoss",): 4.1488032,
    ("MultiSimilarityLoss",): 1.5283478,
    ("SupConLoss",): 7.9481454,
    ("NTXentLoss",): 7.7143688,
    ("ArcFaceLoss",): 57.2752533,
}
EMBEDDER_TOO = keras.Sequential(
    [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
)
# Other values than the defaults.
CHANGED = [
    losses.ContrastiveLoss(margin=0.3, squared_margin=True),
    losses.BatchContrastiveLoss(margin=0.3, metric="cosine", squared_margin=True),
    losses.TripletLoss(margin=0.4, metric="euclidean", mining="hard"),
    losses.InBatchTripletLoss(margin=0.5, mining="semi_hard", metric="euclidean"),
    losses.InfoNCELoss(temperature=0.2),
    losses.AngularLoss(angle=30.0),
    losses.MultiSimilarityLoss(alpha=1.0, beta=20.0, base=0.4),
    losses.SupConLoss(temperature=0.3),
    losses.NTXentLoss(temperature=0.4),
    losses.ArcFaceLoss(margin=0.2, scale=16.0),
]
ON_LABELS = [
    losses.TripletLoss(metric="euclidean"),
    losses.TripletLoss(mining="semi_hard", metric="euclidean"),
    losses.TripletLoss(metric="cosine", mining="hard"),
    losses.AngularLoss(),
    losses.MultiSimilarityLoss(),
    losses.SupConLoss(),
    losses.NTXentLoss(),
    losses.BatchContrastiveLoss(metric="cosine"),
]
ON_PAIRS = [
    losses.InBatchTripletLoss(),
    losses.InBatchTripletLoss(metric="euclidean"),
    losses.InfoNCELoss(),
]


def kind_of(loss):
    return type(loss).__name__


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: "-".join(map(str, case)))
def test_a_loss_has_the_value_that_pytorch_metric_learning_gives(case):
    name, *arguments = case
    if name == "ArcFaceLoss":
        classifier = layers.CosineClassifier(5)
        classifier.build((None, 6))
        classifier.kernel.assign(KERNEL)
        value = losses.ArcFaceLoss(margin=np.deg2rad(28.65))(LABELS, classifier(EMBEDDINGS))
    else:
        value = getattr(losses, name)(*arguments)(LABELS, EMBEDDINGS)
    value = keras.ops.convert_to_numpy(value)
    np.testing.assert_allclose(value, REFERENCE[case], rtol=1e-5)


def test_every_loss_is_tested_with_values_that_are_not_its_defaults():
    public = {
        name
        for name, kind in vars(losses).items()
        if inspect.isclass(kind) and issubclass(kind, keras.Loss) and name[0] != "_"
    }
    assert {kind_of(loss) for loss in CHANGED} == public
    for loss in CHANGED:
        default = type(loss)().get_config()
        changed = [key for key, value in loss.get_config().items() if default[key] != value]
        assert len(changed) == len(inspect.signature(type(loss)).parameters) - 1


@pytest.mark.parametrize("loss", CHANGED, ids=kind_of)
def test_a_loss_is_rebuilt_from_its_config(loss):
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(copy) is type(loss) and copy.get_config() == loss.get_config()


@pytest.mark.parametrize("loss", CHANGED, ids=kind_of)
def test_a_compiled_loss_survives_saving(loss, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", loss)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == loss.get_config()


# ContrastiveLoss


def test_contrastive_loss_agrees_with_a_sum_done_by_hand():
    same, distance = np.array([1.0, 0.0, 0.0]), np.array([[0.5], [0.5], [3.0]])
    loss = losses.ContrastiveLoss(margin=2.0)(same, distance)
    np.testing.assert_allclose(float(loss), (0.5**2 + 1.5**2 + 0) / 3, rtol=1e-6)


def test_contrastive_loss_with_a_squared_margin_agrees_with_a_sum_done_by_hand():
    same, distance = np.array([1.0, 0.0, 0.0]), np.array([[0.5], [0.5], [3.0]])
    loss = losses.ContrastiveLoss(margin=2.0, squared_margin=True)(same, distance)
    np.testing.assert_allclose(float(loss), (0.5**2 + (2.0**2 - 0.5**2) + 0) / 3, rtol=1e-6)


def test_contrastive_loss_takes_same_in_either_rank():
    rng = np.random.default_rng(1)
    same, distance = rng.integers(0, 2, 8).astype("float32"), rng.random((8, 1))
    loss = losses.ContrastiveLoss()
    assert float(loss(same, distance)) == float(loss(same[:, None], distance))


# BatchContrastiveLoss


@pytest.mark.parametrize("squared_margin", [True, False])
def test_batch_contrastive_loss_is_the_contrastive_loss_of_all_pairs_with_half_positive(
    squared_margin,
):
    left, right = np.triu_indices(len(LABELS), 1)
    distances = np.linalg.norm(EMBEDDINGS[left] - EMBEDDINGS[right], axis=1)
    same = LABELS[left] == LABELS[right]
    pair_loss = losses.ContrastiveLoss(2.0, squared_margin)
    kinds = [
        float(pair_loss(np.full(kind.sum(), value), distances[kind]))
        for kind, value in ((same, 1.0), (~same, 0.0))
    ]
    loss = losses.BatchContrastiveLoss(2.0, "euclidean", squared_margin)
    np.testing.assert_allclose(float(loss(LABELS, EMBEDDINGS)), np.mean(kinds), rtol=1e-5)


def test_batch_contrastive_loss_counts_every_ordered_pair():
    assert float(losses.BatchContrastiveLoss().count_valid(LABELS, EMBEDDINGS)) == 24 * 23


# Losses on a labeled batch


def triplets(d, labels, mining, margin):
    """All triplets in three loops."""
    costs = []
    n = range(len(labels))
    for a in n:
        for p in n:
            for q in n:
                if a == p or labels[a] != labels[p] or labels[a] == labels[q]:
                    continue
                gap = d[a, p] - d[a, q]
                kept = {"all": True, "semi_hard": -margin < gap < 0, "hard": gap >= 0}[mining]
                costs += [max(gap + margin, 0)] if kept else []
    return np.mean(costs)


@pytest.mark.parametrize("mining", ["all", "semi_hard", "hard"])
def test_triplet_loss_is_the_mean_of_three_loops_far_from_the_origin_too(mining):
    x = EMBEDDINGS.astype("float64")
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    expected = triplets(d, LABELS, mining, 1.5)
    for shift in (0, 100):
        value = float(
            losses.TripletLoss(1.5, mining=mining, metric="euclidean")(LABELS, EMBEDDINGS + shift)
        )
        np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("loss", ON_LABELS, ids=kind_of)
def test_labels_may_have_either_rank_and_any_names(loss):
    value = float(loss(LABELS, EMBEDDINGS))
    assert value > 0
    assert float(loss(LABELS[:, None], EMBEDDINGS)) == value
    assert float(loss(LABELS * 7 + 3, EMBEDDINGS)) == value


@pytest.mark.parametrize("loss", ON_LABELS, ids=kind_of)
def test_the_order_of_a_batch_does_not_matter(loss):
    rng = np.random.default_rng(1)
    order = rng.permutation(24)
    value = float(loss(LABELS[order], EMBEDDINGS[order]))
    np.testing.assert_allclose(value, float(loss(LABELS, EMBEDDINGS)), rtol=1e-5)


@pytest.mark.parametrize("loss", [*ON_LABELS[2:]], ids=kind_of)
def test_losses_on_directions_ignore_lengths(loss):
    rng = np.random.default_rng(1)
    lengths = rng.uniform(0.5, 2, (24, 1)).astype("float32")
    value = float(loss(LABELS, EMBEDDINGS * lengths))
    np.testing.assert_allclose(value, float(loss(LABELS, EMBEDDINGS)), rtol=1e-4)


# No two of a label; one label; both are batches without a triplet.
INVALID = {
    "no positive": np.arange(6),
    "no negative": np.zeros(6, int),
    "one image": np.zeros(1, int),
}
# What these cost on a batch of one class, or of no two of a class, is a real cost.
COUNTED = {
    ("SupConLoss", "no negative"),
    ("MultiSimilarityLoss", "no negative"),
    ("MultiSimilarityLoss", "no positive"),
    ("BatchContrastiveLoss", "no negative"),
    ("BatchContrastiveLoss", "no positive"),
}


@pytest.mark.fault("batch-without-pairs")
@pytest.mark.parametrize("kind", INVALID)
@pytest.mark.parametrize("loss", ON_LABELS, ids=kind_of)
def test_a_batch_without_a_valid_triplet_costs_nothing_and_has_no_gradient(loss, kind):
    labels = INVALID[kind]
    embeddings = EMBEDDINGS[: len(labels)]
    value, gradient = gradient_of(lambda x: loss(labels, x), embeddings)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    empty = (kind_of(loss), kind) not in COUNTED
    assert (value == 0) == (not gradient.any()) == empty
    assert (float(loss.count_valid(labels, embeddings)) == 0) == empty


@pytest.mark.fault("batch-without-pairs")
@pytest.mark.parametrize("loss", ON_LABELS[:4], ids=kind_of)
@pytest.mark.parametrize("labels", INVALID.values(), ids=INVALID)
def test_without_a_triplet_losses_on_triplets_cost_nothing(loss, labels):
    embeddings = EMBEDDINGS[: len(labels)]
    assert float(loss.count_valid(labels, embeddings)) == 0 == float(loss(labels, embeddings))


@pytest.mark.fault("identical-pair")
@pytest.mark.parametrize("loss", ON_LABELS, ids=kind_of)
def test_equal_and_zero_embeddings_have_a_finite_gradient(loss):
    for fill in (0.0, 1.0):
        same = np.full((24, 6), fill, "float32")
        value, gradient = gradient_of(lambda x: loss(LABELS, x), same)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", ON_LABELS, ids=kind_of)
def test_the_loss_falls_when_classes_part(loss):
    apart = EMBEDDINGS * 0.1 + 3 * np.eye(6, dtype="float32")[LABELS]
    value, before = float(loss(LABELS, apart)), float(loss(LABELS, EMBEDDINGS))
    assert value < before


# Losses on pairs without classes


def pairs(n=5, dim=4):
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((2, n, dim)).astype("float32")
    cosines = (left / np.linalg.norm(left, axis=1, keepdims=True)) @ (
        right / np.linalg.norm(right, axis=1, keepdims=True)
    ).T
    return np.stack([left, right], axis=1), cosines


def test_pair_softmax_loss_is_the_cross_entropy_over_the_rights_of_the_batch():
    y_pred, cosines = pairs()
    groups = np.stack([np.arange(5)] * 2, axis=1)
    logits = cosines / 0.2
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))
    value = float(losses.InfoNCELoss(temperature=0.2)(groups, y_pred))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("mining", ["all", "semi_hard", "hard"])
def test_cosine_triplet_loss_is_the_mean_of_two_loops(mining):
    y_pred, cosines = pairs(12)
    groups = np.stack([np.arange(12)] * 2, axis=1)
    gaps = np.array([cosines[i, j] - cosines[i, i] for i in range(12) for j in range(12) if i != j])
    kept = {"all": gaps > -9, "semi_hard": (gaps < 0) & (gaps > -0.3), "hard": gaps >= 0}[mining]
    value = float(losses.InBatchTripletLoss(0.3, mining)(groups, y_pred))
    assert 0 < kept.sum() and (mining == "all") == kept.all()
    np.testing.assert_allclose(value, np.maximum(gaps[kept] + 0.3, 0).mean(), rtol=1e-5)


# Pair 1 shares a group with pair 0: on the left, on the right, across.
@pytest.mark.parametrize("second", [(0, 8), (8, 1), (8, 0), (1, 8)])
@pytest.mark.parametrize("loss", ON_PAIRS, ids=kind_of)
def test_pairs_of_one_group_are_no_negatives_of_each_other(loss, second):
    y_pred, _ = pairs(3)
    groups = np.array([(0, 1), second, (4, 5)])
    alone = np.array([(0, 1), second])
    assert float(loss.count_valid(alone, y_pred[:2])) == 0 == float(loss(alone, y_pred[:2]))
    assert float(loss.count_valid(groups, y_pred)) == 4


@pytest.mark.fault("identical-pair")
@pytest.mark.parametrize("loss", ON_PAIRS, ids=kind_of)
def test_pairs_of_zero_vectors_have_a_finite_gradient(loss):
    groups = np.stack([np.arange(4)] * 2, axis=1)
    value, gradient = gradient_of(lambda x: loss(groups, x), np.zeros((4, 2, 3), "float32"))
    assert np.isfinite(value) and np.isfinite(gradient).all()


# ArcFaceLoss


def test_arc_face_without_a_margin_is_softmax_cross_entropy():
    rng = np.random.default_rng(1)
    cosines = rng.uniform(-1, 1, (8, 5)).astype("float32")
    labels = rng.integers(0, 5, 8)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, 16 * cosines)
    value = losses.ArcFaceLoss(margin=0.0, scale=16.0)(labels, cosines)
    np.testing.assert_allclose(float(value), float(expected), rtol=1e-5)


def test_arc_face_grows_as_the_angle_does_all_the_way_round():
    angles = np.linspace(0, np.pi, 50)
    cosines = np.stack([np.cos(angles), np.zeros(50)], axis=1).astype("float32")
    loss = losses.ArcFaceLoss(scale=4.0, reduction=None)
    values = np.asarray(loss(np.zeros(50, int), cosines))
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_arc_face_has_a_finite_gradient_where_the_angle_is_0_or_a_half_turn(cosine):
    cosines = np.array([[cosine, 0.1]], "float32")
    _, gradient = gradient_of(lambda x: losses.ArcFaceLoss()(np.array([0]), x), cosines)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("label", [-1, 2, 3])
def test_a_label_that_is_no_class_costs_nan_for_fit_to_stop_at(label):
    cosines = np.array([[0.3, 0.1], [0.2, 0.4]], "float32")
    values = np.asarray(losses.ArcFaceLoss(reduction=None)(np.array([0, label]), cosines))
    assert np.isfinite(values[0]) and np.isnan(values[1])


# EmptyBatchCounter


@pytest.mark.fault("batch-without-pairs")
def test_batches_without_a_triplet_are_counted_in_the_log(capsys):
    rng = np.random.default_rng(1)
    loss = losses.TripletLoss(metric="euclidean")
    model = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.compile("sgd", loss, metrics=[losses.EmptyBatchCounter(loss)])
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2, 0, 1, 3, 4])  # whole, empty, empty
    images = rng.random((12, 2, 2, 1), dtype="float32")
    batches = ImageBatches(images, labels, batch_size=4, shuffle=False)
    history = model.fit(batches, epochs=2, verbose=0, shuffle=False).history
    assert history["empty_batches"] == [2, 2]


def test_the_counter_of_empty_batches_is_rebuilt_from_its_config():
    metric = losses.EmptyBatchCounter(losses.TripletLoss(0.7, mining="hard", metric="euclidean"))
    copy = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert copy.loss.get_config() == metric.loss.get_config()


def test_batches_of_one_pair_are_counted_and_the_counter_survives_saving(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.random((5, 4, 4, 1), dtype="float32")
    net = models.siamese(EMBEDDER_TOO, None)
    loss = losses.InfoNCELoss()
    net.compile("sgd", loss, metrics=[losses.EmptyBatchCounter(loss)])
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    for model in (net, loaded):
        batches = PositivePairBatches(images, images[::-1], batch_size=2)
        assert model.fit(batches, verbose=0, shuffle=False).history["empty_batches"] == [1]


@pytest.mark.parametrize("loss", [losses.ContrastiveLoss(), losses.ArcFaceLoss(), "mse"])
def test_a_loss_that_compares_no_images_has_nothing_to_count(loss):
    with pytest.raises(ArgumentTypeError, match="loss must compare the images of a batch"):
        losses.EmptyBatchCounter(loss)


# Arguments


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: losses.ContrastiveLoss(margin=-1), "margin=-1"),
        (lambda: losses.ContrastiveLoss(margin="1"), "margin"),
        (lambda: losses.BatchContrastiveLoss(margin=-1), "margin=-1"),
        (lambda: losses.BatchContrastiveLoss(metric="manhattan"), "metric='manhattan'"),
        (lambda: losses.TripletLoss(margin=np.nan, metric="euclidean"), "margin=nan"),
        (
            lambda: losses.TripletLoss(margin=0, mining="semi_hard", metric="euclidean"),
            "margin=0 leaves no triplet",
        ),
        (lambda: losses.TripletLoss(metric="manhattan"), "metric='manhattan'.*'euclidean'"),
        (
            lambda: losses.TripletLoss(mining="semihard", metric="euclidean"),
            "mining='semihard'.*'semi_hard'",
        ),
        (lambda: losses.InBatchTripletLoss(mining=None), "mining=None.*'all'"),
        (lambda: losses.InBatchTripletLoss(metric="dot"), "metric='dot'.*'cosine'"),
        (lambda: losses.SupConLoss(temperature=0), "temperature=0"),
        (lambda: losses.NTXentLoss(temperature=-1), "temperature=-1"),
        (lambda: losses.InfoNCELoss(temperature=True), "temperature"),
        (lambda: losses.AngularLoss(angle=90), "angle=90"),
        (lambda: losses.MultiSimilarityLoss(alpha=0), "alpha=0"),
        (lambda: losses.MultiSimilarityLoss(base=2), "base=2"),
        (lambda: losses.ArcFaceLoss(margin=28.65), "margin=28.65"),
        (lambda: losses.ArcFaceLoss(scale=0), "scale=0"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(make, named):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=named):
        make()
