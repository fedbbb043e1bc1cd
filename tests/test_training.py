import contextlib
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
import weakref
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kerasim import _artifacts, data, embedding, metrics, training
from kerasim.data import ImageBatches
from kerasim.errors import (
    ArgumentError,
    ArgumentTypeError,
    ArtifactError,
    ImageError,
    TrainingError,
)
from tests.helpers.image_files import write_image
from tests.helpers.training_runs import (
    IMAGES,
    AtEachEpoch,
    BatchesWithNaN,
    LossThatTurnsNaN,
    build,
    draw_batches,
    fit,
    read_state,
    set_kernel_to_nan,
)

# TensorFlow's, whenever Keras makes an array of a variable.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

THREADS = 1 + (keras.backend.backend() == "tensorflow")  # that draw batches, of many an epoch


def weights(model):
    return [variable.numpy() for variable in model.variables]


def assert_equal(one, other):
    """Asserts that two lists or dicts of arrays are equal to the bit."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    assert [a.tobytes() for a in one] == [b.tobytes() for b in other]


def snapshot(folder):
    return {
        str(file.relative_to(folder)): (file.stat().st_ino, file.read_bytes())
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A run of two epochs, which no test changes."""
    run_dir = tmp_path_factory.mktemp("once") / "run"
    fit(run_dir)
    return run_dir


@pytest.fixture
def finished(once, tmp_path):
    """A copy of that run, for one test to change."""
    return shutil.copytree(once, tmp_path / "run")


# Exact resume

EPOCHS = 16


def train_slowly(run_dir):
    """Trains as the killed process does: noise, flips, Dropout, batch norm, a falling rate."""

    def tell(epoch, model):
        print("epoch", epoch, flush=True)
        time.sleep(0.03)

    falling = keras.callbacks.ReduceLROnPlateau("loss", factor=0.9, patience=1, min_delta=1e9)
    validation = ImageBatches(IMAGES[:5], shuffle=False)
    model = build(eager=False)
    fit(run_dir, EPOCHS, model, callbacks=[AtEachEpoch(tell), falling], validation_data=validation)
    return model


@pytest.mark.fault("killed-training", "interrupt")
def test_a_run_killed_at_random_moments_ends_bit_equal_to_one_never_killed(tmp_path, capsys):
    train_slowly(tmp_path / "straight")
    root = str(Path(training.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, str(tmp_path / "killed")]
    rng, codes, kills = random.Random(5), [], [signal.SIGKILL, signal.SIGTERM]
    for kill in (*kills, None):
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as child:
            for _ in range(rng.randint(1, 3) if kill else 0):
                while not child.stdout.readline().startswith("epoch"):
                    assert child.poll() is None
            time.sleep(rng.uniform(0, 0.15) if kill else 0)
            if kill:
                child.send_signal(kill)
            said = child.stdout.read()
        codes.append(child.returncode)
    assert codes == [*(-kill for kill in kills), 0]
    assert re.match(rf"killed: continuing after epoch \d+ of {EPOCHS}\.\n", said)

    for name in ("state", "best"):
        (arrays, info), (wanted, straight) = (
            read_state(tmp_path / run, name) for run in ("killed", "straight")
        )
        assert_equal(arrays, wanted)
    tables = [pd.read_csv(tmp_path / run / "history.csv") for run in ("killed", "straight")]
    assert list(tables[0].epoch) == list(range(1, EPOCHS + 1))
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables))


@pytest.mark.fault("killed-training")
def test_a_run_in_two_calls_ends_bit_equal_to_one_call(finished, tmp_path, capsys):
    fit(finished, epochs=4)
    assert "continuing after epoch 2 of 4" in capsys.readouterr().out
    history = fit(tmp_path / "straight", epochs=4)
    assert_equal(read_state(finished)[0], read_state(tmp_path / "straight")[0])
    assert list(history.epoch) == [1, 2, 3, 4]


def test_two_threads_that_draw_many_batches_change_no_bit_nor_does_an_interrupt(tmp_path):
    images = np.random.default_rng(1).random((60, 4, 4, 1), dtype="float32")
    one, two = draw_batches(images, batch_size=1), draw_batches(images, batch_size=1)
    one.workers = 1
    assert (two.workers, draw_batches(images[:50], batch_size=1).workers) == (THREADS, 1)
    fit(tmp_path / "one", 3, build(eager=False), one)

    def interrupt(epoch, model):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "two", 3, build(eager=False), two, callbacks=[AtEachEpoch(interrupt)])
    fit(tmp_path / "two", 3, build(eager=False), two)
    assert_equal(read_state(tmp_path / "one")[0], read_state(tmp_path / "two")[0])


@pytest.mark.parametrize("images", [12, 60], ids=["one thread", "threads"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_batches_are_freed_after_training(images, error):
    images = np.random.default_rng(1).random((images, 4, 4, 1), dtype="float32")
    batches, validation = (draw_batches(images, batch_size=1) for _ in range(2))

    def stop(epoch, model):
        if epoch == 1:
            raise error

    callbacks = [AtEachEpoch(stop)] if error else []
    with pytest.raises(error) if error else contextlib.nullcontext():
        fit(None, 2, None, batches, validation_data=validation, callbacks=callbacks)
    left = [weakref.ref(batches), weakref.ref(validation)]
    del batches, validation
    gc.collect()
    assert [reference() for reference in left] == [None, None]


class CountsEpochs(ImageBatches):
    ended = 0

    def on_epoch_end(self):
        self.ended += 1


def test_validation_batches_are_told_of_the_end_of_each_epoch(tmp_path):
    validation = CountsEpochs(IMAGES, batch_size=4, seed=0)
    fit(tmp_path, 3, validation_data=validation)
    assert validation.ended >= 3  # Keras 3.15 calls it twice


@pytest.mark.fault("restart-of-finished-run")
def test_a_finished_run_says_so_and_gives_its_weights_without_training(
    finished, capsys, monkeypatch
):
    before = snapshot(finished / "state")
    model = build()
    monkeypatch.delattr(ImageBatches, "__getitem__")  # nothing may ask for a batch
    history = fit(finished, model=model)
    said = capsys.readouterr().out
    assert re.search(r"run: finished earlier after 2 epochs in \d+ s, loss 0\.\d+", said)
    assert "To train longer, increase epochs; to train again, pass resume=False." in said
    assert snapshot(finished / "state") == before
    arrays = read_state(finished)[0]
    assert_equal(weights(model), [arrays[f"model/{n}"] for n in range(len(weights(model)))])
    assert list(history.epoch) == [1, 2]


def test_the_same_model_goes_on_in_the_same_process_after_its_rate_was_lowered(tmp_path):
    def falling():
        return keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)

    model = build()
    fit(tmp_path / "run", 3, model, callbacks=[falling()])
    assert float(model.optimizer.learning_rate) < 0.01
    history = fit(tmp_path / "run", 5, model, callbacks=[falling()])
    straight = fit(tmp_path / "straight", 5, callbacks=[falling()])
    pd.testing.assert_frame_equal(*(h.drop(columns="seconds") for h in (history, straight)))
    # And a new process begins with the rate that the run began with.
    fit(tmp_path / "run", 5, callbacks=[falling()])


# What differs is refused


class Halved(keras.losses.MeanSquaredError):
    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) / 2


CHANGES = {
    "other images": ({"batches": {"images": IMAGES[::-1]}}, "batches.images: saved"),
    "fewer images": ({"batches": {"images": IMAGES[:8]}}, "batches.images: saved"),
    "targets": ({"batches": {"targets": IMAGES}}, "batches.targets: saved None, now"),
    "batch size": ({"batches": {"batch_size": 6}}, "batches.batch_size: saved 4, now 6"),
    "seed": ({"batches": {"seed": 4}}, "batches.seed: saved 3, now 4"),
    "noise": ({"batches": {"sigma": 0.2}}, "batches.sigma: saved 0.1, now 0.2"),
    "order": ({"batches": {"shuffle": False}}, "batches.shuffle: saved True, now False"),
    "model": ({"model": {"units": 6}}, r"model.config.layers\[2\].config.units: saved 5, now 6"),
    "optimizer": ({"model": {"optimizer": "sgd"}}, "optimizer.class_name: saved Adam, now SGD"),
    "rate": ({"model": {"rate": 0.02}}, "optimizer.config.learning_rate: saved 0.0"),
    "loss": ({"model": {"loss": "mae"}}, "loss: saved mse, now mae"),
    "loss class": ({"model": {"loss": Halved()}}, "loss: saved mse, now .*Halved"),
    "validation": ({"validation": {}}, "validation_data: saved None, now"),
}


@pytest.mark.fault("restart-with-changes")
@pytest.mark.parametrize(("change", "wanted"), CHANGES.values(), ids=CHANGES)
def test_a_run_of_other_settings_is_refused_with_the_difference_and_nothing_changes(
    once, change, wanted
):
    before = snapshot(once)
    model = build(**change.get("model", {}))
    untrained = weights(model)
    validation = draw_batches() if "validation" in change else None
    with pytest.raises(ArgumentError, match=f"(?s)run_dir=.*{wanted}.*resume=False"):
        fit(once, 4, model, draw_batches(**change.get("batches", {})), validation_data=validation)
    assert_equal(weights(model), untrained)
    assert snapshot(once) == before


@pytest.mark.fault("restart-with-changes")
def test_resume_false_starts_afresh_and_overwrites(finished, tmp_path):
    history = fit(finished, 1, batches=draw_batches(seed=9), resume=False)
    fit(tmp_path / "fresh", 1, batches=draw_batches(seed=9))
    assert list(history.epoch) == [1]
    assert_equal(read_state(finished)[0], read_state(tmp_path / "fresh")[0])


def test_a_name_that_keras_counted_up_is_no_difference(tmp_path):
    fit(tmp_path, 1, build(loss=Halved(name="halved_1")))
    assert len(fit(tmp_path, 1, build(loss=Halved(name="halved_2")))) == 1


def test_an_error_inside_the_settings_of_batches_is_not_swallowed(tmp_path):
    class Broken(ImageBatches):
        def settings(self):
            raise AttributeError("misspelt")

    with pytest.raises(AttributeError, match="misspelt"):
        fit(tmp_path, batches=Broken(IMAGES))


def test_a_damaged_state_is_refused_with_its_path_and_left(finished):
    file = finished / "state" / "arrays.npz"
    file.write_bytes(file.read_bytes()[:-1])
    before = snapshot(finished)
    with pytest.raises(ArtifactError, match=f"{file} is damaged: expected"):
        fit(finished, 4)
    assert snapshot(finished) == before


def test_a_state_that_a_dead_writer_set_aside_is_not_forgotten(finished, capsys):
    os.rename(finished / "state", finished / ".state.old")
    fit(finished)
    assert "finished earlier after 2 epochs" in capsys.readouterr().out


# Numbers that are not finite


@pytest.mark.fault("nan-in-data")
def test_data_that_is_not_finite_is_refused_before_the_first_step(tmp_path):
    model = build()
    untrained = weights(model)
    with pytest.raises(ArgumentError, match="array 1 of batches.0. holds NaN or infinity"):
        fit(tmp_path, model=model, batches=BatchesWithNaN(IMAGES))
    assert_equal(weights(model), untrained)
    assert os.listdir(tmp_path) == []


FAULTS = {
    "weights": (
        "mse",
        [AtEachEpoch(set_kernel_to_nan(4))],
        "loss became nan in batch 0 of epoch 3",
    ),
    "loss": (LossThatTurnsNaN(), [], "loss became nan in batch 1 of epoch 3"),
    "last step": (
        "mse",
        [AtEachEpoch(set_kernel_to_nan(1), end=True)],
        "1 weights became NaN .* epoch 3",
    ),
}


@pytest.mark.fault("nan-in-training")
@pytest.mark.parametrize(("loss", "callbacks", "wanted"), FAULTS.values(), ids=FAULTS)
def test_a_run_that_turns_nan_stops_and_keeps_the_last_good_epoch(
    tmp_path, loss, callbacks, wanted
):
    validation = ImageBatches(IMAGES, shuffle=False)
    wanted = f"{wanted}.*{tmp_path / 'run' / 'state'} keeps epoch 2"
    with pytest.raises(TrainingError, match=wanted):
        fit(tmp_path / "run", 5, build(loss=loss), validation_data=validation, callbacks=callbacks)
    arrays, info = read_state(tmp_path / "run")
    best = read_state(tmp_path / "run", "best")[0]
    assert all(np.isfinite(array).all() for array in (*arrays.values(), *best.values()))
    assert [row["epoch"] for row in info["history"]] == [1, 2]
    fit(tmp_path / "good", 2, validation_data=validation)
    assert_equal(arrays, read_state(tmp_path / "good")[0])


@pytest.mark.fault("nan-in-training")
def test_a_loss_that_is_nan_from_the_start_says_that_no_epoch_was_finished(tmp_path):
    loss = LossThatTurnsNaN()
    loss.batches = 10
    with pytest.raises(TrainingError, match="batch 0 of epoch 1. No epoch was finished"):
        fit(tmp_path, model=build(loss=loss))
    assert os.listdir(tmp_path) == []


# A network that has stopped learning


def saturated(bias=-200.0, rate=0.01, loss="mse"):
    """Returns a network whose sigmoid gives the same for all images, and whose gradient is zero."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(16, "sigmoid", bias_initializer=keras.initializers.Constant(bias))
    stack = [keras.Input((4, 4, 1)), keras.layers.Flatten(), dense]
    model = keras.Sequential([*stack, keras.layers.Reshape((4, 4, 1))])
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


def test_a_network_that_has_stopped_learning_is_warned_of_once():
    batches = ImageBatches(IMAGES, batch_size=2)
    wanted = "loss has stayed at 0.3.* for 102 steps.* same output for every image"
    with pytest.warns(UserWarning, match=wanted) as caught:
        training.fit(saturated(), batches, 20, verbose=0)
    assert sum("stopped learning" in str(entry.message) for entry in caught) == 1


@pytest.mark.parametrize("rate", [0.5, 1e-6])
def test_a_network_that_has_converged_or_learns_slowly_is_not_warned_of(rate):
    model = saturated(0.0, rate)
    if rate == 0.5:  # to its best: a constant loss, as all batches are the same
        images = IMAGES[:1]
        batches = ImageBatches(np.concatenate([images, 1 - images]), batch_size=2)
    else:
        batches = ImageBatches(IMAGES, batch_size=4)
    history = training.fit(model, batches, 120, verbose=0)
    assert np.ptp(history.loss[-20:]) < 1e-3 * history.loss.iloc[-1] or rate == 0.5


def test_equal_images_are_no_sign_of_a_network_that_has_stopped_learning():
    batches = ImageBatches(np.zeros((12, 4, 4, 1), "float32"), batch_size=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training.fit(saturated(200.0), batches, 20, verbose=0)
    assert not any("stopped learning" in str(warning.message) for warning in caught)


# What stops a run from outside


@pytest.mark.fault("out-of-memory")
@pytest.mark.parametrize("backend", ["numpy", keras.backend.backend()])
def test_out_of_memory_says_which_batch_size_to_try_and_the_state_is_kept(backend, tmp_path):
    def run_out(epoch, model):
        if epoch == 1:
            raise out_of_memory(backend)

    wanted = f"^batch_size=4 needs .* {tmp_path / 'state'} keeps epoch 1: pass .* such as 2"
    with pytest.raises(ArgumentError, match=wanted):
        fit(tmp_path, 3, callbacks=[AtEachEpoch(run_out)])
    assert len(fit(tmp_path, 3)) == 3


def out_of_memory(backend):
    """Returns the error that a backend, or NumPy, raises if memory runs out."""
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    if backend == "jax":
        import jax

        return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes.")
    if backend == "torch":
        import torch

        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 MiB.")
    return MemoryError()


@keras.saving.register_keras_serializable("tests")
class Greedy(keras.losses.MeanSquaredError):
    """Finds no memory for what it computes, inside of the graph of a step."""

    def call(self, y_true, y_pred):
        import tensorflow as tf

        def exhausted(x):
            raise out_of_memory("tensorflow")

        drawn = tf.py_function(exhausted, [y_pred], "float32")
        return super().call(y_true, tf.reshape(drawn, tf.shape(y_pred)))


@pytest.mark.fault("out-of-memory")
@pytest.mark.tensorflow("a graph of TensorFlow")
def test_out_of_memory_in_a_graph_says_which_batch_size_to_try(tmp_path):
    with pytest.raises(ArgumentError, match="^batch_size=4 .* No epoch was finished: .* such as 2"):
        fit(tmp_path, model=build(loss=Greedy(), eager=False))


@pytest.fixture
def photographs(tmp_path):
    for n in range(6):
        write_image(tmp_path / "photographs" / f"{n}.png", 40 * n, (4, 4))
    return tmp_path / "photographs"


def on_folder(folder, **kwargs):
    return draw_batches(data.image_folder(folder, 4, channels=1), batch_size=2, **kwargs)


@pytest.mark.fault("file-lost-in-training")
@pytest.mark.parametrize("threads", range(1, THREADS + 1))
@pytest.mark.parametrize("way", ["vanishes", "is cut"])
def test_a_file_that_changes_mid_epoch_is_named_and_the_run_goes_on_once_it_is_back(
    way, threads, photographs, tmp_path
):
    first = on_folder(photographs)
    first.workers = threads
    file = photographs / "3.png"
    kept, times = file.read_bytes(), file.stat()

    def spoil(epoch, model):
        if epoch == 2:
            file.unlink() if way == "vanishes" else file.write_bytes(kept[:20])

    model = build(eager=False)  # as a graph, in which TensorFlow makes an error of its own of ours
    with pytest.raises(ImageError, match=re.escape(str(file))):
        fit(tmp_path / "run", 4, model, first, callbacks=[AtEachEpoch(spoil)])
    if way == "is cut":
        with pytest.raises(ArgumentError, match="batches.images: saved"):
            fit(tmp_path / "run", 4, batches=on_folder_unchecked(photographs))
    file.write_bytes(kept)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    history = fit(tmp_path / "run", 4, build(eager=False), on_folder(photographs))
    fit(tmp_path / "straight", 4, build(eager=False), on_folder(photographs))
    assert list(history.epoch) == [1, 2, 3, 4]
    assert_equal(read_state(tmp_path / "run")[0], read_state(tmp_path / "straight")[0])


def on_folder_unchecked(folder):
    return draw_batches(data.image_folder(folder, 4, channels=1, check=False), batch_size=2)


@pytest.mark.fault("file-lost-in-training")
def test_a_file_of_the_validation_that_vanishes_is_named(photographs, tmp_path):
    held_out = on_folder(photographs, shuffle=False)
    gone = AtEachEpoch(
        lambda epoch, model: (photographs / "5.png").unlink(missing_ok=True), end=True
    )
    with pytest.raises(ImageError, match="There is no file .*5.png'"):
        fit(tmp_path / "run", 2, build(eager=False), validation_data=held_out, callbacks=[gone])


@pytest.mark.fault("full-disk")
@pytest.mark.parametrize("name", ["state", "best", "history.csv"])
def test_a_disk_that_fills_during_a_run_stops_it_and_the_last_epoch_is_kept(
    name, tmp_path, monkeypatch
):
    real = _artifacts._sync

    def full(path):
        table = tmp_path / "history.csv"
        if f".{name}." in str(path) and table.exists() and len(pd.read_csv(table)) == 2:
            raise OSError(28, "No space left on device")
        return real(path)

    validation = ImageBatches(IMAGES, shuffle=False)
    with monkeypatch.context() as patch:
        patch.setattr(_artifacts, "_sync", full)
        with pytest.raises(ArtifactError, match=f"{tmp_path / name}: No space left.*Free space"):
            fit(tmp_path, 4, validation_data=validation)
    fit(tmp_path, 4, validation_data=validation)
    fit(tmp_path / "straight", 4, validation_data=validation)
    assert_equal(read_state(tmp_path)[0], read_state(tmp_path / "straight")[0])
    assert list(pd.read_csv(tmp_path / "history.csv").epoch) == [1, 2, 3, 4]


@pytest.mark.fault("run-folder-missing")
def test_a_folder_that_is_not_there_is_made(tmp_path):
    fit(tmp_path / "runs" / "new" / "run", 1)
    assert (tmp_path / "runs" / "new" / "run" / "history.csv").exists()


@pytest.mark.fault("interrupt")
def test_an_interrupt_by_the_system_stops_at_a_whole_epoch_and_says_how_to_go_on(tmp_path, capsys):
    interrupt = AtEachEpoch(lambda epoch, model: epoch == 1 and signal.raise_signal(signal.SIGINT))
    # Python leaves the signal alone where it was started in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "run", 3, callbacks=[interrupt])
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped after epoch 1; the same call continues" in capsys.readouterr().out
    fit(tmp_path / "run", 3)
    fit(tmp_path / "straight", 3)
    assert_equal(read_state(tmp_path / "run")[0], read_state(tmp_path / "straight")[0])


# The best epoch


def spoil(epoch, model):
    """Makes every epoch from the third on worse than those before."""
    if epoch >= 2:
        kernel = model.layers[4].kernel
        kernel.assign(np.full(kernel.shape, 9.0))


@pytest.mark.fault("restored-callbacks")
def test_the_best_epoch_outlives_a_restart_after_which_all_are_worse(tmp_path):
    validation = ImageBatches(IMAGES, shuffle=False)
    fit(tmp_path, 2, validation_data=validation)
    before = snapshot(tmp_path / "best")
    history = fit(tmp_path, 4, validation_data=validation, callbacks=[AtEachEpoch(spoil)])
    assert history.val_loss.idxmin() < 2
    assert snapshot(tmp_path / "best") == before


def test_restore_gives_the_weights_of_the_epoch_of_least_val_loss(tmp_path):
    validation = ImageBatches(IMAGES, shuffle=False)
    history = fit(tmp_path, 3, validation_data=validation, callbacks=[AtEachEpoch(spoil)])
    model = build()
    training.load_weights(model, tmp_path, which="best")
    loss = model.evaluate(validation, verbose=0)
    np.testing.assert_allclose(loss, history.val_loss.min(), rtol=1e-6)
    assert history.val_loss.iloc[-1] > history.val_loss.min()


def test_a_val_loss_of_nan_is_never_the_best_nor_hides_a_later_one(tmp_path):
    def heal(epoch, model):
        if epoch == 1:
            validation.hole = 0.5

    validation = BatchesWithNaN(IMAGES, shuffle=False)
    history = fit(tmp_path / "nan", 1, validation_data=validation)
    assert history.val_loss.isna().all() and not (tmp_path / "nan" / "best").exists()
    fit(tmp_path / "later", 2, validation_data=validation, callbacks=[AtEachEpoch(heal)])
    assert (tmp_path / "later" / "best").exists()


@pytest.mark.fault("weights-of-another-model")
def test_weights_of_another_architecture_are_refused_before_any_is_assigned(tmp_path):
    fit(tmp_path, 1, validation_data=draw_batches())

    def change(model, shape):
        inputs = keras.Input((4, 4, 1))
        x = inputs
        for layer in model.layers[:-2]:
            x = layer(x)
        return keras.Model(inputs, keras.layers.Dense(shape)(x))

    for model in (change(build(), 17), keras.Sequential(build().layers[:-2])):
        before = weights(model)
        with pytest.raises(ArtifactError, match=f"{tmp_path}.*a different architecture.*saved"):
            training.load_weights(model, tmp_path, which="best")
        assert_equal(weights(model), before)


def test_restore_names_what_is_missing(tmp_path):
    with pytest.raises(ArtifactError, match=f"There is no run at {tmp_path}: pass the run_dir"):
        training.load_weights(build(), tmp_path, which="best")
    with pytest.raises(ArgumentTypeError, match="run_dir is None, of type NoneType"):
        training.load_weights(build(), None, which="best")


# Callbacks


def averaging(eager=True):
    model = build()
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, "mse", run_eagerly=eager)
    return model


@pytest.mark.fault("killed-training")
def test_a_run_with_averages_in_two_calls_ends_bit_equal_to_one_call(tmp_path):
    validation = ImageBatches(IMAGES, shuffle=False)
    whole = averaging(eager=False)
    history = fit(tmp_path / "one", 4, whole, validation_data=validation)
    fit(tmp_path / "two", 2, averaging(eager=False), validation_data=validation)
    second = averaging(eager=False)
    again = fit(tmp_path / "two", 4, second, validation_data=validation)
    assert_equal(weights(second), weights(whole))
    columns = ["loss", "val_loss"]
    np.testing.assert_array_equal(again[columns], history[columns])


def test_a_run_with_averages_validates_keeps_and_gives_the_averages(tmp_path):
    validation = ImageBatches(IMAGES, shuffle=False)
    model = averaging()
    seen = []
    watch = AtEachEpoch(
        lambda epoch, model: seen.append(model.evaluate(validation, verbose=0)), True
    )
    history = fit(tmp_path, 3, model, validation_data=validation, callbacks=[watch])
    np.testing.assert_allclose(seen, history.val_loss, rtol=1e-5)
    loss = model.evaluate(validation, verbose=0)
    np.testing.assert_allclose(loss, history.val_loss.iloc[-1], rtol=1e-5)
    finished, restored, best, plain = averaging(), averaging(), averaging(), build()
    fit(tmp_path, 3, finished, validation_data=validation, callbacks=[watch])  # trains nothing
    training.load_weights(restored, tmp_path)
    training.load_weights(best, tmp_path, which="best")
    assert_equal(weights(finished), weights(model))
    assert_equal(weights(restored), weights(model))
    loss = best.evaluate(validation, verbose=0)
    np.testing.assert_allclose(loss, history.val_loss.min(), rtol=1e-5)
    fit(tmp_path / "plain", 3, plain, validation_data=validation)
    assert any((a != b).any() for a, b in zip(weights(plain), weights(model), strict=True))


def test_swapping_by_hand_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="SwapEMAWeights: leave it out"):
        fit(tmp_path, model=averaging(), callbacks=[keras.callbacks.SwapEMAWeights()])


def patient():
    return keras.callbacks.EarlyStopping("loss", patience=3, min_delta=1e9)


@pytest.mark.fault("restored-callbacks")
def test_patience_goes_on_over_a_restart_and_a_stopped_run_stays_stopped(tmp_path, capsys):
    fit(tmp_path, 2, callbacks=[patient()])
    history = fit(tmp_path, 10, callbacks=[patient()])
    assert list(history.epoch) == [1, 2, 3, 4]  # the first is the best, then three in vain
    fit(tmp_path, 10, callbacks=[patient()])
    said = capsys.readouterr().out
    assert "stopped early after 4 epochs" in said and "leave out EarlyStopping" in said


@pytest.mark.fault("restored-callbacks")
def test_a_run_that_was_stopped_early_goes_on_without_the_callback_that_stopped_it(tmp_path):
    fit(tmp_path / "stopped", 10, callbacks=[patient()])
    assert len(fit(tmp_path / "stopped", 12, callbacks=[patient()])) == 4
    assert len(fit(tmp_path / "stopped", 6)) == 6
    fit(tmp_path / "straight", 6)
    states = [read_state(tmp_path / name)[0] for name in ("stopped", "straight")]
    for key in states[1]:
        np.testing.assert_array_equal(states[0][key], states[1][key])


@pytest.mark.fault("restored-callbacks")
def test_a_falling_rate_goes_on_over_a_restart(tmp_path):
    def falling():
        return keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=1e9)

    fit(tmp_path, 2, callbacks=[falling()])
    history = fit(tmp_path, 6, callbacks=[falling()])
    # Epochs 2 and 3 are the first two in vain, 4 and 5 the next.
    np.testing.assert_allclose(history.learning_rate, [0.01] * 3 + [0.005] * 2 + [0.0025])


def test_a_path_in_a_callback_is_not_put_back(tmp_path):
    log = keras.callbacks.CSVLogger(tmp_path / "old.csv")
    fit(tmp_path / "run", 1, callbacks=[log])
    log = keras.callbacks.CSVLogger(tmp_path / "new.csv")
    log.note = "new"
    fit(tmp_path / "run", 2, callbacks=[log])
    assert log.note == "new" and (tmp_path / "new.csv").exists()


# History


def test_history_csv_is_the_table_that_fit_returns(tmp_path):
    history = fit(tmp_path, 2, validation_data=draw_batches())
    assert list(history.columns) == ["epoch", "loss", "val_loss", "seconds"]
    pd.testing.assert_frame_equal(history, pd.read_csv(tmp_path / "history.csv"))


@pytest.mark.fault("restart-of-finished-run")
@pytest.mark.parametrize("epochs", [2, 3])
def test_history_csv_has_a_row_for_each_epoch_after_a_stop_between_state_and_csv(
    tmp_path, monkeypatch, epochs
):
    real = _artifacts.write_file

    def stop(path, content):
        if content.count(b"\n") == 3:  # a heading and two epochs
            raise KeyboardInterrupt
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(_artifacts, "write_file", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, 3)
    assert list(pd.read_csv(tmp_path / "history.csv").epoch) == [1]
    fit(tmp_path, epochs)
    assert list(pd.read_csv(tmp_path / "history.csv").epoch) == list(range(1, epochs + 1))


@pytest.mark.fault("interrupt")
def test_an_interrupt_says_that_the_same_call_goes_on(tmp_path, capsys):
    def interrupt(epoch, model):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 3, callbacks=[AtEachEpoch(interrupt)])
    assert "stopped after epoch 1; the same call continues" in capsys.readouterr().out


# The folder


@pytest.mark.fault("concurrent-writers")
def test_a_run_in_use_by_another_process_is_refused_with_its_number(finished):
    code = f"""
from kerasim import _artifacts
with _artifacts.lock({str(finished / ".lock")!r}):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        holder.stdout.readline()
        try:
            with pytest.raises(
                ArtifactError, match=f"{finished} is in use by process {holder.pid}"
            ):
                fit(finished, 4)
        finally:
            holder.communicate("\n")


def never(epoch, model):
    raise AssertionError("an epoch began")


@pytest.mark.fault("run-folder-missing")
@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nowhere/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_epoch(tmp_path, place):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=f"Cannot write {re.escape(str(tmp_path / place))}"):
        fit(tmp_path / place, callbacks=[AtEachEpoch(never)])


@pytest.mark.fault("run-folder-missing")
@pytest.mark.parametrize("name", ["state", "best"])
def test_a_folder_of_the_user_is_refused_before_the_first_epoch(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match=re.escape(str(tmp_path / name))):
        fit(tmp_path, resume=False, callbacks=[AtEachEpoch(never)])


# Arguments


@pytest.mark.fault("number-out-of-range")
@pytest.mark.parametrize("epochs", [0, -1, True, 2.5, "8", None])
def test_epochs_that_are_no_positive_integer_are_refused(tmp_path, epochs):
    with pytest.raises(
        (ArgumentError, ArgumentTypeError), match="^epochs.*whole number, 1 or more"
    ):
        fit(tmp_path, epochs)


def test_arrays_in_the_place_of_batches_are_refused_by_name(tmp_path):
    with pytest.raises(
        ArgumentTypeError,
        match=r"batches is .* ndarray: pass .*ImageBatches\(x, y, batch_size=32\)",
    ):
        fit(tmp_path, batches=IMAGES)
    with pytest.raises(
        ArgumentTypeError, match="validation_data is .* tuple: pass a keras.utils.PyDataset"
    ):
        fit(tmp_path, validation_data=(IMAGES, IMAGES))


KERAS = {
    "x": {"x": IMAGES},
    "validation_split": {"validation_split": 0.1},
    "batch_size": {"batch_size": 4},
    "class_weight": {"class_weight": {0: 1.0}},
}


@pytest.mark.parametrize("name", KERAS)
def test_an_argument_that_only_keras_has_is_refused_with_what_to_pass(name, tmp_path):
    with pytest.raises(ArgumentTypeError, match=f"training.fit .*{name}.*Pass|Draw|Split"):
        training.fit(build(), draw_batches(), epochs=1, run_dir=tmp_path, **KERAS[name])


def test_arrays_as_keras_takes_them_are_refused_with_what_to_pass(tmp_path):
    wanted = r"ImageBatches\(x, y, batch_size=32\)"
    with pytest.raises(ArgumentTypeError, match=wanted):
        training.fit(build(), IMAGES, IMAGES, epochs=1)
    with pytest.raises(ArgumentTypeError, match=wanted):
        training.fit(build(), IMAGES, IMAGES)
    with pytest.raises(ArgumentTypeError, match="missing a required argument: 'epochs'. Pass fit"):
        training.fit(build(), draw_batches())


def test_batches_without_an_end_are_refused(tmp_path):
    class Endless(keras.utils.PyDataset):
        num_batches = None

    with pytest.raises(ArgumentError, match="batches is endless: give its class a __len__"):
        fit(tmp_path, batches=Endless())


def test_a_model_that_is_none_or_not_compiled_is_refused(tmp_path):
    with pytest.raises(ArgumentTypeError, match="model is 'vae', of type str: build a keras.Model"):
        fit(tmp_path, model="vae")
    with pytest.raises(ArgumentError, match="model 'plain' is not compiled: call model.compile"):
        fit(tmp_path, model=keras.Sequential([keras.layers.Dense(1)], name="plain"))


@pytest.mark.parametrize("run_dir", ["", 3])
def test_a_run_dir_that_is_no_path_is_refused_by_name(run_dir):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="^run_dir"):
        fit(run_dir)


# Order


class Recorded(ImageBatches):
    """Keeps the rows of each batch of each epoch that was asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = {}

    def __getitem__(self, index):
        images, targets = super().__getitem__(index)
        rows = [int(np.argmin(abs(IMAGES - target).sum((1, 2, 3)))) for target in targets]
        self.seen[self.epoch, index] = rows
        return images, targets


def orders(run_dir, **kwargs):
    batches = Recorded(IMAGES, batch_size=4, **kwargs)
    fit(run_dir, 3, batches=batches)
    return [sum((batches.seen[epoch, n] for n in range(3)), []) for epoch in range(3)]


@pytest.mark.fault("seeded-shuffling")
def test_the_order_differs_between_epochs_and_holds_every_image(tmp_path):
    one, two, three = orders(tmp_path, seed=1)
    assert one != two != three != one
    assert sorted(one) == sorted(two) == sorted(three) == list(range(12))


@pytest.mark.fault("equal-seeds")
def test_runs_of_one_seed_end_with_the_same_bits_and_of_another_with_others(once, tmp_path):
    fit(tmp_path / "same", batches=draw_batches())
    fit(tmp_path / "other", batches=draw_batches(seed=4))
    assert_equal(read_state(tmp_path / "same")[0], read_state(once)[0])
    arrays, others = (read_state(run)[0] for run in (once, tmp_path / "other"))
    assert any(arrays[key].tobytes() != others[key].tobytes() for key in arrays)


@pytest.mark.fault("seeded-shuffling")
def test_the_order_is_equal_between_runs_of_one_seed_and_not_of_two(tmp_path):
    one = orders(tmp_path / "one", seed=1)
    assert one == orders(tmp_path / "same", seed=1)
    assert one != orders(tmp_path / "other", seed=2)


def test_validation_batches_stay_in_epoch_0(tmp_path):
    validation = Recorded(IMAGES, batch_size=4)
    fit(tmp_path, 3, validation_data=validation)
    assert {epoch for epoch, _ in validation.seen} == {0}


def test_the_settings_of_a_run_are_plain_json(once):
    info = read_state(once)[1]
    assert json.loads(json.dumps(info)) == info


if __name__ == "__main__":  # the process that is killed
    train_slowly(sys.argv[1])


# RetrievalCallback


def classes_of_stripes(n=60):
    """Images of any brightness whose class is a faint stripe: hard by pixels, easy to learn."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    images = rng.uniform(0, 0.8, (n, 1, 1, 1)) + 0.01 * rng.random((n, 6, 6, 1))
    images[np.arange(n), labels * 2] += 0.15
    return images.astype("float32"), labels


def net_and_callback(**settings):
    keras.utils.set_random_seed(0)
    images, labels = classes_of_stripes()
    x = keras.Input((6, 6, 1))
    embedder = keras.Model(x, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    net = keras.Sequential([embedder, keras.layers.Activation("softmax")])
    net.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    callback = training.RetrievalCallback(embedder, images, labels, metric="euclidean", **settings)
    return net, callback, ImageBatches(images, labels, batch_size=10)


@pytest.mark.filterwarnings("ignore:precision@")
def test_retrieval_figures_stand_in_the_history_beside_their_baselines(tmp_path):
    net, callback, batches = net_and_callback(k=5)
    history = training.fit(net, batches, 3, tmp_path / "run", callbacks=[callback], verbose=0)
    images, labels = classes_of_stripes()
    now = metrics.retrieval(
        embedding.embed(callback.embedder, images), labels, metric="euclidean", ks=(1, 5)
    )
    raw = metrics.retrieval(images.reshape(60, -1), labels, metric="euclidean", ks=(1, 5))
    for key in ("recall@1", "precision@5"):
        assert history[f"val_{key}"].iloc[-1] == pytest.approx(now[key])
        np.testing.assert_allclose(history[f"val_{key}_pixels"], raw[key])
        assert history[f"val_{key}_untrained"].nunique() == 1
    x = embedding.embed(callback.embedder, images).astype("float64")
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mean = (x @ x.T)[np.triu_indices(60, 1)].mean()
    assert history["val_pair_cosine"].iloc[-1] == pytest.approx(mean)


@pytest.mark.filterwarnings("ignore:precision@")
def test_a_resumed_run_keeps_the_figures_of_the_untrained_embedder(tmp_path):
    for epochs in (2, 4):
        net, callback, batches = net_and_callback()
        history = training.fit(
            net, batches, epochs, tmp_path / "run", callbacks=[callback], verbose=0
        )
    straight, callback, batches = net_and_callback()
    expected = training.fit(
        straight, batches, 4, tmp_path / "other", callbacks=[callback], verbose=0
    )
    columns = [name for name in expected.columns if name != "seconds"]
    np.testing.assert_array_equal(history[columns], expected[columns])


def test_a_collapsed_embedder_is_reported(tmp_path):
    net, callback, batches = net_and_callback()
    callback.embedder.layers[-1].set_weights([np.zeros((36, 3)), np.ones(3)])
    net.optimizer.learning_rate = 0.0
    with pytest.warns(UserWarning, match="mean cosine of two different images is 1.000"):
        training.fit(net, batches, 1, tmp_path / "run", callbacks=[callback], verbose=0)


def test_an_embedder_of_zeros_is_reported_and_the_run_goes_on(tmp_path):
    net, callback, batches = net_and_callback()
    callback.metric = "cosine"
    callback.embedder.layers[-1].set_weights([np.zeros((36, 3)), np.zeros(3)])
    net.optimizer.learning_rate = 0.0
    with pytest.warns(UserWarning, match="nan if some embeddings are zeros"):
        history = training.fit(net, batches, 1, tmp_path / "run", callbacks=[callback], verbose=0)
    assert history["val_recall@1"].isna().all()


@pytest.mark.filterwarnings("ignore:precision@")
def test_two_callbacks_of_one_run_keep_separate_metrics(tmp_path):
    net, callback, batches = net_and_callback()
    images, labels = classes_of_stripes()
    other = training.RetrievalCallback(
        callback.embedder, images[:9], labels[:9], images, labels, k=3, prefix="seen"
    )
    history = training.fit(
        net, batches, 2, tmp_path / "run", callbacks=[callback, other], verbose=0
    )
    codes = embedding.embed(callback.embedder, images)
    now = metrics.retrieval(codes[:9], labels[:9], codes, labels, ks=(3,))
    assert history["seen_precision@3"].iloc[-1] == pytest.approx(now["precision@3"])
    assert {"val_precision@10", "val_pair_cosine", "seen_pair_cosine"} <= set(history)


@pytest.mark.filterwarnings("ignore:precision@")
@pytest.mark.parametrize(
    "change", [{"k": 5}, {"prefix": "held"}, {"groups": np.arange(60) // 3}, None]
)
def test_a_run_goes_on_with_the_callback_it_began_with(change, tmp_path):
    net, callback, batches = net_and_callback()
    training.fit(net, batches, 1, tmp_path / "run", callbacks=[callback], verbose=0)
    net, callback, batches = net_and_callback(**(change or {}))
    callbacks = [] if change is None else [callback]
    with pytest.raises(ArgumentError, match="a run with different settings:\n  callbacks"):
        training.fit(net, batches, 2, tmp_path / "run", callbacks=callbacks, verbose=0)


@pytest.mark.filterwarnings("ignore:precision@")
def test_a_run_does_not_go_on_with_other_groups(tmp_path):
    for groups in (np.arange(60) // 3, np.arange(60) // 4):
        net, callback, batches = net_and_callback(groups=groups)
        train = {"callbacks": [callback], "verbose": 0}
        if groups[-1] == 19:
            training.fit(net, batches, 1, tmp_path / "run", **train)
    with pytest.raises(ArgumentError, match="a run with different settings:\n  callbacks"):
        training.fit(net, batches, 2, tmp_path / "run", **train)


def test_a_callback_without_groups_has_the_settings_of_earlier_versions():
    assert "groups" not in net_and_callback()[1].settings()


@pytest.mark.filterwarnings("ignore:precision@")
def test_no_query_of_a_callback_finds_its_own_group():
    images, labels = classes_of_stripes()
    groups = np.arange(60) // 9
    net, callback, batches = net_and_callback(k=5, groups=groups)
    history = training.fit(net, batches, 1, callbacks=[callback], verbose=0)
    pixels = images.reshape(60, -1)
    scores = metrics.retrieval(pixels, labels, metric="euclidean", ks=(5,), query_groups=groups)
    assert history["val_precision@5_pixels"].iloc[0] == pytest.approx(scores["precision@5"])


@pytest.mark.filterwarnings("ignore:precision@")
def test_no_query_of_a_callback_finds_its_own_group_in_a_gallery():
    images, labels = classes_of_stripes()
    sessions = np.char.add("session ", (np.arange(60) // 9).astype(str))
    settings = {"gallery": images, "gallery_labels": labels, "gallery_groups": sessions}
    net, callback, batches = net_and_callback(k=5, groups=sessions, **settings)
    history = training.fit(net, batches, 1, callbacks=[callback], verbose=0)
    scores = metrics.retrieval(
        images.reshape(60, -1), labels, metric="euclidean", ks=(5,), query_groups=sessions
    )
    assert history["val_precision@5_pixels"].iloc[0] == pytest.approx(scores["precision@5"])


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"groups": [0, 1]}, r"groups has shape \(2,\), expected \(60,\)"),
        ({"gallery_groups": np.arange(60)}, "gallery_groups needs a gallery: pass only groups"),
    ],
)
def test_groups_that_do_not_fit_a_callback_are_refused(groups, said):
    with pytest.raises(ArgumentError, match=said):
        net_and_callback(**groups)


def test_the_repr_of_a_callback_says_what_it_measures():
    wanted = "RetrievalCallback(60 queries, metric='euclidean', k=5, prefix='val')"
    assert repr(net_and_callback(k=5)[1]) == wanted


@pytest.mark.filterwarnings("ignore:precision@")
def test_the_baselines_are_printed_once_and_not_in_each_line_of_progress(capsys):
    net, callback, batches = net_and_callback(k=5)
    training.fit(net, batches, 2, callbacks=[callback], verbose=2)
    said = capsys.readouterr().out
    assert said.count("Baselines: val_recall@1_untrained") == 1
    assert said.count("untrained") == 2 and said.count("val_recall@1: ") == 2


def test_a_callback_needs_an_embedder_and_two_images():
    net, callback, _ = net_and_callback()
    images, labels = classes_of_stripes()
    with pytest.raises(ArgumentError, match="images holds 1: pass two"):
        training.RetrievalCallback(callback.embedder, images[:1], labels[:1])
    with pytest.raises(ArgumentTypeError, match="embedder must be a keras.Model of images"):
        training.RetrievalCallback(None, images, labels)


def test_a_callback_is_refused_when_it_is_made_if_its_labels_or_metric_do_not_fit():
    embedder = net_and_callback()[1].embedder
    images, labels = classes_of_stripes(6)
    with pytest.raises(ArgumentError, match=r"labels has shape \(5,\), expected \(6,\)"):
        training.RetrievalCallback(embedder, images, labels[:5])
    with pytest.raises(ArgumentError, match=r"gallery_labels has shape \(\), expected \(6,\)"):
        training.RetrievalCallback(embedder, images, labels, images)
    with pytest.raises(ArgumentError, match="gallery_labels needs gallery"):
        training.RetrievalCallback(embedder, images, labels, gallery_labels=labels)
    with pytest.raises(ArgumentError, match="metric='hamming' is not known"):
        training.RetrievalCallback(embedder, images, labels, metric="hamming")


@pytest.mark.filterwarnings("ignore:precision@")
def test_of_a_folder_there_are_no_figures_of_pixels(tmp_path):
    images, labels = classes_of_stripes()
    for n, image in enumerate(images[:9]):
        path = tmp_path / "pictures" / str(labels[n]) / f"{n}.png"
        write_image(path)
        Image.fromarray((255 * image[..., 0]).astype("uint8")).save(path)
    net, callback, batches = net_and_callback()
    folder = data.image_folder(tmp_path / "pictures", 6, channels=1)
    score = training.RetrievalCallback(callback.embedder, folder, folder.labels, k=1)
    history = training.fit(net, batches, 1, tmp_path / "run", callbacks=[score], verbose=0)
    assert "val_recall@1_untrained" in history and "val_recall@1_pixels" not in history


class Shuffled(keras.utils.PyDataset):
    """Batches of another's making, whose order is drawn at the beginning of each epoch."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rng = np.random.default_rng(0)
        self.order, self.seen = np.arange(len(IMAGES)), {}

    def on_epoch_begin(self):
        time.sleep(0.05)  # workers that had begun already would draw in the old order
        self.order = self.rng.permutation(len(IMAGES))

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        rows = self.order[index : index + 1]
        self.seen.setdefault(getattr(self, "epoch", -1), {})[index] = int(rows[0])
        return IMAGES[rows], IMAGES[rows]


@pytest.mark.fault("seeded-shuffling")
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_that_begin_their_own_epochs_are_drawn_in_that_order_and_go_on_with_it(
    workers, tmp_path
):
    whole, first, second = (Shuffled(workers=workers) for _ in range(3))
    fit(tmp_path / "one", 3, batches=whole)
    fit(tmp_path / "two", 1, batches=first)
    fit(tmp_path / "two", 3, batches=second)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(IMAGES)).tolist() for _ in range(3)]
    assert [[whole.seen[n][i] for i in range(12)] for n in range(3)] == orders
    assert_equal(read_state(tmp_path / "one")[0], read_state(tmp_path / "two")[0])


class Foreign(keras.utils.PyDataset):
    """Batches of another's making, which say nothing of their settings."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return IMAGES[:4], IMAGES[:4]


def test_custom_batches_are_compared_by_class_and_number(tmp_path):
    fit(tmp_path / "run", 1, batches=Foreign(2))
    assert len(fit(tmp_path / "run", 2, batches=Foreign(2))) == 2
    with pytest.raises(ArgumentError, match="batches.batches: saved 2, now 3"):
        fit(tmp_path / "run", 3, batches=Foreign(3))


def test_an_embedder_below_its_baselines_is_reported_once(tmp_path):
    net, callback, batches = net_and_callback()
    rng = np.random.default_rng(0)
    batches.targets = rng.permutation(batches.targets)  # nothing to learn
    net.optimizer.learning_rate = 3.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training.fit(net, batches, 4, tmp_path / "run", callbacks=[callback], verbose=0)
    said = [str(w.message) for w in caught if "precision@10 is" in str(w.message)]
    named = [text.split("of the ")[1].split(":")[0] for text in said]
    assert set(named) == {"pixels", "untrained embedder"} and len(named) == 2


@pytest.mark.fault("random-damage")
@pytest.mark.parametrize("name", ["settings", "history", "stopped", "states"])
def test_a_state_whose_manifest_lacks_a_part_is_refused(name, tmp_path):
    model = build()
    fit(tmp_path, 1, model=model)
    file = tmp_path / "state" / _artifacts.MANIFEST
    body = json.loads(file.read_text())
    del body["manifest_sha256"], body["info"][name]
    file.write_text(json.dumps({**body, "manifest_sha256": _artifacts._digest(body)}))
    wanted = f"its manifest has no '{name}'"
    with pytest.raises(ArtifactError, match=wanted):
        training.load_weights(model, tmp_path)
    with pytest.raises(ArtifactError, match=wanted):
        fit(tmp_path, 2)


@pytest.mark.parametrize(("warmup_steps", "begin"), [(None, 0.01), (30, 0.01), (0, 0.1)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(warmup_steps, begin):
    schedule = training.warmup_cosine(200, 0.1, warmup_steps)
    rates = np.array([float(schedule(step)) for step in range(201)])
    top = 20 if warmup_steps is None else warmup_steps
    assert rates[0] == pytest.approx(begin) and rates[200] == pytest.approx(0, abs=1e-8)
    assert rates.argmax() == top and rates.max() == pytest.approx(0.1)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) <= 0).all()


# Circle loss of Keras


def circle_net(normalized=True):
    """Returns a network of the digits with `keras.losses.Circle`, batches, and test images."""
    keras.utils.set_random_seed(0)
    digits = data.load_dataset("digits", image_size=24)
    layers = [keras.Input((24, 24, 1)), keras.layers.Flatten(), keras.layers.Dense(6)]
    layers += [keras.layers.UnitNormalization()] * normalized
    net = keras.Sequential(layers)
    net.compile(keras.optimizers.Adam(0.02), keras.losses.Circle())
    settings = {"classes_per_batch": 10, "images_per_class": 6, "steps_per_epoch": 6}
    batches = data.BalancedBatches(digits.x_train[:500], digits.y_train[:500], **settings)
    return net, batches, (digits.x_test, digits.y_test)


def recall_of(net, images, labels):
    return metrics.retrieval(embedding.embed(net, images), labels, ks=(1,))["recall@1"]


@pytest.fixture(scope="module")
def circle_run(tmp_path_factory):
    """A run of two epochs of `circle_net`, and the recall before it."""
    net, batches, test = circle_net()
    before = recall_of(net, *test)
    history = training.fit(net, batches, 2, tmp_path_factory.mktemp("circle") / "run", verbose=0)
    return net, history, before, test


def test_the_circle_loss_improves_recall_within_a_dozen_steps(circle_run):
    net, history, before, test = circle_run
    assert history["loss"].iloc[1] < history["loss"].iloc[0]
    assert recall_of(net, *test) > before + 0.1


def test_a_run_with_the_circle_loss_continues_exactly(circle_run, tmp_path):
    for epochs in (1, 2):
        net, batches, _ = circle_net()
        training.fit(net, batches, epochs, tmp_path / "run", verbose=0)
    for weights, expected in zip(net.get_weights(), circle_run[0].get_weights(), strict=True):
        np.testing.assert_array_equal(weights, expected)


def test_the_circle_loss_stays_constant_on_embeddings_that_are_too_long():
    net, batches, test = circle_net(normalized=False)
    before = recall_of(net, *test)
    history = training.fit(net, batches, 3, verbose=0)
    # All products are above 1, where the loss clips them: there is no gradient.
    assert history["loss"].iloc[2] == pytest.approx(60.0, abs=0.01)
    assert recall_of(net, *test) < before + 0.15


def test_the_circle_loss_does_not_normalize_embeddings():
    labels, x = np.arange(6) // 2, np.random.default_rng(0).normal(size=(6, 3))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    loss = keras.losses.Circle()
    assert float(loss(labels, unit)) != pytest.approx(float(loss(labels, 2 * unit)), rel=0.1)


@pytest.mark.parametrize("labels", [np.arange(6), np.zeros(6, int)])
def test_the_circle_loss_of_a_batch_without_positive_or_negative_pairs_is_0(labels):
    x = np.random.default_rng(0).normal(size=(6, 3))
    assert float(keras.losses.Circle()(labels, x / np.linalg.norm(x, axis=1, keepdims=True))) == 0


def test_the_circle_loss_takes_class_numbers_as_a_column_too():
    labels, x = np.arange(6) // 2, np.random.default_rng(0).normal(size=(6, 3))
    loss = keras.losses.Circle()
    assert float(loss(labels, x)) == float(loss(labels[:, None], x))


def test_the_circle_loss_confuses_class_numbers_that_float32_rounds():
    x = np.random.default_rng(0).normal(size=(4, 3))
    loss, labels = keras.losses.Circle(), np.array([0, 0, 1, 1])
    exact, rounded = (float(loss(labels + start, x)) for start in (2**24 - 1, 2**24))
    assert exact == float(loss(labels, x)) != rounded
