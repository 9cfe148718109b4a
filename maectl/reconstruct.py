"""What did a model learn to fill in? Images out, with predicted patches, in the format they came in."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maectl import checkpoint, console, device
from maectl.adapter import Source
from maectl.errors import RunError, Unreadable, UsageError
from maectl.fidelity import compared, mean
from maectl.mae import kept
from maectl.outputs import make, mapped, named, none_left, scanned
from maectl.restoration import Job, restore

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
        adapter, index, rows, rejects = scanned(config, paths, out, Path(work), mixed=True)
        sources = [(name, index[row]) for row, name in rows]
    make(out)
    job = Job(model.to(where).eval(), config, adapter, out, ratio, seed, cover, format, where)
    fresh = adapter.private and mapped(out, [source for _, source in sources])
    entries = _every(job, sources, rejects)
    if not entries:
        if fresh:  # its numbers stand for nothing
            (out / "index.csv").unlink()
        raise none_left(rejects, "reconstructed")
    means = mean(entries)
    _tell(means, len(entries), rejects, out)
    return {"images": entries, "mean": means, "rejected": rejects}


def _every(job: Job, sources: list[tuple[str, Source]], rejects: list[dict[str, str]]) -> list[dict[str, Any]]:
    """An entry an image; those that cannot be read are added to ``rejects``."""
    for each in rejects[:LINES]:
        console.warn(f"{each['source']}: {each['reason']}")
    entries: list[dict[str, Any]] = []
    every = [source for _, source in sources]
    with console.task("reconstructing") as advance:
        for place, ((name, source), stem) in enumerate(zip(sources, named(job.adapter, every), strict=True)):
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


def _tell(means: dict[str, Any], count: int, rejects: Sequence[dict[str, str]], out: Path) -> None:
    more = f" ({count - LINES:,} not listed)" if count > LINES else ""
    console.say(f"mean of {count:,} images{more}: {compared(means)}")
    if rejects:
        console.say(f"{len(rejects):,} images could not be used")
    console.say(f"pictures: {out}")
