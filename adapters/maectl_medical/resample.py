"""Volumes on a coarser or finer grid along their own axes, and which of the new voxels are valid.

A finer axis is interpolated linearly, by MONAI. A coarser one is averaged first, as MONAI does not: each stored
voxel over a box as wide as a new voxel (narrower towards the ends, so that it stays in the volume and the middle
of what it averages stays where it is), then interpolated linearly. At a step of 1 the box is one voxel, so the
two meet.
"""

import re
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels
from maectl.errors import Unreadable

__all__ = ["get_ready", "interpolate", "nearest", "resample"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Enlarge = Callable[[Array, Sequence[float], tuple[int, ...]], Array]

_ON = 1e-4  # voxels by which a coordinate may miss a voxel and still count as on it
_QUIET = ("ignore", None, Warning, re.compile(r"monai\."), 0)
_lock = threading.Lock()
_enlarge: list[Enlarge] = []  # one, once MONAI is imported


def get_ready() -> Enlarge:
    """Import MONAI, which takes seconds: once, by the thread that comes first, while the others wait.

    Its modules import one another, and torch's compiler, in circles: threads that imported parts of them side by
    side would find them half made. Call it where no other thread imports anything yet.
    """
    with _lock:
        if _QUIET not in warnings.filters:  # again where someone has reset them; see `_enlarging`
            warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
        if not _enlarge:
            _enlarge.append(_enlarging())
            _enlarge[0](np.zeros((1, 2, 2, 2), np.float32), (0.5,) * 3, (3, 3, 3))  # all that it puts off till used
        return _enlarge[0]


def _enlarging() -> Enlarge:
    # It warns of settings of the GPU, which has no part in this.
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Spacing
    from monai.utils.type_conversion import convert_to_numpy

    def enlarge(values: Array, steps: Sequence[float], shape: tuple[int, ...]) -> Array:
        spacing = Spacing(pixdim=steps, mode="bilinear", padding_mode="border", dtype=np.float32)
        # Without an affine it works along the axes, in stored voxels: the patient's frame has no part in it.
        return np.array(convert_to_numpy(spacing(MetaTensor(values), output_spatial_shape=shape)), np.float32)

    return enlarge


def resample(values: Array, valid: Bools | None, steps: Sequence[float], shape: tuple[int, int, int]) -> Pixels:
    """Float32 values [C, *shape] of [C, i, j, k], whose voxel n lies on the stored one n * step along each axis.

    Beyond the last stored voxel the values are its own. A voxel is valid where every stored one with a weight in it
    is; invalid ones are NaN. Raises `Unreadable` where there is not enough memory.
    """
    finer = [min(step, 1.0) for step in steps]
    enlarge = get_ready() if min(finer) < 1 else None
    if valid is not None:
        values = np.where(valid, values, values.dtype.type(0))  # NaN would spread to voxels that it has no weight in
    try:
        for axis in sorted(range(3), key=lambda each: -steps[each]):  # the most is saved first
            if steps[axis] > 1:
                values, valid = _shrunk(values, valid, axis, steps[axis], shape[axis])
        found = np.array(values, np.float32, order="C")
        found = found if enlarge is None else enlarge(found, finer, shape)
    except (MemoryError, RuntimeError) as error:  # the latter is torch's, of no memory too
        size = " x ".join(f"{length:,}" for length in shape)
        raise Unreadable(f"it cannot be resampled to {size} voxels: is there memory for them?") from error
    if valid is None:
        return Pixels(found)
    for axis, step in enumerate(finer):
        if step < 1:
            valid = _between(valid, axis, step, shape[axis])
    found[:, ~valid] = np.nan
    return Pixels(found, valid)


def _between(valid: Bools, axis: int, step: float, out: int) -> Bools:
    """Whether both stored voxels beside each new one are valid, along an axis that becomes finer."""
    place, last = np.arange(out) * step, valid.shape[axis] - 1
    below = np.clip(np.floor(place + _ON).astype(int), 0, last)
    above = np.clip(np.ceil(place - _ON).astype(int), 0, last)
    both: Bools = valid.take(below, axis) & valid.take(above, axis)
    return both


def _shrunk(values: Array, valid: Bools | None, axis: int, step: float, out: int) -> tuple[Array, Bools | None]:
    """Values [C, i, j, k] and validity with ``out`` voxels along an axis, ``step`` > 1 stored ones apart."""
    extent = valid.shape[axis] if valid is not None else values.shape[1 + axis]
    members, weights = _averages(extent, step, out)
    size = [out if each == axis else 1 for each in range(3)]
    total = np.zeros((*values.shape[: 1 + axis], out, *values.shape[2 + axis :]), np.float32)
    whole = None if valid is None else np.ones(total.shape[1:], np.bool_)
    for member, weight in zip(members.T, weights.T, strict=True):
        total += values.take(member, 1 + axis) * weight.reshape(size)
        if valid is not None and whole is not None:
            whole &= valid.take(member, axis) | (weight == 0).reshape(size)
    return total, whole


def _averages(extent: int, step: float, out: int) -> tuple[Array, npt.NDArray[np.float32]]:
    """Which stored voxels [out, n] have which weights in each new one: a box, interpolated linearly."""
    place = np.minimum(np.arange(out) * step, extent - 1)
    below = np.floor(place + _ON).astype(int)
    share = place - below
    share[share <= _ON] = 0
    reach = min(int(np.ceil(step / 2 - 0.5)), extent - 1)
    members = below[:, None] + np.arange(-reach, reach + 2)
    weights = np.zeros(members.shape)
    for centre, part in ((below, 1 - share), (np.minimum(below + 1, extent - 1), share)):
        half = np.minimum(step / 2, np.minimum(centre + 0.5, extent - 0.5 - centre))[:, None]
        overlap = np.clip(half + 0.5 - np.abs(members - centre[:, None]), 0, 1)
        overlap[overlap < _ON] = 0
        weights += part[:, None] * overlap / overlap.sum(axis=1, keepdims=True)
    return np.clip(members, 0, extent - 1), weights.astype(np.float32)


def nearest(flags: Bools, places: Sequence[Array]) -> Bools:
    """Flags of the voxels nearest to places along each axis; False outside."""
    for axis, place in enumerate(places):
        last = flags.shape[axis] - 1
        number = np.floor(place + 0.5).astype(int)
        inside = (number >= 0) & (number <= last)
        along = np.reshape(inside, [-1 if each == axis else 1 for each in range(3)])
        flags = flags.take(np.clip(number, 0, last), axis) & along
    return flags


def interpolate(values: Array, places: Sequence[Array]) -> Array:
    """Linear interpolation at places along each axis; beyond the ends the last value."""
    for axis, place in enumerate(places):
        last = values.shape[axis] - 1
        below = np.clip(np.floor(place).astype(int), 0, last)
        share = np.clip(place - below, 0, 1).astype(np.float32)
        share = share.reshape([-1 if each == axis else 1 for each in range(3)])
        above = np.minimum(below + 1, last)
        values = values.take(below, axis) * (1 - share) + values.take(above, axis) * share
    return values
