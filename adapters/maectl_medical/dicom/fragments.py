"""Compressed pixel data: a sequence of fragments (PS3.5 A.4), each complete, and the frames that they make."""

from pydicom.encaps import get_frame

from maectl_medical.dicom.header import Damaged, Header

__all__ = ["fragments", "frame_bytes"]

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def fragments(header: Header) -> list[tuple[int, int]]:
    """Where in the file each fragment begins, and its bytes; raises `Damaged` unless all are there.

    The first item, the offset table, is left out. Nothing but the items' heads is read.
    """
    file, found = header.file, list[tuple[int, int]]()
    start = file.tell()
    end = start + header.rest
    place = start
    try:
        while True:
            file.seek(place)
            head = file.read(8)
            if head[:4] == _END:
                return found[1:]
            length = int.from_bytes(head[4:], "little")
            if len(head) < 8 or place + 8 + length > end:
                raise Damaged("truncated: its compressed pixel data end early")
            if head[:4] != _ITEM:
                raise Damaged("its compressed pixel data are no sequence of fragments")
            found.append((place + 8, length))
            place += 8 + length
    finally:
        file.seek(start)


def frame_bytes(header: Header, parts: list[tuple[int, int]], index: int, count: int) -> bytes:
    """The compressed bytes of one of ``count`` frames; raises `Damaged`, or what pydicom raises."""
    if count > 1 and len(parts) > count:  # the offset tables say which fragments belong together
        offsets = header.data.get("ExtendedOffsetTable"), header.data.get("ExtendedOffsetTableLengths")
        extended = (offsets[0], offsets[1]) if all(isinstance(each, bytes) for each in offsets) else None
        return get_frame(header.file, index, number_of_frames=count, extended_offsets=extended)
    if len(parts) < count:
        raise Damaged(f"truncated: {len(parts)} of its {count} frames are there")
    start = header.file.tell()
    data = b""
    for place, length in parts if count == 1 else parts[index : index + 1]:
        header.file.seek(place)
        data += header.file.read(length)
    header.file.seek(start)
    return data
