"""String tables against a Python list and dictionary."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.index.arrays import ArrayFolderWriter
from retrieval.index.string_table import StringTable, StringTableWriter, find_strings, pack_strings

STRINGS = st.text(max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(STRINGS, unique=True, max_size=30),
    st.lists(STRINGS, max_size=8),
    st.randoms(use_true_random=False),
)
def test_lookups_in_both_directions(strings: list[str], others: list[str], random: Random) -> None:
    table = StringTable.from_strings(strings)
    assert list(table) == strings
    numbers = {string: number for number, string in enumerate(strings)}
    wanted = [*others, *strings]
    assert table.find(wanted).tolist() == [numbers.get(string, -1) for string in wanted]
    chosen = random.choices(range(len(strings)), k=9) if strings else []
    assert table.take(np.array(chosen, np.int64)) == [strings[number] for number in chosen]


@given(st.sets(st.integers(0, 400)), st.sets(st.integers(0, 400), max_size=20))
def test_a_table_is_looked_up_in_another_as_its_strings_are(here: set[int], wanted: set[int]) -> None:
    for one, other in ((here, wanted), (wanted, here)):
        table = StringTable.from_strings(list(map(str, one)))
        strings = list(map(str, other))
        assert table.find_table(StringTable.from_strings(strings)).tolist() == table.find(strings).tolist()


def test_equal_hashes_are_told_apart() -> None:
    """A table in which every string has the same hash, as if they all collided."""
    same, order = np.zeros(3, np.uint64), np.array([2, 0, 1], np.uint32)
    table = StringTable(*pack_strings(["one", "two", "three"]), same, order)
    wanted = StringTable(
        *pack_strings(["two", "four", "one", "thre"]), np.zeros(4, np.uint64), np.arange(4, dtype=np.uint32)
    )
    columns = (table.data, table.offsets, table.hashes, table.order)
    found = find_strings(*columns, wanted.data, wanted.offsets, wanted.hashes)
    assert found.tolist() == table.find_table(wanted).tolist() == [1, -1, 0, -1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(STRINGS, max_size=5), max_size=4))
def test_a_table_written_in_runs_is_the_table_of_all(runs: list[list[str]]) -> None:
    seen: set[str] = set()
    runs = [[s for s in dict.fromkeys(run) if not (s in seen or seen.add(s))] for run in runs]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "table"
        with ArrayFolderWriter(folder) as arrays:
            writer = StringTableWriter(arrays, "ids")
            for run in runs:
                writer.append(run)
            writer.close()
            files = arrays.close()
        table = StringTable.open(folder, "ids", files)
        assert list(table) == [string for run in runs for string in run]
        assert table.find(list(table)).tolist() == list(range(len(table)))
