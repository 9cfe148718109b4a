"""The grid a model sees of a stored volume: turned to a fixed orientation, resampled, cut to a box; and back.

Turning only permutes and flips axes, so every voxel stays what it is. Resampling (`maectl_medical.resample`) works
along the (turned) axes of the volume; a shear between them, as of a tilted gantry, stays. A seen voxel 0 lies on
the first stored one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from maectl.adapter import Pixels, Window
from maectl_medical.resample import interpolate, nearest, resample
from maectl_medical.stored import Affine

__all__ = ["Box", "Grid", "cast", "foreground_box"]

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

_PLANES = ("sagittal", "coronal", "axial")  # perpendicular to right-left, anterior-posterior, superior-inferior
_CANONICAL = ("I", "P", "L")  # where the axes go: every slice is upright, the patient's left on the right
_SAME = 1.5e-3  # relative; MONAI does not resample by less than 1e-3 or so, and would then miss our own grid
_MOST = 1 << 31  # voxels of a resampled volume
_FURTHEST = 1e12  # mm: beyond it nothing is an affine


@dataclass(frozen=True, slots=True)
class Grid:
    """A seen grid, made by `Grid.of`.

    shape    voxels along each seen axis
    spacing  mm between voxels along each seen axis
    axes     the plane perpendicular to each: "axial", "coronal", "sagittal"
    affine   rows that take a seen index (i0, i1, i2, 1) to mm, RAS+
    stored   the stored shape
    turn     for each stored axis the seen axis it becomes, and 1 or, where it is flipped, -1
    steps    stored voxels from one seen voxel to the next, along each seen axis; None without resampling
    whole    the seen shape before it was cut to a box
    corner   where in it the box begins
    """

    shape: Shape
    spacing: tuple[float, float, float]
    axes: tuple[str, str, str]
    affine: Affine
    stored: Shape
    turn: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    steps: tuple[float, float, float] | None
    whole: Shape
    corner: Shape

    @classmethod
    def of(
        cls,
        shape: Shape,
        affine: Affine,
        *,
        orientation: Literal["canonical", "native"],
        spacing: tuple[float, float, float] | None = None,
        box: Box | None = None,
    ) -> "Grid":
        """The grid seen of a volume of a stored shape and affine (three rows, RAS+, invertible).

        "canonical" turns it so that its axes go to inferior, posterior and left, as nearly as without
        interpolation; "native" leaves it. ``spacing`` (mm, along the seen axes) resamples; one within 0.15 % of
        the stored spacing counts as equal to it. ``box`` cuts the seen volume, in its turned and resampled
        voxels. Raises ValueError, without a value of the affine, for one that is singular or not finite, and for
        more than 2^31 resampled voxels.
        """
        rows = np.vstack([np.array(affine, np.float64), (0, 0, 0, 1)])
        if not (np.abs(rows) <= _FURTHEST).all():
            raise ValueError("an affine that is not finite has no orientation")
        towards = io_orientation(rows)  # type: ignore[no-untyped-call]
        if np.isnan(towards).any():
            raise ValueError("a singular affine has no orientation")
        turn = np.array([[axis, 1] for axis in range(3)])
        if orientation == "canonical":
            turn = ornt_transform(towards, axcodes2ornt(_CANONICAL)).astype(int)  # type: ignore[no-untyped-call]
        stored_axis = np.argsort(turn[:, 0])  # of each seen axis
        seen: Array = rows @ inv_ornt_aff(turn, shape)  # type: ignore[no-untyped-call]
        whole = _shape(shape[axis] for axis in stored_axis)
        steps = _steps(np.linalg.norm(seen[:3, :3], axis=0), spacing)
        if steps is not None:
            seen = seen @ np.diag((*steps, 1))
            whole = _resampled(whole, steps)
        box = box or _box(slice(0, size) for size in whole)
        seen[:, 3] = seen @ [*(part.start for part in box), 1]
        edges = np.linalg.norm(seen[:3, :3], axis=0).tolist()
        names = [_PLANES[int(towards[axis, 0])] for axis in stored_axis]
        lines = [tuple(row) for row in seen.tolist()]
        pairs = [(int(axis), int(way)) for axis, way in turn]
        return cls(
            shape=_shape(part.stop - part.start for part in box),
            spacing=(edges[0], edges[1], edges[2]),
            axes=(names[0], names[1], names[2]),
            affine=(lines[0], lines[1], lines[2]),
            stored=shape,
            turn=(pairs[0], pairs[1], pairs[2]),
            steps=steps,
            whole=whole,
            corner=_shape(part.start for part in box),
        )

    def dtype(self, stored: str) -> str:
        """The dtype of what is seen of a volume of this dtype: its own, or float32 where it is resampled."""
        return stored if self.steps is None else "float32"

    def read(self, load: Callable[[Window | None], Pixels], window: Window | None = None) -> Pixels:
        """A window in seen voxels (None: all) of what ``load`` gives of a stored window (None: all).

        Without resampling only the window is loaded. With it all is, values are float32 (`resample`: averaged
        where voxels become larger, interpolated where they become smaller), and a voxel is valid where every stored
        one that has a weight in it is; invalid ones are NaN.
        """
        window = window or tuple(slice(0, size) for size in self.shape)
        part = _box(slice(at + each.start, at + each.stop) for at, each in zip(self.corner, window, strict=True))
        if self.steps is None:
            all_of_it = part == tuple(slice(0, size) for size in self.whole)
            pixels = load(None if all_of_it else self._stored(part))
            values, valid = self._turned(pixels.values), pixels.valid
            seen = None if valid is None else np.ascontiguousarray(self._turned(valid[None])[0])
            return Pixels(np.ascontiguousarray(values), seen)
        pixels = load(None)
        values, valid = self._turned(pixels.values), pixels.valid
        resampled = resample(values, None if valid is None else self._turned(valid[None])[0], self.steps, self.whole)
        cut = None if resampled.valid is None else resampled.valid[part].copy()
        return Pixels(np.ascontiguousarray(resampled.values[(slice(None), *part)]), cut)

    def back(self, seen: Array, changed: npt.NDArray[np.bool_], stored: Pixels) -> Array:
        """Values [C, *stored] with what changed among ``seen`` [C, *shape]; ``changed`` is bool [*shape].

        ``stored`` is the whole stored volume; its dtype stays, integers are rounded and clipped. Its own values
        stay where the nearest seen voxel is not changed or not finite, outside of the box, and where it is
        invalid. Resampled voxels are interpolated linearly among the finite ones seen.
        """
        values = stored.values.copy()
        target = self._turned(values)  # a view: what is written to it is written to values
        mask = np.ones(target.shape[1:], bool) if stored.valid is None else self._turned(stored.valid[None])[0].copy()
        finite = np.isfinite(seen).all(axis=0)
        if self.steps is None:
            part = tuple(slice(at, at + size) for at, size in zip(self.corner, self.shape, strict=True))
            wanted = mask[part] & changed & finite
            target[(slice(None), *part)][:, wanted] = cast(seen[:, wanted], values.dtype)
            return values
        places = [
            np.minimum(np.arange(size) / step, last - 1) - at
            for size, step, last, at in zip(target.shape[1:], self.steps, self.whole, self.corner, strict=True)
        ]
        mask &= nearest(changed & finite, places)
        weight = interpolate(np.array(finite, np.float32), places)[mask]
        for number, channel in enumerate(seen):
            known = np.array(np.where(finite, channel, 0), np.float32)
            target[number][mask] = cast(interpolate(known, places)[mask] / weight, values.dtype)
        return values

    def stored_axis(self, axis: int) -> int:
        """Which stored axis becomes a seen one."""
        return next(number for number, (seen, _) in enumerate(self.turn) if seen == axis)

    def place(self, axis: int, number: int) -> int | None:
        """Which slice along a seen axis lies nearest to stored slice ``number``; None where the box has cut it away.

        A number that no stored slice has gives -1, which no seen one has.
        """
        stored = self.stored_axis(axis)
        if not 0 <= number < self.stored[stored]:
            return -1
        turned = number if self.turn[stored][1] > 0 else self.stored[stored] - 1 - number
        step = 1 if self.steps is None else self.steps[axis]
        # halves are rounded to even: what is beyond the last seen slice by that alone belongs to it
        seen = min(round(turned / step), self.whole[axis] - 1) - self.corner[axis]
        return seen if 0 <= seen < self.shape[axis] else None

    def _turned(self, values: Array) -> Array:
        """A view of a stored volume [C, i, j, k] with its axes as they are seen."""
        flipped = values[(slice(None), *(slice(None, None, way) for _, way in self.turn))]
        return flipped.transpose(0, *(1 + np.argsort([axis for axis, _ in self.turn])))

    def _stored(self, part: Box) -> Window:
        """The stored window of one in seen voxels, where nothing is resampled."""
        window = []
        for size, (axis, way) in zip(self.stored, self.turn, strict=True):
            start, stop = part[axis].start, part[axis].stop
            window.append(slice(start, stop) if way > 0 else slice(size - stop, size - start))
        return tuple(window)


def foreground_box(pixels: Pixels, threshold: float) -> Box:
    """The smallest box that holds every valid voxel with a value above ``threshold`` in any channel.

    Of a volume that has none it is the whole volume.
    """
    with np.errstate(invalid="ignore"):
        found = np.asarray((pixels.values > threshold).any(axis=0))
    if pixels.valid is not None:
        found = found & pixels.valid
    if not found.any():
        return _box(slice(0, size) for size in found.shape)
    return _box(slice(int(along.min()), int(along.max()) + 1) for along in np.nonzero(found))


def _shape(sizes: Iterable[int]) -> Shape:
    first, second, third = (int(size) for size in sizes)
    return first, second, third


def _box(parts: Iterable[slice]) -> Box:
    first, second, third = parts
    return first, second, third


def _steps(edges: Array, spacing: Sequence[float] | None) -> tuple[float, float, float] | None:
    """Voxels from one resampled voxel to the next, or None where the spacing is what it should be."""
    if spacing is None:
        return None
    steps = [float(new / old) for new, old in zip(spacing, edges, strict=True)]
    steps = [1.0 if abs(step - 1) <= _SAME else step for step in steps]
    return None if steps == [1, 1, 1] else (steps[0], steps[1], steps[2])


def _resampled(whole: Shape, steps: tuple[float, float, float]) -> Shape:
    """The shape of a volume after resampling. Raises ValueError where it is too large."""
    shape = _shape(_length(size, step) for size, step in zip(whole, steps, strict=True))
    if prod(shape) > _MOST:
        before, after = (" x ".join(f"{size:,}" for size in each) for each in (whole, shape))
        raise ValueError(f"resampling would make {after} voxels of {before}: use a larger spacing")
    return shape


def _length(size: int, step: float) -> int:
    """How many voxels MONAI's `compute_shape_offset` makes of ``size``, in its own order of rounding."""
    return round((size - 1) * (1 / step) + 1)


def cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in a dtype: rounded and clipped to the range of an integer one, NaN 0; in a float one as they are."""
    if dtype.kind == "f" or values.dtype == dtype:
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    whole: Array = np.clip(np.rint(np.nan_to_num(values)), limits.min, limits.max).astype(dtype)
    return whole
