"""The model equals the equations whatever the grid, the channels, the axes and the valid pixels."""

from functools import partial
from typing import Any

import numpy as np
import oracle
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from maectl.baselines import nearest_visible, patch_mean
from maectl.errors import UsageError
from maectl.mae import MaskedAutoencoder, Output, encoder_state, kept, patch_statistics, scatter

SMALL = {"width": 24, "depth": 2, "heads": 3, "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
EXACT = partial(torch.nn.LayerNorm, eps=1e-6)
SHAPES = [
    pytest.param(3, (32, 32), (8, 8), id="square"),
    pytest.param(1, (16, 40), (8, 8), id="wide, one channel"),
    pytest.param(13, (24, 16), (4, 8), id="tall, 13 channels, patches not square"),
    pytest.param(1, (8, 16, 24), (4, 8, 8), id="volume"),
    pytest.param(2, (8, 8, 8), (2, 4, 4), id="volume, two channels"),
]


def small(channels: int = 3, image: Any = (32, 32), patch: Any = (8, 8), **changes: Any) -> MaskedAutoencoder:
    """A little model whose every parameter matters: biases and norms are not left at 0 and 1."""
    torch.manual_seed(0)
    settings = {"norm_pix_loss": True, **SMALL, **changes}
    model = MaskedAutoencoder(channels, image, patch, **settings)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
    return model


def batch(model: MaskedAutoencoder, n: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, model.channels, *model.image_size, generator=generator)
    return images, torch.rand(n, model.pos_embed.shape[1] - 1, generator=generator)


def partly_valid(model: MaskedAutoencoder, n: int = 3) -> Tensor:
    """Whole, empty, nearly empty and half-empty patches, and one image with nothing valid at all."""
    generator = torch.Generator().manual_seed(2)
    valid = torch.rand(n, *model.image_size, generator=generator) < 0.7
    valid[0, : model.image_size[0] // 2] = True
    valid[1, : model.image_size[0] // 2] = False
    valid[1, 0, 0] = True
    valid[-1] = False
    return valid


def truth(model: MaskedAutoencoder, images: Tensor, noise: Tensor, **more: Any) -> oracle.Truth:
    weights = {name: p.double().numpy() for name, p in model.state_dict().items()}
    heads = {"heads": SMALL["heads"], "decoder_heads": SMALL["decoder_heads"]}
    setting = {**heads, "norm_pix": model.norm_pix_loss, **more}
    return oracle.mae(weights, images.double().numpy(), noise.numpy(), model.patch_size, **setting)


def assert_equal_to_truth(output: Output, expected: oracle.Truth) -> None:
    places = output.removed.numpy()[..., None]
    prediction = np.take_along_axis(expected.prediction, places, axis=1)
    np.testing.assert_array_equal(output.mask.numpy(), expected.mask)
    np.testing.assert_allclose(output.prediction.detach().numpy(), prediction, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output.loss.item(), expected.loss, rtol=1e-5)
    np.testing.assert_allclose(output.loss_sum.item(), expected.loss_sum, rtol=1e-5)
    assert output.counted.item() == expected.counted


def gradients(model: MaskedAutoencoder, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


# ---- the equations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize(("channels", "image", "patch"), SHAPES)
def test_equals_the_equations(channels: int, image: Any, patch: Any, norm_pix: bool) -> None:
    model = small(channels, image, patch, norm_pix_loss=norm_pix)
    images, noise = batch(model)
    assert_equal_to_truth(model(images, noise), truth(model, images, noise))


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize(("channels", "image", "patch"), SHAPES)
def test_equals_the_equations_where_valid(channels: int, image: Any, patch: Any, norm_pix: bool) -> None:
    model = small(channels, image, patch, norm_pix_loss=norm_pix)
    images, noise = batch(model)
    valid = partly_valid(model)
    expected = truth(model, images, noise, valid=valid.numpy())
    assert 0 < expected.counted < expected.mask.sum()
    assert_equal_to_truth(model(images, noise, valid=valid), expected)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_equals_the_equations_at_other_depths_and_ratios(depth: int, ratio: float) -> None:
    # A decoder of one block is the first and the last at once: both shortcuts meet in it.
    model = small(decoder_depth=depth)
    images, noise = batch(model)
    assert_equal_to_truth(model(images, noise, ratio), truth(model, images, noise, mask_ratio=ratio))


def test_equal_noise_is_kept_in_order() -> None:
    model = small()
    visible, removed, _ = model.random_masking(torch.zeros(2, 16), 0.75)
    assert visible.tolist() == [[0, 1, 2, 3]] * 2
    assert removed.tolist() == [list(range(4, 16))] * 2


def test_gradients_are_those_of_the_loss() -> None:
    # Against finite differences in float64, which no shortcut can fool; one weight of every parameter.
    model = small().double()
    images, noise = batch(model)
    images, valid = images.double(), partly_valid(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p, gradient in zip(trainable, gradients(model, model(images, noise, valid=valid).loss), strict=True):
        place, width = gradient.abs().argmax().item(), 1e-5
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                p.view(-1)[place] += sign * width
                losses.append(model(images, noise, valid=valid).loss.item())
                p.view(-1)[place] -= sign * width
        slope = (losses[0] - losses[1]) / (2 * width)
        assert slope == pytest.approx(gradient.flatten()[place].item(), rel=1e-5, abs=1e-9)


def test_predictions_differ_between_removed_patches() -> None:
    # Without decoder positions all of them would be one and the same for ever.
    model = MaskedAutoencoder(3, (32, 32), (8, 8), **SMALL, norm_pix_loss=True)
    prediction = model(*batch(model)).prediction
    assert (prediction[:, 0] - prediction[:, 1]).abs().max() > 1e-3
    assert prediction.std(dim=1).min() > 1e-5


def test_noise_is_drawn_from_the_generator() -> None:
    model = small()
    images, _ = batch(model)
    drawn = [model(images, generator=torch.Generator().manual_seed(seed)).mask for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].sum(dim=1).tolist() == [12.0] * 3


def test_encode_is_the_encoder_with_nothing_removed() -> None:
    model = small()
    images, noise = batch(model)
    patches, _ = model.patches(images)
    order = noise.argsort(dim=1)
    shuffled = torch.stack([each[places] for each, places in zip(patches, order, strict=True)])
    tokens = model.forward_encoder(shuffled, order)  # order is nothing to a transformer
    inverse = torch.cat([torch.zeros(3, 1, dtype=torch.int64), 1 + order.argsort(dim=1)], dim=1)
    expected = torch.stack([each[places] for each, places in zip(tokens, inverse, strict=True)])
    torch.testing.assert_close(model.encode(images), expected, rtol=1e-5, atol=1e-5)


# ---- invalid pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_pix", [True, False])
def test_all_valid_is_the_standard_loss_to_the_bit(norm_pix: bool) -> None:
    model = small(norm_pix_loss=norm_pix)
    images, noise = batch(model)
    standard, masked = (
        model(images, noise),
        model(images, noise, valid=torch.ones(3, 32, 32, dtype=torch.bool)),
    )
    for one, other in zip(standard, masked, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(gradients(model, standard.loss), gradients(model, masked.loss), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("rubbish", [-9999.0, 1e30, float("nan"), float("inf"), None])
def test_values_of_invalid_pixels_change_nothing_to_the_bit(rubbish: float | None, norm_pix: bool) -> None:
    model = small(norm_pix_loss=norm_pix)
    images, noise = batch(model)
    valid = partly_valid(model)
    other, _ = batch(model, seed=9)
    spoilt = torch.where(valid[:, None], images, other if rubbish is None else torch.tensor(rubbish))
    clean, dirty = model(images, noise, valid=valid), model(spoilt, noise, valid=valid)
    for one, two in zip(clean, dirty, strict=True):
        assert torch.equal(one, two)
    for one, two in zip(gradients(model, clean.loss), gradients(model, dirty.loss), strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, two)
    assert torch.equal(model.encode(images, valid), model.encode(spoilt, valid))


@pytest.mark.parametrize(("norm_pix", "least"), [(False, 2), (True, 8)])
def test_a_patch_counts_from_enough_valid_values_on(norm_pix: bool, least: int) -> None:
    model = small(1, (8, 8), (4, 4), norm_pix_loss=norm_pix)
    patches, prediction = torch.randn(1, 17, 16), torch.randn(1, 17, 16)
    valid = torch.arange(16) < torch.arange(17)[:, None]  # the k-th patch has k valid values
    _, counted = model.forward_loss(patches, prediction, valid[None])
    assert counted.item() == 17 - least


def test_a_batch_without_a_valid_pixel_has_no_loss_and_no_gradient() -> None:
    model = small()
    images, noise = batch(model)
    output = model(images * float("nan"), noise, valid=torch.zeros(3, 32, 32, dtype=torch.bool))
    assert (output.loss.item(), output.counted.item()) == (0.0, 0)
    assert all(not g.any() for g in gradients(model, output.loss))


def test_micro_batches_sum_to_the_whole() -> None:
    model = small()
    images, noise = batch(model, 6)
    valid = partly_valid(model, 6)
    whole = model(images, noise, valid=valid)
    parts = [model(images[i : i + 2], noise[i : i + 2], valid=valid[i : i + 2]) for i in (0, 2, 4)]
    assert sum(part.counted for part in parts) == whole.counted
    loss = torch.stack([part.loss_sum for part in parts]).sum() / whole.counted
    torch.testing.assert_close(loss, whole.loss)
    for one, other in zip(gradients(model, loss), gradients(model, whole.loss), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---- patches -----------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_patches_and_back(data: st.DataObject) -> None:
    axes = data.draw(st.integers(2, 3))
    sizes = st.lists(st.integers(1, 4), min_size=axes, max_size=axes)
    patch, grid, channels = tuple(data.draw(sizes)), data.draw(sizes), data.draw(st.integers(1, 4))
    model = small(channels, tuple(p * g for p, g in zip(patch, grid, strict=True)), patch)
    images = torch.randn(2, channels, *model.image_size)
    patches = model.patchify(images)
    np.testing.assert_array_equal(patches.numpy(), oracle.patchify(images.numpy(), patch))
    assert torch.equal(model.unpatchify(patches), images)


def test_scatter_puts_predictions_where_patches_were_removed() -> None:
    model = small()
    images, noise = batch(model)
    output = model(images, noise)
    patches = model.patchify(images)
    whole = scatter(output.prediction, output.removed, patches)
    for image in range(3):
        assert torch.equal(whole[image, output.removed[image]], output.prediction[image])
        kept_patches = output.mask[image] == 0
        assert torch.equal(whole[image, kept_patches], patches[image, kept_patches])


@pytest.mark.parametrize("norm_pix", [True, False])
def test_denormalise_undoes_target(norm_pix: bool) -> None:
    model = small(norm_pix_loss=norm_pix)
    patches, valid = model.patches(batch(model)[0] * 3 + 5, partly_valid(model))
    torch.testing.assert_close(model.denormalise(model.target(patches, valid), patches, valid), patches)


def test_statistics_are_of_the_valid_values() -> None:
    mean, std = patch_statistics(torch.tensor([[[1.0, 3.0, 99.0]]]), torch.tensor([[[True, True, False]]]))
    assert mean.item() == 2.0
    assert std.item() == pytest.approx((2 + 1e-6) ** 0.5)


# ---- baselines ---------------------------------------------------------------------------------------------


def score(model: MaskedAutoencoder, guess: Any, images: Tensor, noise: Tensor, valid: Tensor) -> list[float]:
    """Loss of a guess, a function of one image's (target, validity, mask, place), the long way."""
    expected = truth(model, images, noise, valid=valid.numpy())
    known = oracle.patchify(valid[:, None].expand_as(images).numpy(), model.patch_size)
    values = model.patch_size[0] * model.patch_size[1] * model.channels
    loss, counted = 0.0, 0
    for n, place in zip(*np.nonzero(expected.mask), strict=True):
        if known[n, place].sum() < (values / 2 if model.norm_pix_loss else 2):
            continue
        error = guess(expected.target[n], known[n], expected.mask[n], place) - expected.target[n, place]
        loss, counted = loss + (error[known[n, place]] ** 2).mean(), counted + 1
    return [loss, counted]


@pytest.mark.parametrize("spoilt", [True, False])
@pytest.mark.parametrize("norm_pix", [True, False])
def test_baselines_equal_brute_force(norm_pix: bool, spoilt: bool) -> None:
    model = small(2, (16, 40), (8, 8), norm_pix_loss=norm_pix)
    images, noise = batch(model)
    valid = partly_valid(model) if spoilt else torch.ones(3, 16, 40, dtype=torch.bool)

    def own_mean(target: Any, known: Any, mask: Any, place: int) -> Any:
        if norm_pix:
            return np.zeros_like(target[place])
        pixels, there = target[place].reshape(-1, 2), known[place].reshape(-1, 2)
        return np.tile([pixels[there[:, c], c].mean() for c in range(2)], len(pixels))

    def nearest(target: Any, known: Any, mask: Any, place: int) -> Any:
        row, column = divmod(place, 5)
        visible = np.flatnonzero(mask == 0)
        distance = [(p // 5 - row) ** 2 + (p % 5 - column) ** 2 for p in visible]
        found = visible[int(np.argmin(distance))]
        return np.where(known[found], target[found], 0)

    given = None if not spoilt else valid
    for baseline, guess in ((patch_mean, own_mean), (nearest_visible, nearest)):
        found = [t.item() for t in baseline(model, images, noise, 0.75, given)]
        assert found == pytest.approx(score(model, guess, images, noise, valid), rel=1e-5)


# ---- the outside world -------------------------------------------------------------------------------------


def compare_with_timm(twin: Any, channels: int, image: tuple[int, int], patch: tuple[int, int]) -> None:
    torch.manual_seed(0)
    decoder = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}
    sizes = {"width": twin.embed_dim, "depth": len(twin.blocks), "heads": twin.blocks[0].attn.num_heads}
    model = MaskedAutoencoder(channels, image, patch, **sizes, **decoder, norm_pix_loss=True).eval()
    twin.load_state_dict(encoder_state(model), strict=True)
    images = torch.randn(2, channels, *image)
    with torch.no_grad():
        torch.testing.assert_close(twin.eval().forward_features(images), model.encode(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_encoder_loads_strictly_in_timm(size: str) -> None:
    twin = timm.create_model(
        f"vit_{size}_patch16_224", num_classes=0, global_pool="token", norm_layer=EXACT, img_size=64
    )
    compare_with_timm(twin, 3, (64, 64), (16, 16))


def test_encoder_of_any_grid_and_channels_loads_strictly_in_timm() -> None:
    twin = VisionTransformer(
        img_size=(24, 40), patch_size=8, in_chans=5, embed_dim=48, depth=2, num_heads=3, num_classes=0,
        global_pool="token", norm_layer=EXACT,
    )  # fmt: skip
    compare_with_timm(twin, 5, (24, 40), (8, 8))


def test_names_are_the_reference_names() -> None:
    # 150 tensors of the encoder and 104 of the decoder, as the published ViT-B has.
    names = set(small(decoder_depth=8, depth=12).state_dict())
    assert len(names) == 254
    assert {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "decoder_embed.weight"} <= names
    assert {"decoder_blocks.7.attn.qkv.bias", "decoder_norm.weight", "decoder_pred.bias"} <= names


def test_positions_are_not_trained() -> None:
    frozen = [name for name, p in small().named_parameters() if not p.requires_grad]
    assert frozen == ["pos_embed", "decoder_pos_embed"]


def test_initial_weights_are_the_reference_distributions() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(3, (32, 32), (8, 8), 192, 1, 3, 128, 1, 4, True)
    for weight in (model.patch_embed.proj.weight.flatten(1), model.decoder_pred.weight):
        bound = (6 / sum(weight.shape)) ** 0.5  # Xavier-uniform
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith(".bias"))
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.2)


def test_bfloat16_stays_near_float32() -> None:
    model = small()
    images, noise = batch(model, 8)
    exact = model(images, noise)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, noise)
    assert rough.loss.dtype == torch.float32
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=0.01)
    pairs = zip(gradients(model, exact.loss), gradients(model, rough.loss), strict=True)
    error, norm = zip(*[((one - two).norm() ** 2, one.norm() ** 2) for one, two in pairs], strict=True)
    assert sum(error) / sum(norm) < 0.03**2


def test_forward_is_one_graph() -> None:
    # No value comes back to the host and no shape depends on one: the compiler sees the whole model.
    model = small()
    images, noise = batch(model)
    valid = partly_valid(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    whole, traced = model(images, noise, valid=valid), compiled(images, noise, valid=valid)
    torch.testing.assert_close(traced.loss, whole.loss)
    for one, other in zip(gradients(model, traced.loss), gradients(model, whole.loss), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"image": (225, 100), "patch": (16, 16)},
            r"\(16, 16\) does not divide .*\(225, 100\).* \(224, 96\)",
        ),
        ({"image": (8, 8), "patch": (16, 16)}, r"nearest size is \(16, 16\)"),
        ({"image": (32, 32), "patch": (8, 8, 8)}, "both hold 2 numbers, or both 3"),
        ({"image": (32,), "patch": (8,)}, "both hold 2 numbers, or both 3"),
        ({"patch": (0, 8)}, "must be positive"),
        ({"heads": 5}, "5 heads do not divide a width of 24"),
        ({"decoder_heads": 3}, "3 heads do not divide a width of 16"),
        ({"decoder_depth": 0}, "at least one block each, not 2 and 0"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        small(**changes)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"takes images of \(3, 32, 32\) .*, not of \(1, 32, 32\)"):
        small()(torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 0.95, 1.0])
def test_ratios_that_keep_or_remove_nothing_are_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match=f"mask ratio of {ratio} keeps"):
        kept(16, ratio)


def test_the_float_floor_is_minded() -> None:
    assert int(100 * (1 - 0.9)) == 9
    assert kept(100, 0.9) == 10
    assert kept(196, 0.75) == 49
    assert kept(196, 0.9) == 19
