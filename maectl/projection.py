"""Features as fewer or smaller numbers: principal axes, and bytes with a scale.

N features of D numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Projection", "byte_scales", "quantised"]

Floats = npt.NDArray[np.float32]
MOST = 126  # of an int8 either way; -128 means nothing
MARGIN = 0.05  # of the range seen, left for what was not


@dataclass(frozen=True)
class Projection:
    """Principal component analysis: float32 mean [D], axes [K, D] of length 1, and each one's share of the variance."""

    mean: Floats
    axes: Floats
    shares: Floats

    @classmethod
    def fit(cls, features: Floats, count: int) -> "Projection":
        """The first ``count`` axes of [N, D], at most D; each points to where its largest component is positive."""
        mean = features.mean(axis=0, dtype=np.float64)
        centred = features - mean
        power, axes = np.linalg.eigh(centred.T @ centred / max(1, len(features)))
        axes = axes[:, ::-1][:, :count].T
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
        shares = np.maximum(power[::-1][:count], 0) / max(float(np.maximum(power, 0).sum()), 1e-30)
        # in C order: safetensors writes memory as it lies
        return cls(*(each.astype(np.float32, order="C") for each in (mean, axes * np.sign(largest), shares)))

    def of(self, features: Floats) -> Floats:
        """[K, ...] of features [D, ...]; NaN stays NaN."""
        flat = features.reshape(len(features), -1)
        found: Floats = (self.axes @ (flat - self.mean[:, None])).astype(np.float32)
        return found.reshape(len(self.axes), *features.shape[1:])


def byte_scales(features: Floats) -> tuple[tuple[float, float], ...]:
    """(scale, offset) of each column of [N, D] that bring its range to an int8: value = byte · scale + offset."""
    low, high = features.min(axis=0).astype(float), features.max(axis=0).astype(float)
    half = np.maximum((high - low) / 2 * (1 + MARGIN), 1e-12)
    return tuple((float(h / MOST), float(middle)) for h, middle in zip(half, (low + high) / 2, strict=True))


def quantised(features: Floats, scales: tuple[tuple[float, float], ...]) -> npt.NDArray[np.int8]:
    """int8 [D, ...] of features [D, ...]; what lies beyond the range is at its end, NaN is -128."""
    scale, offset = (
        np.array(each, np.float64).reshape(-1, *[1] * (features.ndim - 1)) for each in zip(*scales, strict=True)
    )
    whole: Any = np.clip(np.rint((features - offset) / scale), -MOST, MOST)
    return np.where(np.isnan(features), -128, np.nan_to_num(whole)).astype(np.int8)
