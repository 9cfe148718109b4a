"""Reconstruction: any size, no seams, the source's own format, errors that mean what they say."""

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import picture
from natural_files import ramp
from PIL import Image
from test_panels import made
from typer.testing import CliRunner

from maectl import checkpoint, panels, restoration, tiling
from maectl.adapter import Files, Pixels, Source
from maectl.cli import app
from maectl.errors import DataError, RunError, UsageError
from maectl.fidelity import compared, fidelity, mean, nearest_visible, patch_means
from maectl.reconstruct import reconstruct
from maectl.resize import resize
from maectl.stats import Normalizer
from maectl.stream import generator
from maectl.windows import cover, room, shares
from maectl_natural import Natural
from maectl_natural.encode import encode
from maectl_natural.pillow import Raster

CPU = torch.device("cpu")
CONSTANTS = torch.full((1, 3), 100.0), torch.full((1, 3), 50.0)


def trained(folder: Path, channels: int = 3, norm: bool = False, **changes: Any) -> Path:
    """A run folder with a checkpoint of random weights for 32 px images of 8 px patches."""
    config = made(channels, norm=norm)
    config = config.model_copy(update={"channels": ("grey",) if channels == 1 else config.channels, **changes})
    folder.mkdir()
    torch.manual_seed(0)
    model = config.build_model()
    checkpoint.save(folder, 1, model, config)
    checkpoint.save_encoder(folder, model, config)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return trained(tmp_path / "run")


def filled(run: Path, *paths: Path, out: str = "out", **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"mask_ratio": None, "seed": 0, "cover": False, "format": "both", **changes}
    return reconstruct(run, [str(path) for path in paths], run.parent / out, **options)


def loaded(path: str | Path) -> npt.NDArray[Any]:
    with Image.open(path) as image:
        return np.array(image)


def saved(path: Path, pixels: npt.NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def output(entry: dict[str, Any]) -> Path:
    """The reconstruction alone."""
    (found,) = (Path(each) for each in entry["outputs"] if not each.endswith("-panels.png"))
    return found


def known(pixels: npt.NDArray[Any], size: tuple[int, int]) -> Pixels:
    return resize(Pixels(np.moveaxis(pixels, -1, 0)), size, np.zeros(3))


# ---- tiles and masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extent", "size"), [(1, 1), (7, 8), (8, 8), (9, 8), (13, 8), (41, 8), (5, 1), (300, 224), (1001, 224)]
)
def test_blending_weights_are_positive_and_sum_to_one_everywhere(extent: int, size: int):
    starts = cover(extent, size)
    total = np.zeros(max(extent, size))
    for start, weights in zip(starts, shares(size, starts), strict=True):
        assert (weights > 0).all()
        total[start : start + size] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    assert all(second - first <= max(1, size // 2) for first, second in pairwise(starts))


@pytest.mark.parametrize("extent", [(32, 32), (533, 400), (20, 31), (1, 1), (3, 200), (100, 37)])
def test_an_image_meets_the_model_at_the_scale_of_its_shorter_side(extent: tuple[int, int]):
    plan = tiling.layout(extent, (32, 32), (8, 8))
    assert min(plan.size) == 32
    assert all(size == cells * 8 for size, cells in zip(plan.size, plan.cells, strict=True))
    wanted = max(extent) / min(extent)
    assert abs(max(plan.size) / 32 - wanted) <= 4 / 32  # half a patch
    for starts, cells in zip(plan.starts, plan.cells, strict=True):
        assert starts[0] == 0
        assert starts[-1] + 4 == cells


def test_with_a_window_as_crop_tiles_are_at_its_scale():
    assert tiling.layout((320, 200), (32, 32), (8, 8), (32.0, 32.0)).size == (320, 200)
    assert tiling.layout((320, 200), (32, 32), (8, 8), (64.0, 64.0)).size == (160, 96)
    assert tiling.layout(room((16, 320), (32.0, 32.0)), (32, 32), (8, 8), (32.0, 32.0)).size == (32, 320)  # padded
    assert tiling.layout((20, 320), (32, 32), (8, 8), (10.0, 32.0)).size == (64, 320)  # pixels that are not square
    assert tiling.layout((9, 60, 70), (8, 32, 32), (4, 8, 8)).size == (8, 32, 32)  # a whole volume is one tile


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9])
def test_covering_masks_remove_the_ratio_and_use_every_patch_once(ratio: float):
    found = tiling.masks((7, 6), ratio, True, generator(0, 0))
    removed = 42 - int(round(42 * (1 - ratio), 6))
    assert len(found) == -(-42 // removed)
    assert [mask.removed.sum() for mask in found] == [removed] * len(found)
    assert all((mask.removed | ~mask.used).all() for mask in found)  # used where removed alone
    assert (np.sum([mask.used for mask in found], axis=0) == 1).all()


def test_every_tile_wherever_it_lies_removes_what_the_lattice_says():
    config = made()
    model = config.build_model()
    (mask,) = tiling.masks((4, 4), 0.75, False, generator(3, 1))
    plan = tiling.layout((77, 200), (32, 32), (8, 8))
    lattice = plan.spread(mask.removed)
    for tile in plan.tiles:
        noise = torch.from_numpy(tiling._shifted(mask.noise, plan, tile).copy()).reshape(1, -1)
        told = model.random_masking(noise, 0.75)[2].bool().numpy().reshape(4, 4)
        window = tuple(slice(starts[which], starts[which] + 4) for starts, which in zip(plan.starts, tile, strict=True))
        assert (lattice[window] == told).all()
        assert told.sum() == 12


def test_masks_follow_from_the_seed_and_the_place():
    several = [
        tiling.masks((8, 8), 0.75, False, generator(seed, place, restoration.RECONSTRUCT))[0].removed
        for seed, place in product((0, 1), (0, 1))
    ]
    assert all((first != second).any() for first, second in pairwise(several))


# ---- blending ------------------------------------------------------------------------------------------------


def through(predict: Any, monkeypatch: pytest.MonkeyPatch, plan: tiling.Layout, seen: Pixels, covered: bool) -> Any:
    monkeypatch.setattr(tiling, "predict", predict)
    found = tiling.masks(plan.grid, 0.75, covered, generator(0, 0))
    normalizer = Normalizer((100.0,) * 3, (50.0,) * 3, None)
    return tiling.inpaint(None, seen, plan, found, 0.75, normalizer, CONSTANTS, CPU), found  # type: ignore[arg-type]


@pytest.mark.parametrize("extent", [(32, 32), (75, 40), (33, 200), (9, 5)])
def test_a_perfect_prediction_comes_back_as_the_image(monkeypatch: pytest.MonkeyPatch, extent: tuple[int, int]):
    plan = tiling.layout(extent, (32, 32), (8, 8))
    seen = known(picture(0, *extent), plan.size)
    canvas, _ = through(lambda model, images, *rest: (images, None), monkeypatch, plan, seen, True)
    np.testing.assert_allclose(canvas, seen.values, atol=1e-3)
    canvas, (mask,) = through(lambda model, images, *rest: (images, None), monkeypatch, plan, seen, False)
    removed = tiling._enlarged(plan.spread(mask.removed), (8, 8))
    np.testing.assert_allclose(canvas, np.where(removed, seen.values, 0), atol=1e-3)


def test_tiles_that_disagree_are_blended_without_a_seam(monkeypatch: pytest.MonkeyPatch):
    """Neighbouring tiles that predict levels one apart (their number) must not leave a step."""
    plan = tiling.layout((32, 333), (32, 32), (8, 8))
    numbers = iter(range(1000))

    def level(model: Any, images: torch.Tensor, *rest: Any) -> Any:
        return torch.stack([torch.full_like(each, next(numbers) % len(plan.tiles)) for each in images]), None

    canvas, _ = through(level, monkeypatch, plan, known(picture(0, 32, 333), plan.size), True)
    profile = (canvas[0] - 100) / 50
    assert len(plan.tiles) > 15
    assert np.abs(np.diff(profile, axis=1)).max() <= 2.5 / 16  # of a whole step, over half a tile
    np.testing.assert_allclose(np.diff(profile, axis=0), 0, atol=1e-5)


def test_nothing_of_visible_patches_gets_into_a_prediction():
    plan = tiling.layout((70, 50), (32, 32), (8, 8))
    used = np.random.default_rng(0).random(plan.cells) < 0.5
    inside = tiling._enlarged(used, plan.patch)
    values = np.where(inside, np.float32(7), np.float32(1e6))[None]
    brought, where = tiling.back(values, used, plan.patch, (70, 50))
    np.testing.assert_allclose(brought[0][where], 7, rtol=1e-5)
    assert (brought[0][~where] == 0).all()
    assert 0 < where.mean() < 1


@pytest.mark.parametrize("size", [(33, 97), (64, 20), (5, 4), (1, 1), (90, 90)])
@pytest.mark.parametrize("covered", [False, True])
def test_a_constant_image_comes_back_constant(tmp_path: Path, size: tuple[int, int], covered: bool):
    run = trained(tmp_path / "run", norm=True)
    image = saved(tmp_path / "in.png", np.full((*size, 3), 93, np.uint8))
    (entry,) = filled(run, image, cover=covered or size == (1, 1))["images"]
    assert (loaded(output(entry)) == 93).all()
    assert entry["mse_masked"] < 0.01


# ---- errors measured -----------------------------------------------------------------------------------------


def test_mse_and_psnr_are_in_the_images_unit_over_the_pixels_given():
    values = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    at = np.zeros((4, 4), np.bool_)
    at[:2] = True
    predicted = np.where(at, values + 2.0, -1e9).astype(np.float32)
    rivals = {"patch_mean": values[:, at].astype(np.float32), "nearest_visible": values[:, at] - np.float32(1)}
    found = fidelity(values, predicted, at, 255.0, rivals)
    assert found["mse_masked"] == pytest.approx(4)
    assert found["pixels"] == 8
    assert found["psnr_masked"] == pytest.approx(10 * np.log10(255**2 / 4))
    assert found["psnr_patch_mean"] is None
    assert found["mse_patch_mean"] == 0
    assert "42.11 dB" in compared(found)
    assert "mean -" in compared(found)


def test_means_compare_the_same_images():
    keys = ("masked", "patch_mean", "nearest_visible")
    whole = {f"mse_{key}": 4.0 for key in keys} | {f"psnr_{key}": 20.0 for key in keys}
    perfect = {**whole, "mse_masked": 0.0, "psnr_masked": None, "psnr_patch_mean": 90.0}
    found = mean([whole, perfect])
    assert found["mse_masked"] == 2
    assert found["psnr_masked"] == found["psnr_patch_mean"] == 20
    assert mean([perfect])["psnr_masked"] is None


def test_the_baselines_are_what_they_say():
    plan = tiling.layout((32, 40), (32, 32), (8, 8))
    image = picture(1, 32, 40)
    values = np.moveaxis(image, -1, 0)
    found = tiling.masks(plan.grid, 0.75, False, generator(0, 0))
    removed = plan.spread(found[0].removed)
    at = tiling._enlarged(removed, (8, 8))
    means, alike = np.zeros((2, *values.shape))
    nearest = nearest_visible(Pixels(values), plan, found)
    patches = tiling.places((32, 40), plan.cells)
    normalised = (values - 100.0) / 50.0
    visible = np.argwhere(~removed)
    for row, column in np.argwhere(removed):
        here = slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
        means[here] = values[here].mean(axis=(1, 2), keepdims=True)
        alike[here] = normalised[here].mean() * 50 + 100
        distances = np.square(visible - (row, column)).sum(axis=1)
        candidates = visible[distances == distances.min()]
        copies = [values[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r, c in candidates]
        assert any((nearest[here] == copy).all() for copy in copies)
    np.testing.assert_allclose(patch_means(values, at, patches, plan.cells), means[:, at], rtol=1e-5)
    constants = np.full(3, 100.0), np.full(3, 50.0)
    np.testing.assert_allclose(patch_means(values, at, patches, plan.cells, constants), alike[:, at], rtol=1e-5)


def test_the_peak_of_other_than_bytes_is_the_range_of_the_data_set(tmp_path: Path):
    run = trained(tmp_path / "run", 1, unit="0..65535", dtype="uint16")
    image = saved(tmp_path / "in.png", ramp(40, 60, 1, 4095)[..., 0])
    (entry,) = filled(run, image)["images"]
    assert entry["psnr_peak"] == 120
    assert entry["unit"] == "0..65535"


def test_invalid_pixels_do_not_count(tmp_path: Path):
    """Under alpha 0 anything may stand: neither predictions nor errors change, and it stays in the file."""
    run = trained(tmp_path / "run")
    image = np.concatenate((picture(2, 50, 40), np.full((50, 40, 1), 255, np.uint8)), axis=-1)
    image[:20, :, 3] = 0
    first = saved(tmp_path / "a" / "in.png", image)
    image[:20, :, :3] = 255 - image[:20, :, :3]
    second = saved(tmp_path / "b" / "in.png", image)
    (one,), (two,) = (filled(run, each, out=each.parent.name + "out")["images"] for each in (first, second))
    assert one["mse_masked"] == two["mse_masked"]
    assert one["pixels"] < 40 * 30
    assert (loaded(output(one))[20:] == loaded(output(two))[20:]).all()
    assert (loaded(output(two))[:20] == image[:20]).all()


@pytest.mark.parametrize("extent", [(32, 32), (45, 45), (20, 33)])
def test_what_is_predicted_of_patches_without_a_valid_pixel_does_not_reach_valid_ones(tmp_path: Path, extent: Any):
    """The rest of the image is constant, and comes back so beside them."""
    pixels = np.full((*extent, 4), 255, np.uint8)
    pixels[..., :3] = 77
    pixels[: extent[0] // 2, :, :3], pixels[: extent[0] // 2, :, 3] = 250, 0
    run = trained(tmp_path / "run", norm=True)
    (entry,) = filled(run, saved(tmp_path / "in.png", pixels), cover=True)["images"]
    found = loaded(output(entry))
    assert np.abs(found[extent[0] // 2 :, :, :3].astype(int) - 77).max() <= 1
    assert (found[: extent[0] // 2] == pixels[: extent[0] // 2]).all()


def test_what_is_not_finite_is_invalid_and_stays(tmp_path: Path):
    pixels = ramp(40, 60, 1, 1000).astype(np.float32)
    pixels[:12, :30], pixels[30:, 50:] = np.nan, np.inf
    (tmp_path / "in.tif").write_bytes(encode("tiff", Raster(pixels)))
    (entry,) = filled(trained(tmp_path / "run", 1, unit="value", dtype="float32"), tmp_path / "in.tif")["images"]
    written = loaded(output(entry))
    bad = ~np.isfinite(pixels[..., 0])
    np.testing.assert_array_equal(written[bad], pixels[..., 0][bad])
    assert np.isfinite(written[~bad]).all()
    assert np.isfinite(entry["mse_masked"])


# ---- the command ---------------------------------------------------------------------------------------------


def test_visible_patches_keep_their_own_pixels(run: Path, tmp_path: Path):
    pixels = picture(4, 75, 131)
    image = saved(tmp_path / "in.png", pixels)
    (entry,) = filled(run, image)["images"]
    written = loaded(output(entry))
    plan = tiling.layout((75, 131), (32, 32), (8, 8))
    (mask,) = tiling.masks((4, 4), 0.75, False, generator(0, 0, restoration.RECONSTRUCT))
    removed = plan.spread(mask.removed)[np.ix_(*tiling.places((75, 131), plan.cells))]
    assert (written[~removed] == pixels[~removed]).all()
    assert (written[removed] != pixels[removed]).mean() > 0.9
    assert entry["pixels"] == removed.sum()
    assert entry["tiles"] == len(plan.tiles) > 1


FORMATS = [
    "grey.png",
    "colour.jpg",
    "colour.bmp",
    "colour.webp",
    "colour.tif",
    "alpha.png",
    "palette.png",
    "wide16.png",
]


@pytest.mark.parametrize("name", FORMATS)
def test_the_reconstruction_has_its_sources_format_size_and_depth(tmp_path: Path, name: str):
    image, path = Image.fromarray(picture(0, 45, 70)), tmp_path / name
    if name == "wide16.png":
        path.write_bytes(encode("png", Raster(ramp(45, 70, 3, 65535))))
    else:
        mode = {"grey.png": "L", "alpha.png": "RGBA", "palette.png": "P"}.get(name, "RGB")
        image.convert(mode).save(path)
    deep = {"unit": "0..65535", "dtype": "uint16"} if name == "wide16.png" else {}
    run = trained(tmp_path / "run", **deep)
    (entry,) = filled(run, path)["images"]
    found = output(entry)
    native = Natural()
    (before,), (after,) = (list(native.scan(Files(each))) for each in (path, found))
    assert isinstance(before, Source)
    assert isinstance(after, Source)
    assert found.suffix == path.suffix
    assert after.shape[1:] == before.shape[1:]
    assert after.dtype == before.dtype
    assert [Path(each).name for each in entry["outputs"]] == [
        f"{path.stem}-panels.png",
        f"{path.stem}-reconstruction{path.suffix}",
    ]


def test_the_same_call_gives_the_same_files_and_another_seed_others(run: Path, tmp_path: Path):
    image = saved(tmp_path / "in.png", picture(0))
    files = [
        output(filled(run, image, out=f"out{n}", seed=seed)["images"][0]).read_bytes()
        for n, seed in enumerate((5, 5, 6))
    ]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("norm", [False, True])
def test_the_picture_says_what_was_taken_from_the_original(tmp_path: Path, norm: bool):
    run = trained(tmp_path / "run", norm=norm)
    image = saved(tmp_path / "in.png", picture(0))
    (entry,) = filled(run, image, format="png")["images"]
    with Image.open(entry["outputs"][0]) as picture_:
        about = picture_.text  # type: ignore[attr-defined]
    assert (panels.LEAK in about["Description"]) is norm
    assert json.loads(about["maectl"])["mse_masked"] == entry["mse_masked"]
    assert entry["patch_statistics"] == ("original" if norm else "predicted")
    assert len(entry["outputs"]) == 1


def test_the_command_prints_one_document_and_tells_bad_images_apart(run: Path, photographs: Path, tmp_path: Path):
    (photographs / "set0" / "cut.png").write_bytes((photographs / "set0" / "00.png").read_bytes()[:300])
    (photographs / "set0" / "empty.jpg").write_bytes(b"")
    saved(photographs / "set0" / "deep.png", ramp(20, 20, 1, 4095)[..., 0])
    arguments = ["reconstruct", str(run), str(photographs), "--out", str(tmp_path / "out"), "--json", "--cover"]
    done = CliRunner().invoke(app, [*arguments, "--mask-ratio", "0.5", "--format", "native"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert len(found["images"]) == 24
    assert all(each["masks"] == 2 for each in found["images"])
    assert {Path(each["source"]).name for each in found["rejected"]} == {"cut.png", "empty.jpg", "deep.png"}
    assert found["mean"]["mse_masked"] == pytest.approx(np.mean([each["mse_masked"] for each in found["images"]]))
    assert all(Path(path).is_file() for each in found["images"] for path in each["outputs"])
    assert "(4 not listed)" in done.stderr
    assert "3 images could not be used" in done.stderr


def test_outputs_have_names_of_their_own_and_are_not_taken_for_input(run: Path, tmp_path: Path):
    folder = tmp_path / "in"
    for name in ("a/x.png", "a-x.png", "a/X.bmp", "b/x.jpg"):
        saved(folder / name, picture(0))
    first = filled(run, folder, out="in/out")
    again = filled(run, folder, out="in/out")
    assert first == again
    assert not first["rejected"]
    files = [path for each in first["images"] for path in each["outputs"]]
    assert len({path.casefold() for path in files}) == 8 == len(list((folder / "out").iterdir()))


def test_an_encoder_alone_cannot_reconstruct(run: Path, tmp_path: Path):
    image = saved(tmp_path / "in.png", picture(0))
    with pytest.raises(RunError, match=r"encoder\.safetensors holds an encoder without its decoder.*give the run"):
        reconstruct(
            run / "encoder.safetensors",
            [str(image)],
            tmp_path / "out",
            mask_ratio=None,
            seed=0,
            cover=False,
            format="both",
        )
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_told_before_anything_is_written(run: Path, tmp_path: Path):
    image, text = saved(tmp_path / "in.png", picture(0)), tmp_path / "notes.txt"
    text.write_text("words")
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ([tmp_path / "none"], "none does not exist"),
        ([tmp_path / "empty"], "empty"),
        ([text], "notes"),
    ):
        with pytest.raises(DataError, match=message):
            filled(run, *paths)
    with pytest.raises(UsageError, match=r"mask ratio of 0\.99 keeps 0 of 16"):
        filled(run, image, mask_ratio=0.99)
    with pytest.raises(UsageError, match="is a file"):
        filled(run, image, out="in.png")
    assert not (tmp_path / "out").exists()


def test_a_path_without_images_among_others_is_told(run: Path, tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("words")
    found = filled(run, saved(tmp_path / "in.png", picture(0)), text)
    assert len(found["images"]) == 1
    assert found["rejected"][0]["source"] == str(text)


def test_where_nothing_can_be_used_one_line_says_why(tmp_path: Path):
    run = trained(tmp_path / "run", unit="HU")
    with pytest.raises(DataError, match=r"none of 1 images.*in\.png: its unit is '0\.\.255', the model's 'HU'"):
        filled(run, saved(tmp_path / "in.png", picture(0)))


def test_a_normaliser_of_each_image_and_a_clip_are_undone(tmp_path: Path):
    limits = (0.0,) * 3, (200.0,) * 3
    normalizer = Normalizer((0.0,) * 3, (1.0,) * 3, limits, image=True)
    run = trained(tmp_path / "run", norm=True, normalizer=normalizer)
    (entry,) = filled(run, saved(tmp_path / "in.png", np.full((40, 64, 3), 120, np.uint8)))["images"]
    assert (loaded(output(entry)) == 120).all()
