"""GeoTIFFs through every verb: nodata never teaches, and what comes out lies where the source does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from conftest import DATA
from rasterio.enums import Resampling
from rasterio.transform import Affine
from test_embed import DEFAULT
from test_reconstruct import filled

from maectl import checkpoint
from maectl.adapter import Files, Source
from maectl.checkpoint import Config
from maectl.dataset import Loader, Views, normalise
from maectl.embed import embed
from maectl.mae import MaskedAutoencoder
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.stats import Normalizer, gather
from maectl.store import Reader, build
from maectl.windows import Crop

MODEL = {
    "image_size": (32, 32), "patch_size": (8, 8), "width": 32, "depth": 1, "heads": 2,
    "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip
Array = npt.NDArray[Any]


def scene(seed: int = 0, bands: int = 4, height: int = 96, width: int = 80) -> Array:
    """Smooth uint16 reflectances [bands, H, W], each band on a scale of its own."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width]
    waves = [np.sin(rng.uniform(0.05, 0.2) * row + rng.uniform(0.05, 0.2) * column) for _ in range(bands)]
    return np.stack([300 * (band + 1) * (2 + wave) for band, wave in enumerate(waves)]).astype(np.uint16)


def put(path: Path, values: Array, *, names: bool = True, **profile: Any) -> Path:
    """A GeoTIFF at 10 m in UTM 32 N."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": "EPSG:32632", "transform": Affine(10, 0, 500_000, 0, -10, 5_400_000)}
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype.name}
    about = {"driver": "GTiff", **place, **shape, **profile}
    with rasterio.open(path, "w", **about) as file:
        file.write(values)
        if names:
            file.descriptions = tuple(f"B{number}" for number in range(2, 2 + len(values)))
    return path


def opened(folder: Path, **keys: Any) -> Reader:
    found = scan([folder], load("satellite"), DataRecipe.model_validate(keys), folder.parent / f"{folder.name}.arrow")
    return Reader(found.index, found.adapter)


def trained(folder: Path, reader: Reader, crop: str = "32px", **changes: Any) -> Path:
    """A run folder with random weights for the sources of a reader."""
    statistics = gather([reader.read(row) for row in range(len(reader.index))])
    source = reader.index[0]
    config = Config(
        model={"channels": len(source.channels), "norm_pix_loss": True, **MODEL}, mask_ratio=0.75, adapter="satellite",
        options=reader.adapter.model_dump(mode="json"), channels=source.channels, dtype=source.dtype, unit=source.unit,
        normalizer=Normalizer.of("dataset", None, statistics), statistics=statistics.json(), crop=crop, length="m",
        spacing=source.spacing, **changes,
    )  # fmt: skip
    folder.mkdir()
    torch.manual_seed(0)
    checkpoint.save(folder, 1, config.build_model(), config)
    return folder


FILLS = [
    pytest.param(np.uint16, 0, 0, id="0"),
    pytest.param(np.int16, -9999, -9999, id="-9999"),
    pytest.param(np.float32, np.nan, np.nan, id="NaN"),
    pytest.param(np.float32, np.nan, None, id="NaN untagged"),
    pytest.param(np.float32, 1e30, 1e30, id="1e30"),
    pytest.param(np.float64, -1.7976931348623157e308, -1.7976931348623157e308, id="least double"),
]


def loss_of(folder: Path, store: bool) -> tuple[Any, float, list[torch.Tensor]]:
    """Statistics, the loss of one batch, and every gradient, of a fresh model on a folder of scenes."""
    reader = opened(folder)
    if store:
        reader = Reader(reader.index, reader.adapter, build(reader.index, reader.adapter, folder.parent / "store")[0])
    statistics = gather([reader.read(row) for row in range(len(reader.index))])
    normalizer = Normalizer.of("dataset", None, statistics)
    views = Views(reader, Crop((32, 32), (0.6, 1.0), flips=(0, 1), rotate=True), "40px", normalizer, 0.2, 16, 5)
    loader = Loader(views, 1)
    batch = loader.batch(np.resize(np.arange(len(reader.index)), 16), 0, 0)
    loader.close()
    assert batch.valid is not None
    torch.manual_seed(1)
    model = MaskedAutoencoder(channels=4, norm_pix_loss=False, **MODEL)
    images, valid = normalise(batch, normalizer, torch.device("cpu"))
    loss = model(images, batch.noise, 0.75, valid).loss
    loss.backward()
    return (
        statistics,
        float(loss.detach()),
        [parameter.grad for parameter in model.parameters() if parameter.grad is not None],
    )


@pytest.mark.parametrize("store", [False, True])
def test_what_stands_under_nodata_changes_neither_statistics_loss_nor_gradients_to_the_bit(tmp_path, store):
    """0, -9999, NaN tagged and not, 1e30, the least double: all the same as each other."""
    found = []
    for number, (dtype, fill, tag) in enumerate(param.values for param in FILLS):
        for seed in range(3):
            values = scene(seed).astype(dtype)
            hole = np.zeros(values.shape[1:], bool)
            hole[: 20 + 20 * seed, 30:] = True
            hole[70:72, 10:20] = True
            values[:, hole] = fill
            put(tmp_path / str(number) / "scenes" / f"{seed}.tif", values, nodata=tag)
        found.append(loss_of(tmp_path / str(number) / "scenes", store))
    (first, loss, gradients), *others = found
    assert first.invalid_fraction > 0.1
    for statistics, other, slopes in others:
        assert statistics == first
        assert other == loss
        assert all(torch.equal(one, two) for one, two in zip(gradients, slopes, strict=True))


def test_one_band_s_nodata_makes_the_pixel_invalid_and_masks_and_alpha_do_as_tags_do(tmp_path):
    values = scene()
    hole = np.zeros(values.shape[1:], bool)
    hole[10:30, 10:40] = True
    one = values.copy()
    one[2, hole] = 0
    put(tmp_path / "a" / "tag.tif", one, nodata=0)
    for name, internal in (("internal", "YES"), ("sidecar", "NO")):
        put(tmp_path / "a" / f"{name}.tif", values)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
            rasterio.open(tmp_path / "a" / f"{name}.tif", "r+") as file,
        ):
            file.write_mask(~hole)
    with_alpha = np.concatenate((values, np.where(hole, 0, 65535).astype(np.uint16)[None]))
    put(tmp_path / "a" / "zalpha.tif", with_alpha, names=False)
    with rasterio.open(tmp_path / "a" / "zalpha.tif", "r+") as file:
        file.colorinterp = (*file.colorinterp[:4], rasterio.enums.ColorInterp.alpha)
        file.descriptions = ("B2", "B3", "B4", "B5", "")
    reader = opened(tmp_path / "a")
    assert len(reader.index) == 4
    for row in range(4):
        pixels = reader.read(row)
        assert pixels.values.shape == (4, 96, 80), reader.index[row].paths
        np.testing.assert_array_equal(pixels.valid, ~hole, err_msg=reader.index[row].paths[0])


def test_the_loss_of_a_half_empty_batch_is_the_mean_over_valid_removed_pixels(tmp_path):
    """Computed by hand: of each removed patch the mean over its valid values, over the patches that count."""
    values = scene(1, height=32, width=32).astype(np.float32)
    values[:, :, 19:] = np.nan
    put(tmp_path / "in" / "a.tif", values)
    put(tmp_path / "in" / "b.tif", scene(2, height=32, width=32).astype(np.float32))
    reader = opened(tmp_path / "in")
    normalizer = Normalizer.of("dataset", None, gather([reader.read(row) for row in range(2)]))
    views = Views(reader, Crop((32, 32), (1, 1), (1, 1)), "image", normalizer, 0.0, 16, 0)
    loader = Loader(views, 1)
    batch = loader.batch(np.arange(2), 0, 0)
    loader.close()
    torch.manual_seed(0)
    model = MaskedAutoencoder(channels=4, norm_pix_loss=False, **MODEL).eval()
    images, valid = normalise(batch, normalizer, torch.device("cpu"))
    output = model(images, batch.noise, 0.75, valid)
    ours = ((values - np.array(normalizer.mean)[:, None, None]) / np.array(normalizer.std)[:, None, None], None)
    total, counted = 0.0, 0
    for item in range(2):
        whole = images[item].numpy() if item else ours[0]
        for place, prediction in zip(output.removed[item], output.prediction[item].detach().numpy(), strict=True):
            row, column = divmod(int(place), 4)
            target = whole[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].transpose(1, 2, 0).ravel()
            known = np.isfinite(target)
            if known.sum() >= 2:
                total += float(np.square(prediction - target)[known].mean())
                counted += 1
    assert counted < 24
    assert float(output.loss.detach()) == pytest.approx(total / counted, rel=1e-5)


def test_mixed_resolutions_agree_in_metres(tmp_path):
    put(tmp_path / "in" / "ten.tif", scene())
    put(
        tmp_path / "in" / "five.tif", scene(1, height=192, width=160), transform=Affine(5, 0, 600_000, 0, -5, 5_400_000)
    )
    reader = opened(tmp_path / "in")
    normalizer = Normalizer.of("dataset", None, gather([reader.read(row) for row in range(2)]))
    views = Views(reader, Crop((32, 32), (1, 1), (1, 1)), "320m", normalizer, 0.5, 16, 0)
    spans = {
        reader.index[row].paths[0]: views._read(row, views._draw(np.random.default_rng(0), 1), 0, 0).span
        for row in range(2)
    }
    assert spans == {"ten.tif": (32, 32), "five.tif": (64, 64)}


def same_place(source: Path, written: Path, step: tuple[float, float] = (1, 1)) -> None:
    """CRS and transform (times the step) of two rasters."""
    with rasterio.open(source) as one, rasterio.open(written) as other:
        assert one.crs == other.crs
        a, b, c, d, e, f = one.transform[:6]
        scaled = (a * step[1], b * step[0], c, d * step[1], e * step[0], f)
        assert np.allclose(scaled, other.transform[:6], rtol=1e-12)


@pytest.mark.parametrize("covered", [False, True])
def test_a_scene_is_reconstructed_as_the_same_kind_of_file_and_nodata_stays(tmp_path, covered):
    values = scene(height=150, width=133)
    values[:, :, :20] = 0
    path = put(tmp_path / "in" / "a.tif", values, nodata=0)
    run = trained(tmp_path / "run", opened(tmp_path / "in"))
    (entry,) = filled(run, path, cover=covered)["images"]
    written = Path(entry["outputs"][1])
    same_place(path, written)
    with rasterio.open(path) as one, rasterio.open(written) as other:
        assert other.profile["tiled"]
        for name in ("dtypes", "nodatavals", "descriptions", "count", "shape"):
            assert getattr(one, name) == getattr(other, name)
        found = other.read()
    assert (found[:, :, :20] == 0).all()
    assert (found[:, :, 20:] != 0).all()
    changed = (found != values).any(axis=0)[:, 20:].mean()
    assert changed > (0.95 if covered else 0.6)


def test_an_embedding_map_lies_over_its_scene_one_pixel_a_patch(tmp_path):
    values = scene(height=150, width=133)
    values[:, :, :20] = 0
    path = put(tmp_path / "in" / "a.tif", values, nodata=0)
    run = trained(tmp_path / "run", opened(tmp_path / "in"), crop="40px")
    told = embed(run, [str(path)], tmp_path / "out", **DEFAULT)
    assert told["kind"] == "maps"
    assert told["maps"][0]["step"] == [10, 10]
    assert told["maps"][0]["patch"] == [100, 100]
    same_place(path, Path(told["outputs"][0]), (10, 10))
    with rasterio.open(told["outputs"][0]) as file:
        assert (file.count, file.shape) == (32, (15, 14))
        assert np.isnan(file.nodata)
        assert file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "16"
        found = file.read()
    empty = np.isnan(found).all(axis=0)
    assert empty[:, :2].all()
    assert empty[:, -1].all()  # three tenths of it lie in the image
    assert not empty[:, 2:-1].any()
    assert json.loads((tmp_path / "out" / "embedding.json").read_text())["dtype"] == "float16"
    assert Path(told["outputs"][1]).stat().st_size > 100
    small = embed(run, [str(path)], tmp_path / "small", **DEFAULT | {"dtype": "int8", "pca": 5})
    with rasterio.open(small["outputs"][0]) as file:
        assert (file.count, file.dtypes[0], file.nodata) == (5, "int8", -128)
        assert file.descriptions[0] == "principal axis 1"
        back = file.read() * np.array(file.scales)[:, None, None] + np.array(file.offsets)[:, None, None]
        step = np.array(file.scales)[:, None]
        inside = file.read(1) != -128
    assert (inside == ~empty).all()
    from safetensors.numpy import load_file

    axes = load_file(tmp_path / "small" / "pca.safetensors")
    exact = embed(run, [str(path)], tmp_path / "exact", **DEFAULT | {"dtype": "float32"})
    with rasterio.open(exact["outputs"][0]) as file:
        features = file.read()[:, ~empty]
    np.testing.assert_allclose(features, found[:, ~empty], rtol=1e-3, atol=1e-3)
    projected = axes["axes"] @ (features - axes["mean"][:, None])
    assert (np.abs(back[:, ~empty] - projected) <= 0.51 * step).all()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_images_seen_whole_give_maps_that_fit_their_frame(tmp_path, dtype):
    path = put(tmp_path / "in" / "a.tif", scene(height=50, width=70))
    run = trained(tmp_path / "run", opened(tmp_path / "in"), crop="image")
    told = embed(run, [str(path)], tmp_path / "out", **DEFAULT | {"dtype": dtype})
    rows, columns = told["maps"][0]["size"]
    assert (rows, columns) == (4, 6)
    same_place(path, Path(told["outputs"][0]), (50 / rows, 70 / columns))


def test_every_real_scene_comes_back_as_it_was(real_data, tmp_path):
    """A model that removes nothing it uses cannot exist, so tiles of the source itself are written."""
    adapter = load("satellite")()
    scenes = [each for each in adapter.scan(Files(real_data / "satellite" / "scenes")) if isinstance(each, Source)]
    assert len(scenes) >= 9
    for source in scenes:
        pixels = adapter.read(source)
        rows = [slice(at, min(at + 512, source.shape[1])) for at in range(0, source.shape[1], 512)]
        tiles = (((band, slice(0, source.shape[2])), pixels.values[:, band]) for band in rows)
        written = adapter.write(source, tiles, tmp_path / Path(source.paths[0]).stem)
        same_place(Path(source.files[0]), written)
        with rasterio.open(source.files[0]) as one, rasterio.open(written) as other:
            for name in ("dtypes", "descriptions", "colorinterp", "scales", "offsets", "units"):
                assert getattr(one, name) == getattr(other, name), (source.paths, name)
            assert str(one.nodatavals) == str(other.nodatavals)
            np.testing.assert_array_equal(one.read(), other.read())
            np.testing.assert_array_equal(one.read_masks(), other.read_masks())


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data with real images is not on this machine")
@pytest.mark.parametrize("name", ["Spain_7370579_S2Hand.tif", "LE70220491999322EDC01_stack.gtif", "RGB.byte.tif"])
def test_real_scenes_are_reconstructed_and_embedded_in_place(tmp_path, name):
    path = DATA / "satellite" / "scenes" / name
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(path.read_bytes())
    run = trained(tmp_path / "run", opened(tmp_path / "in"), crop="64px")
    (entry,) = filled(run, path, cover=True)["images"]
    same_place(path, Path(entry["outputs"][1]))
    with rasterio.open(path) as one, rasterio.open(entry["outputs"][1]) as other:
        for each in ("dtypes", "descriptions", "count", "shape"):
            assert getattr(one, each) == getattr(other, each)
        assert str(one.nodatavals) == str(other.nodatavals)
        np.testing.assert_array_equal(one.read_masks(), other.read_masks())
    told = embed(run, [str(path)], tmp_path / "maps", **DEFAULT)
    same_place(path, Path(told["outputs"][0]), (16, 16))


def test_overviews_are_only_read_where_no_pixel_can_be_invalid(tmp_path):
    """What an overview says of a masked raster depends on how it was made."""
    values = scene(height=512, width=512)
    values[:, 100:110, 100:110] = 0
    path = put(tmp_path / "in" / "a.tif", values, nodata=0, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.nearest)
    reader = opened(tmp_path / "in")
    found = reader.adapter.read(reader.index[0], None, (128, 128))
    assert found.values.shape[1:] == (128, 128)
    bad = np.zeros((512, 512), bool)
    bad[100:110, 100:110] = True
    np.testing.assert_array_equal(~found.valid, bad.reshape(128, 4, 128, 4).any(axis=(1, 3)))


def test_chips_smaller_than_a_recipes_window_are_seen_whole_where_the_recipe_was_not_named(tmp_path):
    from maectl.prepare import scan_with_recipe

    for number in range(4):
        put(tmp_path / "chips" / f"{number}.tif", scene(number, height=64, width=64))
        put(tmp_path / "scenes" / f"{number}.tif", scene(number, height=200, width=150))
    (tmp_path / "work").mkdir()
    chips, _ = scan_with_recipe([tmp_path / "chips"], None, None, [], tmp_path / "work")
    assert (chips.data.crop, chips.model.image_size, chips.model.patch_size) == ("image", (64, 64), (8, 8))
    assert chips.data.rotate
    named, _ = scan_with_recipe([tmp_path / "chips"], "rasters", None, [], tmp_path / "work")
    assert named.data.crop == "96px"
    scenes, _ = scan_with_recipe([tmp_path / "scenes"], None, None, [], tmp_path / "work")
    assert (scenes.data.crop, scenes.data.adapter) == ("96px", "satellite")


def test_bands_of_one_order_and_meaning_a_run_and_files_that_lack_one_are_told(tmp_path):
    put(tmp_path / "in" / "a.tif", scene(0))
    put(tmp_path / "in" / "b.tif", scene(1))
    put(tmp_path / "in" / "c.tif", scene(2, bands=3))
    found = scan([tmp_path / "in"], load("satellite"), DataRecipe(), tmp_path / "index.arrow")
    assert [source.channels for source, _ in found.index.kinds] == [("B2", "B3", "B4", "B5")]
    assert found.rejects.rows[0][3] == "has bands B2, B3, B4; this run wants band B5"
    some = DataRecipe(channels=("B4", "B2"))
    found = scan([tmp_path / "in"], load("satellite"), some, tmp_path / "some.arrow")
    assert len(found.index) == 3
    pixels = Reader(found.index, found.adapter).read(2)
    np.testing.assert_array_equal(pixels.values, scene(2, bands=3)[[2, 0]])
