"""The example in ``adapters/README.md`` is a working package, discovered and held to the contract."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example laid out as pip would install it."""
    text = (ROOT / "adapters" / "README.md").read_text()
    blocks = dict(re.findall(r"^```(toml|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    project = tomllib.loads(blocks["toml"])["project"]
    (group, points), *_ = project["entry-points"].items()
    ((name, target),) = points.items()
    (tmp_path / f"{target.partition(':')[0]}.py").write_text(blocks["python"])
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    return tmp_path


def test_the_example_adapter_is_discovered_and_keeps_the_contract(example: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "npy", "tests/test_adapter_contract.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(example), *sys.path])},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed[1]) >= 14
    assert "skipped" not in ran.stdout
