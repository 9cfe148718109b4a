"""The fixed held-out measurement: the same images, crops and masks at every checkpoint, beside trivial baselines.

It answers "is my loss normal?": predicting each patch's mean, and copying the nearest visible patch, are what a model
that has learnt nothing beyond them can do, measured in the model's own target.
"""

import numpy as np
import numpy.typing as npt
import torch

from maectl import device
from maectl.baselines import nearest_visible, patch_mean
from maectl.dataset import Batch, Loader, normalise
from maectl.mae import MaskedAutoencoder
from maectl.stats import Normalizer
from maectl.stream import HELD_OUT

__all__ = ["HeldOut", "verdict"]

LEAST_VIEWS = 64  # fewer sources are seen in several crops each
BATCH = 64  # views measured at once; part of what keys their crops, so never a setting


class HeldOut:
    """The held-out views of a run, kept in memory, and the two baselines on them. Of several processes one has them."""

    def __init__(
        self, loader: Loader, rows: npt.NDArray[np.int64], normalizer: Normalizer, where: torch.device, precision: str
    ) -> None:
        self.normalizer, self.device, self.precision = normalizer, where, precision
        cycled = np.resize(rows, max(len(rows), LEAST_VIEWS)) if len(rows) else rows
        chunks = [cycled[first : first + BATCH] for first in range(0, len(cycled), BATCH)]
        self.batches: list[Batch] = [loader.batch(chunk, number, HELD_OUT) for number, chunk in enumerate(chunks)]
        self.baselines: dict[str, float] = {}

    @torch.no_grad()
    def loss(self, model: MaskedAutoencoder, mask_ratio: float) -> float:
        """The model's loss on the views."""
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        counted = torch.zeros((), device=self.device, dtype=torch.int64)
        for batch in self.batches:
            images, valid = normalise(batch, self.normalizer, self.device)
            with device.autocast(self.device, self.precision):
                output = model(images, batch.noise.to(self.device), mask_ratio, valid)
            total += output.loss_sum
            counted += output.counted
        return float(total / counted.clamp(min=1))

    @torch.no_grad()
    def measure_baselines(self, model: MaskedAutoencoder, mask_ratio: float) -> dict[str, float]:
        """The losses of the two trivial predictions, in the model's own target; also kept as `baselines`."""
        sums = {"patch_mean": np.zeros(2), "nearest_visible": np.zeros(2)}
        for batch in self.batches:
            images, valid = normalise(batch, self.normalizer, self.device)
            for name, predict in (("patch_mean", patch_mean), ("nearest_visible", nearest_visible)):
                total, counted = predict(model, images, batch.noise.to(self.device), mask_ratio, valid)
                sums[name] += (float(total), float(counted))
        self.baselines = {name: float(total / max(1, counted)) for name, (total, counted) in sums.items()}
        return self.baselines


def verdict(loss: float, baselines: dict[str, float]) -> str:
    """In words: whether the model does better than predicting nothing but the obvious."""
    best = min(baselines, key=lambda name: baselines[name])
    words = {"patch_mean": "predicting each patch's mean", "nearest_visible": "copying the nearest visible patch"}
    share = loss / baselines[best] if baselines[best] > 0 else float("inf")
    rest = f"held-out loss {loss:.4f}; {words['patch_mean']} gives {baselines['patch_mean']:.4f}, "
    rest += f"{words['nearest_visible']} {baselines['nearest_visible']:.4f}"
    if share < 1:
        return f"the model beats both baselines: its loss is {share:.0%} of {words[best]} ({rest})"
    return f"the model does NOT beat {words[best]} yet: train longer, or look at the reconstructions ({rest})"
