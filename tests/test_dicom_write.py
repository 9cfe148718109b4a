import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, BUNDLED, enhanced, group, image, noise, save, series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid

from maectl.adapter import Files, Pixels
from maectl.errors import DataError, Unreadable
from maectl_medical import dicom
from maectl_medical.dicom import Image, assemble, can_hold, describe
from maectl_medical.stored import Found


def read(path: Path) -> tuple[Path, Found, Pixels]:
    """The one image in a folder or file, and its pixels."""
    files = Files(path)
    folder = Path(files.folder)
    described = [describe(str(folder), name) for name in files]
    [found] = assemble([each for each in described if isinstance(each, Image)], geometry="lenient")
    assert isinstance(found, Found)
    names = tuple(str(folder / name) for name in found.paths)
    return folder, found, dicom.load(names, found.key, found.shape, found.dtype, None)


def again(source: Path, target: Path, values: np.ndarray | None = None, **changes: Any) -> tuple[Path, Found, Pixels]:
    """A source written and read back."""
    folder, found, pixels = read(source)
    key = json.loads(json.dumps({**found.key, "unit": found.unit, "affine": found.affine}))
    files = tuple(str(folder / name) for name in found.paths)
    valid = changes.get("valid", pixels.valid)
    written = dicom.save(files, key, pixels.values if values is None else values, valid, target)
    return written, *read(written)[1:]


def assert_same(source: Path, target: Path) -> Path:
    _, before, pixels = read(source)
    written, after, mine = again(source, target)
    assert (after.shape, after.dtype, after.unit, after.channels, after.axes) == (
        before.shape, before.dtype, before.unit, before.channels, before.axes,
    )  # fmt: skip
    if before.affine is None:
        assert after.affine is None
        assert after.spacing == (None if before.spacing is None else pytest.approx(before.spacing))
    else:
        np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    valid = np.ones(before.shape[1:], bool) if pixels.valid is None else pixels.valid
    np.testing.assert_array_equal(mine.values[:, valid], pixels.values[:, valid])
    np.testing.assert_array_equal(True if mine.valid is None else mine.valid, valid)
    return written


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"RescaleIntercept": 0, "Modality": "MR"},
        {"BitsStored": 16, "RescaleIntercept": 0, "Modality": "MR"},
        {"PhotometricInterpretation": "MONOCHROME1", "Modality": "MR"},
        {"PixelPaddingValue": 100},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    ],
)
def test_volumes_are_read_back_as_they_were(tmp_path, elements):
    series(tmp_path / "a", [0, 2.5, 5], **elements)
    written = assert_same(tmp_path / "a", tmp_path / "b")
    assert written == tmp_path / "b"
    assert sorted(path.name for path in written.iterdir()) == ["0001.dcm", "0002.dcm", "0003.dcm"]


@pytest.mark.parametrize(
    ("shape", "dtype", "elements"),
    [
        ((8, 6), "uint8", {"Modality": "US"}),
        ((8, 6), "uint8", {"Modality": "US", "BitsStored": 7}),
        ((8, 6), "uint8", {"Modality": "MR"}),
        ((8, 6), "int16", {"Modality": "CR", "ImagerPixelSpacing": [0.2, 0.3]}),
        ((8, 6), "uint16", {"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1", "PixelSpacing": [0.2, 0.3]}),
        ((5, 7, 3), "uint8", {"Modality": "XC"}),
        ((5, 7, 3), "uint16", {"Modality": "OT"}),
        ((4, 5, 7), "uint8", {"Modality": "US", "SOPClassUID": uid.UltrasoundMultiFrameImageStorage}),
        ((4, 5, 7), "uint16", {"Modality": "XA"}),
        ((4, 5, 7, 3), "uint8", {"Modality": "US"}),
    ],
)
def test_pictures_and_films_are_read_back_as_they_were(tmp_path, shape, dtype, elements):
    save(image(noise(*shape, high=120, dtype=dtype), **elements), tmp_path / "a.dcm")
    assert assert_same(tmp_path / "a.dcm", tmp_path / "out") == tmp_path / "out.dcm"


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "J2K_pixelrep_mismatch.dcm", "JPGExtended.dcm",
        "examples_palette.dcm", "examples_ybr_color.dcm", "examples_overlay.dcm", "image_dfl.dcm",
        "JPEGLSNearLossless_16.dcm", "SC_rgb_rle_16bit_2frame.dcm", "ExplVR_BigEnd.dcm",
    ],
)  # fmt: skip
def test_bundled_images_are_read_back_as_they_were(tmp_path, name):
    assert_same(BUNDLED / name, tmp_path / "out")


@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.01, 30)] * 3),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_geometry_survives(tmp_path, angles, spacing, origin):
    series(tmp_path / "a", [0, 2, 4])
    _, found, pixels = read(tmp_path / "a")
    cos, sin = np.cos(angles), np.sin(angles)
    first = np.array([[cos[0], -sin[0], 0], [sin[0], cos[0], 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, cos[1], -sin[1]], [0, sin[1], cos[1]]])
    third = np.array([[cos[2], 0, sin[2]], [0, 1, 0], [-sin[2], 0, cos[2]]])
    turned = np.array(first @ second @ third)
    turned[:, 0] = np.cross(turned[:, 2], turned[:, 1])  # slices along the normal, columns x rows, in LPS+
    matrix = np.column_stack([turned * spacing, origin]) * [[-1], [-1], [1]]
    key = {**found.key, "unit": found.unit, "affine": matrix.tolist()}
    files = tuple(str(tmp_path / "a" / name) for name in found.paths)
    target = tmp_path / str(len(list(tmp_path.iterdir())))
    _, after, mine = read(dicom.save(files, key, pixels.values, None, target))
    np.testing.assert_allclose(after.affine, matrix, atol=1e-4)
    np.testing.assert_array_equal(mine.values, pixels.values)


def test_sheared_volumes_stay_sheared(tmp_path):
    places = tuple([0, 0.5 * number, 2 * number] for number in range(4))
    series(tmp_path / "a", range(4), ImagePositionPatient=places)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_frames_of_an_enhanced_image_become_slices(tmp_path):
    groups = [group(PlanePositionSequence={"ImagePositionPatient": [0, 0, depth]}) for depth in (4, 0, 2)]
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.7]},
    )
    save(enhanced(noise(3, 8, 6), groups, shared), tmp_path / "a.dcm")
    written = assert_same(tmp_path / "a.dcm", tmp_path / "b")
    assert pydicom.dcmread(written / "0001.dcm").SOPClassUID == uid.MRImageStorage


def test_values_beyond_the_sources_bits_are_kept_in_the_whole_dtype(tmp_path):
    series(tmp_path / "a", [0, 2])
    _, found, pixels = read(tmp_path / "a")
    first = pydicom.dcmread(again(tmp_path / "a", tmp_path / "b")[0] / "0001.dcm")
    assert (first.BitsStored, first.PixelRepresentation, first.RescaleIntercept) == (12, 0, -1024)
    values = pixels.values.copy()
    values[0, 0, 0, :2] = -32768, 32767
    written, after, mine = again(tmp_path / "a", tmp_path / "c", values)
    np.testing.assert_array_equal(mine.values, values)
    assert (after.dtype, after.unit) == (found.dtype, found.unit)
    first = pydicom.dcmread(written / "0001.dcm")
    assert (first.BitsStored, first.PixelRepresentation, first.RescaleIntercept, first.RescaleType) == (16, 1, 0, "HU")


def test_invalid_pixels_are_padding_that_no_valid_pixel_has(tmp_path):
    series(tmp_path / "a", [0, 2])
    _, _, pixels = read(tmp_path / "a")
    valid = np.random.default_rng(0).random(pixels.values.shape[1:]) < 0.7
    values = pixels.values.copy()
    values[0, 1, 1, :3] = -1024, -1023, 3071
    valid[1, 1, :3] = True
    _, _, mine = again(tmp_path / "a", tmp_path / "b", values, valid=valid)
    np.testing.assert_array_equal(mine.valid, valid)
    np.testing.assert_array_equal(mine.values[0][valid], values[0][valid])


def test_where_no_value_is_left_for_padding_it_says_so(tmp_path):
    stored = np.arange(512).reshape(16, 32).astype("uint8")
    save(image(stored, Modality="US"), tmp_path / "a.dcm")
    valid = np.ones(stored.shape, bool)
    valid[0, 0] = False
    with pytest.raises(DataError, match="none is left"):
        again(tmp_path / "a.dcm", tmp_path / "b", valid=valid)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]


def test_nothing_of_the_source_but_pixels_and_geometry_is_written(tmp_path):
    personal = {
        "PatientBirthDate": "19700102", "StudyDate": "20200304", "InstitutionName": "secret", "StationName": "secret",
        "SeriesDescription": "secret", "StudyDescription": "secret", "AccessionNumber": "secret",
        "FrameOfReferenceUID": "1.2.3.4",
    }  # fmt: skip
    series(tmp_path / "a", [0, 2], **personal)
    for path in (tmp_path / "a").iterdir():
        data = pydicom.dcmread(path)
        data.add_new(0x00091001, "LO", "secret")
        data.save_as(path)
    written, _, _ = again(tmp_path / "a", tmp_path / "b")
    identifiers = set()
    for path in sorted(written.iterdir()):
        raw = path.read_bytes()
        for secret in (b"ecret", b"19700102", b"20200304", b"1.2.3"):
            assert secret not in raw.replace(uid.PYDICOM_IMPLEMENTATION_UID.encode(), b"")
        data = pydicom.dcmread(path)
        assert (data.PatientName, data.PatientID, data.StudyDate) == ("", "", "")
        assert data.SeriesDescription == "maectl reconstruction"
        assert list(data.ImageType) == ["DERIVED", "SECONDARY"]
        assert data.SOPClassUID == data.file_meta.MediaStorageSOPClassUID == uid.CTImageStorage
        assert not [each for each in data if each.tag.is_private]
        identifiers.add((data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID))
    assert len(identifiers) == 1
    other = pydicom.dcmread(again(tmp_path / "a", tmp_path / "c")[0] / "0001.dcm")
    assert not {other.StudyInstanceUID, other.SeriesInstanceUID} & set(*identifiers)


@pytest.mark.parametrize("where", ["a", "picture.dcm"])
def test_what_is_written_is_valid_dicom(tmp_path, where):
    series(tmp_path / "a", [0, 2 / 3, 4 / 3])
    save(image(noise(8, 6), PixelSpacing=[1 / 3, 2 / 3]), tmp_path / "picture.dcm")
    written, found, _ = again(tmp_path / where, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
        try:
            for path in written.iterdir() if written.is_dir() else [written]:
                data = pydicom.dcmread(path)
                assert len(str(data)) > 0
                assert data.pixel_array.shape == found.shape[-2:]
                for keyword in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
                    assert all(len(str(each)) <= 16 for each in data.get(keyword, ()))
        finally:
            pydicom.config.settings.reading_validation_mode = pydicom.config.WARN


def test_what_dicom_cannot_hold_is_refused(tmp_path):
    assert [can_hold(dtype) for dtype in ("uint8", "int16", "uint16", "float32")] == [True, True, True, False]
    save(image(noise(8, 6)), tmp_path / "a.dcm")
    with pytest.raises(DataError, match="float32"):
        again(tmp_path / "a.dcm", tmp_path / "b", np.zeros((1, 8, 6), np.float32))
    with pytest.raises(DataError, match="2 channels"):
        again(tmp_path / "a.dcm", tmp_path / "b", np.zeros((2, 8, 6), np.int16))


def test_what_maectl_wrote_is_replaced_when_all_is_written(tmp_path):
    series(tmp_path / "a", [0, 2, 4])
    series(tmp_path / "less", [0, 2])
    save(image(noise(8, 6)), tmp_path / "picture.dcm")
    for source, target in (("a", "out"), ("less", "out"), ("picture.dcm", "out"), ("picture.dcm", "out")):
        _, _, pixels = again(tmp_path / source, tmp_path / target)
        np.testing.assert_array_equal(pixels.values, read(tmp_path / source)[2].values)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0001.dcm", "0002.dcm"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "less", "out", "out.dcm", "picture.dcm"]


@pytest.mark.parametrize("more", ["text", "original", "folder", "link"])
def test_a_folder_that_holds_anything_else_stays(tmp_path, more):
    series(tmp_path / "a", [0, 2])
    again(tmp_path / "a", tmp_path / "b")
    other = tmp_path / "b" / "other"
    if more == "text":
        other.write_text("notes")
    elif more == "original":
        other.write_bytes((tmp_path / "a" / "000.dcm").read_bytes())
    elif more == "folder":
        other.mkdir()
    else:
        other.symlink_to(tmp_path / "b" / "0001.dcm")
    before = {path: path.read_bytes() for path in (tmp_path / "b").glob("*.dcm")}
    with pytest.raises(DataError, match="exists already"):
        again(tmp_path / "a", tmp_path / "b")
    assert {path: path.read_bytes() for path in (tmp_path / "b").glob("*.dcm")} == before
    assert os.path.lexists(other)


def test_another_picture_of_the_same_name_stays(tmp_path):
    save(image(noise(8, 6)), tmp_path / "a.dcm")
    before = (tmp_path / "a.dcm").read_bytes()
    with pytest.raises(DataError, match="exists already"):
        again(tmp_path / "a.dcm", tmp_path / "a")
    assert (tmp_path / "a.dcm").read_bytes() == before


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    series(tmp_path / "a", [0, 2])
    written, _, _ = again(tmp_path / "a", tmp_path / "b")
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    rename, calls = Path.rename, []

    def failing(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(DataError, match="Input/output"):
        again(tmp_path / "a", tmp_path / "b")
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_bits_of_the_widest_slice_are_written(tmp_path):
    series(tmp_path / "a", [0, 2, 4], BitsStored=(8, 12, 8), Modality="MR", RescaleIntercept=0)
    written = assert_same(tmp_path / "a", tmp_path / "b")
    assert pydicom.dcmread(written / "0001.dcm").BitsStored == 12
    _, found, pixels = read(tmp_path / "a")
    _, dark, _ = again(tmp_path / "a", tmp_path / "c", np.minimum(pixels.values, 200))
    assert dark.dtype == found.dtype == "int16"  # of 8 bits it would be uint8


def test_nothing_half_written_is_left_and_nothing_overwritten(tmp_path, monkeypatch):
    series(tmp_path / "a", [0, 2])
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="exists already"):
        again(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match="cannot be written"):
        again(tmp_path / "a", tmp_path / "gone" / "b")
    calls = []

    def full(self, *arguments, **options):
        calls.append(self)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        Path(arguments[0]).write_bytes(b"half")

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(DataError, match="No space left"):
        again(tmp_path / "a", tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_source_that_is_gone_is_unreadable(tmp_path):
    series(tmp_path / "a", [0, 2])
    folder, found, pixels = read(tmp_path / "a")
    key = {**found.key, "unit": found.unit, "affine": found.affine}
    with pytest.raises(Unreadable, match="gone"):
        dicom.save((str(folder / "missing.dcm"),), key, pixels.values, None, tmp_path / "b")


def test_real_series_are_read_back_as_they_were(real_data, tmp_path):
    series_ = real_data / "medical" / "dicom_series" / "t1w_7t_part"
    assert_same(series_, tmp_path / "t1w")
    flair = real_data / "medical" / "dicom_mr_sequences" / "train" / "T1post"
    assert_same(flair, tmp_path / "post")
