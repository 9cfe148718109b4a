"""Loading: images a second a core against the reference's input pipeline, and what the store gains.

    python benchmarks/loader.py [--only photographs threads volumes rasters pretrain] [--seconds 20] [--json FILE]

photographs  500x375 px JPEGs of 43 KB and 6-megapixel ones of 750 KB, made of noise: Pillow and torchvision
             (RandomResizedCrop bicubic, flip, ToTensor, Normalize), and maectl's views from the files, from the raw
             store and from the compact one. One thread, in CPU time, interleaved, ratios paired within rounds. maectl
             normalises on the device; ``normalised`` adds that to its time, on this core. ``difference`` is that of
             a crop's grey levels from Pillow's crop of the same window
threads      the same in wall time, by one and two threads
volumes      slices of 256^3 .nii.gz volumes, direct and from the store; one thread, CPU time
rasters      224 px windows of an 8192 px 10-band deflated GeoTIFF, direct and from the store; one thread, CPU time
pretrain     images a second of pretrain's loop with a tiny model, from the store, over those of its bare step, in turns

Prints a JSON document each. Needs torchvision.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from overhead import pretrain
from PIL import Image
from record import keep

from maectl import console
from maectl.adapter import Pixels, Window
from maectl.dataset import Loader, Views, normalise
from maectl.index import Index
from maectl.prepare import prepare
from maectl.reading import Reader
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.stats import Normalizer
from maectl.store import build
from maectl.stream import TRAIN, Stream, generator
from maectl.synthetic import photographs as write
from maectl.windows import Crop

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (height, width), files, and how fast their amplitudes fall: 43 KB and 750 KB at quality 88
KINDS: dict[str, tuple[tuple[int, int], int, float]] = {
    "500x375": ((375, 500), 192, 0.58),
    "6_megapixel": ((2000, 3000), 16, 0.83),
}
# overrides that make each store
STORES = {"raw_store": ["data.store_form=raw"], "compact_store": ["data.store_form=compact"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {each.__name__: each for each in (photographs, threads, volumes, rasters, pretrain)}
    parser.add_argument("--only", nargs="+", choices=parts, default=[*parts])
    parser.add_argument("--seconds", type=float, default=20, help="a measurement")
    parser.add_argument("--json", type=Path, help="keep the results there, beside others")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console.mute(True)
    for name in asked.only:
        with tempfile.TemporaryDirectory() as work:
            keep(asked.json, f"loader {name}", {"torch": torch.__version__, **parts[name](Path(work), asked.seconds)})


# ---- photographs ---------------------------------------------------------------------------------------------


def photographs(work: Path, seconds: float) -> dict[str, Any]:
    """Images a second a core, by kind and way."""
    found: dict[str, Any] = {}
    for kind, (size, count, falloff) in KINDS.items():
        folder = write(work / kind, count, size, falloff)
        readers = stored(folder, work / f"{kind}-work")
        views = {name: viewed(reader) for name, reader in readers.items()}
        few = 32 if kind == "500x375" else 4  # images a turn
        ways: dict[str, Callable[[int], None]] = {"reference": reference(sorted(folder.iterdir()), few)}
        for name, each in views.items():
            ways[name] = filling(each, few, False)
            ways[f"{name}_normalised"] = filling(each, few, True)
        rates = interleaved(ways, few, seconds)
        found[kind] = {
            "kilobytes": float(np.mean([path.stat().st_size for path in folder.iterdir()])) / 1e3,
            "images_a_second": {name: few / float(np.median(times)) for name, times in rates.items()},
            "over_reference": {
                name: float(np.median(np.array(rates["reference"]) / times))
                for name, times in rates.items()
                if name != "reference"
            },
            "difference": {name: difference(reader, folder) for name, reader in readers.items()},
        }
    return found


def stored(folder: Path, work: Path) -> dict[str, Reader]:
    """Readers of a folder: of its files, and of each kind of store."""
    readers = {}
    for name, overrides in {"files": None, **STORES}.items():
        place = "off" if overrides is None else work / name
        (work / f"{name}-index").mkdir(parents=True)
        prepared = prepare(
            [folder], name="photographs", adapter="natural",
            overrides=[f"data.store={place}", "data.verify=0", *(overrides or [])],
            views=0, run=work / "run", work=work / f"{name}-index", workers=0,
        )  # fmt: skip
        readers[name] = prepared.reader
    return readers


def viewed(reader: Reader, flips: tuple[int, ...] = (1,)) -> Views:
    """As `pretrain` sees photographs: random resized crops, flipped or not."""
    normalizer = Normalizer(tuple(255 * each for each in MEAN), tuple(255 * each for each in STD), None)
    crop = Crop((SIDE, SIDE), (0.2, 1.0), (3 / 4, 4 / 3), flips)
    return Views(reader, crop, "image", normalizer, 0.5, (SIDE // 16) ** 2, 0)


def reference(paths: list[Path], few: int) -> Callable[[int], None]:
    """The reference's input pipeline, image by image and collated."""
    from torchvision import transforms

    seen = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def load(turn: int) -> None:
        images = []
        for place in range(few):
            with Image.open(paths[(turn * few + place) % len(paths)]) as image:
                images.append(seen(image.convert("RGB")))
        torch.stack(images)

    return load


def filling(views: Views, few: int, normalised: bool) -> Callable[[int], None]:
    """maectl's loading of so many images in the calling thread, normalised on the CPU where asked."""
    total = len(views.reader.index)

    def load(turn: int) -> None:
        rows = np.arange(turn * few, (turn + 1) * few) % total
        pending = views.allocate(rows, rows, generator(0, turn, TRAIN), False, slice(0, few))
        views.fill(pending, range(few), turn, TRAIN)
        if normalised:
            normalise(pending.batch(), views.normalizer, torch.device("cpu"))

    return load


def interleaved(ways: dict[str, Callable[[int], None]], few: int, seconds: float) -> dict[str, list[float]]:
    """CPU seconds of a turn of each way, in turns that begin with another one each time."""
    names = [*ways]
    for name in names:
        ways[name](0)
    times: dict[str, list[float]] = {name: [] for name in names}
    begun, turn = time.perf_counter(), 0
    while turn < 5 or time.perf_counter() - begun < seconds:
        turn += 1
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            before = time.process_time()
            ways[name](turn)
            times[name].append(time.process_time() - before)
    return times


class Recording:
    """An adapter or a store that remembers the last window read."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.window = inner, ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __contains__(self, row: int) -> bool:
        return row in self.inner

    def read(self, which: Any, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        """Read."""
        self.window = window
        return self.inner.read(which, window, shape)


def difference(reader: Reader, folder: Path, crops: int = 16) -> dict[str, float]:
    """Grey levels by which crops of the same windows differ from Pillow's, the most and in the mean."""
    recording = Recording(reader.adapter if reader.store is None else reader.store)
    own = (recording, None) if reader.store is None else (reader.adapter, recording)
    views = viewed(Reader(reader.index, *own), flips=())
    paths, apart = sorted(folder.iterdir()), []
    for number in range(crops):
        row = np.array([number % len(reader.index)])
        pending = views.allocate(row, row, generator(1, number, TRAIN), False, slice(0, 1))
        views.fill(pending, range(1), number, TRAIN)
        top, left = recording.window
        with Image.open(paths[int(row[0])]) as image:
            # a store of smaller images has smaller windows
            scale = image.height / views.reader.shapes[row[0], 1]
            box = [round(float(side) * scale) for side in (left.start, top.start, left.stop, top.stop)]
            cut = image.convert("RGB").crop((box[0], box[1], box[2], box[3]))
            theirs = np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int64)
        apart.append(np.abs(theirs - np.moveaxis(pending.images[0].numpy(), 0, -1)))
    return {"max": float(np.max(apart)), "mean": float(np.mean(apart))}


# ---- threads, volumes, rasters ----------------------------------------------------------------------------------


def threads(work: Path, seconds: float) -> dict[str, Any]:
    """Images a second in wall time by one and two threads, in turns."""
    size, count, falloff = KINDS["500x375"]
    readers = stored(write(work / "images", count, size, falloff), work / "work")
    loaders = {
        (name, workers): Loader(viewed(reader), workers) for name, reader in readers.items() for workers in (1, 2)
    }
    streams = {key: loader.batches(_stream(loader.views.reader.index), 0, 1 << 30) for key, loader in loaders.items()}
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(rates["files", 1]) < 3:
        for key, batches in streams.items():
            rates[key].append(_rate(batches))
    for loader in loaders.values():
        loader.close()
    return {f"{name}_{workers}": float(np.median(each)) for (name, workers), each in rates.items()}


def _stream(index: Index) -> Stream:
    return Stream(np.arange(len(index)), 64, 0)


def _rate(batches: Iterator[Any], count: int = 6) -> float:
    for _ in range(3):  # what was prepared while others had their turn
        next(batches)
    begun = time.perf_counter()
    images = sum(len(next(batches).images) for _ in range(count))
    return images / (time.perf_counter() - begun)


def volumes(work: Path, seconds: float) -> dict[str, Any]:
    """Slices of compressed NIfTI volumes, direct and from the store."""
    from volumes import _write

    side = 256
    (work / "images").mkdir()
    for number in range(2):
        _write(work / "images" / str(number), side, number)

    def window(rng: np.random.Generator) -> Window:
        place = int(rng.integers(side))
        return slice(place, place + 1), slice(0, side), slice(0, side)

    return windows(work, "medical", window, 500, seconds)


def rasters(work: Path, seconds: float) -> dict[str, Any]:
    """Windows of a deflated 10-band GeoTIFF, much larger than GDAL's cache, direct and from the store."""
    from rasters import write as raster

    side = 8192
    (work / "images").mkdir()
    raster(work / "images" / "scene.tif", side, 10)

    def window(rng: np.random.Generator) -> Window:
        top, left = (int(each) for each in rng.integers(0, side - SIDE, 2))
        return slice(top, top + SIDE), slice(left, left + SIDE)

    return windows(work, "satellite", window, 50, seconds)


def windows(
    work: Path, adapter: str, window: Callable[[np.random.Generator], Window], many: int, seconds: float
) -> dict[str, Any]:
    """Random windows a second of CPU time, copied as they are: one direct, so many from the store, in turns."""
    found = scan([work / "images"], load(adapter), DataRecipe(), work / "index.arrow")
    begun = time.process_time()
    store, bad = build(found.index, found.adapter, work / "store", workers=1)
    assert not bad, bad
    building = time.process_time() - begun
    rng, turns = np.random.default_rng(0), {"direct": 1, "store": many}
    readers = {"direct": Reader(found.index, found.adapter), "store": Reader(found.index, found.adapter, store)}
    times: dict[str, list[float]] = {name: [] for name in readers}
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(times["direct"]) < 5:
        for name, reader in readers.items():
            before = time.process_time()
            for _ in range(turns[name]):
                np.array(reader.read(int(rng.integers(len(found.index))), window(rng)).values)
            times[name].append((time.process_time() - before) / turns[name])
    rates = {f"{name}_a_second": 1 / float(np.median(each)) for name, each in times.items()}
    return {**rates, "ratio": rates["store_a_second"] / rates["direct_a_second"], "store_building_s": building}


if __name__ == "__main__":
    main()
