"""Downloads, from a server on the loopback address."""

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from functools import partial

import keras
import numpy as np
import pytest

from kerasim import data
from kerasim.data import _download as fetching
from kerasim.errors import ArgumentError, ArtifactError


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The folder and the address of a server."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder that does not exist yet."""
    monkeypatch.setenv("KERASIM_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def redirect(monkeypatch, module, server, served, digest):
    """Lets a data set of Keras come from `server`, through Keras' own download and check."""
    folder, address = server
    cache = folder.parent / "cache"
    cache.mkdir()  # Keras takes a folder in /tmp, which all tests share, for one that is missing

    def get_file(fname, origin, file_hash, **kwargs):
        return keras.utils.get_file(
            fname=fname,
            origin=f"{address}/{served}",
            file_hash=digest,
            cache_dir=str(cache),
            **kwargs,
        )

    monkeypatch.setattr(module, "get_file", get_file)


@pytest.fixture
def mnist(server, monkeypatch):
    from keras.src.datasets import mnist as module

    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (6, 28, 28), dtype="uint8"),
        "y_train": np.arange(6, dtype="uint8"),
        "x_test": rng.integers(0, 256, (4, 28, 28), dtype="uint8"),
        "y_test": np.arange(4, dtype="uint8"),
    }
    np.savez(server[0] / "mnist.npz", **arrays)
    redirect(monkeypatch, module, server, "mnist.npz", sha256(server[0] / "mnist.npz"))
    return arrays


def test_mnist_is_downloaded_checked_and_found_by_load(mnist, folder, capsys):
    assert data.fetch("mnist") == folder / "mnist.npz"
    assert "Downloading mnist" in capsys.readouterr().out
    np.testing.assert_array_equal(
        data.load_dataset("mnist", dtype="uint8").x_train[..., 0], mnist["x_train"]
    )
    assert data.resolve_dataset(None, "mnist") == "mnist"
    assert [path.name for path in folder.iterdir()] == ["mnist.npz"]


def test_cifar10_is_downloaded_unpacked_and_found_by_load(server, folder, monkeypatch):
    from keras.src.datasets import cifar10 as module

    archive = server[0] / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as files:
        for position, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
            pixels = np.full((10_000, 3072), position, dtype="uint8")
            content = pickle.dumps({b"data": pixels, b"labels": [position] * 10_000})
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            files.addfile(info, io.BytesIO(content))
    redirect(monkeypatch, module, server, archive.name, sha256(archive))
    data.fetch("cifar10")
    found = data.load_dataset("cifar10", dtype="uint8")
    assert found.x_train.shape == (50_000, 32, 32, 3) and found.x_test.shape[0] == 10_000
    assert found.x_train[::10_000, 0, 0, 0].tolist() == found.y_train[::10_000].tolist()
    assert (found.y_test == 5).all()


@pytest.fixture
def squeezenet(server, monkeypatch):
    """Two addresses: the first has another file, the second the right one."""
    served, address = server
    (served / "other.h5").write_bytes(b"other weights")
    (served / "right.h5").write_bytes(b"right weights")
    origins = (f"{address}/other.h5", f"{address}/right.h5")
    monkeypatch.setattr(fetching, "_SQUEEZENET_ORIGINS", origins)
    monkeypatch.setattr(fetching, "SQUEEZENET_SHA256", sha256(served / "right.h5"))
    return served


def test_the_weights_whose_hash_fits_are_taken(squeezenet, folder):
    path = data.fetch("squeezenet")
    assert path == folder / "squeezenet_notop.h5" and path.read_bytes() == b"right weights"
    assert [path.name for path in folder.iterdir()] == ["squeezenet_notop.h5"]


def test_weights_of_another_hash_are_refused_and_leave_nothing(squeezenet, folder):
    (squeezenet / "right.h5").write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="squeezenet_notop.h5") as caught:
        data.fetch("squeezenet")
    assert fetching.SQUEEZENET_SHA256 in str(caught.value)
    assert list(folder.iterdir()) == []


def test_a_data_set_of_another_hash_is_refused_and_leaves_nothing(mnist, server, folder):
    np.savez(server[0] / "mnist.npz", **{**mnist, "y_test": mnist["y_test"][::-1]})
    with pytest.raises(ArtifactError, match="Keras could not download 'mnist'"):
        data.fetch("mnist")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["mnist", "cifar10", "squeezenet"])
def test_offline_the_error_says_which_file_to_put_where(name, folder, monkeypatch):
    def get_file(*_, **__):
        raise Exception("URL fetch failure on https://example.org: no network")

    from keras.src.datasets import cifar10, mnist

    for module in (cifar10, mnist, keras.utils):
        monkeypatch.setattr(module, "get_file", get_file)
    with pytest.raises(ArtifactError) as caught:
        data.fetch(name)
    file = "squeezenet_notop.h5" if name == "squeezenet" else f"{name}.npz"
    for part in ("no network", file, str(folder)):
        assert part in str(caught.value)


def test_an_existing_file_is_not_downloaded_again(folder, capsys):
    folder.mkdir()
    (folder / "mnist.npz").write_bytes(b"mine")
    assert data.fetch("mnist").read_bytes() == b"mine"
    assert "already there" in capsys.readouterr().out


def test_a_folder_can_be_given(mnist, folder, tmp_path):
    assert data.fetch("mnist", tmp_path / "elsewhere") == tmp_path / "elsewhere" / "mnist.npz"
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_refused_by_name(mnist, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="Cannot write .*file/data/mnist.npz"):
        data.fetch("mnist", tmp_path / "file" / "data")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match="name='minst'.*'mnist', 'cifar10', 'squeezenet'"):
        data.fetch("minst")
