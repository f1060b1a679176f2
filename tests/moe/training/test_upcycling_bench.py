"""The comparison of going on dense with upcycling, from a model drawn at random on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from bench import upcycling
from bench.mixed_text import mix_texts


def test_pieces_of_all_texts_are_spread_over_the_mixed_one(tmp_path: Path) -> None:
    long, short = tmp_path / "long.txt", tmp_path / "short.txt.gz"
    long.write_text("".join(f"a{number}\n" for number in range(6)))
    with gzip.open(short, "wt") as file:
        file.write("b0\n\nb1")
    mix_texts([long, short], tmp_path / "mixed.txt", piece_bytes=3)
    assert (tmp_path / "mixed.txt").read_text().split() == ["a0", "a1", "a2", "b0", "a3", "a4", "a5", "b1"]
    assert (tmp_path / "mixed.txt").read_text().count("\n\n") == 8
    assert not list(tmp_path.glob("*.partial"))


def test_a_model_drawn_at_random_is_trained_and_then_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        lines = (f"The {name} fox of number {number} jumps over a dog.\n\n" for number in range(150))
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    sizes = {"layers": 2, "hidden": 32, "inner": 48, "heads": 4, "vocabulary": 300, "positions": 32}
    options = {"new": 3, "steps": 3, "batch-size": 2, "block": 16, **sizes}
    given = [str(tmp_path / name) for name in ("drawn", "one.txt", "other.txt")]
    given += [f"--{name}={value}" for name, value in options.items()]
    given += [f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'picture.png'}"]
    upcycling.main(given)
    printed = capsys.readouterr().out
    assert "parameters after 96 tokens" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith(("| dense", "| upcycled"))]
    dense, copied, _ = rows
    assert (dense[3], copied[3]) == ("96", "64")  # tokens, at about the same number of operations
    assert dense[5] == copied[5]  # perplexity before
    new = json.loads((tmp_path / "work" / "new" / "report.json").read_text())
    assert dense[5] == f"{new['last_perplexity']:.3f}"
    assert (tmp_path / "picture.png").stat().st_size
    before = (tmp_path / "picture.png").stat().st_mtime_ns
    upcycling.main(given)  # trains nothing again
    assert capsys.readouterr().out.splitlines()[0] == printed.splitlines()[0]
    assert (tmp_path / "picture.png").stat().st_mtime_ns > before
