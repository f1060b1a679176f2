from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.deadline import Deadline
from serving.encoding import ToEncode
from serving.errors import ApiError
from serving.text_batcher import TextBatcher

Vectors = NDArray[np.float64]
BUDGET = 8


def alone(text: str, role: str) -> list[float]:
    """The vector of a text, whatever else is encoded."""
    if "bad" in text:
        raise ValueError(text)
    return [float(len(text)), float(sum(map(ord, text))), float(role == "query")]


class Recorder:
    """A batcher whose batches are written down; while `held` nothing but the first is encoded."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[tuple[list[str], str]] = []
        self.during: Callable[[Sequence[str]], object] = len
        self._begun, self._go_on = threading.Event(), threading.Event()
        self.batcher: TextBatcher[Vectors] = TextBatcher(self._encode, lengths, np.concatenate, BUDGET)
        if held:
            self.first = self.batcher.submit(["hold"], "query")
            assert self._begun.wait(30)
        else:
            self._go_on.set()

    def release(self) -> None:
        self._go_on.set()

    def _encode(self, texts: Sequence[str], role: str) -> Vectors:
        self._begun.set()
        assert self._go_on.wait(30)
        self.during(texts)
        self.batches.append((list(texts), role))
        return np.array([alone(text, role) for text in texts]).reshape(len(texts), 3)


def lengths(texts: Sequence[str]) -> list[int]:
    if any("uncountable" in text for text in texts):
        raise ValueError("no tokens")
    return [len(text.split()) for text in texts]


texts_of_a_request = st.lists(st.text("ab ", max_size=2 * BUDGET + 4) | st.just("bad"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(texts_of_a_request, st.sampled_from(["query", "document"])), max_size=8))
def test_vectors_are_those_of_encoding_alone(requests: list[tuple[list[str], str]]) -> None:
    recorder = Recorder(held=True)
    answers = [recorder.batcher.submit(texts, role) for texts, role in requests]
    recorder.release()
    for (texts, role), answer in zip(requests, answers, strict=True):
        if "bad" in texts:
            with pytest.raises(ValueError, match="bad"):
                answer.result(30)
            continue
        encoded = answer.result(30)
        assert encoded.rows.tolist() == [alone(text, role) for text in texts]
        assert encoded.tokens == sum(lengths(texts))
        assert 0 < encoded.began <= encoded.ended
    for batch, _ in recorder.batches:
        assert len(batch) == 1 or sum(lengths(batch)) <= BUDGET


def test_what_waits_is_one_batch_in_order_of_arrival() -> None:
    recorder = Recorder(held=True)
    answers = [recorder.batcher.submit([f"text {place}"], "query") for place in range(6)]
    recorder.release()
    for answer in answers:
        answer.result(30)
    assert [texts for texts, _ in recorder.batches] == [
        ["hold"],
        ["text 0", "text 1", "text 2", "text 3"],
        ["text 4", "text 5"],
    ]


def test_a_lone_text_is_encoded_at_once() -> None:
    recorder = Recorder()
    for _ in range(3):
        assert recorder.batcher.submit(["one"], "query").result(30).rows.tolist() == [alone("one", "query")]
    assert len(recorder.batches) == 3
    assert recorder.batcher.waiting == 0


def test_a_long_request_does_not_hold_up_a_short_one_behind_it() -> None:
    recorder = Recorder(held=True)
    answers = [
        recorder.batcher.submit(["a b c"] * 1000, "document"),
        recorder.batcher.submit(["short"], "document"),
    ]
    recorder.release()
    assert answers[0].result(30).rows.shape == (1000, 3)
    assert [texts for texts, _ in recorder.batches[1:3]] == [["a b c"] * 2, ["short", "a b c", "a b c"]]


def test_roles_are_encoded_apart_and_neither_waits_for_ever() -> None:
    recorder = Recorder(held=True)
    roles = ["query", "document", "query", "document"]
    answers = [recorder.batcher.submit([f"{place}"], role) for place, role in enumerate(roles)]
    recorder.release()
    for answer in answers:
        answer.result(30)
    assert recorder.batches[1:] == [(["0", "2"], "query"), (["1", "3"], "document")]


@pytest.mark.parametrize("fault", ["bad", "uncountable"])
def test_a_text_that_cannot_be_encoded_fails_its_request_alone(fault: str) -> None:
    recorder = Recorder(held=True)
    good, faulty, also_good = (
        recorder.batcher.submit([text], "query") for text in ("good", fault, "also good")
    )
    recorder.release()
    assert good.result(30).rows.tolist() == [alone("good", "query")]
    assert also_good.result(30).rows.tolist() == [alone("also good", "query")]
    with pytest.raises(ValueError, match=r"bad|no tokens"):
        faulty.result(30)


def test_a_cancelled_request_leaves_the_queue() -> None:
    recorder = Recorder(held=True)
    gone = recorder.batcher.submit(["gone"], "query")
    kept = recorder.batcher.submit(["kept"], "query")
    assert gone.cancel()
    assert recorder.batcher.waiting == 1
    recorder.release()
    kept.result(30)
    assert [texts for texts, _ in recorder.batches] == [["hold"], ["kept"]]


def test_a_request_that_is_given_up_while_it_is_encoded_is_not_gone_on_with() -> None:
    recorder = Recorder(held=True)
    long = recorder.batcher.submit(["a b c"] * 100, "query")
    recorder.during = lambda texts: texts[0] == "a b c" and long.cancel()
    recorder.release()
    recorder.first.result(30)
    recorder.batcher.submit(["last"], "query").result(30)
    assert sum(texts.count("a b c") for texts, _ in recorder.batches) == 2


def test_who_could_not_be_served_in_time_is_refused_with_the_time_to_wait() -> None:
    async def ask() -> None:
        recorder = Recorder(held=True)
        batcher = recorder.batcher
        asked: ToEncode[Vectors] = ToEncode(batcher, ["x" * 100], "query", lambda *_: b"")
        assert batcher.expected_s(asked.texts) == 0.0  # nothing waits, and nothing is known
        batcher._seconds_of_one = 0.01
        waiting = [batcher.submit(["x" * 500], "query") for _ in range(2)]
        assert batcher.expected_s(asked.texts) == pytest.approx((100 + 2 * 100) * 0.01, rel=0.1)
        with pytest.raises(ApiError) as refused:
            await asked.encoded(Deadline(0.5))
        assert (refused.value.status, refused.value.code) == (429, "overloaded")
        assert int(dict(refused.value.headers)[b"retry-after"]) in (1, 2, 3, 4)
        recorder.release()
        assert (await asked.encoded(Deadline(60))).rows.tolist() == [alone("x" * 100, "query")]
        for each in waiting:
            each.result(30)

    asyncio.run(ask())


def test_only_full_batches_say_how_long_others_wait() -> None:
    recorder = Recorder()
    recorder.batcher.submit(["a"], "query").result(30)
    assert recorder.batcher._seconds_of_one == 0.0
    recorder.batcher.submit(["a"] * BUDGET, "query").result(30)
    assert recorder.batcher._seconds_of_one > 0.0


def test_time_over_takes_texts_out_of_the_queue() -> None:
    async def ask() -> None:
        recorder = Recorder(held=True)
        asked: ToEncode[Vectors] = ToEncode(recorder.batcher, ["late"], "query", lambda *_: b"")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asked.encoded(Deadline(60))
        assert recorder.batcher.waiting == 0
        recorder.release()
        await asyncio.wrap_future(recorder.first)
        assert [texts for texts, _ in recorder.batches] == [["hold"]]

    asyncio.run(ask())


def test_sizes_of_batches_are_counted() -> None:
    recorder = Recorder(held=True)
    answers = [recorder.batcher.submit(["two words"], "query") for _ in range(3)]
    recorder.release()
    for answer in answers:
        answer.result(30)
    assert (sum(recorder.batcher.batch_texts.counts), recorder.batcher.batch_texts.sum) == (2, 4)
    assert recorder.batcher.batch_tokens.sum == 7
