"""The pages that `make docs` makes of the docstrings: whole, and with links that lead somewhere."""

import ast
import re
import subprocess
import sys

import pytest
from test_house import MODULES, ORDER, PUBLIC, methods, name_of, parse

pytest.importorskip("griffe", reason="griffelib is not installed: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, "docs/build.py", folder], check=True)
    return {path.name: path.read_text("utf-8") for path in sorted(folder.iterdir())}


def words(text):
    """Returns the words of a text, without where its links lead."""
    return " ".join(re.findall(r"\w+", re.sub(r"\]\([^)\s]*\)", " ", text)))


def test_there_are_two_pages_and_both_have_every_module_in_order(pages):
    assert list(pages) == ["api.md", "how-it-works.md"]
    for page in pages.values():
        assert re.findall(r'^## <a id="(\w+)"', page, re.M) == ORDER[:-1]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_api_page_has_every_public_name_with_its_signature(name, pages):
    node = PUBLIC[name]
    function = methods(node).get("__init__") if isinstance(node, ast.ClassDef) else node
    (shown,) = re.findall(rf'<a id="{name}"></a>.*?```python\n(.*?)\n```', pages["api.md"], re.S)
    assert node.name in shown
    if function is not None:
        arguments = ast.parse(f"def {shown}: ...").body[0].args
        assert ast.unparse(arguments) == re.sub(r"^self(, )?", "", ast.unparse(function.args))
    for method, inner in methods(node).items():
        if method[:2] != "__":
            assert bool(ast.get_docstring(inner)) == (f'id="{name}.{method}"' in pages["api.md"])


@pytest.mark.parametrize("name", PUBLIC)
def test_the_api_page_has_every_docstring_whole(name, pages):
    page = words(pages["api.md"])
    assert words(ast.get_docstring(PUBLIC[name])) in page
    for method, inner in methods(PUBLIC[name]).items():
        assert words(ast.get_docstring(inner) or "") in page, method


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) != "__main__"], ids=name_of)
def test_the_other_page_has_the_docstring_of_every_module_whole(path, pages):
    assert words(ast.get_docstring(parse(path))) in words(pages["how-it-works.md"])


def test_every_link_of_the_pages_leads_somewhere(pages):
    anchors = {name: set(re.findall(r'<a id="([^"]+)"', page)) for name, page in pages.items()}
    for here, page in pages.items():
        for target in re.findall(r"\]\(([^)\s]*)\)", page):
            file, _, anchor = target.partition("#")
            assert anchor in anchors[file or here], target
        assert len(re.findall(r'<a id="', page)) == len(anchors[here])
