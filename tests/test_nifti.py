"""NIfTI files read: nibabel is the oracle for values and geometry; what cannot be an image is told, never raised."""

import gzip
import logging
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maectl.adapter import Pixels, Reject
from maectl.errors import Unreadable

pytest.importorskip("nibabel")

import nibabel as nib

from maectl_medical import nifti
from maectl_medical.stored import Found

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0.25, -20], [0, -0.25, 3, 11], [0, 0, 0, 1]])
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path: Path, values: np.ndarray, affine=AFFINE, version: int = 1, order: str = "<", **fields: Any) -> Path:
    """A NIfTI file of stored values, with header fields set as they are given, by nibabel."""
    family = {1: nib.Nifti1Header, 2: nib.Nifti2Header}[version]
    image = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
    if path.suffix == ".hdr":
        family = {1: nib.nifti1.Nifti1PairHeader, 2: nib.nifti2.Nifti2PairHeader}[version]
        image = {1: nib.Nifti1Pair, 2: nib.Nifti2Pair}[version]
    header = family(endianness=order)
    header.set_data_dtype(values.dtype)
    made = image(values, affine, header)
    nib.save(made, path)
    return patched(path, order, version, **fields) if fields else path


def patched(path: Path, order: str = "<", version: int = 1, **fields: Any) -> Path:
    """Header fields of a file overwritten, whatever they then mean."""
    packed = path.name.endswith(".gz")
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    size = {1: 348, 2: 540}[version]
    header = {1: nib.Nifti1Header, 2: nib.Nifti2Header}[version](data[:size], endianness=order, check=False)
    for name, value in fields.items():
        header[name] = value
    data = header.binaryblock + data[size:]
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def described(path: Path, fourth: str = "times", unit: str | None = None) -> list[Found] | Reject | None:
    return nifti.describe(str(path.parent), path.name, fourth=fourth, unit=unit)


def found_in(path: Path, fourth: str = "times") -> list[Found]:
    found = described(path, fourth)
    assert isinstance(found, list), found
    return found


def rejected(path: Path, fourth: str = "times") -> str:
    found = described(path, fourth)
    assert isinstance(found, Reject), found
    return found.reason


def loaded(found: Found, folder: Path, window=None) -> Pixels:
    files = tuple(str(folder / path) for path in found.paths)
    return nifti.load(files, found.key, found.shape, found.dtype, window)


def check_against_nibabel(path: Path) -> None:
    image = nib.load(path)
    expected = image.get_fdata()
    expected = expected.reshape([*expected.shape, 1, 1][:4] if expected.ndim < 4 else expected.shape[:4])
    found = found_in(path)
    assert len(found) == expected.shape[3]
    for number, each in enumerate(found[:3]):
        np.testing.assert_allclose(each.affine, image.affine[:3], atol=1e-5)
        pixels = loaded(each, path.parent)
        assert pixels.values.shape == each.shape
        assert pixels.values.dtype == each.dtype
        assert pixels.values.dtype.isnative
        assert pixels.values.flags.writeable
        assert min(pixels.values.strides) >= 0
        np.testing.assert_array_equal(pixels.values[0], expected[..., number].astype(np.float32))
        assert (pixels.valid is None) == bool(np.isfinite(pixels.values).all())


REAL = [
    *(f"medical/nifti_volumes/{name}" for name in (
        "CT_pitch.nii.gz", "anatomical.nii", "avg152T1_LR_nifti.nii.gz", "example4d.nii.gz", "little.nii.gz",
        "MR_Gd.nii.gz", "CT_AVM.nii.gz", "sct_dmri.nii.gz", "sct_fmri.nii.gz", "sct_t2.nii.gz",
    )),
    "bad/odd/nifti/big.nii.gz", "bad/odd/nifti/standard.nii.gz",
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_volumes_are_as_nibabel_reads_them(name: str, real_data: Path):
    check_against_nibabel(real_data / name)


def test_a_real_set_of_volumes_is_as_nibabel_reads_it(real_data: Path):
    paths = sorted((real_data / "medical/nifti_hippocampus/images").glob("*.nii.gz"))
    assert len(paths) == 150
    for path in paths[::10]:
        check_against_nibabel(path)
    kinds = {found_in(path)[0].dtype for path in paths}
    assert kinds == {"uint8", "float32"}


def test_real_files_that_are_no_images_are_rejected_for_what_they_are(real_data: Path):
    bad = real_data / "bad"
    assert "no .img" in rejected(bad / "broken/nifti/nifti1.hdr")
    assert rejected(bad / "broken/nifti/not-nifti.nii") == "not NIfTI, in spite of its suffix .nii"
    assert "1 x 2 x 3 x 1 x 3" in rejected(bad / "odd/nifti/5D_small.nii")
    assert "CIFTI" in rejected(bad / "odd/nifti/row_major.dconn.nii")


STORED = [
    *[("u1", "uint8"), ("i1", "int16"), ("i2", "int16"), ("u2", "uint16"), ("i4", "float32"), ("u4", "float32")],
    *[("i8", "float32"), ("u8", "float32"), ("f4", "float32"), ("f8", "float32")],
]


@pytest.mark.parametrize(("stored", "dtype"), STORED)
@pytest.mark.parametrize(("order", "version", "suffix"), [("<", 1, ".nii"), (">", 2, ".nii.gz"), (">", 1, ".hdr")])
def test_every_voxel_type_becomes_the_smallest_that_holds_it(tmp_path, stored, dtype, order, version, suffix):
    kind = np.dtype(stored)
    low, high = (-1e5, 1e5) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    values = np.linspace(float(low), float(high) * 0.999, 5 * 4 * 3).astype(kind).reshape(5, 4, 3)
    path = written(tmp_path / f"a{suffix}", values, version=version, order=order)
    (found,) = found_in(path)
    assert found.dtype == dtype
    assert found.paths == ((f"a{suffix}",) if suffix != ".hdr" else ("a.hdr", "a.img"))
    assert found.channels == ("grey",)
    assert found.unit == "value"
    assert f"format: NIfTI-{version} {'.hdr/.img' if suffix == '.hdr' else suffix}" in found.facts
    ending = "" if kind.itemsize == 1 else " little-endian" if order == "<" else " big-endian"
    assert f"stored: {kind.name}{ending}" in found.facts
    np.testing.assert_allclose(found.affine, AFFINE[:3], atol=1e-5)
    pixels = loaded(found, tmp_path)
    assert pixels.values.dtype == dtype
    np.testing.assert_array_equal(pixels.values[0], values.astype(dtype))
    if suffix == ".hdr":
        assert described(tmp_path / "a.img") is None


@pytest.mark.parametrize(
    ("stored", "slope", "inter", "dtype"),
    [
        *[("u1", 0.0, 5.0, "uint8"), ("i2", np.nan, 3.0, "int16"), ("u1", 1.0, -1024.0, "int16")],
        *[("i1", 1.0, 32640.0, "int16"), ("i1", 1.0, 32641.0, "float32"), ("u1", 1.0, 0.5, "float32")],
        *[("i2", 1.0, -1024.0, "float32"), ("u2", 2.5, 7.0, "float32"), ("f4", -2.0, 1.0, "float32")],
        *[("i4", 1e-3, 0.0, "float32"), ("u2", 1.0, 0.0, "uint16")],
    ],
)
def test_slope_and_intercept_are_applied_as_nibabel_does(tmp_path, stored, slope, inter, dtype):
    values = np.arange(-30, 30).reshape(5, 4, 3).astype(stored)
    path = written(tmp_path / "a.nii", values, scl_slope=slope, scl_inter=inter)
    (found,) = found_in(path)
    assert found.dtype == dtype
    with np.errstate(all="ignore"):
        expected = nib.load(path).get_fdata().astype(np.float32)
    np.testing.assert_allclose(loaded(found, tmp_path).values[0], expected, rtol=1e-6)


def test_what_is_not_finite_is_invalid_and_so_is_what_float32_cannot_hold(tmp_path):
    values = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    values[0, 1, 2], values[1, 2, 3], values[1, 0, 0] = np.nan, 1e300, -np.inf
    (found,) = found_in(written(tmp_path / "a.nii", values))
    pixels = loaded(found, tmp_path)
    expected = np.ones((2, 3, 4), bool)
    expected[0, 1, 2] = expected[1, 2, 3] = expected[1, 0, 0] = False
    np.testing.assert_array_equal(pixels.valid, expected)
    np.testing.assert_array_equal(pixels.values[0][expected], values[expected])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("fourth", ["times", "channels", "first"])
def test_a_fourth_axis_is_times_channels_or_only_the_first(tmp_path, suffix, fourth):
    values = np.random.default_rng(0).integers(-999, 999, (4, 5, 6, 3)).astype(np.int16)
    found = found_in(written(tmp_path / f"a{suffix}", values), fourth)
    pixels = [loaded(each, tmp_path).values for each in found]
    if fourth == "channels":
        assert found[0].channels == ("volume 0", "volume 1", "volume 2")
        np.testing.assert_array_equal(pixels, np.moveaxis(values, -1, 0)[None])
    else:
        assert len(found) == (3 if fourth == "times" else 1)
        assert {each.group for each in found} == {f"a{suffix}"}
        assert len({str(each.key) for each in found}) == len(found)
        np.testing.assert_array_equal(np.concatenate(pixels), np.moveaxis(values, -1, 0)[: len(found)])
    assert "dimensions: 4" in found[0].facts


def test_axes_of_length_one_do_not_count(tmp_path):
    for shape, dimensions in (((7, 5), 2), ((7, 5, 1), 2), ((7, 5, 3, 1, 1), 3), ((7, 5, 1, 2), 4)):
        path = tmp_path / f"{len(shape)}_{dimensions}.nii"
        found = found_in(written(path, np.ones(shape, np.int16)))
        assert found[0].shape[1:3] == (7, 5)
        assert len(found[0].shape) == 4
        assert f"dimensions: {dimensions}" in found[0].facts
        assert loaded(found[0], tmp_path).values.shape == found[0].shape


@pytest.mark.parametrize("alpha", [False, True])
def test_colour_is_three_channels_and_alpha_0_is_invalid(tmp_path, alpha):
    names = ["R", "G", "B", "A"][: 4 if alpha else 3]
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 6, len(names))).astype(np.uint8)
    if alpha:
        values[1, 2, 3, 3] = 0
        values[0, 0, 0, 3] = 1
    stored = values.view([(name, "u1") for name in names])[..., 0]
    (found,) = found_in(written(tmp_path / "a.nii.gz", stored))
    assert (found.shape, found.dtype, found.unit) == ((3, 4, 5, 6), "uint8", "0..255")
    assert found.channels == ("red", "green", "blue")
    assert f"stored: {'RGBA32' if alpha else 'RGB24'}" in found.facts
    pixels = loaded(found, tmp_path)
    np.testing.assert_array_equal(pixels.values, np.moveaxis(values[..., :3], -1, 0))
    if alpha:
        np.testing.assert_array_equal(pixels.valid, values[..., 3] > 0)
    else:
        assert pixels.valid is None


def test_the_volumes_of_a_colour_file_are_no_channels(tmp_path):
    stored = np.zeros((4, 5, 6, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = written(tmp_path / "a.nii", stored)
    assert "cannot be channels" in rejected(path, "channels")
    assert [each.shape for each in found_in(path, "times")] == [(3, 4, 5, 6)] * 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([".nii", ".nii.gz", ".hdr"]), st.booleans(), st.data())
def test_a_window_is_a_part_of_the_whole(tmp_path_factory, suffix, colour, data):
    folder = tmp_path_factory.mktemp("window")
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
    stored = values.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0] if colour else values
    found = data.draw(st.sampled_from(found_in(written(folder / f"a{suffix}", stored), "times")))
    starts = [data.draw(st.integers(0, size - 1)) for size in found.shape[1:]]
    window = tuple(
        slice(start, data.draw(st.integers(start + 1, size)))
        for start, size in zip(starts, found.shape[1:], strict=True)
    )
    whole, part = loaded(found, folder), loaded(found, folder, window)
    np.testing.assert_array_equal(part.values, whole.values[(slice(None), *window)])


def test_a_window_of_a_huge_uncompressed_file_is_read_without_the_rest(tmp_path):
    path = written(tmp_path / "a.nii", np.zeros((2, 2, 2), np.int16))
    patched(path, dim=(3, 1000, 1000, 20000, 1, 1, 1, 1))  # 40 GB
    with path.open("r+b") as file:
        file.truncate(352 + 2 * 1000 * 1000 * 20000)
        file.seek(352 + 2 * (15000 * 10**6 + 30 * 1000 + 40))
        file.write(struct.pack("<h", 1234))
    (found,) = found_in(path)
    pixels = loaded(found, tmp_path, (slice(38, 42), slice(30, 32), slice(14999, 15002)))
    assert np.argwhere(pixels.values[0] == 1234).tolist() == [[2, 0, 1]]


def test_only_what_is_needed_of_a_gzip_stream_is_read_and_the_whole_is_checked(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 64)).astype(np.uint8)
    path = written(tmp_path / "a.nii.gz", values)
    (found,) = found_in(path)
    first = (slice(0, 64), slice(0, 64), slice(0, 2))
    good = path.read_bytes()
    for damaged in (good[: len(good) // 2], good[:-8] + b"\0\0\0\0" + good[-4:], good[:-200] + bytes(192) + good[-8:]):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(loaded(found, tmp_path, first).values[0], values[..., :2])
        with pytest.raises(Unreadable, match="truncated|damaged"):
            loaded(found, tmp_path)
    path.write_bytes(good + b"something behind it")
    np.testing.assert_array_equal(loaded(found, tmp_path).values[0], values)


def test_a_gzip_stream_of_several_members_is_one(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 16)).astype(np.uint8)
    plain = written(tmp_path / "a.nii", values).read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(b"".join(gzip.compress(plain[at : at + 1000]) for at in range(0, len(plain), 1000)))
    (found,) = found_in(path)
    np.testing.assert_array_equal(loaded(found, tmp_path).values[0], values)


def test_what_changed_since_the_scan_is_unreadable(tmp_path):
    path = written(tmp_path / "a.nii", np.zeros((4, 5, 6, 2), np.int16))
    found = found_in(path)[1]
    for changed in (np.zeros((4, 5, 6), np.int16), np.zeros((4, 5, 7, 2), np.int16), np.zeros((4, 5, 6, 2), np.uint8)):
        written(path, changed)
        with pytest.raises(Unreadable, match="changed since the scan"):
            loaded(found, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(Unreadable, match="no longer NIfTI"):
        loaded(found, tmp_path)
    path.unlink()
    with pytest.raises(Unreadable, match="gone"):
        loaded(found, tmp_path)


def test_many_threads_may_read_one_file(tmp_path):
    values = np.random.default_rng(0).integers(0, 999, (40, 40, 40)).astype(np.int16)
    (found,) = found_in(written(tmp_path / "a.nii.gz", values))
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(lambda _: loaded(found, tmp_path), range(24)):
            np.testing.assert_array_equal(pixels.values[0], values)


@pytest.mark.parametrize(("q_code", "s_code"), [(1, 1), (1, 0), (0, 2), (0, 0), (3, 4)])
@pytest.mark.parametrize("version", [1, 2])
def test_the_affine_is_nibabels_choice(tmp_path, q_code, s_code, version):
    rotation = nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag((-2.0, 1.5, 3.0))
    affine = nib.affines.from_matvec(rotation, (1, 2, 3))
    path = written(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16), affine, version=version)
    patched(path, version=version, qform_code=q_code, sform_code=s_code)
    (found,) = found_in(path)
    np.testing.assert_allclose(found.affine, nib.load(path).affine[:3], atol=1e-5)
    unknown = "orientation unknown (neither qform nor sform): taken as stored"
    assert found.notes == ((unknown,) if q_code == s_code == 0 else ())


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 1e-3), (10, 1), (8 + 1, 1000)])
def test_lengths_are_in_mm_whatever_the_file_counts_in(tmp_path, code, factor):
    for form in ("sform", "qform", "neither"):
        path = written(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16), np.diag((2.0, 3, 4, 1)))
        patched(path, qform_code=form == "qform", sform_code=form == "sform")
        expected = nib.load(path).affine[:3] * factor
        patched(path, xyzt_units=code)
        np.testing.assert_allclose(found_in(path)[0].affine, expected, rtol=1e-6)


def test_what_is_wrong_with_the_geometry_is_noted(tmp_path):
    def notes_of(**fields: Any) -> tuple[str, ...]:
        path = written(tmp_path / "a.nii", np.zeros((11, 5, 6), np.int16), np.diag((2.0, 3, 4, 1)))
        found = found_in(patched(path, **fields))[0]
        assert np.isfinite(found.affine).all()
        assert abs(np.linalg.det(np.array(found.affine)[:, :3])) > 0
        return found.notes

    both = {"qform_code": 1, "sform_code": 1}
    assert notes_of(**both) == ()
    assert notes_of(**both, qoffset_x=7) == ("qform and sform disagree by up to 7 mm: sform taken",)
    assert notes_of(**both, srow_x=(2.1, 0, 0, 0)) == ("qform and sform disagree by up to 1 mm: sform taken",)
    singular = "the sform is singular or not finite: not used"
    unknown = "orientation unknown (neither qform nor sform): taken as stored"
    size = "a voxel size is zero, negative or not finite: taken as 1 mm"
    assert notes_of(**both, srow_z=(0, 0, 0, 0)) == (singular,)
    assert notes_of(qform_code=0, sform_code=1, srow_z=(0, 0, np.nan, 0)) == (singular, unknown)
    no_rotation = {"quatern_b": 0.9, "quatern_c": 0.9}
    assert notes_of(qform_code=1, sform_code=0, **no_rotation) == (singular.replace("sform", "qform"), unknown)
    for bad in (0, -2, np.nan, np.inf):
        assert notes_of(qform_code=1, sform_code=0, pixdim=(1, bad, 3, 4, 1, 1, 1, 1)) == (size,)
        assert notes_of(qform_code=0, sform_code=0, pixdim=(1, 2, 3, bad, 1, 1, 1, 1)) == (unknown, size)
        assert notes_of(**both, pixdim=(1, 2, 3, bad, 1, 1, 1, 1)) == ()
    assert notes_of(xyzt_units=5) == ("unknown unit of length (code 5): taken as mm",)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"datatype": 32, "bitpix": 64}, "complex"),
        ({"datatype": 1792, "bitpix": 128}, "complex"),
        ({"datatype": 1536, "bitpix": 128}, "128-bit"),
        ({"datatype": 1, "bitpix": 1}, "1-bit"),
        ({"datatype": 77}, "unknown data type"),
        ({"datatype": 16}, "contradicts itself"),
        ({"intent_code": 3001}, "CIFTI"),
        ({"dim": (5, 2, 2, 2, 2, 3, 1, 1)}, "5 dimensions (2 x 2 x 2 x 2 x 3)"),
        ({"dim": (1, 48, 1, 1, 1, 1, 1, 1)}, "1 dimensions"),
        ({"dim": (3, 4, 0, 3, 1, 1, 1, 1)}, "a size of 4 x 0 x 3"),
        ({"dim": (3, 4, -4, 3, 1, 1, 1, 1)}, "a size of 4 x -4 x 3"),
        ({"dim": (9, 4, 4, 3, 1, 1, 1, 1)}, "9 dimensions"),
        ({"dim": (4, 32767, 32767, 32767, 9, 1, 1, 1)}, "not plausible"),
        ({"dim": (3, 4, 4, 4, 1, 1, 1, 1)}, "truncated"),
        ({"vox_offset": 348}, "begin at byte 348"),
        ({"vox_offset": np.nan}, "begin at byte nan"),
        ({"scl_slope": np.inf}, "not finite"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "not finite"),
    ],
)
def test_what_cannot_be_an_image_is_rejected_with_a_reason(tmp_path, fields, reason):
    assert reason in rejected(written(tmp_path / "a.nii", np.zeros((4, 4, 3), np.int16), **fields))


def test_files_that_are_no_nifti_are_passed_over_unless_named_so(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"")
    assert rejected(path) == "empty file"
    path.write_bytes(b"text")
    assert rejected(path) == "not NIfTI, in spite of its suffix .nii.gz"
    path.write_bytes(gzip.compress(b"text"))
    assert "gzip" in rejected(path)
    path.write_bytes(b"\x1f\x8b\x08\0junk junk junk")
    assert "gzip" in rejected(path)
    for name in ("a.txt", "a.hdr", "a.img", "a.gz", "a"):
        other = tmp_path / name
        other.write_bytes(b"text" * 200)
        assert described(other) is None or name == "a.hdr"
    assert rejected(tmp_path / "a.hdr") == "not NIfTI, in spite of its suffix .hdr"  # an .img lies beside it
    assert described(tmp_path / "absent.txt") is None
    assert rejected(tmp_path / "absent.nii") == "cannot be opened: No such file or directory"
    (tmp_path / "alone.hdr").write_bytes(b"ENVI" * 200)
    assert described(tmp_path / "alone.hdr") is None


def test_analyze_is_rejected_because_it_has_no_orientation(tmp_path):
    nib.save(nib.AnalyzeImage(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "a.hdr")
    assert "Analyze 7.5" in rejected(tmp_path / "a.hdr")
    assert described(tmp_path / "a.img") is None


def test_content_counts_not_the_suffix(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    plain, packed = written(tmp_path / "a.nii", values), written(tmp_path / "b.nii.gz", values)
    plain.rename(tmp_path / "c.nii.gz")
    packed.rename(tmp_path / "d.dat")
    for name in ("c.nii.gz", "d.dat"):
        (found,) = found_in(tmp_path / name)
        np.testing.assert_array_equal(loaded(found, tmp_path).values[0], values)


def test_the_header_of_a_pair_is_found_in_capital_letters_and_never_elsewhere(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    written(tmp_path / "a.hdr", values)
    (tmp_path / "a.img").rename(tmp_path / "a.IMG")
    (found,) = found_in(tmp_path / "a.hdr")
    assert found.paths == ("a.hdr", "a.IMG")
    np.testing.assert_array_equal(loaded(found, tmp_path).values[0], values)
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    assert "named .hdr" in rejected(tmp_path / "a.nii")


def test_a_subject_of_bids_is_the_group_else_the_file_is(tmp_path):
    values = np.zeros((2, 3, 4), np.int16)
    folder = tmp_path / "sub-07" / "anat"
    folder.mkdir(parents=True)
    written(folder / "sub-07_T1w.nii", values)
    written(tmp_path / "mysub-9.nii", values)
    for path, group in (("sub-07/anat/sub-07_T1w.nii", "sub-07"), ("mysub-9.nii", "mysub-9.nii")):
        (found,) = nifti.describe(str(tmp_path), path, fourth="times", unit="HU")
        assert (found.group, found.unit) == (group, "HU")


def test_magic_bytes_tell_nifti_from_everything_else(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (20, 30, 40)).astype(np.uint8)
    for version, order in ((1, "<"), (1, ">"), (2, "<"), (2, ">")):
        for suffix in (".nii", ".nii.gz", ".hdr"):
            path = written(tmp_path / f"a{suffix}", values, version=version, order=order)
            head = path.read_bytes()[:4096]
            assert nifti.looks_like(path.name, head)
            assert not nifti.looks_like(path.name, head[: 40 if suffix == ".nii.gz" else 7])
            assert not nifti.looks_like(path.name, b"\0\0\0\0" + head[4:])
        assert not nifti.looks_like("a.img", (tmp_path / "a.img").read_bytes()[:4096])
    assert not nifti.looks_like("a.nii", b"")
    assert not nifti.looks_like("a.nii.gz", gzip.compress(bytes(4096))[:100])


def test_nothing_of_the_header_is_said(tmp_path, caplog):
    private = b"DOE^JANE 19700101"
    path = written(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16))
    patched(path, descrip=private, db_name=private, aux_file=private, intent_name=private[:16])
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        (found,) = found_in(path)
        loaded(found, tmp_path)
    assert "DOE" not in repr(found)
    assert not caplog.records


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    values = np.random.default_rng(0).integers(0, 99, (4, 5, 6, 2)).astype(np.int16)
    made = {
        "a.nii": written(folder / "a.nii", values),
        "b.nii.gz": written(folder / "b.nii.gz", values.astype(np.float64), version=2, order=">"),
        "c.hdr": written(folder / "c.hdr", values, order=">"),
    }
    return {name: path.read_bytes() for name, path in made.items()} | {"c.img": (folder / "c.img").read_bytes()}


@FUZZ
@given(
    st.sampled_from(["a.nii", "b.nii.gz", "c.hdr"]),
    st.lists(st.tuples(st.integers(0, 560), st.integers(0, 255)), max_size=6),
    st.none() | st.integers(0, 700),
    st.sampled_from(["times", "channels", "first"]),
)
def test_damage_of_any_kind_is_told_and_never_raised(tmp_path_factory, originals, name, flips, length, fourth):
    folder = tmp_path_factory.mktemp("fuzz")
    data = bytearray(gzip.decompress(originals[name]) if name.endswith(".gz") else originals[name])
    for place, value in flips:
        if place < len(data):
            data[place] = value
    if name.endswith(".gz"):
        data = bytearray(gzip.compress(data))
    (folder / name).write_bytes(data[:length])
    if name == "c.hdr":
        (folder / "c.img").write_bytes(originals["c.img"])
    found = described(folder / name, fourth)
    assert isinstance(found, list | Reject)
    for each in found[:2] if isinstance(found, list) else ():
        assert np.isfinite(each.affine).all()
        try:
            pixels = loaded(each, folder)
        except Unreadable:
            continue
        assert pixels.values.shape == each.shape


def test_time_points_of_a_compressed_file_are_the_same_in_any_order_and_from_many_threads(tmp_path):
    """Reading goes on in the stream where an earlier time point ended; a file that changes is read anew."""
    path = tmp_path / "a.nii.gz"

    def one(found: list[Found], number: int) -> Pixels:
        return nifti.load((str(path),), found[number].key, found[number].shape, "int16", None)

    for seed in range(2):
        values = np.random.default_rng(seed).integers(-999, 999, (7, 6, 5, 24)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
        found = nifti.describe(str(tmp_path), "a.nii.gz", fourth="times", unit=None)
        assert isinstance(found, list)
        order = [*range(24), 3, 3, 20, *np.random.default_rng(seed).permutation(24)]
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(partial(one, found), order))
        for number, seen in zip(order, read, strict=True):
            np.testing.assert_array_equal(seen.values[0], values[..., number])
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(Unreadable, match="truncated"):
            one(found, 23)
