"""Documents as they come in: cut into lines, and checked one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.encoders.precomputed import PrecomputedEncoder
from serving.indexes.incoming_documents import (
    Checked,
    DocumentError,
    DocumentRules,
    LineSplitter,
    check_lines,
    checked_document,
)

RULES = DocumentRules({"year": "int", "lang": "keyword"}, None, True, 1000)
VECTORS = DocumentRules({}, PrecomputedEncoder(["a", "b", "c"]).vocabulary, False, 1000)


@given(
    text=st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"x" * 9]), max_size=40).map(b"".join),
    cuts=st.lists(st.integers(0, 120), max_size=10),
)
def test_lines_are_those_of_the_whole_however_it_is_cut(text: bytes, cuts: list[int]) -> None:
    splitter = LineSplitter(max_bytes=8)
    lines = []
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        lines += splitter.split(text[start:end])
    lines += splitter.finish()
    expected = text.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [number for number, _ in lines] == list(range(1, len(expected) + 1))
    for (_, line), whole in zip(lines, expected, strict=True):
        assert line == (whole if len(whole) <= 9 else None)


@pytest.mark.parametrize(
    ("document", "code", "param"),
    [
        ([], "invalid_value", None),
        ({}, "missing_parameter", "id"),
        ({"id": 7}, "invalid_value", "id"),
        ({"id": ""}, "invalid_value", "id"),
        ({"id": "x" * 513}, "invalid_value", "id"),
        ({"id": ".."}, "invalid_value", "id"),
        ({"id": "a/./b"}, "invalid_value", "id"),
        ({"id": "a", "text": 1}, "invalid_value", "text"),
        ({"id": "a", "year": "2020"}, "invalid_value", "year"),
        ({"id": "a", "year": 2**63}, "invalid_value", "year"),
        ({"id": "a", "lang": 1}, "invalid_value", "lang"),
        ({"id": "a", "yaer": 1}, "unknown_parameter", "yaer"),
        ({"id": "a", "_id": "b"}, "unknown_parameter", "_id"),
        ({"id": "a", "vector": {"a": 1.0}}, "invalid_value", "vector"),
    ],
)
def test_what_is_wrong_with_a_document_is_said(document: Any, code: str, param: str | None) -> None:
    with pytest.raises(DocumentError) as raised:
        checked_document(document, RULES)
    assert (raised.value.code, raised.value.param) == (code, param)


@pytest.mark.parametrize(
    ("vector", "param"),
    [
        (None, "vector"),
        (3, "vector"),
        ({"z": 1.0}, "vector.z"),
        ({"a": -1.0}, "vector.a"),
        ({"indices": [3], "values": [1.0]}, "vector.indices.0"),
        ({"indices": [1], "values": []}, "vector.values"),
    ],
)
def test_what_is_wrong_with_a_vector_is_said(vector: Any, param: str) -> None:
    with pytest.raises(DocumentError) as raised:
        checked_document({"id": "a", "vector": vector}, VECTORS)
    assert raised.value.param == param


def test_vectors_by_term_and_by_number_come_to_the_same() -> None:
    by_term = checked_document({"id": "a", "vector": {"c": 1.0, "a": 2.0}}, VECTORS)
    by_number = checked_document({"id": "a", "vector": {"indices": [2, 0], "values": [1, 2]}}, VECTORS)
    assert by_term == by_number == {"_id": "a", "vector": {"indices": [0, 2], "values": [2.0, 1.0]}}


def test_a_large_whole_number_in_a_float_field_is_a_float() -> None:
    rules = DocumentRules({"w": "float"}, None, True, 1000)
    assert checked_document({"id": "a", "w": 10**30}, rules) == {"_id": "a", "w": 1e30}
    assert checked_document({"id": "a", "w": None}, rules) == {"_id": "a", "w": None}


def test_errors_name_line_and_id_and_lose_no_other_document() -> None:
    lines = [
        orjson.dumps({"id": "a", "year": 1}),
        b"",
        b"{",
        b'{"id": "\xff"}',
        orjson.dumps({"id": "b", "year": "x"}),
        None,
        orjson.dumps({"id": "c", "text": "y" * 1000}),
        orjson.dumps({"id": "d", "title": None, "lang": "en"}),
    ]
    checked = Checked(max_errors=4)
    check_lines(enumerate(lines, 1), RULES, checked)
    assert checked.documents == [{"_id": "a", "year": 1}, {"_id": "d", "title": None, "lang": "en"}]
    assert [(error["line"], error["id"], error["code"]) for error in checked.errors] == [
        (3, None, "malformed_json"),
        (4, None, "malformed_json"),
        (5, "b", "invalid_value"),
        (6, None, "document_too_large"),
    ]
    assert checked.num_errors == 5
