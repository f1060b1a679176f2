"""The body of a request as the model that a route takes."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from serving.errors import from_validation

Body = TypeVar("Body", bound=BaseModel)


def parsed_body(kind: type[Body], body: bytes) -> Body:
    """Parse and check JSON.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not a `kind`.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
