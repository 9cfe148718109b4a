"""Crops resized where the model is: what the CPU makes of them, to a grey level or two."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maectl.adapter import Pixels
from maectl.crops import Crops, Cut, packed
from maectl.dataset import Batch, Loader, Views, normalise
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.resize import resize
from maectl.scan import scan
from maectl.stats import Normalizer
from maectl.store import Reader
from maectl.stream import HELD_OUT, Stream
from maectl.windows import Crop

CPU = torch.device("cpu")
SIZE = (24, 16)
PLAIN = Normalizer((120.0,) * 3, (60.0,) * 3, None)


@settings(deadline=None, max_examples=60)
@given(
    sides=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5),
    size=st.sampled_from([(24, 24), (16, 24), (33, 7)]), channels=st.integers(1, 4), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_each_crop_of_a_piece_is_resized_as_on_the_cpu(sides, size, channels, seed):
    random = np.random.default_rng(seed)
    cuts, expected = [], []
    for number, (height, width) in enumerate(sides):
        values = np.moveaxis(picture(seed + number, height, width, channels), -1, 0)
        flips = (bool(random.integers(2)), bool(random.integers(2)))
        turns = int(random.integers(4)) if size[0] == size[1] else 0
        cuts.append(Cut(values, flips, turns))
        small = resize(Pixels(values), size, np.zeros(channels)).values
        flipped = np.flip(small, [axis + 1 for axis in (0, 1) if flips[axis]])
        expected.append(np.rot90(flipped, turns, (1, 2)))
    found = Crops([packed(cuts, pin=False)], (channels, *size))
    assert len(found) == len(sides)
    assert np.abs(found.numpy().astype(int) - np.stack(expected)).max() <= 2


def test_a_crop_is_the_same_to_the_bit_whatever_lies_beside_it():
    random = np.random.default_rng(1)
    cuts = [Cut(random.integers(0, 256, (3, *random.integers(24, 90, 2))).astype(np.uint8)) for _ in range(40)]
    together = Crops([packed(cuts, pin=False)], (3, *SIZE)).on(CPU)
    assert torch.equal(together, torch.cat([Crops([packed([cut], pin=False)], (3, *SIZE)).on(CPU) for cut in cuts]))


def test_hardly_a_value_is_more_than_a_grey_level_apart():
    pictures = [np.moveaxis(picture(seed, 40 + 3 * seed, 95 - 2 * seed), -1, 0) for seed in range(20)]
    expected = [resize(Pixels(each), SIZE, np.zeros(3)).values for each in pictures]
    apart = np.abs(
        Crops([packed([Cut(each) for each in pictures], pin=False)], (3, *SIZE)).numpy().astype(int) - expected
    )
    assert (apart > 1).mean() <= 0.001
    assert apart.mean() < 0.1


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), start=st.integers(0, 9), stop=st.integers(0, 20)
)  # fmt: skip
def test_a_part_of_the_crops_is_that_part(counts, start, stop):
    """Crops of one pixel, which tells the place."""
    places = np.arange(sum(counts), dtype=np.uint8)
    pieces = [packed([Cut(np.full((1, 1, 1), place, np.uint8)) for place in each], pin=False)
              for each in np.split(places, np.cumsum(counts)[:-1])]  # fmt: skip
    part = Crops(pieces, (1, 2, 2))[start:stop]
    assert len(part) == len(places[start:stop])
    if len(part):
        assert part.numpy()[:, 0, 0, 0].tolist() == places[start:stop].tolist()


def test_a_crop_of_the_models_size_stays_as_it_is():
    values = np.random.default_rng(0).integers(0, 256, (3, *SIZE)).astype(np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (3, 90, 70)).astype(np.uint8)
    found = Crops([packed([Cut(values), Cut(other)], pin=False)], (3, *SIZE)).numpy()
    np.testing.assert_array_equal(found[0], values)


def reader(folder: Path) -> Reader:
    found = scan([folder], load("natural"), DataRecipe(), folder.parent / "index.arrow", workers=1)
    return Reader(found.index, found.adapter)


def shown(given: Reader, resize: str, crop: Crop, rank: int = 0, world: int = 1) -> list[Batch]:
    made = Views(given, crop, "image", PLAIN, 0.5, 6, 3, resize=resize)
    with closing(Loader(made, 2, rank=rank, world=world)) as loader:
        return list(loader.batches(Stream(np.arange(len(given.index)), 70, 3), 0, 2))


@pytest.mark.parametrize("size", [(24, 24), (8, 8)], ids=["most on the device", "too large for it"])
def test_batches_are_those_of_the_cpu_to_two_grey_levels(photographs, size):
    given, crop = reader(photographs), Crop(size, flips=(0, 1), rotate=True)
    for one, other in zip(shown(given, "cpu", crop), shown(given, "device", crop), strict=True):
        assert isinstance(other.images, Crops)
        assert other.images.ndim == 4
        assert other.rows.tolist() == one.rows.tolist()
        for part in (slice(0, 70), slice(30, 50)):
            here, there = (normalise(each._replace(images=each.images[part]), PLAIN, CPU)[0] for each in (one, other))
            assert here.shape == there.shape
            assert (here - there).abs().max() * 60 <= 2.01


def test_crops_with_invalid_pixels_are_resized_on_the_cpu_among_the_others(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        alpha = np.full((40, 60, 1), 255, np.uint8)
        alpha[:, : 20 * (number % 2)] = 0
        pixels = np.concatenate((picture(number, 40, 60), alpha), axis=2)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    given, crop = reader(tmp_path / "images"), Crop(SIZE, flips=(1,))
    for one, other in zip(shown(given, "cpu", crop), shown(given, "device", crop), strict=True):
        here, there = (normalise(each, PLAIN, CPU) for each in (one, other))
        assert here[1].equal(there[1])
        assert not here[1].all()
        assert (here[0] - there[0]).abs().max() * 60 <= 2.01


def test_what_is_held_out_and_what_is_no_bytes_is_resized_on_the_cpu(photographs, tmp_path):
    made = Views(reader(photographs), Crop(SIZE), "image", PLAIN, 0.5, 6, 3, resize="device")
    with closing(Loader(made, 1)) as loader:
        assert isinstance(loader.batch(np.arange(4), 0, HELD_OUT).images, torch.Tensor)
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(tmp_path / "deep" / "a.png")
    assert isinstance(shown(reader(tmp_path / "deep"), "device", Crop(SIZE))[0].images, torch.Tensor)


def test_a_process_without_a_share_has_a_batch_of_no_images(photographs):
    made = Views(reader(photographs), Crop(SIZE), "image", PLAIN, 0.5, 6, 3, resize="device")
    with closing(Loader(made, 1, rank=2, world=3)) as loader:
        (batch,) = loader.batches(Stream(np.arange(24), 2, 3), 0, 1)
    assert len(batch.images) == len(batch.rows) == 0
    assert normalise(batch, PLAIN, CPU)[0].shape == (0, 3, *SIZE)
