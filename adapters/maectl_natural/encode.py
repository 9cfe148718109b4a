"""Pixels to the bytes of a file, in the source's format where that can hold them.

PNG and TIFF are written here: Pillow writes neither 16-bit colour nor more than four channels. No output
carries EXIF, comments or a colour profile.
"""

import io
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image

from maectl.errors import DataError
from maectl_natural.headers import SUFFIXES
from maectl_natural.pillow import Array, Raster

__all__ = ["encode", "format_for"]

_OPAQUE = ("jpeg", "bmp")  # formats without alpha
_CHANGED = ("1", "P", "PA", "CMYK", "CMYK;16")  # layouts that no output keeps
_STRIP = 1 << 20  # bytes a TIFF strip, about
_TIFF_END = 1 << 32


def format_for(kind: str, mode: str, suffix: str, raster: Raster) -> tuple[str, str]:
    """The format to write pixels in and its suffix, for a source of this kind, layout and suffix.

    The source's own where it holds the values, else PNG, or TIFF for float, signed and many channels.
    """
    channels, dtype = raster.values.shape[-1], raster.values.dtype
    no_room = (
        mode in _CHANGED
        or (kind != "tiff" and dtype != np.uint8)
        or (kind in _OPAQUE and raster.alpha is not None)
        or (kind == "webp" and channels == 1)
        or kind == "gif"
    )
    chosen = "tiff" if dtype.kind in "fi" or channels not in (1, 3) else "png" if no_room else kind
    if SUFFIXES.get(suffix.lower()) != chosen:
        suffix = {"jpeg": ".jpg", "tiff": ".tif"}.get(chosen, f".{chosen}")
    return chosen, suffix


def encode(kind: str, raster: Raster) -> bytes:
    """The file: lossless, but for JPEG at quality 95 without chroma subsampling."""
    if kind == "png":
        return _png(raster)
    if kind == "tiff":
        return _tiff(raster)
    values = np.ascontiguousarray(raster.values)
    if kind == "jpeg":
        colours = ("gray", "Gray") if values.shape[-1] == 1 else ("rgb", "444")
        return bytes(simplejpeg.encode_jpeg(values, 95, colours[0], colours[1]))
    file = io.BytesIO()
    image = Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else _joined(raster))
    if kind == "webp":
        image.save(file, "WEBP", lossless=True, exact=True)
    else:
        image.save(file, "BMP")
    return file.getvalue()


def _joined(raster: Raster) -> Array:
    """Values and alpha side by side, [H, W, C + 1]."""
    parts = [raster.values] if raster.alpha is None else [raster.values, raster.alpha[..., None]]
    return np.ascontiguousarray(np.concatenate(parts, axis=-1))


def _png(raster: Raster) -> bytes:
    pixels = _joined(raster)
    height, width, samples = pixels.shape
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    left = samples * pixels.itemsize  # filter 1: each byte less that of the pixel to its left
    filtered = np.ones((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 1:] = rows
    filtered[:, 1 + left :] -= rows[:, :-left]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _tiff(raster: Raster) -> bytes:
    """A baseline little-endian TIFF, deflated in strips, samples interleaved."""
    pixels = _joined(raster)
    height, width, samples = pixels.shape
    pixels = pixels.astype(pixels.dtype.newbyteorder("<"))
    rows = min(height, max(1, _STRIP // pixels[0].nbytes))
    strips = [zlib.compress(pixels[top : top + rows].tobytes()) for top in range(0, height, rows)]
    colours = 3 if raster.values.shape[-1] == 3 else 1
    extra = [0] * (samples - colours)
    if raster.alpha is not None:
        extra[-1] = 2
    sizes = [len(strip) for strip in strips]
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [8 * pixels.itemsize] * samples),
        (259, "H", [8]),  # deflate
        (262, "H", [2 if colours == 3 else 1]),
        (273, "I", np.cumsum([8, *sizes[:-1]]).tolist()),
        (277, "H", [samples]),
        (278, "I", [rows]),
        (279, "I", sizes),
        (338, "H", extra),
        (339, "H", [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * samples),
    ]
    body = b"".join(strips)
    body += bytes(len(body) % 2)
    directory = _directory([tag for tag in tags if tag[2]], 8 + len(body))
    if 8 + len(body) + len(directory) >= _TIFF_END:
        raise DataError(f"{width} x {height} x {samples} values do not fit a TIFF (4 GiB): write windows of it")
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory


def _directory(tags: list[tuple[int, str, list[int]]], start: int) -> bytes:
    """A TIFF image directory at offset ``start``, its long values behind it."""
    entries, behind = b"", b""
    place = start + 2 + 12 * len(tags) + 4
    for tag, form, values in tags:
        data = struct.pack(f"<{len(values)}{form}", *values)
        if len(data) > 4:
            data, behind = struct.pack("<I", place + len(behind)), behind + data + bytes(len(data) % 2)
        entries += struct.pack("<HHI4s", tag, {"H": 3, "I": 4}[form], len(values), data)
    return struct.pack("<H", len(tags)) + entries + bytes(4) + behind
