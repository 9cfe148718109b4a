"""GeoTIFFs written: what goes out unchanged comes back the same; the rest by definition and by hand."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maectl.adapter import Pixels, Source
from maectl.errors import DataError, Unreadable

pytest.importorskip("rasterio")

import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from maectl_satellite.layout import Band, Layout
from maectl_satellite.pixels import load
from maectl_satellite.sample import landscapes
from maectl_satellite.write import save, save_map

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SHAPE = (90, 130)
ROTATED = Affine(8, 3, 500000, 2, -9, 5e6)
FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCENES = DATA / "satellite" / "scenes"


def noise(dtype: str, bands: int = 3, shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, (bands, *shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -(10**9)), min(limits.max, 10**9), (bands, *shape)).astype(dtype)


def made(path: Path, values: np.ndarray, mask: np.ndarray | None = None, **options: Any) -> Path:
    set_later = {
        name: options.pop(name)
        for name in ("colorinterp", "descriptions", "scales", "offsets", "units")
        if name in options
    }
    tags = options.pop("tags", {})
    about: dict[str, Any] = {"driver": "GTiff", "crs": "EPSG:32632", "transform": ROTATED} | options
    if "gcps" in about:
        del about["transform"]
    count, height, width = values.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", count=count, height=height, width=width, dtype=values.dtype, **about) as raster,
    ):
        for name, value in set_later.items():
            setattr(raster, name, value)
        raster.update_tags(**tags)
        raster.write(values)
        if mask is not None:
            raster.write_mask(mask)
    return path


def kept_dtype(stored: str) -> str:
    same = ("uint8", "int16", "uint16", "float32")
    return stored if stored in same else "int16" if stored == "int8" else "float32"


def source_of(paths: Sequence[Path], layout: Layout) -> Source:
    dtype = kept_dtype(layout.stored) if layout.plain else "float32"
    return Source(
        paths=tuple(path.name for path in paths),
        shape=(len(layout.bands), *layout.shape),
        dtype=dtype,
        unit="value",
        axes=("row", "column"),
        channels=tuple(str(n) for n in range(len(layout.bands))),
        key=layout.dump(),
        folder=str(paths[0].parent),
    )


def layout_of(path: Path, numbers: Sequence[int] | None = None, **fields: Any) -> Layout:
    """As the scan makes it: all bands but alpha, with their names."""
    with rasterio.open(path) as raster:
        plain = [n for n, kind in enumerate(raster.colorinterp, 1) if kind != ColorInterp.alpha]
        bands = tuple(Band(0, n, raster.descriptions[n - 1] or "") for n in numbers or plain)
        return Layout(raster.shape, bands, raster.dtypes[0], **fields)


def read(source: Source, layout: Layout) -> Pixels:
    return load(source.files, layout, source.dtype, None, None)


def tiles(values: np.ndarray, size: int = 48) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    for top in range(0, values.shape[1], size):
        for left in range(0, values.shape[2], size):
            part = values[:, top : top + size, left : left + size]
            yield (slice(top, top + part.shape[1]), slice(left, left + part.shape[2])), part


def again(out: Path, source: Source, layout: Layout) -> Pixels:
    """What was written, read as the scan would have it: every band of one file, of one grid."""
    bands = tuple(Band(0, n, b.name, scale=b.scale, offset=b.offset) for n, b in enumerate(layout.bands, 1))
    seen = Layout(layout.shape, bands, layout.stored, decibel=layout.decibel, nodata=layout.nodata)
    return load((str(out),), seen, source.dtype, None, None)


def validity(pixels: Pixels) -> np.ndarray:
    return np.ones(pixels.values.shape[1:], bool) if pixels.valid is None else pixels.valid


def check_round_trip(paths: Sequence[Path], layout: Layout, out: Path) -> Path:
    """Tiles unchanged: values, validity and header are the source's. Returns the path written."""
    source = source_of(paths, layout)
    pixels = read(source, layout)
    written = save(source, layout, tiles(pixels.values), out)
    assert sorted(out.parent.glob(f"*{out.name}*")) == [written]
    found = again(written, source, layout)
    assert (found.valid is None) == (pixels.valid is None)
    np.testing.assert_array_equal(validity(found), validity(pixels))
    valid = validity(pixels)
    np.testing.assert_array_equal(found.values[:, valid], pixels.values[:, valid])
    with rasterio.open(paths[layout.bands[0].file]) as one, rasterio.open(written) as two:
        assert two.crs == one.crs
        assert two.transform == one.transform
        assert [(p.row, p.col, p.x, p.y) for p in two.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in one.gcps[0]]
        assert two.gcps[1] == one.gcps[1]
        assert two.dtypes[0] == layout.stored
        assert two.profile["tiled"]
        assert two.compression.name == "deflate"
        names = [band.name or None for band in layout.bands]
        assert list(two.descriptions)[: len(names)] == names
    return written


DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["plain", "zero", "odd", "nan", "mask", "alpha", "alpha and nodata", "mask and nodata"]
)
def test_what_is_written_unchanged_reads_back_the_same(tmp_path: Path, dtype: str, kind: str) -> None:
    values, options, mask = noise(dtype), {}, None
    floats = np.dtype(dtype).kind == "f"
    odd = -9999 if dtype in ("int16", "int32", "float32", "float64") else np.iinfo(dtype).max
    if kind == "nan" and not floats:
        pytest.skip("integers have no NaN")
    if kind == "nan":
        values[1, 40:60, 10:70] = np.nan
    elif "nodata" in kind or kind in ("zero", "odd"):
        options["nodata"] = 0 if kind == "zero" else odd
        values[0, :9], values[2, 30:33, 100:] = options["nodata"], options["nodata"]
    if "mask" in kind:
        mask = np.full(SHAPE, 255, np.uint8)
        mask[50:70, 20:90] = 0
    if "alpha" in kind:
        alpha = np.full((1, *SHAPE), 100).astype(dtype)
        alpha[:, :, 111:] = 0
        values = np.concatenate([values, alpha])
        options["colorinterp"] = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    path = made(tmp_path / "in.tif", values, mask, descriptions=["a", "Bänd 2", "c", "d"][: len(values)], **options)
    written = check_round_trip([path], layout_of(path), tmp_path / "v1.2 out")
    assert written.name == "v1.2 out.tif"
    with rasterio.open(path) as one, rasterio.open(written) as two:
        assert two.nodata == one.nodata
        assert two.colorinterp == one.colorinterp
        assert two.mask_flag_enums == one.mask_flag_enums
        np.testing.assert_array_equal(two.read(), one.read())  # under invalid pixels and in alpha, too
        if "mask" in kind:  # it then says all that is invalid
            expected = (mask > 0) & (one.read() != one.nodata).all(axis=0)
            np.testing.assert_array_equal(two.read_masks(1) > 0, expected)


def test_tags_of_bands_are_kept_and_all_others_left_behind(tmp_path: Path) -> None:
    tags = {"TIFFTAG_ARTIST": "somebody", "ACQUIRED": "2024-01-01", "AREA_OR_POINT": "Point"}
    scales, offsets, units = [0.5, 2.0, 1.0], [1.0, 0.0, -3.0], ["m", "K", "K"]
    path = made(
        tmp_path / "in.tif", noise("int16"), tags=tags, scales=scales, offsets=offsets, units=units, nodata=-32768
    )
    written = check_round_trip([path], layout_of(path, (3, 1)), tmp_path / "out")
    with rasterio.open(written) as raster:
        assert (raster.scales, raster.offsets, raster.units) == ((1.0, 0.5), (-3.0, 1.0), ("K", "m"))
        assert raster.count == 2
        assert raster.tags() == {"AREA_OR_POINT": "Area"}
        assert raster.nodata == -32768


def test_ground_control_points_are_kept(tmp_path: Path) -> None:
    points = [
        GroundControlPoint(r, c, 10 + c / 100, 50 - r / 100, 0) for r, c in ((0, 0), (0, 130), (90, 0), (90, 130))
    ]
    path = made(tmp_path / "in.tif", noise("uint16"), gcps=points, crs="EPSG:4326")
    check_round_trip([path], layout_of(path), tmp_path / "out")


def test_a_raster_without_a_place_stays_without(tmp_path: Path) -> None:
    path = made(tmp_path / "in.tif", noise("uint8"), crs=None, transform=None)
    written = check_round_trip([path], layout_of(path), tmp_path / "out")
    with rasterio.open(written) as raster:
        assert raster.crs is None
        assert raster.transform.is_identity


def test_a_scene_of_several_files_becomes_one(tmp_path: Path) -> None:
    one, two = noise("uint16", 1), noise("uint16", 2, seed=1)
    one[0, :9], two[1, :, :11] = 0, 0
    files = [made(tmp_path / "1.tif", one, nodata=0), made(tmp_path / "2.tif", two, nodata=0)]
    layout = Layout(SHAPE, (Band(1, 2, "x"), Band(0, 1, "y")), "uint16")
    with rasterio.open(check_round_trip(files, layout, tmp_path / "out")) as raster:
        assert raster.nodata == 0
        assert raster.count == 2
        assert "per_dataset" not in str(raster.mask_flag_enums)


@pytest.mark.parametrize("other", [None, 65535])
def test_files_of_different_nodata_values_get_a_mask_instead(tmp_path: Path, other: int | None) -> None:
    one, two = noise("uint16", 1), noise("uint16", 1, seed=1)
    one[0, :9], one[0, 20:30], two[0, :, :11], two[0, 20:30] = 0, 65535, 65535, 0
    files = [made(tmp_path / "1.tif", one, nodata=0), made(tmp_path / "2.tif", two, nodata=other)]
    layout = Layout(SHAPE, (Band(0, 1), Band(1, 1)), "uint16")
    with rasterio.open(check_round_trip(files, layout, tmp_path / "out")) as raster:
        assert raster.nodata is None
        np.testing.assert_array_equal(raster.read(), [one[0], two[0]])


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("nodata", [None, 0])
def test_bands_of_other_resolutions_come_back_on_the_scenes_grid(
    tmp_path: Path, dtype: str, nodata: int | None
) -> None:
    fine, coarse = np.abs(noise(dtype, 1)) // 2 + 1, np.abs(noise(dtype, 2, (44, 65), 1)) // 2 + 1
    if nodata is not None:
        coarse[0, 20:23, 30] = nodata
    elif dtype == "float32":
        coarse[1, 20:23, 30] = np.nan
    files = [made(tmp_path / "1.tif", fine, nodata=nodata), made(tmp_path / "2.tif", coarse, nodata=nodata)]
    half = {"rows": (0.5, 0.0), "columns": (0.5, 0.0)}
    layout = Layout(SHAPE, (Band(0, 1), Band(1, 1, **half), Band(1, 2, **half)), dtype)
    check_round_trip(files, layout, tmp_path / "out")


def test_an_interpolated_value_that_would_be_nodata_is_moved(tmp_path: Path) -> None:
    coarse = np.tile(np.array([-1, 1], np.int16), (1, 45, 65))[:, :, :65]
    files = [made(tmp_path / "1.tif", noise("int16", 1) | 1, nodata=0), made(tmp_path / "2.tif", coarse, nodata=0)]
    layout = Layout(SHAPE, (Band(0, 1), Band(1, 1, rows=(0.5, 0.0), columns=(0.5, 0.1))), "int16")
    source = source_of(files, layout)
    pixels = read(source, layout)
    assert (pixels.values[1] == 0).any()
    assert pixels.valid is None
    found = again(save(source, layout, tiles(pixels.values), tmp_path / "out"), source, layout)
    assert found.valid is None
    assert np.abs(found.values - pixels.values).max() == 1


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        *[("uint8", 0), ("uint8", 255), ("int16", -9999), ("int16", 32767), ("uint16", 0), ("uint16", 65535)],
        *[
            ("float32", 0),
            ("float32", -9999),
            ("float32", -3.4028234663852886e38),
            ("float32", 1e30),
            ("float64", 1e30),
        ],
        *[("float64", 0), ("int32", -2147483648), ("int8", -128)],
    ],
)
def test_a_prediction_that_would_be_nodata_becomes_the_nearest_value_that_is_not(
    tmp_path: Path, dtype: str, nodata: float
) -> None:
    values = np.full((2, *SHAPE), 5, dtype)
    values[0, :10] = nodata
    path = made(tmp_path / "in.tif", values, nodata=nodata)
    layout = layout_of(path)
    source = source_of([path], layout)
    level = np.full(values.shape, nodata).astype(np.float32 if np.dtype(dtype).kind == "f" else source.dtype)
    written = save(source, layout, tiles(level), tmp_path / "out")
    found = again(written, source, layout)
    np.testing.assert_array_equal(validity(found), validity(read(source, layout)))
    with rasterio.open(written) as raster:
        stored = raster.read()
    np.testing.assert_array_equal(stored[:, :10], values[:, :10])
    moved = stored[:, 10:].astype(np.float64)
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(moved, float(np.float32(nodata)), rtol=3e-6, atol=1e-30)
    else:
        assert (np.abs(moved - nodata) == 1).all()


def test_neighbouring_nodata_values_of_tag_and_option_are_both_avoided(tmp_path: Path) -> None:
    values = np.full((1, *SHAPE), 9, np.uint8)
    path = made(tmp_path / "in.tif", values, nodata=0)
    layout = layout_of(path, nodata=1.0)
    source = source_of([path], layout)
    found = again(save(source, layout, tiles(np.zeros_like(values)), tmp_path / "out"), source, layout)
    assert found.valid is None
    assert (found.values == 2).all()


@given(
    st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    st.sampled_from(["", "power", "amplitude"]),
    st.floats(1e-4, 100),
    st.floats(-1000, 1000),
)
@FUZZ
def test_values_go_back_through_decibel_scale_and_offset(
    tmp_path: Path, dtype: str, decibel: Any, scale: float, offset: float
) -> None:
    values = (np.abs(noise(dtype, 2).astype(np.float64)) % (200 if dtype == "uint8" else 30000) + 1).astype(dtype)
    path = made(tmp_path / "in.tif", values)
    layout = Layout(SHAPE, (Band(0, 1, scale=scale, offset=offset), Band(0, 2, scale=2.0)), dtype, decibel=decibel)
    source = source_of([path], layout)
    pixels = read(source, layout)
    untouched = save(source, layout, tiles(pixels.values), tmp_path / "same")
    valid = validity(pixels)
    with rasterio.open(path) as one, rasterio.open(untouched) as two:
        np.testing.assert_array_equal(two.read(), one.read())
    other = np.float32(pixels.values + np.float32(0.75))
    written = save(source, layout, tiles(other), tmp_path / "other")
    with rasterio.open(written) as raster:
        stored = raster.read()[:, valid]
    wanted = other[:, valid].astype(np.float64)
    if decibel:
        wanted = np.exp(wanted * np.log(10) / {"power": 10, "amplitude": 20}[decibel])
    wanted = (wanted - np.array([[offset], [0]])) / np.array([[scale], [2]])
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(stored, wanted, rtol=1e-5, atol=1e-3)
    elif valid.any():
        limits = np.iinfo(dtype)
        assert np.abs(stored - np.clip(wanted, limits.min, limits.max)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float32"])
def test_values_are_rounded_and_clipped_and_nan_keeps_the_source(tmp_path: Path, dtype: str) -> None:
    values = np.full((1, 4, 4), 7, dtype)
    path = made(tmp_path / "in.tif", values)
    layout = layout_of(path)
    source = source_of([path], layout)
    new = np.array([[1e30, -1e30, np.inf, -np.inf], [np.nan, 2.5, 3.5, 2.4999], [7, 7, 7, 7], [0, 1, 2, 3]], np.float32)
    with rasterio.open(save(source, layout, tiles(new[None]), tmp_path / "out")) as raster:
        stored = raster.read(1)
    assert stored[1, 0] == 7
    if dtype == "float32":
        assert np.isfinite(stored).all()
        np.testing.assert_array_equal(stored[1, 1:], new[1, 1:])
    else:
        limits = np.iinfo(dtype)
        close = 1024 if dtype == "int64" else 0
        assert np.abs(stored[0].astype(float) - [limits.max, limits.min] * 2).max() <= close
        np.testing.assert_array_equal(stored[1, 1:], [2, 4, 2])
    np.testing.assert_array_equal(stored[2:], new[2:])


def test_a_scene_written_in_parts_is_the_same_as_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise("int16", 5, (300, 500))
    values[1, 20:30, 40:400] = -1
    path = made(tmp_path / "in.tif", values, nodata=-1)
    layout = layout_of(path)
    source = source_of([path], layout)
    new = values[:, ::-1, ::-1] // 2
    corner = [tile for tile in tiles(new, 170) if tile[0][0].start < 170 or tile[0][1].start > 0]
    outs = [save(source, layout, corner, tmp_path / "whole")]
    monkeypatch.setattr("maectl_satellite.geotiff.TILE_BYTES", 1 << 17)
    monkeypatch.setattr("maectl_satellite.write._SLAB", 1 << 15)
    outs.append(save(source, layout, corner, tmp_path / "parts"))
    rasters = [rasterio.open(out) for out in outs]
    assert [raster.block_shapes[0] for raster in rasters] == [(512, 512), (64, 64)]
    np.testing.assert_array_equal(*(raster.read() for raster in rasters))
    expected = np.where((values == -1).any(axis=0), values, new + (new == -1))
    expected[:, 170:, :170] = values[:, 170:, :170]
    np.testing.assert_array_equal(rasters[0].read(), expected)


def test_where_no_tile_lies_the_source_stays(tmp_path: Path) -> None:
    shape = (1100, 2200)
    values = noise("uint8", 2, shape)
    mask = np.full(shape, 255, np.uint8)
    mask[700:720, 1000:] = 0
    path = made(tmp_path / "in.tif", values, mask)
    layout = layout_of(path)
    source = source_of([path], layout)
    place = (slice(512, 1024), slice(1024, 1500))
    inside = (slice(None), *place)
    new = 255 - values[inside]
    with rasterio.open(save(source, layout, [(place, new)], tmp_path / "out")) as raster:
        stored, masks = raster.read(), raster.read_masks(1)
    expected = values.copy()
    expected[inside] = np.where(mask[place] > 0, new, values[inside])
    np.testing.assert_array_equal(stored, expected)
    np.testing.assert_array_equal(masks, mask)
    with rasterio.open(save(source, layout, [], tmp_path / "none")) as raster:
        np.testing.assert_array_equal(raster.read(), values)


def test_the_files_are_tiled_compressed_and_of_bands_apart_where_they_are_many(tmp_path: Path) -> None:
    for count, dtype, size in ((3, "uint16", 512), (12, "float32", 512), (1, "uint8", 144), (40, "float32", 256)):
        values = np.ones((count, 90, 130) if size == 144 else (count, 600, 700), dtype)
        path = made(tmp_path / "in.tif", values)
        layout = layout_of(path)
        source = source_of([path], layout)
        with rasterio.open(save(source, layout, [], tmp_path / "out")) as raster:
            assert raster.block_shapes == [(size, size)] * count
            assert raster.interleaving.name == ("pixel" if count == 3 else "band")
            assert raster.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == ("3" if dtype == "float32" else "2")


# what goes wrong


def test_an_error_on_the_way_leaves_no_file_and_an_older_one_as_it_was(tmp_path: Path) -> None:
    path = made(tmp_path / "in.tif", noise("uint8"))
    layout = layout_of(path)
    source = source_of([path], layout)
    (tmp_path / "out.tif").write_bytes(b"older")

    def failing() -> Iterator[Any]:
        yield (slice(0, 48), slice(0, 48)), np.ones((3, 48, 48), np.uint8)
        raise Unreadable("the source is gone")

    with pytest.raises(Unreadable, match="the source is gone"):
        save(source, layout, failing(), tmp_path / "out")
    assert (tmp_path / "out.tif").read_bytes() == b"older"
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(Unreadable):
        save(source, layout, [], tmp_path / "out")
    with pytest.raises((DataError, OSError)):
        save(source, layout, [], tmp_path / "nowhere" / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.tif", "out.tif"]


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
sys.path[:0] = {path!r}
import test_satellite_write as t
from maectl.errors import DataError
layout = t.layout_of(Path({file!r}))
source = t.source_of([Path({file!r})], layout)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
for write in (lambda out: t.save(source, layout, [], out), lambda out: t.save_map(source, layout, [
    ((slice(0, 90), slice(0, 130)), np.random.default_rng(0).normal(size=(3, 90, 130)))], out,
    step=(1, 1), channels=("a", "b", "c"), dtype="float32", scales=None)):
    try:
        write(Path({file!r}).with_name("out"))
    except DataError as error:
        print("told:", error)
"""


def test_a_disk_that_is_full_is_told_and_leaves_no_file(tmp_path: Path) -> None:
    """GDAL itself says nothing of it when a file is closed."""
    path = made(tmp_path / "in.tif", noise("uint8"))
    for limit in (9000, 30000):
        code = FULL.format(path=[str(Path(__file__).parent)], file=str(path), limit=limit)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout.count("told:") == 2, done
        assert os.listdir(tmp_path) == ["in.tif"]


# maps


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_a_map_lies_over_its_scene_in_larger_pixels(tmp_path: Path, dtype: str) -> None:
    path = made(tmp_path / "in.tif", noise("uint16", 1, (1000, 1300)))
    layout = layout_of(path)
    source = source_of([path], layout)
    step = (8.0, 10.0)
    size = (125, 130)
    values = np.random.default_rng(0).normal(0, 40, (5, *size)).astype(np.float32)
    values[:, 3, 4] = np.nan
    if dtype == "uint8":
        values = np.abs(values) + 1
    parts = [tile for tile in tiles(values, 64) if tile[0][0].start < 64 or tile[0][1].start > 0]
    names = tuple(f"f{n}" for n in range(5))
    scales = tuple((0.5 + n, n / 3) for n in range(5))
    written = save_map(source, layout, parts, tmp_path / "m.1", step=step, channels=names, dtype=dtype, scales=scales)
    assert written == tmp_path / "m.1.tif"
    with rasterio.open(written) as raster:
        found = raster.read()
        assert raster.shape == size
        assert raster.dtypes == ("float32" if dtype == "float16" else dtype,) * 5
        assert raster.descriptions == names
        assert raster.scales == tuple(scale for scale, _ in scales)
        assert raster.offsets == tuple(offset for _, offset in scales)
        assert raster.crs == "EPSG:32632"
        assert raster.block_shapes == [(64, 64)] * 5
        assert raster.interleaving.name == "band"
        for row, column in ((0, 0), (125, 130), (17, 99)):
            ground = ROTATED @ (column * step[1], row * step[0])
            np.testing.assert_allclose(raster.transform @ (column, row), ground, rtol=1e-12)
        nodata = {"float32": np.nan, "float16": np.nan, "int8": -128, "uint8": 0}[dtype]
        assert raster.nodata == nodata or (math.isnan(raster.nodata) and math.isnan(nodata))
        bits = raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
        assert bits == ("16" if dtype == "float16" else None)
        masks = raster.read_masks()
    expected = values.astype(dtype) if "float" in dtype else np.clip(np.rint(values), -127, 255)
    expected = np.minimum(expected, 127) if dtype == "int8" else expected
    nothing = np.isnan(values)
    nothing[:, 64:, :64] = True
    np.testing.assert_array_equal(found[~nothing], expected[~nothing].astype(np.float32))
    np.testing.assert_array_equal(masks == 0, nothing)


@pytest.mark.parametrize(
    ("step", "size"), [((16, 16), (6, 9)), ((90, 130), (1, 1)), ((200, 7.5), (1, 18)), ((10, 13), (9, 10))]
)
def test_a_map_has_as_many_pixels_as_steps_begin_in_the_scene(tmp_path: Path, step: Any, size: Any) -> None:
    path = made(tmp_path / "in.tif", noise("uint8", 1))
    layout = layout_of(path)
    written = save_map(
        source_of([path], layout), layout, [], tmp_path / "m", step=step, channels=("a",), dtype="int8", scales=None
    )
    with rasterio.open(written) as raster:
        assert raster.shape == size
        assert (raster.read() == -128).all()


def test_a_map_over_control_points_and_over_a_grid_of_the_layout(tmp_path: Path) -> None:
    points = [GroundControlPoint(r, c, 10 + c / 100, 50 - r / 100, 0) for r, c in ((0, 0), (0, 130), (90, 0))]
    path = made(tmp_path / "in.tif", noise("uint16"), gcps=points, crs="EPSG:4326")
    layout = layout_of(path)
    about: dict[str, Any] = {"step": (9.0, 13.0), "channels": ("a",), "dtype": "float32", "scales": None}
    with rasterio.open(save_map(source_of([path], layout), layout, [], tmp_path / "m", **about)) as raster:
        assert [(p.row, p.col, p.x) for p in raster.gcps[0]] == [(0, 0, 10), (0, 10, 11.3), (10, 0, 10)]
        assert raster.gcps[1] == "EPSG:4326"
    layout = layout_of(path, transform=(10.0, 0.0, 7.0, 0.0, -10.0, 8.0))
    with rasterio.open(save_map(source_of([path], layout), layout, [], tmp_path / "m", **about)) as raster:
        assert tuple(raster.transform)[:6] == (130, 0, 7, 0, -90, 8)


def test_a_map_of_a_type_that_is_not_offered_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "in.tif", noise("uint8"))
    layout = layout_of(path)
    with pytest.raises(DataError, match="int32: use float32"):
        save_map(
            source_of([path], layout),
            layout,
            [],
            tmp_path / "m",
            step=(1, 1),
            channels=("a",),
            dtype="int32",
            scales=None,
        )


# real scenes


@pytest.mark.skipif(not SCENES.is_dir(), reason="needs shared/data/satellite/scenes")
@pytest.mark.parametrize("name", sorted(each.name for each in SCENES.iterdir()) if SCENES.is_dir() else [])
def test_real_scenes_come_back_as_they_are(tmp_path: Path, name: str) -> None:
    path = SCENES / name
    layout = layout_of(path)
    source = source_of([path], layout)
    pixels = read(source, layout)
    written = save(source, layout, tiles(pixels.values, 512), tmp_path / "out")
    found = again(written, source, layout)
    valid = validity(pixels)
    np.testing.assert_array_equal(validity(found), valid)
    np.testing.assert_array_equal(found.values[:, valid], pixels.values[:, valid])
    with rasterio.open(path) as one, rasterio.open(written) as two:
        assert (two.crs, two.transform, two.dtypes, two.descriptions) == (
            one.crs,
            one.transform,
            one.dtypes,
            one.descriptions,
        )
        assert two.nodata == one.nodata or (math.isnan(two.nodata) and math.isnan(one.nodata))
        np.testing.assert_array_equal(two.read(), one.read())


# the demo's scenes


def test_the_demos_scenes_are_small_labelled_and_the_same_for_a_seed(tmp_path: Path) -> None:
    landscapes(tmp_path / "a", 3)
    paths = sorted((tmp_path / "a").rglob("*.tif"))
    assert sum(path.stat().st_size for path in paths) < 25_000_000
    classes = {path.parent.name for path in (tmp_path / "a" / "train").rglob("*.tif")}
    assert len(classes) == 4
    some = paths[:: len(paths) // 12]
    landscapes(tmp_path / "b", 3)
    for path in some:
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()
    covers = set()
    holes = 0
    for path in (tmp_path / "a" / "train").rglob("*.tif"):
        with (
            rasterio.open(path) as scene,
            rasterio.open(tmp_path / "a" / "masks" / path.relative_to(tmp_path / "a")) as label,
        ):
            assert (scene.crs, scene.transform, scene.shape) == (label.crs, label.transform, label.shape)
            assert scene.crs == "EPSG:32632"
            assert (scene.transform.a, scene.transform.e) == (10, -10)
            assert scene.count == 6
            cover = label.read(1)
            empty = (scene.read() == 0).any(axis=0)
        assert (cover[empty] == 0).all()
        covers |= set(np.unique(cover))
        holes += bool(empty.any())
        number = sorted(classes).index(path.parent.name) + 1
        counts = np.bincount(cover[cover > 0], minlength=5)
        assert counts.argmax() == number
    assert covers == {0, 1, 2, 3, 4}
    assert holes > 20
