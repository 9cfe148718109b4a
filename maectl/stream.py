"""Which image comes when: a counter-based sample stream that needs no saved state.

The stream is the endless concatenation of the epochs' permutations; optimizer step s takes items
[s·B, (s+1)·B). All chance comes from Philox generators keyed by what they are for, so nothing depends on the
number of workers or processes, or on where a run was interrupted.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "EPOCH",
    "HELD_OUT",
    "LOOK",
    "RECONSTRUCT",
    "REDRAW",
    "SAMPLE",
    "SPLIT",
    "TRAIN",
    "VERIFY",
    "Stream",
    "generator",
    "share",
]

# what a generator is for; a redraw adds the purpose it redraws for
TRAIN, EPOCH, REDRAW, HELD_OUT = range(4)
RECONSTRUCT, SPLIT, SAMPLE, VERIFY, LOOK = range(8, 13)
Ints = npt.NDArray[np.int64]
Order = npt.NDArray[np.integer[Any]]


def generator(seed: int, step: int, purpose: int = TRAIN, place: int = 0, attempt: int = 0) -> np.random.Generator:
    """The random generator of a step (or epoch), and of a redraw at a place of its batch.

    Philox (Salmon et al. 2011): distinct keys and counters give independent streams. The lowest counter
    word is left to the generator itself.
    """
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, place, attempt, purpose]))


def share(count: int, rank: int, size: int) -> slice:
    """Which of ``count`` items fall to process ``rank`` of ``size``: contiguous, remainders to the first ranks."""
    each, more = divmod(count, size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


@dataclass(frozen=True)
class Stream:
    """Rows of the index in training order.

    rows   int64 [N] the rows trained on
    views  int64 [N] how often an epoch shows each, or None for once
    batch  images an optimizer step
    crops  how many items in a row show the same source (repeated sampling: Feichtenhofer et al. 2022, section 3).
           A pass over a permutation then counts as so many epochs: an epoch shows as many images as ever
    """

    rows: Ints
    batch: int
    seed: int
    views: Ints | None = None
    crops: int = 1
    _passes: dict[int, Order] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def epoch_length(self) -> int:
        """Images an epoch shows."""
        return len(self.rows) if self.views is None else int(self.views.sum())

    def steps(self, epochs: float) -> int:
        """Optimizer steps that many epochs take."""
        return int(np.ceil(epochs * self.epoch_length / self.batch))

    def step(self, step: int) -> Ints:
        """int64 [batch] the rows of an optimizer step."""
        items = np.arange(step * self.batch, (step + 1) * self.batch) // self.crops
        passes, places = np.divmod(items, self.epoch_length)
        found = np.empty(self.batch, np.int64)
        for number in np.unique(passes):
            here = passes == number
            found[here] = self._order(int(number))[places[here]]
        if self.views is not None:
            found = np.searchsorted(self._ends, found, side="right")
        return self.rows[found]

    @cached_property
    def _ends(self) -> Ints:
        """[N] the place behind each row's last, where every row has as many as it has views."""
        assert self.views is not None
        return np.cumsum(self.views)

    def _order(self, number: int) -> Order:
        """[epoch_length] the order of one pass; the last two asked for are kept (of ten million, 40 MB each)."""
        if number not in self._passes:
            while len(self._passes) > 1:
                self._passes.pop(next(iter(self._passes)))
            order: Order = np.arange(self.epoch_length, dtype=np.uint32 if self.epoch_length < 1 << 32 else np.int64)
            generator(self.seed, number, EPOCH).shuffle(order)
            self._passes[number] = order
        return self._passes[number]
