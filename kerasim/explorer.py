"""A map of latent space as one HTML page: hover, click, search. Drawn with bokeh.

The page contains everything that it shows: the coordinates of the points, the images as WebP
sprite sheets, the neighbors of each image by each metric, and the script. It needs no server and no
network, so that it can be mailed and opened years later, and no image leaves the computer.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from kerasim import _artifacts, _checks, _distances
from kerasim._distances import METRICS, Metric
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images
from kerasim.images import as_float, check_channels

__all__ = [
    "write_explorer",
]

# Together with the markers, color-blind readers can distinguish them. Their contrast is 3 to 1 or
# more on white and on dark pages.
COLORS = "#0077BB #C06000 #009988 #CC3311 #AA4499 #6A5ACD #808000 #888888 #2E8B57 #D6336C".split()
# Bokeh's name of each marker that is more than lines, and the letter that looks like it.
_NAMES = "circle square triangle diamond inverted_triangle plus hex star square_pin".split()
_MARKERS = dict(zip(_NAMES, "●■▲◆▼✚⬢★✦", strict=True))
_LARGEST = 1e38  # browsers draw in float32
_COLUMNS = 64  # images per row and column of a sheet


def write_explorer(
    path: Path | str,
    images: ArrayLike | ImageFolder,
    coordinates: ArrayLike,
    labels: ArrayLike | Sequence[Any] | None = None,
    neighbors: Mapping[Metric, ArrayLike] | None = None,
    title: str = "Latent space",
) -> Path:
    """Writes an interactive map of images as one HTML file, which needs no other file or network.

    On the page a user can pan and zoom, hover over a point to see its image, click it to see its
    nearest neighbors, and search by label or (for an `ImageFolder`) by file name, with mouse, touch
    or keyboard. The longer side of an image is at most 64 pixels for up to 10,000 images, 32 pixels
    for more.

    Args:
        path: The HTML file to write.
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        coordinates: `(n, 2)` coordinates on the map, such as those of `Projection`, up to 1e38. The
            page stores them relative to their median, in float64.
        labels: `(n,)` names or numbers, for color, marker and search. Images whose label is missing
            (None, NaN, `pandas.NA` or "") are shown as "no label".
        neighbors: Dict from a metric ("euclidean", "manhattan" or "cosine") to the positions of the
            `k` nearest images of each image, `(n, k)`, nearest first.
        title: Title above the map.

    Returns:
        The absolute path of the file.

    Raises:
        ArgumentError: If the shapes or lengths of the arguments do not match.
        ArtifactError: If the file cannot be written.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> images, coordinates = rng.random((10, 8, 8, 1)), rng.normal(size=(10, 2))
        >>> path = write_explorer("map.html", images, coordinates, labels=["cat", "dog"] * 5)
        >>> path.name, path.stat().st_size > 0
        ('map.html', True)
    """
    from bokeh.embed import file_html
    from bokeh.resources import INLINE
    from jinja2 import Template

    coordinates = _checks.vectors("coordinates", coordinates, 2, rows=1).astype("float64")
    too_far = np.abs(coordinates).max(axis=1) > _LARGEST
    _checks.bad_rows("coordinates", too_far, f"numbers above {_LARGEST:g}, too large to draw,")
    coordinates = coordinates - _distances.middle(coordinates)
    count = len(coordinates)
    images = check_images("images", images)
    check_channels(images.shape[-1])
    _checks.same_length("images", range(len(images)), count, "coordinates")
    names, classes = _classes(np.zeros(count, int) if labels is None else labels, count)
    side = min(64 if count <= 10_000 else 32, max(images.shape[1:3]))
    page = {
        "count": count,
        "names": [] if labels is None else names,
        "classes": None if labels is None else _packed(classes),
        "files": [str(file) for file in images.files] if hasattr(images, "files") else None,
        "neighbors": _check_neighbors({} if neighbors is None else neighbors, count),
        "colors": COLORS,
        "marks": list(_MARKERS.values()),
        "columns": _COLUMNS,
        "sheets": _sheets(images, side),
    }
    template = Template((resources.files("kerasim") / "explorer.html").read_text("utf-8"))
    # A "</script>" in the data would end the script.
    variables = {"data": json.dumps(page).replace("<", "\\u003c")}
    plot = _plot(coordinates, classes)
    html = file_html(plot, INLINE, title=title, template=template, template_variables=variables)
    # Names of files may hold bytes that are not UTF-8.
    return _artifacts.write_file(path, html.encode(errors="backslashreplace"))


def _classes(labels, count: int) -> tuple[list[str], np.ndarray]:
    """Returns the names of the classes, "no label" last if one is missing, and that of each row."""
    labels, absent = _checks.optional_labels("labels", labels, count, "images")
    found, classes = np.unique(labels[~absent], return_inverse=True)
    names = [str(name) for name in found]
    positions = np.full(count, len(names))
    positions[~absent] = classes
    return names + ["no label"] * bool(absent.any()), positions


def _plot(coordinates, classes):
    from bokeh.models import ColumnDataSource, HoverTool, TapTool, WheelZoomTool
    from bokeh.plotting import figure

    plot = figure(name="map", sizing_mode="stretch_both", tools="pan", toolbar_location=None)
    plot.match_aspect = True
    plot.outline_line_color = plot.background_fill_color = plot.border_fill_color = None
    plot.axis.visible = plot.grid.visible = False
    markers = (classes + classes // len(COLORS)) % len(_MARKERS)
    x, y = np.ascontiguousarray(coordinates.T)
    colors, shapes = np.array(COLORS)[classes % len(COLORS)], np.array(_NAMES)[markers]
    points = ColumnDataSource({"x": x, "y": y, "color": colors, "marker": shapes})
    rings = ColumnDataSource({"x": [], "y": [], "size": []})
    alpha = float(np.clip(40 / np.sqrt(len(coordinates)), 0.3, 0.9))
    style = {"color": "color", "marker": "marker", "alpha": alpha, "nonselection_alpha": alpha}
    style |= {"size": 7 if len(coordinates) < 20_000 else 4, "line_color": None}
    drawn = plot.scatter("x", "y", source=points, name="points", **style)
    for color, width in (("white", 5), ("#D6336C", 2.5)):
        style = {"size": "size", "fill_color": None, "line_color": color, "line_width": width}
        plot.scatter("x", "y", source=rings, name=f"rings {color}", **style)
    wheel = WheelZoomTool()
    plot.add_tools(wheel, TapTool(renderers=[drawn]), HoverTool(renderers=[drawn], tooltips=None))
    plot.toolbar.active_scroll = wheel
    return plot


def _check_neighbors(neighbors, count):
    """Returns (k, packed positions) of each metric."""
    packed = {}
    _checks.has_attribute("neighbors", neighbors, "items", "a dict of metrics")
    for metric, rows in neighbors.items():
        _checks.one_of("metric of neighbors", metric, METRICS)
        name = f"neighbors[{metric!r}]"
        rows = _checks.array(name, rows)
        _checks.indices(name, rows, count, "pass the indices of NeighborIndex.query")
        packed[metric] = rows.shape[1], _packed(rows)
    return packed


def _packed(numbers) -> str:
    return base64.b64encode(np.asarray(numbers, dtype="<u4").tobytes()).decode()


def _sheets(images, side) -> list[str]:
    """Returns sprite sheets of images, as data URLs of WebP files."""
    sheets = []
    for start in range(0, len(images), _COLUMNS**2):
        count = min(_COLUMNS**2, len(images) - start)
        sheet = Image.new("RGB", (_COLUMNS * side, -(-count // _COLUMNS) * side), "#808080")
        for n in range(count):
            if n % 256 == 0:  # a folder is decoded by several threads
                some = images[start + n : start + min(n + 256, count)]
            pixels = np.rint(255 * as_float(some[n % 256])).astype("uint8")
            thumbnail = Image.fromarray(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1))
            thumbnail.thumbnail((side, side), reducing_gap=None)
            left = n % _COLUMNS * side + (side - thumbnail.width) // 2
            top = n // _COLUMNS * side + (side - thumbnail.height) // 2
            sheet.paste(thumbnail, (left, top))
        encoded = io.BytesIO()
        sheet.save(encoded, "WEBP", quality=80)
        sheets.append(f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}")
    return sheets
