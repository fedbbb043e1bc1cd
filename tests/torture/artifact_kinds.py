"""How each kind of artifact is saved with a value, and loaded to that value and a digest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from kerasim import _artifacts, _model_identity, embedding
from tests.helpers.damaged_artifacts import reseal


def digest(*parts):
    """Returns a digest of arrays, with their dtypes and shapes, and of other values."""
    found = hashlib.sha256()
    for part in parts:
        plain = isinstance(part, np.ndarray) and part.dtype != object
        found.update(repr((part.shape, part.dtype) if plain else part).encode())
        found.update(np.ascontiguousarray(part).tobytes() if plain else b"")
    return found.hexdigest()


RNG = np.random.default_rng(0)
IMAGES = RNG.random((24, 12, 12, 1), dtype="float32")
VECTORS = RNG.random((40, 6), dtype="float32")


def embedder(value=0.0):
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((12, 12, 1)), *layers])
    model.compile(run_eagerly=True)
    layers[1].bias.assign(np.full(3, value, "float32"))
    return model


def save_index(path, value, kind: Any = "exact"):
    from kerasim.neighbors import NeighborIndex

    NeighborIndex("euclidean", kind=kind, m=4).fit(VECTORS + value).save(path, replace=True)


def load_index(path):
    from kerasim.neighbors import NeighborIndex

    index = NeighborIndex.load(path)
    found = index.query(VECTORS[:3], 5)
    value = float(np.rint(index.embeddings[0, 0] - VECTORS[0, 0]))
    return value, digest(index.embeddings, *found, index.get_params(), index.recall_)


def _save_projection(path, value):
    from kerasim.neighbors import NeighborIndex
    from kerasim.projection import Projection

    projection = Projection(n_neighbors=4)  # without UMAP, which takes seconds to be compiled
    projection._index, projection.trustworthiness_ = NeighborIndex("euclidean").fit(VECTORS), value
    projection.coordinates_ = VECTORS[:, :2] + np.float32(value)
    projection.save(path, replace=True)


def _load_projection(path):
    from kerasim.projection import Projection

    projection = Projection.load(path)
    value = float(np.rint(projection.coordinates_[0, 0] - VECTORS[0, 0]))
    assert value == projection.trustworthiness_, "torn"
    return value, digest(projection.coordinates_, projection.transform(VECTORS[:3] + 0.1))


_galleries: dict = {}


def _save_gallery(path, value):
    from kerasim.gallery import Gallery, _Calibration

    if path not in _galleries:
        _galleries[path] = Gallery(embedder(), "euclidean")
        _galleries[path].add(IMAGES[:5], [""] * 5)
    gallery = _galleries[path]
    gallery._calibration = _Calibration(value, np.array([0.0, 1.0]), np.array([1, 0]))
    gallery._assign(gallery._items.changed(range(5), label=[str(value)] * 5))
    gallery.save(path, replace=True)


def _load_gallery(path):
    from kerasim.gallery import Gallery

    gallery = Gallery.load(path)
    assert set(gallery.items["label"]) == {str(gallery.threshold)}, "torn"
    found = gallery.index.query(gallery.index.embeddings[:2], 3)
    made = _model_identity.fingerprint(gallery.embedder), gallery.items.to_csv(), gallery.settings
    threshold: Any = gallery.threshold
    return float(threshold), digest(*found, *made, gallery.index.embeddings)


def _save_export(path, value):
    from kerasim.export import export_saved_model

    export_saved_model(embedder(value), path, replace=True)


def _load_export(path):
    from kerasim.export import load_saved_model

    loaded = load_saved_model(path)
    return float(loaded(np.zeros((1, 12, 12, 1)))[0, 0]), digest(loaded(IMAGES[:2]))


def _save_state(path, value):
    arrays: Any = {f"model/{n}": np.full((40, 40), value + n, "float32") for n in range(3)}
    fill = lambda folder: np.savez(folder / "arrays.npz", **arrays)  # noqa: E731 (as training does)
    info = {"settings": {}, "history": [value], "stopped": False, "states": {}}
    _artifacts.write(path, "training_state", fill, info)


def _load_state(path):
    from kerasim import training

    arrays, info = _artifacts.read(path, "training_state", training._load)
    assert float(arrays["model/0"][0, 0]) == info["history"][0], "torn"
    return float(info["history"][0]), digest(sorted(arrays), *arrays.values(), info)


def _save_file(path, value):
    _artifacts.write_file(path, f"{value}\n".encode() * 20_000)


def _load_file(path):
    lines = path.read_text().splitlines()
    assert len(lines) == 20_000 and len(set(lines)) == 1, "torn"
    return float(lines[0]), digest(lines[0])


def _load_arrays(path):
    arrays = _artifacts.read_arrays(path, ("x", "y"))
    return 0.0, digest(*arrays.values())


def _load_embedder(path):
    return 0.0, _model_identity.fingerprint(embedding.load_embedder(path))


ARTIFACTS = {  # how each kind is saved, and loaded
    "index": (save_index, load_index),
    "graph": (lambda path, value: save_index(path, value, "hnsw"), load_index),
    "projection": (_save_projection, _load_projection),
    "gallery": (_save_gallery, _load_gallery),
    "SavedModel": (_save_export, _load_export),
    "state": (_save_state, _load_state),
    "file": (_save_file, _load_file),
}
FILES_WITHOUT_MANIFEST = {  # which a user may have from anywhere
    "npz": (lambda path, _: np.savez(path, x=np.arange(50), y=VECTORS), _load_arrays),
    "keras": (lambda path, _: embedder().save(path), _load_embedder),
}


def contents(folder):
    """Returns every file below `folder` with its bytes, except locks."""
    files = sorted(file for file in Path(folder).rglob("*") if not file.is_dir())
    return {file: file.read_bytes() for file in files if file.suffix != ".lock"}


def seal(path):
    """Makes the manifest of an artifact fit files that were changed, as a forger would."""
    names = json.loads((path / _artifacts.MANIFEST).read_text())["files"]
    reseal(path, files={name: _artifacts._describe(path / name) for name in names})
