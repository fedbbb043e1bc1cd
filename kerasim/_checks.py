"""Checks of arguments, for internal use.

A check takes the name of an argument and its value. It returns the value in the expected form, or
raises an `ArgumentError`, or an `ArgumentTypeError` if the type is wrong. So all functions refuse
the same values with the same messages, before they are used, and the messages name the argument.
"""

import contextlib
import math
import numbers
import operator
import os
import re
import reprlib
import stat
import sys
import threading
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError

# An archive may claim to hold this much, or this many times its own size.
_ARCHIVE_BYTES = 256e6
_ARCHIVE_EXPANSION = 100

# Arrays that may be larger than memory (`numpy.memmap`) are read in blocks of this size.
_BLOCK_BYTES = 2**24

_LARGEST_COUNT = 2**63 - 1

# Beyond it two different integers may be one float64.
_LARGEST_EXACT = 2**53


def integer(name: str, value, low: int = 1, high: int | None = None) -> int:
    """Returns `value` as an `int` from `low` to `high` (None: no end), or raises for `name`.

    Raises:
        ArgumentError: If it is out of range.
        ArgumentTypeError: If it is not an integer; True and False are refused.
    """
    wanted = f"pass a whole number{_range(low, high)}"
    _of_kind(name, value, numbers.Integral, "an integer", wanted)
    if low > 0 and value > _LARGEST_COUNT:  # a count, which must fit into an index
        high, wanted = _LARGEST_COUNT, f"pass a whole number of 64 bits{_range(low, high)}"
    if value < low or (high is not None and value > high):
        raise ArgumentError(f"{name}={value} is out of range: {wanted}.")
    return operator.index(value)


def counted(count: int, one: str, many: str) -> str:
    """Returns `count` with what is counted: "1 file is" with `one`, "2 files are" with `many`."""
    return f"{count} {one if count == 1 else many}"


def clipped(name: str, value: int, most: int, one: str, many: str) -> int:
    """Returns `value`, or `most` with a warning if it is larger.

    Args:
        name: Argument that the warning names.
        value: Number that was asked for.
        most: Largest number that is possible.
        one, many: The counted thing in singular and plural, such as "item of the map".
    """
    if value > most:
        warn(f"{name}={value} is more than the {counted(most, one, many)}: {most} is used.")
    return min(value, most)


def number(name: str, value, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns `value` as a finite `float` from `low` to `high`, else raises an error for `name`.

    Raises:
        ArgumentError: If it is out of range, NaN or infinite.
        ArgumentTypeError: If it is not a number; True and False are refused.
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


def boolean(name: str, value) -> bool:
    """Returns `value` as a `bool`, else raises an error for `name`.

    Raises:
        ArgumentTypeError: If it is neither True nor False: "no" or 0.5 would be taken for true.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentTypeError(f"{name} must be a bool. Received {value!r}: pass True or False.")
    return bool(value)


def one_of(name: str, value, choices) -> None:
    """Raises an `ArgumentError` for `name` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        shown = ", ".join(map(repr, choices))
        raise ArgumentError(f"{name}={value!r} is not known: pass one of {shown}.")


def _range(low, high) -> str:
    if high in (None, math.inf):
        return "" if low == -math.inf else f", {low} or more"
    return f" from {low} to {high}"


def _of_kind(name: str, value, kind: type, what: str, wanted: str) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, kind):
        raise ArgumentTypeError(
            f"{name} must be {what}. Received {value!r} of type {type(value).__name__}: {wanted}."
        )


def array(name: str, x, hint: str = "pass rows of one length", masked: bool = False) -> np.ndarray:
    """Returns `x` as an array, else raises an error for `name`.

    Args:
        name: Argument that a message names.
        x: Anything.
        hint: End of the message about rows of several lengths.
        masked: Whether masked entries are accepted. The values below a mask mean nothing.

    Raises:
        ArgumentError: If it is a list of rows of several lengths, or has masked entries.
        ArgumentTypeError: If it is of another library and cannot be converted.
    """
    if not masked and np.ma.is_masked(x):
        raise ArgumentError(
            f"{name} has {np.ma.count_masked(x)} masked entries. Leave these rows out, "
            f"or fill them: {name}.filled(value)."
        )
    try:
        return np.asarray(x)
    except ValueError as error:  # a list of several lengths
        raise ArgumentError(
            f"{name} cannot be converted to one array ({error}): {hint}."
        ) from error
    except Exception as error:  # of another library, such as for a tensor on another device
        raise ArgumentTypeError(
            f"{name}, a {type(x).__name__}, cannot be converted to an array ({error}): "
            "convert it to a NumPy array."
        ) from error


def as_tuple(values) -> tuple | None:
    """Returns `values` as a tuple; None if they cannot be iterated, such as a symbolic tensor."""
    try:
        return tuple(values)
    except Exception:  # also of other libraries
        return None


def instance(name: str, value, kinds, hint: str) -> None:
    """Raises an `ArgumentTypeError` for `name`, with its `hint`, unless `value` is of `kinds`."""
    if not isinstance(value, kinds):
        shown = reprlib.repr(value)  # an image's bytes or a list of paths may be long
        raise ArgumentTypeError(f"{name} is {shown}, of type {type(value).__name__}: {hint}.")


def shown(name) -> str:
    """Returns `name`, a file name, path or label, in quotes for a message.

    Letters of every script stay as they are. What could break the line, hide in it or reorder it
    is escaped as `repr` does: control characters, surrogates (bytes that are not UTF-8), line
    separators, and marks that change the direction of the text.
    """
    text = os.fsdecode(name) if isinstance(name, (bytes, os.PathLike)) else str(name)
    quote = '"' if "'" in text and '"' not in text else "'"
    escaped = text.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return quote + "".join(map(_visible, escaped)) + quote


def shown_names(names, count: int = 5) -> str:
    """Returns the first `count` of `names` for a message, and ", ..." if there are more."""
    names = list(names)
    return ", ".join(map(shown, names[:count])) + (", ..." if len(names) > count else "")


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    if hidden or character in _DIRECTION_MARKS:
        return character.encode("unicode_escape", "surrogatepass").decode()
    return character


# Marks that are not seen but turn the text around them: a name could end on a false suffix.
_DIRECTION_MARKS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e")
_DIRECTION_MARKS |= set("\u2066\u2067\u2068\u2069")


# Frames between the user's line and a warning: a callback is called by Keras, not by the user.
_INNER_PACKAGES = {"kerasim", "keras", "tensorflow", "jax", "sklearn"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns in the name of the line that called kerasim, however deep the call is inside.

    Args:
        message: Text of the warning.
        category: Class of the warning.
    """
    frame = sys._getframe(1)
    while frame.f_back and _module_of(frame).partition(".")[0] in _INNER_PACKAGES:
        frame = frame.f_back
    registry, module = frame.f_globals.setdefault("__warningregistry__", {}), _module_of(frame)
    file, line = frame.f_code.co_filename, frame.f_lineno
    warnings.warn_explicit(message, category, file, line, module, registry)


# What Keras and its backends put around the reason of an error.
_AROUND_REASON = re.compile(
    r"\x1b\[\d*m|\{\{function_node [^}]*\}\}|\[Op:\w+\].*|^Exception encountered.*", re.MULTILINE
)


def reason_of(error: BaseException) -> str:
    """Returns the reason of an error of Keras or its backend, one line without what is around."""
    lines = (line.strip().rstrip(".") for line in _AROUND_REASON.sub("", str(error)).splitlines())
    return next(filter(None, lines), type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of Python, Keras or a backend says that memory ran out."""
    said = f"{type(error).__name__} {error}".lower().replace("_", "")
    return any(sign in said for sign in ("memoryerror", "resourceexhausted", "out of memory"))


@contextlib.contextmanager
def no_warnings(modules: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Ignores warnings that this thread raises in the block; those of other threads are shown.

    `warnings.catch_warnings` would set the filters of the whole process, and at its end take back
    those that another thread has set meanwhile. This adds one filter that knows its thread, and
    removes that one.

    Args:
        modules: Only warnings of modules whose name starts with this.
        category: Only warnings of this class.
    """
    item: Any = ("ignore", None, category, _ThreadModules(modules), 0)
    filters: Any = warnings.filters
    filters.insert(0, item)
    try:
        yield
    finally:
        for held in (filters, warnings.filters):  # another list, if the block set one
            with contextlib.suppress(ValueError):
                held.remove(item)


class _ThreadModules:
    """Matches, in place of a pattern for modules, the modules of the thread that made it."""

    def __init__(self, start: str):
        self._start, self._thread = start, threading.get_ident()

    def match(self, module: str) -> bool:
        return threading.get_ident() == self._thread and module.startswith(self._start)


def _module_of(frame) -> str:
    return frame.f_globals.get("__name__", "<unknown>")


def regular_file(path, error_class) -> None:
    """Raises an `error_class` that names `path` unless it is a regular file that can be opened."""
    name = shown(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):  # opening a FIFO would wait for ever
            open(path, "rb").close()
            return
    except FileNotFoundError as error:
        raise error_class(f"There is no file {name}: check the path.") from error
    except OSError as error:
        raise error_class(
            f"Cannot open {name}: {error.strerror}. Check its permissions and those of its folder."
        ) from error
    what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise error_class(f"{name} is {what}: pass the path of a file.")


def shape(name: str, x, wanted, hint: str) -> None:
    """Raises an `ArgumentError` for `name`, with its `hint`, unless `x` is of the shape `wanted`.

    In `wanted` None is any length.
    """
    found = x.shape if hasattr(x, "shape") else array(name, x).shape
    pairs = zip(wanted, found, strict=False)
    if len(found) != len(wanted) or any(want not in (None, got) for want, got in pairs):
        shown = str(tuple(wanted)).replace("None", "any")
        raise ArgumentError(f"{name} has shape {found}, expected {shown}: {hint}.")


def indices(name: str, x: np.ndarray, count: int, hint: str) -> None:
    """Raises an `ArgumentError` for `name` unless `x` is `(count, any)`, of 0 to `count` - 1.

    `hint` is what to do about another shape or about other numbers than integers.
    """
    shape(name, x, (count, None), hint)
    if x.dtype.kind not in "iu":
        raise ArgumentError(f"{name} holds {x.dtype}, expected integers: {hint}.")
    outside = ((x < 0) | (x >= count)).any(axis=1)
    bad_rows(name, outside, f"a position outside 0 to {count - 1}")


def as_real_array(name: str, x, kinds: str = "fiu") -> np.ndarray:
    """Returns `x` as an array of real numbers, else raises an error for `name`.

    Args:
        name: Argument that the message names.
        x: The value of the argument.
        kinds: Kinds of NumPy dtype that are accepted; "b" is that of flags.

    Raises:
        ArgumentTypeError: If it holds something else.
    """
    x = array(name, x)
    if x.dtype.kind not in kinds:
        raise ArgumentTypeError(
            f"{name} must hold real numbers. Received dtype {x.dtype}: pass floats or integers."
        )
    return x


def as_list(name: str, values) -> list:
    """Returns `values` as a list, else raises an `ArgumentTypeError` for `name`."""
    found = as_tuple(values)
    if isinstance(values, (str, bytes)) or found is None:
        raise ArgumentTypeError(
            f"{name} must be a list or tuple. Received {type(values).__name__}: pass a "
            f"list, such as [{values!r}]."
        )
    return list(found)


def has_attribute(name: str, value, attribute: str, what: str) -> None:
    """Raises an `ArgumentTypeError` for `name` unless `value` has this `attribute` of `what`."""
    if not hasattr(value, attribute):
        raise ArgumentTypeError(
            f"{name} must be {what}. Received {type(value).__name__}: pass one instead."
        )


def same_length(name: str, values, n: int, unit: str, rank: int | None = None) -> np.ndarray:
    """Returns `values` as an array of `n` rows, else raises an error for `name`.

    Args:
        name: Argument that the message names.
        values: The value of the argument.
        n: How many there must be.
        unit: What is counted, such as "images".
        rank: Required number of axes; None for any.

    Raises:
        ArgumentError: If the number of rows or axes is another.
    """
    values = array(name, values)
    rest = [None] * ((rank or max(1, values.ndim)) - 1)
    shape(name, values, (n, *rest), f"pass one for each of the {n} {unit}")
    return values


def missing(values) -> np.ndarray:
    """Returns which of `values` are missing labels.

    Missing are None, NaN (also of `decimal`), NaT, `pandas.NA`, the empty string, and masked
    entries of a masked array: everything that pandas reads from an empty cell.

    Args:
        values: An array, or a list or tuple of any depth.

    Returns:
        Flags in the shape of `values`.
    """
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else False
    if isinstance(values, (list, tuple)):  # NumPy would turn a NaN among strings into "nan"
        values = np.array(values, dtype=object)
    values = np.asarray(values)
    if values.dtype.kind in "fcmM":
        return (values != values) | masked
    if values.dtype.kind in "US":
        return (values == values.dtype.type()) | masked
    if values.dtype == object:
        flags = np.array([_is_missing(value) for value in values.ravel()], dtype=bool)
        return flags.reshape(values.shape) | masked
    return np.zeros(values.shape, bool) | masked


def _is_missing(value) -> bool:
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, (str, bytes)):
        return not value
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas.NA is neither true nor false; an array is no label
        return type(value).__name__ == "NAType"


def labels(name: str, values, n: int | None, unit: str) -> np.ndarray:
    """Returns class labels as an array of integers, booleans or strings, or raises for `name`.

    This is for functions whose result depends on every label: a missing one is refused. See
    `optional_labels` for functions that only store or show labels.

    Args:
        name: Argument that the message names.
        values: The value of the argument: integers, booleans or strings, as an array, list or
            pandas Series. Floats are accepted if all are whole numbers, 2**53 at most, as
            pandas stores integers beside missing values.
        n: How many there must be; None for any number and any shape.
        unit: What there are `n` of, such as "images".

    Raises:
        ArgumentError: If there are more or fewer, or one is missing (see `missing`).
        ArgumentTypeError: If they are neither whole numbers nor strings.
    """
    found, absent = optional_labels(name, values, n, unit)
    rows = np.atleast_1d(absent)
    rows = rows.any(axis=tuple(range(1, rows.ndim)))
    if rows.any():
        raise ArgumentError(
            f'{name} holds no label (None, NaN, pandas.NA or "") in {_count_of(rows)}. '
            "Label these rows, or leave them out."
        )
    return found


def optional_labels(name: str, values, n: int | None, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns class labels as `labels` does, and which of them are missing.

    Args:
        name: Argument that the message names.
        values: As for `labels`.
        n: How many there must be; None for any number and any shape.
        unit: What there are `n` of.

    Returns:
        `(labels, absent)`: where `absent` is True the label is 0, False or "".

    Raises:
        ArgumentError: If there are more or fewer.
        ArgumentTypeError: If they are neither whole numbers nor strings.
    """
    plain, absent = array(name, values, masked=True), missing(values)
    if n is not None:
        same_length(name, plain, n, unit, 1)
    came_as_list = isinstance(values, (list, tuple))
    if plain.dtype.kind in "iub" or (plain.dtype.kind in "US" and not came_as_list):
        return np.where(absent, plain.dtype.type(), plain), absent
    elements = np.array(values, dtype=object) if came_as_list else plain.astype(object)
    present = elements[~absent]
    kinds = {_kind_of_label(value) for value in present}
    if len(kinds) > 1 or "" in kinds:
        types = ", ".join(sorted({type(value).__name__ for value in present}))
        fix = "convert all of them to integers or all to strings"
        raise ArgumentTypeError(
            f"{name} must be integers or strings, not {types} (dtype {plain.dtype}): {fix}."
        )
    empty, dtype = _LABEL_KINDS[kinds.pop() if kinds else "string"]
    elements[absent] = empty
    try:
        return elements.astype(dtype), absent
    except OverflowError as error:
        raise ArgumentError(
            f"{name} holds integers beyond 64 bits: number the classes from 0."
        ) from error


_LABEL_KINDS = {  # what stands for a missing label, and the dtype of the array
    "integer": (0, "int64"),
    "flag": (False, "bool"),
    "string": ("", "str"),
    "bytes": (b"", "bytes"),
}


def _kind_of_label(value) -> str:
    """Returns a key of `_LABEL_KINDS`, or "" for what is no label."""
    if isinstance(value, (bool, np.bool_)):
        return "flag"
    if isinstance(value, numbers.Integral):
        return "integer"
    if isinstance(value, (float, np.floating)) and abs(value) <= _LARGEST_EXACT:
        return "integer" if value == int(value) else ""
    if isinstance(value, str):
        return "string"
    return "bytes" if isinstance(value, bytes) else ""


def group_codes(
    names: tuple[str, str], groups: tuple[Any, Any], counts: tuple[int, int | None]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the groups of queries and of a gallery as integers, equal where the groups are equal.

    Args:
        names: Arguments that a message names, of the queries and of the gallery.
        groups: The values of these arguments: integers or strings, or None.
        counts: Number of queries and of vectors in the gallery; None if the queries are the
            gallery.

    Returns:
        Two int64 arrays, the same array if the queries are the gallery; None without groups.

    Raises:
        ArgumentError: If only one of two is given, or one that has no gallery, or the number of
            groups or a group is wrong (see `labels`).
        ArgumentTypeError: If one holds integers and the other strings.
    """
    queries, gallery = groups
    alone = counts[1] is None
    if alone and gallery is not None:
        raise ArgumentError(f"{names[1]} needs a gallery: pass only {names[0]}.")
    if queries is None and gallery is None:
        return None
    if queries is None or (gallery is None and not alone):
        given, lacking = names[::-1] if queries is None else names
        raise ArgumentError(f"{given} is given without {lacking}: pass both or neither.")
    queries = labels(names[0], queries, counts[0], "queries")
    if alone:
        codes = np.unique(queries, return_inverse=True)[1].astype("int64")
        return codes, codes
    gallery = labels(names[1], gallery, counts[1], "vectors of the gallery")
    kinds = {"i" if x.dtype.kind in "biu" else x.dtype.kind for x in (queries, gallery)}
    # Where 1 is compared with "1" no group is equal, and nothing would be left out.
    if len(kinds) > 1:
        raise ArgumentTypeError(
            f"{names[0]} ({queries.dtype}) and {names[1]} ({gallery.dtype}) cannot be compared: "
            "pass integers for both, or strings for both."
        )
    known, codes = np.unique(gallery, return_inverse=True)
    # Python compares integers exactly, also unsigned ones of 64 bits with signed ones.
    numbers_of = {group: code for code, group in enumerate(known.tolist())}
    asked, places = np.unique(queries, return_inverse=True)
    found = np.array([numbers_of.get(group, -1) for group in asked.tolist()], dtype="int64")
    return found[places], codes.astype("int64")


def vectors(name: str, x, width: int | None = None, rows: int = 0, metric="") -> np.ndarray:
    """Returns `x` as a finite real array `(n, dim)`, else raises an error for `name`.

    Args:
        name: Argument that the message names.
        x: The value of the argument.
        width: Required `dim`.
        rows: Least `n`.
        metric: Under "cosine" a row of zeros is refused, too: it has no direction.

    Returns:
        The array as it is; of numbers wider than float64, float64.

    Raises:
        ArgumentError: If the shape is another, a row holds NaN, infinity or such zeros, or numbers
            that float64, in which distances are computed, cannot hold.
        ArgumentTypeError: If it does not hold real numbers.
    """
    x = as_float64_or_narrower(name, as_real_array(name, x))
    # guard: width
    if x.ndim != 2 or x.shape[1] == 0 or width not in (None, x.shape[1]) or len(x) < rows:
        least = f" of {counted(rows, 'row', 'rows')} or more" if rows else ""
        raise ArgumentError(
            f"{name} must be an array (n, {width or 'dim'}){least}. Received shape {x.shape}: pass "
            "one row per image, embedded by the same model."
        )
    finite(name, x)
    # guard: zero-vectors
    if metric == "cosine":
        bad_rows(name, ~x.any(axis=1), "zero vectors, whose cosine distance is undefined,")
    return x


def as_float64_or_narrower(name: str, x: np.ndarray) -> np.ndarray:
    """Returns numbers `x`, those wider than float64 (`np.longdouble`) rounded to float64.

    Raises:
        ArgumentError: In the name of `name`, if they are too large for float64, or integers beyond
            2**53, of which float64 does not hold each.
    """
    if x.dtype.kind in "iu" and x.dtype.itemsize == 8 and x.size:
        largest = max(int(x.max()), -int(x.min()))
        if largest > 2**53:
            raise ArgumentError(
                f"{name} holds integers up to {largest}, which float64 cannot represent "
                "exactly. Subtract an offset, so that they are 2**53 at most."
            )
    if x.dtype.kind != "f" or x.dtype.itemsize <= 8:
        return x
    with np.errstate(over="ignore"):
        narrow = x.astype("float64")
    if (np.isinf(narrow) & np.isfinite(x)).any():
        raise ArgumentError(
            f"{name} holds numbers up to {np.abs(x).max():.3g}, too large for float64. "
            "Divide all of them by the same number."
        )
    return narrow


def finite(name: str, x: np.ndarray) -> None:
    """Raises an `ArgumentError` for `name` if a row of floats `x` holds NaN or infinity."""
    # guard: nan-in-vectors
    if x.dtype.kind == "f":
        bad_rows(name, _not_finite(x), "NaN or infinity")


def _not_finite(x: np.ndarray) -> np.ndarray:
    """Returns which rows hold NaN or infinity, computed block by block: `x` may be a file."""
    bad = np.zeros(len(x), bool)
    for rows in row_blocks(x):
        bad[rows] = ~np.isfinite(x[rows]).all(axis=tuple(range(1, x.ndim)))
    return bad


def row_blocks(x: np.ndarray) -> Iterator[slice]:
    """Yields slices that divide the rows of `x` into blocks of about 16 MB."""
    row_bytes = max(1, x.nbytes // max(1, len(x)))
    size = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def bad_rows(name: str, bad, what: str) -> None:
    """Raises an `ArgumentError` for `name` if a row is marked `bad`, for holding `what`."""
    if np.any(bad):
        raise ArgumentError(f"{name} holds {what} in {_count_of(bad)}. Remove or correct them.")


def _count_of(bad) -> str:
    """Returns how many rows are marked `bad`, and the positions of the first ones."""
    rows = np.flatnonzero(bad)
    positions = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return f"{len(rows)} of {len(bad)} rows: {positions}"


def no_zip_bomb(path: Path) -> None:
    """Raises an `ArtifactError` if the zip file at `path` would take far more memory than its size.

    Members must be stored or deflated: a reader takes the other methods a block at a time, of which
    each may be of any size. Those who read a member must not read on past its `file_size`.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as members:
        listed = members.infolist()
    names = [member.filename for member in listed]
    if len({*names}) < len(names):
        raise ArtifactError(f"{shown(path)} holds two files with the same name. Save it again.")
    for member in listed:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArtifactError(
                f"{shown(path)} holds {shown(member.filename[:80])} in compression method "
                f"{member.compress_type}, expected 0 (stored) or 8 (deflated). Save it again."
            )
    claimed = sum(member.file_size for member in listed)
    # guard: archive-size
    if claimed > max(_ARCHIVE_BYTES, _ARCHIVE_EXPANSION * size):
        raise ArtifactError(
            f"{shown(path)} of {size} bytes claims to hold {claimed} bytes: refused as "
            "a decompression bomb. Save it again without compression if you trust it."
        )
