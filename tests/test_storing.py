"""Which store a run gets, and that it says why."""

import shutil
from collections import namedtuple
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import picture
from PIL import Image

from maectl import recipe as recipes
from maectl import storing
from maectl.errors import DataError
from maectl.forms import RAW, Form
from maectl.index import Index
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.store import build
from maectl.storing import Costs, choose, form_of, made, measure, settled

Disk = namedtuple("Disk", "total used free")
SETTINGS = ["model.image_size=[28,28]", "model.patch_size=[7,7]"]  # 8/7 of it is 32
COMPACT = Form(32, jpeg=True)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """Index and adapter of twelve pictures 48 x 60."""
    folder = tmp_path_factory.mktemp("storing") / "data"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(picture(number, 48, 60)).save(folder / f"{number}.png")
    found = scan([folder], load("natural"), DataRecipe(), folder.parent / "index.arrow", workers=1)
    return found.index, found.adapter


def recipe(*overrides: str) -> recipes.Recipe:
    return recipes.load(None, [*SETTINGS, *overrides])[0]


@pytest.fixture
def weighed(monkeypatch):
    """Let nothing be too small to be weighed; costs and free bytes are given."""

    def given(costs: Costs, free: int = 1 << 40) -> None:
        monkeypatch.setattr(storing, "SMALL", -1)
        monkeypatch.setattr(storing, "measure", lambda *_: costs)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, free))

    return given


RAW_BYTES = 12 * 3 * 48 * 60
JPEG_BYTES = 12 * 3 * 32 * 40  # at a byte a value
SLOW = Costs(decoding=3.1e-3, reading=0.3e-3, unpacking=0.4e-3, jpeg_bytes=0.1)


def test_a_store_of_little_data_is_made_without_measuring(scanned, tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "measure", lambda *_: pytest.fail("measured"))
    choice = choose(*scanned, recipe(), tmp_path / "run", 800)
    assert (choice.folder, choice.form) == (tmp_path / ".maectl-store", RAW)
    assert choice.why == f"store: raw, 0.1 MB in {tmp_path}/.maectl-store"


def test_pixels_are_stored_where_they_fit_and_decoding_is_slow(scanned, tmp_path, weighed):
    weighed(SLOW)
    choice = choose(*scanned, recipe(), tmp_path / "run", 800)
    assert (choice.folder, choice.form) == (tmp_path / ".maectl-store", RAW)
    assert choice.why.endswith("; decoding takes 3.1 ms an image, reading 0.3")


def test_where_decoding_costs_as_little_as_reading_there_is_no_store(scanned, tmp_path, weighed):
    weighed(SLOW._replace(reading=2.5e-3))
    choice = choose(*scanned, recipe(), tmp_path / "run", 800)
    assert choice.folder is None
    assert choice.why.startswith("no store: decoding costs as little as reading")


@pytest.mark.parametrize(("epochs", "stored"), [(0, True), (1, False), (2, False), (3, True)])
def test_images_shown_once_or_twice_are_not_stored_and_unknown_is_often(scanned, tmp_path, weighed, epochs, stored):
    weighed(SLOW)
    choice = choose(*scanned, recipe(), tmp_path / "run", epochs)
    assert (choice.folder is not None) == stored
    assert stored or choice.why == "no store: each image is shown once or twice"


def test_windows_and_not_images_are_what_is_shown(scanned, tmp_path, weighed):
    """Windows of 14 px: 14 of them in an image, hence shown 14 times an epoch."""
    weighed(SLOW)
    choice = choose(*scanned, recipe("data.crop=14px"), tmp_path / "run", 1)
    assert choice.folder is not None
    assert storing._shown(scanned[0], recipe("data.crop=14px"), 2) == 2 * round(48 * 60 / 14**2)


def test_compact_is_chosen_where_pixels_do_not_fit_and_the_line_says_so(scanned, tmp_path, weighed):
    weighed(SLOW, free=4 * (RAW_BYTES - 1))
    choice = choose(*scanned, recipe(), tmp_path / "run", 800)
    assert choice.form == COMPACT
    assert "store: compact (JPEG, short side 32), 0.0 MB" in choice.why
    assert "raw, 0.1 MB, is more than data.store=auto allows (0.1 MB)" in choice.why
    weighed(SLOW, free=4 * RAW_BYTES)
    assert choose(*scanned, recipe(), tmp_path / "run", 800).form == RAW


def test_where_not_even_jpegs_fit_there_is_no_store(scanned, tmp_path, weighed):
    weighed(SLOW._replace(jpeg_bytes=1.0), free=4 * (JPEG_BYTES - 1))
    choice = choose(*scanned, recipe(), tmp_path / "run", 800)
    assert choice.folder is None
    assert choice.why.startswith("no store: compact (JPEG, short side 32)")
    weighed(SLOW._replace(jpeg_bytes=1.0), free=4 * JPEG_BYTES)
    assert choose(*scanned, recipe(), tmp_path / "run", 800).form == COMPACT


def test_windows_in_pixels_are_never_kept_as_jpeg_whatever_is_asked(scanned, tmp_path, weighed):
    weighed(SLOW, free=4 * (RAW_BYTES - 1))
    choice = choose(*scanned, recipe("data.crop=32px"), tmp_path / "run", 800)
    assert choice.folder is None
    assert choice.why.startswith("no store: raw, 0.1 MB, is more than")
    weighed(SLOW)
    asked = recipe("data.crop=32px", "data.store_form=compact", "data.store_max_side=40")
    choice = choose(*scanned, asked, tmp_path / "run", 800)
    assert choice.form == RAW
    assert choice.why.endswith("; data.store_form=compact, data.store_max_side=40: data.crop=32px needs pixels")


def test_what_a_store_has_already_counts_as_free(scanned, tmp_path, weighed):
    build(*scanned, tmp_path / ".maectl-store", workers=1)
    weighed(SLOW, free=3 * RAW_BYTES)
    assert choose(*scanned, recipe(), tmp_path / "run", 800).form == RAW
    assert choose(*scanned, recipe(), tmp_path / "elsewhere" / "run", 800).form == COMPACT


def test_off_is_off_and_a_folder_is_used_unweighed(scanned, tmp_path, weighed):
    weighed(SLOW._replace(reading=1.0), free=0)
    assert choose(*scanned, recipe("data.store=off"), tmp_path / "run", 800) == storing.Choice(None)
    choice = choose(*scanned, recipe(f"data.store={tmp_path}/mine"), tmp_path / "run", 1)
    assert (choice.folder, choice.form) == (tmp_path / "mine", RAW)
    with pytest.raises(DataError, match=rf"needs {RAW_BYTES:,} bytes"):
        made(*scanned, choice, workers=1)


@pytest.mark.parametrize(
    ("overrides", "form"),
    [
        ([], RAW),
        (["data.store_max_side=40"], Form(40)),
        (["data.store_max_side=48"], RAW),  # no image is larger
        (["data.store_form=compact"], COMPACT),
        (["data.store_form=compact", "data.store_max_side=24"], Form(24, jpeg=True)),
        (["data.store_form=compact", "data.crop=32px"], RAW),
        (["data.store_form=raw"], RAW),
    ],
)
def test_the_form_a_recipe_asks_for(scanned, overrides, form):
    assert form_of(recipe(*overrides), scanned[0]) == form


def test_the_usual_short_side_for_224_is_256(scanned, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(picture(0, 300, 400)).save(folder / "0.png")
    index = scan([folder], load("natural"), DataRecipe(), tmp_path / "index.arrow", workers=1).index
    assert form_of(recipes.load(None, ["data.store_form=compact"])[0], index) == Form(256, jpeg=True)


def test_the_choice_is_kept_in_the_recipe_for_who_resumes(scanned, tmp_path, weighed):
    for free, form in ((1 << 40, RAW), (4 * (RAW_BYTES - 1), COMPACT)):
        weighed(SLOW, free)
        choice = choose(*scanned, recipe(), tmp_path / "run", 800)
        assert choice.form == form
        kept = settled(recipe(), choice)
        weighed(SLOW, 1)
        assert form_of(kept, scanned[0]) == form
    assert settled(recipe(), storing.Choice(None)) == recipe()


def test_measured_costs_are_of_the_views_that_training_reads(scanned):
    index, adapter = scanned
    costs = measure(index, adapter, recipe(), COMPACT)
    assert min(costs) > 0
    assert 0.02 < costs.jpeg_bytes < 1
    plain = measure(index, adapter, recipe("data.crop=14px"))
    assert min(plain.decoding, plain.reading) > 0


def test_measuring_stops_after_about_a_second_and_passes_over_what_cannot_be_read(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(picture(number, 48, 60)).save(folder / f"{number}.png")
    found = scan([folder], load("natural"), DataRecipe(), tmp_path / "index.arrow", workers=1)
    for number in range(0, 20, 2):
        (folder / f"{number}.png").unlink()
    index, adapter, now, read = found.index, found.adapter, [0.0], []
    monkeypatch.setattr(storing.time, "monotonic", lambda: now[0])

    def slow(self, row, file):
        now[0] += 0.3
        read.append(row)
        return SLOW

    monkeypatch.setattr(storing._Look, "timed", slow)
    assert measure(index, adapter, recipe()).decoding == SLOW.decoding
    assert 4 <= len(read) <= 5
    assert all(int(Path(index[row].paths[0]).stem) % 2 for row in read)


def test_of_volumes_each_slice_is_a_view_and_none_has_another_form(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(3):
        voxels = np.random.default_rng(number).normal(0, 100, (20, 16, 8)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), str(tmp_path / "data" / f"{number}.nii.gz"))
    found = scan([tmp_path / "data"], load("medical"), DataRecipe(), tmp_path / "index.arrow", workers=1)
    index = found.index
    slices = recipes.load(None, ["model.image_size=[16,16]", "model.patch_size=[4,4]", "data.store_form=compact"])[0]
    assert form_of(slices, index) == RAW
    assert storing._shown(index, slices, 3) == 3 * 8
    costs = measure(index, found.adapter, slices, COMPACT)
    assert costs.decoding > 0
    assert costs.unpacking == 0
    cubes = recipes.load(None, ["model.image_size=[8,8,8]", "model.patch_size=[4,4,4]", "data.crop=8px"])[0]
    assert storing._shown(index, cubes, 2) == 2 * 20 * 16 * 8 / 8**3
    assert measure(index, found.adapter, cubes).reading > 0


def test_where_nothing_can_be_read_building_is_left_to_say_so(tmp_path):
    (tmp_path / "data").mkdir()
    Image.fromarray(picture(0, 48, 60)).save(tmp_path / "data" / "0.png")
    found = scan([tmp_path / "data"], load("natural"), DataRecipe(), tmp_path / "index.arrow", workers=1)
    (tmp_path / "data" / "0.png").unlink()
    assert measure(Index(found.index.path), found.adapter, recipe()).decoding == np.inf
