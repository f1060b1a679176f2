"""The experts of a layer: their weights, in the layout of transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe.mixture import mix
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.kernels.expert_activations import canonical_activation


class Experts(nn.Module):
    """Feed-forward blocks side by side, of which each token passes through those that its gates light up.

    Parameters are named and laid out as in transformers' mixture models, so that their state loads as it is:
    `gate_up_proj` ``[experts, 2 · inner, width]`` (the gate's rows first) or, ungated, `up_proj`
    ``[experts, inner, width]``; `down_proj` ``[experts, width, inner]``; and with `bias` the same names with
    ``_bias``, ``[experts, rows]``.

    Args:
        num_experts: at least 1.
        width: of the hidden states.
        inner: width of one expert's hidden layer.
        activation: transformers' name, for example ``"silu"``.
        gated: whether the activation of one projection scales another, as in SwiGLU.
        bias: whether projections have biases, which start at 0.
        initializer_range: standard deviation of the normal distribution that weights start from.

    Raises:
        UsageError: a size is below 1, or the activation is unknown.
    """

    down_proj_bias: nn.Parameter | None

    def __init__(
        self,
        num_experts: int,
        width: int,
        inner: int,
        *,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
        initializer_range: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("num_experts", num_experts), ("width", width), ("inner", inner)):
            if size < 1:
                raise UsageError(f"{name} is {size}, but experts need 1 or more")
        canonical_activation(activation)
        self.num_experts, self.width, self.inner = num_experts, width, inner
        self.activation, self.gated = activation, gated

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(num_experts, *shape, device=device, dtype=dtype))

        rows = 2 * inner if gated else inner
        self.register_parameter(self._up_name, parameter(rows, width))
        self.register_parameter("down_proj", parameter(width, inner))
        self.register_parameter(f"{self._up_name}_bias", parameter(rows) if bias else None)
        self.register_parameter("down_proj_bias", parameter(width) if bias else None)
        for weights in (self.up, self.down):
            nn.init.normal_(weights, std=initializer_range)

    @property
    def _up_name(self) -> str:
        return "gate_up_proj" if self.gated else "up_proj"

    @property
    def up(self) -> nn.Parameter:
        return self.get_parameter(self._up_name)

    @property
    def down(self) -> nn.Parameter:
        return self.get_parameter("down_proj")

    def forward(self, hidden: Tensor, gates: SparseActivations, capacity: int | None = None) -> Tensor:
        """See `moe.mixture.mix`.

        Args:
            hidden: ``[tokens, width]``.
            gates: ``[tokens, experts]``.
            capacity: most tokens that an expert takes; None takes all.

        Raises:
            UsageError: shapes do not fit.
        """
        if hidden.ndim != 2 or hidden.shape[1] != self.width:
            raise UsageError(
                f"hidden states are {tuple(hidden.shape)}, but experts take [tokens, {self.width}]"
            )
        if (gates.num_rows, gates.num_units) != (len(hidden), self.num_experts):
            raise UsageError(
                f"gates [{gates.num_rows}, {gates.num_units}] do not fit {len(hidden)} tokens and "
                f"{self.num_experts} experts"
            )
        return mix(
            hidden,
            gates,
            self.up,
            self.down,
            activation=self.activation,
            gated=self.gated,
            up_bias=getattr(self, f"{self._up_name}_bias"),
            down_bias=self.down_proj_bias,
            capacity=capacity,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_experts}, width={self.width}, inner={self.inner}, activation={self.activation!r}, "
            f"gated={self.gated}"
        )
