"""VRTs: which files they are made of, and that none of them makes GDAL open anything outside of the folder given."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from maectl.adapter import Files, Reject, Source

pytest.importorskip("rasterio")

import rasterio

from maectl_satellite import Satellite
from maectl_satellite.vrt import Refused, is_vrt, members

SOURCE = """<VRTDataset rasterXSize="8" rasterYSize="6"><SRS>EPSG:32632</SRS>
<GeoTransform>500000, 10, 0, 4000000, 0, -10</GeoTransform>
<VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""


def raster(path: Path, value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"driver": "GTiff", "dtype": "uint16", "height": 6, "width": 8, "count": 1, "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=Affine(10, 0, 500_000, 0, -10, 4_000_000), **about) as out:
        out.write(np.full((1, 6, 8), value, np.uint16))
    return path


def vrt(path: Path, name: str, relative: int = 1, text: str = SOURCE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(name=name, relative=relative))
    return path


def refusal(folder: Path, path: str = "a.vrt") -> str:
    """Why a VRT is refused: the scan's own word, which names no folder of the machine."""
    with pytest.raises(Refused) as told:
        members(str(folder), path)
    (reject,) = Satellite().scan(Files(folder, only=[path]))
    assert isinstance(reject, Reject)
    assert reject.reason == str(told.value)
    assert "\n" not in reject.reason
    assert str(folder) not in reject.reason
    assert str(folder.parent) not in reject.reason
    return reject.reason


def test_a_vrt_is_one_source_with_its_members_which_are_none(tmp_path):
    raster(tmp_path / "parts/b.tif")
    raster(tmp_path / "other.tif")
    vrt(tmp_path / "a.vrt", "parts/b.tif")
    found = list(Satellite().scan(Files(tmp_path)))
    assert [each.paths for each in found] == [("a.vrt", "parts/b.tif"), ("other.tif",)]
    assert isinstance(found[0], Source)
    assert "files: VRT" in found[0].facts
    assert np.unique(Satellite().read(found[0]).values).tolist() == [7]


def test_members_of_a_vrt_that_is_rejected_are_sources_again(tmp_path):
    raster(tmp_path / "b.tif")
    vrt(tmp_path / "a.vrt", "b.tif", text=SOURCE.replace("</VRTDataset>", "<Surprise/></VRTDataset>"))
    assert {type(each): each.paths for each in Satellite().scan(Files(tmp_path))} == {
        Reject: ("a.vrt",),
        Source: ("b.tif",),
    }


def test_vrts_in_vrts_are_followed_and_never_in_circles(tmp_path):
    raster(tmp_path / "x/b.tif")
    vrt(tmp_path / "x/inner.vrt", "b.tif")
    vrt(tmp_path / "a.vrt", "x/inner.vrt")
    assert members(str(tmp_path), "a.vrt") == ("x/inner.vrt", "x/b.tif")
    assert [each.paths for each in Satellite().scan(Files(tmp_path))] == [("a.vrt", "x/inner.vrt", "x/b.tif")]
    vrt(tmp_path / "x/inner.vrt", "../a.vrt")
    assert refusal(tmp_path) == "it names itself"
    vrt(tmp_path / "a.vrt", "a.vrt")
    assert refusal(tmp_path) == "it names itself"
    assert refusal(tmp_path, "x/inner.vrt") == "it names itself"
    for number in range(10):
        vrt(tmp_path / f"{number}.vrt", f"{number + 1}.vrt")
    raster(tmp_path / "10.vrt")
    assert "deep" in refusal(tmp_path, "0.vrt")


def test_a_vrt_of_gdal_itself_is_allowed(tmp_path):
    """What rasterio's own WarpedVRT and GDAL's translation to VRT write."""
    from rasterio.shutil import copy

    raster(tmp_path / "b.tif")
    copy(tmp_path / "b.tif", tmp_path / "a.vrt", driver="VRT")
    with rasterio.open(tmp_path / "a.vrt") as opened:
        assert opened.files[1:] == [str(tmp_path / "b.tif")]
    assert members(str(tmp_path), "a.vrt") == ("b.tif",)


MOSAIC = """<VRTDataset rasterXSize="16" rasterYSize="6">
  <SRS dataAxisToSRSAxisMapping="1,2">{wkt}</SRS>
  <GeoTransform>  5.0000000000000000e+05,  1.0000000000000000e+01,  0.0,  4.0e+06,  0.0, -1.0e+01</GeoTransform>
  <OverviewList resampling="nearest">2 4</OverviewList>
  <VRTRasterBand dataType="UInt16" band="1">
    <NoDataValue>0</NoDataValue>
    <ColorInterp>Gray</ColorInterp>
    <ComplexSource resampling="bilinear">
      <SourceFilename relativeToVRT="1" shared="0">b.tif</SourceFilename>
      <SourceBand>1</SourceBand>
      <SourceProperties RasterXSize="8" RasterYSize="6" DataType="UInt16" BlockXSize="8" BlockYSize="6" />
      <SrcRect xOff="0" yOff="0" xSize="8" ySize="6" />
      <DstRect xOff="0" yOff="0" xSize="8" ySize="6" />
      <NODATA>0</NODATA>
    </ComplexSource>
    <!-- a second one -->
    <SimpleSource>
      <SourceFilename relativeToVRT="1">c.tif</SourceFilename>
      <SourceBand>1</SourceBand>
      <SrcRect xOff="0" yOff="0" xSize="8" ySize="6" />
      <DstRect xOff="8" yOff="0" xSize="8" ySize="6" />
    </SimpleSource>
  </VRTRasterBand>
</VRTDataset>"""


def test_a_mosaic_as_gdalbuildvrt_writes_it_is_read(tmp_path):
    raster(tmp_path / "b.tif", 3)
    raster(tmp_path / "c.tif", 4)
    wkt = rasterio.crs.CRS.from_epsg(32632).to_wkt().replace('"', "&quot;")
    (tmp_path / "a.vrt").write_text(MOSAIC.format(wkt=wkt))
    (source,) = Satellite().scan(Files(tmp_path))
    assert isinstance(source, Source), source
    assert source.paths == ("a.vrt", "b.tif", "c.tif")
    assert source.spacing == (10, 10)
    assert Satellite().read(source).values[0, 0].tolist() == [3] * 8 + [4] * 8


def test_a_warped_vrt_is_read(tmp_path):
    from rasterio.shutil import copy
    from rasterio.vrt import WarpedVRT

    raster(tmp_path / "b.tif")
    with rasterio.open(tmp_path / "b.tif") as opened, WarpedVRT(opened, crs="EPSG:32633") as warped:
        copy(warped, tmp_path / "a.vrt", driver="VRT")
    assert members(str(tmp_path), "a.vrt") == ("b.tif",)


def test_a_member_with_overviews_elsewhere_is_refused(tmp_path):
    raster(tmp_path / "b.tif")
    vrt(tmp_path / "a.vrt", "b.tif")
    aux = "<PAMDataset><Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>/etc/passwd</MDI></Metadata></PAMDataset>"
    (tmp_path / "b.tif.aux.xml").write_text(aux)
    reasons = [each.reason for each in Satellite().scan(Files(tmp_path)) if isinstance(each, Reject)]
    assert sum("overviews elsewhere" in reason for reason in reasons) == 2


@pytest.mark.parametrize("relative", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../outside.tif", "x/../../outside.tif", "/vsicurl/http://127.0.0.1:1/a.tif",
        "/vsizip/a.zip/b.tif", "/vsimem/x.tif", "http://127.0.0.1:1/a.tif", "GTIFF_DIR:1:b.tif", "NETCDF:b.nc:x", "HDF5:b.h5://x",
        "vrt://b.tif", "&lt;VRTDataset/&gt;", "{outside}", "link.tif", "linked/outside.tif", "s3://a/b.tif",
    ],
)  # fmt: skip
def test_files_outside_of_the_folder_are_refused(tmp_path, name: str, relative: int):
    outside, folder = raster(tmp_path / "outside.tif"), tmp_path / "folder"
    raster(folder / "b.tif")
    (folder / "x").mkdir()
    (folder / "link.tif").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    vrt(folder / "a.vrt", name.replace("{outside}", str(outside)), relative)
    reason = refusal(folder)
    assert "outside of the folder" in reason or "relativeToVRT" in reason or "no file" in reason


def test_a_name_relative_to_where_a_program_was_started_is_refused(tmp_path):
    raster(tmp_path / "b.tif")
    vrt(tmp_path / "a.vrt", "b.tif", 0)
    assert "relativeToVRT must be 1" in refusal(tmp_path)


def test_a_single_file_may_name_what_lies_beside_it_alone(tmp_path):
    raster(tmp_path / "b.tif")
    vrt(tmp_path / "x/a.vrt", "../b.tif")
    assert isinstance(next(iter(Satellite().scan(Files(tmp_path, only=["x/a.vrt"])))), Source)
    (alone,) = Satellite().scan(Files(tmp_path / "x/a.vrt"))
    assert isinstance(alone, Reject)
    assert "outside of the folder" in alone.reason


def test_absolute_names_within_the_folder_and_links_in_it_are_allowed(tmp_path):
    inside = raster(tmp_path / "real/x/b.tif")
    (tmp_path / "real/y").symlink_to(tmp_path / "real/x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    vrt(tmp_path / "real/a.vrt", str(inside), 0)
    vrt(tmp_path / "real/c.vrt", "y/b.tif")
    for folder in ("real", "link"):
        for path in ("a.vrt", "c.vrt"):
            assert members(str(tmp_path / folder), path) == ("x/b.tif",)
    (source,) = Satellite().scan(Files(tmp_path / "link", only=["a.vrt"]))
    assert isinstance(source, Source)
    assert np.unique(Satellite().read(source).values).tolist() == [7]


def test_a_vrt_that_is_a_link_to_elsewhere_is_refused(tmp_path):
    raster(tmp_path / "elsewhere/b.tif")
    vrt(tmp_path / "elsewhere/a.vrt", "b.tif")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.vrt").symlink_to(tmp_path / "elsewhere/a.vrt")
    assert "link to a file outside" in refusal(tmp_path / "folder")


BAND = '<VRTDataset rasterXSize="8" rasterYSize="6"><VRTRasterBand dataType="UInt16" band="1"{}>{}</VRTRasterBand>'
BAND += "</VRTDataset>"


def banded(inside: str, kind: str = "") -> str:
    """A VRT of one band that holds a text."""
    return BAND.format(kind, inside)


def simple(name: str, attribute: str = " relativeToVRT='1'") -> str:
    """A VRT of one band with one source."""
    return banded(f"<SimpleSource><SourceFilename{attribute}>{name}</SourceFilename></SimpleSource>")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<VRTDataset><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;</VRTDataset>", "document type"),
        ('<VRTDataset rasterXSize="1"/><!entity x>', "document type"),
        (simple("<![CDATA[/etc/passwd]]>"), "raw"),
        (banded('<SimpleSource SourceFilename="/etc/passwd"/>'), "attribute sourcefilename"),
        (banded('<SimpleSource sourcefilename="/etc/passwd"/>'), "attribute sourcefilename"),
        (banded("<SimpleSource><SOURCEFILENAME>/etc/passwd</SOURCEFILENAME></SimpleSource>"), "outside"),
        (simple("b.tif<!-- x -->.gz"), "plain name"),
        (simple("b.tif<relativeToVRT>1</relativeToVRT>", ""), "not on the list|plain name"),
        (simple(" b.tif"), "no file"),
        (simple(""), "no file"),
        (simple("gone.tif"), "exist"),
        (simple("x"), "exist"),
        (simple("text.txt"), "neither"),
        (banded("<PixelFunctionLanguage>Python</PixelFunctionLanguage>"), "program"),
        (banded("<PixelFunctionCode>import os</PixelFunctionCode>"), "program"),
        (banded("<ImageOffset>0</ImageOffset>", " subClass='VRTRawRasterBand'"), "VRTRawRasterBand"),
        ('<VRTDataset subClass="VRTProcessedDataset"><Input/></VRTDataset>', "VRTProcessedDataset"),
        ("<VRTDataset><Group name='/'/></VRTDataset>", "<Group>"),
        ("<VRTDataset><SRS>/etc/passwd</SRS></VRTDataset>", "coordinate system"),
        ("<VRTDataset><SRS>http://127.0.0.1:1/x</SRS></VRTDataset>", "coordinate system"),
        (banded("<Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>/etc/passwd</MDI></Metadata>"), "name files"),
        (banded("<Metadata domain='x'><MDI key='s'>&lt;SourceFilename&gt;</MDI></Metadata>"), "outside"),
        ("<VRTDataset><OpenOptions><OOI key='X'>1</OOI></OpenOptions></VRTDataset>", "not on the list"),
        ("<VRTDataset xmlns:x='a'><x:SourceFilename>b.tif</x:SourceFilename></VRTDataset>", "not on the list"),
        ("<VRTDataset", "damaged VRT"), ("<VRTDataset>\0</VRTDataset>", "raw"),
        ("<VRTDataset><SRS></VRTDataset>", "damaged"),
        ("<VRTDataset>" * 100_000, "damaged VRT"), ("<VRTDataset>" + "<SRS>" * 50_000, "damaged VRT"),
        ("<VRTDataset>" + " " * 10_000_001 + "</VRTDataset>", "more than 10,000,000 bytes"),
    ],
)  # fmt: skip
def test_what_a_vrt_may_not_say(tmp_path, text: str, reason: str):
    raster(tmp_path / "b.tif")
    (tmp_path / "x").mkdir()
    (tmp_path / "text.txt").write_text("root:x:0")
    (tmp_path / "a.vrt").write_text(text + " ")
    told = refusal(tmp_path)
    assert any(word in told for word in reason.split("|")), told


def test_an_encoding_that_hides_the_text_is_not_believed(tmp_path):
    """GDAL reads bytes as they are, whatever they declare: expat must not see another document."""
    raster(tmp_path / "b.tif")
    text = '<?xml version="1.0" encoding="utf-7"?>' + SOURCE.format(name="../b.tif", relative=1)
    (tmp_path / "a.vrt").write_text(text)
    assert "outside" in refusal(tmp_path)
    (tmp_path / "a.vrt").write_bytes(b"<VRTDataset>\xff</VRTDataset>")
    assert "UTF-8" in refusal(tmp_path)


def test_deep_and_wide_documents_end_soon(tmp_path):
    raster(tmp_path / "b.tif")
    one = "<SimpleSource><SourceFilename relativeToVRT='1'>b.tif</SourceFilename></SimpleSource>"
    (tmp_path / "a.vrt").write_text(banded(one * 50_000))
    assert members(str(tmp_path), "a.vrt") == ("b.tif",)


@pytest.mark.parametrize(
    ("head", "is_one"),
    [
        (b"<VRTDataset rasterXSize", True), (b"\xef\xbb\xbf\n <VRTDataset>", True),
        (b"<?xml version='1.0'?>\n<VRTDataset>", True),
        (b"<!-- a --><VRTDataset>", True), (b"<html><VRTDataset>", False), (b"<VRTDatasets>", False),
        (b"<!DOCTYPE x><VRTDataset>", False), (b"<OGRVRTDataSource>", False), (b"", False),
    ],
)  # fmt: skip
def test_a_vrt_is_known_by_how_its_text_begins(head: bytes, is_one: bool):
    assert is_vrt(head) == is_one


def test_a_folder_of_traps_opens_nothing_outside(tmp_path):
    """Reading the bait would move its time of access, where the file system keeps one."""
    bait, folder = raster(tmp_path / "bait.tif"), tmp_path / "folder"
    for number, name in enumerate(["../bait.tif", str(bait), "file://" + str(bait), f"GTIFF_DIR:1:{bait}"]):
        for relative in (0, 1):
            vrt(folder / f"{number}-{relative}.vrt", name, relative)
    os.utime(bait, ns=(1, 1))
    script = (
        "import sys; from maectl_satellite import Satellite; from maectl.adapter import Files\n"
        "print(*(type(each).__name__ for each in Satellite().scan(Files(sys.argv[1]))))"
    )
    run = [sys.executable, "-c", script]
    done = subprocess.run([*run, folder], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["Reject"] * 8
    assert done.stderr == ""
    untouched = os.stat(bait).st_atime_ns == 1
    subprocess.run([*run, bait], capture_output=True, timeout=60, check=True)
    if os.stat(bait).st_atime_ns == 1:
        pytest.skip("this file system keeps no times of access")
    assert untouched
