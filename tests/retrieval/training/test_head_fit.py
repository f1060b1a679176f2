"""A head in closed form makes a lexical encoder of a transformer that never had one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from retrieval.training.head_fit import fit_head
from runtime.errors import UsageError

MakeModel = Callable[..., Path]
WORDS = ["vaccines", "train", "the", "immune", "system", "and", "virus", "in", "cell", "of", "body", "work"]


def some_texts(count: int) -> list[str]:
    picks = torch.randint(len(WORDS), (count, 12), generator=torch.Generator().manual_seed(0))
    return [" ".join(WORDS[i] for i in row) for row in picks.tolist()]


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_states_light_up_their_own_tokens(make_language_model: MakeModel, architecture: str) -> None:
    folder = make_language_model(architecture)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = some_texts(120)
    fit = fit_head(model, tokenizer, texts)
    assert fit.tokens >= 120 * 12
    # Of some eighty terms; the model is random and mixes its tokens well.
    assert fit.first > 0.15
    assert fit.lit < 40
    inputs = tokenizer(some_texts(130)[120:], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
    own = logits.gather(2, inputs["input_ids"][..., None])[:, 1:-1, 0]
    others = logits[:, 1:-1].mean(-1)
    assert (own > others).float().mean() > 0.85  # of texts that it was not fitted on
    assert fit.own_logit == pytest.approx(6, abs=0.01)
    assert model.get_output_embeddings().bias.unique().tolist() == [-6.0]


def test_with_meaning_a_text_lights_up_terms_of_like_states(make_language_model: MakeModel) -> None:
    """Logits of terms that a text lacks go with how near the mean states of text and term are."""
    folder = make_language_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    terms = [tokenizer.convert_tokens_to_ids(word) for word in WORDS]
    found = []
    for meaning in (0.0, 1.0, 4.0, 50.0):
        model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        fit_head(model, tokenizer, some_texts(120), meaning=meaning)
        with torch.inference_mode():
            alone = torch.stack(
                [
                    model.base_model(**tokenizer(word, return_tensors="pt")).last_hidden_state[0].mean(0)
                    for word in WORDS
                ]
            )
            inputs = tokenizer("vaccines train the immune system", return_tensors="pt")
            mean = model.base_model(**inputs).last_hidden_state[0].mean(0)
            logits = model(**inputs).logits[0].mean(0)[terms]
        centred = torch.nn.functional.normalize(alone - alone.mean(0), dim=1)
        near = centred @ (mean - alone.mean(0))
        found.append(float(torch.corrcoef(torch.stack([near, logits]))[0, 1]))
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.1


def test_too_little_text_is_refused(make_language_model: MakeModel) -> None:
    folder = make_language_model()
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with pytest.raises(UsageError, match="have 12 tokens"):
        fit_head(model, AutoTokenizer.from_pretrained(folder), some_texts(1))


def test_a_head_of_other_parts_is_refused(make_language_model: MakeModel) -> None:
    folder = make_language_model()
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    model.cls.predictions.transform.dense = torch.nn.Identity()
    with pytest.raises(UsageError, match="the head of a bert model is not"):
        fit_head(model, AutoTokenizer.from_pretrained(folder), some_texts(50))
