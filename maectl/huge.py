"""Images too large to be decoded whole, a part at a time: bands, samples that stand for them, coarser windows.

C channels, S the spatial shape. Volumes are never taken for too large: few of their formats have windows.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels, Window
from maectl.stream import LOOK, generator

__all__ = ["bands", "fewer", "is_huge", "sample"]

HUGE = 1 << 29  # bytes above which an image is not decoded whole, but band by band
BAND = 1 << 27  # bytes a band
BLOCK = 512  # rows: bands are whole multiples, so that a block of a raster is decoded once
LOOKED_AT = 32  # windows of 512 x 512 that stand for a huge image in statistics
COARSE = 1 << 24  # pixels of a window above which fewer are asked for, where fewer are used


def is_huge(shape: Sequence[int], dtype: npt.DTypeLike) -> bool:
    """Whether [C, *S] is an image too large to be decoded whole. Volumes never are: few formats have windows."""
    return len(shape) == 3 and prod(shape) * np.dtype(dtype).itemsize > HUGE


def bands(shape: Sequence[int], dtype: npt.DTypeLike) -> list[Window]:
    """Windows that cover an image [C, *S], one unless it is huge: whole rows, top to bottom."""
    channels, rows, *others = shape
    step = rows
    if is_huge(shape, dtype):
        step = BAND // (channels * others[0] * np.dtype(dtype).itemsize)
        step = max(1, step // BLOCK * BLOCK or step)
    rest = tuple(slice(0, side) for side in others)
    return [(slice(first, min(first + step, rows)), *rest) for first in range(0, rows, step)]


def sample(read: Callable[[Window | None], Pixels], shape: Sequence[int], dtype: npt.DTypeLike) -> Pixels:
    """Pixels that stand for an image [C, *S]: all, or of a huge one 32 windows, which its size decides."""
    if not is_huge(shape, dtype):
        return read(None)
    extent, chance = shape[1:], generator(0, prod(shape), LOOK)
    sides = [min(BLOCK, side) for side in extent]
    parts = []
    for _ in range(LOOKED_AT):
        corner = [int(chance.integers(0, -(-e // s))) * s for e, s in zip(extent, sides, strict=True)]
        starts = [min(start, e - s) for start, e, s in zip(corner, extent, sides, strict=True)]
        parts.append(read(tuple(slice(a, a + s) for a, s in zip(starts, sides, strict=True))))
    valid = None
    if any(part.valid is not None for part in parts):
        valid = np.concatenate([np.ones(sides, np.bool_) if part.valid is None else part.valid for part in parts])
    return Pixels(np.concatenate([part.values for part in parts], axis=1), valid)


def fewer(window: Window, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """The fewest pixels a window may be read with to become ``size``; None where it is to be read as it is."""
    sides = [side.stop - side.start for side in window]
    least = tuple(min(side, 2 * wanted) for side, wanted in zip(sides, size, strict=True))
    return least if prod(sides) > COARSE and prod(least) * 4 <= prod(sides) else None
