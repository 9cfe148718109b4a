"""DICOM: files to volumes, pictures and films, their pixels, and derived DICOM files."""

from maectl_medical.dicom.codecs import plugin
from maectl_medical.dicom.describe import describe
from maectl_medical.dicom.header import looks_like
from maectl_medical.dicom.image import Image
from maectl_medical.dicom.pixels import load
from maectl_medical.dicom.series import Geometry, assemble
from maectl_medical.dicom.write import can_hold, save

__all__ = ["Geometry", "Image", "assemble", "can_hold", "describe", "load", "looks_like", "plugin", "save"]
