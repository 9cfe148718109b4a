"""The pixels of a `Source`: decoded, oriented, cut to a window."""

from typing import BinaryIO

from maectl.adapter import Source, Window
from maectl.errors import Unreadable
from maectl_natural import jpeg, pillow
from maectl_natural.headers import KINDS, Damaged
from maectl_natural.pillow import Raster
from maectl_natural.pixels import Box, from_cmyk, orient, scale_window, stored_window
from maectl_natural.scan import unpack_key

__all__ = ["load"]


def load(source: Source, window: Window | None = None, shape: tuple[int, ...] | None = None) -> Raster:
    """Values [h, w, 1 or 3] of a window in the file's own channels, and its alpha [h, w].

    With ``shape`` the pixels of a JPEG may be fewer, never fewer than ``shape``. Raises `Unreadable`.
    """
    kind = KINDS[unpack_key(source.key)[0]]
    height, width = source.shape[1:]
    box = (slice(0, height), slice(0, width)) if window is None else (window[0], window[1])
    try:
        with open(source.files[0], "rb") as file:
            return _load(source, file, box, shape or (height, width))
    except Damaged as error:
        raise Unreadable(f"damaged {kind}: {error}") from error
    except FileNotFoundError as error:
        raise Unreadable("the file is gone") from error
    except MemoryError as error:
        raise Unreadable(f"{height} x {width} pixels need more memory than there is") from error
    except Exception as error:  # Pillow raises errors of any class on damaged pixels
        raise Unreadable(f"damaged {kind}: {error}") from error


def _load(source: Source, file: BinaryIO, box: Box, least: tuple[int, ...]) -> Raster:
    kind, mode, turn = unpack_key(source.key)
    size = (source.shape[1], source.shape[2])
    if turn > 4:  # stored with rows and columns swapped
        size, least = size[::-1], least[::-1]
    box = stored_window(box, (source.shape[1], source.shape[2]), turn)
    factor, small = 1, box
    if kind == "jpeg" and 2 * least[0] <= box[0].stop - box[0].start + 1:  # nearly always not: all that is asked for
        factor, small = scale_window(box, size, (least[0], least[1]))
    if kind == "jpeg":
        raster, factor = jpeg.decode(file.read(), mode, size, factor)
    else:
        raster, factor = pillow.decode(kind, mode, file), 1
    if raster.values.shape[:2] != tuple(-(-length // factor) for length in size):
        found = " x ".join(map(str, raster.values.shape[:2]))
        raise Damaged(f"its size is {found} pixels, not {size[0]} x {size[1]}: changed since the scan?")
    box = small if factor > 1 else box
    values = orient(raster.values[box], turn)
    alpha = None if raster.alpha is None else orient(raster.alpha[box], turn)
    return Raster(from_cmyk(values) if mode.startswith("CMYK") else values, alpha)
