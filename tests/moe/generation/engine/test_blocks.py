from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe.generation.engine.blocks import NOTHING, BlockPool, block_key

operations = st.lists(st.tuples(st.sampled_from(["take", "share", "remember", "give"]), st.integers(0, 7)))


@given(count=st.integers(1, 6), operations=operations)
def test_a_block_is_free_or_held_or_kept(count: int, operations: list[tuple[str, int]]) -> None:
    pool = BlockPool(count)
    held: list[int] = []  # a block as often as it is held
    contents: dict[int, bytes] = {}
    for operation, number in operations:
        key = bytes([number])
        if operation == "take":
            block = pool.take()
            assert (block is None) == (len(set(held)) == count)
            if block is not None:
                assert block not in held
                held.append(block)
                contents.pop(block, None)
        elif operation == "share":
            block = pool.find(key)
            if block is not None:
                assert contents[block] == key
                assert pool.is_kept(block) == (block not in held)
                pool.share(block)
                held.append(block)
        elif held and operation == "remember":
            block = held[number % len(held)]
            if pool.find(key) is None and block not in contents:
                contents[block] = key
            pool.remember(block, key)
        elif held:
            pool.give_back([held.pop(number % len(held))])
        assert pool.available == count - len(set(held))


def test_what_was_held_longest_ago_goes_first_and_the_end_of_a_text_before_its_start() -> None:
    pool = BlockPool(4)
    for first in (0, 2):
        blocks = [pool.take(), pool.take()]
        assert blocks == [first, first + 1]
        for block in (first, first + 1):
            pool.remember(block, bytes([block]))
    pool.give_back([0, 1])
    pool.give_back([2, 3])
    assert [pool.take() for _ in range(5)] == [1, 0, 3, 2, None]
    assert pool.find(bytes([0])) is None


def test_a_key_says_all_that_came_before() -> None:
    first = block_key(NOTHING, [1, 2])
    assert block_key(NOTHING, [1, 2]) == first
    assert len({first, block_key(NOTHING, [2, 1]), block_key(first, [1, 2]), block_key(first, [2, 1])}) == 4
