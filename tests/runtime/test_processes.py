"""What the environment says of processes is whole, or refused."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from runtime.errors import UsageError
from runtime.processes import joined_processes

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("size", [None, "1"])
def test_one_process_needs_no_variables(size: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    with joined_processes("cpu") as processes:
        assert (processes.count, processes.rank, processes.device, processes.leads) == (1, 0, "cpu", True)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=f"torch cannot use the device {device}"), joined_processes(device):
        pass


@pytest.mark.parametrize("size", ["abc", "", "0", "-1", "1.5"])
def test_no_number_of_processes_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UsageError, match="not a number of processes"), joined_processes("cpu"):
        pass


def test_variables_of_a_scheduler_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(UsageError, match="LOCAL_RANK is not set; start them with torchrun"),
        joined_processes("cpu"),
    ):
        pass


def test_a_numbered_device_for_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("2", "0", "0", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="cannot share cuda:1"), joined_processes("cuda:1"):
        pass
