"""Features of patches: what the encoder's patch tokens are, and what patches hold without any model.

N patches, V windows, C channels, P values a patch and channel, D a token's width.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from maectl import console, device
from maectl.checkpoint import Config
from maectl.covering import Look, View, together, views
from maectl.dataset import normalise
from maectl.errors import DataError, Unreadable
from maectl.features import Features, Whole
from maectl.mae import MaskedAutoencoder
from maectl.store import Reader, in_order
from maectl.team import Team

__all__ = ["features"]

BATCH = 32  # windows encoded at once
RAW = 1024  # values of a patch that the baseline "pixels" gets at most
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Models = Mapping[str, MaskedAutoencoder]


def features(
    reader: Reader,
    config: Config,
    models: Models,
    chosen: Sequence[Look],
    windows: Ints,
    places: Ints,
    workers: int,
    team: Team,
) -> Features:
    """Features of N patches, by window ascending, and of baselines; a patch's hash is that of its whole window.

    The images are shared by the processes of the ``team``, whose leader alone gets them all.
    """
    where = device.pick()
    for model in models.values():
        model.to(where).eval()
    values: dict[str, Floats] = {}
    hashes = np.empty(len(windows), "S8")

    def read(job: list[int]) -> list[tuple[int, View]] | str:
        try:
            return list(zip(job, views(reader, config, [chosen[number] for number in job]), strict=True))
        except Unreadable as error:
            return f"{reader.index[chosen[job[0]].row].paths[0]} could be read, and now cannot be: {error}"

    waiting: list[tuple[int, View]] = []
    jobs = together(chosen, np.unique(windows), config)
    jobs = jobs[team.share(len(jobs))]
    with console.task("features of the patches") as advance:
        for done, found in enumerate(in_order(read, jobs, device.loader_threads(workers)), 1):
            if isinstance(found, str):
                raise DataError(found)
            waiting += found
            while len(waiting) >= BATCH or (waiting and done == len(jobs)):
                batch, waiting = waiting[:BATCH], waiting[BATCH:]
                _encoded(batch, config, models, where, windows, places, values, hashes)
            advance(done, len(jobs))
    own = None
    if not team.leads:
        rows = np.flatnonzero(np.isin(windows, [number for job in jobs for number in job]))
        own = rows, {name: each[rows] for name, each in values.items()}, hashes[rows]
    for at, others, theirs in filter(None, team.collected(own)):
        for name, each in others.items():
            values.setdefault(name, np.empty((len(windows), each.shape[1]), np.float32))[at] = each
        hashes[at] = theirs
    pools = {"image_stats": "stats", "pixels": "pixels"}
    found_ = {name: {pools.get(name, "patch"): each} for name, each in values.items()}
    return Features(np.arange(len(windows)), found_, hashes, [])


def _encoded(
    batch: Sequence[tuple[int, View]],
    config: Config,
    models: Models,
    where: torch.device,
    windows: Ints,
    places: Ints,
    values: dict[str, Floats],
    hashes: npt.NDArray[np.bytes_],
) -> None:
    """Put the features of some windows' patches into place."""
    numbers = [number for number, _ in batch]
    first, last = (np.searchsorted(windows, numbers, side) for side in ("left", "right"))
    items = [np.arange(*ends) for ends in zip(first, last, strict=True)]
    owners = np.repeat(np.arange(len(batch)), last - first)
    at = np.concatenate(items)
    whole = _stacked([view for _, view in batch])
    some = (torch.from_numpy(owners), torch.from_numpy(places[at]))
    made = _raw(next(iter(models.values())), config, whole, some)
    with torch.inference_mode():
        images, valid = normalise(whole.batch(), config.normalizer, where)
        for name, model in models.items():
            tokens = model.encode(images, valid)[:, 1:]
            made[name] = tokens[some[0].to(where), some[1].to(where)].cpu().numpy()
    for name, each in made.items():
        values.setdefault(name, np.empty((len(windows), each.shape[1]), np.float32))[at] = each
    for own, image in zip(items, whole.images, strict=True):
        hashes[own] = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()


def _stacked(views: Sequence[View]) -> Whole:
    valid = None
    if any(view.pixels.valid is not None for view in views):
        everywhere = np.ones(views[0].pixels.values.shape[1:], np.bool_)
        valid = np.stack([everywhere if view.pixels.valid is None else view.pixels.valid for view in views])
    mean, std = (np.array([getattr(view, name) for view in views], np.float32) for name in ("mean", "std"))
    return Whole(np.stack([view.pixels.values for view in views]), valid, mean, std)


def _raw(
    model: MaskedAutoencoder, config: Config, whole: Whole, some: tuple[Tensor, Tensor]
) -> dict[str, npt.NDArray[Any]]:
    """What patches hold without any model: ``image_stats`` [n, 4C] and ``pixels`` [n, at most 1,024 or C]."""
    images = torch.from_numpy(whole.images).float()
    channels = images.shape[1]
    patch = model.patchify(images)[some].reshape(-1, prod(model.patch_size), channels)  # [n, p, C]
    known = torch.ones(patch.shape[:2], dtype=torch.bool)
    if whole.valid is not None:
        known = model.patchify(torch.from_numpy(whole.valid)[:, None])[some]
    known = known[..., None]
    number = known.sum(dim=1).clamp(min=1)
    mean = torch.where(known, patch, 0.0).sum(dim=1) / number
    deviation = (torch.where(known, patch - mean[:, None], 0.0).square().sum(dim=1) / number).sqrt()
    low, high = (torch.where(known, patch, end).aminmax(dim=1) for end in (torch.inf, -torch.inf))
    stats = torch.cat([mean, deviation, low.min, high.max], dim=1)
    fill = torch.tensor(config.normalizer.mean, dtype=torch.float32)
    cells = torch.where(known, patch, fill).transpose(1, 2).reshape(len(patch), channels, *model.patch_size)
    sides = _shrunk(model.patch_size, channels)
    pool: Callable[[Tensor, list[int]], Tensor] = getattr(functional, f"adaptive_avg_pool{len(sides)}d")
    return {"image_stats": stats.numpy(), "pixels": pool(cells, sides).flatten(1).numpy()}


def _shrunk(sides: tuple[int, ...], channels: int) -> list[int]:
    """A patch's sides, halved until its values are 1,024 at most."""
    found = list(sides)
    while prod(found) * channels > RAW and max(found) > 1:
        found = [max(1, side // 2) for side in found]
    return found
