"""Setting up a pretraining: all that the loop works on."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maectl import budget, console, device, run
from maectl.checkpoint import Config
from maectl.dataset import Loader, Views
from maectl.errors import TrainingError, UsageError
from maectl.heldout import HeldOut
from maectl.identity import config_of, identity
from maectl.index import Index, Rejects, held_out, write_quarantine
from maectl.mae import MaskedAutoencoder
from maectl.optim import adamw
from maectl.planes import extents
from maectl.prepare import Prepared, prepare
from maectl.recipe import Recipe
from maectl.stepping import Stepper, fitting
from maectl.store import Reader
from maectl.stream import Stream
from maectl.team import Team
from maectl.warmstart import check, start_from
from maectl.windows import Crop

__all__ = ["Request", "Training", "assembled", "begin", "measure_first"]

ENLARGED = 2.5  # times, from which on a smaller model is recommended
FLIPS = {"horizontal": -1, "vertical": -2, "depth": -3}  # spatial axes of what the model sees


@dataclass(frozen=True)
class Request:
    """What the command line asks of `pretrain`."""

    folders: Sequence[str]
    out: Path
    recipe: str | None = None
    adapter: str | None = None
    overrides: Sequence[str] = ()
    init: str | None = None
    epochs: float | None = None
    steps: int | None = None
    max_time: float | None = None  # seconds
    batch_size: int | None = None
    workers: int = 0
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False


@dataclass
class Training:
    """All that the loop works on."""

    request: Request
    about: dict[str, Any]  # run.json
    recipe: Recipe
    config: Config
    model: MaskedAutoencoder
    optimizer: torch.optim.Optimizer
    step: Stepper
    views: Views
    loader: Loader
    stream: Stream
    held: HeldOut
    rejects: Rejects
    quarantine: "Quarantine"
    device: torch.device
    team: Team

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.about["steps"])


def begin(request: Request, work: Path, begun: float, team: Team) -> Training:
    """A new run, its folder made last. Raises MaectlError before anything is written there."""
    overrides = _overrides(request)
    team.lead(lambda: _refused(request))
    unknown = request.steps is not None or request.max_time is not None
    prepared = prepare(
        request.folders,
        name=request.recipe,
        adapter=request.adapter,
        overrides=overrides,
        views=0 if unknown else None,
        run=request.out,
        work=work,
        workers=request.workers,
        team=team,
    )
    about = team.lead(lambda: identity(request.folders, request.init, prepared, device.pick()))
    training = assembled(request, prepared.recipe, config_of(prepared), prepared.reader, prepared.rejects, about, team)
    if request.init is not None:
        licence = start_from(request.init, training.model)
        training.config = training.config.model_copy(update={"weights_licence": licence})
    explicit = any(override.startswith("train.batch_size=") for override in overrides)
    _settle(training, explicit, begun)
    _tell(training, prepared)
    if not request.dry_run:
        team.lead(lambda: _make_folder(training, prepared))
    return training


def _refused(request: Request) -> None:
    run.refuse(request.out, overwrite=request.overwrite or request.dry_run)
    if request.init is not None:
        check(request.init)


def measure_first(training: Training) -> None:
    """The baselines and the untrained model's loss, into run.json; the leader's work."""
    if not training.team.leads:
        return
    ratio = training.recipe.model.mask_ratio
    training.about["baselines"] = training.held.measure_baselines(training.model, ratio)
    training.about["loss_first"] = training.about["loss_last"] = training.held.loss(training.model, ratio)
    if not training.request.dry_run:
        run.write(training.request.out, training.about)


def _overrides(request: Request) -> list[str]:
    overrides = [*request.overrides]
    if request.epochs is not None:
        overrides.append(f"train.epochs={request.epochs}")
    if request.batch_size is not None:
        overrides.append(f"train.batch_size={request.batch_size}")
    if request.dry_run:
        overrides += ["data.store=off"]
    return overrides


def assembled(
    request: Request,
    chosen: Recipe,
    config: Config,
    reader: Reader,
    rejects: Rejects,
    about: dict[str, Any],
    team: Team,
) -> Training:
    """The parts of a run put together, at step 0."""
    where, index = device.pick(), reader.index
    if "batch_size" in about:
        refuse_few(about["batch_size"], team)
    torch.manual_seed(about["seed"])
    model = config.build_model().to(where)
    model.checkpointing = chosen.train.checkpointing
    data = chosen.data
    size = tuple(int(side) for side in config.model["image_size"])
    train, held = held_out(index.groups, about["seed"])
    quarantine = Quarantine(index, rejects, data.max_bad)
    views = Views(
        reader=reader,
        crop=Crop(
            size, data.crop_scale, data.crop_ratio, tuple(len(size) + FLIPS[flip] for flip in data.flip), data.rotate
        ),
        window=data.crop,
        normalizer=config.normalizer,
        min_valid=data.min_valid,
        patches=about["patches"],
        seed=about["seed"],
        min_contrast=data.min_contrast,
        axis=data.axis,
        divided=bool(np.isin(held, train).any()),
        crops=data.crops_per_image,
        resize=data.resize,
        rejected=quarantine,
    )
    threads, place = device.loader_threads(request.workers), team.place
    loader = Loader(views, threads, pin=where.type == "cuda", rank=place.rank, world=place.size)
    optimizer = adamw(model, about.get("lr", 0.0), chosen.train.weight_decay)
    step = Stepper(
        model, optimizer, config.normalizer, chosen.model.mask_ratio, about["removed_patches"], about["precision"],
        where, team, about.get("batch_size", budget.LEAST_BATCH), about.get("micro_batch", 1),
    )  # fmt: skip
    measured = HeldOut(loader, held if team.leads else held[:0], config.normalizer, where, about["precision"])
    stream = Stream(train, step.batch_size, about["seed"], views.per_epoch(train), views.crops)
    return Training(
        request, about, chosen, config, model, optimizer, step, views, loader, stream, measured, rejects, quarantine,
        where, team,
    )  # fmt: skip


@dataclass
class Quarantine:
    """Notes sources that fail while training. Raises TrainingError beyond ``data.max_bad``."""

    index: Index
    rejects: Rejects
    most: float

    def __call__(self, row: int, reason: str) -> None:
        source = self.index[row]
        known = len(self.rejects)
        self.rejects.add(source.folder, source.paths, "train", reason)
        if len(self.rejects) > known:
            self.tell(source.paths[0], reason)

    def include(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
        """What another process has met."""
        for _, paths, _, reason in self.rejects.include(rows):
            self.tell(paths.split(";")[0], reason)

    def tell(self, path: str, reason: str) -> None:
        """Say so, and whether it is too much."""
        console.warn(f"{path} cannot be read any more ({reason}): quarantined, another takes its place")
        failed = sum(paths.count(";") + 1 for _, paths, stage, _ in self.rejects.rows if stage == "train")
        total = int(self.index.file_counts.sum())
        if failed > self.most * total:
            raise TrainingError(f"{failed:,} of {total:,} files became unreadable: data.max_bad is {self.most}")


def _settle(training: Training, explicit: bool, begun: float) -> None:
    """Steps, batch, micro-batch, learning rate and warm-up: decided once, kept in run.json."""
    request, train, about = training.request, training.recipe.train, training.about
    epoch = training.stream.epoch_length
    batch = train.batch_size if explicit else min(train.batch_size, budget.LEAST_BATCH)
    if request.max_time is not None:
        _sized(training, batch)
        steps = _steps_in_time(training, begun)
        shown = float(steps * batch)
    else:
        shown = train.epochs * epoch if request.steps is None else float(request.steps * batch)
    if not explicit:
        batch = budget.batch_size(train.batch_size, shown)
    if request.steps is not None:
        steps = request.steps
    elif request.max_time is None:
        steps = int(np.ceil(shown / batch))
    elif not explicit:
        steps = max(1, int(shown / batch))
    _sized(training, batch)
    about.update(
        steps=steps,
        batch_size=batch,
        micro_batch=training.step.micro_batch,
        lr=budget.rate(train.base_lr, batch),
        warmup_steps=budget.warmup_steps(training.recipe, steps, epoch / batch),
        epochs=steps * batch / epoch,
    )


def _sized(training: Training, batch: int) -> None:
    """Fit the training to a batch: what is loaded, what fits in memory at once, and the compiled model to that."""
    step, train = training.step, training.recipe.train
    refuse_few(batch, training.team)
    known = step.batch_size if training.about.get("micro_batch") else None
    training.stream = replace(training.stream, batch=batch)
    step.batch_size = batch
    if known == batch:
        return
    step.micro_batch = fitting(step) if train.micro_batch == "auto" else min(train.micro_batch, batch)
    training.about["micro_batch"] = step.micro_batch
    if device.compiles(train.compile, training.device):
        step.compile()


def refuse_few(batch: int, team: Team) -> None:
    """Raises UsageError for a batch that has not an image for each process."""
    if batch < team.size:
        raise UsageError(f"a batch of {batch} is too small for {team.size} processes: an image each, at least")


def _steps_in_time(training: Training, begun: float) -> int:
    """Steps that fit what is left of ``--max-time``, by timing some that are then undone."""
    seconds = training.request.max_time
    assert seconds is not None
    fresh = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    batches = training.loader.batches(training.stream, 0, budget.TIMED_STEPS)

    def step(number: int) -> None:
        training.step(next(batches))
        device.synchronise(training.device)

    each = budget.timed(step, seconds, lambda enough: bool(training.team.most(enough)))
    training.model.load_state_dict(fresh)
    training.optimizer.state.clear()

    def left_over() -> int:
        before = time.monotonic()
        training.held.loss(training.model, training.recipe.model.mask_ratio)
        measuring = 12 * (time.monotonic() - before)  # the first, the last and the tenths
        left = seconds - (time.monotonic() - begun) - measuring
        if left < each:
            raise UsageError(
                f"--max-time {seconds:.0f} s is too short: preparing took {time.monotonic() - begun:.0f} s, "
                f"a step takes {each:.1f} s"
            )
        return int(0.98 * left / each)

    return training.team.lead(left_over)


def _tell(training: Training, prepared: Prepared) -> None:
    about, train, images = training.about, training.recipe.train, prepared.index
    refused = f", {len(prepared.rejects):,} rejected" if len(prepared.rejects) else ""
    foreign = f", {prepared.foreign:,} other files" if prepared.foreign else ""
    console.say(f"{len(images):,} images ({len(prepared.held):,} held out){refused}{foreign}")
    if training.views.divided:
        told = "nothing is" if training.recipe.data.crop == "image" else "windows of the last tenth of its rows are"
        console.warn(f"all images are one group (patient, scene): {told} held out")
    several = f", {training.team.size} processes" if training.team.size > 1 else ""
    weights = sum(p.numel() for p in training.model.parameters()) / 1e6
    console.say(
        f"model: {training.recipe.model.size}, {weights:.1f} M weights, {about['patches']} patches an image; "
        f"{about['provenance']['device']}, {about['precision']}{several}"
    )
    _tell_patch(training, prepared)
    if training.device.type == "cpu" and training.recipe.model.size not in ("tiny", "small"):
        console.say(f"a {training.recipe.model.size} model is slow on a CPU: --set model.size=tiny is made for it")
    crops = training.recipe.data.crops_per_image
    if (passes := about["epochs"] / crops) < 10 and crops > 1 and passes % 1 > 0.01:
        console.warn(
            f"data.crops_per_image={crops}: a pass over the images is {crops} epochs, and this run takes "
            f"{passes:.2f} passes: not all are shown equally often"
        )
    smaller = about["batch_size"] < train.batch_size
    console.say(
        f"{about['steps']:,} steps of {about['batch_size']} images ({about['epochs']:,.1f} epochs), "
        f"peak lr {about['lr']:.2e}, {about['warmup_steps']:,} warm-up steps"
        + (f"; the recipe's batch is {train.batch_size} at most: more steps are worth more here" if smaller else "")
    )


def _tell_patch(training: Training, prepared: Prepared) -> None:
    """What a patch spans, and how far images are enlarged: both decide what can be learnt."""
    model, data, index = training.config.model, training.recipe.data, prepared.index
    size = tuple(int(side) for side in model["image_size"])
    if training.config.patch is not None:
        console.say(
            f"a patch is {' x '.join(f'{side:.3g}' for side in training.config.patch)} {training.config.length}"
        )
    seen = np.median(extents(index, len(size), data.axis), axis=0)
    if data.crop == "image" and (times := max(np.array(size) / seen)) >= ENLARGED:
        console.warn(
            f"images are enlarged {times:.1f} times to {'x'.join(map(str, size))}: --set model.image_size=auto "
            "--set model.patch_size=auto fits them"
        )


def _make_folder(training: Training, prepared: Prepared) -> None:
    out = training.request.out
    run.clear(out)
    run.create(out, training.about)
    (out / "recipe.yaml").write_text(training.recipe.yaml(), encoding="utf-8")
    shutil.copyfile(prepared.index.path, out / "index.arrow")
    run.write_json(out / "stats.json", prepared.statistics.json())
    write_quarantine(training.rejects, out / "quarantine.csv")
