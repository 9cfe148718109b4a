"""One file's header, by GDAL: what there is, without its pixels but for a few blocks where an option must look."""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maectl.adapter import Reject
from maectl_satellite.bands import centre_of
from maectl_satellite.filenames import baseline, sensor_of
from maectl_satellite.ground import spacing
from maectl_satellite.handles import Failure, environment, failures, fresh, gdal, told
from maectl_satellite.layout import Affine
from maectl_satellite.tiff import JP2, TIFF, is_tiff
from maectl_satellite.vrt import SIDECARS, Refused, is_vrt, members, not_tiff, sidecars

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

__all__ = ["SUFFIXES", "Raster", "header"]

SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".btf", ".tf8", ".vrt", ".jp2")
_LONGEST = 1 << 31  # pixels a side
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
_LOOKED = 128  # pixels a side of the places looked at, of which there are at most five
_BANDS_LOOKED = 64
_TAGS = ("SPACECRAFT_NAME", "SPACECRAFT_ID", "SATELLITE", "SATELLITEID", "SENSOR", "SENSOR_ID", "PLATFORM", "MISSION")
_BANDS = 10_000  # what a damaged header promises is often the 65,535 that a TIFF may have


@dataclass(frozen=True, slots=True)
class Raster:
    """A header that was checked; tuples have one entry a band.

    path          relative to the folder
    driver        GTiff, VRT or JP2OpenJPEG
    shape         (H, W)
    dtypes        as stored
    nodata        the value of the nodata tag, None without one
    masks         where validity comes from: "alpha", "mask" (internal or sidecar), "nodata" or "none"
    colours       GDAL's colour interpretation: gray, red, alpha, undefined, ...
    descriptions  "" where there is none
    centres       wavelengths in nm, None where not told
    scales        and offsets, as the file says, and units, "" where there is none
    crs           WKT, "" where there is none; epsg "EPSG:32618", "a system without a code" or "none"
    transform     affine's first six, None where the raster lies nowhere
    gcps          whether ground control points say where it lies, and nothing else does
    spacing       metres a pixel, or None
    block         (rows, columns); strips says whether blocks are as wide as the raster and it has several
    compression   "deflate", "none", ...; overviews whether there are any
    pages         images in the file, of which the first is read
    members       of a VRT: the files it is made of, relative to the folder
    tags          what names the instrument
    negative      whether a value looked at is negative; None where none was looked at
    lowest        the least valid value of all bands in the places looked at, None likewise
    """

    path: str
    driver: str
    shape: tuple[int, int]
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    masks: tuple[str, ...]
    colours: tuple[str, ...]
    descriptions: tuple[str, ...]
    centres: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str, ...]
    crs: str
    epsg: str
    transform: Affine | None
    gcps: bool
    spacing: tuple[float, float] | None
    block: tuple[int, int]
    strips: bool
    compression: str
    overviews: bool
    pages: int = 1
    members: tuple[str, ...] = ()
    tags: str = ""
    negative: bool | None = None
    lowest: float | None = None


def header(
    folder: str, path: str, *, decibel: bool = False, offset: bool = False, sensor: str = "auto", palettes: bool = False
) -> Raster | Reject | None:
    """What a file says of itself; None where it is no raster of ours and not named as one.

    ``decibel`` looks whether values are negative; ``offset`` for the lowest value of Sentinel-2 files whose name does
    not tell their processing baseline. ``palettes`` lets rasters with colour tables through.
    """
    named = path.lower().endswith(SUFFIXES)
    whole = os.path.join(folder, path)
    try:
        with open(whole, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        return Reject((path,), f"cannot be opened: {error.strerror}") if named else None
    parts: tuple[str, ...] = ()
    if is_vrt(head):
        try:
            parts = members(folder, path)
        except Refused as error:
            return Reject((path,), str(error))
        except OSError as error:
            return Reject((path,), f"a file that it names cannot be opened: {error.strerror}")
    elif not is_tiff(head) and not head.startswith(JP2):
        return Reject((path,), _alien(path, head)) if named and head[:4] not in TIFF else None
    elif path.lower().endswith(SIDECARS) and os.path.isfile(os.path.splitext(whole)[0]):
        return None  # overviews or a mask of another file
    beside = [each for one in (path, *parts) for each in sidecars(os.path.join(folder, one))]
    if alien := next((each for each in beside if not_tiff(each)), None):
        return Reject((path,), f"{os.path.basename(alien)} beside it is no TIFF, and GDAL would open it: take it away")
    faults: Failure = (*failures(), ValueError)  # rasterio's own: a system or a text it cannot make sense of
    with environment():
        try:
            if any(_names_overviews(each) for each in (*(os.path.join(folder, part) for part in parts), *beside)):
                return Reject((path,), "a file of it names overviews elsewhere, which are not opened")
            with fresh(whole) as raster:
                found = _checked(raster, path, folder, parts, palettes)
                if isinstance(found, Reject):
                    return found
                wanted = decibel or (offset and _is_unclear(found, sensor))
                return _looked(raster, found) if wanted else found
        except UnicodeEncodeError:
            return Reject((path,), "its name is not in UTF-8, which GDAL cannot open: rename it")
        except UnicodeDecodeError:
            return Reject((path,), "a text in it (a band's name or unit) is not in UTF-8: write it anew with GDAL")
        except faults as error:
            return Reject((path,), f"damaged, or not readable by GDAL: {told(error, whole)}")


def _alien(path: str, head: bytes) -> str:
    if not head:
        return "empty file"
    return f"none of TIFF, JPEG 2000, VRT in spite of its suffix {os.path.splitext(path)[1]}"


def _checked(
    raster: "DatasetReader", path: str, folder: str, parts: tuple[str, ...], palettes: bool
) -> Raster | Reject:
    """A header, or why it cannot be an image."""
    if "OVERVIEW_FILE" in raster.tags(ns="OVERVIEWS"):  # GDAL would open whatever it says
        return Reject((path,), "it names a file of overviews elsewhere, which is not opened")
    if parts and (stray := _stray(raster.files, folder)):
        return Reject((path,), f"names files outside of the folder ({stray})")
    dtypes = tuple(str(each) for each in raster.dtypes)
    complex_ = [each for each in dtypes if each.startswith("complex")]
    if complex_:
        return Reject((path,), f"complex values ({complex_[0]}): take their amplitude or power first")
    if odd := sorted(set(dtypes) - set(_DTYPES)):
        return Reject((path,), f"values of {odd[0]} are not read")
    rows, columns = raster.shape
    if not (0 < rows < _LONGEST and 0 < columns < _LONGEST and 0 < raster.count <= _BANDS):
        return Reject((path,), f"its header promises {raster.count:,} bands of {rows:,} x {columns:,} pixels")
    colours = tuple(each.name for each in raster.colorinterp)
    painted = raster.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE", "YCbCr")
    if painted != "YCbCr":
        return Reject((path,), f"a picture in {painted}: GDAL would repaint it; the adapter natural reads pictures")
    if "palette" in colours and not palettes:
        return Reject((path,), "a palette of colours: a class map or a picture, not measured values")
    return _raster(raster, path, dtypes, colours, parts)


def _names_overviews(path: str) -> bool:
    with fresh(path) as raster:
        return "OVERVIEW_FILE" in raster.tags(ns="OVERVIEWS")


def _stray(files: list[str], folder: str) -> str:
    """The name of a file that lies outside of a folder, links followed; "" where there is none."""
    root = os.path.realpath(folder).rstrip(os.sep) + os.sep
    return next((os.path.basename(each) for each in files if not os.path.realpath(each).startswith(root)), "")


def _raster(
    raster: "DatasetReader", path: str, dtypes: tuple[str, ...], colours: tuple[str, ...], parts: tuple[str, ...]
) -> Raster:
    transform: Affine | None = tuple(float(each) for each in raster.transform)[:6]  # type: ignore[assignment]
    if transform == (1, 0, 0, 0, 1, 0) or not all(map(math.isfinite, transform or ())):
        transform = None
    crs = raster.crs.to_wkt() if raster.crs else ""
    code = raster.crs.to_epsg() if raster.crs else None
    rows, columns = raster.shape
    block = raster.block_shapes[0]
    described = tuple(_text(each) for each in raster.descriptions)
    return Raster(
        path=path,
        driver=raster.driver,
        shape=(rows, columns),
        dtypes=dtypes,
        nodata=tuple(None if each is None else float(each) for each in raster.nodatavals),
        masks=tuple(_mask([flag.name for flag in flags]) for flags in raster.mask_flag_enums),
        colours=colours,
        descriptions=described,
        centres=tuple(_centre(raster, number, name) for number, name in enumerate(described, 1)),
        scales=tuple(float(each) for each in raster.scales),
        offsets=tuple(float(each) for each in raster.offsets),
        units=tuple(_text(each) for each in raster.units),
        crs=crs,
        epsg=f"EPSG:{code}" if code else "a system without a code" if crs else "none",
        transform=transform,
        gcps=transform is None and bool(raster.gcps[0]),
        spacing=spacing(crs, transform, (rows, columns)),
        block=(int(block[0]), int(block[1])),
        strips=raster.driver == "GTiff" and block[0] < rows and block[1] == columns,
        compression=_compression(raster),
        overviews=bool(raster.overviews(1)),
        pages=max(1, len(raster.subdatasets)),
        members=parts,
        tags=" ".join(value for name, value in raster.tags().items() if name.upper() in _TAGS)[:200],
    )


def _compression(raster: "DatasetReader") -> str:
    found = raster.compression  # an enumeration of rasterio's, or a text where it does not know it
    return str(getattr(found, "name", found)).lower() if found else "none"


def _text(value: str | None) -> str:
    """A description in one line and of bounded length; what is not text becomes a question mark."""
    return " ".join((value or "").encode("utf-8", "replace").decode().split())[:100]


def _mask(flags: list[str]) -> str:
    if "alpha" in flags:
        return "alpha"
    if "per_dataset" in flags:
        return "mask"
    return "nodata" if "nodata" in flags else "none"


def _centre(raster: "DatasetReader", number: int, described: str) -> float | None:
    """The centre of a band in nm: by its tags (ENVI's wavelength, GDAL's CENTRAL_WAVELENGTH_UM), or its description."""
    tags = {name.lower(): value for name, value in raster.tags(number).items()}
    if "wavelength" in tags:
        unit = tags.get("wavelength_units", tags.get("wavelength_unit", ""))
        return centre_of(tags["wavelength"], unit)
    imagery = {**tags, **{name.lower(): value for name, value in raster.tags(number, ns="IMAGERY").items()}}
    if "central_wavelength_um" in imagery:
        return centre_of(imagery["central_wavelength_um"], "um")
    return None if _is_number(described) else centre_of(described)


def _is_number(text: str) -> bool:
    """Whether a description is a bare number, which may be a band's as well as a wavelength."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_unclear(raster: Raster, sensor: str) -> bool:
    """Whether only the pixels can say if Sentinel-2's offset is still in them."""
    known = sensor_of(raster.path, raster.tags, raster.descriptions) if sensor == "auto" else sensor
    return known == "sentinel2" and baseline(raster.path) is None and max(map(len, raster.dtypes)) > len("uint8")


def _looked(raster: "DatasetReader", found: Raster) -> Raster:
    """With what valid values in a few places say. A place that cannot be read says nothing: reading will tell."""
    least, negative = math.inf, False
    numbers = [number for number, colour in enumerate(found.colours, 1) if colour != "alpha"][:_BANDS_LOOKED]
    # Band by band: those of a VRT may differ in type, and rasterio reads bands of one type at once.
    for window, number in itertools.product(list(_places(found.shape, found.block)), numbers):
        try:
            values = raster.read(number, window=window)
            valid = raster.read_masks(number, window=window) > 0
        except failures():
            continue
        if values.dtype.kind == "f":
            valid &= np.isfinite(values)
        if valid.any():
            lowest = float(values[valid].min())
            least, negative = min(least, lowest), negative or lowest < 0
    return replace(found, negative=negative, lowest=least if math.isfinite(least) else None)


def _places(shape: tuple[int, int], block: tuple[int, int]) -> Iterator[Any]:
    """Five places, at most 128 px a side, in the middle and between it and the corners; of tiles their beginnings."""
    window = gdal().windows.Window
    for shares in ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)):
        row, column = (
            int(length * share) // step * step if step < length else int(length * share)
            for length, share, step in zip(shape, shares, block, strict=True)
        )
        yield window(column, row, min(_LOOKED, shape[1] - column), min(_LOOKED, shape[0] - row))
