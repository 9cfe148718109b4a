"""Several processes on one machine or many, by torch.distributed.

torchrun, Slurm's srun or ``--devices`` start them; each finds its place in its environment. Gradients and losses go
over NCCL between CUDA devices. All else (decisions, file names, features) goes over gloo between CPUs, so that
agreeing never waits for a device, and may wait for hours while the leader scans a folder.
"""

import ctypes
import os
import platform
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from maectl import console
from maectl.errors import MaectlError, RunError, UsageError
from maectl.team import Place, Team, placed

__all__ = ["Ranks", "joined"]

PATIENCE = timedelta(days=7)  # a process that has died is noticed at once; this is for one that is at work
# what gloo and NCCL say when a peer has died
LOST = ("connection closed", "connection reset", "broken pipe", "remote process exited", "communicator was aborted")
TOLD = "maectl/told"  # a key of the store
PR_SET_PDEATHSIG = 1  # linux/prctl.h
Thing = TypeVar("Thing")


@contextmanager
def joined() -> Iterator[Team]:
    """The team this process is of. Raises RunError where its processes do not find one another.

    A failure is told once: by rank 0, where it fails as well, else by the process that fails. Where another one dies,
    this one ends without a word (exit 1): its launcher, or the process itself, has said why.
    """
    place = placed()
    if place.size == 1:
        yield Team()
        return
    _end_with_launcher()
    if torch.cuda.is_available():
        torch.cuda.set_device(_device(place))
    console.mute(place.rank > 0)
    store = _met(place)
    try:
        yield Ranks(place)
    except MaectlError as error:
        if place.rank == 0:
            store.set(TOLD, "")
        elif _told(store):
            raise SystemExit(_status(error)) from error
        raise
    except RuntimeError as error:
        if any(phrase in str(error).lower() for phrase in LOST):
            raise SystemExit(1) from error
        if isinstance(error, dist.DistError):
            raise RunError(f"the processes cannot work together: {str(error).strip().splitlines()[0]}") from error
        raise
    finally:
        console.mute(False)
        if dist.is_initialized():  # else dismissed
            dist.destroy_process_group()


def _met(place: Place) -> Any:
    """Join the others; the store that all of them see."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=PATIENCE))
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        if place.rank:
            raise SystemExit(1) from error
        raise RunError(
            f"the {place.size} processes of this command do not find one another (MASTER_ADDR, MASTER_PORT): {error}"
        ) from error
    return store


def _device(place: Place) -> int:
    """The CUDA device of a process. Raises UsageError where there are too few."""
    count = torch.cuda.device_count()
    if count == 1 and "RANK" not in os.environ:  # a Slurm task may see its own device alone
        return 0
    if place.local_size > count:
        raise UsageError(f"{place.local_size} processes on a machine with {count} CUDA devices: one a device")
    return place.local_rank


def _end_with_launcher() -> None:
    """Have Linux send SIGTERM when the process dies that started this one: else it would train on, unseen."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _told(store: Any) -> bool:
    """Whether rank 0 has said what went wrong; waits a moment for it."""
    try:
        store.wait([TOLD], timedelta(seconds=2))
    except RuntimeError:  # it has not, or the store is gone with it
        return False
    return True


class Ranks(Team):
    """Several processes; every method but ``share`` is called by all of them, in the same order."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, dist.ProcessGroup)  # every rank is of it
        self._control = group

    def lead(self, work: Callable[[], Thing]) -> Thing:
        """What ``work`` gives rank 0, pickled to the others; where it fails, they exit as it will, in silence."""
        result: Thing | None = None
        failure: BaseException | None = None
        if self.leads:
            try:
                result = work()
            except BaseException as error:  # whatever it is, the others must not wait for ever
                failure = error
        told: list[Any] = [(failure and _status(failure), result)]
        dist.broadcast_object_list(told, src=0, group=self._control, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if self.leads:
            return result  # type: ignore[return-value]
        status, found = told[0]
        if status is not None:
            raise SystemExit(status)
        return found  # type: ignore[no-any-return]

    def gathered(self, own: Thing) -> list[Thing]:
        """What each has, by rank, for all; pickled."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own, group=self._control)
        return found

    def collected(self, own: Thing) -> list[Thing]:
        """What each has, by rank, for rank 0; pickled."""
        found: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(own, found, dst=0, group=self._control)
        return found or []

    def most(self, own: int) -> int:
        """The largest number that any has, for all."""
        number = torch.tensor(own)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._control)
        return int(number)

    def dismissed(self) -> None:
        """The team ends: all but rank 0 exit 0 here."""
        dist.destroy_process_group()
        if not self.leads:
            raise SystemExit(0)

    def parallel(self, module: Any) -> Any:
        """The module in DistributedDataParallel, which begins with rank 0's weights on all."""
        assert isinstance(module, nn.Module)
        # of the patch projection's, which is used channel-last: one small copy a step
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def accumulating(self, module: Any) -> AbstractContextManager[Any]:
        """Gradients of a `parallel` module stay here."""
        return module.no_sync()  # type: ignore[no-any-return]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        dist.all_reduce(tensor)
        return tensor


def _status(failure: BaseException) -> int:
    """The exit status an error comes to."""
    return 2 if isinstance(failure, UsageError) else 130 if isinstance(failure, KeyboardInterrupt) else 1
