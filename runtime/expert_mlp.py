"""The feed-forward blocks of experts, each on its own group of entries."""

from __future__ import annotations

from runtime.activations import Array
from runtime.errors import UsageError
from runtime.kernels.expert_activations import canonical_activation
from runtime.kernels.registry import kernel


def expert_mlp(
    values: Array,
    offsets: Array,
    up: Array,
    down: Array,
    *,
    activation: str,
    gated: bool,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    backend: str | None = None,
) -> Array:
    """``down[j] · act(up[j] · value)`` for every entry of group `j`, or with a gate, as in GLU variants improve
    transformers (Shazeer 2020): ``down[j] · (act(gate[j] · value) ⊙ (up[j] · value))``.

    Gradients flow to values, weights and biases wherever torch's gradients are enabled and one of them asks for
    them. Sums are taken in float32 at least. Between the two products, float32 may be kept where the weights are
    narrower.

    Args:
        values: floating ``[entries, width]``, group by group, as `runtime.combine.gather` has them.
        offsets: int64 ``[experts + 1]``; expert `j` has the entries ``offsets[j]:offsets[j + 1]``.
        up: ``[experts, 2 · inner, width]`` when gated, the gate's rows before the others; else
            ``[experts, inner, width]``.
        down: ``[experts, width, inner]``.
        activation: a name of transformers', such as ``"silu"`` or ``"gelu_pytorch_tanh"``.
        gated: whether the first half of `up` is a gate.
        up_bias: ``[experts, up's rows]``.
        down_bias: ``[experts, width]``.
        backend: see `runtime.kernels.registry.kernel`.

    Returns:
        ``[entries, width]``, of the dtype of `values`.

    Raises:
        UsageError: shapes or dtypes do not fit, or the activation is not known.
    """
    canonical_activation(activation)
    _check(values, offsets, up, down, gated, up_bias, down_bias)
    run = kernel("expert_mlp", values, offsets, up, down, backend=backend)
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


def _check(
    values: Array,
    offsets: Array,
    up: Array,
    down: Array,
    gated: bool,
    up_bias: Array | None,
    down_bias: Array | None,
) -> None:
    if not _shapes_fit(values, up, down, gated):
        rows = "2 · inner" if gated else "inner"
        raise UsageError(
            f"values {tuple(values.shape)}, up {tuple(up.shape)} and down {tuple(down.shape)} must be "
            f"[entries, width], [experts, {rows}, width] and [experts, width, inner]"
        )
    if len(offsets) != len(up) + 1:
        raise UsageError(f"{len(up)} experts need {len(up) + 1} offsets, not {len(offsets)}")
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(values):
        raise UsageError(
            f"offsets run from {int(offsets[0])} to {int(offsets[-1])}, but must run from 0 to {len(values)}, "
            "the number of entries"
        )
    for name, bias, matrices in (("up_bias", up_bias, up), ("down_bias", down_bias, down)):
        if bias is not None and tuple(bias.shape) != tuple(matrices.shape[:2]):
            raise UsageError(f"{name} {tuple(bias.shape)} must be {tuple(matrices.shape[:2])}")
    given = {"up": up, "down": down, "up_bias": up_bias, "down_bias": down_bias}
    for name, array in given.items():
        if array is not None and array.dtype != values.dtype:
            raise UsageError(f"values are {values.dtype}, but {name} is {array.dtype}; convert one of them")


def _shapes_fit(values: Array, up: Array, down: Array, gated: bool) -> bool:
    if values.ndim != 2 or up.ndim != 3 or down.ndim != 3:
        return False
    width, inner = values.shape[1], down.shape[2]
    num_experts = len(up)
    return up.shape[1:] == (2 * inner if gated else inner, width) and down.shape[:2] == (num_experts, width)
