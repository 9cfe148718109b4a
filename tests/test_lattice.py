"""Images of any size, a part at a time: the parts are those of the whole, and nothing shows where they meet."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_panels import made
from test_reconstruct import filled, trained

from maectl import mosaic, tiling
from maectl.adapter import Files, Pixels, Source
from maectl.lattice import Lattice
from maectl.mosaic import Overview, back, parts
from maectl.resize import resample, resize
from maectl.stream import generator
from maectl_natural import Natural

CPU = torch.device("cpu")
ZERO = np.zeros(3)


def image(height: int, width: int, seed: int = 0, valid: bool = False) -> Pixels:
    rng = np.random.default_rng(seed)
    known = rng.random((height, width)) > 0.02 if valid else None
    return Pixels(rng.normal(100, 40, (3, height, width)).astype(np.float32), known)


def reader(whole: Pixels) -> Any:
    def read(window: Any) -> Pixels:
        valid = None if whole.valid is None else whole.valid[window]
        return Pixels(whole.values[(slice(None), *window)], None if valid is None or valid.all() else valid)

    return read


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.3, 3), st.floats(0.3, 3))
def test_the_lattice_begins_with_the_image_and_holds_all_of_it(height, width, down, across):
    lattice = Lattice((height, width), (down, across), (8, 4), (4, 5))
    for cells, extent, step in zip(lattice.cells, lattice.extent, lattice.step, strict=True):
        assert cells * step >= extent - 1e-3
        assert (cells - 1) * step < extent
    blocks = np.zeros(lattice.cells, int)
    for block in lattice.blocks(7):
        blocks[block] += 1
        part = lattice.part(block)
        assert part.plan.size == tuple(c * p for c, p in zip(part.plan.cells, lattice.patch, strict=True))
        for inner, starts, first, cells in zip(
            part.inner, part.plan.starts, part.plan.origin, part.plan.cells, strict=False
        ):
            assert 0 <= inner.start < inner.stop <= cells
            covered = np.zeros(cells, bool)
            for start in starts:
                covered[start - first : start - first + 5] = True
            assert covered[inner].all()
    assert (blocks == 1).all()
    whole = lattice.part(tuple(slice(0, cells) for cells in lattice.cells))
    assert whole.plan.origin == (0, 0)
    seen = np.zeros(lattice.extent, int)
    for window in lattice.windows(64):
        seen[window] += 1
        for side, cells, places, first in zip(
            window, lattice.holding(window), lattice.part(lattice.holding(window)).places(window),
            lattice.part(lattice.holding(window)).plan.origin, strict=False,
        ):  # fmt: skip
            assert len(places) == side.stop - side.start
            assert cells.start <= places[0] + first
            assert places[-1] + first < cells.stop
    assert (seen == 1).all()


@pytest.mark.parametrize("scale", [1.0, 0.7, 1.6])
def test_what_the_model_sees_of_a_part_is_a_cut_of_what_it_sees_of_the_whole(scale):
    whole = image(150, 90, valid=True)
    lattice = Lattice((150, 90), (scale, scale), (8, 8), (4, 4))
    everything = lattice.part(tuple(slice(0, cells) for cells in lattice.cells)).seen(reader(whole), ZERO)
    for block in lattice.blocks(5):
        part = lattice.part(block)
        seen = part.seen(reader(whole), ZERO)
        at = tuple(
            slice(first * 8, first * 8 + size) for first, size in zip(part.plan.origin, part.plan.size, strict=False)
        )
        np.testing.assert_allclose(seen.values, everything.values[(slice(None), *at)], atol=2e-3)
        valid = np.ones(part.plan.size, bool) if seen.valid is None else seen.valid
        np.testing.assert_array_equal(valid, everything.valid[at])


def test_at_scale_one_the_model_sees_the_pixels_themselves_and_nothing_beyond():
    whole = image(70, 41)
    lattice = Lattice((70, 41), (1.0, 1.0), (8, 8), (4, 4))
    seen = lattice.part(tuple(slice(0, cells) for cells in lattice.cells)).seen(reader(whole), ZERO)
    assert seen.values.shape == (3, 72, 48)
    np.testing.assert_array_equal(seen.values[:, :70, :41], whole.values)
    assert seen.valid[:70, :41].all()
    assert seen.valid.sum() == 70 * 41


@pytest.mark.parametrize("scale", [(0.5, 0.5), (2.0, 2.0), (0.8, 1.25)])
def test_resampling_the_whole_is_resizing_it(scale):
    whole = image(80, 120)
    size = tuple(round(side * s) for side, s in zip((80, 120), scale, strict=True))
    found = resample(whole, (0.0, 0.0), scale, size, ZERO)
    assert found.valid is None
    expected = resize(whole, size, ZERO).values
    inner = (slice(None), slice(6, -6), slice(6, -6))  # at the rim one goes on, the other leaves out
    np.testing.assert_allclose(found.values[inner], expected[inner], atol=2e-3)


def test_resampled_bytes_stay_bytes_and_invalid_pixels_do_not_leak():
    values = np.full((1, 40, 40), 90, np.uint8)
    valid = np.ones((40, 40), bool)
    values[:, 10:14, 20:22], valid[10:14, 20:22] = 255, False
    found = resample(Pixels(values, valid), (0.25, 0.5), (0.7, 0.7), (27, 27), np.full(1, 90.0))
    assert found.values.dtype == np.uint8
    assert (found.values == 90).all()
    assert 0 < (~found.valid).sum() < 120


@pytest.mark.parametrize("scale", [1.0, 0.75, 1.5])
@pytest.mark.parametrize("covered", [False, True])
def test_parts_are_what_the_whole_would_be(monkeypatch, scale, covered):
    """Every part is predicted by itself; put together they are what one part would be."""
    torch.manual_seed(0)
    model = made().build_model().eval()
    whole = image(230, 170, valid=True)
    lattice = Lattice((230, 170), (scale, scale), (8, 8), (4, 4))
    chosen = tiling.masks((4, 4), 0.75, covered, generator(0, 0))
    constants = np.full(3, 100.0), np.full(3, 40.0)
    results = []
    for side in (1024, 64):
        monkeypatch.setattr(mosaic, "SIDE", side)
        every = parts(reader(whole), lattice, model, chosen, 0.75, made().normalizer, constants, 255.0, CPU)
        done = np.zeros((3, 230, 170), np.float32)
        where, removed = np.zeros((2, 230, 170), bool)
        rivals = []
        for window, part, how_well in every:
            done[(slice(None), *window)], where[window], removed[window] = part.predicted, part.where, part.removed
            rivals.append(how_well)
        results.append((done, where, removed, rivals))
    (one, one_where, one_removed, (told,)), (many, many_where, many_removed, parts_told) = results
    np.testing.assert_array_equal(one_where, many_where)
    np.testing.assert_array_equal(one_removed, many_removed)
    np.testing.assert_allclose(one, many, atol=0.02)
    weights = [each["pixels"] for each in parts_told]
    for name in ("masked", "patch_mean", "nearest_visible"):
        mean = np.average([each[f"mse_{name}"] for each in parts_told], weights=weights)
        assert mean == pytest.approx(told[f"mse_{name}"], rel=2e-3)


@pytest.mark.parametrize("scale", [1.0, 0.75, 1.5])
def test_a_perfect_prediction_comes_back_as_the_image(scale):
    smooth = np.stack([np.add.outer(np.arange(90.0), 2 * np.arange(70.0))] * 3).astype(np.float32)
    lattice = Lattice((90, 70), (scale, scale), (8, 8), (4, 4))
    window = (slice(16, 80), slice(0, 64))
    part = lattice.part(lattice.holding(window))
    seen = part.seen(reader(Pixels(smooth)), ZERO)
    found = back(seen.values.astype(np.float32), np.ones(part.plan.cells, bool), part, window)
    inner = (slice(None), slice(4, -12), slice(4, -12))
    np.testing.assert_allclose(found[inner], smooth[(slice(None), *window)][inner], atol=0.3)


@pytest.mark.parametrize("crop", ["32px", "45px", "20px"])
@pytest.mark.parametrize("covered", [False, True])
def test_a_constant_scene_comes_back_constant_over_the_seams_of_parts(tmp_path, monkeypatch, crop, covered):
    monkeypatch.setattr(mosaic, "SIDE", 64)
    run = trained(tmp_path / "run", norm=True, crop=crop)
    Image.fromarray(np.full((150, 133, 3), 77, np.uint8)).save(tmp_path / "in.png")
    (entry,) = filled(run, tmp_path / "in.png", cover=covered)["images"]
    with Image.open(entry["outputs"][1]) as written:
        assert written.size == (133, 150)
        assert np.abs(np.array(written).astype(int) - 77).max() <= 1
    assert entry["seen_size"][0] >= 150 * 32 / int(crop[:2]) - 1


def test_a_scene_is_put_out_whole_with_its_own_pixels_where_nothing_was_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaic, "SIDE", 64)
    run = trained(tmp_path / "run", crop="32px")
    own = np.random.default_rng(0).integers(0, 255, (100, 131, 3), np.uint8)
    Image.fromarray(own).save(tmp_path / "in.png")
    (entry,) = filled(run, tmp_path / "in.png")["images"]
    with Image.open(entry["outputs"][1]) as written:
        same = (np.array(written) == own).all(axis=-1)
    (mask,) = tiling.masks((4, 4), 0.75, False, generator(0, 0, 8))
    assert 0.2 < same.mean() < 0.35
    patches = same[:96, :128].reshape(12, 8, 16, 8).transpose(0, 2, 1, 3).reshape(12, 16, 64).all(axis=-1)
    np.testing.assert_array_equal(patches, np.tile(~mask.removed, (3, 4)))


def test_an_overview_is_every_nth_pixel(monkeypatch):
    monkeypatch.setattr(mosaic, "SHOWN", 16)
    whole = image(50, 37)
    overview = Overview((50, 37))
    for window in Lattice((50, 37), (1.0, 1.0), (8, 8), (4, 4)).windows(20):
        values = whole.values[(slice(None), *window)]
        nothing = np.zeros(values.shape[1:], bool)
        overview.add(window, mosaic.Done(values, ~nothing, values, nothing, nothing))
    np.testing.assert_array_equal(overview.done.values, whole.values[:, ::3, ::3])


def test_an_image_too_large_to_be_seen_whole_is_refused_with_what_to_do(tmp_path, monkeypatch):
    from maectl import huge
    from maectl.errors import DataError

    monkeypatch.setattr(huge, "HUGE", 1000)
    run = trained(tmp_path / "run")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "in.png")
    with pytest.raises(DataError, match=r"64x64 pixels are too many .*data\.crop=224px"):
        filled(run, tmp_path / "in.png")


def test_a_single_source_has_a_lattice(tmp_path: Path):
    Image.fromarray(np.zeros((100, 60, 3), np.uint8)).save(tmp_path / "in.png")
    (source,) = Natural().scan(Files(tmp_path))
    assert isinstance(source, Source)
    lattice = Lattice.of(source, made().model_copy(update={"crop": "64px"}))
    assert lattice.step == (16, 16)
    assert lattice.cells == (7, 4)
