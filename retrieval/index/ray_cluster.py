"""Ray for the length of one build: the cluster that an address names, or one of this machine alone."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from runtime.cluster_token import cluster_token
from runtime.cores import available_cores
from runtime.errors import ConflictError, LexpertError, NotFoundError

OBJECT_STORE_BYTES = 256 << 20
"""Only numbers and names pass through it: vectors go from the tasks that make them straight into segments."""

CONNECT_S = 10.0


@contextmanager
def ray_cluster(address: str | None, workers: int | None) -> Iterator[int]:
    """Connect to Ray, or start it, and yield the number of cores that it has.

    A cluster that is started here listens on loopback only, wants a token from whoever connects, tells nobody
    anything, and is gone with all its processes when the context is left. A cluster that this process has
    connected to already is used as it is.

    Args:
        address: of a running cluster; None for ``RAY_ADDRESS``, and where that is not set, this machine.
        workers: cores to use on this machine; default: all.

    Raises:
        NotFoundError: Ray is not installed, or there is no cluster at the address.
        ConflictError: this process imported Ray before the settings were made.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None or find_spec("pandas") is None:
        raise NotFoundError("building on Ray needs Ray Data; run: pip install 'lexpert[cluster]'")
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _require_answer(address)
    # What Ray has to say of its workers is not the result of a command.
    with tempfile.TemporaryDirectory(prefix="lexpert-") as folder, redirect_stdout(sys.stderr):
        before = dict(os.environ)
        if address is None:
            _prepare(Path(folder))
        else:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        import ray.data  # sets the level of its loggers when it is imported

        is_ours = not ray.is_initialized()
        quiet = [logging.getLogger(name) for name in ("ray", "ray.data")]
        levels = [each.level for each in quiet]
        try:
            if is_ours and address is None:
                _require_loopback_only()
                ray.init(
                    address="local",
                    num_cpus=workers or available_cores(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(Path(folder) / "ray"),
                )
            elif is_ours:
                _connect(address or "")
            for each in quiet:
                each.setLevel(logging.ERROR)
            cores = int(ray.cluster_resources().get("CPU", 1))
            yield min(workers, cores) if workers else cores
        finally:
            if is_ours:
                ray.shutdown()
            for each, level in zip(quiet, levels, strict=True):
                each.setLevel(level)
            os.environ.clear()
            os.environ.update(before)


def _prepare(folder: Path) -> None:
    """Set what Ray reads from the environment before it starts."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(cluster_token(), "ascii")
    os.environ.pop("RAY_AUTH_MODE", None)  # unset, Ray turns the token on where it knows of it
    os.environ.update(
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # loopback for Ray's own ports
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_worker_niceness="0",
        RAY_BACKEND_LOG_LEVEL="fatal",  # Ray's own notes would come between the lines of progress
    )


def _require_loopback_only() -> None:
    """Raise unless Ray, as this process imported it, keeps its ports on loopback."""
    import ray
    from ray._private import ray_constants

    is_open = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if is_open is None:
        raise LexpertError(
            f"Ray {ray.__version__} has no known way to keep its ports on this machine; "
            "install another: pip install 'ray[data]==2.60.*'"
        )
    if is_open:
        raise ConflictError(
            "this process has imported Ray already, with ports open to the network; "
            "import it after the build, or connect it to a cluster first"
        )


def _require_answer(address: str) -> None:
    """Raise unless something answers at an address of the form ``host:port``: Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error


def _connect(address: str) -> None:
    import ray

    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> NotFoundError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return NotFoundError(
        f"there is no Ray cluster at {address} ({reason}); start one with `ray start --head`, "
        "or leave the address out to use this machine"
    )
