"""Ports on loopback."""

from __future__ import annotations

import socket

from runtime.errors import ConflictError
from serving.configuration import HOST


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
