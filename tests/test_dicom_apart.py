"""What must not become one volume, and what is one all the same."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import AXIAL, enhanced, group, image, noise, placed, save, series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import RLELossless
from test_dicom_series import rejects, scanned, values, volumes

from maectl_medical.dicom import Image, assemble, describe
from maectl_medical.dicom.copies import without_copies
from maectl_medical.dicom.geometry import interleaved
from maectl_medical.dicom.groups import groups_of
from maectl_medical.dicom.image import Frame
from maectl_medical.dicom.repeats import Slice

COPY = "a copy of another slice of its series"
UNTOLD = "4 slices at 3 positions, up to 2 at one, and nothing tells volumes apart"


def flat(path: Path, value: int, depth: float, **elements: object) -> None:
    """A slice of one stored value."""
    save(placed(np.full((8, 6), value, "uint16"), depth, **elements), path)


def stacks(folder: Path, **elements: object) -> list[set[int]]:
    """The stored values that each volume is made of."""
    return [set(np.unique(values(folder, each) + 1024).tolist()) for each in volumes(scanned(folder))]


# ---- copies ---------------------------------------------------------------------------------------------------


def test_other_pixels_under_another_identifier_are_no_copy(tmp_path):
    series(tmp_path, [0, 2, 4, 4], InstanceNumber=(1, 2, 3, 3))
    assert {each.reason for each in scanned(tmp_path)} == {UNTOLD}


@pytest.mark.parametrize("identifier", ["1.2.3.4", None])
def test_an_identifier_that_all_slices_share_makes_no_copies(tmp_path, identifier):
    stored = series(tmp_path, [0, 2, 4, 4], InstanceNumber=(1, 2, 3, 3))
    for path in tmp_path.iterdir():
        number = int(path.stem)
        data = placed(stored[number], (0, 2, 4, 4)[number], InstanceNumber=(1, 2, 3, 3)[number])
        data.SOPInstanceUID = identifier or ""
        data.file_meta.MediaStorageSOPInstanceUID = "1.2"
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.save_as(path, enforce_file_format=True)
    assert {each.reason for each in scanned(tmp_path)} == {UNTOLD}
    (tmp_path / "003.dcm").write_bytes((tmp_path / "002.dcm").read_bytes())
    assert [each.reason for each in rejects(scanned(tmp_path))] == [COPY]


def test_pictures_and_films_of_one_identifier_are_copies_only_with_the_same_pixels(tmp_path):
    for number in range(2):
        same = {"SOPInstanceUID": "1.2.3.4", "Modality": "US", "ImagePositionPatient": None}
        save(image(noise(5, 6, seed=number), **same), tmp_path / "a" / f"{number}.dcm")
        save(image(noise(3, 5, 6, seed=number), **same), tmp_path / "b" / f"{number}.dcm")
    assert len(volumes(scanned(tmp_path))) == 4
    for folder in ("a", "b"):
        (tmp_path / folder / "2.dcm").write_bytes((tmp_path / folder / "1.dcm").read_bytes())
    found = scanned(tmp_path)
    assert len(volumes(found)) == 4
    assert [each.reason for each in rejects(found)] == [COPY, "a copy of another film of its series"]


def test_compressed_pixels_are_compared_too_and_a_file_cut_short_is_no_copy(tmp_path):
    stored = series(tmp_path, [0, 2])
    for name, pixels in (("c", stored[1]), ("d", stored[1]), ("e", stored[0])):
        data = placed(pixels, 4, InstanceNumber=3)
        data.compress(RLELossless, generate_instance_uid=False)
        save(data, tmp_path / f"{name}.dcm")
    images = [describe(str(tmp_path), path.name) for path in sorted(tmp_path.iterdir())]
    found = list(assemble(images, geometry="strict"))
    assert [each.reason for each in rejects(found)] == [UNTOLD, UNTOLD, UNTOLD, COPY, UNTOLD]
    for name in ("c.dcm", "d.dcm"):  # neither has pixels any more
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: data.index(b"\xe0\x7f\x10\x00") + 20])
    assert COPY not in {each.reason for each in rejects(list(assemble(images, geometry="strict")))}


def test_frames_of_one_bit_that_begin_within_a_byte_are_compared_whole(tmp_path):
    places = [group(PlanePositionSequence={"ImagePositionPatient": [0, 0, depth]}) for depth in (0, 2)]
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
        PixelMeasuresSequence={"PixelSpacing": [1, 1]},
    )
    for number, bits in enumerate((0b11111_00000, 0b11111_00000, 0b11110_00000, 0b11111_00001)):
        data = enhanced(np.zeros((2, 1, 5), "uint8"), places, shared, InstanceNumber=1)
        data.BitsAllocated, data.BitsStored, data.HighBit = 1, 1, 0
        data.PixelData = bits.to_bytes(2, "little")
        save(data, tmp_path / f"{number}.dcm")
    images = [describe(str(tmp_path), f"{number}.dcm") for number in range(4)]
    _, copies = without_copies([Slice(each, index) for each in images for index in (0, 1)])
    # a frame is a copy unless a bit of it, or of a byte that it shares with its neighbour, differs
    assert [(each.image.path, each.index) for each in copies] == [("1.dcm", 0), ("1.dcm", 1)]


# ---- patients and studies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "whose"), [("PatientID", "patients"), ("StudyInstanceUID", "studies")]
)  # fmt: skip
def test_a_series_identifier_that_several_share_joins_nobody(tmp_path, keyword, whose):
    for number in range(8):
        owner = {keyword: f"1.{number // 4 + 7}"}
        flat(tmp_path / f"{number}.dcm", 1000 + number // 4, 5 * number, InstanceNumber=number + 1, **owner)
    found = volumes(scanned(tmp_path))
    assert [each.shape for each in found] == [(1, 4, 8, 6)] * 2
    assert stacks(tmp_path) == [{1000}, {1001}]
    assert [each.notes for each in found] == [(f"its series UID is that of several {whose}: kept apart",)] * 2


def test_without_a_series_identifier_number_study_and_patient_tell_series_of_a_folder_apart(tmp_path):
    for number, own in enumerate(({"SeriesNumber": 1}, {"SeriesNumber": 2}, {"PatientID": "B"})):
        for depth in range(3):
            flat(tmp_path / f"{number}{depth}", 1000 + number, 2 * (depth + 3 * number), SeriesInstanceUID=None, **own)
    found = volumes(scanned(tmp_path))
    assert stacks(tmp_path) == [{1000}, {1001}, {1002}]
    assert [each.notes for each in found] == [()] * 3


# ---- interleaved ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "seen", "told"),
    [
        ("AcquisitionNumber", (1, 2), "acquisition number"),
        ("EchoTime", (10, 90), "echo time"),
        ("DiffusionBValue", (0, 1000), "diffusion weighting"),
        ("InversionTime", (100, 200), "inversion time"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "image type"),
    ],
)
@pytest.mark.parametrize("offset", [2.5, 1.0, 22.5])
def test_interleaved_stacks_are_volumes_of_their_own(tmp_path, keyword, seen, told, offset):
    for number in range(12):
        late, depth = divmod(number, 6)
        flat(
            tmp_path / f"{number:02d}", 1000 + late, 5 * depth + offset * late, **{keyword: seen[late]},
            InstanceNumber=number + 1,
        )  # fmt: skip
    assert stacks(tmp_path) == [{1000}, {1001}]
    assert [each.notes for each in scanned(tmp_path)] == [
        (f"its series holds 2 volumes of interleaved slices, told apart by {told}",)
    ] * 2


def test_interleaved_stacks_with_missing_slices_are_not_mixed(tmp_path):
    for number in (0, 1, 2, 4, 5, 6, 7, 8, 9, 11):
        flat(tmp_path / f"{number:02d}", 1000 + number % 2, 5 * number, EchoTime=10 + number % 2)
    assert all(len(found) == 1 for found in stacks(tmp_path))
    assert "a gap of 1 slice: split there" in {note for each in volumes(scanned(tmp_path)) for note in each.notes}


def test_echoes_and_acquisitions_may_be_interleaved_together_and_repeat_positions(tmp_path):
    for number in range(32):
        again, place = divmod(number, 16)
        echo, late = place % 2, place // 2 % 2
        flat(
            tmp_path / f"{number:02d}", 1000 + 4 * again + 2 * echo + late, place, EchoTime=10 + echo,
            AcquisitionNumber=late + 1, TemporalPositionIdentifier=again + 1, InstanceNumber=number + 1,
        )  # fmt: skip
    assert sorted(map(sorted, stacks(tmp_path))) == [[1000 + value] for value in range(8)]


@pytest.mark.parametrize(
    "elements",
    [
        {"AcquisitionNumber": tuple(range(1, 9))},
        {"AcquisitionNumber": (1, 1, 1, 2, 2, 3, 3, 3)},
        {"AcquisitionNumber": (1, 1, 1, 2, 2, 1, 1, 1)},
        {"AcquisitionTime": ("101010", "101020") * 4},
        {"TriggerTime": (0, 40) * 4, "ContentTime": ("101010", "101020") * 4},
        {"EchoTime": (10, 10, 10, 20, 10, 10, 10, 10)},
        {"EchoTime": (20, 10, 10, 10, 10, 10, 10, 20)},
        {"EchoTime": (10, 20, 10, 10, 10, 20, 10, 10)},
    ],
)
def test_slabs_turns_and_numbers_of_single_slices_do_not_split_a_volume(tmp_path, elements):
    stored = series(tmp_path, np.arange(8) * 5, **elements)
    [found] = scanned(tmp_path)
    assert (found.shape, found.notes) == ((1, 8, 8, 6), ())
    np.testing.assert_array_equal(values(tmp_path, found)[0], stored.astype(int) - 1024)


@given(
    step=st.floats(0.1, 20), counts=st.tuples(st.integers(3, 9), st.integers(3, 9)), part=st.floats(0.1, 0.9),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_stacks_between_each_others_slices_are_interleaved_and_one_behind_the_other_are_not(step, counts, part, seed):
    first, second = (step * np.arange(count) for count in counts)
    order = np.random.default_rng(seed).permutation(sum(counts))
    labels = np.repeat([0, 1], counts)[order]
    assert interleaved(np.concatenate([first, second + part * step])[order], labels)
    assert interleaved(np.concatenate([first, second + part * step])[order], 1 - labels)
    assert not interleaved(np.concatenate([first, second + step * (counts[0] - 1 + part)])[order], labels)
    bent = first + step * 0.3 * (np.arange(counts[0]) == 1)
    assert not interleaved(np.concatenate([bent, second + part * step + 1e-3])[order], labels)


# ---- bits stored ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_bits_stored_may_differ_from_slice_to_slice(tmp_path, photometric):
    bits = (12, 10, 16, 10)
    stored = noise(4, 8, 6, high=1024)
    for number in range(4):
        own = {"BitsStored": bits[number], "PhotometricInterpretation": photometric}
        filled = stored[number] | (0xF000 if bits[number] < 16 else 0)  # what lies above is no part of a value
        save(placed(filled, 2 * number, Modality="MR", RescaleIntercept=0, **own), tmp_path / f"{number}.dcm")
    [found] = scanned(tmp_path)
    assert (found.shape, found.dtype, found.notes) == ((1, 4, 8, 6), "uint16", ())
    expected = 65535 - stored if photometric == "MONOCHROME1" else stored
    np.testing.assert_array_equal(values(tmp_path, found)[0], expected)


def test_shades_of_grey_of_seven_bits_lie_in_one_volume_with_those_of_eight(tmp_path):
    stored = noise(3, 8, 6, high=128, dtype="uint8")
    for number in range(3):
        own = {"BitsStored": 8 - number % 2, "Modality": "US", "RescaleIntercept": 0}
        save(placed(stored[number], 2 * number, **own), tmp_path / f"{number}.dcm")
    [found] = scanned(tmp_path)
    assert (found.shape, found.dtype, found.unit) == ((1, 3, 8, 6), "uint8", "value")
    np.testing.assert_array_equal(values(tmp_path, found)[0], stored)


# ---- orientations ---------------------------------------------------------------------------------------------


def pointing(directions: np.ndarray, spacing: tuple[float, float], tmp: Image) -> Slice:
    frame = Frame((0.0, 0.0, 0.0), tuple(directions.tolist()), spacing, 0.0, (1.0, 0.0), {}, None)
    return Slice(replace(tmp, frames=(frame,)), 0)


@pytest.fixture
def any_image(tmp_path: Path) -> Image:
    save(placed(noise(8, 6), 0), tmp_path / "a.dcm")
    found = describe(str(tmp_path), "a.dcm")
    assert isinstance(found, Image)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_comparing_every_slice_with_every_group(any_image, seed):
    own = np.random.default_rng(seed)
    slices = [
        pointing(np.array(AXIAL) + own.uniform(-2e-3, 2e-3, 6), tuple(np.exp(own.uniform(-2e-3, 2e-3, 2))), any_image)
        for _ in range(150)
    ]
    expected: list[list[Slice]] = []
    for each in slices:
        for known in expected:
            turned = np.abs(np.subtract(known[0].frame.orientation, each.frame.orientation)).max()
            ratio = np.abs(np.divide(known[0].frame.spacing, each.frame.spacing) - 1).max()
            if turned <= 1e-3 and ratio <= 1e-3:
                known.append(each)
                break
        else:
            expected.append([each])
    assert [list(map(id, found)) for found in groups_of(slices)] == [list(map(id, each)) for each in expected]
    assert 5 < len(expected) < 150


def test_ten_thousand_orientations_take_no_quadratic_time(any_image):
    angles = np.linspace(0, np.pi, 10_000) * 4  # a turn of 1.3e-3 each
    zero = np.zeros_like(angles)
    radial = np.stack([np.cos(angles), np.sin(angles), zero, zero, zero, zero - 1], axis=1)
    slices = [pointing(each, (0.5, 0.5), any_image) for each in radial]
    start = time.process_time()
    groups = groups_of(slices)
    assert len(groups) > 4000
    assert time.process_time() - start < 10
