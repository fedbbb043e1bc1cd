"""Comments, docstrings, messages and documents use the terms of the glossary in docs/style.md."""

import ast
import functools
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The folders with text of the project.
FOLDERS = (
    ".ci",
    ".github",
    "benchmarks",
    "data",
    "docs",
    "examples",
    "kerasim",
    "notebooks",
    "tests",
)
HIDDEN = {"__pycache__", ".ipynb_checkpoints"}

# Words to avoid, as patterns that ignore case, and the term to use instead.
GLOSSARY = {
    r"called as its class": "default name: the class name in snake_case",
    r"\bothers (have )?trained\b": "pretrained",
    r"\bheld still\b": "stays frozen",
    r"\bgives? what (it|they) (holds?|keeps?)\b": "returns the stored ...",
    r"\bat one place\b": "the embeddings have collapsed",
    r"\bfor the one it began with\b": "the original one",
    r"\ba device sees\b": "each replica sees only its shard",
    r"\b(gets?|has|have) no say\b": "is ignored",
    r"\bunlike (pairs?|images?)\b|\b(a|an|the|of|and|no|each|every) like pairs?\b": "positive or "
    "negative pair",
    r"(?<!the )\bsame pairs?\b": "positive pair",
    r"\bpictures?\b": "image",
    r"\bnumbers \(?of (a|the|its|each) codes?\b|\bcodes? of \w+ numbers?\b"
    r"|\b(\d+|two|ten|twenty|how many) numbers (an|per|for an|for each|of an) (image|code|digit)\b"
    r"|\b\d+ numbers\b": "latent dimensions, embedding size",
    r"\bredr[ae]w\w*": "reconstruct",
    r"\bmoved (images?|pictures?)\b": "shift augmentation",
    r"\bkept aside\b|\bheld[- ]out\b": "validation or test split",
    r"(?<!color[- ])\bblind(ly)?\b|\b(sigma|level|noise) (is )?told\b"
    r"|\btold (the |both )?(sigma|level|noise)\b": "known or estimated sigma",
    r"\bthe way (there|back)\b": "forward or reverse process",
    r"\bguess(es)? of (the|a|an) (clean )?images?\b": "prediction of x0",
    r"\bby heart\b": "memorizes, overfits",
    r"\bmend(s|ed|ing)?\b": "say what to do",
    r"\bin the committed run\b": "say it once, at the top of the notebook",
    r"colour|neighbour|behaviour|favour|honour|artefact|\b(licence|grey|centre)|\blearnt\b"
    r"|(label|model|travel)l(ed|ing)\b|\B(al|im|ogn|ant)is(e|es|ed|ing)\b": "American spelling",
}


def files(*suffixes) -> list[Path]:
    """Returns the files of the project that have one of these suffixes."""
    paths = [*ROOT.glob("*")]
    for folder in FOLDERS:
        paths += (ROOT / folder).rglob("*")
    paths.append(ROOT / "data" / "README.md")
    return sorted(path for path in paths if path.suffix in suffixes and not HIDDEN & {*path.parts})


def text_of_string(node: ast.AST) -> str:
    """Returns the text of a string constant or an f-string, with `{}` for each of its values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of_string(part) or "{}" for part in node.values)
    return ""


def prose_of_module(source: str, messages: bool):
    """Yields (line, text) of each comment, docstring and name of a test; and messages if asked."""
    blocks: list[list] = []  # comments on consecutive lines are one text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#: ")
            if blocks and blocks[-1][0] + blocks[-1][2] == token.start[0]:
                blocks[-1][1] += " " + text
                blocks[-1][2] += 1
            else:
                blocks.append([token.start[0], text, 1])
    yield from ((line, text) for line, text, _ in blocks)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = list(ast.walk(ast.parse(source)))
    seen = set()  # docstrings, and the parts of f-strings
    for node in nodes:
        if isinstance(node, documented) and ast.get_docstring(node):
            seen.add(node.body[0].value)
            yield node.body[0].lineno, ast.get_docstring(node)
        if getattr(node, "name", None) and node.name.startswith(("test_", "Test")):
            yield node.lineno, node.name.replace("_", " ")
        if isinstance(node, ast.JoinedStr):
            seen.update(node.values)
    if messages:
        # A string without a space is a key or a name.
        strings = [node for node in nodes if node not in seen and " " in text_of_string(node)]
        yield from ((node.lineno, text_of_string(node)) for node in strings)


def prose_of_document(text: str):
    """Yields (1, text) of a Markdown document, without the words to avoid in its glossary."""
    glossary = r"^\| not \| but \|\n\| --- \| --- \|\n(?:\|.*\n?)*"
    yield 1, re.sub(glossary, "", text, flags=re.M)


def headings_of_notebook(text: str):
    """Yields (cell, heading) of the Markdown cells of a notebook."""
    for number, cell in enumerate(json.loads(text)["cells"]):
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("#"):
                    yield number, line


def found(prose) -> list[str]:
    """Returns a line for each word of the glossary in the texts."""
    hits = []
    for line, text in prose:
        words = " ".join(re.sub(r"(?<!`)`[^`\n]+`(?!`)", "``", text).split())  # without code
        for pattern, term in GLOSSARY.items():
            for match in re.finditer(pattern, words, re.I):
                around = words[max(0, match.start() - 30) : match.end() + 30]
                hits.append(f"{line}: {match[0]!r} in {around!r}, better: {term}")
    return hits


def prose_of(path: Path):
    """Returns the function that takes the prose from files of this kind."""
    if path.suffix == ".py":
        in_tests = path.is_relative_to(ROOT / "tests")
        return functools.partial(prose_of_module, messages=not in_tests)
    return headings_of_notebook if path.suffix == ".ipynb" else prose_of_document


def test_the_prose_uses_the_terms_of_the_glossary():
    paths = files(".py", ".md", ".ipynb")
    assert len(paths) > 100
    hits = [
        f"{path.relative_to(ROOT)}:{hit}"
        for path in paths
        for hit in found(prose_of(path)(path.read_text("utf-8")))
    ]
    assert hits == [], "\n".join(hits)


def test_the_comments_of_other_files_use_the_terms_of_the_glossary():
    names = ["Makefile", "pyproject.toml", "mkdocs.yml", "CITATION.cff"]
    names += [f"kerasim/explorer.{suffix}" for suffix in ("html", "css", "js")]
    hits = [
        f"{name}:{hit}" for name in names for hit in found([(1, (ROOT / name).read_text("utf-8"))])
    ]
    assert hits == [], "\n".join(hits)


def test_every_word_to_avoid_in_the_style_guide_is_searched_for():
    guide = (ROOT / "docs" / "style.md").read_text("utf-8")
    (table,) = re.findall(r"^\| not \| but \|\n\| --- \| --- \|\n((?:\|.*\n)+)", guide, re.M)
    words = [row.split("|")[1].strip() for row in table.splitlines()]
    assert len(words) >= 10
    assert [word for word in words if not found([(1, word)])] == []


@pytest.mark.parametrize(
    "source",
    [
        "# Every picture is read.\n",
        "# Every\n# picture is read.\n",
        '"""Reads a picture."""\n',
        'def f():\n    """Images that are\n    kept aside."""\n',
        "def test_a_picture_is_read():\n    pass\n",
        'raise ValueError("This picture is damaged.")\n',
        'raise ValueError(f"The picture {path} is damaged.")\n',
    ],
)
def test_the_search_finds_a_word_to_avoid_in(source):
    assert found(prose_of_module(source, messages=True))


@pytest.mark.parametrize(
    "text",
    [
        "The same pairs are drawn in each epoch.",
        "It looks like pairs of images.",
        "A method unlike this one.",
        "An amendment of the manifest.",
        "The numbers of rows and columns.",
        "The user is told which file is missing.",
        "Color-blind readers can distinguish the colors.",
        "`picture` is the name of a function.",
        "A precise promise, which was revised and advised.",
    ],
)
def test_the_search_lets_through(text):
    assert found([(1, text)]) == []
