"""NIfTI-1 and NIfTI-2: .nii, .nii.gz, and pairs of .hdr and .img."""

from maectl_medical.nifti.header import looks_like
from maectl_medical.nifti.pixels import load
from maectl_medical.nifti.scan import describe
from maectl_medical.nifti.write import save, save_like_volume

__all__ = ["describe", "load", "looks_like", "save", "save_like_volume"]
