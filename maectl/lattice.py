"""An image of any size at the scale of training's windows, a part at a time.

Where training drew windows of a fixed size (``data.crop: 224px``, ``2240m``), an image meets the model at that scale.
The patches are a lattice that begins at the image's first pixel and ends at or beyond its last; what lies beyond is
invalid. Tiles of the model's size lie on the lattice, neighbours sharing half or more, where they lie depends on the
image's size alone. A part is what is needed to know some patches of it: the tiles that hold one of them.

E the image's extent in pixels, G the lattice's in patches. Two axes: rows, columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, floor, prod

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels, Source, Window
from maectl.checkpoint import Config
from maectl.resize import REACH, resample
from maectl.tiling import Layout, layout
from maectl.windows import cover, crop_pixels

__all__ = ["Lattice", "Part", "affordable"]

SLACK = 1e-6  # of a patch: what rounding may add to an extent
MOST = 1 << 25  # values of a part, as the image has them or as the model sees them


@dataclass(frozen=True)
class Lattice:
    """Patches over an image.

    extent  (H, W) of the image in its pixels
    scale   pixels the model sees for one of the image's, along each axis
    patch   pixels of the model along each axis of a patch
    grid    patches along each axis of a tile
    """

    extent: tuple[int, ...]
    scale: tuple[float, ...]
    patch: tuple[int, ...]
    grid: tuple[int, ...]

    @classmethod
    def of(cls, source: Source, config: Config) -> "Lattice":
        """That of an image at the scale of training's windows. Raises UsageError where mm or m are not known.

        Where training saw whole images, it is brought to the scale that has its shorter side as long as the model's,
        and stretched to whole patches.
        """
        size, patch = (tuple(int(side) for side in config.model[key]) for key in ("image_size", "patch_size"))
        extent, grid = source.shape[1:], tuple(s // p for s, p in zip(size, patch, strict=True))
        window = crop_pixels(config.crop, size, source.spacing)
        if window is None:
            plan = layout(extent, size, patch)
            return cls(extent, tuple(s / e for s, e in zip(plan.size, extent, strict=True)), patch, grid)
        return cls(extent, tuple(s / w for s, w in zip(size, window, strict=True)), patch, grid)

    @property
    def step(self) -> tuple[float, ...]:
        """Pixels of the image that a patch spans along each axis."""
        return tuple(p / s for p, s in zip(self.patch, self.scale, strict=True))

    @property
    def cells(self) -> tuple[int, ...]:
        """Patches along each axis (G)."""
        return tuple(max(1, ceil(e / step - SLACK)) for e, step in zip(self.extent, self.step, strict=True))

    def windows(self, side: int) -> Iterator[Window]:
        """Disjoint windows of so many of the image's pixels that cover it, row by row."""
        yield from _squares(tuple(slice(0, e) for e in self.extent), side)

    def blocks(self, side: int, within: Window | None = None) -> Iterator[Window]:
        """Disjoint windows of so many patches that cover the lattice, or a window of it, row by row."""
        yield from _squares(tuple(slice(0, side) for side in self.cells) if within is None else within, side)

    def holding(self, window: Window) -> Window:
        """The patches that the centres of a window's pixels lie in."""
        ends = [
            (floor((side.start + 0.5) / step), floor((side.stop - 0.5) / step) + 1)
            for side, step in zip(window, self.step, strict=True)
        ]
        return tuple(slice(min(low, g - 1), min(high, g)) for (low, high), g in zip(ends, self.cells, strict=True))

    def part(self, cells: Window) -> "Part":
        """What is needed to know the patches in a window of the lattice, and those next to them."""
        starts = []
        for side, g, grid in zip(cells, self.cells, self.grid, strict=True):
            every, low, high = cover(max(g, grid), grid), max(0, side.start - 1), min(g, side.stop + 1)
            starts.append([start for start in every if start < high and start + grid > low])
        origin = tuple(each[0] for each in starts)
        count = tuple(each[-1] - each[0] + grid for each, grid in zip(starts, self.grid, strict=True))
        size = tuple(c * p for c, p in zip(count, self.patch, strict=True))
        return Part(self, cells, Layout(size, count, self.grid, self.patch, tuple(starts), origin))


@dataclass(frozen=True)
class Part:
    """Some patches of a lattice, and the tiles that hold one of them or of their neighbours.

    cells  the patches, in the lattice
    plan   the tiles, as `tiling` lays them out
    """

    lattice: Lattice
    cells: Window
    plan: Layout

    @property
    def inner(self) -> Window:
        """The patches, in the plan."""
        return tuple(
            slice(side.start - first, side.stop - first)
            for side, first in zip(self.cells, self.plan.origin, strict=False)
        )

    @property
    def corner(self) -> tuple[float, ...]:
        """Where the plan begins in the image, in its pixels."""
        return tuple(first * step for first, step in zip(self.plan.origin, self.lattice.step, strict=False))

    def seen(self, read: Callable[[Window], Pixels], fill: npt.NDArray[np.float64]) -> Pixels:
        """What the model sees, [C, *plan.size]; ``fill`` [C] where there is no valid pixel. Raises Unreadable."""
        reach = []
        for start, size, scale, extent in zip(
            self.corner, self.plan.size, self.lattice.scale, self.lattice.extent, strict=True
        ):
            margin = (REACH + 1) * max(1.0, 1 / scale) + 1
            low, high = floor(start - margin), ceil(start + size / scale + margin)
            reach.append(slice(max(0, low), min(extent, high)))
        starts = tuple(start - side.start for start, side in zip(self.corner, reach, strict=True))
        return resample(read(tuple(reach)), starts, self.lattice.scale, self.plan.size, fill)

    def places(self, window: Window) -> list[npt.NDArray[np.int64]]:
        """Along each axis, the patch of the plan that the centre of every pixel of a window of the image lies in."""
        found = []
        axes = zip(window, self.lattice.step, self.plan.cells, self.plan.origin, strict=False)
        for side, step, cells, first in axes:
            centres = (np.arange(side.start, side.stop) + 0.5) / step
            found.append(np.clip(np.floor(centres).astype(np.int64) - first, 0, cells - 1))
        return found


def affordable(side: int, pixels: Sequence[float], channels: int) -> int:
    """A side, halved until a square of it has 32 million values at most; ``pixels`` are those of 1 along each axis."""
    while side > 1 and channels * prod(side * each for each in pixels) > MOST:
        side //= 2
    return side


def _squares(window: Window, side: int) -> Iterator[Window]:
    for corner in product(*(range(each.start, each.stop, side) for each in window)):
        yield tuple(slice(start, min(start + side, each.stop)) for start, each in zip(corner, window, strict=True))
