"""How an index scales: time to open, memory it adds, time to the first batch; and headers scanned a second.

    python benchmarks/index.py [--rows 1000000] [--headers 20000]

Prints one JSON document. The rows are synthetic: they name a few hundred real JPEG files over and over.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

FILES = 256


def main() -> None:
    """Run the benchmark, or in a process of its own the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--headers", type=int, default=20_000)
    parser.add_argument("--measure", metavar="INDEX", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(Path(options.measure))))
        return
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        draw(folder, options.headers)
        rate = headers(folder, Path(work))
        synthetic(folder, options.rows, Path(work) / "large.arrow")
        command = [sys.executable, __file__, "--measure", str(Path(work) / "large.arrow")]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps({"rows": options.rows, **found, **rate}, indent=1))


def draw(folder: Path, count: int) -> None:
    """``count`` JPEG files, of which 256 differ."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(FILES):
        noise = generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((500, 375)).save(folder / f"{number:07d}.jpg", quality=88)
    for number in range(FILES, count):
        (folder / f"{number:07d}.jpg").write_bytes((folder / f"{number % FILES:07d}.jpg").read_bytes())


def headers(folder: Path, work: Path) -> dict[str, float]:
    """Headers a second, on one core and on all."""
    from maectl.recipe import DataRecipe
    from maectl.registry import load
    from maectl.scan import scan

    rates = {}
    for name, workers in (("headers_per_s_one_core", 1), ("headers_per_s_all_cores", 0)):
        begun = time.perf_counter()
        found = scan([folder], load("natural"), DataRecipe(), work / "index.arrow", workers=workers)
        rates[name] = round(len(found.index) / (time.perf_counter() - begun))
    return rates


def synthetic(folder: Path, rows: int, path: Path) -> None:
    """An index of that many rows over the first 256 files."""
    from maectl.index import Index
    from maectl.recipe import DataRecipe
    from maectl.registry import load
    from maectl.scan import scan

    found = scan([folder], load("natural"), DataRecipe(), path.with_suffix(".few"))
    Index(found.index.path).take(np.arange(rows) % FILES, path)


def measured(path: Path) -> dict[str, float]:
    """In a fresh process: what opening and using the index costs beyond the imports."""
    from maectl.dataset import Loader, Views
    from maectl.index import Index, held_out
    from maectl.registry import load
    from maectl.stats import Normalizer
    from maectl.store import Reader
    from maectl.stream import Stream
    from maectl.windows import Crop

    before, begun = memory(), time.perf_counter()
    index = Index(path)
    opened = time.perf_counter() - begun
    added = memory() - before
    train, _ = held_out(index.groups, 0)
    normalizer = Normalizer((127.0,) * 3, (64.0,) * 3, None)
    views = Views(Reader(index, load("natural")(channels=3)), Crop((224, 224)), "image", normalizer, 0.5, 196, 0)
    loader = Loader(views, workers=2)
    next(loader.batches(Stream(train, 64, 0), 0, 1))
    first = time.perf_counter() - begun
    loader.close()
    return {
        "open_s": round(opened, 4),
        "open_adds_mib": round(added, 1),
        "first_batch_s": round(first, 2),
        "first_batch_adds_mib": round(memory() - before, 1),
    }


def memory() -> float:
    """MiB of this process's own memory, mapped files included once touched."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
