"""Checkpoints of llama2.c (Karpathy), in its first format, to a Llama folder of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe.upcycle.shard_writer import Output, write_shards
from runtime.errors import FormatError, NotFoundError
from runtime.output_folder import new_folder, require_room

HEADER_BYTES = 28
MAGIC = b"24ka"
"""Start of its later formats (``ak42`` as a little-endian number)."""

BYTE_TOKENS = 256
FIRST_BYTE_TOKEN = 3
"""Tokens 0 to 2 are unknown, start and end; then there is one for each byte."""

SPACE = "▁"
"""What stands for a space inside the tokens of SentencePiece."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a checkpoint, as its header has them.

    Attributes:
        tied: whether the output projection is the embedding.
    """

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    tied: bool

    @property
    def head(self) -> int:
        return self.width // self.heads


def import_llama2c(checkpoint: str | Path, tokenizer: str | Path, out: str | Path) -> Shape:
    """Make a Llama folder of transformers, with a fast tokenizer, from files of llama2.c.

    Args:
        checkpoint: ``stories….bin`` or the like: seven int32, then float32 weights (its version 0).
        tokenizer: ``tok….bin`` or ``tokenizer.bin``: of each token its score, length and bytes.
        out: folder to make; it appears when it is whole.

    Raises:
        NotFoundError: a file is missing.
        FormatError: a file is not what its header says, or of a later version.
        ConflictError: `out` exists.
    """
    from transformers import GenerationConfig, LlamaConfig

    checkpoint, tokenizer, out = Path(checkpoint), Path(tokenizer), Path(out)
    for file in (checkpoint, tokenizer):
        if not file.is_file():
            raise NotFoundError(f"{file} is missing; give a file of llama2.c")
    shape = read_shape(checkpoint)
    weights = dict(_weights(checkpoint, shape))
    tokens = read_tokens(tokenizer, shape.vocabulary)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    outputs = [
        Output(name, tuple(values.shape), torch.float32, partial(_once, values))
        for name, values in weights.items()
    ]
    require_room(out, sum(output.num_bytes for output in outputs))
    with new_folder(out) as folder:
        write_shards(folder, outputs, lambda _: None)
        fast_tokenizer(tokens, shape.positions).save_pretrained(folder)
        config.save_pretrained(folder)
        # it was trained on texts that follow one another, each with a start and none with an end
        GenerationConfig(bos_token_id=1, eos_token_id=[1, 2]).save_pretrained(folder)
    return shape


def read_shape(checkpoint: Path) -> Shape:
    """Read the header.

    Raises:
        FormatError: too short, a later version, or sizes that cannot be.
    """
    with checkpoint.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if header.startswith(MAGIC):
        raise FormatError(
            f"{checkpoint} is of a later format of llama2.c; only its first one is read (export with --version 0)"
        )
    if len(header) < HEADER_BYTES:
        raise FormatError(f"{checkpoint} is too short for a checkpoint of llama2.c; copy it again")
    width, inner, layers, heads, kv_heads, vocabulary, positions = (
        int(number) for number in np.frombuffer(header, "<i4")
    )
    shape = Shape(width, inner, layers, heads, kv_heads, abs(vocabulary), positions, vocabulary > 0)
    sizes = (width, inner, layers, heads, kv_heads, abs(vocabulary), positions)
    if min(sizes) < 1 or width % heads or heads % kv_heads or shape.head % 2:
        raise FormatError(
            f"{checkpoint} is no checkpoint of llama2.c: its header says {', '.join(map(str, sizes))}"
        )
    return shape


def read_tokens(tokenizer: Path, vocabulary: int) -> list[tuple[bytes, float]]:
    """Bytes and score of each token.

    Raises:
        FormatError: truncated, or of another number of tokens.
    """
    content = tokenizer.read_bytes()
    tokens: list[tuple[bytes, float]] = []
    place = 4  # past the length of the longest token
    while place < len(content):
        # where the file ends early, these are too short, and so is what is left
        score, length = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + length
        if place > len(content):
            raise FormatError(f"{tokenizer} ends inside token {len(tokens)}; copy it again")
        tokens.append((content[place - length : place], float(np.frombuffer(score, "<f4")[0])))
    if len(tokens) != vocabulary:
        raise FormatError(
            f"{tokenizer} has {len(tokens)} tokens and the checkpoint {vocabulary}; give the tokenizer that the "
            "model was trained with"
        )
    if vocabulary < FIRST_BYTE_TOKEN + BYTE_TOKENS:
        raise FormatError(f"{tokenizer} has {vocabulary} tokens, fewer than one for each byte; give another")
    return tokens


def fast_tokenizer(tokens: list[tuple[bytes, float]], positions: int) -> Any:
    """A tokenizer of transformers that cuts texts as llama2.c does.

    llama2.c starts from characters (bytes, where the vocabulary lacks one) and merges the two neighbours whose
    union scores highest, over and over; byte-pair encoding with the merges in the order of these scores.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>"]
    names += [f"<0x{byte:02X}>" for byte in range(BYTE_TOKENS)]
    names += [token.decode("utf-8", "replace").replace(" ", SPACE) for token, _ in tokens[len(names) :]]
    ids = {name: place for place, name in enumerate(names)}
    first = FIRST_BYTE_TOKEN + BYTE_TOKENS
    merges = []
    for place in sorted(range(first, len(names)), key=lambda place: -tokens[place][1]):
        name = names[place]
        splits = [(name[:at], name[at:]) for at in range(1, len(name))]
        known = [pair for pair in splits if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    backend = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )


def _weights(checkpoint: Path, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Parameters of transformers' Llama, in the order of the file."""
    layers, width, inner = shape.layers, shape.width, shape.inner
    query, key = shape.heads * shape.head, shape.kv_heads * shape.head
    table = shape.positions * (shape.head // 2)
    stacked = {
        "model.embed_tokens.weight": (1, shape.vocabulary, width),
        "model.layers.{layer}.input_layernorm.weight": (layers, width),
        "model.layers.{layer}.self_attn.q_proj.weight": (layers, query, width),
        "model.layers.{layer}.self_attn.k_proj.weight": (layers, key, width),
        "model.layers.{layer}.self_attn.v_proj.weight": (layers, key, width),
        "model.layers.{layer}.self_attn.o_proj.weight": (layers, width, query),
        "model.layers.{layer}.post_attention_layernorm.weight": (layers, width),
        "model.layers.{layer}.mlp.gate_proj.weight": (layers, inner, width),
        "model.layers.{layer}.mlp.down_proj.weight": (layers, width, inner),
        "model.layers.{layer}.mlp.up_proj.weight": (layers, inner, width),
        "model.norm.weight": (1, width),
        "rotary": (2, table),  # cosines and sines, which transformers computes
        "lm_head.weight": (0 if shape.tied else 1, shape.vocabulary, width),
    }
    numbers = sum(int(np.prod(of_one)) for of_one in stacked.values())
    expected = HEADER_BYTES + 4 * numbers
    if checkpoint.stat().st_size != expected:
        raise FormatError(
            f"{checkpoint} has {checkpoint.stat().st_size} bytes where its header asks for {expected}; copy it again"
        )
    values = np.memmap(checkpoint, "<f4", "r", offset=HEADER_BYTES)
    place = 0
    for name, of_one in stacked.items():
        size = int(np.prod(of_one))
        block: NDArray[np.float32] = values[place : place + size].reshape(of_one)
        place += size
        if name == "rotary":
            continue
        for layer, weight in enumerate(block):
            tensor = torch.from_numpy(np.array(weight))
            if "q_proj" in name or "k_proj" in name:
                tensor = _halves(tensor, shape.head)
            yield name.format(layer=layer), tensor


def _halves(weight: Tensor, head: int) -> Tensor:
    """Rows of each head reordered: llama2.c rotates neighbours, transformers the first half with the second."""
    return weight.reshape(-1, head // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _once(values: Tensor) -> Iterator[Tensor]:
    yield values
