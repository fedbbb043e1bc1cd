"""Folders of pairs of images."""

import collections
import dataclasses
from pathlib import Path

import numpy as np

from kerasim import _artifacts, _checks
from kerasim._folders import ImageFolder, image_folder
from kerasim.data._candidates import read_candidates
from kerasim.duplicates import find_near_duplicates
from kerasim.errors import ArtifactError
from kerasim.images import Resize, check_resize, check_size, read_image


@dataclasses.dataclass(frozen=True, repr=False)
class PairFolder:
    """The pairs of a folder. Made by `pair_folder`.

    Attributes:
        left: `n` images, float32 in [0, 1], decoded on access.
        right: `right[i]` is paired with `left[i]`.
        groups: `(n,)` int64: equal for pairs that share an image or a near-duplicate of one.

    Example:
        >>> import os
        >>> import pandas as pd
        >>> pixels = np.random.default_rng(0).random((2, 2, 32, 32, 3))
        >>> for side, images in zip(("left", "right"), pixels):
        ...     os.makedirs(f"views/{side}", exist_ok=True)
        ...     for name, image in zip("ab", images):
        ...         keras.utils.save_img(f"views/{side}/{name}.png", image)
        >>> table = pd.DataFrame({"left": ["a", "b"], "right": ["a", "b"]})
        >>> table.to_csv("views/pairs.csv", index=False)
        >>> pair_folder("views")
        <PairFolder: 2 pairs of images of (32, 32, 3); 2 groups>
    """

    left: ImageFolder
    right: ImageFolder
    groups: np.ndarray

    def __repr__(self) -> str:
        groups = len(np.unique(self.groups))
        shape = self.left.shape[1:]
        return f"<PairFolder: {len(self.groups)} pairs of images of {shape}; {groups} groups>"


def pair_folder(
    path: Path | str,
    image_size: int | tuple[int, int] | None = None,
    resize: Resize = "squash",
) -> PairFolder:
    """Lists the pairs of a folder with `pairs.csv`, `left` and `right`.

    `pairs.csv` has the columns left and right: names of files in those folders, without suffix.
    Pairs that share an image or a near-duplicate of one (`find_near_duplicates`), on either side,
    are in the same group. Split by group (`sklearn.model_selection.GroupKFold`), so that no test
    image is used in training, and pass the groups to `PositivePairBatches` and `candidate_pools`,
    so that no image becomes the negative of its own copy.

    Args:
        path: The folder.
        image_size: `(height, width)` or one number; None for the size of the first left image.
        resize: How images of another aspect ratio get to this size: "squash", "crop" or "pad", as
            for `image_folder`.

    Returns:
        `PairFolder`, with `left`, `right` and `groups`.

    Raises:
        ArgumentError: If `image_size` or `resize` is not known.
        ArtifactError: If `pairs.csv` is missing, has other columns or no rows, or names an image
            that does not have exactly one file.
        ImageError: If an image cannot be decoded.

    Example:
        >>> import os
        >>> import pandas as pd
        >>> pixels = np.random.default_rng(0).random((2, 2, 32, 32, 3))
        >>> for side, images in zip(("left", "right"), pixels):
        ...     os.makedirs(f"pairs/{side}", exist_ok=True)
        ...     for name, image in zip("ab", images):
        ...         keras.utils.save_img(f"pairs/{side}/{name}.png", image)
        >>> table = pd.DataFrame({"left": ["a", "b", "b"], "right": ["a", "b", "a"]})
        >>> table.to_csv("pairs/pairs.csv", index=False)
        >>> pairs = pair_folder("pairs", image_size=16)
        >>> pairs.left.shape, pairs.groups.tolist()  # the third pair joins the first and second
        ((3, 16, 16, 3), [0, 0, 0])
    """
    root = _artifacts.check_path("path", path)
    pairs = read_candidates(root / "pairs.csv", ["left", "right"])
    if not len(pairs):
        raise ArtifactError(
            f"{_checks.shown(root / 'pairs.csv')} has no rows. Write one row for each pair."
        )
    check_resize(resize)
    size, sides = check_size(image_size), []
    for side in ("left", "right"):
        folder = image_folder(root / side, size or 1, labels=None)
        stems = collections.Counter(file.stem for file in folder.files)
        wrong = [name for name in pairs[side] if stems[name] != 1]
        if wrong:
            shown = ", ".join(f"{_checks.shown(name)} ({stems[name]} files)" for name in wrong[:5])
            images = _checks.counted(len(wrong), "image that does", "images that do")
            raise ArtifactError(
                f"pairs.csv names {images} not have exactly one file in "
                f"{_checks.shown(root / side)}: {shown}. Names have no suffix. Add or remove "
                "files, or remove these rows."
            )
        named = {file.stem: file for file in folder.files}
        files = [named[name] for name in pairs[side]]
        size = size or read_image(files[0]).shape[:2]
        sides.append(ImageFolder(files, None, [], folder.skipped, size, 3, resize))
    return PairFolder(*sides, groups=_join(*sides))


def _join(left, right):
    """Returns the group of each pair: pairs with equal or similar images are connected."""
    from scipy.sparse import coo_matrix, csgraph

    n, both = len(left), ImageFolder(left.files + right.files, None, [], [], left.shape[1:3], 3)
    copy, original = find_near_duplicates(both).T % n
    edges = coo_matrix((np.ones(len(copy)), (copy, original)), (n, n))
    return csgraph.connected_components(edges, directed=False)[1].astype("int64")
