"""Parts of a real server are killed under load; ``bench/serve_faults.py`` does the same for longer, with times.

All but the first are marked: they run with ``make test ARGS='-m faults -n 0'``, on a machine that does nothing else.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.serve_faults import IN_HAND, updates
from serving.bench.faults import (
    CONNECTIONS,
    INDEX,
    Seen,
    overload,
    part_killed,
    replica_killed,
    replicas_answering,
    search_requests,
    small_index,
    wait_for,
    watched,
)
from serving.bench.server_process import ServerProcess, serving
from serving.haproxy import usable_haproxy

# Not importorskip: Ray must be imported by the server, after its settings are made.
pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra"),
    pytest.mark.skipif(usable_haproxy()[0] is None, reason="needs HAProxy"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_index(tmp_path_factory.mktemp("faults") / "index")


@pytest.fixture(scope="module")
def server(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    configuration = {"indexes": {INDEX: str(index)}, "replicas": 2}
    with serving(configuration, tmp_path_factory.mktemp("two-replicas")) as started:
        yield started


def dropped(seen: Seen) -> int:
    return sum(seen.values["not 200"].values())


def test_our_client_does_not_notice_that_a_replica_is_killed(server: ServerProcess) -> None:
    """Under a load that leaves the machine time to start another, for as long as that takes."""

    def is_replaced() -> bool:
        return len(set(server.pids("API")) - {killed}) == 2 and replicas_answering(server.port) >= 2

    with watched(server.port, search_requests(), 0, pause_s=0.1, deadline_s=120) as seen:
        assert math.isfinite(wait_for(lambda: seen.done >= 10, 120))
        killed = server.pids("API")[0]
        os.kill(killed, signal.SIGKILL)
        assert math.isfinite(wait_for(is_replaced, 180))
        before = seen.done
        assert math.isfinite(wait_for(lambda: seen.done >= before + 10, 120))
    assert seen.failed == []


@pytest.mark.faults
def test_a_controller_that_is_killed_is_not_missed(server: ServerProcess) -> None:
    seen = part_killed(server, "controller", 0.0, after_s=1.0)
    assert seen.is_reached, seen


@pytest.mark.faults
def test_a_replica_that_is_killed_takes_its_own_requests_along_and_no_more(server: ServerProcess) -> None:
    seen = replica_killed(server)
    assert seen.values["its failures"] == []
    assert seen.values["our client"] > 0
    assert dropped(seen) <= CONNECTIONS
    assert math.isfinite(seen.values["whole again s"])


@pytest.mark.faults
def test_a_proxy_that_is_killed_comes_back_and_our_client_waits_for_it(server: ServerProcess) -> None:
    seen = part_killed(server, "HAProxy", 30.0)
    assert seen.is_reached, seen


@pytest.mark.faults
def test_an_update_loses_neither_requests_nor_replicas_also_if_it_is_refused(
    index: Path, tmp_path: Path
) -> None:
    good, refused = updates(index, tmp_path)
    assert good.is_reached, good
    assert refused.is_reached, refused


@pytest.mark.faults
def test_ten_times_too_much_is_refused_at_once(index: Path, tmp_path: Path) -> None:
    configuration = {"indexes": {INDEX: str(index)}, "threads": 1, "limits": {"max_in_hand": IN_HAND}}
    with serving(configuration, tmp_path) as server:
        seen = overload(server, 2.0, IN_HAND)
    assert seen.values["statuses"].keys() == {200, 429}
    assert seen.values["afterwards"].keys() == {200}
