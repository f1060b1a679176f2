"""Torch tensors on any device, in torch's own operations; gradients flow through weights and values."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from runtime.kernels.bounds import check_bounds, check_offsets
from runtime.kernels.expert_activations import torch_activation


def dispatch(
    indptr: Tensor, units: Tensor, num_units: int, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counts = count_units(indptr, units, num_units)
    permutation = torch.argsort(units, stable=True)
    dropped = permutation[:0]
    if capacity is not None:
        starts = offsets_of(counts)[:-1]
        rank = torch.arange(len(units), device=units.device) - starts.repeat_interleave(counts)
        dropped = permutation[rank >= capacity].sort().values
        permutation = permutation[rank < capacity]
        counts = counts.clamp(max=capacity)
    return offsets_of(counts), rows_of_nonzeros(indptr, units)[permutation], permutation, dropped


def transpose(
    indptr: Tensor, units: Tensor, weights: Tensor, num_units: int
) -> tuple[Tensor, Tensor, Tensor]:
    offsets, rows, permutation, _ = dispatch(indptr, units, num_units)
    return offsets, rows, weights[permutation]


def invert_permutation(permutation: Tensor, nnz: int) -> Tensor:
    check_bounds("places", permutation, nnz)
    inverse = permutation.new_full((nnz,), -1)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    return inverse


def count_units(indptr: Tensor, units: Tensor, num_units: int) -> Tensor:
    check_offsets(indptr)
    check_bounds("units", units, num_units)
    return torch.bincount(units, minlength=num_units)


def is_coalesced(indptr: Tensor, units: Tensor) -> bool:
    check_offsets(indptr)
    ascends = units[1:] > units[:-1]
    ascends[indptr[(indptr > 0) & (indptr < len(units))] - 1] = True
    return bool(ascends.all())


def coalesce(indptr: Tensor, units: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_offsets(indptr)
    rows = rows_of_nonzeros(indptr, units)
    order = torch.argsort(units, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    rows, units, weights = rows[order], units[order], weights[order].to(sum_dtype(weights))
    first = torch.ones(len(units), dtype=torch.bool, device=units.device)
    first[1:] = (rows[1:] != rows[:-1]) | (units[1:] != units[:-1])
    group = first.cumsum(0) - 1
    sums = weights[first]
    # Added one round of repetitions after the other: in no round do two meet in one sum, so that the order of
    # addition is the same on a GPU as on a CPU.
    repetition = torch.arange(len(units), device=units.device) - first.nonzero().reshape(-1)[group]
    left = repetition.nonzero().reshape(-1)
    for round_number in range(1, int(repetition.max()) + 1 if len(repetition) else 0):
        now = left[repetition[left] == round_number]
        sums = sums.index_add(0, group[now], weights[now])
    lengths = torch.bincount(rows[first], minlength=len(indptr) - 1)
    return offsets_of(lengths), units[first], sums


def to_dense(indptr: Tensor, units: Tensor, weights: Tensor, num_units: int) -> Tensor:
    count_units(indptr, units, num_units)
    dense = weights.new_zeros((len(indptr) - 1, num_units), dtype=sum_dtype(weights))
    places = rows_of_nonzeros(indptr, units).long(), units.long()
    return dense.index_put(places, weights.to(dense.dtype), accumulate=True)


def from_mask(dense: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return offsets_of(mask.sum(1)), mask.nonzero()[:, 1].int(), dense[mask]


def take_rows(indptr: Tensor, units: Tensor, weights: Tensor, rows: Any) -> tuple[Tensor, Tensor, Tensor]:
    check_offsets(indptr)
    rows = torch.as_tensor(rows, device=indptr.device)
    num_rows = len(indptr) - 1
    if (
        rows.dtype != torch.bool
        and len(rows)
        and not -num_rows <= int(rows.min()) <= int(rows.max()) < num_rows
    ):
        # said here, because a GPU would end the process instead
        raise IndexError(f"rows from {int(rows.min())} to {int(rows.max())} of a batch of {num_rows}")
    lengths = indptr.diff()[rows]
    taken = offsets_of(lengths)
    shift = indptr[:-1][rows] - taken[:-1]
    places = shift.repeat_interleave(lengths)
    places = places + torch.arange(len(places), device=indptr.device)
    return taken, units[places], weights[places]


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k == 0:
        return scores[:, :0].int(), scores[:, :0]
    # torch.topk breaks ties as it likes, so it only says what the k-th score is. It does not take booleans.
    ordered = scores.byte() if scores.dtype == torch.bool else scores.detach()
    kth = torch.topk(ordered, k, dim=1).values[:, -1:]
    above, tied = ordered > kth, ordered == kth
    room = k - above.sum(1, keepdim=True)
    kept = above | (tied & (tied.cumsum(1) <= room))
    units = kept.nonzero()[:, 1].reshape(len(scores), k)
    return units.int(), scores.gather(1, units)


def top_p(scores: Tensor, p: float) -> Tensor:
    descending, order = torch.sort(scores.detach(), dim=1, descending=True, stable=True)
    mass = torch.nn.functional.pad(descending.double().cumsum(1), (1, 0))
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter(1, order, mass[:, :-1] < p * mass[:, -1:])


def combine(values: Tensor, rows: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    check_bounds("rows", rows, num_rows)
    combined = values.new_zeros((num_rows, values.shape[1]))
    return combined.index_add(0, rows, weights[:, None] * values)


def grouped_matmul(values: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
    check_offsets(offsets)
    bounds = pairwise(offsets.tolist())
    pieces = [
        values[start:end] @ matrix
        for (start, end), matrix in zip(bounds, matrices, strict=True)
        if end > start
    ]
    return torch.cat(pieces) if pieces else _nothing_of((0, matrices.shape[2]), values, matrices)


def expert_mlp(
    values: Tensor,
    offsets: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    activation: str,
    gated: bool,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    check_offsets(offsets)
    activate = torch_activation(activation)
    groups = values.split(offsets.diff().tolist())
    # Unbound once and not indexed group by group, whose backward would fill a gradient of all experts each time.
    up_biases = [None] * len(up) if up_bias is None else up_bias.unbind()
    down_biases = [None] * len(up) if down_bias is None else down_bias.unbind()
    weights = zip(up.unbind(), up_biases, down.unbind(), down_biases, strict=True)
    pieces = []
    for group, (into, into_bias, out_of, out_bias) in zip(groups, weights, strict=True):
        if len(group):
            hidden = linear(group, into, into_bias)
            if gated:
                gate, passed = hidden.chunk(2, dim=1)
                hidden = activate(gate) * passed
            else:
                hidden = activate(hidden)
            pieces.append(linear(hidden, out_of, out_bias))
    return torch.cat(pieces) if pieces else _nothing_of(values.shape, values, up, down, up_bias, down_bias)


def _nothing_of(shape: tuple[int, ...], values: Tensor, *given: Tensor | None) -> Tensor:
    """An empty result through which gradients still reach all that it would be computed of; they are zeros."""
    nothings = [tensor[:0].sum() for tensor in (values, *given) if tensor is not None]
    return values.new_zeros(shape) + torch.stack(nothings).sum()


def score(
    indptr: Tensor,
    units: Tensor,
    weights: Tensor,
    offsets: Tensor,
    rows: Tensor,
    impacts: Tensor,
    num_rows: int,
) -> Tensor:
    check_offsets(indptr)
    check_bounds("units", units, len(offsets) - 1)
    taken, documents, impacts = take_rows(offsets, rows, impacts, units)
    check_bounds("rows", documents, num_rows)
    lengths = taken.diff()
    queries = rows_of_nonzeros(indptr, units).long().repeat_interleave(lengths)
    scores = weights.new_zeros((len(indptr) - 1) * num_rows)
    shares = weights.repeat_interleave(lengths) * impacts
    return scores.index_add(0, queries * num_rows + documents, shares).reshape(len(indptr) - 1, num_rows)


def rows_of_nonzeros(indptr: Tensor, units: Tensor) -> Tensor:
    num_rows = len(indptr) - 1
    dtype = torch.int64 if num_rows > torch.iinfo(torch.int32).max else units.dtype
    return torch.arange(num_rows, dtype=dtype, device=units.device).repeat_interleave(indptr.diff())


def offsets_of(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def sum_dtype(weights: Tensor) -> torch.dtype:
    return weights.dtype if weights.is_floating_point() else torch.int64
