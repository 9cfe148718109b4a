"""Classifiers on frozen features: logistic regression and nearest neighbours, along a path of strengths.

Shapes: N training items, M test items, D features, K classes. Features are float32.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.labels import Targets

__all__ = ["classes_of", "knn_path", "linear_path", "one_hot", "standardise"]

Array = npt.NDArray[Any]
Objective = Callable[[Array], tuple[float, Array]]  # parameters -> value and slope


def standardise(train: Array, *others: Array) -> list[Array]:
    """Every array with the training mean taken off and divided by the training deviation; float32.

    A feature constant over the training part tells nothing and becomes 0 everywhere.
    """
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    known = deviation > 1e-6 * np.abs(mean)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=known)
    return [((values - mean) * scale).astype(np.float32) for values in (train, *others)]


def classes_of(targets: Targets) -> int:
    """K: the columns of multi-label targets, else one more than the largest class number."""
    return targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1


def one_hot(targets: Targets, classes: int) -> Array:
    """float32 [N, K], 1 for each label an item carries."""
    return (targets if targets.ndim == 2 else targets[:, None] == np.arange(classes)).astype(np.float32)


def linear_path(
    train_x: Array, train_y: Targets, test_x: Array, strengths: Sequence[float], classes: int
) -> Iterator[Array]:
    """Test probabilities [M, K] of logistic regressions with growing C, each started from the one before.

    Softmax, or a sigmoid a label for several labels. Minimises mean log loss + |W|² / (2 C N), the intercept
    free, in the basis of the features' principal axes (the penalty does not see a rotation), each axis
    scaled by the curvature bound of Böhning (1992): three to five times fewer iterations on ViT features.
    """
    train, test = standardise(train_x, test_x)
    goal, shared = one_hot(train_y, classes), train_y.ndim == 1
    items, size = train.shape
    power, axes = np.linalg.eigh((train.T @ train / items).astype(np.float64))
    train, test = train @ axes.astype(np.float32), test @ axes.astype(np.float32)
    curvature = np.append(np.maximum(power, 0), 1)[:, None] / (2 if shared else 4)
    weights = np.zeros((size + 1, classes))  # [D + 1, K], the last row the intercept
    for strength in strengths:
        penalty = np.append(np.full(size, 1 / (strength * items)), 0)[:, None]
        scale = 1 / np.sqrt(curvature + penalty)
        weights = scale * _minimise(_objective(train, goal, shared, penalty, scale), weights / scale)
        yield _probabilities(_logits(test, weights), shared)


def _objective(x: Array, goal: Array, shared: bool, penalty: Array, scale: Array) -> Objective:
    def objective(scaled: Array) -> tuple[float, Array]:
        w = scaled * scale
        loss, error = _log_loss(_logits(x, w), goal, shared)
        slope = np.vstack([x.T @ error, error.sum(axis=0)]) / len(x) + penalty * w
        return loss + float((penalty * w * w).sum()) / 2, slope * scale

    return objective


def _minimise(objective: Objective, x: Array) -> Array:
    """The minimum of a convex function of an array, by L-BFGS; below these tolerances float32 only rounds."""
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    def flat(w: Array) -> tuple[float, Array]:
        value, slope = objective(w.reshape(x.shape))
        return value, slope.ravel()

    options = {"maxcor": 10, "maxiter": 500, "ftol": 1e-7, "gtol": 1e-4}
    # numpy and scipy bring a pool of BLAS threads each, which fight over the cores: 10 to 40 times slower
    with threadpool_limits(limits=1, user_api="blas"):
        found = minimize(flat, x.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(x.shape))


def _logits(x: Array, weights: Array) -> Array:
    w = weights.astype(np.float32)
    return np.asarray(x @ w[:-1] + w[-1])


def _probabilities(logits: Array, shared: bool) -> Array:
    if not shared:
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _log_loss(logits: Array, goal: Array, shared: bool) -> tuple[float, Array]:
    """Mean over items of the log loss, and N times its slope [N, K] with regard to the logits."""
    found = _probabilities(logits, shared)
    entropy = (
        -np.log(np.maximum((goal * found).sum(axis=1), 1e-37)) if shared else np.logaddexp(0, logits) - goal * logits
    )
    return float(entropy.sum(dtype=np.float64)) / len(goal), found - goal


def knn_path(
    train_x: Array, train_y: Targets, test_x: Array, neighbours: Sequence[float], classes: int
) -> Iterator[Array]:
    """Test probabilities [M, K] of k nearest neighbours for growing k: cosine of standardised features.

    A neighbour of similarity s votes exp(s / 0.07) (Wu et al. 2018, instance discrimination).
    """
    train, test = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in standardise(train_x, test_x)
    )
    goal, most = one_hot(train_y, classes), min(int(max(neighbours)), len(train))
    near, close = np.empty((len(test), most), np.int64), np.empty((len(test), most), np.float32)
    for start in range(0, len(test), 1000):
        part = slice(start, start + 1000)
        similar = test[part] @ train.T
        some = np.argpartition(similar, -most, axis=1)[:, -most:]
        order = np.argsort(-np.take_along_axis(similar, some, axis=1), axis=1, kind="stable")
        near[part] = np.take_along_axis(some, order, axis=1)
        close[part] = np.take_along_axis(similar, near[part], axis=1)
    votes = np.exp((close - close[:, :1]) / 0.07)
    for k in neighbours:
        share = votes[:, : int(k)] / votes[:, : int(k)].sum(axis=1, keepdims=True)
        yield np.einsum("mk,mkc->mc", share, goal[near[:, : int(k)]])
