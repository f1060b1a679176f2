"""Token ids of text files, streamed: files of any size are never in memory as a whole."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from runtime.errors import InputError, NotFoundError, UsageError

PIECE_CHARACTERS = 1 << 20
"""A document is cut, behind a line where it has any, before it grows beyond this."""


MOST_BLOCK = 512
"""Tokens of a block where none is asked for and the model takes more."""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A document, or a part of a very long one.

    Attributes:
        ids: token ids, those that frame a document included.
        num_bytes: of its text in UTF-8.
    """

    ids: list[int]
    num_bytes: int


def stream_tokens(paths: Iterable[str | Path], tokenizer: Any) -> Iterator[TokenPiece]:
    """Token ids of text files, document after document.

    Documents end at blank lines; a text without any is one document. Each is framed by what the tokenizer adds to
    a text, such as a start token; a tokenizer that adds nothing gets its end token behind each document, if it has
    one.

    Args:
        paths: UTF-8 text, or that compressed by gzip where the name ends in ``.gz``.
        tokenizer: of transformers.

    Raises:
        NotFoundError: a file is missing.
        InputError: a file is not UTF-8, or damaged.
    """
    before, behind = frame_of(tokenizer)
    for batch in _batches(piece for path in paths for piece in _pieces(Path(path))):
        texts = [text for text, _, _ in batch]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids, (text, starts, ends) in zip(encoded["input_ids"], batch, strict=True):
            framed = [*(before if starts else ()), *ids, *(behind if ends else ())]
            yield TokenPiece(framed, len(text.encode()))


def stream_documents(paths: Iterable[str | Path]) -> Iterator[str]:
    """Documents of text files, which end at blank lines; very long ones in parts. Raises what `stream_tokens` does."""
    for path in paths:
        for text, _, _ in _pieces(Path(path)):
            yield text


def frame_of(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that go before and behind each document."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    framed = list(tokenizer("a")["input_ids"])
    at = next(at for at in range(len(framed)) if framed[at : at + len(plain)] == plain)
    before, behind = framed[:at], framed[at + len(plain) :]
    if not before and not behind and tokenizer.eos_token_id is not None:
        behind = [tokenizer.eos_token_id]
    return before, behind


def block_length(model: Any, asked: int | None) -> int:
    """Tokens of a block: as asked for, or the model's positions, `MOST_BLOCK` at most.

    Raises:
        UsageError: the model has fewer positions than are asked for.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if asked is None:
        return min(MOST_BLOCK, positions or MOST_BLOCK)
    if positions is not None and asked > positions:
        raise UsageError(f"a block has {asked} tokens, but the model has {positions} positions; shorten it")
    return asked


Piece = tuple[str, bool, bool]
"""Text, whether a document starts with it, and whether one ends with it."""


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece[0])
        if characters >= PIECE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _pieces(path: Path) -> Iterator[Piece]:
    lines: list[str] = []
    characters, starts = 0, True
    for line in _lines(path):
        blank = not line.strip()
        if lines and (blank or characters + len(line) > PIECE_CHARACTERS):
            yield "".join(lines).removesuffix("\n" if blank else ""), starts, blank
            lines, characters, starts = [], 0, blank
        if not blank:
            lines.append(line)
            characters += len(line)
    if lines:
        yield "".join(lines).removesuffix("\n"), starts, True


def _lines(path: Path) -> Iterator[str]:
    try:
        with _opened(path) as file:
            while line := file.readline(PIECE_CHARACTERS):
                yield line
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(f"{path} is missing or no file; give a text file") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 ({error.reason}); give a text file, or one whose name ends in .gz"
        ) from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is no whole gzip file ({error}); copy it again") from None


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")
