"""Folders of images, decoded on access."""

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from kerasim import _artifacts, _checks
from kerasim.errors import ArgumentError, ArtifactError, ImageError
from kerasim.images import (
    FORMATS,
    NO_HEIC,
    SUFFIXES,
    Resize,
    as_float,
    check_channels,
    check_resize,
    check_size,
    decode,
    is_avif,
    is_heic,
    reads_heic,
)

_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}

EMPTY_FOLDER = "an empty folder, not a class"

# Raw files of cameras begin as TIFF files do, but a decoder finds a small preview there at most.
_RAW_SUFFIXES = set(
    ".3fr .arw .cr2 .dcr .dng .erf .iiq .k25 .kdc .mef .mos .nef .nrw .pef .sr2 .srf .srw".split()
)


class ImageFolder:
    """The images of a folder, decoded on access. Made by `image_folder`.

    Attributes:
        files: Paths, in the order of the images.
        labels: `(n,)` int64, or None if the images lie in no subfolders.
        class_names: A name for each label.
        skipped: `(path, reason)` of each file that is not a usable image.
        shape: `(n, height, width, channels)`.
        resize: As passed to `image_folder`.

    Example:
        >>> import os
        >>> os.makedirs("pets/cat", exist_ok=True)
        >>> keras.utils.save_img("pets/cat/1.png", np.zeros((40, 60, 3)))
        >>> folder = image_folder("pets", image_size=(20, 30))
        >>> folder
        <ImageFolder: 1 image of (20, 30, 3); 1 class: 'cat'>
        >>> folder[0].shape
        (20, 30, 3)
    """

    dtype = np.dtype("float32")

    def __init__(
        self,
        files: list[Path],
        labels: np.ndarray | None,
        class_names: list[str],
        skipped: list[tuple[Path, str]],
        size: Sequence[int],
        channels: int,
        resize: Resize = "squash",
    ):
        self.files, self.labels, self.class_names = files, labels, class_names
        self.skipped, self.shape = skipped, (len(files), *size, channels)
        self.resize: Resize = resize

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        parts = [f"{_checks.counted(len(self), 'image', 'images')} of {self.shape[1:]}"]
        if self.labels is not None:
            classes = _checks.counted(len(self.class_names), "class", "classes")
            parts.append(f"{classes}: {_checks.shown_names(self.class_names)}")
        if self.skipped:
            parts.append(f"{_checks.counted(len(self.skipped), 'file', 'files')} skipped")
        return f"<ImageFolder: {'; '.join(parts)}>"

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
            return decode(self.files[row], size, channels, resize=self.resize)[0]

        if isinstance(rows, (int, np.integer)):
            return as_float(pixels(rows))
        rows = np.arange(len(self))[rows]
        if not len(rows):
            return np.empty((0, *self.shape[1:]), dtype="float32")
        return as_float(np.stack(thread_map(pixels, rows)))

    def take(self, rows: slice | ArrayLike) -> "ImageFolder":
        """Returns the images at `rows` as an `ImageFolder` of their own, not yet decoded.

        `folder[rows]` decodes the images into an array; `take` keeps the names of the files and
        decodes nothing. Use it to split a folder: scikit-learn's `train_test_split(folder)` would
        decode every image, so split the positions.

        Args:
            rows: Positions: a slice, a list, or an array of integers or booleans.

        Returns:
            `ImageFolder` with the files and labels of these rows and the same class names.

        Example:
            >>> import os
            >>> from sklearn.model_selection import train_test_split
            >>> for file in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
            ...     os.makedirs(os.path.dirname(f"photos/{file}"), exist_ok=True)
            ...     keras.utils.save_img(f"photos/{file}", np.zeros((64, 64, 3)))
            >>> folder = image_folder("photos", image_size=64)
            >>> training, test = train_test_split(
            ...     np.arange(len(folder)), test_size=0.5, stratify=folder.labels, random_state=0
            ... )
            >>> np.bincount(folder.take(training).labels).tolist()
            [1, 1]
        """
        index: Any = rows  # whatever NumPy takes as an index
        positions = np.arange(len(self))[index]
        files = [self.files[position] for position in positions]
        labels = None if self.labels is None else self.labels[positions]
        return ImageFolder(
            files, labels, self.class_names, [], self.shape[1:3], self.shape[3], self.resize
        )


def image_folder(
    path: Path | str,
    image_size: int | tuple[int, int],
    channels: Literal[1, 3] = 3,
    on_error: Literal["raise", "skip"] = "raise",
    check: bool = True,
    labels: Literal["folders"] | None = "folders",
    resize: Resize = "squash",
) -> ImageFolder:
    """Lists the images of a folder, or of its subfolders, one for each class.

    Images are recognized by their content, with any suffix or none. `on_error` applies to files
    that have the suffix of an image but cannot be decoded. Hidden files and the files that file
    managers leave behind are ignored; all other files are listed in `.skipped`, with one warning.
    Links are followed, each real file is listed once, and the order does not depend on the locale.
    The first frame of an animation is used.

    Args:
        path: Folder of images, or of one subfolder for each class; searched with all subfolders.
        image_size: `(height, width)` or one number, to which each image is resized.
        channels: 3 for RGB, 1 for gray.
        on_error: What to do with images that cannot be decoded: "raise" one error that lists
            them, or "skip" them, with a warning, into `.skipped`.
        check: Decode every image once now, so that a damaged one is found before training, and
            warn once of animations. With False, a damaged one raises an error when it is read.
        labels: "folders": the subfolder of `path` in which an image lies is its class. Images that
            lie beside the subfolders have no class: they are left out with a warning, or refused
            if they are the larger part. None: every image is taken, without labels.
        resize: How images of another aspect ratio get to `image_size`: "squash" stretches them,
            "crop" cuts the longer sides off their center, "pad" adds black borders.

    Returns:
        `ImageFolder`. Index it with a position, a slice or an array of positions to decode
        images, float32 in [0, 1].

    Raises:
        ImageError: If `on_error="raise"` and an image cannot be decoded.
        ArtifactError: If the folder is missing or holds no image.
        ArgumentError: If `image_size` is None or not a size, another argument is not known, or half
            of the images or more lie beside the subfolders and `labels` is not None.

    Example:
        >>> import os
        >>> for name in ("cat", "dog"):
        ...     os.makedirs(f"animals/{name}", exist_ok=True)
        ...     keras.utils.save_img(f"animals/{name}/1.png", np.zeros((100, 80, 3)))
        >>> folder = image_folder("animals", image_size=64)
        >>> folder.class_names, folder.labels.tolist()
        (['cat', 'dog'], [0, 1])
        >>> folder[:10].shape
        (2, 64, 64, 3)
    """
    _checks.one_of("on_error", on_error, ("raise", "skip"))
    _checks.boolean("check", check)
    if labels is not None:
        _checks.one_of("labels", labels, ("folders",))
    depth, size = check_channels(channels), check_size(image_size)
    check_resize(resize)
    if size is None:
        raise ArgumentError("image_size=None: pass (height, width), one size for all images.")
    root, files, skipped = find_images(path)
    if check:
        found = list(zip(files, thread_map(_examine, files), strict=True))
        bad = [(file, reason) for file, (reason, _) in found if reason]
        check_usable(bad, len(files), on_error)
        animated = [file for file, (_, more) in found if more]
        where = f"in {_checks.shown(root)} with several frames, of which the first is used"
        _warn(animated, f"file {where}", f"files {where}")
        files = [file for file, (reason, _) in found if not reason]
        skipped += bad
    if not files:
        raise ArtifactError(no_image(root, skipped))
    where = f"in {_checks.shown(root)}"
    _warn([file for file, _ in skipped], f"file {where} is left out", f"files {where} are left out")
    classes = [class_of(file, root) for file in files]
    if labels is None or not any(classes):
        return ImageFolder(files, None, [], skipped, size, depth, resize)
    stray = [file for file, name in zip(files, classes, strict=True) if not name]
    _check_stray(stray, len(files), root)
    skipped += [(file, "it lies beside the class folders and has no class") for file in stray]
    files = [file for file, name in zip(files, classes, strict=True) if name]
    names = [name for name in classes if name]
    class_names = sorted(set(names), key=os.fsencode)
    position = {name: label for label, name in enumerate(class_names)}
    numbers = np.array([position[name] for name in names], dtype="int64")
    return ImageFolder(files, numbers, class_names, skipped, size, depth, resize)


def class_of(file: Path, root: Path) -> str:
    """Returns the name of the subfolder of `root` in which `file` lies, "" if it lies in `root`."""
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def _check_stray(stray, count: int, root: Path) -> None:
    """Warns of images beside the class folders, or refuses them if they are the larger part."""
    if not stray:
        return
    names = _checks.shown_names(file.name for file in stray)
    what = f"{len(stray)} of {count} images in {_checks.shown(root)} lie beside its subfolders"
    choices = "Move them into a subfolder, or pass labels=None to take all images without labels"
    if 2 * len(stray) >= count:
        raise ArgumentError(
            f"{what}, so it is unclear whether the subfolders are classes: {names}. {choices}."
        )
    _checks.warn(f"{what} and are left out, since they have no class: {names}. {choices}.")


def no_image(root: Path, skipped) -> str:
    """Returns the message that the folder `root` holds no usable image."""
    listed = "".join(f"\n{_checks.shown(file)}: {reason}" for file, reason in skipped[:20])
    message = (
        f"There is no usable image in {_checks.shown(root)}: put {', '.join(FORMATS)} files there."
    )
    if not skipped:
        return message
    return f"{message} {_checks.counted(len(skipped), 'file was', 'files were')} left out:{listed}"


def check_usable(bad, count: int, on_error: str) -> None:
    """Raises one `ImageError` that lists the images that cannot be used, if there are some.

    Args:
        bad: `(file, reason)` of each image that cannot be used.
        count: Number of all images.
        on_error: "raise", or "skip" to raise nothing.
    """
    if bad and on_error == "raise":
        listed = "\n".join(reason for _, reason in bad[:20])
        raise ImageError(
            f"{len(bad)} of {count} images cannot be used; repair or remove them, or "
            f'pass on_error="skip":\n{listed}'
        )


def find_images(path) -> tuple[Path, list[Path], list[tuple[Path, str]]]:
    """Finds the images below a folder, without decoding them.

    Args:
        path: The folder.

    Returns:
        `(root, files, skipped)`: the absolute path of the folder, the images in order, and
        `(file, reason)` of each other file. A file whose suffix is that of an image is taken
        whatever it holds, so that a damaged one is reported when it is decoded.

    Raises:
        ArtifactError: If it is not a folder.
    """
    root = _artifacts.check_path("path", path)
    if not os.path.isdir(root):
        raise ArtifactError(
            f"{_checks.shown(root)} is not a folder, or may not be opened. Pass a folder of "
            "images, and check its permissions."
        )
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
            skipped.append((Path(folder), EMPTY_FOLDER))
        for name in names:
            file = Path(folder, name)
            real = os.path.realpath(file)
            if reason := why_no_image(file):
                skipped.append((file, reason))
            elif real not in seen:
                seen.add(real)
                files.append(file)
    return root, sorted(files, key=os.fsencode), skipped


def why_no_image(file: Path) -> str:
    """Returns why a file is not an image by its suffix or its first bytes; "" if it is one."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        return ""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait for a writer
            return "not a regular file"
        with open(file, "rb") as opened:
            start = opened.read(64)
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    if format_of(start) == "TIFF" and suffix in _RAW_SUFFIXES:
        return "a raw file of a camera: convert it to JPEG, PNG or TIFF"
    if is_heic(start):
        return "" if reads_heic() else NO_HEIC
    return "" if format_of(start) else f"not an image in one of {', '.join(FORMATS)}"


_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BMP_HEADER_SIZES = {12, 16, 40, 52, 56, 64, 108, 124}


def format_of(start: bytes) -> str:
    """Returns which of `images.FORMATS` a file is by its first 64 bytes; "" if it is none."""
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith(_TIFF_STARTS):
        return "TIFF"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if is_avif(start):
        return "AVIF"
    # Two letters may begin a text as well: look at the size of the header that follows, too.
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    return ""


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _warn(files, one: str, many: str) -> None:
    if files:
        names = _checks.shown_names(file.name for file in files)
        _checks.warn(f"{_checks.counted(len(files), one, many)}: {names}.")


def thread_map(function, files) -> list:
    """Returns the result of `function` for each of `files`, in order, computed in threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the global lock
        return list(pool.map(function, files))


def _examine(file) -> tuple[str | None, bool]:
    try:
        return None, decode(file)[1]
    except ImageError as error:
        return str(error), False
