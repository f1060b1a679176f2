"""The token bucket against its definition, and keys that have one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ApiError
from serving.keys import Key, KeyRing
from serving.rate_limit import TokenBucket

SECRET = "secret-0123456789abcdef"


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def ask_until_refused(ring: KeyRing, headers: list[tuple[bytes, bytes]]) -> None:
    while True:
        ring.admit(headers, "read")


def test_a_burst_then_the_rate() -> None:
    clock = Clock(1e6)
    bucket = TokenBucket(2.0, 3, clock)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.25
    assert bucket.take() == 0.25
    clock.now += 0.25
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    clock.now += 1000
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.floats(0.001, 1e6),
    st.integers(1, 50),
    st.lists(st.floats(0, 100), min_size=1, max_size=100),
    st.floats(0, 1e7),
)
def test_no_stretch_of_time_has_more_than_burst_and_rate_allow(
    rate: float, burst: int, pauses: list[float], start: float
) -> None:
    clock = Clock(start)
    bucket = TokenBucket(rate, burst, clock)
    taken: list[float] = []
    for pause in pauses:
        clock.now += pause
        if bucket.take() == 0:
            taken.append(clock.now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            allowed = burst + (taken[last] - taken[first]) * rate
            assert last - first + 1 <= allowed + 1e-4 + 1e-7 * rate


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(0.001, 1e6), st.integers(1, 20), st.floats(0, 1e7), st.integers(1, 20))
def test_who_waits_as_long_as_told_gets_in_and_not_much_earlier(
    rate: float, burst: int, start: float, rounds: int
) -> None:
    clock = Clock(start)
    key = Key.model_validate({"name": "a", "key": SECRET, "scope": "read", "rate": rate, "burst": burst})
    ring = KeyRing([key], clock)
    headers = [(b"x-api-key", SECRET.encode())]
    for _ in range(burst):
        ring.admit(headers, "read")
    for _ in range(rounds):
        with pytest.raises(ApiError) as caught:
            ask_until_refused(ring, headers)
        assert caught.value.status == 429
        ((name, value),) = caught.value.headers
        assert name == b"retry-after"
        assert int(value) >= 1
        assert int(value) - 1 <= 1 / rate
        clock.now += int(value)
        ring.admit(headers, "read")


def test_without_a_burst_a_second_of_requests_comes_at_once() -> None:
    for rate, burst in ((0.1, 1), (1, 1), (2.5, 3), (100, 100)):
        key = Key.model_validate({"name": "a", "key": SECRET, "scope": "read", "rate": rate})
        bucket = key.bucket(Clock())
        assert bucket is not None
        assert [bucket.take() for _ in range(burst)] == [0] * burst
        assert math.isclose(bucket.take(), 1 / rate)


def test_requests_that_the_scope_does_not_allow_count_too() -> None:
    key = Key.model_validate({"name": "a", "key": SECRET, "scope": "read", "rate": 1, "burst": 1})
    ring = KeyRing([key], Clock())
    headers = [(b"authorization", b"Bearer " + SECRET.encode())]
    for status in (403, 429):
        with pytest.raises(ApiError) as caught:
            ring.admit(headers, "admin")
        assert caught.value.status == status
    ring.admit(headers, "open")
