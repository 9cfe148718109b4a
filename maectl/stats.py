"""Streaming statistics a channel over valid pixels, and the normaliser made of them.

Shapes: values [C, *S], valid bool [*S].
"""

from collections.abc import Iterable
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
    """Count, mean and sum of squared deviations a channel (Chan, Golub & LeVeque 1983, eq. 2.1)."""

    count: int
    mean: Floats
    squares: Floats

    def merged(self, other: "_Moments") -> "_Moments":
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        return _Moments(
            count,
            self.mean + delta * other.count / count,
            self.squares + other.squares + delta**2 * self.count * other.count / count,
        )


def sample_rows(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of ``count`` sources statistics are taken from: at most 2,000, in order."""
    chosen = generator(seed, 0, SAMPLE).permutation(count)[:SAMPLED]
    return np.sort(chosen)


def moments(pixels: Pixels, clip: tuple[float, float] | None = None) -> tuple[Floats, Floats]:
    """Mean and standard deviation [C] over the valid pixels of one image; a constant channel has deviation 1."""
    part = _partial(pixels, clip)
    return part.moments.mean, _deviation(part.moments)


@dataclass
class _Partial:
    moments: _Moments
    minimum: Floats
    maximum: Floats
    sample: npt.NDArray[Any]  # [C, at most PIXELS]
    total: int


def _partial(pixels: Pixels, clip: tuple[float, float] | None) -> _Partial:
    values, valid = pixels.values, pixels.valid
    flat = values.reshape(len(values), -1) if valid is None else values[:, valid]
    total = int(np.prod(values.shape[1:]))
    if flat.shape[1] == 0:
        empty = np.zeros(len(values))
        return _Partial(_Moments(0, empty, empty), empty + np.inf, empty - np.inf, flat, total)
    if clip is not None:
        flat = np.clip(flat, *clip)
    mean = flat.mean(axis=1, dtype=np.float64)
    squares = np.square(flat - mean[:, None]).sum(axis=1, dtype=np.float64)
    stride = max(1, flat.shape[1] // PIXELS)
    low, high = flat.min(axis=1).astype(float), flat.max(axis=1).astype(float)
    return _Partial(_Moments(flat.shape[1], mean, squares), low, high, flat[:, ::stride].copy(), total)


def gather(images: Iterable[Pixels], clip: tuple[float, float] | None = None) -> Statistics:
    """Statistics of a stream of images, merged in the order given (so the result is repeatable to the bit).

    Raises DataError for an empty stream, DataError where no pixel of it is valid.
    """
    parts = [_partial(pixels, clip) for pixels in images]
    if not parts:
        raise DataError("none of the images looked at can be decoded: 'maectl inspect' says why")
    whole = parts[0].moments
    for part in parts[1:]:
        whole = whole.merged(part.moments)
    if whole.count == 0:
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
        pixels=whole.count,
        invalid_fraction=1 - whole.count / sum(part.total for part in parts),
        sources=len(parts),
    )


def _deviation(whole: _Moments) -> Floats:
    deviation = np.sqrt(whole.squares / max(whole.count, 1))
    return np.where(deviation > 0, deviation, 1.0)


@dataclass(frozen=True)
class Normalizer:
    """(clip(x) − mean) / std a channel. With ``image`` mean and std are each source's own, given at use."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: tuple[tuple[float, ...], tuple[float, ...]] | None  # low and high a channel, in the unit
    image: bool = False

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
            return cls(tuple((low + half).tolist()), tuple(half.tolist()), (tuple(low), tuple(high)))
        return cls(tuple(statistics.mean), tuple(statistics.std), limits, image=mode == "image")
