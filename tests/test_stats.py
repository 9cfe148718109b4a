"""Statistics over valid pixels, against numpy on all of them at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maectl.adapter import Pixels
from maectl.recipe import MeanStd
from maectl.stats import Normalizer, gather, moments, sample_rows


def images(seed: int, count: int, dtype: str, masked: bool) -> list[Pixels]:
    generator = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        shape = (2, *generator.integers(1, 20, 2))
        values = generator.integers(0, 200, shape).astype(dtype)
        valid = generator.random(shape[1:]) < 0.7 if masked else None
        out.append(Pixels(values, valid))
    return out


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 8), dtype=st.sampled_from(["uint8", "int16", "float32"]),
    masked=st.booleans(),
)  # fmt: skip
def test_streamed_statistics_equal_those_of_all_pixels(seed, count, dtype, masked):
    given_ = images(seed, count, dtype, masked)
    flat = np.concatenate(
        [p.values.reshape(2, -1) if p.valid is None else p.values[:, p.valid] for p in given_], axis=1
    ).astype(float)
    if flat.shape[1] == 0:
        return
    found = gather(given_)
    np.testing.assert_allclose(found.mean, flat.mean(axis=1), rtol=1e-10)
    deviation = flat.std(axis=1)
    np.testing.assert_allclose(found.std, np.where(deviation > 0, deviation, 1), rtol=1e-8)
    np.testing.assert_array_equal(found.minimum, flat.min(axis=1))
    np.testing.assert_array_equal(found.maximum, flat.max(axis=1))
    np.testing.assert_allclose(found.p99_5, np.percentile(flat, 99.5, axis=1))
    assert found.pixels == flat.shape[1]
    total = sum(p.values[0].size for p in given_)
    assert found.invalid_fraction == pytest.approx(1 - flat.shape[1] / total)


@pytest.mark.parametrize("poison", [-9999.0, np.nan, np.inf, 1e30])
def test_values_under_invalid_pixels_change_nothing(poison):
    values = np.random.default_rng(0).random((3, 9, 9)).astype(np.float32)
    valid = np.ones((9, 9), bool)
    valid[2:5, :] = False
    poisoned = np.where(valid, values, np.float32(poison))
    assert gather([Pixels(values, valid)]) == gather([Pixels(poisoned, valid)])
    one, other = moments(Pixels(values, valid)), moments(Pixels(poisoned, valid))
    np.testing.assert_array_equal(one, other)


def test_clipping_comes_before_statistics():
    found = gather([Pixels(np.array([[[-5000, 0, 100]]], np.int16))], clip=(-1000, 1000))
    assert found.mean == [-300]
    assert found.minimum == [-1000]


def test_an_image_with_no_valid_pixel_adds_nothing():
    empty = Pixels(np.zeros((1, 4, 4), np.uint8), np.zeros((4, 4), bool))
    full = Pixels(np.full((1, 4, 4), 7, np.uint8))
    found = gather([empty, full, empty])
    assert found.mean == [7]
    assert found.std == [1]  # a constant channel is not divided by zero
    assert found.invalid_fraction == pytest.approx(2 / 3)


def test_normalizers_of_each_kind():
    statistics = gather(images(0, 4, "float32", masked=False))
    dataset = Normalizer.of("dataset", None, statistics)
    assert dataset.mean == tuple(statistics.mean)
    assert dataset.clip is None
    assert Normalizer.of("image", (0, 1), statistics).image
    given_ = Normalizer.of(MeanStd(mean=(1, 2), std=(3, 4)), (0, 9), statistics)
    assert (given_.mean, given_.std, given_.clip) == ((1, 2), (3, 4), ((0, 0), (9, 9)))
    robust = Normalizer.of("percentiles", None, statistics)
    low, high = robust.clip
    np.testing.assert_allclose((np.array(low) - robust.mean) / robust.std, -1)
    np.testing.assert_allclose((np.array(high) - robust.mean) / robust.std, 1)


def test_the_sample_is_seeded_ordered_and_bounded():
    photographs = np.full(100_000, 187_500)
    rows = sample_rows(photographs, 3)
    assert len(rows) == 2000
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample_rows(photographs, 3))
    np.testing.assert_array_equal(sample_rows(np.ones(5, int), 0), np.arange(5))
