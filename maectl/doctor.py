"""What this machine offers, and what stands in the way."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from maectl import __version__, device, registry

__all__ = ["doctor", "report"]

LITTLE_DISK = 5e9  # bytes
LITTLE_MEMORY = 4e9


def doctor() -> dict[str, Any]:
    """What ``--json`` prints; ``problems`` names what a user should mend."""
    found, broken = registry.discover()
    where = device.pick()
    free = shutil.disk_usage(Path.cwd()).free
    memory = _memory()
    problems = [f"adapter {each.name} of {each.distribution} is broken: {each.reason}" for each in broken]
    if where.type == "cpu":
        problems.append(_no_gpu())
    if free < LITTLE_DISK:
        problems.append(f"{free / 1e9:.1f} GB of disk are free here: checkpoints and the store need more")
    if memory is not None and memory < LITTLE_MEMORY:
        problems.append(f"{memory / 1e9:.1f} GB of memory: set model.size=tiny and a small train.micro_batch")
    return {
        "maectl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": where.type,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "precision": device.precision("auto", where),
        "cores": device.cores(),
        "memory_bytes": memory,
        "free_disk_bytes": free,
        "adapters": sorted(found),
        "problems": problems,
    }


def report(result: dict[str, Any]) -> str:
    """The result for people."""
    device_names = ", ".join(result["devices"]) or platform.machine()
    memory = "unknown" if result["memory_bytes"] is None else f"{result['memory_bytes'] / 1e9:.0f} GB"
    lines = [
        f"maectl {result['maectl']}, Python {result['python']}, torch {result['torch']} ({sys.platform})",
        f"device     {result['device']} ({device_names}), trains in {result['precision']}",
        f"machine    {result['cores']} cores, {memory} of memory, "
        f"{result['free_disk_bytes'] / 1e9:.0f} GB of disk free here",
        f"adapters   {', '.join(result['adapters']) or 'none'}",
        *(f"problem    {problem}" for problem in result["problems"]),
    ]
    return "\n".join(lines) if result["problems"] else "\n".join([*lines, "no problem found"])


def _no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "no GPU support in this build of torch: models beyond tiny will be slow"
    return "torch finds no GPU (is the driver installed?): models beyond tiny will be slow"


def _memory() -> int | None:
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
