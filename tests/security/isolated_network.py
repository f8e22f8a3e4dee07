"""A network namespace in which every address is local: connections to any address are accepted and recorded.

`IsolatedNetwork` moves one thread into new network and mount namespaces; sockets, threads and processes that it starts
belong to them too. All of IPv4 and IPv6 is routed to the loopback device, so a listener on all addresses accepts every
connection, and knows the address that it was made to. `FakeNameServer` resolves names, through the C library as usual
(`/etc/resolv.conf` is another file in the mount namespace). Needs root, and the `ip` program.
"""

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import attrs

from tests.support.programs import cannot_run, is_root_a_mount_point

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 0x40000, 0x1000
IPV6_FREEBIND = 78
A, AAAA = 1, 28

T = TypeVar("T")


class IsolatedNetwork:
    """The namespaces, and the one thread that belongs to them."""

    def __init__(self, directory: Path) -> None:
        self._thread = ThreadPoolExecutor(1, "network")
        self.run(lambda: _move(directory))

    def run(self, action: Callable[[], T]) -> T:
        """Run a function in the namespaces and return its result."""
        return self._thread.submit(action).result()

    def close(self) -> None:
        """End the thread; the namespaces end with the last of their processes."""
        self._thread.shutdown()


def _move(directory: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: int | bytes | None) -> None:
        if getattr(libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    call("unshare", CLONE_NEWNET | CLONE_NEWNS)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    resolver = directory / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    call("mount", str(resolver).encode(), os.path.realpath("/etc/resolv.conf").encode(), None, MS_BIND, None)
    for command in (
        "link set lo up",
        "route add local 0.0.0.0/0 dev lo",
        "-6 route add local ::/0 dev lo",
    ):
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)


def require_root() -> None:
    """Skip the test where the namespaces cannot be made; on CI it fails."""
    if os.geteuid() != 0:
        cannot_run("an isolated network needs root")
    if not is_root_a_mount_point():
        cannot_run("an isolated network needs / to be a mount point, which it is not in a plain chroot")
    if shutil.which("ip") is None:
        cannot_run("an isolated network needs ip (Debian package iproute2)")


class ConnectionRecorder:
    """Listens on one port at many addresses; records the address that each connection was made to, and closes it."""

    def __init__(self, port: int, addresses: Iterable[str]) -> None:
        self.destinations: list[str] = []
        self._sockets = [_listen(each, port) for each in addresses]
        for listening in self._sockets:
            threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        for listening in self._sockets:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                self.destinations.append(connection.getsockname()[0])


def _listen(address: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if ":" in address:
        listening.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)  # the address is routed, but belongs to no device
    listening.bind((address, port))
    listening.listen()
    return listening


@attrs.define
class FakeNameServer:
    """A name server. Each name has a list of answers, one for each lookup; the last one is repeated.

    An answer is a list of addresses; a name without answers is unknown, and a `silent` one gets no response. `queries`
    are the looked up names, in order.
    """

    answers: dict[str, list[Sequence[str]]] = attrs.field(factory=dict)
    queries: list[str] = attrs.field(factory=list)
    silent: set[str] = attrs.field(factory=set)
    _current: dict[str, Sequence[str]] = attrs.field(factory=dict)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Answer on port 53 while the block runs."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 53))
            server.settimeout(0.1)
            over = threading.Event()
            thread = threading.Thread(target=self._loop, args=(server, over))
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()

    def _loop(self, server: socket.socket, over: threading.Event) -> None:
        while not over.is_set():
            with suppress(OSError):
                query, peer = server.recvfrom(4096)
                if answer := self._answer(query):
                    server.sendto(answer, peer)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name = ".".join(labels).lower()
        if name in self.silent:
            return b""
        (kind,) = struct.unpack_from(">H", query, at + 1)
        addresses = self._addresses(name, kind)
        wanted = (
            [ip_address(each) for each in addresses if (":" in each) == (kind == AAAA)] if kind in (A, AAAA) else []
        )
        flags = 0x8180 if name in self.answers else 0x8183
        head = query[:2] + struct.pack(">5H", flags, 1, len(wanted), 0, 0)
        records = b"".join(struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(each.packed)) + each.packed for each in wanted)
        return head + query[12 : at + 5] + records

    def _addresses(self, name: str, kind: int) -> Sequence[str]:
        """The addresses for one lookup: A and then AAAA are requested, and both belong to one answer."""
        if kind == A:
            self.queries.append(name)
            answers = self.answers.get(name, [])
            self._current[name] = answers.pop(0) if len(answers) > 1 else (answers or [()])[0]
        return self._current.get(name, ())
