"""What weights of few bits cost a model in perplexity, beside what they gain in time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.moe_bench.layer import QUANTISED
from runtime.errors import FormatError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class ModelBits:
    """Perplexity of one model on one text, by the weights of its experts.

    Attributes:
        model: its folder.
        text: the file.
        dtype: of the checkpoint.
        tokens: that were predicted.
        context: tokens of a window.
        perplexity: a token, by `dtype`, and by the names of `evals.moe_bench.layer.QUANTISED`.
    """

    model: str
    text: str
    dtype: str
    tokens: int
    context: int
    perplexity: dict[str, float]

    def loss(self, name: str) -> float:
        """By what share perplexity is above that of the model as it is."""
        return self.perplexity[name] / self.perplexity[self.dtype] - 1

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "losses": {name: self.loss(name) for name in self.perplexity}}


MOST_TOKENS = 65_536
"""Of a text, where no other number is asked for: it is predicted once for each number of bits."""


def measure_bits(model: Path, text: Path, most: int = MOST_TOKENS) -> ModelBits:
    """Measure a decoder in the dtype of its checkpoint, then with experts of 8 and of 4 bits, on the processor.

    Formats of few bits are those whose speed the comparison of layers shows.

    Args:
        model: folder of a decoder of experts.
        text: UTF-8, or that compressed by gzip. It is read once.
        most: tokens of it, from its start; the rest is not read.

    Raises:
        NotFoundError: the model or the text is missing.
        FormatError: the model cannot be loaded, or is an encoder.
        UsageError: it has no experts that can be rounded.
        InputError: the text cannot be predicted.
    """
    from evals.language_model import measure_perplexity, read_text
    from moe.language_model_folder import LanguageModelFolder
    from moe.quantised_model import quantise_model

    found: dict[str, float] = {}
    read = None
    for name in ("as it is", *QUANTISED):
        # Loaded anew: rounding leaves nothing to round again.
        loaded = LanguageModelFolder.load(model, dtype="auto", device="cpu")
        if loaded.objective != "causal":
            raise FormatError(f"{model} is an encoder, which predicts no next token; give a decoder")
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        if name in QUANTISED:
            few, group = QUANTISED[name]
            quantise_model(loaded.model, bits=few, group=group)
        read = read or read_text(text, loaded.tokenizer, most)
        result = measure_perplexity(loaded.model, *read)
        found[name if name in QUANTISED else dtype] = result.per_token
    return ModelBits(str(model), str(text), dtype, result.tokens, result.context, found)


def print_bits(found: ModelBits, console: Console) -> None:
    """Print perplexity by the weights of the experts, in one line."""
    shown = [f"{found.dtype} {found.perplexity[found.dtype]:,.3f}"]
    shown += [f"{name} {found.perplexity[name]:,.3f} ({found.loss(name):+.2%})" for name in QUANTISED]
    console.print(
        f"perplexity of {found.model} on {found.tokens:,} tokens of {found.text}, windows of {found.context}: "
        f"{', '.join(shown)}",
        highlight=False,
        soft_wrap=True,
    )
