"""Headers to sources: labels set aside, band files put together, the members of VRTs taken by their VRTs."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from maectl.adapter import Reject, Source
from maectl_satellite.bands import order
from maectl_satellite.describe import Rules, Scene, described, mapping
from maectl_satellite.filenames import label_word, product, sensor_of, side, token
from maectl_satellite.groups import Box, Place, grouped
from maectl_satellite.header import Raster

__all__ = ["assemble"]

_SAFE = re.compile(r"(?:^|/)R(?:10|20|60)m$")
_HALF = 0.5  # pixels of the coarser by which origins and extents may differ


def assemble(found: Iterable[Raster | Reject | None], folder: str, rules: Rules) -> Iterator[Source | Reject]:
    """Every source among the headers of a folder, in the order of the files; rejects of headers first, as they come.

    Bands, members of VRTs and places are known when all headers are: what is kept of a file till then is its header.
    """
    rasters: list[Raster] = []
    systems: dict[str, str] = {}
    for each in found:
        if isinstance(each, Reject):
            yield each
        elif each is not None and (reason := None if rules.labels else _aside(each)):
            yield Reject((each.path,), reason)
        elif each is not None:
            rasters.append(replace(each, crs=systems.setdefault(each.crs, each.crs)))  # one text a system, not a file
    sources: list[tuple[Source, Raster]] = []
    for scene in _scenes(rasters, folder, rules):
        source = scene if isinstance(scene, Reject) else described(scene, folder, rules)
        if isinstance(source, Reject):
            yield source
        elif isinstance(scene, Scene):
            sources.append((source, scene.rasters[0]))
    places = [Place(product(source.paths[0]), raster.crs, _box(raster)) for source, raster in sources]
    labels = grouped(places, [source.paths[0] for source, _ in sources])
    for (source, _), group in zip(sources, labels, strict=True):
        yield replace(source, group=group)


def _aside(raster: Raster) -> str | None:
    """Why a raster is no imagery to train on, by its name; None where it is."""
    word = side(raster.path)
    if word:
        return f"a product's {word}, not a band of its scene: --set data.options.labels=keep trains on it"
    measured = [dtype for dtype, colour in zip(raster.dtypes, raster.colours, strict=True) if colour != "alpha"]
    classes = len(measured) == 1 or measured == ["uint8"] * 3  # numbers, probabilities, or colours that stand for them
    if classes and (word := label_word(raster.path)):
        return f"its name says label raster ({word}): --set data.options.labels=keep trains on it"
    return None


def _scenes(rasters: Sequence[Raster], folder: str, rules: Rules) -> Iterator[Scene | Reject]:
    """Rasters as scenes, in the order of their first files."""
    virtual = [Scene((raster,)) for raster in rasters if raster.driver == "VRT"]
    usable = [scene for scene in virtual if isinstance(described(scene, folder, rules), Source)]
    members = {path for scene in usable for path in scene.rasters[0].members}
    if members:
        root = os.path.realpath(folder)
        rasters = [raster for raster in rasters if _real(raster.path, folder, root) not in members]
    joined, notes, spare = _joined(rasters, rules) if rules.join else ({}, {}, set())
    for raster in rasters:
        if raster.path in joined:
            yield joined[raster.path]
        elif raster.path not in spare:
            yield _alone(raster, rules, notes.get(raster.path, ()))


def _real(path: str, folder: str, root: str) -> str:
    return os.path.relpath(os.path.realpath(os.path.join(folder, path)), root)


def _alone(raster: Raster, rules: Rules, notes: tuple[str, ...]) -> Scene:
    """A file that is a scene; a single band is called by the file's name where that is an instrument's."""
    found = token(os.path.splitext(os.path.basename(raster.path))[0])
    undescribed = len(raster.dtypes) == 1 and not raster.descriptions[0]
    if found and undescribed and rules.sensor == "auto" and sensor_of(raster.path, raster.tags, ()):
        return Scene((raster,), (found.name,), notes)
    return Scene((raster,), (), notes)


def _joined(rasters: Sequence[Raster], rules: Rules) -> tuple[dict[str, Scene], dict[str, tuple[str, ...]], set[str]]:
    """Scenes of one file a band, by their first file in the order of files; notes on files that were not joined; and
    the files that belong to a scene but come not first."""
    families: dict[tuple[str, str, str], dict[str, list[Raster]]] = {}
    for raster in rasters:
        folder, name = os.path.split(raster.path)
        found = token(os.path.splitext(name)[0]) if _is_single(raster) else None
        if found is not None:
            key = (_SAFE.sub("", folder), found.rest, found.family)
            families.setdefault(key, {}).setdefault(found.name, []).append(raster)
    scenes: dict[str, Scene] = {}
    notes: dict[str, tuple[str, ...]] = {}
    spare: set[str] = set()
    places = {raster.path: place for place, raster in enumerate(rasters)}
    for bands in families.values():
        if len(bands) < 2:
            continue
        paths = sorted((raster.path for copies in bands.values() for raster in copies), key=lambda path: places[path])
        scene = _scene(bands, rules.resolution)
        if isinstance(scene, str):
            notes |= dict.fromkeys(paths, (f"its bands are not put together: {scene}",))
        else:
            scenes[paths[0]] = scene
            spare.update(paths)
    return scenes, notes, spare


def _is_single(raster: Raster) -> bool:
    measured = [colour for colour in raster.colours if colour != "alpha"]
    return len(measured) == 1 and raster.driver != "VRT"


def _scene(bands: dict[str, list[Raster]], resolution: float | None) -> Scene | str:
    """Files of one band each, several where there are copies in other resolutions, as a scene; or why they are none."""
    names = tuple(order(bands))
    chosen = [_copy(bands[name], resolution) for name in names]
    if None in chosen:
        return "a band is there twice in one resolution"
    rasters = tuple(raster for raster in chosen if raster is not None)
    reason = _apart(rasters)
    if reason:
        return reason
    more = sum(map(len, bands.values())) > len(names)
    return Scene(rasters, names, ("copies of bands in other resolutions are left out",) if more else ())


def _copy(copies: Sequence[Raster], resolution: float | None) -> Raster | None:
    """The finest copy of a band that is not finer than the resolution asked, else the coarsest there is; None where two
    are alike."""
    sizes = {max(raster.spacing or (0.0,)): raster for raster in copies}
    if len(sizes) < len(copies):
        return None
    enough = [size for size in sizes if resolution is None or size >= 0.99 * resolution]
    return sizes[min(enough)] if enough else sizes[max(sizes)]


def _apart(rasters: Sequence[Raster]) -> str | None:
    """Why files are no bands of one scene; None where they cover the same ground."""
    first = max(rasters, key=lambda raster: raster.shape[0] * raster.shape[1])
    for raster in rasters:
        if raster.crs != first.crs:
            return "their coordinate systems differ"
        if raster.transform is None or first.transform is None:
            if raster.shape != first.shape or raster.transform != first.transform:
                return "they have no georeference and different sizes"
            continue
        if not _same_ground(raster, first):
            return "they cover different ground"
    return None


def _same_ground(coarse: Raster, fine: Raster) -> bool:
    """Whether origins and extents agree within half a pixel of the coarser, and neither is turned against the other."""
    rows, columns, skew = mapping(coarse, fine.shape, fine.transform)
    spans = zip((rows, columns), fine.shape, coarse.shape, strict=True)
    ends = [(shift, factor * length + shift - whole) for (factor, shift), length, whole in spans]
    return skew <= _HALF and all(abs(each) <= _HALF for pair in ends for each in pair)


def _box(raster: Raster) -> Box | None:
    """The box around a raster in its system's units; None where it lies nowhere or has no area."""
    if raster.transform is None:
        return None
    (rows, columns), (a, b, c, d, e, f) = raster.shape, raster.transform
    x = [a * column + b * row + c for row in (0, rows) for column in (0, columns)]
    y = [d * column + e * row + f for row in (0, rows) for column in (0, columns)]
    box = (min(x), min(y), max(x), max(y))
    return box if box[2] > box[0] and box[3] > box[1] else None
