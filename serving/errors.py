"""Errors as HTTP answers: ``{"error": {"type", "message", "code", "param", "request_id"}}``."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from pydantic import ValidationError

from runtime.errors import ConflictError, InputError, LexpertError, UsageError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "invalid_request_error",
    502: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}

RETRY = ((b"retry-after", b"1"),)
"""Headers of an answer to what may be asked again in a second."""


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status, one of `TYPES`.
        code: what went wrong, for programs.
        message: what was wrong and what would be right, for people.
        param: the field at fault, as ``filter.all.0.field``; None where no field is.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = tuple(headers)

    def body(self, request_id: str | None) -> bytes:
        return error_body(self.status, self.code, self.message, self.param, request_id)


def error_body(
    status: int, code: str, message: str, param: str | None = None, request_id: str | None = None
) -> bytes:
    """The JSON body of an error answer."""
    return orjson.dumps(
        {
            "error": {
                "type": TYPES.get(status, "server_error"),
                "message": message,
                "code": code,
                "param": param,
                "request_id": request_id,
            }
        }
    )


def overloaded(retry_after_s: int = 1) -> ApiError:
    """For what comes when the server has as much to do as it takes."""
    return ApiError(
        429,
        "overloaded",
        "the server has as many requests waiting as it takes; try again later",
        headers=((b"retry-after", b"%d" % retry_after_s),),
    )


def internal_error() -> ApiError:
    """For faults of ours: says nothing of paths, types or traces; those are in the server's log."""
    return ApiError(
        500, "internal_error", "the server failed on this request; its log, by request_id, says why"
    )


def from_library(error: LexpertError, param: str | None = None) -> ApiError:
    """The answer to an error that the library raised while it worked on a request.

    Only messages about the caller's own values are passed on: others may name folders of this machine.
    """
    if isinstance(error, UsageError | InputError):
        return ApiError(422, "invalid_value", str(error), param)
    if isinstance(error, ConflictError):
        return ApiError(409, "conflict", "what is asked for is held by another process; try again", param)
    return internal_error()


def from_validation(error: ValidationError, prefix: tuple[str | int, ...] = ()) -> ApiError:
    """The answer to a body that is not JSON (400) or not what the route takes (422, naming the field)."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, "malformed_json", f"the body is not valid JSON: {reason}")
    location = (*prefix, *first["loc"])
    param = ".".join(str(part) for part in location) or None
    if first["type"] == "extra_forbidden":
        return ApiError(422, "unknown_parameter", f"there is no parameter {param}", param)
    if first["type"] == "missing":
        return ApiError(422, "missing_parameter", f"{param} is missing", param)
    if param is None:
        return ApiError(422, "invalid_value", "the body must be a JSON object")
    message = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(422, "invalid_value", f"{param}: {message}", param)
