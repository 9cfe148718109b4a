"""``maectl store``: what it makes a run finds; what it tells is there; what it clears away is ours."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import SMALL
from PIL import Image

from maectl import run as runs
from maectl import store_commands
from maectl.errors import DataError
from maectl.pretrain import Request, pretrain
from maectl.registry import load
from maectl.store import building_lock
from maectl.store_commands import build_store, clean, info, report

RECIPE = ["--recipe", "small-images", *(each for key in SMALL for each in ("--set", key))]
COMPACT = ["data.store_form=compact", "data.store_max_side=24"]


def built(folder: Path, out: Path, *overrides: str, **given):
    return build_store([str(folder)], out, recipe="small-images", overrides=[*SMALL, *overrides], workers=2, **given)


def request(folder: Path, out: Path, *overrides: str, **changes) -> Request:
    given = {"recipe": "small-images", "overrides": [*SMALL, *overrides], "steps": 6, "batch_size": 8, "workers": 2}
    return Request(folders=[str(folder)], out=out, **{**given, **changes})


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in runs.lines(out) if "loss" in line]


def weights(run: Path) -> bytes:
    return max((run / "checkpoints").glob("step-*/model.safetensors")).read_bytes()


def forbid(monkeypatch) -> None:
    monkeypatch.setattr(load("natural"), "read", lambda *_: pytest.fail("decoded again"))


def test_a_run_finds_what_the_command_line_has_built_before(maectl, photographs, tmp_path):
    """All through the real command line; the files' pixels are gone in between, so that none can be decoded again."""
    store = tmp_path / "my store"
    done = maectl("store", "build", photographs, "--out", store, "--json", *RECIPE, check=True)
    told = json.loads(done.stdout)
    assert (told["images"], told["stored"], told["rejected"]) == (24, 24, [])
    assert (told["adapter"], told["form"], told["share"]) == ("natural", "raw", [0, 24])
    before = sorted(path.stat().st_mtime_ns for path in store.rglob("*.arrow"))
    done = maectl("pretrain", photographs, "--out", tmp_path / "run", "--steps", 1, "--batch-size", 4, *RECIPE,
                  "--set", f"data.store={store}", "--workers", 1, check=True)  # fmt: skip
    assert f"store: raw, 0.2 MB in {store}" in done.stderr
    assert "decoding into" not in done.stderr
    assert sorted(path.stat().st_mtime_ns for path in store.rglob("*.arrow")) == before
    assert not (tmp_path / ".maectl-store").exists()
    (form,) = json.loads(maectl("store", "info", store, "--json", check=True).stdout)["forms"]
    assert (form["adapter"], form["form"], form["entries"], form["building"]) == ("natural", "raw", 24, False)
    assert form["bytes"] == sum(path.stat().st_size for path in store.rglob("shard-*"))
    assert json.loads(maectl("store", "clean", store, "--all", "--json", check=True).stdout)["files"] == 2
    assert not store.exists()


def test_a_compact_store_trains_reproducibly_and_resumes_to_the_bit(photographs, tmp_path, monkeypatch):
    built(photographs, tmp_path / "store", *COMPACT)
    asked = [*COMPACT, f"data.store={tmp_path}/store"]
    forbid(monkeypatch)
    pretrain(request(photographs, tmp_path / "whole", *asked))
    pretrain(request(photographs, tmp_path / "again", *asked, workers=1))
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    assert yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())["data"]["store_form"] == "compact"
    interrupted(request(photographs, tmp_path / "broken", *asked), 3)
    assert pretrain(Request(folders=[], out=tmp_path / "broken", resume=True))["steps"] == 6
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def interrupted(asked: Request, step: int) -> None:
    """A run that Ctrl-C stops after a step."""
    import signal

    from maectl.stepping import Stepper

    done, own = [], Stepper.__call__

    def called(self, *arguments):
        done.append(None)
        if len(done) == step:
            signal.raise_signal(signal.SIGINT)
        return own(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", called)
        with pytest.raises(KeyboardInterrupt):
            pretrain(asked)


def test_a_run_of_another_form_decodes_anew(photographs, tmp_path):
    built(photographs, tmp_path / "store", *COMPACT)
    pretrain(request(photographs, tmp_path / "run", f"data.store={tmp_path}/store", steps=1))
    assert [each["form"] for each in info(tmp_path / "store")["forms"]] == ["jpeg-24", "raw"]
    assert [each["entries"] for each in info(tmp_path / "store")["forms"]] == [24, 24]


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")])
def test_each_process_of_a_launcher_builds_its_share(photographs, tmp_path, monkeypatch, capsys, names):
    parts = []
    for rank in range(3):
        monkeypatch.setenv(names[0], str(rank))
        monkeypatch.setenv(names[1], "3")
        parts.append(built(photographs, tmp_path / "store"))
        said = capsys.readouterr().err
        assert ("3 processes: this one decodes 8 of 24 images" in said) == (rank == 0)
        assert bool(said) == (rank == 0)
    assert [part["share"] for part in parts] == [[0, 8], [8, 16], [16, 24]]
    assert [part["stored"] for part in parts] == [8, 8, 8]
    assert info(tmp_path / "store")["forms"][0]["entries"] == 24
    monkeypatch.delenv(names[0])
    forbid(monkeypatch)
    assert built(photographs, tmp_path / "store")["stored"] == 24


def test_what_cannot_be_decoded_is_told_and_the_rest_is_stored(photographs, tmp_path):
    path = sorted(photographs.rglob("*.jpg"))[3]
    path.write_bytes(path.read_bytes()[:400])
    told = built(photographs, tmp_path / "store")
    assert told["stored"] == 23
    ((rejected),) = told["rejected"]
    assert rejected["paths"] == [str(path.relative_to(photographs))]
    assert f"{rejected['paths'][0]}: {rejected['reason']}" in report(told)
    assert "23 of 24 images" in report(told)


def test_a_folder_of_nothing_but_broken_images_is_an_error(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "0.jpg")
    (folder / "0.jpg").write_bytes((folder / "0.jpg").read_bytes()[:800])
    with pytest.raises(DataError, match=r"none of 1 images can be used, e\.g\. 0\.jpg"):
        built(folder, tmp_path / "store")


def test_clean_removes_what_is_unfinished_and_keeps_what_is_not(photographs, tmp_path):
    built(photographs, tmp_path / "store")
    (form,) = (tmp_path / "store").iterdir()
    (form / "shard-0123456789abcdef0123456789abcdef.tmp").write_bytes(b"123")
    (form / "shard-fedcba9876543210fedcba9876543210.pixels").write_bytes(b"4567")
    assert info(tmp_path / "store")["forms"][0]["unfinished_bytes"] == 7
    assert clean(tmp_path / "store") == {"store": str(tmp_path / "store"), "files": 2, "bytes": 7}
    assert info(tmp_path / "store")["forms"][0]["entries"] == 24
    assert "24 entries" in report(info(tmp_path / "store"))
    assert report(clean(tmp_path / "store")) == "0 files removed, 0.0 MB"


def test_clean_refuses_what_is_being_built(photographs, tmp_path):
    built(photographs, tmp_path / "store")
    adapter = load("natural")(channels=3)
    with building_lock(tmp_path / "store", adapter):
        assert info(tmp_path / "store")["forms"][0]["building"]
        with pytest.raises(DataError, match="is being built by another process"):
            clean(tmp_path / "store", everything=True)
    clean(tmp_path / "store", everything=True)
    assert not (tmp_path / "store").exists()


def test_clean_and_info_refuse_a_folder_that_holds_no_store_and_touch_nothing_else(photographs, tmp_path):
    thesis = tmp_path / "thesis" / "natural-raw-0123456789ab"  # named as ours, but it is not
    thesis.mkdir(parents=True)
    (thesis / "chapter1.tex").write_text("precious")
    for folder in (tmp_path / "thesis", photographs, tmp_path / "nowhere"):
        for call in (info, clean, lambda path: clean(path, everything=True)):
            with pytest.raises(DataError, match="holds no store of maectl"):
                call(folder)
    built(photographs, tmp_path / "thesis")
    clean(tmp_path / "thesis", everything=True)
    assert (thesis / "chapter1.tex").read_text() == "precious"
    assert os.listdir(tmp_path / "thesis") == [thesis.name]


def test_entries_of_an_older_version_are_told_as_such_and_can_be_cleared_away(photographs, tmp_path):
    old = tmp_path / "store" / "natural-0123456789ab"
    old.mkdir(parents=True)
    (old / "shard-0123456789abcdef0123456789abcdef.arrow").write_bytes(b"ARROW1 of old")
    (old / "shard-0123456789abcdef0123456789abcdef.pixels").write_bytes(b"pixels")
    (form,) = info(tmp_path / "store")["forms"]
    assert (form["adapter"], form["form"], form["entries"], form["bytes"]) == ("natural", None, 0, 19)
    assert "another version: not used" in report(info(tmp_path / "store"))
    clean(tmp_path / "store", everything=True)
    assert not (tmp_path / "store").exists()


def test_all_that_a_store_writes_is_of_names_that_clean_knows(photographs, tmp_path):
    for overrides in ([], COMPACT):
        built(photographs, tmp_path / "store", *overrides)
    assert all(store_commands._is_ours(path) for path in (tmp_path / "store").iterdir())
