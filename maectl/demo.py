"""The whole road on sample images: write them, pretrain, probe, reconstruct, and say what to type next."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from maectl import console
from maectl.errors import UsageError
from maectl.pretrain import Request, pretrain
from maectl.probe import probe, report
from maectl.reconstruct import reconstruct
from maectl.registry import load

__all__ = ["demo"]

RECIPE = "small-images"
# a model and a rate for one minute on two cores: a third of tiny's width and depth
STEPS = 800
OVERRIDES = (
    "model.image_size=32",
    "model.patch_size=4",
    "model.width=128",
    "model.depth=4",
    "model.heads=4",
    "model.decoder_width=64",
    "model.decoder_depth=1",
    "model.decoder_heads=2",
    "train.base_lr=1e-2",
)


def demo(name: str, out: Path, *, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Everything below ``out``: images/, run/, pictures/ and probe.json; what was measured.

    Raises UsageError where ``out`` holds something else, DataError where the adapter has no sample data.
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
    images, run = out / "images", out / "run"
    adapter.sample(images, seed)
    console.say(f"sample images: {images}\n\npretraining without labels ...")
    overrides = [*OVERRIDES, f"train.seed={seed}"]
    trained = pretrain(
        Request(
            [str(images / "train")], run, recipe=RECIPE, adapter=name, overrides=overrides, steps=steps, batch_size=64
        )
    )
    console.say("\nprobing the frozen encoder with the labels ...")
    probed = probe(
        run, str(images), labels=None, method="linear", pool=None, seed=seed, workers=0, out=out / "probe.json"
    )
    print(report(probed))
    console.say("\nreconstructing images it has not seen ...")
    shown = [str(path) for path in sorted((images / "test").glob("*/*"))[::37][:6]]
    pictures = reconstruct(run, shown, out / "pictures", mask_ratio=None, seed=seed, cover=False, format="both")
    print(
        f"\ndone in {console.clock(time.monotonic() - begun)}: {trained['images']:,} images, "
        f"{trained['steps']:,} steps, held-out loss {trained['loss_first']:.3f} -> {trained['loss_last']:.3f}\n"
        f"  pictures       {out}/pictures, {run}/samples\n"
        f"  encoder        {run}/encoder.safetensors (loads in timm)\n"
        f"  curves         tensorboard --logdir {run}/tensorboard\n"
        f"next, with your own images:\n"
        f"  maectl inspect FOLDER\n"
        f"  maectl pretrain FOLDER --out my-run --max-time 1h"
    )
    return {"pretrain": trained, "probe": probed, "reconstruct": pictures}
