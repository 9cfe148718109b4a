"""Stored pixels to values: look-up tables, slope and intercept, MONOCHROME1, padding.

A grey value is ``s slope + intercept`` of the stored value s, or the entry of a modality look-up table for it.
MONOCHROME1 shows low values bright; there s is replaced by ``lowest + highest - s`` of the values that can be stored
(for a table: entries by ``lowest + highest`` of what it may give), so that bright means more and the range, the dtype
and the unit stay.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from maectl_medical.dicom.image import Rescale

__all__ = ["dtype_of", "unused_bits_cleared"]

Array = npt.NDArray[Any]

_INTEGERS = ("uint8", "int16", "uint16")


def dtype_of(span: tuple[int, int] | None, rescales: set[Rescale], unit: str) -> str:
    """The smallest of uint8, int16 and uint16 that holds every value of ``span`` rescaled, else float32.

    None for the span says that stored values are floating point or wider than 16 bits. HU are int16 even where 16
    stored bits and an intercept could express more: nothing is denser than 32,767 HU, or thinner than air.
    """
    if span is None or len(rescales) != 1:
        return "float32"
    slope, intercept = next(iter(rescales)) or (1.0, 0.0)
    if slope != 1 or intercept != int(intercept):
        return "float32"
    low, high = span[0] + int(intercept), span[1] + int(intercept)
    fits = (name for name in _INTEGERS if np.iinfo(name).min <= low and high <= np.iinfo(name).max)
    return next(fits, "int16" if unit == "HU" else "float32")


def unused_bits_cleared(stored: Array, bits: int) -> Array:
    """Integers of the lowest ``bits``, their sign spread: other bits may hold padding or overlays (PS3.5 8.1.1)."""
    above = 8 * stored.dtype.itemsize - bits
    if not above:
        return stored
    moved: Array = np.right_shift(np.left_shift(stored, above), above)
    return moved
