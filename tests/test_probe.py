"""The probe end to end: honest baselines, leaks told, labels of every kind; on a run of a few steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, picture
from PIL import Image

from maectl import checkpoint
from maectl.adapter import Pixels
from maectl.errors import DataError, RunError, UsageError
from maectl.features import Members, Whole, central, extract, features
from maectl.index import Index
from maectl.pretrain import Request, pretrain
from maectl.probe import probe, report
from maectl.registry import load
from maectl.resize import resize
from maectl.store import Reader

METRICS = {"accuracy", "balanced_accuracy", "auroc", "f1_macro", "ci95"}


def write(folder: Path, kind: str, seeds: range) -> None:
    """Pictures of one class: dark ones, or bright ones, so that any sound feature tells them apart."""
    folder.mkdir(parents=True)
    for seed in seeds:
        image = picture(seed) // 3 + (150 if kind == "bright" else 0)
        Image.fromarray(image).save(folder / f"{seed}.png")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    for part, start, count in (("train", 0, 20), ("test", 100, 12)):
        write(root / part / "bright", "bright", range(start, start + count))
        write(root / part / "dark", "dark", range(start + 50, start + 50 + count))
    return root


@pytest.fixture(scope="module")
def run(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    pretrain(
        Request(
            [str(labelled / "train")], out, recipe="small-images", overrides=SMALL, steps=4, batch_size=8, workers=2
        )
    )
    return out


def probed(run: Path, folder: Path, **changes) -> dict:
    given = {"labels": None, "method": "linear", "pool": None, "seed": 0, "workers": 2, "out": None}
    return probe(run, str(folder), **{**given, **changes})


@pytest.fixture(scope="module")
def result(run: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("results") / "probe.json"
    found = probed(run, labelled, out=out)
    assert json.loads(out.read_text()) == found
    with Image.open(out.with_suffix(".png")) as matrix:
        assert matrix.size[0] > 50
    return found


def test_the_result_has_every_promised_key_and_so_have_the_baselines(result: dict):
    promised = {"method", "pool", "classes", "n_train", "n_test", "baselines", "verdict"} | METRICS
    assert promised <= set(result)
    assert {"random_init", "image_stats", "majority", "thumbnails"} <= set(result["baselines"])
    for baseline in result["baselines"].values():
        assert set(baseline) >= METRICS
    assert result["classes"] == ["bright", "dark"]
    assert (result["n_train"], result["n_test"]) == (40, 24)
    assert result["baselines"]["random_init"]["seeds"] == 3


def test_what_is_plain_to_see_is_found_by_all_and_the_verdict_claims_no_more(result: dict):
    assert result["accuracy"] == 1
    assert result["baselines"]["image_stats"]["accuracy"] == 1
    assert result["baselines"]["majority"]["accuracy"] == 0.5
    assert "does not beat its random twin" in result["verdict"]
    assert "beats the commonest class" in result["verdict"]


def test_the_report_shows_the_encoder_beside_its_baselines(result: dict):
    said = report(result)
    for words in ("encoder", "random_init", "image_stats", "thumbnails", "majority", "bright", "dark", "verdict"):
        assert words in said


def test_images_seen_in_pretraining_are_counted(run: Path, labelled: Path, result: dict):
    assert result["test_images_seen_in_pretraining"] == 0
    again = probed(run, labelled / "train")  # a seeded split of what it was pretrained on
    assert again["test_images_seen_in_pretraining"] == again["n_test"]
    assert any("pretrained on" in note for note in again["notes"])


def test_copies_between_train_and_test_are_counted(run: Path, labelled: Path, tmp_path: Path):
    for kind in ("bright", "dark"):
        write(tmp_path / "train" / kind, kind, range(6))
        write(tmp_path / "test" / kind, kind, range(5, 9))
    assert "2 test images are exact copies of training images" in probed(run, tmp_path)["notes"]


def test_labels_may_come_from_a_table_with_groups(run: Path, labelled: Path, tmp_path: Path):
    table = tmp_path / "labels.csv"
    rows = ["path,label,group"]
    for path in sorted((labelled / "train").rglob("*.png")):
        rows.append(f"{path.relative_to(labelled)},{path.parent.name},patient{int(path.stem) % 7}")
    table.write_text("\n".join(rows))
    found = probed(run, labelled, labels=table)
    assert found["n_train"] + found["n_test"] == 40
    assert found["ci95"] is None  # seven patients at most
    assert "test groups" in found["ci95_reason"]


def test_knn_and_a_given_pool(run: Path, labelled: Path):
    found = probed(run, labelled, method="knn", pool="cls")
    assert (found["method"], found["pool"]) == ("knn", "cls")
    assert found["accuracy"] > 0.9


def test_an_exported_encoder_probes_like_the_run_it_came_from(run: Path, labelled: Path, result: dict):
    found = probed(run / "encoder.safetensors", labelled)
    assert found["accuracy"] == result["accuracy"]
    assert found["test_images_seen_in_pretraining"] == 0


def test_one_class_or_one_image_is_refused_in_one_line(run: Path, labelled: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="a probe needs two"):
        probed(run, labelled / "train" / "dark")
    write(tmp_path / "few" / "bright", "bright", range(5))
    write(tmp_path / "few" / "dark", "dark", range(1))
    with pytest.raises(UsageError, match="'dark' has one image"):
        probed(run, tmp_path / "few")


def test_a_table_that_names_missing_files_is_refused(run: Path, labelled: Path, tmp_path: Path):
    table = tmp_path / "labels.csv"
    table.write_text("path,label\ntrain/dark/none.png,dark\ntrain/bright/0.png,bright\n")
    with pytest.raises(UsageError, match=r"1 of 2 rows name no image.*none\.png"):
        probed(run, labelled, labels=table)


def test_images_in_another_unit_are_refused(run: Path, tmp_path: Path):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            deep = np.full((40, 40), 1000 * number, np.uint16)
            Image.fromarray(deep).save(tmp_path / kind / f"{number}.png")
    with pytest.raises(DataError, match=r"0\.\.255.*0\.\.65535"):
        probed(run, tmp_path)


def test_a_run_that_is_none_is_refused(labelled: Path, tmp_path: Path):
    with pytest.raises(RunError, match="does not exist"):
        probed(tmp_path / "nowhere", labelled)
    with pytest.raises(RunError, match="holds no checkpoint"):
        probed(labelled, labelled)


def test_unreadable_images_are_left_out_and_told(run: Path, labelled: Path, tmp_path: Path):
    for kind in ("bright", "dark"):
        write(tmp_path / kind, kind, range(8))
    whole = (tmp_path / "dark" / "3.png").read_bytes()
    (tmp_path / "dark" / "3.png").write_bytes(whole[: len(whole) // 2])
    found = probed(run, tmp_path)
    assert found["n_train"] + found["n_test"] == 15
    assert any("unreadable: 1 images" in note for note in found["notes"])


def test_patches_count_in_the_mean_feature_by_their_valid_share(run: Path):
    found = checkpoint.load(run)
    model, images = found.model(), np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    valid = np.ones((2, 32, 32), bool)
    valid[0, :16] = False  # the upper half: patches 0 to 7 of 16
    valid[1] = False
    mean, std = (
        np.array([each] * 2, np.float32) for each in (found.config.normalizer.mean, found.config.normalizer.std)
    )
    got = features(model, found.config, Whole(images, valid, mean, std), torch.device("cpu"))["mean"]
    seen = (images - mean[..., None, None]) / std[..., None, None] * valid[:, None]
    with torch.no_grad():
        tokens = model.encode(torch.from_numpy(seen.astype(np.float32)))[:, 1:].numpy()
    np.testing.assert_allclose(got[0], tokens[0, 8:].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(got[1], tokens[1].mean(axis=0), atol=1e-5)  # nothing valid: all alike


def test_features_see_the_centre_of_the_whole_image():
    assert central((40, 60), (32, 32)) == (slice(0, 40), slice(10, 50))
    assert central((60, 40), (32, 64)) == (slice(20, 40), slice(0, 40))
    assert central((1, 1), (32, 32)) == (slice(0, 1), slice(0, 1))


def test_features_statistics_and_thumbnails_of_one_image_are_what_they_say(run: Path):
    found = checkpoint.load(run)
    index = Index(run / "index.arrow")
    reader = Reader(index, load("natural")(channels=3))
    rows = np.arange(3)
    model = found.model()
    members = Members(rows, np.full(3, -1), np.arange(3))
    frozen = extract(reader, found.config, members, {"it": model}, torch.device("cpu"), 1, lambda done, total: None)
    assert not frozen.unread
    assert frozen.items.tolist() == [0, 1, 2]
    mean = np.array(found.config.normalizer.mean)
    seen = []
    for row in range(3):
        whole = reader.read(row).values
        seen.append(resize(Pixels(whole[(slice(None), *central(whole.shape[1:], (32, 32)))]), (32, 32), mean).values)
    image = seen[1].reshape(3, -1).astype(float)
    expected = np.concatenate((image.mean(axis=1), image.std(axis=1), image.min(axis=1), image.max(axis=1)))
    np.testing.assert_allclose(frozen.values["image_stats"]["stats"][1], expected, rtol=1e-5)
    assert frozen.values["thumbnails"]["thumbnails"].shape == (3, 3 * 16 * 16)
    shift, scale = (
        torch.tensor(each, dtype=torch.float32)[:, None, None] for each in (mean, found.config.normalizer.std)
    )
    with torch.no_grad():
        tokens = model.encode((torch.from_numpy(np.stack(seen)).float() - shift) / scale)
    np.testing.assert_allclose(frozen.values["it"]["cls"], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(frozen.values["it"]["mean"], tokens[:, 1:].mean(dim=1), atol=1e-5)
