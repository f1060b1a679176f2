"""A server in processes of its own, and what each of them takes of the cores."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

import orjson

from runtime.errors import LexpertError

START_S = 180.0
PARTS = (
    ("API", re.compile(r"ray::ServeReplica:\w+:api\b")),
    ("other replicas", re.compile(r"ray::ServeReplica")),
    ("HAProxy", re.compile(r"haproxy .*-f |^\S*haproxy ")),
    ("Ray's proxy", re.compile(r"ray::ProxyActor")),
    ("controller", re.compile(r"ray::ServeController")),
)
"""What a process of the server is, by its command line; the rest is Ray's own."""
REST = "Ray"


@dataclass(frozen=True)
class ServerProcess:
    """A server on a port of 127.0.0.1, started by `serving`."""

    pid: int
    port: int
    log: Path

    def processes(self) -> dict[int, str]:
        """All its processes by number, with the part of it that each is."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _read(entry / "stat")):
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
        family = {self.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return {pid: part_of(_read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")) for pid in family}

    def pids(self, part: str) -> list[int]:
        """The processes that are this part of the server, oldest first."""
        return sorted(pid for pid, of in self.processes().items() if of == part)

    def cpu_s(self) -> dict[str, float]:
        """Seconds of the cores that each part has had; those of processes that have ended are not in it."""
        had: dict[str, float] = {}
        for pid, part in self.processes().items():
            if stat := _read(Path(f"/proc/{pid}/stat")):
                fields = stat.rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                had[part] = had.get(part, 0.0) + seconds
        return had

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of each part that no other process shares."""
        held: dict[str, int] = {}
        for pid, part in self.processes().items():
            found = re.findall(r"^Private_\w+: +(\d+) kB$", _read(Path(f"/proc/{pid}/smaps_rollup")), re.M)
            held[part] = held.get(part, 0) + 1024 * sum(map(int, found))
        return held

    def descriptors(self) -> dict[str, int]:
        """Open files and sockets of each part."""
        held: dict[str, int] = {}
        for pid, part in self.processes().items():
            try:
                count = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
            held[part] = held.get(part, 0) + count
        return held


def part_of(command: str) -> str:
    return next((name for name, pattern in PARTS if pattern.search(command)), REST)


def _read(path: Path) -> str:
    """A file of /proc; empty if its process has gone."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


@contextmanager
def serving(configuration: dict[str, Any], folder: Path) -> Iterator[ServerProcess]:
    """Run ``lexpert serve`` on a configuration, at a free port, until the context is left.

    Args:
        configuration: as the file has it.
        folder: for the file and the server's log.

    Raises:
        LexpertError: it did not start; its log says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, log = folder / "server.json", folder / "server.log"
    file.write_bytes(orjson.dumps({"port": 0, **configuration}))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*ends_with_us(), sys.executable, "-m", "lexpert", "serve", str(file)],
            stdout=out,
            stderr=out,
            process_group=0,  # Ctrl-C is for whoever measures, who then ends it in order
        )
    try:
        yield ServerProcess(process.pid, started(process, log), log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ends_with_us() -> list[str]:
    """What a command begins with that shall be told to end should this process be killed; nothing where none can be."""
    return ["setpriv", "--pdeathsig", "TERM"] if which("setpriv") else []


def started(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port, when the server says that it serves."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"serving on http://127\.0\.0\.1:(\d+)", log.read_text("utf-8", "replace")):
            return int(found.group(1))
        time.sleep(0.1)
    raise LexpertError(f"the server did not start; what it said is in {log}")
