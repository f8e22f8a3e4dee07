"""A DNS server, and the command that makes a program use it.

The C library reads the name server from /etc/resolv.conf and from nowhere else: Dockyard is started in a mount
namespace in which that file is replaced. That, and port 53, need root.
"""

import random
import socket
import struct
import threading
from pathlib import Path
from typing import Self

PORT = 53
A, AAAA = 1, 28
NO_ERROR, SERVFAIL, NXDOMAIN = 0, 2, 3
QUERY_TIMEOUT_S = 0.5


class DnsServer:
    """Resolves every name to 127.0.0.1, except those in `failures`: `nxdomain`, `servfail` or `silent`."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self.address = f"127.{random.randrange(64, 250)}.{random.randrange(250)}.{random.randrange(1, 250)}"
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.address, PORT))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (self.address, PORT))
        self._thread.join()
        self._socket.close()

    def wrapper(self, directory: Path) -> list[str]:
        """The command that starts another one so that it uses this server."""
        settings = directory / "resolv.conf"
        # A lost query is sent again after a second, three times; the default is five seconds.
        settings.write_text(f"nameserver {self.address}\noptions timeout:1 attempts:3\n")
        return ["unshare", "--mount", "sh", "-c", f'mount --bind {settings} /etc/resolv.conf && exec "$@"', "sh"]

    def query(self, name: str) -> str:
        """What a direct client gets for a name: `found`, `servfail`, `nxdomain` or `silent`."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", A, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(QUERY_TIMEOUT_S)
            client.sendto(query, (self.address, PORT))
            try:
                response = client.recv(512)
            except TimeoutError:
                return "silent"
        return {NO_ERROR: "found", SERVFAIL: "servfail", NXDOMAIN: "nxdomain"}[response[3] & 15]

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(512)
            if not query:
                return
            name, kind, end = _parse(query)
            failure = self.failures.get(name, "found")
            if failure == "silent":
                continue
            code = {"nxdomain": NXDOMAIN, "servfail": SERVFAIL}.get(failure, NO_ERROR)
            record = b""
            if code == NO_ERROR and kind == A:
                record = struct.pack("!3HIH", 0xC00C, A, 1, 0, 4) + socket.inet_aton("127.0.0.1")
            head = query[:2] + struct.pack("!5H", 0x8180 | code, 1, 1 if record else 0, 0, 0)
            self._socket.sendto(head + query[12:end] + record, peer)


def _parse(query: bytes) -> tuple[str, int, int]:
    """The name and type of a query, and where it ends."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    (kind,) = struct.unpack("!H", query[at + 1 : at + 3])
    return ".".join(labels).lower(), kind, at + 5
