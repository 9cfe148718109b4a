"""Resize crops with antialiasing, and their validity with them.

Values [C, *S] keep their dtype where torch can resize it (uint8) and become float32 otherwise; the filter is
bicubic in 2-D (as the reference's RandomResizedCrop) and linear in 3-D, widened by the scale when shrinking.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from maectl.adapter import Pixels

__all__ = ["REACH", "fitted", "pad", "resample", "resize", "tensor"]

SLACK = 1e-6  # pixels: so that rounding does not decide whether a centre lies on the rim
PACKED = 4  # channels of bytes up to which torch resizes in integers, any layout alike
REACH = 2  # pixels either side that bicubic reaches; linear reaches one

Bools = npt.NDArray[np.bool_]


def resize(pixels: Pixels, size: tuple[int, ...], fill: npt.NDArray[np.float64]) -> Pixels:
    """A crop at the model's size: uint8 stays uint8, the rest becomes float32.

    Invalid pixels are set to ``fill`` [C] (the channels' mean) first; an output pixel is valid only if every
    input pixel its filter reaches was.
    """
    values, valid = pixels.values, pixels.valid
    values = values if values.dtype == np.uint8 else values.astype(np.float32, copy=False)
    if valid is not None:
        filling = fill.reshape(-1, *[1] * (values.ndim - 1))
        values = np.where(valid, values, np.rint(filling) if values.dtype == np.uint8 else filling)
        values = values.astype(pixels.values.dtype if pixels.values.dtype == np.uint8 else np.float32)
    if values.shape[1:] == size:
        return Pixels(values, valid)
    if valid is not None:
        valid = _resized_validity(valid, size)
    return Pixels(_bicubic(values, size) if len(size) == 2 else _linear(values, size), valid)


def resample(
    pixels: Pixels, starts: tuple[float, ...], scales: tuple[float, ...], size: tuple[int, ...],
    fill: npt.NDArray[np.float64], *, smooth: bool = True,
) -> Pixels:  # fmt: skip
    """A part of a 2-D image at another scale: float32, or of bytes uint8.

    Pixel j of the result covers [start + j / scale, start + (j + 1) / scale) of the image along each axis: several
    parts of one lattice fit together, which `resize` of each would not. Bicubic, or where not ``smooth`` linear.
    Result pixels with their centre outside of the image are invalid and have the value ``fill`` [C], and so have
    pixels whose filter reaches an invalid one; beyond its rim an image goes on as its last pixels.
    """
    filled = resize(pixels, pixels.values.shape[1:], fill)
    values, valid = filled.values, filled.valid
    reach = [int(np.ceil(REACH * max(1.0, 1 / scale))) + 1 for scale in scales]
    inside = []
    for start, scale, out, extent in zip(starts, scales, size, values.shape[1:], strict=True):
        first = max(0, int(np.ceil(-start * scale - 0.5 - SLACK)))
        inside.append(slice(first, max(first, min(out, int(np.ceil((extent - start) * scale - 0.5 - SLACK))))))
    result = np.broadcast_to(fill.reshape(-1, 1, 1), (len(values), *size)).astype(values.dtype)
    known = np.zeros(size, np.bool_)
    counts = [side.stop - side.start for side in inside]
    if min(counts) > 0:
        box = [(s + side.start / scale + r, s + side.stop / scale + r)
               for s, side, scale, r in zip(starts, inside, scales, reach, strict=True)]  # fmt: skip
        around = [(r, r) for r in reach]
        valid = None if valid is None else np.pad(valid, around, mode="edge")
        values = np.pad(values, [(0, 0), *around], mode="edge")
        at = (inside[0], inside[1])
        result[(slice(None), *at)] = _boxed(values, box, counts, smooth)
        known[at] = True if valid is None else _boxed_validity(valid, box, counts, smooth)
    return Pixels(result, None if known.all() else known)


def _boxed(values: npt.NDArray[Any], box: list[tuple[float, float]], size: list[int], smooth: bool) -> npt.NDArray[Any]:
    """[C, *size] what lies in a box of real numbers, by Pillow's filters (torch's antialiased ones cannot begin
    between pixels)."""
    (top, bottom), (left, right) = box
    if (bottom - top, right - left) == (size[0], size[1]) and top == int(top) and left == int(left):
        return values[:, int(top) : int(bottom), int(left) : int(right)]
    filter_ = Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR
    resized = np.stack([
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize((size[1], size[0]), filter_,
                                                                      (left, top, right, bottom)))
        for channel in values
    ])  # fmt: skip
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8) if values.dtype == np.uint8 else resized


def _boxed_validity(valid: Bools, box: list[tuple[float, float]], size: list[int], smooth: bool) -> Bools:
    for axis, ((start, stop), out) in enumerate(zip(box, size, strict=True)):
        if stop - start == out and start == int(start):
            valid = valid.take(range(int(start), int(stop)), axis)
        else:
            valid = _along(valid, axis, start, (stop - start) / out, out, REACH if smooth else 1)
    return valid


def fitted(pixels: Pixels, span: tuple[int, ...], size: tuple[int, ...], fill: npt.NDArray[np.float64]) -> Pixels:
    """`resize` of a cut that is all there is of ``span`` pixels: what lies outside of it is invalid.

    The cut takes its share of ``size``, and is padded there: a span may be far larger than memory.
    """
    have = pixels.values.shape[1:]
    if have == span:
        return resize(pixels, size, fill)
    own = tuple(max(1, round(side * h / s)) if s > h else side for side, h, s in zip(size, have, span, strict=True))
    return pad(resize(pixels, own, fill), size)


def tensor(values: npt.NDArray[np.generic]) -> torch.Tensor:
    """An array as a tensor, without a copy but of one that is read-only or lies backwards in memory."""
    if not values.flags.writeable or min(values.strides, default=0) < 0:
        values = values.copy()
    return torch.from_numpy(values)


def pad(pixels: Pixels, span: tuple[int, ...]) -> Pixels:
    """A cut in the middle of ``span`` pixels, of which those outside of the cut are invalid."""
    have = pixels.values.shape[1:]
    if all(s <= h for s, h in zip(span, have, strict=True)):
        return pixels
    sides = [((s - h) // 2, s - h - (s - h) // 2) if s > h else (0, 0) for s, h in zip(span, have, strict=True)]
    valid = np.ones(have, np.bool_) if pixels.valid is None else pixels.valid
    return Pixels(np.pad(pixels.values, [(0, 0), *sides]), np.pad(valid, sides))


def _bicubic(values: npt.NDArray[np.generic], size: tuple[int, ...]) -> npt.NDArray[np.generic]:
    image = tensor(values.transpose(1, 2, 0))[None].permute(0, 3, 1, 2)
    if values.dtype != np.uint8 or len(values) > PACKED:
        # channel-last, whether it comes from the store or from a decoder: torch's two layouts may round apart
        image = image.contiguous(memory_format=torch.channels_last)
    resized = functional.interpolate(image, size=size, mode="bicubic", antialias=True)
    return np.asarray(resized[0].numpy())


def _linear(values: npt.NDArray[Any], size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    for axis, out in enumerate(size, 1):
        weights = _triangle(values.shape[axis], out)
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return values.astype(np.float32)


def _triangle(extent: int, out: int) -> npt.NDArray[np.float32]:
    """[out, extent] weights of a linear filter, as wide as the scale when shrinking."""
    scale = extent / out
    centres = (np.arange(out) + 0.5) * scale
    distance = np.abs(np.arange(extent) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.maximum(0, 1 - distance)
    normalised: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def _resized_validity(valid: Bools, size: tuple[int, ...]) -> Bools:
    """Whether all pixels under each output pixel's filter are valid, an axis at a time (the filter is a box)."""
    for axis, out in enumerate(size):
        extent = valid.shape[axis]
        if extent != out:  # else the filter is one pixel wide
            valid = _along(valid, axis, 0, extent / out, out, REACH if len(size) == 2 else 1)
    return valid


def _along(valid: Bools, axis: int, start: float, scale: float, out: int, reach: int) -> Bools:
    """Of each output pixel along an axis: it is ``scale`` wide, the first begins at ``start``."""
    extent = valid.shape[axis]
    centres, support = start + (np.arange(out) + 0.5) * scale, reach * max(scale, 1)
    low = np.clip((centres - support + 0.5).astype(int), 0, extent)
    high = np.clip((centres + support + 0.5).astype(int), 0, extent)
    bad = np.concatenate((np.zeros_like(valid.take([0], axis), int), np.cumsum(~valid, axis=axis)), axis=axis)
    found: Bools = bad.take(high, axis) == bad.take(low, axis)
    return found
