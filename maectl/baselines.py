"""What a loss is to be compared with: two trivial predictions, scored as the model's own are.

Both mask as ``MaskedAutoencoder.forward`` does with the same arguments, count the same patches, measure in
the model's target and return its ``loss_sum`` and ``counted``.
"""

import torch
from torch import Tensor

from maectl.mae import MaskedAutoencoder, counts, total
from maectl.vit import take

__all__ = ["nearest_visible", "patch_mean"]


def patch_mean(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, mask_ratio: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Predict every removed patch by its own mean, channel by channel, or with norm_pix_loss by 0."""
    patches, patches_valid = model.patches(images, valid)
    _, removed, _ = model.random_masking(noise, mask_ratio)
    patches = take(patches, removed)  # [N, R, P]
    patches_valid = None if patches_valid is None else take(patches_valid, removed)
    if model.norm_pix_loss:
        return model.forward_loss(patches, torch.zeros_like(patches), patches_valid)
    pixels = by_channel(patches, model.channels)  # [N, R, C, P / C]
    pixels_valid = None if patches_valid is None else by_channel(patches_valid, model.channels)
    means = total(pixels, pixels_valid) / counts(pixels, pixels_valid).clamp(min=1)  # [N, R, C, 1]
    prediction = means.squeeze(-1).repeat(1, 1, pixels.shape[-1])  # the channel comes last in a patch
    return model.forward_loss(patches, prediction, patches_valid)


def nearest_visible(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, mask_ratio: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Predict every removed patch by the target of the visible one nearest on the grid, the first at a tie.

    Invalid values of that one are taken as 0: the channel's mean, or with norm_pix_loss the patch's.
    """
    patches, patches_valid = model.patches(images, valid)
    _, removed, mask = model.random_masking(noise, mask_ratio)
    target = model.target(patches, patches_valid)
    if patches_valid is not None:
        target = torch.where(patches_valid, target, 0.0)
    nearest = torch.stack([nearest_places(model.grid, *each) for each in zip(mask, removed, strict=True)])
    removed_valid = None if patches_valid is None else take(patches_valid, removed)
    return model.forward_loss(take(patches, removed), take(target, nearest), removed_valid)


def by_channel(patches: Tensor, channels: int) -> Tensor:
    """[N, R, P] -> [N, R, C, P / C]."""
    return patches.unflatten(-1, (-1, channels)).transpose(-1, -2)  # type: ignore[no-untyped-call, no-any-return]


def nearest_places(grid: tuple[int, ...], mask: Tensor, removed: Tensor) -> Tensor:
    """Of one image: its mask [L] and removed places [R] -> the visible place nearest to each, [R]."""
    axes = [torch.arange(cells, device=mask.device) for cells in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # [L, axes]
    squared = (places[removed, None] - places).square().sum(dim=-1)  # [R, L]
    return squared.masked_fill(mask.bool(), squared.max() + 1).argmin(dim=-1)
