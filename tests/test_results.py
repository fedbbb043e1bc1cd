"""README, the page of results and the notebooks state what the notebooks record."""

import shutil
from pathlib import Path

import nbformat
import pytest

from notebooks import results

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the files that quote results, in place of those of the repository."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "docs").mkdir()
    for path in (ROOT / "notebooks").glob("0[12]*.ipynb"):
        shutil.copy(path, tmp_path / "notebooks")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(results, "HERE", tmp_path / "notebooks")
    monkeypatch.setattr(results, "README", tmp_path / "README.md")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "docs" / "results.md")
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["results", *arguments])
    return results.main()


def test_no_committed_file_states_another_result_than_the_notebooks_record(monkeypatch, capsys):
    assert run(monkeypatch) == 0, capsys.readouterr().out


def test_results_that_were_edited_are_named_and_written_anew(copied, monkeypatch, capsys):
    assert run(monkeypatch, "--write") == 0
    assert run(monkeypatch) == 0
    page = copied / "docs" / "results.md"
    written = page.read_text()
    page.write_text(written.replace("| precision at 10, chance | 0.1 |", "| chance | 0.2 |"))
    capsys.readouterr()
    assert run(monkeypatch) == 1
    printed = capsys.readouterr().out
    assert "-| chance | 0.2 |" in printed and "+| precision at 10, chance | 0.1 |" in printed
    assert "make figures WRITE=1" in printed
    assert run(monkeypatch, "--write") == 0
    assert page.read_text() == written


def test_a_notebook_that_states_another_time_is_named_and_corrected(copied, monkeypatch, capsys):
    run(monkeypatch, "--write")
    (path,) = (copied / "notebooks").glob("01*.ipynb")
    notebook = nbformat.read(path, 4)
    notebook.metadata["kerasim"]["minutes"] = 12.34
    nbformat.write(notebook, path)
    assert run(monkeypatch) == 1
    assert "took 12 minutes" in capsys.readouterr().out
    assert run(monkeypatch, "--write") == 0
    first = nbformat.read(path, 4).cells[0].source
    assert "took 12 minutes on" in first and "The digits take" in first
    assert "| 12 |" in (copied / "README.md").read_text()
    assert run(monkeypatch) == 0


def test_a_notebook_without_a_sentence_on_its_run_is_refused(copied, monkeypatch):
    (path,) = (copied / "notebooks").glob("01*.ipynb")
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source = notebook.cells[0].source.replace("the committed run", "this run")
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match="01-images-and-noise.ipynb has no sentence on its run"):
        run(monkeypatch)
