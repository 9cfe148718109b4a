"""Processes that share one command's work: who does which part, and how they agree.

`Team` is a process alone, which nearly every command is; `distributed.Ranks` are several. Work is written once, for a
team, and neither asks nor cares how many there are.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

from maectl.errors import UsageError
from maectl.stream import share

__all__ = ["Place", "Team", "placed"]

Thing = TypeVar("Thing")

# how a launcher tells a process its rank, the number of all, and the same of this machine alone
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


class Place(NamedTuple):
    """Which of the processes of a command this is, and which of those on this machine; ranks count from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def placed(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place, as torchrun or a Slurm step (srun) tells it; alone where neither started it.

    Raises UsageError where what they tell is no place.
    """
    for names in (TORCHRUN, SLURM):
        if all(name in environment for name in names[:2]):
            told = [environment.get(name, default) for name, default in zip(names, "0101", strict=True)]
            try:
                # Slurm writes 4(x2),3 for two machines of four processes and one of three; a step is mostly even
                place = Place(*(int(each.split("(")[0].split(",")[0]) for each in told))
            except ValueError:
                place = Place(0, 0)
            if not 0 <= place.rank < place.size or place.local_rank < 0:
                about = ", ".join(f"{name}={each}" for name, each in zip(names, told, strict=True))
                raise UsageError(f"{about} in the environment is no place among processes: unset them, or use torchrun")
            return place
    return Place()


class Team:
    """One process alone. Its ``place`` says which process this is; rank 0 leads: it alone writes and speaks."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.place.size

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.place.rank == 0

    def share(self, count: int) -> slice:
        """This process's contiguous share of ``count`` things, remainders to the first ranks."""
        return share(count, self.place.rank, self.place.size)

    def lead(self, work: Callable[[], Thing]) -> Thing:
        """What ``work`` gives the leader, for all; where it fails there, all end and the leader alone says why."""
        return work()

    def gathered(self, own: Thing) -> list[Thing]:
        """What each has, by rank, for all."""
        return [own]

    def collected(self, own: Thing) -> list[Thing]:
        """What each has, by rank, for the leader; the others get an empty list."""
        return [own]

    def most(self, own: int) -> int:
        """The largest number that any has, for all."""
        return own

    def dismissed(self) -> None:
        """From here on the leader works alone: the others end here, well."""

    # ---- tensors and modules, of which this floor knows nothing ----------------------------------------------

    def parallel(self, module: Thing) -> Thing:
        """A module whose gradients, after backward, are the mean of all processes'."""
        return module

    def accumulating(self, module: Any) -> AbstractContextManager[Any]:
        """A context in which a `parallel` module's gradients add up here, not yet exchanged."""
        return nullcontext()

    def summed(self, tensor: Any) -> Any:
        """The tensor with the sum over all processes, in place, without waiting for the device."""
        return tensor
