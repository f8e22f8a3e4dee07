"""What a newcomer does first in a minimal system: `ops/run` with a pull, then `ops/test`."""

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.support.fake_registry import FakeRegistry, Image
from tests.support.http_client import send_request
from tests.support.processes import children, free_port
from tests.systems.minimal_system import MinimalSystem, end

INSTALL_LIMIT_S = 1200.0
START_LIMIT_S = 600.0  # with the installation, beside other work
STOP_LIMIT_S = 30.0
INSTALLS = re.compile(r"run(?: as root)?: (?:sudo )?(apt-get install [a-z0-9.-]+)$", re.MULTILINE)


def install_python(system: MinimalSystem) -> str:
    """Run `ops/run` without Python, then the command that its one line names. Return that line."""
    refused = system.run("ops/run", limit_s=START_LIMIT_S)
    (line,) = refused.stdout.splitlines()
    assert refused.returncode == 1, refused
    found = INSTALLS.search(line)
    assert found, line
    command = f"apt-get -qq update && DEBIAN_FRONTEND=noninteractive {found[1]} --yes -qq --no-install-recommends"
    installed = system.run("sh", "-c", command, limit_s=INSTALL_LIMIT_S, user="root")
    assert installed.returncode == 0, installed.stdout
    return line


def run_and_pull(system: MinimalSystem, upstream: FakeRegistry, image: Image, *, is_cached: bool = False) -> float:
    """Start the server by `ops/run`, pull an image of the upstream through it, stop it as Ctrl-C does.

    Return the time in seconds from the start to the first response.
    """
    port = free_port()
    (system.checkout / "my-config.yaml").write_text(
        yaml.safe_dump({"upstreams": [{"prefix": "up.test", "registry": upstream.url}]})
    )
    log = system.root / "log"
    environ = {"DOCKYARD_SERVER_PORT": str(port), "DOCKYARD_SERVER_HOST": "127.0.0.1"}
    began = time.monotonic()
    with log.open("wb") as output:
        process = system.start(["ops/run", "-c", "my-config.yaml"], environ=environ, output=output)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _is_answering(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - began < START_LIMIT_S, log.read_text()
            time.sleep(0.1)
        took_s = time.monotonic() - began
        upstream.clear_exchanges()
        name = f"up.test/{image.repo}:{image.tag}"
        pulled = system.run(".venv/bin/dockyard", "pull", f"--server={url}", name, limit_s=START_LIMIT_S)
        assert pulled.returncode == 0, pulled.stdout
        assert upstream.count("blob", "GET") == (0 if is_cached else len(image.layers) + 1)
        first, *_ = children(process.pid)
        server, *_ = children(first.pid)
        subprocess.run(["kill", "-INT", str(server.pid)], check=True)
        assert process.wait(STOP_LIMIT_S) == 0, log.read_text()
        assert "Dockyard has stopped" in log.read_text()
    finally:
        end(process)
    return took_s


def run_tests(system: MinimalSystem, arguments: Sequence[str], log: Path, limit_s: float) -> int:
    """Run `ops/test` with its output in a file. Return its exit status."""
    with log.open("wb") as output:
        process = system.start(["ops/test", *arguments], environ={}, output=output)
    try:
        return process.wait(limit_s)
    finally:
        end(process)


def _is_answering(port: int) -> bool:
    try:
        return send_request(("127.0.0.1", port), "/v2/").status == 200
    except OSError:
        return False
