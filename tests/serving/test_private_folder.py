"""What a server that was killed leaves behind, and what must never be taken for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.private_folder import OWNER_FILE, private_folder, process_identity, sweep

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sweeping reads what only Linux shows")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Stands for the system's temporary folder."""
    return tmp_path


@pytest.fixture
def gone() -> dict[str, int | str]:
    """The identity of a process that has ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = process_identity(process.pid)
        process.kill()
    assert identity is not None
    return identity


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def folder_of(base: Path, owner: object, name: str = "lexpert-abcdefgh") -> Path:
    folder = base / name
    folder.mkdir(mode=0o700)
    (folder / OWNER_FILE).write_text(json.dumps(owner))
    return folder


def test_the_folder_of_a_killed_server_is_removed(base: Path, gone: dict[str, int | str]) -> None:
    folder = folder_of(base, gone)
    (folder / "ray").mkdir()
    sweep(base)
    assert not folder.exists()


def test_a_folder_whose_owner_lives_is_left_alone(base: Path) -> None:
    folder = folder_of(base, process_identity(os.getpid()))
    sweep(base)
    assert folder.exists()


def test_a_number_taken_by_a_later_process_does_not_keep_a_folder(base: Path) -> None:
    owner = process_identity(os.getpid())
    assert owner is not None
    folder = folder_of(base, owner | {"started": int(owner["started"]) - 1})
    sweep(base)
    assert not folder.exists()


def test_what_is_not_surely_abandoned_is_left_alone(base: Path, gone: dict[str, int | str]) -> None:
    left = [
        folder_of(base, gone, "other-abcdefgh"),
        folder_of(base, gone | {"namespace": "pid:[1]"}, "lexpert-elsewhere"),
        folder_of(base, [], "lexpert-list"),
        folder_of(base, {"pid": "x", "namespace": ""}, "lexpert-text"),
    ]
    readable = folder_of(base, gone, "lexpert-readable")
    readable.chmod(0o755)
    unmarked = base / "lexpert-unmarked"
    unmarked.mkdir(mode=0o700)
    target = folder_of(base, gone, "target")
    (base / "lexpert-link").symlink_to(target)
    file = base / "lexpert-file"
    file.touch()
    sweep(base)
    assert all(each.exists() for each in (*left, readable, unmarked, target, base / "lexpert-link", file))


def test_only_rays_processes_of_a_killed_server_are_ended(
    base: Path, gone: dict[str, int | str], started: list[subprocess.Popen[bytes]]
) -> None:
    folder = folder_of(base, gone)
    told = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    others = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(base / "lexpert-living" / "token")}

    def start(name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([name, "60"], executable="/bin/sleep", env=environment)
        started.append(process)
        return process

    ended = [start("ray::DashboardAgent", told), start(f"{folder}/p/launch", told)]
    left = [
        start("sleep", told),
        start("ray::DashboardAgent", others),
        start("ray::DashboardAgent", dict(os.environ)),
        start(f"{folder}/notes", others),
    ]
    for process in started:  # until it is no longer a copy of this one
        while b"60" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.001)
    sweep(base)
    assert [process.wait(30) for process in ended] == [-9, -9]
    assert [process.poll() for process in left] == [None] * len(left)


def test_a_server_says_who_owns_its_folder() -> None:
    with private_folder() as folder:
        assert json.loads((folder / OWNER_FILE).read_text()) == process_identity(os.getpid())
