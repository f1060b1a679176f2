"""Files of records that are on the disk once `append` has returned, and are read back whole or not at all.

    file     b"lexpert-log\\n", uint32 version
    frame    b"LXFR", uint32 bytes of the payload, uint64 number of its first record, uint32 CRC-32 of all that, payload
    payload  for each record: uint32 bytes, and those

All numbers are little-endian. What is appended at once is one frame, and a frame is begun only when the one before
is on the disk; so a write that was cut off can only be the last frame of the last file.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from retrieval.index.arrays import disk_errors, sync_folder
from runtime.errors import FormatError

VERSION = 1
HEADER = b"lexpert-log\n" + struct.pack("<I", VERSION)
MARK = b"LXFR"
FRAME = struct.Struct("<4sIQI")
LENGTH = struct.Struct("<I")

Numbered = tuple[int, bytes]


class RecordFile:
    """A new file to append to.

    Args:
        path: must not exist.

    Raises:
        LexpertError: no space is left.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = len(HEADER)
        with disk_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                write_all(self._file, HEADER)
                os.fsync(self._file)
                sync_folder(path.parent)
            except BaseException:
                os.close(self._file)
                path.unlink(missing_ok=True)
                raise

    def append(self, records: Sequence[bytes], first: int) -> None:
        """Write records, numbered from `first`, and return when they are on the disk.

        Raises:
            LexpertError, OSError: they are not, and are not in the file either.
        """
        payload = b"".join(part for record in records for part in (LENGTH.pack(len(record)), record))
        frame = framed(first, payload)
        try:
            with disk_errors(self.path):
                write_all(self._file, frame)
                os.fdatasync(self._file)
        except BaseException:
            os.ftruncate(self._file, self.bytes)
            os.lseek(self._file, 0, os.SEEK_END)
            raise
        self.bytes += len(frame)

    def close(self) -> None:
        os.close(self._file)


def write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def framed(first: int, payload: bytes) -> bytes:
    return FRAME.pack(MARK, len(payload), first, checksum(first, payload)) + payload


def checksum(first: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<IQ", len(payload), first)))


def read_records(path: Path, is_last: bool) -> Iterator[Numbered]:
    """Every record with its number; one frame is in memory at a time.

    Args:
        is_last: whether the file was being written when its writer ended. Then a last frame that is not whole was
            never said to be on the disk, and is passed over.

    Raises:
        FormatError: an unknown version, or a frame that is damaged.
    """
    with path.open("rb") as file:
        header = file.read(len(HEADER))
        if header != HEADER:
            if is_last and HEADER.startswith(header):
                return  # killed before anything was written to it
            raise FormatError(f"{path} is no log of version {VERSION}; restore it from a copy")
        while True:
            start = file.tell()
            head = file.read(FRAME.size)
            if not head:
                return
            payload, first = b"", 0
            if len(head) == FRAME.size:
                mark, length, first, expected = FRAME.unpack(head)
                payload = file.read(length) if mark == MARK else b""
                is_whole = mark == MARK and len(payload) == length and checksum(first, payload) == expected
            else:
                is_whole = False
            if not is_whole:
                file.seek(start + 1)
                if is_last and not has_whole_frame(file.read()):
                    return
                raise FormatError(f"{path} is damaged at byte {start:,}; restore it from a copy")
            yield from numbered(first, payload)


def has_whole_frame(data: bytes) -> bool:
    """Whether an undamaged frame lies anywhere in `data`: then what is before it was on the disk once."""
    start = data.find(MARK)
    while start >= 0:
        if start + FRAME.size <= len(data):
            _, length, first, expected = FRAME.unpack_from(data, start)
            payload = data[start + FRAME.size : start + FRAME.size + length]
            if len(payload) == length and checksum(first, payload) == expected:
                return True
        start = data.find(MARK, start + 1)
    return False


def numbered(first: int, payload: bytes) -> Iterator[Numbered]:
    place, number = 0, first
    while place < len(payload):
        (length,) = LENGTH.unpack_from(payload, place)
        place += LENGTH.size
        yield number, payload[place : place + length]
        place, number = place + length, number + 1
