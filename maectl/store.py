"""Decode once: whole sources, raw and native, memory-mapped.

A store is a folder of shards beside the run; each shard is one file of pixels and one Arrow table of what
lies where. A source is known by a key: a hash of the paths, sizes, modification times and ends of all its files,
with the adapter, its options and the store's version. So a changed file is never served from an old entry, and
runs with the same adapter options share the store. Shards appear under their final name only when complete:
a killed build loses the shard it was writing (its leavings are swept up a day later), and two runs may build at once.

Pixels lie channel-last, so that a crop is read in long runs; validity, where not all is valid, as one byte
a pixel behind them.
"""

import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maectl import huge
from maectl.adapter import Adapter, Pixels, Source, Window
from maectl.errors import DataError, Unreadable
from maectl.index import Index

__all__ = [
    "NOTHING", "Reader", "Store", "bounded", "build", "default_folder", "in_order", "raw_bytes",
]  # fmt: skip

VERSION = 2
ENDS = 4096  # bytes hashed at each end of a file
SHARD = 1 << 30  # bytes of pixels after which a new shard begins
RESERVE = 1 << 30  # bytes always left free on the disk
UNDER_WAY = 8 << 30  # bytes of whole sources in memory at once
NOTHING = "no valid pixel (all nodata, transparent or not finite)"
SPOOLED = 1 << 26  # bytes of validity kept in memory while a source is written
STALE = 86_400  # seconds after which an unfinished shard is taken for a killed build's
SCHEMA = pa.schema(
    [("key", pa.binary(16)), ("offset", pa.int64()), ("valid_offset", pa.int64())]  # valid_offset -1: all valid
)
Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Store:
    """Entries of one adapter's store, for the sources of one index."""

    def __init__(self, folder: Path, index: Index, keys: npt.NDArray[np.bytes_]) -> None:
        self.folder = folder
        self._index = index
        self._shards: list[npt.NDArray[np.uint8]] = []
        known = [np.empty(0, "S16")]
        places = [np.empty((0, 3), np.int64)]
        for path in sorted(folder.glob("*.arrow")):
            try:
                with pa.memory_map(str(path)) as file:
                    table = pa.ipc.open_file(file).read_all()
                pixels = np.memmap(path.with_suffix(".pixels"), np.uint8, "c")  # torch warns of read-only arrays
            except (OSError, ValueError):  # half of it deleted, or lost with the power: its sources are missing
                continue
            column = table.column("key").combine_chunks()
            known.append(np.frombuffer(column.buffers()[1], "S16", len(column), 16 * column.offset))
            offsets = [np.asarray(table.column(name)) for name in ("offset", "valid_offset")]
            places.append(np.stack([np.full(len(column), len(self._shards)), *offsets], axis=1))
            self._shards.append(pixels)
        self._places = _looked_up(np.concatenate(known), np.concatenate(places), keys.view("S16"))
        self._shapes = index.shapes

    def __contains__(self, row: int) -> bool:
        return bool(self._places[row, 0] >= 0)

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Rows that have no entry."""
        return np.flatnonzero(self._places[:, 0] < 0)

    def read(self, row: int, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        """A window of a source, [C, *S], as views of the map; with ``shape`` every n-th pixel, not fewer than that."""
        shard, offset, valid_offset = (int(value) for value in self._places[row])
        channels, *extent = (int(side) for side in self._shapes[row])
        dtype = self._index.dtype(row)
        pixels = int(np.prod(extent))
        raw = self._shards[shard]
        values = raw[offset : offset + pixels * channels * dtype.itemsize].view(dtype).reshape(*extent, channels)
        window = window or tuple(slice(0, side) for side in extent)
        if shape is not None:
            steps = (max(1, (side.stop - side.start) // least) for side, least in zip(window, shape, strict=True))
            window = tuple(slice(side.start, side.stop, step) for side, step in zip(window, steps, strict=True))
        valid = None
        if valid_offset >= 0:
            valid = raw[valid_offset : valid_offset + pixels].view(np.bool_).reshape(extent)[window]
        return Pixels(np.moveaxis(values[window], -1, 0), None if valid is None or valid.all() else valid)


def _looked_up(
    known: npt.NDArray[np.bytes_], places: npt.NDArray[np.int64], keys: npt.NDArray[np.bytes_]
) -> npt.NDArray[np.int64]:
    """[N, 3] the place of every key, (-1, 0, 0) where it has none; no Python object a source."""
    found = np.tile(np.array([-1, 0, 0]), (len(keys), 1))
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known, keys, sorter=order)
    there = at < len(known)
    there[there] = known[order[at[there]]] == keys[there]
    found[there] = places[order[at[there]]]
    return found


@dataclass(frozen=True)
class Reader:
    """Windows of sources by row: from the store where it has them, else decoded."""

    index: Index
    adapter: Adapter
    store: Store | None = None

    def read(self, row: int, window: Window | None = None, size: tuple[int, ...] | None = None) -> Pixels:
        """``values`` [C, *S] and ``valid`` [*S] or None. Raises Unreadable.

        ``size`` is what the pixels will be resized to. A window of more than 16 million pixels may then have fewer,
        but at least twice that along each axis: what an overview holds, or a store's every n-th.
        """
        shape = None if size is None or window is None else huge.fewer(window, size)
        if self.store is not None and row in self.store:
            return self.store.read(row, window, shape)
        source = self.index[row]
        try:
            pixels = self.adapter.read(source, window, shape)
        except OSError as error:  # gone, moved or forbidden since the scan
            raise Unreadable(f"{type(error).__name__}: {error.strerror or error}") from error
        shape, dtype = pixels.values.shape, str(pixels.values.dtype)
        if dtype != source.dtype or (window is None and shape != source.shape):
            raise Unreadable(f"the header told of {source.dtype} {source.shape}, the pixels are {dtype} {shape}")
        return pixels

    def huge(self, row: int) -> bool:
        """Whether a source is an image too large to be decoded whole."""
        return huge.is_huge(self.index.shapes[row].tolist(), self.index.dtype(row))

    def bands(self, row: int) -> list[Window]:
        """Windows that cover a source, one unless it is huge: whole rows, top to bottom."""
        return huge.bands(self.index.shapes[row].tolist(), self.index.dtype(row))

    def sample(self, row: int) -> Pixels:
        """A source's pixels for statistics: all, or of a huge one 32 windows below one another, always the same."""
        return huge.sample(partial(self.read, row), self.index.shapes[row].tolist(), self.index.dtype(row))

    def sampled(self) -> npt.NDArray[np.int64]:
        """[N] how many pixels `sample` gives of each source."""
        sizes: npt.NDArray[np.int64] = self.index.shapes[:, 1:].prod(axis=1, dtype=np.int64)
        images = self.index.shapes.shape[1] == 3
        return np.where(images & (sizes > huge.LOOKED_AT * huge.BLOCK**2), huge.LOOKED_AT * huge.BLOCK**2, sizes)


def default_folder(run: Path) -> Path:
    """Where the store of a run lies: beside it, shared by all runs there."""
    return run.absolute().parent / ".maectl-store"


def raw_bytes(index: Index, rows: npt.NDArray[np.int64] | None = None) -> int:
    """Bytes that some rows of the index (None: all) take in a store."""
    sizes = index.shapes.prod(axis=1, dtype=np.int64) * index.itemsizes
    return int((sizes if rows is None else sizes[rows]).sum())


def bounded(index: Index, workers: int) -> int:
    """So many threads (0: one a core), or fewer where sources are so large that as many would not fit in memory."""
    largest = int((index.shapes.prod(axis=1, dtype=np.int64) * index.itemsizes).max())
    if index.shapes.shape[1] == 3:  # images: a huge one is read band by band, or a sample of it
        largest = min(largest, huge.HUGE)
    return max(1, min(workers or os.cpu_count() or 1, UNDER_WAY // (2 * largest)))


def build(
    index: Index,
    adapter: Adapter,
    folder: Path,
    *,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> tuple[Store, list[tuple[int, str]]]:
    """Decode every source that has no entry yet; the store, and (row, reason) of those that cannot be decoded.

    Raises DataError naming the bytes needed where the disk is too small, and where it cannot be written to.
    """
    folder = folder / _folder_name(adapter)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        return _built(index, adapter, folder, workers, progress)
    except OSError as error:  # of the store's own files: those of a source only make it unreadable
        raise DataError(
            f"the store in {folder} cannot be written ({error.strerror or error}): "
            "--set data.store=FOLDER elsewhere, or --set data.store=off"
        ) from error


def _built(
    index: Index, adapter: Adapter, folder: Path, workers: int, progress: Progress
) -> tuple[Store, list[tuple[int, str]]]:
    keys, unreadable = _keys(index, workers)
    store = Store(folder, index, keys)
    wanted = np.setdiff1d(store.missing, [row for row, _ in unreadable])
    if len(wanted) == 0:
        return store, unreadable
    _check_space(index, wanted, folder)
    reader, workers = Reader(index, adapter), bounded(index, workers)
    writer = _Writer(folder)
    try:
        large = np.array([reader.huge(row) for row in wanted])
        decoded = in_order(lambda row: (row, _decoded(reader, row)), wanted[~large], workers)
        parted = ((row, in_order(partial(reader.read, row), reader.bands(row), workers)) for row in wanted[large])
        for done, (row, parts) in enumerate(chain(decoded, parted), 1):
            reason = parts if isinstance(parts, str) else writer.add(bytes(keys[row]), parts)
            if reason is not None:
                unreadable.append((int(row), reason))
            progress(done, len(wanted))
        writer.finish()
    finally:
        writer.discard()
    return Store(folder, index, keys), sorted(unreadable)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``map`` on threads (0: one a core), results in order, at most twice as many under way as there are threads."""
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Result]] = []
        remaining = iter(items)
        while True:
            waiting.extend(pool.submit(function, item) for item in islice(remaining, 2 * workers - len(waiting)))
            if not waiting:
                return
            yield waiting.pop(0).result()


def _decoded(reader: Reader, row: int) -> list[Pixels] | str:
    try:
        return [reader.read(row)]
    except Unreadable as error:
        return str(error)


class _Writer:
    """Appends entries to a shard under a temporary name; `finish` gives shards their final one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begin()

    def _begin(self) -> None:
        self.path = self.folder / f"shard-{uuid.uuid4().hex}.tmp"
        self.file = self.path.open("wb")
        self.entries: list[tuple[bytes, int, int]] = []

    def add(self, key: bytes, parts: Iterable[Pixels]) -> str | None:
        """Append a source, in one part or in bands of its rows; why it cannot be read, or None."""
        offset = self._aligned()
        valid_offset, ones, useful = -1, 0, False
        with tempfile.SpooledTemporaryFile(SPOOLED, dir=str(self.folder)) as validity:  # it comes behind the values
            try:
                for pixels in parts:
                    self.file.write(np.ascontiguousarray(np.moveaxis(pixels.values, 0, -1)).data)
                    useful = useful or pixels.valid is None or bool(pixels.valid.any())
                    if pixels.valid is None:
                        ones += pixels.values[0].size
                        continue
                    validity.write(b"\1" * ones + np.ascontiguousarray(pixels.valid).tobytes())
                    ones = 0
                if not useful:
                    raise Unreadable(NOTHING)
            except Unreadable as error:
                self.file.seek(offset)
                self.file.truncate()
                return str(error)
            if validity.tell():
                validity.write(b"\1" * ones)
                validity.seek(0)
                valid_offset = self._aligned()
                shutil.copyfileobj(validity, self.file, 1 << 20)
        self.entries.append((key, offset, valid_offset))
        if self.file.tell() >= SHARD:
            self.finish()
            self._begin()
        return None

    def _aligned(self) -> int:
        """Where the next entry begins, for any dtype."""
        self.file.write(b"\0" * (-self.file.tell() % 16))
        return self.file.tell()

    def finish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if not self.entries:
            return
        final = self.path.with_suffix(".arrow")
        columns = [
            pa.array(column, kind.type) for column, kind in zip(zip(*self.entries, strict=True), SCHEMA, strict=True)
        ]
        temporary = self.path.with_suffix(".table")
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        self.path.rename(self.path.with_suffix(".pixels"))  # pixels first: the table is what makes it exist
        temporary.rename(final)

    def discard(self) -> None:
        """Remove what was not finished."""
        self.file.close()
        self.path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Delete what builds that were killed have left: shards of yesterday and before that have no table."""
    for path in folder.glob("shard-*"):
        left = path.suffix in (".tmp", ".table") or not path.with_suffix(".arrow").exists()
        if left and time.time() - path.stat().st_mtime > STALE:
            path.unlink(missing_ok=True)


def _folder_name(adapter: Adapter) -> str:
    options = f"{VERSION} {adapter.name} {adapter.model_dump_json()}"
    return f"{adapter.name}-{hashlib.blake2b(options.encode(), digest_size=6).hexdigest()}"


def _keys(index: Index, workers: int) -> tuple[npt.NDArray[np.bytes_], list[tuple[int, str]]]:
    """[N] 16-byte keys, and (row, reason) of sources whose files cannot be opened any more."""
    keys = np.zeros(len(index), "S16").view("V16")
    gone: list[tuple[int, str]] = []
    chunks = np.array_split(np.arange(len(index)), max(1, len(index) // 1024))
    for chunk, found in in_order(lambda rows: (rows, [_key(index[row]) for row in rows]), chunks, workers):
        for row, key in zip(chunk, found, strict=True):
            if isinstance(key, str):
                gone.append((int(row), key))
            else:
                keys[row] = np.void(key)
    return keys, gone


def _key(source: Source) -> bytes | str:
    # the paths too: copied images that differ in the middle alone can have the same size, times and ends
    about = repr((source.files, source.key, source.shape, source.dtype))
    digest = hashlib.blake2b(about.encode("ascii", "backslashreplace"), digest_size=16)
    try:
        for path in source.files:
            digest.update(_ends(path))
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror or error}"
    return digest.digest()


def _ends(path: str) -> bytes:
    """Size, modification time, and the first and last 4 KiB of a file."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        head = file.read(ENDS)
        file.seek(max(len(head), about.st_size - ENDS))
        return b"%d %d " % (about.st_size, about.st_mtime_ns) + head + file.read(ENDS)


def _check_space(index: Index, rows: npt.NDArray[np.int64], folder: Path) -> None:
    needed = raw_bytes(index, rows)
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        raise DataError(
            f"the store needs {needed:,} bytes in {folder}, where {free:,} are free: "
            "--set data.store=FOLDER on a larger disk, or --set data.store=off"
        )
