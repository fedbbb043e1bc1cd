import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kerasim import data
from kerasim._devices import Devices
from kerasim.errors import ArgumentError

ROOT = Path(__file__).parents[1]
CHILD = ROOT / "tests" / "helpers" / "distributed_child.py"


def start(folder, what, **env):
    shared = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), what],
        env={**os.environ, **shared, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(child):
    said = child.communicate(timeout=300)[0]
    assert child.returncode == 0, said
    return said


def assert_alike(folder, one, other, **tolerance):
    one, other = np.load(folder / f"{one}.npz"), np.load(folder / f"{other}.npz")
    assert len(one["loss"]) and {"weights", "vectors"} < set(one)
    for key in one:
        np.testing.assert_allclose(other[key], one[key], err_msg=key, **tolerance)


ROUNDING = {"rtol": 1e-5, "atol": 5e-6}
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def runs(request, tmp_path_factory):
    """The backend, a folder of results of one device and of two, and what was said."""
    pytest.importorskip(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    flags = "--xla_force_host_platform_device_count=2"
    return (
        request.param,
        folder,
        finish(start(folder, "devices", KERAS_BACKEND=request.param, XLA_FLAGS=flags)),
    )


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """A folder of results of two processes."""
    pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("hosts")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": "",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    }
    both = [start(folder, "hosts", KERAS_DISTRIBUTION_PROCESS_ID=str(n), **env) for n in range(2)]
    said = [finish(child) for child in both]
    assert all("host-resumed: continuing after epoch 1 of 3" in text for text in said)
    return folder


def test_two_devices_end_with_the_losses_and_weights_of_one(runs):
    assert_alike(runs[1], "one", "two", **ROUNDING)


def test_a_run_on_two_devices_that_was_stopped_ends_with_the_bits_of_one_that_was_not(runs):
    assert_alike(runs[1], "two", "two-resumed", **EXACT)


def test_a_loss_on_whole_batches_is_the_same_on_two_devices_or_refused(runs):
    backend, folder, said = runs
    if backend == "jax":
        assert_alike(folder, "whole-one", "whole-two", **ROUNDING)
    else:
        assert "SupConLoss compares all images of a batch" in said
        assert "KERAS_BACKEND=jax" in said


def test_batches_that_two_devices_cannot_share_are_refused(runs):
    assert "batches holds batches of 8 rows, and the last has 7, which cannot be split" in runs[2]


def test_two_processes_end_with_the_losses_and_weights_of_one(hosts, runs):
    backend, folder, _ = runs
    if backend != "jax":
        pytest.skip("several hosts need JAX")
    (folder / "host.npz").write_bytes((hosts / "host1.npz").read_bytes())
    assert_alike(folder, "one", "host", **ROUNDING)


def test_both_processes_end_with_the_same_weights(hosts):
    assert_alike(hosts, "host0", "host1", **EXACT)


def test_two_processes_that_were_stopped_end_with_the_bits_of_those_that_were_not(hosts):
    assert_alike(hosts, "host0", "host-resumed0", **EXACT)


def devices(processes=1, process=0):
    found = Devices(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    found.replicas = found.processes = processes
    found.process = process
    return found


def test_the_parts_of_all_processes_are_the_batch_and_each_row_is_in_one_of_them():
    images = np.arange(12, dtype="float32").reshape(12, 1, 1, 1) / 12
    batches = data.PairBatches(images, np.arange(12) % 3, batch_size=4)
    parts = [devices(2, process).part(batches) for process in range(2)]
    assert len(parts[0]) == len(batches)
    for n in range(len(batches)):
        halves = zip(*(keras.tree.flatten(part[n]) for part in parts), strict=True)
        joined = [np.concatenate(both) for both in halves]
        for got, wanted in zip(joined, keras.tree.flatten(batches[n]), strict=True):
            np.testing.assert_array_equal(got, wanted)


class Views(keras.utils.PyDataset):
    """Hands out its own arrays, as `PairBatches` does with what it drew for an epoch."""

    kept = np.zeros((4, 1), "float32")

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.kept, self.kept[:]


def test_what_devices_write_into_their_arrays_stays_out_of_the_batches():
    spread, batches = devices(), Views()
    spread.replicas = 2
    for rows in spread.part(batches)[0]:
        rows[:] = 1
    np.testing.assert_array_equal(batches.kept, 0)


def test_one_device_takes_the_batches_as_they_are_and_writes():
    batches = data.ImageBatches(np.zeros((4, 1, 1, 1), "float32"))
    assert devices().part(batches) is batches
    assert devices().writes


def test_processes_that_differ_are_refused(monkeypatch):
    pytest.importorskip("jax")
    from jax.experimental import multihost_utils

    def differ(values):
        raise AssertionError(f"{len(values)} values differ")

    monkeypatch.setattr(multihost_utils, "assert_equal", differ)
    devices(1).agree([1.0])
    with pytest.raises(ArgumentError, match="The processes differ in epoch or weights: pass one"):
        devices(2).agree([1.0])


def test_a_model_without_weights_is_on_one_device():
    assert Devices(keras.Sequential([keras.Input((1,)), keras.layers.Flatten()])).replicas == 1
