"""Crops and covering grids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maectl.errors import UsageError
from maectl.stream import generator
from maectl.windows import Crop, cover, crop_pixels, draw, place, ramp

extents = st.tuples(st.integers(1, 600), st.integers(1, 600))


@given(extent=extents, seed=st.integers(0, 1000))
def test_a_crop_lies_inside_the_image(extent, seed):
    crop = Crop((64, 64), flips=(1,))
    draws = draw(generator(0, seed), 4, 2)
    for item in range(4):
        window, _, flips = place(crop, draws, item, extent)
        assert all(0 <= s.start < s.stop <= e for s, e in zip(window, extent, strict=True))
        assert set(flips) <= {1}


def test_crops_follow_scale_and_ratio():
    """The laws of RandomResizedCrop: area uniform in the scale, aspect log-uniform in the ratio, place uniform."""
    draws = draw(generator(0, 0), 4000, 2)
    windows = [place(Crop((64, 64), (0.2, 1.0)), draws, item, (1000, 1000))[0] for item in range(4000)]
    sizes = np.array([[s.stop - s.start for s in window] for window in windows])
    area, ratio = sizes.prod(axis=1) / 1e6, np.log(sizes[:, 1] / sizes[:, 0])
    assert area.min() > 0.19
    # large crops of extreme ratio do not fit and are tried again, so the mean lies a little below (0.2 + 1) / 2
    assert 0.5 < area.mean() < 0.6
    assert np.abs(ratio).max() < np.log(4 / 3) + 0.02
    assert abs(ratio.mean()) < 0.01
    starts = np.array([[s.start for s in window] for window in windows]) / (1000 - sizes + 1e-9)
    assert np.abs(starts[(sizes < 900).all(axis=1)].mean(axis=0) - 0.5).max() < 0.03


def test_a_panorama_falls_back_to_the_nearest_ratio():
    window, _, _ = place(Crop((64, 64), (0.9, 1.0)), draw(generator(0, 0), 1, 2), 0, (100, 1000))
    height, width = (s.stop - s.start for s in window)
    assert (height, width) == (100, 133)


def test_ratio_is_relative_to_the_models_own():
    draws = draw(generator(0, 0), 500, 2)
    windows = [place(Crop((32, 64), (0.2, 0.4)), draws, item, (1000, 1000))[0] for item in range(500)]
    ratios = [(w[1].stop - w[1].start) / (w[0].stop - w[0].start) for w in windows]
    assert 1.5 - 0.02 < min(ratios) < max(ratios) < 8 / 3 + 0.02


def test_window_crops_are_shares_of_the_window():
    draws = draw(generator(0, 0), 200, 2)
    crop = Crop((64, 64), (0.25, 1.0), window=(200, 200))
    for item in range(200):
        window, _, _ = place(crop, draws, item, (3000, 2000))
        area = np.prod([s.stop - s.start for s in window])
        assert 0.24 * 200**2 < area <= 1.01 * 200**2


def test_volumes_keep_their_proportions():
    draws = draw(generator(0, 0), 50, 3)
    for item in range(50):
        window, _, _ = place(Crop((16, 32, 32), (0.2, 1.0)), draws, item, (40, 80, 80))
        depth, height, width = (s.stop - s.start for s in window)
        assert height == width
        assert abs(height / depth - 2) < 0.15


def test_crop_sizes_in_pixels_and_in_units():
    assert crop_pixels("image", (64, 64), None) is None
    assert crop_pixels("224px", (64, 64), None) == (224, 224)
    assert crop_pixels("224px", (32, 64), None) == (112, 224)
    assert crop_pixels("90mm", (64, 64), (0.5, 0.9)) == (180, 100)
    with pytest.raises(UsageError, match="90mm.*px"):
        crop_pixels("90mm", (64, 64), None)


@given(extent=st.integers(1, 500), size=st.integers(1, 120), overlap=st.sampled_from([0.0, 0.25, 0.5]))
def test_a_cover_leaves_no_gap_and_its_ramps_no_hole(extent, size, overlap):
    starts = cover(extent, size, overlap)
    seen = np.zeros(max(extent, size))
    for which, start in enumerate(starts):
        weights = ramp(size, starts, which)
        assert (weights > 0).all()
        seen[start : start + size] += weights
    assert (seen[:extent] > 0).all()
    assert starts[-1] + size == max(extent, size)
