"""A batch: how it is filled, and what the model sees of it.

Shapes: B images a batch, C channels, S the model's spatial size, L patches an image.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maectl.crops import Crops, Piece
from maectl.stats import Normalizer
from maectl.windows import Draws

__all__ = ["Batch", "Pending", "empty", "normalise", "on_device"]

Ints = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """One batch, in the images' unit; still on the CPU."""

    images: Tensor | Crops  # [B, C, *S] uint8 or float32, of 2-D images channels last in memory; or not yet resized
    valid: Tensor | None  # [B, *S] bool, or None where all is valid
    noise: Tensor  # [B, L] float32 in [0, 1): the mask's
    mean: Tensor  # [B or 1, C] float32
    std: Tensor  # [B or 1, C]
    rows: Ints  # [B] the sources shown


def normalise(batch: Batch, normalizer: Normalizer, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The batch as the model sees it, float32 on the device: (clip(x) − mean) / std, and its validity."""
    if isinstance(batch.images, Crops):
        images, ours = batch.images.on(device), True
    else:
        given = batch.images.to(device, non_blocking=True)
        images, ours = given.float(), given.dtype != torch.float32  # else it may be the batch's own memory
    extra = (1,) * (images.ndim - 2)
    if normalizer.clip is not None:
        low, high = (
            torch.tensor(side, dtype=torch.float32).to(device, non_blocking=True).view(1, -1, *extra)
            for side in normalizer.clip
        )
        images = images.clamp(low, high)
    mean, std = (each.to(device, non_blocking=True).view(*each.shape, *extra) for each in (batch.mean, batch.std))
    valid = None if batch.valid is None else batch.valid.to(device, non_blocking=True)
    # in place, which on a CPU halves the time
    return (images.sub_(mean) if ours else images - mean).div_(std), valid


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches with what the model sees of them on the device; on CUDA each is copied while the one before is used."""
    if device.type != "cuda":
        yield from batches
        return
    stream, waiting = torch.cuda.Stream(device), None  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            images = batch.images if isinstance(batch.images, Crops) else batch.images.to(device, non_blocking=True)
            valid = None if batch.valid is None else batch.valid.to(device, non_blocking=True)
            noise, mean, std = (each.to(device, non_blocking=True) for each in (batch.noise, batch.mean, batch.std))
        copied = batch._replace(images=images, valid=valid, noise=noise, mean=mean, std=std), stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copied
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, event: torch.cuda.Event) -> Batch:
    """The batch, for the stream that computes."""
    stream = torch.cuda.current_stream()
    stream.wait_event(event)
    for each in batch[:5]:
        if isinstance(each, Tensor):  # its memory must not be used again before the stream is done with it
            each.record_stream(stream)
    return batch


def empty(count: int, shape: tuple[int, ...], dtype: torch.dtype, pin: bool) -> Tensor:
    """[count, C, *S] of any values. Images have their channels last in memory, as the resized crops have."""
    if len(shape) != 3:
        return torch.empty((count, *shape), dtype=dtype, pin_memory=pin)
    return torch.empty((count, *shape[1:], shape[0]), dtype=dtype, pin_memory=pin).permute(0, 3, 1, 2)


@dataclass
class Pending:
    """A batch, or a process's part of one, while threads fill it, each other items of it."""

    rows: Ints
    first: int  # place in the whole batch of the first item of this part
    candidates: Ints  # rows that may stand in for one that cannot be read
    draws: Draws  # of the whole batch
    shape: tuple[int, ...]  # [C, *S] of an image
    images: Tensor | None  # None where they are resized on the device
    noise: Tensor
    mean: Tensor
    std: Tensor
    pin: bool  # whether what is copied to the device lies in page-locked memory
    pieces: dict[int, Piece] = field(default_factory=dict)  # by the place of their first item
    _valid: npt.NDArray[np.bool_] | None = None  # made by the first item that needs it
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def validity(self, item: int) -> npt.NDArray[np.bool_]:
        """[*S] to write an item's validity to; that of others is all true until they do."""
        with self._lock:
            if self._valid is None:
                self._valid = np.ones((len(self.rows), *self.shape[1:]), np.bool_)
        found: npt.NDArray[np.bool_] = self._valid[item]
        return found

    def batch(self) -> Batch:
        """What has been filled."""
        valid = None if self._valid is None or self._valid.all() else torch.from_numpy(self._valid)
        late = Crops([piece for _, piece in sorted(self.pieces.items())], self.shape)
        images = late if self.images is None else self.images
        return Batch(images, valid, self.noise, self.mean, self.std, self.rows)
