"""The page of `Gallery.write_report`: duplicates, outliers, suspect labels and clusters."""

import base64
import io
import os
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from kerasim import _checks
from kerasim.neighbors import NeighborIndex

_CASES = 30  # groups, outliers, suspect labels or clusters that are shown
_TILES = 8  # images of a group or cluster that are shown
_BESIDE = 5  # neighbors beside a suspect label
SIDE = 256  # pixels of the longer side of a thumbnail, twice its size on the page


def write_page(
    table: pd.DataFrame,
    vectors: np.ndarray,
    metric: Any,
    read: Callable[[int], np.ndarray | None],
    k: int,
    title: str,
    with_clusters: bool,
) -> str:
    """Returns the page of a report as HTML.

    Args:
        table: The result of `Gallery.report`.
        vectors: The embedding of each row.
        metric: Metric of the gallery.
        read: Returns the image of a row as uint8, or None.
        k: Number of neighbors of the outlier scores.
        title: Title of the page.
        with_clusters: Whether clusters were looked for.
    """
    from jinja2 import Template

    template = Template((resources.files("kerasim") / "report.html").read_text("utf-8"))
    tiles = _Tiles(table, read)
    sections = [
        _duplicates(table, tiles),
        _suspects(table, vectors, metric, tiles),
        _outliers(table, k, tiles),
    ]
    if with_clusters:
        sections.append(_clusters(table, vectors, metric, tiles))
    labels = set(table["label"]) - {""}
    summary = _checks.counted(len(table), "image", "images")
    if labels:
        summary += f" with {_checks.counted(len(labels), 'label', 'labels')}"
    return template.render(title=title, summary=f"{summary}.", sections=sections)


class _Tiles:
    """Makes the tile of a row: thumbnail, label, name and a note."""

    def __init__(self, table, read):
        self._labels, self._ids = table["label"].tolist(), table["id"].tolist()
        # The page may be passed on: it does not tell where on the disk the images are.
        self._names = [os.path.join("", *Path(file).parts[-2:]) for file in table["file"]]
        self._read, self._known = read, {}

    def __call__(self, row: int, note: str = "") -> dict[str, str]:
        name = self._names[row] or f"id {self._ids[row]}"
        alt = f"{self._labels[row]} {name}".strip()
        if row not in self._known:
            self._known[row] = _encoded(self._read(row))
        image = self._known[row]
        return {"image": image, "alt": alt, "label": self._labels[row], "name": name, "note": note}


def _encoded(pixels: np.ndarray | None) -> str:
    """Returns a thumbnail as a data URL, "" for no image."""
    if pixels is None:
        return ""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((SIDE, SIDE), reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=75)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _images(shown: int, total: int) -> str:
    """Returns the title of a group or cluster of `total` images."""
    title = _checks.counted(total, "image", "images")
    return f"{title}, of which {shown} are shown" if shown < total else title


def _of_all(shown: int, total: int) -> str:
    return f"The first {shown} are shown." if shown < total else ""


def _duplicates(table, tiles) -> dict[str, Any]:
    groups = table["duplicate_group"].to_numpy()
    count = int(groups.max(initial=-1)) + 1
    text = "No file has a duplicate here."
    if not (table["file"] != "").any():
        text = "The images were added as arrays; duplicates are looked for among files alone."
    if count:
        are = "group" if count == 1 else "groups"
        text = (
            f"{count} {are} of images that are equal, or nearly: re-encoded, resized, brighter or "
            f"noisier. {_of_all(_CASES, count)}"
        )
    cases = []
    for group in range(min(count, _CASES)):
        rows = np.flatnonzero(groups == group)
        copies = table["copy_of"].to_numpy()[rows] >= 0
        notes = np.where(copies, "the same file content", "")
        shown = [tiles(row, note) for row, note in zip(rows[:_TILES], notes, strict=False)]
        cases.append({"title": _images(len(shown), len(rows)), "tiles": shown})
    return {"key": "duplicates", "title": "Duplicates", "text": text, "cases": cases}


def _suspects(table, vectors, metric, tiles) -> dict[str, Any]:
    suspicion = table["label_suspicion"].to_numpy()
    differs = (table["suggested_label"] != table["label"]).to_numpy(bool)
    rows = np.flatnonzero(differs & (suspicion >= 0.5))
    rows = rows[np.argsort(-suspicion[rows], kind="stable")]
    section = {"key": "labels", "title": "Suspect labels", "cases": []}
    if not (suspicion >= 0).any():
        return {**section, "text": "Fewer than two images have a label."}
    section["text"] = (
        f"{_checks.counted(len(rows), 'image', 'images')} whose most similar images have another "
        "label, the most suspect first, each beside those images. If most of the labels are right, "
        "the embeddings do not separate the classes well enough to find the wrong ones. "
        f"{_of_all(_CASES, len(rows))}"
    )
    rows = rows[:_CASES]
    if len(rows):
        index = NeighborIndex(metric).fit(vectors)
        found = index.query(vectors[rows], min(_BESIDE + 1, len(vectors)))[1]
        for row, near in zip(rows, found, strict=True):
            note = f"like images of {table['suggested_label'][row]}; suspicion {suspicion[row]:.2f}"
            beside = [tiles(other) for other in near[near != row][:_BESIDE]]
            section["cases"].append({"asked": tiles(row, note), "tiles": beside})
    return section


def _outliers(table, k, tiles) -> dict[str, Any]:
    scores = table["outlier_score"].to_numpy()
    rows = np.argsort(-scores, kind="stable")[:_CASES]
    text = (
        "The images that differ most from all others: those with the largest distance to the "
        f"nearest other image of rank {k}."
    )
    shown = [tiles(row, f"distance {scores[row]:.3g}") for row in rows]
    case = {"title": "", "tiles": shown}
    return {"key": "outliers", "title": "Outliers", "text": text, "cases": [case]}


def _clusters(table, vectors, metric, tiles) -> dict[str, Any]:
    clusters = table["cluster"].to_numpy()
    count = int(clusters.max(initial=-1)) + 1
    alone = float((clusters < 0).mean())
    text = (
        f"{_checks.counted(count, 'cluster', 'clusters')}, the largest first, with their most "
        f"central images; {100 * alone:.0f} % of the images are in none. {_of_all(_CASES, count)}"
    )
    if not count:
        text = "No cluster was found: no group of images is denser than its surroundings."
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cases = []
    for cluster in range(min(count, _CASES)):
        rows = np.flatnonzero(clusters == cluster)
        center = vectors[rows].astype("float64").mean(axis=0)
        central = rows[np.argsort(np.square(vectors[rows] - center).sum(axis=1), kind="stable")]
        names = Counter(label for label in table["label"][rows] if label)
        title = _images(min(len(rows), _TILES), len(rows))
        if names:
            common, times = names.most_common(1)[0]
            title += f"; {100 * times / len(rows):.0f} % have the label {common}"
        cases.append({"title": title, "tiles": [tiles(row) for row in central[:_TILES]]})
    return {"key": "clusters", "title": "Clusters", "text": text, "cases": cases}
