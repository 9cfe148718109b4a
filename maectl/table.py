"""Features as a Parquet table: a row an image, read back with any data frame library."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from maectl import console, device
from maectl.adapter import Adapter
from maectl.annotations import WHOLE, from_csv, from_folders
from maectl.checkpoint import Config
from maectl.errors import RunError, UsageError
from maectl.features import Advance, Members, extract
from maectl.index import Index
from maectl.mae import MaskedAutoencoder
from maectl.outputs import none_left
from maectl.projection import Projection
from maectl.store import Reader
from maectl.stream import SAMPLE, generator
from maectl.team import Team

__all__ = ["Table", "write_table"]

ROWS = 4096  # images at once
FITTED = 20_000  # images that principal axes are taken from
TYPES = {"float32": pa.float32(), "float16": pa.float16()}
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """What is asked for.

    rows   (row of the index, name the user gave it) of the images
    paths  as the user gave them
    pool   cls or mean
    pca    principal axes to keep, None for all features
    """

    config: Config
    adapter: Adapter
    index: Index
    rows: Sequence[tuple[int, str]]
    paths: Sequence[str]
    labels: Path | None
    pool: str
    pca: int | None
    dtype: str
    seed: int

    def schema(self, width: int) -> pa.Schema:
        """row, path (unless names may identify people), group, label, features.

        Rows count the images from 0, as index.csv does. A path is relative to the folder given, of several folders as
        the user would name it; bytes of it that are no UTF-8 are written as \\udcff.
        """
        path = [] if self.adapter.private else [("path", pa.string())]
        features = ("features", pa.list_(TYPES[self.dtype], width))
        return pa.schema([("row", pa.int64()), *path, ("group", pa.int32()), ("label", pa.string()), features])


def write_table(
    asked: Table, model: MaskedAutoencoder, out: Path, rejects: list[dict[str, str]], workers: int, team: Team
) -> dict[str, Any]:
    """Write embeddings.parquet into ``out``; what is told of it. Images that cannot be read are added to ``rejects``.

    The processes of a ``team`` share the images, and its leader writes. Features of a volume are the mean over its
    slices or crops. Raises UsageError and DataError.
    """
    if asked.dtype not in TYPES:
        raise UsageError(f"--dtype {asked.dtype} is for maps; a table holds float32 or float16")
    known = _labels(asked)
    reader = Reader(asked.index, asked.adapter)
    names = dict(asked.rows)
    rows = np.array([row for row, _ in asked.rows], np.int64)
    projection = _projection(asked, model, reader, rows, workers, team)
    parts = _features(asked, model, reader, rows, workers, "embedding", team)
    if not team.leads:
        for _ in parts:
            pass
        return {}
    path, part, written = out / "embeddings.parquet", out / f".embeddings.parquet.{os.getpid()}", 0
    schema = asked.schema(asked.pca or int(model.cls_token.shape[-1]))
    groups = asked.index.groups
    try:
        with pa.parquet.ParquetWriter(str(part), schema) as file:
            for kept, features, lost in parts:
                rejects += [{"source": names[row], "reason": reason} for row, reason in lost]
                values = features if projection is None else projection.of(features.T).T
                flat = pa.array(np.ascontiguousarray(values, asked.dtype).ravel())
                paths = [asked.index[int(row)].paths[0] if len(asked.paths) == 1 else names[int(row)] for row in kept]
                columns = {
                    "row": pa.array(np.searchsorted(rows, kept)),
                    "path": pa.array([_text(each) for each in paths], pa.string()),
                    "group": pa.array(groups[kept], pa.int32()),
                    "label": pa.array([_text(known.get(int(row))) for row in kept], pa.string()),
                    "features": pa.FixedSizeListArray.from_arrays(flat, values.shape[1]),
                }
                file.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
                written += len(kept)
        if not written:
            raise none_left(rejects, "embedded")
        part.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    pca = None if projection is None else {"axes": asked.pca, "variance": [float(each) for each in projection.shares]}
    return {
        "kind": "table", "images": written, "outputs": [str(path)], "dtype": asked.dtype, "pool": asked.pool,
        "labelled": len(known.keys() & names.keys()), "pca": pca,
    }  # fmt: skip


def _text(name: str | None) -> str | None:
    """A name as valid UTF-8."""
    return name and name.encode("utf-8", "backslashreplace").decode()


def _projection(
    asked: Table, model: MaskedAutoencoder, reader: Reader, rows: Ints, workers: int, team: Team
) -> Projection | None:
    if asked.pca is None:
        return None
    some = np.sort(generator(asked.seed, 0, SAMPLE).permutation(len(rows))[:FITTED])
    parts = [each for _, each, _ in _features(asked, model, reader, rows[some], workers, "looking at a sample", team)]
    axes = asked.pca
    return team.lead(lambda: Projection.fit(np.concatenate(parts), axes))


def _features(
    asked: Table, model: MaskedAutoencoder, reader: Reader, rows: Ints, workers: int, task: str, team: Team
) -> Iterator[tuple[Ints, Floats, list[tuple[int, str]]]]:
    """Rows that could be read, their features [n, D], and (row, reason) of the others; some thousands at a time."""
    with console.task(task) as advance:
        for first in range(0, len(rows), ROWS):
            some = rows[first : first + ROWS]
            members = Members(some, np.full(len(some), WHOLE), np.arange(len(some)))
            found = extract(
                reader, asked.config, members, {"encoder": model}, device.pick(), workers,
                partial(_advanced, advance, first, len(rows)), baselines=False, team=team,
            )  # fmt: skip
            lost = [(int(some[member]), reason) for member, reason in found.unread]
            width = int(model.cls_token.shape[-1])
            values = found.values["encoder"][asked.pool] if len(found.items) else np.empty((0, width), np.float32)
            yield some[found.items], values, lost


def _advanced(advance: Advance, before: int, total: int, done: int, of: int | None) -> None:
    advance(before + done, total)


def _labels(asked: Table) -> dict[int, str]:
    """The label of each row that has one: of the table, else of the folders where one folder was given."""
    if len(asked.paths) != 1:
        if asked.labels is not None:
            raise UsageError("--labels goes with one folder of images")
        return {}
    names, folder = asked.index.names(), asked.paths[0]
    if asked.labels is None and asked.adapter.private:  # a folder may be called after a patient
        console.say("no labels: folders may name people here, --labels FILE.csv gives them")
        return {}
    if asked.labels is None:
        found = from_folders(names, folder)
    else:
        found = from_csv(asked.labels, names, folder, asked.index.members)
    return {
        row: ";".join(sorted(labels))
        for row, labels, place in zip(found.rows, found.labels, found.places, strict=True)
        if place == WHOLE
    }
