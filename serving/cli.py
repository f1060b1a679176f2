"""The command `lexpert serve`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Self, TextIO

import typer

from runtime.errors import UsageError

if TYPE_CHECKING:
    from serving.application import RunningServer
    from serving.configuration import ServerConfiguration

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE.yaml", help="A configuration, in place of the options that follow."),
    ] = None,
    index: Annotated[
        list[str] | None,
        typer.Option("--index", metavar="NAME=DIR", help="An index folder and its name in URLs; repeatable."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the indexes that are made over HTTP; made if missing.", metavar="DIR"),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder",
            metavar="NAME=DIR",
            help="An encoder that indexes may be made with, beside bm25; repeatable.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=DIR", help="A decoder that generates; repeatable."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of the keys that requests must have; readable by you alone.",
            metavar="FILE",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port on 127.0.0.1, 8000 if not given; 0 takes a free one.", min=0, max=65535),
    ] = None,
    print_ray_config: Annotated[
        bool,
        typer.Option("--print-ray-config", help="Print what `serve deploy` and KubeRay take, and end."),
    ] = False,
) -> None:
    """Serve indexes and models over HTTP on 127.0.0.1 until Ctrl-C.

    \b
    Examples:
      lexpert serve --index docs=./docs-index
      lexpert serve --index docs=./docs-index --index papers=./papers-index --port 9000
      lexpert serve --data ./data
      lexpert serve --model stories=./stories
      lexpert serve --index docs=./docs-index --keys keys.yaml
      lexpert serve server.yaml
      lexpert serve server.yaml --print-ray-config > ray.yaml

    \b
    Ask it from another terminal:
      curl -s http://127.0.0.1:8000/v1/indexes/docs/search \\
        -H 'content-type: application/json' -d '{"query": "open a file", "k": 3, "with": ["text"]}'
    """
    from serving.configuration_file import read_configuration
    from serving.ray_config import ray_config_text

    if file is not None and (given := [index, data, encoder, model, keys, port]) != [None] * len(given):
        raise UsageError(f"give either {file} or options; what they say can stand in the file")
    configuration = (
        read_configuration(file)
        if file is not None
        else configure(index or [], port, data, encoder or [], model or [], keys)
    )
    if print_ray_config:
        print(ray_config_text(configuration), end="")
        return
    served = sorted({*configuration.indexes, *configuration.models})
    if configuration.data is not None:
        served.append(str(data or configuration.data))
    say(f"starting a server for {', '.join(served)} …")
    with serving(configuration) as (server, stop):
        say(f"serving on {server.url} (Ctrl-C stops it); for example:")
        say(example_of(configuration, server.url))
        stop.wait()
        say("stopping …")
    say("stopped")


def demo(
    once: Annotated[bool, typer.Option("--once", help="End when the answers are printed.")] = False,
    port: Annotated[
        int, typer.Option(help="Port on 127.0.0.1; a free one if it is taken.", min=0, max=65535)
    ] = 8000,
    folder: Annotated[
        Path, typer.Option(help="Where the index and the report go; kept for the next run.", metavar="DIR")
    ] = Path(".lexpert/demo"),
) -> None:
    """Index, evaluate, serve and search the documentation of this machine's Python.

    \b
    Examples:
      lexpert demo
      lexpert demo --once
    """
    from rich.console import Console

    from serving.configuration import ServerConfiguration
    from serving.demo import INDEX_NAME, QUESTIONS, ask, free_port, prepare, show_answer, show_preparation

    console = Console()
    prepared = prepare(folder)
    show_preparation(prepared, console)
    say(f"starting the server for {prepared.index} …")
    configuration = ServerConfiguration(indexes={INDEX_NAME: prepared.index.absolute()}, port=free_port(port))
    # Beside what it finds, its log would be noise.
    with (folder / "server.log").open("w") as log, serving(configuration, log) as (server, stop):
        for question in QUESTIONS:
            if not stop.is_requested:
                show_answer(question, ask(server.url, question), console)
        if not once and not stop.is_requested:
            console.print(f"\nserving on {server.url} until Ctrl-C; ask it something:")
            console.print(example(server.url, INDEX_NAME), highlight=False, soft_wrap=True)
            stop.wait()
    if not once:
        say("stopped")


@contextmanager
def serving(
    configuration: ServerConfiguration, log: TextIO | None = None
) -> Iterator[tuple[RunningServer, StopSignals]]:
    """A running server, and the signals that ask for its end; stopped when the context is left.

    Args:
        log: where the lines of its log go; standard error if None.

    Raises:
        typer.Exit: the end was asked for before it could serve.
    """
    from serving.application import running

    with StopSignals() as stop:
        try:
            with running(configuration, log) as server:
                stop.only_note()
                yield server, stop
        except KeyboardInterrupt:
            say("stopped before it could serve")
            raise typer.Exit(1) from None


def example(url: str, index: str) -> str:
    """A command line that asks a server."""
    body = '{"query": "your question", "k": 3}'
    return f"  curl -s {url}/v1/indexes/{index}/search -H 'content-type: application/json' -d '{body}'"


def example_of(configuration: ServerConfiguration, url: str) -> str:
    """A command line that asks a server for what it has."""
    key = ' -H "authorization: Bearer $KEY"' if configuration.has_keys else ""
    if configuration.indexes or not configuration.models:
        return example(url, min(configuration.indexes, default="NAME")) + key
    body = f'{{"model": "{min(configuration.models)}", "prompt": "Once upon a time", "max_tokens": 64}}'
    return f"  curl -s {url}/v1/completions -H 'content-type: application/json' -d '{body}'{key}"


def configure(
    indexes: Sequence[str],
    port: int | None = None,
    data: Path | None = None,
    encoders: Sequence[str] = (),
    models: Sequence[str] = (),
    keys: Path | None = None,
) -> ServerConfiguration:
    """The configuration that the options ask for; what none asks for is left to its default.

    Raises:
        UsageError: there is nothing to serve, or an index, encoder or model is not NAME=DIR, has a name that cannot
            stand in a URL, or is named twice.
    """
    from serving.configuration import ServerConfiguration

    if not indexes and not models and data is None:
        raise UsageError(
            "there is nothing to serve; give --index NAME=DIR, --model NAME=DIR, or --data DIR for indexes to be made "
            "over HTTP"
        )
    asked: dict[str, Any] = {
        "indexes": {name: Path(folder).absolute() for name, folder in named("--index", indexes).items()},
        "models": {name: Path(folder).absolute() for name, folder in named("--model", models).items()},
        "keys_file": keys.absolute() if keys is not None else None,
        "port": port,
        "data": data.absolute() if data is not None else None,
        "encoders": {
            name: str(Path(place).absolute()) if Path(place).exists() else place
            for name, place in named("--encoder", encoders).items()
        },
    }
    return ServerConfiguration(**{name: value for name, value in asked.items() if value not in (None, {})})


def named(flag: str, options: Sequence[str]) -> dict[str, str]:
    """Options of the form NAME=DIR; UsageError for any other."""
    import re

    from serving.configuration import INDEX_NAME

    kind = flag.strip("-")
    found: dict[str, str] = {}
    for option in options:
        name, separator, folder = option.partition("=")
        if not separator or not folder:
            raise UsageError(f"{flag} {option} must be NAME=DIR, for example {flag} docs=./docs-{kind}")
        if not re.fullmatch(INDEX_NAME, name):
            raise UsageError(
                f"{flag} {option}: the name {name!r} must be 1 to 64 letters, digits, dots, dashes or "
                "underscores, with a letter or digit first"
            )
        if name in found:
            raise UsageError(f"{flag} names {name!r} twice; give each {kind} a name of its own")
        found[name] = folder
    return found


class StopSignals:
    """Ctrl-C and SIGTERM: while the server starts the first unwinds what was started, later ones are only noted.

    So asking again does no harm: neither the unwinding nor the orderly end is interrupted.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._only_notes = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_requested(self) -> bool:
        """Whether the end was asked for."""
        return self._requested.is_set()

    def only_note(self) -> None:
        """From here on a signal interrupts nothing: whoever serves asks `is_requested`, or waits.

        The signals are taken back from Ray, which takes them over when it starts.
        """
        self._only_notes = True
        self._take()

    def wait(self) -> None:
        """Return when the end is asked for."""
        self._requested.wait()

    def _take(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        is_first = not self._requested.is_set()
        self._requested.set()
        if is_first and not self._only_notes:
            raise KeyboardInterrupt


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
