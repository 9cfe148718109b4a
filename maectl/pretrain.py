"""Pretraining: a folder of images in, an encoder out. This file is the loop; `training` sets it up."""

import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maectl import checkpoint, console, device, panels, run
from maectl.dataset import Batch, normalise
from maectl.heldout import verdict
from maectl.index import write_quarantine
from maectl.optim import learning_rate
from maectl.progress import Progress
from maectl.resume import resume
from maectl.training import Request, Training, begin, measure_first

__all__ = ["Request", "optimizer_step", "pretrain"]


def pretrain(request: Request) -> dict[str, Any]:
    """Run or resume a pretraining; what ``--json`` prints. Raises MaectlError; KeyboardInterrupt when interrupted.

    The run folder is made once everything that can be wrong with the request has been looked at.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="maectl-") as work:
        training = resume(request) if request.resume else begin(request, Path(work), begun, optimizer_step)
        try:
            if request.dry_run:
                return _rehearse(training)
            with run.locked(request.out):
                if not request.resume:
                    measure_first(training)
                return _train(training, begun)
        finally:
            training.loader.close()


def _train(training: Training, begun: float) -> dict[str, Any]:
    """From the step reached to the last, with a measurement and a checkpoint every so often and at the end."""
    about, out, start = training.about, training.request.out, int(training.about["step"])
    deadline = None if training.request.max_time is None else begun + training.request.max_time
    tenths = range(1, 11) if training.steps >= 100 else range(0)  # of fewer steps, a tenth is nothing worth keeping
    milestones = {round(training.steps * tenth / 10) for tenth in tenths}
    batches = training.loader.batches(training.stream, start, training.steps)
    rate, saved = 0.0, time.monotonic()
    with (
        closing(Progress(out, about, training.loader, start, training.device)) as progress,
        _interruptible() as interrupt,
    ):
        if start == 0:
            progress.measured(0, about["loss_first"])
        for step in range(start, training.steps + 1):
            now = time.monotonic()
            late = deadline is not None and now > deadline
            last = step == training.steps or late or interrupt.is_set()
            due = now - saved > 60 * training.recipe.train.checkpoint_minutes or step in milestones
            # once in a while, and at the end: measure and save
            if last or (due and step > start):
                progress.flush(step)
                _save(training, step, milestones, progress)
                progress.pause(now)
                saved = time.monotonic()
            if last:
                break
            # one optimizer step
            rate = learning_rate(step, steps=training.steps, warmup_steps=about["warmup_steps"], peak=about["lr"])
            for group in training.optimizer.param_groups:
                group["lr"] = rate
            progress.step(step, rate, optimizer_step(training, next(batches)))
    if interrupt.is_set() and step < training.steps:
        console.say(f"interrupted at step {step:,}: checkpoint written; --resume goes on from there")
        raise KeyboardInterrupt
    if step < training.steps:
        console.warn(f"time is up at step {step:,} of {training.steps:,}, at a learning rate of {rate:.2e}, not 0")
    _farewell(training)
    return _summary(training, step)


def _rehearse(training: Training) -> dict[str, Any]:
    """Two optimizer steps whose result is thrown away, and what the run would take."""
    measure_first(training)
    about, begun = training.about, 0.0
    batches = training.loader.batches(training.stream, 0, 2)
    for batch in batches:
        begun = time.monotonic()
        optimizer_step(training, batch)
        device.synchronise(training.device)
    each = time.monotonic() - begun
    about["images_per_s"] = about["batch_size"] / each
    memory = device.peak_memory(training.device) / 2**30
    console.say(
        f"dry run: a step takes about {each:.2f} s ({about['images_per_s']:,.0f} img/s) and {memory:.1f} GiB, the "
        f"whole run about {console.clock(each * training.steps)}; nothing was written"
    )
    return _summary(training, 0)


def optimizer_step(training: Training, batch: Batch) -> Tensor:
    """Micro-batches accumulated into one step over the whole batch; its loss, still on the device.

    Each back-propagates its sum over the nominal count of removed patches; where invalid pixels made fewer
    count, gradients are scaled to the true mean. Nothing here waits for the device.
    """
    model, about = training.model, training.about
    nominal = len(batch.images) * about["removed_patches"]
    total = torch.zeros((), device=training.device)
    counted = torch.zeros((), device=training.device, dtype=torch.int64)
    for first in range(0, len(batch.images), about["micro_batch"]):
        part = slice(first, first + about["micro_batch"])
        images, valid = normalise(_part(batch, part), training.views.normalizer, training.device)
        noise = batch.noise[part].to(training.device, non_blocking=True)
        with device.autocast(training.device, about["precision"]):
            output = model(images, noise, training.recipe.model.mask_ratio, valid)
        (output.loss_sum / nominal).backward()
        total += output.loss_sum.detach()
        counted += output.counted
    if batch.valid is not None:
        scale = nominal / counted.clamp(min=1)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    training.optimizer.step()
    training.optimizer.zero_grad()
    return total / counted.clamp(min=1)


def _part(batch: Batch, part: slice) -> Batch:
    """Some images of a batch; constants shared by all stay shared."""
    own = len(batch.mean) > 1
    return batch._replace(
        images=batch.images[part],
        valid=None if batch.valid is None else batch.valid[part],
        mean=batch.mean[part] if own else batch.mean,
        std=batch.std[part] if own else batch.std,
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets an event, so that the step under way is finished and saved; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def first(signum: int, frame: object) -> None:
        console.say("stopping after this step (again to stop at once, without a checkpoint)")
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _save(training: Training, step: int, milestones: set[int], progress: Progress) -> None:
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
