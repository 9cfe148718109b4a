"""How sure a score is: intervals and paired differences, by a bootstrap over groups.

Shapes: M test items, B bootstrap resamples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.labels import Ints

__all__ = ["MIN_GROUPS", "Metric", "bootstrap_interval", "mean", "paired_difference"]

Array = npt.NDArray[Any]
Metric = Callable[[Array], Array]  # weights of the test items [B, M] -> the metric under each row [B]

MIN_GROUPS = 10  # below, a bootstrap over groups says nothing
RESAMPLES = 2000


def bootstrap_interval(metric: Metric, groups: Ints, seed: int, n: int = RESAMPLES) -> tuple[float, float] | None:
    """The 2.5 and 97.5 percentiles of a metric when whole groups of the test part (groups [M]) are redrawn.

    None with fewer than ten groups, or where the metric is undefined (cluster bootstrap, percentile
    interval: Efron and Tibshirani 1993, chapters 8 and 13).
    """
    numbers, place = np.unique(groups, return_inverse=True)
    if len(numbers) < MIN_GROUPS:
        return None
    rng = np.random.default_rng(seed)
    values, step = [], max(1, 4_000_000 // len(groups))  # resamples at once: 32 MB of weights
    for start in range(0, n, step):
        draws = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), min(step, n - start))
        values.append(metric(draws[:, place].astype(np.float64)))
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return (float(low), float(high)) if len(known) else None


def paired_difference(
    metric: Metric, baselines: Sequence[Metric], groups: Ints, seed: int, n: int = RESAMPLES
) -> tuple[float, tuple[float, float] | None]:
    """``metric`` minus the mean of the baselines', and the interval of that on common resamples."""
    other = mean(baselines)

    def difference(weights: Array) -> Array:
        return metric(weights) - other(weights)

    return float(difference(np.ones((1, len(groups))))[0]), bootstrap_interval(difference, groups, seed, n)


def mean(every: Sequence[Metric]) -> Metric:
    """The mean of several metrics."""
    return lambda weights: np.asarray(sum(metric(weights) for metric in every) / len(every))
