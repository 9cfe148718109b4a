"""The first directory of a TIFF, from its bytes alone: enough to say whose file it is, without GDAL.

Layout: TIFF 6.0 (Adobe 1992), section 2; BigTIFF: https://libtiff.gitlab.io/libtiff/specification/bigtiff.html.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["JP2", "TIFF", "Directory", "directory", "is_tiff"]

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How classic TIFF and BigTIFF begin, in both byte orders."""
JP2 = b"\0\0\0\x0cjP  "
"""How JPEG 2000 in its own container begins (ISO/IEC 15444-1, I.5.1)."""

GEOGRAPHIC = frozenset((33550, 33922, 34264, 34735))
"""ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory (OGC GeoTIFF 1.1, annex)."""
_SAMPLES = 277  # SamplesPerPixel
_MOST = 4096  # entries looked at: no real directory has as many


@dataclass(frozen=True, slots=True)
class Directory:
    """Which tags there are, and how many samples a pixel has (1 where it is not told)."""

    tags: frozenset[int]
    samples: int

    @property
    def georeferenced(self) -> bool:
        """Whether it says where it lies on the ground."""
        return bool(self.tags & GEOGRAPHIC)


def is_tiff(head: bytes) -> bool:
    """Whether a file of this beginning is a TIFF of images; DICOM may begin like one, and says so at byte 128."""
    return head[:4] in TIFF and head[128:132] != b"DICM"


def directory(file: BinaryIO) -> Directory | None:
    """The first directory of a TIFF; None where it is cut off, damaged, or not one."""
    head = file.read(16)
    if len(head) < 8 or head[:4] not in TIFF:
        return None
    order = "<" if head[:2] == b"II" else ">"
    big = b"+" in head[2:4]
    if big and (len(head) < 16 or struct.unpack(f"{order}HH", head[4:8]) != (8, 0)):
        return None  # offsets of 8 bytes are the only ones defined
    (at,) = struct.unpack(f"{order}Q", head[8:16]) if big else struct.unpack(f"{order}L", head[4:8])
    counted, entry = (8, 20) if big else (2, 12)
    if not 8 <= at < 1 << 62:
        return None
    file.seek(at)
    told = file.read(counted)
    if len(told) < counted:
        return None
    count = min(int.from_bytes(told, "little" if order == "<" else "big"), _MOST)
    entries = file.read(count * entry)
    if not count or len(entries) < count * entry:
        return None
    tags, samples = set[int](), 1
    for start in range(0, len(entries), entry):
        tag, kind = struct.unpack(f"{order}HH", entries[start : start + 4])
        tags.add(tag)
        if tag == _SAMPLES:
            value = entries[start + (12 if big else 8) :]
            samples = (
                struct.unpack(f"{order}L", value[:4])[0] if kind == 4 else struct.unpack(f"{order}H", value[:2])[0]
            )
    return Directory(frozenset(tags), samples)
