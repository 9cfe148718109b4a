"""Adapters by name: found through the entry-point group ``maectl.adapters``, ours and yours alike."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path

from maectl.adapter import Adapter, Files
from maectl.errors import DataError, UsageError

__all__ = ["Broken", "Choice", "choose", "discover", "installed", "load"]

GROUP = "maectl.adapters"
SNIFFED = 500  # files looked at to choose an adapter
WALKED = 50_000  # files the sniffed ones are drawn from: a huge folder is not walked for a hint
RIVAL = 0.05  # share of the files above which another adapter's claim is told


@dataclass(frozen=True)
class Broken:
    """An adapter that cannot be used, and why."""

    name: str
    distribution: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The adapter picked for a folder and the share [0, 1] of the sniffed files each adapter claims."""

    name: str
    shares: dict[str, float]

    @property
    def rivals(self) -> list[str]:
        """Other adapters that claim more than 5 % of the files."""
        return [name for name, share in self.shares.items() if name != self.name and share > RIVAL]


def discover() -> tuple[dict[str, type[Adapter]], list[Broken]]:
    """Every adapter that loads, by name, and every one that does not.

    Raises UsageError where two distributions register one name.
    """
    found: dict[str, type[Adapter]] = {}
    broken: list[Broken] = []
    owners: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        owner = _distribution(point)
        if owners.setdefault(point.name, owner) != owner:
            raise UsageError(
                f"two packages register the adapter {point.name!r}: {owners[point.name]} and {owner}. "
                "Uninstall one of them"
            )
        try:
            adapter = point.load()
        except (Exception, SystemExit) as error:  # any third-party import may fail in any way: shown, never fatal
            broken.append(Broken(point.name, owner, f"{type(error).__name__}: {error}"))
            continue
        if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
            broken.append(Broken(point.name, owner, f"{point.value} is not a maectl.adapter.Adapter"))
            continue
        if missing := sorted(adapter.__abstractmethods__):
            broken.append(Broken(point.name, owner, f"{point.value} lacks {', '.join(missing)}"))
            continue
        if getattr(adapter, "name", None) != point.name:  # checkpoints name their adapter
            broken.append(Broken(point.name, owner, f"{point.value} must have name = {point.name!r}"))
            continue
        found[point.name] = adapter
    return found, broken


def installed() -> dict[str, type[Adapter]]:
    """Every adapter that loads, by name."""
    return discover()[0]


def load(name: str) -> type[Adapter]:
    """The adapter of that name. Raises UsageError naming those there are, or why it is broken."""
    found, broken = discover()
    if name in found:
        return found[name]
    for adapter in broken:
        if adapter.name == name:
            raise UsageError(f"the adapter {name!r} of {adapter.distribution} is broken: {adapter.reason}")
    raise UsageError(f"there is no adapter {name!r}: installed are {', '.join(found) or 'none'}")


def choose(folders: Sequence[str | Path], seed: int = 0) -> Choice:
    """The adapter that claims most of up to 500 files, a sample the seed fixes.

    A claim by content (a georeferenced TIFF) outweighs one by format. Raises DataError where no adapter
    claims any file.
    """
    candidates = [Path(files.folder, path) for files in map(Files, folders) for path in islice(files, WALKED)]
    sniffed = random.Random(seed).sample(candidates, min(SNIFFED, len(candidates)))
    adapters = installed()
    claimed = dict.fromkeys(adapters, 0)
    for path in sniffed:
        head = _head(path)
        claims = {name: adapter.claim(str(path), head) for name, adapter in adapters.items()}
        best = max(claims, key=lambda name: claims[name], default=None)
        if best is not None and claims[best]:
            claimed[best] += 1
    if not any(claimed.values()):
        raise DataError(
            f"no image in {', '.join(map(str, folders))}: {len(candidates)} files seen, none of them of the "
            f"formats of {', '.join(adapters)} ('maectl adapters' lists the formats)"
        )
    shares = {name: count / len(sniffed) for name, count in claimed.items()}
    return Choice(max(shares, key=lambda name: shares[name]), shares)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:  # unreadable: the scan says so; here it only cannot vote
        return b""
