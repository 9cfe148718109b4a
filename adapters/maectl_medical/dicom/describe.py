"""One DICOM file to an `Image`, from its header, or the reason why it is none."""

import os
from hashlib import blake2b
from typing import BinaryIO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from maectl.adapter import Reject
from maectl_medical.dicom.codecs import NATIVE, name_of, plugin
from maectl_medical.dicom.fragments import fragments
from maectl_medical.dicom.frames import frames_of, rescale_type
from maectl_medical.dicom.header import CLAIMING, Damaged, Header, items, looks_like, parse, text, texts, whole
from maectl_medical.dicom.image import MOST_FRAMES, Form, Frame, Image, bytes_of, lowest_highest
from maectl_medical.dicom.kinds import kind_without_image
from maectl_medical.dicom.tables import modality_table, palette, span_of

__all__ = ["MODALITIES", "describe"]

_MODALITIES = (
    "AR BI BMD CR CT CFM DG DMS DX ES FA FS GM HC IO IVOCT IVUS LEN LS MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV "
    "OSS OT PA PT PX RF RG RTIMAGE SC SM SMR SRF TG US VA VF XA XC"
)
MODALITIES = frozenset(_MODALITIES.split())
"""Codes of the modalities that take images, PS3.3 C.7.3.1.1.1."""

_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_PHYSICAL = ("CT", "MR", "PT", "NM")  # modalities whose 8-bit values are not shades
_MOST_BITS = 64  # a number of bits beyond is none, and might be somebody's


def describe(folder: str, path: str) -> Image | Reject | None:
    """What a file is; None where it is no DICOM file and does not claim to be one by .dcm or .dicom, or a DICOMDIR.

    No text of the header gets into a reason. Raises nothing.
    """
    claiming = path.lower().endswith(CLAIMING)
    try:
        with open(os.path.join(folder, path), "rb") as file:
            head = file.read(256)
            if not looks_like(path, head):
                reason = "no DICOM file in spite of its suffix" if head else "empty file"
                return Reject((path,), reason) if claiming else None
            return _describe(folder, path, file, sure=claiming or head[128:132] == b"DICM")
    except OSError as error:
        return Reject((path,), f"cannot be opened: {error.strerror}") if claiming else None
    except Damaged as error:
        return Reject((path,), str(error))
    except MemoryError:
        return Reject((path,), "its header needs more memory than there is")


def _describe(folder: str, path: str, file: BinaryIO, *, sure: bool) -> Image | None:
    """An image or what is passed over; ``sure`` where a file is DICOM by more than its first bytes."""
    try:
        header = parse(file)
    except Damaged:
        if sure:
            raise
        return None
    if not sure and "SOPClassUID" not in header.data:
        return None
    kind = kind_without_image(header)
    if kind == "":
        return None
    if kind is not None:
        raise Damaged(kind)
    data, syntax = header.data, header.syntax
    if plugin(syntax) is None:
        raise Damaged(
            f"its transfer syntax, {name_of(syntax)}, cannot be decoded here: convert it to an uncompressed one"
        )
    rows, columns = _size(data)
    form = _form(header)
    count = _count(data)
    _check_length(header, rows, columns, form, count)
    modality = text(data, "Modality").upper()
    frames, film, notes = frames_of(data, count)
    found = modality_table(data) if form[4] in _GREYS else None
    colours = palette(data)[1].dtype.itemsize * 8 if form[4] == "PALETTE COLOR" else 0
    plain = all(frame.rescale == (1, 0) for frame in frames)
    unit = _colour_unit(colours or form[2]) if form[4] not in _GREYS else _unit(data, modality, form, plain)
    group = _group(data)
    series, uid = _series(data, group, path)
    span = span_of(data, found) if found else (0, (1 << colours) - 1) if colours else _span(form)
    if form[4] in _GREYS:
        _check_slopes(frames, span)
    return Image(
        folder=folder,
        path=path,
        rows=rows,
        columns=columns,
        form=form,
        span=span,
        table=found is not None or bool(colours),
        frames=frames,
        film=film,
        unit=unit,
        series=series,
        uid=uid,
        instance=_hidden(text(data, "SOPInstanceUID")),
        group=group,
        facts=_facts(modality, syntax, form),
        notes=(*notes, *_notes(header, rows, columns, form, count)),
    )


def _size(data: Dataset) -> tuple[int, int]:
    rows, columns = whole(data, "Rows"), whole(data, "Columns")
    if rows is None or columns is None:
        raise Damaged(f"its header has no {'Rows' if rows is None else 'Columns'}")
    if rows <= 0 or columns <= 0:
        raise Damaged(f"{rows} rows x {columns} columns: no pixels")
    return rows, columns


def _form(header: Header) -> Form:
    data = header.data
    samples = whole(data, "SamplesPerPixel") or 1
    allocated = whole(data, "BitsAllocated")
    photometric = text(data, "PhotometricInterpretation").upper()
    if allocated is None:
        raise Damaged("its header has no BitsAllocated")
    if header.element != "PixelData":
        wanted = 32 if header.element == "FloatPixelData" else 64
        if allocated != wanted or samples != 1 or photometric != "MONOCHROME2":
            raise Damaged(f"floating point pixels are read as MONOCHROME2 of {wanted} bits, one sample a pixel, only")
        return samples, allocated, allocated, 1, photometric, header.element
    stored, signed = whole(data, "BitsStored"), whole(data, "PixelRepresentation")
    if stored is None or signed not in (0, 1):
        raise Damaged(f"its header has no valid {'BitsStored' if stored is None else 'PixelRepresentation'}")
    if allocated not in (1, 8, 16, 32) or not 1 <= stored <= allocated:
        possible = 1 <= stored <= _MOST_BITS and 1 <= allocated <= _MOST_BITS
        told = f"{stored} bits stored of {allocated} allocated" if possible else "an impossible number of bits"
        raise Damaged(f"{told}: only 1, 8, 16 or 32 are read")
    high = whole(data, "HighBit")
    if header.syntax in (*NATIVE, RLELossless) and high not in (None, stored - 1):
        told = f"bit {high}" if 0 <= high < _MOST_BITS else "an impossible bit"
        raise Damaged(f"its {stored} bits stored end with {told}, not {stored - 1}: only the lowest bits are read")
    known = _COLOURS if samples == 3 else (*_GREYS, "PALETTE COLOR") if samples == 1 else ()
    if photometric not in known:
        shown = photometric if photometric in (*_COLOURS, *_GREYS, *_RETIRED) else "an unknown colour space"
        told = f"{samples} samples" if 1 <= samples <= _MOST_BITS else "an impossible number of samples"
        raise Damaged(f"{told} a pixel in {shown or 'no colour space'} cannot be read")
    _check_colour(header, allocated, stored, signed, photometric)
    return samples, allocated, stored, signed, photometric, header.element


_RETIRED = ("PALETTE COLOR", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "HSV", "ARGB", "CMYK", "XYB")


def _check_colour(header: Header, allocated: int, stored: int, signed: int, photometric: str) -> None:
    if photometric in _GREYS:
        return
    if signed or allocated == 1 or (photometric == "PALETTE COLOR" and allocated > 16):
        raise Damaged(f"{photometric} of {'signed values' if signed else f'{allocated} bits'} cannot be read")
    if photometric.startswith("YBR") and (allocated, stored) != (8, 8) and "CT" not in photometric:
        raise Damaged(f"{photometric} of {stored} bits cannot be read: only of 8")
    if photometric in ("YBR_ICT", "YBR_RCT") and header.syntax in NATIVE:
        raise Damaged(f"{photometric} belongs to JPEG 2000, and its transfer syntax is {name_of(header.syntax)}")
    planar = whole(header.data, "PlanarConfiguration")
    if photometric != "PALETTE COLOR" and planar not in (0, 1):
        raise Damaged("its header has no valid PlanarConfiguration")


def _count(data: Dataset) -> int:
    if "NumberOfFrames" not in data:
        return 1
    count = whole(data, "NumberOfFrames")
    if count is None or not 0 < count <= MOST_FRAMES:
        raise Damaged("its number of frames is no number, or none that can be")
    return count


def _check_length(header: Header, rows: int, columns: int, form: Form, count: int) -> None:
    native = header.syntax in NATIVE
    if native and header.length is None:
        raise Damaged("its pixel data are compressed, and its transfer syntax says they are not")
    if not native and header.length is not None:
        raise Damaged(f"its pixel data are not in fragments as {name_of(header.syntax)} has them")
    if header.length is None:
        found = len(fragments(header))
        if found < count:
            raise Damaged(f"truncated: {found} of its {count} frames are there")
        return
    needed = bytes_of(rows, columns, form, count)
    there = min(header.length, header.rest)
    if there < needed:
        raise Damaged(f"truncated: {there:,} bytes of pixel data, where its header promises {needed:,}")


def _notes(header: Header, rows: int, columns: int, form: Form, count: int) -> tuple[str, ...]:
    notes = []
    if text(header.data, "BurnedInAnnotation").upper() == "YES":
        notes.append("text may be burned into the pixels (BurnedInAnnotation=YES)")
    if header.length is not None and header.length >= bytes_of(rows, columns, form, count + 1):
        notes.append("more pixel data than its header tells of: left out")
    return tuple(notes)


def _check_slopes(frames: tuple[Frame, ...], span: tuple[int, int] | None) -> None:
    """Reject what makes one value of all pixels: a slope of 0, or one too small for float32 to tell."""
    for slope, intercept in {frame.rescale for frame in frames if frame.rescale is not None}:
        ends = (0.0, slope) if span is None else (span[0] * slope + intercept, span[1] * slope + intercept)
        with np.errstate(over="ignore"):
            lowest, highest = np.array(ends).astype(np.float32)
        if lowest == highest:
            raise Damaged("its RescaleSlope is 0, or as good as: all its pixels would have one value")


def _span(form: Form) -> tuple[int, int] | None:
    return lowest_highest(form) if form[5] == "PixelData" and form[1] <= 16 else None


def _colour_unit(bits: int) -> str:
    return "0..255" if bits == 8 else "value"


def _unit(data: Dataset, modality: str, form: Form, plain: bool) -> str:
    """The unit of grey values; ``plain`` where no transform turns stored values into others."""
    if modality == "CT" and rescale_type(data) in ("", "HU") and not items(data, "ModalityLUTSequence"):
        return "value" if "LOCALIZER" in map(str.upper, texts(data, "ImageType")) else "HU"
    if modality == "PT" and text(data, "Units").upper() == "BQML":
        return "Bq/ml"
    shades = plain and form[1:4] == (8, 8, 0) and form[5] == "PixelData"
    return "0..255" if shades and modality not in _PHYSICAL else "value"


def _hidden(value: str) -> str:
    """A value that is only ever compared, so that the text itself does not travel; "" stays so."""
    return blake2b(value.encode("utf-8", "replace"), digest_size=16).hexdigest() if value else ""


def _series(data: Dataset, group: str, path: str) -> tuple[str, str]:
    """What slices of one series have in common, and their SeriesInstanceUID alone; both hidden.

    Anonymisers have given one UID to the series of all patients: it is never enough by itself.
    """
    uid, study = text(data, "SeriesInstanceUID"), text(data, "StudyInstanceUID")
    own = f"series {uid}" if uid else f"number {text(data, 'SeriesNumber')} in {os.path.dirname(path)}"
    return _hidden(f"{group} study {study} {own}"), _hidden(uid)


def _group(data: Dataset) -> str:
    person = text(data, "PatientID")
    if person:
        return _hidden(f"patient {person}")
    name, born = text(data, "PatientName"), text(data, "PatientBirthDate")
    if name.strip("^ "):
        return _hidden(f"name {name} {born}")
    study = text(data, "StudyInstanceUID")
    return _hidden(f"study {study}") if study else ""


def _facts(modality: str, syntax: str, form: Form) -> tuple[str, ...]:
    facts = [f"modality: {modality}"] if modality in MODALITIES else []
    facts += [f"transfer syntax: {name_of(syntax)}", f"photometric: {form[4]}", f"bits: {form[2]} of {form[1]}"]
    return tuple(facts)
