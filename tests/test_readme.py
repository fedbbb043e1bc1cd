"""What the README shows, runs."""

import ast
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

README = Path("README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    return {}


# Of Ray.
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_examples_of_the_readme_run_one_after_the_other(namespace, capsys):
    for n in range(30):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 50, 3), dtype="uint8")
        Path("my-pictures", f"class-{n % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(f"my-pictures/class-{n % 2}/{n}.png")
        for side in ("left", "right"):
            Path("my-pairs", side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:, ::-1] if side == "right" else pixels).save(
                f"my-pairs/{side}/{n}.png"
            )
    Path("my-pairs", "pairs.csv").write_text(
        "\n".join(["left,right", *(f"{n},{n}" for n in range(30))])
    )
    first, second, gallery, third, fourth, fifth, cluster = BLOCKS
    exec(first, namespace)
    assert "(5, 10)" in capsys.readouterr().out
    assert Path("runs/strips.png").stat().st_size > 10_000
    exec(second, namespace)
    assert namespace["indices"].shape == (30, 11)
    exec(gallery, namespace)
    assert len(namespace["found"]) == 10 and namespace["found"].loc[0, "distance"] < 1e-6
    assert "class-1/29.png" in Path("runs/map.html").read_text()
    exec(third, namespace)
    rates = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert rates["accuracy"] > 0.6
    exec(fourth, namespace)
    assert namespace["drawn"].shape == (10, 32, 32, 1)
    error = np.square(namespace["cleaned"] - namespace["digits"].x_test[:10]).mean()
    assert error < 0.5 * 0.25**2
    exec(fifth, namespace)
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1
    exec(cluster, namespace)
    alone = namespace["neighbors"].NeighborIndex("cosine").fit(namespace["codes"])
    distances, _ = alone.query(namespace["codes"][:5], k=10)
    np.testing.assert_array_equal(namespace["distances"], distances)
    namespace["distribute"]._ray().shutdown()


def test_the_first_example_is_no_longer_than_promised():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not Path(link).exists()] == []


def test_the_readme_names_every_notebook():
    names = [path.stem for path in Path("notebooks").glob("[0-9]*.ipynb")]
    assert names and [name for name in names if name not in README] == []
