"""Nearest neighbours, exact or by graph: fast libraries propose, float64 decides.

Search libraries are fast because they compute in float32, in which near vectors far from the origin
can change places, and their answer may depend on how many queries come at once. So they propose a
few more candidates than were asked for; the distances of these are computed again in float64, and a
bound on the rounding of float32 proves that no other vector is nearer, or more are asked for.
Equal distances are ordered by position. A graph is not proven: `recall_` says how much it finds.
"""

import types
from typing import Any

import faiss
import numpy as np

from kerasim import artifacts, checks
from kerasim.errors import ArgumentError, ArgumentTypeError

METRICS = ("euclidean", "manhattan", "cosine")
_KIND = "neighbor_index"
_BUDGET = 64 * 2**20  # bytes of working memory in a query, beside the index and the answer
_EPS = float(np.finfo("float32").eps)


class NeighborIndex:
    """Finds the nearest of a set of vectors.

    scikit-learn (Euclidean, and cosine by way of unit vectors) and faiss (Manhattan) propose
    candidates in float32; their distances are computed again in float64, and a query whose
    candidates are not proven to hold its neighbours, by the bound on float32 rounding, is asked
    again with more. The answer does not depend on the number of queries or threads.

    Args:
        metric: "euclidean", "manhattan" or "cosine" (1 - cosine similarity).
        kind: "exact", or "hnsw" for a graph (Malkov & Yashunin, 2020.
            https://arxiv.org/abs/1603.09320), which finds most of the nearest in a small part of
            the time; what it returns has true distances, too.
        m: Links of each vector in the graph, 2 or more; more need memory and find more.
        ef_construction: Candidates held while the graph is built, 1 or more.
        ef_search: Candidates held in a query, 1 or more.

    Attributes:
        recall_: Of the graph, measured as it was built: share of the ten nearest that it finds,
            over 1,000 of its own vectors or fewer, drawn with seed 0. 1.0 if exact. Each of them
            finds itself, so that vectors not in the graph have less: of a million without any
            structure (iid normal, 64 numbers, ef_search=512) 0.905 where this says 0.940.
        embeddings: `(n, dim)`, the vectors that were given.
        fingerprint: That of the embedder which made them, if it was saved with one.

    Raises:
        ArgumentError: If a setting is out of range or not known.
    """

    def __init__(
        self,
        metric: str = "euclidean",
        kind: str = "exact",
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 64,
    ):
        checks.choice("metric", metric, METRICS)
        checks.choice("kind", kind, ("exact", "hnsw"))
        self.metric, self.kind = metric, kind
        self.m = checks.integer("m", m, 2)
        self.ef_construction = checks.integer("ef_construction", ef_construction)
        self.ef_search = checks.integer("ef_search", ef_search)
        self.recall_, self.fingerprint = 1.0, None

    def fit(self, embeddings) -> "NeighborIndex":
        """Takes the vectors to search.

        Args:
            embeddings: `(n, dim)`, one row or more, of any real dtype; kept as they are.

        Returns:
            Itself.

        Raises:
            ArgumentError: On NaN, infinity or, under "cosine", zero vectors, with their rows.
        """
        return self._fit(checks.vectors("embeddings", embeddings, None, 1, self.metric))

    def _fit(self, embeddings, graph=None, first=None):
        self.embeddings, self.fingerprint = embeddings.copy(), None
        # Rows that fixed centre and scale, a graph's for good.
        self._first = first or len(embeddings)
        # Float32 is finest near zero: centre the vectors (distances do not change) and scale
        # them by a power of two.
        self._centre, self._scale = 0.0, 1.0
        if self.metric != "cosine":
            self._centre = self.embeddings[: self._first].mean(axis=0, dtype="float64")
        largest = max(np.abs(x - self._centre).max() for _, x in self._blocks(self._first))
        if largest > 0:
            self._scale = 2.0 ** -np.floor(np.log2(largest))
        if self.kind == "hnsw":
            self._graph = graph or self._build(self._reduced())
            if graph is None:
                self.recall_ = self._recall()
            return self
        reduced = self._reduced()
        parts = np.array_split(reduced, 1 + reduced.nbytes // _BUDGET)
        self._norm = max(self._norms(part).max() for part in parts)
        width = embeddings.shape[1]
        if self.metric == "manhattan":
            flat = faiss.IndexFlat(width, faiss.METRIC_L1)
            flat.add(reduced)
            self._engine = flat.search
            # Rounding of the coordinates, and of a float32 sum of `width` terms.
            self._error = (width + 2) * _EPS
        else:
            from sklearn.neighbors import NearestNeighbors

            self._engine = NearestNeighbors(algorithm="brute").fit(reduced).kneighbors
            # Rounding of the coordinates and the result, and of |x|^2 - 2 xy + |y|^2 in float64.
            self._error = 2 * _EPS + np.sqrt(width * 2.3e-16)
        return self

    def add(self, embeddings) -> "NeighborIndex":
        """Takes more vectors in; an exact index is fitted again, a graph grows.

        Args:
            embeddings: `(n, dim)`, as for `fit`.

        Returns:
            Itself.

        Raises:
            ArgumentError: As `fit`, or if they are of another width.
        """
        if not len(self):
            return self.fit(embeddings)
        width = self.embeddings.shape[1]
        embeddings = checks.vectors("embeddings", embeddings, width, 0, self.metric)
        both = np.concatenate([self.embeddings, embeddings])
        if self.kind == "exact":
            fitted = NeighborIndex(**self.settings())._fit(both)
            self.__dict__.update(vars(fitted), fingerprint=self.fingerprint)
            return self
        self._graph.add(self._reduce(self._float64(embeddings)))
        self.embeddings = both
        self.recall_ = self._recall()
        return self

    def query(self, x, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `k` nearest vectors of each row.

        Args:
            x: `(n, dim)` vectors of the same model; `n` may be 0.
            k: From 1 to the number of vectors in the index.

        Returns:
            `(distances, indices)`, each `(n, k)`, float64 and int64, ordered by distance, then
            index. Distances are true ones (not squared).

        Raises:
            ArgumentError: If the index is empty, `k` or the width does not fit, or a row holds
                NaN, infinity or, under "cosine", only zeros.
        """
        if not hasattr(self, "embeddings"):
            raise ArgumentError("The index is empty: call fit(embeddings) before query.")
        size, width = self.embeddings.shape
        k = checks.integer("k", k, 1, size)
        x = checks.vectors("x", x, width, 0, self.metric)
        distances, indices = np.empty((len(x), k)), np.empty((len(x), k), dtype="int64")
        waiting, count = np.arange(len(x)), min(size, k + 6)
        while len(waiting):
            step = max(1, _BUDGET // (count * 8 * 8))
            unproven = []
            for start in range(0, len(waiting), step):
                rows = waiting[start : start + step]
                found = self._search(self._float64(x[rows]), k, count)
                distances[rows], indices[rows], proven = found
                unproven.append(rows[~proven])
            waiting, count = np.concatenate(unproven), min(size, 4 * count)
        return distances, indices

    def identify(self, x, labels, threshold: float, unknown=-1) -> np.ndarray:
        """Names each row after its nearest vector, if that is near enough.

        One vector of a class in the index is enough (one-shot verification), and the embedder
        need not have been trained on that class.

        Args:
            x: `(n, dim)` vectors of the same model.
            labels: Integers or strings, one for each vector in the index.
            threshold: Largest distance at which a row is accepted, such as
                `metrics.verification(...).threshold(far=0.01)` on pairs of other classes.
            unknown: Label of the rows that are not accepted; of the kind of `labels`.

        Returns:
            `(n,)` labels.

        Raises:
            ArgumentError: As `query`; if there is not one label for each vector, or one of them
                is `unknown`.
            ArgumentTypeError: If `unknown` is not of the kind of `labels`.
        """
        checks.number("threshold", threshold)
        labels = checks.labels("labels", labels, len(self), "vectors in the index")
        other = checks.array("unknown", unknown)
        if other.ndim or other.dtype.kind != labels.dtype.kind:
            what = f"unknown={unknown!r} is not of the kind of labels ({labels.dtype})"
            raise ArgumentTypeError(f"{what}: pass such as -1 for numbers, 'unknown' for names.")
        if (labels == unknown).any():
            raise ArgumentError(f"unknown={unknown!r} is the label of a vector: pass another.")
        distances, indices = self.query(x, k=1)
        return np.where(distances[:, 0] <= threshold, labels[indices[:, 0]], unknown)

    def save(self, path, embedder=None) -> None:
        """Writes the index to a folder, whole or not at all.

        Args:
            path: Folder.
            embedder: The model that made the vectors: `load` can then refuse any other.

        Raises:
            ArgumentError: If the index is empty.
            ArtifactError: If the folder holds something else, or cannot be written.
        """
        if not hasattr(self, "embeddings"):
            raise ArgumentError("The index is empty: call fit(embeddings) before save.")
        fingerprint = self.fingerprint if embedder is None else artifacts.fingerprint(embedder)
        artifacts.write(path, _KIND, self.fill, self.info(), fingerprint)

    def settings(self) -> dict:
        """Returns the arguments that the index was made with."""
        names = ("metric", "kind", "m", "ef_construction", "ef_search")
        return {name: getattr(self, name) for name in names}

    def info(self) -> dict:
        """Returns what the manifest keeps beside the files of `fill`."""
        return {"settings": self.settings(), "recall": self.recall_, "first": self._first}

    def fill(self, folder) -> None:
        """Puts the files of the index into `folder`, an empty one, for `artifacts.write`."""
        # By Python's `write`, which tells of a full disk: left to themselves both libraries close
        # the file without a look, and what they cut short would be sealed as whole.
        with open(folder / "embeddings.npy", "wb") as file:
            written: Any = types.SimpleNamespace(write=file.write)
            np.save(written, self.embeddings, allow_pickle=False)
        if self.kind == "hnsw":
            with open(folder / "index.faiss", "wb") as file:
                faiss.write_index(self._graph, faiss.PyCallbackIOWriter(file.write))

    @classmethod
    def load(cls, path, embedder=None) -> "NeighborIndex":
        """Reads an index that `save` wrote.

        Args:
            path: Folder.
            embedder: If given, the model that will embed the queries.

        Returns:
            The index, which answers as it did.

        Raises:
            ArtifactError: If the folder is missing or damaged, or was not saved with `embedder`.
        """
        expected = None if embedder is None else artifacts.fingerprint(embedder)
        return artifacts.read(path, _KIND, lambda at, held: cls.of(at, held.info, held), expected)

    @classmethod
    def of(cls, folder, info, manifest) -> "NeighborIndex":
        """Makes an index of files that `fill` wrote, once `artifacts.read` has checked them.

        Args:
            folder: Where they are.
            info: What `info` gave.
            manifest: `artifacts.Manifest` of the folder.

        Raises:
            ArgumentError: If the vectors are not finite.
        """
        index, graph = cls(**info["settings"]), None
        if index.kind == "hnsw":
            graph = _read_graph(folder / "index.faiss")
        vectors = np.load(folder / "embeddings.npy", allow_pickle=False)
        checks.vectors("embeddings", vectors, None, 1, index.metric)
        index._fit(vectors, graph, info["first"])
        index.recall_, index.fingerprint = info["recall"], manifest.fingerprint
        return index

    def __len__(self) -> int:
        return len(getattr(self, "embeddings", ()))

    def _float64(self, x):
        x = np.asarray(x, dtype="float64")
        if self.metric != "cosine":
            return x
        x = x / np.abs(x).max(axis=-1, keepdims=True)  # so that no square overflows
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def _blocks(self, size):
        """Yields rows and their float64: of all at once it would be some times what is kept."""
        step = max(1, _BUDGET // (self.embeddings.shape[1] * 8 * 4))
        for start in range(0, size, step):
            rows = slice(start, min(size, start + step))
            yield rows, self._float64(self.embeddings[rows])

    def _reduced(self):
        reduced = np.empty(self.embeddings.shape, "float32")
        for rows, exact in self._blocks(len(reduced)):
            reduced[rows] = self._reduce(exact)
        return reduced

    def _reduce(self, exact):
        return np.ascontiguousarray((exact - self._centre) * self._scale, dtype="float32")

    def _norms(self, x):
        return np.linalg.norm(x.astype("float64"), 1 if self.metric == "manhattan" else 2, axis=1)

    def _search(self, queries, k, count):
        """Returns distances, indices, and whether each query's are proven."""
        size = len(self.embeddings)
        with np.errstate(over="ignore"):
            reduced = self._reduce(queries)
        if count == size or not np.isfinite(reduced).all():
            candidates, limit = np.broadcast_to(np.arange(size), (len(queries), size)), np.inf
        elif self.kind == "hnsw":
            candidates = self._walk(reduced, count)[1]
            # A graph of few links may lead to fewer than asked for: ask again for more.
            limit = np.where(candidates.min(axis=1) < 0, -np.inf, np.inf)
            candidates = np.sort(candidates.clip(min=0), axis=1)
        else:
            proposed, candidates = self._engine(reduced, count)
            slack = self._error * (self._norm + self._norms(reduced))
            limit = (proposed.max(axis=1) - slack) / self._scale
            candidates = np.sort(candidates, axis=1)
        distances = self._distances(queries, candidates)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        distances = np.take_along_axis(distances, order, axis=1)
        # Under cosine the candidates were proposed by the distance of unit vectors.
        last = np.sqrt(2 * distances[:, -1]) if self.metric == "cosine" else distances[:, -1]
        return distances, np.take_along_axis(candidates, order, axis=1), last < limit

    def _build(self, reduced):
        kind = faiss.METRIC_L1 if self.metric == "manhattan" else faiss.METRIC_L2
        graph = faiss.IndexHNSWFlat(reduced.shape[1], self.m, kind)
        graph.hnsw.efConstruction = self.ef_construction
        graph.add(reduced)
        return graph

    def _walk(self, reduced, count):
        settings = faiss.SearchParametersHNSW(efSearch=max(self.ef_search, count))
        return self._graph.search(reduced, count, params=settings)

    def _recall(self):
        rows = np.random.default_rng(0).permutation(len(self))[:1000]
        reduced = self._reduce(self._float64(self.embeddings[rows]))
        flat = faiss.downcast_index(self._graph.storage)
        k = min(10, len(self))
        exact, (found, _) = flat.search(reduced, k)[0], self._walk(reduced, k)
        # By distance: of equal ones any will do. Both are float32, summed in another order.
        return float((found <= exact[:, -1:] * (1 + 1e-5) + 1e-12).mean())

    def _distances(self, queries, candidates):
        distances = np.empty(candidates.shape)
        step = max(1, _BUDGET // (candidates.shape[1] * queries.shape[1] * 8 * 8))
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            gaps = self._float64(self.embeddings[candidates[rows]]) - queries[rows, None]
            measure = np.abs if self.metric == "manhattan" else np.square
            distances[rows] = measure(gaps, out=gaps).sum(axis=-1)
        if self.metric == "euclidean":
            return np.sqrt(distances)
        # Of unit vectors half the squared distance is 1 - cosine, and exact near 0.
        return distances / 2 if self.metric == "cosine" else distances


def _read_graph(path):
    """Reads a graph, no part of which may claim more bytes than its whole file has."""
    limit = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(path.stat().st_size)
    try:
        return faiss.read_index(str(path))
    finally:
        faiss.set_deserialization_vector_byte_limit(limit)
