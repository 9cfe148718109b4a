"""Images of single files to volumes, pictures and films."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from maectl.adapter import Reject
from maectl_medical.dicom.copies import films_without_copies, without_copies
from maectl_medical.dicom.geometry import affine_of, along, pieces, stack_of
from maectl_medical.dicom.groups import groups_of, has_place
from maectl_medical.dicom.image import Image, Rescale
from maectl_medical.dicom.repeats import Slice, places, split
from maectl_medical.dicom.values import dtype_of
from maectl_medical.stored import Affine, Found

__all__ = ["Geometry", "assemble"]

Geometry = Literal["strict", "lenient"]
"""What becomes of slices that are unevenly spaced or sheared: rejected, or kept with a note."""

_TOMOGRAPHIC = frozenset(("modality: CT", "modality: MR", "modality: PT"))
_COLOURS = ("red", "green", "blue")


def assemble(images: Iterable[Image], *, geometry: Geometry) -> Iterator[Found | Reject]:
    """Every volume, picture and film among images, and the slices that are part of none, by their first path.

    Slices of a series, of one shape and orientation, are ordered along their normal. Volumes that share a series are
    told apart by their acquisition; gaps split a volume; copies and what cannot be told apart are rejected. Files of
    suspected copies are read.
    """
    series: dict[str, list[Image]] = defaultdict(list)
    shared: dict[str, dict[str, str]] = defaultdict(dict)
    for image in sorted(images, key=lambda each: each.path):
        series[image.series].append(image)
        shared[image.uid][image.series] = image.group
    found: list[Found | Reject] = []
    for members in series.values():
        owners = shared[members[0].uid] if members[0].uid else {}
        whose = "patients" if len(set(owners.values())) > 1 else "studies"
        note = (f"its series UID is that of several {whose}: kept apart",) if len(owners) > 1 else ()
        found += _series(members, geometry, note)
    yield from sorted(found, key=_place)


def _place(found: Found | Reject) -> tuple[str, int]:
    """First path and, where volumes share a file, first frame."""
    frames = found.key.get("frames", [[0, 0]]) if isinstance(found, Found) else [[0, -1]]
    return min(found.paths), min(frame for _, frame in frames)


def _series(images: list[Image], geometry: Geometry, notes: tuple[str, ...]) -> Iterator[Found | Reject]:
    films, repeated = films_without_copies([image for image in images if image.film])
    yield from (_flat(_slices(film), notes, film=True) for film in films)
    yield from (Reject((film.path,), "a copy of another film of its series") for film in repeated)
    kept, copies = without_copies([each for image in images if not image.film for each in _slices(image)])
    yield from _rejects(copies, "a copy of another slice of its series")
    groups = groups_of(kept)
    if sum(len(group) > 1 and has_place(group[0]) for group in groups) > 1:
        notes = (*notes, "its series holds several shapes or orientations: a volume each")
    for group in groups:
        yield from _group(group, geometry, notes)


def _slices(image: Image) -> list[Slice]:
    return [Slice(image, index) for index in range(len(image.frames))]


def _rejects(slices: list[Slice], reason: str) -> Iterator[Reject]:
    """A reject a file, of which frames are named where others are of use."""
    frames: dict[str, list[Slice]] = defaultdict(list)
    for each in slices:
        frames[each.image.path].append(each)
    for path, members in frames.items():
        some = f"{len(members)} of its {len(members[0].image.frames)} frames: "
        yield Reject((path,), (some if len(members) < len(members[0].image.frames) else "") + reason)


def _group(slices: list[Slice], geometry: Geometry, notes: tuple[str, ...]) -> Iterator[Found | Reject]:
    """Slices of one form and orientation."""
    if len(slices) == 1 or not has_place(slices[0]):
        lost = len(slices) > 1 and not _TOMOGRAPHIC.isdisjoint(slices[0].image.facts)
        note = "slices without position, orientation or pixel spacing: an image each"
        yield from (_flat([each], (*notes, note) if lost else notes) for each in slices)
        return
    if not places(slices).any():
        note = f"{len(slices)} pictures of one place in its series: an image each"
        yield from (_flat([each], (*notes, note)) for each in slices)
        return
    found = split(slices)
    if found.fault:
        yield from _rejects(slices, found.fault)
        return
    for volume, told in found.volumes:
        yield from _volumes(volume, geometry, (*notes, *told))


def _volumes(slices: list[Slice], geometry: Geometry, notes: tuple[str, ...]) -> Iterator[Found | Reject]:
    """Slices of distinct positions: one volume, or several where there are gaps."""
    depths = along([each.frame for each in slices])
    order = np.argsort(depths, kind="stable")
    ordered = [slices[index] for index in order]
    parts = pieces(depths[order])
    missing = [count for _, _, count in parts if count]
    told = tuple(f"a gap of {count} slice{'s' * (count > 1)}: split there" for count in dict.fromkeys(missing))
    for begin, end, _ in parts:
        part = ordered[begin:end]
        if len(part) == 1:
            reason = "a single slice beside a gap" if missing else "a single slice of a series of volumes"
            yield from _rejects(part, f"{reason}: no volume")
            continue
        stack = stack_of([each.frame for each in part])
        if stack.fault and geometry == "strict":
            yield from _rejects(part, f"{stack.fault}: no regular grid (geometry=lenient keeps it)")
            continue
        affine = affine_of(part[0].frame, stack.step)
        yield _found(part, affine, (*notes, *told, *((stack.fault,) if stack.fault else ())))


def _flat(slices: list[Slice], notes: tuple[str, ...] = (), *, film: bool = False) -> Found:
    """A picture or a film."""
    return _found(slices, None, notes, film=film)


def _found(slices: list[Slice], affine: Affine | None, notes: tuple[str, ...], *, film: bool = False) -> Found:
    members = {each.image.path: each.image for each in slices}
    first = slices[0].image
    rescales = [_rescale(each) for each in slices]
    spans = [each.image.span for each in slices]
    lows, highs = zip(*(span or (0, 0) for span in spans), strict=True)
    unit = first.unit if len({image.unit for image in members.values()}) == 1 else "value"
    dtype = dtype_of(None if first.span is None else (min(lows), max(highs)), set(rescales), unit)
    volume = affine is not None
    deep = volume or film
    return Found(
        paths=tuple(members),
        shape=(3 if _coloured(first) else 1, *((len(slices),) if deep else ()), first.rows, first.columns),
        dtype=dtype,
        unit=unit,
        channels=_COLOURS if _coloured(first) else ("grey",),
        affine=affine,
        spacing=None if deep else slices[0].frame.spacing,
        axes=() if volume else ("frame", "row", "column") if film else ("row", "column"),
        key=_key(slices, members, rescales),
        group=first.group,
        facts=tuple(dict.fromkeys(fact for image in members.values() for fact in image.facts)),
        notes=tuple(dict.fromkeys((*notes, *(note for image in members.values() for note in image.notes)))),
    )


def _coloured(image: Image) -> bool:
    return image.form[0] == 3 or image.form[4] == "PALETTE COLOR"


def _rescale(each: Slice) -> Rescale:
    """The modality transform of grey values; colours have none."""
    return (1.0, 0.0) if _coloured(each.image) else each.frame.rescale


def _key(slices: list[Slice], members: dict[str, Image], rescales: list[Rescale]) -> dict[str, Any]:
    """What `load` needs; what is the rule is left out.

    frames    [file number, frame], a pair each slice; left out where slice k is the first frame of file k
    single    true instead of ``frames`` where slice k is frame k of the only file
    form      how pixels are stored, to see that a file has not changed
    bits      of each file, where not all have as many bits stored; ``form`` has the most then
    rescale   [slope, intercept], left out for 1 and 0; null for a table; ``rescales`` a pair each slice
    inverted  whether MONOCHROME1 is turned over
    hu        true where what int16 cannot hold is no value
    """
    image = max(members.values(), key=lambda each: each.form[2])
    key: dict[str, Any] = {"kind": "dicom", "form": list(image.form)}
    bits = [each.form[2] for each in members.values()]
    if len(set(bits)) > 1:
        key["bits"] = bits
    numbers = {path: number for number, path in enumerate(members)}
    frames = [[numbers[each.image.path], each.index] for each in slices]
    if len(frames) > 1 and frames == [[0, number] for number in range(len(frames))]:
        key["single"] = True
    elif frames != [[number, 0] for number in range(len(frames))]:
        key["frames"] = frames
    pairs = [None if each is None else list(each) for each in rescales]
    if any(pair != pairs[0] for pair in pairs):
        key["rescales"] = pairs
    elif pairs[0] != [1.0, 0.0]:
        key["rescale"] = pairs[0]
    if image.inverted:
        key["inverted"] = True
    if image.unit == "HU":
        key["hu"] = True
    return key
