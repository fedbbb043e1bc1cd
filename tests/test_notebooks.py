"""The notebooks show on the bundled digits what their text claims, and are committed clean.

`make test` runs four of them; with KERASIM_TEST_LEARN=1 (`make test-learn`) all of them run.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

from kerasim import _artifacts
from notebooks import __main__ as notebooks
from notebooks.__main__ import COMMITTED_OUTPUTS, headline, run

NOTEBOOKS = sorted(Path("notebooks").glob("[0-9]*.ipynb"))
SOLUTIONS = sorted(Path("notebooks/solutions").glob("*.py"))
EVERY_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# The four that are fastest where nothing is trained yet.
IN_MAKE_TEST = ("01-images-and-noise", "04-denoising", "05-siamese-contrastive", "14-gallery")

# What the headline figures of a notebook have to satisfy on the digits, which margin included.
CLAIMS = {
    "01-images-and-noise": lambda figures: (
        figures["precision at 10, pixels"] > 0.5 + figures["precision at 10, chance"]
    ),
    "02-autoencoder": lambda figures: (
        figures["test MSE, original network"] < 0.75 * figures["test MSE, 10 principal components"]
        and figures["test MSE, residual network"]
        < 0.7 * figures["test MSE, 10 principal components"]
    ),
    "03-neighbors": lambda figures: (
        figures["precision at 10, residual"] > 0.15 + figures["precision at 10, untrained"]
        and figures["precision at 10, residual"] > figures["precision at 10, 10 components"]
    ),
    "04-denoising": lambda figures: (
        figures["PSNR, denoising autoencoder"] > 4 + figures["PSNR, non-local means"]
        and figures["PSNR, retrained on noisy"] < 1 + figures["PSNR, noisy image"]
        and figures["recall, denoised query"] > figures["recall, noisy query"]
    ),
    "05-siamese-contrastive": lambda figures: (
        figures["EER, with ReLU"] < 0.75 * figures["EER, pixels"]
        and figures["EER, with ReLU"] < 0.5 * figures["EER, untrained"]
        and figures["EER, with ReLU"] < 0.9 * figures["EER, as in the report"]
    ),
    "06-triplets-and-mining": lambda figures: (
        figures["MAP@R, trained"] > 0.3 + figures["MAP@R, pixels"]
        and figures["MAP@R, trained"] > 0.3 + figures["MAP@R, untrained"]
        and figures["precision@1, trained"] > 0.05 + figures["precision@1, untrained"]
    ),
    "07-verification": lambda figures: (
        figures["EER, trained"] < 0.25 * figures["EER, pixels"]
        and figures["EER, trained"] < 0.25 * figures["EER, untrained"]
        and figures["unseen classes, EER, ensemble"] < 0.9 * figures["unseen classes, EER, pixels"]
        and figures["unseen classes, EER, ensemble"]
        < 0.8 * figures["unseen classes, EER, untrained"]
    ),
    "08-without-labels": lambda figures: (
        figures["precision@1, changed queries, without labels"]
        > 0.1 + figures["precision@1, changed queries, pixels"]
        and figures["precision@1, changed queries, without labels"]
        > 0.25 + figures["precision@1, changed queries, untrained"]
        and figures["MAP@R, without labels"] > 0.02 + figures["MAP@R, untrained"]
    ),
    "09-vae": lambda figures: (
        figures["bound in nats, 20 dimensions"] < 0.8 * figures["bound in nats, mean image"]
        and figures["active dimensions"] >= 5
        and figures["PSNR of noisy images, trained on noisy"] > 2 + figures["PSNR of noisy images"]
    ),
    "10-diffusion": lambda figures: (
        figures["class asked for, large, guidance 1"] > 0.9
        and figures["accuracy of the classifier"] > 0.93
        and figures["distance to the nearest training image, samples"]
        > 0.7 * figures["distance to the nearest training image, test"]
    ),
    "11-diffusion-denoising": lambda figures: (
        figures["PSNR, diffusion, mean, estimated"] > 4 + figures["PSNR, non-local means"]
        and figures["PSNR, diffusion, mean, known sigma"]
        < 0.2 + figures["PSNR, diffusion, mean, estimated"]
        and figures["error of sigma, estimator"]
        < 0.65 * figures["error of sigma, differences alone"]
    ),
    "12-pair-features": lambda figures: (
        figures["top-2, head"] > 0.04 + figures["top-2, nothing trained"]
    ),
    "13-pair-fine-tuning": lambda figures: (
        figures["top-2, two backbones"] > 0.1 + figures["top-2, whitened"]
        and figures["top-2, linear head"] > 0.03 + figures["top-2, whitened"]
    ),
    "14-gallery": lambda figures: (
        figures["planted copies found, of 3"] == 3
        and figures["embeddings: negative pairs accepted"] < 0.1
        and figures["embeddings: positive pairs rejected"] < 0.1
        and figures["pixels: positive pairs rejected"] > 0.25
    ),
    "15-fast-training": lambda figures: (
        figures["MAP@R, fast network"] > 0.3 + figures["MAP@R, pixels"]
        and figures["precision@1, fast network"] > 0.3 + figures["precision@1, untrained"]
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working folder of all notebooks: a later one loads what an earlier one trained."""
    return tmp_path_factory.mktemp("notebooks")


# Settings with which `make test` runs a notebook in less time, `make test-learn` does without them:
# of the study of details in notebook 05 only what its other cells need.
SHORTER = {
    "05-siamese-contrastive": {"detail_steps": {"digits": 20}, "detail_seeds": {"digits": [0]}},
}
LEARN = os.environ.get("KERASIM_TEST_LEARN") == "1"


def run_on_digits(name, folder):
    """Runs a notebook in `folder` and returns the executed copy; results go to `folder/runs`."""
    parameters = {"dataset": "digits", "runs": str(folder / "runs")}
    if not LEARN:
        parameters |= SHORTER.get(name, {})
    return run(Path("notebooks") / f"{name}.ipynb", folder, parameters)


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def names_assigned(statements):
    """Returns the names that statements of a cell bind outside of functions and classes."""
    names = set()
    for statement in statements:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            names.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def names_imported(statements):
    imports = [node for node in statements if isinstance(node, (ast.Import, ast.ImportFrom))]
    aliases = [alias for node in imports for alias in node.names]
    return {alias.asname or alias.name.split(".")[0] for alias in aliases}


@pytest.mark.fault("notebook-run-again")
@pytest.mark.parametrize("name", CLAIMS)
def test_notebook_shows_its_headline_claim_on_the_digits(name, folder):
    if name not in IN_MAKE_TEST and not LEARN:
        pytest.skip("KERASIM_TEST_LEARN=1 runs it, as make test-learn does.")
    executed = run_on_digits(name, folder)
    written = {path.name for path in folder.iterdir()} - {path.name for path in NOTEBOOKS}
    assert written <= {"runs", "logs"}, "It writes outside of its folder of runs."
    assert all(cell["execution_count"] for cell in code_cells(executed))
    figures = headline(executed)
    assert all(type(value) is float for value in figures.values())
    assert CLAIMS[name](figures), figures


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_run_on_the_digits(path, tmp_path):
    if not LEARN:
        pytest.skip("KERASIM_TEST_LEARN=1 runs it, as make test-learn does.")
    done = subprocess.run(
        [sys.executable, path.resolve()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [f"exercise_{n}" in done.stdout for n in (1, 2, 3)] == [True] * 3


def test_solutions_belong_to_notebooks_that_link_to_them():
    linked = {path.stem for path in NOTEBOOKS if f"solutions/{path.stem}.py" in path.read_text()}
    assert {path.stem for path in SOLUTIONS} == linked


def test_every_notebook_has_a_claim():
    assert list(CLAIMS) == [path.stem for path in NOTEBOOKS]


@EVERY_NOTEBOOK
def test_a_notebook_without_kerasim_installs_the_wheel_beside_it(path, tmp_path, monkeypatch):
    (cell,) = [c for c in code_cells(path) if "install" in c["metadata"].get("tags", [])]
    (tmp_path / "kerasim-1.0-py3-none-any.whl").touch()
    monkeypatch.chdir(tmp_path)
    calls = []
    shell = SimpleNamespace(run_line_magic=lambda *arguments: calls.append(arguments))
    code = compile("".join(cell["source"]), path.name, "exec")
    exec(code, {"get_ipython": lambda: shell})
    assert calls == []  # kerasim is installed here
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(code, {"get_ipython": lambda: shell})
    assert calls == [("pip", "install --quiet kerasim-1.0-py3-none-any.whl")]


@EVERY_NOTEBOOK
def test_committed_notebook_is_a_clean_restart_and_run_all(path):
    text = path.read_text()
    cells = json.loads(text)["cells"]
    code = code_cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(out["output_type"] == "error" for cell in code for out in cell["outputs"])
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    assert len(text) < 1_500_000
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert not any(root in outputs for root in ("/home/", "/root/", "/tmp/", "/work/", "/Users/"))


@EVERY_NOTEBOOK
def test_every_committed_figure_has_an_alternative_text(path):
    for cell in code_cells(path):
        figures = [
            output["metadata"].get(kind, {}).get("alt", "")
            for output in cell["outputs"]
            for kind in output.get("data", {})
            if kind.startswith("image/")
        ]
        assert all(len(text) >= 40 for text in figures), cell["id"]
        # `--keep` takes the texts of the next outputs from here.
        assert figures == cell["metadata"].get("alt", [])[: len(figures)], cell["id"]


@EVERY_NOTEBOOK
def test_headline_has_an_output_unless_the_outputs_are_of_an_earlier_commit(path):
    first, *others = json.loads(path.read_text())["cells"]
    headlines = [cell for cell in others if "headline" in cell["metadata"].get("tags", [])]
    assert len(headlines) == 1
    old = any(line.startswith(COMMITTED_OUTPUTS) for line in first["source"])
    assert bool(headlines[0]["outputs"]) is not old


@EVERY_NOTEBOOK
def test_no_cell_rebinds_a_parameter_or_an_imported_name(path):
    taken: set[str] = set()
    for cell in code_cells(path):
        statements = ast.parse("".join(cell["source"])).body
        assigned = names_assigned(statements)
        assert not taken & assigned, taken & assigned
        taken |= names_imported(statements)
        if "parameters" in cell["metadata"].get("tags", []):
            taken |= assigned


def states(folder):
    """Returns the arrays of each run of notebook 05 and the time at which they were written."""
    runs = folder / "runs" / "digits"
    paths = sorted([*runs.glob("siamese-*/state"), *runs.glob("margin-*/state")])
    return {
        path.parent.name: (
            _artifacts.read_arrays(path / "arrays.npz"),
            (path / "arrays.npz").stat().st_mtime_ns,
        )
        for path in paths
    }


@pytest.mark.fault("notebook-run-again")
def test_a_notebook_that_was_stopped_trains_only_what_is_not_finished(folder):
    if not states(folder):
        run_on_digits("05-siamese-contrastive", folder)
    before = states(folder)
    assert len(before) == 3 + 4
    shutil.rmtree(folder / "runs" / "digits" / "margin-1")
    run_on_digits("05-siamese-contrastive", folder)
    after = states(folder)
    assert [name for name in after if after[name][1] != before[name][1]] == ["margin-1"]
    for name, (arrays, _) in after.items():
        for key in arrays:
            np.testing.assert_array_equal(arrays[key], before[name][0][key])


def run_command(cells, folder, monkeypatch):
    """Runs `python -m notebooks` on one notebook of these (tags, source) and returns its status."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    for tags, source in cells:
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": tags})
        notebook.cells.append(cell)
    nbformat.write(notebook, folder / "01-small.ipynb")
    monkeypatch.setattr(notebooks, "HERE", folder)
    monkeypatch.setattr("sys.argv", ["notebooks", str(folder / "out")])
    return notebooks.main()


def test_command_prints_headlines_and_no_log_line(tmp_path, monkeypatch, capfd):
    log = "I0000 00:00:1795853835.313425    8720 port.cc:153] oneDNN custom operations are on."
    cells = [
        (["parameters"], "runs = 'elsewhere'"),
        ([], f"import os, sys\nos.write(2, b'{log}\\n')\nsys.stderr.write('{log}\\n')"),
        (["headline"], "{'error, trained': 0.25, 'folder': float(runs == '.')}"),
    ]
    assert run_command(cells, tmp_path, monkeypatch) == 0
    assert headline(tmp_path / "out" / "01-small.ipynb") == {"error, trained": 0.25, "folder": 1.0}
    printed = capfd.readouterr()
    assert "error, trained" in printed.out and "0.25" in printed.out
    assert "oneDNN" not in printed.out + printed.err
    assert "Kernel" not in printed.out + printed.err
    outputs = [cell["outputs"] for cell in code_cells(tmp_path / "out" / "01-small.ipynb")]
    assert "oneDNN" not in json.dumps(outputs)


DRAW = """
import matplotlib.pyplot as plt
import numpy as np

plt.figure(figsize=(4, 3))
plt.plot([0, 1, 0])
plt.show()
plt.figure(figsize=(4, 3))
waves = np.sin(np.arange(300)[:, None, None] / [40, 60, 90] + np.arange(400)[:, None] / 50)
plt.imshow(0.5 + 0.3 * waves + np.random.default_rng(0).normal(0, 0.02, waves.shape))
plt.axis("off")
print("Data set: cifar10, from /elsewhere/cifar10.npz.")
"""


def test_kept_outputs_have_compressed_figures_alternative_texts_and_a_record(tmp_path, monkeypatch):
    cells = [(["parameters"], "runs = 'elsewhere'"), ([], DRAW), (["headline"], "{'error': 0.5}")]
    monkeypatch.setattr("sys.argv", [])
    run_command(cells, tmp_path, monkeypatch)  # which writes the notebook, too
    notebook = nbformat.read(tmp_path / "01-small.ipynb", 4)
    notebook.cells[1].metadata["alt"] = ["A line that rises and falls", "Waves of many colors"]
    nbformat.write(notebook, tmp_path / "01-small.ipynb")
    command = ["notebooks", str(tmp_path / "out"), "--keep"]
    monkeypatch.setattr("sys.argv", command)
    assert notebooks.main() == 0
    kept = json.loads((tmp_path / "01-small.ipynb").read_text())
    outputs = [output for output in kept["cells"][1]["outputs"] if "data" in output]
    kinds = [[kind for kind in out["data"] if kind.startswith("image/")] for out in outputs]
    assert kinds == [["image/png"], ["image/jpeg"]]
    texts = [out["metadata"][kind[0]]["alt"] for out, kind in zip(outputs, kinds, strict=True)]
    assert texts == ["A line that rises and falls", "Waves of many colors"]
    record = kept["metadata"]["kerasim"]
    assert record["data"] == ["cifar10"] and 0 < record["minutes"] < 5
    assert record["cores"] == os.cpu_count() and record["processor"]
    assert "/elsewhere" not in json.dumps([cell["outputs"] for cell in kept["cells"]])
    assert "papermill" not in kept["metadata"]


def test_command_exits_with_an_error_if_a_notebook_fails(tmp_path, monkeypatch, capfd):
    cells = [(["parameters"], "seed = 0"), ([], "raise ValueError('this cell is wrong')")]
    assert run_command(cells, tmp_path, monkeypatch) == 1
    printed = capfd.readouterr()
    assert "this cell is wrong" in printed.err
    assert "failed" in printed.out
