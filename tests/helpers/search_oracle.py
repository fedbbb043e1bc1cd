"""Random search problems, and their exact solution in float64 arithmetic."""

import numpy as np

from kerasim.neighbors import NeighborIndex


def unit_vectors(x):
    """Returns unit vectors; the division by the largest keeps squares from overflowing."""
    x = x / np.abs(x).max(axis=1, keepdims=True)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def float64_distances(base, queries, metric):
    """Returns the float64 distance of every query to every vector."""
    base, queries = base.astype("float64"), queries.astype("float64")
    if metric == "cosine":  # half the squared distance of unit vectors
        base, queries = unit_vectors(base), unit_vectors(queries)
    gaps = base[None] - queries[:, None]
    if metric == "manhattan":
        return np.abs(gaps).sum(axis=-1)
    squares = np.square(gaps).sum(axis=-1)
    return squares / 2 if metric == "cosine" else np.sqrt(squares)


def draw_case(seed):
    """Draws vectors, queries (some of them among the vectors) and k."""
    rng = np.random.default_rng(seed)
    size, width = rng.integers(1, 250), rng.integers(1, 50)
    k = int(size if rng.random() < 0.1 else rng.integers(1, size + 1))
    count = 1 if rng.random() < 0.3 else rng.integers(1, 6)
    sigma = 10.0 ** rng.integers(-3, 4)
    offset = sigma * rng.choice([0, 0, 100, 1e3, 1e5])
    base = rng.normal(size=(size, width)) * sigma + offset
    kind = rng.choice(["float32", "float16", "uint8", "float64", "duplicates", "1e30"])
    if kind == "uint8":
        base = rng.integers(1, 256, (size, width))
    elif kind == "float16":
        base = np.clip(base, -6e4, 6e4)
    elif kind == "duplicates":
        base = base[rng.integers(0, max(1, size // 5), size)]
    elif kind == "1e30":
        base = base * (1e30 / (sigma + offset))
    others = base[rng.integers(0, size, count)] * rng.choice([1, 1, 2], size=(count, 1))
    if kind == "uint8":
        others = np.minimum(others, 255)
    dtype = {"duplicates": "float32", "1e30": "float32"}.get(kind, str(kind))
    others = np.clip(others, -6e4, 6e4) if dtype == "float16" else others
    base, queries = base.astype(dtype), others.astype(dtype)
    for rows in (base, queries):
        rows[~rows.any(axis=1)] = 1  # cosine has no place for zeros
    return base, queries, k


def difference_from_oracle(base, queries, k, metric):
    """Returns how the index differs from the oracle, as text, or None."""
    distances, indices = NeighborIndex(metric).fit(base).query(queries, k)
    true = float64_distances(base, queries, metric)
    expected = np.argsort(true, axis=1, kind="stable")[:, :k]
    wanted = np.take_along_axis(true, expected, axis=1)
    floor = 1e-15 if metric == "cosine" else 0
    if not np.allclose(distances, wanted, rtol=1e-12, atol=floor):
        return f"distances differ by up to {np.abs(distances - wanted).max()}"
    for row, place in np.argwhere(indices != expected):
        found, other = indices[row, place], expected[row, place]
        gap = abs(true[row, found] - true[row, other])
        rounding = gap < 1e-14 * true[row, other] and not (base[found] == base[other]).all()
        if metric != "cosine" or not rounding:
            return f"query {row} has {found} at place {place}, not {other}"
    return None
