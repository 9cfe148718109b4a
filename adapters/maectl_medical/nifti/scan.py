"""One NIfTI file to what it holds, from its header."""

import os
import re
from dataclasses import replace
from typing import Any, Literal

from maectl.adapter import Reject
from maectl_medical.nifti.header import Damaged, Header, is_analyze, read_header
from maectl_medical.stored import Found

__all__ = ["describe"]

Fourth = Literal["times", "channels", "first"]

_SUBJECT = re.compile(r"(?:^|[/\\_])(sub-[0-9A-Za-z]+)")  # BIDS: in the name of a folder or a file
_COLOURS = ("red", "green", "blue")


def describe(folder: str, path: str, *, fourth: Fourth, unit: str | None) -> list[Found] | Reject | None:
    """What a file holds: one image, or several of a 4-D file; None where it is no NIfTI and not named so.

    ``fourth`` says what a fourth axis is: points in time, each an image [1, i, j, k] of the same group;
    channels of one image [C, i, j, k]; or that its first volume alone is taken. ``unit`` is what one step of
    the values means, None for "value". The ``.img`` of a pair is None: its ``.hdr`` speaks for both.
    """
    paths = _members(folder, path)
    if not paths:
        return None
    named = path.lower().endswith((".nii", ".nii.gz")) or len(paths) == 2
    try:
        header, head = read_header(tuple(os.path.join(folder, each) for each in paths))
    except Damaged as error:
        return Reject(paths, str(error))
    except OSError as error:
        return Reject(paths, f"cannot be opened: {error.strerror}") if named else None
    if header is None:
        return Reject(paths, _alien(path, head)) if named else None
    if header.samples > 1 and header.shape[3] > 1 and fourth == "channels":
        return Reject(paths, "4-D and in colour: its volumes cannot be channels, take them as times or the first")
    return _images(header, paths, path, fourth, unit)


def _members(folder: str, path: str) -> tuple[str, ...]:
    """The files that belong to an image, a header before its voxels; () for the voxels of a pair."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() == ".img":
        header = _beside(folder, stem, ".hdr")
        return () if header else (path,)
    if suffix.lower() == ".hdr":
        voxels = _beside(folder, stem, ".img")
        return (path, voxels) if voxels else (path,)
    return (path,)


def _beside(folder: str, stem: str, suffix: str) -> str | None:
    """The file of a stem and a suffix in small or capital letters, if there is one."""
    names = (stem + suffix, stem + suffix.upper())
    return next((name for name in names if os.path.isfile(os.path.join(folder, name))), None)


def _alien(path: str, head: bytes) -> str:
    """Why a file that is named as NIfTI is none."""
    if not head:
        return "empty file"
    if is_analyze(head):
        return "Analyze 7.5, which does not say where left and right are: convert it to NIfTI"
    suffix = ".nii.gz" if path.lower().endswith(".gz") else os.path.splitext(path)[1].lower()
    damaged = "not NIfTI, or its gzip stream is damaged" if head[:2] == b"\x1f\x8b" else "not NIfTI"
    return f"{damaged}, in spite of its suffix {suffix}"


def _images(header: Header, paths: tuple[str, ...], path: str, fourth: Fourth, unit: str | None) -> list[Found]:
    volumes, colour = header.shape[3], header.samples > 1
    channels: tuple[str, ...] = _COLOURS if colour else ("grey",)
    if volumes == 1:
        keys: list[dict[str, Any]] = [{}]
    elif fourth == "channels":
        keys = [{"volumes": volumes}]
        channels = tuple(f"volume {number}" for number in range(volumes))
    else:
        keys = [{"volume": number} for number in range(volumes if fourth == "times" else 1)]
    subject = _SUBJECT.search(path)
    shared = Found(
        paths=paths,
        shape=(len(channels), *header.shape[:3]),
        dtype=header.dtype,
        unit=unit or ("0..255" if colour else "value"),
        channels=channels,
        affine=header.affine,
        group=subject[1] if subject else path,
        facts=_facts(header),
        notes=header.notes,
    )
    return [replace(shared, key={"kind": "nifti", **key}) for key in keys]


def _facts(header: Header) -> tuple[str, ...]:
    suffix = ".hdr/.img" if header.paired else ".nii.gz" if header.packed else ".nii"
    order = "" if header.stored.itemsize == 1 else " big-endian" if header.stored.str[0] == ">" else " little-endian"
    stored = {3: "RGB24", 4: "RGBA32"}.get(header.samples, f"{header.stored.name}{order}")
    scaled = () if (header.slope, header.inter) == (1, 0) else ("scaled: by slope and intercept",)
    return (
        f"format: NIfTI-{header.version} {suffix}",
        f"stored: {stored}",
        f"dimensions: {header.dimensions}",
        *scaled,
    )
