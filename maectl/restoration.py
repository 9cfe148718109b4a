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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, PngImagePlugin

from maectl import panels
from maectl.adapter import Adapter, Pixels, Source, Values, Window
from maectl.checkpoint import Config
from maectl.errors import RunError, Unreadable
from maectl.fidelity import compared, fidelity, nearest_visible, patch_means
from maectl.mae import MaskedAutoencoder
from maectl.resize import resize
from maectl.stats import moments
from maectl.stream import RECONSTRUCT, generator
from maectl.tiling import Layout, Mask, back, inpaint, layout, masks, places, spread
from maectl.windows import crop_pixels

__all__ = ["Job", "restore"]

ROWS = 1024  # rows of pixels handed to an adapter at once
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


@dataclass(frozen=True)
class _Done:
    """One image, reconstructed.

    values     [C, *S] the image's own
    valid      bool [*S] or None
    predicted  float32 [C, *S] predictions in the image's unit, 0 where there is none
    where      bool [*S] where a prediction is used
    removed    bool [*S] what the first mask removed
    """

    values: npt.NDArray[Any]
    valid: Bools | None
    predicted: Floats
    where: Bools
    removed: Bools

    @property
    def measured(self) -> Bools:
        """Where errors count, bool [*S]."""
        return self.where if self.valid is None else self.where & self.valid

    @property
    def pasted(self) -> npt.NDArray[Any]:
        """The image's own pixels with the predictions in place of what was removed."""
        return np.where(self.where, self.predicted, self.values)


def restore(job: Job, name: str, source: Source, place: int, path: Path) -> dict[str, Any]:
    """Reconstruct, write and measure one image. Raises Unreadable."""
    _check(source, job.config)
    pixels = job.adapter.read(source)
    plan = _plan(source, job.config)
    chosen = masks(plan.grid, job.mask_ratio, job.cover, generator(job.seed, place, RECONSTRUCT))
    constants = _constants(pixels, job.config)
    seen = resize(pixels, plan.size, constants[0])
    done = _reconstructed(job, pixels, seen, plan, chosen, constants)
    if not done.measured.any():
        raise Unreadable("no valid pixel lies in the patches removed (--cover removes every one)")
    given = constants if job.config.model["norm_pix_loss"] else None
    rivals = {
        "patch_mean": patch_means(done.values, done.measured, plan.cells, given),
        "nearest_visible": nearest_visible(seen, plan, chosen, source.shape[1:])[:, done.measured],
    }
    peak = _peak(source, job.config)
    entry = {
        "source": name,
        "outputs": [],
        **fidelity(done.values, done.predicted, done.measured, peak, rivals),
        "mask_ratio": job.mask_ratio,
        "masks": len(chosen),
        "tiles": len(plan.tiles),
        "seen_size": list(plan.size),
        "unit": source.unit,
        "patch_statistics": "original" if job.config.model["norm_pix_loss"] else "predicted",
    }
    if job.format != "native":
        picture = path.with_name(f"{path.name}-panels.png")
        entry["outputs"].append(str(picture))
        _picture(job, done, entry, len(chosen), picture)
    if job.format != "png":
        tiles = _tiles(done.pasted)
        written = job.adapter.write(source, tiles, path.with_name(f"{path.name}-reconstruction"))
        entry["outputs"].append(str(written))
    return entry


def _check(source: Source, config: Config) -> None:
    """Raises Unreadable for an image that is not of the kind the model was trained on."""
    if source.unit != config.unit:
        raise Unreadable(f"its unit is {source.unit!r}, the model's {config.unit!r}")
    if source.channels != config.channels:
        raise Unreadable(f"its channels are {'/'.join(source.channels)}, the model's {'/'.join(config.channels)}")
    if len(source.shape) - 1 != len(config.model["image_size"]):
        raise Unreadable(f"it has {len(source.shape) - 1} dimensions, the model {len(config.model['image_size'])}")


def _plan(source: Source, config: Config) -> Layout:
    size, patch = (tuple(config.model[key]) for key in ("image_size", "patch_size"))
    return layout(source.shape[1:], size, patch, crop_pixels(config.crop, size, source.spacing))


def _constants(pixels: Pixels, config: Config) -> Constants:
    """Mean and deviation [C] that normalise an image."""
    normalizer = config.normalizer
    if not normalizer.image:
        return np.array(normalizer.mean), np.array(normalizer.std)
    return moments(pixels, None if normalizer.clip is None else (normalizer.clip[0][0], normalizer.clip[1][0]))


def _reconstructed(
    job: Job, pixels: Pixels, seen: Pixels, plan: Layout, chosen: Sequence[Mask], constants: Constants
) -> _Done:
    tensors = torch.from_numpy(constants[0]).float()[None], torch.from_numpy(constants[1]).float()[None]
    canvas = inpaint(job.model, seen, plan, chosen, job.mask_ratio, job.config.normalizer, tensors, job.device)
    used = spread(np.any([mask.used for mask in chosen], axis=0), plan.cells)
    extent = pixels.values.shape[1:]
    predicted, where = back(canvas, used, plan.patch, extent)
    removed = spread(chosen[0].removed, plan.cells)[np.ix_(*places(extent, plan.cells))]
    return _Done(pixels.values, pixels.valid, predicted, where, removed)


def _peak(source: Source, config: Config) -> float:
    """255 for 8-bit images, else the range from the 0.1 to the 99.9 % percentile of the run's data set."""
    if source.dtype == "uint8":
        return 255.0
    return float(max(config.statistics["p99_9"]) - min(config.statistics["p0_1"]))


def _picture(job: Job, done: _Done, entry: dict[str, Any], count: int, path: Path) -> None:
    """original | masked | reconstruction | visible patches pasted | error, as one PNG."""
    config, peak = job.config, entry["psnr_peak"]
    bad = None if done.valid is None else ~done.valid
    error = np.where(done.measured, np.abs(done.predicted - done.values), 0).mean(axis=0)
    top = peak / ERROR_SHARE or 1.0
    row = [
        panels.panel(done.values, config, None, bad),
        panels.panel(done.values, config, done.removed, bad),
        panels.panel(done.pasted, config, ~done.where, bad),
        panels.panel(np.where(done.removed, done.predicted, done.values), config, None, bad),
        panels.error_panel(error, top, ~done.where, bad),
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
    note = f"{Path(entry['source']).name}: {compared(entry)}"
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
