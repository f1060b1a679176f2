"""Attention of sequences of different lengths in one step, over keys and values in blocks.

Registered with transformers under `NAME`. A model then runs with all new tokens of a step as one row,
``input_ids`` ``[1, tokens]`` with their positions, and hands `StepTokens` on to here as the argument ``step_tokens``.
Every other part of a decoder looks at each token alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe.generation.engine.step_tokens import StepTokens
from runtime.errors import UsageError

NAME = "lexpert_blocks"

NOT_HONOURED = ("s_aux", "position_bias", "sinks", "alibi", "head_mask", "layer_head_mask")
"""Arguments of attention that change what it computes, and that are not computed here."""


def register() -> None:
    """Register with transformers; doing so again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend_in_blocks)


def attend_in_blocks(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    step_tokens: StepTokens | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Store the new keys and values, and attend each token to those of its own sequence up to itself.

    Args:
        query: ``[1, heads, rows, head width]``.
        key, value: ``[1, key heads, rows, head width]``; each serves ``heads / key heads`` neighbouring heads.
        scaling: of products of queries and keys; None takes 1 / √head width.
        sliding_window: only so many keys are seen, the token's own and those before it.
        softcap: scores s become softcap · tanh(s / softcap).

    Returns:
        ``[1, rows, heads, head width]``, and no weights.

    Raises:
        UsageError: the model asks for what is not computed here.
    """
    if step_tokens is None:
        raise UsageError(f"{type(module).__name__} does not hand on what its attention is called with")
    wanted = [name for name in NOT_HONOURED if others.get(name) is not None]
    if wanted or attention_mask is not None:
        raise UsageError(
            f"the attention of {type(module).__name__} uses {wanted[0] if wanted else 'a mask of its own'}"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    cache, layer = step_tokens.cache, module.layer_idx
    cache.store(layer, step_tokens.slots, keys, values)
    output = queries.new_empty((*queries.shape[:2], values.shape[-1]))
    single = len(step_tokens.lengths)
    if single:
        output[:single] = _attend_single(
            queries[:single], *cache.layers[layer], step_tokens, scaling, sliding_window, softcap
        )
    for chunk in step_tokens.chunks:
        if chunk.first:
            known, their_values = (kept.index_select(0, chunk.slots) for kept in cache.layers[layer])
        else:
            known, their_values = keys[chunk.rows], values[chunk.rows]
        output[chunk.rows] = attend_chunk(
            queries[chunk.rows], known, their_values, scaling, sliding_window, softcap
        )
    return output[None], None


def attend_chunk(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend the last tokens of a sequence, ``[rows, heads, width]``, to all, ``[tokens, key heads, width]``."""
    (rows, heads, _), (tokens, key_heads, _) = queries.shape, keys.shape
    mask = None
    if rows != tokens or (sliding_window is not None and sliding_window < tokens) or softcap is not None:
        places = torch.arange(tokens, device=keys.device)
        ends = places[tokens - rows :, None]
        mask = places <= ends
        if sliding_window is not None:
            mask &= places > ends - sliding_window
    if heads != key_heads:
        keys = keys.repeat_interleave(heads // key_heads, 1)
        values = values.repeat_interleave(heads // key_heads, 1)
    queries, keys, values = (each.transpose(0, 1) for each in (queries, keys, values))
    attended = _attend(queries[None], keys[None], values[None], mask, scaling, softcap)[0]
    return attended.transpose(0, 1)


def _attend_single(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_tokens: StepTokens,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    if queries.is_cpu and queries.dtype in (torch.float32, torch.bfloat16):
        from moe.generation.engine.single_rows import attend_single_rows

        attend = attend_single_rows
    else:
        attend = attend_padded
    return attend(
        queries,
        keys,
        values,
        step_tokens.tables,
        step_tokens.lengths,
        step_tokens.cache.block_tokens,
        scaling,
        sliding_window,
        softcap,
    )


def attend_padded(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Any,
    lengths: Any,
    block_tokens: int,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """What `attend_single_rows` returns, in operations of torch: on a GPU, and in dtypes that NumPy has not.

    All sequences are brought to the length of the longest.
    """
    table = torch.from_numpy(tables).to(queries.device).long()
    ends = torch.from_numpy(lengths).to(queries.device)[:, None]
    places = torch.arange(table.shape[1] * block_tokens, device=queries.device)
    slots = table[:, places // block_tokens] * block_tokens + places % block_tokens
    mask = places < ends
    if sliding_window is not None:
        mask &= places >= ends - sliding_window
    group = queries.shape[1] // keys.shape[1]
    known, their_values = (kept[slots].repeat_interleave(group, 2).transpose(1, 2) for kept in (keys, values))
    attended = _attend(queries[:, :, None], known, their_values, mask[:, None, None], scaling, softcap)
    return attended[:, :, 0]


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """``[…, heads, rows, width]`` over as many heads of keys; without a mask, each row sees all before it."""
    if softcap is None:
        attended: Tensor = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
        return attended
    assert mask is not None
    scores = torch.tanh(queries.float() @ keys.float().transpose(-1, -2) * (scaling / softcap)) * softcap
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(values.dtype) @ values
