"""The command line: the library's calls, its errors on one line.

`kerasim embed` takes a folder into a gallery, `query` finds similar pictures in it, `calibrate` and
`verify` say whether two show the same, `map` writes the page, `export` a SavedModel or ONNX file.
`kerasim COMMAND --help` tells the rest. Each command is one call of `gallery.Gallery` or `export`,
and imports what it needs when it runs. Exit codes: 0 done, 1 verified as different, 2 an error.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

import kerasim

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find similar pictures. Exit codes: 0 done, 1 verified as different, 2 an error.",
)
Folder = Annotated[Path, typer.Argument(help="Folder of pictures, or of one subfolder per class.")]
GalleryPath = Annotated[Path, typer.Argument(help="Folder of the gallery.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def embed(
    folder: Folder,
    gallery: GalleryPath,
    embedder: Annotated[
        str, typer.Option(help="A .keras file, or a backbone such as vgg16; for a new gallery.")
    ] = "",
    size: Annotated[int, typer.Option(help="Height and width for a backbone.")] = 224,
    metric: Annotated[
        Literal["cosine", "euclidean", "manhattan"] | None, typer.Option(help="Default: cosine.")
    ] = None,
    kind: Annotated[Literal["exact", "hnsw"] | None, typer.Option(help="Default: exact.")] = None,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="What to do with damaged pictures.")
    ] = "raise",
    as_json: Json = False,
):
    """Takes the pictures of a folder into a gallery; again, it takes what is new."""
    from kerasim.gallery import Gallery

    stands = kerasim.artifacts.find(kerasim.artifacts.place(gallery))
    if stands.exists() and any(stands.iterdir()):
        opened = Gallery.load(gallery, _embedder(embedder, size) if embedder else None)
        for name, value in (("metric", metric), ("kind", kind)):
            if value not in (None, opened.settings[name]):
                stands = f"that of {gallery}, {opened.settings[name]}"
                mend = "leave it out, or name another gallery"
                raise kerasim.errors.ArgumentError(f"--{name}={value} is not {stands}: {mend}.")
    elif embedder:
        opened = Gallery(_embedder(embedder, size), metric or "cosine", kind or "exact")
    else:
        mend = "pass --embedder, a .keras file or such as vgg16"
        raise kerasim.errors.ArgumentError(f"{gallery} is not there yet: {mend}.")
    taken = opened.add(folder, on_error=on_error, path=gallery)
    left_out = [str(file) for file, _ in opened.skipped]
    done = {"taken": len(taken), "pictures": len(opened), "gallery": str(gallery)}
    _say({**done, "skipped": left_out}, as_json)


@app.command()
def query(
    gallery: GalleryPath,
    images: Annotated[list[Path], typer.Argument(help="Pictures to look for.")],
    k: Annotated[int, typer.Option("-k", help="How many of each.")] = 10,
    as_json: Json = False,
):
    """Finds the most similar pictures."""
    import pandas as pd

    found = _open(gallery).query([*images], k)
    # As objects: strings of pandas have no place for a name that is no UTF-8.
    found["query"] = pd.Series([str(images[n]) for n in found["query"]], dtype=object)
    _say(found, as_json)


@app.command()
def calibrate(
    gallery: GalleryPath,
    folder: Folder,
    far: Annotated[float, typer.Option(help="Share of unlike pairs to accept.")] = 0.01,
    seed: int = 0,
    as_json: Json = False,
):
    """Fits the threshold of verify on pairs of pictures, by class, that nothing was trained on."""
    opened = _open(gallery)
    pictures = kerasim.data.image_folder(folder, opened.image_shape[:2], opened.image_shape[2])
    if pictures.labels is None:
        raise kerasim.errors.ArgumentError(f"{folder} has no subfolders: pass one of each class.")
    left, right, same = kerasim.data.draw_pairs(pictures.labels, seed=seed)
    opened.calibrate(pictures.take(left), pictures.take(right), same, far)
    opened.save(gallery)
    _say({"threshold": opened.threshold, "pairs": len(same)}, as_json)


@app.command()
def verify(gallery: GalleryPath, left: Path, right: Path, as_json: Json = False):
    """Says whether two pictures show the same: exit code 0 if they do, 1 if not."""
    found = _open(gallery).verify([left], [right])
    _say(found, as_json)
    raise typer.Exit(0 if found.loc[0, "same"] else 1)


@app.command("map")
def write_map(
    gallery: GalleryPath,
    page: Annotated[Path, typer.Argument(help="HTML file to write.")],
    title: str = "Gallery",
    as_json: Json = False,
):
    """Writes the map of a gallery as one HTML page."""
    _say({"page": str(_open(gallery).write_map(page, title=title))}, as_json)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A gallery, or a .keras file.")],
    path: Annotated[Path, typer.Argument(help="What to write.")],
    target: Annotated[Literal["savedmodel", "onnx"], typer.Option("--format")] = "savedmodel",
    as_json: Json = False,
):
    """Writes an embedder as a SavedModel or an ONNX file."""
    embedder = _open(model).embedder if model.is_dir() else _embedder(str(model))
    module = kerasim.export
    write = module.export_onnx if target == "onnx" else module.export_saved_model
    write(embedder, path)
    _say({"written": str(path)}, as_json)


def _open(path):
    return kerasim.gallery.Gallery.load(path)


def _embedder(name, size=224):
    if name.endswith((".keras", ".h5", ".hdf5")):
        from kerasim import layers  # noqa: F401 (so that Keras knows them)

        return kerasim.data.load_embedder(name)
    return kerasim.models.pretrained_embedder(
        name, pooling="average", embedding_dim=None, image_shape=(size, size, 3)
    )


def _say(result, as_json):
    if isinstance(result, dict):
        print(json.dumps(result) if as_json else "\n".join(f"{k}: {v}" for k, v in result.items()))
    else:
        records = result.to_dict("records")
        print(json.dumps(records) if as_json else result.to_string(index=False))


def main() -> None:
    """Runs the command line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.showwarning = lambda message, *_: _complain("warning", message)
    for stream in (sys.stdout, sys.stderr):  # a file name may hold any byte
        stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception as error:  # 1 would say that two pictures are different
        ours = isinstance(error, kerasim.errors.KerasimError)
        _complain("error", error if ours else f"{type(error).__name__}: {error}")
        sys.exit(2)


def _complain(kind, message):
    print(f"kerasim: {kind}: {' '.join(str(message).split())}", file=sys.stderr)
