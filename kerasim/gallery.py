"""Embedder, vectors, files, labels and threshold as one artefact."""

import hashlib
import os
from typing import Any

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from kerasim import artifacts, checks, data, metrics
from kerasim.errors import ArgumentError, ArtifactError
from kerasim.explorer import write_explorer
from kerasim.neighbors import METRICS, NeighborIndex
from kerasim.projection import Projection

_KIND = "gallery"


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
        embedder: As given.
        image_shape: `(height, width, channels)` that it takes.
        items: DataFrame with the columns id, file and label, a row for each picture; "" where
            there is no file or label.
        threshold: Greatest distance of two pictures that `verify` calls the same, or None.

    Raises:
        ArgumentError: If the embedder takes images of any size, or gives no vectors.
    """

    def __init__(self, embedder, metric: str = "cosine", kind: str = "exact", **settings):
        self.image_shape, _ = data.check_embedder("embedder", embedder)
        if None in self.image_shape:
            raise ArgumentError(
                f"embedder takes images of any size, {self.image_shape}: build it with an "
                "image_shape."
            )
        self.embedder, self._index = embedder, NeighborIndex(metric, kind, **settings)
        self.items = pd.DataFrame({"id": np.empty(0, "int64"), "file": "", "label": ""})
        self.threshold: float | None = None
        self._pairs = None  # distances of known pairs, and whether they are the same
        self._ids = np.empty(0, "int64")  # of the vectors in the index, removed ones included
        self._next = 0
        self._stamp = None  # of the folder as this gallery last saw it

    def __len__(self) -> int:
        return len(self.items)

    def add(self, images, labels=None, on_error: str = "raise", path=None, chunk: int = 1024):
        """Embeds pictures and takes them in.

        Files that are in already are left out: the same call takes in what is new in a folder,
        and, with `path`, goes on where one that was killed had last saved.

        Args:
            images: Pictures.
            labels: A name or number for each; None for the names of the subfolders, if any.
            on_error: For a folder: "raise" or "skip", as for `data.image_folder`.
            path: Where to `save` after each chunk; None for not at all.
            chunk: Pictures between two saves.

        Returns:
            `(n,)` int64: ids of the pictures that were taken in.

        Raises:
            ImageError: If `on_error="raise"` and a picture cannot be decoded.
            ArgumentError: If images or labels do not fit.
        """
        checks.integer("chunk", chunk)
        images = self._images(images, on_error)
        files = [str(file) for file in getattr(images, "files", [""] * len(images))]
        if labels is None and getattr(images, "labels", None) is not None:
            labels = [images.class_names[label] for label in images.labels]
        labels = [""] * len(images) if labels is None else [str(label) for label in labels]
        checks.each("labels", labels, len(images), "images", 1)
        known, taken = set(self.items["file"]) - {""}, []
        rows = np.array([n for n, file in enumerate(files) if file not in known], dtype="int64")
        bar = tqdm(total=len(rows), unit="image", disable=len(rows) <= chunk)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            folder = isinstance(images, data.ImageFolder)
            some = images.take(part) if folder else images[part]
            self._index.add(data.embed(self.embedder, some))
            ids = np.arange(self._next, self._next + len(part))
            new = {"id": ids, "file": [files[n] for n in part], "label": [labels[n] for n in part]}
            self.items = pd.concat([self.items, pd.DataFrame(new)], ignore_index=True)
            self._ids, self._next = np.append(self._ids, ids), self._next + len(part)
            taken.append(ids)
            if path is not None:
                self.save(path)
            bar.update(len(part))
        bar.close()
        return np.concatenate([np.empty(0, "int64"), *taken])

    def query(self, images, k: int = 10) -> pd.DataFrame:
        """Finds the most similar pictures.

        Args:
            images: Pictures.
            k: How many of each; all there are if there are fewer.

        Returns:
            A row for each picture found, nearest first: query (position in `images`), rank (from
            1), id, file, label and distance.

        Raises:
            ArgumentError: If the gallery is empty, or the images do not fit.
        """
        checks.integer("k", k)
        if not len(self):
            raise ArgumentError("The gallery is empty: call add(images) before query.")
        vectors, removed = data.embed(self.embedder, self._images(images)), self._removed()
        most = min(k + removed.sum(), len(self._ids))
        distances, found = self._index.query(vectors, int(most))
        shown = ~removed[found]
        shown &= np.cumsum(shown, axis=1) <= k
        table = pd.DataFrame({"query": np.nonzero(shown)[0], "id": self._ids[found[shown]]})
        table["rank"] = table.groupby("query").cumcount() + 1
        table = table.assign(distance=distances[shown]).merge(self.items, on="id")
        return table.loc[:, ["query", "rank", "id", "file", "label", "distance"]]

    def calibrate(self, left, right, same, far: float = 0.01) -> float:
        """Fits the threshold, and the score, of `verify` on known pairs.

        Args:
            left, right: Pictures that nothing was trained on; `right[i]` is paired with `left[i]`.
            same: `(n,)`: 1 or True for a like pair, else 0.
            far: Share of unlike pairs that may be accepted.

        Returns:
            The threshold.

        Raises:
            ArgumentError: As `metrics.verification`.
        """
        self._pairs = self._distances(left, right), np.asarray(same).reshape(-1)
        self.threshold = metrics.verification(*self._pairs).threshold(far)
        return self.threshold

    def verify(self, left, right) -> pd.DataFrame:
        """Says of each pair of pictures whether both show the same.

        Returns:
            A row for each pair: distance, same (at `threshold`) and score, the chance that they
            do if half of all pairs did.

        Raises:
            ArgumentError: If the gallery is not calibrated.
        """
        if self.threshold is None or self._pairs is None:
            raise ArgumentError(
                "The gallery has no threshold: call calibrate(left, right, same) on known pairs."
            )
        distances = self._distances(left, right)
        score = metrics.verification(*self._pairs).score(distances)
        return pd.DataFrame(
            {"distance": distances, "same": distances <= self.threshold, "score": score}
        )

    def remove(self, ids) -> None:
        """Takes pictures out; a graph holds their vectors, unseen, until `compact`.

        Raises:
            ArgumentError: If an id is not in the gallery.
        """
        ids = np.ravel(ids).astype("int64")
        unknown = set(ids.tolist()) - set(self.items["id"])
        if unknown:
            raise ArgumentError(
                f"ids {sorted(unknown)[:5]} are not in the gallery: choose among those of items."
            )
        self.items = self.items[~np.isin(self.items["id"], ids)].reset_index(drop=True)
        if self._index.kind == "exact":
            self.compact()

    def compact(self) -> None:
        """Builds the index again without the pictures that were removed."""
        vectors = self._vectors()
        self._ids, self._index = (
            self._ids[~self._removed()],
            NeighborIndex(**self._index.settings()),
        )
        if len(vectors):
            self._index.fit(vectors)

    def near_copies(self, bits: int = 30) -> pd.DataFrame:
        """Lists pairs of files that look alike, by `data.find_near_copies`: copy and original."""
        found = data.find_near_copies(self._files(), bits)
        return pd.DataFrame(self.items["file"].to_numpy()[found], columns=["copy", "original"])

    def write_map(self, path, images=None, title: str = "Gallery", k: int = 10, seed: int = 0):
        """Writes the gallery as a page, by `projection.Projection` and `explorer.write_explorer`.

        Args:
            path: The HTML file.
            images: Of all items, in their order; None for what their files hold.
            title: Shown above the map.
            k: Nearest pictures shown of each, by each of the three metrics.
            seed: The same seed draws the same map.

        Returns:
            The absolute path.

        Raises:
            ArgumentError: If there are fewer than 5 items, or no images to show.
        """
        vectors = self._vectors()
        k = min(checks.integer("k", k), len(vectors) - 1)
        places = Projection(min(15, max(2, k)), seed=seed).fit_transform(vectors)
        nearest = {}
        for metric in METRICS:
            found = NeighborIndex(metric).fit(vectors).query(vectors, k + 1)[1]
            # Of copies not each finds itself first, or at all.
            others = found != np.arange(len(found))[:, None]
            others &= np.cumsum(others, axis=1) <= k
            nearest[metric] = found[others].reshape(-1, k)
        labels = self.items["label"].to_numpy()
        images = self._files() if images is None else images
        return write_explorer(
            path, images, places, labels if (labels != "").any() else None, nearest, title
        )

    def save(self, path, replace: bool = False) -> None:
        """Writes the gallery to a folder, whole or not at all.

        Args:
            path: The folder.
            replace: True to write over a gallery that this one was not loaded from, or that
                another process has saved since.

        Raises:
            ArtifactError: If there is such a gallery, or another process is saving there.
        """
        path = artifacts.check_path("path", path)
        with artifacts.lock(path.parent / f".{path.name}.lock"):
            if not replace and artifacts.exists(path) and _stamp(path) != self._stamp:
                raise ArtifactError(
                    f"{path} holds what this gallery did not load, or what another process saved "
                    "since: load it and add to that, choose another path, or pass replace=True."
                )
            removed = np.flatnonzero(self._removed())
            info = {
                "index": self._index.info(),
                "next": self._next,
                "removed": [removed.tolist(), self._ids[removed].tolist()],
                "threshold": self.threshold,
                "pairs": self._pairs and [np.asarray(part).tolist() for part in self._pairs],
            }
            artifacts.write(path, _KIND, self._fill, info, artifacts.fingerprint(self.embedder))
            self._stamp = _stamp(path)

    def _fill(self, folder):
        self.embedder.save(folder / "embedder.keras")
        self.items.to_csv(folder / "items.csv", index=False)
        if len(self._ids):
            self._index.fill(folder)

    @classmethod
    def load(cls, path, embedder=None) -> "Gallery":
        """Reads a gallery that `save` wrote.

        Args:
            path: The folder.
            embedder: If given, a model that must be the one that the gallery was made with.

        Raises:
            ArtifactError: If the folder is missing or damaged, or made with another embedder.
        """

        def load(folder, manifest):
            info = manifest.info
            model = keras.models.load_model(folder / "embedder.keras", compile=False)
            gallery = cls(model, **info["index"]["settings"])
            kinds: Any = {"id": "int64", "file": str, "label": str}
            gallery.items = pd.read_csv(folder / "items.csv", dtype=kinds, keep_default_na=False)
            rows, ids = info["removed"]
            gallery._ids = np.empty(len(gallery.items) + len(rows), "int64")
            live = np.ones(len(gallery._ids), bool)
            live[rows] = False
            gallery._ids[live], gallery._ids[~live] = gallery.items["id"], ids
            gallery._next, gallery.threshold = info["next"], info["threshold"]
            gallery._pairs = info["pairs"] and tuple(map(np.array, info["pairs"]))
            if len(gallery._ids):
                gallery._index = NeighborIndex.of(folder, info["index"], manifest)
            gallery._stamp = _stamp(folder)
            return gallery

        expected = None if embedder is None else artifacts.fingerprint(embedder)
        return artifacts.read(path, _KIND, load, expected)

    def _removed(self):
        """Returns which vectors of the index belong to no item any more."""
        return ~np.isin(self._ids, self.items["id"])

    def _vectors(self):
        """Returns those of the items, in their order."""
        return self._index.embeddings[~self._removed()] if len(self._ids) else np.empty((0, 0))

    def _files(self):
        """Returns the pictures of all items, not yet decoded."""
        files = self.items["file"].tolist()
        if "" in files:
            raise ArgumentError(
                f"{files.count('')} of {len(files)} items have no file, they were added as arrays: "
                "pass images=, or for near copies call data.find_near_copies on them."
            )
        return self._images(files)

    def _images(self, images, on_error="raise"):
        height, width, channels = self.image_shape
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            return data.image_folder(images, (height, width), channels, on_error)
        if isinstance(images, (str, os.PathLike)):
            images = [images]
        if isinstance(images, list) and all(isinstance(f, (str, os.PathLike)) for f in images):
            files = [artifacts.check_file(file) for file in images]
            return data.ImageFolder(files, None, [], [], (height, width), channels)
        return data.check_shape("images", images, self.image_shape)

    def _distances(self, left, right):
        sides = (data.embed(self.embedder, self._images(side)) for side in (left, right))
        return metrics.pair_distances(next(sides), next(sides), self._index.metric)


def _stamp(folder):
    """Returns the digest of a folder's manifest, and so of all that is in it."""
    return hashlib.sha256((folder / artifacts.MANIFEST).read_bytes()).hexdigest()
