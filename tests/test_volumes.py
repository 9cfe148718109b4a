"""Volumes: slices for a 2-D model, crops for a 3-D one, labels of slices and patients; on NIfTI files made here."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import SMALL, picture
from dicom_files import image, noise, save
from PIL import Image
from pydicom.uid import ComputedRadiographyImageStorage

from maectl import checkpoint
from maectl.adapter import Pixels, Source
from maectl.dataset import Loader, Views
from maectl.errors import DataError, UsageError
from maectl.features import Members, extract, looks
from maectl.index import Index
from maectl.labels import FILE, WHOLE, resolve
from maectl.planes import along, along_each, extents, flat, patch_length, rest, slab
from maectl.prepare import resolved
from maectl.pretrain import Request, pretrain
from maectl.probe import probe
from maectl.recipe import DataRecipe, Recipe
from maectl.reconstruct import reconstruct
from maectl.registry import load
from maectl.resize import resize
from maectl.scan import scan
from maectl.stats import Normalizer, gather, moments
from maectl.store import Reader, build
from maectl.stream import Stream
from maectl.windows import Crop

TO_LEFT_POSTERIOR_INFERIOR = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]])  # stored as maectl sees volumes


def nifti(path: Path, values: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> Path:
    """[D, H, W] whose axes go to inferior, posterior and left: no turning is needed to see it."""
    affine = np.eye(4)
    affine[:3, :3] = TO_LEFT_POSTERIOR_INFERIOR @ np.diag(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def body(seed: int, shape: tuple[int, int, int] = (10, 32, 32), kind: str = "int16") -> np.ndarray:
    """A smooth random volume [D, H, W] that differs from slice to slice."""
    return np.stack([picture(seed * 100 + place, *shape[1:], 1)[..., 0] for place in range(shape[0])]).astype(kind)


def reader(folder: Path, **recipe) -> Reader:
    found = scan([folder], load("medical"), DataRecipe.model_validate(recipe), folder.parent / "index.arrow", workers=1)
    return Reader(found.index, found.adapter)


def views(given: Reader, size: tuple[int, ...], **changes) -> Views:
    statistics = gather(given.read(row) for row in range(len(given.index)))
    options = {
        "crop": Crop(size, scale=(1, 1), ratio=(1, 1)), "window": "image", "min_valid": 0.5, "patches": 4, "seed": 3,
        "normalizer": Normalizer.of("dataset", None, statistics),
    }  # fmt: skip
    return Views(reader=given, **{**options, **changes})


def batches(made: Views, steps: int, batch: int = 16, workers: int = 2) -> list:
    rows = np.arange(len(made.reader.index))
    loader = Loader(made, workers)
    try:
        return list(loader.batches(Stream(rows, batch, 3, made.per_epoch(rows)), 0, steps))
    finally:
        loader.close()


# ---- which axis -----------------------------------------------------------------------------------------------


def source(axes: tuple[str, ...], spacing: tuple[float, ...] | None) -> Source:
    return Source(("a",), (1, *range(8, 8 + len(axes))), "int16", "value", axes, ("grey",), spacing)


CANONICAL = ("axial", "coronal", "sagittal")


@pytest.mark.parametrize(
    ("axes", "spacing", "asked", "expected"),
    [
        (CANONICAL, (1, 1, 1), None, 0),
        (CANONICAL, (1, 1, 5), None, 2),  # acquired as sagittal slices
        (CANONICAL, (1, 1.2, 1), None, 0),  # hardly coarser
        (CANONICAL, (5, 1, 1), "coronal", 1),
        (("coronal", "axial", "sagittal"), None, None, 1),
        (("frame", "row", "column"), None, None, 0),
        (("row", "column"), (1, 1), None, -1),
    ],
)
def test_volumes_are_sliced_along_the_axis_asked_for_or_acquired(axes, spacing, asked, expected):
    assert along(source(axes, spacing), 2, asked) == expected


def test_what_a_model_cannot_see_is_refused():
    with pytest.raises(UsageError, match="data.axis oblique: the axes of these images are axial, coronal, sagittal"):
        along(source(CANONICAL, None), 2, "oblique")
    with pytest.raises(UsageError, match="has 3 dimensions, the images have 2"):
        along(source(("row", "column"), None), 3, None)


def test_a_slab_of_a_volume_is_a_plane_again():
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for axis in range(3):
        window = slab(axis, 2, (slice(0, 2), slice(1, 3)))
        plane = flat(Pixels(values[(slice(None), *window)]), axis)
        np.testing.assert_array_equal(plane.values, values.take(2, axis + 1)[:, 0:2, 1:3])
        assert rest(values.shape[1:], axis) == values.take(2, axis + 1).shape[1:]


def test_each_volume_is_sliced_along_its_own_axis_and_has_its_own_extent(tmp_path):
    nifti(tmp_path / "set" / "a.nii", body(0, (4, 20, 24)), (5, 1, 1))
    nifti(tmp_path / "set" / "b.nii", body(1, (20, 24, 6)), (1, 1, 5))
    index = reader(tmp_path / "set").index
    assert along_each(index, 2, None).tolist() == [0, 2]
    assert extents(index, 2, None).tolist() == [[20, 24], [20, 24]]
    assert extents(index, 3, None).tolist() == [[4, 20, 24], [20, 24, 6]]
    assert patch_length(index, (20, 24), (5, 6), "image", "axial") == pytest.approx((22 / 20 * 5, 15 / 24 * 6 * 3))


# ---- training views -------------------------------------------------------------------------------------------


def test_a_2d_model_sees_every_slice_of_every_volume_as_it_is(tmp_path):
    volumes = [body(seed, (5, 32, 32), "uint8") for seed in range(2)]
    for number, volume in enumerate(volumes):
        nifti(tmp_path / "set" / f"{number}.nii.gz", volume)
    made = views(reader(tmp_path / "set"), (32, 32))
    assert made.per_epoch(np.arange(2)).tolist() == [5, 5]
    slices = {plane.tobytes() for volume in volumes for plane in volume}
    seen = [image[0].numpy().tobytes() for batch in batches(made, 6) for image in batch.images]
    assert set(seen) == slices
    rows = np.concatenate([batch.rows for batch in batches(made, 6)])
    assert 0.3 < rows.mean() < 0.7


@pytest.mark.parametrize("size", [(16, 16), (4, 16, 16)])
@pytest.mark.parametrize("mode", ["dataset", "foreground"])
def test_batches_depend_neither_on_threads_nor_on_the_store(tmp_path, size, mode):
    for number in range(3):
        nifti(tmp_path / "set" / f"{number}.nii.gz", body(number))
    given = reader(tmp_path / "set")
    statistics = gather(given.read(row) for row in range(3))
    options = {"normalizer": Normalizer.of(mode, None, statistics), "min_contrast": 0.2, "crop": Crop(size, (0.3, 1.0))}
    store, bad = build(given.index, given.adapter, tmp_path / "store")
    assert not bad
    one = batches(views(given, size, **options), 3, workers=1)
    other = batches(views(Reader(given.index, given.adapter, store), size, **options), 3, workers=3)
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.mean, right.mean)
        assert left.rows.tolist() == right.rows.tolist()


def test_empty_slices_and_air_are_drawn_again(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        volume = body(number, (12, 32, 32)) * 10
        volume[:5] = rng.integers(0, 3, (5, 32, 32))  # air
        nifti(tmp_path / "set" / f"{number}.nii", volume)
    given = reader(tmp_path / "set")

    def flat_ones(made: Views) -> int:
        return sum(float(image.std()) < 5 for batch in batches(made, 8) for image in batch.images)

    assert flat_ones(views(given, (32, 32))) > 30  # of 128
    assert flat_ones(views(given, (32, 32), min_contrast=0.1)) <= 2  # ten draws in a row are rare
    assert flat_ones(views(given, (3, 16, 16), min_contrast=0.1, window="16px")) <= 2


def test_a_crop_in_mm_spans_as_much_of_every_volume(tmp_path, monkeypatch):
    nifti(tmp_path / "set" / "coarse.nii", body(0, (8, 40, 40)), (4, 2, 2))
    nifti(tmp_path / "set" / "fine.nii", body(1, (16, 80, 80)), (2, 1, 1))
    made = views(reader(tmp_path / "set"), (8, 16, 16), window="16mm")
    spans = {0: set(), 1: set()}
    monkeypatch.setattr(
        Reader, "read",
        lambda self, row, window=None, size=None: spans[row].add(tuple(s.stop - s.start for s in window)) or
        Pixels(np.zeros((1, *(s.stop - s.start for s in window)), np.int16)),
    )  # fmt: skip
    batches(made, 2)
    assert spans == {0: {(2, 8, 8)}, 1: {(4, 16, 16)}}  # 8 x 16 x 16 mm


def test_a_volume_smaller_than_the_window_keeps_its_scale_and_what_is_outside_is_invalid(tmp_path):
    nifti(tmp_path / "set" / "slab.nii", body(0, (6, 40, 40)), (2, 1, 1))  # 12 mm of the 32 mm asked for
    made = views(reader(tmp_path / "set"), (16, 16, 16), window="32mm", min_valid=0.1)
    for batch in batches(made, 2):
        depth = batch.valid[:, :, 8, 8].sum(dim=1)
        assert set(depth.tolist()) <= {4, 5, 6}  # 12 of 32 mm in 16 voxels, less what the filter reaches beyond
        assert batch.valid.all(dim=(2, 3)).any(dim=1).all()


def test_a_volume_smaller_than_the_window_is_reconstructed_in_place(tmp_path):
    for number in range(8):
        nifti(tmp_path / "set" / f"{number}.nii.gz", 200 + 5 * body(number, (6, 20, 40)), (2, 1, 1))
    given = [*CUBED, "model.image_size=[16,16,16]", "model.patch_size=[4,4,4]", "data.crop=32mm", "data.min_valid=0.1"]
    run = tmp_path / "run"
    pretrain(Request([str(tmp_path / "set")], run, recipe="mri-volume", overrides=given, steps=4, batch_size=4))
    out = tmp_path / "out"
    result = reconstruct(run, [str(tmp_path / "set")], out, mask_ratio=None, seed=0, cover=True, format="both")
    # four rows lie in patches of which the model sees no valid pixel, its filter reaching out of the volume: they stay
    assert [entry["pixels"] for entry in result["images"]] == [6 * 16 * 40] * 8
    assert nibabel.load(out / "0001-reconstruction.nii.gz").shape == (6, 20, 40)
    labels = _table(
        tmp_path, [(f"{n}.nii.gz", "ab"[n % 2], ["train", "test"][n // 4]) for n in range(8)], "path,label,split"
    )
    assert probed(run, tmp_path / "set", labels=labels)["n_test"] == 4


def test_an_epoch_shows_the_slices_and_the_crops_that_fit(tmp_path):
    nifti(tmp_path / "set" / "a.nii", body(0, (6, 32, 32)))
    nifti(tmp_path / "set" / "b.nii", body(1, (4, 32, 64)))
    given = reader(tmp_path / "set")
    rows = np.arange(2)
    assert views(given, (16, 16), window="16px").per_epoch(rows).tolist() == [6 * 4, 4 * 8]
    assert views(given, (2, 16, 16), window="16px").per_epoch(rows).tolist() == [12, 16]
    assert views(given, (2, 16, 16)).per_epoch(rows) is None


def test_what_is_outside_of_the_scan_never_teaches(tmp_path):
    """To the bit: neither statistics nor what the model sees of a slice."""
    seen = []
    for outside in (0, 4000):
        volume = body(0, (4, 32, 32)) + 100
        volume[:, :, :12] = outside
        folder = tmp_path / str(outside) / "set"
        nifti(folder / "a.nii", volume)
        given = reader(folder, options={"invalid": outside})
        assert given.read(0).valid.mean() == 20 / 32
        made = views(given, (16, 16), crop=Crop((16, 16), (0.5, 1.0)))
        seen.append(
            (made.normalizer, [(batch.images * batch.valid[:, None], batch.valid) for batch in batches(made, 2)])
        )
    (one, left), (other, right) = seen
    assert one == other
    for (images, valid), (images_, valid_) in zip(left, right, strict=True):
        assert torch.equal(valid, valid_)
        assert torch.equal(images, images_)


def test_foreground_statistics_are_those_of_what_is_brighter_than_the_mean():
    rng = np.random.default_rng(1)
    values = np.concatenate((rng.normal(5, 2, 7000), rng.normal(500, 30, 3000))).reshape(1, 10, 10, 100)
    bright = values[values >= values.mean()]
    mean, deviation = moments(Pixels(values.astype(np.float32)), foreground=True)
    assert mean == pytest.approx([bright.mean()], rel=1e-6)
    assert deviation == pytest.approx([bright.std()], rel=1e-6)


def test_moments_of_a_large_volume_are_measured_in_parts(monkeypatch):
    monkeypatch.setattr("maectl.stats.SLAB", 500)
    values = np.random.default_rng(0).normal(3, 7, (2, 12, 20, 20)).astype(np.float32)
    valid = values[0] > 0
    mean, deviation = moments(Pixels(values, valid))
    np.testing.assert_allclose(mean, values[:, valid].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(deviation, values[:, valid].std(axis=1), rtol=1e-5)
    assert gather([Pixels(values, valid)]).pixels == valid.sum()


# ---- scanning -------------------------------------------------------------------------------------------------


def test_single_images_among_volumes_are_left_out_and_told(tmp_path):
    for number in range(2):
        nifti(tmp_path / "set" / f"{number}.nii", body(number))
        save(
            image(noise(16, 16, seed=number), Modality="CR", SOPClassUID=ComputedRadiographyImageStorage),
            tmp_path / "set" / f"{number}.dcm",
        )
    found = scan([tmp_path / "set"], load("medical"), DataRecipe(), tmp_path / "index.arrow")
    assert len(found.index) == 2
    assert {paths for _, paths, _, _ in found.rejects.rows} == {"0.dcm", "1.dcm"}
    assert "none of the volumes here" in found.rejects.rows[0][3]
    assert any("2 sources are left out" in note for note in found.notes)
    assert along_each(found.index, 2, "axial").tolist() == [0, 0]  # the axes of what is left alone count


def test_time_points_share_a_file_and_a_group_and_no_file_is_foreign(tmp_path):
    affine = np.diag([1.0, 1, 1, 1])
    (tmp_path / "set").mkdir()
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 99, (8, 8, 8, 3)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "set" / f"{number}.nii.gz")
    found = scan([tmp_path / "set"], load("medical"), DataRecipe(), tmp_path / "index.arrow")
    assert len(found.index) == 6
    assert found.foreign == 0
    assert len(np.unique(found.index.groups)) == 2
    table = _table(tmp_path, [("0.nii.gz", "a", "train"), ("1.nii.gz", "b", "train")], "path,label,split")
    with pytest.raises(UsageError, match="the test part is empty"):
        resolve(found.index.names(), found.index.groups, labels_csv=table, folder=str(tmp_path / "set"), seed=0)


def _table(folder: Path, rows: list[tuple], head: str = "path,label") -> Path:
    path = folder / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head.split(","), *rows])
    return path


def test_auto_sizes_follow_the_slices_or_with_a_3d_patch_the_volume(tmp_path):
    nifti(tmp_path / "set" / "a.nii", body(0, (30, 50, 36)))
    index = reader(tmp_path / "set").index
    auto = Recipe().updated({"model": {"image_size": "auto", "patch_size": "auto"}})
    assert resolved(auto, index).model.image_size == (32, 32)
    cubes = auto.updated({"model": {"patch_size": [8, 8, 8]}})
    assert resolved(cubes, index).model.image_size == (32, 48, 32)
    with pytest.raises(UsageError, match="model.image_size has 3 dimensions, the images have 2: give it 2$"):
        resolved(
            Recipe().updated({"model": {"image_size": [32] * 3, "patch_size": [8] * 3}}), Index(_flat_index(tmp_path))
        )


def _flat_index(folder: Path) -> str:
    (folder / "flat").mkdir()
    Image.fromarray(picture(0)).save(folder / "flat" / "0.png")
    return scan([folder / "flat"], load("natural"), DataRecipe(), folder / "flat.arrow").index.path


# ---- a run ----------------------------------------------------------------------------------------------------

SLICED = [
    *SMALL,
    "model.norm_pix_loss=true",
    "data.normalize=image",
    "data.flip=[]",
    "data.min_contrast=0.1",
    "data.crop_scale=[0.5,1.0]",
]
CUBED = [*SLICED, "model.image_size=[8,16,16]", "model.patch_size=[4,8,8]"]


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 patients of two classes (lines across, lines down), two volumes each; the first four slices are air."""
    root = tmp_path_factory.mktemp("patients")
    place, row, column = np.mgrid[:10, :32, :32]
    for number in range(24):
        kind = "across" if number % 2 else "down"
        for scan_ in range(2):
            rng = np.random.default_rng(10 * number + scan_)
            waves = np.sin((row if number % 2 else column) * rng.uniform(0.5, 0.8) + rng.uniform(0, 6) + 0.2 * place)
            values = (500 + 300 * waves + rng.normal(0, 30, waves.shape)).astype(np.int16)
            values[:4] = rng.integers(0, 5, (4, 32, 32))
            nifti(root / kind / f"sub-{number:02d}" / f"scan-{scan_}.nii.gz", values, (3, 1, 1))
    return root


@pytest.fixture(scope="module", params=["slices", "cubes"])
def run(request: pytest.FixtureRequest, patients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    given = SLICED if request.param == "slices" else CUBED
    pretrain(Request([str(patients)], out, recipe="mri-slices", overrides=given, steps=30, batch_size=16, workers=2))
    return out


def probed(run: Path, folder: Path, **changes) -> dict:
    given = {"labels": None, "method": "linear", "pool": None, "seed": 0, "workers": 2, "out": None}
    return probe(run, str(folder), **{**given, **changes})


def test_a_run_learns_and_keeps_how_it_sees_volumes(run: Path):
    about = json.loads((run / "run.json").read_text())
    assert about["loss_last"] < about["loss_first"]
    assert len(np.unique(Index(run / "index.arrow").groups)) == 24
    config = checkpoint.load(run).config
    assert config.patch == pytest.approx((8, 8) if len(config.model["image_size"]) == 2 else (15, 16, 16))
    with Image.open(sorted((run / "samples").glob("*.png"))[-1]) as sample:
        assert min(sample.size) > 200


def test_patients_stay_whole_in_the_split_and_may_be_the_unit_of_a_label(run: Path, patients: Path):
    volumes, people = probed(run, patients), probed(run, patients, per="patient")
    assert volumes["n_train"] + volumes["n_test"] == 48
    assert people["n_train"] + people["n_test"] == 24
    assert volumes["n_test"] == 2 * people["n_test"]
    for result in (volumes, people):  # better than chance even after thirty steps
        assert result["accuracy"] >= 0.6
        assert result["ci95"] is None or people["n_test"] >= 10


def test_features_of_an_item_are_the_mean_over_its_views(run: Path, patients: Path):
    found = checkpoint.load(run)
    given = reader(patients)
    model = found.model()
    members = Members(np.array([0, 1, 5]), np.full(3, -1), np.array([0, 0, 1]))
    frozen = extract(given, found.config, members, {"it": model}, torch.device("cpu"), 1, lambda done, total: None)
    own = []
    for row in (0, 1):
        source_, whole = given.index[row], given.read(row)
        mean, std = found.config.normalizer.constants(lambda whole=whole: whole)
        axis, windows = looks(source_, found.config)
        size = tuple(found.config.model["image_size"])
        for window, _ in windows:
            seen = resize(flat(Pixels(whole.values[(slice(None), *window)]), axis), size, mean).values
            extra = (1,) * len(size)
            with torch.no_grad():
                tokens = model.encode((torch.from_numpy(seen)[None].float() - mean.item()) / std.item())
            assert tokens.shape[1] == 1 + np.prod(model.grid), extra
            own.append(tokens[0, 0].numpy())
    np.testing.assert_allclose(frozen.values["it"]["cls"][0], np.mean(own, axis=0), atol=1e-4)
    assert frozen.values["it"]["cls"].shape[0] == 2


def test_slices_are_labelled_by_their_number_in_the_file(run: Path, patients: Path, tmp_path: Path):
    """As the file counts them: here stored from superior to inferior, so as maectl sees them; turned in the next."""
    config = checkpoint.load(run).config
    names = [f"{kind}/sub-{n:02d}/scan-0.nii.gz" for n in range(24) for kind in (["down", "across"][n % 2],)]
    rows = [(name, place, "air" if place < 4 else "body") for name in names for place in (1, 2, 6, 8)]
    table = _table(tmp_path, rows, "path,index,label")
    if len(config.model["image_size"]) == 3:
        with pytest.raises(UsageError, match="this model sees .* whole"):
            probed(run, patients, labels=table)
        return
    result = probed(run, patients, labels=table)
    assert result["n_train"] + result["n_test"] == 96
    assert result["accuracy"] > 0.95
    beyond = _table(tmp_path, [*rows, (names[0], 10, "air")], "path,index,label")
    with pytest.raises(UsageError, match=r"no slice of .* as labelled \(10\): its axial slices are 10"):
        probed(run, patients, labels=beyond)


def test_a_slice_number_means_the_files_own_order_however_the_volume_is_turned(tmp_path):
    values = body(0, (6, 16, 20))
    affine = np.diag([1.0, 1.0, 3.0, 1.0])  # stored to the right, anterior, superior
    (tmp_path / "set").mkdir()
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), tmp_path / "set" / "a.nii.gz")
    given = reader(tmp_path / "set")
    source_ = given.index[0]
    assert source_.shape == (1, 6, 16, 20)
    seen = given.read(0).values[0]
    for number in range(6):
        place = given.adapter.place(source_, 0, number)
        np.testing.assert_array_equal(seen[place], values[number][::-1, ::-1])
    assert given.adapter.place(source_, 0, 3, member=True) == -1  # one file: no slice of its own


def test_labels_of_single_files_of_a_series_are_labels_of_slices(tmp_path):
    members = {f"p/{number}.dcm": (0, number) for number in range(4)} | {f"q/{n}.dcm": (1, n) for n in range(3)}
    paths = ["p/0.dcm", "q/0.dcm"]
    rows = [(path, "a" if path[2] in "01" else "b", "train" if path[0] == "p" else "test") for path in members]
    table = _table(tmp_path, rows, "path,label,split")
    known = resolve(paths, np.array([0, 1]), labels_csv=table, folder=str(tmp_path), seed=0, files=lambda: members)
    assert known.rows.tolist() == [0] * 4 + [1] * 3
    assert (known.places - FILE).tolist() == [0, 1, 2, 3, 0, 1, 2]
    folders = _table(tmp_path, [("p", "a", "train"), ("q", "b", "train"), ("p", "a", "train")], "path,label,split")
    with pytest.raises(UsageError, match="the test part is empty"):
        resolve(paths, np.array([0, 1]), labels_csv=folders, folder=str(tmp_path), seed=0, files=lambda: members)


def test_patients_labelled_apart_are_refused(tmp_path):
    paths, groups = ["a/1", "b/2", "b/3", "a/4"], np.array([0, 1, 0, 1])
    with pytest.raises(UsageError, match="2 of 2 patients have images of several classes"):
        resolve(paths, groups, labels_csv=None, folder=str(tmp_path), seed=0, per="patient")
    paths = [f"{kind}/{n}" for kind in "ab" for n in range(6)]
    known = resolve(paths, np.arange(12) // 2, labels_csv=None, folder=str(tmp_path), seed=0, per="patient")
    assert len(known.train) == len(known.targets) == 6
    assert known.rows.tolist() == list(range(12))
    assert known.owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert set(known.places) == {WHOLE}


def test_a_volume_is_reconstructed_on_its_own_grid_and_visible_voxels_stay(run: Path, patients: Path, tmp_path: Path):
    path = patients / "down" / "sub-00" / "scan-0.nii.gz"
    result = reconstruct(run, [str(path)], tmp_path / "out", mask_ratio=None, seed=0, cover=False, format="both")
    (entry,) = result["images"]
    assert entry["psnr_peak"] > 0
    original, written = nibabel.load(path), nibabel.load(tmp_path / "out" / "0000-reconstruction.nii.gz")
    np.testing.assert_allclose(written.affine, original.affine, atol=1e-4)
    assert written.shape == original.shape
    assert written.get_data_dtype() == original.get_data_dtype()
    same = np.asarray(written.dataobj) == np.asarray(original.dataobj)
    assert 0.2 < same.mean() < 0.5  # a quarter is visible, and some predictions hit
    with Image.open(tmp_path / "out" / "0000-panels.png") as sheet:
        assert "patient" not in str(sheet.info)
        assert "sub-00" not in str(sheet.info)
    with (tmp_path / "out" / "index.csv").open() as file:
        mapped = list(csv.DictReader(file))
    assert [(each["number"], each["paths"]) for each in mapped] == [("0000", "scan-0.nii.gz")]


def test_covering_masks_predict_every_voxel_of_every_slice(run: Path, patients: Path, tmp_path: Path):
    path = patients / "across" / "sub-01" / "scan-1.nii.gz"
    result = reconstruct(run, [str(path)], tmp_path / "out", mask_ratio=0.5, seed=0, cover=True, format="native")
    assert result["images"][0]["pixels"] == 10 * 32 * 32


def test_volumes_of_another_kind_are_told_apart_when_reconstructing(run: Path, photographs: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no image"):
        reconstruct(run, [str(photographs)], tmp_path / "out", mask_ratio=None, seed=0, cover=False, format="png")
