"""What a route says of itself, for people and for programs that make clients; `serving.openapi` writes it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

Content = type[BaseModel] | str
"""A JSON body of a model, or the media type of another."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the URL's query, or a header if `place` says so; none is required."""

    name: str
    about: str
    schema: Mapping[str, Any]
    place: str = "query"


@dataclass(frozen=True)
class Description:
    """Of one route.

    Attributes:
        summary: a few words.
        body: what the request brings as JSON; None for a route without a body.
        answers: contents of each status below 400; several for a choice.
        parameters: beside those of the path.
        errors: statuses beside those that `error_statuses` has for all routes of its kind.
        lines: media types of bodies of lines, each of which is JSON, that are taken too.
    """

    summary: str
    answers: Mapping[int, tuple[Content, ...]]
    body: type[BaseModel] | None = None
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[int, ...] = ()
    lines: tuple[str, ...] = field(default=())


def error_statuses(description: Description, path: str, needs_key: bool) -> list[int]:
    """All statuses with an error body that a route may answer with."""
    statuses = {400, 500, 503, *description.errors}
    if needs_key:
        statuses |= {401, 403, 429}
    if "{" in path:
        statuses.add(404)
    if description.body is not None:
        statuses |= {408, 413, 415, 422, 429}
    return sorted(statuses)
