"""A folder with a checkpoint of transformers, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.errors import FormatError, NotFoundError, UsageError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,  # the numbers of positions, in old encoders; no quantisation has weights of this type
}
"""Types of tensors by safetensors' name. Others are smaller integers and 8-bit floats: quantised weights."""


SIZES = (
    "hidden_size",
    "dim",
    "intermediate_size",
    "hidden_dim",
    "num_hidden_layers",
    "n_layers",
    "num_attention_heads",
    "n_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
"""Fields of configurations that count something; transformers divides by some of them before it looks at them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor is, and what it is like."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class CheckpointFolder:
    """The configuration and the tensors of a folder; tensors are read when asked for.

    Attributes:
        path: the folder.
        model_type: as its config.json says.
        entries: name to entry, in the order of the shards.
    """

    def __init__(self, path: Path) -> None:
        """Read config.json and the headers of the shards.

        Raises:
            NotFoundError: no such folder, or no config.json, weights or shard in it.
            FormatError: something in it is damaged or truncated, or not weights in floating point.
        """
        self.path = path
        if not path.is_dir():
            raise NotFoundError(f"{path} is no folder; give the folder of a checkpoint, with config.json")
        raw = _read_json(path / "config.json", "give the folder of a checkpoint of transformers")
        model_type = raw.get("model_type")
        if not isinstance(model_type, str):
            raise FormatError(f"{path / 'config.json'} has no model_type; give a checkpoint of transformers")
        self.model_type, self._raw = model_type, raw
        if "quantization_config" in raw:
            raise UsageError(
                f"{path} holds quantised weights, which cannot be cut or copied exactly; give the checkpoint "
                "that they were made from"
            )
        self.entries: dict[str, Entry] = {}
        for file in self._files():
            self._read_header(file)

    def config(self) -> Any:
        """The configuration as transformers understands it.

        Raises:
            FormatError: transformers refuses it, or a size in it is no size.
        """
        from transformers import AutoConfig

        for name in SIZES:
            size = self._raw.get(name)
            if isinstance(size, int) and size < 1:
                raise FormatError(
                    f"{self.path / 'config.json'} has {name} {size}, which must be 1 or more; copy the configuration "
                    "again"
                )
        try:
            return AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # ValueError, KeyError, OSError, StrictDataclassError, …
            raise FormatError(
                f"{self.path / 'config.json'} cannot be understood: {sentence(error)}"
            ) from error

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the dtype that it is stored in.

        Raises:
            FormatError: the file cannot be read.
        """
        file = self.entries[name].file
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise FormatError(
                f"{file} cannot be read: {sentence(error)}; copy the checkpoint again"
            ) from error
        return tensor

    def _files(self) -> list[Path]:
        if (self.path / SINGLE_FILE).exists():  # transformers looks for it first
            return [self.path / SINGLE_FILE]
        index = self.path / INDEX_FILE
        if index.exists():
            names = _read_json(index, "copy the checkpoint again").get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise FormatError(f"{index} has no weight_map; copy the checkpoint again")
            files = [self.path / name for name in dict.fromkeys(names.values())]
            missing = next((file for file in files if file.parent != self.path or not file.is_file()), None)
            if missing is not None:
                raise NotFoundError(
                    f"{self.path} lacks the shard {missing.name} that {INDEX_FILE} names; copy the checkpoint again"
                )
            return files
        pickled = next((file.name for file in sorted(self.path.glob("*.bin"))), None)
        if pickled is not None:
            raise FormatError(
                f"{self.path} has {pickled} and no {SINGLE_FILE}; convert it to safetensors, because opening a "
                "pickled file can run code"
            )
        shard = next((file.name for file in sorted(self.path.glob("*.safetensors"))), None)
        raise NotFoundError(
            f"{self.path} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there"
            + (f" (and {shard} alone may not be all)" if shard else "")
            + "; give a folder with the model's weights"
        )

    def _read_header(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    part = opened.get_slice(name)
                    if part.get_dtype() not in DTYPES:
                        raise FormatError(
                            f"{file}: {name} is stored as {part.get_dtype()}, not in floating point; give the "
                            "checkpoint before it was quantised"
                        )
                    self.entries[name] = Entry(file, tuple(part.get_shape()), DTYPES[part.get_dtype()])
        except SafetensorError as error:
            raise FormatError(
                f"{file} is truncated or damaged ({sentence(error)}); copy the checkpoint again"
            ) from error


def widest(folder: CheckpointFolder, names: Iterable[str]) -> torch.dtype:
    """The narrowest dtype that holds what each of some tensors of a folder holds."""
    return reduce(torch.promote_types, (folder.entries[name].dtype for name in names))


def sentence(error: Exception) -> str:
    """The first line of what another library says, to be part of a sentence of ours.

    Where that line only announces the reason, the next one is it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    announced = len(lines) > 1 and lines[0].endswith(":")
    return (" ".join(lines[:2]) if announced else lines[0]).rstrip(".")


def companion_files(folder: Path) -> Iterator[Path]:
    """Files beside the weights that a model is used with: tokenizer, generation settings, chat template."""
    for pattern in (
        "tokenizer*.json",
        "tokenizer.model",
        "*.tiktoken",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template*",
        "generation_config.json",
    ):
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"{file} is missing; {remedy}") from None
    except ValueError as error:
        raise FormatError(f"{file} is no valid JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file} must hold a JSON object; {remedy}")
    return value
