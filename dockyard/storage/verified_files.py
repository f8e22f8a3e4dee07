"""Which files of the local store have been verified since the server started: a table that all workers share.

A blob is verified by hashing its file. The table then has its digest with the *fingerprint* of the file: inode, size,
modification time and change time. The kernel sets the change time whenever the bytes or the attributes of a file
change, and no program can set it, so that a file whose fingerprint is in the table still has the bytes that were
hashed. What escapes is a disk that returns other bytes than were written (the scrub finds that), and a change within
milliseconds of one by Dockyard itself.

Dockyard itself sets times of files. It does that in `keeps_verified`, which holds a lock on the file and puts the new
fingerprint into the table. Another worker that finds the fingerprint changed waits for that lock and looks again.

A file that could not be read has a record of its own, whatever its times: a disk that loses a sector does not change
the file. It is hashed before its next use.

The table is anonymous shared memory, created before the workers are forked: it works on a full or read-only disk, is
there for a worker that was restarted, and is empty after a restart of the server. It has a fixed size; a file that was
overwritten in it is verified again. Records are written without a lock. One that is torn, or overwritten by another
process at the same time, has no file that it fits, so that the file is verified again.
"""

import contextlib
import fcntl
import mmap
import os
import random
import struct
import time
from collections.abc import Iterator

from dockyard.oci.reference import Digest

Fingerprint = tuple[int, int, int, int]

_RECORD = struct.Struct("<16sQQQQ")
_RECORDS_PER_BUCKET = 8
_BUCKET_BYTES = _RECORD.size * _RECORDS_PER_BUCKET
MAX_BUCKETS = 16384
_IS_ONE_UNREADABLE = MAX_BUCKETS * _BUCKET_BYTES  # a byte behind the records: else each hit would look for a record
# The change time has the resolution of the kernel's clock, up to 10 ms: a file that changed less than this before it
# was hashed may change again without another change time.
CLOCK_RESOLUTION_NS = 20_000_000
# From the beginning of a change by Dockyard itself until the new fingerprint is read, at most so much time may pass: in
# less, no other program finds a file that was just renamed and changes it. After more, the file is verified again.
MAX_RENAME_NS = 1_000_000
MAX_SETTING_NS = 50_000_000
# How long to wait for a lock before a file is hashed instead.
MAX_STORING_S = 0.25
LOCK_POLL_S = 0.002
_MASK = 2**64 - 1


def fingerprint(status: os.stat_result) -> Fingerprint:
    """Return inode, size in bytes, modification time and change time (ns since the epoch) of a file."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class VerifiedFiles:
    """The verified files of one server, by digest. For many threads and, after a fork, many processes."""

    def __init__(self) -> None:
        self._table = mmap.mmap(-1, MAX_BUCKETS * _BUCKET_BYTES + 1)

    def has(self, digest: Digest, found: Fingerprint) -> bool:
        """Whether the file with this fingerprint was verified as `digest`. Does not block."""
        start = _bucket(digest)
        return _record(digest, found) in self._table[start : start + _BUCKET_BYTES]

    def add(self, digest: Digest, found: Fingerprint) -> None:
        """Record that the file with this fingerprint has the digest. Does not block."""
        self._put(digest, _record(digest, found))

    def add_unreadable(self, digest: Digest, found: Fingerprint) -> None:
        """Record that this file could not be read: it does not count as verified until it is hashed. Does not block."""
        self._put(digest, _record(digest, _unreadable(found)))
        self._table[_IS_ONE_UNREADABLE] = 1

    def is_unreadable(self, digest: Digest, found: Fingerprint) -> bool:
        """Whether this file could not be read when it was last used or hashed. Does not block."""
        return bool(self._table[_IS_ONE_UNREADABLE]) and self.has(digest, _unreadable(found))

    def _put(self, digest: Digest, record: bytes) -> None:
        """Write a record in the place of the one of the same digest, or of none, or of another one."""
        start = _bucket(digest)
        places = range(start, start + _BUCKET_BYTES, _RECORD.size)
        keys = [self._table[place : place + 16] for place in places]
        for key in (record[:16], bytes(16)):
            if key in keys:
                place = places[keys.index(key)]
                break
        else:
            place = random.choice(places)
        self._table[place : place + _RECORD.size] = record

    def add_renamed(self, digest: Digest, fd: int, before: Fingerprint, began_ns: int) -> None:
        """Record that an open file, which was just renamed to its path, has the digest. Raises OSError.

        `before` is its fingerprint when it had the digest and was not at its path yet; renaming it, which changes the
        change time, began at `began_ns` (monotonic clock). Nothing is recorded if so much time has passed since then
        that another program may have changed the file.
        """
        found = fingerprint(os.fstat(fd))
        if found[:3] == before[:3] and time.monotonic_ns() - began_ns < MAX_RENAME_NS:
            self.add(digest, found)

    def has_open(self, digest: Digest, fd: int, found: Fingerprint) -> bool:
        """Whether an open file with this fingerprint is verified, also while its times are set or it is stored.

        Blocks until a download has stored it, for MAX_STORING_S at most.
        """
        if self.has(digest, found):
            return True
        with _waiting_for_lock(fd):
            return self.has(digest, fingerprint(os.fstat(fd)))

    @contextlib.contextmanager
    def keeps_verified(self, digest: Digest, fd: int) -> Iterator[None]:
        """A block that sets times of an open file: it stays verified if it was. The block may raise OSError."""
        with _locked(fd):
            began_ns = time.monotonic_ns()
            is_verified = self.has(digest, fingerprint(os.fstat(fd)))
            yield
            found = fingerprint(os.fstat(fd))
            if is_verified and time.monotonic_ns() - began_ns < MAX_SETTING_NS:
                self.add(digest, found)


def _unreadable(found: Fingerprint) -> Fingerprint:
    """What stands in the table for a file that cannot be read: no file has these times."""
    return found[0], 0, 0, 0


def may_change_unseen(found: Fingerprint) -> bool:
    """Whether a file changed so recently that its next change may leave the same fingerprint."""
    return 0 <= time.time_ns() - found[3] < CLOCK_RESOLUTION_NS


@contextlib.contextmanager
def _locked(fd: int) -> Iterator[None]:
    """Hold a lock on an open file, where the file system has locks. Without one, a file may be verified once more."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def _waiting_for_lock(fd: int) -> Iterator[None]:
    """Hold a shared lock on an open file, if there is one to be had within MAX_STORING_S.

    The lock is taken on a descriptor of its own: on a copy of a download's descriptor it would replace the lock of the
    download instead of waiting for it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without locks
            own = stack.enter_context(open(f"/proc/self/fd/{fd}", "rb"))
            deadline = time.monotonic() + MAX_STORING_S
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                time.sleep(LOCK_POLL_S)
        yield


def _record(digest: Digest, found: Fingerprint) -> bytes:
    inode, size, modified_ns, changed_ns = found
    return _RECORD.pack(_key(digest), inode & _MASK, size & _MASK, modified_ns & _MASK, changed_ns & _MASK)


def _bucket(digest: Digest) -> int:
    return int.from_bytes(_key(digest)[:4], "big") % MAX_BUCKETS * _BUCKET_BYTES


def _key(digest: Digest) -> bytes:
    return bytes.fromhex(digest.encoded[:32])
