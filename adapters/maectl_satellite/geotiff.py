"""New GeoTIFFs: how they are laid out, where they lie, and that none is left half written."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from maectl.errors import DataError
from maectl_satellite.handles import environment, failures, fresh, gdal, told
from maectl_satellite.layout import Layout

__all__ = ["created", "place", "profile", "tile_side"]

TILE = 512  # pixels a side of the tiles of a scene, at most; a smaller scene is one tile
TILE_BYTES = 1 << 25  # of all bands of a tile, at most, so that GDAL's cache holds some


def tile_side(shape: tuple[int, int], count: int, dtype: str) -> int:
    """Pixels a side of a scene's tiles: a multiple of 16, which TIFF asks for."""
    side = min(TILE, -(-max(shape) // 16) * 16)
    while side > 64 and count * side * side * np.dtype(dtype).itemsize > TILE_BYTES:
        side = side // 32 * 16
    return side


def profile(shape: tuple[int, int], count: int, dtype: str, tile: int, interleave: str) -> dict[str, Any]:
    """How a file is laid out: tiled, compressed without loss."""
    return {
        "driver": "GTiff",
        "height": shape[0],
        "width": shape[1],
        "count": count,
        "dtype": dtype,
        "tiled": True,
        "blockxsize": tile,
        "blockysize": tile,
        "interleave": interleave,
        "compress": "deflate",
        "predictor": 3 if np.dtype(dtype).kind == "f" else 2,
        "bigtiff": "IF_SAFER",
    }


def place(raster: Any, layout: Layout, step: tuple[float, float] = (1.0, 1.0)) -> dict[str, Any]:
    """Where a scene lies, for a grid coarser by ``step`` (rows, columns): crs with a transform or control points."""
    points, system = raster.gcps
    if layout.transform is None and raster.transform.is_identity:
        if not points:
            return {"crs": raster.crs}
        point = gdal().control.GroundControlPoint
        return {
            "crs": system,
            "gcps": [point(p.row / step[0], p.col / step[1], p.x, p.y, p.z, p.id, p.info) for p in points],
        }
    a, b, c, d, e, f = layout.transform or tuple(raster.transform)[:6]
    rows, columns = step
    return {"crs": raster.crs, "transform": gdal().Affine(a * columns, b * rows, c, d * columns, e * rows, f)}


@contextmanager
def created(path: Path, about: dict[str, Any]) -> Iterator[tuple[Any, Path]]:
    """A new raster to write and read, under another name until it is whole, and gone where it never is."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with environment():
            with gdal().open(part, "w+", **about) as target:
                yield target, path
            _check(part)
        os.replace(part, path)
    except failures() as error:
        reason = told(error, str(part))
        raise DataError(f"{path} cannot be written ({reason}): is there space, and may one write there?") from error
    finally:
        part.unlink(missing_ok=True)


def _check(path: Path) -> None:
    """Raise OSError where a file is not whole: GDAL does not tell of a disk that is full when it closes one."""
    size = path.stat().st_size
    flag = gdal().enums.MaskFlags
    with fresh(str(path)) as raster:
        down, across = (-(-n // side) for n, side in zip(raster.shape, raster.block_shapes[0], strict=True))
        planes = range(1, raster.count + 1) if raster.interleaving == gdal().enums.Interleaving.band else (1,)
        for number, i, j in itertools.product(planes, range(down), range(across)):
            start, length = (raster.get_tag_item(f"BLOCK_{w}_{j}_{i}", "TIFF", bidx=number) for w in ("OFFSET", "SIZE"))
            if start is None or length is None or int(start) + int(length) > size:
                raise OSError("the disk is full")
        if flag.per_dataset in raster.mask_flag_enums[0] and flag.alpha not in raster.mask_flag_enums[0]:
            for _, window in raster.block_windows(1):
                raster.read_masks(1, window=window)
