"""Where to look: seeded random crops, and grids that cover a whole image with overlap.

D spatial dimensions; a window is a start and a size along each, in pixels of the source's grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log, sqrt

import numpy as np
import numpy.typing as npt

from maectl.adapter import Window
from maectl.errors import UsageError

__all__ = [
    "MARGIN", "Crop", "Draws", "Span", "coarser", "cover", "crop_each", "crop_pixels", "divided", "draw", "least_sides",
    "place", "ramp", "room", "shares", "shrinkage",
]  # fmt: skip

TRIES = 10  # shapes tried until one fits the image, as torchvision's RandomResizedCrop
MARGIN = 1.5
"""Times the model's size that a crop keeps, at least, when it is decoded at a half, a quarter or an eighth.

Of drawn 6-megapixel JPEGs with a 1/f spectrum such crops differ, once resized, by 0.3 to 0.4 grey levels in the mean
(52 dB) from those decoded in full; at 1.0 it would be 0.4 to 0.6 (49 dB), at 2.0 0.25 to 0.3 (54 dB). A linear in
place of the bicubic filter makes as much of a difference.
"""
Floats = npt.NDArray[np.float64]
Span = tuple[int, ...]


@dataclass(frozen=True)
class Crop:
    """How training crops are drawn.

    size    the model's image size, D ints
    window  None: shares of the whole image; else the window's extent in pixels along each axis. It may be larger
            than the image: its scale stays, and what lies outside is no pixel
    scale   share of the image's (window's) area or volume, low and high
    ratio   width over height, low and high, relative to the model's own (2-D only)
    flips   axes that may be reversed, each with probability 1/2
    rotate  whether the crop (of a square model) may be turned by 0 to 3 quarters, each as likely
    shrink  whether shares of an image that may be decoded smaller (`shrinkage`) are widened to whole pixels of the
            smaller image, by less than 1 % of a side at a size of 224 px and up to 3.6 % at 32; the image's last
            pixels that make no whole one are left out
    """

    size: tuple[int, ...]
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flips: tuple[int, ...] = ()
    rotate: bool = False
    window: tuple[float, ...] | None = None
    shrink: bool = False


@dataclass(frozen=True)
class Draws:
    """The chance of a whole batch, uniform in [0, 1), drawn before any image is looked at.

    shapes  [B, TRIES, 2] area and aspect of the crops tried
    places  [B, D] where the crop lies
    flips   [B, D]
    depths  [B] which slice of a volume
    turns   [B] by how many quarters
    """

    shapes: Floats
    places: Floats
    flips: Floats
    depths: Floats
    turns: Floats


def draw(
    generator: np.random.Generator, batch: int, dimensions: int, *, slices: bool = False, rotate: bool = False
) -> Draws:
    """The draws of a batch, always in the same order; of slices and turns only where they are asked for."""
    return Draws(
        shapes=generator.random((batch, TRIES, 2)),
        places=generator.random((batch, dimensions)),
        flips=generator.random((batch, dimensions)),
        depths=generator.random(batch) if slices else np.zeros(batch),
        turns=generator.random(batch) if rotate else np.zeros(batch),
    )


def place(crop: Crop, draws: Draws, item: int, extent: tuple[int, ...]) -> tuple[Window, Span, tuple[int, ...]]:
    """The window of one item of a batch in an image of that extent, its span, and the axes to reverse.

    The span is larger than the window where the image ends inside of it.
    """
    flips = tuple(axis for axis in crop.flips if draws.flips[item, axis] < 0.5)
    sizes = _sizes(crop, draws.shapes[item], crop.window or extent, room(extent, crop.window))
    places = draws.places[item].tolist()
    starts = [int(u * (max(e, s) - s + 1)) for u, e, s in zip(places, extent, sizes, strict=True)]
    stops = [start + s for start, s in zip(starts, sizes, strict=True)]
    if crop.shrink and (factor := shrinkage(sizes, crop.size)) > 1:
        starts = [start // factor * factor for start in starts]
        stops = [min(-(-stop // factor), e // factor) * factor for stop, e in zip(stops, extent, strict=True)]
        sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
    window = tuple(slice(start, min(stop, e)) for start, stop, e in zip(starts, stops, extent, strict=True))
    return window, tuple(sizes), flips


def shrinkage(sides: Sequence[float], size: Span) -> int:
    """By which of 8, 4, 2 and 1 an image's crop may be decoded smaller: `MARGIN` times the model's size remain."""
    least = min(side / own for side, own in zip(sides, size, strict=True)) / MARGIN
    return 8 if least >= 8 else 4 if least >= 4 else 2 if least >= 2 else 1


def least_sides(crop: Crop, extent: Sequence[int]) -> tuple[float, float]:
    """Sides that no share of an image of that extent falls below, whatever is drawn: of the smallest area, the
    narrowest and the lowest."""
    height, width = extent
    low, high = (ratio * crop.size[1] / crop.size[0] for ratio in crop.ratio)
    area = crop.scale[0] * height * width
    return min(sqrt(area / high), height, width / high), min(sqrt(area * low), width, height * low)


def divided(length: int, window: float, held: bool) -> slice:
    """The part of an image's rows whose windows are trained on, or held out: the last tenth, one window at least.

    All of it for both where it is shorter than three windows.
    """
    if length < 3 * window:
        return slice(0, length)
    edge = length - max(ceil(window), length // 10)
    return slice(edge, length) if held else slice(0, edge)


def room(extent: tuple[int, ...], window: tuple[float, ...] | None) -> Span:
    """The extent of an image, or of the window along axes where that is larger."""
    return extent if window is None else tuple(max(e, ceil(w)) for e, w in zip(extent, window, strict=True))


def coarser(span: Span, window: Window, have: tuple[int, ...]) -> Span:
    """The span of a window that was read with so many pixels, in these; a sliced axis's window is not asked for."""
    sides = [side.stop - side.start for side in window]
    if len(sides) != len(have) or all(h == side for h, side in zip(have, sides, strict=True)):
        return span
    return tuple(round(s * h / side) for s, h, side in zip(span, have, sides, strict=True))


def _sizes(crop: Crop, tries: Floats, base: tuple[float, ...], extent: tuple[int, ...]) -> list[int]:
    low, high = crop.scale
    if len(extent) == 3:  # volumes: the share of the volume, its proportions kept
        side = (low + float(tries[0, 0]) * (high - low)) ** (1 / 3)
        return [max(1, min(e, round(b * side))) for b, e in zip(base, extent, strict=True)]
    own = crop.size[1] / crop.size[0]
    narrow, wide = log(crop.ratio[0]), log(crop.ratio[1])
    for share, aspect in tries.tolist():  # nearly always the first: plain numbers are faster than arrays of ten
        area, ratio = (low + share * (high - low)) * base[0] * base[1], exp(narrow + aspect * (wide - narrow)) * own
        sizes = [round(sqrt(area / ratio)), round(sqrt(area * ratio))]
        if 1 <= sizes[0] <= extent[0] and 1 <= sizes[1] <= extent[1]:
            return sizes
    # none fits (a panorama): the largest window of the nearest allowed proportions
    height, width = extent
    wanted = min(max(width / height, crop.ratio[0] * own), crop.ratio[1] * own)
    return [max(1, min(height, round(width / wanted))), max(1, min(width, round(height * wanted)))]


def crop_pixels(text: str, size: tuple[int, ...], spacing: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """`crop_each` of one source, of which the spacing may not be known."""
    found = crop_each(text, size, np.full((1, len(size)), np.nan) if spacing is None else np.array([spacing]))
    return None if found is None else tuple(found[0].tolist())


def crop_each(text: str, size: tuple[int, ...], spacings: Floats) -> Floats | None:
    """The window of ``data.crop`` in pixels of each source, [N, D] from spacings [N, D]: None for ``image``.

    A size is that of the longest side of the model's image. Raises UsageError for mm or m where a source's
    spacing is not known (NaN).
    """
    if text == "image":
        return None
    sides = float(text.rstrip("pxm")) * np.array(size) / max(size)
    if text.endswith("px"):
        return np.broadcast_to(sides, spacings.shape)
    if unknown := int(np.isnan(spacings).any(axis=1).sum()):
        raise UsageError(
            f"data.crop {text}: {unknown:,} of {len(spacings):,} images do not say how large a pixel is; "
            "use a size in px"
        )
    return np.asarray(sides / spacings)


def cover(extent: int, size: int, overlap: float = 0.5) -> list[int]:
    """Starts of windows of ``size`` that cover ``extent`` evenly, neighbours sharing at least ``overlap``."""
    if extent <= size:
        return [0]
    count = int(np.ceil((extent - size) / max(1, int(size * (1 - overlap))))) + 1
    return [round(place) for place in np.linspace(0, extent - size, count)]


def ramp(size: int, starts: list[int], which: int) -> Floats:
    """Blending weights [size] of one window of a `cover`: falls linearly towards a neighbour, never zero."""
    weights = np.ones(size)
    if which > 0:
        shared = starts[which - 1] + size - starts[which]
        weights[:shared] = np.minimum(weights[:shared], (np.arange(shared) + 1) / (shared + 1))
    if which + 1 < len(starts):
        shared = starts[which] + size - starts[which + 1]
        weights[size - shared :] = np.minimum(weights[size - shared :], (np.arange(shared, 0, -1)) / (shared + 1))
    return weights


def shares(size: int, starts: list[int]) -> Floats:
    """Blending weights [T, size] of every window of a `cover`, which sum to 1 at each place they cover.

    Three windows can meet at a place, where the ramps alone do not sum to 1.
    """
    weights = np.array([ramp(size, starts, which) for which in range(len(starts))])
    total = np.zeros(starts[-1] + size)
    for start, own in zip(starts, weights, strict=True):
        total[start : start + size] += own
    for start, own in zip(starts, weights, strict=True):
        own /= total[start : start + size]
    return weights
