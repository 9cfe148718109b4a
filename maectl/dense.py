"""Patches as labelled items, where label rasters tell what is there: their classes, and their split.

An image is covered by windows (`covering`); a patch of one is an item, and its class that of most of its labelled
pixels, at the model's size.

N patches, S the model's spatial size, L patches a window, P pixels a patch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maectl import console, device
from maectl.adapter import Pixels, Window
from maectl.blocks import divided, sampled
from maectl.checkpoint import Config
from maectl.covering import Look, covering, once, part_of, together, views
from maectl.errors import Unreadable, UsageError
from maectl.features import Features
from maectl.labels import WHOLE, Labels
from maectl.mae import MaskedAutoencoder
from maectl.planes import flat, slab
from maectl.rasters import MOST, NONE, Raster, Rasters, name_of, nearest
from maectl.store import Reader, in_order
from maectl.team import Team
from maectl.tokens import features

__all__ = ["patches"]

WINDOWS = 4096  # looked at in a run
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Truth:
    """The patches that have a class: int64 [N] which window, which patch of it, the number of its class, ascending.

    kinds are the numbers of all classes that label rasters were seen to hold; lost (row, reason) could not be read.
    """

    windows: Ints
    places: Ints
    numbers: Ints
    kinds: set[int]
    lost: dict[int, str]


def patches(
    reader: Reader,
    config: Config,
    models: Mapping[str, MaskedAutoencoder],
    rasters: Rasters,
    seed: int,
    workers: int,
    team: Team,
) -> tuple[Labels, Features]:
    """Labelled patches of the images that have a label raster, split, and their features by every model.

    At most 20,000 patches a part. Baselines: ``image_stats`` (mean, deviation, minimum and maximum of the patch's
    valid pixels, a channel) and ``pixels`` (its values as the model sees them, averaged where they are more than
    1,024). Raises UsageError where there are no two classes, or no split.
    """
    chosen, there = _chosen(reader, config, list(rasters.by_row))
    notes = list(rasters.notes)
    if there > len(chosen):
        notes.append(f"of {there:,} windows {len(chosen):,}, evenly spread, are looked at")
    model = next(iter(models.values()))
    truth = team.lead(lambda: _truths(reader, config, chosen, rasters.by_row, model, workers))
    notes += _told(truth, reader)
    numbers, targets = np.unique(truth.numbers, return_inverse=True)
    classes = tuple(name_of(int(number)) for number in numbers)
    if len(classes) < 2:
        raise UsageError(
            f"the label rasters name {len(classes)} class that most of a patch is of ({', '.join(classes) or 'none'}), "
            "a probe needs two: label more, or look at --ignore"
        )
    rows = np.array([look.row for look in chosen])
    cells = np.array([look.cell for look in chosen])
    names = reader.index.names()
    split = divided(
        targets.astype(np.int64), truth.windows, cells, reader.index.groups[rows], [names[row] for row in rows],
        classes, seed,
    )  # fmt: skip
    kept, more = sampled(targets, split, seed)
    owners = np.arange(len(kept))
    labels = Labels(
        classes, targets[kept].astype(np.int64), rows[truth.windows[kept]], np.full(len(kept), WHOLE), owners,
        split.train[kept], np.unique(split.groups[kept], return_inverse=True)[1].astype(np.int64), split.said,
        [*notes, *split.notes, *more], "patches",
    )  # fmt: skip
    return labels, features(reader, config, models, chosen, truth.windows[kept], truth.places[kept], workers, team)


def _chosen(reader: Reader, config: Config, rows: Sequence[int]) -> tuple[list[Look], int]:
    """At most 4,096 of the windows of all images, evenly spread, and how many there are."""
    counts = np.array([len(covering(reader.index[row], row, config)) for row in rows])
    total = int(counts.sum())
    few = min(total, WINDOWS)
    numbers = ((np.arange(few) + 0.5) * total / few).astype(int)  # of the windows of all images
    ends = np.cumsum(counts)
    owners = np.searchsorted(ends, numbers, side="right")
    chosen = []
    for owner in np.unique(owners):
        every = covering(reader.index[rows[owner]], rows[owner], config)
        first = ends[owner] - counts[owner]
        chosen += [every[number - first] for number in numbers[owners == owner]]
    return chosen, total


def _truths(
    reader: Reader,
    config: Config,
    chosen: Sequence[Look],
    by_row: Mapping[int, Raster],
    model: MaskedAutoencoder,
    workers: int,
) -> _Truth:
    """The class of every patch of the windows chosen. Raises UsageError where label rasters are none."""
    jobs = together(chosen, np.arange(len(chosen)), config)
    truth = _Truth(*(np.empty(0, np.int64),) * 3, {NONE}, {})
    parts: list[tuple[int, Ints]] = []

    def read(job: list[int]) -> tuple[list[int], list[tuple[Ints, Ints]] | str]:
        wanted = [chosen[number] for number in job]
        try:
            return job, list(_classes(reader, config, wanted, by_row[wanted[0].row], model))
        except Unreadable as error:
            return job, str(error)

    with console.task("labels of the patches") as advance:
        for done, (job, found) in enumerate(in_order(read, jobs, device.loader_threads(workers)), 1):
            if isinstance(found, str):
                truth.lost[chosen[job[0]].row] = found
                continue
            parts += [(number, numbers) for number, (numbers, _) in zip(job, found, strict=True)]
            truth.kinds.update(*(kinds.tolist() for _, kinds in found))
            _few(len(truth.kinds), by_row[chosen[job[0]].row])
            advance(done, len(jobs))
    parts = sorted((each for each in parts if chosen[each[0]].row not in truth.lost), key=lambda each: each[0])
    where = [np.flatnonzero(numbers != NONE) for _, numbers in parts]
    if not parts:
        return truth
    windows = np.repeat([number for number, _ in parts], [len(each) for each in where])
    numbers = np.concatenate([numbers[each] for (_, numbers), each in zip(parts, where, strict=True)])
    return replace(truth, windows=windows, places=np.concatenate(where), numbers=numbers)


def _classes(
    reader: Reader, config: Config, wanted: Sequence[Look], raster: Raster, model: MaskedAutoencoder
) -> Iterator[tuple[Ints, Ints]]:
    """Of each window of an image: the class number of each patch [L], or NONE, and the numbers its pixels have."""
    size = model.image_size
    whole = raster.read() if once(raster.source.shape, len(wanted)) else None
    for look, view in zip(wanted, views(reader, config, wanted), strict=True):

        def read(plane: Window, look: Look = look) -> Pixels:
            window = slab(look.axis, look.place, plane)
            return flat(raster.read(window) if whole is None else part_of(whole, window), look.axis)

        numbers = np.full(size, NONE)
        inside = tuple(slice((s - o) // 2, (s - o) // 2 + o) for s, o in zip(size, view.own, strict=True))
        numbers[inside] = raster.numbers(nearest(read, look.plane, view.own))
        kinds = np.unique(numbers)
        _few(len(kinds), raster)
        found = _commonest(_split(model, numbers), kinds)
        if view.pixels.valid is not None:
            found[_split(model, view.pixels.valid).mean(axis=1) < 0.5] = NONE
        yield found, kinds


def _split(model: MaskedAutoencoder, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[*S] in patches [L, P / C]."""
    return np.asarray(model.patchify(torch.from_numpy(np.ascontiguousarray(values))[None, None])[0].numpy())


def _commonest(cells: Ints, kinds: Ints) -> Ints:
    """[L] the commonest of ``kinds`` among each patch's pixels [L, P], the least at a tie; NONE if most have none."""
    count, pixels = cells.shape
    place = np.searchsorted(kinds, cells) + len(kinds) * np.arange(count)[:, None]
    counts = np.bincount(place.ravel(), minlength=count * len(kinds)).reshape(count, len(kinds))
    counts[:, kinds == NONE] = 0
    return np.where(2 * counts.sum(axis=1) >= pixels, kinds[counts.argmax(axis=1)], NONE)


def _few(kinds: int, raster: Raster) -> None:
    if kinds > MOST + 1:  # NONE is one of them
        raise UsageError(f"{raster.path} is no label raster: more than {MOST} values, and each would be a class")


def _told(truth: _Truth, reader: Reader) -> list[str]:
    """What a user should know of the labels; an unreadable image is warned of, too."""
    notes = []
    if truth.lost:
        row, reason = next(iter(truth.lost.items()))
        lost = f"{len(truth.lost):,} images"
        console.warn(f"{lost} or their label rasters cannot be read, e.g. {reader.index[row].paths[0]}: {reason}")
        notes.append(f"left out, unreadable: {lost}")
    rare = sorted(truth.kinds - set(truth.numbers.tolist()) - {NONE})
    if rare:
        names = ", ".join(map(name_of, rare[:10])) + (" ..." if len(rare) > 10 else "")
        notes.append(f"classes that no patch has most of, left out: {names}")
    return notes
