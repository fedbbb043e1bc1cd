"""Interrupts (Ctrl-C) at random lines and moments of saves, changes of a gallery, and training."""

import contextlib
import copy
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from tests.helpers.interrupted import at_line
from tests.torture.artifact_kinds import ARTIFACTS
from tests.torture.children import run_child
from tests.torture.galleries import KINDS, Model, new_gallery
from tests.torture.training import compiled_model, difference_of_runs, fit


@contextlib.contextmanager
def _after(seconds):
    """Interrupts after some time, wherever the process is, as Ctrl-C does."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _measure(call):
    """Returns how many lines of kerasim, and how many seconds, a call takes."""
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    with at_line(0) as lines:
        call()
    return lines[0], seconds


def _is_interrupted(call, rng, lines, seconds):
    """Makes a call and interrupts it, half of the times at a line; says whether it was in time."""
    by_line = rng.random() < 0.5
    moment = at_line(rng.randint(1, lines)) if by_line else _after(rng.uniform(1e-4, seconds))
    try:
        with moment:
            call()
        return False
    except BaseException as error:
        if not _is_of_interrupt(error):
            raise
        return True


def _is_of_interrupt(error):
    """Says whether an error is an interrupt, or one in what Python does at the end of a block."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


# Saves


def _interrupt_saves(kinds, times, folder, send):
    wrong, reached = [], 0
    for kind in kinds:
        rng, path = random.Random(kind), Path(folder, kind, "it")
        save, load = ARTIFACTS[kind]
        save(path, 0.0)
        lines, seconds = _measure(lambda: save(path, 0.0))  # noqa: B023
        value = 0.0
        for n in range(times):
            try:
                reached += _is_interrupted(lambda: save(path, value + 1), rng, lines, seconds)  # noqa: B023
                found = load(path)[0]
                if found not in (value, value + 1):
                    raise AssertionError(f"holds {found} after {value}")
                value = found
            except Exception as error:
                wrong.append(f"{kind}, interrupt {n}: {type(error).__name__}: {error}"[:300])
    return reached, wrong


def _save_again(kinds, folder, send):
    """Saves once more, and returns what is left besides."""
    wrong = []
    for kind in kinds:
        path = Path(folder, kind, "it")
        ARTIFACTS[kind][0](path, 0.0)
        left = [name for name in os.listdir(path.parent) if name != "it"]
        wrong += [f"{kind}: {left} stay after the next save"] if left else []
    return wrong


# Galleries


def _interrupt_galleries(kinds, times, folder, send):
    from kerasim.gallery import Gallery

    wrong, reached = [], 0
    for kind in kinds:
        rng, path = random.Random(f"gallery {kind}"), Path(folder, kind)
        gallery, model = new_gallery(kind), Model()
        saved = Model()
        gallery.save(path)
        for n in range(times):
            seed = rng.random()
            after = copy.deepcopy(model)
            after.step(random.Random(seed))

            def change():
                copy.deepcopy(model).step(random.Random(seed), gallery)  # noqa: B023

            try:
                reached += _is_interrupted(change, rng, 150, 0.02)
                said = [one.difference(gallery) for one in (model, after)]
                if all(said):
                    wrong.append(f"{kind}, change {n}: {said}")
                    break
                model = model if said[1] else after
                reached += _is_interrupted(lambda: gallery.save(path), rng, 400, 0.05)  # noqa: B023
                loaded = Gallery.load(path, gallery.embedder)
                said = [one.difference(loaded) for one in (saved, model)]
                if all(said):
                    wrong.append(f"{kind}, save {n}: {said}")
                    break
                saved = copy.deepcopy(saved if said[1] else model)
                gallery.save(path)
                saved = copy.deepcopy(model)
            except Exception as error:
                wrong.append(f"{kind}, interrupt {n}: {type(error).__name__}: {error}"[:300])
                break
    return reached, wrong


# Training


def _train_once(name, run_dir, epochs, send):
    fit(name, run_dir, epochs)


def _built_model(name):
    """Returns a compiled model whose optimizer is built: one that is half built is of no use."""
    model, batches = compiled_model(name)
    model.optimizer.build(model.trainable_variables)
    return model, batches


def _interrupt_training(name, run_dir, epochs, times, send):
    """Interrupts a run in one process, some of the times with new objects; then it goes on."""
    rng, reached = random.Random(f"training {name}"), 0
    made = _built_model(name)
    for _ in range(times):
        if rng.random() < 0.3:
            made = _built_model(name)
        try:
            with _after(rng.uniform(0.01, 1.5)):
                fit(name, run_dir, epochs, *made)
        except KeyboardInterrupt:
            reached += 1
    fit(name, run_dir, epochs, *made)
    return reached


def interrupts(
    times=200, kinds=tuple(ARTIFACTS), galleries=KINDS, runs=("vae", "mixed"), epochs=20
):
    """Interrupts saves, changes of galleries and training; nothing may be lost or half done.

    Args:
        times: Interrupts of each kind of artifact, gallery or run (of a run, a tenth).
        kinds: Kinds of artifacts that are saved.
        galleries: Kinds of the index of galleries that are changed.
        runs: Names of models that are trained, as for `training.killed_runs`.
        epochs: Epochs of each run.
    """
    with tempfile.TemporaryDirectory() as folder:
        reached, wrong = run_child(_interrupt_saves, kinds, times, folder)
        wrong += run_child(_save_again, kinds, folder)  # a process holds what it did not remove
        found, more = run_child(_interrupt_galleries, galleries, times, folder)
        reached, wrong = reached + found, wrong + more
        for name in runs:
            straight, run = Path(folder, f"{name} straight"), Path(folder, name)
            run_child(_train_once, name, straight, epochs)
            reached += run_child(_interrupt_training, name, run, epochs, max(1, times // 10))
            said = difference_of_runs(run, straight)
            wrong += [f"{name}: {said}"] if said else []
    return f"{reached} interrupts, {len(wrong)} wrong", wrong
