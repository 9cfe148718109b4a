"""What the adapter for photographs writes, its sample included, reads back as it was."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from natural_files import Array, only, opened, ramp, read, saved
from PIL import Image

from maectl.adapter import Files, Source
from maectl.errors import DataError, Unreadable
from maectl_natural import Natural
from maectl_natural.encode import encode
from maectl_natural.pillow import Raster


def whole(source: Source, values: Array) -> list[tuple[tuple[slice, ...], Array]]:
    return [(tuple(slice(0, n) for n in source.shape[1:]), values)]


@pytest.mark.parametrize(
    ("mode", "name", "written"),
    [
        ("RGB", "a.JPG", ".JPG"),
        ("L", "a.jpeg", ".jpeg"),
        ("CMYK", "a.jpg", ".png"),
        ("RGBA", "a.png", ".png"),
        ("P", "a.png", ".png"),
        ("1", "a.png", ".png"),
        ("1", "a.bmp", ".png"),
        ("RGB", "a.bmp", ".bmp"),
        ("RGBA", "a.webp", ".webp"),
        ("L", "a.gif", ".png"),
        ("I;16", "a.png", ".png"),
        ("I;16", "a.tiff", ".tiff"),
        ("F", "a.tif", ".tif"),
        ("RGBA", "a.tif", ".tif"),
        ("LA", "a.tif", ".tif"),
        ("LA", "a.png", ".png"),
    ],
)
def test_written_in_the_sources_format_where_it_holds_the_pixels(
    tmp_path: Path, mode: str, name: str, written: str
) -> None:
    image = Image.fromarray(ramp()).convert("L" if mode in ("I;16", "F") else mode)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert("F" if mode == "F" else mode)
    if mode[-1] == "A":
        image.putalpha(Image.fromarray(ramp(channels=1)[..., 0]))
    path = tmp_path / name
    exact: dict[str, Any] = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    image.save(path, **exact)
    adapter, source = Natural(), only(path)
    stored = adapter.read(source)
    out = adapter.write(source, whole(source, stored.values), tmp_path / "out v1.5")
    assert out == tmp_path / f"out v1.5{written}"
    again = adapter.read(only(out))
    if source.key.startswith("jpeg") and written != ".png":
        assert np.abs(again.values.astype(int) - stored.values).mean() < 2
    else:
        np.testing.assert_array_equal(again.values, stored.values)
    np.testing.assert_array_equal(again.valid, stored.valid)
    if mode[-1] == "A":
        np.testing.assert_array_equal(opened(out).getchannel("A"), image.getchannel("A"))
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([name, out.name])


def test_an_output_carries_no_metadata_and_opens_the_way_the_source_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera of somebody"
    path = saved(tmp_path / "a.jpg", Image.fromarray(ramp(16, 24)), exif=exif, comment=b"secret")
    adapter, source = Natural(), only(path)
    out = adapter.write(source, whole(source, adapter.read(source).values), tmp_path / "out")
    assert not opened(out).getexif()
    assert b"somebody" not in out.read_bytes()
    assert b"secret" not in out.read_bytes()
    assert only(out).shape == source.shape == (3, 24, 16)


def test_invalid_and_uncovered_pixels_are_the_sources(tmp_path: Path) -> None:
    image = np.dstack([ramp(), np.full((40, 60), 200, np.uint8)])
    image[:5, :, 3] = 0
    adapter, source = Natural(), only(saved(tmp_path / "a.png", Image.fromarray(image)))
    tile = ((slice(0, 10), slice(0, 30)), np.full((3, 10, 30), 7, np.uint8))
    written = np.asarray(opened(adapter.write(source, [tile], tmp_path / "out")))
    expected = image.copy()
    expected[5:10, :30, :3] = 7
    np.testing.assert_array_equal(written, expected)
    grey, one = Natural(channels=1), (tile[0], tile[1][:1])
    floats = read(grey.write(only(tmp_path / "a.png", grey), [one], tmp_path / "float", dtype="float32"))
    np.testing.assert_array_equal(floats.valid, image[..., 3] > 0)
    deep = adapter.write(source, [tile], tmp_path / "deep", dtype="uint16")
    np.testing.assert_array_equal(adapter.read(only(deep)).valid, image[..., 3] > 0)


def test_values_are_rounded_and_clipped_to_the_dtype(tmp_path: Path) -> None:
    adapter, source = Natural(), only(saved(tmp_path / "a.png", Image.new("L", (6, 1))))
    values = np.array([[[-3.0, 1.4, 1.6, 254.6, 300.0, np.nan]]], np.float32)
    out = adapter.write(source, whole(source, values), tmp_path / "out")
    np.testing.assert_array_equal(adapter.read(only(out)).values[0, 0], [0, 1, 2, 255, 255, 0])


def test_16_bit_colour_stays_16_bit_in_its_own_format(tmp_path: Path) -> None:
    image = ramp(top=65535)
    for kind, suffix in (("png", ".png"), ("tiff", ".tif")):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(encode(kind, Raster(image)))
        adapter, source = Natural(), only(path)
        out = adapter.write(source, whole(source, image.transpose(2, 0, 1)), tmp_path / f"out-{kind}")
        assert out.suffix == suffix
        np.testing.assert_array_equal(read(out).values, image.transpose(2, 0, 1))


def test_an_embedding_map_of_many_channels_is_a_coarser_float_tiff(tmp_path: Path) -> None:
    adapter, source = Natural(), only(saved(tmp_path / "a.jpg", Image.fromarray(ramp(40, 60))))
    values = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    tile = ((slice(0, 3), slice(0, 4)), values)
    names = tuple(f"e{i}" for i in range(5))
    out = adapter.write(source, [tile], tmp_path / "map", step=16, channels=names, dtype="float32")
    assert out.suffix == ".tif"
    data = out.read_bytes()
    pixels = np.frombuffer(zlib.decompress(data[8:]), "<f4").reshape(3, 4, 5)
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), values)
    one = adapter.write(source, [(tile[0], values[:1])], tmp_path / "one", step=16, channels=("e0",), dtype="float32")
    np.testing.assert_array_equal(np.asarray(opened(one)), values[0])


def test_a_long_tiff_is_written_in_strips(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 65536, (700, 600, 3), dtype=np.uint16)
    path = tmp_path / "a.tif"
    path.write_bytes(encode("tiff", Raster(image)))
    assert len(opened(path).tag_v2[273]) == 3  # type: ignore[attr-defined]
    np.testing.assert_array_equal(read(path).values, image.transpose(2, 0, 1))


def test_where_nothing_can_be_written_the_error_says_so(tmp_path: Path) -> None:
    adapter, source = Natural(), only(saved(tmp_path / "a.png", Image.new("L", (6, 1))))
    with pytest.raises(DataError, match="cannot be written"):
        adapter.write(source, [], tmp_path / "no such folder" / "out")


def test_the_sample_is_the_same_for_a_seed_and_colours_do_not_give_the_class_away(tmp_path: Path) -> None:
    adapter = Natural(channels=3)
    adapter.sample(tmp_path / "a", 3)
    found = [each for each in adapter.scan(Files(tmp_path / "a")) if isinstance(each, Source)]
    assert len(found) == 6 * (100 + 34) + 1
    assert {source.key for source in found} == {"jpeg RGB 1", "jpeg RGB 6", "png L 1", "png RGBA 1"}
    means: dict[str, list[float]] = {}
    unreadable = []
    for source in found:
        try:
            values = adapter.read(source).values
        except Unreadable:
            unreadable.append(source.paths[0])
            continue
        means.setdefault(source.paths[0].split("/")[1], []).append(float(values.mean()))
    assert unreadable == ["train/stripes/truncated.jpg"]
    assert len(means) == 6
    spread = np.std([np.mean(each) for each in means.values()])
    assert spread < 0.2 * np.mean([np.std(each) for each in means.values()])
