"""Markers that stand for personal text, studies full of them, and a search through files, whatever they are packed in.

Two sorts of markers: what stands in headers, and what stands in names of files and folders. Headers also have days,
times and long numbers of their own, where text is not allowed.
"""

import contextlib
import gzip
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pydicom
from nibabel.nifti1 import Nifti1DicomExtension, Nifti1Extension
from PIL import Image
from pydicom import uid
from pydicom.datadict import DicomDictionary, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

HEADER, HEADER_ACCENTED = "ZQXJVK", "ÄQXJÖÜ"
NAME, NAME_ACCENTED = "WQXJPF", "ÑQXJÕÃ"
NUMBER = "8317462905"  # begins the last part of UIDs, decimals and integers
TIME = "235947.8"
YEAR = "1842"
KNOWN = {
    ".arrow", ".csv", ".dcm", ".gz", ".json", ".jsonl", ".nii", ".parquet", ".pixels", ".png", ".safetensors",
    ".tfevents", ".yaml",
}  # fmt: skip
"""Suffixes of what is searched; each has a positive control."""

_SHARED = b"qxj"  # all text markers hold it, in every spelling: a file without it is done with
_DIGITS = re.compile(f"{NUMBER}|{re.escape(TIME)}".encode())
_DAY = re.compile(rb"(?<![\d.])1842(-?)[01]\d\1[0-3]\d(?!\d)")
_DAY_WIDE = re.compile(rb"1\x008\x004\x002\x00(-\x00)?[01]\x00\d\x00(-\x00)?[0-3]\x00\d")
_DEEPEST = 6  # containers within containers


def _spellings(text: str) -> set[bytes]:
    """A marker in lower case as UTF-8, Latin-1 (of which UTF-16 is every other byte) and escaped in JSON or Python."""
    found = set()
    for accents in (text, text.swapcase()):  # letters of ASCII are made small in what is searched, accents are not
        small = "".join(each.lower() if each.isascii() else each for each in accents)
        found |= {small.encode(), small.encode("latin-1")}
        if not small[0].isascii():
            code = ord(small[0])
            codes = {f"u00{code:02x}", f"\\x{code:02x}", f"udc{code:02x}", f"udc{small[0].encode()[-1]:02x}"}
            found |= {f"{code}qxj".encode() for code in codes}
    return found


_SPELLINGS = {
    "header": {each for text in (HEADER, HEADER_ACCENTED) for each in _spellings(text)},
    "name": {each for text in (NAME, NAME_ACCENTED) for each in _spellings(text)},
}


def leaks(data: bytes) -> dict[str, set[str]]:
    """Markers of headers ("header") and of names ("name") in a file's bytes and in all that is packed in them."""
    found: dict[str, set[str]] = {"header": set(), "name": set()}
    for where, inside in unpacked(data):
        for kind, label in _markers(inside):
            found[kind].add(f"{where}: {label}" if where else label)
    return found


def _markers(data: bytes) -> Iterator[tuple[str, str]]:
    """What is in the bytes as they are, in UTF-8, Latin-1, UTF-16 of either order, or escaped."""
    yield from (("header", f"day {match.group()!r}") for match in _days(data))
    for view in (data, data[::2], data[1::2]):  # every other byte of UTF-16 is Latin-1
        small = view.lower()
        for match in _DIGITS.finditer(small):
            yield "header", _label(small, match.start())
        at = small.find(_SHARED)
        while at >= 0:
            around = small[max(0, at - 12) : at + 16]
            for kind, wanted in _SPELLINGS.items():
                if any(each in around for each in wanted):
                    yield kind, _label(small, at)
            at = small.find(_SHARED, at + 1)


def _days(data: bytes) -> Iterator[re.Match[bytes]]:
    if YEAR.encode() in data:
        yield from _DAY.finditer(data)
    if "\0".join(YEAR).encode() in data:
        yield from _DAY_WIDE.finditer(data)


def _label(view: bytes, at: int) -> str:
    return re.sub(r"[^\w.\\%-]+", " ", view[max(0, at - 6) : at + 24].decode("latin-1")).strip()


def unpacked(data: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """The bytes, and all that is packed in them, each with a word for where it was."""
    yield "", data
    if depth == _DEEPEST:
        return
    for where, inside in _inside(data):
        for further, each in unpacked(inside, depth + 1):
            yield f"{where}{' > ' if further else ''}{further}", each


def _inside(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield from _streams(data)
    yield from _pictures(data)
    if data[:6] == b"ARROW1":
        yield from _table(pa.ipc.open_file(pa.BufferReader(data)).read_all())
    if data[:4] == b"PAR1":
        yield from _table(pyarrow.parquet.read_table(pa.BufferReader(data)))
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from ((f"zip {name}", archive.read(name)) for name in archive.namelist())
    if data[128:132] == b"DICM":
        yield from _dicom(data)


def _streams(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every gzip stream, wherever it begins, as far as it goes."""
    at = data.find(b"\x1f\x8b\x08")
    while at >= 0:
        yield "gzip", _inflated(data[at:], 31)
        at = data.find(b"\x1f\x8b\x08", at + 1)


def _inflated(data: bytes, window: int) -> bytes:
    machine, whole = zlib.decompressobj(window), b""
    try:
        for at in range(0, len(data), 1 << 14):
            whole += machine.decompress(data[at : at + (1 << 14)])
    except zlib.error:  # damaged, or no stream at all: what came before counts
        pass
    return whole


def _pictures(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Of every PNG, wherever it begins: chunks inflated, and pixels."""
    at = data.find(b"\x89PNG\r\n\x1a\n")
    while at >= 0:
        place, kind, lines = at + 8, b"", b""
        while kind != b"IEND" and place + 12 <= len(data):
            length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
            chunk = data[place + 8 : place + 8 + length]
            place += 12 + length
            if kind == b"IDAT":
                lines += chunk
                continue
            for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", chunk):
                yield f"PNG {kind.decode('latin-1')}", _inflated(chunk[start.start() :], 15)
        yield "PNG IDAT", _inflated(lines, 15)
        with Image.open(io.BytesIO(data[at:place])) as picture:
            yield "PNG pixels", picture.tobytes()
        at = data.find(b"\x89PNG\r\n\x1a\n", place)


def _table(table: pa.Table) -> Iterator[tuple[str, bytes]]:
    """Every value of an Arrow or Parquet file, whose buffers may be compressed, and its schema."""
    schema = dict(table.schema.metadata or {})
    yield "Arrow schema", b"\n".join(b"%s=%s" % pair for pair in schema.items()) + str(table.schema).encode()
    for name in table.column_names:
        column = table.column(name)
        for value in column.to_pylist():
            yield f"Arrow {name}", b"\n".join(_plain(value))


def _plain(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _plain(each)
    elif value is not None:
        yield str(value).encode("utf-8", "surrogateescape")


def _dicom(data: bytes) -> Iterator[tuple[str, bytes]]:
    found = pydicom.dcmread(io.BytesIO(data), force=True)
    if found.file_meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        start = 144 + int.from_bytes(data[140:144], "little")
        yield "DICOM deflated", _inflated(data[start:], -15)
    yield from (("DICOM meta", value) for value in _values(found.file_meta))
    yield from (("DICOM", value) for value in _values(found))
    if "PixelData" in found:
        if found.file_meta.TransferSyntaxUID.is_encapsulated:
            yield from (("DICOM fragment", each) for each in pydicom.encaps.generate_fragments(found.PixelData))
        with contextlib.suppress(Exception):  # decoders raise errors of any class on damaged pixels
            yield "DICOM pixels", found.pixel_array.tobytes()


def _values(data: Dataset) -> Iterator[bytes]:
    for element in data.iterall():
        if element.VR != "SQ":
            yield element.value if isinstance(element.value, bytes) else str(element.value).encode()


def written(root: Path) -> dict[Path, bytes]:
    """Every file below a folder, hidden ones too, by its relative path."""
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# ---- studies full of markers ----------------------------------------------------------------------------------

LONG = ("OB", "OW", "SQ", "UC", "UN", "UR", "UT")  # value representations with lengths of 32 bits
TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
FREE = ("LO", "LT", "PN", "ST", "UC", "UT")  # long enough for two markers, and of the data set's character set
PLACES = "PixelSpacing SliceThickness SpacingBetweenSlices ImagePositionPatient ImageOrientationPatient"
MEANING = "SpecificCharacterSet SOPClassUID Modality PhotometricInterpretation NumberOfFrames"
SCALE = "RescaleSlope RescaleIntercept RescaleType"
TECHNICAL = {tag_for_keyword(keyword) for each in (PLACES, MEANING, SCALE) for keyword in each.split()}
"""What pixels and their places need; every other text of pydicom's dictionary is a marker."""
PIXELS = 0x7FE00010
ALL = range(4, 0x7FE0)  # groups of a data set, up to the pixels
FEW = (0x0008, 0x0010, 0x0020, 0x0028, 0x0032)  # where most that is personal is; thousands of elements take time
Elements = dict[int, tuple[str, bytes]]


def value(vr: str, tag: int, charset: str, number: int = 0) -> bytes:
    """A marker that fits a value representation and names its tag; ``number`` tells patients and slices apart."""
    if vr == "UI":
        return f"2.25.{NUMBER}{tag:010d}{number:04d}".encode()
    if vr in ("DS", "IS"):
        return f"{NUMBER}{tag % 97:02d}".encode()
    day = f"{YEAR}{1 + tag % 12:02d}{1 + tag % 28:02d}"
    if vr in ("DA", "DT", "TM"):
        return {"DA": day, "DT": f"{day}{TIME}{tag % 97:02d}", "TM": f"{TIME}{tag % 97:02d}"}[vr].encode()
    text = f"{HEADER}{tag:08X}"
    return f"{text}^{HEADER_ACCENTED} {number}".encode(charset) if vr in FREE else text.encode()


def encoded(elements: Elements, implicit: bool = False) -> bytes:
    """A data set, little-endian."""
    parts = []
    for tag, (vr, data) in sorted(elements.items()):
        data += (b" " if vr not in ("OB", "OW", "SQ", "UI", "UN") else b"\0") * (len(data) % 2)
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        length = 0xFFFFFFFF if (tag, vr) == (PIXELS, "OB") else len(data)  # compressed
        if implicit:
            head += struct.pack("<I", length)
        else:
            head += vr.encode() + (struct.pack("<HI", 0, length) if vr in LONG else struct.pack("<H", length))
        parts.append(head + data)
    return b"".join(parts)


def item(elements: Elements, implicit: bool = False) -> bytes:
    data = encoded(elements, implicit)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(data)) + data


def personal(charset: str, patient: int, implicit: bool = False, groups: range | tuple[int, ...] = ALL) -> Elements:
    """A marker in every text of the dictionary, of overlays and curves, of private blocks and nested sequences."""
    known = {tag: entry[0] for tag, entry in DicomDictionary.items() if tag >> 16 in groups}
    overlays = {0x60000022: "LO", 0x60001500: "LO", 0x50000022: "LO", 0x50002500: "LO", 0x002031AA: "CS"}
    elements = {
        tag: (vr, value(vr, tag, charset, patient)) for tag, vr in {**known, **overlays}.items()
        if vr in TEXTS and tag not in TECHNICAL
    }  # fmt: skip
    creators = {0x0009: f"{HEADER} CREATOR", 0x0019: "SIEMENS MR HEADER", 0x0029: "SIEMENS CSA HEADER",
                0x0043: "GEMS_PARM_01", 0x2001: "Philips Imaging DD 001"}  # fmt: skip
    for group, creator in creators.items():
        block = group << 16
        wide = f"{HEADER}PRIVATE {HEADER_ACCENTED}".encode("utf-16-le")
        inner = item({0x00100010: ("PN", value("PN", block, charset))}, implicit)
        elements |= {
            block + 0x10: ("LO", creator.encode()), block + 0x1001: ("LO", value("LO", block, charset)),
            block + 0x1002: ("UN", value("LO", block, charset)), block + 0x1003: ("OB", wide),
            block + 0x1004: ("UI", value("UI", block, charset)), block + 0x1005: ("SQ", inner),
        }  # fmt: skip
    elements[0x0019100A] = ("IS", f"{NUMBER}05".encode())  # slices of a mosaic
    elements[0x00511001] = ("LO", value("LO", 0x00511001, charset))  # of a block without a creator
    people = {tag: elements[tag] for tag in (0x00100010, 0x00100020, 0x00081155, 0x00080020, 0x00080050)}
    deep = {0x00081199: ("SQ", item(people, implicit)), **people}
    deeper = {0x00081115: ("SQ", item(deep, implicit)), **people}
    for keyword in ("ReferencedStudySequence", "RequestAttributesSequence", "OtherPatientIDsSequence"):
        elements[tag_for_keyword(keyword)] = ("SQ", item(deeper, implicit) + item(people, implicit))
    elements[0xFFFCFFFC] = ("OB", value("LO", 0xFFFCFFFC, charset))  # behind the pixels
    return elements


def technical(pixels: np.ndarray, depth: float, charset: str) -> Elements:
    """A CT slice of stored pixels [rows, columns], in HU after adding -1024."""
    short = {0x00280002: 1, 0x00280010: pixels.shape[0], 0x00280011: pixels.shape[1], 0x00280100: 16, 0x00280101: 12,
             0x00280102: 11, 0x00280103: 0}  # fmt: skip
    texts = {0x00080016: ("UI", uid.CTImageStorage), 0x00080060: ("CS", "CT"), 0x00280004: ("CS", "MONOCHROME2"),
             0x00080005: ("CS", "ISO_IR 192" if charset == "utf-8" else "ISO_IR 100"), 0x00281052: ("DS", "-1024"),
             0x00281053: ("DS", "1"), 0x00281054: ("LO", "HU"), 0x00280030: ("DS", "1.5\\1.5"),
             0x00180050: ("DS", "3"), 0x00200032: ("DS", f"-20\\-30\\{depth:g}"),
             0x00200037: ("DS", "1\\0\\0\\0\\1\\0")}  # fmt: skip
    elements: Elements = {tag: ("US", struct.pack("<H", number)) for tag, number in short.items()}
    elements |= {tag: (vr, text.encode()) for tag, (vr, text) in texts.items()}
    return elements | {PIXELS: ("OW", pixels.astype("<u2").tobytes())}


def whole(elements: Elements, syntax: str = uid.ExplicitVRLittleEndian, plain: bool = False) -> bytes:
    """A DICOM file: a preamble, file meta information (with markers, unless ``plain``) and a data set."""
    meta: Elements = {} if plain else {
        tag: (vr, value(vr, tag, "latin-1")) for tag, (vr, *_) in DicomDictionary.items()
        if tag >> 16 == 2 and vr in ("AE", "LO", "OB", "SH", "UI", "UR")
    }  # fmt: skip
    meta |= {0x00020001: ("OB", b"\0\1"), 0x00020010: ("UI", str(syntax).encode())}
    group = encoded(meta)
    length = encoded({0x00020000: ("UL", struct.pack("<I", len(group)))})
    data = encoded(elements, syntax == uid.ImplicitVRLittleEndian)
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        machine = zlib.compressobj(wbits=-15)
        data = machine.compress(data) + machine.flush()
    preamble = b"" if plain else f"II*\0{HEADER} in the preamble".encode()
    return preamble.ljust(128, b"\0") + b"DICM" + length + group + data


def body(number: int, across: bool) -> np.ndarray:
    """Stored pixels [8, 32, 32] of lines across or down, above air."""
    place, row, column = np.mgrid[:8, :32, :32]
    rng = np.random.default_rng(number)
    waves = np.sin((row if across else column) * rng.uniform(0.5, 0.8) + rng.uniform(0, 6) + 0.2 * place)
    return (1024 + 300 * waves + rng.normal(0, 30, waves.shape)).astype(np.uint16)


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


SYNTAXES = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.RLELossless)


def series(
    folder: Path, patient: int, volume: np.ndarray, syntax: str | None = None, few: bool = True, **changes: bytes | None
) -> None:
    """A file each slice, the first and the last with every marker (unless ``few``).

    ``changes`` replace the values of elements, by keyword, or leave them out (None).
    """
    charset, syntax = ("utf-8", "latin-1")[patient % 2], syntax or SYNTAXES[patient % 4]
    for place, pixels in enumerate(volume):
        groups = ALL if not few and place in (0, len(volume) - 1) else FEW
        elements = personal(charset, patient, syntax == uid.ImplicitVRLittleEndian, groups)
        elements |= technical(pixels, 3.0 * place, charset)
        elements[0x00080018] = ("UI", value("UI", 0x00080018, charset, 100 * patient + place))
        if syntax == uid.RLELossless:
            frame = pydicom.pixels.encoders.RLELosslessEncoder.encode(pixels, **FORM)
            elements[PIXELS] = ("OB", encapsulate([frame]) + END)
        for keyword, changed in changes.items():
            elements.pop(tag_for_keyword(keyword), None)
            if changed is not None:
                elements[tag_for_keyword(keyword)] = (dictionary_VR(keyword).split()[0], changed)
        put(folder / f"{NAME}-{NAME_ACCENTED}-{place}.dcm", whole(elements, syntax))


FORM = {"rows": 32, "columns": 32, "samples_per_pixel": 1, "bits_allocated": 16, "bits_stored": 12,
        "number_of_frames": 1, "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2"}  # fmt: skip
END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def damaged(folder: Path) -> None:
    """DICOM files whose faults lie in elements that become reasons, or that pydicom's errors quote."""
    volume, text, digits = body(50, True)[:2], f"{HEADER}BAD {HEADER_ACCENTED}".encode(), f"{NUMBER}99".encode()
    faults: dict[str, dict[str, bytes | None]] = {
        "frames": {"NumberOfFrames": text}, "huge": {"NumberOfFrames": digits}, "rows": {"Rows": text},
        "bits": {"BitsAllocated": text}, "photometric": {"PhotometricInterpretation": text},
        "class": {"SOPClassUID": value("UI", 0x00080016, "utf-8")},
        "position": {"ImagePositionPatient": text}, "direction": {"ImageOrientationPatient": text},
        "spacing": {"PixelSpacing": digits + b"\\" + text}, "slope": {"RescaleSlope": text},
        "charset": {"SpecificCharacterSet": text},
        "thick": {"SliceThickness": text}, "missing": {"SeriesInstanceUID": None, "PatientID": None},
        "mosaic": {"ImageType": b"ORIGINAL\\MOSAIC\\" + text}, "short": {"PixelData": text},
        "report": {"SOPClassUID": uid.BasicTextSRStorage.encode()}, "state": {"Modality": b"PR"},
        "day": {"StudyDate": text, "StudyTime": text, "PatientBirthDate": text, "AcquisitionTime": text},
    }  # fmt: skip
    for number, (name, changes) in enumerate(faults.items(), 60):
        series(folder / f"{NAME}-{name}", number, volume, uid.ExplicitVRLittleEndian, **changes)
    compressed = (uid.JPEGLosslessSV1, uid.JPEG2000Lossless, uid.RLELossless, uid.JPEGBaseline8Bit)
    for number, syntax in enumerate(compressed, 90):
        undecodable(folder / f"{NAME}-codec-{number}", number, syntax)
    undecodable(folder / f"{NAME}-syntax", 94, value("UI", 0x00020010, "utf-8").decode())
    for number, stack in enumerate((text, digits)):  # two volumes of one series
        series(folder / f"{NAME}-stack-{number}", 97, volume, uid.ExplicitVRLittleEndian, StackID=stack)
    series(folder / f"{NAME}-gap", 98, body(98, True), uid.ExplicitVRLittleEndian, PatientName=text)
    (folder / f"{NAME}-gap" / f"{NAME}-{NAME_ACCENTED}-4.dcm").unlink()
    good = next((folder / f"{NAME}-day").iterdir()).read_bytes()
    for cut in (200, 900, 5000, len(good) - 1500):
        put(folder / f"{NAME}-cut-{cut}.dcm", good[:cut])
    put(folder / f"{NAME}-lying.dcm", good.replace(b"LO\x18\0", b"LO\xff\xff", 3))
    put(folder / f"{NAME}-text.dcm", text * 30)
    put(folder / f"{NAME}-empty.dcm", b"")
    put(folder / f"{NAME}-notes.txt", text)


def undecodable(folder: Path, number: int, syntax: str) -> None:
    """A volume with a marker for a codestream."""
    segment = f"{HEADER}CODESTREAM {HEADER_ACCENTED}".encode()
    stream = b"\xff\xd8\xff\xfe" + struct.pack(">H", 2 + len(segment)) + segment + 40 * segment + b"\xff\xd9"
    for place in range(2):
        elements = personal("utf-8", number, groups=FEW) | technical(body(number, True)[place], 3.0 * place, "utf-8")
        elements[0x00080018] = ("UI", value("UI", 0x00080018, "utf-8", 100 * number + place))
        elements[PIXELS] = ("OB", encapsulate([stream]) + END)
        put(folder / f"{NAME}-{place}.dcm", whole(elements, syntax))


def nifti(path: Path, volume: np.ndarray, kind: type = nibabel.Nifti1Image) -> None:
    """A NIfTI file with markers in every text of the header, in two extensions and in the gzip stream's own name."""
    image = kind(volume.transpose(2, 1, 0), np.diag([1.0, 1.0, 3.0, 1.0]))
    for name in ("descrip", "db_name", "aux_file", "intent_name", "data_type", "unused_str", "regular"):
        if name in image.header.structarr.dtype.names:
            image.header[name] = f"{HEADER}{name}".encode()[: image.header.structarr.dtype[name].itemsize]
    comment = f"{HEADER}COMMENT {HEADER_ACCENTED} {YEAR}0731".encode()
    person = pydicom.Dataset()
    person.PatientName, person.PatientID = f"{HEADER}^EXTENSION", f"{NUMBER}7"
    image.header.extensions += [Nifti1Extension("comment", comment), Nifti1DicomExtension(2, person)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".gz":
        nibabel.save(image, path)
        return
    with path.open("wb") as file, gzip.GzipFile(f"{HEADER}.nii", "wb", fileobj=file) as packed:
        packed.write(image.to_bytes())


def studies(root: Path) -> dict[str, Path]:
    """Folders of two classes: `dicom` and `nifti`, and `strays`, which do not fit what was trained on."""
    folders = {name: root / f"{NAME}-{NAME_ACCENTED}-{name}" for name in ("dicom", "nifti", "strays")}
    for number in range(8):
        kind, who = ("across", "down")[number % 2], f"sub-{NAME}{number}"
        volume = body(number, not number % 2)
        burned = {"BurnedInAnnotation": b"YES"} if number < 2 else {}
        series(folders["dicom"] / kind / who, number, volume, few=False, **burned)
        stem = folders["nifti"] / kind / who / f"{NAME}-{NAME_ACCENTED}"
        paired, second = number == 6, number == 7
        suffix = ".hdr" if paired else ".nii" if second else ".nii.gz"
        kinds = {(True, False): nibabel.Nifti1Pair, (False, True): nibabel.Nifti2Image}
        nifti(stem.with_name(stem.name + suffix), volume, kinds.get((paired, second), nibabel.Nifti1Image))
        put(stem.with_name(stem.name + ".json"), json.dumps({"PatientName": HEADER}).encode())
    damaged(folders["dicom"] / "across" / f"{NAME}-damaged")
    text = f"{HEADER}BROKEN {HEADER_ACCENTED}".encode()
    good = next(folders["nifti"].rglob("*.nii.gz")).read_bytes()
    plain = gzip.decompress(good)
    broken = {"cut.nii.gz": good[: len(good) // 2], "text.nii": text * 40, "text.nii.gz": gzip.compress(text * 40),
              "sizes.nii": plain[:40] + text[:16] + plain[56:], "type.nii": plain[:70] + text[:4] + plain[74:],
              "intent.nii": plain[:56] + text[:24] + plain[80:], "where.nii": plain[:108] + text[:8] + plain[116:],
              "short.nii": plain[:3000], "flip.nii.gz": good[:-300] + text + good[-200:],
              "alone.hdr": plain[:344] + b"ni1\0"}  # fmt: skip
    for name, data in broken.items():
        put(folders["nifti"] / "across" / f"{NAME}-damaged" / f"{NAME}-{name}", data)
    series(folders["strays"] / f"{NAME}-unit", 40, body(40, True), RescaleType=f"{HEADER} UNIT".encode())
    series(folders["strays"] / f"{NAME}-modality", 42, body(42, True), Modality=text)
    series(folders["strays"] / f"{NAME}-intercept", 43, body(43, True), RescaleIntercept=text)
    series(folders["strays"] / f"{NAME}-flat", 41, body(41, True)[:1])
    return folders
