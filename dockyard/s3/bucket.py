"""The bucket behind a circuit breaker: an S3 error reads as "not found", and one that fails is left out for a while.

While the circuit breaker is open, one thread probes the bucket every PROBE_INTERVAL_S, so that no client waits for a
bucket that is down. Requests may bypass it (`even_if_open`) when the upstream is down too.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import structlog

from dockyard import metrics
from dockyard.oci.reference import Digest
from dockyard.s3.errors import S3Error

if TYPE_CHECKING:
    from dockyard.s3.store import S3Store

MAX_RESPONSE_S = 1.0
PROBE_INTERVAL_S = 3.0
_PROBED_BLOB = Digest.of(b"")

T = TypeVar("T")

log = structlog.get_logger()


class Bucket:
    """Reads from `s3`; with None it is empty. Methods block and do not raise S3 errors. For many threads."""

    def __init__(self, s3: "S3Store | None") -> None:
        self._s3 = s3
        self._mutex = threading.Lock()
        self._is_open = False
        self._stop = threading.Event()

    @property
    def is_configured(self) -> bool:
        """Whether there is a bucket."""
        return self._s3 is not None

    @property
    def is_open(self) -> bool:
        """Whether the circuit breaker is open: only reads with `even_if_open` reach the bucket."""
        return self._is_open

    def read(self, operation: Callable[["S3Store"], T | None], *, even_if_open: bool = False) -> T | None:
        """The result of an operation; None when it fails, or when the circuit breaker is open.

        An S3 error, or a response that takes longer than MAX_RESPONSE_S, opens the circuit breaker.
        """
        if self._s3 is None or (self._is_open and not even_if_open):
            return None
        started_at = time.monotonic()
        try:
            result = operation(self._s3)
        except S3Error as exc:
            metrics.bucket_faults.inc()
            self._open_breaker(self._s3, exc.explanation)
            return None
        if (took_s := time.monotonic() - started_at) > MAX_RESPONSE_S:
            self._open_breaker(self._s3, f"a request took {took_s:.1f} s")
        return result

    def close(self) -> None:
        """Stop probing."""
        self._stop.set()

    def _open_breaker(self, s3: "S3Store", reason: str) -> None:
        with self._mutex:
            if self._is_open or self._stop.is_set():
                return
            self._is_open = True
        log.warning("bucket unavailable: reading without it", reason=reason)
        threading.Thread(target=self._probe, args=(s3,), name="bucket-probe", daemon=True).start()

    def _probe(self, s3: "S3Store") -> None:
        while not self._stop.wait(PROBE_INTERVAL_S):
            started_at = time.monotonic()
            try:
                s3.stat_blob(_PROBED_BLOB)
            except S3Error:
                continue
            if time.monotonic() - started_at <= MAX_RESPONSE_S:
                self._is_open = False
                log.info("bucket available again")
                return
