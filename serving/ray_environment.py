"""What Ray must be told before it starts: environment variables, and where it takes none, itself.

Ray reads most settings from the environment of the process that starts it. The values here give a single-node
server that listens on loopback only, writes nothing into the home folder, and keeps the Python proxy off the
request path.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.cluster_token import cluster_token
from runtime.cores import available_cores
from runtime.errors import ConflictError, LexpertError, NotFoundError
from serving.configuration import HOST, Limits
from serving.haproxy import haproxy_settings, usable_haproxy
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


def ray_settings(folder: Path, limits: Limits) -> dict[str, str | None]:
    """Environment variables for a server whose private folder is `folder`."""
    token = folder / TOKEN_FILE
    token.touch(mode=0o600)
    token.write_text(cluster_token(), "ascii")
    settings: dict[str, str | None] = {
        # Loopback for Ray's own ports, a token for all of them, and nothing told to anybody.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": None,  # unset, Ray turns the token on where it knows of it
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Said on standard output whenever Serve stops, and no fault.
        "RAY_DEDUP_LOGS_SKIP_REGEX": r"ServeController\.graceful_shutdown failed",
        # The workers run in this environment as it is, also below `uv run`.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Without these a replica computes on one core, at a lower priority than its clients.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(available_cores())),
        "RAY_worker_niceness": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
        # One replica on one machine: nobody needs time to learn that it leaves.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.request_identity.serve_middlewares",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(choose_port(0)),
    }
    binary = usable_haproxy()
    if binary is None:
        logger.warning("HAProxy is not usable here; requests go through Ray's slower Python proxy")
        return settings | {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    return settings | haproxy_settings(folder, binary, limits)


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


def keep_replica_on_loopback() -> None:
    """Called in a replica as it starts: binds the port that other replicas would call to loopback.

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
