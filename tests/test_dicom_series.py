import math
import os
from pathlib import Path

import numpy as np
import pytest
from dicom_files import enhanced, group, image, noise, placed, save, series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maectl.adapter import Files, Reject
from maectl_medical.dicom import Image, assemble, describe, load
from maectl_medical.stored import Found


def scanned(folder: Path, geometry: str = "strict") -> list[Found | Reject]:
    described = [describe(str(folder), path) for path in Files(folder)]
    assert all(isinstance(each, Image) for each in described)
    return list(assemble(described, geometry=geometry))


def volumes(found: list[Found | Reject]) -> list[Found]:
    return [each for each in found if isinstance(each, Found)]


def rejects(found: list[Found | Reject]) -> list[Reject]:
    return [each for each in found if isinstance(each, Reject)]


def values(folder: Path, found: Found) -> np.ndarray:
    files = tuple(str(folder / path) for path in found.paths)
    return load(files, found.key, found.shape, found.dtype, None).values


def turn(angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions of columns, rows and slices of an oblique orientation."""
    c, s = math.cos(angle), math.sin(angle)
    across, down = np.array([c, s, 0.0]), np.array([-s * c, c * c, s])
    return across, down, np.cross(across, down)


def test_slices_become_a_volume_in_the_order_of_their_positions(tmp_path):
    stored = series(tmp_path, [6, 2, 4, 0])
    [found] = scanned(tmp_path)
    assert found.paths == ("003.dcm", "001.dcm", "002.dcm", "000.dcm")
    assert (found.shape, found.dtype, found.unit, found.channels) == ((1, 4, 8, 6), "int16", "HU", ("grey",))
    assert (found.axes, found.spacing, found.notes) == ((), None, ())
    assert "frames" not in found.key
    np.testing.assert_array_equal(values(tmp_path, found)[0], stored[[3, 1, 2, 0]].astype(int) - 1024)


def test_the_affine_takes_indices_to_the_patients_right_anterior_superior(tmp_path):
    series(tmp_path, [6, 2, 4, 0])
    [found] = scanned(tmp_path)
    # slice, row, column -> LPS (-10 + 0.7 column, -20 + 0.5 row, 2 slice), and RAS turns x and y over
    np.testing.assert_allclose(found.affine, [[0, 0, -0.7, 10], [0, -0.5, 0, 20], [2, 0, 0, 0]])


@given(angle=st.floats(-3, 3), step=st.floats(0.05, 20), count=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_oblique_volumes_keep_every_voxels_place(tmp_path, angle, step, count, seed):
    folder = tmp_path / f"{angle}{step}{count}{seed}"
    across, down, normal = turn(angle)
    order = np.random.default_rng(seed).permutation(count)
    for number, depth in enumerate(order):
        place = [f"{each:.8f}" for each in (5, -7, 9) + normal * step * depth]
        directions = [f"{each:.9f}" for each in (*across, *down)]
        data = placed(noise(3, 4), 0, ImagePositionPatient=place, ImageOrientationPatient=directions)
        save(data, folder / f"{number}.dcm")
    [found] = scanned(folder)
    assert [int(path[0]) for path in found.paths] == np.argsort(order).tolist()
    matrix = np.array(found.affine)
    for index in ((0, 0, 0), (count - 1, 2, 3)):
        lps = (5, -7, 9) + normal * step * index[0] + down * 0.5 * index[1] + across * 0.7 * index[2]
        np.testing.assert_allclose(matrix @ (*index, 1), lps * (-1, -1, 1), atol=1e-5)


def test_acquisition_numbers_and_mixed_folders_do_not_split_a_volume_of_distinct_positions(tmp_path):
    series(tmp_path / "a", [0, 2], AcquisitionNumber=1)
    series(tmp_path / "b", [4, 6], AcquisitionNumber=2)
    [found] = scanned(tmp_path)
    assert found.shape == (1, 4, 8, 6)


def test_without_series_uids_the_folder_is_the_series(tmp_path):
    series(tmp_path / "a", [0, 2], SeriesInstanceUID=None)
    series(tmp_path / "b", [4, 6], SeriesInstanceUID=None)
    assert [each.paths for each in scanned(tmp_path)] == [("a/000.dcm", "a/001.dcm"), ("b/000.dcm", "b/001.dcm")]


@pytest.mark.parametrize(
    ("keyword", "seen", "told"),
    [
        ("EchoTime", (10, 20), "echo time"),
        ("TemporalPositionIdentifier", (1, 2), "time point"),
        ("DiffusionBValue", (0, 1000), "diffusion weighting"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "image type"),
        ("InversionTime", (100, 200), "inversion time"),
        ("FlipAngle", (5, 30), "flip angle"),
        ("TriggerTime", (0, 40), "trigger time"),
        ("AcquisitionNumber", (1, 2), "acquisition number"),
        ("AcquisitionTime", ("101112", "101113"), "acquisition time"),
    ],
)
def test_volumes_of_one_series_are_told_apart_by_their_acquisition(tmp_path, keyword, seen, told):
    each = tuple(value for value in seen for _ in range(3))
    stored = series(tmp_path, [0, 2, 4] * 2, **{keyword: each, "ContentTime": tuple(f"{10 + k}" for k in range(6))})
    found = scanned(tmp_path)
    assert [each.notes for each in found] == [(f"its series holds 2 volumes, told apart by {told}",)] * 2
    for number in range(2):
        expected = stored[3 * number : 3 * number + 3].astype(int) - 1024
        np.testing.assert_array_equal(values(tmp_path, found[number])[0], expected)


def test_two_attributes_may_tell_volumes_apart_only_together(tmp_path):
    series(tmp_path, [0, 2] * 4, EchoTime=(1, 1, 1, 1, 2, 2, 2, 2), FlipAngle=(5, 5, 9, 9) * 2)
    found = scanned(tmp_path)
    assert [each.paths[0] for each in found] == ["000.dcm", "002.dcm", "004.dcm", "006.dcm"]
    assert found[0].notes == ("its series holds 4 volumes, told apart by echo time and flip angle",)


def test_the_order_of_instance_numbers_is_the_last_resort(tmp_path):
    series(tmp_path, [0, 2, 4] * 3, InstanceNumber=(7, 8, 9, 1, 2, 3, 4, 5, 6))
    found = scanned(tmp_path)
    assert [each.paths[0] for each in found] == ["000.dcm", "003.dcm", "006.dcm"]
    assert "only the order of their instance numbers" in found[0].notes[0]


def test_what_cannot_be_told_apart_is_rejected(tmp_path):
    series(tmp_path, [0, 2, 4, 4])
    found = scanned(tmp_path)
    assert {each.reason for each in rejects(found)} == {
        "4 slices at 3 positions, up to 2 at one, and nothing tells volumes apart"
    }
    assert sorted(path for each in found for path in each.paths) == ["000.dcm", "001.dcm", "002.dcm", "003.dcm"]


def test_copies_of_a_slice_are_rejected_and_the_volume_stays(tmp_path):
    stored = series(tmp_path, [0, 2, 4])
    save(placed(stored[2], 4, InstanceNumber=3), tmp_path / "003.dcm")  # under a new identifier
    (tmp_path / "004.dcm").write_bytes((tmp_path / "001.dcm").read_bytes())
    found = scanned(tmp_path)
    assert volumes(found)[0].paths == ("000.dcm", "001.dcm", "002.dcm")
    assert [(each.paths, each.reason) for each in rejects(found)] == [
        (("003.dcm",), "a copy of another slice of its series"),
        (("004.dcm",), "a copy of another slice of its series"),
    ]


def test_gaps_split_a_volume(tmp_path):
    series(tmp_path, [0, 2, 4, 10, 12, 14])
    found = scanned(tmp_path)
    assert [each.paths for each in found] == [("000.dcm", "001.dcm", "002.dcm"), ("003.dcm", "004.dcm", "005.dcm")]
    assert [each.notes for each in found] == [("a gap of 2 slices: split there",)] * 2


def test_a_single_slice_beside_a_gap_is_no_volume(tmp_path):
    series(tmp_path, [0, 2, 4, 8])
    found = scanned(tmp_path)
    assert len(volumes(found)) == 1
    assert rejects(found) == [Reject(("003.dcm",), "a single slice beside a gap: no volume")]


def test_uneven_spacing_is_rejected_or_kept_with_a_note(tmp_path):
    series(tmp_path, [0, 2, 4, 6.5, 8.5])
    [*told] = scanned(tmp_path)
    assert {each.reason for each in told} == {
        "slices 2 to 2.5 mm apart, 2 mm as a rule: no regular grid (geometry=lenient keeps it)"
    }
    [found] = scanned(tmp_path, "lenient")
    assert found.notes == ("slices 2 to 2.5 mm apart, 2 mm as a rule",)
    assert found.affine[2][0] == pytest.approx(2)


def test_gantry_tilt_is_rejected_or_kept_sheared(tmp_path):
    shift = 2 * math.tan(math.radians(10))
    for number in range(4):
        data = placed(noise(8, 6), 0, ImagePositionPatient=[0, round(number * shift, 6), 2 * number])
        save(data, tmp_path / f"{number}.dcm")
    assert {each.reason.split(":")[0] for each in scanned(tmp_path)} == {"slices sheared by 10.0 degrees (gantry tilt)"}
    [found] = scanned(tmp_path, "lenient")
    assert found.notes == ("slices sheared by 10.0 degrees (gantry tilt)",)
    np.testing.assert_allclose(np.array(found.affine)[:, 0], [0, -shift, 2], atol=1e-6)


def test_slices_beside_a_straight_line_are_no_grid(tmp_path):
    for number, x in enumerate((0, 0, 3, 0, 0)):
        save(placed(noise(8, 6), 0, ImagePositionPatient=[x, 0, 2 * number]), tmp_path / f"{number}.dcm")
    assert "beside a straight line" in scanned(tmp_path)[0].reason


def test_shapes_and_orientations_of_one_series_become_volumes_of_their_own(tmp_path):
    series(tmp_path / "a", [0, 2])
    series(tmp_path / "b", [0, 2], (5, 5))
    series(tmp_path / "c", [0, 2], PixelSpacing=[0.9, 0.9])
    for number in range(2):
        sagittal = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [number, 0, 0]}
        save(placed(noise(8, 6), 0, **sagittal), tmp_path / "d" / f"{number}.dcm")
    found = scanned(tmp_path)
    assert [(each.paths[0][0], each.shape[1:]) for each in found] == [
        ("a", (2, 8, 6)), ("b", (2, 5, 5)), ("c", (2, 8, 6)), ("d", (2, 8, 6)),
    ]  # fmt: skip
    assert found[0].notes == ("its series holds several shapes or orientations: a volume each",)


def test_a_slice_alone_is_a_picture_and_so_is_what_has_no_place(tmp_path):
    series(tmp_path / "a", [0])
    for number in range(2):
        data = image(noise(8, 6), Modality="CR", SeriesInstanceUID="1.9", InstanceNumber=number)
        save(data, tmp_path / "b" / f"{number}.dcm")
    found = scanned(tmp_path)
    assert [each.shape for each in found] == [(1, 8, 6)] * 3
    assert [each.axes for each in found] == [("row", "column")] * 3
    assert [each.spacing for each in found] == [(0.5, 0.7), None, None]
    assert [each.affine for each in found] == [None] * 3


def test_pictures_of_one_place_are_an_image_each(tmp_path):
    series(tmp_path, [3, 3, 3], TriggerTime=(0, 40, 80))
    found = scanned(tmp_path)
    assert [each.shape for each in found] == [(1, 8, 6)] * 3
    assert found[0].notes == ("3 pictures of one place in its series: an image each",)


def test_frames_without_places_are_a_film(tmp_path):
    stored = noise(5, 8, 6, high=256, dtype="uint8")
    save(image(stored, Modality="US"), tmp_path / "a.dcm")
    [found] = scanned(tmp_path)
    assert (found.shape, found.axes, found.spacing, found.unit) == (
        (1, 5, 8, 6), ("frame", "row", "column"), None, "0..255",
    )  # fmt: skip
    np.testing.assert_array_equal(values(tmp_path, found)[0], stored)


def test_an_enhanced_image_holds_the_volumes_of_its_time_points(tmp_path):
    stored = noise(6, 8, 6)
    groups = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [0, 0, 3 * (k % 3)]},
            FrameContentSequence={"TemporalPositionIndex": 1 + k // 3, "DimensionIndexValues": [1 + k // 3, 1 + k % 3]},
        )
        for k in (5, 1, 2, 3, 4, 0)
    ]
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.7]},
    )
    save(enhanced(stored, groups, shared), tmp_path / "a.dcm")
    first, second = scanned(tmp_path)
    assert first.paths == second.paths == ("a.dcm",)
    by_time = {tuple(frame for _, frame in each.key["frames"]): each for each in (first, second)}
    assert set(by_time) == {(5, 1, 2), (3, 4, 0)}
    for order, each in by_time.items():
        np.testing.assert_array_equal(values(tmp_path, each)[0], stored[list(order)])
    assert first.notes == ("its series holds 2 volumes, told apart by time point",)


def test_the_result_does_not_depend_on_the_order_of_the_files(tmp_path):
    series(tmp_path / "a", [0, 2, 4])
    series(tmp_path / "b", [0, 2, 4], SeriesInstanceUID="1.8")
    images = [describe(str(tmp_path), path) for path in Files(tmp_path)]
    assert list(assemble(images, geometry="strict")) == list(assemble(images[::-1], geometry="strict"))


def test_rescaling_that_varies_makes_floats_and_one_dtype_for_the_volume(tmp_path):
    stored = series(tmp_path, [0, 2], RescaleSlope=(0.5, 2), RescaleIntercept=0, Modality="PT", Units="BQML")
    [found] = scanned(tmp_path)
    assert (found.dtype, found.unit) == ("float32", "Bq/ml")
    np.testing.assert_array_equal(values(tmp_path, found)[0], stored * np.array([0.5, 2])[:, None, None])


def test_nothing_personal_gets_into_what_is_found(tmp_path):
    series(tmp_path, [0, 2, 2], PatientID="secret-id", SeriesDescription="secret", StationName="secret")
    text = repr(scanned(tmp_path))
    assert "secret" not in text
    assert "1.2.3" not in text


def test_real_series_of_an_mri_are_eight_volumes(real_data):
    found = scanned(real_data / "medical" / "dicom_mr_sequences")
    assert sorted((each.paths[0].split("/")[0], each.shape) for each in found) == (
        [("test", (1, 4, 512, 512))] * 4 + [("train", (1, 22, 320, 280))] * 4
    )
    assert len({each.group for each in found}) == 2


def test_real_series_with_several_volumes_mosaics_and_diffusion(real_data):
    folder = real_data / "medical" / "dicom_series"
    described = [describe(str(folder), path) for path in Files(folder)]
    assert [each.reason for each in described if isinstance(each, Reject)] == [
        "a Siemens mosaic, 5 slices tiled in one picture: convert it to single slices or NIfTI (dcm2niix)"
    ] * 4
    found = list(assemble([each for each in described if isinstance(each, Image)], geometry="strict"))
    shapes = sorted((os.path.dirname(each.paths[0]), each.shape) for each in found)
    assert shapes == (
        [("ge_dwi_256", (1, 2, 256, 256))] * 7
        + [("ge_epi_64", (1, 15, 64, 64))] * 10
        + [("t1w_7t_part", (1, 24, 384, 274))]
    )
    epi = [each for each in found if "epi" in each.paths[0]]
    assert [int(each.paths[0][-9:-4]) for each in epi] == list(range(1, 151, 15))


def test_slices_of_a_scanner_that_have_no_place_are_pictures_with_a_note(tmp_path):
    series(tmp_path, [0, 2], ImagePositionPatient=None)
    found = scanned(tmp_path)
    assert [each.shape for each in found] == [(1, 8, 6)] * 2
    assert found[0].notes == ("slices without position, orientation or pixel spacing: an image each",)
