"""Values to a NIfTI file: with the grid and the voxel type of a source, or of an affine alone.

Headers are made anew. Of a source's header nothing but its geometry, voxel type and scaling is taken over:
no description, names, intents, times or extensions.
"""

import gzip
import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from maectl.errors import DataError
from maectl_medical.nifti.header import FAMILIES, VOXELS_AT, Header
from maectl_medical.nifti.pixels import Array, open_again, planes, scaled, volumes_of
from maectl_medical.stored import Affine

__all__ = ["save", "save_like_volume"]

_LEVEL = 4  # of gzip: beyond it, files of images hardly shrink
_CODES = {"u1": 2, "i2": 4, "f4": 16, "u2": 512}
_SCANNER = 1  # code of a form: coordinates of the scanner
_MM = 2  # code of a unit
_GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)


def save(files: tuple[str, ...], key: dict[str, Any], values: Array, valid: Array | None, path: Path) -> Path:
    """Write values [C, i, j, k] as the source of ``files`` and ``key`` is stored, and return the path written.

    ``path`` has no suffix: .nii.gz is given to what was so, else .nii. A time point is written as a 3-D file,
    channels as a 4-D one. Values become the nearest that the source's type and scaling can hold; where
    ``valid`` [i, j, k] is False (None: nowhere), where a value is what the source gives, and where it is NaN
    and the type has none, the source's stored voxel stays to the last bit, as does its alpha. Raises
    `Unreadable` and `DataError`.
    """
    dtype = values.dtype.name
    header = open_again(files, key, values.shape, dtype)
    box = tuple(slice(0, size) for size in header.shape[:3])
    volumes = volumes_of(key)
    kept = None if valid is None else ~valid
    whole = planes(files, header, volumes, box)
    rows = (_stored(values, kept, header, *plane) for plane in whole)
    path = path.with_name(path.name + (".nii.gz" if header.packed else ".nii"))
    return _write(_like(header, len(volumes)), rows, path)


def save_like_volume(values: Array, affine: Affine, path: Path) -> Path:
    """Write values [C, i, j, k] of uint8, int16, uint16 or float32 to a .nii.gz; return the path written.

    ``affine`` takes an index to mm, RAS+ in the scanner's frame. Several channels make a 4-D file. ``path``
    has no suffix. Raises `DataError`.
    """
    version = 1 if max(values.shape) < 1 << 15 else 2  # NIfTI-1 counts in 16 bits
    shape = (*values.shape[1:], len(values)) if len(values) > 1 else values.shape[1:]
    header = _blank(version, "<", _CODES[values.dtype.str[1:]], 8 * values.itemsize, shape)
    square = np.vstack([np.array(affine, np.float64), (0, 0, 0, 1)])
    edges = np.linalg.norm(square[:3, :3], axis=0)
    cosines = square[:3, :3] / edges
    header["pixdim"][1:4] = edges
    header.set_sform(square, _SCANNER)
    if np.allclose(cosines.T @ cosines, np.eye(3), atol=1e-4):  # a qform cannot be sheared
        header.set_qform(square, _SCANNER)
    header["xyzt_units"] = _MM
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    rows = (plane.T.tobytes() for channel in little for plane in np.moveaxis(channel, -1, 0))
    return _write(header, rows, path.with_name(path.name + ".nii.gz"))


def _stored(values: Array, kept: Array | None, header: Header, number: int, place: int, plane: Array) -> bytes:
    """The bytes of one plane: the source's ``plane`` [j, i, samples] where it stays, new values elsewhere."""
    new = plane.copy()
    if header.samples > 1:
        new[..., :3] = np.moveaxis(values[..., place], 0, -1).swapaxes(0, 1)
    else:
        wanted = values[number, :, :, place].T
        stays = wanted == scaled(plane[..., 0], header)
        if header.stored.kind != "f":
            stays |= np.isnan(wanted)
        new[..., 0] = np.where(stays, plane[..., 0], _unscaled(wanted, header))
    if kept is not None:
        mask = kept[:, :, place].T
        new[mask] = plane[mask]
    return new.tobytes()


def _unscaled(values: Array, header: Header) -> Array:
    """The stored values nearest to those given: rounded and clipped where the type is of integers."""
    with np.errstate(all="ignore"):
        if (header.slope, header.inter) == (1, 0) and values.dtype == header.stored:
            return values
        found = (values.astype(np.float64) - header.inter) / header.slope
        if header.stored.kind == "f":
            return found.astype(header.stored)
        limits = np.iinfo(header.stored)
        # the largest integer of 64 bits is no float64: the next one below it is taken
        most = float(limits.max) if limits.bits < 64 else np.nextafter(float(limits.max), 0)
        whole: Array = np.nan_to_num(np.clip(np.rint(found), float(limits.min), most))
        return whole.astype(header.stored)


def _like(header: Header, volumes: int) -> Any:
    """A new header with the geometry, voxel type and scaling of another."""
    old = header.raw
    axes = header.shape[: min(3, header.dimensions)]
    shape = (*axes, volumes) if volumes > 1 else axes
    raw = _blank(header.version, old.endianness, int(old["datatype"]), 8 * header.voxel, shape)
    raw["pixdim"][:4] = old["pixdim"][:4]
    for name in _GEOMETRY:
        raw[name] = old[name]
    raw["xyzt_units"] = int(old["xyzt_units"]) & 7  # that of length, without that of time
    raw["scl_slope"], raw["scl_inter"] = header.slope, header.inter
    return raw


def _blank(version: int, endianness: str, code: int, bits: int, shape: tuple[int, ...]) -> Any:
    """A new header of a single file, without geometry."""
    raw = FAMILIES[version](endianness=endianness)
    raw["datatype"], raw["bitpix"] = code, bits
    raw["dim"] = (len(shape), *shape, *[1] * (7 - len(shape)))
    raw["scl_slope"], raw["scl_inter"] = 1, 0
    raw["vox_offset"] = VOXELS_AT[version]
    return raw


def _write(header: Any, rows: Iterable[bytes], path: Path) -> Path:
    """A file of a header and voxels, all of it or none; packed where its name says so."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            # without a name and a time in the stream
            packed = gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) if path.name.endswith(".gz") else None
            with packed or nullcontext(file) as target:
                target.write(header.binaryblock + bytes(4))  # four zeros: no extensions
                for row in rows:
                    target.write(row)
        beside.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    return path
