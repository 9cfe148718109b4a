"""From the paths of a folder's sources to labels and a train/test split.

The labels come from a CSV file, from ``train/<class>/…`` and ``test/<class>/…``, or from ``<class>/…``; the
split from the CSV file, from the folders, or from a seed. No group (patient, scene) is ever in both parts.
Every message is one line; what is left out is counted and said in `Labels.notes`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maectl import tables
from maectl.errors import UsageError

__all__ = ["FILE", "WHOLE", "Labels", "duplicates", "resolve", "split"]

WHOLE = -1  # in place of a slice
FILE = 1 << 32  # added to the number of a file, for the slice in it
TEST_SHARE = 0.3
ATTEMPTS = 100  # seeded splits tried until every class is in both parts
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
VALIDATION = {"val", "valid", "validation", "dev"}

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Files = Callable[[], dict[str, tuple[int, int]]]  # every member file: (row, number)
Targets = Ints | Mask  # class numbers [N], or whether an item carries a label [N, K]


@dataclass(frozen=True)
class Labels:
    """Labels and split of the N sources used.

    An item is one source, one slice of one, or (``per`` patient) all sources of a group.

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

    def only(self, keep: Ints) -> "Labels":
        """Of some of the items, ascending."""
        members = np.isin(self.owners, keep)
        return replace(
            self, targets=self.targets[keep], rows=self.rows[members], places=self.places[members],
            owners=np.searchsorted(keep, self.owners[members]), train=self.train[keep],
            groups=_dense(self.groups[keep]),
        )  # fmt: skip


@dataclass
class _Found:
    """What a CSV file or the folders say of each labelled source; the lists run alike."""

    where: str
    several: bool = False  # whether a source may carry several labels
    split: str = ""  # how the split was given; "" asks for a seeded one
    rows: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    labels: list[frozenset[str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # "train" or "test" where the split is given
    groups: list[str] = field(default_factory=list)  # "" keeps the index's group
    notes: list[str] = field(default_factory=list)

    def add(self, row: int, labels: frozenset[str], part: str = "", group: str = "", place: int = WHOLE) -> None:
        self.rows.append(row)
        self.places.append(place)
        self.labels.append(labels)
        self.parts.append(part)
        self.groups.append(group)


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
    found = _from_csv(labels_csv, paths, folder, files) if labels_csv else _from_folders(paths, folder)
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


def _patients(targets: Targets, groups: Ints, train: Mask, found: _Found) -> tuple[Ints, Ints]:
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
    rank = np.random.default_rng(seed).permutation(len(numbers))
    chosen = np.full(len(numbers), -1, np.int8)  # -1 undecided, 1 the smaller part, 0 the larger
    present, totals = np.unique(kind, return_counts=True)
    for label in present[np.argsort(totals, kind="stable")]:
        where = np.flatnonzero(kinds == label)
        need = share * sizes[where].sum() - sizes[where[chosen[members[where]] == 1]].sum()
        free = where[chosen[members[where]] < 0]
        for i in free[np.argsort(rank[members[free]])]:
            chosen[members[i]] = sizes[i] <= 2 * need  # whether taking it comes closer to the share
            need -= sizes[i] * chosen[members[i]]
    return np.asarray(chosen[place] == 1)


def duplicates(train_hashes: npt.NDArray[np.generic], test_hashes: npt.NDArray[np.generic]) -> int:
    """How many test items have the content hash (uint64 or bytes) of a training item."""
    return int(np.isin(test_hashes, train_hashes).sum())


def _from_folders(paths: Sequence[str], folder: str) -> _Found:
    found = _Found(folder)
    tops = {path.split("/")[0] for path in paths if "/" in path}
    given = {PARTS[top.lower()] for top in tops if top.lower() in PARTS}
    if len(given) == 2:
        found.split = "the folders train/ and test/"
    elif given and {top.lower() for top in tops} & VALIDATION:
        raise UsageError(
            f"{folder}: {', '.join(sorted(tops))} and no {({'train', 'test'} - given).pop()}: "
            "rename a folder, or pass --labels FILE.csv"
        )
    left_out: Counter[str] = Counter()
    for row, path in enumerate(paths):
        above = path.split("/")[:-1]
        part = PARTS.get(above[0].lower(), "") if above and found.split else ""
        if above and found.split and not part:
            left_out[f"in {above[0]}/"] += 1
        elif len(above) < (2 if part else 1):
            left_out["in no class folder"] += 1
        else:
            found.add(row, frozenset([above[1 if part else 0]]), part)
    found.notes += _told(left_out)
    return found


def _from_csv(file: Path, paths: Sequence[str], folder: str, files: Files) -> _Found:
    table = tables.read(file)
    column = "path" if "path" in table[0] else "filename"
    found = _Found(str(file), several=any(";" in line["label"] for line in table))
    found.split = f"the split column of {file.name}" if any(line.get("split") for line in table) else ""
    match = _slices(table, column, tables.matcher(paths, folder), folder, files)
    said: dict[tuple[int, int], tuple[frozenset[str], str]] = {}
    missing, left_out = [], Counter[str]()
    for line in table:
        labels = frozenset(part.strip() for part in line["label"].split(";")) - {""}
        part = line.get("split", "").lower()
        rows = match(line)
        if not rows:
            missing.append(line[column])
        for row, place in rows:
            if (row, place) in said:
                _same(found.where, line[column], said[row, place], (labels, part))
            elif found.split and part not in PARTS:
                left_out[f"split {part!r}"] += 1
            elif not labels and not found.several:
                left_out["without a label"] += 1
            else:
                found.add(row, labels, PARTS.get(part, ""), line.get("group", ""), place)
            said[row, place] = labels, part
    if missing:
        raise UsageError(
            f"{file}: {len(missing)} of {len(table)} rows name no image under {folder}, or several "
            f"({', '.join(missing[:3])}): correct the {column} column, or leave these rows out"
        )
    left_out[f"without a row in {file.name}"] = len(paths) - len({row for row, _ in said})
    found.notes += _told(left_out)
    return found


def _slices(
    table: Sequence[dict[str, str]],
    column: str,
    match: Callable[[str], list[int]],
    folder: str,
    files: Files,
) -> Callable[[dict[str, str]], list[tuple[int, int]]]:
    """From a line of a table to the sources, or slices, it labels: (row, place) each.

    A slice is addressed by its number in a column ``index``, or by its own file.
    """
    if any(line.get("index") for line in table):
        for line in table:
            if not line.get("index", "").isdecimal():
                raise UsageError(f"the index of {line[column]} is {line.get('index')!r}: give every row a slice number")
        return lambda line: [(row, int(line["index"])) for row in match(line[column])]
    if all(match(line[column]) for line in table):
        return lambda line: [(row, WHOLE) for row in match(line[column])]
    members = files()  # a table of slices names files that are no source of their own
    names = list(members)
    single = tables.matcher(names, folder)

    def sliced(line: dict[str, str]) -> list[tuple[int, int]]:
        found = single(line[column])
        if len(found) == 1:  # one file; several are a folder's
            row, number = members[names[found[0]]]
            return [(row, FILE + number)]
        return [(row, WHOLE) for row in match(line[column])]

    return sliced


def _same(where: str, name: str, *said: tuple[frozenset[str], str]) -> None:
    """Refuses two rows of one image that differ."""
    if said[0] != said[1]:
        both = " and ".join(";".join(sorted(labels)) + (f" in {part}" if part else "") for labels, part in said)
        raise UsageError(f"{where}: {name} is labelled {both}: keep one row (; separates several labels)")


def _told(left_out: Counter[str]) -> list[str]:
    return [f"left out, {why}: {count} images" for why, count in left_out.items() if count]


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


def _unbroken(train: Mask, groups: Ints, found: _Found) -> Mask:
    """What stays once test images of groups that also train are dropped; bool [N]."""
    leaked = ~train & np.isin(groups, groups[train])
    if leaked.any():
        found.notes.append(
            f"left out of the test part: {leaked.sum()} images of {len(np.unique(groups[leaked]))} groups "
            "(patients, scenes) that are in the training part too"
        )
    return ~leaked


def _check_given(train: Mask, targets: Targets, classes: tuple[str, ...], found: _Found) -> None:
    for part, mask in (("train", train), ("test", ~train)):
        if not mask.any():
            why = "; ".join(found.notes)
            raise UsageError(
                f"{found.where}: the {part} part is empty{f' ({why})' if why else ''}: give it images, or "
                "leave the split out for a seeded one"
            )
    untaught, untested = _absent(targets[train], classes), _absent(targets[~train], classes)
    if untaught and targets.ndim == 1:
        raise UsageError(
            f"{found.where}: class {untaught[0]!r} is in the test part and not in the training part "
            f"({len(untaught)} such): add training images of it, or remove it"
        )
    for part, names in (("training", untaught), ("test", untested)):
        if names:
            found.notes.append(f"without a {part} image: {', '.join(names)}")


def _seeded(targets: Targets, groups: Ints, classes: tuple[str, ...], seed: int, found: _Found) -> Mask:
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
        absent = sorted({*_absent(targets[test], classes), *_absent(targets[~test], classes)})
        if not absent:
            return ~test
    if targets.ndim == 1 or not test.any() or test.all():
        raise UsageError(
            f"{found.where}: no split of {groups.max() + 1} groups has class {absent[0]!r} in both parts: "
            "add groups, or give train and test yourself"
        )
    found.notes.append(f"in one part only: {', '.join(absent)}")
    return ~test


def _absent(targets: Targets, classes: tuple[str, ...]) -> list[str]:
    seen = set(np.nonzero(targets)[1] if targets.ndim == 2 else targets)
    return [name for i, name in enumerate(classes) if i not in seen]
