"""Bodies as text-embeddings-inference takes them, with `model` beside, which its servers have no need of."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serving.configuration import Limits
from serving.errors import ApiError
from serving.one_or_more import one_or_more
from serving.parsed_body import parsed_body


class TeiRequest(BaseModel):
    """What its routes have in common.

    Attributes:
        truncate: false refuses texts that are longer than what the encoder reads; otherwise they are cut.
        truncation_direction: where they are cut; encoders here know one side only.
        model: of an index, whose encoder is taken; needed where there are several encoders.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] = "Right"
    model: str | None = None


class EmbedSparseRequest(TeiRequest):
    """The body of ``/embed_sparse``; `prompt_name` is the role of the texts."""

    inputs: Annotated[list[str], BeforeValidator(one_or_more, json_schema_input_type=str | list[str])]
    prompt_name: Literal["document", "query"] | None = None


class RerankRequest(TeiRequest):
    """The body of ``/rerank``."""

    query: str
    texts: list[str] = Field(min_length=1)
    raw_scores: bool = False
    return_text: bool = False


Read = TypeVar("Read", bound=TeiRequest)


def read_tei_request(kind: type[Read], texts: str, body: bytes, limits: Limits) -> Read:
    """Parse and check a body, whose field `texts` has the texts.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not what the route takes, within the limits.
    """
    parsed = parsed_body(kind, body)
    count = len(getattr(parsed, texts))
    if not 1 <= count <= limits.max_inputs:
        raise ApiError(
            422, "invalid_value", f"{texts} has {count} texts, but must have 1 to {limits.max_inputs}", texts
        )
    return parsed
