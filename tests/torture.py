"""Tortures the package and prints what was asked of it beside what it reached: make torture.

    python -m tests.torture [--short] [goal ...] [size=value ...]

Such as `python -m tests.torture G4 count=500 names=keras,npz`.

Each goal is a function of its sizes that returns what was reached, and a list of what went wrong.
tests/test_torture.py calls the same functions with small sizes. What may die, hang or fill the
memory runs in a child, forked from a server that has loaded the libraries and nothing else.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import xml.etree.ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # as under pytest: helpers, and what tests have already

import numpy as np  # noqa: E402
import tqdm  # noqa: E402

from kerasim import _artifacts, _model_identity, embedding  # noqa: E402
from kerasim.errors import ArtifactError, KerasimError  # noqa: E402

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tensorflow", "kerasim.gallery", "kerasim.export"])


# Children


@contextlib.contextmanager
def child(task, *args):
    """Runs `task(*args, send)` in a process of its own; gives it, and the pipe it sends into."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(task, args, sender))
    process.start()
    sender.close()
    try:
        yield process, receiver
    finally:
        process.kill()
        process.join()
        receiver.close()


def _run(task, args, sender):
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    tqdm.tqdm.set_lock(threading.RLock())  # its own outlives those that are killed
    try:
        sender.send(("result", task(*args, sender.send)))
    except Exception:
        sender.send(("error", traceback.format_exc()))


def ask(task, *args):
    """Returns what `task` returns in a child; a child that dies, or raises, is an error here."""
    with child(task, *args) as (process, messages):
        what, value = last(messages)
        process.join(30)
        if what != "result":
            raise AssertionError(f"{task.__name__}{args}: {value or process.exitcode}")
        return value


def last(messages):
    """Waits for the end of a child, and returns its last message; ("nothing", None) for none."""
    found = "nothing", None
    with contextlib.suppress(EOFError):
        while True:
            found = messages.recv()
    return found


def _die(send):
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(send):
    raise ZeroDivisionError


def memory(what):
    """Returns "VmRSS", "VmHWM" (the peak) or "VmSize" of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", status)[1]) // 1024


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


# Artifacts: how each kind is saved with a value, and read, to that value and a digest of it all


def digest(*parts):
    found = hashlib.sha256()
    for part in parts:
        plain = isinstance(part, np.ndarray) and part.dtype != object
        found.update(repr((part.shape, part.dtype) if plain else part).encode())
        found.update(np.ascontiguousarray(part).tobytes() if plain else b"")
    return found.hexdigest()


RNG = np.random.default_rng(0)
IMAGES = RNG.random((24, 12, 12, 1), dtype="float32")
VECTORS = RNG.random((40, 6), dtype="float32")


def embedder(value=0.0):
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((12, 12, 1)), *layers])
    model.compile(run_eagerly=True)
    layers[1].bias.assign(np.full(3, value, "float32"))
    return model


def _save_index(path, value, kind="exact"):
    from kerasim.neighbors import NeighborIndex

    NeighborIndex("euclidean", kind=kind, m=4).fit(VECTORS + value).save(path, replace=True)


def _load_index(path):
    from kerasim.neighbors import NeighborIndex

    index = NeighborIndex.load(path)
    found = index.query(VECTORS[:3], 5)
    value = float(np.rint(index.embeddings[0, 0] - VECTORS[0, 0]))
    return value, digest(index.embeddings, *found, index.get_params(), index.recall_)


def _save_projection(path, value):
    from kerasim.neighbors import NeighborIndex
    from kerasim.projection import Projection

    projection = Projection(n_neighbors=4)  # without UMAP, which takes seconds to be compiled
    projection._index, projection.trustworthiness_ = NeighborIndex("euclidean").fit(VECTORS), value
    projection.coordinates_ = VECTORS[:, :2] + np.float32(value)
    projection.save(path, replace=True)


def _load_projection(path):
    from kerasim.projection import Projection

    projection = Projection.load(path)
    value = float(np.rint(projection.coordinates_[0, 0] - VECTORS[0, 0]))
    assert value == projection.trustworthiness_, "torn"
    return value, digest(projection.coordinates_, projection.transform(VECTORS[:3] + 0.1))


_galleries: dict = {}


def _save_gallery(path, value):
    from kerasim.gallery import Gallery, _Calibration

    if path not in _galleries:
        _galleries[path] = Gallery(embedder(), "euclidean")
        _galleries[path].add(IMAGES[:5], [""] * 5)
    gallery = _galleries[path]
    gallery._calibration = _Calibration(value, np.array([0.0, 1.0]), np.array([1, 0]))
    gallery._assign(gallery._items.changed(range(5), label=[str(value)] * 5))
    gallery.save(path, replace=True)


def _load_gallery(path):
    from kerasim.gallery import Gallery

    gallery = Gallery.load(path)
    assert set(gallery.items["label"]) == {str(gallery.threshold)}, "torn"
    found = gallery.index.query(gallery.index.embeddings[:2], 3)
    made = _model_identity.fingerprint(gallery.embedder), gallery.items.to_csv(), gallery.settings
    return float(gallery.threshold), digest(*found, *made, gallery.index.embeddings)


def _save_export(path, value):
    from kerasim.export import export_saved_model

    export_saved_model(embedder(value), path, replace=True)


def _load_export(path):
    from kerasim.export import load_saved_model

    loaded = load_saved_model(path)
    return float(loaded(np.zeros((1, 12, 12, 1)))[0, 0]), digest(loaded(IMAGES[:2]))


def _save_state(path, value):
    arrays = {f"model/{n}": np.full((40, 40), value + n, "float32") for n in range(3)}
    fill = lambda folder: np.savez(folder / "arrays.npz", **arrays)  # noqa: E731 (as training does)
    info = {"settings": {}, "history": [value], "stopped": False, "states": {}}
    _artifacts.write(path, "training_state", fill, info)


def _load_state(path):
    from kerasim import training

    arrays, info = _artifacts.read(path, "training_state", training._load)
    assert float(arrays["model/0"][0, 0]) == info["history"][0], "torn"
    return float(info["history"][0]), digest(sorted(arrays), *arrays.values(), info)


def _save_file(path, value):
    _artifacts.write_file(path, f"{value}\n".encode() * 20_000)


def _load_file(path):
    lines = path.read_text().splitlines()
    assert len(lines) == 20_000 and len(set(lines)) == 1, "torn"
    return float(lines[0]), digest(lines[0])


def _load_arrays(path):
    arrays = _artifacts.read_arrays(path, ("x", "y"))
    return 0.0, digest(*arrays.values())


def _load_embedder(path):

    return 0.0, _model_identity.fingerprint(embedding.load_embedder(path))


ARTEFACTS = {
    "index": (_save_index, _load_index),
    "graph": (lambda path, value: _save_index(path, value, "hnsw"), _load_index),
    "projection": (_save_projection, _load_projection),
    "gallery": (_save_gallery, _load_gallery),
    "SavedModel": (_save_export, _load_export),
    "state": (_save_state, _load_state),
    "file": (_save_file, _load_file),
}
LOOSE = {  # files without a manifest, which a user may have from anywhere
    "npz": (lambda path, _: np.savez(path, x=np.arange(50), y=VECTORS), _load_arrays),
    "keras": (lambda path, _: embedder().save(path), _load_embedder),
}


def contents(folder):
    """Returns every file below `folder` with its bytes, but for locks."""
    files = sorted(file for file in Path(folder).rglob("*") if not file.is_dir())
    return {file: file.read_bytes() for file in files if file.suffix != ".lock"}


# G2: killed while it saves


def _save_on(kind, path, value, send):
    while True:
        send(value)
        value += 1
        ARTEFACTS[kind][0](path, float(value))


def killed_saves(times=200, kinds=tuple(ARTEFACTS)):
    """Kills writers at random moments; each artifact must then be the old or the new one, whole."""
    wrong, midway = [], 0
    for kind in kinds:
        rng = random.Random(kind)
        with tempfile.TemporaryDirectory() as folder:
            path, told, span = Path(folder, "it"), 0, None
            while span is None:  # how long a first save takes
                with child(_save_on, kind, path, 0) as (process, messages):
                    messages.recv()
                    start = time.perf_counter()
                    told = messages.recv()
                    span = time.perf_counter() - start
                    process.kill()
                    told = _drain(messages, told)  # it went on saving meanwhile
            for n in range(times):
                with child(_save_on, kind, path, told) as (process, messages):
                    messages.recv()
                    time.sleep(rng.uniform(0, 1.2 * span))
                    process.kill()
                    told = _drain(messages, told)
                midway += any(name.endswith(".tmp") for name in os.listdir(folder))
                try:
                    value = ARTEFACTS[kind][1](path)[0]
                    if value not in (told, told + 1):
                        raise AssertionError(f"holds {value} after {told} was saved")
                    told = int(value)
                except Exception as error:
                    wrong.append(f"{kind}, kill {n}: {type(error).__name__}: {error}")
                    break
            else:
                ARTEFACTS[kind][0](path, float(told + 1))
                strays = [name for name in os.listdir(folder) if name != "it"]
                wrong += [f"{kind}: {strays} stay after the next save"] if strays else []
    kills = times * len(kinds)
    return f"{kills} kills, {midway} of them midway, {len(wrong)} lost or corrupt", wrong


def _drain(messages, found):
    with contextlib.suppress(EOFError):
        while True:
            found = messages.recv()
    if isinstance(found, tuple) and found[0] == "error":
        raise AssertionError(found[1])
    return found


# G3 and G13: killed while it trains; the same seed


def _compiled(name):
    """Returns a small compiled model of that name, and its batches."""
    import keras

    from kerasim import data, diffusion, losses, models

    keras.utils.set_random_seed(1)
    labels = np.arange(24) % 3
    common = {"seed": 2, "batch_size": 8}
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
    model = models.conv_embedder((12, 12, 1), 3, (4, 4), 1)
    model.compile("adam", losses.TripletLoss(metric="euclidean"))
    return model, data.BalancedBatches(
        IMAGES, labels, classes_per_batch=3, images_per_class=3, seed=2
    )


BUILDERS = ("autoencoder", "vae", "siamese", "unet", "embedder")


def _train(name, run_dir, epochs, send):
    import keras

    from kerasim import training

    model, batches = _compiled(name)

    def begin(epoch, logs):
        send(epoch)
        time.sleep(0.05)

    tell = keras.callbacks.LambdaCallback(on_epoch_begin=begin)
    training.fit(model, batches, epochs, run_dir, callbacks=[tell], verbose=0)


def _state(run_dir):
    """Returns the saved arrays of a run, and its history without the seconds."""
    from kerasim import training

    arrays, info = _artifacts.read(run_dir / "state", "training_state", training._load)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in info["history"]]
    return arrays, rows


def killed_runs(times=10, names=BUILDERS, epochs=40):
    """Kills training at random moments until it is through, and compares it with a straight run."""
    wrong, restarts = [], 0
    for name in names:
        rng = random.Random(name)
        with tempfile.TemporaryDirectory() as folder:
            straight, run = Path(folder, "straight"), Path(folder, "run")
            ask(_train, name, straight, epochs)
            done = 0
            while done < times:
                with child(_train, name, run, epochs) as (process, messages):
                    begun = messages.recv()
                    with contextlib.suppress(EOFError):
                        for _ in range(rng.randint(0, max(1, epochs // times // 2))):
                            begun = messages.recv()
                    time.sleep(rng.uniform(0, 0.15))
                    process.kill()
                    begun = _drain(messages, begun)
                if isinstance(begun, tuple):  # it was through before the kill: from the start
                    shutil.rmtree(run)
                    continue
                done += 1
                kept = len(_state(run)[1]) if _artifacts.exists(run / "state") else 0
                if kept < begun:
                    wrong.append(f"{name}, kill {done}: epoch {begun} had begun, {kept} are kept")
            restarts += done
            ask(_train, name, run, epochs)
            (arrays, rows), (wanted, straight_rows) = _state(run), _state(straight)
            differ = [key for key in wanted if not _same(arrays.get(key), wanted[key])]
            if differ or len(arrays) != len(wanted) or rows != straight_rows:
                wrong.append(f"{name}: {len(differ)} of {len(wanted)} arrays differ: {differ[:5]}")
    return f"{restarts} of {times * len(names)} restarts, {len(names)} builders, bit-equal", wrong


def _same(one, other):
    return one is not None and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def same_seeds(names=BUILDERS, runs=3, epochs=3):
    """Trains each builder several times with one seed; and looks at the order of its epochs."""
    wrong = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = set()
            for n in range(runs):
                ask(_train, name, Path(folder, str(n)), epochs)
                arrays, rows = _state(Path(folder, str(n)))
                found.add(digest(rows, *arrays.values()))
            orders = set(ask(_orders, name))
            if len(found) != 1:
                wrong.append(f"{name}: {len(found)} results of {runs} runs")
            if len(orders) != 3:
                wrong.append(f"{name}: {len(orders)} orders in 3 epochs")
    return f"{len(names)} builders x {runs} runs, {len(wrong)} differ", wrong


def _orders(name, send):
    import keras

    batches, found = _compiled(name)[1], []
    for epoch in range(3):
        batches.epoch = epoch
        leaves = keras.tree.flatten([batches[n] for n in range(len(batches))])
        found.append(digest(*map(np.asarray, leaves)))
    return found


# G4: mutants


FORMATS = {  # the artifact, and which of its files are changed
    "npy": ("index", "embeddings.npy"),
    "graph": ("graph", "links.npy"),
    "npz": ("projection", "arrays.npz"),
    "keras": ("gallery", "embedder.keras"),
    "items": ("gallery", "items.json"),
    "SavedModel": ("SavedModel", "**/*"),
    "state": ("state", "arrays.npz"),
    "manifest": ("index", "kerasim.json"),
    "npz alone": ("npz", None),
    "keras alone": ("keras", None),
}
FORGED = ("npy", "npz", "keras", "items", "state", "graph")
_DANGER = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"} | {
    *("pickle.find_class", "socket.connect", "shutil.rmtree")
}


def mutant(rng, whole):
    """Returns `whole` with a bit turned, the end cut off, or a run of bytes changed."""
    from test_artifacts import mutate

    way = rng.randrange(4)
    if way == 0 and whole:
        place = rng.randrange(len(whole))
        return whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
    if way == 1:
        return whole[: rng.randrange(len(whole) + 1)]
    return mutate(rng, whole)


def seal(path):
    """Makes the manifest of an artifact fit files that were changed: what a forger would do."""
    from test_artifacts import reseal

    names = json.loads((path / _artifacts.MANIFEST).read_text())["files"]
    reseal(path, files={name: _artifacts._describe(path / name) for name in names})


def _mutants(jobs, folder, send):
    dangers, watched = [], False
    # The one place in which a loader may remove what it wrote there itself.
    scratch = Path(folder, "scratch")
    scratch.mkdir()
    tempfile.tempdir = str(scratch)

    def audit(event, args):
        own = event == "shutil.rmtree" and scratch in Path(str(args[0])).resolve().parents
        if watched and event in _DANGER and not own:
            dangers.append((event, str(args)[:80]))

    sys.addaudithook(audit)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    made = {}
    for artefact in {FORMATS[name][0] for name, *_ in jobs}:
        made[artefact] = path = Path(folder, artefact, f"it.{artefact}")  # Keras looks at suffixes
        path.parent.mkdir()
        {**ARTEFACTS, **LOOSE}[artefact][0](path, 1.0)
        {**ARTEFACTS, **LOOSE}[artefact][1](path)
    size = (memory("VmSize") + 1000) * 2**20  # a refusal of the allocator, before the machine's
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for job, (name, first, stop, forged) in enumerate(jobs):
        artefact, pattern = FORMATS[name]
        path, load = made[artefact], {**ARTEFACTS, **LOOSE}[artefact][1]
        files = [path] if pattern is None else [f for f in path.glob(pattern) if f.is_file()]
        if pattern == "**/*":
            files.remove(path / _artifacts.MANIFEST)
        whole = {file: file.read_bytes() for file in sorted(files)}
        sealed = (path / _artifacts.MANIFEST).read_bytes() if forged else b""
        expected, wrong, refused = load(path), [], 0
        forget_peak()
        base = memory("VmRSS")
        for n in range(first, stop):
            send((job, n, None))
            rng = random.Random(f"{name}/{n}")
            file = rng.choice(list(whole))
            file.write_bytes(mutant(rng, whole[file]))
            if forged:
                seal(path)
            watched = True
            signal.alarm(10)
            try:
                if load(path) != expected and not forged:
                    wrong.append(f"{name} mutant {n}: read as something else, without a word")
            except KerasimError:
                refused += 1
            except BaseException as error:
                if not (forged and isinstance(error, AssertionError)):  # values of a forger's
                    wrong.append(f"{name} mutant {n}: {type(error).__name__}: {str(error)[:200]}")
            signal.alarm(0)
            watched = False
            file.write_bytes(whole[file])
            if forged:
                (path / _artifacts.MANIFEST).write_bytes(sealed)
        wrong += [f"{name}: {danger}" for danger in dangers]
        dangers.clear()
        peak = memory("VmHWM") - base
        if peak > 500:
            wrong.append(f"{name} mutants {first} to {stop}: {peak} MB over the baseline")
        send((job, stop, (refused, peak, [f"{text}{' (forged)' * forged}" for text in wrong])))


def mutants(count=10_000, names=tuple(FORMATS), forged=1_000, batch=2_500, together=1):
    """Reads mutants of every format: the same result, or an error of ours, and nothing else.

    Args:
        count: Mutants of each format, as they lie on a disk that damaged them.
        names: Of `FORMATS`.
        forged: And how many under a manifest that was made to fit: may read as something else.
        batch: Of one job.
        together: Jobs of one child.
    """
    wrong, read, refused, peak, took = [], 0, 0, 0, {}
    totals = [(name, count, False) for name in names]
    totals += [(name, forged, True) for name in names if name in FORGED and forged]
    jobs = [
        (name, first, min(total, first + batch), forge)
        for name, total, forge in totals
        for first in range(0, total, batch)
    ]
    while jobs:
        now, jobs = jobs[:together], jobs[together:]
        with tempfile.TemporaryDirectory() as folder:
            with child(_mutants, now, folder) as (process, messages):
                at, start = (0, now[0][1], None), time.perf_counter()
                with contextlib.suppress(EOFError):
                    while isinstance((message := messages.recv())[0], int):
                        at = message
                        if at[2]:
                            name, first, stop, _ = now[at[0]]
                            read, refused = read + stop - first, refused + at[2][0]
                            peak, wrong = max(peak, at[2][1]), wrong + at[2][2]
                            seconds, start = time.perf_counter() - start, time.perf_counter()
                            took[name] = round(took.get(name, 0) + seconds, 1)
                    if message[0] == "error":
                        raise AssertionError(message[1])
                    continue
                process.join(30)
        name, first, stop, forge = now[at[0]]
        wrong.append(f"{name} mutant {at[1]}{' (forged)' * forge}: exit {process.exitcode}")
        read += at[1] + 1 - first
        jobs = [(name, at[1] + 1, stop, forge)][: stop - at[1] - 1] + now[at[0] + 1 :] + jobs
        if len(wrong) > 50:
            break
    print(f"     seconds: {took}", flush=True)
    return f"{read} mutants, {refused} refused, {len(wrong)} wrong, peak + {peak} MB", wrong


# G5 and G6: hostile files, unsafe loaders


def hostile(lowest=False):
    """Opens files of every published shape of attack, on the Keras installed and the lowest."""
    wrong, reached = [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = {"installed Keras": str(ROOT)}
        if lowest:
            version = re.search(r'"keras>=([\d.]+)', (ROOT / "pyproject.toml").read_text())[1]
            wanted = f"keras=={version}.0"
            target = ["--target", folder, "--no-deps", "-q", wanted]
            done = subprocess.run([sys.executable, "-m", "pip", "install", *target])
            if done.returncode:
                reached.append(f"{wanted} skipped: it cannot be fetched")
            else:
                paths[wanted] = f"{folder}{os.pathsep}{ROOT}"
        for name, path in paths.items():
            passed, failed = run_tests(["tests/test_data_arrays.py", "-k", "hostile_file"], path)
            reached.append(f"{passed} of {passed + failed} on {name}")
            if failed or passed < 12:
                wrong.append(reached[-1])
    return ", ".join(reached), wrong


def run_tests(args, path=ROOT, cwd=ROOT):
    """Runs tests in a process of its own, and returns how many passed and failed."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        env = {**os.environ, "PYTHONPATH": str(path)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args]
        done = subprocess.run(
            [*command, f"--junitxml={report.name}"], cwd=cwd, env=env, capture_output=True
        )
        if done.returncode not in (0, 1):
            raise AssertionError(f"{args}: {done.stdout.decode()[-2000:]}{done.stderr.decode()}")
        suite = xml.etree.ElementTree.parse(report.name).getroot()[0]
        counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    return counts["tests"] - failed - counts["skipped"], failed


def unsafe_loaders():
    """Searches package and notebooks for what could run code that a file brings along."""
    import test_house

    sources = [*test_house.MODULES, *test_house.NOTEBOOKS]
    wrong = [
        f"{path.name}, {found}"
        for path in sources
        for found in test_house.unsafe(test_house.parse(path))
    ]
    return f"{len(wrong)} in {len(sources)} sources", wrong


# G7: bombs


def _bombs(folder, send):
    import zipfile

    import test_keras_files as made
    from test_images import png

    from kerasim.images import read_image

    def padded(files):
        files["config.json"] += b" " * 400_000_000

    def wide(files):
        files["config.json"] = files["config.json"].replace(b'"units": 3', b'"units": 1000000000')

    def header(file, count):
        fields = {"descr": "<f4", "fortran_order": False, "shape": (count, 6)}
        np.lib.format.write_array_header_1_0(file, fields)

    folder = Path(folder)
    zipped = made.rewrite(folder / "zip.keras", padded, zipfile.ZIP_DEFLATED)
    asking = made.rewrite(folder / "wide.keras", wide)
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            header(member, 70_000_000)
            for _ in range(400):
                member.write(bytes(2**20))
    _save_index(folder / "index", 0.0)
    with open(folder / "index" / "embeddings.npy", "wb") as file:
        header(file, 10**12 // 6)
        file.write(bytes(1000))
    seal(folder / "index")
    pictures = [folder / f"{side}.png" for side in (12_000, 20_000)]
    for path in pictures:
        side = int(path.stem)
        path.write_bytes(png(side, side, 1, 0, bytes((1 + (side + 7) // 8) * side)))
    good = made.rewrite(folder / "good.keras", lambda files: None)
    embedding.load_embedder(good)
    read_image(png(8, 8, 1, 0, bytes(16)))
    found = {}
    for path, read in [
        (zipped, embedding.load_embedder),
        (folder / "a.npz", _artifacts.read_arrays),
        (folder / "index", _load_index),
        (asking, embedding.load_embedder),
        *((path, read_image) for path in pictures),
    ]:
        forget_peak()
        base, start, said = memory("VmRSS"), time.perf_counter(), "was read"
        try:
            read(path)
        except KerasimError as error:
            said = "" if str(path) in str(error) else f"does not name it: {error}"
        except Exception as error:
            said = repr(error)
        found[path.name] = memory("VmHWM") - base, time.perf_counter() - start, said
    return found


def bombs():
    """Opens small files that claim to be huge."""
    with tempfile.TemporaryDirectory() as folder:
        found = ask(_bombs, folder)
    wrong = [
        f"{name}: {said}, {peak} MB, {seconds:.1f} s"
        for name, (peak, seconds, said) in found.items()
        if said or peak >= 200 or seconds >= 2
    ]
    peak, slowest = (max(of[n] for of in found.values()) for n in (0, 1))
    refused = len(found) - len(wrong)
    return f"{refused} of {len(found)} refused, + {peak} MB, {slowest:.1f} s", wrong


# G8: a folder of images of every kind


def _pictures(folder, send):
    import test_images as made
    from PIL import Image

    from kerasim import data, models, training
    from kerasim.errors import ImageError

    folder = Path(folder)
    good = [(name, content, expected) for name, content, expected in made.golden()][:16]
    for kind, orientation in (("PNG", 6), ("TIFF", 3)):
        turned = Image.fromarray(made.COLORS).transpose(made.TURNS[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = made.encode(turned, kind, exif=exif)
        good.append((f"{kind} turned", content, made.COLORS))
    picture = made.encode(Image.fromarray(made.COLORS), "JPEG")
    side = 12_000
    levels = made.encode(Image.fromarray(made.RAMP.astype("float32")), "TIFF")
    bad = {
        "cut.jpg": picture[:-200],
        "empty.png": b"",
        "page.jpg": b"<html>404</html>",
        "bomb.png": made.png(side, side, 1, 0, bytes((1 + (side + 7) // 8) * side)),
        "levels.tif": levels,
        "other.webp": b"RIFF\0\0\0\0WEBP",
    }
    for n, (_, content, _) in enumerate(good):
        (folder / f"{n:02}.png").write_bytes(content)
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    wrong = []
    try:
        data.image_folder(folder, (6, 8))
        wrong.append("the bad ones were not refused")
    except ImageError as error:
        wrong += [f"{name} is not named" for name in bad if name not in str(error)]
    images = data.image_folder(folder, (6, 8), on_error="skip")
    found = {file.name: image for file, image in zip(images.files, images[:], strict=True)}
    for n, (name, _, expected) in enumerate(good):
        image = found.get(f"{n:02}.png")
        if image is None or np.abs(image * 255 - expected).max() > 1.01:
            wrong.append(f"{name} is not as it should be")
    model = models.conv_autoencoder((6, 8, 3), 2, (4,), (4,))
    model.compile("adam", "mse")
    history = training.fit(model, data.ImageBatches(images), 1, folder / ".run", verbose=0)
    if not np.isfinite(history.loss.iloc[0]):
        wrong.append("the loss of the first epoch is not finite")
    return len(good) + len(bad), wrong


def pictures():
    """Opens, and trains on, a folder of images of every kind, some of which are damaged."""
    with tempfile.TemporaryDirectory() as folder:
        count, wrong = ask(_pictures, folder)
    return f"{count - len(wrong)} of {count} upright or named, training starts", wrong


# G9: neighbors


_ALL = """
import numpy as np
from kerasim.neighbors import NeighborIndex

x = np.random.default_rng(0).normal(size=({n}, 64)).astype("float32")
assert (NeighborIndex("euclidean").fit(x).query(x, 10)[1][:, 0] == np.arange(len(x))).all()
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def neighbours(cases=1000, rows=60_000):
    """Compares the index with a float64 oracle, and asks for all neighbors of all vectors."""
    from test_neighbors import disagreement, draw_case
    from threadpoolctl import threadpool_limits

    from kerasim.neighbors import METRICS

    wrong = []
    with threadpool_limits(1):
        for metric in METRICS:
            for seed in range(cases):
                said = disagreement(*draw_case(seed), metric)
                wrong += [f"{metric}, case {seed}: {said}"] if said else []
    reached = f"{3 * cases - len(wrong)} of {3 * cases} equal"
    if rows:
        code = [sys.executable, "-c", _ALL.format(n=rows)]
        peak = int(subprocess.run(code, cwd=ROOT, capture_output=True, check=True).stdout)
        reached += f", {rows} x {rows} within {peak} MB"
        wrong += [f"all against all took {peak} MB"] if peak >= 1000 else []
    return reached, wrong


# G10: a call to the system that fails


def _failing(kind, turns, folder, send):
    save, load = ARTEFACTS[kind]
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


def failing_calls(turns=range(1, 101), kinds=tuple(ARTEFACTS)):
    """Lets the n-th call that opens, makes, syncs, renames or writes fail in each writer."""
    total = failed = strays = 0
    wrong = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            found = ask(_failing, kind, list(turns), folder)
        total, failed, strays = total + found[0], failed + found[1], strays + found[2]
        wrong += found[3]
    return f"{total} tried, {failed} failed, {len(wrong)} wrong, {strays} strays", wrong


# G11: several at once


def _append(path, who, times, send):
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


def at_once(appends=200, reads=1000):
    """Two writers append to one gallery while it is read; another rewrites an index meanwhile."""
    from kerasim.gallery import Gallery

    wrong, done = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gallery")
        model = embedder()
        Gallery(model).save(path)
        with child(_append, path, "a", appends) as (one, first):
            with child(_append, path, "b", appends) as (other, second):
                sizes = [0]
                while one.is_alive() or other.is_alive():
                    try:
                        sizes.append(len(Gallery.load(path, model)))
                        done += 1
                    except Exception as error:
                        wrong.append(f"read {done}: {error!r}")
                ends = [last(first), last(second)]
        if sizes != sorted(sizes):
            wrong.append("pictures were lost on the way")
        wrong += [str(value) for what, value in ends if what != "result"]
        found = set(Gallery.load(path, model).items["label"])
        kept = len(found & {f"{who}-{n}" for who in "ab" for n in range(appends)})
        wrong += [f"{kept} of {2 * appends} appends are kept"] if kept < 2 * appends else []
        path, seen = Path(folder, "it"), [0.0]
        with child(_save_on, "index", path, 0) as (_, messages):
            messages.recv(), messages.recv()
            for n in range(max(reads // 2, reads - done)):
                while messages.poll():  # or the writer would wait
                    messages.recv()
                try:
                    seen.append(_load_index(path)[0])
                except Exception as error:
                    wrong.append(f"read {n} of an index: {error!r}")
        if seen != sorted(seen) or len(set(seen)) < 3:
            wrong.append("what was read does not grow")
    refused = sum(value for what, value in ends if what == "result")
    return (
        f"{kept} of {2 * appends} appends, {refused} refused and tried again, "
        f"{done + len(seen) - 1} reads, {len(wrong)} wrong"
    ), wrong


# G12: NaN


def _injections(folder, names, send):
    import test_training as made

    from kerasim import data

    def poisoned(value):
        images = made.IMAGES.copy()
        images[3, 1, 1, 0] = value
        return images

    class Later(made.Holey):
        def __getitem__(self, index):
            self.hole = np.nan if index == 2 else 0.5
            return super().__getitem__(index)

    class LaterInfinite(made.Holey):
        def __getitem__(self, index):
            self.hole = np.inf if self.epoch == 2 else 0.5
            return super().__getitem__(index)

    def at(epoch, do, end=False):
        return [made.Every(lambda e, model: do(model) if e == epoch else None, end)]

    def moment(model):
        model.optimizer.variables[3].assign(model.optimizer.variables[3] * np.nan)

    def rate(model):
        model.optimizer.learning_rate.assign(np.inf)

    def fit(run_dir, batches=None, loss="mse", callbacks=()):
        validation = data.ImageBatches(made.IMAGES, shuffle=False)
        model = made.build(loss=loss)
        made.fit(run_dir, 5, model, batches, validation_data=validation, callbacks=callbacks)

    cases = {
        "pixel": lambda at: fit(at, data.ImageBatches(poisoned(np.nan), batch_size=4)),
        "infinite pixel": lambda at: fit(at, data.ImageBatches(poisoned(np.inf), batch_size=4)),
        "target": lambda at: fit(at, data.ImageBatches(made.IMAGES, poisoned(np.nan), 4)),
        "first batch": lambda at: fit(at, made.Holey(made.IMAGES, batch_size=4)),
        "later batch": lambda at: fit(at, Later(made.IMAGES, batch_size=4)),
        "later epoch": lambda at: fit(at, LaterInfinite(made.IMAGES, batch_size=4)),
        "loss": lambda at: fit(at, loss=made.TurnsNaN()),
        "weights": lambda run: fit(run, callbacks=[made.Every(made.poison(4))]),
        "last step": lambda run: fit(run, callbacks=[made.Every(made.poison(1), end=True)]),
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


def injections(names=()):
    """Puts NaN into data, loss, weights, optimizer: an error, and the last state is finite."""
    with tempfile.TemporaryDirectory() as folder:
        count, wrong = ask(_injections, folder, names)
    return f"{count} injections, {len(wrong)} wrong", wrong


# G1 and G14: the fault table


def faults():
    """Runs the tests of the fault table, and takes the line that they print."""
    command = [sys.executable, "-m", "pytest", "tests", "-m", "fault", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = re.findall(r"^fault table: .*", done.stdout, re.M)
    wrong = [] if done.returncode == 0 and said else [done.stdout[-1500:]]
    return "; ".join(said) or "no line came", wrong


# G16: guards that are taken away


# Of each guard: its name, the module, and what must then fail, a goal above in its short form or
# tests; the text of the package; what stands there once the guard is gone.
_GUARDS = r"""
checksum | _artifacts.py | G4 names=npy,items forged=0
if found != expected:
if False:

manifest's digest | _artifacts.py | test_artifacts.py -k flipped_bit
if body.pop("manifest_sha256") != _digest(body):
if not body.pop("manifest_sha256"):

size of a manifest | _artifacts.py | test_artifacts.py -k huge_manifest
if len(raw) > _MANIFEST_BYTES:\n        raise ArtifactError
if False:\n        raise ArtifactError

files beside | _artifacts.py | test_artifacts.py -k does_not_name
if extra:
if False:

way out of the folder | _artifacts.py | test_artifacts.py -k outside_its_folder
if os.path.isabs(name) or ".." in Path(name).parts:
if False:

place beside | _artifacts.py | G2 kinds=index times=10
temporary.mkdir()
shutil.rmtree(path, ignore_errors=True); temporary = path; temporary.mkdir()

swap in one step | _artifacts.py | G11
_swap(temporary, path)\n    return path
shutil.rmtree(path, ignore_errors=True); shutil.copytree(temporary, path)\n    return path

replace | _artifacts.py | G10 kinds=file
temporary.write_bytes(content)\n        _sync(temporary)\n        os.replace(temporary, path)
path.write_bytes(content)

removal of temporaries | _artifacts.py | G10 kinds=index
finally:\n        _remove(temporary)
finally:\n        pass

sync | _artifacts.py | test_artifacts.py -k "unchanged or call_fails"
os.fsync(descriptor)
pass

lock | _artifacts.py | test_artifacts.py -k second_holder
fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
pass

lock of a gallery | gallery.py | G11
with _artifacts.lock(path.parent / f".{path.name}.lock", path):
if True:

version | _artifacts.py | G11
if version and version not in self._versions.get(path, ()):
if False:

read again | _artifacts.py | test_artifacts.py -k read_again
if _identity(path) != before:\n                continue
if False:\n                continue

fingerprint | _artifacts.py | test_neighbors.py -k of_one_embedder_is_refused
if fingerprint is not None and manifest.fingerprint != fingerprint:
if False:

writes that tell of a full disk | neighbors.py | G10 kinds=index
np.save(written, self
np.save(file, self

trust | export.py | test_export.py -k foreign_saved_model_is_refused
if trust and not (folder / _artifacts.MANIFEST).exists():
if not (folder / _artifacts.MANIFEST).exists():

claim of an archive | _checks.py | G7
if claimed > max(_ARCHIVE_BYTES, _ARCHIVE_EXPANSION * size):
if False:

claim of a graph | neighbors.py | test_neighbors.py -k does_not_fit_its_vectors
_check_links(links, index.m)
pass

weights declared | _keras_files.py | G7
if declared > held:
if False:

pixels | images.py | G7
if image.width * image.height > MAX_PIXELS:
if False:

safe mode | embedding.py | G6
return keras.saving.load_model(path, compile=False)
return keras.saving.load_model(path, compile=False, safe_mode=False)

width | _checks.py | test_projection.py -k another_width
or width not in (None, x.shape[1])
or False

zero vectors | _checks.py | test_neighbors.py -k zero_vectors_are_refused
if metric == "cosine":
if False:

NaN in vectors | _checks.py | test_neighbors.py -k not_finite
if x.dtype.kind == "f":
if False:

NaN in images | _image_checks.py | test_data_arrays.py -k not_finite
_checks.bad_rows(name, ~(np.isfinite(low) & np.isfinite(high)), "NaN or infinity")
pass

NaN in the loss | training.py | test_training.py -k turns_nan
if not np.isfinite(loss):
if False:

NaN in weights | training.py | G12 "names=last step"
if bad:
if False:

float64 | neighbors.py | test_neighbors.py -k oracle
last < limit
last < np.inf

generators in the state | training.py | G3
_named("model", self.of.variables)
_named("model", self.of.weights)

order by epoch | training.py | test_training.py -k the_order_differs
self.batches.epoch = epoch
self.batches.epoch = 0

settings of a run | training.py | test_training.py -k other_settings
if differences:
if False:
"""
GUARDS = {
    lines[0].split(" | ")[0]: (*lines[0].split(" | ")[1:], *lines[1:])
    for lines in (guard.strip().split("\n") for guard in _GUARDS.split("\n\n"))
}


def guards(names=tuple(GUARDS)):
    """Takes away one guard after the other, and sees that a test fails."""
    wrong = []
    for name in names:
        module, check, *texts = GUARDS[name]
        text, without = (line.replace("\\n", "\n") for line in texts)
        check = shlex.split(check)
        with tempfile.TemporaryDirectory() as folder:
            for part in ("kerasim", "tests", "notebooks", "pyproject.toml", "README.md"):
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, Path(folder, part))
            file = Path(folder, "kerasim", module)
            source = file.read_text()
            if source.count(text) != 1:
                raise AssertionError(
                    f"guard {name!r}: {text!r} is {source.count(text)} times there"
                )
            file.write_text(source.replace(text, without))
            if check[0].startswith("test_"):
                check[0] = f"tests/{check[0]}"
                passed, failed = run_tests(["-x", *check], folder, folder)
                noticed = failed > 0
                if not passed + failed:
                    raise AssertionError(f"guard {name!r}: {check} are no tests")
            else:
                env = {**os.environ, "PYTHONPATH": folder}
                command = [sys.executable, "-m", "tests.torture", "--short", *check]
                done = subprocess.run(command, cwd=folder, env=env, capture_output=True)
                if done.returncode not in (0, 1):
                    raise AssertionError(f"guard {name!r}: {done.stderr.decode()[-2000:]}")
                noticed = done.returncode == 1
            wrong += [] if noticed else [f"nothing fails without {name}: {check}"]
    return f"{len(names) - len(wrong)} of {len(names)} noticed", wrong


# The goals: what is asked, the function, and its sizes in the short form; None where `make test`
# runs the same elsewhere


GOALS = {
    "G1": ("fault table: all rows pass (and G14)", faults, None),
    "G2": ("kill -9 in mid-save, 7 x 200: none lost", killed_saves, {"times": 2}),
    "G3": (
        "kill -9 in training, 5 x 10: bit-equal",
        killed_runs,
        {"times": 1, "names": ("vae",), "epochs": 4},
    ),
    "G4": (
        "mutants, 10,000 a format: 0 wrong",
        mutants,
        {"count": 300, "forged": 20, "together": 99},
    ),
    "G5": ("12 hostile files refused, two versions", hostile, None),
    "G6": ("unsafe loaders: 0", unsafe_loaders, {}),
    "G7": ("6 bombs refused, < 200 MB, < 2 s", bombs, {}),
    "G8": ("24 pictures upright or named", pictures, {}),
    "G9": ("3,000 cases, 60k x 60k in 1 GB", neighbours, None),
    "G10": ("n-th call fails, 7 x 100: none lost", failing_calls, {"turns": range(1, 101, 11)}),
    "G11": ("2 x 200 appends, 1,000 reads: all", at_once, {"appends": 5, "reads": 60}),
    "G12": ("10 injections of NaN: error, finite", injections, {"names": ("loss", "last step")}),
    "G13": ("3 runs of a seed: equal", same_seeds, {"runs": 2, "names": ("vae",)}),
    "G16": ("each guard taken away is noticed", guards, {"names": ("fingerprint",)}),
}
FULL = {"G5": {"lowest": True}}


def main(args) -> int:
    short = "--short" in args
    goals = [name for name in args if name != "--short" and "=" not in name] or list(GOALS)
    given = dict(arg.split("=") for arg in args if "=" in arg)
    given = {k: int(v) if v.isdigit() else tuple(v.split(",")) for k, v in given.items()}
    missed, broken = [], []
    for name in goals:
        asked, function, sizes = GOALS[name]
        if short and sizes is None:
            continue
        start = time.perf_counter()
        try:
            reached, wrong = function(**{**(sizes if short else FULL.get(name, {})), **given})
        except Exception:  # no goal that is missed, but one that could not be tried
            traceback.print_exc()
            broken.append(name)
            continue
        seconds = time.perf_counter() - start
        print(f"{name:4} {asked:42} | {reached} | {seconds:.0f} s", flush=True)
        for text in wrong[:20]:
            print(f"     {text}", flush=True)
        missed += [name] if wrong else []
    for what, some in (("missed", missed), ("broken", broken)):
        print(f"{what}: {', '.join(some)}" if some else f"{what}: none")
    return 2 if broken else 1 if missed else 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torture  # so that what children are handed has a name that they know

    sys.exit(torture.main(sys.argv[1:]))
