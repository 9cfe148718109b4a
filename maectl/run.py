"""The run folder: who may write there, what was asked, what happened.

run.json is a run's identity: what was resolved once (steps, batch, micro-batch, precision) and is never decided again
on ``--resume``. log.jsonl holds a line an optimizer step, and a line a measurement on the held-out images.
"""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from maectl import __version__
from maectl.errors import RunError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Log", "clear", "create", "lines", "locked", "provenance", "read", "refuse", "write", "write_json"]


def refuse(run: Path, *, overwrite: bool) -> None:
    """Raises UsageError for a folder in use, naming ``--resume`` and ``--overwrite``; RunError for a run under way."""
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        return
    ours = (run / "run.json").is_file()
    if not ours:
        raise UsageError(f"{run} is not empty and holds no run of maectl: choose another --out")
    if not overwrite:
        raise UsageError(f"{run} holds a run: --resume goes on with it, --overwrite replaces it")
    with locked(run):  # RunError where another process is training it
        pass


def clear(run: Path) -> None:
    """Delete the run that was there; `refuse` has seen to it that it is one of ours.

    Raises RunError where another process is training it: it may have begun since.
    """
    if not (run / "run.json").is_file():
        return
    with locked(run):
        for entry in sorted(run.iterdir(), key=lambda entry: entry.name == "run.json"):  # last: else no longer ours
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def create(run: Path, about: dict[str, Any]) -> None:
    """Make the folder with its run.json."""
    (run / "samples").mkdir(parents=True, exist_ok=True)
    write(run, about)


def write(run: Path, about: dict[str, Any]) -> None:
    """Replace run.json, at once or not at all."""
    write_json(run / "run.json", about)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file at once or not at all."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def read(run: Path) -> dict[str, Any]:
    """run.json. Raises RunError where there is none or it cannot be read."""
    try:
        about: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{run} holds no run of maectl (run.json is missing)") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{run}/run.json cannot be read: {error}") from None
    return about


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from writing into a run; a killed process leaves no lock behind. Raises RunError."""
    if fcntl is None:  # Windows: no such lock
        yield
        return
    handle = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(f"{run} is being written by another process: wait for it, or stop it") from None
    finally:
        os.close(handle)


def provenance(device: torch.device) -> dict[str, str]:
    """With what a run was made: versions and the device, nothing personal."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "maectl": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
    }


class Log:
    """log.jsonl, appended to; opened for a resumed run it is first cut back to the checkpoint's step."""

    def __init__(self, run: Path, step: int = 0) -> None:
        self.path = run / "log.jsonl"
        if self.path.exists():
            kept = [json.dumps(line) for line in lines(run) if line["step"] <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(temporary, self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, **values: Any) -> None:
        """One line; ``step`` counts the optimizer steps done."""
        self._file.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        """To the disk."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def lines(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's log; a last line cut short by a kill is passed over."""
    with (run / "log.jsonl").open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
