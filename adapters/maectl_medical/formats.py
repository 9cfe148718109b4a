"""The two formats behind one face: which of them a file is, and loading and saving by it."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels, Reject, Source, Values, Window
from maectl_medical import dicom, nifti
from maectl_medical.grid import Grid
from maectl_medical.stored import Affine, Found

__all__ = ["claimed", "header", "load", "save", "save_map"]


def claimed(path: str, head: bytes) -> bool:
    """Whether a file is DICOM or NIfTI by its content."""
    return nifti.looks_like(path, head) or dicom.looks_like(path, head)


def header(
    folder: str, path: str, *, fourth: Literal["times", "channels", "first"], unit: str | None
) -> list[Found] | dicom.Image | Reject | None:
    """One file's header; at module level, because `Files.map` sends it to other processes."""
    found = nifti.describe(folder, path, fourth=fourth, unit=unit)
    return dicom.describe(folder, path) if found is None else found


def load(files: tuple[str, ...], key: dict[str, Any], window: Window | None) -> Pixels:
    """A window of the stored grid. Raises `maectl.errors.Unreadable`."""
    load_it = dicom.load if key["kind"] == "dicom" else nifti.load
    return load_it(files, key, tuple(key["stored"]), key["dtype"], window)


def save(
    source: Source,
    key: dict[str, Any],
    values: Values,
    valid: npt.NDArray[np.bool_] | None,
    path: Path,
    export: Literal["dicom", "nifti"],
) -> Path:
    """Write the whole stored grid, [C, *stored], as the source is stored, or as the nearest NIfTI."""
    same = len(values) == key["stored"][0]
    if key["kind"] == "nifti":
        return (
            nifti.save(source.files, key, values, valid, path)
            if same
            else nifti.save_like_volume(values, key["affine"], path)
        )
    if export == "dicom" and dicom.can_hold(key["dtype"]):
        return dicom.save(source.files, key, values, valid, path)
    return _as_nifti(values, key["affine"], source.spacing, path)


def save_map(values: Values, grid: Grid | None, spacing: tuple[float, ...] | None, step: int, path: Path) -> Path:
    """Write a coarser grid of any channels, [C, *coarse], as NIfTI: voxels are ``step`` times as large."""
    if grid is None:
        return _as_nifti(values, None, spacing and tuple(side * step for side in spacing), path)
    rows = np.array(grid.affine)
    coarse = rows.copy()
    coarse[:, :3] *= step
    coarse[:, 3] += rows[:, :3].sum(axis=1) * (step - 1) / 2  # the middle of the first block
    first, second, third = (tuple(row) for row in coarse.tolist())
    return nifti.save_like_volume(values, (first, second, third), path)


def _as_nifti(values: Values, affine: Affine | None, spacing: tuple[float, ...] | None, path: Path) -> Path:
    """What has no place in space lies in the first two axes of NIfTI (films: three), columns first."""
    if affine is not None:
        return nifti.save_like_volume(values, affine, path)
    steps = (*(spacing or (1.0,) * (values.ndim - 1))[::-1], 1.0)[:3]
    turned = values.transpose(0, *range(values.ndim - 1, 0, -1))
    flat = turned.reshape(*turned.shape[:3], -1)
    first, second, third = (tuple(row) for row in np.diag((*steps, 1.0))[:3].tolist())
    return nifti.save_like_volume(flat, (first, second, third), path)
