"""Windows of a scene from its files: values in the domain's unit, and which pixels are valid.

What is valid is decided on stored values, before any cast: a pixel is where every selected band's own mask says so
(GDAL's dataset mask is an OR over bands), the alpha band is not 0, and every value is finite and not nodata. GDAL
gives one mask a band: an internal or sidecar mask hides a nodata tag, and a nodata tag hides alpha. So masks are read,
and nodata and alpha compared here.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels, Window
from maectl.errors import Unreadable
from maectl_satellite.handles import gdal, opened, reading
from maectl_satellite.layout import Band, Layout
from maectl_satellite.resample import Taps, resampled

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

__all__ = ["alphas", "is_nodata", "load", "masked", "meant", "stored"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_SLAB = 1 << 23  # values decoded at once where a window is read in parts
_NEAR = 4 * float(np.finfo(np.float32).eps)
_POWER = {"power": 10.0, "amplitude": 20.0}  # dB = this · log10(value)


def load(
    files: Sequence[str], layout: Layout, dtype: str, window: Window | None, shape: tuple[int, ...] | None
) -> Pixels:
    """A window of a scene (None: all): values [C, h, w] of ``dtype``, validity [h, w] or None where all is valid.

    Where the window is ``shape`` twice or more, and no band has another resolution, there may be fewer pixels, never
    fewer than ``shape``: means over whole pixels, valid where all of them are. Raises `Unreadable`.
    """
    rows, columns = window or (slice(0, layout.shape[0]), slice(0, layout.shape[1]))
    if shape is not None and all(band.own_grid for band in layout.bands):
        sizes = (_size(rows), _size(columns))
        counts = [size // max(1, size // max(1, least)) for size, least in zip(sizes, shape, strict=True)]
        if counts != list(sizes):
            return _fewer(files, layout, dtype, (rows, columns), (counts[0], counts[1]))
    return meant(*stored(files, layout, (rows, columns)), layout, dtype)


def stored(files: Sequence[str], layout: Layout, window: Window) -> tuple[Array, Bools | None]:
    """What is stored: values [C, h, w] of ``layout.stored``, validity [h, w] or None where all is valid.

    Bands of another resolution are brought to the scene's grid, and rounded where stored as integers. Raises
    `Unreadable`.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for channel, band in enumerate(layout.bands):
        groups.setdefault((band.file, band.rows, band.columns), []).append(channel)
    values: Array | None = None
    valid: Bools | None = None
    for (file, *_), channels in groups.items():
        bands = [layout.bands[channel] for channel in channels]
        with reading(files[file]):
            raster = opened(files[file])
            _check(raster, bands, layout, alone=len(groups) == 1)
            read = _window if bands[0].own_grid else _other_grid
            part, whole = read(raster, bands, layout, window)
        valid = whole if valid is None else valid if whole is None else valid & whole
        if len(groups) == 1:
            values = part
            break
        if values is None:
            values = np.empty((len(layout.bands), *part.shape[1:]), layout.stored)
        values[channels] = part
    assert values is not None  # a scene has a band
    return values.astype(layout.stored, copy=False), valid


def meant(values: Array, valid: Bools | None, layout: Layout, dtype: str) -> Pixels:
    """Stored values [C, h, w] in the domain's unit: scaled, with an offset, in dB; what has no value is invalid."""
    if layout.plain and values.dtype == dtype:  # `stored` has looked for NaN
        return Pixels(values, None if valid is None or valid.all() else valid)
    with np.errstate(all="ignore"):
        if not layout.plain:
            scale, offset = (np.array([[[each]] for each in pair]) for pair in zip(*_lines(layout), strict=True))
            values = values * scale + offset  # in float64
            if layout.decibel:
                values = _POWER[layout.decibel] * np.log10(values)  # not finite where value <= 0
        found = values.astype(dtype)
    if found.dtype.kind == "f":  # beyond what float32 holds
        finite = np.isfinite(found).all(axis=0)
        valid = finite if valid is None else valid & finite
    return Pixels(found, None if valid is None or valid.all() else valid)


def is_nodata(values: Array, nodata: float | None) -> Bools | None:
    """Where stored values are a nodata value; None where they cannot be.

    Floats to the tolerance of GDAL's masks, 4 epsilon of float32 also in float64 (ARE_REAL_EQUAL in gdal_priv.h): the
    tag is decimal text. NaN is invalid in any case.
    """
    if nodata is None or math.isnan(nodata):
        return None
    if values.dtype.kind == "f":
        with np.errstate(all="ignore"):
            number = values.dtype.type(nodata)
            close: Bools = np.abs(values - number) <= _NEAR * np.abs(number)
            found: Bools = close | (values == number)
            return found
    limits = np.iinfo(values.dtype)
    if not limits.min <= nodata <= limits.max or nodata != int(nodata):
        return None
    equal: Bools = values == values.dtype.type(int(nodata))
    return equal


def alphas(raster: "DatasetReader") -> list[int]:
    """The numbers of a raster's alpha bands."""
    return [number for number, kind in enumerate(raster.colorinterp, 1) if kind == gdal().enums.ColorInterp.alpha]


def masked(raster: "DatasetReader", numbers: Sequence[int]) -> list[int]:
    """The bands whose masks, together, are all the stored ones (internal, sidecar, of a VRT) of bands ``numbers``.

    And those whose nodata value rasterio does not tell: the greatest integers of 64 bits, which no float is.
    """
    flag = gdal().enums.MaskFlags
    found: list[int] = []
    flags = raster.mask_flag_enums
    shared = False  # one for all bands is read once
    for number in numbers:
        kinds = set(flags[number - 1])
        untold = raster.nodatavals[number - 1] is None and raster.dtypes[number - 1] in ("int64", "uint64")
        if flag.all_valid in kinds or flag.alpha in kinds or (kinds == {flag.nodata} and not untold):
            continue
        if flag.per_dataset not in kinds or not shared:
            found.append(number)
        shared = shared or flag.per_dataset in kinds
    return found


def _lines(layout: Layout) -> Iterator[tuple[float, float]]:
    return ((band.scale, band.offset) for band in layout.bands)


def _check(raster: "DatasetReader", bands: Sequence[Band], layout: Layout, *, alone: bool) -> None:
    """Raise `Unreadable` where a file is not the one that was scanned."""
    if bands[0].own_grid and raster.shape != layout.shape:
        found, told = (" x ".join(map(str, shape)) for shape in (raster.shape, layout.shape))
        raise Unreadable(f"it has {found} pixels, not {told}: changed since the scan? Scan again")
    for (scale, shift), size, length in zip((bands[0].rows, bands[0].columns), layout.shape, raster.shape, strict=True):
        ends, pixel = (shift, scale * size + shift), max(1.0, abs(scale))  # of the coarser
        if min(ends) < -pixel or max(ends) > length + pixel:
            raise Unreadable("it does not cover the scene: changed since the scan? Scan again")
    if max(band.number for band in bands) > raster.count:
        raise Unreadable(f"it has {raster.count} bands, fewer than before: changed since the scan? Scan again")
    kind = np.result_type(*{raster.dtypes[band.number - 1] for band in bands})
    if kind != layout.stored and (alone or not np.can_cast(kind, layout.stored)):
        raise Unreadable(f"it holds {kind}, not {layout.stored}: changed since the scan? Scan again")


def _window(raster: "DatasetReader", bands: Sequence[Band], layout: Layout, window: Window) -> tuple[Array, Any]:
    """A window of the file's own grid: values [n, h, w] as stored, validity [h, w] or None where all is valid."""
    numbers = [band.number for band in bands]
    distinct = sorted(set(numbers))
    transparent = [number for number in alphas(raster) if number not in distinct]
    area = _bounds(window)
    if len({raster.dtypes[number - 1] for number in distinct}) == 1:
        values = raster.read(distinct, window=area)
    else:  # a VRT; rasterio reads bands of one type at once
        values = np.stack([raster.read(number, window=area).astype(layout.stored) for number in distinct])
    if values.shape[1:] != tuple(_size(side) for side in window):
        raise Unreadable(f"it has no pixels {area}: changed since the scan? Scan again")
    invalid: Bools | None = None
    for layer in _invalid(raster, values, distinct, layout.nodata):
        invalid = layer if invalid is None else np.logical_or(invalid, layer, out=invalid)
    for number in transparent:
        clear = raster.read(number, window=area) == 0
        invalid = clear if invalid is None else invalid | clear
    for number in masked(raster, distinct):
        clear = raster.read_masks(number, window=area) == 0
        invalid = clear if invalid is None else invalid | clear
    if numbers != distinct:
        values = values[[distinct.index(number) for number in numbers]]
    return values, None if invalid is None or not invalid.any() else ~invalid


def _invalid(raster: "DatasetReader", values: Array, numbers: Sequence[int], nodata: float | None) -> Iterator[Bools]:
    """What of the values themselves is invalid, [h, w] a band and reason."""
    opaque = set(alphas(raster))
    for number, band in zip(numbers, values, strict=True):
        if band.dtype.kind == "f":
            yield ~np.isfinite(band)
        if number in opaque:
            yield band == 0
        for value in {raster.nodatavals[number - 1], nodata}:
            layer = is_nodata(band, value)
            if layer is not None:
                yield layer


def _other_grid(raster: "DatasetReader", bands: Sequence[Band], layout: Layout, window: Window) -> tuple[Array, Any]:
    """As `_window`, of a file with a grid of its own, on the scene's; in parts, as it may be much finer."""
    rows, columns = window
    across = Taps.of(columns, bands[0].columns, raster.width)
    finer = max(1.0, abs(bands[0].rows[0]))
    most = max(1, int(_SLAB / (finer * len(bands) * _size(across.span))))
    kind = np.dtype(layout.stored)
    values = np.empty((len(bands), _size(rows), _size(columns)), kind)
    valid = np.ones(values.shape[1:], np.bool_)
    for first in range(rows.start, rows.stop, most):
        part = slice(first, min(first + most, rows.stop))
        down = Taps.of(part, bands[0].rows, raster.height)
        found, whole = _window(raster, bands, layout, (down.span, across.span))
        found, whole = resampled(found.astype(np.float64), whole, down, across)
        to = slice(part.start - rows.start, part.stop - rows.start)
        with np.errstate(over="ignore"):
            values[:, to] = found if kind.kind == "f" else np.rint(found)
        if whole is not None:
            valid[to] = whole
    return values, None if valid.all() else valid


def _fewer(
    files: Sequence[str], layout: Layout, dtype: str, window: tuple[slice, slice], counts: tuple[int, int]
) -> Pixels:
    """A window in ``counts`` pixels, each the mean of whole ones, which differ by one in number where need be."""
    overview = _overview(files, layout, dtype, window, counts)
    if overview is not None:
        return Pixels(overview)
    edges = [
        side.start + np.arange(n + 1) * (side.stop - side.start) // n for side, n in zip(window, counts, strict=True)
    ]
    areas = [np.diff(each) for each in edges]
    most = max(1, int(_SLAB / (len(layout.bands) * _size(window[1]) * areas[0].max())))
    values = np.empty((len(layout.bands), *counts), dtype)
    valid = np.ones(counts, np.bool_)
    for first in range(0, counts[0], most):
        some = slice(first, min(first + most, counts[0]))
        rows = slice(int(edges[0][some.start]), int(edges[0][some.stop]))
        pixels = load(files, layout, dtype, (rows, window[1]), None)
        at = (edges[0][some] - rows.start, edges[1][:-1] - window[1].start)
        with np.errstate(all="ignore"):
            sums = np.add.reduceat(np.add.reduceat(pixels.values, at[0], 1, np.float64), at[1], 2)
            means = sums / (areas[0][some, None] * areas[1])
            values[:, some] = means if values.dtype.kind == "f" else np.rint(means)
        if pixels.valid is not None:
            whole = np.logical_and.reduceat(np.logical_and.reduceat(pixels.valid, at[0], 0), at[1], 1)
            valid[some] = whole
    return Pixels(values, None if valid.all() else valid)


def _overview(
    files: Sequence[str], layout: Layout, dtype: str, window: tuple[slice, slice], counts: tuple[int, int]
) -> Array | None:
    """The window from the files' overviews; None where a file has none fine enough, or any pixel might be invalid.

    An overview does not tell an invalid pixel among the valid ones under it, nor what it was made of.
    """
    if not layout.plain or np.dtype(layout.stored).kind not in "ui" or layout.nodata is not None:
        return None
    least = min(_size(side) / n for side, n in zip(window, counts, strict=True))
    area = _bounds(window)
    values = np.empty((len(layout.bands), *counts), layout.stored)
    for file in sorted({band.file for band in layout.bands}):
        channels = [number for number, band in enumerate(layout.bands) if band.file == file]
        bands = [layout.bands[channel] for channel in channels]
        with reading(files[file]):
            raster = opened(files[file])
            _check(raster, bands, layout, alone=len(channels) == len(layout.bands))
            if not all(_has_overview(raster, band.number, least) for band in bands):
                return None
            mean = gdal().enums.Resampling.average
            numbers = [band.number for band in bands]
            values[channels] = raster.read(numbers, window=area, out_shape=(len(numbers), *counts), resampling=mean)
    return values.astype(dtype, copy=False)


def _has_overview(raster: "DatasetReader", number: int, most: float) -> bool:
    """Whether a band has an overview coarser by at most this factor, and no pixel that could be invalid."""
    unmasked = gdal().enums.MaskFlags.all_valid in raster.mask_flag_enums[number - 1] and not alphas(raster)
    return unmasked and min(raster.overviews(number), default=math.inf) <= most


def _size(side: slice) -> int:
    return int(side.stop - side.start)


def _bounds(window: Window) -> tuple[tuple[int, int], ...]:
    """A window as rasterio takes it."""
    return tuple((side.start, side.stop) for side in window)
