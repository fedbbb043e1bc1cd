"""The example of the README runs, and its result is what the README promises."""

import ast
import builtins
import contextlib
import io
import re
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def blocks_of(text):
    """Returns the blocks of Python code of a page, with the same `run_dir` in each."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    return [re.sub(r'run_dir="[^"]*"', 'run_dir="runs/example"', block) for block in blocks]


(EXAMPLE,) = blocks_of(README)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The names that the example has defined, what it has printed, and its working folder."""
    matplotlib.use("Agg")
    folder = tmp_path_factory.mktemp("readme")
    names: dict = {}
    printed = io.StringIO()
    keras.utils.set_random_seed(0)
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(EXAMPLE, names)
    return names, printed.getvalue(), folder


def test_the_example_uses_only_names_that_it_defines():
    nodes = list(ast.walk(ast.parse(EXAMPLE)))
    known = {arg.arg for node in nodes if isinstance(node, ast.arguments) for arg in node.args}
    known |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)} | {*dir(builtins)}
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    known |= {name.asname or name.name for node in imports for name in node.names}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names} <= known


def test_the_fifteen_lines_reconstruct_better_than_ten_principal_components(example):
    names, _, folder = example
    images = names["digits"].x_test
    reconstructed = names["autoencoder"].predict(images, verbose=0)
    assert np.mean(np.square(reconstructed - images)) < 0.0090
    assert (folder / "runs" / "strips.png").stat().st_size > 10_000


def test_ten_principal_components_have_the_stated_error(example):
    from sklearn.decomposition import PCA

    digits = example[0]["digits"]
    train, test = (x.reshape(len(x), -1) for x in (digits.x_train, digits.x_test))
    components = PCA(10, random_state=0).fit(train)
    reconstructed = components.inverse_transform(components.transform(test))
    assert round(np.mean(np.square(reconstructed - test)), 4) == 0.0113


def test_the_fifteen_lines_export_the_encoder_that_they_trained(example):
    names, printed, folder = example
    assert "(5, 10)" in printed
    images = names["digits"].x_test[:5]
    served = names["export"].load_saved_model(folder / "runs" / "encoder")(images)
    np.testing.assert_allclose(
        served, names["embedding"].embed(names["encoder"], images), atol=1e-4
    )


def test_the_quick_start_has_the_example_of_the_readme():
    assert blocks_of((ROOT / "docs" / "quick-start.md").read_text("utf-8")) == [EXAMPLE]


def test_the_home_page_has_a_part_of_the_example_of_the_readme():
    (block,) = blocks_of((ROOT / "docs" / "index.md").read_text("utf-8"))
    lines = block.splitlines()
    imports, *others = lines
    assert imports == "from kerasim import data, embedding, models, neighbors, training"
    assert "\n".join(others) in EXAMPLE


def test_the_first_example_is_no_longer_than_promised():
    lines = [line for line in EXAMPLE.splitlines() if line.strip()]
    assert len(lines) <= 15


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_readme_names_every_notebook():
    names = [path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")]
    assert names and [name for name in names if name not in README] == []


def test_the_guide_for_contributors_and_the_makefile_have_the_same_commands():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    table = re.findall(r"^\| `make ([\w-]+)`", CONTRIBUTING, re.M)
    # `browser` is a part of `test`, and `lock` is for maintainers.
    assert sorted(table) == sorted(set(phony.split()) - {"browser", "lock"})


def test_the_readme_names_only_commands_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    named = set(re.findall(r"\bmake ([a-z-]+)`", README)) | set(
        re.findall(r"^    make (.*)$", README, re.M)
    )
    assert "demo" in named
    assert named - set(phony.split()) == set()


def test_the_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_readme_links_to_every_guide():
    guides = [*(ROOT / "docs" / "guides").glob("*.md"), ROOT / "docs" / "scale.md"]
    paths = {path.relative_to(ROOT).as_posix() for path in guides} - {"docs/guides/index.md"}
    assert [path for path in paths if f"]({path})" not in README] == []


def test_continuous_integration_runs_the_test_command_of_the_readme():
    assert "make test" in README and "`make test`" in CONTRIBUTING
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-2:] == [
        "make browser",
        "make test",
    ]


@pytest.mark.parametrize("folder", ["kerasim", "docs", "notebooks", "benchmarks", "data", "."])
def test_no_text_tells_to_install_kerasim_from_an_index(folder):
    # The package is not on an index, where the name could belong to somebody else.
    advice = "pip install " + "'kerasim"
    pattern = "*" if folder == "." else "**/*"
    files = [
        path for path in (ROOT / folder).glob(pattern) if path.suffix in (".py", ".md", ".ipynb")
    ]
    assert files
    assert [path for path in files if advice in path.read_text("utf-8")] == []
