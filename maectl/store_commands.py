"""``maectl store``: a store made ahead of a run, looked at, and cleared away."""

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from maectl import console
from maectl.errors import DataError
from maectl.keys import source_keys
from maectl.prepare import scan_with_recipe
from maectl.shards import LOCK, VERSION, about, held, shards, sweep
from maectl.store import build, building, building_lock, lacking
from maectl.storing import choose
from maectl.stream import share
from maectl.team import placed

__all__ = ["build_store", "clean", "info", "report"]

OURS = re.compile(r"([A-Za-z0-9_.-]+?)(?:-(?:raw|jpeg)(?:-[0-9]+)?)?-[0-9a-f]{12}")  # of version 2: without a form
SHARD = re.compile(r"shard-[0-9a-f]{32}\.(arrow|pixels|tmp|table)")


def build_store(
    folders: Sequence[str],
    out: Path,
    *,
    recipe: str | None = None,
    adapter: str | None = None,
    overrides: Sequence[str] = (),
    workers: int = 0,
) -> dict[str, Any]:
    """Decode all sources of some folders into ``out``; what ``--json`` prints. Raises MaectlError.

    Under torchrun or Slurm each process decodes its own share, and the first alone speaks.
    """
    place, begun = placed(), time.monotonic()
    console.mute(place.rank > 0)
    try:
        with tempfile.TemporaryDirectory(prefix="maectl-") as work:
            chosen, found = scan_with_recipe(folders, recipe, adapter, overrides, Path(work), workers)
            index, kind = found.index, found.adapter
            choice = choose(index, kind, chosen.updated({"data": {"store": str(out.absolute())}}), out, 0)
            console.say(choice.why)
            part = share(len(index), place.rank, place.size)
            if place.size > 1:
                console.say(
                    f"{place.size} processes: this one decodes {part.stop - part.start:,} of {len(index):,} images"
                )
            keys = source_keys(index, None, workers)
            lacking(index, kind, out, choice.form, keys)  # of all: the disk must have room for every share
            lock = building_lock(out, kind, choice.form) if place.rank == 0 else nullcontext()
            with lock, console.task("decoding into the store") as advance:
                store, bad = build(
                    index, kind, out, rows=np.arange(len(index))[part], form=choice.form, workers=workers,
                    progress=advance, keys=keys,
                )  # fmt: skip
            if bad and len(bad) == part.stop - part.start:
                raise DataError(
                    f"none of {len(bad):,} images can be used, e.g. {index[bad[0][0]].paths[0]}: {bad[0][1]}"
                )
            return {
                "store": str(out),
                "folder": store.folder.name,
                "adapter": kind.name,
                "form": str(choice.form),
                "images": len(index),
                "share": [part.start, part.stop],
                "stored": part.stop - part.start - len(bad),
                "rejected": [{"paths": list(index[row].paths), "reason": reason} for row, reason in bad],
                "bytes": sum(path.stat().st_size for path in store.folder.glob("shard-*")),
                "seconds": time.monotonic() - begun,
            }
    finally:
        console.mute(False)


def info(folder: Path) -> dict[str, Any]:
    """What a store holds, a form at a time; what ``--json`` prints. Raises DataError where there is no store."""
    return {"store": str(folder), "forms": [_form(path) for path in _forms(folder)]}


def clean(folder: Path, *, everything: bool = False) -> dict[str, Any]:
    """Remove what killed builds have left, or ``everything`` of ours; what ``--json`` prints.

    Raises DataError where there is no store, and where one is being built.
    """
    found = list(_forms(folder))
    for path in found:
        if building(path) or any(_held(each) for each in path.glob("shard-*")):
            raise DataError(f"{path} is being built by another process: wait for it, or stop it")
    removed, count = 0, 0
    for path in found:
        before = _bytes(path)
        count += len(sweep(path, 0))
        if everything:
            for file in [each for each in path.iterdir() if SHARD.fullmatch(each.name) or each.name == LOCK]:
                file.unlink()
                count += 1
        removed += before - _bytes(path)
        if not any(path.iterdir()):
            path.rmdir()
    if everything and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
    return {"store": str(folder), "files": count, "bytes": removed}


def report(result: dict[str, Any]) -> str:
    """The result of any of these commands as text."""
    if "forms" in result:
        lines = []
        for each in result["forms"]:
            form, size = each["form"] or "of another version: not used", each["bytes"] / 1e6
            when = "being built" if each["building"] else each["built"] or ""
            lines.append(f"{each['adapter']:<12} {form:<12} {each['entries']:>12,} entries {size:>12,.1f} MB  {when}")
        return "\n".join(lines)
    if "files" in result:
        return f"{result['files']:,} files removed, {result['bytes'] / 1e6:,.1f} MB"
    lines = [f"{';'.join(each['paths'])}: {each['reason']}" for each in result["rejected"]]
    (first, last), count = result["share"], result["images"]
    part = f"{last - first:,} images, its share of {count:,}," if last - first < count else f"{count:,} images"
    size = f"{result['form']}, {result['bytes'] / 1e6:,.1f} MB"
    return "\n".join([*lines, f"{result['stored']:,} of {part} in {result['store']} ({size})"])


def _forms(folder: Path) -> Iterator[Path]:
    """The folders of a store, one an adapter, its options and a form."""
    found = [] if not folder.is_dir() else sorted(path for path in folder.iterdir() if _is_ours(path))
    if not found:
        raise DataError(f"{folder} holds no store of maectl: give the folder of data.store or of 'maectl store build'")
    return iter(found)


def _is_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir() or not OURS.fullmatch(path.name):
        return False
    return all(SHARD.fullmatch(each.name) or each.name == LOCK for each in path.iterdir())


def _form(path: Path) -> dict[str, Any]:
    tables = sorted(path.glob("shard-*.arrow"), key=_time)
    told = about(tables[-1]) if tables else {}
    keys = [keys for keys, _, _ in shards(path)]
    match = OURS.fullmatch(path.name)
    newest = datetime.fromtimestamp(_time(tables[-1])).isoformat(sep=" ", timespec="minutes") if tables else None
    return {
        "folder": path.name,
        "adapter": told.get("adapter") or (match[1] if match else ""),
        "form": told.get("form") if told.get("version") == VERSION else None,
        "entries": len(np.unique(np.concatenate(keys))) if keys else 0,
        "bytes": _bytes(path),
        "unfinished_bytes": sum(
            _size(each) for each in path.glob("shard-*") if not each.with_suffix(".arrow").exists()
        ),
        "built": newest,
        "building": building(path),
    }


def _bytes(path: Path) -> int:
    return sum(map(_size, path.glob("shard-*")))


def _time(path: Path) -> float:
    """When a file was written; one that is gone meanwhile was long ago."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file; of one that a build has renamed meanwhile none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _held(path: Path) -> bool:
    try:
        return held(path)
    except FileNotFoundError:
        return False
