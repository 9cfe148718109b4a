"""The vision transformer's parts under timm's parameter names, each by the fastest exact path of its device.

N images, T tokens, R of them asked for, L places, D width, h heads of d = D / h, P values in a patch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maectl.errors import UsageError

__all__ = ["EPS", "Attention", "Block", "Mlp", "PatchEmbed", "Spread", "attend", "take"]

EPS = 1e-6  # of every LayerNorm


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v over heads: q [N, h, R, d], k and v [N, h, T, d] -> [N, h, R, d].

    On the CPU the backward of torch's bfloat16 flash kernel takes a third of a whole training step. Written
    out, the same attention is products of matrices, which the CPU does well; elsewhere the fused kernel wins.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [N, h, R, T]
        out: Tensor = scores.softmax(dim=-1) @ v
        return out
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention in two halves, so that a caller may compute or share less than the whole."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, R, D], k and v [N, T, D] -> [N, R, D]."""
        q, k, v = (x.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v))  # [N, h, T, d]
        out: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2020, section 3.1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, qkv: Tensor | None = None, last: int | None = None) -> Tensor:
        """Tokens x [N, T, D] -> [N, T, D], or [N, last, D]: the ``last`` tokens alone, attending to all.

        ``qkv`` [N, T, 3D] is ``attn.qkv(norm1(x))`` where the caller had a cheaper way to it.
        """
        # of all tokens, also where few are asked for: their own product would keep a second copy of its input
        q, k, v = (self.attn.qkv(self.norm1(x)) if qkv is None else qkv).chunk(3, dim=-1)
        if last is not None:
            x, q = x[:, -last:], q[:, -last:]
        x = x + self.attn(q, k, v)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Patches to tokens: a convolution's parameters, applied as a linear layer to the patches it is given."""

    def __init__(self, channels: int, patch_size: tuple[int, ...], width: int) -> None:
        super().__init__()
        convolution: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if len(patch_size) == 2 else nn.Conv3d
        self.proj = convolution(channels, width, patch_size, patch_size)  # type: ignore[arg-type]

    def forward(self, patches: Tensor) -> Tensor:
        """[..., P], pixels in (*p, channel) order -> [..., D]."""
        weight = self.proj.weight.movedim(1, -1).flatten(1)  # [D, C, *p] -> [D, P]
        return F.linear(patches, weight, self.proj.bias)


def take(rows: Tensor, ids: Tensor) -> Tensor:
    """Each image's own ids [N, R] of its rows [N, L, D] -> [N, R, D]; 8 times as fast as a gather."""
    return rows.flatten(0, 1).index_select(0, flat(ids, rows.shape[1])).view(*ids.shape, -1)


def flat(ids: Tensor, places: int) -> Tensor:
    """Ids [N, R] within images of so many places -> ids [N * R] within the batch."""
    return (ids + places * torch.arange(len(ids), device=ids.device)[:, None]).flatten()


class Spread(torch.autograd.Function):
    """Rows [L, D], one set for all images, at ids [N, R] -> [N, R, D]; no id comes twice in an image.

    Plain indexing would do, but its gradient adds up the images in the rows' own precision and, on CUDA, in
    no fixed order. Here each image writes its own rows and one sum follows: repeatable, accurate in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ids: Tensor) -> Tensor:
        """Index."""
        ctx.save_for_backward(ids)
        ctx.places = len(rows)
        return rows.index_select(0, ids.flatten()).view(*ids.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Sum over images."""
        (ids,) = ctx.saved_tensors
        own = grad.new_zeros(len(ids) * ctx.places, grad.shape[-1])  # [N * L, D]
        own.index_copy_(0, flat(ids, ctx.places), grad.flatten(0, 1))
        return own.view(len(ids), ctx.places, -1).sum(dim=0), None
