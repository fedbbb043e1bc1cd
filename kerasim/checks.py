"""Arguments, looked at before they are used: each check raises in the name of what it is told.

For the package's own use. A check takes the name of an argument and its value, and returns the
value in the form that is wanted or raises `ArgumentError`, or `ArgumentTypeError` if it is of the
wrong kind: so each function refuses the same things in the same words, and early, where the
message can still name the argument.
"""

import math
import numbers
import operator
import zipfile
from pathlib import Path

import numpy as np

from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError


def integer(name: str, value, low: int = 1, high: int | None = None) -> int:
    """Returns `value` as an `int` from `low` to `high` (None: no end), else raises for `name`.

    Raises:
        ArgumentError: If it is out of range.
        ArgumentTypeError: If it is no whole number; True and False are none.
    """
    wanted = f"pass a whole number{_range(low, high)}"
    _of_kind(name, value, numbers.Integral, "an integer", wanted)
    if value < low or (high is not None and value > high):
        raise ArgumentError(f"{name}={value} is out of range: {wanted}.")
    return operator.index(value)


def number(name: str, value, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns `value` as a finite `float` from `low` to `high`, else raises for `name`.

    Raises:
        ArgumentError: If it is out of range, NaN or infinite.
        ArgumentTypeError: If it is no number; True and False are none.
    """
    wanted = f"pass a number{_range(low, high)}"
    _of_kind(name, value, numbers.Real, "a number", wanted)
    try:
        found = float(value)
    except OverflowError:  # an integer of more than 308 digits
        found = math.inf
    if not (math.isfinite(found) and low <= found <= high):
        raise ArgumentError(f"{name}={value} is out of range: {wanted}.")
    return found


def flag(name: str, value) -> bool:
    """Returns `value` as a `bool`, else raises for `name`.

    Raises:
        ArgumentTypeError: If it is neither True nor False: "no" or 0.5 would be taken for true.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentTypeError(f"{name} must be a flag. Received {value!r}: pass True or False.")
    return bool(value)


def choice(name: str, value, choices) -> None:
    """Raises an `ArgumentError` in the name of `name` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(
            f"{name}={value!r} is not known: pass one of {', '.join(map(repr, choices))}."
        )


def _range(low, high) -> str:
    if high in (None, math.inf):
        return "" if low == -math.inf else f", {low} or more"
    return f" from {low} to {high}"


def _of_kind(name: str, value, kind: type, what: str, wanted: str) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, kind):
        raise ArgumentTypeError(
            f"{name} must be {what}. Received {value!r} of type {type(value).__name__}: {wanted}."
        )


def array(name: str, x, mend: str = "pass rows of one length") -> np.ndarray:
    """Returns `x` as an array, else raises an `ArgumentError` for `name` that ends on `mend`."""
    try:
        return np.asarray(x)
    except ValueError as error:  # a list of several lengths
        raise ArgumentError(f"{name} cannot be made one array ({error}): {mend}.") from error


def real(name: str, x, kinds: str = "fiu") -> np.ndarray:
    """Returns `x` as an array of real numbers, else raises in the name of `name`.

    Args:
        name: Argument that the message names.
        x: What came.
        kinds: Kinds of NumPy dtype that may be; "b" lets flags in.

    Raises:
        ArgumentTypeError: If it holds something else.
    """
    x = array(name, x)
    if x.dtype.kind not in kinds:
        raise ArgumentTypeError(
            f"{name} must hold real numbers. Received dtype {x.dtype}: pass floats or integers."
        )
    return x


def listed(name: str, values) -> list:
    """Returns `values` as a list; raises ArgumentTypeError in the name of `name` if it is none."""
    if isinstance(values, (str, bytes)) or not np.iterable(values):
        raise ArgumentTypeError(
            f"{name} must be a list or tuple. Received {type(values).__name__}: pass one, such as "
            f"[{values!r}]."
        )
    return list(values)


def like(name: str, value, attribute: str, what: str) -> None:
    """Raises ArgumentTypeError by `name` unless `value` has the `attribute` that `what` has."""
    if not hasattr(value, attribute):
        raise ArgumentTypeError(
            f"{name} must be {what}. Received {type(value).__name__}: pass one in its place."
        )


def each(name: str, values, n: int, of: str, rank: int | None = None) -> np.ndarray:
    """Returns `values` as an array of `n` rows, else raises in the name of `name`.

    Args:
        name: Argument that the message names.
        values: What came.
        n: How many there must be.
        of: What there are `n` of, such as "images".
        rank: Required number of axes; None for any.

    Raises:
        ArgumentError: If there are more or fewer, or axes.
    """
    values = array(name, values)
    if values.shape[:1] != (n,) or rank not in (None, values.ndim):
        wanted = f"({n},)" if rank == 1 else f"({n}, ...)"
        raise ArgumentError(
            f"{name} has shape {values.shape}, there are {n} {of}: pass one for each, {wanted}."
        )
    return values


def vectors(name: str, x, width: int | None = None, rows: int = 0, metric="") -> np.ndarray:
    """Returns `x` as a finite real array `(n, dim)`, else raises in the name of `name`.

    Args:
        name: Argument that the message names.
        x: What came.
        width: Required `dim`.
        rows: Least `n`.
        metric: Under "cosine" a row of zeros is refused, too: it has no direction.

    Raises:
        ArgumentError: If the shape is another, or a row holds NaN, infinity or such zeros.
        ArgumentTypeError: If it does not hold real numbers.
    """
    x = real(name, x)
    if x.ndim != 2 or x.shape[1] == 0 or width not in (None, x.shape[1]) or len(x) < rows:
        raise ArgumentError(
            f"{name} must be an array (n, {width or 'dim'}) of {rows} rows or more. Received shape "
            f"{x.shape}: pass one row per image, embedded by the same model."
        )
    finite(name, x)
    if metric == "cosine":
        bad_rows(name, ~x.any(axis=1), "only zeros, which have no direction for cosine,")
    return x


def finite(name: str, x: np.ndarray) -> None:
    """Raises an `ArgumentError` for `name` if a row of floats `x` holds NaN or infinity."""
    if x.dtype.kind == "f":
        bad_rows(name, ~np.isfinite(x).all(axis=tuple(range(1, x.ndim))), "NaN or infinity")


def bad_rows(name: str, bad, what: str) -> None:
    """Raises an `ArgumentError` for `name` if a row is marked `bad`, for holding `what`."""
    rows = np.flatnonzero(bad)
    if len(rows):
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        raise ArgumentError(
            f"{name} holds {what} in {len(rows)} of {len(bad)} rows: {shown}. Remove or mend those "
            "rows."
        )


def archive(path: Path) -> None:
    """Raises ArtifactError if the zip at `path` claims over 256 MB and 100 times its own size."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as members:
        claimed = sum(member.file_size for member in members.infolist())
    if claimed > max(256e6, 100 * size):
        raise ArtifactError(
            f"{path} of {size} bytes claims to hold {claimed} bytes: refused as a decompression "
            "bomb. Save it again without compression if you trust it."
        )
