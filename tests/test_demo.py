"""The demo: the whole road, and that its probe beats the random twin."""

import json
from pathlib import Path
from typing import Any

import pytest
import rasterio

from maectl.demo import demo
from maectl.errors import UsageError
from maectl_satellite import sample


def test_the_demo_leaves_pictures_a_run_and_a_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = demo("natural", tmp_path / "demo", seed=0, steps=3)
    said = capsys.readouterr().out
    assert "maectl pretrain FOLDER" in said
    assert "verdict:" in said
    assert (tmp_path / "demo" / "run" / "encoder.safetensors").is_file()
    assert json.loads((tmp_path / "demo" / "probe.json").read_text())["n_test"] == 204
    assert len(list((tmp_path / "demo" / "pictures").glob("*-panels.png"))) == len(result["reconstruct"]["images"]) == 6
    assert result["pretrain"]["rejected"] == 1  # the file cut short


def test_the_demo_of_rasters_goes_through_every_verb_and_writes_maps_in_place(tmp_path: Path, capsys: Any, monkeypatch):
    monkeypatch.setattr(sample, "SCENES", {"train": 10, "test": 8})  # a class
    result = demo("satellite", tmp_path / "demo", seed=0, steps=3)
    assert capsys.readouterr().out.count("verdict:") == 2
    assert result["probe"]["n_test"] == 32
    assert result["dense"]["miou"] > 0.3
    for entry, about in zip(result["reconstruct"]["images"], result["embed"]["maps"], strict=True):
        with (
            rasterio.open(entry["source"]) as source,
            rasterio.open(entry["outputs"][1]) as written,
            rasterio.open(about["outputs"][0]) as features,
        ):
            assert source.crs == written.crs == features.crs
            assert source.transform == written.transform
            assert features.transform.a == 4 * source.transform.a
            assert source.descriptions == written.descriptions


def test_the_demo_never_overwrites_what_it_did_not_make(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="not made by maectl demo"):
        demo("natural", tmp_path, seed=0)
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demos_encoder_beats_its_random_twin(tmp_path: Path, seed: int):
    verdict = demo("natural", tmp_path / "demo", seed=seed)["probe"]["verdict"]
    assert verdict.startswith("the encoder beats its random twin")
