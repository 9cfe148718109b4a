"""What the names of files tell: a band, an instrument, a place, a label.

Names of products: ESA, Sentinel-2 Products Specification Document, 3.4; Sentinel-1 Product Specification, 3.4; USGS,
Landsat Collection 2 product identifiers and the scene identifiers before them (LT52240631988227CUB02).
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache

from maectl_satellite.bands import SENSORS, plain

__all__ = ["Token", "baseline", "label_word", "product", "sensor_of", "side", "token"]

_WORDS = "coastal|blue|green|red|rededge[123]?|nir|nir08|nir09|cirrus|swir[12]?|swir16|swir22|pan|thermal[12]?"
_BAND = r"(?:SR_|sr_)?(?:[Bb]|(?:[Bb]and|BAND)[ _.-]?)(\d{1,3})([Aa]?)(?:_(?:10|20|60)m)?"
_TOKEN = {
    "band": re.compile(rf"(?<![0-9A-Za-z]){_BAND}(?![0-9A-Za-z])"),
    "polarisation": re.compile(r"(?<![0-9A-Za-z])(VV|VH|HH|HV)(?![0-9A-Za-z])", re.IGNORECASE),
    "colour": re.compile(rf"(?<![0-9A-Za-z])({_WORDS})(?![0-9A-Za-z])", re.IGNORECASE),
}
_MEASUREMENT = re.compile(r"(s1[a-d]-.+)-00\d$", re.IGNORECASE)  # numbered within a Sentinel-1 product
_TILE = re.compile(r"(?:^|[^0-9A-Za-z])(T\d{2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])(?![0-9A-Za-z])")
_LANDSAT = re.compile(r"(?:^|[^0-9A-Za-z])L[CETMO]0?([1-9])(?:_L\w{3})?_?(\d{3})(\d{3})(?=_|\d{7})")
_SENTINEL2 = re.compile(r"(?:^|[^0-9A-Za-z])S2[A-D](?:_|(?![0-9A-Za-z]))")
_SENTINEL1 = re.compile(r"(?:^|[^0-9A-Za-z])(S1[A-D][-_](?:IW|EW|SM|S\d|WV)[-_0-9A-Z]*?[-_]\d{8}T\d{6})", re.IGNORECASE)
_BASELINE = re.compile(r"_N(\d{2})(\d{2})_")

_ESA = re.compile(r"^MSK_|(?:^|_)(SCL|TCI|AOT|WVP|CLD|CLDPRB|SNW|SNWPRB|DDV|PVI)(?:_\d\dm)?$")
_USGS = re.compile(
    r"_(QA_PIXEL|QA_RADSAT|BQA|SR_QA_AEROSOL|SR_AEROSOL|SR_CLOUD_QA|SR_ATMOS_OPACITY|QA_AEROSOL|ANG|SAA|SZA|VAA|VZA|GCP"
    r"|(?:solar|sensor)_(?:azimuth|zenith)_B\d+|ST_[0-9A-Z]+)$"
)
_SURE = {"mask", "masks", "label", "labels", "annotation", "annotations", "groundtruth"}
_SURE |= {"segmentation", "segmentations"}
_LABELS = _SURE | {"gt", "target", "targets"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True, slots=True)
class Token:
    """The band that a file's name speaks of.

    name    "B8A", "VV", "red"
    rest    the rest of the name, which the files of one scene share
    family  the manner of naming: band, polarisation or colour
    """

    name: str
    rest: str
    family: str


def token(stem: str) -> Token | None:
    """The band that a file's stem names (`*_B02`, `*_B8A_20m`, `*.band3`, `*-vv-*`, `*_red`), the last if several."""
    numbered = _MEASUREMENT.match(stem)
    stem = numbered[1] if numbered else stem
    for family, pattern in _TOKEN.items():
        found = list(pattern.finditer(stem))
        if not found:
            continue
        last = found[-1]
        if family == "band":
            name = f"B{int(last[1])}{last[2].upper()}"
        else:
            name = last[1].upper() if family == "polarisation" else last[1].lower()
        return Token(name, f"{stem[: last.start()]}*{stem[last.end() :]}", family)
    return None


def side(path: str) -> str | None:
    """What a file beside a Sentinel-2 or Landsat product's imagery is ("SCL", "QA_PIXEL"); None for imagery.

    Classes, qualities, angles, previews, and what was measured besides reflectance (aerosol, water vapour, surface
    temperature): none of them is a band of the scene.
    """
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    if "QI_DATA" in folder.split("/"):
        return "QI_DATA"
    found = _ESA.search(stem)
    if found and (found[1] is None or _TILE.search(stem) or _SENTINEL2.search(path)):
        return found[1] or "MSK"
    found = _USGS.search(stem)
    return found[1] if found and _LANDSAT.search(stem) else None


def product(path: str) -> str:
    """The place that a product's name tells: a Sentinel-2 tile, Landsat's path and row, else the product; or ""."""
    tile, landsat, radar = _TILE.search(path), _LANDSAT.search(path), _SENTINEL1.search(path)
    if tile:
        return tile[1]
    if landsat:
        return f"{landsat[2]}/{landsat[3]}"
    return radar[1].upper().replace("_", "-") if radar else ""


def baseline(path: str) -> int | None:
    """The processing baseline of a Sentinel-2 product, by its name: 400 for N0400."""
    found = _BASELINE.search(path)
    return int(found[1] + found[2]) if found and _SENTINEL2.search(path) else None


@lru_cache(maxsize=4096)
def sensor_of(path: str, tags: str, described: tuple[str, ...]) -> str:
    """Which instrument made a scene, by the file's name, by tags that name it, or by its bands; "" if unknown.

    By its bands it is Sentinel-2 if all are its own, and ten or more, or four with B8A; Sentinel-1 if VV (and VH).
    """
    landsat = _LANDSAT.search(path)
    if _SENTINEL2.search(path) or _TILE.search(path):
        return "sentinel2"
    if landsat:
        return "landsat-oli" if landsat[1] in "89" else "landsat-tm"
    if _SENTINEL1.search(path):
        return "sentinel1"
    spoken = re.sub(r"[^0-9a-z]", "", tags.lower())
    for sensor in ("sentinel2", "sentinel1"):
        if sensor in spoken:
            return sensor
    satellite = re.search(r"landsat([45789])", spoken)
    if satellite:
        return "landsat-oli" if satellite[1] in "89" else "landsat-tm"
    bands = {plain(name) for name in described}
    if bands <= {name.lower() for name in SENSORS["sentinel2"]} and (
        len(bands) >= 10 or (len(bands) >= 4 and "b8a" in bands)
    ):
        return "sentinel2"
    return "sentinel1" if bands in ({"vv"}, {"vv", "vh"}) else ""


def label_word(path: str) -> str | None:
    """The word in a file's stem, or in a folder's name, that says it is a label raster; None where none does.

    Words are told apart by signs, digits and camel case. Folders further up than the file's own say so by masks,
    labels or annotations alone, and one called training is a split and says nothing.
    """
    *above, folder, name = ("", "", *path.split("/"))
    for text, known in (
        (name.split(".")[0], _LABELS | {"training"}),
        (folder, _LABELS),
        *((each, _SURE) for each in above),
    ):
        words = _words(text)
        found = next((word for word in words if word in known), None)
        if found or "ground truth" in " ".join(words):
            return found or "ground truth"
    return None


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
