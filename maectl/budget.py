"""How long a run is and how large its batch: epochs, steps or time into whole optimizer steps."""

import time
from collections.abc import Callable

from maectl.recipe import Recipe

__all__ = ["batch_size", "rate", "timed", "warmup_steps"]

LEAST_BATCH, LEAST_STEPS = 64, 1000
TIMED_STEPS = 20
TIMED_SHARE = 0.1  # of the time given, spent on timing at most


def batch_size(most: int, images: float) -> int:
    """The largest power of two up to ``most``, at least 64, that leaves 1,000 optimizer steps of ``images`` shown.

    In short runs the number of steps counts for more than the size of the batch.
    """
    batch = LEAST_BATCH
    while batch * 2 <= most and images / (batch * 2) >= LEAST_STEPS:
        batch *= 2
    return min(batch, most)


def rate(base_lr: float, batch: int) -> float:
    """The peak learning rate: base_lr · batch / 256 (He et al. 2021, appendix A.1; Goyal et al. 2017)."""
    return base_lr * batch / 256


def warmup_steps(recipe: Recipe, steps: int, epoch_steps: float) -> int:
    """Steps of linear warm-up: the recipe's epochs, at most a tenth of the run."""
    return min(round(recipe.train.warmup_epochs * epoch_steps), steps // 10)


def timed(step: Callable[[int], None], seconds: float, agreed: Callable[[bool], bool] = bool) -> float:
    """Seconds a step takes: the mean of up to 20, the first left out, within a tenth of ``seconds``.

    Processes that step together stop together, when they have ``agreed`` that one has seen enough.
    """
    begun, taken = time.monotonic(), []
    for number in range(TIMED_STEPS):
        before = time.monotonic()
        step(number)
        taken.append(time.monotonic() - before)
        if agreed(number > 0 and time.monotonic() - begun > TIMED_SHARE * seconds):
            break
    return sum(taken[1:]) / len(taken[1:])
