"""From folders and a recipe to all that training needs: scan, choose, verify, measure, split.

Nothing is written into the run folder here, so that a fault in the data or the recipe leaves no half-made run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl import console, recipe, registry
from maectl.adapter import Adapter
from maectl.errors import DataError, Unreadable, UsageError
from maectl.index import Index, Rejects, held_out
from maectl.planes import along_each, extents, too_small
from maectl.recipe import Recipe
from maectl.scan import Scan, scan
from maectl.stats import Normalizer, Statistics, gather, sample_rows
from maectl.store import NOTHING, Reader, Store, bounded, in_order
from maectl.storing import choose, made, settled
from maectl.stream import VERIFY, generator
from maectl.team import Team

__all__ = ["Prepared", "prepare", "scan_with_recipe", "statistics"]

DEFECTS = 5  # kinds of defects told of; 'maectl inspect' lists all
WHOLE = ("data.crop=image", "model.image_size=auto", "model.patch_size=auto")  # overrides that see images whole
SMALL = 96  # px: images up to this short side get the recipe for small images
VERIFIED = 2000  # sources decoded before step 1 where all would cost too much
OFTEN = 50  # views a source: from here on one more decode is under 2 % of the reading
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """Sources that can be read, how they are normalised, and which are held out."""

    recipe: Recipe
    index: Index
    adapter: Adapter
    reader: Reader
    statistics: Statistics
    normalizer: Normalizer
    train: Ints  # rows
    held: Ints  # rows
    rejects: Rejects
    foreign: int


def prepare(
    folders: Sequence[str | Path],
    *,
    name: str | None,
    adapter: str | None,
    overrides: Sequence[str],
    views: float | None,
    run: Path,
    work: Path,
    workers: int,
    team: Team | None = None,
) -> Prepared:
    """Scan and verify ``folders`` for a run that shows each source ``views`` times (None: the recipe's epochs).

    The index is written below ``work``, where all of a ``team`` find it: its leader scans, decoding is shared.
    Raises UsageError and DataError.
    """
    team = team or Team()

    def scanned() -> tuple[Recipe, Scan, Index, Rejects]:
        chosen, found = scan_with_recipe(folders, name, adapter, overrides, work, workers)
        return chosen, found, *_large_enough(found.index, found.rejects, chosen, work)

    chosen, found, index, rejects = team.lead(scanned)
    views = chosen.train.epochs if views is None else views
    index, store, chosen = _decodable(index, found.adapter, rejects, chosen, views, run, work, workers, team)
    reader = Reader(index, found.adapter, store)
    measured = team.lead(lambda: statistics(reader, chosen, workers))
    normalizer = Normalizer.of(chosen.data.normalize, chosen.data.clip, measured)
    if len(normalizer.mean) != len(measured.mean):
        raise UsageError(
            f"data.normalize gives {len(normalizer.mean)} means for images of {len(measured.mean)} channels"
        )
    train, held = held_out(index.groups, chosen.train.seed)
    return Prepared(chosen, index, found.adapter, reader, measured, normalizer, train, held, rejects, found.foreign)


def scan_with_recipe(
    folders: Sequence[str | Path],
    name: str | None,
    adapter: str | None,
    overrides: Sequence[str],
    work: Path,
    workers: int = 0,
) -> tuple[Recipe, Scan]:
    """The recipe (chosen from what the scan finds where none is named), resolved, and the scan."""
    given = recipe.load(name, overrides)[0]
    kind = _adapter(folders, adapter or given.data.adapter)
    found = _scan(folders, kind, given, work / "index.arrow", workers)
    if name is None:
        name = found.adapter.suggest(found.facts) or _by_size(found.index)
        console.say(f"recipe: {name} ({recipe.named(name)}); --recipe decides otherwise")
        chosen = recipe.load(name, overrides)[0]
        if _smaller(found.index, chosen):  # a folder of chips: their frame is the window
            chosen = recipe.load(name, [*WHOLE, *overrides])[0]
            console.say(f"most images are smaller than its windows: {', '.join(WHOLE)}")
        if _sees(chosen) != _sees(given):
            found = _scan(folders, kind, chosen, work / "again.arrow", workers)  # the first is still mapped
        given = chosen
    elif _smaller(found.index, given):
        console.warn(
            f"most images are smaller than the window, data.crop={given.data.crop}, and are padded: "
            + " ".join(f"--set {each}" for each in WHOLE)
        )
    for note in found.notes:
        console.say(note)
    for defect, count in found.defects.most_common(DEFECTS):
        console.warn(f"{count:,} of {len(found.index):,} images: {defect}")
    units = sorted({source.unit for source, _ in found.index.kinds})
    if len(units) > 1 and given.data.normalize not in ("image", "foreground"):
        console.warn(
            f"values in {' and '.join(units)} are mixed and share one scale: take them apart with data.include, or "
            "--set data.normalize=image"
        )
    return resolved(given.updated({"data": {"adapter": kind.name}}), found.index), found


def _smaller(index: Index, chosen: Recipe) -> bool:
    """Whether most images do not fill a window of so many pixels (``data.crop: 96px``); of volumes many do not."""
    crop, shapes = chosen.data.crop, index.shapes[:, 1:]
    window = float(crop.removesuffix("px")) if crop.endswith("px") and shapes.shape[1] == 2 else 0.0
    return float(np.median(shapes.min(axis=1))) < window


def _by_size(index: Index) -> str:
    """The shipped recipe for images of which nothing but the size is known."""
    short = float(np.median(index.shapes[:, 1:].min(axis=1)))
    return "small-images" if short <= SMALL else "photographs"


def resolved(given: Recipe, index: Index) -> Recipe:
    """The recipe with ``auto`` sizes replaced.

    The images' own size to 16 px (32 to 96), an eighth of it a patch. Volumes are then seen as slices, unless a
    3-D patch is given: each side is then a whole number of patches, of the volumes' own size up to 96 voxels.
    """
    size: tuple[int, ...] | str = given.model.image_size
    patch: tuple[int, ...] | str = given.model.patch_size
    if isinstance(size, str):
        seen = extents(index, 2 if isinstance(patch, str) else len(patch), given.data.axis)
        if isinstance(patch, str) or len(patch) == 2:
            short = float(np.median(seen.min(axis=1)))
            size = (int(min(SMALL, max(32, 16 * round(short / 16)))),) * 2
        else:
            sides = zip(np.median(seen, axis=0), patch, strict=True)
            size = tuple(int(max(p, min(SMALL // p * p, p * round(side / p)))) for side, p in sides)
    if isinstance(patch, str):
        patch = tuple(max(1, int(side) // 8) for side in size)
    along_each(index, len(size), given.data.axis)  # a model that cannot see these images is refused
    return given.updated({"model": {"image_size": size, "patch_size": patch}})


def statistics(reader: Reader, chosen: Recipe, workers: int) -> Statistics:
    """Statistics over a seeded sample of the sources (all, up to 2,000)."""

    def read(row: int) -> Any:
        try:
            return reader.sample(int(row))
        except Unreadable:  # not verified yet: training quarantines it
            return None

    workers = bounded(reader.index, workers)
    rows = sample_rows(reader.sampled(), chosen.train.seed)
    return gather((each for each in in_order(read, rows, workers) if each is not None), chosen.data.clip)


def _adapter(folders: Sequence[str | Path], name: str | None) -> type[Adapter]:
    if name is not None:
        return registry.load(name)
    choice = registry.choose(folders)
    for rival in choice.rivals:
        console.warn(
            f"{choice.shares[rival]:.0%} of the files look like {rival} images: this run uses {choice.name}, "
            f"--adapter {rival} takes the others"
        )
    return registry.load(choice.name)


def _sees(given: Recipe) -> tuple[Any, ...]:
    """What of a recipe a scan depends on."""
    data = given.data
    return data.channels, data.options, data.include, data.exclude, data.group


def _scan(folders: Sequence[str | Path], kind: type[Adapter], given: Recipe, path: Path, workers: int) -> Scan:
    with console.task("scanning") as advance:
        return scan(folders, kind, given.data, path, workers=workers, progress=lambda files: advance(files, None))


def _large_enough(index: Index, rejects: Rejects, chosen: Recipe, work: Path) -> tuple[Index, Rejects]:
    """Without sources smaller than one patch. Raises DataError where none is left."""
    patch = np.array(chosen.model.patch_size)
    size = tuple(int(side) for side in chosen.model.image_size)
    small = too_small(index, size, tuple(patch.tolist()), chosen.data.crop, chosen.data.axis)
    if not small.any():
        return index, rejects
    seen = "" if chosen.data.crop == "image" else f" at the scale of data.crop {chosen.data.crop}"
    smaller = "model.patch_size" if chosen.data.crop == "image" else "data.crop or model.patch_size"
    reason = f"smaller than a patch ({'x'.join(map(str, patch))} px){seen}: set a smaller {smaller}"
    if small.all():
        shape = "x".join(map(str, index[0].shape[1:]))
        raise DataError(f"all {len(index):,} images are {reason} (the first is {shape} px)")
    bad = [(int(row), reason) for row in np.flatnonzero(small)]
    return _without(index, bad, rejects, 1.0, work / "large.arrow"), rejects


def _decodable(
    index: Index,
    adapter: Adapter,
    rejects: Rejects,
    chosen: Recipe,
    views: float,
    run: Path,
    work: Path,
    workers: int,
    team: Team,
) -> tuple[Index, Store | None, Recipe]:
    """The sources that decode, the store where one is wanted, and the recipe with its form.

    Raises DataError where too many do not decode.
    """
    choice = team.lead(lambda: choose(index, adapter, chosen, run, views))
    if choice.why:
        console.say(choice.why)
    store: Store | None = None
    if choice.folder is not None:
        store, bad = made(index, adapter, choice, workers=workers, team=team)
        chosen = settled(chosen, choice)
    else:
        bad = _verify(index, adapter, chosen, views, workers, team)
    if not bad:
        return index, store, chosen
    kept = np.setdiff1d(np.arange(len(index)), [row for row, _ in bad])
    index = team.lead(lambda: _without(index, bad, rejects, chosen.data.max_bad, work / "decodable.arrow"))
    return index, None if store is None else store.only(kept, index), chosen


def _verify(
    index: Index, adapter: Adapter, chosen: Recipe, views: float, workers: int, team: Team
) -> list[tuple[int, str]]:
    """Rows that do not decode, of all or of a sample (``data.verify``); a ``team`` shares them."""
    asked = chosen.data.verify
    if asked == "auto":
        asked = "all" if views >= OFTEN else VERIFIED
    rows = np.arange(len(index))
    if asked != "all" and asked < len(rows):
        rows = np.sort(generator(chosen.train.seed, 0, VERIFY).permutation(len(rows))[:asked])
        console.say(f"verifying {len(rows):,} of {len(index):,} images (data.verify); later failures are quarantined")
    reader, workers = Reader(index, adapter), bounded(index, workers)

    def reason(row: np.int64) -> tuple[int, str] | None:
        try:
            bands = [reader.read(int(row), band).valid for band in reader.bands(int(row))]
        except Unreadable as error:
            return int(row), str(error)
        return None if any(valid is None or valid.any() for valid in bands) else (int(row), NOTHING)

    rows = rows[team.share(len(rows))]
    with console.task("verifying") as advance:
        found: list[tuple[int, str]] = []
        for done, each in enumerate(in_order(reason, rows, workers), 1):
            advance(done, len(rows))
            if each is not None:
                found.append(each)
    return [each for own in team.gathered(found) for each in own]


def _without(index: Index, bad: Sequence[tuple[int, str]], rejects: Rejects, most: float, path: Path) -> Index:
    """The index less the rows that do not decode, which become rejects. Raises DataError where they are too many."""
    counts = index.file_counts  # files, not sources: a volume may have hundreds, and its rejects are single files
    share = (counts[[row for row, _ in bad]].sum() + rejects.files) / (counts.sum() + rejects.files)
    if len(bad) == len(index):
        raise DataError(f"none of the {len(index):,} images can be used, e.g. {index[bad[0][0]].paths[0]}: {bad[0][1]}")
    if share > most:
        raise DataError(f"{share:.1%} of the files cannot be used, data.max_bad allows {most:.1%}")
    for row, reason in bad:
        source = index[row]
        rejects.add(source.folder, source.paths, "verify", reason)
    return index.take(np.setdiff1d(np.arange(len(index)), [row for row, _ in bad]), path)
