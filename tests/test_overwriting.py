"""One rule for overwriting, for everything that is saved."""

import keras
import numpy as np
import pytest

from kerasim import export, models
from kerasim.denoising import Denoiser
from kerasim.errors import ArgumentTypeError, ArtifactError
from kerasim.gallery import Gallery
from kerasim.neighbors import NeighborIndex
from kerasim.projection import Projection
from tests.helpers.small_embedder import EMBEDDER


def save_index(path, **replace):
    NeighborIndex("euclidean").fit(np.eye(3)).save(path, **replace)


def save_projection(path, **replace):
    projection = Projection()
    projection.coordinates_, projection.trustworthiness_ = np.zeros((6, 2)), 0.5
    projection._index = NeighborIndex("euclidean").fit(np.eye(6))
    projection.save(path, **replace)


def save_gallery(path, **replace):
    Gallery(EMBEDDER).save(path, **replace)


def save_export(path, **replace):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("exports need TensorFlow")
    export.export_saved_model(EMBEDDER, path, **replace)


def save_denoiser(path, **replace):
    Denoiser(models.denoising_autoencoder((8, 8, 1), (2,), 0)).save(path, **replace)


SAVERS = [save_index, save_projection, save_gallery, save_export, save_denoiser]


def written(path):
    """Returns which file the manifest is, and when it was written; not when it was last read."""
    status = (path / "kerasim.json").stat()
    return status.st_ino, status.st_mtime_ns


@pytest.mark.parametrize("save", SAVERS)
def test_what_another_object_saved_is_overwritten_only_if_asked(save, tmp_path):
    save(tmp_path / "it")
    before = written(tmp_path / "it")
    with pytest.raises(ArtifactError, match="choose another path, or pass replace=True"):
        save(tmp_path / "it")
    assert written(tmp_path / "it") == before
    save(tmp_path / "it", replace=True)
    assert written(tmp_path / "it") != before
    with pytest.raises(ArgumentTypeError, match="replace must be a bool"):
        save(tmp_path / "it", replace="yes")


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("save", SAVERS)
def test_what_is_of_another_kind_is_never_overwritten(save, replace, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    other = save_gallery if save is save_index else save_index
    other(tmp_path / "other")
    for name in ("mine", "other"):
        with pytest.raises(ArtifactError, match="not a|has no kerasim.json"):
            save(tmp_path / name, replace=replace)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("save", "kind"), [(save_index, NeighborIndex), (save_gallery, Gallery)])
def test_what_an_object_has_loaded_or_saved_itself_is_overwritten_until_another_saves(
    save, kind, tmp_path
):
    save(tmp_path / "it")
    one, other = kind.load(tmp_path / "it"), kind.load(tmp_path / "it")
    one.save(tmp_path / "it")
    one.save(tmp_path / "it")
    if kind is NeighborIndex:
        other.add(np.eye(3))
    with pytest.raises(ArtifactError, match="another process saved since"):
        if kind is NeighborIndex:  # the same vectors make the same files
            one.add(2 * np.eye(3)).save(tmp_path / "it")
        other.save(tmp_path / "it")


def test_a_file_is_overwritten_by_onnx_only_if_asked(tmp_path):
    pytest.importorskip("tf2onnx")
    (tmp_path / "photo.onnx").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="There is a file at .*photo.onnx' already"):
        export.export_onnx(EMBEDDER, tmp_path / "photo.onnx")
    assert (tmp_path / "photo.onnx").read_bytes() == b"mine"
