"""A scene to a `Source`: its channels, its grid, what its values mean, and what a user should know of it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from maectl.adapter import Channels, Reject, Source
from maectl_satellite.bands import SENSORS, Named, Unfit, chosen, names, plain
from maectl_satellite.filenames import baseline, sensor_of
from maectl_satellite.ground import spacing
from maectl_satellite.header import Raster
from maectl_satellite.layout import Affine, Band, Layout, Line

__all__ = ["Rules", "Scene", "described", "mapping"]

_KEPT = {"int8": "int16", **{name: name for name in ("uint8", "int16", "uint16", "float32")}}
_LONG = 4096  # pixels a side from which strips make windows slow
_OFFSET = -1000.0  # ESA, Sentinel-2 processing baseline 04.00 (25 January 2022): RADIO_ADD_OFFSET, BOA_ADD_OFFSET
_FIRST = 400  # the first baseline that has it
_CLOSE = 5.0  # metres a pixel below which images are aerial ones
Decibel = Literal["", "power", "amplitude"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The options that say how scenes are made; see `maectl_satellite.Satellite`."""

    channels: Channels = "auto"
    sensor: str = "auto"
    resolution: float | None = None
    scale: float | Literal["tags"] | None = None
    offset: float | None = None
    unit: str | None = None
    decibel: str = "none"
    s2_offset: str | int = "auto"
    nodata: float | None = None
    join: bool = True
    labels: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """Files that are one image: one file of any bands, or one file a band, in the order of their bands.

    names  what the bands of joined files are called, by the files' names; () of a single file
    notes  on how it came to be
    """

    rasters: tuple[Raster, ...]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file: of a VRT itself, then those it is made of."""
        return (*(raster.path for raster in self.rasters), *self.rasters[0].members)


@dataclass(frozen=True, slots=True)
class _Pick:
    """One band of a scene: its file, its number there from 1, and what it is called."""

    file: int
    number: int
    named: Named
    described: str


def described(scene: Scene, folder: str, rules: Rules) -> Source | Reject:
    """The source that a scene is under these options, or why it is none."""
    picks = list(_picks(scene))
    sensor = _sensor(scene, picks, rules)
    try:
        places, channels = chosen(rules.channels, [pick.named for pick in picks], sensor)
    except Unfit as error:
        return Reject(scene.paths, str(error))
    if not places:
        return Reject(scene.paths, "it has an alpha band and no other")
    taken = [picks[place] for place in places]
    shape, transform, metres = _grid(scene, taken, rules.resolution)
    scales, notes = _scaled(scene, taken, sensor, rules)
    decibel, logarithmic = _decibel(scene.rasters, rules.decibel)
    stored = np.result_type(*{scene.rasters[pick.file].dtypes[pick.number - 1] for pick in taken}).name
    bands = tuple(
        Band(pick.file, pick.number, pick.described, *_lines(scene.rasters[pick.file], shape, transform), *scale)
        for pick, scale in zip(taken, scales, strict=True)
    )
    first = scene.rasters[bands[0].file]
    kept = None if (shape, transform) == (first.shape, first.transform) else transform
    layout = Layout(shape, bands, stored, kept, decibel, rules.nodata)
    return Source(
        paths=scene.paths,
        shape=(len(channels), *shape),
        dtype=_KEPT.get(stored, "float32") if layout.plain else "float32",
        unit=_unit(layout, logarithmic, rules),
        axes=("row", "column"),
        channels=channels,
        spacing=metres,
        key=layout.dump(),
        folder=folder,
        facts=tuple(_facts(scene, sensor, stored, [pick.named.known for pick in taken], metres)),
        notes=(*scene.notes, *notes, *_notes(scene, layout, rules)),
    )


def mapping(raster: Raster, shape: tuple[int, int], transform: Affine | None) -> tuple[Line, Line, float]:
    """Where a grid's rows and columns lie in a file, and by how many of its pixels that may be wrong at most.

    The last is how far corners of the grid are from where (a·y + b, a·x + b) has them: rotations against one another.
    """
    if transform == raster.transform or transform is None or raster.transform is None:
        return (1.0, 0.0), (1.0, 0.0), 0.0
    a, b, c, d, e, f = raster.transform
    g, h, i, j, k, m = transform
    area = a * e - b * d
    if not area:
        return (1.0, 0.0), (1.0, 0.0), math.inf
    columns = ((e * g - b * j) / area, (e * (i - c) - b * (m - f)) / area)
    rows = ((a * k - d * h) / area, (a * (m - f) - d * (i - c)) / area)
    skew = max(abs(e * h - b * k) / abs(area) * shape[0], abs(a * j - d * g) / abs(area) * shape[1])
    return _snapped(rows, shape[0]), _snapped(columns, shape[1]), skew


def _snapped(line: Line, length: int) -> Line:
    """A line without what is rounding: less than a millionth of a pixel."""
    factor, shift = line
    near = round(factor) if abs(factor - round(factor)) * length < 1e-6 else round(factor, 12)
    return float(near), round(shift, 6) + 0.0


def _lines(raster: Raster, shape: tuple[int, int], transform: Affine | None) -> tuple[Line, Line]:
    rows, columns, _ = mapping(raster, shape, transform)
    return rows, columns


def _picks(scene: Scene) -> Iterator[_Pick]:
    """Every band of a scene."""
    for file, raster in enumerate(scene.rasters):
        called = names(raster.descriptions, raster.colours)
        for number, name in enumerate(called, 1):
            alpha = raster.colours[number - 1] == "alpha"
            told = raster.descriptions[number - 1]
            known = name != f"band {number}"
            if scene.names:
                if alpha:
                    continue
                name = told = scene.names[file]
                known = True
            yield _Pick(file, number, Named(name, known, raster.centres[number - 1], alpha), told)


def _sensor(scene: Scene, picks: Sequence[_Pick], rules: Rules) -> str:
    if rules.sensor != "auto":
        return "" if rules.sensor == "none" else rules.sensor
    first = scene.rasters[0]
    return sensor_of(first.path, first.tags, tuple(pick.named.name for pick in picks if not pick.named.alpha))


def _grid(
    scene: Scene, taken: Sequence[_Pick], resolution: float | None
) -> tuple[tuple[int, int], Affine | None, tuple[float, float] | None]:
    """Shape, transform and metres a pixel of a scene: the finest of its files' grids, or of the resolution asked."""
    files = [scene.rasters[file] for file in sorted({pick.file for pick in taken})]
    finest = max(files, key=lambda raster: raster.shape[0] * raster.shape[1])
    whole = {raster.shape for raster in scene.rasters}
    if resolution is None or len(whole) == 1 or finest.spacing is None or finest.transform is None:
        return finest.shape, finest.transform, finest.spacing
    for raster in scene.rasters:
        if raster.spacing is not None and all(abs(each / resolution - 1) < 0.01 for each in raster.spacing):
            return raster.shape, raster.transform, raster.spacing
    rows, columns = finest.shape
    down, along = (resolution / each for each in finest.spacing)
    shape = max(1, math.floor(rows / down + 1e-6)), max(1, math.floor(columns / along + 1e-6))
    a, b, c, d, e, f = finest.transform
    transform = (a * along, b * down, c, d * along, e * down, f)
    return shape, transform, spacing(finest.crs, transform, shape)


def _scaled(
    scene: Scene, taken: Sequence[_Pick], sensor: str, rules: Rules
) -> tuple[list[tuple[float, float]], tuple[str, ...]]:
    """(scale, offset) of each band, and what to say of Sentinel-2's offset."""
    scales = []
    for pick in taken:
        raster, place = scene.rasters[pick.file], pick.number - 1
        if rules.scale == "tags":
            scales.append((raster.scales[place] or 1.0, raster.offsets[place]))
        else:
            scales.append((1.0 if rules.scale is None else rules.scale, rules.offset or 0.0))
    wanted, notes = _s2_offset(scene, sensor, rules)
    if not wanted:
        return scales, notes
    table = {name.lower() for name in SENSORS["sentinel2"]}
    applied = 0
    for number, (pick, (scale, offset)) in enumerate(zip(taken, scales, strict=True)):
        measured = not pick.named.known or plain(pick.named.name) in table or pick.named.name in _COMMON
        byte = scene.rasters[pick.file].dtypes[pick.number - 1] == "uint8"
        if measured and not byte and not (rules.scale == "tags" and offset):  # tags tell the offset already
            scales[number] = (scale, offset + _OFFSET * scale)
            applied += 1
    return scales, notes if applied else ()


_COMMON = {colour for _, colour in SENSORS["sentinel2"].values()}


def _s2_offset(scene: Scene, sensor: str, rules: Rules) -> tuple[bool, tuple[str, ...]]:
    """Whether Sentinel-2's offset of -1000 is to be applied, and a note."""
    if rules.s2_offset == 0 or sensor not in ("sentinel2", ""):
        return False, ()
    if rules.s2_offset != "auto":
        return True, ()
    if not sensor or rules.offset is not None:  # an offset that the user gives is the whole of it
        return False, ()
    first = scene.rasters[0]
    told = baseline(first.path)
    if told is not None:
        note = f"Sentinel-2 baseline {told // 100:02}.{told % 100:02}: the offset of -1000 is applied"
        return told >= _FIRST, (note,) if told >= _FIRST else ()
    low = [raster.lowest for raster in scene.rasters if raster.lowest is not None]
    if low and min(low) >= -_OFFSET and not (rules.scale == "tags" and any(first.offsets)):
        lowest = f"lowest value {min(low):,.0f}: probably not corrected for the offset of -1000"
        return False, (f"{lowest} (--set data.options.s2_offset=-1000)",)
    return False, ()


def _decibel(rasters: Sequence[Raster], option: str) -> tuple[Decibel, bool]:
    """What values are turned into dB from, and whether they are dB in the end."""
    if option == "power":
        return "power", True
    if option == "amplitude":
        return "amplitude", True
    if option == "none":
        return "", False
    if any(raster.negative for raster in rasters):  # neither power nor amplitude is ever negative
        return "", True
    return ("power" if rasters[0].dtypes[0].startswith("float") else "amplitude"), True


def _unit(layout: Layout, logarithmic: bool, rules: Rules) -> str:
    if rules.unit:
        return rules.unit
    if logarithmic:
        return "dB"
    if any(band.scale != 1 for band in layout.bands):
        return "reflectance"
    return "0..255" if layout.plain and layout.stored == "uint8" else "DN"


def _facts(
    scene: Scene, sensor: str, stored: str, known: Sequence[bool], metres: tuple[float, float] | None
) -> Iterator[str]:
    first = scene.rasters[0]
    if sensor:
        yield f"sensor: {sensor}"
    yield f"bands: {len(known):,} of {stored}"
    yield f"names: {'told' if all(known) else 'of some' if any(known) else 'none'}"
    yield f"driver: {first.driver}"
    yield f"compression: {first.compression}"
    yield f"blocks: {'strips' if first.strips else 'one' if first.block == first.shape else 'tiles'}"
    yield f"crs: {first.epsg}"
    yield f"nodata: {'none' if first.nodata[0] is None else f'{first.nodata[0]:g}'}"
    yield f"mask: {'internal or sidecar' if first.masks[0] == 'mask' else first.masks[0]}"
    yield f"overviews: {'yes' if first.overviews else 'no'}"
    if metres is not None:
        yield f"pixels: {'below' if max(metres) < _CLOSE else 'not below'} {_CLOSE:g} m"
    if scene.names:
        yield "files: one a band"
    if first.members:
        yield "files: VRT"


def _notes(scene: Scene, layout: Layout, rules: Rules) -> Iterator[str]:
    first = scene.rasters[0]
    if any(raster.strips and max(raster.shape) > _LONG for raster in scene.rasters):
        yield "stored in strips: windows are slow without a store"
    if first.gcps:
        yield "placed by ground control points alone: its pixels have no known size (gdalwarp gives it a grid)"
    elif first.transform is None or not first.crs:
        lacks = "georeference" if first.transform is None else "coordinate system"
        yield f"no {lacks}: how large its pixels are is unknown"
    if first.pages > 1:
        yield f"{first.pages} images in one file: the first is read"
    if layout.plain and layout.stored in ("uint32", "int32", "uint64", "int64"):
        yield f"values of {layout.stored} are read as float32, which is exact up to 16,777,216"
    if rules.scale is None:
        tags = {pair for raster in scene.rasters for pair in zip(raster.scales, raster.offsets, strict=True)}
        tags.discard((1.0, 0.0))
        for scale, offset in sorted(tags)[:1]:
            advice = "values are used as stored (--set data.options.scale=tags)"
            yield f"the file says scale {scale:g}, offset {offset:g}: {advice}"
