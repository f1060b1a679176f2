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


def three_kinds() -> Any:
    """Hidden states of three kinds, 40 tokens each, in a space of 16."""
    draw = torch.Generator().manual_seed(0)
    return [4 * torch.eye(16)[kind] + torch.randn(40, 16, generator=draw) + 2 for kind in range(3)]


def test_a_random_router_has_the_deviation_of_the_paper() -> None:
    rows = router_start(UpcyclePlan(), {})(0, 64, 512)
    assert float(rows.std()) == pytest.approx(0.02, rel=0.02)
    assert torch.equal(rows, router_start(UpcyclePlan(), {})(0, 64, 512))
    assert not torch.equal(rows, router_start(UpcyclePlan(), {})(1, 64, 512))


@pytest.mark.parametrize("router", ["hidden-means", "clusters"])
def test_tokens_of_a_kind_share_an_expert(router: Any) -> None:
    texts = three_kinds()
    rows = router_start(UpcyclePlan(router=router), {0: texts})(0, 3, 16)
    chosen = [(text @ rows.T).argmax(1) for text in texts]
    shares = torch.stack([torch.bincount(of_text, minlength=3) for of_text in chosen]) / 40
    assert bool((shares.max(1).values > 0.9).all())
    assert len(set(shares.argmax(1).tolist())) == 3
    if router == "hidden-means":
        assert shares.argmax(1).tolist() == [0, 1, 2]  # a text for each expert


@pytest.mark.parametrize("router", ["hidden-means", "clusters"])
def test_logits_are_as_spread_as_those_of_a_random_router(router: Any) -> None:
    hidden = torch.cat(three_kinds())
    rows = router_start(UpcyclePlan(router=router), {0: [hidden]})(0, 4, 16)
    centred = hidden - hidden.mean(0)
    expected = 0.02 * hidden.norm(dim=1).square().mean().sqrt()
    assert float((centred @ rows.T).std()) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("router", ["hidden-means", "clusters"])
def test_equal_tokens_give_equal_logits(router: Any) -> None:
    rows = router_start(UpcyclePlan(router=router), {0: [torch.ones(8, 4)]})(0, 4, 4)
    assert not bool(rows.any())


@pytest.mark.parametrize("router", ["hidden-means", "clusters"])
def test_too_few_tokens_are_told(router: Any) -> None:
    with pytest.raises(UsageError, match=r"sample text has 3 tokens, fewer than the 4"):
        router_start(UpcyclePlan(router=router), {0: [torch.ones(3, 4)]})(0, 4, 4)


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
