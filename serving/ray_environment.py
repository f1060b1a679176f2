"""What Ray must be told before it starts: environment variables, and where it takes none, itself.

Ray reads most settings from the environment of the process that starts it. The values here give a single-node
server that listens on loopback only, writes nothing into the home folder, and keeps the Python proxy off the
request path. A cluster that others manage takes a few of them, see `cluster_settings`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.cluster_token import cluster_token
from runtime.cores import available_cores
from runtime.errors import ConflictError, LexpertError, NotFoundError
from serving.configuration import HOST, ServerConfiguration
from serving.haproxy import haproxy_settings, usable_haproxy
from serving.log import log_to_file, log_to_standard_error
from serving.ports import choose_port
from serving.private_folder import TOKEN_FILE

logger = logging.getLogger("serving")


@contextmanager
def environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables (None: remove), and put back what was there at the end."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


SPEED: dict[str, str | None] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Ray's own would leave clients refused for half a minute when a proxy dies.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    # On a machine with much else to do a proxy may take longer to start than the five seconds that Ray gives it.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
"""What makes Ray Serve fast, on one machine as in a cluster."""

SHAPE: dict[str, str | None] = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.request_identity.serve_middlewares",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What gives answers that are Ray's own the form of ours, and what keeps it from telling others of us."""


def cluster_settings() -> dict[str, str | None]:
    """Environment variables for every node of a cluster that others manage."""
    return SPEED | SHAPE


def ray_settings(folder: Path, configuration: ServerConfiguration) -> dict[str, str | None]:
    """Environment variables for a server on this machine whose private folder is `folder`.

    Raises:
        NotFoundError: the configuration asks for HAProxy, and it is not usable here.
    """
    token = folder / TOKEN_FILE
    token.touch(mode=0o600)
    token.write_text(cluster_token(), "ascii")
    settings = (
        SPEED
        | SHAPE
        | {
            # Loopback for Ray's own ports, a token for all of them, and nothing told to anybody.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": None,  # unset, Ray turns the token on where it knows of it
            "RAY_AUTH_TOKEN_PATH": str(token),
            # Said on standard output whenever Serve stops, and no fault.
            "RAY_DEDUP_LOGS_SKIP_REGEX": r"ServeController\.graceful_shutdown failed",
            # The workers run in this environment as it is, also below `uv run`.
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            # Without these a replica computes on one core, at a lower priority than its clients.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(available_cores())),
            "RAY_worker_niceness": "0",
            # Replicas leave when the server stops: nobody needs time to learn of it.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(choose_port(0)),
        }
    )
    binary = haproxy_for(configuration)
    if binary is None:
        return settings | {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    return settings | haproxy_settings(folder, binary, configuration.limits, configuration.host)


def has_haproxy(settings: Mapping[str, str | None]) -> bool:
    """Whether a server with these settings has HAProxy in front of it."""
    return settings["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def haproxy_for(configuration: ServerConfiguration) -> str | None:
    """The HAProxy to take; None for Ray's Python proxy, which is said in the log unless it was asked for.

    Raises:
        NotFoundError: it is asked for, and not usable here.
    """
    if configuration.proxy == "python":
        return None
    binary, fault = usable_haproxy()
    if binary is None and configuration.proxy == "haproxy":
        raise NotFoundError(f"proxy is haproxy, but {fault}; mend that, or set proxy to auto")
    if binary is None:
        logger.warning(
            "HAProxy is not usable here, so requests go through Ray's slower Python proxy: %s", fault
        )
    return binary


def require_loopback_only() -> None:
    """Raise unless Ray, as this process imported it, keeps its ports on loopback.

    Raises:
        ConflictError: this process imported Ray before the settings were made.
        LexpertError: this version of Ray has no such settings, as far as is known.
    """
    from ray._private import ray_constants

    is_open = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if is_open is None:
        raise cannot_keep_to_loopback()
    if is_open:
        raise ConflictError(
            "this process has imported Ray already, with other settings than the server's; "
            "start the server from a process that has not"
        )


@dataclass(frozen=True)
class Place:
    """Where the replicas of a server run.

    Attributes:
        log_file: where their log goes; None in a cluster, where what they write to standard error is in Ray's logs.
        is_one_machine: whether no other machine needs to call them.
    """

    log_file: Path | None
    is_one_machine: bool

    @classmethod
    def of(cls, configuration: ServerConfiguration, log_file: Path | None) -> Place:
        """Nobody else has part in a server that was started with a log file, or that listens on 127.0.0.1."""
        return cls(log_file, log_file is not None or configuration.host == HOST)

    def prepare(self) -> None:
        """Called in each replica as it starts.

        Raises:
            LexpertError: this version of Ray cannot be kept on this machine.
        """
        if self.log_file is None:
            log_to_standard_error()
        else:
            log_to_file(self.log_file)
        if self.is_one_machine:
            keep_replica_on_loopback()


def keep_replica_on_loopback() -> None:
    """Binds the port that other replicas would call to loopback.

    Ray Serve opens it on every interface, and has no setting for it.

    Raises:
        LexpertError: this version of Ray opens it in another way.
    """
    from ray.serve._private import replica

    open_port = getattr(replica, "add_port_to_grpc_server", None)
    if open_port is None:
        raise cannot_keep_to_loopback()

    def open_port_on_loopback(server: Any, address: str) -> int:
        port = address.rpartition(":")[2]
        return int(open_port(server, f"{HOST}:{port}"))

    replica.add_port_to_grpc_server = open_port_on_loopback


def cannot_keep_to_loopback() -> LexpertError:
    import ray

    return LexpertError(
        f"the server cannot keep the ports of Ray {ray.__version__} on this machine, so it does not start; "
        "install a version that it can: pip install 'ray[serve]==2.60.*'"
    )


def require_ray() -> None:
    """Raise NotFoundError unless Ray Serve is installed."""
    if find_spec("ray") is None or find_spec("uvicorn") is None:
        raise NotFoundError("serving needs Ray Serve; run: pip install 'lexpert[serving]'")
