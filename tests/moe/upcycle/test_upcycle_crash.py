"""A killed upcycling leaves nothing that looks like its result, and can be run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from moe.upcycle.convert import upcycle
from runtime.errors import ConflictError
from runtime.output_folder import new_folder
from tests.moe.upcycle.conftest import Dense

ROOT = Path(__file__).resolve().parents[3]


def test_a_killed_run_leaves_no_folder_and_is_run_again(dense: Dense, tmp_path: Path) -> None:
    folder, out = dense("llama", intermediate_size=512), tmp_path / "out"
    program = (
        "import sys; from moe.upcycle.convert import upcycle; upcycle(sys.argv[1], sys.argv[2], experts=200)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), str(out)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    partial = tmp_path / "out.partial"
    while not (partial / "model.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert partial.exists()
    report = upcycle(folder, out, experts=3)
    assert report.difference is not None
    assert not partial.exists()
    assert (out / "config.json").exists()


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as partial:
        (partial / "file").touch()
        with pytest.raises(ConflictError, match="is being written by another process"), new_folder(out):
            pass
        assert (partial / "file").exists()
    assert [path.name for path in out.iterdir()] == ["file"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as partial:
        (partial / "file").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []
