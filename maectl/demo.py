"""The whole road on sample images: write them, pretrain, probe, reconstruct, embed, and say what to type next."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maectl import console
from maectl.adapter import Adapter, Files, Source
from maectl.embed import embed
from maectl.errors import UsageError
from maectl.pretrain import Request, pretrain
from maectl.probe import probe, report
from maectl.reconstruct import reconstruct
from maectl.registry import load

__all__ = ["demo"]

SHOWN = 6  # images reconstructed


@dataclass(frozen=True)
class _View:
    """One model of the sample images: a small one, at a rate for one minute on two cores."""

    name: str  # "" where there is only one
    recipe: str | None  # None: the one that fits
    steps: int
    overrides: tuple[str, ...]


SMALL = (  # a third of tiny's width and depth
    "model.width=128", "model.depth=4", "model.heads=4",
    "model.decoder_width=64", "model.decoder_depth=1", "model.decoder_heads=2", "train.base_lr=1e-2",
)  # fmt: skip
IMAGES = (_View("", "small-images", 800, ("model.image_size=32", "model.patch_size=4", *SMALL)),)
RASTERS = (
    _View(
        "", "small-images", 800,
        ("model.image_size=32", "model.patch_size=4", "data.crop=32px", "data.crop_scale=[0.5,1.0]",
         "data.flip=[horizontal,vertical]", "data.rotate=true", *SMALL),
    ),
)  # fmt: skip
VOLUMES = (
    _View("slices", None, 1000, ("model.image_size=32", "model.patch_size=4", *SMALL)),
    _View("volume", None, 300, ("model.image_size=[8,32,32]", "model.patch_size=[2,4,4]", *SMALL)),
)


def demo(name: str, out: Path, *, seed: int, steps: int | None = None) -> dict[str, Any]:
    """Everything below ``out``: images/, run/, pictures/, embeddings/ and probe.json; what was measured.

    Where the sample has label rasters (images/masks) patches are probed with them too: probe-patches.json.

    Where the sample images are volumes a 2-D model sees them in slices and a 3-D model whole: run-slices/,
    run-volume/ and so on, and the results by these names. Raises UsageError where ``out`` holds something else,
    DataError where the adapter has no sample data.
    """
    begun = time.monotonic()
    adapter = load(name)()
    marker = out / "demo.json"
    if out.exists() and any(out.iterdir()):
        if not marker.is_file():
            raise UsageError(f"{out} is not empty and was not made by maectl demo: choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"adapter": name, "seed": seed}), encoding="utf-8")
    images = out / "images"
    adapter.sample(images, seed)
    console.say(f"sample images: {images}")
    sources = [each for each in adapter.scan(Files(images / "test")) if isinstance(each, Source)]
    views = VOLUMES if len(sources[0].axes) == 3 else RASTERS if adapter.length == "m" else IMAGES
    results = {view.name: _shown(adapter, view, out, sources, seed, steps or view.steps) for view in views}
    print(f"\ndone in {console.clock(time.monotonic() - begun)}:")
    for view, result in results.items():
        _tell(result, view, out)
    print("next, with your own images:\n  maectl inspect FOLDER\n  maectl pretrain FOLDER --out my-run --max-time 1h")
    return results.get("", results)


def _shown(
    adapter: Adapter, view: _View, out: Path, sources: Sequence[Source], seed: int, steps: int
) -> dict[str, Any]:
    """One model's road."""
    images, run, tail = out / "images", out / _named("run", view.name), f" in {view.name}" if view.name else ""
    console.say(f"\npretraining{tail} without labels ...")
    trained = pretrain(
        Request(
            [str(images / "train")], run, recipe=view.recipe, adapter=adapter.name,
            overrides=[*view.overrides, f"train.seed={seed}"], steps=steps, batch_size=64,
        )
    )  # fmt: skip
    console.say("\nprobing the frozen encoder with the labels ...")
    probed = probe(
        run, str(images), labels=None, method="linear", pool=None, seed=seed, workers=0,
        out=out / f"{_named('probe', view.name)}.json",
    )  # fmt: skip
    print(report(probed))
    dense = None
    if (images / "masks").is_dir():
        console.say("\nprobing its patches with the label rasters ...")
        dense = probe(
            run, str(images), labels=None, method="linear", pool=None, seed=seed, workers=0,
            out=out / f"{_named('probe-patches', view.name)}.json", masks=images / "masks",
        )  # fmt: skip
        print(report(dense))
    console.say("\nreconstructing images it has not seen ...")
    chosen = sources[:: max(1, len(sources) // SHOWN)][:SHOWN]
    paths = [
        str(images / "test" / (each.paths[0] if len(each.paths) == 1 else Path(each.paths[0]).parent))
        for each in chosen
    ]
    pictures = reconstruct(
        run, paths, out / _named("pictures", view.name), mask_ratio=None, seed=seed, cover=False, format="both"
    )
    console.say("\nputting out the features of images it has not seen ...")
    features = embed(
        run, paths if adapter.length == "m" else [str(images / "test")], out / _named("embeddings", view.name),
        dtype=None, pca=None, pool="mean", labels=None, seed=seed, workers=0,
    )  # fmt: skip
    return {"pretrain": trained, "probe": probed, "reconstruct": pictures, "embed": features} | (
        {"dense": dense} if dense else {}
    )


def _named(what: str, view: str) -> str:
    return f"{what}-{view}" if view else what


def _tell(result: dict[str, Any], view: str, out: Path) -> None:
    trained, run = result["pretrain"], out / _named("run", view)
    print(
        f"{view + ': ' if view else ''}{trained['images']:,} images, {trained['steps']:,} steps, "
        f"held-out loss {trained['loss_first']:.3f} -> {trained['loss_last']:.3f}\n"
        f"  pictures       {out / _named('pictures', view)}, {run}/samples\n"
        f"  features       {out / _named('embeddings', view)}\n"
        f"  encoder        {run}/encoder.safetensors (loads in timm)\n"
        f"  curves         tensorboard --logdir {run}/tensorboard"
    )
