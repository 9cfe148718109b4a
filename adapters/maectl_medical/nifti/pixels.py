"""The voxels of a NIfTI file: only those a window needs, scaled to the values they stand for."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels, Window
from maectl.errors import Unreadable
from maectl_medical.nifti.header import Damaged, Header, read_header
from maectl_medical.nifti.stream import Packed, Plain, Stream

__all__ = ["load", "open_again", "planes", "scaled", "volumes_of"]

Array = npt.NDArray[Any]


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
            stream: Stream = Packed(file) if header.packed else Plain(file)
            if (
                isinstance(stream, Packed) and header.shape[3] > 1
            ):  # time points are read in order: each goes on where the last one ended
                stream.resume(header.offset + volumes.start * deep * high * row)
            for number, volume in enumerate(volumes):
                for place, depth in enumerate(range(k.start, k.stop)):
                    start = header.offset + ((volume * deep + depth) * high + j.start) * row
                    data = stream.read(start, (j.stop - j.start) * row)
                    plane = np.frombuffer(data, header.stored).reshape(-1, wide, header.samples)
                    yield number, place, plane[:, i]
            if isinstance(stream, Packed) and header.shape[3] > 1:
                stream.mark()
            if stream.position == header.end:
                stream.finish()
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    except zlib.error as error:
        raise Unreadable("damaged: its gzip stream contradicts itself or its checksum") from error


def _reason(error: OSError) -> str:
    return "the file is gone" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
