"""One file to a `Source`, from its header."""

import os
from typing import BinaryIO

from maectl.adapter import Channels, Reject, Source
from maectl_natural import pillow
from maectl_natural.headers import KINDS, SUFFIXES, Damaged, File, Header, kind_of, parse
from maectl_natural.pixels import COLOURS

__all__ = ["count_of", "describe", "unpack_key"]

_DTYPES = {
    **dict.fromkeys(("F", "I", "I;32U"), "float32"),
    **dict.fromkeys(("L;S", "I;16S"), "int16"),
    **dict.fromkeys(("I;16", "LA;16", "RGB;16", "RGBA;16", "CMYK;16"), "uint16"),
}
_GREY = ("1", "L", "LA", "La", "LA;16", "L;S", "I;16", "I;16S", "I", "I;32U", "F")
_UNITS = {"uint8": "0..255", "uint16": "0..65535"}
_PILLOW_LIMIT = 178_956_970  # pixels of a TIFF or WebP: Pillow's own limit, which it applies to these two


def describe(folder: str, path: str, *, channels: Channels, max_pixels: int) -> Source | Reject | None:
    """What a file is; None where it is no image and does not claim to be one by its suffix."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        with open(os.path.join(folder, path), "rb") as opened:
            return _describe(folder, path, opened, channels, max_pixels)
    except OSError as error:
        return Reject((path,), f"cannot be opened: {error.strerror}") if suffix in SUFFIXES else None


def _describe(folder: str, path: str, opened: BinaryIO, channels: Channels, max_pixels: int) -> Source | Reject | None:
    file = File(opened.fileno())
    kind = kind_of(path, file.head)
    if kind is None:
        return None
    if not kind:
        suffix, formats = os.path.splitext(path)[1], ", ".join(KINDS.values())
        alien = f"none of {formats} in spite of its suffix {suffix}"
        return Reject((path,), alien if file.head else "empty file")
    try:
        header = parse(kind, file) or pillow.header(kind, opened)
    except Damaged as error:
        return Reject((path,), f"{KINDS[kind]}: {error}")
    except Exception as error:  # Pillow raises errors of any class on damaged headers
        return Reject((path,), f"damaged {KINDS[kind]}: {error}")
    limit = min(max_pixels, _PILLOW_LIMIT) if kind in ("tiff", "webp") else max_pixels
    if header.width * header.height > limit:
        named = "max_pixels" if limit == max_pixels else f"what Pillow decodes of a {KINDS[kind]}"
        size = f"{header.width:,} x {header.height:,} pixels"
        return Reject((path,), f"{size} are more than {named} ({limit:,}): an attack, or split it into tiles")
    if not header.width * header.height:
        return Reject((path,), f"{KINDS[kind]}: {header.width} x {header.height} pixels")
    return _source(folder, path, header, channels)


def _source(folder: str, path: str, header: Header, channels: Channels) -> Source:
    turned = header.orientation > 4
    size = (header.width, header.height) if turned else (header.height, header.width)
    dtype = _DTYPES.get(header.mode, "uint8")
    count = count_of(channels, header.mode)
    return Source(
        paths=(path,),
        shape=(count, *size),
        dtype=dtype,
        unit=_UNITS.get(dtype, "value"),
        axes=("row", "column"),
        channels=COLOURS[count],
        key=f"{header.kind} {header.mode} {header.orientation}",
        folder=folder,
    )


def unpack_key(key: str) -> tuple[str, str, int]:
    """Kind, layout and EXIF orientation of a source's key."""
    kind, mode, orientation = key.split(" ")
    return kind, mode, int(orientation)


def count_of(channels: Channels, mode: str) -> int:
    """How many channels an image of a layout has under the option ``channels``."""
    if channels == "auto":
        return 1 if mode in _GREY else 3
    return channels if isinstance(channels, int) else len(channels)
