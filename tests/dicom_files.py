"""Synthetic DICOM files for tests: one image, or a series of slices, with whatever elements a test wants."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def noise(*shape: int, seed: int = 0, low: int = 0, high: int = 4096, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def image(pixels: np.ndarray, **elements: Any) -> Dataset:
    """A CT slice of pixels [rows, columns], [rows, columns, 3] or [frames, rows, columns]; None deletes an element."""
    data = Dataset()
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    size = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.SOPClassUID = uid.CTImageStorage
    data.SOPInstanceUID, data.SeriesInstanceUID = uid.generate_uid(), "1.2.3"
    data.StudyInstanceUID, data.PatientID, data.PatientName = "1.2", "secret-id", "Secret^Name"
    data.Modality, data.InstanceNumber = "CT", 1
    data.Rows, data.Columns = size
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    frames = pixels.ndim - (3 if colour else 2)
    if frames:
        data.NumberOfFrames = pixels.shape[0]
    raw = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    data.add_new("PixelData", "OB" if bits == 8 else "OW", raw + bytes(len(raw) % 2))
    change(data, elements)
    return data


def change(data: Dataset, elements: dict[str, Any]) -> Dataset:
    for keyword, value in elements.items():
        if value is None:
            data.pop(keyword, None)
        else:
            setattr(data, keyword, value)
    if elements.get("BitsStored") and "HighBit" not in elements:
        data.HighBit = data.BitsStored - 1
    return data


def placed(pixels: np.ndarray, depth: float, **elements: Any) -> Dataset:
    """An axial slice of 0.5 x 0.7 mm pixels at a depth in mm."""
    place = {"ImagePositionPatient": [-10, -20, depth], "ImageOrientationPatient": list(AXIAL)}
    hu = {"PixelSpacing": [0.5, 0.7], "RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12}
    return image(pixels, **{**place, **hu, **elements})


def save(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, depths: Iterable[float], size: tuple[int, int] = (8, 6), **elements: Any) -> np.ndarray:
    """A series of slices, a file each in the order given: the stored pixels [slices, rows, columns].

    A tuple among the elements has a value a slice.
    """
    depths = list(depths)
    stored = noise(len(depths), *size)
    for number, depth in enumerate(depths):
        mine = {name: value[number] if isinstance(value, tuple) else value for name, value in elements.items()}
        save(placed(stored[number], depth, **{"InstanceNumber": number + 1, **mine}), folder / f"{number:03d}.dcm")
    return stored


def enhanced(pixels: np.ndarray, groups: Sequence[Dataset], shared: Dataset, **elements: Any) -> Dataset:
    """A multi-frame image [frames, rows, columns] with functional groups."""
    data = image(pixels, SOPClassUID=uid.EnhancedMRImageStorage, Modality="MR", **elements)
    data.PerFrameFunctionalGroupsSequence = Items(groups)
    data.SharedFunctionalGroupsSequence = Items([shared])
    return data


def group(**sequences: dict[str, Any]) -> Dataset:
    """A functional group: the elements of a single item for each sequence."""
    found = Dataset()
    for name, elements in sequences.items():
        setattr(found, name, Items([change(Dataset(), elements)]))
    return found
