"""Which store a run gets, and why: ``data.store``, ``data.store_form`` and ``data.store_max_side``.

``data.store=auto`` weighs what a store would take against the disk, and what it would save: the decoding of a sample
is timed against reading the same from a map. A store of little data is made without asking.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, inf, prod, sqrt
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from maectl import console, forms
from maectl.adapter import Adapter, Pixels
from maectl.errors import Unreadable
from maectl.forms import RAW, Form
from maectl.index import Index
from maectl.keys import Keys, source_keys
from maectl.planes import along_each, slab, windows_each
from maectl.reading import Reader, Store
from maectl.recipe import Recipe
from maectl.shards import folder_of
from maectl.store import build, building_lock, default_folder, lacking, opened, raw_bytes
from maectl.stream import LOOK, generator
from maectl.team import Team
from maectl.windows import MARGIN

__all__ = ["Choice", "Costs", "choose", "form_of", "made", "measure", "settled"]

SHARE = 0.25  # of the free disk an automatic store may take
MOST = 64 << 30  # bytes
SMALL = 1 << 28  # bytes of pixels up to which nothing is weighed
FEW = 2.0  # times a source is shown, up to which decoding it once more for a store is no gain
WORTH = 1.5  # times that reading must be faster than decoding
SHARPER = 8 / 7  # of the model's image size: 256 for 224, the usual sizes of evaluation
SAMPLED = 48  # sources timed at most,
SECONDS = 1.0  # and for so long, but for the last
WARMED = 1 << 25  # bytes of files that are read before they are timed: the disk is no part of decoding


@dataclass(frozen=True)
class Choice:
    """Where a run keeps decoded pixels (None: nowhere), in which form, and one line that says why."""

    folder: Path | None
    form: Form = RAW
    why: str = ""


class Costs(NamedTuple):
    """Medians over a sample, of what training reads of a source at once."""

    decoding: float  # seconds, from its files
    reading: float  # seconds, its pixels from a map
    unpacking: float  # seconds, from a JPEG entry; 0 where there are none
    jpeg_bytes: float  # of such an entry, a value


def form_of(recipe: Recipe, index: Index) -> Form:
    """The form that a resolved recipe asks for; pixels where it leaves the choice, or where no other would differ."""
    data, size = recipe.data, recipe.model.image_size
    if data.crop != "image":  # windows are sizes in the source's own pixels
        return RAW
    jpeg, side = data.store_form == "compact", data.store_max_side
    if isinstance(side, str):
        assert not isinstance(size, str)
        form = Form(ceil(SHARPER * max(size)) if jpeg else None, jpeg)
    else:
        form = Form(side, jpeg)
    return form if form.changes(index).any() else RAW


def settled(recipe: Recipe, choice: Choice) -> Recipe:
    """The recipe with the form that was chosen, so that a resumed run does not choose again."""
    if choice.folder is None:
        return recipe
    return recipe.updated({"data": {"store_form": "compact" if choice.form.jpeg else "raw"}})


def choose(index: Index, adapter: Adapter, recipe: Recipe, run: Path, epochs: float) -> Choice:
    """The store of a run in the folder ``run`` that shows every image so many times (0: not known yet)."""
    asked, form = recipe.data.store, form_of(recipe, index)
    if asked == "off":
        return Choice(None)
    if asked != "auto":
        return Choice(Path(asked), form, f"store: {_told(form, index)} in {asked}{_unheeded(recipe, form)}")
    folder, wanted = default_folder(run), [form]
    if not os.access(next(path for path in (folder, *folder.parents) if path.is_dir()), os.W_OK):
        return Choice(None, why=f"no store: {folder} cannot be written to; --set data.store=FOLDER elsewhere")
    if recipe.data.store_form == "auto":
        compact = form_of(recipe.updated({"data": {"store_form": "compact"}}), index)
        wanted += [compact] if compact.jpeg else []
    choice = _weighed(index, adapter, recipe, folder, wanted, epochs)
    return Choice(choice.folder, choice.form, choice.why + _unheeded(recipe, form))


def _weighed(
    index: Index, adapter: Adapter, recipe: Recipe, folder: Path, wanted: Sequence[Form], epochs: float
) -> Choice:
    first, allowed = wanted[0], {form: _allowed(folder, adapter, form) for form in wanted}
    fits = int(first.sizes(index).sum()) <= allowed[first]
    if fits and raw_bytes(index) <= SMALL:
        return Choice(folder, first, f"store: {_told(first, index)} in {folder}")
    if _shown(index, recipe, epochs) <= FEW:
        return Choice(None, why="no store: each image is shown once or twice")
    form = first if fits else wanted[-1]
    if not fits and not form.jpeg:
        return Choice(None, why=f"no store: {_short(first, index, allowed[first])}")
    costs = measure(index, adapter, recipe, form)
    if form.jpeg and int(form.sizes(index, costs.jpeg_bytes).sum()) > allowed[form]:
        return Choice(None, why=f"no store: {_short(form, index, allowed[form], costs.jpeg_bytes)}")
    reading = costs.unpacking if form.jpeg else costs.reading
    times = "none of the images tried could be read"
    if costs.decoding < inf:
        times = f"decoding takes {_ms(costs.decoding)} ms an image, reading {_ms(reading)}"
    if costs.decoding < WORTH * reading:
        return Choice(None, why=f"no store: decoding costs as little as reading ({times})")
    why = f"store: {_told(form, index, costs.jpeg_bytes)} in {folder}; {times}"
    return Choice(folder, form, why if form == first else f"{why}; {_short(first, index, allowed[first])}")


def made(
    index: Index, adapter: Adapter, choice: Choice, *, workers: int = 0, team: Team | None = None
) -> tuple[Store, list[tuple[int, str]]]:
    """The store chosen, with an entry for all that decodes, and (row, reason) of the rest.

    The processes of a ``team`` decode a share each. Where another run is at the same, it is waited for. Raises
    DataError as `store.build`.
    """
    assert choice.folder is not None
    folder, form, team = choice.folder, choice.form, team or Team()
    keys = _shared_keys(index, team, workers)
    store, gone = opened(index, adapter, folder, form=form, keys=keys)
    if not team.most(len(store.missing) - len(gone)):
        return store, gone
    if team.lead(lambda: store.folder.is_dir() and not os.access(store.folder, os.W_OK)):
        count = len(store.missing) - len(gone)
        console.say(f"{count:,} images are not in {folder}, which cannot be written to: they are decoded as they come")
        return store, gone
    with building_lock(folder, adapter, form) if team.leads else nullcontext():
        # the others begin when the lock is held, on what another run has left to do
        wanted = team.lead(lambda: lacking(index, adapter, folder, form, keys))
        begun, own = time.monotonic(), wanted[team.share(len(wanted))]
        with console.task("decoding into the store") as advance:
            _, bad = build(index, adapter, folder, rows=own, form=form, workers=workers, progress=advance, keys=keys)
        bad = sorted(each for found in team.gathered(bad) for each in found)
    if (seconds := time.monotonic() - begun) > console.EVERY:
        speed = f"{len(wanted) / seconds:,.0f} a second"
        console.say(f"{len(wanted):,} images decoded in {console.clock(seconds)} ({speed})")
    return opened(index, adapter, folder, form=form, keys=keys)[0], bad


def _shared_keys(index: Index, team: Team, workers: int) -> Keys:
    """The keys of all rows, the same for all processes: each opens its share of the files."""
    own = np.arange(len(index))[team.share(len(index))]
    keys, gone = source_keys(index, own, workers)
    parts = team.gathered((keys[own], gone))
    return np.concatenate([each for each, _ in parts]), [pair for _, lost in parts for pair in lost]


# ---- what is weighed -------------------------------------------------------------------------------------------


def _allowed(folder: Path, adapter: Adapter, form: Form) -> int:
    """Bytes an automatic store may have in all, with what it has already."""
    parent = next(path for path in (folder, *folder.parents) if path.is_dir())
    held = sum(path.stat().st_size for path in folder_of(folder, adapter, form).glob("shard-*.pixels"))
    return min(MOST, int((shutil.disk_usage(parent).free + held) * SHARE))


def _shown(index: Index, recipe: Recipe, epochs: float) -> float:
    """How often a source is read, on average: its slices, each as often as windows fit its area; of several crops
    of one decoding once.
    """
    if not epochs:
        return inf
    size = tuple(int(side) for side in recipe.model.image_size)
    shapes, windows = windows_each(index, size, recipe.data.crop, recipe.data.axis)
    areas = shapes.prod(axis=1)
    fitting = 1.0 if windows is None else np.maximum(1, np.rint(areas / windows.prod(axis=1)))
    slices = index.shapes[:, 1:].prod(axis=1, dtype=np.int64) // areas
    return float(epochs * np.mean(slices * fitting)) / recipe.data.crops_per_image


def measure(index: Index, adapter: Adapter, recipe: Recipe, form: Form = RAW) -> Costs:
    """Time the reading of a few dozen sources, as training reads them, in one thread and within about a second.

    Of a file that is larger than 32 MiB the first reading counts, disk and all.
    """
    look = _Look(Reader(index, adapter), recipe, form)
    found: list[Costs] = []
    begun = time.monotonic()
    with tempfile.TemporaryFile() as file:
        for row in look.chance.permutation(len(index))[:SAMPLED].tolist():
            if time.monotonic() - begun > SECONDS:
                break
            if look.reader.huge(row):
                continue
            try:
                _warm(index[row].files)
                found.append(look.timed(row, file))
            except Unreadable:  # building tells which
                continue
            except OSError:  # the folder for temporary files is full: what is known must do
                break
    if not found:
        return Costs(inf, 0.0, 0.0, forms.BYTES)
    unpacked = [costs for costs in found if costs.jpeg_bytes] or [Costs(0.0, 0.0, 0.0, forms.BYTES)]
    return Costs(
        decoding=float(np.median([costs.decoding for costs in found])),
        reading=float(np.median([costs.reading for costs in found])),
        unpacking=float(np.median([costs.unpacking for costs in unpacked])),
        jpeg_bytes=float(np.mean([costs.jpeg_bytes for costs in unpacked])),
    )


class _Look:
    """Reads what training reads of a source at once: a whole image, a window, or one of a slice."""

    def __init__(self, reader: Reader, recipe: Recipe, form: Form) -> None:
        self.reader, self.form = reader, form
        self.chance = generator(recipe.train.seed, 0, LOOK)
        self.size = tuple(int(side) for side in recipe.model.image_size)
        index, data = reader.index, recipe.data
        self.own = index.shapes
        self.axes = along_each(index, len(self.size), data.axis)
        self.shapes, windows = windows_each(index, self.size, data.crop, data.axis)
        self.sides = self.shapes if windows is None else np.minimum(self.shapes, np.ceil(windows)).astype(np.int64)
        self.contrast = data.min_contrast
        self.images = data.crop == "image" and self.own.shape[1] == 3
        # crops of the usual area, of images that are decoded smaller where they have many more pixels than the model
        self.least = tuple(ceil(MARGIN * side / sqrt(sum(data.crop_scale) / 2)) for side in self.size)

    def timed(self, row: int, file: BinaryIO) -> Costs:
        """The costs of one source; where it cannot be a JPEG, its ``jpeg_bytes`` are 0."""
        begun = time.perf_counter()
        pixels = self._decoded(row)
        decoding = time.perf_counter() - begun
        shape = pixels.values.shape
        if self.images:
            channels, *extent = self.own[row].tolist()
            shape = (channels, *self.form.extent(*extent))
        file.seek(0)
        file.write(bytes(prod(shape) * pixels.values.itemsize))
        file.flush()
        begun = time.perf_counter()
        np.memmap(file, pixels.values.dtype, "r", shape=tuple(shape)).copy()
        reading = time.perf_counter() - begun
        if not (self.form.jpeg and self.images and pixels.values.dtype == np.uint8 and len(pixels.values) in (1, 3)):
            return Costs(decoding, reading, 0.0, 0.0)
        small = forms.shrunk(pixels.values, (shape[1], shape[2]))
        data = np.frombuffer(forms.encoded(small), np.uint8)
        begun = time.perf_counter()
        forms.decoded(data, len(small))
        return Costs(decoding, reading, time.perf_counter() - begun, len(data) / small.size)

    def _decoded(self, row: int) -> Pixels:
        index, axis = self.reader.index, int(self.axes[row])
        if self.images and index.dtype(row) == np.uint8 and not self.contrast:
            return self.reader.reduced(row, self.least)
        starts = (self.chance.random(len(self.size)) * (self.shapes[row] - self.sides[row] + 1)).astype(int)
        window = tuple(slice(a, a + s) for a, s in zip(starts.tolist(), self.sides[row].tolist(), strict=True))
        depth = int(self.chance.random() * self.own[row, 1 + axis]) if axis >= 0 else 0
        return self.reader.read(row, slab(axis, depth, window), self.size if axis < 0 else None)


def _warm(paths: Sequence[str]) -> None:
    """Read files once, so that decoding is timed and not the disk."""
    try:
        if sum(Path(path).stat().st_size for path in paths) <= WARMED:
            for path in paths:
                Path(path).read_bytes()
    except OSError as error:  # gone, moved or forbidden since the scan
        raise Unreadable(str(error)) from error


# ---- what is told ----------------------------------------------------------------------------------------------


def _told(form: Form, index: Index, jpeg_bytes: float | None = None) -> str:
    """The form and its size: ``raw, 1.2 GB``, ``compact (JPEG, short side 256), 3.1 GB``."""
    size = form.sizes(index).sum() if jpeg_bytes is None else form.sizes(index, jpeg_bytes).sum()
    side = f"short side {form.side}"
    kind = f"compact (JPEG, {side})" if form.jpeg else f"raw ({side})" if form.side else "raw"
    return f"{kind}, {'up to ' if form.jpeg and jpeg_bytes is None else ''}{_bytes(int(size))}"


def _short(form: Form, index: Index, allowed: int, jpeg_bytes: float | None = None) -> str:
    return f"{_told(form, index, jpeg_bytes)}, is more than data.store=auto allows ({_bytes(allowed)})"


def _unheeded(recipe: Recipe, form: Form) -> str:
    """A word where a form was asked for that these images cannot have."""
    asked = [f"data.{name}={value}" for name in ("store_form", "store_max_side")
             if (value := getattr(recipe.data, name)) not in ("auto", "raw")]  # fmt: skip
    if not asked or form != RAW:
        return ""
    why = (
        "these images keep their pixels"
        if recipe.data.crop == "image"
        else f"data.crop={recipe.data.crop} needs pixels"
    )
    return f"; {', '.join(asked)}: {why}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2g}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"
