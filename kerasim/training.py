"""Trains a compiled model, and resumes interrupted runs exactly.

`fit` calls `model.fit` with an additional callback. After each epoch it saves everything that the
next one depends on: weights, optimizer, random generators and the state of the other callbacks. The
random draws of batches depend only on the epoch, which `fit` sets. So a run that was killed and
started again gives the same results as an uninterrupted one. Before a run is resumed, its data,
network, loss and settings are compared with those of the saved run; if they differ, `fit` raises an
error.
"""

import contextlib
import functools
import inspect
import math
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import keras
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kerasim import (
    _artifacts,
    _checks,
    _content,
    _fitting,
    _image_checks,
    _model_identity,
    _resume,
    data,
    embedding,
    metrics,
)
from kerasim._devices import Devices
from kerasim._folders import ImageFolder
from kerasim.data._batches import SeededBatches, translate_errors
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, TrainingError

__all__ = [
    "RetrievalCallback",
    "fit",
    "load_weights",
    "warmup_cosine",
]

_KIND = "training_state"

# A network has stopped learning if over so many steps its loss varies by less than this share of
# its value, and its outputs for all images are equal within this share of the largest output.
_STUCK_STEPS = 100
_STUCK_LOSS = 1e-3
_EQUAL_OUTPUTS = 1e-6

# How many figures of a finished run are printed, from the loss on.
_SUMMARY_FIGURES = 6


# The baselines of `RetrievalCallback`: the end of their names in the history, and in messages.
_BASELINES = {
    "untrained": "untrained embedder",
    "pixels": "pixels",
    "inputs": "stored embeddings, the inputs of the embedder",
}

# What to pass in the place of arguments of `keras.Model.fit` that `fit` does not have.
_INSTEAD = {
    "x": "Pass batches, such as kerasim.data.ImageBatches(x, y, batch_size=32)",
    "y": "Pass batches, such as kerasim.data.ImageBatches(x, y, batch_size=32)",
    "batch_size": "Pass it to the batches, such as kerasim.data.ImageBatches(x, y, batch_size=32)",
    "shuffle": "Pass it to the batches, such as kerasim.data.ImageBatches(x, y, shuffle=False)",
    "validation_split": "Split the arrays, and pass batches of the second part as validation_data=",
    "class_weight": "Draw rare classes more often instead, as kerasim.data.BalancedBatches does",
    "sample_weight": "Pass a keras.utils.PyDataset whose batches are (inputs, targets, weights)",
    "initial_epoch": "Leave it out: with the same run_dir training continues after the last epoch",
    "steps_per_epoch": "Leave it out: an epoch goes through all batches",
    "validation_steps": "Leave it out: validation goes through all batches",
    "validation_batch_size": "Pass batch_size to the batches given as validation_data=",
    "validation_freq": "Leave it out: validation follows each epoch",
}


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _explain_arguments(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Replaces Python's TypeError about arguments by an error that says what to pass."""
    signature = _without_annotations(inspect.signature(function))

    @functools.wraps(function)
    def explained(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = [name for name in kwargs if name in _INSTEAD]
            if len(args) > 2 and "epochs" in kwargs:
                unknown = ["y"]  # of `fit(model, x, y, epochs=...)`
            hint = _INSTEAD[unknown[0]] if unknown else f"Pass fit{signature}"
            raise ArgumentTypeError(f"training.fit {error}. {hint}.") from None
        return function(*args, **kwargs)

    return explained


def _without_annotations(signature: inspect.Signature) -> inspect.Signature:
    """Returns a signature without annotations, which is short enough for a message."""
    empty = inspect.Parameter.empty
    parameters = [each.replace(annotation=empty) for each in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=empty)


@_explain_arguments
def fit(
    model: keras.Model,
    batches: keras.utils.PyDataset,
    epochs: int,
    run_dir: Path | str | None = None,
    validation_data: keras.utils.PyDataset | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    resume: bool = True,
    verbose: Literal["auto", 0, 1, 2] = "auto",
) -> pd.DataFrame:
    """Trains a compiled model with `model.fit`, and continues an earlier run in `run_dir`.

    After each epoch the whole state (weights, optimizer, generators of Dropout and of sampling
    layers, callbacks, history) is saved in `run_dir`. On a CPU, a run that was killed and started
    again ends with weights that are bit-identical to those of an uninterrupted run. After an
    interrupt or an error the model has the state of the last complete epoch. Without `run_dir` it
    has that of the last complete step.

    A model built under `distribute.strategy` is trained on all its devices.

    An optimizer with `use_ema=True` averages the weights. Validation, callbacks at the end of an
    epoch, `best`, `load_weights` and the trained model use the averages.

    Args:
        model: Compiled `keras.Model`. After training it has the weights of the last epoch, or those
            that a callback selected, such as `EarlyStopping(restore_best_weights=True)`.
        batches: `keras.utils.PyDataset`. Its attribute `epoch` is set before each epoch, so
            that random draws can depend on it.
        epochs: Total number of epochs, 1 or more, including those of earlier calls.
        run_dir: Folder of the run: `state` (an artifact), `best` (with `validation_data`: the
            weights of the epoch with the lowest `val_loss`) and `history.csv`. None saves nothing,
            and the run cannot be resumed.
        validation_data: `keras.utils.PyDataset`, or None.
        callbacks: Keras callbacks. When a run is resumed, callbacks that schedule the learning rate
            or have a method `settings()` must have the same settings as before; others may be
            added or left out. The state of a callback (patience, best value, arrays, lists) is
            saved and restored; one with state of another type must define `get_state()` and
            `set_state(state)`.
        resume: False deletes the earlier run in `run_dir` and starts again.
        verbose: What is printed: 1 a progress bar, 2 a line per epoch, 0 nothing; "auto" is 1, as
            in `keras.Model.fit`.

    Returns:
        The history, as in `history.csv`: a row for each epoch with `epoch` (from 1), what Keras
        logs, and `seconds`.

    Raises:
        ArgumentError: If the first batch of `batches` or `validation_data` does not fit the network
            or its loss (inputs, targets, labels, weights or schedule), or holds NaN. If `run_dir`
            holds a run of other data, batches or settings; the message lists the differences. If
            the model is not compiled or has no weights, or a callback or optimizer cannot be
            resumed.
        ArgumentTypeError: If model or batches have the wrong type, or inputs or targets are
            strings.
        TrainingError: If loss or weights stop being finite. `run_dir` keeps the last good epoch.
        ArtifactError: If `run_dir` cannot be written, is damaged or is in use.

    Example:
        >>> from kerasim import data
        >>> images = np.random.default_rng(0).random((16, 8, 8, 1))
        >>> batches = data.ImageBatches(images, batch_size=8)
        >>> layers = [keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same")]
        >>> model = keras.Sequential(layers)
        >>> model.compile("adam", "mse")
        >>> history = fit(model, batches, epochs=1, run_dir="runs/first", verbose=0)
        >>> history = fit(model, batches, epochs=3, run_dir="runs/first", verbose=0)
        first: continuing after epoch 1 of 3.
        >>> history["epoch"].tolist()
        [1, 2, 3]
    """
    _check_batches("batches", batches)
    if validation_data is not None:
        _check_batches("validation_data", validation_data)
    epochs = _checks.integer("epochs", epochs)
    _checks.boolean("resume", resume)
    _checks.instance("model", model, keras.Model, "build a keras.Model first")
    if not model.compiled:
        raise ArgumentError(f"model {model.name!r} is not compiled: call model.compile first.")
    if not model.variables:
        raise ArgumentError(
            f"model {model.name!r} has no weights yet: begin it with "
            "keras.Input(image_shape), or call it once: model(batches[0][0])."
        )
    callbacks = _check_callbacks(callbacks)
    run_dir = None if run_dir is None else _artifacts.check_path("run_dir", run_dir)
    devices = Devices(model)
    lock = contextlib.nullcontext()
    if devices.writes and run_dir is not None:
        lock = _artifacts.lock(run_dir / ".lock")
    with lock, devices.scope():
        devices.check(model.loss, batches=batches, validation_data=validation_data)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        run = _Run(model, batches, validation_data, run_dir, callbacks, devices)
        if resume:
            run.restore()
        devices.agree([len(run.history), *run.variables.values()])
        if len(run.history) >= epochs or run.stopped:
            run.finish()
        else:
            run.train(epochs, verbose)
        devices.agree([len(run.history)])  # a later call reads what the first process wrote
        run.write_table()
        return pd.DataFrame(run.history)


def _check_batches(name, batches) -> None:
    """Refuses anything but batches that have an end, with what to pass instead."""
    hint = "pass a keras.utils.PyDataset, such as kerasim.data.ImageBatches(x, y, batch_size=32)"
    if hasattr(batches, "element_spec"):
        hint += "; a tf.data pipeline cannot be resumed, pass it to model.fit instead"
    _checks.instance(name, batches, keras.utils.PyDataset, hint)
    if batches.num_batches is None:
        raise ArgumentError(f"{name} is endless: give its class a __len__, the number of batches.")


def load_weights(
    model: keras.Model, run_dir: Path | str, which: Literal["last", "best"] = "last"
) -> pd.DataFrame:
    """Assigns the weights of a run to `model`.

    Args:
        model: Model with the same architecture as in the run; it need not be compiled.
        run_dir: Folder that was passed to `fit`.
        which: "last" for the weights that the run ended with, "best" for those of the epoch with
            the lowest `val_loss`.

    Returns:
        The history of the run, as `fit` returns it.

    Raises:
        ArtifactError: If there is no such run, it is damaged, or of another architecture.

    Example:
        >>> from kerasim import data
        >>> batches = data.ImageBatches(np.zeros((8, 8, 8, 1)), np.ones((8, 1)), batch_size=8)
        >>> layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
        >>> model = keras.Sequential(layers)
        >>> model.compile("sgd", "mse")
        >>> history = fit(model, batches, epochs=1, run_dir="runs/second", verbose=0)
        >>> new_model = keras.models.clone_model(model)
        >>> load_weights(new_model, "runs/second")["epoch"].tolist()
        [1]
        >>> np.array_equal(new_model.get_weights()[1], model.get_weights()[1])
        True
    """
    _checks.one_of("which", which, ("last", "best"))
    _checks.instance("model", model, keras.Model, "build a keras.Model first")
    run_dir = _artifacts.check_path("run_dir", run_dir)
    path = run_dir / "state"
    if not _artifacts.exists(path):
        raise ArtifactError(
            f"There is no run at {run_dir}: pass the run_dir of a call of training.fit."
        )
    arrays, info = _artifacts.read(path, _KIND, _load)
    weights = _final_weights(arrays, info.get("averages", {}))
    if which == "best":
        path = run_dir / "best"
        if not _artifacts.exists(path):
            raise ArtifactError(
                f"The run at {run_dir} has no best weights, since it was trained without "
                'validation_data: pass which="last", or train with validation_data.'
            )
        weights, best_info = _artifacts.read(path, "weights", _load)
        if best_info.get("run") != info.get("run"):
            raise ArtifactError(
                f"{path} holds weights of a different run than {run_dir / 'state'}: pass "
                'which="last", or train with validation_data again.'
            )
    _assign(path, _named("model", model.variables), weights)
    return pd.DataFrame(info["history"])


def warmup_cosine(
    steps: int, peak: float = 1e-3, warmup_steps: int | None = None
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Builds a learning-rate schedule: a linear warm-up, then a cosine decay to zero.

    Args:
        steps: Training steps in all, such as `epochs * len(batches)`; 1 or more.
        peak: Learning rate at the end of the warm-up, above 0. The warm-up begins at a tenth of it.
        warmup_steps: Steps of the warm-up, fewer than `steps`; 0 for none; None for a tenth of
            `steps`.

    Returns:
        A schedule to pass to an optimizer as its learning rate.

    Raises:
        ArgumentError: If a number is out of range.

    Example:
        >>> schedule = warmup_cosine(steps=100, peak=1e-3)
        >>> [round(float(schedule(step)), 6) for step in (0, 10, 55, 100)]
        [0.0001, 0.001, 0.0005, 0.0]

    Reference:
        Loshchilov & Hutter, 2017. https://arxiv.org/abs/1608.03983; warm-up: Goyal et al., 2017.
        https://arxiv.org/abs/1706.02677
    """
    steps = _checks.integer("steps", steps)
    peak = _checks.number("peak", peak, 1e-12)
    if warmup_steps is None:
        warmup_steps = steps // 10
    warmup_steps = _checks.integer("warmup_steps", warmup_steps, 0, steps - 1)
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(peak, steps)
    return keras.optimizers.schedules.CosineDecay(
        peak / 10, steps - warmup_steps, warmup_target=peak, warmup_steps=warmup_steps
    )


class RetrievalCallback(keras.callbacks.Callback):
    """Adds retrieval metrics to the log and the history of `fit`, with two baselines.

    After each epoch the log has `val_recall@1` and `val_precision@k` (see `metrics.retrieval`), and
    `val_pair_cosine`, the mean cosine of two different images, which is near 1 if the embeddings
    have collapsed. The history of `training.fit` also has the same figures of the embedder before
    training (`val_recall@1_untrained`) and of the raw pixels by Euclidean distance
    (`val_recall@1_pixels`; left out for folders and for more than 1 GiB of pixels). They do not
    change, so they are printed once, before the first epoch.

    For an embedder of vectors, such as a head on stored embeddings, pass these in place of images.
    The second baseline is then the stored embeddings themselves, by `metric`
    (`val_recall@1_inputs`). For pairs, pass the left side as `images`, the right side as `gallery`
    and the number of each pair as both labels: `val_recall@1` is the share of pairs whose right
    side is the nearest of the gallery.

    A warning is issued once if the embeddings collapse (the mean cosine is above 0.98, or an
    embedding is all zeros), and once for each baseline if, from the second epoch on, the precision
    is below that of the pixels or of the untrained embedder.

    Args:
        embedder: Model from images or vectors to vectors: the trained model itself or a part of it.
        images: Validation images `(n, height, width, channels)`, or vectors `(n, size)`, two or
            more, each a query.
        labels: `(n,)` integers or strings.
        gallery: Images to search, such as training images; None for the other validation images.
        gallery_labels: Labels of the gallery; None if `gallery` is None.
        metric: "euclidean", "manhattan" or "cosine".
        k: Number of neighbors for the precision, 1 or more.
        prefix: Prefix of the names in the log, to distinguish several callbacks of one run.
        groups: `(n,)` integers or strings, such as the session of each image: no query finds an
            image of its own group. None for no groups.
        gallery_groups: Groups of the gallery; None if `gallery` or `groups` is None.

    Raises:
        ArgumentError: If there are fewer than two images, labels or groups do not fit the images,
            or the embedder does not return vectors.
        ArgumentTypeError: If the embedder is not a model with one input.

    Example:
        >>> from kerasim import data, losses
        >>> images, labels = np.eye(16).reshape(16, 4, 4, 1), np.arange(16) % 2
        >>> batches = data.BalancedBatches(images, labels, classes_per_batch=2, images_per_class=4)
        >>> keras.utils.set_random_seed(0)
        >>> layers = [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(8)]
        >>> embedder = keras.Sequential(layers)
        >>> embedder.compile("adam", losses.SupConLoss())
        >>> callback = RetrievalCallback(embedder, images, labels, k=1)
        >>> history = fit(embedder, batches, epochs=1, callbacks=[callback], verbose=0)
        >>> [name for name in history if "recall" in name]
        ['val_recall@1', 'val_recall@1_untrained', 'val_recall@1_pixels']
    """

    def __init__(
        self,
        embedder: keras.Model,
        images: ArrayLike | ImageFolder,
        labels: ArrayLike,
        gallery: ArrayLike | ImageFolder | None = None,
        gallery_labels: ArrayLike | None = None,
        metric: Literal["euclidean", "manhattan", "cosine"] = "cosine",
        k: int = 10,
        prefix: str = "val",
        groups: ArrayLike | None = None,
        gallery_groups: ArrayLike | None = None,
    ):
        super().__init__()
        _checks.one_of("metric", metric, metrics.METRICS)
        shape, _ = _image_checks.check_embedder("embedder", embedder, vectors=True)
        self._of_vectors = len(shape) == 1
        self.metric = metric

        def check(name, given):
            if self._of_vectors:
                return _checks.vectors(name, given, shape[0], metric=metric)
            return _image_checks.check_images(name, given)

        # Queries and their labels, then those of the gallery if there is one.
        self.embedder, self.parts = embedder, [check("images", images)]
        n = len(self.parts[0])
        if n < 2:
            raise ArgumentError(f"images holds {n}: pass two or more.")
        self.labels = [_checks.labels("labels", labels, n, "images")]
        if gallery is not None:
            self.parts.append(check("gallery", gallery))
            count = len(self.parts[1])
            name = "gallery_labels"
            self.labels.append(_checks.labels(name, gallery_labels, count, "images of the gallery"))
        elif gallery_labels is not None:
            raise ArgumentError("gallery_labels needs gallery: pass both or neither.")
        self.groups = self._check_groups(groups, gallery_groups)
        self.k, self.prefix = _checks.integer("k", k), prefix
        self.keys = "recall@1", f"precision@{k}"
        self.baselines: dict = {}  # by name in the history
        self.warned: list = []  # kinds of warnings that were given

    def __repr__(self) -> str:
        parts = [f"{len(self.parts[0])} queries"]
        if len(self.parts) > 1:
            parts.append(f"gallery of {len(self.parts[1])}")
        settings = f"metric={self.metric!r}, k={self.k}, prefix={self.prefix!r}"
        return f"RetrievalCallback({', '.join(parts)}, {settings})"

    def settings(self) -> dict:
        """Returns the settings that determine the metrics, for `fit` to compare on resume."""
        held_out = [_content.content_hash(part) for part in (*self.parts, *self.labels)]
        settings: dict = {"metric": self.metric, "k": self.k, "prefix": self.prefix}
        if self.groups:  # runs without groups go on with the settings of earlier versions
            settings["groups"] = [_content.content_hash(codes) for codes in self.groups.values()]
        return {"class": type(self).__name__, "held_out": held_out, **settings}

    def _check_groups(self, groups, gallery_groups) -> dict:
        """Returns the arguments of `metrics.retrieval` for these groups."""
        counts = len(self.parts[0]), len(self.parts[1]) if len(self.parts) > 1 else None
        names = "groups", "gallery_groups"
        codes = _checks.group_codes(names, (groups, gallery_groups), counts)
        if codes is None:
            return {}
        return dict(zip(("query_groups", "gallery_groups"), codes[: len(self.parts)], strict=False))

    def get_state(self) -> dict:
        """Returns the state that `fit` saves with a run: the baselines, and given warnings."""
        return {"baselines": self.baselines, "warned": self.warned}

    def set_state(self, state: dict) -> None:
        """Restores what `get_state` returned.

        Args:
            state: Dict of `baselines` and `warned`.
        """
        self.baselines, self.warned = dict(state["baselines"]), list(state["warned"])

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.baselines, self.warned, self.printed = {}, [], False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if not self.baselines:  # a resumed run restores them
            self._measure_baselines()
        if not self.printed and (self.params or {}).get("verbose"):
            figures = [f"{key} {value:.3f}" for key, value in self.baselines.items()]
            print(f"Baselines: {', '.join(figures)}.")
        self.printed = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = {} if logs is None else logs
        figures = self._score()
        logs.update({f"{self.prefix}_{key}": value for key, value in figures.items()})
        logs.update(self.baselines)
        if not figures["pair_cosine"] <= 0.98:
            why = "(nan if some embeddings are zeros): the embeddings have collapsed"
            self._warn(
                "collapse",
                f"The mean cosine of two different images is {figures['pair_cosine']:.3f} {why}. "
                'Lower the learning rate, or mine "all" triplets instead of "hard" ones.',
            )
        key = self.keys[1]
        for baseline, name in _BASELINES.items():
            before = self.baselines.get(f"{self.prefix}_{key}_{baseline}", 0)
            if epoch and figures[key] < before:
                self._warn(
                    baseline,
                    f"{key} is {figures[key]:.3f} after epoch {epoch + 1}, below {before:.3f} of "
                    f"the {name}: check labels, learning rate and preprocessing.",
                )

    def _measure_baselines(self):
        self._keep("untrained", self._score())
        if self._of_vectors:
            self._keep("inputs", self._retrieve(self.parts, self.metric))
            return
        pixels = sum(np.prod(part.shape) for part in self.parts)
        if pixels * 4 <= 2**30 and not any(isinstance(x, data.ImageFolder) for x in self.parts):
            vectors = [embedding.pixels(part) for part in self.parts]
            self._keep(
                "pixels", self._retrieve(vectors, "euclidean")
            )  # a black image has no cosine

    def _keep(self, baseline, figures):
        for key in self.keys:
            self.baselines[f"{self.prefix}_{key}_{baseline}"] = float(figures[key])

    def _score(self) -> dict:
        """Returns the figures of the embedder as it is; NaN if an embedding is zero."""
        parts = [embedding.embed(self.embedder, part, progress=False) for part in self.parts]
        if not all(part.any(axis=1).all() for part in parts):
            return dict.fromkeys((*self.keys, "pair_cosine"), np.nan)
        lengths = np.linalg.norm(parts[0], axis=1, keepdims=True)
        directions = parts[0] / np.maximum(lengths, 1e-30)
        n = len(directions)
        mean = (np.square(directions.sum(axis=0, dtype="float64")).sum() - n) / (n * (n - 1))
        return {**self._retrieve(parts, self.metric), "pair_cosine": float(mean)}

    def _retrieve(self, parts, metric) -> dict:
        given = parts[0], self.labels[0], *parts[1:], *self.labels[1:]
        ks = sorted({1, self.k})
        scores = metrics.retrieval(*given, metric=metric, ks=ks, **self.groups)
        return {key: scores[key] for key in self.keys}

    def _warn(self, what, text):
        if what not in self.warned:
            self.warned.append(what)
            _checks.warn(text)


class _Run(keras.callbacks.Callback):
    """The state of a run: saved after each epoch, restored before the first.

    An epoch counts once its state is saved:

        fresh -> epoch 1 -> saved -> epoch 2 -> saved -> ... -> finished
          ^         |         ^         |
          +- error -+         +- error -+

    An error or an interrupt restores what was saved last, in memory before the first epoch. So the
    next call begins with the same values, in the same process or in another.
    """

    def __init__(self, network, batches, validation, run_dir, callbacks, devices):
        super().__init__()
        self.network, self.batches, self.validation = network, batches, validation
        self.run_dir, self.devices = run_dir, devices
        self.name = network.name if run_dir is None else run_dir.name
        self.id = secrets.token_hex(8)
        self.history, self.stopped, self.stoppers, self.warned = [], False, [], False
        self.probe = None  # inputs of a few images, to check whether their outputs differ
        # Arrays and states after the last complete epoch; None once they are saved in `run_dir`.
        self.saved: Any = ({}, {})
        self.callbacks = _resume.Callbacks(callbacks, [*self.variables.values()])
        self.data_set = None  # the state of batches that change from one epoch to the next
        if _has_hooks(batches):
            skip = [*vars(keras.utils.PyDataset()), "epoch"]  # what Keras, and `fit`, set
            self.data_set = _resume.State("batches", batches, "batches/", skip, strict=False)
        self.settings = _settings(network, batches, validation)
        self.hidden = {"batches": _hidden(batches), "validation_data": _hidden(validation)}
        optimizer = _inner(network.optimizer)
        self.swap = keras.callbacks.SwapEMAWeights() if optimizer.use_ema else None
        name_of = {id(variable): key for key, variable in self.variables.items()}
        averages = getattr(optimizer, "_model_variables_moving_average", [])  # of use_ema alone
        pairs = zip(optimizer._trainable_variables, averages, strict=False)
        self.averages = {name_of[id(one)]: name_of[id(other)] for one, other in pairs}

    @property
    def variables(self):
        optimizer = self.network.optimizer
        # guard: seeds-in-state
        return _named("model", self.network.variables) | _named("optimizer", optimizer.variables)

    @property
    def writes(self) -> bool:
        """Whether this process saves the run: one of several does, unless there is no folder."""
        return self.devices.writes and self.run_dir is not None

    # Before training

    def restore(self):
        """Restores the run in `run_dir`, if there is one, and refuses a run of other settings."""
        if self.run_dir is None or not _artifacts.exists(self.run_dir / "state"):
            return
        path = self.run_dir / "state"
        arrays, info = _artifacts.read(path, _KIND, _load)
        self._accept_changed_rate(info["settings"], arrays)
        lines = list(_resume.differences(info["settings"], self.settings))
        lines += self.callbacks.match(info["states"]["callbacks"])
        # guard: run-settings
        if lines:
            listed = "".join(f"\n  {line}" for line in lines)
            raise ArgumentError(
                f"run_dir={str(self.run_dir)!r} holds a run with different settings:{listed}\n"
                "Choose another run_dir, or pass resume=False to start again and overwrite it."
            )
        self._compare_hidden(info)
        _assign(path, self.variables, _of_groups(arrays, "model", "optimizer"))
        self.id, self.history = info.get("run", self.id), info["history"]
        self.stoppers = info.get("stopped_by", [])
        self.stopped = info["stopped"] and self.callbacks.has_stopper(self.stoppers)
        self.saved = arrays, info["states"]

    def _compare_hidden(self, info):
        """Warns of batches that may differ from those of the run so far."""
        before = info.get("hidden", self.hidden)
        for name, value in (("batches", self.batches), ("validation_data", self.validation)):
            state = info["states"].get("data_set", {}) if name == "batches" else {}
            _resume.warn_of_hidden(name, value, before[name], self.hidden[name], state)
        self.hidden = before

    def _accept_changed_rate(self, saved, arrays):
        """Treats a learning rate that callbacks changed in an earlier call as the original one."""
        optimizer = _inner(self.network.optimizer)
        now, before = (_inner_config(values["optimizer"]) for values in (self.settings, saved))
        variable = getattr(optimizer, "_learning_rate", None)
        key = next((k for k, x in self.variables.items() if x is variable), None)
        rate = arrays.get(key)
        if rate is not None and rate.size == 1 and now["learning_rate"] == float(rate):
            now["learning_rate"] = before.get("learning_rate", now["learning_rate"])

    def finish(self):
        """Assigns the final weights of a finished run to the model, and prints a summary."""
        arrays = self.saved[0]
        weights = _final_weights(arrays, self.averages)
        _assign(self.run_dir, _named("model", self.network.variables), weights)
        print(self._summary())

    def _summary(self) -> str:
        """Returns the summary of a run that has ended: its figures, and how to train longer."""
        last, seconds = self.history[-1], sum(row["seconds"] for row in self.history)
        figures = {key: value for key, value in last.items() if key not in ("epoch", "seconds")}
        shown = [f"{key} {value:.4g}" for key, value in [*figures.items()][:_SUMMARY_FIGURES]]
        done = f"after {len(self.history)} epochs in {seconds:.0f} s, {', '.join(shown)}"
        how, longer = "finished earlier", "increase epochs"
        if self.stopped:
            names = self.callbacks.stopper_names(self.stoppers)
            how = "stopped early"
            longer = f"leave out {names}" if names else "choose another run_dir"
        advice = f"To train longer, {longer}; to train again, pass resume=False"
        return f"{self.name}: {how} {done}. {advice}."

    def check_first_batches(self):
        """Refuses data that does not fit the network, or is not finite, before the first step."""
        for name, batches in (("batches", self.batches), ("validation_data", self.validation)):
            if batches is not None and not len(batches):
                raise ArgumentError(f"{name} is empty: its len is 0. Pass one batch or more.")
        self.batches.epoch = len(self.history)
        batch = self.batches[0]
        for n, leaf in enumerate(keras.tree.flatten(batch)):
            array = np.array(keras.ops.convert_to_numpy(leaf), ndmin=1)
            _checks.finite(f"array {n} of batches[0]", array)
        _fitting.check("batches", self.network, self.batches, batch)
        if not isinstance(batch, dict):
            inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
            self.probe = keras.tree.map_structure(lambda rows: rows[:32], inputs)
        if self.validation is not None:
            _fitting.check("validation_data", self.network, self.validation, self.validation[0])

    # Training

    def train(self, epochs, verbose):
        """Trains up to epoch `epochs`."""
        if self.run_dir is not None:
            _artifacts.check_replaceable(self.run_dir / "state", _KIND)
            _artifacts.check_replaceable(self.run_dir / "best", "weights")
        self.check_first_batches()
        done = len(self.history)
        if done:
            print(f"{self.name}: continuing after epoch {done} of {epochs}.")
        else:
            self._remove_earlier()
            self.saved = _arrays(self.variables), {}
        lent = [_Lent(self.batches, hooks=False)]
        if self.validation is not None:
            lent.append(_Lent(self.validation, hooks=True))
        batches, validation, *_ = *(self.devices.part(each) for each in lent), None
        try:
            with translate_errors(self.batches, self.validation, kept=self.kept):
                self.network.fit(
                    batches,
                    epochs=epochs,
                    initial_epoch=done,
                    validation_data=validation,
                    callbacks=self.around(),
                    shuffle=False,  # True draws the order from a generator that no state holds
                    verbose=verbose,
                )
        except BaseException as error:
            self._put_back()
            if isinstance(error, KeyboardInterrupt):
                print(f"{self.name}: stopped after epoch {len(self.history)}{self._how_to_go_on()}")
            raise
        finally:
            for each in lent:
                each.give_back()
        if self.swap:  # on JAX a weight now has the memory of its average, freed by `predict`
            for weight in self.network.trainable_variables:
                weight.assign(keras.ops.copy(weight))
        if self.writes:
            self._save_final()

    def _how_to_go_on(self) -> str:
        return "." if self.run_dir is None else "; the same call continues the run."

    def _remove_earlier(self):
        """Removes the files that an earlier run left in `run_dir`."""
        if self.writes:
            for name, kind in (("state", _KIND), ("best", "weights")):
                _artifacts.remove(self.run_dir / name, kind)
            (self.run_dir / "history.csv").unlink(missing_ok=True)

    def _put_back(self):
        """Restores model, optimizer and callbacks to the state after the last complete epoch."""
        if self.run_dir is None:
            return
        with contextlib.suppress(ArtifactError):  # the error that came first is the one to raise
            if self.saved is None:
                arrays, info = _artifacts.read(self.run_dir / "state", _KIND, _load)
                self.saved, self.history = (arrays, info["states"]), info["history"]
            arrays, states = self.saved
            _assign(self.run_dir, self.variables, _of_groups(arrays, "model", "optimizer"))
            self._restore_states(arrays, states)

    def around(self):
        """Returns all callbacks in order, so that those of the caller see averaged weights."""
        callbacks = self.callbacks.callbacks
        if self.swap is None:
            return [*callbacks, self]
        swap = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: self.swap._swap_variables())
        return [self.swap, swap, *callbacks, swap, self]

    def on_train_begin(self, logs=None):
        if self.run_dir is None:
            return
        self.callbacks.start()
        if self.data_set is not None:
            self.data_set.start()
        self._restore_states(*self.saved)
        arrays = _of_groups(self.saved[0], "model", "optimizer")
        self.saved = arrays, self._save_states(arrays)
        self.callbacks.matched = {n: n for n in range(len(self.callbacks.callbacks))}

    def _save_states(self, arrays) -> dict:
        """Returns the states of callbacks and batches as JSON values; adds theirs, and those of
        generators of the backend, to `arrays`."""
        states: dict = {"callbacks": self.callbacks.save(arrays)}
        if self.data_set is not None:
            states["data_set"] = self.data_set.save(arrays)
        arrays.update(_resume.backend_generators())
        return states

    def _restore_states(self, arrays, states):
        """Restores what `_save_states` returned, if it is given."""
        self.callbacks.restore(states.get("callbacks", []), arrays)
        if self.data_set is not None and "data_set" in states:
            self.data_set.restore(states["data_set"], arrays)
        _resume.restore_backend_generators(arrays)

    def on_epoch_begin(self, epoch, logs=None):
        # guard: epoch-order
        self.batches.epoch = epoch
        if self.data_set is not None:
            self.batches.on_epoch_begin()
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        # guard: nan-in-loss
        if not np.isfinite(loss):
            self._fail(f"The loss became {loss} in batch {batch} of epoch {len(self.history) + 1}")

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.started
        if self.data_set is not None:
            self.batches.on_epoch_end()
        arrays = _arrays(self.variables)
        bad = sum(not np.isfinite(array).all() for array in arrays.values())
        # guard: nan-in-weights
        if bad:
            self._fail(f"{bad} weights became NaN or infinite in epoch {epoch + 1}")
        logs = {} if logs is None else logs
        row = {"epoch": epoch + 1, **{key: float(value) for key, value in logs.items()}}
        for callback in self.callbacks.callbacks:
            if isinstance(callback, RetrievalCallback):
                for key in callback.baselines:  # they would fill each line of the progress bar
                    logs.pop(key, None)
        history = [*self.history, {**row, "seconds": round(seconds, 2)}]
        if self.writes:
            self.save(arrays, history)
        self.history, self.saved = history, None
        self.write_table()
        self.warn_if_dead()

    def save(self, arrays, history):
        """Saves the state, and the weights if they are the best."""
        states = self._save_states(arrays)
        *before, loss = [row.get("val_loss", np.nan) for row in history]
        # NaN is never less nor more: it is never the best, and never hides a later best.
        if np.isfinite(loss) and not any(loss >= earlier for earlier in before):
            best = _save(_final_weights(arrays, self.averages))
            info = {"run": self.id, "epoch": len(history)}
            _artifacts.write(self.run_dir / "best", "weights", best, info)
        stopped = bool(self.network.stop_training)
        info = {
            "run": self.id,
            "settings": self.settings,
            "hidden": self.hidden,
            "history": history,
            "averages": self.averages,
            "stopped": stopped,
            "stopped_by": self.callbacks.stoppers(len(history) - 1) if stopped else [],
            "states": states,
        }
        _artifacts.write(self.run_dir / "state", _KIND, _save(arrays), info)

    def warn_if_dead(self):
        """Warns, once, if the loss is constant for many steps and all outputs are equal.

        The loss of a network that has converged is constant, too, but its outputs differ.
        """
        epochs = 1 + math.ceil(_STUCK_STEPS / self.batches.num_batches)
        recent = [row.get("loss", np.nan) for row in self.history[-epochs:]]
        low, high = min(recent), max(recent)
        moves = len(recent) < epochs or not high or not high - low <= _STUCK_LOSS * abs(high)
        if self.warned or moves or not self._outputs_are_equal():
            return
        self.warned = True
        steps = (len(recent) - 1) * self.batches.num_batches
        _checks.warn(
            f"The loss has stayed at {high:.4g} for {steps} steps, and the network "
            "returns the same output for every image: it has stopped learning. Train "
            "it again with a lower learning rate, or with another initialization."
        )

    def _outputs_are_equal(self) -> bool:
        """Returns whether the outputs for different inputs of the first batch are equal."""
        if self.devices.replicas > 1 or self.probe is None:
            return False
        with contextlib.suppress(Exception):  # of a network of the user's own
            with keras.StatelessScope():  # random generators of the network stay where they are
                outputs = self.network(self.probe, training=False)
            return _rows_are_equal(outputs, _EQUAL_OUTPUTS) and not _rows_are_equal(self.probe, 0)
        return False

    def _save_final(self):
        """Saves the weights that callbacks selected at the end of training, if they differ."""
        default = keras.callbacks.Callback.on_train_end
        ends = [callback.on_train_end for callback in self.callbacks.callbacks]
        if all(getattr(end, "__func__", end) is default for end in ends):
            return
        arrays, info = _artifacts.read(self.run_dir / "state", _KIND, _load)
        last = _final_weights(arrays, self.averages)
        chosen = _arrays(_named("model", self.network.variables))
        if any(last[key].tobytes() != array.tobytes() for key, array in chosen.items()):
            arrays |= {f"final/{key}": array for key, array in chosen.items()}
            _artifacts.write(self.run_dir / "state", _KIND, _save(arrays), info)

    def write_table(self):
        if self.writes:
            table = pd.DataFrame(self.history).to_csv(index=False)
            _artifacts.write_file(self.run_dir / "history.csv", table.encode())

    def kept(self) -> str:
        """Returns what the run keeps, for a message about what stopped it."""
        if not self.history:
            return ". No epoch was finished"
        if self.run_dir is None:
            return f". {len(self.history)} epochs were finished"
        return f". {self.run_dir / 'state'} keeps epoch {len(self.history)}"

    def _fail(self, what):
        raise TrainingError(
            f"{what}{self.kept()}: lower the learning rate or look for a division by "
            "zero, and use another run_dir."
        )


def _has_hooks(batches) -> bool:
    """Returns whether batches override `on_epoch_begin` or `on_epoch_end`."""
    base = keras.utils.PyDataset
    names = ("on_epoch_begin", "on_epoch_end")
    return any(getattr(type(batches), name) is not getattr(base, name) for name in names)


class _Lent(keras.utils.PyDataset):
    """Batches that are lent to Keras for one call of `Model.fit`.

    TensorFlow keeps the generator of a data set until the process ends, and with it whatever the
    generator refers to. Therefore Keras receives this object, which forgets the batches once
    `give_back` is called: otherwise their images would fill the memory, run after run.

    With `hooks=False`, `_Run` calls `on_epoch_begin` and `on_epoch_end` of the batches: Keras
    starts the workers of a data set before it calls `on_epoch_begin`, so that the first batches
    would be those of the previous epoch. With workers Keras 3.15 also begins the first epoch on JAX
    with the second batch, so that there one thread draws batches that depend on their order.
    """

    def __init__(self, batches, hooks: bool):
        threads = batches.workers > 1 or batches.use_multiprocessing
        ordered = _has_hooks(batches) or threads and not isinstance(batches, SeededBatches)
        alone = ordered and not hooks and keras.backend.backend() != "tensorflow"
        super().__init__(
            workers=1 if alone else batches.workers,
            use_multiprocessing=batches.use_multiprocessing and not alone,
            max_queue_size=batches.max_queue_size,
        )
        self.batches, self.hooks = batches, hooks

    @property
    def num_batches(self):
        return self.batches.num_batches

    def __getitem__(self, index):
        return self.batches[index]

    def on_epoch_begin(self):
        if self.hooks:
            self.batches.on_epoch_begin()

    def on_epoch_end(self):
        if self.hooks:
            self.batches.on_epoch_end()

    def give_back(self):
        self.batches = None


def _rows_are_equal(arrays, tolerance) -> bool:
    """Returns whether all rows of each array are equal, within a share of its largest value."""
    leaves = [np.asarray(keras.ops.convert_to_numpy(x)) for x in keras.tree.flatten(arrays)]
    spreads = [np.ptp(leaf.astype("float64"), axis=0).max(initial=0) for leaf in leaves]
    sizes = [np.abs(leaf.astype("float64")).max(initial=0) for leaf in leaves]
    return all(s <= tolerance * size for s, size in zip(spreads, sizes, strict=True))


def _check_callbacks(callbacks) -> list:
    callbacks = _checks.as_list("callbacks", callbacks)
    for callback in callbacks:
        _checks.has_attribute(
            "each of callbacks", callback, "on_epoch_end", "a keras.callbacks.Callback"
        )
        if isinstance(callback, keras.callbacks.SwapEMAWeights):
            raise ArgumentError("callbacks holds SwapEMAWeights: leave it out, since fit adds one.")
    return callbacks


# The values that the manifest of a state must hold, and their types.
_STATE_INFO = {"settings": dict, "history": list, "stopped": bool, "states": dict}


def _load(folder, manifest):
    if manifest.kind == _KIND:
        for name, kind in _STATE_INFO.items():
            if not isinstance(manifest.info.get(name), kind):
                raise ValueError(f"its manifest has no {name!r} of type {kind.__name__}")
    return _resume.unpack(_artifacts.read_arrays(folder / "arrays.npz")), manifest.info


def _save(arrays):
    packed: Any = _resume.pack(arrays)
    return lambda folder: np.savez(folder / "arrays.npz", **packed)


def _named(group, variables) -> dict:
    return {f"{group}/{n}": variable for n, variable in enumerate(variables)}


def _arrays(variables) -> dict[str, np.ndarray]:
    """Returns copies of the values of variables by name."""
    return {key: np.array(keras.ops.convert_to_numpy(x)) for key, x in variables.items()}


def _of_groups(arrays, *groups) -> dict[str, np.ndarray]:
    return {key: array for key, array in arrays.items() if key.partition("/")[0] in groups}


def _final_weights(arrays, averages) -> dict[str, np.ndarray]:
    """Returns the final weights of a run: those that callbacks selected, averages, or the last.

    Args:
        arrays: All arrays of a state.
        averages: Name of a weight to the name of its average; {} if there are none.
    """
    weights = _of_groups(arrays, "model")
    return {key: arrays.get(f"final/{key}", arrays[averages.get(key, key)]) for key in weights}


def _assign(path, variables, arrays):
    """Assigns saved arrays to variables: all, or none if one does not fit."""
    now = {key: tuple(variable.shape) for key, variable in variables.items()}
    saved = {key: array.shape for key, array in arrays.items()}
    keys = [key for key in {**now, **saved} if now.get(key) != saved.get(key)]
    paths = {key: variable.path for key, variable in variables.items()}
    wrong = [f"{paths.get(k, k)}: now {now.get(k)}, saved {saved.get(k)}" for k in keys]
    if wrong:
        differ = f"{len(wrong)} arrays differ, such as {'; '.join(wrong[:3])}"
        raise ArtifactError(
            f"{path} was saved from a different architecture: {differ}. Build the model "
            "as it was, or choose another run_dir."
        )
    for key, variable in variables.items():
        variable.assign(arrays[key])


def _inner(optimizer):
    """Returns the optimizer inside of one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _inner_config(optimizer) -> dict:
    """Returns the config of the optimizer inside of one that scales the loss."""
    config = optimizer["config"]
    return config["inner_optimizer"]["config"] if "inner_optimizer" in config else config


def _settings(model, batches, validation) -> dict:
    """Returns the settings that determine a run, except for callbacks, as JSON values."""
    compiled = _compiled_arguments(model)
    described = {
        "backend": keras.backend.backend(),
        "model": _model_identity.architecture(model),
        "dtype_policy": model.dtype_policy.name,
        "floatx": keras.config.floatx(),
        "optimizer": _describe_optimizer(model.optimizer),
        **{name: _resume.describe(value) for name, value in compiled.items()},
        "batches": _describe(batches),
        "validation_data": None if validation is None else _describe(validation),
    }
    return _resume.json_values(described)


def _describe_optimizer(optimizer) -> dict:
    """Returns the config of an optimizer, and the arguments of a class that the user wrote.

    Raises:
        ArgumentError: If it, or its schedule, does not define its config.
    """
    try:
        config: dict = keras.optimizers.serialize(optimizer)  # type: ignore[assignment]
    except (NotImplementedError, TypeError) as error:
        raise ArgumentError(
            f"The optimizer cannot be compared with that of another call: {error} Give "
            "its class, or that of its schedule, a get_config() with all arguments."
        ) from error
    own = _resume.own_arguments(_inner(optimizer))
    own = {name: value for name, value in own.items() if name not in _inner_config(config)}
    return {**config, **({"arguments": own} if own else {})}


def _compiled_arguments(model) -> dict:
    """Returns loss, weights of losses and metrics, as they were passed to `model.compile`."""
    names = ("loss", "loss_weights", "metrics", "weighted_metrics")
    config = model._compile_config.config
    return {name: config[name] for name in names}


def _hidden(batches) -> dict:
    return _resume.hidden(batches, {*vars(keras.utils.PyDataset()), "epoch"})


def _describe(batches) -> dict:
    if hasattr(batches, "settings"):
        settings = batches.settings()
        return {**settings, "augment": _resume.describe(settings.get("augment"))}
    name, given = type(batches).__name__, _resume.arguments(batches)
    return {"class": name, "batches": batches.num_batches, "arguments": given}
