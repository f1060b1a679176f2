"""Ports of this machine."""

from __future__ import annotations

import errno
import socket

from runtime.errors import ConflictError
from serving.configuration import HOST


def choose_port(port: int, host: str = HOST) -> int:
    """Return `port` of an address of this machine, or a free one for 0.

    Raises:
        ConflictError: another process listens on it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise ConflictError(f"port {port} needs privileges; choose one above 1023 with --port") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConflictError(
                    f"{host} is no address of this machine; set host to one that is, or to 0.0.0.0 for all"
                ) from None
            raise ConflictError(
                f"port {port} of {host} is taken by another process; choose another with --port, or --port 0"
            ) from None
        return int(probe.getsockname()[1])
