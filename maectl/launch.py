"""``--devices N``: this command again, N times, one process a device, by torch's own launcher (what torchrun uses)."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import torch

from maectl import device
from maectl.errors import RunError, UsageError
from maectl.team import placed

__all__ = ["launch", "wanted"]

GRACE = 600  # seconds a process has to write its checkpoint after Ctrl-C


def wanted(asked: str) -> int:
    """How many processes ``--devices`` asks for: auto is one a CUDA device, else one. Raises UsageError."""
    place = placed()
    if asked != "auto" and (not asked.isascii() or not asked.isdecimal() or int(asked) < 1):
        raise UsageError(f"--devices {asked}: give a number of devices, or auto")
    if place.size > 1:  # started by torchrun or Slurm, or by us
        if asked != "auto" and int(asked) != place.local_size:
            raise UsageError(f"--devices {asked}: the launcher has started {place.local_size} processes here")
        return 1
    found = torch.cuda.device_count()
    if asked == "auto":
        return max(1, found)
    if found and int(asked) > found:
        raise UsageError(f"--devices {asked}: this machine has {found} CUDA devices")
    return int(asked)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run ``maectl`` with ``arguments`` in so many processes here; the exit status. One that dies ends all.

    Raises RunError where a process was killed from outside: one that fails by itself has said why.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.Logger.manager.loggerDict):  # each has a level of its own
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # else its report follows every message of ours
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, device.cores() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()), max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "maectl", *arguments)  # not from the working folder
    except SignalException:
        return 130
    except ChildFailedError as error:
        rank, failure = _cause(error.failures)
        if failure.exitcode < 0:
            raise RunError(
                f"process {rank} of {processes} was killed by signal {-failure.exitcode}"
                f"{' (out of memory?)' if failure.exitcode == -9 else ''}: all have ended; --resume goes on"
            ) from None
        return int(failure.exitcode)
    return 0


def _cause(failures: dict[int, Any]) -> tuple[int, Any]:
    """Why all ended, whichever was seen first: a process killed from outside, else one that failed by itself.

    SIGTERM is what the launcher ends the others with.
    """

    def weight(item: tuple[int, Any]) -> tuple[bool, bool]:
        code: int = item[1].exitcode
        return not (code < 0 and code != -signal.SIGTERM), code <= 0

    return min(failures.items(), key=weight)
