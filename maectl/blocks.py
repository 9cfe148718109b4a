"""Which patches train and which test: by folder, by group, or within one scene by blocks of windows.

N patches, V windows, A axes along which windows lie, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from maectl.annotations import PARTS
from maectl.errors import UsageError
from maectl.labels import TEST_SHARE, Ints, Mask, absent, by_group

__all__ = ["Split", "divided", "sampled"]

PATCHES = 20_000  # of a part that are used
AXES = ("slices", "rows", "columns")


@dataclass(frozen=True)
class Split:
    """Of N patches.

    train   bool [N]: in the training part
    used    bool [N]: in either part; the others are a buffer, or in no part's folder
    groups  int64 [N]: what intervals redraw
    said    how the split came about, in words
    notes   what was left out, a line each
    """

    train: Mask
    used: Mask
    groups: Ints
    said: str
    notes: list[str]


def divided(
    targets: Ints,
    windows: Ints,
    cells: Ints,
    groups: Ints,
    paths: Sequence[str],
    classes: tuple[str, ...],
    seed: int,
) -> Split:
    """The split of patches of classes ``targets`` [N] in ``windows`` [N].

    Of every window ``cells`` [V, A] is its place among those of its image, ``groups`` [V] and ``paths`` its image's.
    Where there are folders ``train`` and ``test`` they decide; else whole groups are drawn; one group is divided
    within. Raises UsageError where a part would be empty, or would teach no two classes.
    """
    tops = [path.split("/")[0].lower() if "/" in path else "" for path in paths]
    parts = np.array([PARTS.get(top, "") for top in tops])[windows]
    own = groups[windows]
    count = len(np.unique(own))
    if {"train", "test"} <= set(parts.tolist()):
        found, why = _given(parts, own), "so the folders divide them"
    elif count > 1:
        train = by_group(targets, own, len(classes), seed)
        said = f"seeded, by group: about {TEST_SHARE:.0%} of the patches for testing (seed {seed})"
        found = Split(train, np.ones(len(train), np.bool_), own, said, [])
        why = f"no split of the {count:,} groups that was tried has every class in both parts"
    else:
        found, why = _within(targets, windows, cells, seed), "no side of the scene that was tried has all of them"
        if (images := len({paths[window] for window in np.unique(windows)})) > 1:
            found.notes.append(
                f"the {images:,} images are one group: where their first pixels are not of one place, training and "
                "test windows may show the same; folders train/ and test/ would divide them"
            )
    return _checked(found, targets, classes, why)


def _given(parts: npt.NDArray[np.str_], groups: Ints) -> Split:
    train, used, notes = parts == "train", parts != "", []
    leaked = (parts == "test") & np.isin(groups, groups[train])
    if not used.all():
        notes.append(f"left out, in neither train/ nor test/: {(~used).sum():,} patches")
    if leaked.any():
        notes.append(
            f"left out of the test part: {leaked.sum():,} patches of {len(np.unique(groups[leaked])):,} groups "
            "(patients, scenes) that are in the training part too"
        )
    return Split(train, used & ~leaked, groups, "the folders train/ and test/", notes)


def _within(targets: Ints, windows: Ints, cells: Ints, seed: int) -> Split:
    """One scene: the windows of one side test, one line of windows beside them is left out, the rest trains.

    The side is drawn from those that have most classes in both parts. Lines of windows without a label do not count.
    """
    names = AXES[-cells.shape[1] :]
    options = []
    for axis, name in enumerate(names):
        lines, place = np.unique(cells[windows, axis], return_inverse=True)
        count = max(1, round(TEST_SHARE * len(lines)))
        for side, depth in (("first", place), ("last", len(lines) - 1 - place)):
            test, train = depth < count, depth > count
            both = len(np.intersect1d(targets[test], targets[train]))
            if len(lines) >= 3:
                options.append((both, f"the {side} {count} of {len(lines)} {name} of windows", train, train | test))
    if not options:
        sizes = " and ".join(f"{len(np.unique(cells[windows, axis]))} {name}" for axis, name in enumerate(names))
        raise UsageError(
            f"the label rasters are of one scene, seen in {sizes} of windows: to divide it takes 3 along an axis; "
            "give more scenes, or a run with smaller windows (data.crop)"
        )
    most = max(both for both, *_ in options)
    fitting = [option for option in options if option[0] == most]
    _, said, train, used = fitting[int(np.random.default_rng(seed).integers(len(fitting)))]
    said = f"within scene: {said} for testing, the next one left out (seed {seed}); it says nothing about other scenes"
    note = "neighbouring windows of one scene are not independent: the intervals are too narrow"
    return Split(train, used, windows, said, [note])


def _checked(split: Split, targets: Ints, classes: tuple[str, ...], why: str) -> Split:
    """The split, with notes on classes that a part lacks. Raises UsageError where it cannot be used."""
    train, test = targets[split.train & split.used], targets[~split.train & split.used]
    for part, of in (("training", train), ("test", test)):
        if not len(of):
            reason = "; ".join([split.said, *split.notes])
            raise UsageError(f"no labelled patch is in the {part} part ({reason}): label more images, or more of them")
    if len(np.unique(train)) < 2:
        raise UsageError(
            f"the training part ({split.said}) has patches of class {classes[train[0]]} alone, a probe needs two: "
            "label more images, or give train/ and test/ folders"
        )
    untaught, untested = absent(train, classes), absent(test, classes)
    notes = [f"without a training patch, so never found: {', '.join(untaught)} ({why})"] if untaught else []
    notes += [f"without a test patch: {', '.join(untested)} ({why})"] if untested else []
    return replace(split, notes=[*split.notes, *notes])


def sampled(targets: Ints, split: Split, seed: int) -> tuple[Ints, list[str]]:
    """At most 20,000 patches of each part, by seed and in proportion to the classes (one of each at least).

    Which they are, ascending, and what was left out.
    """
    kept, notes = [], []
    for number, (part, mask) in enumerate((("training", split.train), ("test", ~split.train))):
        items = np.flatnonzero(mask & split.used)
        if len(items) > PATCHES:
            there = len(items)
            items = _stratified(items, targets[items], np.random.default_rng((seed, number)))
            notes.append(f"of {there:,} {part} patches {len(items):,} are used, in proportion to the classes")
        kept.append(items)
    return np.sort(np.concatenate(kept)), notes


def _stratified(items: Ints, targets: Ints, chance: np.random.Generator) -> Ints:
    kinds, counts = np.unique(targets, return_counts=True)
    shares = 1 + ((PATCHES - len(kinds)) * counts // counts.sum())
    parts = [
        chance.choice(items[targets == kind], min(int(share), int(count)), replace=False)
        for kind, share, count in zip(kinds, shares, counts, strict=True)
    ]
    return np.concatenate(parts)
