"""Stores that something has happened to: cut short, cleaned while building, of files the system will not open."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import picture
from PIL import Image

from maectl import keys, recipe, shards, store_commands, storing
from maectl.errors import DataError
from maectl.forms import RAW, Form
from maectl.keys import source_keys
from maectl.prepare import resolved
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.store import Reader, build, lacking, opened
from maectl.stream import Stream


@pytest.fixture
def four(tmp_path: Path):
    """The index and the adapter of four pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(picture(number, 40, 48)).save(folder / f"{number}.png")
    found = scan([folder], load("natural"), DataRecipe(), tmp_path / "index.arrow", workers=1)
    return found.index, found.adapter


@pytest.mark.parametrize("form", [RAW, Form(32, True)])
@pytest.mark.parametrize("cut", [1, 100])
def test_of_a_shard_cut_short_nothing_is_used(four, tmp_path, form: Form, cut: int):
    index, adapter = four
    made, _ = build(index, adapter, tmp_path / "store", form=form)
    (pixels,) = made.folder.glob("*.pixels")
    os.truncate(pixels, pixels.stat().st_size - cut)
    store, _ = opened(index, adapter, tmp_path / "store", form=form)
    assert len(store.missing) == 4
    np.testing.assert_array_equal(Reader(index, adapter, store).read(3).values, Reader(index, adapter).read(3).values)


def test_a_table_that_tells_nothing_of_its_end_is_passed_over(four, tmp_path):
    index, adapter = four
    made, _ = build(index, adapter, tmp_path / "store")
    (path,) = made.folder.glob("*.arrow")
    table = pa.ipc.open_file(path.read_bytes()).read_all().replace_schema_metadata(None)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert len(opened(index, adapter, tmp_path / "store")[0].missing) == 4


def test_a_shard_that_the_system_will_not_open_is_an_error_and_not_decoded_again(four, tmp_path, monkeypatch):
    index, adapter = four
    build(index, adapter, tmp_path / "store")

    def refused(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(shards.np, "memmap", refused)
    with pytest.raises(DataError, match="Too many open files"):
        build(index, adapter, tmp_path / "store")


def test_what_a_process_is_writing_is_not_cleaned_away(four, tmp_path):
    index, adapter = four
    made, _ = build(index, adapter, tmp_path / "store")
    writer = shards.Writer(made.folder, adapter, RAW)
    with pytest.raises(DataError, match="being built"):
        store_commands.clean(tmp_path / "store")
    assert not shards.sweep(made.folder, 0)
    writer.finish()
    assert store_commands.clean(tmp_path / "store")["files"] == 0


def test_files_that_no_store_wrote_are_left_alone(tmp_path):
    foreign = tmp_path / "cats-0123456789ab"
    foreign.mkdir()
    (foreign / "shard-00000.pixels").write_bytes(b"precious")
    with pytest.raises(DataError, match="no store"):
        store_commands.clean(tmp_path, everything=True)
    assert (foreign / "shard-00000.pixels").exists()


def test_a_store_named_by_a_link_is_emptied_and_the_link_stays(four, tmp_path):
    index, adapter = four
    build(index, adapter, tmp_path / "store")
    (tmp_path / "link").symlink_to(tmp_path / "store")
    assert store_commands.clean(tmp_path / "link", everything=True)["files"] == 2
    assert list((tmp_path / "link").iterdir()) == []


def test_several_processes_are_refused_what_one_would_be(four, tmp_path, monkeypatch):
    index, adapter = four
    (tmp_path / "store").mkdir()
    from maectl import store

    monkeypatch.setattr(store, "RESERVE", 1 << 60)
    with pytest.raises(DataError, match="bytes"):
        lacking(index, adapter, tmp_path / "store", RAW, source_keys(index))


def test_an_automatic_store_that_cannot_be_written_is_done_without(four, tmp_path, monkeypatch):
    index, _ = four
    chosen = resolved(recipe.load("photographs", [])[0], index)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    choice = storing.choose(index, four[1], chosen, tmp_path / "run", 100)
    assert choice.folder is None
    assert "cannot be written" in choice.why


def test_where_nothing_could_be_timed_no_time_is_told(four, tmp_path, monkeypatch):
    index, adapter = four
    monkeypatch.setattr(storing, "SMALL", 0)
    for path in Path(index.folders[0]).iterdir():
        path.write_bytes(path.read_bytes()[:60])
    chosen = resolved(recipe.load("photographs", [])[0], index)
    told = storing.choose(index, adapter, chosen, tmp_path / "run", 100).why
    assert "none of the images tried" in told
    assert "inf" not in told


def test_several_crops_of_one_decoding_are_one_reading(four):
    index, _ = four
    once, several = (
        resolved(recipe.load("photographs", [f"data.crops_per_image={crops}"])[0], index) for crops in (1, 4)
    )
    assert storing._shown(index, once, 8) == 4 * storing._shown(index, several, 8)
    stream = Stream(np.arange(40), 16, 0, None, 4)
    shown = np.concatenate([stream.step(step) for step in range(stream.steps(4))])
    assert np.bincount(shown, minlength=40).tolist() == [4] * 40  # a pass over the images is four epochs


def test_a_thread_that_cannot_begin_ends_the_process():
    code = """
import threading
start, count = threading.Thread.start, []
def refused(thread):
    count.append(thread.name.startswith("maectl-loader"))
    if sum(count) > 2:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refused
from maectl.dataset import _pool
_pool(4)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True).returncode == 1


def test_making_a_store_opens_each_file_for_its_key_once(four, tmp_path, monkeypatch):
    index, adapter = four
    hashed = []
    own = keys._ends
    monkeypatch.setattr(keys, "_ends", lambda path: hashed.append(path) or own(path))
    storing.made(index, adapter, storing.Choice(tmp_path / "store"), workers=1)
    assert len(hashed) == len(set(hashed)) == 4


def test_entries_of_some_rows_are_those_of_an_index_of_these(four, tmp_path):
    index, adapter = four
    store, _ = build(index, adapter, tmp_path / "store", form=Form(16))
    rows = np.array([3, 1])
    few = store.only(rows, index.take(rows, tmp_path / "few.arrow"))
    assert few.shapes.tolist() == store.shapes[rows].tolist()
    np.testing.assert_array_equal(few.read(0).values, store.read(3).values)
    assert len(store.missing) == len(few.missing) == 0
