"""A folder of transformers with a decoder and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import FormatError, NotFoundError, UsageError

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, eq=False)
class DecoderFolder:
    """A model that is loaded to generate.

    Attributes:
        model: of transformers, with a language-modelling head, in evaluation mode; experts run on ours.
        tokenizer: of transformers.
    """

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: str | Path, *, dtype: str = "auto", device: str | None = None) -> DecoderFolder:
        """Load from a folder and nowhere else.

        Args:
            folder: with ``config.json``, weights and tokenizer files.
            dtype: of the weights; ``"auto"`` takes that of the checkpoint.
            device: of torch; None takes a GPU where there is one.

        Raises:
            NotFoundError: the folder, its configuration, its weights or its tokenizer is missing.
            FormatError: a file is damaged, or holds no decoder that transformers knows.
            UsageError: the dtype or the device is none.
        """
        import torch
        import transformers

        from moe.generation.bfloat16_linear import use_bfloat16_linear

        if dtype not in DTYPES:
            raise UsageError(f"there is no dtype {dtype!r}; choose from {', '.join(DTYPES)}")
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise NotFoundError(
                f"{path} has no config.json; name the folder of a model as transformers saves it"
            )
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise NotFoundError(f"{path} has a config.json, but no weights; copy *.safetensors into it")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        options = {"dtype": dtype, "experts_implementation": "lexpert", "local_files_only": True}
        progress = transformers.utils.logging
        shown = progress.is_progress_bar_enabled()
        progress.disable_progress_bar()  # it ignores whether there is a terminal
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            raise FormatError(f"{path} cannot be loaded as a decoder: {_first_line(error)}") from error
        finally:
            if shown:
                progress.enable_progress_bar()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:
            raise NotFoundError(
                f"{path} has no tokenizer that can be loaded ({_first_line(error)}); copy that of the model into it"
            ) from error
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"the model cannot be put on {device!r}: {_first_line(error)}") from error
        use_bfloat16_linear(model)
        return cls(model.eval(), tokenizer)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
