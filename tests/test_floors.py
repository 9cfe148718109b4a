"""The house keeps its floors: a file imports only from lower floors, or from files to its left on its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    ["errors", "adapter"],
    ["console", "registry", "recipe", "windows", "stream", "team", "index", "planes", "columns", "scan", "stats",
     "huge", "threads", "forms", "keys", "shards", "reading", "store", "storing", "synthetic", "advice", "tables",
     "annotations", "labels", "bootstrap", "overlap", "solvers", "scoring", "blocks", "prepare", "inspection",
     "store_commands"],
    ["positions", "vit", "mae", "baselines", "optim", "device", "flops", "distributed", "resize", "crops", "batch",
     "cuts", "views", "dataset", "clocked", "checkpoint", "warmstart", "run", "features", "tiling", "lattice",
     "fidelity", "mosaic", "panels", "confusion", "restoration", "projection", "maps", "rasters", "covering",
     "tokens", "dense"],
    ["heldout", "progress", "budget", "identity", "stepping", "training", "resume", "pretrain", "bench", "probe",
     "outputs", "reconstruct", "table", "embed", "doctor", "demo", "launch"],
    ["cli", "__main__"],
]  # fmt: skip
ORDER = [name for floor in FLOORS for name in floor]
WITHOUT_TORCH = FLOORS[0] + FLOORS[1]
PACKAGE = {path.stem: path for path in (ROOT / "maectl").glob("*.py") if path.stem != "__init__"}


def imported(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function, in full."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_every_file_has_its_place():
    assert set(PACKAGE) <= set(ORDER), f"say on which floor {set(PACKAGE) - set(ORDER)} live"


@pytest.mark.parametrize("name", sorted(PACKAGE))
def test_imports_go_down_or_left(name: str):
    inner = {each.split(".")[1] for each in imported(PACKAGE[name]) if each.startswith("maectl.")}
    for other in inner & set(ORDER):
        assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}, which lies above or to its right"


@pytest.mark.parametrize("name", sorted(set(WITHOUT_TORCH) & set(PACKAGE)))
def test_the_lower_floors_know_no_torch(name: str):
    heavy = {"torch", "timm", "torchvision", "tensorboard"}
    assert not {each.split(".")[0] for each in imported(PACKAGE[name])} & heavy


def test_the_core_imports_no_adapter():
    for path in PACKAGE.values():
        assert not {each for each in imported(path) if each.startswith("maectl_")}


def test_adapters_import_the_contract_only():
    for path in (ROOT / "adapters").rglob("*.py"):
        inner = {each for each in imported(path) if each.split(".")[0] == "maectl"}
        allowed = ("maectl.adapter", "maectl.errors")
        assert all(each.startswith(allowed) or each == "maectl" for each in inner), f"{path.name}: {inner}"
