"""The index of sources: columnar, memory-mapped, next to nothing a process; and its split and its rejects.

The index is one Arrow IPC file: a row a source. What repeats from row to row (dtype, unit, axis and channel
names) is kept once, as a *kind*, in the schema's metadata beside the folders scanned. Groups are dense
integers in order of first appearance; the adapter's own words for them are never written.
"""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from maectl.adapter import Source
from maectl.errors import DataError
from maectl.stream import SPLIT, generator

__all__ = ["SCHEMA", "Index", "Rejects", "held_out", "read_quarantine", "write", "write_quarantine"]

MOST_HELD = 256  # rows measured on
Ints = npt.NDArray[np.int64]

SCHEMA = pa.schema(
    [
        ("folder", pa.int32()),
        ("paths", pa.large_list(pa.large_binary())),  # a file name need not be UTF-8
        ("shape", pa.large_list(pa.int32())),
        ("spacing", pa.large_list(pa.float64())),
        ("kind", pa.int32()),
        ("group", pa.int32()),
        ("key", pa.large_binary()),
    ]
)


class Index:
    """Sources by row number; opens `path` memory-mapped, and again in any process it is pickled to."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        with pa.memory_map(self.path) as file:
            self._table = pa.ipc.open_file(file).read_all().combine_chunks()
        about = json.loads(self._table.schema.metadata[b"maectl"])
        self.folders: list[str] = about["folders"]
        self._kinds: list[dict[str, Any]] = about["kinds"]

    def __reduce__(self) -> tuple[type["Index"], tuple[str]]:
        return Index, (self.path,)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, row: int) -> Source:
        """The source at a row; its ``group`` is the dense integer, as text."""
        values = {name: self._table.column(name)[row].as_py() for name in SCHEMA.names}
        kind = self._kinds[values["kind"]]
        return Source(
            paths=tuple(map(os.fsdecode, values["paths"])),
            shape=tuple(values["shape"]),
            dtype=kind["dtype"],
            unit=kind["unit"],
            axes=tuple(kind["axes"]),
            channels=tuple(kind["channels"]),
            spacing=None if values["spacing"] is None else tuple(values["spacing"]),
            key=os.fsdecode(values["key"]),
            group=str(values["group"]),
            folder=self.folders[values["folder"]],
        )

    @property
    def groups(self) -> Ints:
        """[N] the dense group number of every row."""
        groups: Ints = self._column("group").astype(np.int64)
        return groups

    @property
    def shapes(self) -> npt.NDArray[np.int32]:
        """int32 [N, 1 + dimensions] shape [C, *S] of every row. Raises DataError where images and volumes mix."""
        column = self._array("shape")
        offsets = np.asarray(column.offsets)
        widths = np.unique(np.diff(offsets))
        if len(widths) > 1:
            raise DataError("images and volumes are mixed in one folder: take them apart with data.include")
        flat = np.asarray(column.values)[offsets[0] : offsets[-1]]
        return flat.reshape(len(self), -1)

    @property
    def itemsizes(self) -> Ints:
        """[N] bytes a value of every row."""
        sizes: Ints = np.array([np.dtype(kind["dtype"]).itemsize for kind in self._kinds])
        each: Ints = sizes[self._column("kind")]
        return each

    @property
    def kind_numbers(self) -> Ints:
        """[N] which of the kinds in `axes` every row is of."""
        numbers: Ints = self._column("kind").astype(np.int64)
        return numbers

    @property
    def axes(self) -> list[tuple[str, ...]]:
        """The axis names of every kind."""
        return [tuple(kind["axes"]) for kind in self._kinds]

    def spacings(self, axes: int) -> npt.NDArray[np.float64]:
        """float64 [N, axes] mm or m a pixel, NaN where unknown."""
        column = self._array("spacing")
        known = np.asarray(column.is_valid())
        spacings = np.full((len(self), axes), np.nan)
        spacings[known] = np.asarray(column.drop_null().flatten()).reshape(-1, axes)
        return spacings

    @property
    def file_counts(self) -> Ints:
        """[N] how many files every row has."""
        return np.diff(np.asarray(self._array("paths").offsets)).astype(np.int64)

    def dtype(self, row: int) -> np.dtype[Any]:
        """The dtype of one row."""
        name: str = self._kinds[self._table.column("kind")[row].as_py()]["dtype"]
        return np.dtype(name)

    @property
    def kinds(self) -> list[tuple[Source, int]]:
        """One source of every kind of header (dtype, unit, axes, channels), with how many rows share it."""
        kinds, first, counts = np.unique(self._column("kind"), return_index=True, return_counts=True)
        return [(self[int(row)], int(count)) for _, row, count in zip(kinds, first, counts, strict=True)]

    def names(self) -> list[str]:
        """[N] the first member file of every row, relative to its folder (one Python string a row)."""
        paths = self._array("paths")
        return [os.fsdecode(path) for path in pa.compute.list_element(paths, 0).to_pylist()] if len(self) else []

    def files(self, folder: int) -> set[str]:
        """Every member file of the sources of one folder, relative to it."""
        here = self._table.filter(pa.compute.equal(self._table.column("folder"), folder))
        return {os.fsdecode(path) for path in pa.compute.list_flatten(here.column("paths")).to_pylist()}

    def members(self) -> dict[str, tuple[int, int]]:
        """(row, number) of every file of the sources that have several, by its path relative to its folder."""
        column = self._array("paths")
        several = np.flatnonzero(np.diff(np.asarray(column.offsets)) > 1)
        paths = column.take(pa.array(several)).to_pylist()
        return {
            os.fsdecode(path): (int(row), number)
            for row, files in zip(several, paths, strict=True)
            for number, path in enumerate(files)
        }

    def take(self, rows: npt.NDArray[Any], path: str | Path) -> "Index":
        """The index of some of the rows, written to ``path``."""
        write(self._table.take(pa.array(rows)), path)
        return Index(path)

    def _array(self, name: str) -> Any:
        """A column in one piece: as it is mapped, for `combine_chunks` would copy it."""
        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.asarray(self._array(name))


Row = tuple[str, str, str, str]  # folder, paths, stage, reason


@dataclass
class Rejects:
    """What could not be used: rows of quarantine.csv. ``add`` takes a stage: scan, verify or train."""

    rows: list[Row] = field(default_factory=list)

    def add(self, folder: str, paths: Sequence[str], stage: str, reason: str) -> None:
        """Note one source (or would-be source) and why it is not used; once."""
        row = (folder, ";".join(paths), stage, reason)
        if stage != "train" or not self._known(row):  # a resumed run meets it again
            self.rows.append(row)

    def include(self, rows: Sequence[Row]) -> list[Row]:
        """Note what another process of the same run has met while training; what was new of it."""
        new = [row for row in rows if row[2] == "train" and not self._known(row)]
        self.rows += new
        return new

    def _known(self, row: Row) -> bool:
        """Whether a source failed before while training, maybe at another place and for another reason."""
        return any(each[:3] == row[:3] for each in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def files(self) -> int:
        """How many files that are."""
        return sum(paths.count(";") + 1 for _, paths, _, _ in self.rows)


def held_out(groups: Ints, seed: int) -> tuple[Ints, Ints]:
    """Rows to train on and rows held out, whole groups at a time: 2 %, 16 to 256 rows, at most a quarter.

    ``groups`` int64 [N]. Where every group is more than a quarter, one of the smallest is held out. A single group
    cannot be split: it is trained on, and some of its rows are measured on. Numbers without a row do not count.
    """
    total = len(groups)
    most = max(1, total // 4)
    wanted = min(max(16, min(MOST_HELD, round(0.02 * total))), most)
    order = generator(seed, 0, SPLIT).permutation(int(groups.max()) + 1)
    sizes = np.bincount(groups, minlength=len(order))[order]
    order, sizes = order[sizes > 0], sizes[sizes > 0]
    everything = np.arange(total)
    if len(order) == 1:
        return everything, everything[np.linspace(0, total - 1, min(total, MOST_HELD)).astype(int)]
    fitting = sizes <= most
    if not fitting.any():
        fitting = np.arange(len(order)) == sizes.argmin()
    order, sizes = order[fitting], sizes[fitting]
    chosen, count = [order[0]], sizes[0]
    for group, size in zip(order[1:], sizes[1:], strict=True):
        if count >= wanted:
            break
        if count + size <= most:
            chosen.append(group)
            count += size
    held = np.isin(groups, chosen)
    return everything[~held], everything[held]


def write_quarantine(rejects: Rejects, path: Path) -> None:
    """Write quarantine.csv: folder, paths (joined by ;), stage, reason."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("folder", "paths", "stage", "reason"))
        writer.writerows(rejects.rows)


def read_quarantine(path: Path) -> Rejects:
    """What `write_quarantine` wrote."""
    limit = csv.field_size_limit(2**31 - 1)  # a source of thousands of files is one field
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            _, *rows = csv.reader(file)
    finally:
        csv.field_size_limit(limit)
    return Rejects([(folder, paths, stage, reason) for folder, paths, stage, reason in rows])


def write(table: pa.Table, path: str | Path) -> None:
    """One uncompressed batch, so that every process maps the same pages."""
    table = table.combine_chunks()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
