"""Where the positions of a feature map lie in the image.

Position `i` of an axis is centered at `start + step * i`, in pixels from the edge of the image. A
window of `k` positions with stride `s`, with `p` positions of padding before the first, moves and
widens the grid:

    start + step * ((k - 1) / 2 - p),    step * s

So a network without padding has no features near the edge: stretched over the image, its map would
be misplaced by several cells.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import layers

from kerasim import _keras_compat


@dataclass(frozen=True)
class Axis:
    """The positions of a feature map along one axis of the image.

    Attributes:
        size: Number of positions.
        start: Center of the first one, in pixels from the edge.
        step: Distance of neighboring ones in pixels.
    """

    size: int
    start: float = 0.5
    step: float = 1.0

    def window(self, kernel: int, stride: int, dilation: int, padding: str) -> "Axis":
        """Returns the positions after a convolution or pooling."""
        reach = dilation * (kernel - 1)
        if padding == "same":
            size = -(-self.size // stride)
            before = max((size - 1) * stride + reach + 1 - self.size, 0) // 2
        else:
            size, before = (self.size - reach - 1) // stride + 1, 0
        start = self.start + self.step * (reach / 2 - before)
        return Axis(size, start, self.step * stride)

    def extended(self, before: int, after: int) -> "Axis":
        """Returns the positions with these many more at the ends (negative: fewer)."""
        size = self.size + before + after
        return replace(self, size=size, start=self.start - self.step * before)

    def resized(self, size: int) -> "Axis":
        """Returns `size` positions over the same part of the image."""
        step = self.step * self.size / size
        return Axis(size, self.start + (step - self.step) / 2, step)

    def margins(self, pixels: int) -> tuple[int, int]:
        """Returns how many positions more, before and after, would cover an axis of `pixels`."""
        before = max(0, math.floor(self.start / self.step))
        return before, max(0, round(pixels / self.step) - self.size - before)


Grid = tuple[Axis, Axis]


def margins(path, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns by how many positions a feature map falls short of the image at each of its edges.

    Args:
        path: Each model and the call in it (see `_keras_compat.GraphCall`), from the outermost
            model to the layer that returns the feature map.
        image_size: `(height, width)` of the image.

    Returns:
        `[(top, bottom), (left, right)]`; zeros behind a layer whose geometry is not known.
    """
    height, width = image_size
    grid: Grid | None = Axis(height), Axis(width)
    for depth, (model, call) in enumerate(path, start=1):
        end = call.outputs[0] if depth == len(path) else call.inputs[0]
        grid = _grids(model, grid).get(id(end))
        if grid is None:
            return [(0, 0), (0, 0)]
    return [axis.margins(pixels) for axis, pixels in zip(grid, image_size, strict=True)]


def _grids(model, grid: Grid) -> dict[int, Grid]:
    """Returns the grid of each tensor of `model` that has one, by the id of the tensor."""
    grids = {id(model.inputs[0]): grid}
    for operation, inputs, outputs in _keras_compat.graph_calls(model):
        known = [(x, grids[id(x)]) for x in inputs if id(x) in grids]
        if known and len(outputs) == 1:
            # A gate of one position for each channel may be multiplied with a map.
            x, widest = max(known, key=lambda one: one[1][0].size * one[1][1].size)
            after = _after(operation, x, outputs[0], widest)
            if after is not None:
                grids[id(outputs[0])] = after
    return grids


def _after(operation, x, output, grid: Grid) -> Grid | None:
    """Returns the grid of the output of an operation on `x`, None if it is not known."""
    if isinstance(operation, keras.Model) and getattr(operation, "inputs", None):
        return _grids(operation, grid).get(id(operation.outputs[0]))
    if isinstance(operation, layers.ZeroPadding2D):
        return _each(grid, lambda axis, ends: axis.extended(*ends), operation.padding)
    if isinstance(operation, layers.Cropping2D):
        return _each(grid, lambda axis, ends: axis.extended(-ends[0], -ends[1]), operation.cropping)
    if isinstance(operation, layers.UpSampling2D):
        return _each(grid, lambda axis, factor: axis.resized(axis.size * factor), operation.size)
    settings = _window_of(operation)
    if settings is not None:
        padding = operation.padding
        return _each(
            grid, lambda axis, one: axis.window(*one, padding), zip(*settings, strict=True)
        )
    # All others that keep the size, such as activations, are taken to keep the positions.
    same = len(output.shape) == 4 and output.shape[1:3] == x.shape[1:3]
    return grid if same else None


def _each(grid: Grid, change, settings: Iterable) -> Grid:
    """Returns both axes of `grid`, each changed by its own setting."""
    rows, columns = (change(axis, one) for axis, one in zip(grid, settings, strict=True))
    return rows, columns


def _window_of(operation: Any):
    """Returns the sizes, strides and dilations of the windows of an operation; None without."""
    if isinstance(operation, layers.Conv2D | layers.DepthwiseConv2D | layers.SeparableConv2D):
        return operation.kernel_size, operation.strides, operation.dilation_rate
    if isinstance(operation, layers.MaxPooling2D | layers.AveragePooling2D):
        return operation.pool_size, operation.strides, (1, 1)
    return None
