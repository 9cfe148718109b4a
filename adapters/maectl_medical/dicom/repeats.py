"""Several slices at the same place: copies, or volumes that share a series and must be told apart."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from maectl_medical.dicom.frames import MARKS
from maectl_medical.dicom.geometry import along, bins
from maectl_medical.dicom.image import Frame, Image

__all__ = ["Slice", "Split", "places", "split", "without_copies"]

_NEAR = 0.01  # mm: slices no further apart lie at the same place
_MOST_TOGETHER = 3  # attributes that tell volumes apart only together


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame of an image."""

    image: Image
    index: int

    @property
    def frame(self) -> Frame:
        """Where it lies."""
        return self.image.frames[self.index]


@dataclass(frozen=True, slots=True)
class Split:
    """Volumes of distinct positions, what to tell of how they were told apart, and why that is not possible."""

    volumes: list[list[Slice]]
    note: str = ""
    fault: str = ""


def places(slices: list[Slice]) -> npt.NDArray[np.int64]:
    """The number [n] of the position that each slice has along the normal."""
    frames = [each.frame for each in slices]
    thick = min((frame.thickness for frame in frames if frame.thickness), default=0.0)
    return bins(along(frames), thick)


def without_copies(slices: list[Slice]) -> tuple[list[Slice], list[Slice]]:
    """The slices, and those that repeat an earlier one: at the same place, with all that could differ the same."""
    kept: dict[tuple[object, ...], Slice] = {}
    copies = []
    for each in slices:
        frame = each.frame
        where = None if frame.position is None else tuple(round(value / _NEAR) for value in frame.position)
        alike: tuple[object, ...] = (where, each.index, each.image.instance)
        if where is not None:
            size = each.image.rows, each.image.columns
            alike = (where, frame.orientation, frame.spacing, size, frame.number, *sorted(frame.marks.items()))
        elif not each.image.instance:
            alike = (id(each),)
        if kept.setdefault(alike, each) is not each:
            copies.append(each)
    return list(kept.values()), copies


def split(slices: list[Slice]) -> Split:
    """Volumes in which each position occurs once, from slices of one orientation and shape, in their order."""
    where = places(slices)
    times = Counter(where.tolist())
    most = max(times.values())
    if most == 1:
        return Split([slices])
    differing = [name for name in MARKS if len({each.frame.marks.get(name) for each in slices}) > 1]
    for together in range(1, _MOST_TOGETHER + 1):
        for names in combinations(differing, together):
            volumes = _classes(slices, where, names, most)
            if volumes:
                told = f"its series holds {len(volumes)} volumes, told apart by {' and '.join(names)}"
                return Split(volumes, told)
    if min(times.values()) == most:
        volumes = _by_number(slices, where, most)
        if volumes:
            told = f"its series holds {most} volumes that only the order of their instance numbers tells apart"
            return Split(volumes, told)
    fault = f"{len(slices)} slices at {len(times)} positions, up to {most} at one, and nothing tells volumes apart"
    return Split([], fault=fault)


def _classes(slices: list[Slice], where: npt.NDArray[np.int64], names: tuple[str, ...], most: int) -> list[list[Slice]]:
    """Slices by the values of attributes, [] unless each class has every position once at most.

    Attributes that have more values than there could be volumes tell single slices apart, not volumes.
    """
    found: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for number, each in enumerate(slices):
        found[tuple(each.frame.marks.get(name) for name in names)].append(number)
    alone = sum(len(group) == 1 for group in found.values())
    if len(found) > 2 * most or 2 * alone > len(found):
        return []
    if any(len(set(where[group].tolist())) < len(group) for group in found.values()):
        return []
    return [[slices[number] for number in group] for group in found.values()]


def _by_number(slices: list[Slice], where: npt.NDArray[np.int64], most: int) -> list[list[Slice]]:
    """The k-th of each position, by instance number, is of volume k; [] where numbers are missing or repeat."""
    at: dict[int, list[tuple[int, Slice]]] = defaultdict(list)
    for place, each in zip(where.tolist(), slices, strict=True):
        if each.frame.number is None:
            return []
        at[place].append((each.frame.number, each))
    if any(len({number for number, _ in group}) < most for group in at.values()):
        return []
    ordered = [[each for _, each in sorted(group, key=lambda pair: pair[0])] for group in at.values()]
    return [list(volume) for volume in zip(*ordered, strict=True)]
