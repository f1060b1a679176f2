"""What a text from a model asks for: the bodies of the requests, and what keeps them within the limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serving.configuration import Limits
from serving.errors import ApiError
from serving.one_or_more import one_or_more
from serving.parsed_body import parsed_body

MOST_STOPS = 16

StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(max_length=MOST_STOPS),
    BeforeValidator(one_or_more, json_schema_input_type=str | list[str]),
]
"""Before any of them a text ends."""


def prompts(value: Any) -> list[Any]:
    """One or more prompts, each a text or a list of ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt_type", "input should be a text, a list of ids, or a list of either")
    for prompt in value:
        of_ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        if not isinstance(prompt, str) and not of_ids:
            raise PydanticCustomError(
                "prompt_type", "input should be a text, a list of ids, or a list of either"
            )
    return value


class StreamOptions(BaseModel):
    """What a stream has beside its texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What both routes take. The last six fields are not OpenAI's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    stop: StopStrings | None = None
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = Field(default=None, ge=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    return_routing: bool = False


class CompletionRequest(GenerationRequest):
    """The body of a completion."""

    prompt: Annotated[
        list[Any],
        BeforeValidator(prompts, json_schema_input_type=str | list[int] | list[str | list[int]]),
    ]
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As templates of tokenizers take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text}


class ChatRequest(GenerationRequest):
    """The body of an answer in a conversation."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


def read_generation_request(kind: type[GenerationRequest], body: bytes, limits: Limits) -> Any:
    """Parse and check a body.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not what the route takes, within the limits.
    """
    parsed = parsed_body(kind, body)
    if parsed.stream_options is not None and not parsed.stream:
        raise ApiError(422, "invalid_value", "stream_options is for streams; set stream", "stream_options")
    texts = parsed.n * len(getattr(parsed, "prompt", (None,)))
    if texts > limits.max_choices:
        raise ApiError(
            422,
            "invalid_value",
            f"{texts} texts are asked for, but at most {limits.max_choices} are allowed",
            "n",
        )
    most = getattr(parsed, "max_completion_tokens", None) or getattr(parsed, "max_tokens", None)
    if most is not None and most > limits.max_new_tokens:
        raise ApiError(
            422,
            "invalid_value",
            f"max_tokens is {most}, but at most {limits.max_new_tokens} is allowed",
            "max_tokens",
        )
    return parsed
