"""What clients see when parts of a server die, are replaced, or have far more to do than they can.

    python bench/serve_faults.py [--faults replica,haproxy,controller,update,overload,soak] [--kills 10]
        [--overload-seconds 60] [--soak-minutes 30]

Two servers are started one after the other: one of two replicas, of which parts are killed under load, and one whose
limits are low. Plain requests are sent over 8 connections; beside them our client asks in 3 threads. A table tells what
was seen beside the goal; the exit code is 1 if one was missed. Times depend on what else the machine does: what is
started again is started from nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving.bench.faults import (
    INDEX,
    Seen,
    overload,
    part_killed,
    replica_killed,
    small_index,
    soak,
    updated,
)
from serving.bench.server_process import ServerProcess, serving
from serving.ray_environment import ray_settings

FAULTS = ("replica", "haproxy", "controller", "update", "overload", "soak")
REPLICAS, IN_HAND = 2, 8


def updates(index: Path, scratch: Path) -> list[Seen]:
    """Deploy anew from the process that deployed first, as the application is and with an index that is not there."""
    from serving import application
    from serving.configuration import ServerConfiguration
    from serving.deployments import APPLICATION, serve_application

    configuration = ServerConfiguration(indexes={INDEX: index}, port=0, replicas=REPLICAS)
    log_file = scratch / "update.log"
    log_file.touch()

    def deploy(indexes: dict[str, Path]) -> None:
        from ray import serve

        changed = configuration.model_copy(update={"indexes": indexes, "threads": configuration.threads + 1})
        serve.run(serve_application(changed, log_file), name=APPLICATION, route_prefix="/")

    def settings(folder: Path, of: ServerConfiguration) -> dict[str, str | None]:
        """Those of one machine, where nothing is updated, but for the time that replicas of a cluster have to leave."""
        return ray_settings(folder, of) | {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5"}

    with (
        patch.object(application, "ray_settings", settings),
        (scratch / "server.log").open("w") as log,
        application.running(configuration, log) as server,
    ):
        here = ServerProcess(os.getpid(), server.port, log_file)
        good = updated(here, REPLICAS, lambda: deploy({INDEX: index}), is_refused=False)
        missing = {INDEX: scratch / "missing"}
        return [good, updated(here, REPLICAS, lambda: deploy(missing), is_refused=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--overload-seconds", type=float, default=60)
    parser.add_argument("--soak-minutes", type=float, default=30)
    given = parser.parse_args()
    chosen = given.faults.split(",")
    if unknown := set(chosen) - set(FAULTS):
        parser.error(f"--faults has {min(unknown)!r}; choose from {', '.join(FAULTS)}")
    killing: dict[str, Callable[[ServerProcess], Seen]] = {
        "replica": lambda server: replica_killed(server, given.kills),
        "haproxy": lambda server: part_killed(server, "HAProxy", 5.0),
        "controller": lambda server: part_killed(server, "controller", 0.0),
    }
    loading: dict[str, Callable[[ServerProcess], Seen]] = {
        "overload": lambda server: overload(server, given.overload_seconds, IN_HAND),
        "soak": lambda server: soak(server, given.soak_minutes),
    }
    found: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        scratch = Path(temporary)
        index = small_index(scratch / "index")
        limits = {"max_in_hand": IN_HAND}
        for kinds, configuration in (
            (killing, {"replicas": REPLICAS}),
            (loading, {"threads": 1, "limits": limits}),
        ):
            asked = [kinds[fault] for fault in chosen if fault in kinds]
            if asked:
                with serving({"indexes": {INDEX: str(index)}, **configuration}, scratch / "server") as server:
                    found += [told(fault(server)) for fault in asked]
        if "update" in chosen:
            found += map(told, updates(index, scratch))
    print_faults(found)
    sys.exit(not all(seen.is_reached for seen in found))


def told(seen: Seen) -> Seen:
    print(f"{seen.fault}: {seen.values}", file=sys.stderr, flush=True)
    return seen


def print_faults(found: Sequence[Seen]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("fault", "seen", "goal", "reached"):
        table.add_column(heading)
    for seen in found:
        values = "\n".join(f"{name}: {value}" for name, value in seen.values.items())
        table.add_row(seen.fault, values, seen.goal, "yes" if seen.is_reached else "no")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
