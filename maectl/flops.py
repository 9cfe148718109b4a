"""What a training step costs, counted: 1 multiplication and addition is 2 FLOP; products of matrices alone count.

The convention of published figures ("standard") is the forward pass of the reference's model with attention's
two products, times three, for the backward pass takes two products for each. maectl computes less of the same
model (`maectl.mae`), so its own count is lower; a model's FLOP utilisation is by convention of the standard count.

L patches, K of them visible, R removed, P values a patch; D width of the encoder, d of the decoder.
"""

import time
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch

from maectl import device
from maectl.mae import kept

__all__ = ["Flops", "product_rate", "step"]


class Flops(NamedTuple):
    """FLOP of one training step (forward and backward) an image."""

    standard: float  # the reference's work: the convention
    computed: float  # what maectl computes
    full_tokens: float  # the standard model with all L tokens through the encoder, as BERT would


def step(model: Mapping[str, Any], mask_ratio: float, batch: int = 1) -> Flops:
    """Of a model by the arguments of `maectl.mae.MaskedAutoencoder`; ``batch`` images at once share some work."""
    patches = prod(size // p for size, p in zip(model["image_size"], model["patch_size"], strict=True))
    visible = kept(patches, mask_ratio)
    values = model["channels"] * prod(model["patch_size"])
    wide, narrow = model["width"], model["decoder_width"]
    encoder = model["depth"] * _block(visible + 1, wide)
    between = _linear(visible + 1, wide, narrow)
    rest = (
        _linear(patches, values, wide)  # the reference embeds all patches, and sorts afterwards
        + model["decoder_depth"] * _block(patches + 1, narrow)
        + _linear(patches + 1, narrow, values)
    )
    everything = model["depth"] * _block(patches + 1, wide)
    embedding = _linear(visible, values, wide)
    computed = encoder + between + _decoder(model, patches, patches - visible, values, batch)
    return Flops(
        standard=3 * (encoder + between + rest),
        computed=3 * computed + 2 * embedding,  # nobody asks for a gradient of the images
        full_tokens=3 * (everything + between + rest),  # the convention of published ratios: one count of the decoder
    )


def _decoder(model: Mapping[str, Any], patches: int, removed: int, values: int, batch: int) -> float:
    """The forward pass of maectl's decoder an image, head included."""
    width, depth, tokens = model["decoder_width"], model["decoder_depth"], patches + 1
    first = _linear(tokens - removed, width, 3 * width)  # of class token and visible patches
    first += _linear(patches, width, 3 * width) / batch  # mask tokens, once a position for all images
    projections = first + (depth - 1) * _linear(tokens, width, 3 * width)
    after = (depth - 1) * _after(tokens, tokens, width) + _after(removed, tokens, width)
    total: float = projections + after + _linear(removed, width, values)
    return total


def _linear(tokens: int, inputs: int, outputs: int) -> float:
    return 2.0 * tokens * inputs * outputs


def _block(tokens: int, width: int) -> float:
    """A transformer block: 24 T D² + 4 T² D."""
    return _linear(tokens, width, 3 * width) + _after(tokens, tokens, width)


def _after(queries: int, tokens: int, width: int) -> float:
    """What follows q, k and v in a block: q kᵀ, its product with v, projection, an MLP four times as wide."""
    return 4.0 * queries * tokens * width + _linear(queries, width, width) + 2 * _linear(queries, width, 4 * width)


def product_rate(where: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP a second of a product of square matrices on a device: the best of several sizes."""
    sizes = (2048, 4096, 8192) if where.type == "cuda" else (512, 1024, 2048)
    many = 20 if where.type == "cuda" else 1  # launched at once, lest launching be what is measured
    best = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
        _products(left, right, 1)
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds / len(sizes):
            best = max(best, 2 * size**3 * many / _products(left, right, many))
    return best


def _products(left: torch.Tensor, right: torch.Tensor, many: int) -> float:
    """Seconds that so many products take."""
    device.synchronise(left.device)
    begun = time.perf_counter()
    for _ in range(many):
        left @ right
    device.synchronise(left.device)
    return time.perf_counter() - begun
