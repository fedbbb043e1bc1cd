"""Seeded UMAP maps that can be saved, and to which new points can be added reproducibly.

A map shows which vectors are close together, but not how far apart the others are. UMAP computes it
from the exact nearest neighbors (`neighbors.NeighborIndex`), so that scale and offset of the
vectors have no effect, and equal vectors have equal coordinates. The coordinates of a new point are
computed from its nearest fitted vectors, so that a saved map consists of two arrays and no pickled
UMAP model. `trustworthiness_` measures how well the map preserves neighbors.
"""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _artifacts, _checks, _distances
from kerasim.errors import ArgumentError
from kerasim.neighbors import NeighborIndex

__all__ = [
    "Projection",
]

_KIND = "projection"
_TRUST_ROWS = 2000
_TRUST_NUMBERS = 1e9  # coordinates compared for trustworthiness, about two seconds
_FEWEST = 5  # vectors that UMAP can lay out
_FAR = 1e6  # times the median size: larger coordinates are clipped for float32


class Projection:
    """Maps vectors to two dimensions with UMAP.

    The same seed gives the same map. The coordinates of a new vector are the mean of those of its
    `n_neighbors` nearest fitted vectors, weighted by inverse distance. They do not depend on the
    other vectors in the call (unlike the result of UMAP's own `transform`), and a fitted vector
    keeps its coordinates.

    Args:
        n_neighbors: Number of nearest vectors that UMAP considers for each vector, including the
            vector itself, 2 or more. Larger values show more of the global structure. If there are
            fewer distinct vectors, fewer are considered.
        min_dist: Smallest distance between two points on the map, 0 to 1.
        seed: The same seed gives the same map.

    Attributes:
        coordinates_: `(n, 2)` float32, the fitted map.
        trustworthiness_: How well neighbors on the map are also neighbors among the vectors, 0 to 1
            (Venna & Kaski, 2001), for 5 neighbors, on at most 2,000 rows drawn with the seed
            (fewer for vectors of more than 250 dimensions). NaN for fewer than 12 rows.

    Raises:
        ArgumentError: If a setting is out of range.

    Example:
        >>> corners = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> projection = Projection(n_neighbors=2)
        >>> coordinates = projection.fit_transform(np.repeat(corners, 2, axis=0))
        >>> coordinates.shape
        (8, 2)
        >>> np.array_equal(projection.transform(corners), coordinates[::2])
        True

    Reference:
        McInnes et al., 2018. https://arxiv.org/abs/1802.03426
    """

    def __init__(self, n_neighbors: int = 15, min_dist: float = 0.1, seed: int = 0):
        self.n_neighbors = _checks.integer("n_neighbors", n_neighbors, 2)
        self.min_dist = _checks.number("min_dist", min_dist, 0, 1)
        self.seed = _checks.integer("seed", seed, 0)
        self._saved = _artifacts.Known()

    def __repr__(self) -> str:
        settings = f"n_neighbors={self.n_neighbors}, min_dist={self.min_dist}, seed={self.seed}"
        if not hasattr(self, "_index"):
            return f"<Projection {settings}: not fitted>"
        count, width = self._index.embeddings.shape
        return (
            f"<Projection {settings}: {count} vectors of {width} numbers, "
            f"trustworthiness_={self.trustworthiness_:.3f}>"
        )

    def fit_transform(self, x: ArrayLike) -> np.ndarray:
        """Computes the map.

        Args:
            x: `(n, dim)` finite vectors, with `n` greater than `n_neighbors` and 5 or more.

        Returns:
            `(n, 2)` float32 coordinates; equal rows have equal coordinates.

        Raises:
            ArgumentError: If there are too few rows, a row holds NaN or infinity, or the distance
                of a vector to its neighbors is above 1.8e308, the largest float64.
        """
        x = _checks.vectors("x", x)
        least = max(self.n_neighbors + 1, _FEWEST)
        if len(x) < least:
            raise ArgumentError(
                f"x has {len(x)} rows; n_neighbors={self.n_neighbors} needs {least} or "
                "more: pass more rows or, if x has 5 or more, a smaller n_neighbors."
            )
        index = NeighborIndex("euclidean").fit(x)
        first, group = _distinct(x)
        if len(first) == 1:
            _checks.warn(
                f"All {len(x)} rows of x are equal: there is no structure to project, and "
                "the map shows none."
            )
        if len(first) < _FEWEST:
            places = _principal(_in_float32(x[first]))
        else:
            places = self._umap(x[first], index if len(first) == len(x) else None)
        self.coordinates_ = np.asarray(places, dtype="float32")[group]
        self._index = index
        self.trustworthiness_ = self._trustworthiness(x)
        return self.coordinates_.copy()

    def _umap(self, x, index=None):
        """Returns the map of vectors that all differ, from their exact nearest neighbors."""
        k = min(self.n_neighbors, len(x) - 1)
        distances, indices = (index or NeighborIndex("euclidean").fit(x)).query(x, k)
        # UMAP compares only distances from the same vector, so that their unit does not matter.
        distances = (distances / distances[:, -1:]).astype("float32")
        # UMAP takes seconds to import; it is compiled as it runs.
        with _checks.no_warnings():
            from umap import UMAP

            umap = UMAP(
                k,
                min_dist=self.min_dist,
                random_state=self.seed,
                n_jobs=1,  # one job is what a seed asks for
                precomputed_knn=(indices, distances, None),
            )
            # UMAP uses the vectors themselves only to place parts that are not connected.
            return umap.fit_transform(_in_float32(x))

    def transform(self, x: ArrayLike) -> np.ndarray:
        """Computes the coordinates of vectors on the fitted map.

        Args:
            x: `(n, dim)` vectors of the dimension that was fitted; `n` may be 0.

        Returns:
            `(n, 2)` float32.

        Raises:
            ArgumentError: If nothing was fitted, or the vectors have another dimension or are not
                finite.
        """
        if not hasattr(self, "_index"):
            raise ArgumentError("The projection is not fitted: call fit_transform(x) first.")
        distances, indices = self._index.query(x, self.n_neighbors)
        # Relative to the nearest, so that nothing overflows; a fitted vector is its own nearest.
        nearest = distances[:, :1]
        weights = np.divide(nearest, distances, out=np.ones_like(distances), where=distances > 0)
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("nk,nkd->nd", weights, self.coordinates_[indices]).astype("float32")

    def save(self, path: Path | str, replace: bool = False) -> None:
        """Writes the fitted projection to a folder, completely or not at all, without pickle.

        Args:
            path: The folder.
            replace: True to overwrite a projection that this one was not loaded from or saved to.

        Raises:
            ArgumentError: If nothing was fitted.
            ArtifactError: If the folder holds another projection and `replace` is False, holds
                something else, or cannot be written.
        """
        if not hasattr(self, "_index"):
            raise ArgumentError("The projection is not fitted: call fit_transform(x) before save.")
        settings = {name: getattr(self, name) for name in ("n_neighbors", "min_dist", "seed")}
        info = {"settings": settings, "trustworthiness": float(self.trustworthiness_)}

        def fill(folder):
            np.savez(folder / "arrays.npz", x=self._index.embeddings, coordinates=self.coordinates_)

        self._saved.check(path, _KIND, replace)
        _artifacts.write(path, _KIND, fill, info)
        self._saved.note(path)

    @classmethod
    def load(cls, path: Path | str) -> "Projection":
        """Reads a projection that `save` wrote.

        Args:
            path: The folder.

        Returns:
            The projection, which returns the same coordinates as before.

        Raises:
            ArtifactError: If the folder is missing or damaged, or holds something else.
        """

        def load(folder, manifest):
            arrays = _artifacts.read_arrays(folder / "arrays.npz", ("x", "coordinates"))
            projection = cls(**manifest.info["settings"])
            projection.coordinates_ = arrays["coordinates"]
            projection._index = NeighborIndex("euclidean").fit(arrays["x"])
            projection.trustworthiness_ = manifest.info["trustworthiness"]
            projection._saved.note(path, folder)
            return projection

        return _artifacts.read(path, _KIND, load)

    def _trustworthiness(self, x) -> float:
        from sklearn.manifold import trustworthiness

        if len(x) < 12:
            return float("nan")
        most = max(12, min(_TRUST_ROWS, int(np.sqrt(_TRUST_NUMBERS / x.shape[1]))))
        count = min(len(x), most)
        rows = np.sort(np.random.default_rng(self.seed).choice(len(x), count, replace=False))
        (some,) = _distances.without_overflow(x[rows])
        distances = _distances.pairwise(some, some, "euclidean")
        places = self.coordinates_[rows]
        return float(trustworthiness(distances, places, n_neighbors=5, metric="precomputed"))


def _distinct(x) -> tuple[np.ndarray, np.ndarray]:
    """Returns the position of the first of each set of equal rows, and the set of each row."""
    _, first, group = np.unique(x, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # in the order of the rows
    return first[order], np.argsort(order)[group.reshape(-1)]


def _in_float32(x):
    """Returns vectors around 0, of size about 1, in float32; those far away are brought nearer."""
    x = x.astype("float64") * _distances.lift(x)
    x = x - _distances.middle(_distances.spread(x))
    sizes = np.abs(x).max(axis=1)
    typical = np.median(sizes[sizes > 0]) if sizes.any() else 1.0
    with np.errstate(over="ignore"):
        return (x / typical).clip(-_FAR, _FAR).astype("float32")


def _principal(x):
    """Returns the first two principal components of a few vectors, of size 10, as UMAP's maps."""
    left, sizes, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    places = np.zeros((len(x), 2))
    places[:, : len(sizes)] = (left * sizes)[:, :2]
    return 10 * places / (np.abs(places).max() or 1.0)
