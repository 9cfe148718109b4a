"""Adapters are found by entry point, chosen by looking at the files, and a broken one stops nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maectl.errors import DataError, UsageError
from maectl.registry import choose, discover, installed, load

ADAPTER = """
from maectl.adapter import Adapter, Formats, Pixels

class Toy(Adapter):
    name = "{name}"
    formats = Formats((".toy",), ((0, b"TOY"),))

    @classmethod
    def claim(cls, path, head):
        return 2 if head[:2] == b"\\x89P" and {greedy} else super().claim(path, head)

    def scan(self, files):
        return iter(())

    def read(self, source, window=None, shape=None):
        raise NotImplementedError

    {write}
"""
WRITE = "def write(self, source, tiles, path, *, step=1, channels=None, dtype=None): raise NotImplementedError"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a distribution with one adapter, as pip would lay it on the path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(distribution: str, name: str, code: str) -> None:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(code)
        about = site / f"{module}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[maectl.adapters]\n{name} = {module}:Toy\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def toy(name: str = "toy", greedy: bool = False, write: str = WRITE) -> str:
    return ADAPTER.format(name=name, greedy=greedy, write=write)


def test_an_installed_adapter_is_found_beside_our_own(plugin):
    plugin("maectl-toy", "toy", toy())
    assert set(installed()) >= {"natural", "toy"}
    assert load("toy").name == "toy"
    assert load("natural") is installed()["natural"]


def test_one_name_registered_twice_is_refused_and_both_distributions_are_named(plugin):
    plugin("maectl-toy", "toy", toy())
    plugin("other-toys", "toy", toy())
    with pytest.raises(UsageError, match=r"'toy'.*maectl-toy and other-toys"):
        discover()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import sys; sys.exit('needs a licence')", "SystemExit: needs a licence"),
        ("Tyo = 3", "AttributeError"),
        ("Toy = 3", "is not a maectl.adapter.Adapter"),
        ("class Toy: pass", "is not a maectl.adapter.Adapter"),
        (toy(write=""), "lacks write"),
        (toy(name="another"), "must have name = 'broken'"),
    ],
)
def test_a_broken_adapter_is_shown_with_its_reason_and_stops_nothing(plugin, code: str, reason: str):
    plugin("maectl-broken", "broken", code)
    found, broken = discover()
    assert "natural" in found
    assert "broken" not in found
    (shown,) = broken
    assert (shown.name, shown.distribution) == ("broken", "maectl-broken")
    assert reason in shown.reason
    with pytest.raises(UsageError, match="'broken' of maectl-broken is broken: "):
        load("broken")


def test_an_unknown_adapter_names_those_there_are():
    with pytest.raises(UsageError, match="no adapter 'radar': installed are .*natural"):
        load("radar")


def mixed(folder: Path, pictures: int, toys: int, others: int) -> Path:
    folder.mkdir()
    for number in range(pictures):
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(folder / f"{number}.png")
    for number in range(toys):
        (folder / f"{number}.bin").write_bytes(b"TOY")  # by its first bytes, not by its name
    for number in range(others):
        (folder / f"{number}.txt").write_text("words")
    return folder


def test_the_adapter_that_claims_most_is_chosen_and_rivals_are_told(plugin, tmp_path):
    plugin("maectl-toy", "toy", toy())
    choice = choose([mixed(tmp_path / "a", 16, 3, 1)])
    assert choice.name == "natural"
    assert choice.shares["natural"] == pytest.approx(0.8)
    assert choice.shares["toy"] == pytest.approx(0.15)
    assert choice.rivals == ["toy"]
    assert choose([mixed(tmp_path / "b", 2, 9, 0)]).name == "toy"
    assert choose([mixed(tmp_path / "c", 40, 2, 0)]).rivals == []  # 5 % is not over 5 %
    assert choose([tmp_path / "a", tmp_path / "b"]).name == "natural"


def test_a_claim_by_content_outweighs_one_by_format(plugin, tmp_path):
    plugin("maectl-toy", "toy", toy(greedy=True))
    assert choose([mixed(tmp_path / "a", 5, 0, 0)]).name == "toy"


def test_a_single_file_is_enough_to_choose_by(tmp_path):
    folder = mixed(tmp_path / "a", 1, 0, 3)
    assert choose([folder / "0.png"]).shares["natural"] == 1


def test_where_no_adapter_claims_a_file_the_error_says_how_many_were_seen(tmp_path):
    with pytest.raises(DataError, match=r"no image in .*: 3 files seen.*natural.*maectl adapters"):
        choose([mixed(tmp_path / "a", 0, 0, 3)])
    with pytest.raises(DataError, match=r"0 files seen"):
        choose([mixed(tmp_path / "b", 0, 0, 0)])
    with pytest.raises(DataError, match="does not exist"):
        choose([tmp_path / "nowhere"])


def test_a_large_folder_is_sampled_the_same_way_every_time(tmp_path, monkeypatch):
    from maectl import registry

    looked: list[str] = []
    monkeypatch.setattr(registry, "_head", lambda path: looked.append(path.name) or b"\x89PNG\r\n\x1a\n")
    monkeypatch.setattr(registry, "SNIFFED", 20)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03d}.png").touch()
    choose([folder], seed=3)
    first, looked[:] = list(looked), []
    choose([folder], seed=3)
    assert looked == first
    assert len(first) == len(set(first)) == 20
    assert first != sorted(first)[:20]
    looked.clear()
    choose([folder], seed=4)
    assert looked != first
