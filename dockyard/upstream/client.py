"""A registry as the cache sees it: a few questions, each with one answer or one error.

Each operation asks the breaker first, then calls, then reads the status. What registries get wrong in practice is made
good here: a HEAD that is refused or says too little is asked again as a GET, a
download address that has expired is fetched anew from the registry.

Errors: what the registry answers (not found, denied) is the answer. Everything else is an Outage or TooManyRequests.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from dockyard import metrics
from dockyard.config.settings import Upstream, UpstreamLimits
from dockyard.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    UpstreamTimeout,
    reason_of,
)
from dockyard.oci.lists import Referrer
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, Descriptor, Manifest
from dockyard.oci.reference import Digest, Reference
from dockyard.upstream import errors
from dockyard.upstream.auth import Authenticator
from dockyard.upstream.circuit_breaker import CircuitBreaker
from dockyard.upstream.errors import AuthenticationFailed, Cause, UpstreamError
from dockyard.upstream.headers import find_digest, parse_retry_after
from dockyard.upstream.keychain import Keychain
from dockyard.upstream.lists import ListReader
from dockyard.upstream.reading import (
    check_content,
    check_encoding,
    find_descriptor,
    find_size,
    length_of,
    note_limits,
    open_source,
)
from dockyard.upstream.session import RegistryRequest, RegistryResponse, RegistrySession
from dockyard.upstream.source import UpstreamBlob
from dockyard.upstream.tokens import CallLimits
from dockyard.upstream.transport import Transport

ANSWER_TIMEOUT_S = 10.0  # for what is neither a tag check nor the body of a blob
HEADLESS_FOR_S = 300.0
ACCEPT_HEADER = ", ".join(ACCEPT)

# A registry that answers HEAD so may well answer GET.
_NOT_BY_HEAD = frozenset({400, 401, 403, 405, 406, 501})

T = TypeVar("T")


class RegistryClient:
    """One upstream. Its methods block, and many threads use them at once."""

    def __init__(self, upstream: Upstream, limits: UpstreamLimits, keychain: Keychain, breaker: CircuitBreaker) -> None:
        self._who = upstream.prefix
        self._limits = limits
        self._breaker = breaker
        self._transport = Transport(upstream, limits)
        self._caller = RegistrySession(upstream, self._transport, Authenticator(upstream, self._transport, keychain))
        self._lists = ListReader(self._who, self._ask, self._status_error)
        self._headless_until = float("-inf")

    def head_manifest(self, repository: str, reference: Reference) -> Descriptor:
        """What a tag is at the moment (or a digest, how large). All of it within `check_timeout`."""
        return self._guard("head_manifest", lambda: self._head_manifest(repository, reference))

    def get_manifest(self, repository: str, reference: Reference) -> Manifest:
        """A manifest, verified."""
        return self._guard(
            "get_manifest", lambda: self._get_manifest(repository, reference, self._budget(self._answer_timeout))
        )

    def head_blob(self, repository: str, digest: Digest) -> int:
        """The size of a blob in bytes."""
        return self._guard("head_blob", lambda: self._head_blob(repository, digest))

    def open_blob(self, repository: str, digest: Digest, start: int = 0) -> UpstreamBlob:
        """A blob from byte `start` on; its headers come within `stall_timeout`. A resume is not kept back."""

        def probe() -> None:
            self._open_blob(repository, digest, 0).close()

        return self._guard("open_blob", lambda: self._open_blob(repository, digest, start), probe, is_resume=start > 0)

    def list_tags(self, repository: str) -> list[str]:
        """All tags of a repository, sorted."""
        return self._guard("list_tags", lambda: self._lists.tags(repository))

    def list_referrers(self, repository: str, digest: Digest) -> list[Referrer]:
        """The manifests that name this one as their subject; none when there are none."""
        return self._guard("list_referrers", lambda: self._lists.referrers(repository, digest))

    @property
    def is_breaker_open(self) -> bool:
        """Whether the breaker answers for the upstream."""
        return self._breaker.is_open

    def close(self) -> None:
        """Close the idle connections and stop probing."""
        self._breaker.close()
        self._transport.close()

    def _guard(
        self,
        name: str,
        operation: Callable[[], T],
        probe: Callable[[], object] | None = None,
        *,
        is_resume: bool = False,
    ) -> T:
        """Run an operation between the two sides of the breaker."""
        if not is_resume:
            self._breaker.check(probe or operation)
        try:
            with metrics.upstream_seconds.labels(self._who, name).time():
                result = operation()
        except UpstreamError as fault:
            metrics.upstream_failures.labels(self._who, reason_of(fault.error)).inc()
            self._breaker.record_failure(fault, probe or operation)
            raise fault.error from fault
        except RegistryError as error:
            if not error.remembered:
                self._breaker.record_success()
            raise
        self._breaker.record_success()
        return result

    # Manifests

    def _head_manifest(self, repository: str, reference: Reference) -> Descriptor:
        budget = self._budget(self._limits.check_timeout)
        if time.monotonic() < self._headless_until:
            return self._get_manifest(repository, reference, budget).descriptor
        question = RegistryRequest("HEAD", repository, reference, accept=ACCEPT_HEADER)
        reply = self._ask(question, budget)
        answer = reply.answer
        answer.finish()
        note_limits(self._who, answer)
        if answer.status == 200 and (descriptor := find_descriptor(answer, reference)) is not None:
            return descriptor
        if answer.status != 200 and answer.status not in _NOT_BY_HEAD:
            raise self._status_error(reply, question)
        self._spare(budget, reply)
        descriptor = self._get_manifest(repository, reference, budget).descriptor
        if answer.status in (405, 501):
            self._headless_until = time.monotonic() + HEADLESS_FOR_S
        return descriptor

    def _get_manifest(self, repository: str, reference: Reference, budget: CallLimits) -> Manifest:
        """A body that breaks off is asked for once more; a connection without an answer was already tried twice."""
        question = RegistryRequest("GET", repository, reference, accept=ACCEPT_HEADER)
        reply = self._ask(question, budget)
        try:
            return self._read_manifest(reply, question)
        except UpstreamError as fault:
            if not fault.is_retryable:
                raise
        return self._read_manifest(self._ask(question, budget), question)

    def _read_manifest(self, reply: RegistryResponse, question: RegistryRequest) -> Manifest:
        answer = reply.answer
        note_limits(self._who, answer)
        if answer.status != 200:
            answer.finish()
            raise self._status_error(reply, question)
        try:
            length = length_of(answer)
            check_encoding(answer)
            if length is not None and length > MAX_MANIFEST_BYTES:
                raise errors.bad_response(self._who, f"has a manifest of more than {MAX_MANIFEST_BYTES} bytes")
            body = answer.read(MAX_MANIFEST_BYTES)
        except UpstreamError as fault:
            answer.close()
            raise _elsewhere(fault, reply) from fault
        told = find_digest(answer.header("Docker-Content-Digest"))
        expected = question.reference if isinstance(question.reference, Digest) else told
        try:
            return Manifest.parse(body, answer.header("Content-Type"), expected)
        except BadUpstream as error:
            # Without a length, a body that was cut looks like one that is wrong.
            is_cut = length is None and answer.header("Transfer-Encoding") is None
            raise UpstreamError(error, Cause.NOT_COUNTED, is_retryable=is_cut) from error

    # Blobs

    def _head_blob(self, repository: str, digest: Digest) -> int:
        budget = self._budget(self._answer_timeout)
        question = RegistryRequest("HEAD", repository, digest, is_blob=True)
        reply = self._ask(question, budget)
        answer = reply.answer
        answer.finish()
        if answer.status == 200:
            check_content(answer)
            if (length := length_of(answer)) is not None and answer.header("Transfer-Encoding") is None:
                return length
        elif answer.status not in _NOT_BY_HEAD:
            raise self._status_error(reply, question)
        self._spare(budget, reply)
        return self._size_by_range(repository, digest, budget)

    def _size_by_range(self, repository: str, digest: Digest, budget: CallLimits) -> int:
        """Some registries refuse HEAD, and so do addresses signed for GET: the first byte tells the size too."""
        question = RegistryRequest("GET", repository, digest, is_blob=True, byte_range="bytes=0-0")
        reply = self._ask(question, budget)
        answer = reply.answer
        try:
            size = find_size(answer)
        finally:
            answer.close()
        if size is not None:
            return size
        raise self._status_error(reply, question)

    def _open_blob(self, repository: str, digest: Digest, start: int) -> UpstreamBlob:
        """Through the registry twice at most: an address that it signed may have expired, or its host hang.

        Where nobody listens, whoever opens the blob tries again after a pause.
        """
        budget = self._budget(self._limits.stall_timeout)
        byte_range = f"bytes={start}-" if start else ""
        question = RegistryRequest("GET", repository, digest, is_blob=True, byte_range=byte_range)
        try:
            return self._try_blob(question, start, budget)
        except _ElsewhereFailed:
            pass
        try:
            return self._try_blob(question, start, budget)
        except _ElsewhereFailed as exc:
            raise exc.fault from exc

    def _try_blob(self, question: RegistryRequest, start: int, budget: CallLimits) -> UpstreamBlob:
        """Raises _ElsewhereFailed when a fresh redirect may do better."""
        try:
            reply = self._ask(question, budget)
        except UpstreamError as fault:
            if fault.is_from_other_origin and isinstance(fault.error, UpstreamTimeout) and budget.left(1.0):
                raise _ElsewhereFailed(fault) from fault
            raise
        answer = reply.answer
        if answer.status in (200, 206):
            try:
                return open_source(answer, start)
            except UpstreamError as fault:
                answer.close()
                raise _elsewhere(fault, reply) from fault
        answer.finish()
        if reply.is_redirected and answer.status in (401, 403):
            raise _ElsewhereFailed(
                errors.server_error(answer.who, answer.status).as_not_counted(is_from_other_origin=True)
            )
        raise self._status_error(reply, question)

    # Asking

    def _ask(self, question: RegistryRequest, budget: CallLimits) -> RegistryResponse:
        try:
            return self._caller.ask(question, budget)
        except AuthenticationFailed as exc:
            denied = Denied(f"{self._who} refuses our login for {question.repository}", remembered=exc.remembered)
            raise (self._unknown(question) if exc.is_anonymous else denied) from exc

    def _budget(self, timeout_s: float) -> CallLimits:
        return CallLimits(time.monotonic() + timeout_s if timeout_s else None)

    @property
    def _answer_timeout(self) -> float:
        return max(ANSWER_TIMEOUT_S, self._limits.check_timeout) if self._limits.check_timeout else 0.0

    def _spare(self, budget: CallLimits, reply: RegistryResponse) -> None:
        """After a 401 to a HEAD that had a token, another token would not help the GET either."""
        if reply.answer.status == 401 and reply.grant.token:
            budget.token_requests = 0

    def _unknown(self, question: RegistryRequest) -> RegistryError:
        if question.listing:
            return NameUnknown(f"{self._who} has no {question.what}")
        return (BlobUnknown if question.is_blob else ManifestUnknown)(f"{self._who} has no {question.what}")

    def _status_error(self, reply: RegistryResponse, question: RegistryRequest) -> UpstreamError | RegistryError:
        """The error behind a status that is not a success."""
        answer = reply.answer
        match answer.status:
            case 401 | 403 if reply.is_from_other_origin:
                fault = errors.server_error(answer.who, answer.status)
            case 401 | 403 | 451 if not reply.grant.credential.is_anonymous:
                return Denied(f"{self._who} refuses our login for {question.repository}")
            case 401 | 403 | 404 | 410 | 451:
                return self._unknown(question)
            case 429:
                fault = errors.rate_limited(answer.who, parse_retry_after(answer.header("Retry-After"), time.time()))
            case 407:
                fault = errors.unreachable(answer.who, "its proxy does not let us through")
            case 408:
                fault = errors.timed_out(answer.who)
            case status if 500 <= status < 600:
                header = answer.header("Retry-After")
                wait_s = parse_retry_after(header, time.time()) if header else errors.RETRY_AFTER_S
                fault = errors.server_error(answer.who, status, wait_s)
            case status:
                fault = errors.bad_response(answer.who, f"answered {status}")
        return _elsewhere(fault, reply)


class _ElsewhereFailed(Exception):
    """The place that the registry redirected to failed in a way that a fresh redirect may mend."""

    def __init__(self, fault: UpstreamError) -> None:
        super().__init__(fault.error.message)
        self.fault = fault


def _elsewhere(fault: UpstreamError, reply: RegistryResponse) -> UpstreamError:
    """What a host does that the registry redirects to does not speak against the registry."""
    return fault.as_not_counted(is_from_other_origin=True) if reply.is_from_other_origin else fault
