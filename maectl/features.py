"""Images to frozen features: the whole image, once, through the encoder with nothing removed.

Shapes: N images, C channels, S the model's spatial size, D the encoder's width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maectl import device
from maectl.adapter import Pixels
from maectl.checkpoint import Config
from maectl.dataset import Batch, normalise
from maectl.errors import Unreadable
from maectl.mae import MaskedAutoencoder
from maectl.resize import resize
from maectl.stats import moments
from maectl.store import Reader, in_order

__all__ = ["Whole", "central", "features", "image_statistics", "load_whole", "thumbnails"]

BATCH = 128
Floats = npt.NDArray[np.float32]
Advance = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Whole:
    """Images at the model's size, still in their unit: what every feature is computed from.

    images [N, C, *S] uint8 or float32; valid bool [N, *S] or None; mean and std [N or 1, C]
    """

    images: npt.NDArray[np.generic]
    valid: npt.NDArray[np.bool_] | None
    mean: Floats
    std: Floats

    def batches(self) -> Iterator[Batch]:
        """In batches the loader's consumers understand (no mask noise)."""
        own = len(self.mean) > 1
        for first in range(0, len(self.images), BATCH):
            part = slice(first, first + BATCH)
            valid = None if self.valid is None or self.valid[part].all() else torch.from_numpy(self.valid[part])
            yield Batch(
                images=torch.from_numpy(self.images[part]),
                valid=valid,
                noise=torch.empty(0),
                mean=torch.from_numpy(self.mean[part] if own else self.mean),
                std=torch.from_numpy(self.std[part] if own else self.std),
                rows=np.empty(0, np.int64),
            )


def central(extent: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    """The largest central window of an image that has the model's proportions."""
    scale = min(e / s for e, s in zip(extent, size, strict=True))
    sides = [max(1, min(e, round(s * scale))) for e, s in zip(extent, size, strict=True)]
    return tuple(slice((e - side) // 2, (e - side) // 2 + side) for e, side in zip(extent, sides, strict=True))


def load_whole(
    reader: Reader, config: Config, rows: npt.NDArray[np.int64], workers: int, advance: Advance
) -> tuple[Whole, list[tuple[int, str]]]:
    """The central window of every row's image, resized to the model's size.

    Also (place in ``rows``, reason) of those that cannot be read; `Whole` is without them.
    """
    size = tuple(int(side) for side in config.model["image_size"])
    normalizer = config.normalizer
    mean = np.array(normalizer.mean)

    def one(row: int) -> tuple[Pixels, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None] | str:
        try:
            pixels = reader.read(int(row))
        except Unreadable as error:
            return str(error)
        clip = None if normalizer.clip is None else (normalizer.clip[0][0], normalizer.clip[1][0])
        own = moments(pixels, clip) if normalizer.image else None
        window = central(pixels.values.shape[1:], size)
        valid = None if pixels.valid is None else pixels.valid[window]
        cut = Pixels(pixels.values[(slice(None), *window)], valid)
        return resize(cut, size, mean if own is None else own[0]), own

    kinds = {reader.index.dtype(int(row)) for row in rows}
    dtype = np.uint8 if kinds == {np.dtype(np.uint8)} else np.float32
    images = np.empty((len(rows), len(mean), *size), dtype)
    valid = np.ones((len(rows), *size), np.bool_)
    constants: list[tuple[Any, Any]] = []
    bad: list[tuple[int, str]] = []
    for done, found in enumerate(in_order(one, rows, device.loader_threads(workers))):
        advance(done + 1, len(rows))
        if isinstance(found, str):
            bad.append((done, found))
            continue
        pixels, own = found
        images[done] = pixels.values
        if pixels.valid is not None:
            valid[done] = pixels.valid
        if own is not None:
            constants.append(own)
    good = np.setdiff1d(np.arange(len(rows)), [place for place, _ in bad])
    images, valid = (images, valid) if not bad else (images[good], valid[good])
    constants = constants or [(normalizer.mean, normalizer.std)]
    means, stds = (np.array(each, np.float32) for each in zip(*constants, strict=True))
    return Whole(images, None if valid.all() else valid, means, stds), bad


@torch.inference_mode()
def features(
    model: MaskedAutoencoder, config: Config, whole: Whole, where: torch.device, advance: Advance
) -> dict[str, Floats]:
    """Frozen features of every image: ``cls`` [N, D], the class token, and ``mean`` [N, D], of the patch tokens.

    Computed in float32, whatever the training's precision, so that they do not depend on the machine's.
    """
    model = model.to(where).eval()
    cls, mean = [], []
    for batch in whole.batches():
        tokens = model.encode(*normalise(batch, config.normalizer, where))  # [B, 1 + L, D]
        cls.append(tokens[:, 0].cpu().numpy())
        mean.append(tokens[:, 1:].mean(dim=1).cpu().numpy())
        advance(BATCH * len(cls), len(whole.images))
    return {"cls": np.concatenate(cls), "mean": np.concatenate(mean)}


def image_statistics(whole: Whole) -> Floats:
    """float32 [N, 4C]: mean, deviation, minimum and maximum a channel over the valid pixels."""
    out = []
    for number, image in enumerate(whole.images):
        flat = image.reshape(len(image), -1) if whole.valid is None else image[:, whole.valid[number]]
        flat = flat.astype(np.float64) if flat.shape[1] else np.zeros((len(image), 1))
        out.append(np.concatenate((flat.mean(axis=1), flat.std(axis=1), flat.min(axis=1), flat.max(axis=1))))
    return np.array(out, np.float32)


def thumbnails(whole: Whole, config: Config, side: int = 16) -> Floats:
    """float32 [N, C·side²]: each image shrunk to ``side`` a side, its values in order."""
    size = tuple(min(side, extent) for extent in whole.images.shape[2:])
    fill = np.array(config.normalizer.mean)
    small = [resize(Pixels(image.astype(np.float32)), size, fill).values.ravel() for image in whole.images]
    return np.array(small, np.float32)
