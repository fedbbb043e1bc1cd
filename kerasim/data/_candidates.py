"""Pools of candidates, tables that list them, and tables of their scores."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kerasim import _artifacts, _checks
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError


def candidate_pools(
    n: int, k: int = 20, seed: int = 0, groups: ArrayLike | None = None
) -> np.ndarray:
    """Draws `k` candidates for each of `n` pairs: its right image and `k - 1` distractors.

    Args:
        n: Number of pairs.
        k: Size of each pool, 2 or more.
        seed: The same seed draws the same pools.
        groups: `(n,)` integers or strings: distractors are from other groups than the pair. None:
            from any other pair.

    Returns:
        `(n, k)` int64 positions; row `i` holds `i` and its distractors, in random order.

    Raises:
        ArgumentError: If there are fewer than `k - 1` possible distractors.

    Example:
        >>> pools = candidate_pools(4, k=3, groups=[0, 0, 1, 1])
        >>> np.sort(pools, axis=1).tolist()  # pairs 0 and 1 are never each other's distractors
        [[0, 2, 3], [1, 2, 3], [0, 1, 2], [0, 1, 3]]
    """
    n, k = _checks.integer("n", n), _checks.integer("k", k, 2)
    rng = np.random.default_rng(_checks.integer("seed", seed, 0))
    groups = np.arange(n) if groups is None else _checks.labels("groups", groups, n, "pairs")
    pools = np.empty((n, k), dtype="int64")
    for i in range(n):
        distractors = np.flatnonzero(groups != groups[i])
        if len(distractors) < k - 1:
            raise ArgumentError(
                f"k={k} needs {k - 1} distractors, but only {len(distractors)} pairs are in other "
                f"groups than pair {i}: pass a smaller k, or more pairs of other groups."
            )
        pools[i] = rng.permutation([i, *rng.choice(distractors, k - 1, replace=False)])
    return pools


def read_candidates(path: Path | str, columns: list[str] | None = None) -> pd.DataFrame:
    """Reads a table of candidates: the name of a left image, then the names of right images.

    Args:
        path: CSV with the columns left, c0, c1 and so on.
        columns: The columns that the file must have instead, such as ["left", "right"].

    Returns:
        The names, as strings: a row for each left image.

    Raises:
        ArtifactError: If the file is missing, has other columns, or has empty cells.

    Example:
        >>> import pandas as pd
        >>> names = pd.DataFrame({"left": ["cat"], "c0": ["dog"], "c1": ["lion"]})
        >>> names.to_csv("candidates.csv", index=False)
        >>> read_candidates("candidates.csv").iloc[0].tolist()
        ['cat', 'dog', 'lion']
    """
    file = _artifacts.check_file(path)
    try:
        content = io.BytesIO(file.read_bytes())
        # Without a header, or pandas would take the first of too many columns for an index.
        rows = pd.read_csv(content, header=None, dtype=str, keep_default_na=False)
    except ValueError as error:  # no columns, rows too long, bytes that are no text
        raise ArtifactError(f"{_checks.shown(file)} is not a valid CSV file: {error}.") from error
    table = pd.DataFrame(rows.to_numpy()[1:], columns=rows.iloc[0].to_list())
    empty = np.flatnonzero((table.isna() | (table == "")).any(axis=1))
    if len(empty):
        rows = _checks.counted(len(empty), "row", "rows")
        raise ArtifactError(
            f"{_checks.shown(file)} has empty cells in {rows}, the first of them row "
            f"{empty[0] + 1} after the header: fill in or remove them."
        )
    wanted = columns or ["left", *(f"c{n}" for n in range(max(1, table.shape[1] - 1)))]
    if list(table.columns) != wanted:
        shown = ", ".join(map(_checks.shown, table.columns[:5]))
        named = ", ".join(wanted[:5]) + (", ..." if len(wanted) > 5 else "")
        raise ArtifactError(
            f"{_checks.shown(file)} has the columns {shown}; expected {named}. Correct its header."
        )
    return table


def write_scores(path: Path | str, candidates: pd.DataFrame, scores: ArrayLike) -> None:
    """Writes the score of each candidate under the header that `candidates` was read with.

    Args:
        path: CSV to write: left, then a score in each of the columns c0, c1 and so on. Names are
            written exactly as they are; a warning says if a spreadsheet would run one as a formula.
        candidates: From `read_candidates`.
        scores: `(n, k)` finite numbers, greater for a more likely candidate.

    Raises:
        ArgumentError, ArgumentTypeError: If there is not one finite score for each candidate, or
            `candidates` is not such a table.
        ArtifactError: If the file cannot be written.

    Example:
        >>> import pandas as pd
        >>> candidates = pd.DataFrame({"left": ["cat"], "c0": ["dog"], "c1": ["lion"]})
        >>> write_scores("scores.csv", candidates, [[0.2, 0.9]])
        >>> pd.read_csv("scores.csv").to_dict("records")
        [{'left': 'cat', 'c0': 0.2, 'c1': 0.9}]
    """
    if not isinstance(candidates, pd.DataFrame) or "left" not in candidates:
        raise ArgumentTypeError(
            "candidates must be a table with a column left. Received "
            f"{type(candidates).__name__}: pass the result of read_candidates."
        )
    scores = _checks.as_real_array("scores", scores).astype("float64")
    _checks.shape("scores", scores, candidates.iloc[:, 1:].shape, "pass one for each candidate")
    _checks.finite("scores", scores)
    _warn_of_formulas(candidates["left"])
    table = pd.DataFrame(scores, pd.Index(candidates["left"]), candidates.columns[1:])
    _artifacts.write_file(path, table.to_csv().encode())


# First characters of a cell that a spreadsheet runs as a formula; East Asian versions also take
# the full-width ones.
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")


def _warn_of_formulas(names) -> None:
    """Warns of names that a spreadsheet would run as a formula.

    They are not escaped, because programs that read the file need the exact names.
    """
    found = [str(name) for name in names if str(name).startswith(_FORMULA_STARTS)]
    if found:
        _checks.warn(
            f"{_checks.counted(len(found), 'name', 'names')} would be run as a formula "
            f"by a spreadsheet: {_checks.shown_names(found)}. Do not open the file in a "
            "spreadsheet, or rename these images."
        )
