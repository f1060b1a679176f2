"""The check of a conversion: the model before and after on the same text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.upcycle.model_runs import loaded_model, outputs_of, token_ids, tokenizer_of
from runtime.errors import FormatError, LexpertError

TOLERANCE = 1e-4
"""Largest difference that an exact conversion may show, as a share of the largest output. float32 gives some
1e-6; a tensor at the wrong place gives 1."""

CHECK_TOKENS = 128
"""Tokens of each sample text that the models are compared on."""


class ReferenceOutputs:
    """What the model that is converted makes of the sample texts; float32, computed once.

    Attributes:
        largest: largest absolute output.
    """

    def __init__(self, folder: Path, config: Any, model: Any, texts: Sequence[str]) -> None:
        """Run the model.

        Raises:
            FormatError: an output is no finite number.
        """
        self._texts, self._config = texts, config
        self._ids = check_ids(folder, config, texts)
        self._outputs = outputs_of(model, self._ids)
        if not all(bool(output.isfinite().all()) for output in self._outputs):
            raise FormatError(
                f"{folder} gives outputs that are NaN or infinite on the sample text, so that nothing can be compared "
                "with them; copy its weights again, or look at what it was trained with"
            )
        self.largest = max(float(output.abs().max()) for output in self._outputs)

    def is_within_tolerance(self, difference: float) -> bool:
        """Whether a difference may be float32's rounding; NaN is not."""
        return difference <= TOLERANCE * max(self.largest, 1.0)

    def largest_difference(self, folder: Path, auto_class: str) -> float:
        """Largest absolute difference to the outputs of the model in `folder`, in float32.

        Raises:
            FormatError: it cannot be loaded, or its tokenizer cuts the texts otherwise.
        """
        ids = check_ids(folder, self._config, self._texts)
        if [row.tolist() for row in ids] != [row.tolist() for row in self._ids]:
            raise FormatError(
                f"the tokenizer gives other tokens in {folder.name} than in the folder it was made of; save it there "
                "with save_pretrained, so that tokenizer_config.json names its class"
            )
        with loaded_model(folder, auto_class) as model:
            outputs = outputs_of(model, ids)
        differences = [(a - b).abs().max() for a, b in zip(self._outputs, outputs, strict=True)]
        return float(
            torch.stack(differences).max()
        )  # NaN where one is; Python's max would depend on the order


def check_ids(folder: Path, config: Any, texts: Sequence[str]) -> list[Tensor]:
    """Token ids of the start of each text, int64 ``[1, tokens]``; drawn at random without a tokenizer."""
    most = min(CHECK_TOKENS, config.max_position_embeddings)
    sequences = token_ids(tokenizer_of(folder), texts, config.vocab_size, most, most)
    return [sequence for of_text in sequences for sequence in of_text]


def require_memory(num_bytes: int) -> None:
    """Refuse a check that the machine has not the memory for, where the system says what is free.

    Raises:
        LexpertError: less memory is available than the model takes.
    """
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return
    available = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
    if available is not None and available < num_bytes:
        raise LexpertError(
            f"the check loads the models in float32, {num_bytes / 1e9:,.1f} GB, and {available / 1e9:,.1f} GB "
            "of memory are free; leave the check out (--no-check) and compare on a larger machine"
        )
