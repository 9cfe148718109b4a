"""Which files GDAL opens besides a raster: those a VRT names, overviews and masks; and whether it may.

A VRT can name any file or address, in any of GDAL's formats, and hold programs. GDAL opens its sources with every
driver there is, so what a VRT may say is a list: elements, attributes, and sources that are TIFF, JPEG 2000 or VRT
under the folder given. The elements are those of GDAL's gdalvrt.xsd, less raw bands, options of drivers, grids of many
dimensions and processing steps. GDAL reads names in any case, and an attribute where an element is meant.
"""

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from maectl_satellite.tiff import JP2, is_tiff

__all__ = ["SIDECARS", "Refused", "is_vrt", "members", "not_tiff", "sidecars"]

SIDECARS = (".ovr", ".msk")

_LARGEST = 10_000_000  # bytes of a VRT
_DEEPEST = 8  # VRTs in VRTs
_MOST = 100_000  # sources named, all in all
_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<VRTDataset[\s>/]", re.DOTALL)
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]+:|\\\\")  # a driver's or an address's; one letter is a Windows drive

_NAMING = {"sourcefilename", "sourcedataset"}
_RASTER = """
    vrtdataset srs geotransform gcplist gcp metadata mdi overviewlist blockxsize blockysize maskband vrtrasterband
    description unittype offset scale nodatavalue hidenodatavalue colorinterp colortable entry categorynames category
    histograms histitem histmin histmax bucketcount includeoutofrange approximate histcounts overview
"""
_SOURCE = """
    simplesource complexsource averagedsource kernelfilteredsource nodatafrommasksource sourceband sourceproperties
    srcrect dstrect scaleoffset scaleratio exponent clamp srcmin srcmax dstmin dstmax lut nodata usemaskband
    colortablecomponent kernel size coefs maskvaluethreshold remappedvalue pixelfunctiontype pixelfunctionarguments
    sourcetransfertype bufferradius skipnoncontributingsources
"""
_WARPED = """
    gdalwarpoptions warpmemorylimit resamplealg workingdatatype option options transformer approxtransformer maxerror
    basetransformer genimgprojtransformer srcgeotransform srcinvgeotransform dstgeotransform dstinvgeotransform
    reprojecttransformer reprojectiontransformer sourcesrs targetsrs bandlist bandmapping srcnodatareal srcnodataimag
    dstnodatareal dstnodataimag srcalphaband dstalphaband
"""
_SHARPENED = """
    pansharpeningoptions algorithm algorithmoptions weights resampling numthreads bitdepth spatialextentadjustment
    panchroband spectralband
"""
_ELEMENTS = _NAMING | {name for names in (_RASTER, _SOURCE, _WARPED, _SHARPENED) for name in names.split()}
_ALLOWED = """
    rasterxsize rasterysize subclass datatype type band blockxsize blockysize relativetovrt shared key domain format
    xoff yoff xsize ysize c1 c2 c3 c4 id info pixel line x y z gcpz projection dataaxistosrsaxismapping name
    coordinateepoch resampling normalized dstband src dst
"""
_ATTRIBUTES = set(_ALLOWED.split())
_CLASSES = {"", "vrtwarpeddataset", "vrtpansharpeneddataset", "vrtrasterband", "vrtsourcedrasterband"}
_CLASSES |= {"vrtwarpedrasterband", "vrtpansharpenedrasterband", "vrtderivedrasterband"}
_SYSTEM = re.compile(
    r"\s*(?:[A-Z][A-Z0-9_]*\[|(?:EPSG|ESRI|OGC|IAU_2015):|$)"
)  # WKT or a code, never a file or an address
_SYSTEMS = {"srs", "sourcesrs", "targetsrs"}
_PYTHON = {"pixelfunctioncode", "pixelfunctionlanguage"}
_FILES = {"overview_file", "x_dataset", "y_dataset", "cutline", "coordinate_operation"}  # what GDAL opens or hands on


class Refused(Exception):
    """A VRT that may not be opened; the text says why, in one line and without folders of the machine."""


def is_vrt(head: bytes) -> bool:
    """Whether a file of this beginning is a VRT."""
    return _BEGINS.match(head) is not None


def members(folder: str, path: str) -> tuple[str, ...]:
    """The files that a VRT and the VRTs in it are made of, relative to ``folder``, each once, in their order.

    All lie really (links followed) under ``folder`` and are TIFF, JPEG 2000 or VRT. Raises `Refused` and OSError.
    """
    root = os.path.realpath(folder)
    found: dict[str, None] = {}
    _walk(root, os.path.realpath(os.path.join(folder, path)), (), found)
    return tuple(found)


def sidecars(path: str) -> Iterator[str]:
    """The files that GDAL opens for a raster's overviews and mask, with any of its drivers, and theirs."""
    for suffix in (*SIDECARS, *map(str.upper, SIDECARS)):
        if os.path.isfile(path + suffix):
            yield path + suffix
            yield from sidecars(path + suffix)


def not_tiff(path: str) -> bool:
    """Whether a file holds something else than a TIFF; what is empty, or may not be read, no driver opens."""
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError:
        return False
    return bool(head) and not is_tiff(head)


def _walk(root: str, real: str, above: tuple[str, ...], found: dict[str, None]) -> None:
    if not _inside(real, root):
        raise Refused("it is a link to a file outside of the folder")
    if len(above) >= _DEEPEST:
        raise Refused(f"VRTs in VRTs, more than {_DEEPEST} deep")
    for name, relative in _sources(real):
        member = _member(root, os.path.dirname(real), name, relative)
        if member == real or member in above:
            raise Refused("it names itself")
        below = os.path.relpath(member, root)
        if below in found:
            continue
        with open(member, "rb") as file:
            head = file.read(4096)
        found[below] = None
        if len(found) > _MOST:
            raise Refused(f"it names more than {_MOST:,} files")
        if is_vrt(head):
            _walk(root, member, (*above, real), found)
        elif not (is_tiff(head) or head.startswith(JP2)):
            raise Refused(f"it names {_shown(name)}, which is neither TIFF, JPEG 2000 nor VRT")


def _sources(real: str) -> Iterator[tuple[str, bool]]:
    """Every source a VRT names, and whether its name is relative to the VRT."""
    for element in _parsed(real).iter():
        if not isinstance(element.tag, str):  # a comment
            continue
        _check(element)
        if element.tag.lower() in _NAMING:
            if len(element):
                raise Refused(f"its <{element.tag}> is not a plain name")
            attributes = {name.lower(): value for name, value in element.attrib.items()}
            yield element.text or "", attributes.get("relativetovrt", "0").strip() == "1"


def _parsed(real: str) -> ElementTree.Element:
    if os.path.getsize(real) > _LARGEST:
        raise Refused(f"a VRT of more than {_LARGEST:,} bytes")
    with open(real, "rb") as file:
        data = file.read(_LARGEST + 1)
    try:
        text = data.decode("utf-8-sig")  # whatever it declares: GDAL does not look at that either
    except UnicodeDecodeError:
        raise Refused("a VRT that is not in UTF-8") from None
    if re.search(r"<!\s*(?:DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise Refused("a VRT with a document type or entities, which none needs")
    if "<![" in text or "\0" in text:
        raise Refused("a VRT with raw character data, which none needs")
    # Comments stay in the tree: GDAL takes the text before one, and would otherwise see another name than we do.
    builder = ElementTree.TreeBuilder(insert_comments=True, insert_pis=True)
    try:
        return ElementTree.fromstring(text, ElementTree.XMLParser(target=builder))
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise Refused(f"damaged VRT: {error}") from None


def _check(element: ElementTree.Element) -> None:
    """Raise `Refused` where an element or attribute is not on the list."""
    tag = element.tag.lower()
    if tag in _PYTHON:
        raise Refused("it holds a program (a pixel function in a language), which is never run")
    if tag not in _ELEMENTS:
        raise Refused(f"its <{_shown(element.tag)}> is not on the list of what a VRT may say here")
    attributes = {name.lower(): value for name, value in element.attrib.items()}
    odd = attributes.keys() - _ATTRIBUTES
    if odd and tag != "pixelfunctionarguments":
        raise Refused(f"its attribute {_shown(min(odd))} is not on the list of what a VRT may say here")
    kind = attributes.get("subclass", "").lower()
    if kind not in _CLASSES:
        raise Refused(f"it is a {_shown(attributes['subclass'])}, which is not read here")
    named = {attributes.get("key", "").lower(), attributes.get("name", "").lower()}
    if named & _FILES:
        raise Refused(f"its <{element.tag}> could name files")
    texts = (element.text or "", *element.attrib.values())
    if any(word in text.lower() for text in texts for word in ("/vsi", "<vrtdataset", "sourcefilename")):
        raise Refused("names files outside of the folder (a virtual file system of GDAL, or a VRT in a VRT's text)")
    systems = (element.text or "" if tag in _SYSTEMS else "", attributes.get("projection", ""))
    if not all(_SYSTEM.match(text) for text in systems):
        raise Refused("its coordinate system is neither WKT nor a code such as EPSG:32632")


def _member(root: str, beside: str, name: str, relative: bool) -> str:
    """The real path of a source."""
    if not name or name != name.strip() or "\n" in name:
        raise Refused(f"it names {_shown(name)!r}, which is no file")
    if _PREFIX.match(name) or "://" in name:
        raise Refused(f"names files outside of the folder ({_shown(name)}: an address or a GDAL driver's own name)")
    if not relative and not os.path.isabs(name):
        raise Refused(f"it names {_shown(name)} by where a program was started: relativeToVRT must be 1")
    real = os.path.realpath(os.path.join(beside, name))
    if not _inside(real, root):
        raise Refused(f"names files outside of the folder ({_shown(name)})")
    if not os.path.isfile(real):
        raise Refused(f"it names {_shown(name)}, which does not exist")
    return real


def _inside(real: str, root: str) -> bool:
    return real.startswith(root.rstrip(os.sep) + os.sep)


def _shown(name: str) -> str:
    """The end of a name, in one line: of a whole path the file alone."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1] if os.path.isabs(name) or "\\" in name else name
    return " ".join(re.sub(r"[^ -~]", "?", last[:80]).split())
