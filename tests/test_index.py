"""The index: what a scan takes and passes over, groups, the split, and what it costs to hold."""

import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from maectl import scan as module
from maectl.adapter import Files, Source
from maectl.errors import DataError, UsageError
from maectl.index import Index, Rejects, held_out, read_quarantine, write_quarantine
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import Scan, scan


def image(path: Path, mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7 if mode == "L" else (1, 2, 3)).save(path)
    return path


@pytest.fixture
def found(tmp_path: Path):
    """Scan with the natural adapter and recipe keys."""

    def run(*folders: Path, workers: int = 1, progress=lambda files: None, **keys) -> Scan:
        where = tmp_path / "out.arrow"
        recipe = DataRecipe.model_validate(keys)
        return scan(folders, load("natural"), recipe, where, workers=workers, progress=progress)

    return run


def names(result: Scan) -> list[str]:
    return [result.index[row].paths[0] for row in range(len(result.index))]


def test_a_scan_takes_nested_images_in_order_and_passes_over_the_rest(found, tmp_path):
    folder = tmp_path / "data"
    for name in ("b.png", "a/z.jpg", "a/b/c.tif", "a b/ü.png", "a/.hidden.png", ".git/x.png", "c.PNG"):
        image(folder / name)
    (folder / "notes.txt").write_text("words")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    os.symlink("nowhere", folder / "dangling.png")
    os.mkfifo(folder / "pipe.png")
    result = found(folder)
    assert names(result) == ["a/b/c.tif", "a/z.jpg", "a b/ü.png", "b.png", "c.PNG"]
    assert result.foreign == 1
    ((where, path, stage, reason),) = result.rejects.rows
    assert (where, path, stage) == (str(folder), "broken.png", "scan")
    assert reason
    source = result.index[0]
    assert source == Source(
        paths=("a/b/c.tif",), shape=(3, 7, 9), dtype="uint8", unit="0..255", axes=("row", "column"),
        channels=("red", "green", "blue"), key=source.key, group="0", folder=str(folder),
    )  # fmt: skip


def test_our_own_run_folders_are_passed_over_and_what_only_looks_alike_is_not(found, tmp_path):
    for name in ("data/a.png", "data/run/samples/s.png", "data/mine/b.png"):
        image(tmp_path / name)
    for name in ("run.json", "recipe.yaml", "index.arrow"):
        (tmp_path / "data" / "run" / name).touch()
    (tmp_path / "data" / "mine" / "run.json").touch()
    assert names(found(tmp_path / "data")) == ["a.png", "mine/b.png"]
    # but one given itself is looked into: it was asked for
    assert names(found(tmp_path / "data" / "run")) == ["samples/s.png"]


def test_links_are_followed_unless_they_lead_back(found, tmp_path):
    folder = tmp_path / "data"
    image(folder / "set1" / "a.png")
    image(tmp_path / "elsewhere" / "b.png")
    image(folder / "set10" / "c.png")
    os.symlink(tmp_path / "elsewhere", folder / "link")
    os.symlink("../set1", folder / "set10" / "twin")  # whose name begins like set10's: no loop
    os.symlink("..", folder / "set1" / "up")
    os.symlink("self", folder / "self")
    os.symlink("../../elsewhere", folder / "set1" / "there")
    os.symlink(folder / "set1", tmp_path / "elsewhere" / "back")  # with the one above a loop of two
    once = ["link/b.png", "link/back/a.png", "set1/a.png", "set1/there/b.png", "set10/c.png"]
    assert names(found(folder)) == [*once, "set10/twin/a.png", "set10/twin/there/b.png"]


def test_a_folder_that_cannot_be_looked_into_is_an_error_with_its_name(found, tmp_path, monkeypatch):
    image(tmp_path / "data" / "a.png")
    locked = tmp_path / "data" / "locked"
    locked.mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may look into everything
    with pytest.raises(DataError, match=r"locked/? cannot be read \(Permission denied\): check its permissions"):
        found(tmp_path / "data")
    with pytest.raises(DataError, match="does not exist: check the path"):
        found(tmp_path / "nowhere")
    with pytest.raises(DataError, match="does not exist"):
        found(Path("x" * 5000))  # longer than any file name may be


def test_globs_choose_among_the_files_and_cross_folders(found, tmp_path):
    for name in ("a/x.png", "a/b/x.png", "a/b/mask_x.png", "y.jpg"):
        image(tmp_path / "data" / name)
    folder = tmp_path / "data"
    assert names(found(folder, include="*.png", exclude=["*mask*"])) == ["a/b/x.png", "a/x.png"]
    assert names(found(folder, include=["a/*", "y*"], exclude="a/b/*")) == ["a/x.png", "y.jpg"]
    with pytest.raises(DataError, match=r"data\.include and data\.exclude leave nothing"):
        found(folder, include="*.bmp")


def test_nothing_usable_says_what_was_there(found, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        found(folder)
    (folder / "a.txt").write_text("words")
    with pytest.raises(DataError, match="none of its 1 files is for the adapter 'natural'"):
        found(folder)
    (folder / "a.png").write_text("words")
    with pytest.raises(DataError, match=r"all 1 were rejected, e\.g\. a\.png: "):
        found(folder)


def test_single_files_and_several_folders(found, tmp_path):
    one, two = image(tmp_path / "one" / "a.png"), image(tmp_path / "two" / "a.png")
    image(tmp_path / "two" / "b.png")
    assert names(found(one)) == ["a.png"]
    both = found(one.parent, two)
    assert [both.index[row].files for row in range(2)] == [(str(one),), (str(two),)]
    assert both.index.files(0) == both.index.files(1) == {"a.png"}
    assert both.index.groups.tolist() == [0, 1]


@pytest.mark.parametrize("second", ["data", "data/.", "data/sub", "data/sub/a.png", "link"])
def test_a_folder_inside_another_is_refused_since_its_images_would_straddle_the_split(found, tmp_path, second):
    image(tmp_path / "data" / "sub" / "a.png")
    os.symlink("data/sub", tmp_path / "link")
    with pytest.raises(UsageError, match=r"lies inside .*: give one of the two|given twice"):
        found(tmp_path / "data", tmp_path / second)
    with pytest.raises(UsageError, match="lies inside|given twice"):
        found(tmp_path / second, tmp_path / "data")


def test_a_name_that_is_no_text_is_kept_byte_for_byte(found, tmp_path):
    image(tmp_path / "data" / "a.png")
    odd = os.fsencode(tmp_path / "data") + b"/caf\xe9.png"  # Latin-1, from an old disk
    os.rename(tmp_path / "data" / "a.png", odd)
    result = found(tmp_path / "data")
    assert os.fsencode(result.index[0].files[0]) == odd
    assert result.index.files(0) == set(result.index.names()) == {os.fsdecode(b"caf\xe9.png")}
    rejects = Rejects()
    rejects.add("data", result.index[0].paths, "train", "gone")
    write_quarantine(rejects, tmp_path / "quarantine.csv")
    assert read_quarantine(tmp_path / "quarantine.csv") == rejects


def test_scanning_on_all_cores_finds_the_same_in_the_same_order(found, tmp_path, monkeypatch):
    for number in range(30):
        image(tmp_path / "data" / f"{number % 3}" / f"{number}.png", "L" if number % 4 == 1 else "RGB")
    (tmp_path / "data" / "1" / "z.png").write_text("no image")
    told: list[int] = []
    serial = found(tmp_path / "data", progress=told.append)
    assert told == [*range(1, 32), *range(1, 32)]  # twice: channels differ, so they are settled and read again
    table = serial.index._table
    told.clear()
    monkeypatch.setattr(module, "SERIAL", 8)
    monkeypatch.setattr(module, "WORTHWHILE", 0)
    monkeypatch.setattr(module, "CHUNK", 3)
    parallel = found(tmp_path / "data", workers=2, progress=told.append)
    assert parallel.index._table.equals(table, check_metadata=True)
    assert (parallel.rejects, parallel.foreign, parallel.notes) == (serial.rejects, serial.foreign, serial.notes)
    assert told[-1] == 31
    assert len(told) < 2 * 31  # by chunks, not by files


def test_channels_that_differ_become_what_most_have_and_it_is_said(found, tmp_path):
    for number in range(5):
        image(tmp_path / "data" / f"{number}.png", "RGB" if number < 2 else "L")
    result = found(tmp_path / "data")
    assert result.index.shapes[:, 0].tolist() == [1] * 5
    assert result.adapter.channels == 1
    (note,) = result.notes
    assert "3 grey" in note
    assert "2 red/green/blue" in note
    assert "all are read as grey" in note
    asked = found(tmp_path / "data", channels=3)
    assert asked.index.shapes[:, 0].tolist() == [3] * 5
    assert asked.notes == []


def test_groups_are_dense_in_order_of_appearance_and_their_names_are_not_written(found, tmp_path):
    for name in ("p7_a", "p7_b", "q_a", "zz", "p7_c", "other", "q_b"):
        image(tmp_path / "data" / f"{name}.png")
    result = found(tmp_path / "data", group="^(p7|q)_")
    assert names(result) == ["other.png", "p7_a.png", "p7_b.png", "p7_c.png", "q_a.png", "q_b.png", "zz.png"]
    assert result.index.groups.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert found(tmp_path / "data").index.groups.tolist() == list(range(7))
    # several parentheses: all of what they hold; none: the whole match
    assert found(tmp_path / "data", group="^(p)(7)?|^(q)").index.groups.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert found(tmp_path / "data", group="_[ab]").index.groups.tolist() == [0, 1, 2, 3, 1, 2, 4]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 30) | st.integers(1, 400), min_size=1, max_size=60), seed=st.integers(0, 9))
@example(sizes=[14, 24, 24, 24, 14], seed=0)
@example(sizes=[24, 14, 24, 14, 24], seed=0)
def test_the_split_is_by_group_of_the_right_size_and_repeatable(sizes: list[int], seed: int):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, held = held_out(groups, seed)
    again = held_out(groups, seed)
    assert (again[0].tolist(), again[1].tolist()) == (train.tolist(), held.tolist())
    if len(sizes) == 1:
        assert train.tolist() == list(range(len(groups)))
        assert len(held) == min(len(groups), 256)  # trained on, too: there is no other way
        return
    assert sorted([*train, *held]) == list(range(len(groups)))
    assert not set(groups[train]) & set(groups[held])
    assert len(train)
    # a quarter at most, unless every single group is more
    assert 0 < len(held) <= max(len(groups) // 4, min(sizes))


@given(total=st.integers(4, 20_000), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_without_groups_two_per_cent_are_held_out_between_16_and_256(total: int, seed: int):
    _, held = held_out(np.arange(total), seed)
    assert len(held) == min(max(16, min(256, round(total / 50))), total // 4)


def test_another_seed_holds_out_others():
    assert held_out(np.arange(1000), 0)[1].tolist() != held_out(np.arange(1000), 1)[1].tolist()


def test_the_quarantine_is_read_back_as_it_was_written(tmp_path):
    rejects = Rejects()
    rejects.add('/data, of "mine"', ["a;b.png"], "scan", "two\nlines, and a comma")
    rejects.add("/data", [f"series/slice-{number:06d}.dcm" for number in range(9000)], "verify", "é")
    write_quarantine(rejects, tmp_path / "quarantine.csv")
    assert read_quarantine(tmp_path / "quarantine.csv") == rejects


def test_an_index_is_pickled_as_its_path_and_rows_can_be_taken(found, tmp_path):
    for number in range(6):
        image(tmp_path / "data" / f"{number}.png", size=(8 + number, 8))
    index = found(tmp_path / "data").index
    assert len(pickle.dumps(index)) < 300
    again = pickle.loads(pickle.dumps(index))
    assert [again[row] for row in range(6)] == [index[row] for row in range(6)]
    few = index.take(np.array([4, 1]), tmp_path / "few.arrow")
    assert [few[row] for row in range(2)] == [index[4], index[1]]
    assert few.shapes.tolist() == [[3, 8, 12], [3, 8, 9]]
    assert few.names() == ["4.png", "1.png"]
    assert few.itemsizes.tolist() == [1, 1]


def test_images_and_volumes_are_not_mixed(tmp_path):
    columns = module.Columns(["/data"], None)
    for shape, axes in (((1, 4, 4), ("row", "column")), ((1, 4, 4, 4), ("slice", "row", "column"))):
        columns.add(Source(("a",), shape, "int16", "HU", axes, ("value",), (1.0,) * len(axes)), 0)
    module.write(columns.table(), tmp_path / "index.arrow")
    index = Index(tmp_path / "index.arrow")
    assert index[1].spacing == (1.0, 1.0, 1.0)
    assert [count for _, count in index.kinds] == [1, 1]
    with pytest.raises(DataError, match="images and volumes are mixed"):
        _ = index.shapes


def test_a_large_index_is_mapped_not_loaded(tmp_path):
    """200,000 sources in 20,000 groups: opening it makes no object a row and copies no column."""
    columns = module.Columns(["/data"], None)
    for number in range(200_000):
        name = f"patient-{number // 10:05d}/image-{number:06d}.png"
        columns.add(Source((name,), (3, 224, 224), "uint8", "0..255", ("row", "column"), ("a", "b", "c"),
                           None, "png RGB 1", f"secret-{number // 10}"), 0)  # fmt: skip
    table = columns.table()
    assert len(columns.rows) == 0  # rows are kept as columns while the index grows, too
    assert len(columns.kinds) == 1
    module.write(table, tmp_path / "index.arrow")
    del columns, table
    before = pa.total_allocated_bytes()
    index = Index(tmp_path / "index.arrow")
    assert pa.total_allocated_bytes() - before < 100_000
    assert (tmp_path / "index.arrow").stat().st_size < 200_000 * 130
    assert all(column.num_chunks == 1 for column in index._table.columns)
    assert index[199_999].paths == ("patient-19999/image-199999.png",)
    assert index.groups.tolist() == [number // 10 for number in range(200_000)]
    assert b"secret" not in (tmp_path / "index.arrow").read_bytes()
    train, held = held_out(index.groups, 0)
    assert len(held) == 260  # 256, to the end of a group
    assert len(train) == 199_740


def test_files_can_be_restricted_to_some_paths(tmp_path):
    image(tmp_path / "data" / "a.png")
    files = Files(tmp_path / "data", only=["a.png", "gone.png"], exclude=["g*"])
    assert list(files) == ["a.png"]
    assert files.seen == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions are a matter of POSIX here")
def test_a_folder_that_may_not_be_read_is_named_in_one_line():
    with tempfile.TemporaryDirectory() as work:
        closed = Path(work) / "closed"
        closed.mkdir(mode=0o000)
        Path(work).chmod(0o755)
        root = os.geteuid() == 0
        if root:  # whom permissions do not stop
            os.seteuid(65534)
        try:
            with pytest.raises(
                DataError, match=r"closed/? cannot be read \(Permission denied\): check its permissions"
            ):
                list(Files(closed))
        finally:
            if root:
                os.seteuid(0)
            closed.chmod(0o700)
