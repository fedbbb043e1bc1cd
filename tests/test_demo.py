"""The demo beats its baselines, and fails where it does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples import demo

NOISE = r"TensorFlow|tensorflow|absl|oneDNN|retracing|port\.cc|cpu_feature_guard"


def lower(value, **baselines):
    return demo.Result("error", value, baselines, "lower")


def higher(value, **baselines):
    return demo.Result("precision", value, baselines, "higher")


@pytest.mark.parametrize("result", [lower(0.1, mean=0.2), higher(0.9, pixels=0.8), lower(0.5)])
def test_a_figure_better_than_its_baselines_passes(result):
    assert demo.judge([result]) == []


@pytest.mark.parametrize(
    "result",
    [
        lower(0.3, mean=0.2),
        lower(0.2, mean=0.2),
        lower(float("nan"), mean=0.2),
        lower(0.1, mean=0.2, components=0.05),
        higher(0.7, pixels=0.8),
        higher(0.8, pixels=0.8),
        higher(float("nan"), pixels=0.8),
        higher(0.85, untrained=0.5, pixels=0.9),
    ],
)
def test_a_figure_no_better_than_a_baseline_fails_by_its_name(result):
    (failure,) = demo.judge([lower(0.1, mean=0.2), result])
    assert failure.startswith(result.name)


def test_a_figure_need_not_beat_what_is_shown_for_comparison():
    assert demo.judge([demo.Result("precision", 0.5, {}, "higher", {"pixels": 0.9})]) == []


def test_the_table_has_each_figure_beside_its_baselines():
    text = demo.table([lower(0.1, mean=0.25), higher(0.9, pixels=0.8)])
    assert re.search(r"error +0\.1000 +mean 0\.2500", text)
    assert re.search(r"precision +0\.9000 +pixels 0\.8000", text)


def test_the_demo_fails_if_its_networks_are_hardly_trained(tmp_path, capsys):
    folder = str(tmp_path / "demo")
    code = demo.main([folder, "--autoencoder-epochs", "1", "--embedder-epochs", "1"])
    failed = re.findall(r"^FAILED: (.*?) is 0", capsys.readouterr().err, re.M)
    assert code == 1
    assert "reconstruction MSE, autoencoder" in failed
    assert "precision at 10, euclidean, embedder" in failed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The demo as `make demo` runs it, and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "kerasim._quiet", "examples/demo.py", str(folder)]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, capture_output=True, text=True, env=env), folder


def test_the_demo_beats_its_baselines(finished):
    done, folder = finished
    assert done.stderr == ""
    assert done.returncode == 0
    assert (folder / "report.txt").read_text() in done.stdout


def test_the_demo_shows_no_log_of_another_library(finished):
    done, _ = finished
    assert re.findall(NOISE, done.stdout + done.stderr) == []


def test_the_demo_writes_and_names_its_results(finished):
    done, folder = finished
    names = ["reconstructions.png", "map-autoencoder.png", "map-embedder.png", "explorer.html"]
    names += [f"neighbors-{metric}.png" for metric in demo.METRICS]
    for path in [*map(folder.joinpath, names), folder / "embedder-savedmodel" / "saved_model.pb"]:
        assert path.stat().st_size > 10_000
    assert [
        name for name in [*names, "embedder-savedmodel"] if str(folder / name) not in done.stdout
    ] == []


def test_what_the_demo_exports_is_read_without_kerasim():
    assert not re.search("^(import|from) (kerasim|keras)", Path(demo.READER).read_text(), re.M)
