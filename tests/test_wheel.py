"""The wheel works in a new environment that does not have the repository."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import kerasim

pytest.importorskip("hatchling", reason="hatchling is not installed: pip install -e '.[dev]'")

ROOT = Path(__file__).parents[1]
PACKAGE = Path(kerasim.__file__).parent
(QUICK_START,) = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/quick-start.md").read_text("utf-8"), re.S | re.M
)
BUILD = "import sys; from hatchling import build; print(build.build_wheel(sys.argv[1]))"


def run(*command, **settings) -> str:
    """Returns what a command prints; if it fails, the test fails with its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the repository, built without a network connection."""
    folder = tmp_path_factory.mktemp("wheel")
    name = run(sys.executable, "-c", BUILD, str(folder), cwd=ROOT).splitlines()[-1]
    return folder / name


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a new environment with the wheel.

    The dependencies are those of the environment that runs the tests. Python does not read the
    `.pth` files there, so that an editable installation of kerasim in it is not found.
    """
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    interpreter = environment / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", str(interpreter), "--disable-pip-version-check"),
        *("install", "--quiet", "--no-deps", "--no-index", str(wheel)),
    )
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return interpreter


@pytest.fixture
def elsewhere(tmp_path):
    """The settings of a process in another working folder, with an empty home folder."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    hidden = ("PYTHONPATH", "KERASIM_DATA_DIR", "KERAS_HOME", "VIRTUAL_ENV")
    variables = {key: value for key, value in os.environ.items() if key not in hidden}
    variables |= {"HOME": str(tmp_path / "home"), "MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {"cwd": tmp_path / "work", "env": variables}


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    files = [path for path in PACKAGE.rglob("*") if path.is_file()]
    expected = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in files
        if "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    page = {f"kerasim/explorer.{suffix}" for suffix in ("html", "css", "js")}
    assert {"kerasim/py.typed", *page} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_wheel_names_its_version_its_license_and_its_command(wheel):
    archive = zipfile.ZipFile(wheel)
    information = f"kerasim-{kerasim.__version__}.dist-info"
    assert "kerasim = kerasim.cli:main" in archive.read(f"{information}/entry_points.txt").decode()
    assert f"\nVersion: {kerasim.__version__}\n" in archive.read(f"{information}/METADATA").decode()
    assert "Apache License" in archive.read(f"{information}/licenses/LICENSE").decode()


def test_the_installed_package_is_not_that_of_the_repository(python, elsewhere):
    code = "import kerasim; print(kerasim.__file__, kerasim.__version__)"
    file, version = run(python, "-c", code, **elsewhere).split()
    assert Path(file).is_relative_to(python.parents[1])
    assert not Path(file).is_relative_to(ROOT)
    assert version == kerasim.__version__


def test_the_installed_command_prints_its_help(python, elsewhere):
    assert "calibrate" in run(python.parent / "kerasim", "--help", **elsewhere)


# Appended to the quick start, whose process has imported Keras: each takes seconds to start.
MORE = """
import kerasim
from kerasim.explorer import write_explorer

write_explorer("map.html", digits.x_test[:8], embedding.embed(encoder, digits.x_test[:8])[:, :2])
print(kerasim.__file__)
"""


def test_the_quick_start_and_the_explorer_run_with_the_installed_package(python, elsewhere):
    code = QUICK_START.replace("epochs=6", "epochs=1")  # to save time
    assert code != QUICK_START
    *_, shape, file = run(python, "-c", code + MORE, **elsewhere).splitlines()
    assert shape == "(5, 10)"
    assert Path(file).is_relative_to(python.parents[1])
    written = {path.name for path in (elsewhere["cwd"] / "runs").iterdir()}
    assert written == {"quick-start", "strips.png", "encoder"}
    assert (elsewhere["cwd"] / "map.html").stat().st_size > 10_000
