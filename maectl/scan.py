"""Scan folders into an index: headers in parallel, channels resolved, what cannot be used set aside."""

import functools
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from maectl.adapter import Adapter, Channels, Files, Reject
from maectl.columns import Columns
from maectl.errors import DataError, UsageError
from maectl.index import Index, Rejects, write
from maectl.recipe import DataRecipe

__all__ = ["Scan", "made", "scan"]

CHUNK = 256  # files a task of the scanning pool
SERIAL = 2000  # files read by this process alone, to see how long a header takes
WORTHWHILE = 250e-6  # seconds a header times the processes: below, passing the results on costs more than it saves
Found = TypeVar("Found")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Scan:
    """What a scan found."""

    index: Index
    adapter: Adapter
    rejects: Rejects
    foreign: int  # files that are not of this adapter's formats
    notes: list[str]  # what was decided on the user's behalf
    facts: Counter[str]  # what the adapter says of the sources, and of how many
    defects: Counter[str]  # their `Source.notes`, and of how many


def scan(
    folders: Sequence[str | Path],
    kind: type[Adapter],
    recipe: DataRecipe,
    path: str | Path,
    *,
    workers: int = 0,
    progress: Progress = lambda files: None,
    mixed: bool = False,
) -> Scan:
    """Scan folders (or single files) into an index written to ``path``.

    Channels set to auto are resolved to what most sources have; the others are converted by the adapter
    (made again with that count), and a note says so. Of images, films and volumes only what holds most pixels stays,
    unless they may be ``mixed``. ``workers`` 0 means all cores. Raises DataError for
    a folder that does not exist or cannot be read and where nothing usable is found, UsageError for
    options the adapter does not have and for a folder inside another: its images would count twice, once to
    train on and once held out.
    """
    _apart(folders)
    adapter = made(kind, recipe)
    found = _scanned(adapter, folders, recipe, workers, progress, mixed)
    notes: list[str] = []
    if recipe.channels == "auto" and len(found.columns):
        counts = found.columns.channels()
        _, names = max(counts, key=lambda each: (counts[each], each[0]))
        adapter = made(kind, recipe, kind.resolved(names))
        if len(counts) > 1:  # the rest is converted: only the adapter can say how, and what it refuses
            notes.append(_conversion(counts, names))
            found = _scanned(adapter, folders, recipe, workers, progress, mixed)
    if not len(found.columns):
        raise DataError(_nothing_found(folders, kind.name, found))
    write(found.columns.table(), path)
    facts, defects = (
        functools.reduce(Counter.__add__, each) for each in zip(*found.columns.told.values(), strict=True)
    )
    return Scan(Index(path), adapter, found.rejects, found.foreign, notes + found.notes, facts, defects)


def made(kind: type[Adapter], recipe: DataRecipe, channels: Channels | None = None) -> Adapter:
    """The adapter with a recipe's options. Raises UsageError that names every option it does not take."""
    if "channels" in recipe.options:
        raise UsageError("data.options.channels: set data.channels instead")
    try:
        return kind(channels=recipe.channels if channels is None else channels, **recipe.options)
    except ValidationError as error:
        options = sorted(set(kind.model_fields) - {"channels"})
        faults = "; ".join(
            f"{'data' if fault['loc'][0] == 'channels' else 'data.options'}.{'.'.join(map(str, fault['loc']))}: "
            f"{fault['msg'].removeprefix('Value error, ')}, not {fault['input']!r}"
            for fault in error.errors()
        )
        raise UsageError(f"adapter {kind.name}: {faults} (its options: {', '.join(options) or 'none'})") from None


def _apart(folders: Sequence[str | Path]) -> None:
    """Raises UsageError where one of the folders is, or lies inside, another."""
    real = {Path(folder): Path(folder).resolve() for folder in folders}
    if len(real) < len(folders):
        raise UsageError(f"a folder is given twice: {', '.join(map(str, folders))}")
    owners = {path: folder for folder, path in real.items()}
    for folder, path in real.items():
        for parent in (path, *path.parents):
            other = owners.get(parent, folder)
            if other != folder:
                raise UsageError(f"{folder} lies inside {other}: give one of the two")


class _ParallelFiles(Files):
    """Files whose `map` runs on all cores where that pays, tells how many are done, and stops at once on Ctrl-C."""

    def __init__(
        self, path: str | Path, include: Sequence[str], exclude: Sequence[str], workers: int, progress: Progress
    ) -> None:
        super().__init__(path, include=include, exclude=exclude)
        self.workers = workers or os.cpu_count() or 1
        self.progress = progress

    def map(self, header: Callable[[str, str], Found]) -> Iterator[Found]:
        paths, done, begun = iter(self), 0, time.perf_counter()
        for done, path in enumerate(paths, 1):
            found = header(self.folder, path)
            self.progress(done)
            yield found
            if done == SERIAL and self._pays((time.perf_counter() - begun) / SERIAL):
                break
        else:
            return
        # forkserver: a fork of a process with threads may hang
        context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_ignore_interrupts)
        try:
            for headers in self._chunks(pool, header, paths):
                done += len(headers)
                self.progress(done)
                yield from headers
        finally:
            pool.shutdown(cancel_futures=True)

    def _pays(self, seconds: float) -> bool:
        """Whether other processes are worth it where a header takes that long; they must be able to start, too."""
        main = getattr(sys.modules["__main__"], "__file__", None)  # a session on standard input has one that is none
        return self.workers * seconds > WORTHWHILE and (main is None or os.path.exists(main))

    def _chunks(
        self, pool: ProcessPoolExecutor, header: Callable[[str, str], Found], paths: Iterator[str]
    ) -> Iterator[list[Found]]:
        """Chunks of headers in order, with a bounded number on their way, so that no list of all files exists."""
        waiting: list[Future[list[Found]]] = []
        while True:
            while len(waiting) < 4 * self.workers and (chunk := list(islice(paths, CHUNK))):
                waiting.append(pool.submit(_headers, header, self.folder, chunk))
            if not waiting:
                return
            yield waiting.pop(0).result()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C


def _headers(header: Callable[[str, str], Found], folder: str, paths: list[str]) -> list[Found]:
    return [header(folder, path) for path in paths]


@dataclass
class _Found:
    columns: Columns
    rejects: Rejects
    foreign: int = 0
    notes: list[str] = field(default_factory=list)


def _scanned(
    adapter: Adapter,
    folders: Sequence[str | Path],
    recipe: DataRecipe,
    workers: int,
    progress: Progress,
    mixed: bool,
) -> _Found:
    found = _Found(Columns([], recipe.group), Rejects())
    for number, folder in enumerate(folders):
        files = _ParallelFiles(folder, recipe.include, recipe.exclude, workers, progress)
        found.columns.folders.append(str(Path(files.folder).absolute()))
        claimed, last = 0, set[str]()
        for each in adapter.scan(files):
            claimed += len(set(each.paths) - last)  # sources that share a file come one after another
            last = set(each.paths)
            if isinstance(each, Reject):
                found.rejects.add(found.columns.folders[number], each.paths, "scan", each.reason)
            else:
                found.columns.add(each, number)
        found.foreign += files.seen - claimed
    if not mixed:
        _unmixed(found)
    return found


def _unmixed(found: _Found) -> None:
    """Volumes, films and single images cannot share a model: the lesser parts become rejects."""
    others, form = found.columns.uniform()
    for folder, paths in others:
        found.rejects.add(
            found.columns.folders[folder], paths, "scan",
            f"none of the {form} here, which hold more pixels: train on it apart (data.include, data.exclude)",
        )  # fmt: skip
    if others:
        found.notes.append(f"{len(others):,} sources are left out: they are no {form}, which hold more pixels here")


def _conversion(counts: dict[tuple[int, tuple[str, ...]], int], target: tuple[str, ...]) -> str:
    kinds = ", ".join(f"{count:,} {'/'.join(names)}" for (_, names), count in sorted(counts.items()))
    return (
        f"channels differ ({kinds}): all are read as {'/'.join(target)}, which most have, or left out "
        "(--set data.channels=... decides otherwise)"
    )


def _nothing_found(folders: Sequence[str | Path], adapter: str, found: _Found) -> str:
    where = ", ".join(map(str, folders))
    if found.rejects.rows:
        _, paths, _, reason = found.rejects.rows[0]
        return f"no usable image in {where}: all {len(found.rejects):,} were rejected, e.g. {paths}: {reason}"
    if found.foreign:
        return f"no image in {where}: none of its {found.foreign:,} files is for the adapter {adapter!r}"
    return f"no image in {where}: the folder is empty (or data.include and data.exclude leave nothing)"
