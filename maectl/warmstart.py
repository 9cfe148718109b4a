"""Start from weights there are: a run of maectl, an exported encoder, or a timm model (``--init``)."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from maectl import checkpoint, console
from maectl.errors import RunError, UsageError
from maectl.mae import MaskedAutoencoder, encoder_state

__all__ = ["check", "named", "start_from"]

POSITIONS = {"pos_embed", "decoder_pos_embed"}  # fixed by the grid, never learnt: always the model's own


def check(spec: str) -> None:
    """Raise UsageError for weights that are plainly not there, before anything costly is done."""
    if not spec.startswith("timm:") and not Path(spec).exists():
        raise UsageError(f"--init {spec}: neither a run, a file nor timm:NAME")


def named(spec: str | None) -> str | None:
    """Which weights they were, for run.json: timm's name, or a hash of the weights; a path may name a person."""
    if spec is None or spec.startswith("timm:"):
        return spec
    path = checkpoint.load(spec).path
    with (path if path.is_file() else path / "model.safetensors").open("rb") as file:
        return f"blake2b:{hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}"


def start_from(spec: str, model: MaskedAutoencoder) -> str | None:
    """Put the weights of ``RUN | FILE | timm:NAME`` into ``model``; their licence, where it is known.

    The encoder must fit whole; a decoder that fits is taken too, else it stays fresh. Position embeddings are the
    model's own. Raises RunError or UsageError naming what does not fit.
    """
    weights, licence = _timm(spec.removeprefix("timm:"), model) if spec.startswith("timm:") else _ours(spec)
    own = model.state_dict()
    encoder = set(encoder_state(model)) - POSITIONS
    for name in sorted(encoder):
        if name not in weights:
            raise RunError(f"--init {spec}: {name} is missing, so its encoder has another shape than model.size")
        if weights[name].shape != own[name].shape:
            raise RunError(
                f"--init {spec}: {name} is {list(weights[name].shape)}, this model's is {list(own[name].shape)}: "
                "set model.size, model.patch_size and data.channels as those weights have them"
            )
    decoder = set(own) - encoder - POSITIONS
    whole = all(name in weights and weights[name].shape == own[name].shape for name in decoder)
    taken = encoder | decoder if whole else encoder
    model.load_state_dict({name: weights[name] for name in taken}, strict=False)
    console.say(
        f"starting from {spec}: encoder taken, decoder {'taken' if whole else 'fresh'}"
        + (f" (licence of these weights: {licence})" if licence else "")
    )
    return licence


def _ours(spec: str) -> tuple[dict[str, Tensor], str | None]:
    found = checkpoint.load(spec)
    return found.weights, found.config.weights_licence


def _timm(name: str, model: MaskedAutoencoder) -> tuple[dict[str, Tensor], str | None]:
    try:
        import timm
    except ImportError:
        raise UsageError(f"--init timm:{name} needs timm: pip install timm") from None
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"--init timm:{name}: timm has no such model; timm.list_models('vit_*') lists them")
    options: dict[str, Any] = {"num_classes": 0, "in_chans": model.channels}
    loaded: Any = timm.create_model(name, pretrained=True, **options)
    return loaded.state_dict(), loaded.pretrained_cfg.get("license")
