"""Quotes the committed notebooks wherever the repository states their results.

`python -m notebooks.results` fails if `README.md`, `docs/results.md` or the time that a notebook
states at its top differs from what the outputs and metadata of the notebooks record, and prints
the differences. With `--write` it writes what is recorded.
"""

import argparse
import difflib
import re
import sys
import textwrap
from pathlib import Path

import nbformat

from notebooks.__main__ import DATA_SET, HERE, headline

README = HERE.parent / "README.md"
RESULTS = HERE.parent / "docs" / "results.md"
DATA_NAMES = {
    "cifar10": "CIFAR-10 (a JPEG copy)",
    "digits": "the bundled digits",
    "mnist": "MNIST",
    "tll": "Totally-Looks-Like",
}
# The table of README stands between these two lines.
TABLE_START = "<!-- The table of notebooks, written by: make figures WRITE=1 -->"
TABLE_END = "<!-- End of the table of notebooks -->"
# The sentence on the committed run at the top of a notebook; a period may stand in a number.
TIME = re.compile(r"\*\*Time:\*\* the committed run (?:[^.]|\.\d)*\.")
PREFACE = """# Results of the notebooks

Figures of the outputs that are committed with the notebooks, copied from them by `make figures`.
The notebooks define the figures and show their confidence intervals. Where no time is given, the
notebook was run before times were recorded. [Benchmarks](../benchmarks/README.md) of speed and
memory have a page of their own.
"""


class Committed:
    """A committed notebook.

    Attributes:
        path: The file.
        content: The notebook as nbformat reads it.
        title: Its heading, without the number.
        record: What `notebooks.run_record` has stored about the run; empty for older outputs.
    """

    def __init__(self, path: Path):
        self.path = path
        self.content = nbformat.read(path, 4)
        self.title = self.content.cells[0].source.splitlines()[0].partition(" · ")[2]
        self.record = self.content.metadata.get("kerasim", {})

    @property
    def data(self) -> str:
        """The data sets of the outputs, for readers."""
        outputs = [out for cell in self.content.cells for out in cell.get("outputs", [])]
        names = set(DATA_SET.findall("".join(out.get("text", "") for out in outputs)))
        return " and ".join(DATA_NAMES[name] for name in sorted(names))

    @property
    def minutes(self) -> str:
        """The minutes of the run, without decimals from ten on; empty if they are not recorded."""
        minutes = self.record.get("minutes")
        return "" if minutes is None else f"{minutes:.{0 if minutes >= 10 else 1}f}"

    @property
    def machine(self) -> str:
        """The number of cores and the processor of the run."""
        cores = {1: "one core", 2: "two cores"}.get(n := self.record["cores"], f"{n} cores")
        processor = re.sub(r"\((?:R|TM)\)", "", self.record["processor"])
        return f"{cores} ({' '.join(processor.split())})"

    @property
    def header(self) -> str:
        """The first cell, with the time of the run as it is recorded.

        Raises:
            ValueError: If there is a record, but no sentence in which to state it.
        """
        source = self.content.cells[0].source
        if not self.record:
            return source
        if not TIME.search(source):
            raise ValueError(
                f"{self.path.name} has no sentence on its run. Write '**Time:** the committed run "
                ".' into its first cell, and run this command again with --write."
            )
        run = (
            f"**Time:** the committed run used {self.data} and took {self.minutes} minutes on "
            f"{self.machine}."
        )
        paragraphs = TIME.sub(lambda _: run, source).split("\n\n")
        return "\n\n".join(
            textwrap.fill(text, 115, break_long_words=False) if text.startswith(run) else text
            for text in paragraphs
        )


def table(notebooks: list[Committed]) -> str:
    """Returns the table of the notebooks in `README.md`."""
    rows = [
        f"| [{n.path.stem}](notebooks/{n.path.name}) | {n.title} | {n.data} | {n.minutes} |"
        for n in notebooks
    ]
    head = "| notebook | question | data of its outputs | minutes |\n| --- | --- | --- | --- |"
    return "\n".join([head, *rows])


def results(notebooks: list[Committed]) -> str:
    """Returns the page with the headline figures of all notebooks."""
    parts = [PREFACE]
    for n in notebooks:
        link = f"[Notebook {n.path.stem[:2]}](../notebooks/{n.path.name})"
        run = f"{link}, {n.data}"
        if n.record:
            run += f", {n.minutes} minutes on {n.machine}, {n.record['date']}"
        rows = [f"| {name} | {value:g} |" for name, value in headline(n.path).items()]
        lines = [f"## {n.title}", "", f"{run}.", "", "| figure | value |", "| --- | --- |", *rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def quoted(notebooks: list[Committed]) -> dict[Path, tuple[str, str]]:
    """Returns for each file that quotes results what it says, and what it has to say."""
    texts = {n.path: (n.content.cells[0].source, n.header) for n in notebooks}
    readme = README.read_text("utf-8")
    before, _, rest = readme.partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    texts[README] = (
        readme,
        f"{before}{TABLE_START}\n\n{table(notebooks)}\n\n{TABLE_END}{after}",
    )
    known = RESULTS.read_text("utf-8") if RESULTS.exists() else ""
    texts[RESULTS] = (known, results(notebooks))
    return texts


def main() -> int:
    parser = argparse.ArgumentParser(prog="notebooks.results", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what is recorded")
    write = parser.parse_args().write
    notebooks = [Committed(path) for path in sorted(HERE.glob("[0-9]*.ipynb"))]
    different = {path: texts for path, texts in quoted(notebooks).items() if len(set(texts)) > 1}
    for path, (known, text) in different.items():
        lines = difflib.unified_diff(
            known.splitlines(), text.splitlines(), path.name, "recorded", lineterm="", n=0
        )
        print("\n".join(lines))
    if not write:
        if different:
            print("These figures differ from those recorded. Run: make figures WRITE=1")
        return int(bool(different))
    for notebook in notebooks:
        if notebook.path in different:
            notebook.content.cells[0].source = notebook.header
            nbformat.write(notebook.content, notebook.path)
    for path in different.keys() & {README, RESULTS}:
        path.write_text(different[path][1], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
