"""Real kills at random moments; `bench/crash.py` does the same for as long as you like."""

from __future__ import annotations

import random
from pathlib import Path

from bench.crash import kill_builds, kill_writers


def test_nothing_acknowledged_is_lost_when_a_writer_is_killed(tmp_path: Path) -> None:
    commits, _ = kill_writers(tmp_path / "index", kills=6, generator=random.Random(7))
    assert commits > 0


def test_a_killed_build_run_again_gives_the_uninterrupted_index(tmp_path: Path) -> None:
    kill_builds(tmp_path, kills=3, generator=random.Random(7))
