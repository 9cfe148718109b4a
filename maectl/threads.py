"""Work on threads: results in order, never far ahead, and no more threads than memory has room for."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from maectl import huge
from maectl.index import Index

__all__ = ["bounded", "in_order"]

UNDER_WAY = 8 << 30  # bytes of whole sources in memory at once
Item = TypeVar("Item")
Result = TypeVar("Result")


def bounded(index: Index, workers: int) -> int:
    """So many threads (0: one a core), or fewer where sources are so large that as many would not fit in memory."""
    largest = int((index.shapes.prod(axis=1, dtype=np.int64) * index.itemsizes).max())
    if index.shapes.shape[1] == 3:  # images: a huge one is read band by band, or a sample of it
        largest = min(largest, huge.HUGE)
    return max(1, min(workers or os.cpu_count() or 1, UNDER_WAY // (2 * largest)))


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
