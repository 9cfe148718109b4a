"""Pillow, opened format by format and decoded without loss, noise or global limits.

The format classes are used directly instead of ``Image.open``: the file's content decides, and Pillow's
process-wide limit on pixels (first a warning, then an error) does not come before our own.
"""

import ctypes
import logging
import re
import sys
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from maectl_natural.headers import Damaged, Header, orientation

__all__ = ["Array", "Raster", "decode", "header"]

Array = npt.NDArray[Any]

_CLASSES: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "gif": GifImagePlugin.GifImageFile,
}
_BITS, _PHOTOMETRIC, _PLANAR, _EXTRA, _FORMAT = 258, 262, 284, 338, 339  # TIFF tags
_NATIVE = "L" if sys.byteorder == "little" else "B"  # byte order, in Pillow's raw modes
# libtiff hands on pixels in the machine's byte order; Pillow still swaps these by the file's
_NATIVE_RAW = {
    **dict.fromkeys(("I;16S", "I;16BS"), "I;16NS"),
    **dict.fromkeys(("I;32S", "I;32BS"), "I;32NS"),
    **dict.fromkeys(("F;32F", "F;32BF"), "F;32NF"),
}
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(frozen=True, slots=True)
class Raster:
    """Stored pixels: ``values`` [H, W, C] and ``alpha`` [H, W] of the same dtype, 0 where transparent."""

    values: Array
    alpha: Array | None = None


def _hush_libtiff() -> None:
    """Stop libtiff from printing on the terminal: its errors reach us as Pillow's exceptions.

    The symbols are looked up through Pillow's own extension module, so that this is Pillow's copy of the
    library, wherever it lies. Where it is linked statically without symbols there is nothing to do.
    """
    library = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if hasattr(library, name):
            handler = getattr(library, name)
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)


_hush_libtiff()
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _open(kind: str, file: BinaryIO) -> ImageFile.ImageFile:
    # Pillow warns of odd metadata. `catch_warnings` is not safe among threads, so one filter on Pillow's
    # own modules is put in place, and again where someone has reset the filters.
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    return _CLASSES[kind](file)


def header(kind: str, file: BinaryIO) -> Header:
    """The header of an open file of a known kind; raises `Damaged`, or whatever Pillow raises."""
    try:
        image = _open(kind, file)
    except SyntaxError as error:
        if str(error) == "unknown pixel mode":
            raise Damaged("its bit depth or number of bands is not supported: try the adapter 'satellite'") from error
        raise
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return Header(kind, _tiff_mode(image), *image.size)  # Pillow orients a TIFF itself
    exif: bytes = image.info.get("exif", b"")
    return Header(kind, image.mode, *image.size, orientation(exif.removeprefix(b"Exif\0\0")))


def _tiff_mode(image: TiffImagePlugin.TiffImageFile) -> str:
    tags = image.tag_v2
    if 0 in tags.get(_EXTRA, ()):
        raise Damaged("it has bands besides its colours: use the adapter 'satellite'")
    if image.mode == "LAB":
        raise Damaged("LAB colour is not supported: convert it to RGB")
    deep = max(tags.get(_BITS, (1,))) > 8
    if deep and image.mode in ("RGB", "RGBA", "CMYK"):
        if tags.get(_PLANAR, 1) == 2:
            raise Damaged("16-bit colour in separate planes is not supported: convert it to interleaved")
        return f"{image.mode};16"
    signed, bits = tags.get(_FORMAT, (1,))[0] == 2, tags.get(_BITS, (1,))[0]
    if image.mode == "L" and signed:
        return "L;S"
    if image.mode == "I":
        return "I;16S" if bits == 16 else "I" if signed else "I;32U"
    return "I;16" if image.mode == "I;16B" else image.mode


def decode(kind: str, mode: str, file: BinaryIO) -> Raster:
    """All pixels of an open file, as stored (a TIFF oriented); raises whatever Pillow raises.

    Palettes become their colours, bits and other grey below 8 bits 0..255, 32-bit integers float32 (exact
    up to 16,777,216).
    """
    if mode.endswith(";16") and mode != "I;16":
        return _decode_deep(kind, mode, file)
    image = _open(kind, file)
    if mode in ("P", "PA"):
        clear = mode == "PA" or "transparency" in image.info
        return _split(np.asarray(image.convert("RGBA" if clear else "RGB")))
    if mode in ("YCbCr", "La", "RGBa", "RGBX"):
        return _split(np.asarray(image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB"))))
    if image.tile and image.tile[0][0] == "libtiff":
        _with_raw_mode(image, _NATIVE_RAW.get(_raw_mode(image), _raw_mode(image)))
    key = _colour_key(image)
    inverted = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
    values = np.asarray(image)
    if mode == "1":
        values = values.astype(np.uint8) * np.uint8(255)
    elif mode == "I;16":
        values = values.astype(np.uint16)
        values = ~values if inverted else values  # white is zero: Pillow inverts only 8 bits
    elif mode in ("L;S", "I;16S"):
        values = (values.view(np.int8) if mode == "L;S" else values).astype(np.int16)
    elif mode in ("I", "I;32U"):
        values = values.view(np.uint32 if mode == "I;32U" else np.int32).astype(np.float32)
    return _split(values, mode.startswith("CMYK"), key)


def _decode_deep(kind: str, mode: str, file: BinaryIO) -> Raster:
    """16 bits a channel, of which Pillow keeps 8: decode twice, once for the high bytes, once for the low.

    Pillow unpacks 16-bit colour by a raw mode that names the byte order and takes the high byte; told the
    other order it takes the low one. Grey with alpha is read as if it were four 8-bit channels.
    """
    if mode == "LA;16":
        pairs = np.asarray(_with_raw_mode(_open(kind, file), "RGBA")).astype(np.uint16)
        return _split(pairs[..., 0::2] << 8 | pairs[..., 1::2])
    image = _open(kind, file)
    raw = _raw_mode(image)
    high = _NATIVE if raw[-1] == "N" else raw[-1]
    straight = raw[:-1].replace("RGBa", "RGBA")
    key = _colour_key(image)
    values = np.asarray(_with_raw_mode(image, straight + high)).astype(np.uint16) << 8
    file.seek(0)
    values |= np.asarray(_with_raw_mode(_open(kind, file), straight + ("B" if high == "L" else "L")))
    if "RGBa" in raw:  # colours stored multiplied by alpha
        alpha = np.maximum(values[..., 3:].astype(np.uint32), 1)
        values[..., :3] = np.minimum((values[..., :3] * np.uint32(65535) + alpha // 2) // alpha, 65535)
    return _split(values, mode == "CMYK;16", key)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    arguments = image.tile[0].args if image.tile else None
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _with_raw_mode(image: ImageFile.ImageFile, raw: str) -> ImageFile.ImageFile:
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
    ]
    return image


def _colour_key(image: ImageFile.ImageFile) -> Array | None:
    """The one colour or grey [C] that is transparent, in the values `decode` returns."""
    key = image.info.get("transparency")
    if key is None or isinstance(key, bytes):
        return None
    stretch = {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)
    return np.atleast_1d(key) * stretch


def _split(values: Array, cmyk: bool = False, key: Array | None = None) -> Raster:
    values = values[..., None] if values.ndim == 2 else values
    if cmyk:
        return Raster(values)
    if values.shape[-1] in (2, 4):
        return Raster(values[..., :-1], values[..., -1])
    if key is None:
        return Raster(values)
    opaque = (values != key).any(-1)
    return Raster(values, opaque.astype(values.dtype) * np.iinfo(values.dtype).max)
