"""What only a CUDA device shows; ``pytest -m gpu`` where there is one."""

import json

import numpy as np
import pytest
import torch

from maectl import device
from maectl.dataset import Batch, on_device
from maectl.mae import MaskedAutoencoder
from maectl.optim import adamw
from maectl.stats import Normalizer
from maectl.stepping import Stepper, fitting
from maectl.team import Team

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(3, (64, 64), (8, 8), 192, 4, 3, 128, 2, 4, norm_pix_loss=True).cuda()


def inputs(images: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(images, 3, 64, 64, device="cuda"), torch.rand(images, 64, device="cuda")


def gradients(forward, made: MaskedAutoencoder, precision: str) -> tuple[float, list[torch.Tensor]]:
    images, noise = inputs()
    with device.autocast(torch.device("cuda"), precision):
        output = forward(images, noise, 0.75, None)
    output.loss.backward()
    return float(output.loss), [p.grad for p in made.parameters() if p.grad is not None]


def test_the_cpu_and_the_gpu_agree_in_float32():
    torch.backends.cuda.matmul.allow_tf32 = False
    made = model()
    images, noise = inputs()
    there = made(images, noise)
    here = made.cpu()(images.cpu(), noise.cpu())
    assert float(there.loss) == pytest.approx(float(here.loss), rel=1e-5)
    torch.testing.assert_close(there.prediction.cpu(), here.prediction, rtol=1e-3, atol=1e-4)


def test_bf16_and_compilation_stay_near_float32():
    made = model()
    loss, _ = gradients(made, made, "fp32")
    for forward in (made, torch.compile(made, dynamic=False)):
        made.zero_grad()
        assert gradients(forward, made, "bf16")[0] == pytest.approx(loss, rel=0.02)


def test_a_step_repeats_to_the_bit():
    """The gradient of rows shared by all images is summed in one order (`vit.Spread`)."""
    first, second = ([g.clone() for g in gradients(made, made, "bf16")[1]] for made in (model(), model()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_micro_batch_too_large_for_the_memory_is_made_smaller(monkeypatch):
    made = model()
    where = torch.device("cuda", torch.cuda.current_device())
    step = Stepper(
        made, adamw(made, 1e-3), Normalizer(mean=(0.0,) * 3, std=(1.0,) * 3, clip=None), 0.75, 48, "bf16", where,
        Team(), 4096, 1,
    )  # fmt: skip
    assert fitting(step) >= 64
    ran = step.rehearse

    def short(images: int, forward=None) -> None:
        if images > 40:
            raise torch.OutOfMemoryError
        ran(images, forward)

    monkeypatch.setattr(step, "rehearse", short)
    assert fitting(step) == 32


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_two_gpus_give_the_losses_of_one(maectl, photographs, tmp_path, small):
    sets = [word for each in small for word in ("--set", each)]
    runs = []
    for devices in ("1", "2"):
        out = tmp_path / devices
        maectl("pretrain", photographs, "--out", out, "--recipe", "small-images", "--steps", "8", "--batch-size", "8",
               "--devices", devices, *sets, check=True)  # fmt: skip
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        runs.append([line["loss"] for line in lines if "loss" in line])
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-3)


def test_batches_copied_ahead_are_the_batches():
    chance = np.random.default_rng(0)
    given = [
        Batch(
            torch.from_numpy(chance.integers(0, 255, (4, 3, 64, 64), np.uint8)).pin_memory(), None,
            torch.from_numpy(chance.random((4, 64), np.float32)), torch.zeros(1, 3), torch.ones(1, 3), np.arange(4),
        )
        for _ in range(5)
    ]  # fmt: skip
    seen = list(on_device(iter(given), torch.device("cuda")))
    assert all(
        each.images.is_cuda and torch.equal(each.images.cpu(), own.images)
        for each, own in zip(seen, given, strict=True)
    )
