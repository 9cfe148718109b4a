"""Odd and hostile rasters: what a user may have, and what may not happen with it."""

from pathlib import Path

import numpy as np
import pytest

from maectl.adapter import Files, Reject, Source
from maectl_satellite import Satellite
from maectl_satellite.handles import gdal

PLACE = (10, 0, 500_000, 0, -10, 4_000_000)


def _raster(path: Path, values: np.ndarray, **about: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, rows, columns = values.shape
    given = {"crs": "EPSG:32632", "transform": gdal().Affine(*PLACE), "dtype": values.dtype} | about
    with gdal().open(path, "w", driver="GTiff", count=count, height=rows, width=columns, **given) as target:
        target.write(values)
    return path


def _only(path: Path, **options: object) -> Source | Reject:
    (found,) = Satellite(**options).scan(Files(path))
    return found


def _virtual(path: Path, bands: str, side: int = 40) -> Path:
    path.write_text(f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{bands}</VRTDataset>')
    return path


def _band(number: int, kind: str, inside: str) -> str:
    return f'<VRTRasterBand dataType="{kind}" band="{number}">{inside}</VRTRasterBand>'


@pytest.mark.parametrize("suffix", [".ovr", ".OVR", ".msk"])
def test_a_sidecar_that_is_a_vrt_cannot_bring_in_a_file_from_elsewhere(tmp_path, suffix):
    secret = _raster(tmp_path / "elsewhere" / "secret.tif", np.full((1, 20, 20), 77, np.uint8))
    scene = _raster(tmp_path / "given" / "a.tif", np.ones((1, 40, 40), np.uint8))
    source = f'<SimpleSource><SourceFilename relativeToVRT="0">{secret}</SourceFilename></SimpleSource>'
    _virtual(Path(f"{scene}{suffix}"), _band(1, "Byte", source), side=20)
    found = _only(scene)
    assert isinstance(found, Reject)
    assert found.reason.startswith(f"a.tif{suffix} beside it is no TIFF")


def test_nor_can_a_sidecar_of_a_sidecar_or_of_a_member_of_a_vrt(tmp_path):
    scene = _raster(tmp_path / "a.tif", np.ones((1, 40, 40), np.uint8))
    _raster(tmp_path / "a.tif.ovr", np.ones((1, 20, 20), np.uint8))
    assert isinstance(_only(scene), Source)
    member = '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename></SimpleSource>'
    virtual = _virtual(tmp_path / "a.vrt", _band(1, "Byte", member))
    assert isinstance(_only(virtual), Source)
    (tmp_path / "a.tif.ovr.ovr").write_text("<VRTDataset/>")
    for path in (scene, virtual):
        found = _only(path)
        assert isinstance(found, Reject)
        assert "a.tif.ovr.ovr beside it is no TIFF" in found.reason


def test_overviews_that_name_overviews_elsewhere_are_not_opened(tmp_path):
    scene = _raster(tmp_path / "a.tif", np.ones((1, 40, 40), np.uint8))
    _raster(tmp_path / "a.tif.ovr", np.ones((1, 20, 20), np.uint8))
    about = "<Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>/elsewhere</MDI></Metadata>"
    (tmp_path / "a.tif.ovr.aux.xml").write_text(f"<PAMDataset>{about}</PAMDataset>")
    found = _only(scene)
    assert isinstance(found, Reject)
    assert "overviews elsewhere" in found.reason


def test_decibel_auto_looks_at_a_vrt_whose_bands_have_different_types(tmp_path):
    _raster(tmp_path / "a.tif", np.full((1, 40, 40), 9, np.uint8))
    _raster(tmp_path / "b.tif", np.full((1, 40, 40), -12.5, np.float32))
    named = '<SimpleSource><SourceFilename relativeToVRT="1">{}.tif</SourceFilename></SimpleSource>'
    bands = _band(1, "Byte", named.format("a")) + _band(2, "Float32", named.format("b"))
    found = _only(_virtual(tmp_path / "m.vrt", bands), decibel="auto")
    assert isinstance(found, Source)
    assert found.unit == "dB"
    np.testing.assert_array_equal(Satellite(decibel="auto").read(found).values[:, 0, 0], [9, -12.5])


@pytest.mark.parametrize(("kind", "nodata"), [("Int64", -(2**63)), ("Int64", 2**63 - 1), ("UInt64", 2**64 - 1)])
def test_the_ends_of_64_bit_integers_are_nodata_and_stay_so_when_written(tmp_path, kind, nodata):
    path = _virtual(tmp_path / "a.vrt", _band(1, kind, f"<NoDataValue>{nodata}</NoDataValue>"))  # nothing but nodata
    adapter = Satellite()
    source = _only(path)
    valid = adapter.read(source).valid
    assert valid is not None
    assert not valid.any()
    whole = (slice(0, 40), slice(0, 40))
    written = adapter.write(source, [(whole, np.full((1, 40, 40), 3, np.float32))], tmp_path / "out")
    back = adapter.read(_only(written))
    assert back.valid is not None
    assert not back.valid.any()


@pytest.mark.parametrize("text", ["descriptions", "units"])
def test_a_text_or_a_name_that_is_not_in_utf_8_is_told_as_such(tmp_path, text):
    path = _raster(tmp_path / "a.tif", np.ones((1, 40, 40), np.float32))
    with gdal().open(path, "r+") as target:
        setattr(target, text, ("XXm",))
    path.write_bytes(path.read_bytes().replace(b"XXm", b" \xb5m"))  # Latin-1
    found = _only(path)
    assert isinstance(found, Reject)
    assert "(a band's name or unit) is not in UTF-8" in found.reason
    path.rename(tmp_path / "\udcff.tif")
    (found,) = Satellite().scan(Files(tmp_path))
    assert isinstance(found, Reject)
    assert found.reason.startswith("its name is not in UTF-8")


@pytest.mark.parametrize(
    ("path", "bands", "dtype", "kept"),
    [
        ("labels/top.tif", 3, "uint8", False), ("masks/a.tif", 1, "float32", False),
        ("segmentation/a.tif", 1, "int16", False), ("labels/top.tif", 3, "uint16", True),
        ("labels/top.tif", 4, "uint8", False), ("images/a.tif", 3, "uint8", True),
    ],
)  # fmt: skip
def test_label_pictures_in_colours_and_soft_masks_are_no_imagery_either(tmp_path, path, bands, dtype, kept):
    (tmp_path / path).parent.mkdir(parents=True)
    with gdal().open(
        tmp_path / path, "w", driver="GTiff", count=bands, height=8, width=8, dtype=dtype, crs="EPSG:32632",
        transform=gdal().Affine(10, 0, 0, 0, -10, 0),
    ) as file:  # fmt: skip
        file.write(np.ones((bands, 8, 8), dtype))
    (found,) = Satellite().scan(Files(tmp_path))
    assert isinstance(found, Source) == kept
