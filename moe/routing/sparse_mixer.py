"""SparseMixer: a gradient for the choice of the experts, and not only for their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.errors import UsageError
from runtime.select import TopK


class SparseMixer(torch.nn.Module):
    """Draws experts in training and estimates the gradient of the draw by the mid-point rule (Liu et al. 2023).

    Let π be the softmax of a token's logits, f_i the output of expert `i` and L the loss as a function of the
    layer's output ``π_D f_D``, with D drawn from π. The expected loss is ``J = Σ_i π_i L(π_i f_i)``. An
    ordinary backward pass gives ``π_D``'s gradient alone and is blind to what another draw would have cost::

        ∇J = Σ_i π_i L'(π_i f_i) f_i ∇π_i  +  Σ_i L(π_i f_i) ∇π_i
             the weight of the draw           the draw itself; up to Σ ∇π_i L(0) = 0, by the mid-point rule
                                              L(a) - L(0) ≈ a L'(a/2), the same with L'(π_i f_i / 2)

    So a coin decides which of the two is sampled, and the gradient is doubled for it: heads keep the weight,
    tails halve it in the forward pass. The likeliest expert always keeps its weight, so that training is not
    unlike evaluation. The estimate of ∇J is unbiased where L is linear; where it is quadratic, what is left is
    the curvature of L along the likeliest expert alone.

    Experts that are far behind are out of the draw: those whose logit is below the highest one by more than
    2 ε of the larger of the two magnitudes, which noise of ±ε on each could not make up for.

    Attributes:
        epsilon: ε, in (0, 1).
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        if not 0 < epsilon < 1:
            raise UsageError(f"SparseMixer's epsilon is {epsilon}, but must lie between 0 and 1")
        self.epsilon = epsilon

    def forward(self, logits: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Draw `k` different experts for each token, one after the other; in evaluation take the likeliest.

        Args:
            logits: float32 ``[tokens, experts]``.
            k: at most the number of experts. A later draw is among the experts that are left.

        Returns:
            int32 experts ``[tokens, k]`` in the order drawn, and their weights: each the probability of its
            draw, or half of it.
        """
        experts, weights = [], []
        for _ in range(k):
            expert, weight = self._draw(logits)
            logits = logits.scatter(1, expert, -torch.inf)
            experts.append(expert)
            weights.append(weight)
        return torch.cat(experts, 1).int(), torch.cat(weights, 1)

    def _draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        likely = logits.masked_fill(self._is_behind(logits.detach()), -torch.inf)
        probabilities = likely.softmax(1)
        best = TopK(1)(likely.detach()).units[:, None].long()
        if not self.training:
            return best, probabilities.gather(1, best)
        gumbel = -torch.empty_like(likely).exponential_().log()
        drawn = (likely.detach() + gumbel).argmax(1, keepdim=True)
        weight = probabilities.gather(1, drawn)
        keeps = (drawn == best) | (torch.rand_like(weight) < 0.5)
        # The value is the weight or half of it, the gradient that of twice the weight.
        share = torch.where(keeps, 1.0, 0.5)
        return drawn, 2 * weight - (2 - share) * weight.detach()

    def _is_behind(self, logits: Tensor) -> Tensor:
        highest = logits.amax(1, keepdim=True)
        scale = torch.maximum(logits.abs(), highest.abs())
        # An expert that is out already is at -∞, whose distance to itself is no number.
        return ((highest - logits) > 2 * self.epsilon * scale) | (logits == -torch.inf)
