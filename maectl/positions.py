"""Where a patch lies: the fixed sin-cos embedding of MAE, in any number of dimensions."""

import torch
from torch import Tensor

from maectl.errors import UsageError

__all__ = ["sincos"]


def sincos(grid: tuple[int, ...], width: int) -> Tensor:
    """Embedding of every place of a grid, float32 [1 + L, width]; row 0, the class token's, is zero.

    Each axis gets ``width // len(grid)`` numbers, rounded down to even: sines of its coordinate at falling
    frequencies, then cosines (Vaswani et al. 2017, section 3.5). The last axis comes first: in 2-D the first
    half encodes the column, the second the row, as in MAE; what is left over in 3-D stays zero. Computed in
    float64. Raises UsageError when ``width`` cannot hold a sine and a cosine an axis.
    """
    share = width // len(grid) // 2 * 2
    if not share:
        raise UsageError(
            f"a width of {width} cannot hold the positions of {len(grid)} axes: use {2 * len(grid)} or more"
        )
    omega = 10000.0 ** (-torch.arange(share // 2, dtype=torch.float64) / (share / 2))
    axes = [torch.arange(cells, dtype=torch.float64) for cells in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).flip(0)  # [axes, L], last axis first
    angles = places[..., None] * omega  # [axes, L, share / 2]
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)  # [axes, L, share]

    table = torch.zeros(1 + places.shape[1], width, dtype=torch.float64)
    table[1:, : len(grid) * share] = waves.transpose(0, 1).flatten(1)
    return table.float()
