"""The command line as scripts meet it: exit codes, one line an error, one JSON document, and no late surprise."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from conftest import SMALL
from PIL import Image

from maectl import cli
from maectl.adapter import Files
from maectl.errors import DataError

COMMANDS = {
    "pretrain": {
        "FOLDER", "--out", "--recipe", "--adapter", "--set", "--init", "--epochs", "--steps", "--max-time",
        "--batch-size", "--devices", "--workers", "--resume", "--overwrite", "--dry-run", "--json",
    },
    "probe": {
        "RUN", "FOLDER", "--labels", "--method", "--pool", "--per", "--masks", "--ignore", "--seed", "--out",
        "--workers", "--json",
    },
    "reconstruct": {"RUN", "PATH", "--out", "--mask-ratio", "--seed", "--cover", "--format", "--json"},
    "inspect": {"FOLDER", "--adapter", "--workers", "--json"},
    "recipes": {"NAME"},
    "adapters": {"--json"},
    "embed": {"RUN", "PATH", "--out", "--dtype", "--pca", "--pool", "--labels", "--seed", "--workers", "--json"},
    "demo": {"NAME", "--out", "--seed"},
    "bench": {
        "FOLDER", "--synthetic", "--recipe", "--adapter", "--set", "--batch-size", "--steps", "--workers", "--json",
    },
    "store build": {"FOLDER", "--out", "--recipe", "--adapter", "--set", "--workers", "--json"},
    "store info": {"DIR", "--json"},
    "store clean": {"DIR", "--all", "--json"},
    "doctor": {"--json"},
}  # fmt: skip
Outcome = tuple[int, str, str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """The command line in this process: exit code, stdout, stderr. A traceback fails the test by itself."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["maectl", *map(str, arguments)])
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, out.buffer.getvalue().decode(), err.getvalue()

    return call


@pytest.fixture
def trained(photographs: Path, tmp_path: Path, run) -> Path:
    """A run of two steps."""
    settings = [each for key in SMALL for each in ("--set", key)]
    status, _, said = run("pretrain", photographs, "--out", tmp_path / "run", "--recipe", "small-images", "--steps", 2,
                          "--batch-size", 4, "--workers", 1, *settings)  # fmt: skip
    assert status == 0, said
    return tmp_path / "run"


def test_commands_and_options_are_those_written_here():
    """A new one is a conscious act: add it here, to the README and to CHANGELOG.md."""
    group = typer.main.get_command(cli.app)
    found = {}
    commands = {name: each for name, each in group.commands.items() if name != "store"}
    commands |= {f"store {name}": each for name, each in group.commands["store"].commands.items()}
    for name, command in commands.items():
        options = {max(each.opts, key=len) for each in command.params if each.opts[0].startswith("-")}
        arguments = {re.sub(r"\W", "", each.metavar or each.name.upper()) for each in command.params
                     if not each.opts[0].startswith("-")}  # fmt: skip
        found[name] = options | ({"NAME"} if name == "demo" else arguments)
    assert found == COMMANDS


LIGHT = """
import sys
from maectl import cli
statuses = []
light = ["--help"], ["pretrain", "--help"], ["probe", "--help"], ["--version"], ["inspect"], ["pretrain", "--nonsense"]
for arguments in light:
    sys.argv = ["maectl", *arguments]
    try:
        cli.main()
    except SystemExit as left:
        statuses.append(left.code or 0)
heavy = {"torch", "numpy", "pandas", "timm", "pyarrow", "yaml", "PIL", "sklearn"} & set(sys.modules)
assert not heavy, heavy
for arguments in (["recipes"], ["adapters"], ["recipes", "photographs"]):
    sys.argv = ["maectl", *arguments]
    try:
        cli.main()
    except SystemExit as left:
        statuses.append(left.code or 0)
assert "torch" not in sys.modules
import maectl.inspection
assert "torch" not in sys.modules
print(statuses)
"""


def test_help_loads_neither_torch_nor_numpy_and_recipes_and_inspect_no_torch():
    done = subprocess.run([sys.executable, "-W", "error", "-c", LIGHT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 2, 2, 0, 0, 0]"
    assert "Traceback" not in done.stderr


def test_as_a_process_it_exits_with_the_promised_codes(maectl, tmp_path):
    done = maectl("inspect", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path}/nowhere does not exist: check the path\n"
    listed = maectl("recipes", check=True)
    assert "photographs" in listed.stdout
    assert listed.stderr == ""


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    command = f"{sys.executable} -m maectl recipes photographs"
    done = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_ctrl_c_is_130_and_silent(run, photographs, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Files, "__iter__", interrupted)
    assert run("inspect", photographs)[0] == 130


def errors(tmp_path: Path, photographs: Path) -> dict[str, tuple[int, list[object], str]]:
    """What can go wrong before a run begins: exit code, arguments, and part of the line."""
    empty, words, tiny = tmp_path / "empty", tmp_path / "words", tmp_path / "tiny"
    for folder in (empty, words, tiny):
        folder.mkdir()
    (words / "a.txt").write_text("words")
    for number in range(3):
        Image.new("RGB", (7, 9)).save(tiny / f"{number}.png")
    (tmp_path / "mine.yaml").write_text("data: {chanels: 3}\nmodel: {mask_ratoi: 0.8}\n")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").touch()
    start = ["pretrain", photographs, "--out", tmp_path / "run"]
    restore = ["reconstruct", tmp_path, photographs, "--out", tmp_path / "pictures"]
    off = ["--set", "data.store=off"]
    return {
        "empty": (1, ["pretrain", empty, "--out", tmp_path / "run"], "no image in"),
        "no images": (1, ["pretrain", words, "--out", tmp_path / "run"], "1 files seen"),
        "missing": (1, ["pretrain", tmp_path / "nowhere", "--out", tmp_path / "run"], "does not exist"),
        "no folder": (2, ["pretrain", "--out", tmp_path / "run"], "give at least one FOLDER"),
        "patch": (2, [*start, "--recipe", "photographs", "--set", "model.patch_size=15"], "use image_size [225, 225]"),
        "typo": (2, [*start, "--set", "model.mask_ratoi=0.8"], "did you mean mask_ratio?"),
        "typos": (2, [*start, "--recipe", tmp_path / "mine.yaml"],
                  "unknown key data.chanels (did you mean channels?); unknown key model.mask_ratoi"),
        "set": (2, [*start, "--set", "mask_ratio"], "--set mask_ratio: write it as"),
        "recipe": (2, [*start, "--recipe", "photograph"], "did you mean photographs?"),
        "adapter": (2, [*start, "--adapter", "radar"], "there is no adapter 'radar': installed are"),
        "option": (2, [*start, "--set", "data.options.max_pixel=3"], "data.options.max_pixel"),
        "small": (1, ["pretrain", tiny, "--out", tmp_path / "run", "--recipe", "photographs"], "smaller than a patch"),
        "heads": (2, [*start, "--recipe", "small-images", *off, "--set", "model.heads=5"], "heads"),
        "budget": (2, [*start, "--steps", 3, "--epochs", 2], "exclude one another"),
        "time": (2, [*start, "--max-time", "soon"], "--max-time soon: write it as 90s, 30m"),
        "devices": (2, [*start, "--devices", "two"], "--devices two"),
        "both": (2, [*start, "--resume", "--overwrite"], "exclude one another"),
        "resume": (1, [*start, "--resume"], "holds no run of maectl"),
        "in use": (2, ["pretrain", photographs, "--out", tmp_path / "thesis", "--overwrite"], "holds no run of maectl"),
        "init": (2, [*start, "--recipe", "small-images", *off, "--init", "nowhere"], "neither a run, a file"),
        "twice": (2, ["inspect", photographs, photographs / "set0"], "give one of the two"),
        "method": (2, ["probe", tmp_path, photographs, "--method", "svm"], "choose linear or knn"),
        "format": (2, [*restore, "--format", "gif"], "choose native"),
        "ratio": (2, [*restore, "--mask-ratio", 2], "between 0 and 1"),
        "no run": (1, ["probe", tmp_path, photographs], "holds no checkpoint"),
        "gone run": (1, ["probe", tmp_path / "nowhere", photographs], "does not exist: give the run folder"),
    }  # fmt: skip


def test_every_mistake_is_one_line_that_says_what_to_do_and_leaves_nothing_behind(run, tmp_path, photographs):
    cases = errors(tmp_path, photographs)
    before = sorted(tmp_path.iterdir())
    for name, (expected, arguments, told) in cases.items():
        status, out, said = run(*arguments)
        last = said.splitlines()[-1]
        assert (name, status, out) == (name, expected, ""), said
        assert last.startswith("error: "), (name, said)
        assert told in last, (name, last)
        assert said.count("error:") == 1
        assert sorted(tmp_path.iterdir()) == before, name


def test_a_folder_one_may_not_look_into_is_one_line(run, photographs, monkeypatch):
    real = os.scandir

    def refused(path):
        if str(path).startswith(str(photographs)):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)  # root may look into everything
    status, _, said = run("inspect", photographs)
    assert status == 1
    assert re.fullmatch(r"error: .*photographs/? cannot be read \(Permission denied\): check its permissions\n", said)


def test_inspect_prints_one_document_with_the_promised_keys(run, photographs):
    Image.open(photographs / "set0" / "00.png").save(photographs / "set1" / "copy.png")
    (photographs / "bad.jpg").write_bytes(b"")
    (photographs / "cut.jpg").write_bytes((photographs / "set1" / "01.jpg").read_bytes()[:400])
    status, out, said = run("inspect", photographs, "--json", "--workers", 2)
    assert status == 0
    found = json.loads(out)
    assert set(found) >= {
        "adapter", "images", "rejected", "groups", "channels", "dtypes", "sizes", "spacing", "unit", "value_range",
        "invalid_fraction", "duplicates", "problems", "recipe",
    }  # fmt: skip
    assert (found["adapter"], found["images"], found["rejected"], found["foreign_files"]) == ("natural", 26, 1, 1)
    assert (found["channels"], found["dtypes"]) == ({"red/green/blue": 26}, {"uint8": 26})
    assert found["rejects"][0]["paths"] == "bad.jpg"
    assert any("1 of 26 sampled images" in each and "cut.jpg" in each for each in found["problems"])
    assert set(found["recipe"]) == {"data", "model", "train"}
    assert "small-images" in said
    status, out, _ = run("inspect", photographs)
    assert status == 0
    assert "26 in 26 groups; 1 rejected" in out


def test_copies_are_counted_byte_for_byte(run, photographs):
    original = photographs / "set0" / "00.png"
    (photographs / "set1" / "copy.png").write_bytes(original.read_bytes())
    changed = bytearray(original.read_bytes())
    changed[-20] ^= 1
    (photographs / "set1" / "like.png").write_bytes(changed)  # of the same size
    assert json.loads(run("inspect", photographs, "--json")[1])["duplicates"] == 1


@pytest.mark.parametrize("store", ["auto", "off"])
def test_images_with_no_valid_pixel_at_all_are_told_and_left_out(run, tmp_path, store):
    (tmp_path / "data").mkdir()
    Image.new("LA", (40, 40), (9, 0)).save(tmp_path / "data" / "a.png")
    found = json.loads(run("inspect", tmp_path / "data", "--json")[1])
    assert found["statistics"] is None
    assert "1 of 1 sampled images have a good header and cannot be used, e.g. a.png: no valid pixel" in str(found)
    request = ("pretrain", tmp_path / "data", "--out", tmp_path / "run", "--set", f"data.store={store}", "--steps", 1)
    status, out, said = run(*request)
    assert (status, out) == (1, "")
    assert "none of the 1 images can be used, e.g. a.png: no valid pixel (all nodata, transparent or" in said
    for number in range(8):
        Image.new("L", (40, 40), 30 * number).save(tmp_path / "data" / f"{number}.png")
    settings = [each for key in SMALL for each in ("--set", key)]
    settings += ["--recipe", "small-images", "--batch-size", 2, "--set", "data.verify=all"]
    status, _, said = run(*request, *settings)
    assert status == 0, said
    assert 'a.png,verify,"no valid pixel' in (tmp_path / "run" / "quarantine.csv").read_text()


def test_a_file_name_that_is_no_text_is_shown_and_not_stumbled_over(run, photographs):
    os.rename(photographs / "set0" / "00.png", os.fsencode(photographs) + b"/caf\xe9.png")
    with open(os.fsencode(photographs) + b"/caf\xe8.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
    status, out, said = run("inspect", photographs)
    assert status == 0, said
    assert "caf\\udce8.png" in out
    assert json.loads(run("inspect", photographs, "--json")[1])["rejects"][0]["paths"] == "caf\udce8.png"


def test_pretrain_json_is_one_document_and_nothing_else_is_on_stdout(run, photographs, tmp_path, trained):
    settings = [each for key in SMALL for each in ("--set", key)]
    command = ["pretrain", photographs, "--out", tmp_path / "other", "--recipe", "small-images", "--steps", 2,
               "--batch-size", 4, "--workers", 1, *settings]  # fmt: skip
    status, out, said = run(*command, "--json")
    assert status == 0, said
    found = json.loads(out)
    assert set(found) >= {
        "run", "checkpoint", "steps", "epochs", "images", "rejected", "batch_size", "loss_first", "loss_last",
        "baselines", "images_per_s", "data_wait_fraction", "seconds",
    }  # fmt: skip
    assert found["run"] == str(tmp_path / "other")
    assert Path(found["checkpoint"]).is_dir()
    status, out, said = run(*command)
    assert (status, out) == (2, "")
    assert "--resume goes on with it, --overwrite replaces it" in said
    assert run(*command, "--overwrite")[0] == 0
    # and without a decoder there is nothing to reconstruct
    status, _, said = run("reconstruct", trained / "encoder.safetensors", photographs, "--out", tmp_path / "pictures")
    assert status in (1, 2)
    assert re.search(r"^error: .*decoder", said, re.MULTILINE)
    assert not (tmp_path / "pictures").exists()


def test_adapters_recipes_and_doctor_print_what_scripts_read(run, tmp_path):
    found = json.loads(run("adapters", "--json")[1])
    assert ".png" in found["adapters"]["natural"]["suffixes"]
    assert "max_pixels" in found["adapters"]["natural"]["options"]
    assert "data.options.max_pixels" in run("adapters")[1]
    status, out, said = run("recipes", "photographs")
    assert (status, said) == (0, "")
    (tmp_path / "mine.yaml").write_text(out)
    from maectl.recipe import load

    assert load(str(tmp_path / "mine.yaml"))[0] == load("photographs")[0]
    assert run("recipes", "fotographs")[0] == 2
    assert set(json.loads(run("doctor", "--json")[1])) >= {"maectl", "torch", "device", "adapters", "problems"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("8h", 28800), ("1h30m", 5400), ("1d", 86400)]
)
def test_times_are_read(text: str, seconds: float):
    assert cli._seconds(text) == seconds


def test_errors_know_their_exit_code():
    assert issubclass(DataError, Exception)
    assert not issubclass(DataError, cli.UsageError)
