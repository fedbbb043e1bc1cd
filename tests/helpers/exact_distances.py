"""Distances in integer arithmetic, without rounding, as a reference for float64 results."""

import math
from fractions import Fraction

import numpy as np


def whole(x):
    """Returns the numbers of a float array as Python integers, and their common power of two."""
    x = np.asarray(x, dtype="float64")
    mantissas, exponents = np.frexp(x)
    shared = int(exponents[x != 0].min(initial=0)) - 53
    whole = [
        int(math.ldexp(m, 53)) << (int(e) - 53 - shared) if m else 0
        for m, e in zip(mantissas.ravel().tolist(), exponents.ravel().tolist(), strict=True)
    ]
    return np.array(whole, dtype=object).reshape(x.shape), shared


def rounded(numerator, denominator, exponent=0):
    """Returns `numerator / denominator * 2**exponent` as a float, or infinity."""
    fraction = Fraction(numerator, denominator) * Fraction(2) ** exponent
    try:
        return fraction.numerator / fraction.denominator
    except OverflowError:
        return math.inf


def root(number, bits=80):
    """Returns the integer nearest below `sqrt(number) * 2**bits`."""
    return math.isqrt(number << (2 * bits))


def exact_distances(left, right, metric):
    """Returns the distance of each row of `left` and each of `right`, `(n, m)`, to the last bit."""
    both, exponent = whole(np.concatenate([left, right]))
    left, right = both[: len(left)], both[len(left) :]
    if metric == "cosine":
        return cosine_distances(left, right)
    distances = np.empty((len(left), len(right)))
    for n, row in enumerate(left):
        gaps = right - row
        if metric == "manhattan":
            sums = np.abs(gaps).sum(axis=1)
            distances[n] = [rounded(each, 1, exponent) for each in sums]
        else:
            sums = (gaps * gaps).sum(axis=1)
            distances[n] = [rounded(root(each), 1 << 80, exponent) for each in sums]
    return distances


def cosine_distances(left, right):
    distances = np.empty((len(left), len(right)))
    left_squares, right_squares = (left * left).sum(axis=1), (right * right).sum(axis=1)
    for n, row in enumerate(left):
        for k, product in enumerate((right * row).sum(axis=1)):
            # Shifted until 1 - cosine keeps its digits however small it is.
            norms = root(left_squares[n] * right_squares[k], 400)
            distances[n, k] = rounded(norms - (product << 400), norms)
    return distances
