"""SPLADE encoders: vectors, order, limits, precision, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM, AutoTokenizer

from retrieval.encoders.bfloat16 import (
    BFLOAT16_ERROR,
    choose_dtype,
    processor_has_bfloat16,
    read_cpu_flags,
    vector_error,
)
from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.masked_language_model import MaskedLanguageModel
from retrieval.encoders.splade import SpladeEncoder
from retrieval.encoders.subword_vocabulary import SubwordVocabulary
from retrieval.encoders.token_batches import token_batches
from retrieval.encoders.vocabulary_head import plain_pooled_terms
from runtime.activations import SparseActivations
from runtime.errors import FormatError, LexpertError, NotFoundError, UsageError

MakeModel = Callable[..., Path]


def dense(rows: SparseActivations) -> np.ndarray:
    table = np.zeros((rows.num_rows, rows.num_units), np.float32)
    for row, (units, weights) in enumerate(rows):
        table[row, units] = weights
    return table


def assert_well_formed(rows: SparseActivations) -> None:
    assert rows.weights.dtype == np.float32
    assert (rows.weights > 0).all()
    for units, _ in rows:
        assert (np.diff(units) > 0).all()


def plain(folder: Path, text: str, pooling: str = "max", activation: str = "relu") -> np.ndarray:
    """The formula with transformers alone, one text at a time, without padding."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True, max_length=38)
    with torch.inference_mode():
        logits = model(**inputs).logits
    return plain_pooled_terms(logits, inputs["attention_mask"], pooling, activation)[0].numpy()


@pytest.mark.parametrize(
    ("architecture", "fused"),
    [
        ("bert", True),
        ("distilbert", True),
        ("roberta", True),
        ("modernbert", True),
        ("albert", True),
        ("mobilebert", False),
    ],
)
def test_every_architecture_gives_the_plain_formula(
    make_language_model: MakeModel, texts: list[str], architecture: str, fused: bool
) -> None:
    folder = make_language_model(architecture)
    encoder = SparseEncoder.load(folder, max_length=38)
    assert isinstance(encoder, SpladeEncoder)
    assert encoder.queries.model.fused is fused
    vectors = encoder.encode_documents(texts)
    assert_well_formed(vectors)
    expected = np.stack([plain(folder, text) for text in texts])
    np.testing.assert_allclose(dense(vectors), expected, rtol=1e-5, atol=1e-5)
    assert vectors.nnz > 0


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_the_head_is_the_plain_formula_of_the_same_batch(
    make_language_model: MakeModel, texts: list[str], architecture: str, pooling: Literal["max", "sum"]
) -> None:
    # Padding changes what the transformer computes by more than this, with and without the fused head.
    folder = make_language_model(architecture)
    model = MaskedLanguageModel(folder, device="cpu", dtype="float32")
    whole = AutoModelForMaskedLM.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(
        texts, return_tensors="pt", truncation=True, max_length=38, padding=True, return_token_type_ids=False
    )
    mask = inputs["attention_mask"]
    tokens = [row[kept.bool()].tolist() for row, kept in zip(inputs["input_ids"], mask, strict=True)]
    with torch.inference_mode():
        plain_rows = plain_pooled_terms(whole(**inputs).logits, mask, pooling, "relu")
    fused = model.weigh({"input_ids": tokens}, pooling, "relu")
    torch.testing.assert_close(fused, plain_rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_pooling_and_activation_can_be_given_for_a_plain_folder(
    make_language_model: MakeModel, texts: list[str], pooling: str, activation: str
) -> None:
    folder = make_language_model()
    encoder = SparseEncoder.load(folder, pooling=pooling, activation=activation)
    expected = plain(folder, texts[0], pooling, activation)
    np.testing.assert_allclose(dense(encoder.encode_queries(texts[:1]))[0], expected, rtol=1e-5, atol=1e-5)


def test_output_order_is_input_order_whatever_the_batches(
    make_language_model: MakeModel, texts: list[str]
) -> None:
    one_by_one = SparseEncoder.load(make_language_model(), token_budget=1)
    together = SparseEncoder.load(make_language_model(), token_budget=10_000)
    many = [text for text in texts for _ in range(3)] + ["", " \n"] + texts[::-1]
    done: list[int] = []
    left = one_by_one.encode_documents(many, done.append)
    right = together.encode_documents(many)
    np.testing.assert_allclose(dense(left), dense(right), rtol=1e-5, atol=1e-5)
    assert sum(done) == len(many)


def test_an_empty_text_lights_up_nothing(make_language_model: MakeModel) -> None:
    encoder = SparseEncoder.load(make_language_model())
    assert encoder.encode_documents(["", "  \t\n", "virus"]).indptr.tolist()[:3] == [0, 0, 0]
    assert encoder.encode_queries([]).num_rows == 0
    assert encoder.encode_documents([""]).nnz == 0


def test_max_active_dims_keeps_the_heaviest_terms(make_language_model: MakeModel, texts: list[str]) -> None:
    full = SparseEncoder.load(make_language_model()).encode_documents(texts)
    cut = SparseEncoder.load(make_language_model(), max_active_dims=4).encode_documents(texts)
    assert_well_formed(cut)
    for (units, weights), (kept_units, kept_weights) in zip(full, cut, strict=True):
        assert len(kept_units) == min(4, len(units))
        assert kept_weights.min() == np.sort(weights)[-len(kept_units)]
        assert (
            dict(zip(units, weights, strict=True)).items()
            >= dict(zip(kept_units, kept_weights, strict=True)).items()
        )


def test_no_text_is_longer_than_the_positions_of_the_model(make_language_model: MakeModel) -> None:
    for architecture in ("bert", "roberta"):
        encoder = SparseEncoder.load(make_language_model(architecture), max_length=10_000)
        assert encoder.encode_documents(["virus " * 500]).nnz > 0


def test_the_saved_folder_gives_the_same_vectors_and_fingerprint(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    encoder = SparseEncoder.load(
        make_language_model(), pooling="sum", activation="log1p_relu", max_length=12, max_active_dims=9
    )
    encoder.save(tmp_path / "saved")
    again = SparseEncoder.load(tmp_path / "saved")
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(dense(again.encode_queries(texts)), dense(encoder.encode_queries(texts)))
    with pytest.raises(UsageError, match="another folder"):
        again.save(tmp_path / "saved")


def test_what_an_index_carries_remembers_the_options(make_language_model: MakeModel, tmp_path: Path) -> None:
    encoder = SparseEncoder.load(make_language_model(), max_length=12, token_budget=100)
    encoder.save_for_search(tmp_path / "reference")
    again = SparseEncoder.load(tmp_path / "reference")
    assert again.fingerprint == encoder.fingerprint
    assert not list(tmp_path.rglob("*.safetensors"))


def test_fingerprint_changes_with_weights_settings_and_tokenizer(
    make_language_model: MakeModel, tmp_path: Path
) -> None:
    source = make_language_model()
    shutil.copytree(source, tmp_path / "copy")
    original = SparseEncoder.load(source).fingerprint
    assert len(bytes.fromhex(original)) == 32
    assert SparseEncoder.load(tmp_path / "copy").fingerprint == original
    assert SparseEncoder.load(source, dtype="float32", token_budget=9).fingerprint == original
    others = {
        SparseEncoder.load(source, pooling="sum").fingerprint,
        SparseEncoder.load(source, max_length=7).fingerprint,
        SparseEncoder.load(make_language_model(seed=1)).fingerprint,
    }
    config = tmp_path / "copy" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 33}))
    others.add(SparseEncoder.load(tmp_path / "copy").fingerprint)
    assert len(others | {original}) == 5


def test_vocabulary_names_every_unit(make_language_model: MakeModel) -> None:
    vocabulary = SparseEncoder.load(make_language_model()).vocabulary
    terms = [vocabulary.term(unit) for unit in range(len(vocabulary))]
    assert "vaccines" in terms
    assert vocabulary.find(terms) == list(range(len(vocabulary)))
    assert vocabulary.find(["no such term"]) == [-1]


def test_units_beyond_the_tokenizer_have_a_name() -> None:
    vocabulary = SubwordVocabulary({"a": 0, "b": 2, "beyond": 9}, 4)
    assert [vocabulary.term(unit) for unit in range(4)] == ["a", "[unit 1]", "b", "[unit 3]"]
    assert vocabulary.find(["[unit 3]", "beyond"]) == [3, -1]


def test_pickled_weights_are_refused(make_language_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(make_language_model(), folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"convert pytorch_model\.bin to safetensors"):
        SparseEncoder.load(folder)


def test_a_model_without_vocabulary_head_is_refused(make_language_model: MakeModel, tmp_path: Path) -> None:
    from transformers import AutoModel

    AutoModel.from_pretrained(make_language_model()).save_pretrained(tmp_path)
    with pytest.raises(FormatError, match="vocabulary head"):
        SparseEncoder.load(tmp_path)


def test_a_model_without_its_tokenizer_is_refused(make_language_model: MakeModel, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(make_language_model())
    model.save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=r"has no tokenizer \(tokenizer\.json, vocab\.txt"):
        SparseEncoder.load(tmp_path)
    shutil.copyfile(make_language_model() / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    with pytest.raises(FormatError, match="has no tokenizer"):
        SparseEncoder.load(tmp_path)


def test_the_tokenizer_of_a_far_smaller_model_is_refused(
    make_language_model: MakeModel, tmp_path: Path
) -> None:
    shutil.copytree(make_language_model(), tmp_path / "model")
    config = AutoModelForMaskedLM.from_pretrained(make_language_model()).config
    tokens = len(AutoTokenizer.from_pretrained(make_language_model()))
    for num_terms in (tokens + 64 - tokens % 64, 2 * tokens + 1):
        config.vocab_size = num_terms
        AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "model")
        if num_terms <= 2 * tokens:
            assert len(SparseEncoder.load(tmp_path / "model").vocabulary) == num_terms
        else:
            with pytest.raises(FormatError, match=f"has {tokens} tokens for a model of {num_terms} terms"):
                SparseEncoder.load(tmp_path / "model")


def test_damaged_weights_are_a_format_error(make_language_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(make_language_model(), folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(FormatError, match="cannot be loaded"):
        SparseEncoder.load(folder)


def test_weights_that_give_nan_are_an_error(make_language_model: MakeModel, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(make_language_model())
    with torch.no_grad():
        model.get_output_embeddings().bias[3] = float("nan")
    shutil.copytree(make_language_model(), tmp_path / "nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(LexpertError, match="NaN"):
        SparseEncoder.load(tmp_path / "nan").encode_queries(["virus"])


def test_code_from_outside_is_not_run(make_language_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(make_language_model(), folder)
    module = {"idx": 0, "name": "0", "path": "", "type": "modeling_own.OwnTransformer"}
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(FormatError, match="not run"):
        SparseEncoder.load(folder)
    module["type"], module["path"] = "sentence_transformers.models.Transformer", "../elsewhere"
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(FormatError, match="outside"):
        SparseEncoder.load(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"colour": "red"}, "no option 'colour'"),
        ({"max_length": 0}, "max_length must be a whole number"),
        ({"dtype": "float16"}, "dtype must be one of auto, float32, bfloat16"),
        ({"pooling": "mean"}, "pooling must be one of max, sum"),
    ],
)
def test_wrong_options_are_named(make_language_model: MakeModel, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SparseEncoder.load(make_language_model(), **options)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no encoder folder"):
        SpladeEncoder.from_folder(tmp_path / "nowhere")


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 40)), st.integers(1, 100), st.integers(1, 8))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int, rows: int) -> None:
    batches = [batch.tolist() for batch in token_batches(lengths, budget, rows)]
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget
    longest = [max(lengths[place] for place in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_bfloat16_is_for_processors_that_have_it(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert processor_has_bfloat16(cpu, frozenset({"avx2", "avx512_bf16"}))
    assert processor_has_bfloat16(cpu, frozenset({"amx_bf16"}))
    assert not processor_has_bfloat16(cpu, frozenset({"avx2", "avx512f"}))
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\n")
    assert read_cpu_flags(cpuinfo) == {"fpu", "avx2", "amx_bf16"}
    assert read_cpu_flags(tmp_path / "none") == frozenset()


def test_bfloat16_is_taken_only_within_the_stated_error() -> None:
    exact = torch.tensor([[3.0, 4.0], [0.0, 0.0]])

    def probe(error: float) -> Callable[[torch.dtype], torch.Tensor]:
        return lambda dtype: exact if dtype == torch.float32 else exact * (1 + error)

    assert choose_dtype("auto", True, probe(BFLOAT16_ERROR / 2)) == torch.bfloat16
    assert choose_dtype("auto", True, probe(BFLOAT16_ERROR * 2)) == torch.float32
    assert choose_dtype("auto", True, probe(float("nan"))) == torch.float32
    assert choose_dtype("auto", False, probe(0.0)) == torch.float32
    assert choose_dtype("bfloat16", False, probe(9.0)) == torch.bfloat16
    assert vector_error(exact * 1.5, exact) == pytest.approx(0.5)


def test_bfloat16_vectors_stay_close(make_language_model: MakeModel, texts: list[str]) -> None:
    rough = SparseEncoder.load(make_language_model(), dtype="bfloat16")
    assert isinstance(rough, SpladeEncoder)
    assert rough.queries.model.dtype == torch.bfloat16
    exact = SparseEncoder.load(make_language_model())
    left, right = dense(rough.encode_queries(texts)), dense(exact.encode_queries(texts))
    assert vector_error(torch.from_numpy(left), torch.from_numpy(right)) < 0.1


def test_tokens_are_counted_as_the_model_reads_them(make_language_model: MakeModel, texts: list[str]) -> None:
    folder = make_language_model()
    encoder = SparseEncoder.load(folder, max_length=5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = [min(len(tokenizer(text)["input_ids"]), 5) for text in texts]
    assert encoder.token_lengths(texts) == lengths
    assert encoder.count_tokens(texts) == sum(lengths)
    assert encoder.count_tokens([]) == 0
