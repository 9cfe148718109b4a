"""A JPEG codestream checked marker by marker (ITU-T T.81 B) before GDCM sees it.

GDCM ends the whole process on some damaged headers. What it gets is known to be one frame of the size, the depth and
the process that the DICOM header says; segments that no decoder needs are left out.
"""

import re
from typing import Any

__all__ = ["checked"]

_STOP = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # in entropy-coded data: anything but stuffing and restarts
_FRAME = {"extended": (0xC0, 0xC1), "lossless": (0xC3,)}
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval
_SCAN, _END, _JFIF, _ADOBE = 0xDA, 0xD9, 0xE0, 0xEE
_LEFT_OUT = (*range(0xE1, 0xEE), 0xEF, 0xFE)  # application data and comments


def checked(frame: bytes, process: str, options: dict[str, Any]) -> bytes:
    """The codestream of a frame, ``process`` "lossless" or "extended"; raises ValueError where it is damaged."""
    if frame[:2] != b"\xff\xd8":
        raise ValueError("no JPEG codestream")
    place, kept, seen = 2, [b"\xff\xd8"], False
    while True:
        marker = frame[place + 1] if frame[place : place + 1] == b"\xff" and place + 1 < len(frame) else -1
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _END and seen:
            return b"".join([*kept, b"\xff\xd9"])
        length = int.from_bytes(frame[place + 2 : place + 4], "big")
        segment = frame[place + 4 : place + 2 + length]
        if length < 2 or len(segment) != length - 2:
            raise ValueError("a JPEG segment without a length")
        place += 2 + length
        end = place
        if marker in _FRAME[process] and not seen:
            _check_frame(segment, process, options)
            seen = True
        elif marker == _SCAN and seen:
            _check_scan(segment, process, options)
            stop = _STOP.search(frame, place)
            end = stop.start() if stop else len(frame)
        elif not _harmless(marker, segment):
            raise ValueError("an unexpected JPEG marker")
        if marker not in _LEFT_OUT:
            kept.append(b"\xff" + bytes([marker]) + length.to_bytes(2, "big") + segment + frame[place:end])
        place = end


def _check_frame(segment: bytes, process: str, options: dict[str, Any]) -> None:
    samples = options["samples_per_pixel"]
    size = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    if len(segment) != 6 + 3 * samples or segment[5] != samples or size != (options["rows"], options["columns"]):
        raise ValueError("a JPEG frame of another size than the header's")
    depths = (8, 12) if process == "extended" else range(2, 17)
    container = 8 if segment[0] <= 8 else 16
    if segment[0] not in depths or container != options["bits_allocated"]:
        raise ValueError("a JPEG frame of another depth than the header's")
    if process == "lossless" and any(segment[7 + 3 * each] != 0x11 for each in range(samples)):
        raise ValueError("a lossless JPEG frame with subsampling")


def _check_scan(segment: bytes, process: str, options: dict[str, Any]) -> None:
    count = segment[0] if segment else 0
    if not 1 <= count <= options["samples_per_pixel"] or len(segment) != 4 + 2 * count:
        raise ValueError("a damaged JPEG scan")
    if process == "lossless" and not (1 <= segment[-3] <= 7 and segment[-1] >> 4 == 0):
        raise ValueError("a lossless JPEG scan without a predictor")


def _harmless(marker: int, segment: bytes) -> bool:
    if marker == _ADOBE:
        return segment[:5] == b"Adobe" and len(segment) == 12 and segment[11] in (0, 1, 2)
    if marker == _JFIF:
        return segment[:5] in (b"JFIF\0", b"JFXX\0")
    return marker in _TABLES or marker in _LEFT_OUT
