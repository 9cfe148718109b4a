"""The store: the adapter's pixels to the bit, never an old entry, and nothing half-made after a kill."""

import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maectl import shards
from maectl import store as module
from maectl.adapter import Pixels
from maectl.errors import DataError, Unreadable
from maectl.index import Index
from maectl.keys import source_keys
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.store import RAW, Reader, Store, build, default_folder, in_order, raw_bytes

Disk = namedtuple("Disk", "total used free")


def scanned(folder: Path, **keys):
    """Index and adapter of a folder."""
    recipe = DataRecipe.model_validate(keys)
    found = scan([folder], load("natural"), recipe, folder.parent / "index.arrow", workers=1)
    return found.index, found.adapter


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Grey images of every dtype and of odd sizes, some partly invalid."""
    folder, random = tmp_path / "odd", np.random.default_rng(0)
    folder.mkdir()
    for number, (height, width) in enumerate([(1, 1), (3, 5), (17, 31), (40, 7)]):
        wide = random.integers(0, 65536, (height, width)).astype(np.uint16)
        real = random.normal(0, 1e6, (height, width)).astype(np.float32)
        if number > 1:
            real[1, 2:5] = np.nan
        Image.fromarray(wide.astype(np.uint8)).save(folder / f"byte{number}.png")
        Image.fromarray(wide).save(folder / f"wide{number}.png")
        Image.fromarray(real).save(folder / f"real{number}.tif")
        alpha = np.stack([wide.astype(np.uint8), (wide > 30000).astype(np.uint8) * 255], axis=-1)
        Image.fromarray(alpha).save(folder / f"alpha{number}.png")
    return folder


def same(one: Pixels, other: Pixels) -> None:
    assert one.values.dtype == other.values.dtype
    assert one.values.shape == other.values.shape
    assert one.values.tobytes() == other.values.tobytes()  # to the bit, NaN included
    assert (one.valid is None) == (other.valid is None)
    if one.valid is not None:
        np.testing.assert_array_equal(one.valid, other.valid)


def values(store: Store, row: int) -> list:
    return store.read(row).values.tolist()


def test_a_store_holds_the_adapters_pixels_to_the_bit(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 2000)  # several shards
    index, adapter = scanned(odd)
    told = []
    store, bad = build(index, adapter, tmp_path / "store", workers=3, progress=lambda *at: told.append(at))
    assert bad == []
    assert told == [(done, 16) for done in range(1, 17)]
    assert len(list(store.folder.glob("*.pixels"))) > 1
    assert len({index.dtype(row) for row in range(16)}) == 3
    masked = 0
    for row in range(16):
        assert row in store
        whole = adapter.read(index[row])
        same(store.read(row), whole)
        masked += whole.valid is not None
        height, width = index[row].shape[1:]
        for window in ((slice(0, height), slice(width // 2, width)), (slice(height // 2, height), slice(0, 1))):
            same(store.read(row, window), adapter.read(index[row], window))
    assert masked >= 5
    assert raw_bytes(index) == sum(adapter.read(index[row]).values.nbytes for row in range(16))


def test_a_reader_with_a_store_needs_the_files_no_more_and_one_without_says_they_are_gone(odd, tmp_path):
    index, adapter = scanned(odd)
    store, _ = build(index, adapter, tmp_path / "store", workers=1)
    expected = adapter.read(index[3])
    shutil.rmtree(odd)
    same(Reader(index, adapter, store).read(3), expected)
    with pytest.raises(Unreadable, match=r"\w"):
        Reader(index, adapter).read(3)


def test_a_second_build_decodes_nothing(odd, tmp_path, monkeypatch):
    index, adapter = scanned(odd)
    store, _ = build(index, adapter, tmp_path / "store", workers=1)
    before = sorted(store.folder.iterdir())
    monkeypatch.setattr(type(adapter), "read", lambda *arguments: pytest.fail("decoded again"))
    build(index, adapter, tmp_path / "store", workers=1)
    assert sorted(store.folder.iterdir()) == before


@pytest.mark.parametrize("change", ["size", "time", "start", "end"])
def test_a_changed_file_is_never_served_from_its_old_entry(tmp_path, change):
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "a.bmp"  # uncompressed: pixels lie in the file as they are, its ends are a tenth of it each
    pixels = np.zeros((200, 200), np.uint8)
    Image.fromarray(pixels).save(path)
    about = path.stat()
    index, adapter = scanned(folder)
    build(index, adapter, tmp_path / "store", workers=1)
    if change == "size":
        pixels = np.zeros((202, 200), np.uint8)
    elif change == "start":
        pixels[-1, 0] = 9  # rows lie bottom up
    elif change == "end":
        pixels[0, -1] = 9
    else:
        pixels[100, 100] = 9
    Image.fromarray(pixels).save(path)
    if change != "time":
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    index, adapter = scanned(folder)
    store, _ = build(index, adapter, tmp_path / "store", workers=1)
    np.testing.assert_array_equal(store.read(0).values[0], pixels)


def test_files_alike_in_size_time_and_ends_are_not_taken_for_one_another(tmp_path):
    """Uncompressed scans unpacked from one archive: black borders, one time, one size."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        pixels = np.zeros((200, 200), np.uint8)
        pixels[100, 100] = number
        Image.fromarray(pixels).save(folder / f"{number}.bmp")
        os.utime(folder / f"{number}.bmp", (1e9, 1e9))
    index, adapter = scanned(folder)
    store, _ = build(index, adapter, tmp_path / "store", workers=1)
    assert [int(store.read(row).values[0, 100, 100]) for row in range(3)] == [0, 1, 2]


def test_other_adapter_options_make_another_store(photographs, tmp_path):
    index, colour = scanned(photographs)
    one, _ = build(index, colour, tmp_path / "store", workers=1)
    index, grey = scanned(photographs, channels=1)
    other, _ = build(index, grey, tmp_path / "store", workers=1)
    assert one.folder != other.folder
    assert other.read(0).values.shape[0] == 1
    same(other.read(0), grey.read(index[0]))


class Killed(BaseException):
    """What a signal would do."""


def test_an_interrupted_build_keeps_what_it_has_written_and_the_next_completes_it(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 1500)
    index, adapter = scanned(odd)

    def killed(done: int, total: int) -> None:
        if done == 9:
            raise Killed

    folder = shards.folder_of(tmp_path / "store", adapter, RAW)
    with pytest.raises(Killed):
        build(index, adapter, tmp_path / "store", workers=2, progress=killed)
    assert not list(folder.glob("*.tmp"))
    keys, _ = source_keys(index, None, 1)
    assert len(Store(folder, index, keys).missing) == 7
    decoded = []
    monkeypatch.setattr(type(adapter), "read", counted(type(adapter).read, decoded))
    store, _ = build(index, adapter, tmp_path / "store", workers=2)
    assert len(decoded) == 7
    assert len(store.missing) == 0
    for row in range(16):
        same(store.read(row), adapter.read(index[row]))


def counted(read, taken: list):
    def reading(self, source, *rest):
        taken.append(source.paths)
        return read(self, source, *rest)

    return reading


def test_what_a_kill_leaves_is_swept_up_once_it_can_be_nobodys_work(odd, tmp_path):
    index, adapter = scanned(odd)
    store, _ = build(index, adapter, tmp_path / "store", workers=1)
    left = [store.folder / name for name in ("shard-a.tmp", "shard-b.pixels", "shard-c.table")]
    for path in left:
        path.write_bytes(b"half")
    build(index, adapter, tmp_path / "store", workers=1)
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (1, 1))
    again, _ = build(index, adapter, tmp_path / "store", workers=1)
    assert not any(path.exists() for path in left)
    assert len(again.missing) == 0


def test_a_shard_damaged_or_half_deleted_is_built_again(odd, tmp_path):
    index, adapter = scanned(odd)
    for damage in ("table", "pixels"):
        store, _ = build(index, adapter, tmp_path / damage, workers=1)
        (shard,) = store.folder.glob("*.arrow")
        expected = values(store, 5)
        if damage == "table":
            shard.write_bytes(b"")
        else:
            shard.with_suffix(".pixels").unlink()
        again, bad = build(index, adapter, tmp_path / damage, workers=1)
        assert bad == []
        assert values(again, 5) == expected


def test_two_builds_at_once_both_end_with_the_whole_store(odd, tmp_path):
    index, adapter = scanned(odd)
    meet, stores = threading.Barrier(2), []

    def run() -> None:
        def progress(done: int, total: int) -> None:
            if done == 3:
                meet.wait(20)  # both are under way

        stores.append(build(Index(index.path), adapter, tmp_path / "store", workers=1, progress=progress)[0])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 2
    for store in stores:
        for row in range(16):
            same(store.read(row), adapter.read(index[row]))


def test_a_disk_too_small_is_refused_with_the_bytes_before_anything_is_decoded(odd, tmp_path, monkeypatch):
    index, adapter = scanned(odd)
    needed = raw_bytes(index)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, module.RESERVE + needed - 1))
    with pytest.raises(DataError, match=rf"needs {needed:,} bytes in .*{module.RESERVE + needed - 1:,} are free.*off"):
        build(index, adapter, tmp_path / "store", workers=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, module.RESERVE + needed))
    store, _ = build(index, adapter, tmp_path / "store", workers=1)
    assert len(store.missing) == 0


def test_the_bytes_needed_are_those_of_the_rows_that_are_missing(odd):
    index, _ = scanned(odd)
    sizes = [int(np.prod(index[row].shape)) * index.dtype(row).itemsize for row in range(16)]
    rows = np.array([0, 7, 15])
    assert raw_bytes(index, rows) == sum(sizes[row] for row in rows)


def test_a_store_that_cannot_be_written_is_an_error_and_no_traceback(odd, tmp_path, monkeypatch):
    index, adapter = scanned(odd)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"the store in .* cannot be written .*data\.store=off"):
        build(index, adapter, tmp_path / "file", workers=1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.Writer, "_aligned", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        build(index, adapter, tmp_path / "store", workers=1)
    assert not list((tmp_path / "store").rglob("shard-*"))


def test_sources_that_cannot_be_decoded_are_reported_by_row_and_the_rest_is_stored(photographs, tmp_path):
    index, adapter = scanned(photographs)
    gone, broken = photographs / index[2].paths[0], photographs / index[11].paths[0]
    gone.unlink()
    broken.write_bytes(broken.read_bytes()[:300])
    store, bad = build(index, adapter, tmp_path / "store", workers=2)
    assert [row for row, _ in bad] == store.missing.tolist() == [2, 11]
    assert all(reason for _, reason in bad)
    assert 2 not in store
    assert 3 in store


def test_pixels_that_are_not_what_the_header_told_of_are_unreadable(photographs, tmp_path):
    index, adapter = scanned(photographs)
    path = photographs / index[4].paths[0]
    Image.new("RGB", (5, 5)).save(path)
    store, bad = build(index, adapter, tmp_path / "store", workers=1)
    ((row, reason),) = bad
    assert row == 4
    assert reason
    with pytest.raises(Unreadable):
        Reader(index, adapter, store).read(4)


def test_work_on_threads_comes_back_in_order_and_never_runs_far_ahead():
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    for done, result in enumerate(in_order(lambda number: number * 2, items(), 3)):
        assert result == 2 * done
        assert len(taken) <= done + 6 + 1


def test_the_store_lies_beside_the_run_whatever_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_folder(Path("run")) == default_folder(tmp_path / "other") == tmp_path / ".maectl-store"
