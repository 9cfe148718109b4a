"""The contract between maectl and an image format.

An adapter finds images (`scan`), decodes windows of them (`read`) and writes images back (`write`); all
else (statistics, crops, resizing, normalising, training) is the core's and exists once. An adapter is a
frozen pydantic model whose fields are the options a recipe may set under ``data.options``, and it is
registered through the entry-point group ``maectl.adapters``. It imports this module and `maectl.errors`
only. ``tests/test_adapter_contract.py`` runs over every installed adapter.

Shapes: C channels; S the spatial shape, (H, W) for images and (D, H, W) for volumes.
"""

import fnmatch
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from maectl.errors import DataError

__all__ = ["Adapter", "Channels", "Files", "Formats", "Pixels", "Reject", "Source", "Values", "Window"]

Window = tuple[slice, ...]
"""One slice a spatial axis, with integer start and stop and no step, in pixels of the source's grid."""

Values = npt.NDArray[Any]
"""``[C, *S]`` uint8, int16, uint16 or float32, in the domain's unit (0..255, HU, reflectance)."""

Channels = str | int | tuple[str, ...]
"""``"auto"``, a count, or channel names."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Source:
    """One image or one volume, always native: what a header says, without its pixels.

    paths     every member file, relative to ``folder``
    shape     [C, *S], as `Adapter.read` returns it for the whole source
    dtype     "uint8", "int16", "uint16" or "float32"
    unit      what one step of the values means: "0..255", "0..65535", "HU", "reflectance", ...
    axes      a name each spatial axis: ("row", "column"); of volumes the planes perpendicular to them
              ("axial", "coronal", "sagittal"); of films ("frame", "row", "column")
    channels  a name each channel, e.g. ("red", "green", "blue")
    spacing   mm or m a pixel along each spatial axis, or None where unknown
    key       whatever the adapter needs to find the pixels again; opaque to the core
    group     what must not straddle a split (patient, scene); opaque, kept in memory only.
              "" means the source is a group of its own
    folder    the folder that ``paths`` are relative to
    facts     what inspect counts, a phrase each ("transfer syntax: RLE Lossless"); not kept in the index
    notes     defects a user should know of, a phrase each ("a gap of 2 slices: split there"); counted and told
              by a scan, not kept in the index

    Several sources may share a file (the time points of a series); a scan yields them one after another.
    """

    paths: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    unit: str
    axes: tuple[str, ...]
    channels: tuple[str, ...]
    spacing: tuple[float, ...] | None = None
    key: str = ""
    group: str = ""
    folder: str = ""
    facts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The member files as paths that can be opened."""
        return tuple(os.path.join(self.folder, path) for path in self.paths)


@dataclass(frozen=True, slots=True)
class Reject:
    """Files that look like an image of the adapter's formats and cannot be one; paths as in `Source`."""

    paths: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Pixels:
    """Decoded pixels: ``values`` [C, *S] and ``valid`` bool [*S], or None where every pixel is valid.

    A pixel is valid when every channel is finite and inside the image's own mask (nodata, alpha, padding).
    """

    values: Values
    valid: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Formats:
    """The files an adapter is for: by suffix (lower case, with the dot) or by magic bytes (offset, bytes)."""

    suffixes: tuple[str, ...]
    magic: tuple[tuple[int, bytes], ...] = ()

    def match(self, path: str, head: bytes) -> bool:
        """Whether a file of this name, beginning with ``head`` (256 bytes suffice), is of these formats."""
        named = path.lower().endswith(self.suffixes) if self.suffixes else False
        return named or any(head[at : at + len(mark)] == mark for at, mark in self.magic)


class Files:
    """The files under a folder (or one single file), in a stable order, as paths relative to ``folder``.

    Hidden files, hidden folders and maectl's own run folders are passed over. ``include`` and ``exclude``
    are globs on the relative path (``*`` also crosses ``/``). ``only`` restricts to the paths given.
    Iterate over it, or `map` a header reader over it: the core passes a subclass whose `map` runs on all
    cores, reports progress and can be interrupted.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        only: Sequence[str] | None = None,
    ) -> None:
        path = Path(path)
        if not os.path.exists(path):  # unlike Path.exists it never raises
            raise DataError(f"{path} does not exist: check the path")
        single = not path.is_dir()
        self.folder = str(path.parent if single else path)
        self.include, self.exclude = tuple(include), tuple(exclude)
        self.only = (path.name,) if single else tuple(only) if only is not None else None
        self.seen = 0  # files offered so far; complete once iterated

    def __iter__(self) -> Iterator[str]:
        self.seen = 0
        for path in self.only if self.only is not None else self._walk("", (os.path.realpath(self.folder),)):
            if self.include and not any(fnmatch.fnmatch(path, glob) for glob in self.include):
                continue
            if any(fnmatch.fnmatch(path, glob) for glob in self.exclude):
                continue
            self.seen += 1
            yield path

    def map(self, header: Callable[[str, str], Found]) -> Iterable[Found]:
        """``header(folder, path)`` of every file, in order; ``header`` must be picklable."""
        return (header(self.folder, path) for path in self)

    def _walk(self, below: str, above: tuple[str, ...]) -> Iterator[str]:
        """What lies in a folder; ``above`` are the real paths of it and of the folders that led to it."""
        where = os.path.join(self.folder, below)
        try:
            with os.scandir(where) as entries:
                here = sorted(_named(entry) for entry in entries if entry.name[0] != ".")
        except OSError as error:
            raise DataError(f"{where} cannot be read ({error.strerror}): check its permissions") from error
        names = {name for name, _ in here}
        if below and {"run.json", "recipe.yaml", "index.arrow"} <= names:
            return  # one of our own run folders: its samples are not the user's images
        for name, kind in here:
            path = f"{below}{name}"
            if kind == "file":
                yield path
            elif kind == "folder":
                yield from self._walk(f"{path}/", (*above, os.path.join(above[-1], name)))
            elif kind == "link":  # to a folder; one that holds the link would never end
                real = os.path.realpath(os.path.join(self.folder, path))
                if not any(f"{each}{os.sep}".startswith(real.rstrip(os.sep) + os.sep) for each in above):
                    yield from self._walk(f"{path}/", (*above, real))


def _named(entry: "os.DirEntry[str]") -> tuple[str, str]:
    """The name of an entry, and what it is: a file, a folder, a link to a folder, or nothing to look into."""
    try:
        if entry.is_dir():
            return entry.name, "link" if entry.is_symlink() else "folder"
        return entry.name, "file" if entry.is_file() else ""
    except OSError:  # a link to itself, or to where one may not look
        return entry.name, ""


class Adapter(BaseModel, ABC):
    """One image format family. Fields of a subclass are its recipe options.

    `scan` speaks for headers only; `read` and `write` open files themselves, so an adapter can be pickled
    to any process at any time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    formats: ClassVar[Formats]
    length: ClassVar[str] = "mm"
    """What `Source.spacing` is in: mm or m."""
    private: ClassVar[bool] = False
    """Whether file and folder names may identify people: what is exported then gets numbers for names."""

    channels: Channels = "auto"
    """What the model sees. "auto" keeps every source's own channels; after a scan the core picks the commonest
    channels and makes the adapter again with what `resolved` makes of them, and from then on `Source.shape`,
    `read` and `write` speak of the model's channels."""

    @classmethod
    def claim(cls, path: str, head: bytes) -> int:
        """How sure the adapter is that a file is its own: 0 not at all, 1 by its format, 2 by its content.

        ``head`` is the file's first 4096 bytes. The core sniffs a sample of a folder to choose an adapter.
        """
        return int(cls.formats.match(path, head))

    @classmethod
    def resolved(cls, channels: tuple[str, ...]) -> Channels:
        """What ``channels`` auto becomes, once it is known which channels most images have.

        Their count, where an adapter can bring images of other channels to it; where channels are told by name, as
        the bands of a scene, their names.
        """
        return len(channels)

    def suggest(self, facts: Mapping[str, int]) -> str | None:
        """The name of the shipped recipe that fits what a scan found, or None where size alone decides.

        ``facts`` says of how many sources each of their `Source.facts` is true.
        """
        return None

    @abstractmethod
    def scan(self, files: Files) -> Iterator[Source | Reject]:
        """Every image among ``files``, in a stable order, from headers alone.

        A file that is not of this adapter's formats is passed over; one that claims to be and cannot be
        is a `Reject` with a reason.
        """

    @abstractmethod
    def read(self, source: Source, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        """Decode a window of a source (None: all of it), loading no more than it needs.

        With ``shape`` it may return fewer pixels than the window has (an overview, a scaled decode), never
        fewer than ``shape``, with validity reduced by minimum. Raises `maectl.errors.Unreadable`.
        """

    def place(self, source: Source, axis: int, number: int, *, member: bool = False) -> int | None:
        """Where slice ``number`` of a volume, counted as its files have them, lies along an axis of ``shape``.

        With ``member`` it is the slice in file ``number`` of ``paths``. -1 where there is no such slice, or a file is
        none along that axis; None where options of the adapter have cut it away. An adapter that turns or cuts
        volumes overrides this.
        """
        return number if not member or len(source.paths) == source.shape[1 + axis] else -1

    @abstractmethod
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
        """Write an image like ``source`` from disjoint tiles, and return the path written.

        Format, dtype and geometry are the source's; invalid pixels are taken from the source. ``path``
        has no suffix. Where the format cannot hold the values exactly (palette, CMYK, GIF, 1-bit) the
        nearest lossless one is used and the suffix says so. ``step`` > 1 writes a grid coarser by that
        factor, ``channels`` and ``dtype`` other channels (embedding maps). Values are clipped to the
        dtype's range and rounded.
        """

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
        """Write a map over a source: a grid coarser by ``step`` along each axis, of ceil(length / step) pixels.

        Optional, for images that are places on the ground: an adapter that overrides it gets its embeddings so, in
        disjoint tiles, and the map has the source's place. ``dtype`` is float32, float16, int8 or uint8. ``scales``
        (scale, offset) a channel say what the numbers given stand for: number · scale + offset. NaN, or of int8
        -128, is where there is nothing. ``path`` has no suffix.
        """
        raise DataError(f"the adapter {self.name!r} has no maps")

    def sample(self, folder: Path, seed: int) -> None:
        """Write a small labelled example data set for ``maectl demo``: ``folder/<class>/<file>``.

        Where images have label rasters of the same names these lie in ``folder/masks/...``.

        Optional: an adapter that does not override it offers no demo.
        """
        raise DataError(f"the adapter {self.name!r} has no sample data: point maectl pretrain at your own")
