"""What a run is, written down once: run.json as far as its length, and config.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maectl import device, run
from maectl.checkpoint import Config
from maectl.mae import kept
from maectl.planes import patch_length
from maectl.prepare import Prepared
from maectl.warmstart import named

__all__ = ["config_of", "identity"]


def identity(folders: Sequence[str], init: str | None, prepared: Prepared, where: torch.device) -> dict[str, Any]:
    """run.json as far as it is known before the length of the run is settled."""
    model = prepared.recipe.model
    patches = int(np.prod([s // p for s, p in zip(model.image_size, model.patch_size, strict=True)]))  # type: ignore[operator]
    return {
        "folders": [str(Path(folder).absolute()) for folder in folders],
        "adapter": prepared.adapter.name,
        "init": named(init),
        "images": len(prepared.index),
        "held_out": len(prepared.held),
        "rejected": len(prepared.rejects),
        "foreign_files": prepared.foreign,
        "store": _store(prepared),
        "seed": prepared.recipe.train.seed,
        "precision": device.precision(prepared.recipe.train.precision, where),
        "patches": patches,
        "removed_patches": patches - kept(patches, model.mask_ratio),
        "step": 0,
        "seconds": 0.0,
        "images_per_s": 0.0,
        "data_wait_fraction": 0.0,
        "provenance": run.provenance(where),
    }


def _store(prepared: Prepared) -> str | None:
    """Where the store is, for run.json; of one beside the run not as a path, for a path may name a person."""
    asked = prepared.recipe.data.store
    return None if prepared.reader.store is None else "auto" if asked == "auto" else str(Path(asked).absolute())


def config_of(prepared: Prepared) -> Config:
    """What a checkpoint needs to be used, of the commonest kind of source."""
    index, data, model = prepared.index, prepared.recipe.data, prepared.recipe.model
    commonest = max(index.kinds, key=lambda each: each[1])[0]
    return Config(
        model={"channels": len(commonest.channels), **model.arguments()},
        mask_ratio=model.mask_ratio,
        adapter=prepared.adapter.name,
        options=prepared.adapter.model_dump(mode="json"),
        channels=commonest.channels,
        dtype=commonest.dtype,
        unit=commonest.unit,
        normalizer=prepared.normalizer,
        statistics=prepared.statistics.json(),
        include=data.include,
        exclude=data.exclude,
        group=data.group,
        display=data.display,
        axis=data.axis,
        crop=data.crop,
        spacing=commonest.spacing,
        patch=patch_length(
            index, tuple(map(int, model.image_size)), tuple(map(int, model.patch_size)), data.crop, data.axis
        ),
        length=prepared.adapter.length,
    )
