"""The sources of the package and of the notebooks, as syntax trees."""

import ast
import json
from pathlib import Path

import kerasim

PACKAGE = Path(kerasim.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted((PACKAGE.parent / "notebooks").glob("*.ipynb"))


def name_of(path):
    """Returns the name of a module below `kerasim`: "data", "models.vae", "" for itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def parse(path):
    """Returns the syntax tree of a module, or of all code cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
        # Magics of Jupyter are no Python.
        text = "\n".join("" if line.lstrip()[:1] in ("%", "!") else line for line in lines)
    return ast.parse(text, str(path))


def imported(tree):
    """Yields each import of either form as (dotted name, node)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def unsafe(tree):
    """Yields what could run code from a file."""
    for name, node in imported(tree):
        if set(name.split(".")) & {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle"}:
            yield f"line {node.lineno}: import of {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec", "Lambda"):
            yield f"line {node.lineno}: {node.id}"
        elif isinstance(node, ast.Attribute) and (
            node.attr in ("Lambda", "read_pickle", "to_pickle", "enable_unsafe_deserialization")
        ):
            yield f"line {node.lineno}: {node.attr}"
        elif isinstance(node, ast.keyword):
            value = getattr(node.value, "value", "no constant")
            if (node.arg == "allow_pickle" and value is not False) or (
                node.arg == "safe_mode" and value is not True
            ):
                yield f"line {node.value.lineno}: {node.arg}={value}"
        elif isinstance(node, ast.alias) and node.name == "Lambda":
            yield f"line {node.lineno}: Lambda"
