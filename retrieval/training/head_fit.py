"""A vocabulary head in closed form: what a token's last hidden state says about the token itself.

A transformer that was trained without a vocabulary head, as dense encoders are, still tells its tokens apart in its
last hidden states. The head's hidden layer is fitted so that a state points at the embedding of its own token: ridge
regression of whitened embeddings on states. The logits of ``transform(state) · embeddings + bias`` are then highest
for the token itself and its inflections, without a step of training; with maximum pooling that is a lexical encoder
already, and training goes on from there.

The states of a dense encoder that pools by the mean hold more: their mean points where the meaning of the text lies.
With a share of meaning, a state also points at the embeddings of terms that are near it in meaning: embeddings are
mapped to what the transformer makes of their terms alone, by least squares, and the state is projected the same way.
That is what lets a passage light up words that it does not have.

A head is *linear layer, activation, layer norm, decoder*. The layer norm takes away the mean of its inputs, so adding
a constant to all of them changes nothing but where they meet the activation; with `OFFSET` they lie where GELU and its
kin are nearly the identity, and the head is a linear map to unit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrieval.encoders.token_batches import token_batches
from retrieval.encoders.token_inputs import chosen, padded, tokenize, usable_positions
from retrieval.training.term_vectors import term_vectors
from runtime.errors import UsageError

OFFSET = 5.0
"""Standard deviations of the hidden layer between its mean and 0: GELU(x) = x there, but for parts in a thousand."""

RIDGE = 0.1
"""Of the mean variance of a state's values."""

WHITENING = 0.5
"""Power of the embeddings' covariance that is divided by: 0 points at embeddings as they are, 1 takes away all that
they have in common."""

OWN_LOGIT = 12.0
"""Mean logit of a token for its own state before the decoder's bias: what the layer norm's weight is set for. BERT's
embeddings give nearly that by themselves."""

TOKENS_PER_BATCH = 2048


@dataclass(frozen=True, slots=True)
class HeadFit:
    """What a fit found.

    Attributes:
        tokens: that it used; the rest is measured on the first 4,096 of them.
        own_logit: mean logit of a token for its own state, the decoder's bias included.
        first: share of the tokens whose own logit is the highest of all.
        lit: mean number of terms above 0 of a token.
    """

    tokens: int
    own_logit: float
    first: float
    lit: float


def fit_head(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    threshold: float = 6.0,
    meaning: float = 0.0,
    max_tokens: int = 100_000,
    max_length: int = 128,
) -> HeadFit:
    """Fit the head of a ``*ForMaskedLM`` model in place.

    Args:
        model: its head has one square linear layer, a layer norm with a weight, and a linear decoder with a bias.
        texts: plain text, read from the first on.
        threshold: negated bias of the decoder: what a logit must be above to light up a term. Own tokens have
            `OWN_LOGIT` on average; with MiniLM and BERT's vocabulary, their inflections have 8 to 12 and related
            words 6 to 9.
        meaning: how much of the hidden layer is made of meaning, beside 1 of own tokens; for a model that gives dense
            vectors by the mean of its states.
        max_tokens: that are used.
        max_length: of a text, in tokens.

    Raises:
        UsageError: the head has other parts, or the texts have fewer tokens than a state has values.
    """
    layer, norm, decoder = _parts(model)
    states, own = _states(model, tokenizer, texts, max_tokens, max_length)
    width = states.shape[1]
    if len(states) <= width:
        raise UsageError(
            f"the texts have {len(states)} tokens, and fitting a head of width {width} needs more; give more text"
        )
    embeddings = decoder.weight.detach().cpu().double()
    used = own.unique()
    common = embeddings[used].mean(0)
    centred = embeddings - common
    values, vectors = torch.linalg.eigh(centred[used].T @ centred[used] / len(used))
    floor = 1e-3 * values.mean()
    whiten = vectors @ torch.diag((values.clamp(min=0) + floor) ** -WHITENING) @ vectors.T
    targets = nn.functional.normalize(centred[own] @ whiten, dim=1)
    mean = states.mean(0)
    spread = states - mean
    covariance = spread.T @ spread
    covariance.diagonal().add_(RIDGE * len(states) * spread.var())
    linear = torch.linalg.solve(covariance, spread.T @ targets)
    linear = _scaled(linear, common, spread)
    if meaning:
        # Rows of `to_states` say what the state of a term is, for each value of its embedding.
        meanings = _meanings(model, tokenizer, used)
        to_states = torch.linalg.lstsq(centred[used], meanings).solution
        linear = _scaled(linear + meaning * _scaled(to_states.T, common, spread), common, spread)
    with torch.no_grad():
        layer.weight.copy_(linear.T)
        layer.bias.copy_(OFFSET - mean @ linear)
        norm.weight.fill_(1.0)
        if norm.bias is not None:
            norm.bias.zero_()
        decoder.bias.zero_()
        some, theirs = states[:4096].float(), own[:4096]
        measured, _, _ = _measure(layer, norm, decoder, some, theirs)
        norm.weight.fill_(OWN_LOGIT / measured if measured > 0 else 1.0)
        decoder.bias.fill_(-threshold)
        return HeadFit(len(own), *_measure(layer, norm, decoder, some, theirs))


def _scaled(linear: Tensor, common: Tensor, spread: Tensor) -> Tensor:
    """A map of states to the hidden layer, float64 ``[width, width]``, of spread 1 and with nothing for all terms."""
    # What all embeddings have in common would raise or lower all terms of a state alike.
    linear = linear - torch.outer(linear @ common, common) / (common @ common).clamp(min=1e-12)
    linear = linear - linear.mean(1, keepdim=True)  # so that the layer norm takes away nothing but the offset
    return linear / (spread @ linear).std()


def _meanings(model: Any, tokenizer: Any, terms: Tensor) -> Tensor:
    """Mean states of texts of one term each, float64 ``[terms, width]``: centred, of length 1."""
    means = term_vectors(model, tokenizer, terms).double()
    return nn.functional.normalize(means - means.mean(0), dim=1)


def _measure(
    layer: nn.Linear, norm: nn.LayerNorm, decoder: nn.Linear, states: Tensor, own: Tensor
) -> tuple[float, float, float]:
    """Mean logit of a state's own token, how often it is the highest, and how many terms a state lights up."""
    device = decoder.weight.device
    logits = decoder(norm(nn.functional.gelu(layer(states.to(device))))).cpu()
    logit = logits[torch.arange(len(own)), own]
    first = (logits.amax(1) <= logit).float().mean()
    return float(logit.mean()), float(first), float((logits > 0).sum(1).float().mean())


def _states(
    model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, max_length: int
) -> tuple[Tensor, Tensor]:
    """Last hidden states, float64 ``[tokens, width]``, and their tokens, without special ones."""
    special = torch.tensor(tokenizer.all_special_ids)
    found: list[tuple[Tensor, Tensor]] = []
    left = max_tokens
    limit = min(max_length, usable_positions(model))
    for start in range(0, len(texts), 64):
        if left <= 0:
            break
        tokens = tokenize(tokenizer, texts[start : start + 64], limit)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        for rows in token_batches(lengths, TOKENS_PER_BATCH, len(lengths)):
            inputs = padded(chosen(tokens, rows.tolist()), tokenizer.pad_token_id or 0, model.device)
            with torch.inference_mode():
                states = model.base_model(**inputs).last_hidden_state
            ids = inputs["input_ids"].cpu()
            kept = inputs["attention_mask"].cpu().bool() & ~torch.isin(ids, special)
            found.append((states.cpu()[kept].double(), ids[kept]))
            left -= int(kept.sum())
    if not found:
        return torch.zeros(0, 1, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    return torch.cat([states for states, _ in found]), torch.cat([ids for _, ids in found])


def can_fit(model: Any) -> bool:
    """Whether the head of a ``*ForMaskedLM`` model has the parts that `fit_head` fits."""
    layers, norms, decoder = _head_of(model)
    plain = isinstance(decoder, nn.Linear) and decoder.bias is not None
    return plain and len(layers) == len(norms) == 1 and layers[0].bias is not None


def _parts(model: Any) -> tuple[nn.Linear, nn.LayerNorm, nn.Linear]:
    """The hidden layer, layer norm and decoder of a head."""
    if not can_fit(model):
        raise UsageError(
            f"the head of a {model.config.model_type} model is not linear layer, layer norm and decoder, each with "
            "its bias, which fitting needs; train it instead"
        )
    layers, norms, decoder = _head_of(model)
    return layers[0], norms[0], decoder


def _head_of(model: Any) -> tuple[list[nn.Linear], list[nn.LayerNorm], Any]:
    """Square linear layers and layer norms of a head, and its decoder."""
    decoder = model.get_output_embeddings()
    body = f"{model.base_model_prefix}."
    head = [module for name, module in model.named_modules() if name and not f"{name}.".startswith(body)]
    linear = [module for module in head if isinstance(module, nn.Linear) and module is not decoder]
    square = [layer for layer in linear if layer.in_features == layer.out_features]
    return square, [module for module in head if isinstance(module, nn.LayerNorm)], decoder
