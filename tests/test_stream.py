"""The sample stream: every image once an epoch, nothing dropped, nothing remembered."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maectl.stream import HELD_OUT, Stream, generator


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
