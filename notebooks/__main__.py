"""Runs the notebooks in order in one working folder: python -m notebooks FOLDER."""

import argparse
import ast
import io
import os
import platform
import re
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from importlib.metadata import version
from pathlib import Path

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from PIL import Image

HERE = Path(__file__).parent
# Log lines of TensorFlow, absl and oneDNN, which a kernel passes on to the output of a cell.
LOG_LINE = re.compile(
    r"WARNING: All log messages before absl|[IWE]\d{4} \S|To enable the foll|INFO:"
    # TensorFlow counts the first call of each model as a retracing.
    r"|WARNING:tensorflow:\d+ out of the last"
)
# A line that names the data set, such as "Data set: mnist.", "images: tll" or "tll: 1600 pairs".
DATA_SET = re.compile(r"^(?:Data set: |images: )?(cifar10|mnist|tll|digits)\b", re.MULTILINE)
# The folder of the data is another one on each machine.
DATA_FOLDER = re.compile(r"^(Data set: [^,\n]+), from .*$", re.MULTILINE)
# Starts the paragraph at the top of a notebook whose committed outputs are older than its code.
COMMITTED_OUTPUTS = "Outputs from commit"


class LoggedKernelManager(AsyncKernelManager):
    """Starts kernels whose own messages go to a file instead of the terminal."""

    log_file: io.TextIOBase

    async def _async_start_kernel(self, **kwargs):
        await super()._async_start_kernel(**kwargs, stdout=self.log_file, stderr=self.log_file)

    start_kernel = _async_start_kernel


def run(notebook: Path, folder: Path, parameters: dict) -> Path:
    """Runs one notebook in `folder`, figures and all, and returns the executed copy.

    What the notebook trains and saves goes below `folder`, too. Messages of the kernel itself are
    in `folder/logs`.

    Raises:
        papermill.PapermillExecutionError: If a cell fails. The copy holds the cells before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    executed = folder / notebook.name
    source = without_committed_outputs(nbformat.read(notebook, 4))
    known = papermill.inspect_notebook(notebook)
    given = {"runs": ".", **parameters}
    with (folder / "logs" / f"{notebook.stem}.log").open("w") as log_file:
        manager = type("Manager", (LoggedKernelManager,), {"log_file": log_file})
        try:
            papermill.execute_notebook(
                source,
                executed,
                {name: value for name, value in given.items() if name in known},
                cwd=folder,
                kernel_name="python3",
                progress_bar=sys.stderr.isatty(),
                kernel_manager_class=manager,
            )
        finally:
            if executed.exists():
                remove_log_lines(executed)
    return executed


def without_committed_outputs(notebook):
    """Returns the notebook without outputs and without the paragraph on where they come from."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        elif cell.source.startswith("# "):
            paragraphs = cell.source.split("\n\n")
            kept = [text for text in paragraphs if not text.startswith(COMMITTED_OUTPUTS)]
            cell.source = "\n\n".join(kept)
    return notebook


def remove_log_lines(executed: Path) -> None:
    """Removes log lines of TensorFlow from the outputs of an executed notebook."""
    notebook = nbformat.read(executed, 4)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "stream":
                lines = output.text.splitlines(keepends=True)
                kept = [line for line in lines if line.strip() and not LOG_LINE.match(line)]
                output.text = DATA_FOLDER.sub(r"\1.", "".join(kept))
        cell.outputs = [output for output in cell.outputs if output.get("text", True)]
    nbformat.write(notebook, executed)


def headline(executed: Path) -> dict[str, float]:
    """Returns the figures of the cell tagged "headline": the claim's and those of its baselines."""
    for cell in nbformat.read(executed, 4).cells:
        if "headline" in cell.metadata.get("tags", []):
            results = [out for out in cell.outputs if out.output_type == "execute_result"]
            return ast.literal_eval(results[-1].data["text/plain"]) if results else {}
    return {}


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


def compress(png: str) -> tuple[str, str]:
    """Returns the type and the base64 content of a figure, as it is committed.

    A figure of photographs becomes a JPEG file, which has less than half of the size of a PNG file
    of all colors; lines and text stay as they are.
    """
    whole, lossy = io.BytesIO(), io.BytesIO()
    with Image.open(io.BytesIO(b64decode(png))) as image:
        image.convert("RGB").save(whole, "PNG", optimize=True)
        image.convert("RGB").save(lossy, "JPEG", quality=88, subsampling=0)
    if 2 * len(lossy.getvalue()) < len(whole.getvalue()):
        return "image/jpeg", b64encode(lossy.getvalue()).decode()
    return "image/png", b64encode(whole.getvalue()).decode()


def keep(executed: Path, minutes: float, commit: str) -> None:
    """Puts the outputs of an executed copy into the committed notebook.

    Its metadata record the run: its commit, minutes, data and machine. A cell whose metadata have
    `alt`, a list of a text for each figure, gives its figures these alternative texts.
    """
    notebook = nbformat.read(executed, 4)
    notebook.cells = [
        c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])
    ]
    count = 0
    for cell in notebook.cells:
        cell.metadata = {
            key: cell.metadata[key] for key in ("tags", "alt") if cell.metadata.get(key)
        }
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            keep_outputs(cell)
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kerasim"] = {"commit": commit, **run_record(notebook, minutes)}
    nbformat.write(notebook, HERE / executed.name)


def keep_outputs(cell) -> None:
    """Numbers the outputs of a cell, compresses its figures and adds their alternative texts."""
    texts = iter(cell.metadata.get("alt", []))
    for output in cell.outputs:
        if "execution_count" in output:
            output.execution_count = cell.execution_count
        if "image/png" in output.get("data", {}):
            kind, content = compress(output.data.pop("image/png"))
            output.data[kind] = content
            text = next(texts, None)
            output.metadata = {kind: {"alt": text}} if text else {}


def run_record(notebook, minutes: float) -> dict:
    """Returns where the outputs of a notebook come from."""
    streams = [
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "data": sorted(set(DATA_SET.findall("".join(streams)))),
        "minutes": round(minutes, 1),
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("kerasim", "keras", "numpy")},
    }


def current_commit() -> str:
    """Returns the commit of the checkout, "" if this is none."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """Returns the name of the processor, as the system gives it."""
    if os.path.exists("/proc/cpuinfo"):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.machine()


def print_summary(folder: Path, minutes: dict[str, float], headlines: dict[str, dict]) -> None:
    """Prints a table of the headline figures and minutes of each notebook, then the paths.

    The headline of a notebook that failed is empty.
    """
    names = [name for figures in headlines.values() for name in figures]
    width = max(map(len, ["figure", *names]))
    print(f"\n{'notebook':<24} {'minutes':>7}  {'figure':<{width}}  {'value':>9}")
    for notebook, figures in headlines.items():
        # Notebook and minutes stand in the first row of each notebook alone.
        start = f"{notebook:<24} {minutes[notebook]:>7.1f}"
        for name, value in figures.items() or [("failed", float("nan"))]:
            print(f"{start}  {name:<{width}}  {value:>9.4g}")
            start = " " * len(start)
    print(f"\nExecuted notebooks: {folder.resolve()}")
    print(f"Figures:            {folder.resolve() / 'figures'}")
    for name, pattern in (("SavedModel:", "**/*savedmodel"), ("Map:", "**/map.html")):
        for saved in sorted(folder.glob(pattern)):
            print(f"{name:<20}{saved.resolve()}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="notebooks", description=__doc__)
    parser.add_argument("folder", type=Path, help="working folder of all of them")
    parser.add_argument(
        "--dataset", help='"digits", for example; default: what the notebook chooses'
    )
    parser.add_argument("--keep", action="store_true", help="keep the outputs in notebooks/")
    parser.add_argument("--only", default="", help="start of the names to run, such as 02")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's log is not for readers
    if os.environ.get("KERASIM_DATA_DIR"):  # notebooks run in another folder
        os.environ["KERASIM_DATA_DIR"] = os.path.abspath(os.environ["KERASIM_DATA_DIR"])
    else:
        os.environ["KERASIM_DATA_DIR"] = str(HERE.parent / "data")
    chosen = sorted(HERE.glob(f"{arguments.only or '[0-9]'}*.ipynb"))
    if not chosen:
        parser.error(f"no notebook starts with --only {arguments.only}; pass 01, for example")
    parameters = {"dataset": arguments.dataset} if arguments.dataset else {}
    minutes, headlines = {}, {}
    for notebook in chosen:
        print(f"{notebook.name}: running", flush=True)
        start, commit = time.perf_counter(), current_commit()
        headlines[notebook.stem] = {}
        try:
            executed = run(notebook, arguments.folder, parameters)
        except papermill.PapermillExecutionError as error:
            print(error, file=sys.stderr)
        else:
            headlines[notebook.stem] = headline(executed)
            save_figures(executed)
            if arguments.keep:
                keep(executed, (time.perf_counter() - start) / 60, commit)
        minutes[notebook.stem] = (time.perf_counter() - start) / 60
        print(f"{notebook.name}: {60 * minutes[notebook.stem]:.0f} s", flush=True)
    print_summary(arguments.folder, minutes, headlines)
    return 0 if all(headlines.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
