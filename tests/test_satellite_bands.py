"""Bands of satellite scenes: what they are called, how they are asked for, and files of one band put together."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maectl.adapter import Files, Reject, Source

pytest.importorskip("rasterio")

import rasterio
from affine import Affine

from maectl_satellite import Satellite
from maectl_satellite.bands import SENSORS, Named, Unfit, centre_of, chosen, common, names, natural, order, plain
from maectl_satellite.filenames import baseline, label_word, product, sensor_of, side, token
from maectl_satellite.layout import Layout

S2 = tuple(SENSORS["sentinel2"])


def raster(path: Path, count: int = 1, dtype: str = "uint16", size: tuple[int, int] = (40, 48), **about: Any) -> Path:
    """A small GeoTIFF whose band b holds b · 100 + row, with descriptions, tags and a place on the ground."""
    metres, origin, crs = about.pop("metres", 10.0), about.pop("origin", (500_000, 4_000_000)), "EPSG:32632"
    described, tags, colours = about.pop("described", None), about.pop("tags", {}), about.pop("colours", None)
    scales, base = about.pop("scales", None), about.pop("base", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"crs": crs, "transform": Affine(metres, 0, origin[0], 0, -metres, origin[1]), "driver": "GTiff"} | about
    with rasterio.open(path, "w", height=size[0], width=size[1], count=count, dtype=dtype, **about) as out:
        for band in range(1, count + 1):
            rows = np.arange(size[0])[:, None] % 50 + np.zeros(size)
            out.write((base + band * 100 + rows).clip(0, 255 if dtype == "uint8" else None).astype(dtype), band)
            out.update_tags(band, **tags.get(band, {}))
        if described:
            out.descriptions = described
        if colours:
            out.colorinterp = colours
        if scales:
            out.scales, out.offsets = scales
    return path


def scanned(folder: Path, only: Any = None, **options: Any) -> list[Source | Reject]:
    return list(Satellite(**options).scan(Files(folder, only=only)))


def sources(folder: Path, **options: Any) -> list[Source]:
    found = scanned(folder, **options)
    assert all(isinstance(each, Source) for each in found), found
    return [each for each in found if isinstance(each, Source)]


def numbers(source: Source) -> list[int]:
    return [band.number for band in Layout.load(source.key).bands]


def test_spellings_of_a_band_are_one():
    assert {plain(name) for name in ("B4", "b04", "Band 4", "band_4", "B4 (665 nm)", "band 4 reflectance")} == {"b4"}
    assert plain("B8A") == "b8a" != plain("B8")
    assert common("Red Edge") == "rededge1"
    assert common("swir16") == common("SWIR-1") == "swir1"


@pytest.mark.parametrize(
    ("text", "unit", "nanometres"),
    [
        ("665", "", 665), ("0.665", "", 665), ("665 nm", "", 665), ("0.665um", "", 665), ("0.665", "Micrometers", 665),
        ("665.5", "Nanometers", 665.5), ("B4 (664.6 nm)", "", 664.6), ("red", "", None), ("-5", "", None),
        ("nan", "", None), ("band 4", "", None),
    ],
)  # fmt: skip
def test_wavelengths_are_read_in_any_unit(text: str, unit: str, nanometres: float | None):
    assert centre_of(text, unit) == (None if nanometres is None else pytest.approx(nanometres))


def test_bands_are_called_by_description_then_colour_then_place():
    assert names(["NIR", "", ""], ["undefined", "red", "undefined"]) == ["NIR", "red", "band 3"]
    assert names(["", "", ""], ["gray", "undefined", "undefined"]) == ["band 1", "band 2", "band 3"]
    doubled = names(["x", "x", "y"], ["gray", "undefined", "undefined"])
    assert doubled == ["x (band 1)", "x (band 2)", "y"]


def test_the_tables_of_sensors_rise_in_wavelength_and_name_each_colour_once():
    for table in SENSORS.values():
        colours = [colour for _, colour in table.values()]
        assert len(set(colours)) == len(colours)
        visible = [
            table[name][0] for name in table if table[name][1] in ("blue", "green", "red", "nir", "swir1", "swir2")
        ]
        assert visible == sorted(visible)
        assert all(400 < centre < 13_000 for centre, _ in table.values())


def _asked(channels: Any, described: list[str], sensor: str = "", centres: Any = None) -> list[int]:
    centres = centres or [None] * len(described)
    bands = [
        Named(name or f"band {i}", bool(name), c) for i, (name, c) in enumerate(zip(described, centres, strict=True), 1)
    ]
    return chosen(channels, bands, sensor)[0]


def test_a_name_is_found_as_it_stands_in_any_spelling_and_as_a_common_name():
    assert _asked(("B4", "b03", "band 2", "B8A"), list(S2)) == [3, 2, 1, 8]
    assert _asked(("red", "nir", "swir2"), list(S2), "sentinel2") == [3, 7, 12]
    assert _asked(("red", "nir"), ["B1", "B2", "B3", "B4"], "landsat-tm") == [2, 3]
    assert _asked(("red", "nir"), ["B1", "B2", "B3", "B4", "B5"], "landsat-oli") == [3, 4]
    assert _asked(("nir", "red"), ["Blue", "GREEN", "Red", "NIR"]) == [3, 2]
    # what stands there goes before what it could mean
    assert _asked(("b4", "B4"), ["B4", "b4"]) == [1, 0]
    assert _asked(("4",), ["4", "3", "2", "1"]) == [0]


def test_a_wavelength_is_the_nearest_centre_within_20_nm_or_5_percent():
    assert _asked(("665nm", "0.49 um", "842 nm"), list(S2), "sentinel2") == [3, 1, 7]
    assert _asked(("700nm",), ["a", "b", "c"], "", [650.0, 695.0, 1000.0]) == [1]
    assert _asked(("1050nm",), ["a"], "", [1000.0]) == [0]  # 5 %
    for far in ("640nm", "560nm"):
        with pytest.raises(Unfit):
            _asked((far,), ["a"], "", [600.0])
    with pytest.raises(Unfit, match="this run wants band 665nm"):
        _asked(("665nm",), ["B4"])  # no table, no centre


def test_numbers_count_all_bands_from_one_and_never_take_alpha():
    assert _asked(("3", "1"), ["", "", ""]) == [2, 0]
    bands = [Named("red", True), Named("alpha", False, alpha=True), Named("nir", True)]
    assert chosen(("3",), bands, "")[0] == [2]
    assert chosen("auto", bands, "") == ([0, 2], ("red", "nir"))
    for number in ("2", "0", "4", "-1"):
        with pytest.raises(Unfit):
            chosen((number,), bands, "")


def test_bands_without_names_never_match_silently_where_counts_differ():
    three = ("band 1", "band 2", "band 3")
    assert _asked(three, ["", "", ""]) == [0, 1, 2]
    with pytest.raises(Unfit, match=r"has bands band 1, band 2, band 3, band 4; .*told by number"):
        _asked(three, ["", "", "", ""])
    with pytest.raises(Unfit):
        _asked(("band 2", "band 1", "band 3"), ["", "", ""])
    with pytest.raises(Unfit):
        _asked(("B1",), ["", "", ""])  # "band 1" is a place there, not the band B1


def test_what_a_file_lacks_is_told_with_at_most_eight_names():
    with pytest.raises(Unfit) as told:
        _asked(("red", "x"), [f"c{i}" for i in range(200)])
    assert str(told.value) == "has bands c0, c1, c2, c3, c4, c5, c6, c7 and 192 more; this run wants bands red, x"
    with pytest.raises(Unfit, match="has bands a, b; this run wants 3 bands"):
        _asked(3, ["a", "b"])


@pytest.mark.parametrize(
    ("stem", "name", "rest"),
    [
        ("T30UXC_20200101T110000_B02", "B2", "T30UXC_20200101T110000_*"),
        ("T30UXC_20200101T110000_B8A_20m", "B8A", "T30UXC_20200101T110000_*"),
        ("LT52240631988227CUB02_B1", "B1", "LT52240631988227CUB02_*"),
        ("LC08_L2SP_224063_20200101_20200201_02_T1_SR_B4", "B4", "LC08_L2SP_224063_20200101_20200201_02_T1_*"),
        ("scene.band3", "B3", "scene.*"), ("x_Band_12", "B12", "x_*"), ("x_VV", "VV", "x_*"), ("x_red", "red", "x_*"),
        ("s1a-iw-grd-vv-20200101t000000-001", "VV", "s1a-iw-grd-*-20200101t000000"),
        ("s1a-iw-grd-vh-20200101t000000-002", "VH", "s1a-iw-grd-*-20200101t000000"),
        ("B03", "B3", "*"), ("blue", "blue", "*"),
        ("B1_site_B02", "B2", "B1_site_*"),
    ],
)  # fmt: skip
def test_file_names_speak_of_a_band(stem: str, name: str, rest: str):
    found = token(stem)
    assert found is not None
    assert (found.name, found.rest) == (name, rest)


@pytest.mark.parametrize("stem", ["tile_1", "S2B_20200101", "harbor91", "redwood_3", "B", "abcB02", "x_B02abc"])
def test_other_file_names_do_not(stem: str):
    assert token(stem) is None


def test_bands_have_an_order():
    shuffled = list(S2)
    random.Random(3).shuffle(shuffled)
    assert order(shuffled) == list(S2)
    assert order(["VH", "VV"]) == ["VV", "VH"]
    assert order(["swir2", "nir", "red", "blue", "green"]) == ["blue", "green", "red", "nir", "swir2"]
    assert sorted(["x10", "x9", "x9a"], key=natural) == ["x9", "x9a", "x10"]


@pytest.mark.parametrize(
    ("path", "sensor", "place"),
    [
        ("S2A_MSIL1C_20200101T110000_N0208_R094_T30UXC_20200101T120000.tif", "sentinel2", "T30UXC"),
        ("T30UXC_20200101T110000_B02.jp2", "sentinel2", "T30UXC"),
        ("LT52240631988227CUB02_B1.TIF", "landsat-tm", "224/063"),
        ("LE70220491999322EDC01_stack.gtif", "landsat-tm", "022/049"),
        ("LC08_L1TP_224063_20200101_20200201_01_T1_B4.TIF", "landsat-oli", "224/063"),
        ("LC09_L2SP_224063_20220101_20220201_02_T1_SR_B4.TIF", "landsat-oli", "224/063"),
        ("S1A_IW_GRDH_1SDV_20200101T055000_20200101T055025_030000_036F2E_1234.tif", "sentinel1",
         "S1A-IW-GRDH-1SDV-20200101T055000"),
        ("harbor91.tif", "", ""), ("LC8.tif", "", ""), ("T99AAA.tif", "", ""),
    ],
)  # fmt: skip
def test_instruments_and_places_are_known_by_file_names(path: str, sensor: str, place: str):
    assert sensor_of(path, "", ()) == sensor
    assert product(path) == place


def test_instruments_are_known_by_tags_and_bands():
    assert sensor_of("x.tif", "LANDSAT_8 OLI_TIRS", ()) == "landsat-oli"
    assert sensor_of("x.tif", "Landsat5 TM", ()) == "landsat-tm"
    assert sensor_of("x.tif", "Sentinel-2A", ()) == "sentinel2"
    assert sensor_of("x.tif", "", S2) == sensor_of("x.tif", "", ("B02", "B03", "B04", "B8A")) == "sentinel2"
    assert sensor_of("x.tif", "", ("B1", "B2", "B3", "B4", "B5", "B6", "B7")) == ""  # Landsat's, or its
    assert sensor_of("x.tif", "", ("TCI_R", "B2", "B3", "B4", "B8A")) == ""
    assert sensor_of("x.tif", "", ("VV", "VH")) == "sentinel1"


def test_baselines_are_read_of_sentinel_2_alone():
    assert baseline("S2A_MSIL2A_20220301T110000_N0400_R094_T30UXC_20220301T120000.SAFE/x.jp2") == 400
    assert baseline("S2A_MSIL2A_20200301T110000_N0214_R094_T30UXC_20200301T120000.tif") == 214
    assert baseline("survey_N0400_x.tif") is None


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("Spain_7370579_LabelHand.tif", "label"), ("masks/X.tif", "masks"), ("training_data.gtif", "training"),
        ("a/annotations/1.tif", "annotations"), ("img_GT.tif", "gt"), ("groundtruth3.tif", "groundtruth"),
        ("ground_truth/1.tif", "ground truth"), ("tile1mask.tif", "mask"), ("TargetMap.tif", "target"),
        ("Spain_S2Hand.tif", None), ("unmasked.tif", None), ("labelled/1.tif", None),
        ("masks/test/water/1.tif", "masks"), ("targets/a/1.tif", None),
        ("training/1.tif", None), ("height.tif", None),
    ],
)  # fmt: skip
def test_label_rasters_are_known_by_whole_words(path: str, word: str | None):
    assert label_word(path) == word


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("R20m/T30UXC_20200101T110000_SCL_20m.jp2", "SCL"), ("T30UXC_20200101T110000_TCI.jp2", "TCI"),
        ("QI_DATA/MSK_CLOUDS_B00.jp2", "QI_DATA"), ("MSK_CLDPRB_20m.jp2", "MSK"),
        ("LC08_L2SP_224063_20200101_20200201_02_T1_QA_PIXEL.TIF", "QA_PIXEL"),
        ("LC08_L2SP_224063_20200101_20200201_02_T1_ST_ATRAN.TIF", "ST_ATRAN"),
        ("LC08_L2SP_224063_20200101_20200201_02_T1_SR_QA_AEROSOL.TIF", "SR_QA_AEROSOL"),
        ("LC08_L2SP_224063_20200101_20200201_02_T1_SR_B4.TIF", None), ("T30UXC_20200101T110000_B02.jp2", None),
        ("city_ANG.tif", None), ("x_SCL.tif", None),
    ],
)  # fmt: skip
def test_side_files_of_products_are_no_bands(path: str, word: str | None):
    assert side(path) == word


def test_files_of_one_band_make_one_scene_whatever_their_order(tmp_path):
    """100 shuffles of names and of the order they are written in; each band holds 100 times its number."""
    for seed in range(100):
        rng = random.Random(seed)
        picked = rng.sample(S2, rng.randint(2, 13))
        wanted = [name for name in S2 if name in picked]
        folder = tmp_path / str(seed)
        style = rng.choice(["s_B{:0>2}.tif", "s_B{}.TIF", "s.band{}.tif", "b{}.tif", "T30UXC_2020_B{:0>2}_10m.tif"])
        for name in picked:
            number = name[1:-1].zfill(1) + "A" if name == "B8A" else name[1:]
            raster(folder / style.format(number), size=(4, 4), base=100 * S2.index(name))
        (source,) = sources(folder)
        assert source.channels == tuple(wanted)
        assert len(source.paths) == len(wanted)
        pixels = Satellite().read(source)
        assert pixels.values[:, 0, 0].tolist() == [100 + 100 * S2.index(name) for name in wanted]


def test_several_scenes_in_one_folder_stay_apart_and_a_band_alone_stays_alone(tmp_path):
    for scene in ("a", "b"):
        for band in (1, 2):
            raster(tmp_path / f"{scene}_B{band}.tif")
    raster(tmp_path / "c_B1.tif")
    raster(tmp_path / "d_B1.tif", count=3)
    found = {source.paths: source.channels for source in sources(tmp_path)}
    assert found == {
        ("a_B1.tif", "a_B2.tif"): ("B1", "B2"),
        ("b_B1.tif", "b_B2.tif"): ("B1", "B2"),
        ("c_B1.tif",): ("band 1",),
        ("d_B1.tif",): ("band 1", "band 2", "band 3"),
    }
    assert all(len(source.paths) == 1 for source in sources(tmp_path, join="never"))


def test_folders_of_safe_are_merged_and_bands_of_other_resolutions_lie_where_they_should(tmp_path):
    for name, metres, size in (("B02", 10, (60, 72)), ("B05", 20, (30, 36)), ("B01", 60, (10, 12))):
        raster(tmp_path / f"IMG_DATA/R{metres}m/T30UXC_2020_{name}_{metres}m.tif", metres=float(metres), size=size)
    raster(tmp_path / "IMG_DATA/R20m/T30UXC_2020_B02_20m.tif", metres=20.0, size=(30, 36))
    raster(tmp_path / "IMG_DATA/R20m/T30UXC_2020_SCL_20m.tif", metres=20.0, size=(30, 36), dtype="uint8")
    reject, source = scanned(tmp_path)
    assert isinstance(reject, Reject)
    assert "SCL, not a band of its scene" in reject.reason
    assert isinstance(source, Source)
    assert (source.channels, source.shape, source.spacing) == (("B1", "B2", "B5"), (3, 60, 72), (10, 10))
    assert source.notes == ("copies of bands in other resolutions are left out",)
    layout = Layout.load(source.key)
    assert [band.rows for band in layout.bands] == [(pytest.approx(1 / 6), 0), (1, 0), (0.5, 0)]
    assert layout.transform == (10, 0, 500_000, 0, -10, 4_000_000)
    # at 20 m the copy in 20 m is taken, at 30 m a grid is made
    *_, coarse = scanned(tmp_path, resolution=20)
    assert isinstance(coarse, Source)
    assert (coarse.shape, coarse.spacing) == ((3, 30, 36), (20, 20))
    assert any("R20m" in path and "B02" in path for path in coarse.paths)
    *_, made = scanned(tmp_path, resolution=30)
    assert isinstance(made, Source)
    assert made.spacing == pytest.approx((30, 30))


def test_files_that_cover_other_ground_stay_alone_and_say_why(tmp_path):
    raster(tmp_path / "a_B1.tif")
    raster(tmp_path / "a_B2.tif", origin=(500_004, 4_000_000))  # 0.4 of a pixel
    (shifted,) = sources(tmp_path)
    assert shifted.channels == ("B1", "B2")
    assert [band.columns for band in Layout.load(shifted.key).bands] == [(1, 0), (1, -0.4)]
    raster(tmp_path / "a_B2.tif", origin=(500_006, 4_000_000))
    assert {source.notes for source in sources(tmp_path)} == {
        ("its bands are not put together: they cover different ground",)
    }
    raster(tmp_path / "a_B2.tif", crs="EPSG:32633")
    assert {source.notes for source in sources(tmp_path)} == {
        ("its bands are not put together: their coordinate systems differ",)
    }
    raster(tmp_path / "a_B2.tif")
    raster(tmp_path / "a_b2.tiff")
    assert all("twice" in source.notes[0] for source in sources(tmp_path))


def test_bands_of_a_turned_scene_lie_where_they_should(tmp_path):
    turned = Affine.translation(500_000, 4_000_000) @ Affine.rotation(30)
    raster(tmp_path / "a_B1.tif", transform=turned @ Affine.scale(20, -20), size=(30, 36))
    raster(tmp_path / "a_B2.tif", transform=turned @ Affine.scale(10, -10), size=(60, 72))
    (source,) = sources(tmp_path)
    assert source.spacing == pytest.approx((10, 10))
    first, second = Layout.load(source.key).bands
    assert (first.rows, first.columns) == (pytest.approx((0.5, 0)), pytest.approx((0.5, 0)))
    assert second.own_grid
    raster(tmp_path / "a_B2.tif", size=(60, 72))  # not turned
    assert all("different ground" in source.notes[0] for source in sources(tmp_path))


def test_all_sources_of_a_run_have_the_channels_asked_for(tmp_path):
    raster(tmp_path / "all.tif", 13, described=S2)
    raster(tmp_path / "four.tif", 4, described=("Blue", "Green", "Red", "NIR"))
    raster(tmp_path / "none.tif", 4)
    asked = ("red", "nir")
    found = {each.paths[0]: each for each in scanned(tmp_path, channels=asked)}
    assert isinstance(found["none.tif"], Reject)
    assert "this run wants bands red, nir" in found["none.tif"].reason
    for name, where in (("all.tif", [4, 8]), ("four.tif", [3, 4])):
        source = found[name]
        assert isinstance(source, Source)
        assert source.channels == asked
        assert numbers(source) == where
    assert [numbers(source) for source in sources(tmp_path, channels=("2", "1"))] == [[2, 1]] * 3
    assert len([each for each in scanned(tmp_path, channels=4) if isinstance(each, Source)]) == 2


def test_wavelengths_in_tags_are_asked_for(tmp_path):
    tags = {1: {"wavelength": "0.49", "wavelength_units": "Micrometers"}, 2: {"wavelength": "665"}, 3: {}}
    raster(tmp_path / "a.tif", 3, tags=tags, described=("x", "y", "z (842 nm)"))
    (source,) = sources(tmp_path, channels=("665nm", "840nm", "0.5um"))
    assert numbers(source) == [2, 3, 1]


def test_alpha_is_never_a_channel(tmp_path):
    from rasterio.enums import ColorInterp as Colour

    colours = (Colour.red, Colour.green, Colour.blue, Colour.alpha)
    raster(tmp_path / "a.tif", 4, "uint8", colours=colours, photometric="RGB", alpha="YES")
    (source,) = sources(tmp_path)
    assert source.channels == ("red", "green", "blue")
    assert "mask: alpha" in source.facts
    assert isinstance(scanned(tmp_path, channels=("4",))[0], Reject)


def test_the_landsat_scene_of_real_band_files(real_data):
    (source,) = sources(real_data / "satellite" / "landsat5_band_files")
    assert source.channels == ("B1", "B2", "B3", "B4", "B5", "B6", "B7")
    assert (source.shape, source.dtype, source.group, source.spacing) == ((7, 310, 287), "uint8", "224/063", (30, 30))
    (asked,) = sources(real_data / "satellite" / "landsat5_band_files", channels=("nir", "660nm", "1"))
    assert [Layout.load(asked.key).bands[place].file for place in range(3)] == [3, 2, 0]
