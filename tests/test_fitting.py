"""Batches that do not fit the network are refused before the first step."""

import keras
import numpy as np
import pytest

from kerasim import _fitting, data, diffusion, layers, losses, models, training
from kerasim.errors import ArgumentError, ArgumentTypeError

SCHEDULE = diffusion.NoiseSchedule(50)
IMAGES = np.random.default_rng(0).random((12, 8, 8, 1), dtype="float32")
LABELS = np.arange(12) % 3


def check(model, batches):
    _fitting.check("batches", model, batches, batches[0])


def refusal(model, batches) -> str:
    """Returns why `fit` would refuse to train `model` on `batches`; "" if it would not."""
    try:
        check(model, batches)
    except (ArgumentError, ArgumentTypeError) as error:
        return str(error)
    return ""


def compiled(model, loss="mse"):
    model.compile("sgd", loss)
    return model


def unet(num_classes=3, schedule=SCHEDULE):
    keras.utils.set_random_seed(0)
    return compiled(
        models.unet(
            (8, 8, 1),
            widths=(8,),
            num_attention_stages=0,
            num_classes=num_classes,
            schedule=schedule,
        )
    )


def network(*stack, shape=(8, 8, 1), loss="mse"):
    return compiled(keras.Sequential([keras.Input(shape), *stack]), loss)


def classifier(classes=3, loss="sparse_categorical_crossentropy", activation="softmax"):
    flat, dense = keras.layers.Flatten(), keras.layers.Dense(classes, activation)
    return network(flat, dense, loss=loss)


def embedder(loss):
    return classifier(4, loss, None)


class Own(keras.utils.PyDataset):
    """A data set of the user's own, with one batch."""

    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


# Diffusion


def draws(schedule=SCHEDULE, labels=None):
    return data.DiffusionBatches(IMAGES, schedule, labels, batch_size=4, weighting="velocity")


@pytest.mark.fault("unfit-batches")
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_labels_that_the_network_has_no_class_for_are_refused(offset):
    check(unet(), draws(labels=LABELS))
    message = f"labels of batches range from {offset} to {offset + 2}, .* classes 0 to 2"
    with pytest.raises(ArgumentError, match=message):
        check(unet(), draws(labels=LABELS + offset))


OTHER_SCHEDULES = [(50, "cosine"), (60, "linear"), (49, "linear"), (1000, "linear")]


@pytest.mark.parametrize("schedule", OTHER_SCHEDULES)
def test_another_schedule_than_that_of_the_network_is_refused(schedule):
    check(unet(None), draws(diffusion.NoiseSchedule(50)))
    with pytest.raises(ArgumentError, match="batches.schedule=NoiseSchedule.* is not the one"):
        check(unet(None), draws(diffusion.NoiseSchedule(*schedule)))


def test_labels_for_a_network_without_classes_and_classes_without_labels_are_refused():
    with pytest.raises(ArgumentError, match=r"yield the inputs \['labels'\], which the network"):
        check(unet(None), draws(labels=LABELS))
    with pytest.raises(ArgumentError, match=r"lack the inputs \['labels'\] of the network"):
        check(unet(), draws())


@pytest.mark.fault("restart-with-changes")
def test_fit_refuses_them_before_it_trains_or_removes_anything(tmp_path):
    model = unet()
    before = model.get_weights()
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    for name in ("batches", "validation_data"):
        given = {
            "batches": draws(labels=LABELS),
            "validation_data": None,
            name: draws(labels=LABELS + 1),
        }
        with pytest.raises(ArgumentError, match=f"labels of {name} range from 1 to 3"):
            training.fit(model, epochs=1, run_dir=tmp_path, resume=False, verbose=0, **given)
    assert (tmp_path / "history.csv").exists()
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


# Inputs


@pytest.mark.fault("unfit-batches")
@pytest.mark.parametrize("shape", [(9, 8, 1), (8, 8, 3), (16, 16, 1)])
def test_images_of_another_size_than_the_network_takes_are_refused(shape):
    model = network(keras.layers.Conv2D(1, 3, padding="same"), shape=shape)
    message = r"batches yield .* of shape \(8, 8, 1\), but the network takes "
    with pytest.raises(ArgumentError, match=message):
        check(model, data.ImageBatches(IMAGES))


def test_images_of_any_size_that_the_network_takes_pass():
    model = network(keras.layers.Conv2D(1, 3, padding="same"), shape=(None, None, 1))
    assert refusal(model, data.ImageBatches(IMAGES)) == ""


def test_batches_of_another_kind_than_the_network_takes_are_refused():
    pairs = data.PairBatches(IMAGES, LABELS)
    with pytest.raises(ArgumentError, match="batches yield 2 inputs, but the network takes 1"):
        check(classifier(), pairs)
    siamese = compiled(
        models.siamese(embedder("mse"), metric="euclidean"), losses.ContrastiveLoss()
    )
    check(siamese, pairs)
    with pytest.raises(
        ArgumentError, match=r"yield 1 inputs, but the network takes 2 \(left, right"
    ):
        check(siamese, data.ImageBatches(IMAGES))
    with pytest.raises(ArgumentError, match="yield 1 inputs, but the network takes 2"):
        check(unet(None), data.ImageBatches(IMAGES))


def test_a_network_that_divides_by_255_again_is_warned_of():
    model = network(keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(1, 1))
    with pytest.warns(UserWarning, match="first layer of the network multiplies them by 0.003922"):
        check(model, data.ImageBatches(IMAGES))
    check(network(keras.layers.Rescaling(2.0, -1), keras.layers.Conv2D(1, 1)), Own(IMAGES, IMAGES))
    check(model, Own(IMAGES * 255, IMAGES))


@pytest.mark.parametrize("place", [0, 1])
def test_strings_are_refused(place):
    batch = [IMAGES, IMAGES]
    batch[place] = np.array(["cat", "dog"] * 6)
    with pytest.raises(ArgumentTypeError, match="batches yield strings .*np.unique"):
        check(classifier(), Own(*batch))


# Targets


@pytest.mark.fault("unfit-batches")
@pytest.mark.parametrize("loss", sorted(_fitting._ELEMENTWISE) + [keras.losses.MeanSquaredError()])
def test_targets_that_keras_would_broadcast_are_refused(loss):
    model = network(keras.layers.Conv2D(3, 1, activation="sigmoid"), loss=loss)
    with pytest.raises(ArgumentError, match=r"targets of shape \(8, 8, 1\), but .* \(8, 8, 3\)"):
        check(model, data.ImageBatches(IMAGES))
    with pytest.raises(
        ArgumentError, match=r"targets of shape \(\), but the network returns \(4,\)"
    ):
        check(embedder(loss), data.ImageBatches(IMAGES, LABELS))
    check(model, Own(IMAGES, np.repeat(IMAGES, 3, -1)))


def test_a_last_axis_of_one_may_be_left_out():
    for loss in ("mse", "binary_crossentropy"):
        for targets in (LABELS % 2, LABELS[:, None] % 2):
            model = classifier(1, loss, "sigmoid")
            assert refusal(model, data.ImageBatches(IMAGES, targets)) == ""


CLASS_LOSSES = ["sparse_categorical_crossentropy", losses.ArcFaceLoss()]
CLASS_LOSSES += [keras.losses.SparseCategoricalCrossentropy(from_logits=True)]


@pytest.mark.parametrize("loss", CLASS_LOSSES)
@pytest.mark.parametrize("labels", [LABELS + 1, LABELS - 1, LABELS * 10, LABELS + 0.5])
def test_class_numbers_that_the_network_does_not_have_are_refused(loss, labels):
    check(classifier(3, loss), data.ImageBatches(IMAGES, LABELS))
    with pytest.raises(ArgumentError, match="targets of batches (range from|must be whole)"):
        check(classifier(3, loss), data.ImageBatches(IMAGES, labels))


def test_a_class_number_in_a_later_batch_is_seen():
    labels = np.array([0] * 11 + [3])
    with pytest.raises(ArgumentError, match="range from 0 to 3"):
        check(classifier(), data.ImageBatches(IMAGES, labels, batch_size=2, shuffle=False))


def test_one_hot_rows_are_refused_where_class_numbers_are_wanted_and_the_reverse():
    one_hot = np.eye(3, dtype="float32")[LABELS]
    with pytest.raises(ArgumentError, match="np.argmax"):
        check(classifier(), data.ImageBatches(IMAGES, one_hot))
    with pytest.raises(ArgumentError, match="np.argmax"):
        check(embedder(losses.SupConLoss()), data.ImageBatches(IMAGES, one_hot))
    with pytest.raises(ArgumentError, match="sparse_categorical_crossentropy"):
        check(classifier(loss="categorical_crossentropy"), data.ImageBatches(IMAGES, LABELS))
    check(classifier(loss="categorical_crossentropy"), data.ImageBatches(IMAGES, one_hot))


@pytest.mark.parametrize("high", [2.0, 255.0])
def test_targets_that_the_output_cannot_reach_are_refused(high):
    conv = keras.layers.Conv2D
    for loss, last in (("mse", conv(1, 1, activation="sigmoid")), ("bce", conv(1, 1))):
        model = network(last, loss="binary_crossentropy" if loss == "bce" else loss)
        with pytest.raises(ArgumentError, match=f"targets from 0 to {high:g}.*, but the"):
            check(model, Own(IMAGES, IMAGES.round() * high))
        check(model, Own(IMAGES, IMAGES))
    check(network(conv(1, 1)), Own(IMAGES, IMAGES.round() * high))


def test_the_activation_of_a_nested_network_is_found():
    autoencoder = compiled(models.conv_autoencoder((8, 8, 1), widths=(4,)))
    with pytest.raises(ArgumentError, match="activation sigmoid stays in"):
        check(autoencoder, Own(IMAGES, IMAGES * 255))


# Losses on whole batches

BATCH_LOSSES = [
    losses.TripletLoss(metric="euclidean"),
    losses.SupConLoss(),
    losses.NTXentLoss(),
    losses.AngularLoss(),
    losses.MultiSimilarityLoss(),
    losses.BatchContrastiveLoss(),
]


@pytest.mark.fault("unfit-batches")
@pytest.mark.parametrize("loss", BATCH_LOSSES, ids=lambda loss: loss.name)
def test_weights_that_a_loss_on_whole_batches_would_misread_are_refused(loss):
    check(embedder(loss), Own(IMAGES, LABELS))
    with pytest.raises(ArgumentError, match="yield sample weights, which .* cannot use"):
        check(embedder(loss), Own(IMAGES, LABELS, np.ones(12)))


@pytest.mark.parametrize("loss", BATCH_LOSSES, ids=lambda loss: loss.name)
def test_class_numbers_that_float32_does_not_tell_apart_are_refused(loss):
    check(embedder(loss), data.ImageBatches(IMAGES, LABELS + 2**24 - 3))
    message = f"yield labels up to {2**24}, but .* as float32"
    with pytest.raises(ArgumentError, match=message):
        check(embedder(loss), data.ImageBatches(IMAGES, LABELS + 2**24 - 2, batch_size=2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_losses_tell_class_numbers_below_2_to_24_apart_under_any_dtype(dtype):
    loss = losses.SupConLoss(dtype=dtype)  # it computes in float32
    check(embedder(loss), data.ImageBatches(IMAGES, LABELS + 2**24 - 3))
    with pytest.raises(ArgumentError, match=f"integers above {2**24}"):
        check(embedder(loss), data.ImageBatches(IMAGES, LABELS + 2**24))


def test_labels_for_a_loss_on_pairs_are_refused():
    model = compiled(models.siamese(embedder("mse"), None), losses.InfoNCELoss())
    check(model, data.PositivePairBatches(IMAGES, IMAGES))
    with pytest.raises(ArgumentError, match=r"takes groups \(batch, 2\). Pass PositivePairBatches"):
        check(model, data.PairBatches(IMAGES, LABELS))


def test_targets_other_than_pairs_are_refused_by_the_contrastive_loss():
    siamese = compiled(
        models.siamese(embedder("mse"), metric="euclidean"), losses.ContrastiveLoss()
    )
    with pytest.raises(ArgumentError, match="targets other than 0 and 1"):
        check(siamese, Own((IMAGES, IMAGES), LABELS))
    model = network(layers.LogEnergy(), keras.layers.Dense(2), loss=losses.ContrastiveLoss())
    with pytest.raises(ArgumentError, match="PairBatches"):
        check(model, data.ImageBatches(IMAGES, LABELS % 2))


def test_what_cannot_be_judged_passes():
    class Steps(keras.Model):
        def train_step(self, data):
            return {}

    inputs = keras.Input((8, 8, 1))
    own = compiled(Steps(inputs, keras.layers.Conv2D(3, 1)(inputs)))
    assert refusal(own, data.ImageBatches(IMAGES)) == ""
    own_loss = embedder(lambda y, x: keras.ops.mean(x))
    assert refusal(own_loss, data.ImageBatches(IMAGES, LABELS)) == ""
    two = compiled(keras.Model(inputs, [inputs, inputs]), ["mse", "mse"])
    assert refusal(two, Own(IMAGES, (IMAGES, IMAGES))) == ""


SMALL = np.random.default_rng(0).random((6, 4, 4, 1), dtype="float32")
TARGETS = np.arange(6) % 3


def flat_classifier(*layers):
    stack = [keras.Input((4, 4, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential(stack)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-6), loss)
    return model


@pytest.mark.fault("unfit-batches")
@pytest.mark.parametrize(
    "batch, kind, message",
    [
        ((SMALL, TARGETS[:4]), ArgumentError, "arrays of 4 and 6 rows in one batch"),
        ((SMALL, TARGETS, np.ones(5)), ArgumentError, "arrays of 5 and 6 rows in one batch"),
        ((SMALL[:0], TARGETS[:0]), ArgumentError, "arrays without rows"),
        ((SMALL, TARGETS, None, None), ArgumentError, "yield 4 parts"),
        ((SMALL + 1j, TARGETS), ArgumentTypeError, "complex numbers as inputs"),
        ((SMALL, np.zeros(6, "datetime64[s]")), ArgumentTypeError, "dates or times as targets"),
        ((SMALL, np.array([*"abcabc"])), ArgumentTypeError, "Convert them to class numbers"),
        ((SMALL[:, :3], TARGETS), ArgumentError, r"yield inputs of shape \(3, 4, 1\)"),
        ((SMALL, TARGETS - 1), ArgumentError, r"from -1 to 1, .* Number the classes from 0\.$"),
    ],
)
def test_a_batch_of_other_arrays_is_refused_before_training(batch, kind, message):
    with pytest.raises(kind, match=message):
        training.fit(flat_classifier(), Own(*batch), 1, verbose=0)


def test_a_data_set_without_batches_is_refused(monkeypatch):
    monkeypatch.setattr(Own, "__len__", lambda self: 0)
    with pytest.raises(ArgumentError, match="batches is empty"):
        training.fit(flat_classifier(), Own(SMALL, TARGETS), 1, verbose=0)


def test_images_in_0_to_255_are_warned_of_unless_the_network_scales_them():
    levels = np.rint(255 * SMALL)
    with pytest.warns(UserWarning, match="images in 0..255, and the network begins with Flatten"):
        training.fit(flat_classifier(), Own(levels, TARGETS), 1, verbose=0)
    scaled = flat_classifier(keras.layers.Rescaling(1 / 255))
    training.fit(scaled, Own(levels.astype("uint8"), TARGETS), 1, verbose=0)
    training.fit(flat_classifier(), Own(200 * SMALL + 0.5, TARGETS), 1, verbose=0)
