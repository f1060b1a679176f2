from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe.routing.router import Tokens
from moe.routing.sparse_mixer import SparseMixer
from moe.routing.switch import SwitchRouter
from moe.routing.top_k import TopKRouter

LOGITS = torch.tensor([0.5, 1.0, 0.9])
OUTPUTS = torch.tensor([2.0, -1.0, 3.0])
WIDE = 0.9  # an ε at which no expert of these logits is out of the draw
SAMPLES = 40_000


def exact_gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the expected loss ``Σ_i π_i L(π_i f_i)``, by enumeration."""
    logits = LOGITS.double().requires_grad_()
    probabilities = logits.softmax(0)
    (probabilities * loss(probabilities * OUTPUTS)).sum().backward()
    assert logits.grad is not None
    return logits.grad


def estimates(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """One estimate of the gradient for each of many tokens: ``[SAMPLES, experts]``."""
    logits = LOGITS.expand(SAMPLES, 3).clone().requires_grad_()
    experts, weights = SparseMixer(WIDE)(logits)
    loss(weights * OUTPUTS[experts.long()]).sum().backward()
    assert logits.grad is not None
    return logits.grad.double()


def distance(gradients: Tensor, exact: Tensor) -> float:
    """How many standard errors the mean of the estimates is off, at the worst component."""
    errors = gradients.std(0) / len(gradients) ** 0.5
    return float(((gradients.mean(0) - exact) / errors).abs().max())


def test_the_gradient_is_unbiased_for_a_linear_loss() -> None:
    assert distance(estimates(lambda y: 1.5 * y + 2), exact_gradient(lambda y: 1.5 * y + 2)) < 4


def test_an_ordinary_backward_pass_through_the_draw_is_biased() -> None:
    # So the test above can fail: this is what the estimator is there to mend.
    logits = LOGITS.expand(SAMPLES, 3).clone().requires_grad_()
    drawn = torch.multinomial(LOGITS.softmax(0), SAMPLES, replacement=True)
    weights = logits.softmax(1).gather(1, drawn[:, None])
    (1.5 * weights * OUTPUTS[drawn, None] + 2).sum().backward()
    assert logits.grad is not None
    assert distance(logits.grad.double(), exact_gradient(lambda y: 1.5 * y + 2)) > 40


def test_for_a_quadratic_loss_only_the_likeliest_expert_leaves_a_bias() -> None:
    def loss(y: Tensor) -> Tensor:
        return 0.5 * y.square() + y + 3

    logits = LOGITS.double().requires_grad_()
    probabilities = logits.softmax(0)
    # The likeliest has 2 a L'(a) in the place of a L'(a) + (L(a) - L(0)): a curvature of a² / 2 too much.
    likeliest = probabilities * torch.tensor([0.0, 1.0, 0.0])
    (0.5 * (likeliest.detach() * OUTPUTS).square() * probabilities).sum().backward()
    assert logits.grad is not None
    assert distance(estimates(loss), exact_gradient(loss) + logits.grad) < 4
    assert distance(estimates(loss), exact_gradient(loss)) > 6


def test_experts_are_drawn_by_their_probability() -> None:
    experts, _ = SparseMixer(WIDE)(LOGITS.expand(SAMPLES, 3))
    seen = torch.bincount(experts[:, 0], minlength=3) / SAMPLES
    torch.testing.assert_close(seen, LOGITS.softmax(0), rtol=0, atol=0.012)


def test_a_coin_halves_the_weight_of_all_but_the_likeliest() -> None:
    experts, weights = SparseMixer(WIDE)(LOGITS.expand(SAMPLES, 3))
    share = weights / LOGITS.softmax(0)[experts.long()]
    for expert in range(3):
        halved = (share[experts == expert] < 0.75).float().mean().item()
        assert halved == pytest.approx(0.0 if expert == 1 else 0.5, abs=0.02)
    assert ((share - 1).abs() < 1e-6).logical_or((share - 0.5).abs() < 1e-6).all()


def test_experts_far_behind_are_out_of_the_draw() -> None:
    # Relative distances to the highest logit: 0, 0.1, 0.3; with ε = 0.1 up to 0.2 may be drawn.
    logits = torch.tensor([[1.0, 0.9, 0.7]]).expand(5000, 3)
    experts, weights = SparseMixer(0.1)(logits)
    assert experts.unique().tolist() == [0, 1]
    probabilities = logits[0, :2].softmax(0)
    assert weights[experts == 0].unique().tolist() == pytest.approx([probabilities[0].item()])


def test_evaluation_takes_the_likeliest_and_of_equal_ones_the_lower() -> None:
    mixer = SparseMixer(WIDE).eval()
    experts, weights = mixer(torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]]))
    assert experts.tolist() == [[1], [0]]
    assert weights[1].item() == pytest.approx(1 / 3)


def test_several_draws_are_without_replacement_each_among_those_left() -> None:
    experts, weights = SparseMixer(WIDE)(LOGITS.expand(200, 3), 3)
    assert experts.sort(1).values.tolist() == [[0, 1, 2]] * 200
    torch.testing.assert_close(weights[:, 2], torch.ones(200))  # nothing else was left
    experts, weights = SparseMixer(WIDE).eval()(LOGITS[None], 2)
    assert experts.tolist() == [[1, 2]]
    rest = LOGITS[[0, 2]].softmax(0)[1]
    torch.testing.assert_close(weights[0, 1], rest)


def test_gradients_are_finite_when_all_experts_are_drawn() -> None:
    logits = LOGITS.expand(50, 3).clone().requires_grad_()
    _, weights = SparseMixer(0.1)(logits, 3)
    weights.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "router",
    [
        SwitchRouter(6, 4, sparse_mixer=WIDE, jitter=0.0),
        TopKRouter(6, 4, top_k=1, renormalise=False, sparse_mixer=WIDE),
    ],
)
def test_sampled_routers_explore_in_training_and_are_greedy_in_evaluation(router: torch.nn.Module) -> None:
    # A gate of 0 makes all experts equally likely, and none is out of the draw.
    hidden = torch.zeros(400, 6)
    trained = router.train()(Tokens(hidden)).gates
    assert trained.units.unique().tolist() == [0, 1, 2, 3]
    assert sorted(trained.weights.unique().tolist()) == pytest.approx([0.125, 0.25])
    greedy = router.eval()(Tokens(hidden)).gates
    assert greedy.units.unique().tolist() == [0]
    assert greedy.weights.unique().tolist() == pytest.approx([0.25])
