"""NIfTI files written: what was read comes back to the bit, on the same grid, and nothing private goes along."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maectl.errors import DataError, Unreadable

pytest.importorskip("nibabel")

import nibabel as nib

from maectl_medical import nifti
from maectl_medical.stored import Found

PRIVATE = b"DOE^JANE"
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0.25, -20], [0, -0.25, 3, 11], [0, 0, 0, 1]])


def source(path: Path, values: np.ndarray, order: str = "<", version: int = 1, **fields: Any) -> Path:
    """A NIfTI file of stored values with private text wherever a header has room for it."""
    image = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
    header = image.header_class(endianness=order)
    header.set_data_dtype(values.dtype)
    made = image(values, AFFINE, header)
    made.header["descrip"] = made.header["aux_file"] = made.header["intent_name"] = PRIVATE
    if version == 1:
        made.header["db_name"] = PRIVATE
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", PRIVATE))
    nib.save(made, path)
    data = path.read_bytes()
    data = gzip.decompress(data) if path.name.endswith(".gz") else data
    size = {1: 348, 2: 540}[version]
    edited = image.header_class(data[:size], endianness=order, check=False)
    for name, value in fields.items():
        edited[name] = value
    data = edited.binaryblock + data[size:]
    assert PRIVATE in data
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.name.endswith(".gz") else data


def found_in(path: Path, fourth: str = "times") -> list[Found]:
    found = nifti.describe(str(path.parent), path.name, fourth=fourth, unit=None)
    assert isinstance(found, list), found
    return found


def loaded(path: Path, found: Found):
    return nifti.load((str(path),), found.key, found.shape, found.dtype, None)


def same_geometry(one, other) -> None:
    for name in (
        *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
        *("srow_x", "srow_y", "srow_z", "datatype", "bitpix"),
    ):
        np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_array_equal(one["pixdim"][:4], other["pixdim"][:4])
    assert one.get_xyzt_units()[0] == other.get_xyzt_units()[0]
    assert one.get_slope_inter() in (other.get_slope_inter(), (1.0, 0.0))


@pytest.mark.parametrize("stored", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize(("order", "version", "suffix"), [("<", 1, ".nii.gz"), (">", 1, ".nii"), ("<", 2, ".nii")])
def test_what_was_read_comes_back_to_the_bit(tmp_path, stored, order, version, suffix):
    kind = np.dtype(stored)
    low, high = (-1e300, 1e300) if stored == "f8" else (-1e30, 1e30)
    if kind.kind != "f":
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
    values = np.linspace(float(low), float(high) * 0.999, 60).astype(kind).reshape(5, 4, 3)
    path = source(tmp_path / f"a{suffix}", values, order, version)
    (found,) = found_in(path)
    pixels = loaded(path, found)
    out = nifti.save((str(path),), found.key, pixels.values, pixels.valid, tmp_path / "out.1")
    assert out == tmp_path / f"out.1{suffix}"
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([path.name, out.name])
    again, before = nib.load(out), nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(again.dataobj), values)
    assert type(again) is type(before)
    assert again.header.endianness == before.header.endianness
    same_geometry(before.header, again.header)
    (refound,) = found_in(out)
    assert (refound.shape, refound.dtype, refound.facts) == (found.shape, found.dtype, found.facts)
    np.testing.assert_allclose(refound.affine, found.affine, atol=1e-4)
    assert PRIVATE not in content(out)
    assert len(content(out)) == {1: 352, 2: 544}[version] + values.nbytes  # no extensions, nothing behind


def test_new_values_become_the_nearest_that_the_file_can_hold(tmp_path):
    stored = np.zeros((2, 2, 3), np.int16)
    path = source(tmp_path / "a.nii", stored, scl_slope=0.5, scl_inter=-100)
    (found,) = found_in(path)
    wanted = np.array([-100, -99.8, -99.7, 12.25, 12.26, 1e9, -1e9, 0, 1, 2, 3, np.nan], np.float32)
    out = nifti.save((str(path),), found.key, wanted.reshape(1, 2, 2, 3), None, tmp_path / "out")
    expected = [-100, -100, -99.5, 12, 12.5, 32767 / 2 - 100, -32768 / 2 - 100, 0, 1, 2, 3, -100]
    np.testing.assert_array_equal(nib.load(out).get_fdata().ravel(), expected)
    path = source(tmp_path / "b.nii", np.zeros((2, 2, 3), np.int8))
    (found,) = found_in(path)
    wanted = np.arange(-600, 600, 100, dtype=np.int16).reshape(1, 2, 2, 3)
    out = nifti.save((str(path),), found.key, wanted, None, tmp_path / "out")
    np.testing.assert_array_equal(nib.load(out).get_fdata(), np.clip(wanted[0], -128, 127))


def test_the_largest_of_64_bits_is_not_wrapped_around(tmp_path):
    for kind in (np.int64, np.uint64):
        path = source(tmp_path / "a.nii", np.zeros((1, 1, 2), kind))
        (found,) = found_in(path)
        out = nifti.save((str(path),), found.key, np.full((1, 1, 1, 2), 1e30, np.float32), None, tmp_path / "out")
        assert (np.asanyarray(nib.load(out).dataobj) > 2.0**62).all()


def test_an_untouched_voxel_keeps_what_float32_cannot_hold(tmp_path):
    stored = np.array([2**53 - 1, 2**60 + 3, 5, 7], np.int64).reshape(1, 2, 2)
    path = source(tmp_path / "a.nii", stored)
    (found,) = found_in(path)
    values = loaded(path, found).values
    values[0, 0, 1, 0] = 6
    out = nifti.save((str(path),), found.key, values, None, tmp_path / "out")
    assert np.asanyarray(nib.load(out).dataobj).ravel().tolist() == [2**53 - 1, 2**60 + 3, 6, 7]


def test_invalid_voxels_are_the_sources(tmp_path):
    stored = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    stored[0, 1, 2] = np.nan
    path = source(tmp_path / "a.nii.gz", stored)
    (found,) = found_in(path)
    valid = np.ones((2, 3, 4), bool)
    valid[0, 1, 2] = valid[1, 1, 1] = False
    out = nifti.save((str(path),), found.key, np.full((1, 2, 3, 4), -1, np.float32), valid, tmp_path / "out")
    expected = np.where(valid, -1, stored)
    np.testing.assert_array_equal(nib.load(out).get_fdata(), expected)


@pytest.mark.parametrize("fourth", ["times", "channels", "first"])
def test_a_time_point_is_written_3d_and_channels_4d(tmp_path, fourth):
    stored = np.random.default_rng(0).integers(-99, 99, (4, 5, 6, 3)).astype(np.int16)
    path = source(tmp_path / "a.nii.gz", stored, xyzt_units=10)
    found = found_in(path, fourth)[-1]
    out = nifti.save((str(path),), found.key, loaded(path, found).values + np.int16(1), None, tmp_path / "out")
    image = nib.load(out)
    expected = {"times": stored[..., 2], "channels": stored, "first": stored[..., 0]}[fourth] + 1
    np.testing.assert_array_equal(image.get_fdata(), expected)
    assert image.header.get_xyzt_units() == ("mm", "unknown")
    np.testing.assert_allclose(image.affine, nib.load(path).affine)


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colour_stays_colour_and_keeps_its_alpha(tmp_path, names):
    stored = np.random.default_rng(0).integers(0, 256, (4, 5, 6, len(names))).astype(np.uint8)
    stored[0, 0, 0, -1] = 0
    path = source(tmp_path / "a.nii", stored.view([(name, "u1") for name in names])[..., 0])
    (found,) = found_in(path)
    pixels = loaded(path, found)
    out = nifti.save((str(path),), found.key, 255 - pixels.values, pixels.valid, tmp_path / "out")
    expected = stored.copy()
    expected[..., :3] = 255 - stored[..., :3]
    if names == "RGBA":
        expected[stored[..., 3] == 0] = stored[stored[..., 3] == 0]
    written = np.ascontiguousarray(nib.load(out).dataobj)
    np.testing.assert_array_equal(written.view(np.uint8).reshape(stored.shape), expected)


def test_a_pair_becomes_one_file_and_a_slice_stays_one(tmp_path):
    stored = np.arange(20, dtype=np.int16).reshape(4, 5)
    nib.save(nib.Nifti1Pair(stored, AFFINE), tmp_path / "a.hdr")
    (found,) = found_in(tmp_path / "a.hdr")
    files = tuple(str(tmp_path / each) for each in found.paths)
    values = nifti.load(files, found.key, found.shape, found.dtype, None).values
    out = nifti.save(files, found.key, values, None, tmp_path / "out")
    assert out.name == "out.nii"
    np.testing.assert_array_equal(nib.load(out).get_fdata(), stored)


def test_real_volumes_come_back(tmp_path, real_data):
    volumes = real_data / "medical/nifti_volumes"
    for name in ("CT_pitch.nii.gz", "anatomical.nii", "little.nii.gz", "sct_dmri.nii.gz", "sct_t2.nii.gz"):
        found = found_in(volumes / name)[-1]
        pixels = loaded(volumes / name, found)
        out = nifti.save((str(volumes / name),), found.key, pixels.values, pixels.valid, tmp_path / "out")
        before, again = nib.load(volumes / name), nib.load(out)
        expected = before.get_fdata().reshape(*found.shape[1:], -1)[..., -1]
        np.testing.assert_array_equal(again.get_fdata(), expected)
        np.testing.assert_allclose(again.affine, before.affine, atol=1e-4)
        same_geometry(before.header, again.header)
        np.testing.assert_array_equal(loaded(out, found_in(out)[0]).values, pixels.values)


def test_a_source_that_is_gone_and_a_place_that_cannot_be_written_are_told(tmp_path):
    path = source(tmp_path / "a.nii", np.zeros((2, 3, 4), np.int16))
    (found,) = found_in(path)
    values = loaded(path, found).values
    with pytest.raises(DataError, match="cannot be written"):
        nifti.save((str(path),), found.key, values, None, tmp_path / "absent" / "out")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Unreadable, match="truncated"):
        nifti.save((str(path),), found.key, values, None, tmp_path / "out")
    path.unlink()
    with pytest.raises(Unreadable, match="gone"):
        nifti.save((str(path),), found.key, values, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sheared", [False, True])
def test_a_volume_without_a_source_is_written_where_its_affine_says(tmp_path, dtype, channels, sheared):
    values = np.random.default_rng(0).integers(0, 99, (channels, 4, 5, 6)).astype(dtype)
    affine = AFFINE.copy()
    if not sheared:
        affine[:3, :3] = np.linalg.qr(affine[:3, :3])[0] @ np.diag((2, 1.5, 3))
    rows = tuple(tuple(row) for row in affine[:3].tolist())
    out = nifti.save_like_volume(values, rows, tmp_path / "map.v1")
    assert out == tmp_path / "map.v1.nii.gz"
    image = nib.load(out)
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(image.get_fdata(), np.moveaxis(values, 0, -1) if channels > 1 else values[0])
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert image.header["sform_code"] == 1
    if not sheared:
        assert image.header["qform_code"] == 1
        np.testing.assert_allclose(image.get_qform(), affine, atol=1e-4)
    np.testing.assert_allclose(image.header.get_zooms()[:3], np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    found = found_in(out, "channels")[0]
    assert found.notes == ()
    np.testing.assert_array_equal(loaded(out, found).values, values)


def test_many_channels_are_counted_in_nifti_2(tmp_path):
    values = np.zeros((40000, 1, 1, 1), np.float32)
    image = nib.load(nifti.save_like_volume(values, ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)), tmp_path / "map"))
    assert isinstance(image, nib.Nifti2Image)
    assert image.shape == (1, 1, 1, 40000)
