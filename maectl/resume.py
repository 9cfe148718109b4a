"""Going on with a run: everything as its latest whole checkpoint left it, and nothing asked anew."""

from pathlib import Path
from typing import Any

from maectl import checkpoint, console, device, recipe, run
from maectl.adapter import Files
from maectl.errors import RunError, UsageError
from maectl.index import Index, Rejects, read_quarantine
from maectl.recipe import Recipe
from maectl.store import Reader, default_folder
from maectl.storing import Choice, form_of, made
from maectl.team import Team
from maectl.training import Request, Training, assembled

__all__ = ["resume"]


def resume(request: Request, team: Team) -> Training:
    """The run in ``request.out`` as its latest whole checkpoint left it; every process reads it. Raises RunError,
    UsageError.
    """
    out = request.out
    about = team.lead(lambda: _read(request))
    folder = checkpoint.latest(out, resumable=True)
    config = checkpoint.load(folder).config
    index, adapter = Index(out / "index.arrow"), config.build_adapter()
    chosen, _ = recipe.load(str(out / "recipe.yaml"))
    store = None
    if about["store"] is not None:  # the recipe holds the form that was chosen when the run began
        place = default_folder(out) if about["store"] == "auto" else Path(about["store"])
        store, _ = made(index, adapter, Choice(place, form_of(chosen, index)), workers=request.workers, team=team)
    rejects = read_quarantine(out / "quarantine.csv")
    training = assembled(request, chosen, config, Reader(index, adapter, store), rejects, about, team)
    about["step"] = checkpoint.restore(folder, training.model, training.optimizer)["step"]
    console.say(f"resuming {out} at step {about['step']:,} of {about['steps']:,}")
    team.lead(lambda: _count_new_files(index, rejects, chosen, about["folders"]))
    if device.compiles(chosen.train.compile, training.device):
        training.step.compile()
    return training


def _read(request: Request) -> dict[str, Any]:
    about = run.read(request.out)
    _check_unchanged(request, about)
    return about


def _check_unchanged(request: Request, about: dict[str, Any]) -> None:
    asked = [str(Path(folder).absolute()) for folder in request.folders]
    if asked and asked != about["folders"]:
        raise UsageError(f"--resume: {request.out} was begun on {', '.join(about['folders'])}, not {', '.join(asked)}")
    given = {
        "--recipe": request.recipe,
        "--init": request.init,
        "--set": request.overrides,
        "--adapter": request.adapter,
        "--epochs": request.epochs,
        "--steps": request.steps,
        "--max-time": request.max_time,
        "--batch-size": request.batch_size,
    }
    named = [option for option, value in given.items() if value]
    if named:
        raise UsageError(f"--resume goes on as the run was begun: leave out {', '.join(named)}")
    if about["step"] >= about["steps"]:
        raise RunError(f"{request.out} is finished ({about['steps']:,} steps): there is nothing to resume")


def _count_new_files(index: Index, rejects: Rejects, chosen: Recipe, folders: list[str]) -> None:
    """Say how many files lie in the folders now that were not there at the scan."""
    for number, folder in enumerate(folders):
        if not Path(folder).exists():
            raise RunError(f"{folder}, which the run was begun on, is gone: put it back to resume")
        refused = {path for where, paths, _, _ in rejects.rows if where == folder for path in paths.split(";")}
        known = index.files(number) | refused
        files = Files(folder, include=chosen.data.include, exclude=chosen.data.exclude)
        new = sum(path not in known for path in files)
        if new:
            console.say(f"{new:,} files in {folder} are not in the run's index and are not used")
