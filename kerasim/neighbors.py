"""Exact nearest neighbours: fast libraries propose, float64 decides."""

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
        kind: "exact".
    """

    def __init__(self, metric: str = "euclidean", kind: str = "exact"):
        checks.choice("metric", metric, METRICS)
        checks.choice("kind", kind, ("exact",))
        self.metric, self.kind = metric, kind

    def fit(self, embeddings) -> "NeighborIndex":
        """Takes the vectors to search.

        Args:
            embeddings: `(n, dim)`, one row or more, of any real dtype; kept as they are.

        Raises:
            ArgumentError: On NaN, infinity or, under "cosine", zero vectors, with their rows.
        """
        embeddings = checks.vectors("embeddings", embeddings, None, 1, self.metric)
        self.embeddings = embeddings.copy()
        self.fingerprint = None
        exact = self._float64(self.embeddings)
        # Float32 is finest near zero: centre the vectors (distances do not change) and scale
        # them by a power of two.
        self._centre = 0.0 if self.metric == "cosine" else exact.mean(axis=0)
        largest = np.abs(exact - self._centre).max()
        self._scale = 2.0 ** -np.floor(np.log2(largest)) if largest > 0 else 1.0
        reduced = self._reduce(exact)
        self._norm = self._norms(reduced).max()
        width = exact.shape[1]
        if self.metric == "manhattan":
            import faiss

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
            step = max(1, _BUDGET // (count * width * 8 * 4))
            unproven = []
            for start in range(0, len(waiting), step):
                rows = waiting[start : start + step]
                queries = self._float64(x[rows])
                found, near, proven = self._search(queries, k, count)
                distances[rows], indices[rows] = found, near
                unproven.append(rows[~proven])
            waiting, count = np.concatenate(unproven), min(size, 4 * count)
        return distances, indices

    def identify(self, x, labels, threshold: float, unknown=-1) -> np.ndarray:
        """Names each row after its nearest vector, if that is near enough.

        One vector of a class in the index is enough (one-shot verification), and the embedder
        need not have been trained on that class.

        Args:
            x: `(n, dim)` vectors of the same model.
            labels: One for each vector in the index.
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
        labels = checks.each("labels", labels, len(self), "vectors in the index", 1)
        if any(isinstance(label, str) != isinstance(unknown, str) for label in labels.tolist()):
            raise ArgumentTypeError(
                f"unknown={unknown!r} is not of the kind of labels ({labels.dtype}): pass such as "
                "-1 for numbers, 'unknown' for names."
            )
        if (labels == unknown).any():
            raise ArgumentError(
                f"unknown={unknown!r} is the label of a vector in the index: pass another."
            )
        distances, indices = self.query(x, k=1)
        return np.where(distances[:, 0] <= threshold, labels[indices[:, 0]], unknown)

    def save(self, path, embedder=None) -> None:
        """Writes the index to a folder, whole or not at all.

        Args:
            path: Folder.
            embedder: The model that made the vectors: `load` can then refuse any other.
        """
        if not hasattr(self, "embeddings"):
            raise ArgumentError("The index is empty: call fit(embeddings) before save.")
        artifacts.write(
            path,
            _KIND,
            lambda folder: np.save(folder / "embeddings.npy", self.embeddings, allow_pickle=False),
            info={"metric": self.metric, "kind": self.kind},
            fingerprint=self.fingerprint if embedder is None else artifacts.fingerprint(embedder),
        )

    @classmethod
    def load(cls, path, embedder=None) -> "NeighborIndex":
        """Reads an index that `save` wrote.

        Args:
            path: Folder.
            embedder: If given, the model that will embed the queries.

        Raises:
            ArtifactError: If the folder is missing or damaged, or was not saved with `embedder`.
        """

        def load(folder, manifest):
            index = cls(manifest.info["metric"], manifest.info["kind"])
            index.fit(np.load(folder / "embeddings.npy", allow_pickle=False))
            index.fingerprint = manifest.fingerprint
            return index

        expected = None if embedder is None else artifacts.fingerprint(embedder)
        return artifacts.read(path, _KIND, load, expected)

    def __len__(self) -> int:
        return len(getattr(self, "embeddings", ()))

    def _float64(self, x):
        x = np.asarray(x, dtype="float64")
        if self.metric != "cosine":
            return x
        x = x / np.abs(x).max(axis=-1, keepdims=True)  # so that no square overflows
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def _reduce(self, exact):
        return np.ascontiguousarray((exact - self._centre) * self._scale, dtype="float32")

    def _norms(self, x):
        return np.linalg.norm(
            x.astype("float64"), ord=1 if self.metric == "manhattan" else 2, axis=1
        )

    def _search(self, queries, k, count):
        """Returns distances, indices, and whether each query's are proven."""
        size = len(self.embeddings)
        with np.errstate(over="ignore"):
            reduced = self._reduce(queries)
        if count == size or not np.isfinite(reduced).all():
            candidates, limit = np.broadcast_to(np.arange(size), (len(queries), size)), np.inf
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

    def _distances(self, queries, candidates):
        distances = np.empty(candidates.shape)
        step = max(1, _BUDGET // (queries.size * 8 * 4))
        for start in range(0, candidates.shape[1], step):
            part = slice(start, start + step)
            chosen = self.embeddings[candidates[:, part]]
            gaps = self._float64(chosen) - queries[:, None]
            if self.metric == "manhattan":
                distances[:, part] = np.abs(gaps).sum(axis=-1)
                continue
            squares = np.square(gaps).sum(axis=-1)
            # Of unit vectors half the squared distance is 1 - cosine, and exact near 0.
            distances[:, part] = squares / 2 if self.metric == "cosine" else np.sqrt(squares)
        return distances
