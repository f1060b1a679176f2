"""Filters: conditions on fields that exclude documents before ranking.

    {"all": [{"field": "year", "gte": 2020}, {"field": "lang", "in": ["en", "de"]}]}

A filter is a condition on one field, or ``all``, ``any`` (lists of filters) or ``not`` (one filter).
Conditions: ``eq``, ``in``, ``gt``, ``gte``, ``lt``, ``lte`` (several together must all hold) and ``exists``.
A document without a value fulfils no condition but ``{"exists": false}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.index.fields import FieldColumn
from retrieval.index.manifest import FieldKind
from runtime.errors import UsageError

Filter = Mapping[str, Any]

COMPARISONS = {"eq": np.equal, "gt": np.greater, "gte": np.greater_equal, "lt": np.less, "lte": np.less_equal}
ORDERINGS = ("gt", "gte", "lt", "lte")
OPERATORS = (*COMPARISONS, "in", "exists")


DEEPEST = 32


def check_filter(condition: Any, fields: Mapping[str, FieldKind], depth: int = 0) -> None:
    """Raise UsageError unless `condition` is a filter over `fields`; names the part that is wrong."""
    if depth > DEEPEST:
        raise UsageError(f"a filter may be nested {DEEPEST} deep, and this one is deeper")
    if not isinstance(condition, Mapping):
        raise UsageError(f"a filter must be an object, got {condition!r:.60}")
    if "field" in condition:
        _check_condition(condition, fields)
        return
    if len(condition) != 1 or next(iter(condition)) not in ("all", "any", "not"):
        raise UsageError(
            f'a filter has either "field" or one of "all", "any", "not"; got {dict(condition)!r:.80}'
        )
    ((connective, parts),) = condition.items()
    if connective == "not":
        check_filter(parts, fields, depth + 1)
        return
    if not isinstance(parts, (list, tuple)):
        raise UsageError(f'"{connective}" of a filter takes a list of filters, got {parts!r:.60}')
    for part in parts:
        check_filter(part, fields, depth + 1)


def _check_condition(condition: Filter, fields: Mapping[str, FieldKind]) -> None:
    name = condition["field"]
    if not isinstance(name, str) or name not in fields:
        raise UsageError(f"the index has no field {name!r}; it has {', '.join(fields) or 'none'}")
    operators = [key for key in condition if key != "field"]
    if not operators or any(operator not in OPERATORS for operator in operators):
        raise UsageError(
            f"field {name!r} of a filter takes {', '.join(OPERATORS)}; got {', '.join(operators) or 'none'}"
        )
    for operator in operators:
        operand = condition[operator]
        if operator == "exists":
            if not isinstance(operand, bool):
                raise UsageError(f'"exists" of field {name!r} must be true or false, got {operand!r:.60}')
        elif operator == "in":
            if not isinstance(operand, (list, tuple)):
                raise UsageError(f'"in" of field {name!r} takes a list, got {operand!r:.60}')
            for value in operand:
                _check_operand(name, fields[name], operator, value)
        else:
            _check_operand(name, fields[name], operator, operand)


def _check_operand(name: str, kind: FieldKind, operator: str, value: Any) -> None:
    if kind == "keyword":
        if operator in ORDERINGS:
            raise UsageError(
                f"field {name!r} holds keywords, which {operator!r} cannot compare; use eq or in"
            )
        if not isinstance(value, str):
            raise UsageError(f"field {name!r} holds keywords; compare it with a string, not {value!r:.60}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"field {name!r} holds numbers; compare it with a number, not {value!r:.60}")


def matching(condition: Filter, fields: Mapping[str, FieldColumn], num_documents: int) -> NDArray[np.bool_]:
    """Which documents of a segment fulfil a checked filter; bool ``[num_documents]``."""
    if "all" in condition:
        return _combine(np.logical_and, condition["all"], fields, num_documents, start=True)
    if "any" in condition:
        return _combine(np.logical_or, condition["any"], fields, num_documents, start=False)
    if "not" in condition:
        return ~matching(condition["not"], fields, num_documents)
    column = fields[condition["field"]]
    present = column.present.view(np.bool_)
    selected = np.ones(num_documents, np.bool_)
    for operator, operand in condition.items():
        if operator == "exists":
            selected &= present == operand
        elif operator != "field":
            selected &= present & _compare(column, operator, operand)
    return selected


def _combine(
    connective: np.ufunc, parts: Any, fields: Mapping[str, FieldColumn], num_documents: int, start: bool
) -> NDArray[np.bool_]:
    selected = np.full(num_documents, start)
    for part in parts:
        connective(selected, matching(part, fields, num_documents), out=selected)
    return selected


def _compare(column: FieldColumn, operator: str, operand: Any) -> NDArray[np.bool_]:
    if column.keywords is not None:
        places = column.keywords.find(list(operand) if operator == "in" else [operand])
        return np.isin(column.values, places[places >= 0])
    if operator == "in":
        selected = np.zeros(len(column.values), np.bool_)
        for value in operand:
            selected |= column.values == value
        return selected
    compared: NDArray[np.bool_] = COMPARISONS[operator](column.values, operand)
    return compared
