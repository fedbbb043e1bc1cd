"""Each notebook runs from top to bottom on the embedded digits, one epoch of everything."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kerasim import artifacts
from notebooks.__main__ import capped, run

NOTEBOOKS = sorted(Path("notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.fault(71)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, folder):
    executed = run(path, folder, {**capped(path, 1), "dataset": "digits"})
    cells = [c for c in json.loads(executed.read_text())["cells"] if c["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells if "".join(cell["source"]).strip())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_a_clean_restart_and_run_all(path):
    text = path.read_text()
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(out["output_type"] == "error" for cell in code for out in cell["outputs"])
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    assert len(text) < 1_500_000
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert not any(root in outputs for root in ("/home/", "/root/", "/tmp/", "/work/", "/Users/"))


def states(folder):
    """Returns the arrays of each training run below a folder."""
    return {
        path.parent.name: artifacts.read_arrays(path / "arrays.npz")
        for path in sorted(folder.glob("digits/siamese-*/state"))
    }


@pytest.mark.fault(71)
def test_a_notebook_that_was_stopped_half_way_does_again_what_is_not_done_alone(folder):
    path = next(path for path in NOTEBOOKS if path.stem == "05-siamese-contrastive")
    parameters = {**capped(path, 1), "dataset": "digits"}
    if not states(folder):
        run(path, folder, parameters)
    before = states(folder)
    first, *others = before
    shutil.rmtree(folder / "digits" / first)
    said = run(path, folder, parameters).read_text()
    assert others
    for name in others:
        assert f"{name}: already at epoch 1" in said
    assert f"{first}: already at epoch" not in said
    for name, arrays in states(folder).items():
        for key in arrays:
            np.testing.assert_array_equal(arrays[key], before[name][key])
