"""The argument `augment` of all batches, and batches of two views."""

import random
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from kerasim import _keras_compat, _resume, data, losses, training
from kerasim.data._augmentation import Augmentation
from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.schedules import NoiseSchedule
from tests.helpers import training_runs

layers = keras.layers
IMAGES = np.random.default_rng(0).random((12, 8, 8, 3), dtype="float32")
LEVELS = np.rint(255 * IMAGES).astype("uint8")
LABELS = np.arange(12) % 3
ONE_HOT = keras.utils.to_categorical(LABELS, 3)

BATCHES = {
    "ImageBatches": lambda **kw: data.ImageBatches(IMAGES, batch_size=4, **kw),
    "PairBatches": lambda **kw: data.PairBatches(IMAGES, LABELS, batch_size=4, **kw),
    "TripletBatches": lambda **kw: data.TripletBatches(IMAGES, LABELS, batch_size=4, **kw),
    "BalancedBatches": lambda **kw: data.BalancedBatches(IMAGES, LABELS, 2, 2, **kw),
    "PositivePairBatches": lambda **kw: data.PositivePairBatches(IMAGES, IMAGES[::-1], **kw),
    "DiffusionBatches": lambda **kw: data.DiffusionBatches(IMAGES, NoiseSchedule(10), **kw),
    "NoiseBatches": lambda **kw: data.NoiseBatches(IMAGES, **kw),
    "TwoViewBatches": lambda **kw: data.TwoViewBatches(IMAGES, batch_size=4, **kw),
}


def invert(images, rng):
    return 1 - images


def brighten(images, rng):
    return images * rng.uniform(0.2, 0.8, (len(images), 1, 1, 1))


def batch_of(batches, index=0, epoch=0):
    batches.epoch = epoch
    return [np.asarray(x) for x in keras.tree.flatten(batches[index])]


def equal(one, other):
    return all(np.array_equal(*both) for both in zip(one, other, strict=True))


def apply(augment, images=IMAGES, seed=0, targets=None):
    return Augmentation(augment)(images, np.random.default_rng(seed), targets)


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_every_class_are_augmented(name):
    augmented = []

    def watch(images, rng):
        augmented.append(images)
        return brighten(images, rng)

    assert not equal(
        batch_of(BATCHES[name](augment=watch)), batch_of(BATCHES[name](augment=lambda x, rng: x))
    )
    assert augmented


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_depends_on_seed_epoch_and_index_alone(name):
    augment = [layers.RandomBrightness(0.5, value_range=(0, 1)), brighten]
    fresh, used = BATCHES[name](augment=augment, seed=1), BATCHES[name](augment=augment, seed=1)
    batch_of(used)
    batch_of(used, len(used) - 1, 3)
    assert equal(batch_of(used, 0, 2), batch_of(fresh, 0, 2))
    assert not equal(batch_of(used, 0, 2), batch_of(used, 0, 1))
    assert not equal(batch_of(used, 0, 2), batch_of(BATCHES[name](augment=augment, seed=2), 0, 2))


@pytest.mark.parametrize(
    "augment",
    [
        layers.RandomRotation(0.2),
        layers.RandomErasing(value_range=(0, 1)),
        layers.RandomColorJitter(
            value_range=(0, 1), brightness_factor=0.4, saturation_factor=(0.3, 0.7), hue_factor=0.1
        ),
        layers.GaussianNoise(0.1),
        [lambda images, rng: images / 2, layers.Dropout(0.5)],  # which doubles what it keeps
        layers.Pipeline([layers.RandomCrop(6, 6), layers.RandomContrast(0.5)]),
    ],
    ids=lambda augment: type(augment).__name__,
)
def test_the_same_generator_gives_the_same_images_and_another_gives_others(augment):
    one, again, other = apply(augment)[0], apply(augment)[0], apply(augment, seed=1)[0]
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1


@pytest.mark.tensorflow("RandAugment and AugMix take seconds on other backends")
@pytest.mark.parametrize("augment", [layers.RandAugment, layers.AugMix])
def test_layers_that_choose_among_operations_depend_on_the_generator_alone(augment):
    # AugMix chooses with the random generator of Python.
    random.seed(1)
    one = apply(augment(seed=3))[0]
    random.seed(2)
    np.testing.assert_array_equal(one, apply(augment(seed=4))[0])


@pytest.mark.tensorflow("RandAugment takes seconds on other backends")
def test_the_operations_that_rand_augment_drew_give_the_images_that_keras_gives():
    for seed in range(6):
        quick, plain = layers.RandAugment(seed=seed), layers.RandAugment(seed=seed)
        found = _keras_compat.rand_augment(quick, 255 * IMAGES)
        np.testing.assert_allclose(found, plain(255 * IMAGES, training=True), atol=1e-3)


def test_the_generator_of_python_is_left_as_it_was():
    augment = layers.RandomRotation(0.1)
    before = random.getstate()
    apply(augment)
    assert random.getstate() == before


def test_two_threads_draw_the_batches_that_one_thread_draws():
    batches = data.ImageBatches(IMAGES, batch_size=1, augment=layers.RandomRotation(0.2))
    alone = [batches[n][0] for n in range(len(batches))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: batches[n][0], range(len(batches))))
    np.testing.assert_array_equal(together, alone)


class Watch(layers.Layer):
    """Keeps the images that it gets, and returns them."""

    def __init__(self, value_range):
        super().__init__()
        self.value_range = value_range

    def call(self, images):
        self.seen = keras.ops.convert_to_numpy(images)
        return images


@pytest.mark.parametrize("value_range", [(0, 255), (0, 1), (-1, 1)])
@pytest.mark.parametrize("images", [IMAGES, LEVELS], ids=["float", "uint8"])
def test_a_layer_gets_images_in_its_value_range(images, value_range):
    watch = Watch(value_range)
    low, high = value_range
    returned = data.ImageBatches(images, batch_size=12, shuffle=False, augment=watch)[0][0]
    expected = data.as_float(images)
    np.testing.assert_allclose(watch.seen, low + (high - low) * expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(returned, expected, atol=1e-6)


def test_a_layer_for_levels_gets_whole_levels_of_uint8_images():
    watch = Watch((0, 255))
    levels = np.arange(256, dtype="uint8").reshape(4, 8, 8, 1)
    data.ImageBatches(levels, shuffle=False, augment=watch)[0]
    np.testing.assert_array_equal(watch.seen, levels.astype("float32"))


def test_steps_are_applied_in_order_after_the_shift_and_before_the_noise():
    settings = {"batch_size": 12, "shuffle": False, "shift": 2}
    moved = data.ImageBatches(IMAGES, **settings)[0][0]
    steps = [invert, layers.Pipeline([layers.RandomCrop(4, 4)]), lambda images, rng: images / 2]
    images = data.ImageBatches(IMAGES, augment=steps, **settings)[0][0]
    assert images.shape == (12, 4, 4, 3)
    corners = [(y, x) for y in range(5) for x in range(5)]
    crops = [(1 - moved[:, y : y + 4, x : x + 4]) / 2 for y, x in corners]
    assert any(np.allclose(images, crop) for crop in crops)
    noisy, clean = data.ImageBatches(IMAGES, augment=invert, sigma=0.1, batch_size=12)[0]
    assert 0.05 < np.abs(noisy - clean).mean() < 0.12


def test_targets_that_are_the_images_are_augmented_with_them():
    inputs, targets = data.ImageBatches(IMAGES, augment=brighten)[0]
    np.testing.assert_array_equal(inputs, targets)


def test_images_of_a_folder_are_augmented(tmp_path):
    from PIL import Image

    for n in range(3):
        Image.fromarray(LEVELS[n]).save(tmp_path / f"{n}.png")
    folder = data.image_folder(tmp_path, image_size=8)
    images = data.ImageBatches(folder, shuffle=False, augment=invert)[0][0]
    np.testing.assert_allclose(images, 1 - LEVELS[:3] / 255, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")  # by Keras, on JAX
@pytest.mark.parametrize("mixing", [layers.MixUp, layers.CutMix])
def test_layers_that_mix_images_mix_their_one_hot_targets(mixing):
    channels = np.tile(ONE_HOT[:, None, None], (1, 64, 64, 1))
    batches = data.ImageBatches(channels, ONE_HOT, augment=mixing())
    images, targets = batches[0]
    assert targets.shape == (12, 3) and targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    # The mean of each channel is the share of a class, up to whole pixels.
    np.testing.assert_allclose(images.mean(axis=(1, 2)), targets, atol=0.04)


@pytest.mark.parametrize(
    "build",
    [
        lambda **kw: data.ImageBatches(IMAGES, LABELS, **kw),
        lambda **kw: data.NoiseBatches(IMAGES, target=LABELS, **kw),
        lambda **kw: data.DiffusionBatches(IMAGES, NoiseSchedule(10), LABELS, **kw),
        BATCHES["BalancedBatches"],
        BATCHES["PairBatches"],
        BATCHES["PositivePairBatches"],
        BATCHES["TwoViewBatches"],
    ],
)
def test_mixing_is_refused_where_targets_belong_to_single_images(build):
    with pytest.raises(ArgumentError, match=r"augment=\[CutMix\] mixes images, but .*Leave MixUp"):
        build(augment=layers.CutMix())


@pytest.mark.parametrize(
    "augment, message",
    [
        ("RandAugment", "augment contains str, which cannot augment images. Pass a layer"),
        (layers.RandAugment, "augment contains RandAugment, which cannot augment"),
        ([invert, 3], "augment contains int"),
        (lambda images: images, r"augment contains <lambda>, which cannot be called with images"),
    ],
)
def test_what_is_neither_a_layer_nor_a_function_of_two_arguments_is_refused(augment, message):
    with pytest.raises(ArgumentTypeError, match=message):
        data.ImageBatches(IMAGES, augment=augment)


@pytest.mark.parametrize(
    "augment, message",
    [
        (layers.Rescaling(1 / 255), r"Rescaling, but images must stay in \[0, 1\]"),
        (layers.RandomFlip(data_format="channels_first"), "RandomFlip with channels first"),
    ],
)
def test_layers_that_do_not_fit_images_are_refused(augment, message):
    with pytest.raises(ArgumentError, match=message):
        data.ImageBatches(IMAGES, augment=augment)


def model_of(*steps):
    images = keras.Input((8, 8, 3))
    x = images
    for step in steps:
        x = step(x)
    return keras.Model(images, x)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")  # by Keras, on JAX
@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: model_of(layers.Rescaling(1 / 255)), "augment contains Rescaling, but images"),
        (lambda: model_of(layers.MixUp()), "within which MixUp or CutMix would mix images without"),
        (lambda: layers.RandomErasing(value_range=(1, 0)), r"value_range=\(1, 0\), which is empty"),
    ],
    ids=["Rescaling in a model", "MixUp in a model", "an empty range"],
)
def test_a_layer_that_would_silently_give_wrong_images_is_refused(build, message):
    with pytest.raises(ArgumentError, match=message):
        data.ImageBatches(IMAGES, augment=build())


@pytest.mark.parametrize(
    "targets",
    [LABELS[:, None], LABELS[:, None] > 1, np.random.default_rng(0).normal(size=(12, 3))],
    ids=["class numbers", "flags", "regression"],
)
def test_mixing_is_refused_for_rows_that_are_not_one_hot(targets):
    with pytest.raises(ArgumentError, match="are not one-hot rows"):
        data.ImageBatches(IMAGES, targets, augment=layers.MixUp())


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_a_layer_built_under_a_policy_of_low_precision_computes_in_float32(policy):
    expected = apply(layers.Pipeline([layers.RandomRotation(0.2)]))[0]
    keras.config.set_dtype_policy(policy)
    try:
        layer = layers.RandomRotation(0.2)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(apply(layer)[0], expected)
    assert layer.dtype_policy.name == policy


def test_a_subclass_of_sequential_is_called_as_a_whole():
    class Inverted(keras.Sequential):
        def call(self, images, training=None):
            return 1 - super().call(images, training=training)

    images = apply(Inverted([layers.Resizing(8, 8)]))[0]
    np.testing.assert_allclose(images, 1 - IMAGES, atol=1e-6)


def test_a_layer_that_does_not_take_gray_images_is_named_with_the_reason():
    hue = layers.RandomHue(0.1, value_range=(0, 1))
    shape = r"\(12, 8, 8, 1\)"
    with pytest.raises(ArgumentError, match=f"augment: RandomHue failed on images {shape}: .*1"):
        data.ImageBatches(IMAGES[..., :1], augment=hue)[0]


def test_two_views_of_different_size_are_refused():
    def crop(images, rng):
        return images[:, : rng.integers(2, 9)]

    with pytest.raises(ArgumentError, match=r"two sizes, .* End it with a keras.layers.Resizing"):
        data.TwoViewBatches(IMAGES, crop)[0]


def test_a_model_of_layers_of_several_ranges_is_refused():
    images = keras.Input((8, 8, 3))
    x = layers.RandomBrightness(0.1, value_range=(0, 1))(images)
    model = keras.Model(images, layers.RandomContrast(0.1, value_range=(0, 255))(x))
    with pytest.raises(ArgumentError, match="several ranges, .* Pass these layers one by one"):
        data.ImageBatches(IMAGES, augment=model)


@pytest.mark.parametrize(
    "augment, error, message",
    [
        (lambda x, rng: 255 * x, ArgumentError, r"<lambda> returned values from .* stay in \[0, 1"),
        (lambda x, rng: x * np.nan, ArgumentError, "values from nan"),
        (lambda x, rng: x[0], ArgumentError, r"returned \(8, 8, 3\) for images \(12, 8, 8, 3\)"),
        (lambda x, rng: x[:5], ArgumentError, "it must return as many images"),
        (lambda x, rng: x[:, :0], ArgumentError, "of one pixel or more"),
        (lambda x, rng: (255 * x).astype(int), ArgumentTypeError, "returned int64"),
        (lambda x, rng: None, ArgumentError, "returned"),
    ],
)
def test_a_function_that_returns_no_images_is_named(augment, error, message):
    with pytest.raises(error, match=message):
        data.ImageBatches(IMAGES, augment=augment)[0]


def test_a_function_may_return_uint8_and_overshoot_is_clipped():
    levels = apply(lambda x, rng: np.rint(255 * x).astype("uint8"))[0]
    np.testing.assert_allclose(levels, IMAGES, atol=0.5 / 255 + 1e-6)
    assert apply(lambda x, rng: x + 0.3)[0].max() == 1


def test_the_steps_are_shown():
    augment = [layers.RandomFlip(), layers.Pipeline([layers.RandomRotation(0.1)]), invert]
    assert "augment=[RandomFlip, RandomRotation, invert]" in repr(
        data.ImageBatches(IMAGES, augment=augment)
    )
    assert "augment" not in repr(data.ImageBatches(IMAGES))


# Runs


def noisy(factor=0.1):
    return [layers.GaussianNoise(factor), brighten]


@pytest.mark.fault("killed-training")
def test_a_run_with_augmentation_in_two_calls_ends_bit_equal_to_one_call(tmp_path):
    def run(folder, epochs):
        batches = training_runs.draw_batches(augment=noisy())
        training_runs.fit(tmp_path / folder, epochs, batches=batches)
        return training_runs.read_state(tmp_path / folder)[0]

    run("two", 1)
    one, two = run("one", 2), run("two", 2)
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


@pytest.mark.fault("restart-with-changes")
@pytest.mark.parametrize(
    "changed",
    [noisy(0.2), None, [layers.GaussianNoise(0.1), invert]],
    ids=["another factor", "none", "another function"],
)
def test_a_run_with_another_augmentation_is_refused(changed, tmp_path):
    training_runs.fit(tmp_path, 1, batches=training_runs.draw_batches(augment=noisy()))
    with pytest.raises(ArgumentError, match="augment"):
        training_runs.fit(tmp_path, 2, batches=training_runs.draw_batches(augment=changed))


class Darken:
    """Multiplies images by a factor that it keeps under another name than its argument's."""

    def __init__(self, factor):
        self.kept = factor

    def __call__(self, images, rng):
        return images * self.kept


@pytest.mark.parametrize(
    "build",
    [Darken, lambda factor: model_of(layers.RandomRotation(factor))],
    ids=["an object", "a model"],
)
def test_steps_of_the_same_effect_have_the_same_settings_and_others_have_others(build):
    def settings(factor):
        return _resume.describe(Augmentation(build(factor)).settings())

    assert settings(0.5) == settings(0.5) != settings(0.25)


def test_an_error_of_a_function_in_a_thread_of_keras_reaches_the_caller():
    def fail_later(images, rng):
        calls.append(1)
        if len(calls) > 5:
            raise LookupError("no such image")
        return images

    calls: list = []
    batches = training_runs.draw_batches(augment=fail_later)
    with pytest.raises(LookupError, match=r"^'?no such image'?$"):
        training_runs.fit(None, 3, batches=batches)


# Two views


def test_two_views_of_each_image_share_a_label_and_differ():
    views, labels = data.TwoViewBatches(IMAGES, brighten, batch_size=5)[0]
    assert labels.tolist() == [0, 1, 2, 3, 4] * 2
    ratio = views[:5] / views[5:]  # the two views of an image differ by one factor each
    assert (ratio.std(axis=(1, 2, 3)) < 1e-3).all() and (np.abs(ratio[:, 0, 0, 0] - 1) > 0).all()


@pytest.mark.parametrize("settings", [{"sigma": 0.1}, {"shift": 1}, {"flip": True}])
def test_noise_shift_or_flip_is_enough_for_two_views(settings):
    views, _ = data.TwoViewBatches(IMAGES, batch_size=12, **settings)[0]
    assert (views[:12] != views[12:]).any()


@pytest.mark.parametrize(
    "images, batch_size, message",
    [(IMAGES, 1, "batch_size=1 is out of range"), (IMAGES[:1], 4, "whose views have no negatives")],
)
def test_two_views_without_negatives_are_refused(images, batch_size, message):
    with pytest.raises(ArgumentError, match=message):
        data.TwoViewBatches(images, brighten, batch_size)


def test_two_equal_views_are_refused():
    with pytest.raises(ArgumentError, match="the two views of an image would be equal"):
        data.TwoViewBatches(IMAGES)


def test_two_views_train_an_embedder_with_nt_xent_loss(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(16)])
    model.compile(keras.optimizers.Adam(0.01), losses.NTXentLoss(temperature=0.2))
    batches = data.TwoViewBatches(IMAGES, brighten, batch_size=6, sigma=0.05)
    loss = training.fit(model, batches, 12, tmp_path, verbose=0)["loss"]
    assert loss.iloc[-1] < loss.iloc[0] / 2
