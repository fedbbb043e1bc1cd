"""Saving: writers that are killed, system calls that fail, and several processes at once."""

import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from kerasim import _artifacts
from kerasim.errors import ArtifactError, KerasimError
from tests.torture.artifact_kinds import ARTIFACTS, IMAGES, contents, embedder, load_index
from tests.torture.children import drain, last_message, run_child, start_child


def _rename_twice():
    """Renames twice, slowly, as on a system that cannot exchange two names."""

    def slow(*args):
        time.sleep(0.02)
        real(*args)

    real, os.rename = os.rename, slow
    _artifacts._exchange = lambda one, other: False


def _save_forever(kind, path, value, exchange, send):
    if not exchange:
        _rename_twice()
    while True:
        send(value)
        value += 1
        ARTIFACTS[kind][0](path, float(value))


def killed_saves(times=200, kinds=tuple(ARTIFACTS), exchange=True):
    """Kills writers at random moments; the artifact must then be the old or the new one.

    Args:
        times: Kills of each kind.
        kinds: Kinds of artifacts.
        exchange: Whether the system can exchange two names in one step.
    """
    wrong, midway, aside = [], 0, 0
    for kind in kinds:
        rng = random.Random(kind)
        with tempfile.TemporaryDirectory() as folder:
            path, saved, duration = Path(folder, "it"), 0, None
            while duration is None:  # how long a first save takes
                with start_child(_save_forever, kind, path, 0, exchange) as (process, messages):
                    messages.recv()
                    start = time.perf_counter()
                    saved = messages.recv()
                    duration = time.perf_counter() - start
                    process.kill()
                    saved = drain(messages, saved)  # it went on saving meanwhile
            for n in range(times):
                with start_child(_save_forever, kind, path, saved, exchange) as (process, messages):
                    messages.recv()
                    time.sleep(rng.uniform(0, 1.2 * duration))
                    process.kill()
                    saved = drain(messages, saved)
                midway += any(name.endswith(".tmp") for name in os.listdir(folder))
                aside += not path.exists()  # the old one stands under its other name
                try:
                    value = ARTIFACTS[kind][1](path)[0]
                    if value not in (saved, saved + 1):
                        raise AssertionError(f"holds {value} after {saved} was saved")
                    saved = int(value)
                except Exception as error:
                    wrong.append(f"{kind}, kill {n}: {type(error).__name__}: {error}")
                    break
            else:
                ARTIFACTS[kind][0](path, float(saved + 1))
                strays = [name for name in os.listdir(folder) if name != "it"]
                wrong += [f"{kind}: {strays} stay after the next save"] if strays else []
    kills = times * len(kinds)
    between = "" if exchange else f", {aside} between two renames"
    return f"{kills} kills, {midway} of them midway{between}, {len(wrong)} lost or corrupt", wrong


def _fail_calls(kind, turns, folder, send):
    save, load = ARTIFACTS[kind]
    path, wrong, strays, failed = Path(folder, "it"), [], 0, 0
    state = {"count": 0, "turn": None}

    def call():
        if state["turn"] is not None:
            state["count"] += 1
            if state["count"] == state["turn"]:
                raise OSError(28, "No space left on device")

    def audit(event, args):
        opened = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
        if (opened and folder in str(args[0])) or event in ("os.mkdir", "os.rename"):
            call()

    def patched(real):
        def wrapped(*args):
            call()
            return real(*args)

        return wrapped

    os.fsync, _artifacts._exchange = patched(os.fsync), patched(_artifacts._exchange)
    sys.addaudithook(audit)
    save(path, 0.0)
    state.update(count=0, turn=0)
    save(path, 1.0)  # counts the calls
    calls, state["turn"] = state["count"], None
    whole = contents(folder)
    largest = max(map(len, whole.values()))
    value = 1.0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for turn in turns:
        state["count"] = 0
        share = (turn - calls - 1) / max(1, max(turns) - calls)
        try:
            if turn <= calls:
                state["turn"] = turn
            else:  # a write fails where a file would grow beyond a part of the largest
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest * share), limits[1]))
            save(path, value + 1)
        except KerasimError:
            failed += 1
        except BaseException as error:
            failed += 1
            wrong.append(f"{kind}, turn {turn} of {calls}: {type(error).__name__}: {error}")
        finally:
            state["turn"] = None
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        try:
            found = load(path)[0]
            if found not in (value, value + 1):
                raise AssertionError(f"holds {found} after {value}")
            value = found
        except Exception as error:
            wrong.append(f"{kind}, turn {turn} of {calls}: lost: {error!r}")
            break
        left = [name for name in os.listdir(folder) if name != "it"]
        strays += len(left)
        wrong += [f"{kind}, turn {turn} of {calls}: {left} left behind"] if left else []
    return len(turns), failed, strays, wrong


def failing_calls(turns=range(1, 101), kinds=tuple(ARTIFACTS)):
    """Lets the n-th call that opens, makes, syncs, renames or writes fail in each writer."""
    total = failed = strays = 0
    wrong = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            found = run_child(_fail_calls, kind, list(turns), folder)
        total, failed, strays = total + found[0], failed + found[1], strays + found[2]
        wrong += found[3]
    return f"{total} tried, {failed} failed, {len(wrong)} wrong, {strays} strays", wrong


def _append_to_gallery(path, who, times, send):
    from kerasim.gallery import Gallery

    model, refused = embedder(), 0
    for n in range(times):
        while True:
            gallery = Gallery.load(path, model)
            gallery.add(IMAGES[n % 24][None], [f"{who}-{n}"])
            try:
                gallery.save(path)
                break
            except ArtifactError:
                refused += 1
                time.sleep(random.uniform(0, 0.02))
    return refused


def concurrent_access(appends=200, reads=1000):
    """Two writers append to one gallery while it is read; another rewrites an index meanwhile."""
    from kerasim.gallery import Gallery

    wrong, done = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gallery")
        model = embedder()
        Gallery(model).save(path)
        with start_child(_append_to_gallery, path, "a", appends) as (one, first):
            with start_child(_append_to_gallery, path, "b", appends) as (other, second):
                sizes = [0]
                while one.is_alive() or other.is_alive():
                    try:
                        sizes.append(len(Gallery.load(path, model)))
                        done += 1
                    except Exception as error:
                        wrong.append(f"read {done}: {error!r}")
                ends = [last_message(first), last_message(second)]
        if sizes != sorted(sizes):
            wrong.append("images were lost between two reads")
        wrong += [str(value) for what, value in ends if what != "result"]
        found = set(Gallery.load(path, model).items["label"])
        kept = len(found & {f"{who}-{n}" for who in "ab" for n in range(appends)})
        wrong += [f"{kept} of {2 * appends} appends are kept"] if kept < 2 * appends else []
        path, seen = Path(folder, "it"), [0.0]
        with start_child(_save_forever, "index", path, 0, True) as (_, messages):
            for _ in range(2):
                messages.recv()
            for n in range(max(reads // 2, reads - done)):
                while messages.poll():  # or the writer would wait
                    messages.recv()
                try:
                    seen.append(load_index(path)[0])
                except Exception as error:
                    wrong.append(f"read {n} of an index: {error!r}")
        if seen != sorted(seen) or len(set(seen)) < 3:
            wrong.append("what was read does not grow")
    refused = sum(value for what, value in ends if what == "result")
    return (
        f"{kept} of {2 * appends} appends, {refused} refused and tried again, "
        f"{done + len(seen) - 1} reads, {len(wrong)} wrong"
    ), wrong
