"""What a server is told to serve, and the limits it keeps."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from runtime.cores import available_cores
from serving.keys import Key, require_distinct

HOST = "127.0.0.1"
"""Where a server listens unless it is told otherwise: keys come in clear text from anywhere else."""

INDEX_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

IndexName = Annotated[str, StringConstraints(pattern=INDEX_NAME)]


def require_ipv4(host: str) -> str:
    """The address as it is; ValueError if it is none."""
    try:
        return str(IPv4Address(host))
    except ValueError:
        raise ValueError("it must be an IPv4 address, as 127.0.0.1 or 0.0.0.0") from None


class Limits(BaseModel):
    """How much one request may ask for; beyond it a request is refused, never cut short.

    Attributes:
        max_results: queries × k of one search.
        max_documents: queries × k of one search with text or explanations, which cost more than ranking.
        max_in_hand: requests with a body that are read, wait or are worked on at the same time.
        max_document_bytes: one document of a write, as JSON.
        max_writes: writes that are read or wait at the same time; they hold more than a search does.
        max_errors: documents of one write of which the answer says what is wrong with them.
        max_choices: texts that one request generates.
        max_new_tokens: of each of them.
        body_timeout_s: time for a client to send its body; of a stream, time without any of it.
        timeout_s: time from the body's end to the answer, with waiting.
        shard_timeout_s: time for a shard of an index to answer a search, if the search itself has so much left.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    max_k: int = Field(default=1000, ge=1)
    max_queries: int = Field(default=256, ge=1)
    max_inputs: int = Field(default=256, ge=1)
    max_results: int = Field(default=100_000, ge=1)
    max_documents: int = Field(default=1000, ge=1)
    max_in_hand: int = Field(default=1024, ge=1)
    max_document_bytes: int = Field(default=1 << 20, ge=1024)
    max_writes: int = Field(default=64, ge=1)
    max_errors: int = Field(default=1000, ge=1)
    max_choices: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=4096, ge=1)
    body_timeout_s: float = Field(default=10.0, gt=0)
    timeout_s: float = Field(default=30.0, gt=0)
    shard_timeout_s: float = Field(default=10.0, gt=0)


class CommitPolicy(BaseModel):
    """When an index that is written to makes a commit, unless somebody waits for one: then it is made at once.

    Attributes:
        documents: written or deleted since the last commit.
        bytes: of their log.
        seconds: since the first of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: int = Field(default=10_000, ge=1)
    bytes: int = Field(default=32 << 20, ge=1)
    seconds: float = Field(default=1.0, gt=0)


class ShardPlacement(BaseModel):
    """Processes for the shards of an index.

    Attributes:
        replicas: processes of each shard; each holds all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(default=1, ge=1, le=64)


class Traces(BaseModel):
    """Where traces of requests go, as OpenTelemetry has them.

    Attributes:
        endpoint: of a collector that takes OTLP over HTTP, as ``http://127.0.0.1:4318/v1/traces``.
        file: instead; a span is appended to it on a line of JSON.
        share: of the requests whose clients say nothing of traces that are traced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]")] | None = None
    file: Path | None = None
    share: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if (self.endpoint is None) == (self.file is None):
            raise ValueError("give either an endpoint or a file for traces")
        return self


class ServerConfiguration(BaseModel):
    """Everything that `serving.application.running` needs.

    Attributes:
        indexes: folder of each index, by the name it has in URLs.
        writable: those of `indexes` that may be written to.
        shards: those of `indexes` whose shards have processes of their own, and what these are; the shards of others
            are searched in each process that answers.
        data: folder of the indexes that are made over HTTP, with what belongs to them; None for no such indexes.
        aliases: further names of `indexes`, or of those in `data`.
        encoders: folder or hub name of each encoder that an index may be made with, by name.
        models: folder of each decoder that generates, by the name it has in requests.
        keys: one of which each request must have, but those for health; none for a server that asks for none.
        keys_file: where keys are read from when the server starts, instead; see `serving.key_file`.
        traces: where they go; None for none.
        commits: when indexes that are written to make commits.
        host: IPv4 address to listen on; another than 127.0.0.1 only where there are keys. Ray's own ports and all
            others stay on 127.0.0.1.
        port: of `host`; 0 takes a free one.
        proxy: what stands before the replicas: HAProxy, Ray's slower Python proxy, or (auto) whichever can run.
        replicas: processes that answer; each opens all indexes.
        max_ongoing_requests: in one of them, and in the processes that write and that hold models.
        max_queued_requests: that wait for one of them. Beyond both, Ray answers 429 itself; the API refuses work
            earlier (`Limits.max_in_hand`), so that a server with all the work that it can take still says how it is.
        threads: searches and encodings that run at the same time in one replica, searches in that of a shard.
        limits: what one request may ask for.
    """

    # Errors of pydantic show the input, which may be a key.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    indexes: dict[IndexName, Path] = {}
    writable: frozenset[IndexName] = frozenset()
    shards: dict[IndexName, ShardPlacement] = {}
    data: Path | None = None
    aliases: dict[IndexName, IndexName] = {}
    encoders: dict[IndexName, str] = {}
    models: dict[IndexName, Path] = {}
    keys: tuple[Key, ...] = Field(default=(), max_length=1024)
    keys_file: Path | None = None
    traces: Traces | None = None
    commits: CommitPolicy = Field(default_factory=CommitPolicy)
    host: Annotated[str, AfterValidator(require_ipv4)] = HOST
    port: int = Field(default=8000, ge=0, le=65535)
    proxy: Literal["auto", "haproxy", "python"] = "auto"
    replicas: int = Field(default=1, ge=1, le=256)
    max_ongoing_requests: int = Field(default=4096, ge=1)
    max_queued_requests: int = Field(default=1024, ge=1)
    threads: int = Field(default_factory=available_cores, ge=1)
    limits: Limits = Field(default_factory=Limits)

    @property
    def takes_writes(self) -> bool:
        """Whether any index can be made or written to."""
        return self.data is not None or bool(self.writable)

    @property
    def has_keys(self) -> bool:
        """Whether requests must have a key."""
        return bool(self.keys) or self.keys_file is not None

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if not self.indexes and self.data is None and not self.models:
            raise ValueError(
                "there is nothing to serve; give an index, a data folder for indexes to come, or a model"
            )
        require_distinct(self.keys)
        if self.keys and self.keys_file is not None:
            raise ValueError("give either keys or keys_file")
        if missing := self.writable - self.indexes.keys():
            raise ValueError(f"writable names {min(missing)!r}, which is not among the indexes")
        if unknown := self.shards.keys() - self.indexes.keys():
            raise ValueError(f"shards names {min(unknown)!r}, which is not among the indexes")
        if self.host != HOST and not self.has_keys:
            raise ValueError(
                f"host is {self.host}, where others can reach it; give keys_file too, or leave host out"
            )
        if both := self.aliases.keys() & self.indexes.keys():
            raise ValueError(f"aliases names {min(both)!r}, which is an index; take another name")
        if self.data is None and (lost := set(self.aliases.values()) - self.indexes.keys()):
            raise ValueError(f"aliases leads to {min(lost)!r}, which is not among the indexes")
        return self
