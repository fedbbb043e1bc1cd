"""Adds the pages of the site that are made of other files of the repository.

These are the API reference (one page for each public module), the page of the command line, the
notebooks, and the documents in the root folder. Relative links between files of the repository are
changed to links between pages. Public names in code font become links to the API reference.
"""

import ast
import json
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]

# Documents that are pages of the site, by their path in the repository.
DOCUMENTS = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def public_modules() -> list[str]:
    """Returns the names of the public modules, read from the package without importing it."""
    source = (ROOT / "kerasim" / "__init__.py").read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_MODULES":
            return sorted(ast.literal_eval(node.value))
    raise LookupError("kerasim/__init__.py defines no _MODULES.")


def public_names() -> dict[str, list[str]]:
    """Returns the public names of each module, as `__all__` lists them."""
    package = griffe.load("kerasim", search_paths=[ROOT], docstring_parser="google")
    return {module: sorted(package[module].exports or ()) for module in public_modules()}


NAMES = public_names()


# The navigation.


def on_config(config):
    """Adds the generated pages to the navigation."""
    sections = {
        "Notebooks": ["notebooks/index.md", *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)],
        "API reference": ["api/index.md", *({m: f"api/{m}.md"} for m in NAMES)],
    }
    for entry in config.nav:
        for title in entry:
            entry[title] = sections.get(title, entry[title])
    return config


# The pages.


def on_files(files: Files, config) -> Files:
    """Adds the generated pages."""
    pages: dict[str, str | bytes] = {
        page: (ROOT / document).read_text("utf-8") for document, page in DOCUMENTS.items()
    }
    pages |= {"api/index.md": _api_index(), "notebooks/index.md": _notebook_index()}
    pages |= {f"api/{module}.md": _api_page(module) for module in NAMES}
    for notebook in NOTEBOOKS:
        pages |= _notebook_files(notebook)
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def _module_file(module: str) -> Path:
    package = ROOT / "kerasim" / module / "__init__.py"
    return package if package.exists() else ROOT / "kerasim" / f"{module}.py"


def _api_index() -> str:
    rows = [f"| [`{m}`]({m}.md) | {_first_sentence(_module_file(m))} |" for m in NAMES]
    return "\n".join(
        [
            "# API reference",
            "",
            "One page for each public module, made of its docstrings. A module imports only what it"
            " needs: `import kerasim` does not import Keras.",
            "",
            "| module | what it holds |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def _api_page(module: str) -> str:
    if module == "cli":
        return _command_line_page()
    directives = [f"::: kerasim.{module}\n    options:\n      members: false"]
    directives[0] += "\n      heading_level: 1\n      show_symbol_type_heading: false"
    directives += [f"::: kerasim.{module}.{name}" for name in NAMES[module]]
    return "\n\n".join(directives) + "\n"


def _command_line_page() -> str:
    """Returns the help of `kerasim` and of each command."""
    command = [sys.executable, "-m", "typer", "kerasim.cli", "utils", "docs", "--name", "kerasim"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    text = text.replace("# `kerasim`", "# The command line {#kerasim.cli.main}", 1)
    # Where the summary of a command is cut off, its own section has all of it.
    summaries = re.findall(r"^## `kerasim (\w+)`\n\n(.*?)(?:\n\n|\. )", text, re.M | re.S)
    for name, summary in summaries:
        line = f"* [`{name}`](#kerasim-{name}): {summary.rstrip('.')}."
        text = re.sub(rf"^\* `{name}`: .*$", lambda _, line=line: line, text, count=1, flags=re.M)
    return text


def _notebook_index() -> str:
    rows = []
    for notebook in NOTEBOOKS:
        title = re.search(r'"# (?:\d+ · )?(.*?)(?:\\n)?"', notebook.read_text("utf-8"))[1]
        rows.append(f"| [{notebook.stem}]({notebook.stem}.md) | {title} |")
    return "\n".join(
        [
            "# Notebooks",
            "",
            "The notebooks of the folder `notebooks`, with the outputs that are stored in them. "
            "`make notebooks-demo` runs all of them on the bundled digits, `make notebooks` on the "
            "full data sets. [Background](../docs/background.md) describes the student reports "
            "that they go back to.",
            "",
            "| notebook | title |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def _notebook_files(notebook: Path) -> dict[str, str | bytes]:
    """Returns the page of a notebook and the images of its outputs."""
    text, resources = MarkdownExporter().from_filename(
        str(notebook), resources={"unique_key": notebook.stem}
    )
    text = re.sub(r"<style scoped>.*?</style>", "", text, flags=re.S)
    alternatives = iter(_alternative_texts(notebook))
    text = re.sub(r"!\[(?:png|svg|jpeg)\]", lambda _: f"![{next(alternatives)}]", text)
    # A page that the notebook writes and shows is not in the repository.
    text = re.sub(r"<iframe.*?</iframe>", "*The notebook shows the page here.*", text, flags=re.S)
    # A file name of an output has the name of the page as its prefix.
    images = {f"notebooks/{name}": data for name, data in resources["outputs"].items()}
    return {f"notebooks/{notebook.stem}.md": text, **images}


def _alternative_texts(notebook: Path) -> list[str]:
    """Returns the alternative text of each figure of a notebook, in order."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [
        output["metadata"].get(kind, {}).get("alt", "Output of the cell above")
        for output in outputs
        for kind in output.get("data", {})
        if kind.startswith("image/")
    ]


# Links.


def _repository_path(page: str) -> str:
    """Returns where the source of a page is in the repository."""
    for document, target in DOCUMENTS.items():
        if target == page:
            return document
    return page if page.startswith("notebooks/") else f"docs/{page}"


def _page_of(path: str) -> str | None:
    """Returns the page of a file of the repository; None if the site has no page of it."""
    if path in DOCUMENTS:
        return DOCUMENTS[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("notebooks/") and path.endswith((".ipynb", ".md")):
        return re.sub(r"\.ipynb$", ".md", path)
    return None


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Changes links between files of the repository to links between pages of the site."""
    here = _repository_path(page.file.src_uri)

    def page_link(match: re.Match) -> str:
        text, path, anchor = match["text"], match["path"], match["anchor"] or ""
        if match["code"]:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        target = _page_of(path)
        if target is None:
            # A file of the repository that has no page is named without a link. A link to nothing
            # stays, so that the strict build reports it.
            return text if (ROOT / path).exists() else match[0]
        target = posixpath.relpath(target, posixpath.dirname(page.file.src_uri))
        return f"[{text}]({target}{anchor})"

    code = r"(?P<code>^```.*?^```|^ {4}[^\n]*|`[^`\n]*`)"
    link = r"(?<!!)\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
    return re.sub(f"{code}|{link}", page_link, markdown, flags=re.S | re.M)


def on_page_content(html: str, page, config, files: Files) -> str:
    """Links public names in code font, such as `training.fit`, to the API reference."""
    module = Path(page.file.src_uri).stem if page.file.src_uri.startswith("api/") else None

    def name_link(match: re.Match) -> str:
        if match["skipped"]:
            return match[0]
        found = _find(match["name"], module)
        if found is None:
            return match[0]
        target, anchor = found
        url = get_relative_url(files.get_file_from_path(target).url, page.url)
        return f'<a href="{url}{anchor}">{match[0]}</a>'

    skipped = r"(?P<skipped><(?P<tag>a|pre|h\d)\b.*?</(?P=tag)>)"
    name = r"<code>(?P<name>[A-Za-z][\w.]*)(?:\([^<]*\))?</code>"
    return re.sub(f"{skipped}|{name}", name_link, html, flags=re.S)


def _find(name: str, module: str | None) -> tuple[str, str] | None:
    """Returns the page and anchor of a public name; None if there is none."""
    first, _, rest = name.removeprefix("kerasim.").partition(".")
    if first in NAMES and rest.partition(".")[0] in NAMES[first]:
        rest = rest.partition(".")[0]  # a method is found at its class
        return f"api/{first}.md", f"#kerasim.{first}.{rest}"
    if module in NAMES and first in NAMES[module]:
        return f"api/{module}.md", f"#kerasim.{module}.{first}"
    if name == f"kerasim.{first}" and first in NAMES:
        return f"api/{first}.md", ""
    # A class is also found by its name alone.
    modules = [module for module, names in NAMES.items() if first in names and first[0].isupper()]
    return (f"api/{modules[0]}.md", f"#kerasim.{modules[0]}.{first}") if modules else None
