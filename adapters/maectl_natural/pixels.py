"""Pixels as arrays: orientation, windows, colour to grey and back."""

import numpy as np

from maectl_natural.pillow import Array, Raster

__all__ = ["COLOURS", "Box", "from_cmyk", "lasting", "orient", "repaint", "scale_window", "stored_window", "valid"]

COLOURS = {1: ("grey",), 3: ("red", "green", "blue")}
"""Channel names by their count."""

Box = tuple[slice, slice]
"""Rows and columns."""

# EXIF orientation -> (swap rows and columns, then reverse the rows, then reverse the columns)
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def orient(image: Array, orientation: int) -> Array:
    """An image [H, W] or [H, W, C] as stored, turned the way an EXIF orientation says (a view)."""
    swap, rows, columns = _TURNS[orientation]
    image = image.swapaxes(0, 1) if swap else image
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def stored_window(window: Box, size: tuple[int, int], orientation: int) -> Box:
    """The window of the stored image that `orient` turns into this window of the oriented one of ``size``."""
    swap, rows, columns = _TURNS[orientation]
    flipped = [
        slice(length - box.stop, length - box.start) if reverse else box
        for box, length, reverse in zip(window, size, (rows, columns), strict=True)
    ]
    return (flipped[1], flipped[0]) if swap else (flipped[0], flipped[1])


def scale_window(window: Box, size: tuple[int, int], least: tuple[int, int]) -> tuple[int, Box]:
    """The largest factor of 8, 4, 2, 1 that a window can be shrunk by exactly, and the window then.

    It must begin and end on a whole shrunken pixel (or at the image's edge) and keep ``least`` pixels.
    """
    for factor in (8, 4, 2):
        shrunk = tuple(slice(box.start // factor, -(-box.stop // factor)) for box in window)
        exact = all(
            box.start % factor == 0 and (box.stop % factor == 0 or box.stop == length)
            for box, length in zip(window, size, strict=True)
        )
        if exact and all(box.stop - box.start >= n for box, n in zip(shrunk, least, strict=True)):
            return factor, (shrunk[0], shrunk[1])
    return 1, window


def from_cmyk(values: Array) -> Array:
    """Red, green, blue [..., 3] of cyan, magenta, yellow, black [..., 4]: (1 - ink)(1 - black), rounded."""
    top = np.uint32(np.iinfo(values.dtype).max)
    light = top - values[..., 3:].astype(np.uint32)
    ink = (values[..., :3] * light + top // 2) // top
    rgb: Array = (light - ink).astype(values.dtype)
    return rgb


def repaint(values: Array, channels: int) -> Array:
    """Pixels [..., 1 or 3] in 1 or 3 channels, dtype kept: grey repeated, colour by ITU-R 601-2 luma.

    Luma is 0.299 red + 0.587 green + 0.114 blue, in 16-bit fixed point, rounded; colour is uint8 or uint16.
    """
    if values.shape[-1] == channels:
        return values
    if channels == 3:
        return np.repeat(values, 3, axis=-1)
    weights = np.array([19595, 38470, 7471], np.uint32)  # sum to 65536
    return ((values @ weights + np.uint32(32768)) >> 16)[..., None].astype(values.dtype)


def valid(raster: Raster) -> Array | None:
    """Bool [H, W]: neither transparent nor NaN or infinite; None where that is all."""
    if raster.alpha is None and raster.values.dtype.kind != "f":
        return None
    mask = np.ones(raster.values.shape[:2], np.bool_) if raster.alpha is None else raster.alpha > 0
    if raster.values.dtype.kind == "f":
        mask &= np.isfinite(raster.values).all(-1)
    return None if mask.all() else np.ascontiguousarray(mask)


def lasting(values: Array) -> bool:
    """Whether a window may be handed on as it lies in the image it is part of: writable, forwards, and a quarter of it.

    A smaller one would keep far more memory than it needs.
    """
    whole = values.nbytes if values.base is None else getattr(values.base, "nbytes", 0)
    return values.flags.writeable and min(values.strides) > 0 and 0 < whole <= 4 * values.nbytes
