"""Outputs of the log that take nothing: serving continues, no worker is killed, and SIGTERM ends the server."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import yaml

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import Deployment, eventually, upstream
from tests.support.dockyard import Dockyard
from tests.support.fake_registry import FakeRegistry
from tests.support.processes import descendants, kill_leftovers

REQUESTS = 1200


@attrs.define(eq=False)
class Server:
    """A Dockyard whose standard output and standard error are this descriptor."""

    deployment: Deployment
    popen: subprocess.Popen[bytes]

    def stop(self) -> int:
        """Send SIGTERM; return the exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(EVENT_TIMEOUT_S)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """End the servers that were started."""
    servers: list[subprocess.Popen[bytes]] = []
    yield servers
    for server in servers:
        left = descendants(server.pid)
        server.kill()
        server.wait()
        kill_leftovers(left)


def start(
    started: list[subprocess.Popen[bytes]], fake_registry: FakeRegistry, directory: Path, descriptor: int, **logger: str
) -> Server:
    """Start a server with two workers that logs to a descriptor, and wait until it answers."""
    dockyard = Dockyard(directory, [upstream("up.test", fake_registry.url)], workers=2, settings={"logger": logger})
    dockyard.config.write_text(yaml.safe_dump(dockyard.settings))
    popen = subprocess.Popen(
        [sys.executable, "-m", "dockyard", "server", "-c", dockyard.config], stdout=descriptor, stderr=descriptor
    )
    started.append(popen)
    eventually(dockyard.is_answering, "it answers")
    return Server(Deployment(fake_registry, dockyard), popen)


def _request_often(server: Server, fake_registry: FakeRegistry) -> None:
    image = fake_registry.add_image("app", "v1", [b"a layer"])
    workers = [each.pid for each in descendants(server.popen.pid)]
    for _ in range(REQUESTS):
        assert server.deployment.get(f"/v2/up.test/app/manifests/{image.digest}").body == image.body
    assert server.deployment.get("/healthz").status == 200
    assert [each.pid for each in descendants(server.popen.pid)] == workers


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_an_output_that_nobody_reads(
    started: list[subprocess.Popen[bytes]], fake_registry: FakeRegistry, tmp_path: Path, kind: str
) -> None:
    """All requests are answered; the lines that were dropped are counted, and the count is in the log in the end."""
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        one, two = socket.socketpair()
        reader, writer = one.detach(), two.detach()
    server = start(started, fake_registry, tmp_path / "deployment", writer, level="debug")
    os.close(writer)
    _request_often(server, fake_registry)
    assert server.stop() == 0
    os.close(reader)


def test_the_count_of_dropped_lines_is_logged_when_the_output_is_read_again(
    started: list[subprocess.Popen[bytes]], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """In the log and as a metric, without another request."""
    reader, writer = os.pipe()
    server = start(started, fake_registry, tmp_path / "deployment", writer)
    os.close(writer)
    long_name = "/v2/up.test/" + "n" * 200 + "/manifests/v1?" + "q" * 1000

    def has_dropped() -> bool:
        for _ in range(200):
            server.deployment.get(long_name)
        return server.deployment.metric("dockyard_log_lines_dropped_total") > 0

    eventually(has_dropped, "lines are dropped")
    data = b""
    while b"log lines were dropped" not in data:
        data += os.read(reader, 65536)
    assert all(line[:2] == b"20" for line in data.splitlines()), "each line is whole"
    server.popen.send_signal(signal.SIGTERM)
    while os.read(reader, 65536):
        pass
    assert server.popen.wait(EVENT_TIMEOUT_S) == 0
    os.close(reader)


def test_an_output_whose_reader_is_gone(
    started: list[subprocess.Popen[bytes]], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """All requests are answered, and the exit status is 0."""
    reader, writer = os.pipe()
    server = start(started, fake_registry, tmp_path / "deployment", writer)
    os.close(writer)
    os.close(reader)
    _request_often(server, fake_registry)
    assert server.stop() == 0


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stderr", "stdout"])
def test_a_socket_as_standard_output(
    started: list[subprocess.Popen[bytes]], fake_registry: FakeRegistry, tmp_path: Path, name: str
) -> None:
    """As under systemd, where /dev/stdout cannot be opened."""
    ours, theirs = socket.socketpair()
    server = start(started, fake_registry, tmp_path / "deployment", theirs.fileno(), output=name)
    theirs.close()
    assert server.stop() == 0
    ours.settimeout(EVENT_TIMEOUT_S)
    data = b""
    while more := ours.recv(65536):
        data += more
    assert b"Dockyard is starting" in data
    assert b"Dockyard has stopped" in data
    assert b"Traceback" not in data
    ours.close()


def test_closed_standard_streams(fake_registry: FakeRegistry, tmp_path: Path) -> None:
    """No other file gets their descriptors and with them the log."""
    dockyard = Dockyard(tmp_path / "deployment", [upstream("up.test", fake_registry.url)], workers=1)
    dockyard.config.write_text(yaml.safe_dump(dockyard.settings))
    command = f"exec {sys.executable} -m dockyard server -c {dockyard.config} <&- >&- 2>&-"
    with subprocess.Popen(["sh", "-c", command]) as popen:
        try:
            eventually(dockyard.is_answering, "it answers")
            for process in [popen.pid, *(each.pid for each in descendants(popen.pid))]:
                assert [os.readlink(f"/proc/{process}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
            popen.send_signal(signal.SIGTERM)
            assert popen.wait(EVENT_TIMEOUT_S) == 0
        finally:
            popen.kill()


@pytest.mark.parametrize("output", ["/no/such/directory/log", "socket", "/", "/proc/version-of-nothing"])
def test_an_output_that_cannot_be_opened_is_an_error_in_the_settings(tmp_path: Path, output: str) -> None:
    """With its key, exit status 2, and without a traceback."""
    if output == "socket":
        output = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(output)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"logger": {"output": output}, "storage": {"directory": str(tmp_path / "s")}}))
    done = subprocess.run(
        [sys.executable, "-m", "dockyard", "server", "-c", config],
        capture_output=True,
        timeout=EVENT_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert b"logger.output" in done.stderr
    assert b"Traceback" not in done.stderr
