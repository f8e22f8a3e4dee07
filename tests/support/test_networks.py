"""Machines in network namespaces: they reach each other, and their links have a rate and count bytes."""

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.networks import Machine, Network
from tests.support.programs import need_root

RATE = 40e6  # bits per second
SENT_BYTES = 2_000_000
PORT = 5000


@pytest.fixture
def network() -> Iterator[Network]:
    """Two switches with a limited link between them."""
    need_root("making network namespaces")
    with contextlib.closing(Network()) as network:
        network.add_switch("upper")
        network.add_switch("lower", above="upper", rate=RATE)
        yield network


def send(sender: Machine, receiver: Machine) -> float:
    """Send SENT_BYTES from one machine to another; return how long it took in seconds."""
    with receiver.namespace.entered():
        listener = socket.create_server(("", PORT))
    with listener, ThreadPoolExecutor(1, initializer=sender.namespace.enter) as pool:
        connected = pool.submit(socket.create_connection, (receiver.address, PORT))
        accepted, (address, _) = listener.accept()
        assert address == sender.address
        with accepted, connected.result() as connection:
            began_at = time.monotonic()
            sent = pool.submit(lambda: (connection.sendall(bytes(SENT_BYTES)), connection.close()))
            received = sum(iter(lambda: len(accepted.recv(65536)), 0))
            took_s = time.monotonic() - began_at
            sent.result()
    assert received == SENT_BYTES
    return took_s


def test_a_link_limits_and_counts_what_it_carries(network: Network) -> None:
    """What goes over the link between the switches takes its time, and is counted once for each link on the way."""
    sender, receiver = network.add_machine("sender", "lower"), network.add_machine("receiver", "upper")
    before = network.traffic()
    took_s = send(sender, receiver)
    traffic = {name: each - before[name] for name, each in network.traffic().items()}
    assert took_s >= 0.8 * SENT_BYTES * 8 / RATE
    forth = [traffic["sender"].sent, traffic["lower"].sent, traffic["receiver"].received]
    back = [traffic["receiver"].sent, traffic["lower"].received, traffic["sender"].received]
    assert all(SENT_BYTES <= count < 1.1 * SENT_BYTES for count in forth)
    assert all(0 < count < 0.1 * SENT_BYTES for count in back)


def test_a_link_limits_each_direction(network: Network) -> None:
    """The way back has the same rate."""
    sender, receiver = network.add_machine("sender", "upper"), network.add_machine("receiver", "lower")
    assert send(sender, receiver) >= 0.8 * SENT_BYTES * 8 / RATE


def test_a_thread_returns_from_a_namespace(network: Network) -> None:
    """After the block, the thread has the interfaces that it had before."""
    machine = network.add_machine("machine", "upper")
    interfaces = Path("/proc/thread-self/net/dev")
    before = {line.partition(":")[0].strip() for line in interfaces.read_text().splitlines()[2:]}
    with machine.namespace.entered():
        assert {line.partition(":")[0].strip() for line in interfaces.read_text().splitlines()[2:]} == {"lo", "link1"}
    assert {line.partition(":")[0].strip() for line in interfaces.read_text().splitlines()[2:]} == before
