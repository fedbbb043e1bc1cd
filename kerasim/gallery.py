"""Embedder, vectors, files, labels and threshold as one artefact.

All other parts, put together for daily use. Pictures go in through the embedder, once each: a file
that is in already is left out, so that the same call takes in what is new. The index grows with
them. A threshold for "the same" is fitted on known pairs, by `metrics.verification`. The whole is
saved as one folder; a process that loads it refuses to add vectors of another embedder, and to
write over what another process saved meanwhile.
"""

import csv
import hashlib
import os
import warnings
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from kerasim import _keras_files, artifacts, checks, data, metrics
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError
from kerasim.explorer import write_explorer
from kerasim.neighbors import METRICS, NeighborIndex
from kerasim.projection import Projection

_KIND = "gallery"
_PAIRS = 200_000  # so many fit into a manifest


class Gallery:
    """Pictures that can be searched: put some in, find the most similar, save the whole.

    Pictures are given as a folder (see `data.image_folder`), a list of files, an `ImageFolder`,
    or an array as for `data.embed`.

    Args:
        embedder: `keras.Model` from images of one size to vectors.
        metric: "cosine", "euclidean" or "manhattan".
        kind: "exact" or "hnsw", as for `neighbors.NeighborIndex`.
        **settings: `m`, `ef_construction` and `ef_search` of a graph.

    Attributes:
        embedder: As given; its weights must not change any more.
        image_shape: `(height, width, channels)` that it takes.
        settings: Metric, kind and those of a graph, by name.
        threshold: Greatest distance of two pictures that `verify` calls the same, or None.
        skipped: `(file, reason)` of each file that the last `add` left out.

    Raises:
        ArgumentError: If the embedder takes images of any size, or gives no vectors.
        ArgumentTypeError: If the embedder is no model of one input.
    """

    def __init__(self, embedder, metric: str = "cosine", kind: str = "exact", **settings):
        self.image_shape, dim = data.check_embedder("embedder", embedder)
        if None in self.image_shape:
            what = f"embedder takes images of any size, {self.image_shape}"
            raise ArgumentError(f"{what}: build it with an image_shape.")
        self.embedder, self.threshold, self.skipped = embedder, None, []
        self.settings = NeighborIndex(metric, kind, **settings).settings()
        self._fingerprint = artifacts.fingerprint(embedder)
        self._pairs = None  # distances of known pairs, and whether they are the same
        self._rows = _table([], [], [])  # one for each vector; of a removed one the id is -1
        self._vectors = np.empty((0, dim), "float32")
        self._index: NeighborIndex | None = None  # of the first vectors, or of none
        self._next = 0
        self._stamps: dict = {}  # of each folder as this gallery last saw it

    @property
    def items(self) -> pd.DataFrame:
        """Columns id, file and label, a row for each picture; "" for no file, no label."""
        return self._rows.loc[self._live].reset_index(drop=True)

    @property
    def index(self) -> NeighborIndex:
        """The index of all vectors, brought up to date; `index.recall_` is that of a graph.

        Raises:
            ArgumentError: If the gallery is empty.
        """
        held = 0 if self._index is None else len(self._index)
        if held < len(self._vectors):
            # Whatever breaks off here leaves no half-grown index behind.
            index, self._index = self._index or NeighborIndex(**self.settings), None
            self._index = index.add(self._vectors[held:])
            self._vectors = self._index.embeddings  # no second copy
        if self._index is None:
            raise ArgumentError("The gallery is empty: call add(images) first.")
        return self._index

    def __len__(self) -> int:
        return int(self._live.sum())

    def add(
        self,
        images,
        labels=None,
        on_error: str = "raise",
        path=None,
        chunk: int = 1024,
        embed=data.embed_folder,
    ):
        """Embeds pictures and takes them in.

        Files that are in already are left out: the same call takes in what is new in a folder,
        and goes on, in a gallery that was loaded, where one with `path` was killed.

        Args:
            images: Pictures.
            labels: `(n,)`, a name or number for each; None for the names of the subfolders, if any.
            on_error: What to do with files that cannot be decoded, or that the embedder makes
                zeros of, which have no direction for cosine: "raise" one error that lists them,
                or "skip" them, with a warning, into `skipped`.
            path: Where to `save`, at the end and every now and then before it; None for not at
                all.
            chunk: Pictures that are decoded at once, 1 or more, and the least between two saves,
                which come when an eighth is new.
            embed: What embeds files: `distribute.embed_folder` does it on a cluster, whose workers
                start anew for each chunk, so give it one of tens of thousands.

        Returns:
            `(n,)` int64: ids of the pictures that were taken in.

        Raises:
            ImageError: If `on_error="raise"` and there are such files in a chunk. Those before it
                have been taken in.
            ArgumentError: If images or labels do not fit, or the embedder has changed.
            ArtifactError: If `path` cannot be written, or holds what another process saved.
        """
        checks.integer("chunk", chunk)
        checks.choice("on_error", on_error, ("raise", "skip"))
        self._check_embedder()
        if path is not None:
            self._check_stamp(path)
        images = self._images(images)
        files = [str(file) for file in getattr(images, "files", [""] * len(images))]
        if labels is None and getattr(images, "labels", None) is not None:
            labels = [images.class_names[label] for label in images.labels]
        labels = [""] * len(images) if labels is None else labels
        labels = checks.each("labels", labels, len(images), "images", 1)
        known = {os.path.realpath(file) for file in self._rows["file"] if file}
        new: dict = {}
        for n, file in enumerate(files):  # a picture without a file is like no other
            new.setdefault(os.path.realpath(file) if file else n, n)
        rows = [n for real, n in new.items() if real not in known]
        self.skipped, first, saved = [], self._next, len(self)
        bar = tqdm(total=len(rows), unit="image", disable=len(rows) <= chunk)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            kept, vectors, bad = self._embed(images, files, part, embed)
            data.check_usable(bad, len(part), on_error)
            self.skipped += bad
            ids = np.arange(self._next, self._next + len(kept))
            table = _table(ids, [files[n] for n in kept], [str(labels[n]) for n in kept])
            vectors = np.concatenate([self._vectors, vectors])
            self._rows = pd.concat([self._rows, table], ignore_index=True)
            self._vectors, self._next = vectors, self._next + len(kept)
            bar.update(len(part))
            if path is not None and len(self) - saved >= max(chunk, len(self) // 8):
                self.save(path)
                saved = len(self)
        bar.close()
        if self.skipped:
            names = ", ".join(ascii(os.path.basename(file)) for file, _ in self.skipped[:5])
            what = f"{len(self.skipped)} pictures are left out, see skipped"
            warnings.warn(f"{what}: {names}.", stacklevel=2)
        if path is not None:
            self.save(path)
        return np.arange(first, self._next)

    def _embed(self, images, files, rows, embed):
        """Returns the rows that can be taken in, their vectors, and (file, reason) of others."""
        rows = np.array(rows, "int64")
        if isinstance(images, data.ImageFolder):
            vectors, reasons = embed(self.embedder, images.take(rows))
        else:
            vectors, reasons = data.embed(self.embedder, images[rows]), [""] * len(rows)
        if self.settings["metric"] == "cosine":
            for n in np.flatnonzero(~vectors.any(axis=1)):
                name = ascii(files[rows[n]]) if files[rows[n]] else f"Image {rows[n]}"
                reasons[n] = f"{name} is embedded as zeros, which have no direction for cosine."
        good = np.array([not reason for reason in reasons])
        bad = [(files[n], reason) for n, reason in zip(rows, reasons, strict=True) if reason]
        return rows[good], vectors[good], bad

    def query(self, images, k: int = 10) -> pd.DataFrame:
        """Finds the most similar pictures.

        Args:
            images: Pictures.
            k: How many of each, 1 or more; all there are if there are fewer.

        Returns:
            A row for each picture found, nearest first: query (position in `images`), rank (from
            1), id, file, label and distance.

        Raises:
            ArgumentError: If the gallery is empty, or the images do not fit.
            ImageError: If a file cannot be decoded.
        """
        checks.integer("k", k)
        if not len(self):
            raise ArgumentError("The gallery is empty: call add(images) before query.")
        vectors, most = data.embed(self.embedder, self._images(images)), min(k, len(self))
        live, asked = self._live, most
        while True:  # a graph holds removed ones, too
            distances, found = self.index.query(vectors, asked)
            if live.all() or asked == len(live) or (live[found].sum(axis=1) >= most).all():
                break
            asked = min(2 * asked, len(live))
        shown = live[found] & (np.cumsum(live[found], axis=1) <= k)
        table = self._rows.iloc[found[shown]].reset_index(drop=True)
        table.insert(0, "query", np.nonzero(shown)[0])
        table.insert(1, "rank", np.cumsum(shown, axis=1)[shown])
        return table.assign(distance=distances[shown])

    def calibrate(self, left, right, same, far: float = 0.01) -> float:
        """Fits the threshold, and the score, of `verify` on known pairs.

        Args:
            left, right: Pictures that nothing was trained on; `right[i]` is paired with `left[i]`.
            same: `(n,)`: 1 or True for a like pair, else 0; n from 2 to 200,000.
            far: Share of unlike pairs that may be accepted, 0 to 1.

        Returns:
            The threshold, a distance.

        Raises:
            ArgumentError: As `metrics.verification`.
        """
        same = checks.array("same", same).reshape(-1)
        checks.integer("the number of pairs", len(same), 2, _PAIRS)
        pairs = self._distances(left, right), same
        threshold = metrics.verification(*pairs).threshold(far)
        self._pairs, self.threshold = pairs, threshold
        return threshold

    def verify(self, left, right) -> pd.DataFrame:
        """Says of each pair of pictures whether both show the same.

        Args:
            left, right: Pictures, as many on each side.

        Returns:
            A row for each pair: distance, same (at `threshold`) and score, the chance that they
            do if half of all pairs did.

        Raises:
            ArgumentError: If the gallery is not calibrated.
        """
        if self.threshold is None or self._pairs is None:
            raise ArgumentError("The gallery has no threshold: call calibrate with known pairs.")
        distances = self._distances(left, right)
        table = pd.DataFrame({"distance": distances, "same": distances <= self.threshold})
        return table.assign(score=metrics.verification(*self._pairs).score(distances))

    def remove(self, ids) -> None:
        """Takes pictures out; a graph holds their vectors, unseen, until `compact`.

        Args:
            ids: Some of `items["id"]`.

        Raises:
            ArgumentError: If an id is not in the gallery.
            ArgumentTypeError: If the ids are no whole numbers.
        """
        ids = checks.array("ids", ids).ravel()
        if ids.size and ids.dtype.kind not in "iu":
            mend = "pass some of items['id']"
            raise ArgumentTypeError(f"ids must be whole numbers, not {ids.dtype}: {mend}.")
        unknown = sorted(set(ids.tolist()) - set(self.items["id"]))
        if unknown:
            raise ArgumentError(f"ids {unknown[:5]} are not in the gallery: pass some of items.")
        self._rows.loc[self._rows["id"].isin(ids.tolist()), ["id", "file", "label"]] = [-1, "", ""]
        if self.settings["kind"] == "exact":
            self.compact()

    def compact(self) -> None:
        """Lets go of the vectors of pictures that were removed; the index is built again."""
        self._vectors, self._rows, self._index = self._vectors[self._live], self.items, None

    def near_copies(self, min_correlation: float = 0.975) -> pd.DataFrame:
        """Lists pairs of files that are near-duplicates, by `data.find_near_copies`.

        Args:
            min_correlation: Least correlation of two thumbnails, from 0 to 1.

        Returns:
            A row for each pair: copy and original, names of files.

        Raises:
            ArgumentError: If images were added as arrays, which have no file.
        """
        found = data.find_near_copies(self._files(), min_correlation)
        files = self.items["file"].to_numpy()
        return pd.DataFrame(files[found], columns=["copy", "original"], dtype=object)

    def write_map(self, path, images=None, title: str = "Gallery", k: int = 10, seed: int = 0):
        """Writes the gallery as a page, by `projection.Projection` and `explorer.write_explorer`.

        Args:
            path: The HTML file.
            images: Of all items, in their order; None for what their files hold.
            title: Shown above the map.
            k: Nearest pictures shown of each, 1 or more, by each of the three metrics.
            seed: The same seed draws the same map.

        Returns:
            The absolute path.

        Raises:
            ArgumentError: If there are fewer than 5 items, or no images to show.
            ArtifactError: If the file cannot be written.
        """
        vectors = self._vectors[self._live]
        k = min(checks.integer("k", k), len(vectors) - 1)
        places = Projection(min(15, max(2, k)), seed=seed).fit_transform(vectors)
        nearest = {}
        zeros = not vectors.any(axis=1).all()  # which have no direction
        for metric in METRICS[: -1 if zeros else None]:
            found = NeighborIndex(metric).fit(vectors).query(vectors, k + 1)[1]
            # Of copies not each finds itself first, or at all.
            others = found != np.arange(len(found))[:, None]
            others &= np.cumsum(others, axis=1) <= k
            nearest[metric] = found[others].reshape(-1, k)
        labels = self.items["label"].to_numpy(str)
        labels = labels if (labels != "").any() else None
        images = self._files() if images is None else images
        return write_explorer(path, images, places, labels, nearest, title)

    def save(self, path, replace: bool = False) -> None:
        """Writes the gallery to a folder, whole or not at all.

        Args:
            path: The folder.
            replace: True to write over a gallery that this one was not loaded from, or that
                another process has saved since.

        Raises:
            ArtifactError: If there is such a gallery, another process is saving there, or the
                folder cannot be written.
            ArgumentError: If the embedder has changed, or could not be loaded again.
        """
        self._check_embedder()
        checks.flag("replace", replace)
        path = artifacts.place(path)
        with artifacts.lock(path.parent / f".{path.name}.lock", path):
            if not replace:
                self._check_stamp(path)
            info = {
                "settings": self.settings,
                "index": self.index.info() if len(self._rows) else None,
                "next": self._next,
                "threshold": self.threshold,
                "pairs": self._pairs and [np.asarray(part).tolist() for part in self._pairs],
            }
            artifacts.write(path, _KIND, self._fill, info, self._fingerprint)
            self._stamps[path] = _stamp(path)

    def _fill(self, folder):
        if self._stamps:
            self.embedder.save(folder / "embedder.keras")
        else:
            _keras_files.save_model(self.embedder, folder / "embedder.keras")
        self._rows.to_csv(folder / "items.csv", index=False, **_CSV, errors="surrogateescape")
        if len(self._rows):
            self.index.fill(folder)

    @classmethod
    def load(cls, path, embedder=None) -> "Gallery":
        """Reads a gallery that `save` wrote.

        Args:
            path: The folder.
            embedder: If given, a model that must be the one that the gallery was made with.

        Returns:
            The gallery, as it was saved.

        Raises:
            ArtifactError: If the folder is missing or damaged, or made with another embedder.
        """

        def load(folder, manifest):
            info, model = manifest.info, embedder or data.load_embedder(folder / "embedder.keras")
            gallery = cls(model, **info["settings"])
            text = {"keep_default_na": False, "encoding_errors": "surrogateescape"}
            gallery._rows = pd.read_csv(folder / "items.csv", dtype=_KINDS, **text, **_CSV)
            gallery._next, gallery.threshold = info["next"], info["threshold"]
            gallery._pairs = info["pairs"] and tuple(map(np.array, info["pairs"]))
            if info["index"]:
                gallery._index = NeighborIndex.of(folder, info["index"], manifest)
                gallery._vectors = gallery._index.embeddings
            if len(gallery._vectors) != len(gallery._rows):
                raise ValueError(f"{len(gallery._vectors)} vectors, {len(gallery._rows)} items")
            if list(gallery._rows) != list(_table([], [], [])):
                raise ValueError(f"items.csv has the columns {list(gallery._rows)}")
            gallery._stamps[artifacts.place(path)] = _stamp(folder)
            return gallery

        expected = None if embedder is None else artifacts.fingerprint(embedder)
        return artifacts.read(path, _KIND, load, expected)

    @property
    def _live(self):
        """Which rows belong to pictures that were not removed."""
        return self._rows["id"].to_numpy() >= 0

    def _check_embedder(self):
        now = artifacts.fingerprint(self.embedder)
        if not len(self._rows):
            self._fingerprint = now
        if now != self._fingerprint:
            what = "embedder has changed since the gallery took in its first pictures"
            raise ArgumentError(f"{what}: make a new gallery and add them again.")

    def _check_stamp(self, path):
        path = artifacts.place(path)
        stamp = _stamp(artifacts.find(path))
        if stamp and stamp != self._stamps.get(path):
            what = f"{path} holds what this gallery did not load, or another process saved since"
            mend = "load it and add to that, choose another path, or pass replace=True to save"
            raise ArtifactError(f"{what}: {mend}.")

    def _files(self):
        """Returns the pictures of all items, not yet decoded."""
        files = self.items["file"].tolist()
        if "" in files:
            held = f"{files.count('')} of {len(files)} items were added as arrays, without a file"
            mend = "pass images=, or for near copies call data.find_near_copies on them"
            raise ArgumentError(f"{held}: {mend}.")
        return self._images(files)

    def _images(self, images):
        height, width, channels = self.image_shape
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            return data.image_folder(images, (height, width), channels, check=False)
        if isinstance(images, (str, os.PathLike)):
            images = [images]
        if isinstance(images, list) and all(isinstance(f, (str, os.PathLike)) for f in images):
            files = [artifacts.check_file(file) for file in images]
            return data.ImageFolder(files, None, [], [], (height, width), channels)
        return data.check_shape("images", images, self.image_shape)

    def _distances(self, left, right):
        sides = (data.embed(self.embedder, self._images(side)) for side in (left, right))
        return metrics.pair_distances(next(sides), next(sides), self.settings["metric"])


# Quoted, so that a name may hold any character; and any byte.
_CSV: Any = {"quoting": csv.QUOTE_NONNUMERIC, "encoding": "utf-8"}


_KINDS: Any = {"id": "int64", "file": object, "label": object}


def _table(ids, files, labels):
    return pd.DataFrame({"id": ids, "file": files, "label": labels}, dtype=object).astype(_KINDS)


def _stamp(folder):
    """Returns the digest of a folder's manifest, and so of all that is in it; None without one."""
    manifest = folder / artifacts.MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
