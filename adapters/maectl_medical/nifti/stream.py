"""Bytes of a NIfTI file's content in order, and how to go on in a compressed one without its beginning."""

import os
import threading
import zlib
from collections import OrderedDict
from typing import Any, BinaryIO, Protocol

from maectl.errors import Unreadable

__all__ = ["Packed", "Plain", "Stream"]

_CHUNK = 1 << 16  # bytes of a gzip stream taken at once
_FILES, _PLACES = 4, 8  # marks kept: of how many files, how many each

Identity = tuple[int, int, int, int]
"""Device, inode, size and time of a file."""

Mark = tuple[int, int, Any, bytes, bool]
"""Position in the content, offset in the file, decompressor there, bytes it has not taken, whether it has ended."""


def _identity(file: BinaryIO) -> Identity:
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


class _Marks:
    """Places in the files read last; shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Identity, list[Mark]] = OrderedDict()

    def add(self, file: Identity, mark: Mark) -> None:
        """Keep a place, and forget the oldest."""
        with self._lock:
            self._files[file] = [*self._files.pop(file, []), mark][-_PLACES:]
            while len(self._files) > _FILES:
                self._files.popitem(last=False)

    def before(self, file: Identity, position: int) -> Mark | None:
        """The last place at or before a position, with a decompressor of its own."""
        with self._lock:
            passed = [mark for mark in self._files.get(file, []) if mark[0] <= position]
            if not passed:
                return None
            at, offset, inflate, waiting, ended = max(passed, key=lambda mark: mark[0])
            return at, offset, inflate.copy(), waiting, ended


_MARKS = _Marks()


class Stream(Protocol):
    """Bytes of a file's content, asked for from its beginning to its end."""

    position: int

    def read(self, start: int, count: int) -> bytes | bytearray:
        """``count`` bytes from ``start``; raises `Unreadable` where they end before."""

    def finish(self) -> None:
        """Check what follows, where the content has a checksum."""


class Plain:
    """The content of an uncompressed file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, 0

    def read(self, start: int, count: int) -> bytes:
        """As `Stream`."""
        # not a memory map: that ends the process where another shortens the file
        self.file.seek(start)
        data = self.file.read(count)
        if len(data) < count:
            raise Unreadable(f"truncated: it ends {count - len(data):,} bytes before the end of a plane")
        self.position = start + count
        return data

    def finish(self) -> None:
        """Nothing: there is no checksum."""


class Packed:
    """The content of a gzip file, which may have several members; zeros or other bytes may follow them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, 0
        self.inflate, self.waiting, self.ended = zlib.decompressobj(31), b"", False

    def resume(self, start: int) -> None:
        """Go to the last place marked at or before a position, where there is one."""
        mark = _MARKS.before(_identity(self.file), start)
        if mark is not None:
            self.position, offset, self.inflate, self.waiting, self.ended = mark
            self.file.seek(offset)

    def mark(self) -> None:
        """Remember this place, for the next to come; it takes the 40 KB of a decompressor's state."""
        state = (self.position, self.file.tell(), self.inflate.copy(), self.waiting, self.ended)
        _MARKS.add(_identity(self.file), state)

    def read(self, start: int, count: int) -> bytearray:
        """As `Stream`; only forward."""
        while self.position < start:
            self._next(min(start - self.position, 1 << 20))
        data = bytearray(count)
        while self.position < start + count:
            at = self.position - start
            piece = self._next(start + count - self.position)
            data[at : at + len(piece)] = piece
        return data

    def finish(self) -> None:
        """Read on to the checksum of the stream; raises `zlib.error` where it is another."""
        while not self.ended:
            self._more(1 << 20)

    def _next(self, most: int) -> bytes:
        piece = b"" if self.ended else self._more(most)
        if not piece and self.ended:
            raise Unreadable(f"truncated: its content ends after {self.position:,} bytes")
        self.position += len(piece)
        return piece

    def _more(self, most: int) -> bytes:
        """Up to ``most`` bytes of content, perhaps none yet."""
        data = self.waiting or self.file.read(_CHUNK)
        if not data:
            raise Unreadable("truncated: its gzip stream has no end")
        piece = self.inflate.decompress(data, most)
        self.waiting = self.inflate.unconsumed_tail
        if self.inflate.eof:
            self.waiting = self.inflate.unused_data
            if len(self.waiting) < 2:
                self.waiting += self.file.read(_CHUNK)
            self.ended = not self.waiting.startswith(b"\x1f\x8b")
            self.inflate = zlib.decompressobj(31)
        return piece
