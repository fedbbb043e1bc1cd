"""Folders of images, decoded when they are asked for."""

import dataclasses
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kerasim import artifacts, checks
from kerasim.errors import ArgumentError, ArtifactError, ImageError
from kerasim.images import SUFFIXES, as_float, check_channels, check_size, decode

_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}


class ImageFolder:
    """The images of a folder, decoded when they are asked for. Made by `image_folder`.

    Attributes:
        files: Paths, in the order of the images.
        labels: `(n,)` int64, or None if the images lie in no subfolders.
        class_names: A name for each label.
        skipped: `(path, reason)` of each file that is no usable image.
        shape: `(n, height, width, channels)`.
    """

    dtype = np.dtype("float32")

    def __init__(self, files, labels, class_names, skipped, size, channels):
        self.files, self.labels, self.class_names = files, labels, class_names
        self.skipped, self.shape = skipped, (len(files), *size, channels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows) -> np.ndarray:
        """Decodes the images at `rows`, a position or several (a slice or an array).

        Returns:
            float32 in [0, 1]: `(height, width, channels)`, of several `(n, height, width,
            channels)`.

        Raises:
            ImageError: If a file cannot be decoded.
        """
        _, *size, channels = self.shape

        def pixels(row):
            return decode(self.files[row], size, channels)[0]

        if isinstance(rows, (int, np.integer)):
            return as_float(pixels(rows))
        rows = np.arange(len(self))[rows]
        if not len(rows):
            return np.empty((0, *self.shape[1:]), dtype="float32")
        return as_float(np.stack(in_threads(pixels, rows)))

    def take(self, rows) -> "ImageFolder":
        """Returns the images at `rows`, positions, as a folder of their own, not yet decoded."""
        rows = np.arange(len(self))[rows]
        files = [self.files[row] for row in rows]
        labels = None if self.labels is None else self.labels[rows]
        return ImageFolder(files, labels, self.class_names, [], self.shape[1:3], self.shape[3])


@dataclasses.dataclass(frozen=True)
class PairFolder:
    """The pairs of a folder. Made by `pair_folder`.

    Attributes:
        left: `n` images, float32 in [0, 1], decoded as they are asked for.
        right: `right[i]` is paired with `left[i]`.
        groups: `(n,)` int64: the same for pairs that near-copies join.
    """

    left: ImageFolder
    right: ImageFolder
    groups: np.ndarray


def image_folder(path, image_size, channels: int = 3, on_error: str = "raise", check: bool = True):
    """Lists the images of a folder, or of its subfolders, one for each class.

    Hidden files and the droppings of file managers are left out in silence; other files that
    are no images are listed in `.skipped` with one warning. Links are followed, each real
    file is taken once, and the order does not depend on the locale. Of an animation the first
    frame is taken.

    Args:
        path: Folder of images, or of one subfolder for each class, searched to the bottom.
        image_size: `(height, width)` or one number, to which each image is resized.
        channels: 3 for RGB, 1 for grey.
        on_error: What to do with images that cannot be decoded: "raise" one error that lists
            them, or "skip" them, with a warning, into `.skipped`.
        check: Decode every image once now, so that a damaged one is found before training, and
            warn once of animations. False finds a damaged one only when it is asked for.

    Returns:
        `ImageFolder`: float32 images in [0, 1] by position, slice or array of positions.

    Raises:
        ImageError: If `on_error="raise"` and an image cannot be decoded.
        ArtifactError: If the folder is missing or holds no image.
        ArgumentError: If `image_size` is None or no size, or another argument is not known.
    """
    checks.choice("on_error", on_error, ("raise", "skip"))
    checks.flag("check", check)
    channels, size = check_channels(channels), check_size(image_size)
    if size is None:
        raise ArgumentError("image_size=None: pass (height, width), one size for all images.")
    root = artifacts.check_path("path", path)
    if not root.is_dir():
        raise ArtifactError(f"{ascii(str(root))} is not a folder: pass a folder of images.")
    files, skipped = _find_images(root)
    if check:
        found = list(zip(files, in_threads(_examine, files), strict=True))
        bad = [(file, reason) for file, (reason, _) in found if reason]
        check_usable(bad, len(files), on_error)
        animated = [file for file, (_, more) in found if more]
        _warn(animated, f"files in {ascii(str(root))} have several frames, the first is used")
        files = [file for file, (reason, _) in found if not reason]
        skipped += bad
    if not files:
        listed = "".join(f"\n{ascii(str(file))}: {reason}" for file, reason in skipped[:20])
        what = f"No usable image in {ascii(str(root))}: put files in {', '.join(SUFFIXES)} there"
        raise ArtifactError(f"{what}. Left out: {len(skipped)} files{listed}")
    _warn([file for file, _ in skipped], f"files in {ascii(str(root))} are left out")
    parents = [file.relative_to(root).parts[:-1] for file in files]
    if not all(parents):
        return ImageFolder(files, None, [], skipped, size, channels)
    class_names = sorted({parts[0] for parts in parents}, key=os.fsencode)
    position = {name: label for label, name in enumerate(class_names)}
    labels = np.array([position[parts[0]] for parts in parents], dtype="int64")
    return ImageFolder(files, labels, class_names, skipped, size, channels)


def check_usable(bad, count: int, on_error: str) -> None:
    """Raises one `ImageError` that lists the `bad`, `(file, reason)`, of `count` images.

    Unless `on_error` is "skip".
    """
    if bad and on_error == "raise":
        mend = 'mend or remove them, or pass on_error="skip"'
        listed = "\n".join(reason for _, reason in bad[:20])
        raise ImageError(f"{len(bad)} of {count} images cannot be used; {mend}:\n{listed}")


def _find_images(root: Path):
    files, skipped, seen = [], [], set()

    def list_unreadable(error):
        skipped.append((Path(error.filename), f"cannot be listed: {error.strerror}"))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=list_unreadable):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted((name for name in folders if not _is_junk(name)), key=os.fsencode)
        names = sorted((name for name in names if not _is_junk(name)), key=os.fsencode)
        if not folders and not names and Path(folder).parent == root:
            skipped.append((Path(folder), "an empty folder, no class"))
        for name in names:
            file = Path(folder, name)
            real = os.path.realpath(file)
            if file.suffix.lower() not in SUFFIXES:
                skipped.append((file, "no image suffix"))
            elif real not in seen:
                seen.add(real)
                files.append(file)
    return sorted(files, key=os.fsencode), skipped


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _warn(files, what: str) -> None:
    if files:
        names = ", ".join(ascii(file.name) for file in files[:5])
        warnings.warn(f"{len(files)} {what}: {names}.", stacklevel=3)


def in_threads(function, files) -> list:
    """Returns what `function`, which decodes, makes of each of `files`, in their order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the global lock
        return list(pool.map(function, files))


def _examine(file) -> tuple[str | None, bool]:
    try:
        return None, decode(file)[1]
    except ImageError as error:
        return str(error), False
