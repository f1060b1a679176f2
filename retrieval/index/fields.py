"""Field columns: one value per document, for filters. Kinds: int (64 bits), float (64 bits), keyword."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayFile, ArrayFolderWriter, map_array
from retrieval.index.manifest import FieldKind
from retrieval.index.string_table import StringTable
from runtime.errors import InputError, UsageError

VALUE_TYPES: dict[FieldKind, Any] = {"int": np.int64, "float": np.float64, "keyword": np.uint32}
MAX_FLOAT = sys.float_info.max
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = frozenset({"_id", "title", "text"})


def check_fields(fields: Mapping[str, str]) -> dict[str, FieldKind]:
    """Return the declared fields, or raise UsageError for a bad name or kind."""
    for name, kind in fields.items():
        if not NAME.fullmatch(name) or name in RESERVED:
            raise UsageError(
                f"field name {name!r} cannot be used; take letters, digits and underscores, "
                f"and none of {', '.join(sorted(RESERVED))}"
            )
        if kind not in VALUE_TYPES:
            raise UsageError(f"field {name!r} has kind {kind!r}, but kinds are {', '.join(VALUE_TYPES)}")
    return dict(fields)  # type: ignore[arg-type]


def check_value(name: str, kind: FieldKind, value: Any, document_id: str) -> None:
    """Raise InputError unless `value` fits the field; None (or a missing key) always does."""
    fits = value is None or (
        isinstance(value, str)
        if kind == "keyword"
        else isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        if kind == "int"
        else isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT
    )
    if not fits:
        raise InputError(
            f"document {document_id!r}: field {name!r} must be of kind {kind}, got {value!r:.60}"
        )


@dataclass(frozen=True, eq=False, slots=True)
class FieldColumn:
    """One field of one segment.

    Attributes:
        kind: what `values` hold: numbers, or places in `keywords`.
        values: int64, float64 or uint32 ``[documents]``.
        present: uint8 ``[documents]``, 0 where the document has no value.
        keywords: the distinct keywords of the segment; None for numbers.
    """

    kind: FieldKind
    values: NDArray[Any]
    present: NDArray[np.uint8]
    keywords: StringTable | None

    @classmethod
    def open(cls, folder: Path, name: str, kind: FieldKind, files: Mapping[str, ArrayFile]) -> FieldColumn:
        values, present = f"field.{name}.values", f"field.{name}.present"
        return cls(
            kind,
            map_array(folder / values, VALUE_TYPES[kind], files[values]),
            map_array(folder / present, np.uint8, files[present]),
            StringTable.open(folder, f"field.{name}.keywords", files) if kind == "keyword" else None,
        )

    def value(self, row: int) -> Any:
        """The value of one document as int, float or str; None where it has none."""
        if not self.present[row]:
            return None
        return self.values[row].item() if self.keywords is None else self.keywords[int(self.values[row])]


class FieldColumnWriter:
    """Appends runs of values to one field of a segment; holds no more than the distinct keywords."""

    def __init__(self, folder: ArrayFolderWriter, name: str, kind: FieldKind) -> None:
        self._folder = folder
        self._name = name
        self._kind = kind
        self._places: dict[str, int] = {}
        self.append([])

    def append(self, values: Sequence[Any]) -> None:
        """Append one value (None where missing) a document."""
        if self._kind == "keyword":
            places = self._places
            numbers = [0 if value is None else places.setdefault(value, len(places)) for value in values]
        else:
            numbers = [0 if value is None else value for value in values]
        present = np.array([value is not None for value in values], np.uint8)
        dtype = VALUE_TYPES[self._kind]
        self._folder.array(f"field.{self._name}.values", dtype).append(np.array(numbers, dtype))
        self._folder.array(f"field.{self._name}.present", np.uint8).append(present)

    def close(self) -> None:
        """Write the keywords, once all values are in."""
        if self._kind == "keyword":
            StringTable.from_strings(list(self._places)).write(self._folder, f"field.{self._name}.keywords")
