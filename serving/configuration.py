"""What a server is told to serve, and the limits it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from runtime.cores import available_cores

HOST = "127.0.0.1"
"""The only address served on: there are no keys yet, so nothing outside this machine may reach the server."""

INDEX_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

IndexName = Annotated[str, StringConstraints(pattern=INDEX_NAME)]


class Limits(BaseModel):
    """How much one request may ask for; beyond it a request is refused, never cut short.

    Attributes:
        max_results: queries × k of one search.
        max_documents: queries × k of one search with text or explanations, which cost more than ranking.
        max_in_hand: requests with a body that are read, wait or are worked on at the same time.
        body_timeout_s: time for a client to send its body.
        timeout_s: time from the body's end to the answer, with waiting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    max_k: int = Field(default=1000, ge=1)
    max_queries: int = Field(default=256, ge=1)
    max_inputs: int = Field(default=256, ge=1)
    max_results: int = Field(default=100_000, ge=1)
    max_documents: int = Field(default=1000, ge=1)
    max_in_hand: int = Field(default=1024, ge=1)
    body_timeout_s: float = Field(default=10.0, gt=0)
    timeout_s: float = Field(default=30.0, gt=0)


class ServerConfiguration(BaseModel):
    """Everything that `serving.application.running` needs.

    Attributes:
        indexes: folder of each index, by the name it has in URLs.
        port: on 127.0.0.1; 0 takes a free one.
        threads: searches and encodings that run at the same time.
        limits: what one request may ask for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    indexes: dict[IndexName, Path] = Field(min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    threads: int = Field(default_factory=available_cores, ge=1)
    limits: Limits = Field(default_factory=Limits)
