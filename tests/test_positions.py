"""The fixed sin-cos embedding, against the formula written out."""

import numpy as np
import pytest
import torch

from maectl.errors import UsageError
from maectl.positions import sincos


def wave(coordinate: int, width: int) -> list[float]:
    """[sin | cos] of one coordinate at the frequencies 10000^(-k / (width / 2))."""
    angles = [coordinate / 10000 ** (k / (width / 2)) for k in range(width // 2)]
    return [*np.sin(angles), *np.cos(angles)]


def test_a_grid_encodes_column_then_row() -> None:
    table = sincos((3, 5), 24)
    expected = [wave(column, 12) + wave(row, 12) for row in range(3) for column in range(5)]
    assert table.shape == (16, 24)
    assert table.dtype == torch.float32
    np.testing.assert_allclose(table[1:].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_a_volume_encodes_column_row_depth_and_leaves_the_rest_zero() -> None:
    table = sincos((2, 3, 4), 20)  # a third of 20, rounded down to even, is 6
    expected = [
        wave(column, 6) + wave(row, 6) + wave(depth, 6) + [0, 0]
        for depth in range(2)
        for row in range(3)
        for column in range(4)
    ]
    np.testing.assert_allclose(table[1:].numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("grid", [(14, 14), (2, 7), (3, 4, 5)])
def test_the_class_token_has_no_place_and_every_patch_its_own(grid: tuple[int, ...]) -> None:
    table = sincos(grid, 48)
    assert not table[0].any()
    assert len(torch.unique(table, dim=0)) == len(table)


def test_a_width_that_holds_no_wave_is_refused() -> None:
    with pytest.raises(UsageError, match="width of 5 cannot hold the positions of 3 axes: use 6 or more"):
        sincos((2, 2, 2), 5)
