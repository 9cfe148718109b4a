"""What one DICOM file holds, as far as putting slices together needs it: small, picklable, without names."""

from dataclasses import dataclass

__all__ = ["Form", "Frame", "Image", "Rescale", "Vector", "bytes_of", "lowest_highest"]

Vector = tuple[float, float, float]
"""x, y, z in the patient's frame, LPS+."""

Rescale = tuple[float, float] | None
"""Slope and intercept of the modality transform, or None where it is a look-up table."""

Form = tuple[int, int, int, int, str, str]
"""Samples, bits allocated, bits stored, signed (0 or 1), photometric interpretation, pixel data element."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one frame lies and what tells it from others at the same place.

    position     of the centre of the first pixel, mm; None where unknown
    orientation  unit directions in which column and row numbers grow, six numbers; None where unknown
    spacing      mm from row to row and from column to column; None where unknown
    thickness    the smaller of slice thickness and distance as the header gives them, mm; 0 where unknown
    rescale      slope and intercept, or None for a look-up table
    marks        value by name of what may tell volumes of a series apart ("echo time"); never shown
    number       InstanceNumber, or the frame's number in a file of several; None where unknown
    """

    position: Vector | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float
    rescale: Rescale
    marks: dict[str, str]
    number: int | None


@dataclass(frozen=True, slots=True)
class Image:
    """One file of one or more frames.

    form      how pixels are stored: what the frames of a volume have in common
    span      the lowest and the highest value that its stored form and look-up tables can express, before slope
              and intercept; None for floating point and more than 16 bits
    table     whether ``span`` is of values after a look-up table
    film      frames without positions that belong together: a cine
    series    opaque; SeriesInstanceUID or, where it is missing, the folder
    instance  opaque; SOPInstanceUID, "" where it is missing
    """

    path: str
    rows: int
    columns: int
    form: Form
    span: tuple[int, int] | None
    table: bool
    frames: tuple[Frame, ...]
    film: bool
    unit: str
    series: str
    instance: str
    group: str
    facts: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def inverted(self) -> bool:
        """Whether low values are bright, so that loading turns them over.

        Values in a physical unit say what they are and stay: there MONOCHROME1 is only a way to show them.
        """
        return self.form[4] == "MONOCHROME1" and self.unit not in ("HU", "Bq/ml")


def bytes_of(rows: int, columns: int, form: Form, frames: int) -> int:
    """Bytes of so many uncompressed frames."""
    samples = 2 if form[4] == "YBR_FULL_422" else form[0]  # two chroma values for each two pixels
    return -(-rows * columns * samples * form[1] * frames // 8)


def lowest_highest(form: Form) -> tuple[int, int]:
    """The lowest and the highest integer that can be stored."""
    bits = form[2]
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if form[3] else (0, (1 << bits) - 1)
