"""The count of a step's FLOP, against published figures and against what torch itself counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maectl import flops
from maectl.mae import MaskedAutoencoder
from maectl.recipe import SIZES


def standard(size: str, patch: int) -> dict:
    decoder = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
    return {**SIZES[size], **decoder, "channels": 3, "image_size": (224, 224), "patch_size": (patch, patch)}


@pytest.mark.parametrize(
    ("size", "patch", "giga", "ratio"),
    [("small", 16, 39.0, 1.54), ("base", 16, 58.7, 2.35), ("large", 16, 124.5, 3.23), ("huge", 14, 291.4, 3.59)],
)
def test_the_standard_count_is_the_convention_of_published_figures(size: str, patch: int, giga: float, ratio: float):
    counted = flops.step(standard(size, patch), 0.75)
    assert counted.standard / 1e9 == pytest.approx(giga, rel=0.01)
    assert counted.full_tokens / counted.standard == pytest.approx(ratio, rel=0.01)
    assert counted.computed < counted.standard


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("shape", [((32, 48), (8, 8)), ((8, 16, 16), (4, 8, 8))])
def test_what_maectl_computes_is_what_torch_counts(depth: int, shape: tuple):
    """In bfloat16 attention on the CPU is written out as products, of which torch counts every one."""
    size, patch = shape
    arguments = {
        "channels": 2, "image_size": size, "patch_size": patch, "width": 24, "depth": 2, "heads": 2,
        "decoder_width": 16, "decoder_depth": depth, "decoder_heads": 2, "norm_pix_loss": True,
    }  # fmt: skip
    model, batch = MaskedAutoencoder(**arguments), 4
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(batch, 2, *size), mask_ratio=0.5).loss
        loss.backward()
    assert counter.get_total_flops() / batch == pytest.approx(flops.step(arguments, 0.5, batch).computed, rel=1e-6)


def test_a_larger_batch_shares_more_and_a_higher_ratio_costs_less():
    model = standard("base", 16)
    assert flops.step(model, 0.75, 64).computed < flops.step(model, 0.75, 1).computed
    assert flops.step(model, 0.9).standard < flops.step(model, 0.75).standard
