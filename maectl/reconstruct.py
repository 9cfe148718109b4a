"""What did a model learn to fill in? Images with patches removed and predicted, out in the format they came in.

`tiling` says how an image of any size meets the model and what ``cover`` does. Here predictions go back to the
image's own grid: at removed patches stand predictions, elsewhere the image's own pixels, untouched. Errors are
measured there, in the image's unit, over the valid pixels of the patches predicted, before rounding or clipping.

With ``norm_pix_loss`` the model predicts patches up to their mean and deviation, which are taken from the original:
the picture's title, its metadata and the result say so.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, PngImagePlugin

from maectl import checkpoint, console, device, panels
from maectl.adapter import Adapter, Pixels, Source
from maectl.checkpoint import Config
from maectl.errors import DataError, RunError, Unreadable, UsageError
from maectl.fidelity import compared, fidelity, mean, nearest_visible, patch_means
from maectl.index import Rejects, scan
from maectl.tiling import Layout, Mask, back, inpaint, layout, masks, spread
from maectl.mae import MaskedAutoencoder, kept
from maectl.recipe import DataRecipe
from maectl.registry import load as load_adapter
from maectl.resize import resize
from maectl.stats import moments
from maectl.stream import generator
from maectl.windows import crop_pixels

__all__ = ["reconstruct"]

RECONSTRUCT = 8  # what a generator is for, beside those of `stream`
LINES = 20  # images told of one by one
ROWS = 1024  # rows of pixels handed to an adapter at once
ERROR_SHARE = 4  # the error map ends at the peak divided by this: one scale for all images of a run
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Job:
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
    def pasted(self) -> npt.NDArray[Any]:
        """The image's own pixels with the predictions in place of what was removed."""
        return np.where(self.where, self.predicted, self.values)


def reconstruct(
    run: Path,
    paths: Sequence[str],
    out: Path,
    *,
    mask_ratio: float | None,
    seed: int,
    cover: bool,
    format: str,
) -> dict[str, Any]:
    """Reconstruct every image in ``paths`` into ``out``; what ``--json`` prints.

    ``mask_ratio`` None is the run's own. ``format`` is ``native`` (the image alone, as its source), ``png``
    (panels) or ``both``. Masks follow from ``seed`` and an image's place among all. What cannot be read is told
    and listed under ``rejected``. Raises RunError for a checkpoint without decoder, DataError where no image is
    left, UsageError for a ratio that keeps no patch or removes none.
    """
    found = checkpoint.load(run)
    if not found.has_decoder:
        raise RunError(
            f"{found.path} holds an encoder without its decoder, which cannot reconstruct: "
            "give the run folder, or a checkpoint folder in RUN/checkpoints"
        )
    config, model = found.config, found.model()
    ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    kept(int(np.prod(model.grid)), ratio)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a folder")
    where = device.pick()
    with tempfile.TemporaryDirectory(prefix="maectl-") as work:
        adapter, sources, rejects = _scanned(config, paths, out, Path(work))
    _make(out)
    job = _Job(model.to(where).eval(), config, adapter, out, ratio, seed, cover, format, where)
    entries = _every(job, sources, rejects)
    if not entries:
        source, reason = rejects[0]["source"], rejects[0]["reason"]
        raise DataError(f"none of {len(rejects)} images can be reconstructed, e.g. {source}: {reason}")
    result = {"images": entries, "mean": mean(entries), "rejected": rejects}
    _tell(result["mean"], len(entries), rejects, out)
    return result


def _scanned(
    config: Config, paths: Sequence[str], out: Path, work: Path
) -> tuple[Adapter, list[tuple[str, Source]], list[dict[str, str]]]:
    """The adapter, the sources under the names the user gave them, and what a scan rejects."""
    options = {name: value for name, value in config.options.items() if name != "channels"}
    recipe = DataRecipe(channels=config.options["channels"], options=options)
    with console.task("scanning") as advance:
        found = scan(
            paths,
            load_adapter(config.adapter),
            recipe,
            work / "index.arrow",
            progress=lambda n: advance(n, None),
        )
    given = {
        str(path.absolute()): path
        for path in (Path(each) if Path(each).is_dir() else Path(each).parent for each in paths)
    }
    sources = [found.index[row] for row in range(len(found.index))]
    named = [(str(given[source.folder] / source.paths[0]), source) for source in sources]
    earlier = out.absolute()  # pictures of an earlier call, where they lie among the images
    named = [
        (name, source) for name, source in named
        if earlier not in Path(name).absolute().parents or earlier not in _below(Path(source.folder), earlier)
    ]  # fmt: skip
    return found.adapter, named, _listed(found.rejects, given)


def _listed(rejects: Rejects, given: dict[str, Path]) -> list[dict[str, str]]:
    return [
        {"source": str(given.get(str(Path(folder).absolute()), Path(folder)) / paths), "reason": reason}
        for folder, paths, _, reason in rejects.rows
    ]


def _below(folder: Path, out: Path) -> list[Path]:
    """``out`` where it lies below a folder."""
    return [out] if folder in out.parents else []


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {out} cannot be made: {error.strerror}") from None


def _every(
    job: _Job, sources: list[tuple[str, Source]], rejects: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """An entry an image; those that cannot be read are added to ``rejects``."""
    for each in rejects[:LINES]:
        console.warn(f"{each['source']}: {each['reason']}")
    entries: list[dict[str, Any]] = []
    names = _names([source for _, source in sources])
    with console.task("reconstructing") as advance:
        for place, ((name, source), stem) in enumerate(zip(sources, names, strict=True)):
            try:
                entry = _one(job, name, source, place, job.out / stem)
            except Unreadable as error:
                rejects.append({"source": name, "reason": str(error)})
                console.warn(f"{name}: {error}")
                continue
            entries.append(entry)
            if len(entries) <= LINES:
                console.say(f"{name}: {compared(entry)}")
            advance(place + 1, len(sources))
    return entries


def _one(job: _Job, name: str, source: Source, place: int, path: Path) -> dict[str, Any]:
    """Reconstruct, write and measure one image. Raises Unreadable."""
    _check(source, job.config)
    pixels = job.adapter.read(source)
    plan = _plan(source, job.config)
    chosen = masks(plan.grid, job.mask_ratio, job.cover, generator(job.seed, place, RECONSTRUCT))
    constants = _constants(pixels, job.config)
    seen = resize(pixels, plan.size, constants[0])
    done = _reconstructed(job, pixels, seen, plan, chosen, constants)
    measured = _measured(done, source, seen, plan, chosen, job.config)
    entry = {
        "source": name,
        "outputs": [],
        **measured,
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
        raise Unreadable(f"its values are in {source.unit}, the model was trained on {config.unit}")
    if source.channels != config.channels:
        raise Unreadable(
            f"its channels are {'/'.join(source.channels)}, the model's {'/'.join(config.channels)}"
        )
    if len(source.shape) - 1 != len(config.model["image_size"]):
        raise Unreadable(
            f"it has {len(source.shape) - 1} dimensions, the model {len(config.model['image_size'])}"
        )


def _plan(source: Source, config: Config) -> Layout:
    size, patch = (tuple(config.model[key]) for key in ("image_size", "patch_size"))
    crop = getattr(config, "crop", "image")
    return layout(source.shape[1:], size, patch, crop_pixels(crop, size, source.spacing))


def _constants(pixels: Pixels, config: Config) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and deviation [C] that normalise an image."""
    normalizer = config.normalizer
    if not normalizer.image:
        return np.array(normalizer.mean), np.array(normalizer.std)
    return moments(
        pixels, None if normalizer.clip is None else (normalizer.clip[0][0], normalizer.clip[1][0])
    )


def _reconstructed(
    job: _Job, pixels: Pixels, seen: Pixels, plan: Layout, chosen: Sequence[Mask],
    constants: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
) -> _Done:  # fmt: skip
    tensors = torch.from_numpy(constants[0]).float()[None], torch.from_numpy(constants[1]).float()[None]
    canvas = inpaint(
        job.model, seen, plan, chosen, job.mask_ratio, job.config.normalizer, tensors, job.device
    )
    used = spread(np.any([mask.used for mask in chosen], axis=0), plan.cells)
    extent = pixels.values.shape[1:]
    predicted, where = back(canvas, used, plan.patch, extent)
    removed = back(
        np.zeros((1, *plan.size), np.float32), spread(chosen[0].removed, plan.cells), plan.patch, extent
    )[1]
    return _Done(pixels.values, pixels.valid, predicted, where, removed)


def _measured(
    done: _Done, source: Source, seen: Pixels, plan: Layout, chosen: Sequence[Mask], config: Config
) -> dict[str, Any]:
    """Errors over the valid pixels predicted, beside what two trivial predictions make. Raises Unreadable."""
    at = done.where if done.valid is None else done.where & done.valid
    if not at.any():
        raise Unreadable("no valid pixel lies in the patches removed")
    rivals = {
        "patch_mean": patch_means(done.values, at, plan.cells),
        "nearest_visible": nearest_visible(seen, plan, chosen, at.shape)[:, at],
    }
    return fidelity(done.values, done.predicted, at, _peak(source, config), rivals)


def _peak(source: Source, config: Config) -> float:
    """255 for 8-bit images, else the range from the 0.1 to the 99.9 % percentile of the run's data set."""
    if source.dtype == "uint8":
        return 255.0
    return float(max(config.statistics["p99_9"]) - min(config.statistics["p0_1"]))


def _picture(job: _Job, done: _Done, entry: dict[str, Any], count: int, path: Path) -> None:
    """original | masked | reconstruction | visible patches pasted | error, as one PNG."""
    config, peak = job.config, entry["psnr_peak"]
    bad = None if done.valid is None else ~done.valid
    error = np.abs(done.predicted - done.values.astype(np.float32)).mean(axis=0)
    top = peak / ERROR_SHARE or 1.0
    row = [
        panels.panel(done.values, config, None, bad),
        panels.panel(done.values, config, done.removed, bad),
        panels.panel(done.predicted, config, ~done.where, bad),
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


def _tiles(values: npt.NDArray[Any]) -> Any:
    """Bands of whole rows (slices, in a volume), top to bottom."""
    rest = tuple(slice(0, side) for side in values.shape[2:])
    for first in range(0, values.shape[1], ROWS):
        band = slice(first, min(first + ROWS, values.shape[1]))
        yield (band, *rest), values[:, band]


def _names(sources: Sequence[Source]) -> list[str]:
    """A file name each, from the path without its suffix; none twice, whatever the file system makes of case."""
    taken: set[str] = set()
    names = []
    for source in sources:
        stem = str(Path(source.paths[0]).with_suffix("")).replace("/", "-").replace("\\", "-")
        name, again = stem, 2
        while name.casefold() in taken:
            name, again = f"{stem}-{again}", again + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def _tell(means: dict[str, Any], count: int, rejects: Sequence[dict[str, str]], out: Path) -> None:
    more = f" ({count - LINES:,} not listed)" if count > LINES else ""
    console.say(f"mean of {count:,} images{more}: {compared(means)}")
    if rejects:
        console.say(f"{len(rejects):,} images could not be used")
    console.say(f"pictures: {out}")
