"""Reconstructions: of what one is made, and of an image of any size a part at a time.

C channels, S the image's spatial shape, [H, W] of a part.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maectl.adapter import Pixels, Window
from maectl.fidelity import fidelity, nearest_visible, patch_means
from maectl.lattice import Lattice, Part, affordable
from maectl.mae import MaskedAutoencoder
from maectl.resize import resample
from maectl.stats import Normalizer
from maectl.tiling import Mask, inpaint

__all__ = ["Done", "Overview", "parts"]

SIDE = 1024  # pixels along each axis of a part of an image, at most
SHOWN = 1024  # pixels along the longer axis of an overview, at most twice that
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Done:
    """An image or a part of one, reconstructed.

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


def parts(
    read: Callable[[Window], Pixels], lattice: Lattice, model: MaskedAutoencoder, chosen: Sequence[Mask],
    mask_ratio: float, normalizer: Normalizer, constants: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    peak: float, device: torch.device,
) -> Iterator[tuple[Window, Done, dict[str, Any]]]:  # fmt: skip
    """Parts of an image that cover it: where they lie, what they became, and how well (nothing where no valid pixel is
    predicted).

    ``chosen`` are masks of one tile, which repeat over the whole lattice. Predictions of patches without a valid pixel,
    beyond the rim or in nodata, are not used. Raises Unreadable.
    """
    tensors = (torch.from_numpy(constants[0]).float()[None], torch.from_numpy(constants[1]).float()[None])
    side = affordable(SIDE, [max(1.0, scale) for scale in lattice.scale], len(constants[0]))
    for window in lattice.windows(side):
        part = lattice.part(lattice.holding(window))
        seen = part.seen(read, constants[0])
        canvas = inpaint(model, seen, part.plan, chosen, mask_ratio, normalizer, tensors, device)
        own = read(window)
        used = part.plan.spread(np.any([mask.used for mask in chosen], axis=0)) & part.plan.known(seen.valid)
        predicted = back(canvas, used, part, window)
        at = np.ix_(*part.places(window))
        done = Done(own.values, own.valid, predicted, used[at], part.plan.spread(chosen[0].removed)[at])
        if not done.measured.any():
            yield window, done, {}
            continue
        nearest = back(nearest_visible(seen, part.plan, chosen), used, part, window)
        rivals = {
            "patch_mean": _means(read, part, window, done, constants if model.norm_pix_loss else None),
            "nearest_visible": nearest[:, done.measured],
        }
        yield window, done, fidelity(done.values, done.predicted, done.measured, peak, rivals)


def back(values: Floats, used: Bools, part: Part, window: Window) -> Floats:
    """Values [C, *plan.size] of the used patches at the image's own scale, in a window of it; elsewhere 0.

    Interpolation is linear and among used patches alone, as in `tiling.back`.
    """
    inside = used.repeat(part.plan.patch[0], 0).repeat(part.plan.patch[1], 1)[None].astype(np.float32)
    scales = tuple(1 / scale for scale in part.lattice.scale)
    starts = tuple((side.start - first) / s for side, first, s in zip(window, part.corner, scales, strict=True))
    size = tuple(side.stop - side.start for side in window)

    def resized(each: Floats) -> Floats:
        found: Floats = resample(Pixels(each), starts, scales, size, np.zeros(len(each)), smooth=False).values
        return found

    where = used[np.ix_(*part.places(window))]
    return np.where(where, resized(values * inside) / np.where(where, resized(inside), 1), np.float32(0))


def _means(read: Callable[[Window], Pixels], part: Part, window: Window, done: Done, constants: Any) -> Floats:
    """[C, M] the mean of its whole patch for each pixel measured, of patches that reach out of the window too."""
    around = tuple(
        slice(max(0, int(side.start - step)), min(extent, int(np.ceil(side.stop + step))))
        for side, step, extent in zip(window, part.lattice.step, part.lattice.extent, strict=True)
    )
    whole = read(around)
    inner = tuple(
        slice(side.start - outer.start, side.stop - outer.start) for side, outer in zip(window, around, strict=True)
    )
    valid = np.ones(whole.values.shape[1:], np.bool_) if whole.valid is None else whole.valid
    means = np.zeros(whole.values.shape, np.float32)
    means[:, valid] = patch_means(whole.values, valid, part.places(around), part.plan.cells, constants)
    return means[(slice(None), *inner)][:, done.measured]


class Overview:
    """An image in little, put together from its parts: every n-th pixel of it."""

    def __init__(self, extent: tuple[int, ...]) -> None:
        self.every = max(1, max(extent) // SHOWN)
        self.size = tuple(-(-side // self.every) for side in extent)
        self._done: Done | None = None

    def add(self, window: Window, done: Done) -> None:
        """One more part."""
        if self._done is None:
            shape = (len(done.values), *self.size)
            self._done = Done(
                np.zeros(shape, done.values.dtype), np.ones(self.size, np.bool_), np.zeros(shape, np.float32),
                np.zeros(self.size, np.bool_), np.zeros(self.size, np.bool_),
            )  # fmt: skip
        taken = tuple(slice(-side.start % self.every, None, self.every) for side in window)
        at = tuple(slice(-(-side.start // self.every), -(-side.stop // self.every)) for side in window)
        for name in ("values", "predicted"):
            getattr(self._done, name)[(slice(None), *at)] = getattr(done, name)[(slice(None), *taken)]
        for name in ("where", "removed"):
            getattr(self._done, name)[at] = getattr(done, name)[taken]
        if done.valid is not None and self._done.valid is not None:
            self._done.valid[at] = done.valid[taken]

    @property
    def done(self) -> Done:
        """The whole."""
        assert self._done is not None
        return self._done
