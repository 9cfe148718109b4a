"""Derived DICOM images: new objects with new identifiers, of which only pixels and geometry are the source's."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.valuerep import DSfloat

from maectl.adapter import Values
from maectl.errors import DataError, Unreadable
from maectl_medical.dicom.describe import MODALITIES, describe
from maectl_medical.dicom.exchange import DESCRIPTION, put_in_place
from maectl_medical.dicom.form import Stored, stored_form
from maectl_medical.dicom.header import Damaged, parse, text
from maectl_medical.dicom.image import Frame, Image
from maectl_medical.dicom.quiet import hush

__all__ = ["can_hold", "save"]

_EMPTY = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName SeriesNumber Manufacturer PositionReferenceIndicator Laterality"
)
"""Elements of type 2: they must be there and may be empty."""

_PLAIN = {
    storage: storage
    for storage in (
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.DigitalIntraOralXRayImageStorageForPresentation,
        uid.DigitalIntraOralXRayImageStorageForProcessing,
        uid.CTImageStorage,
        uid.MRImageStorage,
        uid.PositronEmissionTomographyImageStorage,
        uid.UltrasoundImageStorage,
        uid.XRayAngiographicImageStorage,
        uid.XRayRadiofluoroscopicImageStorage,
        uid.VLEndoscopicImageStorage,
        uid.VLMicroscopicImageStorage,
        uid.VLPhotographicImageStorage,
        uid.OphthalmicPhotography8BitImageStorage,
        uid.OphthalmicPhotography16BitImageStorage,
    )
} | {
    uid.EnhancedCTImageStorage: uid.CTImageStorage,
    uid.EnhancedMRImageStorage: uid.MRImageStorage,
    uid.EnhancedPETImageStorage: uid.PositronEmissionTomographyImageStorage,
    uid.UltrasoundMultiFrameImageStorage: uid.UltrasoundImageStorage,
}
"""The storage class to write single frames in, by that of the source."""

_FILMS = (
    uid.UltrasoundMultiFrameImageStorage,
    uid.XRayAngiographicImageStorage,
    uid.XRayRadiofluoroscopicImageStorage,
)


def can_hold(dtype: str) -> bool:
    """Whether values of a dtype can be written exactly: float32 cannot."""
    return dtype in ("uint8", "int16", "uint16")


def save(
    files: tuple[str, ...],
    key: dict[str, Any],
    values: Values,
    valid: npt.NDArray[np.bool_] | None,
    path: Path,
) -> Path:
    """Write values [C, *S] like an image that `assemble` found, and return the path written.

    A volume becomes a new folder ``path`` with a file for each slice, a picture or a film the file ``path``.dcm. What
    maectl wrote there earlier is replaced when all is written, anything else stays and is an error.
    ``key`` is the image's, with its "unit" and, for volumes, its "affine" (three rows, RAS+). Values are in that
    unit, uint8, int16 or uint16; where ``valid`` [*S] is False pixels are written as padding. Names, dates,
    identifiers and descriptions of the source are left out. Raises `DataError` and `Unreadable`.
    """
    if not can_hold(values.dtype.name) or len(values) not in (1, 3):
        raise DataError(f"DICOM cannot hold {values.dtype.name} in {len(values)} channels exactly: write NIfTI")
    hush()
    image, storage, modality = _source(files[0])
    stored = stored_form(values, valid, image, key)
    affine = key.get("affine")
    common = _common(modality, key["unit"], stored)
    try:
        if affine is not None:
            return _save_slices(common, _storage(storage, stored, film=False), stored, np.array(affine, float), path)
        film = values.ndim == 4
        common.SOPClassUID = _storage(storage, stored, film=film)
        _place(common, image.frames[key.get("frames", [[0, 0]])[0][1]], film=film)
        _fill(common, stored.pixels, stored)
        path = path.with_name(f"{path.name}.dcm")
        with put_in_place(path) as temporary:
            _write(common, temporary)
        return path
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def _source(file: str) -> tuple[Image, str, str]:
    """The first file's image, its storage class and its modality."""
    try:
        with open(file, "rb") as opened:
            data = parse(opened).data
            storage, modality = text(data, "SOPClassUID"), text(data, "Modality").upper()
    except FileNotFoundError as error:
        raise Unreadable("the file is gone") from error
    except (Damaged, OSError) as error:
        raise Unreadable("the source's header cannot be read any more") from error
    image = describe(os.path.dirname(file), os.path.basename(file))
    if not isinstance(image, Image):
        raise Unreadable("the source is no image any more: changed since the scan?")
    return image, storage, modality if modality in MODALITIES else "OT"


def _storage(source: str, stored: Stored, *, film: bool) -> str:
    if not film:
        return str(_PLAIN.get(uid.UID(source), uid.SecondaryCaptureImageStorage))
    if source in _FILMS:
        return source
    if len(stored.pixels) == 3:
        return str(uid.MultiFrameTrueColorSecondaryCaptureImageStorage)
    byte = stored.allocated == 8
    word = uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    return str(uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage if byte else word)


def _common(modality: str, unit: str, stored: Stored) -> Dataset:
    """What all objects of one call have in common."""
    data = Dataset()
    for keyword in _EMPTY.split():
        setattr(data, keyword, None)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(data, keyword, uid.generate_uid(prefix=None))
    data.Modality = modality
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.SeriesDescription = DESCRIPTION
    data.ConversionType = "WSD"  # by a workstation
    data.InstanceNumber = 1
    if stored.intercept or modality in ("CT", "PT"):
        data.RescaleSlope, data.RescaleIntercept = 1, stored.intercept
        data.RescaleType = "HU" if unit == "HU" else "US"  # US: unspecified
    if modality == "PT":
        data.Units = "BQML" if unit == "Bq/ml" else "NONE"
    return data


def _fill(data: Dataset, pixels: npt.NDArray[Any], stored: Stored) -> None:
    """The pixels [C, rows, columns] or, of a film, [C, frames, rows, columns]."""
    data.SamplesPerPixel = len(pixels)
    data.PhotometricInterpretation = "RGB" if len(pixels) == 3 else "MONOCHROME2"
    if len(pixels) == 3:
        data.PlanarConfiguration = 0
    if pixels.ndim == 4:
        data.NumberOfFrames = pixels.shape[1]
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated, data.BitsStored, data.HighBit = stored.allocated, stored.bits, stored.bits - 1
    data.PixelRepresentation = stored.signed
    if stored.padding is not None:
        data.add_new("PixelPaddingValue", "SS" if stored.signed else "US", stored.padding)
    little = np.moveaxis(pixels, 0, -1).astype(pixels.dtype.newbyteorder("<"))
    raw = little.tobytes()
    data.add_new("PixelData", "OB" if stored.allocated == 8 else "OW", raw + bytes(len(raw) % 2))


def _place(data: Dataset, frame: Frame, *, film: bool) -> None:
    """The geometry of a picture, as far as it is known."""
    if film:
        return
    if frame.spacing is not None:
        data.PixelSpacing = [_decimal(each) for each in frame.spacing]
    if frame.position is not None and frame.orientation is not None:
        data.ImagePositionPatient = [_decimal(each) for each in frame.position]
        data.ImageOrientationPatient = [_decimal(each) for each in frame.orientation]


def _save_slices(common: Dataset, storage: str, stored: Stored, affine: npt.NDArray[np.float64], path: Path) -> Path:
    """A file for each slice of a volume, in a new folder.

    The inverse of the affine's equation: the position of slice k is that of (k, 0, 0), turned from RAS+ to LPS+.
    """
    step, down, across, first = (affine * np.array([[-1.0], [-1.0], [1.0]])).T
    spacing = np.linalg.norm(down), np.linalg.norm(across)
    normal = np.cross(across / spacing[1], down / spacing[0])
    common.SOPClassUID = storage
    common.PixelSpacing = [_decimal(each) for each in spacing]
    common.ImageOrientationPatient = [_decimal(each) for each in (*across / spacing[1], *down / spacing[0])]
    common.SliceThickness = common.SpacingBetweenSlices = _decimal(abs(step @ normal))
    with put_in_place(path) as temporary:
        temporary.mkdir()
        for number in range(stored.pixels.shape[1]):
            common.InstanceNumber = number + 1
            common.ImagePositionPatient = [_decimal(each) for each in first + number * step]
            _fill(common, stored.pixels[:, number], stored)
            _write(common, temporary / f"{number + 1:04d}.dcm")
    return path


def _decimal(value: Any) -> DSfloat:
    """A number as DICOM writes it, in 16 characters at most."""
    return DSfloat(float(value), auto_format=True)


def _write(data: Dataset, path: Path) -> None:
    data.SOPInstanceUID = uid.generate_uid(prefix=None)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
