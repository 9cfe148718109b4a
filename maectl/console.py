"""What a user watches: plain lines on stderr, and live bars where stderr is a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

__all__ = ["EVERY", "Meter", "clock", "mute", "say", "task", "warn"]

EVERY = 5.0  # seconds between lines where there is no terminal
Advance = Callable[[int, int | None], None]
_muted = False


def mute(muted: bool) -> None:
    """Whether nothing is shown: of several processes that share a command's work, one speaks."""
    global _muted
    _muted = muted


def say(text: str) -> None:
    """One line for the user."""
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """One line the user should not miss."""
    _console().print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def task(label: str) -> Iterator[Advance]:
    """Progress of a piece of work: yields ``advance(done, total)``, total None where unknown."""
    if _console().is_terminal and not _muted:
        columns: tuple[ProgressColumn, ...] = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}{task.fields[of]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=_console(), transient=True) as bars:
            bar = bars.add_task(label, total=None, of="")

            def advance(done: int, total: int | None) -> None:
                bars.update(bar, completed=done, total=total, of="" if total is None else f"/{total:,}")

            yield advance
        return
    last = time.monotonic()

    def line(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f"{label}: {done:,}" + ("" if total is None else f" of {total:,}"))

    yield line


class Meter:
    """The progress of training: one live line on a terminal, else a plain one every few seconds."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._last = time.monotonic()
        self._bars: Progress | None = None
        if _console().is_terminal and not _muted:
            # one column, so that a narrow terminal wraps the line instead of cutting its words short
            self._bars = Progress(
                TextColumn("{task.description}", table_column=Column()), console=_console(), transient=True
            )
            self._bars.start()
            self._bar = self._bars.add_task("")

    def show(self, step: int, state: str) -> None:
        """The state after ``step`` steps."""
        line = f"step {step:,}/{self.steps:,}  {state}"
        if self._bars is not None:
            self._bars.update(self._bar, description=line)
        elif time.monotonic() - self._last >= EVERY or step == self.steps:
            self._last = time.monotonic()
            say(line)

    def close(self) -> None:
        """Take the live line away."""
        if self._bars is not None:
            self._bars.stop()


def _console() -> Console:
    # made anew each time: tests and callers may replace sys.stderr; rich itself costs nothing here
    return Console(file=sys.stderr, quiet=_muted)
