"""The adapter `natural`: its options, and scan, read and write in terms of its other modules."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from maectl.adapter import Adapter, Channels, Files, Formats, Pixels, Reject, Source, Values, Window
from maectl_natural.headers import MAGIC, SUFFIXES, kind_of
from maectl_natural.pillow import Raster
from maectl_natural.pixels import COLOURS, lasting, repaint, valid
from maectl_natural.read import load
from maectl_natural.sample import draw_all
from maectl_natural.scan import count_of, describe, unpack_key
from maectl_natural.write import gather, save, scatter

__all__ = ["Natural"]


class Natural(Adapter):
    """JPEG, PNG, WebP, BMP, TIFF and GIF (the first frame or page), by content, whatever the suffix.

    Values are the file's own: uint8 0..255, uint16 0..65535 of 12- and 16-bit files, int16, or float32 (also
    of 32-bit integers). EXIF orientation is applied. Palettes and CMYK become red, green, blue; a bit is 0 or
    255. Alpha is never a channel: where it is 0 a pixel is invalid, as where a float is not finite.

    With ``channels`` 1 or 3 grey becomes colour by repetition and colour becomes grey by ITU-R 601-2 luma
    (0.299 red + 0.587 green + 0.114 blue), rounded, in the file's dtype.
    """

    name: ClassVar[str] = "natural"
    formats: ClassVar[Formats] = Formats(tuple(SUFFIXES), tuple((at, mark) for _, at, mark in MAGIC))

    max_pixels: int = Field(default=200_000_000, gt=0)
    """Pixels, width times height, above which an image is rejected unread."""

    @field_validator("channels", mode="before")
    @classmethod
    def _known_channels(cls, channels: object) -> Channels:
        if channels == "auto" or (type(channels) is int and channels in COLOURS):
            return channels
        if isinstance(channels, list | tuple) and tuple(channels) in COLOURS.values():
            return tuple(channels)
        raise ValueError("use auto, 1, 3, [grey] or [red, green, blue]")

    @classmethod
    def claim(cls, path: str, head: bytes) -> int:
        """1 for a file that `scan` would take, by its content and suffix; else 0."""
        return int(bool(kind_of(path, head)))

    def scan(self, files: Files) -> Iterator[Source | Reject]:
        """Every image among ``files``: [1 or 3, H, W], axes row and column, no spacing, no groups."""
        header = partial(describe, channels=self.channels, max_pixels=self.max_pixels)
        return (found for found in files.map(header) if found is not None)

    def read(self, source: Source, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        """Values [C, h, w] of a window, and where they are valid; raises `Unreadable`.

        With ``shape`` a JPEG is decoded at a half, a quarter or an eighth of its size where the window lies
        on whole pixels of that size.
        """
        raster = load(source, window, shape)
        count = count_of(self.channels, unpack_key(source.key)[1])
        # Channels stay last in memory: to make them first costs more than the decoding.
        values = repaint(raster.values, count)
        if not lasting(values):
            values = np.require(values, requirements=["C", "W"])
        return Pixels(values.transpose(2, 0, 1), valid(raster))

    def write(
        self,
        source: Source,
        tiles: Iterable[tuple[Window, Values]],
        path: Path,
        *,
        step: int = 1,
        channels: tuple[str, ...] | None = None,
        dtype: str | None = None,
    ) -> Path:
        """Write an image like ``source``; windows are of the grid [ceil(H / step), ceil(W / step)].

        JPEG stays JPEG (quality 95, 4:4:4); PNG, TIFF, BMP and WebP (lossless) stay what they are; palette,
        CMYK, GIF and 1-bit become PNG; float, and other counts than 1 or 3 channels, TIFF. Alpha and what is
        invalid or under no tile is the source's; with ``step`` or other ``channels`` it is zero. EXIF and
        colour profiles are left out; the pixels lie as they are seen. Raises `DataError` and `Unreadable`.
        """
        names = COLOURS[count_of(self.channels, unpack_key(source.key)[1])]
        dtype = dtype or source.dtype
        if step == 1 and channels in (None, names):
            return save(source, gather(source, tiles, len(names), dtype), path)
        size = (-(-length // step) for length in source.shape[1:])
        canvas = np.zeros((*size, len(channels or names)), dtype)
        return save(source, Raster(scatter(canvas, tiles)), path)

    def sample(self, folder: Path, seed: int) -> None:
        """Write six classes of drawn patterns, ``folder/train/<class>`` and ``folder/test/<class>``."""
        draw_all(folder, seed)
