"""A band of another resolution on the scene's grid: linear where it becomes finer, a triangle where coarser.

Along each axis apart, row y of the scene lies at a·(y + 1/2) + b in the file, and pixel i of the file at i + 1/2. Its
value is the mean of the file's pixels with weights max(0, 1 - distance / width), of width max(1, |a|) pixels: linear
interpolation while |a| <= 1, and the usual antialiasing filter (Pillow's and torch's "bilinear") beyond. Beyond the
edges the outermost pixel counts. A weight depends on the place in the scene alone, and sums run in one order, so a
window is the slice of the whole to the last bit.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maectl_satellite.layout import Line

__all__ = ["Taps", "resampled"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_LEAST = 1e-6  # a weight below this is that of a place which is on a pixel but for rounding


@dataclass(frozen=True)
class Taps:
    """Which pixels of a file count how much in each of n pixels of the scene, along one axis.

    members  [k, n] positions in the file
    weights  [k, n], with sums of 1 over k; 0 where a pixel has no part
    """

    members: Integers
    weights: Floats

    @classmethod
    def of(cls, side: slice, line: Line, length: int) -> "Taps":
        """Of the pixels ``side`` of the scene, in a file of ``length`` pixels."""
        scale, shift = line
        place = scale * (np.arange(side.start, side.stop) + 0.5) + shift
        width = max(1.0, abs(scale))
        reach = int(np.ceil(width))
        members = np.floor(place - 0.5).astype(np.int64) + np.arange(-reach, reach + 2)[:, None]
        weights = np.maximum(0.0, 1 - np.abs(members + 0.5 - place) / width)
        weights[weights < _LEAST] = 0
        total = np.zeros_like(place)
        for each in weights:  # in one order, which np.sum does not promise
            total += each
        used = (weights > 0).any(axis=1)
        return cls(np.clip(members[used], 0, length - 1), weights[used] / total)

    @property
    def span(self) -> slice:
        """The pixels of the file that have a part."""
        return slice(int(self.members.min()), int(self.members.max()) + 1)


def resampled(values: Floats, valid: Bools | None, rows: Taps, columns: Taps) -> tuple[Floats, Bools | None]:
    """Values [C, h, w] and validity [h, w] (None: all) from those of the file at ``rows.span``, ``columns.span``.

    A pixel is valid where every pixel of the file with a part in it is; of an invalid one, be it NaN, nothing comes
    into a valid one.
    """
    if valid is not None:
        values = np.where(valid, values, 0.0)
    for taps, axis in ((rows, 1), (columns, 2)):
        values = _weighted(values, taps, axis)
        if valid is not None:
            valid = _all(valid, taps, axis - 1)
    return values, valid


def _weighted(values: Floats, taps: Taps, axis: int) -> Floats:
    """Weighted means along an axis, a tap at a time."""
    shape = [-1 if each == axis else 1 for each in range(values.ndim)]
    total: Floats | None = None
    for member, weight in zip(taps.members - taps.span.start, taps.weights, strict=True):
        part = values.take(member, axis) * weight.reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None  # weights sum to 1, so there is one
    return total


def _all(valid: Bools, taps: Taps, axis: int) -> Bools:
    """Whether all pixels with a weight are valid, along an axis."""
    shape = [-1 if each == axis else 1 for each in range(valid.ndim)]
    found: Bools | None = None
    for member, weight in zip(taps.members - taps.span.start, taps.weights, strict=True):
        part = valid.take(member, axis) | (weight == 0).reshape(shape)
        found = part if found is None else found & part
    assert found is not None
    return found
