"""Where a training step's time goes, by kind of work, side by side.

    python benchmarks/profiles.py [--size T128] [--precision bf16] [--peers maectl transformers] [--json FILE]

Self times of torch's profiler over some steps in one thread, in milliseconds a step, as a Markdown table. Needs
transformers.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from peers import PEERS, SIZES, Peer
from record import keep
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from maectl import device

STEPS = 5
# kinds of work by the names of their operators, first come first served
KINDS = {
    "products of matrices": ("aten::mm", "aten::addmm", "aten::linear"),
    "attention": ("flash_attention", "scaled_dot_product", "aten::bmm", "aten::baddbmm", "softmax"),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_norm",),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous"),
    "picking rows": ("index", "gather", "scatter", "argsort", "aten::sort"),
    "optimizer": ("adam", "foreach", "addcdiv", "addcmul", "lerp"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="T128")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["maectl", "transformers"])
    parser.add_argument("--json", type=Path, help="keep the result there, beside others")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = SIZES[asked.size]
    images = torch.randn(size.batch, 3, size.image, size.image)
    found = {name: profiled(PEERS[name](size), images, asked.precision) for name in asked.peers}
    keep(asked.json, f"profile {asked.size} {asked.precision}", found)
    print(f"| {asked.size}, {asked.precision}, ms a step | " + " | ".join(found) + " |")
    print("|---|" + "---|" * len(found))
    for kind in [*KINDS, "other"]:
        print(f"| {kind} | " + " | ".join(f"{each[kind]:.0f}" for each in found.values()) + " |")
    print("| all | " + " | ".join(f"{sum(each.values()):.0f}" for each in found.values()) + " |")


def profiled(peer: Peer, images: Tensor, precision: str) -> dict[str, float]:
    """Milliseconds a step by kind of work."""
    optimizer = peer.optimizer(peer.model)

    def step() -> None:
        with device.autocast(torch.device("cpu"), precision):
            loss = peer.loss(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(STEPS):
            step()
    times: dict[str, float] = defaultdict(float)
    for event in watched.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / STEPS
    return {kind: times[kind] for kind in [*KINDS, "other"]}


def kind_of(operator: str) -> str:
    """What kind of work an operator is."""
    name = operator.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


if __name__ == "__main__":
    main()
