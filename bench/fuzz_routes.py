"""Requests made from the description of the routes: is there one that the server fails on?

    python bench/fuzz_routes.py [--requests 100000] [--seed 0] [--minutes 60]

A server in this process has an index to read, a folder of indexes that requests make and fill, and a model that says
the same to everybody. Each route in turn gets requests that schemathesis makes from /openapi.json, half of which keep
to it, and bodies that Hypothesis draws from all of JSON and from all bytes; most name what is there. An answer is wrong
if its status is 500 or more, if it holds a trace, if an error is not of the shape that is documented, or if it takes
longer than `SLOW_S`. The first of each kind is printed with its route, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SLOW_S = 30.0
NAMES = ("bench", "made", None)
IDS = ("1", "a/b", None)
FIELDS = (
    "query",
    "queries",
    "vector",
    "k",
    "filter",
    "with",
    "input",
    "model",
    "documents",
    "id",
    "text",
    "all",
    "field",
)
BATCH = 100
"""Requests to a route before the next one has its turn."""


@dataclass
class Fuzzed:
    """What came of the requests.

    Attributes:
        statuses: how many answers of each.
        wrong: what was wrong with an answer, by route and kind; the first of each.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: dict[tuple[str, str], str] = field(default_factory=dict)
    slowest_s: float = 0.0

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    def check(self, label: str, status: int, headers: Any, body: bytes, seconds: float, asked: str) -> None:
        """Note an answer, and what is wrong with it."""
        self.statuses[status] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        for kind, is_so in (
            # A request may ask for less time than it takes.
            (f"status {status}", status >= 500 and not (status == 504 and b'"param":"timeout_ms"' in body)),
            ("a trace", b"Traceback (most recent" in body or b'File "/' in body),
            ("slow", seconds > SLOW_S),
            ("the shape of an error", status >= 400 and not is_error(headers, body)),
        ):
            if is_so:
                self.wrong.setdefault((label, kind), f"{asked[:500]} → {body[:300]!r}")


def is_error(headers: Any, body: bytes) -> bool:
    """Whether a body is one of an error, with the id of its request; those of HEAD are empty."""
    if not body:
        return True
    try:
        error = json.loads(body)["error"]
        return bool(error["message"]) and error["request_id"] == headers.get("x-request-id")
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """A client of the server that is asked."""
    from serving.bench.faults import small_index
    from serving.configuration import ServerConfiguration
    from serving.generators import Generators
    from tests.serving.scripted_generator import ScriptedGenerator, Words
    from tests.serving.socket_server import serve

    configuration = ServerConfiguration(
        indexes={"bench": small_index(folder / "index", 200)},
        data=folder / "data",
        models={"words": folder},
        port=0,
        threads=2,
    )

    class Letters(Words):
        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    model = ScriptedGenerator(pieces=["some ", "words ", "[1]"], tokenizer=Letters())
    with serve(configuration, Generators(configuration.models, lambda *_: model)) as client:
        client.put("/v1/indexes/made", json={"encoder": "bm25", "fields": {"year": "int"}}).raise_for_status()
        yield client


def fuzz(client: httpx.Client, requests: int, seed: int = 0, seconds: float = float("inf")) -> Fuzzed:
    """Send so many requests to all routes, or fewer if the time is over."""
    found = Fuzzed()
    ends = time.monotonic() + seconds
    kinds = [
        (operation, kind)
        for operation in described(client.get("/openapi.json").json())
        for kind in kinds_of(operation)
    ]
    draw = random.Random(seed)
    draw.shuffle(kinds)  # so that a short run is one of all routes
    while found.requests < requests and time.monotonic() < ends:
        share = max(1, min(BATCH, (requests - found.requests) // len(kinds)))
        for operation, kind in kinds:
            if found.requests < requests and time.monotonic() < ends:
                send_some(client, operation, kind, share, draw.randrange(1 << 32), found)
    return found


def described(document: dict[str, Any]) -> Iterator[Any]:
    """The operations of an OpenAPI document."""
    import schemathesis

    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        yield result.ok()


def kinds_of(operation: Any) -> list[Any]:
    """Strategies for a route: what keeps to its description, what does not, and bodies of anything."""
    from hypothesis import strategies as st
    from schemathesis import GenerationMode

    # What takes neither a body nor a parameter in its URL can hardly be asked for wrongly.
    modes = list(GenerationMode) if len(operation.body) or len(operation.query) else [GenerationMode.POSITIVE]
    made = [operation.as_strategy(generation_mode=mode) for mode in modes]
    if operation.method.upper() not in ("GET", "HEAD"):
        scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
        values = st.recursive(
            scalars,
            lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(FIELDS), inner),
            max_leaves=12,
        )
        made.append(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
    return made


def send_some(client: httpx.Client, operation: Any, kind: Any, share: int, seed: int, found: Fuzzed) -> None:
    """At most `share` requests of one kind to a route."""
    import hypothesis
    from hypothesis import HealthCheck, Phase
    from hypothesis import strategies as st

    url = str(client.base_url).rstrip("/")
    method, label = operation.method.upper(), operation.label
    session = requests_session()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=share,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=kind, names=st.tuples(st.sampled_from(NAMES), st.sampled_from(IDS)))
    def send(case: Any, names: tuple[str | None, str | None]) -> None:
        known = {"name": names[0], "id": names[1], "model": "words" if names[0] else None, "file": "main.js"}
        known = {name: value for name, value in known.items() if value is not None}
        began = time.perf_counter()
        try:
            if isinstance(case, bytes):
                asked = f"{method} {operation.path} {names} {case!r}"
                path = operation.path
                for name, value in {
                    "name": "none",
                    "id": "none",
                    "model": "none",
                    "file": "x",
                    **known,
                }.items():
                    path = path.replace("{" + name + "}", value)
                answer = session.request(
                    method,
                    url + path,
                    data=case,
                    headers={"content-type": "application/json"},
                    timeout=2 * SLOW_S,
                )
            else:
                given = case.path_parameters or {}
                given.update({name: value for name, value in known.items() if name in given})
                if isinstance(case.body, dict) and "model" in case.body and names[0]:
                    case.body["model"] = "words" if "completions" in operation.path else names[0]
                asked = f"{method} {operation.path} {given} {case.query} {case.headers} {case.body!r}"
                answer = case.call(base_url=url, session=session, timeout=2 * SLOW_S)
        except (UnicodeError, ValueError):  # no client can send this
            return
        except OSError as error:
            found.wrong.setdefault((label, "no answer"), f"{asked[:500]} → {error!r}")
            return
        seconds = time.perf_counter() - began
        headers = {
            name.lower(): value if isinstance(value, str) else value[0]
            for name, value in answer.headers.items()
        }
        found.check(label, answer.status_code, headers, answer.content, seconds, asked)

    with suppress(hypothesis.errors.Unsatisfiable):  # nothing of this kind can be made for the route
        send()


def requests_session() -> Any:
    """Without proxies and keys of the environment."""
    import requests

    session = requests.Session()
    session.trust_env = False
    return session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary, served(Path(temporary)) as client:
        began = time.monotonic()
        found = fuzz(client, given.requests, given.seed, 60 * given.minutes)
        print(f"{found.requests:,} requests in {time.monotonic() - began:.0f} s: {dict(found.statuses)}")
        print(f"the slowest took {found.slowest_s:.1f} s; afterwards: {client.get('/ready').status_code}")
    for (label, kind), example in found.wrong.items():
        print(f"WRONG: {label}: {kind}: {example}")
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
