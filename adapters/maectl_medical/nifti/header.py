"""What a NIfTI-1 or NIfTI-2 file says of itself: voxel type, sizes, scaling, and where it lies in the patient.

Fields and their meaning are those of https://nifti.nimh.nih.gov/nifti-1 and nifti-2 (nifti1.h, nifti2.h).
"""

import os
import zlib
from dataclasses import dataclass
from math import isfinite, isnan, prod
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from maectl_medical.nifti.geometry import geometry
from maectl_medical.stored import Affine

__all__ = ["FAMILIES", "VOXELS_AT", "Damaged", "Header", "is_analyze", "looks_like", "read_header"]

FAMILIES: dict[int, Any] = {1: Nifti1Header, 2: Nifti2Header}
VOXELS_AT = {1: 352, 2: 544}
"""Where voxels begin, at the earliest, in a file that holds its header too."""

_GZIP = b"\x1f\x8b"
_HEAD = 4096  # bytes read of a file; of a gzip stream they hold the whole header
_SIZES = {1: 348, 2: 540}  # bytes of a header
_SAMPLES = {128: 3, 2304: 4}  # RGB24 and RGBA32
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_TYPES.update(dict.fromkeys(_SAMPLES, "u1"))
_KEPT = {"u1": "uint8", "i1": "int16", "i2": "int16", "u2": "uint16"}
_REFUSED = dict.fromkeys((32, 1792, 2048), "complex numbers: store magnitude and phase as images")
_REFUSED.update({1: "1-bit voxels", 1536: "128-bit floating point"})
_CIFTI = range(3000, 3100)  # intent codes
_LARGEST = 1 << 40  # bytes
_RATIO = 1032  # deflate never packs better than this to one


class Damaged(Exception):
    """A file that cannot be an image; the text says why, in technical values only."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was checked.

    version     1 or 2
    paired      whether the voxels are in a file of their own
    packed      whether the file is a gzip stream
    shape       (i, j, k, volumes)
    dimensions  axes in the file, without trailing ones of length 1; at least 2
    stored      the type on disk, with its byte order
    samples     of that type a voxel: 3 of RGB, 4 of RGBA, else 1
    dtype       of the values that loading gives
    offset      bytes before the first voxel
    slope       and inter: value = stored * slope + inter; 1 and 0 where the file has no scaling
    affine      index to mm, RAS+
    notes       on what is wrong with the geometry
    raw         nibabel's header, of which nothing but geometry may go anywhere
    """

    version: int
    paired: bool
    packed: bool
    shape: tuple[int, int, int, int]
    dimensions: int
    stored: np.dtype[Any]
    samples: int
    dtype: str
    offset: int
    slope: float
    inter: float
    affine: Affine
    notes: tuple[str, ...]
    raw: Any

    @property
    def voxel(self) -> int:
        """Bytes a voxel."""
        return self.stored.itemsize * self.samples

    @property
    def end(self) -> int:
        """Bytes up to the end of the last voxel."""
        return self.offset + prod(self.shape) * self.voxel


def looks_like(path: str, head: bytes) -> bool:
    """Whether a file beginning with ``head`` is NIfTI-1 or -2: single, gzipped, or the header of a pair.

    Its content decides; ``path`` is not asked. The ``.img`` of a pair is not recognised: its header is.
    """
    return _kind(_unpacked(head)) is not None


def is_analyze(head: bytes) -> bool:
    """Whether a file beginning with ``head`` is Analyze 7.5: NIfTI-1 without its magic."""
    content = _unpacked(head)
    return content[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") and len(content) >= _SIZES[1] and _kind(content) is None


def read_header(files: tuple[str, ...]) -> tuple[Header | None, bytes]:
    """The header of a file, or of a pair (.hdr, .img), and the first 4096 bytes it was read from.

    The header is None where the content is not NIfTI. Raises `Damaged` and OSError.
    """
    with open(files[0], "rb") as file:
        head = file.read(_HEAD)
    content, packed = _unpacked(head), head[:2] == _GZIP
    kind = _kind(content)
    if kind is None:
        return None, head
    version, order, paired = kind
    if len(content) < _SIZES[version]:
        raise Damaged(f"truncated in its header: {len(content)} of {_SIZES[version]} bytes")
    if paired and (packed or not files[0].lower().endswith(".hdr")):
        raise Damaged("a header without voxels: it must be uncompressed and named .hdr, with an .img beside it")
    if paired and len(files) == 1:
        raise Damaged("its voxels are missing: there is no .img of the same name beside it")
    with np.errstate(all="ignore"):
        # With its checks nibabel would log what is odd; without them it only gives access to the fields.
        raw = FAMILIES[version](content[: _SIZES[version]], endianness=order, check=False)
        header = _checked(raw, order, version, paired, packed)
    _measure(header, os.stat(files[-1] if paired else files[0]).st_size)
    return header, head


def _unpacked(head: bytes) -> bytes:
    """The beginning of a file's content, where it may be a gzip stream cut anywhere; b"" of a damaged one."""
    if head[:2] != _GZIP:
        return head
    try:
        return zlib.decompressobj(31).decompress(head, max(_SIZES.values()))
    except zlib.error:
        return b""


def _kind(content: bytes) -> tuple[int, str, bool] | None:
    """Version, byte order, and whether the voxels are in another file; None where it is not NIfTI."""
    size = content[:4]
    for version, magic in ((1, content[344:348]), (2, content[4:8])):
        if magic not in (b"n+%d\0" % version, b"ni%d\0" % version):
            continue
        paired = magic[1:2] == b"i"
        if int.from_bytes(size, "little") == _SIZES[version]:
            return version, "<", paired
        if int.from_bytes(size, "big") == _SIZES[version]:
            return version, ">", paired
    return None


def _checked(raw: Any, order: str, version: int, paired: bool, packed: bool) -> Header:
    if int(raw["intent_code"]) in _CIFTI:
        raise Damaged("CIFTI: values on a cortical surface, not an image")
    code, bits = int(raw["datatype"]), int(raw["bitpix"])
    if code not in _TYPES:
        raise Damaged(f"{_REFUSED.get(code, 'unknown data type')} (datatype {code})")
    stored, samples = np.dtype(order + _TYPES[code]), _SAMPLES.get(code, 1)
    if bits not in (0, 8 * stored.itemsize * samples):
        raise Damaged(f"its header contradicts itself: datatype {code} with {bits} bits a voxel")
    shape, dimensions = _shape(raw)
    slope, inter = _scaling(raw, samples)
    affine, notes = geometry(raw, shape)
    return Header(
        version=version,
        paired=paired,
        packed=packed,
        shape=shape,
        dimensions=dimensions,
        stored=stored,
        samples=samples,
        dtype=_dtype(stored, slope, inter),
        offset=_offset(raw, 0 if paired else VOXELS_AT[version]),
        slope=slope,
        inter=inter,
        affine=affine,
        notes=notes,
        raw=raw,
    )


def _shape(raw: Any) -> tuple[tuple[int, int, int, int], int]:
    """(i, j, k, volumes), and how many axes the file has without trailing ones of length 1."""
    count = int(raw["dim"][0])
    if not 1 <= count <= 7:
        raise Damaged(f"damaged header: {count} dimensions")
    sizes = [int(size) for size in raw["dim"][1 : count + 1]]
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    text = " x ".join(map(str, sizes))
    if min(sizes) < 1:
        raise Damaged(f"a size of {text} voxels")
    if not 2 <= len(sizes) <= 4:
        raise Damaged(f"{len(sizes)} dimensions ({text}): an image has 2, 3 or 4")
    i, j, k, volumes = sizes + [1] * (4 - len(sizes))
    return (i, j, k, volumes), len(sizes)


def _offset(raw: Any, least: int) -> int:
    offset = float(raw["vox_offset"])
    if not (least <= offset <= _LARGEST and offset.is_integer()):
        raise Damaged(f"damaged header: its voxels begin at byte {offset:g}, not at {least} or behind")
    return int(offset)


def _scaling(raw: Any, samples: int) -> tuple[float, float]:
    """Slope and intercept. A slope of 0 means none, by the standard; NaN is nibabel's own mark for none."""
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if samples > 1 or slope == 0 or isnan(slope):
        return 1.0, 0.0
    if not (isfinite(slope) and isfinite(inter)):
        raise Damaged(f"its scaling is not finite: slope {slope:g}, intercept {inter:g}")
    return slope, inter


def _dtype(stored: np.dtype[Any], slope: float, inter: float) -> str:
    """The type of the scaled values: float32 where whole numbers of 8 or 16 bits do not hold them."""
    name = stored.str[1:]
    if (slope, inter) == (1, 0):
        return _KEPT.get(name, "float32")
    if name in ("u1", "i1") and slope == 1 and inter.is_integer():
        limits, room = np.iinfo(stored), np.iinfo(np.int16)
        if limits.min + inter >= room.min and limits.max + inter <= room.max:
            return "int16"
    return "float32"


def _measure(header: Header, size: int) -> None:
    """Raise `Damaged` where a file of ``size`` bytes cannot hold the voxels its header promises."""
    if header.end > _LARGEST:
        text = " x ".join(map(str, header.shape[: max(3, header.dimensions)]))
        raise Damaged(f"its header promises {text} voxels, which is not plausible")
    if size * (_RATIO if header.packed else 1) < header.end:
        packed = "compressed " if header.packed else ""
        raise Damaged(f"truncated: {size:,} {packed}bytes, and its header promises {header.end:,}")
