"""The contract of `maectl.adapter`, checked of every installed adapter that can draw sample data.

A third party's adapter is checked by the same tests once it is installed beside maectl.
"""

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from maectl.adapter import Adapter, Files, Pixels, Reject, Source
from maectl.errors import Unreadable
from maectl.registry import installed

DTYPES = ("uint8", "int16", "uint16", "float32")
LOSSY = (".jpg", ".jpeg")
CLOSE = 3.0  # mean difference that lossy formats may have, in steps of 8-bit values


class Sampled:
    """An adapter's sample data and what its scan found there."""

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        self.adapter, self.folder = adapter, folder
        self.found = list(adapter.scan(Files(folder)))
        self.sources = [each for each in self.found if isinstance(each, Source)]
        self.readable = [source for source in self.sources if self.readable_one(source)]
        kinds = {(s.key, s.dtype, s.shape[0], Path(s.paths[0]).suffix): s for s in self.readable}
        self.varied = list(kinds.values())[:12]  # one of each kind

    def readable_one(self, source: Source) -> bool:
        try:
            self.adapter.read(source)
        except Unreadable:
            return False
        return True


@pytest.fixture(scope="module", params=sorted(installed()))
def sampled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sampled]:
    kind = installed()[request.param]
    if kind.sample is Adapter.sample:
        pytest.skip(f"the adapter {request.param} draws no sample data")
    folder = tmp_path_factory.mktemp(request.param)
    kind().sample(folder, 0)
    yield Sampled(kind(), folder)
    shutil.rmtree(folder)


def tiles(values: npt.NDArray[Any], size: int = 48) -> Iterator[tuple[tuple[slice, ...], npt.NDArray[Any]]]:
    """Disjoint tiles that cover an array [C, *S], the last of an axis smaller."""
    counts = [-(-length // size) for length in values.shape[1:]]
    for place in np.ndindex(*counts):
        window = tuple(
            slice(i * size, min((i + 1) * size, length)) for i, length in zip(place, values.shape[1:], strict=True)
        )
        yield window, values[(slice(None), *window)]


def same(found: Pixels, expected: Pixels) -> None:
    np.testing.assert_array_equal(found.values, expected.values)
    assert (found.valid is None) == (expected.valid is None)
    if found.valid is not None and expected.valid is not None:
        np.testing.assert_array_equal(found.valid, expected.valid)


def test_an_adapter_is_named_as_it_is_registered_and_declares_formats(sampled: Sampled) -> None:
    assert installed()[sampled.adapter.name] is type(sampled.adapter)
    formats = sampled.adapter.formats
    assert formats.suffixes or formats.magic
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in formats.suffixes)


def test_options_are_frozen_unknown_ones_refused_and_the_adapter_pickles(sampled: Sampled) -> None:
    kind = type(sampled.adapter)
    with pytest.raises(ValidationError):
        sampled.adapter.channels = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="no_such_option"):
        kind.model_validate({"no_such_option": 1})
    assert pickle.loads(pickle.dumps(sampled.adapter)) == sampled.adapter
    assert kind.model_validate(sampled.adapter.model_dump(mode="json")) == sampled.adapter


def test_scan_is_stable_and_its_sources_are_plain_data(sampled: Sampled) -> None:
    assert list(sampled.adapter.scan(Files(sampled.folder))) == sampled.found
    assert pickle.loads(pickle.dumps(sampled.found)) == sampled.found
    assert len(sampled.readable) >= 20
    paths = [path for each in sampled.found for path in each.paths]
    assert len(paths) == len(set(paths))
    for source in sampled.sources:
        assert source.dtype in DTYPES
        assert source.unit
        assert source.folder == str(sampled.folder)
        assert len(source.shape) == len(source.axes) + 1
        assert len(source.channels) == source.shape[0]
        assert min(source.shape) > 0
        assert source.spacing is None or len(source.spacing) == len(source.axes)
        assert all((sampled.folder / path).is_file() for path in source.paths)
        assert type(source.key) is str
        assert type(source.group) is str


def test_headers_tell_what_reading_gives(sampled: Sampled) -> None:
    for source in sampled.readable[::7] + sampled.varied:
        pixels = sampled.adapter.read(source)
        assert pixels.values.shape == source.shape
        assert str(pixels.values.dtype) == source.dtype
        assert pixels.values.flags.writeable
        assert min(pixels.values.strides) >= 0
        if pixels.valid is not None:
            assert pixels.valid.dtype == np.bool_
            assert pixels.valid.shape == source.shape[1:]
            assert not pixels.valid.all()
        if source.dtype == "float32":
            valid = np.ones(source.shape[1:], bool) if pixels.valid is None else pixels.valid
            assert np.isfinite(pixels.values[:, valid]).all()


def test_a_file_alone_is_the_same_source_as_in_its_folder(sampled: Sampled) -> None:
    for source in [each for each in sampled.varied if len(each.paths) == 1]:
        path = sampled.folder / source.paths[0]
        (alone,) = sampled.adapter.scan(Files(path))
        assert isinstance(alone, Source)
        assert alone.paths == (path.name,)
        for field in ("shape", "dtype", "unit", "axes", "channels", "spacing", "key"):
            assert getattr(alone, field) == getattr(source, field)
        same(sampled.adapter.read(alone), sampled.adapter.read(source))


def test_a_window_is_a_slice_of_the_whole(sampled: Sampled) -> None:
    rng = np.random.default_rng(0)
    for source in sampled.varied:
        whole = sampled.adapter.read(source)
        for _ in range(3):
            ends = [np.sort(rng.choice(length + 1, 2, replace=False)) for length in source.shape[1:]]
            window = tuple(slice(int(start), int(stop)) for start, stop in ends)
            part = sampled.adapter.read(source, window)
            valid = None if whole.valid is None else whole.valid[window]
            valid = None if valid is None or valid.all() else valid
            same(part, Pixels(whole.values[(slice(None), *window)], valid))


def test_with_a_shape_reading_never_gives_fewer_pixels(sampled: Sampled) -> None:
    for source in sampled.varied:
        for divisor in (1, 3, 4, 9):
            least = tuple(max(1, length // divisor) for length in source.shape[1:])
            pixels = sampled.adapter.read(source, None, least)
            given = pixels.values.shape[1:]
            assert all(a <= b <= c for a, b, c in zip(least, given, source.shape[1:], strict=True))
            assert pixels.valid is None or pixels.valid.shape == given


def test_channels_resolved_to_the_native_count_change_nothing(sampled: Sampled) -> None:
    for source in sampled.varied:
        for channels in (source.shape[0], source.channels):
            resolved = sampled.adapter.model_copy(update={"channels": channels})
            rebuilt = type(sampled.adapter).model_validate(resolved.model_dump())
            files = Files(sampled.folder, only=source.paths)
            assert list(rebuilt.scan(files)) == [source]
            same(rebuilt.read(source), sampled.adapter.read(source))


def test_one_channel_count_serves_every_source(sampled: Sampled) -> None:
    counts = [source.shape[0] for source in sampled.sources]
    adapter = type(sampled.adapter)(channels=max(set(counts), key=counts.count))
    found = [each for each in adapter.scan(Files(sampled.folder)) if isinstance(each, Source)]
    assert len({source.shape[0] for source in found}) == 1
    read = {source.paths for source in sampled.readable}
    for source in [each for each in found if each.paths in read][::50]:
        assert adapter.read(source).values.shape == source.shape


def test_what_is_written_reads_back(sampled: Sampled, tmp_path: Path) -> None:
    for number, source in enumerate(sampled.varied):
        pixels = sampled.adapter.read(source)
        out = sampled.adapter.write(source, tiles(pixels.values), tmp_path / f"out-{number}")
        assert out.parent == tmp_path
        assert out.name.startswith(f"out-{number}")
        (again,) = sampled.adapter.scan(Files(out))
        assert isinstance(again, Source), again
        assert (again.shape, again.dtype, again.axes) == (source.shape, source.dtype, source.axes)
        assert (again.spacing, again.unit) == (source.spacing, source.unit)
        if out.suffix.lower() in LOSSY:
            difference = sampled.adapter.read(again).values.astype(float) - pixels.values
            assert np.abs(difference).mean() < CLOSE
        else:
            same(sampled.adapter.read(again), pixels)


def test_a_constant_tile_lies_where_it_was_put(sampled: Sampled, tmp_path: Path) -> None:
    for number, source in enumerate(sampled.varied):
        pixels = sampled.adapter.read(source)
        window = tuple(slice(length // 4, length // 2) for length in source.shape[1:])
        level = np.median(pixels.values[np.isfinite(pixels.values)]).astype(source.dtype)
        values = np.full((source.shape[0], *(side.stop - side.start for side in window)), level)
        out = sampled.adapter.write(source, [(window, values)], tmp_path / f"out-{number}")
        (again,) = sampled.adapter.scan(Files(out))
        assert isinstance(again, Source)
        written = sampled.adapter.read(again)
        valid = np.ones(source.shape[1:], bool) if pixels.valid is None else pixels.valid
        inside = written.values[(slice(None), *window)][:, valid[window]]
        tolerance = 8 if out.suffix.lower() in LOSSY else 0
        assert np.abs(inside.astype(float) - float(level)).max() <= tolerance
        np.testing.assert_array_equal(
            valid, np.ones(source.shape[1:], bool) if written.valid is None else written.valid
        )


def test_a_coarser_map_of_other_channels_can_be_written(sampled: Sampled, tmp_path: Path) -> None:
    source, step, names = sampled.varied[0], 16, tuple(f"feature {i}" for i in range(5))
    size = tuple(-(-length // step) for length in source.shape[1:])
    values = np.random.default_rng(0).normal(size=(5, *size)).astype(np.float32)
    tile = (tuple(slice(0, length) for length in size), values)
    out = sampled.adapter.write(source, [tile], tmp_path / "map", step=step, channels=names, dtype="float32")
    assert out.is_file()
    assert out.stat().st_size > 0


def test_a_file_cut_short_or_gone_after_the_scan_is_unreadable(sampled: Sampled, tmp_path: Path) -> None:
    for source in sampled.varied:
        shutil.copytree(sampled.folder, tmp_path / "copy", ignore=_all_but(source), dirs_exist_ok=True)
        (copied,) = sampled.adapter.scan(Files(tmp_path / "copy", only=source.paths))
        assert isinstance(copied, Source)
        file = Path(copied.files[len(copied.files) // 2])
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(Unreadable, match=r"\w"):
            sampled.adapter.read(copied)
        file.unlink()
        with pytest.raises(Unreadable, match=r"\w"):
            sampled.adapter.read(copied)


def test_foreign_and_empty_files_do_not_stop_a_scan(sampled: Sampled, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / f"empty{sampled.adapter.formats.suffixes[0]}").touch()
    (tmp_path / f"page{sampled.adapter.formats.suffixes[0]}").write_text("<!DOCTYPE html>" * 100)
    found = list(sampled.adapter.scan(Files(tmp_path)))
    assert all(isinstance(each, Reject) and each.reason for each in found)
    assert "notes.txt" not in {path for each in found for path in each.paths}
    assert len(found) == 2


def _all_but(source: Source) -> Any:
    """Copy a source's own files alone."""
    names = {Path(path).name for path in source.paths}
    return lambda folder, entries: [e for e in entries if (Path(folder) / e).is_file() and e not in names]
