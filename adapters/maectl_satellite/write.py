"""GeoTIFF out: a scene with new values, or a coarser map over it; streamed, so of any size.

A file has the source's place (coordinate system, transform or ground control points) and, of a scene, what its values
mean: nodata, scales, offsets, units, band names, colours. No other tag is taken over: names, dates, orbits stay behind.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.adapter import Source, Values, Window
from maectl.errors import DataError
from maectl_satellite.geotiff import created, place, profile, tile_side
from maectl_satellite.handles import gdal, opened, reading
from maectl_satellite.layout import Layout
from maectl_satellite.pixels import alphas, is_nodata, masked, meant, stored

__all__ = ["save", "save_map"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Block = tuple[slice, slice]

MAP_TILE = 64  # of a map, whose pixels are patches
_SLAB = 1 << 23  # values dealt with at once
_FEW = 4  # bands that are stored pixel by pixel; more are stored band by band, or a tile of them all would be huge
_POWER = {"power": 10.0, "amplitude": 20.0}  # dB = this · log10(value)
_HALF_MAX = 65504.0  # the largest float16


@dataclass(frozen=True)
class _Kept:
    """What a scene's file takes over from the source's.

    about    rasterio's: crs, transform or gcps, nodata
    bands    a dict a band, of lists: colorinterp, scales, offsets, units
    alpha    the number of the alpha band in the source's only file, copied as a last band; None where there is none
    masked   whether an internal mask is written: where the source has one, where its bands have different nodata
             values, which one GeoTIFF cannot say, or one that cannot be written, and where alpha lies in several files
    """

    about: dict[str, Any]
    bands: dict[str, list[Any]]
    alpha: int | None
    masked: bool


@dataclass
class _Scene:
    """A scene being written: where to, what from, and which parts are done."""

    target: Any
    source: Source
    layout: Layout
    kept: _Kept
    done: list[Block] = field(default_factory=list)

    def put(self, window: Block, values: Array | None, only: Bools | None = None) -> None:
        """Write a window: new values [C, h, w], or the source's (None), these ``only`` in some pixels."""
        raw, valid = stored(self.source.files, self.layout, window)
        self._settle(raw, valid)
        new = raw if values is None else self._renewed(raw, valid, values)
        numbers = list(range(1, len(new) + 1))
        area = tuple((side.start, side.stop) for side in window)
        if only is not None and not only.all():
            new = np.where(only, new, self.target.read(numbers, window=area))
        self.target.write(new, numbers, window=area)
        if self.kept.alpha is not None:
            file = self.source.files[self.layout.bands[0].file]
            with reading(file):
                alpha = opened(file).read(self.kept.alpha, window=area)
            self.target.write(alpha.astype(new.dtype, copy=False), len(new) + 1, window=area)
        if self.kept.masked:
            self.target.write_mask(np.ones(raw.shape[1:], np.bool_) if valid is None else valid, window=area)

    def _settle(self, raw: Array, valid: Bools | None) -> None:
        """Mark interpolated values: none of a valid pixel is nodata, and all of an invalid one are."""
        coarse = [channel for channel, band in enumerate(self.layout.bands) if not band.own_grid]
        if coarse:
            part = _off_nodata(raw[coarse], self._nodata)
            nothing = self._nodata[0] if self._nodata else math.nan if raw.dtype.kind == "f" else None
            if valid is not None and nothing is not None:
                part[:, ~valid] = nothing
            raw[coarse] = part

    def _renewed(self, raw: Array, valid: Bools | None, values: Array) -> Array:
        """The stored values nearest to ``values``; the source's own where they say so, or nothing, or it is invalid."""
        seen = meant(raw, valid, self.layout, self.source.dtype)
        stays = (seen.values == values) | np.isnan(values)
        if seen.valid is not None:
            stays |= ~seen.valid
        return np.where(stays, raw, _off_nodata(_unmeant(values, self.layout), self._nodata))

    @property
    def _nodata(self) -> list[float]:
        return [value for value in (self.kept.about["nodata"], self.layout.nodata) if value is not None]


def save(source: Source, layout: Layout, tiles: Iterable[tuple[Window, Values]], path: Path) -> Path:
    """Write a scene from disjoint tiles of values [C, h, w] in its unit, and return the path written.

    ``path`` has no suffix; .tif is added. Of several files one is made, of some of a file's bands these alone. Invalid
    pixels, and those under no tile, keep what is stored, as do values that are the source's or NaN; another that
    would be nodata becomes the nearest one that is not. Raises `DataError` and `Unreadable`.
    """
    kept = _kept(source.files, layout)
    count = len(layout.bands) + (kept.alpha is not None)
    side = tile_side(layout.shape, count, layout.stored)
    across = side * max(1, _SLAB // (count * side * side))
    about = profile(layout.shape, count, layout.stored, side, "pixel" if count <= _FEW else "band") | kept.about
    with created(path.with_name(f"{path.name}.tif"), about) as (target, written):
        for name, listed in kept.bands.items():
            setattr(target, name, listed)
        target.descriptions = [band.name or None for band in layout.bands] + [None] * (count - len(layout.bands))
        scene = _Scene(target, source, layout, kept)
        for (rows, columns), values in tiles:
            scene.done.append((rows, columns))
            for down, over in _parts((rows, columns), side, across):
                inside = values[:, down.start - rows.start : down.stop - rows.start]
                scene.put((down, over), inside[:, :, over.start - columns.start : over.stop - columns.start])
        for block, only in _left(layout.shape, scene.done, side, across):
            scene.put(block, None, only)
    return written


def save_map(
    source: Source,
    layout: Layout,
    tiles: Iterable[tuple[Window, Values]],
    path: Path,
    *,
    step: tuple[float, ...],
    channels: tuple[str, ...],
    dtype: str,
    scales: Sequence[tuple[float, float]] | None,
) -> Path:
    """Write a map over a scene, of ceil(length / step) pixels a side, and return the path written.

    ``tiles`` are disjoint windows of the map. ``dtype`` is float32 or float16 (both with nodata NaN), int8 (-128) or
    uint8 (0); NaN, and what lies under no tile, is nodata. ``scales`` are a (scale, offset) a channel: the meaning of
    the stored numbers. ``path`` has no suffix; .tif is added. Raises `DataError` and `Unreadable`.
    """
    nodata = {"float32": math.nan, "float16": math.nan, "int8": -128, "uint8": 0}.get(dtype)
    if nodata is None:
        raise DataError(f"a map cannot be of {dtype}: use float32, float16, int8 or uint8")
    size = tuple(max(1, math.ceil(length / each - 1e-9)) for length, each in zip(layout.shape, step, strict=True))
    kind = np.dtype("float32" if dtype == "float16" else dtype)
    file = source.files[layout.bands[0].file]
    with reading(file):
        where = place(opened(file), layout, (step[0], step[1]))
    about = profile((size[0], size[1]), len(channels), kind.name, MAP_TILE, "band") | where | {"nodata": nodata}
    if dtype == "float16":
        about["nbits"] = 16  # how a GeoTIFF says float16; GDAL gives it as float32
    with created(path.with_name(f"{path.name}.tif"), about) as (target, written):
        target.descriptions = channels
        if scales is not None:
            target.scales, target.offsets = zip(*scales, strict=True)
        for window, values in tiles:
            area = tuple((side.start, side.stop) for side in window)
            target.write(_numbers(values, dtype, nodata).astype(kind, copy=False), window=area)
    return written


def _numbers(values: Array, dtype: str, nodata: float) -> Array:
    """Values as a map stores them: rounded and clipped, NaN as nodata; what is of ``dtype`` already, as it is."""
    if dtype == "float16":  # rounded here, because GDAL cuts the last bits off
        return np.clip(values, -_HALF_MAX, _HALF_MAX).astype(np.float16)
    if dtype == "float32" or values.dtype == dtype:
        return values
    limits = np.iinfo(dtype)  # whose least value is nodata
    whole = np.clip(np.rint(values), limits.min + 1, limits.max)
    return np.where(np.isnan(whole), nodata, whole)


def _kept(files: Sequence[str], layout: Layout) -> _Kept:
    """What is taken over from the files of a scene."""
    kind = gdal().enums.ColorInterp
    bands: dict[str, list[Any]] = {"colorinterp": [], "scales": [], "offsets": [], "units": []}
    nodata: set[float | None] = set()
    clear: list[int] = []
    mask = False
    for band in layout.bands:
        with reading(files[band.file]):
            raster = opened(files[band.file])
            for name, listed in bands.items():
                listed.append(getattr(raster, name)[band.number - 1])
            value = raster.nodatavals[band.number - 1]
            nodata.add(_held(value, layout.stored))
            mask = mask or _is_too_long(value, layout.stored)
            clear = alphas(raster) or clear
            mask = mask or bool(masked(raster, [band.number]))
    # The colours of a palette are not taken over, nor is its name.
    bands["colorinterp"] = [kind.gray if each == kind.palette else each for each in bands["colorinterp"]]
    if any(math.isnan(value) for value in nodata if value is not None):
        nodata = {value for value in nodata if value is None or not math.isnan(value)} | {math.nan}
    file = layout.bands[0].file
    single = all(band.file == file and band.own_grid for band in layout.bands)
    seen = {band.number for band in layout.bands} if single else set()
    alpha = clear[0] if single and len(clear) == 1 and clear[0] not in seen else None
    if alpha is not None:
        for name, value in (("colorinterp", kind.alpha), ("scales", 1.0), ("offsets", 0.0), ("units", None)):
            bands[name].append(value)
    mask = mask or len(nodata) > 1 or (alpha is None and not seen >= set(clear))
    with reading(files[file]):
        about = place(opened(files[file]), layout)
    return _Kept(about | {"nodata": nodata.pop() if len(nodata) == 1 else None}, bands, alpha, mask)


def _held(nodata: float | None, dtype: str) -> float | None:
    """A nodata value, if pixels of this type can hold it."""
    kind = np.dtype(dtype)
    if (
        nodata is None
        or _is_too_long(nodata, dtype)
        or (kind.kind != "f" and is_nodata(np.zeros(0, kind), nodata) is None)
    ):
        return None
    if kind.kind == "f" and math.isfinite(nodata) and abs(nodata) > np.finfo(kind).max:
        return None
    return nodata


def _is_too_long(nodata: float | None, dtype: str) -> bool:
    """Whether rasterio would write a nodata value of 64-bit integers wrongly.

    It gives GDAL a float, whose text has 17 digits: "-9.2233720368547758e+18" is read as -9.
    """
    return nodata is not None and dtype in ("int64", "uint64") and abs(nodata) >= 1e17


def _unmeant(values: Array, layout: Layout) -> Array:
    """The stored values [C, h, w] nearest to those in the domain's unit; of NaN, anything."""
    kind = np.dtype(layout.stored)
    with np.errstate(all="ignore"):
        real = values.astype(np.float64)
        if layout.decibel:
            real = 10 ** (real / _POWER[layout.decibel])
        if not layout.plain:
            real = (real - [[[band.offset]] for band in layout.bands]) / [[[band.scale]] for band in layout.bands]
        if kind.kind == "f":
            return np.clip(real, -np.finfo(kind).max, np.finfo(kind).max).astype(kind)
        limits = np.iinfo(kind)
        # The largest integer of 64 bits is no float64: the next one below it is taken.
        most = float(limits.max) if limits.bits < 64 else np.nextafter(float(limits.max), 0)
        whole: Array = np.clip(np.rint(np.nan_to_num(real)), float(limits.min), most).astype(kind)
        return whole


def _off_nodata(values: Array, nodata: Sequence[float]) -> Array:
    """Values of which none is nodata: moved to the nearest that is not."""
    for value in nodata:
        layer = is_nodata(values, value)
        if layer is not None and layer.any():
            values = np.where(layer, _neighbour(value, nodata, values.dtype), values)
    return values


def _neighbour(value: float, nodata: Sequence[float], kind: np.dtype[Any]) -> Any:
    """The value of a type nearest to a nodata value that is none of them, above if two are as near."""
    near = kind.type(value)
    with np.errstate(over="ignore"):
        return next(number for number in _around(near) if not _any_nodata(number, nodata))


def _around(near: Any) -> Iterator[Any]:
    """Values of its type, ever farther from it, above and below."""
    for power in itertools.count():
        if near.dtype.kind == "f":
            limit = np.finfo(near.dtype)
            gap = near.dtype.type(
                max(abs(float(near)) * float(limit.eps), float(limit.smallest_subnormal)) * 2.0**power
            )
            yield from (number for number in (near + gap, near - gap) if np.isfinite(number))
        else:
            limits = np.iinfo(near.dtype)
            pair = (int(near) + power + 1, int(near) - power - 1)
            yield from (near.dtype.type(number) for number in pair if limits.min <= number <= limits.max)


def _any_nodata(number: Any, nodata: Sequence[float]) -> bool:
    layers = (is_nodata(np.array([number]), each) for each in nodata)
    return any(layer is not None and bool(layer.any()) for layer in layers)


def _parts(window: Block, down: int, across: int) -> Iterator[Block]:
    """A window in blocks of at most so many rows and columns."""
    rows, columns = window
    for top in range(rows.start, rows.stop, down):
        for left in range(columns.start, columns.stop, across):
            yield slice(top, min(top + down, rows.stop)), slice(left, min(left + across, columns.stop))


def _left(shape: tuple[int, int], done: Sequence[Block], down: int, across: int) -> Iterator[tuple[Block, Bools]]:
    """The blocks that tiles have not covered, and which pixels in them."""
    for rows, columns in _parts((slice(0, shape[0]), slice(0, shape[1])), down, across):
        only = np.ones((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
        for covered in done:
            top, bottom, left, right = (
                max(0, end - side.start)
                for each, side in zip(covered, (rows, columns), strict=True)
                for end in (each.start, each.stop)
            )
            only[top:bottom, left:right] = False
        if only.any():
            yield (rows, columns), only
