"""Views: which window of a source an item of a batch shows, drawn again while it will not do, resized into place.

Shapes: B images a batch, C channels, S the model's spatial size, L patches an image.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maectl.adapter import Pixels
from maectl.batch import Pending, empty
from maectl.crops import Cut, packed
from maectl.cuts import Cutter
from maectl.errors import TrainingError, Unreadable
from maectl.planes import along_each, flat, rest, slab, windows_each
from maectl.reading import Reader
from maectl.resize import fitted, tensor
from maectl.stats import Normalizer
from maectl.stream import HELD_OUT, REDRAW, generator
from maectl.windows import Crop, Draws, Span, coarser, crop_pixels, divided, draw, place

__all__ = ["Views"]

REDRAWS = 10  # windows, or other sources, tried in place of one that cannot be used
ENOUGH = 2.0 - 1e-9  # what `Views._worth` gives a crop that need not be drawn again
LOOKED_AT = 10_000  # pixels that tell a crop's contrast
ON_DEVICE = 3  # times the model's size up to which a crop is resized on the device: a larger one is copied too slowly
PIECE = 32  # crops copied to the device at once
BLOCK = 4096  # rows whose own means and deviations are kept together
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _View(NamedTuple):
    """A crop as it is read.

    span is the extent it is a cut of (`resize.fitted`), flips are axes to reverse, then it is turned by quarters.
    """

    row: int
    pixels: Pixels
    span: Span
    flips: Span
    turns: int

    def turned(self, values: npt.NDArray[np.generic]) -> Tensor:
        """[..., *S] as it is shown: to turn the output is to turn the input, for the filters are symmetric."""
        shown = tensor(values)[None]
        if self.flips:
            shown = shown.flip([axis - self.pixels.values.ndim + 1 for axis in self.flips])
        return (torch.rot90(shown, self.turns, (-2, -1)) if self.turns else shown)[0]


@dataclass
class Views:
    """How rows become crops of the model's size; shared by all threads.

    A 2-D model sees volumes in slices along ``axis`` (`planes.along_each`), any with the same chance. Crops with
    too few valid pixels, or flatter than ``min_contrast`` of the deviation that normalises them (air, empty
    slices), are drawn again. ``rejected`` is called once with the row and the reason of each source that turns
    out unreadable.
    """

    reader: Reader
    crop: Crop
    window: str  # data.crop
    normalizer: Normalizer
    min_valid: float
    patches: int  # L
    seed: int
    min_contrast: float = 0.0
    axis: str | None = None  # data.axis
    divided: bool = False  # whether what is held out lies in images that are trained on (`windows.divided`)
    rejected: Callable[[int, str], None] = lambda row, reason: None
    crops: int = 1  # data.crops_per_image: how many items in a row a stream shows of one source
    resize: str = "cpu"  # data.resize: cpu, or device where bytes and 2-D (within a grey level or two of it)
    _dead: set[int] = field(default_factory=set)  # told of; still read, so that a draw depends on nothing before it
    _moments: dict[int, Floats] = field(default_factory=dict)  # [BLOCK, 2, C] by row // BLOCK, NaN where not known

    def __post_init__(self) -> None:
        index, dimensions = self.reader.index, len(self.crop.size)
        self._shapes = self.reader.shapes
        # None where images are seen whole: ten million numbers would say no more
        whole = self._shapes.shape[1] == 3 == dimensions + 1
        self._along = None if whole else along_each(index, dimensions, self.axis)
        self.slices = self._along is not None and bool((self._along >= 0).any())
        self._lock = threading.Lock()
        bytes_only = all(source.dtype == "uint8" for source, _ in index.kinds)
        self.dtype = torch.uint8 if bytes_only else torch.float32
        self._late = self.resize == "device" and whole and bytes_only
        shrink = self.window == "image" and whole and bytes_only and not self.min_contrast
        self._crop = replace(self.crop, shrink=shrink)
        self._shared = np.array(self.normalizer.mean), np.array(self.normalizer.std)
        if self.window.endswith("px"):
            self._crop = replace(self._crop, window=crop_pixels(self.window, self.crop.size, None))

    def per_epoch(self, rows: Ints) -> Ints | None:
        """int64 [N] how often an epoch shows each row: its slices, each as often as windows fit its area.

        None where every row is shown once.
        """
        if self.window == "image" and not self.slices:
            return None
        shapes, windows = windows_each(self.reader.index, self.crop.size, self.window, self.axis)
        fitting = 1.0 if windows is None else np.maximum(1, np.rint(shapes.prod(axis=1) / windows.prod(axis=1)))
        whole = self._shapes[:, 1:].prod(axis=1, dtype=np.int64)
        slices = whole // shapes.prod(axis=1)  # 1 where nothing is sliced
        counts: Ints = (slices * fitting).astype(np.int64)[rows]
        return counts

    def allocate(
        self, rows: Ints, candidates: Ints, generated: np.random.Generator, pin: bool, part: slice, late: bool = False
    ) -> Pending:
        """An empty ``part`` of a batch of some rows; the chance is the whole batch's: crops, flips, then mask noise.

        ``candidates`` are the rows that may stand in for one that cannot be read. With ``late`` and ``resize``
        device its images are resized by `batch.normalise`.
        """
        draws = self._draw(generated, len(rows))
        noise = torch.from_numpy(generated.random((len(rows), self.patches), dtype=np.float32)[part])
        count, shape = len(noise), (int(self._shapes[0, 0]), *self.crop.size)
        own = count if self.normalizer.image else 1
        return Pending(
            rows=rows[part].copy(),
            first=part.start,
            candidates=candidates,
            draws=draws,
            shape=shape,
            images=None if late and self._late else empty(count, shape, self.dtype, pin),
            noise=noise.pin_memory() if pin else noise,
            pin=pin,
            mean=torch.tensor(self.normalizer.mean).repeat(own, 1),
            std=torch.tensor(self.normalizer.std).repeat(own, 1),
        )

    def fill(self, pending: Pending, items: range, step: int, purpose: int) -> None:
        """Read, crop and resize some items of a part of a batch into place."""
        cutter = Cutter(self.reader, self._crop, self.crops > 1)
        if pending.images is not None:
            # numpy's copies, not torch's: those would wake a team of threads in each of the loader's
            images = pending.images.numpy()
            for item in items:
                images[item] = self._resized(pending, item, self._view(pending, item, step, purpose, cutter))
            return
        for first in range(items.start, items.stop, PIECE):
            few = range(first, min(first + PIECE, items.stop))
            cuts = [self._cut(pending, item, self._view(pending, item, step, purpose, cutter)) for item in few]
            pending.pieces[first] = packed(cuts, pending.pin)

    def _resized(self, pending: Pending, item: int, view: _View) -> npt.NDArray[np.generic]:
        """[C, *S] an item as it is shown; its validity is written to its place."""
        pixels = fitted(view.pixels, view.span, self.crop.size, self._noted(pending, item, view.row))
        if pixels.valid is not None:
            pending.validity(item)[:] = view.turned(pixels.valid).numpy()
        return np.asarray(view.turned(pixels.values).numpy())

    def _cut(self, pending: Pending, item: int, view: _View) -> Cut:
        """An item to be resized on the device; of the model's size already where that would not do."""
        have, values = view.pixels.values.shape[1:], view.pixels.values
        large = any(side > ON_DEVICE * own for side, own in zip(have, self.crop.size, strict=True))
        if view.pixels.valid is not None or have != view.span or large:
            return Cut(self._resized(pending, item, view))
        self._noted(pending, item, view.row)
        return Cut(values, (0 in view.flips, 1 in view.flips), view.turns)

    def _noted(self, pending: Pending, item: int, row: int) -> Floats:
        """The mean [C] of what an item shows, once its source and what normalises it are written to its place."""
        mean, std = self._constants(row)
        if self.normalizer.image:
            pending.mean[item], pending.std[item] = torch.from_numpy(mean), torch.from_numpy(std)
        pending.rows[item] = row
        return mean

    def _view(self, pending: Pending, item: int, step: int, purpose: int, cutter: Cutter) -> _View:
        """The crop of one item, drawn again while invalid or flat pixels prevail or a source is unreadable."""
        row, best = int(pending.rows[item]), -1.0
        at = pending.first + item  # its place in the whole batch, whatever part of it this is
        draws, drawn = pending.draws, at
        found: _View | None = None
        for attempt in range(REDRAWS):
            if attempt:
                again = generator(self.seed, step, REDRAW + purpose, at, attempt)
                draws, drawn = self._draw(again, 1), 0
            try:
                view = self._read(row, draws, drawn, purpose, cutter)
            except Unreadable as error:
                self._bury(row, str(error))
                other = generator(self.seed, step, REDRAW + purpose, at, REDRAWS + attempt)
                row = int(other.choice(pending.candidates))
                continue
            worth = self._worth(view.pixels, row)
            if worth > best:
                found, best = view, worth
            if worth >= ENOUGH:
                break
        if found is None:
            raise TrainingError(f"{REDRAWS} sources in a row cannot be read: is the folder still there?")
        return found

    def _draw(self, generated: np.random.Generator, count: int) -> Draws:
        return draw(generated, count, len(self.crop.size), slices=self.slices, rotate=self.crop.rotate)

    def _read(self, row: int, draws: Draws, item: int, purpose: int, cutter: Cutter | None = None) -> _View:
        axis = -1 if self._along is None else int(self._along[row])
        extent = self._shapes[row].tolist()[1:]
        crop = self._sized(row, axis)
        self._constants(row)  # looked up again once it is known that the row can be read
        height, *others = rest(extent, axis)
        rows = slice(0, height)
        if self.divided and crop.window is not None:
            rows = divided(height, crop.window[0], purpose == HELD_OUT)
        window, span, flips = place(crop, draws, item, (rows.stop - rows.start, *others))
        window = (slice(window[0].start + rows.start, window[0].stop + rows.start), *window[1:])
        size = self.crop.size if axis < 0 else None
        cutter = cutter or Cutter(self.reader, crop)
        depth = 0 if axis < 0 else int(draws.depths[item] * extent[axis])
        pixels = flat(cutter.cut(row, slab(axis, depth, window), size), axis)
        span = coarser(span, window, pixels.values.shape[1:])
        return _View(row, pixels, span, flips, int(4 * draws.turns[item]))

    def _sized(self, row: int, axis: int) -> Crop:
        """How the crops of a source are drawn, whose pixels may be of any spacing."""
        if self.window == "image" or self.window.endswith("px"):
            return self._crop
        spacing = self.reader.index[row].spacing
        seen = spacing if spacing is None or axis < 0 else tuple(np.delete(spacing, axis))
        return replace(self._crop, window=crop_pixels(self.window, self.crop.size, seen))

    def _worth(self, pixels: Pixels, row: int) -> float:
        """2 for a crop with enough that is valid and enough contrast, else less: the better one has more."""
        share = 1.0 if pixels.valid is None else float(pixels.valid.mean())
        worth = min(1.0, share / self.min_valid) if self.min_valid else 1.0
        if not self.min_contrast:
            return worth + 1
        values = (
            pixels.values.reshape(len(pixels.values), -1) if pixels.valid is None else pixels.values[:, pixels.valid]
        )
        values = values[:, :: max(1, values.shape[1] // LOOKED_AT)].astype(np.float32)
        if self.normalizer.clip is not None:
            values = np.clip(values, *(np.array(side, np.float32)[:, None] for side in self.normalizer.clip))
        contrast = float((values.std(axis=1) / self._constants(row)[1]).max()) if values.shape[1] else 0.0
        return worth + min(1.0, contrast / self.min_contrast)

    def _bury(self, row: int, reason: str) -> None:
        with self._lock:
            if row in self._dead:
                return
            self._dead.add(row)
        self.rejected(row, reason)

    def _constants(self, row: int) -> tuple[Floats, Floats]:
        """Mean and deviation [C] that normalise a source."""
        if not self.normalizer.image:
            return self._shared
        number, at = divmod(row, BLOCK)
        with self._lock:
            if number not in self._moments:
                self._moments[number] = np.full((BLOCK, 2, int(self._shapes[0, 0])), np.nan)
            block = self._moments[number]
        if np.isnan(block[at, 0, 0]):
            mean, std = self.normalizer.constants(lambda: self.reader.sample(row))
            block[at, 1], block[at, 0] = std, mean  # the mean last: it tells other threads that both are there
        return block[at, 0], block[at, 1]
