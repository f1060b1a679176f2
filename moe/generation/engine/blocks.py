"""Blocks of a cache of keys and values: which are free, who holds the others, and what prompts may share."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

Key = bytes
"""Of a full block: the digest of its tokens and of all before it."""

NOTHING: Key = b""
"""What comes before the first block."""


def block_key(before: Key, tokens: Sequence[int]) -> Key:
    """The key of a full block of these tokens after the block with the key `before`."""
    return blake2b(np.asarray(tokens, np.int64).tobytes(), key=before, digest_size=16).digest()


class BlockPool:
    """Numbers of blocks, each free, held by one or more sequences, or held by none and kept for its contents.

    Kept blocks are given away when no free one is left, those that were held longest ago first.

    Attributes:
        num_blocks: of the cache.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = deque(range(num_blocks))
        self._holders = [0] * num_blocks
        self._keys: dict[int, Key] = {}
        self._by_key: dict[Key, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._kept)

    def take(self) -> int | None:
        """A block of its own for a sequence; None if all are held."""
        if self._free:
            block = self._free.popleft()
        elif self._kept:
            block, _ = self._kept.popitem(last=False)
            del self._by_key[self._keys.pop(block)]
        else:
            return None
        self._holders[block] = 1
        return block

    def find(self, key: Key) -> int | None:
        """The block with these contents; not yet held by who asks."""
        return self._by_key.get(key)

    def is_kept(self, block: int) -> bool:
        """Whether nobody holds it, so that to share it makes one less available."""
        return not self._holders[block]

    def share(self, block: int) -> None:
        """Hold a block that `find` gave."""
        if not self._holders[block]:
            del self._kept[block]
        self._holders[block] += 1

    def remember(self, block: int, key: Key) -> None:
        """Let others find a full block that is held. Of two with the same contents the first is found."""
        if key not in self._by_key and block not in self._keys:
            self._by_key[key] = block
            self._keys[block] = key

    def give_back(self, blocks: Sequence[int]) -> None:
        """Hold these no longer."""
        # The end of a text is of use to fewer than its start, and goes first.
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._keys:
                self._kept[block] = None
            else:
                self._free.append(block)
