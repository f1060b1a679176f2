"""Answers of generation in OpenAI's forms, whole and in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from serving.generation import Generator

if TYPE_CHECKING:
    from moe.generation.engine import Event, TokenLogprobs
    from moe.generation.engine.submitted import Usage

REASONS = {"end": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}


class Answers(ABC):
    """The answer to one request.

    Args:
        parsed: the request's body.
        identifier: of the answer.
        created: seconds since 1970.
    """

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, generator: Generator, parsed: Any, identifier: str, created: int) -> None:
        self._tokenizer = generator.tokenizer
        self._parsed = parsed
        self._about = {"id": f"{self.prefix}-{identifier}", "created": created, "model": generator.name}
        self._usages: dict[int, list[Usage]] = {}

    def whole(self, events: list[tuple[int, Event]]) -> dict[str, Any]:
        """Of all events, each with the number of its prompt."""
        choices: dict[int, list[Event]] = {}
        for prompt, event in events:
            self._note(prompt, event)
            choices.setdefault(self._index(prompt, event), []).append(event)
        made = [self._choice(index, choices[index]) for index in sorted(choices)]
        return {**self._about, "object": self.kind, "choices": made, "usage": self._usage()}

    def opening(self) -> Iterator[dict[str, Any]]:
        """Chunks before the first token."""
        return iter(())

    def chunk(self, prompt: int, event: Event) -> dict[str, Any] | None:
        """Of one event; None where it has nothing to tell."""
        self._note(prompt, event)
        wants_tokens = event.logprobs is not None or event.experts is not None
        if not event.text and event.finish is None and not wants_tokens:
            return None
        return self._chunk([self._choice_chunk(self._index(prompt, event), event)])

    def usage_chunk(self) -> dict[str, Any]:
        """The last one, if it is asked for."""
        return {**self._chunk([]), "usage": self._usage()}

    @abstractmethod
    def _choice(self, index: int, events: list[Event]) -> dict[str, Any]:
        """A whole text."""

    @abstractmethod
    def _choice_chunk(self, index: int, event: Event) -> dict[str, Any]:
        """A piece of a text."""

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._about, "object": self.chunk_kind, "choices": choices}
        options = self._parsed.stream_options
        return {**chunk, "usage": None} if options is not None and options.include_usage else chunk

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))

    def _index(self, prompt: int, event: Event) -> int:
        return int(prompt * self._parsed.n + event.choice)

    def _note(self, prompt: int, event: Event) -> None:
        if event.usage is not None:
            self._usages.setdefault(prompt, []).append(event.usage)

    def _usage(self) -> dict[str, Any]:
        """A prompt counts once, however many texts come of it."""
        prompt = sum(of[0].prompt_tokens for of in self._usages.values())
        cached = sum(min(usage.cached_tokens for usage in of) for of in self._usages.values())
        completion = sum(usage.completion_tokens for of in self._usages.values() for usage in of)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _routing(self, events: list[Event]) -> dict[str, Any]:
        """The extension: tokens, and the experts of each by layer."""
        if not self._parsed.return_routing:
            return {}
        seen = [event for event in events if event.token is not None]
        return {
            "routing": {
                "tokens": [self._text(event.token) for event in seen if event.token is not None],
                "experts": [event.experts for event in seen],
            }
        }


class TextAnswers(Answers):
    """Of ``/v1/completions``."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, generator: Generator, parsed: Any, identifier: str, created: int) -> None:
        super().__init__(generator, parsed, identifier, created)
        self._offsets: dict[int, int] = {}

    def _choice(self, index: int, events: list[Event]) -> dict[str, Any]:
        return {
            "index": index,
            "text": "".join(event.text for event in events),
            "logprobs": self._logprobs(index, events),
            "finish_reason": _reason(events[-1]),
            **self._routing(events),
        }

    def _choice_chunk(self, index: int, event: Event) -> dict[str, Any]:
        return self._choice(index, [event])

    def _logprobs(self, index: int, events: list[Event]) -> dict[str, Any] | None:
        pairs = [
            (event.token, event.logprobs)
            for event in events
            if event.token is not None and event.logprobs is not None
        ]
        if self._parsed.logprobs is None:
            return None
        name = self._text
        tokens = [name(token) for token, _ in pairs]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [logprobs.chosen for _, logprobs in pairs],
            "top_logprobs": [{name(token): value for token, value in each.top} for _, each in pairs],
            "text_offset": offsets,
        }


class ChatAnswers(Answers):
    """Of ``/v1/chat/completions``."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> Iterator[dict[str, Any]]:
        for index in range(self._parsed.n):
            delta = {"role": "assistant", "content": ""}
            yield self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _choice(self, index: int, events: list[Event]) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(event.text for event in events)},
            "logprobs": self._logprobs(events),
            "finish_reason": _reason(events[-1]),
            **self._routing(events),
        }

    def _choice_chunk(self, index: int, event: Event) -> dict[str, Any]:
        return {
            "index": index,
            "delta": {"content": event.text} if event.text else {},
            "logprobs": self._logprobs([event]),
            "finish_reason": _reason(event),
            **self._routing([event]),
        }

    def _logprobs(self, events: list[Event]) -> dict[str, Any] | None:
        if not self._parsed.logprobs:
            return None
        return {
            "content": [
                self._token(event.token, event.logprobs.chosen, event.logprobs)
                for event in events
                if event.token is not None and event.logprobs is not None
            ]
        }

    def _token(self, token: int, logprob: float, logprobs: TokenLogprobs | None) -> dict[str, Any]:
        text = self._text(token)
        made: dict[str, Any] = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
        if logprobs is not None:
            made["top_logprobs"] = [self._token(other, value, None) for other, value in logprobs.top]
        return made


def _reason(event: Event) -> str | None:
    return None if event.finish is None else REASONS[event.finish]
