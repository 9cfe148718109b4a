"""Windows of sources by row: from a store where it has them, else decoded from their files."""

from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maectl import forms, huge
from maectl.adapter import Adapter, Pixels, Window
from maectl.errors import Unreadable
from maectl.index import Index
from maectl.shards import PLACE, shards

__all__ = ["Reader", "Store"]


class Store:
    """Entries of one folder of a store, for the sources of one index."""

    def __init__(self, folder: Path, index: Index, keys: npt.NDArray[np.void]) -> None:
        """``keys`` [N] as `keys.source_keys` gives them."""
        self.folder = folder
        self._index = index
        self._shards: list[npt.NDArray[np.uint8]] = []
        known, places = [np.empty(0, "S16")], [np.empty(0, PLACE)]
        for number, (here, lying, pixels) in enumerate(shards(folder)):
            lying["shard"] = number
            known.append(here)
            places.append(lying)
            self._shards.append(pixels)
        self._places = _looked_up(np.concatenate(known), np.concatenate(places), keys.view("S16"))

    def __contains__(self, row: int) -> bool:
        return bool(self._places["shard"][row] >= 0)

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Rows that have no entry."""
        return np.flatnonzero(self._places["shard"] < 0)

    def only(self, rows: npt.NDArray[np.int64], index: Index) -> "Store":
        """The entries of some rows, for the ``index`` of these alone."""
        other = copy(self)
        other._index, other._places = index, self._places[rows]
        other.__dict__.pop("shapes", None)
        return other

    @cached_property
    def shapes(self) -> npt.NDArray[np.int32]:
        """int32 [N, 1 + dimensions] the shape [C, *S] of every entry; of a source without one its own."""
        own = np.flatnonzero(self._places["height"])
        shapes = self._index.shapes
        if len(own):
            shapes = shapes.copy()
            shapes[own, 1], shapes[own, 2] = self._places["height"][own], self._places["width"][own]
        return shapes

    def read(self, row: int, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        """A window of an entry, [C, *S], as views of the map or decoded; with ``shape`` every n-th pixel, not fewer
        than that. Raises Unreadable where the entry is a damaged JPEG.
        """
        place = self._places[row]
        channels, *extent = (int(side) for side in self.shapes[row])
        window = window or tuple(slice(0, side) for side in extent)
        if shape is not None:
            steps = (max(1, (side.stop - side.start) // least) for side, least in zip(window, shape, strict=True))
            window = tuple(slice(side.start, side.stop, step) for side, step in zip(window, steps, strict=True))
        raw, offset = self._shards[place["shard"]], int(place["offset"])
        if place["jpeg"]:
            whole = forms.decoded(raw[offset : offset + int(place["jpeg"])], channels)
            return Pixels(whole[(slice(None), *window)])
        dtype = self._index.dtype(row)
        pixels = prod(extent)
        values = raw[offset : offset + pixels * channels * dtype.itemsize].view(dtype).reshape(*extent, channels)
        valid = None
        if (behind := int(place["valid_offset"])) >= 0:
            valid = raw[behind : behind + pixels].view(np.bool_).reshape(extent)[window]
        values = values[window].transpose(values.ndim - 1, *range(values.ndim - 1))  # channels first
        return Pixels(values, None if valid is None or valid.all() else valid)


def _looked_up(
    known: npt.NDArray[np.bytes_], places: npt.NDArray[Any], keys: npt.NDArray[np.bytes_]
) -> npt.NDArray[Any]:
    """[N] the place of every key, of shard -1 where it has none; no Python object a source."""
    found = np.zeros(len(keys), PLACE)
    found["shard"] = -1
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known, keys, sorter=order)
    there = at < len(known)
    there[there] = known[order[at[there]]] == keys[there]
    found[there] = places[order[at[there]]]
    return found


@dataclass(frozen=True)
class Reader:
    """Windows of sources by row: from the store where it has them, else decoded."""

    index: Index
    adapter: Adapter
    store: Store | None = None

    @cached_property
    def shapes(self) -> npt.NDArray[np.int32]:
        """int32 [N, 1 + dimensions] the shape [C, *S] of every row as `read` serves it: its windows speak of it."""
        return self.native if self.store is None else self.store.shapes

    @cached_property
    def native(self) -> npt.NDArray[np.int32]:
        """The sources' own shapes: the index looks through all its rows to tell them."""
        return self.index.shapes

    def read(self, row: int, window: Window | None = None, size: tuple[int, ...] | None = None) -> Pixels:
        """``values`` [C, *S] and ``valid`` [*S] or None. Raises Unreadable.

        ``size`` is what the pixels will be resized to. A window of more than 16 million pixels may then have fewer,
        but at least twice that along each axis: what an overview holds, or a store's every n-th.
        """
        shape = None if size is None or window is None else huge.fewer(window, size)
        if self.store is not None and row in self.store:
            return self.store.read(row, window, shape)
        return self.decode(row, window, shape)

    def reduced(self, row: int, least: tuple[int, ...]) -> Pixels:
        """A whole source from its files, with fewer pixels where its format has a quick way to them, but at least
        ``least``; those with invalid pixels whole. Raises Unreadable.
        """
        extent = self.native[row, 1:].tolist()
        if any(few > side for few, side in zip(least, extent, strict=True)):
            return self.decode(row)
        pixels = self.decode(row, tuple(slice(0, side) for side in extent), least)
        have = pixels.values.shape[1:]
        if not all(few <= side <= most for few, side, most in zip(least, have, extent, strict=True)):
            raise Unreadable(f"the header told of {extent} pixels, {list(have)} of at least {list(least)} were read")
        return pixels if pixels.valid is None or pixels.valid.all() else self.decode(row)

    def decode(self, row: int, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Pixels:
        """A window of a source's files, whatever the store has; with ``shape`` the adapter may give fewer pixels, not
        fewer than that. Raises Unreadable.
        """
        source = self.index[row]
        try:
            pixels = self.adapter.read(source, window, shape)
        except OSError as error:  # gone, moved or forbidden since the scan
            raise Unreadable(f"{type(error).__name__}: {error.strerror or error}") from error
        found, dtype = pixels.values.shape, str(pixels.values.dtype)
        if window is None and (found, dtype) != (source.shape, source.dtype):
            raise Unreadable(f"the header told of {source.dtype} {source.shape}, the pixels are {dtype} {found}")
        if (found[0], dtype) != (source.shape[0], source.dtype):
            told = f"{source.shape[0]} channels of {source.dtype}"
            raise Unreadable(f"the header told of {told}, the pixels are {found[0]} channels of {dtype}")
        return pixels

    def huge(self, row: int) -> bool:
        """Whether a source is an image too large to be decoded whole."""
        return huge.is_huge(self.native[row].tolist(), self.index.dtype(row))

    def bands(self, row: int) -> list[Window]:
        """Windows that cover a source, one unless it is huge: whole rows, top to bottom."""
        return huge.bands(self.native[row].tolist(), self.index.dtype(row))

    def sample(self, row: int) -> Pixels:
        """A source's pixels for statistics: all, or of a huge one 32 windows below one another, always the same."""
        return huge.sample(partial(self.read, row), self.native[row].tolist(), self.index.dtype(row))

    def sampled(self) -> npt.NDArray[np.int64]:
        """[N] how many pixels `sample` gives of each source."""
        sizes: npt.NDArray[np.int64] = self.shapes[:, 1:].prod(axis=1, dtype=np.int64)
        images = self.shapes.shape[1] == 3
        return np.where(images & (sizes > huge.LOOKED_AT * huge.BLOCK**2), huge.LOOKED_AT * huge.BLOCK**2, sizes)
