"""The voxels of a NIfTI file: only those a window needs, scaled to the values they stand for."""

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels, Window
from maectl.errors import Unreadable
from maectl_medical.nifti.header import Damaged, Header, read_header

__all__ = ["load", "open_again", "planes", "scaled", "volumes_of"]

Array = npt.NDArray[Any]

_CHUNK = 1 << 16  # bytes of a gzip stream taken at once


def load(
    files: tuple[str, ...], key: dict[str, Any], shape: tuple[int, ...], dtype: str, window: Window | None
) -> Pixels:
    """Values [C, *window] of an image [C, i, j, k] that `describe` found (window None: all), in stored order.

    Uncompressed files are read where the window lies, .nii.gz from their beginning to its end; what is read
    to its end is checked against its CRC. Not finite values, and colours of alpha 0, are invalid. ``files``
    are paths that can be opened. Raises `Unreadable`.
    """
    header = open_again(files, key, shape, dtype)
    box = window or tuple(slice(0, size) for size in shape[1:])
    size = [part.stop - part.start for part in box]
    try:
        # The first axis is the fastest in a file: kept so in memory, nothing is shuffled.
        values = np.empty((shape[0], *size[::-1]), dtype)
        valid = np.ones(size[::-1], bool)
        for channel, place, plane in planes(files, header, volumes_of(key), box):
            if header.samples == 1:
                values[channel, place] = scaled(plane[..., 0], header)
            else:
                values[:, place] = np.moveaxis(plane[..., :3], -1, 0)
            if header.samples == 4:
                valid[place] = plane[..., 3] > 0
        if values.dtype.kind == "f":
            for channel in values:
                valid &= np.isfinite(channel)
    except MemoryError as error:
        raise Unreadable(f"{' x '.join(map(str, shape))} voxels need more memory than there is") from error
    return Pixels(values.transpose(0, 3, 2, 1), None if valid.all() else valid.T)


def open_again(files: tuple[str, ...], key: dict[str, Any], shape: tuple[int, ...], dtype: str) -> Header:
    """The header of an image found before; raises `Unreadable` where it is not what it was."""
    try:
        header, _ = read_header(files)
    except Damaged as error:
        raise Unreadable(f"damaged NIfTI: {error}") from error
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    if header is None:
        raise Unreadable("no longer NIfTI: changed since the scan?")
    volumes = volumes_of(key)
    found = (3 if header.samples > 1 else len(volumes), *header.shape[:3])
    if (found, header.dtype) != (tuple(shape), dtype) or volumes.stop > header.shape[3]:
        raise Unreadable("its size or data type is not what it was: changed since the scan?")
    return header


def volumes_of(key: dict[str, Any]) -> range:
    """The volumes of a file that an image's key stands for."""
    first = int(key.get("volume", 0))
    return range(first, first + int(key.get("volumes", 1)))


def scaled(stored: Array, header: Header) -> Array:
    """Values in the header's dtype of stored ones in any shape; what float32 cannot hold becomes infinite."""
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if (header.slope, header.inter) == (1, 0):
        with np.errstate(over="ignore", invalid="ignore"):
            return native.astype(header.dtype, copy=False)
    if header.dtype == "int16":  # 8 bits and a whole intercept
        return native.astype(np.int16) + np.int16(header.inter)
    with np.errstate(over="ignore", invalid="ignore"):
        return (native.astype(np.float64) * header.slope + header.inter).astype(np.float32)


def planes(files: tuple[str, ...], header: Header, volumes: range, box: Window) -> Iterator[tuple[int, int, Array]]:
    """Stored planes [j, i, samples] of a window in the order of the file, and which: (volume, k) from 0 on.

    Raises `Unreadable`.
    """
    i, j, k = box
    wide, high, deep, _ = header.shape
    row = wide * header.voxel
    try:
        with open(files[-1 if header.paired else 0], "rb") as file:
            stream: _Stream = _Packed(file) if header.packed else _Plain(file)
            for number, volume in enumerate(volumes):
                for place, depth in enumerate(range(k.start, k.stop)):
                    start = header.offset + ((volume * deep + depth) * high + j.start) * row
                    data = stream.read(start, (j.stop - j.start) * row)
                    plane = np.frombuffer(data, header.stored).reshape(-1, wide, header.samples)
                    yield number, place, plane[:, i]
            if stream.position == header.end:
                stream.finish()
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    except zlib.error as error:
        raise Unreadable("damaged: its gzip stream contradicts itself or its checksum") from error


def _reason(error: OSError) -> str:
    return "the file is gone" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"


class _Stream(Protocol):
    """Bytes of a file's content, asked for from its beginning to its end."""

    position: int

    def read(self, start: int, count: int) -> bytes | bytearray:
        """``count`` bytes from ``start``; raises `Unreadable` where they end before."""

    def finish(self) -> None:
        """Check what follows, where the content has a checksum."""


class _Plain:
    """The content of an uncompressed file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, 0

    def read(self, start: int, count: int) -> bytes:
        """As `_Stream`."""
        # not a memory map: that ends the process where another shortens the file
        self.file.seek(start)
        data = self.file.read(count)
        if len(data) < count:
            raise Unreadable(f"truncated: it ends {count - len(data):,} bytes before the end of a plane")
        self.position = start + count
        return data

    def finish(self) -> None:
        """Nothing: there is no checksum."""


class _Packed:
    """The content of a gzip file, which may have several members; zeros or other bytes may follow them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, 0
        self.inflate, self.waiting, self.ended = zlib.decompressobj(31), b"", False

    def read(self, start: int, count: int) -> bytearray:
        """As `_Stream`; only forward."""
        while self.position < start:
            self._next(min(start - self.position, 1 << 20))
        data = bytearray(count)
        while self.position < start + count:
            at = self.position - start
            piece = self._next(start + count - self.position)
            data[at : at + len(piece)] = piece
        return data

    def finish(self) -> None:
        """Read on to the checksum of the stream; raises `zlib.error` where it is another."""
        while not self.ended:
            self._more(1 << 20)

    def _next(self, most: int) -> bytes:
        piece = b"" if self.ended else self._more(most)
        if not piece and self.ended:
            raise Unreadable(f"truncated: its content ends after {self.position:,} bytes")
        self.position += len(piece)
        return piece

    def _more(self, most: int) -> bytes:
        """Up to ``most`` bytes of content, perhaps none yet."""
        data = self.waiting or self.file.read(_CHUNK)
        if not data:
            raise Unreadable("truncated: its gzip stream has no end")
        piece = self.inflate.decompress(data, most)
        self.waiting = self.inflate.unconsumed_tail
        if self.inflate.eof:
            self.waiting = self.inflate.unused_data
            if len(self.waiting) < 2:
                self.waiting += self.file.read(_CHUNK)
            self.ended = not self.waiting.startswith(b"\x1f\x8b")
            self.inflate = zlib.decompressobj(31)
        return piece
