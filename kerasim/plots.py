"""Figures, drawn with matplotlib. Most functions take an optional `ax`.

Each function draws one plot and returns the axes or figure, which the caller can change or save.
No function shows or closes a figure. Color-blind readers can distinguish the colors, and color is
never the only cue: classes also differ in their marker, neighbors in the line style of their frame,
and positive and negative pairs in their hatching.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from kerasim import _checks
from kerasim._folders import ImageFolder
from kerasim._image_checks import check_images
from kerasim.errors import ArgumentError
from kerasim.images import as_float

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kerasim.metrics import OpenSetIdentification, Verification

__all__ = [
    "COLORS",
    "MARKERS",
    "denoising",
    "distance_distribution",
    "history",
    "image_grid",
    "latent_distribution",
    "latent_map",
    "neighbors",
    "network",
    "open_set",
    "pair_explanation",
    "reconstructions",
    "rejection",
    "roc",
]

# The palette of Okabe & Ito (2008), which color-blind readers can distinguish.
COLORS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000 #8C6D1F #999999 #5D3A9B".split()
MARKERS = "os^DvPX<>p"

# The details of photographs stay visible below the maps that explain them.
_DPI = 110  # of figures of images
_EXPLANATION_WIDTH = 2.6

# A map of a few cells is interpolated to this width and height, as much as its image is wide.
_MAP_PIXELS = 240

# Distance of each branch of a Siamese network from the middle of its drawing.
_BRANCH = 1.1

# Brightness of black and of white below a map, whose colors neither may hide.
_BLACK, _WHITE = 0.2, 0.9


def history(
    frame: pd.DataFrame,
    keys: Sequence[str] = ("loss",),
    ax: Axes | None = None,
    log: bool = False,
) -> Axes:
    """Draws training curves.

    Args:
        frame: The history that `training.fit` returns: a column "epoch" and one for each key.
        keys: Columns to draw. Their `val_` columns are drawn as dashed lines, labeled "validation".
        ax: Axes to draw on; None for new ones.
        log: Use a logarithmic y axis.

    Returns:
        The axes.

    Raises:
        ArgumentError: If `keys` is empty, or names a column that `frame` lacks.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.5], "val_loss": [2.1, 1.8]})
        >>> ax = history(frame)
        >>> [line.get_label() for line in ax.lines]
        ['training loss', 'validation loss']
    """
    _checks.has_attribute("frame", frame, "keys", "a table, as training.fit returns it")
    keys = [str(key) for key in _checks.as_list("keys", keys)]
    missing = [key for key in ("epoch", *keys) if key not in list(frame)]
    if missing or not keys:
        raise ArgumentError(f"keys={missing} are not in the history: pass some of {list(frame)}.")
    ax = _axes(ax, (6, 3.5))
    for n, key in enumerate(keys):
        color = COLORS[n % len(COLORS)]
        for column, style in ((key, "-"), (f"val_{key}", "--")):
            if column in frame:
                part = "validation" if column.startswith("val_") else "training"
                name = f"{part} {column.removeprefix('val_')}"
                ax.plot(frame["epoch"], frame[column], style, color=color, label=name)
    ax.locator_params("x", integer=True)
    ax.set(xlabel="epoch", yscale="log" if log else ax.get_yscale())
    ax.set_ylabel(keys[0] if len(keys) == 1 else "value", parse_math=False)
    ax.grid(alpha=0.3)
    _legend(ax)
    return ax


def image_grid(
    images: ArrayLike | ImageFolder,
    titles: Sequence[Any] | np.ndarray | None = None,
    columns: int = 10,
    size: float = 1.0,
    row_labels: Sequence[Any] | np.ndarray | None = None,
) -> Figure:
    """Draws images in rows.

    Args:
        images: `(n, height, width, channels)` in [0, 1] or uint8.
        titles: `n` strings or numbers to write above the images, or None.
        columns: Images per row, 1 or more.
        size: Width of an image in inches.
        row_labels: A string or number to write to the left of each row, or None.

    Returns:
        The figure.

    Raises:
        ArgumentError: If there are no images, or the number of titles is not that of images, or
            that of `row_labels` not that of rows.

    Example:
        >>> figure = image_grid(np.zeros((6, 8, 8, 1)), titles=range(6), columns=3)
        >>> len(figure.axes)
        6
    """
    checked = _check_some("images", images)
    if titles is not None:
        _checks.same_length("titles", titles, len(checked), "images")
    columns = min(_checks.integer("columns", columns), len(checked))
    size = _checks.number("size", size, 0.01, 100)
    rows = -(-len(checked) // columns)
    height, width = np.shape(checked[0])[:2]
    if row_labels is not None:
        _checks.same_length("row_labels", row_labels, rows, "rows")
    room = 0.25 if titles is not None else 0
    left = _width_of(row_labels)
    figure, axes = _figure(rows, columns, size, size * height / width + room, left)
    for line, name in zip(axes, () if row_labels is None else row_labels, strict=False):
        _name_row(line[0], name)
    for n, ax in enumerate(axes.flat[: len(checked)]):
        _show(ax, checked[n], "" if titles is None else str(titles[n]))
    return figure


def reconstructions(
    images: ArrayLike | ImageFolder,
    *others: ArrayLike | ImageFolder,
    labels: Sequence[str] = ("original", "reconstructed"),
) -> Figure:
    """Draws images in a row, and their reconstructions in the rows below.

    Args:
        images: `(n, height, width, channels)` in [0, 1] or uint8.
        *others: Arrays of the same shape. Each is drawn as one row.
        labels: A name for each row.

    Returns:
        The figure.

    Raises:
        ArgumentError: If the rows have different shapes, or the number of labels is not that of
            rows.

    Example:
        >>> images = np.random.default_rng(0).random((3, 8, 8, 1))
        >>> figure = reconstructions(images, images.round())
        >>> [ax.get_ylabel() for ax in figure.axes[::3]]
        ['original', 'reconstructed']
    """
    rows = [_check_some("each row of images", row) for row in (images, *others)]
    labels = _checks.as_list("labels", labels)
    shapes = [np.shape(row) for row in rows]
    if len(labels) != len(rows) or len(set(shapes)) != 1:
        raise ArgumentError(
            f"labels={tuple(labels)} and rows of shapes {shapes} do not match: pass one "
            "name for each row, and rows of one shape."
        )
    figure, axes = _figure(len(rows), len(rows[0]), 0.95, 0.95, left=1.1)
    for label, row, line in zip(labels, rows, axes, strict=True):
        for ax, image in zip(line, row, strict=True):
            _show(ax, image)
        _name_row(line[0], label)
    return figure


def denoising(
    noisy: ArrayLike | ImageFolder,
    denoised: ArrayLike | ImageFolder,
    clean: ArrayLike | ImageFolder,
    psnr: Sequence[float] | None = None,
) -> Figure:
    """Draws rows of noisy, denoised and clean images.

    Args:
        noisy, denoised, clean: `(n, height, width, channels)` each, in [0, 1] or uint8.
        psnr: Mean PSNR of the noisy and of the denoised images, in dB, to write beside the rows;
            None to write none.

    Returns:
        The figure.

    Raises:
        ArgumentError: If the rows have different shapes, or `psnr` is not two numbers.

    Example:
        >>> clean = np.zeros((3, 8, 8, 1))
        >>> figure = denoising(clean + 0.2, clean + 0.1, clean, psnr=(14.0, 20.0))
        >>> [ax.get_ylabel() for ax in figure.axes[::3]]
        ['noisy\\n14.0 dB', 'denoised\\n20.0 dB', 'clean']
    """
    names = ["noisy", "denoised", "clean"]
    if psnr is not None:
        psnr_values = _checks.same_length("psnr", psnr, 2, "rows, noisy and denoised", 1)
        for n, value in enumerate(psnr_values):
            names[n] += f"\n{_checks.number('each of psnr', value):.1f} dB"
    return reconstructions(noisy, denoised, clean, labels=names)


def latent_distribution(codes: ArrayLike, ax: Axes | None = None, title: str = "") -> Axes:
    """Draws the distribution of each latent dimension as a violin with its quartiles.

    Args:
        codes: Latent vectors `(n, dim)`, two rows or more.
        ax: Axes to draw on; None for new ones.
        title: Title of the plot.

    Returns:
        The axes.

    Raises:
        ArgumentError: If there are fewer than two rows, or a value is not finite.

    Example:
        >>> codes = np.random.default_rng(0).normal(size=(100, 4))
        >>> ax = latent_distribution(codes)
        >>> ax.get_xticks().tolist()  # one violin for each latent dimension
        [1, 2, 3, 4]
    """
    codes = _checks.vectors("codes", codes, rows=2)
    ax = _axes(ax, (7, 3))
    positions = np.arange(1, codes.shape[1] + 1)
    violins: Any = ax.violinplot(list(codes.T), positions, showextrema=False, widths=0.85)
    for body in violins["bodies"]:
        body.set(facecolor=COLORS[5], alpha=0.7)
    low, middle, high = np.quantile(codes, (0.25, 0.5, 0.75), axis=0)
    ax.vlines(positions, low, high, color=COLORS[0], lw=4, label="middle 50 %")
    ax.plot(positions, middle, "o", color="white", mec=COLORS[0], ms=4, label="median")
    ax.axhline(0, color="grey", lw=0.5)
    ax.set(xlabel="latent dimension", ylabel="value", xticks=positions)
    ax.set_title(title, parse_math=False)
    _legend(ax, fontsize=8, ncols=2)
    return ax


def distance_distribution(
    distances: ArrayLike,
    same: ArrayLike,
    threshold: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the distributions of the distances of positive and negative pairs, each with area 1.

    Args:
        distances: `(n,)` or `(n, 1)`, two or more.
        same: `(n,)`: 1 or True for a positive pair, 0 or False for a negative one.
        threshold: Distance at which a line is drawn, such as the largest distance that is
            accepted; None draws no line.
        ax: Axes to draw on; None for new ones.

    Returns:
        The axes.

    Raises:
        ArgumentError: If there are fewer than two distances, a distance is not finite, or `same`
            has another length.

    Example:
        >>> ax = distance_distribution([0.1, 0.2, 0.7, 0.9, 0.8], [1, 1, 0, 0, 0], threshold=0.5)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['positive pairs (2)', 'negative pairs (3)', 'threshold 0.5']
    """
    distances = _checks.as_real_array("distances", distances).reshape(-1, 1)
    distances = _checks.vectors("distances", distances, rows=2)[:, 0]
    same = _checks.as_real_array("same", same, "bfiu").reshape(-1)
    same = _checks.same_length("same", same, len(distances), "distances").astype(bool)
    if threshold is not None:
        _checks.number("threshold", threshold)
    ax = _axes(ax, (6, 3))
    edges = np.linspace(distances.min(), distances.max() + 1e-9, 81)
    for kind, chosen, color, hatch in (
        ("positive", distances[same], COLORS[0], "///"),
        ("negative", distances[~same], COLORS[1], "..."),
    ):
        style = {"color": color, "alpha": 0.35, "edgecolor": color, "hatch": hatch}
        name = f"{kind} pairs ({len(chosen):,})"
        if len(chosen):
            ax.hist(chosen, edges, density=True, histtype="stepfilled", label=name, **style)
    if threshold is not None:
        ax.axvline(threshold, color="black", ls="--", label=f"threshold {threshold:.3g}")
    ax.set(xlabel="distance", ylabel="density", yticks=[])
    _legend(ax)
    return ax


def roc(
    verification: Verification, ax: Axes | None = None, label: str = "", log: bool = False
) -> Axes:
    """Draws the ROC curve of a verification, and marks the equal error rate.

    The curve shows the share of positive pairs accepted (TPR) over the share of negative pairs
    accepted (FPR).

    Args:
        verification: The result of `metrics.verification`.
        ax: Axes to draw on, which may hold other curves; None for new ones.
        label: Name of the curve in the legend, which also shows the AUC and the EER.
        log: Use a logarithmic x axis, on which the small FPR of a verification system can be seen.
            The curve begins with the TPR at which none of the negative pairs is accepted.

    Returns:
        The axes.

    Raises:
        ArgumentTypeError: If `verification` is not a result of `metrics.verification`, or `log` is
            neither True nor False.

    Example:
        >>> from kerasim import metrics
        >>> ax = roc(metrics.verification([0.1, 0.2, 0.4, 0.6], [1, 1, 0, 0]), label="digits")
        >>> ax.get_legend().get_texts()[0].get_text()
        'digits: AUC 1.0000, EER 0.00 %'
    """
    _checks.has_attribute("verification", verification, "eer", "the result of metrics.verification")
    log = _checks.boolean("log", log)
    ax = _axes(ax, (4, 4))
    figures = f"AUC {verification.auc:.4f}, EER {100 * verification.eer:.2f} %"
    style = _curve_style(ax, label, figures)
    if log:
        positive, negative = verification.positive, verification.negative
        _draw_log_rate(ax, positive, len(positive), negative, style)
    else:
        # A figure is a few hundred pixels wide; a curve may have millions of corners.
        corners = np.unique(np.linspace(0, len(verification.fpr) - 1, 2_000).astype(int))
        ax.plot(verification.fpr[corners], verification.tpr[corners], **style)
    if verification.eer > 0 or ax.get_xscale() == "linear":
        ax.plot(verification.eer, 1 - verification.eer, "o", color=style["color"])
    ax.set(xlabel="negative pairs accepted", ylabel="positive pairs accepted")
    ax.grid(alpha=0.3)
    _legend(ax, fontsize=8, loc="lower right")
    return ax


def open_set(result: OpenSetIdentification, ax: Axes | None = None, label: str = "") -> Axes:
    """Draws the detection and identification rate (DIR) over the false-alarm rate (FAR).

    The FAR is on a logarithmic axis. At the left end of the curve no unknown query is accepted. At
    its right end all queries are accepted, and the DIR is the share of known queries whose nearest
    neighbor is of their class.

    Args:
        result: The result of `metrics.open_set_identification`.
        ax: Axes to draw on, which may hold other curves; None for new ones.
        label: Name of the curve in the legend, which also shows the DIR at a FAR of 1 %.

    Returns:
        The axes.

    Raises:
        ArgumentTypeError: If `result` is not a result of `metrics.open_set_identification`.

    Example:
        >>> from kerasim import metrics
        >>> given = [[0.0], [9.0], [4.0]], [0, 1, 7], [[0.1], [9.1]], [0, 1]
        >>> result = metrics.open_set_identification(*given, metric="euclidean")
        >>> ax = open_set(result, label="digits")
        >>> ax.get_legend().get_texts()[0].get_text()
        'digits: DIR 100.0 % at FAR 1 %'
    """
    what = "the result of metrics.open_set_identification"
    _checks.has_attribute("result", result, "dir_at", what)
    ax = _axes(ax, (4, 4))
    style = _curve_style(ax, label, f"DIR {100 * result.dir_at(0.01):.1f} % at FAR 1 %")
    identified = result.known[result.identified]
    _draw_log_rate(ax, identified, len(result.known), result.unknown, style)
    ax.set(xlabel="unknown queries accepted (FAR)", ylabel="known queries identified (DIR)")
    ax.grid(alpha=0.3)
    _legend(ax, fontsize=8, loc="lower right")
    return ax


def rejection(result: OpenSetIdentification, ax: Axes | None = None, label: str = "") -> Axes:
    """Draws the share of wrong labels among the accepted queries over the share of rejected ones.

    All queries are accepted at the left end of the curve. It decreases if wrong labels have larger
    distances than correct ones. Both shares depend on how many of the queries are unknown.

    Args:
        result: The result of `metrics.open_set_identification`.
        ax: Axes to draw on, which may hold other curves; None for new ones.
        label: Name of the curve in the legend, which also shows the error without rejection.

    Returns:
        The axes.

    Raises:
        ArgumentTypeError: If `result` is not a result of `metrics.open_set_identification`.

    Example:
        >>> from kerasim import metrics
        >>> given = [[0.0], [9.0], [4.0]], [0, 1, 7], [[0.1], [9.1]], [0, 1]
        >>> result = metrics.open_set_identification(*given, metric="euclidean")
        >>> ax = rejection(result, label="digits")
        >>> ax.get_legend().get_texts()[0].get_text()
        'digits: error 33.3 % without rejection'
    """
    what = "the result of metrics.open_set_identification"
    _checks.has_attribute("result", result, "dir_at", what)
    ax = _axes(ax, (4, 4))
    style = _curve_style(ax, label, f"error {100 * result.error[-1]:.1f} % without rejection")
    corners = np.unique(np.linspace(1, len(result.error) - 1, 2_000).astype(int))
    ax.plot(result.rejected[corners], result.error[corners], **style)
    ax.set(xlabel="queries rejected", ylabel="wrong among the accepted queries")
    ax.grid(alpha=0.3)
    _legend(ax, fontsize=8, loc="upper right")
    return ax


def _curve_style(ax, label, figures) -> dict[str, Any]:
    """Returns the next color of the axes, and the entry of a curve in the legend."""
    color = COLORS[len(ax.get_legend_handles_labels()[1]) % len(COLORS)]
    return {"color": color, "label": f"{label}: {figures}" if str(label) else figures}


def _draw_log_rate(ax, right, total, wrong, style):
    """Draws the share of right distances accepted over that of wrong ones, on a logarithmic axis.

    Args:
        ax: Axes.
        right: Sorted distances that should be accepted.
        total: Number whose share is drawn.
        wrong: Sorted distances that should be rejected.
        style: Arguments of `plot`.
    """
    count = len(wrong)
    # A few thousand of the counts, evenly spaced on the logarithmic axis.
    counts = np.unique(np.append(0, np.geomspace(1, count, 2_000).round().astype("int64")))
    shares = np.searchsorted(right, np.append(wrong, np.inf)[counts], "left") / total
    least = 0.5 / count  # where no wrong distance is accepted, for which the axis has no place
    ax.plot(np.maximum(counts / count, least), shares, drawstyle="steps-post", **style)
    left = min(ax.get_xlim()[0], least) if ax.get_xscale() == "log" else least
    ax.set(xscale="log", xlim=(left, 1.2))


def _names_of(classes, class_names) -> list[str]:
    """Returns the name of each of `classes`, sorted labels; of class_names if they are given."""
    if class_names is None:
        return [str(label) for label in classes]
    class_names = _checks.as_list("class_names", class_names)
    numbered = classes.dtype.kind in "iu"
    if len(classes) and not (numbered and classes[0] >= 0 and classes[-1] < len(class_names)):
        raise ArgumentError(
            f"class_names holds {len(class_names)} names, labels are {classes[0]} to "
            f"{classes[-1]}: pass integer labels from 0, and a name for each."
        )
    return [str(class_names[label]) for label in classes]


def _scatter_classes(ax, groups, names, unlabeled, style):
    """Draws the points of each class in its color and marker, and a legend beside the axes."""
    handles = []
    for n, points in enumerate(groups):
        color = COLORS[n % len(COLORS)]
        marker = MARKERS[(n + n // len(COLORS)) % len(MARKERS)]
        handles.append(ax.scatter(*points.T, color=color, marker=marker, **style))
    if len(unlabeled):
        handles.append(ax.scatter(*unlabeled.T, color="0.6", marker=".", **style))
        names = [*names, "no label"]
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": -(-len(names) // 25)}
    for handle in _legend(ax, handles, names, markerscale=2.5, **beside).legend_handles:
        handle.set_alpha(1)


def latent_map(
    coordinates: ArrayLike,
    labels: ArrayLike | Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    images: ArrayLike | ImageFolder | None = None,
    ax: Axes | None = None,
    seed: int = 0,
) -> Axes:
    """Draws a map of the latent space: a point for each image, and thumbnails of some images.

    Args:
        coordinates: `(n, 2)`, such as those of `Projection.fit_transform`.
        labels: `(n,)` integers or strings for color and marker, or None. Points whose label is
            missing (None, NaN, `pandas.NA` or "") are gray, and the legend says "no label".
        class_names: A name for each label from 0 on, for the legend; None shows the labels.
        images: `(n, height, width, channels)` in [0, 1] or uint8 for thumbnails, or None. At most
            60 thumbnails are shown, which do not overlap.
        ax: Axes to draw on; None for new ones.
        seed: Seed of the choice of thumbnails.

    Returns:
        The axes.

    Raises:
        ArgumentError: If the number of images or labels differs from the number of points, or a
            label has no name.

    Example:
        >>> coordinates = np.random.default_rng(0).normal(size=(20, 2))
        >>> ax = latent_map(coordinates, np.arange(20) % 2, class_names=["cat", "dog"])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['cat', 'dog']
    """
    coordinates = _checks.vectors("coordinates", coordinates, 2, rows=1)
    thumbnails = None if images is None else _check_some("images", images)
    if thumbnails is not None:
        _checks.same_length("images", range(len(thumbnails)), len(coordinates), "coordinates")
    _checks.integer("seed", seed, 0)
    if labels is not None:
        labels, absent = _checks.optional_labels("labels", labels, len(coordinates), "coordinates")
        classes = np.unique(labels[~absent])
        names = _names_of(classes, class_names)
    ax = _axes(ax, (9, 7))
    alpha = float(np.clip(30 / np.sqrt(len(coordinates)), 0.25, 0.9))
    style = {"s": 9, "alpha": alpha, "linewidths": 0}
    if labels is None:
        ax.scatter(*coordinates.T, color=COLORS[0], **style)
    else:
        groups = [coordinates[(labels == label) & ~absent] for label in classes]
        _scatter_classes(ax, groups, names, coordinates[absent], style)
    if thumbnails is not None:
        _draw_thumbnails(ax, coordinates, thumbnails, seed)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    return ax


def _draw_thumbnails(ax, coordinates, images, seed):
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    span = np.ptp(coordinates, axis=0).max() or 1.0
    shown = np.empty((0, 2))
    for n in np.random.default_rng(seed).permutation(len(coordinates)):
        if len(shown) == 60:
            break
        if (np.abs(shown - coordinates[n]).max(axis=1) < 0.07 * span).any():
            continue
        shown = np.vstack([shown, coordinates[n]])
        image = as_float(images[n])
        image = np.broadcast_to(image, (*image.shape[:2], 3))  # gray as color
        box = OffsetImage(image, zoom=28 / image.shape[0])
        ax.add_artist(AnnotationBbox(box, coordinates[n], pad=0.1, bboxprops={"lw": 0.5}))


def neighbors(
    queries: ArrayLike | ImageFolder,
    found: ArrayLike,
    distances: ArrayLike | None = None,
    labels: ArrayLike | Sequence[Any] | None = None,
    query_labels: ArrayLike | Sequence[Any] | None = None,
    row_labels: Sequence[Any] | np.ndarray | None = None,
) -> Figure:
    """Draws each query beside its neighbors, nearest first.

    Args:
        queries: `(n, height, width, channels)` in [0, 1] or uint8.
        found: `(n, k, height, width, channels)`: the images of the neighbors.
        distances: `(n, k)`, written above each neighbor, or None.
        labels: `(n, k)` labels of the neighbors, or None. With `query_labels`, a neighbor of the
            class of the query has a solid frame, and one of another class a dashed frame. There is
            no frame if either label is missing.
        query_labels: `(n,)` labels of the queries, or None.
        row_labels: A string or number to write to the left of each query, such as the name of its
            class, or None.

    Returns:
        The figure.

    Raises:
        ArgumentError: If the shapes do not match.

    Example:
        >>> images = np.random.default_rng(0).random((10, 8, 8, 1))
        >>> indices, distances = np.array([[3, 5], [7, 2]]), np.array([[0.1, 0.2], [0.3, 0.4]])
        >>> figure = neighbors(images[:2], images[indices], distances)
        >>> [ax.get_title() for ax in figure.axes[:3]]
        ['query', '0.100', '0.200']
    """
    query_images, found = _check_some("queries", queries), _checks.array("found", found)
    _checks.shape("found", found, (len(query_images), *[None] * 4), "pass images[indices]")
    _check_some("found", found.reshape(found.shape[0] * found.shape[1], *found.shape[2:]))
    shapes = {"distances": (distances, found.shape[:2]), "labels": (labels, found.shape[:2])}
    shapes["query_labels"] = query_labels, found.shape[:1]
    for name, (rows, shape) in shapes.items():
        if rows is not None:
            _checks.shape(name, rows, shape, "pass one for each image")
    # Whether a neighbor has the label of its query; None if either label is missing.
    same = np.full(found.shape[:2], None)
    if labels is not None and query_labels is not None:
        found_labels, absent = _checks.optional_labels("labels", labels, None, "images")
        own_labels, own_absent = _checks.optional_labels(
            "query_labels", query_labels, None, "queries"
        )
        for row, column in np.argwhere(~(absent | own_absent[:, None])):
            same[row, column] = bool(found_labels[row, column] == own_labels[row])
    above = None if distances is None else np.asarray(distances)
    if row_labels is not None:
        _checks.same_length("row_labels", row_labels, len(found), "queries")
    left = _width_of(row_labels)
    # With this padding the frames do not touch.
    figure, axes = _figure(len(found), found.shape[1] + 1, 0.95, 1.15, left, pad=0.04)
    for line, name in zip(axes, () if row_labels is None else row_labels, strict=False):
        _name_row(line[0], name)
    for row, line in enumerate(axes):
        _show(line[0], query_images[row], "query" if row == 0 else "")
        _frame(line[0], "black", "-", 2)
        for column, ax in enumerate(line[1:]):
            title = "" if above is None else f"{above[row, column]:#.3g}".removesuffix(".")
            _show(ax, found[row, column], title)
            if same[row, column] is not None:
                color, style = (COLORS[2], "-") if same[row, column] else (COLORS[1], "--")
                _frame(ax, color, style, 2)
    return figure


def pair_explanation(
    left: ArrayLike | ImageFolder,
    right: ArrayLike | ImageFolder,
    left_maps: ArrayLike,
    right_maps: ArrayLike,
    similarities: ArrayLike | None = None,
) -> Figure:
    """Draws which regions of the two images of each pair make them similar.

    A row shows the two images of a pair in gray, with their contributions in color over them.
    Orange regions make the pair more similar than an average region does, blue regions less
    similar. The smaller a contribution, the more transparent its color. The colors of a row range
    over plus and minus the largest absolute contribution in it. A solid line surrounds
    contributions above half of that, a dashed line those below minus half of it.

    Args:
        left: `(n, height, width, channels)` in [0, 1] or uint8; about six pairs fill a page.
        right: The other image of each pair, likewise.
        left_maps: `(n, grid_height, grid_width)` for the left images, as
            `embedding.explain_pairs` returns them.
        right_maps: `(n, grid_height, grid_width)` for the right images.
        similarities: `(n,)`, written above each pair, or None.

    Returns:
        The figure.

    Raises:
        ArgumentError: If the numbers of images, maps or similarities differ, or one of these is
            not finite.

    Example:
        >>> images, maps = np.zeros((2, 8, 8, 1)), np.array([[[0.1, -0.1]], [[0.0, 0.2]]])
        >>> figure = pair_explanation(images[:1], images[1:], maps[:1], maps[1:], [0.75])
        >>> [ax.get_title(loc="left") for ax in figure.axes[:2]]
        ['similarity 0.75', '']
    """
    images = [_check_some("left", left), _check_some("right", right)]
    count = len(images[0])
    _checks.same_length("right", range(len(images[1])), count, "images of left")
    maps = [
        _check_maps(name, found, count)
        for name, found in (("left_maps", left_maps), ("right_maps", right_maps))
    ]
    titles = [""] * count
    if similarities is not None:
        values = _checks.as_real_array("similarities", similarities)
        _checks.finite(
            "similarities", _checks.same_length("similarities", values, count, "pairs", 1)
        )
        titles = [f"similarity {value:.3g}" for value in values]
    ratio = max(np.shape(one[0])[0] / np.shape(one[0])[1] for one in images)
    room = 0.0 if similarities is None else 0.25
    figure, axes = _figure(count, 2, _EXPLANATION_WIDTH, _EXPLANATION_WIDTH * ratio + room)
    for row, line in enumerate(axes):
        pair = [found[row] for found in maps]
        limit = max(np.abs(found).max() for found in pair) or 1.0
        for ax, image, found in zip(line, images, pair, strict=True):
            gray = as_float(image[row]).mean(axis=-1, keepdims=True)
            _show(ax, _BLACK + (_WHITE - _BLACK) * gray)
            overlay = _overlay(ax, found, limit)
        line[0].set_title(titles[row], fontsize=9, loc="left", parse_math=False)
        bar = figure.colorbar(overlay, ax=list(line), shrink=0.8, aspect=15, pad=0.02)
        bar.ax.tick_params(labelsize=9)
    return figure


def _check_maps(name, maps, count) -> np.ndarray:
    maps = _checks.as_real_array(name, maps)
    hint = "pass the maps of embedding.explain_pairs for these images"
    _checks.shape(name, maps, (count, None, None), hint)
    if not maps.size:
        raise ArgumentError(f"{name} has shape {maps.shape}, without positions: {hint}.")
    _checks.finite(name, maps)
    return maps


def _overlay(ax, contributions, limit):
    """Draws a map smoothly over the image on `ax`, in colors from -limit to limit."""
    from matplotlib.colors import ListedColormap, to_rgb

    shades = np.linspace(-1, 1, 255)
    hues = np.array([to_rgb(COLORS[0]), to_rgb(COLORS[1])])[(shades > 0).astype(int)]
    colors = ListedColormap(np.column_stack([hues, 0.95 * np.abs(shades)]))
    height, width = ax.images[0].get_array().shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    smooth = Image.fromarray(contributions.astype("float32"))
    smooth = np.asarray(smooth.resize((_MAP_PIXELS, _MAP_PIXELS), Image.Resampling.BICUBIC))
    smooth = smooth.clip(contributions.min(), contributions.max())  # cubic curves overshoot
    levels = [level for level in (-limit / 2, limit / 2) if smooth.min() < level < smooth.max()]
    for level in levels:
        color, line = (COLORS[1], "-") if level > 0 else (COLORS[0], "--")
        style = {"colors": color, "linestyles": line, "linewidths": 1.2}
        ax.contour(smooth, [level], extent=extent, origin="upper", **style)
    return ax.imshow(smooth, colors, vmin=-limit, vmax=limit, extent=extent)


def network(model: keras.Model, ax: Axes | None = None) -> Axes:
    """Draws a model as a row of bars, one for each layer that changes the shape.

    The height of a bar shows the logarithm of height x width of the feature map, and its width the
    logarithm of the number of channels. A model of `models.siamese` is drawn as two rows, one for
    each image. Dotted lines connect the layers that share their weights. In a U-Net arrows show the
    connections that skip layers; its other inputs, such as the step, are not drawn.

    Args:
        model: A `keras.Model`; models inside it are drawn layer by layer.
        ax: Axes to draw on; None for new ones.

    Returns:
        The axes.

    Raises:
        ArgumentError: If `model` is not built, its image size is not fixed, or it has an embedder
            of its own for each side.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
        ... )
        >>> ax = network(model)
        >>> [text.get_text() for text in ax.texts]
        ['Conv2D', '6 x 6 x 4', 'Flatten', '144']
    """
    if not getattr(model, "built", False) or not hasattr(model, "layers"):
        raise ArgumentError(
            f"model must be a built keras.Model. Received {type(model).__name__}: pass "
            "a model of a builder, or call yours once."
        )
    branch, joint = _branch_and_joint(model)
    steps, skips = _path_with_skips(model)
    if not skips:
        steps = _steps(branch)
    joint_steps = _steps(joint)
    kinds = dict.fromkeys(step.kind for step in steps + joint_steps)
    colors = dict(zip(kinds, itertools.cycle(COLORS), strict=False))
    size = (max(6, 1.05 * len(steps + joint_steps)), 4.2 if joint or skips else 2.8)
    ax = _axes(ax, size)
    if skips:
        right, top = _draw_skipping(ax, steps, skips, colors)
        ax.set(xlim=(-0.4, right), ylim=(-3.0, top))
    elif joint:
        right = _draw_twin(ax, steps, joint_steps, [tensor.name for tensor in model.inputs], colors)
        ax.set(xlim=(-0.9, right), ylim=(-_BRANCH - 2.3, _BRANCH + 2.3))
    else:
        right = _draw_bars(ax, steps, colors)
        ax.set(xlim=(-0.4, right), ylim=(-2.3, 2.3))
    ax.axis("off")
    return ax


class _Step(NamedTuple):
    """A layer that changes the shape, and whether it or a layer up to the next one has weights."""

    kind: str
    shape: tuple[int, ...]
    has_weights: bool

    @property
    def height(self) -> float:
        return float(0.3 + 0.14 * np.log2(np.prod(self.shape[:-1])))

    @property
    def width(self) -> float:
        return float(0.12 + 0.055 * np.log2(self.shape[-1]))


def _branch_and_joint(model):
    """Returns the layers of one branch of a Siamese network, and those that join both branches.

    For another model these are all of its layers, and none.
    """
    inner = [layer for layer in model.layers if hasattr(layer, "layers")]
    if len(model.inputs) == len(inner) == 2:
        raise ArgumentError(
            "model has two embedders, one for each side, and no shared weights. Draw each of them: "
            "plots.network(embedder)."
        )
    if len(model.inputs) != 2 or len(inner) != 1 or len(inner[0].inputs) != 1:
        return model.layers, []
    return inner[0].layers, model.layers[model.layers.index(inner[0]) + 1 :]


def _path_with_skips(model) -> tuple[list[_Step], list[tuple[int, int]]]:
    """Returns the steps of images through a U-Net, and pairs of steps: those that skips connect.

    There are no skips in other models, nor in one whose layers are models.
    """
    from kerasim import _keras_compat  # imports Keras

    image_inputs = [x for x in getattr(model, "inputs", None) or [] if len(x.shape) == 4]
    if len(image_inputs) != 1 or any(hasattr(layer, "layers") for layer in model.layers):
        return [], []
    steps, skips, step_of = [], [], {}
    for call in _keras_compat.graph_calls(model):
        sources = [step_of[id(x)] for x in call.inputs if id(x) in step_of]
        is_image = any(x is image_inputs[0] for x in call.outputs)
        if not sources and not is_image:
            continue  # it does not depend on the images
        shape = call.outputs[0].shape[1:]
        if None in shape or not shape:
            return [], []
        if not steps or _size(shape) != _size(steps[-1].shape):
            kind = type(call.operation).__name__.replace("Layer", "")
            steps.append(_Step(kind, shape, bool(getattr(call.operation, "weights", []))))
        here = len(steps) - 1
        step_of |= {id(x): here for x in call.outputs}
        skips += [(source, here) for source in sorted({*sources}) if here - source > 1]
    return steps, skips


def _size(shape) -> tuple[int, int]:
    """Returns the numbers of positions and of channels of a feature map or of tokens."""
    return math.prod(shape[:-1]), shape[-1]


def _steps(layers) -> list[_Step]:
    """Returns the first of consecutive layers with outputs of the same shape."""
    steps = []
    for shape, group in itertools.groupby(_flat(layers), _output_shape):
        if None in shape or not shape:
            raise ArgumentError(
                "model has a layer whose output has an unknown size or is a scalar: build "
                "it with a fixed image_shape, or draw a model inside it."
            )
        same_shape = list(group)
        kind = type(same_shape[0]).__name__.replace("Layer", "")
        steps.append(_Step(kind, shape, any(layer.weights for layer in same_shape)))
    return steps


def _flat(layers):
    """Yields the layers of a model in order, and those of models inside it."""
    for layer in layers:
        if hasattr(layer, "layers"):
            yield from _flat(layer.layers)
        else:
            yield layer


def _output_shape(layer) -> tuple:
    return tuple(getattr(layer.output, "shape", ())[1:])  # a list of outputs has none


def _draw_bars(ax, steps, colors, left=0.0, level=0.0, kinds=True, shapes=True) -> float:
    """Draws a row of bars around `level`, and returns where the next bar begins."""
    for step in steps:
        tall, broad = step.height, step.width
        style = {"color": colors[step.kind], "edgecolor": "black", "lw": 0.5, "alpha": 0.85}
        ax.bar(left, tall, broad, level - tall / 2, align="edge", **style)
        middle = left + broad / 2
        text = {"x": middle, "ha": "center", "fontsize": 9}
        if kinds:
            ax.text(y=level + tall / 2 + 0.06, s=step.kind, va="bottom", rotation=40, **text)
        if shapes:
            shape = " x ".join(map(str, step.shape))
            ax.text(y=level - tall / 2 - 0.08, s=shape, va="top", rotation=-40, **text)
        left += broad + 0.5
    return left


def _draw_skipping(ax, steps, skips, colors) -> tuple[float, float]:
    """Draws a row of bars and an arrow above them for each skip; returns the right end and the top.

    The names of the layers are below the bars, beside the shapes.
    """
    right = _draw_bars(ax, steps, colors, kinds=False, shapes=False)
    widths = [step.width + 0.5 for step in steps]
    middles = np.cumsum([0.0, *widths[:-1]]) + [step.width / 2 for step in steps]
    for step, middle in zip(steps, middles, strict=True):
        shape = " x ".join(map(str, step.shape))
        text = {"ha": "left", "va": "top", "rotation": -40, "rotation_mode": "anchor"}
        ax.text(middle, -step.height / 2 - 0.12, f"{step.kind}, {shape}", fontsize=9, **text)
    tallest = max(step.height for step in steps) / 2
    # The shortest skip is the lowest one, so that no two of nested ones cross.
    ordered = sorted(skips, key=lambda skip: skip[1] - skip[0])
    for n, (start, end) in enumerate(ordered, start=1):
        level = tallest + 0.28 * n
        places = [(start, steps[start].height / 2), (start, level), (end, level)]
        ax.plot(*zip(*((middles[k], y) for k, y in places), strict=True), "-", color="black", lw=1)
        tip = (middles[end], steps[end].height / 2)
        arrow = {"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", tip, (middles[end], level), arrowprops=arrow)
    return right + 1.0, tallest + 0.28 * (len(skips) + 1)


def _draw_twin(ax, steps, joint_steps, names, colors) -> float:
    """Draws two branches with shared weights and what joins them; returns the right end."""
    _draw_bars(ax, steps, colors, level=_BRANCH, shapes=False)
    right = _draw_bars(ax, steps, colors, level=-_BRANCH, kinds=False)
    left = 0.0
    for step in steps:
        if step.has_weights:
            inner = _BRANCH - step.height / 2
            ax.plot([left + step.width / 2] * 2, [-inner, inner], ":", color="black")
        left += step.width + 0.5
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    middle = (right - 0.5) / 2
    ax.text(middle, 0, "shared weights", ha="center", va="center", fontsize=9, bbox=box)
    for name, level in zip(names, (_BRANCH, -_BRANCH), strict=True):
        ax.text(-0.1, level, name, ha="right", va="center", fontsize=9, parse_math=False)
        arrow = {"arrowstyle": "->", "shrinkA": 0, "shrinkB": 2}
        ax.annotate("", (right + 0.3, 0), (right - 0.45, level), arrowprops=arrow)
    return _draw_bars(ax, joint_steps, colors, left=right + 0.3)


def _check_some(name, images) -> Any:
    images = check_images(name, images)
    if not len(images) or images.shape[3] not in (1, 3):
        raise ArgumentError(
            f"{name} must be one image or more, of 1 or 3 channels. Received shape "
            f"{images.shape}: pass (n, height, width, channels)."
        )
    return images


def _axes(ax, size):
    import matplotlib.pyplot as plt

    if ax is None:
        return plt.subplots(figsize=size, layout="constrained")[1]
    _checks.has_attribute("ax", ax, "set_xlabel", "axes of matplotlib")
    return ax


def _legend(ax, *entries, **style):
    """Draws the legend. Names are shown literally: a "$" does not begin a formula."""
    legend = ax.legend(*entries, frameon=False, **style)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def _figure(rows, columns, width, height, left=0.0, pad=0.02):
    import matplotlib.pyplot as plt

    size = (columns * width + left, rows * height)
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=_DPI, squeeze=False)
    figure.set_layout_engine("constrained", w_pad=pad, h_pad=pad, wspace=0.02, hspace=0.02)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        _frame(ax, "none", "-", 0)
    return figure, axes


def _frame(ax, color, style, width):
    for spine in ax.spines.values():
        spine.set(edgecolor=color, linestyle=style, linewidth=width, visible=width > 0)


def _show(ax, image, title=""):
    image = as_float(image)
    ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=9, pad=3, parse_math=False)


def _width_of(names) -> float:
    """Returns the width of the longest line of some names in inches, 0 without names."""
    lines = [line for name in (() if names is None else names) for line in str(name).split("\n")]
    return 0.1 + 0.08 * max(map(len, lines)) if lines else 0.0


def _name_row(ax, name):
    """Writes the name of a row to the left of its first image."""
    ax.set_ylabel(str(name), rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
