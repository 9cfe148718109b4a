"""Images covered by windows of the model's view, side by side, at the scale that features are seen at.

Windows are of ``data.crop``, else the one view of the whole image (`features.looks`); of a volume and a 2-D model in
slices. What they leave at the rim is shared by both sides; where it is more than half a window, one more reaches
beyond it.

C channels, S the model's spatial size.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels, Source, Window
from maectl.checkpoint import Config
from maectl.features import looks
from maectl.planes import flat, rest, slab
from maectl.resize import fitted
from maectl.store import Reader
from maectl.windows import Span, coarser

__all__ = ["Look", "View", "covering", "once", "part_of", "together", "views"]

TOGETHER = 1 << 25  # bytes of windows of one image read at once
IMAGE, VOLUME = 1 << 26, 1 << 30  # values up to which an image, or a volume, seen several times is decoded whole, once


@dataclass(frozen=True)
class Look:
    """One window: ``plane`` of an image, or of the slice ``place`` of a volume along ``axis`` (-1: not sliced).

    span  what the window is a cut of (`resize.fitted`)
    cell  its place among the windows of its image: of slices, then of rows, of columns
    """

    row: int
    axis: int
    place: int
    plane: Window
    span: Span
    cell: tuple[int, ...]

    @property
    def window(self) -> Window:
        """Of the source."""
        return slab(self.axis, self.place, self.plane)


@dataclass(frozen=True)
class View:
    """A window at the model's size; ``own`` is what of it the image takes, in its middle."""

    pixels: Pixels
    own: tuple[int, ...]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


def covering(source: Source, row: int, config: Config) -> list[Look]:
    """The windows that a source is seen in, in order; none overlaps another."""
    axis, seen = looks(source, config)
    window, span = seen[0]
    extent = rest(source.shape[1:], axis)
    planes: dict[tuple[int, ...], Window] = {}
    if config.crop == "image":
        planes[(0,) * len(extent)] = tuple(side for number, side in enumerate(window) if number != axis)
    else:
        starts = [_beside(e, side) for e, side in zip(extent, span, strict=True)]
        for cell in product(*(range(len(each)) for each in starts)):
            corner = [each[place] for each, place in zip(starts, cell, strict=True)]
            planes[cell] = tuple(
                slice(start, min(start + side, e)) for start, side, e in zip(corner, span, extent, strict=True)
            )
    if axis < 0:
        return [Look(row, axis, -1, plane, span, cell) for cell, plane in planes.items()]
    slices = sorted({each[axis].start for each, _ in seen})
    return [
        Look(row, axis, place, plane, span, (number, *cell))
        for number, place in enumerate(slices)
        for cell, plane in planes.items()
    ]


def _beside(extent: int, side: int) -> list[int]:
    """Starts of windows side by side: as many as come nearest to the extent, in its middle where they leave some."""
    count = max(1, round(extent / side))
    return [max(0, extent - count * side) // 2 + number * side for number in range(count)]


def together(chosen: Sequence[Look], wanted: npt.NDArray[np.integer], config: Config) -> list[list[int]]:
    """Windows (by number) that are read together: of one image, in order, and few enough for memory."""
    values = prod(config.model["image_size"]) * int(config.model["channels"])
    most = max(1, TOGETHER // (4 * values))
    by_row: dict[int, list[int]] = defaultdict(list)
    for number in wanted:
        by_row[chosen[number].row].append(int(number))
    return [each[start : start + most] for each in by_row.values() for start in range(0, len(each), most)]


def views(reader: Reader, config: Config, wanted: Sequence[Look]) -> Iterator[View]:
    """Windows of one image at the model's size. Raises Unreadable."""
    row, size = wanted[0].row, tuple(int(side) for side in config.model["image_size"])
    shape = reader.index[row].shape
    whole = reader.read(row) if once(shape, len(wanted)) else None
    mean, std = config.normalizer.constants(lambda: whole or reader.sample(row))
    for look in wanted:
        if whole is not None:
            cut = flat(part_of(whole, look.window), look.axis)
        else:
            cut = flat(reader.read(row, look.window, size if look.axis < 0 else None), look.axis)
        have = cut.values.shape[1:]
        span = coarser(look.span, look.window, have)
        own = tuple(max(1, round(side * h / s)) if s > h else side for side, h, s in zip(size, have, span, strict=True))
        yield View(fitted(cut, span, size, mean), own, mean, std)


def once(shape: Sequence[int], count: int) -> bool:
    """Whether so many windows of a source [C, *S] are cut out of the whole of it."""
    return count > 1 and prod(shape) <= (VOLUME if len(shape) == 4 else IMAGE)


def part_of(whole: Pixels, window: Window) -> Pixels:
    """A window of what was decoded whole."""
    valid = None if whole.valid is None else whole.valid[window]
    return Pixels(whole.values[(slice(None), *window)], None if valid is None or valid.all() else valid)
