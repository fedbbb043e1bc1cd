"""Fixtures, the order of the test files, and the count of the faults of docs/faults.md that ran."""

import os
import tempfile
from pathlib import Path

import pytest

import kerasim
from tests.helpers import fault_table


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
    "test_guides",
    "test_training",
    "test_readme",
    "test_demo",
    "test_torture",
    "test_devices",
    "test_resume",
    "test_export",
    "test_faults",
    "test_models_unet",
    "test_global_settings",
    "test_examples",
    "test_diffusion",
    "test_cli",
    "test_models",
    "test_docs",
    "test_wheel",
    "test_explorer",
    "test_explorer_page",
    "test_keras_files",
    "test_data_folders",
    "test_models_autoencoder",
    "test_models_signals",
    "test_float64_oracle",
    "test_gallery",
    "test_gallery_threads",
    "test_plots",
    "test_quiet",
    "test_gallery_files",
    "test_models_vae",
    "test_projection",
    "test_data_download",
    "test_models_pretrained",
    "test_models_siamese",
    "test_models_hub",
    "test_metrics",
    "test_artifacts",
    "test_data_augmentation",
    "test_models_embedder",
    "test_explaining",
    "test_overwriting",
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
    known = set(fault_table.names())
    for item in items:  # reports carry these, from a worker of pytest-xdist too
        faults = {name for mark in item.iter_markers("fault") for name in mark.args}
        if unknown := faults - known:
            raise pytest.UsageError(
                f"{item.nodeid} is marked with {', '.join(sorted(unknown))}, which docs/faults.md "
                "does not name. Correct the mark, or add the fault to the table."
            )
        item.user_properties += [("fault", name) for name in sorted(faults)]


def pytest_terminal_summary(terminalreporter):
    said = fault_table.summary(terminalreporter.stats)
    if said:
        terminalreporter.write_line(said)
