"""The steps of `Gallery.add`: compare files with items, embed new images, and add items."""

import collections
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from kerasim import _checks, _folders, _items, _thumbnails, data, embedding
from kerasim._folders import thread_map
from kerasim._items import Items, Stamp
from kerasim.errors import ArgumentError, ImageError
from kerasim.images import decode

PIECE = 32  # images between two updates of the progress bar, and the most that an interrupt loses


@dataclasses.dataclass
class Given:
    """The arguments of `Gallery.add`, in one format.

    Attributes:
        images: `ImageFolder` or array.
        files: Name of the file of each; "" for none.
        labels: Label of each; "" for none.
        explicit: Whether the caller passed labels.
        root: The folder that was passed, or None.
        skipped: `(file, reason)` of its files that are not images.
    """

    images: Any
    files: list[str]
    labels: list[str]
    explicit: bool
    root: Path | None
    skipped: list[tuple[str, str]]


@dataclasses.dataclass
class Comparison:
    """The result of `Files.compare`.

    Attributes:
        rows: Positions of the images to embed, each real file once, in order.
        replaced: Id of the item that an image replaces, by position.
        items: The items, with new labels and stamps where the files are unchanged.
    """

    rows: list[int]
    replaced: dict[int, int]
    items: Items


class Files:
    """Looks up the items of files, and compares files with their stamps in the items.

    Attributes:
        trusted_before: See `_items.state_of`.
    """

    def __init__(self):
        self.trusted_before = -1

    def rows(self, items: Items) -> dict[str, int]:
        """Returns the row of each item that has a file, by its name and by its real path.

        Real paths are looked up in every call, since a link may lead elsewhere by now.
        """
        files = items.table["file"].tolist()
        known = {real: row for row, real in enumerate(_real_paths(files)) if real}
        known.update({file: row for row, file in enumerate(files) if file})
        return known

    def states(self, pairs) -> list[tuple[str, Stamp]]:
        """Returns `_items.state_of` of each pair of a file and its stamp."""
        # Most files have equal time stamps. Threads are worth it only where content is read.
        doubtful = [n for n, pair in enumerate(pairs) if not _items.is_same(*pair)]
        found = [("same", stamp) for _, stamp in pairs]

        def look(n):
            file, stamp = pairs[n]
            return _items.state_of(file, stamp, self.trusted_before)

        for n, state in zip(doubtful, thread_map(look, doubtful), strict=True):
            found[n] = state
        return found

    def compare(self, given: Given, items: Items) -> Comparison:
        """Compares files with the items that name them.

        Raises:
            ArgumentError: If one file is given twice, with different labels.
        """
        if not any(given.files):  # images of an array are always new
            return Comparison([*range(len(given.files))], {}, items)
        ids, labels = items.table["id"].tolist(), items.table["label"].tolist()
        known = self.rows(items)
        new, looked = [], []
        seen: dict[str | int, int] = {}  # the position at which each file or item came first
        for n, (file, real) in enumerate(zip(given.files, _real_paths(given.files), strict=True)):
            # An item whose file has become a link to another file is compared under its own name.
            row = known.get(file, known.get(real))
            first = seen.setdefault(real if row is None else row, n)
            if first != n:
                _refuse_two_labels(given, first, n)
            elif row is None:
                new.append(n)
            else:
                looked.append((n, row))
        stamps = items.stamps([row for _, row in looked])
        pairs = [(given.files[n], stamp) for (n, _), stamp in zip(looked, stamps, strict=True)]
        replaced, relabeled, restamped = {}, {}, {}
        for (n, row), before, (state, stamp) in zip(
            looked, stamps, self.states(pairs), strict=True
        ):
            if state != "same":
                replaced[n] = ids[row]
                continue
            if stamp != before:
                restamped[ids[row]] = stamp
            label, old = given.labels[n], labels[row]
            if label and label != old and (given.explicit or not old):
                relabeled[ids[row]] = label
        items = items.changed(list(relabeled), label=list(relabeled.values()))
        items = items.changed(list(restamped), stamps=list(restamped.values()))
        return Comparison(sorted([*new, *replaced]), replaced, items)


class Taken:
    """The images that one call of `add` has embedded so far.

    Ids are assigned here, not at the commit, so that an interrupted commit can be repeated: the
    second one replaces the items that the first one added.
    """

    def __init__(
        self,
        embedder,
        metric: str,
        given: Given,
        comparison: Comparison,
        on_error,
        embed,
        thumbnail_size: int | None,
    ):
        self.embedder, self.metric, self.given = embedder, metric, given
        self._thumbnail_size = thumbnail_size
        self.replaced, self.on_error, self.embed = comparison.replaced, on_error, embed
        self._items = comparison.items
        self.bad: list[tuple[str, str]] = []
        self.ids: list[int] = []
        self.changed: list[str] = []
        self.moved: list[tuple[str, str]] = []
        self._next_id = self._items.next_id
        self._by_content: dict[str, list] | None = None
        self._found: set[int] = set()  # ids of the items whose files were moved
        self.start_over()

    def start_over(self) -> None:
        """Clears the images that are now part of the items."""
        self._embedded: list[tuple[int, str, str, Stamp, np.ndarray, bytes]] = []
        self._renamed: dict[int, tuple[str, str, Stamp]] = {}
        self._lost: list[int] = []

    @property
    def waiting(self) -> int:
        """Number of images that are not part of the items yet."""
        return len(self._embedded)

    def pieces(self, rows):
        """Splits rows: Ray's workers take a whole chunk, other functions a few images at once."""
        step = PIECE if self.embed is embedding.embed_folder else max(1, len(rows))
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def applied(self, items: Items) -> Items:
        """Returns `items` with new images added, moved files renamed and lost files removed."""
        files, labels, stamps = columns(self._renamed.values(), 3)
        items = items.changed(list(self._renamed), file=files, label=labels, stamps=stamps)
        items = items.without(self._lost)
        ids, files, labels, stamps, vectors, thumbnails = columns(self._embedded, 6)
        return items.with_more(ids, files, labels, stamps, vectors, thumbnails)

    def take(self, piece, chunk) -> None:
        """Embeds the images at the positions `piece`, or raises one error for all of `chunk`."""
        files = self.given.files
        stamps, reasons = self._look(piece)
        rest = [n for n in piece if n not in reasons and not self._is_moved(n, stamps[n])]
        vectors = self._embed(rest, reasons)
        bad = [(files[n], reasons[n]) for n in piece if n in reasons]
        if bad and self.on_error == "raise":
            bad += self._undecodable([n for n in chunk if n > piece[-1]])
            _folders.check_usable(bad, len(chunk), self.on_error)
        good = [n for n in rest if n not in reasons]
        thumbnails = self._thumbnails(good)
        rows = [
            (self._id(n), files[n], self._label(n), stamps[n], vectors[n], thumbnail)
            for n, thumbnail in zip(good, thumbnails, strict=True)
        ]
        self._lost += [self.replaced[n] for n in rest if n in reasons and n in self.replaced]
        self._embedded += rows  # in one step, so that an interrupt cannot leave a part of it
        self.bad += bad
        self.ids += [row[0] for row in rows]
        self.changed += [files[n] for n in good if n in self.replaced]

    def _look(self, piece) -> tuple[dict[int, Stamp], dict[int, str]]:
        """Returns the stamp of each file, or why it cannot be read, by position."""

        def look(n):
            try:
                return _items.stamp_of(self.given.files[n]) if self.given.files[n] else Stamp()
            except ImageError as error:
                return str(error)

        found = dict(zip(piece, thread_map(look, piece), strict=True))
        stamps = {n: stamp for n, stamp in found.items() if isinstance(stamp, Stamp)}
        return stamps, {n: reason for n, reason in found.items() if isinstance(reason, str)}

    def _is_moved(self, n: int, stamp: Stamp) -> bool:
        """Returns whether a new file is that of an item, moved; the item is then renamed."""
        if n in self.replaced or not stamp.sha256:
            return False
        if self._by_content is None:
            self._by_content = collections.defaultdict(list)
            table = self._items.table[["id", "file", "label", "sha256"]]
            for number, old, label, sha256 in table.itertuples(index=False, name=None):
                if sha256 and old:
                    self._by_content[sha256].append((number, old, label))
        new = self.given.files[n]
        candidates = self._by_content.get(stamp.sha256, [])
        # If several items have the same content, one whose file had the same name is preferred.
        candidates = sorted(candidates, key=lambda item: _name(item[1]) != _name(new))
        for number, old, label in candidates:
            if number not in self._found and _items.is_gone(old):
                self._found.add(number)
                self._renamed[number] = (new, self.given.labels[n] or label, stamp)
                self.moved.append((old, new))
                return True
        return False

    def _embed(self, rows, reasons) -> dict[int, np.ndarray]:
        """Returns vectors by position; for images without one it adds the reason to `reasons`."""
        images = self.given.images
        if not rows:
            return {}
        if isinstance(images, data.ImageFolder):
            vectors, failed = self.embed(self.embedder, images.take(np.array(rows)))
        else:
            vectors = embedding.embed(self.embedder, images[np.array(rows)], progress=False)
            failed = [""] * len(rows)
        for n, vector, reason in zip(rows, vectors, failed, strict=True):
            if not reason and self.metric == "cosine" and not vector.any():
                file = self.given.files[n]
                name = _checks.shown(file) if file else f"Image {n}"
                reason = f"{name} has an embedding of zeros, whose cosine distance is undefined."
            if reason:
                reasons[n] = reason
        return dict(zip(rows, vectors, strict=True))

    def _thumbnails(self, rows) -> list[bytes]:
        """Returns a thumbnail of each image, or empty ones if the gallery keeps none."""
        side = _thumbnails.side_for(len(self._items) + len(self.ids), self._thumbnail_size)
        # What a cluster embeds is not decoded again by this process.
        if not side or self.embed is not embedding.embed_folder:
            return [b""] * len(rows)

        def of(n):
            if not self.given.files[n]:
                return _thumbnails.of_pixels(self.given.images[n], side)
            try:
                return _thumbnails.of_file(self.given.files[n], side)
            except ImageError:  # it was removed just now
                return b""

        return thread_map(of, rows)

    def _undecodable(self, rows) -> list[tuple[str, str]]:
        """Returns `(file, reason)` of the files that cannot be decoded."""

        def look(n):
            try:
                decode(self.given.files[n])
                return ""
            except ImageError as error:
                return str(error)

        rows = [n for n in rows if self.given.files[n]]
        found = zip(rows, thread_map(look, rows), strict=True)
        return [(self.given.files[n], reason) for n, reason in found if reason]

    def _id(self, n: int) -> int:
        if n in self.replaced:
            return self.replaced[n]
        self._next_id += 1
        return self._next_id - 1

    def _label(self, n: int) -> str:
        """Returns the label of an image; the name of a folder does not replace an existing one."""
        label, old = self.given.labels[n], ""
        if n in self.replaced:
            row = self._items.positions([self.replaced[n]])[0]
            old = self._items.table["label"].iloc[row]
        return label if label and (self.given.explicit or not old) else old


def _refuse_two_labels(given: Given, first: int, again: int) -> None:
    """Refuses a file that the caller passed twice, at two positions, with different labels."""
    labels = given.labels[first], given.labels[again]
    if given.explicit and labels[0] != labels[1]:
        raise ArgumentError(
            f"labels has {labels[0]!r} and {labels[1]!r} for {_checks.shown(given.files[again])}, "
            f"which files holds at positions {first} and {again}. Pass each file once."
        )


def _real_paths(files) -> list[str]:
    """Returns the paths of files with all links resolved, "" for an item without a file."""
    folders: dict[str, str] = {}
    found = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        real = os.path.join(folders[folder], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        found.append(real if file else "")
    return found


def columns(rows, count: int) -> tuple[list, ...]:
    """Returns the `count` columns of rows, as lists; empty ones if there is no row."""
    rows = list(rows)
    return tuple([row[n] for row in rows] for n in range(count))


def _name(file: str) -> str:
    return os.path.basename(file)
