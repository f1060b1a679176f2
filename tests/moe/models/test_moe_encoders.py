"""BERT, DistilBERT and ModernBERT with experts: equal to the slow way, saved and loaded whole, padding left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import moe.models  # noqa: E402
from runtime.errors import UsageError  # noqa: E402
from tests.moe.models.small_encoders import (  # noqa: E402
    ARCHITECTURES,
    dense_model,
    moe_model,
    padded,
    shape_of,
    three_sequences,
)
from tests.oracles.slow_experts import SlowExperts  # noqa: E402

Model = Any


def layers_of(model: Model) -> Any:
    base = model.base_model
    if hasattr(base, "encoder"):
        return base.encoder.layer
    return base.transformer.layer if hasattr(base, "transformer") else base.layers


def put_slow_experts(dense: Model, sparse: Model, top_k: int) -> None:
    """Give a dense model all parameters of a sparse one, with the feed-forward blocks computed the slow way."""
    missing, unexpected = dense.load_state_dict(sparse.state_dict(), strict=False)
    assert all(".moe." in name for name in unexpected)
    of_blocks = ("intermediate.dense", "output.dense", "ffn.lin", "mlp.W")
    assert all(any(part in name for part in of_blocks) for name in missing)
    for index in sparse.config.moe_layers:
        layer, slow = layers_of(dense)[index], SlowExperts(layers_of(sparse)[index].moe, top_k)
        if hasattr(layer, "intermediate"):
            layer.intermediate, layer.output.dense = torch.nn.Identity(), slow
        elif hasattr(layer, "ffn"):
            layer.ffn = slow
        else:
            layer.mlp = slow


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [None, [0], [0, 1, 2, 3], []])
def test_logits_are_those_of_experts_computed_one_by_one(architecture: str, layers: list[int] | None) -> None:
    sparse = moe_model(architecture, moe_layers=layers, router_options={"top_k": 2})
    dense = dense_model(architecture)
    put_slow_experts(dense, sparse, top_k=2)
    batch = three_sequences()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        output = sparse(**batch, output_hidden_states=True)
        expected = dense(**batch, output_hidden_states=True)
    torch.testing.assert_close(output.logits[real], expected.logits[real], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "sparse_mixer"])
def test_a_saved_model_loads_as_it_was(architecture: str, tmp_path: Path) -> None:
    model = moe_model(architecture)
    model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    loaded, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    saved = model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in loaded.state_dict().items())
    batch = three_sequences()
    bare = transformers.AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
        assert torch.equal(loaded(**batch).logits, output.logits)
        assert torch.equal(bare(**batch).last_hidden_state, output.hidden_states[-1])
    bare.save_pretrained(tmp_path / "bare")
    again = transformers.AutoModel.from_pretrained(tmp_path / "bare")
    assert type(again) is type(bare)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in bare.state_dict().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", [{}, {"capacity_factor": 0.5}])
def test_padding_takes_no_part_in_routing(architecture: str, options: dict[str, Any]) -> None:
    model = moe_model(architecture, router_options=options)
    batch = three_sequences()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        output, further = model(**batch), model(**padded(batch, 6))
    assert len(output.routings) == 2
    for routing, other in zip(output.routings, further.routings, strict=True):
        assert routing.gates.num_rows == 9 + 5 + 3
        assert torch.equal(routing.gates.units, other.gates.units)
        assert routing.capacity == other.capacity
        torch.testing.assert_close(routing.losses, other.losses)
    torch.testing.assert_close(further.logits[:, :9][real], output.logits[real], rtol=1e-4, atol=1e-4)


def test_every_token_counts_without_a_mask() -> None:
    model, ids = moe_model("bert"), three_sequences()["input_ids"]
    with torch.no_grad():
        output, masked = model(input_ids=ids), model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert output.routings[0].gates.num_rows == ids.numel()
    assert torch.equal(output.logits, masked.logits)


def test_routers_see_ids_and_sequences() -> None:
    batch = three_sequences()
    hashed = moe_model("bert", router="hash", router_options={"vocabulary_size": 64})
    pooled = moe_model("bert", router="per_sequence")
    with torch.no_grad():
        by_id = hashed(**batch).routings[0].gates.units
        by_sequence = pooled(**batch).routings[0].gates.units
    ids = batch["input_ids"][batch["attention_mask"].bool()]
    assert torch.equal(by_id, layers_of(hashed)[1].moe.router.table[ids])
    assert [len(part.unique()) for part in by_sequence.split([9, 5, 3])] == [1, 1, 1]
    embedded = hashed.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(UsageError, match="ids"):
        hashed(inputs_embeds=embedded, attention_mask=batch["attention_mask"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_training_takes_in_what_routers_add(architecture: str) -> None:
    batch = three_sequences()
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    model = moe_model(architecture, router_losses={"load_balance": 0.5})
    dense = dense_model(architecture)
    put_slow_experts(dense, model, top_k=2)
    evaluated, trained = model(**batch, labels=labels), model.train()(**batch, labels=labels)
    torch.testing.assert_close(evaluated.loss, dense(**batch, labels=labels).loss, rtol=1e-4, atol=1e-4)
    added = sum(0.5 * routing.losses["load_balance"] for routing in trained.routings)
    assert added > 0
    torch.testing.assert_close(trained.router_loss, added)
    torch.testing.assert_close(trained.loss, evaluated.loss + added)
    trained.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_default_losses_are_those_that_the_router_has() -> None:
    batch = three_sequences()
    by_default = moe_model("bert")(**batch)
    expected = sum(0.01 * r.losses["load_balance"] + 0.001 * r.losses["z"] for r in by_default.routings)
    torch.testing.assert_close(by_default.router_loss, expected)
    assert moe_model("bert", moe_layers=[])(**batch).router_loss is None
    with pytest.raises(UsageError, match="router_losses names agreement, but the router has"):
        moe_model("bert", router_losses={"agreement": 1.0})(**batch)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "sparse_mixer"])
def test_checkpointing_changes_no_gradient(architecture: str) -> None:
    batch = three_sequences()
    plain, checkpointed = (moe_model(architecture).train() for _ in range(2))
    checkpointed.activation_checkpointing_enable()
    for model in (plain, checkpointed):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)
    checkpointed.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UsageError, match="use_reentrant=False"):
        checkpointed(**batch, labels=batch["input_ids"])


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "sparse_mixer"])
def test_routers_stay_in_float32(architecture: str, tmp_path: Path) -> None:
    model = moe_model(architecture)
    model.save_pretrained(tmp_path)
    half = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if ".router." in name else torch.bfloat16), name
    batch = three_sequences()
    with torch.no_grad():
        output = half(**batch)
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.isfinite().all()
    assert output.routings[0].scores.dtype == torch.float32


def test_a_mask_that_says_more_than_padding_is_refused() -> None:
    batch = three_sequences()
    model = moe_model("bert")
    with pytest.raises(UsageError, match=r"pass \[3, 9\]"):
        model(input_ids=batch["input_ids"], attention_mask=torch.zeros(3, 1, 9, 9))
    with pytest.raises(UsageError, match="25 tokens, but the model has 24 positions"):
        model(input_ids=torch.ones(1, 25, dtype=torch.long))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"moe_layers": [1, 4]}, "layers 0 to 3"),
        ({"moe_layers": [2, 1]}, "ascending"),
        ({"moe_layers": [1, 1]}, "distinct"),
        ({"is_decoder": True}, "encoder"),
        (
            {"router": "task_aware", "router_options": {"num_tasks": 2}},
            "'task_aware', which needs the task of each",
        ),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        moe.models.MoeBertConfig(**shape_of("bert"), **fields)


def test_dropout_inside_experts_is_refused() -> None:
    with pytest.raises(UsageError, match="mlp_dropout"):
        moe.models.MoeModernBertConfig(**shape_of("modernbert"), mlp_dropout=0.1)


def test_nothing_of_a_pass_is_kept_in_the_model() -> None:
    model, batch = moe_model("bert"), three_sequences()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    model(**batch)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(vars(module)[attribute] is value for attribute, value in before[name].items())


def test_tuples_are_returned_where_asked_for() -> None:
    model, batch = moe_model("bert"), three_sequences()
    with torch.no_grad():
        assert torch.equal(model(**batch, return_dict=False)[0], model(**batch).logits)
