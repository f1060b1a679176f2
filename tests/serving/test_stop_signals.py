"""Ctrl-C and SIGTERM, at every moment of a server's life."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
import typer

from serving import application, cli, demo
from serving.application import RunningServer
from serving.configuration import ServerConfiguration

CONFIGURATION = ServerConfiguration(indexes={"docs": Path("docs")})

During = Callable[[str, Callable[[], None]], None]


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], During]]:
    """What a server that only notes its moments went through; `during` does something at one of them."""
    moments: list[str] = []
    doing: dict[str, Callable[[], None]] = {}

    def reach(moment: str) -> None:
        doing.pop(moment, lambda: None)()
        moments.append(moment)

    @contextmanager
    def running(_: ServerConfiguration, _log: TextIO | None = None) -> Iterator[RunningServer]:
        try:
            reach("started")
            yield RunningServer("http://127.0.0.1:1", 1)
        finally:
            reach("stopping")
            moments.append("stopped")

    monkeypatch.setattr(application, "running", running)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield moments, doing.__setitem__
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def interrupt(*numbers: signal.Signals) -> Callable[[], None]:
    def send() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


def test_a_signal_while_the_server_starts_unwinds_and_a_second_does_not_interrupt_that(
    happened: tuple[list[str], During], capsys: pytest.CaptureFixture[str]
) -> None:
    moments, during = happened
    during("started", interrupt(signal.SIGTERM))
    during("stopping", interrupt(signal.SIGINT, signal.SIGINT))
    with pytest.raises(typer.Exit) as ended, cli.serving(CONFIGURATION):
        pass
    assert ended.value.exit_code == 1
    assert moments == ["stopping", "stopped"]
    assert capsys.readouterr().err == "stopped before it could serve\n"


def test_a_signal_that_was_swallowed_while_the_server_started_still_ends_it(
    happened: tuple[list[str], During],
) -> None:
    moments, during = happened

    def swallow() -> None:
        with pytest.raises(KeyboardInterrupt):
            interrupt(signal.SIGINT)()

    during("started", swallow)
    with cli.serving(CONFIGURATION) as (_, stop):
        stop.wait()
    assert moments == ["started", "stopping", "stopped"]


def test_signals_while_it_serves_and_stops_interrupt_nothing(
    happened: tuple[list[str], During], capsys: pytest.CaptureFixture[str]
) -> None:
    moments, during = happened
    during("stopping", interrupt(signal.SIGINT, signal.SIGINT))
    with cli.serving(CONFIGURATION) as (_, stop):
        assert not stop.is_requested
        interrupt(signal.SIGINT, signal.SIGTERM)()
        assert stop.is_requested
        stop.wait()
    assert moments == ["started", "stopping", "stopped"]
    assert capsys.readouterr().err == ""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions of a demo that prepares nothing; a signal comes with the first."""
    questions: list[str] = []

    def ask(_: str, question: str) -> dict[str, Any]:
        interrupt(signal.SIGINT)()
        questions.append(question)
        return {}

    class Prepared:
        index = Path("index")

    monkeypatch.setattr(demo, "prepare", lambda _: Prepared())
    monkeypatch.setattr(demo, "show_preparation", lambda *_: None)
    monkeypatch.setattr(demo, "show_answer", lambda *_: None)
    monkeypatch.setattr(demo, "ask", ask)
    return questions


@pytest.mark.parametrize("once", [True, False])
def test_the_demo_ends_after_the_question_in_which_it_is_asked_to(
    happened: tuple[list[str], During],
    asked: list[str],
    once: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moments, during = happened
    during("stopping", interrupt(signal.SIGINT, signal.SIGINT))
    cli.demo(once=once, port=0, folder=tmp_path)
    assert asked == list(demo.QUESTIONS[:1])
    assert moments == ["started", "stopping", "stopped"]
    assert "before it could serve" not in capsys.readouterr().err
