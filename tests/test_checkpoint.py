"""Checkpoints: whole or absent, exact, free of pickles, and read by timm as they are."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from maectl import checkpoint
from maectl.checkpoint import Config, latest, load, prune, restore, save, save_encoder
from maectl.errors import RunError, UsageError
from maectl.mae import MaskedAutoencoder
from maectl.optim import adamw
from maectl.stats import Normalizer

Disk = namedtuple("Disk", "total used free")
MODEL = {
    "channels": 2, "image_size": (16, 24), "patch_size": (8, 8), "width": 16, "depth": 2, "heads": 2,
    "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "norm_pix_loss": True,
}  # fmt: skip


def config(**changes) -> Config:
    given = {
        "model": MODEL, "mask_ratio": 0.75, "adapter": "natural", "options": {"channels": 3}, "channels": ("a", "b"),
        "dtype": "uint8", "unit": "0..255", "normalizer": Normalizer((1.5, 2), (3, 4), ((0, 0), (9, 9))),
        "statistics": {},
    }  # fmt: skip
    return Config.model_validate({**given, **changes})


def trained(steps: int = 2) -> tuple[MaskedAutoencoder, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = config().build_model()
    optimizer = adamw(model, 1e-2, 0.05)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: MaskedAutoencoder, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    images, noise = torch.randn(4, 2, 16, 24, generator=generator), torch.rand(4, 6, generator=generator)
    model(images, noise, 0.5).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_checkpoint_brings_model_and_optimizer_back_to_the_bit(tmp_path):
    model, optimizer = trained()
    folder = save(tmp_path, 2, model, config(), optimizer, {"step": 2})
    other = config().build_model()
    fresh = adamw(other, 1e-2, 0.05)
    assert restore(folder, other, fresh) == {"step": 2}
    for _ in range(3):
        step(model, optimizer)
        step(other, fresh)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert load(tmp_path).config == load(folder).config
    assert load(folder).config.model_dump_json() == config().model_dump_json()
    assert load(tmp_path).has_decoder
    for name, tensor in load(tmp_path).model().state_dict().items():
        assert torch.equal(tensor, load_file(folder / "model.safetensors")[name])


def test_files_hold_no_pickle_and_can_be_read_by_others(tmp_path):
    model, optimizer = trained()
    folder = save(tmp_path, 2, model, config(), optimizer, {"step": 2})
    encoder = save_encoder(tmp_path, model, config())
    for file in [*folder.iterdir(), encoder]:
        head = file.read_bytes()[:64]
        assert file.suffix in (".json", ".safetensors")
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:  # eight bytes of length, then JSON
            assert json.loads(file.read_bytes()[8 : 8 + int.from_bytes(head[:8], "little")])
        assert file.stat().st_mode & 0o044 == 0o044
    assert not [name for name in vars(checkpoint) if "pickle" in name]
    assert "torch.load" not in Path(checkpoint.__file__).read_text()


def test_a_save_that_is_cut_short_leaves_the_one_before_and_the_next_clears_up(tmp_path, monkeypatch):
    model, optimizer = trained()
    first = save(tmp_path, 1, model, config(), optimizer, {"step": 1})
    real = checkpoint._write

    def killed(tensors, path, metadata=None):
        if path.name == "optimizer.safetensors":
            raise KeyboardInterrupt
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, model, config(), optimizer, {"step": 2})
    assert latest(tmp_path) == latest(tmp_path, resumable=True) == first
    monkeypatch.undo()
    (left,) = (tmp_path / "checkpoints").glob(".*.tmp")
    left.rename(left.with_name(".step-0000002.1.tmp"))  # of another process, killed
    save(tmp_path, 3, model, config(), optimizer, {"step": 3})
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["step-0000001", "step-0000003"]


def test_the_same_step_can_be_saved_again(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 1, model, config(), optimizer, {"step": 1})
    step(model, optimizer)
    folder = save(tmp_path, 1, model, config(), optimizer, {"step": 1})
    assert torch.equal(load_file(folder / "model.safetensors")["cls_token"], model.cls_token)
    first = save_encoder(tmp_path, model, config())
    step(model, optimizer)
    assert save_encoder(tmp_path, model, config()) == first
    assert torch.equal(load_file(first)["cls_token"], model.cls_token)


def marked(run: Path, step: int, whole: bool = True) -> Path:
    """A folder that looks like a checkpoint."""
    folder = run / "checkpoints" / f"step-{step:07d}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", *(("optimizer.safetensors", "trainer.json") if whole else ())):
        (folder / name).touch()
    return folder


def test_the_latest_is_the_highest_complete_step(tmp_path):
    nine, ten = marked(tmp_path, 9_999_999), marked(tmp_path, 10_000_000)  # one digit more
    assert latest(tmp_path) == ten
    (ten / "trainer.json").unlink()
    assert latest(tmp_path) == ten
    assert latest(tmp_path, resumable=True) == nine
    (ten / "config.json").unlink()
    assert latest(tmp_path) == nine
    shutil.rmtree(nine)
    with pytest.raises(RunError, match="holds no checkpoint: did pretraining begin"):
        latest(tmp_path)
    with pytest.raises(RunError, match="does not exist: give the run folder"):
        latest(tmp_path / "nowhere")


def test_pruning_keeps_the_newest_whole_and_milestones_light(tmp_path):
    for number in (100, 200, 300, 9_999_999, 10_000_000):
        marked(tmp_path, number)
    prune(tmp_path, 2, {200, 10_000_000})
    kept = {each.name: len(list(each.iterdir())) for each in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step-0000200": 2, "step-9999999": 4, "step-10000000": 4}
    prune(tmp_path, 1, {200})
    kept = {each.name: len(list(each.iterdir())) for each in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step-0000200": 2, "step-10000000": 4}


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    model, optimizer = trained()
    needed = 4 * sum(p.numel() * 4 for p in model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, needed - 1))
    with pytest.raises(RunError, match=rf"needs {needed:,} bytes .* {needed - 1:,} are free: make room and --resume"):
        save(tmp_path, 1, model, config(), optimizer, {"step": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: quota")])
def test_a_disk_that_fills_up_leaves_the_checkpoint_before_and_nothing_half_made(tmp_path, monkeypatch, error):
    model, optimizer = trained()
    before = save(tmp_path, 1, model, config(), optimizer, {"step": 1})
    written = []

    def full(*arguments):
        written.append(arguments)
        if len(written) > 1:
            raise error
        arguments[1].write_bytes(b"half")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(RunError, match="the one before is whole"):
        save(tmp_path, 2, model, config(), optimizer, {"step": 2})
    assert list((tmp_path / "checkpoints").iterdir()) == [before]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A real run of a few steps."""
    from conftest import SMALL, picture
    from PIL import Image

    from maectl.pretrain import Request, pretrain

    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    for number in range(20):
        Image.fromarray(picture(number)).save(folder / "data" / f"{number}.png")
    settings = [*SMALL, "model.image_size=[32,48]", "data.store=off"]
    pretrain(Request([str(folder / "data")], folder / "out", "small-images", None, settings, steps=4, workers=1))
    return folder / "out"


def test_the_encoder_of_a_run_loads_strictly_in_timm_and_gives_its_features(run):
    from timm.models.vision_transformer import VisionTransformer

    found = load(run)
    model = found.model().eval()
    vit = VisionTransformer((32, 48), (8, 8), 3, 0, "token", 32, 2, 2).eval()
    vit.load_state_dict(load_file(run / "encoder.safetensors"), strict=True)
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model.encode(images), vit.forward_features(images), atol=1e-5, rtol=1e-5)
    exported = load(run / "encoder.safetensors")
    assert not exported.has_decoder
    assert exported.config == found.config
    with torch.inference_mode():
        torch.testing.assert_close(exported.model().eval().encode(images), model.encode(images), atol=0, rtol=0)


def test_a_run_holds_no_name_of_a_file_outside_its_index_and_quarantine(run):
    for file in run.rglob("*"):
        if file.is_file() and file.name not in ("index.arrow", "quarantine.csv", "run.json"):
            assert b"17.png" not in file.read_bytes(), file


def test_foreign_and_damaged_files_are_one_line_and_no_traceback(run, tmp_path):
    def refused(path: Path, told: str) -> None:
        with pytest.raises(RunError, match=told) as caught:
            load(path).model()
        assert "\n" not in str(caught.value)

    junk = tmp_path / "junk.safetensors"
    for content in (b"", b"\x80\x04 a pickle", os.urandom(200)):
        junk.write_bytes(content)
        refused(junk, "is not a safetensors file")
    save_file({"a": torch.zeros(1)}, junk)
    refused(junk, "was not written by maectl")
    save_file({"a": torch.zeros(1)}, junk, {"maectl": "{}"})
    refused(junk, "is not an encoder of this version of maectl: model: Field required")
    whole = (run / "encoder.safetensors").read_bytes()
    junk.write_bytes(whole[: len(whole) // 2])
    refused(junk, "is not a safetensors file")

    folder = tmp_path / "checkpoint"
    shutil.copytree(latest(run), folder)
    about = json.loads((folder / "config.json").read_text())
    for content in (b"", b"\xff\xfe", b"[]", b'{"model": 3}', json.dumps({**about, "extra": 1}).encode()):
        (folder / "config.json").write_bytes(content)
        refused(folder, "is not a checkpoint of this version of maectl")
    (folder / "config.json").write_text(json.dumps({**about, "model": {"layers": 3}}))
    refused(folder, "describes no model of this version")
    wider = {**about["model"], "width": 64}
    (folder / "config.json").write_text(json.dumps({**about, "model": wider}))
    refused(folder, "weights and config do not fit each other")
    (folder / "config.json").write_text(json.dumps(about))
    load(folder).model()
    (folder / "model.safetensors").write_bytes(b"nothing")
    refused(folder, "is not a checkpoint of this version of maectl")
    (folder / "model.safetensors").unlink()
    refused(folder, "is not a checkpoint of this version of maectl")


def test_what_cannot_be_resumed_from_says_so(tmp_path):
    model, optimizer = trained()
    for name, content in (("trainer.json", b"{"), ("optimizer.safetensors", b"x"), ("model.safetensors", b"x")):
        folder = save(tmp_path, 1, model, config(), optimizer, {"step": 1})
        (folder / name).write_bytes(content)
        with pytest.raises(RunError, match="cannot be resumed from"):
            restore(folder, model, optimizer)


def test_the_adapter_is_made_again_as_it_was_or_it_is_said_why_not():
    assert config(options={"channels": 1}).build_adapter().channels == 1
    with pytest.raises(UsageError, match="no adapter 'radar'"):
        config(adapter="radar").build_adapter()
    with pytest.raises(RunError, match=r"'natural' installed here does not know .* \(old_option\)"):
        config(options={"channels": 1, "old_option": 2}).build_adapter()


def test_a_config_survives_json_with_its_numbers_exact():
    given = config(normalizer=Normalizer((1 / 3, np.pi), (1e-30, 7e300), None, True), display={"range": (0, 1.1)})
    again = Config.model_validate_json(given.model_dump_json())
    assert (again.normalizer, again.display, again.channels) == (given.normalizer, given.display, given.channels)
    assert again.model_dump_json() == given.model_dump_json()


def test_replacing_a_run_empties_its_folder_and_follows_no_link_out_of_it(tmp_path):
    from maectl import run as runs

    (tmp_path / "scratch").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").touch()
    out = tmp_path / "out"
    out.symlink_to("scratch")  # a run may lie on another disk
    runs.create(out, {"steps": 3})
    (out / "link").symlink_to(tmp_path / "precious")
    runs.clear(out)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert (tmp_path / "precious" / "a").exists()
    runs.clear(tmp_path / "precious")  # no run of ours
    assert (tmp_path / "precious" / "a").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_run_whose_json_is_damaged_is_one_line(tmp_path, content):
    from maectl import run as runs

    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json cannot be read"):
        runs.read(tmp_path)
