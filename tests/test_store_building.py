"""Building a store: killed and begun again, by several processes, by two runs at once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from maectl import shards
from maectl import store as module
from maectl.index import Index
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.store import RAW, Reader, build, building, building_lock, opened
from maectl.storing import Choice, made
from maectl.stream import share

COUNT = 24
SLOW = """
import sys, time
from pathlib import Path
from maectl import shards
from maectl.index import Index
from maectl.registry import load
from maectl.storing import Choice, made

shards.EVERY = 0.0  # an entry at a time, so that what is lost is what was under way
kind, pause = load("natural"), float(sys.argv[3])
read, order = kind.read, iter(range(10**6))

def slow(self, source, *rest):
    print(next(order), flush=True)
    time.sleep(pause)
    return read(self, source, *rest)

kind.read = slow
made(Index(sys.argv[1]), kind(channels=3), Choice(Path(sys.argv[2])), workers=1)
"""


@pytest.fixture
def scanned(tmp_path: Path):
    """Index and adapter of 24 small PNG pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(COUNT):
        Image.fromarray(picture(number, 20 + number, 30)).save(folder / f"{number:02d}.png")
    found = scan([folder], load("natural"), DataRecipe(), tmp_path / "index.arrow", workers=1)
    assert found.adapter == load("natural")(channels=3)
    return found.index, found.adapter


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The files decoded in this process, in turn."""
    taken: list[str] = []
    kind = load("natural")
    read = kind.read

    def counted(self, source, *rest):
        taken.append(source.paths[0])
        return read(self, source, *rest)

    monkeypatch.setattr(kind, "read", counted)
    return taken


def another(index: Index, folder: Path, pause: float) -> subprocess.Popen[str]:
    """A process that builds the same store, slowly, and prints a line before each image."""
    command = [sys.executable, "-c", SLOW, index.path, str(folder), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def whole(index: Index, adapter, store) -> None:
    assert len(store.missing) == 0
    for row in range(len(index)):
        np.testing.assert_array_equal(store.read(row).values, adapter.read(index[row]).values)


def test_a_build_killed_at_any_moment_is_completed_by_the_next_which_decodes_only_what_is_missing(
    scanned, tmp_path, decoded
):
    index, adapter = scanned
    process = another(index, tmp_path / "store", 0.05)
    for line in process.stdout:
        if int(line) == 9:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    missing = len(opened(index, adapter, tmp_path / "store")[0].missing)
    assert missing <= COUNT - 6  # ten were begun, of which at most four (on their way, being written) are lost
    store, bad = made(index, adapter, Choice(tmp_path / "store"), workers=1)  # waits for no lock of the dead
    assert bad == []
    assert len(decoded) == missing
    whole(index, adapter, store)


def test_a_second_run_waits_for_the_first_and_decodes_nothing_twice(scanned, tmp_path, decoded, capsys):
    index, adapter = scanned
    process = another(index, tmp_path / "store", 0.02)
    assert process.stdout.readline() == "0\n"
    place = shards.folder_of(tmp_path / "store", adapter, RAW)
    assert building(place)
    store, _ = made(index, adapter, Choice(tmp_path / "store"), workers=1)
    process.communicate()
    assert decoded == []
    assert "another process is building this store: waiting" in capsys.readouterr().err
    whole(index, adapter, store)
    assert not building(place)
    assert {path.suffix for path in place.iterdir()} == {".arrow", ".pixels"}  # and no lock is left


def test_runs_of_other_options_do_not_wait_for_one_another(scanned, tmp_path):
    _, adapter = scanned
    grey = load("natural")(channels=1)
    with building_lock(tmp_path / "store", adapter), building_lock(tmp_path / "store", grey):
        pass


def test_a_file_system_without_locks_is_built_on_all_the_same(scanned, tmp_path, monkeypatch):
    def without(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", without)
    store, _ = made(*scanned, Choice(tmp_path / "store"), workers=1)
    whole(*scanned, store)
    assert not building(store.folder)


def test_processes_that_build_their_shares_at_once_make_one_whole_store(scanned, tmp_path, decoded):
    index, adapter = scanned
    parts = [np.arange(COUNT)[share(COUNT, rank, 3)] for rank in range(3)]
    stores = {}

    def run(rank: int) -> None:
        stores[rank] = build(Index(index.path), adapter, tmp_path / "store", rows=parts[rank], workers=1)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == len(set(decoded)) == COUNT
    for rank, part in enumerate(parts):
        store, bad = stores[rank]
        assert bad == []
        assert all(int(row) in store for row in part)
    store, gone = opened(index, adapter, tmp_path / "store")
    assert gone == []
    whole(index, adapter, store)


def test_of_a_share_only_its_own_sources_are_reported(scanned, tmp_path):
    index, adapter = scanned
    for row in (2, 20):
        Path(index[row].files[0]).write_bytes(b"broken")
    for row in (3, 21):
        Path(index[row].files[0]).unlink()
    _, first = build(index, adapter, tmp_path / "store", rows=np.arange(12), workers=1)
    _, second = build(index, adapter, tmp_path / "store", rows=np.arange(12, 24), workers=1)
    assert [row for row, _ in first] == [2, 3]
    assert [row for row, _ in second] == [20, 21]
    store, gone = opened(index, adapter, tmp_path / "store")
    assert [row for row, _ in gone] == [3, 21]
    assert store.missing.tolist() == [2, 3, 20, 21]


def test_a_shard_is_committed_as_time_passes_while_it_is_written(scanned, tmp_path, monkeypatch):
    index, adapter = scanned
    now = [0.0]
    monkeypatch.setattr(shards.time, "monotonic", lambda: now[0])
    left = []

    def progress(done: int, total: int) -> None:
        now[0] += 10.0  # an image takes ten seconds
        left.append(len(opened(index, adapter, tmp_path / "store")[0].missing))

    build(index, adapter, tmp_path / "store", workers=1, progress=progress)
    behind = [COUNT - done - missing for done, missing in zip(range(1, COUNT + 1), left, strict=True)]
    assert min(behind) >= -4  # entries that half a minute has not yet made
    assert behind.count(0) >= COUNT // 4
    assert len(list((tmp_path / "store").rglob("*.pixels"))) == 1


def test_a_reader_passes_over_a_shard_whose_pixels_were_cut_off(scanned, tmp_path):
    index, adapter = scanned
    store, _ = build(index, adapter, tmp_path / "store", workers=1)
    (pixels,) = store.folder.glob("*.pixels")
    os.truncate(pixels, 100)
    again, _ = opened(index, adapter, tmp_path / "store")
    assert len(again.missing) == COUNT
    whole(index, adapter, build(index, adapter, tmp_path / "store", workers=1)[0])


def test_a_reader_without_a_bounded_store_tells_the_shapes_of_the_index(scanned, tmp_path):
    index, adapter = scanned
    np.testing.assert_array_equal(Reader(index, adapter).shapes, index.shapes)
    store, _ = build(index, adapter, tmp_path / "store", workers=1)
    np.testing.assert_array_equal(Reader(index, adapter, store).shapes, index.shapes)
