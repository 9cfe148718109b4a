"""One optimizer step: micro-batches, checkpointing and compilation change its cost and not its result."""

import numpy as np
import pytest
import torch

from maectl import run as runs
from maectl import stepping
from maectl.dataset import Batch
from maectl.mae import MaskedAutoencoder
from maectl.optim import adamw
from maectl.stats import Normalizer
from maectl.stepping import Stepper, fitting, saved_bytes
from maectl.team import Place, Team


def model(checkpointing: bool = False) -> MaskedAutoencoder:
    torch.manual_seed(3)
    made = MaskedAutoencoder(3, (32, 32), (8, 8), 48, 3, 3, 32, 2, 2, norm_pix_loss=True)
    made.checkpointing = checkpointing
    return made


def stepper(made: MaskedAutoencoder, micro: int = 6, team: Team | None = None) -> Stepper:
    normalizer = Normalizer(mean=(120.0,) * 3, std=(60.0,) * 3, clip=None)
    where = torch.device("cpu")
    return Stepper(made, adamw(made, 1e-3), normalizer, 0.75, 12, "fp32", where, team or Team(), 6, micro)


def batch(valid: bool) -> Batch:
    chance = np.random.default_rng(1)
    mask = torch.from_numpy(chance.random((6, 32, 32)) < 0.7) if valid else None
    if mask is not None:
        mask[:2] = True
        mask[5] = False
    return Batch(
        torch.from_numpy(chance.integers(0, 255, (6, 3, 32, 32), np.uint8)), mask,
        torch.from_numpy(chance.random((6, 16), np.float32)), torch.full((1, 3), 120.0), torch.full((1, 3), 60.0),
        np.arange(6),
    )  # fmt: skip


def gradients(step: Stepper, given: Batch) -> tuple[float, list[torch.Tensor]]:
    kept: list[torch.Tensor] = []
    step.optimizer.step = lambda: kept.extend(p.grad.clone() for p in step.model.parameters() if p.grad is not None)
    return float(step(given)), kept


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("micro", [1, 4, 5])
def test_micro_batches_add_up_to_the_whole_batch(valid: bool, micro: int):
    loss, whole = gradients(stepper(model()), batch(valid))
    parts_loss, parts = gradients(stepper(model(), micro), batch(valid))
    assert parts_loss == pytest.approx(loss, rel=1e-6)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_checkpointing_keeps_less_and_gives_the_same_gradients_to_the_bit():
    loss, whole = gradients(stepper(model()), batch(True))
    again, cheap = gradients(stepper(model(checkpointing=True)), batch(True))
    assert loss == again
    assert all(torch.equal(one, other) for one, other in zip(whole, cheap, strict=True))
    assert saved_bytes(stepper(model(checkpointing=True)), 8) < 0.5 * saved_bytes(stepper(model()), 8)


def test_what_is_kept_for_the_backward_pass_grows_with_the_images_alone():
    step = stepper(model())
    kept = [saved_bytes(step, images) for images in (2, 4, 8)]
    assert kept[2] - kept[1] == pytest.approx(2 * (kept[1] - kept[0]), rel=0.01)
    assert all(p.grad is None for p in step.model.parameters())


def test_the_micro_batch_is_what_fits_in_memory_in_equal_parts(monkeypatch):
    step = stepper(model())
    each = (saved_bytes(step, 4) - saved_bytes(step, 2)) / 2
    weights = 12 * sum(p.numel() for p in step.model.parameters())
    for share, room, expected in ((6, 100, 6), (60, 25, 20), (64, 40, 32), (100, 1000, 50), (7, 0.1, 1)):
        step.batch_size = share
        monkeypatch.setattr(
            stepping.device, "free_memory", lambda where, room=room: weights + room * each / stepping.ROOM
        )
        assert fitting(step) == expected, (share, room)


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    sizes = []
    for place in (Place(), Place(0, 4, 0, 4)):
        step = stepper(model(), team=Team(place))
        step.batch_size = 256
        each = (saved_bytes(step, 4) - saved_bytes(step, 2)) / 2
        weights = 12 * sum(p.numel() for p in step.model.parameters())
        monkeypatch.setattr(stepping.device, "free_memory", lambda where, b=4 * weights + 40 * each / stepping.ROOM: b)
        sizes.append(fitting(step))
    assert 32 < sizes[0] <= 64  # as many as a CPU takes at once
    assert sizes[1] <= 10


def test_processes_agree_on_the_least_micro_batch(monkeypatch):
    class Two(Team):
        def most(self, own: int) -> int:
            return max(own, -3)  # the other process has room for three

    step = stepper(model(), team=Two(Place(0, 2, 0, 2)))
    step.batch_size = 40
    assert fitting(step) == 3


def test_a_compiler_that_fails_is_said_and_done_without(monkeypatch, capsys):
    def broken(module, **options):
        def run(*inputs):
            raise RuntimeError("no C++ compiler\nsecond line")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    step, plain = stepper(model()), stepper(model())
    step.compile()
    told = capsys.readouterr().err
    assert "torch.compile does not work here (RuntimeError: no C++ compiler)" in told.replace("\n", " ")
    assert float(step(batch(False))) == float(plain(batch(False)))


@pytest.mark.parametrize("valid", [False, True])
def test_a_traced_model_is_one_graph_and_gives_the_same_gradients(valid: bool, monkeypatch, capsys):
    """With torch's own tracer, which every backend compiles the graphs of; a graph that breaks is an error here."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, **options: compile_(module, backend="aot_eager", fullgraph=True, **options)
    )
    step = stepper(model())
    step.compile()
    assert capsys.readouterr().err == ""
    loss, traced = gradients(step, batch(valid))
    expected, whole = gradients(stepper(model()), batch(valid))
    assert loss == pytest.approx(expected, rel=1e-6)
    for one, other in zip(whole, traced, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.slow  # the compiler takes half a minute
def test_a_compiled_run_gives_the_losses_of_a_plain_one(maectl, photographs, tmp_path, small):
    losses = []
    for compile_ in ("on", "off"):
        sets = [word for each in [*small, f"train.compile={compile_}"] for word in ("--set", each)]
        done = maectl("pretrain", photographs, "--out", tmp_path / compile_, "--recipe", "small-images", "--steps", 6,
                      "--batch-size", 8, *sets, timeout=400, check=True)  # fmt: skip
        assert "torch.compile does not work" not in done.stderr
        losses.append([line["loss"] for line in runs.lines(tmp_path / compile_) if "loss" in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
