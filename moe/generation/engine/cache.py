"""Keys and values of all sequences, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """For each layer a tensor of keys and one of values, ``[slots, key heads, head width]``.

    A slot is one token of a block: slot ``b · block_tokens + i`` is place ``i`` of block ``b``. Layers are made when
    they first store something, for only then is known what the model's keys and values look like.

    Args:
        num_blocks: that there is room for.
        block_tokens: slots of a block.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def store(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values, ``[tokens, key heads, head width]``, in `slots`."""
        kept = self.layers.get(layer)
        if kept is None:
            # Zeros, because what is masked is multiplied by 0, and memory as it comes may hold NaN.
            kept = self.layers[layer] = (self._room(keys), self._room(values))
        kept[0].index_copy_(0, slots, keys)
        kept[1].index_copy_(0, slots, values)

    @property
    def bytes_per_token(self) -> int:
        """Of all layers that have stored something."""
        return sum(
            tensor[0].numel() * tensor.element_size() for pair in self.layers.values() for tensor in pair
        )

    def _room(self, like: Tensor) -> Tensor:
        return torch.zeros(
            (self.num_blocks * self.block_tokens, *like.shape[1:]), dtype=like.dtype, device=like.device
        )
