"""What folders or a label table say of each source: its labels, and perhaps its part of the split and its group.

Every message is one line; what is left out is counted and said in `Annotations.notes`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maectl import tables
from maectl.errors import UsageError

__all__ = ["FILE", "WHOLE", "Annotations", "Files", "from_csv", "from_folders"]

WHOLE = -1  # in place of a slice
FILE = 1 << 32  # added to the number of a file, for the slice in it
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
VALIDATION = {"val", "valid", "validation", "dev"}
Files = Callable[[], dict[str, tuple[int, int]]]  # every member file: (row, number)


@dataclass
class Annotations:
    """What a CSV file or the folders say of each labelled source; the lists run alike."""

    where: str
    several: bool = False  # whether a source may carry several labels
    split: str = ""  # how the split was given; "" asks for a seeded one
    rows: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    labels: list[frozenset[str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # "train" or "test" where the split is given
    groups: list[str] = field(default_factory=list)  # "" keeps the index's group
    notes: list[str] = field(default_factory=list)

    def add(self, row: int, labels: frozenset[str], part: str = "", group: str = "", place: int = WHOLE) -> None:
        """One labelled source, or one slice of it."""
        self.rows.append(row)
        self.places.append(place)
        self.labels.append(labels)
        self.parts.append(part)
        self.groups.append(group)


def from_folders(paths: Sequence[str], folder: str) -> Annotations:
    """What ``train/<class>/...`` and ``test/<class>/...``, or ``<class>/...``, say of the sources at ``paths``.

    Raises UsageError where a part of the split has a name that is not understood.
    """
    found = Annotations(folder)
    tops = {path.split("/")[0] for path in paths if "/" in path}
    given = {PARTS[top.lower()] for top in tops if top.lower() in PARTS}
    if len(given) == 2:
        found.split = "the folders train/ and test/"
    elif given and {top.lower() for top in tops} & VALIDATION:
        raise UsageError(
            f"{folder}: {', '.join(sorted(tops))} and no {({'train', 'test'} - given).pop()}: "
            "rename a folder, or pass --labels FILE.csv"
        )
    left_out: Counter[str] = Counter()
    for row, path in enumerate(paths):
        above = path.split("/")[:-1]
        part = PARTS.get(above[0].lower(), "") if above and found.split else ""
        if above and found.split and not part:
            left_out[f"in {above[0]}/"] += 1
        elif len(above) < (2 if part else 1):
            left_out["in no class folder"] += 1
        else:
            found.add(row, frozenset([above[1 if part else 0]]), part)
    found.notes += _told(left_out)
    return found


def from_csv(file: Path, paths: Sequence[str], folder: str, files: Files) -> Annotations:
    """What a table says of the sources at ``paths`` below ``folder``, or of slices of them.

    Raises UsageError for a table that cannot be read, names what is not there, or contradicts itself.
    """
    table = tables.read(file)
    column = "path" if "path" in table[0] else "filename"
    found = Annotations(str(file), several=any(";" in line["label"] for line in table))
    found.split = f"the split column of {file.name}" if any(line.get("split") for line in table) else ""
    match = _slices(table, column, tables.matcher(paths, folder), folder, files)
    said: dict[tuple[int, int], tuple[frozenset[str], str]] = {}
    missing, left_out = [], Counter[str]()
    for line in table:
        labels = frozenset(part.strip() for part in line["label"].split(";")) - {""}
        part = line.get("split", "").lower()
        rows = match(line)
        if not rows:
            missing.append(line[column])
        for row, place in rows:
            if (row, place) in said:
                _same(found.where, line[column], said[row, place], (labels, part))
            elif found.split and part not in PARTS:
                left_out[f"split {part!r}"] += 1
            elif not labels and not found.several:
                left_out["without a label"] += 1
            else:
                found.add(row, labels, PARTS.get(part, ""), line.get("group", ""), place)
            said[row, place] = labels, part
    if missing:
        raise UsageError(
            f"{file}: {len(missing)} of {len(table)} rows name no image under {folder}, or several "
            f"({', '.join(missing[:3])}): correct the {column} column, or leave these rows out"
        )
    left_out[f"without a row in {file.name}"] = len(paths) - len({row for row, _ in said})
    found.notes += _told(left_out)
    return found


def _slices(
    table: Sequence[dict[str, str]],
    column: str,
    match: Callable[[str], list[int]],
    folder: str,
    files: Files,
) -> Callable[[dict[str, str]], list[tuple[int, int]]]:
    """From a line of a table to the sources, or slices, it labels: (row, place) each.

    A slice is addressed by its number in a column ``index``, or by its own file.
    """
    if any(line.get("index") for line in table):
        for line in table:
            if not line.get("index", "").isdecimal():
                raise UsageError(f"the index of {line[column]} is {line.get('index')!r}: give every row a slice number")
        return lambda line: [(row, int(line["index"])) for row in match(line[column])]
    if all(match(line[column]) for line in table):
        return lambda line: [(row, WHOLE) for row in match(line[column])]
    members = files()  # a table of slices names files that are no source of their own
    names = list(members)
    single = tables.matcher(names, folder)

    def sliced(line: dict[str, str]) -> list[tuple[int, int]]:
        found = single(line[column])
        if len(found) == 1:  # one file; several are a folder's
            row, number = members[names[found[0]]]
            return [(row, FILE + number)]
        return [(row, WHOLE) for row in match(line[column])]

    return sliced


def _same(where: str, name: str, *said: tuple[frozenset[str], str]) -> None:
    """Refuses two rows of one image that differ."""
    if said[0] != said[1]:
        both = " and ".join(";".join(sorted(labels)) + (f" in {part}" if part else "") for labels, part in said)
        raise UsageError(f"{where}: {name} is labelled {both}: keep one row (; separates several labels)")


def _told(left_out: Counter[str]) -> list[str]:
    return [f"left out, {why}: {count} images" for why, count in left_out.items() if count]
