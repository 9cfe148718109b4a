"""How large a pixel is on the ground."""

import math
import re

from maectl_satellite.handles import Failure, environment, failures, gdal
from maectl_satellite.layout import Affine

__all__ = ["spacing"]

_MERCATOR = re.compile(r'(?:PROJECTION|METHOD)\["(?:Mercator|Popular)', re.IGNORECASE)
"""EPSG:3857, 3395 and alike; neither Transverse nor Oblique Mercator, whose metres are true."""
_A, _F = 6_378_137.0, 1 / 298.257223563  # WGS 84 (NIMA TR8350.2, table 3.1): metres, flattening
_LEAST, _MOST = 1e-4, 1e6  # metres a pixel that can be meant


def spacing(crs: str, transform: Affine | None, shape: tuple[int, int]) -> tuple[float, float] | None:
    """Metres a pixel, down a column and along a row, at the raster's centre; None where that is not known.

    ``crs`` is WKT, "" where there is none; ``transform`` is affine's (a, b, c, d, e, f); ``shape`` is (H, W).
    Of projected systems they are the lengths of the affine's columns in metres, by the linear unit; scale factors
    (within 0.1 % in a UTM zone) are left out, but Mercator's, whose metres are 1 / cos(latitude) too long, are not.
    Degrees are as long as they are at the centre's latitude on WGS 84.
    """
    if not crs or transform is None:
        return None
    faults: Failure = (*failures(), ValueError)  # a system that PROJ does not know, or a place outside of it
    with environment():
        try:
            found = _spacing(crs, transform, shape)
        except faults:
            return None
    return found if found is not None and all(_LEAST <= length <= _MOST for length in found) else None


def _spacing(crs: str, transform: Affine, shape: tuple[int, int]) -> tuple[float, float] | None:
    a, b, c, d, e, f = transform
    system = gdal().crs.CRS.from_wkt(crs)
    x, y = (a * shape[1] + b * shape[0]) / 2 + c, (d * shape[1] + e * shape[0]) / 2 + f
    if system.is_geographic:
        degree = math.degrees(system.units_factor[1])
        latitude, steps = y * degree, ((b * degree, e * degree), (a * degree, d * degree))
    elif system.is_projected and _MERCATOR.search(crs):
        from rasterio.warp import transform as move

        # A step down and a step right from the centre, in degrees: true whatever the standard parallel.
        east, north = move(system, "EPSG:4326", [x, x + b, x + a], [y, y + e, y + d])
        latitude = north[0]
        steps = ((east[1] - east[0], north[1] - north[0]), (east[2] - east[0], north[2] - north[0]))
    elif system.is_projected:
        unit = system.units_factor[1]
        return math.hypot(b, e) * unit, math.hypot(a, d) * unit
    else:
        return None
    if not abs(latitude) <= 90:
        return None
    meridian, parallel = _degree(latitude)
    down, along = (math.hypot(right * parallel, up * meridian) for right, up in steps)
    return down, along


def _degree(latitude: float) -> tuple[float, float]:
    """Metres a degree along the meridian, and along the parallel, on WGS 84.

    The radii of curvature of the ellipsoid: Snyder 1987, Map Projections (USGS PP 1395), eqs. 4-18 and 4-21.
    """
    sine = math.sin(math.radians(latitude))
    squared = _F * (2 - _F)  # of the eccentricity
    inside = 1 - squared * sine * sine
    return (
        math.radians(_A * (1 - squared) / inside**1.5),
        math.radians(_A * math.cos(math.radians(latitude)) / math.sqrt(inside)),
    )
