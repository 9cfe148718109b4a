"""Faults that tables, maps and reconstructions of rasters once had."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from test_dense import probed
from test_embed import DEFAULT, rows
from test_lattice import image, reader
from test_panels import made
from test_reconstruct import filled
from test_reconstruct import trained as trained_on_photographs
from test_satellite_verbs import opened, put, scene, trained

from maectl import checkpoint, mosaic, tiling
from maectl import embed as embedding
from maectl import lattice as lattices
from maectl.adapter import Pixels
from maectl.embed import embed
from maectl.errors import DataError, RunError, UsageError
from maectl.lattice import Lattice, affordable
from maectl.maps import block_features
from maectl.mosaic import parts
from maectl.stream import generator
from maectl_natural import Natural

CPU = torch.device("cpu")


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 255, (40, 48, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    put(tmp_path / "in" / "a.tif", scene())
    return tmp_path / "in"


# ---- what earlier calls wrote ------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["in/out", "in/../in/out", "link/out"])
def test_what_an_earlier_call_wrote_is_neither_an_image_nor_rejected(scenes, tmp_path, out):
    """However the folder is named; the map of a scene is a raster that the model cannot see."""
    run = trained(tmp_path / "run", opened(scenes))
    (tmp_path / "link").symlink_to(scenes)
    for _ in range(2):
        told = embed(run, [str(scenes)], tmp_path / out, **DEFAULT)
        assert (told["images"], told["rejected"]) == (1, [])
        told = filled(run, scenes, out=out)
        assert [each["source"] for each in told["images"]] == [str(scenes / "a.tif")]
        assert told["rejected"] == []


def test_pictures_are_not_put_among_the_images_of_a_folder(scenes, tmp_path):
    run = trained(tmp_path / "run", opened(scenes))
    with pytest.raises(UsageError, match="holds the images"):
        embed(run, [str(scenes)], scenes, **DEFAULT)
    with pytest.raises(UsageError, match="holds the images"):
        filled(run, scenes, out="in")
    assert embed(run, [str(scenes / "a.tif")], scenes, **DEFAULT)["images"] == 1  # who names a file means it


# ---- tables ------------------------------------------------------------------------------------------------------


def test_a_private_table_s_rows_are_the_numbers_of_index_csv(tmp_path, monkeypatch):
    """Rows of the scan also count pictures of an earlier call, index.csv does not."""
    monkeypatch.setattr(Natural, "private", True)
    folder, run = pictures(tmp_path / "in"), trained_on_photographs(tmp_path / "run")
    filled(run, folder, out="in/0out")
    told = embed(run, [str(folder)], folder / "0out", **DEFAULT)
    assert [each["row"] for each in rows(told["outputs"][0])] == [0, 1, 2]
    listed = (folder / "0out" / "index.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] + line[-6:] for line in listed] == ["0000,0.png", "0001,1.png", "0002,2.png"]


def test_a_call_that_fails_leaves_no_index_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(Natural, "private", True)
    folder, run = pictures(tmp_path / "in"), trained_on_photographs(tmp_path / "run")
    with pytest.raises(UsageError):
        embed(run, [str(folder)], tmp_path / "out", **DEFAULT | {"labels": tmp_path / "none.csv"})
    assert list((tmp_path / "out").iterdir()) == []


def test_rows_of_several_folders_can_be_told_apart(tmp_path):
    folders = [pictures(tmp_path / name) for name in "ab"]
    told = embed(trained_on_photographs(tmp_path / "run"), list(map(str, folders)), tmp_path / "out", **DEFAULT)
    paths = [each["path"] for each in rows(told["outputs"][0])]
    assert paths == [str(folder / f"{number}.png") for folder in folders for number in range(3)]


def test_a_name_that_is_no_utf8_is_written_so_that_it_can_be_read(tmp_path):
    folder = pictures(tmp_path / "in", 1)
    try:
        os.rename(folder / "0.png", os.fsencode(folder) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    told = embed(trained_on_photographs(tmp_path / "run"), [str(folder)], tmp_path / "out", **DEFAULT)
    assert [each["path"] for each in rows(told["outputs"][0])] == [r"\udcff.png"]


@pytest.mark.parametrize("blocked", ["embeddings.parquet", "embedding.json"])
def test_a_table_that_cannot_be_written_is_told(tmp_path, blocked):
    folder = pictures(tmp_path / "in")
    (tmp_path / "out" / blocked).mkdir(parents=True)
    with pytest.raises(RunError, match=rf"{blocked} cannot be written: Is a directory"):
        embed(trained_on_photographs(tmp_path / "run"), [str(folder)], tmp_path / "out", **DEFAULT)
    assert not [each for each in os.listdir(tmp_path / "out") if each.startswith(".")]


# ---- maps --------------------------------------------------------------------------------------------------------


def test_axes_that_cannot_be_written_are_told(scenes, tmp_path):
    (tmp_path / "out" / "pca.safetensors").mkdir(parents=True)
    with pytest.raises(RunError, match=r"pca\.safetensors cannot be written: Is a directory"):
        embed(trained(tmp_path / "run", opened(scenes)), [str(scenes)], tmp_path / "out", **DEFAULT | {"pca": 2})


def test_an_image_thinner_than_half_a_patch_is_told_to_have_none(scenes, tmp_path):
    put(tmp_path / "thin" / "a.tif", scene(height=200, width=1))
    with pytest.raises(DataError, match="no patch has features: less than half of each is valid and inside its image"):
        embed(trained(tmp_path / "run", opened(scenes)), [str(tmp_path / "thin")], tmp_path / "out", **DEFAULT)


def test_the_sample_for_axes_goes_on_until_it_finds_pixels(tmp_path, monkeypatch):
    """All but one block of a scene is empty, and few are looked at."""
    values = scene(height=160, width=160)
    values[:, :128] = 0
    put(tmp_path / "in" / "a.tif", values, nodata=0)
    run = trained(tmp_path / "run", opened(tmp_path / "in"))
    monkeypatch.setattr(embedding, "BLOCK", 4)
    monkeypatch.setattr(embedding, "FITTED", 1)
    for seed in range(4):
        told = embed(run, [str(tmp_path / "in")], tmp_path / f"out{seed}", **DEFAULT | {"seed": seed, "pca": 2})
        assert told["images"] == 1


def test_blocks_in_smaller_parts_are_the_same_and_each_is_computed_once(scenes, tmp_path, monkeypatch):
    run = trained(tmp_path / "run", opened(scenes), crop="40px")
    found = []
    calls: list[Any] = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[2])
        return block_features(*arguments)

    monkeypatch.setattr(embedding, "block_features", counted)
    for most in (1 << 25, 5000):
        monkeypatch.setattr(lattices, "MOST", most)
        calls.clear()
        told = embed(run, [str(scenes)], tmp_path / str(most), **DEFAULT | {"dtype": "float32"})
        with rasterio.open(told["outputs"][0]) as file:
            found.append(file.read())
    assert len(calls) > 1
    assert len({str(call) for call in calls}) == len(calls)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize(
    ("side", "pixels", "channels"), [(1024, (1, 1), 4), (1024, (32, 32), 4), (64, (16, 16), 300), (64, (1500, 1400), 4)]
)
def test_parts_have_32_million_values_at_most(side, pixels, channels):
    found = affordable(side, pixels, channels)
    assert channels * found**2 * pixels[0] * pixels[1] <= 1 << 25
    assert found == side or channels * (2 * found) ** 2 * pixels[0] * pixels[1] > 1 << 25


# ---- reconstructions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_a_part_is_no_larger_because_the_model_sees_its_pixels_enlarged(monkeypatch, scale):
    """300 pixels of 320 m with windows of 320 m: parts of 1,024 pixels took 7 GB."""
    monkeypatch.setattr(lattices, "MOST", 1 << 16)
    torch.manual_seed(0)
    model, whole = made().build_model().eval(), image(60, 70)
    lattice = Lattice((60, 70), (scale, scale), (8, 8), (4, 4))
    sizes = []

    def inpaint(model: Any, seen: Pixels, *rest: Any) -> Any:
        sizes.append(seen.values.size)
        return tiling.inpaint(model, seen, *rest)

    monkeypatch.setattr(mosaic, "inpaint", inpaint)
    chosen = tiling.masks((4, 4), 0.75, True, generator(0, 0))
    constants = np.full(3, 100.0), np.full(3, 40.0)
    seen = np.zeros((60, 70), int)
    for window, done, _ in parts(reader(whole), lattice, model, chosen, 0.75, made().normalizer, constants, 255.0, CPU):
        seen[window] += done.where
    assert (seen == 1).all()
    assert max(sizes) <= 3 * (146 + 8 * 8) ** 2  # a part, and a tile on either side


@pytest.mark.parametrize("crop", ["33px", "45px", "20px"])
def test_what_is_predicted_beyond_the_rim_and_in_nodata_does_not_reach_valid_pixels(scenes, tmp_path, crop):
    """A constant scene that ends just before a patch, with a hole: no pixel beside either is drawn to the mean."""
    reader = opened(scenes)
    run = trained(tmp_path / "run", reader, crop=crop)
    normalizer = checkpoint.load(run).config.normalizer
    level = [round(mean + std / 2) for mean, std in zip(normalizer.mean, normalizer.std, strict=True)]
    values = np.tile(np.array(level, np.uint16)[:, None, None], (1, 200, 190))
    values[:, 60:90, 50:100] = 0
    put(tmp_path / "flat" / "a.tif", values, nodata=0)
    (entry,) = filled(run, tmp_path / "flat" / "a.tif", cover=True)["images"]
    with rasterio.open(entry["outputs"][1]) as file:
        assert np.abs(file.read().astype(int) - values).max() <= 3


# ---- the probe of patches ----------------------------------------------------------------------------------------


def test_class_numbers_that_float32_would_merge_are_refused_without_a_warning(scenes, tmp_path):
    run = trained(tmp_path / "run", opened(scenes))
    kinds = np.random.default_rng(0).integers(0, 3, (12, 10)).repeat(8, 0).repeat(8, 1)
    mask = put(tmp_path / "masks" / "a.tif", np.array((16777216, 16777217, 7), np.int32)[kinds][None], names=False)
    with pytest.raises(UsageError, match="class numbers of 16,777,216 or more, which may be rounded"):
        probed(run, scenes / "a.tif", mask)
    put(mask, np.array((1, 1e30, 7), np.float32)[kinds][None], names=False)
    with pytest.raises(UsageError, match="1e\\+30 is no whole number"):
        probed(run, scenes / "a.tif", mask)


def test_several_images_of_one_group_are_told_to_be_divided_as_if_of_one_place(scenes, tmp_path):
    run = trained(tmp_path / "run", opened(scenes))
    kinds = np.random.default_rng(0).integers(0, 3, (12, 10)).repeat(8, 0).repeat(8, 1).astype(np.uint8)[None]
    put(tmp_path / "masks" / "a.tif", kinds, names=False)
    assert not any("one group" in note for note in probed(run, scenes, tmp_path / "masks")["notes"])
    put(scenes / "b.tif", scene(1))
    put(tmp_path / "masks" / "b.tif", kinds, names=False)
    notes = probed(run, scenes, tmp_path / "masks")["notes"]
    assert [note[:32] for note in notes if "one group" in note] == ["the 2 images are one group: wher"]
