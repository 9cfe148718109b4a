"""What the commands that write images share: which images a user names, and what the files written are called."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from maectl import console
from maectl.adapter import Adapter, Source
from maectl.checkpoint import Config
from maectl.errors import DataError, RunError, UsageError
from maectl.index import Index
from maectl.registry import load as load_adapter
from maectl.scan import scan

__all__ = ["make", "mapped", "named", "none_left", "scanned"]


def scanned(
    config: Config, paths: Sequence[str], out: Path, work: Path, *, mixed: bool
) -> tuple[Adapter, Index, list[tuple[int, str]], list[dict[str, str]]]:
    """The adapter, the index, its rows under the names the user gave them, and what a scan rejects.

    Unless they may be ``mixed`` that is all but images, volumes or films, whichever hold most pixels.
    """
    if any(Path(path).is_dir() and Path(path).resolve() == out.resolve() for path in paths):
        raise UsageError(f"--out {out} holds the images, which pictures would be taken for: give another folder")
    recipe = config.seeing()
    if not all(Path(path).is_dir() for path in paths):  # who names a file means it
        recipe = recipe.model_copy(update={"include": (), "exclude": ()})
    with console.task("scanning") as advance:
        found = scan(
            paths,
            load_adapter(config.adapter),
            recipe,
            work / "index.arrow",
            progress=lambda n: advance(n, None),
            mixed=mixed,
        )
    given = {
        str(path.absolute()): path
        for path in (Path(each) if Path(each).is_dir() else Path(each).parent for each in paths)
    }
    ours = {folder: _inside(Path(folder), out) for folder in given}
    rows = []
    for row in range(len(found.index)):
        source = found.index[row]
        if not source.paths[0].startswith(ours[source.folder]):
            rows.append((row, str(given[source.folder] / source.paths[0])))
    rejects = [
        {"source": str(given[folder] / names), "reason": reason}
        for folder, names, _, reason in found.rejects.rows
        if not names.startswith(ours[folder])
    ]
    seen = [*(name for _, name in rows), *(each["source"] for each in rejects)]
    for path in map(Path, paths):
        if not any(path == Path(name) or path in Path(name).parents for name in seen):
            rejects.append({"source": str(path), "reason": f"no image for the adapter {config.adapter!r}"})
    return found.adapter, found.index, rows, rejects


def _inside(folder: Path, out: Path) -> tuple[str, ...]:
    """How paths begin, relative to a folder of images, of what earlier calls wrote to an ``out`` in it."""
    folder, out = folder.resolve(), out.resolve()
    return (f"{out.relative_to(folder).as_posix()}/",) if folder in out.parents else ()


def make(out: Path) -> None:
    """Make a folder to write to. Raises RunError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {out} cannot be made: {error.strerror}") from None


def named(adapter: Adapter, sources: Sequence[Source]) -> list[str]:
    """A file name for each source: numbers where names may identify people, else from its path.

    Without the suffix; none twice, even where case does not count.
    """
    if adapter.private:
        return [f"{place:04d}" for place in range(len(sources))]
    taken: set[str] = set()
    names = []
    for source in sources:
        stem = str(Path(source.paths[0]).with_suffix("")).replace("/", "-").replace("\\", "-")
        name, again = stem, 2
        while name.casefold() in taken:
            name, again = f"{stem}-{again}", again + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def none_left(rejects: Sequence[dict[str, str]], verb: str) -> DataError:
    """The error where no image can be used."""
    reason = f", e.g. {rejects[0]['source']}: {rejects[0]['reason']}" if rejects else ""
    return DataError(f"none of {len(rejects)} images can be {verb}{reason}")


def mapped(out: Path, sources: Sequence[Source]) -> bool:
    """Write index.csv: which number stands for which image. It alone of all exports names files.

    Whether there was none before. Raises UsageError where numbers of an earlier call stand for other images.
    """
    path, text = out / "index.csv", io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("number", "folder", "paths"))
    for number, source in enumerate(sources):
        writer.writerow((f"{number:04d}", source.folder, ";".join(source.paths)))
    content = text.getvalue().encode("utf-8", "surrogateescape")
    try:
        fresh = not path.exists()
        if not fresh and path.read_bytes() != content:
            raise UsageError(f"--out {out} holds pictures of other images, by number: give another folder")
        path.write_bytes(content)
        return fresh
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None
