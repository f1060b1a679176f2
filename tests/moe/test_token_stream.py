"""Texts as token ids, document after document."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from moe import token_stream
from moe.token_stream import frame_of, stream_tokens
from runtime.errors import InputError, NotFoundError
from tests.moe.training.conftest import word_tokenizer

TOKENIZER = word_tokenizer()


def streamed(path: Path, tokenizer: Any = TOKENIZER) -> list[int]:
    return [id for piece in stream_tokens([path], tokenizer) for id in piece.ids]


def test_each_document_is_framed_as_the_tokenizer_frames_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n\nw1 w2\nw3\n \n\nw4\n")
    assert streamed(path) == TOKENIZER("w1 w2\nw3")["input_ids"] + TOKENIZER("w4")["input_ids"]
    assert [piece.num_bytes for piece in stream_tokens([path], TOKENIZER)] == [8, 2]


def test_a_tokenizer_that_adds_nothing_gets_its_end_token_behind(tmp_path: Path) -> None:
    from tokenizers import processors

    bare = word_tokenizer()
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert frame_of(bare) == ([], [3])
    path = tmp_path / "text.txt"
    path.write_text("w1\n\nw2")
    assert streamed(path, bare) == [6, 3, 7, 3]


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 58), min_size=1, max_size=6), min_size=1, max_size=4), max_size=5
    ),
    st.integers(8, 60),
)
def test_pieces_of_long_documents_add_up_to_them(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]], longest: int
) -> None:
    texts = ["\n".join(" ".join(f"w{n}" for n in line) for line in lines) for lines in documents]
    path = tmp_path_factory.mktemp("text") / "text.txt.gz"
    path.write_bytes(gzip.compress("\n\n".join(texts).encode()))
    expected = [id for text in texts for id in TOKENIZER(text)["input_ids"]]
    with pytest.MonkeyPatch.context() as patch:
        # a line of these is at most 24 characters, and lines are never cut where pieces may be longer
        patch.setattr(token_stream, "PIECE_CHARACTERS", max(longest, 24))
        assert streamed(path) == expected


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(NotFoundError, match="missing or no file"):
        streamed(path)
    path.write_bytes(b"w1 \xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        streamed(path)
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(b"w1 " * 1000)[:-9])
    with pytest.raises(InputError, match="no whole gzip file"):
        streamed(packed)
    packed.write_bytes(b"w1")
    with pytest.raises(InputError, match="no whole gzip file"):
        streamed(packed)
