"""A small labelled data set for a first look: six patterns, drawn, seeded, saved as real JPEG and PNG files.

A class is a spatial structure and nothing else. Each picture is a smooth field cut at a random quantile into
two colours near the same pair, so ink, colours, contrast, lighting, noise, size, scale, angle and file format
are spread alike over the classes: an image's mean, contrast or histogram tells next to nothing of its class.
The structures are large beside a patch, so that a small model learns to continue them within a minute.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from maectl_natural.encode import encode
from maectl_natural.pillow import Array, Raster

__all__ = ["draw_all"]

TRAIN, TEST = 100, 34  # images a class
TRUNCATED = "train/stripes/truncated.jpg"
_SIDES = (64, 161)  # pixels
_PERIODS = (1.0, 2.0)  # of the pattern along the shorter side
_PAIR = ((60, 50, 80), (200, 190, 160))  # dark and light
_ORIENTATION = 0x0112  # EXIF tag

Field = Callable[[Array, Array, np.random.Generator], Array]


def draw_all(folder: Path, seed: int) -> None:
    """Write ``folder/train/<class>`` and ``folder/test/<class>``: 600 and 204 pictures and one cut short.

    Most are colour JPEG; a tenth are grey PNG, a few have transparent corners, one is turned by EXIF.
    """
    for split, count in (("train", TRAIN), ("test", TEST)):
        for label, name in enumerate(_FIELDS):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                rng = np.random.default_rng([seed, split == "test", label, index])
                _save(_picture(_FIELDS[name], rng), folder / split / name / f"{index:03d}", index, rng)
    whole = (folder / "train" / "stripes" / "000.jpg").read_bytes()
    (folder / TRUNCATED).write_bytes(whole[: len(whole) // 2])


def _picture(field: Field, rng: np.random.Generator) -> Array:
    """One picture [H, W, 3] uint8."""
    height, width = rng.integers(*_SIDES, 2)
    rows, columns = np.mgrid[:height, :width] / min(height, width) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    turn = 2 * np.pi * rng.uniform(*_PERIODS) * np.exp(1j * angle)
    plane = turn * (columns + 1j * rows + _wave(rows, columns, rng, 0.02))
    values = field(plane.real, plane.imag, rng)
    ink = 1 / (1 + np.exp((np.quantile(values, rng.uniform(0.4, 0.6)) - values) * 8 / values.std()))
    dark, light = _colours(rng)
    image = dark + ink[..., None] * (light - dark)
    image += _wave(rows, columns, rng, 25.0).real[..., None]  # lighting
    image += rng.normal(0, rng.uniform(2, 14), image.shape)
    drawn: Array = np.clip(np.rint(image), 0, 255)
    return drawn.astype(np.uint8)


def _wave(rows: Array, columns: Array, rng: np.random.Generator, size: float) -> Array:
    """A slow random complex wave of about this amplitude."""
    slope = rng.normal(0, 2.5, (2, 2))
    phase = rng.uniform(0, 2 * np.pi, 2)
    real, imaginary = (np.sin(slope[i, 0] * rows + slope[i, 1] * columns + phase[i]) for i in range(2))
    wave: Array = size * (real + 1j * imaginary)
    return wave


def _colours(rng: np.random.Generator) -> Array:
    """The dark and the light colour [2, 3] of one picture."""
    return np.asarray(_PAIR + rng.normal(0, 12, (2, 3)))


def _save(image: Array, path: Path, index: int, rng: np.random.Generator) -> None:
    if index % 10 == 7:
        grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
        path.with_suffix(".png").write_bytes(encode("png", Raster(grey)))
    elif index % 25 == 13:
        path.with_suffix(".png").write_bytes(encode("png", Raster(image, _corners(image))))
    else:
        exif = Image.Exif()
        if index == 1:
            exif[_ORIENTATION] = 6
        quality = int(rng.integers(70, 96))
        Image.fromarray(image).save(path.with_suffix(".jpg"), quality=quality, exif=exif)


def _corners(image: Array) -> Array:
    """Alpha [H, W]: transparent beyond the ellipse that touches the edges, but for a margin."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.where(rows**2 + columns**2 < 1.4, 255, 0).astype(np.uint8)


def _stripes(x: Array, y: Array, rng: np.random.Generator) -> Array:
    return np.asarray(np.sin(x))


def _checks(x: Array, y: Array, rng: np.random.Generator) -> Array:
    return np.asarray(np.sin(x) * np.sin(y))


def _dots(x: Array, y: Array, rng: np.random.Generator) -> Array:
    side = np.sqrt(3) / 2
    return np.asarray(np.cos(x) + np.cos(0.5 * x + side * y) + np.cos(0.5 * x - side * y))


def _rings(x: Array, y: Array, rng: np.random.Generator) -> Array:
    shift = rng.normal(0, 4, 2)
    return np.asarray(np.sin(np.hypot(x - shift[0], y - shift[1])))


def _rays(x: Array, y: Array, rng: np.random.Generator) -> Array:
    shift = rng.normal(0, 4, 2)
    return np.asarray(np.sin(rng.integers(8, 15) * np.arctan2(y - shift[1], x - shift[0])))


def _maze(x: Array, y: Array, rng: np.random.Generator) -> Array:
    angles, phases = rng.uniform(0, 2 * np.pi, (2, 16))
    waves = (np.sin(x * np.cos(a) + y * np.sin(a) + p) for a, p in zip(angles, phases, strict=True))
    return sum(waves, np.zeros_like(x))


_FIELDS: dict[str, Field] = {
    "checks": _checks,
    "dots": _dots,
    "maze": _maze,
    "rays": _rays,
    "rings": _rings,
    "stripes": _stripes,
}
