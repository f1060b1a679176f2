from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("transformers")

from moe.generation.decoder_folder import DecoderFolder
from moe.generation.sampling import Sampling
from moe.generation.text import Generated, Pieces, generate_text
from runtime.errors import UsageError


@pytest.fixture(scope="module")
def loaded(folder: Path) -> DecoderFolder:
    return DecoderFolder.load(folder, device="cpu")


def generate(loaded: DecoderFolder, **options: Any) -> tuple[Generated, list[str]]:
    shown: list[str] = []
    options = {"max_tokens": 30, "sampling": Sampling(1.5), "seed": 3, "show": shown.append, **options}
    return generate_text(loaded.model, loaded.tokenizer, "a b", **options), shown


def test_what_is_shown_is_the_text_of_the_tokens(loaded: DecoderFolder) -> None:
    for seed in range(4):
        result, shown = generate(loaded, seed=seed)
        assert "".join(shown) == result.text
        assert result.text == loaded.tokenizer.decode(result.tokens, skip_special_tokens=True)
        assert result.prompt_tokens == 3
        assert result.finish == ("end" if result.tokens[-1] == 0 else "length")
        assert result.seconds >= result.first_token_seconds > 0


def test_a_stop_string_ends_the_text_before_it(loaded: DecoderFolder) -> None:
    free, _ = generate(loaded)
    stop = free.text[4:7]
    result, shown = generate(loaded, stop=("never there", stop))
    assert result.finish == "stop"
    assert result.text == "".join(shown) == free.text[: free.text.index(stop)]
    assert len(result.tokens) < len(free.tokens)


def pieces_of(loaded: DecoderFolder, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], Pieces]:
    tokenizer = loaded.tokenizer
    pieces = Pieces(tokenizer, tokenizer("a")["input_ids"], stop)
    shown = []
    for token in tokenizer(text)["input_ids"]:
        shown += pieces.after(token)
        if pieces.stopped:
            break
    return [*shown, *pieces.rest()], pieces


def test_a_character_is_shown_when_all_its_bytes_are_there(loaded: DecoderFolder) -> None:
    shown, _ = pieces_of(loaded, "aéb")
    assert shown == ["a", "é", "b"]


def test_what_could_become_a_stop_string_is_held_back(loaded: DecoderFolder) -> None:
    shown, pieces = pieces_of(loaded, "xabaabcx", ("abc",))
    assert shown == ["x", "ab", "a"]
    assert (pieces.text, pieces.stopped) == ("xaba", True)
    shown, pieces = pieces_of(loaded, "xab", ("abc",))
    assert (shown, pieces.stopped) == (["x", "ab"], False)


def test_a_long_text_is_shown_as_it_is(loaded: DecoderFolder) -> None:
    text = "the quick é brown\nfox jumps over. " * 20
    shown, _ = pieces_of(loaded, text)
    assert "".join(shown) == text


def test_an_empty_stop_string_is_refused(loaded: DecoderFolder) -> None:
    with pytest.raises(UsageError, match="stop string is empty"):
        generate(loaded, stop=("",))


def test_what_the_command_cannot_honour_is_one_sentence(folder: Path) -> None:
    import lexpert

    for options, message in (
        (["--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
        (["--seed", str(10**22)], f"the seed is {10**22}, but must be a whole number from 0 to 4294967295"),
        (["--seed", "-1"], "the seed is -1"),
    ):
        done = CliRunner().invoke(lexpert.app, ["moe", "generate", str(folder), "a", *options])
        assert isinstance(done.exception, UsageError)
        assert message in str(done.exception)


def test_a_seed_is_checked_in_python_too(loaded: DecoderFolder) -> None:
    with pytest.raises(UsageError, match="the seed is 4294967296"):
        generate(loaded, seed=2**32)
    assert generate(loaded, seed=2**32 - 1)[0].tokens


def test_speed_counts_the_tokens_after_the_first() -> None:
    assert Generated("", [1, 2, 3], "length", 1, 1.0, 2.0).tokens_per_second == 2.0
    assert Generated("", [1], "length", 1, 1.0, 1.0).tokens_per_second == 0.0
    assert Generated("", [], "length", 1, 0.0, 0.0).tokens_per_second == 0.0
