"""What several test files share: fixtures. And the count of the rows of docs/faults.md that ran."""

import os
import tempfile
from pathlib import Path

import pytest

import kerasim

ROWS = sorted({*range(1, 81)} - {11, 72, 73, 74, 76})  # of docs/faults.md


@pytest.fixture
def visible():
    """A folder that every user can enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)
        for closed in Path(path).iterdir():
            closed.chmod(0o700)


# The files that take longest, in that order. Each is given to a worker before the shorter ones, so
# that none is left with a long file at the end. `--fast` leaves them out.
SLOW = (
    "test_learning",
    "test_notebooks",
    "test_readme",
    "test_training",
    "test_demo",
    "test_torture",
    "test_devices",
    "test_resume",
    "test_export",
    "test_models_unet",
    "test_faults",
    "test_examples",
    "test_diffusion",
    "test_cli",
    "test_models",
    "test_docs",
    "test_explorer",
    "test_keras_files",
    "test_data_folders",
    "test_models_autoencoder",
    "test_gallery",
)


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="leave out the files that take longest")


def pytest_ignore_collect(collection_path, config):
    return True if config.getoption("--fast") and collection_path.stem in SLOW else None


def pytest_collection_modifyitems(items):
    order = {name: position for position, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.stem, len(SLOW)))
    for item in items:
        mark = item.get_closest_marker("tensorflow")
        if mark and kerasim._backend() != "tensorflow":
            item.add_marker(pytest.mark.skip(reason=f"needs TensorFlow: {mark.args[0]}"))
    for item in items:  # reports carry these, from a worker of pytest-xdist too
        rows = {row for mark in item.iter_markers("fault") for row in mark.args}
        item.user_properties += [("fault", row) for row in sorted(rows)]


def pytest_terminal_summary(terminalreporter):
    said = summary(terminalreporter.stats)
    if said:
        terminalreporter.write_line(said)


def summary(stats) -> str:
    """Returns a line on the rows of the fault table that ran; "" if none was marked."""
    rows: dict = {}  # to the outcomes of their tests
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in stats.get(outcome, ()):
            for name, row in getattr(report, "user_properties", ()):
                if name == "fault":
                    rows.setdefault(row, set()).add(outcome)
    failed = [row for row in sorted(rows) if rows[row] & {"failed", "error"}]
    skipped = [row for row in sorted(rows) if rows[row] == {"skipped"}]
    parts = [f"{len(rows) - len(skipped)} of {len(ROWS)} rows ran"]
    for what, some in (("skipped", skipped), ("failed", failed)):
        if some:
            parts.append(f"{len(some)} {what}: {', '.join(map(str, some))}")
    if not failed and len(rows) > len(skipped):
        parts.append("all passed")
    return f"fault table: {', '.join(parts)}" if rows else ""
