"""A name server of the rig's own, and a Dockyard that asks no other.

The C library takes its name server from /etc/resolv.conf and from nowhere else: Dockyard is started in a mount
namespace in which that file is ours. That, and port 53, take root.
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
ASK_LIMIT_S = 0.5


class NameServer:
    """Answers 127.0.0.1 for every name, but for those in `moods`: `nxdomain`, `servfail` or `silent`."""

    def __init__(self) -> None:
        self.moods: dict[str, str] = {}
        self.asked: list[str] = []  # names, as often as they were asked for
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
        """What to start a program with, so that it asks this server for names."""
        settings = directory / "resolv.conf"
        # A query that was lost is sent again after a second, three times; by default it is five seconds.
        settings.write_text(f"nameserver {self.address}\noptions timeout:1 attempts:3\n")
        return ["unshare", "--mount", "sh", "-c", f'mount --bind {settings} /etc/resolv.conf && exec "$@"', "sh"]

    def ask(self, name: str) -> str:
        """What a plain client is told of a name."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        question = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", A, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(ASK_LIMIT_S)
            client.sendto(question, (self.address, PORT))
            try:
                answer = client.recv(512)
            except TimeoutError:
                return "silent"
        return {NO_ERROR: "well", SERVFAIL: "servfail", NXDOMAIN: "nxdomain"}[answer[3] & 15]

    def _serve(self) -> None:
        while True:
            question, peer = self._socket.recvfrom(512)
            if not question:
                return
            name, kind, end = _parse(question)
            self.asked.append(name)
            mood = self.moods.get(name, "well")
            if mood == "silent":
                continue
            code = {"nxdomain": NXDOMAIN, "servfail": SERVFAIL}.get(mood, NO_ERROR)
            record = b""
            if code == NO_ERROR and kind == A:
                record = struct.pack("!3HIH", 0xC00C, A, 1, 0, 4) + socket.inet_aton("127.0.0.1")
            head = question[:2] + struct.pack("!5H", 0x8180 | code, 1, 1 if record else 0, 0, 0)
            self._socket.sendto(head + question[12:end] + record, peer)


def _parse(question: bytes) -> tuple[str, int, int]:
    """The name and type that are asked for, and where the question ends."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    (kind,) = struct.unpack("!H", question[at + 1 : at + 3])
    return ".".join(labels).lower(), kind, at + 5
