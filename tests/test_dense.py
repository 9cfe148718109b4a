"""Patches probed by label rasters: pairing, geometry, splits, mIoU and its intervals; on runs of a few steps."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rasterio
import torch
from conftest import SMALL, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as oracle

from maectl import blocks, bootstrap, checkpoint, dense, overlap, rasters, scoring
from maectl.adapter import Pixels, Source
from maectl.blocks import Split, divided, sampled
from maectl.covering import covering
from maectl.errors import UsageError
from maectl.features import central
from maectl.labels import Labels, by_group
from maectl.pretrain import Request, pretrain
from maectl.probe import probe, report
from maectl.rasters import COLOUR, NONE, name_of, nearest, numbered
from maectl.resize import resize

ACROSS = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]])  # stored as maectl sees volumes
CLASSES = ("a", "b", "c", "d")


def scene(seed: int, cells: tuple[int, int] = (4, 4), kinds: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3] of 8 x 8 cells, and the class of every pixel [H, W]: the brighter the higher."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, kinds, cells).repeat(8, 0).repeat(8, 1)
    shade = picture(seed, *truth.shape) // 5 + (180 // max(1, kinds - 1) * truth[..., None]).astype(np.uint8)
    return shade, truth.astype(np.uint8)


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def scenes(root: Path, seeds: range, make: Callable = scene, **more) -> Path:
    for seed in seeds:
        image, truth = make(seed, **more)
        write(root / "images" / f"{seed}.png", image)
        write(root / "masks" / f"{seed}.png", truth)
    return root


def trained(folder: Path, out: Path, *more: str, recipe: str = "small-images") -> Path:
    request = Request([str(folder)], out, recipe=recipe, overrides=[*SMALL, *more], steps=2, batch_size=8, workers=1)
    pretrain(request)
    return out


def probed(run: Path, folder: Path, masks: Path | None, **changes) -> dict:
    usual = {"labels": None, "method": "linear", "pool": None, "seed": 0, "workers": 2, "out": None}
    return probe(run, str(folder), **{**usual, "masks": masks, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data"), range(40))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data / "images", tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def windowed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that sees windows of 32 pixels."""
    return trained(data / "images", tmp_path_factory.mktemp("runs") / "windowed", "data.crop=32px")


# ---- the whole of it ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("results") / "probe.json"
    found = probed(run, data / "images", data / "masks", out=out)
    assert json.loads(out.read_text()) == found
    assert out.with_suffix(".png").is_file()
    return found


def test_what_patches_plainly_show_is_found_and_every_promised_key_is_there(result: dict):
    promised = {
        "method", "pool", "classes", "n_train", "n_test", "accuracy", "balanced_accuracy", "auroc", "f1_macro", "ci95",
        "miou", "f1_ci95", "patch", "images", "baselines", "verdict", "split", "per_class", "confusion", "headline",
    }  # fmt: skip
    assert promised <= set(result)
    assert (result["method"], result["pool"], result["headline"]) == ("linear", "patch", "miou")
    assert result["classes"] == ["0", "1"]
    assert result["n_train"] + result["n_test"] == 40 * 16
    assert (result["images"], result["patch"]) == (40, None)
    assert result["accuracy"] > 0.97
    assert result["miou"] > 0.95
    assert result["ci95"][0] <= result["miou"] <= result["ci95"][1]
    assert result["f1_ci95"][0] <= result["f1_macro"] <= result["f1_ci95"][1]
    assert set(result["baselines"]) == {"random_init", "image_stats", "pixels", "majority"}
    for baseline in result["baselines"].values():
        assert {"accuracy", "balanced_accuracy", "auroc", "f1_macro", "miou", "ci95", "f1_ci95"} <= set(baseline)
    for name in ("image_stats", "pixels"):
        assert result["baselines"][name]["miou"] > 0.95
    assert result["baselines"]["random_init"]["seeds"] == 3
    assert "in points of mIoU" in result["verdict"]
    assert "beats the commonest class" in result["verdict"]


def test_the_report_shows_miou_and_f1_beside_those_of_the_baselines(result: dict):
    said = report(result)
    for words in ("mIoU", "F1 macro", "random_init", "image_stats", "pixels", "majority", "patches", "of 40 images"):
        assert words in said
    row = next(line for line in said.splitlines() if line.startswith("majority"))
    assert f"{result['baselines']['majority']['miou']:.3f}" in row
    assert f"{result['baselines']['majority']['f1_macro']:.3f}" in row


def test_labels_that_have_nothing_to_do_with_the_images_give_chance(run: Path, data: Path, tmp_path: Path):
    for number in range(40):
        write(tmp_path / f"{number}.png", scene(1000 + number)[1])
    found = probed(run, data / "images", tmp_path)
    assert found["accuracy"] == pytest.approx(0.5, abs=0.1)
    assert found["miou"] == pytest.approx(1 / 3, abs=0.1)  # of two classes guessed
    assert found["auroc"] == pytest.approx(0.5, abs=0.1)
    assert "does not beat" in found["verdict"]


def test_the_same_seed_gives_the_same_result_on_any_number_of_threads(run: Path, data: Path):
    one, other = (probed(run, data / "images", data / "masks", workers=count, method="knn") for count in (1, 3))
    assert one == other
    assert one["method"] == "knn"
    assert one["accuracy"] > 0.97


def test_folders_train_and_test_decide_the_split(run: Path, tmp_path: Path):
    for seed in range(24):
        part = "train" if seed < 14 else "test" if seed < 22 else "elsewhere"
        image, truth = scene(seed)
        write(tmp_path / "images" / part / f"{seed}.png", image)
        write(tmp_path / "images" / "masks" / part / f"{seed}.png", truth)  # inside of the folder of images
    found = probed(run, tmp_path / "images", tmp_path / "images" / "masks")
    assert found["split"] == "the folders train/ and test/"
    assert (found["n_train"], found["n_test"]) == (14 * 16, 8 * 16)
    assert "left out, in neither train/ nor test/: 32 patches" in found["notes"]


def test_copies_and_images_of_pretraining_are_counted(run: Path, data: Path, tmp_path: Path):
    found = probed(run, data / "images", data / "masks")
    assert found["test_images_seen_in_pretraining"] == found["n_test"] // 16
    for name, seed in (("train/a", 0), ("train/b", 1), ("test/a", 0), ("test/c", 2)):
        image, truth = scene(seed)
        write(tmp_path / "images" / f"{name}.png", image)
        write(tmp_path / "masks" / f"{name}.png", truth)
    notes = probed(run, tmp_path / "images", tmp_path / "masks")["notes"]
    assert "16 test patches lie in windows that are exact copies of training windows" in notes


def test_an_image_or_label_raster_that_cannot_be_read_is_left_out_and_told(run: Path, tmp_path: Path, capsys):
    root = scenes(tmp_path, range(8))
    for path in (root / "masks" / "3.png", root / "images" / "5.png"):
        path.write_bytes(path.read_bytes()[:-60])
    found = probed(run, root / "images", root / "masks")
    assert found["images"] == 6
    assert "left out, unreadable: 2 images" in found["notes"]
    assert "2 images or their label rasters cannot be read, e.g. 3.png" in capsys.readouterr().err


def test_a_label_raster_that_is_no_image_is_left_out_and_its_name_is_not_exported(run: Path, tmp_path: Path, capsys):
    root = scenes(tmp_path, range(8))
    (root / "masks" / "3.png").write_bytes(b"not an image")
    found = probed(run, root / "images", root / "masks")
    assert found["images"] == 7
    assert "left out, label raster unreadable: 1 images" in found["notes"]
    assert "3.png" not in json.dumps(found)
    assert "label rasters cannot be read, e.g." in capsys.readouterr().err


# ---- label rasters -----------------------------------------------------------------------------------------------


def test_colours_are_classes(run: Path, tmp_path: Path):
    colours = np.array([[200, 0, 10], [0, 0, 255]], np.uint8)
    (tmp_path / "masks").mkdir()
    for seed in range(8):
        image, truth = scene(seed)
        write(tmp_path / "images" / f"{seed}.png", image)
        if seed % 2:
            write(tmp_path / "masks" / f"{seed}.png", colours[truth])
            continue
        palette = Image.new("P", truth.shape[::-1])
        palette.putpalette(colours.tobytes())
        palette.putdata(truth.ravel().tolist())
        palette.save(tmp_path / "masks" / f"{seed}.png")
    found = probed(run, tmp_path / "images", tmp_path / "masks")
    assert found["classes"] == ["#0000ff", "#c8000a"]
    assert found["accuracy"] > 0.95


def test_ignored_values_and_transparent_pixels_are_no_labels(run: Path, tmp_path: Path):
    for seed in range(8):
        image, truth = scene(seed)
        truth[:8, :] = 255  # the first row of patches
        alpha = np.full(truth.shape, 255, np.uint8)
        alpha[8:16, :8] = 0  # one more patch
        write(tmp_path / "images" / f"{seed}.png", image)
        write(tmp_path / "masks" / f"{seed}.png", np.stack([truth, alpha], axis=-1))
    found = probed(run, tmp_path / "images", tmp_path / "masks", ignore=["255"])
    assert found["classes"] == ["0", "1"]
    assert found["n_train"] + found["n_test"] == 8 * 11
    assert probed(run, tmp_path / "images", tmp_path / "masks")["classes"] == ["0", "1", "255"]
    with pytest.raises(UsageError, match="name 1 class that most of a patch is of"):
        probed(run, tmp_path / "images", tmp_path / "masks", ignore=["255", "0"])


@given(st.one_of(st.integers(-(2**31), 2**31), st.integers(COLOUR, COLOUR + 0xFFFFFF)))
def test_what_a_class_is_called_names_its_number_again(number: int):
    assert numbered(name_of(number)) == number


@pytest.mark.parametrize("text", ["water", "#12345", "#gggggg", "1.5", ""])
def test_ignored_values_that_are_none_are_refused(run: Path, data: Path, text: str):
    with pytest.raises(UsageError, match="give a whole number, or a colour"):
        probed(run, data / "images", data / "masks", ignore=[text])


def test_a_label_raster_of_another_size_is_refused_with_both_sizes(run: Path, tmp_path: Path):
    root = scenes(tmp_path, range(4))
    write(root / "masks" / "2.png", np.zeros((32, 30), np.uint8))
    with pytest.raises(UsageError, match=r"2\.png has 32 x 30 pixels, its image 2\.png 32 x 32"):
        probed(run, root / "images", root / "masks")


def test_what_is_no_label_raster_is_refused(run: Path, tmp_path: Path):
    root = scenes(tmp_path, range(4))
    path = write(root / "masks" / "1.png", np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    with pytest.raises(UsageError, match=r"1\.png is no label raster: more than 256 values"):
        probed(run, root / "images", root / "masks")
    path.unlink()
    write(root / "masks" / "1.tif", np.full((32, 32), 0.5, np.float32))
    with pytest.raises(UsageError, match=r"1\.tif is no label raster: 0\.5 is no whole number"):
        probed(run, root / "images", root / "masks")
    (root / "masks" / "1.tif").unlink()
    write(root / "masks" / "1.jpg", np.zeros((32, 32), np.uint8))
    with pytest.raises(UsageError, match=r"1\.jpg is no label raster: JPEG does not keep values"):
        probed(run, root / "images", root / "masks")


def test_images_without_a_label_raster_are_counted_and_none_at_all_is_refused(run: Path, tmp_path: Path):
    root = scenes(tmp_path, range(10))
    for number in (1, 4):
        (root / "masks" / f"{number}.png").unlink()
    found = probed(run, root / "images", root / "masks")
    assert found["images"] == 8
    assert "left out, without a label raster: 2 images" in found["notes"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no label raster in .*empty for any of the 10 images .* as 0\.\*, 0_\*"):
        probed(run, root / "images", tmp_path / "empty")


def matched(images: list[str], masks: list[str]) -> dict[str, str]:
    names = {(path,): rasters._names((path,)) for path in images}
    found = rasters._matched(names, {f"m/{path}": rasters._bare(path) for path in masks}, rasters.Counter())
    return {files[0]: path.removeprefix("m/") for files, path in found.items()}


def test_label_rasters_are_found_by_path_then_name_then_all_but_the_last_token():
    same = {"a/1.jpg": "a/1.png", "b/1.jpg": "b/1.png"}
    assert matched(list(same), list(same.values())) == same
    assert matched(["a/1.jpg", "b/2.jpg"], ["2.nii.gz", "x/1.tif"]) == {"a/1.jpg": "x/1.tif", "b/2.jpg": "2.nii.gz"}
    assert matched(["Spain_1_S2Hand.tif"], ["Spain_1_LabelHand.tif", "Spain_2_LabelHand.tif"]) == {
        "Spain_1_S2Hand.tif": "Spain_1_LabelHand.tif"
    }
    assert matched(["case.nii.gz"], ["case_seg.nii.gz"]) == {"case.nii.gz": "case_seg.nii.gz"}


def test_label_rasters_that_could_be_of_several_images_are_of_none():
    assert matched(["a/1.jpg", "b/1.jpg"], ["1.png"]) == {}
    assert matched(["a/1.jpg"], ["x/1.png", "y/1.png"]) == {}
    assert matched(["s_red.png", "s_blue.png"], ["s_label.png"]) == {}
    assert matched(["day_1.png"], ["day_2.png"]) == {}  # a number is no suffix
    assert matched(["x.png", "x_a.png"], ["x_a.png"]) == {"x_a.png": "x_a.png"}  # taken, so none for x.png


def test_an_image_of_several_files_goes_by_what_they_share_or_by_their_folder():
    assert rasters._names(("s/LC8_7_B1.tif", "s/LC8_7_B2.tif")) == ("s/LC8_7", "s")
    assert rasters._names(("p/scan/IM-001.dcm", "p/scan/IM-002.dcm")) == ("p/scan",)


def test_one_file_is_the_label_raster_of_one_image(windowed: Path, tmp_path: Path, data: Path):
    image, truth = scene(0, (16, 16))
    path = write(tmp_path / "scene_S2.png", image)
    mask = write(tmp_path / "scene_Label.png", truth)
    found = probed(windowed, path, mask)
    assert found["images"] == 1
    assert probed(windowed, path, tmp_path) | {"notes": []} == found | {"notes": []}
    with pytest.raises(UsageError, match="is one file, and .* has 40 images"):
        probed(windowed, data / "images", mask)


def test_arguments_that_do_not_go_together_are_refused(run: Path, data: Path, tmp_path: Path):
    ask = partial(probed, run, data / "images")
    with pytest.raises(UsageError, match="leave out --labels"):
        ask(data / "masks", labels=tmp_path / "labels.csv")
    with pytest.raises(UsageError, match="leave out --per patient"):
        ask(data / "masks", per="patient")
    with pytest.raises(UsageError, match="leave out --pool"):
        ask(data / "masks", pool="cls")
    with pytest.raises(UsageError, match="--ignore is for label rasters"):
        ask(None, ignore=["0"])
    with pytest.raises(UsageError, match="does not exist"):
        ask(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds the images"):
        ask(data)


# ---- geometry ----------------------------------------------------------------------------------------------------


@given(st.data())
def test_nearest_neighbour_takes_the_pixel_that_a_result_pixel_s_centre_lies_in(data):
    extent = data.draw(st.tuples(*[st.integers(1, 40)] * 2))
    size = data.draw(st.tuples(*[st.integers(1, 40)] * 2))
    values = np.arange(extent[0] * extent[1]).reshape(1, *extent)
    starts = [data.draw(st.integers(0, e - 1)) for e in extent]
    window = tuple(slice(s, data.draw(st.integers(s + 1, e))) for s, e in zip(starts, extent, strict=True))
    found = nearest(lambda w: Pixels(values[(slice(None), *w)]), window, size).values[0]
    for i in range(size[0]):
        for j in range(size[1]):
            sides = [side.stop - side.start for side in window]
            at = [side.start + (2 * k + 1) * n // (2 * z)
                  for side, k, n, z in zip(window, (i, j), sides, size, strict=True)]  # fmt: skip
            assert found[i, j] == values[0, at[0], at[1]]


def test_large_label_rasters_are_read_in_parts(monkeypatch):
    values = np.random.default_rng(0).integers(0, 9, (1, 500, 300))
    asked = []

    def read(window):
        asked.append(window)
        return Pixels(values[(slice(None), *window)])

    whole = nearest(read, (slice(10, 490), slice(5, 300)), (40, 30)).values
    assert len(asked) == 1
    monkeypatch.setattr(rasters, "PART", 10_000)
    np.testing.assert_array_equal(nearest(read, (slice(10, 490), slice(5, 300)), (40, 30)).values, whole)
    assert len(asked) > 10
    assert max((w[0].stop - w[0].start) * 295 for w in asked[1:]) < 15_000


def test_the_nearest_pixel_lies_where_resize_puts_it():
    """A step edge: where the resized image is nearer its bright side, the label is the bright side's."""
    for extent, size in ((48, 16), (40, 16), (16, 40), (33, 32)):
        for edge in range(2, extent - 2):
            values = np.zeros((1, extent, extent), np.float32)
            values[:, :, edge:] = 1
            seen = resize(Pixels(values), (size, size), np.zeros(1)).values[0, 0] > 0.5
            label = nearest(lambda w, v=values: Pixels(v[(slice(None), *w)]), (slice(0, extent),) * 2, (size, size))
            assert abs(int(seen.sum()) - int(label.values[0, 0].sum())) <= 1
            clear = np.abs((np.arange(size) + 0.5) * extent / size - edge) > max(1, extent / size) / 2 + 0.01
            np.testing.assert_array_equal(seen[clear], label.values[0, 0][clear] > 0.5)


def test_classes_of_patches_are_their_commonest_and_half_labelled_ones_have_none():
    cells = np.array([[1, 1, 2, 2], [2, 2, 2, 1], [NONE, NONE, 5, 5], [NONE, NONE, NONE, 5]])
    assert dense._commonest(cells, np.unique(cells)).tolist() == [1, 2, 5, NONE]


def looks_of(run: Path, shape: tuple[int, ...], axes=("row", "column")):
    config = checkpoint.load(run).config
    return covering(Source(("a",), (3, *shape), "uint8", "0..255", axes, ("red", "green", "blue")), 0, config)


@given(st.integers(8, 200), st.integers(8, 200))
def test_windows_lie_side_by_side_and_miss_less_than_half_a_window_at_either_rim(windowed, height, width):
    looks = looks_of(windowed, (height, width))
    seen = np.zeros((height, width), int)
    for look in looks:
        assert look.span == (32, 32)
        seen[look.window] += 1
    assert seen.max() == 1
    rows, columns = seen.any(axis=1), seen.any(axis=0)
    for line in (rows, columns):
        inside = np.flatnonzero(line)
        assert line[inside[0] : inside[-1] + 1].all()
        assert inside[0] <= 8
        assert len(line) - 1 - inside[-1] <= 8


def test_an_image_seen_whole_is_seen_as_features_see_it(run: Path):
    (look,) = looks_of(run, (40, 60))
    assert look.window == central((40, 60), (32, 32))


def test_labels_of_an_image_that_the_view_pads_lie_where_the_image_does(windowed: Path, tmp_path: Path):
    """20 rows of 32 lie in the middle of the view, six empty ones on either side: two rows of patches are whole."""
    for seed in range(12):
        image, truth = scene(seed)
        write(tmp_path / "images" / f"{seed}.png", image[6:26])
        write(tmp_path / "masks" / f"{seed}.png", truth[6:26])
    found = probed(windowed, tmp_path / "images", tmp_path / "masks")
    assert found["n_train"] + found["n_test"] == 12 * 8
    assert found["baselines"]["image_stats"]["accuracy"] == 1


def test_patches_with_less_than_half_of_their_pixels_valid_are_left_out(run: Path, tmp_path: Path):
    for seed in range(8):
        image, truth = scene(seed)
        alpha = np.full(truth.shape, 255, np.uint8)
        alpha[:, :13] = 0  # the first column of patches, and five eighths of the second
        alpha[:, 31:] = 0
        write(tmp_path / "images" / f"{seed}.png", np.dstack([image, alpha]))
        write(tmp_path / "masks" / f"{seed}.png", truth)
    found = probed(run, tmp_path / "images", tmp_path / "masks")
    assert found["n_train"] + found["n_test"] == 8 * 8


# ---- features ----------------------------------------------------------------------------------------------------


def test_features_of_patches_are_the_model_s_tokens_and_the_baselines_what_they_say(run: Path, data: Path, monkeypatch):
    got = {}
    original = scoring.evaluate

    def spied(features, labels, **how):
        got.setdefault("labels", labels)
        got.setdefault("all", []).append(features)
        return original(features, labels, **how)

    monkeypatch.setattr(scoring, "evaluate", spied)
    probed(run, data / "images", data / "masks")
    labels, frozen = got["labels"], got["all"]
    found = checkpoint.load(run)
    model, mean, std = (
        found.model(),
        *(np.array(each)[:, None, None] for each in (found.config.normalizer.mean, found.config.normalizer.std)),
    )
    names = sorted(path.name for path in (data / "images").iterdir())
    for row in (0, 17):
        image = np.moveaxis(np.asarray(Image.open(data / "images" / names[row])), -1, 0)
        truth = np.asarray(Image.open(data / "masks" / names[row]))
        items = np.flatnonzero(labels.rows == row)
        assert len(items) == 16
        assert labels.targets[items].tolist() == truth[::8, ::8].ravel().tolist()
        with torch.no_grad():
            tokens = model.encode(torch.from_numpy(((image - mean) / std).astype(np.float32))[None])[0, 1:]
        np.testing.assert_allclose(frozen[0]["patch"][items], tokens.numpy(), atol=2e-5)
        patch = image[:, 8:16, 16:24].astype(float).reshape(3, -1)  # the seventh
        stats = np.concatenate((patch.mean(axis=1), patch.std(axis=1), patch.min(axis=1), patch.max(axis=1)))
        np.testing.assert_allclose(frozen[-2]["stats"][items[6]], stats, rtol=1e-5)
        np.testing.assert_allclose(frozen[-1]["pixels"][items[6]], patch.ravel())


# ---- splits ------------------------------------------------------------------------------------------------------


def test_no_test_window_of_one_scene_touches_a_training_window(windowed: Path, tmp_path: Path, monkeypatch):
    image, truth = scene(3, (20, 28))
    path, mask = write(tmp_path / "scene.png", image), write(tmp_path / "mask" / "scene.png", truth)
    asked, known = [], []
    features, evaluate = dense.features, scoring.evaluate
    monkeypatch.setattr(dense, "features", lambda *given: asked.append(given) or features(*given))
    monkeypatch.setattr(scoring, "evaluate", lambda x, y, **how: known.append(y) or evaluate(x, y, **how))
    for seed in range(2):
        found = probed(windowed, path, mask, seed=seed)
        assert found["split"].startswith("within scene: the ")
        assert "nothing about other scenes" in found["split"]
        assert any("not independent" in note for note in found["notes"])
        _, _, _, chosen, windows, *_ = asked[-1]
        parts = [np.zeros((160, 224), bool) for _ in range(2)]  # test, train
        for number, train in zip(windows, known[-1].train, strict=True):
            parts[int(train)][chosen[number].window] = True
        lines = ([np.flatnonzero(part.any(axis=axis)) for part in parts] for axis in (1, 0))
        rows, columns = (np.abs(test[:, None] - train).min() for test, train in lines)
        assert max(rows, columns) > 32  # a whole window lies between
        assert len(known[-1].groups) == found["n_train"] + found["n_test"]
        assert len(np.unique(known[-1].groups)) == len(np.unique(windows))


@given(st.integers(0, 10_000), st.integers(3, 8), st.integers(1, 8))
def test_parts_of_a_scene_are_a_whole_line_of_windows_apart(seed: int, height: int, width: int):
    rng = np.random.default_rng(seed)
    cells = np.argwhere(np.ones((height, width)))
    windows = np.repeat(np.arange(len(cells)), 4)
    every = [rng.permutation([0, 1, 2, 0]) for _ in cells]  # all classes in each, so that any division will do
    targets = np.tile([0, 1, 0, 1], len(cells)) if seed % 2 else np.concatenate(every)
    found = divided(targets, windows, cells, np.zeros(len(cells), int), ["a.tif"] * len(cells), CLASSES[:3], seed)
    test, train = (cells[windows[found.used & part]] for part in (~found.train, found.train))
    apart = np.abs(test[:, None] - train[None]).max(axis=-1)
    assert apart.min() >= 2
    assert found.groups is windows
    if seed % 2:
        assert 0.25 <= len(test) / (len(test) + len(train)) <= 0.5


def test_a_scene_labelled_in_one_corner_is_divided_there():
    cells = np.argwhere(np.ones((10, 10)))
    corner = np.flatnonzero((cells < 3).all(axis=1))
    windows = np.repeat(corner, 6)
    targets = np.tile([0, 1, 1, 0, 2, 1], len(corner))
    found = divided(targets, windows, cells, np.zeros(100, int), ["a.tif"] * 100, CLASSES[:3], 0)
    counts = [int((found.used & part).sum()) for part in (found.train, ~found.train)]
    assert counts == [18, 18]


def test_the_side_with_most_classes_in_both_parts_is_taken():
    cells = np.argwhere(np.ones((9, 9)))
    windows = np.repeat(np.arange(81), 2)
    targets = np.where(np.tile([True, False], 81), 0, np.where(cells[windows, 0] < 4, 1, 2))  # 1 above, 2 below
    for seed in range(8):
        found = divided(targets, windows, cells, np.zeros(81, int), ["a.tif"] * 81, CLASSES[:3], seed)
        assert "columns" in found.said


def test_a_scene_of_too_few_windows_is_refused(run: Path, tmp_path: Path):
    image, truth = scene(0, (16, 16))
    path, mask = write(tmp_path / "scene.png", image), write(tmp_path / "mask.png", truth)
    with pytest.raises(UsageError, match="one scene, seen in 1 rows and 1 columns of windows: to divide it takes 3"):
        probed(run, path, mask)


def test_groups_are_never_divided_and_every_class_lands_in_both_parts():
    rng = np.random.default_rng(0)
    for seed in range(20):
        groups = np.repeat(np.arange(12), 50)
        targets = np.where(rng.random(600) < 0.1, 2, rng.integers(0, 2, 600))
        targets[(groups != 3) & (groups != 8) & (targets == 2)] = 0  # a class of two groups
        train = by_group(targets, groups, 3, seed)
        assert not set(groups[train]) & set(groups[~train])
        assert set(targets[train]) == set(targets[~train]) == {0, 1, 2}
        assert 0.15 <= (~train).mean() <= 0.45


def test_a_class_of_one_group_is_told_to_lack_a_part():
    windows, cells = np.repeat(np.arange(12), 10), np.zeros((12, 2), int)
    targets = np.tile([0, 1], 60)
    targets[:3] = 2
    found = divided(targets, windows, cells, np.arange(12), [f"{n}.tif" for n in range(12)], CLASSES[:3], 0)
    told = [note for note in found.notes if note.startswith("without a ")]
    assert len(told) == 1
    assert "patch" in told[0]
    assert "no split of the 12 groups" in told[0]


def test_test_patches_of_groups_that_also_train_are_left_out():
    windows = np.repeat(np.arange(6), 4)
    paths = [f"{part}/{n}.tif" for n, part in enumerate(["train"] * 3 + ["test"] * 3)]
    groups = np.array([0, 1, 2, 2, 4, 5])
    found = divided(np.tile([0, 1], 12), windows, np.zeros((6, 2), int), groups, paths, CLASSES[:2], 0)
    assert found.used.sum() == 20
    assert any("4 patches of 1 groups" in note for note in found.notes)
    with pytest.raises(UsageError, match="no labelled patch is in the test part"):
        divided(np.tile([0, 1], 12), windows, np.zeros((6, 2), int), np.zeros(6, int), paths, CLASSES[:2], 0)


def test_large_parts_are_sampled_in_proportion_and_lose_no_class(monkeypatch):
    monkeypatch.setattr(blocks, "PATCHES", 1000)
    rng = np.random.default_rng(0)
    targets = rng.choice(4, 30_000, p=[0.7, 0.28, 0.0199, 0.0001])
    targets[:2] = 3
    train = np.arange(30_000) % 2 == 0
    split = Split(train, np.arange(30_000) < 29_000, np.arange(30_000), "", [])
    kept, notes = sampled(targets, split, 0)
    assert (np.diff(kept) > 0).all()
    assert kept.max() < 29_000
    assert len(notes) == 2
    for part in (train, ~train):
        mine = targets[kept[part[kept]]]
        assert 990 <= len(mine) <= 1000
        assert len(np.unique(mine)) == 4
        assert (mine == 0).mean() == pytest.approx(0.7, abs=0.02)
    assert kept.tolist() == sampled(targets, split, 0)[0].tolist() != sampled(targets, split, 1)[0].tolist()


# ---- metrics -----------------------------------------------------------------------------------------------------


def guesses(seed: int, items: int = 300, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, items, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    p = rng.dirichlet(np.ones(classes), items) + 0.5 * np.eye(classes)[truth] * rng.random((items, 1))
    return truth, p / p.sum(axis=1, keepdims=True), np.sort(rng.integers(0, 15, items))


def judged(truth: np.ndarray, p: np.ndarray, groups: np.ndarray) -> dict:
    """Of a test part alone."""
    count = np.arange(len(truth))
    labels = Labels(CLASSES[: p.shape[1]], truth, count, count, count, count < 0, groups, "", [], "patches")
    return scoring._scored(p, labels, 0)


@pytest.mark.parametrize("seed", range(4))
def test_miou_and_f1_are_scikit_learn_s(seed: int):
    truth, p, groups = guesses(seed)
    if seed == 1:
        truth[truth == 2] = 0  # there is no such class, and yet it is guessed
    if seed == 2:
        p[:, 3] = 0
        truth[truth == 3] = 0  # neither there nor guessed
    found, said = judged(truth, p, groups), p.argmax(axis=1)
    assert found["miou"] == pytest.approx(oracle.jaccard_score(truth, said, average="macro"))
    assert found["f1_macro"] == pytest.approx(oracle.f1_score(truth, said, average="macro"))
    each = oracle.jaccard_score(truth, said, average=None, labels=range(4), zero_division=0)
    assert [row["iou"] for row in found["per_class"]] == pytest.approx(each.tolist())
    assert found["headline"] == "miou"


def test_metrics_of_a_resample_are_scikit_learn_s_of_its_items():
    truth, p, groups = guesses(0, 120)
    truth[groups == 3] = 3
    said, numbers = p.argmax(axis=1), np.unique(groups)
    counts = overlap.overlaps(truth, said, groups, 4)
    weights = np.random.default_rng(0).multinomial(2, np.ones(len(numbers)) / len(numbers), 30)  # classes go missing
    iou, f1 = (metric(counts, weights.astype(float)) for metric in (overlap.mean_iou, overlap.mean_f1))
    for row, a, b in zip(weights, iou, f1, strict=True):
        often = row[np.searchsorted(numbers, groups)]
        drawn = truth.repeat(often), said.repeat(often)
        assert a == pytest.approx(oracle.jaccard_score(*drawn, average="macro"))
        assert b == pytest.approx(oracle.f1_score(*drawn, average="macro"))


def test_intervals_are_those_of_redrawing_whole_groups():
    truth, p, groups = guesses(5, 400)
    found, said, numbers = judged(truth, p, groups), p.argmax(axis=1), np.unique(groups)
    rng = np.random.default_rng(3)
    drawn = {"ci95": [], "f1_ci95": []}
    members = [np.flatnonzero(groups == number) for number in numbers]
    for _ in range(1500):
        items = np.concatenate([members[k] for k in rng.integers(0, len(numbers), len(numbers))])
        drawn["ci95"].append(oracle.jaccard_score(truth[items], said[items], average="macro"))
        drawn["f1_ci95"].append(oracle.f1_score(truth[items], said[items], average="macro"))
    for name, values in drawn.items():
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.012)


def test_the_verdict_s_difference_is_of_miou():
    truth, good, groups = guesses(5, 400)
    bad = np.roll(good, 100, axis=0)
    count = np.arange(400)
    labels = Labels(CLASSES, truth, count, count, count, count < 0, groups, "", [], "patches")
    better, worse = (
        scoring.Evaluation("linear", "patch", 1.0, 0.0, p, scoring._scored(p, labels, 0)) for p in (good, bad)
    )
    difference = 100 * (better.metrics["miou"] - worse.metrics["miou"])
    line = scoring.verdict(better, [worse], {}, labels, 0)
    assert line.startswith(f"the encoder beats its random twin by {difference:+.1f} (95 % interval +")
    mean = scoring.average([better, worse], labels, 0)
    assert mean["miou"] == pytest.approx((better.metrics["miou"] + worse.metrics["miou"]) / 2)
    assert mean["f1_ci95"][0] < mean["f1_macro"] < mean["f1_ci95"][1]


def test_few_groups_give_no_interval_of_either():
    truth, p, _ = guesses(0)
    found = judged(truth, p, np.arange(300) % 6)
    assert found["ci95"] is found["f1_ci95"] is None
    assert found["ci95_reason"] == "only 6 test groups, and it takes 10"


def test_resamples_weigh_groups_not_patches(monkeypatch):
    shapes = []
    original = overlap.mean_iou

    def measured(counts, weights):
        shapes.append(weights.shape)
        return original(counts, weights)

    monkeypatch.setattr(scoring, "mean_iou", measured)
    truth, p, _ = guesses(0, 20_000)
    judged(truth, p, np.arange(20_000) // 1000)
    assert shapes == [(bootstrap.RESAMPLES, 20)]


# ---- volumes -----------------------------------------------------------------------------------------------------


def volume(path: Path, values: np.ndarray) -> None:
    affine = np.eye(4)
    affine[:3, :3] = ACROSS @ np.diag((3, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 volumes of 8 x 32 x 32 in cells of 4 x 8 x 8, and their segmentations, turned and in float32."""
    root = tmp_path_factory.mktemp("volumes")
    for seed in range(14):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 3, (2, 4, 4)).repeat(4, 0).repeat(8, 1).repeat(8, 2)
        values = (300 * truth + rng.normal(0, 20, truth.shape)).astype(np.int16)
        volume(root / "images" / f"case{seed:02d}_t1.nii.gz", values)
        flipped = nibabel.Nifti1Image(truth[::-1].astype(np.float32), _turned(truth.shape[0]))
        (root / "masks").mkdir(exist_ok=True)
        nibabel.save(flipped, root / "masks" / f"case{seed:02d}_seg.nii")
    return root


def _turned(depth: int) -> np.ndarray:
    """The affine of a volume stored from its other end."""
    affine = np.eye(4)
    affine[:3, :3] = ACROSS @ np.diag((-3, 1, 1))
    affine[:3, 3] = ACROSS @ np.array([3 * (depth - 1), 0, 0])
    return affine


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (("model.image_size=32", "model.patch_size=8"), 14 * 8 * 16),
        (("model.image_size=[8,32,32]", "model.patch_size=[4,8,8]"), 14 * 2 * 16),
        (("model.image_size=[4,16,16]", "model.patch_size=[4,8,8]", "data.crop=16px"), 14 * 2 * 16),
    ],
)
def test_segmentations_of_volumes_label_the_patches_of_slices_and_the_cubes(volumes, tmp_path, size, expected):
    # 4 x 16 x 16 voxels: a window of 16 px along the longest side of the model's image
    run = trained(volumes / "images", tmp_path / "run", *size, "data.flip=[]", recipe="mri-slices")
    found = probed(run, volumes / "images", volumes / "masks")
    assert found["classes"] == ["0", "1", "2"]
    assert found["n_train"] + found["n_test"] == expected
    assert found["images"] == 14
    assert found["accuracy"] > 0.6  # of an encoder that has learnt next to nothing
    assert found["baselines"]["image_stats"]["accuracy"] > 0.97
    assert found["patch"] == {"extent": [8, 8] if "[" not in size[0] else [12, 8, 8], "unit": "mm"}


def test_one_volume_is_divided_by_its_slices(volumes: Path, tmp_path: Path):
    run = trained(volumes / "images", tmp_path / "run", "data.flip=[]", recipe="mri-slices")
    found = probed(run, volumes / "images" / "case00_t1.nii.gz", volumes / "masks" / "case00_seg.nii")
    assert "2 of 8 slices of windows for testing" in found["split"]
    assert (found["n_train"], found["n_test"]) == (5 * 16, 2 * 16)


# ---- rasters on the ground ---------------------------------------------------------------------------------------


def geotiff(path: Path, values: np.ndarray, **profile) -> Path:
    """[C, H, W] somewhere near Valencia, 10 m a pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"driver": "GTiff", "dtype": values.dtype, "crs": "EPSG:32630"}
    about |= dict(zip(("count", "height", "width"), values.shape, strict=True))
    about["transform"] = rasterio.Affine(10, 0, 7e5, 0, -10, 4.3e6)
    colours = profile.pop("colours", None)
    with rasterio.open(path, "w", **about | profile) as file:
        file.write(values)
        if colours is not None:
            file.write_colormap(1, colours)
    return path


def test_a_georeferenced_scene_is_probed_with_its_label_raster(tmp_path: Path):
    """Five bands; labels with a colour table and a nodata value, in one file, under a name that says so."""
    image, truth = scene(7, (12, 16))
    values = np.concatenate([np.moveaxis(image, -1, 0), np.moveaxis(image[..., :2], -1, 0)]).astype(np.uint16) * 20
    values[:, :8] = 0
    path = geotiff(tmp_path / "scene_S2Hand.tif", values, nodata=0)
    truth = truth + 1
    truth[:, :8] = 0
    colours = {0: (0, 0, 0, 255), 1: (10, 20, 30, 255), 2: (200, 20, 30, 255)}
    mask = geotiff(tmp_path / "scene_LabelHand.tif", truth[None].astype(np.uint8), nodata=0, colours=colours)
    run = trained(path, tmp_path / "run", "data.crop=16px", "model.image_size=16", "data.adapter=satellite")
    found = probed(run, path, mask)
    assert found["classes"] == ["1", "2"]
    assert found["split"].startswith("within scene")
    assert found["baselines"]["pixels"]["accuracy"] > 0.97
    assert found["patch"] == {"extent": [80, 80], "unit": "m"}
    # 11 x 15 patches have a label; the buffer is two rows, or two columns, of them
    assert found["n_train"] + found["n_test"] in (9 * 15, 11 * 13)


# ---- the command line --------------------------------------------------------------------------------------------


def test_the_command_line_takes_masks_and_values_to_ignore(maectl, run: Path, data: Path, tmp_path: Path):
    done = maectl("probe", run, data / "images", "--masks", data / "masks", "--ignore", "-1", "--json", check=True)
    found = json.loads(done.stdout)
    assert found["classes"] == ["0", "1"]
    done = maectl("probe", run, data / "images", "--masks", data / "masks", "--labels", tmp_path / "a.csv")
    assert done.returncode == 2
    assert "leave out --labels" in done.stderr
