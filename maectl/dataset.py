"""Batches, a step ahead of the model: prepared by threads, in one process or each its share in several.

What they are made of lies in `batch` (what a batch is, and what the model sees of it) and `views` (how rows become
crops); they can be had from here too.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from maectl.batch import Batch, Pending, normalise, on_device
from maectl.stream import TRAIN, Stream, generator, share
from maectl.views import Views

__all__ = ["Batch", "Loader", "Views", "normalise", "on_device"]

AHEAD = 2  # batches prepared before they are asked for
Ints = npt.NDArray[np.int64]


class Loader:
    """Batches by step, prepared by threads (decoding and resizing release the interpreter's lock).

    Of ``world`` processes that share each batch this is number ``rank``: `batches` gives its contiguous share, and
    the shares of all are, to the bit, the batch of one process. ``waited`` is the time in seconds the caller has
    spent waiting for batches.
    """

    def __init__(self, views: Views, workers: int, pin: bool = False, rank: int = 0, world: int = 1) -> None:
        self.views, self.workers, self.pin = views, workers, pin
        self.rank, self.world = rank, world
        self.waited = 0.0
        self._pool = _pool(workers)

    def batches(self, stream: Stream, start: int, stop: int) -> Iterator[Batch]:
        """This process's share of the batches of steps [start, stop) of a stream."""
        waiting: list[tuple[Pending, list[Future[None]]]] = []
        for step in range(start, stop + AHEAD):
            if step < stop:
                rows = stream.step(step)
                part = share(len(rows), self.rank, self.world)
                waiting.append(self._submit(rows, stream.rows, step, TRAIN, part))
            if step - start >= AHEAD and waiting:
                yield self._finished(*waiting.pop(0))

    def batch(self, rows: Ints, step: int, purpose: int) -> Batch:
        """One batch of given rows, whole in every process, with the draws of (step, purpose)."""
        return self._finished(*self._submit(rows, rows, step, purpose, slice(0, len(rows))))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(
        self, rows: Ints, candidates: Ints, step: int, purpose: int, part: slice
    ) -> tuple[Pending, list[Future[None]]]:
        generated, late = generator(self.views.seed, step, purpose), purpose == TRAIN
        pending = self.views.allocate(rows, candidates, generated, self.pin, part, late)
        chunks = _chunks(pending.rows, 2 * self.workers, self.views.crops > 1)
        return pending, [self._pool.submit(self.views.fill, pending, chunk, step, purpose) for chunk in chunks]

    def _finished(self, pending: Pending, parts: list[Future[None]]) -> Batch:
        begun = time.perf_counter()
        for part in parts:
            part.result()
        self.waited += time.perf_counter() - begun
        return pending.batch()


def _chunks(rows: Ints, count: int, several: bool) -> list[range]:
    """About as many runs of places; with ``several`` none ends between two places that show the same row."""
    each = max(1, -(-len(rows) // count))
    edges = np.arange(0, len(rows) + each, each).clip(max=len(rows))
    if several and len(rows):
        new = np.flatnonzero(np.diff(rows, prepend=-1, append=-1))  # where a run of a row begins, and the end
        edges = new[np.searchsorted(new, edges)]
    edges = np.unique(edges)
    return [range(first, last) for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads in each of which torch computes alone.

    Else every one of them would begin a team of its own, as large as the machine, for images far too small for it.
    torch's setting holds for the thread it is made in and for those that begin later, so it is put back here.
    """
    ready, before = threading.Barrier(workers + 1), torch.get_num_threads()

    def alone() -> None:
        torch.get_num_threads()  # the first call in a thread applies the process's setting
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="maectl-loader", initializer=alone)
    try:
        for _ in range(workers):
            pool.submit(int)
        ready.wait()
    except BaseException:  # a thread that cannot begin, Ctrl-C: those that wait would keep the process alive
        ready.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(before)
    return pool
