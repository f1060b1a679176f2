"""A text where a list of texts may stand."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError


def one_or_more(texts: Any) -> list[Any]:
    """A single text as a list of one. Said by hand: a union would name its members in messages.

    Raises:
        PydanticCustomError: neither a text nor a list.
    """
    if not isinstance(texts, str | list):
        raise PydanticCustomError("text_type", "input should be a string or a list of strings")
    return [texts] if isinstance(texts, str) else texts
