"""Files for the tests of the adapter for photographs, and short ways to scan and read them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from maectl.adapter import Files, Pixels, Reject, Source
from maectl_natural import Natural

Array = npt.NDArray[Any]


def ramp(height: int = 40, width: int = 60, channels: int = 3, top: int = 255) -> Array:
    """A smooth image [H, W, C], from 0 to ``top``, another in each channel."""
    rows, columns = np.mgrid[:height, :width]
    ramps = [columns / (width - 1), rows / (height - 1), (rows + columns) / (height + width - 2)]
    image: Array = np.rint(np.stack(ramps[:channels], -1) * top)
    return image.astype(np.uint8 if top < 256 else np.uint16)


def only(path: Path, adapter: Natural | None = None) -> Source:
    """The one source a file is."""
    (found,) = (adapter or Natural()).scan(Files(path))
    assert isinstance(found, Source), found
    return found


def rejected(path: Path, adapter: Natural | None = None) -> str:
    """Why a file is rejected."""
    (found,) = (adapter or Natural()).scan(Files(path))
    assert isinstance(found, Reject), found
    return found.reason


def read(path: Path, adapter: Natural | None = None) -> Pixels:
    """A file's pixels, checked against its header."""
    source = only(path, adapter)
    pixels = (adapter or Natural()).read(source)
    assert pixels.values.shape == source.shape
    assert str(pixels.values.dtype) == source.dtype
    return pixels


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def png(colour: int, bits: int, size: tuple[int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG spelled out by hand, unfiltered rows (each led by a 0 byte) given."""
    header = struct.pack(">IIBBBBB", size[1], size[0], bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    made = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def rows_of(image: Array) -> bytes:
    """Big-endian rows of a PNG, each led by filter 0."""
    swapped = image.astype(image.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in swapped)


def tiff(image: Array, order: Literal["<", ">"] = "<", compressed: bool = True, **changes: int) -> bytes:
    """A TIFF of one strip spelled out by hand: tags may be changed by name."""
    height, width, samples = image.shape
    data = image.astype(image.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if compressed else data
    form = {"u": 1, "i": 2, "f": 3}[image.dtype.kind]
    photometric = changes.get("photometric", 2 if samples >= 3 else 1)
    extra = [changes.get("extra", 2)] * (samples % 3 - (samples == 1))
    wide = struct.pack(f"{order}{samples}H", *[8 * image.itemsize] * samples)
    forms = struct.pack(f"{order}{samples}H", *[form] * samples)
    data += bytes(len(data) % 2)
    tags = [
        (256, [width]),
        (257, [height]),
        (258, 8 + len(data) if samples > 2 else [8 * image.itemsize] * samples),
        (259, [8 if compressed else 1]),
        (262, [photometric]),
        (273, [8]),
        (277, [samples]),
        (278, [height]),
        (279, [len(data)]),
        (338, extra),
        (339, 8 + len(data) + len(wide) if samples > 2 else [form] * samples),
    ]
    out = struct.pack(f"{order}2sHI", {"<": b"II", ">": b"MM"}[order], 42, 8 + len(data) + 2 * len(wide))
    out += data + wide + forms
    tags = [tag for tag in tags if tag[1] != []]
    out += struct.pack(f"{order}H", len(tags))
    for tag, value in tags:
        if isinstance(value, int):
            out += struct.pack(f"{order}HHII", tag, 3, samples, value)
        elif tag in (273, 279):
            out += struct.pack(f"{order}HHII", tag, 4, 1, value[0])
        else:
            shorts = struct.pack(f"{order}{len(value)}H", *value).ljust(4, b"\0")
            out += struct.pack(f"{order}HHI", tag, 3, len(value)) + shorts
    return out + bytes(4)


def opened(path: Path) -> Image.Image:
    """A file as Pillow reads it, closed."""
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    return image
