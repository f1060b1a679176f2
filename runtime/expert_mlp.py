"""The feed-forward blocks of experts, each on its own group of entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.activations import Array, is_tensor
from runtime.errors import UsageError
from runtime.expert_weights import QuantisedWeights
from runtime.group_offsets import check_group_offsets
from runtime.kernels.expert_activations import canonical_activation
from runtime.kernels.registry import kernel

if TYPE_CHECKING:
    from collections.abc import Callable


def expert_mlp(
    values: Array,
    offsets: Array,
    up: Array | QuantisedWeights,
    down: Array | QuantisedWeights,
    *,
    activation: str,
    gated: bool,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    backend: str | None = None,
) -> Array:
    """``down[j] · act(up[j] · value)`` for every entry of group `j`, or with a gate, as in GLU variants improve
    transformers (Shazeer 2020): ``down[j] · (act(gate[j] · value) ⊙ (up[j] · value))``.

    Gradients flow to those of torch's values, weights and biases that ask for them, but not through
    `QuantisedWeights`. Gradients of gradients exist where `backend` is ``"torch"``; in float32 and bfloat16 on the
    processor, the second backward is a UsageError otherwise.

    Sums are taken in float32 at least. Between the two products, float32 may be kept where the weights are narrower.

    Args:
        values: floating ``[entries, width]``, group by group, as `runtime.combine.gather` has them.
        offsets: int64 ``[experts + 1]``; expert `j` has the entries ``offsets[j]:offsets[j + 1]``.
        up: ``[experts, 2 · inner, width]`` when gated, the gate's rows before the others; else
            ``[experts, inner, width]``.
        down: ``[experts, width, inner]``. Both matrices may be `QuantisedWeights` instead, for torch tensors on the
            processor and without gradients; values then meet them in 16 bits, or in 8 if weights have 4.
        activation: a name of transformers', such as ``"silu"`` or ``"gelu_pytorch_tanh"``.
        gated: whether the first half of `up` is a gate.
        up_bias: ``[experts, up's rows]``.
        down_bias: ``[experts, width]``.
        backend: see `runtime.kernels.registry.kernel`.

    Returns:
        ``[entries, width]``, of the dtype of `values`.

    Raises:
        UsageError: shapes or dtypes do not fit, offsets decrease or do not run from 0 to the number of entries, or the
            activation is not known.
    """
    canonical_activation(activation)
    _check(values, offsets, up, down, gated, up_bias, down_bias)
    run = _kernel(values, offsets, up, down, (up_bias, down_bias), backend)
    result: Array = run(
        values,
        offsets,
        up,
        down,
        activation=activation,
        gated=gated,
        up_bias=up_bias,
        down_bias=down_bias,
    )
    return result


def _kernel(
    values: Any, offsets: Array, up: Any, down: Any, biases: tuple[Any, Any], backend: str | None
) -> Callable[..., Any]:
    if not isinstance(up, QuantisedWeights):
        return kernel("expert_mlp", values, offsets, up, down, backend=backend)
    import torch

    if not is_tensor(values) or values.device.type != "cpu":
        raise UsageError(
            "quantised experts take torch tensors on the processor; convert values, or dequantise them"
        )
    given = (values, *(bias for bias in biases if bias is not None))
    if torch.is_grad_enabled() and any(array.requires_grad for array in given):
        raise UsageError(
            "quantised experts have no gradients, by their values and biases neither; dequantise them, or run under "
            "torch.no_grad()"
        )
    return kernel("quantised_expert_mlp", values, offsets, backend=backend)


def _check(
    values: Array,
    offsets: Array,
    up: Any,
    down: Any,
    gated: bool,
    up_bias: Array | None,
    down_bias: Array | None,
) -> None:
    if isinstance(up, QuantisedWeights) != isinstance(down, QuantisedWeights):
        raise UsageError("one of up and down is quantised, but it must be both up and down, or neither")
    if not _shapes_fit(values, up, down, gated):
        rows = "2 · inner" if gated else "inner"
        raise UsageError(
            f"values {tuple(values.shape)}, up {tuple(up.shape)} and down {tuple(down.shape)} must be "
            f"[entries, width], [experts, {rows}, width] and [experts, width, inner]"
        )
    check_group_offsets(offsets, len(up), len(values))
    for name, bias, matrices in (("up_bias", up_bias, up), ("down_bias", down_bias, down)):
        if bias is not None and tuple(bias.shape) != tuple(matrices.shape[:2]):
            raise UsageError(f"{name} {tuple(bias.shape)} must be {tuple(matrices.shape[:2])}")
    given = {"up": up, "down": down, "up_bias": up_bias, "down_bias": down_bias}
    for name, array in given.items():
        if array is not None and not isinstance(array, QuantisedWeights) and array.dtype != values.dtype:
            raise UsageError(f"values are {values.dtype}, but {name} is {array.dtype}; convert one of them")


def _shapes_fit(values: Any, up: Any, down: Any, gated: bool) -> bool:
    if values.ndim != 2 or len(up.shape) != 3 or len(down.shape) != 3:
        return False
    width, inner = values.shape[1], down.shape[2]
    num_experts = len(up)
    return tuple(up.shape[1:]) == (2 * inner if gated else inner, width) and tuple(down.shape[:2]) == (
        num_experts,
        width,
    )
