"""An index of ten million rows: time to a run's first batch, the memory it takes, and what a worker adds.

    python benchmarks/scale.py [--rows 10000000] [--workers 1 8] [--json FILE]

The rows name a few hundred real JPEG files over and over (benchmarks/index.py); some are decoded, none is scanned
again. Every count of workers has a process of its own. A "worker" is one of the loader's threads; what it adds is the
difference in resident memory after the same batches, over the threads more. Figures are of the process's own
memory: pages of mapped files, which the system takes back when it needs them, are given apart.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from index import FILES, draw, synthetic
from record import keep

BATCHES = 4


def main() -> None:
    """Run the benchmark, or in a process of its own the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, nargs=2, default=[1, 8])
    parser.add_argument("--json", type=Path, help="keep the result there, beside others")
    parser.add_argument("--measure", nargs=2, metavar=("INDEX", "WORKERS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measured(Path(asked.measure[0]), int(asked.measure[1]))))
        return
    result: dict[str, Any] = {"rows": asked.rows}
    with tempfile.TemporaryDirectory() as work:
        draw(Path(work) / "images", FILES)
        path = Path(work) / "large.arrow"
        synthetic(Path(work) / "images", asked.rows, path)
        result["index_mb"] = round(path.stat().st_size / 1e6)
        for workers in asked.workers:
            command = [sys.executable, __file__, "--measure", str(path), str(workers)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result[f"workers_{workers}"] = json.loads(said)
    few, many = (result[f"workers_{each}"]["own_mib"] for each in asked.workers)
    result["worker_adds_mib"] = round((many - few) / (asked.workers[1] - asked.workers[0]), 1)
    keep(asked.json, "scale", result)


def measured(path: Path, workers: int) -> dict[str, float]:
    """What a run does from opening its index to its first batch, and to some more."""
    from maectl.dataset import Loader, Views
    from maectl.index import Index, held_out
    from maectl.reading import Reader
    from maectl.registry import load
    from maectl.stats import Normalizer
    from maectl.stream import Stream
    from maectl.windows import Crop

    before, _ = memory()
    begun = time.perf_counter()
    index = Index(path)
    opened = time.perf_counter() - begun
    train, _ = held_out(index.groups, 0)
    normalizer = Normalizer((127.0,) * 3, (64.0,) * 3, None)
    views = Views(Reader(index, load("natural")(channels=3)), Crop((224, 224)), "image", normalizer, 0.5, 196, 0)
    stream = Stream(train, 64, 0, views.per_epoch(train))
    with closing(Loader(views, workers)) as loader:
        batches = loader.batches(stream, 0, 1_000_000)
        next(batches)
        first = time.perf_counter() - begun
        for _ in range(BATCHES):
            next(batches)
        own, mapped = memory()
    return {
        "open_s": round(opened, 3),
        "first_batch_s": round(first, 2),
        "own_mib": round(own, 1),
        "of_which_index_and_batches_mib": round(own - before, 1),
        "mapped_files_mib": round(mapped, 1),
    }


def memory() -> tuple[float, float]:
    """MiB resident: the process's own, and pages of mapped files (libraries among them)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


if __name__ == "__main__":
    main()
