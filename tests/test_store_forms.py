"""Other forms of entries: JPEG, and bounded short sides, of 8-bit images alone."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maectl import shards
from maectl.adapter import Pixels
from maectl.errors import Unreadable
from maectl.forms import RAW, Form, encoded
from maectl.index import Index
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.store import Reader, Store, build, opened

COMPACT = Form(32, jpeg=True)
SIZES = [(48, 64), (20, 30), (64, 48), (100, 33)]  # short sides 48, 20, 48, 33


def scanned(folder: Path, **keys):
    found = scan([folder], load("natural"), DataRecipe.model_validate(keys), folder.parent / "index.arrow", workers=1)
    return found.index, found.adapter


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Four PNG pictures, the third with a transparent corner, and beside them a 16-bit and a float image."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, (height, width) in enumerate(SIZES):
        image = Image.fromarray(picture(number, height, width))
        if number == 2:
            alpha = np.full((height, width), 255, np.uint8)
            alpha[:5, :5] = 0
            image.putalpha(Image.fromarray(alpha))
        image.save(folder / f"{number}.png")
    wide = (picture(9, 50, 60, 1)[..., 0].astype(np.uint16)) * 256
    Image.fromarray(wide).save(folder / "4.png")
    Image.fromarray(wide.astype(np.float32)).save(folder / "5.tif")
    return folder


def built(folder: Path, where: Path, form: Form, **keys) -> tuple[Index, object, Store]:
    index, adapter = scanned(folder, **keys)
    store, bad = build(index, adapter, where, form=form, workers=2)
    assert bad == []
    return index, adapter, store


def test_compact_entries_are_jpegs_of_the_bounded_size_and_say_their_extent(colours, tmp_path):
    index, adapter, store = built(colours, tmp_path / "store", COMPACT)
    reader = Reader(index, adapter, store)
    assert [tuple(shape) for shape in reader.shapes[:, 1:].tolist()] == [
        (32, 43), (20, 30), (64, 48), (97, 32), (50, 60), (50, 60)
    ]  # fmt: skip
    assert [tuple(shape) for shape in index.shapes[:, 1:].tolist()][:4] == SIZES
    for row in (0, 1, 3):
        height, width = reader.shapes[row, 1:].tolist()
        small = Image.fromarray(picture(row, *SIZES[row])).resize((width, height), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=90, subsampling=0)
        wanted = np.moveaxis(np.asarray(small), -1, 0).astype(int)
        allowed = np.abs(np.moveaxis(np.asarray(Image.open(file)), -1, 0) - wanted).mean()  # of Pillow's JPEG
        assert 0 < np.abs(reader.read(row).values - wanted).mean() < 1.1 * allowed
        window = (slice(3, 17), slice(5, 20))
        np.testing.assert_array_equal(reader.read(row, window).values, reader.read(row).values[:, 3:17, 5:20])
        assert reader.read(row).valid is None


def test_images_of_other_dtypes_or_with_invalid_pixels_keep_their_pixels_to_the_bit(colours, tmp_path):
    index, adapter, store = built(colours, tmp_path / "store", COMPACT)
    for row in (2, 4, 5):
        own, kept = adapter.read(index[row]), store.read(row)
        assert kept.values.dtype == own.values.dtype
        np.testing.assert_array_equal(kept.values, own.values)
        assert (kept.valid is None) == (own.valid is None)
        if own.valid is not None:
            np.testing.assert_array_equal(kept.valid, own.valid)
    assert not store.read(2).valid[:5, :5].any()


def test_grey_images_are_kept_as_grey_jpegs(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    grey = picture(0, 40, 60, 1)[..., 0]
    Image.fromarray(grey).save(folder / "0.png")
    index, adapter, store = built(folder, tmp_path / "store", Form(40, jpeg=True))
    assert store.read(0).values.shape == (1, 40, 60)
    assert np.abs(store.read(0).values[0].astype(int) - grey).mean() < 2
    np.testing.assert_array_equal(Reader(index, adapter, store).shapes, index.shapes)


def test_a_bounded_side_shrinks_pixels_and_no_more(colours, tmp_path):
    _, _, store = built(colours, tmp_path / "store", Form(40))
    assert store.shapes[:, 1:].tolist() == [[40, 53], [20, 30], [64, 48], [100, 33], [50, 60], [50, 60]]
    for row, size in ((0, (53, 40)), (1, (30, 20)), (3, (33, 100))):
        expected = np.asarray(Image.fromarray(picture(row, *SIZES[row])).resize(size, Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(np.moveaxis(store.read(row).values, 0, -1), expected)


def test_large_jpegs_are_decoded_at_a_part_of_their_size_and_stay_as_near_to_the_whole_one(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    whole = np.asarray(Image.fromarray(picture(1, 50, 75)).resize((600, 400), Image.Resampling.BICUBIC))
    Image.fromarray(whole).save(folder / "0.jpg", quality=95, subsampling=0)
    index, adapter, store = built(folder, tmp_path / "store", Form(50))
    reader = Reader(index, adapter)
    assert reader.reduced(0, (75, 113)).values.shape == (3, 100, 150)  # one and a half times the entry, not 400
    assert reader.reduced(0, (500, 150)).values.shape == (3, 400, 600)
    expected = np.asarray(Image.fromarray(whole).resize((75, 50), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(np.moveaxis(store.read(0).values, 0, -1) - expected).mean() < 1.5


def test_a_run_that_asks_for_another_form_is_never_given_this_ones_entries(colours, tmp_path):
    forms = [RAW, Form(40), Form(32), COMPACT, Form(40, jpeg=True)]
    stores = [built(colours, tmp_path / "store", form)[2] for form in forms]
    assert len({store.folder for store in stores}) == len(forms)
    index, adapter = scanned(colours)
    assert len(opened(index, adapter, tmp_path / "store", form=Form(33))[0].missing) == len(index)
    np.testing.assert_array_equal(stores[0].read(0).values, adapter.read(index[0]).values)


def test_a_damaged_jpeg_entry_is_unreadable_and_no_traceback(colours, tmp_path):
    _, _, store = built(colours, tmp_path / "store", COMPACT)
    (pixels,) = store.folder.glob("*.pixels")
    with pixels.open("r+b") as file:
        file.write(b"\0" * 200)
    index, adapter = scanned(colours)
    again, _ = opened(index, adapter, tmp_path / "store", form=COMPACT)
    with pytest.raises(Unreadable, match="damaged"):
        again.read(0)


def test_a_second_build_of_a_compact_store_decodes_nothing(colours, tmp_path, monkeypatch):
    index, adapter, _ = built(colours, tmp_path / "store", COMPACT)
    monkeypatch.setattr(type(adapter), "read", lambda *arguments: pytest.fail("decoded again"))
    store, _ = build(index, adapter, tmp_path / "store", form=COMPACT, workers=1)
    assert len(store.missing) == 0


def test_the_sizes_told_are_those_of_the_files_written(colours, tmp_path):
    index, _, store = built(colours, tmp_path / "raw", Form(40))
    (pixels,) = store.folder.glob("*.pixels")
    told = int(Form(40).sizes(index)[[0, 1, 3, 4, 5]].sum()) + 64 * 48 * (3 + 1)  # the third has invalid pixels
    assert told <= pixels.stat().st_size <= told + 16 * (len(index) + 1)  # for alignment
    index, _, store = built(colours, tmp_path / "compact", COMPACT)
    sizes = COMPACT.sizes(index, 0.25)
    assert sizes[0] == 32 * 43 * 3 // 4
    assert sizes[4] == RAW.sizes(index)[4]


def test_volumes_and_huge_images_have_no_other_form(tmp_path, monkeypatch, colours):
    from maectl import huge

    index, _ = scanned(colours)
    assert COMPACT.changes(index).tolist() == [True, True, True, True, False, False]
    monkeypatch.setattr(huge, "HUGE", 48 * 64 * 3 - 1)
    assert COMPACT.changes(index).tolist() == [False, True, False, False, False, False]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 512))
def test_a_bounded_extent_keeps_the_proportions_and_never_grows(height: int, width: int, side: int):
    small = Form(side).extent(height, width)
    if min(height, width) <= side:
        assert small == (height, width)
        return
    assert min(small) == side
    long, short = max(height, width), min(height, width)
    assert abs(max(small) - long * side / short) <= 0.5
    assert small[0] <= height
    assert small[1] <= width


@pytest.mark.parametrize("form", [RAW, Form(256), Form(256, jpeg=True), Form(None, jpeg=True)])
def test_a_form_is_read_back_from_its_name(form: Form):
    assert Form.named(str(form)) == form


def test_entries_are_known_by_every_shards_own_words(colours, tmp_path):
    _, _, store = built(colours, tmp_path / "store", COMPACT)
    (table,) = store.folder.glob("*.arrow")
    end = table.with_suffix(".pixels").stat().st_size
    assert shards.about(table) == {"version": shards.VERSION, "adapter": "natural", "form": "jpeg-32", "end": end}
    (tmp_path / "no.arrow").write_bytes(b"no")
    assert shards.about(tmp_path / "no.arrow") == {}


def test_colours_of_a_jpeg_are_kept_at_full_resolution():
    """Stripes of red and blue a pixel wide would be purple were colours kept at half."""
    stripes = np.zeros((3, 16, 16), np.uint8)
    stripes[0, :, ::2], stripes[2, :, 1::2] = 255, 255
    back = np.asarray(Image.open(io.BytesIO(encoded(stripes)))).astype(int)
    assert back[:, ::2, 0].mean() - back[:, 1::2, 0].mean() > 150
    assert Pixels(stripes).valid is None
