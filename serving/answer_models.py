"""The bodies of answers, described.

They are built as bytes elsewhere, because that is faster; tests hold the two together.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel


class AnswerBody(BaseModel):
    """An answer; more keys than are described would be a fault."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(AnswerBody):
    """What went wrong."""

    type: str = Field(description="kind of error, of its status")
    message: str = Field(description="for people")
    code: str = Field(description="for programs")
    param: str | None = Field(description="the field at fault, as queries.1")
    request_id: str | None


class ErrorBody(AnswerBody):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


class Health(AnswerBody):
    """The process answers."""

    status: Literal["ok"]


class Readiness(AnswerBody):
    """Every index is open."""

    status: Literal["ready"]
    indexes: dict[str, int] | None = Field(
        default=None, description="version of each; left out where there are keys"
    )


class SoftwareVersion(AnswerBody):
    """What answers."""

    name: str
    version: str


class EncodedText(AnswerBody):
    """The sparse vector of a text, strongest units first."""

    index: int = Field(description="which text, from 0")
    indices: list[int]
    values: list[float]
    tokens: list[str] | None = Field(default=None, description="with return_tokens")


class EncodeUsage(AnswerBody):
    """What was read."""

    prompt_tokens: int


class Encoding(AnswerBody):
    """Vectors in the order of the texts."""

    data: list[EncodedText]
    model: str
    usage: EncodeUsage


class SparseValue(AnswerBody):
    """A unit that a text lights up."""

    index: int
    value: float


class SparseEmbeddings(RootModel[list[list[SparseValue]]]):
    """Vectors in the order of the texts, units ascending."""


class Rank(AnswerBody):
    """A text, by its place among those of the request."""

    index: int
    text: str | None = Field(default=None, description="with return_text")
    score: float


class Ranks(RootModel[list[Rank]]):
    """Best first."""


class TeiInfo(AnswerBody):
    """The server as text-embeddings-inference describes itself."""

    model_id: str | None
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_concurrent_requests: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str


class EncoderBody(AnswerBody):
    """What makes the vectors of an index."""

    name: str
    fingerprint: str


class IndexBody(AnswerBody):
    """An index."""

    name: str
    documents: int
    version: int
    encoder: EncoderBody
    fields: dict[str, str]
    shards: int = Field(description="1 for an index in one piece")
    writable: bool


class IndexList(AnswerBody):
    """All indexes."""

    indexes: list[IndexBody]


class IndexDeleted(AnswerBody):
    """An index is gone."""

    status: Literal["completed"]
    name: str


class Pending(AnswerBody):
    """Written and not in a commit."""

    documents: int
    bytes: int


class IndexStats(AnswerBody):
    """Sizes of an index."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    documents: int
    deleted: int
    segments: int
    postings: int
    bytes: int
    pending: Pending


class SnapshotBody(AnswerBody):
    """A copy of a commit."""

    index: str
    snapshot: str
    version: int
    documents: int
    bytes: int


class AliasesBody(AnswerBody):
    """All aliases, each with the index that it stands for."""

    aliases: dict[str, str]


class RefusedDocument(AnswerBody):
    """A document that could not be taken."""

    line: int
    id: str | None
    code: str
    message: str
    param: str | None


class UpsertBody(AnswerBody):
    """Documents are kept, and searched from `version` on if it is given."""

    status: Literal["completed", "acknowledged"]
    version: int | None = None
    upserted: int
    errors: list[RefusedDocument]
    errors_left_out: int | None = None


class DeletionBody(AnswerBody):
    """Documents are deleted, and not found from `version` on if it is given."""

    status: Literal["completed", "acknowledged"]
    version: int | None = None
    deleted: int | None = None


class DocumentBody(AnswerBody):
    """What the index keeps of a document."""

    id: str
    document: dict[str, Any]
    version: int


class Share(AnswerBody):
    """What a term adds to a score."""

    token: str
    query: float
    document: float
    share: float


class Source(AnswerBody):
    """Where one of the fused indexes has a document."""

    index: str
    rank: int
    score: float


class Hit(AnswerBody):
    """A document that was found."""

    id: str
    score: float
    document: dict[str, Any] | None = Field(default=None, description='with "text"')
    explanation: list[Share] | None = Field(default=None, description='with "explain", largest share first')
    sources: list[Source] | None = Field(default=None, description='with "explain", of a fused search')


class Result(AnswerBody):
    """The hits of a query, best first."""

    hits: list[Hit]
    unknown_terms: list[str]
    partial: bool = Field(description="whether shards are missing; only where the request allows it")


class MissingShard(AnswerBody):
    """A shard that had no part in an answer."""

    index: str
    shard: int
    reason: Literal["timeout", "unavailable"]


class SearchBody(AnswerBody):
    """A result for each query."""

    results: list[Result]
    version: int
    took_ms: float
    missing_shards: list[MissingShard] | None = Field(default=None, description="of a partial answer")


class ModelBody(AnswerBody):
    """A model that generates."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int


class ModelList(AnswerBody):
    """All models that generate."""

    object: Literal["list"]
    data: list[ModelBody]


class LayerRouting(AnswerBody):
    """What the router of a layer did."""

    layer: str
    tokens: int
    experts: int
    load: list[int]
    entropy: float
    evenness: float
    dead: int
    dropped: int


class RoutingBody(AnswerBody):
    """Load of experts in the last seconds."""

    model: str
    window_s: float
    layers: list[LayerRouting]


class CachedTokens(AnswerBody):
    """Tokens of prompts that were in the cache."""

    cached_tokens: int


class Usage(AnswerBody):
    """Tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TokenRouting(AnswerBody):
    """Experts of each token, by layer."""

    tokens: list[str]
    experts: list[Any]


class TextChoice(AnswerBody):
    """A text."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"] | None
    routing: TokenRouting | None = None


class CompletionBody(AnswerBody):
    """OpenAI's completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ChatAnswer(AnswerBody):
    """What the model says."""

    role: Literal["assistant"]
    content: str


class ChatChoice(AnswerBody):
    """A text."""

    index: int
    message: ChatAnswer
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"] | None
    routing: TokenRouting | None = None


class ChatCompletionBody(AnswerBody):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CitedSource(AnswerBody):
    """A passage that the model was given."""

    number: int = Field(description="by which the answer cites it")
    id: str
    score: float
    document: dict[str, Any]
    cut: bool = Field(description="whether the prompt had room for its beginning only")


class CitedAnswerBody(AnswerBody):
    """An answer with its sources."""

    id: str
    created: int
    model: str
    index: str
    version: int
    sources: list[CitedSource]
    answer: str
    citations: list[int] = Field(description="numbers of the sources that are cited, by first mention")
    finish_reason: Literal["stop", "length", "no_sources"]
    usage: Usage
