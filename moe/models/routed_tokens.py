"""The tokens of one forward pass, as routers see them, and what they decided."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moe.layer import MoELayer
from moe.models.expert_configuration import DEFAULT_LOSSES
from moe.routing import Routing
from runtime.errors import UsageError


class RoutedTokens:
    """Handed from a model to its layers and thrown away with its output; models keep nothing between passes.

    Padding is left out before routing: it takes no expert's capacity and counts in no loss and no statistic.

    Attributes:
        mask: boolean ``[batch, length]``, False at padding; None where there is none.
    """

    def __init__(self, shape: tuple[int, int], ids: Tensor | None, attention_mask: Tensor | None) -> None:
        """Describe a batch.

        Args:
            shape: ``(batch, length)``.
            ids: int64 ``[batch, length]``, vocabulary ids, for routers that decide by them.
            attention_mask: ``[batch, length]``, 0 at padding.

        Raises:
            UsageError: the mask says more than where padding is.
        """
        if attention_mask is not None and (
            not isinstance(attention_mask, Tensor) or tuple(attention_mask.shape) != shape
        ):
            given = tuple(getattr(attention_mask, "shape", ())) or type(attention_mask).__name__
            raise UsageError(
                f"attention_mask is {given}, but experts must know which tokens are padding: pass {list(shape)}"
            )
        mask = None if attention_mask is None else attention_mask.bool()
        self.mask = None if mask is None or bool(mask.all()) else mask
        self._places = None if self.mask is None else self.mask.flatten().nonzero()[:, 0]
        self._ids = None if ids is None else self._without_padding(ids.flatten())
        self._shape = shape
        self._needs_graph = torch.is_grad_enabled()
        self._routings: dict[int, Routing] = {}

    @classmethod
    def of_inputs(
        cls,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        positions: int | None = None,
    ) -> RoutedTokens:
        """Of a model's arguments, of which one of the first two must be given.

        Args:
            positions: the longest sequence that the model can take; None where it has no end.

        Raises:
            UsageError: no input, too long a one, or a mask that does not fit.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise UsageError("a model needs input_ids or inputs_embeds; pass one of them")
        if positions is not None and given.shape[1] > positions:
            raise UsageError(
                f"a sequence has {given.shape[1]} tokens, but the model has {positions} positions; truncate it"
            )
        return cls((given.shape[0], given.shape[1]), input_ids, attention_mask)

    @property
    def routings(self) -> tuple[Routing, ...]:
        """What the router of each layer decided, from the bottom."""
        return tuple(self._routings[layer] for layer in sorted(self._routings))

    def through(self, moe: MoELayer, layer: int, hidden: Tensor) -> Tensor:
        """Send ``[batch, length, width]`` through the experts of a layer; zeros at padding.

        Raises:
            UsageError: under checkpointing that keeps no graph, so that the router's losses would teach it nothing.
        """
        if self._needs_graph and not torch.is_grad_enabled():
            raise UsageError(
                "routers learn nothing from losses under checkpointing with use_reentrant=True; "
                "enable it with use_reentrant=False"
            )
        flat = hidden.flatten(0, 1)
        chosen = self._without_padding(flat)
        output, routing = moe(chosen, sequences=self._sequences(hidden.device), ids=self._ids)
        self._routings.setdefault(layer, routing)  # checkpointing comes here again in the backward pass
        if self._places is not None:
            output = torch.zeros_like(flat).index_copy(0, self._places, output)
        return output.view_as(hidden)

    def loss(self, coefficients: Mapping[str, float] | None) -> Tensor | None:
        """Sum over layers of each loss times its coefficient; None where no layer has experts.

        Args:
            coefficients: see `ExpertConfiguration.router_losses`.

        Raises:
            UsageError: a coefficient of a loss that the router does not have.
        """
        total: Tensor | None = None
        for routing in self.routings:
            weights = DEFAULT_LOSSES if coefficients is None else coefficients
            unknown = set(coefficients or {}) - set(routing.losses)
            if unknown:
                raise UsageError(
                    f"router_losses names {', '.join(sorted(unknown))}, but the router has "
                    f"{', '.join(routing.losses) or 'none'}"
                )
            for name, loss in routing.losses.items():
                share = weights.get(name, 0.0) * loss
                total = share if total is None else total + share
        return total

    def _sequences(self, device: torch.device) -> Tensor:
        batch, length = self._shape
        return self._without_padding(torch.arange(batch, device=device).repeat_interleave(length))

    def _without_padding(self, values: Tensor) -> Tensor:
        return values if self._places is None else values[self._places]
