"""What must not concern requests at all: another upstream hangs (U25), and nobody reads the log (P11)."""

import contextlib
import os
import socket
import threading

from tests.chaos.engine.deployment_case import LOCAL_STEPS
from tests.chaos.engine.isolated_upstream import wait_for
from tests.chaos.engine.outcomes import UNAFFECTED
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import DeploymentVariant, Fault
from tests.support.deployment import upstream
from tests.support.http_client import send_request

# U25

HANGING_PREFIX = "hanging.test"
HANGING_REQUESTS = 200
REPOSITORIES = 10
# A worker asks an upstream in 32 threads, a repository has at most 24 of them; the rest waits in Dockyard.
MIN_HANGING = 32


class _HangingRegistry:
    """A registry that accepts connections and never responds."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                self.connections.append(self._listener.accept()[0])

    def close(self) -> None:
        """Refuse connections, and close those that there are."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        while self.connections:
            self.connections.pop().close()


def _add_hanging_upstream(run: Run) -> None:
    registry = run.data["hanging"] = _HangingRegistry()
    run.environment.stack.callback(registry.close)
    run.environment.upstreams.append(upstream(HANGING_PREFIX, registry.url))


def _hang(run: Run) -> None:
    run.data["clients"] = []
    for number in range(HANGING_REQUESTS):
        client = socket.create_connection(run.deployment.address)
        run.data["clients"].append(client)
        path = f"/v2/{HANGING_PREFIX}/app-{number % REPOSITORIES}/manifests/v{number}"
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {run.deployment.address[0]}\r\n\r\n".encode())
    wait_for(lambda: len(run.data["hanging"].connections) >= MIN_HANGING, "requests hang upstream")


def _still_hangs(run: Run) -> None:
    assert len(run.data["hanging"].connections) >= MIN_HANGING, "the requests do not hang"


def _release(run: Run) -> None:
    run.data["hanging"].close()
    for client in run.data["clients"]:
        client.close()


NEIGHBOUR = Fault(
    "U25",
    "Another upstream hangs",
    (
        DeploymentVariant(
            f"{HANGING_REQUESTS} requests wait for it",
            steps=LOCAL_STEPS,
            outcomes=UNAFFECTED,
            prepare=_add_hanging_upstream,
            inject=_hang,
            verify=_still_hangs,
            end=_release,
            settings={"upstream": {"check_timeout": "60s"}},  # they hang for as long as the fault lasts
            max_connections=70 + HANGING_REQUESTS,
            reason="each upstream has threads of its own",
        ),
    ),
)

# P11

LONG_NAME = "a" * 1500
REQUESTS_PER_ROUND = 200
MAX_ROUNDS = 50


def _log_to_a_pipe(run: Run) -> None:
    path = run.directory / "log.pipe"
    os.mkfifo(path)
    reader = run.data["pipe"] = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    run.environment.stack.callback(os.close, reader)
    run.environment.settings["logger"] = {"output": str(path)}


def _dropped_lines(run: Run) -> float:
    return run.deployment.metric("dockyard_log_lines_dropped_total")


def _fill_pipe_and_queue(run: Run) -> None:
    """Have so much logged that the pipe is full, and then what waits for it in memory."""
    for _ in range(MAX_ROUNDS):
        for _ in range(REQUESTS_PER_ROUND):
            send_request(run.deployment.address, f"/v2/{LONG_NAME}/manifests/latest")
        if _dropped_lines(run):
            return
    raise AssertionError("no line was dropped")


def _drops_lines(run: Run) -> None:
    before = _dropped_lines(run)
    for _ in range(REQUESTS_PER_ROUND):
        send_request(run.deployment.address, f"/v2/{LONG_NAME}/manifests/latest")
    assert _dropped_lines(run) > before, "lines are logged"


def _read_pipe(run: Run) -> None:
    """Read the log from now on, until the number of dropped lines was reported."""
    found = bytearray()

    def is_reported() -> bool:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(run.data["pipe"], 65536):
                found.extend(piece)
        return b"log lines were dropped" in found

    wait_for(is_reported, "the dropped lines are reported")


UNREAD_LOG = Fault(
    "P11",
    "The log is a pipe that nobody reads",
    (
        DeploymentVariant(
            "full",
            steps=LOCAL_STEPS,
            outcomes=UNAFFECTED,
            prepare=_log_to_a_pipe,
            inject=_fill_pipe_and_queue,
            verify=_drops_lines,
            wait_until_recovered=_read_pipe,
            reason="lines are dropped and counted; the number is logged when the pipe is read again",
        ),
    ),
)

FAULTS = (NEIGHBOUR, UNREAD_LOG)
