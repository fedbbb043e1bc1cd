"""The documentation site: it builds without a warning, and is complete and self-contained."""

import ast
import builtins
import functools
import json
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import kerasim

griffe = pytest.importorskip("griffe", reason="griffe is not installed")
pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")

ROOT = Path(__file__).parents[1]
PACKAGE = griffe.load("kerasim", search_paths=[ROOT])
PUBLIC = [
    f"kerasim.{module}.{name}"
    for module in kerasim._MODULES
    for name in PACKAGE[module].exports or ()
]
GUIDES = [ROOT / "docs/quick-start.md", *sorted((ROOT / "docs/guides").glob("*.md"))]
# What a browser loads when it opens a page, as opposed to a link that is followed.
LOADED = {"src", "srcset", "poster", "data"}


class _Page(HTMLParser):
    """The anchors, the links and the loaded addresses of an HTML page."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key == "id" or (tag == "a" and key == "name"):
                self.anchors.add(value)
            elif key in LOADED or (key == "href" and tag == "link"):
                self.loaded.append(value)
            elif key == "href" and tag == "a":
                self.links.append(value)


def code_of(guide: Path) -> list[ast.AST]:
    """Returns the syntax nodes of the Python code of a page."""
    blocks = re.findall(r"^```python\n(.*?)^```", guide.read_text("utf-8"), re.S | re.M)
    return list(ast.walk(ast.parse("\n".join(blocks))))


@functools.cache
def headings_of(notebook: str) -> set[str]:
    """Returns the titles of the sections of a notebook."""
    cells = json.loads((ROOT / "notebooks" / notebook).read_text("utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return set(re.findall(r"^#+ (.+)$", "\n".join(texts), re.M))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """The pages of the site by their path in it."""
    return {path.relative_to(site).as_posix(): _Page(path) for path in site.rglob("*.html")}


def test_every_public_name_has_an_anchor_on_its_api_page(pages):
    anchors = set().union(*(pages[f"api/{module}.html"].anchors for module in kerasim._MODULES))
    assert [name for name in PUBLIC if name not in anchors] == []


def test_every_public_class_and_function_has_a_docstring():
    missing = []
    for name in PUBLIC:
        item = PACKAGE[name.removeprefix("kerasim.")]
        item = item.final_target if item.is_alias else item
        if not item.is_attribute and not item.has_docstring:
            missing.append(name)
    assert missing == []


def test_examples_of_docstrings_are_shown_as_code(site):
    for path in (site / "api").glob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", path.read_text("utf-8"), flags=re.S)
        assert "<blockquote>" not in text and "&gt;&gt;&gt;" not in text, path.name


def test_every_notebook_has_a_page_with_its_figures(pages):
    for notebook in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        page = pages[f"notebooks/{notebook.stem}.html"]
        figures = [address for address in page.loaded if address.startswith(notebook.stem)]
        stored = re.findall(r'"image/(?:png|jpeg)": "', notebook.read_text("utf-8"))
        assert len(figures) == len(stored), notebook.stem


def test_no_page_loads_anything_from_another_server(pages):
    found = {
        (name, address)
        for name, page in pages.items()
        for address in page.loaded
        if urlsplit(address).netloc
    }
    assert found == set()


def test_no_style_sheet_loads_anything_from_another_server(site):
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        text = sheet.read_text("utf-8")
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\s]*", text) == [], (
            sheet.name
        )


def test_every_internal_link_leads_to_a_file_and_an_anchor(site, pages):
    broken = []
    for name, page in pages.items():
        if name == "404.html":  # its links begin with a slash, since it is shown for any address
            continue
        for address in page.links + page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            target = path if parts.path else name
            if target in pages:
                found = unquote(parts.fragment) in pages[target].anchors
            else:
                found = (site / target).is_file()
            if not found:
                broken.append((name, address))
    assert broken == []


def test_the_citation_names_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {kerasim.__version__}\n" in citation


def test_a_link_to_a_notebook_leads_to_its_page(pages):
    assert "notebooks/06-triplets-and-mining.html" in pages["index.html"].links
    assert "../background.html" in pages["notebooks/index.html"].links


def test_the_lines_of_the_reports_are_numbered_and_answered_by_sections_that_exist():
    text = (ROOT / "docs/background.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 100))
    broken = []
    for number, row in rows:
        # A section: [notebook 05, *Training*](../notebooks/05-siamese-contrastive.ipynb).
        link = r"\[notebook (\d\d), \*([^*]+)\*\]\(\.\./notebooks/(\1-[\w-]+\.ipynb)\)"
        links = re.findall(link, row)
        assert len(links) == row.count("../notebooks/"), f"line {number}: a link without a section"
        broken += [
            (number, name, title) for _, title, name in links if title not in headings_of(name)
        ]
    assert broken == []


def test_a_name_in_code_font_links_to_the_api_reference(pages):
    assert "../api/losses.html#kerasim.losses.InfoNCELoss" in pages["guides/pairs.html"].links


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_uses_only_names_that_it_defines(guide):
    nodes = code_of(guide)
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    # `import skimage.data` defines `skimage`.
    imported = [name.asname or name.name for node in imports for name in node.names]
    defined = {name.split(".")[0] for name in imported}
    defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    defined |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names} <= defined | set(dir(builtins))


def test_no_two_pages_train_in_one_folder():
    """The code of one page would stop at the run of another, with different settings."""
    pages = [ROOT / "README.md", ROOT / "docs/index.md", *GUIDES]
    folders = [
        folder
        for page in pages
        for folder in set(re.findall(r'run_dir="(.*?)"', page.read_text("utf-8")))
    ]
    assert len(folders) > 15
    assert sorted(folders) == sorted(set(folders))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_uses_only_public_names(guide):
    nodes = code_of(guide)
    imported = {
        name.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "kerasim"
        for name in node.names
    }
    used = {
        f"kerasim.{node.value.id}.{node.attr}"
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id in imported
    }
    used |= {
        f"{node.module}.{name.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module.startswith("kerasim.")
        for name in node.names
    }
    assert used - set(PUBLIC) == set()
