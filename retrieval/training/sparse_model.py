"""SPLADE and inference-free encoders as torch modules, to be trained: texts to dense rows of term weights.

What a training wants of a model is `TrainableEncoder`; `retrieval.encoders.token_weight_model` is one, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.catalogue import ENCODER_FILE
from retrieval.encoders.language_model_folder import load_language_model, load_tokenizer, quiet
from retrieval.encoders.masked_language_model import DecoderInput
from retrieval.encoders.token_batches import token_batches
from retrieval.encoders.token_inputs import Tokens, chosen, padded, tokenize, usable_positions
from retrieval.encoders.vocabulary_head import Activation
from retrieval.training.expanded_terms import ExpandedTerms
from retrieval.training.save_tokenizer import save_tokenizer
from retrieval.training.training_head import max_pooled_terms
from runtime.activations import SparseActivations
from runtime.errors import UsageError

CPU_TOKENS, DEVICE_TOKENS = 2048, 65536
"""Tokens, padding included, that a transformer reads at once. Texts of like length go together: less padding."""


class TrainableEncoder(Protocol):
    """What a training needs of a model: `torch.nn.Module` with both sides of an encoder."""

    def tokenize_queries(self, texts: Sequence[str]) -> Tokens: ...

    def tokenize_passages(self, texts: Sequence[str]) -> Tokens: ...

    def encode_queries(self, tokens: Tokens) -> Tensor:
        """float32 ``[rows, terms]``, all ≥ 0, with gradients."""
        ...

    def encode_passages(self, tokens: Tokens) -> Tensor:
        """As `encode_queries`, over the same terms."""
        ...

    def save(self, folder: Path) -> None:
        """Write an encoder folder, which `SparseEncoder.load` reads."""
        ...


class TermModel(nn.Module):
    """A masked language model that gives term weights, through the fused head.

    Args:
        folder: as `load_language_model` reads it.
        activation: of logits.
        device: of torch.

    Raises:
        FormatError: the folder holds no masked language model.
        UsageError: its head does not end in a plain linear decoder.
    """

    def __init__(self, folder: Path, activation: Activation, device: torch.device) -> None:
        super().__init__()
        self.activation, self.device = activation, device
        self.language_model = load_language_model(folder).to(device)
        self.tokenizer = load_tokenizer(folder, False, int(self.language_model.config.vocab_size))
        self.positions = usable_positions(self.language_model)
        decoder = self.language_model.get_output_embeddings()
        names = [name for name, module in self.language_model.named_modules() if module is decoder]
        if not isinstance(decoder, nn.Linear) or not names:
            raise UsageError(f"{folder} does not end in a plain linear decoder, which training needs")
        self._decoder_name, self.num_terms = names[0], decoder.out_features
        self._removed = [decoder]  # in a list: its parameters are registered once, in its stand-in
        self._require_plain(decoder, folder)

    def _require_plain(self, decoder: nn.Linear, folder: Path) -> None:
        inputs = {"input_ids": torch.tensor([[1, 2, 3]], device=self.device)}
        with torch.inference_mode():
            logits = self.language_model(**inputs).logits
            self.language_model.set_submodule(self._decoder_name, DecoderInput(decoder))
            hidden = self.language_model(**inputs).logits
            plain = hidden.shape[-1] == decoder.in_features and torch.allclose(
                decoder(hidden), logits, rtol=1e-4, atol=1e-4
            )
        if not plain:
            raise UsageError(f"{folder} changes logits after its decoder, which training does not know")

    @property
    def decoder(self) -> DecoderInput:
        found: Any = self.language_model.get_submodule(self._decoder_name)
        return found

    def freeze(self, layers: int) -> None:
        """Leave the embeddings and the first `layers` layers as they are.

        Raises:
            UsageError: the transformer has fewer.
        """
        body = self.language_model.base_model
        stacks = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
        stack = max(stacks, key=len, default=nn.ModuleList())
        if len(stack) < layers:
            raise UsageError(f"frozen_layers is {layers}, but the transformer has {len(stack)} layers")
        trained = {id(parameter) for layer in stack[layers:] for parameter in layer.parameters()}
        for parameter in body.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    def tokens_of(self, texts: Sequence[str], max_length: int) -> Tokens:
        return tokenize(self.tokenizer, texts, min(max_length, self.positions))

    def forward(self, tokens: Tokens, terms: Tensor | None = None) -> Tensor:
        """float32 ``[rows, terms]``.

        Args:
            terms: int64, ascending; only their weights are computed, and all others are 0.
        """
        lengths = [len(ids) for ids in tokens["input_ids"]]
        budget = CPU_TOKENS if self.device.type == "cpu" else DEVICE_TOKENS
        hidden, order = [], []
        for rows in token_batches(lengths, budget, len(lengths)):
            inputs = padded(chosen(tokens, rows.tolist()), self.tokenizer.pad_token_id or 0, self.device)
            hidden.append(self.language_model(**inputs).logits[inputs["attention_mask"].bool()])
            order += rows.tolist()
        weight: Tensor = self.decoder.weight
        bias: Tensor | None = self.decoder.bias
        if terms is not None:
            weight, bias = weight[terms], None if bias is None else bias[terms]
        found = max_pooled_terms(
            torch.cat(hidden), [lengths[row] for row in order], weight, bias, self.activation
        )
        found = found[torch.from_numpy(np.argsort(order)).to(self.device)]
        if terms is None:
            return found
        return found.new_zeros(len(found), self.num_terms).index_copy(1, terms, found)

    def save(self, transformer: Path, pooling: Path, max_length: int) -> None:
        """Write the model's files and settings, the decoder back in its place."""
        transformer.mkdir(parents=True, exist_ok=True)
        standing = self.decoder
        self.language_model.set_submodule(self._decoder_name, self._removed[0])
        try:
            with quiet():
                self.language_model.save_pretrained(transformer)
        finally:
            self.language_model.set_submodule(self._decoder_name, standing)
        save_tokenizer(self.tokenizer, transformer)
        route = st_folder.SpladeRoute(transformer, "max", self.activation, max_length)
        st_folder.write_splade_settings(route, transformer, pooling, self.num_terms)


class QueryWeights(nn.Module):
    """Queries without a model: the distinct tokens of a query, each with its weight.

    Args:
        tokenizer: of the passages' model; special tokens are left out.
        weights: float32 ``[terms]`` at first.
        learned: whether they are trained.
        counted: whether repeated tokens weigh more, as `QueryTable.encode` has it.
    """

    def __init__(self, tokenizer: Any, weights: Tensor, learned: bool, counted: bool = False) -> None:
        super().__init__()
        self.tokenizer, self._counted = tokenizer, counted
        self.weight = nn.Parameter(weights, requires_grad=learned)

    def tokens_of(self, texts: Sequence[str], max_length: int) -> Tokens:
        ids = self.tokenizer(
            list(texts), add_special_tokens=False, truncation=True, max_length=max_length,
            return_attention_mask=False,
        )["input_ids"]  # fmt: skip
        return {"input_ids": ids}

    def forward(self, tokens: Tokens) -> Tensor:
        """float32 ``[rows, terms]``."""
        rows = tokens["input_ids"]
        lit = torch.zeros(len(rows), len(self.weight))
        at = [(row, unit) for row, ids in enumerate(rows) for unit in ids if unit < len(self.weight)]
        if at:
            lit.index_put_(tuple(torch.tensor(at).t()), torch.ones(len(at)), accumulate=True)
        lit = torch.where(lit > 0, 1 + lit.log(), 0.0) if self._counted else lit.clamp(max=1.0)
        return lit.to(self.weight.device) * self.weight.relu()

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(self.tokenizer, folder)
        save_file(
            {"weight": self.weight.detach().relu().float().cpu().contiguous()}, folder / st_folder.WEIGHTS
        )
        (folder / "config.json").write_text('{"frozen": false}\n', "utf-8")


class ExpandedQueries(QueryWeights):
    """Queries of a training set by a table and by what directions of the dense vectors give them, which is fixed.

    Args:
        tokenizer, weights, learned: of `QueryWeights`.
        texts: all that will be asked for. Two that are cut to the same tokens are one.
        max_length: tokens of a query.
        meanings: what the directions give the texts.
    """

    def __init__(
        self,
        tokenizer: Any,
        weights: Tensor,
        learned: bool,
        texts: Sequence[str],
        max_length: int,
        meanings: SparseActivations,
    ) -> None:
        super().__init__(tokenizer, weights, learned, counted=True)
        self._rows = {
            tuple(ids): row for row, ids in enumerate(self.tokens_of(texts, max_length)["input_ids"])
        }
        self._meanings = meanings

    def forward(self, tokens: Tokens) -> Tensor:
        rows = np.array([self._rows[tuple(ids)] for ids in tokens["input_ids"]], np.int64)
        found = super().forward(tokens)
        return found + torch.from_numpy(np.asarray(self._meanings[rows].to_dense())).to(found.device)


class SparseModel(nn.Module):
    """An encoder with one model for both sides, one for each, or a table for queries.

    Args:
        passages: the model of passages.
        queries: that of queries; None shares that of passages.
        max_query_length, max_passage_length: tokens, special ones included.
    """

    def __init__(
        self,
        passages: TermModel | ExpandedTerms,
        queries: TermModel | QueryWeights | None,
        max_query_length: int,
        max_passage_length: int,
    ) -> None:
        super().__init__()
        self.passages, self.queries = passages, queries
        self.max_query_length, self.max_passage_length = max_query_length, max_passage_length

    @property
    def device(self) -> torch.device:
        return self.passages.device

    @property
    def fixed_terms(self) -> Tensor | None:
        """int64 ``[n]``, terms that queries may have whatever their tokens; None where there are none."""
        return self.passages.fixed_terms if isinstance(self.passages, ExpandedTerms) else None

    def tokenize_queries(self, texts: Sequence[str]) -> Tokens:
        model = self.queries or self.passages
        return model.tokens_of(texts, self.max_query_length)

    def tokenize_passages(self, texts: Sequence[str]) -> Tokens:
        return self.passages.tokens_of(texts, self.max_passage_length)

    def encode_queries(self, tokens: Tokens, terms: Tensor | None = None) -> Tensor:
        """float32 ``[rows, terms]``; of `terms` alone, where they are given and computing the others costs."""
        model = self.queries or self.passages
        found: Tensor = model(tokens) if isinstance(model, QueryWeights) else model(tokens, terms)
        return found

    def encode_passages(self, tokens: Tokens, terms: Tensor | None = None) -> Tensor:
        """As `encode_queries`."""
        found: Tensor = self.passages(tokens, terms)
        return found

    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder (version 5 module paths, which version 6 reads too)."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.queries is None:
            # one model has one limit; what was learned for queries holds for shorter texts alike
            self.passages.save(folder, folder / "1_SpladePooling", self.max_passage_length)
            st_folder.write_modules(folder)
            family = "splade"
        else:
            routes = {"document": ["document_0_MLMTransformer", "document_1_SpladePooling"]}
            transformer, pooling = (folder / name for name in routes["document"])
            self.passages.save(transformer, pooling, self.max_passage_length)
            if isinstance(self.passages, ExpandedTerms):
                routes["document"].append("document_2_TermExpansion")
                self.passages.expansion().save(folder / routes["document"][-1])
            if isinstance(self.queries, QueryWeights):
                family = "expanded_queries" if isinstance(self.queries, ExpandedQueries) else "inference_free"
                routes["query"] = ["query_0_SparseStaticEmbedding"]
                self.queries.save(folder / routes["query"][0])
            else:
                routes["query"], family = ["query_0_MLMTransformer", "query_1_SpladePooling"], "splade"
                transformer, pooling = (folder / name for name in routes["query"])
                self.queries.save(transformer, pooling, self.max_query_length)
            st_folder.write_router(folder, routes)
        st_folder.write_config(folder, {"query": "", "document": ""}, None)
        (folder / ENCODER_FILE).write_text(json.dumps({"family": family}) + "\n", "utf-8")


def inverse_document_frequency(
    tokenizer: Any, passages: Sequence[str], num_terms: int
) -> NDArray[np.float32]:
    """``log(1 + (N - n_j + 1/2) / (n_j + 1/2))`` of each token, in ``N`` passages of which `n_j` have it.

    Returns:
        float32 ``[terms]``; 0 for special tokens and for what no tokenizer gives.
    """
    frequency = np.zeros(num_terms, np.int64)
    for start in range(0, len(passages), 1024):
        encoded = tokenizer(
            list(passages[start : start + 1024]),
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,  # of texts longer than the model reads
        )
        for ids in encoded["input_ids"]:
            units = np.unique(np.asarray(ids, np.int64))
            frequency[units[units < num_terms]] += 1
    idf = np.log1p((len(passages) - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
    idf[[unit for unit in tokenizer.all_special_ids if unit < num_terms]] = 0.0
    idf[len(tokenizer) :] = 0.0
    return idf
