"""One layer of experts that runs on our execution or on one of transformers', with weights that all share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import moe
from moe import transformers_experts
from moe.mixture import add_up
from runtime.activations import SparseActivations
from runtime.combine import gather
from runtime.dispatch import dispatch
from runtime.errors import NotFoundError
from runtime.expert_mlp import expert_mlp
from runtime.expert_weights import QuantisedWeights, quantise_experts

OURS = "lexpert"
PEERS = ("eager", "batched_mm", "grouped_mm")
QUANTISED = {"int8": (8, 32), "int4-32": (4, 32), "int4-128": (4, 128)}
"""Our formats of few bits: bits, and columns that share a scale."""

assert moe.__name__  # importing it is what registers our execution with transformers


class Layer:
    """Experts of transformers' Mixtral, with weights from a normal distribution.

    Args:
        num_experts, top_k: how many there are, and how many a token goes to.
        width, inner: of hidden states, and of one expert's hidden layer.
        dtype: of weights and hidden states.
    """

    def __init__(self, num_experts: int, top_k: int, width: int, inner: int, dtype: torch.dtype) -> None:
        self.num_experts, self.top_k, self.width, self.inner, self.dtype = (
            num_experts,
            top_k,
            width,
            inner,
            dtype,
        )
        self._module = _module(num_experts, top_k, width, inner, dtype)
        self._chosen = ""
        self._quantised: dict[str, tuple[QuantisedWeights, QuantisedWeights]] = {}

    def draw(self, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states ``[tokens, width]``, and experts and weights ``[tokens, top_k]`` of random logits."""
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(tokens, self.width, generator=generator).to(self.dtype)
        scores = torch.randn(tokens, self.num_experts, generator=generator).softmax(1)
        weights, experts = scores.topk(self.top_k, dim=1)
        return hidden, experts, (weights / weights.sum(1, keepdim=True)).to(self.dtype)

    def run(self, name: str, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The layer's output on an execution: ours, a peer's, or ours on weights of few bits."""
        if name != self._chosen:
            self.choose(name)
        output: Tensor = self._module(hidden, experts, weights)
        return output

    def choose(self, name: str) -> None:
        """Prepare the module for an execution, which `run` does where it has not been done."""
        setattr(
            self._module, transformers_experts.QUANTISED, self.quantised(name) if name in QUANTISED else None
        )
        self._module.config._experts_implementation = OURS if name in QUANTISED else name
        self._chosen = name

    def quantised(self, name: str) -> tuple[QuantisedWeights, QuantisedWeights]:
        if name not in self._quantised:
            bits, group = QUANTISED[name]
            self._quantised[name] = (
                quantise_experts(self._module.gate_up_proj, bits=bits, group=group),
                quantise_experts(self._module.down_proj, bits=bits, group=group),
            )
        return self._quantised[name]

    def steps(self, hidden: Tensor, router: Tensor) -> dict[str, Callable[[], Any]]:
        """Ours in two parts, to be timed one by one: ``"experts"``, and everything else with a router before it."""
        gates = _routed(hidden, router, self.top_k)
        routed = dispatch(gates)
        values = gather(hidden, routed)
        up, down = self._module.gate_up_proj, self._module.down_proj
        entries = values.clone()

        def route_dispatch_combine() -> Tensor:
            again = dispatch(_routed(hidden, router, self.top_k))
            gather(hidden, again)
            return add_up(entries, again).to(hidden.dtype)

        def multiply() -> Any:
            return expert_mlp(values, routed.offsets, up, down, activation="silu", gated=True)

        return {"routing": route_dispatch_combine, "experts": multiply}

    def bytes_read(self, experts: Tensor, name: str) -> int:
        """Bytes of the weights that a batch needs, each once."""
        touched = len(experts.unique())
        if name in QUANTISED:
            return touched * sum(weights.num_bytes for weights in self.quantised(name)) // self.num_experts
        return touched * 3 * self.width * self.inner * self.dtype.itemsize

    def operations(self, tokens: int) -> int:
        """Float operations of a batch."""
        return 2 * tokens * self.top_k * 3 * self.width * self.inner

    def gathered_bytes(self, tokens: int) -> int:
        """Bytes that batched_mm copies: the weights of every pair of token and expert, largest matrix."""
        return tokens * self.top_k * 2 * self.width * self.inner * self.dtype.itemsize


def _routed(hidden: Tensor, router: Tensor, top_k: int) -> SparseActivations:
    scores = (hidden.float() @ router.T).softmax(1)
    weights, experts = scores.topk(top_k, dim=1)
    return SparseActivations.from_topk(experts, weights / weights.sum(1, keepdim=True), len(router))


def _module(num_experts: int, top_k: int, width: int, inner: int, dtype: torch.dtype) -> Any:
    try:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    except ImportError:
        raise NotFoundError(
            "the bench runs transformers' experts, which are not installed; run: pip install 'lexpert[neural]'"
        ) from None
    config = MixtralConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_local_experts=num_experts,
        num_experts_per_tok=top_k,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    with torch.device("meta"):
        module = MixtralExperts(config)
    module = module.to(dtype).to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weights in (module.gate_up_proj, module.down_proj):
        for matrix in weights:
            matrix.copy_(torch.randn(matrix.shape, generator=generator) / matrix.shape[1] ** 0.5)
    return module
