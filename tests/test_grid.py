"""The grid a model sees of a stored volume: MONAI and nibabel are the oracles, and what is exact must be exact."""

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maectl.adapter import Pixels, Window

pytest.importorskip("nibabel")
pytest.importorskip("monai")

import nibabel as nib
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Orientation, Spacing

from maectl_medical.grid import Grid, cast, foreground_box

SIGNED = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
SHAPE = (4, 5, 6)
few = settings(max_examples=40, deadline=None)


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], spacing=(0.7, 1.5, 3.0), tilt: float = 0.0) -> np.ndarray:
    """[4, 4]: stored axis n goes along axis order[n] of the patient; turned by ``tilt`` about an odd direction."""
    matrix = np.zeros((3, 3))
    for axis in range(3):
        matrix[order[axis], axis] = signs[axis] * spacing[axis]
    x, y, z = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(tilt) * cross + (1 - np.cos(tilt)) * cross @ cross  # Rodrigues
    return nib.affines.from_matvec(turn @ matrix, (-11.0, 23.5, 7.25))


def rows(affine: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    return tuple(tuple(row) for row in affine[:3].tolist())


def volume(shape=SHAPE, channels: int = 2, dtype: str = "int16", seed: int = 0) -> Pixels:
    values = np.random.default_rng(seed).integers(0, 250, (channels, *shape)).astype(dtype)
    return Pixels(values)


def loader(stored: Pixels) -> Callable[[Window | None], Pixels]:
    def load(window: Window | None) -> Pixels:
        part = window or (slice(None),) * 3
        assert all(each.start is None or 0 <= each.start <= each.stop for each in part)
        return Pixels(stored.values[(slice(None), *part)].copy(), None if stored.valid is None else stored.valid[part])

    return load


def to_mm(affine, index) -> np.ndarray:
    return np.array(affine)[:, :3] @ np.array(index) + np.array(affine)[:, 3]


@pytest.mark.parametrize(("order", "signs"), SIGNED)
def test_turning_is_monais_and_comes_back_exactly_from_all_48_orientations(order, signs):
    affine = affine_of(order, signs, tilt=0.3)
    stored = volume()
    grid = Grid.of(SHAPE, rows(affine), orientation="canonical")
    seen = grid.read(loader(stored))
    turned = Orientation(axcodes="IPL", labels=(("L", "R"), ("P", "A"), ("I", "S")))(
        MetaTensor(stored.values, affine=affine)
    )
    np.testing.assert_array_equal(seen.values, turned.numpy())
    np.testing.assert_allclose(np.array(grid.affine), turned.affine.numpy()[:3], atol=1e-9)
    assert seen.values.shape == (2, *grid.shape)
    assert seen.values.dtype == np.int16
    assert min(seen.values.strides) > 0
    assert seen.values.flags.writeable
    assert grid.axes == ("axial", "coronal", "sagittal")
    back = grid.back(seen.values, np.ones(grid.shape, bool), Pixels(np.zeros_like(stored.values)))
    np.testing.assert_array_equal(back, stored.values)


@pytest.mark.parametrize(("order", "signs"), SIGNED[::5])
def test_a_voxel_stays_where_it_is_in_the_patient(order, signs):
    affine = affine_of(order, signs, tilt=0.3)
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).reshape(-1, 3)
    stored = Pixels(np.arange(len(place), dtype=np.float32).reshape(1, *SHAPE))  # each voxel its own number
    grid = Grid.of(SHAPE, rows(affine), orientation="canonical", box=(slice(1, 3), slice(0, 3), slice(2, 4)))
    seen = grid.read(loader(stored)).values[0]
    for index, number in np.ndenumerate(seen):
        np.testing.assert_allclose(to_mm(grid.affine, index), to_mm(rows(affine), place[int(number)]), atol=1e-6)


def test_canonical_slices_are_upright_with_the_patients_left_on_the_right():
    grid = Grid.of(SHAPE, rows(affine_of((0, 1, 2), (1, 1, 1))), orientation="canonical")
    towards = np.sign(np.array(grid.affine)[:, :3].T)
    np.testing.assert_array_equal(towards, [[0, 0, -1], [0, -1, 0], [-1, 0, 0]])  # inferior, posterior, left in RAS+


def test_native_leaves_the_voxels_and_names_their_axes():
    affine = affine_of((1, 2, 0), (1, -1, -1), tilt=0.2)  # a sagittal acquisition
    grid = Grid.of(SHAPE, rows(affine), orientation="native")
    stored = volume()
    assert grid.axes == ("coronal", "axial", "sagittal")
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.spacing, (0.7, 1.5, 3.0))
    np.testing.assert_allclose(grid.affine, rows(affine))
    np.testing.assert_array_equal(grid.read(loader(stored)).values, stored.values)


@few
@given(
    st.sampled_from(SIGNED),
    st.sampled_from(["canonical", "native"]),
    st.sampled_from([None, (0.9, 2.0, 1.0)]),
    st.booleans(),
    st.data(),
)
def test_windows_are_parts_of_the_whole(orientation_of, orientation, spacing, masked, data):
    affine = affine_of(*orientation_of)
    whole_shape = Grid.of(SHAPE, rows(affine), orientation=orientation, spacing=spacing).shape

    def part_of(size: int) -> slice:
        start = data.draw(st.integers(0, size - 1))
        return slice(start, data.draw(st.integers(start + 1, size)))

    box = tuple(map(part_of, whole_shape))
    grid = Grid.of(SHAPE, rows(affine), orientation=orientation, spacing=spacing, box=box)
    window = tuple(map(part_of, grid.shape))
    stored = volume()
    if masked:
        stored = Pixels(stored.values, np.random.default_rng(1).random(SHAPE) > 0.2)
    full = Grid.of(SHAPE, rows(affine), orientation=orientation, spacing=spacing).read(loader(stored))
    boxed, part = grid.read(loader(stored)), grid.read(loader(stored), window)
    np.testing.assert_array_equal(boxed.values, full.values[(slice(None), *box)])
    np.testing.assert_array_equal(part.values, boxed.values[(slice(None), *window)])
    assert part.values.dtype == grid.dtype("int16")
    assert (part.valid is None) == (not masked)
    if masked:
        np.testing.assert_array_equal(part.valid, full.valid[box][window])


@few
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.sampled_from([0.35, 0.5, 0.7, 0.9375, 1.0, 1.1, 1.25, 2.0, 2.4, 3.0, 6.0])] * 3),
    st.tuples(*[st.floats(0.4, 6) | st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0, 3.0])] * 3),
)
def test_the_resampled_shape_is_the_one_monai_gives(shape, old, new):
    affine = np.diag((*old, 1.0))
    grid = Grid.of(shape, rows(affine), orientation="native", spacing=new)
    ratios = [fresh / stale for fresh, stale in zip(new, old, strict=True)]
    if any(0 < abs(ratio - 1) <= 1.5e-3 for ratio in ratios):
        return  # equal enough to be left alone
    lengths = [(size - 1) / ratio for size, ratio in zip(shape, ratios, strict=True)]
    if any(abs(length % 1 - 0.5) < 1e-9 for length in lengths):
        return  # a tie, which rounding errors decide
    monai = Spacing(pixdim=new, lazy=True)(MetaTensor(np.zeros((1, *shape), np.float32), affine=affine))
    assert grid.shape == tuple(int(size) for size in monai.peek_pending_shape())
    np.testing.assert_allclose(np.array(grid.affine)[:3], monai.peek_pending_affine().numpy()[:3], atol=1e-9)
    np.testing.assert_allclose(grid.spacing, new)


@few
@given(st.sampled_from(SIGNED), st.tuples(*[st.floats(0.5, 4)] * 3), st.floats(0, 0.7))
def test_resampling_a_linear_ramp_in_mm_gives_the_ramp(orientation_of, spacing, tilt):
    affine = affine_of(*orientation_of, tilt=tilt)
    slope = np.array([2.0, -1.0, 0.5])
    shape = (8, 9, 7)
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ramp = (nib.affines.apply_affine(affine, place) @ slope).astype(np.float32)
    grid = Grid.of(shape, rows(affine), orientation="canonical", spacing=spacing)
    seen = grid.read(loader(Pixels(ramp[None])))
    assert seen.values.dtype == np.float32
    seen_place = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    mm = np.einsum("...j,ij->...i", seen_place, np.array(grid.affine)[:, :3]) + np.array(grid.affine)[:, 3]
    stored_place = nib.affines.apply_affine(np.linalg.inv(affine), mm)
    inside = ((stored_place > -1e-6) & (stored_place < np.array(shape) - 1 + 1e-6)).all(-1)
    assert inside.any()
    np.testing.assert_allclose(seen.values[0][inside], (mm @ slope)[inside], atol=2e-2)
    back = grid.back(seen.values, np.ones(grid.shape, bool), Pixels(ramp[None]))[0]
    flat = grid.back(np.zeros_like(seen.values), np.zeros(grid.shape, bool), Pixels(ramp[None]))[0]
    np.testing.assert_array_equal(flat, ramp)
    fine = all(step <= 1 for step in grid.steps or (1, 1, 1))
    core = (slice(1, -2),) * 3  # a stored voxel beyond the last seen one gets that one's value
    if fine:
        np.testing.assert_allclose(back[core], ramp[core], atol=5e-2)


def test_resampling_is_monais_over_the_patients_own_affine():
    affine = affine_of((2, 0, 1), (-1, 1, -1), tilt=0.4)
    stored = volume((9, 8, 10), dtype="float32")
    spacing = (0.6, 2.5, 1.0)  # of 0.7, 3.0 and 1.5: finer along each, for MONAI does not average what it shrinks
    grid = Grid.of((9, 8, 10), rows(affine), orientation="canonical", spacing=spacing)
    seen = grid.read(loader(stored))
    turned = Orientation(axcodes="IPL", labels=(("L", "R"), ("P", "A"), ("I", "S")))(
        MetaTensor(stored.values, affine=affine)
    )
    monai = Spacing(pixdim=spacing)(turned)
    np.testing.assert_allclose(seen.values, monai.numpy(), atol=1e-2)
    np.testing.assert_allclose(np.array(grid.affine), monai.affine.numpy()[:3], atol=1e-9)


def test_a_resampled_voxel_is_valid_where_all_that_it_is_made_of_is():
    valid = np.ones((1, 1, 5), bool)
    valid[..., 2] = False
    values = np.array([[[[0, 10, 999, 30, 40]]]], np.float32)
    values[..., 2] = np.nan
    affine = np.eye(4)
    grid = Grid.of((1, 1, 5), rows(affine), orientation="native", spacing=(1, 1, 0.5))
    seen = grid.read(loader(Pixels(values, valid)))
    np.testing.assert_array_equal(seen.valid[0, 0], [1, 1, 1, 0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(seen.values[0, 0, 0][seen.valid[0, 0]], [0, 5, 10, 30, 35, 40], atol=1e-3)
    assert np.isnan(seen.values[0, 0, 0, 3:6]).all()


def test_only_the_matching_window_is_loaded_where_nothing_is_resampled():
    affine = affine_of((1, 2, 0), (1, -1, -1))
    asked = []

    def load(window: Window | None) -> Pixels:
        asked.append(window)
        return loader(volume())(window)

    grid = Grid.of(SHAPE, rows(affine), orientation="canonical")
    grid.read(load, (slice(0, 1), slice(1, 3), slice(2, 4)))
    grid.read(load)
    # axial from the top: the second stored axis goes down already; coronal: the first goes forward; sagittal: third
    assert asked == [(slice(1, 3), slice(0, 1), slice(2, 4)), None]


def test_back_keeps_what_is_not_changed_invalid_or_outside_of_the_box():
    stored = Pixels(np.full((1, 4, 4, 4), 7, np.uint8), np.ones((4, 4, 4), bool))
    stored.valid[1, 1, 1] = False
    for spacing in (None, (0.5, 0.5, 0.5)):
        grid = Grid.of((4, 4, 4), rows(np.eye(4)), orientation="canonical", spacing=spacing)
        box = tuple(slice(0, size // 2) for size in grid.shape)
        grid = Grid.of((4, 4, 4), rows(np.eye(4)), orientation="canonical", spacing=spacing, box=box)
        seen = np.full((1, *grid.shape), 300.7, np.float32)  # beyond the dtype
        changed = np.ones(grid.shape, bool)
        changed[:, :, 0] = False
        seen[:, 0, 0, 1:] = np.nan
        back = grid.back(seen, changed, stored)[0]
        expected = np.full((4, 4, 4), 7)
        expected[2:, 2:, 2:] = 255  # RAS+ stored, so that the box lies at the end of every axis
        expected[3] = 7  # not changed
        if spacing is None:
            expected[2, 3, 3] = 7  # not finite
        else:
            expected[2, 3, 3] = back[2, 3, 3]
        expected[1, 1, 1] = 7
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, expected)


def test_back_interpolates_and_rounds():
    stored = Pixels(np.zeros((1, 1, 1, 9), np.int16))
    grid = Grid.of((1, 1, 9), rows(np.eye(4)), orientation="native", spacing=(1, 1, 2))
    seen = np.array([0, 9, -20, 30, 40000], np.float32)[None, None, None]
    changed = np.array([True, True, True, False, True])[None, None]
    back = grid.back(seen, changed, stored)[0, 0, 0]
    assert back.tolist() == [0, 4, 9, -6, -20, 0, 0, 20015, 32767]  # the nearest of 5, at 2.5, is 3


def test_the_box_of_a_foreground_holds_all_valid_voxels_above_a_threshold():
    values = np.zeros((2, 6, 7, 8), np.float32)
    values[0, 2, 3, 4] = values[1, 4, 3, 5] = 10
    values[0, 5, 6, 7] = np.nan
    values[0, 0, 0, 0] = 50
    valid = np.ones((6, 7, 8), bool)
    valid[0, 0, 0] = False
    assert foreground_box(Pixels(values, valid), 5) == (slice(2, 5), slice(3, 4), slice(4, 6))
    assert foreground_box(Pixels(values), 5) == (slice(0, 5), slice(0, 4), slice(0, 6))
    assert foreground_box(Pixels(values), 100) == (slice(0, 6), slice(0, 7), slice(0, 8))


def test_a_spacing_that_is_nearly_the_stored_one_is_left_alone_and_a_grid_can_be_sent_to_other_processes():
    grid = Grid.of(SHAPE, rows(affine_of((0, 1, 2), (1, 1, 1))), orientation="native", spacing=(0.7003, 1.5, 2.999))
    assert grid.shape == SHAPE
    assert grid.dtype("uint16") == "uint16"
    assert pickle.loads(pickle.dumps(grid)) == grid
    with pytest.raises(ValueError, match="singular"):
        Grid.of(SHAPE, rows(np.diag((1.0, 1.0, 0.0, 1.0))), orientation="native")


@pytest.mark.parametrize("spacing", [None, (1.0, 0.75, 2.0)])
@pytest.mark.parametrize(("order", "signs"), SIGNED[::7])
def test_a_stored_slice_is_found_where_it_lies_in_mm(order, signs, spacing):
    affine = affine_of(order, signs, tilt=0.2)
    whole = Grid.of(SHAPE, rows(affine), orientation="canonical", spacing=spacing)
    box = tuple(slice(1, size) for size in whole.shape)
    grid = Grid.of(SHAPE, rows(affine), orientation="canonical", spacing=spacing, box=box)
    to_seen = np.linalg.inv(np.vstack([grid.affine, (0, 0, 0, 1)]))
    for axis in range(3):
        stored = grid.stored_axis(axis)
        for number in range(SHAPE[stored]):
            index = [0, 0, 0]
            index[stored] = number
            where = nib.affines.apply_affine(to_seen, to_mm(rows(affine), index))[axis]
            place = grid.place(axis, number)
            if place is None:
                assert where <= -0.5 + 1e-6  # before the box
            else:
                assert 0 <= place < grid.shape[axis]
                assert abs(place - where) <= 0.5 + 1e-6
        assert grid.place(axis, -1) == grid.place(axis, SHAPE[stored]) == -1


@given(st.integers(1, 60), st.floats(0.3, 4) | st.sampled_from([0.5, 2.0, 2.5, 3.0]), st.booleans())
def test_every_stored_slice_has_a_place_unless_a_box_cuts_it_away(size, step, flipped):
    affine = rows(np.diag([1, 1, -1 if flipped else 1, 1.0]))
    grid = Grid.of((2, 2, size), affine, orientation="native", spacing=(1, 1, step))
    places = [grid.place(2, number) for number in range(size)]
    assert all(place is not None and 0 <= place < grid.shape[2] for place in places)
    assert all(abs(place * grid.spacing[2] - number) <= 0.5 * grid.spacing[2] + 1e-6 or place == grid.shape[2] - 1
               for number, place in enumerate(places))  # fmt: skip
    if grid.shape[2] > 2:
        box = (slice(0, 2), slice(0, 2), slice(1, grid.shape[2] - 1))
        cut = Grid.of((2, 2, size), affine, orientation="native", spacing=(1, 1, step), box=box)
        inside = [place - 1 if 1 <= place < grid.shape[2] - 1 else None for place in places]
        assert [cut.place(2, number) for number in range(size)] == inside


def averaged(line: np.ndarray, step: float, out: int) -> np.ndarray:
    """By integrals: each voxel over a box as wide as a step, or as the way to the nearer end; then `np.interp`."""
    edges = np.concatenate([[0], np.cumsum(line, dtype=np.float64)])
    centres = np.arange(len(line)) + 0.5
    half = np.minimum(step / 2, np.minimum(centres, len(line) - centres))
    upper, lower = (np.interp(side, np.arange(len(edges)), edges) for side in (centres + half, centres - half))
    return np.interp(np.arange(out) * step, np.arange(len(line)), (upper - lower) / (2 * half))


@few
@given(st.tuples(*[st.integers(1, 17)] * 3), st.tuples(*[st.floats(1.01, 9) | st.sampled_from([2.0, 3.0, 4.5])] * 3))
def test_what_becomes_coarser_is_averaged_over_the_width_of_a_new_voxel(shape, steps):
    stored = volume(shape, channels=1)
    grid = Grid.of(shape, rows(np.eye(4)), orientation="native", spacing=steps)
    expected = stored.values[0].astype(np.float64)
    for axis, (step, out) in enumerate(zip(steps, grid.shape, strict=True)):
        expected = np.apply_along_axis(averaged, axis, expected, step, out)
    np.testing.assert_allclose(grid.read(loader(stored)).values[0], expected, atol=0.15)


def test_what_is_too_fine_for_a_coarse_grid_does_not_come_back_as_something_else():
    line = np.where(np.arange(80) % 2, 100, -100).astype(np.int16)  # half a period a voxel: the finest there is
    stored = Pixels(np.broadcast_to(line[:, None, None], (1, 80, 3, 3)))
    grid = Grid.of((80, 3, 3), rows(np.eye(4)), orientation="native", spacing=(2, 1, 1))
    assert np.abs(grid.read(loader(stored)).values[0, 1:-1]).max() < 1e-3  # without averaging it would be -100


@few
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.floats(0.3, 5) | st.sampled_from([1.0, 2.0])] * 3),
       st.integers(0, 99))  # fmt: skip
def test_a_voxel_is_valid_exactly_where_nothing_invalid_has_a_weight_in_it(shape, steps, seed):
    valid = np.random.default_rng(seed).random(shape) > 0.1
    grid = Grid.of(shape, rows(np.eye(4)), orientation="native", spacing=steps)
    if grid.steps is None:
        return
    seen = grid.read(loader(Pixels(np.where(valid, 5, np.nan)[None].astype(np.float32), valid)))
    weight = grid.read(loader(Pixels(np.where(valid, 0, 1)[None].astype(np.float32)))).values[0]
    inside = np.ones(grid.shape, bool) if seen.valid is None else seen.valid
    assert (weight[inside] < 1e-3).all()
    assert (weight[~inside] > 0).all()
    np.testing.assert_allclose(seen.values[0][inside], 5, rtol=1e-5)
    assert np.isnan(seen.values[0][~inside]).all()


def test_a_step_that_is_whole_but_for_rounding_reaches_no_further():
    valid = np.ones((9, 1, 1), bool)
    valid[[1, 5]] = False  # voxel 3 is the middle of the second new one, which is 3 wide
    stored = Pixels(np.zeros((1, 9, 1, 1), np.float32), valid)
    for step in (3 - 3e-5, 3, 3 + 3e-5):
        grid = Grid.of((9, 1, 1), rows(np.eye(4)), orientation="native", spacing=(step, 1, 1))
        assert grid.read(loader(stored)).valid.ravel()[:2].tolist() == [True, True], step


STAGGERED = """
import time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from maectl.adapter import Pixels
from maectl_medical.grid import Grid

grid = Grid.of((8, 8, 8), tuple(map(tuple, np.eye(4)[:3])), orientation="native", spacing=(2.0, 0.5, 0.7))
stored = np.random.default_rng(0).integers(0, 9, (1, 8, 8, 8)).astype(np.int16)


def read(number):
    time.sleep(0.05 * number)
    return grid.read(lambda window: Pixels(stored)).values


with ThreadPoolExecutor(40) as pool:
    first, *others = pool.map(read, range(40))
assert all((other == first).all() for other in others)
"""  # threads that come to their first volume while others still import what they need


def test_threads_may_come_to_their_first_volume_at_any_time_and_nothing_is_printed():
    environment = {**os.environ, "NVIDIA_TF32_OVERRIDE": "1"}  # which MONAI warns of where torch is built for GPUs
    done = subprocess.run(
        [sys.executable, "-c", STAGGERED], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_spacing_that_makes_a_volume_too_large_is_refused_with_the_sizes():
    with pytest.raises(ValueError, match=r"make 300,001 x 400,001 x 5,001 voxels of 4 x 5 x 6: use a larger spacing"):
        Grid.of((4, 5, 6), rows(np.eye(4)), orientation="native", spacing=(1e-5, 1e-5, 1e-3))
    for wrong in (np.nan, np.inf, 1e200):
        with pytest.raises(ValueError, match="not finite"):
            Grid.of((4, 5, 6), rows(np.diag((1.0, wrong, 1.0, 1.0))), orientation="native")


def test_values_are_rounded_and_clipped_to_integers_without_nan_and_floats_stay():
    values = np.array([-1.0, 0.5, 1.5, 254.6, 300, np.nan, np.inf, -np.inf], np.float32)
    assert cast(values, np.dtype("uint8")).tolist() == [0, 0, 2, 255, 255, 0, 255, 0]
    assert cast(values, np.dtype("int16"))[-2:].tolist() == [32767, -32768]
    np.testing.assert_array_equal(cast(values, np.dtype("float32")), values)
