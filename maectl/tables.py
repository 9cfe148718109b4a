"""Label tables: a CSV file's rows, and which sources each names."""

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from maectl.errors import UsageError

__all__ = ["matcher", "read"]


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file (comma, tab or semicolon apart): cells stripped, keys in lower case."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = next((mark for mark in ",\t;" if mark in head), ",")
        lines = [line for line in csv.reader(text.splitlines(), delimiter=delimiter) if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} cannot be read as a CSV file ({error}): save it as UTF-8 text") from error
    names = [name.strip().lower() for name in lines[0]] if lines else []
    if "label" not in names or not {"path", "filename"} & set(names):
        raise UsageError(
            f"{file} has the columns {', '.join(names) or '(none)'}: it needs path (or filename) and label, "
            "and may have split and group"
        )
    if len(lines) < 2:
        raise UsageError(f"{file} has a header and no row: write one row an image")
    blank = [""] * len(names)
    return [dict(zip(names, [cell.strip() for cell in line] + blank, strict=False)) for line in lines[1:]]


def matcher(paths: Sequence[str], folder: str) -> Callable[[str], list[int]]:
    """From a path in a CSV file to the rows of the sources it names; none where it is missing or ambiguous.

    It may be the relative path, an end of it (the file name alone, say), the same with folders above
    ``folder`` in front, or a folder (a series, a patient): that names all sources in it.
    """
    root = "/" + os.path.abspath(folder).replace(os.sep, "/").strip("/")
    exact: dict[str, list[int]] = defaultdict(list)  # several sources may share a file
    ends: dict[str, list[int]] = defaultdict(list)
    below: dict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        exact[path].append(row)
        parts = path.split("/")
        for i in range(1, len(parts)):
            ends["/".join(parts[i:])].append(row)
            below["/".join(parts[:i])].append(row)

    def match(name: str) -> list[int]:
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        for i in range(len(parts)):
            tail = "/".join(parts[i:])
            rows = exact.get(tail) or below.get(tail)
            if rows and (i == 0 or root.endswith("/" + "/".join(parts[:i]))):
                return rows
        rows = ends.get("/".join(parts), [])
        return rows if len({paths[row] for row in rows}) == 1 else []

    return match
