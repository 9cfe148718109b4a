"""Where a crop's pixels come from: the store, a window of the file, or a source decoded once for several crops.

A photograph of many more pixels than the model sees is decoded at a half, a quarter or an eighth of its size. A value
is then the mean of so many pixels squared, but for rounding: next to what the resize would make of them. Crops are
drawn to lie on whole pixels of the smaller image (`windows.Crop.shrink`); where an image that its file tells to turn
has sides that are none, several crops of one decoding lie less than such a pixel aside.
"""

from collections.abc import Sequence
from math import ceil, prod

import numpy as np

from maectl.adapter import Pixels, Window
from maectl.reading import Reader
from maectl.windows import MARGIN, Crop, Span, least_sides, shrinkage

__all__ = ["Cutter"]

IMAGE, VOLUME = 1 << 27, 1 << 29  # bytes up to which an image, or a volume, is decoded whole for several crops


class Cutter:
    """Cuts windows out of the sources of a part of a batch, one after another; for one thread.

    ``crop``    how crops are drawn; with ``crop.shrink`` images may be decoded smaller
    ``several`` whether crops of a source follow one another: it is then decoded whole, once, unless it is too large
    """

    def __init__(self, reader: Reader, crop: Crop, several: bool = False) -> None:
        self.reader, self.crop, self.several = reader, crop, several
        self._held: tuple[int, Pixels] | None = None

    def cut(self, row: int, window: Window, size: Span | None) -> Pixels:
        """The pixels of a window, which will become ``size`` (None: a slice of a volume). Raises Unreadable.

        They are fewer than the window's where the source was decoded smaller, at least `windows.MARGIN` times ``size``.
        """
        stored = self.reader.store is not None and row in self.reader.store
        if self.several and (whole := self._whole(row, stored)) is not None:
            return _part(whole, window, self.reader.shapes[row, 1:].tolist())
        sides = [side.stop - side.start for side in window]
        if self.crop.shrink and not stored and shrinkage(sides, self.crop.size) > 1:
            return self.reader.decode(row, window, tuple(ceil(MARGIN * side) for side in self.crop.size))
        return self.reader.read(row, window, size)

    def _whole(self, row: int, stored: bool) -> Pixels | None:
        """All of a source, maybe smaller; None where it is too large, or stored other than images of bytes, which
        alone may lie in a store as JPEG."""
        if self._held is not None and self._held[0] == row:
            return self._held[1]
        self._held = None  # let go of the last one before the next is decoded
        shape, dtype = self.reader.shapes[row].tolist(), self.reader.index.dtype(row)
        extent, shrink = shape[1:], self.crop.shrink and not stored
        factor = shrinkage(least_sides(self.crop, extent), self.crop.size) if shrink else 1
        largest = VOLUME if len(extent) == 3 else IMAGE
        large = prod(shape) * dtype.itemsize > largest * factor**2 or self.reader.huge(row)
        if large or (stored and (dtype != np.uint8 or len(extent) == 3)):
            return None
        if factor > 1:
            window = tuple(slice(0, side) for side in extent)
            pixels = self.reader.decode(row, window, tuple(-(-side // factor) for side in extent))
        else:
            pixels = self.reader.read(row)
        self._held = row, pixels
        return pixels


def _part(whole: Pixels, window: Window, extent: Sequence[int]) -> Pixels:
    """A window of a source of that extent which was decoded whole, maybe smaller: then on its nearest pixels."""
    have = whole.values.shape[1:]
    if list(have) != list(extent):
        window = tuple(_scaled(side, h, e) for side, h, e in zip(window, have, extent, strict=True))
    valid = None if whole.valid is None else whole.valid[window]
    return Pixels(whole.values[(slice(None), *window)], None if valid is None or valid.all() else valid)


def _scaled(side: slice, have: int, extent: int) -> slice:
    factor = round(extent / have)
    scale = factor if have == -(-extent // factor) else extent / have
    start = min(have - 1, round(side.start / scale))
    return slice(start, have if side.stop == extent else min(have, max(start + 1, round(side.stop / scale))))
