"""A folder that is written whole or not at all, wherever the process that writes it is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from runtime.errors import ConflictError
from runtime.output_folder import new_folder


def write(out: Path, text: str) -> None:
    with new_folder(out) as folder:
        (folder / "one").write_text(text)
        (folder / "two").write_text(text)


def killed_at(out: Path, moment: int) -> bool:
    """Whether a process was killed that writes `out`, at the moment of so many calls that make something durable."""
    child = os.fork()
    if not child:
        calls = iter(range(moment))
        durable = os.fsync

        def fsync(descriptor: int) -> None:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            durable(descriptor)

        os.fsync = fsync
        write(out, "old")
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def test_what_a_killed_process_left_is_written_anew(tmp_path: Path) -> None:
    moment = 0
    while killed_at(out := tmp_path / str(moment), moment):
        if not out.exists():
            write(out, "new")
        assert sorted(path.name for path in out.iterdir() if path.name != "write.lock") == ["one", "two"]
        assert (out / "one").read_text() == (out / "two").read_text()
        assert not out.with_name(out.name + ".partial").exists()
        moment += 1
    assert moment >= 5
    assert sorted(path.name for path in out.iterdir()) == ["one", "two"]


def test_what_others_left_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "theirs").touch()
    with pytest.raises(ConflictError, match="is in the way"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out.partial" / "theirs").exists()


def test_files_are_durable_however_deep_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable: set[int] = set()
    make_durable = os.fsync

    def fsync(descriptor: int) -> None:
        make_durable(descriptor)
        durable.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(tmp_path / "out") as folder:
        (folder / "one" / "two").mkdir(parents=True)
        (folder / "one" / "two" / "three").write_text("deep")
    written = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(written) == 4
    assert {path.stat().st_ino for path in written} <= durable
