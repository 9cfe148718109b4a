"""A training step by several libraries, side by side in one interleaved run: seconds, activations, utilisation.

    python benchmarks/step.py [--size T128|S96|B224|L224] [--rounds 30] [--seconds 600] [--threads 1] [--device cpu]
                              [--precision fp32 bf16] [--peers maectl transformers lightly monai] [--batch N]
                              [--compile] [--json FILE]

Every round runs one step of every variant, beginning with another one each time; ratios are paired within rounds, so
that other work on the machine meets all alike. With one thread on a CPU the clock is the process's CPU time. Rounds
end when every ratio's median is known to 1 %, or after so many rounds or seconds. L224 compares the encoder on
visible patches with the encoder on all tokens, over the ratio of their counted FLOP. A library that is not installed
is left out, and said so: `pip install --group bench`.

Activations are what a forward pass keeps for the backward one: the unique storages it saves, weights excluded. On
CUDA `peak_bytes` is the most a step allocates beyond weights and the optimizer's moments. `steps` holds whole steps
(zero_grad, forward, backward, optimizer), `passes` forward and backward alone.
"""

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import PEERS, RATIO, SIZES, Peer, Size
from record import keep
from torch import Tensor

from maectl import device, flops

LEAST = 5  # rounds
ENOUGH = 0.01  # relative error of a median at which a ratio is known


@dataclass
class Variant:
    """One model in one precision, and what its steps took."""

    name: str
    peer: Peer
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor], Tensor]
    precision: str
    steps: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    saved_bytes: int = 0
    peak_bytes: int | None = None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="T128")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=str(device.pick()))
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--peers", nargs="+", choices=PEERS)
    parser.add_argument("--compile", action="store_true", help="add compiled variants of maectl and transformers")
    parser.add_argument("--json", type=Path, help="keep the result there, beside others")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    where, size = torch.device(asked.device), SIZES[asked.size]
    if asked.batch:
        size = Size(**{**vars(size), "batch": asked.batch})
    names = asked.peers or (["maectl", "full_tokens"] if asked.size == "L224" else [*PEERS][:4])
    variants = made(names, size, where, asked.precision, asked.compile)
    if not variants:
        raise SystemExit("no variant can be had here")
    images = torch.randn(size.batch, 3, size.image, size.image, device=where)
    clock = time.process_time if where.type == "cpu" and asked.threads == 1 else time.perf_counter
    rounds = measured(variants, images, clock, asked.rounds, asked.seconds)
    result = {
        "size": asked.size,
        "batch": size.batch,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else platform.machine(),
        "threads": asked.threads,
        "clock": clock.__name__,
        "torch": torch.__version__,
        "rounds": rounds,
        **summary(variants, size, where),
    }
    keep(asked.json, f"step {asked.size} {where.type}", result)


def made(names: list[str], size: Size, where: torch.device, precisions: list[str], compiled: bool) -> list[Variant]:
    """The variants that can be had here; precisions share a model."""
    variants = []
    for name in names:
        try:
            peer = PEERS[name](size)
        except ImportError as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        peer.model.to(where).train()
        optimizer = peer.optimizer(peer.model)
        ways: dict[str, Callable[[Tensor], Tensor]] = {name: peer.loss}
        if compiled and name in ("maectl", "transformers"):
            ways[f"{name} compiled"] = torch.compile(peer.loss, dynamic=False)
        variants += [
            Variant(f"{way} {precision}", peer, optimizer, loss, precision)
            for way, loss in ways.items()
            for precision in precisions
        ]
    return variants


def measured(variants: list[Variant], images: Tensor, clock: Callable[[], float], most: int, seconds: float) -> int:
    """Rounds until the medians are known; how many it took. Variants that do not run are removed."""
    for variant in [*variants]:
        try:
            step(variant, images, clock)  # allocates, compiles
        except RuntimeError as error:  # MONAI's network, for one, does not run under bf16 autocast
            print(f"{variant.name} is left out, it fails: {str(error).splitlines()[0]}", file=sys.stderr)
            variants.remove(variant)
            continue
        variant.steps.clear()
        variant.passes.clear()
        variant.saved_bytes = saved_bytes(variant, images)
        print(f"{variant.name}: {variant.saved_bytes / 2**20:,.0f} MiB saved", file=sys.stderr)
    begun = time.monotonic()
    for number in range(most):
        for place in range(len(variants)):
            step(variants[(place + number) % len(variants)], images, clock)
        if number + 1 >= LEAST and (known(variants) or time.monotonic() - begun > seconds):
            return number + 1
    return most


def step(variant: Variant, images: Tensor, clock: Callable[[], float]) -> None:
    """One whole step."""
    where, baseline = images.device, 0
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        baseline = torch.cuda.memory_allocated(where)
    device.synchronise(where)
    begun = clock()
    variant.optimizer.zero_grad()
    with device.autocast(where, variant.precision):
        loss = variant.loss(images)
    loss.backward()
    device.synchronise(where)
    passed = clock()
    variant.optimizer.step()
    device.synchronise(where)
    variant.steps.append(clock() - begun)
    variant.passes.append(passed - begun)
    variant.optimizer.zero_grad()
    if where.type == "cuda":
        variant.peak_bytes = torch.cuda.max_memory_allocated(where) - baseline


def saved_bytes(variant: Variant, images: Tensor) -> int:
    """Bytes of the unique storages that a forward pass saves for the backward one, weights and images excluded."""
    known_ = {tensor.untyped_storage().data_ptr() for tensor in (*variant.peer.model.parameters(), images)}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known_:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with device.autocast(images.device, variant.precision):
            loss = variant.loss(images)
        loss.backward()
    variant.optimizer.zero_grad()
    return sum(seen.values())


def known(variants: list[Variant]) -> bool:
    """Whether the median of every paired ratio to the first variant has settled."""
    first = np.array(variants[0].steps)
    for variant in variants[1:]:
        ratios = np.array(variant.steps) / first
        low, high = np.quantile(ratios, [0.25, 0.75])
        # of a median: 1.25 standard deviations over √n, a deviation being 0.74 interquartile ranges
        if 1.25 * 0.74 * (high - low) / math.sqrt(len(ratios)) > ENOUGH * np.median(ratios):
            return False
    return True


def summary(variants: list[Variant], size: Size, where: torch.device) -> dict[str, Any]:
    """Figures of each variant, and how many times as fast maectl's are as each other one."""
    counted = flops.step(size.arguments(), RATIO, size.batch)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peaks = {name: flops.product_rate(where, dtypes[name]) for name in {each.precision for each in variants}}
    rows = {
        each.name: {
            "step_s": float(np.median(each.steps)),
            "step_min_s": min(each.steps),
            "pass_s": float(np.median(each.passes)),
            "images_per_s": size.batch / float(np.median(each.steps)),
            "saved_mib": round(each.saved_bytes / 2**20, 1),
            "peak_mib": None if each.peak_bytes is None else round(each.peak_bytes / 2**20, 1),
            "mfu": (counted.full_tokens if each.name.startswith("full_tokens") else counted.standard)
            * size.batch
            / float(np.median(each.steps))
            / peaks[each.precision],
        }
        for each in variants
    }
    ratios = {}
    for own in (each for each in variants if each.name.startswith("maectl")):
        for other in variants:
            if other is own or (other.peer is own.peer and other.name != "maectl fp32"):
                continue
            ratios[f"{own.name} over {other.name}"] = {
                "step": _ratio(other.steps, own.steps),
                "step_of_mins": min(other.steps) / min(own.steps),
                "pass": _ratio(other.passes, own.passes),
                "saved": own.saved_bytes / other.saved_bytes,
            }
    result = {"variants": rows, "times_as_fast": ratios, "flops_an_image": counted._asdict()}
    expected = counted.full_tokens / counted.standard
    full = {
        name: ratio["pass"] / expected
        for name, ratio in ratios.items()
        if "full_tokens" in name and name.split()[1] == name.split()[-1]
    }
    return {**result, "flop_ratio": expected, "over_flop_ratio": full} if full else result


def _ratio(others: list[float], own: list[float]) -> float:
    """The median of ratios paired within rounds."""
    return float(np.median(np.array(others) / np.array(own)))


if __name__ == "__main__":
    main()
