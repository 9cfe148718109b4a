"""What the entries of a store are: pixels or JPEG, at their own size or with a bounded short side.

Only 8-bit images of one or three channels have another form than their own pixels; volumes, other dtypes, images
with invalid pixels and huge ones are kept to the bit in every form, for nothing else may be done to their values.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from maectl import huge
from maectl.errors import Unreadable
from maectl.index import Index

__all__ = ["RAW", "Form", "decoded", "encoded", "shrunk"]

QUALITY = 90  # with colours at full resolution: 17 % more bytes than at half, and 1.4 dB nearer to the pixels
LONGEST = 65_500  # pixels a side of a JPEG
BYTES = 0.25  # of JPEG a value, where nothing was measured: photographs take 0.10 to 0.14
Shapes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Form:
    """How a store keeps images; part of its folder's name, so that no other form's entries are found there.

    side  the most pixels the short side of an 8-bit image may have; None: as many as it has
    jpeg  whether 8-bit images are kept as JPEG of quality 90, 4:4:4
    """

    side: int | None = None
    jpeg: bool = False

    def __str__(self) -> str:
        """``raw``, ``raw-256``, ``jpeg-256``."""
        return ("jpeg" if self.jpeg else "raw") + (f"-{self.side}" if self.side else "")

    @classmethod
    def named(cls, name: str) -> "Form":
        """The form that writes itself so. Raises ValueError."""
        match = re.fullmatch(r"(raw|jpeg)(?:-([1-9][0-9]*))?", name)
        if match is None:
            raise ValueError(f"{name!r} is no form of a store")
        return cls(None if match[2] is None else int(match[2]), match[1] == "jpeg")

    def extent(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the entry of an 8-bit image."""
        _, *extent = self._shapes(np.array([[1, height, width]], np.int32))[0].tolist()
        return extent[0], extent[1]

    def changes(self, index: Index) -> npt.NDArray[np.bool_]:
        """[N] whether an entry differs from the source's own pixels, as far as headers tell."""
        smaller = np.any(self._shapes(index.shapes) != index.shapes, axis=1)
        return np.asarray(self._eligible(index) & (self.jpeg | smaller))

    def sizes(self, index: Index, jpeg_bytes: float = BYTES) -> npt.NDArray[np.int64]:
        """[N] bytes of every entry; of a JPEG estimated, from so many ``jpeg_bytes`` a value."""
        shapes, values = index.shapes, index.shapes.prod(axis=1, dtype=np.int64)
        sizes: npt.NDArray[np.int64] = values * index.itemsizes
        if self == RAW:
            return sizes
        own = self._shapes(shapes).prod(axis=1, dtype=np.int64) * (jpeg_bytes if self.jpeg else 1)
        return np.where(self._eligible(index), own, sizes).astype(np.int64)

    def _shapes(self, shapes: Shapes) -> Shapes:
        """[N, 3] the shapes [C, H, W] of entries, were all sources 8-bit images."""
        if self.side is None or shapes.shape[1] != 3:
            return shapes
        short = shapes[:, 1:].min(axis=1, keepdims=True)
        bounded = np.where(short > self.side, np.rint(shapes[:, 1:] * self.side / short), shapes[:, 1:])
        return np.concatenate([shapes[:, :1], bounded.astype(np.int32)], axis=1)

    def _eligible(self, index: Index) -> npt.NDArray[np.bool_]:
        shapes = index.shapes
        if self == RAW or shapes.shape[1] != 3:
            return np.zeros(len(index), np.bool_)
        whole = shapes.prod(axis=1, dtype=np.int64) <= huge.HUGE
        fits = not self.jpeg or self._shapes(shapes)[:, 1:].max(axis=1) <= LONGEST
        # of the dtypes of sources, one alone has a byte
        return np.asarray((index.itemsizes == 1) & np.isin(shapes[:, 0], (1, 3)) & whole & fits)


RAW = Form()


def shrunk(values: npt.NDArray[np.uint8], extent: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """[C, h, w] an image [C, H, W] of 1 or 3 channels at another size: bicubic, antialiased, as crops are resized."""
    if values.shape[1:] == extent:
        return values
    image = Image.fromarray(_last(values)).resize(extent[::-1], Image.Resampling.BICUBIC)
    small = np.asarray(image).reshape(*extent, len(values))
    return np.moveaxis(small, -1, 0)


def encoded(values: npt.NDArray[np.uint8]) -> bytes:
    """[C, H, W] of 1 or 3 channels as a JPEG."""
    last = _last(values).reshape(*values.shape[1:], len(values))
    colours = ("gray", "Gray") if len(values) == 1 else ("rgb", "444")
    return bytes(simplejpeg.encode_jpeg(last, QUALITY, colours[0], colours[1]))


def decoded(data: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    """[C, H, W] the pixels of a JPEG. Raises Unreadable where it is damaged."""
    try:
        values: npt.NDArray[Any] = simplejpeg.decode_jpeg(data, "gray" if channels == 1 else "rgb")
    except ValueError as error:
        raise Unreadable(f"its entry in the store is damaged ({error}): delete the store, it is built again") from error
    return np.moveaxis(values, -1, 0)


def _last(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[H, W, 3] or [H, W], in one piece."""
    return np.ascontiguousarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, -1))
