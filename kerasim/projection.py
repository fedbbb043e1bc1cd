"""Seeded UMAP maps that can be kept, and that place a new point the same way every time.

A map shows which vectors lie together, not how far apart they are. UMAP draws it; a new point is
placed by way of an index of the fitted vectors, so that what is kept is two arrays, and no pickle
of UMAP's own. `trustworthiness_` says how far the map is to be believed.
"""

import numpy as np

from kerasim import artifacts, checks
from kerasim.errors import ArgumentError
from kerasim.neighbors import NeighborIndex

_KIND = "projection"
_TRUST_ROWS = 2000


class Projection:
    """Lays vectors out in the plane with UMAP.

    The same seed gives the same map. A new point is put at the mean of the places of its
    `n_neighbors` nearest fitted vectors, weighted by inverse distance: it does not depend on
    the batch it comes in, as UMAP's own `transform` does, and a fitted vector keeps its place.

    Args:
        n_neighbors: Neighbours that UMAP looks at; larger shows more of the whole. 2 or more.
        min_dist: How close points may lie on the map, 0 to 1.
        seed: The same seed draws the same map.

    Attributes:
        coordinates_: `(n, 2)` float32, the fitted map.
        trustworthiness_: How far neighbours on the map are neighbours in truth, 0 to 1
            (Venna & Kaski, 2001), over 5 neighbours among at most 2,000 rows drawn with the
            seed; NaN for fewer than 12 rows.

    Raises:
        ArgumentError: If a setting is out of range.

    Reference:
        McInnes et al., 2018. https://arxiv.org/abs/1802.03426
    """

    def __init__(self, n_neighbors: int = 15, min_dist: float = 0.1, seed: int = 0):
        self.n_neighbors = checks.integer("n_neighbors", n_neighbors, 2)
        self.min_dist = checks.number("min_dist", min_dist, 0, 1)
        self.seed = checks.integer("seed", seed, 0)

    def fit_transform(self, x) -> np.ndarray:
        """Draws the map.

        Args:
            x: `(n, dim)` finite vectors, `n` above `n_neighbors` and 5 or more.

        Returns:
            `(n, 2)` float32: a place for each row, duplicates included.

        Raises:
            ArgumentError: On too few rows, NaN or infinity.
        """
        x = checks.vectors("x", x)
        least = max(self.n_neighbors + 1, 5)
        if len(x) < least:
            what = f"x has {len(x)} rows; n_neighbors={self.n_neighbors} needs {least} or more"
            raise ArgumentError(f"{what}: pass more or, from 5 on, a smaller n_neighbors.")
        if (x == x[0]).all():
            what = f"All {len(x)} rows of x are equal: there is no structure to draw"
            checks.warn(f"{what}, and the map shows none.")
        # UMAP takes seconds to import; it is compiled as it runs.
        with checks.no_warnings():
            from umap import UMAP

            # One job is what a seed asks for.
            umap = UMAP(self.n_neighbors, min_dist=self.min_dist, random_state=self.seed, n_jobs=1)
            # Centred first, for UMAP computes in float32.
            coordinates = umap.fit_transform((x - x.mean(axis=0)).astype("float32"))
        self.coordinates_ = np.asarray(coordinates, dtype="float32")
        self._index = NeighborIndex().fit(x)
        self.trustworthiness_ = self._trustworthiness(x)
        return self.coordinates_.copy()

    def transform(self, x) -> np.ndarray:
        """Places vectors on the fitted map.

        Args:
            x: `(n, dim)` vectors of the width that was fitted; `n` may be 0.

        Returns:
            `(n, 2)` float32.

        Raises:
            ArgumentError: If nothing was fitted, or vectors are of another width or not finite.
        """
        if not hasattr(self, "_index"):
            raise ArgumentError("The projection is not fitted: call fit_transform(x) first.")
        distances, indices = self._index.query(x, self.n_neighbors)
        # Relative to the nearest, so that nothing overflows; a fitted vector is its own nearest.
        nearest = distances[:, :1]
        weights = np.divide(nearest, distances, out=np.ones_like(distances), where=distances > 0)
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("nk,nkd->nd", weights, self.coordinates_[indices]).astype("float32")

    def save(self, path) -> None:
        """Writes the fitted projection to a folder, whole or not at all, without pickle.

        Args:
            path: The folder; an earlier projection there is replaced.

        Raises:
            ArgumentError: If nothing was fitted.
            ArtifactError: If the folder holds something else, or cannot be written.
        """
        if not hasattr(self, "_index"):
            raise ArgumentError("The projection is not fitted: call fit_transform(x) before save.")
        settings = {name: getattr(self, name) for name in ("n_neighbors", "min_dist", "seed")}
        info = {"settings": settings, "trustworthiness": float(self.trustworthiness_)}

        def fill(folder):
            np.savez(folder / "arrays.npz", x=self._index.embeddings, coordinates=self.coordinates_)

        artifacts.write(path, _KIND, fill, info)

    @classmethod
    def load(cls, path) -> "Projection":
        """Reads a projection that `save` wrote.

        Args:
            path: The folder.

        Returns:
            The projection, which places points as before.

        Raises:
            ArtifactError: If the folder is missing or damaged, or holds something else.
        """

        def load(folder, manifest):
            arrays = artifacts.read_arrays(folder / "arrays.npz", ("x", "coordinates"))
            projection = cls(**manifest.info["settings"])
            projection.coordinates_ = arrays["coordinates"]
            projection._index = NeighborIndex().fit(arrays["x"])
            projection.trustworthiness_ = manifest.info["trustworthiness"]
            return projection

        return artifacts.read(path, _KIND, load)

    def _trustworthiness(self, x) -> float:
        from sklearn.manifold import trustworthiness

        if len(x) < 12:
            return float("nan")
        count = min(len(x), _TRUST_ROWS)
        rows = np.sort(np.random.default_rng(self.seed).choice(len(x), count, replace=False))
        return float(trustworthiness(x[rows], self.coordinates_[rows], n_neighbors=5))
