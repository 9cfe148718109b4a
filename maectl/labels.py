"""From the paths of a folder's sources to labels and a train/test split.

The labels come from a CSV file, from ``train/<class>/…`` and ``test/<class>/…``, or from ``<class>/…``; the
split from the CSV file, from the folders, or from a seed. No group (patient, scene) is ever in both parts.
Every message is one line; what is left out is counted and said in `Labels.notes`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maectl.annotations import FILE, WHOLE, Annotations, Files, from_csv, from_folders
from maectl.errors import UsageError

__all__ = ["FILE", "TEST_SHARE", "WHOLE", "Labels", "absent", "by_group", "duplicates", "resolve", "split"]

TEST_SHARE = 0.3
ATTEMPTS = 100  # seeded splits tried until every class is in both parts

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Targets = Ints | Mask  # class numbers [N], or whether an item carries a label [N, K]


@dataclass(frozen=True)
class Labels:
    """Labels and split of the N sources used.

    An item is one source, one slice of one, (``per`` patient) all sources of a group, or a patch of an image.

    classes  K names, sorted
    targets  int64 [N], a class number each; or bool [N, K] where an item may carry several labels
    rows     int64 [M]: which of the paths given to `resolve`; one an item, unless items are groups
    places   int64 [M]: the slice of it, counted as the files have them; WHOLE where the source is meant,
             FILE + n where the slice in its n-th file is
    owners   int64 [M], ascending: the item that each is of
    train    bool [N]: in the training part; the others are the test part
    groups   int64 [N], dense: what a split never divides
    split    how the split came about, in words
    notes    what was left out or changed, a line each
    items    what they are, in words: "images", or "patches", which are measured by mIoU
    """

    classes: tuple[str, ...]
    targets: Targets
    rows: Ints
    places: Ints
    owners: Ints
    train: Mask
    groups: Ints
    split: str
    notes: list[str]
    items: str = "images"

    def only(self, keep: Ints) -> "Labels":
        """Of some of the items, ascending."""
        members = np.isin(self.owners, keep)
        return replace(
            self, targets=self.targets[keep], rows=self.rows[members], places=self.places[members],
            owners=np.searchsorted(keep, self.owners[members]), train=self.train[keep],
            groups=_dense(self.groups[keep]),
        )  # fmt: skip


def resolve(
    paths: Sequence[str],
    groups: npt.NDArray[np.integer],
    *,
    labels_csv: Path | None,
    folder: str,
    seed: int,
    files: Files = dict,
    per: str = "image",
) -> Labels:
    """Labels and split of the sources at ``paths`` (below ``folder``, with ``/``); ``groups`` [len(paths)].

    ``files`` gives, when it is asked, (row, number) of every member file of sources that have several: a table
    may name single slices so. ``per`` is ``image`` or ``patient``: then all sources of a group are one item.
    Raises `maectl.errors.UsageError` where the labels or the split cannot be used.
    """
    found = from_csv(labels_csv, paths, folder, files) if labels_csv else from_folders(paths, folder)
    order = np.lexsort((found.places, found.rows))
    rows, places = (np.array(each, np.int64)[order] for each in (found.rows, found.places))
    labels = [found.labels[i] for i in order]
    classes = _sorted(frozenset[str]().union(*labels))
    if len(classes) < 2:
        raise UsageError(
            f"{found.where}: {len(classes)} class found ({', '.join(classes) or 'none'}), a probe needs two: "
            "make one folder a class, or pass --labels FILE.csv"
        )
    targets = _targets(labels, classes, found.several)
    dense = _groups(groups[rows], [found.groups[i] for i in order])
    owners = np.arange(len(rows))
    train = np.array(found.parts)[order] == "train" if found.split else np.ones(len(rows), np.bool_)
    if per == "patient":
        owners, first = _patients(targets, dense, train, found)
        order = np.argsort(owners, kind="stable")
        rows, places, owners = rows[order], places[order], owners[order]
        targets, train, dense = targets[first], train[first], dense[first]
    labelled = Labels(classes, targets, rows, places, owners, train, dense, found.split, found.notes)
    if not found.split:
        train = _seeded(targets, dense, classes, seed, found)
        return replace(labelled, train=train, split=found.split)
    labelled = labelled.only(np.flatnonzero(_unbroken(train, dense, found)))
    _check_given(labelled.train, labelled.targets, classes, found)
    return labelled


def _patients(targets: Targets, groups: Ints, train: Mask, found: Annotations) -> tuple[Ints, Ints]:
    """Of N labelled sources: the item of each, a group's, and the first source of each item.

    Raises UsageError where the sources of a group are labelled apart, or lie in both parts.
    """
    alike = np.column_stack((targets, train))
    _, first, owners = np.unique(groups, return_index=True, return_inverse=True)
    apart = (alike != alike[first][owners]).any(axis=1)
    if apart.any():
        count = len(np.unique(groups[apart]))
        raise UsageError(
            f"{found.where}: {count} of {len(first)} patients have images of several classes or in both parts: "
            "leave out --per patient, or label them alike"
        )
    return np.asarray(owners, np.int64), np.asarray(first, np.int64)


def split(targets: Targets, groups: npt.NDArray[np.integer], share: float, seed: int | Sequence[int]) -> Mask:
    """Which of N items go to the smaller part: whole groups only, about ``share`` of every class; bool [N].

    The rarest class is divided first (iterative stratification, Sechidis et al. 2011, with groups in place
    of items), so a class in two groups or more lands in both parts unless groups hold several classes.
    """
    numbers, place = np.unique(groups, return_inverse=True)
    item, kind = np.arange(len(targets)), targets
    if targets.ndim == 2:  # items without any label are one more class
        item, kind = np.nonzero(np.column_stack([targets, ~targets.any(axis=1)]))
    (kinds, members), sizes = np.unique(np.stack([kind, place[item]]), axis=1, return_counts=True)
    return _smaller(kinds, members, sizes, len(numbers), share, seed)[place]


def _smaller(kinds: Ints, members: Ints, sizes: Ints, count: int, share: float, seed: int | Sequence[int]) -> Mask:
    """`split` of ``count`` groups, bool [count]: a group (members) has so many (sizes) items of a class (kinds)."""
    rank = np.random.default_rng(seed).permutation(count)
    chosen = np.full(count, -1, np.int8)  # -1 undecided, 1 the smaller part, 0 the larger
    totals = np.bincount(kinds, sizes)
    present = np.unique(kinds)
    for label in present[np.argsort(totals[present], kind="stable")]:
        where = np.flatnonzero(kinds == label)
        need = share * sizes[where].sum() - sizes[where[chosen[members[where]] == 1]].sum()
        free = where[chosen[members[where]] < 0]
        for i in free[np.argsort(rank[members[free]])]:
            chosen[members[i]] = sizes[i] <= 2 * need  # whether taking it comes closer to the share
            need -= sizes[i] * chosen[members[i]]
    return np.asarray(chosen == 1)


def by_group(targets: Ints, groups: Ints, classes: int, seed: int) -> Mask:
    """The training part of items of which a group holds many, of several classes; bool [N].

    Whole groups, about 30 % of the items for testing; the first of 100 seeded splits that has every class in both
    parts and half to one and a half times that share, else the one that comes nearest. ``groups`` are two at least.
    """
    numbers, place = np.unique(groups, return_inverse=True)
    code, sizes = np.unique(targets * len(numbers) + place, return_counts=True)
    kinds, members = np.divmod(code, len(numbers))
    best, nearest = np.zeros(len(numbers), np.bool_), (2 * classes, 1.0)
    for attempt in range(ATTEMPTS):
        test = _smaller(kinds, members, sizes, len(numbers), TEST_SHARE, (seed, attempt))
        inside = test[members]
        missing = 2 * classes - len(np.unique(kinds[inside])) - len(np.unique(kinds[~inside]))
        off = float(abs(sizes[inside].sum() / sizes.sum() - TEST_SHARE))
        if test.any() and not test.all() and (missing, off) < nearest:
            best, nearest = test, (missing, off)
        if nearest[0] == 0 and nearest[1] <= TEST_SHARE / 2:
            break
    return np.asarray(~best[place])


def duplicates(train_hashes: npt.NDArray[np.generic], test_hashes: npt.NDArray[np.generic]) -> int:
    """How many test items have the content hash (uint64 or bytes) of a training item."""
    return int(np.isin(test_hashes, train_hashes).sum())


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    names = sorted(names)
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def _targets(labels: list[frozenset[str]], classes: tuple[str, ...], several: bool) -> Targets:
    number = {name: i for i, name in enumerate(classes)}
    if not several:
        return np.array([number[name] for (name,) in labels], np.int64)
    targets = np.zeros((len(labels), len(classes)), np.bool_)
    for row, names in enumerate(labels):
        targets[row, [number[name] for name in names]] = True
    return targets


def _dense(groups: npt.NDArray[np.integer]) -> Ints:
    return np.asarray(np.unique(groups, return_inverse=True)[1], np.int64)


def _groups(index: npt.NDArray[np.integer], named: list[str]) -> Ints:
    """The CSV file's group where it names one (the user knows best), else the index's; dense."""
    number = {name: -1 - i for i, name in enumerate(dict.fromkeys(named))}
    return _dense(np.array([number[name] if name else own for name, own in zip(named, index, strict=True)]))


def _unbroken(train: Mask, groups: Ints, found: Annotations) -> Mask:
    """What stays once test images of groups that also train are dropped; bool [N]."""
    leaked = ~train & np.isin(groups, groups[train])
    if leaked.any():
        found.notes.append(
            f"left out of the test part: {leaked.sum()} images of {len(np.unique(groups[leaked]))} groups "
            "(patients, scenes) that are in the training part too"
        )
    return ~leaked


def _check_given(train: Mask, targets: Targets, classes: tuple[str, ...], found: Annotations) -> None:
    for part, mask in (("train", train), ("test", ~train)):
        if not mask.any():
            why = "; ".join(found.notes)
            raise UsageError(
                f"{found.where}: the {part} part is empty{f' ({why})' if why else ''}: give it images, or "
                "leave the split out for a seeded one"
            )
    untaught, untested = absent(targets[train], classes), absent(targets[~train], classes)
    if untaught and targets.ndim == 1:
        raise UsageError(
            f"{found.where}: class {untaught[0]!r} is in the test part and not in the training part "
            f"({len(untaught)} such): add training images of it, or remove it"
        )
    for part, names in (("training", untaught), ("test", untested)):
        if names:
            found.notes.append(f"without a {part} image: {', '.join(names)}")


def _seeded(targets: Targets, groups: Ints, classes: tuple[str, ...], seed: int, found: Annotations) -> Mask:
    """The training part of a seeded split, bool [N]; every class in both parts, unless multi-label."""
    found.split = f"seeded, stratified, by group: {TEST_SHARE:.0%} for testing (seed {seed})"
    if targets.ndim == 1:
        pairs = np.unique(np.stack([targets, groups]), axis=1)
        alone = np.flatnonzero(np.bincount(pairs[0]) < 2)
        if len(alone):
            what = "image" if np.bincount(targets)[alone[0]] == 1 else "group (patient, scene)"
            raise UsageError(
                f"{found.where}: class {classes[alone[0]]!r} has one {what} and cannot be in both parts of a "
                f"split ({len(alone)} of {len(classes)} classes are so): add images, or remove it"
            )
    for attempt in range(ATTEMPTS):
        test = split(targets, groups, TEST_SHARE, (seed, attempt))
        missing = sorted({*absent(targets[test], classes), *absent(targets[~test], classes)})
        if not missing:
            return ~test
    if targets.ndim == 1 or not test.any() or test.all():
        raise UsageError(
            f"{found.where}: no split of {groups.max() + 1} groups has class {missing[0]!r} in both parts: "
            "add groups, or give train and test yourself"
        )
    found.notes.append(f"in one part only: {', '.join(missing)}")
    return ~test


def absent(targets: Targets, classes: tuple[str, ...]) -> list[str]:
    """The classes that none of the items is of."""
    seen = set(np.nonzero(targets)[1] if targets.ndim == 2 else targets)
    return [name for i, name in enumerate(classes) if i not in seen]
