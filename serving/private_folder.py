"""The folder of one running server: its sockets, logs and the cluster's token, readable by its user alone.

A server that is killed outright cannot remove its folder, and two of Ray's processes outlive it. The next server
of the same user does away with both: the folder says which process owns it, and Ray's processes carry the
folder's name in their environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "lexpert-"
OWNER_FILE = "owner"
TOKEN_FILE = "token"

LONGEST_BASE = 14
"""Below the private folder, Ray makes sockets of up to 66 characters and HAProxy of up to 66 where it takes no more
than 97 in all; the folder itself has 17."""

PROCESSES = Path("/proc")


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder below the system's temporary folder; removed at the end.

    Where the system's temporary folder has too long a name for sockets, it is in /tmp.
    """
    base = tempfile.gettempdir()
    if len(base) > LONGEST_BASE and os.access("/tmp", os.W_OK):
        base = "/tmp"
    sweep(Path(base))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    try:
        if (owner := process_identity(os.getpid())) is not None:
            (folder / OWNER_FILE).write_text(json.dumps(owner), "ascii")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(base: Path) -> None:
    """Remove private folders below `base` whose owner is gone, and end what is left of their servers.

    Only on Linux, where it can be known. Folders of other users, or without a readable owner, are left alone.
    """
    if sys.platform != "linux":
        return
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if is_abandoned(folder):
                for process in processes_of(folder):
                    end(process, folder)
                shutil.rmtree(folder, ignore_errors=True)


def is_abandoned(folder: Path) -> bool:
    """Whether this user's server made the folder, in this process namespace, and its process is gone."""
    about = folder.lstat()
    if (
        not stat.S_ISDIR(about.st_mode)
        or about.st_uid != os.geteuid()
        or stat.S_IMODE(about.st_mode) != 0o700
    ):
        return False
    try:
        owner = json.loads((folder / OWNER_FILE).read_text("ascii"))
        pid, namespace = int(owner["pid"]), owner["namespace"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(namespace == process_namespace() and process_identity(pid) != owner)


def process_identity(pid: int) -> dict[str, int | str] | None:
    """What tells a process from a later one of the same number; None if there is none, or no telling."""
    try:
        status = (PROCESSES / str(pid) / "stat").read_text("utf-8", "replace")
        # After the name, which may contain anything, in parentheses: fields 3 and on; 22 is the start time.
        started = int(status.rpartition(")")[2].split()[19])
        return {"pid": pid, "started": started, "namespace": process_namespace()}
    except (OSError, IndexError, ValueError):
        return None


def process_namespace() -> str:
    """Numbers of processes mean nothing in another namespace (a container that shares the temporary folder)."""
    return os.readlink(PROCESSES / "self" / "ns" / "pid")


def processes_of(folder: Path) -> list[int]:
    return [
        int(each.name)
        for each in PROCESSES.iterdir()
        if each.name.isdigit() and belongs(int(each.name), folder)
    ]


def belongs(pid: int, folder: Path) -> bool:
    """Whether a process is one of Ray's or HAProxy's that the server of that folder started."""
    process = PROCESSES / str(pid)
    try:
        if pid == os.getpid() or process.stat().st_uid != os.geteuid():
            return False
        settings = (process / "environ").read_bytes().split(b"\0")
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    name = os.fsencode(folder)
    is_named = command.startswith(b"ray::") or name + b"/" in command
    return is_named and b"RAY_AUTH_TOKEN_PATH=" + name + b"/" + TOKEN_FILE.encode() in settings


def end(pid: int, folder: Path) -> None:
    """Kill a process of an abandoned server; held by a descriptor, so that its number cannot be another's."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            if belongs(pid, folder):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
