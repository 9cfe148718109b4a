"""Faults once found in volumes and medical images: each docstring says what went wrong before it was mended."""

import contextlib
import csv
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import SMALL
from dicom_files import AXIAL, enhanced, group, image, noise, placed, save, series
from pydicom.uid import DigitalXRayImageStorageForPresentation, MRImageStorage, UltrasoundMultiFrameImageStorage

from maectl.adapter import Files, Reject, Source
from maectl.errors import MaectlError
from maectl.index import Index, held_out
from maectl.prepare import scan_with_recipe
from maectl.pretrain import Request, pretrain
from maectl.probe import probe
from maectl.reconstruct import reconstruct
from maectl_medical import Medical
from maectl_medical.grid import Grid

VOLUMES = [
    "model.image_size=[8,16,16]", "model.patch_size=[4,8,8]", "data.crop=16mm", "data.store=off", *SMALL[2:],
]  # fmt: skip
SLICES = [*SMALL, "data.store=off", "data.channels=1"]
STAGGERED = """
import time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import torch
from maectl.adapter import Pixels
from maectl_medical.grid import Grid

grid = Grid.of((8, 8, 8), tuple(map(tuple, np.eye(4)[:3])), orientation="native", spacing=(2.0, 2.0, 2.0))


def read(number):
    time.sleep(0.05 * number)
    return grid.read(lambda window: Pixels(np.zeros((1, 8, 8, 8), np.int16))).values.shape


with ThreadPoolExecutor(60) as pool:
    assert set(pool.map(read, range(60))) == {(1, 4, 4, 4)}
"""  # threads that come to their first volume at different times


def nifti(path: Path, values: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing, 1])), path)
    return path


def volumes(folder: Path, count: int, shape: tuple[int, int, int] = (32, 32, 10)) -> Path:
    for number in range(count):
        nifti(folder / f"{number:02d}.nii", noise(*shape, seed=number, high=1000, dtype="int16"))
    return folder


def flat(folder: Path, name: str, value: int, depth: float, **elements: object) -> None:
    """A slice of one value."""
    save(placed(np.full((16, 16), value, "uint16"), depth, **elements), folder / f"{name}.dcm")


def sources(folder: Path) -> list[Source]:
    return [each for each in Medical().scan(Files(folder)) if isinstance(each, Source)]


def slice_values(folder: Path) -> list[set[int]]:
    """The stored values that each volume of a folder is made of, to the hundreds."""
    return [{int(v) // 100 for v in np.unique(Medical().read(each).values + 1024)} for each in sources(folder)]


def trained(folder: Path, out: Path, overrides: list[str], recipe: str = "mri-slices", **request: object) -> Path:
    pretrain(
        Request([str(folder)], out, recipe=recipe, overrides=overrides, **{"steps": 1, "batch_size": 8, **request})
    )
    return out


# ---- wrong pixels ---------------------------------------------------------------------------------------------


def test_slices_with_other_pixels_are_no_copies(tmp_path):
    """Slices of one place and instance number count as copies unread: two acquisitions become one chequered stack."""
    for number, place in enumerate(np.random.default_rng(3).permutation(16)):
        time, depth = divmod(number, 8)
        flat(tmp_path, f"{place:02d}", 1000 + 500 * time, 5.0 * depth, InstanceNumber=depth + 1)
    assert all(len(found) == 1 for found in slice_values(tmp_path)), slice_values(tmp_path)


def test_acquisitions_at_interleaved_positions_are_not_one_volume(tmp_path):
    """Where no position occurs twice the acquisition is never looked at: before and after contrast alternate."""
    for number in range(16):
        late, depth = divmod(number, 8)
        flat(
            tmp_path, f"{number:02d}", 1000 + 600 * late, 5.0 * depth + 2.5 * late,
            InstanceNumber=number + 1, AcquisitionNumber=late + 1,
        )  # fmt: skip
    assert all(len(found) == 1 for found in slice_values(tmp_path)), slice_values(tmp_path)


def test_echoes_at_interleaved_positions_are_not_one_volume(tmp_path):
    """The same for two echo times: T1 and T2 contrast alternate in one volume, without a word."""
    for number in range(10):
        flat(
            tmp_path, f"{number:02d}", 1000 + 600 * (number % 2), 5.0 * number, InstanceNumber=number + 1,
            Modality="MR", SOPClassUID=MRImageStorage, EchoTime=90 if number % 2 else 10,
        )  # fmt: skip
    assert all(len(found) == 1 for found in slice_values(tmp_path)), slice_values(tmp_path)


def test_two_patients_are_never_one_volume(tmp_path):
    """SeriesInstanceUID alone tells series apart: one that an anonymiser gave to all makes chimeras of patients."""
    for number in range(8):
        flat(
            tmp_path, f"{number:02d}", 1000 + 500 * (number // 4), 5.0 * number, InstanceNumber=number + 1,
            PatientID="AB"[number // 4],
        )  # fmt: skip
    assert all(len(found) == 1 for found in slice_values(tmp_path)), slice_values(tmp_path)


def test_a_slope_of_zero_is_rejected(tmp_path):
    """RescaleSlope 0 makes every pixel the intercept, and is taken for an image of air."""
    series(tmp_path, (0, 5, 10, 15), RescaleSlope=0)
    assert all(isinstance(each, Reject) for each in Medical().scan(Files(tmp_path)))


# ---- wrong labels ---------------------------------------------------------------------------------------------


def test_a_file_of_several_slices_is_not_one_slice(tmp_path):
    """`place` takes the file's number for the slice's: the label of a file of four frames goes to a wrong slice."""
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
        PixelMeasuresSequence={"PixelSpacing": [1, 1], "SliceThickness": 5},
    )
    for file in range(2):
        places = [group(PlanePositionSequence={"ImagePositionPatient": [0, 0, 20.0 * file + 5 * k]}) for k in range(4)]
        save(enhanced(noise(4, 8, 8, seed=file), places, shared, InstanceNumber=file + 1), tmp_path / f"{file}.dcm")
    (source,) = sources(tmp_path)
    assert (source.shape[1], len(source.paths)) == (8, 2)
    assert Medical().place(source, 0, 1, member=True) == -1


def test_the_last_slice_of_a_resampled_volume_has_a_place():
    """The roundings of length and place differ at halves: the last slice then lies outside, and a probe ends."""
    grid = Grid.of(
        (8, 8, 4), ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0)), orientation="native", spacing=(1.0, 1.0, 2.0)
    )
    assert 0 <= grid.place(2, 3) < grid.shape[2]


def test_labelled_slices_outside_of_the_foreground_are_left_out(tmp_path):
    """One labelled slice that option foreground cuts off ends the whole probe; it should be left out and counted."""
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "index", "label"))
        for number in range(8):
            values = noise(32, 32, 10, seed=number, low=50, high=900, dtype="int16")
            values[:, :, 0] = 0
            nifti(tmp_path / "images" / f"{number}.nii", values)
            table.writerows((f"{number}.nii", place, "low" if place < 5 else "high") for place in range(10))
    run = trained(tmp_path / "images", tmp_path / "run", [*SLICES, "data.options.foreground=10"])
    result = probe(
        run, str(tmp_path / "images"), labels=tmp_path / "labels.csv", method="knn", pool="cls", seed=0, workers=1,
        out=None,
    )  # fmt: skip
    assert result["n_train"] + result["n_test"] == 72


# ---- wrong splits ---------------------------------------------------------------------------------------------


def test_rows_are_held_out_though_a_group_has_none_left():
    """Groups whose sources were all left out count as held out: then nothing is, and row 0, trained on, is measured."""
    groups = np.array([1, 1, 1, 1, 2, 2, 2, 2])  # 0 and 3 were radiographs among volumes
    train, held = held_out(groups, seed=0)
    assert len(held) > 0
    assert not np.isin(train, held).any()


def test_a_single_group_does_not_hold_out_everything():
    """Of one patient (an anonymiser's one PatientID) all rows are held out: 40,000 views stay in memory, not 256."""
    _, held = held_out(np.zeros(40_000, np.int64), seed=0)
    assert len(held) <= 256


def test_a_probe_sees_what_the_run_was_told_to_see(tmp_path):
    """data.group and data.exclude are not kept with a checkpoint: masks are probed, patients straddle the split."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            for patient in range(3):
                for kind in ("t1", "t1_seg"):
                    where = tmp_path / "images" / part / label / f"pat{part[1]}{label}{patient}"
                    nifti(where / f"{kind}.nii", noise(32, 32, 10, seed=patient, high=900, dtype="int16"))
    overrides = [*SLICES, 'data.exclude=["*_seg*"]', r"data.group=pat\w+"]
    run = trained(tmp_path / "images", tmp_path / "run", overrides)
    result = probe(
        run, str(tmp_path / "images"), labels=None, method="knn", pool="cls", seed=0, workers=1, out=None
    )  # fmt: skip
    assert (result["n_train"], result["n_test"]) == (6, 6)


# ---- what ends a whole run ------------------------------------------------------------------------------------


def test_volumes_are_resampled_on_several_threads():
    """MONAI is imported by several threads at once: option spacing ends in a circular ImportError or a deadlock."""
    done = subprocess.run([sys.executable, "-c", STAGGERED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("spacing", ["[.nan,1,1]", "[.inf,1,1]"])
def test_a_spacing_that_is_no_number_is_a_usage_error(tmp_path, spacing):
    """nan passes `min(spacing) <= 0`: a traceback."""
    with pytest.raises(MaectlError, match="spacing"):
        trained(volumes(tmp_path / "images", 2), tmp_path / "run", [*SLICES, f"data.options.spacing={spacing}"])


def test_one_film_among_volumes_is_set_aside(tmp_path):
    """A cine has three axes and none called axial: one in a folder of CT ends every command, `inspect` too."""
    for patient in range(3):
        series(tmp_path / "images" / str(patient), range(0, 50, 5), (32, 32), PatientID=str(patient),
               SeriesInstanceUID=f"1.{patient}")  # fmt: skip
    film = image(noise(5, 32, 32, dtype="uint8", high=256), SOPClassUID=UltrasoundMultiFrameImageStorage,
                 Modality="US", SeriesInstanceUID="7.7")  # fmt: skip
    save(film, tmp_path / "images" / "film.dcm")
    (tmp_path / "work").mkdir()
    _, found = scan_with_recipe([str(tmp_path / "images")], "ct-slices", None, (), tmp_path / "work", 1)
    assert (len(found.index), len(found.rejects)) == (3, 1)


def test_one_volume_of_tiny_voxels_does_not_end_a_run(tmp_path):
    """A cut is padded to the window in the source's voxels before it is made small: 16 mm at 0.1 µm are petabytes."""
    volumes(tmp_path / "images", 4)
    nifti(tmp_path / "images" / "micro.nii", noise(32, 32, 32, high=1000, dtype="int16"), (1e-4, 1e-4, 1e-4))
    run = trained(tmp_path / "images", tmp_path / "run", VOLUMES, "mri-volume", steps=2, batch_size=16)
    assert (run / "encoder.safetensors").is_file()


def test_thick_slices_are_not_smaller_than_a_patch_in_mm(tmp_path):
    """Stored voxels are compared with a patch's pixels, whatever data.crop: 120 mm in 15 slices count as too small."""
    for number in range(2):
        nifti(tmp_path / "images" / f"{number}.nii", noise(32, 32, 15, seed=number, high=900, dtype="int16"), (4, 4, 8))
    size = ["model.image_size=[32,32,32]", "model.patch_size=[16,16,16]", "data.crop=96mm", "data.store=off"]
    run = trained(tmp_path / "images", tmp_path / "run", [*size, *SMALL[2:]], "mri-volume", batch_size=2)
    assert len(Index(run / "index.arrow")) == 2


def test_held_out_views_without_a_valid_pixel_do_not_end_a_run(tmp_path):
    """Baselines of 0 divide the progress line: ZeroDivisionError, and the run is lost before its first checkpoint."""
    for number in range(8):
        values = np.zeros((32, 32, 10), np.int16)
        values[:8, :8, :2] = number == 0
        values[0, 0, 0] *= 5
        nifti(tmp_path / "images" / f"{number}.nii", values)
    run = trained(tmp_path / "images", tmp_path / "run", [*SLICES, "data.options.invalid=0"], steps=3, batch_size=2)
    assert (run / "encoder.safetensors").is_file()


# ---- what is said ---------------------------------------------------------------------------------------------


def test_what_was_left_out_does_not_choose_the_recipe(tmp_path):
    """Facts of sources left out stay counted: radiographs beside CT volumes have these trained by `chest-xray`."""
    for patient in range(2):
        series(tmp_path / "images" / str(patient), range(0, 100, 5), (64, 64), PatientID=str(patient),
               SeriesInstanceUID=f"1.{patient}")  # fmt: skip
    for number in range(6):
        data = image(noise(64, 64), SOPClassUID=DigitalXRayImageStorageForPresentation, Modality="DX", BitsStored=12,
                     SeriesInstanceUID=f"9.{number}")  # fmt: skip
        save(data, tmp_path / "images" / f"{number}.dcm")
    (tmp_path / "work").mkdir()
    chosen, found = scan_with_recipe([str(tmp_path / "images")], None, None, (), tmp_path / "work", 1)
    assert len(found.index) == 2
    assert found.facts["kind: image"] == 0
    assert chosen.data.clip == (-1000, 1000)


def test_channels_of_what_was_left_out_are_not_told_of(tmp_path):
    """A colour screenshot left out of grey volumes is told of as "0 red/green/blue", and all is scanned once more."""
    series(tmp_path / "images" / "ct", range(0, 100, 5), (64, 64))
    shot = image(noise(16, 16, 3, dtype="uint8", high=256), SeriesInstanceUID="7.8", Modality="OT")
    save(shot, tmp_path / "images" / "shot.dcm")
    (tmp_path / "work").mkdir()
    overrides = ("data.channels=auto",)
    _, found = scan_with_recipe([str(tmp_path / "images")], "ct-slices", None, overrides, tmp_path / "work", 1)
    assert not [note for note in found.notes if "channels differ" in note]


def test_mammograms_and_pet_are_not_flipped_as_photographs_are(tmp_path):
    """Modalities without a recipe get that of photographs or small images, which mirror left and right."""
    series(tmp_path / "images", range(0, 100, 5), (64, 64), Modality="PT", Units="BQML")
    (tmp_path / "work").mkdir()
    chosen, _ = scan_with_recipe([str(tmp_path / "images")], None, None, (), tmp_path / "work", 1)
    assert chosen.data.flip == ()


def test_refused_files_are_not_new_when_a_run_goes_on(tmp_path, monkeypatch):
    """Rejects of a scan keep the folder as it was typed, run.json the absolute one: --resume tells of all as new."""
    volumes(tmp_path / "images", 4)
    (tmp_path / "images" / "bad.nii").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    run = trained(Path("images"), Path("run"), SLICES)
    index = Index(run / "index.arrow")
    with (run / "quarantine.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["folder"] in index.folders


def test_index_csv_never_names_another_patient(tmp_path):
    """Into the same --out index.csv is overwritten before an old DICOM folder ends the call: 0000 is then another's."""
    for patient in "ab":
        series(tmp_path / patient, range(0, 50, 5), (32, 32), PatientID=patient, SeriesInstanceUID=f"1.{ord(patient)}")
    run = trained(tmp_path / "a", tmp_path / "run", SLICES, "ct-slices")
    out, options = tmp_path / "out", {"mask_ratio": None, "seed": 0, "cover": False, "format": "native"}
    reconstruct(run, [str(tmp_path / "a")], out, **options)
    kept = {path.name: path.read_bytes() for path in (out / "0000-reconstruction").iterdir()}
    with contextlib.suppress(MaectlError):  # refusing is right, as long as nothing was changed
        reconstruct(run, [str(tmp_path / "b")], out, **options)
    with (out / "index.csv").open(newline="") as file:
        (line, *_) = csv.DictReader(file)
    same = kept == {path.name: path.read_bytes() for path in (out / "0000-reconstruction").iterdir()}
    assert (Path(line["folder"]).name == "a") == same


# ---- found later ----------------------------------------------------------------------------------------------


def labelled(path: Path, head: tuple[str, ...], rows: list[tuple]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def scans(folder: Path, dicom: bool) -> None:
    """16 scans of eight slices, of which the four in the middle lie inside of a box above -500."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for person in range(16):
        volume = np.full((8, 16, 16), 24, np.uint16)
        volume[2:6, 3:13, 3:13] = 1024 + rng.integers(0, 200, (4, 10, 10))
        if dicom:
            own = {"SeriesInstanceUID": f"1.2.{person}", "PatientID": f"p{person}"}
            for k in range(8):
                save(placed(volume[k], 3.0 * k, InstanceNumber=k + 1, **own), folder / f"p{person:02d}" / f"{k}.dcm")
        else:
            values = volume.astype(np.int16).transpose(2, 1, 0) - 1024
            nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 3, 1])), folder / f"p{person:02d}.nii.gz")


def probed(run: Path, folder: Path, labels: Path | None = None) -> dict:
    return probe(run, str(folder), labels=labels, method="knn", pool="cls", seed=0, workers=1, out=None)


def test_globs_that_speak_of_the_run_s_own_folders_do_not_hide_others(tmp_path):
    """data.exclude=test/* of a run was applied to the folder to probe: its test part was gone."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            for number in range(4):
                nifti(tmp_path / "in" / part / label / f"{number}.nii", noise(32, 32, 6, seed=number, dtype="int16"))
    run = trained(tmp_path / "in", tmp_path / "run", [*SLICES, 'data.exclude=["test/*"]'])
    assert probed(run, tmp_path / "in")["n_test"] == 8


def test_labels_of_slice_files_cut_away_are_left_out(tmp_path):
    """A slice named by its own file and cut away by option foreground ended the probe."""
    scans(tmp_path / "in", dicom=True)
    run = trained(tmp_path / "in", tmp_path / "run", [*SLICES, "data.options.foreground=-500"])
    rows = [(f"p{p:02d}/{k}.dcm", "ab"[p % 2]) for p in range(16) for k in range(8)]
    found = probed(run, tmp_path / "in", labelled(tmp_path / "l.csv", ("path", "label"), rows))
    assert found["n_train"] + found["n_test"] == 64


@pytest.mark.parametrize("cut", ["all", "test"])
def test_labels_of_which_a_whole_part_is_cut_away_are_an_error_in_words(tmp_path, cut):
    """An empty part was a traceback, or a table of zeros."""
    scans(tmp_path / "in", dicom=False)
    run = trained(tmp_path / "in", tmp_path / "run", [*SLICES, "data.options.foreground=-500"])
    rows = [
        (f"p{p:02d}.nii.gz", 3 if cut == "test" and p < 8 else 0, "ab"[p % 2], "train" if p < 8 else "test")
        for p in range(16)
    ]
    with pytest.raises(MaectlError):
        probed(run, tmp_path / "in", labelled(tmp_path / "l.csv", ("path", "index", "label", "split"), rows))
