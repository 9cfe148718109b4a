"""Files and folders that appear whole under their name, and take the place of nothing but earlier ones of maectl."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maectl.errors import DataError
from maectl_medical.dicom.header import Damaged, parse, text

__all__ = ["DESCRIPTION", "put_in_place"]

DESCRIPTION = "maectl reconstruction"
"""SeriesDescription of all that maectl writes, by which it knows its own."""


@contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, which becomes ``path`` when all has gone well and vanishes otherwise.

    Raises `DataError` where ``path`` exists already and is neither a DICOM file that maectl has written nor a folder of
    such files alone.
    """
    _check_replaceable(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        _check_replaceable(path)  # once more: writing takes its time
        if path.is_dir():
            _exchange(beside, path)
        else:
            beside.replace(path)
    except BaseException:
        _remove(beside)
        raise


def _exchange(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which stays where the new one cannot come."""
    old = new.with_name(f"{new.name}.old")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        files = list(path.iterdir())
        own = bool(files) and all(_written_by_maectl(file) for file in files)
    else:
        own = _written_by_maectl(path)
    if not own:
        raise DataError(f"{path} exists already, and not as maectl wrote it: remove it, or write elsewhere")


def _written_by_maectl(path: Path) -> bool:
    """Whether a path is a DICOM file, and no link, with our description."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return text(parse(file).data, "SeriesDescription") == DESCRIPTION
    except Damaged:
        return False
