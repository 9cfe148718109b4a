"""Images to frozen features: through the encoder with nothing removed, at the scale of training, pooled an item.

An item is what a label speaks of: an image, a volume, a slice of one, or all images of a patient. It is seen in
one view or in several, and its features are the mean of theirs: a volume in slices (2-D model) or crops (3-D
model), an image in windows where training drew windows (``data.crop``), else the whole image, once.

N items, V views, C channels, S the model's spatial size, D the encoder's width.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

import numpy as np
import numpy.typing as npt
import torch

from maectl import device
from maectl.adapter import Pixels, Source, Window
from maectl.checkpoint import Config
from maectl.dataset import Batch, normalise
from maectl.errors import Unreadable
from maectl.mae import MaskedAutoencoder
from maectl.planes import along, flat, rest, slab
from maectl.resize import fitted, resize
from maectl.store import Reader, in_order
from maectl.team import Team
from maectl.windows import Span, coarser, cover, crop_pixels

__all__ = ["Features", "Members", "Whole", "central", "extract", "features", "image_statistics", "looks", "thumbnails"]

BATCH = 128
SLICES = 32  # of a volume that are looked at, evenly spread
CROPS = 4  # windows an axis that are looked at
WHOLE = 1 << 30  # values up to which a source looked at several times is decoded whole, once
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Advance = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Members:
    """What N items consist of: pairs of a row of the index and a slice (-1: the whole source).

    rows, places, owners  int64 [M]: member m is of item ``owners[m]``
    """

    rows: Ints
    places: Ints
    owners: Ints


@dataclass(frozen=True)
class Whole:
    """Views at the model's size, still in their unit: what every feature is computed from.

    images [V, C, *S] uint8 or float32; valid bool [V, *S] or None; mean and std [V or 1, C]
    """

    images: npt.NDArray[np.generic]
    valid: npt.NDArray[np.bool_] | None
    mean: Floats
    std: Floats

    def batch(self) -> Batch:
        """As the loader's consumers understand it (no mask noise)."""
        return Batch(
            images=torch.from_numpy(self.images),
            valid=None if self.valid is None else torch.from_numpy(self.valid),
            noise=torch.empty(0),
            mean=torch.from_numpy(self.mean),
            std=torch.from_numpy(self.std),
            rows=np.empty(0, np.int64),
        )


@dataclass(frozen=True)
class Features:
    """Of the items that could be read.

    items     int64 [K], which of the N items they are
    values    by name, then by pool, float32 [K, D]
    hashes    bytes [K] of what was seen of each
    unread    (member's place, reason) of what could not be read: its item is left out
    """

    items: Ints
    values: dict[str, dict[str, Floats]]
    hashes: npt.NDArray[np.bytes_]
    unread: list[tuple[int, str]]


def central(extent: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    """The largest central window of an image that has the model's proportions."""
    scale = min(e / s for e, s in zip(extent, size, strict=True))
    sides = [max(1, min(e, round(s * scale))) for e, s in zip(extent, size, strict=True)]
    return tuple(slice((e - side) // 2, (e - side) // 2 + side) for e, side in zip(extent, sides, strict=True))


def looks(source: Source, config: Config, place: int = -1) -> tuple[int, list[tuple[Window, Span]]]:
    """The axis that is sliced (-1: none), and what features see of a source (or of one slice): windows and spans."""
    size = tuple(int(side) for side in config.model["image_size"])
    axis = along(source, len(size), config.axis)
    extent = rest(source.shape[1:], axis)
    spacing = source.spacing if source.spacing is None or axis < 0 else tuple(np.delete(source.spacing, axis))
    window = crop_pixels(config.crop, size, spacing)
    if window is None:
        whole = tuple(slice(0, e) for e in extent) if len(size) == 3 else central(extent, size)
        planes, span = [whole], tuple(side.stop - side.start for side in whole)
    else:
        span = tuple(max(1, round(w)) for w in window)
        starts = [_spread(cover(e, side, 0), CROPS) for e, side in zip(extent, span, strict=True)]
        planes = [
            tuple(slice(start, min(start + side, e)) for start, side, e in zip(corner, span, extent, strict=True))
            for corner in product(*starts)
        ]
    if axis < 0:
        return axis, [(plane, span) for plane in planes]
    chosen = [place] if place >= 0 else _spread(range(source.shape[1 + axis]), SLICES)
    return axis, [(slab(axis, number, plane), span) for number in chosen for plane in planes]


def _spread(of: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly apart."""
    if len(of) <= most:
        return list(of)
    return [of[int((number + 0.5) * len(of) / most)] for number in range(most)]


@dataclass(frozen=True)
class _View:
    member: int
    pixels: Pixels  # at the model's size
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


def _views(reader: Reader, config: Config, rows: Ints, places: Ints, members: Sequence[int]) -> list[_View] | str:
    """Every view of some members, all of one row; or why it cannot be read."""
    row, size = int(rows[members[0]]), tuple(int(side) for side in config.model["image_size"])
    source = reader.index[row]
    wanted = [(member, *looks(source, config, int(places[member]))) for member in members]
    count = sum(len(windows) for _, _, windows in wanted)
    whole: Pixels | None = None
    try:
        if not reader.huge(row) and (config.normalizer.image or (count > 1 and np.prod(source.shape) <= WHOLE)):
            whole = reader.read(row)
        mean, std = config.normalizer.constants(lambda: reader.sample(row) if whole is None else whole)
        views = []
        for member, axis, windows in wanted:
            for window, span in windows:
                if whole is None:
                    cut = flat(reader.read(row, window, size if axis < 0 else None), axis)
                    span = coarser(span, window, cut.values.shape[1:])
                else:
                    cut = flat(_cut(whole, window), axis)
                views.append(_View(member, fitted(cut, span, size, mean), mean, std))
    except Unreadable as error:
        return str(error)
    return views


def _cut(whole: Pixels, window: Window) -> Pixels:
    valid = None if whole.valid is None else whole.valid[window]
    return Pixels(whole.values[(slice(None), *window)], None if valid is None or valid.all() else valid)


def extract(
    reader: Reader,
    config: Config,
    members: Members,
    models: Mapping[str, MaskedAutoencoder],
    where: torch.device,
    workers: int,
    advance: Advance,
    *,
    baselines: bool = True,
    team: Team | None = None,
) -> Features:
    """Features of every item by every model, and with ``baselines`` image_stats and thumbnails of the same views.

    Views are made and used a batch at a time, so memory does not grow with the number of images. The sources are
    shared by the processes of a ``team``, whose leader alone gets the features: the others get those of no item.
    """
    team = team or Team()
    count = int(members.owners.max()) + 1
    by_row: dict[int, list[int]] = defaultdict(list)
    for member, row in enumerate(members.rows):
        by_row[int(row)].append(member)
    own = _Sums(count)
    for model in models.values():
        model.to(where).eval()
    sources = list(by_row.values())[team.share(len(by_row))]
    for views in _batched(reader, config, members, sources, workers, advance, own.unread):
        owners = members.owners[[view.member for view in views]]
        whole = _stacked(views, config)
        values: dict[tuple[str, str], Floats] = {}
        if baselines:
            values["image_stats", "stats"] = image_statistics(whole)
            values["thumbnails", "thumbnails"] = thumbnails(whole, config)
        for name, model in models.items():
            values |= {(name, pool): each for pool, each in features(model, config, whole, where).items()}
        own.add(owners, values, whole.images)
    total = own if team.leads else _Sums(0)
    for each in team.collected(None if team.leads else own.some()):
        if each is not None:
            total.include(*each)
    lost = np.unique(members.owners[[member for member, _ in total.unread]]) if total.unread else np.empty(0, int)
    items = np.setdiff1d(np.arange(total.count), lost)
    found: dict[str, dict[str, Floats]] = defaultdict(dict)
    for (name, pool), values_ in total.values.items():
        found[name][pool] = (values_[items] / total.seen[items, None]).astype(np.float32)
    return Features(items, dict(found), total.digests[items].view("S8"), total.unread)


@dataclass
class _Sums:
    """Features added up an item, and what adding up in any order identifies: the sum of its views' hashes."""

    count: int

    def __post_init__(self) -> None:
        self.values: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
        self.seen = np.zeros(self.count)
        self.digests = np.zeros(self.count, np.uint64)
        self.unread: list[tuple[int, str]] = []

    def add(self, owners: Ints, values: Mapping[tuple[str, str], Floats], images: npt.NDArray[np.generic]) -> None:
        """Views [V, ...] of the items ``owners``."""
        for key, each in values.items():
            np.add.at(self.values.setdefault(key, np.zeros((self.count, each.shape[1]))), owners, each)
        np.add.at(self.seen, owners, 1)
        hashes = [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images]
        np.add.at(self.digests, owners, np.frombuffer(b"".join(hashes), np.uint64))

    def some(self) -> "tuple[Ints, _Sums]":
        """The items seen, and what there is of these alone: as little as another process can be sent."""
        rows = np.flatnonzero(self.seen)
        part = _Sums(len(rows))
        part.values = {key: each[rows] for key, each in self.values.items()}
        part.seen, part.digests, part.unread = self.seen[rows], self.digests[rows], self.unread
        return rows, part

    def include(self, rows: Ints, other: "_Sums") -> None:
        """What another process has seen of the items ``rows``."""
        for key, each in other.values.items():
            self.values.setdefault(key, np.zeros((self.count, each.shape[1])))[rows] += each
        self.seen[rows] += other.seen
        self.digests[rows] += other.digests
        self.unread += other.unread


def _batched(
    reader: Reader,
    config: Config,
    members: Members,
    sources: list[list[int]],
    workers: int,
    advance: Advance,
    unread: list[tuple[int, str]],
) -> Iterator[list[_View]]:
    """Views, up to 128 at a time; members that cannot be read go to ``unread``."""

    def read(chosen: list[int]) -> tuple[list[int], list[_View] | str]:
        return chosen, _views(reader, config, members.rows, members.places, chosen)

    waiting: list[_View] = []
    for done, (chosen, views) in enumerate(in_order(read, sources, device.loader_threads(workers)), 1):
        if isinstance(views, str):
            unread += [(member, views) for member in chosen]
        else:
            waiting += views
        while len(waiting) >= BATCH or (waiting and done == len(sources)):
            yield list(islice(waiting, BATCH))
            del waiting[:BATCH]
        advance(done, len(sources))


def _stacked(views: Sequence[_View], config: Config) -> Whole:
    valid = None
    if any(view.pixels.valid is not None for view in views):
        everywhere = np.ones(views[0].pixels.values.shape[1:], np.bool_)
        valid = np.stack([everywhere if view.pixels.valid is None else view.pixels.valid for view in views])
    mean = np.array([view.mean for view in views], np.float32)
    std = np.array([view.std for view in views], np.float32)
    return Whole(np.stack([view.pixels.values for view in views]), valid, mean, std)


@torch.inference_mode()
def features(model: MaskedAutoencoder, config: Config, whole: Whole, where: torch.device) -> dict[str, Floats]:
    """Frozen features of every view: ``cls`` [V, D], the class token, and ``mean`` [V, D], of the patch tokens.

    A patch counts in the mean by its share of valid pixels. Computed in float32, whatever the training's precision,
    so that they do not depend on the machine's.
    """
    images, valid = normalise(whole.batch(), config.normalizer, where)
    tokens = model.encode(images, valid)  # [V, 1 + L, D]
    mean = tokens[:, 1:].mean(dim=1)
    if valid is not None:
        shares = model.patchify(valid[:, None].float()).mean(dim=-1, keepdim=True)  # [V, L, 1]
        weighted = (tokens[:, 1:] * shares).sum(dim=1) / shares.sum(dim=1).clamp(min=1e-6)
        mean = torch.where(valid.flatten(1).any(dim=1, keepdim=True), weighted, mean)
    return {"cls": tokens[:, 0].cpu().numpy(), "mean": mean.cpu().numpy()}


def image_statistics(whole: Whole) -> Floats:
    """float32 [V, 4C]: mean, deviation, minimum and maximum a channel over the valid pixels."""
    out = []
    for number, image in enumerate(whole.images):
        flat = image.reshape(len(image), -1) if whole.valid is None else image[:, whole.valid[number]]
        flat = flat.astype(np.float64) if flat.shape[1] else np.zeros((len(image), 1))
        out.append(np.concatenate((flat.mean(axis=1), flat.std(axis=1), flat.min(axis=1), flat.max(axis=1))))
    return np.array(out, np.float32)


def thumbnails(whole: Whole, config: Config) -> Floats:
    """float32 [V, C·256] (or C·512 in 3-D): each view shrunk to 16 (8) a side, its values in order."""
    side = 16 if whole.images.ndim == 4 else 8
    size = tuple(min(side, extent) for extent in whole.images.shape[2:])
    fill = np.array(config.normalizer.mean)
    valid = [None] * len(whole.images) if whole.valid is None else list(whole.valid)
    small = [
        resize(Pixels(image.astype(np.float32), where), size, fill).values.ravel()
        for image, where in zip(whole.images, valid, strict=True)
    ]
    return np.array(small, np.float32)
