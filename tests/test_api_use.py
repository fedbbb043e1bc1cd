"""What notebooks, benchmarks, examples and docs call exists, with the arguments that they pass.

Most of them are too long to run in `make test`, so that a rename could leave one of them behind.
"""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

import kerasim

ROOT = Path(__file__).parents[1]
FILES = [
    *(ROOT / "benchmarks").glob("*.py"),
    *(ROOT / "examples").glob("*.py"),
    *(ROOT / "notebooks").glob("[0-9]*.ipynb"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "README.md",
]


def code(path):
    """Returns the Python code in a module, a notebook or the code blocks of a page."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
        return "\n".join(line for line in lines if line.lstrip()[:1] not in ("%", "!"))
    if path.suffix == ".md":
        return "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    return text


def is_ours(value):
    name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", "") or ""
    return name.partition(".")[0] == "kerasim"


def imported(tree):
    """Yields (name, value) of each name that is imported from kerasim."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kerasim":
            for each in node.names:
                module = importlib.import_module(node.module)
                yield each.asname or each.name, getattr(module, each.name)
        elif isinstance(node, ast.Import) and any(each.name == "kerasim" for each in node.names):
            yield "kerasim", kerasim


def wrong(tree):
    """Yields what is asked of kerasim and is not there."""
    # A name that the code assigns as well, such as `projection`, may be something else.
    nodes = list(ast.walk(tree))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    known = {name: value for name, value in imported(tree) if name not in stored}

    def resolve(node):
        if isinstance(node, ast.Name):
            return known.get(node.id)
        owner = resolve(node.value) if isinstance(node, ast.Attribute) else None
        return getattr(owner, node.attr, None) if owner is not None and is_ours(owner) else None

    for node in nodes:
        if isinstance(node, ast.Attribute):
            owner = resolve(node.value)
            if owner is not None and is_ours(owner) and not hasattr(owner, node.attr):
                yield f"line {node.lineno}: {owner.__name__} has no {node.attr}"
        elif isinstance(node, ast.Call):
            function = resolve(node.func)
            if callable(function) and is_ours(function):
                taken = inspect.signature(function).parameters.values()
                names = {each.name for each in taken}
                if not any(each.kind == each.VAR_KEYWORD for each in taken):
                    given = {each.arg for each in node.keywords if each.arg}
                    for name in sorted(given - names):
                        yield f"line {node.lineno}: {function.__qualname__} takes no {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_that_is_called_exists(path):
    assert list(wrong(ast.parse(code(path)))) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data.load('digits')", "kerasim.data has no load"),
        ("data.BalancedBatches(x, y, m=2)", "BalancedBatches takes no m"),
        ("metrics.Verification.at", "Verification has no at"),
    ],
)
def test_an_old_name_is_found(line, message):
    tree = ast.parse(f"from kerasim import data, metrics\n{line}")
    assert list(wrong(tree)) == [f"line 2: {message}"]
