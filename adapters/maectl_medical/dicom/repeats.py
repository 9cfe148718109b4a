"""Several slices at the same place, or between each other: volumes that share a series and must be told apart."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from maectl_medical.dicom.frames import MARKS
from maectl_medical.dicom.geometry import along, bins, interleaved
from maectl_medical.dicom.image import Frame, Image

__all__ = ["Slice", "Split", "places", "split"]

# When a slice was taken, not what of: the slices of one volume may be taken in turns (concatenations, several at once)
_WHEN = ("trigger time", "bed position or frame time", "acquisition time", "content time")
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
    """Volumes of distinct positions with what to tell of how they were told apart, or why that is not possible."""

    volumes: list[tuple[list[Slice], tuple[str, ...]]]
    fault: str = ""


def places(slices: list[Slice]) -> npt.NDArray[np.int64]:
    """The number [n] of the position that each slice has along the normal."""
    frames = [each.frame for each in slices]
    thick = min((frame.thickness for frame in frames if frame.thickness), default=0.0)
    return bins(along(frames), thick)


def split(slices: list[Slice]) -> Split:
    """Volumes in which each position occurs once, from slices of one orientation and shape, in their order.

    Where all positions differ, what was taken in different ways is told apart only if it lies interleaved.
    """
    where = places(slices)
    times = Counter(where.tolist())
    most = max(times.values())
    volumes, note = ([slices], "") if most == 1 else _repeated(slices, where, times)
    if volumes:
        told = (note,) if note else ()
        return Split([each for volume in volumes for each in _unlaced(volume, told)])
    fault = f"{len(slices)} slices at {len(times)} positions, up to {most} at one, and nothing tells volumes apart"
    return Split([], fault)


def _repeated(slices: list[Slice], where: npt.NDArray[np.int64], times: Counter[int]) -> tuple[list[list[Slice]], str]:
    """Volumes from slices of which several lie at one position, [] where nothing tells them apart, and a note."""
    most = max(times.values())
    differing = [name for name in MARKS if len({each.frame.marks.get(name) for each in slices}) > 1]
    for together in range(1, _MOST_TOGETHER + 1):
        for names in combinations(differing, together):
            volumes = _classes(slices, where, names, most)
            if volumes:
                return volumes, f"its series holds {len(volumes)} volumes, told apart by {' and '.join(names)}"
    if min(times.values()) == most:
        volumes = _by_number(slices, where, most)
        if volumes:
            return volumes, f"its series holds {most} volumes that only the order of their instance numbers tells apart"
    return [], ""


def _unlaced(slices: list[Slice], notes: tuple[str, ...]) -> list[tuple[list[Slice], tuple[str, ...]]]:
    """A volume, or the interleaved ones that it is made of, each looked into in turn; with notes."""
    found, names = _interleaved(slices)
    if not found:
        return [(slices, notes)]
    told = f"its series holds {len(found)} volumes of interleaved slices, told apart by {' and '.join(names)}"
    return [each for part in found for each in _unlaced(part, (*notes, told))]


def _interleaved(slices: list[Slice]) -> tuple[list[list[Slice]], tuple[str, ...]]:
    """Interleaved stacks that attributes tell apart, and which; none where there are none."""
    depths = along([each.frame for each in slices])
    kinds = {name: _labels(slices, (name,)) for name in MARKS if name not in _WHEN}
    telling = [name for name, labels in kinds.items() if labels.max() > 0 and np.bincount(labels).min() > 1]
    for together in range(1, _MOST_TOGETHER + 1):
        for names in combinations(telling, together):
            labels = _labels(slices, names)
            if interleaved(depths, labels):
                found: list[list[Slice]] = [[] for _ in range(labels.max() + 1)]
                for label, each in zip(labels.tolist(), slices, strict=True):
                    found[label].append(each)
                return found, names
    return [], ()


def _labels(slices: list[Slice], names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """A number [n] for each combination of values of attributes, in the order in which they occur."""
    known: dict[tuple[str | None, ...], int] = {}
    values = (tuple(each.frame.marks.get(name) for name in names) for each in slices)
    return np.array([known.setdefault(value, len(known)) for value in values], np.int64)


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
