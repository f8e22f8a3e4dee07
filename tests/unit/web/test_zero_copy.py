"""Zero-copy sending: whose fault an error of sendfile(2) is."""

import errno
import os
import socket
import tempfile

import pytest

from dockyard.cache.threads import Threads
from dockyard.errors import Unavailable
from dockyard.oci.ranges import ByteRange
from dockyard.web.zero_copy import _Transmission

SIZE = 10_000


class OneFile:
    """A reader of a file that is in memory. `reported` are the errors of reads."""

    size = SIZE

    def __init__(self, fd: int) -> None:
        self.reported: list[OSError] = []
        self._fd = fd

    async def find(self, position: int) -> tuple[int | None, int]:
        return self._fd, SIZE - position

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        raise NotImplementedError

    def begin(self, ranges: object) -> bool:
        return False

    def read_small(self) -> None:
        return None

    def report_unreadable(self, exc: OSError) -> Unavailable:
        self.reported.append(exc)
        return Unavailable("unreadable")

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "is_of_disk"),
    [
        (errno.EIO, True),
        (errno.ESTALE, True),
        (errno.EUCLEAN, True),
        (errno.EBADMSG, True),
        (errno.EPIPE, False),
        (errno.ECONNRESET, False),
        (errno.ETIMEDOUT, False),
    ],
    ids=lambda value: errno.errorcode[value] if value > 1 else None,
)
async def test_an_error_of_the_disk_is_not_taken_for_a_client_that_has_left(
    monkeypatch: pytest.MonkeyPatch, code: int, *, is_of_disk: bool
) -> None:
    """The file is verified before its next use, and the log does not say that the client left."""

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "sendfile", fail)
    here, there = socket.socketpair()
    with here, there, tempfile.TemporaryFile() as file:
        file.write(bytes(SIZE))
        file.flush()
        reader = OneFile(file.fileno())
        transmission = _Transmission(here, reader, ByteRange(0, SIZE), Threads())
        with pytest.raises(Unavailable if is_of_disk else OSError):
            await transmission.send(b"head")
        assert [exc.errno for exc in reader.reported] == ([code] if is_of_disk else [])
