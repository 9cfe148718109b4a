"""What bands are called and see: names, sensors, wavelengths; from data.channels to the bands of a file."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maectl.adapter import Channels

__all__ = ["SENSORS", "Named", "Unfit", "centre_of", "chosen", "common", "names", "natural", "order", "plain"]

SENSORS: dict[str, dict[str, tuple[float, str]]] = {
    # Centre in nm, and the common name (the STAC extension eo's, with swir1 and swir2 for its swir16 and swir22).
    # ESA, Sentinel-2 MSI, S2A central wavelengths (Sentinel-2 Spectral Response Functions, S2-SRF, version 3.0).
    "sentinel2": {
        "B1": (442.7, "coastal"), "B2": (492.4, "blue"), "B3": (559.8, "green"), "B4": (664.6, "red"),
        "B5": (704.1, "rededge1"), "B6": (740.5, "rededge2"), "B7": (782.8, "rededge3"), "B8": (832.8, "nir"),
        "B8A": (864.7, "nir08"), "B9": (945.1, "nir09"), "B10": (1373.5, "cirrus"), "B11": (1613.7, "swir1"),
        "B12": (2202.4, "swir2"),
    },
    # USGS, "What are the band designations for the Landsat satellites?": the middles of the ranges given there, TM's
    # for 1 to 7 (ETM+'s are within 20 nm of them), ETM+'s for 8.
    "landsat-tm": {
        "B1": (485, "blue"), "B2": (560, "green"), "B3": (660, "red"), "B4": (830, "nir"), "B5": (1650, "swir1"),
        "B6": (11450, "thermal"), "B7": (2215, "swir2"), "B8": (710, "pan"),
    },
    # The same page: OLI (1 to 9) and TIRS (10, 11).
    "landsat-oli": {
        "B1": (440, "coastal"), "B2": (480, "blue"), "B3": (560, "green"), "B4": (655, "red"), "B5": (865, "nir"),
        "B6": (1610, "swir1"), "B7": (2200, "swir2"), "B8": (590, "pan"), "B9": (1370, "cirrus"),
        "B10": (10895, "thermal1"), "B11": (12005, "thermal2"),
    },
}  # fmt: skip

_ALIASES = {
    "aerosol": "coastal", "ultrablue": "coastal", "rededge": "rededge1", "nearinfrared": "nir", "infrared": "nir",
    "nir1": "nir", "swir16": "swir1", "swir22": "swir2", "panchromatic": "pan", "narrownir": "nir08", "nir8a": "nir08",
    "watervapour": "nir09", "thermal": "thermal1",
}  # fmt: skip
_POLARISATIONS = ("vv", "vh", "hh", "hv")
_COLOURS = ("red", "green", "blue", "nir", "coastal", "rededge", "swir", "pan")  # of GDAL's, those that name a band
_NEAR = (20.0, 0.05)  # nm, or a share of the wavelength asked for: the larger
_MICRO = 100  # a wavelength below this is in micrometres

_BAND = re.compile(r"(?:band|b)[ _.-]*0*(\d{1,3})(a?)(?![0-9a-z])")
_LENGTH = re.compile(
    r"(\d+(?:\.\d+)?)\s*(nm|nanomet(?:er|re)s?|um|µm|μm|micromet(?:er|re)s?|microns?)(?![a-z])", re.IGNORECASE
)
_NUMBERED = re.compile(r"\d{1,6}")


class Unfit(Exception):
    """Channels that a file does not have; the text says which it has."""


@dataclass(frozen=True, slots=True)
class Named:
    """One band of a scene as data.channels sees it.

    name    what it is called: unique in its scene
    known   whether a file says so; "band 3" of a file without descriptions is a place, no meaning
    centre  nm, None where unknown
    alpha   whether it is no channel (its number counts all the same)
    """

    name: str
    known: bool
    centre: float | None = None
    alpha: bool = False


def plain(name: str) -> str:
    """A name without what spells differ in: B04, b4 and "band 4 reflectance" are all b4; others lose case and signs."""
    lowered = name.lower().strip()
    found = _BAND.match(lowered)
    if found:
        return f"b{found[1]}{found[2]}"
    return re.sub(r"[^0-9a-z]", "", _LENGTH.sub("", lowered))


def common(name: str) -> str:
    """A common name under all its spellings ("SWIR 1.6" is none): red, nir, swir1, ..."""
    bare = plain(name)
    return _ALIASES.get(bare, bare)


def centre_of(text: str, unit: str = "") -> float | None:
    """The wavelength that a text tells ("665 nm", "0.665um", or with a unit beside it "665"), in nm."""
    found = _LENGTH.search(text)
    if found:
        value = float(found[1])
        return value if found[2].lower().startswith("n") else value * 1000
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0 < value < 1e6:
        return None
    micro = unit.lower().startswith(("um", "µm", "μm", "micro")) or (not unit and value < _MICRO)
    return value * 1000 if micro else value


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts numbers by value: B2 before B10, B8 before B8A."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def order(tokens: Iterable[str]) -> list[str]:
    """Band names in the order of a scene: colours by wavelength, polarisations VV, VH, HH, HV, others naturally."""
    waves = [common(name) for name in ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir")]
    waves += ["nir08", "nir09", "cirrus", "swir", "swir1", "swir2", "pan", "thermal1", "thermal2"]
    ranks = {name: place for place, name in enumerate((*_POLARISATIONS, *waves))}

    def rank(name: str) -> tuple[int, tuple[tuple[int, int, str], ...]]:
        return ranks.get(common(name), len(ranks)), natural(name)

    return sorted(tokens, key=rank)


def names(described: Sequence[str], colours: Sequence[str]) -> list[str]:
    """What bands are called: by description, else by the colour GDAL gives them, else "band N"; each name once."""
    found: list[str] = []
    for number, (name, colour) in enumerate(zip(described, colours, strict=True), 1):
        told = name.strip() or (colour if colour in _COLOURS and colours.count(colour) == 1 else "")
        taken = not told or told in found or [each.strip() for each in described].count(told) > 1
        found.append(f"{told} (band {number})" if told and taken else told or f"band {number}")
    return found


def chosen(channels: Channels, bands: Sequence[Named], sensor: str) -> tuple[list[int], tuple[str, ...]]:
    """The places in ``bands`` of the channels asked for, and what they are called. Raises `Unfit`.

    A name is looked for as it stands, in any case, without the spelling (B04, b4), as a common name (by the sensor's
    table too), as a wavelength ("665nm": the nearest centre within 20 nm or 5 %), as a number from 1. Names that
    are places only ("band 1") fit a file that has just these.
    """
    seen = [place for place, band in enumerate(bands) if not band.alpha]
    own = tuple(bands[place].name for place in seen)
    if channels == "auto" or channels == own:
        return seen, own
    if isinstance(channels, int):
        if channels != len(seen):
            raise Unfit(f"has {_listed(own)}; this run wants {channels} band{'s' * (channels != 1)}")
        return seen, own
    found = [_one(name, bands, seen, sensor) for name in channels]
    places = [place for place in found if place is not None]
    if len(places) == len(channels):
        return places, tuple(channels)
    missing = [name for name, place in zip(channels, found, strict=True) if place is None]
    advice = "; bands without names are told by number (--set 'data.channels=[1,2,3]')"
    nameless = any(not band.known for band in bands if not band.alpha)
    raise Unfit(f"has {_listed(own)}; this run wants {_listed(missing)}{advice if nameless else ''}")


def _one(asked: str, bands: Sequence[Named], seen: Sequence[int], sensor: str) -> int | None:
    known = [place for place in seen if bands[place].known]
    wanted = plain(asked)
    for spelt in (str.strip, lambda name: name.strip().lower(), plain):
        for place in known:
            if spelt(bands[place].name) == spelt(asked) and spelt(asked):
                return place
    table = SENSORS.get(sensor, {})
    named = {common(bands[place].name): place for place in reversed(known)}
    meant = common(asked)
    if meant in named:
        return named[meant]
    for name, (_, colour) in table.items():
        if meant in (colour, common(colour)) and name.lower() in named:
            return named[name.lower()]
    wave = centre_of(asked) if _LENGTH.fullmatch(asked.strip()) else None
    if wave is not None:
        return _nearest(wave, bands, known, seen, table)
    number = int(asked) if _NUMBERED.fullmatch(wanted) else 0
    return number - 1 if number - 1 in seen else None


def _nearest(
    wave: float, bands: Sequence[Named], known: Sequence[int], seen: Sequence[int], table: dict[str, tuple[float, str]]
) -> int | None:
    centres = {place: bands[place].centre for place in seen}
    spoken = {name.lower(): centre for name, (centre, _) in table.items()}
    for place in known:
        if centres[place] is None:
            centres[place] = spoken.get(plain(bands[place].name))
    apart = {place: abs(centre - wave) for place, centre in centres.items() if centre is not None}
    best = min(apart, key=lambda place: apart[place], default=None)
    return best if best is not None and apart[best] <= max(_NEAR[0], _NEAR[1] * wave) else None


def _listed(names: Sequence[str]) -> str:
    """Names in words, at most eight."""
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"band{'s' * (len(names) != 1)} {', '.join(names[:8])}{rest}"
