"""The command line: parse, delegate, explain. Work is imported only by the command that needs it.

Results go to stdout, everything else to stderr. Exit 0 done, 1 error, 2 wrong usage, 130 interrupted.
"""

import io
import json
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from maectl.errors import MaectlError, UsageError

__all__ = ["app", "main"]

app = typer.Typer(
    name="maectl",
    help="Pretrain the standard masked autoencoder (MAE) on your own images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folders = Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Folders of images (or single files).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
AdapterName = Annotated[str | None, typer.Option("--adapter", metavar="NAME", help="Image format; else looked for.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that read images; 0 is one a core.")]
Seed = Annotated[int, typer.Option(min=0, help="Fixes every random choice.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, a checkpoint folder or an exported encoder.")]


def main() -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may hold what the terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is Ctrl-C's: cleaned up, exit 130
    try:
        status = app(standalone_mode=False)
    except UsageError as error:
        _fail(error, 2)
    except MaectlError as error:
        _fail(error, 1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:  # the reader of stdout (head, say) has seen enough
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        shown = getattr(error, "show", None)  # typer's own usage errors know how to show themselves
        if shown is None:
            raise
        shown()
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(status if isinstance(status, int) else 0)


def _fail(error: MaectlError, status: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)


def _print(result: dict[str, Any] | list[Any]) -> None:
    print(json.dumps(result, indent=1))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from maectl import __version__

        print(f"maectl {__version__}")
        raise typer.Exit


@app.command()
def pretrain(
    folder: Annotated[list[str] | None, typer.Argument(metavar="FOLDER...", help="Folders of images.")] = None,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")] = ...,  # type: ignore[assignment]
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="A recipe; else one is chosen.")] = None,
    adapter: AdapterName = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="RUN|FILE|timm:NAME", help="Weights to start the encoder from.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    max_time: Annotated[str | None, typer.Option(metavar="30m", help="Time for it all: 90s, 30m, 8h.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images an optimizer step.")] = None,
    devices: Annotated[str, typer.Option(metavar="auto|N", help="Devices to train on.")] = "auto",
    workers: Workers = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in RUN.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in RUN.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """A folder of images in, an encoder out."""
    if not folder and not resume:
        raise UsageError("give at least one FOLDER of images (or --resume to go on with a run)")
    if sum(option is not None for option in (epochs, steps, max_time)) > 1:
        raise UsageError("--epochs, --steps and --max-time exclude one another: give one of them")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude one another")
    from maectl import launch
    from maectl.distributed import joined
    from maectl.pretrain import Request
    from maectl.pretrain import pretrain as run

    request = Request(
        folders=folder or [],
        out=out,
        recipe=recipe,
        adapter=adapter,
        overrides=set_ or [],
        init=init,
        epochs=epochs,
        steps=steps,
        max_time=None if max_time is None else _seconds(max_time),
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if (processes := launch.wanted(devices)) > 1:
        raise typer.Exit(launch.launch(processes, sys.argv[1:]))
    with joined() as team:
        result = run(request, team)
        if as_json and team.leads:
            _print(result)


@app.command()
def probe(
    run: Run,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Labelled images.")],
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Columns path, label and optionally split, group.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR|FILE", help="Label rasters of the images: probe patches. FILE: of one image."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="VALUE", help="A value (or #rrggbb) of label rasters that is no class.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="linear|knn", help="The classifier on frozen features.")] = "linear",
    pool: Annotated[
        str | None, typer.Option(metavar="cls|mean", help="Which feature; else picked on the training part.")
    ] = None,
    per: Annotated[
        str, typer.Option(metavar="image|patient", help="What is labelled: images, or patients (features pooled).")
    ] = "image",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the result there.")] = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Is that encoder any good? Linear evaluation beside honest baselines."""
    for name, value, allowed in (
        ("--method", method, ("linear", "knn")),
        ("--pool", pool, (None, "cls", "mean")),
        ("--per", per, ("image", "patient")),
    ):
        if value not in allowed:
            raise UsageError(f"{name} {value}: choose {' or '.join(filter(None, allowed))}")
    from maectl.distributed import joined
    from maectl.probe import probe as evaluate
    from maectl.probe import report

    with joined() as team:
        result = evaluate(
            run, folder, labels=labels, method=method, pool=pool, seed=seed, workers=workers, out=out, per=per,
            masks=masks, ignore=ignore or [], team=team,
        )  # fmt: skip
        _print(result) if as_json else print(report(result))


@app.command()
def reconstruct(
    run: Run,
    path: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = ...,  # type: ignore[assignment]
    mask_ratio: Annotated[float | None, typer.Option(help="Share of patches removed; else the run's own.")] = None,
    seed: Seed = 0,
    cover: Annotated[
        bool, typer.Option("--cover", help="Complementary masks, so that every patch is predicted once.")
    ] = False,
    format_: Annotated[
        str, typer.Option("--format", metavar="native|png|both", help="The image alone, panels, or both.")
    ] = "both",
    as_json: AsJson = False,
) -> None:
    """What did it learn to fill in? Images out, in the format they came in."""
    if format_ not in ("native", "png", "both"):
        raise UsageError(f"--format {format_}: choose native, png or both")
    if mask_ratio is not None and not 0 < mask_ratio < 1:
        raise UsageError(f"--mask-ratio {mask_ratio}: give a share between 0 and 1, e.g. 0.75")
    from maectl.reconstruct import reconstruct as export

    result = export(run, path, out, mask_ratio=mask_ratio, seed=seed, cover=cover, format=format_)
    if as_json:
        _print(result)


@app.command()
def embed(
    run: Run,
    path: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the features go.")] = ...,  # type: ignore[assignment]
    dtype: Annotated[
        str | None, typer.Option(metavar="float32|float16|int8", help="Of the numbers; maps are float16 otherwise.")
    ] = None,
    pca: Annotated[int | None, typer.Option(min=1, metavar="K", help="Keep the first K principal axes.")] = None,
    pool: Annotated[str, typer.Option(metavar="cls|mean", help="Which feature of an image a table holds.")] = "mean",
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Labels for the table; else folders name classes.")
    ] = None,
    seed: Seed = 0,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Features out: a georeferenced map of each raster, of other images a Parquet table."""
    for name, value, allowed in (
        ("--dtype", dtype, (None, "float32", "float16", "int8")),
        ("--pool", pool, ("cls", "mean")),
    ):
        if value not in allowed:
            raise UsageError(f"{name} {value}: choose {' or '.join(filter(None, allowed))}")
    from maectl.distributed import joined
    from maectl.embed import embed as export

    with joined() as team:
        result = export(
            run, path, out, dtype=dtype, pca=pca, pool=pool, labels=labels, seed=seed, workers=workers, team=team
        )
        _print(result) if as_json else print("\n".join(result["outputs"]))


@app.command()
def inspect(folder: Folders, adapter: AdapterName = None, workers: Workers = 0, as_json: AsJson = False) -> None:
    """What is in a folder: sizes, channels, values, problems, and the recipe that fits."""
    from maectl.inspection import inspect as look
    from maectl.inspection import report

    result = look(folder, adapter=adapter, workers=workers)
    _print(result) if as_json else print(report(result))


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(metavar="NAME")] = None) -> None:
    """List the recipes, or print one to copy and edit: maectl recipes NAME > mine.yaml."""
    from maectl import recipe

    if name is not None:
        print(recipe.text(name), end="")
        return
    for each in recipe.shipped():
        print(f"{each:<16} {recipe.named(each)}")


@app.command()
def adapters(as_json: AsJson = False) -> None:
    """List the installed image formats and their options."""
    from maectl import registry

    found, broken = registry.discover()
    if as_json:
        _print(
            {
                "adapters": {
                    name: {"suffixes": kind.formats.suffixes, "options": sorted(kind.model_fields)}
                    for name, kind in found.items()
                },
                "broken": [vars(each) for each in broken],
            }
        )
        return
    for name, kind in found.items():
        print(f"{name:<12} {' '.join(kind.formats.suffixes)}")
        for option, field in kind.model_fields.items():
            print(f"{'':<12}   data.options.{option} = {field.default!r}")
    for each in broken:
        print(f"{each.name:<12} broken ({each.distribution}): {each.reason}")


@app.command()
def demo(
    name: Annotated[
        str, typer.Argument(metavar="natural|medical|satellite", help="The adapter whose sample data to use.")
    ] = "natural",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("maectl-demo"),
    seed: Seed = 0,
) -> None:
    """The whole road on sample images: pretrain, probe, reconstruct, embed, in a few minutes."""
    from maectl.demo import demo as show

    show(name, out, seed=seed)


@app.command()
def bench(
    folder: Annotated[list[str] | None, typer.Argument(metavar="FOLDER...", help="Folders of images.")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Measure on photographs made for it.")] = False,
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="A recipe; else one is chosen.")] = None,
    adapter: AdapterName = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images an optimizer step.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps a measurement; else some seconds.")] = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """How fast this machine pretrains, stage by stage, and what would help most."""
    from maectl.advice import report
    from maectl.bench import bench as measure

    result = measure(
        folder or [], synthetic=synthetic, recipe_name=recipe, adapter=adapter, overrides=set_ or [],
        batch_size=batch_size, steps=steps, workers=workers,
    )  # fmt: skip
    _print(result) if as_json else print(report(result))


store = typer.Typer(help="Decoded images on disk: made ahead of a run, looked at, cleared away.", no_args_is_help=True)
app.add_typer(store, name="store")
StoreFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a store.")]


@store.command("build")
def store_build(
    folder: Folders,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the store goes; pretrain --set data.store=DIR.")],
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="A recipe; else one is chosen.")] = None,
    adapter: AdapterName = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
    ] = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Decode all images once; started by torchrun or srun, each process its share."""
    from maectl.store_commands import build_store, report
    from maectl.team import placed

    result = build_store(folder, out, recipe=recipe, adapter=adapter, overrides=set_ or [], workers=workers)
    if placed().rank == 0:
        _print(result) if as_json else print(report(result))


@store.command("info")
def store_info(folder: StoreFolder, as_json: AsJson = False) -> None:
    """What a store holds: entries, bytes, adapter, form, date."""
    from maectl.store_commands import info, report

    _print(info(folder)) if as_json else print(report(info(folder)))


@store.command("clean")
def store_clean(
    folder: StoreFolder,
    everything: Annotated[bool, typer.Option("--all", help="All of the store, not only what is unfinished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what builds that were killed have left."""
    from maectl.store_commands import clean, report

    result = clean(folder, everything=everything)
    _print(result) if as_json else print(report(result))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine offers, and what stands in the way."""
    from maectl.doctor import doctor as examine
    from maectl.doctor import report

    result = examine()
    _print(result) if as_json else print(report(result))


def _seconds(text: str) -> float:
    """``90s``, ``30m``, ``8h`` or ``1h30m`` in seconds."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or match is None:
        raise UsageError(f"--max-time {text}: write it as 90s, 30m, 8h or 1h30m")
    days, hours, minutes, seconds = (int(each or 0) for each in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
