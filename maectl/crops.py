"""Crops of bytes as they were cut, to be resized where the model is: copied on the CPU, resized on the device.

The filter is that of `resize` (bicubic with a = -0.5, widened by the scale when shrinking: Keys 1981; as Pillow and
torch antialias), as two products with matrices of weights, each image's own. Like torch's for bytes they round
between the axes; of 1,000 values one may be one level off, and hardly ever one two.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maectl.resize import REACH

__all__ = ["Crops", "Cut", "Piece", "packed"]

A = -0.5  # Keys' parameter: exact for second-order polynomials
WHOLE = 2.0**15  # a weight of 1


class Cut(NamedTuple):
    """One crop: ``pixels`` uint8 [C, h, w], whether its rows and columns are reversed, then turned by quarters."""

    pixels: npt.NDArray[np.generic]
    flips: tuple[bool, bool] = (False, False)
    turns: int = 0


class Piece(NamedTuple):
    """Some crops side by side, each at the upper left of a room that the largest fills."""

    pixels: Tensor  # uint8 [n, H, W, C]; of any value where a crop does not reach
    extents: Tensor  # int32 [n, 2]
    flips: Tensor  # bool [n, 2]
    turns: Tensor  # int64 [n]; on the CPU

    def some(self, part: slice) -> "Piece":
        """Those crops of it."""
        return Piece(*(each[part] for each in self))


class Crops:
    """The images of a batch, as pieces one after another; resized by `on`."""

    ndim = 4

    def __init__(self, pieces: Sequence[Piece], shape: tuple[int, ...]) -> None:
        """``shape`` [C, *S] is that of an image when it is resized."""
        self.pieces, self.shape = pieces, shape

    def __len__(self) -> int:
        return sum(len(piece.pixels) for piece in self.pieces)

    def __getitem__(self, part: slice) -> "Crops":
        start, stop, _ = part.indices(len(self))
        found, first = [], 0
        for piece in self.pieces:
            count = len(piece.pixels)
            own = slice(max(0, start - first), max(0, min(count, stop - first)))
            if own.start < own.stop:
                found.append(piece.some(own))
            first += count
        return Crops(found, self.shape)

    def on(self, device: torch.device) -> Tensor:
        """float32 [B, C, *S] on the device, whole numbers of 0 to 255."""
        images = torch.empty((len(self), *self.shape), device=device)
        first = 0
        for piece in self.pieces:
            images[first : first + len(piece.pixels)] = _resized(piece, self.shape[1:], device)
            first += len(piece.pixels)
        return images

    def numpy(self) -> npt.NDArray[np.uint8]:
        """uint8 [B, C, *S] resized on the CPU."""
        images: npt.NDArray[np.uint8] = self.on(torch.device("cpu")).to(torch.uint8).numpy()
        return images


def packed(cuts: Sequence[Cut], pin: bool) -> Piece:
    """Crops copied side by side, into page-locked memory where ``pin``."""
    sides = np.array([cut.pixels.shape[1:] for cut in cuts], np.int32)
    height, width = sides.max(axis=0).tolist()
    room = torch.empty((len(cuts), height, width, len(cuts[0].pixels)), dtype=torch.uint8, pin_memory=pin)
    inside = room.numpy()
    for own, cut in zip(inside, cuts, strict=True):
        own[: cut.pixels.shape[1], : cut.pixels.shape[2]] = cut.pixels.transpose(1, 2, 0)
    told = (torch.from_numpy(sides), torch.tensor([cut.flips for cut in cuts]))
    extents, flips = (each.pin_memory() for each in told) if pin else told
    return Piece(room, extents, flips, torch.tensor([cut.turns for cut in cuts]))


def _resized(piece: Piece, size: tuple[int, ...], device: torch.device) -> Tensor:
    pixels, extents, flips = (each.to(device, non_blocking=True) for each in piece[:3])
    values = pixels.permute(0, 3, 1, 2).float()
    n, channels, height, width = values.shape
    across = _weights(extents[:, 1], flips[:, 1], width, size[1])
    down = _weights(extents[:, 0], flips[:, 0], height, size[0])
    values = torch.bmm(values.reshape(n, channels * height, width), across.mT).round_().clamp_(0, 255)
    values = torch.matmul(down[:, None], values.view(n, channels, height, size[1])).round_().clamp_(0, 255)
    for quarters in range(1, 4):
        turned = torch.nonzero(piece.turns == quarters)[:, 0]
        if len(turned):
            turned = (turned.pin_memory() if device.type == "cuda" else turned).to(device, non_blocking=True)
            values[turned] = torch.rot90(values[turned], quarters, (-2, -1))
    return values


def _weights(extents: Tensor, flips: Tensor, room: int, out: int) -> Tensor:
    """[n, out, room] the share of each of an image's pixels in each of the result's; none beyond its extent."""
    scale = extents[:, None, None].float() / out
    wide = scale.clamp(min=1)
    places = torch.arange(out, device=extents.device)
    places = torch.where(flips[:, None], out - 1 - places, places)[..., None]
    centres = (places + 0.5) * scale
    at = torch.arange(room, device=extents.device)
    low = (centres - REACH * wide + 0.5).floor().clamp(min=0)  # as torch counts the pixels that the filter covers
    high = torch.minimum((centres + REACH * wide + 0.5).floor(), extents[:, None, None])
    x = ((at + 0.5 - centres) / wide).abs()
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * A - 4 * A
    weights = torch.where(x < 1, near, far) * ((at >= low) & (at < high) & (x < REACH))
    # whole multiples of 2^-15 that sum to 1: products with bytes are then exact, in whatever order they are added
    whole = (weights / weights.sum(dim=-1, keepdim=True) * WHOLE).round()
    largest = whole.argmax(dim=-1, keepdim=True)
    whole.scatter_add_(-1, largest, WHOLE - whole.sum(dim=-1, keepdim=True))
    return whole / WHOLE
