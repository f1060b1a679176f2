"""What a transformer makes of single terms: where in its space of text vectors each of them lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retrieval.encoders.token_inputs import padded

TERMS_PER_BATCH = 256


def term_vectors(model: Any, tokenizer: Any, terms: Tensor) -> Tensor:
    """The mean state of a text of one term, special tokens included, for each of `terms`.

    Args:
        model: a transformer with a head over it.
        terms: int64 ``[n]``, tokens.

    Returns:
        float32 ``[n, width]`` on the processor, of length 1.
    """
    around = tokenizer("")["input_ids"]
    before, after = around[: (len(around) + 1) // 2], around[(len(around) + 1) // 2 :]
    found = []
    for some in terms.split(TERMS_PER_BATCH):
        rows = [[*before, term, *after] for term in some.tolist()]
        inputs = padded({"input_ids": rows}, tokenizer.pad_token_id or 0, model.device)
        with torch.inference_mode():
            states = model.base_model(**inputs).last_hidden_state
        found.append(nn.functional.normalize(states.float().mean(1).cpu(), dim=1))
    return torch.cat(found).clone()  # a tensor of inference mode takes no part in training
