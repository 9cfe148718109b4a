"""One raster far larger than memory allows: start-up, windows a second and memory, direct and from the store.

    python benchmarks/rasters.py [--side 20000] [--bands 10] [--window 224] [--seconds 20] [--threads 1] [--folder DIR]

Writes a tiled, deflated uint16 GeoTIFF of smooth relief and noise, with a border of nodata, block row by block row
(kept in DIR where one is given), then measures in processes of their own, so that each one's peak memory is its own:

scan       headers, until an index is there
statistics what stands for the raster in statistics (`Reader.sample`)
store      the raster into the store
direct     windows read through the raster's own blocks, by so many threads
stored     the same windows from the store

Windows are drawn at random over the raster. Prints JSON.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NODATA = 0
BORDER = 512  # pixels of nodata at the left


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--bands", type=int, default=10)
    parser.add_argument("--window", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder and asked.folder.parent) as work:
        folder = asked.folder or Path(work) / "raster"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "scene.tif"
        if not path.exists():
            apart(write, path, asked.side, asked.bands)
        result: dict[str, Any] = {
            "side": asked.side,
            "bands": asked.bands,
            "file_mb": path.stat().st_size / 1e6,
            "threads": asked.threads,
        }
        for measure in (scanned, statistics, stored):
            result[measure.__name__] = apart(measure, folder, Path(work), asked)
        for name in ("direct", "from_store"):
            result[name] = apart(windows, folder, Path(work), asked, name == "from_store")
        result["ratio"] = result["from_store"]["windows_a_second"] / result["direct"]["windows_a_second"]
        print(json.dumps(result, indent=1))


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function run in a fresh process, with that process's peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, arguments))


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    result = function(*arguments)
    if isinstance(result, dict):
        result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        about = Path("/proc/self/status")
        if about.exists():  # without the pages of mapped files, which the system takes back when it needs them
            lines = dict(line.split(":", 1) for line in about.read_text().splitlines())
            result["own_mib_at_the_end"] = int(lines["RssAnon"].split()[0]) / 1024
    return result


def write(path: Path, side: int, bands: int) -> None:
    """A raster, one row of blocks at a time."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=bands, dtype="uint16", nodata=NODATA,
        crs="EPSG:32632", transform=from_origin(500_000, 5_500_000, 10, 10), tiled=True, blockxsize=512, blockysize=512,
        compress="deflate", predictor=2, zlevel=1, interleave="pixel", BIGTIFF="YES",
    ) as file:  # fmt: skip
        columns = np.arange(side)
        for top in range(0, side, 512):
            rows = np.arange(top, min(top + 512, side))
            relief = 600 * np.sin(rows / 311)[:, None] * np.cos(columns / 173) + 2000
            noise = rng.integers(0, 64, (len(rows), side), np.uint16)
            block = np.stack([(relief * (0.5 + band / bands)).astype(np.uint16) + noise for band in range(bands)])
            block[:, :, :BORDER] = NODATA
            file.write(block, window=Window(0, top, side, len(rows)))


def opened(folder: Path, work: Path) -> Any:
    """The scan of the folder."""
    from maectl.recipe import DataRecipe
    from maectl.registry import load
    from maectl.scan import scan

    return scan([folder], load("satellite"), DataRecipe(), work / "index.arrow")


def scanned(folder: Path, work: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Until there is an index."""
    begun = time.perf_counter()
    found = opened(folder, work)
    return {"seconds": time.perf_counter() - begun, "images": len(found.index)}


def statistics(folder: Path, work: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Of the sample that stands for the raster."""
    from maectl.stats import gather
    from maectl.store import Reader

    found = opened(folder, work)
    begun = time.perf_counter()
    gather([Reader(found.index, found.adapter).sample(0)])
    return {"seconds": time.perf_counter() - begun}


def stored(folder: Path, work: Path, asked: argparse.Namespace) -> dict[str, float]:
    """The raster into the store."""
    from maectl.store import build

    found = opened(folder, work)
    begun = time.perf_counter()
    _, bad = build(found.index, found.adapter, work / "store", workers=asked.threads)
    assert not bad, bad
    size = sum(path.stat().st_size for path in (work / "store").rglob("*.pixels"))
    return {"seconds": time.perf_counter() - begun, "gb": size / 1e9}


def windows(folder: Path, work: Path, asked: argparse.Namespace, store: bool) -> dict[str, float]:
    """Random windows, copied as a loader does."""
    from concurrent.futures import ThreadPoolExecutor

    from maectl.store import Reader, build

    found = opened(folder, work)
    begun = time.perf_counter()
    reader = Reader(found.index, found.adapter, build(found.index, found.adapter, work / "store")[0] if store else None)
    opening, rng = time.perf_counter() - begun, np.random.default_rng(1)

    def one(corner: Any) -> None:
        top, left = (int(side) for side in corner)
        window = slice(top, top + asked.window), slice(left, left + asked.window)
        np.array(reader.read(0, window).values, np.float32)

    begun, count = time.perf_counter(), 0
    with ThreadPoolExecutor(asked.threads) as pool:
        while time.perf_counter() - begun < asked.seconds:
            corners = rng.integers(0, asked.side - asked.window, (64, 2))
            count += len(list(pool.map(one, corners)))
    return {"opening_seconds": opening, "windows_a_second": count / (time.perf_counter() - begun)}


if __name__ == "__main__":
    main()
