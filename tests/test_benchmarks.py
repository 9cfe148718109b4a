"""The benchmarks' own bookkeeping: what is kept, what the table says of it, and that they still run."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """A file of benchmarks/ as a module; they import one another, as scripts do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_table_in_the_documents_is_what_was_measured(script):
    report = script("report")
    results = json.loads((ROOT / "docs" / "performance.json").read_text())
    page = (ROOT / "docs" / "performance.md").read_text()
    assert report.with_table(page, results) == page, "run python benchmarks/report.py"
    for name, picture in report.pictures(results).items():
        assert (ROOT / "docs" / name).read_text() == picture
        assert len(picture) < 60_000


def test_a_missed_target_is_said_and_an_unmeasured_one_is_no_figure(script):
    report = script("report")
    least = report.Target("speed", "≥ 3,000", lambda all_: all_["speed"], " x", 0)
    most = report.Target("memory", "≤ 0.9", lambda all_: all_["memory"])
    assert report.measured(least, {"speed": 3500.0}) == "3,500 x"
    assert report.measured(least, {"speed": 2000.0}) == "**2,000 x**, missed"
    assert report.measured(most, {"memory": 0.95}) == "**0.95**, missed"
    assert report.measured(most, {"memory": 0.85}) == "0.85"
    assert report.measured(most, {}) == "…"


def test_a_chart_is_sound_xml_with_a_bar_a_value(script):
    picture = ElementTree.fromstring(script("report").bars("a < b", {"maectl bf16": 4.0, "lightly & co": 2.0}))
    widths = [float(bar.get("width")) for bar in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] == pytest.approx(2 * widths[1])


def test_results_are_kept_beside_one_another(script, tmp_path: Path, capsys):
    keep = script("record").keep
    keep(tmp_path / "all.json", "one", {"a": [1.234567]})
    keep(tmp_path / "all.json", "two", {"b": {"c": 3}})
    keep(tmp_path / "all.json", "one", {"a": [7.0]})
    kept = json.loads((tmp_path / "all.json").read_text())
    assert kept["one"]["a"] == [7.0]
    assert kept["two"]["b"] == {"c": 3}
    assert "1.235" in capsys.readouterr().out


def test_a_step_is_timed_in_turns_and_every_variant_is_compared(script, monkeypatch: pytest.MonkeyPatch):
    step = script("step")
    monkeypatch.setattr(step.flops, "product_rate", lambda where, dtype: 1e11)
    size = step.Size(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2, image=32, batch=2)
    where = torch.device("cpu")
    variants = step.made(["maectl", "full_tokens"], size, where, ["fp32", "bf16"], compiled=False)
    assert step.measured(variants, torch.randn(2, 3, 32, 32), step.time.process_time, most=2, seconds=60) == 2
    found = step.summary(variants, size, where)
    assert set(found["variants"]) == {"maectl fp32", "maectl bf16", "full_tokens fp32", "full_tokens bf16"}
    assert all(row["step_s"] > row["pass_s"] > 0 for row in found["variants"].values())
    own, full = (found["variants"][f"{name} fp32"]["saved_mib"] for name in ("maectl", "full_tokens"))
    assert own <= full, "an encoder on visible patches saves less"
    assert set(found["over_flop_ratio"]) == {"maectl fp32 over full_tokens fp32", "maectl bf16 over full_tokens bf16"}


def test_with_all_tokens_in_the_encoder_every_weight_learns_but_the_decoders_mask_token(script):
    peers = script("peers")
    size = peers.Size(width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, image=32, batch=2)
    peer = peers.full_tokens(size)
    peer.loss(torch.randn(2, 3, 32, 32)).backward()
    unused = {name for name, each in peer.model.named_parameters() if each.requires_grad and each.grad is None}
    assert unused == {"mask_token"}
