"""The picture of a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from maectl.panels import GAP, INK, PAPER, font, words

__all__ = ["confusion"]

BLUE = np.array((8, 64, 130), float)


def confusion(matrix: npt.NDArray[Any], classes: Sequence[str], path: Path) -> None:
    """Write a confusion matrix [K, K] (rows: the truth) as a PNG, each row shaded by its shares.

    Counts are written where they fit. Raises OSError where ``path`` cannot be written.
    """
    count = len(classes)
    cell = int(np.clip(960 // count, 6, 56))
    size = int(np.clip(0.62 * cell, 9, 15))
    names = [name if len(name) <= 28 else f"{name[:27]}…" for name in classes] if cell >= 12 else [""] * count
    labels = [words(name, size) for name in names]
    left = GAP + 20 + max(label.width for label in labels) + GAP
    above = GAP + 20 + max(label.width for label in labels) + GAP
    side = count * cell
    picture = Image.new("RGB", (left + side + 2 * GAP, above + side + 2 * GAP), PAPER)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shade = np.rint(255 + shares[..., None] * (BLUE - 255)).astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    picture.paste(Image.fromarray(shade), (left, above))
    draw = ImageDraw.Draw(picture)
    for number, label in enumerate(labels):
        middle = number * cell + (cell - label.height) // 2
        picture.paste(label, (left - GAP // 2 - label.width, above + middle))
        turned = label.rotate(90, expand=True)
        picture.paste(turned, (left + middle, above - GAP // 2 - turned.height))
    for edge in range(count + 1):
        draw.line((left, above + edge * cell, left + side, above + edge * cell), fill=(225, 225, 225))
        draw.line((left + edge * cell, above, left + edge * cell, above + side), fill=(225, 225, 225))
    _counts(draw, matrix, shares, (left, above), cell)
    picture.paste(words("predicted class", 15), (left, GAP // 2))
    picture.paste(words("true class", 15).rotate(90, expand=True), (GAP // 2, above))
    picture.save(path, "PNG")


def _counts(
    draw: ImageDraw.ImageDraw,
    matrix: npt.NDArray[Any],
    shares: npt.NDArray[Any],
    corner: tuple[int, int],
    cell: int,
) -> None:
    """The counts that are not 0, in the largest letters that fit all of them, if 8 px do."""
    widest = max((f"{int(each)}" for each in matrix.ravel()), key=len)
    fitting = [size for size in range(15, 7, -1) if font(size).getlength(widest) <= cell - 3 and size <= cell - 4]
    if not fitting:
        return
    for row, column in np.argwhere(matrix):
        place = (corner[0] + (column + 0.5) * cell, corner[1] + (row + 0.5) * cell)
        ink = PAPER if shares[row, column] > 0.5 else INK
        draw.text(place, f"{int(matrix[row, column])}", fill=ink, font=font(fitting[0]), anchor="mm")
