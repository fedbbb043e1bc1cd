"""Nearest neighbors, exact or by graph: libraries propose candidates, float64 distances decide.

Search libraries are fast because they compute in float32. The order of two vectors that lie close
together, far from the origin, can then be wrong, and it may depend on how many queries are passed
at once. So the libraries only propose candidates, a few more than were asked for. The distances of
the candidates are computed in float64 (`kerasim._distances`), and equal distances are ordered by
position. A graph, and codes of 1 or 8 bits, find most of the neighbors; `recall_` says how many.

How an exact answer is proven. The library does not see a vector `v`, but `r(v)`: shifted by a
center, scaled, cut to a box and rounded to float32. It returns the candidates of a query `q` with
the distances that it computed; let `p` be the largest of them. For each vector `v` that was not
proposed, the computed distance is at least `p`, and a bound on its error gives a bound of the true
distance `d` (shifted and scaled; tiny terms for underflow are left out here).

- Euclidean distances by faiss: a float32 matrix product gives `|r(q)|**2 - 2 r(q) r(v) +
  |r(v)|**2` with an error of at most `c (|r(q)|**2 + |r(v)|**2)`, and `|r(v)| <= |r(q)| + d'` by
  the triangle inequality, with `d'` the distance of `r(q)` and `r(v)`. So

      d' >= sqrt((p**2 - 3 c |r(q)|**2) / (1 + 2 c))

  and rounding the coordinates changed it by at most `e (|r(q)| + |r(v)|)`:

      d >= d' (1 - e) - 2 e |r(q)|

- The others: a computed distance is wrong by at most `e (|r(q)| + |r(v)|)`, where `e` follows from
  the rounding of the coordinates to float32 and the arithmetic of the library: float32 for
  Manhattan distances by faiss, float64 for Euclidean ones by scikit-learn. So

      d >= (p - 2 e |r(q)|) / (1 + e)

Shifting does not change distances, and cutting to a box can only make them shorter, so the bound
holds for the vectors themselves. If the k-th smallest float64 distance of the candidates is less
than the bound, no other vector can be one of the k nearest, and the answer is proven. Otherwise
scikit-learn is asked, which is slower, and whose bound is closer where distances are small beside
the norms; then for four times as many candidates. Once these would be at least a quarter of all
distinct vectors, all distances are computed in float64 instead. The bounds do not contain the norm
of `v`, so a single vector far from all others does not weaken them.

Vectors that are equal in float32 are proposed as one: copies neither fill up the candidates, nor
cut a graph into parts that cannot be reached from one another.
"""

import copy
import dataclasses
import functools
import math
import threading
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import faiss
import numpy as np
from numpy.typing import ArrayLike

from kerasim import _artifacts, _checks, _distances, _model_identity
from kerasim._distances import METRICS, Metric
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError

if TYPE_CHECKING:
    import keras

__all__ = [
    "NeighborIndex",
]

Kind: TypeAlias = Literal["exact", "hnsw", "hnsw_sq8", "binary"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)
_KIND = "neighbor_index"
_BUDGET = 64 * 2**20  # bytes of working memory in a query, beside the index and the answer
_EPS = float(np.finfo("float32").eps)
_MORE = 6  # candidates beyond k: most queries are proven at once
_TRIAL = 20  # queries of which a proposer must prove half, or it is not asked again
_MOST_LEVELS = 64  # of a graph; each level has a fraction 1 / m of the nodes of the one below
_REACH = 2.0**50  # half the width of the box: float32 holds the squares, and the sum of many
_REFIT = 1000  # rows after which center, scale and codes of an approximate index stay as they are
_TRAINED_ON = 20_000  # vectors by which the levels of 8 bits, and of binary codes, are chosen
_OUTSIDE = 0.001  # share of the values of a coordinate below, and above, the levels of 8 bits
_BITS = 4  # of a binary code, for each number of a vector
_DECIDED = 4  # how many times as many candidates binary codes need as a graph
_LOW_RECALL = 0.8  # below which a warning is given
_TOO_FAR = "a vector whose neighbors are farther away than 1.8e308, the largest float64,"


class NeighborIndex:
    """Finds the nearest neighbors of queries in a set of vectors.

    faiss proposes candidates from vectors rounded to float32 (under "cosine" from unit vectors).
    The distances of the candidates are computed in float64. If the candidates of a query are not
    proven to contain its neighbors, more are requested, computed by scikit-learn in float64.
    The answer does not depend on the number of queries or threads.

    Args:
        metric: "euclidean", "manhattan" or "cosine" (1 - cosine similarity).
        kind: "exact"; "hnsw" for a graph (Malkov & Yashunin, 2020.
            https://arxiv.org/abs/1603.09320), which finds most of the nearest vectors in a small
            fraction of the time; "hnsw_sq8" for a graph whose vectors have 8 bits for each number
            instead of 32; or "binary" for codes of 4 bits for each number, which are compared with
            all codes and need the least memory. The distances that they return are exact, too.
            "hnsw_sq8" and "binary" are for "euclidean" and "cosine", and for vectors such as those
            of networks. They find little where a few vectors, a single dimension or the distances
            between clusters are hundreds of times as large as the distances to be found: the codes
            then have too few values for these. A warning is given if `recall_` is below 0.8.
        m: Links of each vector in the graph, 2 or more. More links need more memory and increase
            recall.
        ef_construction: Size of the candidate list while the graph is built, 1 or more.
        ef_search: Size of the candidate list in a query, 1 or more. With "binary", four times as
            many candidates are compared exactly.

    Attributes:
        recall_: Recall at 10 of a graph or of binary codes. It is measured whenever the index is
            built or extended, with at most 1,000 of its own vectors as queries, drawn with seed 0
            (equal vectors are counted once). 1.0 for an exact index. Each of these vectors finds
            itself, so queries that are not in the index have a lower recall: for a million vectors
            without structure (iid normal, 64 dimensions, "hnsw", ef_search=512) 0.905, where
            `recall_` is 0.940.
        embeddings: `(n, dim)`, the vectors in the index.
        nbytes: Bytes of the vectors, of what is searched instead of them, and of links. Vectors
            that stay on the disk (see `load`) are not counted.
        fingerprint: Fingerprint of the embedder with which the index was saved, or None.

    Raises:
        ArgumentError: If a setting is out of range or unknown.

    Example:
        >>> index = NeighborIndex("euclidean").fit([[0.0, 0.0], [3.0, 4.0]])
        >>> distances, indices = index.query([[3.0, 3.0]], k=2)
        >>> indices.tolist()
        [[1, 0]]
    """

    def __init__(
        self,
        metric: Metric = "cosine",
        kind: Kind = "exact",
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 64,
    ):
        _checks.one_of("metric", metric, METRICS)
        _checks.one_of("kind", kind, KINDS)
        if metric == "manhattan" and kind in ("hnsw_sq8", "binary"):
            raise ArgumentError(
                f"kind={kind!r} does not search by Manhattan distance: pass kind='exact' or "
                "kind='hnsw', or another metric."
            )
        self.metric, self.kind = metric, kind
        self.m = _checks.integer("m", m, 2)
        self.ef_construction = _checks.integer("ef_construction", ef_construction)
        self.ef_search = _checks.integer("ef_search", ef_search)
        self.recall_, self.fingerprint = 1.0, None
        self._saved = _artifacts.Known()

    def __repr__(self) -> str:
        held = "empty"
        if len(self):
            held = f"{len(self)} vectors of {self.embeddings.shape[1]} numbers"
        settings = f"metric={self.metric!r}, kind={self.kind!r}"
        if self.kind != "exact" and len(self):
            held += f", recall_={self.recall_:.3f}"
        return f"<NeighborIndex {settings}: {held}>"

    def fit(self, embeddings: ArrayLike) -> "NeighborIndex":
        """Replaces the vectors in the index.

        Args:
            embeddings: `(n, dim)`, one row or more, of any real dtype. A copy is stored in that
                dtype (`np.longdouble` as float64).

        Returns:
            The index itself.

        Raises:
            ArgumentError: If a vector holds NaN or infinity or, under "cosine", only zeros. The
                message names the rows.
        """
        return self._fit(_checks.vectors("embeddings", embeddings, None, 1, self.metric).copy())

    def _fit(self, embeddings, links=None, first=None, representatives=None, recall=None):
        """Builds the index of checked vectors, or what was saved of it again."""
        first = first or len(embeddings)
        frame = _Frame(embeddings[:first], self.metric)
        reduced = _reduced(embeddings, frame, self.metric)
        if representatives is None:
            representatives = _representatives(reduced)
        groups = _Groups(representatives, embeddings, self.metric)
        distinct = reduced if groups.trivial else reduced[groups.first]
        if self.kind == "exact":
            engine = _Flat(distinct, self.metric)
        else:
            index = self._trained(_distances.spread(reduced[:first], _TRAINED_ON))
            if links is None:
                index.add(distinct)
            else:
                _add_links(index, distinct, links, self.m)
            engine = _Approximate(index, self.kind, self.ef_search)
        state = _State(embeddings, first, frame, groups, engine)
        if self.kind == "exact":
            recall = 1.0
        elif recall is None:
            recall = self._recall(state, distinct)
            self._warn_of_low_recall(recall)
        self._state, self.recall_, self.fingerprint = state, recall, None
        return self

    @property
    def embeddings(self) -> np.ndarray:
        if not hasattr(self, "_state"):
            raise AttributeError("The index is empty: call fit(embeddings) first.")
        return self._state.embeddings

    @property
    def nbytes(self) -> int:
        if not len(self):
            return 0
        vectors = self.embeddings
        kept = 0 if isinstance(vectors, np.memmap) else vectors.nbytes
        return kept + self._state.engine.nbytes

    def add(self, embeddings: ArrayLike) -> "NeighborIndex":
        """Adds vectors to the index. An exact index is fitted again, the others are extended.

        Args:
            embeddings: `(n, dim)`, of any real dtype; `n` may be 0 unless the index is empty. All
                vectors are kept in the dtype that holds both these and those in the index, in
                memory, even those that were loaded with `mmap_mode="r"`.

        Returns:
            The index itself.

        Raises:
            ArgumentError: If a vector holds NaN or infinity or, under "cosine", only zeros, or has
                another dimension than those in the index.
        """
        if not len(self):
            return self.fit(embeddings)
        width = self.embeddings.shape[1]
        embeddings = _checks.vectors("embeddings", embeddings, width, 0, self.metric)
        if not len(embeddings):
            return self
        return self._extend(np.concatenate([self.embeddings, embeddings]))

    def _extend(self, embeddings):
        """Adds the rows of `embeddings`, checked ones, that follow those in the index."""
        fingerprint, first = self.fingerprint, self._state.first
        # The center and the scale of a few rows may not suit those that come later.
        if self.kind == "exact" or (first < _REFIT and len(embeddings) >= 4 * first):
            self._fit(embeddings)
        else:
            self._append(embeddings)
        self.fingerprint = fingerprint
        return self

    def _append(self, embeddings):
        """Adds those rows to the index of faiss that are not in it yet."""
        state = self._state
        if len(state.engine) != len(state.groups):  # an add was interrupted
            return self._fit(embeddings)
        known = state.groups.representatives
        reduced = _reduced(embeddings, state.frame, self.metric)
        representatives = _representatives(reduced)
        old = representatives < len(known)
        representatives[old] = known[representatives[old]]
        representatives[: len(known)] = known
        groups = _Groups(representatives, embeddings, self.metric)
        state.engine.add(reduced[groups.first[groups.first >= len(known)]])
        self._state = dataclasses.replace(state, embeddings=embeddings, groups=groups)
        distinct = reduced if groups.trivial else reduced[groups.first]
        self.recall_ = self._recall(self._state, distinct)
        self._warn_of_low_recall(self.recall_)
        return self

    def _warn_of_low_recall(self, recall: float) -> None:
        if recall < _LOW_RECALL:
            kinds = "exact" if self.kind == "hnsw" else "hnsw' or 'exact"
            _checks.warn(
                f"kind={self.kind!r} finds a share of {recall:.2f} of the 10 nearest of these "
                f"vectors (recall_): pass kind='{kinds}', or a larger ef_search."
            )

    def _grown(self, embeddings: np.ndarray) -> "NeighborIndex":
        """Returns a copy of the index with more vectors. Other threads can still query this one.

        Args:
            embeddings: `(n, dim)`, all vectors, not copied: those in the index, and more after
                them.

        Raises:
            ArgumentError: If one of the new vectors holds NaN or infinity or, under "cosine", only
                zeros.
        """
        more = embeddings[len(self) :]
        _checks.vectors("embeddings", more, self.embeddings.shape[1], 0, self.metric)
        grown = copy.copy(self)
        if self.kind != "exact":
            grown._state = dataclasses.replace(self._state, engine=self._state.engine.clone())
        return grown._extend(embeddings)

    def query(self, x: ArrayLike | None = None, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Finds the `k` nearest vectors of each row.

        Args:
            x: `(n, dim)` vectors of the same model; `n` may be 0. None for the vectors in the
                index, none of which is its own neighbor.
            k: Number of neighbors, 1 or more. If the index holds fewer vectors, all of them are
                returned, with a warning.

        Returns:
            `(distances, indices)`, each `(n, k)`, float64 and int64, ordered by distance, then by
            index. Euclidean distances are not squared.

        Raises:
            ArgumentError: If the index is empty, or holds one vector and `x` is None; if `k` is out
                of range, the vectors have another dimension than those in the index, a row holds
                NaN or infinity or, under "cosine", only zeros, or a distance is above 1.8e308, the
                largest float64.

        Example:
            >>> index = NeighborIndex("euclidean").fit([[0.0], [1.0], [3.0]])
            >>> index.query([[0.9]], k=2)[1].tolist()
            [[1, 0]]
            >>> index.query(k=1)[1].tolist()
            [[1], [0], [1]]
        """
        others = x is None
        x = self._check_queries(self.embeddings if others and len(self) else x)
        state = self._state
        _checks.integer("k", k)
        names = ("vector in the index", "vectors in the index")
        if others:
            names = ("other vector in the index", "other vectors in the index")
            if len(x) == 1:
                raise ArgumentError("The index holds one vector, without neighbors: pass x.")
        k = _checks.clipped("k", k, len(state.embeddings) - others, *names)
        distances, indices = self._answer(state, state.engine, x, k + others)
        if others:
            # With copies in the index, a vector may not find itself first, or at all.
            kept = indices != np.arange(len(x))[:, None]
            kept &= np.cumsum(kept, axis=1) <= k
            distances, indices = (found[kept].reshape(-1, k) for found in (distances, indices))
        _checks.bad_rows("x", np.isinf(distances).any(axis=1), _TOO_FAR)
        return distances, indices

    def _check_queries(self, x) -> np.ndarray:
        """Returns queries as an array; raises an `ArgumentError` if they do not fit the index."""
        if not len(self):
            raise ArgumentError("The index is empty: call fit(embeddings) before query.")
        return _checks.vectors("x", x, self.embeddings.shape[1], 0, self.metric)

    def _answer(self, state, engine, x, k):
        """Returns distances and indices of the nearest, of candidates that `engine` proposes."""
        distances, indices = np.empty((len(x), k)), np.empty((len(x), k), dtype="int64")
        waiting, count = np.arange(len(x)), min(len(state.groups), engine.count(k))
        proposers = engine.proposers
        while len(waiting) and 4 * count < len(state.groups):
            step = max(1, _BUDGET // (count * 8 * 8))
            unproven = []
            for start in range(0, len(waiting), step):
                rows = waiting[start : start + step]
                propose = getattr(engine, proposers[0])
                *found, proven = self._search(state, propose, x[rows], k, count)
                distances[rows[proven]], indices[rows[proven]] = found
                unproven.append(rows[~proven])
            asked, waiting = len(waiting), np.concatenate(unproven)
            if len(proposers) == 1:
                count *= 4
                continue
            proposers = proposers[1:]
            if asked >= _TRIAL and 2 * len(waiting) > asked:
                # Only the time of later queries depends on this, never their answers.
                engine.proposers = proposers
        step = max(1, _BUDGET // (len(state.embeddings) * 8 * 4))
        for start in range(0, len(waiting), step):
            rows = waiting[start : start + step]
            distances[rows], indices[rows] = self._scan(state, x[rows], k)
        return distances, indices

    def _search(self, state, propose, x, k, count):
        """Returns distances and indices of the proven queries, and which of `x` are proven."""
        reduced = state.frame.reduce(_distances.prepare(x, self.metric))
        proposed, bound = propose(reduced, count)
        # Another thread may add to a graph: what `state` does not know is left out.
        queries, places = np.nonzero((proposed >= 0) & (proposed < len(state.groups)))
        distances, indices = self._decide(state, x, queries, proposed[queries, places], k)
        last = distances[:, -1]
        if self.metric == "cosine":  # half the squared distance of unit vectors
            last = np.sqrt(2 * last) + _distances.UNIT_ERROR
        # guard: proof-in-float64
        proven = last < state.frame.undo(bound)
        return distances[proven], indices[proven], proven

    def _scan(self, state, x, k):
        """Returns distances and indices of the nearest of all vectors, without an engine."""
        groups = state.groups
        one_of_each = state.embeddings if groups.trivial else state.embeddings[groups.first]
        distances = _distances.pairwise(x, one_of_each, self.metric)
        place = min(k, len(groups)) - 1
        last = np.partition(distances, place, axis=1)[:, place : place + 1]
        queries, near = np.nonzero((distances <= last) | groups.differ)
        return self._decide(state, x, queries, near, k)

    def _decide(self, state, x, queries, groups, k):
        """Returns `(distances, indices)` of the nearest vectors in groups, each `(len(x), k)`.

        Args:
            state: What was fitted.
            x: Queries.
            queries: `(m,)` positions in `x`, in order.
            groups: `(m,)` a group whose vectors may be nearest, for each of `queries`.
            k: How many to return; a query with fewer candidates gets infinite distances.
        """
        distances, indices = np.full((len(x), k), np.inf), np.zeros((len(x), k), dtype="int64")
        sizes = state.groups.sizes(groups, k)
        # The queries are processed in parts, of about as many rows as the budget allows.
        ends = np.cumsum(np.bincount(queries, sizes, len(x)).astype("int64"))
        portion = (ends[queries] - 1) // max(1, _BUDGET // (8 * 8))
        for start in np.unique(portion, return_index=True)[1]:
            part = slice(start, np.searchsorted(portion, portion[start], "right"))
            rows = state.groups.rows(groups[part], sizes[part])
            asked = np.repeat(queries[part], sizes[part])
            found = _distances.paired_rows(x, state.embeddings, asked, rows, self.metric)
            complete, *nearest = _nearest(asked, rows, found, k)
            distances[complete], indices[complete] = nearest
        return distances, indices

    def identify(
        self,
        x: ArrayLike,
        labels: ArrayLike,
        threshold: float,
        unknown: int | str = -1,
        query_groups: ArrayLike | None = None,
        gallery_groups: ArrayLike | None = None,
    ) -> np.ndarray:
        """Returns the label of each row's nearest vector, if its distance is within a threshold.

        One vector per class in the index is enough (one-shot identification), and the embedder
        need not have been trained on that class.

        Args:
            x: `(n, dim)` vectors of the same model.
            labels: Integers or strings, one for each vector in the index.
            threshold: Largest distance at which a row is accepted, such as
                `metrics.verification(...).threshold(max_far=0.01)` on pairs of other classes.
            unknown: Label of the rows that are rejected: an integer or, if `labels` are strings, a
                string.
            query_groups: `(n,)` integers or strings, such as the session of each row: the nearest
                vector outside of the group of the row decides, and a row without such a vector is
                rejected. None for no groups.
            gallery_groups: Integers or strings, one for each vector in the index; None if
                `query_groups` is None.

        Returns:
            `(n,)` labels.

        Raises:
            ArgumentError: If there is not one label for each vector, one of the labels equals
                `unknown`, groups do not fit the vectors, or `query` refuses the rows.
            ArgumentTypeError: If `unknown` and `labels`, or the groups of rows and vectors, are not
                both integers or both strings.

        Example:
            >>> index = NeighborIndex("euclidean").fit([[0.0], [1.0]])
            >>> index.identify([[0.1]], ["cat", "dog"], threshold=2.0, unknown="?").tolist()
            ['cat']
            >>> groups = {"query_groups": ["monday"], "gallery_groups": ["monday", "friday"]}
            >>> index.identify([[0.1]], ["cat", "dog"], 2.0, "?", **groups).tolist()
            ['dog']
        """
        _checks.number("threshold", threshold)
        labels = _checks.labels("labels", labels, len(self), "vectors in the index")
        labels, other = _to_common_dtype(labels, unknown)
        if (labels == other).any():
            raise ArgumentError(
                f"unknown={unknown!r} is also the label of a vector: pass another value."
            )
        x = self._check_queries(x)
        groups = _checks.group_codes(
            ("query_groups", "gallery_groups"), (query_groups, gallery_groups), (len(x), len(self))
        )
        if groups is None:
            distances, indices = (found[:, 0] for found in self.query(x, k=1))
        else:
            distances, indices = self._nearest_outside(x, *groups, threshold)
        return np.where(distances <= threshold, labels[indices], other)

    def _nearest_outside(self, x, query_groups, gallery_groups, threshold):
        """Returns `(distances, indices)`, each `(n,)`, of the nearest vector of another group.

        More and more neighbors are searched for until one is of another group. The distance is
        infinite where there is none, or none within the threshold.
        """
        state = self._state
        distances, indices = np.full(len(x), np.inf), np.full(len(x), -1)
        own = np.where(query_groups >= 0, np.bincount(gallery_groups)[query_groups], 0)
        waiting, k = np.flatnonzero(own < len(gallery_groups)), 1
        while len(waiting):
            unfinished = []
            for part in _portions(waiting, k):
                rows = waiting[part]
                near, places = self._answer(state, state.engine, x[rows], k)
                outside = gallery_groups[places] != query_groups[rows, None]
                found = np.flatnonzero(outside.any(axis=1))
                first = outside[found].argmax(axis=1)
                distances[rows[found]] = near[found, first]
                indices[rows[found]] = places[found, first]
                # Infinite distances are searched to the end, to be refused as by `query`.
                beyond = (near[:, -1] > threshold) & np.isfinite(near[:, -1])
                unfinished.append(rows[~outside.any(axis=1) & ~beyond])
            waiting, k = np.concatenate(unfinished), min(4 * k, len(gallery_groups))
        _checks.bad_rows("x", np.isinf(distances) & (indices >= 0), _TOO_FAR)
        return distances, indices

    def save(
        self, path: Path | str, embedder: "keras.Model | None" = None, replace: bool = False
    ) -> None:
        """Writes the index to a folder, completely or not at all.

        Args:
            path: Folder.
            embedder: The model that computed the vectors. `load` can then refuse other models.
            replace: True to overwrite an index that this one was not loaded from or saved to.

        Raises:
            ArgumentError: If the index is empty.
            ArtifactError: If the folder holds another index and `replace` is False, holds something
                else, or cannot be written.
        """
        if not len(self):
            raise ArgumentError("The index is empty: call fit(embeddings) before save.")
        fingerprint = (
            self.fingerprint if embedder is None else _model_identity.fingerprint(embedder)
        )
        self._saved.check(path, _KIND, replace)
        _artifacts.write(path, _KIND, self._write_files, self._metadata(), fingerprint)
        self._saved.note(path)

    def get_params(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        names = ("metric", "kind", "m", "ef_construction", "ef_search")
        return {name: getattr(self, name) for name in names}

    def _metadata(self) -> dict[str, Any]:
        """Returns what `save` stores in the manifest, besides the files of `_write_files`."""
        info = {"settings": self.get_params(), "recall": self.recall_, "first": self._state.first}
        if self._is_graph:
            info["entry_point"] = int(self._state.engine.index.hnsw.entry_point)
        return info

    @property
    def _is_graph(self) -> bool:
        return self.kind.startswith("hnsw")

    def _write_files(self, folder: Path) -> None:
        """Writes the files of the index into `folder`, an empty one, for `_artifacts.write`."""
        _write_array(folder / "embeddings.npy", self.embeddings)
        if self._is_graph:
            _write_array(folder / "groups.npy", self._state.groups.representatives)
            links = self._state.engine.index.hnsw
            _write_array(folder / "levels.npy", faiss.vector_to_array(links.levels))
            _write_array(folder / "links.npy", faiss.vector_to_array(links.neighbors))

    @classmethod
    def load(
        cls,
        path: Path | str,
        embedder: "keras.Model | None" = None,
        mmap_mode: Literal["r"] | None = None,
    ) -> "NeighborIndex":
        """Reads an index that `save` wrote.

        Args:
            path: Folder.
            embedder: If given, the model that will embed the queries.
            mmap_mode: "r" leaves the vectors on the disk, as `numpy.load` does, and reads those of
                the candidates of a query only. With kind="hnsw_sq8" or "binary" the memory is then
                that of the links and codes (`nbytes`), and while the index is loaded that of a
                float32 copy of all vectors besides. The folder must stay on a local disk while the
                index is used. None reads everything into memory.

        Returns:
            The index, which returns the same answers as before.

        Raises:
            ArgumentError: If `mmap_mode` is something else.
            ArtifactError: If the folder is missing or damaged, or was not saved with `embedder`.
        """
        mapped = check_mmap_mode(mmap_mode)
        expected = None if embedder is None else _model_identity.fingerprint(embedder)

        def load(folder, manifest):
            index = cls._from_files(folder, manifest.info, manifest, mapped)
            index._saved.note(path, folder)
            return index

        return _artifacts.read(path, _KIND, load, expected)

    @classmethod
    def _from_files(
        cls, folder: Path, info: dict[str, Any], manifest: _artifacts.Manifest, mapped: bool = False
    ) -> "NeighborIndex":
        """Creates an index from the files of `_write_files`, which `_artifacts.read` has checked.

        Args:
            folder: Folder of the files.
            info: The result of `_metadata` when the files were written.
            manifest: `_artifacts.Manifest` of the folder.
            mapped: Whether the vectors stay on the disk.

        Raises:
            ArgumentError: If the vectors are not finite.
        """
        index = cls(**info["settings"])
        vectors = _artifacts.read_array(folder / "embeddings.npy", mapped)
        _checks.vectors("embeddings", vectors, None, 1, index.metric)
        _checks.integer("first", info["first"], 1, len(vectors))
        links = representatives = None
        if index._is_graph and not (folder / "levels.npy").exists():
            index._fit(vectors)  # saved by the first version, whose faiss file is not trusted
            index.fingerprint = manifest.fingerprint
            return index
        if index._is_graph:
            links = _Links(
                _artifacts.read_array(folder / "levels.npy"),
                _artifacts.read_array(folder / "links.npy"),
                info["entry_point"],
            )
            representatives = _artifacts.read_array(folder / "groups.npy")
            _check_groups(representatives, len(vectors), len(links.levels))
            # guard: graph-links
            _check_links(links, index.m)
        index._fit(vectors, links, info["first"], representatives, info["recall"])
        index.fingerprint = manifest.fingerprint
        return index

    def __len__(self) -> int:
        return len(self._state.embeddings) if hasattr(self, "_state") else 0

    def _trained(self, sample):
        """Returns an index of faiss that is ready for vectors such as those of `sample`."""
        width = sample.shape[1]
        index: Any
        if self.kind == "binary":
            index = faiss.IndexLSH(width, _BITS * width, True, True)
        elif self.kind == "hnsw_sq8":
            # An int in Python, which the type stubs take for a ScalarQuantizer.
            bits: Any = faiss.ScalarQuantizer.QT_8bit
            index = faiss.IndexHNSWSQ(width, bits, self.m)
            levels = faiss.downcast_index(index.storage).sq
            levels.rangestat = faiss.ScalarQuantizer.RS_quantiles
            # Of few vectors, a single one far away must be outside as well.
            levels.rangestat_arg = min(0.1, max(_OUTSIDE, 2 / len(sample)))
        else:
            by = faiss.METRIC_L1 if self.metric == "manhattan" else faiss.METRIC_L2
            index = faiss.IndexHNSWFlat(width, self.m, by)
        if self._is_graph:
            index.hnsw.efConstruction = self.ef_construction
        index.train(sample)
        return index

    def _recall(self, state, reduced):
        """Returns the recall at 10 of what was fitted, of which `reduced` are distinct vectors."""
        distinct = state.groups.first
        rows = np.random.default_rng(0).permutation(len(distinct))[:1000]
        x = state.embeddings[distinct[rows]]
        k = min(10, len(state.embeddings))
        found = self._answer(state, state.engine, x, k)[0]
        exact = self._answer(state, _Flat(reduced, self.metric), x, k)[0]
        return float((found <= exact[:, -1:]).mean())  # by distance: of equal ones any will do


@dataclasses.dataclass(frozen=True)
class _State:
    """What `fit` makes, replaced as a whole."""

    embeddings: np.ndarray
    first: int  # the number of rows, from the first on, that fixed the frame
    frame: "_Frame"
    groups: "_Groups"
    engine: Any  # _Flat or _Approximate


class _Frame:
    """The shift and the scale by which float32 holds most vectors with all of its digits.

    The center is the median of vectors, and the scale that of their distances from it: a few
    vectors far away do not change them.
    """

    def __init__(self, embeddings, metric):
        self._lift = 1.0
        if metric != "cosine" and embeddings.dtype.itemsize == 8:
            self._lift = _distances.lift(embeddings)
        blocks = (rows for _, rows in _blocks(embeddings, metric))
        sample = _distances.spread(embeddings)
        self._center = _distances.middle(_distances.prepare(sample, metric) * self._lift)
        sizes = [np.abs(block * self._lift - self._center).max(axis=1) for block in blocks]
        sizes = np.sort(np.concatenate(sizes))
        sizes = sizes[sizes > 0]
        typical = float(sizes[(len(sizes) - 1) // 2]) if len(sizes) else 1.0
        exponent = 1 - math.frexp(typical)[1]
        self._scale = 2.0 ** min(max(exponent, -1000), 1000)

    def reduce(self, prepared):
        """Returns the float32 vectors that a library gets."""
        with np.errstate(over="ignore"):
            reduced = (prepared * self._lift - self._center) * self._scale
        # + 0.0 makes zeros of negative zeros, so that equal vectors are of equal bytes.
        return reduced.clip(-_REACH, _REACH).astype("float32", order="C") + np.float32(0)

    def undo(self, distance):
        """Returns the distance of prepared vectors that `distance` between reduced ones means."""
        with np.errstate(over="ignore"):
            return distance / self._scale / self._lift


class _Groups:
    """Vectors that are equal once they are reduced, such as copies: an engine holds one of each.

    Args:
        representatives: `(n,)` position of the first row of the group of each row.
        embeddings: The rows.
        metric: One of `METRICS`.
    """

    def __init__(self, representatives, embeddings, metric):
        positions = np.arange(len(representatives))
        self.representatives = representatives
        self.first = np.flatnonzero(representatives == positions)
        self.trivial = len(self.first) == len(positions)  # no two vectors are equal
        self.differ = np.zeros(len(self.first), bool)  # whose vectors differ in float64
        if self.trivial:
            return
        group = np.asarray(np.searchsorted(self.first, representatives))
        self._rows = np.argsort(group, kind="stable")
        self._sizes = np.bincount(group)
        self._starts = np.cumsum(self._sizes) - self._sizes
        others = np.flatnonzero(representatives != positions)
        for part in _portions(others, embeddings.shape[1]):
            rows = others[part]
            one = _distances.prepare(embeddings[rows], metric)
            other = _distances.prepare(embeddings[representatives[rows]], metric)
            unequal = rows[np.any(one != other, axis=1)]
            self.differ[group[unequal]] = True

    def __len__(self):
        return len(self.first)

    def sizes(self, groups, k):
        """Returns how many rows of each of `groups` to look at; of equal ones `k` are enough."""
        if self.trivial:
            return np.ones(len(groups), "int64")
        sizes = self._sizes[groups]
        return np.where(self.differ[groups], sizes, np.minimum(sizes, k))

    def rows(self, groups, sizes):
        """Returns the first rows of each of `groups`, as many as `sizes` says, `(sizes.sum(),)`."""
        if self.trivial:
            return self.first[groups]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self._rows[np.repeat(self._starts[groups], sizes) + within]


class _Flat:
    """Proposes candidates by the computed distance to every vector, with a bound for all others.

    Attributes:
        proposers: Names of methods from reduced queries and a count to `(n, count)` candidates and
            a lower bound of the distance to all other vectors, the fastest first. Kept as methods
            they would refer to the object, which would stay in memory until garbage is collected.
    """

    def __init__(self, reduced, metric):
        self._reduced = reduced
        if metric == "manhattan":
            self.proposers = ("_by_city_blocks",)
        else:
            self.proposers = ("_by_product", "_in_float64")

    @property
    def nbytes(self) -> int:
        return self._reduced.nbytes

    def count(self, k: int) -> int:
        """Returns how many candidates `k` neighbors need, most of the time."""
        return k + _MORE

    def _by_city_blocks(self, reduced, count):
        distances, candidates = faiss.knn(reduced, self._reduced, count, faiss.METRIC_L1)
        # Rounding of the coordinates, and of a float32 sum.
        error = (reduced.shape[1] + 2) * _EPS
        return candidates, self._bound(reduced, distances, 1, error)

    def _by_product(self, reduced, count):
        squares, candidates = faiss.knn(reduced, self._reduced, count, faiss.METRIC_L2)
        # Rounding of three float32 sums and of their sum.
        error = (reduced.shape[1] + 8) * _EPS
        own = np.square(reduced, dtype="float64").sum(axis=1)
        least = reduced.shape[1] * 2.0**-120  # float32 underflow
        bound = squares.max(axis=1).astype("float64") - 3 * error * own - least
        bound = np.sqrt(bound.clip(0) / (1 + 2 * error))
        return candidates, bound * (1 - _EPS) - 2 * _EPS * np.sqrt(own)

    def _in_float64(self, reduced, count):
        distances, candidates = self._brute.kneighbors(reduced, count)
        # Rounding of the coordinates and the result, and of |x|^2 - 2 xy + |y|^2 in float64.
        error = 2 * _EPS + np.sqrt((reduced.shape[1] + 4) * 1.2e-16)
        return candidates, self._bound(reduced, distances, 2, error)

    @functools.cached_property
    def _brute(self):
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(algorithm="brute").fit(self._reduced)

    @staticmethod
    def _bound(reduced, distances, order, error):
        sizes = np.linalg.norm(reduced.astype("float64"), order, axis=1)
        least = reduced.shape[1] * 2.0**-140  # float32 underflow
        return (distances.max(axis=1) - 2 * error * sizes - least) / (1 + error)


class _Approximate:
    """Proposes the candidates that an index of faiss finds, by `proposers` as those of `_Flat`.

    Args:
        index: A graph, or binary codes.
        kind: One of `KINDS`.
        ef_search: Size of the candidate list in a query.
    """

    def __init__(self, index, kind, ef_search):
        self.proposers = ("_propose",)
        self.index, self._kind, self._ef_search = index, kind, ef_search
        self._lock = threading.Lock()  # faiss must not search while it adds

    def __getstate__(self):
        return {**vars(self), "_lock": None}

    def __setstate__(self, state):
        vars(self).update(state, _lock=threading.Lock())

    def __len__(self):
        return self.index.ntotal

    @property
    def nbytes(self) -> int:
        if self._kind == "binary":
            return self.index.codes.size()
        links = self.index.hnsw
        graph = 4 * (links.levels.size() + links.neighbors.size()) + 8 * links.offsets.size()
        return faiss.downcast_index(self.index.storage).codes.size() + graph

    def add(self, reduced):
        with self._lock:
            self.index.add(reduced)

    def clone(self) -> "_Approximate":
        return _Approximate(faiss.clone_index(self.index), self._kind, self._ef_search)

    def count(self, k: int) -> int:
        """Returns how many candidates `k` neighbors need."""
        return max(k + _MORE, _DECIDED * self._ef_search if self._kind == "binary" else 0)

    def _propose(self, reduced, count):
        """Returns `(n, count)` candidates, -1 for none; what was not proposed may be nearer."""
        settings = None
        if self._kind != "binary":
            settings = faiss.SearchParametersHNSW(efSearch=max(self._ef_search, count))
        with self._lock:
            candidates = self.index.search(reduced, count, params=settings)[1]
        # A graph of few links may lead to fewer than asked for: ask again for more.
        return candidates, np.where(candidates.min(axis=1) < 0, -np.inf, np.inf)


def _add_links(graph, reduced, links, m: int) -> None:
    """Adds vectors whose links are known to an empty graph."""
    ends = np.cumsum(_link_counts(links.levels, m), dtype="uint64")
    faiss.copy_array_to_vector(links.levels, graph.hnsw.levels)
    faiss.copy_array_to_vector(links.neighbors, graph.hnsw.neighbors)
    faiss.copy_array_to_vector(np.append(np.uint64(0), ends), graph.hnsw.offsets)
    graph.hnsw.entry_point = links.entry_point
    graph.hnsw.max_level = int(links.levels.max()) - 1
    graph.storage.add(reduced)
    graph.ntotal = len(reduced)


def check_mmap_mode(mmap_mode) -> bool:
    """Returns whether vectors stay on the disk; raises an `ArgumentError` if it is not known."""
    if mmap_mode is None:
        return False
    if not isinstance(mmap_mode, str) or mmap_mode != "r":
        raise ArgumentError(f"mmap_mode={mmap_mode!r} is not known: pass 'r' or None.")
    return True


def _portions(rows, width: int = 1) -> Iterator[slice]:
    """Yields slices of `rows`, of at most `_BUDGET` bytes in float64 and some copies."""
    step = max(1, _BUDGET // (width * 8 * 8))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def _blocks(embeddings, metric):
    """Yields slices and their prepared vectors; all at once would need too much memory."""
    for rows in _portions(embeddings, embeddings.shape[1]):
        yield rows, _distances.prepare(embeddings[rows], metric)


def _reduced(embeddings, frame, metric):
    reduced = np.empty(embeddings.shape, "float32")
    for rows, prepared in _blocks(embeddings, metric):
        reduced[rows] = frame.reduce(prepared)
    return reduced


def _representatives(reduced):
    """Returns the position of the first row that is equal to each row.

    Rows are compared by hashes. Rows of equal hash that are not equal stand for themselves.
    """
    weights = np.random.default_rng(0).integers(2**64, size=reduced.shape[1], dtype="uint64") | 1
    hashes = np.empty(len(reduced), "uint64")
    for rows in _portions(reduced, reduced.shape[1]):
        hashes[rows] = (reduced[rows].view("uint32") * weights).sum(axis=1, dtype="uint64")
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    representatives = first[group]
    others = np.flatnonzero(representatives != np.arange(len(reduced)))
    for part in _portions(others, reduced.shape[1]):
        rows = others[part]
        differ = (reduced[rows] != reduced[representatives[rows]]).any(axis=1)
        representatives[rows[differ]] = rows[differ]
    return representatives


def _nearest(queries, rows, distances, k):
    """Returns the `k` nearest rows of each query that has as many, equal distances by position.

    Args:
        queries: `(m,)` positions of queries, in order.
        rows: `(m,)` positions of vectors.
        distances: `(m,)` between them.
        k: How many to return.

    Returns:
        `(asked, distances, rows)`: the queries that have `k`, and `(len(asked), k)` of each.
    """
    order = np.lexsort((rows, distances, queries))
    asked, starts, counts = np.unique(queries, return_index=True, return_counts=True)
    enough = counts >= k
    taken = order[starts[enough, None] + np.arange(k)]
    return asked[enough], distances[taken], rows[taken]


def _to_common_dtype(labels, unknown) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels, and the label for unknown rows, as arrays of a dtype that holds both.

    Raises:
        ArgumentError: If no integers of 64 bits hold both.
        ArgumentTypeError: If `unknown` is not of the kind of `labels`.
    """
    other = _checks.array("unknown", unknown)
    kinds = {"i" if x.dtype.kind == "u" else x.dtype.kind for x in (labels, other)}
    if other.ndim or len(kinds) > 1:
        raise ArgumentTypeError(
            f"unknown={unknown!r} is not of the type of labels ({labels.dtype}): pass an integer "
            "such as -1, or for strings 'unknown'."
        )
    if kinds == {"i"}:
        dtype = np.result_type(labels, np.min_scalar_type(other))
        if dtype.kind == "f":  # of unsigned labels of 64 bits and a negative one
            dtype = np.dtype("int64")
            if labels.max() > np.iinfo(dtype).max:
                raise ArgumentError(
                    f"labels go up to {labels.max()}, and unknown={unknown} is negative: no "
                    "integer type holds both. Pass another value for unknown."
                )
        labels, other = labels.astype(dtype), other.astype(dtype)
    return labels, other


def _write_array(path, array):
    # By Python's `write`, which reports a full disk. NumPy closes its own file without a check, and
    # what was cut short would be taken for whole.
    with open(path, "wb") as file:
        written: Any = types.SimpleNamespace(write=file.write)
        # guard: full-disk
        np.save(written, array, allow_pickle=False)


def _check_groups(representatives, rows, nodes):
    """Raises an `ArtifactError` unless this array says which of `rows` a graph of `nodes` holds."""
    valid = representatives.shape == (rows,) and representatives.dtype == "int64"
    if valid:
        valid = ((representatives >= 0) & (representatives <= np.arange(rows))).all()
    if valid:
        valid = (representatives[representatives] == representatives).all()
    if not valid or len(np.unique(representatives)) != nodes:
        raise ArtifactError(
            f"groups.npy does not fit {rows} vectors and a graph of {nodes} nodes: "
            "build the index again from its vectors."
        )


@dataclasses.dataclass(frozen=True)
class _Links:
    """The links of a graph (HNSW), as faiss keeps them.

    Attributes:
        levels: `(n,)` int32, on how many levels each node is, 1 or more.
        neighbors: int32, for each node `2 m` nodes on its lowest level and `m` on each other one;
            -1 for none.
        entry_point: Node of the highest level, at which a search starts.
    """

    levels: np.ndarray
    neighbors: np.ndarray
    entry_point: int


def _link_counts(levels, m: int) -> np.ndarray:
    """Returns how many places for links each node has."""
    return m * (levels.astype("int64") + 1)


def _check_links(links: _Links, m: int) -> None:
    """Raises an `ArtifactError` unless a search along these links stays within the graph.

    faiss does not check them: it would read memory of other objects.
    """
    levels, neighbors = links.levels, links.neighbors
    size = len(levels)
    advice = "Build the index again from its vectors."
    if levels.dtype != "int32" or neighbors.dtype != "int32" or levels.ndim != 1:
        raise ArtifactError(f"levels.npy and links.npy must hold int32 values. {advice}")
    if size < 1 or levels.min() < 1 or levels.max() > _MOST_LEVELS:
        raise ArtifactError(f"levels.npy must hold 1 to {_MOST_LEVELS} in each row. {advice}")
    counts = _link_counts(levels, m)
    if neighbors.shape != (counts.sum(),) or neighbors.min() < -1 or neighbors.max() >= size:
        raise ArtifactError(f"links.npy does not fit a graph of {size} nodes and m={m}. {advice}")
    starts = np.cumsum(counts) - counts
    for level in range(1, levels.max()):
        nodes = np.flatnonzero(levels > level)
        places = starts[nodes][:, None] + np.arange((level + 1) * m, (level + 2) * m)
        linked = neighbors[places]
        if (levels[linked[linked >= 0]] <= level).any():
            raise ArtifactError(f"links.npy links nodes on a level where they are not. {advice}")
    _checks.integer("entry_point", links.entry_point, 0, size - 1)
    if levels[links.entry_point] != levels.max():
        raise ArtifactError(f"entry_point={links.entry_point} is not on the top level. {advice}")
