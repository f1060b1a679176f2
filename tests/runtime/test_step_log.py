"""Figures of steps stay in their file, or it is said why they do not."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

from runtime.errors import LexpertError
from runtime.step_log import StepLog, read_records


def test_later_records_and_half_a_line_are_gone_when_a_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(path, tmp_path / "tensorboard")
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 0.5})
    log.flush()
    log.close()
    path.write_bytes(path.read_bytes() + b'{"step": 4, "lo')
    assert [record["step"] for record in read_records(path)] == [1, 2, 3]
    log = StepLog(path, tmp_path / "tensorboard", step=2)
    log.add({"step": 3, "loss": 0.25})
    log.close()
    assert [record["loss"] for record in read_records(path)] == [0.5, 0.5, 0.25]


def test_what_cannot_be_written_is_said_and_closing_says_nothing_else(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            log = StepLog(tmp_path / "steps.jsonl", tmp_path / "tensorboard")
            log.add({"step": 1, "loss": 0.5})
            log._board = None  # its events would reach the limit first
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (90, 90))
            try:
                for step in range(2, 100):
                    log.add({"step": step, "loss": 0.5})
            except LexpertError as error:
                said = "steps.jsonl could not be written: File too large" in str(error)
                log.close()
                status = 0 if said else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    records = read_records(tmp_path / "steps.jsonl")  # the last line is a part of one
    assert [record["step"] for record in records] == [1, 2, 3]
