"""What one DICOM file holds, as far as putting slices together needs it: small, picklable, without names."""

from dataclasses import dataclass

__all__ = ["MOST_FRAMES", "Form", "Frame", "Image", "Rescale", "Vector", "bytes_of", "lowest_highest"]

MOST_FRAMES = 1 << 20
"""In one file; a number beyond is none."""

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

    folder    what ``path`` is relative to
    form      how pixels are stored: what the frames of a volume have in common
    span      the lowest and the highest value that its stored form and look-up tables can express, before slope
              and intercept; None for floating point and more than 16 bits
    table     whether ``span`` is of values after a look-up table
    film      frames without positions that belong together: a cine
    series    opaque; patient, study and SeriesInstanceUID or, where that is missing, SeriesNumber and folder
    uid       opaque; SeriesInstanceUID alone, which anonymisers may give to all; "" where it is missing
    instance  opaque; SOPInstanceUID, "" where it is missing
    """

    folder: str
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
    uid: str
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
