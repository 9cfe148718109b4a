"""Where the voxels of a NIfTI file lie in the patient, in mm, whatever its header makes of it."""

from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.quaternions import fillpositive, quat2mat

from maectl_medical.stored import Affine

__all__ = ["geometry"]

Matrix = npt.NDArray[np.float64]
"""[3, 4]: rows of an affine."""

_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, metre, mm, micrometre
_LEAST, _MOST = 1e-6, 1e6  # mm a voxel that can be meant
_FURTHEST = 1e9  # mm from the origin; beyond it neighbouring voxels are no longer told apart
_FLAT = 1e-4  # volume of a voxel over the product of its edges, below which an affine counts as singular
_TOLERANCE = 1e-3  # voxels that qform and sform may lie apart unmentioned


def geometry(raw: Any, shape: tuple[int, ...]) -> tuple[Affine, tuple[str, ...]]:
    """Three rows that take an index (i, j, k, 1) to mm, RAS+, and notes on what is wrong with the header.

    The sform if its code is positive, else the qform, else voxel sizes alone, as nibabel chooses; one that is
    singular or not finite is passed over with a note.
    """
    unit = int(raw["xyzt_units"]) & 7
    scale = _MM.get(unit, 1.0)
    notes = [] if unit in _MM else [f"unknown unit of length (code {unit}): taken as mm"]
    sizes, sized = _voxel_sizes(raw, scale)
    forms: dict[str, Matrix] = {}
    for name, build in (("sform", _sform), ("qform", _qform)):
        if int(raw[f"{name}_code"]) <= 0:
            continue
        matrix = build(raw, sizes) * scale
        if _regular(matrix):
            forms[name] = matrix
        else:
            notes.append(f"the {name} is singular or not finite: not used")
    if not forms:
        notes.append("orientation unknown (neither qform nor sform): taken as stored")
    if len(forms) == 2 and sized:
        notes += _disagreement(forms["sform"], forms["qform"], shape)
    if "sform" not in forms and not sized:
        notes.append("a voxel size is zero, negative or not finite: taken as 1 mm")
    chosen = forms.get("sform", forms.get("qform"))
    if chosen is None:
        chosen = _from_sizes(sizes, shape) * scale
    rows = [tuple(row) for row in chosen.tolist()]
    return (rows[0], rows[1], rows[2]), tuple(notes)


def _voxel_sizes(raw: Any, scale: float) -> tuple[Matrix, bool]:
    """Voxel sizes in the header's unit, 1 mm where they cannot be meant, and whether all can."""
    sizes = np.array(raw["pixdim"][1:4], np.float64)
    good = (sizes * scale >= _LEAST) & (sizes * scale <= _MOST)  # False for NaN too
    return np.where(good, sizes, 1 / scale), bool(good.all())


def _sform(raw: Any, sizes: Matrix) -> Matrix:
    return np.array([raw["srow_x"], raw["srow_y"], raw["srow_z"]], np.float64)


def _qform(raw: Any, sizes: Matrix) -> Matrix:
    """The rotation of a unit quaternion with its real part left out, of voxels of the sizes given."""
    parts = [float(raw[f"quatern_{part}"]) for part in "bcd"]
    try:
        quaternion = fillpositive(parts, float(Nifti1Header.quaternion_threshold))  # type: ignore[no-untyped-call]
    except ValueError:  # longer than 1: not a rotation
        return np.full((3, 4), np.nan)
    # pixdim[0] is the sign of the third axis; 0 counts as 1, by the standard
    signs = (1, 1, -1 if raw["pixdim"][0] < 0 else 1)
    rotation = np.asarray(quat2mat(quaternion), np.float64) * sizes * signs  # type: ignore[no-untyped-call]
    origin = [[float(raw[f"qoffset_{axis}"])] for axis in "xyz"]
    return np.hstack([rotation, np.array(origin)])


def _from_sizes(sizes: Matrix, shape: tuple[int, ...]) -> Matrix:
    """As nibabel: the first axis to the left, the second anterior, the third superior, the centre at 0."""
    steps = sizes * (-1, 1, 1)
    centre = (np.array(shape[:3]) - 1) / 2
    return np.hstack([np.diag(steps), -(steps * centre)[:, None]])


def _regular(matrix: Matrix) -> bool:
    """Whether an affine [3, 4] in mm can be one: finite, of thinkable size, and invertible."""
    if not (np.isfinite(matrix).all() and np.abs(matrix).max() <= _FURTHEST):
        return False
    edges = np.linalg.norm(matrix[:, :3], axis=0)
    if edges.min() < _LEAST or edges.max() > _MOST:
        return False
    return bool(abs(np.linalg.det(matrix[:, :3] / edges)) > _FLAT)


def _disagreement(sform: Matrix, qform: Matrix, shape: tuple[int, ...]) -> list[str]:
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape[:3]], indexing="ij"), axis=-1).reshape(-1, 3)
    apart = (sform - qform) @ np.hstack([corners, np.ones((8, 1))]).T
    distance = float(np.linalg.norm(apart, axis=0).max())
    if distance <= _TOLERANCE * np.linalg.norm(sform[:, :3], axis=0).min():
        return []
    return [f"qform and sform disagree by up to {distance:.3g} mm: sform taken"]
