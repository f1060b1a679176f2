"""`lexpert train expand-queries`: what it writes and prints, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import lexpert
from retrieval.encoders.encoder import SparseEncoder
from retrieval.training.training_set import TrainingSet
from tests.retrieval.training.test_query_expansion import UNUSED, dark, write_encoder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lexpert train` in a folder of its own; gives the exit code, and both outputs."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lexpert", "train", *arguments])
        with pytest.raises(SystemExit) as ended:
            lexpert.main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return int(ended.value.code or 0), shown.out, shown.err

    return command


def test_the_command_writes_an_encoder_and_tells_what_it_found(
    run: Run, make_language_model: Callable[..., Path], training_set: TrainingSet
) -> None:
    training_set.save(Path("set"))
    write_encoder(dark(make_language_model(), Path("model"), UNUSED[:9]), Path("encoder"))
    count = len(training_set.passages)
    code, out, err = run("expand-queries", "encoder", "a", "--set", "set")
    assert code == 0
    assert out.startswith("wrote a: 4 directions with two terms each, which have ")
    assert out.endswith(f"% of the variance of {count} texts' vectors\n")
    assert f"encoding: {count}/{count} texts" in err
    code, out, _ = run(
        "expand-queries", "encoder", "b", "--set", "set", "--gain", "0.2", "--limit", "3", "--json"
    )
    told = json.loads(out)
    assert (code, told.pop("variance") < 1) == (0, True)
    assert told == {"encoder": "encoder", "out": "b", "texts": count, "directions": 4}
    one, other = (SparseEncoder.load(Path(name).resolve()) for name in ("a", "b"))
    assert one.family == other.family == "expanded_queries"
    assert one.fingerprint != other.fingerprint
    for arguments, said in (
        (("encoder", "a", "--set", "set"), "a exists already"),
        (("encoder", "c", "--set", "none"), "none"),
        (("none", "c", "--set", "set"), "there is no encoder folder none"),
        (("model", "c", "--set", "set"), "model is no inference-free encoder with a term expansion"),
        (("encoder", "c", "--set", "set", "--scale", "nan"), "the scale of an expansion of queries must be"),
        (("encoder", "c", "--set", "set", "--gain", "-1"), "the gain of an expansion of queries must be"),
        (("encoder", "c"), "Missing option '--set'"),
    ):
        code, out, err = run("expand-queries", *arguments)
        assert (code > 0, out) == (True, "")
        assert said in err
    assert not Path("c").exists()


def test_help_has_examples_and_the_command_comes_before_shrinking(run: Run) -> None:
    code, out, _ = run("expand-queries", "--help")
    assert code == 0
    assert "lexpert train expand-queries run/model expanded --set pairs" in " ".join(out.split())
    code, out, _ = run("--help")
    names = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and len(line.split()) > 2]
    assert names.index("head") < names.index("expand-queries") < names.index("shrink")
