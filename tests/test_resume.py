"""Whatever decides the numbers of a run is saved and compared; what cannot be saved is refused."""

import collections
import datetime
import decimal
import enum
import functools
import json
import random
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kerasim import _artifacts, _resume, data, training
from kerasim.errors import ArgumentError, ArtifactError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

IMAGES = np.random.default_rng(0).random((8, 4, 4, 1), dtype="float32")
C = keras.callbacks


@pytest.fixture(autouse=True)
def policy():
    """Puts back the dtype policy that a test changes."""
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


def build(loss="mse", rate=0.01, optimizer="sgd", norm=False, **compiled):
    """Returns a small compiled network with Dropout, always with the same weights."""
    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Flatten(),
            layers.BatchNormalization() if norm else layers.Activation("linear"),
            layers.Dropout(0.3),
            layers.Dense(16, activation="sigmoid", dtype="float32"),
            layers.Reshape((4, 4, 1), dtype="float32"),
        ]
    )
    config = {"learning_rate": rate} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    optimizer = keras.optimizers.get({"class_name": optimizer, "config": config})
    model.compile(optimizer, loss, run_eagerly=True, **compiled)
    return model


def fit(run_dir, epochs, callbacks=(), model=None, batches=None, **kwargs):
    """Trains on two batches an epoch; returns the history and the model."""
    model = build() if model is None else model
    if batches is None:
        batches = data.ImageBatches(IMAGES, batch_size=4, seed=3, sigma=0.1)
    given = {"callbacks": callbacks, "verbose": 0, **kwargs}
    return training.fit(model, batches, epochs, run_dir, **given), model


def validation():
    return data.ImageBatches(IMAGES[:5], shuffle=False)


def state_of(run_dir):
    return _artifacts.read(Path(run_dir) / "state", "training_state", training._load)


def assert_equal_runs(one, other):
    """Asserts that two runs hold the same weights, optimizer, history and callbacks, to the bit."""
    (arrays, info), (wanted, straight) = state_of(one), state_of(other)
    assert list(arrays) == list(wanted)
    for key, array in arrays.items():
        assert array.dtype == wanted[key].dtype and array.tobytes() == wanted[key].tobytes(), key
    for rows in (info["history"], straight["history"]):
        for row in rows:
            del row["seconds"]
    assert repr(info["history"]) == repr(straight["history"])
    assert repr(info["states"]) == repr(straight["states"])


def assert_equal_weights(one, other):
    for x, y in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy())


def in_two_calls(folder, make, epochs=3, model=build, **kwargs):
    """Trains in one call and in two, with fresh objects in each; returns the two folders."""
    fit(folder / "one", epochs, make(), model(), **kwargs)
    fit(folder / "two", 1, make(), model(), **kwargs)
    fit(folder / "two", epochs, make(), model(), **kwargs)
    return folder / "two", folder / "one"


# Dtype policies

POLICIES = ["float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]


@pytest.mark.fault("killed-training")
@pytest.mark.parametrize("name", POLICIES)
def test_a_run_under_any_dtype_policy_in_two_calls_ends_as_one_call(name, tmp_path):
    if keras.backend.backend() == "jax" and name == "float64":
        pytest.skip("JAX has float64 only where it was switched on")
    keras.config.set_dtype_policy(name)

    def make():
        return [C.ReduceLROnPlateau("loss", patience=1, min_delta=1e9)]

    def adam():
        return build(optimizer="adam", norm=True)

    assert_equal_runs(*in_two_calls(tmp_path, make, model=adam))
    history, _ = fit(tmp_path / "two", 3, make(), adam())
    assert list(history.epoch) == [1, 2, 3]


@pytest.mark.fault("restart-with-changes")
def test_a_run_of_another_dtype_policy_is_refused(tmp_path):
    fit(tmp_path, 1)
    keras.config.set_dtype_policy("mixed_bfloat16")
    with pytest.raises(ArgumentError, match="dtype_policy: saved float32, now mixed_bfloat16"):
        fit(tmp_path, 2)


@pytest.mark.fault("killed-training")
def test_the_same_model_under_loss_scaling_goes_on_in_the_same_process(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")

    def falling():
        return [C.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)]

    model = build()
    fit(tmp_path / "two", 3, falling(), model)
    fit(tmp_path / "two", 5, falling(), model)
    fit(tmp_path / "one", 5, falling())
    assert_equal_runs(tmp_path / "two", tmp_path / "one")


# Callbacks of Keras

CALLBACKS = {
    "EarlyStopping": lambda folder: C.EarlyStopping("loss", patience=9, min_delta=0.1),
    "EarlyStopping, best weights": lambda folder: C.EarlyStopping(
        "val_loss", patience=9, restore_best_weights=True
    ),
    "ReduceLROnPlateau": lambda folder: C.ReduceLROnPlateau("loss", patience=1, min_delta=0.1),
    "LearningRateScheduler": lambda folder: C.LearningRateScheduler(lambda n, rate: 0.9 * rate),
    "ModelCheckpoint": lambda folder: C.ModelCheckpoint(
        folder / "{epoch}.weights.h5", "loss", save_best_only=True, save_weights_only=True
    ),
    "ModelCheckpoint, batches": lambda folder: C.ModelCheckpoint(
        folder / "last.weights.h5", "loss", save_weights_only=True, save_freq=2
    ),
    "CSVLogger": lambda folder: C.CSVLogger(folder / "log.csv", append=True),
    "TerminateOnNaN": lambda folder: C.TerminateOnNaN(),
    "ProgbarLogger": lambda folder: C.ProgbarLogger(),
    "History": lambda folder: C.History(),
    "BackupAndRestore": lambda folder: C.BackupAndRestore(folder / "backup", save_freq=2),
    "LambdaCallback": lambda folder: C.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
}


@pytest.mark.fault("killed-training", "restored-callbacks")
@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_a_run_with_any_callback_of_keras_in_two_calls_ends_as_one_call(make, tmp_path):
    folders = iter([tmp_path / name for name in ("a", "b", "b")])

    def fresh():
        folder = next(folders)
        folder.mkdir(exist_ok=True)
        return [make(folder)]

    assert_equal_runs(*in_two_calls(tmp_path, fresh, validation_data=validation()))
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in "ab"]
    assert files[0] == files[1]


OTHERS = {
    "patience": lambda n: C.EarlyStopping("loss", patience=n),
    "min_delta": lambda n: C.EarlyStopping("loss", patience=9, min_delta=n / 10),
    "monitor": lambda n: C.EarlyStopping(["", "loss", "val_loss"][n], patience=9),
    "restore_best_weights": lambda n: C.EarlyStopping("loss", restore_best_weights=n == 1),
    "factor": lambda n: C.ReduceLROnPlateau("loss", factor=n / 10),
    "cooldown": lambda n: C.ReduceLROnPlateau("loss", cooldown=n),
    "min_lr": lambda n: C.ReduceLROnPlateau("loss", min_lr=n / 1e4),
    "schedule": lambda n: C.LearningRateScheduler(lambda epoch: n / 100),
    "save_best_only": lambda n: C.ModelCheckpoint("x.keras", "loss", save_best_only=n == 1),
    "initial_value_threshold": lambda n: C.ModelCheckpoint("x.keras", initial_value_threshold=n),
}


@pytest.mark.fault("restart-with-changes")
@pytest.mark.parametrize("name", OTHERS)
def test_a_callback_with_another_setting_is_refused_by_name(name, tmp_path):
    make = OTHERS[name]
    before, after = (_resume.Callbacks([make(n)]) for n in (1, 2))
    before.start()
    saved = json.loads(json.dumps(before.save({})))
    (line,) = after.match(saved)
    assert line.startswith(f"callbacks[0] ({type(make(1)).__name__}).{name}")
    assert _resume.Callbacks([make(1)]).match(saved) == []


@pytest.mark.fault("restart-with-changes")
def test_a_run_whose_callback_has_other_settings_is_refused_before_anything_changes(tmp_path):
    fit(tmp_path, 2, [C.EarlyStopping("loss", patience=2)])
    other, model = C.EarlyStopping("loss", patience=50), build()
    before = [weight.numpy() for weight in model.weights]
    wanted = r"callbacks\[0\] \(EarlyStopping\).patience: saved 2, now 50"
    with pytest.raises(ArgumentError, match=wanted):
        fit(tmp_path, 8, [other], model)
    assert other.patience == 50
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


@pytest.mark.fault("restart-with-changes")
@pytest.mark.parametrize("place", ["missing", "new"])
@pytest.mark.parametrize("make", [OTHERS["factor"], OTHERS["schedule"]])
def test_a_schedule_of_the_rate_is_neither_left_out_nor_added(make, place, tmp_path):
    callbacks = [[make(1)], []]
    first, second = callbacks if place == "missing" else reversed(callbacks)
    fit(tmp_path, 1, first)
    with pytest.raises(ArgumentError, match=f"callbacks.*{type(make(1)).__name__}.* is {place}"):
        fit(tmp_path, 2, second)


def test_callbacks_are_found_by_their_settings_wherever_they_stand(tmp_path):
    def make(*patience):
        return [C.EarlyStopping("loss", patience=n, min_delta=1e9) for n in patience]

    fit(tmp_path, 3, make(8, 9))
    long, short = make(9, 8)
    fit(tmp_path, 3, make(8, 9))
    fit(tmp_path, 4, [C.TerminateOnNaN(), long, short])
    assert (long.wait, short.wait) == (3, 3)
    states = [entry["state"] for entry in state_of(tmp_path)[1]["states"]["callbacks"]]
    assert states[0] is None and states[1]["wait"] == states[2]["wait"] == 3


def test_a_run_of_early_stopping_ends_with_its_best_weights_whenever_it_is_asked_for(tmp_path):
    def spoiled():
        return [
            C.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
            Spoils(3),
        ]

    _, whole = fit(tmp_path / "one", 9, spoiled(), validation_data=validation())
    fit(tmp_path / "two", 3, spoiled(), validation_data=validation())
    history, broken = fit(tmp_path / "two", 9, spoiled(), validation_data=validation())
    assert len(history) == 5 and history.val_loss.idxmin() == 2
    _, asked = fit(tmp_path / "two", 9, spoiled(), validation_data=validation())
    restored, best = build(), build()
    training.load_weights(restored, tmp_path / "two")
    training.load_weights(best, tmp_path / "two", which="best")
    for model in (broken, asked, restored, best):
        assert_equal_weights(model, whole)


class Spoils(C.Callback):
    """Makes the last layer useless from epoch `first` on."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def on_epoch_begin(self, epoch, logs=None):
        if epoch >= self.first:
            kernel = self.model.layers[3].kernel
            kernel.assign(np.full(kernel.shape, 9.0))


# Callbacks of the user


class Collects(C.Callback):
    """Keeps values of all kinds that can be saved, and changes them in each epoch."""

    def __init__(self, rate=1.0, images=IMAGES):
        super().__init__()
        self.rate, self.images = rate, images
        self.count, self.best = np.int64(0), np.float32(np.inf)
        self.rng, self.old = np.random.default_rng(0), np.random.RandomState(0)
        self.plain = random.Random(0)
        self.recent = collections.deque(maxlen=2)
        self.seen, self.table = set(), collections.defaultdict(list)
        self.counter, self.pair, self.sums = collections.Counter(), (0, "a"), None
        self.mean = keras.metrics.Mean()
        self.seeds = keras.random.SeedGenerator(0)
        self.path = Path("somewhere")

    def on_epoch_end(self, epoch, logs=None):
        self.rate *= 0.5
        self.count, self.best = self.count + 1, min(self.best, np.float32(epoch))
        self.drawn = self.rng.random(3) + self.old.rand() + self.plain.random()
        self.recent.append(epoch)
        self.seen.add(epoch)
        self.table[epoch].append(np.full(2, epoch))
        self.counter["epochs"] += 1
        self.pair = (epoch, "b")
        now = self.model.get_weights()
        before = now if self.sums is None else self.sums
        self.sums = [a + b for a, b in zip(before, now, strict=True)]
        self.mean.update_state(float(epoch))
        self.tensor = keras.ops.ones(2) * epoch
        self.noise = keras.ops.convert_to_numpy(keras.random.normal((2,), seed=self.seeds))
        self.path = Path(f"somewhere/{epoch}")

    def on_train_end(self, logs=None):
        self.model.set_weights([x / int(self.count) for x in self.sums])


@pytest.mark.fault("killed-training", "restored-callbacks")
def test_what_a_callback_collects_outlives_a_restart_whatever_its_kind(tmp_path):
    (_, whole), one = fit(tmp_path / "one", 3, [Collects()]), Collects()
    fit(tmp_path / "two", 1, [Collects()])
    _, broken = fit(tmp_path / "two", 3, [one])
    assert_equal_runs(tmp_path / "two", tmp_path / "one")
    assert_equal_weights(broken, whole)
    kept = type(one.count), type(one.best), type(one.table), type(one.counter), one.recent.maxlen
    assert kept == (np.int64, np.float32, collections.defaultdict, collections.Counter, 2)
    assert one.rate == 1 / 8 and one.seen == {0, 1, 2}
    assert not any("images" in key for key in state_of(tmp_path / "two")[0])


def test_a_callback_that_changed_its_own_argument_can_be_used_again_in_the_same_process(tmp_path):
    callback, model = Collects(), build()
    fit(tmp_path / "two", 1, [callback], model)
    fit(tmp_path / "two", 2, [callback], model)
    fit(tmp_path / "two", 3, [Collects()])
    fit(tmp_path / "one", 3, [Collects()])
    assert_equal_runs(tmp_path / "two", tmp_path / "one")


class Tracker:
    pass


class Holds(C.Callback):
    def __init__(self, value=None, later=None):
        super().__init__()
        self.value, self.later = value, later

    def on_epoch_end(self, epoch, logs=None):
        if self.later is not None:
            self.value = self.later()


@pytest.mark.fault("killed-training")
@pytest.mark.parametrize("value", [Tracker(), iter([1]), np.array([None]), [Tracker()], object()])
def test_a_callback_that_holds_what_cannot_be_saved_is_refused_before_the_first_epoch(
    value, tmp_path
):
    class Never(C.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise AssertionError("an epoch began")

    with pytest.raises(ArgumentError, match=r"callbacks\[1\] \(Holds\) holds 'value' .*get_state"):
        fit(tmp_path, 1, [Never(), Holds(value)])
    fit(None, 1, [Holds(value)])  # a run that saves nothing cannot lose it


@pytest.mark.fault("killed-training")
def test_a_callback_that_comes_to_hold_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="holds 'value' of type .*Tracker, which cannot be"):
        fit(tmp_path, 1, [Holds(later=Tracker)])


GIVEN = [len, build, functools.partial(build), Path("x"), np.dtype("float32"), validation()]


@pytest.mark.parametrize("value", GIVEN, ids=lambda value: type(value).__name__)
def test_what_the_caller_passes_in_each_call_needs_no_saving(value):
    callbacks = _resume.Callbacks([Holds(value)])
    callbacks.start()
    (saved,) = callbacks.save({})
    assert "value" not in saved["state"]


def test_a_model_in_a_callback_is_saved_and_the_trained_one_is_not_saved_twice(tmp_path):
    class Teacher(C.Callback):
        def __init__(self):
            super().__init__()
            self.teacher = build()

        def on_train_begin(self, logs=None):
            self.student = self.model

        def on_epoch_end(self, epoch, logs=None):
            for mine, weight in zip(self.teacher.weights, self.model.weights, strict=True):
                mine.assign(0.5 * mine + 0.5 * weight)

    assert_equal_runs(*in_two_calls(tmp_path, lambda: [Teacher()]))
    arrays = state_of(tmp_path / "one")[0]
    assert sum(key.startswith("callbacks") for key in arrays) == len(build().variables)


def test_a_callback_may_say_itself_what_is_saved(tmp_path):
    class Speaks(C.Callback):
        def __init__(self):
            super().__init__()
            self.tracker = Tracker()
            self.tracker.epochs = []

        def on_epoch_end(self, epoch, logs=None):
            self.tracker.epochs.append(epoch)

        def get_state(self):
            return {"epochs": self.tracker.epochs}

        def set_state(self, state):
            self.tracker.epochs = state["epochs"]

    fit(tmp_path, 2, [Speaks()])
    callback = Speaks()
    fit(tmp_path, 3, [callback])
    assert callback.tracker.epochs == [0, 1, 2]


def test_a_callback_with_another_function_is_warned_of_and_begins_anew(tmp_path):
    def calls(function):
        return [C.LambdaCallback(on_epoch_end=function), C.EarlyStopping("loss", patience=7)]

    fit(tmp_path, 1, calls(lambda epoch, logs: None))
    fit(tmp_path, 2, calls(lambda epoch, logs: None))
    with pytest.warns(UserWarning, match=r"callbacks\[0\] .LambdaCallback. has different func"):
        fit(tmp_path, 3, calls(lambda epoch, logs: epoch + 1))


def test_functions_are_told_apart_by_what_they_compute_and_not_by_where_they_stand():
    def make(step, offset=0):
        return lambda epoch: step * epoch + offset

    one, same, other = make(0.1), make(0.1), make(0.2)
    assert _resume.describe(one) == _resume.describe(same) != _resume.describe(other)
    assert _resume.describe(functools.partial(make, 1)) != _resume.describe(
        functools.partial(make, 2)
    )


class Scale:
    """An object of the user's own, with a function."""

    def __init__(self, factor):
        self.factor = factor

    def loss(self, y_true, y_pred):
        return self.factor * keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    def __call__(self, y_true, y_pred):
        return self.loss(y_true, y_pred)


class Hidden(keras.losses.Loss):
    """A loss that keeps its argument under another name."""

    def __init__(self, scale):
        super().__init__(name="hidden")
        self.factor = scale

    def call(self, y_true, y_pred):
        return self.factor * y_pred


class Color(enum.Enum):
    RED, BLUE = 1, 2


def closure(value):
    return lambda y_true, y_pred: value


def nested(value):
    def inner():
        return value

    return lambda y_true, y_pred: inner()


DESCRIBED = {
    "object": Scale,
    "method": lambda factor: Scale(factor).loss,
    "list of objects": lambda factor: [Scale(1), Scale(factor)],
    "object in an object": lambda factor: Scale(Scale(factor)),
    "closure of an object": lambda factor: closure(Scale(factor)),
    "closure of a tensor": lambda factor: closure(keras.ops.convert_to_tensor([factor])),
    "closure of a function": nested,
    "loss with another name for its argument": Hidden,
    "bytes": lambda factor: bytes([factor]),
    "range": range,
    "Decimal": decimal.Decimal,
    "date": lambda factor: datetime.date(2000, 1, factor),
    "Enum": Color,
    "DataFrame": lambda factor: pd.DataFrame({"a": [factor]}),
    "Series": lambda factor: pd.Series([factor]),
}


@pytest.mark.parametrize("make", DESCRIBED.values(), ids=list(DESCRIBED))
def test_two_objects_with_other_arguments_are_described_differently(make):
    assert _resume.json_values(_resume.describe(make(1))) == _resume.describe(make(1))
    assert _resume.describe(make(1)) != _resume.describe(make(2))


def test_tables_with_other_names_of_columns_are_described_differently():
    one, other = (pd.DataFrame({name: [1]}) for name in "ab")
    assert _resume.describe(one) != _resume.describe(other)


def test_folders_of_other_files_are_described_differently(tmp_path):
    for seed in range(2):
        Image.fromarray(np.full((4, 4), seed, "uint8")).save(tmp_path / f"{seed}.png")
    folder = data.image_folder(tmp_path, 4)
    assert _resume.describe(folder.take([0])) != _resume.describe(folder.take([1]))


def test_objects_that_refer_to_one_another_are_described():
    one, other = Scale(1), Scale(2)
    one.factor, other.factor = [other], {"a": one}
    assert _resume.describe(one) == _resume.describe(one)


def test_a_function_without_a_module_is_compared_by_its_code():
    def make(code):
        names: dict = {}  # without `__name__`, so that the function has no module
        exec(f"def scale(x): return {code} * x", names)
        return names["scale"]

    assert make(2).__module__ is None
    assert _resume.describe(make(2)) == _resume.describe(make(2)) != _resume.describe(make(3))


# Compile


def half(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1) / 2


def third(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1) / 3


third.__name__ = third.__qualname__ = "half"


class Scaled(keras.losses.Loss):
    """A loss whose config does not tell of its argument."""

    def __init__(self, scale):
        super().__init__(name="scaled")
        self.scale = scale

    def call(self, y_true, y_pred):
        return self.scale * half(y_true, y_pred)


COMPILED = {
    "loss_weights": ({"loss_weights": [1.0]}, {"loss_weights": [0.01]}),
    "loss_weights, none before": ({}, {"loss_weights": [0.01]}),
    "metrics": ({"metrics": ["mae"]}, {"metrics": ["mse"]}),
    "metrics, none after": ({"metrics": ["mae"]}, {}),
    "weighted_metrics": ({"weighted_metrics": ["mae"]}, {"weighted_metrics": ["mse"]}),
    "loss, a function of the same name": ({"loss": half}, {"loss": third}),
    "loss, an argument": ({"loss": Scaled(1.0)}, {"loss": Scaled(2.0)}),
    "loss, a config": ({"loss": keras.losses.Huber(1.0)}, {"loss": keras.losses.Huber(2.0)}),
    "optimizer": ({"optimizer": "adam"}, {"optimizer": "sgd"}),
    "loss, an object": ({"loss": Scale(1.0)}, {"loss": Scale(2.0)}),
    "loss, a partial": (
        {"loss": functools.partial(half, y_pred=1.0)},
        {"loss": functools.partial(half, y_pred=2.0)},
    ),
    "optimizer, rate": ({"rate": 0.1}, {"rate": 0.2}),
}


def described(**compiled):
    return training._settings(build(**compiled), validation(), None)


@pytest.mark.fault("restart-with-changes")
@pytest.mark.parametrize("name", COMPILED)
def test_a_model_compiled_in_another_way_has_other_settings(name):
    before, after = COMPILED[name]
    assert list(_resume.differences(described(**before), described(**before))) == []
    lines = list(_resume.differences(described(**before), described(**after)))
    assert any(line.startswith(name.partition(",")[0]) for line in lines)


@pytest.mark.fault("restart-with-changes")
def test_a_run_compiled_with_other_loss_weights_is_refused_with_the_difference(tmp_path):
    fit(tmp_path, 1)
    with pytest.raises(ArgumentError, match=r"loss_weights: saved None, now \[0.01\]"):
        fit(tmp_path, 2, model=build(loss_weights=[0.01]))


class Arrays(keras.utils.PyDataset):
    """Batches of the user's own, from arrays."""

    def __init__(self, x, size=4):
        super().__init__()
        self.x, self.size = x, size

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, index):
        rows = slice(index * self.size, (index + 1) * self.size)
        return self.x[rows], self.x[rows]


@pytest.mark.fault("restart-with-changes")
def test_batches_of_the_user_are_compared_by_their_arguments(tmp_path):
    fit(tmp_path, 1, batches=Arrays(IMAGES))
    fit(tmp_path, 2, batches=Arrays(IMAGES.copy()))
    with pytest.raises(ArgumentError, match="batches.arguments.x: saved array"):
        fit(tmp_path, 3, batches=Arrays(IMAGES[::-1]))


class Renamed(keras.utils.PyDataset):
    """Batches that keep an argument under another name, and count how often they are asked."""

    def __init__(self, pixels, factor=1.0):
        super().__init__()
        self.factor, self.images, self.calls = factor, pixels, 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.calls += 1
        images = self.images[4 * index : 4 * index + 4] * self.factor
        return images, images


class Rate(keras.callbacks.Callback):
    """A callback that keeps an argument under another name."""

    def __init__(self, rate):
        super().__init__()
        self.value, self.steps = rate, 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1


def test_batches_that_hide_an_argument_are_warned_of_if_they_differ(tmp_path):
    fit(tmp_path, 1, batches=Renamed(IMAGES))
    fit(tmp_path, 2, batches=Renamed(IMAGES.copy()))
    said = r"batches \(Renamed\) does not keep its arguments \['pixels'\] .* \['images'\] differ"
    with pytest.warns(UserWarning, match=said):
        fit(tmp_path, 3, batches=Renamed(IMAGES[::-1]))


def test_a_callback_that_hides_an_argument_is_warned_of_if_it_differs(tmp_path):
    again = Rate(0.1)
    fit(tmp_path, 1, [again])
    fit(tmp_path, 2, [again])
    fit(tmp_path, 3, [Rate(0.1)])
    with pytest.warns(UserWarning, match=r"its attributes \['value'\] differ"):
        fit(tmp_path, 4, [Rate(0.2)])


class Faster(keras.optimizers.SGD):
    """An optimizer whose config does not tell of its argument."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor


class Steps(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule without a config."""

    def __call__(self, step):
        return 0.1


def compiled(optimizer):
    model = build()
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def test_a_custom_optimizer_with_another_argument_is_refused(tmp_path):
    fit(tmp_path, 1, model=compiled(Faster(1.0)))
    fit(tmp_path, 2, model=compiled(Faster(1.0)))
    with pytest.raises(ArgumentError, match="optimizer.arguments.factor: saved 1.0, now 2.0"):
        fit(tmp_path, 3, model=compiled(Faster(2.0)))


def test_an_optimizer_that_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="optimizer cannot be compared .*get_config"):
        fit(tmp_path, 1, model=compiled(keras.optimizers.SGD(Steps())))


def test_a_model_without_weights_is_refused_with_what_to_add(tmp_path):
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ArgumentError, match=r"has no weights yet: begin it with keras.Input"):
        fit(tmp_path, 1, model=model)


# Interrupts


# Moment: how many calls of it an epoch has, and in which of them the interrupt comes.
MOMENTS = {
    "on_epoch_begin": (1, 0),
    "on_train_batch_end": (2, 1),
    "on_test_batch_end": (2, 1),
    "on_epoch_end": (1, 0),
}


def held_out():
    return data.ImageBatches(IMAGES[:5], batch_size=3, shuffle=False)


def patient():
    return C.EarlyStopping("loss", patience=9)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of three epochs that was never interrupted."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    fit(folder, 3, [patient()], validation_data=held_out())
    return folder


def raises_in(moment, epoch, error=KeyboardInterrupt):
    """Returns a callback that raises `error` in an epoch, once."""
    calls, which = MOMENTS[moment]
    countdown = iter(range(calls * epoch + which, -100, -1))

    def count(*_, **__):
        if next(countdown) == 0:
            raise error

    return C.LambdaCallback(**{moment: count})


@pytest.mark.fault("interrupt")
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("epoch", [0, 2])
def test_an_interrupt_at_any_moment_changes_no_bit_in_the_same_process(
    epoch, moment, tmp_path, unbroken
):
    model, stop = build(), patient()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 3, [stop, raises_in(moment, epoch)], model, validation_data=held_out())
    fit(tmp_path, 3, [stop], model, validation_data=held_out())
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.fault("interrupt")
def test_two_interrupts_in_one_epoch_after_a_restart_change_no_bit(tmp_path, unbroken):
    fit(tmp_path, 1, [patient()], validation_data=held_out())
    model, stop = build(), patient()
    for moment in ("on_train_batch_end", "on_test_batch_end"):
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, 3, [raises_in(moment, 0), stop], model, validation_data=held_out())
    fit(tmp_path, 3, [stop], model, validation_data=held_out())
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.parametrize("epoch", [0, 1])
def test_after_an_error_the_model_has_the_weights_of_the_last_whole_epoch(epoch, tmp_path):
    model = build()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, 3, [raises_in("on_train_batch_end", epoch, ZeroDivisionError)], model)
    whole = build()  # sets the seed again, which on torch is that of Dropout, too
    if epoch:
        fit(tmp_path / "whole", epoch, model=whole)
    assert_equal_weights(model, whole)
    iterations = 0 if not epoch else int(whole.optimizer.iterations.numpy())
    assert int(model.optimizer.iterations.numpy()) == iterations


def test_a_callback_that_counts_steps_has_the_count_of_the_last_whole_epoch_after_an_interrupt(
    tmp_path,
):
    class Counts(C.Callback):
        def __init__(self):
            super().__init__()
            self.steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1

    for epoch in (0, 1):
        counts, model = Counts(), build()
        with pytest.raises(KeyboardInterrupt):
            stop = raises_in("on_train_batch_end", epoch)
            fit(tmp_path / str(epoch), 2, [counts, stop], model)
        assert counts.steps == 2 * epoch


# Starting afresh


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.fault("restart-with-changes")
def test_a_run_that_starts_afresh_leaves_nothing_of_the_earlier_one(tmp_path):
    fit(tmp_path, 2, validation_data=validation())
    assert names(tmp_path) == ["best", "history.csv", "state"]
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 2, [raises_in("on_train_batch_end", 0)], resume=False)
    assert not tmp_path.exists() or names(tmp_path) == []


@pytest.mark.fault("restored-callbacks", "restart-with-changes")
def test_the_best_weights_of_an_earlier_run_are_gone_once_another_runs_without_validation(tmp_path):
    fit(tmp_path, 2, validation_data=validation())
    fit(tmp_path, 1, resume=False)
    with pytest.raises(ArtifactError, match='no best weights.*pass which="last"'):
        training.load_weights(build(), tmp_path, which="best")


@pytest.mark.fault("restored-callbacks")
def test_best_weights_of_another_run_are_refused(tmp_path):
    for name in ("one", "other"):
        fit(tmp_path / name, 1, validation_data=validation())
    (tmp_path / "one" / "best").rename(tmp_path / "kept")
    (tmp_path / "other" / "best").rename(tmp_path / "one" / "best")
    with pytest.raises(ArtifactError, match="best holds weights of a different run than .*state"):
        training.load_weights(build(), tmp_path / "one", which="best")


@pytest.mark.fault("restart-with-changes")
def test_a_run_whose_state_was_removed_starts_without_what_is_left(tmp_path):
    fit(tmp_path, 2, validation_data=validation())
    _artifacts.remove(tmp_path / "state", "training_state")
    fit(tmp_path, 1)
    assert names(tmp_path) == ["history.csv", "state"]


def test_a_run_without_a_folder_trains_and_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history, model = fit(None, 2, validation_data=validation())
    _, saved = fit(tmp_path / "run", 2, validation_data=validation())
    assert list(history.columns) == ["epoch", "loss", "val_loss", "seconds"]
    assert_equal_weights(model, saved)
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "bool", "int64"])
def test_arrays_of_any_type_are_saved(dtype, tmp_path):
    array = np.arange(6).reshape(2, 3).astype(np.dtype(dtype))
    np.savez(tmp_path / "x.npz", **_resume.pack({"x/0": array}))
    found = _resume.unpack(_artifacts.read_arrays(tmp_path / "x.npz"))["x/0"]
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    assert found.shape == (2, 3)
