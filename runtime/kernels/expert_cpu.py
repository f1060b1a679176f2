"""Experts on the processor: which way their products are computed, decided here and nowhere else.

==========================================  =============================================================
what is asked for                           what computes it
==========================================  =============================================================
under `torch.compile` or functional         `runtime.kernels.torch_backend`
transforms; dtypes other than float32 and
bfloat16; sizes that are no multiple of 8
a gradient                                  `runtime.kernels.expert_gradients`, forward as below
an expert with so many entries that, by     torch's own product, expert by expert
`runtime.kernels.library_products`, it is
faster: as a trial found, or where
gradients are enabled, as a rule says
everything else                             `runtime.kernels.expert_rows`, blocks of rows on torch's threads
==========================================  =============================================================

What was measured for this choice is in docs/expert-kernels.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.expert_weights import QuantisedWeights
from runtime.kernels import torch_backend
from runtime.kernels.bounds import check_offsets
from runtime.kernels.expert_activations import torch_activation
from runtime.kernels.expert_gradients import expert_mlp_with_gradients
from runtime.kernels.library_products import NEVER, TRIED, entries_by_rule, entries_for_library
from runtime.kernels.reference import Offsets

ENTRIES_AT_ONCE = 1024
"""Entries between whose products float32 is held: 16 MB at an inner width of 2,048."""

Fewest = Callable[[torch.dtype], int]
"""From how many entries of an expert on the library multiplies its weights of a dtype."""

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


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
    if torch.compiler.is_compiling() or not _suits(values, up, down):
        return torch_backend.expert_mlp(
            values,
            offsets,
            up,
            down,
            activation=activation,
            gated=gated,
            up_bias=up_bias,
            down_bias=down_bias,
        )
    if _wants_gradients(values, up, down, up_bias, down_bias):
        return expert_mlp_with_gradients(
            values,
            offsets,
            up,
            down,
            up_bias,
            down_bias,
            activate=torch_activation(activation),
            gated=gated,
            products=_products_by_rule,
        )
    into, out_of = _Matrices.of(up, up_bias), _Matrices.of(down, down_bias)
    fewest = _fewest_by_rule if torch.is_grad_enabled() else _fewest_by_trial
    return _run(values, offsets, into, out_of, fewest, activation=activation, gated=gated)


def quantised_expert_mlp(
    values: Tensor,
    offsets: Tensor,
    up: QuantisedWeights,
    down: QuantisedWeights,
    *,
    activation: str,
    gated: bool,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    """`expert_mlp` without gradients on weights of few bits: 8, which values meet in 16, or 4, which they meet in 8."""
    into, out_of = _Matrices.of_quantised(up, up_bias), _Matrices.of_quantised(down, down_bias)
    return _run(values.detach(), offsets, into, out_of, _fewest_by_rule, activation=activation, gated=gated)


def grouped_matmul(values: Tensor, offsets: Tensor, matrices: Tensor) -> Tensor:
    """As in `runtime.kernels.reference`, without a copy of matrices that are views of ``[groups, out, in]``."""
    rows = matrices.transpose(1, 2)
    gradients = torch.is_grad_enabled() and (values.requires_grad or matrices.requires_grad)
    ours = rows.is_contiguous() and _suits(values, rows, matrices)
    if torch.compiler.is_compiling() or gradients or not ours:
        return torch_backend.grouped_matmul(values, offsets, matrices)
    fewest = _fewest_by_rule if torch.is_grad_enabled() else _fewest_by_trial
    return _products(values.float(), rows, None, offsets, fewest).to(values.dtype)


def _suits(values: Tensor, up: Tensor, down: Tensor) -> bool:
    if values.dtype not in DTYPES or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(size % 8 == 0 for size in (values.shape[1], up.shape[1], down.shape[2]))


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _fewest_by_trial(dtype: torch.dtype) -> int:
    return entries_for_library(dtype, torch.get_num_threads())


def _fewest_by_rule(dtype: torch.dtype) -> int:
    return entries_by_rule(dtype)


def _fewest_for_tiles_alone(dtype: torch.dtype) -> int:  # noqa: ARG001 - the others ask for it
    return NEVER


def _products_by_rule(values: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    return _products(values, weights, bias, offsets, _fewest_by_rule)


def tile_products(values: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Every group of values times its matrix, plus its bias, without the library; as `_products`."""
    return _products(values, weights, bias, offsets, _fewest_for_tiles_alone)


def _products(
    values: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor, fewest: Fewest
) -> Tensor:
    """Every group of values times its matrix, plus its bias; float32 in and out, ``[entries, rows]``."""
    bounds = _bounds(offsets)
    matrices = _Matrices.of(weights, bias)
    result = torch.empty(len(values), matrices.rows)
    active = np.flatnonzero(bounds[1:] > bounds[:-1])
    if len(active):
        matrices.multiply(values.detach().contiguous(), bounds, active, result, fewest)
    return result


@dataclass(frozen=True, slots=True)
class _Matrices:
    """The matrices of all experts as the compiled code sees them; tensors are held so that addresses stay valid."""

    kind: str
    weights: Tensor
    scales: Tensor | None
    bias: Tensor | None
    rows: int
    columns: int
    group: int = 0

    @staticmethod
    def of(weights: Tensor, bias: Tensor | None) -> _Matrices:
        kind = DTYPES[weights.dtype]
        return _Matrices(kind, weights.detach().contiguous(), None, _float32(bias), *weights.shape[1:])

    @staticmethod
    def of_quantised(weights: QuantisedWeights, bias: Tensor | None) -> _Matrices:
        kind = f"int4-{weights.group}" if weights.bits == 4 else "int8"
        rows, padded = weights.shape[1], weights.padded
        codes, scales = weights.codes.contiguous(), weights.scales.contiguous()
        return _Matrices(kind, codes, scales, _float32(bias), rows, padded, weights.group)

    def multiply(
        self, values: Tensor, offsets: Offsets, active: Offsets, result: Tensor, fewest: Fewest
    ) -> None:
        """``result[i] = weights[j] · values[i] + bias[j]`` for the entries of each active group; float32 in and out."""
        if self.scales is None and len(values) >= min(TRIED):
            counts = offsets[active + 1] - offsets[active]
            if counts.max() >= min(TRIED):
                many = counts >= fewest(self.weights.dtype)
                for expert in active[many].tolist():
                    self._multiply_by_library(
                        values, slice(*offsets[expert : expert + 2].tolist()), expert, result
                    )
                active = active[~many]
        if len(active):
            self._multiply_by_tiles(values, offsets, active, result)

    def _multiply_by_library(self, values: Tensor, entries: slice, expert: int, result: Tensor) -> None:
        product = values[entries].to(self.weights.dtype) @ self.weights[expert].T
        result[entries] = product if self.bias is None else product + self.bias[expert]

    def _multiply_by_tiles(self, values: Tensor, offsets: Offsets, active: Offsets, result: Tensor) -> None:
        """`multiply` whatever the number of entries."""
        from runtime.kernels.expert_rows import Job, run_job

        address, stride, value_scales, weight_scales = values.data_ptr(), values.stride(0), 0, 0
        if self.scales is not None:
            codes, scales = _quantised(values, self.columns, self.group)
            address, stride, value_scales = codes.ctypes.data, self.columns, scales.ctypes.data
            weight_scales = self.scales.data_ptr()
        job = Job(
            next=0,
            groups=len(active),
            experts=len(self.weights),
            rows=self.rows,
            columns=self.columns,
            entries=len(values),
            value_stride=stride,
            active=active.ctypes.data,
            offsets=offsets.ctypes.data,
            weights=self.weights.data_ptr(),
            weight_scales=weight_scales,
            values=address,
            value_scales=value_scales,
            bias=0 if self.bias is None else self.bias.data_ptr(),
            result=result.data_ptr(),
        )
        run_job(self.kind, job, torch.get_num_threads())


def _run(
    values: Tensor,
    offsets: Tensor,
    into: _Matrices,
    out_of: _Matrices,
    fewest: Fewest,
    *,
    activation: str,
    gated: bool,
) -> Tensor:
    bounds = _bounds(offsets)
    activate = torch_activation(activation)
    wide = values.detach().float().contiguous()
    result = torch.empty_like(wide)
    # Python's own numbers: torch takes NumPy's for sizes too, but slowly.
    pieces = [(piece, int(bounds[piece[0]]), int(bounds[piece[-1] + 1])) for piece in _pieces(bounds)]
    scratch = torch.empty(max((end - begin for _, begin, end in pieces), default=0), into.rows)
    for piece, begin, end in pieces:
        hidden = scratch[: end - begin]
        local = bounds - begin if begin else bounds
        into.multiply(wide[begin:end], local, piece, hidden, fewest)
        if gated:
            gate, passed = hidden.chunk(2, dim=1)
            hidden = activate(gate).mul_(passed)
        else:
            hidden = activate(hidden)
        out_of.multiply(hidden, local, piece, result[begin:end], fewest)
    return result.to(values.dtype)


def _bounds(offsets: Tensor) -> Offsets:
    """Offsets as compiled code takes them, by their address: one after the other, int64."""
    bounds: Offsets = np.ascontiguousarray(offsets.numpy(), np.int64)
    check_offsets(bounds)
    return bounds


def _pieces(bounds: Offsets) -> list[Offsets]:
    """The experts that have entries, in runs of about `ENTRIES_AT_ONCE` entries or of one expert."""
    active = np.flatnonzero(bounds[1:] > bounds[:-1])
    if not len(active):
        return []
    if len(active) == 1 or bounds[-1] <= ENTRIES_AT_ONCE:
        return [active]
    pieces, first = [], 0
    for place in range(1, len(active)):
        if bounds[active[place] + 1] - bounds[active[first]] > ENTRIES_AT_ONCE:
            pieces.append(active[first:place])
            first = place
    return [*pieces, active[first:]]


def _quantised(values: Tensor, columns: int, group: int) -> tuple[Any, Any]:
    """Codes of values and their scales, for int8 weights or, by groups of columns, for int4 ones."""
    from runtime.kernels.expert_rows import quantise_values, quantise_values_by_group

    codes: Any = np.empty((len(values), columns), np.int8 if group else np.int16)
    scales: Any = np.empty((len(values), columns // group, 2) if group else len(values), np.float32)
    if group:
        quantise_values_by_group(values.numpy(), codes, scales, group)
    else:
        quantise_values(values.numpy(), codes, scales)
    return codes, scales


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()
