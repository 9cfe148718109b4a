"""What is in a folder, from all headers and a sample of the pixels; no torch, nothing written."""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from maectl import console
from maectl.adapter import Pixels, Source
from maectl.errors import Unreadable
from maectl.index import Index
from maectl.planes import patch_length, too_small
from maectl.prepare import scan_with_recipe
from maectl.recipe import Recipe
from maectl.scan import Scan
from maectl.stats import Statistics, gather
from maectl.store import NOTHING, Reader, bounded, in_order

__all__ = ["inspect", "report"]

SAMPLED = 256  # sources whose pixels are looked at
READ = 1_000_000_000  # pixels looked at, but for four sources


def inspect(folders: Sequence[str], *, adapter: str | None, workers: int) -> dict[str, Any]:
    """What ``--json`` prints. Raises DataError where nothing can be used."""
    with tempfile.TemporaryDirectory(prefix="maectl-") as work:
        chosen, found = scan_with_recipe(folders, None, adapter, (), Path(work), workers)
        index: Index = found.index
        reader = Reader(index, found.adapter)
        rows = _spread(reader)
        undecodable: list[tuple[int, str]] = []
        pixels = _sampled(reader, rows, workers, undecodable)
        first = next(pixels, None)
        statistics = None if first is None else gather(chain((first,), pixels))
        copies = _duplicates(index)
        return {
            "adapter": found.adapter.name,
            "images": len(index),
            "rejected": len(found.rejects),
            "foreign_files": found.foreign,
            "groups": len(np.unique(index.groups)),
            "facts": dict(sorted(found.facts.items())),
            "channels": _shares(index, lambda source: "/".join(source.channels)),
            "dtypes": _shares(index, lambda source: source.dtype),
            "sizes": _sizes(index),
            "spacing": _spacing(found),
            "patch": _patch(found, chosen),
            "unit": sorted({source.unit for source, _ in index.kinds}),
            "value_range": None if statistics is None else [min(statistics.minimum), max(statistics.maximum)],
            "statistics": None if statistics is None else statistics.json(),
            "invalid_fraction": None if statistics is None else statistics.invalid_fraction,
            "duplicates": copies,
            "problems": _problems(found, undecodable, copies, statistics, chosen),
            "rejects": [{"paths": p, "reason": reason} for _, p, _, reason in found.rejects.rows],
            "recipe": chosen.model_dump(mode="json"),
        }


def report(result: dict[str, Any]) -> str:
    """The result for people."""
    sizes = result["sizes"]
    low, middle, high = ("x".join(map(str, sizes[key])) for key in ("smallest", "median", "largest"))
    lines = [
        f"adapter   {result['adapter']}",
        f"images    {result['images']:,} in {result['groups']:,} groups; {result['rejected']:,} rejected, "
        f"{result['foreign_files']:,} other files, {result['duplicates']:,} exact copies",
        f"channels  {_counted(result['channels'])}",
        f"values    {_counted(result['dtypes'])}; unit {', '.join(result['unit'])}",
        f"sizes     {low} smallest, {middle} median, {high} largest",
    ]
    if result["spacing"] is not None:
        spacing = result["spacing"]
        least, common, most = (_sides(spacing[key]) for key in ("smallest", "median", "largest"))
        told = common if least == most else f"{common} median, {least} to {most}"
        lines.append(f"spacing   {told} {spacing['length']} a pixel; unknown of {spacing['unknown']:,}")
    lines += [f"{'':<10}{count:,} {fact}" for fact, count in result["facts"].items()]
    if result["value_range"] is not None:
        low_value, high_value = result["value_range"]
        lines.append(
            f"range     {low_value:g} to {high_value:g}; {result['invalid_fraction']:.2%} of the pixels invalid"
        )
    lines += [f"problem   {problem}" for problem in result["problems"]]
    lines += [f"rejected  {each['paths']}: {each['reason']}" for each in result["rejects"][:10]]
    model = result["recipe"]["model"]
    lines.append(
        f"recipe    {model['size']}, image {model['image_size']}, patch {model['patch_size']}, "
        f"mask {model['mask_ratio']}"
        + (f"; a patch is {_sides(result['patch']['extent'])} {result['patch']['length']}" if result["patch"] else "")
    )
    return "\n".join(lines)


def _sides(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:.3g}" for side in sides)


def _sampled(reader: Reader, rows: Any, workers: int, undecodable: list[tuple[int, str]]) -> Iterator[Pixels]:
    """The pixels of some rows, one image at a time; rows that do not decode go to ``undecodable`` with the reason."""
    workers = bounded(reader.index, workers)

    def read(row: int) -> Pixels | tuple[int, str]:
        try:
            pixels = reader.sample(int(row))
            if pixels.valid is not None and not pixels.valid.any() and not reader.huge(int(row)):
                raise Unreadable(NOTHING)
            return pixels
        except Unreadable as error:
            return int(row), str(error)

    with console.task("reading a sample") as advance:
        for done, each in enumerate(in_order(read, rows, workers), 1):
            advance(done, len(rows))
            if isinstance(each, Pixels):
                yield each
            else:
                undecodable.append(each)


def _spread(reader: Reader) -> Any:
    """Rows spread over the index: at most 256, and a thousand million pixels of them."""
    pixels = reader.sampled()
    count = int(np.clip(READ // max(1, int(np.median(pixels))), 4, SAMPLED))
    return np.linspace(0, len(pixels) - 1, min(count, len(pixels))).astype(int)


def _shares(index: Index, word: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for source, count in index.kinds:
        counts[word(source)] += count
    return dict(counts.most_common())


def _sizes(index: Index) -> dict[str, Any]:
    shapes = index.shapes[:, 1:]
    order = np.argsort(shapes.prod(axis=1, dtype=np.int64), kind="stable")
    return {
        "smallest": shapes[order[0]].tolist(),
        "median": np.median(shapes, axis=0).astype(int).tolist(),
        "largest": shapes[order[-1]].tolist(),
        "distinct": len(np.unique(shapes, axis=0)),
    }


def _patch(found: Scan, chosen: Recipe) -> dict[str, Any] | None:
    """What a patch of the recipe spans, in mm or m."""
    size, patch = _sizes_of(chosen)
    lengths = patch_length(found.index, size, patch, chosen.data.crop, chosen.data.axis)
    return None if lengths is None else {"extent": list(lengths), "length": found.adapter.length}


def _sizes_of(chosen: Recipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size, patch = (tuple(map(int, each)) for each in (chosen.model.image_size, chosen.model.patch_size))
    return size, patch


def _spacing(found: Scan) -> dict[str, Any] | None:
    spacings = found.index.spacings(found.index.shapes.shape[1] - 1)
    known = spacings[np.isfinite(spacings).all(axis=1)]
    if len(known) == 0:
        return None
    return {
        "median": np.median(known, axis=0).tolist(),
        "smallest": known.min(axis=0).tolist(),
        "largest": known.max(axis=0).tolist(),
        "unknown": len(spacings) - len(known),
        "length": found.adapter.length,
    }


def _duplicates(index: Index) -> int:
    """How many sources are byte for byte a copy of an earlier one; only equal sizes are read whole."""
    sizes = [_size(index[row]) for row in range(len(index))]
    alike = Counter(sizes)
    seen: set[bytes] = set()
    copies = 0
    for row, size in enumerate(sizes):
        if size == () or alike[size] == 1:
            continue
        source = index[row]
        digest = hashlib.blake2b(repr(source.key).encode("ascii", "backslashreplace"))
        try:
            for path in source.files:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError:  # gone since the scan
            continue
        copies += digest.digest() in seen
        seen.add(digest.digest())
    return copies


def _size(source: Source) -> tuple[int, ...]:
    """Bytes of each file of a source; nothing where one is gone since the scan."""
    try:
        return tuple(os.path.getsize(path) for path in source.files)
    except OSError:
        return ()


def _problems(
    found: Scan, undecodable: list[tuple[int, str]], copies: int, statistics: Statistics | None, chosen: Recipe
) -> list[str]:
    index = found.index
    problems = [*found.notes, *(f"{count:,} images: {defect}" for defect, count in found.defects.most_common())]
    dtypes = {source.dtype for source, _ in index.kinds}
    if len(dtypes) > 1 and chosen.data.normalize not in ("image", "foreground") and _unclear(index):
        problems.append(
            f"images of {', '.join(sorted(dtypes))} share one scale as they are: take them apart with data.include, "
            "or set data.normalize=image"
        )
    if undecodable:
        row, reason = undecodable[0]
        problems.append(
            f"{len(undecodable)} of {min(SAMPLED, len(index))} sampled images have a good header and cannot be used, "
            f"e.g. {index[row].paths[0]}: {reason}"
        )
    if copies:
        problems.append(f"{copies:,} images are exact copies of others")
    if statistics is not None and min(statistics.std) == 1 and statistics.minimum == statistics.maximum:
        problems.append("every pixel looked at has the same value")
    size, patch = _sizes_of(chosen)
    small = too_small(index, size, patch, chosen.data.crop, chosen.data.axis).sum()
    if small:
        problems.append(f"{small:,} images are smaller than one patch and would be left out")
    return problems


def _unclear(index: Index) -> bool:
    """Whether images of several dtypes may not share a scale: their unit does not say that they do."""
    units = {source.unit for source, _ in index.kinds}
    return len(units) > 1 or "value" in units


def _counted(shares: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in shares.items())
