"""How good frozen features are: a linear or nearest-neighbour probe, its metrics, intervals and verdict.

Shapes: N training items, M test items, D features, K classes, B bootstrap resamples. Features are float32.
Every choice (strength of the penalty, neighbours, pool) is made on held-out groups of the training part; the
test part is touched once, by the model chosen. The encoder and each baseline go through `evaluate` alike.
Intervals are of the headline metric: accuracy, of items with several labels mean AUROC, of patches mIoU.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.bootstrap import MIN_GROUPS, Metric, bootstrap_interval, paired_difference
from maectl.bootstrap import mean as mean_of
from maectl.errors import DataError, UsageError
from maectl.labels import Ints, Labels, Mask, Targets, split
from maectl.overlap import mean_f1, mean_iou, overlaps
from maectl.solvers import classes_of, knn_path, linear_path, one_hot

__all__ = [
    "Evaluation",
    "average",
    "evaluate",
    "headline",
    "knn",
    "linear",
    "majority",
    "metrics",
    "pick",
    "verdict",
]

Array = npt.NDArray[Any]
Method = Callable[[Array, Targets, Array, Sequence[float], int], Iterator[Array]]

STRENGTHS = tuple(float(c) for c in np.logspace(-4, 2, 13))  # C: penalty |W|²/2 beside C times the summed loss
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
HEADS = ("accuracy", "balanced_accuracy", "f1_macro", "auroc", "miou")
HELD_OUT = 0.25  # of the training part
WHOLE_PATH = 2000  # items up to which every strength is tried: of few, the loss may rise before it falls


@dataclass(frozen=True)
class Evaluation:
    """One set of features, scored: what was chosen on the training part and what the test part says.

    strength       C of the linear probe, k of the nearest neighbours; 0 for `majority`
    held_out       the loss that chose pool and strength, on held-out training groups
    probabilities  float32 [M, K], of the test items in the order of `Labels`
    metrics        as `metrics` returns them, with ``ci95``
    """

    method: str
    pool: str
    strength: float
    held_out: float
    probabilities: Array
    metrics: dict[str, Any]


def linear(train_x: Array, train_y: Targets, test_x: Array, *, groups: Ints, seed: int) -> Array:
    """Class probabilities [M, K] of a logistic regression, C chosen on held-out training groups."""
    return _single("linear", train_x, train_y, test_x, groups, seed)


def knn(train_x: Array, train_y: Targets, test_x: Array, *, groups: Ints, seed: int) -> Array:
    """Class probabilities [M, K] of weighted nearest neighbours, k chosen on held-out training groups."""
    return _single("knn", train_x, train_y, test_x, groups, seed)


def _single(method: str, train_x: Array, train_y: Targets, test_x: Array, groups: Ints, seed: int) -> Array:
    _, strength, _ = pick({"": train_x}, train_y, groups=groups, method=method, seed=seed)
    return next(METHODS[method][0](train_x, train_y, test_x, (strength,), classes_of(train_y)))


def pick(
    features: Mapping[str, Array], targets: Targets, *, groups: Ints, method: str, seed: int
) -> tuple[str, float, float]:
    """Pool, strength and held-out loss that come out best on the training part.

    ``features`` maps a pool to [N, D]. Small sets are split up to five times and the losses averaged.
    """
    path, grid, loss = METHODS[method]
    repeats = int(np.clip(5000 // len(targets), 1, 5))
    best = ("", 0.0, np.inf)
    for pool, x in features.items():
        losses = np.full((repeats, len(grid)), np.inf)
        for repeat in range(repeats):
            held = _held_out(targets, groups, (seed, repeat))
            for i, found in enumerate(path(x[~held], targets[~held], x[held], grid, classes_of(targets))):
                losses[repeat, i] = loss(targets[held], found)
                if i - losses[repeat].argmin() >= 3 and len(x) > WHOLE_PATH:
                    break  # worse three times running: a weaker penalty only fits slower and worse
        mean = losses.mean(axis=0)
        if best[2] > mean.min():
            best = (pool, float(grid[mean.argmin()]), float(mean.min()))
    return best


def _held_out(targets: Targets, groups: Ints, seed: tuple[int, int]) -> Mask:
    """Held-out items of the training part, bool [N], by group, or by item where there are too few groups."""
    for units in (groups, np.arange(len(groups))):
        held = split(targets, units, HELD_OUT, seed)
        if held.any() and not held.all():
            return held
    raise UsageError(f"{len(groups)} training images are too few for a probe: give every class two or more")


def evaluate(features: Mapping[str, Array], labels: Labels, *, method: str, pool: str | None, seed: int) -> Evaluation:
    """Fit on the training part, score on the test part.

    ``features`` maps a pool ("cls", "mean", "stats", ...) to [N, D], in the order of ``labels``; ``pool``
    fixes one of them, None chooses on the training part. Raises `maectl.errors.DataError` on NaN or infinity.
    """
    for name, x in features.items():
        if bad := int((~np.isfinite(x).all(axis=1)).sum()):
            raise DataError(
                f"the {name} features of {bad} of {len(x)} {labels.items} are not finite: check the encoder"
            )
    given = {name: x for name, x in features.items() if pool in (None, name)}
    train, targets = labels.train, labels.targets
    inside = {name: x[train] for name, x in given.items()}
    best = pick(inside, targets[train], groups=labels.groups[train], method=method, seed=seed)
    x = given[best[0]]
    path = METHODS[method][0]
    probabilities = next(path(x[train], targets[train], x[~train], (best[1],), len(labels.classes)))
    return Evaluation(method, *best, probabilities, _scored(probabilities, labels, seed))


def majority(labels: Labels, seed: int) -> Evaluation:
    """The baseline that has seen no image: the training part's class frequencies, for every test item."""
    frequency = one_hot(labels.targets[labels.train], len(labels.classes)).mean(axis=0)
    probabilities = np.tile(frequency, (int((~labels.train).sum()), 1))
    return Evaluation("majority", "", 0.0, np.inf, probabilities, _scored(probabilities, labels, seed))


def average(evaluations: Sequence[Evaluation], labels: Labels, seed: int) -> dict[str, Any]:
    """The mean of every metric over several evaluations (random twins), with the interval of that mean."""
    each = [evaluation.metrics for evaluation in evaluations]
    names = [name for name in HEADS if name in each[0]]
    mean = {name: None if each[0][name] is None else float(np.mean([m[name] for m in each])) for name in names}
    told = {name: each[0][name] for name in ("headline", "auroc_reason")}
    return mean | told | _intervals([e.probabilities for e in evaluations], labels, seed) | {"seeds": len(each)}


def metrics(truth: Targets, probabilities: Array, classes: Sequence[str], items: str = "images") -> dict[str, Any]:
    """Every number about M predictions; ``auroc`` is None, with ``auroc_reason``, where it is undefined.

    One label an item (``truth`` [M]): the likeliest class is predicted; recall is averaged over the classes
    in ``truth``, F1 over those in truth or prediction; AUROC is one class against the rest, averaged over
    classes (with two classes, of the second). Several labels (``truth`` bool [M, K]): probability 0.5 and
    over is predicted; ``accuracy`` is the share of items with every label right; the others are averaged
    over labels, AUROC over those both present and absent in ``truth``. Of ``items`` "patches" also ``miou``: the
    mean over classes in truth or prediction of intersection over union, pooled over all patches.
    """
    several = truth.ndim == 2
    true = one_hot(truth, len(classes)) > 0
    said = probabilities >= 0.5 if several else one_hot(probabilities.argmax(axis=1), len(classes)) > 0
    hits, support, claimed = (true & said).sum(axis=0), true.sum(axis=0), said.sum(axis=0)
    recall, precision = hits / np.maximum(support, 1), hits / np.maximum(claimed, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    specificity = (~true & ~said).sum(axis=0) / np.maximum((~true).sum(axis=0), 1)
    columns = zip(classes, precision, recall, f1, support, strict=True)
    auroc, reason = _mean_auroc(true, probabilities, classes, several, items)
    iou = hits / np.maximum(support + claimed - hits, 1)
    found: dict[str, Any] = {
        "accuracy": float((true == said).all(axis=1).mean()),
        "balanced_accuracy": float(((recall + specificity) / 2).mean() if several else recall[support > 0].mean()),
        "f1_macro": float(f1.mean() if several else f1[support + claimed > 0].mean()),
        "auroc": auroc,
        "auroc_reason": reason,
        "headline": "auroc" if several else "accuracy",
        "per_class": [
            {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in columns
        ],
        "confusion": None if several else (true.astype(np.int64).T @ said.astype(np.int64)).tolist(),
    }
    if items == "patches":
        found |= {"miou": float(iou[support + claimed > 0].mean()), "headline": "miou"}
        for each, value in zip(found["per_class"], iou, strict=True):
            each["iou"] = float(value)
    return found


def headline(truth: Targets, probabilities: Array) -> Metric:
    """The metric that intervals are about (accuracy; mean AUROC for multi-label), under weights [B, M]."""
    if truth.ndim == 1:
        correct = (probabilities.argmax(axis=1) == truth).astype(np.float64)
        return lambda weights: np.asarray(weights @ correct / weights.sum(axis=1))

    def mean_auroc(weights: Array) -> Array:
        labels = range(truth.shape[1])
        every = np.stack([_auroc(weights, truth[:, k] > 0, probabilities[:, k]) for k in labels])
        defined = np.isfinite(every).sum(axis=0)
        total = np.nan_to_num(every).sum(axis=0)
        return np.asarray(np.divide(total, defined, out=np.full(len(weights), np.nan), where=defined > 0))

    return mean_auroc


def verdict(
    encoder: Evaluation,
    random_init: Sequence[Evaluation],
    others: Mapping[str, Evaluation],
    labels: Labels,
    seed: int,
) -> str:
    """One line: the encoder against its random twins, then against each of ``others`` (name in words).

    It beats a baseline when the whole 95 % interval of the paired difference lies above zero.
    """
    mine, units = _measures(encoder.probabilities, labels)["ci95"]
    said = []
    for name, rivals in {"its random twin": random_init, **{name: [e] for name, e in others.items()}}.items():
        theirs = [_measures(rival.probabilities, labels)["ci95"][0] for rival in rivals]
        difference, interval = paired_difference(mine, theirs, units, seed)
        said.append(_compared(name, difference, interval))
    unit = "mIoU" if labels.items == "patches" else "mean AUROC" if labels.targets.ndim == 2 else "accuracy"
    reason = _no_interval(labels)
    return f"the encoder {', '.join(said)}; in points of {unit}" + (f"; no interval: {reason}" if reason else "")


def _compared(name: str, difference: float, interval: tuple[float, float] | None) -> str:
    if not np.isfinite(difference):
        return f"cannot be compared with {name}"
    points = f"{100 * difference:+.1f}"
    if interval is None:
        return f"scores {points} against {name}"
    low, high = interval
    span = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    if low <= 0 <= high:
        return f"does not beat {name} ({points}, {span})"
    return f"{'beats' if low > 0 else 'is worse than'} {name} by {points} ({span})"


def _scored(probabilities: Array, labels: Labels, seed: int) -> dict[str, Any]:
    found = metrics(labels.targets[~labels.train], probabilities, labels.classes, labels.items)
    return found | _intervals([probabilities], labels, seed)


def _intervals(every: Sequence[Array], labels: Labels, seed: int) -> dict[str, Any]:
    """The interval of each of `_measures`, of the mean over several predictions."""
    measured = [_measures(probabilities, labels) for probabilities in every]
    found: dict[str, Any] = {}
    for key, (_, units) in measured[0].items():
        interval = bootstrap_interval(mean_of([each[key][0] for each in measured]), units, seed)
        found[key] = interval and list(interval)
    return found | {"ci95_reason": None if found["ci95"] else _no_interval(labels)}


def _measures(probabilities: Array, labels: Labels) -> dict[str, tuple[Metric, Ints]]:
    """The metrics that intervals are about, by the key of the interval, and the units that are redrawn.

    Of patches these are whole groups, summed up beforehand: a resample then weighs groups, not patches.
    """
    truth, groups = labels.targets[~labels.train], labels.groups[~labels.train]
    if labels.items != "patches":
        return {"ci95": (headline(truth, probabilities), groups)}
    counts = overlaps(truth, probabilities.argmax(axis=1), groups, len(labels.classes))
    units = np.arange(len(counts))
    return {"ci95": (partial(mean_iou, counts), units), "f1_ci95": (partial(mean_f1, counts), units)}


def _no_interval(labels: Labels) -> str:
    """Why there is no interval; "" where there is one."""
    test = ~labels.train
    if (groups := len(np.unique(labels.groups[test]))) < MIN_GROUPS:
        return f"only {groups} test groups, and it takes {MIN_GROUPS}"
    truth = labels.targets[test]
    mixed = truth.ndim == 1 or (truth.any(axis=0) & ~truth.all(axis=0)).any()
    return "" if mixed else "no label is both present and absent in the test part"


def _mean_auroc(
    true: Mask, probabilities: Array, classes: Sequence[str], several: bool, items: str
) -> tuple[float | None, str | None]:
    mixed = np.asarray(true.any(axis=0) & ~true.all(axis=0))
    missing = ", ".join(name for k, name in enumerate(classes) if not mixed[k])
    if not (mixed.any() if several else mixed.all()):
        return None, f"without both present and absent test {items}: {missing}"
    kinds = np.flatnonzero(mixed) if several or len(classes) > 2 else [1]
    ones = np.ones((1, len(true)))
    auroc = float(np.mean([_auroc(ones, true[:, k], probabilities[:, k])[0] for k in kinds]))
    return auroc, f"without {missing}" if missing else None


def _auroc(weights: Array, positive: Mask, score: Array) -> Array:
    """AUROC [B] under weights [B, M]: how often a positive outranks a negative (ties half), or NaN."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    sums = [np.add.reduceat(weights[:, order] * mark[order], starts, axis=1) for mark in (positive, ~positive)]
    yes, no = sums  # [B, distinct scores]
    below = no.cumsum(axis=1) - no / 2
    pairs = yes.sum(axis=1) * no.sum(axis=1)
    outranked = (yes * below).sum(axis=1)
    return np.asarray(np.divide(outranked, pairs, out=np.full(len(weights), np.nan), where=pairs > 0))


def _surprise(truth: Targets, probabilities: Array) -> float:
    """Held-out log loss of a linear probe: steadier than its accuracy, and smooth in C."""
    goal, found = one_hot(truth, probabilities.shape[1]), np.clip(probabilities, 1e-7, 1)
    kept = goal * np.log(found)
    if truth.ndim == 2:
        kept += (1 - goal) * np.log(np.clip(1 - probabilities, 1e-7, 1))
    return -float(kept.sum(dtype=np.float64)) / len(goal)


def _shortfall(truth: Targets, probabilities: Array) -> float:
    """One minus the headline metric (of patches accuracy): votes of few neighbours are no probabilities to take the
    log of."""
    return 1 - float(np.nan_to_num(headline(truth, probabilities)(np.ones((1, len(truth))))[0]))


METHODS: dict[str, tuple[Method, Sequence[float], Callable[[Targets, Array], float]]] = {
    "linear": (linear_path, STRENGTHS, _surprise),
    "knn": (knn_path, NEIGHBOURS, _shortfall),
}
