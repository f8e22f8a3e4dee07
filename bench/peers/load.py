"""The load: the discarding client, wrk, and a read that checks every byte. All outside this process, but the last."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.peers.truth import OCI_INDEX, OCI_MANIFEST, Blob

LIMIT_S = 290.0
PIECE_BYTES = 1024 * 1024
ACCEPT = f"{OCI_INDEX}, {OCI_MANIFEST}"

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
    """An answer was wrong, short or missing: the run does not count."""


@attrs.frozen
class Rate:
    """What wrk saw; latencies in seconds."""

    requests: int
    wall_s: float
    median_s: float
    p99_s: float
    client_cpu_s: float


def discard(port: int, clients: Sequence[Sequence[tuple[str, int]]], limit_s: float | None = None) -> dict[str, Any]:
    """Download with one connection per client and throw the bytes away."""
    plan = {"port": port, "clients": clients, "limit_s": limit_s}
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers.discard"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode != 0:
        raise LoadError(done.stderr.strip())
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def wrk(program: Path, port: int, paths: Sequence[str], seconds: float, connections: int, place: Path) -> Rate:
    """Ask for the paths in turn over keep-alive connections; anything but 2xx fails."""
    script = place / "wrk.lua"
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
    requests, micros, errors, median, p99 = (float(word) for word in line.split()[1:])
    if errors or not requests:
        raise LoadError(f"wrk: {errors:.0f} of {requests:.0f} answers were wrong\n{done.stdout}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Rate(int(requests), micros / 1e6, median / 1e6, p99 / 1e6, cpu_s)


def check(port: int, path: str, blob: Blob) -> float:
    """Read a blob or manifest and check size and digest; return the seconds it took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    began_at = time.monotonic()
    try:
        connection.request("GET", path, headers={"Accept": ACCEPT})
        answer = connection.getresponse()
        hasher, size = hashlib.sha256(), 0
        while piece := answer.read(PIECE_BYTES):
            hasher.update(piece)
            size += len(piece)
    finally:
        connection.close()
    found = f"sha256:{hasher.hexdigest()}"
    if answer.status != http.HTTPStatus.OK or size != blob.size or found != blob.digest:
        raise LoadError(f"{path}: {answer.status}, {size} bytes, {found}; expected {blob}")
    return time.monotonic() - began_at
