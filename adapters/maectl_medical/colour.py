"""Channels: what the model asks for, made of what an image has."""

import numpy as np
import numpy.typing as npt

from maectl.adapter import Channels, Values

__all__ = ["NAMES", "names", "repaint"]

NAMES = {1: ("grey",), 3: ("red", "green", "blue")}
LUMA = np.array([19595, 38470, 7471])  # ITU-R 601-2 in 16-bit fixed point; sums to 65536


def names(asked: Channels, own: tuple[str, ...]) -> tuple[str, ...] | None:
    """The channels of an image under the option ``channels``; None where it cannot be had."""
    if asked == "auto" or asked in (len(own), own):
        return own
    count = asked if isinstance(asked, int) else len(asked)
    wanted = NAMES.get(count)
    known = isinstance(asked, int) or asked == wanted
    return wanted if known and wanted is not None and own in NAMES.values() else None


def repaint(values: Values, count: int) -> Values:
    """[C, *S] in ``count`` channels, dtype kept: grey repeated, colour by ITU-R 601-2 luma, rounded."""
    if len(values) == count:
        return values
    if count == 3:
        return np.repeat(values, 3, axis=0)
    if values.dtype.kind == "f":
        weights: npt.NDArray[np.float32] = (LUMA / 65536).astype(np.float32)
        return np.tensordot(weights, values, axes=1)[None].astype(values.dtype)
    grey = (np.tensordot(LUMA, values.astype(np.int64), axes=1) + 32768) >> 16
    return grey[None].astype(values.dtype)
