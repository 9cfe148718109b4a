"""Features out: tables that are the probe's features, maps that lie where the image does."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lattice import image, reader
from test_panels import made
from test_reconstruct import trained
from typer.testing import CliRunner

from maectl import checkpoint
from maectl.adapter import Pixels
from maectl.cli import app
from maectl.dataset import Batch, normalise
from maectl.embed import embed
from maectl.errors import DataError, UsageError
from maectl.features import Members, extract
from maectl.lattice import Lattice
from maectl.maps import QuickLook, block_features
from maectl.projection import Projection, byte_scales, quantised
from maectl.scan import scan
from maectl.store import Reader
from maectl.windows import shares
from maectl_natural import Natural

CPU = torch.device("cpu")
CONSTANTS = np.full(3, 100.0), np.full(3, 50.0)
DEFAULT = {"dtype": None, "pca": None, "pool": "mean", "labels": None, "seed": 0, "workers": 1}


def rows(path: str) -> list[dict]:
    return pyarrow.parquet.read_table(path).to_pylist()


def test_a_table_holds_the_features_the_probe_sees_with_groups_and_the_folders_as_labels(photographs, tmp_path):
    run = trained(tmp_path / "run")
    told = embed(run, [str(photographs)], tmp_path / "out", **DEFAULT)
    assert told["kind"] == "table"
    assert told["images"] == 24
    assert (tmp_path / "out" / "embedding.json").is_file()
    found = rows(told["outputs"][0])
    config = made()
    index = scan([photographs], Natural, config.seeing(), tmp_path / "index.arrow").index
    everything = Members(np.arange(24), np.full(24, -1), np.arange(24))
    model = checkpoint.load(run).model()
    expected = extract(Reader(index, Natural(channels=3)), config, everything, {"it": model}, CPU, 1, lambda *_: None)
    np.testing.assert_array_equal([each["features"] for each in found], expected.values["it"]["mean"])
    assert [each["path"] for each in found] == index.names()
    assert [each["label"] for each in found] == [name.split("/")[0] for name in index.names()]
    assert [each["group"] for each in found] == index.groups.tolist()
    assert [each["row"] for each in found] == list(range(24))


def test_a_table_may_be_written_in_parts_of_other_numbers_and_shorter(photographs, tmp_path, monkeypatch):
    from maectl import table

    run = trained(tmp_path / "run")
    whole = embed(run, [str(photographs)], tmp_path / "whole", **DEFAULT | {"pool": "cls"})
    monkeypatch.setattr(table, "ROWS", 7)
    half = embed(run, [str(photographs)], tmp_path / "half", **DEFAULT | {"pool": "cls", "dtype": "float16", "pca": 5})
    features = np.array([each["features"] for each in rows(whole["outputs"][0])])
    short = np.array([each["features"] for each in rows(half["outputs"][0])])
    assert short.shape == (24, 5)
    centred = features - features.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(short), np.abs(centred @ axes[:5].T), atol=2e-2)
    assert half["pca"]["variance"] == pytest.approx((scale[:5] ** 2 / (scale**2).sum()).tolist(), rel=1e-3)


def test_labels_come_from_a_table_and_bad_images_are_told(photographs, tmp_path):
    run = trained(tmp_path / "run")
    (photographs / "set0" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (tmp_path / "labels.csv").write_text("filename,label\n01.jpg,cat\n02.png,dog;cat\n")
    told = embed(run, [str(photographs)], tmp_path / "out", **DEFAULT | {"labels": tmp_path / "labels.csv"})
    labels = {each["path"]: each["label"] for each in rows(told["outputs"][0])}
    assert labels["set1/01.jpg"] == "cat"
    assert labels["set2/02.png"] == "cat;dog"
    assert sum(label is not None for label in labels.values()) == 2
    assert [each["source"] for each in told["rejected"]] == [str(photographs / "set0" / "broken.jpg")]


def test_a_private_adapter_s_table_names_no_file(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(Natural, "private", True)
    told = embed(trained(tmp_path / "run"), [str(photographs)], tmp_path / "out", **DEFAULT)
    assert "path" not in rows(told["outputs"][0])[0]
    assert {each["label"] for each in rows(told["outputs"][0])} == {None}  # folders may be called after people
    assert "set1/01.jpg" in (tmp_path / "out" / "index.csv").read_text()
    assert b"01.jpg" not in Path(told["outputs"][0]).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pca": 99}, "--pca 99: the encoder gives 32 features"),
        ({"dtype": "int8"}, "--dtype int8 is for maps"),
    ],
)
def test_what_cannot_be_is_told(photographs, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        embed(trained(tmp_path / "run"), [str(photographs)], tmp_path / "out", **DEFAULT | changes)


def test_a_folder_of_which_nothing_can_be_embedded_is_an_error_and_leaves_no_table(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no usable image"):
        embed(trained(tmp_path / "run"), [str(tmp_path / "in")], tmp_path / "out", **DEFAULT)


def test_the_command_prints_one_document(photographs, tmp_path):
    run = trained(tmp_path / "run")
    done = CliRunner().invoke(app, ["embed", str(run), str(photographs), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == 24
    wrong = CliRunner().invoke(app, ["embed", str(run), str(photographs), "--out", "x", "--dtype", "int4"])
    assert wrong.exit_code != 0


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_blocks_are_cut_from_one_map(scale):
    torch.manual_seed(0)
    model = made().build_model().eval()
    whole = image(120, 100, valid=True)
    lattice = Lattice((120, 100), (scale, scale), (8, 8), (4, 4))
    around = (reader(whole), lattice)
    rest = (model, made().normalizer, CONSTANTS, CPU)
    everything = block_features(*around, tuple(slice(0, cells) for cells in lattice.cells), *rest)
    assert everything.shape == (32, *lattice.cells)
    for block in lattice.blocks(3):
        found = block_features(*around, block, *rest)
        np.testing.assert_allclose(found, everything[(slice(None), *block)], atol=1e-4)


def test_features_of_a_patch_are_the_mean_of_all_tiles_that_hold_it_and_nan_where_half_is_invalid():
    torch.manual_seed(0)
    model = made().build_model().eval()
    whole = image(40, 32)
    valid = np.ones((40, 32), bool)
    valid[:8, :5] = False  # of one patch more than half
    valid[16:24, 8:11] = False  # of another less
    whole = Pixels(whole.values, valid)
    lattice = Lattice((40, 32), (1.0, 1.0), (8, 8), (4, 4))
    found = block_features(reader(whole), lattice, (slice(0, 5), slice(0, 4)), model, made().normalizer, CONSTANTS, CPU)
    tiles = []
    for top in (0, 8):
        cut = np.where(valid, whole.values, 100.0)[None, :, top : top + 32].astype(np.float32)
        batch = Batch(
            torch.from_numpy(cut), torch.from_numpy(valid[None, top : top + 32]), torch.empty(0),
            torch.full((1, 3), 100.0), torch.full((1, 3), 50.0), np.empty(0, np.int64),
        )  # fmt: skip
        tokens = model.encode(*normalise(batch, made().normalizer, CPU))[0, 1:]
        tiles.append(tokens.detach().numpy().T.reshape(32, 4, 4))
    weights = shares(4, [0, 1])
    expected = np.zeros((32, 5, 4))
    for top, (tile, weight) in enumerate(zip(tiles, weights, strict=True)):
        expected[:, top : top + 4] += tile * weight[:, None]
    assert np.isnan(found[:, 0, 0]).all()
    assert np.isnan(found).sum() == 32
    np.testing.assert_allclose(np.nan_to_num(found), np.where(np.isnan(found), 0, expected), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 1000))
def test_bytes_stand_for_the_numbers_to_half_a_step(count, width, seed):
    features = np.random.default_rng(seed).normal(0, 10, (count, width)).astype(np.float32)
    scales = byte_scales(features)
    whole = quantised(features.T, scales)
    back = whole.astype(float) * np.array([scale for scale, _ in scales])[:, None]
    back += np.array([offset for _, offset in scales])[:, None]
    assert (np.abs(back - features.T) <= np.array([scale for scale, _ in scales])[:, None] * 0.501 + 1e-5).all()
    gone = features.T.copy()
    gone[:, 0] = np.nan
    assert (quantised(gone, scales)[:, 0] == -128).all()
    assert (quantised(features.T * 1e6, scales) >= -126).all()


def test_principal_axes_are_orthonormal_ordered_and_the_same_each_time():
    features = np.random.default_rng(0).normal(size=(500, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5])
    found = Projection.fit(features.astype(np.float32), 4)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(4), atol=1e-5)
    assert (np.diff(found.shares) < 0).all()
    again = Projection.fit(features[::-1].astype(np.float32), 4)
    np.testing.assert_allclose(found.axes, again.axes, atol=1e-4)
    assert found.of(features.T.astype(np.float32).reshape(6, 25, 20)).shape == (4, 25, 20)
    assert len(Projection.fit(features.astype(np.float32), 9).axes) == 6


def test_a_quick_look_is_grey_where_there_is_nothing_and_bounded(tmp_path, monkeypatch):
    from PIL import Image

    from maectl import maps

    monkeypatch.setattr(maps, "SHOWN", 8)
    monkeypatch.setattr(maps, "SMALL", 32)
    look = QuickLook((20, 10))
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(3, 20, 10)
    values[:, 10:] = np.nan
    for top in (0, 7, 14):
        block = slice(top, min(20, top + 7)), slice(0, 10)
        look.add(block, values[(slice(None), *block)])
    look.save(tmp_path / "look.png", np.zeros(3), np.ones(3))
    with Image.open(tmp_path / "look.png") as shown:
        pixels = np.array(shown)
    np.testing.assert_array_equal(look.values[:, :4], values[:, ::3, ::3][:, :4])
    assert pixels.shape == (28, 16, 3)
    assert (pixels[16:] == maps.INVALID).all()
