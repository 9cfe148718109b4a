"""The masked autoencoder of "Masked Autoencoders Are Scalable Vision Learners" (He et al. 2021), 2-D and 3-D.

The reference's equations to rounding, and its parameter names, but what they throw away is not computed:

* patches are sorted once and stay in the order [class | visible | removed]: a transformer does not care about
  order, so the reference's unshuffle is a gather of position embeddings;
* only visible patches are embedded, only removed ones pass the decoder's head and the loss;
* in the last decoder block removed patches alone attend, and pass its MLP;
* before the first decoder block a mask token depends on its position and nothing else, so its queries, keys
  and values are computed once a position and shared by the batch.

N images, C channels, S spatial shape, L patches = K visible + R removed, P values a patch, D a token's width.
"""

from math import prod
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maectl.errors import UsageError
from maectl.positions import sincos
from maectl.vit import EPS, Block, PatchEmbed, Spread, take

__all__ = ["MaskedAutoencoder", "Output", "encoder_state", "kept", "patch_statistics", "scatter"]

ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")  # what a timm VisionTransformer has


class Output(NamedTuple):
    """What a forward pass gives; the three sums are 0-dimensional and stay on the device."""

    loss: Tensor  # loss_sum / counted
    prediction: Tensor  # [N, R, P]
    removed: Tensor  # [N, R] int64, which patches ``prediction`` stands for
    mask: Tensor  # [N, L] float32, 1 = removed
    loss_sum: Tensor  # sum of the patch losses
    counted: Tensor  # int64, how many patches that sums: with invalid pixels not every removed one


class MaskedAutoencoder(nn.Module):
    """Predicts the removed patches of an image from the visible ones.

    ``image_size`` and ``patch_size`` are (height, width) or (depth, height, width). With ``checkpointing`` set, blocks
    keep nothing for the backward pass but their input, and compute the rest again (Chen et al. 2016, "Training Deep
    Nets with Sublinear Memory Cost"): the same numbers, in less memory and more time. Raises UsageError when the
    numbers do not fit one another.
    """

    checkpointing = False

    def __init__(
        self,
        channels: int,
        image_size: tuple[int, ...],
        patch_size: tuple[int, ...],
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        norm_pix_loss: bool,
    ) -> None:
        super().__init__()
        check_sizes(image_size, patch_size, depth, decoder_depth)
        self.channels, self.image_size, self.patch_size = channels, tuple(image_size), tuple(patch_size)
        self.grid = tuple(size // p for size, p in zip(image_size, patch_size, strict=True))
        self.norm_pix_loss = norm_pix_loss
        patch_values = channels * prod(patch_size)

        self.patch_embed = PatchEmbed(channels, self.patch_size, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(sincos(self.grid, width)[None], requires_grad=False)  # [1, 1 + L, D]
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(sincos(self.grid, decoder_width)[None], requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=EPS)
        self.decoder_pred = nn.Linear(decoder_width, patch_values)
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights: linear layers and the patch projection Xavier-uniform, tokens N(0, 0.02)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight.data.flatten(1))  # a view: fills the weight itself
                nn.init.zeros_(cast(Tensor, module.bias))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    # ---- images and patches --------------------------------------------------------------------------------

    def patchify(self, images: Tensor) -> Tensor:
        """[N, C, *S] -> [N, L, P]: patches in row-major order, a patch's values in (*p, channel) order."""
        n, channels = images.shape[:2]
        axes = len(self.grid)
        split = [size for pair in zip(self.grid, self.patch_size, strict=True) for size in pair]
        cells = images.reshape(n, channels, *split)  # [N, C, g0, p0, g1, p1, ...]
        order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
        return cells.permute(order).reshape(n, prod(self.grid), channels * prod(self.patch_size))

    def unpatchify(self, patches: Tensor) -> Tensor:
        """[N, L, P] -> [N, C, *S], the inverse of patchify."""
        n, axes = len(patches), len(self.grid)
        cells = patches.reshape(n, *self.grid, *self.patch_size, -1)  # [N, g0, g1, ..., p0, p1, ..., C]
        pairs = [place for axis in range(axes) for place in (1 + axis, 1 + axes + axis)]
        return cells.permute(0, 1 + 2 * axes, *pairs).reshape(n, -1, *self.image_size)

    def patches(self, images: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images -> patches [N, L, P], 0 (the channel's mean) where not valid, and their validity [N, L, P].

        Invalid values are replaced, not multiplied by 0, for NaN must not pass. Raises UsageError on a wrong
        shape.
        """
        if images.shape[1:] != (self.channels, *self.image_size):
            wanted, given = (self.channels, *self.image_size), tuple(images.shape[1:])
            raise UsageError(f"this model takes images of {wanted} (channels first), not of {given}")
        if valid is None:
            return self.patchify(images), None
        valid = valid[:, None].expand_as(images)
        return self.patchify(torch.where(valid, images, 0.0)), self.patchify(valid)

    # ---- the model -----------------------------------------------------------------------------------------

    def random_masking(self, noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Noise [N, L] -> visible [N, K], removed [N, R] and mask [N, L]; patches of the least noise stay."""
        keep = kept(noise.shape[1], mask_ratio)
        order = noise.argsort(dim=1, stable=True)
        visible, removed = order[:, :keep], order[:, keep:]
        return visible, removed, torch.ones_like(noise).scatter(1, visible, 0.0)

    def forward_encoder(self, patches: Tensor, visible: Tensor | None = None) -> Tensor:
        """Patches [N, K, P] and their places [N, K] (None: all L, in order) -> tokens [N, 1 + K, D]."""
        positions = self.pos_embed[0, 1:]  # [L, D]
        tokens = self.patch_embed(patches) + (positions if visible is None else positions[visible])
        cls = self.cls_token + self.pos_embed[:, :1]
        x = torch.cat([cls.expand(len(patches), -1, -1), tokens], dim=1)
        for block in self.blocks:
            x = self._through(block, x)
        out: Tensor = self.norm(x)
        return out

    def _through(self, block: nn.Module, *inputs: Tensor | int | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            # nothing in a block is random: no generator's state need be kept
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            out = block(*inputs)
        return out

    def forward_decoder(self, latent: Tensor, visible: Tensor, removed: Tensor) -> Tensor:
        """Tokens [N, 1 + K, D] and the places [N, K] and [N, R] -> prediction at the removed [N, R, P]."""
        positions = self.decoder_pos_embed[0]  # [1 + L, D]
        seen = F.pad(visible + 1, (1, 0))  # [N, 1 + K], row 0 being the class token's
        x = self.decoder_embed(latent) + positions[seen]  # [N, 1 + K, D]
        masks = self.mask_token[0] + positions[1:]  # [L, D]

        first = cast(Block, self.decoder_blocks[0])
        shared = Spread.apply(first.attn.qkv(first.norm1(masks)), removed)  # [N, R, 3D]
        qkv = torch.cat([first.attn.qkv(first.norm1(x)), shared], dim=1)  # [N, 1 + L, 3D]
        x = torch.cat([x, self.mask_token + positions[removed + 1]], dim=1)  # [N, 1 + L, D]

        final = len(self.decoder_blocks) - 1
        for i, block in enumerate(self.decoder_blocks):
            x = self._through(block, x, qkv if i == 0 else None, removed.shape[1] if i == final else None)
        out: Tensor = self.decoder_pred(self.decoder_norm(x))
        return out

    def target(self, patches: Tensor, valid: Tensor | None = None) -> Tensor:
        """What is to be predicted of patches [N, R, P]: their values, or normalised ones (norm_pix_loss)."""
        if not self.norm_pix_loss:
            return patches
        mean, std = patch_statistics(patches, valid)
        return (patches - mean).div_(std)

    def denormalise(self, prediction: Tensor, patches: Tensor, valid: Tensor | None = None) -> Tensor:
        """The inverse of ``target``: a prediction [N, R, P] in the values of the patches it stands for."""
        if not self.norm_pix_loss:
            return prediction
        mean, std = patch_statistics(patches, valid)
        return prediction * std + mean

    def forward_loss(self, patches: Tensor, prediction: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Patches, prediction and validity, [N, R, P] each -> sum of patch losses, number of patches counted.

        A patch's loss is the mean squared error (He et al. 2021, section 3) of its valid values. It counts
        when it has two of them at least, and with norm_pix_loss half, lest next to nothing normalise it.
        """
        target = self.target(patches, valid)
        error = (prediction.to(patches.dtype) - target).square()  # keeps one tensor for backward; mse_loss keeps two
        count = counts(patches, valid)  # [N, R, 1]
        values = patches.shape[-1]
        least = min(values, max(2, (values + 1) // 2 if self.norm_pix_loss else 2))
        counted = count >= least
        loss = torch.where(counted, total(error, valid) / count.clamp(min=1), 0.0)
        return loss.sum(), counted.sum()

    def forward(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        mask_ratio: float = 0.75,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Output:
        """Mask, encode, decode, compare.

        ``images`` are normalised, float [N, C, *S]; ``noise`` is float [N, L], drawn when None; ``valid`` is
        bool [N, *S], None when all pixels are. Invalid pixels change neither loss nor gradient, whatever they
        hold. Raises UsageError on a wrong shape, or a ratio that keeps no patch or removes none.
        """
        if noise is None:
            noise = torch.rand(len(images), prod(self.grid), generator=generator, device=images.device)
        patches, patches_valid = self.patches(images, valid)
        visible, removed, mask = self.random_masking(noise, mask_ratio)
        latent = self.forward_encoder(take(patches, visible), visible)
        prediction = self.forward_decoder(latent, visible, removed)
        removed_valid = None if patches_valid is None else take(patches_valid, removed)
        loss_sum, counted = self.forward_loss(take(patches, removed), prediction, removed_valid)
        return Output(loss_sum / counted.clamp(min=1), prediction, removed, mask, loss_sum, counted)

    def encode(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """Features of whole images [N, C, *S]: class token and patches after the norm, [N, 1 + L, D]."""
        return self.forward_encoder(self.patches(images, valid)[0])


def check_sizes(image_size: tuple[int, ...], patch_size: tuple[int, ...], depth: int, decoder_depth: int) -> None:
    """Raise UsageError unless patches tile the image and both stacks have a block."""
    if len(image_size) not in (2, 3) or len(image_size) != len(patch_size):
        raise UsageError(f"image_size {image_size} and patch_size {patch_size} must both hold 2 numbers, or both 3")
    if min(patch_size) < 1:
        raise UsageError(f"patch_size {patch_size} must be positive")
    if any(size % p or size < p for size, p in zip(image_size, patch_size, strict=True)):
        near = tuple(max(1, round(size / p)) * p for size, p in zip(image_size, patch_size, strict=True))
        raise UsageError(f"patch_size {patch_size} does not divide image_size {image_size}: the nearest size is {near}")
    if min(depth, decoder_depth) < 1:
        raise UsageError(f"encoder and decoder need at least one block each, not {depth} and {decoder_depth}")


def kept(patches: int, mask_ratio: float) -> int:
    """How many patches stay visible: int(L (1 - r)), after rounding, for in floats 100 (1 - 0.9) is below 10.

    Raises UsageError when that is none or all of them.
    """
    keep = int(round(patches * (1 - mask_ratio), 6))
    if not 0 < keep < patches:
        raise UsageError(
            f"a mask ratio of {mask_ratio} keeps {keep} of {patches} patches: keep one, remove one at least"
        )
    return keep


def scatter(prediction: Tensor, removed: Tensor, patches: Tensor) -> Tensor:
    """Whole images' patches [N, L, P] with a prediction [N, R, P] put at its removed places [N, R]."""
    places = removed[..., None].expand_as(prediction)
    return patches.scatter(1, places, prediction.to(patches.dtype))


def total(values: Tensor, valid: Tensor | None) -> Tensor:
    """Sum of each patch's valid values, [N, R, P] -> [N, R, 1]: to the bit, None equals all valid."""
    return (values if valid is None else torch.where(valid, values, 0.0)).sum(dim=-1, keepdim=True)


def counts(patches: Tensor, valid: Tensor | None) -> Tensor:
    """How many values of each patch are valid, [N, R, 1], in the patches' dtype."""
    if valid is None:
        return patches.new_full((*patches.shape[:-1], 1), patches.shape[-1])
    return valid.sum(dim=-1, keepdim=True).to(patches.dtype)


def patch_statistics(patches: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch's valid values, [N, R, P] -> [N, R, 1] twice.

    The deviation is √(v + 1e-6) with v the unbiased variance, as the reference normalises its targets; a
    patch with fewer than two valid values has v = 0.
    """
    count = counts(patches, valid)
    mean = total(patches, valid) / count.clamp(min=1)
    deviation = F.mse_loss(patches, mean.expand_as(patches), reduction="none")  # squared
    variance = total(deviation, valid) / (count - 1).clamp(min=1)
    return mean, (variance + 1e-6).sqrt()


def encoder_state(model: nn.Module) -> dict[str, Tensor]:
    """The encoder's tensors: those of timm's VisionTransformer (num_classes=0, global_pool='token')."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name.startswith(ENCODER)}
