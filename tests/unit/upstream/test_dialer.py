"""Name lookups and connections: every wait has a time limit, every address is checked."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from dockyard.upstream import dialer as sockets
from dockyard.upstream.dialer import MAX_LOOKUPS, Address, Attempt, DialError, Resolver
from dockyard.upstream.network_zones import NetworkZone
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.upstreams import together

V4, V6 = socket.AF_INET, socket.AF_INET6


class Names:
    """A fake of the C library: names with addresses, and names whose lookup hangs until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[Address]] = {}
        self.hang = threading.Event()
        self.looked_up: list[str] = []
        monkeypatch.setattr(sockets, "_lookup", self.look_up)

    def look_up(self, host: str, port: int, flags: int = 0) -> list[Address]:
        if flags:
            raise OSError("not a number")
        self.looked_up.append(host)
        if host.startswith("hangs"):
            self.hang.wait(EVENT_TIMEOUT_S)
        if host not in self.known:
            raise socket.gaierror("no such host")
        return list(self.known[host])


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A name service without names."""
    names = Names(monkeypatch)
    yield names
    names.hang.set()


def watch(resolver: Resolver, deadline_s: float = 5.0, registry_zone: NetworkZone | None = None) -> Attempt:
    """Limits for one request that starts now."""
    return Attempt(
        resolver,
        connect_timeout_s=1.0,
        stall_timeout_s=1.0,
        deadline=time.monotonic() + deadline_s,
        registry_zone=registry_zone,
    )


def test_a_lookup_that_hangs_ends_in_time(names: Names) -> None:
    """Concurrent lookups of the same name are one lookup."""
    resolver = Resolver()

    def look_up() -> str:
        with pytest.raises(DialError) as caught:
            resolver.resolve("hangs.test", 443, 0.1)
        return caught.value.reason

    begun = time.monotonic()
    assert set(together(20, look_up)) == {"name resolution timed out"}
    assert is_within(time.monotonic() - begun, 1)
    assert names.looked_up == ["hangs.test"]


def test_hanging_lookups_do_not_pile_up(names: Names) -> None:
    """Their number is limited; one more fails at once, and lookups succeed again when the name server responds."""
    names.known["fine.test"] = [(V4, ("192.0.2.1", 443))]
    resolver = Resolver()
    for number in range(MAX_LOOKUPS):
        with pytest.raises(DialError):
            resolver.resolve(f"hangs-{number}.test", 443, 0.01)
    with pytest.raises(DialError, match="name server"):
        resolver.resolve("fine.test", 443, EVENT_TIMEOUT_S)
    names.hang.set()
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while resolver._lookups and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert resolver.resolve("fine.test", 443, EVENT_TIMEOUT_S)


def test_families_alternate_after_the_last_address_that_worked(names: Names) -> None:
    """A network without IPv6 routes costs one failed attempt, once."""
    v6 = [(V6, (f"2001:db8::{number}", 443, 0, 0)) for number in range(3)]
    v4 = [(V4, (f"192.0.2.{number}", 443)) for number in range(2)]
    names.known["both.test"] = [*v6, *v4]
    resolver = Resolver()
    assert resolver.resolve("both.test", 443, 5) == [v6[0], v4[0], v6[1], v4[1], v6[2]]
    resolver.prefer("both.test", 443, v4[1])
    assert resolver.resolve("both.test", 443, 5)[0] == v4[1]


def test_an_unknown_name_is_an_error(names: Names) -> None:
    """Its message does not contain the name."""
    with pytest.raises(DialError) as caught:
        Resolver().resolve("nowhere.test", 443, 5)
    assert "nowhere" not in str(caught.value)
    assert names.looked_up == ["nowhere.test"]


def test_the_next_address_is_tried(names: Names) -> None:
    """An address that refuses the connection does not end the attempt."""
    with socket.create_server(("127.0.0.1", 0)) as closed, socket.create_server(("127.0.0.1", 0)) as server:
        dead, alive = closed.getsockname(), server.getsockname()
        closed.close()
        names.known["two.test"] = [(V4, dead), (V4, alive)]
        sock, zone = watch(Resolver()).connect("two.test", 0, is_proxy=False)
        with sock:
            assert sock.getpeername() == alive
        assert zone is NetworkZone.LOOPBACK


def test_addresses_that_are_not_allowed_are_not_connected_to(names: Names) -> None:
    """The resolved address is checked, and the name is not resolved again to connect."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        names.known["rebound.test"] = [(V4, server.getsockname())]
        with pytest.raises(DialError) as caught:
            watch(Resolver(), registry_zone=NetworkZone.PUBLIC).connect("rebound.test", 0, is_proxy=False)
        assert caught.value.is_forbidden
        with pytest.raises(BlockingIOError):
            server.accept()
    assert names.looked_up == ["rebound.test"]


def test_after_the_deadline_there_is_no_connection(names: Names) -> None:
    """The error is a timeout; the name is not even resolved."""
    with pytest.raises(DialError) as caught:
        watch(Resolver(), deadline_s=-1).connect("any.test", 1, is_proxy=False)
    assert caught.value.is_timeout
    assert names.looked_up == []
