"""Photographs and other everyday images: JPEG, PNG, WebP, BMP, TIFF and GIF."""

from maectl_natural.adapter import Natural

__all__ = ["Natural"]
