"""Slices and films that occur twice in a series: dropped only where they are known to be the same."""

import os
from collections import defaultdict
from collections.abc import Iterable
from hashlib import blake2b

from maectl_medical.dicom.codecs import NATIVE
from maectl_medical.dicom.fragments import fragments, frame_bytes
from maectl_medical.dicom.header import PIXEL_TAGS, Damaged, Header, parse
from maectl_medical.dicom.image import Image, bytes_of
from maectl_medical.dicom.repeats import Slice

__all__ = ["films_without_copies", "without_copies"]

_NEAR = 0.01  # mm: slices no further apart lie at the same place


def without_copies(slices: list[Slice]) -> tuple[list[Slice], list[Slice]]:
    """The slices, and those that repeat an earlier one.

    A copy has all that tells slices apart in common with the other, and either its SOPInstanceUID or its stored pixels,
    which are read for such suspects only. Without a place the pixels are compared always.
    """
    alike: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    looks: dict[tuple[str, int], set[tuple[object, ...]]] = defaultdict(set)
    for each in slices:
        look = _look(each)
        alike[look].append(each)
        looks[each.image.instance, each.index].add(look)
    # one identifier at many places is an anonymiser's, and tells nothing
    trusted = {instance for instance, places in looks.items() if instance[0] and len(places) == 1}
    copies: set[int] = set()
    for group in alike.values():
        if len(group) > 1:
            copies |= _copies(group, trusted)
    return [each for each in slices if id(each) not in copies], [each for each in slices if id(each) in copies]


def films_without_copies(films: list[Image]) -> tuple[list[Image], list[Image]]:
    """The films of a series, and those with the SOPInstanceUID and the pixels of an earlier one."""
    same: dict[str, list[Image]] = defaultdict(list)
    for film in films:
        if film.instance:
            same[film.instance].append(film)
    copies: set[int] = set()
    for group in same.values():
        seen: set[object] = set()
        for film in group if len(group) > 1 else ():
            content = _pixels(film, range(len(film.frames)))
            if content is not None and (film.rows, film.columns, content) in seen:
                copies.add(id(film))
            seen.add((film.rows, film.columns, content))
    return [each for each in films if id(each) not in copies], [each for each in films if id(each) in copies]


def _look(each: Slice) -> tuple[object, ...]:
    """What copies have in common without their identifiers and pixels."""
    image, frame = each.image, each.frame
    where = None if frame.position is None else tuple(round(value / _NEAR) for value in frame.position)
    index = each.index if where is None else 0
    size = image.rows, image.columns
    marks = tuple(sorted(frame.marks.items()))
    return where, index, frame.orientation, frame.spacing, size, frame.rescale, image.unit, frame.number, marks


def _copies(group: list[Slice], trusted: set[tuple[str, int]]) -> set[int]:
    """Which of slices that look alike repeat an earlier one, by Python's id."""
    copies: set[int] = set()
    first: dict[tuple[str, int], Slice] = {}
    for each in group:
        instance = each.image.instance, each.index
        if each.frame.position is not None and instance in trusted and first.setdefault(instance, each) is not each:
            copies.add(id(each))
    left = [each for each in group if id(each) not in copies]
    seen: set[object] = set()
    for each in left if len(left) > 1 else ():
        pixels = _pixels(each.image, (each.index,))
        if pixels is not None and pixels in seen:
            copies.add(id(each))
        seen.add(pixels)
    return copies


def _pixels(image: Image, frames: Iterable[int]) -> bytes | None:
    """A digest of frames as they are stored; None where they cannot be read, and so are like no others."""
    try:
        with open(os.path.join(image.folder, image.path), "rb") as file:
            header = parse(file, PIXEL_TAGS)
            native = header.syntax in NATIVE
            order = "little" if header.data.original_encoding[1] else "big"
            digest = blake2b(f"{order if native else header.syntax} {image.form}".encode(), digest_size=16)
            parts = [] if native else fragments(header)
            for index in frames:
                digest.update(_stored(header, image, index) if native else _compressed(header, image, parts, index))
            return digest.digest()
    except (Damaged, OSError):
        return None


def _stored(header: Header, image: Image, index: int) -> bytes:
    """The bytes of an uncompressed frame; of one bit a pixel it may begin within a byte, which is taken whole."""
    begin, end = (bytes_of(image.rows, image.columns, image.form, count) for count in (index, index + 1))
    begin = max(0, begin - (image.form[1] == 1))
    start = header.file.tell()
    header.file.seek(start + begin)
    found = header.file.read(end - begin)
    header.file.seek(start)
    if len(found) < end - begin:
        raise Damaged("truncated: its pixel data end early")
    return found


def _compressed(header: Header, image: Image, parts: list[tuple[int, int]], index: int) -> bytes:
    try:
        return frame_bytes(header, parts, index, len(image.frames))
    except OSError:
        raise
    except Exception as error:  # pydicom raises errors of any class on broken offset tables
        raise Damaged("its compressed pixel data cannot be told apart") from error
