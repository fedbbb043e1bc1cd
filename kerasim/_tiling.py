"""Applies a network from images to images to images of any size, tile by tile."""

from collections.abc import Callable, Iterator

import numpy as np

# Pixels that two neighboring tiles share. A network sees no further than the edge of its tile, so
# that its output near that edge is not what it would be in the whole image. Of the shared pixels,
# those nearest to the edge of a tile get no weight, and those between have weights from 0 to 1.
_OVERLAP = 64  # or a quarter of a tile, if that is less
_DISCARDED = 0.375  # of the shared pixels, at either end


def apply(
    function: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    tile: tuple[int, int],
    multiple: int | None,
    output: np.ndarray,
    done: Callable[[], object] = lambda: None,
) -> None:
    """Writes the output of `function` for an image, from overlapping tiles, to `output`.

    Args:
        function: From a tile `(1, height, width, channels)` to an array of that shape.
        image: `(height, width, channels)` float32.
        tile: Height and width of a tile, multiples of `multiple`. A smaller image is one tile.
        multiple: Heights and widths that `function` takes are multiples of it, and tiles start at
            multiples. None if it takes tiles of that size only. Images are extended by reflection
            to such a size.
        output: float32 array of the shape of the image.
        done: Called after each tile.
    """
    axes = _axes(image.shape, tile, multiple)
    image = extend(image[None], tile, multiple)[0]
    output[:] = 0
    for row, row_weights in axes[0]:
        for column, column_weights in axes[1]:
            weights = row_weights[:, None, None] * column_weights[:, None]
            found = weights * function(image[None, row, column])[0]
            part = output[row, column]  # without what the image was extended by
            part += found[: part.shape[0], : part.shape[1]]
            done()


def count(shape: tuple[int, ...], tile: tuple[int, int], multiple: int | None) -> int:
    """Returns the number of tiles of an image `(height, width)`."""
    rows, columns = _axes(shape, tile, multiple)
    return len(rows) * len(columns)


def extend(images: np.ndarray, tile: tuple[int, int], multiple: int | None) -> np.ndarray:
    """Returns images `(n, height, width, channels)` extended at the bottom and at the right.

    They are extended by reflection to the next multiple, or to the size of one tile.
    """
    axes = _axes(images.shape[1:], tile, multiple)
    more = [(0, axis.extended - axis.size) for axis in axes]
    if not any(end for _, end in more):
        return images
    return np.pad(images, ((0, 0), *more, (0, 0)), mode="reflect")


def _axes(shape, tile, multiple) -> list:
    return [_Axis(*axis, multiple) for axis in zip(shape[:2], tile, strict=True)]


class _Axis:
    """The tiles along one axis: the slice of each, and the weights of its pixels.

    The weights of the tiles of a pixel add up to 1.

    Args:
        size: Pixels of the image.
        tile: Pixels of a tile.
        multiple: Tiles have a multiple of it and start at one; None for tiles of `tile` pixels.
    """

    def __init__(self, size: int, tile: int, multiple: int | None):
        grid = multiple or 1
        self.size = size
        self.extended = size + -size % grid
        self.tile = tile if multiple is None else min(tile, self.extended)
        self.extended = max(self.extended, self.tile)
        step = self.tile - min(_OVERLAP, self.tile // 4)
        step = max(step - step % grid, grid)
        last = self.extended - self.tile
        self.starts = [*range(0, last, step), last]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        ends = [start + self.tile for start in self.starts]
        for n, (start, end) in enumerate(zip(self.starts, ends, strict=True)):
            weights = np.ones(self.tile, "float32")
            if n > 0:
                weights *= _ramp(ends[n - 1] - start, self.tile)
            if n + 1 < len(ends):
                weights *= 1 - _ramp(end - self.starts[n + 1], self.tile, end=True)
            yield slice(start, end), weights


def _ramp(shared: int, tile: int, end: bool = False) -> np.ndarray:
    """Returns weights that rise from 0 to 1 over the first `shared` pixels, or over the last."""
    discarded = int(_DISCARDED * shared)
    rising = shared - 2 * discarded
    places = np.arange(tile, dtype="float32") - (tile - shared if end else 0)
    return np.clip((places - discarded + 0.5) / rising, 0, 1)
