"""One image, reconstructed, measured, drawn and written.

`tiling` says how an image of any size meets the model and what several masks do. Here predictions go back
to the image's own grid: at removed patches stand predictions, elsewhere the image's own pixels, untouched.
Errors are measured there, in the image's unit, over the valid pixels of the patches predicted, before
rounding or clipping.

With ``norm_pix_loss`` the model predicts patches up to their mean and deviation, which are taken from the
original: the picture's title, its metadata and the result say so.

C channels, S the image's spatial shape.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, PngImagePlugin

from maectl import panels
from maectl.adapter import Adapter, Pixels, Source, Values, Window
from maectl.checkpoint import Config
from maectl.errors import RunError, Unreadable, UsageError
from maectl.fidelity import compared, fidelity, joined, nearest_visible, patch_means
from maectl.huge import is_huge, sample
from maectl.lattice import Lattice
from maectl.mae import MaskedAutoencoder
from maectl.mosaic import Done, Overview, parts
from maectl.planes import along, rest
from maectl.resize import pad, resize
from maectl.stream import RECONSTRUCT, generator
from maectl.tiling import Layout, back, inpaint, layout, masks, places
from maectl.windows import crop_pixels, room

__all__ = ["Job", "check", "restore"]

ROWS = 1024  # rows of pixels handed to an adapter at once
LARGEST = 1 << 30  # pixels that a small source is padded to at most
ERROR_SHARE = 4  # the error map ends at the peak divided by this: one scale for all images of a run
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Constants = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Job:
    """What all images share."""

    model: MaskedAutoencoder
    config: Config
    adapter: Adapter
    out: Path
    mask_ratio: float
    seed: int
    cover: bool
    format: str
    device: torch.device


def restore(job: Job, name: str, source: Source, place: int, path: Path) -> dict[str, Any]:
    """Reconstruct, write and measure one image. Raises Unreadable."""
    axis = check(source, job.config)
    if axis < 0 and job.config.crop != "image" and len(source.shape) == 3:
        return _in_parts(job, name, source, place, path)
    if is_huge(source.shape, source.dtype):
        raise Unreadable(
            f"{'x'.join(map(str, source.shape[1:]))} pixels are too many for a model that was trained on whole images: "
            "train with a window (data.crop=224px, say)"
        )
    pixels = job.adapter.read(source)
    sight = _sight(source, pixels, job.config, axis)
    done, measured = _whole(job, pixels, sight, place)
    entry = _entry(job, name, source, measured, sight.peak) | {
        "masks": len(masks(sight.plan.grid, job.mask_ratio, job.cover, generator(job.seed, place, RECONSTRUCT))),
        "tiles": len(sight.plan.tiles),
        "seen_size": list(sight.plan.size),
        "slices": None if axis < 0 else source.axes[axis],
    }
    written = None
    if job.format != "png":
        written = job.adapter.write(source, _tiles(done.pasted), path.with_name(f"{path.name}-reconstruction"))
    return _shown(job, source, done, entry, path, written)


def _in_parts(job: Job, name: str, source: Source, place: int, path: Path) -> dict[str, Any]:
    """`restore` of an image of any size, for a model that was trained on windows of a fixed one."""
    lattice = _lattice(source, job.config)
    chosen = masks(lattice.grid, job.mask_ratio, job.cover, generator(job.seed, place, RECONSTRUCT))
    read = partial(job.adapter.read, source)
    looked_at = cache(lambda: sample(read, source.shape, source.dtype))
    constants = job.config.normalizer.constants(looked_at)
    peak = _peak(source, looked_at, job.config)
    overview, measured = Overview(source.shape[1:]), []

    def tiles() -> Iterator[tuple[Window, Values]]:
        every = parts(
            read, lattice, job.model, chosen, job.mask_ratio, job.config.normalizer, constants, peak, job.device
        )
        for window, done, how_well in every:
            overview.add(window, done)
            measured.extend([how_well] if how_well else [])
            yield window, done.pasted

    written = None
    if job.format == "png":
        deque(tiles(), maxlen=0)
    else:
        written = job.adapter.write(source, tiles(), path.with_name(f"{path.name}-reconstruction"))
    try:
        entry = _entry(job, name, source, measured, peak)
    except Unreadable:
        if written is not None:
            written.unlink()
        raise
    every = lattice.part(tuple(slice(0, side) for side in lattice.cells)).plan
    entry |= {"masks": len(chosen), "tiles": len(every.tiles), "seen_size": list(every.size), "slices": None}
    return _shown(job, source, overview.done, entry, path, written)


def _lattice(source: Source, config: Config) -> Lattice:
    try:
        return Lattice.of(source, config)
    except UsageError as error:
        raise Unreadable(str(error)) from None


def _entry(job: Job, name: str, source: Source, measured: list[dict[str, Any]], peak: float) -> dict[str, Any]:
    """What is told of one image. Raises Unreadable where nothing could be measured."""
    if not measured:
        raise Unreadable("no valid pixel lies in the patches removed (--cover removes every one)")
    return {
        "source": name,
        "outputs": [],
        **joined(measured, peak),
        "mask_ratio": job.mask_ratio,
        "clip": None if job.config.normalizer.clip is None else [side[0] for side in job.config.normalizer.clip],
        "unit": source.unit,
        "patch_statistics": "original" if job.config.model["norm_pix_loss"] else "predicted",
    }


def _shown(
    job: Job, source: Source, done: Done, entry: dict[str, Any], path: Path, written: Path | None
) -> dict[str, Any]:
    """The entry, with the files written: the picture, where one is asked for, and the image."""
    if job.format != "native":
        picture = path.with_name(f"{path.name}-panels.png")
        entry["outputs"].append(str(picture))
        title = path.name if job.adapter.private else Path(source.paths[0]).name
        _picture(job, done, entry, f"{title}: {compared(entry)}", source.spacing, picture)
    if written is not None:
        entry["outputs"].append(str(written))
    return entry


def check(source: Source, config: Config) -> int:
    """The axis that is sliced, -1 for none. Raises Unreadable for an image not of the kind the model was trained on."""
    if source.unit != config.unit:
        raise Unreadable(f"its unit is {source.unit!r}, the model's {config.unit!r}")
    if source.channels != config.channels:
        raise Unreadable(f"its channels are {'/'.join(source.channels)}, the model's {'/'.join(config.channels)}")
    try:
        return along(source, len(config.model["image_size"]), config.axis)
    except UsageError as error:
        raise Unreadable(f"it has {len(source.shape) - 1} dimensions: {error}") from None


@dataclass(frozen=True)
class _Sight:
    """How an image meets the model.

    axis       the axis that is sliced, -1 for none
    plan       the layout of what the model sees, the image or one slice of it
    span       the extent that is padded to before
    constants  mean and deviation [C] that normalise it
    peak       of its values, for PSNR
    """

    axis: int
    plan: Layout
    span: tuple[int, ...]
    constants: Constants
    peak: float


def _sight(source: Source, pixels: Pixels, config: Config, axis: int) -> _Sight:
    size, patch = (tuple(config.model[key]) for key in ("image_size", "patch_size"))
    spacing = source.spacing if source.spacing is None or axis < 0 else tuple(np.delete(source.spacing, axis))
    window = crop_pixels(config.crop, size, spacing)
    extent = rest(source.shape[1:], axis)
    span = room(extent, window)
    if prod(span) > max(LARGEST, 8 * prod(extent)):
        raise Unreadable(f"its pixels are far smaller than the model's: data.crop {config.crop} is {span} of them")
    constants = config.normalizer.constants(lambda: pixels)
    return _Sight(axis, layout(span, size, patch, window), span, constants, _peak(source, lambda: pixels, config))


def _whole(job: Job, pixels: Pixels, sight: _Sight, place: int) -> tuple[Done, list[dict[str, Any]]]:
    """The image reconstructed, slice by slice where the model sees slices, and how well each came out."""
    if sight.axis < 0:
        done, measured = _reconstructed(job, pixels, sight, generator(job.seed, place, RECONSTRUCT))
        return done, [measured] if measured else []
    extent = pixels.values.shape[1:]
    predicted = np.zeros(pixels.values.shape, np.float32)
    where, removed = np.zeros(extent, np.bool_), np.zeros(extent, np.bool_)
    every = []
    for number, plane in enumerate(_planes(pixels, sight.axis)):
        part, measured = _reconstructed(job, plane, sight, generator(job.seed, place, RECONSTRUCT, number))
        at = (slice(None),) * sight.axis + (number,)
        predicted[(slice(None), *at)], where[at], removed[at] = part.predicted, part.where, part.removed
        every += [measured] if measured else []
    return Done(pixels.values, pixels.valid, predicted, where, removed), every


def _planes(pixels: Pixels, axis: int) -> Iterator[Pixels]:
    for place in range(pixels.values.shape[1 + axis]):
        at = (slice(None),) * axis + (place,)
        yield Pixels(pixels.values[(slice(None), *at)], None if pixels.valid is None else pixels.valid[at])


def _reconstructed(job: Job, pixels: Pixels, sight: _Sight, chance: np.random.Generator) -> tuple[Done, dict[str, Any]]:
    """What the model sees at once, reconstructed; and its `fidelity`, nothing where no valid pixel is predicted."""
    plan, constants = sight.plan, sight.constants
    chosen = masks(plan.grid, job.mask_ratio, job.cover, chance)
    inner = tuple(
        slice((s - e) // 2, (s - e) // 2 + e) for s, e in zip(sight.span, pixels.values.shape[1:], strict=True)
    )
    padded = pad(pixels, sight.span)
    seen = resize(padded, plan.size, constants[0])
    tensors = torch.from_numpy(constants[0]).float()[None], torch.from_numpy(constants[1]).float()[None]
    canvas = inpaint(job.model, seen, plan, chosen, job.mask_ratio, job.config.normalizer, tensors, job.device)
    used = plan.spread(np.any([mask.used for mask in chosen], axis=0)) & plan.known(seen.valid)
    predicted, where = back(canvas, used, plan.patch, sight.span)
    removed = plan.spread(chosen[0].removed)[np.ix_(*places(sight.span, plan.cells))]
    means = np.zeros(padded.values.shape, np.float32)
    at = where if padded.valid is None else where & padded.valid
    told = constants if job.config.model["norm_pix_loss"] else None
    means[:, at] = patch_means(padded.values, at, places(sight.span, plan.cells), plan.cells, told)
    done = Done(pixels.values, pixels.valid, predicted[(slice(None), *inner)], where[inner], removed[inner])
    if not done.measured.any():
        return done, {}
    nearest, _ = back(nearest_visible(seen, plan, chosen), used, plan.patch, sight.span)
    rivals = {
        name: each[(slice(None), *inner)][:, done.measured]
        for name, each in (("patch_mean", means), ("nearest_visible", nearest))
    }
    return done, fidelity(done.values, done.predicted, done.measured, sight.peak, rivals)


def _peak(source: Source, looked_at: Callable[[], Pixels], config: Config) -> float:
    """255 for 8-bit images, else the range from the 0.1 to the 99.9 % percentile of the run's data set.

    Where each image is normalised by itself their values have no common scale: then that of its own valid pixels.
    """
    if source.dtype == "uint8":
        return 255.0
    if config.normalizer.image:
        pixels = looked_at()
        inside = pixels.values if pixels.valid is None else pixels.values[:, pixels.valid]
        low, high = np.percentile(inside, (0.1, 99.9)) if inside.size else (0.0, 0.0)
        return float(high - low)
    return float(max(config.statistics["p99_9"]) - min(config.statistics["p0_1"]))


def _picture(
    job: Job, done: Done, entry: dict[str, Any], note: str, spacing: tuple[float, ...] | None, path: Path
) -> None:
    """original | masked | reconstruction | visible patches pasted | error, as one PNG."""
    config, peak, count = job.config, entry["psnr_peak"], entry["masks"]
    bad, shown = None if done.valid is None else ~done.valid, panels.levels(done.values, config, done.valid)
    error = np.where(done.measured, np.abs(done.predicted - done.values), 0).mean(axis=0)
    top = peak / ERROR_SHARE or 1.0
    row = [
        panels.panel(done.values, config, None, bad, spacing, shown),
        panels.panel(done.values, config, done.removed, bad, spacing, shown),
        panels.panel(done.pasted, config, ~done.where, bad, spacing, shown),
        panels.panel(np.where(done.removed, done.predicted, done.values), config, None, bad, spacing, shown),
        panels.error_panel(error, top, ~done.where, bad, spacing),
    ]
    first = f" (mask 1 of {count})" if count > 1 else ""
    leak = f"\n{panels.LEAK}" if config.model["norm_pix_loss"] else ""
    titles = (
        "original",
        f"masked, {job.mask_ratio:.0%}{first}",
        f"reconstruction{leak}",
        f"visible patches pasted{first}",
        f"error, {entry['unit']}" if ".." not in entry["unit"] else "error",
    )
    about = PngImagePlugin.PngInfo()
    about.add_text("Description", f"{'; '.join(title.replace(chr(10), ', ') for title in titles)}. {note}")
    about.add_text(
        "maectl", json.dumps({key: value for key, value in entry.items() if key not in ("source", "outputs")})
    )
    try:
        Image.fromarray(panels.sheet(titles, [row], [note], scale=top)).save(path, "PNG", pnginfo=about)
    except OSError as error_:
        raise RunError(f"{path} cannot be written: {error_.strerror}") from None


def _tiles(values: Values) -> Iterator[tuple[Window, Values]]:
    """Bands of whole rows (slices, in a volume), top to bottom."""
    rest = tuple(slice(0, side) for side in values.shape[2:])
    for first in range(0, values.shape[1], ROWS):
        band = slice(first, min(first + ROWS, values.shape[1]))
        yield (band, *rest), values[:, band]
