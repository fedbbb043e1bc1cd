"""A map of latent space as one HTML page: hover, tap or click, search, filter. Drawn with bokeh.

The page contains everything that it shows: the coordinates of the points, the images as WebP
sprite sheets, the neighbors of each image by each metric, and the script. It needs no server and no
network, so that it can be mailed and opened years later, and no image leaves the computer. File
names are stored relative to the folder that all files share.

`explorer.html` is the template of the page, `explorer.css` its style and `explorer.js` its script.
"""

import base64
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from kerasim import _artifacts, _checks, _distances
from kerasim._distances import METRICS, Metric
from kerasim._folders import ImageFolder, thread_map
from kerasim._image_checks import check_images
from kerasim.errors import ArgumentError
from kerasim.images import as_float, check_channels, decode

__all__ = [
    "write_explorer",
]

# Together with the markers, color-blind readers can distinguish them. Their contrast is 3 to 1 or
# more on white and on dark pages.
COLORS = "#0077BB #C06000 #009988 #CC3311 #AA4499 #6A5ACD #808000 #888888 #2E8B57 #D6336C".split()
# From small to large numbers. Five colors of the same contrast, from cold to warm.
_RAMP = "#0077BB #009988 #808000 #C06000 #CC3311".split()
# Bokeh's name of each marker that is more than lines, and the letter that looks like it.
_NAMES = "circle square triangle diamond inverted_triangle plus hex star square_pin".split()
_MARKERS = dict(zip(_NAMES, "●■▲◆▼✚⬢★✦", strict=True))
_LARGEST = 1e38  # browsers draw in float32
_SHEET = 512  # pixels of the longer side of a sheet; browsers decode each one as a whole
# Number of images up to which thumbnails have this many pixels, and the quality of WebP. A page of
# 60,000 images stays below 30 MB.
_THUMBNAILS = ((2_000, 128, 80), (10_000, 64, 80), (np.inf, 32, 50))
_BLOCK = 16  # pixels of the side of a block of WebP, in which colors are averaged
_LARGEST_CODE = 2**16 - 1


def write_explorer(
    path: Path | str,
    images: ArrayLike | ImageFolder,
    coordinates: ArrayLike,
    labels: ArrayLike | Sequence[Any] | None = None,
    neighbors: Mapping[Metric, ArrayLike] | None = None,
    title: str = "Latent space",
    *,
    metric: Metric | None = None,
    distances: Mapping[Metric, ArrayLike] | None = None,
    groups: Mapping[str, ArrayLike | Sequence[Any]] | None = None,
    files: Sequence[Path | str] | None = None,
) -> Path:
    """Writes an interactive map of images as one HTML file, which needs no other file or network.

    On the page a user can pan and zoom, hover over a point to see its image, tap or click it to see
    its nearest neighbors, show only some labels, and search by label or file name, with mouse,
    touch or keyboard. Where there is room, the map shows the images themselves. The address of the
    page ends with the number of the selected image, such as `#image-12`, and opens it again.

    The longer side of a thumbnail is at most 128 pixels for up to 2,000 images, 64 pixels for up to
    10,000, and 32 pixels for more. Those of an `ImageFolder` are made from its files, with their
    aspect ratio. If the files are in the folder of the page or below, the page has links to them.

    Args:
        path: The HTML file to write; its name ends in .html or .htm.
        images: `(n, height, width, channels)`, float in [0, 1] or uint8, or an `ImageFolder`.
        coordinates: `(n, 2)` coordinates on the map, such as those of `Projection`, up to 1e38. The
            page stores them relative to their median, in float64.
        labels: `(n,)` names or integers, for color, marker, search and filter. Images whose label
            is missing (None, NaN, `pandas.NA` or "") are shown as "no label". A neighbor with the
            label of the selected image has a solid green frame, with another one a dashed red one.
        neighbors: Dict from a metric ("euclidean", "manhattan" or "cosine") to the positions of the
            `k` nearest images of each image, `(n, k)`, nearest first.
        title: Title above the map.
        metric: The metric that the search uses, which the page marks and shows first; one of those
            of `neighbors`. None for no such mark: the first of `neighbors` is shown first.
        distances: Dict from a metric to the distances of its `neighbors`, `(n, k)`, 0 or more. The
            page shows them to three digits. None to show only the ranks.
        groups: Dict from a name, such as "cluster", to `(n,)` names or numbers, by which the points
            can be colored instead of by label. Floats that are not whole are divided into five
            ranges of about as many images each. Missing values are shown as "no cluster".
        files: `(n,)` paths or names of the images, to be shown and searched, "" for none. None to
            use those of an `ImageFolder`.

    Returns:
        The absolute path of the file.

    Raises:
        ArgumentError: If the shapes or lengths of the arguments do not match, or `path` does not
            end in .html.
        ImageError: If a file of an `ImageFolder` cannot be decoded.
        ArtifactError: If the file cannot be written.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> images, coordinates = rng.random((10, 8, 8, 1)), rng.normal(size=(10, 2))
        >>> path = write_explorer(
        ...     "map.html",
        ...     images,
        ...     coordinates,
        ...     labels=["cat", "dog"] * 5,
        ...     neighbors={"cosine": np.ones((10, 1), int)},
        ...     metric="cosine",
        ...     distances={"cosine": np.full((10, 1), 0.25)},
        ...     groups={"brightness": images.mean(axis=(1, 2, 3))},
        ... )
        >>> path.name, path.stat().st_size > 0
        ('map.html', True)
    """
    path = _artifacts.check_page(path)
    coordinates = _checks.vectors("coordinates", coordinates, 2, rows=1).astype("float64")
    too_far = np.abs(coordinates).max(axis=1) > _LARGEST
    _checks.bad_rows("coordinates", too_far, f"numbers above {_LARGEST:g}, too large to draw,")
    coordinates = coordinates - _distances.middle(coordinates)
    count = len(coordinates)
    images = check_images("images", images)
    check_channels(images.shape[-1])
    _checks.same_length("images", range(len(images)), count, "coordinates")
    colorings = [] if labels is None else [_coloring("label", *_classes(labels, count))]
    page = {
        "count": count,
        "colorings": colorings + _check_groups({} if groups is None else groups, count),
        "labeled": labels is not None,
        "nearest": _check_nearest(neighbors, distances, metric, count),
        "metric": metric,
        "markers": _NAMES,
        "marks": list(_MARKERS.values()),
        **_files(path, getattr(images, "files", None) if files is None else files, count),
    }
    sheets, layout = _sheets(images)
    html = _html(coordinates, {**page, **layout}, sheets, title)
    # Names of files may hold bytes that are not UTF-8.
    return _artifacts.write_file(path, html.encode(errors="backslashreplace"))


def _html(coordinates, page, sheets, title) -> str:
    from bokeh.embed import file_html
    from bokeh.resources import INLINE
    from jinja2 import Template

    parts = {
        suffix: (resources.files("kerasim") / f"explorer.{suffix}").read_text("utf-8")
        for suffix in ("html", "css", "js")
    }
    variables = {
        # A "</script>" in the data would end the script.
        "data": json.dumps(page).replace("<", "\\u003c"),
        "sheets": sheets,
        "style": parts["css"],
        "script": parts["js"],
    }
    template = Template(parts["html"])
    plot = _plot(coordinates)
    return file_html(plot, INLINE, title=title, template=template, template_variables=variables)


def _natural(name: str) -> list:
    """Returns a key that sorts names as people do: 1, 2, 10."""
    parts = re.split(r"(\d+)", name.casefold())
    # Numbers of any length, compared without converting them.
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if n % 2 else part for n, part in enumerate(parts)
    ]


def _classes(labels, count: int, argument: str = "labels", name: str = "label"):
    """Returns the classes of rows.

    Returns:
        `(names, classes, missing)`: the names in natural order, "no label" last if one is missing;
        the position of that of each row; and whether one is missing.
    """
    labels, absent = _checks.optional_labels(argument, labels, count, "images")
    found, classes = np.unique(labels[~absent], return_inverse=True)
    names = [str(each) for each in found]
    order = range(len(names))
    if found.dtype.kind not in "iub":  # numbers are in their order
        order = sorted(order, key=lambda n: (_natural(names[n]), names[n]))
    rank = np.argsort(np.array(order, "int64"))
    positions = np.full(count, len(names))
    positions[~absent] = rank[classes]
    missing = bool(absent.any())
    return [names[n] for n in order] + [f"no {name}"] * missing, positions, missing


def _coloring(name: str, names: list[str], classes, missing: bool, colors=COLORS) -> dict[str, Any]:
    """Returns one coloring of the points as the page holds it."""
    last = len(names) - 1 if missing else -1
    classes = _packed(classes)
    return {"name": name, "names": names, "classes": classes, "missing": last, "colors": colors}


def _check_groups(groups, count: int) -> list[dict[str, Any]]:
    """Returns the coloring of each entry of `groups`."""
    _checks.has_attribute("groups", groups, "items", "a dict of names, such as 'cluster',")
    colorings = []
    for name, values in groups.items():
        _checks.instance("name of groups", name, str, 'pass a name, such as "cluster"')
        argument = f"groups[{name!r}]"
        plain = _checks.array(argument, values, masked=True)
        if plain.dtype.kind == "f" and (np.isfinite(plain) & (plain != np.rint(plain))).any():
            _checks.same_length(argument, plain, count, "images", 1)
            absent = ~np.isfinite(plain) | _checks.missing(values)
            colorings.append(_coloring(name, *_ranges(plain, absent, name), colors=_RAMP))
        else:
            colorings.append(_coloring(name, *_classes(values, count, argument, name)))
    return colorings


def _ranges(values, absent, name: str):
    """Returns ranges of about as many images each, in the form of `_classes`."""
    edges = np.unique(np.quantile(values[~absent], np.linspace(0, 1, len(_RAMP) + 1)))
    ends = list(zip(edges[:-1], edges[1:], strict=True)) or [(edges[0], edges[0])]
    names = [f"{low:.3g} to {high:.3g}" for low, high in ends]
    classes = np.searchsorted(edges[1:-1], np.where(absent, edges[0], values), side="right")
    classes[absent] = len(names)
    missing = bool(absent.any())
    return names + [f"no {name}"] * missing, classes, missing


def _plot(coordinates):
    """Returns the figure. The script of the page sets ranges, colors and markers."""
    from bokeh.models import ColumnDataSource, Range1d, WheelZoomTool
    from bokeh.plotting import figure

    plot = figure(
        name="map",
        sizing_mode="stretch_both",
        tools="pan",
        toolbar_location=None,
        x_range=Range1d(start=0, end=1),
        y_range=Range1d(start=0, end=1),
    )
    plot.outline_line_color = plot.background_fill_color = plot.border_fill_color = None
    plot.min_border = 0
    plot.axis.visible = plot.grid.visible = False
    x, y = np.ascontiguousarray(coordinates.T)
    points = ColumnDataSource({"x": x, "y": y})
    size = 7 if len(coordinates) < 20_000 else 4
    plot.scatter("x", "y", source=points, name="points", size=size, line_color=None, visible=False)
    wheel = WheelZoomTool()
    plot.add_tools(wheel)
    plot.toolbar.active_scroll = wheel
    return plot


def _check_nearest(neighbors, distances, metric, count: int) -> list[dict[str, Any]]:
    """Returns neighbors and distances by each metric as the page holds them, `metric` first."""
    neighbors = {} if neighbors is None else neighbors
    distances = {} if distances is None else distances
    for name, given in (("neighbors", neighbors), ("distances", distances)):
        _checks.has_attribute(name, given, "items", "a dict of metrics")
        for each in given:
            _checks.one_of(f"metric of {name}", each, METRICS)
    if metric is not None:
        _checks.one_of("metric", metric, METRICS)
        if metric not in neighbors:
            raise ArgumentError(
                f"metric={metric!r} is none of the metrics of neighbors, "
                f"{sorted(neighbors)}: pass neighbors[{metric!r}], too."
            )
    for each in distances:
        if each not in neighbors:
            raise ArgumentError(
                f"distances[{each!r}] is given without neighbors[{each!r}]: pass both."
            )
    nearest = []
    for each in sorted(neighbors, key=lambda each: each != metric):
        name = f"neighbors[{each!r}]"
        rows = _checks.array(name, neighbors[each])
        _checks.indices(name, rows, count, "pass the indices of NeighborIndex.query")
        shown = {"metric": each, "k": rows.shape[1], "rows": _packed(rows), "distances": None}
        if each in distances:
            shown["distances"] = _coded(f"distances[{each!r}]", distances[each], rows.shape)
        nearest.append(shown)
    return nearest


def _coded(name: str, distances, shape) -> dict[str, Any]:
    """Returns distances as integers of 16 bits: 0 for 0, n for low * exp((n - 1) * step)."""
    distances = _checks.as_real_array(name, distances)
    _checks.shape(name, distances, shape, "pass the distances of NeighborIndex.query")
    distances = _checks.as_float64_or_narrower(name, distances).astype("float64")
    _checks.finite(name, distances)
    _checks.bad_rows(name, (distances < 0).any(axis=1), "negative distances")
    positive = distances[distances > 0]
    logs = np.log(positive)
    low, high = logs.min(initial=np.inf), logs.max(initial=-np.inf)
    step = max((high - low) / (_LARGEST_CODE - 1), 1e-6) if positive.size else 1.0
    codes = np.zeros(shape, "int64")
    codes[distances > 0] = 1 + np.rint((logs - low) / step)
    return {"codes": _packed(codes), "low": float(low) if positive.size else 0.0, "step": step}


def _packed(numbers) -> list[str]:
    """Returns integers of 0 or more as [type, base64], of the smallest type that holds them."""
    numbers = np.asarray(numbers)
    largest = int(numbers.max(initial=0))
    kind = next(kind for kind in ("u1", "u2", "u4") if largest <= np.iinfo(kind).max)
    return [kind, base64.b64encode(numbers.astype(f"<{kind}").tobytes()).decode()]


def _files(path, files, count: int) -> dict[str, Any]:
    """Returns the names of files, below the folder that they share, and the way to that folder.

    The page may be passed on: it does not tell where on the disk the images are.
    """
    if files is None:
        return {"files": None, "folder": None}
    files = _checks.as_list("files", files)
    _checks.same_length("files", range(len(files)), count, "images")
    for file in files:
        _checks.instance("files", file, (str, os.PathLike), "pass paths or names")
    paths = [os.path.abspath(os.fsdecode(file)) if os.fsdecode(file) else "" for file in files]
    named = [file for file in paths if file]
    if not named:
        return {"files": None, "folder": None}
    root = os.path.commonpath([os.path.dirname(file) for file in named])
    names = [os.path.relpath(file, root) if file else "" for file in paths]
    beside = os.path.realpath(os.path.dirname(_artifacts.resolve(path)))
    folder = os.path.relpath(os.path.realpath(root), beside)
    linked = os.path.isfile(named[0]) and folder.split(os.sep)[0] != os.pardir
    return {"files": names, "folder": folder if linked else None}


def _reader(images, side: int) -> Callable[[int], np.ndarray]:
    """Returns a function that decodes an image as uint8, one of a file with its aspect ratio."""
    if isinstance(images, ImageFolder):
        channels = images.shape[3]
        sources = getattr(images, "sources", images.files)  # those of a gallery are thumbnails
        return lambda row: decode(sources[row], None, channels, thumbnail_side=2 * side)[0]
    return lambda row: np.rint(255 * as_float(images[row])).astype("uint8")


def _sheets(images) -> tuple[list[str], dict[str, Any]]:
    """Returns sprite sheets of images, as data URLs of WebP files, and how they are laid out.

    An image is in the upper left of its cell, so that the page needs only its size.
    """
    _, most, quality = next(each for each in _THUMBNAILS if len(images) <= each[0])
    side = most if isinstance(images, ImageFolder) else min(most, max(images.shape[1:3]))
    columns = max(1, _SHEET // side)
    read, sheets, sizes = _reader(images, side), [], []

    def thumbnail(row):
        pixels = read(row)
        small = Image.fromarray(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1))
        small.thumbnail((side, side), reducing_gap=3.0)
        return small.size, _padded(small, side)

    in_order = thread_map if isinstance(images, ImageFolder) else map
    for start in range(0, len(images), columns**2):
        rows = range(start, min(start + columns**2, len(images)))
        sheet = Image.new("RGB", (columns * side, -(-len(rows) // columns) * side), "#808080")
        for n, (size, small) in enumerate(in_order(thumbnail, rows)):
            sheet.paste(small, (n % columns * side, n // columns * side))
            sizes.append(size)
        encoded = io.BytesIO()
        sheet.save(encoded, "WEBP", quality=quality)
        sheets.append(f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}")
    if len(set(sizes)) == 1:
        sizes = sizes[:1]
    return sheets, {"side": side, "columns": columns, "sizes": _packed(np.ravel(sizes))}


def _padded(image, side: int):
    """Repeats the last column and row up to a whole block, so that no background shows in it."""
    right, below = (min(side, -(-length // _BLOCK) * _BLOCK) - length for length in image.size)
    if not (right or below):
        return image
    return Image.fromarray(np.pad(np.asarray(image), ((0, below), (0, right), (0, 0)), "edge"))
