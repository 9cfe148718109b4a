"""Pretraining end to end: the run folder, exact resume, interruption, budgets, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maectl import run as runs
from maectl.errors import DataError, RunError, TrainingError, UsageError
from maectl.index import Index, held_out
from maectl.pretrain import Request, pretrain
from maectl.stepping import Stepper


def request(folder: Path, out: Path, small: list[str], **changes) -> Request:
    given = {"recipe": "small-images", "overrides": small, "steps": 6, "batch_size": 8, "workers": 2}
    return Request(folders=[str(folder)], out=out, **{**given, **changes})


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in runs.lines(run) if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = max((run / "checkpoints").glob("step-*"))
    return load_file(folder / "model.safetensors")


def test_a_run_leaves_the_folder_that_was_promised(photographs: Path, tmp_path: Path, small: list[str]):
    result = pretrain(request(photographs, tmp_path / "run", small))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "encoder.safetensors", "recipe.yaml", "run.json", "index.arrow", "quarantine.csv", "stats.json", "log.jsonl",
        "samples", "tensorboard", "checkpoints",
    }  # fmt: skip
    whole = tmp_path / "run" / "checkpoints" / "step-0000006"
    assert {path.name for path in whole.iterdir()} == {
        "model.safetensors", "config.json", "optimizer.safetensors", "trainer.json"
    }  # fmt: skip
    assert set(result) == {
        "run", "checkpoint", "steps", "epochs", "images", "rejected", "batch_size", "loss_first", "loss_last",
        "baselines", "images_per_s", "data_wait_fraction", "seconds",
    }  # fmt: skip
    assert result["images"] == 24
    assert result["steps"] == 6
    assert result["loss_last"] < result["loss_first"]
    assert set(result["baselines"]) == {"patch_mean", "nearest_visible"}
    assert len(losses(tmp_path / "run")) == 6
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(photographs, tmp_path, small):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(request(photographs, tmp_path / name, [*small, f"train.seed={seed}"]))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["blocks.0.attn.qkv.weight"], c["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("store", ["auto", "off"])
@pytest.mark.parametrize("workers", [1, 3])
def test_losses_depend_neither_on_the_store_nor_on_the_number_of_workers(photographs, tmp_path, small, store, workers):
    pretrain(request(photographs, tmp_path / "plain", small))
    pretrain(request(photographs, tmp_path / "other", [*small, f"data.store={store}"], workers=workers))
    assert losses(tmp_path / "plain") == losses(tmp_path / "other")


def test_micro_batches_give_the_loss_of_the_whole_batch(photographs, tmp_path, small):
    pretrain(request(photographs, tmp_path / "whole", small))
    pretrain(request(photographs, tmp_path / "parts", [*small, "train.micro_batch=3"]))
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    np.testing.assert_allclose([loss for _, loss in parts], [loss for _, loss in whole], rtol=1e-4)


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(photographs, tmp_path, small, monkeypatch):
    overrides = [*small, "train.micro_batch=3"]
    pretrain(request(photographs, tmp_path / "unbroken", overrides))
    interrupt_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(request(photographs, tmp_path / "broken", overrides))
    assert len(losses(tmp_path / "broken")) == 3
    monkeypatch.undo()
    resumed = pretrain(Request(folders=[str(photographs)], out=tmp_path / "broken", resume=True, workers=1))
    assert resumed["steps"] == 6
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")
    one, other = weights(tmp_path / "broken"), weights(tmp_path / "unbroken")
    assert all(torch.equal(one[name], other[name]) for name in one)
    unbroken = runs.read(tmp_path / "unbroken")
    assert (resumed["loss_first"], resumed["loss_last"]) == (unbroken["loss_first"], unbroken["loss_last"])


def test_a_device_that_is_full_says_what_to_do(photographs, tmp_path, small, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stepper, "__call__", full)
    with pytest.raises(TrainingError, match=r"full with 8 images at once: .*train.micro_batch=4"):
        pretrain(request(photographs, tmp_path / "run", small))


def interrupt_after(steps: int, monkeypatch) -> None:
    """Raise Ctrl-C's signal while the given step is being computed."""
    done, step = [], Stepper.__call__

    def interrupted(*arguments):
        done.append(None)
        if len(done) == steps:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(Stepper, "__call__", interrupted)


def test_a_killed_process_resumes_from_its_checkpoint_with_the_same_losses(photographs, tmp_path, small):
    """SIGKILL at an arbitrary moment, in a real process."""
    overrides = [*small, "train.checkpoint_minutes=0.0001"]  # at every step
    pretrain(request(photographs, tmp_path / "unbroken", overrides, steps=16))
    command = [sys.executable, "-m", "maectl", "pretrain", str(photographs), "--out", str(tmp_path / "killed"),
               "--recipe", "small-images", "--steps", "16", "--batch-size", "8", "--workers", "2"]  # fmt: skip
    for override in overrides:
        command += ["--set", override]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(checkpoints.glob("step-*/trainer.json")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    resumed = pretrain(Request(folders=[], out=tmp_path / "killed", resume=True))
    assert resumed["steps"] == 16
    for (step, loss), (other_step, other) in zip(
        losses(tmp_path / "killed"), losses(tmp_path / "unbroken"), strict=True
    ):
        assert step == other_step
        # another process may have another number of threads, hence another order of sums
        assert loss == pytest.approx(other, rel=1e-4)


def test_ctrl_c_writes_a_checkpoint_and_exits_130(photographs, tmp_path, small):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "maectl", "pretrain", str(photographs), "--out", str(out), "--recipe",
               "small-images", "--steps", "100000", "--batch-size", "8", "--workers", "1"]  # fmt: skip
    for override in small:
        command += ["--set", override]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ((out / "log.jsonl").exists() and losses(out)):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    step = json.loads((max((out / "checkpoints").glob("step-*")) / "trainer.json").read_text())["step"]
    assert step == len(losses(out)) > 0


def test_a_second_run_into_the_same_folder_is_refused_and_overwrite_replaces_it(photographs, tmp_path, small):
    first = request(photographs, tmp_path / "run", small)
    pretrain(first)
    with pytest.raises(UsageError, match=r"--resume.*--overwrite"):
        pretrain(first)
    with pytest.raises(RunError, match="finished"):
        pretrain(Request(folders=[], out=tmp_path / "run", resume=True))
    before = runs.read(tmp_path / "run")["seconds"]
    pretrain(request(photographs, tmp_path / "run", small, overwrite=True))
    assert runs.read(tmp_path / "run")["seconds"] != before


def test_overwrite_leaves_a_run_alone_that_another_process_is_training(photographs, tmp_path, small):
    pretrain(request(photographs, tmp_path / "run", small))
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with runs.locked(tmp_path / "run"), pytest.raises(RunError, match="another process"):
        pretrain(request(photographs, tmp_path / "run", small, overwrite=True))
    with runs.locked(tmp_path / "run"), pytest.raises(RunError, match="another process"):
        runs.clear(tmp_path / "run")  # one that has begun since it was looked at
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_overwrite_never_deletes_what_is_not_a_run(photographs, tmp_path, small):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(UsageError, match="holds no run"):
        pretrain(request(photographs, tmp_path / "thesis", small, overwrite=True))
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_files_added_since_are_counted_and_not_used(photographs, tmp_path, small, monkeypatch, capsys):
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(request(photographs, tmp_path / "run", small))
    monkeypatch.undo()
    Image.new("RGB", (40, 40)).save(photographs / "new.png")
    pretrain(Request(folders=[str(photographs)], out=tmp_path / "run", resume=True))
    # the text file was there before, and is not in the index either
    assert "2 files" in capsys.readouterr().err


def test_a_resumed_run_takes_no_new_settings(photographs, tmp_path, small, monkeypatch):
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(request(photographs, tmp_path / "run", small))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--batch-size"):
        pretrain(Request(folders=[], out=tmp_path / "run", resume=True, batch_size=4))


def test_files_that_vanish_while_training_are_quarantined_and_replaced(photographs, tmp_path, small, monkeypatch):
    import maectl.training as module

    made, lost = module._make_folder, []

    def sabotage(training, prepared):
        made(training, prepared)
        lost.extend(prepared.index[int(row)].files[0] for row in prepared.train[:2])
        Path(lost[0]).unlink()
        Path(lost[1]).write_bytes(b"\xff\xd8\xff broken")

    monkeypatch.setattr(module, "_make_folder", sabotage)
    result = pretrain(request(photographs, tmp_path / "run", [*small, "data.store=off"], steps=8))
    assert result["rejected"] == 2
    quarantine = (tmp_path / "run" / "quarantine.csv").read_text()
    assert all(str(Path(path).relative_to(photographs)) in quarantine for path in lost)
    assert quarantine.count(",train,") == 2


def test_too_many_bad_files_stop_the_run_when_a_limit_is_set(photographs, tmp_path, small):
    for path in sorted(photographs.rglob("*.jpg"))[:6]:
        path.write_bytes(path.read_bytes()[:200])
    pretrain(request(photographs, tmp_path / "run", small))
    with pytest.raises(DataError, match=r"25\.0% .* data.max_bad"):
        pretrain(request(photographs, tmp_path / "other", [*small, "data.max_bad=0.1"]))
    assert not (tmp_path / "other").exists()


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(photographs, tmp_path, small):
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at step \d+ with a learning rate"):
        pretrain(request(photographs, tmp_path / "run", [*small, "train.base_lr=1e30"], steps=16))


def test_max_time_settles_the_steps_once_and_is_kept(photographs, tmp_path, small):
    begun = time.monotonic()
    result = pretrain(request(photographs, tmp_path / "run", small, steps=None, max_time=8.0))
    assert time.monotonic() - begun < 30  # a limit that was not kept at all
    about = runs.read(tmp_path / "run")
    assert about["steps"] >= result["steps"] > 0
    assert about["warmup_steps"] <= about["steps"] // 10


def test_a_dry_run_writes_nothing(photographs, tmp_path, small):
    result = pretrain(request(photographs, tmp_path / "run", small, dry_run=True))
    assert result["checkpoint"] is None
    assert result["images"] == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photographs"]


def test_held_out_images_are_never_trained_on(photographs, tmp_path, small):
    pretrain(request(photographs, tmp_path / "run", small))
    index = Index(tmp_path / "run" / "index.arrow")
    train, held = held_out(index.groups, 0)
    assert len(held) == 6  # at most a quarter
    assert not set(train) & set(held)
    assert sorted([*train, *held]) == list(range(24))


def test_weights_of_a_run_start_another(photographs, tmp_path, small):
    first = pretrain(request(photographs, tmp_path / "first", small, steps=30))
    for name in ("first", "first/encoder.safetensors"):
        out = tmp_path / name.replace("/", "-").replace("first", "next")
        pretrain(request(photographs, out, [*small, "train.base_lr=1e-9"], init=str(tmp_path / name)))
        trained, started = load_file(tmp_path / "first" / "encoder.safetensors"), load_file(out / "encoder.safetensors")
        assert torch.allclose(trained["blocks.1.mlp.fc1.weight"], started["blocks.1.mlp.fc1.weight"], atol=1e-6)
    whole = runs.read(tmp_path / "next")
    assert whole["loss_first"] == pytest.approx(first["loss_last"], abs=1e-6)
    with pytest.raises(RunError, match=r"blocks.*model\.size"):
        pretrain(request(photographs, tmp_path / "wide", [*small, "model.width=64"], init=str(tmp_path / "first")))
    assert not (tmp_path / "wide").exists()


def test_two_processes_cannot_write_one_run(photographs, tmp_path, small, monkeypatch):
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(request(photographs, tmp_path / "run", small))
    monkeypatch.undo()
    again = Request(folders=[], out=tmp_path / "run", resume=True)
    with runs.locked(tmp_path / "run"), pytest.raises(RunError, match="another process"):
        pretrain(again)
    assert pretrain(again)["steps"] == 6


def test_a_run_on_a_single_file_trains_and_resumes(photographs, tmp_path, small, monkeypatch):
    file = photographs / "set0" / "00.png"
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(request(file, tmp_path / "run", small))
    monkeypatch.undo()
    assert pretrain(Request(folders=[str(file)], out=tmp_path / "run", resume=True))["images"] == 1


def test_weights_that_are_not_there_are_refused_before_anything_is_done(photographs, tmp_path, small):
    with pytest.raises(UsageError, match="neither a run, a file nor timm:NAME"):
        pretrain(request(photographs, tmp_path / "run", small, init="nowhere"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photographs"]


def test_mixed_units_are_warned_of(photographs, tmp_path, small, capsys):
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(photographs / "deep.png")
    pretrain(request(photographs, tmp_path / "run", small))
    assert "0..255 and 0..65535 are mixed" in capsys.readouterr().err
