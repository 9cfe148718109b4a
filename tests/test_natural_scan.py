"""The adapter for photographs tells images from other files, by their headers, and turns them upright."""

import contextlib
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from natural_files import only, opened, png, ramp, read, rejected, rows_of, saved
from PIL import Image, ImageOps

from maectl.adapter import Files, Reject, Source
from maectl.errors import Unreadable
from maectl_natural import Natural
from maectl_natural.headers import orientation


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied_to_shape_pixels_and_windows(tmp_path: Path, turn: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(ramp(16, 24)), exif=exif, **options)
    shown = np.moveaxis(np.asarray(ImageOps.exif_transpose(opened(path))), -1, 0)
    adapter, source = Natural(), only(path)
    assert source.shape == shown.shape
    np.testing.assert_array_equal(adapter.read(source).values, shown)
    window = (slice(3, 9), slice(2, 11))
    np.testing.assert_array_equal(adapter.read(source, window).values, shown[:, 3:9, 2:11])


def test_exif_after_the_pixels_of_a_png_counts_and_nonsense_does_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    plain = png(0, 8, (2, 3), rows_of(np.zeros((2, 3), np.uint8)))
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    path = tmp_path / "a.png"
    path.write_bytes(plain[:-12] + chunk + plain[-12:])
    assert only(path).shape == (1, 3, 2)
    path.write_bytes(plain[:-12] + chunk[:-1] + b"?" + plain[-12:])  # its checksum is wrong
    assert only(path).shape == (1, 2, 3)
    rng = np.random.default_rng(0)
    for length in range(40):
        assert 1 <= orientation(b"II*\0" + rng.bytes(length)) <= 8


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_half_a_jpeg_is_unreadable_even_with_an_end_marker(
    tmp_path: Path, progressive: bool, ending: bytes, mode: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = saved(tmp_path / "a.jpg", Image.fromarray(noise).convert(mode), progressive=progressive)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3] + ending)
    with pytest.raises(Unreadable, match="damaged JPEG"):
        Natural().read(only(path))


def test_a_jpeg_with_a_harmless_flaw_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(ramp()))
    whole = read(path).values
    path.write_bytes(path.read_bytes().replace(b"JFIF\0\x01", b"JFIF\0\x07"))  # of a version there is not
    with pytest.raises(ValueError, match="JFIF revision"):
        simplejpeg.decode_jpeg(path.read_bytes())
    np.testing.assert_array_equal(read(path).values, whole)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "gif"])
def test_a_file_cut_short_after_the_scan_is_unreadable(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path = saved(tmp_path / f"a.{suffix}", noise)
    source = only(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Unreadable):
        Natural().read(source)
    saved(path, noise.resize((32, 32)))
    with pytest.raises(Unreadable, match="changed since the scan"):
        Natural().read(source)
    path.unlink()
    with pytest.raises(Unreadable, match="gone"):
        Natural().read(source)


def test_content_decides_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    photograph = saved(tmp_path / "a.jpg", Image.fromarray(ramp())).read_bytes()
    for name, data in {
        "a photograph.jpeg": photograph,
        "named.png": photograph,
        "unnamed": photograph,
        "camera.nef": b"II*\0" + bytes(100),
        "preamble": b"II*\0" + bytes(124) + b"DICM",
        "scan.dcm": bytes(128) + b"DICM",
        "notes.txt": b"not an image",
        "empty.txt": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
    found = list(Natural().scan(Files(tmp_path)))
    assert [each.paths[0] for each in found] == ["a photograph.jpeg", "a.jpg", "named.png", "unnamed"]
    assert {isinstance(each, Source) and each.key for each in found} == {"jpeg RGB 1"}
    assert Natural.claim("named.png", photograph) == 1
    assert Natural.claim("camera.nef", b"II*\0" + bytes(100)) == 0


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jpg", b"", "empty file"),
        ("a.jpg", b"<!DOCTYPE html>", "in spite of its suffix .jpg"),
        ("a.jpg", b"\xff\xd8\xff\xd9\0\0", "no frame header"),
        ("a.jpg", b"\xff\xd8\xff\xc3\0\x0b\x08\0\1\0\1\1\0\0\0", "lossless"),
        ("a.jpg", b"\xff\xd8\xff\xc0\0\x0b\x0c\0\1\0\1\1\0\0\0", "12-bit"),
        ("a.jpg", b"\xff\xd8\xff\xc0\0\x0b\x08\0\1\0\1\2\0\0\0", "2 components"),
        ("a.jpg", b"\xff\xd8\xff\xc0\0\x0b\x08\0\0\0\1\1\0\0\0", "0 pixels"),
        ("a.jpg", b"\xff\xd8\xff\xc0\0\x0b\x08", "truncated"),
        ("a.jpg", b"\xff\xd8\xff\xff\x01\xff\xd0\xff\xda\0\0", "no frame header"),
        ("a.jpg", b"\xff\xd8\xff", "truncated"),
        ("a.jpg", b"\xff\xd8\xff\xe0\0\x02junk", "damaged JPEG"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "first chunk"),
        ("a.png", png(3, 16, (1, 1), b"\0\0\0"), "no such PNG"),
        ("a.png", png(0, 8, (1, 1), b"\0\0")[:-30] + b"x" * 30, ""),
        ("a.webp", b"RIFF\xff\xff\0\0WEBPVP8 " + bytes(20), "truncated"),
        ("a.webp", b"RIFF", "in spite of"),
        ("a.webp", b"RIFF\x20\0\0\0WEBPABCD" + bytes(24), "unknown WebP"),
        ("a.webp", b"RIFF\x20\0\0\0WEBPABCD", "truncated"),
        ("a.tif", b"II*\0\x08\0\0\0\0\0", "damaged TIFF"),
        ("a.gif", b"GIF89a", "damaged GIF"),
        ("a.bmp", b"BM", "damaged BMP"),
    ],
)
def test_what_claims_to_be_an_image_and_is_none_is_rejected(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    if reason:
        assert reason in rejected(path)
    else:
        with pytest.raises(Unreadable):
            Natural().read(only(path))


def test_a_decompression_bomb_is_rejected_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(0, 1, (60_000, 60_000), b""))
    assert "60,000 x 60,000 pixels are more than max_pixels (200,000,000)" in rejected(path)
    assert only(path, Natural(max_pixels=3_600_000_000)).shape == (1, 60_000, 60_000)
    small = saved(tmp_path / "a.png", Image.fromarray(ramp()))
    assert "max_pixels (100)" in rejected(small, Natural(max_pixels=100))
    wide = tmp_path / "wide.webp"
    wide.write_bytes(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xfe\x3f\0\xfe\x3f\0")
    assert "what Pillow decodes" in rejected(wide, Natural(max_pixels=10**9))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_opened_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(ramp()))
    path.chmod(0)
    assert "Permission denied" in rejected(path)


def test_a_dangling_link_among_images_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    found = [Natural().scan(Files(tmp_path, only=[name])) for name in ("a.png", "b.txt")]
    (gone,), nothing = (list(each) for each in found)
    assert isinstance(gone, Reject)
    assert "cannot be opened" in gone.reason
    assert nothing == []


def test_nothing_is_printed_by_the_libraries_below(tmp_path: Path) -> None:
    good = saved(tmp_path / "a.tif", Image.fromarray(ramp()), compression="tiff_lzw")
    data = bytearray(good.read_bytes())
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    data[200:240] = b"\xff" * 40
    (tmp_path / "b.tif").write_bytes(data)
    script = """
import sys
from maectl.adapter import Files, Source
from maectl.errors import Unreadable
from maectl_natural import Natural
for found in Natural().scan(Files(sys.argv[1])):
    try:
        isinstance(found, Source) and Natural().read(found)
    except Unreadable:
        pass
"""
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert ran.stdout + ran.stderr == ""


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif"])
def test_damage_anywhere_ends_in_a_reject_or_unreadable_or_an_image_of_its_shape(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8))
    path = saved(tmp_path / f"a.{suffix}", noise)
    whole, outcomes = path.read_bytes(), set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for place in rng.integers(8, min(len(data), 400 if seed % 2 else 10**6), rng.integers(1, 6)):
            data[place] = rng.choice(np.array([0, 255, 1 << rng.integers(8)]))
        path.write_bytes(data)
        (found,) = Natural(max_pixels=10**6).scan(Files(path))
        if isinstance(found, Source):
            with contextlib.suppress(Unreadable):
                assert Natural().read(found).values.shape == found.shape
        outcomes.add(type(found))
    assert Source in outcomes
