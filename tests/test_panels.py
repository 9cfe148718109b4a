"""Pictures: values become the right colours, what is not there is hatched, and everything stays readable."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maectl import panels
from maectl.checkpoint import Config
from maectl.confusion import BLUE, confusion
from maectl.dataset import Batch
from maectl.recipe import Display
from maectl.stats import Normalizer

MODEL = {
    "image_size": (32, 32), "patch_size": (8, 8), "width": 32, "depth": 1, "heads": 2,
    "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip


def made(channels: int = 3, dtype: str = "uint8", norm: bool = False, **more: Any) -> Config:
    statistics = {
        name: [low] * channels for name, low in (("p0_1", 0.0), ("p0_5", 10.0), ("p99_5", 110.0), ("p99_9", 120.0))
    }
    return Config(
        model={"channels": channels, "norm_pix_loss": norm, **MODEL},
        mask_ratio=0.75,
        adapter="natural",
        options={"channels": channels},
        channels=("red", "green", "blue")[:channels] if channels <= 3 else tuple(map(str, range(channels))),
        dtype=dtype,
        unit="0..255",
        normalizer=Normalizer((100.0,) * channels, (50.0,) * channels, None),
        statistics=statistics,
        **more,
    )


def batch(count: int, channels: int = 3, valid: torch.Tensor | None = None) -> Batch:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 32, 32), dtype=torch.uint8)
    constants = torch.full((1, channels), 100.0), torch.full((1, channels), 50.0)
    return Batch(images, valid, torch.rand(count, 16), *constants, np.arange(count))


def test_bytes_are_shown_as_they_are():
    values = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    assert (panels.colours(values, made()) == np.moveaxis(values, 0, -1)).all()


def test_other_values_are_shown_between_the_percentiles_of_the_data_set():
    values = np.array([[[-5.0, 10, 60, 110, 4000, np.nan]]], np.float32)
    shown = panels.colours(values, made(1, "float32"))
    assert shown[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0]
    assert (shown == shown[..., :1]).all()  # one channel is grey


def test_the_recipe_decides_on_channels_and_range():
    values = np.zeros((5, 1, 1), np.uint16) + np.arange(5, dtype=np.uint16)[:, None, None] * 100
    config = made(5, "uint16", display=Display(channels=(4, 2, 0), range=(0, 400)))
    assert panels.colours(values, config)[0, 0].tolist() == [255, 128, 0]


def test_hidden_is_hatched_and_invalid_is_flat():
    hidden, invalid = np.zeros((2, 8, 8), np.bool_)
    hidden[:, :4], invalid[:, 6:] = True, True
    shown = np.array(panels.panel(np.full((3, 8, 8), 200, np.uint8), made(), hidden, invalid))
    colours = [{tuple(each) for each in part.reshape(-1, 3)} for part in np.split(shown, [128, 192], axis=1)]
    assert shown.shape == (256, 256, 3)
    assert [len(each) for each in colours] == [2, 1, 1]
    assert (200, 200, 200) in colours[1]
    assert (200, 200, 200) not in colours[0]


def test_the_error_map_goes_from_black_to_its_stated_end():
    shown = np.array(panels.error_panel(np.array([[0.0, 5.0, 10.0, 99.0]]), 10.0))
    low, middle, high, over = shown[0, 32::64].astype(int).sum(axis=-1)
    assert low == 0 < middle < high == over


def test_large_panels_shrink_small_ones_grow_and_narrow_ones_keep_their_title():
    assert panels.panel(np.zeros((3, 1000, 500), np.uint8), made()).size == (256, 512)
    assert panels.panel(np.zeros((3, 28, 28), np.uint8), made()).size == (252, 252)
    narrow = [panels.panel(np.zeros((3, 1000, 2), np.uint8), made())] * 2
    sheet = panels.sheet(("a long first title", "a long second title\nwith a second line"), [narrow], ["a note"], 7.5)
    assert sheet.shape[1] > 250
    assert sheet.shape[0] > 512


def test_of_a_volume_the_middle_slice_is_shown():
    values = np.zeros((1, 3, 4, 4), np.uint8)
    values[:, 1] = 77
    assert np.array(panels.panel(values, made(1)))[0, 0].tolist() == [77] * 3


@pytest.mark.parametrize("norm", [False, True])
def test_training_samples_show_six_images_in_four_panels(norm: bool):
    config = made(norm=norm)
    torch.manual_seed(1)
    model = config.build_model()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    given = batch(9)
    shown = panels.training_samples(model, given, config.normalizer, config, 0.75, torch.device("cpu"))
    again = panels.training_samples(model, given, config.normalizer, config, 0.75, torch.device("cpu"))
    assert shown.dtype == np.uint8
    assert shown.shape[0] > 6 * 256
    assert shown.shape[1] > 4 * 256
    assert (shown == again).all()
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_samples_of_few_and_partly_invalid_images():
    config = made(1)
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[:, :10] = False
    shown = panels.training_samples(
        config.build_model(), batch(2, 1, valid), config.normalizer, config, 0.5, torch.device("cpu")
    )
    assert (shown == panels.INVALID).all(axis=-1).sum() == 2 * 4 * 80 * 256


@pytest.mark.parametrize("count", [2, 10, 50, 300])
def test_a_confusion_matrix_is_shaded_by_row(tmp_path: Path, count: int):
    matrix = np.eye(count, dtype=int) * 90
    matrix[0, 1], matrix[1] = 90, 0  # half of the first class is taken for the second; no image of the second
    confusion(matrix, [f"a class called {number} 雲" * 3 for number in range(count)], tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        pixels = np.array(image)
    assert max(pixels.shape) < 2000
    colours = {tuple(each) for each in pixels.reshape(-1, 3)}
    assert tuple(BLUE.astype(int)) in colours or count == 2
    assert tuple(np.rint(255 + 0.5 * (BLUE - 255)).astype(int)) in colours


def test_counts_are_left_out_where_they_do_not_fit(tmp_path: Path):
    for name, count in (("few", 5), ("huge", 500_000_000)):
        confusion(np.full((40, 40), count), ["x"] * 40, tmp_path / name)
    few, huge = (np.array(Image.open(tmp_path / name)) for name in ("few", "huge"))
    assert (few[200:, 200:] == panels.INK).all(axis=-1).sum() > 1000
    assert (huge[200:, 200:] == panels.INK).all(axis=-1).sum() == 0


def test_images_normalised_by_themselves_are_shown_between_their_own_percentiles():
    """One scale for a data set of scans in arbitrary units would show most of them black."""
    config = made(1, "float32").model_copy(update={"normalizer": Normalizer((0.0,), (1.0,), None, True)})
    dim = np.linspace(0, 3, 400).reshape(1, 20, 20)
    for values in (dim, 1000 * dim):
        picture = panels.colours(values, config)
        assert picture.min() == 0
        assert picture.max() == 255
    low, high = panels.levels(dim, config, dim[0] > 1)
    assert low[0] > 1
    assert high[0] < 3


def test_many_channels_are_shown_by_the_ones_called_red_green_blue():
    names = ("B1", "B2", "B3", "B4", "B8")
    values = np.arange(5, dtype=np.uint8).reshape(5, 1, 1) * np.ones((5, 2, 3), np.uint8)
    shown = panels.colours(values, made(5).model_copy(update={"channels": names}))
    assert shown[0, 0].tolist() == [3, 2, 1]
    assert panels.colours(values, made(5))[0, 0].tolist() == [0, 1, 2]
    chosen = made(5, display=Display(channels=(4, 3, 2)))
    assert panels.colours(values, chosen.model_copy(update={"channels": names}))[0, 0].tolist() == [4, 3, 2]
