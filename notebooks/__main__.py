"""Runs the notebooks in order in one working folder: python -m notebooks FOLDER."""

import argparse
import io
import os
import re
import time
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
import papermill
from PIL import Image

HERE = Path(__file__).parent


def run(notebook: Path, folder: Path, parameters: dict) -> Path:
    """Runs one notebook in `folder`, figures and all, and returns the executed copy."""
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / notebook.name
    papermill.execute_notebook(
        notebook, executed, parameters, cwd=folder, kernel_name="python3", progress_bar=False
    )
    return executed


def capped(notebook: Path, most: int) -> dict:
    """Returns the parameters of a notebook that count epochs, none above `most`."""
    known = papermill.inspect_notebook(notebook)
    epochs = {name: int(known[name]["default"]) for name in known if name.endswith("epochs")}
    return {name: min(most, count) for name, count in epochs.items()}


def save_figures(executed: Path) -> None:
    """Writes each figure of an executed notebook beside it as a PNG file."""
    folder = executed.parent / "figures"
    folder.mkdir(exist_ok=True)
    outputs = [
        output
        for cell in nbformat.read(executed, 4).cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    for n, output in enumerate(outputs, start=1):
        (folder / f"{executed.stem}-{n}.png").write_bytes(b64decode(output["data"]["image/png"]))


def shrink(png: str) -> str:
    """Returns a base64 PNG in 256 colours, about a third of its size."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(b64decode(png))) as image:
        # This method keeps the few colours of a legend as they are.
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
        few.save(small, "PNG", optimize=True)
    return b64encode(small.getvalue()).decode()


def keep(executed: Path) -> None:
    """Puts the outputs of an executed copy into the committed notebook."""
    notebook = nbformat.read(executed, 4)
    noise = re.compile(
        r"WARNING: All log messages before absl|[IWE]\d{4} \S|To enable the foll|INFO:"
        # It counts the first call of each model.
        r"|WARNING:tensorflow:\d+ out of the last"
    )
    notebook.cells = [
        c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])
    ]
    count = 0
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
                if output.output_type == "stream":  # TensorFlow's log is in stdout, too
                    lines = output.text.splitlines(keepends=True)
                    output.text = "".join(ln for ln in lines if ln.strip() and not noise.match(ln))
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = shrink(output.data["image/png"])
            cell.outputs = [o for o in cell.outputs if o.get("text", True)]
    notebook.metadata.pop("papermill", None)
    nbformat.write(notebook, HERE / executed.name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="notebooks", description=__doc__)
    parser.add_argument("folder", type=Path, help="working folder of all of them")
    parser.add_argument(
        "--dataset", help='"digits", for example; default: what the notebook chooses'
    )
    parser.add_argument(
        "--epochs", type=int, help="most epochs of each training; default: no limit"
    )
    parser.add_argument("--keep", action="store_true", help="keep the outputs in notebooks/")
    parser.add_argument("--only", default="", help="start of the names to run, such as 02")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's log is not for readers
    if os.environ.get("KERASIM_DATA_DIR"):  # notebooks run in another folder
        os.environ["KERASIM_DATA_DIR"] = os.path.abspath(os.environ["KERASIM_DATA_DIR"])
    else:
        os.environ["KERASIM_DATA_DIR"] = str(HERE.parent / "data")
    for notebook in sorted(HERE.glob(f"{arguments.only or '[0-9]'}*.ipynb")):
        start = time.perf_counter()
        parameters = {"dataset": arguments.dataset} if arguments.dataset else {}
        if arguments.epochs:
            parameters |= capped(notebook, arguments.epochs)
        executed = run(notebook, arguments.folder, parameters)
        save_figures(executed)
        if arguments.keep:
            keep(executed)
        print(f"{notebook.name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"Executed notebooks: {arguments.folder.resolve()}")
    print(f"Figures:            {arguments.folder.resolve() / 'figures'}")
    for name, pattern in (("SavedModel:", "*/*savedmodel"), ("Map:", "gallery/*/map.html")):
        for saved in sorted(arguments.folder.glob(pattern)):
            print(f"{name:<20}{saved.resolve()}")


if __name__ == "__main__":
    main()
