"""Several processes share a run: the same losses as one, one voice, one end; real processes over gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from maectl import device
from maectl import run as runs
from maectl.errors import TrainingError, UsageError
from maectl.index import Rejects
from maectl.launch import _cause, wanted
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.team import Place, Team, placed
from maectl.training import Quarantine, refuse_few

SIXTEEN = ["--recipe", "small-images", "--steps", "16", "--batch-size", "9", "--workers", "1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Grey pictures with transparent holes, so that processes count different numbers of patches."""
    folder = tmp_path_factory.mktemp("pictures")
    chance = np.random.default_rng(5)
    for number in range(20):
        values = chance.integers(0, 255, (40, 40, 2), np.uint8)
        values[..., 1] = 255
        values[5 : 5 + number, 5:20, 1] = 0
        Image.fromarray(values, "LA").save(folder / f"{number:02d}.png")
    return folder


def command(folder: Path, out: Path, small: list[str], *more: str) -> list[str]:
    sets = [word for each in [*small, "train.micro_batch=2"] for word in ("--set", each)]
    return ["pretrain", str(folder), "--out", str(out), *SIXTEEN, *sets, *more]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in runs.lines(run) if "loss" in line]


def children(process: int) -> dict[int, int]:
    """Process ids by rank, of the processes a launcher has started."""
    found = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks = [int(each[5:]) for each in environment if each.startswith(b"RANK=")]
            found |= {rank: int(child) for rank in ranks}
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its processes in /proc")
def test_two_processes_give_the_losses_of_one_also_where_one_is_killed_and_another_number_resumes(
    maectl, pictures, tmp_path, small
):
    maectl(*command(pictures, tmp_path / "one", small), check=True)
    expected = losses(tmp_path / "one")

    often = ["--set", "train.checkpoint_minutes=0.0001"]  # at every step
    process = subprocess.Popen(
        [sys.executable, "-m", "maectl", *command(pictures, tmp_path / "two", small, "--devices", "2", *often)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not list((tmp_path / "two" / "checkpoints").glob("step-*[2-9]")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert [line for line in told.splitlines() if "rror" in line] == [told.splitlines()[-1]], told
    assert told.splitlines()[-1].startswith("error: process 1 of 2 was killed by signal 9")

    done = len(losses(tmp_path / "two"))
    assert 0 < done < 16
    maectl("pretrain", "--out", tmp_path / "two", "--resume", "--workers", 1, "--devices", 3, check=True)
    np.testing.assert_allclose(losses(tmp_path / "two"), expected, rtol=2e-5)
    assert len(expected) == 16
    assert not [
        path for path in tmp_path.iterdir() if path.name.startswith(".maectl-") and path.name != ".maectl-store"
    ]


def test_interrupted_processes_leave_a_checkpoint_and_a_fault_is_told_once(pictures, tmp_path, small):
    started = [sys.executable, "-m", "maectl", *command(pictures, tmp_path / "run", small, "--devices", "2")]
    started[started.index("16")] = "100000"
    process = subprocess.Popen(
        started,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "log.jsonl").exists() or len(losses(tmp_path / "run")) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "checkpoint written" in told
    assert "Traceback" not in told
    step = runs.read(tmp_path / "run")["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:07d}" / "trainer.json").is_file()

    resumed = [sys.executable, "-m", "maectl", "pretrain", "--out", str(tmp_path / "run"), "--resume", "--devices", "2"]
    again = subprocess.run([*resumed, "--steps", "3"], capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.splitlines() == ["error: --resume goes on as the run was begun: leave out --steps"]


@pytest.fixture(scope="module")
def trained(maectl, pictures, tmp_path_factory) -> Path:
    from conftest import SMALL

    run = tmp_path_factory.mktemp("runs") / "run"
    maectl(*command(pictures, run, list(SMALL)), check=True)
    return run


def together(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in two processes, by torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "-m", "maectl", *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


def test_torchrun_shares_the_images_of_a_probe_and_of_a_table(maectl, trained, pictures, tmp_path):
    (tmp_path / "labels.csv").write_text(
        "path,label\n"
        + "".join(f"{path.name},{'ab'[number % 2]}\n" for number, path in enumerate(sorted(pictures.iterdir())))
    )
    asked = ["probe", trained, pictures, "--labels", tmp_path / "labels.csv", "--method", "knn", "--json"]
    alone = json.loads(maectl(*asked, check=True).stdout)
    assert json.loads(together(*asked).stdout) == alone
    import pyarrow.parquet as parquet

    maectl("embed", trained, pictures, "--out", tmp_path / "alone", "--pca", 3, check=True)
    together("embed", trained, pictures, "--out", tmp_path / "shared", "--pca", 3)
    one, two = (parquet.read_table(tmp_path / name / "embeddings.parquet") for name in ("alone", "shared"))
    assert one.drop(["features"]).equals(two.drop(["features"]))
    values = [np.array(table["features"].to_pylist()) for table in (one, two)]
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


def test_a_process_learns_its_place_from_torchrun_or_slurm_and_else_is_alone():
    assert placed({}) == Place(0, 1, 0, 1)
    assert placed({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == Place()  # a batch script, not one of its tasks
    assert placed({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}) == Place(5, 8, 1, 4)
    slurm = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    assert placed({**slurm, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}) == Place(5, 8, 1, 4)
    for wrong in ({"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}):
        with pytest.raises(UsageError, match="RANK="):
            placed(wrong)


def test_devices_are_a_number_or_auto_and_what_the_launcher_started(monkeypatch):
    assert wanted("3") == 3
    for wrong in ("0", "-1", "two", "²", ""):
        with pytest.raises(UsageError, match="--devices"):
            wanted(wrong)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert wanted("auto") == wanted("2") == 1
    with pytest.raises(UsageError, match="has started 2"):
        wanted("4")


def test_a_batch_has_an_image_for_each_process():
    with pytest.raises(UsageError, match="too small for 3 processes"):
        refuse_few(2, Team(Place(0, 3, 0, 3)))


def test_a_task_with_processors_of_its_own_uses_them_all(monkeypatch):
    """Slurm gives each task its share; processes of torchrun share what there is."""
    slurm = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "4"}
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(device, "placed", lambda: placed(slurm))
    assert device.loader_threads(0) == 8
    monkeypatch.setenv("RANK", "0")
    assert device.loader_threads(0) == 2
    assert device.loader_threads(5) == 5


def test_what_other_processes_could_not_read_counts_and_is_told(pictures, tmp_path, capsys):
    found = scan([pictures], load("natural"), DataRecipe(), tmp_path / "index.arrow", workers=1)
    rejects = Rejects()
    quarantine = Quarantine(found.index, rejects, most=0.1)  # two of 20
    folder = str(pictures)
    quarantine(3, "cut short")
    quarantine.include([(folder, "03.png", "train", "cut short"), (folder, "07.png", "train", "cut short")])
    quarantine(3, "another window of it, another reason")
    assert [paths for _, paths, _, _ in rejects.rows] == ["03.png", "07.png"]
    assert capsys.readouterr().err.count("cannot be read any more") == 2
    with pytest.raises(TrainingError, match="3 of 20"):
        quarantine.include([(folder, "09.png", "train", "cut short")])


@pytest.mark.parametrize(
    ("codes", "cause"), [((1, -9), 1), ((-9, 1), 0), ((-15, 2), 1), ((2, -15), 0), ((-15, -15), 0), ((1, 1), 0)]
)
def test_why_all_ended_is_the_process_that_was_killed_or_failed(codes: tuple[int, ...], cause: int):
    failures = {rank: SimpleNamespace(exitcode=code) for rank, code in enumerate(codes)}
    assert _cause(failures)[0] == cause


def test_a_process_alone_is_its_own_team():
    team = Team()
    assert (team.leads, team.size, team.share(7)) == (True, 1, slice(0, 7))
    assert (team.lead(lambda: 3), team.gathered("x"), team.collected("x"), team.most(-2)) == (3, ["x"], ["x"], -2)
