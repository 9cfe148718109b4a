"""GDAL as this adapter uses it: rasterio, the settings of every call, and rasters held open for reading.

An open raster belongs to one thread of one process: GDAL's datasets may not be used by two threads at once, and a
forked child shares the position in an open file with its parent.
"""

import functools
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from maectl.errors import Unreadable

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

__all__ = ["DRIVERS", "Failure", "environment", "failures", "fresh", "gdal", "opened", "reading", "told"]

DRIVERS = ["GTiff", "VRT", "JP2OpenJPEG"]
"""The only drivers GDAL may open a file with."""

CACHE = 128_000_000  # bytes of decoded blocks that GDAL keeps, a process
OPEN = 16  # rasters a thread holds open
_SETTINGS: dict[str, Any] = {
    # rasterio hands this one to GDALSetCacheMax64, so it is in bytes and holds also after GDAL's first read, when
    # the configuration option of the same name is no longer looked at (rasterio #875, #2336).
    "GDAL_CACHEMAX": CACHE,
    "GDAL_NUM_THREADS": 1,  # the core's workers are the parallelism
    # Look for sidecar files (.msk, .ovr, .aux.xml) by name: listing a folder of 100,000 files a file takes minutes.
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_TIFF_INTERNAL_MASK": "YES",
    "GTIFF_IMPLICIT_JPEG_OVR": "NO",
}

Failure = tuple[type[Exception], ...]
Stamp = tuple[int, int, int]


@functools.cache
def gdal() -> ModuleType:
    """rasterio, imported once; its warning that a raster lies nowhere on Earth, which is no defect here, is off."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    made: ModuleType = rasterio
    return made


@functools.cache
def failures() -> Failure:
    """What GDAL may raise where a file is damaged, gone, or too large for the memory."""
    from rasterio._err import CPLE_BaseError

    return (gdal().errors.RasterioError, CPLE_BaseError, OSError, MemoryError)


def environment() -> AbstractContextManager[Any]:
    """A `rasterio.Env` with our settings: every call of GDAL happens inside one, in every thread.

    Settings are the calling thread's and end with the context; GDAL's messages go to `logging`. The size of the
    block cache alone is the process's: each entry sets it and frees what is above.
    """
    found: AbstractContextManager[Any] = gdal().Env(**_SETTINGS)
    return found


def told(error: BaseException, path: str) -> str:
    """What GDAL said at first, in one line and without the folders of the machine."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(getattr(error, "errmsg", None) or error)
    folder = os.path.dirname(path)
    for known in (os.path.abspath(folder), folder):
        text = text.replace(known + os.sep, "") if known else text
    text = re.sub(r"(?<![\w./])/(?:[^/\s'\":]+/)+", "", text)
    return " ".join(text.split()).rstrip(".")[:300] or type(error).__name__


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Inside `environment`; what GDAL raises becomes `Unreadable` with a reason of one line.

    A raster that failed is not held open, so that the next read looks at all its files again.
    """
    try:
        with environment():
            yield
    except failures() as error:
        held = _held.rasters.pop(os.path.abspath(path), None)
        if held is not None:
            held[1].close()
        raise Unreadable(f"damaged or not readable by GDAL: {told(error, path)}") from error


def fresh(path: str) -> "DatasetReader":
    """A raster newly opened for reading with one of `DRIVERS`; the caller closes it. Raises what `failures` names."""
    made: Callable[..., DatasetReader] = gdal().io.DatasetReader
    # The full path: so no name can be taken for one of GDAL's own (GTIFF_DIR:..., https://...). In a forked child
    # spelled as its parent does not: GDAL keeps the sources of a VRT open a process, by name, where the VRT calls
    # them unshared, and the child would read through its parent's files.
    folder, name = os.path.split(os.path.abspath(path))
    return made(os.path.join(folder, *["."] * len(_inherited), name), driver=DRIVERS, sharing=False)


class _Held(threading.local):
    """The rasters a thread holds open, the least lately used first."""

    def __init__(self) -> None:
        self.rasters: OrderedDict[str, tuple[dict[str, Stamp | None], DatasetReader]] = OrderedDict()


_held = _Held()
_inherited: list[Any] = []  # a process's forefathers' open rasters, kept so that nothing closes them here


def _forked() -> None:
    """Leave a parent's open rasters alone, in its child."""
    _inherited.append(_held.rasters)
    _held.rasters = OrderedDict()


os.register_at_fork(after_in_child=_forked)


def opened(path: str) -> "DatasetReader":
    """A raster held open by this thread, for reading only and not to be closed; call it inside `environment`.

    One that has changed since, or whose sidecar files or (VRT) sources have, is opened anew. Raises `Unreadable`.
    """
    rasters = _held.rasters
    path = os.path.abspath(path)
    if path in rasters:
        stamps, raster = rasters[path]
        if all(_stamp(each) == stamp for each, stamp in stamps.items()):
            rasters.move_to_end(path)
            return raster
        rasters.pop(path)[1].close()
    stamp = _stamp(path)
    if stamp is None:
        raise Unreadable("it is gone, or may not be read, since the scan: scan again")
    try:
        raster = fresh(path)
        stamps = _stamps(raster, set())
    except failures() as error:
        raise Unreadable(f"damaged or not readable by GDAL: {told(error, path)}") from error
    rasters[path] = (stamps | {path: stamp}, raster)
    while len(rasters) > OPEN:
        rasters.popitem(last=False)[1][1].close()
    return raster


def _stamps(raster: "DatasetReader", seen: set[str]) -> dict[str, Stamp | None]:
    """Stamps of a raster's files, of which the sources of a VRT are opened first.

    GDAL tells of a source that cannot be opened once a thread, while any other VRT is open; then it reads zeros.
    """
    stamps = {each: _stamp(each) for each in raster.files}
    if raster.driver == "VRT":
        for each in raster.files[1:]:
            if each not in seen and not each.endswith(".aux.xml"):
                seen.add(each)
                with fresh(each) as source:
                    stamps |= _stamps(source, seen)
    return stamps


def _stamp(path: str) -> Stamp | None:
    """What changes when a file does: its time, size and number; None where there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino
