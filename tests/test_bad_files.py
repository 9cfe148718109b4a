"""138 real files, broken or odd: none is fatal, none half-read in silence, none makes a sound.

They lie beside the repository (``../shared/data/bad``) where they are kept at all; without them these tests
are skipped, and ``test_natural_scan.py`` makes the same kinds of damage by hand.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from natural_files import opened

from maectl.adapter import Files, Reject, Source
from maectl.errors import Unreadable
from maectl_natural import Natural

BAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "bad"
MEMORY = 4 << 30  # bytes of address space the files may ask for, in another process

REFUSED = {  # valid, and no photograph this adapter can hold
    "1cbb1bb37d62c44f67374cd451643dc4.jpg": "premature end of data segment",  # Pillow makes up the rest
    "RGBA.uint16.tif": "satellite",
    "all-nodata.tif": "satellite",  # Pillow reads one of its four bands
    "lab-green.tif": "LAB",
}
DIFFERENT = {  # Pillow opens these with 8 of their 16 bits
    "basi4a16.png": 257,
    "bgyn6a16.png": 257,
}

pytestmark = pytest.mark.skipif(not BAD.is_dir(), reason="the collection of bad files is not here")


def files(group: str, *formats: str) -> list[str]:
    return sorted(f"{group}/{form}/{path.name}" for form in formats for path in (BAD / group / form).glob("*"))


@pytest.mark.parametrize("name", files("broken", "jpeg", "png", "tiff"))
def test_every_broken_image_is_rejected_or_unreadable_with_a_reason(name: str) -> None:
    (found,) = Natural().scan(Files(BAD / name))
    if isinstance(found, Source):
        with pytest.raises(Unreadable, match=r"\w{4}"):
            Natural().read(found)
    else:
        assert len(found.reason) > 8


@pytest.mark.parametrize("name", files("odd", "jpeg", "png", "tiff"))
def test_every_odd_image_is_read_as_pillow_reads_it_or_refused_with_a_reason(name: str) -> None:
    path = BAD / name
    (found,) = Natural().scan(Files(path))
    if isinstance(found, Reject):
        assert REFUSED[path.name] in found.reason
        return
    if path.name in REFUSED:
        with pytest.raises(Unreadable, match=REFUSED[path.name]):
            Natural().read(found)
        return
    pixels = Natural().read(found)
    assert pixels.values.shape == found.shape
    expected = by_pillow(path)
    if path.name in DIFFERENT:  # the high bytes are what Pillow has
        np.testing.assert_array_equal(pixels.values >> 8, expected[: found.shape[0]])
    else:
        np.testing.assert_array_equal(pixels.values, expected)


def by_pillow(path: Path) -> npt.NDArray[np.generic]:
    """Pixels [C, H, W] by the shortest way through Pillow."""
    image = opened(path)
    if image.getexif().get(0x0112, 1) == 6 and image.format != "TIFF":
        image = image.rotate(-90, expand=True)
    if image.mode in ("P", "CMYK"):
        image = image.convert("RGB")
    values = np.atleast_3d(np.asarray(image))
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    return np.moveaxis(values[..., :-1] if image.mode in ("LA", "RGBA") else values, -1, 0)


def test_medical_files_are_passed_over() -> None:
    for name in files("broken", "dicom", "nifti") + files("odd", "dicom", "nifti"):
        assert list(Natural().scan(Files(BAD / name))) == []


def test_reading_them_all_is_silent_and_takes_little_memory() -> None:
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
from maectl.adapter import Files, Source
from maectl.errors import Unreadable
from maectl_natural import Natural
found = list(Natural().scan(Files(sys.argv[1])))
for each in found:
    try:
        isinstance(each, Source) and Natural().read(each)
    except Unreadable:
        pass
print(len(found))
"""
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, str(BAD)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    images = ("jpeg", "png", "tiff")
    assert int(ran.stdout) == len(files("broken", *images) + files("odd", *images))
