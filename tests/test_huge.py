"""Images too large to be decoded whole: bands, samples, and windows read coarser."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maectl import huge as module
from maectl.adapter import Pixels
from maectl.errors import Unreadable
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.stats import gather
from maectl.store import Reader, build


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """One float raster of 300 x 200 with invalid pixels below row 200, which counts as huge."""
    monkeypatch.setattr(module, "HUGE", 100_000)
    monkeypatch.setattr(module, "BAND", 200 * 4 * 70)
    monkeypatch.setattr(module, "BLOCK", 32)
    values = np.random.default_rng(0).normal(5, 2, (300, 200)).astype(np.float32)
    values[200:, 50:] = np.nan
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images" / "a.tif")
    found = scan([tmp_path / "images"], load("natural"), DataRecipe(), tmp_path / "index.arrow")
    return Reader(found.index, found.adapter)


def test_bands_cover_a_huge_image_in_whole_blocks_and_others_in_one(reader, monkeypatch):
    assert [band[0] for band in reader.bands(0)] == [slice(at, min(at + 64, 300)) for at in range(0, 300, 64)]
    assert all(band[1] == slice(0, 200) for band in reader.bands(0))
    monkeypatch.setattr(module, "HUGE", 1 << 30)
    assert reader.bands(0) == [(slice(0, 300), slice(0, 200))]


def test_a_store_written_in_bands_holds_the_same_pixels(reader, tmp_path):
    whole = reader.read(0)
    stored, bad = build(reader.index, reader.adapter, tmp_path / "store", workers=2)
    assert not bad
    found = stored.read(0)
    np.testing.assert_array_equal(found.values, whole.values)
    np.testing.assert_array_equal(found.valid, whole.valid)
    assert stored.read(0, (slice(0, 100), slice(0, 100))).valid is None


def test_a_huge_image_that_breaks_off_leaves_nothing_in_the_store(reader, tmp_path, monkeypatch):
    read = Reader.read

    def broken(self, row, window=None, size=None):
        if window is not None and window[0].start >= 192:
            raise Unreadable("damaged block")
        return read(self, row, window, size)

    monkeypatch.setattr(Reader, "read", broken)
    _, bad = build(reader.index, reader.adapter, tmp_path / "store", workers=2)
    assert bad == [(0, "damaged block")]
    assert not list((tmp_path / "store").rglob("shard-*"))


def test_a_sample_stands_for_the_whole_in_statistics(reader, monkeypatch):
    whole = gather([reader.adapter.read(reader.index[0])])
    sample = reader.sample(0)
    assert sample.values.shape == (1, 32 * 32, 32)
    np.testing.assert_array_equal(sample.values, reader.sample(0).values)
    found = gather([sample])
    assert found.mean == pytest.approx(whole.mean, abs=0.1)
    assert found.std == pytest.approx(whole.std, rel=0.05)
    assert found.invalid_fraction == pytest.approx(whole.invalid_fraction, abs=0.2)
    assert reader.sampled().tolist() == [32 * 32 * 32]


@pytest.mark.parametrize("stored", [False, True])
def test_a_window_far_larger_than_the_model_may_be_read_coarser_but_never_below_twice_its_size(
    reader, tmp_path, monkeypatch, stored
):
    monkeypatch.setattr(module, "COARSE", 10_000)
    if stored:
        reader = Reader(reader.index, reader.adapter, build(reader.index, reader.adapter, tmp_path / "store")[0])
    window = (slice(0, 190), slice(10, 200))
    assert reader.read(0, window, (90, 90)).values.shape == (1, 190, 190)
    found = reader.read(0, window, (16, 16))
    assert isinstance(found, Pixels)
    assert all(32 <= side <= 190 for side in found.values.shape[1:])
    if stored:
        assert found.values.shape[1:] == (38, 38)
