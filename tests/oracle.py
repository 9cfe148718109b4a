"""The masked autoencoder written out in float64 numpy from the equations alone: what mae.py must equal.

He et al. 2021 (section 3 and appendix A.1) on the pre-norm transformer of Dosovitskiy et al. 2020, every step
the long way: all patches are embedded, tokens are put back in order, the decoder runs on the whole image.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
erf = np.vectorize(math.erf, otypes=[np.float64])


class Truth(NamedTuple):
    prediction: Array  # [N, L, P], at every patch
    mask: Array  # [N, L], 1 = removed
    loss: float
    loss_sum: float
    counted: int
    target: Array  # [N, L, P]


def patchify(images: Array, patch: tuple[int, ...]) -> Array:
    """[N, C, *S] -> [N, L, P], one patch at a time; the channel varies fastest within a patch."""
    grid = [size // p for size, p in zip(images.shape[2:], patch, strict=True)]
    patches = []
    for place in np.ndindex(*grid):
        window = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True))
        patches.append(np.moveaxis(images[(..., *window)], 1, -1).reshape(len(images), -1))
    return np.stack(patches, axis=1)


def layer_norm(x: Array, w: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def block(x: Array, w: dict[str, Array], name: str, heads: int) -> Array:
    n, tokens, width = x.shape
    qkv = linear(layer_norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv")
    q, k, v = np.moveaxis(qkv.reshape(n, tokens, 3, heads, width // heads), 2, 0)
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(width // heads)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, tokens, width)
    x = x + linear(mixed, w, f"{name}.attn.proj")
    hidden = linear(layer_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
    hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
    return x + linear(hidden, w, f"{name}.mlp.fc2")


def stack(x: Array, w: dict[str, Array], name: str, heads: int) -> Array:
    depth = 1 + max(int(key.split(".")[1]) for key in w if key.startswith(f"{name}."))
    for i in range(depth):
        x = block(x, w, f"{name}.{i}", heads)
    return x


def targets(patches: Array, valid: NDArray[np.bool_], norm_pix: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Target [N, L, P] and which patches [N, L] have enough valid values to count."""
    target, counts = patches.copy(), np.zeros(patches.shape[:2], bool)
    for place in np.ndindex(*counts.shape):
        known = patches[place][valid[place]]
        counts[place] = len(known) >= (max(2, patches.shape[-1] / 2) if norm_pix else 2)
        if norm_pix and len(known) < 2:
            target[place] = 0.0
        elif norm_pix:
            target[place] = (patches[place] - known.mean()) / np.sqrt(known.var(ddof=1) + 1e-6)
    return target, counts


def mae(
    w: dict[str, Array],
    images: Array,
    noise: Array,
    patch: tuple[int, ...],
    heads: int,
    decoder_heads: int,
    norm_pix: bool,
    mask_ratio: float = 0.75,
    valid: NDArray[np.bool_] | None = None,
) -> Truth:
    valid = np.ones((len(images), *images.shape[2:]), bool) if valid is None else valid
    everywhere = np.broadcast_to(valid[:, None], images.shape)
    patches, patches_valid = patchify(np.where(everywhere, images, 0.0), patch), patchify(everywhere, patch)
    n, length = noise.shape
    keep = int(round(length * (1 - mask_ratio), 6))
    order = np.argsort(noise, axis=1, kind="stable")
    mask = np.ones((n, length))
    np.put_along_axis(mask, order[:, :keep], 0.0, axis=1)

    kernel = np.moveaxis(w["patch_embed.proj.weight"], 1, -1).reshape(len(w["patch_embed.proj.bias"]), -1)
    tokens = patches @ kernel.T + w["patch_embed.proj.bias"] + w["pos_embed"][:, 1:]
    visible = np.take_along_axis(tokens, order[:, :keep, None], axis=1)
    cls = np.repeat(w["cls_token"] + w["pos_embed"][:, :1], n, axis=0)
    latent = stack(np.concatenate([cls, visible], axis=1), w, "blocks", heads)
    latent = linear(layer_norm(latent, w, "norm"), w, "decoder_embed")

    whole = np.repeat(np.repeat(w["mask_token"], length, axis=1), n, axis=0)
    np.put_along_axis(whole, order[:, :keep, None], latent[:, 1:], axis=1)
    x = np.concatenate([latent[:, :1], whole], axis=1) + w["decoder_pos_embed"]
    x = layer_norm(stack(x, w, "decoder_blocks", decoder_heads), w, "decoder_norm")
    prediction = linear(x, w, "decoder_pred")[:, 1:]

    target, counts = targets(patches, patches_valid, norm_pix)
    squares = np.where(patches_valid, (prediction - target) ** 2, 0.0).sum(-1)
    losses = squares / np.maximum(patches_valid.sum(-1), 1)
    counted = (mask == 1) & counts
    loss_sum = float(losses[counted].sum())
    return Truth(prediction, mask, loss_sum / max(1, counted.sum()), loss_sum, int(counted.sum()), target)
