"""Is an encoder any good? Frozen features, a linear (or nearest-neighbour) probe, beside honest baselines."""

import glob
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maectl import checkpoint, console, device, scoring
from maectl.checkpoint import Checkpoint, Config
from maectl.confusion import confusion
from maectl.dense import patches
from maectl.errors import DataError, RunError, UsageError
from maectl.features import Features, Members, extract
from maectl.index import Index
from maectl.labels import FILE, Labels, duplicates, resolve
from maectl.mae import MaskedAutoencoder
from maectl.planes import along
from maectl.rasters import paired
from maectl.registry import load as load_adapter
from maectl.scan import scan
from maectl.scoring import Evaluation
from maectl.store import Reader
from maectl.team import Team

__all__ = ["probe", "report"]

TWINS = 3  # random initialisations that make up the baseline random_init
KEYS = ("accuracy", "balanced_accuracy", "auroc", "f1_macro", "ci95")
DENSE = (*KEYS, "miou", "f1_ci95")  # of patches
WORDS = {"image_stats": "image statistics", "thumbnails": "16×16 thumbnails", "majority": "the commonest class"}
DENSE_WORDS = WORDS | {"image_stats": "patch statistics", "pixels": "raw pixels"}


def probe(
    run: Path,
    folder: str,
    *,
    labels: Path | None,
    method: str,
    pool: str | None,
    seed: int,
    workers: int,
    out: Path | None,
    per: str = "image",
    masks: Path | None = None,
    ignore: Sequence[str] = (),
    team: Team | None = None,
) -> dict[str, Any]:
    """Evaluate the encoder of ``run`` on labelled images; what ``--json`` prints.

    Baselines get the same classifier, and choose pool and regularisation on the training part by themselves:
    three random initialisations of the same model, image statistics, 16×16 thumbnails, and the commonest class.
    Features of a volume are the mean over its slices (crops of a 3-D model), with ``per`` patient the mean over
    all that a group has. With ``out`` the result is written there, and a confusion matrix beside it.

    With ``masks``, a folder of label rasters (or the one of a single image), patches are classified instead
    (`dense.patches`), and measured by mIoU; baselines are patch statistics and raw pixels. ``ignore`` are values
    (whole numbers, or colours as #rrggbb) that mean no label. The processes of a ``team`` share the images; its leader
    goes on with their features, the others end. Raises MaectlError.
    """
    team = team or Team()
    _check(labels, pool, per, masks, ignore)
    found = checkpoint.load(run)
    models = {"encoder": found.model()}
    models |= {f"random twin {number + 1}": _twin(found.config, number) for number in range(TWINS)}
    with tempfile.TemporaryDirectory(prefix="maectl-") as work:
        reader = _scanned(found.config, folder, Path(work), workers, masks)
        index = reader.index
        if masks is None:
            known = resolve(
                index.names(), index.groups, labels_csv=labels, folder=folder, seed=seed, files=index.members, per=per
            )
            known, frozen = _extracted(reader, found.config, known, models, workers, team)
        else:
            rasters = paired(index, masks, found.config.options, ignore, folder)
            known, frozen = patches(reader, found.config, models, rasters, seed, workers, team)
            team.dismissed()
        seen = _pretrained_on(found, index, known)

    def evaluated(name: str, given: str | None = None) -> Evaluation:
        return scoring.evaluate(frozen.values[name], known, method=method, pool=given, seed=seed)

    encoder, *twins = (evaluated(name, pool) for name in models)
    others = {name: evaluated(name) for name in frozen.values if name not in models}
    others["majority"] = scoring.majority(known, seed)
    result = _result(encoder, twins, others, known, seed)
    if masks is not None:
        result |= _about(found.config, known)
    result["notes"] = [*known.notes, *_leaks(frozen, known, seen)]
    result["test_images_seen_in_pretraining"] = seen
    if out is not None:
        _written(result, out)
    return result


def report(result: dict[str, Any]) -> str:
    """The result for people: metrics beside baselines, the classes, and the verdict."""
    dense = result["pool"] == "patch"
    items = "patches" if dense else "images"
    columns = {"mIoU": "miou"} if dense else {}
    columns |= {"accuracy": "accuracy", "balanced": "balanced_accuracy", "F1 macro": "f1_macro", "AUROC": "auroc"}
    intervals = {"95 % interval of mIoU": "ci95", "of F1 macro": "f1_ci95"} if dense else {"95 % interval": "ci95"}
    ratios = {"precision": "precision", "recall": "recall", "F1": "f1"} | ({"IoU": "iou"} if dense else {})
    rows = {"encoder": result} | result["baselines"]
    lines = [
        f"{result['method']} probe, {result['pool']} feature: {result['n_train']:,} training {items}, "
        f"{result['n_test']:,} test {items}, {len(result['classes'])} classes ({result['split']})",
        *([_images(result)] if dense else []),
        f"{'':<14}{''.join(f'{name:>10}' for name in columns)}   {'   '.join(intervals)}",
        *(_row(name, rows[name], columns.values(), intervals.values()) for name in rows),
        "",
        f"{'class':<24}{''.join(f'{name:>10}' for name in ratios)}{items:>10}",
        *(
            f"{each['class'][:23]:<24}{''.join(f'{each[key]:>10.3f}' for key in ratios.values())}{each['support']:>10,}"
            for each in result["per_class"]
        ),
        "",
        *(f"note: {note}" for note in result["notes"]),
        f"verdict: {result['verdict']}",
    ]
    return "\n".join(lines)


def _check(labels: Path | None, pool: str | None, per: str, masks: Path | None, ignore: Sequence[str]) -> None:
    """Raises UsageError for arguments that do not go together."""
    if masks is None:
        if ignore:
            raise UsageError("--ignore is for label rasters: give --masks, too")
        return
    given = {"--labels": labels is not None, "--per patient": per != "image", "--pool": pool is not None}
    for name in (name for name in given if given[name]):
        raise UsageError(f"--masks classifies patches by label rasters and their own features: leave out {name}")
    if not masks.exists():
        raise UsageError(f"--masks {masks} does not exist: give a folder of label rasters, or one file")


def _scanned(config: Config, folder: str, work: Path, workers: int, masks: Path | None) -> Reader:
    """The images in ``folder``, as the run saw its own; label rasters among them are none."""
    kind = load_adapter(config.adapter)
    seeing = config.seeing()
    if masks is not None and Path(folder).resolve() in masks.resolve().parents:
        inside = os.path.relpath(masks.resolve(), Path(folder).resolve()).replace(os.sep, "/")
        pattern = glob.escape(inside) + ("/*" if masks.is_dir() else "")
        seeing = seeing.model_copy(update={"exclude": (*seeing.exclude, pattern)})
    with console.task("scanning") as advance:
        found = scan(
            [folder], kind, seeing, work / "index.arrow", workers=workers,
            progress=lambda n: advance(n, None),
        )  # fmt: skip
    if found.rejects.rows:
        _, paths, _, reason = found.rejects.rows[0]
        console.warn(f"{len(found.rejects):,} images cannot be used, e.g. {paths}: {reason}")
    units = {source.unit for source, _ in found.index.kinds}
    if units != {config.unit}:
        raise DataError(
            f"the encoder was trained on values in {config.unit}, {folder} holds {', '.join(sorted(units))}: "
            "bring them to the same unit"
        )
    return Reader(found.index, found.adapter)


def _extracted(
    reader: Reader, config: Config, labels: Labels, models: dict[str, MaskedAutoencoder], workers: int, team: Team
) -> tuple[Labels, Features]:
    """Features of the labelled images, and the labels of those that can be read."""
    labels, places = _sliced(reader, config, labels)
    members = Members(labels.rows, places, labels.owners)
    with console.task("features of the images") as advance:
        frozen = extract(reader, config, members, models, device.pick(), workers, advance, team=team)
    team.dismissed()
    if not frozen.unread:
        return labels, frozen
    place, reason = frozen.unread[0]
    lost = len(frozen.unread)
    console.warn(f"{lost:,} images cannot be read, e.g. {reader.index[int(labels.rows[place])].paths[0]}: {reason}")
    return _kept(labels, frozen.items, f"left out, unreadable: {lost} images"), frozen


def _kept(labels: Labels, items: npt.NDArray[np.int64], note: str) -> Labels:
    """Some of the items, with a note on the others. Raises DataError where a part of the split is empty."""
    kept = replace(labels.only(items), notes=[*labels.notes, note])
    if kept.train.all() or not kept.train.any():
        raise DataError(f"no image is left in the training or the test part ({note})")
    return kept


def _sliced(reader: Reader, config: Config, labels: Labels) -> tuple[Labels, npt.NDArray[np.int64]]:
    """[M] the slice of every member along the axis the model sees, -1 for the whole; slices cut away are left out.

    Raises UsageError for a slice that there is none of.
    """
    dimensions = len(config.model["image_size"])
    places, cut = labels.places.copy(), []
    for number in np.flatnonzero(places >= 0):
        source, place = reader.index[int(labels.rows[number])], int(places[number])
        axis = along(source, dimensions, config.axis)
        if axis < 0:
            raise UsageError(f"labels of single slices: this model sees {source.paths[0]} whole; label it as one")
        member = place >= FILE
        found = reader.adapter.place(source, axis, place - FILE * member, member=member)
        if found is None:
            cut.append(int(number))
        elif not 0 <= found < source.shape[1 + axis]:
            what = f"its {source.axes[axis]} slices are {source.shape[1 + axis]}"
            raise UsageError(f"no slice of {source.paths[0]} as labelled ({place - FILE * member}): {what}")
        else:
            places[number] = found
    if not cut:
        return labels, places
    rows, places, owners = (np.delete(each, cut) for each in (labels.rows, places, labels.owners))
    left = replace(labels, rows=rows, places=np.delete(labels.places, cut), owners=owners)
    return _kept(left, np.unique(owners), f"left out, cut away by the adapter's options: {len(cut)} slices"), places


def _twin(config: Config, number: int) -> MaskedAutoencoder:
    """The same model with fresh weights."""
    torch.manual_seed(1_000_003 + number)
    return config.build_model()


def _result(
    encoder: Evaluation, twins: Sequence[Evaluation], others: dict[str, Evaluation], labels: Labels, seed: int
) -> dict[str, Any]:
    metrics = encoder.metrics
    keys, words = (DENSE, DENSE_WORDS) if labels.items == "patches" else (KEYS, WORDS)
    rivals = {words[name]: evaluation for name, evaluation in others.items()}
    baselines = {"random_init": scoring.average(twins, labels, seed)}
    baselines |= {name: {key: evaluation.metrics[key] for key in keys} for name, evaluation in others.items()}
    return {
        "method": encoder.method,
        "pool": encoder.pool,
        "strength": encoder.strength,
        "classes": list(labels.classes),
        "split": labels.split,
        "n_train": int(labels.train.sum()),
        "n_test": int((~labels.train).sum()),
        **{key: metrics[key] for key in keys},
        **{key: metrics[key] for key in ("ci95_reason", "auroc_reason", "headline", "per_class", "confusion")},
        "baselines": baselines,
        "verdict": scoring.verdict(encoder, twins, rivals, labels, seed),
    }


def _about(config: Config, labels: Labels) -> dict[str, Any]:
    """What is told of patches alone: the images they are of, and the extent of one where it is known."""
    patch = None if config.patch is None else {"extent": list(config.patch), "unit": config.length}
    return {"images": len(np.unique(labels.rows)), "patch": patch}


def _leaks(frozen: Features, labels: Labels, seen: int | None) -> list[str]:
    copies = duplicates(frozen.hashes[labels.train], frozen.hashes[~labels.train])
    notes = [f"{copies} test images are exact copies of training images"] if copies else []
    if copies and labels.items == "patches":
        notes = [f"{copies} test patches lie in windows that are exact copies of training windows"]
    if seen:
        notes.append(f"{seen} test images were among those the encoder was pretrained on (without labels)")
    return notes


def _pretrained_on(found: Checkpoint, index: Index, labels: Labels) -> int | None:
    """How many test images lie in the run's own index; None where the checkpoint is not in a run folder."""
    for folder in (found.path, *found.path.parents[:2]):
        if (folder / "index.arrow").is_file() and (folder / "run.json").is_file():
            known = Index(folder / "index.arrow")
            inside = {Path(root, path) for number, root in enumerate(known.folders) for path in known.files(number)}
            test = labels.rows[~labels.train[labels.owners]]
            test = np.unique(test) if labels.items == "patches" else test
            return sum(any(Path(path) in inside for path in index[int(row)].files) for row in test)
    return None


def _written(result: dict[str, Any], out: Path) -> None:
    try:
        out.write_text(json.dumps(result, indent=1), encoding="utf-8")
        if result["confusion"] is not None:
            confusion(np.array(result["confusion"]), result["classes"], out.with_suffix(".png"))
    except OSError as error:
        raise RunError(f"--out {out} cannot be written: {error.strerror}") from None


def _images(result: dict[str, Any]) -> str:
    """The images patches are of, and how large one is."""
    told, patch = f"of {result['images']:,} images", result["patch"]
    if patch is None:
        return told
    return f"{told}, a patch is {' x '.join(f'{side:g}' for side in patch['extent'])} {patch['unit']}"


def _row(name: str, metrics: dict[str, Any], columns: Iterable[str], intervals: Iterable[str]) -> str:
    cells = "".join(f"{'-':>10}" if metrics[key] is None else f"{metrics[key]:>10.3f}" for key in columns)
    ends = ["-" if metrics[key] is None else "{:.3f} to {:.3f}".format(*metrics[key]) for key in intervals]
    return f"{name:<14}{cells}   " + "".join(f"{each:<24}" for each in ends).rstrip()
