"""The code of docs/scale.md, which copies a gallery to a vector database, runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from kerasim.gallery import Gallery
from kerasim.neighbors import METRICS
from tests.helpers.small_embedder import EMBEDDER, FLOATS

(EXPORT,) = re.findall(r"```python\n(.*?)```", Path("docs/scale.md").read_text(), re.S)


# Of Qdrant's local mode.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("metric", METRICS)
def test_qdrant_finds_what_the_gallery_finds(metric, tmp_path, monkeypatch):
    pytest.importorskip("qdrant_client")
    gallery = Gallery(EMBEDDER, metric)
    gallery.add(FLOATS, labels=list("abcdefg"))
    gallery.remove([2])
    gallery.save(tmp_path / "runs" / "gallery")
    monkeypatch.chdir(tmp_path)
    namespace = {"images": FLOATS}
    exec(EXPORT, namespace)
    expected = gallery.query(FLOATS[:1], k=6)
    assert [point.id for point in namespace["found"]] == expected["id"].tolist()
    assert [point.payload["label"] for point in namespace["found"]] == expected["label"].tolist()
    scores = np.array([point.score for point in namespace["found"]])
    distances = 1 - scores if metric == "cosine" else scores
    np.testing.assert_allclose(distances, expected["distance"], atol=1e-5)
