"""The index while it grows: one plain list or array a column, no object a row; what it holds besides images."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from maectl.adapter import Source
from maectl.index import SCHEMA

__all__ = ["Columns"]


class Columns:
    """The index while it grows: one plain list or array a column, no object a row."""

    def __init__(self, folders: list[str], group: str | None) -> None:
        self.folders = folders  # absolute paths, by folder number
        self.group = re.compile(group) if group else None
        self.rows: list[tuple[Any, ...]] = []
        self.batches: list[pa.RecordBatch] = []
        self.kinds: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        self.ungrouped = 0
        self.pixels: Counter[str] = Counter()  # by form
        self.told: dict[str, tuple[Counter[str], Counter[str]]] = {}  # by form: facts, notes

    def __len__(self) -> int:
        return len(self.rows) + sum(int(batch.num_rows) for batch in self.batches)

    def add(self, source: Source, folder: int) -> None:
        """One more source, of the folder of that number."""
        form = form_of(source.axes)
        self.pixels[form] += math.prod(source.shape)
        facts, notes = self.told.setdefault(form, (Counter(), Counter()))
        facts.update(source.facts)
        notes.update(source.notes)
        kind = json.dumps(
            {"dtype": source.dtype, "unit": source.unit, "axes": source.axes, "channels": source.channels}
        )
        self.rows.append(
            (
                folder,
                [os.fsencode(path) for path in source.paths],
                list(source.shape),
                None if source.spacing is None else list(source.spacing),
                self.kinds.setdefault(kind, len(self.kinds)),
                self._group(source),
                os.fsencode(source.key),
            )
        )
        if len(self.rows) == 1 << 14:
            self._flush()

    def _group(self, source: Source) -> int:
        name = source.group
        if self.group is not None:
            match = self.group.search(source.paths[0])
            name = "".join(match.groups("") or (match.group(),)) if match else ""
        if not name:  # a group of its own
            self.ungrouped += 1
            return len(self.groups) + self.ungrouped - 1
        if name not in self.groups:
            self.groups[name] = len(self.groups) + self.ungrouped
        return self.groups[name]

    def _flush(self) -> None:
        arrays = [
            pa.array(values, type=column.type)
            for values, column in zip(zip(*self.rows, strict=True), SCHEMA, strict=True)
        ]
        self.batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        self.rows = []

    def uniform(self) -> tuple[list[tuple[int, tuple[str, ...]]], str]:
        """Keep images, films or volumes, whichever hold most pixels: (folder, paths) of the others, and what stays.

        Facts and notes of the others are forgotten.
        """
        self._flush_rest()
        most = max(self.pixels, key=lambda form: self.pixels[form], default="")
        if len(self.pixels) < 2:
            return [], most
        table = pa.Table.from_batches(self.batches, schema=SCHEMA)
        kinds = np.array([form_of(json.loads(kind)["axes"]) == most for kind in self.kinds])
        stays = kinds[np.asarray(table.column("kind"))]
        others = table.filter(pa.array(~stays)).select(["folder", "paths"]).to_pylist()
        self.batches = table.filter(pa.array(stays)).to_batches()
        self.told = {most: self.told[most]}
        return [(each["folder"], tuple(map(os.fsdecode, each["paths"]))) for each in others], most

    def channels(self) -> dict[tuple[int, tuple[str, ...]], int]:
        """How many sources have each (channel count, channel names)."""
        self._flush_rest()
        names = [tuple(json.loads(kind)["channels"]) for kind in self.kinds]
        kinds = np.concatenate([np.asarray(batch.column("kind")) for batch in self.batches])
        counts: dict[tuple[int, tuple[str, ...]], int] = {}
        for kind, count in enumerate(np.bincount(kinds, minlength=len(names))):
            key = (len(names[kind]), names[kind])
            if count:
                counts[key] = counts.get(key, 0) + int(count)
        return counts

    def table(self) -> pa.Table:
        """All of it, as `maectl.index.write` takes it."""
        self._flush_rest()
        about = {"folders": self.folders, "kinds": [json.loads(kind) for kind in self.kinds]}
        table = pa.Table.from_batches(self.batches, schema=SCHEMA)
        return table.replace_schema_metadata({"maectl": json.dumps(about)})

    def _flush_rest(self) -> None:
        if self.rows:
            self._flush()


def form_of(axes: Sequence[str]) -> str:
    """What a model takes a source for: volumes, films and images have nothing to do with one another."""
    return "images" if len(axes) < 3 else "films" if axes[0] == "frame" else "volumes"
