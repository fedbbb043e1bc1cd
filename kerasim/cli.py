"""The command line. Errors are printed on one line.

`kerasim embed` adds the images of a folder to a gallery, `query` finds similar images in it,
`calibrate` and `verify` decide whether two images show the same class, `map` and `report` write
HTML pages and `export` a SavedModel or an ONNX file. `info`, `remove`, `prune` and `relocate`
maintain a gallery; `denoise` removes noise from an image; `fetch` downloads data sets. `kerasim
COMMAND --help` describes each command.

Each command is one call of `gallery.Gallery`, `data`, `denoising` or `export`. What can be checked
without Keras, which takes seconds to import, is checked first. Exit codes: 0 success, 1 verified as
different, 2 an error, 130 interrupted, 141 if the output was closed, as `head` does.
"""

import itertools
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

import kerasim
from kerasim.errors import ArgumentError, ArtifactError, ImageError, KerasimError

__all__ = [
    "main",
]

# How the command line spells what messages of the library recommend.
_OPTIONS = {
    'on_error="skip"': "--on-error skip",
    "replace=True": "--replace",
    "pass its path as weights": "pass its path as --weights",
    "Pass another image_shape": "Pass another --size",
    ", see `skipped`": "",
    "call calibrate with known pairs": "run `kerasim calibrate` with labeled images",
    "Pass values of items['file'] or items['id']": "Pass files as query prints them",
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find similar images. Exit codes: 0 success, 1 verified as different, 2 an error, "
    "130 interrupted.",
)
Folder = Annotated[
    Path, typer.Argument(help="Folder of images, optionally with one subfolder per class.")
]
GalleryPath = Annotated[Path, typer.Argument(help="Folder of the gallery.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OnError = Annotated[
    Literal["raise", "skip"],
    typer.Option(help="Stop with an error at images that cannot be decoded, or skip them."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kerasim {kerasim.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version."),
    ] = False,
):
    """Takes the options that come before a command."""


@app.command()
def embed(
    folder: Folder,
    gallery: GalleryPath,
    embedder: Annotated[
        str,
        typer.Option(
            help="Needed for a new gallery: a .keras file, or a backbone such as vgg16 or "
            "squeezenet."
        ),
    ] = "",
    weights: Annotated[
        str, typer.Option(help="Weights of a backbone: imagenet, or the path of a weights file.")
    ] = "imagenet",
    size: Annotated[
        int, typer.Option(min=1, help="Height and width of the input of a backbone, in pixels.")
    ] = 224,
    metric: Annotated[
        Literal["cosine", "euclidean", "manhattan"] | None,
        typer.Option(help="Metric of a new gallery; default: cosine."),
    ] = None,
    kind: Annotated[
        Literal["exact", "hnsw", "hnsw_sq8", "binary"] | None,
        typer.Option(
            help="Index of a new gallery; default: exact. Use hnsw for a million images or more, "
            "hnsw_sq8 or binary if the memory does not suffice."
        ),
    ] = None,
    resize: Annotated[
        Literal["squash", "crop", "pad"] | None,
        typer.Option(
            help="How images of another aspect ratio get to the size of the embedder, for a new "
            "gallery; default: squash. Use what the embedder was trained with."
        ),
    ] = None,
    on_error: OnError = "raise",
    as_json: Json = False,
):
    """Adds the images of a folder to a gallery. Run it again to add new images."""
    _check_folder(folder)
    exists = _gallery_exists(gallery)
    if not exists and not embedder:
        raise ArgumentError(
            f"There is no gallery at {gallery}. Pass --embedder with a .keras file or a backbone "
            "such as vgg16 to create one."
        )
    if _is_file_name(embedder):
        _check_file(embedder)
    _import_keras()
    model = _load_embedder(embedder, weights, size) if embedder else None
    if exists:
        opened = kerasim.gallery.Gallery.load(gallery, model)
        _check_setting("metric", metric, opened, gallery)
        _check_setting("kind", kind, opened, gallery)
        _check_setting("resize", resize, opened, gallery)
    else:
        opened = kerasim.gallery.Gallery(
            model, metric or "cosine", kind or "exact", resize=resize or "squash"
        )
    before = len(opened)
    try:
        added = opened.add(folder, on_error=on_error, path=gallery)
    except KeyboardInterrupt:  # `add` has saved what it embedded
        added = _counted(len(opened) - before, "image was", "images were")
        _complain("interrupted", f"{added} added to {gallery}. The same command adds the rest.")
        raise
    except ImageError as error:
        if len(opened) == before:
            raise
        added = _counted(len(opened) - before, "image was", "images were")
        raise ImageError(
            f"{error}\n{added} added to {gallery}, which is incomplete. Run the command again, "
            "after that or with --on-error skip, to add the rest."
        ) from error
    skipped = [str(file) for file, _ in opened.skipped]
    result = {"added": len(added), "images": len(opened), "gallery": str(gallery)}
    if as_json:
        _print_json({**result, "skipped": skipped})
    else:
        _print_dict({**result, "skipped": len(skipped)})


@app.command()
def query(
    gallery: GalleryPath,
    images: Annotated[list[Path], typer.Argument(help="Images to search for.")],
    k: Annotated[
        int, typer.Option("-k", "--k", min=1, help="Number of results for each image.")
    ] = 10,
    as_json: Json = False,
):
    """Finds the most similar images in a gallery."""
    for image in images:
        _check_file(image)
    found = _open(gallery).query([*images], k)
    queries = [str(images[position]) for position in found["query"]]
    if as_json:
        records = found.to_dict("records")
        _print_json([{**row, "query": name} for row, name in zip(records, queries, strict=True)])
    else:
        _print_neighbors(queries, found)


@app.command()
def calibrate(
    gallery: GalleryPath,
    folder: Annotated[Path, typer.Argument(help="Folder with one subfolder of images per class.")],
    max_far: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of negative pairs to accept (FAR).")
    ] = 0.01,
    pairs: Annotated[
        int, typer.Option(min=2, max=200_000, help="Number of random pairs, half of them positive.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed for the random pairs.")] = 0,
    on_error: OnError = "raise",
    as_json: Json = False,
):
    """Fits the threshold of verify on labeled images. Pass images that were not trained on."""
    _check_folder(folder)
    opened = _open(gallery)
    images = kerasim.data.image_folder(
        folder,
        opened.image_shape[:2],
        opened.image_shape[2],
        on_error=on_error,
        resize=opened.resize,
    )
    if images.labels is None:
        raise ArgumentError(
            f"{folder} has no subfolders. Pass a folder with one subfolder of images per class."
        )
    left, right, same = kerasim.data.draw_pairs(images.labels, pairs, seed=seed)
    opened.calibrate(images.take(left), images.take(right), same, max_far)
    opened.save(gallery)
    if as_json:
        _print_json(opened.calibration)
    else:
        _print_calibration(opened.calibration)


@app.command()
def verify(
    gallery: GalleryPath,
    left: Annotated[Path, typer.Argument(help="An image.")],
    right: Annotated[Path, typer.Argument(help="The image to compare it with.")],
    as_json: Json = False,
):
    """Tells whether two images show the same class: exit code 0 if they do, 1 if they do not.

    The score is the estimated probability that they do, if half of all pairs are positive.
    """
    _check_file(left)
    _check_file(right)
    found = _open(gallery).verify([left], [right])
    _say(found.to_dict("records")[0], as_json)
    raise typer.Exit(0 if found.loc[0, "same"] else 1)


@app.command("map")
def write_map(
    gallery: GalleryPath,
    page: Annotated[Path, typer.Argument(help="HTML file to write.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Gallery",
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="Skip images whose files are missing or damaged, or stop with an error."),
    ] = "skip",
    as_json: Json = False,
):
    """Writes the map of a gallery as one HTML page."""
    _check_page(page)
    opened = _open(gallery)
    count = _counted(len(opened), "image", "images")
    print(f"Laying out {count}, for half a minute or more ...", file=sys.stderr, flush=True)
    written = opened.write_map(page, title=title, on_error=on_error)
    _say({"page": str(written)}, as_json)


@app.command()
def report(
    gallery: GalleryPath,
    page: Annotated[Path, typer.Argument(help="HTML file to write.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Gallery",
    k: Annotated[
        int, typer.Option("-k", min=1, help="Number of nearest images by which others are judged.")
    ] = 10,
    min_correlation: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest correlation of near-duplicates.")
    ] = 0.975,
    min_cluster_size: Annotated[
        int, typer.Option(min=0, help="Least number of images in a cluster; 0 to find none.")
    ] = 10,
    as_json: Json = False,
):
    """Writes duplicates, outliers, suspect labels and clusters of a gallery as one HTML page."""
    _check_page(page)
    written = _open(gallery).write_report(page, title, k, min_correlation, min_cluster_size or None)
    _say({"page": str(written)}, as_json)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A gallery, or a .keras file.")],
    path: Annotated[Path, typer.Argument(help="Output: a folder, or a file that ends in .onnx.")],
    target: Annotated[
        Literal["savedmodel", "onnx"] | None,
        typer.Option(
            "--format", help="Default: onnx for a path that ends in .onnx, else savedmodel."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite an earlier export.")
    ] = False,
    as_json: Json = False,
):
    """Writes an embedder as a SavedModel or an ONNX file."""
    named_onnx = path.suffix.lower() == ".onnx"
    if target is not None and (target == "onnx") != named_onnx:
        raise ArgumentError(
            f"--format {target} does not fit the path {path}. The path of an ONNX file ends in "
            ".onnx, the folder of a SavedModel does not."
        )
    resize = "squash"
    if _is_folder(model):
        opened = _open(model)
        embedder, resize = opened.embedder, opened.resize
    else:
        _check_file(model)
        _import_keras()
        embedder = kerasim.embedding.load_embedder(model)
    if named_onnx:
        kerasim.export.export_onnx(embedder, path, replace)
    else:
        kerasim.export.export_saved_model(embedder, path, replace, resize)
    _say({"written": str(path)}, as_json)


@app.command()
def info(gallery: GalleryPath, as_json: Json = False):
    """Prints a summary of a gallery: images, labels, metric, embedder, threshold, missing files."""
    found = _open(gallery).info()
    if as_json:
        _print_json(found)
        return
    calibration = found.pop("calibration")
    labels = [f"{label} ({count})" for label, count in found["labels"].items()]
    found["labels"] = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "") or "none"
    if calibration is not None:
        del found["threshold"]
    _print_dict(found)
    if calibration is not None:
        _print_calibration(calibration)


@app.command()
def remove(
    gallery: GalleryPath,
    files: Annotated[list[str], typer.Argument(help="Files to remove from the gallery.")],
    as_json: Json = False,
):
    """Removes images from a gallery. The image files are not deleted."""
    opened = _open(gallery)
    removed = opened.remove(files)
    opened.save(gallery)
    _say({"removed": len(removed), "images": len(opened)}, as_json)


@app.command()
def prune(gallery: GalleryPath, as_json: Json = False):
    """Removes those images from a gallery whose files no longer exist."""
    opened = _open(gallery)
    removed = opened.prune()
    if len(removed):
        opened.save(gallery)
    _say({"removed": len(removed), "images": len(opened)}, as_json)


@app.command()
def relocate(
    gallery: GalleryPath,
    old: Annotated[Path, typer.Argument(help="Previous folder of the files.")],
    new: Annotated[Path, typer.Argument(help="New folder of the files.")],
    as_json: Json = False,
):
    """Updates the paths of images whose files were moved to another folder."""
    _check_folder(new)
    opened = _open(gallery)
    moved = opened.relocate(old, new)
    opened.save(gallery)
    _say({"relocated": len(moved), "images": len(opened)}, as_json)


@app.command()
def denoise(
    denoiser: Annotated[Path, typer.Argument(help="Folder that Denoiser.save wrote.")],
    source: Annotated[Path, typer.Argument(help="A noisy image.")],
    target: Annotated[
        Path, typer.Argument(help="Output: a file that ends in .png, .tif, .webp or .jpg.")
    ],
    sigma: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the noise, white being 1; default: estimated."),
    ] = None,
    tile: Annotated[
        int, typer.Option(min=64, help="Height and width of the tiles of a large image, in pixels.")
    ] = 1024,
    as_json: Json = False,
):
    """Removes the noise of an image, and prints how much it has. Transparent parts become white."""
    _check_file(source)
    if not _is_folder(denoiser):
        raise ArtifactError(f"There is no denoiser at {denoiser}. Check the path.")
    _import_keras()
    loaded = kerasim.denoising.Denoiser.load(denoiser)
    found = loaded.denoise_file(source, target, sigma, tile)
    _say({"sigma": round(found, 4), "written": str(target)}, as_json)


@app.command()
def fetch(
    name: Annotated[
        Literal["mnist", "cifar10", "squeezenet"], typer.Argument(help="What to download.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder to write to; default: the data folder of kerasim."),
    ] = None,
):
    """Downloads a data set or the weights of SqueezeNet, and checks the hash."""
    _import_keras()
    kerasim.data.fetch(name, folder)


def _import_keras() -> None:
    from kerasim import _quiet

    _quiet.import_keras()


def _check_folder(path: Path) -> None:
    from kerasim import _artifacts

    if not _artifacts.exists(path):
        raise ArtifactError(f"There is no folder {path}. Check the path.")
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a folder. Pass a folder of images.")


def _is_folder(path: Path) -> bool:
    from kerasim import _artifacts

    return _artifacts.exists(path) and path.is_dir()


def _check_file(path) -> None:
    from kerasim import _artifacts

    _artifacts.check_file(path)


def _check_page(page: Path) -> None:
    """Refuses the name of what may be an image, in place of a page."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"The page {page} would replace any file. Pass a name ending in .html.")


def _gallery_exists(path: Path) -> bool:
    """Returns whether there is a gallery at `path`; an empty folder is none."""
    from kerasim import _artifacts

    if not _artifacts.exists(path):
        return False
    saved = _artifacts.locate(_artifacts.resolve(path))
    try:
        return not saved.is_dir() or any(saved.iterdir())
    except OSError as error:
        raise ArtifactError(
            f"Cannot list the folder {saved}: {error.strerror}. Check its permissions."
        ) from error


def _open(path: Path):
    if not _gallery_exists(path):
        raise ArtifactError(
            f"There is no gallery at {path}. Create one with: kerasim embed FOLDER {path} "
            "--embedder vgg16"
        )
    _import_keras()
    # Of the vectors, those of the candidates of a query are read, and no others.
    return kerasim.gallery.Gallery.load(path, mmap_mode="r")


def _check_setting(name: str, value, gallery, path: Path) -> None:
    held = {**gallery.settings, "resize": gallery.resize}[name]
    if value not in (None, held):
        raise ArgumentError(
            f"--{name} {value} differs from that of the gallery {path}, which is {held}. Leave it "
            "out, or pass the path of a new gallery."
        )


def _is_file_name(embedder: str) -> bool:
    return embedder.lower().endswith((".keras", ".h5", ".hdf5"))


def _load_embedder(name: str, weights: str, size: int):
    if _is_file_name(name):
        return kerasim.embedding.load_embedder(name)
    return kerasim.models.pretrained_embedder(
        name.lower(),
        weights=weights,
        pooling="average",
        embedding_dim=None,
        image_shape=(size, size, 3),
    )


def _say(result: dict, as_json: bool) -> None:
    if as_json:
        _print_json(result)
    else:
        _print_dict(result)


def _print_json(result) -> None:
    # A name that is not UTF-8 is printed as the escape \udc.., which JSON has, too; other
    # encodings of the terminal would get escapes that JSON has not.
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(result, ensure_ascii=not is_utf8))


def _print_dict(result: dict) -> None:
    for name, value in result.items():
        print(f"{name}: {_readable(value)}")


def _print_calibration(rates: dict) -> None:
    def percent(name):
        low, high = rates[f"{name}_interval"]
        return f"{100 * rates[name]:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"

    print(f"threshold: {rates['threshold']:.6g}")
    print(f"accepts {percent('far')} of {rates['negative_pairs']} negative pairs")
    print(f"rejects {percent('frr')} of {rates['positive_pairs']} positive pairs")


def _print_neighbors(queries: list[str], found) -> None:
    """Prints a table for each query, with the paths of files from the working folder."""
    queries = [_readable(name) for name in queries]
    table = found[["rank", "file", "label", "distance"]].assign(query=queries)
    if not (table["label"] != "").any():
        table = table.drop(columns="label")
    table["file"] = [_readable(_from_working_folder(file)) for file in table["file"]]
    for name in dict.fromkeys(queries):
        rows = table.loc[table["query"] == name].drop(columns="query")
        print(f"\n{name}")
        print(rows.to_string(index=False))


def _counted(count: int, one: str, many: str) -> str:
    from kerasim import _checks  # imports NumPy, which `--help` does not need

    return _checks.counted(count, one, many)


def _from_working_folder(file: str) -> str:
    """Returns the relative path of a file below the working folder, else its absolute path."""
    below = file.startswith(os.path.join(os.getcwd(), ""))
    return os.path.relpath(file) if below else file


def _readable(value) -> str:
    """Returns text in any script as it is, and escapes what would control the terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(value))


def _is_closed(stdout) -> bool:
    """Writes what is buffered, and returns whether the reader of the output is gone."""
    try:
        stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # for the flush at the end
        return True
    return False


def main() -> None:
    """Runs the command line."""
    warnings.showwarning = lambda message, *_: _complain("warning", message)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the process was started without it
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # a file name may hold any byte
    stdout = sys.stdout
    try:
        _refuse_empty_arguments(sys.argv[1:])
        app()
    except SystemExit:
        if sys.stdout is not stdout or _is_closed(stdout):  # Typer replaces it if it was closed
            sys.exit(141)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # 1 would say that two images are different
        ours = isinstance(error, KerasimError)
        _complain("error", error if ours else f"{type(error).__name__}: {error}")
        sys.exit(2)


def _refuse_empty_arguments(arguments: list[str]) -> None:
    """Refuses an empty path, which would stand for the working folder."""
    for before, argument in itertools.pairwise(["", *arguments]):
        if not argument and not before.startswith("-"):
            raise ArgumentError(
                "An argument is empty, such as that of a shell variable that is not set. "
                "Pass the path of a file or folder."
            )


def _complain(kind: str, message) -> None:
    text = " ".join(str(message).split())
    for library, option in _OPTIONS.items():
        text = text.replace(library, option)
    print(f"kerasim: {kind}: {_readable(text)}", file=sys.stderr)
