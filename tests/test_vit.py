"""The transformer's parts: every shortcut gives what the plain computation gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maectl.errors import UsageError
from maectl.vit import Attention, Block, PatchEmbed, Spread, attend, take


def places(n: int, length: int, count: int) -> Tensor:
    return torch.rand(n, length, generator=torch.Generator().manual_seed(3)).argsort(dim=1)[:, :count]


def test_attention_is_the_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    expected = (q @ k.mT / 8**0.5).softmax(dim=-1) @ v
    torch.testing.assert_close(attend(q, k, v), expected)
    rough = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())  # takes the other path on a CPU
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), expected, rtol=0.02, atol=0.02)


def test_bfloat16_on_the_cpu_does_not_use_the_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    x = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16)
    attend(x, x, x)
    with pytest.raises(AttributeError):
        attend(x.float(), x.float(), x.float())


def test_the_last_tokens_alone_equal_those_of_the_whole() -> None:
    torch.manual_seed(0)
    block, x = Block(24, 3), torch.randn(2, 9, 24)
    whole, qkv = block(x), block.attn.qkv(block.norm1(x))
    torch.testing.assert_close(block(x, last=4), whole[:, -4:])
    torch.testing.assert_close(block(x, qkv=qkv), whole)
    torch.testing.assert_close(block(x, qkv=qkv, last=4), whole[:, -4:])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UsageError, match="5 heads do not divide a width of 24"):
        Attention(24, 5)


@pytest.mark.parametrize("patch", [(4, 2), (2, 4, 3)])
def test_patch_projection_is_a_convolution(patch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(5, patch, 12)
    image = torch.randn(3, 5, *patch)  # one patch
    values = image.movedim(1, -1).flatten(1)
    torch.testing.assert_close(embed(values), embed.proj(image).flatten(1))


def test_take_takes_each_image_its_own() -> None:
    rows, ids = torch.randn(4, 6, 5), places(4, 6, 3)
    expected = torch.stack([each[own] for each, own in zip(rows, ids, strict=True)])
    assert torch.equal(take(rows, ids), expected)


def test_spread_and_its_gradient_are_those_of_indexing() -> None:
    rows, ids = torch.randn(6, 5, requires_grad=True), places(4, 6, 3)
    weight = torch.randn(4, 3, 5)
    assert torch.equal(Spread.apply(rows, ids), rows[ids])
    (found,) = torch.autograd.grad((Spread.apply(rows, ids) * weight).sum(), rows)
    (expected,) = torch.autograd.grad((rows[ids] * weight).sum(), rows)
    torch.testing.assert_close(found, expected)


def test_the_gradient_of_spread_does_not_wear_out_in_bfloat16() -> None:
    # 1,024 ones added up one by one in bfloat16 stop at 256.
    rows = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    Spread.apply(rows, torch.zeros(1024, 1, dtype=torch.int64)).sum().backward()
    assert rows.grad is not None
    assert rows.grad.item() == 1024
