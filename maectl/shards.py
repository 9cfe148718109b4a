"""The files of a store: shards of pixels, each with an Arrow table of what lies where.

A shard is appended to, and its table replaced, every half a minute: a killed build loses no more. What lies behind
the last entry of a table is nothing. Pixels lie channel-last, so that a crop is read in long runs; validity, where
not all is valid, as one byte a pixel behind them.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maectl.adapter import Adapter, Pixels
from maectl.errors import DataError, Unreadable
from maectl.forms import Form

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "NOTHING", "PLACE", "VERSION", "Writer", "about", "folder_of", "held", "shards", "sweep"]

VERSION = 4
LOCK = "building.lock"
NOTHING = "no valid pixel (all nodata, transparent or not finite)"
SHARD = 1 << 32  # bytes after which a new shard begins; every one is a file that a reader holds open
EVERY = 30.0  # seconds after which what is written is made an entry
SPOOLED = 1 << 26  # bytes of validity kept in memory while a source is written
STALE = 86_400  # seconds after which an unfinished shard is taken for a killed build's
SCHEMA = pa.schema(
    [
        ("key", pa.binary(16)),
        ("offset", pa.int64()),
        ("valid_offset", pa.int64()),  # -1: all valid
        ("jpeg", pa.int32()),  # bytes; 0: pixels
        ("height", pa.int32()),  # 0: the source's own
        ("width", pa.int32()),
    ]
)
PLACE = np.dtype(
    [("shard", "i4"), ("offset", "i8"), ("valid_offset", "i8"), ("jpeg", "i4"), ("height", "i4"), ("width", "i4")]
)
"""Where an entry lies; ``shard`` -1: there is none."""


def folder_of(store: Path, adapter: Adapter, form: Form) -> Path:
    """Where a store keeps what an adapter with these options decodes, in one form."""
    options = f"{VERSION} {adapter.name} {form} {adapter.model_dump_json()}"
    return store / f"{adapter.name}-{form}-{hashlib.blake2b(options.encode(), digest_size=6).hexdigest()}"


def shards(folder: Path) -> Iterator[tuple[npt.NDArray[np.bytes_], npt.NDArray[Any], npt.NDArray[np.uint8]]]:
    """Keys [N], places [N] (of shard 0) and the mapped bytes of every shard that is whole.

    Raises DataError where one cannot be opened though it is there: its sources would be decoded again.
    """
    for path in sorted(folder.glob("shard-*.arrow")):
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all().combine_chunks()
            # copy-on-write, for torch warns of read-only arrays; a plain array, for slices of a memmap cost more
            pixels = np.asarray(np.memmap(path.with_suffix(".pixels"), np.uint8, "c"))
            places = np.zeros(len(table), PLACE)
            for name in SCHEMA.names[1:]:
                places[name] = np.asarray(table.column(name))
            keys = np.frombuffer(table.column("key").combine_chunks().buffers()[1], "S16", len(table))
            end = json.loads(table.schema.metadata[b"maectl"])["end"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise DataError(f"the store's {path} cannot be opened: {error.strerror}") from error
            continue  # half of it deleted, or lost with the power: its sources are missing
        if len(places) and places["offset"].min() >= 0 and end <= len(pixels):
            yield keys.copy(), places, pixels


def about(path: Path) -> dict[str, Any]:
    """What the table of a shard says of its folder: version, adapter, form. Empty where it cannot be read."""
    try:
        with pa.memory_map(str(path)) as file:
            told: dict[str, Any] = json.loads(pa.ipc.open_file(file).schema.metadata[b"maectl"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return told


class Writer:
    """Appends entries to shards of its own; `commit` makes entries of what it has written."""

    def __init__(self, folder: Path, adapter: Adapter, form: Form) -> None:
        self.folder = folder
        self._told = {"version": VERSION, "adapter": adapter.name, "form": str(form)}
        self._begin()

    def _begin(self) -> None:
        self._path = self.folder / f"shard-{uuid.uuid4().hex}.tmp"
        self._file = self._path.open("wb")
        if fcntl is not None:
            with suppress(OSError):  # of a file system that has no locks
                fcntl.flock(self._file, fcntl.LOCK_SH)  # `held`: the system lets go of it when the process dies
        self._entries: list[tuple[bytes, int, int, int, int, int]] = []
        self._end, self._committed, self._when = 0, 0, time.monotonic()

    def add(self, key: bytes, parts: Iterable[Pixels], extent: tuple[int, int] = (0, 0)) -> str | None:
        """Append pixels, in one part or in bands of rows; why they cannot be read, or None.

        ``extent`` is the height and width of an entry that has another size than its source.
        """
        offset = self._aligned()
        valid_offset, ones, useful = -1, 0, False
        with tempfile.SpooledTemporaryFile(SPOOLED, dir=str(self.folder)) as validity:  # it comes behind the values
            try:
                for pixels in parts:
                    self._file.write(np.ascontiguousarray(np.moveaxis(pixels.values, 0, -1)).data)
                    useful = useful or pixels.valid is None or bool(pixels.valid.any())
                    if pixels.valid is None:
                        ones += pixels.values[0].size
                        continue
                    validity.write(b"\1" * ones + np.ascontiguousarray(pixels.valid).tobytes())
                    ones = 0
                if not useful:
                    raise Unreadable(NOTHING)
            except Unreadable as error:
                self._file.seek(offset)
                self._file.truncate()
                return str(error)
            if validity.tell():
                validity.write(b"\1" * ones)
                validity.seek(0)
                valid_offset = self._aligned()
                shutil.copyfileobj(validity, self._file, 1 << 20)
        self._added(key, offset, valid_offset, 0, extent)
        return None

    def add_jpeg(self, key: bytes, data: bytes, extent: tuple[int, int]) -> None:
        """Append an image that is kept as a JPEG."""
        offset = self._aligned()
        self._file.write(data)
        self._added(key, offset, -1, len(data), extent)

    def _added(self, key: bytes, offset: int, valid_offset: int, jpeg: int, extent: tuple[int, int]) -> None:
        self._end = self._file.tell()  # first: an interrupt in between must not leave an entry beyond the end
        self._entries.append((key, offset, valid_offset, jpeg, *extent))
        if self._end >= SHARD:
            self.finish()
            self._begin()
        elif time.monotonic() - self._when >= EVERY:
            self.commit()

    def _aligned(self) -> int:
        """Where the next entry begins, for any dtype."""
        self._file.write(b"\0" * (-self._file.tell() % 16))
        return self._file.tell()

    def commit(self) -> None:
        """Make entries of all that was added, on the disk."""
        self._when = time.monotonic()
        if self._committed == len(self._entries):
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._path.suffix == ".tmp":  # pixels first: the table is what makes them exist
            self._path = self._path.rename(self._path.with_suffix(".pixels"))
        columns = [
            pa.array(column, kind.type) for column, kind in zip(zip(*self._entries, strict=True), SCHEMA, strict=True)
        ]
        sink = pa.BufferOutputStream()
        schema = SCHEMA.with_metadata({"maectl": json.dumps({**self._told, "end": self._end})})
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        temporary = self._path.with_suffix(".table")
        with temporary.open("wb") as file:
            file.write(sink.getvalue())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._path.with_suffix(".arrow"))
        self._committed = len(self._entries)

    def finish(self) -> None:
        """Commit, and close the shard; of what has not become an entry nothing is left."""
        try:
            if not self._file.closed:
                self._file.truncate(self._end)
                self.commit()
        finally:
            self._file.close()
            if not self._committed:
                self._path.unlink(missing_ok=True)
                self._path.with_suffix(".table").unlink(missing_ok=True)


def held(path: Path) -> bool:
    """Whether a process is writing a shard. Raises FileNotFoundError."""
    if fcntl is None:
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system that has no locks
            return False
    return False


def sweep(folder: Path, older: float = STALE) -> list[Path]:
    """Delete what builds that were killed have left: files of shards that have no table, of yesterday and before.

    ``older`` is how long, in seconds, nothing was written to them. Returns what was deleted.
    """
    swept = []
    for path in folder.glob("shard-*"):
        left = path.suffix in (".tmp", ".table") or not path.with_suffix(".arrow").exists()
        try:
            if left and time.time() - path.stat().st_mtime >= older and not held(path):
                path.unlink()
                swept.append(path)
        except FileNotFoundError:  # made a shard of, or swept by another, meanwhile
            continue
    return swept
