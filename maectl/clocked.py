"""Where the time goes when images are loaded: in reading, in decoding, or in cropping and resizing."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from maectl.adapter import Adapter, Pixels, Source, Window
from maectl.dataset import Loader, Views
from maectl.reading import Reader, Store
from maectl.stream import TRAIN, Stream

__all__ = ["Seconds", "loading"]

WHOLE = 1 << 25  # bytes: files up to this size are taken to be read whole by their adapters
TURN = 8  # images
Seconds = dict[str, float]


def loading(views: Views, stream: Stream, seconds: float, most: int) -> Seconds:
    """Seconds an image in one thread: ``read``, ``decode`` and ``crop_resize``; for so long, or about ``most`` images.

    Reading is taking files as bytes, or copying a window out of a store's map; of a file larger than 32 MiB, which
    adapters read in parts, it counts as decoding.
    """
    spent: Seconds = {"read": 0.0, "decode": 0.0}
    reader = views.reader
    clocked = Reader(
        reader.index,
        cast(Adapter, _Clocked(reader.adapter, spent)),
        None if reader.store is None else cast(Store, _ClockedStore(reader.store, spent)),
    )
    rows, turn = stream.step(0), 0
    with closing(Loader(replace(views, reader=clocked), 1)) as loader:
        loader.batch(np.resize(rows, TURN), 0, TRAIN)
        spent.update(read=0.0, decode=0.0)
        begun = time.perf_counter()
        while not turn or (turn * TURN < most and time.perf_counter() - begun < seconds):
            turn += 1
            loader.batch(np.resize(np.roll(rows, -TURN * turn), TURN), turn, TRAIN)
        total = time.perf_counter() - begun
    own = {name: each / (turn * TURN) for name, each in spent.items()}
    return {**own, "crop_resize": max(0.0, total / (turn * TURN) - sum(own.values()))}


class _Clocked:
    """An adapter of which `read` is clocked; for one thread."""

    def __init__(self, adapter: Adapter, spent: Seconds) -> None:
        self._adapter, self._spent = adapter, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def read(self, source: Source, window: Window | None, shape: tuple[int, ...] | None = None) -> Pixels:
        begun = time.perf_counter()
        _read_files(source.files)
        read = time.perf_counter()
        pixels = self._adapter.read(source, window, shape)
        self._spent["read"] += read - begun
        self._spent["decode"] += time.perf_counter() - read
        return pixels


class _ClockedStore:
    """A store of which `read` is clocked; for one thread."""

    def __init__(self, store: Store, spent: Seconds) -> None:
        self._store, self._spent = store, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __contains__(self, row: int) -> bool:
        return row in self._store

    def read(self, row: int, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        begun = time.perf_counter()
        pixels = self._store.read(row, window, shape)
        mapped = _mapped(pixels.values)
        if mapped:  # nothing is read yet: copying a view of the map is what reads it
            last = np.ascontiguousarray(np.moveaxis(pixels.values, 0, -1))
            pixels = replace(pixels, values=np.moveaxis(last, -1, 0))
        self._spent["read" if mapped else "decode"] += time.perf_counter() - begun
        return pixels


def _mapped(values: Any) -> bool:
    """Whether an array is a view of a memory-mapped one."""
    while values is not None and not isinstance(values, np.memmap):
        values = getattr(values, "base", None)
    return values is not None


def _read_files(paths: Sequence[str]) -> None:
    try:
        if sum(Path(path).stat().st_size for path in paths) <= WHOLE:
            for path in paths:
                Path(path).read_bytes()
    except OSError:  # the adapter says so next, and another source takes its place
        return
