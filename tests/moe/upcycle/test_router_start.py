"""Routers that start from text send tokens where they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from moe.upcycle.architectures.catalogue import architecture_of  # noqa: E402
from moe.upcycle.model_runs import hidden_states_of, loaded_model  # noqa: E402
from moe.upcycle.plan import UpcyclePlan  # noqa: E402
from moe.upcycle.router_init.start import router_start  # noqa: E402
from runtime.errors import UsageError  # noqa: E402
from tests.moe.upcycle.conftest import Dense  # noqa: E402

BLOCK = {"up": torch.zeros(4, 512), "down": torch.zeros(512, 4)}
"""Only its width matters, and only to a random router."""


def three_kinds() -> Any:
    """Hidden states of three kinds, 40 tokens each, in a space of 16."""
    draw = torch.Generator().manual_seed(0)
    return [4 * torch.eye(16)[kind] + torch.randn(40, 16, generator=draw) + 2 for kind in range(3)]


def test_a_random_router_has_the_deviation_of_the_paper() -> None:
    rows = router_start(UpcyclePlan(), {}, torch.relu)(0, 64, BLOCK)
    assert float(rows.std()) == pytest.approx(0.02, rel=0.02)
    assert torch.equal(rows, router_start(UpcyclePlan(), {}, torch.relu)(0, 64, BLOCK))
    assert not torch.equal(rows, router_start(UpcyclePlan(), {}, torch.relu)(1, 64, BLOCK))


@pytest.mark.parametrize("router", ["hidden-means", "clusters"])
def test_tokens_of_a_kind_share_an_expert(router: Any) -> None:
    texts = three_kinds()
    rows = router_start(UpcyclePlan(router=router), {0: texts}, torch.relu)(0, 3, BLOCK)
    chosen = [(text @ rows.T).argmax(1) for text in texts]
    shares = torch.stack([torch.bincount(of_text, minlength=3) for of_text in chosen]) / 40
    assert bool((shares.max(1).values > 0.9).all())
    assert len(set(shares.argmax(1).tolist())) == 3
    if router == "hidden-means":
        assert shares.argmax(1).tolist() == [0, 1, 2]  # a text for each expert


@pytest.mark.parametrize("router", ["hidden-means", "clusters"])
def test_logits_are_as_spread_as_those_of_a_random_router(router: Any) -> None:
    hidden = torch.cat(three_kinds())
    rows = router_start(UpcyclePlan(router=router), {0: [hidden]}, torch.relu)(0, 4, BLOCK)
    centred = hidden - hidden.mean(0)
    expected = 0.02 * hidden.norm(dim=1).square().mean().sqrt()
    assert float((centred @ rows.T).std()) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("router", ["hidden-means", "clusters"])
def test_equal_tokens_give_equal_logits(router: Any) -> None:
    rows = router_start(UpcyclePlan(router=router), {0: [torch.ones(8, 4)]}, torch.relu)(0, 4, BLOCK)
    assert not bool(rows.any())


def test_contributions_find_the_experts_that_matter_to_a_token() -> None:
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(400, 8, generator=draw).abs()  # so that what a neuron contributes is linear in it
    block = {
        "up": torch.randn(12, 8, generator=draw).abs(),
        "up_bias": torch.rand(12, generator=draw) / 10,
        "down": torch.randn(8, 12, generator=draw),
        "down_bias": torch.randn(8, generator=draw),
    }
    plan = UpcyclePlan(experts=4, method="split", router="contributions")
    rows = router_start(plan, {0: [hidden[:100], hidden[100:]]}, torch.relu)(0, 4, block)
    neurons = torch.relu(hidden @ block["up"].T + block["up_bias"])
    contributions = torch.stack(
        [
            sum(  # type: ignore[misc]
                neurons[:, place].abs() * block["down"][:, place].norm()
                for place in range(3 * expert, 3 * expert + 3)
            )
            for expert in range(4)
        ],
        1,
    )
    agree = (hidden @ rows.T).argmax(1) == contributions.argmax(1)
    assert float(agree.float().mean()) > 0.95


@pytest.mark.parametrize("router", ["hidden-means", "clusters"])
def test_too_few_tokens_are_told(router: Any) -> None:
    with pytest.raises(UsageError, match=r"sample text has 3 tokens, fewer than the 4"):
        router_start(UpcyclePlan(router=router), {0: [torch.ones(3, 4)]}, torch.relu)(0, 4, BLOCK)


def test_hidden_states_are_what_enters_the_block(dense: Dense, ids: Any) -> None:
    with loaded_model(dense("llama"), "AutoModelForCausalLM") as model:
        seen: list[Any] = []
        norm = model.model.layers[1].post_attention_layernorm
        handle = norm.register_forward_hook(lambda *parts: seen.append(parts[2][0]))
        texts = [[ids[:1, :20], ids[:1, 20:]], [ids[1:]]]
        hidden = hidden_states_of(model, architecture_of("llama"), [1], texts)
        handle.remove()
    assert [len(text) for text in hidden[1]] == [40, 40]
    torch.testing.assert_close(torch.cat(hidden[1]), torch.cat(seen))
    with loaded_model(dense("llama"), "AutoModelForCausalLM") as model:
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_sample_for_each_expert_starts_it(shared: Path, tmp_path: Path) -> None:
    from moe.interop.llama2c import import_llama2c
    from moe.upcycle.convert import upcycle

    stories = tmp_path / "stories"
    import_llama2c(shared / "models" / "stories260K.bin", shared / "models" / "tok512.bin", stories)
    samples = [
        "Once upon a time, there was a dog named Max. " * 3,
        "11111 2222 33333 4444 5555 66666 777 " * 3,
    ]
    report = upcycle(stories, tmp_path / "out", experts=2, router="hidden-means", sample=samples)
    assert report.exact
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for expert, sample in enumerate(samples):
        ids = torch.tensor([tokenizer(sample)["input_ids"][1:]])
        with torch.inference_mode():
            of_layers = model(ids, output_router_logits=True).router_logits
        shares = torch.stack([(layer.argmax(1) == expert).float().mean() for layer in of_layers])
        assert float(shares.mean()) > 0.8
