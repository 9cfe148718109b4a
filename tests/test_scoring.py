"""The probe: scikit-learn as the oracle of fits and metrics, brute force as that of intervals."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics as oracle
from sklearn.linear_model import LogisticRegression

from maectl import bootstrap, scoring, solvers
from maectl.errors import DataError, UsageError
from maectl.labels import WHOLE, Labels

CLASSES = ("a", "b", "c", "d")


def blobs(
    n: int = 400,
    d: int = 12,
    k: int = 4,
    noise: float = 1.5,
    seed: int = 0,
    each: int = 1,
    multi: bool = False,
) -> tuple[npt.NDArray[np.float32], Labels]:
    """Features that tell the classes apart in part, correlated like an encoder's; ``each`` images a group."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) // each
    count = int(groups[-1]) + 1
    kinds = rng.random((count, k)) < 0.3 if multi else np.eye(k, dtype=bool)[rng.integers(0, k, count)]
    centre = (kinds @ rng.normal(size=(k, d)) + noise * rng.normal(size=(count, d)))[groups]
    targets = kinds[groups] if multi else kinds[groups].argmax(axis=1)
    x = centre + 0.3 * rng.normal(size=(n, d)) + 5
    train = groups < 0.6 * groups.max()
    rows, whole = np.arange(n), np.full(n, WHOLE)
    labels = Labels(CLASSES[:k], targets, rows, whole, rows, train, groups, "", [])
    return (x @ (np.eye(d) + 0.5)).astype(np.float32), labels


def test_standardise_uses_the_training_part_alone_and_silences_constant_features() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 2, (50, 3)), rng.normal(9, 5, (20, 3))
    train[:, 1] = 0.1
    a, b = solvers.standardise(train, test)
    np.testing.assert_allclose(a[:, [0, 2]].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(a[:, [0, 2]].std(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(b[:, 0], (test[:, 0] - train[:, 0].mean()) / train[:, 0].std(), rtol=1e-5)
    assert not a[:, 1].any()
    assert not b[:, 1].any()
    assert a.dtype == b.dtype == np.float32


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_the_linear_probe_is_scikit_learn_s(strength: float) -> None:
    x, labels = blobs()
    train = labels.train
    found = next(solvers.linear_path(x[train], labels.targets[train], x[~train], (strength,), 4))
    a, b = solvers.standardise(x[train], x[~train])
    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-8).fit(a.astype(float), labels.targets[train])
    np.testing.assert_allclose(found, model.predict_proba(b), atol=5e-3)
    assert found.shape == (len(b), 4)


def test_the_multi_label_probe_is_one_logistic_regression_a_label() -> None:
    x, labels = blobs(multi=True)
    train = labels.train
    found = next(solvers.linear_path(x[train], labels.targets[train], x[~train], (0.1,), 4))
    a, b = solvers.standardise(x[train], x[~train])
    for k in range(4):
        model = LogisticRegression(C=0.1, max_iter=2000, tol=1e-8).fit(a.astype(float), labels.targets[train, k])
        np.testing.assert_allclose(found[:, k], model.predict_proba(b)[:, 1], atol=5e-3)


def test_a_warm_start_does_not_change_the_probe() -> None:
    x, labels = blobs()
    train = labels.train
    path = solvers.linear_path(x[train], labels.targets[train], x[~train], (1e-3, 0.1, 10.0), 4)
    direct = next(solvers.linear_path(x[train], labels.targets[train], x[~train], (10.0,), 4))
    np.testing.assert_allclose(list(path)[-1], direct, atol=5e-3)


@pytest.mark.parametrize("multi", [False, True])
def test_separable_and_outlying_features_in_more_dimensions_than_images_are_fitted(multi: bool) -> None:
    x, labels = blobs(n=60, d=80, noise=0.01, multi=multi)
    found = scoring.evaluate({"cls": x}, labels, method="linear", pool=None, seed=0)
    assert found.metrics["accuracy"] > 0.8
    x[3] *= 1e4
    found = scoring.evaluate({"cls": x}, labels, method="linear", pool=None, seed=0)
    assert np.isfinite(found.probabilities).all()


def test_knn_votes_by_similarity() -> None:
    x, labels = blobs(n=60)
    train = labels.train
    a, b = (z.astype(float) for z in solvers.standardise(x[train], x[~train]))
    found = list(solvers.knn_path(x[train], labels.targets[train], x[~train], (1, 5, 1000), 4))
    for k, share in zip((1, 5, 1000), found, strict=True):
        for i, row in enumerate(b):
            similar = a @ row / np.linalg.norm(a, axis=1) / np.linalg.norm(row)
            votes = np.zeros(4)
            for j in np.argsort(-similar)[:k]:
                votes[labels.targets[train][j]] += math.exp(similar[j] / 0.07)
            np.testing.assert_allclose(share[i], votes / votes.sum(), atol=1e-4)


@pytest.mark.parametrize("method", ["linear", "knn"])
@pytest.mark.parametrize("multi", [False, True])
def test_both_methods_beat_chance_and_the_single_call_agrees(method: str, multi: bool) -> None:
    x, labels = blobs(multi=multi)
    train = labels.train
    found = scoring.evaluate({"cls": x}, labels, method=method, pool=None, seed=0)
    call = getattr(scoring, method)
    again = call(x[train], labels.targets[train], x[~train], groups=labels.groups[train], seed=0)
    np.testing.assert_array_equal(found.probabilities, again)
    low, _high = found.metrics["ci95"]
    assert low > scoring.majority(labels, 0).metrics[found.metrics["headline"]]


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_the_choice_never_sees_the_test_part(method: str) -> None:
    x, labels = blobs(each=3)
    rng = np.random.default_rng(1)
    pools = {"cls": x, "mean": x + rng.normal(size=x.shape).astype(np.float32)}
    first = scoring.evaluate(pools, labels, method=method, pool=None, seed=0)
    test = ~labels.train
    for pool in pools.values():
        pool[test] = 100 * rng.normal(size=(test.sum(), x.shape[1]))
    labels.targets[test] = rng.permutation(labels.targets[test])
    second = scoring.evaluate(pools, labels, method=method, pool=None, seed=0)
    assert (first.pool, first.strength, first.held_out) == (second.pool, second.strength, second.held_out)
    assert first.metrics["accuracy"] != second.metrics["accuracy"]


def test_the_better_pool_is_chosen_unless_one_is_asked_for() -> None:
    x, labels = blobs()
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    for order in ({"cls": noise, "mean": x}, {"mean": x, "cls": noise}):
        assert scoring.evaluate(order, labels, method="linear", pool=None, seed=0).pool == "mean"
        assert scoring.evaluate(order, labels, method="linear", pool="cls", seed=0).pool == "cls"


def test_a_weaker_signal_asks_for_a_stronger_penalty() -> None:
    strengths = [
        scoring.evaluate({"": blobs(n=200, d=60, noise=noise)[0]}, blobs(n=200, d=60, noise=noise)[1],
                         method="linear", pool=None, seed=0).strength
        for noise in (0.2, 6.0)
    ]  # fmt: skip
    assert strengths[0] > strengths[1]


def test_a_training_part_of_one_group_is_held_out_by_image_and_too_small_a_one_refused() -> None:
    x, labels = blobs(n=40)
    labels.groups[labels.train] = 0
    assert scoring.evaluate({"": x}, labels, method="linear", pool=None, seed=0).strength > 0
    with pytest.raises(UsageError, match="2 training images are too few"):
        scoring.linear(x[:2], np.array([0, 1]), x[2:], groups=np.arange(2), seed=0)


def test_features_that_are_not_finite_are_refused() -> None:
    x, labels = blobs(n=40)
    x[:3, 2] = np.nan
    with pytest.raises(DataError, match="the cls features of 3 of 40 images are not finite"):
        scoring.evaluate({"cls": x}, labels, method="linear", pool=None, seed=0)


@pytest.mark.parametrize("k", [2, 4])
def test_metrics_are_scikit_learn_s(k: int) -> None:
    rng = np.random.default_rng(k)
    truth = rng.integers(0, k, 150)
    p = rng.dirichlet(np.ones(k), 150) + 0.7 * np.eye(k)[truth] * rng.random((150, 1))
    p = np.round(p / p.sum(axis=1, keepdims=True), 2)  # rounding makes ties
    p[:, -1] = 1 - p[:, :-1].sum(axis=1)
    said, found = p.argmax(axis=1), scoring.metrics(truth, p, CLASSES[:k])
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, said))
    assert found["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(truth, said))
    assert found["f1_macro"] == pytest.approx(oracle.f1_score(truth, said, average="macro"))
    auroc = oracle.roc_auc_score(truth, p[:, 1]) if k == 2 else oracle.roc_auc_score(truth, p, multi_class="ovr")
    assert found["auroc"] == pytest.approx(auroc)
    assert found["auroc_reason"] is None
    assert found["confusion"] == oracle.confusion_matrix(truth, said).tolist()
    table = oracle.classification_report(truth, said, target_names=CLASSES[:k], output_dict=True)
    for row in found["per_class"]:
        expected = table[row.pop("class")]
        assert row == pytest.approx({name.replace("f1-score", "f1"): value for name, value in expected.items()})


def test_classes_never_predicted_or_missing_in_test_count_as_scikit_learn_does() -> None:
    truth = np.array([0, 0, 1, 1, 1, 0])
    p = np.eye(4)[[0, 1, 1, 1, 2, 0]]
    found = scoring.metrics(truth, p, CLASSES)
    said = p.argmax(axis=1)
    assert found["f1_macro"] == pytest.approx(oracle.f1_score(truth, said, average="macro", zero_division=0))
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found["auroc"] is None
    assert found["auroc_reason"] == "without both present and absent test images: c, d"


def test_multi_label_metrics_are_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((120, 4)) < 0.4
    p = np.round(np.clip(0.5 * truth + 0.6 * rng.random((120, 4)), 0, 1), 2)
    found, said = scoring.metrics(truth, p, CLASSES), p >= 0.5
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, said))
    assert found["f1_macro"] == pytest.approx(oracle.f1_score(truth, said, average="macro"))
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(truth, p))
    every = [oracle.balanced_accuracy_score(truth[:, k], said[:, k]) for k in range(4)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(every))
    assert (found["headline"], found["confusion"]) == ("auroc", None)
    truth[:, 1] = True
    found = scoring.metrics(truth, p, CLASSES)
    rest = [0, 2, 3]
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(truth[:, rest], p[:, rest]))
    assert found["auroc_reason"] == "without b"


def test_auroc_under_weights_is_that_of_repeated_items() -> None:
    rng = np.random.default_rng(0)
    truth, p = rng.random((40, 3)) < 0.4, np.round(rng.random((40, 3)), 1)
    weights = rng.integers(0, 4, (5, 40))
    found = scoring.headline(truth, p)(weights.astype(float))
    for row, value in zip(weights, found, strict=True):
        assert value == pytest.approx(oracle.roc_auc_score(truth.repeat(row, axis=0), p.repeat(row, axis=0)))


@pytest.mark.parametrize("each", [1, 5])
def test_the_interval_is_that_of_redrawing_whole_groups(each: int) -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(200) // each
    truth = np.zeros(200, np.int64)
    p = np.eye(2)[(rng.random(200 // each) < 0.3).astype(int)[groups]]
    found = bootstrap.bootstrap_interval(scoring.headline(truth, p), groups, seed=1)
    means = []
    for _ in range(1000):
        drawn = rng.integers(0, 200 // each, 200 // each)
        items = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
        means.append((p[items].argmax(axis=1) == 0).mean())
    assert found == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.03)  # steps of a group: 0.025
    alone = bootstrap.bootstrap_interval(scoring.headline(truth, p), np.arange(200), seed=1)
    assert found is not None
    assert alone is not None
    wider = (found[1] - found[0]) / (alone[1] - alone[0])
    assert wider == pytest.approx(math.sqrt(each), rel=0.15)


def test_an_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        wrong = (rng.random(150) < 0.3).astype(int)
        interval = bootstrap.bootstrap_interval(
            scoring.headline(np.zeros(150, np.int64), np.eye(2)[wrong]), np.arange(150), trial, n=500
        )
        assert interval is not None
        covered += interval[0] <= 0.7 <= interval[1]
    assert 0.91 <= covered / 200 <= 0.98


def test_resamples_in_several_chunks_are_the_same_resamples() -> None:
    groups = np.arange(3000)
    p = np.eye(2)[np.random.default_rng(0).integers(0, 2, 3000)]
    metric, calls = scoring.headline(np.zeros(3000, np.int64), p), []

    def counted(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        calls.append(len(weights))
        return np.asarray(metric(weights))

    low, high = bootstrap.bootstrap_interval(counted, groups, seed=0) or (0, 0)
    assert sum(calls) == 2000
    assert len(calls) == 2
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 3000), rel=0.1)


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    rng = np.random.default_rng(0)
    truth, hard = np.zeros(300, np.int64), rng.random(300) < 0.4
    worse = hard | (rng.random(300) < 0.1)
    mine, theirs = (scoring.headline(truth, np.eye(2)[wrong.astype(int)]) for wrong in (hard, worse))
    difference, interval = bootstrap.paired_difference(mine, [theirs], np.arange(300), seed=0)
    alone = bootstrap.bootstrap_interval(mine, np.arange(300), seed=0)
    assert interval is not None
    assert alone is not None
    assert difference == pytest.approx(worse.mean() - hard.mean())
    assert 0 < interval[0] < difference < interval[1]
    assert interval[1] - interval[0] < 0.7 * (alone[1] - alone[0])
    mixed, _ = bootstrap.paired_difference(mine, [theirs, mine], np.arange(300), seed=0)
    assert mixed == pytest.approx(difference / 2)


def scored(x: npt.NDArray[np.floating], labels: Labels) -> scoring.Evaluation:
    return scoring.evaluate({"": x}, labels, method="linear", pool=None, seed=0)


@pytest.mark.parametrize("multi", [False, True])
def test_the_verdict_says_what_beats_what(multi: bool) -> None:
    x, labels = blobs(multi=multi)
    rng = np.random.default_rng(0)
    good, bad = scored(x, labels), [scored(rng.normal(size=x.shape), labels) for _ in range(3)]
    most = scoring.majority(labels, 0)
    line = scoring.verdict(good, bad, {"image statistics": good, "the majority class": most}, labels, 0)
    assert line.startswith("the encoder beats its random twin by +")
    assert "does not beat image statistics (+0.0, 95 % interval +0.0 to +0.0)" in line
    assert "beats the majority class by +" in line
    assert line.endswith("in points of mean AUROC" if multi else "in points of accuracy")
    assert "is worse than its random twin by -" in scoring.verdict(bad[0], [good] * 3, {}, labels, 0)


def test_few_test_groups_give_no_interval_and_say_so() -> None:
    x, labels = blobs(n=60, each=4)
    few = scored(x, labels)
    assert few.metrics["ci95"] is None
    assert few.metrics["ci95_reason"] == "only 6 test groups, and it takes 10"
    line = scoring.verdict(few, [few], {}, labels, 0)
    assert line == (
        "the encoder scores +0.0 against its random twin; in points of accuracy; "
        "no interval: only 6 test groups, and it takes 10"
    )


def test_labels_that_never_vary_in_test_leave_the_headline_undefined() -> None:
    x, labels = blobs(multi=True)
    labels.targets[~labels.train] = True
    found = scored(x, labels)
    assert found.metrics["auroc"] is None
    assert found.metrics["ci95"] is None
    assert found.metrics["ci95_reason"] == "no label is both present and absent in the test part"
    assert "cannot be compared with its random twin" in scoring.verdict(found, [found], {}, labels, 0)
    assert scoring.average([found, found], labels, 0)["auroc"] is None


def test_the_mean_of_several_twins_carries_every_metric() -> None:
    x, labels = blobs()
    rng = np.random.default_rng(0)
    twins = [scored(x + noise * rng.normal(size=x.shape), labels) for noise in (0, 2, 6)]
    mean = scoring.average(twins, labels, 0)
    for name in ("accuracy", "balanced_accuracy", "f1_macro", "auroc"):
        assert mean[name] == pytest.approx(np.mean([twin.metrics[name] for twin in twins]))
    assert mean["ci95"][0] < mean["accuracy"] < mean["ci95"][1]
    assert mean["seeds"] == 3


def test_the_majority_is_the_commonest_training_class() -> None:
    _, labels = blobs(k=2)
    labels.targets[labels.train] = (np.arange(labels.train.sum()) % 3 == 0).astype(int)
    found = scoring.majority(labels, 0).metrics
    assert found["accuracy"] == pytest.approx((labels.targets[~labels.train] == 0).mean())
    assert found["auroc"] == found["balanced_accuracy"] == 0.5


def test_a_weak_signal_under_a_strong_nuisance_is_found_where_items_are_few() -> None:
    """The held-out loss rises before it falls: the search for a strength must not end there."""
    rng = np.random.default_rng(0)
    targets = np.arange(120) % 3
    nuisance, direction = rng.normal(size=(120, 1)), rng.normal(size=(3, 40))
    x = nuisance + 0.06 * direction[targets] + 0.02 * rng.normal(size=(120, 40))
    train, test = x[:72].astype(np.float32), x[72:].astype(np.float32)
    found = scoring.linear(train, targets[:72], test, groups=np.arange(72), seed=0)
    assert (found.argmax(axis=1) == targets[72:]).mean() > 0.9
