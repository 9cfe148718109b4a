"""Batches: which rows, which windows, resized into one block of memory, a batch ahead of the model.

Shapes: B images a batch, C channels, S the model's spatial size, L patches an image.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maectl.adapter import Pixels
from maectl.errors import TrainingError, Unreadable
from maectl.planes import along_each, flat, rest, slab, windows_each
from maectl.resize import fitted
from maectl.stats import Normalizer
from maectl.store import Reader
from maectl.stream import HELD_OUT, REDRAW, TRAIN, Stream, generator
from maectl.windows import Crop, Draws, Span, coarser, crop_pixels, divided, draw, place

__all__ = ["Batch", "Loader", "Views", "normalise"]

REDRAWS = 10  # windows, or other sources, tried in place of one that cannot be used
AHEAD = 2  # batches prepared before they are asked for
ENOUGH = 2.0 - 1e-9  # what `Views._worth` gives a crop that need not be drawn again
LOOKED_AT = 10_000  # pixels that tell a crop's contrast
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Batch(NamedTuple):
    """One batch, in the images' unit; still on the CPU."""

    images: Tensor  # [B, C, *S] uint8 or float32
    valid: Tensor | None  # [B, *S] bool, or None where all is valid
    noise: Tensor  # [B, L] float32 in [0, 1): the mask's
    mean: Tensor  # [B or 1, C] float32
    std: Tensor  # [B or 1, C]
    rows: Ints  # [B] the sources shown


def normalise(batch: Batch, normalizer: Normalizer, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The batch as the model sees it, float32 on the device: (clip(x) − mean) / std, and its validity."""
    images = batch.images.to(device, non_blocking=True).float()
    extra = (1,) * (images.ndim - 2)
    if normalizer.clip is not None:
        low, high = (
            torch.tensor(side, device=device, dtype=torch.float32).view(1, -1, *extra) for side in normalizer.clip
        )
        images = images.clamp(low, high)
    mean, std = (each.to(device, non_blocking=True).view(*each.shape, *extra) for each in (batch.mean, batch.std))
    valid = None if batch.valid is None else batch.valid.to(device, non_blocking=True)
    return (images - mean) / std, valid


class _View(NamedTuple):
    """A crop as it is read.

    span is the extent it is a cut of (`resize.fitted`), flips are axes to reverse, then it is turned by quarters.
    """

    row: int
    pixels: Pixels
    span: Span
    flips: Span
    turns: int

    def turned(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[..., *S] as it is shown: to turn the output is to turn the input, for the filters are symmetric."""
        reversed_ = np.flip(values, tuple(axis - self.pixels.values.ndim + 1 for axis in self.flips))
        return np.rot90(reversed_, self.turns, axes=(-2, -1)) if self.turns else reversed_


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
    _dead: set[int] = field(default_factory=set)
    _moments: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        index = self.reader.index
        self._shapes = index.shapes
        self._along = along_each(index, len(self.crop.size), self.axis)
        self.slices = bool((self._along >= 0).any())
        self._lock = threading.Lock()
        bytes_only = all(source.dtype == "uint8" for source, _ in index.kinds)
        self.dtype = torch.uint8 if bytes_only else torch.float32

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

    def _window(self, spacing: tuple[float, ...] | None, axis: int) -> tuple[float, ...] | None:
        """``data.crop`` in pixels of what the model sees of a source of that spacing."""
        seen = None if spacing is None else tuple(np.delete(spacing, axis)) if axis >= 0 else spacing
        return crop_pixels(self.window, self.crop.size, seen)

    def allocate(self, rows: Ints, candidates: Ints, generated: np.random.Generator, pin: bool) -> "_Pending":
        """An empty batch for some rows, with all its chance drawn: crops, flips, then mask noise.

        ``candidates`` are the rows that may stand in for one that cannot be read.
        """
        count, channels = len(rows), int(self._shapes[0, 0])
        draws = self._draw(generated, count)
        noise = torch.from_numpy(generated.random((count, self.patches), dtype=np.float32))
        own = count if self.normalizer.image else 1
        return _Pending(
            rows=rows.copy(),
            candidates=candidates,
            draws=draws,
            images=torch.empty((count, channels, *self.crop.size), dtype=self.dtype, pin_memory=pin),
            valid=np.ones((count, *self.crop.size), np.bool_),
            noise=noise.pin_memory() if pin else noise,
            mean=torch.tensor(self.normalizer.mean).repeat(own, 1),
            std=torch.tensor(self.normalizer.std).repeat(own, 1),
        )

    def fill(self, pending: "_Pending", items: range, step: int, purpose: int) -> None:
        """Read, crop and resize some items of a batch into place."""
        images = pending.images.numpy()
        for item in items:
            view = self._view(pending, item, step, purpose)
            mean, std = self._constants(view.row)
            pixels = fitted(view.pixels, view.span, self.crop.size, mean)
            images[item] = view.turned(pixels.values)
            if pixels.valid is not None:
                pending.valid[item] = view.turned(pixels.valid)
            if self.normalizer.image:
                pending.mean[item], pending.std[item] = torch.from_numpy(mean), torch.from_numpy(std)
            pending.rows[item] = view.row

    def _view(self, pending: "_Pending", item: int, step: int, purpose: int) -> _View:
        """The crop of one item, drawn again while invalid or flat pixels prevail or a source is unreadable."""
        row, best = int(pending.rows[item]), -1.0
        draws, at = pending.draws, item
        found: _View | None = None
        for attempt in range(REDRAWS):
            if attempt:
                again = generator(self.seed, step, REDRAW + purpose, item, attempt)
                draws, at = self._draw(again, 1), 0
            try:
                view = self._read(row, draws, at, purpose)
            except Unreadable as error:
                self._bury(row, str(error))
                other = generator(self.seed, step, REDRAW + purpose, item, REDRAWS + attempt)
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

    def _read(self, row: int, draws: Draws, item: int, purpose: int) -> _View:
        if row in self._dead:
            raise Unreadable("known to be unreadable")
        crop, axis, extent = self.crop, int(self._along[row]), self._shapes[row, 1:]
        if self.window != "image":
            crop = replace(crop, window=self._window(self.reader.index[row].spacing, axis))
        self._constants(row)  # looked up again once it is known that the row can be read
        height, *others = rest(extent, axis)
        rows = slice(0, height)
        if self.divided and crop.window is not None:
            rows = divided(height, crop.window[0], purpose == HELD_OUT)
        window, span, flips = place(crop, draws, item, (rows.stop - rows.start, *others))
        window = (slice(window[0].start + rows.start, window[0].stop + rows.start), *window[1:])
        size = self.crop.size if axis < 0 else None
        pixels = self.reader.read(row, slab(axis, int(draws.depths[item] * extent[axis]), window), size)
        pixels = flat(pixels, axis)
        span = coarser(span, window, pixels.values.shape[1:])
        return _View(row, pixels, span, flips, int(4 * draws.turns[item]))

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
            return self.normalizer.constants(lambda: self.reader.sample(row))
        if row not in self._moments:
            self._moments[row] = self.normalizer.constants(lambda: self.reader.sample(row))
        return self._moments[row]


@dataclass
class _Pending:
    rows: Ints
    candidates: Ints
    draws: Draws
    images: Tensor
    valid: npt.NDArray[np.bool_]
    noise: Tensor
    mean: Tensor
    std: Tensor

    def batch(self) -> Batch:
        valid = None if self.valid.all() else torch.from_numpy(self.valid)
        return Batch(self.images, valid, self.noise, self.mean, self.std, self.rows)


class Loader:
    """Batches by step, prepared by threads (decoding and resizing release the interpreter's lock).

    ``waited`` is the time in seconds the caller has spent waiting for batches.
    """

    def __init__(self, views: Views, workers: int, pin: bool = False) -> None:
        self.views, self.workers, self.pin = views, workers, pin
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="maectl-loader")

    def batches(self, stream: Stream, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop) of a stream."""
        waiting: list[tuple[_Pending, list[Future[None]]]] = []
        for step in range(start, stop + AHEAD):
            if step < stop:
                waiting.append(self._submit(stream.step(step), stream.rows, step, TRAIN))
            if step - start >= AHEAD and waiting:
                yield self._finished(*waiting.pop(0))

    def batch(self, rows: Ints, step: int, purpose: int) -> Batch:
        """One batch of given rows, with the draws of (step, purpose)."""
        return self._finished(*self._submit(rows, rows, step, purpose))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, rows: Ints, candidates: Ints, step: int, purpose: int) -> tuple[_Pending, list[Future[None]]]:
        pending = self.views.allocate(rows, candidates, generator(self.views.seed, step, purpose), self.pin)
        share = max(1, -(-len(rows) // (2 * self.workers)))
        chunks = [range(first, min(first + share, len(rows))) for first in range(0, len(rows), share)]
        return pending, [self._pool.submit(self.views.fill, pending, chunk, step, purpose) for chunk in chunks]

    def _finished(self, pending: _Pending, parts: list[Future[None]]) -> Batch:
        begun = time.perf_counter()
        for part in parts:
            part.result()
        self.waited += time.perf_counter() - begun
        return pending.batch()
