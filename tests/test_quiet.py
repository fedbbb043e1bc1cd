"""Keras is imported without TensorFlow's log lines, and nothing else is lost."""

import os
import subprocess
import sys

import pytest

from kerasim import _quiet

LOG_LINES = [
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
    b"I0000 00:00:1795853802.820270    7696 port.cc:153] oneDNN custom operations are on.\n",
    b"E0000 00:00:1795853802.820270    7696 cuda_fft.cc:10] Unable to register cuFFT factory\n",
    b"2025-01-31 10:11:12.131415: W tensorflow/stream_executor/dso_loader.cc:64] No library\n",
    b"To enable the following instructions: AVX2 FMA, rebuild TensorFlow with the flags.\n",
]


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_importing_keras_quietly_writes_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, keras; print(__name__, *sys.argv[1:])")
    done = run("-m", "kerasim._quiet", str(script), "one", "two")
    assert done.stderr == ""
    assert done.stdout == "__main__ one two\n"


def test_serializing_a_model_on_jax_writes_nothing(tmp_path, monkeypatch):
    pytest.importorskip("jax")
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    script = tmp_path / "script.py"
    script.write_text("import keras; print(len(keras.Sequential().to_json()) > 10)")
    done = run("-m", "kerasim._quiet", str(script))
    assert (done.stderr, done.stdout) == ("", "True\n")


@pytest.mark.parametrize("line", LOG_LINES, ids=lambda line: line[:12].decode())
def test_a_log_line_is_left_out(line, capfd):
    with _quiet._hidden_log():
        os.write(2, line)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("line", ["UserWarning: old\n", "F0000 00:00:17.9 1 a.cc:1] no AVX\n"])
def test_another_line_is_kept(line, capfd):
    with _quiet._hidden_log():
        os.write(2, LOG_LINES[0] + line.encode())
    assert capfd.readouterr().err == line


def test_everything_is_shown_when_the_import_fails(capfd):
    with pytest.raises(ImportError), _quiet._hidden_log():
        os.write(2, LOG_LINES[0])
        raise ImportError
    assert capfd.readouterr().err == LOG_LINES[0].decode()


def test_a_missing_script_argument_is_reported():
    done = run("-m", "kerasim._quiet")
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python -m kerasim._quiet SCRIPT")
