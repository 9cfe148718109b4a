"""Streaming statistics a channel over valid pixels, and the normaliser made of them.

Shapes: values [C, *S], valid bool [*S].
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl.adapter import Pixels
from maectl.errors import DataError
from maectl.recipe import MeanStd
from maectl.stream import SAMPLE, generator

__all__ = ["Normalizer", "Statistics", "gather", "moments", "sample_rows"]

SAMPLED = 2000  # sources that statistics come from; their error is then below 1 % of the deviation
READ = 4_000_000_000  # pixels read for them, where sources are that large
FEWEST = 16  # sources they come from in any case
SLAB = 1 << 24  # pixels measured at once
PIXELS = 4096  # pixels a source gives to the percentiles
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Of a data set, one value a channel, in the images' unit."""

    mean: list[float]
    std: list[float]
    minimum: list[float]
    maximum: list[float]
    p0_1: list[float]  # 0.1 %, 0.5 %, 99.5 % and 99.9 % percentiles
    p0_5: list[float]
    p99_5: list[float]
    p99_9: list[float]
    pixels: int  # valid pixels seen, a channel
    invalid_fraction: float
    sources: int

    def json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations, [C] each (Chan, Golub & LeVeque 1983, eq. 2.1)."""

    count: Floats
    mean: Floats
    squares: Floats

    def merged(self, other: "_Moments") -> "_Moments":
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        return _Moments(count, self.mean + delta * share, self.squares + other.squares + delta**2 * self.count * share)


def sample_rows(sizes: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.int64]:
    """Which sources statistics are taken from, in order: at most 2,000, and 4 thousand million pixels.

    ``sizes`` [N] is the number of pixels of each.
    """
    chosen = generator(seed, 0, SAMPLE).permutation(len(sizes))[:SAMPLED]
    enough = int(np.searchsorted(np.cumsum(sizes[chosen], dtype=np.int64), READ)) + 1
    return np.sort(chosen[: max(FEWEST, enough)])


def moments(
    pixels: Pixels, clip: tuple[float, float] | None = None, *, foreground: bool = False
) -> tuple[Floats, Floats]:
    """Mean and standard deviation [C] over the valid pixels of one image; a constant channel has deviation 1.

    With ``foreground`` over those not below the channel's mean alone: background is the larger and darker part
    of most magnetic resonance images (what TorchIO's ZNormalization does with the masking method `mean`).
    """
    whole = _partial(pixels, clip).moments
    if foreground:
        floor = whole.mean
        parts = [[channel[channel >= least] for channel, least in zip(flat, floor, strict=True)]
                 for flat, _ in _slabs(pixels, clip)]  # fmt: skip
        whole = _merged([_measured(part) for part in parts], len(floor))
    return whole.mean, _deviation(whole)


@dataclass
class _Partial:
    moments: _Moments
    minimum: Floats
    maximum: Floats
    sample: npt.NDArray[Any]  # [C, at most PIXELS]
    total: int


def _partial(pixels: Pixels, clip: tuple[float, float] | None) -> _Partial:
    channels, total = len(pixels.values), int(np.prod(pixels.values.shape[1:]))
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    parts, samples = [], [pixels.values.reshape(channels, -1)[:, :0]]
    for flat, slabs in _slabs(pixels, clip):
        parts.append(_measured(flat))
        if flat.shape[1]:
            low, high = np.minimum(low, flat.min(axis=1)), np.maximum(high, flat.max(axis=1))
            samples.append(flat[:, :: max(1, flat.shape[1] * slabs // PIXELS)].copy())
    return _Partial(_merged(parts, channels), low, high, np.concatenate(samples, axis=1), total)


def _slabs(pixels: Pixels, clip: tuple[float, float] | None) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """The valid values [C, n], clipped, a bounded number at a time, and how many such parts there are."""
    values, valid = pixels.values, pixels.valid
    slabs = max(1, min(values.shape[1], values[0].size // SLAB))
    edges = np.linspace(0, values.shape[1], slabs + 1).astype(int)
    for first, last in itertools.pairwise(edges):
        part = values[:, first:last]
        flat = part.reshape(len(values), -1) if valid is None else part[:, valid[first:last]]
        yield (flat if clip is None else np.clip(flat, *clip)), slabs


def _measured(channels: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]) -> _Moments:
    """Moments of the values of each channel, [C, n] or C arrays of any length."""
    means = np.array([own.mean(dtype=np.float64) if len(own) else 0.0 for own in channels])
    squares = [np.square(own - mean).sum(dtype=np.float64) for own, mean in zip(channels, means, strict=True)]
    return _Moments(np.array([float(len(own)) for own in channels]), means, np.array(squares))


def _merged(parts: Sequence[_Moments], channels: int) -> _Moments:
    zero = np.zeros(channels)
    return functools.reduce(_Moments.merged, parts) if parts else _Moments(zero, zero, zero)


def gather(images: Iterable[Pixels], clip: tuple[float, float] | None = None) -> Statistics:
    """Statistics of a stream of images, merged in the order given (so the result is repeatable to the bit).

    Raises DataError for an empty stream, DataError where no pixel of it is valid.
    """
    parts = [_partial(pixels, clip) for pixels in images]
    if not parts:
        raise DataError("none of the images looked at can be decoded: 'maectl inspect' says why")
    whole = _merged([part.moments for part in parts], 0)
    if not whole.count.any():
        raise DataError(f"no valid pixel in {len(parts):,} images (all nodata, transparent or not finite)")
    sample = np.concatenate([part.sample for part in parts], axis=1)
    tails = np.percentile(sample, (0.1, 0.5, 99.5, 99.9), axis=1).tolist()
    return Statistics(
        mean=whole.mean.tolist(),
        std=_deviation(whole).tolist(),
        minimum=np.min([part.minimum for part in parts], axis=0).tolist(),
        maximum=np.max([part.maximum for part in parts], axis=0).tolist(),
        p0_1=tails[0],
        p0_5=tails[1],
        p99_5=tails[2],
        p99_9=tails[3],
        pixels=int(whole.count[0]),
        invalid_fraction=1 - int(whole.count[0]) / sum(part.total for part in parts),
        sources=len(parts),
    )


def _deviation(whole: _Moments) -> Floats:
    deviation = np.sqrt(whole.squares / np.maximum(whole.count, 1))
    return np.where(deviation > 0, deviation, 1.0)


@dataclass(frozen=True)
class Normalizer:
    """(clip(x) − mean) / std a channel. With ``image`` mean and std are each source's own, given at use;
    with ``foreground`` too, those of its brighter part."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: tuple[tuple[float, ...], tuple[float, ...]] | None  # low and high a channel, in the unit
    image: bool = False
    foreground: bool = False

    def constants(self, whole: Callable[[], Pixels]) -> tuple[Floats, Floats]:
        """Mean and deviation [C] that normalise a source; its pixels are asked for only where they decide."""
        if not self.image:
            return np.array(self.mean), np.array(self.std)
        limits = None if self.clip is None else (self.clip[0][0], self.clip[1][0])
        return moments(whole(), limits, foreground=self.foreground)

    @classmethod
    def of(
        cls,
        mode: str | MeanStd,
        clip: tuple[float, float] | None,
        statistics: Statistics,
    ) -> "Normalizer":
        """The normaliser a recipe asks for (``data.normalize``, ``data.clip``)."""
        channels = len(statistics.mean)
        limits = None if clip is None else ((clip[0],) * channels, (clip[1],) * channels)
        if isinstance(mode, MeanStd):
            return cls(mode.mean, mode.std, limits)
        if mode == "percentiles":  # the range that holds 99 % of the pixels, onto [-1, 1]
            low, high = np.array(statistics.p0_5), np.array(statistics.p99_5)
            half = np.where(high > low, (high - low) / 2, 1.0)
            return cls(tuple((low + half).tolist()), tuple(half.tolist()), (tuple(low.tolist()), tuple(high.tolist())))
        own = mode in ("image", "foreground")
        return cls(tuple(statistics.mean), tuple(statistics.std), limits, own, mode == "foreground")
