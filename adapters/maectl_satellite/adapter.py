"""The adapter `satellite`: its options, and scan, read and write in terms of its other modules."""

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from maectl.adapter import Adapter, Channels, Files, Formats, Pixels, Reject, Source, Values, Window
from maectl_satellite.describe import Rules
from maectl_satellite.header import SUFFIXES, header
from maectl_satellite.layout import Layout
from maectl_satellite.pixels import load
from maectl_satellite.sample import landscapes
from maectl_satellite.scenes import assemble
from maectl_satellite.tiff import JP2, TIFF, Directory, directory, is_tiff
from maectl_satellite.vrt import is_vrt
from maectl_satellite.write import save, save_map

__all__ = ["Satellite"]

_MANY = 4  # samples a pixel above which a TIFF is no photograph
_HYPERSPECTRAL = 20  # bands above which wavelengths run on
_RGB = 3


class Satellite(Adapter):
    """GeoTIFF, BigTIFF and COG, VRT and JPEG 2000, of any size and number of bands, by content whatever the suffix.

    Values are the files' own (unit "0..255" of 8-bit, else "DN"), unless options scale them to reflectance or turn
    them into dB. A pixel is invalid by a nodata value, an internal or sidecar mask, alpha, or NaN. Band files of one
    scene (Landsat's, Sentinel-2's, `*_B02.tif`) are one source. Channels are told by name, wavelength or number, and
    a file that lacks one is rejected. Scenes of one tile, or that lie over one another, are a group.
    """

    name: ClassVar[str] = "satellite"
    formats: ClassVar[Formats] = Formats(SUFFIXES, (*((0, mark) for mark in TIFF), (0, JP2), (0, b"<VRTDataset")))
    length: ClassVar[str] = "m"

    sensor: Literal["auto", "sentinel2", "landsat-tm", "landsat-oli", "none"] = "auto"
    """The instrument, which gives bands their wavelengths and common names: landsat-tm is Landsat 4, 5 and 7,
    landsat-oli 8 and 9; auto goes by names and tags."""
    resolution: float | None = None
    """Metres a pixel of scenes made of files of several resolutions; None is the finest."""
    scale: Annotated[float, Field(allow_inf_nan=False)] | Literal["tags"] | None = None
    """Value = stored · scale + offset: 0.0001 makes reflectance of Sentinel-2's numbers; "tags" takes each band's own
    scale and offset from the file, None values as they are stored."""
    offset: float | None = None
    """See ``scale``; in the values' unit."""
    unit: str | None = Field(default=None, min_length=1)
    """What the values mean, where it is not what is said by default: "K", say."""
    decibel: Literal["none", "power", "amplitude", "auto"] = "none"
    """Radar: 10 log10 of power or 20 log10 of amplitude; auto takes values for dB where one is negative in a few
    places looked at, else float values for power and whole numbers for amplitude."""
    s2_offset: Literal["auto", 0, -1000] = "auto"
    """The offset of Sentinel-2's numbers since processing baseline 04.00: auto applies it where the product's name
    tells that baseline, and says where pixels look like it."""
    nodata: float | None = None
    """A stored value that is invalid besides what the files say."""
    join: Literal["auto", "never"] = "auto"
    """Whether files of one band each make one scene."""
    labels: Literal["skip", "keep"] = "skip"
    """Rasters that are labels or a product's qualities by their name, and palettes: rejected, or trained on."""

    @field_validator("channels", mode="before")
    @classmethod
    def _usable(cls, channels: object) -> object:
        if type(channels) is int and channels < 1:
            raise ValueError("use auto, a count or names")
        if isinstance(channels, list | tuple) and not (channels and len(set(channels)) == len(channels)):
            raise ValueError("use auto, a count or names, each once")
        return channels

    @field_validator("resolution", "scale")
    @classmethod
    def _above(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 < value < math.inf:
            raise ValueError("use a number above 0")
        return value

    @field_validator("offset", "nodata")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("use a finite number (NaN is never valid)")
        return value

    @model_validator(mode="after")
    def _one_offset(self) -> "Satellite":
        if self.scale == "tags" and self.offset is not None:
            raise ValueError("scale: tags gives each band's own offset; leave offset out")
        return self

    @classmethod
    def claim(cls, path: str, head: bytes) -> int:
        """2 for VRT, JPEG 2000 and TIFFs that are georeferenced or of more than four samples; 1 for other TIFFs."""
        if is_vrt(head) or head.startswith(JP2):
            return 2
        if not is_tiff(head):
            return 0
        found = directory(io.BytesIO(head)) or _on_disk(path)
        return 2 if found is not None and (found.georeferenced or found.samples > _MANY) else 1

    @classmethod
    def resolved(cls, channels: tuple[str, ...]) -> Channels:
        """The names themselves: bands have one order and meaning a run."""
        return channels

    def suggest(self, facts: Mapping[str, int]) -> str:
        """The recipe of the commonest instrument, else by the number of bands and the pixel's size."""
        sensor, times = _commonest(facts, "sensor")
        count, dtype = _bands(_commonest(facts, "bands")[0])
        if 2 * times >= sum(seen for fact, seen in facts.items() if fact.startswith("driver: ")):
            if sensor == "sentinel2" and count > _RGB:
                return "sentinel2"
            if sensor == "sentinel2" and count == _RGB and _commonest(facts, "names")[0] == "told":
                return "sentinel2-rgb"  # which asks for red, green, blue by name
            if sensor.startswith("landsat"):
                return "landsat"
            if sensor == "sentinel1":
                return "sentinel1"
        if count > _HYPERSPECTRAL:
            return "hyperspectral"
        near = _commonest(facts, "pixels")[0].startswith("below")
        return "aerial-rgb" if count == _RGB and dtype == "uint8" and near else "rasters"

    def scan(self, files: Files) -> Iterator[Source | Reject]:
        """Every scene among ``files``: [bands, H, W], axes row and column, spacing in metres.

        A file that was named itself is taken whatever its name says.
        """
        named = files.only is not None
        read = partial(
            header,
            decibel=self.decibel == "auto",
            offset=self.s2_offset == "auto" and self.offset is None,
            sensor=self.sensor,
            palettes=self.labels == "keep",
        )
        rules = Rules(
            channels=self.channels,
            sensor=self.sensor,
            resolution=self.resolution,
            scale=self.scale,
            offset=self.offset,
            unit=self.unit,
            decibel=self.decibel,
            s2_offset=self.s2_offset,
            nodata=self.nodata,
            join=self.join == "auto",
            labels=named or self.labels == "keep",
        )
        return assemble(files.map(read), files.folder, rules)

    def read(self, source: Source, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        """Values [C, h, w] of a window, and where they are valid; raises `Unreadable`.

        With ``shape`` an overview is read where it has at least as many pixels.
        """
        return load(source.files, Layout.load(source.key), source.dtype, window, shape)

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
        """Write a GeoTIFF like ``source``: its place, stored dtype, nodata and descriptions, tiled and compressed.

        Invalid pixels, and pixels under no tile, are the source's. With ``step`` or other channels or dtype it is a
        map over the source. Raises `DataError` and `Unreadable`.
        """
        layout = Layout.load(source.key)
        if step == 1 and channels in (None, source.channels) and dtype in (None, source.dtype):
            return save(source, layout, tiles, path)
        return save_map(
            source,
            layout,
            tiles,
            path,
            step=(step, step),
            channels=channels or source.channels,
            dtype=dtype or source.dtype,
            scales=None,
        )

    def write_map(
        self,
        source: Source,
        tiles: Iterable[tuple[Window, Values]],
        path: Path,
        *,
        step: tuple[float, ...],
        channels: tuple[str, ...],
        dtype: str,
        scales: tuple[tuple[float, float], ...] | None = None,
    ) -> Path:
        """Write a GeoTIFF over a source, of pixels as large as ``step`` of its own."""
        layout = Layout.load(source.key)
        return save_map(source, layout, tiles, path, step=step, channels=channels, dtype=dtype, scales=scales)

    def sample(self, folder: Path, seed: int) -> None:
        """Write georeferenced scenes of several bands, with nodata, clouds and labels."""
        landscapes(folder, seed)


def _on_disk(path: str) -> Directory | None:
    """The first directory of a TIFF where it lies beyond the head."""
    try:
        with open(path, "rb") as file:
            return directory(file)
    except OSError:  # a scan says so; here it only cannot vote
        return None


def _commonest(facts: Mapping[str, int], kind: str) -> tuple[str, int]:
    """What most sources have of a kind of fact, and how many; ("", 0) where none has."""
    found = {fact.removeprefix(f"{kind}: "): count for fact, count in facts.items() if fact.startswith(f"{kind}: ")}
    best = max(found, key=lambda fact: found[fact], default="")
    return best, found.get(best, 0)


def _bands(fact: str) -> tuple[int, str]:
    """The number and the dtype that a fact "13 of int16" tells."""
    count, _, dtype = fact.partition(" of ")
    return (int(count.replace(",", "")), dtype) if dtype else (0, "")
