"""The frames of a file: where each lies, how its values are scaled, and what tells it from others."""

import numpy as np
from pydicom.dataset import Dataset

from maectl_medical.dicom.header import Damaged, items, number, numbers, text, texts, whole
from maectl_medical.dicom.image import MOST_FRAMES, Frame, Rescale

__all__ = ["MARKS", "frames_of", "rescale_type"]

# What may tell apart the volumes of a series, the most telling first: our word, sequence, keyword
_MARKS = (
    ("echo time", "MREchoSequence", "EffectiveEchoTime"),
    ("echo time", "", "EchoTime"),
    ("echo number", "", "EchoNumbers"),
    ("time point", "FrameContentSequence", "TemporalPositionIndex"),
    ("time point", "TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ("time point", "", "TemporalPositionIdentifier"),
    ("time point", "", "TemporalPositionIndex"),
    ("diffusion weighting", "MRDiffusionSequence", "DiffusionBValue"),
    ("diffusion weighting", "", "DiffusionBValue"),
    ("diffusion direction", "MRDiffusionSequence/DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"),
    ("diffusion direction", "", "DiffusionGradientOrientation"),
    ("stack", "FrameContentSequence", "StackID"),
    ("stack", "", "StackID"),
    ("image type", "MRImageFrameTypeSequence", "FrameType"),
    ("image type", "CTImageFrameTypeSequence", "FrameType"),
    ("image type", "PETFrameTypeSequence", "FrameType"),
    ("image type", "", "ImageType"),
    ("inversion time", "MRModifierSequence", "InversionTimes"),
    ("inversion time", "", "InversionTime"),
    ("flip angle", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("flip angle", "", "FlipAngle"),
    ("trigger time", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("trigger time", "", "TriggerTime"),
    ("phase of the heart", "", "NominalPercentageOfCardiacPhase"),
    ("bed position or frame time", "", "FrameReferenceTime"),
    ("acquisition number", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("acquisition number", "", "AcquisitionNumber"),
    ("acquisition time", "FrameContentSequence", "FrameAcquisitionDateTime"),
    ("acquisition time", "", "AcquisitionTime"),
    ("content time", "", "ContentTime"),
)
MARKS = tuple(dict.fromkeys(name for name, _, _ in _MARKS))
"""Our words for what may tell volumes apart, in the order in which they are tried."""
_CENTIMETRES = 3  # a physical unit of ultrasound regions, PS3.3 C.8.5.5.1.15


def frames_of(data: Dataset, count: int) -> tuple[tuple[Frame, ...], bool, tuple[str, ...]]:
    """The frames, whether they are a film, and what the user should know of them."""
    each = items(data, "PerFrameFunctionalGroupsSequence")
    shared = items(data, "SharedFunctionalGroupsSequence")
    common = shared[0] if shared else Dataset()
    if count == 1 or len(each) != count:
        frame, notes = _frame(data, each[0] if len(each) == 1 else Dataset(), common, whole(data, "InstanceNumber"))
        if count == 1:
            return (frame,), False, notes
        plain = Frame(None, None, frame.spacing, 0.0, frame.rescale, {}, None)
        return (plain,) * count, True, notes
    before = (whole(data, "InstanceNumber") or 0) * MOST_FRAMES
    found = [_frame(data, group, common, before + index + 1) for index, group in enumerate(each)]
    frames = tuple(frame for frame, _ in found)
    told = tuple(dict.fromkeys(note for _, notes in found for note in notes))
    film = any(frame.position is None or frame.orientation is None for frame in frames)
    return frames, film, told


def _frame(data: Dataset, group: Dataset, shared: Dataset, order: int | None) -> tuple[Frame, tuple[str, ...]]:
    position = _look(data, group, shared, "PlanePositionSequence", "ImagePositionPatient")
    direction = _look(data, group, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing, notes = _spacing(data, group, shared)
    thick = [
        number(where, name)
        for where in (data, *_inside(group, "PixelMeasuresSequence"), *_inside(shared, "PixelMeasuresSequence"))
        for name in ("SliceThickness", "SpacingBetweenSlices")
    ]
    frame = Frame(
        position=(position[0], position[1], position[2]) if len(position) == 3 else None,
        orientation=_directions(direction),
        spacing=spacing,
        thickness=min((abs(each) for each in thick if each), default=0.0),
        rescale=_rescale(data, group, shared),
        marks=_marks(data, group, shared),
        number=order,
    )
    return frame, notes


def _inside(group: Dataset, path: str) -> tuple[Dataset, ...]:
    found: tuple[Dataset, ...] = (group,)
    for name in path.split("/"):
        found = items(found[0], name)[:1] if found else ()
    return found


def _look(data: Dataset, group: Dataset, shared: Dataset, sequence: str, keyword: str) -> tuple[float, ...]:
    """Numbers of a frame's functional group, of the one that all frames share, or of the data set itself."""
    for where in (*_inside(group, sequence), *_inside(shared, sequence), data):
        found = numbers(where, keyword)
        if found:
            return found
    return ()


def _directions(values: tuple[float, ...]) -> tuple[float, ...] | None:
    """Two unit directions at a right angle, None for what is neither."""
    if len(values) != 6:
        return None
    row, column = np.array(values[:3]), np.array(values[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 0.01:
        return None
    row, column = row / lengths[0], column / lengths[1]
    if abs(row @ column) > 0.01:
        return None
    return tuple(float(each) for each in (*row, *column))


def _spacing(data: Dataset, group: Dataset, shared: Dataset) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """mm from row to row and from column to column."""
    found = _pair(_look(data, group, shared, "PixelMeasuresSequence", "PixelSpacing"))
    if found:
        return found, ()
    found = _pair(numbers(data, "ImagerPixelSpacing"))
    if found:
        return found, ("pixel spacing is known at the detector only (ImagerPixelSpacing)",)
    return _ultrasound_spacing(data), ()


def _ultrasound_spacing(data: Dataset) -> tuple[float, float] | None:
    """mm a pixel where the one calibrated region of an ultrasound picture is most of it."""
    regions = items(data, "SequenceOfUltrasoundRegions")
    if len(regions) != 1:
        return None
    names = ("MinX0", "MaxX1", "MinY0", "MaxY1")
    left, right, top, bottom = (whole(regions[0], f"RegionLocation{name}") or 0 for name in names)
    area = (right - left + 1) * (bottom - top + 1)
    if 2 * area < (whole(data, "Rows") or 0) * (whole(data, "Columns") or 0):
        return None
    units = {whole(regions[0], f"PhysicalUnits{axis}Direction") for axis in "XY"}
    down, across = number(regions[0], "PhysicalDeltaY"), number(regions[0], "PhysicalDeltaX")
    return (abs(down) * 10, abs(across) * 10) if units == {_CENTIMETRES} and down and across else None


def _pair(values: tuple[float, ...]) -> tuple[float, float] | None:
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None


def rescale_type(data: Dataset) -> str | None:
    """RescaleType of the first frame, "" where a linear transform names none, None where there is no transform."""
    sequence = "PixelValueTransformationSequence"
    groups = items(data, "PerFrameFunctionalGroupsSequence")[:1] + items(data, "SharedFunctionalGroupsSequence")[:1]
    for where in (*(inner for group in groups for inner in _inside(group, sequence)), data):
        if number(where, "RescaleIntercept") is not None:
            return text(where, "RescaleType").upper()
    return None


def _rescale(data: Dataset, group: Dataset, shared: Dataset) -> Rescale:
    if items(data, "ModalityLUTSequence"):
        return None
    sequence = "PixelValueTransformationSequence"
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        for where in (data, *_inside(group, sequence), *_inside(shared, sequence)):
            if texts(where, keyword) and len(numbers(where, keyword)) != 1:
                raise Damaged(f"its {keyword} is no number: what its pixels mean is not known")
    slope = _look(data, group, shared, sequence, "RescaleSlope")
    intercept = _look(data, group, shared, sequence, "RescaleIntercept")
    return (slope[0] if slope else 1.0, intercept[0] if intercept else 0.0)


def _marks(data: Dataset, group: Dataset, shared: Dataset) -> dict[str, str]:
    marks: dict[str, str] = {}
    for name, sequence, keyword in _MARKS:
        if name in marks:
            continue
        where = (*_inside(group, sequence), *_inside(shared, sequence)) if sequence else (data,)
        value = next((found for each in where if (found := texts(each, keyword))), ())
        if value:
            marks[name] = "\\".join(value)
    return marks
