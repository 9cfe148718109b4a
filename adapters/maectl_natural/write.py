"""Tiles to a file: gathered over the source's own pixels, cast to the dtype, written whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maectl.adapter import Source, Values, Window
from maectl.errors import DataError
from maectl_natural.encode import encode, format_for
from maectl_natural.pillow import Array, Raster
from maectl_natural.pixels import repaint, valid
from maectl_natural.read import load
from maectl_natural.scan import unpack_key

__all__ = ["gather", "save", "scatter"]

Tiles = Iterable[tuple[Window, Values]]


def gather(source: Source, tiles: Tiles, channels: int, dtype: str) -> Raster:
    """Tiles [channels, h, w] over the source's own pixels, which stay where no tile lies or they are invalid.

    Invalid pixels of integers become NaN where the output is float. Raises `Unreadable`.
    """
    stored = load(source)
    kept = cast(repaint(stored.values, channels), np.dtype(dtype))
    canvas = scatter(kept.copy(), tiles)
    mask = valid(stored)
    if mask is not None:
        lost = kept.dtype.kind == "f" and stored.values.dtype.kind != "f"
        canvas[~mask] = np.nan if lost else kept[~mask]
    if stored.alpha is None or canvas.dtype.kind == "f":
        return Raster(canvas)
    alike = stored.alpha.dtype == canvas.dtype
    opaque = (stored.alpha > 0) * canvas.dtype.type(np.iinfo(canvas.dtype).max)
    return Raster(canvas, stored.alpha if alike else opaque)


def scatter(canvas: Array, tiles: Tiles) -> Array:
    """Tiles [C, h, w] put into a canvas [H, W, C], which is returned."""
    for window, values in tiles:
        canvas[window] = cast(np.moveaxis(values, 0, -1), canvas.dtype)
    return canvas


def cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values rounded and clipped to a dtype's range; NaN becomes 0 among integers."""
    if values.dtype == dtype or dtype.kind == "f":
        return values.astype(dtype, copy=False)
    whole = np.nan_to_num(np.rint(values)) if values.dtype.kind == "f" else values
    clipped: Array = np.clip(whole, np.iinfo(dtype).min, np.iinfo(dtype).max)
    return clipped.astype(dtype)


def save(source: Source, raster: Raster, path: Path) -> Path:
    """Write pixels beside the path given, under its name and the format's suffix; raises `DataError`."""
    kind, mode, _ = unpack_key(source.key)
    chosen, suffix = format_for(kind, mode, os.path.splitext(source.paths[0])[1], raster)
    path = path.with_name(path.name + suffix)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(encode(chosen, raster))
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    return path
