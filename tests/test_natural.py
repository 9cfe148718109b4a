"""The adapter for photographs reads every layout, clips nothing, and says where pixels are invalid."""

import struct
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from natural_files import only, opened, png, ramp, read, rejected, rows_of, saved, tiff
from PIL import Image
from pydantic import ValidationError

from maectl_natural import Natural
from maectl_natural.encode import encode
from maectl_natural.pillow import Raster


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("L", suffix) for suffix in ("png", "bmp", "tif")],
        *[("RGB", suffix) for suffix in ("png", "bmp", "tiff", "webp")],
        *[(mode, suffix) for mode in ("LA", "RGBA") for suffix in ("png", "tif")],
        ("RGBA", "webp"),
        *[("1", suffix) for suffix in ("png", "tif", "bmp")],
    ],
)
def test_lossless_images_keep_every_value(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(ramp()).convert(mode)
    if mode[-1] == "A":
        image.putalpha(Image.fromarray(ramp(channels=1)[..., 0]))
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    pixels = read(saved(tmp_path / f"a.{suffix}", image, **options))
    stored = np.atleast_3d(np.asarray(image)).astype(np.uint8) * (255 if mode == "1" else 1)
    colours = stored[..., :-1] if mode[-1] == "A" else stored
    np.testing.assert_array_equal(np.moveaxis(pixels.values, 0, -1), colours)
    if mode[-1] == "A":
        np.testing.assert_array_equal(pixels.valid, stored[..., -1] > 0)
    else:
        assert pixels.valid is None


def test_a_12_bit_ramp_in_a_16_bit_png_and_a_float_tiff_keep_all_their_values(tmp_path: Path) -> None:
    twelve = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = saved(tmp_path / "a.png", Image.fromarray(twelve))
    np.testing.assert_array_equal(read(path).values[0], twelve)
    assert only(path).unit == "0..65535"
    floats = np.linspace(-1e6, 1e6, 4096, dtype=np.float32).reshape(64, 64)
    floats[0, :3] = np.nan, np.inf, -np.inf
    path = saved(tmp_path / "a.tif", Image.fromarray(floats))
    pixels = read(path)
    np.testing.assert_array_equal(pixels.values[0], floats)
    np.testing.assert_array_equal(pixels.valid, np.isfinite(floats))
    assert only(path).unit == "value"


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_is_read_exactly_in_every_colour_type(tmp_path: Path, colour: int, samples: int) -> None:
    image = np.random.default_rng(0).integers(0, 65536, (9, 7, samples), dtype=np.uint16)
    image[0, :, -1] = 0
    path = tmp_path / "a.png"
    path.write_bytes(png(colour, 16, (9, 7), rows_of(image)))
    pixels = read(path)
    colours = image[..., :-1] if samples in (2, 4) else image
    np.testing.assert_array_equal(np.moveaxis(pixels.values, 0, -1), colours)
    expected = image[..., -1] > 0 if samples in (2, 4) else None
    assert (pixels.valid is None) == (expected is None)
    if expected is not None:
        np.testing.assert_array_equal(pixels.valid, expected)


def test_the_transparent_colour_of_a_png_is_invalid_at_any_depth(tmp_path: Path) -> None:
    grey = bytes([0, 0b00011011, 0, 0b11100100])  # filter byte and four 2-bit pixels, twice
    path = tmp_path / "two.png"
    path.write_bytes(png(0, 2, (2, 4), grey, (b"tRNS", b"\0\x02")))
    pixels = read(path)
    np.testing.assert_array_equal(pixels.values[0], [[0, 85, 170, 255], [255, 170, 85, 0]])
    np.testing.assert_array_equal(pixels.valid, pixels.values[0] != 170)
    deep = np.array([[[1, 2, 3], [1, 2, 259]]], np.uint16)  # 3 and 259 differ in the high byte alone
    path.write_bytes(png(2, 16, (1, 2), rows_of(deep), (b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    np.testing.assert_array_equal(read(path).valid, [[False, True]])


def test_palettes_become_their_colours_and_their_transparent_entry_is_invalid(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    image.putdata([0, 1, 2, 2, 1, 0])
    for suffix in ("png", "gif"):
        pixels = read(saved(tmp_path / f"clear.{suffix}", image, transparency=2))
        np.testing.assert_array_equal(pixels.values[:, 0, :2].T, [[10, 20, 30], [200, 100, 50]])
        np.testing.assert_array_equal(pixels.valid, [[True, True, False], [False, True, True]])
    for suffix in ("png", "bmp", "tif"):
        pixels = read(saved(tmp_path / f"a.{suffix}", image))
        np.testing.assert_array_equal(pixels.values[:, 1], [[0, 200, 10], [0, 100, 20], [0, 50, 30]])
        assert pixels.valid is None


def test_cmyk_becomes_rgb_and_adobes_inverted_jpeg_comes_out_right(tmp_path: Path) -> None:
    cmyk = Image.fromarray(ramp()).convert("CMYK")
    cmyk.putpixel((0, 0), (0, 0, 0, 0))  # white paper
    cmyk.putpixel((1, 0), (0, 255, 255, 0))  # red ink
    exact = read(saved(tmp_path / "a.tif", cmyk)).values
    np.testing.assert_array_equal(exact[:, 0, :2].T, [[255, 255, 255], [255, 0, 0]])
    np.testing.assert_array_equal(exact, np.moveaxis(np.asarray(cmyk.convert("RGB")), -1, 0))
    path = saved(tmp_path / "a.jpg", cmyk, quality=100)
    close = read(path).values.astype(int)
    assert np.abs(close - exact.astype(int)).mean() < 5
    np.testing.assert_array_equal(close, np.moveaxis(np.asarray(opened(path).convert("RGB")), -1, 0))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("stored", "samples", "kept"),
    [
        ("uint16", 1, "uint16"),
        ("int8", 1, "int16"),
        ("int16", 1, "int16"),
        ("int32", 1, "float32"),
        ("float32", 1, "float32"),
        ("uint16", 3, "uint16"),
        ("uint16", 4, "uint16"),
    ],
)
def test_a_tiff_is_read_exactly_in_either_byte_order(
    tmp_path: Path, order: Literal["<", ">"], compressed: bool, stored: str, samples: int, kept: str
) -> None:
    image = np.random.default_rng(1).integers(-(2**15), 2**15, (8, 6, samples)).astype(stored)
    image[0, 0, -1] = 0
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(image, order, compressed))
    pixels = read(path)
    colours = image[..., :3]
    np.testing.assert_array_equal(np.moveaxis(pixels.values, 0, -1), colours.astype(kept))
    assert (pixels.valid is None) == (samples != 4)


def test_odd_tiffs_are_read_right_or_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    wide = np.array([[0, 2**31, 2**32 - 2**20]], np.uint32)[..., None]
    path.write_bytes(tiff(wide))
    np.testing.assert_array_equal(read(path).values[0], wide[..., 0].astype(np.float32))
    white = np.array([[0, 1000, 65535]], np.uint16)[..., None]
    path.write_bytes(tiff(white, photometric=0))
    np.testing.assert_array_equal(read(path).values[0], [[65535, 64535, 0]])
    premultiplied = np.array([[[100, 200, 300, 32768], [5, 5, 5, 0]]], np.uint16)
    path.write_bytes(tiff(premultiplied, extra=1))
    np.testing.assert_array_equal(read(path).values[:, 0, 0], [200, 400, 600])
    video = Image.fromarray(ramp()).convert("YCbCr")
    np.testing.assert_array_equal(read(saved(path, video)).values, np.moveaxis(np.asarray(video.convert("RGB")), -1, 0))
    path.write_bytes(tiff(premultiplied, extra=0))
    assert "satellite" in rejected(path)
    path.write_bytes(tiff(np.zeros((2, 2, 1))))
    assert "bit depth" in rejected(path)
    assert "LAB" in rejected(saved(path, Image.new("LAB", (2, 2))))


def test_16_bit_cmyk_becomes_16_bit_rgb(tmp_path: Path) -> None:
    image = np.array([[[0, 0, 0, 0], [0, 65535, 65535, 0], [0, 0, 0, 65535], [32768, 0, 0, 0]]], np.uint16)
    data = bytearray(tiff(image, photometric=5, extra=9))
    entry = data.index(struct.pack("<HHI", 338, 3, 1))
    data[entry : entry + 2] = struct.pack("<H", 337)  # no alpha: four inks
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    expected = [[65535] * 3, [65535, 0, 0], [0, 0, 0], [32767, 65535, 65535]]
    np.testing.assert_array_equal(read(path).values[:, 0].T, expected)


def test_channels_are_repeated_or_reduced_by_luma(tmp_path: Path) -> None:
    grey, colour = ramp(channels=1), ramp()
    grey_path = saved(tmp_path / "grey.png", Image.fromarray(grey[..., 0]))
    colour_path = saved(tmp_path / "colour.png", Image.fromarray(colour))
    three = Natural(channels=3)
    np.testing.assert_array_equal(read(grey_path, three).values, np.repeat(grey.transpose(2, 0, 1), 3, 0))
    assert only(grey_path, three).channels == ("red", "green", "blue")
    one = Natural(channels=("grey",))
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(read(colour_path, one).values[0], luma)
    deep = tmp_path / "deep.png"
    deep.write_bytes(encode("png", Raster(ramp(top=65535))))
    exact = ramp(top=65535) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(deep, one).values[0] - exact).max() <= 1
    white = np.full((1, 1, 3), 65535, np.uint16)
    deep.write_bytes(encode("png", Raster(white)))
    assert read(deep, one).values.item() == 65535


@pytest.mark.parametrize("channels", [2, 0, True, "3", "grey", ["red"], ["blue", "green", "red"], None])
def test_other_channels_are_refused(channels: object) -> None:
    with pytest.raises(ValidationError, match="use auto, 1, 3"):
        Natural(channels=channels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_pixels_equal_pillows(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(ramp()).convert(mode), progressive=True)
    expected = np.atleast_3d(np.asarray(opened(path)))
    np.testing.assert_array_equal(np.moveaxis(read(path).values, 0, -1), expected)


def test_a_scaled_jpeg_is_never_smaller_than_asked_and_only_of_aligned_windows(tmp_path: Path) -> None:
    image = ramp(120, 200)
    source, adapter = only(saved(tmp_path / "a.jpg", Image.fromarray(image), quality=95)), Natural()
    assert adapter.read(source, shape=(30, 50)).values.shape == (3, 30, 50)
    assert adapter.read(source, shape=(31, 50)).values.shape == (3, 60, 100)
    aligned = adapter.read(source, (slice(40, 120), slice(80, 200)), shape=(10, 10)).values
    assert aligned.shape == (3, 10, 15)
    blocks = image[40:120, 80:200].reshape(10, 8, 15, 8, 3).mean((1, 3))
    assert np.abs(aligned.transpose(1, 2, 0) - blocks).max() < 3
    assert adapter.read(source, (slice(41, 120), slice(80, 200)), shape=(10, 10)).values.shape == (3, 79, 120)


def test_reading_from_many_threads_at_once_gives_the_same_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)
    sources = [only(saved(tmp_path / f"{s}.{s}", Image.fromarray(noise))) for s in ("jpg", "png", "tif", "webp")]
    adapter = Natural()
    expected = [adapter.read(source).values for source in sources]
    failed: list[str] = []

    def work() -> None:
        for _ in range(20):
            for source, values in zip(sources, expected, strict=True):
                if not np.array_equal(adapter.read(source).values, values):
                    failed.append(source.paths[0])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_small_window_does_not_keep_the_whole_image_in_memory(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg")
    source = only(tmp_path)
    for side, kept in ((20, 20 * 20 * 3), (290, 400 * 300 * 3)):
        values = Natural().read(source, (slice(0, side), slice(0, side))).values
        while isinstance(values.base, np.ndarray):
            values = values.base
        assert values.nbytes == kept
