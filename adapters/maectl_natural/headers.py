"""What a file says of itself in its first bytes: kind, size, pixel layout, orientation.

JPEG, PNG and WebP headers are read here, for speed and because Pillow reads a WebP whole to open it;
BMP, GIF and TIFF headers are left to Pillow.

Layouts are Pillow's modes, and where those say too little: "RGB;16", "RGBA;16", "LA;16", "CMYK;16" (16 bits a
channel), "L;S", "I;16S", "I;32U" (signed 8 and 16, unsigned 32 bits).
"""

import os
import struct
import zlib
from dataclasses import dataclass

__all__ = [
    "HEAD",
    "KINDS",
    "MAGIC",
    "SUFFIXES",
    "Damaged",
    "File",
    "Header",
    "kind_of",
    "orientation",
    "parse",
]

HEAD = 65536
"""Bytes read from a file at once; nearly every header lies within."""

KINDS = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "bmp": "BMP", "tiff": "TIFF", "gif": "GIF"}

SUFFIXES: dict[str, str] = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".png": "png",
    ".webp": "webp",
    ".bmp": "bmp",
    ".dib": "bmp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".gif": "gif",
}

MAGIC: tuple[tuple[str, int, bytes], ...] = (
    ("jpeg", 0, b"\xff\xd8\xff"),
    ("png", 0, b"\x89PNG\r\n\x1a\n"),
    ("gif", 0, b"GIF87a"),
    ("gif", 0, b"GIF89a"),
    ("webp", 8, b"WEBP"),
    ("tiff", 0, b"II*\0"),
    ("tiff", 0, b"MM\0*"),
    ("tiff", 0, b"II+\0"),
    ("tiff", 0, b"MM\0+"),
)

_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; Huffman and arithmetic
_LOSSLESS = {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_PNG_LAYOUTS = {
    **{(bits, 0): mode for bits, mode in ((1, "1"), (2, "L"), (4, "L"), (8, "L"), (16, "I;16"))},
    **{(bits, 3): "P" for bits in (1, 2, 4, 8)},
    (8, 2): "RGB",
    (16, 2): "RGB;16",
    (8, 4): "LA",
    (16, 4): "LA;16",
    (8, 6): "RGBA",
    (16, 6): "RGBA;16",
}


class Damaged(Exception):
    """A header that cannot be one; the text says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """Kind, layout, width and height as stored, and the EXIF orientation (1 to 8) still to be applied."""

    kind: str
    mode: str
    width: int
    height: int
    orientation: int = 1


class File:
    """Bytes of an open file by position: those at its beginning from memory, others by another read."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.head = os.pread(descriptor, HEAD, 0)

    def at(self, start: int, count: int) -> bytes:
        """``count`` bytes from ``start``, fewer at the end of the file."""
        if start + count <= len(self.head) or len(self.head) < HEAD:
            return self.head[start : start + count]
        return os.pread(self.descriptor, count, start)

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self.descriptor).st_size


def kind_of(path: str, head: bytes) -> str | None:
    """The kind of image a file is, "" where its suffix promises one and its content is none, or None.

    Content decides, not the suffix. TIFF's magic bytes are also those of raw camera files and of some DICOM
    files, so a TIFF must not carry a foreign suffix.
    """
    suffix = os.path.splitext(path)[1].lower()
    named = SUFFIXES.get(suffix)
    found = next((kind for kind, at, mark in MAGIC if head[at : at + len(mark)] == mark), None)
    if found == "tiff" and named is None and (suffix or head[128:132] == b"DICM"):
        return None
    if found is None and named is not None:
        return "bmp" if head[:2] == b"BM" else ""
    return found


def parse(kind: str, file: File) -> Header | None:
    """The header of a JPEG, PNG or WebP file, or None where Pillow must be asked; raises `Damaged`."""
    if kind == "jpeg":
        return _jpeg(file)
    if kind == "png":
        return _png(file)
    if kind == "webp":
        return _webp(file)
    return None


def _jpeg(file: File) -> Header | None:
    position, turn = 2, 1
    while True:
        start = file.at(position, 4)
        if len(start) < 4:
            raise Damaged("truncated in its header")
        if start[0] != 0xFF:
            return None  # junk between markers: Pillow knows how to skip some
        marker = start[1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            position += 2
        elif marker in _FRAMES:
            return _frame(file.at(position + 4, 6), turn)
        elif marker in _LOSSLESS:
            raise Damaged("lossless and hierarchical JPEG is not supported: convert it to PNG")
        elif marker in (0xD9, 0xDA):
            raise Damaged("no frame header: the JPEG has no size")
        else:
            length = start[2] << 8 | start[3]
            if marker == 0xE1 and turn == 1:
                turn = _exif_segment(file.at(position + 4, length - 2))
            position += 2 + length


def _frame(frame: bytes, turn: int) -> Header:
    if len(frame) < 6:
        raise Damaged("truncated in its header")
    bits, height, width, components = struct.unpack(">BHHB", frame)
    if bits != 8:
        raise Damaged(f"{bits}-bit JPEG is not supported: convert it to 16-bit PNG")
    if components not in (1, 3, 4):
        raise Damaged(f"{components} components: a JPEG has 1, 3 or 4")
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[components]
    return Header("jpeg", mode, width, height, turn)


def _exif_segment(segment: bytes) -> int:
    return orientation(segment[6:]) if segment[:6] == b"Exif\0\0" else 1


def orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block (which is a small TIFF file), 1 where it has none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 14:
        return 1
    (first,) = struct.unpack_from(order + "I", exif, 4)
    if first + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, first)
    for entry in range(first + 2, min(first + 2 + 12 * count, len(exif) - 11), 12):
        tag, form = struct.unpack_from(order + "HH", exif, entry)
        if tag == 0x0112 and form == 3:
            (value,) = struct.unpack_from(order + "H", exif, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def _png(file: File) -> Header:
    length, name, width, height, bits, colour, compression, filtering, interlace, check = struct.unpack(
        ">I4sIIBBBBBI", file.at(8, 25).ljust(25, b"\0")
    )
    if name != b"IHDR" or length != 13:
        raise Damaged("the first chunk is not a PNG header")
    if check != zlib.crc32(file.at(12, 17)):
        raise Damaged("the PNG header's checksum is wrong")
    mode = _PNG_LAYOUTS.get((bits, colour))
    if mode is None:
        raise Damaged(f"{bits} bits of colour type {colour}: no such PNG")
    if compression or filtering or interlace > 1:
        raise Damaged("unknown PNG compression, filter or interlace method")
    return Header("png", mode, width, height, _png_orientation(file))


def _png_orientation(file: File) -> int:
    position = 33
    while True:
        start = file.at(position, 8)
        if len(start) < 8:
            return 1
        length, name = struct.unpack(">I4s", start)
        if name == b"eXIf":
            return orientation(file.at(position + 8, length))
        if name == b"IDAT":
            return _late_orientation(file, position)
        position += 12 + length


def _late_orientation(file: File, idat: int) -> int:
    """The orientation where the EXIF chunk follows the pixels, as some tools write it.

    The chunk is looked for from the file's end: walking there would touch every block of the file.
    """
    start = max(idat, file.size() - HEAD)
    tail = file.at(start, HEAD)
    found = tail.rfind(b"eXIf")
    if found < 4:
        return 1
    (length,) = struct.unpack_from(">I", tail, found - 4)
    chunk = tail[found : found + 4 + length]
    genuine = tail[found + 4 + length : found + 8 + length] == zlib.crc32(chunk).to_bytes(4, "big")
    return orientation(chunk[4:]) if genuine else 1


def _webp(file: File) -> Header:
    head = file.at(0, 30)
    if len(head) < 30 or head[:4] != b"RIFF":
        raise Damaged("truncated in its header")
    if int.from_bytes(head[4:8], "little") + 8 > file.size():
        raise Damaged("truncated: shorter than its header says")
    chunk = head[12:16]
    if chunk == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return Header("webp", "RGB", width, height)
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        mode = "RGBA" if bits >> 28 & 1 else "RGB"
        return Header("webp", mode, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if chunk != b"VP8X":
        raise Damaged("unknown WebP content")
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    turn = _webp_orientation(file) if head[20] & 0x08 else 1
    return Header("webp", "RGBA" if head[20] & 0x10 else "RGB", width, height, turn)


def _webp_orientation(file: File) -> int:
    position = 12
    while len(start := file.at(position, 8)) == 8:
        length = int.from_bytes(start[4:], "little")
        if start[:4] == b"EXIF":
            block = file.at(position + 8, length)
            return orientation(block.removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    return 1
