"""Save and load: weights as safetensors, all else as JSON, every folder complete or absent. No pickle anywhere.

A checkpoint folder holds ``model.safetensors`` and ``config.json``, which suffice for every use of the model, and
``optimizer.safetensors`` and ``trainer.json``, which resuming needs as well.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maectl import __version__
from maectl.adapter import Adapter
from maectl.errors import RunError
from maectl.mae import MaskedAutoencoder, encoder_state
from maectl.recipe import DataRecipe, Display
from maectl.registry import load as load_adapter
from maectl.stats import Normalizer

__all__ = ["Checkpoint", "Config", "latest", "load", "prune", "save", "save_encoder"]


class Config(BaseModel):
    """What a model needs to be used: config.json, and the metadata of encoder.safetensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: dict[str, Any]  # the arguments of MaskedAutoencoder
    mask_ratio: float
    adapter: str
    options: dict[str, Any]  # of the adapter, the resolved channels among them
    channels: tuple[str, ...]
    dtype: str  # of most sources
    unit: str
    normalizer: Normalizer
    statistics: dict[str, Any]
    include: tuple[str, ...] = ()  # which files, and which of them belong together, as the recipe said
    exclude: tuple[str, ...] = ()
    group: str | None = None
    display: Display = Display()
    axis: str | None = None
    crop: str = "image"  # data.crop: at which scale images are seen
    spacing: tuple[float, ...] | None = None  # of most sources, mm or m a pixel
    patch: tuple[float, ...] | None = None  # what a patch spans of the median source, in `length`
    length: str = "mm"  # mm or m
    weights_licence: str | None = None  # of the weights training started from; None: from scratch
    version: str = __version__

    def seeing(self) -> DataRecipe:
        """What of a recipe a scan needs, so that other folders are seen as the run saw its own.

        Globs on file names (``*_seg*``) hold for any folder; those with a ``/`` speak of the run's own folders.
        """
        options = {name: value for name, value in self.options.items() if name != "channels"}
        include, exclude = (tuple(glob for glob in globs if "/" not in glob) for globs in (self.include, self.exclude))
        channels = self.options["channels"]
        return DataRecipe(channels=channels, options=options, include=include, exclude=exclude, group=self.group)

    def build_adapter(self) -> Adapter:
        """The adapter, with the options of the run. Raises UsageError where it is not installed, RunError."""
        kind = load_adapter(self.adapter)
        try:
            return kind.model_validate(self.options)
        except ValidationError as error:
            raise RunError(
                f"the adapter {self.adapter!r} installed here does not know the options this model was trained with "
                f"({', '.join('.'.join(map(str, fault['loc'])) for fault in error.errors())}): it has changed since"
            ) from None

    def build_model(self) -> MaskedAutoencoder:
        """A model with fresh weights (drawn from torch's generator). Raises RunError for arguments it has not."""
        try:
            return MaskedAutoencoder(**self.model)
        except TypeError as error:
            raise RunError(f"the checkpoint's config describes no model of this version of maectl: {error}") from None


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what goes with them."""

    path: Path
    config: Config
    weights: dict[str, Tensor]

    @property
    def has_decoder(self) -> bool:
        """Whether images can be reconstructed with it; an exported encoder has none."""
        return "mask_token" in self.weights

    def model(self) -> MaskedAutoencoder:
        """The model with these weights (without a decoder, a fresh one). Raises RunError where they do not fit."""
        model = self.config.build_model()
        known = model.state_dict()
        needed = known if self.has_decoder else encoder_state(model)
        wrong = set(needed) ^ set(self.weights)
        wrong |= {name for name in set(needed) & set(self.weights) if known[name].shape != self.weights[name].shape}
        if wrong:
            raise RunError(f"{self.path}: weights and config do not fit each other ({', '.join(sorted(wrong)[:3])})")
        model.load_state_dict(self.weights, strict=False)
        return model


def save(
    run: Path,
    step: int,
    model: nn.Module,
    config: Config,
    optimizer: torch.optim.Optimizer | None = None,
    trainer: dict[str, Any] | None = None,
) -> Path:
    """Write ``run/checkpoints/step-NNNNNNN``; without an optimizer, what suffices for use alone.

    Written to a temporary folder, flushed and renamed. Raises RunError where the disk is too full.
    """
    final = run / "checkpoints" / f"step-{step:07d}"
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    _check_space(run, model, whole=optimizer is not None)
    for left in final.parent.glob(".step-*.tmp"):  # of a process that was killed while saving
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write(model.state_dict(), temporary / "model.safetensors")
        (temporary / "config.json").write_text(config.model_dump_json(indent=1), encoding="utf-8")
        if optimizer is not None:
            _write(_flat(model, optimizer), temporary / "optimizer.safetensors")
            (temporary / "trainer.json").write_text(json.dumps(trainer, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            _flush(file)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"the checkpoint {final} cannot be written ({error}): the one before is whole") from error
    if final.exists():  # the same step again, of a run resumed from before it
        shutil.rmtree(final)
    temporary.rename(final)
    _flush(final.parent)
    return final


def save_encoder(run: Path, model: nn.Module, config: Config) -> Path:
    """Write ``run/encoder.safetensors``: timm's keys exactly, the config in its metadata."""
    final = run / "encoder.safetensors"
    temporary = final.with_suffix(".tmp")
    _write(encoder_state(model), temporary, {"maectl": config.model_dump_json()})
    _flush(temporary)
    temporary.replace(final)
    return final


def latest(run: Path, *, resumable: bool = False) -> Path:
    """The checkpoint of the highest step (that can be resumed from). Raises RunError where there is none."""
    needed = ["model.safetensors", "config.json", *(["optimizer.safetensors", "trainer.json"] if resumable else [])]
    for folder in reversed(_by_step(run)):
        if all((folder / name).is_file() for name in needed):
            return folder
    if not run.is_dir():
        raise RunError(f"{run} does not exist: give the run folder that maectl pretrain wrote with --out")
    raise RunError(f"{run} holds no checkpoint{' to resume from' if resumable else ''}: did pretraining begin?")


def load(path: str | Path) -> Checkpoint:
    """A run folder (its latest checkpoint), a checkpoint folder, or an exported encoder. Raises RunError."""
    path = Path(path)
    if path.is_file():
        return _load_file(path)
    folder = path if (path / "config.json").is_file() else latest(path)
    try:
        config = Config.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
        return Checkpoint(folder, config, load_file(folder / "model.safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{folder} is not a checkpoint of this version of maectl: {_first_line(error)}") from None


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and optimizer state back, to the bit; what trainer.json holds. Raises RunError."""
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
        flat = load_file(folder / "optimizer.safetensors")
        trainer: dict[str, Any] = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{folder} cannot be resumed from: {_first_line(error)}") from None
    for name, parameter in model.named_parameters():
        state = {key: flat[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in flat}
        if state:
            # the step count stays where the fused kernel keeps it: with the parameter
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    return trainer


def prune(run: Path, keep: int, milestones: set[int]) -> None:
    """Keep the newest ``keep`` checkpoints whole, the weights alone at milestone steps, and nothing else."""
    whole = [folder for folder in _by_step(run) if (folder / "trainer.json").is_file()]
    for folder in whole[:-keep]:
        if int(folder.name.removeprefix("step-")) in milestones:
            (folder / "trainer.json").unlink()
            (folder / "optimizer.safetensors").unlink()
        else:
            shutil.rmtree(folder)


def _load_file(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("maectl")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is not a safetensors file: {_first_line(error)}") from None
    if about is None:
        raise RunError(f"{path} was not written by maectl: it does not say how its images were normalised")
    try:
        return Checkpoint(path, Config.model_validate_json(about), load_file(path))
    except ValidationError as error:
        raise RunError(f"{path} is not an encoder of this version of maectl: {_first_line(error)}") from None


def _by_step(run: Path) -> list[Path]:
    """The checkpoint folders of a run, in order; beyond ten million steps names grow longer."""
    return sorted((run / "checkpoints").glob("step-*"), key=lambda folder: (len(folder.name), folder.name))


def _flat(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    flat = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            flat[f"{name}/{key}"] = value
    return flat


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    path.chmod(0o644)  # safetensors makes files only their owner can read; runs are shared


def _check_space(run: Path, model: nn.Module, whole: bool) -> None:
    needed = sum(p.numel() * p.element_size() for p in model.parameters()) * (4 if whole else 2)
    free = shutil.disk_usage(run).free
    if free < needed:
        raise RunError(f"a checkpoint needs {needed:,} bytes in {run}, where {free:,} are free: make room and --resume")


def _flush(path: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened, nor what is only read be flushed
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3])
    return next(iter(str(error).splitlines()), type(error).__name__)
