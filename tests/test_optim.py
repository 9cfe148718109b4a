"""Who is decayed, and how fast all learn."""

import math

import pytest
import torch

from maectl.mae import MaskedAutoencoder
from maectl.optim import adamw, learning_rate, parameter_groups


def small() -> MaskedAutoencoder:
    return MaskedAutoencoder(1, (8, 8), (4, 4), 12, 1, 3, 8, 1, 2, True)


def test_every_trained_parameter_is_in_one_group() -> None:
    model = small()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.05))
    assert sorted(decayed + plain) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert {"cls_token", "mask_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"} <= set(decayed)
    assert all(name.endswith(".bias") or "norm" in name for name in plain)
    assert not any(name.endswith(".bias") or "norm" in name for name in decayed)


def test_the_optimizer_is_the_reference_one_and_fused() -> None:
    optimizer = adamw(small(), lr=1e-3, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(group["betas"] == (0.9, 0.95) and group["fused"] for group in optimizer.param_groups)


def test_a_step_is_adamw() -> None:
    torch.manual_seed(0)
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, lr=1e-3, weight_decay=0.5)
    model(torch.randn(2, 1, 8, 8)).loss.backward()
    optimizer.step()
    for name, p in model.named_parameters():
        if p.grad is None:
            assert torch.equal(p, before[name])
            continue
        # Of the first step, Adam keeps but the gradient's sign.
        decay = 0.0 if p.ndim <= 1 else 0.5
        expected = before[name] * (1 - 1e-3 * decay) - 1e-3 * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-7)


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    rates = [learning_rate(step, steps=110, warmup_steps=10, peak=2.0) for step in range(110)]
    assert rates[:11] == pytest.approx([0.2 * step for step in range(11)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * step / 100) for step in range(100)])
    assert rates[60] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_rate_falls_to_the_floor() -> None:
    last = learning_rate(99, steps=100, warmup_steps=0, peak=1.0, floor=0.25)
    assert 0.25 < last < 0.2503
    assert learning_rate(0, steps=100, warmup_steps=0, peak=1.0, floor=0.25) == 1.0


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_may_be_all_warm_up(steps: int) -> None:
    rates = [learning_rate(step, steps=steps, warmup_steps=5, peak=1.0) for step in range(steps)]
    assert rates == pytest.approx([0.2 * step for step in range(steps)])
