import os
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from dicom_files import BUNDLED, enhanced, group, image, noise, placed, save
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items

from maectl.adapter import Reject
from maectl.errors import Unreadable
from maectl_medical.dicom import Image, assemble, describe, load, looks_like

PIXELS = noise(8, 6)


def described(data: Dataset, folder: Path, name: str = "a.dcm") -> Image | Reject | None:
    save(data, folder / name)
    return describe(str(folder), name)


def reason(data: Dataset, folder: Path) -> str:
    found = described(data, folder)
    assert isinstance(found, Reject)
    return found.reason


def test_a_file_is_dicom_by_its_content():
    assert looks_like("anything.txt", bytes(128) + b"DICM" + bytes(124))
    bare = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + bytes(200)
    implicit = b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100" + bytes(200)
    big = b"\x00\x08\x00\x05CS\x00\x0aISO_IR 100" + bytes(200)
    for head in (bare, implicit, big):
        assert [looks_like(name, head) for name in ("a", "a.IMA", "a.dic", "a.jpg")] == [True, True, True, False]
    assert not looks_like("a", b"hello world, this is no DICOM file" * 10)
    assert not looks_like("a.dcm", b"")


def test_what_is_no_dicom_is_passed_over_unless_its_suffix_promises_it(tmp_path):
    for name in ("a.txt", "b", "c.dcm", "d.DICOM"):
        (tmp_path / name).write_text("hello")
    (tmp_path / "e.dcm").write_bytes(b"")
    told = [describe(str(tmp_path), name) for name in ("a.txt", "b", "c.dcm", "d.DICOM", "e.dcm", "gone.dcm", "gone")]
    assert [type(each) for each in told] == [type(None), type(None), Reject, Reject, Reject, Reject, type(None)]
    assert told[2].reason == "no DICOM file in spite of its suffix"
    assert told[4].reason == "empty file"


def test_an_image_is_described_small_and_without_names(tmp_path):
    found = described(placed(PIXELS, 3.0, PatientBirthDate="19700101", AccessionNumber="secret-1"), tmp_path)
    assert isinstance(found, Image)
    assert (found.rows, found.columns, found.unit) == (8, 6, "HU")
    assert found.facts == (
        "modality: CT", "transfer syntax: Explicit VR Little Endian", "photometric: MONOCHROME2", "bits: 12 of 16",
    )  # fmt: skip
    data = pickle.dumps(found)
    assert pickle.loads(data) == found
    assert len(data) < 2000
    for secret in (b"ecret", b"1970", b"1.2.3"):
        assert secret not in data


def test_the_same_patient_is_the_same_group_by_id_then_name_then_study(tmp_path):
    def of(**elements):
        return described(image(PIXELS, **elements), tmp_path).group

    assert of(StudyInstanceUID="1.7") == of() != of(PatientID="other")
    assert of(PatientID="", StudyInstanceUID="1.7") == of(PatientID=None) != of(PatientID="", PatientName="Other")
    assert of(PatientID="", PatientName="") == of(PatientID="", PatientName="^") != ""
    assert of(PatientID=None, PatientName=None, StudyInstanceUID=None) == ""


@pytest.mark.parametrize(
    ("storage", "word"),
    [
        (uid.SegmentationStorage, "SEG"),
        (uid.BasicTextSRStorage, "SR"),
        (uid.RTStructureSetStorage, "RTSTRUCT"),
        (uid.RTPlanStorage, "RTPLAN"),
        (uid.RTDoseStorage, "RTDOSE"),
        (uid.EncapsulatedPDFStorage, "document"),
        (uid.GrayscaleSoftcopyPresentationStateStorage, "presentation state"),
        (uid.KeyObjectSelectionDocumentStorage, "KO"),
        (uid.TwelveLeadECGWaveformStorage, "waveform"),
        (uid.RawDataStorage, "raw data"),
        (uid.VLWholeSlideMicroscopyImageStorage, "whole-slide"),
    ],
)
def test_objects_that_are_no_images_are_named(tmp_path, storage, word):
    told = reason(image(PIXELS, SOPClassUID=storage), tmp_path)
    assert word in told
    assert told.endswith("not an image")


def test_what_pixels_need_must_be_in_the_header(tmp_path):
    assert reason(image(PIXELS, Rows=None), tmp_path) == "its header has no Rows"
    assert reason(image(PIXELS, Columns=None), tmp_path) == "its header has no Columns"
    assert reason(image(PIXELS, BitsAllocated=None), tmp_path) == "its header has no BitsAllocated"
    assert "PixelRepresentation" in reason(image(PIXELS, PixelRepresentation=None), tmp_path)
    assert reason(image(PIXELS, Columns=0), tmp_path) == "8 rows x 0 columns: no pixels"
    assert reason(image(PIXELS, NumberOfFrames=0), tmp_path).startswith("its number of frames is no number")
    assert "831746290599" not in reason(image(PIXELS, NumberOfFrames="831746290599"), tmp_path)
    for keyword in ("RescaleSlope", "RescaleIntercept"):  # read as 1 or 0, pixels would be wrong in silence
        data = image(PIXELS, RescaleSlope=1, RescaleIntercept=0)
        data[keyword] = DataElement(keyword, "LO", "two")
        assert reason(data, tmp_path).startswith(f"its {keyword} is no number")
    assert reason(image(PIXELS, BitsAllocated=12, BitsStored=12), tmp_path).startswith("12 bits stored of 12")
    for elements in ({"BitsAllocated": 20826}, {"BitsStored": 20826}, {"HighBit": 20826}, {"SamplesPerPixel": 20826}):
        told = reason(image(PIXELS, **elements), tmp_path)  # such numbers might be somebody's
        assert "an impossible" in told
        assert not any(number in told for number in ("20826", "20825"))
    assert "end with bit 15" in reason(image(PIXELS, BitsStored=12, HighBit=15), tmp_path)
    assert "no pixel data" in reason(image(PIXELS, PixelData=None), tmp_path)
    assert "unknown colour space" in reason(image(PIXELS, PhotometricInterpretation="SECRET"), tmp_path)


@pytest.mark.parametrize(("slope", "intercept"), [(0, 5), (0, 0), (1e-60, 0), (1e-12, -1024)])
def test_a_slope_that_makes_one_value_of_all_pixels_is_rejected(tmp_path, slope, intercept):
    told = reason(image(PIXELS, RescaleSlope=slope, RescaleIntercept=intercept), tmp_path)
    assert told == "its RescaleSlope is 0, or as good as: all its pixels would have one value"


def test_small_and_negative_slopes_are_kept_and_colours_have_none(tmp_path):
    for slope in (1e-6, -1, 1e300):
        assert isinstance(described(image(PIXELS, RescaleSlope=slope, RescaleIntercept=0), tmp_path), Image)
    colours = image(noise(8, 6, 3, high=256, dtype="uint8"), RescaleSlope=0, RescaleIntercept=0)
    assert isinstance(described(colours, tmp_path), Image)


def test_a_slope_of_zero_in_one_frame_of_many_is_rejected(tmp_path):
    groups = [
        group(PixelValueTransformationSequence={"RescaleSlope": slope, "RescaleIntercept": 5}) for slope in (1, 0, 1)
    ]
    assert reason(enhanced(noise(3, 8, 6), groups, group()), tmp_path).startswith("its RescaleSlope is 0")


def test_uncompressed_pixels_that_are_too_few_are_found_without_reading_them(tmp_path):
    told = reason(image(PIXELS, Rows=9), tmp_path)
    assert told == "truncated: 96 bytes of pixel data, where its header promises 108"
    path = save(image(PIXELS), tmp_path / "cut.dcm")
    os.truncate(path, path.stat().st_size - 10)
    assert describe(str(tmp_path), "cut.dcm").reason.startswith("truncated: 86 bytes")
    found = described(image(noise(3, 8, 6), NumberOfFrames=1), tmp_path)
    assert found.notes == ("more pixel data than its header tells of: left out",)


def test_transfer_syntaxes_that_nothing_decodes_are_named(tmp_path):
    for syntax, told in ((uid.MPEG2MPML, "MPEG2 Main Profile"), (uid.UID("1.2.3.4.5.6.7"), "an unknown one")):
        data = image(PIXELS)
        data.PixelData = encapsulate([b"frame!"])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
        assert told in describe(str(tmp_path), "a.dcm").reason


def test_mosaics_say_how_many_slices_they_hold(tmp_path):
    data = image(PIXELS, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"], Modality="MR")
    assert "many slices tiled" in reason(data, tmp_path)
    data.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    data.add_new(0x0019100A, "US", 25)
    assert "a Siemens mosaic, 25 slices tiled in one picture" in reason(data, tmp_path)


def test_units_are_those_that_the_header_gives(tmp_path):
    def unit(pixels=PIXELS, **elements):
        return described(image(pixels, **elements), tmp_path).unit

    bytes_ = noise(8, 6, high=256, dtype="uint8")
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    assert unit(**rescale) == unit(RescaleType="HU", **rescale) == "HU"
    assert (
        unit(RescaleType="US", **rescale) == unit(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **rescale) == "value"
    )
    assert unit() == "value"
    assert unit(Modality="PT", Units="BQML") == "Bq/ml"
    assert unit(Modality="PT", Units="CNTS") == "value"
    assert unit(bytes_, Modality="US") == unit(noise(8, 6, 3, high=256, dtype="uint8"), Modality="XC") == "0..255"
    assert unit(bytes_, Modality="MR") == unit(bytes_, Modality="US", BitsStored=7) == "value"


def test_pixel_spacing_is_the_patients_then_the_detectors_then_the_ultrasound_regions(tmp_path):
    def spacing(**elements):
        return described(image(PIXELS, **elements), tmp_path).frames[0].spacing

    region = Dataset()
    for name, value in {"MinX0": 0, "MinY0": 0, "MaxX1": 5, "MaxY1": 7}.items():
        setattr(region, f"RegionLocation{name}", value)
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    assert spacing(PixelSpacing=[0.5, 0.7], ImagerPixelSpacing=[1, 1]) == (0.5, 0.7)
    assert spacing(ImagerPixelSpacing=[0.2, 0.3]) == (0.2, 0.3)
    assert spacing(SequenceOfUltrasoundRegions=Items([region])) == pytest.approx((0.3, 0.2))
    assert spacing(SequenceOfUltrasoundRegions=Items([region, region])) is None
    region.RegionLocationMaxX1 = 1
    assert spacing(SequenceOfUltrasoundRegions=Items([region])) is None
    assert spacing(PixelSpacing=[0, 0.7]) is None
    assert spacing() is None


def test_burned_in_text_and_spacing_at_the_detector_are_noted(tmp_path):
    found = described(image(PIXELS, BurnedInAnnotation="YES", ImagerPixelSpacing=[0.2, 0.3]), tmp_path)
    assert found.notes == (
        "pixel spacing is known at the detector only (ImagerPixelSpacing)",
        "text may be burned into the pixels (BurnedInAnnotation=YES)",
    )


def test_frames_of_an_enhanced_image_have_their_own_places(tmp_path):
    groups = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [0, 0, depth]},
            FrameContentSequence={"StackID": "1", "TemporalPositionIndex": 2},
            PixelValueTransformationSequence={"RescaleSlope": depth, "RescaleIntercept": 5},
        )
        for depth in (1, 2, 3)
    ]
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.7], "SliceThickness": 1},
    )
    found = described(enhanced(noise(3, 8, 6), groups, shared), tmp_path)
    assert [frame.position for frame in found.frames] == [(0, 0, 1), (0, 0, 2), (0, 0, 3)]
    assert [frame.rescale for frame in found.frames] == [(1, 5), (2, 5), (3, 5)]
    assert found.frames[0].spacing == (0.5, 0.7)
    assert found.frames[0].marks == {"time point": "2", "stack": "1"}
    assert not found.film


def test_directories_of_media_are_passed_over():
    assert describe(str(BUNDLED / "dicomdirtests"), "DICOMDIR") is None
    assert describe(str(BUNDLED / "dicomdirtests"), "DICOMDIR-empty.dcm") is None


def test_damaged_files_give_an_image_or_a_reason_and_never_an_error(tmp_path):
    chance = random.Random(7)
    wholes = [path.read_bytes() for path in sorted(BUNDLED.glob("*.dcm")) if path.stat().st_size < 60_000]
    for _ in range(600):
        data = bytearray(chance.choice(wholes))
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data))]
        for _ in range(chance.choice((1, 3, 20)) if data else 0):
            data[chance.randrange(min(len(data), 3000))] = chance.randrange(256)
        (tmp_path / "a.dcm").write_bytes(data)
        found = describe(str(tmp_path), "a.dcm")
        assert found is None or isinstance(found, Image | Reject)
        for each in assemble([found], geometry="strict") if isinstance(found, Image) else ():
            if isinstance(each, Reject) or np.prod(each.shape) > 1e7:
                continue
            try:
                pixels = load((str(tmp_path / "a.dcm"),), each.key, each.shape, each.dtype, None)
            except Unreadable:
                continue
            assert (pixels.values.shape, pixels.values.dtype) == (each.shape, each.dtype)


def test_nothing_is_printed_warned_or_logged(capfd, caplog, tmp_path):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for path in sorted(BUNDLED.glob("*.dcm")):
            found = describe(str(path.parent), path.name)
            for each in assemble([found], geometry="strict") if isinstance(found, Image) else ():
                try:
                    load((str(path),), each.key, each.shape, each.dtype, None)
                except Unreadable:
                    continue
    assert [str(each.message) for each in seen] == []
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_what_only_begins_like_a_data_set_is_passed_over(tmp_path):
    (tmp_path / "a").write_bytes(b"\x08\x00\x05\x00\x0a\x00\x00\x00" + bytes(range(256)) * 8)
    assert describe(str(tmp_path), "a") is None
    data = image(PIXELS)
    data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    data.save_as(tmp_path / "b", enforce_file_format=True)
    raw = (tmp_path / "b").read_bytes()
    start = raw.index(b"\x08\x00\x16\x00")
    (tmp_path / "b").write_bytes(raw[start:])
    assert isinstance(describe(str(tmp_path), "b"), Image)
