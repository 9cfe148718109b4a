"""Slices of a series that could be of one volume: alike in stored form, shape, unit, orientation and pixel spacing."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

from maectl_medical.dicom.image import Image
from maectl_medical.dicom.repeats import Slice

__all__ = ["groups_of", "has_place"]

_ALIKE = 1e-3  # directions, and pixel spacing relative to itself
_CELL = 16 * _ALIKE  # of the lattice in which similar slices are looked for

Point = tuple[float, ...]


def has_place(each: Slice) -> bool:
    """Whether position, orientation and pixel spacing of a slice are known."""
    frame = each.frame
    return frame.position is not None and frame.orientation is not None and frame.spacing is not None


def groups_of(slices: list[Slice]) -> list[list[Slice]]:
    """Slices that are alike, each with the first group that it fits; those without a place together.

    How many of the allocated bits are in use may differ from slice to slice.
    """
    forms: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    for each in slices:
        image = each.image
        samples, allocated, _, *kind = image.form
        kept = (samples, allocated, *kind)
        forms[image.rows, image.columns, kept, _quantity(each), image.table, has_place(each)].append(each)
    return [group for same in forms.values() for group in (_parallel(same) if has_place(same[0]) else [same])]


def _quantity(each: Slice) -> str:
    """The unit of a slice's values, one word for shades of grey whether or not they use all of 8 bits."""
    image: Image = each.image
    shades = image.form[:2] == (1, 8) and image.unit in ("0..255", "value") and not image.table
    return "shades" if shades and each.frame.rescale == (1, 0) else image.unit


def _parallel(slices: list[Slice]) -> list[list[Slice]]:
    """Slices of one orientation and pixel spacing each, within a tolerance of the first of its group.

    Groups are found by the cell of a lattice in which their first slice lies, so that many groups take no longer each.
    """
    groups: list[list[Slice]] = []
    firsts: list[Point] = []
    cells: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for each in slices:
        point = _point(each)
        near = (number for cell in _cells(point) for number in cells.get(cell, ()) if _same(firsts[number], point))
        number = min(near, default=len(groups))
        if number < len(groups):
            groups[number].append(each)
            continue
        groups.append([each])
        firsts.append(point)
        cells[tuple(math.floor(value / _CELL) for value in point)].append(number)
    return groups


def _point(each: Slice) -> Point:
    """Directions and the logarithms of the pixel spacing, which tolerances on ratios make differences of."""
    return (*(each.frame.orientation or ()), *(math.log(side) for side in each.frame.spacing or ()))


def _same(first: Point, other: Point) -> bool:
    turned = max(abs(one - two) for one, two in zip(first[:6], other[:6], strict=True))
    ratio = max(abs(math.exp(one - two) - 1) for one, two in zip(first[6:], other[6:], strict=True))
    return turned <= _ALIKE and ratio <= _ALIKE


def _cells(point: Point) -> Iterator[tuple[int, ...]]:
    """The cells that a point within the tolerance may lie in: seldom more than a few."""
    reach = 1.1 * _ALIKE  # a ratio of 1.001 is a little more as a logarithm, one way
    sides = (range(math.floor((x - reach) / _CELL), math.floor((x + reach) / _CELL) + 1) for x in point)
    return itertools.product(*sides)
