"""Distances between vectors, computed in the same way for search, metrics and maps.

Every distance that kerasim reports comes from `paired` or `pairwise`: the same pair of vectors has
the same distance, to the last bit, in `NeighborIndex.query`, in `metrics.pair_distances` and on a
map, whatever the number of rows, blocks or threads. Both compute in float64, from differences of
coordinates rather than from products (`|x|**2 - 2 x y + |y|**2` loses the distance of two vectors
that lie close together), and scale where a square would overflow or underflow. The relative error
is below 1e-9, and that of most distances below 1e-15. Two limits: a distance below 1e-308 has only
the few digits of subnormal float64 numbers, and a cosine distance below 1e-30 (an angle of 1e-15)
may be 0.

If there are too many pairs to compute all distances in this way, `Bounds` gives a lower and an
upper bound of each by one matrix product, and only distances that the bounds cannot order are
computed.
"""

from typing import Literal

import numpy as np

Metric = Literal["euclidean", "manhattan", "cosine"]
METRICS: tuple[Metric, ...] = ("euclidean", "manhattan", "cosine")

_CHUNK = 2**15  # numbers worked on at once: 256 kB stay in the cache of a core
_SAMPLE = 256  # rows that the center is estimated from
_UNIT_ROUNDOFF = 2.0**-53

# A sum of squares within these limits has lost nothing to underflow, nor overflowed.
_LEAST_SQUARE, _LARGEST_SQUARE = 1e-280, 1e300

# Cosine distances below this are computed from the vectors themselves: unit vectors are rounded, by
# about 1e-16, which would be more than 1e-10 of the angle.
_SMALL_COSINE = 1e-12

# How far the distance of two computed unit vectors may be from that of the exact ones.
UNIT_ERROR = 4e-15


def unit(x) -> np.ndarray:
    """Returns the rows of `x`, which are finite and not zero, at length 1, in float64.

    They are divided by their largest coordinate first, so that no square overflows or underflows.
    """
    x = np.asarray(x, dtype="float64")
    x = x / np.abs(x).max(axis=-1, keepdims=True)
    return x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True))


def prepare(x, metric: str) -> np.ndarray:
    """Returns rows of which the Euclidean distance (under "manhattan" the city block) has the order
    of `metric`: unit vectors for "cosine", otherwise `x` itself, in float64.
    """
    return unit(x) if metric == "cosine" else np.asarray(x, dtype="float64")


def paired(left, right, metric: str) -> np.ndarray:
    """Returns the distance of each row of `left` and the same row of `right`.

    Args:
        left: `(n, dim)` finite numbers; under "cosine" no row of zeros.
        right: `(n, dim)`, likewise.
        metric: One of `METRICS`.

    Returns:
        `(n,)` float64; infinity where float64 cannot hold a distance.
    """
    rows = np.arange(len(left))
    return paired_rows(left, right, rows, rows, metric)


def paired_rows(left, right, left_rows, right_rows, metric: str) -> np.ndarray:
    """Returns `paired` of the rows of `left` and of `right` at these positions, `(n,)` each.

    The rows are gathered a few at a time, so that memory does not grow with their number.
    """
    distances = np.empty(len(left_rows))
    prepared = prepare(left, metric)
    step = max(1, _CHUNK // left.shape[1])
    for start in range(0, len(left_rows), step):
        chunk = slice(start, start + step)
        some, others = left_rows[chunk], right[right_rows[chunk]]
        block = _lengths(prepared[some], prepare(others, metric), metric)
        if metric == "cosine":
            _refine(block, left[some], others)
        distances[chunk] = block
    return distances


def pairwise(left, right, metric: str) -> np.ndarray:
    """Returns the distance of each row of `left` and each row of `right`.

    Args:
        left: `(n, dim)` finite numbers; under "cosine" no row of zeros.
        right: `(m, dim)`, likewise.
        metric: One of `METRICS`.

    Returns:
        `(n, m)` float64, equal to `paired` of the same rows to the last bit.
    """
    distances = np.empty((len(left), len(right)))
    columns = max(1, min(len(right), _CHUNK // left.shape[1]))
    rows = max(1, _CHUNK // (left.shape[1] * columns))
    left_rows = prepare(left, metric)
    for start in range(0, len(right), columns):
        across = slice(start, start + columns)
        some = right[across]
        right_rows = prepare(some, metric)
        for first in range(0, len(left), rows):
            down = slice(first, first + rows)
            block = _lengths(left_rows[down, None], right_rows[None], metric)
            if metric == "cosine":
                _refine(block, left[down, None], some[None])
            distances[down, across] = block
    return distances


def _lengths(left, right, metric):
    """Returns the distances of prepared vectors, along the last axis of arrays that broadcast."""
    with np.errstate(over="ignore"):
        gaps = left - right
        if metric == "manhattan":
            return np.abs(gaps, out=gaps).sum(axis=-1)
        squares = np.square(gaps).sum(axis=-1)
        if metric == "cosine":
            # Half the squared distance of unit vectors is 1 - cosine, without its cancellation.
            return squares / 2
        distances = np.sqrt(squares)
        odd = ~((squares > _LEAST_SQUARE) & (squares < _LARGEST_SQUARE))
        if odd.any():
            distances[odd] = _scaled_norm(gaps[odd])
        return distances


def _refine(distances, left, right):
    """Replaces small cosine distances by those of the vectors themselves, not of unit vectors."""
    small = (distances > 0) & (distances < _SMALL_COSINE)
    if small.any():
        shape = np.broadcast_shapes(left.shape, right.shape)
        left, right = (np.broadcast_to(x, shape)[small].astype("float64") for x in (left, right))
        distances[small] = _small_cosine(left, right)


def _scaled_norm(gaps):
    """Returns the length of each row, whatever its size."""
    largest = np.abs(gaps).max(axis=-1, keepdims=True)
    usual = (largest > 0) & (largest < np.inf)
    scaled = gaps / np.where(usual, largest, 1.0)
    lengths = largest[..., 0] * np.sqrt(np.square(scaled).sum(axis=-1))
    return np.where(usual[..., 0], lengths, largest[..., 0])


def _small_cosine(x, y):
    """Returns 1 - cosine of rows that have almost the same direction.

    The part of `x` that is perpendicular to `y` is `x - s y`, with `s` the projection of `x` on
    `y`. The product `s y` is computed without a rounding error, as the sum of two numbers, so that
    the difference keeps its digits.
    """
    x, y = (np.ldexp(v, -np.frexp(np.abs(v).max(axis=1, keepdims=True))[1]) for v in (x, y))
    length = np.square(y).sum(axis=1, keepdims=True)
    projection = (x * y).sum(axis=1, keepdims=True) / length
    product = projection * y
    rest = (x - product) - _product_error(projection, y, product)
    # What is left of the direction of y, as the projection was rounded.
    rest -= (rest * y).sum(axis=1, keepdims=True) / length * y
    sine = np.square(rest).sum(axis=1) / np.square(x).sum(axis=1)
    return sine / (1 + np.sqrt(1 - sine))  # sine is sin(angle)**2


def _product_error(a, b, product):
    """Returns `a * b - product` exactly, for `product` the rounded `a * b` (Dekker, 1971)."""
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a):
    """Returns two numbers of 26 bits with the sum `a`."""
    shifted = a * (2.0**27 + 1)
    high = shifted - (shifted - a)
    return high, a - high


def spread(x, count: int = _SAMPLE):
    """Returns at most `count` rows of `x`, evenly spaced."""
    return x[np.linspace(0, len(x) - 1, min(len(x), count)).astype("int64")]


def middle(rows) -> np.ndarray:
    """Returns the median of `rows` in each coordinate.

    A mean would follow a single row that lies far away. The lower of two medians is taken, so that
    nothing can overflow.
    """
    return np.sort(rows, axis=0)[(len(rows) - 1) // 2]


def lift(*arrays) -> float:
    """Returns a power of two by which `arrays` can be multiplied to bring them away from the ends
    of float64, so that no difference or sum of their numbers overflows.
    """
    largest = max(
        (abs(float(end)) for x in arrays if x.size for end in (x.min(), x.max())), default=1.0
    )
    if largest > 2.0**900:
        return 2.0**-64
    return 2.0**64 if largest < 2.0**-900 else 1.0


def to_unit_range(x) -> tuple[np.ndarray, int]:
    """Returns `x / 2**exponent`, in which no number is above 1, in float64, and `exponent`."""
    x = np.asarray(x, dtype="float64")
    exponent = int(np.frexp(np.abs(x).max(initial=0))[1])
    return np.ldexp(x, -exponent), exponent


def without_overflow(*arrays) -> list[np.ndarray]:
    """Returns `arrays` as they are, or all divided by a power of two if a distance could overflow.

    The order of distances stays the same.
    """
    factor = lift(*arrays)
    return [x * factor if factor < 1 else x for x in arrays]


class Bounds:
    """Lower and upper bounds of the distances to `x`, by one matrix product.

    The bounds tell which of two distances of a query is smaller; their unit and their zero are
    those of the query. Of centered vectors `a` and `b` a matrix product gives
    `|a|**2 - 2 a b + |b|**2` with an error of at most `2 (dim + 4) u (|a|**2 + |b|**2)`, where `u`
    is the rounding of the dtype, of which twice as much is allowed for. This includes the rounding
    of the coordinates to that dtype. `|a|**2`, the same for all `b`, is left out.

    Args:
        x: `(m, dim)` vectors, that passed through `without_overflow` with the queries.
        queries: Those whose distances are asked for later, for the scale.
        metric: One of `METRICS`.
        dtype: "float32" for wide bounds in half of the time, or "float64". Manhattan distances are
            always computed in float64.
    """

    def __init__(self, x, queries, metric: str, dtype: str = "float64"):
        self._metric, self._dtype = metric, dtype
        self._rows = prepare(x, metric)
        if metric == "manhattan":
            self._error = 4 * (x.shape[1] + 4) * _UNIT_ROUNDOFF
            self._widths = np.zeros(len(x))
            return
        self._error = 2 * (x.shape[1] + 4) * float(np.finfo(dtype).eps)
        largest = max(np.abs(self._rows).max(), np.abs(prepare(queries, metric)).max())
        exponent = int(np.frexp(largest)[1])
        self._factors = 2.0 ** -(exponent // 2), 2.0 ** -(exponent - exponent // 2)
        self._center = self._scaled(middle(spread(self._rows)))
        self._rows = self._scaled(self._rows) - self._center
        squares = np.square(self._rows).sum(axis=1)
        self._widths = 2 * self._error * squares
        self._rows = self._rows.astype(dtype, copy=False)
        self._squares = ((1 - self._error) * squares).astype(dtype)
        self._least = x.shape[1] * 1e-36 if dtype == "float32" else 1e-290  # underflow
        if metric == "cosine":
            # Where `paired` does not use unit vectors, a squared distance of these is off by this.
            self._least += 2 * UNIT_ERROR * np.sqrt(2 * _SMALL_COSINE)

    def _scaled(self, x):
        return x * self._factors[0] * self._factors[1]

    def lower(self, queries) -> tuple[np.ndarray, np.ndarray]:
        """Returns lower bounds `(n, m)` of the distances of `queries` to all, and `(n,)` widths.

        What `upper` needs are the widths of the queries.
        """
        if self._metric == "manhattan":
            from scipy.spatial.distance import cdist

            distances = cdist(prepare(queries, self._metric), self._rows, "cityblock")
            distances *= 1 - self._error
            return distances, np.zeros(len(queries))
        rows = self._scaled(prepare(queries, self._metric)) - self._center
        widths = 2 * (self._error * np.square(rows).sum(axis=1) + self._least)
        lower = (-2 * rows).astype(self._dtype, copy=False) @ self._rows.T
        lower += self._squares
        return lower, widths

    def upper(self, lower, widths, places) -> np.ndarray:
        """Returns upper bounds of distances.

        Args:
            lower: Lower bounds of some distances, of any shape.
            widths: The width of the query of each.
            places: Position of the vector of each.
        """
        lower = lower.astype("float64")
        if self._metric == "manhattan":
            return lower * (1 + 4 * self._error)
        return lower + widths + self._widths[places]
