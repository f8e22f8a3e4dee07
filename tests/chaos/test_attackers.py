"""L04: clients that send their headers a byte at a time, and clients that read nothing, among real ones."""

import contextlib
import socket
import time
from collections.abc import Callable
from statistics import median
from typing import Self

import pytest

from tests.bodies import Synthetic
from tests.chaos.bounds import MemoryBound
from tests.chaos.bystanders import CONTROL_FLOOR_S
from tests.chaos.pump import Answer, Pump
from tests.chaos.test_load_blobs import MIB, full_house
from tests.client import request_bytes
from tests.faults.watch import workers_of_ports
from tests.house import House
from tests.origin import Origin

PATH = "/v2/up.test/app/manifests/latest"
HEADERS_CLOSED_S = 10.0
READERS_CLOSED_S = 60.0
SLACK_S = 4.0  # two cores, shared with everything else that runs
BYTE_EVERY_S = 1.0


class Attackers:
    """Connections that are never done. The lists have how long the server bore those that it closed."""

    def __init__(self, house: House, path: str, slow_headers: int, slow_readers: int) -> None:
        self._house = house
        address = house.address
        self.header_closed_s: list[float] = []
        self.reader_closed_s: list[float] = []
        self._headers: dict[socket.socket, float] = {}
        self._readers: dict[socket.socket, float] = {}
        self._were_held: set[int] = set()
        self._said_at = 0.0
        request = request_bytes("GET", path, address, {})
        for kind, count, said in (
            (self._headers, slow_headers, b"GET /v2/ HTTP/1.1\r\n"),
            (self._readers, slow_readers, request),
        ):
            for _ in range(count):
                connection = socket.socket()
                if kind is self._readers:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(10)
                connection.connect(address)
                connection.sendall(said)
                connection.setblocking(False)
                kind[connection] = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (*self._headers, *self._readers):
            connection.close()

    def attack(self) -> None:
        """One more byte of a header each, and a look at who was thrown out. Reads nothing."""
        now = time.monotonic()
        if now - self._said_at < BYTE_EVERY_S:
            return
        self._said_at = now
        for connection, began_at in list(self._headers.items()):
            try:
                connection.send(b"X")
                is_open = not _has_ended(connection)
            except OSError:
                is_open = False
            if not is_open:
                self.header_closed_s.append(now - began_at)
                del self._headers[connection]
                connection.close()
        held = workers_of_ports(self._house).keys()  # what is full is not told that the other side has closed
        self._were_held.update(held)
        for connection, began_at in list(self._readers.items()):
            port = connection.getsockname()[1]
            if port in self._were_held and port not in held:
                self.reader_closed_s.append(now - began_at)
                del self._readers[connection]
                connection.close()

    @property
    def left(self) -> tuple[int, int]:
        """How many of each are still there."""
        return len(self._headers), len(self._readers)


def _has_ended(connection: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return not connection.recv(4096, socket.MSG_PEEK)
    return False


def _p99(answers: list[Answer]) -> float:
    times = sorted(each.took_s for each in answers)
    return times[int(len(times) * 0.99)]


def _median(answers: list[Answer]) -> float:
    return median(each.took_s for each in answers)


@pytest.mark.parametrize(
    ("attackers", "clients", "seconds"),
    [
        pytest.param(150, 20, HEADERS_CLOSED_S + SLACK_S, id="300 attackers"),
        pytest.param(
            1000,
            50,
            READERS_CLOSED_S + 3 * SLACK_S,
            id="2000 attackers",
            marks=[pytest.mark.long, pytest.mark.timeout(240)],
        ),
    ],
)
@pytest.mark.timeout(180)
def test_attackers_among_clients(
    make_house: Callable[..., House], origin: Origin, attackers: int, clients: int, seconds: float
) -> None:
    """Every real client is answered, about as fast as without them; the others are thrown out in time."""
    truth = Synthetic(16 * MIB)
    blob = f"/v2/up.test/app/blobs/{origin.add_blob(truth)}"
    origin.add_image("app", "latest")
    house = full_house(make_house)
    with house.download(blob) as download:
        download.head()
        assert download.find_wrong(truth) is None
    assert house.get(PATH).status == 200
    with Pump(house.address, PATH, clients) as pump, MemoryBound(house) as memory:
        calm = pump.run(2 * clients, 3)
        with Attackers(house, blob, attackers, attackers) as crowd:

            def attack() -> bool:
                crowd.attack()
                return False

            struck = pump.run(2 * clients, seconds, until=attack)
            headers_left, readers_left = crowd.left
            assert headers_left == 0
            assert max(crowd.header_closed_s) <= HEADERS_CLOSED_S + SLACK_S
            if seconds > READERS_CLOSED_S:
                assert readers_left == 0
                assert max(crowd.reader_closed_s) <= READERS_CLOSED_S + 3 * SLACK_S
            assert all(each >= READERS_CLOSED_S - 1 for each in crowd.reader_closed_s)
    assert pump.failures == 0
    assert {(each.status, each.is_stale, each.is_right) for each in (*calm, *struck)} == {(200, False, True)}
    # On a machine that other tests share, one answer in a hundred is late whatever Dockyard does.
    slow = _p99 if seconds > READERS_CLOSED_S else _median
    assert slow(struck) <= max(2 * slow(calm), CONTROL_FLOOR_S)
    memory.assert_held()
    print(  # noqa: T201  the numbers are what the long run is for
        f"p99 {_p99(calm) * 1000:.0f} ms, under attack {_p99(struck) * 1000:.0f} ms; {memory.peak / MIB:.0f} MiB"
    )
