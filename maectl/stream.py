"""Which image comes when: a counter-based sample stream that needs no saved state.

The stream is the endless concatenation of the epochs' permutations; optimizer step s takes items
[s·B, (s+1)·B). All chance comes from Philox generators keyed by what they are for, so nothing depends on the
number of workers or processes, or on where a run was interrupted.
"""

from dataclasses import dataclass, field

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
]

# what a generator is for; a redraw adds the purpose it redraws for
TRAIN, EPOCH, REDRAW, HELD_OUT = range(4)
RECONSTRUCT, SPLIT, SAMPLE, VERIFY, LOOK = range(8, 13)
Ints = npt.NDArray[np.int64]


def generator(seed: int, step: int, purpose: int = TRAIN, place: int = 0, attempt: int = 0) -> np.random.Generator:
    """The random generator of a step (or epoch), and of a redraw at a place of its batch.

    Philox (Salmon et al. 2011): distinct keys and counters give independent streams. The lowest counter
    word is left to the generator itself.
    """
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, place, attempt, purpose]))


@dataclass(frozen=True)
class Stream:
    """Rows of the index in training order.

    rows   int64 [N] the rows trained on
    views  int64 [N] how often an epoch shows each, or None for once
    batch  images an optimizer step
    """

    rows: Ints
    batch: int
    seed: int
    views: Ints | None = None
    _epochs: dict[int, Ints] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def epoch_length(self) -> int:
        """Images an epoch shows."""
        return len(self.rows) if self.views is None else int(self.views.sum())

    def steps(self, epochs: float) -> int:
        """Optimizer steps that many epochs take."""
        return int(np.ceil(epochs * self.epoch_length / self.batch))

    def step(self, step: int) -> Ints:
        """int64 [batch] the rows of an optimizer step."""
        items = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs, places = np.divmod(items, self.epoch_length)
        rows = np.empty(self.batch, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._epoch(int(epoch))[places[here]]
        return rows

    def _epoch(self, epoch: int) -> Ints:
        """int64 [epoch_length] rows in the order of one epoch; the last two epochs asked for are kept."""
        if epoch not in self._epochs:
            order = generator(self.seed, epoch, EPOCH).permutation(self.epoch_length)
            if self.views is not None:
                order = np.searchsorted(np.cumsum(self.views), order, side="right")
            while len(self._epochs) > 1:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = self.rows[order]
        return self._epochs[epoch]
