"""DICOM objects that hold no image of a patient, or one that is not kept as an image."""

from pydicom import uid
from pydicom.tag import Tag

from maectl_medical.dicom.header import Header, text, texts

__all__ = ["kind_without_image"]

# parts of the names of storage classes, PS3.4 B.5, before those they are part of
_BY_CLASS = (
    ("Surface Segmentation", "a surface segmentation (SEG)"),
    ("Segmentation", "a segmentation (SEG)"),
    (" SR", "a structured report (SR)"),
    ("Key Object Selection", "a list of key images (KO)"),
    ("Presentation State", "a presentation state (PR)"),
    ("RT Structure Set", "contours for radiotherapy (RTSTRUCT)"),
    ("RT Dose", "a dose distribution of radiotherapy (RTDOSE)"),
    ("RT Plan", "a plan of radiotherapy (RTPLAN)"),
    ("RT Ion Plan", "a plan of radiotherapy (RTPLAN)"),
    ("Encapsulated", "a document wrapped in DICOM"),
    ("Waveform", "a waveform"),
    ("ECG", "a waveform"),
    ("Audio", "a sound"),
    ("Raw Data", "raw data"),
    ("Spectroscopy", "a spectrum"),
    ("Registration", "a registration"),
    ("Fiducials", "a list of landmarks"),
    ("Real World Value Mapping", "a mapping of values"),
    ("Color Palette", "a palette"),
    ("Whole Slide Microscopy", "a whole-slide image: many tiles of one large picture"),
    ("Video", "a video"),
)
_BY_MODALITY = {
    "SEG": "a segmentation (SEG)",
    "SR": "a structured report (SR)",
    "KO": "a list of key images (KO)",
    "PR": "a presentation state (PR)",
    "RTSTRUCT": "contours for radiotherapy (RTSTRUCT)",
    "RTDOSE": "a dose distribution of radiotherapy (RTDOSE)",
    "RTPLAN": "a plan of radiotherapy (RTPLAN)",
    "RTRECORD": "a record of radiotherapy",
    "DOC": "a document wrapped in DICOM",
    "ECG": "a waveform",
    "REG": "a registration",
}
_MOST_TILES = 1024  # slices in a mosaic; a number beyond is none, and might be somebody's
_MOSAIC_COUNT = Tag(0x0019, 0x100A)


def kind_without_image(header: Header) -> str | None:
    """Why an object is no image, "" for what a scan passes over (DICOMDIR), None for an image."""
    data = header.data
    storage = uid.UID(text(data, "SOPClassUID") or text(data.file_meta, "MediaStorageSOPClassUID"))
    if storage == uid.MediaStorageDirectoryStorage or "DirectoryRecordSequence" in data:
        return ""
    name = storage.name if storage != str(storage.name) else ""
    kind = next((told for part, told in _BY_CLASS if part in name), None)
    kind = kind or _BY_MODALITY.get(text(data, "Modality").upper())
    if kind:
        return f"{kind}, not an image"
    if not header.element:
        return "no pixel data: an object that holds no image, or a file cut short"
    if "MOSAIC" in map(str.upper, texts(data, "ImageType")):
        return _mosaic(header)
    return None


def _mosaic(header: Header) -> str:
    """Siemens' mosaic: (0019,100A) is NumberOfImagesInMosaic where SIEMENS MR HEADER owns the block."""
    try:
        count = int(header.data[_MOSAIC_COUNT].value)
        siemens = "SIEMENS" in str(header.data[0x0019, 0x0010].value).upper()
    except Exception:  # no such element, or one that is no number; pydicom raises errors of many classes
        count, siemens = 0, False
    slices = f"{count} slices" if siemens and 0 < count <= _MOST_TILES else "many slices"
    return f"a Siemens mosaic, {slices} tiled in one picture: convert it to single slices or NIfTI (dcm2niix)"
