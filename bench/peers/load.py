"""Load generators: `discard` and `wrk`, in other processes; and `check`, which verifies a response, in this process."""

import hashlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.peers.content import ACCEPT, Blob

LIMIT_S = 290.0
CHUNK_BYTES = 1024 * 1024
OPENSSL_CONFIG = Path(__file__).parent / "openssl.cnf"

WRK_SCRIPT = """\
local requests = {{}}
local turn = 0
init = function()
  for path in string.gmatch([[{paths}]], "%S+") do
    requests[#requests + 1] = wrk.format("GET", path, {{["Accept"] = "{accept}"}})
  end
end
request = function()
  turn = turn % #requests + 1
  return requests[turn]
end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("\\nRESULT %d %d %d %.1f %.1f\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


class LoadError(Exception):
    """A response was wrong, incomplete or missing, so that the run is invalid."""


@attrs.frozen
class Rate:
    """The results of wrk; latencies in seconds."""

    requests: int
    wall_s: float
    median_s: float
    p99_s: float
    client_cpu_s: float


def discard(
    port: int,
    clients: Sequence[Sequence[tuple[str, int]]],
    limit_s: float | None = None,
    *,
    method: str = "GET",
    is_fresh: bool = False,
    is_tls: bool = False,
) -> dict[str, Any]:
    """Download with one connection at a time per client, and discard the bytes.

    `is_fresh`: each download has a new connection. With TLS, all servers encrypt with the same algorithm: that which
    clients written in Go (containerd, Docker) ask for first.
    """
    plan = {
        "port": port,
        "clients": clients,
        "limit_s": limit_s,
        "method": method,
        "is_fresh": is_fresh,
        "is_tls": is_tls,
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers.discard"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OPENSSL_CONF": str(OPENSSL_CONFIG)} if is_tls else None,
    )
    if done.returncode != 0:
        raise LoadError(done.stderr.strip())
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def wrk(program: Path, port: int, paths: Sequence[str], seconds: float, connections: int, directory: Path) -> Rate:
    """Request the paths in turn over keep-alive connections. Raises LoadError for a status other than 2xx."""
    script = directory / "wrk.lua"
    script.write_text(WRK_SCRIPT.format(paths=" ".join(paths), accept=ACCEPT))
    before = os.times()
    done = subprocess.run(
        [program, "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", script, f"http://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    after = os.times()
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode != 0 or line is None:
        raise LoadError(f"wrk: {done.stdout} {done.stderr}")
    requests, micros, errors, median, p99 = (float(number) for number in line.split()[1:])
    if errors or not requests:
        raise LoadError(f"wrk: {errors:.0f} of {requests:.0f} responses were wrong\n{done.stdout}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Rate(int(requests), micros / 1e6, median / 1e6, p99 / 1e6, cpu_s)


def connect(port: int, timeout_s: float, *, is_tls: bool = False) -> http.client.HTTPConnection:
    """A connection to a server of this benchmark, whose certificate is not verified."""
    if not is_tls:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout_s, context=context)


def is_serving(port: int, timeout_s: float, *, is_tls: bool = False) -> bool:
    """Whether `/v2/` responds with status 200."""
    connection = connect(port, timeout_s, is_tls=is_tls)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check(port: int, path: str, blob: Blob, *, is_tls: bool = False) -> float:
    """Read a blob or manifest, and verify size and digest; return the seconds it took."""
    connection = connect(port, LIMIT_S, is_tls=is_tls)
    began_at = time.monotonic()
    try:
        connection.request("GET", path, headers={"Accept": ACCEPT})
        response = connection.getresponse()
        hasher, size = hashlib.sha256(), 0
        while chunk := response.read(CHUNK_BYTES):
            hasher.update(chunk)
            size += len(chunk)
    finally:
        connection.close()
    digest = f"sha256:{hasher.hexdigest()}"
    if response.status != http.HTTPStatus.OK or size != blob.size or digest != blob.digest:
        raise LoadError(f"{path}: {response.status}, {size} bytes, {digest}; expected {blob}")
    return time.monotonic() - began_at
