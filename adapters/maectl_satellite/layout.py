"""What a `Source.key` of this adapter says: where each channel's pixels lie in the files, and what they mean.

A scene is one grid, over which its channels may come from bands of one file or from one file each, of other
resolutions too. Positions are continuous: a pixel (i, j) covers [i, i + 1) x [j, j + 1).
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["Band", "Layout"]

Affine = tuple[float, float, float, float, float, float]
Line = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Band:
    """One channel.

    file     which of `Source.paths` it is in
    number   its number in that file, from 1
    name     its description in the file, "" where it has none
    rows     (a, b): row y of the scene lies at a·y + b in the file; (1, 0) where both are one grid
    columns  the same of columns
    scale    value = stored · scale + offset, before decibels
    offset   in the values' unit
    """

    file: int
    number: int
    name: str = ""
    rows: Line = (1.0, 0.0)
    columns: Line = (1.0, 0.0)
    scale: float = 1.0
    offset: float = 0.0

    @property
    def own_grid(self) -> bool:
        """Whether the scene's pixels are this band's own."""
        return self.rows == (1.0, 0.0) and self.columns == (1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole scene.

    shape      (H, W) of its grid
    bands      one a channel, in order
    stored     the dtype of the files (of all of them, the one that holds every value): what is written back
    transform  of the grid, as affine's first six (a, b, c, d, e, f); None where it is that of ``paths[bands[0].file]``
    decibel    what values are turned into dB from: "power" (10 log10) or "amplitude" (20 log10); "" for none
    nodata     a stored value that is invalid besides what the files say (option nodata)
    """

    shape: tuple[int, int]
    bands: tuple[Band, ...]
    stored: str
    transform: Affine | None = None
    decibel: Literal["", "power", "amplitude"] = ""
    nodata: float | None = None

    @property
    def plain(self) -> bool:
        """Whether values are as stored: neither scaled nor in dB."""
        return not self.decibel and all(band.scale == 1 and band.offset == 0 for band in self.bands)

    def dump(self) -> str:
        """As `Source.key` keeps it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def load(cls, key: str) -> "Layout":
        """What `dump` gave."""
        about = json.loads(key)
        bands = tuple(
            Band(**each | {"rows": tuple(each["rows"]), "columns": tuple(each["columns"])})
            for each in about.pop("bands")
        )
        for name in ("shape", "transform"):
            about[name] = None if about[name] is None else tuple(about[name])
        return cls(bands=bands, **about)
