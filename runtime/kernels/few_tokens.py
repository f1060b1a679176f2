"""A layer of experts for few tokens on the processor, in one call of compiled code.

With few tokens, memory sets the pace of the products, and they take less than a millisecond where two experts of a
common size are touched. Each torch operation and each Python object around them costs tens of microseconds when the
weights of the layers before have swept the caches. So the routes go to compiled code as they are, which sorts them,
multiplies, activates and adds up; see `runtime.kernels.few_tokens_work`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from runtime.expert_weights import QuantisedWeights
from runtime.kernels.expert_activations import canonical_activation
from runtime.kernels.thread_crew import run_on_crew

FEW_TOKENS = 16
"""So many at most. With more, what is around the products weighs little, and the library may multiply faster."""

LINE = 64
"""Bytes of a line of the cache, where each array of the scratch memory begins."""

PHASES = SORT, GATHER, UP, ACTIVATE, DOWN, ADD_UP = range(6)

COUNTER_BYTES = 64
"""A line of the cache for each counter."""

FIELDS = (
    "counters",  # address of [phases, 2] counters, each COUNTER_BYTES: items taken, and items done
    "yield_core",  # address of a function that lets another thread have the core, or 0
    "wrong",  # set where a route leads nowhere; then nothing else is done
    "tokens",
    "routes",
    "top_k",  # routes of each token, where `indptr` is 0
    "indptr",  # int64 [tokens + 1]
    "units",  # expert of each route
    "unit_bytes",  # 4 or 8
    "weights",  # of each route
    "narrow_weights",  # whether they are bfloat16, else float32
    "hidden",  # [tokens, width]
    "output",  # [tokens, width]
    "narrow_hidden",  # whether both are bfloat16, else float32
    "width",
    "inner",
    "gated",
    "activation",  # place in ACTIVATIONS
    "rows",  # int64 [routes]: token of each entry
    "places",  # int64 [routes]: route of each entry
    "wide",  # float32 [routes, width], values before they are quantised
)
"""Of a layer, int64 each. The jobs of both products follow, `runtime.kernels.expert_rows.Job`, then the counters."""

WRONG = FIELDS.index("wrong")
COUNTERS_AT = len(FIELDS) + 2 * 16
Layer = ctypes.c_int64 * (COUNTERS_AT + len(PHASES) * 2 * COUNTER_BYTES // 8)

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu")

INTEGERS = (torch.int64, torch.int32)

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def mix_few_tokens(
    hidden: Tensor,
    indptr: Tensor | None,
    units: Tensor,
    weights: Tensor,
    up: Tensor | QuantisedWeights,
    down: Tensor | QuantisedWeights,
    *,
    activation: str,
    gated: bool,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor | None:
    """What `moe.mixture.mix` returns; None where this is not the way to compute it, or the routes are wrong.

    Args:
        hidden: ``[tokens, width]``.
        indptr: int64 ``[tokens + 1]``, where the routes of each token begin; None where all have equally many.
        units: expert of each route, ``[routes]`` or ``[tokens, k]``.
        weights: of each route.
    """
    # Flat and short: after weights have swept the caches, each function that is entered costs some microseconds.
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()  # fake tensors and their kin have no memory to read
        or not _all_plain(hidden, indptr, units, weights, up, down, up_bias, down_bias)
        or not (hidden.is_cpu and units.is_cpu and weights.is_cpu)
        or hidden.dtype not in KINDS
        or weights.dtype not in KINDS
        or units.dtype not in INTEGERS
        or torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return None
    shape, up_shape, down_shape, units_shape = hidden.shape, up.shape, down.shape, units.shape
    if len(shape) != 2 or len(up_shape) != 3 or len(down_shape) != 3 or units_shape != weights.shape:
        return None
    (tokens, width), (experts, up_rows, columns), inner = shape, up_shape, down_shape[2]
    if (
        not 0 < tokens <= FEW_TOKENS
        or columns != width
        or up_rows != (2 * inner if gated else inner)
        or down_shape[0] != experts
        or down_shape[1] != width
        or not _routes_fit(indptr, units_shape, tokens)
    ):
        return None
    routes = units_shape.numel()
    into, out_of = _matrices(up, hidden.dtype), _matrices(down, hidden.dtype)
    if not routes or into is None or out_of is None or into.kind != out_of.kind or not _has_numba():
        return None
    if (up_bias is not None or down_bias is not None) and not _biases_suit(
        up_bias, up_shape, down_bias, down_shape
    ):
        return None
    if torch.is_grad_enabled() and _wants_gradients(hidden, weights, up, down, up_bias, down_bias):
        return None
    quantised = into.scale_bytes > 0
    name = canonical_activation(activation)
    if name not in ACTIVATIONS:
        return None
    hidden, units, weights = hidden.contiguous(), units.contiguous(), weights.contiguous()
    if up_bias is not None or down_bias is not None:
        up_bias, down_bias = _float32(up_bias), _float32(down_bias)
    sizes = (
        8 * (experts + 1),
        8 * experts,
        8 * routes,
        8 * routes,
        4 * routes * width if quantised else 0,
        routes * into.value_bytes,
        routes * into.scale_bytes,
        4 * routes * up_rows,
        routes * out_of.value_bytes if quantised else 0,
        routes * out_of.scale_bytes,
        4 * routes * width,
    )
    places, end = [], 0
    for size in sizes:
        places.append(end)
        end += (size + LINE - 1) & -LINE
    scratch, output = torch.empty(end, dtype=torch.uint8), torch.empty(shape, dtype=hidden.dtype)
    start = scratch.data_ptr()
    offsets, active, rows, entry_routes, wide, values, scales, product, codes, code_scales, result = (
        start + place for place in places
    )
    numbers = (
        0,
        _yield_core(),
        0,
        tokens,
        routes,
        0 if indptr is not None else routes // tokens,
        0 if indptr is None else indptr.data_ptr(),
        units.data_ptr(),
        units.itemsize,
        weights.data_ptr(),
        weights.dtype == torch.bfloat16,
        hidden.data_ptr(),
        output.data_ptr(),
        hidden.dtype == torch.bfloat16,
        width,
        inner,
        gated,
        ACTIVATIONS.index(name),
        rows,
        entry_routes,
        wide,
        # The jobs of both products: next, groups, experts, rows, columns, entries, value_stride, …
        0, 0, experts, up_rows, into.columns, routes, into.columns,
        active, offsets, into.address, into.scales, values, scales, _address(up_bias), product,
        0, 0, experts, width, out_of.columns, routes, out_of.columns if quantised else up_rows,
        active, offsets, out_of.address, out_of.scales, codes if quantised else product, code_scales,
        _address(down_bias), result,
    )  # fmt: skip
    layer = Layer(*numbers)
    layer[0] = ctypes.addressof(layer) + 8 * COUNTERS_AT
    run_on_crew(_work()(into.kind), ctypes.addressof(layer), torch.get_num_threads())
    # Whoever computes it in steps says what is wrong.
    return None if layer[WRONG] else output


@dataclass(slots=True)
class _Matrices:
    """The matrices of all experts as compiled code sees them.

    Attributes:
        kind: see `runtime.kernels.expert_rows.run_job`.
        columns: with padding.
        value_bytes: of an entry that meets them.
        scale_bytes: of the scales of such an entry.
        address, scales: where they are.
    """

    kind: str
    columns: int
    value_bytes: int
    scale_bytes: int
    address: int
    scales: int


def _matrices(weights: Any, dtype: torch.dtype) -> _Matrices | None:
    """None where compiled code cannot take them."""
    if isinstance(weights, QuantisedWeights):
        codes, scales, columns = weights.codes, weights.scales, weights.padded
        if not (codes.is_cpu and codes.is_contiguous() and scales.is_contiguous()):
            return None
        addresses = codes.data_ptr(), scales.data_ptr()
        if weights.bits == 8:
            return _Matrices("int8", columns, 2 * columns, 4, *addresses)
        group = weights.group
        return _Matrices(f"int4-{group}", columns, columns, 8 * (columns // group), *addresses)
    columns = weights.shape[2]
    if weights.dtype != dtype or columns % 8 or not (weights.is_cpu and weights.is_contiguous()):
        return None
    return _Matrices(KINDS[dtype], columns, 4 * columns, 0, weights.data_ptr(), 0)


@cache
def _work() -> Callable[[str], Any]:
    from runtime.kernels.few_tokens_work import compiled_layer

    return compiled_layer


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


@cache
def _yield_core() -> int:
    """Address of the system's function that lets another thread have the core; 0 where there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


def _all_plain(*tensors: Any) -> bool:
    """Whether the memory of each tensor holds its numbers: not those of subclasses, nor negated views."""
    return all(
        tensor is None
        or type(tensor) is QuantisedWeights
        or (type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg())
        for tensor in tensors
    )


def _routes_fit(indptr: Tensor | None, routes: torch.Size, tokens: int) -> bool:
    if indptr is None:
        return len(routes) == 2 and routes[0] == tokens
    return (
        indptr.dtype == torch.int64
        and indptr.shape == (tokens + 1,)
        and indptr.is_cpu
        and indptr.is_contiguous()
    )


def _biases_suit(up_bias: Tensor | None, up: Any, down_bias: Tensor | None, down: Any) -> bool:
    return all(
        bias is None or (bias.is_cpu and bias.dtype in KINDS and bias.shape == shape[:2])
        for bias, shape in ((up_bias, up), (down_bias, down))
    )


def _wants_gradients(*tensors: Any) -> bool:
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
