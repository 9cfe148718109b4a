"""Slices in space: along which line they lie, how far apart, and which affine that makes.

A slice with unit directions r (in which columns grow) and c (in which rows grow) has the normal n = r x c. Slices
are ordered by t = p . n, p the position of their first pixel (PS3.3 C.7.6.2.1.1).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl_medical.dicom.image import Frame
from maectl_medical.stored import Affine

__all__ = ["Stack", "affine_of", "along", "bins", "interleaved", "pieces", "stack_of"]

_EVEN = 0.05  # of the median step
_GAP = 0.05  # how near to a whole multiple of the median step, of that step and multiple
_TILT = 0.5  # degrees
_DRIFT = 0.25  # pixels, across the slices
_SAME = 0.01  # of the median step: positions no further apart are one
_LEAST = 1e-4  # mm: positions no further apart are one, whatever the step

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices in order: mm from one to the next as a vector (LPS+), and what is wrong with them, "" where nothing."""

    step: Array
    fault: str


def along(frames: list[Frame]) -> Array:
    """mm along the common normal of slices [n] of one orientation; all must have a position."""
    normal = _normal(frames[0])
    return np.array([frame.position for frame in frames], float) @ normal


def bins(depths: Array, thickness: float) -> npt.NDArray[np.int64]:
    """The number of the position that each of the depths [n] (mm) belongs to, counted from the lowest.

    Depths that differ by no more than 1 % of the median step are one position. ``thickness`` (mm, 0: unknown)
    says how much of a difference is a step at all.
    """
    order = np.argsort(depths, kind="stable")
    steps = np.diff(depths[order])
    far = steps[steps > max(_LEAST, _SAME * thickness)]
    apart = max(_LEAST, _SAME * float(np.median(far))) if len(far) else _LEAST
    numbers = np.zeros(len(depths), np.int64)
    numbers[order[1:]] = np.cumsum(steps > apart)
    return numbers


def pieces(depths: Array) -> list[tuple[int, int, int]]:
    """Runs of ascending depths [n] without gaps: begin, end, and how many slices are missing behind it.

    A gap is a step of a whole multiple, two or more, of the median step.
    """
    steps = np.diff(depths)
    usual = float(np.median(steps)) if len(steps) else 1.0
    found, begin = [], 0
    for index, step in enumerate(steps):
        times = round(step / usual)
        if times >= 2 and abs(step / usual - times) <= _GAP * times:
            found.append((begin, index + 1, times - 1))
            begin = index + 1
    return [*found, (begin, len(depths), 0)]


def interleaved(depths: Array, labels: npt.NDArray[np.int64]) -> bool:
    """Whether labels [n], 0 and up, part distinct depths [n] into stacks that lie between each other's slices.

    Each stack has two slices or more, whole multiples of its usual step apart, and two or more of them have others'
    slices within a single step. Stacks that follow one another, enclose another or fill its gaps are not interleaved.
    """
    counts = np.bincount(labels)
    if len(counts) < 2 or counts.min() < 2:
        return False
    rank = np.argsort(np.argsort(depths, kind="stable"), kind="stable")
    order = np.lexsort((depths, labels))
    laced = 0
    for stack in np.split(order, np.cumsum(counts)[:-1]):
        steps = np.diff(depths[stack])
        usual = float(np.median(steps))
        times = np.rint(steps / usual)
        if (times < 1).any() or (np.abs(steps / usual - times) > _EVEN * times).any():
            return False
        laced += bool((np.diff(rank[stack])[times == 1] > 1).any())
    return laced > 1


def stack_of(frames: list[Frame]) -> Stack:
    """The step between two or more slices in order, and the fault of their arrangement."""
    normal, places = _normal(frames[0]), np.array([frame.position for frame in frames], float)
    steps = np.diff(places @ normal)
    usual = float(np.median(steps))
    mean = (places[-1] - places[0]) / (len(places) - 1)
    tilt = math.degrees(math.acos(min(1.0, float(mean @ normal) / float(np.linalg.norm(mean)))))
    straight = places - places[0] - np.outer((places @ normal - places[0] @ normal) / float(mean @ normal), mean)
    drift = float(np.abs(straight).max()) / min(frames[0].spacing or (1.0,))
    worst = float(np.abs(steps / usual - 1).max())
    fault = ""
    if worst > _EVEN:
        fault = f"slices {steps.min():.4g} to {steps.max():.4g} mm apart, {usual:.4g} mm as a rule"
        mean = mean * (usual / float(mean @ normal))
    elif tilt > _TILT:
        fault = f"slices sheared by {tilt:.1f} degrees (gantry tilt)"
    elif drift > _DRIFT:
        fault = f"slices that lie up to {drift:.2g} pixels beside a straight line"
    return Stack(mean, fault)


def affine_of(first: Frame, step: Array) -> Affine:
    """Three rows from (slice, row, column, 1) to mm, RAS+, of slices that begin with ``first``.

    In LPS+: p = first position + slice step + row spacing[0] c + column spacing[1] r.
    """
    across, down = _directions(first)
    spacing = first.spacing or (1.0, 1.0)
    matrix = np.column_stack([step, down * spacing[0], across * spacing[1], np.array(first.position, float)])
    matrix[:2] *= -1
    rows: list[Any] = matrix.tolist()
    return tuple((row[0], row[1], row[2], row[3]) for row in rows)


def _directions(frame: Frame) -> tuple[Array, Array]:
    values = np.array(frame.orientation, float)
    return values[:3], values[3:]


def _normal(frame: Frame) -> Array:
    across, down = _directions(frame)
    normal: Array = np.cross(across, down)
    return normal / np.linalg.norm(normal)
