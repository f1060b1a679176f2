"""The merge policy: what it asks for is allowed, comes to an end, and leaves few segments at a bounded cost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.index.merge_policy import MergePolicy, SegmentSize, plan_merges
from runtime.errors import UsageError


@st.composite
def sizes(draw: st.DrawFn) -> SegmentSize:
    documents = draw(st.integers(1, 200))
    return SegmentSize(documents, draw(st.integers(0, documents)), draw(st.integers(0, 3000)))


POLICIES = st.builds(
    MergePolicy,
    segments_per_tier=st.integers(2, 5),
    max_deleted=st.sampled_from([0.1, 0.2, 1.0]),
    max_postings=st.integers(500, 4000),
    smallest=st.integers(1, 200),
)


def merged(sizes: list[SegmentSize], group: range) -> SegmentSize:
    documents = sum(sizes[place].documents - sizes[place].deleted for place in group)
    live = sum(sizes[place].live for place in group)
    return SegmentSize(documents, 0, round(live - documents))


@given(st.lists(sizes(), max_size=30), POLICIES)
def test_merges_are_of_neighbours_within_the_bounds_and_come_to_an_end(
    segments: list[SegmentSize], policy: MergePolicy
) -> None:
    for _ in range(2 * len(segments) + 1):
        planned = plan_merges(segments, policy)
        places = [place for group in planned for place in group]
        assert len(places) == len(set(places))
        costs = [sum(segments[place].live for place in group) for group in planned]
        assert costs == sorted(costs)
        for group, cost in zip(planned, costs, strict=True):
            assert group.step == 1
            assert 0 <= group.start < group.stop <= len(segments)
            if len(group) == 1:
                assert segments[group.start].deleted > policy.max_deleted * segments[group.start].documents
            else:
                assert cost <= policy.max_postings
        if not planned:
            break
        group = planned[0]
        segments[group.start : group.stop] = [merged(segments, group)]
    else:
        pytest.fail("the policy asks for merges without end")
    assert not any(policy.needs_rewrite(size) for size in segments)
    # What is left: fewer neighbours than a tier holds, between segments that are too large to be merged.
    small = [size.live <= policy.max_postings / 2 for size in segments]
    for tier in range(40):
        run = 0
        for size, mergeable in zip(segments, small, strict=True):
            run = run + 1 if mergeable and policy.tier(size) <= tier else 0
            assert run < policy.segments_per_tier


def test_a_long_build_ends_with_few_segments_and_rewrites_each_posting_a_few_times() -> None:
    policy = MergePolicy(segments_per_tier=8, max_postings=1 << 28, smallest=1 << 16)
    segments: list[SegmentSize] = []
    rewritten = 0.0
    for _ in range(1000):  # flushes of 10 million postings: 80 million documents of 120
        segments.append(SegmentSize(80_000, 0, 10_000_000))
        while planned := plan_merges(segments, policy):
            group = planned[0]
            rewritten += sum(segments[place].live for place in group)
            segments[group.start : group.stop] = [merged(segments, group)]
    total = sum(size.live for size in segments)
    assert len(segments) <= math.ceil(total / (policy.max_postings / 2)) + 2 * policy.segments_per_tier
    assert rewritten <= 3 * total


def test_a_segment_is_rewritten_when_many_of_its_documents_are_deleted() -> None:
    policy = MergePolicy(max_deleted=0.2)
    segments = [SegmentSize(100, 20, 1000), SegmentSize(100, 21, 1000), SegmentSize(100, 0, 1000)]
    assert plan_merges(segments, policy) == [range(1, 2)]


def test_values_that_cannot_work_are_refused() -> None:
    for arguments in (
        {"segments_per_tier": 1},
        {"max_deleted": 0.0},
        {"max_deleted": 1.1},
        {"smallest": 0},
        {"max_postings": 1},
    ):
        with pytest.raises(UsageError):
            MergePolicy(**arguments)  # type: ignore[arg-type]
