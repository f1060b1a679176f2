"""Text from a model: decoded while it comes, ended by stop strings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from moe.generation.sampling import Sampling
from moe.generation.tokens import GREEDY, generate_tokens
from runtime.errors import UsageError

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of the first bytes of a character whose others are in the next token."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What came of a prompt.

    Attributes:
        text: without the prompt, and without what stopped it.
        tokens: ids, those of `text` and of what stopped it.
        finish: ``"end"`` by the model's own end token, ``"stop"`` by a stop string, ``"length"`` otherwise.
        prompt_tokens: number of ids of the prompt.
        first_token_seconds: from the start to the first token.
        seconds: from the start to the last token.
    """

    text: str
    tokens: list[int]
    finish: Literal["end", "stop", "length"]
    prompt_tokens: int
    first_token_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, which does not wait for the prompt; 0 where there are none."""
        since = self.seconds - self.first_token_seconds
        return (len(self.tokens) - 1) / since if len(self.tokens) > 1 and since > 0 else 0.0


def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_tokens: int = 128,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop: tuple[str, ...] = (),
    show: Callable[[str], None] | None = None,
) -> Generated:
    """Go on from `prompt`.

    Args:
        model: a decoder of transformers.
        tokenizer: its tokenizer, of transformers.
        max_tokens: at most so many are generated.
        stop: the text ends before the first of these that appears in it.
        show: called with each piece of text that is final; the pieces make up `Generated.text`.

    Raises:
        UsageError: the prompt has no tokens or fills the context, a stop string is empty, or the seed cannot be one.
    """
    if "" in stop:
        raise UsageError("a stop string is empty; leave it out to stop nowhere")
    ids = list(tokenizer(prompt)["input_ids"])
    ends = end_tokens(model)
    start = time.perf_counter()
    times, tokens = [start], []
    pieces = Pieces(tokenizer, ids, stop)
    for token in generate_tokens(
        model, ids, max_tokens=max_tokens, sampling=sampling, seed=seed, end_tokens=ends
    ):
        times.append(time.perf_counter())
        tokens.append(token)
        if token in ends:
            break
        for piece in pieces.after(token):
            if show is not None:
                show(piece)
        if pieces.stopped:
            break
    for piece in pieces.rest():
        if show is not None:
            show(piece)
    ended = bool(tokens) and tokens[-1] in ends
    return Generated(
        text=pieces.text,
        tokens=tokens,
        finish="stop" if pieces.stopped else "end" if ended else "length",
        prompt_tokens=len(ids),
        first_token_seconds=times[min(1, len(tokens))] - start,
        seconds=times[-1] - start,
    )


def end_tokens(model: Any) -> frozenset[int]:
    """Ids after which the model has no more to say."""
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


class Pieces:
    """Text that grows token by token, handed out when no later token can change it.

    Attributes:
        text: all that was handed out.
        stopped: whether a stop string came; it and what follows it are never handed out.

    Args:
        tokenizer: of transformers.
        prompt: ids before the first token.
        stop: strings, not empty.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        # The end of the prompt is decoded along: many tokenizers drop a space at the start of a text.
        self._tokens = prompt[-8:]
        self._known = self._decode()
        self._stop = stop
        self._pending = ""
        self.text = ""
        self.stopped = False

    def after(self, token: int) -> Iterator[str]:
        """What is final once `token` has come."""
        self._tokens.append(token)
        decoded = self._decode()
        if decoded.endswith(UNFINISHED):
            return
        self._pending += decoded[len(self._known) :]
        self._known = decoded
        if "\n" in decoded or len(self._tokens) > 64:
            # What is decoded stays short, so that a long text does not take ever longer.
            self._tokens = self._tokens[-8:]
            self._known = self._decode()
        found = [place for place in (self._pending.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self._pending, self.stopped = self._pending[: min(found)], True
            yield from self._hand_out(len(self._pending))
        else:
            yield from self._hand_out(len(self._pending) - self._could_stop())

    def rest(self) -> Iterator[str]:
        """What was held back, when no token follows."""
        if not self.stopped:
            self._pending += self._decode()[len(self._known) :]
        yield from self._hand_out(len(self._pending))

    def _hand_out(self, length: int) -> Iterator[str]:
        piece, self._pending = self._pending[:length], self._pending[length:]
        self.text += piece
        if piece:
            yield piece

    def _could_stop(self) -> int:
        """Length of the longest end of the pending text that a stop string begins with."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(self._pending) + 1))
                if self._pending.endswith(stop[:length])
            ),
            default=0,
        )

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(
            self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
