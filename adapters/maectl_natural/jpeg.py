"""JPEG pixels by libjpeg-turbo through simplejpeg, which tells damage that Pillow passes over.

Of a JPEG cut in half whose end marker is in place Pillow makes grey rows without a word. libjpeg only warns
of it; simplejpeg makes its warnings errors, and the few harmless ones are told apart here by their text.
"""

import io
import re

import numpy as np
import simplejpeg

from maectl_natural import pillow
from maectl_natural.headers import Damaged
from maectl_natural.pillow import Raster

__all__ = ["decode"]

_COLOURS = {"L": "gray", "RGB": "rgb", "CMYK": "cmyk"}
_HARMLESS = re.compile(
    r"extraneous bytes before marker 0xd9|unknown JFIF revision|Unknown Adobe color transform"
    r"|Invalid SOS parameters|Inconsistent progression"
)
_CORRUPT = re.compile(r"Premature end|Corrupt JPEG|Quantization table|Huffman table|Bogus|two SOF|two SOI")


def decode(data: bytes, mode: str, size: tuple[int, int], factor: int = 1) -> tuple[Raster, int]:
    """Pixels [ceil(H / f), ceil(W / f), C] uint8 as stored, and f: ``factor``, or 1 where it cannot be had.

    ``size`` is (H, W), ``factor`` 1, 2, 4 or 8: a value is then made of that many pixels squared. Raises
    `Damaged`, or whatever Pillow raises.
    """
    height, width = (-(-length // factor) if factor > 1 else 0 for length in size)
    try:
        values = simplejpeg.decode_jpeg(data, _COLOURS[mode], min_height=height, min_width=width)
    except ValueError as error:
        if _CORRUPT.search(str(error)) and not _HARMLESS.search(str(error)):
            raise Damaged(str(error)) from error
        # A harmless flaw, or what simplejpeg does not know (rare samplings): Pillow still tells a short file.
        return pillow.decode("jpeg", mode, io.BytesIO(data)), 1
    # CMYK JPEG is inverted: Adobe began it and all readers take it for granted.
    return Raster(np.invert(values) if mode == "CMYK" else values), factor
