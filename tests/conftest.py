"""What several test files share: fixtures."""

import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def visible():
    """A folder that every user can enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)
        for closed in Path(path).iterdir():
            closed.chmod(0o700)
