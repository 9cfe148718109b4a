"""Slices and crops of compressed NIfTI volumes: read directly, and from the store.

    python benchmarks/volumes.py [--volumes 4] [--side 256] [--seconds 10]

Writes volumes of smooth noise into a temporary folder, builds the store, then draws windows in turn from either, in
one interleaved run; prints windows a second and the ratio. With the store each file is read once, when it is built.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maectl.adapter import Window
from maectl.recipe import DataRecipe
from maectl.scan import scan
from maectl.store import Reader, build
from maectl_medical import Medical
from maectl_medical.nifti import save_like_volume


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        print(json.dumps(_measured(Path(work), asked.volumes, asked.side, asked.seconds), indent=1))


def _measured(work: Path, volumes: int, side: int, seconds: float) -> dict[str, float]:
    images = work / "images"
    images.mkdir()
    for number in range(volumes):
        _write(images / f"{number}", side, number)
    found = scan([images], Medical, DataRecipe(), work / "index.arrow")
    begun = time.perf_counter()
    store, bad = build(found.index, found.adapter, work / "store")
    assert not bad, bad
    result = {
        "volumes": volumes,
        "side": side,
        "file_mb": sum(path.stat().st_size for path in images.iterdir()) / 1e6 / volumes,
        "store_seconds_a_volume": (time.perf_counter() - begun) / volumes,
    }
    readers = {"direct": Reader(found.index, found.adapter), "store": Reader(found.index, found.adapter, store)}
    rng = np.random.default_rng(0)
    kinds = {"slices": lambda: _slice(rng, side), "crops_96": lambda: _crop(rng, side, min(96, side))}
    for kind, window in kinds.items():
        rates = _rates(readers, window, volumes, rng, seconds)
        result |= {f"{kind}_a_second_{name}": rate for name, rate in rates.items()}
        result[f"{kind}_ratio"] = rates["store"] / rates["direct"]
    return result


def _rates(
    readers: dict[str, Reader], window: Callable[[], Window], volumes: int, rng: np.random.Generator, seconds: float
) -> dict[str, float]:
    """Median windows a second of each reader, in turns."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(times["direct"]) < 5:
        for name, reader in readers.items():
            repeats = 1 if name == "direct" else 20
            before = time.perf_counter()
            for _ in range(repeats):
                np.array(reader.read(int(rng.integers(volumes)), window()).values)  # copied: a map is not read else
            times[name].append((time.perf_counter() - before) / repeats)
    return {name: 1 / float(np.median(each)) for name, each in times.items()}


def _slice(rng: np.random.Generator, side: int) -> Window:
    place = int(rng.integers(side))
    return slice(place, place + 1), slice(0, side), slice(0, side)


def _crop(rng: np.random.Generator, side: int, size: int) -> Window:
    return tuple(slice(int(start), int(start) + size) for start in rng.integers(0, side - size + 1, 3))


def _write(path: Path, side: int, seed: int) -> None:
    place = np.linspace(0, 6, side)
    smooth = np.sin(place)[:, None, None] + np.cos(1.7 * place)[None, :, None] + np.sin(2.3 * place)[None, None]
    noise = np.random.default_rng(seed).normal(0, 20, (side, side, side))
    values = (400 * smooth + noise).astype(np.int16)[None]
    save_like_volume(values, ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)), path)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
