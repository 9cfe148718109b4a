"""Satellite rasters scanned: headers to sources, what is rejected and why, lengths on the ground, groups, options."""

import json
import math
import pickle
import resource
import struct
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from maectl.adapter import Files, Reject, Source

pytest.importorskip("rasterio")

import rasterio
from affine import Affine
from rasterio.crs import CRS

from maectl_satellite import Satellite
from maectl_satellite.ground import spacing
from maectl_satellite.groups import Place, grouped
from maectl_satellite.header import Raster, header
from maectl_satellite.layout import Layout
from maectl_satellite.tiff import directory

UTM = {"crs": "EPSG:32632", "transform": Affine(10, 0, 500_000, 0, -10, 4_000_000)}
S2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")


def raster(path: Path, values: Any, **about: Any) -> Path:
    """A raster of values [C, H, W], on the ground unless ``crs`` and ``transform`` say otherwise."""
    values = np.asarray(values)
    described, scales, tags = about.pop("described", None), about.pop("scales", None), about.pop("tags", {})
    count, rows, columns = values.shape
    about = {"driver": "GTiff", "dtype": values.dtype.name, **UTM} | about
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", count=count, height=rows, width=columns, **about) as out:
        out.write(values)
        out.update_tags(**tags)
        if described:
            out.descriptions = described
        if scales:
            out.scales, out.offsets = ([each] * count for each in scales)
    return path


def zeros(count: int = 1, dtype: str = "uint16", rows: int = 6, columns: int = 8) -> np.ndarray:
    return np.zeros((count, rows, columns), dtype)


def scanned(folder: Path, **options: Any) -> list[Source | Reject]:
    return list(Satellite(**options).scan(Files(folder)))


def source_of(path: Path, **options: Any) -> Source:
    (found,) = Satellite(**options).scan(Files(path))
    assert isinstance(found, Source), found
    return found


def reason_of(path: Path, **options: Any) -> str:
    (found,) = Satellite(**options).scan(Files(path))
    assert isinstance(found, Reject), found
    assert "\n" not in found.reason
    assert str(path.parent) not in found.reason
    return found.reason


# ---------------------------------------------------------------- files


def test_files_are_taken_by_content_whatever_their_suffix(tmp_path):
    raster(tmp_path / "a.tif", zeros())
    (tmp_path / "a.tif").rename(tmp_path / "a.data")
    raster(tmp_path / "big.tif", zeros(), BIGTIFF="YES")
    raster(tmp_path / "b.jp2", zeros(rows=64, columns=64), driver="JP2OpenJPEG")
    (tmp_path / "notes.txt").write_text("What a VRT begins with: <VRTDataset>")
    (tmp_path / "page.tif").write_text("<!DOCTYPE html>")
    (tmp_path / "empty.gtif").touch()
    found = scanned(tmp_path)
    assert {each.paths[0]: each.reason for each in found if isinstance(each, Reject)} == {
        "empty.gtif": "empty file",
        "page.tif": "none of TIFF, JPEG 2000, VRT in spite of its suffix .tif",
    }
    assert [each.paths[0] for each in found if isinstance(each, Source)] == ["a.data", "b.jp2", "big.tif"]


def test_dicom_that_begins_like_a_tiff_is_not_ours(tmp_path):
    path = raster(tmp_path / "a.dcm", zeros())
    path.write_bytes(path.read_bytes()[:128].ljust(128, b"\0") + b"DICM" + path.read_bytes()[132:])
    assert scanned(tmp_path) == []
    assert Satellite.claim(str(path), path.read_bytes()[:4096]) == 0


def test_sidecar_overviews_and_masks_are_no_images(tmp_path):
    path = raster(tmp_path / "a.tif", zeros(rows=600, columns=600))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as out:
        out.build_overviews([2])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as out:
        out.write_mask(np.ones((600, 600), np.uint8))
    assert {each.name for each in tmp_path.iterdir()} >= {"a.tif", "a.tif.ovr", "a.tif.msk"}
    (found,) = scanned(tmp_path)
    assert isinstance(found, Source)
    assert {"mask: internal or sidecar", "overviews: yes"} <= set(found.facts)


@pytest.mark.parametrize(
    ("about", "claim"),
    [
        ({}, 2), ({"transform": None}, 2), ({"crs": None}, 2), ({"crs": None, "transform": None}, 1),
        ({"crs": None, "transform": None, "count": 5}, 2), ({"BIGTIFF": "YES"}, 2), ({"ENDIANNESS": "BIG"}, 2),
        ({"BIGTIFF": "YES", "ENDIANNESS": "BIG", "crs": None, "transform": None, "count": 4}, 1),
        ({"driver": "JP2OpenJPEG", "rows": 64}, 2),
    ],
)  # fmt: skip
def test_claims_are_sure_of_georeferenced_files_and_of_many_bands(tmp_path, about: dict[str, Any], claim: int):
    count, rows = about.pop("count", 1), about.pop("rows", 6)
    suffix = "jp2" if "driver" in about else "tif"
    path = raster(tmp_path / f"a.{suffix}", zeros(count, rows=rows, columns=rows), **about)
    data = path.read_bytes()
    assert Satellite.claim(str(path), data[:4096]) == claim
    assert Satellite.claim(str(path), b"not a TIFF") == 0


def test_a_directory_beyond_the_head_is_read_from_the_file(tmp_path):
    path = raster(tmp_path / "a.tif", zeros(rows=200, columns=200))
    with rasterio.open(path, "r+") as out:  # libtiff writes a directory that grew at the end
        out.update_tags(text="x" * 9000)
    data = path.read_bytes()
    assert struct.unpack("<L", data[4:8])[0] > 4096
    assert Satellite.claim(str(path), data[:4096]) == 2


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), mark=st.sampled_from([b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"]))
def test_no_bytes_upset_the_reader_of_directories(data: bytes, mark: bytes):
    import io

    found = directory(io.BytesIO(mark + data))
    assert found is None or found.samples >= 0
    assert Satellite.claim("no-such-file", mark + data) in (0, 1, 2)


# ---------------------------------------------------------------- what cannot be an image


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_values_are_refused(tmp_path, dtype: str):
    values = zeros(dtype="complex64" if dtype == "complex_int16" else dtype)
    assert "amplitude or power first" in reason_of(raster(tmp_path / "a.tif", values, dtype=dtype))


def test_palettes_are_refused_unless_labels_are_kept(tmp_path):
    path = raster(tmp_path / "a.tif", zeros(dtype="uint8"), photometric="palette")
    with rasterio.open(path, "r+") as out:
        out.write_colormap(1, {0: (255, 0, 0, 255), 1: (0, 255, 0, 255)})
    assert reason_of(path) == "a palette of colours: a class map or a picture, not measured values"
    assert source_of(path, labels="keep").dtype == "uint8"


def test_a_truncated_file_is_refused_in_one_line_without_folders(tmp_path):
    path = raster(tmp_path / "a.tif", zeros())
    path.write_bytes(path.read_bytes()[:60])
    assert reason_of(path).startswith("damaged, or not readable by GDAL: a.tif: ")


def test_overviews_elsewhere_are_never_opened(tmp_path):
    path = raster(tmp_path / "a.tif", zeros())
    aux = "<PAMDataset><Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>/etc/passwd</MDI></Metadata></PAMDataset>"
    (tmp_path / "a.tif.aux.xml").write_text(aux)
    assert "overviews elsewhere" in reason_of(path)


def test_label_rasters_are_rejected_unless_kept_or_named_themselves(tmp_path):
    path = raster(tmp_path / "masks/a.tif", zeros(dtype="uint8"))
    raster(tmp_path / "b_label.tif", zeros(dtype="int16"))
    raster(tmp_path / "masks/height.tif", zeros(dtype="float32"))
    raster(tmp_path / "masks/three.tif", zeros(3))
    found = scanned(tmp_path)
    reasons = {each.paths[0]: each.reason for each in found if isinstance(each, Reject)}
    assert reasons == {
        "b_label.tif": "its name says label raster (label): --set data.options.labels=keep trains on it",
        "masks/a.tif": "its name says label raster (masks): --set data.options.labels=keep trains on it",
        "masks/height.tif": "its name says label raster (masks): --set data.options.labels=keep trains on it",
    }
    assert all(isinstance(each, Source) for each in scanned(tmp_path, labels="keep"))
    assert isinstance(next(iter(Satellite().scan(Files(tmp_path, only=["masks/a.tif"])))), Source)
    assert source_of(path).shape == (1, 6, 8)


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("stored", "dtype", "unit"),
    [
        ("uint8", "uint8", "0..255"), ("int8", "int16", "DN"), ("uint16", "uint16", "DN"), ("int16", "int16", "DN"),
        ("uint32", "float32", "DN"), ("int32", "float32", "DN"), ("uint64", "float32", "DN"),
        ("int64", "float32", "DN"), ("float32", "float32", "DN"), ("float64", "float32", "DN"),
    ],
)  # fmt: skip
def test_values_have_the_dtype_that_holds_them(tmp_path, stored: str, dtype: str, unit: str):
    source = source_of(raster(tmp_path / "a.tif", zeros(2, stored)))
    assert (source.dtype, source.unit, source.shape) == (dtype, unit, (2, 6, 8))
    assert source.axes == ("row", "column")
    layout = Layout.load(source.key)
    assert (layout.stored, layout.shape, layout.plain) == (stored, (6, 8), True)
    assert f"bands: 2 of {stored}" in source.facts
    assert any("exact up to" in note for note in source.notes) == (stored[-2:] in ("32", "64") and "int" in stored)


def test_scale_and_offset_are_options_and_tags_are_told_when_unused(tmp_path):
    path = raster(tmp_path / "a.tif", zeros(2) + 3000, scales=(0.0001, -0.1))
    told = "the file says scale 0.0001, offset -0.1: values are used as stored (--set data.options.scale=tags)"
    assert source_of(path).notes == (told,)
    for options, value in (({"scale": "tags"}, 0.2), ({"scale": 0.001, "offset": 1}, 4), ({"offset": 1}, 3001)):
        source = source_of(path, **options)
        assert source.notes == () or "scale" not in options
        assert source.dtype == "float32"
        assert source.unit == ("reflectance" if "scale" in options else "DN")
        assert Satellite(**options).read(source).values[0, 0, 0] == pytest.approx(value, rel=1e-6)
    assert source_of(path, scale=0.1, unit="K").unit == "K"


@pytest.mark.parametrize(
    ("value", "dtype", "option", "turned"),
    [
        (-12.5, "float32", "auto", ""), (0.04, "float32", "auto", "power"), (200, "uint16", "auto", "amplitude"),
        (-5, "int16", "auto", ""), (-12.5, "float32", "power", "power"), (9, "uint16", "amplitude", "amplitude"),
    ],
)  # fmt: skip
def test_decibels_are_made_of_what_is_none_yet(tmp_path, value: float, dtype: str, option: str, turned: str):
    values = zeros(2, dtype, 300, 300) + np.dtype(dtype).type(value)
    source = source_of(raster(tmp_path / "a.tif", values, described=("VV", "VH")), decibel=option)
    assert (Layout.load(source.key).decibel, source.unit) == (turned, "dB")
    assert "sensor: sentinel1" in source.facts
    if turned:
        factor = {"power": 10, "amplitude": 20}[turned]
        if value > 0:
            read = Satellite(decibel=option).read(source).values
            assert read[0, 0, 0] == pytest.approx(factor * math.log10(value), rel=1e-5)


def test_values_under_nodata_say_nothing_of_decibels(tmp_path):
    values = zeros(1, "float32", 300, 300) + 0.1
    values[:, :200] = -9999
    path = raster(tmp_path / "a.tif", values.astype("float32"), nodata=-9999)
    assert Layout.load(source_of(path, decibel="auto").key).decibel == "power"


def test_nan_without_a_tag_says_nothing_of_decibels(tmp_path):
    values = zeros(1, "float32", 300, 300) - 12
    values[:, ::2] = np.nan
    assert Layout.load(source_of(raster(tmp_path / "a.tif", values), decibel="auto").key).decibel == ""


N0400 = "S2B_MSIL1C_20220301T110000_N0400_R094_T30UXC_20220301T120000"


def test_the_offset_of_sentinel_2_is_applied_where_the_name_proves_it(tmp_path):
    path = raster(tmp_path / f"{N0400}.tif", zeros(13) + 3000, described=S2)
    source = source_of(path)
    assert source.notes == ("Sentinel-2 baseline 04.00: the offset of -1000 is applied",)
    assert (source.dtype, source.unit, source.group) == ("float32", "DN", "T30UXC")
    assert (Satellite().read(source).values == 2000).all()
    assert Satellite(scale=0.0001).read(source_of(path, scale=0.0001)).values[0, 0, 0] == pytest.approx(0.2)
    assert source_of(path, s2_offset=0).dtype == "uint16"
    # an offset that is given, by the user or by tags, is the whole of it
    assert (Satellite().read(source_of(path, offset=-1)).values == 2999).all()
    path = raster(tmp_path / f"{N0400}.tif", zeros(13) + 3000, described=S2, scales=(0.0001, -0.1))
    assert Satellite().read(source_of(path, scale="tags")).values[0, 0, 0] == pytest.approx(0.2)
    path = raster(tmp_path / f"{N0400}.tif", zeros(13) + 3000, described=S2, scales=(0.0001, 0))
    assert Satellite().read(source_of(path, scale="tags")).values[0, 0, 0] == pytest.approx(0.2)
    old = raster(tmp_path / f"{N0400.replace('N0400', 'N0301')}.tif", zeros(13) + 3000, described=S2)
    assert (source_of(old).dtype, source_of(old).notes) == ("uint16", ())


def test_the_offset_is_suspected_where_no_value_lies_below_1000(tmp_path):
    values = zeros(13, rows=300, columns=300) + 1500
    values[3, 150:, 150:] = 1023
    values[:, :10] = 0  # nodata says nothing
    path = raster(tmp_path / "a.tif", values, described=S2, nodata=0)
    advice = "probably not corrected for the offset of -1000 (--set data.options.s2_offset=-1000)"
    assert source_of(path).notes == (f"lowest value 1,023: {advice}",)
    assert source_of(path).dtype == "uint16"
    told = source_of(path, s2_offset=-1000)
    assert (told.notes, told.dtype) == ((), "float32")
    assert Satellite().read(told).values.max() == 500
    values[3, 150, 150] = 900
    assert source_of(raster(tmp_path / "a.tif", values, described=S2, nodata=0)).notes == ()
    other = raster(tmp_path / "b.tif", zeros(3) + 1500)  # nothing says Sentinel-2
    assert source_of(other).notes == ()


def test_what_a_user_should_know_is_noted(tmp_path):
    wide = raster(tmp_path / "wide.tif", zeros(1, "uint8", 20, 5000), tiled=False, blockysize=2)
    assert source_of(wide).notes == ("stored in strips: windows are slow without a store",)
    nowhere = raster(tmp_path / "nowhere.tif", zeros(), crs=None, transform=None)
    assert source_of(nowhere).notes == ("no georeference: how large its pixels are is unknown",)
    assert source_of(nowhere).spacing is None
    unknown = raster(tmp_path / "unknown.tif", zeros(), crs=None)
    assert source_of(unknown).notes == ("no coordinate system: how large its pixels are is unknown",)
    points = [rasterio.control.GroundControlPoint(r, c, 10 + c / 100, 50 - r / 100) for r in (0, 5) for c in (0, 7)]
    placed = raster(tmp_path / "gcps.tif", zeros(), crs="EPSG:4326", transform=None, gcps=points)
    assert "ground control points alone" in source_of(placed).notes[0]
    assert source_of(placed).spacing is None
    assert source_of(raster(tmp_path / "fine.tif", zeros(), tiled=True, blockxsize=16, blockysize=16)).notes == ()


def test_facts_say_what_there_is(tmp_path):
    path = raster(
        tmp_path / "a.tif", zeros(3, "uint8", 64, 64), nodata=7, compress="deflate",
        tiled=True, blockxsize=16, blockysize=16,
    )  # fmt: skip
    assert set(source_of(path).facts) == {
        "bands: 3 of uint8", "names: told", "driver: GTiff", "compression: deflate", "blocks: tiles", "crs: EPSG:32632",
        "nodata: 7", "mask: nodata", "overviews: no", "pixels: not below 5 m",
    }  # fmt: skip


def test_a_header_and_a_source_survive_pickling_with_nan_in_them(tmp_path):
    path = raster(tmp_path / "a.tif", zeros(2, "float32"), nodata=float("nan"), described=("VV", "VH"))
    found = header(str(tmp_path), path.name, decibel=True)
    assert isinstance(found, Raster)
    assert math.isnan(found.nodata[0] or 0.0)
    assert repr(pickle.loads(pickle.dumps(found))) == repr(found)
    source = source_of(path)
    assert pickle.loads(pickle.dumps(source)) == source
    assert "nodata: nan" in source.facts
    json.loads(source.key, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert Layout.load(source.key).dump() == source.key


def test_a_scan_in_threads_is_quiet_and_the_same(tmp_path, capfd):
    for number in range(40):
        path = raster(tmp_path / f"{number:02}.tif", zeros(3))
        if number % 4 == 0:
            path.write_bytes(path.read_bytes()[: 40 + number])
    once = scanned(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert all(found == once for found in pool.map(lambda _: scanned(tmp_path), range(16)))
    assert sum(isinstance(each, Reject) for each in once) == 10
    assert capfd.readouterr() == ("", "")


def test_importing_the_package_and_making_the_adapter_does_not_import_rasterio():
    script = "import sys, maectl_satellite; maectl_satellite.Satellite(); sys.exit('rasterio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0}, {"channels": ()}, {"channels": ("a", "a")}, {"scale": 0}, {"scale": float("nan")},
        {"scale": "tag"}, {"scale": "tags", "offset": 1}, {"resolution": -1}, {"nodata": float("nan")},
        {"offset": float("inf")}, {"sensor": "modis"}, {"s2_offset": -999}, {"unit": ""}, {"no_such": 1},
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]):
    with pytest.raises(ValidationError):
        Satellite(**options)


def test_options_survive_json_and_pickling():
    adapter = Satellite(
        channels=("red", "nir"), scale="tags", nodata=0, resolution=10, sensor="sentinel2", s2_offset=-1000, unit="K"
    )
    assert Satellite.model_validate(json.loads(adapter.model_dump_json())) == adapter
    assert pickle.loads(pickle.dumps(adapter)) == adapter
    assert Satellite.resolved(("red", "nir")) == ("red", "nir")


@pytest.mark.parametrize(
    ("facts", "recipe"),
    [
        (["sensor: sentinel2", "bands: 13 of int16"], "sentinel2"),
        (["sensor: sentinel2", "bands: 4 of int16"], "sentinel2"),
        (["sensor: sentinel2", "bands: 3 of uint16", "names: told"], "sentinel2-rgb"),
        (["sensor: sentinel2", "bands: 3 of uint16", "names: none"], "rasters"),
        (["sensor: landsat-tm", "bands: 7 of uint8"], "landsat"),
        (["sensor: landsat-oli", "bands: 11 of uint16"], "landsat"),
        (["sensor: sentinel1", "bands: 2 of float32"], "sentinel1"), (["bands: 224 of int16"], "hyperspectral"),
        (["bands: 3 of uint8", "pixels: below 5 m"], "aerial-rgb"),
        (["bands: 3 of uint8", "pixels: not below 5 m"], "rasters"),
        (["bands: 3 of uint8"], "rasters"), (["bands: 5 of float64"], "rasters"), ([], "rasters"),
    ],
)  # fmt: skip
def test_the_recipe_fits_the_sensor_and_the_bands(facts: list[str], recipe: str):
    from maectl.recipe import shipped

    assert Satellite().suggest(dict.fromkeys([*facts, "driver: GTiff"], 5)) == recipe
    assert recipe in shipped()


def test_the_recipe_follows_what_most_sources_are():
    facts = {"driver: GTiff": 10, "sensor: sentinel2": 2, "bands: 13 of int16": 2, "bands: 5 of float64": 8}
    assert Satellite().suggest(facts) == "rasters"


# ---------------------------------------------------------------- lengths on the ground


def _haversine(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Metres on a sphere between (longitude, latitude) in degrees: within 0.6 % of the ellipsoid."""
    (x, y), (u, v) = (map(math.radians, point) for point in (one, other))
    inside = math.sin((v - y) / 2) ** 2 + math.cos(y) * math.cos(v) * math.sin((u - x) / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(math.sqrt(inside))


def _oracle(crs: str, transform: Affine, shape: tuple[int, int]) -> tuple[float, float]:
    from rasterio.warp import transform as move

    row, column = shape[0] / 2, shape[1] / 2
    ends = [
        transform @ at for at in ((column, row - 0.5), (column, row + 0.5), (column - 0.5, row), (column + 0.5, row))
    ]
    x, y = move(crs, "EPSG:4326", [end[0] for end in ends], [end[1] for end in ends])
    points = list(zip(x, y, strict=True))
    return _haversine(points[0], points[1]), _haversine(points[2], points[3])


@pytest.mark.parametrize(
    ("crs", "transform", "tolerance"),
    [
        ("EPSG:32632", Affine(10, 0, 500_000, 0, -10, 5_000_000), 7e-3),
        ("EPSG:32632", Affine(6, 8, 500_000, 8, -6, 5_000_000), 7e-3),
        ("EPSG:32718", Affine(30, 0, 400_000, 0, -15, 9_000_000), 7e-3),
        ("EPSG:4326", Affine(1e-4, 0, 10, 0, -1e-4, 60), 7e-3), ("EPSG:4326", Affine(1e-3, 0, -70, 0, -2e-3, -2), 7e-3),
        ("EPSG:4326", Affine(8e-5, 6e-5, 10, 6e-5, -8e-5, 45), 7e-3),
        ("EPSG:4807", Affine(1e-4, 0, 3, 0, -1e-4, 54), 7e-3),
        ("EPSG:3857", Affine(10, 0, 1e6, 0, -10, 8e6), 7e-3), ("EPSG:3395", Affine(10, 0, 1e6, 0, -10, 8e6), 7e-3),
        ("EPSG:3857", Affine(0.6, 0, -8e6, 0, -0.6, -5e6), 7e-3),
        ("EPSG:2263", Affine(10, 0, 980_000, 0, -10, 200_000), 7e-3),
        ("EPSG:3035", Affine(100, 0, 4_321_000, 0, -100, 3_210_000), 7e-3),
    ],
)  # fmt: skip
def test_a_pixel_is_as_long_as_on_the_globe(crs: str, transform: Affine, tolerance: float):
    shape = (200, 300)
    found = spacing(CRS.from_user_input(crs).to_wkt(), tuple(transform)[:6], shape)
    assert found == pytest.approx(_oracle(crs, transform, shape), rel=tolerance)


def test_degrees_are_those_of_the_ellipsoid():
    """Lengths of a degree on WGS 84, tabulated by NIMA (TR8350.2): latitude 0, 45, and nearly 90."""
    wkt = CRS.from_epsg(4326).to_wkt()
    for latitude, north, east in ((0, 110_574.3, 111_319.5), (45, 111_131.8, 78_846.8), (60, 111_412.3, 55_800.0)):
        assert spacing(wkt, (1.0, 0, 0, 0, -1.0, latitude + 0.5), (1, 1)) == pytest.approx((north, east), abs=0.2)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("", (10, 0, 0, 0, -10, 0)), ("nonsense", (10, 0, 0, 0, -10, 0)), ("EPSG:32632", None),
        ("EPSG:32632", (0, 0, 0, 0, 0, 0)), ("EPSG:32632", (math.nan, 0, 0, 0, -10, 0)),
        ("EPSG:4326", (1, 0, 0, 0, -1, 400)), ("EPSG:4978", (10, 0, 0, 0, -10, 0)),
        ("EPSG:3857", (1e7, 0, 0, 0, -1e7, 1e9)),
        ('LOCAL_CS["a",UNIT["metre",1]]', (10, 0, 0, 0, -10, 0)),
    ],
)  # fmt: skip
def test_where_lengths_are_unknown_there_are_none(crs: str, transform: Any):
    assert spacing(CRS.from_user_input(crs).to_wkt() if crs.startswith("EPSG") else crs, transform, (10, 10)) is None


# ---------------------------------------------------------------- groups


def test_scenes_of_one_place_are_a_group(tmp_path):
    def at(path: str, x: float, y: float = 4_000_000, crs: str = "EPSG:32632") -> None:
        raster(tmp_path / path, zeros(rows=100, columns=100), crs=crs, transform=Affine(10, 0, x, 0, -10, y))

    at("a.tif", 500_000)
    at("b.tif", 500_490)  # 51 %
    at("c.tif", 501_000)  # 49 % of b, none of a
    at("d.tif", 500_000, crs="EPSG:32633")
    at("T30UXC_20200101.tif", 600_000)
    at("T30UXC_20210101.tif", 700_000)
    at("far.tif", 700_300)
    groups = {source.paths[0]: source.group for source in scanned(tmp_path) if isinstance(source, Source)}
    assert groups["a.tif"] == groups["b.tif"] == "a.tif"
    assert groups["c.tif"] == groups["d.tif"] == ""
    assert groups["T30UXC_20200101.tif"] == groups["T30UXC_20210101.tif"] == groups["far.tif"] == "T30UXC"


def test_a_small_scene_on_the_edge_of_a_large_ones_cell_is_found():
    places = [Place("", "x", (0, -50, 100, 50)), Place("", "x", (-4, 30, 6, 40))]
    assert grouped(places, ["a", "b"]) == grouped(places[::-1], ["a", "b"]) == ["a", "a"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
def test_groups_by_the_grid_are_those_of_all_pairs(seed: int, count: int):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-50, 50, (count, 2))
    side = np.exp(rng.uniform(-1, 4, (count, 2)))
    places = [Place("", "x", (*a, *(a + b))) for a, b in zip(low.tolist(), side, strict=True)]
    together = np.eye(count, dtype=bool)
    for i in range(count):
        for j in range(count):
            overlap = np.minimum(low[i] + side[i], low[j] + side[j]) - np.maximum(low[i], low[j])
            covered = overlap.clip(0).prod() / min(side[i].prod(), side[j].prod())
            together[i, j] |= covered > 0.5
    for _ in range(count):
        together = (together.astype(int) @ together.astype(int)) > 0
    groups = grouped(places, [f"{i:02}" for i in range(count)])
    for i in range(count):
        for j in range(i):
            assert (groups[i] == groups[j] != "") == together[i, j]


@pytest.mark.parametrize(("kind", "count"), [("apart", 100_000), ("in a row", 100_000), ("one place", 20_000)])
def test_groups_of_many_scenes_take_seconds(kind: str, count: int):
    rng = np.random.default_rng(0)
    low = {
        "apart": rng.uniform(0, 1e7, (count, 2)),
        "in a row": np.stack([np.arange(count) * 45.0, np.zeros(count)], axis=1),
        "one place": rng.uniform(0, 30, (count, 2)),
    }[kind]
    places = [Place("", "x", (x, y, x + 100, y + 100)) for x, y in low.tolist()]
    begun = time.perf_counter()
    groups = grouped(places, [str(number) for number in range(count)])
    assert time.perf_counter() - begun < 30
    if kind != "apart":
        assert len(set(groups)) == 1


# ---------------------------------------------------------------- real files


def test_every_real_set_is_scanned_and_labels_are_left_out(real_data):
    found = scanned(real_data / "satellite")
    rejects = {each.paths[0] for each in found if isinstance(each, Reject)}
    assert {path for path in rejects if path.startswith("scenes")} == {
        "scenes/Spain_7370579_LabelHand.tif", "scenes/training_data.gtif",
    }  # fmt: skip
    assert {path.rsplit("/", 1)[0] for path in rejects} == {"scenes", "s2_burned_5band/masks"}
    count = Counter(each.paths[0].split("/")[0] for each in found if isinstance(each, Source))
    assert count == {
        "landsat5_band_files": 1, "s2_burned_5band": 10, "s2_burned_patches32": 152, "scenes": 9, "ucmerced_tif": 20,
    }  # fmt: skip
    by_name = {each.paths[0].split("/")[-1]: each for each in found if isinstance(each, Source)}
    spain = by_name["Spain_7370579_S2Hand.tif"]
    assert (spain.shape, spain.dtype, spain.channels) == ((13, 512, 512), "int16", S2)
    assert spain.spacing == pytest.approx((9.97, 7.88), abs=0.01)
    assert spain.group == by_name["Spain_7370579_S1Hand.tif"].group != ""


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6_000_000_000, 6_000_000_000))


def test_bad_tiffs_end_in_sources_or_reasons_and_say_nothing_on_the_terminal(real_data):
    script = (
        "import sys; from maectl_satellite import Satellite; from maectl.adapter import Files, Reject\n"
        "for folder in sys.argv[1:]:\n"
        "    for each in Satellite(decibel='auto').scan(Files(folder)):\n"
        "        print(each.paths[0], '|', each.reason if isinstance(each, Reject) else each.shape)"
    )
    folders = [str(real_data / "bad" / kind / "tiff") for kind in ("broken", "odd")]
    run = [sys.executable, "-c", script, *folders]
    done = subprocess.run(run, capture_output=True, text=True, timeout=110, preexec_fn=_limit)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert len(lines) == sum(len(list(Path(folder).iterdir())) for folder in folders)
    assert all(told and "/work" not in told for told in lines.values())
    assert "65,535 bands" in lines["libtiff_segfault.tif"]
    assert "CMYK" in lines["flower-separated-planar-08.tif"]
