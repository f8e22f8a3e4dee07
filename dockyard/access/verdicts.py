"""What upstreams have decided about logins and repositories: a table that all workers share.

The table is anonymous shared memory, created before the workers are forked. A verdict of one worker is at once that of
all, also of one that is started later, and none outlives the server. It has a fixed size and contains no login: its
keys are HMACs with a secret of the supervisor.

Records are written without a lock. One that is torn does not fit its checksum, and counts as absent. In a full bucket
the oldest record of the same kind is overwritten, as far as there are MIN_REFUSALS refusals: neither does whoever tries
many logins push out those that are admitted, nor do many that were admitted at some time keep out the refusals, without
which a wrong password would reach the upstream each time.
"""

import hashlib
import hmac
import mmap
import os
import struct
from enum import IntEnum

import attrs

from dockyard.oci.login import Login
from dockyard.oci.reference import Digest

MAX_BUCKETS = 16384
_RECORDS_PER_BUCKET = 8
MIN_REFUSALS = 2  # in a full bucket, for as many as there were
_CONTENT = struct.Struct("<16sQd")
_RECORD_BYTES = _CONTENT.size + 8
_BUCKET_BYTES = _RECORD_BYTES * _RECORDS_PER_BUCKET
_ABSENT = bytes(_RECORD_BYTES)


class Verdict(IntEnum):
    """What an upstream has decided."""

    ADMITTED = 1
    REFUSED = 2  # the login is right, as far as is known, but not for this repository
    WRONG = 3  # the login is wrong
    UNKNOWN = 4  # there is no such thing any more, or the login does not see it any more


@attrs.frozen
class Decided:
    """A verdict, and when it was given: seconds on the monotonic clock."""

    verdict: Verdict
    at: float


class Verdicts:
    """The last verdict for each login and repository. For many threads and, after a fork, many processes."""

    def __init__(self, buckets: int = MAX_BUCKETS) -> None:
        self._buckets = buckets
        self._table = mmap.mmap(-1, buckets * _BUCKET_BYTES)
        self._secret = os.urandom(32)

    def blob_key(self, prefix: str, repository: str, digest: Digest) -> bytes:
        """The key for a blob that belongs to a repository, whoever asks."""
        return self.key(prefix, f"{repository}@{digest}", None)

    def key(self, prefix: str, repository: str, login: Login | None) -> bytes:
        """The key for a login (None: clients without one) at an upstream, for a repository ("": for none)."""
        text = f"{prefix}\0{repository}\0"
        if login is not None:
            text += f"{login.is_bearer:d}\0{len(login.username)}\0{login.username}{login.password}"
        return hmac.digest(self._secret, text.encode(), "sha256")[:16]

    def find(self, key: bytes) -> Decided | None:
        """The last verdict for a key; None when there is none, or it was overwritten."""
        start = self._start(key)
        bucket = self._table[start : start + _BUCKET_BYTES]
        for offset in range(0, _BUCKET_BYTES, _RECORD_BYTES):
            if bucket.startswith(key, offset):
                return self._parse(bucket[offset : offset + _RECORD_BYTES])
        return None

    def put(self, key: bytes, verdict: Verdict, at: float) -> None:
        """Record a verdict, unless a newer one is there."""
        start = self._start(key)
        admissions: list[tuple[float, int]] = []
        refusals: list[tuple[float, int]] = []
        absent: list[int] = []
        for place in range(start, start + _BUCKET_BYTES, _RECORD_BYTES):
            record = self._table[place : place + _RECORD_BYTES]
            decided = self._parse(record)
            if record.startswith(key):
                if decided is not None and decided.at > at:
                    return  # of a worker that was frozen in between
                break
            if decided is None:
                absent.append(place)
            elif decided.verdict is Verdict.ADMITTED:
                admissions.append((decided.at, place))
            else:
                refusals.append((decided.at, place))
        else:
            wants_refusal = len(refusals) >= MIN_REFUSALS + (verdict is Verdict.ADMITTED)
            place = absent[0] if absent else min(refusals if wants_refusal or not admissions else admissions)[1]
        content = _CONTENT.pack(key, verdict, at)
        self._table[place : place + _RECORD_BYTES] = content + self._checksum(content)

    def _start(self, key: bytes) -> int:
        return int.from_bytes(key[:4], "big") % self._buckets * _BUCKET_BYTES

    def _parse(self, record: bytes) -> Decided | None:
        content = record[: _CONTENT.size]
        if record == _ABSENT or record[_CONTENT.size :] != self._checksum(content):
            return None
        _, verdict, at = _CONTENT.unpack(content)
        return Decided(Verdict(verdict), at)

    def _checksum(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=8, key=self._secret).digest()
