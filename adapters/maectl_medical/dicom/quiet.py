"""pydicom without its warnings and log lines, and decoders without what they print."""

import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hush", "hush_stderr"]

_QUIET = ("ignore", None, Warning, re.compile(r"pydicom\."), 0)
_STDERR = threading.Lock()

for _name in ("pydicom", "openjpeg", "_openjpeg", "pylibjpeg", "rle"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
if hasattr(os, "register_at_fork"):  # no fork meanwhile: the child would keep the lock, and write nowhere
    os.register_at_fork(before=_STDERR.acquire, after_in_parent=_STDERR.release, after_in_child=_STDERR.release)


def hush() -> None:
    """Keep pydicom's warnings of odd headers, which may quote them, off the terminal.

    `catch_warnings` is not safe among threads, so one filter on pydicom's own modules is put in place, and
    again where someone has reset the filters.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)


@contextmanager
def hush_stderr() -> Iterator[None]:
    """Drop what C code prints on the terminal meanwhile; one thread at a time.

    The libjpeg inside GDCM has no switch for its messages, and what is written in Rust tells of its panics. Both
    hold the interpreter lock, so other Python code runs only before and after the call and loses next to nothing.
    """
    with _STDERR:
        try:
            saved = os.dup(2)
        except OSError:  # a process without a terminal or a log
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
