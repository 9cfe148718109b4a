"""Which scenes must not straddle a split: those of one place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Place", "grouped"]

Box = tuple[float, float, float, float]
_HALF = 0.5
_CROWD, _ALIKE = 64, 0.75  # of more boxes in a cell those that share so much with another are looked for as that one


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scene lies: what its name tells ("T30UXC" or ""), its system, its box (left, low, right, high)."""

    name: str
    crs: str
    box: Box | None


def grouped(places: Sequence[Place], labels: Sequence[str]) -> list[str]:
    """A group for every scene, "" where it is alone.

    Scenes of one name (tile, path and row, product) are one group, and so are scenes of one system of which one covers
    more than half of the smaller; whatever is linked so, over others too, is together. A group is called by the
    least name in it, or by the first of ``labels`` in it.

    A scene that covers more than half of a smaller box covers its centre: so each centre is looked up in a grid of
    cells as large as the boxes, and 100,000 scenes take seconds. Where more than 64 crowd a cell, those that lie alike
    are one for what follows.
    """
    parents = list(range(len(places)))
    by_name: dict[str, int] = {}
    for number, place in enumerate(places):
        if place.name:
            _join(parents, by_name.setdefault(place.name, number), number)
    systems: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        if place.box is not None:
            systems.setdefault(place.crs, []).append(number)
    for numbers in systems.values():
        _overlaps(places, numbers, parents)
    together: dict[int, list[int]] = {}
    for number in range(len(places)):
        together.setdefault(_root(parents, number), []).append(number)
    found = [""] * len(places)
    for numbers in together.values():
        named = [places[number].name for number in numbers if places[number].name]
        if named or len(numbers) > 1:
            label = min(named) if named else labels[numbers[0]]
            for number in numbers:
                found[number] = label
    return found


def _overlaps(places: Sequence[Place], numbers: Sequence[int], parents: list[int]) -> None:
    """Join those of ``numbers`` of which one covers more than half of the smaller."""
    boxes = {number: box for number in numbers if (box := places[number].box) is not None}
    levels: dict[int, dict[tuple[int, int], list[int]]] = {}
    for number, box in boxes.items():
        level = math.ceil(math.log2(max(box[2] - box[0], box[3] - box[1])))
        size = 2.0**level
        for i in range(math.floor(box[0] / size), math.floor(box[2] / size) + 1):
            for j in range(math.floor(box[1] / size), math.floor(box[3] / size) + 1):
                cell = levels.setdefault(level, {}).setdefault((i, j), [])
                alike = None
                if len(cell) >= _CROWD:
                    alike = next((other for other in cell if _shared(box, boxes[other]) > _ALIKE), None)
                if alike is None:
                    cell.append(number)
                else:
                    _join(parents, alike, number)
    for number, box in boxes.items():
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        for level, cells in levels.items():
            size = 2.0**level
            for other in cells.get((math.floor(x / size), math.floor(y / size)), ()):
                if _shared(box, boxes[other]) > _HALF:
                    _join(parents, other, number)


def _shared(one: Box, other: Box) -> float:
    """The share of the smaller box that the two have in common."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    least = min((one[2] - one[0]) * (one[3] - one[1]), (other[2] - other[0]) * (other[3] - other[1]))
    return wide * high / least


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def _join(parents: list[int], one: int, other: int) -> None:
    first, second = _root(parents, one), _root(parents, other)
    parents[max(first, second)] = min(first, second)
