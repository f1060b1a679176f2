"""docs/moe-encoders.md: its examples run, one after the other, and print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[3]


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "moe-encoders.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), "page", "exec"), {})
    sparse, ids, *routings = capsys.readouterr().out.splitlines()
    assert sparse == "moe_bert [1, 3] True"
    assert sorted(re.findall(r"\d", ids)) == ["1", "2"]
    assert routings == ["10 ['load_balance', 'z']"] * 2
