"""Training: runs that are killed, equal seeds, and NaN in data, loss, weights and optimizer."""

import contextlib
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kerasim import _artifacts
from kerasim.errors import KerasimError
from tests.torture.artifact_kinds import IMAGES, digest
from tests.torture.children import drain, run_child, start_child


def compiled_model(name):
    """Returns a small compiled model of that name, and its batches."""
    import keras

    from kerasim import data, diffusion, losses, models

    keras.utils.set_random_seed(1)
    labels = np.arange(24) % 3
    common: Any = {"seed": 2, "batch_size": 8}
    if name == "autoencoder":
        model = models.conv_autoencoder((12, 12, 1), 3, (4,), (8,))
        model.compile("adam", "mse")
        return model, data.ImageBatches(IMAGES, sigma=0.1, flip=True, **common)
    if name == "vae":
        model = models.vae((12, 12, 1), 2, (4, 4), 8)
        model.compile("adam", "binary_crossentropy")
        return model, data.ImageBatches(IMAGES, **common)
    if name == "siamese":
        tower = models.conv_embedder((12, 12, 1), 3, (4, 4), 1)
        model = models.siamese(tower, metric="euclidean")
        model.compile("adam", losses.ContrastiveLoss())
        return model, data.PairBatches(IMAGES, labels, **common)
    if name == "unet":
        schedule = diffusion.NoiseSchedule(20)
        model = models.unet((12, 12, 1), (4, 8), 0, 3, num_groups=2, schedule=schedule)
        model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9), "mse")
        return model, data.DiffusionBatches(IMAGES, schedule, labels, **common)
    if name == "mixed":  # some of its steps overflow, and its loss scale grows again soon
        with models.dtype_policy("mixed_float16"):
            model = models.conv_autoencoder((12, 12, 1), 3, (4,), (8,))
        adam = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
        scaled = keras.optimizers.LossScaleOptimizer(adam, 2.0**32, dynamic_growth_steps=5)
        model.compile(scaled, "mse")
        return model, data.ImageBatches(IMAGES, sigma=0.1, flip=True, **common)
    model = models.conv_embedder((12, 12, 1), 3, (4, 4), 1)
    model.compile("adam", losses.TripletLoss(metric="euclidean"))
    return model, data.BalancedBatches(
        IMAGES, labels, classes_per_batch=3, images_per_class=3, seed=2
    )


BUILDERS = ("autoencoder", "vae", "siamese", "unet", "embedder", "mixed")


def fit(name, run_dir, epochs, model=None, batches: Any = None, callbacks=()):
    """Trains a model of that name, with further callbacks of Keras for "mixed"."""
    import keras

    from kerasim import data, training

    if model is None:
        model, batches = compiled_model(name)
    validation = None
    if name == "mixed":
        validation = data.ImageBatches(IMAGES[:10], batch_size=8, shuffle=False)
        falling = keras.callbacks.ReduceLROnPlateau(
            "val_loss", factor=0.5, patience=2, min_delta=1e-3
        )
        best = keras.callbacks.EarlyStopping("val_loss", patience=99, restore_best_weights=True)
        callbacks = [*callbacks, falling, best]
    training.fit(model, batches, epochs, run_dir, validation, callbacks=callbacks, verbose=0)


def _train(name, run_dir, epochs, send):
    import keras

    def begin(epoch, logs):
        send(epoch)
        time.sleep(0.05)

    tell = keras.callbacks.LambdaCallback(on_epoch_begin=begin)
    fit(name, run_dir, epochs, callbacks=[tell])


def saved_state(run_dir):
    """Returns the saved arrays of a run, and its history without the seconds."""
    from kerasim import training

    arrays, info = _artifacts.read(run_dir / "state", "training_state", training._load)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in info["history"]]
    return arrays, rows


def difference_of_runs(run, other):
    """Returns in what the saved state of a run differs from that of another one, or ""."""
    (arrays, rows), (wanted, wanted_rows) = saved_state(run), saved_state(other)
    differ = [key for key in wanted if not _equal_bits(arrays.get(key), wanted[key])]
    if differ or len(arrays) != len(wanted):
        return f"{len(differ)} of {len(wanted)} arrays differ: {differ[:5]}"
    return "" if rows == wanted_rows else "another history"


def killed_runs(times=10, names=BUILDERS, epochs=40):
    """Kills training at random moments until it is through, and compares it with a straight run."""
    wrong, restarts = [], 0
    for name in names:
        rng = random.Random(name)
        with tempfile.TemporaryDirectory() as folder:
            straight, run = Path(folder, "straight"), Path(folder, "run")
            run_child(_train, name, straight, epochs)
            done = 0
            while done < times:
                with start_child(_train, name, run, epochs) as (process, messages):
                    begun = messages.recv()
                    with contextlib.suppress(EOFError):
                        for _ in range(rng.randint(0, max(1, epochs // times // 2))):
                            begun = messages.recv()
                    time.sleep(rng.uniform(0, 0.15))
                    process.kill()
                    begun = drain(messages, begun)
                if isinstance(begun, tuple):  # it was through before the kill: from the start
                    shutil.rmtree(run)
                    continue
                done += 1
                kept = len(saved_state(run)[1]) if _artifacts.exists(run / "state") else 0
                if kept < begun:
                    wrong.append(f"{name}, kill {done}: epoch {begun} had begun, {kept} are kept")
            restarts += done
            run_child(_train, name, run, epochs)
            said = difference_of_runs(run, straight)
            wrong += [f"{name}: {said}"] if said else []
    return f"{restarts} of {times * len(names)} restarts, {len(names)} builders, bit-equal", wrong


def _equal_bits(one, other):
    return one is not None and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def same_seeds(names=BUILDERS, runs=3, epochs=3):
    """Trains each builder several times with one seed; and looks at the order of its epochs."""
    wrong = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = set()
            for n in range(runs):
                run_child(_train, name, Path(folder, str(n)), epochs)
                arrays, rows = saved_state(Path(folder, str(n)))
                found.add(digest(rows, *arrays.values()))
            orders = set(run_child(_batch_orders, name))
            if len(found) != 1:
                wrong.append(f"{name}: {len(found)} results of {runs} runs")
            if len(orders) != 3:
                wrong.append(f"{name}: {len(orders)} orders in 3 epochs")
    return f"{len(names)} builders x {runs} runs, {len(wrong)} differ", wrong


def _batch_orders(name, send):
    import keras

    batches, found = compiled_model(name)[1], []
    for epoch in range(3):
        batches.epoch = epoch
        leaves = keras.tree.flatten([batches[n] for n in range(len(batches))])
        found.append(digest(*map(np.asarray, leaves)))
    return found


def _inject_nan(folder, names, send):
    from kerasim import data
    from tests.helpers import training_runs as made

    def poisoned(value):
        images = made.IMAGES.copy()
        images[3, 1, 1, 0] = value
        return images

    class Later(made.BatchesWithNaN):
        def __getitem__(self, index):
            self.hole = np.nan if index == 2 else 0.5
            return super().__getitem__(index)

    class LaterInfinite(made.BatchesWithNaN):
        def __getitem__(self, index):
            self.hole = np.inf if self.epoch == 2 else 0.5
            return super().__getitem__(index)

    def at(epoch, do, end=False):
        return [made.AtEachEpoch(lambda e, model: do(model) if e == epoch else None, end)]

    def moment(model):
        model.optimizer.variables[3].assign(model.optimizer.variables[3] * np.nan)

    def rate(model):
        model.optimizer.learning_rate.assign(np.inf)

    def fit(run_dir, batches=None, loss: Any = "mse", callbacks=()):
        validation = data.ImageBatches(made.IMAGES, shuffle=False)
        model = made.build(loss=loss)
        made.fit(run_dir, 5, model, batches, validation_data=validation, callbacks=callbacks)

    cases = {
        "pixel": lambda at: fit(at, data.ImageBatches(poisoned(np.nan), batch_size=4)),
        "infinite pixel": lambda at: fit(at, data.ImageBatches(poisoned(np.inf), batch_size=4)),
        "target": lambda at: fit(at, data.ImageBatches(made.IMAGES, poisoned(np.nan), 4)),
        "first batch": lambda at: fit(at, made.BatchesWithNaN(made.IMAGES, batch_size=4)),
        "later batch": lambda at: fit(at, Later(made.IMAGES, batch_size=4)),
        "later epoch": lambda at: fit(at, LaterInfinite(made.IMAGES, batch_size=4)),
        "loss": lambda at: fit(at, loss=made.LossThatTurnsNaN()),
        "weights": lambda run: fit(run, callbacks=[made.AtEachEpoch(made.set_kernel_to_nan(4))]),
        "last step": lambda run: fit(
            run, callbacks=[made.AtEachEpoch(made.set_kernel_to_nan(1), end=True)]
        ),
        "optimizer": lambda run: fit(run, callbacks=at(2, moment)),
        "rate": lambda run: fit(run, callbacks=at(2, rate)),
    }
    wrong = []
    for name in names or cases:
        run_dir = Path(folder, name)
        try:
            cases[name](run_dir)
            wrong.append(f"{name}: trained on")
        except KerasimError:
            pass
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
        for kept in ("state", "best"):
            if _artifacts.exists(run_dir / kept):
                arrays = made.read_state(run_dir, kept)[0]
                bad = [key for key, array in arrays.items() if not np.isfinite(array).all()]
                wrong += [f"{name}: {kept} holds NaN in {bad[:3]}"] if bad else []
        late = name not in ("pixel", "infinite pixel", "target", "first batch", "later batch")
        if late and not _artifacts.exists(run_dir / "state"):
            wrong.append(f"{name}: no state is kept")
    return len(names or cases), wrong


def nan_injections(names=()):
    """Puts NaN into data, loss, weights, optimizer: an error, and the last state is finite."""
    with tempfile.TemporaryDirectory() as folder:
        count, wrong = run_child(_inject_nan, folder, names)
    return f"{count} injections, {len(wrong)} wrong", wrong
