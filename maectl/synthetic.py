"""Photographs made of noise, so that a machine can be measured without data: they compress as real ones do."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["photographs", "picture"]

QUALITY = 88
FIRST, LAST = 2, 9  # octaves: from an eighth of the width to details of two pixels in 500
SHARES = (1.0, 0.2, 0.2)  # amplitudes of light and of the two colour differences, as in photographs of things


def photographs(
    folder: Path, count: int, size: tuple[int, int] = (375, 500), falloff: float = 0.58, seed: int = 0
) -> Path:
    """Write that many JPEG files into a new folder, and return it; by default of 43 KB each.

    With a ``falloff`` of 0.83, 2000x3000 px take 750 KB.
    """
    folder.mkdir(parents=True)
    for number in range(count):
        image = Image.fromarray(picture(np.random.default_rng([seed, number]), size, falloff))
        image.save(folder / f"{number:05d}.jpg", quality=QUALITY)
    return folder


def picture(generator: np.random.Generator, size: tuple[int, int], falloff: float) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3]: noise whose amplitude falls by 2^falloff an octave, as in nature, and little of it colour."""
    height, width = size
    values = np.full((3, height, width), 127.0, np.float32)
    for octave in range(FIRST, LAST):
        grid = (max(2, height * 2**octave // 500), max(2, width * 2**octave // 500))
        noise = generator.normal(0, 132 / 2 ** (falloff * octave), (3, *grid)).astype(np.float32)
        for channel, coarse, share in zip(values, noise, SHARES, strict=True):
            channel += share * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    differences = np.moveaxis(values, 0, -1).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(differences, "YCbCr").convert("RGB"))
