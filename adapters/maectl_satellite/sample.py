"""Drawn landscapes for `maectl demo satellite`: six-band scenes with a place, nodata edges, clouds and labels.

Four classes by what covers most of a scene: fields, forest, town, water. Each scene holds some of the others. Light,
haze, season and soil vary so much from scene to scene that mean colours hardly tell classes apart; furrows and parcels,
crowns, streets, and smooth water do, and the shape of the spectrum.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl_satellite.handles import environment, gdal

__all__ = ["landscapes"]

CLASSES = ("fields", "forest", "town", "water")  # 1 to 4 in the label rasters, where 0 is no label
BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
SCENES = {"train": 40, "test": 20}  # a class
SMALL, LARGE = (64, 64), (160, 128)  # rows, columns
LARGE_ONES = 3  # of a class, in test
METRES = 10  # a pixel
CORNER = (500_000, 5_400_000)  # easting, northing in UTM zone 32 (EPSG:32632)
SPACING = 400  # pixels from scene to scene, so that none overlap
FULL = 10_000  # reflectance 1
NOISE = 0.004  # of the sensor, in reflectance
MANY = 997  # parcels, blocks and houses that differ: a prime, so that neighbours do

# Reflectances a band, of the usual shapes: green leaves have a red edge and absorb in SWIR2, soil and roofs rise
# towards SWIR, water falls.
LEAVES = np.array([0.03, 0.07, 0.04, 0.40, 0.20, 0.09])
NEEDLES = np.array([0.02, 0.04, 0.03, 0.24, 0.11, 0.05])
STRAW = np.array([0.07, 0.11, 0.15, 0.28, 0.32, 0.24])
SOIL = np.array([0.08, 0.11, 0.15, 0.21, 0.29, 0.26])
ASPHALT = np.array([0.10, 0.11, 0.12, 0.14, 0.16, 0.15])
ROOFS = np.array([0.13, 0.16, 0.21, 0.26, 0.29, 0.26])
WATER = np.array([0.06, 0.06, 0.04, 0.02, 0.012, 0.008])
SEDIMENT = np.array([0.08, 0.13, 0.15, 0.12, 0.04, 0.02])
HAZE = np.array([0.06, 0.04, 0.03, 0.015, 0.006, 0.003])

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Shape = tuple[int, int]


def landscapes(folder: Path, seed: int) -> None:
    """Write ``folder/<part>/<class>/scene-NN.tif`` and its labels ``folder/masks/<part>/<class>/scene-NN.tif``."""
    numbered = 0
    for part, count in SCENES.items():
        for label, name in enumerate(CLASSES):
            for number in range(count):
                stem = f"scene-{number:02d}"
                rng = np.random.default_rng((seed, zlib.crc32(f"{part} {name} {stem}".encode())))
                shape = LARGE if part == "test" and number < LARGE_ONES else SMALL
                values, cover = _scene(rng, label, shape)
                place = (CORNER[0] + numbered % 50 * SPACING * METRES, CORNER[1] - numbered // 50 * SPACING * METRES)
                _write(folder / part / name / f"{stem}.tif", values, place, BANDS)
                _write(folder / "masks" / part / name / f"{stem}.tif", cover[None], place, ("cover",))
                numbered += 1


def _scene(rng: np.random.Generator, label: int, shape: Shape) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Stored values [6, H, W] uint16, 0 where there are none, and labels [H, W] uint8, 0 there."""
    cover = _cover(rng, label, shape)
    season = rng.uniform(0.1, 1.0)  # how green it is
    drawn = (_fields(rng, shape, season), _forest(rng, shape, season), _town(rng, shape, season), _water(rng, shape))
    ground = np.take_along_axis(np.stack([_contrasted(rng, each) for each in drawn]), cover[None, None], axis=0)[0]
    light = rng.uniform(0.45, 1.5) * (1 + 0.1 * _smooth(rng, shape, 50)) * rng.uniform(0.85, 1.15, (6, 1, 1))
    seen = ground * light + rng.uniform(0, 2.5) * HAZE[:, None, None]
    seen += rng.normal(0, NOISE, seen.shape)
    values = np.clip(np.rint(seen * FULL), 1, 65535).astype(np.uint16)
    missing = _missing(rng, shape)
    values[:, missing] = 0
    return values, np.where(missing, 0, cover + 1).astype(np.uint8)


def _contrasted(rng: np.random.Generator, ground: Floats) -> Floats:
    """With more contrast, or less, so that deviations do not tell classes apart either."""
    mean = ground.mean(axis=(1, 2), keepdims=True)
    changed: Floats = np.maximum(mean + rng.uniform(0.45, 1.7) * (ground - mean), 0.002)
    return changed


def _cover(rng: np.random.Generator, label: int, shape: Shape) -> Integers:
    """Which class covers each pixel [H, W]: mostly ``label``."""
    heights = np.stack([_smooth(rng, shape, 28) + 0.3 * _smooth(rng, shape, 9) for _ in CLASSES])
    if rng.random() < 0.4:  # a river
        across, along = _turned(rng, shape)
        bend = 6 * np.sin(along / rng.uniform(9, 16) + rng.uniform(0, 6))
        bank = np.abs(across - rng.uniform(-20, 20) - bend) - rng.uniform(2, 4)
        heights[3] = np.where(bank < 0, 9, heights[3])
    least, most = rng.uniform(0.55, 0.75), 0.92
    cover = heights.argmax(axis=0)
    for _ in range(40):
        share = float((cover == label).mean())
        if least <= share <= most:
            break
        heights[label] += 0.15 if share < least else -0.1
        cover = heights.argmax(axis=0)
    found: Integers = cover
    return found


def _fields(rng: np.random.Generator, shape: Shape, season: float) -> Floats:
    """Parcels of crops and bare soil, ploughed in lines along them, with darker edges."""
    across, along = _turned(rng, shape)
    row, in_row = _strips(rng, across, 8, 16)
    parcel, in_parcel = _strips(rng, along + 37 * row, 12, 30)
    parcel = (row * 131 + parcel) % MANY
    green = np.clip(rng.beta(0.6, 0.6, MANY) * (0.4 + 0.8 * season), 0, 1)[parcel]
    ripe = rng.random(MANY)[parcel]
    bright = rng.uniform(0.75, 1.25, MANY)[parcel]
    turned = rng.random(MANY)[parcel] < 0.3  # ploughed the other way
    furrow = np.sin(2 * np.pi * np.where(turned, along, across) / rng.uniform(2.6, 4.2))
    bare = _mixed(SOIL, STRAW, ripe)
    ground = _mixed(bare, LEAVES, green) * bright * (1 + 0.14 * furrow)
    edge = (in_row < 0.8) | (in_parcel < 0.8)
    return np.where(edge, 0.5 * ground + 0.3 * LEAVES[:, None, None], ground)


def _forest(rng: np.random.Generator, shape: Shape, season: float) -> Floats:
    """Crowns, lit from one side, of leaves or needles in stands."""
    crowns = _smooth(rng, shape, 3.2) + 0.7 * _smooth(rng, shape, 2.1)
    shade = crowns - np.roll(crowns, (1, 1), axis=(0, 1))
    stand = 1 / (1 + np.exp(-4 * (_smooth(rng, shape, 25) + rng.uniform(-0.6, 0.6))))
    leaves = season * LEAVES + (1 - season) * 0.8 * STRAW
    wood = _mixed(leaves, NEEDLES, stand)
    return wood * np.clip(0.95 + 0.22 * crowns + 0.3 * shade, 0.25, 2)


def _town(rng: np.random.Generator, shape: Shape, season: float) -> Floats:
    """Streets in a grid, and blocks of roofs and gardens between them."""
    across, along = _turned(rng, shape)
    row, in_row = _strips(rng, across, 5, 9)
    block, in_block = _strips(rng, along, 6, 12)
    block = (row * 131 + block) % MANY
    house = (np.floor(in_row / 2.2) * 7 + np.floor(in_block / 2.6) * 13 + block * 5).astype(np.int64) % MANY
    roof = rng.gamma(5, 0.2, MANY)[house]
    red = rng.random(MANY)[house]
    garden = (rng.random(MANY)[house] < rng.uniform(0.2, 0.6)) * rng.uniform(0.4, 1.0, MANY)[block]
    built = _mixed(ROOFS, 1.6 * ASPHALT, red) * roof
    ground = _mixed(built, season * LEAVES + (1 - season) * STRAW, garden)
    street = (in_row < 1.2) | (in_block < 1.2)
    return np.where(street, ASPHALT[:, None, None] * rng.uniform(0.8, 1.3), ground)


def _water(rng: np.random.Generator, shape: Shape) -> Floats:
    """Smooth, clear or with sediment, with waves and sun glint."""
    muddy = np.clip(rng.uniform(-0.3, 1.2) + 0.35 * _smooth(rng, shape, 30), 0, 1)
    across, _ = _turned(rng, shape)
    waves = np.sin(across / rng.uniform(1.5, 3) + 0.6 * _smooth(rng, shape, 12))
    glint = rng.uniform(0, 1) ** 2 * 0.16
    sun = np.clip(1 + 0.3 * _smooth(rng, shape, 35) + 0.05 * waves, 0, 2)
    return _mixed(WATER, SEDIMENT, muddy) * (1 + 0.03 * waves) + glint * sun


def _missing(rng: np.random.Generator, shape: Shape) -> npt.NDArray[np.bool_]:
    """Where there are no values: beyond the edge of the swath, and under clouds."""
    missing = np.zeros(shape, np.bool_)
    if rng.random() < 0.3:
        across, _ = _turned(rng, shape)
        missing |= across > np.quantile(across, rng.uniform(0.7, 0.97))
    if rng.random() < 0.3:
        cloud = _smooth(rng, shape, 16) + 0.4 * _smooth(rng, shape, 6)
        missing |= cloud > np.quantile(cloud, rng.uniform(0.88, 0.97))
    return missing


def _mixed(one: Floats, two: Floats, share: Floats) -> Floats:
    """Spectra, each [6] or [6, H, W], with a ``share`` [H, W] of the second."""
    first, second = (each[:, None, None] if each.ndim == 1 else each for each in (one, two))
    mixed: Floats = first * (1 - share) + second * share
    return mixed


def _turned(rng: np.random.Generator, shape: Shape) -> tuple[Floats, Floats]:
    """Coordinates [H, W] in pixels from the middle, along two axes turned by any angle."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (np.arange(size) - (size - 1) / 2 for size in shape)
    return np.add.outer(np.cos(angle) * y, np.sin(angle) * x), np.add.outer(-np.sin(angle) * y, np.cos(angle) * x)


def _strips(rng: np.random.Generator, place: Floats, least: float, most: float) -> tuple[Integers, Floats]:
    """Strips of uneven width across a coordinate: the number of each pixel's, and how far in it lies."""
    start = float(place.min()) - rng.uniform(0, most)
    widths = rng.uniform(least, most, int((float(place.max()) - start) / least) + 2)
    edges = start + np.cumsum(widths) - widths[0]
    number = np.searchsorted(edges, place, side="right") - 1
    return number, place - edges[number]


def _smooth(rng: np.random.Generator, shape: Shape, scale: float) -> Floats:
    """Noise [H, W] of deviation about 1 whose hills are about ``scale`` pixels wide."""
    rows, columns = (int(np.ceil(size / scale)) + 2 for size in shape)
    knots = rng.normal(0, 1.6, (rows, columns))
    for axis, size in enumerate(shape):
        place = np.arange(size) / scale + rng.uniform(0, 1)
        below = place.astype(np.int64)
        share = place - below
        share = share * share * (3 - 2 * share)  # no corners at the knots
        share = share[:, None] if axis == 0 else share
        knots = knots.take(below, axis) * (1 - share) + knots.take(below + 1, axis) * share
    return knots


def _write(path: Path, values: npt.NDArray[Any], place: tuple[int, int], names: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    about = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype, "nodata": 0}
    transform = gdal().Affine(METRES, 0, place[0], 0, -METRES, place[1])
    with (
        environment(),
        gdal().open(
            path,
            "w",
            crs="EPSG:32632",
            transform=transform,
            compress="deflate",
            predictor=2,
            interleave="band",
            **about,
        ) as raster,
    ):
        raster.descriptions = names
        raster.write(values)
