"""Fits what it is handed: progress, history, and a resume that is exact.

`fit` is Keras' own `model.fit` with one more callback, which saves after each epoch all that the
next one depends on: weights, optimizer, generators of random numbers, the numbers of the other
callbacks. What batches draw depends on the epoch alone, which `fit` sets. So a run that was killed
and started again goes through the same numbers as one that was not. Before it goes on, it compares
data, network, loss and settings with those of the saved run, and refuses to mix two.
"""

import contextlib
import json
import re
import time

import keras
import numpy as np
import pandas as pd

from kerasim import artifacts, checks, data, metrics
from kerasim.devices import Devices
from kerasim.errors import ArgumentError, ArtifactError, TrainingError

_KIND = "training_state"


def fit(
    model, batches, epochs: int, run_dir, validation=None, callbacks=(), resume=True, verbose="auto"
) -> pd.DataFrame:
    """Fits a compiled model with plain `model.fit`, and goes on where an earlier call stopped.

    After each epoch the whole state (weights, optimizer, generators of Dropout and of sampling
    layers, callbacks, history) is saved in `run_dir`. A run that was killed, however hard, and
    started again ends on a CPU with the weights, to the bit, of a run never killed.

    A model built under `distribute.strategy` trains on all its devices; see there.

    An optimizer of `use_ema=True` averages the weights as it goes: validation, callbacks at the
    end of an epoch, `best`, `restore` and the model at the end have the averages.

    Args:
        model: Compiled `keras.Model`. It ends with the weights of the last epoch.
        batches: `keras.utils.PyDataset`. Its `epoch` is set before each epoch, so that what it
            draws can depend on it.
        epochs: Epochs in all, 1 or more, those of earlier calls included.
        run_dir: Folder of the run: `state` (an artefact), `best` (with `validation`: the
            weights of the epoch of least `val_loss`) and `history.csv`.
        validation: `keras.utils.PyDataset`, or None.
        callbacks: Keras callbacks; their numbers (patience, best value) are saved and restored.
        resume: False starts afresh and overwrites what `run_dir` holds.
        verbose: As for `keras.Model.fit`: 1 a live bar, 2 a line an epoch, 0 silence.

    Returns:
        The history, as in `history.csv`: a row for each epoch with `epoch` (from 1), what Keras
        logs, and `seconds`.

    Raises:
        ArgumentError: If `run_dir` holds a run of other data, batches or settings; the message
            lists the differences. If the model is not compiled, or a callback cannot be resumed.
        ArgumentTypeError: If model or batches are something else.
        TrainingError: If loss or weights stop being finite. `run_dir` keeps the last good epoch.
        ArtifactError: If `run_dir` cannot be written, is damaged or is in use.
    """
    epochs = checks.integer("epochs", epochs)
    mend = "pass a keras.utils.PyDataset, such as kerasim.data.ImageBatches"
    checks.kind("batches", batches, keras.utils.PyDataset, mend)
    checks.kind("validation", validation, (keras.utils.PyDataset, type(None)), mend)
    checks.flag("resume", resume)
    checks.kind("model", model, keras.Model, "build a keras.Model first")
    if not model.compiled:
        raise ArgumentError(f"model {model.name!r} is not compiled: call model.compile first.")
    callbacks = checks.listed("callbacks", callbacks)
    for callback in callbacks:
        checks.like("each of callbacks", callback, "on_epoch_end", "a keras.callbacks.Callback")
        if getattr(callback, "restore_best_weights", False):
            what = f"callbacks holds {type(callback).__name__}(restore_best_weights=True)"
            mend = "leave it False and call training.restore(best=True)"
            raise ArgumentError(f"{what}, whose weights a restart would lose: {mend}.")
        if isinstance(callback, keras.callbacks.SwapEMAWeights):
            raise ArgumentError("callbacks holds SwapEMAWeights: leave it out, fit adds its own.")
    run_dir = artifacts.check_path("run_dir", run_dir)
    devices = Devices(model)
    lock = artifacts.lock(run_dir / ".lock") if devices.writes else contextlib.nullcontext()
    with lock, devices.scope():
        devices.check(model.loss, batches=batches, validation=validation)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        settings = _settings(model, batches, validation, callbacks)
        run = _Run(model, batches, run_dir, callbacks, settings, devices.writes)
        if resume and artifacts.exists(run_dir / "state"):
            run.restore()
        done = len(run.history)
        devices.agree([done, *run.variables.values()])
        if done >= epochs or run.stopped:
            # As `model.fit` does at its end: with averages, those are what a run ends with.
            model.optimizer.finalize_variable_values(model.trainable_variables)
            early = ", stopped early" if run.stopped else ""
            print(f"{run_dir.name}: already at epoch {done}{early}.")
        else:
            artifacts.check_replaceable(run_dir / "state", _KIND)
            artifacts.check_replaceable(run_dir / "best", "weights")
            run.check_first_batch()
            if done:
                print(f"{run_dir.name}: going on after epoch {done} of {epochs}.")
            try:
                with data.clear_errors(batches, validation, kept=run.kept):
                    model.fit(
                        devices.part(batches),
                        epochs=epochs,
                        initial_epoch=done,
                        validation_data=devices.part(validation),
                        callbacks=run.around(),
                        shuffle=False,  # True draws the order from a generator that no state holds
                        verbose=verbose,
                    )
            except KeyboardInterrupt:
                epoch = len(run.history)
                print(f"{run_dir.name}: stopped after epoch {epoch}; the same call goes on.")
                raise
        if run.swap:  # on JAX a weight now has the memory of its average, freed by `predict`
            for weight in model.trainable_variables:
                weight.assign(keras.ops.copy(weight))
        devices.agree([len(run.history)])  # a later call reads what the first process wrote
        run.write_table()
        return pd.DataFrame(run.history)


def restore(model, run_dir, best: bool = False) -> pd.DataFrame:
    """Gives `model` the weights of a run.

    Args:
        model: Built as it was for the run; it need not be compiled.
        run_dir: Folder that `fit` was given.
        best: Take the epoch of least `val_loss`, not the last.

    Returns:
        The history of the run, as `fit` returns it.

    Raises:
        ArtifactError: If there is no such run, it is damaged, or of another architecture.
    """
    checks.flag("best", best)
    checks.kind("model", model, keras.Model, "build a keras.Model first")
    run_dir = artifacts.check_path("run_dir", run_dir)
    arrays, info = artifacts.read(run_dir / "state", _KIND, _load)
    path = run_dir / ("best" if best else "state")
    averaged = _weights(arrays, info.get("averages", {}))
    weights = artifacts.read(path, "weights", _load)[0] if best else averaged
    _assign(path, _named("model", model.variables), weights)
    return pd.DataFrame(info["history"])


class RetrievalCallback(keras.callbacks.Callback):
    """Puts retrieval figures into the log and history of `fit`, beside those without training.

    After each epoch the log gets `val_recall@1` and `val_precision@k` (see `metrics.retrieval`),
    each beside that of the embedder before training (`val_recall@1_untrained`) and of the raw
    pixels by Euclidean distance (`val_recall@1_pixels`; left out for folders and for more than
    1 GiB of pixels); and `val_pair_cosine`, the mean cosine of two different images, near 1 when
    all images are embedded at one place.

    It warns, once each, of such a collapse (a mean cosine above 0.98, or an embedding of zeros)
    and, from the second epoch on, of a precision below that of the pixels or of the untrained
    embedder.

    Args:
        embedder: Model from images to vectors, part of the one that is trained.
        images: Held-out images `(n, height, width, channels)`, two or more, each a query.
        labels: `(n,)` integers or strings.
        gallery: Images to search, such as training ones; None for the other held-out ones.
        gallery_labels: Their labels.
        metric: "euclidean", "manhattan" or "cosine".
        k: Of the precision, 1 or more.
        prefix: Of the names in the log, for several callbacks in one run.

    Raises:
        ArgumentError: If there are fewer than two images, or the embedder gives no vectors.
        ArgumentTypeError: If the embedder is no model of one input.
    """

    def __init__(
        self,
        embedder,
        images,
        labels,
        gallery=None,
        gallery_labels=None,
        metric: str = "cosine",
        k: int = 10,
        prefix: str = "val",
    ):
        super().__init__()
        data.check_embedder("embedder", embedder)
        # Held-out images and their labels, then those of the gallery if there is one.
        self.embedder, self.parts = embedder, [data.check_images("images", images)]
        n = len(self.parts[0])
        if n < 2:
            raise ArgumentError(f"images holds {n}: pass two or more.")
        self.labels = [checks.labels("labels", labels, n, "images")]
        if gallery is not None:
            self.parts.append(data.check_images("gallery", gallery))
            count = len(self.parts[1])
            name = "gallery_labels"
            self.labels.append(checks.labels(name, gallery_labels, count, "images of the gallery"))
        elif gallery_labels is not None:
            raise ArgumentError("gallery_labels came without gallery: pass both or neither.")
        checks.choice("metric", metric, metrics.METRICS)
        self.metric, self.k, self.prefix = metric, checks.integer("k", k), prefix
        self.keys = "recall@1", f"precision@{k}"

    def settings(self) -> dict:
        """Returns what decides the figures, for `fit` to compare on resume."""
        held_out = [data.digest(part) for part in (*self.parts, *self.labels)]
        settings = {"metric": self.metric, "k": self.k, "prefix": self.prefix}
        return {"class": type(self).__name__, "held_out": held_out, **settings}

    def on_train_begin(self, logs=None):
        self._keep("untrained", self._score())
        small = sum(np.prod(part.shape) for part in self.parts) * 4 <= 2**30
        if small and not any(isinstance(part, data.ImageFolder) for part in self.parts):
            flat = [data.as_float(part[:]).reshape(len(part), -1) for part in self.parts]
            self._keep("pixels", self._retrieve(flat, "euclidean"))  # a black image has no cosine

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        figures = self._score()
        start = f"{self.prefix}_"
        logs.update({start + key: value for key, value in figures.items()})
        logs.update({key: value for key, value in vars(self).items() if key.startswith(start)})
        if not figures["pair_cosine"] <= 0.98:
            what = f"The mean cosine of two different images is {figures['pair_cosine']:.3f}"
            why = "(nan: some are embedded as zeros): the embedder puts images at one place"
            mend = 'Lower the learning rate, or mine "all" triplets instead of "hard" ones'
            self._warn("collapse", f"{what} {why}. {mend}.")
        key = self.keys[1]
        for baseline, name in (("untrained", "untrained embedder"), ("pixels", "pixels")):
            before = getattr(self, f"{start}{key}_{baseline}", 0)
            if epoch and figures[key] < before:
                came = f"{key} is {figures[key]:.3f} after epoch {epoch + 1}, below {before:.3f}"
                mend = "check labels, learning rate and preprocessing"
                self._warn(baseline, f"{came} of the {name}: {mend}.")

    def _keep(self, baseline, figures):
        # Plain numbers by name: `fit` saves them, and a resumed run goes on with the first ones.
        for key in self.keys:
            setattr(self, f"{self.prefix}_{key}_{baseline}", figures[key])

    def _score(self) -> dict:
        """Returns the figures of the embedder as it is; NaN if it gives a row of zeros."""
        parts = [data.embed(self.embedder, part) for part in self.parts]
        if not all(part.any(axis=1).all() for part in parts):
            return dict.fromkeys((*self.keys, "pair_cosine"), np.nan)
        lengths = np.linalg.norm(parts[0], axis=1, keepdims=True)
        directions = parts[0] / np.maximum(lengths, 1e-30)
        n = len(directions)
        mean = (np.square(directions.sum(axis=0, dtype="float64")).sum() - n) / (n * (n - 1))
        return {**self._retrieve(parts, self.metric), "pair_cosine": float(mean)}

    def _retrieve(self, parts, metric) -> dict:
        given = parts[0], self.labels[0], *parts[1:], *self.labels[1:]
        scores = metrics.retrieval(*given, metric=metric, ks=sorted({1, self.k}))
        return {key: scores[key] for key in self.keys}

    def _warn(self, what, text):
        if not getattr(self, f"warned_of_{what}", False):
            setattr(self, f"warned_of_{what}", True)
            checks.warn(text)


class _Run(keras.callbacks.Callback):
    """The state of a run: saved after each epoch, restored before the first."""

    def __init__(self, model, batches, run_dir, callbacks, settings, writes=True):
        super().__init__()
        self.writes = writes  # of several processes one
        self.of, self.batches, self.run_dir = model, batches, run_dir
        self.callbacks, self.settings = callbacks, settings
        self.history, self.saved_callbacks, self.stopped = [], [], False
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # loss scaling
        self.swap = keras.callbacks.SwapEMAWeights() if optimizer.use_ema else None
        self.name_of = {id(variable): key for key, variable in self.variables.items()}
        averages = getattr(optimizer, "_model_variables_moving_average", [])  # of use_ema alone
        pairs = zip(optimizer._trainable_variables, averages, strict=False)
        self.averages = {self.name_of[id(one)]: self.name_of[id(other)] for one, other in pairs}

    def around(self):
        """Returns all callbacks in order; those of the caller see averages, if there are some."""
        if self.swap is None:
            return [*self.callbacks, self]
        swap = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: self.swap._swap_variables())
        return [self.swap, swap, *self.callbacks, swap, self]

    @property
    def variables(self):
        optimizer = self.of.optimizer
        return _named("model", self.of.variables) | _named("optimizer", optimizer.variables)

    def check_first_batch(self):
        """Refuses data that is not finite before the first step."""
        self.batches.epoch = len(self.history)
        for n, leaf in enumerate(keras.tree.flatten(self.batches[0])):
            array = np.array(keras.ops.convert_to_numpy(leaf), ndmin=1)
            checks.finite(f"array {n} of batches[0]", array)

    def restore(self):
        path = self.run_dir / "state"
        arrays, info = artifacts.read(path, _KIND, _load)
        self.keep_learning_rate(info["settings"], arrays)
        differences = list(_differences(info["settings"], self.settings))
        if differences:
            what = f"run_dir={str(self.run_dir)!r} holds a run with other settings:"
            mend = "Choose another run_dir, or pass resume=False to start afresh and overwrite it."
            raise ArgumentError("\n  ".join([what, *differences]) + f"\n{mend}")
        _assign(path, self.variables, arrays)
        self.history, self.stopped = info["history"], info["stopped"]
        self.saved_callbacks = info["callbacks"]

    def keep_learning_rate(self, saved, arrays):
        """Takes a rate that callbacks lowered in an earlier call for the one it began with."""
        now, before = self.settings["optimizer"]["config"], saved["optimizer"]["config"]
        variable = getattr(self.of.optimizer, "_learning_rate", None)
        rate = arrays.get(self.name_of.get(id(variable)))
        if rate is not None and rate.size == 1 and now["learning_rate"] == float(rate):
            now["learning_rate"] = before.get("learning_rate", now["learning_rate"])

    def on_train_begin(self, logs=None):
        saved = list(self.saved_callbacks)
        for callback in self.callbacks:
            kind = type(callback).__name__
            values = next((of for of in saved if of.get("__class__", kind) == kind), {})
            saved = [of for of in saved if of is not values]
            for key, value in values.items():
                # A path may have moved meanwhile, and Keras turns the sign of min_delta when it
                # sets a callback up, once for each run of the process.
                if not isinstance(value, str) and key != "min_delta":
                    vars(callback)[key] = value

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            self._fail(f"The loss became {loss} in batch {batch} of epoch {len(self.history) + 1}")

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.started
        arrays = {k: np.asarray(keras.ops.convert_to_numpy(v)) for k, v in self.variables.items()}
        bad = sum(not np.isfinite(array).all() for array in arrays.values())
        if bad:
            self._fail(f"{bad} weights became NaN or infinite in epoch {epoch + 1}")
        row = {"epoch": epoch + 1, **{key: float(value) for key, value in (logs or {}).items()}}
        history = [*self.history, {**row, "seconds": round(seconds, 2)}]
        if self.writes:
            self.save(arrays, history)
        self.history = history
        self.write_table()

    def save(self, arrays, history):
        """Saves the state, and the weights if they are the best."""
        *before, loss = [row.get("val_loss", np.nan) for row in history]
        # NaN is never less nor more: it is never the best, and never hides a later best.
        if np.isfinite(loss) and not any(loss >= earlier for earlier in before):
            best = _save(_weights(arrays, self.averages))
            artifacts.write(self.run_dir / "best", "weights", best)
        numbers = [_numbers(callback) for callback in self.callbacks]
        info = {"settings": self.settings, "history": history, "averages": self.averages}
        info |= {"stopped": bool(self.of.stop_training), "callbacks": numbers}
        artifacts.write(self.run_dir / "state", _KIND, _save(arrays), info)

    def write_table(self):
        if self.writes:
            table = pd.DataFrame(self.history).to_csv(index=False)
            artifacts.write_file(self.run_dir / "history.csv", table.encode())

    def kept(self) -> str:
        """Says what the run keeps, as the end of a sentence on what stopped it."""
        if not self.history:
            return ". No epoch was finished"
        return f". {self.run_dir / 'state'} keeps epoch {len(self.history)}"

    def _fail(self, what):
        mend = "lower the learning rate or look for a division by zero, train in another run_dir"
        raise TrainingError(f"{what}{self.kept()}: {mend}.")


def _load(folder, manifest):
    return artifacts.read_arrays(folder / "arrays.npz"), manifest.info


def _named(group, variables) -> dict:
    return {f"{group}/{n}": variable for n, variable in enumerate(variables)}


def _weights(arrays, averages) -> dict[str, np.ndarray]:
    """Returns the weights of a model, averages in their place where there are some."""
    return {key: arrays[averages.get(key, key)] for key in arrays if key.startswith("model/")}


def _assign(path, variables, arrays):
    """Assigns saved arrays to variables: all, or none if one does not fit."""
    now = {key: tuple(variable.shape) for key, variable in variables.items()}
    saved = {key: array.shape for key, array in arrays.items()}
    keys = [key for key in {**now, **saved} if now.get(key) != saved.get(key)]
    paths = {key: variable.path for key, variable in variables.items()}
    wrong = [f"{paths.get(k, k)}: now {now.get(k)}, saved {saved.get(k)}" for k in keys]
    if wrong:
        differ = f"{len(wrong)} arrays differ, such as {'; '.join(wrong[:3])}"
        mend = "Build the model as it was, or choose another run_dir."
        raise ArtifactError(f"{path} was saved from another architecture; {differ}. {mend}")
    for key, variable in variables.items():
        variable.assign(arrays[key])


def _save(arrays):
    return lambda folder: np.savez(folder / "arrays.npz", **arrays)


def _numbers(callback) -> dict:
    plain = {k: v for k, v in vars(callback).items() if isinstance(v, (bool, int, float, str))}
    return {**plain, "__class__": type(callback).__name__}


def _settings(model, batches, validation, callbacks) -> dict:
    optimizer: dict = keras.optimizers.serialize(model.optimizer)  # type: ignore[assignment]
    del optimizer["config"]["name"]  # Keras counts these up through a process
    described = {
        "backend": keras.backend.backend(),
        "model": artifacts.architecture(model),
        "optimizer": optimizer,
        "loss": keras.losses.serialize(model.loss),
        "batches": _describe(batches),
        "validation": None if validation is None else _describe(validation),
        # None, as where an earlier version left it out.
        "callbacks": [c.settings() for c in callbacks if hasattr(c, "settings")] or None,
    }
    return json.loads(json.dumps(described, default=str))


def _describe(batches) -> dict:
    if hasattr(batches, "settings"):
        return batches.settings()
    return {"class": type(batches).__name__, "batches": len(batches)}


def _differences(saved, now, at=""):
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted({*saved, *now}):
            yield from _differences(saved.get(key), now.get(key), f"{at}.{key}" if at else key)
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for n, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from _differences(one, other, f"{at}[{n}]")
    elif saved != now and not (at.endswith(".name") and _uncounted(saved) == _uncounted(now)):
        yield f"{at}: saved {str(saved)[:80]}, now {str(now)[:80]}"


def _uncounted(name) -> str:
    # Keras counts unnamed losses and optimizers up through a process: `adam_1` is `adam`.
    return re.sub(r"_\d+$", "", str(name))
