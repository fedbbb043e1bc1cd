"""Losses and layers against float64 formulas, over extreme embeddings."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasim import _tensors, layers, losses
from kerasim.errors import ArgumentError, ArgumentTypeError
from tests.helpers.gradients import gradient_of

N, DIM = 12, 8
LABELS = np.repeat(np.arange(4), 3)
TOLERANCE = 1e-5


def directions(seed=0):
    return np.random.default_rng(seed).normal(size=(N, DIM))


def far_clusters():
    return 1e-2 * directions() + np.repeat([[100.0], [-100.0]], N // 2, axis=0)


def lengths_of_every_size():
    return directions() * 10.0 ** np.linspace(-30, 30, N)[:, None]


# Float32 embeddings of each kind, and the size of their distances.
EMBEDDINGS = {
    "plain": (directions(), 1.0),
    "tiny": (directions() * 1e-30, 1e-30),
    "huge": (directions() * 1e30, 1e30),
    "below the square root of the least": (directions() * 1e-22, 1e-22),
    "one far embedding": (directions() * np.where(np.arange(N) == 5, 1e20, 1)[:, None], 1e20),
    "one near embedding": (directions() * np.where(np.arange(N) == 5, 1e-20, 1)[:, None], 1.0),
    "far from the origin": (1000 + directions(), 1.0),
    "one narrow cluster": (1 + 1e-3 * directions(), 1e-3),
    "two clusters far from each other": (far_clusters(), 100.0),
    "lengths of every size": (lengths_of_every_size(), 1e30),
    "copies": (directions()[np.arange(N) // 2], 1.0),
}
KINDS = list(EMBEDDINGS)


def draw(kind):
    x, size = EMBEDDINGS[kind]
    return x.astype("float32"), size


def unit(x):
    x = x / np.abs(x).max(axis=-1, keepdims=True)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def distances(x, y, metric):
    x, y = x.astype("float64"), y.astype("float64")
    if metric == "cosine":
        return np.square(unit(x) - unit(y)).sum(axis=-1) / 2
    squares = np.square(x - y).sum(axis=-1)
    return squares if metric == "squared_euclidean" else np.sqrt(squares)


def all_distances(x, metric):
    return distances(x[:, None], x[None], metric)


SAME = LABELS[:, None] == LABELS
ALIKE, UNLIKE = SAME & ~np.eye(N, dtype=bool), ~SAME


def triplet(x, metric, mining, margin):
    d = all_distances(x, metric)
    gaps = d[:, :, None] - d[:, None, :]
    kept = ALIKE[:, :, None] & UNLIKE[:, None, :]
    if mining == "semi_hard":
        kept &= (gaps < 0) & (gaps > -margin)
    elif mining == "hard":
        kept &= gaps >= 0
    return np.maximum(gaps + margin, 0)[kept].mean() if kept.any() else 0.0


def log_sum(exponents, mask):
    return np.log(np.where(mask, np.exp(exponents), 0).sum(axis=-1))


def cosine_loss(name, x):
    s = 1 - all_distances(x, "cosine")
    if name == "SupConLoss":
        costs = log_sum(s / 0.1, ALIKE | UNLIKE)[:, None] - s / 0.1
        return ((costs * ALIKE).sum(axis=1) / ALIKE.sum(axis=1)).mean()
    if name == "NTXentLoss":
        return np.log1p(np.exp(log_sum(s / 0.1, UNLIKE)[:, None] - s / 0.1))[ALIKE].mean()
    if name == "MultiSimilarityLoss":
        near = np.log1p(np.where(ALIKE, np.exp(-2 * (s - 0.5)), 0).sum(axis=1)) / 2
        far = np.log1p(np.where(UNLIKE, np.exp(50 * (s - 0.5)), 0).sum(axis=1)) / 50
        return (near + far).mean()
    tangent = np.tan(np.radians(40)) ** 2
    exponents = 4 * tangent * (s[:, None] + s[None]) - 2 * (1 + tangent) * s[:, :, None]
    return np.log1p(np.where(UNLIKE[:, None], np.exp(exponents), 0).sum(axis=-1))[ALIKE].mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mining", ["all", "semi_hard", "hard"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_triplet_loss_is_that_of_float64(kind, metric, mining):
    x, size = draw(kind)
    margin = 0.3 if metric == "cosine" else 0.3 * size
    expected = triplet(x, metric, mining, margin)
    found = float(losses.TripletLoss(margin, metric, mining)(LABELS, x))
    # Float32 unit vectors: a cosine is good to 1e-7, which may move a triplet over an edge.
    tolerance = 1e-2 if metric == "cosine" and mining != "all" else TOLERANCE
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-6 * margin)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if EMBEDDINGS[kind][1] < 1e19])
@pytest.mark.parametrize("squared_margin", [True, False])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_batch_contrastive_loss_is_that_of_float64(kind, metric, squared_margin):
    x, size = draw(kind)
    margin = 0.3 if metric == "cosine" else 0.3 * size
    d = all_distances(x, metric)
    push = np.maximum(margin**2 - d**2, 0) if squared_margin else np.maximum(margin - d, 0) ** 2
    expected = (np.square(d)[ALIKE].mean() + push[UNLIKE].mean()) / 2
    found = float(losses.BatchContrastiveLoss(margin, metric, squared_margin)(LABELS, x))
    # The square of a distance below 1e-19 is 0 in float32.
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=1e-37)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["SupConLoss", "NTXentLoss", "MultiSimilarityLoss", "AngularLoss"])
def test_a_loss_on_cosines_is_that_of_float64(kind, name):
    x, _ = draw(kind)
    found = float(getattr(losses, name)()(LABELS, x))
    np.testing.assert_allclose(found, cosine_loss(name, x), rtol=TOLERANCE)


def draw_pairs(kind):
    """Returns left and right embeddings of pairs, and their groups."""
    left = draw(kind)[0]
    return left, np.roll(left, 1, axis=0) + left, np.repeat(np.arange(N), 2).reshape(N, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_softmax_loss_on_pairs_is_that_of_float64(kind):
    left, right, groups = draw_pairs(kind)
    s = 1 - distances(left[:, None], right[None], "cosine")
    expected = (np.log(np.exp(s / 0.1).sum(axis=1)) - s.diagonal() / 0.1).mean()
    found = float(losses.InfoNCELoss()(groups, np.stack([left, right], axis=1)))
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
# Mining by cosine, where rounding may move a triplet over an edge: test_losses.py.
@pytest.mark.parametrize(
    ("metric", "mining"),
    [("cosine", "all"), ("euclidean", "all"), ("euclidean", "semi_hard"), ("euclidean", "hard")],
)
def test_the_triplet_loss_on_pairs_is_that_of_float64(kind, metric, mining):
    left, right, groups = draw_pairs(kind)
    margin = 0.2 if metric == "cosine" else 0.2 * EMBEDDINGS[kind][1]
    apart = distances(left[:, None], right[None], metric)
    gaps = (apart.diagonal()[:, None] - apart)[~np.eye(N, dtype=bool)]
    kept = {"all": gaps > -np.inf, "semi_hard": (gaps < 0) & (gaps > -margin), "hard": gaps >= 0}
    expected = (
        np.mean(np.maximum(gaps + margin, 0), where=kept[mining]) if kept[mining].any() else 0
    )
    loss = losses.InBatchTripletLoss(margin, mining, metric)
    found = float(loss(groups, np.stack([left, right], axis=1)))
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=1e-7 * apart.max())


@pytest.mark.parametrize("cosine", [-1, -0.9, 0, 0.5, 1 - 2.0**-10, 1 - 2.0**-23, 1])
def test_arc_face_is_that_of_float64_up_to_an_angle_of_0(cosine):
    cosines = np.array([[cosine, 0.1, -0.2]], "float32")
    c = cosines.astype("float64")[0]
    angle = np.arccos(c[0])
    wider = np.cos(angle + 0.5) if angle < np.pi - 0.5 else c[0] - 0.5 * np.sin(0.5)
    logits = 64 * np.array([wider, *c[1:]])
    expected = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0]
    found = float(losses.ArcFaceLoss()(np.array([0]), cosines))
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=1e-30)


ON_LABELS = [
    losses.TripletLoss(metric="euclidean"),
    losses.TripletLoss(metric="cosine", mining="semi_hard"),
    losses.AngularLoss(),
    losses.MultiSimilarityLoss(),
    losses.SupConLoss(),
    losses.NTXentLoss(),
    losses.BatchContrastiveLoss(metric="cosine"),
]


@pytest.mark.parametrize("kind", [*KINDS, "zeros", "least numbers", "largest numbers"])
@pytest.mark.parametrize("loss", ON_LABELS, ids=lambda loss: repr(loss))
def test_a_gradient_is_finite_over_all_sizes(kind, loss):
    extreme = {
        "zeros": np.zeros((N, DIM)),
        "least numbers": 2.0**-126 * directions(),
        "largest numbers": 1e37 * directions(),
    }
    x = extreme[kind].astype("float32") if kind in extreme else draw(kind)[0]
    value, gradient = gradient_of(lambda x: loss(LABELS, x), x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_gradient_does_not_vanish_for_long_or_short_embeddings():
    x = directions().astype("float32")
    expected = gradient_of(lambda x: losses.SupConLoss()(LABELS, x), x)[1]
    for factor in (1e-5, 1e3, 1e15, 1e18):
        scaled = (x * factor).astype("float32")
        found = gradient_of(lambda x: losses.SupConLoss()(LABELS, x), scaled)[1]
        np.testing.assert_allclose(found * factor, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["euclidean", "squared_euclidean", "cosine"])
def test_the_layer_gives_the_distance_of_float64(kind, metric):
    x, _ = draw(kind)
    y = np.roll(x, 1, axis=0)
    expected = distances(x, y, metric)
    expected[expected > 3.4e38] = np.inf
    found = ops.convert_to_numpy(layers.Distance(metric)([x, y]))[:, 0]
    # The rounding of float32 unit vectors is 1e-7 of the angle, and float32 numbers end at 1e-38.
    least = 1e-7 * np.sqrt(2 * expected) if metric == "cosine" else 2e-38
    assert (
        np.abs(np.subtract(found, expected, where=found != expected, out=np.zeros(N)))
        <= np.where(np.isinf(expected), 0, TOLERANCE * expected + least)
    ).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", None])
def test_a_loss_computes_in_float32_or_wider_whatever_it_is_told(dtype):
    x = np.random.default_rng(1).normal(size=(N, DIM)).astype("float16")
    expected = float(losses.SupConLoss()(LABELS, x.astype("float32")))
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only where it was switched on")
    found = losses.SupConLoss(dtype=dtype)
    assert float(found(LABELS, x)) == pytest.approx(expected, rel=1e-6)
    # Labels from 2049 on are no float16 numbers.
    assert float(found(LABELS + 4097, x)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_a_loss_does_not_depend_on_the_global_float_type(name):
    x = directions().astype("float32")
    expected = float(losses.TripletLoss(metric="euclidean")(LABELS, x))
    before = keras.config.floatx()
    keras.config.set_floatx(name)
    try:
        assert float(losses.TripletLoss(metric="euclidean")(LABELS, x)) == pytest.approx(
            expected, rel=1e-6
        )
    finally:
        keras.config.set_floatx(before)


def compiled(loss):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", loss)
    return model


ONE_HOT = np.eye(4)[np.arange(8) % 4]


@pytest.mark.parametrize("loss", [*ON_LABELS, losses.ArcFaceLoss()], ids=lambda loss: repr(loss))
def test_one_hot_labels_are_refused_with_the_line_that_numbers_them(loss):
    x = np.random.default_rng(2).normal(size=(8, 3)).astype("float32")
    said = r"y_true has shape \(.*4\).*labels.argmax\(axis=1\)"
    with pytest.raises(ArgumentError, match=said):
        loss(ONE_HOT, x)
    assert np.isfinite(float(losses.SupConLoss()(ONE_HOT.argmax(axis=1), x)))


def test_one_hot_labels_and_text_are_refused_in_fit_too():
    x = np.random.default_rng(2).normal(size=(8, 3)).astype("float32")
    with pytest.raises(ArgumentError, match="y_true has shape .*labels.argmax"):
        compiled(losses.SupConLoss()).fit(x, ONE_HOT, verbose=0)
    if keras.backend.backend() == "tensorflow":  # others have no tensors of text
        with pytest.raises(ArgumentTypeError, match="y_true holds text"):
            names = np.array(list("aabbccdd"), dtype=object)
            compiled(losses.SupConLoss()).fit(x, names, verbose=0)


@pytest.mark.parametrize("names", [list("aabbcc"), np.array(list("aabbcc"))])
def test_labels_that_are_text_are_refused(names):
    with pytest.raises(ArgumentTypeError, match="y_true holds text, expected numbers"):
        losses.SupConLoss()(names, directions()[:6])


@pytest.mark.parametrize(
    ("loss", "true", "predicted"),
    [
        (losses.ContrastiveLoss(), (8, 2), (8, 1)),
        (losses.ContrastiveLoss(), (8,), (8, 5)),
        (losses.InfoNCELoss(), (8,), (8, 2, 3)),
        (losses.InBatchTripletLoss(), (8, 2), (8, 3)),
        (losses.SupConLoss(), (8,), (8, 2, 3)),
        (losses.TripletLoss(metric="euclidean"), (8,), (8,)),
    ],
)
def test_arrays_that_do_not_fit_a_loss_are_refused_with_their_shapes(loss, true, predicted):
    with pytest.raises(ArgumentError, match="has shape"):
        loss(np.zeros(true), np.zeros(predicted))


@pytest.mark.parametrize("loss", [*ON_LABELS, losses.ContrastiveLoss(), losses.ArcFaceLoss()])
def test_one_label_for_two_rows_is_refused(loss):
    width = 1 if isinstance(loss, losses.ContrastiveLoss) else 3
    with pytest.raises(ArgumentError, match="y_true has 1 rows and y_pred 2. Pass one label"):
        loss(np.zeros(1), np.zeros((2, width), "float32"))


@pytest.mark.parametrize("loss", ON_LABELS, ids=lambda loss: repr(loss))
def test_lists_are_taken_as_arrays_and_an_empty_batch_costs_nothing(loss):
    x = directions()[:6].astype("float32")
    expected = float(loss(LABELS[:6], x))
    assert float(loss(LABELS[:6].tolist(), x.tolist())) == expected
    assert float(loss(LABELS[:0], x[:0])) == 0


@pytest.mark.parametrize("loss", ON_LABELS, ids=lambda loss: repr(loss))
def test_weights_of_images_are_refused_by_a_loss_of_the_batch(loss):
    x = directions()[:6].astype("float32")
    with pytest.raises(ArgumentError, match=r"sample_weight has shape \(6,\), and \w+Loss is one"):
        loss(LABELS[:6], x, sample_weight=np.ones(6))


@pytest.mark.parametrize("metric", _tensors.PAIR_METRICS)
def test_embeddings_that_are_no_numbers_have_no_distance(metric):
    x = np.array([[np.nan, 1.0], [1, 2], [3, 4]], "float32")
    distances = np.asarray(layers.Distance(metric)([x, x[::-1].copy()]))
    assert np.isnan(distances[[0, 2]]).all() and distances[1] == 0
    assert np.isnan(float(losses.TripletLoss(metric=metric)(np.array([0, 0, 1]), x)))


@pytest.mark.parametrize("squared_margin", [True, False])
@pytest.mark.parametrize("distance", [1e20, 1e30, np.inf])
def test_a_negative_pair_at_any_distance_beyond_the_margin_costs_nothing(distance, squared_margin):
    loss = losses.ContrastiveLoss(squared_margin=squared_margin)
    distances = np.array([[distance], [0.5]], "float32")
    assert float(loss(np.array([0, 1]), distances)) == 0.125
    gradient = gradient_of(lambda d: loss(np.array([0, 1]), d), distances)[1]
    assert np.isfinite(gradient).all() and gradient[0] == 0


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (losses.SupConLoss(0.2), "SupConLoss(temperature=0.2)"),
        (
            losses.TripletLoss(metric="euclidean"),
            "TripletLoss(margin=0.2, metric='euclidean', mining='all')",
        ),
        (
            losses.ContrastiveLoss(name="pairs"),
            "ContrastiveLoss(margin=1.0, squared_margin=False)",
        ),
    ],
)
def test_a_loss_shows_its_settings(loss, shown):
    assert repr(loss) == shown
