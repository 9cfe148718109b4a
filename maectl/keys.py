"""By what a store knows a source: a hash of what its header and its files are, so that no changed file is taken for
what it was.
"""

import hashlib
import os

import numpy as np
import numpy.typing as npt

from maectl.adapter import Source
from maectl.index import Index
from maectl.threads import in_order

__all__ = ["Keys", "source_keys"]

ENDS = 4096  # bytes hashed at each end of a file
Keys = tuple[npt.NDArray[np.void], list[tuple[int, str]]]
"""The 16-byte keys [N] of the rows of an index, and (row, reason) of those whose files cannot be opened."""


def source_keys(index: Index, rows: npt.NDArray[np.int64] | None = None, workers: int = 0) -> Keys:
    """Of some rows (None: all); keys of the others, and of those whose files cannot be opened any more, are zero."""
    rows = np.arange(len(index)) if rows is None else rows
    keys = np.zeros(len(index), "V16")
    gone: list[tuple[int, str]] = []
    chunks = np.array_split(rows, max(1, len(rows) // 1024))
    for chunk, found in in_order(lambda some: (some, [_key(index[int(row)]) for row in some]), chunks, workers):
        for row, key in zip(chunk, found, strict=True):
            if isinstance(key, str):
                gone.append((int(row), key))
            else:
                keys[row] = np.void(key)
    return keys, gone


def _key(source: Source) -> bytes | str:
    # the paths too: copied images that differ in the middle alone can have the same size, times and ends
    about = repr((source.files, source.key, source.shape, source.dtype))
    digest = hashlib.blake2b(about.encode("ascii", "backslashreplace"), digest_size=16)
    try:
        for path in source.files:
            digest.update(_ends(path))
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror or error}"
    return digest.digest()


def _ends(path: str) -> bytes:
    """Size, modification time, and the first and last 4 KiB of a file."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        head = file.read(ENDS)
        file.seek(max(len(head), about.st_size - ENDS))
        return b"%d %d " % (about.st_size, about.st_mtime_ns) + head + file.read(ENDS)
