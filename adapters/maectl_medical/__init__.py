"""Medical images: DICOM and NIfTI, single images, films and volumes."""

from maectl_medical.adapter import Medical

__all__ = ["Medical"]
