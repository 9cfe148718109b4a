"""Crops from sources decoded once, or smaller than they are: what is read, and that it shows the same."""

from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maectl import cuts
from maectl.adapter import Adapter, Files, Pixels
from maectl.cuts import Cutter
from maectl.dataset import Batch, Loader, Views
from maectl.errors import Unreadable
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.stats import Normalizer
from maectl.store import Reader, build
from maectl.stream import Stream, generator
from maectl.windows import MARGIN, Crop, draw, least_sides, place, shrinkage

SIZE = (24, 16)
PLAIN = Normalizer((120.0,) * 3, (60.0,) * 3, None)


def reader(folder: Path) -> Reader:
    found = scan([folder], load("natural"), DataRecipe(), folder.parent / "index.arrow", workers=1)
    return Reader(found.index, found.adapter)


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, object, object]]:
    """What is asked of the adapter: path, window, shape."""
    asked: list[tuple[str, object, object]] = []
    adapter = load("natural")
    real = adapter.read

    def read(self: Adapter, source, window=None, shape=None) -> Pixels:
        asked.append((source.paths[0], window, shape))
        return real(self, source, window, shape)

    monkeypatch.setattr(adapter, "read", read)
    return asked


def shown(made: Views, batch: int, steps: int, rank: int = 0, world: int = 1) -> list[Batch]:
    stream = Stream(np.arange(len(made.reader.index)), batch, 3, crops=made.crops)
    with closing(Loader(made, 2, rank=rank, world=world)) as loader:
        return list(loader.batches(stream, 0, steps))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_source_is_decoded_once_for_all_of_its_crops(photographs, reads, workers):
    made = Views(reader(photographs), Crop(SIZE), "image", PLAIN, 0.5, 6, 3, crops=4)
    with closing(Loader(made, workers)) as loader:
        batches = list(loader.batches(Stream(np.arange(24), 32, 3, crops=4), 0, 3))  # one pass over all of them
    assert sorted(Counter(path for path, _, _ in reads).values()) == [1] * 24
    assert all(window is None for _, window, _ in reads)
    for batch in batches:
        assert (batch.rows.reshape(8, 4) == batch.rows[::4, None]).all()
        assert len({image.numpy().tobytes() for image in batch.images}) == 32  # of each source four different crops


def test_a_group_that_straddles_two_batches_or_processes_is_decoded_in_each(photographs, reads):
    made = Views(reader(photographs), Crop(SIZE), "image", PLAIN, 0.5, 6, 3, crops=4)
    shown(made, 6, 2)  # groups of 4: 4 + 2 and 2 + 4
    assert len(reads) == 4
    reads.clear()
    shown(made, 4, 1, rank=0, world=2)
    shown(made, 4, 1, rank=1, world=2)
    assert len(reads) == 2


def test_crops_of_one_decoding_are_those_of_as_many_decodings(photographs, monkeypatch):
    made = Views(reader(photographs), Crop(SIZE, flips=(1,)), "image", PLAIN, 0.5, 6, 3, crops=3)
    once = shown(made, 20, 4)
    monkeypatch.setattr(cuts, "IMAGE", 0)  # as if each were too large to be held whole
    for one, other in zip(once, shown(made, 20, 4), strict=True):
        assert one.images.equal(other.images)
        assert one.rows.tolist() == other.rows.tolist()


def test_crops_of_one_decoding_are_those_of_the_store(photographs, tmp_path, reads):
    plain = reader(photographs)
    store, _ = build(plain.index, plain.adapter, tmp_path / "store", workers=1)
    made = [Views(each, Crop(SIZE), "image", PLAIN, 0.5, 6, 3, crops=3)
            for each in (plain, Reader(plain.index, plain.adapter, store))]  # fmt: skip
    expected = shown(made[0], 20, 2)
    reads.clear()
    for one, other in zip(expected, shown(made[1], 20, 2), strict=True):
        assert one.images.equal(other.images)
    assert not reads


# ---- decoded smaller ---------------------------------------------------------------------------------------------


def structured(seed: int, height: int, width: int) -> np.ndarray:
    """A photograph's spectrum: noise of every octave, each weaker than the last; [H, W, 3]."""
    random = np.random.default_rng(seed)
    values = np.zeros((height, width, 3))
    for octave in range(1, 9):
        coarse = random.normal(size=(max(2, height * 2**octave // width), 2**octave, 3)).astype(np.float32)
        values += 0.6**octave * np.stack(
            [np.asarray(Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC))
             for c in range(3)], axis=-1)  # fmt: skip
    return np.clip(values / values.std() * 50 + 125, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Three JPEGs of about 803 x 1205 pixels, one of which lies on its side."""
    folder = tmp_path_factory.mktemp("large") / "images"
    folder.mkdir()
    for number in range(3):
        exif = Image.Exif()
        exif[274] = 6 if number == 2 else 1
        values = structured(number, 803, 1205)
        values = values[:800, :1200] if number == 2 else values
        Image.fromarray(values).save(folder / f"{number}.jpg", quality=88, exif=exif)
    return folder


@pytest.mark.parametrize("crops", [1, 4])
def test_large_photographs_are_decoded_smaller_and_hardly_a_grey_level_differs(large, tmp_path, reads, crops):
    """Against Pillow's resized crop of the same window, decoded in full."""
    plain = reader(large)
    made = Views(plain, Crop((64, 64)), "image", PLAIN, 0.5, 16, 3, crops=crops)
    (batch,) = shown(made, 12, 1)
    assert all(shape is not None and min(shape) >= MARGIN * 64 for _, _, shape in reads)
    draws = draw(generator(3, 0), 12, 2)
    worst = []
    for item, row in enumerate(batch.rows):
        whole = np.moveaxis(plain.read(int(row)).values, 0, -1)
        (rows, columns), _, _ = place(Crop((64, 64), shrink=True), draws, item, whole.shape[:2])
        box = (columns.start, rows.start, columns.stop, rows.stop)
        expected = np.asarray(Image.fromarray(whole).resize((64, 64), Image.Resampling.BICUBIC, box=box), int)
        apart = np.abs(np.moveaxis(batch.images[item].numpy(), 0, -1) - expected)
        worst.append(apart.mean())
        assert np.quantile(apart, 0.99) <= 4
    assert max(worst) < 0.8
    assert np.mean(worst) < 0.6


@pytest.mark.parametrize(
    "changes", [{"window": "300px"}, {"min_contrast": 0.1}, {"crop": Crop((288, 288))}],
    ids=["a scale in pixels", "contrast is looked at", "too few pixels"],
)  # fmt: skip
def test_what_must_be_exact_is_decoded_in_full(large, reads, changes):
    made = Views(**{"reader": reader(large), "crop": Crop((64, 64)), "window": "image", "normalizer": PLAIN,
                    "min_valid": 0.5, "patches": 16, "seed": 3, **changes})  # fmt: skip
    shown(made, 6, 1)
    assert all(shape is None for _, _, shape in reads)


def test_windows_in_pixels_are_those_of_the_store_however_large_the_photograph(large, tmp_path):
    plain = reader(large)
    store, _ = build(plain.index, plain.adapter, tmp_path / "store", workers=1)
    one, other = (shown(Views(each, Crop((32, 32)), "400px", PLAIN, 0.5, 4, 3), 6, 1)[0]
                  for each in (plain, Reader(plain.index, plain.adapter, store)))  # fmt: skip
    assert one.images.equal(other.images)


@settings(deadline=None, max_examples=60)
@given(extent=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), seed=st.integers(0, 10**6))
def test_shares_of_an_image_that_may_be_decoded_smaller_lie_on_whole_pixels_and_are_hardly_wider(extent, seed):
    draws = draw(generator(seed, 0), 4, 2)
    crop = Crop((48, 64))
    least = least_sides(crop, extent)
    for item in range(4):
        exact = place(crop, draws, item, extent)[0]
        wide, span, _ = place(Crop((48, 64), shrink=True), draws, item, extent)
        sides = [side.stop - side.start for side in exact]
        factor = shrinkage(sides, (48, 64))
        assert span == tuple(side.stop - side.start for side in wide)
        for own, other, e, f in zip(exact, wide, extent, least, strict=True):
            assert other.start % factor == 0
            assert other.stop % factor == 0
            assert other.start <= own.start < min(own.stop, e // factor * factor) <= other.stop <= e
            assert (other.stop - other.start) - (own.stop - own.start) <= 2 * (factor - 1)
            assert own.stop - own.start >= f - 0.5
        assert factor == 1 or all(-(-side // factor) >= MARGIN * s for side, s in zip(sides, (48, 64), strict=True))


def test_pixels_that_are_not_what_the_header_told_are_unreadable(large, monkeypatch):
    given = reader(large)
    adapter = type(given.adapter)
    cutter, window = Cutter(given, Crop((64, 64), shrink=True)), (slice(0, 800), slice(0, 800))
    monkeypatch.setattr(adapter, "read", lambda self, source, window, shape: Pixels(np.zeros((1, 200, 200), np.uint8)))
    with pytest.raises(Unreadable, match="3 channels of uint8, the pixels are 1 channels of uint8"):
        cutter.cut(0, window, (64, 64))

    def gone(self: Adapter, source, window, shape) -> Pixels:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(adapter, "read", gone)
    with pytest.raises(Unreadable, match="PermissionError: Permission denied"):
        cutter.cut(0, window, (64, 64))


def test_an_adapter_that_returns_what_lies_between_is_cut_at_the_nearest_pixels(tmp_path):
    """A third party's overview need not be a half, a quarter or an eighth."""
    (tmp_path / "images").mkdir()
    ramp = np.repeat(np.arange(1000, dtype=np.float64)[:, None] / 4, 900, axis=1).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "images" / "a.png")
    given = reader(tmp_path / "images")
    source = next(iter(given.adapter.scan(Files(tmp_path / "images"))))
    third = Pixels(given.adapter.read(source).values[:, 1::3, 1::3])  # 333 x 300
    found = cuts._part(third, (slice(300, 600), slice(0, 900)), (1000, 900))
    assert found.values.shape == (1, 100, 300)
    assert abs(int(found.values[0, 0, 0]) - 300 / 4) <= 1
    assert abs(int(found.values[0, -1, 0]) - 599 / 4) <= 1
