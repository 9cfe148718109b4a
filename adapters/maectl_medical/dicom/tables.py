"""Look-up tables of a header, as arrays: of colours (palettes) and of values (modality)."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from maectl_medical.dicom.header import Damaged, items

__all__ = ["Table", "apply", "modality_table", "palette", "span_of"]

Table = tuple[int, npt.NDArray[Any]]
"""The stored value that the first entry is for, and entries [n] or [n, 3], uint8 or uint16."""

_MOST = 1 << 16  # entries


def palette(data: Dataset) -> Table:
    """The colours [n, 3] of a palette; raises `Damaged`.

    Entries of 16 bits that repeat 8 bits or leave the low ones at zero become uint8, as entries of 8 bits are.
    """
    try:
        first, count = _descriptor(data, data["RedPaletteColorLookupTableDescriptor"].value)
        colours = _segmented(data, first, count) if "SegmentedRedPaletteColorLookupTableData" in data else None
        if colours is None:
            names = (f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue"))
            colours = np.stack([_entries(data, data[name].value, count) for name in names], axis=-1)
    except Exception as error:  # pydicom raises errors of any class on broken tables
        raise Damaged("its colour palette is missing or broken") from error
    high, low = colours >> 8, colours & 255
    if not high.any():
        return first, low.astype(np.uint8)
    if ((low == 0) | (low == high)).all():
        return first, high.astype(np.uint8)
    return first, colours


def modality_table(data: Dataset) -> Table | None:
    """The values [n], uint16, of a modality look-up table, None where there is none; raises `Damaged`."""
    found = items(data, "ModalityLUTSequence")
    if not found:
        return None
    try:
        first, count = _descriptor(data, found[0]["LUTDescriptor"].value)
        return first, _entries(data, found[0]["LUTData"].value, count)
    except Exception as error:  # pydicom raises errors of any class on broken tables
        raise Damaged("its modality look-up table is broken") from error


def span_of(data: Dataset, table: Table) -> tuple[int, int]:
    """The lowest and the highest value that a modality table may give, by its bits and its entries."""
    try:
        bits = int(items(data, "ModalityLUTSequence")[0]["LUTDescriptor"].value[2])
    except Exception as error:  # as above
        raise Damaged("its modality look-up table is broken") from error
    return 0, max((1 << max(0, min(bits, 16))) - 1, int(table[1].max()))


def apply(stored: npt.NDArray[Any], table: Table) -> npt.NDArray[Any]:
    """The entries for stored values; those before the first and after the last take these (PS3.3 C.7.6.3.1.5)."""
    first, entries = table
    index = np.clip(stored.astype(np.int64) - first, 0, len(entries) - 1)
    found: npt.NDArray[Any] = entries[index]
    return found


def _descriptor(data: Dataset, value: Any) -> tuple[int, int]:
    """The first stored value and the number of entries of a table; 65536 is written as 0 (PS3.3 C.11.1.1)."""
    count, first = int(value[0]) & 0xFFFF, int(value[1]) & 0xFFFF
    if data["PixelRepresentation"].value == 1 and first > 0x7FFF:
        first -= _MOST
    return first, count or _MOST


def _entries(data: Dataset, value: Any, count: int) -> npt.NDArray[np.uint16]:
    """The entries [count] of a table of 8 or 16 bits an entry."""
    little = bool(data.original_encoding[1])
    if not isinstance(value, bytes):
        entries = np.array(value, np.int64) & 0xFFFF
    elif len(value) in (2 * count, 2 * count + 2):
        entries = np.frombuffer(value, "<u2" if little else ">u2")
    elif len(value) in (count, count + count % 2):
        pairs = np.frombuffer(value, "<u2" if little else ">u2")  # OW: 8-bit entries in words
        entries = np.stack([pairs & 255, pairs >> 8], axis=-1).reshape(-1)
    else:
        raise Damaged("its look-up table is shorter or longer than it says")
    if len(entries) < count:
        raise Damaged("its look-up table is shorter than it says")
    return entries[:count].astype(np.uint16)


def _segmented(data: Dataset, first: int, count: int) -> npt.NDArray[np.uint16]:
    """Colours [count, 3] of a palette written in segments."""
    if int(data["RedPaletteColorLookupTableDescriptor"].value[2]) == 8 and count > 256:
        raise Damaged("its segmented palette has more entries than pydicom expands")
    colours = apply_color_lut(np.arange(first, first + count, dtype=np.int64), data)
    return colours.reshape(count, -1)[:, :3].astype(np.uint16)
