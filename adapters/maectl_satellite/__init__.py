"""Satellite and aerial rasters: GeoTIFF of any size and number of bands."""

from maectl_satellite.adapter import Satellite

__all__ = ["Satellite"]
