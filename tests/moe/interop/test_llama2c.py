"""Files of llama2.c become a Llama folder that computes, and cuts text, as llama2.c does."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from moe.interop.llama2c import import_llama2c, read_tokens  # noqa: E402
from moe.upcycle.convert import upcycle  # noqa: E402
from runtime.errors import ConflictError, FormatError, NotFoundError  # noqa: E402
from tests.oracles import llama2c  # noqa: E402

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture(scope="session")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama2c") / "stories"
    import_llama2c(shared / "models" / "stories260K.bin", shared / "models" / "tok512.bin", folder)
    return folder


def loaded(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def write_checkpoint(path: Path, *, tied: bool, seed: int = 0) -> None:
    """A small random checkpoint: width 8, inner 12, 2 layers, 4 heads on 2, 300 tokens, 16 positions."""
    vocabulary = 300
    header = struct.pack("<7i", 8, 12, 2, 4, 2, vocabulary if tied else -vocabulary, 16)
    per_layer = 8 + 8 * 8 + 2 * 4 * 8 + 8 * 8 + 8 + 3 * 8 * 12
    numbers = vocabulary * 8 + 2 * per_layer + 8 + 2 * 16 + (0 if tied else vocabulary * 8)
    weights = np.random.default_rng(seed).normal(size=numbers).astype("<f4") * 0.5
    path.write_bytes(header + weights.tobytes())


def write_tokenizer(path: Path, vocabulary: int = 300) -> None:
    tokens = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    tokens += [bytes([place]) for place in range(97, 97 + vocabulary - len(tokens))][: vocabulary - 259]
    path.write_bytes(
        struct.pack("<i", 8)
        + b"".join(struct.pack("<fi", -place, len(token)) + token for place, token in enumerate(tokens))
    )


def test_it_tells_a_readable_story(stories: Path) -> None:
    model, tokenizer = loaded(stories)
    told = model.generate(torch.tensor([[1]]), max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(told[0], skip_special_tokens=True).startswith(STORY)


def test_logits_are_those_of_llama2c(stories: Path, shared: Path) -> None:
    model, tokenizer = loaded(stories)
    ids = tokenizer(STORY)["input_ids"]
    with torch.inference_mode():
        ours = model(torch.tensor([ids])).logits[0].numpy()
    theirs = llama2c.logits(shared / "models" / "stories260K.bin", ids)
    assert np.abs(ours - theirs).max() <= 3e-5


@pytest.mark.parametrize("tied", [True, False])
def test_a_random_checkpoint_has_the_logits_of_llama2c(tied: bool, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.bin", tied=tied)
    write_tokenizer(tmp_path / "tokenizer.bin")
    shape = import_llama2c(tmp_path / "model.bin", tmp_path / "tokenizer.bin", tmp_path / "out")
    assert shape.tied is tied
    model, _ = loaded(tmp_path / "out")
    ids = [1, 5, 270, 299, 0, 33]
    with torch.inference_mode():
        ours = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(ours - llama2c.logits(tmp_path / "model.bin", ids)).max() <= 3e-5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("abdeghilnorstuwy ,.'\"\nLTé€🙂\t"), max_size=40))
def test_text_is_cut_as_llama2c_does(text: str, stories: Path, shared: Path) -> None:
    tokens = read_tokens(shared / "models" / "tok512.bin", 512)
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    ids = tokenizer(text)["input_ids"]
    assert ids == llama2c.encode(tokens, text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_upcycled_stories_have_the_dense_logits(stories: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(stories)
    ids = torch.tensor([tokenizer(STORY)["input_ids"]])
    with torch.inference_mode():
        dense = model(ids).logits
        for name, options in {
            "copy": {},
            "half": {"layers": "every-other", "router": "clusters", "sample": [STORY * 4]},
            "granular": {"method": "granular", "granularity": 4, "top_k": 4, "router": "hidden-means"},
        }.items():
            report = upcycle(stories, tmp_path / name, **options)  # type: ignore[arg-type]
            assert report.exact
            options = {"experts_implementation": "eager"}  # 43 neurons are no whole 16 bytes
            sparse = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, **options).eval()
            assert float((sparse(ids).logits - dense).abs().max()) <= 2e-5
            again = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
            assert again(STORY)["input_ids"] == ids[0].tolist()


def test_bad_files_are_told(tmp_path: Path) -> None:
    model, tokenizer, out = tmp_path / "model.bin", tmp_path / "tokenizer.bin", tmp_path / "out"
    write_checkpoint(model, tied=True)
    write_tokenizer(tokenizer)
    whole, tokens = model.read_bytes(), tokenizer.read_bytes()
    for content, match in (
        (whole[:-4], r"where its header asks for"),
        (whole[:20], r"too short"),
        (b"24ka" + whole[4:], r"of a later format"),
        (struct.pack("<i", 7) + whole[4:], r"is no checkpoint of llama2\.c"),
        (struct.pack("<i", -8) + whole[4:], r"is no checkpoint of llama2\.c"),
    ):
        model.write_bytes(content)
        with pytest.raises(FormatError, match=match):
            import_llama2c(model, tokenizer, out)
    model.write_bytes(whole)
    for content, match in (
        (tokens[:-1], r"ends inside token 299"),
        (tokens[: len(tokens) - 9], r"has 299 tokens and the checkpoint 300"),
        *((tokens[: len(tokens) - 9 + more], r"ends inside token 299") for more in range(1, 9)),
        *((tokens[: 4 + length], r"ends inside token 0") for length in (1, 2, 3)),
    ):
        tokenizer.write_bytes(content)
        with pytest.raises(FormatError, match=match):
            import_llama2c(model, tokenizer, out)
    with pytest.raises(NotFoundError, match=r"none\.bin is missing"):
        import_llama2c(tmp_path / "none.bin", tokenizer, out)
    assert not out.exists()
    out.mkdir()
    tokenizer.write_bytes(tokens)
    with pytest.raises(ConflictError, match="exists already"):
        import_llama2c(model, tokenizer, out)
