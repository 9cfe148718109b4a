"""What a store costs and gains: building on one and two threads, bytes an image, reading a core.

    python benchmarks/store.py [--images 1500] [--volumes 8] [--rounds 3]
    python benchmarks/store.py --lock FOLDER --adapter NAME

Writes JPEG photographs of 500x375 px and .nii.gz volumes into a temporary folder, builds every form of store anew in
interleaved rounds, then reads whole images in one thread from the files and from each store in turn. Medians; the
ratio of two threads to one is of the same round. `cores_used` is processor time over wall time of two threads.

With ``--lock``: how late a thread that sleeps half a millisecond is woken while another decodes. As late as a decoding
takes, and that decoder holds the interpreter's lock: threads do not help it.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from record import keep

from maectl.adapter import Adapter
from maectl.index import Index
from maectl.recipe import DataRecipe
from maectl.registry import load
from maectl.scan import scan
from maectl.store import RAW, Form, Reader, build
from maectl.synthetic import photographs

NAP = 0.0005  # seconds
FORMS = {"raw": RAW, "raw_256": Form(256), "compact_256": Form(256, jpeg=True)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--large", type=int, default=40, help="photographs of 3000x2000 px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="results of all benchmarks, one JSON file")
    parser.add_argument("--lock", type=Path, metavar="FOLDER", help="measure this instead, on images of yours")
    parser.add_argument("--adapter", default="natural", help="of --lock")
    asked = parser.parse_args()
    if asked.lock:
        with tempfile.TemporaryDirectory() as name:
            keep(None, "lock", lock(*scanned(asked.lock, asked.adapter, Path(name))))
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        jpegs = scanned(photographs(work / "jpeg", asked.images), "natural", work)
        volumes = scanned(_volumes(work / "nifti", asked.volumes), "medical", work)
        result: dict[str, Any] = {
            "images": asked.images,
            "file_kib": sum(path.stat().st_size for path in (work / "jpeg").iterdir()) / asked.images / 1024,
        }
        for form, value in FORMS.items():
            result[f"jpeg_{form}"] = building(*jpegs, value, work, asked.rounds)
        result["nifti_gz_raw"] = building(*volumes, RAW, work, asked.rounds)
        result["read_a_second"] = reading(*jpegs, FORMS, work / "store", 5 * asked.rounds)
        large = scanned(photographs(work / "large", asked.large, (2000, 3000), 0.8), "natural", work)
        compact = {"compact_256": FORMS["compact_256"]}
        result["large_jpeg_compact_256"] = building(*large, compact["compact_256"], work, 1)
        result["large_read_a_second"] = reading(*large, compact, work / "store", asked.rounds)
    keep(asked.keep, "store", result)


def scanned(folder: Path, adapter: str, work: Path) -> tuple[Index, Adapter]:
    """The index and the adapter of a folder."""
    found = scan([folder], load(adapter), DataRecipe(), work / f"{adapter}.arrow")
    return found.index, found.adapter


def building(index: Index, adapter: Adapter, form: Form, work: Path, rounds: int) -> dict[str, float]:
    """Sources a second on one and on two threads, and bytes a source."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    used, size, alone = [], 0, []
    for turn in range(rounds):
        for threads in (1, 2) if turn % 2 else (2, 1):
            with tempfile.TemporaryDirectory(dir=work) as folder:
                begun, own = time.perf_counter(), time.process_time()
                store, bad = build(index, adapter, Path(folder), form=form, workers=threads)
                seconds[threads].append(time.perf_counter() - begun)
                own = time.process_time() - own
                (used if threads == 2 else alone).append(own / seconds[2][-1] if threads == 2 else own)
                assert not bad, bad
                size = sum(path.stat().st_size for path in store.folder.iterdir())
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return {
        "a_second_1_thread": len(index) / float(np.median(seconds[1])),
        "a_second_2_threads": len(index) / float(np.median(seconds[2])),
        "two_to_one": float(np.median(ratios)),
        "a_second_of_processor": len(index) / float(np.median(alone)),
        "cores_used": float(np.median(used)),
        "kib": size / len(index) / 1024,
    }


def reading(index: Index, adapter: Adapter, forms: dict[str, Form], store: Path, rounds: int) -> dict[str, float]:
    """Images a second of processor time in one thread, from the files and from every form of store.

    Files are decoded as for a model of 224 px: large ones at a half, a quarter or an eighth.
    """
    plain = Reader(index, adapter)
    reads = {"files": lambda row: plain.reduced(row, (336, 336))}
    for name, form in forms.items():
        reads[name] = Reader(index, adapter, build(index, adapter, store, form=form)[0]).read
    rows = np.random.default_rng(0).permutation(len(index))[:200].tolist()
    rates: dict[str, list[float]] = {name: [] for name in reads}
    for _ in range(rounds):
        for name, read in reads.items():
            begun = time.thread_time()
            for row in rows:
                np.array(np.moveaxis(read(row).values, 0, -1))  # a view of a map is read by copying it
            rates[name].append(len(rows) / (time.thread_time() - begun))
    return {name: float(np.median(each)) for name, each in rates.items()}


def lock(index: Index, adapter: Adapter, seconds: float = 3) -> dict[str, float]:
    """Milliseconds a decoding takes, and that a sleeper wakes up late meanwhile (median, 95th and 99th percentile)."""
    reader, late, done, count = Reader(index, adapter), [], threading.Event(), 0
    reader.read(0)

    def sleep() -> None:
        while not done.is_set():
            begun = time.perf_counter()
            time.sleep(NAP)
            late.append(1000 * (time.perf_counter() - begun - NAP))

    sleeper = threading.Thread(target=sleep)
    begun, own = time.perf_counter(), time.thread_time()
    sleeper.start()
    while time.perf_counter() - begun < seconds:
        reader.read(count % len(index))
        count += 1
    each = 1000 * (time.thread_time() - own) / count
    done.set()
    sleeper.join()
    return {"decoding_ms": each, **{f"late_ms_{share}": float(np.percentile(late, share)) for share in (50, 95, 99)}}


def _volumes(folder: Path, count: int) -> Path:
    """Volumes of smooth noise, 128 voxels a side, int16, gzipped."""
    folder.mkdir()
    for number in range(count):
        random = np.random.default_rng(number)
        fine = np.kron(random.normal(0, 300, (16,) * 3), np.ones((8,) * 3)) + random.normal(0, 10, (128,) * 3)
        nibabel.save(nibabel.Nifti1Image(fine.astype(np.int16), np.eye(4)), str(folder / f"{number}.nii.gz"))
    return folder


if __name__ == "__main__":
    main()
