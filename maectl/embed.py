"""Frozen features out: a map over each image that is a place on the ground, else a table of one row an image."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

from maectl import checkpoint, console, device
from maectl.adapter import Adapter, Source, Values, Window
from maectl.checkpoint import Config
from maectl.errors import DataError, MaectlError, RunError, Unreadable, UsageError
from maectl.huge import is_huge, sample
from maectl.lattice import Lattice, affordable
from maectl.mae import MaskedAutoencoder
from maectl.maps import QuickLook, block_features
from maectl.outputs import make, mapped, named, none_left, scanned
from maectl.projection import Projection, byte_scales, quantised
from maectl.restoration import check
from maectl.stream import SAMPLE, generator
from maectl.table import Table, write_table
from maectl.team import Team

__all__ = ["embed"]

BLOCK = 64  # patches along each axis of what is written at once
FITTED = 64  # blocks that axes and ranges are taken from, fewer where these hold 64 million numbers
NUMBERS = 1 << 26
DTYPES = ("float32", "float16", "int8")
Floats = npt.NDArray[np.float32]
Ends = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def embed(
    run: Path,
    paths: Sequence[str],
    out: Path,
    *,
    dtype: str | None,
    pca: int | None,
    pool: str,
    labels: Path | None,
    seed: int,
    workers: int,
    team: Team | None = None,
) -> dict[str, Any]:
    """Features of every image in ``paths`` into ``out``; what ``--json`` prints.

    Where the adapter has maps: a map each, one pixel a patch (``dtype`` float16 unless given, float32 or int8), and a
    picture of its first three principal axes, which are those of all images of the call. Else embeddings.parquet
    (float32, or float16). ``pca`` keeps so many principal axes. The processes of a ``team`` share the images, and its
    leader alone gets a result. Raises RunError, UsageError, DataError.
    """
    team = team or Team()
    found = checkpoint.load(run)
    where = device.pick()
    model = found.model().to(where).eval()
    width = int(model.cls_token.shape[-1])
    if pca is not None and not 1 <= pca <= width:
        raise UsageError(f"--pca {pca}: the encoder gives {width} features, keep 1 to {width} of them")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a folder")
    with tempfile.TemporaryDirectory(prefix="maectl-") as work:
        adapter, index, rows, rejects = scanned(found.config, paths, out, Path(work), mixed=False)
        for each in rejects[:5]:
            console.warn(f"{each['source']}: {each['reason']}")
        about = {"checkpoint": found.path.name, "images": 0, "width": pca or width}
        if type(adapter).write_map is Adapter.write_map:
            make(out)
            fresh = team.lead(lambda: adapter.private and mapped(out, [index[row] for row, _ in rows]))
            asked = Table(found.config, adapter, index, rows, paths, labels, pool, pca, dtype or "float32", seed)
            try:
                about |= write_table(asked, model, out, rejects, workers, team)
            except MaectlError:
                if fresh and team.leads:  # its numbers stand for nothing
                    (out / "index.csv").unlink()
                raise
        else:
            if labels is not None:
                raise UsageError("--labels is for tables; a map has features of every patch")
            job = _Job(model, found.config, adapter, out, dtype or "float16", pca, seed, where, team)
            about |= _mapped(job, [(name, index[row]) for row, name in rows], rejects)
    team.dismissed()
    _written(out / "embedding.json", json.dumps(about, indent=1).encode())
    return about | {"rejected": rejects}


@dataclass(frozen=True)
class _Job:
    """What all maps share."""

    model: MaskedAutoencoder
    config: Config
    adapter: Adapter
    out: Path
    dtype: str
    pca: int | None
    seed: int
    device: torch.device
    team: Team


class _Image:
    """One image to be mapped. Raises Unreadable where the model cannot see it."""

    def __init__(self, job: _Job, name: str, source: Source) -> None:
        self.job, self.name, self.source = job, name, source
        check(source, job.config)
        if job.config.crop == "image" and is_huge(source.shape, source.dtype):
            raise Unreadable("too large for a model trained on whole images: train on windows (data.crop=224px, say)")
        try:
            self.lattice = Lattice.of(source, job.config)
        except UsageError as error:
            raise Unreadable(str(error)) from None
        self.read = partial(job.adapter.read, source)
        self.constants = job.config.normalizer.constants(lambda: sample(self.read, source.shape, source.dtype))
        self.kept: dict[tuple[int, ...], Floats] = {}

    def features(self, block: Window) -> Floats:
        """float32 [D, h, w] of a block, NaN where there is nothing."""
        corner = tuple(side.start for side in block)
        if corner in self.kept:
            return self.kept.pop(corner)
        job, lattice = self.job, self.lattice
        pixels = [max(sides) for sides in zip(lattice.step, lattice.patch, strict=True)]
        rows: dict[int, list[Floats]] = {}
        for part in lattice.blocks(affordable(BLOCK, pixels, self.source.shape[0]), block):
            rows.setdefault(part[0].start, []).append(
                block_features(self.read, lattice, part, job.model, job.config.normalizer, self.constants, job.device)
            )
        return np.concatenate([np.concatenate(row, axis=2) for row in rows.values()], axis=1)


def _mapped(job: _Job, sources: list[tuple[str, Source]], rejects: list[dict[str, str]]) -> dict[str, Any]:
    """Every map and its quick look; what is told of them. Each image is one process's work."""
    images = []
    for name, source in sources:
        try:
            images.append(_Image(job, name, source))
        except Unreadable as error:
            _lost(rejects, name, error)
    look, kept, (dark, bright), scales = job.team.lead(lambda: _axes(job, images, rejects))
    make(job.out)
    stems = named(job.adapter, [each.source for each in images])
    share = job.team.share(len(images))
    maps: list[dict[str, Any]] = []
    lost: list[dict[str, str]] = []
    with console.task("embedding") as advance:
        for number, (image, stem) in enumerate(zip(images[share], stems[share], strict=True), 1):
            try:
                maps.append(_one(image, stem, look, kept, scales, (dark, bright)))
            except Unreadable as error:
                _lost(lost, image.name, error)
            advance(number, len(images[share]))
    about: dict[str, Any] = {"kind": "maps", "outputs": [], "dtype": job.dtype, "pool": "patch", "maps": []}
    for made, unread in job.team.gathered((maps, lost)):
        about["maps"] += made
        rejects += unread
    about["outputs"] = [path for each in about["maps"] for path in each["outputs"]]
    about["images"] = len(about["maps"])
    if not about["images"]:
        raise none_left(rejects, "embedded")
    about["scales"] = scales
    about["pca"] = None if kept is None else {"axes": len(kept.axes), "variance": [float(each) for each in kept.shares]}
    if kept is not None and job.team.leads:
        _written(job.out / "pca.safetensors", save({"mean": kept.mean, "axes": kept.axes}))
    return about


def _axes(
    job: _Job, images: list[_Image], rejects: list[dict[str, str]]
) -> tuple[Projection, Projection | None, Ends, tuple[tuple[float, float], ...] | None]:
    """Principal axes to show and to keep, the darkest and brightest of the shown, and what bytes stand for."""
    seen = _fitted(job, images, rejects)
    look = Projection.fit(seen, max(3, job.pca or 0))
    kept = None if job.pca is None else Projection(look.mean, look.axes[: job.pca], look.shares[: job.pca])
    dark, bright = (np.resize(side, 3) for side in np.percentile(look.of(seen.T)[:3], (2, 98), axis=1))
    scales = byte_scales(seen if kept is None else kept.of(seen.T).T) if job.dtype == "int8" else None
    return look, kept, (dark, bright), scales


def _fitted(job: _Job, images: list[_Image], rejects: list[dict[str, str]]) -> Floats:
    """[N, D] features of a sample of blocks of all images, or of all where they are few. Raises DataError."""
    every = [(image, block) for image in images for block in image.lattice.blocks(BLOCK)]
    parts: list[Floats] = []
    with console.task("looking at a sample") as advance:
        for place in generator(job.seed, 0, SAMPLE).permutation(len(every)):
            image, block = every[place]
            try:
                found = image.features(block)
            except Unreadable:  # told when its map is made
                continue
            known = found[:, ~np.isnan(found[0])].T
            if not len(known):
                continue
            image.kept[tuple(side.start for side in block)] = found
            parts.append(known)
            advance(len(parts), min(FITTED, len(every)))
            if len(parts) == FITTED or sum(part.size for part in parts) >= NUMBERS:
                break
    if not parts:
        told = "no patch has features: less than half of each is valid and inside its image"
        raise none_left(rejects, "embedded") if rejects else DataError(told)
    return np.concatenate(parts)


def _one(
    image: _Image,
    stem: str,
    look: Projection,
    kept: Projection | None,
    scales: tuple[tuple[float, float], ...] | None,
    ends: Ends,
) -> dict[str, Any]:
    """One map and its quick look written. Raises Unreadable."""
    job, lattice = image.job, image.lattice
    picture = QuickLook(lattice.cells)

    def tiles() -> Iterator[tuple[Window, Values]]:
        for block in lattice.blocks(BLOCK):
            features = image.features(block)
            picture.add(block, look.of(features)[:3])
            values = features if kept is None else kept.of(features)
            yield block, values if scales is None else quantised(values, scales)

    count = len(kept.axes) if kept is not None else int(job.model.cls_token.shape[-1])
    channels = tuple(f"{'principal axis' if kept is not None else 'feature'} {number + 1}" for number in range(count))
    written = job.adapter.write_map(
        image.source, tiles(), job.out / f"{stem}-embedding", step=lattice.step, channels=channels, dtype=job.dtype,
        scales=scales,
    )  # fmt: skip
    shown = job.out / f"{stem}-embedding.png"
    picture.save(shown, *ends)
    spacing = image.source.spacing
    metres = None if spacing is None else [step * side for step, side in zip(lattice.step, spacing, strict=True)]
    return {
        "source": image.name,
        "outputs": [str(written), str(shown)],
        "size": list(lattice.cells),
        "step": list(lattice.step),
        "patch": metres,
    }


def _lost(rejects: list[dict[str, str]], name: str, error: Unreadable) -> None:
    rejects.append({"source": name, "reason": str(error)})
    console.warn(f"{name}: {error}")


def _written(path: Path, content: bytes) -> None:
    """What the numbers mean, beside them."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None
