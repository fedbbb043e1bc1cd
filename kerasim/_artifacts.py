"""Writes and reads everything that kerasim saves: other modules only fill the folder that they get.

Downloaded data sets are the exception; `data.fetch` writes them. An artifact is a folder with a
manifest, `kerasim.json`, that names each of its files with size and SHA-256. States of training
runs, indexes, maps, galleries, exports and cached embeddings are all written by `write` and read by
`read`.

How a save replaces an artifact. Three names take part: `path`, the temporary `.NAME.HEX.tmp` beside
it, and `.NAME.old`, which is used only where the system cannot exchange two names in one step:

                                       path    .NAME.HEX.tmp    .NAME.old
    before                             old     -                -
    1.  fill the temporary, sync       old     new, unfinished  -
    2.  exchange the two names         new     old              -
    3.  sync the parent folder         new     old              -
    4.  remove the temporary           new     -                -

    without an exchange, 2 is
    2a. rename path to .NAME.old       -       new              old
    2b. rename the temporary to path   new     -                old
    2c. rename .NAME.old to temporary  new     old              -

If there was an old artifact, then in each row either `path` or, in row 2a, `.NAME.old` holds a
complete artifact. Readers look in this order (`locate`), and read again if a folder was replaced
meanwhile. A process that is killed leaves the files as in one of the rows. The next save cleans up
first: it renames `.NAME.old` back if `path` is missing, otherwise removes it (`_recover`), and
removes each temporary whose writer is dead (`_remove_stale`). A writer holds a lock (`flock`) on
its temporary; the system releases the lock when the process ends, even if the process ran in
another container. A single file (`write_file`) is replaced by one rename, so that rows 2a to 2c do
not exist.

Loading cannot run code: arrays are read without pickle, models are checked against an allow-list
(`_keras_files`), and a SavedModel, which is a program, is loaded only with a manifest or if the
caller trusts it. A manifest detects damage and files that do not belong to the artifact, not
tampering: whoever can write to the folder can also write a manifest. The fingerprint of an embedder
is saved with its vectors, so that the vectors of another model are refused.
"""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from kerasim import __version__, _checks
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, KerasimError

SCHEMA = 1
MANIFEST = "kerasim.json"
_MANIFEST_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of an artifact, as its manifest holds it.

    Attributes:
        kind: What was saved, such as "neighbor_index".
        files: Name to `{"size": bytes, "sha256": hex}` for each file of the folder.
        info: Further JSON values that the saved object needs.
        fingerprint: Fingerprint of the embedder that made the saved vectors, or None.
        versions: Versions of kerasim, Keras, NumPy and Python when it was written.
        schema: Version of the layout of the folder.
    """

    kind: str
    files: dict
    info: dict
    fingerprint: str | None
    versions: dict
    schema: int = SCHEMA


def write(path, kind: str, fill: Callable[[Path], object], info=None, fingerprint=None) -> Path:
    """Writes an artifact, whole or not at all.

    An artifact that is replaced keeps its permissions, and its owner and group where the system
    allows it.

    Args:
        path: Folder to write. One of the same kind is replaced; any other folder is refused.
        kind: What is saved.
        fill: Called with an empty folder, beside `path`, in which it writes the files.
        info: JSON values kept in the manifest.
        fingerprint: Fingerprint of the embedder that made the saved vectors.

    Returns:
        The absolute path.

    Raises:
        ArtifactError: If the folder holds something else, or cannot be written. What was there
            before is unchanged.
    """
    path = resolve(path)
    with _temporary_sibling(path, is_folder=True) as temporary:
        _recover(path, kind)
        check_replaceable(path, kind)
        # guard: folder-beside
        fill(temporary)
        files = {name: _describe(temporary / name) for name in _names(temporary)}
        manifest = Manifest(kind, files, info or {}, fingerprint, _versions())
        (temporary / MANIFEST).write_bytes(_encode(manifest))
        _keep_permissions(temporary, path)
        for each in (*temporary.rglob("*"), temporary):
            _sync(each)
        # guard: swap
        _swap(temporary, path)
    return path


class Known:
    """The saved versions that one object has read or written: it may overwrite these alone."""

    def __init__(self):
        self._versions: dict[Path, set[str | None]] = {}

    def check(self, path, kind: str, replace: bool) -> None:
        """Refuses to overwrite an artifact at `path` that the object does not know.

        Args:
            path: The folder that is about to be written.
            kind: What is about to be written there.
            replace: True to overwrite any artifact of that kind.

        Raises:
            ArtifactError: If there is an artifact that is not known, or of another kind.
            ArgumentTypeError: If `replace` is not a flag.
        """
        path = resolve(path)
        if _checks.boolean("replace", replace):
            return
        version = version_of(path)
        # guard: known-version
        if version and version not in self._versions.get(path, ()):
            check_replaceable(locate(path), kind)
            raise ArtifactError(
                f"{path} holds an artifact that this object was not loaded from or saved to, or "
                "that another process saved since: load it and add to that, choose another path, "
                "or pass replace=True to overwrite it."
            )

    def note(self, path, folder=None) -> None:
        """Notes the version that was read or written.

        Args:
            path: The folder that the caller named.
            folder: Where a reader found it, if it is not `path`.
        """
        path = resolve(path)
        self._versions[path] = {version_of(path if folder is None else folder)}

    def expect(self, path, token: str) -> None:
        """Notes a version that is about to be written.

        Whatever interrupts the writer, the artifact that is there afterwards is known.

        Args:
            path: The folder.
            token: `info["token"]` of that version.
        """
        path = resolve(path)
        self._versions[path] = self._versions.get(path, set()) | {token}


def version_of(path: Path) -> str | None:
    """Returns what tells the artifact at `path` from another one; None if there is none.

    This is the token in its `info`, if it has one, else the digest of its manifest.

    Raises:
        ArtifactError: If the folder cannot be read.
    """
    try:
        content = (locate(path) / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _read_error(path, error) from error
    try:
        return json.loads(content)["info"]["token"]
    except (ValueError, KeyError, TypeError, RecursionError):  # no token, or damaged
        return hashlib.sha256(content).hexdigest()


def write_file(path, content: bytes) -> Path:
    """Writes a single file, such as a table or a page, whole or not at all.

    A file that is replaced keeps its permissions, and its owner and group where the system allows
    it.

    Args:
        path: The file. An earlier file there is replaced.
        content: The bytes of the file.

    Returns:
        The absolute path.

    Raises:
        ArtifactError: If it cannot be written. What was there before is unchanged.
    """
    path = resolve(path)
    with _temporary_sibling(path, is_folder=False) as temporary:
        # guard: file-beside
        temporary.write_bytes(content)
        _keep_permissions(temporary, path)
        _sync(temporary)
        os.replace(temporary, path)
    return path


def read(path, kind: str, load: Callable[[Path, Manifest], Any], fingerprint=None) -> Any:
    """Checks an artifact against its manifest, then loads it.

    Args:
        path: Folder that `write` made.
        kind: What it must hold.
        load: Called with the folder and its manifest once every file has been checked.
        fingerprint: If given, the fingerprint of the embedder that must have made it.

    Returns:
        What `load` returns. A folder that is replaced meanwhile is read again from the start.

    Raises:
        ArtifactError: If it is missing, damaged, of another kind, version or embedder.
    """
    path = resolve(path)
    for _ in range(20):
        before, manifest = _identity(path), None
        try:
            folder = locate(path)
            manifest = _check(folder, kind, fingerprint)
            result = load(folder, manifest)
            if _identity(path) == before:
                return result
        except Exception as error:
            # guard: read-again
            if _identity(path) != before:
                continue
            if isinstance(error, ArtifactError):
                raise
            if manifest is None:
                raise ArtifactError(
                    f"Cannot read {path}: {error}. Check its permissions and its disk."
                ) from error
            versions = ", ".join(f"{name} {which}" for name, which in manifest.versions.items())
            raise ArtifactError(
                f"{path} matches its manifest but cannot be loaded as {kind}: {error}. It was "
                f"written by {versions}. Use those versions, or save it again."
            ) from error
    raise ArtifactError(
        f"{path} was replaced 20 times while it was read. Stop the process that writes it, and "
        "load it again."
    )


def remove(path, kind: str) -> None:
    """Removes an artifact, and what a writer that died set aside.

    Args:
        path: Folder of the artifact; nothing happens if there is none.
        kind: What it must hold.

    Raises:
        ArtifactError: If the folder holds something else, or cannot be removed.
    """
    path = resolve(path)
    for folder in (path, _backup_path(path)):
        check_replaceable(folder, kind)
        if folder.exists():
            doomed = _temporary_name(path)
            try:
                os.rename(folder, doomed)  # in one step, so that no half of it is left
            except OSError as error:
                raise ArtifactError(
                    f"Cannot remove {folder}: {error.strerror}. Check the permissions of its "
                    "folder, or choose another one."
                ) from error
            _remove(doomed)


def exists(path) -> bool:
    """Returns whether something is saved at `path`, or was set aside by a writer that died there.

    Raises:
        ArtifactError: If the system does not let us look.
    """
    path = resolve(path)
    try:
        return locate(path).exists()
    except OSError as error:
        raise _read_error(path, error) from error


def read_arrays(path, keys=None) -> dict[str, np.ndarray]:
    """Reads arrays from an `.npz` file, without pickle.

    Args:
        path: The file.
        keys: Names of the arrays, or None for all.

    Returns:
        The arrays by name.

    Raises:
        ArtifactError: If the file is missing or damaged, a key is missing or holds objects, an
            array claims more or less than the file holds of it, or the file claims over 256 MB at
            more than 100 times its own size.
    """
    path, key = check_file(path), None
    try:
        _checks.no_zip_bomb(path)
        arrays = {}
        with zipfile.ZipFile(path) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist()]
            for key in names if keys is None else keys:
                member = archive.getinfo(
                    f"{key}.npy" if f"{key}.npy" in archive.NameToInfo else key
                )
                with archive.open(member) as stream:
                    _check_array_header(stream, member.file_size)
                    stream.seek(0)
                    arrays[key] = np.lib.format.read_array(stream, allow_pickle=False)
        return arrays
    except ArtifactError:
        raise
    except KeyError as error:
        raise ArtifactError(
            f"{path} has no array {key!r}, expected {keys}. Check that it is the right file."
        ) from error
    except Exception as error:  # zipfile, zlib and NumPy raise errors of many kinds
        raise _damaged_array(path, error, key) from error


def read_array(path, mapped: bool = False) -> np.ndarray:
    """Reads the array of an `.npy` file, without pickle.

    Args:
        path: The file.
        mapped: Whether the values stay on the disk until they are used.

    Returns:
        The array; a read-only `np.memmap` if `mapped`.

    Raises:
        ArtifactError: If the file is missing or damaged, holds objects, or claims more or less
            than it holds.
    """
    path = check_file(path)
    try:
        with open(path, "rb") as file:
            _check_array_header(file, path.stat().st_size)
            file.seek(0)
            if not mapped:
                return np.lib.format.read_array(file, allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises errors of many kinds
        raise _damaged_array(path, error) from error


@contextlib.contextmanager
def lock(path, locked=None) -> Iterator[None]:
    """Holds the file `path` as a lock while the block runs, and removes it afterwards.

    The system releases the lock of a process that dies. The file that is left then is taken over,
    and removed, by the next holder.

    Args:
        path: The file.
        locked: What it locks, for the message; None for the folder that contains the file.

    Raises:
        ArtifactError: If another process, named in the message, holds it, or it cannot be made.
    """
    path = check_path("path", path)
    made: list[Path] = []
    try:
        try:
            made = _make_parents(path.parent)
        except OSError as error:
            raise _write_error(path, None, error) from error
        # An interrupt at any line closes the file: otherwise this process would keep the lock.
        with _open_lock(path, locked or path.parent) as file, _removed_at_end(path, file):
            with contextlib.suppress(OSError):  # of a full disk: the number is for messages alone
                os.ftruncate(file.fileno(), 0)
                os.pwrite(file.fileno(), str(os.getpid()).encode(), 0)
            yield
    finally:
        _remove_if_empty(made)


def check_path(name: str, path) -> Path:
    """Returns `path` absolute, else raises for `name`.

    Raises:
        ArgumentTypeError: If it is neither text nor a `pathlib.Path`.
        ArgumentError: If it is empty.
    """
    _checks.instance(name, path, (str, os.PathLike), "pass a path, a string or pathlib.Path")
    text = os.fspath(path)
    if not text or "\0" in os.fsdecode(text):
        raise ArgumentError(f"{name}={path!r} is not a path. Pass the name of a file or folder.")
    return Path(os.path.abspath(os.fsdecode(text)))


def check_file(path) -> Path:
    """Returns `path` absolute if it is a regular file that can be opened.

    Raises:
        ArtifactError: If it is not.
    """
    path = check_path("path", path)
    _checks.regular_file(path, ArtifactError)
    return path


def _check(folder: Path, kind: str, fingerprint: str | None) -> Manifest:
    manifest = _manifest(folder, kind)
    # guard: fingerprint
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        raise ArtifactError(
            f"{folder} was made with another embedder: its fingerprint is "
            f"{str(manifest.fingerprint)[:12]}, expected {fingerprint[:12]}. Embed the images "
            "again with this embedder, or pass the original embedder."
        )
    for name, expected in manifest.files.items():
        found = _describe(folder / name, expected["size"])
        # guard: checksum
        if found != expected:
            what = f"expected {expected['size']} bytes, found {found['size']}"
            if found["size"] == expected["size"]:
                what = "its SHA-256 is not that of the manifest"
            raise ArtifactError(
                f"{folder / name} is damaged: {what}. Restore it from a copy, or save it again."
            )
    return manifest


def _manifest(folder: Path, kind: str) -> Manifest:
    """Returns the manifest of a folder that holds a `kind`, and no file that it does not name."""
    if not folder.exists():
        raise ArtifactError(f"There is no {kind} at {folder}. Check the path, or save one there.")
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise ArtifactError(
            f"{folder} has no {MANIFEST}, which every saved {kind} has, so kerasim did not write "
            "it and does not load it. Check the path."
        )
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link, not a file. Put a copy of the file in its place.")
    with open(check_file(path), "rb") as file:
        manifest = _decode(path, file.read(_MANIFEST_BYTES + 1))
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} holds a {manifest.kind}, not a {kind}. Check the path.")
    extra = [name for name in _names(folder) if name not in manifest.files and name != MANIFEST]
    # guard: unlisted-files
    if extra:
        raise ArtifactError(
            f"{folder} holds files that its manifest does not name: {extra[:5]}. Move them away."
        )
    return manifest


def _encode(manifest: Manifest) -> bytes:
    try:  # through JSON, because the digest must be that of what a reader will see
        body = json.loads(json.dumps(dataclasses.asdict(manifest)))
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"info must hold JSON values ({error}). Convert arrays to lists, and NumPy numbers to "
            "int or float."
        ) from error
    raw = json.dumps({**body, "manifest_sha256": _digest(body)}, indent=1).encode()
    if len(raw) > _MANIFEST_BYTES:
        raise ArgumentError(
            f"info and file names make a manifest of {len(raw)} bytes, over {_MANIFEST_BYTES}. "
            "Keep large values in a file."
        )
    return raw


def _decode(path: Path, raw: bytes) -> Manifest:
    advice = "Restore the folder from a copy, or remove it and save again."
    # guard: manifest-size
    if len(raw) > _MANIFEST_BYTES:
        raise ArtifactError(f"{path} is larger than {_MANIFEST_BYTES} bytes. {advice}")
    try:
        body = json.loads(raw)
        # guard: manifest-digest
        if body.pop("manifest_sha256") != _digest(body):
            raise ValueError("its digest is not that of its content")
        if isinstance(body["schema"], int) and body["schema"] > SCHEMA:
            raise ArtifactError(
                f"{path} has schema {body['schema']}, written by kerasim "
                f"{body['versions']['kerasim']}; kerasim {__version__} reads up to {SCHEMA}. "
                "Upgrade kerasim."
            )
        manifest = Manifest(**body)
        if not _is_sound(manifest):
            raise ValueError("its fields are not those of a manifest")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged. {advice}") from error
    for name in manifest.files:
        # guard: paths-inside
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ArtifactError(f"{path} names {name!r}, outside its folder. {advice}")
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
    """Returns size and SHA-256 of a file; no SHA-256 if it is not `size` long.

    A file with several names (hard links) is a file like any other: a save writes a new file, and
    leaves the one that the other names lead to as it is.
    """
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{path} is not a regular file. Put a copy in its place.")
        if size not in (None, found.st_size):
            return {"size": found.st_size}
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": found.st_size, "sha256": sha256}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path} is missing. Restore it, or save it again.") from error


def _names(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in ("keras", "numpy")}
    return {"kerasim": __version__, **libraries, "python": platform.python_version()}


def _check_array_header(stream: IO[bytes], size: int) -> None:
    """Raises a `ValueError` unless an array of `size` bytes, header included, claims that size."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"it is of format {version}, expected (1, 0) or (2, 0)")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    claimed = stream.tell() + math.prod(shape) * dtype.itemsize
    if claimed != size:
        raise ValueError(f"it claims {claimed} bytes and has {size}")


def _damaged_array(path: Path, error: Exception, key: str | None = None) -> ArtifactError:
    which = f", array {key!r}," if key else ""
    return ArtifactError(
        f"{path}{which} is damaged or holds objects ({type(error).__name__}: {error}). Download "
        "or save it again as plain arrays."
    )


def check_page(path) -> Path:
    """Returns the absolute path of an HTML page to write, which may replace another one.

    Raises:
        ArgumentError: As `check_path`, or if the name does not end in .html or .htm, so that it
            could be the name of an image or another file of the user.
    """
    page = check_path("path", path)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"path={str(path)!r} is not the name of a page: end it in .html.")
    return page


def resolve(path) -> Path:
    """Returns where `path` is written: absolute, and for a link the place that it points to.

    Raises:
        ArgumentError: As `check_path`.
    """
    path = check_path("path", path)
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


@contextlib.contextmanager
def _temporary_sibling(path: Path, is_folder: bool) -> Iterator[Path]:
    """Yields a new folder or file beside `path`, and removes what is left there at the end."""
    made: list[Path] = []
    temporary = descriptor = None
    try:
        made = _make_parents(path.parent)
        _remove_stale(path)
        temporary, descriptor = _create_temporary(path, is_folder)
        yield temporary
        _sync_parent(path)
    except OSError as error:
        raise _write_error(path, temporary, error) from error
    finally:
        if temporary is not None:
            # guard: temporary-removed
            _remove(temporary)
        if descriptor is not None:
            os.close(descriptor)
        _remove_if_empty(made)


def _make_parents(folder: Path) -> list[Path]:
    """Makes a folder and its parents, so that they outlive a power cut; returns those it made."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    try:
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            _sync_folder(each.parent)
    except OSError:
        _remove_if_empty(missing)
        raise
    return missing


def _remove_if_empty(folders: list[Path]) -> None:
    for folder in folders:  # the deepest first
        with contextlib.suppress(OSError):
            folder.rmdir()


def _temporary_name(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"


def _create_temporary(path: Path, is_folder: bool) -> tuple[Path, int]:
    """Returns a new folder or file beside `path`, and a descriptor that holds a lock on it."""
    # What replaces something gets its permissions at the end, and is private until then.
    is_private = os.path.lexists(path)
    while True:
        temporary = _temporary_name(path)
        if is_folder:
            temporary.mkdir(0o700 if is_private else 0o777)
            flags = os.O_RDONLY
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            descriptor = os.open(temporary, flags, 0o600 if is_private else 0o666)
        except FileNotFoundError:
            if not is_folder:
                raise
            continue  # another save has swept it before it could be locked
        try:
            if _hold(descriptor, temporary):
                return temporary, descriptor
        except OSError:  # a file system without locks, on which nobody sweeps
            return temporary, descriptor
        os.close(descriptor)


def _hold(descriptor: int, path: Path) -> bool:
    """Locks an open file; returns whether it is held now, and still is the one at `path`.

    Raises:
        OSError: If the file system has no locks.
    """
    try:
        # guard: temporary-lock
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_at(descriptor, path)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _open_lock(path: Path, locked) -> io.FileIO:
    """Opens the file at `path`, made if it is missing, and locks it."""
    try:
        while True:
            file = open(path, "r+b", buffering=0, opener=_open_or_make)
            try:
                if _lock_file(file, path, locked):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # another process has removed this file as it released it
    except OSError as error:
        raise _write_error(path, None, error) from error


def _lock_file(file: io.FileIO, path: Path, locked) -> bool:
    """Locks an open file; returns whether it still is the one at `path`."""
    try:
        # guard: lock
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = file.read(20).decode(errors="replace") or "unknown"
        raise ArtifactError(
            f"{locked} is in use by process {holder}. Wait for it, stop it, or choose another "
            "folder."
        ) from error
    return _is_at(file.fileno(), path)


@contextlib.contextmanager
def _removed_at_end(path: Path, file: io.FileIO) -> Iterator[None]:
    """Removes the file of a lock at the end of the block, unless another one is there by then.

    It is removed while it is still held: another process that has opened it meanwhile finds that
    the name is gone once it gets the lock, and opens a new one.
    """
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_at(file.fileno(), path):
                path.unlink()


def _open_or_make(path, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _remove_stale(path: Path) -> None:
    """Removes the temporaries beside `path` that no process holds a lock on."""
    temporary = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.tmp")
    for name in os.listdir(path.parent):
        if temporary.fullmatch(name):
            stray = path.parent / name
            # Not there any more, not ours to remove, or on a file system without locks.
            with contextlib.suppress(OSError):
                descriptor = os.open(stray, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if _hold(descriptor, stray):
                        _remove(stray)
                finally:
                    os.close(descriptor)


def _remove(path: Path) -> None:
    """Removes a file or folder, as far as the system allows, read-only folders included."""
    if path.is_dir() and not path.is_symlink():
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _keep_permissions(new: Path, old: Path) -> None:
    """Gives a new file or folder the permissions of the one that it will replace, if there is one.

    In a folder each file takes those of the old file of its name, or those of the old manifest.
    """
    status = _status(old)
    if status is None:
        return
    if new.is_dir():
        manifest = _status(old / MANIFEST)
        for item in new.rglob("*"):
            default = status if item.is_dir() else manifest
            replaced = _status(old / item.relative_to(new)) or default
            if replaced is not None and stat.S_ISDIR(replaced.st_mode) == item.is_dir():
                _copy_permissions(item, replaced)
    _copy_permissions(new, status)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _copy_permissions(path: Path, status: os.stat_result) -> None:
    for owner in (status.st_uid, -1):
        with contextlib.suppress(OSError):
            os.chown(path, owner, status.st_gid)
            break
    mode = stat.S_IMODE(status.st_mode) | stat.S_IRUSR
    if os.lstat(path).st_gid != status.st_gid:
        mode &= ~stat.S_IRWXG | (mode & stat.S_IRWXO) << 3  # no more for this group than for others
    os.chmod(path, mode)


def _backup_path(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def locate(path: Path) -> Path:
    """Returns where what was saved at `path` stands: there, or aside if a writer died there."""
    return path if path.exists() or not _backup_path(path).exists() else _backup_path(path)


def _identity(path: Path) -> list:
    """Returns what distinguishes the folders at `path` and aside from any that replace them."""
    found = []
    for folder in (path, _backup_path(path)):
        with contextlib.suppress(OSError):
            status = os.stat(folder)
            found.append((folder, status.st_ino, status.st_ctime_ns))
    return found


def _recover(path: Path, kind: str) -> None:
    """Puts back, or removes, what a writer that died in `_swap` had set aside."""
    aside = _backup_path(path)
    with contextlib.suppress(ArtifactError):  # it is not ours, and stays
        check_replaceable(aside, kind)
        if aside.exists():
            stale = _temporary_name(path)
            os.rename(aside, stale if path.exists() else path)
            _remove(stale)


def check_replaceable(path: Path, kind: str) -> None:
    """Checks that `write` may put a `kind` at `path`: nothing is there, or one of its own.

    Raises:
        ArtifactError: If it may not.
    """
    try:
        is_empty = path.is_dir() and not any(path.iterdir())
        if path.exists() and not is_empty:
            _manifest(path, kind)
    except ArtifactError:
        raise
    except OSError as error:
        raise _read_error(path, error) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # guard: sync
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(PermissionError):  # one may write to a folder, and not read it
        _sync(folder)


def _sync_parent(path: Path) -> None:
    """Lets the new name at `path` outlive a power cut."""
    try:
        _sync_folder(path.parent)
    except OSError as error:
        raise ArtifactError(
            f"{path} was written, but its folder cannot be synced to disk: {error.strerror}. A "
            "power cut may bring back the old one. Check the disk, and save it again."
        ) from error


def _swap(new: Path, path: Path) -> None:
    """Puts the folder `new` at `path`; what was there is then at `new`."""
    if not path.exists():
        os.rename(new, path)
    elif not _exchange(new, path):
        # Between these two calls readers find the old folder under its other name.
        aside = _backup_path(path)
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
    """Exchanges two names in one step; returns False where the system cannot."""
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


def _read_error(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"Cannot read {path}: {error.strerror or error}. Check its permissions and its disk."
    )


def _write_error(path: Path, temporary: Path | None, error: OSError) -> OSError:
    if isinstance(error, KerasimError):
        return error
    written = 0
    for file in () if temporary is None else (temporary, *temporary.rglob("*")):
        with contextlib.suppress(OSError):
            status = os.lstat(file)
            written += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return ArtifactError(
        f"Cannot write {path}: {error.strerror or error} ({written} bytes written so far). What "
        "was there before is unchanged. Free space, check permissions or choose another folder."
    )
