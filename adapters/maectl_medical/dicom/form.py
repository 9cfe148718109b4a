"""Values back to stored pixels: how many bits, signed or not, which intercept, and which value is padding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.adapter import Values
from maectl.errors import DataError
from maectl_medical.dicom.image import Image

__all__ = ["Stored", "stored_form"]

Integers = npt.NDArray[np.int32]

_FULL = {"uint8": (8, 0), "int16": (16, 1), "uint16": (16, 0)}  # bits, signed


@dataclass(frozen=True, slots=True)
class Stored:
    """Pixels [C, *S] as they are to be stored, and what a header must say of them.

    A value is a stored one + ``intercept``. ``padding`` is the stored value of invalid pixels, None without any.
    """

    pixels: npt.NDArray[Any]
    allocated: int
    bits: int
    signed: int
    intercept: int
    padding: int | None


def stored_form(values: Values, valid: npt.NDArray[np.bool_] | None, image: Image, key: dict[str, Any]) -> Stored:
    """The form of the source where it holds the values, else all of their dtype; raises `DataError`.

    Both are read back in the same dtype. Colours have no padding.
    """
    grey = len(values) == 1
    inside = None if valid is None or valid.all() or not grey else valid
    shown = values if inside is None else values[:, inside]
    for allocated, bits, signed, intercept in _forms(values.dtype.name, image, key, grey):
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        wide = shown.astype(np.int32) - intercept
        if wide.size and (wide.min() < low or wide.max() > high):
            continue
        padding = None if inside is None else _unused(wide, low, high, values[:, ~inside].astype(np.int32) - intercept)
        if inside is not None and padding is None:
            continue
        pixels = values.astype(np.int32) - intercept
        if inside is not None and padding is not None:
            pixels[:, ~inside] = padding
        kind = np.dtype(f"{'ui'[signed]}{allocated // 8}")
        return Stored(pixels.astype(kind), allocated, bits, signed, intercept, padding)
    if inside is None:
        raise DataError("DICOM has no form for colours below 0: write NIfTI")
    raise DataError(f"every value of {values.dtype.name} is in use, none is left to mark what is invalid: write NIfTI")


def _forms(dtype: str, image: Image, key: dict[str, Any], grey: bool) -> list[tuple[int, int, int, int]]:
    """Bits allocated, bits stored, signed and intercept, of the source and of the whole dtype."""
    samples, allocated, bits, signed = key["form"][:4]  # of the widest slice: the first may have fewer bits
    forms = []
    rescale = key.get("rescale", [1.0, 0.0])
    if (samples == 1) == grey and not image.table and allocated <= 16 and rescale is not None and "rescales" not in key:
        forms.append((max(allocated, 8), bits, signed, int(rescale[1])))
    bits, signed = _FULL[dtype]
    # 8 of 16 bits are not taken for shades of 0..255, as 8 of 8 would be
    forms.append((16 if grey and key["unit"] != "0..255" else bits, bits, signed if grey else 0, 0))
    return forms


def _unused(stored: Integers, low: int, high: int, invalid: Integers) -> int | None:
    """A value from ``low`` to ``high`` that no pixel has, None where all are in use.

    The one that invalid pixels have, where it is one and free, else the lowest.
    """
    taken = np.zeros(high - low + 1, np.bool_)
    taken[stored.reshape(-1) - low] = True
    own = np.unique(invalid)
    if len(own) == 1 and low <= own[0] <= high and not taken[own[0] - low]:
        return int(own[0])
    free = np.flatnonzero(~taken)
    return int(free[0]) + low if len(free) else None
