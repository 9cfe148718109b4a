"""Label rasters beside images: which belongs to which, and what their values say.

A label raster is an image of its own, of any installed adapter and as large as the image it labels. Whether both lie
at the same place on the ground is not looked at: what is compared is their size. Options of the run's adapter that
cut or resample images make them another size than their label rasters, and these are refused.

S is the spatial shape.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from maectl import console
from maectl.adapter import Adapter, Files, Pixels, Source, Window
from maectl.errors import DataError, Unreadable, UsageError
from maectl.index import Index
from maectl.registry import choose, installed, load

__all__ = ["MOST", "NONE", "Raster", "Rasters", "name_of", "nearest", "numbered", "paired"]

MOST = 256  # classes; more is an image
NONE = int(np.iinfo(np.int64).min)  # in place of a class: no label
COLOUR = 1 << 40  # added to red · 65536 + green · 256 + blue, lest a colour be a number
GEOMETRY = ("orientation",)  # options of an adapter that must hold for an image and for its label raster alike
KEPT = {"labels": ("skip", "keep")}  # options by which an adapter passes label rasters over: their default, and ours
FLOAT32 = 1 << 24  # from here on float32 leaves out whole numbers
PART = 1 << 24  # pixels of a label raster read at once
Ints = npt.NDArray[np.int64]
Names = tuple[str, ...]
Each = TypeVar("Each", str, tuple[str, ...])


@dataclass(frozen=True)
class Raster:
    """One label raster; ``ignored`` are the numbers of classes that mean no label."""

    adapter: Adapter
    source: Source
    ignored: Ints

    @property
    def path(self) -> str:
        """Its first file."""
        return self.source.files[0]

    def read(self, window: Window | None = None) -> Pixels:
        """A window, never at less than its full resolution: averaged labels are none. Raises Unreadable."""
        try:
            return self.adapter.read(self.source, window)
        except OSError as error:
            raise Unreadable(f"{type(error).__name__}: {error.strerror or error}") from error

    def numbers(self, pixels: Pixels) -> Ints:
        """int64 [*S] the class number of every pixel, NONE where it has no label. Raises UsageError."""
        values, valid = pixels.values, pixels.valid
        if len(values) == 3:
            red, green, blue = values.astype(np.int64)
            found = COLOUR + (red << 16) + (green << 8) + blue
        else:
            known = values[0] if valid is None else np.where(valid, values[0], 0)
            with np.errstate(invalid="ignore"):  # what int64 cannot hold is no whole number below
                found = known.astype(np.int64)
            if (found != known).any():
                some = known[found != known].flat[0]
                raise UsageError(f"{self.path} is no label raster: {some:g} is no whole number")
            if known.dtype == np.float32 and (np.abs(known) >= FLOAT32).any():
                raise UsageError(
                    f"{self.path} has class numbers of {FLOAT32:,} or more, which may be rounded: use smaller"
                )
        if valid is not None:
            found[~valid] = NONE
        found[np.isin(found, self.ignored)] = NONE
        return np.asarray(found)


@dataclass(frozen=True)
class Rasters:
    """The label rasters of an index's rows, and what was left out, a line each."""

    by_row: dict[int, Raster]
    notes: list[str]


def numbered(text: str) -> int:
    """The number of the class called ``text`` (--ignore): a whole number or #rrggbb. Raises UsageError."""
    try:
        if text.startswith("#") and len(text) == 7:
            return COLOUR + int(text[1:], 16)
        return int(text)
    except ValueError:
        raise UsageError(f"--ignore {text}: give a whole number, or a colour as #rrggbb") from None


def name_of(number: int) -> str:
    """What the class of that number is called."""
    return f"#{number - COLOUR:06x}" if number >= COLOUR else str(number)


def nearest(read: Callable[[Window], Pixels], window: Window, size: tuple[int, ...]) -> Pixels:
    """A window brought to ``size`` by nearest neighbour, at the centres of the pixels that `resize.resize` gives.

    Pixel j of n becomes the one its centre, (j + 1/2) · side / n, lies in. Read in parts of 16 million pixels.
    """
    sides = [side.stop - side.start for side in window]
    first, *rest = (
        ((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(size, sides, strict=True)
    )  # [n] each
    step = max(1, int(PART / prod(sides[1:]) * size[0] / sides[0]))
    values, valid = [], []
    for start in range(0, size[0], step):
        some = first[start : start + step]
        begin = window[0].start + int(some[0])
        part = read((slice(begin, window[0].start + int(some[-1]) + 1), *window[1:]))
        at = np.ix_(some - some[0], *rest)
        values.append(part.values[(slice(None), *at)])
        valid.append(np.ones(values[-1].shape[1:], np.bool_) if part.valid is None else part.valid[at])
    known = np.concatenate(valid)
    return Pixels(np.concatenate(values, axis=1), None if known.all() else known)


# ---- which belongs to which --------------------------------------------------------------------------------------


def paired(index: Index, masks: Path, options: Mapping[str, Any], ignore: Sequence[str], folder: str) -> Rasters:
    """The label raster of every source of the index that has one.

    ``masks`` is a folder of them (of the same path without suffix, else the same name, else a name that is the
    image's but for a last ``_token``), or one file for the one image there is. ``options`` are those of the run's
    adapter. Raises UsageError where none fits, and where one has another size than its image, or is none.
    """
    ignored = np.array([numbered(text) for text in ignore], np.int64)
    rows: dict[Names, list[int]] = defaultdict(list)  # the time points of a file share their label raster
    for row in range(len(index)):
        rows[index[row].paths].append(row)
    images = {files: _names(files) for files in rows}
    notes = Counter[str]()
    if masks.is_dir():
        found = _matched(images, _candidates(index, masks, folder), notes)
    elif len(images) == 1:
        found = {next(iter(images)): str(masks)}
    else:
        raise UsageError(f"--masks {masks} is one file, and {folder} has {len(images):,} images: give a folder of them")
    if not found:
        raise UsageError(_nothing(images, masks, folder))
    by_row: dict[int, Raster] = {}
    opened = _Opened(options, ignored)
    for files, path in found.items():
        raster = opened.raster(path)
        if isinstance(raster, str):
            if not notes["label raster unreadable"]:
                console.warn(f"label rasters cannot be read, e.g. {path}: {raster}")
            notes["label raster unreadable"] += 1
        else:
            by_row |= dict.fromkeys(rows[files], raster)
    _check(index, by_row)
    told = [f"left out, {why}: {count:,} images" for why, count in notes.items()]
    if not by_row:
        raise UsageError(f"no label raster in {masks} can be used: {'; '.join(told)}")
    return Rasters(dict(sorted(by_row.items())), told)


def _check(index: Index, by_row: Mapping[int, Raster]) -> None:
    """Raises UsageError where label rasters are none, or are not as large as their images."""
    wrong = []
    for row, raster in by_row.items():
        source, mask = index[row], raster.source
        several = len(mask.channels) == 3 and mask.dtype == "uint8"
        if len(mask.channels) != 1 and not several:
            what = f"{len(mask.channels)} channels of {mask.dtype}"
            raise UsageError(f"{raster.path} is no label raster: {what}, and it takes one, or three of uint8 (colours)")
        if mask.shape[1:] != source.shape[1:]:
            wrong.append(
                f"{raster.path} has {_size(mask)} pixels, its image {source.paths[0]} {_size(source)} as the model's "
                "adapter reads it"
            )
    if wrong:
        raise UsageError(f"label rasters of another size than their images ({len(wrong):,}): {wrong[0]}")


def _size(source: Source) -> str:
    return " x ".join(map(str, source.shape[1:]))


class _Opened:
    """Label rasters by path: an adapter is looked for once a suffix."""

    def __init__(self, options: Mapping[str, Any], ignored: Ints) -> None:
        self.options, self.ignored = options, ignored
        self.adapters: dict[str, Adapter] = {}

    def raster(self, path: str) -> Raster | str:
        """The label raster, or why it cannot be read. Raises UsageError where its format cannot hold labels."""
        suffix = Path(path).suffix.lower()
        if suffix in (".jpg", ".jpeg"):
            raise UsageError(f"{path} is no label raster: JPEG does not keep values exactly; make it a PNG")
        if suffix not in self.adapters:
            try:
                kind = load(choose([path]).name)
            except DataError:
                return "of no installed format"
            fields = kind.model_fields
            given = {name: self.options[name] for name in GEOMETRY if name in self.options and name in fields}
            given |= {name: ours for name, (usual, ours) in KEPT.items()
                      if name in fields and fields[name].default == usual}  # fmt: skip
            self.adapters[suffix] = kind(**given)
        adapter = self.adapters[suffix]
        found = list(adapter.scan(Files(path)))
        if len(found) != 1:
            return f"{len(found)} images in one file" if found else f"nothing the adapter {adapter.name!r} can read"
        source = found[0]
        return Raster(adapter, source, self.ignored) if isinstance(source, Source) else source.reason


def _candidates(index: Index, masks: Path, folder: str) -> dict[str, str]:
    """Path by path without suffix and folder; of files of any adapter's formats that are no image of the index.

    Raises UsageError where the images lie in that folder.
    """
    inside = Path(folder).resolve()
    if inside.is_dir() and masks.resolve() in (inside, *inside.parents):
        raise UsageError(f"--masks {masks} holds the images: give the folder of the label rasters alone")
    images = {os.path.realpath(os.path.join(root, path)) for number, root in enumerate(index.folders)
              for path in index.files(number)}  # fmt: skip
    suffixes = tuple({suffix for kind in installed().values() for suffix in kind.formats.suffixes})
    files = Files(masks)
    every = ((path, os.path.join(files.folder, path)) for path in files if path.lower().endswith(suffixes))
    return {whole: _bare(path) for path, whole in every if os.path.realpath(whole) not in images}


def _matched(images: Mapping[Names, Names], masks: Mapping[str, str], notes: Counter[str]) -> dict[Names, str]:
    """The path of the label raster of every image that has exactly one, which no other image could have."""
    found: dict[Names, str] = {}
    doubtful = set[Names]()
    for of_image, of_mask in ((str, str), (_last, _last), (_last, _trunk), (_trunk, _trunk)):
        used = set(found.values())
        there = _by_key((of_mask(bare), path) for path, bare in masks.items() if path not in used)
        wanted = _by_key((of_image(name), files) for files, names in images.items() for name in names)
        for files, names in images.items():
            keys = {of_image(name) for name in names} & set(there)
            fitting = {path for key in keys for path in there[key]}
            if files in found or not fitting:
                continue
            if len(fitting) == 1 and all(len(wanted[key]) == 1 for key in keys):
                found[files] = fitting.pop()
            else:
                doubtful.add(files)
    doubtful -= set(found)
    if doubtful:
        console.warn(f"several images or label rasters have one name, e.g. {min(doubtful)[0]}: these are left out")
        notes["several images or label rasters of one name"] += len(doubtful)
    if lacking := len(images) - len(found) - len(doubtful):
        notes["without a label raster"] += lacking
    return found


def _by_key(pairs: Iterable[tuple[str, Each]]) -> dict[str, set[Each]]:
    found: dict[str, set[Each]] = defaultdict(set)
    for key, each in pairs:
        if key:
            found[key].add(each)
    return found


def _names(files: Names) -> Names:
    """Paths a label raster may go by: that of the one file; of several what their names share, and their folder."""
    bare = [_bare(path) for path in files]
    if len(bare) == 1:
        return tuple(bare)
    least, most = min(bare), max(bare)  # what these share, all do
    shared = next((least[:end] for end, each in enumerate(least) if most[end : end + 1] != each), least)
    return tuple(filter(None, (_trunk(shared) and shared.rpartition("_")[0], os.path.dirname(shared))))


def _bare(path: str) -> str:
    """Without its suffix, of which .nii.gz is one."""
    root, suffix = os.path.splitext(path)
    return os.path.splitext(root)[0] if suffix.lower() == ".gz" else root


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _trunk(path: str) -> str:
    """The name without its last ``_token``; "" where it has none, or one that is a number and tells images apart."""
    head, _, token = _last(path).rpartition("_")
    return "" if token.isdecimal() else head


def _nothing(images: Mapping[Names, Names], masks: Path, folder: str) -> str:
    names = next(iter(images.values()))
    name = names[0] if names else ""
    last = _last(name)
    tries = dict.fromkeys((f"{name}.*", f"{last}.*", f"{last}_*", *([f"{_trunk(name)}_*"] if _trunk(name) else [])))
    return (
        f"no label raster in {masks} for any of the {len(images):,} images in {folder}: that of "
        f"{next(iter(images))[0]}, say, was looked for as {', '.join(tries)}, and there must be one"
    )
