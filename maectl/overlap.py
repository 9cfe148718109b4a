"""mIoU and F1 of many items in few groups, under the weights of a bootstrap: functions of summed counts.

Shapes: N items, G groups, K classes, B bootstrap resamples. Each metric is a mean over the classes that are in truth
or prediction.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.labels import Ints

__all__ = ["mean_f1", "mean_iou", "overlaps"]

Array = npt.NDArray[Any]


def overlaps(truth: Array, predicted: Array, groups: Ints, classes: int) -> Array:
    """float64 [G, 3, K] of every group and class: items rightly predicted, items there are, items predicted."""
    numbers, place = np.unique(groups, return_inverse=True)
    right = predicted == truth

    def counted(kinds: Array, places: Array) -> Array:
        size = len(numbers) * classes
        return np.bincount(places * classes + kinds, minlength=size).reshape(len(numbers), classes)

    parts = (counted(truth[right], place[right]), counted(truth, place), counted(predicted, place))
    return np.stack(parts, axis=1).astype(np.float64)


def mean_iou(counts: Array, weights: Array) -> Array:
    """mIoU [B], intersection over union, of `overlaps` under weights [B, G] of the groups.

    The Jaccard index, as in Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective".
    """
    hits, support, claimed = np.moveaxis(np.tensordot(weights, counts, 1), 1, 0)
    return _mean(hits, support + claimed - hits)


def mean_f1(counts: Array, weights: Array) -> Array:
    """Macro F1 [B], likewise."""
    hits, support, claimed = np.moveaxis(np.tensordot(weights, counts, 1), 1, 0)
    return _mean(2 * hits, support + claimed)


def _mean(above: Array, below: Array) -> Array:
    """[B] mean of above / below [B, K] over the classes where below is not 0."""
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.asarray(ratio.sum(axis=1) / (below > 0).sum(axis=1))
