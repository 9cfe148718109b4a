"""A DICOM file up to its pixels: where they begin, and header values that may be broken read with care.

Nothing of a header gets into an error's text: pydicom's messages may quote values.
"""

import io
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from maectl_medical.dicom.codecs import NATIVE
from maectl_medical.dicom.quiet import hush

__all__ = [
    "CLAIMING",
    "PIXEL_TAGS",
    "Damaged",
    "Header",
    "items",
    "looks_like",
    "number",
    "numbers",
    "parse",
    "text",
    "texts",
    "whole",
]

CLAIMING = (".dcm", ".dicom")
"""Suffixes that promise a DICOM file."""

_SUFFIXES = (*CLAIMING, ".ima", ".dic", "")
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OW OV PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_LONG_VRS = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")  # 32-bit lengths
_PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
_FIRST_PIXELS = 0x7FE00008
_UNDEFINED = 0xFFFFFFFF
_MOST_INFLATED = 1 << 31  # bytes of a deflated file: more is an attack

_PIXEL_NAMES = (
    "SpecificCharacterSet SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows "
    "Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit "
    "FloatPixelPaddingValue FloatPixelPaddingRangeLimit DoubleFloatPixelPaddingValue "
    "DoubleFloatPixelPaddingRangeLimit ModalityLUTSequence RedPaletteColorLookupTableDescriptor "
    "GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData "
    "GreenPaletteColorLookupTableData BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData ExtendedOffsetTable "
    "ExtendedOffsetTableLengths"
)
PIXEL_TAGS = tuple(Tag(name) for name in _PIXEL_NAMES.split())
"""What decoding asks of a header."""


class Damaged(Exception):
    """A file that cannot be read; the text says why, in our own words."""


@dataclass(frozen=True, slots=True)
class Header:
    """The elements before the pixels.

    ``element`` is pydicom's keyword of the pixel data element or "" where there is none, ``vr`` its value
    representation, ``length`` its bytes as promised (None: undefined, as compressed pixels have it), ``file`` an
    open file that stands at its value, ``rest`` the bytes from there to the end.
    """

    data: Dataset
    syntax: str
    element: str
    vr: str
    length: int | None
    file: BinaryIO
    rest: int


def looks_like(path: str, head: bytes) -> bool:
    """Whether a file that begins with ``head`` (256 bytes suffice) is DICOM, by its content.

    A file without preamble begins with an element of group 0002 or 0008: weaker evidence, for which the suffix
    must be .dcm, .dicom, .ima, .dic or none.
    """
    if head[128:132] == b"DICM":
        return True
    if os.path.splitext(path)[1].lower() not in _SUFFIXES or len(head) < 8:
        return False
    order = next((o for o in ("little", "big") if _group(head, o) in (2, 8)), None)
    if order is None or int.from_bytes(head[2:4], "little" if order == "little" else "big") > 0x2000:
        return False
    if head[4:6] in _VRS:
        return True
    return order == "little" and int.from_bytes(head[4:8], "little") <= 1024  # implicit: a length


def _group(head: bytes, order: str) -> int:
    return int.from_bytes(head[:2], "little" if order == "little" else "big")


def parse(file: BinaryIO, tags: Sequence[BaseTag] | None = None) -> Header:
    """The header of an open file, or only these elements of it; raises `Damaged`.

    The file must stay open while the pixels of the header are read.
    """
    hush()
    stop = _Stop()
    wanted = None if tags is None else [int(tag) for tag in tags]
    try:
        file.seek(0)
        plain = _inflated(file)
        data = read_partial(plain, stop, force=True, specific_tags=wanted)
        return _header(plain, data, stop, deflated=plain is not file)
    except Damaged:
        raise
    except Exception as error:  # pydicom raises errors of any class on damaged headers
        raise Damaged("its header cannot be read: damaged or cut short") from error


class _Stop:
    """pydicom asks it before each element's value; it remembers the pixel data element and stops there."""

    def __init__(self) -> None:
        self.tag, self.vr, self.length = 0, "", 0

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag < _FIRST_PIXELS:
            return False
        self.tag, self.vr, self.length = int(tag), vr or "", length
        return True


def _header(file: BinaryIO, data: Any, stop: _Stop, deflated: bool) -> Header:
    keyword = _PIXELS.get(stop.tag, "")
    implicit = not stop.vr if keyword else data.original_encoding[0]
    syntax = uid.DeflatedExplicitVRLittleEndian if deflated else _syntax(data, implicit)
    if keyword:
        file.seek(12 if stop.vr in _LONG_VRS else 8, os.SEEK_CUR)
    start = file.tell()
    rest = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    length = None if stop.length == _UNDEFINED else stop.length
    return Header(data, str(syntax), keyword, stop.vr or "OW", length, file, rest)


def _syntax(data: Any, implicit: bool) -> str:
    """The transfer syntax, by how the data set was read where it is not given."""
    named = text(data.file_meta, "TransferSyntaxUID")
    little = data.original_encoding[1]
    if not named:
        read_as = (uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
        return str(read_as[0] if little else read_as[1])
    if named in NATIVE:  # pydicom finds out by itself where a header lies about its value representations
        wrong = implicit != (named == uid.ImplicitVRLittleEndian) and little
        return str(uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian) if wrong else named
    return named


def _inflated(file: BinaryIO) -> BinaryIO:
    """The file itself, or a deflated one inflated in memory."""
    head = file.read(4096)
    file.seek(0)
    mark = uid.DeflatedExplicitVRLittleEndian.encode()
    if head[128:132] != b"DICM" or head[132:140] != b"\2\0\0\0UL\4\0" or mark not in head:
        return file
    end = 144 + int.from_bytes(head[140:144], "little")
    at = head[:end].find(b"\2\0\x10\0UI")
    if at < 0 or head[at + 8 : at + 8 + len(mark)] != mark:
        return file
    file.seek(end)
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = machine.decompress(file.read(), _MOST_INFLATED)
    if machine.unconsumed_tail:
        raise Damaged(f"it inflates to more than {_MOST_INFLATED >> 30} GiB")
    if not machine.eof:
        raise Damaged("truncated: its deflated data end early")
    syntax = uid.ExplicitVRLittleEndian.encode().ljust(20, b"\0")
    meta = b"\2\0\x10\0UI" + len(syntax).to_bytes(2, "little") + syntax
    group = b"\2\0\0\0UL\4\0" + len(meta).to_bytes(4, "little")
    return io.BytesIO(bytes(128) + b"DICM" + group + meta + plain)


def _value(data: Dataset, keyword: str) -> Any:
    try:
        return data.get(keyword)
    except Exception:  # pydicom converts values when asked for them, and fails in many ways on broken ones
        return None


def texts(data: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an element as stripped text, () where it is missing, empty or broken."""
    value = _value(data, keyword)
    if value is None or isinstance(value, bytes):
        return ()
    several = value if not isinstance(value, str) and isinstance(value, Sequence) else [value]
    try:
        return tuple(str(each).strip(" \0") for each in several)
    except Exception:  # text of an unknown character set
        return ()


def text(data: Dataset, keyword: str) -> str:
    """The first value of an element as stripped text, "" where it is missing, empty or broken."""
    found = texts(data, keyword)
    return found[0] if found else ""


def numbers(data: Dataset, keyword: str) -> tuple[float, ...]:
    """The values of an element, () where it is missing, empty, or one of them is no finite number."""
    try:
        found = tuple(float(each) for each in texts(data, keyword))
    except ValueError:
        return ()
    return found if all(math.isfinite(each) for each in found) else ()


def number(data: Dataset, keyword: str) -> float | None:
    """The first value of an element, None where it is missing, empty or no finite number."""
    found = numbers(data, keyword)
    return found[0] if found else None


def whole(data: Dataset, keyword: str) -> int | None:
    """The first value of an element, None where it is missing, empty or no whole number."""
    found = number(data, keyword)
    return int(found) if found is not None and found == int(found) else None


def items(data: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """The items of a sequence, () where it is missing or broken."""
    value = _value(data, keyword)
    try:
        return tuple(each for each in value or () if isinstance(each, Dataset))
    except Exception:  # a broken sequence is parsed when it is looked into
        return ()
