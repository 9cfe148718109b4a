"""Features of every patch of an image of any size, as a grid over it, and the picture of such a grid.

D features a patch; a block is a window of the lattice (`lattice.Lattice`), [h, w] patches.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from maectl.adapter import Pixels, Window
from maectl.dataset import Batch, normalise
from maectl.errors import RunError
from maectl.lattice import Lattice
from maectl.mae import MaskedAutoencoder
from maectl.panels import INVALID
from maectl.stats import Normalizer
from maectl.windows import shares

__all__ = ["QuickLook", "block_features"]

BATCH = 64  # tiles at once
LEAST_VALID = 0.5  # of a patch's pixels, for it to have features
SHOWN = 2048  # px along the longer side of a quick look, at most
SMALL = 512  # px that it is enlarged to about
Floats = npt.NDArray[np.float32]
Constants = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@torch.inference_mode()
def block_features(
    read: Callable[[Window], Pixels],
    lattice: Lattice,
    block: Window,
    model: MaskedAutoencoder,
    normalizer: Normalizer,
    constants: Constants,
    device: torch.device,
) -> Floats:
    """float32 [D, h, w]: the encoder's patch tokens, nothing removed; NaN for patches of which less than half is valid.

    What reaches beyond the image is not.

    A patch lies in several tiles, each of which sees it in other surroundings: its features are their mean, weighted
    so that they pass from one tile to the next without a step. Raises Unreadable.
    """
    part = lattice.part(block)
    plan = part.plan
    seen = part.seen(read, constants[0])
    valid = np.ones(plan.size, np.bool_) if seen.valid is None else seen.valid
    known = valid.reshape(plan.cells[0], plan.patch[0], plan.cells[1], plan.patch[1]).mean(axis=(1, 3)) >= LEAST_VALID
    inner = part.inner
    width = int(model.cls_token.shape[-1])
    canvas = np.zeros((width, *plan.cells), np.float32)
    if known[inner].any():
        blend = [shares(g, [start - first for start in starts])
                 for g, starts, first in zip(plan.grid, plan.starts, plan.origin, strict=False)]  # fmt: skip
        for first in range(0, len(plan.tiles), BATCH):
            some = plan.tiles[first : first + BATCH]
            corners = [
                tuple(starts[which] - o for starts, which, o in zip(plan.starts, tile, plan.origin, strict=False))
                for tile in some
            ]
            tokens = _tokens(seen, plan.patch, plan.grid, corners, model, normalizer, constants, device)
            for tile, corner, each in zip(some, corners, tokens, strict=True):
                at = tuple(slice(start, start + g) for start, g in zip(corner, plan.grid, strict=True))
                weight = np.multiply.outer(blend[0][tile[0]], blend[1][tile[1]]).astype(np.float32)
                canvas[(slice(None), *at)] += each * weight
    canvas[:, ~known] = np.nan
    return canvas[(slice(None), *inner)]


def _tokens(
    seen: Pixels, patch: tuple[int, ...], grid: tuple[int, ...], corners: list[tuple[int, ...]],
    model: MaskedAutoencoder, normalizer: Normalizer, constants: Constants, device: torch.device,
) -> Floats:  # fmt: skip
    """[T, D, *grid] of the tiles that begin at some patches."""
    windows = [tuple(slice(start * p, (start + g) * p) for start, g, p in zip(corner, grid, patch, strict=True))
               for corner in corners]  # fmt: skip
    images = np.stack([seen.values[(slice(None), *window)] for window in windows])
    valid = None if seen.valid is None else torch.from_numpy(np.stack([seen.valid[window] for window in windows]))
    mean, std = (torch.from_numpy(side).float()[None] for side in constants)
    batch = Batch(torch.from_numpy(images), valid, torch.empty(0), mean, std, np.empty(0, np.int64))
    tokens = model.encode(*normalise(batch, normalizer, device))[:, 1:]
    found: Floats = tokens.transpose(1, 2).unflatten(-1, grid).float().cpu().numpy()  # type: ignore[no-untyped-call]
    return found


class QuickLook:
    """Three numbers a patch as red, green and blue: every n-th patch of a large map."""

    def __init__(self, cells: tuple[int, ...]) -> None:
        self.every = -(-max(cells) // SHOWN)
        self.values = np.full((3, *(-(-side // self.every) for side in cells)), np.nan, np.float32)

    def add(self, block: Window, values: Floats) -> None:
        """[3 or fewer, h, w] of a block."""
        taken: Any = tuple(slice(-side.start % self.every, None, self.every) for side in block)
        at: Any = tuple(slice(-(-side.start // self.every), -(-side.stop // self.every)) for side in block)
        for channel in range(3):  # a map of one or two channels is grey or lacks blue
            self.values[channel][at] = values[min(channel, len(values) - 1)][taken]

    def save(self, path: Path, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> None:
        """Write a PNG: ``low`` [3] is dark, ``high`` bright, grey is where there is nothing. Raises RunError."""
        spread = np.where(high > low, high - low, 1)[:, None, None]
        shown = np.rint(255 * np.clip(np.nan_to_num((self.values - low[:, None, None]) / spread), 0, 1))
        pixels = np.moveaxis(shown.astype(np.uint8), 0, -1)
        pixels[np.isnan(self.values[0])] = INVALID
        times = max(1, SMALL // max(pixels.shape[:2]))
        try:
            Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)).save(path, "PNG")
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from None
