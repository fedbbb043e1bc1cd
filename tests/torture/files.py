"""Files: damaged and forged ones, decompression bombs, and images of every kind."""

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kerasim import _artifacts, embedding
from kerasim.errors import KerasimError
from tests.helpers.damaged_artifacts import mutate
from tests.torture.artifact_kinds import (
    ARTIFACTS,
    FILES_WITHOUT_MANIFEST,
    load_index,
    save_index,
    seal,
)
from tests.torture.children import (
    ROOT,
    Watch,
    memory_mb,
    reset_peak_memory,
    run_child,
    run_tests,
    start_child,
)

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
HOSTILE = (  # the tests that open them
    "test_keras_files.py",
    "hostile_file or because_a_file_says_so or not_stored_in_the_file or would_run_or_build",
)


def mutant(rng, whole):
    """Returns `whole` with a bit turned, the end cut off, or a run of bytes changed."""
    way = rng.randrange(4)
    if way == 0 and whole:
        place = rng.randrange(len(whole))
        return whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
    if way == 1:
        return whole[: rng.randrange(len(whole) + 1)]
    return mutate(rng, whole)


def _read_mutants(jobs, folder, send):
    scratch = Path(folder, "scratch")
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    watch = Watch(scratch)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    made = {}
    for artifact in {FORMATS[name][0] for name, *_ in jobs}:
        made[artifact] = path = Path(folder, artifact, f"it.{artifact}")  # Keras looks at suffixes
        path.parent.mkdir()
        {**ARTIFACTS, **FILES_WITHOUT_MANIFEST}[artifact][0](path, 1.0)
        {**ARTIFACTS, **FILES_WITHOUT_MANIFEST}[artifact][1](path)
    size = (memory_mb("VmSize") + 1000) * 2**20  # a refusal of the allocator, before the machine's
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for job, (name, first, stop, forged) in enumerate(jobs):
        artifact, pattern = FORMATS[name]
        path, load = made[artifact], {**ARTIFACTS, **FILES_WITHOUT_MANIFEST}[artifact][1]
        files = [path] if pattern is None else [f for f in path.glob(pattern) if f.is_file()]
        if pattern == "**/*":
            files.remove(path / _artifacts.MANIFEST)
        whole = {file: file.read_bytes() for file in sorted(files)}
        sealed = (path / _artifacts.MANIFEST).read_bytes() if forged else b""
        expected, wrong, refused = load(path), [], 0
        reset_peak_memory()
        base = memory_mb("VmRSS")
        for n in range(first, stop):
            send((job, n, None))
            rng = random.Random(f"{name}/{n}")
            file = rng.choice(list(whole))
            file.write_bytes(mutant(rng, whole[file]))
            if forged:
                seal(path)
            watch.on = True
            signal.alarm(10)
            try:
                if load(path) != expected and not forged:
                    wrong.append(f"{name} mutant {n}: read as something else, without an error")
            except KerasimError:
                refused += 1
            except BaseException as error:
                if not (forged and isinstance(error, AssertionError)):  # values of a forger's
                    wrong.append(f"{name} mutant {n}: {type(error).__name__}: {str(error)[:200]}")
            signal.alarm(0)
            watch.on = False
            file.write_bytes(whole[file])
            if forged:
                (path / _artifacts.MANIFEST).write_bytes(sealed)
        wrong += [f"{name}: {danger}" for danger in watch.found]
        watch.found.clear()
        peak = memory_mb("VmHWM") - base
        if peak > 500:
            wrong.append(f"{name} mutants {first} to {stop}: {peak} MB over the baseline")
        send((job, stop, (refused, peak, [f"{text}{' (forged)' * forged}" for text in wrong])))


def mutants(count=10_000, names=tuple(FORMATS), forged=1_000, batch=2_500, together=1):
    """Reads mutants of every format: each gives the same result or a kerasim error.

    Args:
        count: Mutants of each format, whose manifest does not fit.
        names: Formats, of `FORMATS`.
        forged: Mutants under a manifest that was made to fit; they may read as something else.
        batch: Mutants of one job.
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
            with start_child(_read_mutants, now, folder) as (process, messages):
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


def hostile_files(lowest=False):
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
            passed, failed = run_tests([f"tests/{HOSTILE[0]}", "-k", HOSTILE[1]], path)
            reached.append(f"{passed} of {passed + failed} on {name}")
            if failed or passed < 60:
                wrong.append(reached[-1])
    return ", ".join(reached), wrong


def unsafe_loaders():
    """Searches package and notebooks for what could run code that a file brings along."""
    from tests.helpers import sources as code

    sources = [*code.MODULES, *code.NOTEBOOKS]
    wrong = [f"{path.name}, {found}" for path in sources for found in code.unsafe(code.parse(path))]
    return f"{len(wrong)} in {len(sources)} sources", wrong


def _open_bombs(folder, send):
    import zipfile

    from kerasim.images import read_image
    from tests.helpers import keras_files as made
    from tests.helpers.image_files import png

    def padded(files):
        files["config.json"] += b" " * 400_000_000

    def wide(files):
        files["config.json"] = files["config.json"].replace(b'"units": 3', b'"units": 1000000000')

    def header(file, count):
        fields = {"descr": "<f4", "fortran_order": False, "shape": (count, 6)}
        np.lib.format.write_array_header_1_0(file, fields)

    folder = Path(folder)
    zipped = made.save_changed_model(folder / "zip.keras", padded, zipfile.ZIP_DEFLATED)
    asking = made.save_changed_model(folder / "wide.keras", wide)
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            header(member, 70_000_000)
            for _ in range(400):
                member.write(bytes(2**20))
    save_index(folder / "index", 0.0)
    with open(folder / "index" / "embeddings.npy", "wb") as file:
        header(file, 10**12 // 6)
        file.write(bytes(1000))
    seal(folder / "index")
    images = [folder / f"{side}.png" for side in (12_000, 20_000)]
    for path in images:
        side = int(path.stem)
        path.write_bytes(png(side, side, 1, 0, bytes((1 + (side + 7) // 8) * side)))
    good = made.save_changed_model(folder / "good.keras", lambda files: None)
    embedding.load_embedder(good)
    read_image(png(8, 8, 1, 0, bytes(16)))
    found = {}
    for path, read in [
        (zipped, embedding.load_embedder),
        (folder / "a.npz", _artifacts.read_arrays),
        (folder / "index", load_index),
        (asking, embedding.load_embedder),
        *((path, read_image) for path in images),
    ]:
        reset_peak_memory()
        base, start, said = memory_mb("VmRSS"), time.perf_counter(), "was read"
        try:
            read(path)
        except KerasimError as error:
            said = "" if str(path) in str(error) else f"does not name it: {error}"
        except Exception as error:
            said = repr(error)
        found[path.name] = memory_mb("VmHWM") - base, time.perf_counter() - start, said
    return found


def bombs():
    """Opens small files that claim to be huge."""
    with tempfile.TemporaryDirectory() as folder:
        found = run_child(_open_bombs, folder)
    wrong = [
        f"{name}: {said}, {peak} MB, {seconds:.1f} s"
        for name, (peak, seconds, said) in found.items()
        if said or peak >= 200 or seconds >= 2
    ]
    peak, slowest = (max(of[n] for of in found.values()) for n in (0, 1))
    refused = len(found) - len(wrong)
    return f"{refused} of {len(found)} refused, + {peak} MB, {slowest:.1f} s", wrong


def _read_images(folder, send):
    from PIL import Image

    from kerasim import data, models, training
    from kerasim.errors import ImageError
    from tests.helpers import image_files as made

    folder = Path(folder)
    good = [(name, content, expected) for name, content, expected in made.reference_images()][:16]
    for kind, orientation in (("PNG", 6), ("TIFF", 3)):
        turned = Image.fromarray(made.COLORS).transpose(made.TRANSPOSED[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = made.encode(turned, kind, exif=exif)
        good.append((f"{kind} turned", content, made.COLORS))
    jpeg = made.encode(Image.fromarray(made.COLORS), "JPEG")
    side = 12_000
    levels = made.encode(Image.fromarray(made.RAMP.astype("float32")), "TIFF")
    bad = {
        "cut.jpg": jpeg[:-200],
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
        wrong.append("the damaged images were not refused")
    except ImageError as error:
        wrong += [f"{name} is not named" for name in bad if name not in str(error)]
    images = data.image_folder(folder, (6, 8), on_error="skip")
    found = {file.name: image for file, image in zip(images.files, images[:], strict=True)}
    for n, (name, _, expected) in enumerate(good):
        image = found.get(f"{n:02}.png")
        if image is None or np.abs(image * 255 - expected).max() > 1.01:
            wrong.append(f"{name} has other pixels than expected")
    model = models.conv_autoencoder((6, 8, 3), 2, (4,), (4,))
    model.compile("adam", "mse")
    history = training.fit(model, data.ImageBatches(images), 1, folder / ".run", verbose=0)
    if not np.isfinite(history.loss.iloc[0]):
        wrong.append("the loss of the first epoch is not finite")
    return len(good) + len(bad), wrong


def images_of_every_kind():
    """Opens, and trains on, a folder of images of every kind, some of which are damaged."""
    with tempfile.TemporaryDirectory() as folder:
        count, wrong = run_child(_read_images, folder)
    return f"{count - len(wrong)} of {count} upright or named, training starts", wrong
