"""The adapter `medical`: its options, and scan, read and write in terms of its other modules."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from maectl.adapter import Adapter, Channels, Files, Formats, Pixels, Reject, Source, Values, Window
from maectl.errors import Unreadable
from maectl_medical import dicom
from maectl_medical.colour import names, repaint
from maectl_medical.formats import claimed, header, load, save, save_map
from maectl_medical.grid import Grid, cast, foreground_box
from maectl_medical.resample import get_ready
from maectl_medical.sample import phantoms
from maectl_medical.stored import Found

__all__ = ["Medical"]

FILM = ("frame", "row", "column")
ULTRASOUND = "modality: US"
Millimetres = tuple[float, float, float]

_RECIPES = {
    "CT": "ct-slices",
    "MR": "mri-slices",
    "US": "ultrasound",
    "OP": "fundus",
    "OPT": "oct",
    **dict.fromkeys(("CR", "DX", "RG"), "chest-xray"),
    **dict.fromkeys(("XC", "ES", "GM", "SM", "DMS"), None),
}
"""The recipe for a DICOM modality; None for colour photographs of no fixed side."""
_OTHER = "mri-slices"
"""The recipe for every other one: grey, each image on a scale of its own, never flipped."""
_LEAST, _MOST = 1e-6, 1e6  # mm a voxel that can be meant


class Medical(Adapter):
    """DICOM by content, whatever the suffix, and NIfTI (.nii, .nii.gz, .hdr with .img).

    Values are in the image's unit: HU for CT, Bq/ml for PET, 0..255 of 8-bit colour, else "value". Modality LUT or
    rescale are applied, MONOCHROME1 is inverted, display windows are not applied. Slices become volumes by their
    positions; a volume is turned so that its axes go to inferior, posterior and left, and its axes are called after
    the planes perpendicular to them: axial, coronal, sagittal. A patient is a group.
    """

    name: ClassVar[str] = "medical"
    formats: ClassVar[Formats] = Formats(
        (".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".hdr", ".img"),
        ((128, b"DICM"), (344, b"n+1\0"), (344, b"ni1\0"), (4, b"n+2\0"), (4, b"ni2\0")),
    )
    private: ClassVar[bool] = True

    orientation: Literal["canonical", "native"] = "canonical"
    """Volumes turned to inferior, posterior, left (no interpolation), or as their files have them."""
    spacing: Millimetres | None = None
    """Volumes resampled to these mm a voxel, along the axes as the model sees them: linearly, and where voxels become
    larger averaged over their width before."""
    foreground: float | None = None
    """Volumes cut to the box that holds every value above this; the scan then reads all pixels."""
    invalid: float | None = None
    """A value that means outside (0 in skull-stripped images): such pixels never teach."""
    fourth: Literal["times", "channels", "first"] = "times"
    """The fourth axis of NIfTI: a volume each, channels, or the first alone."""
    geometry: Literal["strict", "lenient"] = "strict"
    """DICOM slices under a gantry tilt or unevenly spaced: rejected, or kept with a note."""
    unit: str | None = Field(default=None, min_length=1)
    """What the values of NIfTI files mean, which they do not say: HU, say."""
    export: Literal["dicom", "nifti"] = "dicom"
    """What DICOM is written back as."""

    @field_validator("channels")
    @classmethod
    def _positive(cls, channels: Channels) -> Channels:
        if isinstance(channels, int) and channels < 1:
            raise ValueError("use auto, a count or names")
        return channels

    @field_validator("spacing")
    @classmethod
    def _sizes(cls, spacing: Millimetres | None) -> Millimetres | None:
        if spacing is not None and not all(_LEAST <= size <= _MOST for size in spacing):  # nor NaN
            raise ValueError(f"use three sizes in mm, from {_LEAST:g} to {_MOST:,.0f}")
        return spacing

    @field_validator("foreground", "invalid")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("use a finite number")
        return value

    def model_post_init(self, context: Any) -> None:
        """Import what resampling needs while one thread makes the adapter, before many read with it."""
        if self.spacing is not None:
            get_ready()

    @classmethod
    def claim(cls, path: str, head: bytes) -> int:
        """2 for what is DICOM or NIfTI by its content, else 0."""
        return 2 * claimed(path, head)

    def suggest(self, facts: Mapping[str, int]) -> str | None:
        """The recipe of the commonest modality; where none is named, as in NIfTI, MR's, or CT's for values in HU.

        Modalities of grey images without a recipe of their own (PET, mammograms, angiograms) get MR's slices too,
        which take each image on a scale of its own and do not flip: the recipes that the core would choose by size
        do. None for colour photographs (endoscopy, microscopy, skin).
        """
        modalities = {name.removeprefix("modality: "): count for name, count in facts.items() if "modality: " in name}
        if modalities:
            return _RECIPES.get(max(modalities, key=lambda name: modalities[name]), _OTHER)
        return "ct-slices" if self.unit == "HU" else _OTHER

    def scan(self, files: Files) -> Iterator[Source | Reject]:
        """Every image among ``files``: NIfTI as it comes, then DICOM, which takes all headers to put together."""
        images: list[dicom.Image] = []
        for found in files.map(partial(header, fourth=self.fourth, unit=self.unit)):
            if isinstance(found, dicom.Image):
                images.append(found)
            elif isinstance(found, Reject):
                yield found
            elif found is not None:
                yield from (self._source(each, files.folder) for each in found)
        found_ = list(dicom.assemble(images, geometry=self.geometry))
        films = any(isinstance(each, Found) and each.axes == FILM for each in found_)
        for each in found_:
            if isinstance(each, Found) and films and ULTRASOUND in each.facts:
                each = _as_film(each)
            yield each if isinstance(each, Reject) else self._source(each, files.folder)

    def read(self, source: Source, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        """Values [C, *window] and their validity; ``shape`` asks for nothing less. Raises `Unreadable`."""
        grid = _grid(source)
        load = partial(self._loaded, source)
        return load(window) if grid is None else grid.read(load, window)

    def place(self, source: Source, axis: int, number: int, *, member: bool = False) -> int | None:
        """Where a slice, or the slice in a file, lies along an axis as the model sees it: the nearest one there is.

        None where option foreground has cut it away; with ``member`` -1 where the files are not slices along that
        axis, one each, as of a multi-frame file.
        """
        grid = _grid(source)
        if member and (grid is None or grid.stored_axis(axis) > 0 or not _slice_by_slice(source)):
            return -1
        return number if grid is None else grid.place(axis, number)

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
        """Write an image like ``source``: NIfTI on its own grid, DICOM as derived images in a folder or file.

        Turned, resampled or cut volumes are brought back to the stored grid; what is invalid, or lies under no
        tile, is the source's. Nothing of a header is taken over but the geometry and what pixels mean. DICOM cannot
        hold float32, and is then, as with ``export`` nifti, written as NIfTI; so are coarser grids (``step``) and
        other channels. Raises `DataError` and `Unreadable`.
        """
        grid = _grid(source)
        kind = np.dtype(dtype or source.dtype)
        if step > 1 or channels not in (None, source.channels) or kind != source.dtype:
            size = tuple(-(-length // step) for length in source.shape[1:])
            canvas = np.zeros((len(channels or source.channels), *size), kind)
            for window, values in tiles:
                canvas[(slice(None), *window)] = cast(values, kind)
            return save_map(canvas, grid, source.spacing, step, path)
        seen = self.read(source)
        canvas, changed = seen.values.copy(), np.zeros(source.shape[1:], np.bool_)
        for window, values in tiles:
            at = (slice(None), *window)
            whole = cast(values, kind)
            changed[window] = (whole != canvas[at]).any(axis=0)
            canvas[at] = whole
        if seen.valid is not None:
            changed &= seen.valid
            canvas[:, ~seen.valid] = seen.values[:, ~seen.valid]
        key = json.loads(source.key)
        if key.get("still", False):
            return save(source, key, canvas[:, 0], None if seen.valid is None else seen.valid[0], path, self.export)
        if grid is None:
            return save(source, key, canvas, seen.valid, path, self.export)
        stored = self._loaded(source, None)
        return save(source, key, grid.back(canvas, changed, stored), stored.valid, path, self.export)

    def sample(self, folder: Path, seed: int) -> None:
        """Write phantom studies of two classes in DICOM and NIfTI, ``folder/train`` and ``folder/test``."""
        phantoms(folder, seed)

    def _source(self, found: Found, folder: str) -> Source | Reject:
        """What the model sees of a stored image."""
        channels = names(self.channels, found.channels)
        if channels is None:
            reason = f"{_told(found.channels)} cannot become {_told(self.channels)}"
            return Reject(found.paths, f"{reason}: --set data.channels=auto takes the channels most images have")
        stored = found.shape if "still" not in found.key else (found.shape[0], *found.shape[2:])
        key = {**found.key, "stored": stored, "dtype": found.dtype, "unit": found.unit, "affine": found.affine}
        source = Source(
            paths=found.paths,
            shape=(len(channels), *found.shape[1:]),
            dtype=found.dtype,
            unit=found.unit,
            axes=found.axes,
            channels=channels,
            spacing=found.spacing,
            key=json.dumps(key),
            group=found.group,
            folder=folder,
            facts=(*found.facts, f"kind: {'volume' if found.affine else 'film' if len(found.shape) > 3 else 'image'}"),
            notes=found.notes,
        )
        return source if found.affine is None else self._seen(source, key)

    def _seen(self, source: Source, key: dict[str, Any]) -> Source | Reject:
        """A volume as it is turned, resampled and cut."""
        key |= {"orientation": self.orientation, "spacing": self.spacing, "box": None}
        try:
            grid = _made(key)
        except ValueError as error:
            return Reject(source.paths, str(error))
        if self.foreground is not None:
            try:
                box = foreground_box(grid.read(partial(self._loaded, source)), self.foreground)
            except Unreadable as error:
                return Reject(source.paths, str(error))
            key["box"] = [(side.start, side.stop) for side in box]
            grid = _made(key)
        return replace(
            source,
            shape=(source.shape[0], *grid.shape),
            dtype=grid.dtype(source.dtype),
            axes=grid.axes,
            spacing=grid.spacing,
            key=json.dumps(key),
        )

    def _loaded(self, source: Source, window: Window | None) -> Pixels:
        """A window of the stored grid in the model's channels."""
        key = json.loads(source.key)
        still = key.get("still", False)
        pixels = load(source.files, key, window[1:] if still and window is not None else window)
        values, valid = pixels.values, pixels.valid
        if still:
            values, valid = values[:, None], None if valid is None else valid[None]
        if self.invalid is not None:
            inside = (values != self.invalid).any(axis=0)
            valid = inside if valid is None else valid & inside
        return Pixels(repaint(values, source.shape[0]), None if valid is None or valid.all() else valid)


def _as_film(found: Found) -> Found:
    """A still of ultrasound as a film of one frame, so that both can be trained on; others as they are."""
    if len(found.shape) != 3 or found.affine is not None:
        return found
    channels, rows, columns = found.shape
    key = {**found.key, "still": True}
    return replace(found, shape=(channels, 1, rows, columns), axes=FILM, spacing=None, key=key)


def _grid(source: Source) -> Grid | None:
    """The grid of a volume; None for what is not turned or resampled."""
    key = json.loads(source.key)
    return None if key["affine"] is None else _made(key)


def _slice_by_slice(source: Source) -> bool:
    """Whether a volume's files are its stored slices, one each and in order."""
    key = json.loads(source.key)
    apart = key["kind"] == "dicom" and not key.keys() & {"frames", "single"}
    return apart and len(source.paths) == int(key["stored"][1])


def _told(channels: Channels) -> str:
    """Channels in words: their names where they are few, else how many."""
    if isinstance(channels, tuple):
        return "/".join(channels) if len(channels) < 4 else f"{len(channels)} channels"
    return f"{channels} channel{'s' * (channels != 1)}"


def _made(key: Mapping[str, Any]) -> Grid:
    """The grid that a key of a volume describes."""
    _, first, second, third = key["stored"]
    box = None
    if key["box"] is not None:
        top, middle, last = (slice(*side) for side in key["box"])
        box = (top, middle, last)
    return Grid.of(
        (first, second, third), key["affine"], orientation=key["orientation"], spacing=key["spacing"], box=box
    )
