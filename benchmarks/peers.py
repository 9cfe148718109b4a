"""The same masked autoencoder by several libraries, each as its users run it, ready to be timed side by side.

Widths, depths, heads, decoder, patch and mask ratio are those of `SIZES` for all. Where a library has an option for
normalised targets it is on; lightly's blocks and MONAI's network leave the loss to the user: plain squared error,
which costs less. Only maectl's own model is imported here at once: a library that is missing raises ImportError.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maectl.mae import MaskedAutoencoder
from maectl.optim import adamw
from maectl.vit import take

RATIO = 0.75  # of patches removed


@dataclass(frozen=True)
class Size:
    """A model and a batch of square images."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    image: int
    batch: int
    patch: int = 16

    def arguments(self) -> dict[str, Any]:
        """Of `MaskedAutoencoder`."""
        own = {key: getattr(self, key) for key in ("width", "depth", "heads")}
        own |= {key: getattr(self, key) for key in ("decoder_width", "decoder_depth", "decoder_heads")}
        sides = {"image_size": (self.image, self.image), "patch_size": (self.patch, self.patch)}
        return {**own, **sides, "channels": 3, "norm_pix_loss": True}


SIZES = {
    "T128": Size(192, 12, 3, 256, 4, 8, 128, 64),
    "S96": Size(384, 12, 6, 256, 4, 8, 96, 64),
    "B224": Size(768, 12, 12, 512, 8, 16, 224, 8),
    "L224": Size(1024, 24, 16, 512, 8, 16, 224, 2),
}


@dataclass(frozen=True)
class Peer:
    """A model, the loss of images [N, 3, H, W] that its users would minimise, and their optimizer."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda model: torch.optim.AdamW(
        (parameter for parameter in model.parameters() if parameter.requires_grad), lr=1e-4
    )


def maectl(size: Size) -> Peer:
    """This project's."""
    model = MaskedAutoencoder(**size.arguments())
    return Peer(model, lambda images: model(images, mask_ratio=RATIO).loss, lambda model: adamw(model, 1e-4))


def transformers(size: Size) -> Peer:
    """Hugging Face transformers: ViTMAEForPreTraining with attention as scaled_dot_product_attention."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=size.width, num_hidden_layers=size.depth, num_attention_heads=size.heads,
        intermediate_size=4 * size.width, image_size=size.image, patch_size=size.patch,
        decoder_hidden_size=size.decoder_width, decoder_num_hidden_layers=size.decoder_depth,
        decoder_num_attention_heads=size.decoder_heads, decoder_intermediate_size=4 * size.decoder_width,
        mask_ratio=RATIO, norm_pix_loss=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = ViTMAEForPreTraining(config).train()
    return Peer(model, lambda images: model(pixel_values=images).loss)


def lightly(size: Size) -> Peer:
    """Lightly's blocks, put together as its MAE example does: backbone on visible patches, head on removed ones."""
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(size.image, size.patch, 3, 0, "token", size.width, size.depth, size.heads)
    encoder = MaskedVisionTransformerTIMM(vit=vit)
    places = encoder.sequence_length
    decoder = MAEDecoderTIMM(
        vit.patch_embed.num_patches, size.patch, embed_dim=size.width, decoder_embed_dim=size.decoder_width,
        decoder_depth=size.decoder_depth, decoder_num_heads=size.decoder_heads,
    )  # fmt: skip

    def loss(images: Tensor) -> Tensor:
        keep, mask = utils.random_token_mask((len(images), places), RATIO, device=images.device)
        embedded = decoder.embed(encoder.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, (len(images), places))
        tokens = utils.set_at_index(tokens, keep, embedded.type_as(tokens))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(tokens), mask))
        target = utils.get_at_index(utils.patchify(images, size.patch), mask - 1)
        return nn.functional.mse_loss(predicted, target)

    return Peer(nn.ModuleList([encoder, decoder]), loss)


def monai(size: Size) -> Peer:
    """MONAI's MaskedAutoEncoderViT; its users write the loss."""
    from monai.networks.nets import MaskedAutoEncoderViT

    model = MaskedAutoEncoderViT(
        3, size.image, size.patch, size.width, 4 * size.width, size.depth, size.heads, RATIO, size.decoder_width,
        4 * size.decoder_width, size.decoder_depth, size.decoder_heads, spatial_dims=2, qkv_bias=True,
    )  # fmt: skip

    def loss(images: Tensor) -> Tensor:
        predicted, mask = model(images)
        rows = images.unfold(2, size.patch, size.patch).unfold(3, size.patch, size.patch)
        target = rows.permute(0, 2, 3, 4, 5, 1).reshape(predicted.shape)
        return (((predicted - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()

    return Peer(model, loss)


def full_tokens(size: Size) -> Peer:
    """This project's model, all tokens through the encoder, removed ones as mask tokens (He et al. 2021, Table 1c)."""
    model = MaskedAutoencoder(**size.arguments())
    model.encoder_mask = nn.Parameter(torch.zeros(1, 1, size.width))

    def loss(images: Tensor) -> Tensor:
        patches = model.patchify(images)
        visible, removed, _ = model.random_masking(torch.rand(patches.shape[:2], device=images.device), RATIO)
        order = torch.cat([visible, removed], dim=1) + 1
        seen = model.patch_embed(take(patches, visible))
        masks = model.encoder_mask.expand(len(images), removed.shape[1], -1).to(seen.dtype)
        tokens = torch.cat([seen, masks], dim=1) + model.pos_embed[0][order]
        cls = model.cls_token + model.pos_embed[:, :1]
        x = torch.cat([cls.expand(len(images), -1, -1), tokens], dim=1)
        for block in model.blocks:
            x = block(x)
        x = model.decoder_embed(model.norm(x)) + model.decoder_pos_embed[0][nn.functional.pad(order, (1, 0))]
        for number, block in enumerate(model.decoder_blocks, 1):
            x = block(x, last=removed.shape[1] if number == size.decoder_depth else None)
        loss, counted = model.forward_loss(take(patches, removed), model.decoder_pred(model.decoder_norm(x)))
        return loss / counted

    return Peer(model, loss, lambda model: adamw(model, 1e-4))


PEERS: Mapping[str, Callable[[Size], Peer]] = {
    "maectl": maectl,
    "transformers": transformers,
    "lightly": lightly,
    "monai": monai,
    "full_tokens": full_tokens,
}
