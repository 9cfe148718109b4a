"""The adapter `medical` as a whole: which files are its own, channels, turning, cutting, resampling, and back."""

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import AXIAL, enhanced, group, image, noise, save, series
from pydantic import ValidationError
from pydicom.uid import UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

from maectl import recipe, registry
from maectl.adapter import Files, Reject, Source
from maectl.errors import Unreadable
from maectl.recipe import DataRecipe
from maectl.scan import scan
from maectl_medical import Medical, resample
from maectl_medical.colour import names, repaint
from maectl_medical.dicom.describe import MODALITIES

GREY, COLOUR = ("grey",), ("red", "green", "blue")


def only(adapter: Medical, path: Path) -> Source:
    (found,) = adapter.scan(Files(path))
    assert isinstance(found, Source), found
    return found


def volume(path: Path, shape: tuple[int, int, int] = (12, 10, 8), seed: int = 0, kind: str = "int16") -> np.ndarray:
    """A NIfTI volume stored to the right, anterior, superior, of 1 x 1.5 x 3 mm; its values [i, j, k]."""
    values = np.random.default_rng(seed).integers(-500, 1500, shape).astype(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1.5, 3, 1.0])), path)
    return values


# ---- whose a file is ------------------------------------------------------------------------------------------


def test_files_are_claimed_by_content_whatever_their_name(tmp_path):
    save(image(noise(8, 8)), tmp_path / "IM0001")
    volume(tmp_path / "brain.nii.gz")
    (tmp_path / "fake.dcm").write_text("no DICOM")
    for name, expected in (("IM0001", 2), ("brain.nii.gz", 2), ("fake.dcm", 0)):
        head = (tmp_path / name).read_bytes()[:4096]
        assert Medical.claim(name, head) == expected, name
        assert Medical.claim("anything", head) == expected, name


def test_a_folder_of_dicom_chooses_the_adapter_by_itself(tmp_path):
    for number in range(5):
        save(image(noise(8, 8)), tmp_path / f"IM{number:04d}")
    (tmp_path / "readme.txt").write_text("hello")
    assert registry.choose([tmp_path]).name == "medical"


@pytest.mark.parametrize(
    ("facts", "unit", "expected"),
    [
        ({"modality: CT": 3, "modality: SR": 1}, None, "ct-slices"),
        ({"modality: MR": 3}, None, "mri-slices"),
        ({"modality: DX": 2, "modality: CR": 1}, None, "chest-xray"),
        ({"modality: US": 2}, None, "ultrasound"),
        ({"modality: OP": 2}, None, "fundus"),
        *(({f"modality: {name}": 2}, None, "mri-slices") for name in ("PT", "NM", "MG", "XA", "RF", "PX", "IO", "OT")),
        *(({f"modality: {name}": 2}, None, None) for name in ("XC", "ES", "GM", "SM")),
        ({"dimensions: 3": 5}, None, "mri-slices"),
        ({"dimensions: 3": 5}, "HU", "ct-slices"),
    ],
)
def test_the_commonest_modality_suggests_the_recipe(facts, unit, expected):
    assert Medical(unit=unit).suggest(facts) == expected


@pytest.mark.parametrize("modality", sorted(MODALITIES))
def test_no_grey_image_is_taken_for_a_photograph_and_flipped(modality):
    chosen = Medical().suggest({f"modality: {modality}": 1})
    if chosen is None:
        assert modality in ("XC", "ES", "GM", "SM", "DMS")
    elif chosen not in ("ultrasound", "fundus", "oct"):
        assert recipe.load(chosen, ())[0].data.flip == ()


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0}, {"spacing": (1, 0, 1)}, {"spacing": (1, 1)}, {"fourth": "some"}, {"unit": ""}, {"x": 1},
        {"spacing": (math.nan, 1, 1)}, {"spacing": (1, 1, math.inf)}, {"spacing": (1e-300, 1, 1)},
        {"spacing": (1, 1e300, 1)}, {"foreground": math.nan}, {"invalid": math.nan}, {"foreground": -math.inf},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        Medical.model_validate(options)


# ---- channels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "own", "expected"),
    [
        ("auto", COLOUR, COLOUR), (1, COLOUR, GREY), (3, GREY, COLOUR), (GREY, GREY, GREY), (COLOUR, GREY, COLOUR),
        (5, tuple("abcde"), tuple("abcde")), (1, tuple("abcde"), None), (3, tuple("abc"), tuple("abc")),
        (("a", "b"), GREY, None), (4, GREY, None), (("x",), COLOUR, None),
    ],
)  # fmt: skip
def test_channels_that_can_be_made_are(asked, own, expected):
    assert names(asked, own) == expected


def test_grey_is_luma_and_colour_is_grey_three_times():
    colour = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    expected = np.rint(np.tensordot([0.299, 0.587, 0.114], colour, axes=1))
    for kind in ("uint8", "int16", "uint16", "float32"):
        grey = repaint(colour.astype(kind), 1)
        assert grey.dtype == kind
        assert np.abs(grey[0] - expected).max() <= 1
        assert (repaint(grey, 3) == grey).all()


def test_colour_dicom_becomes_grey_where_that_is_asked_and_is_written_so(tmp_path):
    pixels = noise(16, 12, 3, high=256, dtype="uint8")
    save(image(pixels, Modality="OT"), tmp_path / "a.dcm")
    adapter = Medical(channels=1)
    source = only(adapter, tmp_path)
    assert source.channels == GREY
    seen = adapter.read(source).values
    assert np.abs(seen[0] - pixels @ [0.299, 0.587, 0.114]).max() <= 1
    out = adapter.write(source, [((slice(0, 16), slice(0, 12)), seen)], tmp_path / "out")
    again = only(Medical(), out)
    assert again.channels == GREY
    np.testing.assert_array_equal(Medical().read(again).values, seen)


def test_channels_that_cannot_be_made_are_a_reject(tmp_path):
    values = np.zeros((4, 4, 4, 5), np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    (found,) = Medical(channels=1, fourth="channels").scan(Files(tmp_path))
    assert isinstance(found, Reject)
    assert "5 channels cannot become 1 channel" in found.reason
    assert "--set data.channels=auto" in found.reason
    (found,) = Medical(channels="auto", fourth="channels").scan(Files(tmp_path))
    assert isinstance(found, Source)
    assert found.shape[0] == 5


# ---- the grid -------------------------------------------------------------------------------------------------


def test_volumes_are_turned_upright_and_their_axes_called_after_planes(tmp_path):
    values = volume(tmp_path / "a.nii.gz")
    source = only(Medical(), tmp_path)
    assert source.axes == ("axial", "coronal", "sagittal")
    assert source.shape == (1, 8, 10, 12)
    assert source.spacing == pytest.approx((3, 1.5, 1))
    np.testing.assert_array_equal(Medical().read(source).values[0], values.transpose(2, 1, 0)[::-1, ::-1, ::-1])
    native = only(Medical(orientation="native"), tmp_path)
    assert native.axes == ("sagittal", "coronal", "axial")
    np.testing.assert_array_equal(Medical(orientation="native").read(native).values[0], values)


def test_dicom_and_nifti_of_one_volume_are_seen_alike(tmp_path):
    stored = series(tmp_path / "dicom", depths=[0.0, 2.0, 4.0, 6.0])
    seen = only(Medical(), tmp_path / "dicom")
    out = Medical(export="nifti").write(seen, [], tmp_path / "same")
    again = only(Medical(unit="HU"), out)
    assert (again.shape, again.axes) == (seen.shape, seen.axes)
    assert again.spacing == pytest.approx(seen.spacing, abs=1e-5)
    np.testing.assert_array_equal(Medical().read(again).values, Medical().read(seen).values)
    hu = Medical().read(seen).values
    np.testing.assert_array_equal(np.sort(hu, axis=None), np.sort(stored.astype(int) - 1024, axis=None))


def test_a_box_around_what_is_bright_is_cut_out_and_the_rest_is_kept_when_writing(tmp_path):
    values = np.zeros((12, 10, 8), np.int16)
    values[3:9, 2:6, 1:7] = np.random.default_rng(0).integers(100, 200, (6, 4, 6))
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    adapter = Medical(foreground=50)
    source = only(adapter, tmp_path)
    assert source.shape == (1, 6, 4, 6)
    assert adapter.read(source).values.min() >= 100
    whole = tuple(slice(0, side) for side in source.shape[1:])
    out = adapter.write(source, [(whole, np.full(source.shape, 7, np.int16))], tmp_path / "out")
    written = np.asarray(nibabel.load(out).dataobj)
    assert (written[3:9, 2:6, 1:7] == 7).all()
    assert (np.delete(written, np.s_[3:9], axis=0) == 0).all()


def test_resampling_is_what_the_header_promises_and_goes_back(tmp_path):
    ramp = np.arange(12)[:, None, None] + 2 * np.arange(10)[None, :, None] + 5 * np.arange(8)[None, None]
    path = tmp_path / "set" / "a.nii"
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(ramp.astype(np.float32), np.diag([1, 1.5, 3, 1.0])), path)
    adapter = Medical(spacing=(1.5, 1.5, 2.0))
    source = only(adapter, path)
    pixels = adapter.read(source)
    assert pixels.values.shape == source.shape
    assert source.spacing == pytest.approx((1.5, 1.5, 2.0))
    assert str(pixels.values.dtype) == source.dtype == "float32"
    inner = pixels.values[0, 2:-2, 2:-2, 1:-1]
    steps = [np.diff(inner, axis=axis).mean() for axis in range(3)]
    assert steps == pytest.approx([-5 / 2, -2, -2], abs=1e-3)  # of the ramp, along inferior, posterior, left
    window = (slice(1, 9), slice(2, 7), slice(0, 5))
    np.testing.assert_array_equal(adapter.read(source, window).values, pixels.values[(slice(None), *window)])
    whole = tuple(slice(0, side) for side in source.shape[1:])
    out = adapter.write(source, [(whole, pixels.values + 100)], tmp_path / "out")
    written = nibabel.load(out)
    np.testing.assert_allclose(written.affine, nibabel.load(path).affine, atol=1e-5)
    np.testing.assert_allclose(np.asarray(written.dataobj)[2:-2, 2:-2, 2:-2], ramp[2:-2, 2:-2, 2:-2] + 100, atol=2e-3)


def test_a_volume_that_resampling_makes_too_large_is_a_reject_and_the_others_stay(tmp_path):
    volume(tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4) * 1e-3), tmp_path / "b.nii")
    found = list(Medical(spacing=(1e-3, 1e-3, 1e-3)).scan(Files(tmp_path)))
    assert [type(each) for each in found] == [Reject, Source]
    assert "21,001 x 13,501 x 11,001 voxels of 8 x 10 x 12" in found[0].reason


def test_a_volume_that_memory_does_not_hold_resampled_is_unreadable(tmp_path, monkeypatch):
    volume(tmp_path / "a.nii")

    def full(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    for spacing, where in (((1, 1, 1), "get_ready"), ((6, 2, 2), "_shrunk")):
        adapter = Medical(spacing=spacing)
        source = only(adapter, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(resample, where, full if where == "_shrunk" else lambda: full)
            with pytest.raises(Unreadable, match="voxels: is there memory"):
                adapter.read(source)
        assert adapter.read(source).values.shape == source.shape


# ---- where slices lie -----------------------------------------------------------------------------------------


def test_a_file_of_a_series_is_its_slice_along_the_axis_of_the_series_alone(tmp_path):
    stored = series(tmp_path, depths=[4.0, 0.0, 2.0, 6.0])
    source = only(Medical(), tmp_path)
    values = Medical().read(source).values[0]
    numbers = [int(Path(path).stem) for path in source.paths]
    assert sorted(numbers) == [0, 1, 2, 3]
    for member, number in enumerate(numbers):
        place = Medical().place(source, 0, member, member=True)
        np.testing.assert_array_equal(values[place], stored[number].astype(int) - 1024)
    assert [Medical().place(source, axis, 0, member=True) for axis in (1, 2)] == [-1, -1]


def test_a_file_of_frames_and_the_files_of_a_pair_are_no_slices(tmp_path):
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
        PixelMeasuresSequence={"PixelSpacing": [1, 1], "SliceThickness": 5},
    )
    places = [group(PlanePositionSequence={"ImagePositionPatient": [0, 0, 5.0 * k]}) for k in range(4)]
    save(enhanced(noise(4, 8, 8), places, shared), tmp_path / "frames" / "a.dcm")
    (tmp_path / "pair").mkdir()
    nibabel.save(nibabel.Nifti1Pair(np.zeros((2, 5, 6), np.int16), np.eye(4)), tmp_path / "pair" / "a.hdr")
    film = image(noise(1, 8, 8, dtype="uint8", high=256), SOPClassUID=UltrasoundMultiFrameImageStorage, Modality="US")
    save(film, tmp_path / "film" / "a.dcm")
    for kind in ("frames", "pair", "film"):
        for options in ({}, {"orientation": "native"}):
            source = only(Medical(**options), tmp_path / kind)
            for axis in range(len(source.axes)):
                assert Medical(**options).place(source, axis, 0, member=True) == -1, (kind, axis)
                assert Medical(**options).place(source, axis, 0) is not None, (kind, axis)


def test_slices_outside_of_the_foreground_have_no_place(tmp_path):
    values = np.zeros((6, 6, 8), np.int16)
    values[1:5, 2:4, 3:6] = 100
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    adapter = Medical(foreground=10)
    source = only(adapter, tmp_path)
    assert [adapter.place(source, 0, number) for number in range(8)] == [None, None, None, 2, 1, 0, None, None]
    assert adapter.place(source, 0, 8) not in (None, *range(3))  # there is none: not cut away


def test_resampled_real_volumes_keep_their_extent_mean_and_range(real_data):
    adapter = Medical(spacing=(4, 4, 4), fourth="first")
    folder = real_data / "medical" / "nifti_volumes"
    seen = {each.paths: each for each in adapter.scan(Files(folder)) if isinstance(each, Source)}
    whole = {each.paths: each for each in Medical(fourth="first").scan(Files(folder)) if isinstance(each, Source)}
    assert seen.keys() == whole.keys()
    for paths, source in list(seen.items())[:4]:
        before, after = Medical().read(whole[paths]).values, adapter.read(source).values
        assert after.shape == source.shape
        assert before.min() - 1e-2 <= after.min() <= after.max() <= before.max() + 1e-2
        assert abs(after.mean() - before.mean()) < 0.1 * before.std()


def test_a_value_that_means_outside_is_invalid(tmp_path):
    values = volume(tmp_path / "a.nii")
    values[0] = 0
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    adapter = Medical(invalid=0, orientation="native")
    pixels = adapter.read(only(adapter, tmp_path))
    np.testing.assert_array_equal(pixels.valid, values != 0)


# ---- writing --------------------------------------------------------------------------------------------------


def test_what_lies_under_no_tile_and_what_is_invalid_stays(tmp_path):
    series(tmp_path / "set", depths=[0.0, 2.0, 4.0], size=(10, 12), PixelPaddingValue=0)
    adapter = Medical()
    source = only(adapter, tmp_path / "set")
    before = adapter.read(source)
    window = (slice(0, 2), slice(2, 8), slice(3, 9))
    out = adapter.write(source, [(window, np.full((1, 2, 6, 6), 55, np.int16))], tmp_path / "out")
    after = adapter.read(only(adapter, out))
    valid = np.ones(source.shape[1:], bool) if before.valid is None else before.valid
    inside = np.zeros_like(valid)
    inside[window] = True
    assert (after.values[0][inside & valid] == 55).all()
    np.testing.assert_array_equal(after.values[0][~inside & valid], before.values[0][~inside & valid])


def test_values_are_rounded_and_clipped_to_the_dtype(tmp_path):
    volume(tmp_path / "a.nii")
    adapter = Medical()
    source = only(adapter, tmp_path)
    whole = tuple(slice(0, side) for side in source.shape[1:])
    values = np.full(source.shape, 1e9, np.float32)
    values[0, 0] = 2.6
    out = adapter.write(source, [(whole, values)], tmp_path / "out")
    seen = adapter.read(only(adapter, out)).values[0]
    assert (seen[0] == 3).all()
    assert (seen[1:] == 32767).all()


def test_a_coarser_map_lies_where_its_source_does(tmp_path):
    volume(tmp_path / "a.nii.gz", (16, 12, 8))
    adapter = Medical()
    source = only(adapter, tmp_path)
    features = np.random.default_rng(0).normal(size=(3, 2, 3, 4)).astype(np.float32)
    tile = (tuple(slice(0, side) for side in features.shape[1:]), features)
    out = adapter.write(source, [tile], tmp_path / "map", step=4, channels=("a", "b", "c"), dtype="float32")
    written = nibabel.load(out)
    affine = np.array(json.loads(source.key)["affine"])
    corner = np.array([*(np.array(source.shape[:0:-1]) - 1), 1])  # seen voxel 0 is the stored one farthest off
    middle = affine @ corner + [-1.5 * 1, -1.5 * 1.5, -1.5 * 3]
    np.testing.assert_allclose(written.affine[:3, 3], middle, atol=1e-4)
    np.testing.assert_allclose(nibabel.affines.voxel_sizes(written.affine), [12, 6, 4], atol=1e-4)


def test_a_series_cut_short_after_the_scan_is_unreadable(tmp_path):
    series(tmp_path / "set", depths=[0.0, 2.0, 4.0])
    adapter = Medical()
    source = only(adapter, tmp_path / "set")
    path = Path(source.files[1])
    path.write_bytes(path.read_bytes()[:-20])
    adapter.read(source, (slice(0, 1), slice(0, 4), slice(0, 4)))  # another slice
    with pytest.raises(Unreadable):
        adapter.read(source)


def test_index_keys_hold_no_header_text(tmp_path):
    series(tmp_path / "set", depths=[0.0, 2.0, 4.0], PatientName="Secret^Name", SeriesDescription="secret words")
    found = scan([tmp_path / "set"], Medical, DataRecipe(), tmp_path / "index.arrow")
    assert b"ecret" not in Path(found.index.path).read_bytes()


# ---- real files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["nifti_volumes", "dicom_series/t1w_7t_part", "dicom_mr_sequences/test/T2"])
def test_real_volumes_come_back_with_their_geometry_and_values(real_data, tmp_path, folder):
    """Turned upright, written back and read again: the same voxels at the same places, to 1e-4 mm."""
    adapter = Medical()
    found = [each for each in adapter.scan(Files(real_data / "medical" / folder)) if isinstance(each, Source)]
    files = {each.paths: each for each in found}.values()  # one time point a file
    assert len(files) == (10 if folder == "nifti_volumes" else 1)
    for number, source in enumerate(files):
        pixels = adapter.read(source)
        whole = tuple(slice(0, side) for side in source.shape[1:])
        out = adapter.write(source, [(whole, pixels.values)], tmp_path / f"{number}")
        again = only(adapter, out)
        assert (again.shape, again.dtype, again.axes, again.unit) == (
            source.shape, source.dtype, source.axes, source.unit,
        )  # fmt: skip
        affines = [np.array(json.loads(each.key)["affine"]) for each in (again, source)]
        np.testing.assert_allclose(*affines, atol=1e-4)
        np.testing.assert_array_equal(adapter.read(again).values, pixels.values)


def test_stills_of_ultrasound_join_its_films(tmp_path):
    """Either alone is what it is; together a still is a film of one frame, read and written as it was."""
    still, film = noise(16, 20, dtype="uint8", high=256), noise(5, 16, 20, dtype="uint8", high=256, seed=1)
    us = {"Modality": "US", "BitsStored": 8}
    save(image(still, SOPClassUID=UltrasoundImageStorage, **us), tmp_path / "set" / "still.dcm")
    adapter = Medical()
    assert only(adapter, tmp_path / "set").axes == ("row", "column")
    save(
        image(film, SOPClassUID=UltrasoundMultiFrameImageStorage, SeriesInstanceUID="7.7", **us),
        tmp_path / "set" / "film.dcm",
    )
    found = {each.paths[0]: each for each in adapter.scan(Files(tmp_path / "set")) if isinstance(each, Source)}
    assert {each.axes for each in found.values()} == {("frame", "row", "column")}
    one = found["still.dcm"]
    np.testing.assert_array_equal(adapter.read(one).values, still[None, None])
    window = (slice(0, 1), slice(2, 9), slice(3, 8))
    np.testing.assert_array_equal(adapter.read(one, window).values, still[None, None, 2:9, 3:8])
    out = adapter.write(one, [(window, np.full((1, 1, 7, 5), 9, np.uint8))], tmp_path / "out")
    again = only(adapter, out)
    assert again.shape == (1, 16, 20)
    assert (adapter.read(again).values[0, 2:9, 3:8] == 9).all()
    counted = scan([tmp_path / "set"], Medical, DataRecipe(), tmp_path / "index.arrow")
    assert (len(counted.index), len(counted.rejects)) == (2, 0)
