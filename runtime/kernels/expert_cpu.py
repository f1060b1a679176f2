"""Experts on the processor: which way their products are computed, decided here and nowhere else.

==========================================  =============================================================
what is asked for                           what computes it
==========================================  =============================================================
a gradient; under `torch.compile`; dtypes   `runtime.kernels.torch_backend`
other than float32 and bfloat16; sizes
that are no multiple of 8
everything else, any number of entries      `runtime.kernels.expert_rows`, blocks of rows on torch's threads
==========================================  =============================================================

What was measured for this choice is in docs/expert-kernels.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.expert_weights import QuantisedWeights
from runtime.kernels import torch_backend
from runtime.kernels.bounds import check_offsets
from runtime.kernels.expert_activations import torch_activation
from runtime.kernels.reference import Offsets

ENTRIES_AT_ONCE = 1024
"""Entries between whose products float32 is held: 16 MB at an inner width of 2,048."""

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
    tensors = [tensor for tensor in (values, up, down, up_bias, down_bias) if tensor is not None]
    if torch.compiler.is_compiling() or not _suits(tensors):
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
    into, out_of = _Matrices.of(up, up_bias), _Matrices.of(down, down_bias)
    return _run(values, offsets, into, out_of, activation=activation, gated=gated)


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
    """`expert_mlp` with weights in few bits; values in 16 bits meet them in whole numbers. No gradients."""
    into, out_of = _Matrices.of_quantised(up, up_bias), _Matrices.of_quantised(down, down_bias)
    return _run(values.detach(), offsets, into, out_of, activation=activation, gated=gated)


def _suits(tensors: list[Tensor]) -> bool:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    values, up, down = tensors[:3]
    sizes = (values.shape[1], up.shape[1], down.shape[2])
    return values.dtype in DTYPES and all(size % 8 == 0 for size in sizes)


@dataclass(frozen=True, slots=True)
class _Matrices:
    """The matrices of all experts as the compiled code sees them; tensors are held so that addresses stay valid."""

    kind: str
    weights: Tensor
    scales: Tensor | None
    bias: Tensor | None
    rows: int
    columns: int

    @staticmethod
    def of(weights: Tensor, bias: Tensor | None) -> _Matrices:
        kind = DTYPES[weights.dtype]
        return _Matrices(kind, weights.detach().contiguous(), None, _float32(bias), *weights.shape[1:])

    @staticmethod
    def of_quantised(weights: QuantisedWeights, bias: Tensor | None) -> _Matrices:
        kind = f"int4-{weights.group}" if weights.bits == 4 else "int8"
        rows, padded = weights.shape[1], weights.padded
        return _Matrices(kind, weights.codes, weights.scales, _float32(bias), rows, padded)

    def multiply(self, values: Tensor, offsets: Offsets, result: Tensor) -> None:
        """``result[i] = weights[j] · values[i] + bias[j]`` for the entries of each group; float32 in and out."""
        from runtime.kernels.expert_rows import run_job

        active = np.flatnonzero(offsets[1:] > offsets[:-1])
        fields = {"value_stride": values.stride(0), "values": values.data_ptr()}
        if self.scales is not None:
            codes, scales = _in_int16(values, self.columns)
            fields = {
                "value_stride": self.columns,
                "values": codes.ctypes.data,
                "value_scales": scales.ctypes.data,
                "weight_scales": self.scales.data_ptr(),
            }
        run_job(
            self.kind,
            torch.get_num_threads(),
            groups=len(active),
            experts=len(self.weights),
            rows=self.rows,
            columns=self.columns,
            entries=len(values),
            active=active.ctypes.data,
            offsets=offsets.ctypes.data,
            weights=self.weights.data_ptr(),
            bias=0 if self.bias is None else self.bias.data_ptr(),
            result=result.data_ptr(),
            **fields,
        )


def _run(
    values: Tensor, offsets: Tensor, into: _Matrices, out_of: _Matrices, *, activation: str, gated: bool
) -> Tensor:
    check_offsets(offsets)
    activate = torch_activation(activation)
    bounds = offsets.numpy().astype(np.int64, copy=False)
    wide = values.detach().float().contiguous()
    result = torch.empty_like(wide)
    pieces = _pieces(bounds)
    most = max((bounds[last] - bounds[first] for first, last in pieces), default=0)
    scratch = torch.empty(most, into.rows)
    for first, last in pieces:
        begin, end = bounds[first], bounds[last]
        local = np.clip(bounds, begin, end) - begin
        hidden = scratch[: end - begin]
        into.multiply(wide[begin:end], local, hidden)
        if gated:
            gate, passed = hidden.chunk(2, dim=1)
            hidden = activate(gate).mul_(passed)
        else:
            hidden = activate(hidden)
        out_of.multiply(hidden, local, result[begin:end])
    return result.to(values.dtype)


def _pieces(bounds: Offsets) -> list[tuple[int, int]]:
    """Ranges of experts of about `ENTRIES_AT_ONCE` entries each, without those at the ends that have none."""
    pieces: list[tuple[int, int]] = []
    first = 0
    for expert in np.flatnonzero(np.diff(bounds)):
        if bounds[expert + 1] - bounds[first] > ENTRIES_AT_ONCE and bounds[expert] > bounds[first]:
            pieces.append((first, int(expert)))
            first = int(expert)
    if len(bounds) and bounds[-1] > bounds[first]:
        pieces.append((first, len(bounds) - 1))
    return pieces


def _in_int16(values: Tensor, columns: int) -> tuple[Any, Any]:
    from runtime.kernels.expert_rows import quantise_values

    codes = np.empty((len(values), columns), np.int16)
    scales = np.empty(len(values), np.float32)
    quantise_values(values.numpy(), codes, scales)
    return codes, scales


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()
