"""What an answer from an index asks for: the body of the request, and what makes it one that is within the limits."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serving.completion_request import StopStrings
from serving.configuration import Limits
from serving.errors import ApiError
from serving.parsed_body import parsed_body
from serving.search_request import FuseRequest, SearchRequest, check_search_request

MOST_PASSAGES = 100

USUAL_NEW_TOKENS = 512
"""Of an answer, if the request does not say."""

USUAL_PROMPT_TOKENS = 4096


class AnswerRequest(BaseModel):
    """The body of a question.

    Attributes:
        index: where passages are searched; `k`, `filter`, `fuse` and `min_version` are those of a search.
        max_tokens: of the answer.
        max_prompt_tokens: of the prompt, with its passages.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    index: str
    query: str
    model: str
    k: int = Field(default=5, ge=1, le=MOST_PASSAGES)
    filter: dict[str, Any] | None = None
    fuse: FuseRequest | None = None
    min_version: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    stop: StopStrings | None = None
    stream: bool = False

    def search(self) -> SearchRequest:
        """The search for its passages."""
        return SearchRequest.model_validate(
            {
                "query": self.query,
                "k": self.k,
                "filter": self.filter,
                "fuse": self.fuse,
                "min_version": self.min_version,
                "with": ["text"],
            }
        )

    def room(self, context: int, limits: Limits) -> tuple[int, int]:
        """Most tokens of the prompt and of the answer, in a context for both.

        Raises:
            ApiError: 422, the answer leaves no room for a prompt.
        """
        new = self.max_tokens or min(USUAL_NEW_TOKENS, limits.max_new_tokens, max(1, context // 4))
        if new >= context:
            raise ApiError(
                422,
                "invalid_value",
                f"max_tokens is {new}, but the model has a context of {context} tokens for prompt and answer together",
                "max_tokens",
            )
        return min(self.max_prompt_tokens or USUAL_PROMPT_TOKENS, context - new), new


def read_answer_request(body: bytes, limits: Limits) -> AnswerRequest:
    """Parse and check a body.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not a question within the limits.
    """
    parsed = parsed_body(AnswerRequest, body)
    check_search_request(parsed.search(), limits)
    if parsed.max_tokens is not None and parsed.max_tokens > limits.max_new_tokens:
        raise ApiError(
            422,
            "invalid_value",
            f"max_tokens is {parsed.max_tokens}, but at most {limits.max_new_tokens} is allowed",
            "max_tokens",
        )
    return parsed
