"""What `pretrain`'s loop costs beyond its steps; a part of benchmarks/loader.py."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from maectl.progress import Progress
from maectl.stream import TRAIN
from maectl.synthetic import photographs
from maectl.training import Request, Training, begin, measure_first

__all__ = ["pretrain"]

BLOCK = 20  # steps


def pretrain(work: Path, seconds: float) -> dict[str, Any]:
    """Images a second of the loop, loading and recording, over those of its step on a batch that is there.

    One training, in blocks of 20 steps by turns: of two trainings in one process one may be faster by a tenth, by how
    their memory happens to lie.
    """
    from maectl.team import Team

    folder = str(photographs(work / "images", 256))
    settings = ["model.size=tiny", "model.image_size=128", "train.batch_size=64", f"data.store={work / 'store'}"]
    request = Request([folder], work / "run", "photographs", "natural", settings, steps=100_000, workers=1)
    (work / "work").mkdir()
    training = begin(request, work / "work", time.monotonic(), Team())
    measure_first(training)
    alone, looped, waits = [], [], []
    begun, step = time.perf_counter(), 0
    with closing(training.loader):
        batch = training.loader.batch(training.stream.step(0), 0, TRAIN)
        for _ in range(3):
            training.step(batch)
        while time.perf_counter() - begun < seconds or len(looped) < 5:
            before = time.perf_counter()
            for _ in range(BLOCK):
                training.step(batch)
            alone.append(time.perf_counter() - before)
            taken, waited = loop(training, step)
            looped.append(taken)
            waits.append(waited / taken)
            step += BLOCK
    ratios = np.array(alone) / np.array(looped)
    return {
        "blocks": len(looped),
        "bare_step_images_a_second": BLOCK * 64 / float(np.median(alone)),
        "pretrain_images_a_second": BLOCK * 64 / float(np.median(looped)),
        "ratio": float(np.median(ratios)),
        "data_wait_fraction": float(np.median(waits)),
    }


def loop(training: Training, start: int) -> tuple[float, float]:
    """Seconds of a block of steps as `pretrain` takes them, and of these spent waiting; the first batch is there."""
    batches = training.loader.batches(training.stream, start, start + BLOCK)
    with closing(Progress(training.request.out, training.about, training.loader, start, training.device)) as progress:
        batch = next(batches)
        before, waited = time.perf_counter(), training.loader.waited
        for step in range(start, start + BLOCK):
            progress.step(step, 0.0, training.step(batch))
            batch = next(batches, batch)
        progress.flush(start + BLOCK)
        return time.perf_counter() - before, training.loader.waited - waited
