"""Keys: who may ask this server for what.

Only SHA-256 digests of keys are kept. A key is long and random, not a password that somebody chose, so a digest
needs neither salt nor slowness.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serving.errors import ApiError
from serving.rate_limit import TokenBucket

KeyScope = Literal["read", "write", "admin"]
RouteScope = Literal["open", "read", "write", "admin"]
"""What a route asks for: "open" is for everybody, also without a key."""

SCOPES: tuple[RouteScope, ...] = ("open", "read", "write", "admin")
"""Each allows what those before it do."""

CHALLENGE = b'Bearer realm="lexpert"'

Headers = Iterable[tuple[bytes, bytes]]


class Key(BaseModel):
    """One key, as the configuration gives it: by itself, or by the digest of its bytes; only the digest is kept.

    Attributes:
        name: what people call it, in errors and logs; no secret.
        sha256: 64 hexadecimal digits.
        scope: what it allows: admin allows what write does, and write what read does.
        rate: requests a second that it allows on average, in one process; None for no limit.
        burst: requests that it allows at once after a pause; the requests of one second if not given.
    """

    # Errors of pydantic show the input, which may be a key.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)] = Field(repr=False)
    scope: KeyScope
    rate: float | None = Field(default=None, ge=0.001, le=1e6)
    burst: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _digested(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if ("key" in given) == ("sha256" in given):
            raise ValueError("give either key or sha256")
        if "sha256" in given:
            return given
        rest = {name: value for name, value in given.items() if name != "key"}
        return {**rest, "sha256": digest_of(given["key"])}

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise ValueError("burst goes with rate")
        return self

    def bucket(self, clock: Callable[[], float]) -> TokenBucket | None:
        """What limits its rate, full."""
        if self.rate is None:
            return None
        return TokenBucket(self.rate, self.burst or max(1, math.ceil(self.rate)), clock)


def digest_of(key: Any) -> str:
    """The digest of a key as it is kept; ValueError, without the key, for what cannot be one."""
    is_usable = isinstance(key, str) and 16 <= len(key) <= 512 and all("!" <= each <= "~" for each in key)
    if not is_usable:
        raise ValueError("key must be a string of 16 to 512 printable ASCII characters without spaces")
    return hashlib.sha256(key.encode("ascii")).hexdigest()


def require_distinct(keys: Sequence[Key]) -> None:
    """Raise ValueError if two keys have one name, or are the same."""
    names: dict[str, str] = {}
    for key in keys:
        if key.name in names.values():
            raise ValueError(f"two keys are named {key.name!r}; give each a name of its own")
        if key.sha256 in names:
            raise ValueError(f"{names[key.sha256]!r} and {key.name!r} are the same key; give each its own")
        names[key.sha256] = key.name


class KeyRing:
    """Checks requests against keys, and counts those of keys with a limit. Belongs to one event loop.

    Args:
        keys: those that are known; none for a server that asks for none.
        clock: seconds that never go back.
    """

    def __init__(self, keys: Sequence[Key], clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = [(key, bytes.fromhex(key.sha256), key.bucket(clock)) for key in keys]

    def admit(self, headers: Headers, scope: RouteScope) -> None:
        """Let a request pass, and count it.

        Args:
            headers: of the request, names in lower case.
            scope: of the route that it is for.

        Raises:
            ApiError: 401 if it has no key, or a wrong one; 429 if its key has had too many requests; 403 if the scope
                of its key is too small.
        """
        if not self._keys or scope == "open":
            return
        key, bucket = self._find(presented_key(headers))
        wait_s = bucket.take() if bucket is not None else 0.0
        if wait_s:
            raise rate_limited(key, wait_s)
        if SCOPES.index(key.scope) < SCOPES.index(scope):
            raise ApiError(
                403,
                "insufficient_scope",
                f"this asks for a key of scope {scope}, but {key.name} is of scope {key.scope}",
                headers=[
                    (
                        b"www-authenticate",
                        CHALLENGE + f', error="insufficient_scope", scope="{scope}"'.encode(),
                    )
                ],
            )

    def _find(self, presented: bytes) -> tuple[Key, TokenBucket | None]:
        """The key; each is compared to the end, so that the time says nothing of how near or where it was."""
        digest = hashlib.sha256(presented).digest()
        found = None
        for key, known, bucket in self._keys:
            if hmac.compare_digest(digest, known):
                found = key, bucket
        if found is None:
            raise unauthorized("invalid_key", "the key is none of this server's", b', error="invalid_token"')
        return found


def presented_key(headers: Headers) -> bytes:
    """The key that a request comes with, as ``Authorization: Bearer …`` or ``X-API-Key``.

    Raises:
        ApiError: 401 if there is none, or there are different ones.
    """
    found = set()
    for name, value in headers:
        if name == b"x-api-key":
            found.add(value.strip())
        elif name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.add(credentials.strip())
    found.discard(b"")
    if not found:
        raise unauthorized(
            "missing_key",
            "this server asks for a key; send it as authorization: Bearer KEY, or x-api-key: KEY",
        )
    if len(found) > 1:
        raise unauthorized(
            "invalid_key", "the request came with different keys; send one", b', error="invalid_token"'
        )
    return found.pop()


def unauthorized(code: str, message: str, reason: bytes = b"") -> ApiError:
    return ApiError(401, code, message, headers=[(b"www-authenticate", CHALLENGE + reason)])


def rate_limited(key: Key, wait_s: float) -> ApiError:
    seconds = math.ceil(wait_s)
    return ApiError(
        429,
        "rate_limited",
        f"{key.name} allows {key.rate:g} requests a second; try again in {seconds} s",
        headers=[(b"retry-after", b"%d" % seconds)],
    )
