"""The sample stream: every image once an epoch, nothing dropped, nothing remembered."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maectl.stream import HELD_OUT, Stream, generator, share


@given(count=st.integers(1, 50), batch=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_an_epoch_shows_every_row_once(count: int, batch: int, seed: int):
    rows = np.arange(count) * 3 + 1
    stream = Stream(rows, batch, seed)
    steps = -(-3 * count // batch)
    shown = np.concatenate([stream.step(step) for step in range(steps)])[: 3 * count]
    for epoch in range(3):
        assert sorted(shown[epoch * count : (epoch + 1) * count]) == rows.tolist()


def test_steps_need_no_history():
    one, other = Stream(np.arange(10), 4, 7), Stream(np.arange(10), 4, 7)
    forward = [one.step(step) for step in range(12)]
    backward = [other.step(step) for step in reversed(range(12))][::-1]
    np.testing.assert_array_equal(forward, backward)


def test_epochs_differ_and_seeds_differ():
    stream = Stream(np.arange(100), 100, 0)
    assert (stream.step(0) != stream.step(1)).any()
    assert (stream.step(0) != Stream(np.arange(100), 100, 1).step(0)).any()


def test_views_repeat_a_row_in_proportion():
    stream = Stream(np.array([5, 6, 7]), 6, 0, views=np.array([1, 2, 3]))
    assert stream.epoch_length == 6
    assert sorted(stream.step(0)) == [5, 6, 6, 7, 7, 7]


def test_steps_cover_the_epochs_asked_for():
    assert Stream(np.arange(10), 4, 0).steps(2) == 5
    assert Stream(np.arange(10), 4, 0).steps(0.5) == 2


def test_generators_of_different_use_are_independent():
    draws = [
        generator(0, 5).random(4), generator(0, 6).random(4), generator(1, 5).random(4),
        generator(0, 5, HELD_OUT).random(4), generator(0, 5, 0, 1).random(4), generator(0, 5, 0, 0, 1).random(4),
    ]  # fmt: skip
    assert len({tuple(draw) for draw in draws}) == len(draws)
    np.testing.assert_array_equal(generator(3, 9).random(4), generator(3, 9).random(4))


@given(count=st.integers(0, 5000), size=st.integers(1, 70))
def test_shares_follow_one_another_and_differ_by_one_at_most(count: int, size: int):
    parts = [np.arange(count)[share(count, rank, size)] for rank in range(size)]
    assert np.concatenate(parts).tolist() == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(count=st.integers(1, 20), batch=st.integers(1, 30), crops=st.integers(1, 5), seed=st.integers(0, 99))
def test_repeated_sampling_shows_a_source_several_times_in_a_row_and_all_equally_often(count, batch, crops, seed):
    rows = np.arange(count) * 3 + 1
    stream = Stream(rows, batch, seed, crops=crops)
    steps = -(-crops * count * crops // batch)
    assert stream.steps(crops) == -(-crops * count // batch)  # an epoch shows as many images as without
    shown = np.concatenate([stream.step(step) for step in range(steps)])[: crops * count * crops]
    groups = shown.reshape(crops, count, crops)  # [pass, source, crop]
    assert (groups == groups[..., :1]).all()
    once = Stream(rows, count, seed)
    for number, each in enumerate(groups[..., 0]):  # the order of a pass is that of an epoch of single crops
        assert each.tolist() == once.step(number).tolist()


def test_repeated_sampling_of_windows_keeps_each_sources_share():
    stream = Stream(np.array([5, 6, 7]), 12, 0, views=np.array([1, 2, 3]), crops=2)
    assert stream.epoch_length == 6
    shown = stream.step(0)
    assert sorted(shown) == [5] * 2 + [6] * 4 + [7] * 6
    assert (shown[::2] == shown[1::2]).all()


def test_a_stream_of_another_batch_forgets_nothing_that_it_is_keyed_by():
    stream = Stream(np.arange(10), 4, 7, views=np.arange(1, 11), crops=3)
    stream.step(0)
    wide, narrow = replace(stream, batch=8), Stream(np.arange(10), 8, 7, np.arange(1, 11), 3)
    np.testing.assert_array_equal(wide.step(2), narrow.step(2))
