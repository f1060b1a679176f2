"""What the operating system refuses to write is told with the file, the reason and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import LexpertError
from runtime.write_errors import naming_what_cannot_be_written

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")
needs_full_device = pytest.mark.skipif(
    not FULL.exists(), reason="the system has no device that is always full"
)


@needs_full_device
def test_a_full_disk() -> None:
    with (
        pytest.raises(
            LexpertError, match=r"^here could not be written: No space left on device; free some space"
        ),
        naming_what_cannot_be_written(Path("here")),
        FULL.open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    with (
        pytest.raises(
            LexpertError, match=r"below could not be written: Not a directory; check the path and its"
        ),
        naming_what_cannot_be_written(below),
    ):
        below.mkdir()
    with (
        pytest.raises(LexpertError, match=r"^folder could not be written: Not a directory \(.*below\);"),
        naming_what_cannot_be_written(Path("folder")),
    ):
        below.mkdir()


@needs_full_device
def test_the_command_line_says_what_helps_when_its_output_goes_to_a_full_disk() -> None:
    with FULL.open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "lexpert.py", "--version"],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode != 0
    assert "No space left on device; free some space or write to another disk" in ended.stderr
