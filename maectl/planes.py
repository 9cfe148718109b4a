"""How a 2-D model sees volumes: as slices, one voxel thick, along one axis.

N sources, D spatial axes; an axis of -1 means that an image is seen whole.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels, Source, Window
from maectl.errors import UsageError
from maectl.index import Index
from maectl.windows import crop_each, crop_pixels

__all__ = ["along", "along_each", "extents", "flat", "patch_length", "rest", "slab", "too_small", "windows_each"]

COARSER = 1.25  # an axis whose spacing is that much coarser than the others' is the one a scan was acquired along
Ints = npt.NDArray[np.int64]


def along_each(index: Index, dimensions: int, axis: str | None) -> Ints:
    """int64 [N] the axis along which a model of that many dimensions slices each source (``data.axis``).

    None takes the axis of the coarsest spacing where it is 1.25 times as coarse as the others, else the axis
    called axial, else the first. Raises UsageError for an axis that a source has not, and where a model has
    more dimensions than the images, or too few to see them in slices.
    """
    used, kinds = np.unique(index.kind_numbers, return_inverse=True)  # some kinds may have no row left
    names = [index.axes[kind] for kind in used]
    return _along(names, kinds, index.spacings(len(names[0])), dimensions, axis)


def along(source: Source, dimensions: int, axis: str | None) -> int:
    """`along_each` of one source."""
    spacing = source.spacing or (np.nan,) * len(source.axes)
    return int(_along([source.axes], np.zeros(1, int), np.array([spacing]), dimensions, axis)[0])


def _along(
    names: Sequence[tuple[str, ...]], kinds: Ints, spacings: npt.NDArray[np.float64], dimensions: int, axis: str | None
) -> Ints:
    axes = len(names[0])
    if axes == dimensions:
        if axis is not None and axes > 2 and not any(axis in each for each in names):
            raise UsageError(f"data.axis {axis}: the axes of these images are {', '.join(names[0])}")
        return np.full(len(kinds), -1)
    if axes != dimensions + 1:
        raise UsageError(
            f"model.image_size has {dimensions} dimensions, the images have {axes}: give it {axes}"
            + (f", or {axes - 1} to see them as slices" if axes > 2 else "")
        )
    if axis is not None:
        for each in names:
            if axis not in each:
                raise UsageError(f"data.axis {axis}: the axes of these images are {', '.join(each)}")
        return np.array([each.index(axis) for each in names])[kinds]
    usual = np.array([each.index("axial") if "axial" in each else 0 for each in names])[kinds]
    known = np.isfinite(spacings).all(axis=1)
    ordered = np.sort(np.nan_to_num(spacings), axis=1)
    coarse = known & (ordered[:, -1] >= COARSER * ordered[:, -2])
    return np.where(coarse, np.nan_to_num(spacings).argmax(axis=1), usual)


def extents(index: Index, dimensions: int, axis: str | None) -> Ints:
    """int64 [N, dimensions] the extent of every source as a model of that many dimensions sees it."""
    return _seen(index, dimensions, axis)[0]


def _seen(index: Index, dimensions: int, axis: str | None) -> tuple[Ints, npt.NDArray[np.float64]]:
    """[N, dimensions] extents and spacings (NaN where unknown) as a model sees every source."""
    shapes = index.shapes[:, 1:].astype(np.int64)
    kept = np.arange(shapes.shape[1]) != along_each(index, dimensions, axis)[:, None]
    spacings = index.spacings(shapes.shape[1])
    return shapes[kept].reshape(len(index), dimensions), spacings[kept].reshape(len(index), dimensions)


def windows_each(
    index: Index, size: tuple[int, ...], crop: str, axis: str | None
) -> tuple[Ints, npt.NDArray[np.float64] | None]:
    """[N, D] extents, and windows of ``crop`` in pixels, as a model of that size sees every source."""
    shapes, spacings = _seen(index, len(size), axis)
    return shapes, crop_each(crop, size, spacings)


def too_small(
    index: Index, size: tuple[int, ...], patch: tuple[int, ...], crop: str, axis: str | None
) -> npt.NDArray[np.bool_]:
    """[N] whether a source is smaller than one patch: its own pixels, or with a window what they become in it."""
    shapes, windows = windows_each(index, size, crop, axis)
    sides = shapes if windows is None else np.rint(shapes * size / windows)
    return np.asarray((sides < patch).any(axis=1))


def patch_length(
    index: Index, size: tuple[int, ...], patch: tuple[int, ...], crop: str, axis: str | None
) -> tuple[float, ...] | None:
    """What a patch spans of the median source, in the unit of `Source.spacing`; None where no source says.

    At ``crop_scale`` 1, of the whole image or of the window ``crop`` (``data.crop``).
    """
    shapes, spacings = _seen(index, len(size), axis)
    known = np.isfinite(spacings).all(axis=1)
    if not known.any():
        return None
    shape, spacing = np.median(shapes[known], axis=0), np.median(spacings[known], axis=0)
    window = crop_pixels(crop, size, tuple(spacing)) or tuple(shape)
    return tuple(float(w * s * p / z) for w, s, p, z in zip(window, spacing, patch, size, strict=True))


def slab(axis: int, place: int, window: Window) -> Window:
    """The window of a volume that is ``window``, of a plane, in one slice; with axis -1 ``window`` itself."""
    return window if axis < 0 else (*window[:axis], slice(place, place + 1), *window[axis:])


def flat(pixels: Pixels, axis: int) -> Pixels:
    """What was read through `slab`, without the sliced axis."""
    if axis < 0:
        return pixels
    valid = None if pixels.valid is None else pixels.valid.squeeze(axis)
    return Pixels(pixels.values.squeeze(axis + 1), valid)


def rest(sides: Iterable[int], axis: int) -> tuple[int, ...]:
    """Extents of what the model sees: without the sliced axis."""
    return tuple(int(side) for each, side in enumerate(sides) if each != axis)
