"""`maectl bench`: figures that fit one another, nothing left behind, and advice that follows from the figures."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image

from maectl import bench as module
from maectl import cli, flops
from maectl.advice import advice, report
from maectl.errors import UsageError
from maectl.synthetic import photographs as made

KEYS = {
    "device", "precision", "cores", "workers", "images", "recipe", "batch_size", "micro_batch", "source", "stages",
    "step_shares", "loading_s_an_image", "store_form", "store_bytes", "loader_images_per_s", "step_images_per_s",
    "images_per_s", "data_wait_fraction", "bf16_step_images_per_s", "peak_memory_bytes", "flops_an_image",
    "product_flops_per_s", "mfu", "mfu_together", "advice",
}  # fmt: skip
LOADING, STEP = ["read", "decode", "crop_resize"], ["copy_normalise", "forward", "backward", "optimizer"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SECONDS", 0.1)
    monkeypatch.setattr(module, "MADE", 24)
    rate = flops.product_rate
    monkeypatch.setattr(flops, "product_rate", lambda where, dtype: rate(where, dtype, 0.05))


def measured(*folders: Path, settings: tuple[str, ...] = (), **options) -> dict:
    return module.bench(
        [*map(str, folders)], overrides=[*SMALL, *settings], batch_size=8, steps=2, workers=1, **options
    )


def test_figures_are_there_positive_and_fit_one_another(photographs: Path, monkeypatch, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    found = measured(photographs, recipe_name="small-images")
    assert set(found) == KEYS
    assert [*found["stages"]] == LOADING + STEP
    assert all(each["s_a_step"] == pytest.approx(8 * each["s_an_image"]) for each in found["stages"].values())
    assert all(
        each["s_an_image"] > 0 for name, each in found["stages"].items() if name not in ("decode", "crop_resize")
    )
    assert sum(found["step_shares"].values()) == pytest.approx(1)
    assert [*found["step_shares"]] == STEP
    own = sum(found["stages"][name]["s_an_image"] for name in LOADING)
    assert found["loading_s_an_image"][found["source"]] == pytest.approx(own)
    assert min(found[name] for name in ("loader_images_per_s", "step_images_per_s", "images_per_s")) > 0
    assert 0 <= found["data_wait_fraction"] <= 1
    assert found["peak_memory_bytes"] > 1e7
    counted = flops.step({**found["recipe"]["model"], "channels": 3}, found["recipe"]["model"]["mask_ratio"], 8)
    assert found["flops_an_image"] == counted._asdict()
    assert found["mfu"] == pytest.approx(
        counted.standard * found["step_images_per_s"] / found["product_flops_per_s"]
    )  # fmt: skip
    assert found["advice"] == advice(found)
    assert sorted(tmp_path.rglob("*")) == before, "nothing may be left behind"


def test_the_store_is_used_unless_it_is_off(photographs: Path):
    assert measured(photographs, recipe_name="small-images")["source"] == "store"
    found = measured(photographs, recipe_name="small-images", settings=("data.store=off",))
    assert found["source"] == "files"
    assert found["stages"]["decode"]["s_an_image"] > 0
    assert found["loading_s_an_image"]["store"] is not None, "what a store would give is told all the same"


def test_the_command_makes_its_own_images_and_prints_one_document(monkeypatch: pytest.MonkeyPatch, capsys):
    settings = [each for key in SMALL for each in ("--set", key)]
    command = ["maectl", "bench", "--synthetic", "--json", "--recipe", "small-images", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--batch-size", "4", "--workers", "1", *settings])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    assert set(json.loads(capsys.readouterr().out)) == KEYS


@pytest.mark.parametrize("folders", [[], ["somewhere"]])
def test_images_are_either_given_or_made(folders: list[str]):
    with pytest.raises(UsageError, match="either FOLDER"):
        module.bench(folders, synthetic=bool(folders))


def test_a_rate_of_products_is_that_of_a_processor():
    assert 1e9 < flops.product_rate(torch.device("cpu"), torch.float32) < 1e14


def test_synthetic_photographs_compress_as_real_ones_and_repeat(tmp_path: Path):
    sizes = [path.stat().st_size for path in sorted(made(tmp_path / "a", 4).iterdir())]
    assert 35e3 < np.mean(sizes) < 50e3
    made(tmp_path / "b", 4)
    names = [path.name for path in (tmp_path / "a").iterdir()]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    with Image.open(tmp_path / "a" / "00000.jpg") as first, Image.open(tmp_path / "a" / "00001.jpg") as second:
        assert first.size == (500, 375)
        assert np.abs(np.asarray(first, float) - np.asarray(second, float)).mean() > 10


# ---- advice ---------------------------------------------------------------------------------------------------

BALANCED = {
    "device": "cuda (H100)", "precision": "bf16", "cores": 16, "workers": 16, "batch_size": 256, "micro_batch": 256,
    "images": 1000, "source": "store", "store_bytes": 5e9, "store_form": "raw",
    "recipe": {"model": {"size": "base", "image_size": [224, 224]}},
    "stages": {
        name: {"s_an_image": seconds, "s_a_step": 256 * seconds}
        for name, seconds in zip(LOADING + STEP, (1e-4, 0.0, 3e-4, 1e-6, 7e-5, 1.3e-4, 2e-6), strict=True)
    },
    "step_shares": {"copy_normalise": 0.01, "forward": 0.33, "backward": 0.65, "optimizer": 0.01},
    "loading_s_an_image": {"files": 5e-3, "store": 4e-4}, "loader_images_per_s": 40000.0, "step_images_per_s": 5000.0,
    "images_per_s": 4950.0, "data_wait_fraction": 0.002, "bf16_step_images_per_s": None, "peak_memory_bytes": 2**34,
    "flops_an_image": {"standard": 58.7e9, "computed": 56e9, "full_tokens": 137e9}, "product_flops_per_s": 7e14,
    "mfu": 0.42, "mfu_together": 0.41,
}  # fmt: skip


def changed(**values) -> dict:
    return {**copy.deepcopy(BALANCED), **values}


def test_where_all_is_well_nothing_stands_out():
    assert advice(BALANCED) == "nothing stands out: the step is products of matrices at 42% of the peak"


def test_waiting_for_decoding_is_mended_by_a_store():
    stages = {**BALANCED["stages"], "decode": {"s_an_image": 5e-3, "s_a_step": 1.28}}
    said = advice(changed(source="files", stages=stages, images_per_s=3000.0, data_wait_fraction=0.4))
    assert "40% of the time" in said
    assert "decoding takes 5.0 ms an image in each of 16 threads" in said
    assert "from a store an image takes 0.4 ms, not 5.0: --set data.store=FOLDER (5.0 GB)" in said


def test_waiting_with_the_store_is_mended_by_threads_where_cores_are_idle():
    said = advice(changed(workers=2, images_per_s=3000.0, data_wait_fraction=0.4))
    assert "cropping and resizing takes 0.3 ms" in said
    assert "--workers 16" in said
    assert "more cores" in advice(changed(images_per_s=3000.0, data_wait_fraction=0.4))


def test_the_largest_gain_is_the_one_advised():
    slow = changed(precision="fp32", bf16_step_images_per_s=9500.0)
    assert "bf16 is 1.9 times as fast" in advice(slow)
    assert "data is waited for" in advice({**slow, "images_per_s": 2000.0, "data_wait_fraction": 0.6})
    shares = {"copy_normalise": 0.0, "forward": 0.2, "backward": 0.5, "optimizer": 0.3}
    assert "the optimizer takes 30% of a step: a larger batch, --batch-size 1024" in advice(changed(step_shares=shares))


def test_loading_that_takes_cores_from_the_step_is_said_and_noise_is_not():
    slow = changed(
        device="cpu (x86_64)", cores=2, workers=2, step_images_per_s=300.0, images_per_s=200.0, source="files"
    )
    said = advice({**slow, "loading_s_an_image": {"files": 5e-3, "store": 4e-4}, "data_wait_fraction": 0.0})
    assert "waited for 0% of the time and loading takes 50% of the cores" in said
    assert "data.store=FOLDER" in said
    assert "nothing" in advice(
        {**slow, "loading_s_an_image": {"files": 1e-4, "store": 1e-5}, "data_wait_fraction": 0.0}
    )


def test_a_gpu_that_is_not_filled_is_said():
    assert "does not fill the device; try --batch-size 512" in advice(changed(mfu=0.08))


def test_the_report_says_every_stage_and_the_advice():
    said = report({**BALANCED, "advice": "do nothing"})
    assert said.endswith("do nothing")
    assert all(word in said for word in ("decode", "crop, resize", "optimizer", "step alone"))
