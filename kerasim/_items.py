"""The items of a gallery: id, file, label, stamp and thumbnail of each image.

An `Items` is immutable: each method returns a new one. A gallery replaces it in one assignment, so
that an interrupt, or a query of another thread, finds either the old one or the new one.
"""

import dataclasses
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kerasim import _checks, _thumbnails
from kerasim.errors import ImageError

# Objects, because the strings of pandas on pyarrow cannot hold names that are not UTF-8.
COLUMNS = {
    "id": "int64",
    "file": object,
    "label": object,
    "size": "int64",
    "modified": "int64",
    "changed": "int64",
    "sha256": object,
    "thumbnail": object,
}
# The thumbnails are written by `_thumbnails`.
_WRITTEN = [name for name in COLUMNS if name != "thumbnail"]
FILE = "items.json"
_ENCODING: Any = {"encoding": "utf-8", "errors": "surrogatepass"}  # names may be of any bytes
_REMOVED = {"id": -1, "file": "", "label": "", "sha256": "", "thumbnail": b""}

# The time stamps of file systems have a resolution of up to two seconds. A file that was written
# more recently may be written again without a new time stamp.
_SETTLED_NS = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class Stamp:
    """The data by which a change of a file is detected.

    Attributes:
        size: Bytes; -1 if not known.
        modified: Time of the last change of the content, in nanoseconds; -1 if it may be outdated.
        changed: Time of the last change of content, name or permissions, in nanoseconds.
        sha256: Digest of the content; "" if not known.
    """

    size: int = -1
    modified: int = -1
    changed: int = -1
    sha256: str = ""


def stamp_of(file) -> Stamp:
    """Reads `file` and returns its stamp.

    Raises:
        ImageError: If it is missing, not a regular file, or cannot be read.
    """
    _checks.regular_file(file, ImageError)
    now = time.time_ns()
    try:
        status = os.stat(file)  # before reading, so that a later change is noticed the next time
        with open(file, "rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"Cannot read {_checks.shown(file)}: {error.strerror}.") from error
    settled = now - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS
    modified = status.st_mtime_ns if settled else -1
    return Stamp(status.st_size, modified, status.st_ctime_ns, sha256)


def is_same(file, known: Stamp) -> bool:
    """Returns whether `file` is unchanged by its size and time stamps alone."""
    try:
        status = os.stat(file)
    except OSError:
        return False
    now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return bool(known.sha256) and now == (known.size, known.modified, known.changed)


def written_at(folder: Path) -> int:
    """Returns when the table in `folder` was written, in nanoseconds."""
    name = FILE if (folder / FILE).exists() else "items.csv"
    return (folder / name).stat().st_mtime_ns


def is_gone(file) -> bool:
    """Returns whether `file` does not exist, as opposed to a file that cannot be accessed.

    It is also gone if there is a folder or another kind of file in its place.
    """
    try:
        return not stat.S_ISREG(os.stat(file).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def state_of(file, known: Stamp, trusted_before: int = -1) -> tuple[str, Stamp]:
    """Compares a file with its stamp. The content is read only if the time stamps differ.

    Args:
        file: The file.
        known: Its stamp when its image was embedded.
        trusted_before: If `known` has no digest, the file counts as unchanged if its time stamps
            are before this one, in nanoseconds.

    Returns:
        `(state, stamp)`: "same", "changed", "gone" or "unreadable", and the current stamp; for the
        last two states `known`.
    """
    try:
        status = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return "gone", known
    except OSError:
        return "unreadable", known
    if not stat.S_ISREG(status.st_mode):
        return "gone", known
    if is_same(file, known):
        return "same", known
    try:
        stamp = stamp_of(file)
    except ImageError:
        return ("gone" if is_gone(file) else "unreadable"), known
    if not known.sha256:
        unchanged = max(status.st_mtime_ns, status.st_ctime_ns) < trusted_before
    else:
        unchanged = stamp.sha256 == known.sha256
    return ("same" if unchanged else "changed"), stamp


@dataclasses.dataclass(frozen=True)
class Items:
    """A row for each vector. The id of a removed item is -1; its vector may still be there.

    Attributes:
        table: The columns of `COLUMNS`.
        vectors: `(n, dim)`, one for each row.
        next_id: Id of the next item. Ids are never used again.
        version: Rows keep their positions, and are only appended, within one version.
    """

    table: pd.DataFrame
    vectors: np.ndarray
    next_id: int = 0
    version: int = 0

    @classmethod
    def empty(cls, dim: int) -> "Items":
        return cls(_table([], [], [], [], []), np.empty((0, dim), "float32"))

    def check(self) -> None:
        """Raises a `ValueError` if the ids cannot be those of a gallery."""
        ids = self.table["id"].to_numpy()
        live = ids[self.live]
        if len(set(live.tolist())) < len(live) or (ids < -1).any():
            raise ValueError("ids of items are negative, or given twice")
        if type(self.next_id) is not int or (ids >= self.next_id).any():
            raise ValueError(f"the next id is {self.next_id}, and items have larger ones")

    @property
    def live(self) -> np.ndarray:
        """Mask of the rows whose items were not removed."""
        return self.table["id"].to_numpy() >= 0

    def __len__(self) -> int:
        return int(self.live.sum())

    def shown(self) -> pd.DataFrame:
        """Returns id, file and label of each item, in the order of ids."""
        table = self.table.loc[self.live, ["id", "file", "label"]]
        return table.sort_values("id", kind="stable", ignore_index=True)

    def positions(self, ids) -> np.ndarray:
        """Returns the rows of `ids`, all of which must exist."""
        held = self.table["id"].to_numpy()
        order = np.argsort(held, kind="stable")
        return order[np.searchsorted(held, np.asarray(ids, "int64"), sorter=order)]

    def id_at(self, row: int) -> int:
        return int(self.table["id"].to_numpy()[row])

    def stamps(self, rows: slice | list[int] = slice(None)) -> list[Stamp]:
        """Returns the stamps of all rows, or of the rows at these positions."""
        table = self.table.iloc[rows]
        columns = (table[name].tolist() for name in ("size", "modified", "changed", "sha256"))
        return [Stamp(*values) for values in zip(*columns, strict=True)]

    def with_more(self, ids, files, labels, stamps, vectors, thumbnails) -> "Items":
        """Appends items. An id that is given again replaces the item that has it."""
        ids = np.asarray(ids, "int64")
        if not len(ids):
            return self
        kept = self.without(ids)
        more = _table(ids, files, labels, stamps, thumbnails)
        table = pd.concat([kept.table, more], ignore_index=True)
        vectors = np.concatenate([kept.vectors, vectors])
        next_id = max(self.next_id, int(ids.max()) + 1)
        return dataclasses.replace(kept, table=table, vectors=vectors, next_id=next_id)

    def without(self, ids) -> "Items":
        """Removes the items that have one of `ids`; their vectors stay until `compacted`."""
        removed = np.isin(self.table["id"].to_numpy(), np.asarray(ids, "int64")) & self.live
        if not removed.any():
            return self
        table = self.table.copy()
        table.loc[removed, list(_REMOVED)] = list(_REMOVED.values())
        return dataclasses.replace(self, table=table)

    def changed(self, ids, **columns) -> "Items":
        """Sets columns of the items `ids`: `file`, `label`, or the stamps as `stamps`."""
        if not len(ids):
            return self
        if "stamps" in columns:
            fields = [dataclasses.asdict(stamp) for stamp in columns.pop("stamps")]
            columns.update({name: [entry[name] for entry in fields] for name in fields[0]})
        table, rows = self.table.copy(), self.positions(ids)
        for name, values in columns.items():
            column = table[name].to_numpy(copy=True)
            column[rows] = values
            table[name] = pd.Series(column, dtype=COLUMNS[name])
        return dataclasses.replace(self, table=table)

    def compacted(self) -> "Items":
        """Drops the vectors of removed items, and puts the others in the order of ids."""
        held = self.table["id"].to_numpy()
        live = np.flatnonzero(self.live)
        rows = live[np.argsort(held[live], kind="stable")]
        if len(rows) == len(held) and (np.diff(held) > 0).all():
            return self
        table, vectors = self.table.iloc[rows].reset_index(drop=True), self.vectors[rows]
        return dataclasses.replace(self, table=table, vectors=vectors, version=self.version + 1)

    def write(self, folder: Path) -> None:
        """Writes the table as JSON, and the thumbnails.

        In CSV, a spreadsheet would execute names such as "=A1".
        """
        with open(folder / FILE, "w", **_ENCODING) as file:
            # Column by column: `json.dump` is six times slower than `json.dumps`, which would need
            # memory for all columns at once.
            for before, name in zip("{" + "," * len(_WRITTEN), _WRITTEN, strict=False):
                column = json.dumps(self.table[name].tolist(), ensure_ascii=False)
                file.writelines((before, json.dumps(name), ":", column))
            file.write("}")
        _thumbnails.write(self.table["thumbnail"].tolist(), folder)


def common_folder(files) -> str:
    """Returns the folder that holds all `files`, of which some may be ""; "" if all are."""
    folders = {os.path.dirname(file) for file in files if file}
    return os.path.commonpath(folders) if folders else ""


def rebased(items: Items, old, new) -> tuple[Items, list[str]]:
    """Renames the files below the folder `old` that are below the folder `new` now.

    Returns:
        `(items, left)`: `left` are the files without one of the same size below `new`.
    """
    table = items.table
    renamed, left = {}, []
    for number, file, size in zip(table["id"], table["file"], table["size"], strict=True):
        if number < 0 or not file:
            continue
        target = os.path.join(new, os.path.relpath(file, old))
        if size >= 0 and os.path.isfile(target) and os.path.getsize(target) == size:
            renamed[number] = target
        else:
            left.append(file)
    return items.changed(list(renamed), file=list(renamed.values())), left


def read_table(folder: Path) -> pd.DataFrame:
    """Reads a table of `Items.write`, or of an old version of kerasim, without stamps.

    Raises:
        ValueError: If it is not such a table.
    """
    if not (folder / FILE).exists():
        return _read_csv(folder / "items.csv")
    with open(folder / FILE, **_ENCODING) as file:
        columns = json.load(file)
    if not isinstance(columns, dict) or list(columns) != _WRITTEN:
        raise ValueError(f"{FILE} has the columns {list(columns)}")
    for name, values in columns.items():
        kind = str if COLUMNS[name] is object else int
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise ValueError(f"{FILE} has a column {name} that is not a list of {kind.__name__}")
    columns["thumbnail"] = _thumbnails.read(folder, len(columns["id"]))
    return pd.DataFrame(columns, dtype=object).astype(COLUMNS)


def _read_csv(path: Path) -> pd.DataFrame:
    kinds: Any = {name: COLUMNS[name] for name in ("id", "file", "label")}
    text: Any = {
        "keep_default_na": False,
        "encoding": "utf-8",
        "encoding_errors": "surrogateescape",
    }
    table = pd.read_csv(path, dtype=kinds, **text)
    if list(table) != list(kinds):
        raise ValueError(f"items.csv has the columns {list(table)}")
    unknown = [Stamp()] * len(table)
    none = [b""] * len(table)
    return _table(table["id"], table["file"], table["label"], unknown, none)


def _table(ids, files, labels, stamps, thumbnails) -> pd.DataFrame:
    columns = {"id": list(ids), "file": list(files), "label": list(labels)}
    for name in ("size", "modified", "changed", "sha256"):
        columns[name] = [getattr(stamp, name) for stamp in stamps]
    columns["thumbnail"] = list(thumbnails)
    return pd.DataFrame(columns, dtype=object).astype(COLUMNS)
