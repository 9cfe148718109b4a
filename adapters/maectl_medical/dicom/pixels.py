"""The pixels of what `assemble` found."""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

from maectl.adapter import Pixels, Window
from maectl.errors import Unreadable
from maectl_medical.dicom import tables
from maectl_medical.dicom.codecs import NATIVE, decode, name_of, plugin
from maectl_medical.dicom.fragments import fragments, frame_bytes
from maectl_medical.dicom.header import PIXEL_TAGS, Damaged, Header, number, parse, text, whole
from maectl_medical.dicom.image import Form, bytes_of, lowest_highest
from maectl_medical.dicom.values import unused_bits_cleared

__all__ = ["load"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_SIGN_CORRECTED = (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes)  # by pydicom, from what the codestream says


def load(
    files: tuple[str, ...], key: dict[str, Any], shape: tuple[int, ...], dtype: str, window: Window | None
) -> Pixels:
    """Values [C, *window] of an image of ``shape`` [C, *S] and ``dtype``, and where they are valid.

    Padding (PixelPaddingValue, also a range) and what is not finite is invalid. Only the files and frames of the
    window are read; windows for display are not applied. Raises `Unreadable`.
    """
    try:
        return _load(files, key, shape, dtype, window)
    except Damaged as error:
        raise Unreadable(f"damaged DICOM: {error}") from error
    except FileNotFoundError as error:
        raise Unreadable("the file is gone") from error
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise Unreadable(f"{' x '.join(map(str, shape[1:]))} pixels need more memory than there is") from error


def _load(
    files: tuple[str, ...], key: dict[str, Any], shape: tuple[int, ...], dtype: str, window: Window | None
) -> Pixels:
    box = window if window is not None else tuple(slice(0, length) for length in shape[1:])
    deep = len(shape) == 4
    wanted = range(*box[0].indices(shape[1])) if deep else range(1)
    size = tuple(each.stop - each.start for each in box)
    values = np.empty((shape[0], *size), dtype)
    valid: Mask | None = None
    frames = key.get("frames")
    by_file: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for place, depth in enumerate(wanted):
        file, frame = frames[depth] if frames else (0, depth) if key.get("single") else (depth, 0)
        by_file[file].append((frame, place, depth))
    for file, members in by_file.items():
        with open(files[file], "rb") as opened:
            header = parse(opened, PIXEL_TAGS)
            reader = _Reader(header, key, file, (shape[-2], shape[-1]), dtype)
            for frame, place, depth in members:
                part, mask = reader.read(frame, depth, (box[-2], box[-1]))
                values[(slice(None), place) if deep else slice(None)] = part
                if not mask.all():
                    valid = np.ones(size, np.bool_) if valid is None else valid
                    valid[place if deep else ...] = mask
    return Pixels(values, valid)


class _Reader:
    """The frames of one open file as values of the image."""

    def __init__(self, header: Header, key: dict[str, Any], file: int, size: tuple[int, int], dtype: str) -> None:
        self.header, self.key, self.dtype = header, key, dtype
        samples, allocated, widest, signed, photometric, element = key["form"]
        self.widest: Form = (samples, allocated, widest, signed, photometric, element)
        stored = key["bits"][file] if "bits" in key else widest
        self.form: Form = (samples, allocated, stored, signed, photometric, element)
        self.options = _options(header, self.form, size)
        self.parts = [] if header.syntax in NATIVE else fragments(header)
        self.palette = tables.palette(header.data) if photometric == "PALETTE COLOR" else None
        self.table = tables.modality_table(header.data) if photometric.startswith("MONO") else None
        self.padding = _padding(header.data, self.form) if photometric.startswith("MONO") else None

    def read(self, frame: int, depth: int, box: tuple[slice, slice]) -> tuple[Array, Mask]:
        """Values [C, h, w] of a frame, which is slice ``depth`` of the image, and where they are valid [h, w]."""
        stored = self._stored(frame)[box]
        mask = ~self._padded(stored) if self.padding else np.ones(stored.shape[:2], np.bool_)
        if self.form[5] == "PixelData" and self.header.syntax not in _SIGN_CORRECTED:
            stored = unused_bits_cleared(stored, self.form[2])
            mask &= ~self._padded(stored) if self.padding else True
        if stored.dtype.kind == "f":
            mask &= np.isfinite(stored)
        if self.palette is not None:
            stored = tables.apply(stored, self.palette)
        if stored.ndim == 3:
            return np.moveaxis(self._cast(stored, mask[..., None]), -1, 0), mask
        wide = self._rescaled(stored, depth)
        if self.dtype == "int16" and self.key.get("hu"):  # what no HU can be is filling that no header tells of
            mask &= (wide >= np.iinfo(np.int16).min) & (wide <= np.iinfo(np.int16).max)
        values = self._cast(wide, mask)
        return values[None], mask & np.isfinite(values) if values.dtype.kind == "f" else mask

    def _stored(self, frame: int) -> Array:
        """A frame as it is stored: [rows, columns] or [rows, columns, 3]."""
        rows, columns, samples = (self.options[name] for name in ("rows", "columns", "samples_per_pixel"))
        if not 0 <= frame < self.options["number_of_frames"]:
            raise Damaged("it has fewer frames than at the scan: changed since?")
        promised = min(self.header.length or 0, self.header.rest)
        if self.header.syntax in NATIVE and promised < bytes_of(rows, columns, self.form, frame + 1):
            raise Damaged("truncated: its pixel data end early")
        try:
            count = self.options["number_of_frames"]
            native = self.header.syntax in NATIVE
            source = self.header.file if native else frame_bytes(self.header, self.parts, frame, count)
            stored, photometric = decode(source, self.options, frame)
        except (Damaged, MemoryError):
            raise
        except Exception as error:  # decoders raise errors of any class on damaged pixels
            name = name_of(self.header.syntax)
            raise Damaged(f"frame {frame + 1} cannot be decoded ({name}): truncated or damaged") from error
        if stored.shape != ((rows, columns, 3) if samples == 3 else (rows, columns)):
            raise Damaged(f"its frames decode to {' x '.join(map(str, stored.shape))}, not {rows} x {columns}")
        if samples == 3 and photometric != "RGB":
            raise Damaged("its colours do not decode to red, green and blue")
        wanted = "ui"[self.form[3]] if self.form[5] == "PixelData" else "f"
        if stored.dtype.kind != wanted:
            raise Damaged("its pixels decode to another kind of number than its header says")
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)

    def _padded(self, stored: Array) -> Mask:
        low, high = self.padding or (0, 0)
        padded: Mask = (stored >= low) & (stored <= high)
        return padded

    def _rescaled(self, stored: Array, depth: int) -> Array:
        """Values of grey pixels, int64 or float64."""
        inverted, (low, high) = self.key.get("inverted", False), lowest_highest(self.widest)
        if self.table is not None:
            entries = tables.apply(stored, self.table).astype(np.int64)
            return sum(tables.span_of(self.header.data, self.table)) - entries if inverted else entries
        wide = stored.astype(np.float64 if stored.dtype.kind == "f" else np.int64)
        if inverted:
            wide = low + high - wide
        rescales = self.key.get("rescales")
        slope, intercept = rescales[depth] if rescales else self.key.get("rescale", (1.0, 0.0))
        if self.dtype != "float32":
            return wide + int(intercept)
        return wide * float(slope) + float(intercept)

    def _cast(self, values: Array, mask: Mask) -> Array:
        """Values in the image's dtype; what does not fit is an error, but where it is invalid anyway."""
        if self.dtype == "float32":
            with np.errstate(over="ignore"):  # what becomes infinite is invalid
                return values.astype(np.float32)
        low, high = np.iinfo(self.dtype).min, np.iinfo(self.dtype).max
        if (((values < low) | (values > high)) & mask).any():
            raise Damaged("its pixels hold values that its header says cannot be")
        clipped: Array = np.clip(values, low, high).astype(self.dtype)
        return clipped


def _options(header: Header, form: Form, size: tuple[int, int]) -> dict[str, Any]:
    """What pydicom's decoders want to know; raises `Damaged` where a header is not what it was at the scan."""
    data, (samples, allocated, stored, signed, photometric, element) = header.data, form
    now: list[Any] = [whole(data, name) for name in ("Rows", "Columns", "BitsAllocated")]
    now += [whole(data, "SamplesPerPixel") or 1, text(data, "PhotometricInterpretation").upper(), header.element]
    if now != [*size, allocated, samples, photometric, element]:
        raise Damaged("its header is not what it was at the scan: changed since?")
    if element == "PixelData" and (whole(data, "BitsStored"), whole(data, "PixelRepresentation")) != (stored, signed):
        raise Damaged("its header is not what it was at the scan: changed since?")
    if plugin(header.syntax) is None or (header.syntax in NATIVE) == (header.length is None):
        raise Damaged("its transfer syntax is not what it was at the scan: changed since?")
    options: dict[str, Any] = {
        "transfer_syntax_uid": UID(header.syntax),
        "rows": size[0],
        "columns": size[1],
        "samples_per_pixel": samples,
        "photometric_interpretation": photometric,
        "number_of_frames": whole(data, "NumberOfFrames") or 1,
        "bits_allocated": allocated,
        "pixel_keyword": element,
        "pixel_vr": header.vr,
    }
    if element == "PixelData":
        options |= {"bits_stored": stored, "pixel_representation": signed}
    if samples > 1:
        options["planar_configuration"] = whole(data, "PlanarConfiguration") or 0
    return options


def _padding(data: Dataset, form: Form) -> tuple[float, float] | None:
    """The stored values, from and to, that are no pixels (PS3.3 C.7.5.1.1.2); None where there are none."""
    prefix = {"PixelData": "", "FloatPixelData": "Float", "DoubleFloatPixelData": "DoubleFloat"}[form[5]]
    first = number(data, f"{prefix}PixelPaddingValue")
    if first is None:
        return None
    last = number(data, f"{prefix}PixelPaddingRangeLimit")
    ends = [each for each in (first, last) if each is not None]
    if form[5] == "PixelData":  # it may be written unsigned where pixels are signed, and the reverse
        ends = [_wrapped(int(each), form[1], form[3]) for each in ends]
    return min(ends), max(ends)


def _wrapped(value: int, bits: int, signed: int) -> int:
    low = value & ((1 << bits) - 1)
    return low - (1 << bits) if signed and low >> (bits - 1) else low
