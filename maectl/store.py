"""Decode once: whole sources, memory-mapped; this module builds what `reading` reads.

A store is a folder, beside the run by default; in it a folder for each adapter with its options and each form
(`forms`), in which lie shards (`shards`). A source is known by a key: a hash of the paths, sizes, modification times
and ends of all its files (`keys`). So a changed file is never served from an old entry, and runs with the same
adapter options share the store. Entries appear only when complete: a killed build loses half a minute's work (its
leavings are swept up a day later). Several processes may build at once, each into shards of its own: the processes of
a run different rows; of two runs the second waits for the first (`building_lock`).
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maectl import console, forms, huge
from maectl.adapter import Adapter, Pixels
from maectl.errors import DataError, Unreadable
from maectl.forms import RAW, Form
from maectl.index import Index
from maectl.keys import Keys, source_keys
from maectl.reading import Reader, Store
from maectl.shards import LOCK, NOTHING, Writer, folder_of, sweep
from maectl.threads import bounded, in_order
from maectl.windows import MARGIN

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "NOTHING", "RAW", "Form", "Reader", "Store", "bounded", "build", "building", "building_lock", "default_folder",
    "in_order", "lacking", "opened", "raw_bytes",
]  # fmt: skip

RESERVE = 1 << 30  # bytes always left free on the disk
Progress = Callable[[int, int], None]
Bad = list[tuple[int, str]]
Ints = npt.NDArray[np.int64]


def default_folder(run: Path) -> Path:
    """Where the store of a run lies: beside it, shared by all runs there."""
    return run.absolute().parent / ".maectl-store"


def raw_bytes(index: Index, rows: Ints | None = None) -> int:
    """Bytes of the pixels of some rows of the index (None: all)."""
    sizes = RAW.sizes(index)
    return int((sizes if rows is None else sizes[rows]).sum())


def opened(
    index: Index, adapter: Adapter, folder: Path, *, form: Form = RAW, workers: int = 0, keys: Keys | None = None
) -> tuple[Store, Bad]:
    """What a store has of the sources of an index, and (row, reason) of those whose files cannot be opened.

    ``keys`` are those of all rows where they are known: to hash them opens every file.
    """
    own, gone = keys or source_keys(index, None, workers)
    return Store(folder_of(folder, adapter, form), index, own), gone


def lacking(index: Index, adapter: Adapter, folder: Path, form: Form, keys: Keys) -> Ints:
    """Rows that have no entry yet, which several processes are to decode. Raises DataError as `build`."""
    missing = opened(index, adapter, folder, form=form, keys=keys)[0].missing
    if len(missing):
        _check_space(form.sizes(index)[missing], form, folder)
    return missing


def build(
    index: Index,
    adapter: Adapter,
    folder: Path,
    *,
    rows: Ints | None = None,
    form: Form = RAW,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
    keys: Keys | None = None,
) -> tuple[Store, Bad]:
    """Decode every source that has no entry yet; the store, and (row, reason) of those that cannot be decoded.

    Of ``rows`` alone, where they are given (the share of one process): without the ``keys`` of all the store returned
    then knows these only, and `opened` knows all. Raises DataError naming the bytes needed where the disk is too
    small, and where it cannot be written to.
    """
    place = folder_of(folder, adapter, form)
    own, gone = keys or source_keys(index, rows, workers)
    chosen = None if rows is None else set(rows.tolist())
    unreadable = [(row, reason) for row, reason in gone if chosen is None or row in chosen]
    with _writable(place):
        place.mkdir(parents=True, exist_ok=True)
        sweep(place)
        store = Store(place, index, own)
        asked = store.missing if rows is None else np.intersect1d(store.missing, rows)
        wanted = np.setdiff1d(asked, [row for row, _ in unreadable])
        if len(wanted) == 0:
            return store, unreadable
        _check_space(form.sizes(index)[wanted], form, folder)
        writer = Writer(place, adapter, form)
        try:
            for done, (row, reason) in enumerate(_written(index, adapter, form, wanted, own, writer, workers), 1):
                if reason is not None:
                    unreadable.append((row, reason))
                progress(done, len(wanted))
        finally:  # whatever happens, what is written is kept
            writer.finish()
    return Store(place, index, own), sorted(unreadable)


@contextmanager
def building_lock(folder: Path, adapter: Adapter, form: Form = RAW) -> Iterator[None]:
    """Keep a second run from decoding what a first one is at: it waits here, then finds the entries made.

    Of the processes of a run one takes it for all. The system lets go of it when a process dies. On Windows, and on
    file systems that have no locks, nothing is waited for. Raises DataError where the folder cannot be written to.
    """
    place = folder_of(folder, adapter, form)
    with _writable(place):
        place.mkdir(parents=True, exist_ok=True)
        handle = _locked(place / LOCK)
    try:
        yield
    finally:
        if handle is not None:
            (place / LOCK).unlink(missing_ok=True)  # while it is held: who waits for it looks whether it is still there
            os.close(handle)


def building(place: Path) -> bool:
    """Whether a process holds the lock of a folder of a store."""
    try:
        handle = os.open(place / LOCK, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):  # nobody who may not read it builds here
        return False
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system that has no locks
        return False
    finally:
        os.close(handle)
    return False


def _locked(path: Path) -> int | None:
    """A handle that holds the lock, or None where there are no locks."""
    told = fcntl is None
    while fcntl is not None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if told else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            console.say(f"another process is building this store: waiting ({path.parent})")
            told = True
        except OSError:  # a file system that has none
            os.close(handle)
            return None
        except BaseException:  # Ctrl-C
            os.close(handle)
            raise
        os.close(handle)
    return None


@contextmanager
def _writable(place: Path) -> Iterator[None]:
    """Errors of the store's own files as DataError: those of a source only make it unreadable."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the store in {place} cannot be written ({error.strerror or error}): "
            "--set data.store=FOLDER elsewhere, or --set data.store=off"
        ) from error


# ---- decoding --------------------------------------------------------------------------------------------------


class _Made(NamedTuple):
    """An entry to be written: pixels, or a JPEG; with its extent where that is not the source's."""

    pixels: Pixels | None
    jpeg: bytes = b""
    extent: tuple[int, int] = (0, 0)


def _written(
    index: Index, adapter: Adapter, form: Form, rows: Ints, keys: npt.NDArray[np.void], writer: Writer, workers: int
) -> Iterator[tuple[int, str | None]]:
    """Each row once it is written, with the reason where it cannot be; huge ones last, band by band."""
    reader, workers = Reader(index, adapter), bounded(index, workers)
    changed = form.changes(index)
    large = (RAW.sizes(index)[rows] > huge.HUGE) & (reader.native.shape[1] == 3)  # of all at once: `Reader.huge`

    def made(row: np.int64) -> tuple[int, _Made | str]:
        try:
            return int(row), _shrunk(reader, int(row), form) if changed[row] else _Made(reader.read(int(row)))
        except Unreadable as error:
            return int(row), str(error)

    whole = in_order(made, rows[~large], workers)
    parted = ((int(row), in_order(partial(reader.read, int(row)), reader.bands(int(row)), workers))
              for row in rows[large])  # fmt: skip
    for row, found in chain(whole, parted):
        key = keys[row].tobytes()
        if isinstance(found, str):
            yield row, found
        elif not isinstance(found, _Made):
            yield row, writer.add(key, found)
        elif found.pixels is not None:
            yield row, writer.add(key, [found.pixels], found.extent)
        else:
            writer.add_jpeg(key, found.jpeg, found.extent)
            yield row, None


def _shrunk(reader: Reader, row: int, form: Form) -> _Made:
    """The entry of an 8-bit image; one with invalid pixels is kept as it is.

    A JPEG of many more pixels is decoded at a half, a quarter or an eighth first, as crops are without a store.
    """
    native = tuple(reader.native[row, 1:].tolist())
    extent = form.extent(*native)
    pixels = reader.reduced(row, tuple(ceil(MARGIN * side) for side in extent))
    if pixels.valid is not None and not pixels.valid.all():
        return _Made(pixels)
    values = forms.shrunk(pixels.values, extent)
    own = (0, 0) if extent == native else extent
    return _Made(None, forms.encoded(values), own) if form.jpeg else _Made(Pixels(values), extent=own)


def _check_space(sizes: Ints, form: Form, folder: Path) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    needed, free = int(sizes.sum()), shutil.disk_usage(there).free
    if needed + RESERVE > free:
        raise DataError(
            f"the store ({form}) needs {needed:,} bytes in {folder}, where {free:,} are free: "
            "--set data.store=FOLDER on a larger disk, or --set data.store=off"
        )
