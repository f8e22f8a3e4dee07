"""The process of `dockyard pull`: how it ends early, and what it prints to a terminal and to a pipe."""

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.raw_server import RawConnection, RawServer, response

LIMIT_S = 60.0
PAGE = response(b'{"version": "9", "prefixes": ["up.test"]}', "Content-Type: application/json")


class HangingServer(RawServer):
    """A Dockyard that does not respond to a manifest; `is_waiting` is set when it was requested."""

    def __init__(self) -> None:
        self.is_waiting = threading.Event()
        super().__init__(self._respond)

    def _respond(self, connection: RawConnection) -> None:
        while line := connection.receive_request():
            if "/manifests/" in line:
                self.is_waiting.set()
                connection.wait_for_end()
                return
            connection.send(PAGE)


@pytest.fixture
def hanging() -> Iterator[HangingServer]:
    """A server that does not respond to a manifest."""
    with HangingServer() as server:
        yield server


def start(url: str, *words: str, **streams: int) -> "subprocess.Popen[str]":
    """Start the command; streams are pipes unless they are given."""
    return subprocess.Popen(
        [sys.executable, "-m", "dockyard", "pull", *words],
        env={"DOCKYARD_URL": url, "PATH": "/usr/bin:/bin", "TERM": "xterm"},
        cwd=ROOT,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


def test_an_interruption_ends_it_at_once(hanging: HangingServer) -> None:
    """With status 130 and one line, although threads wait for responses."""
    process = start(hanging.url, "up.test/a", "up.test/b")
    assert hanging.is_waiting.wait(LIMIT_S)

    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)  # a thread would wait for a minute

    assert (process.returncode, stdout, stderr) == (130, "", "dockyard: interrupted\n")


def read_terminal(master: int) -> bytes:
    """What was written to a terminal whose other end is closed."""
    received = b""
    try:
        while data := os.read(master, 65536):
            received += data
    except OSError:  # EIO: the last process has closed it
        pass
    return received


@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_characters_are_for_terminals(is_terminal: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """The other stream is a file in each case, and gets plain lines."""

    def respond(connection: RawConnection) -> None:
        while line := connection.receive_request():
            connection.send(response(b"{}", status=404) if "/manifests/" in line else PAGE)

    with RawServer(respond) as server:
        master, slave = pty.openpty()
        with (tmp_path / "other").open("wb") as other:
            on_terminal, on_file = ("stdout", "stderr") if is_terminal else ("stderr", "stdout")
            process = start(server.url, "up.test/app", **{on_terminal: slave, on_file: other.fileno()})
            os.close(slave)
            shown = read_terminal(master)
            process.wait(LIMIT_S)
        os.close(master)

    plain = (tmp_path / "other").read_bytes()
    assert b"\x1b" not in plain
    assert b"\r" not in plain
    assert (b"\x1b" in shown) == is_terminal
