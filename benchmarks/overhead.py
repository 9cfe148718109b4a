"""What `pretrain` costs beyond its steps; a part of benchmarks/loader.py."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from maectl.stream import TRAIN
from maectl.synthetic import photographs

__all__ = ["pretrain"]

TURNS = 5
LEAST = 60  # steps a turn: a run waits for its first batch, which is no part of its pace


def pretrain(work: Path, seconds: float) -> dict[str, Any]:
    """Images a second of `pretrain` over those of its step on a batch that is there, in turns."""
    from maectl.pretrain import pretrain as run
    from maectl.team import Team
    from maectl.training import Request, begin

    folder = str(photographs(work / "images", 256))
    settings = [
        "model.size=tiny", "model.image_size=128", "train.batch_size=64", f"data.store={work / 'store'}",
        "train.checkpoint_minutes=60",
    ]  # fmt: skip
    request = Request([folder], work / "bare", "photographs", "natural", settings, steps=1, workers=1, dry_run=True)
    (work / "bare-work").mkdir()
    training = begin(request, work / "bare-work", time.monotonic(), Team())
    with closing(training.loader):
        batch = training.loader.batch(training.stream.step(0), 0, TRAIN)
    training.step(batch)
    begun = time.perf_counter()
    training.step(batch)
    each = time.perf_counter() - begun
    steps = max(LEAST, int(seconds / (2 * TURNS) / each))

    def bare() -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            training.step(batch)
        return steps * len(batch.images) / (time.perf_counter() - begun)

    steps_alone, runs = [bare()], []
    for turn in range(TURNS):
        request = Request([folder], work / f"run{turn}", "photographs", "natural", settings, steps=steps, workers=1)
        runs.append(run(request))
        steps_alone.append(bare())
    whole = np.array([each["images_per_s"] for each in runs])
    around = (
        np.array(steps_alone[1:]) + np.array(steps_alone[:-1])
    ) / 2  # what the machine could just before and after
    return {
        "steps": steps,
        "bare_step_images_a_second": steps_alone,
        "pretrain_images_a_second": whole.tolist(),
        "ratio": float(np.median(whole / around)),
        "data_wait_fraction": float(np.median([each["data_wait_fraction"] for each in runs])),
    }
