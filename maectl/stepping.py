"""One optimizer step: micro-batches forward and backward, one update; and what fits in memory at once.

Nothing in a step waits for the device.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from maectl import console, device
from maectl.batch import Batch, empty, normalise
from maectl.errors import TrainingError
from maectl.mae import MaskedAutoencoder, Output
from maectl.stats import Normalizer
from maectl.team import Team

__all__ = ["Stepper", "fitting", "saved_bytes"]

MICRO_BATCH = {"cpu": 64, "cuda": 1024, "mps": 128}  # images at once, at most: more gains no speed
ROOM = 0.7  # of the free memory may be activations; the rest is for what is held for a moment only


@dataclass
class Stepper:
    """What turns batches into updates.

    batch_size   images a step, all processes together
    micro_batch  images at once, a process
    removed      patches of an image that are predicted
    """

    model: MaskedAutoencoder
    optimizer: torch.optim.Optimizer
    normalizer: Normalizer
    mask_ratio: float
    removed: int
    precision: str
    device: torch.device
    team: Team
    batch_size: int
    micro_batch: int
    _parallel: Any = field(init=False)
    _forward: Callable[..., Output] = field(init=False)

    def __post_init__(self) -> None:
        self._parallel = self._forward = self.team.parallel(self.model)

    def __call__(self, batch: Batch) -> Tensor:
        """Micro-batches accumulated into one update over the whole batch, of which ``batch`` is this process's share.

        Gives the loss of the whole batch, still on the device. Each micro-batch back-propagates its sum over the
        nominal count of removed patches; where invalid pixels made fewer count, gradients are scaled to the true mean.
        """
        nominal = self.batch_size * self.removed
        sums = torch.zeros(2, device=self.device, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        for first in range(0, len(batch.images), self.micro_batch):
            part = slice(first, first + self.micro_batch)
            last = part.stop >= len(batch.images)
            with nullcontext() if last else self.team.accumulating(self._parallel):
                output = self._output(_part(batch, part))
                # processes' gradients are averaged: the mean of sums times their number is the sum
                (output.loss_sum * self.team.size / nominal).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([output.loss_sum.detach(), output.counted])
        total, counted = self.team.summed(sums)
        counted = counted.clamp(min=1)
        if batch.valid is not None or self.team.size > 1:  # exactly 1 where every process's pixels were valid
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, (nominal / counted).to(gradients[0].dtype))
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss: Tensor = (total / counted).float()
        return loss

    def _output(self, batch: Batch) -> Output:
        images, valid = normalise(batch, self.normalizer, self.device)
        noise = batch.noise.to(self.device, non_blocking=True)
        with device.autocast(self.device, self.precision):
            return self._forward(images, noise, self.mask_ratio, valid)

    def compile(self) -> None:
        """Have torch compile the model; where it cannot, on any process, say so and go on without."""
        compiled = torch.compile(self.model, dynamic=False)
        reason = self._fails(compiled)
        if self.team.most(int(reason is not None)):
            torch._dynamo.reset()
            console.warn(f"torch.compile does not work here ({reason or 'another process'}): training goes on without")
            return
        # of several processes the exchange of gradients is compiled too: else it would begin when backward ends
        self._forward = compiled if self._parallel is self.model else torch.compile(self._parallel, dynamic=False)

    def _fails(self, compiled: Callable[..., Output]) -> str | None:
        """Why a compiled micro-batch does not run, or None."""
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        try:
            self.rehearse(min(self.micro_batch, ceil(self.batch_size / self.team.size)), compiled)
            device.synchronise(self.device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler's errors are of any class, and of many lines
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        return None

    def rehearse(self, images: int, forward: Callable[..., Output] | None = None) -> None:
        """Forward and backward of so many empty images in this process alone; no weight changes."""
        model = self.model
        shape = (model.channels, *model.image_size)
        noise = torch.linspace(0, 1, prod(model.grid), device=self.device).repeat(images, 1)
        with device.autocast(self.device, self.precision):
            # laid out in memory as the loader's are: a compiler's result is for that alone
            blank = empty(images, shape, torch.float32, pin=False).zero_().to(self.device)
            output = (model if forward is None else forward)(blank, noise, self.mask_ratio, None)
        output.loss_sum.backward()
        self.optimizer.zero_grad()


def _part(batch: Batch, part: slice) -> Batch:
    """Some images of a batch; constants shared by all stay shared."""
    own = len(batch.mean) > 1
    return batch._replace(
        images=batch.images[part],
        valid=None if batch.valid is None else batch.valid[part],
        noise=batch.noise[part],
        mean=batch.mean[part] if own else batch.mean,
        std=batch.std[part] if own else batch.std,
    )


def fitting(step: Stepper) -> int:
    """The largest micro-batch that fits in memory: at most a process's share of the batch, in equal parts.

    On CUDA it is tried, and made smaller until it runs. Raises TrainingError where not one image fits.
    """
    share = ceil(step.batch_size / step.team.size)
    each = (saved_bytes(step, 4) - saved_bytes(step, 2)) / 2  # what is not an image's own cancels
    weights = sum(p.numel() for p in step.model.parameters())
    held = 12 * weights  # gradients and AdamW's two moments, float32
    if step.device.type == "cuda":  # two batches of pixels, one of them on its way
        held += 2 * 4 * share * step.model.channels * prod(step.model.image_size)
    free = device.free_memory(step.device)
    if step.device.type == "cpu":  # which a machine's processes share
        free //= step.team.place.local_size
    room = ROOM * (free - held)
    most = _agreed(step, min(share, MICRO_BATCH[step.device.type], max(1, int(room / max(each, 1)))))
    while step.device.type == "cuda" and not _runs(step, most):
        if most == 1:
            raise TrainingError(
                "not one image fits in the device's memory: take a smaller model.size or model.image_size, "
                "or --set train.checkpointing=true"
            )
        most = -(-most // 2)
    return ceil(share / ceil(share / most))


def _agreed(step: Stepper, own: int) -> int:
    """The smallest that any process can do."""
    return -step.team.most(-own)


def _runs(step: Stepper, images: int) -> bool:
    """Whether a micro-batch of so many images fits in every process's memory."""
    failed = 0
    try:
        step.rehearse(images)
        device.synchronise(step.device)
    except torch.OutOfMemoryError:
        failed = 1
    if failed:  # not in the handler: its traceback holds the tensors
        step.optimizer.zero_grad()
        torch.cuda.empty_cache()
    return not step.team.most(failed)


def saved_bytes(step: Stepper, images: int) -> int:
    """Bytes that a forward pass of so many images keeps for the backward one, weights aside."""
    known = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.rehearse(images)
    return sum(seen.values())
