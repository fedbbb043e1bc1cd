"""Embedder, vectors, files, labels and threshold as one artifact.

A `Gallery` combines the other modules for daily use. Images are embedded once: a file that is in
the gallery with the same content is skipped, so that the same call adds only new files. A file that
changed is embedded again, a file that was moved is recognized by its content, and files that are
gone are reported. The index grows with the images. A threshold is fitted on known pairs with
`metrics.verification`. Everything is saved as one folder; a process that loads it refuses to add
vectors of another embedder, and to overwrite what another process has saved since.

Methods may be called from several threads. Calls that change a gallery wait for one another;
`query` and `verify` do not wait, and use the last complete state. All values that change together
are held in one object (`_items.Items`) that is replaced in one assignment, so that an interrupt
leaves the old state or the new one.
"""

import collections
import contextlib
import dataclasses
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import keras
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from PIL import Image
from tqdm import tqdm

from kerasim import (
    _artifacts,
    _checks,
    _folders,
    _image_checks,
    _items,
    _keras_files,
    _model_identity,
    _report,
    _thumbnails,
    curation,
    data,
    duplicates,
    embedding,
    metrics,
    plots,
)
from kerasim._adding import PIECE, Files, Given, Taken, columns
from kerasim._folders import (
    EMPTY_FOLDER,
    ImageFolder,
    class_of,
    find_images,
    no_image,
    thread_map,
)
from kerasim._items import Items
from kerasim._sources import are_integers, encoded, label_texts, sources
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError, ImageError
from kerasim.explorer import write_explorer
from kerasim.images import Resize, check_channels, check_resize, decode
from kerasim.neighbors import METRICS, Kind, NeighborIndex, check_mmap_mode
from kerasim.projection import Projection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Gallery",
]

_KIND = "gallery"
_PAIRS = 200_000  # that fit into a manifest
_FEW_PAIRS = 10  # a rate that is measured on fewer pairs is unreliable
_MAP_ITEMS = 5  # the fewest that UMAP can lay out
_CLUSTER = 10  # the fewest images of a cluster on the map
_MAP_CLUSTERED = 5_000  # items up to which the map looks for clusters, in some seconds
_REPORT_ITEMS = 3
_THUMBNAIL_LIMIT = 1024
_STRIP = 96  # pixels of the side of an image beside its query
_THUMBNAIL = 64  # pixels of the longer side of an image on a page

# What the methods of a gallery take as images.
Source: TypeAlias = Path | str | bytes | Image.Image
Images: TypeAlias = Source | Iterable[Source] | ArrayLike | ImageFolder


class Gallery:
    """A searchable collection of images: add images, find the most similar ones, save.

    Images are given as the path of a folder (see `data.image_folder`) or of a file, an encoded
    image (bytes), a `PIL.Image`, an `ImageFolder`, or an array `(n, height, width, channels)`,
    float in [0, 1] or uint8. Several files, encoded images or `PIL.Image` objects are passed as a
    list, tuple, array, pandas Series or iterator.

    Args:
        embedder: `keras.Model` from images of one size to vectors.
        metric: "cosine", "euclidean" or "manhattan".
        kind: "exact"; "hnsw" for an approximate search in a graph, "hnsw_sq8" for one that needs
            less memory, "binary" for the least memory (see `neighbors.NeighborIndex`).
        m: Links of each vector in the graph, 2 or more. More links need more memory and increase
            recall.
        ef_construction: Size of the candidate list while the graph is built, 1 or more.
        ef_search: Size of the candidate list in a query, 1 or more. With "binary", four times as
            many candidates are compared exactly.
        thumbnail_size: Longer side in pixels, 1 to 1024, of the small copy of each image that the
            gallery keeps, to show it where the file is not at hand; beyond 10,000 items 64 at most,
            beyond 100,000 32. None keeps no copies. Images that a cluster embeds have none.
        resize: How files of another aspect ratio get to the size of the embedder, in `add` and in
            queries: "squash" stretches them, "crop" cuts the longer sides off their center, "pad"
            adds black borders. Choose what the embedder was trained with.

    Attributes:
        embedder: The embedder; its weights must not change after the first `add`.
        image_shape: `(height, width, channels)` of the images that it takes.
        settings: `metric`, `kind`, `m`, `ef_construction` and `ef_search`, by name.
        thumbnail_size, resize: As passed.
        skipped: `(file, reason)` of each file that the last `add` left out.
        changed: Files that the last `add` embedded again, because their content had changed.
        moved: `(old, new)` names of the files that the last `add` found in another place.
        gone: Files of items that the last `add` of a folder, `prune` or `relocate` did not find.

    Raises:
        ArgumentError: If the embedder takes images of any size, or does not return vectors.
        ArgumentTypeError: If the embedder is not a model of one input.

    Example:
        >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> gallery = Gallery(embedder)
        >>> images = np.random.default_rng(0).random((20, 8, 8, 1))
        >>> ids = gallery.add(images, labels=["cat", "dog"] * 10)
        >>> found = gallery.query(images[3:4], k=5)
        >>> found[["rank", "id", "label"]].head(1).to_dict("records")
        [{'rank': 1, 'id': 3, 'label': 'dog'}]
    """

    def __init__(
        self,
        embedder: keras.Model,
        metric: Literal["cosine", "euclidean", "manhattan"] = "cosine",
        kind: Kind = "exact",
        *,
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 64,
        thumbnail_size: int | None = _thumbnails.LARGEST,
        resize: Resize = "squash",
    ):
        check_resize(resize)
        self.resize: Resize = resize
        if thumbnail_size is not None:
            _checks.integer("thumbnail_size", thumbnail_size, 1, _THUMBNAIL_LIMIT)
        self.thumbnail_size = thumbnail_size
        self.image_shape, dim = _image_checks.check_embedder("embedder", embedder)
        if None in self.image_shape:
            raise ArgumentError(
                f"embedder takes images of any size, {self.image_shape}: build it with an "
                "image_shape."
            )
        self.embedder = embedder
        self.settings = NeighborIndex(metric, kind, m, ef_construction, ef_search).get_params()
        self.skipped: list[tuple[str, str]] = []
        self.changed: list[str] = []
        self.moved: list[tuple[str, str]] = []
        self.gone: list[str] = []
        self._fingerprint = _model_identity.fingerprint(embedder)
        self._embedder_loads = False  # tried at the first save
        self._calibration: _Calibration | None = None
        self._items = Items.empty(dim)
        # The index of the first vectors, or of none, and the version of the items it belongs to.
        self._built: tuple[int, NeighborIndex | None] = (0, None)
        self._changing = threading.RLock()  # held by each method that changes the gallery
        self._growing = threading.RLock()  # held while the index grows; taken after `_changing`
        self._assigning = threading.RLock()  # held for an assignment of `_items`
        self._saved = _artifacts.Known()
        self._warned: set[str] = set()  # files that a warning has named
        self._files = Files()

    def __repr__(self) -> str:
        items, calibration = self._items, self._calibration
        classes = len(set(items.table["label"][items.live]) - {""})
        parts = [
            _checks.counted(len(items), "item", "items")
            + (f" of {_checks.counted(classes, 'class', 'classes')}" if classes else ""),
            f"metric={self.settings['metric']!r}",
            f"kind={self.settings['kind']!r}",
            f"embedder {self.embedder.name!r} {self.image_shape} -> {items.vectors.shape[1]}",
        ]
        if calibration is not None:
            parts.append(f"threshold={calibration.threshold:.4g}")
        return f"<Gallery: {', '.join(parts)}>"

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> pd.DataFrame:
        """A row for each item: id, file ("" for an image without one) and label ("" for none)."""
        return self._items.shown()

    @property
    def vectors(self) -> np.ndarray:
        """The embeddings `(n, dim)` of the items, in the order of `items`; a copy."""
        return self._items.compacted().vectors.copy()

    @property
    def root(self) -> Path | None:
        """The folder that holds the files of all items; None if no item has a file."""
        root = _items.common_folder(self._items.table["file"].tolist())
        return Path(root) if root else None

    @property
    def index(self) -> NeighborIndex:
        """The index of all vectors, up to date; `index.recall_` is the recall of a graph.

        Raises:
            ArgumentError: If the gallery is empty.
        """
        return self._indexed()[1]

    @property
    def threshold(self) -> float | None:
        """Largest distance at which `verify` accepts a pair; None before `calibrate`."""
        return None if self._calibration is None else self._calibration.threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        """Replaces the threshold that `calibrate` fitted.

        Raises:
            ArgumentError: If the gallery is not calibrated, or `value` is not finite.
        """
        if self._calibration is None:
            raise ArgumentError("The gallery is not calibrated: call calibrate with known pairs.")
        threshold = _checks.number("threshold", value)
        self._calibration = dataclasses.replace(self._calibration, threshold=threshold)

    @property
    def calibration(self) -> dict | None:
        """The error rates of `threshold` on the pairs of `calibrate`; None before it.

        A dict: "threshold"; "far", the share of negative pairs accepted, and "frr", the share of
        positive pairs rejected, each with its 95 % Wilson interval ("far_interval",
        "frr_interval"); "negative_pairs" and "positive_pairs", the numbers of pairs.
        """
        return None if self._calibration is None else self._calibration.rates()

    def info(self) -> dict:
        """Returns a summary of the gallery, as values that can be written as JSON.

        The files are checked; those whose time stamps differ are read.

        Returns:
            A dict: "items", the number of items; "labels", the number of items of each label,
            largest first; the numbers of items "without_label", "without_file", "gone" (the file is
            missing) and "changed" (the file holds another image than the one embedded); "metric",
            "kind", "resize", "embedder", "image_shape", "embedding_dim", "fingerprint";
            "threshold" and "calibration".
        """
        items = self._items
        labels = collections.Counter(items.table["label"][items.live])
        states = collections.Counter(self._file_states(items))
        without_label = labels.pop("", 0)
        return {
            "items": len(items),
            "labels": dict(labels.most_common()),
            "without_label": without_label,
            "without_file": states["no file"],
            "gone": states["gone"],
            "changed": states["changed"],
            "metric": self.settings["metric"],
            "kind": self.settings["kind"],
            "resize": self.resize,
            "embedder": self.embedder.name,
            "image_shape": list(self.image_shape),
            "embedding_dim": items.vectors.shape[1],
            "fingerprint": self._fingerprint,
            "threshold": self.threshold,
            "calibration": self.calibration,
        }

    def add(
        self,
        images: Images,
        labels: ArrayLike | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        path: Path | str | None = None,
        chunk: int = 1024,
        embed: Callable[..., tuple[np.ndarray, list[str]]] = embedding.embed_folder,
        progress: bool = True,
    ) -> np.ndarray:
        """Embeds images and adds them.

        A file that is in the gallery is compared with what was embedded, by size and time stamps
        and, if these differ, by content:

        - An unchanged file is skipped. Calling `add` again with the same folder therefore adds only
          new files. To continue an interrupted call with `path`, load the gallery from there and
          call `add` again.
        - A file that holds another image is embedded again, and its item keeps the id.
        - A new file with the content of an item whose file is gone is treated as that file, moved:
          the item gets the new name and label and keeps its vector.

        Items whose file is gone are kept, listed in `gone` and named in a warning; see `prune` and
        `relocate`.

        An interrupt (Ctrl-C) keeps the images that were embedded before it and, with `path`, saves
        them.

        Args:
            images: Images; see the class.
            labels: `(n,)`, a name or number for each image, which also replaces the label of an
                item that is in the gallery. None, NaN, `pandas.NA` and "" mean no label. By default
                the names of the subfolders of a folder; images beside the subfolders get no label.
            on_error: What to do with files that cannot be decoded, or whose embedding is all zeros
                (its cosine distance is undefined): "raise" one error that lists them, or "skip"
                them, with a warning, and list them in `skipped`. With "skip", an item whose
                file can no longer be decoded is removed.
            path: Folder to `save` to, at the end and several times before; None to save nothing.
            chunk: Number of images after which files with errors are reported, 1 or more. With
                `path`, the gallery is saved whenever the number of new images since the last save
                reaches both this number and an eighth of the size of the gallery.
            embed: Function that embeds files, such as `distribute.embed_folder`, which uses a
                cluster. Its workers are started for each chunk, so pass a `chunk` of tens of
                thousands.
            progress: Whether to show a progress bar on stderr, for more than 32 images.

        Returns:
            `(n,)` int64: ids of the items that were added or embedded again.

        Raises:
            ImageError: If `on_error="raise"` and there are such files. Images before them have
                been added.
            ArgumentError: If images or labels do not fit, or the embedder has changed.
            ArgumentTypeError: If `progress` is not a bool.
            ArtifactError: If `path` cannot be written, or holds what another process saved.
        """
        _checks.integer("chunk", chunk)
        _checks.one_of("on_error", on_error, ("raise", "skip"))
        hidden = not _checks.boolean("progress", progress)
        with self._changing:
            self._check_embedder()
            if path is not None:
                self._saved.check(path, _KIND, replace=False)
            given = self._given(images, labels)
            comparison = self._files.compare(given, self._items)
            self._assign(comparison.items)
            metric, rows = self.settings["metric"], comparison.rows
            taken = Taken(
                self.embedder, metric, given, comparison, on_error, embed, self.thumbnail_size
            )
            saved = self._items.table
            bar = tqdm(total=len(rows), unit="image", disable=hidden or len(rows) <= PIECE)
            try:
                for start in range(0, len(rows), chunk):
                    for piece in taken.pieces(rows[start : start + chunk]):
                        taken.take(piece, rows[start : start + chunk])
                        bar.update(len(piece))
                    if taken.waiting >= max(chunk, len(self) // 8):
                        self._commit(taken)
                        if path is not None:
                            self.save(path)
                            saved = self._items.table
                self._commit(taken)
            except BaseException:
                self._commit(taken)
                if path is not None and self._items.table is not saved:
                    self.save(path)
                raise
            finally:
                bar.close()
                self.skipped = given.skipped + taken.bad
                self.changed = taken.changed
                self.moved = taken.moved
            self._report_gone(given)
            self._warn_once("left out", [file for file, _ in self.skipped], _LEFT_OUT)
            if path is not None:
                self.save(path)
            return np.array(taken.ids, "int64")

    def _commit(self, taken: Taken) -> None:
        self._assign(self._settled(taken.applied(self._items)))
        taken.start_over()

    def _given(self, images, labels) -> Given:
        """Returns the images and labels passed to `add`, without decoding any image."""
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            root, files, left_out = _find_files(images)
            if labels is None:
                files += _other_files(self._items, root, files)
            found = self._folder(files)
            names = [class_of(file, root) for file in files]
        else:
            root, left_out, found = None, [], self._images(images)
            names = [""] * len(found)
            if isinstance(found, data.ImageFolder) and found.labels is not None:
                names = [found.class_names[label] for label in found.labels]
        if labels is not None:
            names = label_texts(labels, len(found))
        files = [str(file) for file in getattr(found, "files", [""] * len(found))]
        return Given(found, files, names, labels is not None, root, left_out)

    def _file_states(self, items: Items) -> list[str]:
        """Returns "same", "changed", "gone", "unreadable" or "no file" for each item, by id."""
        table = items.compacted().table
        files, stamps = table["file"].tolist(), Items(table, np.empty((0, 0))).stamps()
        pairs = [pair for pair in zip(files, stamps, strict=True) if pair[0]]
        states = iter(self._files.states(pairs))
        return [next(states)[0] if file else "no file" for file in files]

    def _report_gone(self, given: Given) -> None:
        """Lists the items whose file is gone, once a folder was added."""
        if given.root is not None:
            self.gone = _gone_files(self._items)
            self._warn_once("gone", self.gone, _GONE)

    def _warn_once(self, kind: str, files, text: tuple[str, str, str]) -> None:
        """Warns of those files of which this gallery has not warned yet."""
        new = [file for file in files if f"{kind} {file}" not in self._warned]
        self._warned.update(f"{kind} {file}" for file in new)
        if new:
            names = _checks.shown_names(os.path.basename(file) for file in new)
            what = _checks.counted(len(new), *text[:2])
            _checks.warn(f"{what} {text[2].format(names=names)}")

    def query(
        self,
        images: Images | None = None,
        k: int = 10,
        ids: ArrayLike | None = None,
        *,
        vectors: ArrayLike | None = None,
        labels: str | Iterable[str | int] | None = None,
        query_labels: ArrayLike | None = None,
        query_groups: ArrayLike | None = None,
        item_groups: ArrayLike | None = None,
    ) -> pd.DataFrame:
        """Finds the most similar images.

        Args:
            images: Images; see the class. Integers `(n,)` are treated as `ids`.
            k: Number of items to find for each query, 1 or more. If there are fewer items, all are
                returned, with a warning.
            ids: Instead of images: ids of items, whose stored embeddings are the queries. Each
                of them finds itself.
            vectors: Instead of images: their embeddings `(n, dim)`, or those of another tower that
                embeds into the same space, such as that of a text encoder.
            labels: Label, or several, to which the search is limited. None for all items.
            query_labels: `(n,)` labels of the queries; adds the columns query_label and correct.
            query_groups: `(n,)` integers or strings, such as the session of each query. Items of
                the group of a query are not found; see `metrics.retrieval`.
            item_groups: The group of each item, in the order of `items`; None without groups.

        Returns:
            A row for each item found, nearest first: query (position in the queries), rank (from
            1), id, file, label and distance; with `query_labels` also query_label, and correct:
            whether it is the label of the item, missing (`pandas.NA`) if either label is.

        Raises:
            ArgumentError: If the gallery is empty, the queries do not fit, more or fewer than one
                of images, ids and vectors are given, an id is not in the gallery, or no item has
                one of the labels.
            ArgumentTypeError: If the type of the images is not supported.
            ImageError: If a file cannot be decoded.

        Example:
            >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
            >>> images = np.random.default_rng(0).random((5, 8, 8, 1))
            >>> gallery = Gallery(embedder)
            >>> ids = gallery.add(images, labels=["cat", "dog", "cat", "dog", "owl"])
            >>> gallery.query(images[:2], k=1)["id"].tolist()
            [0, 1]
            >>> gallery.query(ids=[4, 2], k=1)["id"].tolist()
            [4, 2]
            >>> gallery.query(images[1:2], k=2, labels="cat")["label"].tolist()
            ['cat', 'cat']
        """
        _checks.integer("k", k)
        if not len(self):
            raise ArgumentError("The gallery is empty: call add(images) before query.")
        if sum(given is not None for given in (images, ids, vectors)) != 1:
            raise ArgumentError("query takes either images, ids or vectors: pass one of them.")
        known: Any = images if ids is None and are_integers(images) else ids
        if images is not None and known is None:
            queries = embedding.embed(self.embedder, self._images(images))
        items, index = self._indexed()
        if known is not None:
            queries = items.vectors[items.positions(self._known_ids(items, known))]
        elif vectors is not None:
            width, metric = items.vectors.shape[1], self.settings["metric"]
            queries = _checks.vectors("vectors", vectors, width, 0, metric)
        allowed = items.live & self._have_label(items, labels)
        own, others = self._groups(items, len(queries), query_groups, item_groups)
        # How many items each query can find.
        in_group = np.bincount(others[allowed], minlength=own.max(initial=0) + 1)
        there = allowed.sum() - np.where(own >= 0, in_group[own], 0)
        what = ("item that can be found", "items that can be found")
        most = k if not len(queries) else _checks.clipped("k", k, int(there.max()), *what)
        asked = min(max(most, 1), len(allowed))
        while True:
            distances, found = index.query(queries, asked)
            shown = allowed[found] & (others[found] != own[:, None])
            if asked == len(allowed) or (shown.sum(axis=1) >= np.minimum(most, there)).all():
                break
            asked = min(2 * asked, len(allowed))
        shown &= np.cumsum(shown, axis=1) <= most
        table = items.table[["id", "file", "label"]].iloc[found[shown]].reset_index(drop=True)
        table.insert(0, "query", np.nonzero(shown)[0])
        table.insert(1, "rank", np.cumsum(shown, axis=1)[shown])
        table["distance"] = distances[shown]
        if query_labels is not None:
            names = label_texts(query_labels, len(queries), "query_labels")
            asked = np.array(names, dtype=object)[table["query"]]
            table["query_label"] = pd.Series(asked.tolist(), dtype=object)
            correct = (table["query_label"] == table["label"]).astype("boolean")
            missing = (table["query_label"] == "") | (table["label"] == "")
            table["correct"] = correct.mask(missing)
        return table

    def _have_label(self, items: Items, labels) -> np.ndarray:
        """Returns a mask of the rows whose item has one of the labels."""
        held = items.table["label"]
        if labels is None:
            return np.ones(len(held), bool)
        if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
            labels = [labels]
        named: Any = np.ravel(labels) if isinstance(labels, np.ndarray) else list(labels)
        if not len(named):
            raise ArgumentError("labels is empty: pass one or more labels, or None for all items.")
        wanted = label_texts(named, len(named))
        mask = held.isin(wanted).to_numpy()
        if not (mask & items.live).any():
            raise ArgumentError(
                f"labels={_checks.shown_names(wanted)}: no item has such a label. The labels are "
                f"{_checks.shown_names(sorted(set(held[items.live]) - {''}))}."
            )
        return mask

    def _groups(self, items: Items, count: int, query_groups, item_groups):
        """Returns the group of each query, -1 if no item is of it, and that of each row."""
        codes = _checks.group_codes(
            ("query_groups", "item_groups"), (query_groups, item_groups), (count, len(items))
        )
        if codes is None:
            return np.full(count, -1), np.zeros(len(items.table), "int64")
        others = np.zeros(len(items.table), "int64")
        live = np.flatnonzero(items.live)
        by_id = live[np.argsort(items.table["id"].to_numpy()[live], kind="stable")]
        others[by_id] = codes[1]
        return codes[0], others

    def show(
        self, found: pd.DataFrame, queries: Images, images: ArrayLike | ImageFolder | None = None
    ) -> "Figure":
        """Draws each query beside the images that `query` has found, by `plots.neighbors`.

        Args:
            found: The result of `query`. If it has the columns query_label and correct, frames show
                whether the labels are the same.
            queries: What was passed to `query`: images, or ids. After a query by vectors, the
                images to draw for them.
            images: Images of all items, in the order of `items`. None to show the thumbnails that
                the gallery keeps, or the files of items that have none.

        Returns:
            The figure.

        Raises:
            ArgumentError: If `found` holds no rows, images do not fit, or items have no images.
            ArgumentTypeError: If `found` is not a result of `query`.
            ImageError: If a file cannot be decoded.

        Example:
            >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
            >>> images = np.random.default_rng(0).random((5, 8, 8, 1))
            >>> gallery = Gallery(embedder)
            >>> ids = gallery.add(images)
            >>> figure = gallery.show(gallery.query(images[:2], k=3), images[:2], images)
            >>> len(figure.axes)
            8
        """
        needed = {"query", "rank", "id", "file", "label", "distance"}
        if not isinstance(found, pd.DataFrame) or not needed <= set(found.columns):
            raise ArgumentTypeError(
                f"found must be the table that query returns. Received {type(found).__name__}: "
                "pass gallery.query(images)."
            )
        counts = found["query"].value_counts()
        if not len(counts):
            raise ArgumentError("found holds no rows: there is nothing to draw.")
        rows = found.sort_values(by=["query", "rank"])
        rows = rows[rows.groupby("query").cumcount() < counts.min()]  # after any filter
        asked = np.unique(rows["query"].to_numpy())
        items = self._items.compacted()
        own = {int(item): row for row, item in enumerate(items.table["id"])}
        self._known_ids(items, rows["id"])

        def of_items(ids):
            if images is not None:
                all_images = _image_checks.check_images("images", images)
                _checks.same_length("images", range(len(all_images)), len(items.table), "items")
                check_channels(all_images.shape[-1])
                return [self._tile(all_images[own[item]]) for item in ids]
            some = items.table.iloc[[own[item] for item in ids]]
            shown = [
                kept or file for kept, file in zip(some["thumbnail"], some["file"], strict=True)
            ]
            _check_have_files(shown)
            return thread_map(self._tile, shown)

        known = are_integers(queries)
        given = self._known_ids(items, queries) if known else self._images(queries)
        if len(given) <= asked.max():
            raise ArgumentError(
                f"queries has {len(given)} rows, but found is of {asked.max() + 1} or more: pass "
                "what was passed to query."
            )
        left = of_items(given[asked].tolist()) if known else list(map(self._tile, given[asked]))
        shape = (len(asked), int(counts.min()))
        right = np.stack(of_items(rows["id"].tolist()))
        labeled = "query_label" in rows
        return plots.neighbors(
            np.stack(left),
            right.reshape(*shape, *right.shape[1:]),
            rows["distance"].to_numpy().reshape(shape),
            rows["label"].to_numpy(str).reshape(shape) if labeled else None,
            rows["query_label"].to_numpy(str).reshape(shape)[:, 0] if labeled else None,
        )

    def _tile(self, image) -> np.ndarray:
        """Returns a file or an image as a square thumbnail, padded with white."""
        if isinstance(image, (str, bytes)):
            pixels = decode(image, None, 3, thumbnail_side=2 * _STRIP)[0]
        else:
            pixels = np.asarray(image)
            if pixels.dtype.kind == "f":
                pixels = np.rint(255 * pixels).astype("uint8")
            pixels = np.repeat(pixels, 3 // pixels.shape[-1], axis=-1)
        small = Image.fromarray(pixels)
        small.thumbnail((_STRIP, _STRIP), reducing_gap=3.0)
        side = max(small.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
        resized = square.resize((_STRIP, _STRIP), Image.Resampling.NEAREST)
        return np.asarray(resized)

    def calibrate(
        self, left: Images, right: Images, same: ArrayLike, max_far: float = 0.01
    ) -> float:
        """Fits the threshold and the score of `verify` on known pairs.

        `calibration` then holds both error rates on these pairs, with intervals. A warning is given
        if they are measured on fewer than ten pairs.

        Args:
            left, right: Images that were not used for training; `right[i]` is paired with
                `left[i]`.
            same: `(n,)`: 1 or True for a positive pair, else 0; n from 2 to 200,000.
            max_far: Largest share of negative pairs that may be accepted, 0 to 1.

        Returns:
            The threshold, a distance.

        Raises:
            ArgumentError: If there is not one value of `same` for each pair, or there are not both
                positive and negative pairs.

        Example:
            >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
            >>> left = np.random.default_rng(0).random((2000, 8, 8, 1))
            >>> same = np.arange(2000) < 1000
            >>> right = np.where(same[:, None, None, None], left, left[::-1])
            >>> gallery = Gallery(embedder)
            >>> threshold = gallery.calibrate(left, right, same)
            >>> gallery.calibration["frr"], gallery.verify(left[:1], right[:1])["same"].tolist()
            (0.0, [True])
        """
        same = _checks.array("same", same).reshape(-1)
        _checks.integer("the number of pairs", len(same), 2, _PAIRS)
        distances = self._distances(left, right)
        threshold = metrics.verification(distances, same).threshold(max_far)
        calibration = _Calibration(threshold, distances, same)
        with self._changing:
            self._calibration = calibration
        calibration.warn_of_few_pairs(max_far)
        return threshold

    def verify(self, left: Images, right: Images) -> pd.DataFrame:
        """Decides for each pair of images whether it is a positive pair.

        Args:
            left, right: Images, the same number on each side.

        Returns:
            A row for each pair: distance, same (at `threshold`) and score, the probability that
            the pair is positive if half of all pairs are.

        Raises:
            ArgumentError: If the gallery is not calibrated.
        """
        calibration = self._calibration
        if calibration is None:
            raise ArgumentError("The gallery has no threshold: call calibrate with known pairs.")
        distances = self._distances(left, right)
        same = distances <= calibration.threshold
        table = pd.DataFrame({"distance": distances, "same": same})
        return table.assign(score=calibration.verification().score(distances))

    def remove(self, ids: ArrayLike | Path | Iterable[Path | str]) -> np.ndarray:
        """Removes items. Unless `kind` is "exact", their vectors stay, unused, until `compact`.

        Args:
            ids: Some of `items["id"]`, or names of files, such as `items["file"]`; one or several.

        Returns:
            `(n,)` int64: ids of the items that were removed.

        Raises:
            ArgumentError: If an id or a file is not in the gallery.
            ArgumentTypeError: If they are neither whole numbers nor names of files.

        Example:
            >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
            >>> gallery = Gallery(embedder)
            >>> images = np.random.default_rng(0).random((3, 8, 8, 1))
            >>> ids = gallery.add(images, labels=["cat", "test", "dog"])
            >>> gallery.remove(gallery.items.query("label == 'test'")["id"]).tolist()
            [1]
            >>> gallery.items["label"].tolist()
            ['cat', 'dog']
        """
        with self._changing:
            items = self._items
            files = sources(ids)
            if files:
                found = self._ids_of_files(items, files)
            else:
                found = self._known_ids(items, ids)
            found = np.unique(found)
            self._assign(self._settled(items.without(found)))
            return found

    def prune(self) -> np.ndarray:
        """Removes the items whose file is gone.

        Files on a disk that is not mounted count as gone, too: check `info()["gone"]` first. If a
        folder was moved or renamed, use `relocate`, which keeps the vectors.

        Returns:
            `(n,)` int64: ids of the items that were removed. Their files are in `gone`.
        """
        with self._changing:
            items = self._items
            table = items.compacted().table
            files = table["file"].tolist()
            gone = np.array([bool(file) and _items.is_gone(file) for file in files], bool)
            removed = table["id"].to_numpy()[gone]
            self._assign(self._settled(items.without(removed)))
            self.gone = table["file"][gone].tolist()
            return removed

    def relocate(self, old_root: Path | str, new_root: Path | str) -> np.ndarray:
        """Renames the files of items whose folder was moved, and keeps their vectors.

        The content of each file is compared with what was embedded. An item keeps its old name if
        its file is not below `new_root`, holds another image there, or belongs to another item; a
        warning says how many do, and they are listed in `gone` if their old file is gone. Files of
        galleries saved by the first version of kerasim cannot be compared and are renamed
        unchecked; the next `add` compares them.

        Args:
            old_root: The old folder; it need not exist any more.
            new_root: The folder that the files are in now.

        Returns:
            `(n,)` int64: ids of the items that were renamed.

        Raises:
            ArgumentError: If no item has a file below `old_root`.
            ArtifactError: If `new_root` is not a folder.

        Example:
            >>> import os
            >>> os.makedirs("old", exist_ok=True)
            >>> keras.utils.save_img("old/1.png", np.eye(8)[..., None])
            >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
            >>> gallery = Gallery(embedder)
            >>> ids = gallery.add("old")
            >>> os.rename("old", "new")
            >>> gallery.relocate("old", "new").tolist()
            [0]
            >>> gallery.items["file"][0] == os.path.abspath("new/1.png")
            True
        """
        old, new = (
            str(_artifacts.check_path(name, path)).rstrip(os.sep)
            for name, path in (("old_root", old_root), ("new_root", new_root))
        )
        if not os.path.isdir(new + os.sep):
            raise ArtifactError(f"new_root {_checks.shown(new)} is not a folder: pass a folder.")
        with self._changing:
            items = self._items
            files = items.table["file"].tolist()
            rows = [row for row, file in enumerate(files) if file.startswith(old + os.sep)]
            if not rows:
                raise ArgumentError(_not_below(old, files))
            targets = [new + files[row][len(old) :] for row in rows]
            stamps = items.stamps()
            pairs = [(file, stamps[row]) for row, file in zip(rows, targets, strict=True)]
            new_names = {}
            for row, pair, state in zip(rows, pairs, self._files.states(pairs), strict=True):
                same = state[0] == "same"
                if same or state[0] == "changed" and not pair[1].sha256:
                    new_names[row] = pair[0], state[1] if same else pair[1]
            new_names = _without_clashes(new_names, files)
            left = [files[row] for row in rows if row not in new_names]
            moved = [(items.id_at(row), *new) for row, new in new_names.items()]
            ids, names, new_stamps = columns(moved, 3)
            items = items.changed(ids, file=names, stamps=new_stamps)
            self._assign(items)
            self.gone = _gone_files(items)
        if left:
            _checks.warn(
                f"{len(left)} of {len(rows)} items keep their old names, since their file below "
                "new_root is missing, holds another image or belongs to another item: "
                f"{_checks.shown_names(left)}."
            )
        return np.array(sorted(ids), "int64")

    def compact(self) -> None:
        """Discards the vectors of removed items; the index is built again when it is needed."""
        with self._changing:
            self._assign(self._items.compacted())

    def near_duplicates(self, min_correlation: float = 0.975) -> pd.DataFrame:
        """Lists pairs of files that are near-duplicates, by `duplicates.find_near_duplicates`.

        Args:
            min_correlation: Smallest correlation of two thumbnails, 0 to 1.

        Returns:
            A row for each pair: copy and original, the names of both files.

        Raises:
            ArgumentError: If images were added as arrays, which have no file.
            ImageError: If a file cannot be decoded.
        """
        files = self.items["file"].tolist()
        _check_have_files(files)
        gone = [file for file in files if _items.is_gone(file)]
        self._warn_once("gone", gone, _GONE)
        files = [file for file in files if file not in set(gone)]
        found = duplicates.find_near_duplicates(self._folder(files), min_correlation)
        names = np.array(files, dtype=object)
        return pd.DataFrame(names[found], columns=["copy", "original"], dtype=object)

    def report(
        self, k: int = 10, min_correlation: float = 0.975, min_cluster_size: int | None = 10
    ) -> pd.DataFrame:
        """Looks for duplicates, outliers, suspect labels and clusters (`curation`).

        Nothing is changed: the table proposes what a person should look at. Duplicates are found by
        the content of the files. All else is found by the embeddings, and is only as good as they
        are.

        Args:
            k: Number of neighbors by which outliers and labels are judged, 1 or more.
            min_correlation: Smallest correlation of the thumbnails of near-duplicates, 0 to 1.
            min_cluster_size: Least number of images in a cluster, 2 or more. None to look for no
                clusters, which takes the longest for many images.

        Returns:
            `items` with more columns: copy_of, the id of the first item whose file has the same
            content, or -1; duplicate_group, the number of a group of copies and near-duplicates, or
            -1; outlier_score, the distance to the `k`-th nearest item; label_suspicion, how far the
            nearest items contradict the label (`curation.suspect_labels`; NaN without a label), and
            suggested_label, which most of them have; cluster, from 0 for the largest one, or -1.
            Items without a file, or whose file is gone or damaged, are in no group; a warning names
            damaged files, and files that have changed since they were added.

        Raises:
            ArgumentError: If there are fewer than 3 items, or a number is out of range.

        Example:
            >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
            >>> gallery = Gallery(embedder, "euclidean")
            >>> images = np.random.default_rng(0).random((40, 8, 8, 1)) / 10
            >>> images[:20] += 0.9
            >>> images[39, :4, :, 0] = 1.0
            >>> ids = gallery.add(images, labels=["light"] * 20 + ["dark"] * 20)
            >>> int(gallery.report()["outlier_score"].idxmax())
            39
        """
        return self._report(self._items.compacted(), k, min_correlation, min_cluster_size)

    def _report(self, items: Items, k, min_correlation, min_cluster_size) -> pd.DataFrame:
        """Returns the report of items without gaps."""
        _checks.number("min_correlation", min_correlation, 0, 1)
        if min_cluster_size is not None:
            _checks.integer("min_cluster_size", min_cluster_size, 2)
        _checks.integer("k", k)
        table, vectors = items.shown(), items.vectors
        metric, kind = self.settings["metric"], self.settings["kind"]
        if len(table) < _REPORT_ITEMS:
            have = _checks.counted(len(table), "item", "items")
            raise ArgumentError(
                f"The gallery has {have}, too few for a report: add {_REPORT_ITEMS} or more."
            )
        k = _checks.clipped("k", k, len(table) - 1, "other item", "other items")
        table = self._with_duplicates(table, items, min_correlation)
        table["outlier_score"] = curation.outlier_scores(vectors, k, metric, kind)
        labels = table["label"].to_numpy(str)
        suspects = curation.SuspectLabels(
            np.full(len(table), np.nan), np.full(len(table), "", dtype=object)
        )
        if (labels != "").sum() > 1:
            known = min(k, int((labels != "").sum()) - 1)
            suspects = curation.suspect_labels(vectors, labels, known, metric, kind)
        table["label_suspicion"] = suspects.suspicion
        # As objects: strings of pyarrow cannot hold labels that are not UTF-8.
        table["suggested_label"] = pd.Series(suspects.suggested.tolist(), dtype=object)
        table["cluster"] = -1
        if min_cluster_size is not None and len(table) >= min_cluster_size:
            table["cluster"] = curation.clusters(vectors, min_cluster_size, metric)
        return table

    def _with_duplicates(self, table, items: Items, min_correlation) -> pd.DataFrame:
        """Returns the table with the columns copy_of and duplicate_group."""
        rows = np.flatnonzero(table["file"].to_numpy() != "")
        files, stamps = table["file"].tolist(), items.stamps()
        states = self._files.states([(files[row], stamps[row]) for row in rows])
        found = dict(zip(rows.tolist(), states, strict=True))
        changed = [files[row] for row, (state, _) in found.items() if state == "changed"]
        self._warn_once("changed", changed, _CHANGED)
        # Files are compared as they are now.
        now = {row: stamp.sha256 for row, (state, stamp) in found.items() if state in _THERE}
        first = {digest: row for row, digest in reversed(now.items())}
        pairs = [(row, first[digest]) for row, digest in now.items() if first[digest] != row]
        copy_of = np.full(len(table), -1, "int64")
        for row, original in pairs:
            copy_of[row] = table["id"][original]
        there = np.array(list(now), "int64")
        usable, near = self._usable_near_duplicates([files[row] for row in there], min_correlation)
        near = there[usable][near]
        all_pairs = np.concatenate([np.array(pairs, "int64").reshape(-1, 2), near])
        groups = curation.duplicate_groups(all_pairs, len(table))
        return table.assign(copy_of=copy_of, duplicate_group=groups)

    def _usable_near_duplicates(self, files, min_correlation) -> tuple[np.ndarray, np.ndarray]:
        """Finds near-duplicates among those files that can be decoded; warns of the others.

        Returns:
            `(usable, pairs)`: positions of the files that can be decoded, and pairs of positions
            among those.
        """
        none, usable = np.empty((0, 2), "int64"), np.arange(len(files))
        if not files:
            return usable, none
        try:
            return usable, duplicates.find_near_duplicates(self._folder(files), min_correlation)
        except ImageError:
            usable = np.flatnonzero(~np.array(thread_map(_is_damaged, files)))
        left_out = sorted(set(range(len(files))) - set(usable.tolist()))
        self._warn_once("damaged", [files[n] for n in left_out], _NOT_COMPARED)
        if not len(usable):
            return usable, none
        folder = self._folder([files[n] for n in usable])
        return usable, duplicates.find_near_duplicates(folder, min_correlation)

    def write_report(
        self,
        path: Path | str,
        title: str = "Gallery",
        k: int = 10,
        min_correlation: float = 0.975,
        min_cluster_size: int | None = 10,
    ) -> Path:
        """Writes the findings of `report` with their images as one HTML page.

        The page shows up to 30 groups of duplicates, suspect labels beside the nearest images,
        outliers, and clusters. It contains small copies of the images and no path of the disk, so
        that it can be passed on. Items whose file is not there are shown by the thumbnail that the
        gallery keeps, or without an image.

        Args:
            path: HTML file to write; its name ends in .html or .htm.
            title: Title of the page.
            k: As for `report`.
            min_correlation: As for `report`.
            min_cluster_size: As for `report`.

        Returns:
            The absolute path.

        Raises:
            ArgumentError: As `report`, or if `path` does not end in .html.
            ArtifactError: If the page cannot be written.
        """
        items = self._items.compacted()
        path = _artifacts.check_page(path)
        # Of the same items as the vectors, whatever other threads add meanwhile.
        table = self._report(items, k, min_correlation, min_cluster_size)

        files, kept = table["file"].tolist(), items.table["thumbnail"].tolist()

        def read(row):
            file = files[row]
            with contextlib.suppress(ImageError):
                if file and not _items.is_gone(file):
                    return decode(file, None, 3, thumbnail_side=2 * _report.SIDE)[0]
            return decode(kept[row])[0] if kept[row] else None

        page = _report.write_page(
            table,
            items.vectors,
            self.settings["metric"],
            read,
            min(k, len(table) - 1),
            title,
            min_cluster_size is not None,
        )
        # Names of files may hold bytes that are not UTF-8.
        return _artifacts.write_file(path, page.encode(errors="backslashreplace"))

    def write_map(
        self,
        path: Path | str,
        images: ArrayLike | ImageFolder | None = None,
        title: str = "Gallery",
        k: int = 10,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "skip",
        groups: Mapping[str, ArrayLike | Sequence[Any]] | None = None,
    ) -> Path:
        """Writes a map of the gallery as an HTML page (`Projection`, `explorer.write_explorer`).

        The points can be colored by label, by how unusual an image is and, up to 5,000 images, by
        cluster (`curation`). Fewer than 5 images are laid out by principal components.

        Args:
            path: HTML file to write.
            images: Images of all items, in the order of `items`. None to show the thumbnails that
                the gallery keeps, or the files of items that have none.
            title: Title above the map.
            k: Number of nearest images shown for each image, by each of the three metrics, 1 or
                more. If there are fewer, all are shown, with a warning.
            seed: The same seed draws the same map.
            on_error: What to do with items that have no thumbnail, and whose file is gone or cannot
                be decoded: "skip" them, with a warning, or "raise" an error.
            groups: Dict from a name to a value for each item, in the order of `items`, by which the
                points can be colored, too.

        Returns:
            The absolute path.

        Raises:
            ArgumentError: If there is no item to show, items have no images, or `groups` do not fit
                the items.
            ImageError: If `on_error="raise"` and a file is gone or cannot be decoded.
            ArtifactError: If the page cannot be written.

        Example:
            >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
            >>> gallery = Gallery(embedder, "euclidean")
            >>> images = np.random.default_rng(0).random((4, 8, 8, 1))
            >>> ids = gallery.add(images)
            >>> gallery.write_map("map.html", images, k=3, groups={"camera": [1, 1, 2, 2]}).name
            'map.html'
        """
        _checks.integer("k", k)
        _checks.one_of("on_error", on_error, ("raise", "skip"))
        items = self._items.compacted()
        kept = np.arange(len(items.table))
        if images is None:
            images, kept = self._thumbnails(items, on_error)
        if not len(kept):
            raise ArgumentError("The map has no image to show: add images.")
        vectors = items.vectors[kept]
        if len(kept) > 1:
            k = _checks.clipped(
                "k", k, len(kept) - 1, "other item of the map", "other items of the map"
            )
        places = _map_places(vectors, k, seed)
        distances, nearest = {}, {}
        metric = self.settings["metric"]
        zeros = not vectors.any(axis=1).all()  # have no cosine distance
        for each in METRICS[: -1 if zeros else None]:
            if len(kept) > 1:
                distances[each], nearest[each] = NeighborIndex(each).fit(vectors).query(k=k)
        labels = items.table["label"].to_numpy(str)[kept]
        files = items.table["file"].to_numpy()[kept].tolist()
        return write_explorer(
            path,
            images,
            places,
            labels if (labels != "").any() else None,
            nearest,
            title,
            metric=metric if metric in nearest else None,
            distances=distances,
            groups=_map_groups(groups, items, kept, distances.get(metric), metric),
            files=files,
        )

    def _thumbnails(self, items: Items, on_error: str):
        """Returns small images of the items, and which items they belong to.

        They are the thumbnails that the gallery keeps, or made of the files of items without one.
        """
        files, kept = items.table["file"].tolist(), items.table["thumbnail"].tolist()
        sources = [kept[row] or files[row] for row in range(len(files))]
        _check_have_files(sources)

        def why_not(source):
            if isinstance(source, bytes):
                return ""
            try:
                decode(source, None, 3, thumbnail_side=_THUMBNAIL)
                return ""
            except ImageError as error:
                return str(error)

        reasons = thread_map(why_not, sources)
        bad = [(file, reason) for file, reason in zip(files, reasons, strict=True) if reason]
        _folders.check_usable(bad, len(files), on_error)
        self._warn_once("map", [file for file, _ in bad], _NOT_ON_MAP)
        states = zip(files, self._file_states(items), strict=True)
        changed = [file for file, state in states if state == "changed"]
        self._warn_once("changed", changed, _CHANGED)
        rows = [row for row, reason in enumerate(reasons) if not reason]
        return _Thumbnails([sources[row] for row in rows]), np.array(rows, "int64")

    def save(self, path: Path | str, replace: bool = False) -> None:
        """Writes the gallery to a folder, completely or not at all.

        Args:
            path: The folder. A gallery there is replaced if this one was loaded from it or saved
                to it, and no other was saved there since.
            replace: True to overwrite any other gallery, too.

        Raises:
            ArtifactError: If there is another gallery, another process is saving there, or the
                folder cannot be written.
            ArgumentError: If the embedder has changed, or could not be loaded again.
        """
        _checks.boolean("replace", replace)
        with self._changing:
            self._check_embedder()
            path = _artifacts.resolve(path)
            # guard: gallery-lock
            with _artifacts.lock(path.parent / f".{path.name}.lock", path):
                self._saved.check(path, _KIND, replace)
                self._write(path)

    def _write(self, path: Path) -> None:
        items, index = self._items, None
        if len(items.table):
            items, index = self._indexed()
        calibration = self._calibration
        token = secrets.token_hex(16)
        info = {
            "settings": self.settings,
            "thumbnail_size": self.thumbnail_size,
            "resize": self.resize,
            "index": None if index is None else index._metadata(),
            "next": items.next_id,
            "threshold": None if calibration is None else calibration.threshold,
            "pairs": None if calibration is None else calibration.pairs(),
            "token": token,
            "saved_at": str(path),
            "trusted_before": self._files.trusted_before,
        }

        def fill(folder):
            if self._embedder_loads:
                self.embedder.save(folder / "embedder.keras")
            else:
                _keras_files.save_model(self.embedder, folder / "embedder.keras")
                self._embedder_loads = True
            items.write(folder)
            if index is not None:
                index._write_files(folder)

        self._saved.expect(path, token)
        _artifacts.write(path, _KIND, fill, info, self._fingerprint)
        self._saved.note(path)

    @classmethod
    def load(
        cls,
        path: Path | str,
        embedder: keras.Model | None = None,
        root: Path | str | None = None,
        mmap_mode: Literal["r"] | None = None,
    ) -> "Gallery":
        """Reads a gallery that `save` wrote.

        Args:
            path: The folder.
            embedder: The embedder that the gallery was made with; None to read it from the folder.
            root: The folder that holds the image files now, if it is not where it was when the
                gallery was saved (`root`). None: if that folder is gone, and there is one in the
                same place relative to `path`, it is taken, so that a folder that holds images and
                gallery can be moved or copied to another computer. Files count as the same if they
                have the same size; the next `add` compares their content. A warning says how many
                items are left with their old names.
            mmap_mode: "r" leaves the vectors on the disk, which must be a local one, until images
                are added or removed; see `NeighborIndex.load`. None reads them into memory.

        Returns:
            The gallery, as it was saved.

        Raises:
            ArtifactError: If the folder is missing or damaged, or made with another embedder, or
                `root` is not a folder.
            ArgumentError: If `root` is given, and no item has a file, or `mmap_mode` is not known.

        Example:
            >>> embedder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
            >>> gallery = Gallery(embedder)
            >>> ids = gallery.add(np.random.default_rng(0).random((3, 8, 8, 1)))
            >>> gallery.save("gallery")
            >>> len(Gallery.load("gallery"))
            3
        """

        mapped = check_mmap_mode(mmap_mode)

        def load(folder, manifest):
            info = manifest.info
            model = embedder or embedding.load_embedder(folder / "embedder.keras")
            size = info.get("thumbnail_size", _thumbnails.LARGEST)
            resize = info.get("resize", "squash")
            gallery = cls(model, **info["settings"], thumbnail_size=size, resize=resize)
            table, vectors = _items.read_table(folder), gallery._items.vectors
            if info["index"]:
                index = NeighborIndex._from_files(folder, info["index"], manifest, mapped)
                gallery._built, vectors = (0, index), index.embeddings
            if vectors.shape[1] != gallery._items.vectors.shape[1]:
                raise ValueError(f"vectors of {vectors.shape[1]} numbers, not of the embedder")
            if len(vectors) != len(table):
                raise ValueError(f"{len(vectors)} vectors, {len(table)} items")
            gallery._items = Items(table, vectors, info["next"])
            gallery._items.check()
            if info["pairs"] and info["threshold"] is not None:
                gallery._calibration = _Calibration.from_pairs(info["threshold"], info["pairs"])
            gallery._embedder_loads = True
            gallery._files.trusted_before = info.get("trusted_before", _items.written_at(folder))
            gallery._saved.note(path, folder)
            saved_at = info.get("saved_at")
            if not isinstance(saved_at, (str, type(None))):
                raise ValueError(f"saved_at={saved_at!r} is not a path")
            return gallery, saved_at

        expected = None if embedder is None else _model_identity.fingerprint(embedder)
        gallery, saved_at = _artifacts.read(path, _KIND, load, expected)
        gallery._find_root(_artifacts.resolve(path), saved_at, root)
        return gallery

    def _find_root(self, path: Path, saved_at: str | None, root: Path | str | None) -> None:
        """Renames the files of a gallery that was loaded from `path`, if their folder has moved.

        Args:
            path: Where the gallery is now.
            saved_at: Where it was when it was saved, if known.
            root: The folder of the files, or None to look for it.
        """
        old = self.root
        if root is not None:
            new = _artifacts.check_path("root", root)
            if not os.path.isdir(new):
                raise ArtifactError(f"root {_checks.shown(new)} is not a folder: pass a folder.")
            if old is None:
                raise ArgumentError("No item of the gallery has a file: leave out root.")
        else:
            if old is None or saved_at is None or os.path.isdir(old):
                return
            new = Path(os.path.normpath(path / os.path.relpath(old, saved_at)))
            if not os.path.isdir(new):
                return
        items, left = _items.rebased(self._items, old, new)
        self._assign(items)
        if left:
            count = _checks.counted(len(left), "item keeps its", "items keep their")
            _checks.warn(
                f"{count} old file name, since there is no file of the same size below "
                f"{_checks.shown(new)}: {_checks.shown_names(left)}."
            )

    def _indexed(self) -> tuple[Items, NeighborIndex]:
        """Returns the items, and an index of exactly their vectors.

        A larger index is built as a copy, so that other threads can still query the old one, and
        an interrupt loses nothing.
        """
        with self._growing:
            items = self._items
            if not len(items.table):
                raise ArgumentError("The gallery is empty: call add(images) first.")
            version, index = self._built
            if index is None or version != items.version:
                index = NeighborIndex(**self.settings).fit(items.vectors)
            elif len(index) < len(items.vectors):
                index = index._grown(items.vectors)
            self._built = items.version, index
            with self._assigning:
                if self._items is items:  # one copy of the vectors is enough
                    shared = dataclasses.replace(items, vectors=index.embeddings)
                    self._items = items = shared
            return items, index

    def _assign(self, items: Items) -> None:
        with self._assigning:
            self._items = items

    def _settled(self, items: Items) -> Items:
        """Returns items without the vectors of removed ones, which only a graph has to keep."""
        return items.compacted() if self.settings["kind"] == "exact" else items

    def _check_embedder(self):
        now = _model_identity.fingerprint(self.embedder)
        if not len(self._items.table):
            self._fingerprint = now
        if now != self._fingerprint:
            raise ArgumentError(
                "embedder has changed since the first images were added to the gallery: "
                "make a new gallery and add them again."
            )

    def _known_ids(self, items: Items, ids) -> np.ndarray:
        """Returns `ids` as an array, each of which is in the gallery."""
        ids = _checks.array("ids", ids).ravel()
        if not ids.size:
            return np.empty(0, "int64")
        if ids.dtype.kind not in "iu":
            fix = "pass values of items['id'], or names of files"
            raise ArgumentTypeError(f"ids must be whole numbers, not {ids.dtype}: {fix}.")
        held = items.table["id"].to_numpy()
        unknown = ids[~np.isin(ids, held[held >= 0])]
        if len(unknown):
            shown = sorted(set(unknown.tolist()))[:5]
            raise ArgumentError(f"ids {shown} are not in the gallery: pass values of items['id'].")
        return ids.astype("int64")

    def _ids_of_files(self, items: Items, files) -> np.ndarray:
        known, ids, found, unknown = self._files.rows(items), items.table["id"].tolist(), [], []
        for file in files:
            if not isinstance(file, (str, os.PathLike)):
                raise ArgumentTypeError(
                    f"ids must be whole numbers or names of files, not {type(file).__name__}."
                )
            name = str(_artifacts.check_path("ids", file)) if os.fspath(file) else ""
            row = known.get(name, known.get(os.path.realpath(name))) if name else None
            if row is None:
                unknown.append(file)
            else:
                found.append(ids[row])
        if unknown:
            held = _checks.counted(len(unknown), "file is", "files are")
            raise ArgumentError(
                f"{held} not in the gallery: {_checks.shown_names(unknown)}. Pass values of "
                "items['file'] or items['id']."
            )
        return np.array(found, "int64")

    def _folder(self, files) -> data.ImageFolder:
        """Returns files as images of the size of the embedder, not yet decoded."""
        height, width, channels = self.image_shape
        paths = [Path(file) for file in files]
        return data.ImageFolder(paths, None, [], [], (height, width), channels, self.resize)

    def _images(self, images):
        """Returns the images passed to a method as an `ImageFolder`, not decoded, or an array."""
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            _, files, skipped = _find_files(images)
            self._warn_once("left out", [file for file, _ in skipped], _LEFT_OUT)
            return self._folder(files)
        if isinstance(images, Iterator):
            images = list(images)
        given = sources(images)
        if given is None:
            if isinstance(images, data.ImageFolder) and images.resize != self.resize:
                raise ArgumentError(
                    f"images is a folder with resize={images.resize!r}, but the gallery has "
                    f"resize={self.resize!r}: pass one of them to both."
                )
            return _image_checks.check_shape("images", images, self.image_shape)
        if all(isinstance(source, (str, os.PathLike)) for source in given):
            return self._folder([_artifacts.check_file(source) for source in given])
        height, width, channels = self.image_shape

        def pixels(position):
            source = given[position]
            try:
                content = encoded(source) if isinstance(source, Image.Image) else source
                return decode(content, (height, width), channels, resize=self.resize)[0]
            except ImageError as error:
                raise ImageError(f"Image {position} cannot be used: {error}") from error

        return np.stack(thread_map(pixels, range(len(given))))

    def _distances(self, left, right):
        left, right = self._images(left), self._images(right)
        if isinstance(left, data.ImageFolder) and isinstance(right, data.ImageFolder):
            # Pairs share images: each file is decoded and embedded once.
            files, rows = np.unique(
                [*map(str, left.files), *map(str, right.files)], return_inverse=True
            )
            vectors = embedding.embed(self.embedder, self._folder(files.tolist()))[rows]
            left, right = vectors[: len(left)], vectors[len(left) :]
        else:
            left = embedding.embed(self.embedder, left)
            right = embedding.embed(self.embedder, right)
        return metrics.pair_distances(left, right, self.settings["metric"])


# Warnings about files: for one file, for several, and the rest of the sentence.
_LEFT_OUT = ("file is", "files are", "left out, see `skipped`: {names}.")
_GONE = (
    "file of an item is",
    "files of items are",
    "missing: {names}. Call prune() to remove these items, or relocate(old_root, new_root) if "
    "their folder was moved.",
)
_NOT_ON_MAP = (
    "item is",
    "items are",
    "not on the map, because the file is missing or cannot be decoded: {names}.",
)
_NOT_COMPARED = (
    "file is",
    "files are",
    "not compared with the others, because they cannot be decoded: {names}.",
)
_THERE = ("same", "changed")  # states of files
_CHANGED = ("file has", "files have", "changed since the last add: {names}. Add them again.")


@dataclasses.dataclass(frozen=True)
class _Calibration:
    """A threshold, and the distances of the pairs that it was fitted on."""

    threshold: float
    distances: np.ndarray
    same: np.ndarray

    @classmethod
    def from_pairs(cls, threshold, pairs) -> "_Calibration":
        """Creates a calibration from the result of the method `pairs`.

        Raises:
            ValueError: If the pairs are not such a result.
        """
        _checks.number("threshold", threshold)
        if not isinstance(pairs, list) or len(pairs) != 2:
            raise ValueError("pairs are not a list of distances and a list of flags")
        distances, same = (_checks.as_real_array("pairs", part, "fiub") for part in pairs)
        metrics.verification(distances, same)  # refuses what does not fit
        return cls(threshold, distances, same)

    def pairs(self) -> list[list]:
        """Returns distances and flags of the pairs, as JSON values."""
        return [self.distances.tolist(), self.same.tolist()]

    def verification(self) -> metrics.Verification:
        return metrics.verification(self.distances, self.same)

    def rates(self) -> dict:
        """Returns the dict of `Gallery.calibration`."""
        same = self.same.astype(bool)
        accepted = self.distances <= self.threshold
        found: dict[str, Any] = {"threshold": self.threshold}
        for name, wrong in (("far", accepted[~same]), ("frr", ~accepted[same])):
            low, high = _wilson(int(wrong.sum()), len(wrong))
            found[name], found[f"{name}_interval"] = float(wrong.mean()), (low, high)
        return {
            **found,
            "negative_pairs": int((~same).sum()),
            "positive_pairs": int(same.sum()),
        }

    def warn_of_few_pairs(self, max_far: float) -> None:
        """Warns if an error rate is measured on few pairs."""
        rates = self.rates()
        negative, positive = rates["negative_pairs"], rates["positive_pairs"]
        expected = max_far * negative
        if expected < _FEW_PAIRS:
            pairs = _checks.counted(negative, "negative pair", "negative pairs")
            _checks.warn(
                f"The threshold is determined by few pairs: max_far={max_far:g} of {pairs} is "
                f"{expected:.3g} pairs. Pass more negative pairs, or a larger max_far."
            )
        if positive < _FEW_PAIRS:
            pairs = _checks.counted(positive, "pair", "pairs")
            _checks.warn(
                f"The rate of rejected positive pairs is measured on {pairs}: pass "
                f"{_FEW_PAIRS} positive pairs or more."
            )


class _Thumbnails(data.ImageFolder):
    """Images that are shown by their thumbnails.

    Attributes:
        sources: The encoded thumbnail of each image, or its file.
    """

    def __init__(self, sources: list):
        self.sources = sources
        super().__init__([Path()] * len(sources), None, [], [], (1, 1), 3)


def _map_places(vectors, k: int, seed: int) -> np.ndarray:
    """Returns the coordinates of a map: of few vectors their first two principal components."""
    if len(vectors) >= _MAP_ITEMS:
        return Projection(min(15, max(2, k)), seed=seed).fit_transform(vectors)
    scaled = vectors / (np.abs(vectors).max() or 1.0)
    left, sizes, _ = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)
    places = np.zeros((len(vectors), 2))
    places[:, : len(sizes)] = (left * sizes)[:, :2]
    return places


def _map_groups(groups, items: Items, kept, distances, metric) -> dict[str, Any]:
    """Returns what the points of a map can be colored by, besides labels, for the items `kept`."""
    _checks.has_attribute("groups", {} if groups is None else groups, "items", "a dict of names")
    found = {}
    for name, values in (groups or {}).items():
        given = np.array(values, dtype=object)  # keeps None among numbers
        found[name] = _checks.same_length(
            f"groups[{name!r}]", given, len(items.table), "items", rank=1
        )[kept].tolist()
    if distances is not None and len(kept) >= _MAP_ITEMS:
        scores = distances[:, -1]  # as `curation.outlier_scores`
        steps = [(scores > np.quantile(scores, share)).astype(int) for share in (0.95, 0.99)]
        names = np.array(
            ["no", "among the 5 % farthest from others", "among the 1 % farthest from others"]
        )
        found.setdefault("outlier", names[sum(steps)])
    if 2 * _CLUSTER <= len(kept) <= _MAP_CLUSTERED and distances is not None:
        numbers = curation.clusters(items.vectors[kept], _CLUSTER, metric)
        found.setdefault("cluster", [None if n < 0 else int(n) for n in numbers])
    return found


def _wilson(count: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of a rate by Wilson's score."""
    from scipy.stats import binomtest

    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return float(low), float(high)


def _find_files(folder) -> tuple[Path, list[Path], list[tuple[str, str]]]:
    """Returns the result of `find_images`, without empty folders, and with names as strings.

    Raises:
        ArtifactError: If there is no image.
    """
    root, files, skipped = find_images(folder)
    if not files:
        raise ArtifactError(no_image(root, skipped))
    left_out = [(str(file), reason) for file, reason in skipped if reason != EMPTY_FOLDER]
    return root, files, left_out


def _other_files(items: Items, root: Path, files) -> list[Path]:
    """Returns the files of items below `root` that are there, and are not among `files`.

    Such a file has become a link to another one, or was added by its name.
    """
    start, listed = os.path.join(root, ""), set(map(str, files))
    named = [file for file in items.table["file"].tolist() if file.startswith(start)]
    return [Path(file) for file in named if file not in listed and os.path.isfile(file)]


def _gone_files(items: Items) -> list[str]:
    return [file for file in items.table["file"].tolist() if file and _items.is_gone(file)]


def _without_clashes(new_names: dict, files) -> dict:
    """Returns those of `new_names`, `(name, stamp)` by row, that no other row of `files` keeps."""
    while True:
        kept = {file for row, file in enumerate(files) if row not in new_names}
        free = {row: new for row, new in new_names.items() if new[0] not in kept}
        if len(free) == len(new_names):
            return free
        new_names = free


def _not_below(root: str, files) -> str:
    """Returns the message that no file lies below `root`."""
    what = f"No item has a file below old_root {_checks.shown(root)}"
    named = [file for file in files if file]
    if not named:
        return f"{what}: all items were added as arrays, without a file."
    return f"{what}: pass {_checks.shown(os.path.commonpath(named))} or a folder below it."


def _is_damaged(file) -> bool:
    try:
        decode(file)
        return False
    except ImageError:
        return True


def _check_have_files(files) -> None:
    without = files.count("")
    if without:
        fix = "pass images=, or call duplicates.find_near_duplicates on the arrays"
        raise ArgumentError(
            f"{without} of {len(files)} items were added as arrays, without a file: {fix}."
        )
