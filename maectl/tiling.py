"""Images of any size through the masked autoencoder: overlapping tiles under one mask, blended without seams.

How an image meets the model. It is resized so that the largest window of the model's proportions is the
model's image size (`features.central` sees the same), which is the scale training crops of the whole image
have at ``crop_scale`` 1; where training drew windows of a fixed size (``data.crop: 224px``), so that such a
window is. The resized image is a whole number of patches along each axis and tiles lie on that lattice,
neighbours sharing half or more.

One mask for the whole lattice: the random mask of one tile, repeated with the tile's period. So a patch is
removed in every tile that holds it or in none, and every tile, wherever it lies, has exactly the run's
share removed, by a mask as random as in training (a cyclic shift of a random permutation is one).

With ``cover`` there are K = ceil(L / R) masks, L patches a tile and R of them removed: the random
permutation of the patches is a circle, mask k removes the R from place k·ceil(L / K) on, and of its
predictions only those before the next mask's place are used. So each mask removes the run's share, every
patch is predicted, and what is used of it comes from exactly one mask.

N tiles a batch, C channels, S the model's size, E the image's extent, G the lattice (patches along each
axis).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from maectl.adapter import Pixels
from maectl.dataset import Batch, normalise
from maectl.mae import MaskedAutoencoder, kept, scatter
from maectl.resize import resize
from maectl.stats import Normalizer
from maectl.vit import take
from maectl.windows import cover as covering
from maectl.windows import shares

__all__ = ["Layout", "Mask", "back", "inpaint", "layout", "masks", "places", "predict"]

BATCH = 32  # tiles at once
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """How an image is laid out for a model.

    size    pixels along each axis of the resized image, a multiple of the patch
    cells   patches along each axis (G)
    grid    patches along each axis of a tile
    patch   pixels along each axis of a patch
    starts  along each axis, the first patch of every tile
    origin  along each axis, the patch that ``size`` begins at, where it is a part of a larger lattice that ``starts``
            speaks of
    """

    size: tuple[int, ...]
    cells: tuple[int, ...]
    grid: tuple[int, ...]
    patch: tuple[int, ...]
    starts: tuple[list[int], ...]
    origin: tuple[int, ...] = (0, 0, 0)

    def spread(self, cells: Bools) -> Bools:
        """One tile's patches [*grid], repeated over the lattice, as they lie in this part of it, [*cells]."""
        places = zip(self.cells, self.origin, cells.shape, strict=False)
        return cells[np.ix_(*((np.arange(g) + first) % period for g, first, period in places))]

    def known(self, valid: Bools | None) -> Bools:
        """Which patches [*cells] have a valid pixel (bool [*size], None: all): predictions of the others are void."""
        if valid is None:
            return np.ones(self.cells, np.bool_)
        pairs = [side for pair in zip(self.cells, self.patch, strict=True) for side in pair]
        return np.asarray(valid.reshape(pairs).any(axis=tuple(range(1, 2 * len(self.cells), 2))))

    @property
    def tiles(self) -> list[tuple[int, ...]]:
        """Which tile along each axis, for every tile."""
        return list(product(*(range(len(starts)) for starts in self.starts)))


@dataclass(frozen=True)
class Mask:
    """A mask of one tile's patches; float32 and bool ``[*grid]``.

    noise    what makes the model remove these patches
    removed  removed, so predicted
    used     of those, the patches whose prediction is used
    """

    noise: Floats
    removed: Bools
    used: Bools


def layout(
    extent: tuple[int, ...],
    size: tuple[int, ...],
    patch: tuple[int, ...],
    window: tuple[float, ...] | None = None,
) -> Layout:
    """The layout of an image for a model of ``size``; ``window`` is what `windows.crop_pixels` gives.

    An image smaller than the window is padded to it first (`windows.room`). A volume without a window is one tile.
    """
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    if window is not None:
        scales = tuple(s / w for s, w in zip(size, window, strict=True))
    elif len(size) == 3:
        scales = tuple(s / e for s, e in zip(size, extent, strict=True))
    else:
        scales = (max(s / e for s, e in zip(size, extent, strict=True)),) * 2
    cells = tuple(max(g, round(e * s / p)) for g, e, s, p in zip(grid, extent, scales, patch, strict=True))
    starts = tuple(covering(c, g) for c, g in zip(cells, grid, strict=True))
    return Layout(tuple(c * p for c, p in zip(cells, patch, strict=True)), cells, grid, patch, starts)


def masks(grid: tuple[int, ...], mask_ratio: float, cover: bool, chance: np.random.Generator) -> list[Mask]:
    """One random mask of a tile, or with ``cover`` the complementary ones; raises UsageError."""
    patches = prod(grid)
    removed = patches - kept(patches, mask_ratio)
    place = chance.permutation(patches).reshape(grid)  # of each patch on the circle
    if not cover:
        return [Mask(_noise(place, 0), place < removed, place < removed)]
    share = -(-patches // -(-patches // removed))  # ceil(L / K), at most R
    return [
        Mask(
            _noise(place, first),
            (place - first) % patches < removed,
            (place >= first) & (place < first + share),
        )
        for first in range(0, patches, share)
    ]


def _noise(place: npt.NDArray[np.int64], first: int) -> Floats:
    """Falls along the circle from ``first`` on: the model keeps the patches of the least noise."""
    return (1 - ((place - first) % place.size + 1) / place.size).astype(np.float32)


def predict(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, mask_ratio: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images [N, C, *S], normalised, with removed patches predicted; and the mask [N, L], True = removed.

    With ``norm_pix_loss`` the prediction gets the mean and deviation of the patch it stands for. Invalid
    values of visible patches become 0.
    """
    output = model(images, noise, mask_ratio, valid)
    patches, patches_valid = model.patches(images, valid)
    removed_valid = None if patches_valid is None else take(patches_valid, output.removed)
    prediction = model.denormalise(output.prediction.float(), take(patches, output.removed), removed_valid)
    return model.unpatchify(scatter(prediction, output.removed, patches)), output.mask.bool()


@torch.inference_mode()
def inpaint(
    model: MaskedAutoencoder, seen: Pixels, plan: Layout, chosen: Sequence[Mask], mask_ratio: float,
    normalizer: Normalizer, constants: tuple[Tensor, Tensor], where: torch.device,
) -> Floats:  # fmt: skip
    """Predictions, float32 ``[C, *size]`` in the images' unit, of an image resized to ``plan.size``.

    Where no prediction is used they are 0. ``constants`` are mean and deviation [1, C] that normalise the
    image.
    """
    canvas = np.zeros(seen.values.shape, np.float32)
    blend = [
        shares(size * p, [(start - first) * p for start in starts])
        for size, p, starts, first in zip(plan.grid, plan.patch, plan.starts, plan.origin, strict=False)
    ]
    mean, std = (each.view(1, -1, *[1] * len(plan.size)).to(where) for each in constants)
    jobs = [(mask, tile) for mask in chosen for tile in plan.tiles]
    for first in range(0, len(jobs), BATCH):
        part = jobs[first : first + BATCH]
        batch, noise = _batch(seen, plan, part, constants)
        images, valid = normalise(batch, normalizer, where)
        predicted, _ = predict(model, images, noise.to(where), mask_ratio, valid)
        restored = (predicted * std + mean).cpu().numpy()
        for (mask, tile), values in zip(part, restored, strict=True):
            weight = _weight(plan, mask, tile, blend)
            canvas[(slice(None), *_window(plan, tile))] += values * weight
    return canvas


def _batch(
    seen: Pixels, plan: Layout, jobs: list[tuple[Mask, tuple[int, ...]]], constants: tuple[Tensor, Tensor]
) -> tuple[Batch, Tensor]:
    windows = [_window(plan, tile) for _, tile in jobs]
    images = np.stack([seen.values[(slice(None), *window)] for window in windows])
    valid = None if seen.valid is None else torch.from_numpy(np.stack([seen.valid[window] for window in windows]))
    noise = np.stack([_shifted(mask.noise, plan, tile).ravel() for mask, tile in jobs])
    batch = Batch(torch.from_numpy(images), valid, torch.from_numpy(noise), *constants, np.empty(0, np.int64))
    return batch, batch.noise


def _window(plan: Layout, tile: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice((starts[which] - first) * p, (starts[which] - first + g) * p)
        for starts, which, g, p, first in zip(plan.starts, tile, plan.grid, plan.patch, plan.origin, strict=False)
    )


def _shifted(cells: npt.NDArray[np.generic], plan: Layout, tile: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """The lattice's periodic pattern as one tile sees it."""
    shift = [-starts[which] for starts, which in zip(plan.starts, tile, strict=True)]
    return np.roll(cells, shift, axis=tuple(range(cells.ndim)))


def _weight(plan: Layout, mask: Mask, tile: tuple[int, ...], blend: list[npt.NDArray[np.float64]]) -> Floats:
    """[*S] how much of a tile's prediction a pixel takes: nothing where it is not used."""
    weight = _enlarged(_shifted(mask.used, plan, tile), plan.patch).astype(np.float64)
    for axis, which in enumerate(tile):
        weight *= blend[axis][which].reshape([-1 if axis == each else 1 for each in range(len(tile))])
    return weight.astype(np.float32)


def _enlarged(cells: npt.NDArray[np.generic], patch: tuple[int, ...]) -> npt.NDArray[np.generic]:
    for axis, length in enumerate(patch):
        cells = cells.repeat(length, axis)
    return cells


def places(extent: tuple[int, ...], cells: tuple[int, ...]) -> list[npt.NDArray[np.int64]]:
    """Along each axis, which patch of a lattice the centre of every pixel lies in."""
    return [((np.arange(e) + 0.5) * g / e).astype(np.int64) for e, g in zip(extent, cells, strict=True)]


def back(values: Floats, used: Bools, patch: tuple[int, ...], extent: tuple[int, ...]) -> tuple[Floats, Bools]:
    """Values [C, *size] of the used patches [*G] at the image's own size, and where that is, bool [*E].

    A pixel belongs to the patch that its centre lies in. Interpolation is linear and among used patches
    alone, so that nothing of the others gets into a reconstruction; elsewhere the values are 0.
    """
    inside = _enlarged(used, patch)[None].astype(np.float32)
    where: Bools = used[np.ix_(*places(extent, used.shape))]
    total = _linear(inside, extent)
    resized = _linear(values * inside, extent) / np.where(where, total, 1)
    return np.where(where, resized, np.float32(0)), where


def _linear(values: Floats, size: tuple[int, ...]) -> Floats:
    if values.shape[1:] == size:
        return values
    if len(size) == 3:
        resized: Floats = resize(Pixels(values), size, np.zeros(len(values))).values
        return resized
    image = torch.from_numpy(values)[None]
    return np.asarray(functional.interpolate(image, size=size, mode="bilinear", antialias=True)[0].numpy())
