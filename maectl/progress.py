"""What a run writes down and shows while it trains: log.jsonl, TensorBoard, and one line for the user.

Losses stay on the device until a flush, every couple of seconds, so that no step waits for the device; the flush
is also where a loss that is not finite is found.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from maectl import checkpoint, console, device
from maectl.dataset import Loader
from maectl.errors import RunError, TrainingError
from maectl.run import Log

__all__ = ["Progress", "Unwatched"]

FLUSH = 2.0  # seconds


class Unwatched:
    """What a process records that does not lead its team: nothing. Its steps wait for no loss."""

    def step(self, step: int, rate: float, loss: Tensor) -> None:
        """Nothing."""

    def flush(self, step: int) -> None:
        """Nothing."""

    def measured(self, step: int, loss: float, pictures: npt.NDArray[np.uint8] | None = None) -> None:
        """Nothing."""

    def pause(self, since: float) -> None:
        """Nothing."""

    def lap(self) -> float:
        """No time."""
        return 0.0

    def close(self) -> None:
        """Nothing."""


class Progress(Unwatched):
    """The record of one process's stretch of a run, from step ``start``."""

    def __init__(self, out: Path, about: dict[str, Any], loader: Loader, start: int, where: torch.device) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of imports that only training needs

        self.out, self.about, self.loader, self.device = out, about, loader, where
        self.log = Log(out, start)
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start or None)
        self.meter = console.Meter(about["steps"])
        self._losses: list[tuple[int, float, Tensor]] = []
        self._begun = self._lap = self._flushed = time.monotonic()
        self._first = self._since = start
        self._waited = loader.waited
        self._measuring = 0.0  # seconds spent outside of steps

    def step(self, step: int, rate: float, loss: Tensor) -> None:
        """One optimizer step is under way: ``loss`` may still be computing."""
        self._losses.append((step + 1, rate, loss))
        if time.monotonic() - self._flushed > FLUSH:
            self.flush(step + 1)

    def flush(self, step: int) -> None:
        """Write the steps since the last flush. Raises TrainingError where a loss is not finite."""
        if not self._losses:
            return
        losses = torch.stack([loss for _, _, loss in self._losses]).tolist()  # the only wait for the device
        now = time.monotonic()
        batch = self.about["batch_size"]
        speed = (step - self._since) * batch / (now - self._flushed)
        for (done, rate, _), loss in zip(self._losses, losses, strict=True):
            self.log.add(step=done, loss=loss, lr=rate, **({"images_per_s": speed} if done == step else {}))
            self.board.add_scalar("loss/train", loss, done)
            self.board.add_scalar("lr", rate, done)
        self.board.add_scalar("images_per_s", speed, step)
        self.log.flush()
        self._check(losses)
        self._losses, self._flushed, self._since = [], now, step
        self._account(now, step)
        self.meter.show(step, self._state(losses[-1], speed, step, now))

    def measured(self, step: int, loss: float, pictures: npt.NDArray[np.uint8] | None = None) -> None:
        """The held-out loss at a step, and reconstructions of held-out images, RGB [H, W, 3]."""
        baselines = self.about["baselines"]
        self.log.add(step=step, held_out=loss, **{f"baseline_{name}": value for name, value in baselines.items()})
        self.log.flush()
        self.board.add_scalar("loss/held_out", loss, step)
        for name, value in baselines.items():
            self.board.add_scalar(f"loss/baseline_{name}", value, step)
        if pictures is not None:
            Image.fromarray(pictures).save(self.out / "samples" / f"step-{step:07d}.png")
            self.board.add_image("reconstructions", pictures, step, dataformats="HWC")

    def pause(self, since: float) -> None:
        """Time spent since then on measuring and saving does not count as training."""
        now = time.monotonic()
        self._measuring += now - since
        self._flushed = now

    def lap(self) -> float:
        """Seconds since the last call (or the beginning)."""
        now = time.monotonic()
        lap, self._lap = now - self._lap, now
        return lap

    def close(self) -> None:
        """End the record."""
        self.meter.close()
        self.log.close()
        self.board.close()

    def _account(self, now: float, step: int) -> None:
        training = now - self._begun - self._measuring
        self.about["images_per_s"] = (step - self._first) * self.about["batch_size"] / training
        self.about["data_wait_fraction"] = (self.loader.waited - self._waited) / training

    def _state(self, loss: float, speed: float, step: int, now: float) -> str:
        best = min(self.about["baselines"].values()) or float("nan")  # no valid pixel is held out
        left = (self.about["steps"] - step) * (now - self._begun) / max(1, step - self._first)
        return (
            f"loss {loss:.3f} ({loss / best:.0%} of baseline)  {speed:,.0f} img/s  "
            f"data wait {self.about['data_wait_fraction']:.1%}  "
            f"{device.peak_memory(self.device) / 2**30:.1f} GiB  {console.clock(left)} left"
        )

    def _check(self, losses: list[float]) -> None:
        for (step, rate, _), loss in zip(self._losses, losses, strict=True):
            if loss - loss == 0:
                continue
            try:
                good = f"the last good checkpoint is {checkpoint.latest(self.out)}"
            except RunError:
                good = "there is no checkpoint yet"
            raise TrainingError(
                f"the loss is {loss} at step {step} with a learning rate of {rate:.2e}; {good}. Try a smaller "
                "train.base_lr, train.precision=fp32, or look for extreme values with 'maectl inspect'"
            )
