"""What DICOM and NIfTI have in common: an image as its files store it, before it is turned or resampled.

C channels; S the stored spatial shape: (row, column), (frame, row, column) or the three axes of a volume in
whatever order the files have them.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Affine", "Found"]

Affine = tuple[tuple[float, float, float, float], ...]
"""Three rows of an affine transform; `Found` says from where to where."""


@dataclass(frozen=True, slots=True)
class Found:
    """One image or volume, from headers.

    paths     member files, relative to the folder scanned; of a DICOM volume in the order of its slices
    shape     [C, *S] as stored
    dtype     of the values that loading gives: uint8, int16, uint16 or float32
    unit      "HU", "0..255", "Bq/ml", "value", ...
    channels  ("grey",), ("red", "green", "blue"), or a name each channel of a 4-D volume
    affine    of a volume: three rows that take a stored index (i0, i1, i2, 1), in the order of the stored
              spatial axes, to mm in the patient's frame with axes to the right, anterior, superior (RAS+, as
              NIfTI's; DICOM's is LPS+: x and y change sign). None for 2-D images and films (cine)
    spacing   of what has no affine: mm a pixel along each of S, or None where it is not known
    axes      of what has no affine: ("row", "column") or ("frame", "row", "column"); () for volumes
    key       what loading needs, plain JSON values; no header text of any kind
    group     the patient, opaque, "" where unknown; kept in memory only
    facts     what inspect counts: "transfer syntax: JPEG-LS Lossless", "modality: MR", ...
    notes     defects the user should know of, one phrase each, without any personal value
    """

    paths: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    unit: str
    channels: tuple[str, ...]
    affine: Affine | None = None
    spacing: tuple[float, ...] | None = None
    axes: tuple[str, ...] = ()
    key: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    facts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
