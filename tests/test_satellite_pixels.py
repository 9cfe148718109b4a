"""Windows of rasters: rasterio whole and numpy are the oracles for values, validity, resolutions, overviews."""

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from maectl.adapter import Pixels
from maectl.errors import Unreadable

pytest.importorskip("rasterio")

import rasterio
from rasterio import Affine
from rasterio.enums import ColorInterp, Resampling

from maectl_satellite import handles
from maectl_satellite.handles import environment, opened
from maectl_satellite.layout import Band, Layout
from maectl_satellite.pixels import load, stored
from maectl_satellite.resample import Taps

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SHAPE = (150, 200)
FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")


def noise(dtype: str, bands: int = 3, shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Values over most of what a type holds."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, (bands, *shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -(10**9)), min(limits.max, 10**9), (bands, *shape)).astype(dtype)


def made(path: Path, values: np.ndarray, mask: np.ndarray | None = None, **options: Any) -> Path:
    """A tiled raster of values [C, H, W]; ``colours`` are set, ``mask`` becomes an internal one."""
    colours, overviews = options.pop("colours", None), options.pop("overviews", None)
    internal = options.pop("internal", True)
    about: dict[str, Any] = {
        "driver": "GTiff",
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        "compress": "deflate",
    }
    about |= {"crs": "EPSG:32632", "transform": Affine(10, 0, 500000, 0, -10, 5e6)} | options
    count, height, width = values.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(path, "w", count=count, height=height, width=width, dtype=values.dtype, **about) as raster,
    ):
        if colours is not None:
            raster.colorinterp = colours
        raster.write(values)
        if mask is not None:
            raster.write_mask(mask)
        if overviews is not None:
            raster.build_overviews(overviews, Resampling.average)
    return path


def layout(values: np.ndarray, numbers: Sequence[int] | None = None, **fields: Any) -> Layout:
    numbers = numbers or range(1, len(values) + 1)
    bands = fields.pop("bands", tuple(Band(0, number) for number in numbers))
    return Layout(values.shape[1:], bands, values.dtype.name, **fields)


def read(path: Path, about: Layout, dtype: str, window=None, shape=None) -> Pixels:
    return load((str(path),), about, dtype, window, shape)


def source_dtype(stored: str) -> str:
    return {"int8": "int16", "uint32": "float32", "int32": "float32", "int64": "float32", "float64": "float32"}.get(
        stored, stored
    )


def validity(pixels: Pixels) -> np.ndarray:
    return np.ones(pixels.values.shape[1:], bool) if pixels.valid is None else pixels.valid


def some_windows(count: int = 5, shape: tuple[int, int] = SHAPE, seed: int = 0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ends = [np.sort(rng.choice(length + 1, 2, replace=False)) for length in shape]
        yield tuple(slice(int(a), int(b)) for a, b in ends)


def check_windows(files: Sequence[Path], about: Layout, dtype: str, count: int = 6) -> None:
    """A window is a slice of the whole, to the bit."""
    names = [str(file) for file in files]
    whole = load(names, about, dtype, None, None)
    for window in some_windows(count, about.shape):
        part = load(names, about, dtype, window, None)
        np.testing.assert_array_equal(part.values, whole.values[(slice(None), *window)])
        np.testing.assert_array_equal(validity(part), validity(whole)[window])
        assert part.valid is None or not part.valid.all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_the_files_in_the_sources_dtype(tmp_path: Path, dtype: str) -> None:
    values = noise(dtype)
    path = made(tmp_path / "a.tif", values)
    pixels = read(path, layout(values), source_dtype(dtype))
    assert pixels.valid is None
    assert pixels.values.dtype == source_dtype(dtype)
    assert pixels.values.flags.writeable
    assert pixels.values.flags.c_contiguous
    np.testing.assert_array_equal(pixels.values, values.astype(source_dtype(dtype)))
    check_windows([path], layout(values), source_dtype(dtype))


@pytest.mark.parametrize("numbers", [(3, 1), (2, 2), (2,), (3, 1, 1, 2)])
def test_bands_come_in_the_order_asked_for_also_repeated(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    values = np.maximum(noise("uint16"), 8)
    values[1, :20] = 7
    path = made(tmp_path / "a.tif", values)
    pixels = read(path, layout(values, numbers, nodata=7.0), "uint16")
    np.testing.assert_array_equal(pixels.values, values[[number - 1 for number in numbers]])
    assert (pixels.valid is not None) == (2 in numbers)
    if pixels.valid is not None:
        np.testing.assert_array_equal(pixels.valid, (values[[n - 1 for n in numbers]] != 7).all(axis=0))


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        *[("uint8", 0), ("uint8", 255), ("uint16", 0), ("uint16", 65535), ("int16", -9999), ("int16", -32768)],
        *[("int32", -2147483648), ("int64", -9999), ("float32", -9999), ("float32", -3.4028234663852886e38)],
        *[("float32", 1e30), ("float32", 0), ("float32", float("nan")), ("float64", -1.7976931348623157e308)],
        *[("float64", -3.4e38), ("float64", 1e30), ("float64", float("nan")), ("float64", -9999), ("int8", -128)],
    ],
)
def test_nodata_is_invalid_where_rasterio_says_so_and_in_any_band(tmp_path: Path, dtype: str, nodata: float) -> None:
    values = noise(dtype)
    values[:, 10:90, 40:190] = 5
    values[0, :, :30], values[2, 100:, 90:] = nodata, nodata
    path = made(tmp_path / "a.tif", values, nodata=nodata)
    with rasterio.open(path) as raster:
        expected = (raster.read_masks() > 0).all(axis=0)
    pixels = read(path, layout(values), source_dtype(dtype))
    np.testing.assert_array_equal(validity(pixels), expected)
    assert not expected[0, 0]
    assert not expected[149, 199]
    assert np.isfinite(pixels.values[:, expected]).all()
    inside = tuple(slice(*each) for each in ((10, 90), (40, 190)))
    assert read(path, layout(values), source_dtype(dtype), inside).valid is None
    check_windows([path], layout(values), source_dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [1e30, -9999.1, -3.4e36, 0.1, 0.0])
def test_floats_are_nodata_as_near_to_the_tag_as_gdal_has_it(tmp_path: Path, dtype: str, nodata: float) -> None:
    """The tag is decimal text."""
    apart = np.array([0, 1e-8, 1e-7, 3e-7, 7e-7, 1e-6, 1e-4, 0.1])
    values = np.broadcast_to((nodata * (1 - apart)).astype(dtype), (1, 5, len(apart)))
    path = made(tmp_path / "a.tif", values, nodata=nodata)
    with rasterio.open(path) as raster:
        expected = raster.read_masks(1) > 0
    np.testing.assert_array_equal(validity(read(path, layout(values), "float32")), expected)
    assert nodata == 0 or expected.any()


def test_a_band_that_is_not_selected_does_not_make_pixels_invalid(tmp_path: Path) -> None:
    values = np.maximum(noise("uint16"), 1)
    values[1, :75] = 0
    path = made(tmp_path / "a.tif", values, nodata=0)
    assert read(path, layout(values, (1, 3)), "uint16").valid is None
    np.testing.assert_array_equal(validity(read(path, layout(values, (1, 2)), "uint16")), values[1] > 0)


def test_nan_and_infinity_are_invalid_without_a_tag(tmp_path: Path) -> None:
    values = noise("float32")
    values[0, 3, 4], values[1, 5, 6], values[2, 7, 8] = np.nan, np.inf, -np.inf
    path = made(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(validity(read(path, layout(values), "float32")), np.isfinite(values).all(axis=0))


def test_what_float32_does_not_hold_is_invalid(tmp_path: Path) -> None:
    values = noise("float64")
    values[1, 3, 4] = 1e300
    path = made(tmp_path / "a.tif", values)
    valid = validity(read(path, layout(values), "float32"))
    assert not valid[3, 4]
    assert valid.sum() == valid.size - 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("nodata", [None, 9])
def test_alpha_zero_is_invalid_also_beside_a_nodata_tag(tmp_path: Path, dtype: str, nodata: int | None) -> None:
    values = np.maximum(noise(dtype, 4), 10)
    values[3] = 200
    values[3, :, 120:], values[3, 5, 5] = 0, 1
    values[0, :7] = 9
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    path = made(tmp_path / "a.tif", values, nodata=nodata, colours=colours)
    expected = values[3] != 0
    if nodata is not None:
        expected &= values[0] != 9
    np.testing.assert_array_equal(validity(read(path, layout(values, (1, 2, 3)), dtype)), expected)
    np.testing.assert_array_equal(validity(read(path, layout(values), dtype)), expected)
    check_windows([path], layout(values, (3, 1)), dtype)


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("nodata", [None, 9])
def test_masks_inside_and_beside_the_file_are_read_also_beside_a_nodata_tag(
    tmp_path: Path, internal: bool, nodata: int | None
) -> None:
    values, mask = np.maximum(noise("uint8"), 10), np.full(SHAPE, 255, np.uint8)
    mask[40:60, 30:90] = 0
    values[0, :7] = 9
    path = made(tmp_path / "a.tif", values, mask, nodata=nodata, internal=internal)
    assert (tmp_path / "a.tif.msk").exists() != internal
    expected = mask > 0
    if nodata is not None:
        expected &= values[0] != 9
    np.testing.assert_array_equal(validity(read(path, layout(values), "uint8")), expected)
    check_windows([path], layout(values), "uint8")


def test_the_nodata_option_counts_beside_the_tag(tmp_path: Path) -> None:
    values = np.maximum(noise("int16"), 2)
    values[0, :10], values[1, :, :10] = 0, 1
    path = made(tmp_path / "a.tif", values, nodata=0)
    valid = validity(read(path, layout(values, nodata=1.0), "int16"))
    np.testing.assert_array_equal(valid, (values[0] != 0) & (values[1] != 1))
    assert read(path, layout(values, (3,), nodata=float("nan")), "int16").valid is None
    assert read(path, layout(values, (3,), nodata=0.5), "int16").valid is None


def test_a_tag_that_its_type_cannot_hold_makes_nothing_invalid(tmp_path: Path) -> None:
    values = noise("uint8")
    path = made(tmp_path / "a.tif", values)
    for nodata in (-9999.0, 256.0, 3.5, float("inf")):
        assert read(path, layout(values, nodata=nodata), "uint8").valid is None


def test_scale_and_offset_come_before_decibels_which_no_value_below_zero_has(tmp_path: Path) -> None:
    values = noise("int16", 2)
    path = made(tmp_path / "a.tif", values)
    bands = (Band(0, 1, scale=0.5, offset=-3), Band(0, 2, scale=2e-4))
    scaled = values * np.array([0.5, 2e-4])[:, None, None] + np.array([-3, 0])[:, None, None]
    pixels = read(path, layout(values, bands=bands), "float32")
    assert pixels.valid is None
    np.testing.assert_array_equal(pixels.values, scaled.astype(np.float32))
    for kind, factor in (("power", 10), ("amplitude", 20)):
        about = layout(values, bands=bands, decibel=kind)
        pixels = read(path, about, "float32")
        valid = (scaled > 0).all(axis=0)
        np.testing.assert_array_equal(validity(pixels), valid)
        expected = factor * np.log(scaled[:, valid]) / np.log(10)
        np.testing.assert_allclose(pixels.values[:, valid], expected, rtol=1e-6, atol=1e-5)
        check_windows([path], about, "float32")


def test_a_scene_of_several_files_is_read_from_all_of_them(tmp_path: Path) -> None:
    one, two = noise("uint16", 2), noise("uint16", 2, seed=1)
    one[0, :9], two[1, :, :11] = 0, 65535
    files = [made(tmp_path / "1.tif", one, nodata=0), made(tmp_path / "2.tif", two, nodata=65535)]
    bands = (Band(1, 2), Band(0, 1), Band(1, 1))
    about = layout(one, bands=bands)
    pixels = load([str(file) for file in files], about, "uint16", None, None)
    np.testing.assert_array_equal(pixels.values, [two[1], one[0], two[0]])
    expected = (one[0] != 0) & (two != 65535).all(axis=0)
    np.testing.assert_array_equal(validity(pixels), expected)
    check_windows(files, about, "uint16")


def test_files_of_several_dtypes_are_one_array_of_the_one_that_holds_all(tmp_path: Path) -> None:
    one, two = noise("uint8", 1), noise("int16", 1)
    files = [made(tmp_path / "1.tif", one), made(tmp_path / "2.tif", two)]
    about = Layout(SHAPE, (Band(0, 1), Band(1, 1)), "int16")
    pixels = load([str(file) for file in files], about, "int16", None, None)
    np.testing.assert_array_equal(pixels.values, [one[0].astype(np.int16), two[0]])


# other resolutions


def naive(values: np.ndarray, line: tuple[float, float], count: int) -> np.ndarray:
    """[count] from [length]: the definition, a pixel at a time."""
    scale, shift = line
    found = []
    for y in range(count):
        place, width = scale * (y + 0.5) + shift, max(1.0, abs(scale))
        weights = {}
        for i in range(int(place - width) - 3, int(place + width) + 4):
            weight = max(0.0, 1 - abs(i + 0.5 - place) / width)
            key = min(max(i, 0), len(values) - 1)
            weights[key] = weights.get(key, 0) + weight
        found.append(sum(values[i] * w for i, w in weights.items()) / sum(weights.values()))
    return np.array(found)


@pytest.mark.parametrize(
    "line", [(0.5, 0.0), (1 / 3, 0.0), (2.0, 0.0), (3.0, 0.0), (1.0, 0.5), (0.5, -0.25), (1.7, 0.3)]
)
def test_resampling_is_the_triangle_filter_computed_naively(tmp_path: Path, line: tuple[float, float]) -> None:
    length = int(SHAPE[1] * line[0]) + 2
    values = np.random.default_rng(0).normal(size=(1, SHAPE[0], length))
    path = made(tmp_path / "a.tif", values)
    about = Layout(SHAPE, (Band(0, 1, columns=line),), "float64")
    found, _ = stored([str(path)], about, tuple(slice(0, length) for length in SHAPE))
    np.testing.assert_allclose(found[0, 3], naive(values[0, 3], line, SHAPE[1]), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found[0, 77], naive(values[0, 77], line, SHAPE[1]), rtol=1e-12, atol=1e-12)


def test_a_linear_ramp_comes_back_exactly_where_its_edges_are_not_reached(tmp_path: Path) -> None:
    """The value at a place on the ground is the same, whatever the resolution."""
    for scale, size in ((0.5, 75), (0.25, 38), (2.0, 300), (1.0, 150)):
        ground = (np.arange(size) + 0.5) / scale  # in pixels of the scene
        values = np.broadcast_to(ground[:, None], (1, size, 200)).astype(np.float64)
        path = made(tmp_path / "a.tif", values)
        about = Layout((150, 200), (Band(0, 1, rows=(scale, 0.0)),), "float64")
        found = read(path, about, "float32").values[0]
        edge = 4
        expected = np.broadcast_to(np.arange(150)[edge:-edge, None] + 0.5, (150 - 2 * edge, 200))
        np.testing.assert_array_equal(found[edge:-edge], expected)


@given(
    st.sampled_from(["uint8", "uint16", "float32"]),
    st.floats(0.2, 4.0),
    st.floats(0.2, 4.0),
    st.floats(-0.5, 0.5),
    st.integers(1, 250),
)
@FUZZ
def test_a_constant_comes_back_constant(
    tmp_path: Path, dtype: str, rows: float, columns: float, shift: float, level: int
) -> None:
    assume((rows, columns, shift) != (1, 1, 0))  # the scene's own grid
    shape = (int(40 * rows) + 1, int(50 * columns) + 1)
    path = made(tmp_path / "a.tif", np.full((2, *shape), level, dtype))
    band = {"rows": (rows, 0.0), "columns": (columns, shift)}
    about = Layout((40, 50), (Band(0, 1, **band), Band(0, 2, **band)), dtype)
    pixels = read(path, about, dtype)
    assert (pixels.values == level).all()


@given(st.floats(0.15, 4.0), st.floats(0.15, 4.0), st.floats(-0.5, 0.5), st.integers(0, 10**6))
@FUZZ
def test_a_window_of_other_resolutions_is_a_slice_of_the_whole_to_the_bit(
    tmp_path: Path, rows: float, columns: float, shift: float, seed: int
) -> None:
    assume((rows, columns, shift) != (1, 1, 0))  # the scene's own grid
    shape = (60, 70)
    coarse = noise("float32", 2, (int(60 * rows) + 1, int(70 * columns) + 1), seed)
    coarse[0, coarse.shape[1] // 2, coarse.shape[2] // 3] = np.nan
    fine = noise("float32", 1, shape, seed + 1)
    files = [made(tmp_path / "a.tif", fine), made(tmp_path / "b.tif", coarse)]
    other = {"rows": (rows, shift), "columns": (columns, shift)}
    about = Layout(shape, (Band(1, 2, **other), Band(0, 1), Band(1, 1, **other)), "float32")
    check_windows(files, about, "float32", 4)


def test_a_large_read_in_parts_is_the_same_as_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise("uint16", 2, (300, 400))
    values[0, 33, 44] = 0
    path = made(tmp_path / "a.tif", values, nodata=0)
    other = {"rows": (2.0, 0.0), "columns": (2.0, 0.0)}
    about = Layout(SHAPE, (Band(0, 1, **other), Band(0, 2, **other)), "uint16")
    whole = read(path, about, "uint16")
    monkeypatch.setattr("maectl_satellite.pixels._SLAB", 5000)
    parts = read(path, about, "uint16")
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(validity(parts), validity(whole))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -9999.0, 1e30])
@pytest.mark.parametrize("scale", [0.5, 1 / 3, 2.0, 1.0])
def test_invalid_taps_make_a_pixel_invalid_and_never_leak(tmp_path: Path, bad: float, scale: float) -> None:
    size = round(150 * scale), round(200 * scale)
    values = np.random.default_rng(0).uniform(1, 2, (1, *size)).astype(np.float32)
    clean = values.copy()
    values[0, size[0] // 2, size[1] // 2] = bad
    tag = None if not np.isfinite(bad) else bad
    band = Band(0, 1, rows=(scale, 0.0), columns=(scale, 0.0))
    about = Layout((150, 200), (band,), "float32")
    found = read(made(tmp_path / "a.tif", values, nodata=tag), about, "float32")
    whole = read(made(tmp_path / "b.tif", clean), about, "float32")
    assert whole.valid is None
    assert found.valid is not None
    touched = np.zeros(size, bool)
    touched[size[0] // 2, size[1] // 2] = True
    rows, columns = (
        naive_parts(line, n, length) for line, n, length in zip([scale] * 2, about.shape, size, strict=True)
    )
    expected = ~((rows @ touched.astype(float) @ columns.T) > 1e-9)
    np.testing.assert_array_equal(found.valid, expected)
    np.testing.assert_array_equal(found.values[0, found.valid], whole.values[0, found.valid])


def naive_parts(scale: float, count: int, length: int) -> np.ndarray:
    """The weights [count, length] as a matrix."""
    return np.stack([naive(row, (scale, 0.0), count) for row in np.eye(length)], axis=1)


def test_a_file_that_no_longer_covers_the_scene_is_unreadable(tmp_path: Path) -> None:
    half = {"rows": (0.5, 0.0), "columns": (0.5, 0.0)}
    about = Layout((150, 200), (Band(0, 1, **half),), "float32")
    path = made(tmp_path / "a.tif", np.full((1, 74, 100), 3, np.float32))  # half a pixel less: its edge counts
    pixels = read(path, about, "float32")
    assert pixels.valid is None
    assert (pixels.values == 3).all()
    made(path, np.ones((1, 60, 100), np.float32))
    with pytest.raises(Unreadable, match="does not cover the scene"):
        read(path, about, "float32")


def test_taps_of_the_same_grid_are_the_pixels_themselves() -> None:
    taps = Taps.of(slice(3, 9), (1.0, 2.0), 20)
    np.testing.assert_array_equal(taps.members, [np.arange(5, 11)])
    np.testing.assert_array_equal(taps.weights, np.ones((1, 6)))


# fewer pixels


@pytest.mark.parametrize("least", [(75, 100), (30, 40), (37, 13), (50, 200), (7, 9), (1, 1), (149, 200), (75, 199)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "int16"])
def test_fewer_pixels_are_means_of_whole_ones_valid_where_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, least: tuple[int, int]
) -> None:
    monkeypatch.setattr("maectl_satellite.pixels._SLAB", 20000)
    values = noise(dtype)
    values[1, 40:60, 30:90] = 7
    path = made(tmp_path / "a.tif", values, nodata=7)
    pixels = read(path, layout(values), dtype, None, least)
    given_ = pixels.values.shape[1:]
    assert all(a <= b <= c for a, b, c in zip(least, given_, SHAPE, strict=True))
    assert all(b < 2 * a or a == 1 for a, b in zip(least, given_, strict=True))
    valid = validity(read(path, layout(values), dtype))
    rows, columns = (np.arange(n + 1) * length // n for n, length in zip(given_, SHAPE, strict=True))
    for i in range(given_[0]):
        for j in range(0, given_[1], 7):
            at = (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
            assert validity(pixels)[i, j] == valid[at].all()
            if valid[at].all():
                mean = values[(slice(None), *at)].astype(np.float64).mean(axis=(1, 2))
                expected = mean if dtype == "float32" else np.rint(mean)
                np.testing.assert_allclose(pixels.values[:, i, j], expected, rtol=1e-5, atol=1e-3)


def test_overviews_are_read_where_no_pixel_can_be_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = (
        np.add.outer(np.arange(400), np.arange(600)).astype(np.uint16)[None]
        * np.array([1, 2], np.uint16)[:, None, None]
    )
    plain = made(tmp_path / "a.tif", smooth, overviews=[2, 4])
    tagged = made(tmp_path / "b.tif", smooth, overviews=[2, 4], nodata=65535)
    without = made(tmp_path / "c.tif", smooth)
    seen: list[Any] = []
    monkeypatch.setattr("maectl_satellite.pixels.stored", lambda *given: seen.append(given) or stored(*given))
    found = [read(path, layout(smooth, (2, 1)), "uint16", None, (100, 150)) for path in (plain, tagged, without)]
    assert [pixels.values.shape for pixels in found] == [(2, 100, 150)] * 3
    assert len(seen) == 2
    for pixels in found:
        assert np.abs(pixels.values.astype(float) - found[2].values).max() <= 1
    assert read(plain, layout(smooth, (2, 1)), "uint16", None, (300, 500)).values.shape == (2, 400, 600)


def test_overviews_are_not_read_where_they_would_be_coarser_than_asked(tmp_path: Path) -> None:
    values = noise("uint16", 1, (400, 600))
    path = made(tmp_path / "a.tif", values, overviews=[8])
    pixels = read(path, layout(values), "uint16", None, (200, 300))
    np.testing.assert_array_equal(pixels.values[0], np.rint(values[0].reshape(200, 2, 300, 2).mean(axis=(1, 3))))


def test_scenes_with_other_resolutions_are_never_given_in_fewer_pixels(tmp_path: Path) -> None:
    path = made(tmp_path / "a.tif", noise("uint16", 1, (75, 100)))
    about = Layout(SHAPE, (Band(0, 1, rows=(0.5, 0.0), columns=(0.5, 0.0)),), "uint16")
    assert read(path, about, "uint16", None, (10, 10)).values.shape == (1, *SHAPE)


# damage


COMPRESSIONS = (None, "deflate", "lzw", "packbits", "zstd", "jpeg", "webp", "lerc")


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("tiled", [True, False])
def test_a_file_cut_short_is_unreadable_and_never_half_an_image(
    tmp_path: Path, compress: str | None, tiled: bool
) -> None:
    values = noise("uint8")
    shape = {"tiled": True} if tiled else {"tiled": False, "blockxsize": None, "blockysize": None}
    path = made(tmp_path / "a.tif", values, compress=compress, **shape)
    data = path.read_bytes()
    for share in (0.3, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(Unreadable, match=r"^[^\n/]+$"):
            read(path, layout(values), "uint8")
    path.write_bytes(data)
    read(path, layout(values), "uint8")
    path.unlink()
    with pytest.raises(Unreadable, match="gone"):
        read(path, layout(values), "uint8")


def test_blocks_that_were_never_written_are_nodata_or_zero_and_no_damage(tmp_path: Path) -> None:
    for nodata in (None, 7):
        path = tmp_path / f"{nodata}.tif"
        about = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, "sparse_ok": True}
        with rasterio.open(path, "w", count=1, height=150, width=200, dtype="uint8", nodata=nodata, **about) as raster:
            raster.write(np.full((1, 64, 64), 3, np.uint8), window=((0, 64), (0, 64)))
        pixels = read(path, Layout(SHAPE, (Band(0, 1),), "uint8"), "uint8")
        assert (pixels.values[0, :64, :64] == 3).all()
        assert (pixels.values[0, 64:] == (nodata or 0)).all()
        assert validity(pixels).sum() == (SHAPE[0] * SHAPE[1] if nodata is None else 64 * 64)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (noise("uint8", 3, (150, 201)), "150 x 201 pixels"),
        (noise("uint8", 2), "2 bands"),
        (noise("uint16", 3), "uint16"),
    ],
)
def test_a_file_that_has_changed_since_the_scan_is_unreadable(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    about = layout(noise("uint8"))
    path = made(tmp_path / "a.tif", noise("uint8"))
    read(path, about, "uint8")
    made(tmp_path / "a.tif", values)
    with pytest.raises(Unreadable, match=rf"^[^\n/]*{reason}"):
        read(path, about, "uint8")


def test_a_file_that_is_no_raster_or_of_a_driver_we_do_not_use_is_unreadable(tmp_path: Path) -> None:
    about = layout(noise("uint8"))
    (tmp_path / "a.tif").write_text("<html>")
    with pytest.raises(Unreadable, match="'a.tif' not recognized"):
        read(tmp_path / "a.tif", about, "uint8")
    made(tmp_path / "a.png", noise("uint8"), driver="PNG", tiled=None, blockxsize=None, blockysize=None, compress=None)
    with pytest.raises(Unreadable, match="not recognized"):
        read(tmp_path / "a.png", about, "uint8")


def test_nothing_is_printed_whatever_is_damaged_in_any_thread(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = noise("uint8")
    paths = [made(tmp_path / f"{c}.tif", values, compress=c) for c in COMPRESSIONS if c]
    for path in paths:
        data = bytearray(path.read_bytes())
        data[-9000:-8000] = os.urandom(1000)
        path.write_bytes(data[:-100])

    def attempt(path: Path) -> None:
        with pytest.raises(Unreadable):
            read(path, layout(values), "uint8")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(attempt, paths))
    for path in paths:
        attempt(path)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


# handles


def test_a_raster_is_opened_once_a_thread_and_never_shared(tmp_path: Path) -> None:
    path = str(made(tmp_path / "a.tif", noise("uint8")))
    with environment():
        here = opened(path)
        assert opened(path) is here

    def other() -> bool:
        with environment():
            return opened(path) is not here and opened(path) is opened(path)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(other).result()


def test_a_changed_file_is_opened_anew(tmp_path: Path) -> None:
    one, two = noise("uint8"), noise("uint8", seed=1)
    path = made(tmp_path / "a.tif", one)
    np.testing.assert_array_equal(read(path, layout(one), "uint8").values, one)
    made(tmp_path / "b.tif", two).replace(path)
    np.testing.assert_array_equal(read(path, layout(one), "uint8").values, two)
    mask = np.zeros(SHAPE, np.uint8)
    made(path, two, mask, internal=False)
    assert not validity(read(path, layout(one), "uint8")).any()


def held(folder: Path) -> int:
    """How many files under a folder this process has open."""
    return sum(str(folder) in os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd"))


def test_few_rasters_are_held_open_and_the_least_used_is_closed(tmp_path: Path) -> None:
    paths = [str(made(tmp_path / f"{n}.tif", noise("uint8", 1, (20, 20)))) for n in range(handles.OPEN + 3)]
    with environment():
        first, second = opened(paths[0]), opened(paths[1])
        for path in paths[2:]:
            opened(path)
            assert opened(paths[0]) is first
        assert not first.closed
        assert second.closed
    assert held(tmp_path) <= handles.OPEN


def vrt_of(path: Path, member: Path, shape: tuple[int, int], shared: int = 1) -> Path:
    path.write_text(
        f'<VRTDataset rasterXSize="{shape[1]}" rasterYSize="{shape[0]}"><VRTRasterBand dataType="UInt16" band="1">'
        f'<SimpleSource><SourceFilename relativeToVRT="1" shared="{shared}">{member.name}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


def test_a_vrt_of_bands_of_several_types_with_nodata_a_band_is_read_as_one(tmp_path: Path) -> None:
    one, two = np.maximum(noise("uint8", 1), 3), np.maximum(noise("int16", 1), 3)
    one[0, :9], two[0, :, :11], two[0, 20] = 0, -1, 0  # 0 is nodata of the first alone
    made(tmp_path / "1.tif", one, nodata=0)
    made(tmp_path / "2.tif", two, nodata=-1)
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{number}"><NoDataValue>{nodata}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{number}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for number, kind, nodata in ((1, "Byte", 0), (2, "Int16", -1))
    )
    path = tmp_path / "a.vrt"
    path.write_text(f'<VRTDataset rasterXSize="{SHAPE[1]}" rasterYSize="{SHAPE[0]}">{bands}</VRTDataset>')
    about = Layout(SHAPE, (Band(0, 2), Band(0, 1)), "int16")
    pixels = read(path, about, "int16")
    np.testing.assert_array_equal(pixels.values, [two[0], one[0].astype(np.int16)])
    np.testing.assert_array_equal(validity(pixels), (one[0] != 0) & (two[0] != -1))
    check_windows([path], about, "int16")


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage", "other"])
def test_a_vrt_whose_source_has_changed_since_is_read_anew_or_unreadable(tmp_path: Path, damage: str) -> None:
    values = np.maximum(noise("uint16", 1), 1)
    member = made(tmp_path / "a.tif", values)
    path = vrt_of(tmp_path / "a.vrt", vrt_of(tmp_path / "b.vrt", member, SHAPE), SHAPE, shared=0)
    other = vrt_of(tmp_path / "c.vrt", made(tmp_path / "c.tif", values), SHAPE)
    read(other, layout(values), "uint16")  # while another VRT is open, GDAL tells of a source that is gone only once
    np.testing.assert_array_equal(read(path, layout(values), "uint16").values, values)
    if damage == "other":
        made(tmp_path / "b.tif", values - 1).replace(member)
        np.testing.assert_array_equal(read(path, layout(values), "uint16").values, values - 1)
        return
    if damage == "cut":
        member.write_bytes(member.read_bytes()[: member.stat().st_size // 2])
    elif damage == "garbage":
        member.write_bytes(b"garbage")
    else:
        member.unlink()
    for _ in range(3):
        with pytest.raises(Unreadable, match=r"^[^\n/]+$"):
            read(path, layout(values), "uint16")


def test_jpeg_2000_is_read_in_windows_and_in_fewer_pixels_and_never_half(tmp_path: Path) -> None:
    values = np.add.outer(np.arange(600), np.arange(700))[None].astype(np.uint16) + noise("uint8", 1, (600, 700))
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "tiled": None, "compress": None}
    path = made(tmp_path / "a.jp2", values, **lossless)
    np.testing.assert_array_equal(read(path, layout(values), "uint16").values, values)
    check_windows([path], layout(values), "uint16", 4)
    assert read(path, layout(values), "uint16", None, (150, 175)).values.shape == (1, 150, 175)
    data = path.read_bytes()
    for share in (0.3, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(Unreadable):
            read(path, layout(values), "uint16")


def read_many(path: Path, values: np.ndarray, seed: int) -> int:
    """How many of many windows are wrong."""
    wrong = 0
    for window in some_windows(150, values.shape[1:], seed):
        window = tuple(slice(side.start, min(side.stop, side.start + 40)) for side in window)
        found = read(path, layout(values), "uint16", window)
        wrong += not np.array_equal(found.values, values[(slice(None), *window)])
    return wrong


def in_child(path: Path, values: np.ndarray, seed: int, wrong: Any) -> None:
    with environment():
        before = [raster for _, raster in handles._inherited[-1].values()]
        assert before
        descriptors = held(path.parent)
        assert opened(str(path)) not in before
        read(path, layout(values), "uint16")
        assert held(path.parent) > descriptors  # of its own also where a VRT names the file
        assert all(not raster.closed for raster in before)
    wrong.put(read_many(path, values, seed))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["tif", "shared vrt", "unshared vrt"])
def test_a_forked_child_opens_its_own_rasters_while_the_parent_reads_on(tmp_path: Path, kind: str) -> None:
    """They share the position in files that were open before."""
    values = noise("uint16", 1, (600, 700))
    path = made(tmp_path / "a.tif", values)
    if kind != "tif":
        path = vrt_of(tmp_path / "a.vrt", path, (600, 700), int(kind == "shared vrt"))
    assert read_many(path, values, 9) == 0
    context = multiprocessing.get_context("fork")
    wrong = context.Queue()
    children = [context.Process(target=in_child, args=(path, values, seed, wrong)) for seed in range(2)]
    for child in children:
        child.start()
    assert read_many(path, values, 5) == 0
    assert [wrong.get(timeout=60) for _ in children] == [0, 0]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert read_many(path, values, 6) == 0


def test_many_threads_read_the_same_files_right(tmp_path: Path) -> None:
    values = noise("uint16", 1, (600, 700))
    path = made(tmp_path / "a.tif", values)
    vrt = vrt_of(tmp_path / "a.vrt", path, (600, 700))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda seed: read_many((path, vrt)[seed % 2], values, seed), range(12)))
    assert found == [0] * 12


def test_settings_end_with_the_context_and_bound_the_block_cache_in_every_thread() -> None:
    from rasterio.env import get_gdal_config

    before = dict(os.environ), get_gdal_config("GDAL_CACHEMAX"), get_gdal_config("GDAL_NUM_THREADS")
    seen: list[Any] = []

    def look() -> None:
        with environment():
            seen.append((get_gdal_config("GDAL_CACHEMAX"), get_gdal_config("GDAL_NUM_THREADS")))

    look()
    other = threading.Thread(target=look)
    other.start()
    other.join()
    assert seen == [(handles.CACHE, 1)] * 2
    assert (dict(os.environ), get_gdal_config("GDAL_CACHEMAX"), get_gdal_config("GDAL_NUM_THREADS")) == before


@pytest.mark.skipif(not (DATA / "satellite" / "scenes").is_dir(), reason="needs shared/data/satellite/scenes")
@pytest.mark.parametrize(
    "name", ["RGB.byte.tif", "mosaic_cog1.tif", "ms1.tif", "L7_ETMs.tif", "Spain_7370579_S1Hand.tif"]
)
def test_real_scenes_are_what_rasterio_reads(name: str) -> None:
    path = DATA / "satellite" / "scenes" / name
    with rasterio.open(path) as raster:
        values, masks = raster.read(), (raster.read_masks() > 0).all(axis=0)
    about = layout(values)
    pixels = read(path, about, source_dtype(values.dtype.name))
    valid = masks & np.isfinite(values).all(axis=0)
    np.testing.assert_array_equal(validity(pixels), valid)
    np.testing.assert_array_equal(pixels.values[:, valid], values[:, valid].astype(pixels.values.dtype))
    check_windows([path], about, source_dtype(values.dtype.name), 3)
