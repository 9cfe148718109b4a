"""How fast this machine pretrains on these images, stage by stage, and the one change that would help most.

Loading is measured in one thread on a sample of the images; a step's stages with a wait for the device after each.
Then, without such waits: the loader alone, the step alone, and both together, as `pretrain` runs them. Nothing is
kept: the run is one that ``--dry-run`` would make, and the sample's store lies in a temporary folder.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maectl import advice, console, device, flops, recipe, storing
from maectl.clocked import Seconds, loading
from maectl.dataset import Batch, Loader, Views, normalise
from maectl.errors import UsageError
from maectl.reading import Reader
from maectl.stepping import Stepper
from maectl.store import build
from maectl.stream import TRAIN, Stream
from maectl.synthetic import photographs
from maectl.team import Team
from maectl.training import Request, Training, begin

__all__ = ["bench"]

BATCH = {"cuda": 256}  # images a step, where none is asked for; else:
CPU_BATCH = 64
MADE = 64  # synthetic photographs
SAMPLED = 512  # sources measured at most,
SAMPLED_BYTES = 1 << 30  # and bytes of decoded pixels
SECONDS = 5.0  # a measurement takes, where --steps does not say
LEAST, MOST = 3, 50  # repetitions then


def bench(
    folders: Sequence[str],
    *,
    synthetic: bool = False,
    recipe_name: str | None = None,
    adapter: str | None = None,
    overrides: Sequence[str] = (),
    batch_size: int | None = None,
    steps: int | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """What ``--json`` prints. ``synthetic`` measures on photographs made for it. Raises MaectlError."""
    if synthetic == bool(folders):
        raise UsageError("give either FOLDER... or --synthetic")
    asked = recipe.load(recipe_name, overrides)[0].data.store  # a rehearsal itself goes without
    with tempfile.TemporaryDirectory(prefix="maectl-bench-") as work:
        if synthetic:
            folders, adapter = [str(photographs(Path(work) / "images", MADE))], "natural"
        request = Request(
            folders=folders,
            out=Path(work) / "run",
            recipe=recipe_name,
            adapter=adapter,
            overrides=["data.verify=0", *overrides],  # what cannot be read is replaced as it is met
            steps=steps or MOST,
            batch_size=batch_size or BATCH.get(device.pick().type, CPU_BATCH),
            workers=workers,
            dry_run=True,
        )
        training = begin(request, Path(work), time.monotonic(), Team())
        try:
            return _measured(training, Path(work), asked, steps)
        finally:
            training.loader.close()


def _measured(training: Training, work: Path, asked: str, steps: int | None) -> dict[str, Any]:
    about, where, threads = training.about, training.device, training.loader.workers
    rows = _sample(training)
    choice = _choice(training, asked)
    direct, stored = training.views, _stored(training, rows, choice, work)
    used = direct if stored is None or choice.folder is None else stored
    stream = replace(training.stream, rows=rows, views=used.per_epoch(rows))
    console.say("timing: loading, the stages of a step, the step, and both together")
    with closing(Loader(used, threads)) as loader:
        _warm(loader, stream)
    times = {
        name: None if views is None else loading(views, stream, SECONDS / 2, (steps or MOST) * stream.batch)
        for name, views in (("files", direct), ("store", stored))
    }
    own = times["files" if used is direct else "store"]
    assert own is not None
    count = min(about["batch_size"], about["micro_batch"])
    with closing(Loader(used, threads, pin=where.type == "cuda")) as loader:
        first = loader.batch(stream.step(0), 0, TRAIN)
        stages = _stages(training, _part(first, count), steps)
        alone = _loader_alone(loader, stream, steps)
        step = _step_alone(training.step, first, steps)
        together, waited = _together(training, loader, stream, steps, step)
    batch = about["batch_size"]
    counted = flops.step(training.config.model, training.step.mask_ratio, count)
    peak = flops.product_rate(where, torch.bfloat16 if about["precision"] == "bf16" else torch.float32)
    result = {
        "device": about["provenance"]["device"],
        "precision": about["precision"],
        "cores": device.loader_threads(0),
        "workers": threads,
        "images": about["images"],
        "recipe": training.recipe.model_dump(mode="json"),
        "batch_size": batch,
        "micro_batch": about["micro_batch"],
        "source": "files" if used is direct else "store",
        "stages": {
            name: {"s_an_image": seconds, "s_a_step": seconds * batch} for name, seconds in {**own, **stages}.items()
        },
        "step_shares": {name: seconds / sum(stages.values()) for name, seconds in stages.items()},
        "loading_s_an_image": {name: None if each is None else sum(each.values()) for name, each in times.items()},
        "store_form": str(choice.form),
        "store_bytes": int(choice.form.sizes(direct.reader.index).sum()),
        "loader_images_per_s": alone,
        "step_images_per_s": batch / step,
        "images_per_s": together,
        "data_wait_fraction": waited,
        "bf16_step_images_per_s": _in_bf16(training, first, steps),
        "peak_memory_bytes": device.peak_memory(where),
        "flops_an_image": counted._asdict(),
        "product_flops_per_s": peak,
        "mfu": counted.standard * batch / step / peak,
        "mfu_together": counted.standard * together / peak,
    }
    return {**result, "advice": advice.advice(result)}


# ---- what is loaded, and from where ------------------------------------------------------------------------------


def _sample(training: Training) -> Any:
    """int64 [N] seeded rows of the training images: 512, or what decodes to a gigabyte, one at least."""
    index = training.views.reader.index
    rows = np.random.default_rng(training.about["seed"]).permutation(training.stream.rows)[:SAMPLED]
    sizes = np.cumsum(index.shapes[rows].prod(axis=1, dtype=np.int64) * index.itemsizes[rows])
    return np.sort(rows[: max(1, int((sizes <= SAMPLED_BYTES).sum()))])


def _choice(training: Training, asked: str) -> storing.Choice:
    """The store that `pretrain` would choose for a run in this folder."""
    recipe_ = training.recipe.updated({"data": {"store": asked}})
    reader = training.views.reader
    choice = storing.choose(reader.index, reader.adapter, recipe_, Path("run"), recipe_.train.epochs)
    if choice.why:
        console.say(f"a run here would have {choice.why}".replace("have store:", "have a store:"))
    return choice


def _warm(loader: Loader, stream: Stream) -> None:
    """Load the sample once, so that it is in memory: a run's later epochs are what is measured, not its first."""
    begun = time.perf_counter()
    for _ in loader.batches(stream, 0, -(-stream.epoch_length // stream.batch)):
        if time.perf_counter() - begun > SECONDS:
            return


def _stored(training: Training, rows: Any, choice: storing.Choice, work: Path) -> Views | None:
    """The run's views from a store that has the sample; None where the sample is one source too large for it."""
    reader = training.views.reader
    if len(rows) == 1 and reader.index.shapes[rows[0]].prod(dtype=np.int64) > SAMPLED_BYTES:
        return None
    store, _ = build(
        reader.index, reader.adapter, work / "store", rows=rows, form=choice.form, workers=training.loader.workers
    )
    return replace(training.views, reader=Reader(reader.index, reader.adapter, store))


# ---- the step ---------------------------------------------------------------------------------------------------


def _part(batch: Batch, count: int) -> Batch:
    """The first images of a batch."""
    own = count if len(batch.mean) > 1 else 1
    valid = None if batch.valid is None else batch.valid[:count]
    return Batch(
        batch.images[:count], valid, batch.noise[:count], batch.mean[:own], batch.std[:own], batch.rows[:count]
    )


def _stages(training: Training, batch: Batch, steps: int | None) -> Seconds:
    """Median seconds an image of a step's stages, on one micro-batch; the optimizer's share is a whole batch's."""
    images, size = len(batch.images), training.about["batch_size"]
    _staged(training.step, batch)
    taken = [_staged(training.step, batch) for _ in _repetitions(steps)]
    medians = {name: float(np.median([each[name] for each in taken])) for name in taken[0]}
    return {name: seconds / (size if name == "optimizer" else images) for name, seconds in medians.items()}


def _staged(step: Stepper, batch: Batch) -> Seconds:
    """One step as a `Stepper` makes it, with a wait for the device after each stage."""
    spent: Seconds = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        device.synchronise(step.device)
        spent[name] = time.perf_counter() - begun

    device.synchronise(step.device)
    with stage("copy_normalise"):
        images, valid = normalise(batch, step.normalizer, step.device)
        noise = batch.noise.to(step.device)
    with stage("forward"), device.autocast(step.device, step.precision):
        output = step._forward(images, noise, step.mask_ratio, valid)  # compiled, where it is
    with stage("backward"):
        (output.loss_sum / (len(images) * step.removed)).backward()  # type: ignore[no-untyped-call]
    with stage("optimizer"):
        step.optimizer.step()
        step.optimizer.zero_grad()
    return spent


def _step_alone(step: Stepper, batch: Batch, steps: int | None) -> float:
    """Median seconds of an optimizer step on a batch that is there."""

    def once() -> float:
        begun = time.perf_counter()
        step(batch)
        device.synchronise(step.device)
        return time.perf_counter() - begun

    once()
    return float(np.median([once() for _ in _repetitions(steps)]))


def _in_bf16(training: Training, batch: Batch, steps: int | None) -> float | None:
    """Images a second of the step in bfloat16, where it is float32 and the device would be faster."""
    if training.step.precision != "fp32" or not device.fast_bf16(training.device):
        return None
    step = replace(training.step, precision="bf16")
    if device.compiles(training.recipe.train.compile, training.device):
        step.compile()
    return step.batch_size / _step_alone(step, batch, steps)


def _loader_alone(loader: Loader, stream: Stream, steps: int | None) -> float:
    """Images a second."""
    batches = loader.batches(stream, 0, 1_000_000)
    next(batches)
    begun, count = time.perf_counter(), 0
    for _ in _repetitions(steps):
        count += len(next(batches).images)
    return count / (time.perf_counter() - begun)


def _together(
    training: Training, loader: Loader, stream: Stream, steps: int | None, step: float
) -> tuple[float, float]:
    """Images a second as `pretrain` runs, and the share of the time that is waited for data."""
    count = steps or int(min(MOST, max(LEAST, 2 * SECONDS / step)))
    batches = loader.batches(stream, 0, 1 + count)
    training.step(next(batches))
    device.synchronise(training.device)
    begun, waited = time.perf_counter(), loader.waited
    for batch in batches:
        training.step(batch)
    device.synchronise(training.device)
    seconds = time.perf_counter() - begun
    return count * stream.batch / seconds, (loader.waited - waited) / seconds


def _repetitions(steps: int | None) -> Iterator[int]:
    """So many, or as many as fit the time of a measurement."""
    begun, count = time.perf_counter(), 0
    while count < (steps or LEAST) or (steps is None and count < MOST and time.perf_counter() - begun < SECONDS):
        yield count
        count += 1
