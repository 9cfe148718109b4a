"""What did a model learn to fill in? Images out, with predicted patches, in the format they came in."""

import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maectl import checkpoint, console, device
from maectl.adapter import Adapter, Source
from maectl.checkpoint import Config
from maectl.errors import DataError, RunError, Unreadable, UsageError
from maectl.fidelity import compared, mean
from maectl.mae import kept
from maectl.registry import load as load_adapter
from maectl.restoration import Job, restore
from maectl.scan import scan

__all__ = ["reconstruct"]

LINES = 20  # images told of one by one


def reconstruct(
    run: Path,
    paths: Sequence[str],
    out: Path,
    *,
    mask_ratio: float | None,
    seed: int,
    cover: bool,
    format: str,
) -> dict[str, Any]:
    """Reconstruct every image in ``paths`` into ``out``; what ``--json`` prints.

    ``mask_ratio`` None is the run's own. ``format`` is ``native`` (the image alone, as its source), ``png``
    (panels) or ``both``. Masks follow from ``seed`` and an image's place among all. What cannot be read is
    told and listed under ``rejected``. Raises RunError for a checkpoint without decoder, DataError where no
    image is left, UsageError for a ratio that keeps no patch or removes none.
    """
    found = checkpoint.load(run)
    if not found.has_decoder:
        raise RunError(
            f"{found.path} holds an encoder without its decoder, which cannot reconstruct: "
            "give the run folder, or a checkpoint folder in RUN/checkpoints"
        )
    config, model = found.config, found.model()
    ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    kept(int(np.prod(model.grid)), ratio)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a folder")
    where = device.pick()
    with tempfile.TemporaryDirectory(prefix="maectl-") as work:
        adapter, sources, rejects = _scanned(config, paths, out, Path(work))
    _make(out)
    job = Job(model.to(where).eval(), config, adapter, out, ratio, seed, cover, format, where)
    fresh = adapter.private and _mapped(out, [source for _, source in sources])
    entries = _every(job, sources, rejects)
    if not entries:
        if fresh:  # its numbers stand for nothing
            (out / "index.csv").unlink()
        source, reason = rejects[0]["source"], rejects[0]["reason"]
        raise DataError(f"none of {len(rejects)} images can be reconstructed, e.g. {source}: {reason}")
    means = mean(entries)
    _tell(means, len(entries), rejects, out)
    return {"images": entries, "mean": means, "rejected": rejects}


def _scanned(
    config: Config, paths: Sequence[str], out: Path, work: Path
) -> tuple[Adapter, list[tuple[str, Source]], list[dict[str, str]]]:
    """The adapter, the sources under the names the user gave them, and what a scan rejects."""
    recipe = config.seeing()
    if not all(Path(path).is_dir() for path in paths):  # who names a file means it
        recipe = recipe.model_copy(update={"include": (), "exclude": ()})
    with console.task("scanning") as advance:
        found = scan(
            paths,
            load_adapter(config.adapter),
            recipe,
            work / "index.arrow",
            progress=lambda n: advance(n, None),
            mixed=True,
        )
    given = {
        str(path.absolute()): path
        for path in (Path(each) if Path(each).is_dir() else Path(each).parent for each in paths)
    }
    sources = [found.index[row] for row in range(len(found.index))]
    fresh = [source for source in sources if not _earlier(source, out.absolute())]
    named = [(str(given[source.folder] / source.paths[0]), source) for source in fresh]
    rejects = [
        {"source": str(given[folder] / names), "reason": reason} for folder, names, _, reason in found.rejects.rows
    ]
    seen = [*(name for name, _ in named), *(each["source"] for each in rejects)]
    for path in map(Path, paths):
        if not any(path == Path(name) or path in Path(name).parents for name in seen):
            rejects.append({"source": str(path), "reason": f"no image for the adapter {config.adapter!r}"})
    return found.adapter, named, rejects


def _earlier(source: Source, out: Path) -> bool:
    """Whether it is a picture of an earlier call, whose ``out`` lies in a folder of images given."""
    return Path(source.folder) in out.parents and out in Path(source.files[0]).parents


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {out} cannot be made: {error.strerror}") from None


def _every(job: Job, sources: list[tuple[str, Source]], rejects: list[dict[str, str]]) -> list[dict[str, Any]]:
    """An entry an image; those that cannot be read are added to ``rejects``."""
    for each in rejects[:LINES]:
        console.warn(f"{each['source']}: {each['reason']}")
    entries: list[dict[str, Any]] = []
    every = [source for _, source in sources]
    names = _numbers(every) if job.adapter.private else _names(every)
    with console.task("reconstructing") as advance:
        for place, ((name, source), stem) in enumerate(zip(sources, names, strict=True)):
            try:
                entry = restore(job, name, source, place, job.out / stem)
            except Unreadable as error:
                rejects.append({"source": name, "reason": str(error)})
                console.warn(f"{name}: {error}")
                continue
            entries.append(entry)
            if len(entries) <= LINES:
                console.say(f"{name}: {compared(entry)}")
            advance(place + 1, len(sources))
    return entries


def _names(sources: Sequence[Source]) -> list[str]:
    """A file name each, from the path without its suffix; none twice, even where case does not count."""
    taken: set[str] = set()
    names = []
    for source in sources:
        stem = str(Path(source.paths[0]).with_suffix("")).replace("/", "-").replace("\\", "-")
        name, again = stem, 2
        while name.casefold() in taken:
            name, again = f"{stem}-{again}", again + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def _numbers(sources: Sequence[Source]) -> list[str]:
    """Numbers for names, where names may identify people."""
    return [f"{place:04d}" for place in range(len(sources))]


def _mapped(out: Path, sources: Sequence[Source]) -> bool:
    """Write index.csv: which number stands for which image. It alone of all exports names files.

    Whether there was none before. Raises UsageError where numbers of an earlier call stand for other images.
    """
    path, text = out / "index.csv", io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("number", "folder", "paths"))
    for number, source in zip(_numbers(sources), sources, strict=True):
        writer.writerow((number, source.folder, ";".join(source.paths)))
    content = text.getvalue().encode("utf-8", "surrogateescape")
    try:
        fresh = not path.exists()
        if not fresh and path.read_bytes() != content:
            raise UsageError(f"--out {out} holds pictures of other images, by number: give another folder")
        path.write_bytes(content)
        return fresh
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None


def _tell(means: dict[str, Any], count: int, rejects: Sequence[dict[str, str]], out: Path) -> None:
    more = f" ({count - LINES:,} not listed)" if count > LINES else ""
    console.say(f"mean of {count:,} images{more}: {compared(means)}")
    if rejects:
        console.say(f"{len(rejects):,} images could not be used")
    console.say(f"pictures: {out}")
