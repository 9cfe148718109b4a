"""Pretraining: a folder of images in, an encoder out. This file is the loop; `training` sets it up."""

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from maectl import checkpoint, console, device, panels, run
from maectl.dataset import on_device
from maectl.errors import RunError, TrainingError
from maectl.heldout import verdict
from maectl.index import write_quarantine
from maectl.optim import learning_rate
from maectl.progress import Progress, Unwatched
from maectl.resume import resume
from maectl.team import Team
from maectl.training import Request, Training, begin, measure_first

__all__ = ["Request", "pretrain"]

AGAIN = 2.0  # seconds after which a second signal is a second wish: launchers pass on what they get themselves
ON, SAVE, LATE, INTERRUPTED, DONE = range(5)  # what processes agree on before each step: the gravest wish of any


def pretrain(request: Request, team: Team | None = None) -> dict[str, Any]:
    """Run or resume a pretraining; what ``--json`` prints. Raises MaectlError; KeyboardInterrupt when interrupted.

    The run folder is made once everything that can be wrong with the request has been looked at. The processes of a
    ``team`` share every batch; its leader scans, measures and writes, and only there the result is not empty.
    """
    begun, team = time.monotonic(), team or Team()
    if request.resume:
        training = resume(request, team)
    else:
        with _workplace(request, team) as work:
            training = begin(request, work, begun, team)
    try:
        if request.dry_run:
            return _rehearse(training)
        with run.locked(request.out) if team.leads else nullcontext():
            if not request.resume:
                measure_first(training)
            return _train(training, begun)
    except torch.OutOfMemoryError as error:
        at_once = training.step.micro_batch
        raise TrainingError(
            f"the device's memory is full with {at_once} images at once: begin anew with "
            f"--set train.micro_batch={max(1, at_once // 2)}, or --set train.checkpointing=true"
        ) from error
    finally:
        training.loader.close()


@contextmanager
def _workplace(request: Request, team: Team) -> Iterator[Path]:
    """A folder for what is made before the run's is; what is mapped from it outlives it.

    Processes may be on many machines: they find it beside the run.
    """
    if team.size == 1:
        with tempfile.TemporaryDirectory(prefix="maectl-", ignore_cleanup_errors=True) as work:  # Windows keeps it
            yield Path(work)
        return
    beside = next(each for each in request.out.absolute().parents if each.is_dir())

    def made() -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix=".maectl-", dir=beside))
        except OSError as error:
            raise RunError(f"{beside} cannot be written to ({error.strerror}): choose another --out") from error

    place = team.lead(made)
    try:
        yield place
        team.most(0)  # all have mapped it
    finally:
        if team.leads:
            shutil.rmtree(place, ignore_errors=True)  # network file systems keep what is mapped until it no longer is


def _train(training: Training, begun: float) -> dict[str, Any]:
    """From the step reached to the last, with a measurement and a checkpoint every so often and at the end."""
    about, out, start = training.about, training.request.out, int(training.about["step"])
    deadline = None if training.request.max_time is None else begun + training.request.max_time
    tenths = range(1, 11) if training.steps >= 100 else range(0)  # of fewer steps, a tenth is nothing worth keeping
    milestones = {round(training.steps * tenth / 10) for tenth in tenths}
    batches = on_device(training.loader.batches(training.stream, start, training.steps), training.device)
    rate, saved = 0.0, time.monotonic()
    watched = Progress(out, about, training.loader, start, training.device) if training.team.leads else Unwatched()
    with closing(watched) as progress, _interruptible() as interrupt:
        if start == 0 and training.team.leads:
            progress.measured(0, about["loss_first"])
        for step in range(start, training.steps + 1):
            now = time.monotonic()
            late = deadline is not None and now > deadline
            due = now - saved > 60 * training.recipe.train.checkpoint_minutes or step in milestones
            wish = INTERRUPTED if interrupt.is_set() else LATE if late else SAVE if due and step > start else ON
            agreed = DONE if step == training.steps else training.team.most(wish)
            # once in a while, and at the end: measure and save
            if agreed != ON:
                progress.flush(step)
                others = training.team.gathered(training.rejects.rows)
                if training.team.leads:
                    for other in others:
                        training.quarantine.include(other)
                    _save(training, step, milestones, progress)
                progress.pause(now)
                saved = time.monotonic()
            if agreed > SAVE:
                break
            # one optimizer step
            rate = learning_rate(step, steps=training.steps, warmup_steps=about["warmup_steps"], peak=about["lr"])
            for group in training.optimizer.param_groups:
                group["lr"] = rate
            progress.step(step, rate, training.step(next(batches)))
    if agreed == INTERRUPTED:
        console.say(f"interrupted at step {step:,}: checkpoint written; --resume goes on from there")
        raise KeyboardInterrupt
    if agreed == LATE:
        console.warn(f"time is up at step {step:,} of {training.steps:,}, at a learning rate of {rate:.2e}, not 0")
    if not training.team.leads:
        return {}
    _farewell(training)
    return _summary(training, step)


def _rehearse(training: Training) -> dict[str, Any]:
    """Two optimizer steps whose result is thrown away, and what the run would take."""
    measure_first(training)
    about, begun = training.about, 0.0
    batches = training.loader.batches(training.stream, 0, 2)
    for batch in batches:
        begun = time.monotonic()
        training.step(batch)
        device.synchronise(training.device)
    each = time.monotonic() - begun
    if not training.team.leads:
        return {}
    about["images_per_s"] = about["batch_size"] / each
    memory = device.peak_memory(training.device) / 2**30
    console.say(
        f"dry run: a step takes about {each:.2f} s ({about['images_per_s']:,.0f} img/s) and {memory:.1f} GiB, the "
        f"whole run about {console.clock(each * training.steps)}; nothing was written"
    )
    return _summary(training, 0)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C, or a scheduler's SIGTERM, sets an event, so that the step under way is finished and saved; a second one
    stops at once.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    when = 0.0

    def asked(signum: int, frame: object) -> None:
        nonlocal when
        if event.is_set() and time.monotonic() - when > AGAIN:
            raise KeyboardInterrupt
        if not event.is_set():
            console.say("stopping after this step (again to stop at once, without a checkpoint)")
            event.set()
            when = time.monotonic()

    before = [(each, signal.signal(each, asked)) for each in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield event
    finally:
        for each, handler in before:
            signal.signal(each, handler)


def _save(training: Training, step: int, milestones: set[int], progress: Progress | Unwatched) -> None:
    out, about, mask_ratio = training.request.out, training.about, training.recipe.model.mask_ratio
    about["loss_last"] = training.held.loss(training.model, mask_ratio)
    about["step"], about["rejected"] = step, len(training.rejects)
    about["seconds"] += progress.lap()
    pictures = panels.training_samples(
        training.model,
        training.held.batches[0],
        training.views.normalizer,
        training.config,
        mask_ratio,
        training.device,
    )
    progress.measured(step, about["loss_last"], pictures)
    checkpoint.save(out, step, training.model, training.config, training.optimizer, {"step": step})
    checkpoint.save_encoder(out, training.model, training.config)
    checkpoint.prune(out, training.recipe.train.keep, milestones)
    write_quarantine(training.rejects, out / "quarantine.csv")
    run.write(out, about)


def _farewell(training: Training) -> None:
    """What the run came to, and what to do with it."""
    about, out, config = training.about, training.request.out, training.config
    console.say(verdict(about["loss_last"], about["baselines"]))
    if training.rejects.rows:
        console.say(f"{len(training.rejects):,} images could not be used: {out}/quarantine.csv says why")
    shape = ", ".join(str(config.model[key]) for key in ("width", "depth", "heads"))
    size, patch = (tuple(config.model[key]) for key in ("image_size", "patch_size"))
    console.say(
        f"""the encoder loads in timm as it is:
  from safetensors.torch import load_file; from timm.models.vision_transformer import VisionTransformer
  vit = VisionTransformer({size}, {patch}, {config.model["channels"]}, 0, "token", {shape})
  vit.load_state_dict(load_file("{out}/encoder.safetensors"))
next: maectl probe {out} FOLDER, or maectl reconstruct {out} IMAGE --out DIR"""
    )


def _summary(training: Training, step: int) -> dict[str, Any]:
    about = training.about
    return {
        "run": str(training.request.out),
        "checkpoint": None if training.request.dry_run else str(checkpoint.latest(training.request.out)),
        "steps": step,
        "epochs": step * about["batch_size"] / training.stream.epoch_length,
        "images": about["images"],
        "rejected": len(training.rejects),
        "batch_size": about["batch_size"],
        "loss_first": about["loss_first"],
        "loss_last": about["loss_last"],
        "baselines": about["baselines"],
        "images_per_s": about["images_per_s"],
        "data_wait_fraction": about["data_wait_fraction"],
        "seconds": about["seconds"],
    }
