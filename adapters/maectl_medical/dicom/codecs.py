"""One decoder for each transfer syntax, so that pixels do not depend on what else is installed.

pylibjpeg-libjpeg is never used: it is GPL.
"""

from typing import Any, BinaryIO

import gdcm
import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from maectl_medical.dicom.codestream import checked
from maectl_medical.dicom.quiet import hush, hush_stderr

__all__ = ["NATIVE", "decode", "name_of", "plugin"]

NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
"""Transfer syntaxes whose pixels are not compressed frame by frame."""

_PLUGINS: dict[str, str] = {
    **dict.fromkeys(NATIVE, ""),
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "gdcm",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pylibjpeg",
}

_END = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000 codestreams alike

_NOISY = ("gdcm", "pylibjpeg")  # what prints on the terminal where a codestream is odd


def plugin(transfer_syntax_uid: str) -> str | None:
    """pydicom's name of the plug-in that decodes a transfer syntax: "" where none is needed, None if none can."""
    return _PLUGINS.get(transfer_syntax_uid)


def name_of(transfer_syntax_uid: str) -> str:
    """The name of a transfer syntax, or "an unknown one" (a UID may identify whoever made it)."""
    hush()
    known = uid.UID(transfer_syntax_uid)
    return known.name if not known.is_private and known.name != str(known) else "an unknown one"


def decode(source: BinaryIO | bytes, options: dict[str, Any], index: int) -> tuple[npt.NDArray[Any], str]:
    """Stored pixels [rows, columns] or [rows, columns, 3] of a frame, and their photometric interpretation.

    ``source`` is a file that stands at the value of an uncompressed pixel data element, or the bytes of one
    compressed frame; ``options`` are pydicom's decoder options. YBR comes out as RGB, subsampling and planes are
    undone, unused bits are kept. Raises whatever the decoders raise.
    """
    syntax = options["transfer_syntax_uid"]
    if not isinstance(source, bytes):
        return _decode(source, options, index)
    if syntax != uid.RLELossless and not source.rstrip(b"\0\xff").endswith(_END):
        raise ValueError("a codestream without an end")  # decoders would fill what is missing with grey
    if _PLUGINS[syntax] == "gdcm":
        source = checked(source, "extended" if syntax == uid.JPEGExtended12Bit else "lossless", options)
    if syntax == uid.JPEGExtended12Bit and options["bits_stored"] > 8:
        return _decode_extended(source, options), options["photometric_interpretation"]
    single = encapsulate([source], has_bot=False)
    options = options | {"number_of_frames": 1}
    if _PLUGINS[syntax] not in _NOISY:
        return _decode(single, options, 0)
    with hush_stderr():
        try:
            return _decode(single, options, 0)
        except BaseException as error:
            if type(error).__name__ == "PanicException":  # of pylibjpeg-rle, on damaged runs; not an Exception
                raise ValueError("damaged run lengths") from error
            raise


def _decode(source: BinaryIO | bytes, options: dict[str, Any], index: int) -> tuple[npt.NDArray[Any], str]:
    syntax = options["transfer_syntax_uid"]
    decoder: Any = get_decoder(syntax)
    named = {"decoding_plugin": _PLUGINS[syntax], "correct_unused_bits": False}
    array, changed = decoder.as_array(source, index=index, **named, **options)
    return array, str(changed["photometric_interpretation"])


def _decode_extended(frame: bytes, options: dict[str, Any]) -> npt.NDArray[Any]:
    """A 12-bit frame of JPEG Extended, which GDCM decodes and pydicom's plug-in for GDCM refuses."""
    if options["samples_per_pixel"] != 1 or options["bits_allocated"] != 16:
        raise ValueError("JPEG Extended of 12 bits is read as grey in 16 bits only")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((options["columns"], options["rows"], 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(options["photometric_interpretation"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(uid.JPEGExtended12Bit))))
    bits = options["bits_stored"]
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, options["pixel_representation"]))
    with hush_stderr():
        data = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM hands bytes over as text
    pixels = np.frombuffer(data, f"<{'ui'[options['pixel_representation']]}2")
    return pixels.reshape(options["rows"], options["columns"])
