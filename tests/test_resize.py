"""Resizing against Pillow and a naive filter, and validity against brute force."""

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from maectl.adapter import Pixels
from maectl.resize import resize

ZERO = np.zeros(1)
sides = st.integers(1, 23)
outputs = st.integers(2, 23)  # torch is wrong where the result is one pixel wide: no model is that small


def by_pillow(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([Image.fromarray(each).resize(size[::-1], Image.Resampling.BICUBIC) for each in values])


@settings(deadline=None, max_examples=60)
@given(height=st.integers(48, 150), width=st.integers(48, 150), out=st.sampled_from([(24, 24), (16, 24), (7, 11)]))
@example(height=133, width=48, out=(24, 24))
def test_shrunk_bytes_are_pillows_to_one_grey_level_but_for_two_pixels(height, width, out):
    """Even of noise, where a pixel may be two levels apart, as in the example: both round between the two axes."""
    values = np.random.default_rng(height * 151 + width).integers(0, 256, (3, height, width)).astype(np.uint8)
    found = resize(Pixels(values), out, np.zeros(3))
    assert found.values.dtype == np.uint8
    assert found.valid is None
    apart = np.abs(found.values.astype(int) - by_pillow(values, out))
    assert apart.max() <= 2
    assert (apart > 1).sum() <= 2


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 150), width=st.integers(1, 150), out=st.sampled_from([(32, 32), (224, 96), (7, 61)]))
def test_enlarged_bytes_are_pillows_to_two_as_each_pass_rounds_in_an_order_of_its_own(height, width, out):
    values = np.moveaxis(picture(height * 151 + width, height, width), -1, 0)
    difference = np.abs(resize(Pixels(values), out, np.zeros(3)).values.astype(int) - by_pillow(values, out))
    assert difference.max() <= 2
    assert (difference > 1).mean() < 0.01


@settings(deadline=None, max_examples=80)
@given(
    height=sides, width=sides, out=st.tuples(outputs, outputs), dtype=st.sampled_from(["float32", "int16", "uint16"])
)
def test_other_dtypes_are_resized_as_pillows_floats(height, width, out, dtype):
    low = 0 if dtype == "uint16" else -3000
    values = np.random.default_rng(0).integers(low, 3000, (2, height, width)).astype(dtype)
    found = resize(Pixels(values), out, np.zeros(2))
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, by_pillow(values.astype(np.float32), out), atol=0.02, rtol=1e-5)


def test_large_values_are_neither_clipped_nor_wrapped():
    values = np.full((1, 40, 40), 65535, np.uint16)
    np.testing.assert_allclose(resize(Pixels(values), (16, 16), ZERO).values, 65535, rtol=1e-6)


def test_a_crop_of_the_right_size_is_left_as_it_is():
    values = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    assert resize(Pixels(values), (8, 8), np.zeros(3)).values.tolist() == values.tolist()
    valid = np.random.default_rng(1).random((8, 8)) < 0.5
    found = resize(Pixels(values, valid), (8, 8), np.array([10.4, 20.6, 30]))
    assert found.values[:, valid].tolist() == values[:, valid].tolist()
    assert np.unique(found.values[:, ~valid], axis=1).T.tolist() == [[10, 21, 30]]
    assert found.valid.tolist() == valid.tolist()


@settings(deadline=None, max_examples=40)
@given(
    extent=st.tuples(st.integers(1, 60), st.integers(1, 60)), channels=st.integers(1, 6),
    dtype=st.sampled_from(["uint8", "int16", "float32"]), out=st.sampled_from([(16, 16), (7, 33)]),
)  # fmt: skip
def test_the_layout_in_memory_does_not_change_a_bit(extent, channels, dtype, out):
    height, width = extent
    image = np.random.default_rng(0).integers(0, 256, (channels, height + 9, width + 5)).astype(dtype)
    last = np.ascontiguousarray(np.moveaxis(image, 0, -1))  # as it lies in the store
    cut = np.moveaxis(last[4 : 4 + height, 3 : 3 + width], -1, 0)
    locked = np.ascontiguousarray(cut)
    locked.flags.writeable = False
    backwards = np.ascontiguousarray(cut[:, ::-1, ::-1])[:, ::-1, ::-1]
    layouts = (cut, cut.copy("C"), image[:, 4 : 4 + height, 3 : 3 + width], locked, backwards)
    first, *others = (resize(Pixels(each), out, np.zeros(channels)).values for each in layouts)
    assert all(each.tobytes() == first.tobytes() for each in others)


@settings(deadline=None, max_examples=60)
@given(
    extent=st.tuples(st.integers(1, 12), st.integers(1, 12)), out=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    share=st.floats(0.6, 0.99), seed=st.integers(0, 999), dtype=st.sampled_from(["uint8", "float32"]),
)  # fmt: skip
def test_a_valid_pixel_has_seen_nothing_invalid_and_every_such_pixel_is_valid(extent, out, share, seed, dtype):
    random = np.random.default_rng(seed)
    valid = random.random(extent) < share
    values = random.integers(0, 256, (1, *extent)).astype(dtype)
    whole = resize(Pixels(values, valid), out, ZERO)
    # brute force: what an output pixel sees is what changes it, in double precision and by Pillow's own filter
    size, sees = out[::-1], np.zeros(out, bool)
    for row, column in np.argwhere(~valid):
        spike = np.zeros(extent, np.float32)
        spike[row, column] = 1e6
        sees |= np.abs(np.asarray(Image.fromarray(spike).resize(size, Image.Resampling.BICUBIC))) > 1
    assert not (whole.valid & sees).any()
    # nothing is given away: all that the whole filter, zeros at its rim aside, could reach is what is lost
    if extent == out:
        assert whole.valid.tolist() == valid.tolist()
    if valid.all():
        assert whole.valid.all()
    # what lies under an invalid pixel changes nothing, valid or not
    poison = np.where(valid, values, 255 if dtype == "uint8" else np.nan).astype(dtype)
    assert resize(Pixels(poison, valid), out, ZERO).values.tobytes() == whole.values.tobytes()
    # and valid pixels are those of an image without a mask
    bare = resize(Pixels(values), out, ZERO)
    # (a weight of 1e-6 and less at the filter's rim counts as none)
    np.testing.assert_allclose(whole.values[:, whole.valid], bare.values[:, whole.valid], rtol=0, atol=1e-3)


def test_only_what_the_filter_reaches_is_lost():
    valid = np.ones((64, 64), bool)
    valid[32:, :] = False
    found = resize(Pixels(np.zeros((1, 64, 64), np.uint8), valid), (32, 64), ZERO).valid
    # shrunk by two a bicubic filter reaches four rows from its middle at 2 y + 1; columns keep their size
    assert found.all(axis=1).tolist() == [2 * row + 1 + 4 <= 32 for row in range(32)]
    assert (found.all(axis=1) == found.any(axis=1)).all()


@settings(deadline=None, max_examples=40)
@given(
    extent=st.tuples(*[st.integers(1, 9)] * 3), out=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 999)
)  # fmt: skip
def test_volumes_are_resized_linearly_and_widened_when_shrinking(extent, out, seed):
    random = np.random.default_rng(seed)
    values = random.integers(-1000, 1000, (2, *extent)).astype(np.int16)
    found = resize(Pixels(values), out, np.zeros(2)).values
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive(values, out), atol=0.01)


def naive(values: np.ndarray, out: tuple[int, ...]) -> np.ndarray:
    """A tent over each output voxel's middle, one weight at a time."""
    for axis, length in enumerate(out, 1):
        extent = values.shape[axis]
        scale = extent / length
        rows = []
        for place in range(length):
            middle = (place + 0.5) * scale
            weights = [max(0.0, 1 - abs(at + 0.5 - middle) / max(1, scale)) for at in range(extent)]
            taken = np.moveaxis(values, axis, -1).astype(float) @ np.array(weights)
            rows.append(taken / sum(weights))
        values = np.stack(rows, axis)
    return values


def test_volumes_that_grow_are_as_torch_interpolates_them():
    values = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None], size=(9, 11, 7), mode="trilinear")
    np.testing.assert_allclose(resize(Pixels(values), (9, 11, 7), ZERO).values, expected[0], atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    extent=st.tuples(*[st.integers(1, 7)] * 3), out=st.tuples(*[st.integers(1, 7)] * 3), seed=st.integers(0, 999)
)  # fmt: skip
def test_validity_of_volumes_is_that_of_all_a_voxel_has_seen(extent, out, seed):
    random = np.random.default_rng(seed)
    valid = random.random(extent) < 0.9
    values = random.normal(size=(1, *extent)).astype(np.float32)
    whole = resize(Pixels(values, valid), out, ZERO)
    seen = naive((~valid)[None].astype(float), out)[0] > 1e-6
    assert not (whole.valid & seen).any()
    bare = resize(Pixels(values), out, ZERO)
    np.testing.assert_allclose(whole.values[:, whole.valid], bare.values[:, whole.valid], atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (4, 6, 8)])
def test_an_image_with_no_valid_pixel_becomes_the_filling(size):
    extent = tuple(2 * side for side in size)
    found = resize(Pixels(np.full((2, *extent), np.nan, np.float32), np.zeros(extent, bool)), size, np.array([3.0, -4]))
    assert not found.valid.any()
    np.testing.assert_allclose(found.values[0], 3, rtol=1e-6)
    np.testing.assert_allclose(found.values[1], -4, rtol=1e-6)
