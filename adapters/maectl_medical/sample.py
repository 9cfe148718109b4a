"""Phantom studies for `maectl demo medical`: chests in Hounsfield units, half in DICOM, half in NIfTI.

Two classes of patients: one large mass in each lung, or many nodules of the same volume together.
"""

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from maectl_medical.nifti import save_like_volume

__all__ = ["phantoms"]

CLASSES = ("one-mass", "many-nodules")  # a lung
PATIENTS = {"train": 48, "test": 24}  # a class
SHAPE = (16, 48, 64)  # slices, rows, columns
SPACING = (8.0, 4.0, 4.0)  # mm
AIR, LUNG, TISSUE, BONE = -1000, -800, 40, 700  # HU
NOISE = 15  # HU
Volume = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]
Millimetres = npt.NDArray[np.floating]


def phantoms(folder: Path, seed: int) -> None:
    """Write every patient: ``folder/<part>/<class>/patient-NN/`` of slices, or ``patient-NN.nii.gz``."""
    for part, count in PATIENTS.items():
        for label, kind in enumerate(CLASSES):
            for number in range(count):
                name = f"patient-{number:02d}"
                own = np.random.default_rng((seed, zlib.crc32(f"{part} {kind} {name}".encode())))
                volume = _chest(own, label)
                where = folder / part / kind
                where.mkdir(parents=True, exist_ok=True)
                if number % 2:
                    _write_nifti(volume, where / name)
                else:
                    _write_dicom(volume, where / name, f"PHANTOM {part} {kind} {number:02d}", own)


def _chest(rng: np.random.Generator, label: int) -> Volume:
    """int16 [D, H, W] HU, slices from inferior to superior."""
    z, y, x = (
        (np.arange(size) - (size - 1) / 2).reshape([-1 if axis == each else 1 for each in range(3)]) * step
        for axis, (size, step) in enumerate(zip(SHAPE, SPACING, strict=True))
    )  # mm from the middle
    wide, deep = rng.uniform(100, 115), rng.uniform(72, 84)
    body = (x / wide) ** 2 + (y / deep) ** 2 + 0 * z < 1
    hu = np.where(body, TISSUE, AIR) + rng.normal(0, NOISE, SHAPE)
    lungs = np.zeros(SHAPE, np.bool_)
    for side in (-1, 1):
        place = side * rng.uniform(0.45, 0.5) * wide
        half = 55 + rng.uniform(-5, 5)
        lungs |= ((x - place) / (0.36 * wide)) ** 2 + (y / (0.62 * deep)) ** 2 + (z / half) ** 2 < 1
    hu[lungs] += LUNG - TISSUE
    hu[lungs & _masses(rng, label, z, y, x)] += TISSUE - LUNG
    hu[(x / 14) ** 2 + ((y - 0.72 * deep) / 12) ** 2 + 0 * z < 1] = BONE
    return np.rint(hu).astype(np.int16)


def _masses(rng: np.random.Generator, label: int, z: Millimetres, y: Millimetres, x: Millimetres) -> Mask:
    """Balls anywhere in the lungs, of about the same volume together: one in each, or many."""
    found = np.zeros(SHAPE, np.bool_)
    count, radius = ((1, 24.0), (12, 10.5))[label]
    for side in (-1, 1):
        for _ in range(count):
            at = rng.uniform((-30, -28, 28), (30, 28, 72)) * (1, 1, side)
            own = radius * rng.uniform(0.9, 1.1)
            found |= (z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2 < own**2
    return found


def _write_nifti(volume: Volume, path: Path) -> None:
    """Stored as NIfTI usually is: first axis to the right, then anterior, then superior."""
    values = np.ascontiguousarray(volume.transpose(2, 1, 0)[::-1, ::-1][None])
    depth, height, width = SPACING
    corner = [-step * (size - 1) / 2 for size, step in zip(SHAPE, SPACING, strict=True)]
    affine = ((width, 0.0, 0.0, corner[2]), (0.0, height, 0.0, corner[1]), (0.0, 0.0, depth, corner[0]))
    save_like_volume(values, affine, path)


def _write_dicom(volume: Volume, folder: Path, patient: str, rng: np.random.Generator) -> None:
    """One file a slice, in no order that its name would tell."""
    folder.mkdir(parents=True)
    study, series, frame = (generate_uid(entropy_srcs=[patient, what]) for what in ("study", "series", "frame"))
    order = rng.permutation(len(volume))
    for place, number in enumerate(order):
        data = _slice(volume[number], int(number))
        data.PatientID, data.PatientName = patient, patient.replace(" ", "^")
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.SOPInstanceUID = generate_uid(entropy_srcs=[patient, str(number)])
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.save_as(folder / f"IM{place:04d}.dcm", enforce_file_format=True)


def _slice(values: npt.NDArray[np.int16], number: int) -> Dataset:
    """A CT image of HU stored with an offset of 1024, as scanners do."""
    depth, height, width = SPACING
    data = Dataset()
    data.SOPClassUID = CTImageStorage
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.InstanceNumber = number + 1
    data.Rows, data.Columns = values.shape
    data.PixelSpacing, data.SliceThickness = [height, width], depth
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    corner = [-step * (size - 1) / 2 for size, step in zip(SHAPE, SPACING, strict=True)]
    data.ImagePositionPatient = [corner[2], corner[1], corner[0] + depth * number]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, -1024, "HU"
    data.PixelData = (values + 1024).astype("<i2").tobytes()
    return data
