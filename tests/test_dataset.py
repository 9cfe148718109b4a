"""Batches: the same whoever prepares them, invalid windows drawn again, unreadable sources replaced."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from maectl.dataset import Batch, Loader, Views, normalise
from maectl.errors import TrainingError, Unreadable
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.stats import Normalizer, gather
from maectl.store import Reader, build
from maectl.stream import HELD_OUT, Stream
from maectl.windows import Crop

SIZE = (24, 16)


def reader(folder: Path, **keys) -> Reader:
    found = scan([folder], load("natural"), DataRecipe.model_validate(keys), folder.parent / "index.arrow", workers=1)
    return Reader(found.index, found.adapter)


def views(given: Reader, mode: str = "dataset", **changes) -> Views:
    statistics = gather(given.read(row) for row in range(len(given.index)))
    options = {
        "crop": Crop(SIZE, flips=(1,)), "window": "image", "normalizer": Normalizer.of(mode, None, statistics),
        "min_valid": 0.5, "patches": 6, "seed": 3,
    }  # fmt: skip
    return Views(reader=given, **{**options, **changes})


@contextmanager
def loader(made: Views, workers: int = 2) -> Iterator[Loader]:
    threads = Loader(made, workers)
    try:
        yield threads
    finally:
        threads.close()


def batches(made: Views, workers: int = 2, steps: range = range(4), batch: int = 10) -> list[Batch]:
    stream = Stream(np.arange(len(made.reader.index)), batch, 3)
    with loader(made, workers) as threads:
        return list(threads.batches(stream, steps.start, steps.stop))


def same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for name in ("images", "noise", "mean", "std"):
            assert torch.equal(getattr(left, name), getattr(right, name)), name
        assert (left.valid is None) == (right.valid is None)
        assert left.valid is None or torch.equal(left.valid, right.valid)
        assert left.rows.tolist() == right.rows.tolist()


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """12 pictures whose left third is transparent."""
    folder = tmp_path / "masked"
    folder.mkdir()
    for number in range(12):
        alpha = np.full((40, 60, 1), 255, np.uint8)
        alpha[:, :20] = 0
        pixels = np.concatenate((picture(number, 40, 60), alpha), axis=2)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.mark.parametrize("mode", ["dataset", "image"])
def test_batches_depend_neither_on_threads_nor_on_the_store_nor_on_where_one_begins(photographs, tmp_path, mode):
    plain = reader(photographs)
    store, _ = build(plain.index, plain.adapter, tmp_path / "store", workers=1)
    stored = Reader(plain.index, plain.adapter, store)
    expected = batches(views(plain, mode), 1)
    for workers in (2, 3, 7):
        same(batches(views(plain, mode), workers), expected)
    same(batches(views(stored, mode), 3), expected)
    same(batches(views(stored, mode), 2, range(2, 4)), expected[2:])
    assert [batch.images.shape for batch in expected] == [(10, 3, *SIZE)] * 4
    assert [batch.noise.shape for batch in expected] == [(10, 6)] * 4
    assert not torch.equal(expected[0].noise, expected[1].noise)
    assert not torch.equal(expected[0].images, batches(views(plain, mode, seed=4), 1)[0].images)


@pytest.mark.parametrize("steps", [range(0), range(5, 6), range(2), range(7, 10)])
def test_as_many_batches_come_as_were_asked_for(photographs, steps):
    assert len(batches(views(reader(photographs)), 1, steps)) == len(steps)


def test_a_batch_wholly_valid_says_none_and_one_that_is_not_says_which(masked, photographs):
    assert all(batch.valid is None for batch in batches(views(reader(photographs))))
    for batch in batches(views(reader(masked))):
        assert batch.valid.shape == (10, *SIZE)
        assert batch.valid.dtype == torch.bool
        assert not batch.valid.all()
        assert batch.valid.any(dim=(1, 2)).all()


def test_windows_with_too_little_that_is_valid_are_drawn_again(masked):
    crop = Crop(SIZE, (0.02, 0.1), flips=())  # small windows: many lie in the transparent third

    def share(min_valid: float) -> torch.Tensor:
        made = views(reader(masked), crop=crop, min_valid=min_valid)
        found = batches(made, steps=range(12))
        return torch.cat([(batch.valid if batch.valid is not None else torch.ones(10, *SIZE)).float().mean((1, 2))
                          for batch in found])  # fmt: skip

    anything, half = share(0.0), share(0.5)
    assert (anything == 0).float().mean() > 0.1
    assert (half == 0).sum() == 0
    # windows that were good enough the first time stay the same, whatever happens to the others
    good = anything > 0.9
    torch.testing.assert_close(half[good], anything[good])


def test_where_no_window_will_do_the_best_of_ten_is_taken(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    Image.new("LA", (30, 30), (9, 0)).save(folder / "a.png")
    image = Image.new("LA", (30, 30), (9, 255))
    image.save(folder / "b.png")
    batch = batches(views(reader(folder), min_valid=1.0), steps=range(1), batch=2)[0]
    assert batch.rows[np.flatnonzero(~batch.valid.any(dim=(1, 2)).numpy())].tolist() == [0]


def test_unreadable_sources_are_replaced_alike_by_every_number_of_threads_and_reported_once(photographs):
    given = reader(photographs)
    for row in (1, 5, 6):
        path = photographs / given.index[row].paths[0]
        path.write_bytes(path.read_bytes()[:200])
    normalizer = Normalizer((0.0,) * 3, (1.0,) * 3, None)
    found = []
    for workers in (1, 2, 6):
        reported: list[tuple[int, str]] = []
        made = Views(
            given, Crop(SIZE), "image", normalizer, 0.5, 6, 3, rejected=lambda *each, to=reported: to.append(each)
        )
        found.append(batches(made, workers, range(6)))
        assert sorted(row for row, _ in reported) == [1, 5, 6]
        assert all(reason and "known" not in reason for _, reason in reported)
    same(found[0], found[1])
    same(found[0], found[2])
    shown = np.concatenate([batch.rows for batch in found[0]])
    assert not set(shown) & {1, 5, 6}
    # what stood beside the replaced ones is as it was
    stream = Stream(np.arange(24), 10, 3)
    for step, batch in enumerate(found[0]):
        asked = stream.step(step)
        kept = ~np.isin(asked, [1, 5, 6])
        assert batch.rows[kept].tolist() == asked[kept].tolist()


def test_a_source_that_vanishes_under_its_own_normalisation_is_replaced_too(photographs, monkeypatch):
    """With normalize=image a window is not all that is read of a source."""
    given = reader(photographs)
    real = type(given.adapter).read

    def read(self, source, window=None, shape=None):
        if window is None and source.paths == given.index[4].paths:
            raise Unreadable("gone between two reads")
        return real(self, source, window, shape)

    made = views(given, "image")
    monkeypatch.setattr(type(given.adapter), "read", read)
    reported: list[int] = []
    made.rejected = lambda row, reason: reported.append(row)
    found = batches(made, steps=range(3))
    assert reported == [4]
    assert all(4 not in batch.rows for batch in found)


def test_ten_unreadable_sources_in_a_row_stop_with_a_question(photographs):
    given = reader(photographs)
    made = views(given)
    for row in range(24):
        (photographs / given.index[row].paths[0]).unlink()
    with pytest.raises(TrainingError, match="10 sources in a row cannot be read: is the folder still there"):
        batches(made)


def test_an_error_of_a_thread_reaches_the_caller_and_no_thread_is_left(photographs):
    made = views(reader(photographs))

    def stop(row: int, reason: str) -> None:
        raise TrainingError("too many")

    made.rejected = stop
    (photographs / made.reader.index[0].paths[0]).unlink()
    with pytest.raises(TrainingError, match="too many"):
        batches(made, 3, range(9))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("maectl-loader")]


@pytest.mark.parametrize("axis", [0, 1])
def test_half_of_the_images_are_reversed_and_their_validity_with_them(masked, axis):
    plain = views(reader(masked), crop=Crop(SIZE, flips=()))
    turned = views(reader(masked), crop=Crop(SIZE, flips=(axis,)))
    flipped = 0
    for one, other in zip(batches(plain, steps=range(6)), batches(turned, steps=range(6)), strict=True):
        for item in range(10):
            back = other.images[item].flip(1 + axis)
            if torch.equal(one.images[item], other.images[item]):
                assert torch.equal(one.valid[item], other.valid[item])
            else:
                flipped += 1
                assert torch.equal(one.images[item], back)
                assert torch.equal(one.valid[item], other.valid[item].flip(axis))
    assert 18 <= flipped <= 42  # of 60


def test_crops_are_the_windows_of_the_source_resized(photographs):
    """The pixels of a batch, made again by hand from the draws."""
    from maectl.resize import resize
    from maectl.stream import generator
    from maectl.windows import draw, place

    made = views(reader(photographs))
    batch = batches(made, steps=range(2))[1]
    draws = draw(generator(3, 1), 10, 2)
    for item, row in enumerate(Stream(np.arange(24), 10, 3).step(1)):
        whole = made.reader.read(int(row))
        window, _, flips = place(made.crop, draws, item, whole.values.shape[1:])
        cut = made.reader.adapter.read(made.reader.index[int(row)], window)
        expected = resize(cut, SIZE, np.array(made.normalizer.mean)).values
        expected = expected[:, :, ::-1] if flips else expected
        np.testing.assert_array_equal(batch.images[item].numpy(), expected)


def test_what_the_model_sees_is_normalised_and_clipped_and_values_survive(tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.full(SIZE, 1000 * number + 7, np.uint16)).save(folder / f"{number}.png")
        Image.fromarray(np.full(SIZE, -0.25 * number, np.float32)).save(folder / f"{number}.tif")
    given = reader(folder)
    made = views(given)
    batch = batches(made, steps=range(1), batch=8)[0]
    assert batch.images.dtype == torch.float32
    for item, row in enumerate(batch.rows):
        truth = float(given.read(int(row)).values.flat[0])
        np.testing.assert_allclose(batch.images[item], truth, rtol=1e-5, atol=1e-6)
    images, valid = normalise(batch, made.normalizer, torch.device("cpu"))
    mean, std = made.normalizer.mean[0], made.normalizer.std[0]
    torch.testing.assert_close(images, (batch.images - mean) / std)
    assert valid is None
    clipped, _ = normalise(batch, Normalizer((10.0,), (2.0,), ((0.0,), (1500.0,))), torch.device("cpu"))
    torch.testing.assert_close(clipped, (batch.images.clamp(0, 1500) - mean) / std)


def test_percentiles_that_were_just_measured_leave_images_in_float32(photographs):
    made = views(reader(photographs), "percentiles")
    images, _ = normalise(batches(made, steps=range(1))[0], made.normalizer, torch.device("cpu"))
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1.001


def test_bytes_stay_bytes_until_the_device(photographs):
    assert batches(views(reader(photographs)), steps=range(1))[0].images.dtype == torch.uint8


def test_each_image_can_have_its_own_mean_and_deviation(masked):
    given = reader(masked)
    batch = batches(views(given, "image"), steps=range(1))[0]
    for item, row in enumerate(batch.rows):
        pixels = given.read(int(row))
        inside = pixels.values[:, pixels.valid].astype(float)
        np.testing.assert_allclose(batch.mean[item], inside.mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(batch.std[item], inside.std(axis=1), rtol=1e-5)


def test_one_batch_of_given_rows_has_draws_of_its_own(photographs):
    made, rows = views(reader(photographs)), np.array([3, 3, 20])
    with loader(made, 2) as threads:
        held, again, other = (threads.batch(rows, step, HELD_OUT) for step in (0, 0, 1))
        assert threads.waited > 0
    same([held], [again])
    assert held.rows.tolist() == [3, 3, 20]
    assert not torch.equal(held.images[0], held.images[1])
    assert not torch.equal(held.images, other.images)


def test_an_epoch_shows_a_source_as_often_as_windows_fit_it(tmp_path):
    folder = tmp_path / "sizes"
    folder.mkdir()
    for number, side in enumerate((10, 40, 80)):
        Image.new("L", (side, side)).save(folder / f"{number}.png")
    made = views(reader(folder), crop=Crop((20, 20)), window="20px")
    assert made.per_epoch(np.arange(3)).tolist() == [1, 4, 16]
    assert views(reader(folder)).per_epoch(np.arange(3)) is None


def test_with_flips_and_turns_all_eight_ways_a_square_can_lie_are_as_likely(masked):
    given = reader(masked)
    crop = Crop((24, 24), (1, 1), (1, 1))
    (still,) = batches(views(given, crop=crop), steps=range(1), batch=400)
    (turned,) = batches(
        views(given, crop=Crop((24, 24), (1, 1), (1, 1), flips=(0, 1), rotate=True)), steps=range(1), batch=400
    )
    assert still.rows.tolist() == turned.rows.tolist()
    seen = np.zeros(8, int)
    for whole, other, valid, lies in zip(still.images, turned.images, still.valid, turned.valid, strict=True):
        ways = [
            (torch.rot90(side, turns, (-2, -1)), torch.rot90(mask, turns, (-2, -1)))
            for side, mask in ((whole, valid), (whole.flip(-1), valid.flip(-1)))
            for turns in range(4)
        ]
        same_as = [torch.equal(way, other) and torch.equal(mask, lies) for way, mask in ways]
        assert sum(same_as) == 1
        seen[same_as.index(True)] += 1
    assert seen.min() > 25


def test_turns_leave_the_draws_of_other_runs_as_they_were():
    from maectl.stream import generator
    from maectl.windows import draw

    plain, with_turns = (draw(generator(0, 1), 8, 2, rotate=rotate) for rotate in (False, True))
    for name in ("shapes", "places", "flips"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(with_turns, name))
    assert not plain.turns.any()


def test_of_a_single_scene_windows_of_the_last_rows_are_held_out_and_never_trained_on(tmp_path):
    (tmp_path / "images").mkdir()
    rows = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 60, axis=1)  # a pixel tells its row
    Image.fromarray(rows).save(tmp_path / "images" / "a.png")
    Image.fromarray(rows[:80]).save(tmp_path / "images" / "b.png")  # under three windows: not divided
    made = views(reader(tmp_path / "images"), crop=Crop((32, 32), (0.9, 1.0)), window="32px", divided=True, patches=16)
    with loader(made) as threads:
        trained = [batch for _ in range(3) for batch in threads.batches(Stream(np.arange(2), 64, 3), 0, 3)]
        held = threads.batch(np.resize(np.arange(2), 64), 0, HELD_OUT)
    ends = {row: ([], []) for row in range(2)}
    for batch in (*trained, held):
        for image, row in zip(batch.images, batch.rows, strict=True):
            ends[row][batch is held].append((int(image.min()), int(image.max())))
    assert max(high for _, high in ends[0][0]) < 168 <= min(low for low, _ in ends[0][1])
    assert max(high for _, high in ends[1][0]) > 75
    assert min(low for low, _ in ends[1][1]) < 40


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> Path:
    """16 pictures whose left third is transparent; of three only the header can be read."""
    folder = tmp_path_factory.mktemp("troubled") / "images"
    folder.mkdir()
    for number in range(16):
        alpha = np.full((40, 60, 1), 255, np.uint8)
        alpha[:, :20] = 0
        Image.fromarray(np.concatenate((picture(number, 40, 60), alpha), axis=2)).save(folder / f"{number:02d}.png")
    for number in (2, 7, 8):
        path = folder / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:200])
    return folder


@settings(deadline=None, max_examples=12)
@given(
    batch=st.integers(1, 17), world=st.integers(1, 5), crops=st.integers(1, 3),
    mode=st.sampled_from(["dataset", "image"]),
)  # fmt: skip
@example(batch=2, world=5, mode="dataset", crops=2)  # some processes get nothing
def test_the_shares_of_all_processes_are_the_batch_of_one_to_the_bit(troubled, batch, world, mode, crops):
    """With windows that are drawn again, and sources that cannot be read."""
    given = reader(troubled)
    normalizer = Normalizer((120.0,) * 3, (60.0,) * 3, None, image=mode == "image")
    crop = Crop(SIZE, (0.02, 0.3), flips=(1,))

    def shown(rank: int, world: int) -> list[Batch]:
        made = Views(given, crop, "image", normalizer, 0.8, 6, 3, crops=crops)
        threads = Loader(made, 2, rank=rank, world=world)
        try:
            return list(threads.batches(Stream(np.arange(16), batch, 3, crops=crops), 0, 3))
        finally:
            threads.close()

    whole = shown(0, 1)
    parts = [shown(rank, world) for rank in range(world)]
    for step, expected in enumerate(whole):
        shares = [part[step] for part in parts]
        valid = [torch.ones(len(each.images), *SIZE, dtype=torch.bool) if each.valid is None else each.valid
                 for each in shares]  # fmt: skip
        found = Batch(
            torch.cat([each.images for each in shares]),
            None if all(each.valid is None for each in shares) else torch.cat(valid),
            torch.cat([each.noise for each in shares]),
            torch.cat([each.mean for each in shares]) if mode == "image" else shares[0].mean,
            torch.cat([each.std for each in shares]) if mode == "image" else shares[0].std,
            np.concatenate([each.rows for each in shares]),
        )
        same([found], [expected])


def test_what_is_held_out_is_whole_in_every_process(photographs):
    made, rows = views(reader(photographs)), np.array([3, 3, 20])
    found = []
    for rank in range(2):
        threads = Loader(made, 1, rank=rank, world=2)
        found.append(threads.batch(rows, 0, HELD_OUT))
        threads.close()
    assert len(found[1].images) == 3
    same(found[:1], found[1:])


def test_a_loaders_threads_compute_alone_and_the_setting_of_others_stays(photographs):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threads = Loader(views(reader(photographs)), 3)
        try:
            assert {threads._pool.submit(torch.get_num_threads).result() for _ in range(9)} == {1}
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 3
        finally:
            threads.close()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [SIZE, (24, 24)])
def test_images_of_a_batch_have_their_channels_last_in_memory(photographs, size):
    (batch,) = batches(views(reader(photographs), crop=Crop(size, flips=(0, 1))), steps=range(1))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
