"""The only code that writes or trusts files.

A saved thing is a folder with a manifest, `kerasim.json`, that names each of its files with
size and SHA-256. It is written beside its place, synced to disk and swapped in whole, so that
a crash leaves the old one or the new one; it is checked against its manifest before anything
in it is used.

The states of training runs, indexes, maps, galleries, exports and cached embeddings are all written
by `write` and read by `read`. What is read cannot run code: arrays are read without pickle, models
with Keras' `safe_mode`, and a SavedModel, which is a program, only with a manifest or on the
caller's word. A manifest tells of damage and of foreign files, not of malice: who can write to the
folder can write a manifest, too. The fingerprint of an embedder goes with the vectors that it made,
so that those of another model can be refused.
"""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kerasim import __version__, checks
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, KerasimError

SCHEMA = 1
MANIFEST = "kerasim.json"
_MANIFEST_BYTES = 16 * 2**20
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:32]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an artefact says of itself.

    Attributes:
        kind: What was saved, such as "neighbor_index".
        files: Name to `{"size": bytes, "sha256": hex}` for each file of the folder.
        info: What the saved thing needs beside its files; JSON values.
        fingerprint: That of the embedder whose vectors it holds, or None.
        versions: Of kerasim, Keras, NumPy and Python when it was written.
        schema: Layout of the folder.
    """

    kind: str
    files: dict
    info: dict
    fingerprint: str | None
    versions: dict
    schema: int = SCHEMA


def write(path, kind: str, fill: Callable[[Path], object], info=None, fingerprint=None) -> Path:
    """Writes an artefact whole or not at all.

    Args:
        path: Folder to write. One of the same kind is replaced; any other folder is refused.
        kind: What is saved.
        fill: Called with an empty folder, beside `path`, in which it puts the files.
        info: JSON values kept in the manifest.
        fingerprint: That of the embedder whose vectors are saved.

    Returns:
        The absolute path.

    Raises:
        ArtifactError: If the folder holds something else, or cannot be written. What stood
            there before is unchanged.
    """
    path = place(path)
    with _beside(path) as temporary:
        _recover(path, kind)
        check_replaceable(path, kind)
        temporary.mkdir()
        fill(temporary)
        files = {name: _describe(temporary / name) for name in _names(temporary)}
        manifest = Manifest(kind, files, info or {}, fingerprint, _versions())
        (temporary / MANIFEST).write_bytes(_encode(manifest))
        for each in (*temporary.rglob("*"), temporary):
            _sync(each)
        _swap(temporary, path)
    return path


def write_file(path, content: bytes) -> Path:
    """Writes a single file whole or not at all: a table, a page, a figure.

    Args:
        path: The file; what stands there is replaced.
        content: All of it.

    Returns:
        The absolute path.

    Raises:
        ArtifactError: If it cannot be written. What stood there before is unchanged.
    """
    path = place(path)
    with _beside(path) as temporary:
        temporary.write_bytes(content)
        _sync(temporary)
        os.replace(temporary, path)
    return path


def read(path, kind: str, load: Callable[[Path, Manifest], Any], fingerprint=None) -> Any:
    """Checks an artefact against its manifest, then loads it.

    Args:
        path: Folder that `write` made.
        kind: What it must hold.
        load: Called with the folder and its manifest once every file has been checked.
        fingerprint: If given, that of the embedder that the artefact must belong to.

    Returns:
        What `load` returns. A folder replaced meanwhile is read again, never half and half.

    Raises:
        ArtifactError: If it is missing, damaged, of another kind, version or embedder.
    """
    path = place(path)
    for _ in range(20):
        before, manifest = _standing(path), None
        try:
            folder = find(path)
            manifest = _check(folder, kind, fingerprint)
            result = load(folder, manifest)
            if _standing(path) == before:
                return result
        except Exception as error:
            if _standing(path) != before:
                continue
            if isinstance(error, ArtifactError):
                raise
            if manifest is None:
                message = f"Cannot read {path}: {error}. Check its permissions and its disk."
                raise ArtifactError(message) from error
            versions = ", ".join(f"{name} {of}" for name, of in manifest.versions.items())
            what = f"{path} matches its manifest but cannot be loaded as {kind}: {error}"
            mend = f"It was written by {versions}: use those versions or save it again."
            raise ArtifactError(f"{what}. {mend}") from error
    raise ArtifactError(f"{path} was replaced 20 times in one reading: stop the writer and retry.")


def exists(path) -> bool:
    """Says whether something is saved at `path`, or was set aside by a writer that died there."""
    return find(place(path)).exists()


def read_arrays(path, keys=None) -> dict[str, np.ndarray]:
    """Reads arrays from an `.npz` file, each wanted one at once and never unpickled.

    Args:
        path: The file.
        keys: Names of the arrays, or None for all.

    Returns:
        The arrays by name.

    Raises:
        ArtifactError: If the file is missing or damaged, a key is missing or holds objects,
            or the file claims over 256 MB at more than 100 times its own size.
    """
    path, key = check_file(path), None
    try:
        checks.archive(path)
        arrays = {}
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files if keys is None else keys:
                arrays[key] = stored[key]
                if not isinstance(arrays[key], np.ndarray):  # NumPy hands out other members raw
                    raise ValueError("no array")
        return arrays
    except ArtifactError:
        raise
    except KeyError as error:
        message = f"{path} has no array {key!r}: expected {keys}. Check that it is the right file."
        raise ArtifactError(message) from error
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on damaged files
        at = f", array {key!r}," if key else ""
        what = f"{path}{at} is damaged or holds objects ({type(error).__name__}: {error})"
        raise ArtifactError(f"{what}: fetch or save it again as plain arrays.") from error


def fingerprint(model) -> str:
    """Returns a digest of the layers, settings and weights of a `model`: 64 hexadecimal digits.

    Two models with the same fingerprint give the same embeddings; preprocessing counts, for
    it happens inside. It survives saving and loading.

    Raises:
        ArgumentTypeError: If it is no `keras.Model`.
    """
    checks.like("embedder", model, "to_json", "a keras.Model")
    digest = hashlib.sha256(json.dumps(architecture(model), sort_keys=True).encode())
    for weight in model.weights:
        digest.update(f"{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()


def architecture(model) -> dict:
    """Returns the config of a `model` with its layers' names replaced by their order.

    Keras counts unnamed layers up through a process: `dense_4` may be `dense` in the next.
    """

    def strings(node):
        """Yields each string below `node`, with the dict or list that holds it and its key."""
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, str):
                yield node, key, value
            elif isinstance(value, (dict, list)):
                yield from strings(value)

    config = json.loads(model.to_json())["config"]
    found = list(strings(config))
    names = dict.fromkeys(value for _, key, value in found if key == "name")
    numbers = {name: f"#{n}" for n, name in enumerate(names)}
    for holder, key, value in found:
        holder[key] = numbers.get(value, value)
    return config


@contextlib.contextmanager
def lock(path, of=None):
    """Holds the file `path` as a lock while the block runs; the system frees a dead holder's.

    Args:
        path: The file.
        of: What it locks, for the message; None for the folder that it lies in.

    Raises:
        ArtifactError: If another process, named in the message, holds it.
    """
    path = check_path("path", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _write_error(path, path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 20).decode(errors="replace") or "unknown"
            held = f"{of or path.parent} is in use by process {holder}"
            raise ArtifactError(f"{held}: wait, stop it, or choose another folder.") from error
        with contextlib.suppress(OSError):  # of a full disk: the number is for the message alone
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_path(name: str, path) -> Path:
    """Returns `path` absolute, else raises for `name`.

    Raises:
        ArgumentTypeError: If it is neither text nor a `pathlib.Path`.
        ArgumentError: If it is empty.
    """
    checks.kind(name, path, (str, os.PathLike), "pass a path, a string or pathlib.Path")
    if not os.fspath(path) or "\0" in str(path):
        raise ArgumentError(f"{name}={path!r} is not a path: pass the name of a file or folder.")
    return Path(os.path.abspath(path))


def check_file(path) -> Path:
    """Returns `path` absolute if it is a regular file that can be opened.

    Raises:
        ArtifactError: If it is not.
    """
    path = check_path("path", path)
    checks.regular_file(path, ArtifactError)
    return path


def _check(folder: Path, kind: str, fingerprint: str | None) -> Manifest:
    manifest = _manifest(folder, kind)
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        came = f"fingerprint {str(manifest.fingerprint)[:12]}, expected {fingerprint[:12]}"
        mend = "embed the images again with this one, or pass the one it was made with"
        raise ArtifactError(f"{folder} was made with another embedder ({came}): {mend}.")
    for name, expected in manifest.files.items():
        found = _describe(folder / name, expected["size"])
        if found != expected:
            what = f"expected {expected['size']} bytes, found {found['size']}"
            if found["size"] == expected["size"]:
                what = "its SHA-256 is not the manifest's"
            raise ArtifactError(f"{folder / name} is damaged: {what}. Restore it or save it again.")
    return manifest


def _manifest(folder: Path, kind: str) -> Manifest:
    """Returns the manifest of a folder that holds a `kind` and no file beside those it names."""
    if not folder.exists():
        raise ArtifactError(f"There is no {kind} at {folder}: check the path or save one there.")
    path = folder / MANIFEST
    if not path.exists():
        mend = "kerasim did not write it, and will not trust it. Check the path"
        raise ArtifactError(f"{folder} has no {MANIFEST}, as that of a saved {kind} has: {mend}.")
    with open(check_file(path), "rb") as file:
        manifest = _decode(path, file.read(_MANIFEST_BYTES + 1))
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} holds a {manifest.kind}, not a {kind}: check the path.")
    extra = [name for name in _names(folder) if name not in manifest.files and name != MANIFEST]
    if extra:
        raise ArtifactError(f"{folder} holds files not in its manifest: {extra[:5]}. Move them.")
    return manifest


def _encode(manifest: Manifest) -> bytes:
    try:  # there and back, for the digest must be that of what a reader will see
        body = json.loads(json.dumps(dataclasses.asdict(manifest)))
    except (TypeError, ValueError) as error:
        mend = "turn arrays and NumPy numbers into plain ones"
        raise ArgumentTypeError(f"info must hold JSON values ({error}): {mend}.") from error
    raw = json.dumps({**body, "manifest_sha256": _digest(body)}, indent=1).encode()
    if len(raw) > _MANIFEST_BYTES:
        held = f"a manifest of {len(raw)} bytes, over {_MANIFEST_BYTES}"
        raise ArgumentError(f"info and file names make {held}: keep large values in a file.")
    return raw


def _decode(path: Path, raw: bytes) -> Manifest:
    mend = "restore the folder from a copy, or remove it and save again"
    if len(raw) > _MANIFEST_BYTES:
        raise ArtifactError(f"{path} is larger than {_MANIFEST_BYTES} bytes: {mend}.")
    try:
        body = json.loads(raw)
        if body.pop("manifest_sha256") != _digest(body):
            raise ValueError("its digest is not that of its content")
        if isinstance(body["schema"], int) and body["schema"] > SCHEMA:
            came = f"schema {body['schema']}, written by kerasim {body['versions']['kerasim']}"
            reads = f"kerasim {__version__} reads up to {SCHEMA}"
            raise ArtifactError(f"{path} has {came}; {reads}: upgrade kerasim.")
        manifest = Manifest(**body)
        if not _is_sound(manifest):
            raise ValueError("its fields are not those of a manifest")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {mend}.") from error
    for name in manifest.files:
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ArtifactError(f"{path} names {name!r}, outside its folder: {mend}.")
    return manifest


def _is_sound(manifest: Manifest) -> bool:
    kinds = {"kind": str, "info": dict, "versions": dict, "fingerprint": (str, type(None))}
    fields = all(isinstance(getattr(manifest, name), kind) for name, kind in kinds.items())
    entries = manifest.files.items()
    files = all(set(entry) == {"size", "sha256"} and "\0" not in name for name, entry in entries)
    return fields and files and manifest.schema == SCHEMA


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _describe(path: Path, size: int | None = None) -> dict:
    """Returns size and SHA-256 of a file; no SHA-256 if it is not `size` long."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{path} is not a regular file: put a copy in its place.")
        if size not in (None, found.st_size):
            return {"size": found.st_size}
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": found.st_size, "sha256": sha256}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path} is missing: restore it or save it again.") from error


def _names(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in ("keras", "numpy")}
    return {"kerasim": __version__, **libraries, "python": platform.python_version()}


def place(path) -> Path:
    """Returns where `path` is written: absolute, and behind a link the place it points to.

    Raises:
        ArgumentError: As `check_path`.
    """
    path = check_path("path", path)
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


@contextlib.contextmanager
def _beside(path: Path):
    """Gives a name beside `path` to write at, and removes what is left there at the end."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield temporary
        _settle(path)
    except OSError as error:
        raise _write_error(path, temporary, error) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # another writer may be sweeping, too
    with contextlib.suppress(OSError):
        path.unlink()


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def find(path: Path) -> Path:
    """Returns where what was saved at `path` stands: there, or aside if a writer died there."""
    return path if path.exists() or not _aside(path).exists() else _aside(path)


def _standing(path: Path) -> list:
    """Returns what tells the folders at `path` and aside from any that replace them."""
    found = []
    for folder in (path, _aside(path)):
        with contextlib.suppress(OSError):
            status = os.stat(folder)
            found.append((folder, status.st_ino, status.st_ctime_ns))
    return found


def _sweep(path: Path) -> None:
    """Removes what processes of this machine that died in mid-write left beside `path`."""
    stray = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_HOST)}\.(\d+)\.[0-9a-f]{{8}}\.tmp")
    for name in os.listdir(path.parent):
        if found := stray.fullmatch(name):
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                _remove(path.parent / name)
            except (PermissionError, OverflowError):
                pass  # alive, under another user


def _recover(path: Path, kind: str) -> None:
    """Puts back, or removes, what a writer that died in `_swap` had set aside."""
    aside = _aside(path)
    with contextlib.suppress(ArtifactError):  # not ours: let it stand
        check_replaceable(aside, kind)
        if aside.exists():
            stale = _temporary(path)
            os.rename(aside, stale if path.exists() else path)
            shutil.rmtree(stale, ignore_errors=True)


def check_replaceable(path: Path, kind: str) -> None:
    """Looks whether `write` may put a `kind` at `path`: if nothing is there, or one of its own.

    Raises:
        ArtifactError: If it may not.
    """
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty:
        _manifest(path, kind)


def _sync(path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(path: Path) -> None:
    """Lets the new name at `path` outlive a power cut."""
    try:
        _sync(path.parent)
    except OSError as error:
        what = f"{path} was written, but its folder cannot be synced to disk: {error.strerror}"
        mend = "A power cut may bring back the old one: check the disk and save it again"
        raise ArtifactError(f"{what}. {mend}.") from error


def _swap(new: Path, path: Path) -> None:
    """Puts the folder `new` at `path`; what stood there is then at `new`."""
    if not path.exists():
        os.rename(new, path)
    elif not _exchange(new, path):
        # Between these two calls readers find the old folder under its other name.
        aside = _aside(path)
        os.rename(path, aside)
        try:
            os.rename(new, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.rename(aside, path)
            raise
        with contextlib.suppress(OSError):  # if it stays, the next save removes it
            os.rename(aside, new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":  # pragma: no cover - macOS alone
        failed = libc.renamex_np(*names, 2)  # RENAME_SWAP
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(-100, names[0], -100, names[1], 2)  # AT_FDCWD, RENAME_EXCHANGE
    else:
        return False
    code = ctypes.get_errno()
    if failed and code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(other))
    return not failed


def _write_error(path: Path, temporary: Path, error: OSError) -> OSError:
    if isinstance(error, KerasimError):
        return error
    files = [file for file in (temporary, *temporary.rglob("*")) if file.is_file()]
    written = sum(file.stat().st_size for file in files)
    what = f"Cannot write {path}: {error.strerror or error} ({written} bytes written so far)"
    mend = "free space, check permissions or choose another folder"
    return ArtifactError(f"{what}. What stood there before is unchanged: {mend}.")
