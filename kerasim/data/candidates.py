"""Folders of pairs, and pools of candidates to pick the right one from."""

import collections
import io

import numpy as np
import pandas as pd

from kerasim import artifacts, checks
from kerasim.data.arrays import find_near_copies
from kerasim.data.folders import ImageFolder, PairFolder, image_folder
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError
from kerasim.images import check_size, read_image


def pair_folder(path, image_size=None) -> PairFolder:
    """Lists the pairs of a folder with `pairs.csv`, `left` and `right`.

    `pairs.csv` has the columns left and right: names of files in those folders, without suffix.
    Pairs that share an image or a near-copy of one (`find_near_copies`), on either side, are in the
    same group. Split by group (`sklearn.model_selection.GroupKFold`), so that no test image is used
    in training, and pass the groups to `LabelledPairBatches` and `candidate_pools`, so that no
    image becomes the negative of its own copy.

    Args:
        path: The folder.
        image_size: `(height, width)` or one number; None for the size of the first left image.

    Returns:
        `PairFolder`, with `left`, `right` and `groups`.

    Raises:
        ArtifactError: If `pairs.csv` is missing, has other columns or no rows, or names an image
            that does not have exactly one file.
        ImageError: If an image cannot be decoded.
    """
    root = artifacts.check_path("path", path)
    pairs = read_candidates(root / "pairs.csv", ["left", "right"])
    if not len(pairs):
        raise ArtifactError(
            f"{checks.shown(root / 'pairs.csv')} has no rows. Write one row for each pair."
        )
    size, sides = check_size(image_size), []
    for side in ("left", "right"):
        folder = image_folder(root / side, size or 1, labels=None)
        stems = collections.Counter(file.stem for file in folder.files)
        wrong = [name for name in pairs[side] if stems[name] != 1]
        if wrong:
            shown = ", ".join(f"{checks.shown(name)} ({stems[name]} files)" for name in wrong[:5])
            images = checks.counted(len(wrong), "image that does", "images that do")
            raise ArtifactError(
                f"pairs.csv names {images} not have exactly one file in "
                f"{checks.shown(root / side)}: {shown}. Names have no suffix. Add or remove files, "
                "or remove these rows."
            )
        named = {file.stem: file for file in folder.files}
        files = [named[name] for name in pairs[side]]
        size = size or read_image(files[0]).shape[:2]
        sides.append(ImageFolder(files, None, [], folder.skipped, size, 3))
    return PairFolder(*sides, groups=_join(*sides))


def _join(left, right):
    """Returns one number for all pairs that near-copies join, however many lie between them."""
    from scipy.sparse import coo_matrix, csgraph

    n, both = len(left), ImageFolder(left.files + right.files, None, [], [], left.shape[1:3], 3)
    copy, original = find_near_copies(both).T % n
    edges = coo_matrix((np.ones(len(copy)), (copy, original)), (n, n))
    return csgraph.connected_components(edges, directed=False)[1].astype("int64")


def candidate_pools(n: int, k: int = 20, seed: int = 0, groups=None) -> np.ndarray:
    """Draws for each of `n` left images a pool of right ones: its own and `k - 1` distractors.

    Args:
        n: Number of pairs.
        k: Size of each pool, 2 or more.
        seed: The same seed draws the same pools.
        groups: `(n,)` integers: a distractor is from another group than the pair. None: any other
            pair.

    Returns:
        `(n, k)` int64 positions; row `i` holds `i` and its distractors, in random order.

    Raises:
        ArgumentError: If there are fewer than `k - 1` possible distractors.
    """
    n, k = checks.integer("n", n), checks.integer("k", k, 2)
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    groups = np.arange(n) if groups is None else checks.labels("groups", groups, n, "pairs")
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


def read_candidates(path, columns=None) -> pd.DataFrame:
    """Reads a table of candidates: the name of a left image, then those of the right ones.

    Args:
        path: CSV with the columns left, c0, c1 and so on.
        columns: Others that it must have, such as ["left", "right"].

    Returns:
        The names, as strings: a row for each left image.

    Raises:
        ArtifactError: If the file is missing, or its columns are others.
    """
    file = artifacts.check_file(path)
    try:
        content = io.BytesIO(file.read_bytes())
        # Without a header, or pandas would take the first of too many columns for an index.
        rows = pd.read_csv(content, header=None, dtype=str, keep_default_na=False)
    except ValueError as error:  # no columns, rows too long, bytes that are no text
        raise ArtifactError(f"{checks.shown(file)} is not a valid CSV file: {error}.") from error
    table = pd.DataFrame(rows.to_numpy()[1:], columns=rows.iloc[0].to_list())
    empty = np.flatnonzero((table.isna() | (table == "")).any(axis=1))
    if len(empty):
        rows = checks.counted(len(empty), "row", "rows")
        where = f"{rows}, the first of them row {empty[0] + 1} after the header"
        raise ArtifactError(
            f"{checks.shown(file)} has empty cells in {where}: fill in or remove them."
        )
    wanted = columns or ["left", *(f"c{n}" for n in range(max(1, table.shape[1] - 1)))]
    if list(table.columns) != wanted:
        shown = ", ".join(map(checks.shown, table.columns[:5]))
        named = ", ".join(wanted[:5]) + (", ..." if len(wanted) > 5 else "")
        what = f"{checks.shown(file)} has the columns {shown}"
        raise ArtifactError(f"{what}; expected {named}. Correct its header.")
    return table


def write_scores(path, candidates: pd.DataFrame, scores) -> None:
    """Writes the score of each candidate under the header that `candidates` was read with.

    Args:
        path: CSV to write: left, then a score in each of the columns c0, c1 and so on. Names are
            written exactly as they are; a warning says if a spreadsheet would run one as a formula.
        candidates: From `read_candidates`.
        scores: `(n, k)` finite numbers, greater for a more likely candidate.

    Raises:
        ArgumentError, ArgumentTypeError: If there is not one finite score for each candidate, or
            `candidates` is no such table.
        ArtifactError: If the file cannot be written.
    """
    if not isinstance(candidates, pd.DataFrame) or "left" not in candidates:
        came = f"Received {type(candidates).__name__}: pass the result of read_candidates."
        raise ArgumentTypeError(f"candidates must be a table with a column left. {came}")
    scores = checks.real("scores", scores).astype("float64")
    checks.shape("scores", scores, candidates.iloc[:, 1:].shape, "pass one for each candidate")
    checks.finite("scores", scores)
    _warn_of_formulas(candidates["left"])
    table = pd.DataFrame(scores, pd.Index(candidates["left"]), candidates.columns[1:])
    artifacts.write_file(path, table.to_csv().encode())


# What a cell begins with that a spreadsheet runs; the wide ones do so in East Asian versions.
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")


def _warn_of_formulas(names) -> None:
    """Warns of names that a spreadsheet would run: a program that reads them needs them as is."""
    found = [str(name) for name in names if str(name).startswith(_FORMULA_STARTS)]
    if found:
        what = (
            f"{checks.counted(len(found), 'name', 'names')} would be run as a formula by a "
            f"spreadsheet: {checks.shown_names(found)}"
        )
        checks.warn(f"{what}. Do not open the file in a spreadsheet, or rename these images.")
