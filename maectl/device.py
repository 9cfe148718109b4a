"""Which device to compute on, and in which precision."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from maectl.errors import UsageError
from maectl.team import placed

__all__ = [
    "autocast", "compiles", "cores", "fast_bf16", "free_memory", "loader_threads", "peak_memory", "pick", "precision",
    "synchronise",
]  # fmt: skip


def pick() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32 there (not merely possible)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    if platform.system() != "Linux":
        return False
    # torch has no public question for it; an emulated bf16 product is slower than float32
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").split("\n\n", 1)[0].split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def precision(asked: str, device: torch.device) -> str:
    """``fp32`` or ``bf16`` for a recipe's ``train.precision``. Raises UsageError for bf16 where it cannot be."""
    if asked == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    if asked == "bf16" and device.type == "mps":
        raise UsageError("train.precision=bf16 is not offered on MPS: use fp32")
    return asked


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs in that precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def compiles(asked: str, device: torch.device) -> bool:
    """Whether ``train.compile`` asks for torch.compile: auto is on CUDA alone, for a CPU gains nothing by it."""
    return asked == "on" or (asked == "auto" and device.type == "cuda")


def loader_threads(asked: int) -> int:
    """Threads that prepare batches: as asked, or this process's share of the machine's cores, at most 16."""
    own = cores()
    shared = "RANK" in os.environ or own == os.cpu_count()  # a Slurm task may have been given processors of its own
    return asked or max(1, min(16, own // (placed().local_size if shared else 1)))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: torch.device) -> int:
    """Bytes that tensors may still take on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    told = Path("/proc/meminfo")
    if told.exists():
        lines = dict(line.split(":", 1) for line in told.read_text(encoding="ascii").splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 4 << 30


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most tensors have taken on a CUDA device, else the most this process has taken."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if platform.system() == "Windows":
        return 0  # not known
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if platform.system() == "Darwin" else 1024)
