"""An answer with its sources, whole and in events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.citation_filter import CitationFilter
from serving.completion_answers import REASONS

if TYPE_CHECKING:
    from moe.generation.engine import Event
    from moe.generation.engine.submitted import Usage

NO_SOURCES = "no_sources"
"""Why an answer is empty for which no passage was found: nothing is generated then."""


class CitedAnswer:
    """Takes the events of a text, and tells what of it is final.

    Args:
        about: what the answer begins with: its id, the model and the like.
        sources: the passages of the prompt, in the order of their numbers.
    """

    def __init__(self, about: dict[str, Any], sources: list[dict[str, Any]]) -> None:
        self.opening = {**about, "sources": sources}
        self._citations = CitationFilter(len(sources))
        self._finish = NO_SOURCES
        self._usage: Usage | None = None

    def take(self, event: Event) -> str:
        """What is final of the text with this event."""
        text = self._citations.feed(event.text)
        if event.finish is None:
            return text
        self._finish = REASONS[event.finish]
        self._usage = event.usage
        return text + self._citations.end()

    def closing(self) -> dict[str, Any]:
        """What is known at the end."""
        prompt = completion = cached = 0
        if self._usage is not None:
            prompt, completion = self._usage.prompt_tokens, self._usage.completion_tokens
            cached = self._usage.cached_tokens
        return {
            "citations": self._citations.cited,
            "finish_reason": self._finish,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }

    def whole(self, text: str) -> dict[str, Any]:
        """The answer of which `text` is all that was final."""
        return {**self.opening, "answer": text, **self.closing()}
