"""The pictures: values as colours, panels side by side under titles, held-out samples.

Shapes: values [C, H, W], or [C, D, H, W], shown by its three orthogonal middle slices; pictures uint8 RGB [H, W, 3].
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from maectl.checkpoint import Config
from maectl.dataset import Batch, normalise
from maectl.mae import MaskedAutoencoder
from maectl.stats import Normalizer
from maectl.tiling import places, predict

__all__ = ["LEAK", "error_panel", "font", "levels", "panel", "sheet", "training_samples", "words"]

SAMPLES = 6  # images of a batch that are shown while training
SMALLEST, LARGEST = 256, 512  # px: a panel's longer side is enlarged to about the first, shrunk to the second
LEAK = "patch mean and deviation taken from the original"  # said wherever norm_pix_loss predictions are shown
LOOKED_AT = 1 << 20  # pixels that percentiles are taken from
TRUE_COLOURS = (  # what red, green and blue are called; b4, b3, b2 are Sentinel-2's and Landsat 8's
    ("red", "green", "blue"), ("r", "g", "b"), ("tci_r", "tci_g", "tci_b"), ("b04", "b03", "b02"), ("b4", "b3", "b2"),
)  # fmt: skip
PAPER, INK, GAP = (255, 255, 255), (32, 32, 32), 8
HATCH = (np.array((186, 186, 186), np.uint8), np.array((142, 142, 142), np.uint8))
INVALID = np.array((90, 90, 110), np.uint8)
HEAT = np.array([(0, 0, 0), (58, 10, 90), (150, 30, 95), (222, 75, 50), (250, 165, 30), (255, 255, 190)], float)
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]
Levels = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def levels(values: Values, config: Config, valid: Bools | None = None) -> Levels:
    """Which value of each channel of an image [C, *S] is shown black, which white: [C] twice.

    ``display.range`` of the run's recipe; by default 8-bit values are shown as they are, others from their
    channel's 0.5 to its 99.5 % percentile, in the data set, or where each image is normalised by itself, in it.
    """
    count = len(values)
    if config.display.range is not None:
        return np.full(count, config.display.range[0]), np.full(count, config.display.range[1])
    if config.dtype == "uint8":
        return np.zeros(count), np.full(count, 255.0)
    if config.normalizer.image:
        inside = values.reshape(count, -1) if valid is None or not valid.any() else values[:, valid]
        low, high = np.nanpercentile(inside[:, :: max(1, inside.shape[1] // LOOKED_AT)], (0.5, 99.5), axis=1)
        return low, high
    return np.array(config.statistics["p0_5"]), np.array(config.statistics["p99_5"])


def colours(values: Values, config: Config, shown: Levels | None = None) -> Bytes:
    """Values [C, H, W] in the images' unit as RGB, by ``display.channels`` of the run's recipe.

    By default one or two channels in grey (the first), more by those that are called red, green, blue, or the first
    three.
    """
    chosen = config.display.channels or _seen_as(config.channels)
    low, high = (side[list(chosen)] for side in shown or levels(values, config))
    spread = np.where(high > low, high - low, 1)
    scaled = (values[list(chosen)].astype(np.float32) - low[:, None, None]) / spread[:, None, None]
    bytes_ = np.rint(255 * np.clip(np.nan_to_num(scaled), 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(np.moveaxis(bytes_, 0, -1), (*values.shape[1:], 3)))


@cache
def _seen_as(channels: tuple[str, ...]) -> tuple[int, ...]:
    """Which channels are shown."""
    names = [name.lower() for name in channels]
    for colours in TRUE_COLOURS:
        if all(names.count(name) == 1 for name in colours):
            return tuple(names.index(name) for name in colours)
    return (0, 1, 2) if len(names) > 2 else (0,)


def panel(
    values: Values,
    config: Config,
    hidden: Bools | None = None,
    invalid: Bools | None = None,
    spacing: tuple[float, ...] | None = None,
    shown: Levels | None = None,
) -> Image.Image:
    """Values [C, *S] as a panel: hatched where ``hidden``, flat grey where ``invalid`` (bool [*S]).

    A volume is three slices below one another, to scale where its ``spacing`` is known. ``shown`` are the `levels`
    that panels beside one another share.
    """
    shown = shown or levels(values, config)
    return _drawn(lambda plane: colours(plane, config, shown), values, hidden, invalid, spacing)


def error_panel(
    error: Values,
    top: float,
    hidden: Bools | None = None,
    invalid: Bools | None = None,
    spacing: tuple[float, ...] | None = None,
) -> Image.Image:
    """An error [*S] as a panel: black is 0, pale yellow ``top`` or more."""
    return _drawn(lambda plane: _heat(plane[0] / top), error[None], hidden, invalid, spacing)


def _drawn(
    paint: Callable[[Values], Bytes],
    values: Values,
    hidden: Bools | None,
    invalid: Bools | None,
    spacing: tuple[float, ...] | None,
) -> Image.Image:
    """What `panel` says, of pictures that ``paint`` makes of a plane [C, H, W]."""
    if values.ndim == 3:
        return _finished(Image.fromarray(paint(values)), hidden, invalid)
    steps = np.array(spacing or (1.0, 1.0, 1.0))
    sides = np.array(values.shape[1:]) * steps / steps.min()  # in the finest voxels
    scale = np.clip(sides.max(), SMALLEST, LARGEST / 1.5) / sides.max()
    slices = []
    for axis in range(3):
        middle = values.shape[1 + axis] // 2
        plane = Image.fromarray(paint(values.take(middle, 1 + axis)))
        height, width = (max(1, round(float(side))) for side in np.delete(sides, axis) * scale)
        smaller = width < plane.width or height < plane.height
        plane = plane.resize((width, height), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST)
        slices.append(
            _marked(plane, *(None if each is None else each.take(middle, axis) for each in (hidden, invalid)))
        )
    stack = Image.new(
        "RGB", (max(each.width for each in slices), sum(each.height + GAP // 2 for each in slices)), PAPER
    )
    y = 0
    for each in slices:
        stack.paste(each, (0, y))
        y += each.height + GAP // 2
    return stack


def sheet(
    titles: Sequence[str],
    rows: Sequence[Sequence[Image.Image]],
    notes: Sequence[str] = (),
    scale: float | None = None,
) -> Bytes:
    """Rows of panels under a title each, with lines of notes below.

    A title may have several lines, of which the first is the largest. With ``scale`` the last title gets a
    colour bar from 0 to it.
    """
    heads = [_head(title, scale if column == len(titles) - 1 else None) for column, title in enumerate(titles)]
    widths = [max(head.width, *(row[column].width for row in rows)) for column, head in enumerate(heads)]
    top = max(head.height for head in heads)
    foot = [words(note, 13) for note in notes]
    width = max(GAP + sum(each + GAP for each in widths), *(2 * GAP + note.width for note in foot), 0)
    height = top + GAP + sum(max(each.height for each in row) + GAP for row in rows)
    canvas = Image.new("RGB", (width, height + sum(note.height + GAP // 2 for note in foot)), PAPER)
    y = GAP // 2
    for number, row in enumerate([heads, *rows]):
        x = GAP
        for each, cell in zip(row, widths, strict=True):
            canvas.paste(each, (x, y))
            x += cell + GAP
        y = top + GAP if number == 0 else y + max(each.height for each in row) + GAP
    for note in foot:
        canvas.paste(note, (GAP, y))
        y += note.height + GAP // 2
    return np.array(canvas)


@torch.no_grad()
def training_samples(
    model: MaskedAutoencoder,
    batch: Batch,
    normalizer: Normalizer,
    config: Config,
    mask_ratio: float,
    device: torch.device,
) -> Bytes:
    """A batch's first six images (three volumes), a row each: original, masked by its noise, predicted, pasted."""
    few = slice(0, SAMPLES if batch.images.ndim == 4 else SAMPLES // 2)
    spacing = None if config.patch is None else tuple(np.divide(config.patch, config.model["patch_size"]))
    own = few if len(batch.mean) > 1 else slice(None)
    valid = None if batch.valid is None else batch.valid[few]
    part = batch._replace(images=batch.images[few], valid=valid, mean=batch.mean[own], std=batch.std[own])
    images, valid = normalise(part, normalizer, device)
    predicted, mask = predict(model, images, batch.noise[few].to(device), mask_ratio, valid)
    extra = (1,) * (images.ndim - 2)
    mean, std = (each.to(device).view(*each.shape, *extra) for each in (part.mean, part.std))
    restored = (predicted * std + mean).cpu().numpy()
    removed = mask[..., None].expand(-1, -1, model.decoder_pred.out_features).float()
    hidden = model.unpatchify(removed)[:, 0].bool().cpu().numpy()  # [N, *S]
    rows = []
    for number, original in enumerate(part.images.numpy()):
        gone = hidden[number]
        bad = None if part.valid is None else ~part.valid[number].numpy()
        pasted = np.where(gone, restored[number], original)
        shown = levels(original, config, None if bad is None else ~bad)
        rows.append(
            [
                panel(original, config, None, bad, spacing, shown),
                panel(original, config, gone, bad, spacing, shown),
                panel(restored[number], config, ~gone, bad, spacing, shown),
                panel(pasted, config, None, bad, spacing, shown),
            ]
        )
    note = [LEAK] if config.model["norm_pix_loss"] else []
    return sheet(("original", "masked", "reconstruction", "visible pasted"), rows, note)


def _finished(image: Image.Image, hidden: Bools | None, invalid: Bools | None) -> Image.Image:
    """Brought to a panel's size, then hatched and greyed (so that the hatch is as coarse everywhere)."""
    longest = max(image.size)
    if longest > LARGEST:
        size = tuple(max(1, round(side * LARGEST / longest)) for side in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BOX, reducing_gap=3)
    elif longest < SMALLEST:
        times = round(SMALLEST / longest)
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return _marked(image, hidden, invalid)


def _marked(image: Image.Image, hidden: Bools | None, invalid: Bools | None) -> Image.Image:
    pixels = np.array(image)
    if hidden is not None:
        lines = np.indices(pixels.shape[:2]).sum(axis=0)[..., None] % 8 < 2
        hatched = np.where(lines, HATCH[1], HATCH[0])
        pixels = np.where(_nearest(hidden, pixels.shape[:2])[..., None], hatched, pixels)
    if invalid is not None:
        pixels = np.where(_nearest(invalid, pixels.shape[:2])[..., None], INVALID, pixels)
    return Image.fromarray(pixels)


def _nearest(mask: Bools, size: tuple[int, ...]) -> Bools:
    rows, columns = places(size, mask.shape)
    found: Bools = mask[rows[:, None], columns]
    return found


def _heat(share: Values) -> Bytes:
    place = np.clip(np.nan_to_num(share), 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(place, stops, channel) for channel in HEAT.T], axis=-1).astype(np.uint8)


def _head(title: str, scale: float | None) -> Image.Image:
    """A title's lines above one another, with a colour bar where a scale is given."""
    lines = [words(line, 16 if number == 0 else 12) for number, line in enumerate(title.split("\n"))]
    if scale is not None:
        ends = words("0", 12), words(f"{scale:.4g} or more", 12)
        bar = Image.new("RGB", (ends[0].width + 120 + ends[1].width, ends[1].height), PAPER)
        bar.paste(ends[0], (0, 0))
        bar.paste(Image.fromarray(_heat(np.broadcast_to(np.linspace(0, 1, 110), (10, 110)))), (ends[0].width + 3, 3))
        bar.paste(ends[1], (ends[0].width + 118, 0))
        lines.append(bar)
    head = Image.new("RGB", (max(line.width for line in lines), sum(line.height for line in lines)), PAPER)
    y = 0
    for line in lines:
        head.paste(line, (0, y))
        y += line.height
    return head


def words(text: str, size: int) -> Image.Image:
    """One line of text as a picture, its letters ``size`` px high."""
    letters = font(size)
    image = Image.new("RGB", (max(1, int(np.ceil(letters.getlength(text)))), round(1.3 * size)), PAPER)
    ImageDraw.Draw(image).text((0, 0), text, fill=INK, font=letters)
    return image


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters of all pictures."""
    return ImageFont.load_default(size=size)
