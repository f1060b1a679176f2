"""Tables of distinct strings that are looked up without being loaded: document ids, terms, keywords.

Strings are kept one after the other in UTF-8. Beside them lie their 64-bit hashes in ascending order and the
number of the string that each belongs to, so that a lookup is a binary search and one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayFile, ArrayFolderWriter, ArrayWriter, map_array

COLUMNS: dict[str, Any] = {"data": np.uint8, "offsets": np.int64, "hashes": np.uint64, "order": np.uint32}

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)


@numba.njit(nogil=True, cache=True)
def hash_strings(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """FNV-1a (64 bits) of every string, finished by Murmur3's mixer so that short strings spread."""
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for number in range(len(hashes)):
        value = FNV_OFFSET
        for position in range(offsets[number], offsets[number + 1]):
            value = (value ^ np.uint64(data[position])) * FNV_PRIME
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        hashes[number] = value ^ (value >> np.uint64(33))
    return hashes


@numba.njit(nogil=True, cache=True)
def find_strings(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    order: NDArray[np.uint32],
    wanted_data: NDArray[np.uint8],
    wanted_offsets: NDArray[np.int64],
    wanted_hashes: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """The number of each wanted string in the table, -1 where it has none."""
    found = np.full(len(wanted_hashes), -1, np.int64)
    for index in range(len(wanted_hashes)):
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) // 2
            if hashes[middle] < wanted_hashes[index]:
                low = middle + 1
            else:
                high = middle
        start, length = wanted_offsets[index], wanted_offsets[index + 1] - wanted_offsets[index]
        # Equal hashes are rare but possible: compare the strings themselves, one after the other.
        while low < len(hashes) and hashes[low] == wanted_hashes[index]:
            number = order[low]
            begin = offsets[number]
            same = offsets[number + 1] - begin == length
            position = 0
            while same and position < length:
                same = data[begin + position] == wanted_data[start + position]
                position += 1
            if same:
                found[index] = number
                break
            low += 1
    return found


@numba.njit(nogil=True, cache=True)
def find_sorted_strings(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    order: NDArray[np.uint32],
    wanted_data: NDArray[np.uint8],
    wanted_offsets: NDArray[np.int64],
    wanted_hashes: NDArray[np.uint64],
    wanted_order: NDArray[np.uint32],
) -> NDArray[np.int64]:
    """`find_strings` for strings whose hashes are in order: one walk through both tables, without jumps.

    `wanted_order` holds the number of the string of each of `wanted_hashes`; the result is by that number.
    """
    found = np.full(len(wanted_hashes), -1, np.int64)
    low = 0
    for index in range(len(wanted_hashes)):
        wanted = wanted_hashes[index]
        # Galloping: a table that is far longer than what is wanted is not read as a whole.
        step = 1
        while low + step < len(hashes) and hashes[low + step] < wanted:
            low += step
            step *= 2
        high = min(low + step, len(hashes))
        while low < high:
            middle = (low + high) // 2
            if hashes[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        place = low
        start = wanted_offsets[wanted_order[index]]
        length = wanted_offsets[wanted_order[index] + 1] - start
        while place < len(hashes) and hashes[place] == wanted:
            number = order[place]
            begin = offsets[number]
            same = offsets[number + 1] - begin == length
            position = 0
            while same and position < length:
                same = data[begin + position] == wanted_data[start + position]
                position += 1
            if same:
                found[wanted_order[index]] = number
                break
            place += 1
    return found


@numba.njit(nogil=True, cache=True)
def gather_strings(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of some strings one after the other, and where each ends."""
    ends = np.empty(len(numbers), np.int64)
    end = 0
    for place in range(len(numbers)):
        end += offsets[numbers[place] + 1] - offsets[numbers[place]]
        ends[place] = end
    gathered = np.empty(end, np.uint8)
    start = 0
    for place in range(len(numbers)):
        begin = offsets[numbers[place]]
        for byte in range(ends[place] - start):
            gathered[start + byte] = data[begin + byte]
        start = ends[place]
    return gathered, ends


def sort_hashes(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Hashes in ascending order, and the number of the string that each belongs to."""
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order.astype(np.uint32)


def pack_strings(strings: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Concatenate strings as UTF-8: ``data`` and ``offsets [len + 1]``."""
    encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


@dataclass(frozen=True, eq=False, slots=True)
class StringTable(Sequence[str]):
    """Distinct strings numbered from 0, with `find` in the other direction."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    order: NDArray[np.uint32]

    @classmethod
    def from_strings(cls, strings: Sequence[str]) -> StringTable:
        """Build the table; the strings must be distinct."""
        return cls.from_packed(*pack_strings(strings))

    @classmethod
    def from_packed(cls, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> StringTable:
        return cls(data, offsets, *sort_hashes(hash_strings(data, offsets)))

    @classmethod
    def open(cls, folder: Path, name: str, files: Mapping[str, ArrayFile]) -> StringTable:
        """Map the table that `write` left in `folder` under `name`."""
        columns = {
            column: map_array(folder / f"{name}.{column}", dtype, files[f"{name}.{column}"])
            for column, dtype in COLUMNS.items()
        }
        return cls(**columns)

    def write(self, folder: ArrayFolderWriter, name: str) -> None:
        for column, dtype in COLUMNS.items():
            folder.array(f"{name}.{column}", dtype).append(getattr(self, column))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(f"string {number} of a table of {len(self)}")
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        return self.data[start:end].tobytes().decode("utf-8", "surrogatepass")

    def take(self, numbers: NDArray[np.int64]) -> list[str]:
        """The strings of many numbers at once, several times faster than one by one."""
        data, ends = gather_strings(self.data, self.offsets, numbers)
        text = data.tobytes().decode("utf-8", "surrogatepass")
        if len(text) != len(data):  # some characters take several bytes, so byte offsets cannot cut the text
            return [self[number] for number in numbers.tolist()]
        start, strings = 0, []
        for end in ends.tolist():
            strings.append(text[start:end])
            start = end
        return strings

    def find(self, strings: Sequence[str]) -> NDArray[np.int64]:
        """The number of each string, -1 where the table does not hold it; int64 ``[len(strings)]``."""
        return self.find_packed(*pack_strings(strings))

    def find_packed(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """`find` for strings that are packed already."""
        columns = (self.data, self.offsets, self.hashes, self.order)
        found: NDArray[np.int64] = find_strings(*columns, data, offsets, hash_strings(data, offsets))
        return found

    def find_table(self, other: StringTable) -> NDArray[np.int64]:
        """`find` for all strings of another table, several times faster where both are long."""
        found: NDArray[np.int64] = find_sorted_strings(
            *(self.data, self.offsets, self.hashes, self.order),
            *(other.data, other.offsets, other.hashes, other.order),
        )
        return found


class StringTableWriter:
    """Appends runs of distinct strings to a table on disk; holds two 64-bit numbers a string."""

    def __init__(self, folder: ArrayFolderWriter, name: str) -> None:
        self._folder = folder
        self._name = name
        self._offsets = [np.zeros(1, np.int64)]
        self._bytes = 0
        self._hashes = [np.zeros(0, np.uint64)]
        self._array("data").append(np.zeros(0, np.uint8))

    def append(self, strings: Sequence[str]) -> None:
        data, offsets = pack_strings(strings)
        self._array("data").append(data)
        self._hashes.append(hash_strings(data, offsets))
        self._offsets.append(offsets[1:] + self._bytes)
        self._bytes += len(data)

    def close(self) -> None:
        """Write the lookup columns, once all strings are in."""
        hashes, order = sort_hashes(np.concatenate(self._hashes))
        self._array("offsets").append(np.concatenate(self._offsets))
        self._array("hashes").append(hashes)
        self._array("order").append(order)

    def _array(self, column: str) -> ArrayWriter:
        return self._folder.array(f"{self._name}.{column}", COLUMNS[column])
