"""A training is gone on with as it was started, and its folder says what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.errors import FormatError, UsageError
from runtime.run_folder import RunFolder, open_run, write_json

ASKED: dict[str, Any] = {"base": "a", "penalties.queries.strength": 0.5, "penalties.passages": None}


def begun(out: Path, mark: str) -> None:
    with open_run(out, ASKED, resume=False) as run:
        path = getattr(run, mark)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")


@pytest.mark.parametrize("mark", ["tokens", "report"])
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({**ASKED, "base": "b"}, "base 'a', and is asked to go on with base 'b'"),
        (
            {"base": "a", "penalties.queries": None, "penalties.passages": None},
            "penalties.queries.strength 0.5",
        ),
        ({**ASKED, "penalties.passages.strength": 0.5}, "penalties.passages.strength None"),
    ],
    ids=["other", "left-out", "added"],
)
def test_another_request_is_refused(
    request_: dict[str, Any], message: str, mark: str, tmp_path: Path
) -> None:
    begun(tmp_path / "out", mark)
    with pytest.raises(UsageError, match=message), open_run(tmp_path / "out", request_, resume=True):
        pass
    with open_run(tmp_path / "out", ASKED, resume=True) as run:
        assert getattr(run, mark).exists()


def test_a_checkpoint_that_has_changed_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.last_step() is None
    for step in (3, 10):
        run.checkpoint(step).mkdir(parents=True)
        for name in ("weights", "state"):
            (run.checkpoint(step) / name).write_text(f"{name} {step}")
        run.finish_checkpoint(step, keep=2)
    assert run.last_step() == 10
    run.verify(10)
    for damage in ("state 11", "state", None):
        path = run.checkpoint(10) / "state"
        path.unlink() if damage is None else path.write_text(damage)
        with pytest.raises(FormatError, match=r"checkpoint-10/state is (damaged|missing); remove its folder"):
            run.verify(10)
    run.verify(3)
    (run.checkpoint(3) / "complete").write_text("")  # as it was once
    run.verify(3)


def test_processes_that_do_not_lead_open_nothing(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "out", ASKED, resume=False) as first,
        open_run(tmp_path / "out", {}, resume=False, leads=False) as other,
    ):
        assert other.request == first.request
    write_json(tmp_path / "out" / "training.json", ASKED)
    assert RunFolder(tmp_path / "out").complete_steps() == []
